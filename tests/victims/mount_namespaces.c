/* Mount namespaces that the job has made: with a /proc of a PID namespace, with a thread, an open file and a working
 * directory, and one that is a mere copy. An ordinary user has them in a user namespace. */
#include "mounts.h"

#include <sys/mount.h>

static char before[1 << 18], after[1 << 18], own[64], again[64];

/* Linux tells which namespace it is by its inode number. */
static void namespace(const char *of, char *to, size_t size) {
    char path[64];
    snprintf(path, sizeof path, "/proc/%s/ns/mnt", of);
    ssize_t length = readlink(path, to, size - 1);
    CHECK(length > 0);
    to[length] = 0;
}

static void *worker(void *unused) {
    wait_for_word();
    return unused;
}

static void look(void) {
    mounted(before, sizeof before);
    int file = open("kept", O_RDWR | O_CREAT, 0600);
    CHECK(file >= 0 && write(file, "abc", 3) == 3);
    pthread_t thread;
    CHECK(pthread_create(&thread, NULL, worker, NULL) == 0);
    wait_for_word();
    mounted(after, sizeof after);
    if (strcmp(before, after) != 0) fail(__LINE__, "mounts:\n%s\nwere\n%s", after, before);
    char text[8] = "";
    CHECK(pread(file, text, 3, 0) == 3 && strcmp(text, "abc") == 0);
    CHECK(access("kept", F_OK) == 0);
    CHECK(pthread_join(thread, NULL) == 0);
}

static int processes(void) {
    int count = 0;
    DIR *all = opendir("/proc");
    CHECK(all != NULL);
    for (struct dirent *entry; (entry = readdir(all));) count += atoi(entry->d_name) > 0;
    closedir(all);
    return count;
}

static pid_t start(int flags, void run(void)) {
    if (geteuid() != 0) flags |= CLONE_NEWUSER;
    pid_t pid = syscall(SYS_clone, flags | SIGCHLD, 0, 0, 0, 0);
    CHECK(pid >= 0);
    if (pid == 0) {
        run();
        _exit(0);
    }
    return pid;
}

static void with_proc(void) {
    SAME(getpid(), 1);
    CHECK(mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL) == 0);
    CHECK(mount("proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL) == 0);
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        namespace("1", own, sizeof own);
        wait_for_word();
        namespace("1", own, sizeof own);
        namespace("self", again, sizeof again);
        CHECK(strcmp(own, again) == 0);
        _exit(0);
    }
    SAME(processes(), 2);
    look();
    SAME(processes(), 2);
    finish(child);
    SAME(processes(), 1);
    /* It is private, and has power over itself. */
    CHECK(umount2("/proc", MNT_DETACH) == 0);
    _exit(0);
}

/* A process is in another namespace than ours. */
static void apart(pid_t pid) {
    char text[32];
    snprintf(text, sizeof text, "%d", (int)pid);
    namespace(text, own, sizeof own);
    namespace("self", again, sizeof again);
    CHECK(strcmp(own, again) != 0);
}

int main(int argc, char **argv) {
    begin(argc, argv);
    int arrived[2], onward[2];
    CHECK(pipe(arrived) == 0 && pipe(onward) == 0);
    there = arrived[1];
    go_on = onward[0];
    char bytes[8];
    mounted(before, sizeof before);
    pid_t first = start(CLONE_NEWNS | CLONE_NEWPID, with_proc);
    pid_t second = start(CLONE_NEWNS, look);
    int wanted = 5;
    for (int got = 0; got < wanted;) {
        int more = read(arrived[0], bytes, sizeof bytes);
        CHECK(more > 0);
        got += more;
    }
    ready();
    mounted(after, sizeof after);
    if (strcmp(before, after) != 0) fail(__LINE__, "mounts:\n%s\nwere\n%s", after, before);
    apart(first);
    apart(second);
    CHECK(write(onward[1], "xxxxx", wanted) == wanted);
    finish(first);
    finish(second);
    ok();
}
