/* User namespaces that the job has made, one within the other: users, groups and capabilities in them, namespaces of other
 * kinds that belong to them, and programs with threads. As root with several users, else with one. */
#include "victim.h"

#include <grp.h>
#include <linux/capability.h>
#include <sys/ipc.h>
#include <sys/shm.h>

enum { GROUPS = 8 };

/* What each process finds out about itself, to be compared after the restart. */
struct self {
    pid_t pid, parent;
    uid_t users[3];
    gid_t groups[3], others[GROUPS];
    int number;
    struct __user_cap_data_struct capabilities[2];
    int bounding, denied;
    char users_there[256], groups_there[256], host[65];
};

static struct self self(void) {
    struct self s = {.pid = getpid(), .parent = getppid()};
    CHECK(getresuid(&s.users[0], &s.users[1], &s.users[2]) == 0);
    CHECK(getresgid(&s.groups[0], &s.groups[1], &s.groups[2]) == 0);
    CHECK((s.number = getgroups(GROUPS, s.others)) >= 0);
    struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
    CHECK(syscall(SYS_capget, &header, s.capabilities) == 0);
    s.bounding = prctl(PR_CAPBSET_READ, CAP_SYS_TIME);
    char text[32];
    slurp("/proc/self/setgroups", text, sizeof text);
    s.denied = text[0] == 'd';
    slurp("/proc/self/uid_map", s.users_there, sizeof s.users_there);
    slurp("/proc/self/gid_map", s.groups_there, sizeof s.groups_there);
    CHECK(gethostname(s.host, sizeof s.host) == 0);
    return s;
}

static void same(struct self before) {
    struct self after = self();
    SAME(after.pid, before.pid);
    SAME(after.parent, before.parent);
    for (int i = 0; i < 3; i++) {
        SAME(after.users[i], before.users[i]);
        SAME(after.groups[i], before.groups[i]);
    }
    SAME(after.number, before.number);
    for (int i = 0; i < after.number; i++) SAME(after.others[i], before.others[i]);
    for (int i = 0; i < 2; i++) {
        SAME(after.capabilities[i].effective, before.capabilities[i].effective);
        SAME(after.capabilities[i].permitted, before.capabilities[i].permitted);
        SAME(after.capabilities[i].inheritable, before.capabilities[i].inheritable);
    }
    SAME(after.bounding, before.bounding);
    SAME(after.denied, before.denied);
    if (strcmp(after.users_there, before.users_there) != 0) fail(__LINE__, "users: %s", after.users_there);
    if (strcmp(after.groups_there, before.groups_there) != 0) fail(__LINE__, "groups: %s", after.groups_there);
    if (strcmp(after.host, before.host) != 0) fail(__LINE__, "host: %s", after.host);
}

static int there, go_on;

static void wait_for_word(void) {
    char byte = 'x';
    CHECK(write(there, &byte, 1) == 1 && read(go_on, &byte, 1) == 1);
}

static void put(pid_t pid, const char *name, const char *text) {
    char path[64];
    /* /proc is that of the job's own PID namespace. */
    if (pid == 0) snprintf(path, sizeof path, "/proc/self/%s", name);
    else snprintf(path, sizeof path, "/proc/%d/%s", (int)pid, name);
    int fd = open(path, O_WRONLY);
    CHECK(fd >= 0);
    CHECK(write(fd, text, strlen(text)) == (ssize_t)strlen(text));
    close(fd);
}

static void finish(pid_t pid) {
    int status;
    CHECK(waitpid(pid, &status, 0) == pid);
    SAME(status, 0);
}

static void *worker(void *tid) {
    *(pid_t *)tid = syscall(SYS_gettid);
    wait_for_word();
    SAME(syscall(SYS_gettid), *(pid_t *)tid);
    return NULL;
}

static pthread_t thread;
static pid_t tid;

static void start_thread(void) {
    CHECK(pthread_create(&thread, NULL, worker, &tid) == 0);
    AWAIT(__atomic_load_n(&tid, __ATOMIC_SEQ_CST) != 0);
}

/* In a namespace within the namespace, with a thread: it has no power over what belongs to the outer one. */
static void innermost(void) {
    uid_t user = geteuid();
    gid_t group = getegid();
    CHECK(unshare(CLONE_NEWUSER) == 0);
    char text[64];
    if (user != 0) put(0, "setgroups", "deny");
    snprintf(text, sizeof text, "7 %d 1\n", (int)user);
    put(0, "uid_map", text);
    snprintf(text, sizeof text, "8 %d 1\n", (int)group);
    if (user == 0) put(0, "setgroups", "deny");
    put(0, "gid_map", text);
    SAME(geteuid(), 7);
    SAME(getegid(), 8);
    start_thread();
    struct self before = self();
    wait_for_word();
    same(before);
    CHECK(sethostname("mine", 4) == -1 && errno == EPERM);
    CHECK(pthread_join(thread, NULL) == 0);
    _exit(0);
}

/* One of several users, without any capability. */
static void other_user(void) {
    CHECK(setgroups(1, (gid_t[]){5}) == 0);
    CHECK(setresgid(3, 3, 4) == 0 && setresuid(2, 2, 2) == 0);
    CHECK(prctl(PR_SET_DUMPABLE, 1) == 0);
    struct self before = self();
    SAME(before.capabilities[0].effective, 0);
    wait_for_word();
    same(before);
    _exit(0);
}

static void first(int several) {
    SAME(getpid(), 1);
    SAME(getuid(), 0);
    CHECK(sethostname("inside", 6) == 0);
    int segment = shmget(IPC_PRIVATE, 4096, IPC_CREAT | 0600);
    CHECK(segment >= 0);
    char *memory = shmat(segment, NULL, 0);
    CHECK(memory != (void *)-1);
    memory[9] = 'm';
    if (several) CHECK(setgroups(2, (gid_t[]){3, 4}) == 0);
    pid_t inner = fork();
    CHECK(inner >= 0);
    if (inner == 0) innermost();
    pid_t other = several ? fork() : 0;
    CHECK(other >= 0);
    if (several && other == 0) other_user();
    start_thread();
    /* Some of its capabilities. */
    CHECK(prctl(PR_CAPBSET_DROP, CAP_SYS_TIME) == 0);
    struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
    struct __user_cap_data_struct some[2] = {{0}};
    some[0].permitted = 1u << CAP_SYS_ADMIN | 1u << CAP_NET_ADMIN | 1u << CAP_KILL;
    some[0].effective = 1u << CAP_SYS_ADMIN | 1u << CAP_KILL;
    some[0].inheritable = 1u << CAP_NET_ADMIN;
    CHECK(syscall(SYS_capset, &header, some) == 0);
    struct self before = self();
    SAME(before.bounding, 0);
    wait_for_word();
    same(before);
    CHECK(memory[9] == 'm');
    SAME(shmctl(segment, IPC_RMID, NULL), 0);
    CHECK(pthread_join(thread, NULL) == 0);
    finish(inner);
    if (several) finish(other);
    /* The host name belongs to its user namespace. */
    CHECK(sethostname("again", 5) == 0);
    _exit(0);
}

/* Goes there itself, and has its children be born in a PID namespace: unshare(1). */
static void goes_itself(uid_t user, gid_t group) {
    char text[64];
    CHECK(unshare(CLONE_NEWUSER | CLONE_NEWPID) == 0);
    put(0, "setgroups", "deny");
    snprintf(text, sizeof text, "0 %d 1\n", (int)user);
    put(0, "uid_map", text);
    snprintf(text, sizeof text, "0 %d 1\n", (int)group);
    put(0, "gid_map", text);
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        SAME(getpid(), 1);
        start_thread();
        struct self before = self();
        wait_for_word();
        same(before);
        CHECK(pthread_join(thread, NULL) == 0);
        _exit(0);
    }
    struct self before = self();
    wait_for_word();
    same(before);
    finish(child);
    _exit(0);
}

int main(int argc, char **argv) {
    begin(argc, argv);
    int several = geteuid() == 0;
    int arrived[2], onward[2], start[2];
    CHECK(pipe(arrived) == 0 && pipe(onward) == 0 && pipe(start) == 0);
    there = arrived[1];
    go_on = onward[0];
    uid_t user = geteuid();
    gid_t group = getegid();
    int kinds = CLONE_NEWUSER | CLONE_NEWPID | CLONE_NEWUTS | CLONE_NEWIPC;
    if (several) kinds |= CLONE_NEWNET | CLONE_NEWCGROUP;
    pid_t child = syscall(SYS_clone, kinds | SIGCHLD, 0, 0, 0, 0);
    CHECK(child >= 0);
    if (child == 0) {
        char byte;
        CHECK(read(start[0], &byte, 1) == 1);
        CHECK(setresgid(0, 0, 0) == 0 && setresuid(0, 0, 0) == 0);
        /* Its files below /proc are its own again. */
        CHECK(prctl(PR_SET_DUMPABLE, 1) == 0);
        first(several);
    }
    if (several) {
        put(child, "uid_map", "0 1000 4\n4 3000 10\n");
        put(child, "gid_map", "0 1000 4\n4 3000 10\n");
    } else {
        char text[64];
        put(child, "setgroups", "deny");
        snprintf(text, sizeof text, "0 %d 1\n", (int)user);
        put(child, "uid_map", text);
        snprintf(text, sizeof text, "0 %d 1\n", (int)group);
        put(child, "gid_map", text);
    }
    CHECK(write(start[1], "x", 1) == 1);
    pid_t other = fork();
    CHECK(other >= 0);
    if (other == 0) goes_itself(user, group);
    struct self before = self();
    char bytes[16];
    int wanted = 7 + several;
    for (int got = 0; got < wanted;) {
        int more = read(arrived[0], bytes, sizeof bytes);
        CHECK(more > 0);
        got += more;
    }
    ready();
    same(before);
    CHECK(write(onward[1], "xxxxxxxx", wanted) == wanted);
    finish(child);
    finish(other);
    ok();
}
