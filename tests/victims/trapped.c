/* A SIGTRAP that the process has blocked: no checkpoint can be taken, and the signal stays. */
#include "victim.h"

int main(int argc, char **argv) {
    begin(argc, argv);
    sigset_t trap;
    sigemptyset(&trap);
    sigaddset(&trap, SIGTRAP);
    CHECK(sigprocmask(SIG_BLOCK, &trap, NULL) == 0 && kill(getpid(), SIGTRAP) == 0);
    ready();
    struct timespec now = {0, 0};
    siginfo_t info;
    SAME(sigtimedwait(&trap, &info, &now), SIGTRAP);
    SAME(info.si_pid, getpid());
    ok();
}
