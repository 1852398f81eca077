/* A process that lets nobody look at it, with threads, open files and a child that is the same. */
#include "victim.h"

static void *sleeper(void *unused) {
    (void)unused;
    struct timespec long_time = {1000, 0};
    nanosleep(&long_time, NULL);
    return NULL;
}

int main(int argc, char **argv) {
    begin(argc, argv);
    int ends[2];
    CHECK(pipe(ends) == 0 && write(ends[1], "in the pipe", 11) == 11);
    char *memory = mmap(NULL, 1 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(memory != MAP_FAILED);
    memset(memory, 'm', 1 << 20);
    CHECK(prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) == 0);
    pid_t child = fork();
    if (child == 0) {
        wait_for_go();
        _exit(prctl(PR_GET_DUMPABLE, 0, 0, 0, 0) == 0 ? 7 : 8);
    }
    pthread_t thread;
    CHECK(child > 0 && pthread_create(&thread, NULL, sleeper, NULL) == 0);
    ready();
    SAME(prctl(PR_GET_DUMPABLE, 0, 0, 0, 0), 0);
    char text[16] = "";
    SAME(read(ends[0], text, sizeof text), 11);
    SAME(strcmp(text, "in the pipe"), 0);
    for (int i = 0; i < 1 << 20; i++) SAME(memory[i], 'm');
    int status;
    CHECK(waitpid(child, &status, 0) == child && WIFEXITED(status));
    SAME(WEXITSTATUS(status), 7);
    ok();
}
