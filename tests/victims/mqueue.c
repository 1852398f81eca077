/* POSIX message queues with messages, descriptors of every kind, one without a name, and a process that waits. */
#include "victim.h"
#include <mqueue.h>

static mqd_t make(const char *name, int flags, long messages, long size) {
    struct mq_attr attributes = {.mq_maxmsg = messages, .mq_msgsize = size};
    mqd_t queue = mq_open(name, O_CREAT | flags, 0640, &attributes);
    if (queue == (mqd_t)-1) fail(__LINE__, "mq_open %s", name);
    return queue;
}

static void put(mqd_t queue, const char *text, unsigned priority) { CHECK(mq_send(queue, text, strlen(text), priority) == 0); }

static void expect(mqd_t queue, const char *text, unsigned priority) {
    char got[8192];
    unsigned found;
    struct timespec soon;
    clock_gettime(CLOCK_REALTIME, &soon);
    soon.tv_sec += 60;
    ssize_t length = mq_timedreceive(queue, got, sizeof got, &found, &soon);
    if (length != (ssize_t)strlen(text) || memcmp(got, text, length) != 0 || found != priority)
        fail(__LINE__, "got %zd bytes of priority %u, wanted %s (%u)", length, found, text, priority);
}

static struct mq_attr attributes(mqd_t queue) {
    struct mq_attr found;
    CHECK(mq_getattr(queue, &found) == 0);
    return found;
}

int main(int argc, char **argv) {
    begin(argc, argv);
    mqd_t full = make("/cpr-full", O_RDWR | O_EXCL, 5, 100);
    put(full, "low", 1);
    put(full, "first", 31);
    put(full, "low, too", 1);
    put(full, "second", 31);
    put(full, "", 0);
    mqd_t writer = mq_open("/cpr-full", O_WRONLY | O_NONBLOCK);
    mqd_t reader = mq_open("/cpr-full", O_RDONLY);
    CHECK(writer >= 0 && reader >= 0);
    mqd_t twin = dup(reader);
    mqd_t gone = make("/cpr-gone", O_RDWR, 10, 64);
    put(gone, "nameless", 3);
    CHECK(mq_unlink("/cpr-gone") == 0);
    /* Another one of that name, which nobody has open. */
    mqd_t closed = make("/cpr-gone", O_RDWR, 2, 32);
    put(closed, "kept by the kernel", 2);
    CHECK(mq_close(closed) == 0);
    mqd_t empty = make("/cpr-empty", O_RDWR, 3, 8192);
    int poll_set = epoll_create1(EPOLL_CLOEXEC);
    struct epoll_event event = {.events = EPOLLIN, .data.u32 = 77};
    CHECK(epoll_ctl(poll_set, EPOLL_CTL_ADD, empty, &event) == 0);
    mqd_t answers = make("/cpr-answers", O_RDWR, 3, 8192);
    pid_t child = fork();
    if (child == 0) {
        expect(answers, "question", 9);
        put(empty, "answer", 4);
        _exit(0);
    }
    pid_t sender = fork();
    if (sender == 0) {
        put(full, "waited for room", 0);
        _exit(0);
    }
    ready();
    struct mq_attr found = attributes(full);
    SAME(found.mq_maxmsg, 5);
    SAME(found.mq_msgsize, 100);
    SAME(found.mq_curmsgs, 5);
    SAME(attributes(writer).mq_flags, O_NONBLOCK);
    SAME(attributes(reader).mq_flags, 0);
    CHECK(mq_send(writer, "x", 1, 0) == -1 && errno == EAGAIN);
    CHECK(mq_send(reader, "x", 1, 0) == -1 && errno == EBADF);
    SAME(fcntl(reader, F_GETFD), FD_CLOEXEC);
    SAME(fcntl(twin, F_GETFD), 0);
    struct stat stat;
    CHECK(fstat(full, &stat) == 0);
    SAME(stat.st_mode & 07777, 0640);
    SAME(stat.st_uid, getuid());
    expect(twin, "first", 31);
    expect(reader, "second", 31);
    expect(full, "low", 1);
    expect(full, "low, too", 1);
    expect(full, "", 0);
    expect(full, "waited for room", 0);
    SAME(attributes(gone).mq_curmsgs, 1);
    expect(gone, "nameless", 3);
    closed = mq_open("/cpr-gone", O_RDWR);
    CHECK(closed >= 0);
    expect(closed, "kept by the kernel", 2);
    SAME(attributes(closed).mq_msgsize, 32);
    CHECK(mq_unlink("/cpr-gone") == 0 && mq_unlink("/cpr-gone") == -1 && errno == ENOENT);
    SAME(epoll_wait(poll_set, &event, 1, 0), 0);
    put(answers, "question", 9);
    SAME(epoll_wait(poll_set, &event, 1, 60000), 1);
    SAME(event.data.u32, 77);
    expect(empty, "answer", 4);
    int status;
    for (int i = 0; i < 2; i++) {
        CHECK(wait(&status) > 0);
        SAME(status, 0);
    }
    CHECK(mq_unlink("/cpr-full") == 0 && mq_unlink("/cpr-empty") == 0 && mq_unlink("/cpr-answers") == 0);
    ok();
}
