/* Contexts of kernel asynchronous I/O: empty, with completions that wait (also around the end of the ring), of several
 * pages, moved to other numbers, with a thread that waits; with mode "busy" one has a request under way. */
#include "victim.h"
#include <linux/aio_abi.h>

struct ring {
    unsigned id, nr, head, tail;
};

static int file;
static char text[] = "0123456789abcdef";

static aio_context_t make(unsigned requests) {
    aio_context_t context = 0;
    CHECK(syscall(SYS_io_setup, requests, &context) == 0);
    return context;
}

static long submit(aio_context_t context, int opcode, int fd, void *buffer, unsigned long label) {
    struct iocb request = {.aio_data = label, .aio_lio_opcode = opcode, .aio_fildes = fd};
    request.aio_buf = opcode == IOCB_CMD_POLL ? POLLIN : (unsigned long)buffer;
    request.aio_nbytes = opcode == IOCB_CMD_POLL ? 0 : 8;
    struct iocb *list = &request;
    return syscall(SYS_io_submit, context, 1L, &list);
}

static void take(aio_context_t context, unsigned long label, long long result) {
    struct io_event event;
    SAME(syscall(SYS_io_getevents, context, 1L, 1L, &event, NULL), 1);
    SAME(event.data, label);
    SAME(event.res, result);
}

static void none(aio_context_t context) {
    struct io_event event;
    struct timespec now = {0, 0};
    SAME(syscall(SYS_io_getevents, context, 0L, 1L, &event, &now), 0);
}

/* How many requests can be made before one is taken out. */
static unsigned room(aio_context_t context) {
    char buffer[8];
    unsigned count = 0;
    while (submit(context, IOCB_CMD_PREAD, file, buffer, 1000 + count) == 1) count++;
    CHECK(errno == EAGAIN);
    for (unsigned i = 0; i < count; i++) take(context, 1000 + i, 8);
    none(context);
    return count;
}

static aio_context_t awaited;

static void *await(void *unused) {
    take(awaited, 77, 8);
    return unused;
}

int main(int argc, char **argv) {
    begin(argc, argv);
    /* Room for requests is kept by processor. */
    cpu_set_t allowed, one;
    CHECK(sched_getaffinity(0, sizeof allowed, &allowed) == 0);
    CPU_ZERO(&one);
    for (int i = 0; i < CPU_SETSIZE; i++)
        if (CPU_ISSET(i, &allowed)) {
            CPU_SET(i, &one);
            break;
        }
    CHECK(sched_setaffinity(0, sizeof one, &one) == 0);
    file = memfd_create("aio", MFD_CLOEXEC);
    CHECK(file >= 0 && write(file, text, 16) == 16);
    int never = eventfd(0, EFD_NONBLOCK);
    char buffer[8] = "";

    aio_context_t gone = make(8), empty = make(8), wrapped = make(8), large = make(500);
    CHECK(syscall(SYS_io_destroy, gone) == 0);
    awaited = make(8);
    unsigned fresh = room(empty), many = room(large);
    CHECK(fresh > 10 && many > 500);
    unsigned around = ((struct ring *)wrapped)->nr - 3;
    for (unsigned i = 0; i < around; i++) {
        SAME(submit(wrapped, IOCB_CMD_PREAD, file, buffer, i), 1);
        take(wrapped, i, 8);
    }
    for (unsigned i = 0; i < 6; i++) SAME(submit(wrapped, i % 2 ? IOCB_CMD_PWRITE : IOCB_CMD_PREAD, file, buffer, i), 1);
    CHECK(((struct ring *)wrapped)->tail < ((struct ring *)wrapped)->head);
    SAME(submit(large, IOCB_CMD_PREAD, file, buffer, 99), 1);
    pthread_t waiter;
    CHECK(pthread_create(&waiter, NULL, await, NULL) == 0);
    if (strcmp(mode, "busy") == 0) SAME(submit(empty, IOCB_CMD_POLL, never, NULL, 55), 1);

    ready();
    if (strcmp(mode, "busy") == 0) {
        none(empty);
        CHECK(eventfd_write(never, 1) == 0);
        take(empty, 55, POLLIN);
    }
    for (unsigned i = 0; i < 6; i++) take(wrapped, i, 8);
    none(wrapped);
    take(large, 99, 8);
    none(empty);
    SAME(room(wrapped), fresh);
    SAME(room(empty), fresh);
    SAME(room(large), many);
    SAME(submit(awaited, IOCB_CMD_PREAD, file, buffer, 77), 1);
    CHECK(pthread_join(waiter, NULL) == 0);
    CHECK(syscall(SYS_io_destroy, wrapped) == 0 && syscall(SYS_io_destroy, empty) == 0);
    ok();
}
