/* File locks of all three kinds, and robust locks in a file that is mapped. */
#include "victim.h"

static struct flock range(int type, long start, long length) {
    return (struct flock){.l_type = type, .l_whence = SEEK_SET, .l_start = start, .l_len = length};
}

static pthread_mutex_t *robust;

static void *holder(void *unused) {
    CHECK(pthread_mutex_lock(&robust[1]) == 0);
    atomic_store((atomic_int *)unused, 1);
    for (;;) pause();
}

/* Locks of two threads in a file: what is left there is not what was saved. */
static void hold_robust(void) {
    char name[256];
    snprintf(name, sizeof name, "%s.robust", strrchr(go, '/') + 1);
    int fd = open(name, O_RDWR | O_CREAT, 0600);
    CHECK(fd >= 0 && ftruncate(fd, 4096) == 0);
    robust = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    CHECK(robust != MAP_FAILED && close(fd) == 0);
    pthread_mutexattr_t attributes;
    CHECK(pthread_mutexattr_init(&attributes) == 0);
    CHECK(pthread_mutexattr_setpshared(&attributes, PTHREAD_PROCESS_SHARED) == 0);
    CHECK(pthread_mutexattr_setrobust(&attributes, PTHREAD_MUTEX_ROBUST) == 0);
    for (int i = 0; i < 2; i++) CHECK(pthread_mutex_init(&robust[i], &attributes) == 0);
    CHECK(pthread_mutex_lock(&robust[0]) == 0);
    static atomic_int holds;
    pthread_t thread;
    CHECK(pthread_create(&thread, NULL, holder, &holds) == 0);
    AWAIT(atomic_load(&holds));
}

int main(int argc, char **argv) {
    begin(argc, argv);
    hold_robust();
    char names[3][256];
    int fds[3];
    for (int i = 0; i < 3; i++) {
        snprintf(names[i], sizeof *names, "%s.lock%d", strrchr(go, '/') + 1, i);
        fds[i] = open(names[i], O_RDWR | O_CREAT, 0600);
        CHECK(fds[i] >= 0 && ftruncate(fds[i], 1000) == 0);
    }
    CHECK(flock(fds[0], LOCK_EX) == 0);
    struct flock lock = range(F_WRLCK, 10, 20);
    CHECK(fcntl(fds[1], F_SETLK, &lock) == 0);
    lock = range(F_RDLCK, 100, 0);
    CHECK(fcntl(fds[1], F_SETLK, &lock) == 0);
    lock = range(F_WRLCK, 500, 5);
    CHECK(fcntl(fds[2], F_OFD_SETLK, &lock) == 0);
    ready();
    int shared_lock = open(names[0], O_RDWR);
    CHECK(flock(shared_lock, LOCK_SH | LOCK_NB) == -1 && errno == EWOULDBLOCK);
    CHECK(flock(fds[0], LOCK_SH | LOCK_NB) == 0);
    CHECK(flock(shared_lock, LOCK_SH | LOCK_NB) == 0);
    pid_t me = getpid(), child = fork();
    if (child == 0) {
        for (int i = 0; i < 2; i++) SAME(pthread_mutex_trylock(&robust[i]), EBUSY);
        int own = open(names[1], O_RDWR), third = open(names[2], O_RDWR);
        struct flock probe = range(F_WRLCK, 0, 0);
        CHECK(fcntl(own, F_GETLK, &probe) == 0);
        SAME(probe.l_type, F_WRLCK);
        SAME(probe.l_pid, me);
        SAME(probe.l_start, 10);
        SAME(probe.l_len, 20);
        probe = range(F_WRLCK, 30, 0);
        CHECK(fcntl(own, F_GETLK, &probe) == 0);
        SAME(probe.l_type, F_RDLCK);
        SAME(probe.l_start, 100);
        SAME(probe.l_len, 0);
        probe = range(F_RDLCK, 200, 1);
        CHECK(fcntl(own, F_SETLK, &probe) == 0);
        probe = range(F_RDLCK, 0, 0);
        CHECK(fcntl(third, F_OFD_GETLK, &probe) == 0);
        SAME(probe.l_type, F_WRLCK);
        SAME(probe.l_pid, -1);
        SAME(probe.l_start, 500);
        SAME(probe.l_len, 5);
        _exit(0);
    }
    int status;
    SAME(waitpid(child, &status, 0), child);
    SAME(status, 0);
    CHECK(pthread_mutex_unlock(&robust[0]) == 0);
    SAME(pthread_mutex_trylock(&robust[1]), EBUSY);
    ok();
}
