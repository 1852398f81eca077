/* Memory and random devices, and files of /proc that belong to one process: their holder or another of the job. */
#include "victim.h"

#include <sys/sysmacros.h>

#define PAGE 4096

static int take(const char *path, int flags) {
    int fd = open(path, flags | O_CLOEXEC);
    if (fd < 0) fail(__LINE__, "open %s", path);
    return fd;
}

/* Reads all of a /proc file again. */
static const char *again(int fd) {
    static char text[8192];
    ssize_t n = pread(fd, text, sizeof text - 1, 0);
    CHECK(n > 0);
    text[n] = 0;
    return text;
}

static pid_t pid_in(const char *status) {
    const char *line = strstr(status, "\nPid:\t");
    CHECK(line != NULL);
    return atoi(line + 6);
}

/* Bytes of a random device that are not all the same. */
static int is_random(int fd) {
    unsigned char bytes[64], other[64];
    return read(fd, bytes, sizeof bytes) == sizeof bytes && read(fd, other, sizeof other) == sizeof other &&
           memcmp(bytes, other, sizeof bytes) != 0;
}

int main(int argc, char **argv) {
    begin(argc, argv);
    int null = take("/dev/null", O_RDWR), zero = take("/dev/zero", O_RDWR), full = take("/dev/full", O_RDWR);
    int blocking = take("/dev/random", O_RDONLY), urandom = take("/dev/urandom", O_RDWR);
    CHECK(is_random(blocking) && is_random(urandom));
    unsigned char *private = mmap(NULL, 4 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, zero, 0);
    unsigned char *common = mmap(NULL, 4 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, zero, 0);
    CHECK(private != MAP_FAILED && common != MAP_FAILED);
    private[PAGE] = 1;
    common[PAGE] = 2;
    int status = take("/proc/self/status", O_RDONLY), tasks = take("/proc/self/task", O_RDONLY | O_DIRECTORY);
    int init = take("/proc/1/status", O_RDONLY), machine = take("/proc/meminfo", O_RDONLY);
    int spaces = take("/proc/self/ns/net", O_RDONLY);
    /* The child has its own, and those that its parent opened as `self`. */
    pid_t me = getpid(), child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        int own = take("/proc/self/stat", O_RDONLY), parent = dup(status);
        CHECK(atoi(again(own)) == getpid());
        wait_for_go();
        SAME(atoi(again(own)), getpid());
        SAME(pid_in(again(parent)), me);
        AWAIT(((atomic_uchar *)common)[2] == 3);
        ((atomic_uchar *)common)[3] = 4;
        /* Until the parent has looked. */
        AWAIT(((atomic_uchar *)common)[4] == 5);
        _exit(0);
    }
    char path[64];
    snprintf(path, sizeof path, "/proc/%d/status", (int)child);
    int sibling = take(path, O_RDONLY);
    char first[8];
    CHECK(read(sibling, first, 6) == 6);
    /* A node whose name is gone, where we may make one. */
    int gone = -1;
    if (mknod("gone", S_IFCHR | 0640, makedev(1, 5)) == 0) {
        gone = open("gone", O_RDWR);
        CHECK(unlink("gone") == 0);
    }
    ready();
    unsigned char bytes[PAGE];
    if (gone >= 0) {
        struct stat node;
        memset(bytes, 1, sizeof bytes);
        SAME(read(gone, bytes, sizeof bytes), sizeof bytes);
        for (int i = 0; i < PAGE; i++) SAME(bytes[i], 0);
        CHECK(fstat(gone, &node) == 0);
        SAME(node.st_mode, S_IFCHR | 0640);
        SAME(node.st_rdev, makedev(1, 5));
        SAME(node.st_nlink, 0);
        SAME(access("gone", F_OK), -1);
    }
    memset(bytes, 1, sizeof bytes);
    SAME(read(null, bytes, sizeof bytes), 0);
    SAME(write(null, bytes, sizeof bytes), sizeof bytes);
    SAME(read(zero, bytes, sizeof bytes), sizeof bytes);
    for (int i = 0; i < PAGE; i++) SAME(bytes[i], 0);
    CHECK(write(full, "x", 1) == -1 && errno == ENOSPC);
    CHECK(is_random(blocking) && is_random(urandom));
    SAME(private[PAGE], 1);
    SAME(common[PAGE], 2);
    for (int i = 0; i < PAGE; i++) {
        SAME(private[i], 0);
        SAME(common[3 * PAGE + i], 0);
    }
    CHECK(mmap(private, PAGE, PROT_READ, MAP_PRIVATE | MAP_FIXED, zero, 0) == private && private[7] == 0);
    ((atomic_uchar *)common)[2] = 3;
    AWAIT(((atomic_uchar *)common)[3] == 4);
    SAME(pid_in(again(status)), getpid());
    SAME(pid_in(again(sibling)), child);
    SAME(lseek(sibling, 0, SEEK_CUR), 6);
    SAME(pid_in(again(init)), 1);
    CHECK(strncmp(again(machine), "MemTotal:", 9) == 0);
    char own[16];
    snprintf(own, sizeof own, "%d", (int)getpid());
    struct stat info, other;
    CHECK(fstat(spaces, &info) == 0 && stat("/proc/self/ns/net", &other) == 0);
    SAME(info.st_ino, other.st_ino);
    CHECK(fstatat(tasks, own, &info, 0) == 0 && S_ISDIR(info.st_mode));
    ((atomic_uchar *)common)[4] = 5;
    int ended;
    SAME(waitpid(child, &ended, 0), child);
    SAME(ended, 0);
    ok();
}
