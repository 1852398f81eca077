/* fanotify groups: marks on files and directories; root's on mounts and file systems, too. */
#include "victim.h"
#include <libgen.h>
#include <sys/fanotify.h>

static char place[512], file[600], gone[600];

/* What the kernel shows of a group, but for the number of a mount, which is another one elsewhere. */
static void shown(int group, char *text, size_t room) {
    char path[64], line[512];
    snprintf(path, sizeof path, "/proc/self/fdinfo/%d", group);
    FILE *from = fopen(path, "r");
    CHECK(from);
    text[0] = 0;
    while (fgets(line, sizeof line, from)) {
        if (strncmp(line, "fanotify", 8) != 0) continue;
        char *mount = strstr(line, "mnt_id:");
        char *rest = mount ? strchr(mount, ' ') : NULL;
        if (mount && rest) memmove(mount, rest, strlen(rest) + 1);
        strncat(text, line, room - strlen(text) - 1);
    }
    fclose(from);
}

/* Reads until an event of this mask comes that was caused here. */
static void await(int group, uint64_t mask, int with_file) {
    static char buffer[8192] __attribute__((aligned(8)));
    for (;;) {
        struct pollfd wait = {.fd = group, .events = POLLIN};
        CHECK(poll(&wait, 1, 60000) == 1);
        ssize_t length = read(group, buffer, sizeof buffer);
        CHECK(length > 0);
        int found = 0;
        for (struct fanotify_event_metadata *event = (void *)buffer; FAN_EVENT_OK(event, length);
             event = FAN_EVENT_NEXT(event, length)) {
            char name[600] = "", link[64];
            if (event->fd >= 0) {
                snprintf(link, sizeof link, "/proc/self/fd/%d", event->fd);
                CHECK(readlink(link, name, sizeof name - 1) > 0 && close(event->fd) == 0);
            }
            if ((event->mask & mask) && (!with_file || strcmp(name, file) == 0)) found = 1;
        }
        if (found) return;
    }
}

int main(int argc, char **argv) {
    begin(argc, argv);
    char copy[512], cwd[256];
    snprintf(copy, sizeof copy, "%s", go);
    CHECK(getcwd(cwd, sizeof cwd));
    snprintf(place, sizeof place, "%s/watched-%s", cwd, basename(copy));
    snprintf(file, sizeof file, "%s/file", place);
    snprintf(gone, sizeof gone, "%s/gone", place);
    CHECK(mkdir(place, 0755) == 0);
    int fd = open(file, O_RDWR | O_CREAT, 0644), nameless = open(gone, O_RDWR | O_CREAT, 0644);
    CHECK(fd >= 0 && nameless >= 0);
    int root = geteuid() == 0;
    int files = fanotify_init(FAN_CLASS_NOTIF | FAN_NONBLOCK | (root ? 0 : FAN_REPORT_FID), O_RDONLY);
    if (files < 0 && !root && errno == EPERM) {
        /* Linux before 5.13 */
        ready();
        ok();
    }
    CHECK(files >= 0);
    CHECK(fanotify_mark(files, FAN_MARK_ADD, FAN_MODIFY | FAN_EVENT_ON_CHILD, AT_FDCWD, place) == 0);
    CHECK(fanotify_mark(files, FAN_MARK_ADD, FAN_CLOSE_WRITE, AT_FDCWD, file) == 0);
    CHECK(fanotify_mark(files, FAN_MARK_ADD | FAN_MARK_IGNORED_MASK | FAN_MARK_IGNORED_SURV_MODIFY, FAN_ACCESS, AT_FDCWD, file) == 0);
    CHECK(fanotify_mark(files, FAN_MARK_ADD, FAN_MODIFY, AT_FDCWD, gone) == 0);
    CHECK(unlink(gone) == 0);
    int mounts = -1;
    if (root) {
        mounts = fanotify_init(FAN_CLASS_NOTIF | FAN_UNLIMITED_QUEUE | FAN_CLOEXEC, O_RDONLY | O_LARGEFILE);
        CHECK(mounts >= 0);
        CHECK(fanotify_mark(mounts, FAN_MARK_ADD | FAN_MARK_MOUNT, FAN_CLOSE_WRITE, AT_FDCWD, place) == 0);
        CHECK(fanotify_mark(mounts, FAN_MARK_ADD | FAN_MARK_FILESYSTEM, FAN_MODIFY, AT_FDCWD, place) == 0);
    }
    static char before[2][4096], after[4096];
    shown(files, before[0], sizeof before[0]);
    if (root) shown(mounts, before[1], sizeof before[1]);

    ready();

    char buffer[64];
    SAME(read(files, buffer, sizeof buffer), -1);
    SAME(errno, EAGAIN);
    CHECK(write(nameless, "x", 1) == 1);
    await(files, FAN_MODIFY, 0);
    int again = open(file, O_WRONLY);
    CHECK(again >= 0 && write(again, "x", 1) == 1);
    await(files, FAN_MODIFY, root);
    if (root) await(mounts, FAN_MODIFY, 1);
    CHECK(close(again) == 0);
    await(files, FAN_CLOSE_WRITE, root);
    if (root) await(mounts, FAN_CLOSE_WRITE, 1);
    shown(files, after, sizeof after);
    /* The file without a name is another one after a restart. */
    char *same = strstr(after, "flags:"), *was = strstr(before[0], "flags:");
    CHECK(same && was && strncmp(same, was, strcspn(was, "\n")) == 0);
    int lines = 0;
    for (char *at = after; (at = strchr(at, '\n')); at++) lines++;
    SAME(lines, 4);
    CHECK(strstr(after, "mflags:40 ") && strstr(after, "ignored_mask:1 "));
    if (root) {
        shown(mounts, after, sizeof after);
        if (strcmp(after, before[1]) != 0) fail(__LINE__, "%s instead of %s", after, before[1]);
        CHECK(fcntl(mounts, F_GETFD) == FD_CLOEXEC && fcntl(files, F_GETFD) == 0);
    }
    ok();
}
