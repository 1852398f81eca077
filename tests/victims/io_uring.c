/* io_uring instances: used around the end of their rings, with completions that wait, requests that were prepared and
 * not submitted, registered files and memory, in an epoll set, of one thread alone, with a thread of the kernel's that
 * takes requests out, shared with a child; a thread that waits for a completion; and one that writes and reads all the
 * time, so that requests are under way. */
#include "victim.h"
#include <linux/io_uring.h>

#ifndef IORING_SETUP_SINGLE_ISSUER
#define IORING_SETUP_SINGLE_ISSUER (1U << 12)
#define IORING_SETUP_DEFER_TASKRUN (1U << 13)
#endif
#define SETUP_NO_SQARRAY (1U << 16)

struct ring {
    int fd;
    unsigned entries, cqes, *sq_head, *sq_tail, *sq_flags, *cq_head, *cq_tail, *array;
    struct io_uring_sqe *sqe;
    struct io_uring_cqe *cqe;
    unsigned prepared; /* the program's own count, as libraries have one */
};

static long enter(struct ring *ring, unsigned submit, unsigned wait) {
    return syscall(SYS_io_uring_enter, ring->fd, submit, wait, wait ? IORING_ENTER_GETEVENTS : 0, NULL, 0);
}

static int try_make(struct ring *ring, unsigned entries, unsigned flags) {
    struct io_uring_params p = {.flags = flags};
    memset(ring, 0, sizeof *ring);
    ring->fd = syscall(SYS_io_uring_setup, entries, &p);
    if (ring->fd < 0) return 0;
    size_t sq = p.sq_off.array + p.sq_entries * 4, cq = p.cq_off.cqes + p.cq_entries * sizeof *ring->cqe;
    if (flags & SETUP_NO_SQARRAY) sq = 0;
    char *at = mmap(NULL, sq > cq ? sq : cq, PROT_READ | PROT_WRITE, MAP_SHARED, ring->fd, IORING_OFF_SQ_RING);
    ring->sqe = mmap(NULL, p.sq_entries * sizeof *ring->sqe, PROT_READ | PROT_WRITE, MAP_SHARED, ring->fd, IORING_OFF_SQES);
    CHECK(at != MAP_FAILED && (void *)ring->sqe != MAP_FAILED && (p.features & IORING_FEAT_SINGLE_MMAP));
    ring->entries = p.sq_entries, ring->cqes = p.cq_entries;
    ring->sq_head = (void *)(at + p.sq_off.head), ring->sq_tail = (void *)(at + p.sq_off.tail);
    ring->sq_flags = (void *)(at + p.sq_off.flags);
    ring->cq_head = (void *)(at + p.cq_off.head), ring->cq_tail = (void *)(at + p.cq_off.tail);
    ring->cqe = (void *)(at + p.cq_off.cqes);
    if (!(flags & SETUP_NO_SQARRAY)) {
        ring->array = (void *)(at + p.sq_off.array);
        for (unsigned i = 0; i < p.sq_entries; i++) ring->array[i] = i;
    }
    return 1;
}

static void make(struct ring *ring, unsigned entries, unsigned flags) {
    if (!try_make(ring, entries, flags)) {
        dprintf(1, "SKIP: io_uring_setup: %s\n", strerror(errno));
        fail(__LINE__, "no io_uring");
    }
}

/* Pages below and above a mapping of requests. */
static char *beside[2];
enum { PAGE = 4096 };

/* Maps the requests once more, between those. */
static struct io_uring_sqe *map_between(struct ring *ring) {
    size_t length = ring->entries * sizeof *ring->sqe;
    CHECK(length > PAGE);
    for (int i = 0; i < 100; i++) {
        char *room = mmap(NULL, length + 2 * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        CHECK(room != MAP_FAILED && munmap(room + PAGE, length) == 0);
        char *at = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_SHARED, ring->fd, IORING_OFF_SQES);
        CHECK(at != MAP_FAILED);
        /* Else there was room elsewhere, and there is none now. */
        if (at == room + PAGE) {
            beside[0] = room, beside[1] = at + length;
            return (void *)at;
        }
    }
    fail(__LINE__, "the kernel does not use the room");
}

static struct io_uring_sqe *prepare(struct ring *ring, int opcode, int fd, void *buffer, unsigned length, long long offset,
                                    unsigned long label) {
    CHECK(ring->prepared - __atomic_load_n(ring->sq_head, __ATOMIC_ACQUIRE) < ring->entries);
    struct io_uring_sqe *sqe = &ring->sqe[ring->prepared++ & (ring->entries - 1)];
    memset(sqe, 0, sizeof *sqe);
    sqe->opcode = opcode, sqe->fd = fd, sqe->addr = (unsigned long)buffer, sqe->len = length, sqe->off = offset;
    sqe->user_data = label;
    return sqe;
}

static void flush(struct ring *ring) { __atomic_store_n(ring->sq_tail, ring->prepared, __ATOMIC_RELEASE); }

static unsigned unsubmitted(struct ring *ring) { return ring->prepared - __atomic_load_n(ring->sq_head, __ATOMIC_ACQUIRE); }

static int peek(struct ring *ring, struct io_uring_cqe *to) {
    unsigned head = *ring->cq_head;
    if (head == __atomic_load_n(ring->cq_tail, __ATOMIC_ACQUIRE)) return 0;
    *to = ring->cqe[head & (ring->cqes - 1)];
    __atomic_store_n(ring->cq_head, head + 1, __ATOMIC_RELEASE);
    return 1;
}

static void take(struct ring *ring, unsigned long label, int result) {
    struct io_uring_cqe cqe;
    while (!peek(ring, &cqe)) CHECK(enter(ring, 0, 1) >= 0);
    SAME(cqe.user_data, label);
    SAME(cqe.res, result);
}

static void submit(struct ring *ring) {
    flush(ring);
    for (unsigned left; (left = unsubmitted(ring)) > 0;) CHECK(enter(ring, left, 0) >= 0);
}

static void nothing(struct ring *ring, unsigned long label) {
    prepare(ring, IORING_OP_NOP, -1, NULL, 0, 0, label);
    submit(ring);
}

/* The same where a thread of the kernel's takes them. */
static void hand_over(struct ring *ring) {
    flush(ring);
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    if (__atomic_load_n(ring->sq_flags, __ATOMIC_ACQUIRE) & IORING_SQ_NEED_WAKEUP)
        CHECK(syscall(SYS_io_uring_enter, ring->fd, 1, 0, IORING_ENTER_SQ_WAKEUP, NULL, 0) >= 0);
}

static int file;
static char text[] = "0123456789abcdef";

/* A thread with an instance of its own alone. */
static struct ring alone;
static atomic_int alone_ready, is_alone_bound;

static void *live_alone(void *unused) {
    char buffer[8];
    is_alone_bound = try_make(&alone, 16, IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN);
    if (!is_alone_bound) make(&alone, 16, 0);
    for (unsigned i = 0; i < 100; i++) {
        prepare(&alone, IORING_OP_READ, file, buffer, 8, i % 8, i);
        submit(&alone);
        take(&alone, i, 8);
        CHECK(memcmp(buffer, text + i % 8, 8) == 0);
    }
    alone_ready = 1;
    wait_for_go();
    for (unsigned i = 0; i < 100; i++) {
        prepare(&alone, IORING_OP_READ, file, buffer, 8, i % 8, i);
        submit(&alone);
        take(&alone, i, 8);
        CHECK(memcmp(buffer, text + i % 8, 8) == 0);
    }
    return unused;
}

/* A thread that waits for a completion. */
static struct ring awaited;

static void *await(void *unused) {
    take(&awaited, 77, 0);
    return unused;
}

/* A thread that never stops: every block it writes is read back, and every request completes once. */
enum { BLOCKS = 64, BLOCK = 8192, DEPTH = 16 };
static struct ring busy;
static atomic_int done;
static unsigned long rounds;

static void *work(void *unused) {
    static char in[BLOCKS][BLOCK], out[BLOCKS][BLOCK];
    int data = open("data", O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    CHECK(data >= 0 && unlink("data") == 0);
    while (!done) {
        for (int phase = 0; phase < 2; phase++) {
            char seen[BLOCKS] = "";
            int next = 0, finished = 0, under_way = 0;
            while (finished < BLOCKS) {
                while (next < BLOCKS && under_way < DEPTH) {
                    char *buffer = phase ? in[next] : out[next];
                    memset(buffer, phase ? 0 : (int)(rounds + next) & 0xff, BLOCK);
                    struct io_uring_sqe *sqe = prepare(&busy, phase ? IORING_OP_READ : IORING_OP_WRITE, data, buffer, BLOCK,
                                                       (long long)next * BLOCK, rounds << 8 | next);
                    if (next % 4 == 0) sqe->flags = IOSQE_ASYNC;
                    next++, under_way++;
                }
                flush(&busy);
                CHECK(enter(&busy, unsubmitted(&busy), 1) >= 0);
                struct io_uring_cqe cqe;
                while (peek(&busy, &cqe)) {
                    SAME(cqe.res, BLOCK);
                    SAME(cqe.user_data >> 8, rounds);
                    SAME(seen[cqe.user_data & 0xff]++, 0);
                    finished++, under_way--;
                }
            }
        }
        for (int i = 0; i < BLOCKS; i++) CHECK(memcmp(in[i], out[i], BLOCK) == 0);
        rounds++;
    }
    return unused;
}

int main(int argc, char **argv) {
    begin(argc, argv);
    file = open("numbers", O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    CHECK(file >= 0 && unlink("numbers") == 0 && write(file, text, 16) == 16);
    struct ring first, large, fresh, shared_ring, watched, single, threaded;
    char buffer[64];

    /* A child has the same, by another number. */
    make(&shared_ring, 32, 0);
    nothing(&shared_ring, 1);
    take(&shared_ring, 1, 0);
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        CHECK(dup2(shared_ring.fd, 99) == 99);
        close(shared_ring.fd);
        shared_ring.fd = 99;
        wait_for_go();
        nothing(&shared_ring, 2);
        _exit(7);
    }

    /* Around the end, three completions wait. */
    make(&first, 8, 0);
    for (unsigned i = 0; i < 29; i++) {
        nothing(&first, i);
        take(&first, i, 0);
    }
    for (unsigned i = 0; i < 3; i++) nothing(&first, 1000 + i);

    /* Two requests prepared, one of them shown to the kernel; with files and memory registered. */
    make(&large, 256, 0);
    struct io_uring_sqe *again = map_between(&large);
    int files[3] = {file, -1, open("/dev/zero", O_RDONLY | O_CLOEXEC)};
    static char area[3 * 4096];
    struct iovec memory[2] = {{area + 100, 8192}, {NULL, 0}};
    CHECK(syscall(SYS_io_uring_register, large.fd, IORING_REGISTER_FILES, files, 3) == 0);
    CHECK(syscall(SYS_io_uring_register, large.fd, IORING_REGISTER_BUFFERS, memory, 2) == 0);
    for (unsigned i = 0; i < 1000; i++) {
        prepare(&large, IORING_OP_READ_FIXED, 0, area + 200, 16, 0, i)->flags = IOSQE_FIXED_FILE;
        if (i % 100 == 99) {
            submit(&large);
            for (unsigned k = i - 99; k <= i; k++) take(&large, k, 16);
        }
    }
    prepare(&large, IORING_OP_READ_FIXED, 0, area + 300, 16, 0, 5000)->flags = IOSQE_FIXED_FILE;
    flush(&large);
    prepare(&large, IORING_OP_READ_FIXED, 2, area + 400, 16, 0, 5001)->flags = IOSQE_FIXED_FILE;

    /* Never used, without an array of indices where the kernel can do without. */
    if (!try_make(&fresh, 64, SETUP_NO_SQARRAY)) make(&fresh, 64, 0);
    make(&single, 1, 0);
    for (unsigned i = 0; i < 7; i++) {
        nothing(&single, i);
        take(&single, i, 0);
    }

    /* With a thread that takes requests out. */
    static char where[64];
    make(&threaded, 8, IORING_SETUP_SQPOLL);
    for (unsigned i = 0; i < 101; i++) {
        prepare(&threaded, IORING_OP_READ, file, buffer, 8, i % 8, i);
        hand_over(&threaded);
        take(&threaded, i, 8);
        CHECK(memcmp(buffer, text + i % 8, 8) == 0);
    }
    prepare(&threaded, IORING_OP_NOP, -1, NULL, 0, 0, 500);
    hand_over(&threaded);
    AWAIT(*threaded.cq_tail == 102);

    /* In an epoll set. */
    make(&watched, 8, 0);
    int set = epoll_create1(EPOLL_CLOEXEC);
    struct epoll_event event = {.events = EPOLLIN, .data.u64 = 42};
    CHECK(epoll_ctl(set, EPOLL_CTL_ADD, watched.fd, &event) == 0);
    SAME(epoll_wait(set, &event, 1, 0), 0);

    make(&awaited, 8, 0);
    make(&busy, 32, 0);
    pthread_t threads[3];
    CHECK(pthread_create(&threads[0], NULL, await, NULL) == 0);
    CHECK(pthread_create(&threads[1], NULL, live_alone, NULL) == 0);
    CHECK(pthread_create(&threads[2], NULL, work, NULL) == 0);
    AWAIT(alone_ready && rounds > 2);

    /* Now there is room, but less than the requests need. */
    CHECK(munmap(beside[0], PAGE) == 0 && munmap(beside[1], PAGE) == 0);
    ready();
    unsigned long before = rounds;
    for (unsigned i = 0; i < 3; i++) take(&first, 1000 + i, 0);
    for (unsigned i = 0; i < 50; i++) {
        nothing(&first, 2000 + i);
        take(&first, 2000 + i, 0);
    }
    for (unsigned i = 0; i < 50; i++) {
        nothing(&single, 2000 + i);
        take(&single, 2000 + i, 0);
    }

    memset(area, 'x', sizeof area);
    submit(&large);
    take(&large, 5000, 16);
    take(&large, 5001, 16);
    CHECK(memcmp(area + 300, text, 16) == 0);
    for (int i = 0; i < 16; i++) SAME(area[400 + i], 0);
    prepare(&large, IORING_OP_READ_FIXED, 1, area + 300, 16, 0, 5002)->flags = IOSQE_FIXED_FILE;
    submit(&large);
    take(&large, 5002, -EBADF);
    CHECK(syscall(SYS_io_uring_register, large.fd, IORING_UNREGISTER_BUFFERS, NULL, 0) == 0);
    CHECK(syscall(SYS_io_uring_register, large.fd, IORING_UNREGISTER_FILES, NULL, 0) == 0);

    for (unsigned i = 0; i < 200; i++) {
        prepare(&fresh, IORING_OP_READ, file, buffer, 8, i % 8, i);
        if (i % 40 == 39) {
            submit(&fresh);
            for (unsigned k = i - 39; k <= i; k++) take(&fresh, k, 8);
            CHECK(memcmp(buffer, text + i % 8, 8) == 0);
        }
    }

    take(&threaded, 500, 0);
    for (unsigned i = 0; i < 100; i++) {
        prepare(&threaded, IORING_OP_READ, file, buffer, 8, i % 8, i);
        hand_over(&threaded);
        take(&threaded, i, 8);
        CHECK(memcmp(buffer, text + i % 8, 8) == 0);
    }
    /* It may do what we may. */
    snprintf(where, sizeof where, "/proc/1/environ");
    int direct = open(where, O_RDONLY | O_CLOEXEC), error = errno;
    prepare(&threaded, IORING_OP_OPENAT, AT_FDCWD, where, 0, 0, 600)->open_flags = O_RDONLY | O_CLOEXEC;
    hand_over(&threaded);
    struct io_uring_cqe opened;
    while (!peek(&threaded, &opened)) CHECK(enter(&threaded, 0, 1) >= 0);
    if (direct < 0)
        SAME(opened.res, -error);
    else
        CHECK(opened.res >= 0);

    SAME(epoll_wait(set, &event, 1, 0), 0);
    nothing(&watched, 9);
    SAME(epoll_wait(set, &event, 1, 10000), 1);
    SAME(event.data.u64, 42);
    take(&watched, 9, 0);

    int status;
    CHECK(waitpid(child, &status, 0) == child && WIFEXITED(status));
    SAME(WEXITSTATUS(status), 7);
    take(&shared_ring, 2, 0);

    large.sqe[200].user_data = 4711;
    SAME(again[200].user_data, 4711);
    nothing(&awaited, 77);
    AWAIT(rounds > before + 2);
    done = 1;
    for (int i = 0; i < 3; i++) CHECK(pthread_join(threads[i], NULL) == 0);
    SAME(syscall(SYS_io_uring_enter, alone.fd, 0, 0, IORING_ENTER_GETEVENTS, NULL, 0), is_alone_bound ? -1 : 0);
    if (is_alone_bound) SAME(errno, EEXIST);
    ok();
}
