/* Mounts that show what is mounted below each other: a group, one that follows it, one that follows and has a group of its
 * own, a narrower one, and a group that is in two mount namespaces, as is the file system. As root, beside them, one that
 * cannot be mounted elsewhere, and file systems that are covered: by another one, and by one over the directory above. */
#include "mounts.h"
#include "own_users.h"

#include <sys/mount.h>
#include <sys/sysmacros.h>

static char before[1 << 18], after[1 << 18];

static void make(const char *path) {
    int fd = open(path, O_WRONLY | O_CREAT | O_EXCL, 0640);
    if (fd < 0) fail(__LINE__, "make %s", path);
    CHECK(write(fd, path, strlen(path)) == (ssize_t)strlen(path));
    close(fd);
}

static void has(const char *path, const char *text) {
    char found[256] = "";
    int fd = open(path, O_RDONLY);
    if (fd < 0) fail(__LINE__, "open %s", path);
    CHECK(read(fd, found, sizeof found - 1) >= 0);
    if (strcmp(found, text) != 0) fail(__LINE__, "%s is \"%s\", not \"%s\"", path, found, text);
    close(fd);
}

static dev_t device(const char *path) {
    struct stat stat_;
    if (stat(path, &stat_) != 0) fail(__LINE__, "look at %s", path);
    return stat_.st_dev;
}

static void shows(const char *path, const char *what, int shown) {
    if ((device(path) == device(what)) != shown) fail(__LINE__, "%s at %s: %d", what, path, !shown);
}

static void set(const char *path, unsigned long flags) {
    if (mount(NULL, path, NULL, flags, NULL) != 0) fail(__LINE__, "set %s", path);
}

static void memory(const char *path) {
    if (mount("memory", path, "tmpfs", MS_NOSUID, "size=1m") != 0) fail(__LINE__, "mount at %s", path);
}

static void show_at(const char *from, const char *to) {
    if (mount(from, to, NULL, MS_BIND, NULL) != 0) fail(__LINE__, "mount %s at %s", from, to);
}

/* In a namespace that was copied from the other one: its mounts are in the same groups. */
static void other(int in, int out) {
    CHECK(unshare(CLONE_NEWNS) == 0);
    memory("apart");
    int file = open("a/both", O_RDWR);
    CHECK(file >= 0);
    wait_for_word();
    char byte;
    CHECK(read(in, &byte, 1) == 1);
    shows("a/inner/x", "b/inner/x", 1);
    CHECK(access("a/inner/x/new", F_OK) == 0 && access("e/x/new", F_OK) == 0);
    CHECK(access("c/far/new", F_OK) == 0 && access("d/far/new", F_OK) == 0 && access("a/far/new", F_OK) != 0);
    has("a/written", "a/written");
    CHECK(pwrite(file, "B", 1, 0) == 1);
    memory("b/from");
    make("b/from/other");
    CHECK(write(out, "x", 1) == 1 && read(in, &byte, 1) == 1);
    _exit(0);
}

/* Those of a user's belong to another user namespace than the job's, and are not uncovered. */
static void hide(void) {
    memory("alone");
    make("alone/file");
    set("alone", MS_UNBINDABLE);
    memory("covered");
    make("covered/below");
    int kept = open("covered", O_RDONLY | O_DIRECTORY);
    memory("covered");
    make("covered/above");
    close(kept);
    memory("under/deep");
    make("under/deep/file");
    memory("under");
    make("under/top");
}

static void hidden(void) {
    has("alone/file", "alone/file");
    CHECK(mount("alone", "apart", NULL, MS_BIND, NULL) == -1 && errno == EINVAL);
    has("covered/above", "covered/above");
    CHECK(access("covered/below", F_OK) != 0 && umount("covered") == 0);
    has("covered/below", "covered/below");
    has("under/top", "under/top");
    CHECK(access("under/deep", F_OK) != 0 && umount("under") == 0);
    has("under/deep/file", "under/deep/file");
}

static void contained(void) {
    if (user != 0) map_users();
    set("/", MS_REC | MS_PRIVATE);
    const char *const names[] = {"a", "b", "c", "d", "e", "alone", "covered", "under", "under/deep", "apart"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) CHECK(mkdir(names[i], 0755) == 0 || errno == EEXIST);
    memory("a");
    CHECK(mkdir("a/inner", 0700) == 0 && mkdir("a/inner/x", 0700) == 0 && mkdir("a/far", 0700) == 0);
    CHECK(mkdir("a/from", 0700) == 0);
    make("a/both");
    set("a", MS_SHARED);
    show_at("a", "b");
    show_at("a", "c");
    set("c", MS_SLAVE);
    set("c", MS_SHARED);
    show_at("c", "d");
    show_at("a/inner", "e");
    if (user == 0) hide();
    int to[2], back[2];
    CHECK(pipe(to) == 0 && pipe(back) == 0);
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) other(to[0], back[1]);
    mounted(before, sizeof before);
    wait_for_word();
    mounted(after, sizeof after);
    if (strcmp(before, after) != 0) {
        dprintf(1, "%s\nwere\n%s", after, before);
        fail(__LINE__, "mounts");
    }
    shows("a", "b", 1);
    shows("a", "d", 1);
    memory("a/inner/x");
    make("a/inner/x/new");
    make("a/written");
    CHECK(access("b/inner/x/new", F_OK) == 0 && access("c/inner/x/new", F_OK) == 0);
    CHECK(access("d/inner/x/new", F_OK) == 0 && access("e/x/new", F_OK) == 0);
    memory("c/far");
    make("c/far/new");
    CHECK(access("d/far/new", F_OK) == 0 && access("a/far/new", F_OK) != 0 && access("b/far/new", F_OK) != 0);
    char byte;
    CHECK(write(to[1], "x", 1) == 1 && read(back[0], &byte, 1) == 1);
    has("a/both", "B/both");
    CHECK(access("a/from/other", F_OK) == 0 && access("d/from/other", F_OK) == 0);
    shows("apart", ".", 1);
    CHECK(write(to[1], "x", 1) == 1);
    finish(child);
    if (user == 0) hidden();
    _exit(0);
}

int main(int argc, char **argv) {
    begin(argc, argv);
    user = geteuid();
    group = getegid();
    char place[] = "groups-XXXXXX";
    CHECK(mkdtemp(place) != NULL && chdir(place) == 0);
    int arrived[2], onward[2];
    CHECK(pipe(arrived) == 0 && pipe(onward) == 0);
    there = arrived[1];
    go_on = onward[0];
    int flags = CLONE_NEWNS | (user != 0 ? CLONE_NEWUSER : 0);
    pid_t first = syscall(SYS_clone, flags | SIGCHLD, 0, 0, 0, 0);
    CHECK(first >= 0);
    if (first == 0) contained();
    char bytes[8];
    for (int got = 0; got < 2;) {
        int more = read(arrived[0], bytes, sizeof bytes);
        CHECK(more > 0);
        got += more;
    }
    ready();
    CHECK(write(onward[1], "xx", 2) == 2);
    finish(first);
    ok();
}
