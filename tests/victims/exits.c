/* Processes that end the moment they go on after a stop, with threads that were still held then: by exit_group(2), which
 * is SIGKILL to all others. A thread of their parent is in vfork(2) nearly always, so that they go on in the middle of a
 * stop, too. The parent is told of every end, and starts another one. */
#include "victim.h"

enum { OTHERS = 128, CODE = 7 };
/* A stop takes longer. Where something else does, one more has ended, no harm done. */
#define GAP 0.004

static atomic_int done;

static void *rest(void *nothing) {
    (void)nothing;
    while (pause() != 0) continue;
    return NULL;
}

__attribute__((noreturn)) static void short_lived(void) {
    pthread_attr_t small;
    CHECK(prctl(PR_SET_PDEATHSIG, SIGKILL) == 0);
    CHECK(pthread_attr_init(&small) == 0 && pthread_attr_setstacksize(&small, 65536) == 0);
    for (int i = 0; i < OTHERS; i++) {
        pthread_t thread;
        CHECK(pthread_create(&thread, &small, rest, NULL) == 0);
    }
    for (double last = now(CLOCK_MONOTONIC);;) {
        double next = now(CLOCK_MONOTONIC);
        if (next - last > GAP) _exit(CODE);
        last = next;
    }
}

static void *in_vfork(void *nothing) {
    (void)nothing;
    while (!done) {
        pid_t child = vfork();
        if (child == 0) {
            struct timespec while_held = {0, 20000000};
            nanosleep(&while_held, NULL);
            _exit(0);
        }
        int status;
        CHECK(child > 0 && waitpid(child, &status, 0) == child);
        SAME(status, 0);
        nap(1);
    }
    return NULL;
}

int main(int argc, char **argv) {
    begin(argc, argv);
    pthread_t spawner;
    CHECK(pthread_create(&spawner, NULL, in_vfork, NULL) == 0);
    CHECK(write(1, "READY\n", 6) == 6);
    while (access(go, F_OK) != 0) {
        pid_t child = fork();
        CHECK(child >= 0);
        if (child == 0) short_lived();
        int status = 0;
        pid_t got;
        while ((got = waitpid(child, &status, WNOHANG)) == 0 && access(go, F_OK) != 0) nap(5);
        if (got == 0) {
            CHECK(kill(child, SIGKILL) == 0 && waitpid(child, &status, 0) == child);
            break;
        }
        CHECK(got == child && WIFEXITED(status));
        SAME(WEXITSTATUS(status), CODE);
        nap(10);
    }
    done = 1;
    CHECK(pthread_join(spawner, NULL) == 0);
    ok();
}
