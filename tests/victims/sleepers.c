/* Many threads that sleep, beside one that changes of them what a thread may change of others ("changed"), or replaces the
 * program again and again ("replaced"). */
#include "victim.h"
#include <semaphore.h>

enum { SLEEPERS = 160, WAYS = 5, STACK = 64 * 1024 };
static pid_t numbers[SLEEPERS];
static pthread_t threads[SLEEPERS];
static atomic_int begun, over;
static atomic_long handled[SLEEPERS];
static sem_t gate;
static int ends[2];

static int bytes_of(int number) { return SIGSTKSZ + 16384 + number * 64; }

static __thread int self;
static void handle(int signal) {
    (void)signal;
    stack_t on;
    /* On its own stack, and no other's. */
    if (sigaltstack(NULL, &on) != 0 || !(on.ss_flags & SS_ONSTACK) || (int)on.ss_size != bytes_of(self)) _exit(3);
    handled[self]++;
}

static void *sleeper(void *argument) {
    int number = self = (int)(long)argument;
    numbers[number] = syscall(SYS_gettid);
    stack_t stack = {.ss_sp = malloc(bytes_of(number)), .ss_size = bytes_of(number)}, now;
    CHECK(sigaltstack(&stack, NULL) == 0);
    CHECK(prctl(PR_SET_TIMERSLACK, 1000 + number) == 0);
    CHECK(prctl(PR_SET_PDEATHSIG, 0) == 0);
    sigset_t block;
    sigemptyset(&block);
    sigaddset(&block, SIGRTMIN + number % 20);
    CHECK(pthread_sigmask(SIG_BLOCK, &block, NULL) == 0);
    begun++;
    while (!over) switch (number % WAYS) {
        case 0: sem_wait(&gate); break;
        case 1: nap(1000); break;
        case 2: poll(NULL, 0, 2000); break;
        case 3: { char byte; if (read(ends[0], &byte, 1) < 0) CHECK(errno == EINTR); break; }
        case 4: syscall(SYS_pause); break;
    }
    CHECK(sigaltstack(NULL, &now) == 0 && now.ss_sp == stack.ss_sp && now.ss_size == stack.ss_size);
    SAME(prctl(PR_GET_TIMERSLACK), 1000 + number);
    sigset_t blocked;
    CHECK(pthread_sigmask(SIG_BLOCK, NULL, &blocked) == 0);
    for (int i = 0; i < 20; i++) SAME(sigismember(&blocked, SIGRTMIN + i), i == number % 20);
    SAME(syscall(SYS_gettid), numbers[number]);
    return argument;
}

static void start(void) {
    struct sigaction action = {.sa_handler = handle, .sa_flags = SA_ONSTACK};
    CHECK(sigaction(SIGUSR1, &action, NULL) == 0);
    CHECK(sem_init(&gate, 0, 0) == 0 && pipe(ends) == 0);
    pthread_attr_t small;
    CHECK(pthread_attr_init(&small) == 0 && pthread_attr_setstacksize(&small, STACK) == 0);
    for (long i = 0; i < SLEEPERS; i++) CHECK(pthread_create(&threads[i], &small, sleeper, (void *)i) == 0);
    while (begun < SLEEPERS) nap(1);
}

/* What is changed of a sleeper in each round. Before it is changed again it has to be what it was made. */
struct changed { char name[16]; int priority; unsigned long processors; };
static struct changed in_round(unsigned round, int number, unsigned long all) {
    struct changed wanted = {.priority = 2 << 13 | (round + number) % 8};
    snprintf(wanted.name, sizeof wanted.name, "s%u.%d", round, number);
    /* One processor or the other. */
    unsigned long one = all & -all, other = all & ~one ? (all & ~one) & -(all & ~one) : one;
    wanted.processors = round % 2 ? one : other;
    return wanted;
}

enum { IOPRIO_WHO_PROCESS = 1 };

static void change(void) {
    unsigned long all = 0;
    CHECK(syscall(SYS_sched_getaffinity, 0, sizeof all, &all) > 0 && all);
    static long sent[SLEEPERS];
    disturbed = 1;
    CHECK(write(1, "READY\n", 6) == 6);
    unsigned round = 0;
    for (; access(go, F_OK) != 0; round++) {
        for (int i = 0; i < SLEEPERS; i++) {
            struct changed before = in_round(round - 1, i, all), after = in_round(round, i, all);
            unsigned long processors = 0;
            char name[16] = "";
            if (round) {
                CHECK(pthread_getname_np(threads[i], name, sizeof name) == 0);
                if (strcmp(name, before.name)) fail(__LINE__, "%d is called %s, not %s", i, name, before.name);
                SAME(syscall(SYS_ioprio_get, IOPRIO_WHO_PROCESS, numbers[i]), before.priority);
                CHECK(syscall(SYS_sched_getaffinity, numbers[i], sizeof processors, &processors) > 0);
                SAME(processors, before.processors);
            }
            CHECK(pthread_setname_np(threads[i], after.name) == 0);
            CHECK(syscall(SYS_ioprio_set, IOPRIO_WHO_PROCESS, numbers[i], after.priority) == 0);
            CHECK(syscall(SYS_sched_setaffinity, numbers[i], sizeof after.processors, &after.processors) == 0);
            /* Seldom enough for most to be asleep. */
            if ((round + i) % 64 == 0 && handled[i] == sent[i]) {
                sent[i]++;
                CHECK(syscall(SYS_tgkill, getpid(), numbers[i], SIGUSR1) == 0);
            }
        }
    }
    CHECK(round > 1);
    for (int i = 0; i < SLEEPERS; i++) while (handled[i] != sent[i]) nap(1);
}

static void finish(void) {
    over = 1;
    for (int i = 0; i < SLEEPERS; i++) CHECK(sem_post(&gate) == 0);
    close(ends[1]);
    for (long i = 0; i < SLEEPERS; i++) {
        void *result;
        /* It may not have been back in its call when the signal came. */
        while (pthread_tryjoin_np(threads[i], &result) != 0) {
            CHECK(syscall(SYS_tgkill, getpid(), numbers[i], SIGUSR1) == 0);
            nap(1);
        }
        SAME((long)result, i);
    }
}

static char **own_arguments;
static void *replace(void *unused) {
    char number[16];
    const char *times = getenv("TIMES");
    snprintf(number, sizeof number, "%d", times ? atoi(times) + 1 : 1);
    CHECK(setenv("TIMES", number, 1) == 0);
    nap(30);
    execv("/proc/self/exe", own_arguments);
    fail(__LINE__, "execv");
    return unused;
}

int main(int argc, char **argv) {
    begin(argc, argv);
    own_arguments = argv;
    start();
    if (!strcmp(mode, "changed")) change();
    else if (!strcmp(mode, "replaced")) {
        if (!getenv("TIMES")) CHECK(write(1, "READY\n", 6) == 6);
        if (access(go, F_OK) != 0) {
            pthread_t replacer;
            CHECK(pthread_create(&replacer, NULL, replace, NULL) == 0);
            for (;;) syscall(SYS_pause);
        }
        CHECK(getenv("TIMES") && atoi(getenv("TIMES")) > 1);
        disturbed = 1;
    } else fail(__LINE__, "no such mode: %s", mode);
    finish();
    ok();
}
