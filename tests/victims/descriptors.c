/* Event, timer and signal descriptors, epoll sets, memfds. */
#include "victim.h"

int main(int argc, char **argv) {
    begin(argc, argv);
    int count = eventfd(41, EFD_NONBLOCK), semaphore = eventfd(3, EFD_SEMAPHORE | EFD_CLOEXEC);
    int fast = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK), slow = timerfd_create(CLOCK_REALTIME, 0), unarmed = timerfd_create(CLOCK_BOOTTIME, TFD_NONBLOCK);
    struct itimerspec time = {{0, 50000000}, {0, 50000000}};
    CHECK(timerfd_settime(fast, 0, &time, NULL) == 0);
    time = (struct itimerspec){{7, 0}, {2000, 0}};
    CHECK(timerfd_settime(slow, 0, &time, NULL) == 0);
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGUSR1);
    sigaddset(&set, SIGRTMIN);
    sigprocmask(SIG_BLOCK, &set, NULL);
    int signals = signalfd(-1, &set, SFD_NONBLOCK);
    CHECK(kill(getpid(), SIGUSR1) == 0);
    int pair[2], quiet[2];
    CHECK(pipe(pair) == 0 && pipe(quiet) == 0);
    int outer = epoll_create1(EPOLL_CLOEXEC), inner = epoll_create1(0);
    struct epoll_event event = {EPOLLIN, {.u64 = 0x1234567890abcdef}};
    CHECK(epoll_ctl(inner, EPOLL_CTL_ADD, pair[0], &event) == 0);
    event = (struct epoll_event){EPOLLIN | EPOLLET, {.u64 = 2}};
    CHECK(epoll_ctl(outer, EPOLL_CTL_ADD, inner, &event) == 0);
    event = (struct epoll_event){EPOLLIN | EPOLLONESHOT, {.u64 = 3}};
    CHECK(epoll_ctl(outer, EPOLL_CTL_ADD, quiet[0], &event) == 0);
    /* A copy that exec(2) does not close, of what it would. */
    int copy = dup(semaphore);
    CHECK(copy >= 0);
    int sealed = memfd_create("sealed", MFD_ALLOW_SEALING | MFD_CLOEXEC);
    CHECK(ftruncate(sealed, 8192) == 0 && pwrite(sealed, "contents", 8, 5000) == 8);
    CHECK(fcntl(sealed, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW) == 0);
    SAME(lseek(sealed, 77, SEEK_SET), 77);
    atomic_int *page = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_SHARED, sealed, 0);
    CHECK(page != MAP_FAILED);
    pid_t child = fork();
    if (child == 0) {
        /* Exchanges values through a mapping and the eventfd. */
        AWAIT(page[0] == 1);
        page[1] = 2;
        CHECK(eventfd_write(count, 100) == 0);
        _exit(0);
    }
    ready();
    uint64_t value;
    SAME(read(count, &value, 8), 8);
    SAME(value, 41);
    for (int i = 0; i < 3; i++) {
        CHECK(read(semaphore, &value, 8) == 8);
        SAME(value, 1);
    }
    SAME(fcntl(semaphore, F_GETFD), FD_CLOEXEC);
    SAME(fcntl(copy, F_GETFD), 0);
    CHECK(fcntl(count, F_GETFL) & O_NONBLOCK);
    AWAIT(read(fast, &value, 8) == 8);
    CHECK(value >= 1);
    CHECK(timerfd_gettime(fast, &time) == 0 && time.it_interval.tv_nsec == 50000000);
    CHECK(timerfd_gettime(slow, &time) == 0);
    SAME(time.it_interval.tv_sec, 7);
    CHECK(time.it_value.tv_sec <= 2000 && time.it_value.tv_sec > 1800);
    CHECK(timerfd_gettime(unarmed, &time) == 0 && time.it_value.tv_sec == 0 && time.it_value.tv_nsec == 0);
    struct signalfd_siginfo info;
    SAME(read(signals, &info, sizeof info), sizeof info);
    SAME(info.ssi_signo, SIGUSR1);
    SAME(info.ssi_pid, getpid());
    CHECK(read(signals, &info, sizeof info) == -1 && errno == EAGAIN);
    CHECK(sigqueue(getpid(), SIGRTMIN, (union sigval){.sival_int = 9}) == 0);
    CHECK(read(signals, &info, sizeof info) == sizeof info && info.ssi_int == 9);
    struct epoll_event got[4];
    SAME(epoll_wait(outer, got, 4, 0), 0);
    CHECK(write(pair[1], "x", 1) == 1 && write(quiet[1], "x", 1) == 1);
    SAME(epoll_wait(outer, got, 4, 1000), 2);
    SAME(got[0].data.u64 + got[1].data.u64, 5);
    SAME(epoll_wait(inner, got, 4, 0), 1);
    SAME(got[0].data.u64, 0x1234567890abcdef);
    SAME(epoll_wait(outer, got, 4, 0), 0);
    SAME(fcntl(sealed, F_GET_SEALS), F_SEAL_SHRINK | F_SEAL_GROW);
    CHECK(ftruncate(sealed, 4096) == -1 && errno == EPERM);
    SAME(lseek(sealed, 0, SEEK_CUR), 77);
    char text[16] = "";
    CHECK(pread(sealed, text, 8, 5000) == 8 && strcmp(text, "contents") == 0);
    page[0] = 1;
    AWAIT(page[1] == 2);
    CHECK(pread(sealed, &value, 8, 0) == 8);
    SAME(value, 0x200000001);
    int status;
    SAME(waitpid(child, &status, 0), child);
    SAME(status, 0);
    SAME(read(count, &value, 8), 8);
    SAME(value, 100);
    ok();
}
