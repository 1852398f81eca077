/* Things that cannot be saved; the mode says which. */
#include "victim.h"
#include <linux/memfd.h>
#include <linux/userfaultfd.h>
#include <mqueue.h>
#include <sys/ioctl.h>
#include <sys/msg.h>
#include <sys/shm.h>
#ifndef UFFD_USER_MODE_ONLY
#define UFFD_USER_MODE_ONLY 1
#endif
#define HUGE_PAGE (2 << 20)

static int is(const char *name) { return strcmp(mode, name) == 0; }

/* What the kernel has not got is said so. */
__attribute__((noreturn)) static void missing(void) {
    dprintf(1, "MISSING %s\n", strerror(errno));
    _exit(0);
}

static void *map(int protection, int how, int fd) {
    void *at = mmap(NULL, HUGE_PAGE, protection, how, fd, 0);
    if (at == MAP_FAILED) missing();
    return at;
}

int main(int argc, char **argv) {
    begin(argc, argv);
    const int rw = PROT_READ | PROT_WRITE;
    if (is("huge-memfd")) {
        int fd = memfd_create("huge", MFD_HUGETLB);
        if (fd < 0 || ftruncate(fd, HUGE_PAGE) != 0) missing();
        map(rw, MAP_PRIVATE | MAP_NORESERVE, fd);
        close(fd);
    } else if (is("secret")) {
        int fd = syscall(447, 0);
        if (fd < 0 || ftruncate(fd, HUGE_PAGE) != 0) missing();
        map(rw, MAP_SHARED, fd);
        close(fd);
    } else if (is("userfaultfd")) {
        int fd = syscall(SYS_userfaultfd, O_CLOEXEC | UFFD_USER_MODE_ONLY);
        if (fd < 0) missing();
        struct uffdio_api api = {.api = UFFD_API};
        CHECK(ioctl(fd, UFFDIO_API, &api) == 0);
        void *at = map(rw, MAP_PRIVATE | MAP_ANONYMOUS, -1);
        struct uffdio_register range = {{(unsigned long)at, HUGE_PAGE}, UFFDIO_REGISTER_MODE_MISSING, 0};
        CHECK(ioctl(fd, UFFDIO_REGISTER, &range) == 0);
    } else if (is("notify")) {
        mqd_t queue = mq_open("/cpr-notify", O_CREAT | O_RDWR, 0600, NULL);
        struct sigevent event = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGUSR1};
        if (queue < 0) missing();
        CHECK(mq_notify(queue, &event) == 0);
    } else if (is("queue")) {
        int id = msgget(IPC_PRIVATE, 0600);
        struct { long type; char text[4]; } letter = {1, "abc"};
        CHECK(id >= 0 && msgsnd(id, &letter, 4, 0) == 0);
        ready();
        CHECK(msgctl(id, IPC_RMID, NULL) == 0);
        ok();
    } else
        fail(__LINE__, "mode %s", mode);
    ready();
    ok();
}
