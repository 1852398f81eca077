/* A PID namespace that the job has made, with threads, sessions, orphans, a zombie, signals and timers that name numbers
 * of it, another namespace inside, a process that has come in from outside, and one that waits for its first process. */
#include "victim.h"

enum { NUMBERS = 8 };

/* What each process found out about itself, to be compared after the restart. */
struct self {
    pid_t pid, tid, parent, group, session;
};

static struct self self(void) {
    return (struct self){getpid(), (pid_t)syscall(SYS_gettid), getppid(), getpgrp(), getsid(0)};
}

static void same(struct self before) {
    struct self after = self();
    SAME(after.pid, before.pid);
    SAME(after.tid, before.tid);
    SAME(after.parent, before.parent);
    SAME(after.group, before.group);
    SAME(after.session, before.session);
}

static int there, go_on;

static void wait_for_word(void) {
    char byte = 'x';
    CHECK(write(there, &byte, 1) == 1 && read(go_on, &byte, 1) == 1);
}

static pid_t in_new_namespace(void) {
    pid_t pid = syscall(SYS_clone, CLONE_NEWPID | SIGCHLD, 0, 0, 0, 0);
    CHECK(pid >= 0);
    return pid;
}

static void finish(pid_t pid) {
    int status;
    CHECK(waitpid(pid, &status, 0) == pid);
    SAME(status, 0);
}

static void plain_child(void) {
    struct self before = self();
    wait_for_word();
    same(before);
    _exit(0);
}

static void *worker(void *tid) {
    *(pid_t *)tid = syscall(SYS_gettid);
    struct self before = self();
    wait_for_word();
    same(before);
    return NULL;
}

/* The first process of a namespace within the namespace; its group is led from outside of it. */
static void innermost(void) {
    SAME(getpid(), 1);
    SAME(getppid(), 0);
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) plain_child();
    SAME(child, 2);
    wait_for_word();
    SAME(getpid(), 1);
    SAME(kill(2, 0), 0);
    finish(child);
    _exit(0);
}

static void first(void) {
    SAME(getpid(), 1);
    struct self before = self();
    SAME(before.parent, 0);
    SAME(before.session, 0);
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGRTMIN);
    sigaddset(&set, SIGRTMIN + 1);
    CHECK(sigprocmask(SIG_BLOCK, &set, NULL) == 0);
    pid_t tid = 0;
    pthread_t thread;
    CHECK(pthread_create(&thread, NULL, worker, &tid) == 0);
    AWAIT(tid != 0);
    /* In a group of its own, with a member. */
    pid_t leader = fork();
    CHECK(leader >= 0);
    if (leader == 0) {
        CHECK(setpgid(0, 0) == 0);
        pid_t member = fork();
        CHECK(member >= 0);
        if (member == 0) plain_child();
        struct self mine = self();
        wait_for_word();
        same(mine);
        SAME(getpgid(member), getpid());
        finish(member);
        _exit(0);
    }
    /* A daemon: its session's leader ends at once. */
    pid_t passing = fork();
    CHECK(passing >= 0);
    if (passing == 0) {
        CHECK(setsid() == getpid());
        pid_t daemon = fork();
        CHECK(daemon >= 0);
        if (daemon == 0) {
            AWAIT(getppid() == 1);
            plain_child();
        }
        _exit(0);
    }
    finish(passing);
    pid_t zombie = fork();
    CHECK(zombie >= 0);
    if (zombie == 0) _exit(7);
    siginfo_t ended;
    CHECK(waitid(P_PID, zombie, &ended, WEXITED | WNOWAIT) == 0);
    pid_t inner = in_new_namespace();
    if (inner == 0) innermost();
    /* A signal that says who sent it, one for a thread, and the owner of a pipe. */
    CHECK(sigqueue(1, SIGRTMIN, (union sigval){.sival_int = 77}) == 0);
    struct sigevent event = {.sigev_notify = SIGEV_THREAD_ID, .sigev_signo = SIGRTMIN + 1};
    event._sigev_un._tid = getpid();
    timer_t timer;
    CHECK(timer_create(CLOCK_MONOTONIC, &event, &timer) == 0);
    int owned[2];
    CHECK(pipe(owned) == 0 && fcntl(owned[0], F_SETOWN, leader) == 0);
    /* It could have children of its own in another one. */
    pid_t ready_for_one = fork();
    CHECK(ready_for_one >= 0);
    if (ready_for_one == 0) {
        CHECK(unshare(CLONE_NEWPID) == 0);
        wait_for_word();
        pid_t child = fork();
        CHECK(child >= 0);
        if (child == 0) {
            SAME(getpid(), 1);
            _exit(0);
        }
        finish(child);
        _exit(0);
    }
    wait_for_word();
    same(before);
    siginfo_t info;
    CHECK(sigwaitinfo(&set, &info) == SIGRTMIN);
    SAME(info.si_pid, 1);
    SAME(info.si_value.sival_int, 77);
    struct itimerspec soon = {.it_value = {.tv_nsec = 1000000}};
    CHECK(timer_settime(timer, 0, &soon, NULL) == 0);
    CHECK(sigwaitinfo(&set, &info) == SIGRTMIN + 1);
    SAME(fcntl(owned[0], F_GETOWN), leader);
    int status;
    CHECK(waitpid(zombie, &status, 0) == zombie);
    SAME(status, 7 << 8);
    CHECK(pthread_join(thread, NULL) == 0);
    finish(leader);
    finish(inner);
    finish(ready_for_one);
    /* The daemon. */
    CHECK(wait(&status) > 0);
    SAME(status, 0);
    _exit(0);
}

int main(int argc, char **argv) {
    begin(argc, argv);
    /* Groups and sessions that are led by somebody who has no number inside. */
    CHECK(setpgid(0, 0) == 0);
    int arrived[2], onward[2];
    CHECK(pipe(arrived) == 0 && pipe(onward) == 0);
    there = arrived[1];
    go_on = onward[0];
    pid_t child = in_new_namespace();
    if (child == 0) first();
    /* One that comes in from outside. */
    int process = syscall(SYS_pidfd_open, child, 0);
    CHECK(process >= 0 && setns(process, CLONE_NEWPID) == 0);
    pid_t guest = fork();
    CHECK(guest >= 0);
    if (guest == 0) {
        SAME(getppid(), 0);
        CHECK(getpid() > 1);
        plain_child();
    }
    char bytes[16];
    int wanted = 9;
    for (int got = 0; got < wanted;) {
        int more = read(arrived[0], bytes, sizeof bytes);
        CHECK(more > 0);
        got += more;
    }
    ready();
    /* Children go on being born inside. */
    pid_t another = fork();
    CHECK(another >= 0);
    if (another == 0) {
        SAME(getppid(), 0);
        _exit(0);
    }
    finish(another);
    CHECK(write(onward[1], "xxxxxxxxx", wanted) == wanted);
    finish(guest);
    finish(child);
    ok();
}
