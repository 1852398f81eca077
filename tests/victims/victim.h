/* What every victim needs: it prints READY, waits for a file to appear, checks itself and prints OK or FAIL. */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/select.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/timerfd.h>
#include <sys/types.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

/* The first argument: the file whose appearance means that the state is to be checked. */
static const char *go;
/* The second argument, if any. */
static const char *mode = "";

__attribute__((noreturn, format(printf, 2, 3))) static void fail(int line, const char *format, ...) {
    int error = errno;
    char text[512];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    dprintf(1, "FAIL line %d: %s (pid %d, errno %d: %s)\n", line, text, (int)getpid(), error, strerror(error));
    _exit(1);
}

#define CHECK(condition) ((condition) ? (void)0 : fail(__LINE__, "%s", #condition))
#define SAME(left, right)                                                                             \
    do {                                                                                              \
        long long l_ = (long long)(left), r_ = (long long)(right);                                    \
        if (l_ != r_) fail(__LINE__, "%s is %lld, should be %lld (%s)", #left, l_, r_, #right);        \
    } while (0)

/* Whether signals with handlers may come while we sleep. */
static int disturbed;

static void nap(long milliseconds) {
    struct timespec left = {milliseconds / 1000, milliseconds % 1000 * 1000000};
    while (nanosleep(&left, &left) != 0) CHECK(disturbed && errno == EINTR);
}

static void begin(int argc, char **argv) {
    /* Descriptors of whoever runs the tests are not ours to keep. */
    syscall(SYS_close_range, 3u, ~0u, 0u);
    CHECK(argc > 1);
    go = argv[1];
    if (argc > 2) mode = argv[2];
}

static void wait_for_go(void) {
    while (access(go, F_OK) != 0) nap(10);
}

__attribute__((unused)) static void ready(void) {
    CHECK(write(1, "READY\n", 6) == 6);
    wait_for_go();
}

__attribute__((noreturn, unused)) static void ok(void) {
    dprintf(1, "OK\n");
    _exit(0);
}

/* For who is not root: from now on we are root of a user namespace of our own, and may make others that belong to it. */
__attribute__((unused)) static void be_root_somewhere(void) {
    uid_t uid = geteuid();
    gid_t gid = getegid();
    if (uid == 0) return;
    CHECK(unshare(CLONE_NEWUSER) == 0);
    const char *names[] = {"setgroups", "uid_map", "gid_map"};
    for (int i = 0; i < 3; i++) {
        char path[64], text[64];
        snprintf(path, sizeof path, "/proc/self/%s", names[i]);
        snprintf(text, sizeof text, i == 0 ? "deny" : "0 %u 1", i == 1 ? uid : gid);
        int fd = open(path, O_WRONLY | O_CLOEXEC);
        CHECK(fd >= 0 && write(fd, text, strlen(text)) == (ssize_t)strlen(text) && close(fd) == 0);
    }
}

/* Memory that all processes forked later share. */
__attribute__((unused)) static void *shared(size_t size) {
    void *at = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(at != MAP_FAILED);
    return at;
}

__attribute__((unused)) static size_t slurp(const char *path, char *to, size_t size) {
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) fail(__LINE__, "open %s", path);
    size_t length = 0;
    for (ssize_t n; (n = read(fd, to + length, size - 1 - length)) > 0;) length += n;
    to[length] = 0;
    close(fd);
    return length;
}

/* Waits until a condition holds, a minute at most. */
#define AWAIT(condition)                                                              \
    do {                                                                              \
        for (int i_ = 0; !(condition); i_++) {                                        \
            if (i_ > 6000) fail(__LINE__, "never came true: %s", #condition);         \
            nap(10);                                                                  \
        }                                                                             \
    } while (0)

__attribute__((unused)) static double now(clockid_t clock) {
    struct timespec time;
    CHECK(clock_gettime(clock, &time) == 0);
    return time.tv_sec + time.tv_nsec / 1e9;
}
