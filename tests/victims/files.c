/* Open files: offsets, flags, sharing, deleted files, directories. */
#include "victim.h"

static char name_[4][256];
static const char *name(int i) {
    snprintf(name_[i], sizeof *name_, "%s.file%d", strrchr(go, '/') + 1, i);
    return name_[i];
}

int main(int argc, char **argv) {
    begin(argc, argv);
    int appending = open(name(0), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    int shared_ = open(name(1), O_RDWR | O_CREAT, 0640), copy = dup(shared_), apart = open(name(1), O_RDWR | O_NONBLOCK | O_DSYNC);
    CHECK(appending >= 0 && shared_ >= 0 && copy >= 0 && apart >= 0);
    CHECK(write(appending, "before\n", 7) == 7);
    CHECK(write(shared_, "0123456789", 10) == 10 && lseek(apart, 3, SEEK_SET) == 3);
    int high = fcntl(apart, F_DUPFD_CLOEXEC, 700);
    SAME(high, 700);
    int deleted = open(name(2), O_RDWR | O_CREAT | O_EXCL, 0600), same = open(name(2), O_RDONLY);
    static char block[1 << 20];
    for (int i = 0; i < (int)sizeof block; i++) block[i] = i * 11 + i / 4099;
    CHECK(write(deleted, block, sizeof block) == sizeof block && lseek(same, 4096, SEEK_SET) == 4096);
    CHECK(unlink(name(2)) == 0);
    char directory[300];
    snprintf(directory, sizeof directory, "%s.directory", strrchr(go, '/') + 1);
    CHECK(mkdir(directory, 0700) == 0);
    for (int i = 0; i < 50; i++) {
        char path[400];
        snprintf(path, sizeof path, "%s/%d", directory, i);
        int fd = creat(path, 0600);
        CHECK(fd >= 0);
        close(fd);
    }
    int listing = open(directory, O_RDONLY | O_DIRECTORY);
    static char entries[200];
    int seen[50] = {0}, rounds = 0;
    for (; rounds < 2; rounds++) {
        long n = syscall(SYS_getdents64, listing, entries, sizeof entries);
        CHECK(n > 0);
        for (long at = 0; at < n; at += *(unsigned short *)(entries + at + 16))
            if (entries[at + 19] != '.') seen[atoi(entries + at + 19)]++;
    }
    int path_only = open(directory, O_PATH | O_DIRECTORY);
    pid_t child = fork();
    if (child == 0) {
        /* Writes its records through the inherited descriptor. */
        wait_for_go();
        for (int i = 0; i < 100; i++) {
            CHECK(write(shared_, "child ", 6) == 6);
            sched_yield();
        }
        _exit(0);
    }
    ready();
    for (int i = 0; i < 100; i++) {
        CHECK(write(i % 2 ? shared_ : copy, "parent", 6) == 6);
        sched_yield();
    }
    int status;
    SAME(waitpid(child, &status, 0), child);
    SAME(status, 0);
    SAME(lseek(shared_, 0, SEEK_CUR), 10 + 200 * 6);
    SAME(lseek(copy, 0, SEEK_CUR), 10 + 200 * 6);
    SAME(lseek(apart, 0, SEEK_CUR), 3);
    char text[8192];
    CHECK(pread(shared_, text, sizeof text, 0) == 1210 && memcmp(text, "0123456789", 10) == 0);
    int records[2] = {0, 0};
    for (int i = 0; i < 200; i++) records[memcmp(text + 10 + 6 * i, "child ", 6) == 0]++;
    SAME(records[0], 100);
    SAME(records[1], 100);
    SAME(lseek(high, 2, SEEK_CUR), 5);
    SAME(lseek(apart, 0, SEEK_CUR), 5);
    SAME(fcntl(high, F_GETFD), FD_CLOEXEC);
    SAME(fcntl(apart, F_GETFD), 0);
    SAME(fcntl(appending, F_GETFD), FD_CLOEXEC);
    SAME(fcntl(apart, F_GETFL) & (O_ACCMODE | O_NONBLOCK | O_DSYNC | O_APPEND), O_RDWR | O_NONBLOCK | O_DSYNC);
    SAME(fcntl(appending, F_GETFL) & (O_ACCMODE | O_APPEND), O_WRONLY | O_APPEND);
    SAME(fcntl(same, F_GETFL) & O_ACCMODE, O_RDONLY);
    SAME(fcntl(path_only, F_GETFL) & O_PATH, O_PATH);
    SAME(fcntl(path_only + 1, F_GETFD), -1);
    /* Somebody else appends, then we do. */
    int other = open(name(0), O_WRONLY | O_APPEND);
    CHECK(write(other, "other\n", 6) == 6 && write(appending, "after\n", 6) == 6);
    slurp(name(0), text, sizeof text);
    CHECK(strcmp(text, "before\nother\nafter\n") == 0);
    CHECK(access(name(2), F_OK) == -1);
    struct stat info, info2;
    CHECK(fstat(deleted, &info) == 0 && fstat(same, &info2) == 0);
    SAME(info.st_nlink, 0);
    SAME(info.st_ino, info2.st_ino);
    SAME(info.st_size, sizeof block);
    static char back[1 << 20];
    CHECK(pread(deleted, back, sizeof back, 0) == sizeof back && memcmp(back, block, sizeof back) == 0);
    SAME(lseek(deleted, 0, SEEK_CUR), sizeof block);
    SAME(lseek(same, 0, SEEK_CUR), 4096);
    CHECK(pwrite(deleted, "new", 3, 4096) == 3 && read(same, text, 3) == 3 && memcmp(text, "new", 3) == 0);
    for (long n; (n = syscall(SYS_getdents64, listing, entries, sizeof entries)) > 0;)
        for (long at = 0; at < n; at += *(unsigned short *)(entries + at + 16))
            if (entries[at + 19] != '.') seen[atoi(entries + at + 19)]++;
    for (int i = 0; i < 50; i++) SAME(seen[i], 1);
    ok();
}
