/* Processes in time namespaces that the job has made: one alone, and one whose parent has made it for its children and
   is in the job's own. They say by how many seconds they are ahead of who asks; one waits for a moment by its clock. */
#include "victim.h"
#include <sys/timerfd.h>

#ifndef CLONE_NEWTIME
#define CLONE_NEWTIME 0x80
#endif

enum { FAR = 100000, NEAR = 5000 };

static long long at(clockid_t clock) {
    struct timespec read;
    CHECK(clock_gettime(clock, &read) == 0);
    return read.tv_sec * 1000000000LL + read.tv_nsec;
}

static void prepare(int seconds) {
    /* A user may where a user namespace is his own. */
    CHECK(unshare(CLONE_NEWTIME | (geteuid() == 0 ? 0 : CLONE_NEWUSER)) == 0);
    char text[99];
    int length = snprintf(text, sizeof text, "monotonic %d 0\nboottime %d 0\n", seconds, 2 * seconds);
    int file = open("/proc/self/timens_offsets", O_WRONLY);
    CHECK(file >= 0 && write(file, text, length) == length);
    close(file);
}

struct clocks {
    long long monotonic, boottime;
};

struct child {
    int ask[2], answer[2];
};

/* Answers with its clocks when it is asked. */
static struct child child(int enter) {
    struct child made;
    CHECK(pipe(made.ask) == 0 && pipe(made.answer) == 0);
    pid_t pid = fork();
    CHECK(pid >= 0);
    if (pid != 0) return made;
    close(made.ask[1]);
    if (enter) {
        prepare(enter);
        int own = open("/proc/self/ns/time_for_children", O_RDONLY);
        CHECK(own >= 0 && setns(own, CLONE_NEWTIME) == 0);
        close(own);
    }
    int timer = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK);
    struct itimerspec soon = {.it_value.tv_sec = at(CLOCK_MONOTONIC) / 1000000000LL + 1};
    CHECK(timer >= 0 && timerfd_settime(timer, TFD_TIMER_ABSTIME, &soon, NULL) == 0);
    char byte;
    while (read(made.ask[0], &byte, 1) == 1) {
        struct clocks clocks = {at(CLOCK_MONOTONIC), at(CLOCK_BOOTTIME)};
        CHECK(write(made.answer[1], &clocks, sizeof clocks) == sizeof clocks);
    }
    while (at(CLOCK_MONOTONIC) < soon.it_value.tv_sec * 1000000000LL) usleep(10000);
    unsigned long long ticks;
    struct pollfd wait = {timer, POLLIN, 0};
    CHECK(poll(&wait, 1, 10000) == 1 && read(timer, &ticks, sizeof ticks) == sizeof ticks);
    _exit(0);
}

static void require(struct child of, int seconds) {
    struct clocks before = {at(CLOCK_MONOTONIC), at(CLOCK_BOOTTIME)}, theirs;
    CHECK(write(of.ask[1], "x", 1) == 1 && read(of.answer[0], &theirs, sizeof theirs) == sizeof theirs);
    struct clocks after = {at(CLOCK_MONOTONIC), at(CLOCK_BOOTTIME)};
    long long ahead = seconds * 1000000000LL;
    CHECK(theirs.monotonic >= before.monotonic + ahead && theirs.monotonic <= after.monotonic + ahead);
    CHECK(theirs.boottime >= before.boottime + 2 * ahead && theirs.boottime <= after.boottime + 2 * ahead);
}

static void *idle(void *unused) {
    pause();
    return unused;
}

int main(int argc, char **argv) {
    begin(argc, argv);
    struct child alone = child(FAR);
    prepare(NEAR);
    struct child with = child(0);
    pthread_t thread;
    CHECK(pthread_create(&thread, NULL, idle, NULL) == 0);
    require(alone, FAR);
    require(with, NEAR);
    ready();
    require(alone, FAR);
    require(with, NEAR);
    struct child later = child(0);
    require(later, NEAR);
    close(alone.ask[1]);
    close(with.ask[1]);
    close(later.ask[1]);
    for (int i = 0; i < 3; i++) {
        int status;
        CHECK(wait(&status) > 0);
        SAME(status, 0);
    }
    ok();
}
