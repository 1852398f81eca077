/* A mount namespace that shares little with the job's own: a root in memory that pivot_root(2) went to, with bind mounts of
 * directories and files, a /proc and terminals of its own, mounts on and over each other, read-only and without set-user-id,
 * files open, mapped and deleted in them, FIFOs and UNIX sockets with data, a session with a
 * terminal of its own file system of terminals, message queues, and a process below another root directory. */
#include "mounts.h"
#include "own_users.h"

#include <mqueue.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/statvfs.h>
#include <sys/sysmacros.h>
#include <sys/xattr.h>

/* What is in a directory, sorted by name, but not what is mounted on others in it. */
static void listed(const char *directory, char *to, size_t size) {
    struct dirent **entries;
    int count = scandir(directory, &entries, NULL, alphasort);
    CHECK(count >= 0);
    for (int i = 0; i < count; i++) {
        char path[512];
        const char *name = entries[i]->d_name;
        snprintf(path, sizeof path, "%s/%s", directory, name);
        struct stat stat, above;
        CHECK(lstat(path, &stat) == 0 && lstat(directory, &above) == 0);
        if (strcmp(name, "..") != 0 && stat.st_dev == above.st_dev) {
            size_t length = strlen(to);
            /* Mapping a file again is an access to it. */
            int timed = S_ISREG(stat.st_mode) && stat.st_nlink == 1;
            snprintf(to + length, size - length, "%s %o %d %d %lld %ld.%09ld %ld.%09ld %d %llx\n", path, stat.st_mode,
                     (int)stat.st_uid, (int)stat.st_gid, S_ISREG(stat.st_mode) ? (long long)stat.st_size : 0,
                     stat.st_mtim.tv_sec, stat.st_mtim.tv_nsec, timed ? stat.st_atim.tv_sec : 0,
                     timed ? stat.st_atim.tv_nsec : 0, (int)stat.st_nlink, (long long)stat.st_rdev);
            if (S_ISDIR(stat.st_mode) && strcmp(name, ".") != 0) listed(path, to, size);
        }
        free(entries[i]);
    }
    free(entries);
}

static void make(const char *path, const char *text) {
    int fd = open(path, O_WRONLY | O_CREAT | O_EXCL, 0640);
    if (fd < 0) fail(__LINE__, "make %s", path);
    CHECK(write(fd, text, strlen(text)) == (ssize_t)strlen(text));
    close(fd);
}

static void contains(int fd, const char *text) {
    char found[64] = "";
    CHECK(pread(fd, found, sizeof found - 1, 0) >= 0);
    if (strncmp(found, text, strlen(text)) != 0) fail(__LINE__, "\"%s\" is not \"%s\"", found, text);
}

static char before[1 << 18], after[1 << 18], files_before[1 << 16], files_after[1 << 16];

static struct sockaddr_un named(const char *name) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    snprintf(address.sun_path, sizeof address.sun_path, "%s", name);
    return address;
}

/* Names in the file system in memory, of which the job's own namespace knows nothing. */
struct names {
    int fifo, listening, client, server, datagrams, relative;
};

static struct names make_names(void) {
    struct names n;
    struct sockaddr_un listening = named("/d/listening"), datagrams = named("/datagrams"), relative = named("relative");
    n.fifo = open("/d/fifo", O_RDWR | O_NONBLOCK);
    CHECK(n.fifo >= 0 && write(n.fifo, "fifo", 4) == 4);
    n.listening = socket(AF_UNIX, SOCK_STREAM, 0);
    CHECK(bind(n.listening, (void *)&listening, sizeof listening) == 0 && listen(n.listening, 5) == 0);
    n.client = socket(AF_UNIX, SOCK_STREAM, 0);
    CHECK(connect(n.client, (void *)&listening, sizeof listening) == 0);
    CHECK((n.server = accept(n.listening, NULL, NULL)) >= 0 && write(n.client, "stream", 6) == 6);
    n.datagrams = socket(AF_UNIX, SOCK_DGRAM, 0);
    CHECK(bind(n.datagrams, (void *)&datagrams, sizeof datagrams) == 0 && chmod("/datagrams", 0624) == 0);
    CHECK(sendto(n.datagrams, "datagram", 8, 0, (void *)&datagrams, sizeof datagrams) == 8);
    CHECK(chdir("/d/inner") == 0);
    n.relative = socket(AF_UNIX, SOCK_DGRAM, 0);
    CHECK(bind(n.relative, (void *)&relative, sizeof relative) == 0 && chdir("/") == 0);
    /* One that nobody is bound to any more. */
    struct sockaddr_un unused = named("/d/unused");
    int end = socket(AF_UNIX, SOCK_DGRAM, 0);
    CHECK(bind(end, (void *)&unused, sizeof unused) == 0 && close(end) == 0);
    return n;
}

static void check_names(struct names n) {
    char text[64];
    SAME(read(n.fifo, text, sizeof text), 4);
    int writer = open("/d/fifo", O_WRONLY | O_NONBLOCK);
    CHECK(writer >= 0 && write(writer, "x", 1) == 1 && read(n.fifo, text, 1) == 1);
    SAME(read(n.server, text, sizeof text), 6);
    struct sockaddr_un listening = named("/d/listening"), datagrams = named("/datagrams"), unused = named("/d/unused");
    struct sockaddr_un bound;
    socklen_t length = sizeof bound;
    CHECK(getpeername(n.client, (void *)&bound, &length) == 0 && strcmp(bound.sun_path, "/d/listening") == 0);
    int more = socket(AF_UNIX, SOCK_STREAM, 0);
    CHECK(connect(more, (void *)&listening, sizeof listening) == 0 && accept(n.listening, NULL, NULL) >= 0);
    SAME(recv(n.datagrams, text, sizeof text, 0), 8);
    CHECK(sendto(n.datagrams, "again", 5, 0, (void *)&datagrams, sizeof datagrams) == 5);
    SAME(recv(n.datagrams, text, sizeof text, 0), 5);
    struct sockaddr_un relative = named("/d/inner/relative");
    CHECK(sendto(n.datagrams, "there", 5, 0, (void *)&relative, sizeof relative) == 5);
    SAME(recv(n.relative, text, sizeof text, 0), 5);
    length = sizeof bound;
    CHECK(getsockname(n.relative, (void *)&bound, &length) == 0 && strcmp(bound.sun_path, "relative") == 0);
    CHECK(sendto(n.datagrams, "gone", 4, 0, (void *)&unused, sizeof unused) == -1);
    SAME(errno, ECONNREFUSED);
}

/* A session with a terminal of /pts. It has no /dev/pts/1, or another one. */
struct terminal {
    int master, slave;
    pid_t leader;
};

static void lead(int slave) {
    CHECK(setsid() == getpid() && ioctl(slave, TIOCSCTTY, 0) == 0);
    wait_for_word();
    char line[64] = "", name[64];
    SAME(tcgetpgrp(slave), getpid());
    CHECK(ttyname_r(slave, name, sizeof name) == 0 && strcmp(name, "/pts/1") == 0);
    SAME(read(open("/dev/tty", O_RDWR), line, sizeof line), 6);
    CHECK(strcmp(line, "typed\n") == 0 && write(slave, "out", 3) == 3);
    _exit(0);
}

static struct terminal make_terminal(void) {
    struct terminal t;
    int unlocked = 0, first = open("/pts/ptmx", O_RDWR | O_NOCTTY);
    t.master = open("/pts/ptmx", O_RDWR | O_NOCTTY);
    CHECK(first >= 0 && t.master >= 0 && ioctl(t.master, TIOCSPTLCK, &unlocked) == 0);
    t.slave = open("/pts/1", O_RDWR | O_NOCTTY);
    struct winsize size = {.ws_row = 33, .ws_col = 77};
    CHECK(t.slave >= 0 && close(first) == 0 && ioctl(t.master, TIOCSWINSZ, &size) == 0);
    CHECK(write(t.master, "typed\n", 6) == 6);
    CHECK((t.leader = fork()) >= 0);
    if (t.leader == 0) lead(t.slave);
    return t;
}

static void check_terminal(struct terminal t) {
    char text[64];
    struct winsize size;
    finish(t.leader);
    for (int length = 0; length < 10;) {
        int more = read(t.master, text + length, sizeof text - length);
        CHECK(more > 0);
        length += more;
    }
    CHECK(memcmp(text, "typed\r\nout", 10) == 0 && ioctl(t.slave, TIOCGWINSZ, &size) == 0);
    SAME(size.ws_row, 33);
    int next = open("/pts/ptmx", O_RDWR | O_NOCTTY), number = -1;
    CHECK(next >= 0 && ioctl(next, TIOCGPTN, &number) == 0);
    SAME(number, 0);
}

/* In a root directory of its own below the namespace's. */
static void below(void) {
    CHECK(chroot("/d") == 0 && chdir("/inner") == 0);
    wait_for_word();
    char here[64];
    CHECK(getcwd(here, sizeof here) != NULL && strcmp(here, "/inner") == 0);
    CHECK(access("/inner/leaf", F_OK) == 0 && access("/file", F_OK) != 0);
    _exit(0);
}

static void contained(void) {
    if (user != 0) map_users();
    CHECK(mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL) == 0);
    CHECK(mkdir("box", 0755) == 0 || errno == EEXIST);
    CHECK(mount("memory", "box", "tmpfs", MS_NOSUID, "size=8m,mode=750") == 0);
    char directory[512];
    CHECK(getcwd(directory, sizeof directory) != NULL && chdir("box") == 0);
    const char *const directories[] = {"work", "proc", "old", "dev", "pts", "over", "d", "d/inner", "queues", "sealed"};
    for (size_t i = 0; i < sizeof directories / sizeof *directories; i++) CHECK(mkdir(directories[i], 0711) == 0);
    CHECK(mount(directory, "work", NULL, MS_BIND, NULL) == 0);
    int kept = open("work/given", O_WRONLY | O_CREAT, 0600);
    CHECK(kept >= 0 && write(kept, "given", 5) == 5);
    close(kept);
    make("file", "");
    CHECK(mount("work/given", "file", NULL, MS_BIND, NULL) == 0);
    struct statvfs at;
    CHECK(statvfs("file", &at) == 0);
    unsigned long flags = at.f_flag & (ST_NOSUID | ST_NODEV | ST_NOEXEC);
    CHECK(mount("none", "file", NULL, MS_REMOUNT | MS_BIND | MS_RDONLY | flags, NULL) == 0);
    CHECK(mount("/dev", "dev", NULL, MS_BIND | MS_REC, NULL) == 0);
    CHECK(mount("proc", "proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL) == 0);
    CHECK(mount("proc/irq", "proc/irq", NULL, MS_BIND, NULL) == 0);
    CHECK(mount("none", "pts", "devpts", MS_NOSUID | MS_NOEXEC, "newinstance,ptmxmode=0666,mode=620") == 0);
    CHECK(mount(directory, "over", NULL, MS_BIND, NULL) == 0);
    CHECK(mount("none", "over", "tmpfs", MS_NOATIME, "mode=1777") == 0);
    make("over/top", "top");
    CHECK(mount("none", "over", NULL, MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOATIME, NULL) == 0);
    CHECK(mount("none", "queues", "mqueue", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL) == 0);
    /* A file system, not only a mount of it, that cannot be written to. */
    CHECK(mount("none", "sealed", "tmpfs", MS_NOSUID, "mode=751") == 0);
    make("sealed/kept", "kept");
    CHECK(mount("none", "sealed", NULL, MS_REMOUNT | MS_RDONLY | MS_NOSUID, "mode=751") == 0);
    CHECK(syscall(SYS_pivot_root, ".", "old") == 0 && chdir("/") == 0);
    CHECK(umount2("old", MNT_DETACH) == 0);

    make("f", "0123456789");
    CHECK(truncate("f", 3 << 20) == 0 && chmod("f", 04755) == 0 && link("f", "d/other") == 0);
    CHECK(symlink("../f", "d/link") == 0 && mkfifo("d/fifo", 0604) == 0);
    make("d/inner/leaf", "leaf");
    struct names names = make_names();
    mqd_t queue = mq_open("/queue", O_RDWR | O_CREAT, 0600, NULL);
    int same_queue = open("/queues/queue", O_RDWR);
    CHECK(queue >= 0 && same_queue >= 0 && mq_send(queue, "queued", 6, 3) == 0);
    struct terminal terminal = make_terminal();
    int has_attributes = setxattr("d/inner", "user.kept", "value", 5, 0) == 0;
    CHECK(user != 0 || mknod("null", S_IFCHR | 0666, makedev(1, 3)) == 0);
    struct timespec times[2] = {{1000000, 5}, {2000000, 7}};
    CHECK(utimensat(AT_FDCWD, "f", times, 0) == 0 && utimensat(AT_FDCWD, "d/inner", times, 0) == 0);
    CHECK(utimensat(AT_FDCWD, "d/inner/leaf", times, 0) == 0);
    CHECK(utimensat(AT_FDCWD, "d/link", times, AT_SYMLINK_NOFOLLOW) == 0);

    int file = open("/f", O_RDWR), read_only = open("/file", O_RDONLY), null = open("/dev/null", O_WRONLY);
    CHECK(file >= 0 && read_only >= 0 && null >= 0 && lseek(file, 4, SEEK_SET) == 4);
    make("gone", "gone");
    int gone = open("gone", O_RDWR), place = open("/d", O_RDONLY | O_DIRECTORY), path = open("/work", O_PATH);
    CHECK(gone >= 0 && place >= 0 && path >= 0 && unlink("gone") == 0);
    char *memory = mmap(NULL, 3 << 20, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    char *own = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE, read_only, 0);
    CHECK(memory != MAP_FAILED && own != MAP_FAILED);
    memory[2 << 20] = 'm';
    CHECK(utimensat(AT_FDCWD, "f", times, 0) == 0);
    own[0] = 'G';
    CHECK(chdir("/d/inner") == 0);
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) below();

    mounted(before, sizeof before);
    listed("/", files_before, sizeof files_before);
    listed("/over", files_before, sizeof files_before);
    listed("/sealed", files_before, sizeof files_before);
    wait_for_word();
    mounted(after, sizeof after);
    if (strcmp(before, after) != 0) {
        dprintf(1, "%s\nwere\n%s", after, before);
        fail(__LINE__, "mounts");
    }
    listed("/", files_after, sizeof files_after);
    listed("/over", files_after, sizeof files_after);
    listed("/sealed", files_after, sizeof files_after);
    if (strcmp(files_before, files_after) != 0) {
        dprintf(1, "%s\nwere\n%s", files_after, files_before);
        fail(__LINE__, "files");
    }
    char text[64] = "", found[64];
    CHECK(getcwd(text, sizeof text) != NULL && strcmp(text, "/d/inner") == 0);
    SAME(lseek(file, 0, SEEK_CUR), 4);
    contains(file, "0123456789");
    contains(gone, "gone");
    contains(read_only, "given");
    CHECK(memory[2 << 20] == 'm' && memory[1] == '1' && memory[1 << 20] == 0);
    CHECK(own[0] == 'G' && own[1] == 'i');
    memory[0] = 'M';
    contains(file, "M123");
    struct stat one, other;
    CHECK(fstat(file, &one) == 0 && stat("/d/other", &other) == 0);
    CHECK(one.st_ino == other.st_ino && one.st_dev == other.st_dev);
    CHECK(readlink("/d/link", found, sizeof found) == 4 && strncmp(found, "../f", 4) == 0);
    CHECK(!has_attributes || getxattr("/d/inner", "user.kept", found, sizeof found) == 5);
    CHECK(faccessat(place, "inner/leaf", F_OK, 0) == 0 && faccessat(path, "given", F_OK, 0) == 0);
    CHECK(open("/file", O_WRONLY) < 0 && errno == EROFS && open("/over/new", O_WRONLY | O_CREAT, 0600) < 0);
    int top = open("/over/top", O_RDONLY);
    contains(top, "top");
    SAME(write(null, "x", 1), 1);
    struct statvfs size;
    CHECK(statvfs("/", &size) == 0);
    SAME(size.f_blocks * size.f_frsize, 8 << 20);
    check_names(names);
    char message[8192];
    unsigned priority;
    SAME(mq_receive(same_queue, message, sizeof message, &priority), 6);
    SAME(priority, 3);
    CHECK(access("/queues/queue", F_OK) == 0 && mq_unlink("/queue") == 0 && access("/queues/queue", F_OK) != 0);
    contains(open("/sealed/kept", O_RDONLY), "kept");
    CHECK(mount("none", "/sealed", NULL, MS_REMOUNT | MS_BIND, NULL) == 0);
    CHECK(open("/sealed/new", O_WRONLY | O_CREAT, 0600) == -1 && errno == EROFS);
    check_terminal(terminal);
    finish(child);
    /* It has power over its mounts, and what is below them. */
    CHECK(umount2("/over", MNT_DETACH) == 0 && access("/over/given", F_OK) == 0);
    CHECK(mount("none", "/old", "tmpfs", 0, NULL) == 0);
    _exit(0);
}

int main(int argc, char **argv) {
    begin(argc, argv);
    user = geteuid();
    group = getegid();
    int arrived[2], onward[2];
    CHECK(pipe(arrived) == 0 && pipe(onward) == 0);
    there = arrived[1];
    go_on = onward[0];
    int flags = CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWIPC | (user != 0 ? CLONE_NEWUSER : 0);
    pid_t first = syscall(SYS_clone, flags | SIGCHLD, 0, 0, 0, 0);
    CHECK(first >= 0);
    if (first == 0) contained();
    char bytes[8];
    for (int got = 0; got < 3;) {
        int more = read(arrived[0], bytes, sizeof bytes);
        CHECK(more > 0);
        got += more;
    }
    ready();
    CHECK(access("box/f", F_OK) != 0 && access("given", F_OK) == 0);
    CHECK(write(onward[1], "xxx", 3) == 3);
    finish(first);
    ok();
}
