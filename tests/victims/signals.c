/* Handlers, masks, pending signals with their values, alternate stacks. */
#include "victim.h"

static char stack[65536];
static volatile sig_atomic_t on_stack, got_mask, sequence, order[16], values[16], senders[16], codes[16];
static atomic_int thread_signal, thread_value, thread_ready, thread_go;

static void on_altstack(int signal) {
    (void)signal;
    char here;
    on_stack = &here >= stack && &here < stack + sizeof stack;
    sigset_t mask;
    pthread_sigmask(SIG_SETMASK, NULL, &mask);
    got_mask = sigismember(&mask, SIGWINCH) == 1 && sigismember(&mask, SIGHUP) == 0;
}

static void queued(int signal, siginfo_t *info, void *context) {
    (void)context;
    int i = sequence++;
    order[i] = signal;
    values[i] = info->si_value.sival_int;
    senders[i] = info->si_pid;
    codes[i] = info->si_code;
}

static void *thread(void *argument) {
    (void)argument;
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGRTMIN + 5);
    thread_ready = 1;
    AWAIT(thread_go);
    siginfo_t info;
    thread_signal = sigwaitinfo(&set, &info);
    thread_value = info.si_value.sival_int;
    return NULL;
}

static void handle(int signal, void *handler, int flags, int masked) {
    struct sigaction action = {.sa_flags = flags};
    action.sa_sigaction = handler;
    if (masked) sigaddset(&action.sa_mask, masked);
    CHECK(sigaction(signal, &action, NULL) == 0);
}

int main(int argc, char **argv) {
    begin(argc, argv);
    stack_t alternate = {.ss_sp = stack, .ss_size = sizeof stack};
    CHECK(sigaltstack(&alternate, NULL) == 0);
    handle(SIGUSR1, on_altstack, SA_ONSTACK | SA_RESTART, SIGWINCH);
    handle(SIGUSR2, SIG_IGN, 0, 0);
    /* The kernel makes an ignored SIGTRAP's action the default when a debugger traps the program. */
    handle(SIGTRAP, SIG_IGN, SA_RESTART, SIGWINCH);
    int first = SIGRTMIN + 1, second = SIGRTMIN + 2;
    handle(first, queued, SA_SIGINFO, second);
    handle(second, queued, SA_SIGINFO, first);
    handle(SIGTERM, queued, SA_SIGINFO | SA_RESETHAND, 0);
    sigset_t block, before, after;
    sigemptyset(&block);
    sigaddset(&block, first);
    sigaddset(&block, second);
    sigaddset(&block, SIGTERM);
    sigaddset(&block, SIGRTMIN + 5);
    sigaddset(&block, SIGALRM);
    CHECK(pthread_sigmask(SIG_BLOCK, &block, NULL) == 0);
    pthread_t other;
    CHECK(pthread_create(&other, NULL, thread, NULL) == 0);
    AWAIT(thread_ready);
    CHECK(pthread_sigqueue(other, SIGRTMIN + 5, (union sigval){.sival_int = 555}) == 0);
    for (int i = 0; i < 5; i++) CHECK(sigqueue(getpid(), first, (union sigval){.sival_int = 100 + i}) == 0);
    CHECK(sigqueue(getpid(), second, (union sigval){.sival_int = 200}) == 0);
    pid_t child = fork();
    if (child == 0) _exit(kill(getppid(), SIGTERM));
    int status;
    SAME(waitpid(child, &status, 0), child);
    SAME(status, 0);
    CHECK(pthread_sigmask(SIG_SETMASK, NULL, &before) == 0);
    ready();
    CHECK(pthread_sigmask(SIG_SETMASK, NULL, &after) == 0);
    for (int i = 1; i <= 64; i++) SAME(sigismember(&after, i), sigismember(&before, i));
    SAME(sequence, 0);
    struct sigaction action;
    CHECK(sigaction(SIGUSR1, NULL, &action) == 0);
    CHECK(action.sa_handler == on_altstack && sigismember(&action.sa_mask, SIGWINCH));
    SAME(action.sa_flags & (SA_ONSTACK | SA_RESTART | SA_SIGINFO), SA_ONSTACK | SA_RESTART);
    CHECK(sigaction(SIGUSR2, NULL, &action) == 0 && action.sa_handler == SIG_IGN);
    CHECK(sigaction(SIGTRAP, NULL, &action) == 0 && action.sa_handler == SIG_IGN);
    CHECK(sigismember(&action.sa_mask, SIGWINCH) && (action.sa_flags & SA_RESTART));
    raise(SIGTRAP);
    CHECK(sigaction(SIGHUP, NULL, &action) == 0 && action.sa_handler == SIG_DFL);
    raise(SIGUSR2);
    raise(SIGUSR1);
    CHECK(on_stack);
    CHECK(got_mask);
    thread_go = 1;
    CHECK(pthread_join(other, NULL) == 0);
    SAME(thread_signal, SIGRTMIN + 5);
    SAME(thread_value, 555);
    sigset_t pending;
    CHECK(sigpending(&pending) == 0 && sigismember(&pending, SIGTERM) && sigismember(&pending, first));
    CHECK(!sigismember(&pending, SIGALRM));
    /* One kind after the other: the order among kinds is the kernel's, that within one is the sender's. */
    int kinds[] = {SIGTERM, first, second};
    for (int i = 0; i < 3; i++) {
        sigset_t one;
        sigemptyset(&one);
        sigaddset(&one, kinds[i]);
        CHECK(pthread_sigmask(SIG_UNBLOCK, &one, NULL) == 0);
    }
    SAME(sequence, 7);
    SAME(order[0], SIGTERM);
    SAME(codes[0], SI_USER);
    SAME(senders[0], child);
    for (int i = 0; i < 5; i++) {
        SAME(order[1 + i], first);
        SAME(values[1 + i], 100 + i);
        SAME(codes[1 + i], SI_QUEUE);
        SAME(senders[1 + i], getpid());
    }
    SAME(order[6], second);
    SAME(values[6], 200);
    CHECK(sigaction(SIGTERM, NULL, &action) == 0 && action.sa_handler == SIG_DFL);
    stack_t now_;
    CHECK(sigaltstack(NULL, &now_) == 0);
    CHECK(now_.ss_sp == stack && now_.ss_size == sizeof stack && now_.ss_flags == 0);
    ok();
}
