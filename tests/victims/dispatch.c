/* A program that answers its own system calls: each is handed to it as a signal. */
#include "victim.h"
#include <ucontext.h>

#define SET_DISPATCH 59
enum { ALLOW, BLOCK };
static volatile char selector = ALLOW;

static void answer(int signal, siginfo_t *info, void *context) {
    (void)signal;
    (void)info;
    selector = ALLOW;
    ((ucontext_t *)context)->uc_mcontext.gregs[REG_RAX] = 42;
}

int main(int argc, char **argv) {
    begin(argc, argv);
    struct sigaction action = {.sa_sigaction = answer, .sa_flags = SA_SIGINFO};
    CHECK(sigaction(SIGSYS, &action, NULL) == 0);
    CHECK(prctl(SET_DISPATCH, 1, 0, 0, &selector) == 0);
    CHECK(write(1, "READY\n", 6) == 6);
    while (access(go, F_OK) != 0) {
        for (int i = 0; i < 1000; i++) {
            selector = BLOCK;
            SAME(syscall(SYS_getppid), 42);
            SAME(selector, ALLOW);
        }
    }
    ok();
}
