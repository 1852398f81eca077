/* Threads blocked in system calls that must not notice anything. */
#include "victim.h"
#include <linux/futex.h>

/* As glibc and Go make their calls: the number is loaded right before. musl and syscall() get it as an argument. */
#define CALL4(number, a, b, c, d)                                                                             \
    ({                                                                                                        \
        long r_;                                                                                              \
        register long d_ __asm__("r10") = (long)(d);                                                          \
        register long e_ __asm__("r8") = 0;                                                                   \
        register long f_ __asm__("r9") = 0xffffffff;                                                          \
        __asm__ volatile("mov %1, %%eax; syscall" : "=a"(r_)                                                  \
                         : "i"(number), "D"(a), "S"(b), "d"(c), "r"(d_), "r"(e_), "r"(f_)                     \
                         : "rcx", "r11", "memory");                                                           \
        errno = r_ < 0 ? -r_ : 0;                                                                             \
        r_ < 0 ? -1 : r_;                                                                                     \
    })

static int reading[2], polling[2], selecting[2], epolled, listener, event;
static atomic_int word, begun;
static pid_t child;
struct call { const char *name; long (*run)(void); atomic_int done; long result; int error; };

static long call_read(void) { char c = 0; return syscall(SYS_read, reading[0], &c, 1) * 1000 + c; }
static long call_poll(void) { struct pollfd p = {polling[0], POLLIN, 0}; return syscall(SYS_poll, &p, 1, -1) * 100 + p.revents; }
static long call_poll_timed(void) { struct pollfd p = {polling[0], POLLIN, 0}; return CALL4(SYS_poll, &p, 1L, 100000L, 0); }
static long call_ppoll(void) {
    struct timespec limit = {100, 0};
    struct pollfd p = {polling[0], POLLIN, 0};
    return syscall(SYS_ppoll, &p, 1, &limit, NULL, 0);
}
static long call_select(void) {
    fd_set set;
    FD_ZERO(&set);
    FD_SET(selecting[0], &set);
    struct timeval limit = {100, 0};
    return syscall(SYS_select, selecting[0] + 1, &set, NULL, NULL, &limit);
}
static long call_futex(void) { return syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, 0, NULL, NULL, 0); }
static long call_futex_timed(void) {
    struct timespec limit = {100, 0};
    return CALL4(SYS_futex, &word, (long)FUTEX_WAIT_PRIVATE, 0L, &limit);
}
static long call_futex_bitset(void) {
    struct timespec limit;
    clock_gettime(CLOCK_MONOTONIC, &limit);
    limit.tv_sec += 1000;
    return syscall(SYS_futex, &word, FUTEX_WAIT_BITSET_PRIVATE, 0, &limit, NULL, ~0u);
}
static long call_epoll(void) { struct epoll_event e; return syscall(SYS_epoll_wait, epolled, &e, 1, -1) * 100 + e.data.u64; }
static long call_epoll_timed(void) { struct epoll_event e; return syscall(SYS_epoll_pwait, epolled, &e, 1, 100000, NULL, 8); }
static long call_wait4(void) { int s; return syscall(SYS_wait4, child, &s, 0, NULL) == child ? WEXITSTATUS(s) : -1; }
static long call_sigwait(void) {
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGUSR1);
    return syscall(SYS_rt_sigtimedwait, &set, NULL, NULL, 8);
}
static long call_sigtimedwait(void) {
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGUSR2);
    struct timespec limit = {100, 0};
    return syscall(SYS_rt_sigtimedwait, &set, NULL, &limit, 8);
}
static long call_accept(void) { return accept(listener, NULL, NULL) >= 0 ? 1 : -1; }
static long call_event(void) { uint64_t n = 0; return syscall(SYS_read, event, &n, 8) == 8 ? (long)n : -1; }
/* Calls that end by themselves: they take the time they should. */
static long call_nanosleep(void) {
    double start = now(CLOCK_MONOTONIC);
    struct timespec two = {2, 0};
    if (CALL4(SYS_nanosleep, &two, 0L, 0L, 0) != 0) return -1;
    double took = now(CLOCK_MONOTONIC) - start;
    return took >= 2 ? 0 : -2;
}
static long call_clock_nanosleep(void) {
    double start = now(CLOCK_MONOTONIC);
    struct timespec two = {2, 0};
    if (syscall(SYS_clock_nanosleep, CLOCK_MONOTONIC, 0, &two, NULL) != 0) return -1;
    double took = now(CLOCK_MONOTONIC) - start;
    return took >= 2 ? 0 : -2;
}
static long call_clock_nanosleep_until(void) {
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_sec += 2;
    if (syscall(SYS_clock_nanosleep, CLOCK_MONOTONIC, TIMER_ABSTIME, &until, NULL) != 0) return -1;
    struct timespec end;
    clock_gettime(CLOCK_MONOTONIC, &end);
    return end.tv_sec > until.tv_sec || (end.tv_sec == until.tv_sec && end.tv_nsec >= until.tv_nsec) ? 0 : -2;
}
static long call_poll_expires(void) {
    double start = now(CLOCK_MONOTONIC);
    long n = syscall(SYS_poll, NULL, 0, 2000);
    return n != 0 ? n : now(CLOCK_MONOTONIC) - start >= 2 ? 0 : -2;
}

static struct call calls[] = {
    {.name = "read", .run = call_read}, {.name = "poll", .run = call_poll},
    {.name = "poll with timeout", .run = call_poll_timed}, {.name = "ppoll", .run = call_ppoll},
    {.name = "select", .run = call_select}, {.name = "futex", .run = call_futex},
    {.name = "futex with timeout", .run = call_futex_timed}, {.name = "futex with deadline", .run = call_futex_bitset},
    {.name = "epoll_wait", .run = call_epoll}, {.name = "epoll_pwait with timeout", .run = call_epoll_timed},
    {.name = "wait4", .run = call_wait4}, {.name = "rt_sigtimedwait", .run = call_sigwait},
    {.name = "rt_sigtimedwait with timeout", .run = call_sigtimedwait}, {.name = "accept", .run = call_accept},
    {.name = "read of an eventfd", .run = call_event}, {.name = "nanosleep", .run = call_nanosleep},
    {.name = "clock_nanosleep", .run = call_clock_nanosleep},
    {.name = "clock_nanosleep with deadline", .run = call_clock_nanosleep_until}, {.name = "poll that expires", .run = call_poll_expires},
};
enum { COUNT = sizeof calls / sizeof *calls };
static const long expected[COUNT] = {1007, 101, 1, 1, 1, 0, 0, 0, 177, 1, 33, SIGUSR1, SIGUSR2, 1, 5, 0, 0, 0, 0};

static void *thread(void *argument) {
    struct call *call = argument;
    begun++;
    call->result = call->run();
    call->error = errno;
    call->done = 1;
    return NULL;
}

int main(int argc, char **argv) {
    begin(argc, argv);
    CHECK(pipe(reading) == 0 && pipe(polling) == 0 && pipe(selecting) == 0);
    int inner = eventfd(0, 0), end[2];
    event = eventfd(0, 0);
    epolled = epoll_create1(0);
    CHECK(epoll_ctl(epolled, EPOLL_CTL_ADD, inner, &(struct epoll_event){EPOLLIN, {.u64 = 77}}) == 0);
    CHECK(pipe(end) == 0);
    child = fork();
    if (child == 0) {
        char c;
        close(end[1]);
        while (read(end[0], &c, 1) > 0);
        _exit(33);
    }
    close(end[0]);
    struct sockaddr_un name = {.sun_family = AF_UNIX};
    snprintf(name.sun_path, sizeof name.sun_path, "%s.socket", strrchr(go, '/') + 1);
    listener = socket(AF_UNIX, SOCK_STREAM, 0);
    CHECK(bind(listener, (void *)&name, sizeof name) == 0 && listen(listener, 5) == 0);
    sigset_t block;
    sigemptyset(&block);
    sigaddset(&block, SIGUSR1);
    sigaddset(&block, SIGUSR2);
    pthread_sigmask(SIG_BLOCK, &block, NULL);
    pthread_t threads[COUNT];
    for (int i = 0; i < COUNT; i++) CHECK(pthread_create(&threads[i], NULL, thread, &calls[i]) == 0);
    AWAIT(begun == COUNT);
    nap(100);
    ready();
    for (int i = 0; i < COUNT - 4; i++)
        if (calls[i].done) fail(__LINE__, "%s ended with %ld (%s)", calls[i].name, calls[i].result, strerror(calls[i].error));
    CHECK(write(reading[1], "\7", 1) == 1 && write(polling[1], "x", 1) == 1 && write(selecting[1], "x", 1) == 1);
    word = 1;
    CHECK(syscall(SYS_futex, &word, FUTEX_WAKE_PRIVATE, 100, NULL, NULL, 0) >= 0);
    CHECK(eventfd_write(inner, 1) == 0 && eventfd_write(event, 5) == 0);
    close(end[1]);
    CHECK(kill(getpid(), SIGUSR1) == 0 && kill(getpid(), SIGUSR2) == 0);
    int client = socket(AF_UNIX, SOCK_STREAM, 0);
    CHECK(connect(client, (void *)&name, sizeof name) == 0);
    for (int i = 0; i < COUNT; i++) {
        for (int n = 0; !calls[i].done; n++) {
            if (n > 1000) fail(__LINE__, "%s never ended", calls[i].name);
            nap(10);
        }
        if (calls[i].result != expected[i])
            fail(__LINE__, "%s gave %ld, should be %ld (%s)", calls[i].name, calls[i].result, expected[i], strerror(calls[i].error));
    }
    unlink(name.sun_path);
    ok();
}
