/* Pipes and FIFOs with data in them. */
#include "victim.h"

static unsigned char pattern(int i) { return i * 7 + i / 251; }

int main(int argc, char **argv) {
    begin(argc, argv);
    int full[2], packets[2], empty[2], between[2], back[2];
    CHECK(pipe(full) == 0 && pipe2(packets, O_DIRECT | O_NONBLOCK) == 0 && pipe2(empty, O_CLOEXEC) == 0);
    CHECK(pipe(between) == 0 && pipe(back) == 0);
    int capacity = fcntl(full[1], F_SETPIPE_SZ, 1 << 18);
    CHECK(capacity >= 1 << 18);
    unsigned char data[65536];
    for (int i = 0; i < 65536; i++) data[i] = pattern(i);
    for (int at = 0; at < 65536;) at += write(full[1], data + at, 65536 - at < 10007 ? 65536 - at : 10007);
    CHECK(write(packets[1], "one", 3) == 3 && write(packets[1], "three", 5) == 5);
    char name[256];
    snprintf(name, sizeof name, "%s.fifo", strrchr(go, '/') + 1);
    CHECK(mkfifo(name, 0640) == 0);
    int fifo_in = open(name, O_RDONLY | O_NONBLOCK), fifo_out = open(name, O_WRONLY);
    CHECK(fifo_in >= 0 && fifo_out >= 0 && write(fifo_out, "through the name", 16) == 16);
    /* Nobody has written yet, somebody has, and to one that was opened for reading again since. */
    struct pollfd waiting[3];
    for (int i = 0; i < 3; i++) {
        char other[300];
        snprintf(other, sizeof other, "%s-%d", name, i);
        CHECK(mkfifo(other, 0600) == 0);
        waiting[i] = (struct pollfd){open(other, O_RDONLY | O_NONBLOCK), POLLIN, 0};
        int writer = i == 0 ? -1 : open(other, O_WRONLY);
        if (i > 0) CHECK(write(writer, "last words", 10) == 10 && close(writer) == 0);
        if (i == 2) waiting[i].fd = open(other, O_RDONLY | O_NONBLOCK);
        CHECK(waiting[i].fd >= 0);
    }
    pid_t child = fork();
    if (child == 0) {
        /* Sends back whatever comes. */
        close(between[1]);
        close(back[0]);
        char text[64];
        ssize_t n;
        while ((n = read(between[0], text, sizeof text)) > 0) CHECK(write(back[1], text, n) == n);
        SAME(n, 0);
        _exit(9);
    }
    close(between[0]);
    close(back[1]);
    CHECK(write(between[1], "echo", 4) == 4);
    ready();
    SAME(poll(waiting, 3, 0), 2);
    SAME(waiting[0].revents, 0);
    SAME(waiting[1].revents, POLLIN | POLLHUP);
    SAME(waiting[2].revents, POLLIN);
    SAME(fcntl(full[0], F_GETPIPE_SZ), capacity);
    static unsigned char got[65536];
    for (int at = 0; at < 65536;) {
        ssize_t n = read(full[0], got + at, 65536 - at);
        CHECK(n > 0);
        at += n;
    }
    CHECK(memcmp(got, data, 65536) == 0);
    char text[64];
    SAME(read(packets[0], text, 64), 3);
    SAME(read(packets[0], text, 64), 5);
    CHECK(read(packets[0], text, 64) == -1 && errno == EAGAIN);
    CHECK(fcntl(packets[0], F_GETFL) & O_NONBLOCK);
    CHECK(fcntl(packets[1], F_GETFL) & O_DIRECT);
    CHECK(fcntl(empty[0], F_GETFD) & FD_CLOEXEC);
    CHECK(!(fcntl(full[0], F_GETFD) & FD_CLOEXEC));
    CHECK(write(empty[1], "a", 1) == 1 && read(empty[0], text, 64) == 1 && *text == 'a');
    SAME(read(fifo_in, text, 64), 16);
    CHECK(memcmp(text, "through the name", 16) == 0);
    CHECK(read(fifo_in, text, 64) == -1 && errno == EAGAIN);
    int again = open(name, O_WRONLY | O_NONBLOCK);
    CHECK(again >= 0 && write(again, "new", 3) == 3);
    SAME(read(fifo_in, text, 64), 3);
    SAME(read(back[0], text, 4), 4);
    CHECK(write(between[1], "more", 4) == 4);
    SAME(read(back[0], text, 4), 4);
    CHECK(memcmp(text, "more", 4) == 0);
    close(between[1]);
    SAME(read(back[0], text, 4), 0);
    int status;
    SAME(waitpid(child, &status, 0), child);
    SAME(WEXITSTATUS(status), 9);
    ok();
}
