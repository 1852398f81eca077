/* Holds one object that cannot be checkpointed, says which process holds it, and goes on counting in the shared file
   "beat": one number for each process and thread. */
#include "victim.h"
#include <linux/bpf.h>
#include <linux/io_uring.h>
#include <linux/keyctl.h>
#include <linux/landlock.h>
#include <linux/perf_event.h>
#include <linux/seccomp.h>
#include <netinet/in.h>
#include <sys/fanotify.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/ptrace.h>

enum { KEPT = 7 };
static volatile uint64_t *beats;

/* What the kernel does not offer to this user, or at all, is no failure of the test. */
__attribute__((noreturn)) static void skip(const char *what) {
    dprintf(1, "SKIP %s: %s\n", what, strerror(errno));
    _exit(0);
}

#define NEED(condition) ((condition) ? (void)0 : skip(#condition))

__attribute__((noreturn)) static void beat(int slot) {
    for (;;) {
        beats[slot]++;
        nap(2);
    }
}

/* Without any system call. */
__attribute__((noreturn)) static void beat_only(int slot) {
    for (;;) {
        beats[slot]++;
        for (volatile int i = 0; i < 1000000; i++) continue;
    }
}

__attribute__((noreturn)) static void hold(pid_t holder) {
    dprintf(1, "READY %d\n", (int)holder);
    beat(0);
}

static char stack[2][64 << 10] __attribute__((aligned(64)));

/* Namespaces that the child makes. */
static int later;
/* A directory that it mounts something at. */
static const char *mounted;
/* It has something mounted over it. */
static int covered;

static int other_process(void *unused) {
    (void)unused;
    NEED(later == 0 || unshare(later) == 0);
    if (later & CLONE_NEWTIME) {
        /* Into that one, and another one for children. */
        int made = open("/proc/self/ns/time_for_children", O_RDONLY | O_CLOEXEC);
        NEED(made >= 0 && setns(made, CLONE_NEWTIME) == 0 && unshare(CLONE_NEWTIME) == 0);
        close(made);
    }
    NEED(mounted == NULL || mount("none", mounted, covered ? "tmpfs" : "ramfs", 0, NULL) == 0);
    NEED(!covered || mount("none", mounted, "tmpfs", 0, NULL) == 0);
    beat(1);
}

/* A child that counts, made with these flags. */
static pid_t child(int flags) {
    pid_t pid = clone(other_process, stack[0] + sizeof stack[0], flags | SIGCHLD, NULL);
    NEED(pid > 0);
    AWAIT(beats[1] > 0);
    return pid;
}

static void *slot_two(void *unused) {
    beat(2);
    return unused;
}

static long add_key(int keyring) {
    return syscall(SYS_add_key, "user", "secret", "x", 1, keyring);
}

static void *with_key(void *unused) {
    NEED(add_key(KEY_SPEC_THREAD_KEYRING) > 0);
    beat(2);
    return unused;
}

static void *apart(void *unused) {
    NEED(unshare(CLONE_NEWUTS) == 0);
    beat(2);
    return unused;
}

int main(int argc, char **argv) {
    CHECK(argc > 1);
    mode = argv[1];
    const char *argument = argc > 2 ? argv[2] : "";
    close_range(3, ~0u, 0);
    int file = open("beat", O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    CHECK(file >= 0 && ftruncate(file, 64) == 0);
    beats = mmap(NULL, 64, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    CHECK(beats != MAP_FAILED);
    beats[0] = 1;
#define IS(name) (strcmp(mode, name) == 0)
    if (IS("kept")) {
        /* What standard input was is not a standard stream any more. */
        CHECK(dup2(0, KEPT) == KEPT && dup2(open("/dev/null", O_RDONLY), 0) == 0);
    } else if (IS("open")) {
        NEED(open(argument, O_RDONLY | O_NONBLOCK) >= 0);
    } else if (IS("io_uring")) {
        /* A request that waits until something can be read. */
        struct io_uring_params p = {0};
        int ring = syscall(SYS_io_uring_setup, 4, &p), ends[2];
        NEED(ring >= 0);
        char *rings = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, ring, IORING_OFF_SQ_RING);
        struct io_uring_sqe *entry = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, ring, IORING_OFF_SQES);
        CHECK(rings != MAP_FAILED && entry != MAP_FAILED && pipe(ends) == 0);
        entry->opcode = IORING_OP_POLL_ADD, entry->fd = ends[0], entry->poll32_events = POLLIN;
        *(unsigned *)(rings + p.sq_off.tail) = 1;
        CHECK(syscall(SYS_io_uring_enter, ring, 1, 0, 0, NULL, 0) == 1);
    } else if (IS("io_uring_disabled")) {
        struct io_uring_params parameters = {.flags = IORING_SETUP_R_DISABLED};
        NEED(syscall(SYS_io_uring_setup, 4, &parameters) >= 0);
    } else if (IS("io_uring_map")) {
        struct io_uring_params parameters = {0};
        int ring = syscall(SYS_io_uring_setup, 4, &parameters);
        NEED(ring >= 0);
        NEED(mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, ring, IORING_OFF_SQ_RING) != MAP_FAILED);
        close(ring);
    } else if (IS("perf")) {
        struct perf_event_attr what = {.type = PERF_TYPE_SOFTWARE, .size = sizeof what, .config = PERF_COUNT_SW_TASK_CLOCK,
                                       .exclude_kernel = 1};
        NEED(syscall(SYS_perf_event_open, &what, 0, -1, -1, 0) >= 0);
    } else if (IS("key")) {
        NEED(add_key(KEY_SPEC_PROCESS_KEYRING) > 0);
    } else if (IS("thread_key")) {
        pthread_t thread;
        CHECK(pthread_create(&thread, NULL, with_key, NULL) == 0);
        AWAIT(beats[2] > 0);
    } else if (IS("directory_notices")) {
        CHECK(mkdir("watched", 0700) == 0);
        int directory = open("watched", O_RDONLY | O_DIRECTORY);
        NEED(directory >= 0 && fcntl(directory, F_NOTIFY, DN_CREATE | DN_MULTISHOT) == 0);
    } else if (IS("landlock")) {
        /* Two processes, of which the second is confined. */
        pid_t confined = fork();
        CHECK(confined >= 0);
        if (confined == 0) {
            struct landlock_ruleset_attr what = {.handled_access_fs = LANDLOCK_ACCESS_FS_MAKE_SYM};
            int rules = syscall(SYS_landlock_create_ruleset, &what, sizeof what, 0);
            NEED(rules >= 0 && prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0);
            NEED(syscall(SYS_landlock_restrict_self, rules, 0) == 0 && close(rules) == 0);
            beat(1);
        }
        AWAIT(beats[1] > 0 || waitpid(confined, NULL, WNOHANG) == confined);
        if (beats[1] == 0) _exit(0);
        hold(confined);
    } else if (IS("pressure")) {
        int pressure = open("/proc/pressure/memory", O_RDWR | O_NONBLOCK);
        NEED(pressure >= 0 && write(pressure, "some 150000 2000000", 20) == 20);
    } else if (IS("corked")) {
        int corked = socket(AF_INET, SOCK_DGRAM, 0);
        struct sockaddr_in here = {.sin_family = AF_INET, .sin_port = htons(9), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
        CHECK(corked >= 0 && sendto(corked, "part", 4, MSG_MORE, (struct sockaddr *)&here, sizeof here) == 4);
    } else if (IS("multipath")) {
        int listener = socket(AF_INET, SOCK_STREAM, IPPROTO_MPTCP);
        int client = socket(AF_INET, SOCK_STREAM, IPPROTO_MPTCP);
        struct sockaddr_in here = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
        socklen_t length = sizeof here;
        NEED(listener >= 0 && client >= 0);
        CHECK(bind(listener, (struct sockaddr *)&here, length) == 0 && listen(listener, 1) == 0);
        CHECK(getsockname(listener, (struct sockaddr *)&here, &length) == 0);
        CHECK(connect(client, (struct sockaddr *)&here, length) == 0 && accept(listener, NULL, NULL) >= 0);
    } else if (IS("bpf")) {
        union bpf_attr what = {.map_type = BPF_MAP_TYPE_ARRAY, .key_size = 4, .value_size = 4, .max_entries = 1};
        NEED(syscall(SYS_bpf, BPF_MAP_CREATE, &what, sizeof what) >= 0);
    } else if (IS("fanotify")) {
        int group = fanotify_init(FAN_CLASS_CONTENT, O_RDONLY), file = open("asked", O_RDWR | O_CREAT, 0600);
        NEED(group >= 0 && file >= 0 && fanotify_mark(group, FAN_MARK_ADD, FAN_OPEN_PERM, AT_FDCWD, "asked") == 0);
    } else if (IS("mount")) {
        NEED(mkdir("mounted", 0700) == 0 && mount("none", "mounted", "ramfs", 0, NULL) == 0);
    } else if (IS("pidfd")) {
        NEED(syscall(SYS_pidfd_open, 1, 0) >= 0);
    } else if (IS("thread_pidfd")) {
        pthread_t thread;
        CHECK(pthread_create(&thread, NULL, slot_two, NULL) == 0);
        AWAIT(beats[2] > 0);
        DIR *tasks = opendir("/proc/self/task");
        CHECK(tasks != NULL);
        for (struct dirent *entry; (entry = readdir(tasks));)
            if (atoi(entry->d_name) > getpid()) NEED(syscall(SYS_pidfd_open, atoi(entry->d_name), O_EXCL) >= 0);
        closedir(tasks);
    } else if (IS("namespace_file")) {
        /* Of a process that is in it alone, and ends. */
        int made[2];
        char space[64], byte;
        CHECK(pipe(made) == 0);
        pid_t inside = fork();
        if (inside == 0) {
            if (syscall(SYS_unshare, CLONE_NEWUSER | CLONE_NEWNET) == 0 && write(made[1], "x", 1) == 1) pause();
            _exit(0);
        }
        close(made[1]);
        NEED(read(made[0], &byte, 1) == 1);
        snprintf(space, sizeof space, "/proc/%d/ns/net", (int)inside);
        NEED(open(space, O_RDONLY) >= 0);
        CHECK(close(made[0]) == 0 && kill(inside, SIGKILL) == 0 && waitpid(inside, NULL, 0) == inside);
    } else if (IS("path")) {
        int ends[2];
        char name[32];
        CHECK(pipe(ends) == 0);
        snprintf(name, sizeof name, "/proc/self/fd/%d", ends[0]);
        CHECK(open(name, O_PATH) >= 0);
    } else if (IS("clone_vm")) {
        hold(child(CLONE_VM));
    } else if (IS("clone_fs")) {
        hold(child(CLONE_FS));
    } else if (IS("mounted_namespace") || IS("covered")) {
        mounted = "mounted";
        covered = IS("covered");
        NEED(mkdir(mounted, 0700) == 0);
        /* A user who has no rights gets them in a user namespace. */
        hold(child(CLONE_NEWNS | (geteuid() == 0 ? 0 : CLONE_NEWUSER)));
    } else if (IS("later_namespace")) {
        /* Only children will be in it. */
        later = atoi(argument) | (geteuid() == 0 ? 0 : CLONE_NEWUSER);
        hold(child(0));
    } else if (IS("traced")) {
        pid_t traced = fork();
        CHECK(traced >= 0);
        if (traced == 0) beat(1);
        CHECK(ptrace(PTRACE_SEIZE, traced, 0, 0) == 0);
        AWAIT(beats[1] > 0);
        hold(traced);
    } else if (IS("seccomp")) {
        dprintf(1, "READY %d\n", (int)getpid());
        CHECK(prctl(PR_SET_SECCOMP, SECCOMP_MODE_STRICT) == 0);
        beat_only(0);
    } else if (IS("thread_namespace")) {
        pthread_t thread;
        CHECK(pthread_create(&thread, NULL, apart, NULL) == 0);
        AWAIT(beats[2] > 0);
    } else if (IS("exec")) {
        /* The program gets the file, and no shared memory. */
        NEED(dup3(file, KEPT, 0) == KEPT);
        dprintf(1, "READY %d\n", (int)getpid());
        execl(argument, argument, (char *)NULL);
        fail(__LINE__, "execute %s", argument);
    } else {
        fail(__LINE__, "no such mode");
    }
    hold(getpid());
}
