/* A mount namespace with directories on top of each other (overlay), with changes and without, a part of them mounted
 * elsewhere, files of every layer open and mapped; as root, also a view of the kernel's devices (sysfs) as a network
 * namespace of its own sees it, and changes that are not written to disk at once. */
#include "mounts.h"
#include "own_users.h"

#include <net/if.h>
#include <sys/ioctl.h>
#include <sys/mount.h>

static char before[1 << 18], after[1 << 18];

static void make(const char *path, const char *text) {
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0640);
    if (fd < 0) fail(__LINE__, "make %s", path);
    CHECK(write(fd, text, strlen(text)) == (ssize_t)strlen(text));
    close(fd);
}

static void contains(int fd, const char *text) {
    char found[64] = "";
    CHECK(fd >= 0 && pread(fd, found, sizeof found - 1, 0) >= 0);
    if (strcmp(found, text) != 0) fail(__LINE__, "\"%s\" is not \"%s\"", found, text);
}

static void contained(const char *place) {
    if (user != 0) map_users();
    CHECK(mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) == 0);
    char options[4096], path[1024];
    snprintf(options, sizeof options, "lowerdir=%s/top:%s/bottom,upperdir=%s/upper,workdir=%s/work%s", place, place, place,
             place, user != 0 ? ",userxattr" : ",volatile");
    CHECK(mount("layers", "all", "overlay", MS_NODEV, options) == 0);
    snprintf(options, sizeof options, "lowerdir=%s/top:%s/bottom%s", place, place, user != 0 ? ",userxattr" : "");
    CHECK(mount("layers", "seen", "overlay", 0, options) == 0);
    snprintf(path, sizeof path, "%s/all/directory", place);
    CHECK(mount(path, "part", NULL, MS_BIND, NULL) == 0);
    CHECK(mount(NULL, "part", NULL, MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NODEV, NULL) == 0);
    if (user == 0) CHECK(mount("system", "system", "sysfs", MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL) == 0);
    int lower = open("all/lower", O_RDONLY), changed = open("all/changed", O_RDWR), made, gone;
    CHECK(lower >= 0 && changed >= 0 && pwrite(changed, "C", 1, 0) == 1);
    make("all/made", "made");
    make("all/gone", "gone");
    CHECK((made = open("all/made", O_RDWR)) >= 0 && (gone = open("all/gone", O_RDONLY)) >= 0 && unlink("all/gone") == 0);
    CHECK(unlink("all/removed") == 0);
    char *shared = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, made, 0);
    char *own = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE, lower, 0);
    CHECK(shared != MAP_FAILED && own != MAP_FAILED);
    own[0] = 'L';
    CHECK(chdir("all/directory") == 0);
    mounted(before, sizeof before);
    wait_for_word();
    mounted(after, sizeof after);
    if (strcmp(before, after) != 0) {
        dprintf(1, "%s\nwere\n%s", after, before);
        fail(__LINE__, "mounts");
    }
    CHECK(access("inner", F_OK) == 0 && chdir("../..") == 0);
    contains(lower, "lower");
    contains(changed, "Changed");
    contains(gone, "gone");
    contains(open("seen/changed", O_RDONLY), "changed");
    contains(open("seen/removed", O_RDONLY), "removed");
    CHECK(access("all/removed", F_OK) == -1 && errno == ENOENT);
    CHECK(open("seen/new", O_WRONLY | O_CREAT, 0600) == -1 && errno == EROFS);
    CHECK(open("part/new", O_WRONLY | O_CREAT, 0600) == -1 && errno == EROFS && access("part/inner", F_OK) == 0);
    shared[0] = 'M';
    contains(made, "Made");
    contains(open("all/made", O_RDONLY), "Made");
    CHECK(own[0] == 'L' && own[1] == 'o');
    make("all/later", "later");
    contains(open("upper/later", O_RDONLY), "later");
    if (user == 0) {
        contains(open("system/class/net/lo/mtu", O_RDONLY), "12345\n");
        CHECK(access("system/kernel", F_OK) == 0);
    }
    CHECK(unlink("all/later") == 0);
    _exit(0);
}

int main(int argc, char **argv) {
    begin(argc, argv);
    user = geteuid();
    group = getegid();
    char place[512], name[] = "layers-XXXXXX";
    CHECK(mkdtemp(name) != NULL && chmod(name, 0755) == 0 && chdir(name) == 0 && getcwd(place, sizeof place) != NULL);
    const char *const names[] = {"top", "bottom", "upper", "work", "all", "seen", "part", "system", "bottom/directory"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) CHECK(mkdir(names[i], 0755) == 0);
    make("bottom/lower", "below");
    make("top/lower", "lower");
    make("bottom/changed", "changed");
    make("top/removed", "removed");
    make("bottom/directory/inner", "inner");
    int arrived[2], onward[2];
    CHECK(pipe(arrived) == 0 && pipe(onward) == 0);
    there = arrived[1];
    go_on = onward[0];
    int flags = CLONE_NEWNS | (user != 0 ? CLONE_NEWUSER : CLONE_NEWNET);
    pid_t first = syscall(SYS_clone, flags | SIGCHLD, 0, 0, 0, 0);
    CHECK(first >= 0);
    if (first == 0) {
        struct ifreq lo = {.ifr_name = "lo", .ifr_mtu = 12345};
        int any = socket(AF_INET, SOCK_DGRAM, 0);
        CHECK(user != 0 || ioctl(any, SIOCSIFMTU, &lo) == 0);
        close(any);
        contained(place);
    }
    char byte;
    CHECK(read(arrived[0], &byte, 1) == 1);
    ready();
    CHECK(write(onward[1], "x", 1) == 1);
    finish(first);
    ok();
}
