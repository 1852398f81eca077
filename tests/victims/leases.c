/* Leases, one of them being broken, and who the kernel says took a flock(2) lock. */
#include "victim.h"

static volatile sig_atomic_t signals;

static void count(int number) {
    (void)number;
    signals++;
}

/* The process that /proc/locks names for the flock(2) lock on `fd`. */
static int locker(int fd) {
    char path[64], text[1024];
    snprintf(path, sizeof path, "/proc/self/fdinfo/%d", fd);
    slurp(path, text, sizeof text);
    char *line = strstr(text, "FLOCK");
    CHECK(line);
    int pid;
    CHECK(sscanf(line, "FLOCK ADVISORY WRITE %d", &pid) == 1);
    return pid;
}

int main(int argc, char **argv) {
    begin(argc, argv);
    disturbed = 1;
    signal(SIGUSR1, count);
    char names[4][256];
    int fds[4];
    for (int i = 0; i < 4; i++) {
        snprintf(names[i], sizeof *names, "%s.lease%d", strrchr(go, '/') + 1, i);
        CHECK(close(open(names[i], O_RDWR | O_CREAT, 0600)) == 0);
        fds[i] = open(names[i], i % 2 == 0 ? O_RDONLY : O_RDWR);
        CHECK(fds[i] >= 0);
    }
    CHECK(fcntl(fds[0], F_SETLEASE, F_RDLCK) == 0);
    CHECK(fcntl(fds[1], F_SETLEASE, F_WRLCK) == 0);
    CHECK(fcntl(fds[2], F_SETLEASE, F_WRLCK) == 0 && fcntl(fds[2], F_SETSIG, SIGUSR1) == 0);
    CHECK(open(names[2], O_RDONLY | O_NONBLOCK) == -1 && errno == EWOULDBLOCK);
    SAME(signals, 1);
    CHECK(flock(fds[3], LOCK_EX) == 0);
    ready();
    SAME(fcntl(fds[0], F_GETLEASE), F_RDLCK);
    SAME(fcntl(fds[1], F_GETLEASE), F_WRLCK);
    SAME(fcntl(fds[2], F_GETLEASE), F_RDLCK);
    /* No signal for what had been signalled before. */
    SAME(signals, 1);
    CHECK(open(names[2], O_RDONLY | O_NONBLOCK) == -1 && errno == EWOULDBLOCK);
    CHECK(fcntl(fds[2], F_SETLEASE, F_RDLCK) == 0);
    int reader = open(names[2], O_RDONLY | O_NONBLOCK);
    CHECK(reader >= 0);
    SAME(locker(fds[3]), getpid());
    ok();
}
