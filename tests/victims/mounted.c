/* Mounts that a program makes in the mount namespace it was started in: a file system in memory with an open, mapped
 * file, one that was deleted and one that has lost one of its names, a directory bound elsewhere and made read-only
 * there, memory over what the machine has mounted, and a second process that works in one of them. */
#include "victim.h"

#include <linux/magic.h>
#include <sys/mount.h>
#include <sys/statfs.h>
#include <sys/statvfs.h>

static void make(const char *path, const char *text) {
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0640);
    if (fd < 0) fail(__LINE__, "make %s", path);
    CHECK(write(fd, text, strlen(text)) == (ssize_t)strlen(text));
    close(fd);
}

static void contains(int fd, const char *text) {
    char found[64] = "";
    CHECK(pread(fd, found, sizeof found - 1, 0) >= 0);
    if (strcmp(found, text) != 0) fail(__LINE__, "\"%s\" is not \"%s\"", found, text);
}

static int is_memory(const char *path) {
    struct statfs system;
    CHECK(statfs(path, &system) == 0);
    return system.f_type == TMPFS_MAGIC;
}

int main(int argc, char **argv) {
    begin(argc, argv);
    char place[] = "mounted-XXXXXX";
    CHECK(mkdtemp(place) != NULL && chdir(place) == 0);
    CHECK(mkdir("memory", 0755) == 0 && mkdir("real", 0755) == 0 && mkdir("shown", 0755) == 0);
    CHECK(mount("memory", "memory", "tmpfs", MS_NOSUID, "size=4m,mode=711") == 0);
    CHECK(mount("shared", "/dev/shm", "tmpfs", 0, "size=1m") == 0);
    CHECK(mkdir("memory/deeper", 0700) == 0);
    make("memory/deeper/file", "in memory");
    make("memory/gone", "deleted");
    make("/dev/shm/segment", "over");
    make("real/file", "bound");
    CHECK(mount("real", "shown", NULL, MS_BIND, NULL) == 0);
    CHECK(mount(NULL, "shown", NULL, MS_REMOUNT | MS_BIND | MS_RDONLY, NULL) == 0);
    int file = open("memory/deeper/file", O_RDWR), gone = open("memory/gone", O_RDWR), shown = open("shown/file", O_RDONLY);
    CHECK(file >= 0 && gone >= 0 && shown >= 0 && unlink("memory/gone") == 0);
    /* Opened by a name in a directory that is gone, too; its other name is above. */
    CHECK(mkdir("memory/below", 0700) == 0);
    int linked = open("memory/below/linked", O_RDWR | O_CREAT, 0600);
    CHECK(linked >= 0 && write(linked, "two", 3) == 3 && link("memory/below/linked", "memory/named") == 0);
    CHECK(unlink("memory/below/linked") == 0 && rmdir("memory/below") == 0);
    char *map = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    CHECK(map != MAP_FAILED);
    int ends[2];
    CHECK(pipe(ends) == 0);
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        char byte;
        CHECK(chdir("memory/deeper") == 0 && close(ends[1]) == 0);
        while (read(ends[0], &byte, 1) < 0) continue;
        make("made", "by the child");
        _exit(0);
    }
    close(ends[0]);
    ready();
    struct stat one, other;
    CHECK(is_memory("memory") && is_memory("/dev/shm"));
    CHECK(stat("memory", &one) == 0 && stat("/dev/shm", &other) == 0 && one.st_dev != other.st_dev);
    SAME(one.st_mode & 07777, 0711);
    struct statvfs flags;
    CHECK(statvfs("memory", &flags) == 0 && (flags.f_flag & ST_NOSUID) && !(flags.f_flag & ST_RDONLY));
    CHECK(statvfs("shown", &flags) == 0 && (flags.f_flag & ST_RDONLY));
    CHECK(open("shown/other", O_WRONLY | O_CREAT, 0600) < 0 && errno == EROFS);
    contains(file, "in memory");
    contains(gone, "deleted");
    contains(shown, "bound");
    CHECK(fstat(linked, &one) == 0 && stat("memory/named", &other) == 0);
    SAME(one.st_ino, other.st_ino);
    SAME(one.st_nlink, 1);
    contains(linked, "two");
    memcpy(map, "ON", 2);
    contains(file, "ON memory");
    CHECK(fstat(shown, &one) == 0 && stat("real/file", &other) == 0);
    SAME(one.st_ino, other.st_ino);
    CHECK(fstat(file, &one) == 0 && stat("memory/deeper/file", &other) == 0);
    SAME(one.st_ino, other.st_ino);
    int segment = open("/dev/shm/segment", O_RDONLY);
    CHECK(segment >= 0);
    contains(segment, "over");
    CHECK(close(ends[1]) == 0);
    int status;
    CHECK(waitpid(child, &status, 0) == child);
    SAME(status, 0);
    int made = open("memory/deeper/made", O_RDONLY);
    CHECK(made >= 0);
    contains(made, "by the child");
    ok();
}
