/* inotify: a directory far from where the program works, and one in which something happens all the time. */
#include "victim.h"
#include <sys/inotify.h>

static atomic_int stop, made;

static void *maker(void *unused) {
    (void)unused;
    for (int n = 0; !stop; n++) {
        char name[64];
        snprintf(name, sizeof name, "busy/%d", n);
        int file = open(name, O_CREAT | O_WRONLY, 0600);
        CHECK(file >= 0 && close(file) == 0 && unlink(name) == 0);
        made = n + 1;
        nap(5);
    }
    return NULL;
}

/* Reads what there is; every file made is told of, once and in order. */
static void take(int queue, int watch, int *seen) {
    char buffer[65536] __attribute__((aligned(8)));
    ssize_t length = read(queue, buffer, sizeof buffer);
    CHECK(length > 0);
    for (char *at = buffer; at < buffer + length;) {
        struct inotify_event *event = (struct inotify_event *)at;
        SAME(event->wd, watch);
        SAME(atoi(event->name), (*seen)++);
        at += sizeof *event + event->len;
    }
}

int main(int argc, char **argv) {
    begin(argc, argv);
    CHECK(mkdir("busy", 0700) == 0 && mkdir("a", 0700) == 0 && mkdir("a/b", 0700) == 0 && mkdir("a/b/c", 0700) == 0);
    int far = inotify_init1(IN_NONBLOCK), queue = inotify_init1(0);
    int watch = inotify_add_watch(queue, "busy", IN_CREATE);
    CHECK(watch >= 0 && inotify_add_watch(far, "a/b/c", IN_CREATE) >= 0);
    pthread_t thread;
    CHECK(pthread_create(&thread, NULL, maker, NULL) == 0);
    CHECK(write(1, "READY\n", 6) == 6);
    int seen = 0;
    while (access(go, F_OK) != 0) {
        take(queue, watch, &seen);
        /* Most of the time something is left to be read. */
        nap(4);
    }
    stop = 1;
    CHECK(pthread_join(thread, NULL) == 0);
    while (seen < made) take(queue, watch, &seen);
    SAME(seen, made);
    char text[4096];
    CHECK(read(far, text, sizeof text) == -1 && errno == EAGAIN);
    int file = open("a/b/c/file", O_CREAT | O_WRONLY, 0600);
    CHECK(file >= 0 && read(far, text, sizeof text) > 0);
    SAME(strcmp(((struct inotify_event *)text)->name, "file"), 0);
    CHECK(unlink("a/b/c/file") == 0 && rmdir("a/b/c") == 0 && rmdir("a/b") == 0 && rmdir("a") == 0 && rmdir("busy") == 0);
    ok();
}
