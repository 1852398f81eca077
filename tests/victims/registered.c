/* What a process has told the kernel about itself: memory barriers; and small things of processes and memfds. */
#include "victim.h"
#include <linux/membarrier.h>

int main(int argc, char **argv) {
    begin(argc, argv);
    int *said = shared(sizeof *said);
    /* A memfd can be run only while nothing has opened it for writing but memfd_create(2) itself. */
    int script = memfd_create("script", 0);
    CHECK(script >= 0 && write(script, "#!/bin/true\n", 12) == 12);
    CHECK(syscall(SYS_membarrier, MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED, 0, 0) == 0);
    /* Stopped by what a terminal's control-Z sends, in a process group with a parent in its session. */
    pid_t stopped = fork();
    if (stopped == 0) {
        CHECK(setpgid(0, 0) == 0);
        *said = 1;
        for (;;) pause();
    }
    AWAIT(*said == 1);
    int status;
    CHECK(kill(stopped, SIGTSTP) == 0 && waitpid(stopped, &status, WUNTRACED) == stopped && WIFSTOPPED(status));
    /* A private view of shared memory. */
    char *first = shared(4096), path[64];
    strcpy(first, "shared");
    int init = open("/proc/1/status", O_RDONLY);
    CHECK(init >= 0 && read(init, path, 5) == 5);
    ready();
    CHECK(syscall(SYS_membarrier, MEMBARRIER_CMD_PRIVATE_EXPEDITED, 0, 0) == 0);
    CHECK(read(init, path, 1) == 1);
    pid_t child = fork();
    if (child == 0) {
        char *none[] = {"true", NULL};
        execveat(script, "", none, none + 1, AT_EMPTY_PATH);
        _exit(errno);
    }
    CHECK(waitpid(child, &status, 0) == child);
    SAME(status, 0);
    CHECK(kill(stopped, SIGCONT) == 0 && waitpid(stopped, &status, WCONTINUED) == stopped);
    CHECK(kill(stopped, SIGKILL) == 0 && waitpid(stopped, &status, 0) == stopped);
    ok();
}
