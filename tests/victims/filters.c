/* System call filters: of the whole process, of a thread of its own, and the strict mode. */
#include "victim.h"
#include <linux/filter.h>
#include <linux/seccomp.h>

/* All calls but this one, which fails with this error. */
static void deny(int call, int error, int flags) {
    struct sock_filter program[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, call, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | error),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog filter = {sizeof program / sizeof *program, program};
    CHECK(syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, flags, &filter) == 0);
}

/* Calls that a checkpoint makes in the process, and this program does not, are deadly. */
static void only_ours(void) {
    static const int deadly[] = {SYS_mmap, SYS_rt_sigaction, SYS_getitimer, SYS_prctl, SYS_personality, SYS_sigaltstack,
                                 SYS_get_robust_list, SYS_sched_getattr, SYS_ioprio_get, SYS_userfaultfd, SYS_setitimer};
    enum { COUNT = sizeof deadly / sizeof *deadly };
    struct sock_filter program[COUNT + 3] = {BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr))};
    for (int i = 0; i < COUNT; i++)
        program[i + 1] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, deadly[i], COUNT - i, 0);
    program[COUNT + 1] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
    program[COUNT + 2] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS);
    struct sock_fprog filter = {COUNT + 3, program};
    CHECK(syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &filter) == 0);
}

static int filters(void) {
    char status[8192];
    slurp("/proc/thread-self/status", status, sizeof status);
    return atoi(strstr(status, "Seccomp_filters:") + 16);
}

static atomic_int set, check, synchronised;

/* All threads of this process have the same filters, so that one of them can give all of them another. */
static void *follower(void *unused) {
    while (!synchronised) nap(10);
    CHECK(syscall(SYS_getppid) == -1 && errno == ENOTTY);
    return unused;
}

static void together(volatile int *state) {
    deny(SYS_getuid, EDOM, 0);
    pthread_t threads[3];
    for (int i = 0; i < 3; i++) CHECK(pthread_create(&threads[i], NULL, follower, NULL) == 0);
    state[2] = 1;
    while (!state[3]) nap(10);
    deny(SYS_getppid, ENOTTY, SECCOMP_FILTER_FLAG_TSYNC);
    synchronised = 1;
    for (int i = 0; i < 3; i++) CHECK(pthread_join(threads[i], NULL) == 0);
    exit(0);
}

static void *thread(void *unused) {
    deny(SYS_getuid, EDOM, 0);
    SAME(filters(), 2);
    set = 1;
    while (!check) nap(10);
    SAME(filters(), 2);
    CHECK(syscall(SYS_getuid) == -1 && errno == EDOM);
    CHECK(syscall(SYS_getppid) == -1 && errno == EUCLEAN);
    return unused;
}

int main(int argc, char **argv) {
    begin(argc, argv);
    CHECK(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0);
    volatile int *strict = shared(4096);
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        CHECK(prctl(PR_SET_SECCOMP, SECCOMP_MODE_STRICT) == 0);
        strict[0] = 1;
        while (!strict[1]) continue;
        syscall(SYS_exit, 0);
    }
    AWAIT(strict[0]);
    pid_t group = fork();
    CHECK(group >= 0);
    if (group == 0) together(strict);
    AWAIT(strict[2]);
    deny(SYS_getppid, EUCLEAN, SECCOMP_FILTER_FLAG_LOG);
    pthread_t other;
    CHECK(pthread_create(&other, NULL, thread, NULL) == 0);
    AWAIT(set);
    SAME(filters(), 1);
    /* Of two that deny the same call, the later one gives the error. */
    deny(SYS_socket, ENODATA, 0);
    deny(SYS_socket, ENOTTY, 0);
    only_ours();
    ready();
    SAME(filters(), 4);
    CHECK(syscall(SYS_getppid) == -1 && errno == EUCLEAN);
    CHECK(syscall(SYS_socket, AF_UNIX, SOCK_STREAM, 0) == -1 && errno == ENOTTY);
    CHECK(syscall(SYS_getuid) >= 0);
    check = 1;
    CHECK(pthread_join(other, NULL) == 0);
    strict[1] = 1;
    int status;
    CHECK(waitpid(child, &status, 0) == child);
    SAME(status, 0);
    strict[3] = 1;
    CHECK(waitpid(group, &status, 0) == group);
    SAME(status, 0);
    ok();
}
