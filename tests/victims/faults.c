/* Faults that the program handles, one after the other: most of the time one is on its way. */
#include "victim.h"
#include <setjmp.h>

enum { KINDS = 4 };
static const int signals[KINDS] = {SIGSEGV, SIGSEGV, SIGSEGV, SIGILL};
static _Thread_local sigjmp_buf jump;
static _Thread_local volatile sig_atomic_t got;
static char *nothing;
static atomic_int stop;

static void on_fault(int signal) {
    got = signal;
    siglongjmp(jump, 1);
}

static void make(int kind) {
    switch (kind) {
    case 0: *(volatile char *)nothing = 1; break;
    /* Not allowed to programs. */
    case 1: __asm__ volatile("hlt"); break;
    /* No address at all. */
    case 2: *(volatile char *)0x8000000000000000 = 1; break;
    default: __asm__ volatile("ud2");
    }
}

static void fault(int kind) {
    got = 0;
    if (sigsetjmp(jump, 1) == 0) {
        make(kind);
        fail(__LINE__, "kind %d was no fault", kind);
    }
}

static void *work(void *start) {
    for (int kind = (int)(intptr_t)start; !stop; kind = (kind + 1) % KINDS) {
        fault(kind);
        SAME(got, signals[kind]);
    }
    return NULL;
}

int main(int argc, char **argv) {
    begin(argc, argv);
    nothing = mmap(NULL, 4096, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(nothing != MAP_FAILED);
    struct sigaction action = {.sa_handler = on_fault, .sa_flags = SA_NODEFER};
    CHECK(sigaction(SIGSEGV, &action, NULL) == 0 && sigaction(SIGILL, &action, NULL) == 0);
    pthread_t threads[2];
    for (intptr_t i = 0; i < 2; i++) CHECK(pthread_create(&threads[i], NULL, work, (void *)(i + 1)) == 0);
    /* The main thread, too, whose calls those of the checkpoint are. */
    CHECK(write(1, "READY\n", 6) == 6);
    for (int kind = 0; access(go, F_OK) != 0; kind = (kind + 1) % KINDS) {
        fault(kind);
        SAME(got, signals[kind]);
    }
    stop = 1;
    for (int i = 0; i < 2; i++) CHECK(pthread_join(threads[i], NULL) == 0);
    ok();
}
