/* Children that have ended but were not waited for, and stopped ones. */
#include "victim.h"

static char state_of(pid_t pid) {
    char path[64], text[1024];
    snprintf(path, sizeof path, "/proc/%d/stat", (int)pid);
    slurp(path, text, sizeof text);
    return strrchr(text, ')')[2];
}

int main(int argc, char **argv) {
    begin(argc, argv);
    atomic_int *lives = shared(4096);
    pid_t exited = fork();
    if (exited == 0) _exit(42);
    pid_t killed = fork();
    if (killed == 0) for (;;) pause();
    CHECK(kill(killed, SIGKILL) == 0);
    pid_t stopped = fork();
    if (stopped == 0) {
        raise(SIGSTOP);
        (*lives)++;
        _exit(7);
    }
    AWAIT(state_of(exited) == 'Z' && state_of(killed) == 'Z' && state_of(stopped) == 'T');
    int status;
    SAME(waitpid(stopped, &status, WUNTRACED), stopped);
    CHECK(WIFSTOPPED(status) && WSTOPSIG(status) == SIGSTOP);
    /* Of one that has ended and is not waited for. */
    int handle = (int)syscall(SYS_pidfd_open, exited, 0);
    CHECK(handle >= 0);
    ready();
    struct pollfd polled = {handle, POLLIN, 0};
    CHECK(poll(&polled, 1, 0) == 1);
    siginfo_t peeked = {0};
    CHECK(waitid(3 /* P_PIDFD */, (id_t)handle, &peeked, WEXITED | WNOWAIT) == 0);
    SAME(peeked.si_pid, exited);
    SAME(state_of(exited), 'Z');
    SAME(state_of(killed), 'Z');
    nap(100);
    SAME(state_of(stopped), 'T');
    SAME(*lives, 0);
    SAME(waitpid(exited, &status, 0), exited);
    CHECK(WIFEXITED(status));
    SAME(WEXITSTATUS(status), 42);
    siginfo_t info;
    CHECK(waitid(P_PID, killed, &info, WEXITED) == 0);
    SAME(info.si_code, CLD_KILLED);
    SAME(info.si_status, SIGKILL);
    CHECK(kill(stopped, SIGCONT) == 0);
    SAME(waitpid(stopped, &status, 0), stopped);
    CHECK(WIFEXITED(status));
    SAME(WEXITSTATUS(status), 7);
    SAME(*lives, 1);
    SAME(waitpid(-1, &status, WNOHANG), -1);
    ok();
}
