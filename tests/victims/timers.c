/* Interval timers and POSIX timers with their IDs. */
#include "victim.h"

static volatile sig_atomic_t alarms, posix, value;
static void on_alarm(int signal) { (void)signal; alarms++; }
static void on_posix(int signal, siginfo_t *info, void *context) {
    (void)signal, (void)context;
    posix++;
    value = info->si_value.sival_int;
    SAME(info->si_code, SI_TIMER);
}

static int make(clockid_t clock, int notify, int signal, int given) {
    struct sigevent event = {.sigev_notify = notify, .sigev_signo = signal, .sigev_value.sival_int = given};
    int id = -1;
    CHECK(syscall(SYS_timer_create, clock, &event, &id) == 0);
    return id;
}
static void set(int id, double first, double every) {
    struct itimerspec time = {{(time_t)every, (every - (time_t)every) * 1e9}, {(time_t)first, (first - (time_t)first) * 1e9}};
    CHECK(syscall(SYS_timer_settime, id, 0, &time, NULL) == 0);
}
static double left(int id, double *every) {
    struct itimerspec time;
    CHECK(syscall(SYS_timer_gettime, id, &time) == 0);
    *every = time.it_interval.tv_sec + time.it_interval.tv_nsec / 1e9;
    return time.it_value.tv_sec + time.it_value.tv_nsec / 1e9;
}

int main(int argc, char **argv) {
    begin(argc, argv);
    sigset_t block;
    sigemptyset(&block);
    sigaddset(&block, SIGALRM);
    sigaddset(&block, SIGRTMIN + 3);
    struct sigaction action = {.sa_handler = on_alarm, .sa_flags = SA_RESTART};
    sigaction(SIGALRM, &action, NULL);
    action = (struct sigaction){.sa_sigaction = on_posix, .sa_flags = SA_RESTART | SA_SIGINFO};
    sigaction(SIGRTMIN + 3, &action, NULL);
    /* Naps must not be disturbed while waiting. */
    pthread_sigmask(SIG_BLOCK, &block, NULL);
    struct itimerval real = {{0, 200000}, {0, 200000}}, virtual = {{20, 0}, {1000, 0}}, prof = {{0, 0}, {2000, 0}};
    CHECK(setitimer(ITIMER_REAL, &real, NULL) == 0);
    CHECK(setitimer(ITIMER_VIRTUAL, &virtual, NULL) == 0);
    CHECK(setitimer(ITIMER_PROF, &prof, NULL) == 0);
    int none = make(CLOCK_MONOTONIC, SIGEV_NONE, 0, 0), removed = make(CLOCK_REALTIME, SIGEV_NONE, 0, 0);
    int fast = make(CLOCK_MONOTONIC, SIGEV_SIGNAL, SIGRTMIN + 3, 4711), slow = make(CLOCK_REALTIME, SIGEV_SIGNAL, SIGUSR1, 0);
    int disarmed = make(CLOCK_BOOTTIME, SIGEV_NONE, 0, 0), cpu = make(CLOCK_PROCESS_CPUTIME_ID, SIGEV_NONE, 0, 0);
    CHECK(syscall(SYS_timer_delete, removed) == 0);
    set(none, 1000, 50);
    set(fast, 0.1, 0.1);
    set(slow, 3000, 0);
    set(cpu, 5000, 0);
    double start = now(CLOCK_MONOTONIC);
    ready();
    double every, rest, gone = now(CLOCK_MONOTONIC) - start;
    if (gone < 0) fail(__LINE__, "the clock went back by %f", gone);
    rest = left(none, &every);
    if (rest > 1000 || rest < 999 - gone) fail(__LINE__, "%f s left after %f s", rest, gone);
    SAME(every, 50);
    rest = left(slow, &every);
    if (rest > 3000 || rest < 2999 - gone) fail(__LINE__, "%f s left after %f s", rest, gone);
    SAME(every, 0);
    SAME(left(disarmed, &every), 0);
    rest = left(cpu, &every);
    if (rest > 5000 || rest < 4990) fail(__LINE__, "%f s of processor time left", rest);
    CHECK(syscall(SYS_timer_settime, removed, 0, &(struct itimerspec){0}, NULL) == -1 && errno == EINVAL);
    struct itimerval value_;
    CHECK(getitimer(ITIMER_VIRTUAL, &value_) == 0);
    CHECK(value_.it_value.tv_sec <= 1000 && value_.it_value.tv_sec > 990);
    SAME(value_.it_interval.tv_sec, 20);
    CHECK(getitimer(ITIMER_PROF, &value_) == 0);
    CHECK(value_.it_value.tv_sec <= 2000 && value_.it_value.tv_sec > 1990);
    CHECK(getitimer(ITIMER_REAL, &value_) == 0);
    SAME(value_.it_interval.tv_usec, 200000);
    pthread_sigmask(SIG_UNBLOCK, &block, NULL);
    /* What was pending, and what comes from now on. */
    for (double until = now(CLOCK_MONOTONIC) + 20; (alarms < 4 || posix < 6) && now(CLOCK_MONOTONIC) < until;)
        syscall(SYS_nanosleep, &(struct timespec){0, 10000000}, NULL);
    CHECK(alarms >= 4);
    CHECK(posix >= 6);
    SAME(value, 4711);
    ok();
}
