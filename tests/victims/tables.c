/* Processes that share one table of descriptors (CLONE_FILES), and one beside them that has a copy. */
#include "victim.h"

static int both[2], *said;

static pid_t born(unsigned long flags) {
    pid_t pid = syscall(SYS_clone, flags | SIGCHLD, NULL, NULL, NULL, 0);
    CHECK(pid >= 0);
    return pid;
}

int main(int argc, char **argv) {
    begin(argc, argv);
    said = shared(3 * sizeof *said);
    CHECK(pipe(both) == 0);
    pid_t sharer = born(CLONE_FILES);
    if (sharer == 0) {
        /* Another one below it shares the same table. */
        pid_t below = born(CLONE_FILES);
        if (below == 0) {
            said[1] = 1;
            wait_for_go();
            AWAIT(said[0] == 2);
            /* What the first process opened at this number after the restart. */
            CHECK(dup2(50, 51) == 51);
            said[1] = 2;
            _exit(0);
        }
        said[0] = 1;
        int status;
        CHECK(waitpid(below, &status, 0) == below);
        _exit(status != 0);
    }
    pid_t apart = born(0);
    if (apart == 0) {
        said[2] = 1;
        wait_for_go();
        AWAIT(said[1] == 2);
        CHECK(fcntl(50, F_GETFD) == -1 && errno == EBADF);
        CHECK(write(both[1], "x", 1) == 1);
        _exit(0);
    }
    AWAIT(said[0] && said[1] && said[2]);
    ready();
    CHECK(dup2(both[0], 50) == 50);
    said[0] = 2;
    AWAIT(said[1] == 2);
    CHECK(fcntl(51, F_GETFD) >= 0);
    char byte;
    CHECK(read(51, &byte, 1) == 1 && byte == 'x');
    int status;
    CHECK(waitpid(sharer, &status, 0) == sharer);
    SAME(status, 0);
    CHECK(waitpid(apart, &status, 0) == apart);
    SAME(status, 0);
    ok();
}
