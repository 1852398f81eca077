/* Files, directories and links that have no name any more, or another one. */
#include "victim.h"
#include <sys/inotify.h>

static char base[512];

static const char *named(const char *name) {
    static char text[8][600];
    static int turn;
    turn = (turn + 1) % 8;
    snprintf(text[turn], sizeof text[turn], "%s.%s", base, name);
    return text[turn];
}

static int is_deleted_directory(const char *path) {
    struct stat stat;
    CHECK(fstatat(AT_FDCWD, path, &stat, 0) == 0);
    return S_ISDIR(stat.st_mode) && stat.st_nlink == 0;
}

static int hide_in_proc(void *unused) {
    CHECK(chroot("/proc/self/fdinfo/") == 0 && chdir("/") == 0);
    _exit(unused != NULL);
}

/* Has a root directory that nothing is in: a deleted one, or one of a process that has ended. */
static pid_t without_files(int of_dead, int go_on, int there) {
    pid_t child = fork();
    CHECK(child >= 0);
    if (child != 0) return child;
    be_root_somewhere();
    if (of_dead) {
        static char stack[16384] __attribute__((aligned(16)));
        pid_t helper = clone(hide_in_proc, stack + sizeof stack, CLONE_FS | SIGCHLD, NULL);
        int status;
        CHECK(helper > 0 && waitpid(helper, &status, 0) == helper);
        SAME(status, 0);
    } else {
        CHECK(mkdir(named("root"), 0700) == 0 && chroot(named("root")) == 0 && rmdir(named("root")) != 0);
        CHECK(chdir("/") == 0);
    }
    char byte = 'x';
    CHECK(write(there, &byte, 1) == 1 && read(go_on, &byte, 1) == 1);
    CHECK(open("/new", O_RDWR | O_CREAT, 0600) == -1 && access("/proc", F_OK) == -1);
    CHECK(mkdir("below", 0700) == -1);
    _exit(0);
}

/* Works in the directory of a process that has ended, in /proc. */
static pid_t nowhere(int go_on, int there) {
    pid_t child = fork();
    CHECK(child >= 0);
    if (child != 0) return child;
    pid_t helper = fork();
    CHECK(helper >= 0);
    if (helper == 0)
        for (;;) pause();
    char place[64], byte = 'x';
    int status;
    snprintf(place, sizeof place, "/proc/%d", helper);
    CHECK(chdir(place) == 0 && kill(helper, SIGKILL) == 0 && waitpid(helper, &status, 0) == helper);
    CHECK(getcwd(place, sizeof place) == NULL && errno == ENOENT);
    CHECK(write(there, &byte, 1) == 1 && read(go_on, &byte, 1) == 1);
    CHECK(getcwd(place, sizeof place) == NULL && errno == ENOENT);
    CHECK(mkdir("below", 0700) == -1 && access("status", F_OK) == -1);
    _exit(0);
}

/* Opens a file in /proc of the calling thread. */
static void *look_at_oneself(void *opened) {
    *(int *)opened = open("/proc/thread-self/status", O_RDONLY);
    return NULL;
}

int main(int argc, char **argv) {
    begin(argc, argv);
    char start[256];
    CHECK(getcwd(start, sizeof start));
    snprintf(base, sizeof base, "%s/%s", start, strrchr(go, '/') + 1);

    int there[2], go_on[2];
    CHECK(pipe(there) == 0 && pipe(go_on) == 0);
    pid_t without[3];
    for (int i = 0; i < 3; i++) {
        without[i] = i < 2 ? without_files(i, go_on[0], there[1]) : nowhere(go_on[0], there[1]);
        char byte;
        CHECK(read(there[0], &byte, 1) == 1);
    }
    CHECK(rmdir(named("root")) == 0);

    /* A file with two names, opened by the one that is deleted. */
    int linked = open(named("first"), O_RDWR | O_CREAT, 0600);
    CHECK(linked >= 0 && write(linked, "one", 3) == 3);
    CHECK(link(named("first"), named("second")) == 0 && unlink(named("first")) == 0);

    /* One whose other name is in the directory above. */
    CHECK(mkdir(named("below"), 0700) == 0);
    int above = open(named("below/first"), O_RDWR | O_CREAT, 0600);
    CHECK(above >= 0 && link(named("below/first"), named("above")) == 0);
    CHECK(unlink(named("below/first")) == 0 && rmdir(named("below")) == 0);

    /* Watched, and open. */
    int watch = inotify_init1(IN_NONBLOCK), watched = open(named("watched"), O_RDWR | O_CREAT, 0600);
    CHECK(watched >= 0 && inotify_add_watch(watch, named("watched"), IN_MODIFY) == 1 && unlink(named("watched")) == 0);

    /* A deleted file keeps the time of its last modification. */
    int old = open(named("old"), O_RDWR | O_CREAT, 0600);
    struct timespec times[2] = {{1000, 0}, {1234567, 890000000}};
    CHECK(old >= 0 && write(old, "x", 1) == 1 && futimens(old, times) == 0 && unlink(named("old")) == 0);

    /* A private mapping of a deleted file shows what is written to the file where it was not written to itself. */
    int mapped = open(named("mapped"), O_RDWR | O_CREAT, 0600);
    CHECK(mapped >= 0 && ftruncate(mapped, 8192) == 0);
    char *memory = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE, mapped, 0);
    CHECK(memory != MAP_FAILED && unlink(named("mapped")) == 0);
    memory[4096] = 'm';

    /* A deleted directory, open, and one in another that was deleted, too, as the working directory. */
    CHECK(mkdir(named("open"), 0700) == 0);
    int directory = open(named("open"), O_RDONLY | O_DIRECTORY);
    CHECK(directory >= 0 && rmdir(named("open")) == 0);
    CHECK(mkdir(named("outer"), 0700) == 0 && mkdir(named("outer/inner"), 0750) == 0);
    CHECK(chdir(named("outer/inner")) == 0);
    CHECK(rmdir(named("outer/inner")) == 0 && rmdir(named("outer")) == 0);

    /* A deleted symbolic link. */
    CHECK(symlink("nowhere/at all", named("link")) == 0);
    int symbolic = open(named("link"), O_PATH | O_NOFOLLOW);
    CHECK(symbolic >= 0 && unlink(named("link")) == 0);

    /* Two pidfds of one process that has ended, one of another. */
    int dead[3];
    for (int i = 0; i < 2; i++) {
        pid_t child = fork();
        if (child == 0) _exit(0);
        dead[i] = syscall(SYS_pidfd_open, child, 0);
        if (i == 0) dead[2] = syscall(SYS_pidfd_open, child, 0);
        CHECK(dead[i] >= 0 && waitpid(child, NULL, 0) == child);
    }
    /* A file and the directory in /proc of one that has ended. */
    int hold[2];
    CHECK(pipe(hold) == 0);
    pid_t child = fork();
    if (child == 0) {
        close(hold[1]);
        _exit(read(hold[0], hold, 1));
    }
    char entry[64];
    snprintf(entry, sizeof entry, "/proc/%d", (int)child);
    int of_dead = open(entry, O_RDONLY | O_DIRECTORY), status_of_dead = openat(of_dead, "status", O_RDONLY);
    CHECK(of_dead >= 0 && status_of_dead >= 0);
    /* Not open for reading, and of its thread. */
    int path_of_dead = open(entry, O_PATH), written_of_dead = openat(of_dead, "oom_score_adj", O_RDWR);
    CHECK(path_of_dead >= 0 && written_of_dead >= 0);
    snprintf(entry, sizeof entry, "task/%d/status", (int)child);
    int of_dead_thread = openat(of_dead, entry, O_RDONLY);
    CHECK(of_dead_thread >= 0);
    close(hold[0]);
    close(hold[1]);
    CHECK(waitpid(child, NULL, 0) == child);
    /* One of a thread of ours that has ended. */
    pthread_t thread;
    int ended_thread = -1;
    char first;
    CHECK(pthread_create(&thread, NULL, look_at_oneself, &ended_thread) == 0 && pthread_join(thread, NULL) == 0);
    CHECK(ended_thread >= 0);
    while (pread(ended_thread, &first, 1, 0) == 1) sched_yield();
    SAME(errno, ESRCH);
    ready();

    int second = open(named("second"), O_RDONLY);
    char text[16] = "";
    CHECK(second >= 0 && read(second, text, 3) == 3 && strcmp(text, "one") == 0);
    CHECK(pwrite(linked, "two", 3, 0) == 3 && pread(second, text, 3, 0) == 3 && strcmp(text, "two") == 0);

    CHECK(pwrite(above, "up", 2, 0) == 2 && (second = open(named("above"), O_RDONLY)) >= 0);
    CHECK(read(second, text, 3) == 2 && memcmp(text, "up", 2) == 0);

    struct inotify_event event;
    CHECK(pwrite(watched, "x", 1, 0) == 1 && read(watch, &event, sizeof event) == sizeof event);
    CHECK(event.wd == 1 && event.mask == IN_MODIFY);
    CHECK(openat(of_dead, "stat", O_RDONLY) == -1 && (errno == ESRCH || errno == ENOENT));
    CHECK(read(status_of_dead, text, 1) == -1 && errno == ESRCH);
    CHECK(read(of_dead_thread, text, 1) == -1 && errno == ESRCH);
    CHECK(openat(path_of_dead, "stat", O_RDONLY) == -1 && (errno == ESRCH || errno == ENOENT));
    CHECK(fcntl(path_of_dead, F_GETFL) & O_PATH && read(path_of_dead, text, 1) == -1 && errno == EBADF);
    CHECK(write(written_of_dead, "1", 1) == -1 && errno == ESRCH);
    CHECK(read(ended_thread, text, 1) == -1 && errno == ESRCH);

    struct stat stat, other;
    CHECK(fstat(old, &stat) == 0);
    SAME(stat.st_mtim.tv_sec, 1234567);
    SAME(stat.st_mtim.tv_nsec, 890000000);

    CHECK(pwrite(mapped, "fF", 2, 0) == 2 && pwrite(mapped, "M", 1, 4096) == 1);
    SAME(memory[0], 'f');
    SAME(memory[1], 'F');
    SAME(memory[4096], 'm');

    CHECK(fstat(directory, &stat) == 0 && S_ISDIR(stat.st_mode));
    SAME(stat.st_nlink, 0);
    CHECK(is_deleted_directory("/proc/self/cwd"));
    CHECK(openat(AT_FDCWD, "new", O_RDWR | O_CREAT, 0600) == -1 && errno == ENOENT);
    CHECK(fstatat(AT_FDCWD, "/proc/self/cwd", &stat, 0) == 0);
    SAME(stat.st_mode & 0777, 0750);
    CHECK(access(named("outer"), F_OK) == -1 && access(named("open"), F_OK) == -1);

    CHECK(readlinkat(symbolic, "", text, sizeof text) == 14 && memcmp(text, "nowhere/at all", 14) == 0);
    CHECK(access(named("link"), F_OK) == -1);

    CHECK(write(go_on[1], "xxx", 3) == 3);
    for (int i = 0; i < 3; i++) {
        int status;
        CHECK(waitpid(without[i], &status, 0) == without[i]);
        SAME(status, 0);
    }
    for (int i = 0; i < 3; i++) {
        struct pollfd ended = {.fd = dead[i], .events = POLLIN};
        SAME(poll(&ended, 1, 0), 1);
        CHECK(syscall(SYS_pidfd_send_signal, dead[i], 0, NULL, 0) == -1 && errno == ESRCH);
    }
    CHECK(fstat(dead[0], &stat) == 0 && fstat(dead[2], &other) == 0);
    SAME(stat.st_ino, other.st_ino);
    ok();
}
