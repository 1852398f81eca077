/* UNIX socket pairs with queued data, message boundaries and descriptors in flight. */
#include "victim.h"
#include <sys/un.h>

static void send_fd(int socket, int fd, const char *text) {
    struct iovec part = {(void *)text, strlen(text)};
    union { struct cmsghdr head; char bytes[CMSG_SPACE(sizeof(int))]; } control = {0};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control};
    struct cmsghdr *head = CMSG_FIRSTHDR(&message);
    head->cmsg_level = SOL_SOCKET;
    head->cmsg_type = SCM_RIGHTS;
    head->cmsg_len = CMSG_LEN(sizeof(int));
    memcpy(CMSG_DATA(head), &fd, sizeof fd);
    CHECK(sendmsg(socket, &message, 0) == (ssize_t)strlen(text));
}

static int receive_fd(int socket, char *text, size_t size) {
    struct iovec part = {text, size};
    union { struct cmsghdr head; char bytes[CMSG_SPACE(sizeof(int))]; } control = {0};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control};
    ssize_t n = recvmsg(socket, &message, 0);
    CHECK(n > 0);
    text[n] = 0;
    struct cmsghdr *head = CMSG_FIRSTHDR(&message);
    CHECK(head != NULL && head->cmsg_type == SCM_RIGHTS);
    int fd;
    memcpy(&fd, CMSG_DATA(head), sizeof fd);
    return fd;
}

static struct sockaddr_un file_of(const char *what) {
    struct sockaddr_un name = {.sun_family = AF_UNIX};
    snprintf(name.sun_path, sizeof name.sun_path, "%s.%s", strrchr(go, '/') + 1, what);
    return name;
}

/* A listening socket whose file is not called what it was bound to: servers make it complete before others see it. */
static int listens_as(const char *bound, const char *now, int by_link) {
    struct sockaddr_un from = file_of(bound), to = file_of(now);
    int server = socket(AF_UNIX, SOCK_STREAM, 0);
    CHECK(server >= 0 && bind(server, (struct sockaddr *)&from, sizeof from) == 0 && listen(server, 5) == 0);
    CHECK(chmod(from.sun_path, 0640) == 0);
    if (by_link) CHECK(link(from.sun_path, to.sun_path) == 0 && unlink(from.sun_path) == 0);
    else CHECK(rename(from.sun_path, to.sun_path) == 0);
    return server;
}

static int connects_to(const char *now) {
    struct sockaddr_un to = file_of(now);
    int client = socket(AF_UNIX, SOCK_STREAM, 0);
    CHECK(client >= 0 && connect(client, (struct sockaddr *)&to, sizeof to) == 0);
    return client;
}

static void check_listens(int server, const char *bound, const char *now) {
    struct sockaddr_un name = {0};
    socklen_t length = sizeof name;
    CHECK(getsockname(server, (struct sockaddr *)&name, &length) == 0);
    SAME(strcmp(name.sun_path, file_of(bound).sun_path), 0);
    struct stat stat_;
    CHECK(stat(file_of(now).sun_path, &stat_) == 0);
    SAME(stat_.st_mode, S_IFSOCK | 0640);
    int client = connects_to(now), accepted = accept(server, NULL, NULL);
    char text[8] = "";
    CHECK(accepted >= 0 && write(client, "hello", 5) == 5 && read(accepted, text, 5) == 5);
    SAME(strcmp(text, "hello"), 0);
}

int main(int argc, char **argv) {
    begin(argc, argv);
    int renamed = listens_as("new", "sock", 0), linked = listens_as("other", "sock2", 1);
    int early = connects_to("sock"), served = accept(renamed, NULL, NULL), waits = connects_to("sock2");
    CHECK(served >= 0);
    /* Somebody else's file has the old name. */
    int taken = open(file_of("new").sun_path, O_WRONLY | O_CREAT | O_EXCL, 0600);
    CHECK(taken >= 0 && write(taken, "mine", 4) == 4 && close(taken) == 0);
    int stream[2], datagrams[2], packets[2], passing[2], half[2], gone[2], inside[2];
    CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, stream) == 0 && socketpair(AF_UNIX, SOCK_DGRAM, 0, datagrams) == 0);
    CHECK(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, packets) == 0 && socketpair(AF_UNIX, SOCK_STREAM, 0, passing) == 0);
    CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, half) == 0 && socketpair(AF_UNIX, SOCK_STREAM, 0, gone) == 0);
    static char data[50000], got[50000];
    for (int i = 0; i < 50000; i++) data[i] = i * 13 + i / 256;
    SAME(write(stream[0], data, sizeof data), sizeof data);
    CHECK(write(stream[1], "back", 4) == 4);
    CHECK(write(datagrams[0], "first", 5) == 5 && write(datagrams[0], "the second", 10) == 10);
    CHECK(write(packets[0], "a", 1) == 1 && write(packets[0], "bcd", 3) == 3);
    /* A pipe whose reading end exists only in the queue of a socket. */
    CHECK(pipe(inside) == 0 && write(inside[1], "in flight", 9) == 9);
    send_fd(passing[0], inside[0], "take this");
    close(inside[0]);
    CHECK(write(half[0], "last", 4) == 4 && shutdown(half[0], SHUT_WR) == 0);
    CHECK(write(gone[0], "left", 4) == 4);
    close(gone[0]);
    int buffer = 100000, effective;
    socklen_t length = sizeof effective;
    CHECK(setsockopt(stream[0], SOL_SOCKET, SO_SNDBUF, &buffer, sizeof buffer) == 0);
    CHECK(getsockopt(stream[0], SOL_SOCKET, SO_SNDBUF, &buffer, &length) == 0);
    CHECK(setsockopt(datagrams[1], SOL_SOCKET, SO_PASSCRED, &(int){1}, sizeof(int)) == 0);
    /* Linux 6.16: descriptors are not taken (SO_PASSRIGHTS). */
    int strict[2];
    CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, strict) == 0);
    int takes_none = setsockopt(strict[0], SOL_SOCKET, 83, &(int){0}, sizeof(int)) == 0;
    /* Never connected; one of them has a name. */
    struct sockaddr_un name = {.sun_family = AF_UNIX};
    socklen_t named = sizeof name;
    int server = socket(AF_UNIX, SOCK_SEQPACKET, 0), caller = socket(AF_UNIX, SOCK_SEQPACKET, 0);
    CHECK(bind(server, (struct sockaddr *)&name, sizeof name.sun_family) == 0);
    CHECK(getsockname(server, (struct sockaddr *)&name, &named) == 0);
    /* An epoll set that is open nowhere: it is under way to the socket that it has registered. */
    int watched[2], set = epoll_create1(0);
    struct epoll_event event = {.events = EPOLLIN, .data.u64 = 0x1234567890};
    CHECK(set >= 0 && socketpair(AF_UNIX, SOCK_DGRAM, 0, watched) == 0);
    CHECK(epoll_ctl(set, EPOLL_CTL_ADD, watched[1], &event) == 0);
    send_fd(watched[0], set, "a set");
    CHECK(close(set) == 0);
    ready();
    CHECK(listen(server, 1) == 0 && connect(caller, (struct sockaddr *)&name, named) == 0);
    int accepted = accept(server, NULL, NULL);
    CHECK(accepted >= 0 && write(caller, "here", 4) == 4 && read(accepted, &name, 4) == 4);
    CHECK(getsockopt(stream[0], SOL_SOCKET, SO_SNDBUF, &effective, &length) == 0);
    SAME(effective, buffer);
    CHECK(getsockopt(datagrams[1], SOL_SOCKET, SO_PASSCRED, &effective, &length) == 0 && effective == 1);
    if (takes_none) CHECK(getsockopt(strict[0], SOL_SOCKET, 83, &effective, &length) == 0 && effective == 0);
    for (int at = 0; at < 50000;) {
        ssize_t n = read(stream[1], got + at, sizeof got - at);
        CHECK(n > 0);
        at += n;
    }
    CHECK(memcmp(got, data, sizeof data) == 0);
    char text[100];
    SAME(read(stream[0], text, 100), 4);
    CHECK(recv(stream[0], text, 100, MSG_DONTWAIT) == -1 && errno == EAGAIN);
    SAME(read(datagrams[1], text, 100), 5);
    SAME(read(datagrams[1], text, 100), 10);
    CHECK(memcmp(text, "the second", 10) == 0);
    SAME(read(packets[1], text, 100), 1);
    SAME(read(packets[1], text, 100), 3);
    int fd = receive_fd(passing[1], text, 99);
    CHECK(strcmp(text, "take this") == 0);
    SAME(read(fd, text, 100), 9);
    CHECK(memcmp(text, "in flight", 9) == 0);
    CHECK(write(inside[1], "x", 1) == 1 && read(fd, text, 1) == 1);
    SAME(read(half[1], text, 100), 4);
    SAME(read(half[1], text, 100), 0);
    CHECK(write(half[1], "on", 2) == 2 && read(half[0], text, 100) == 2);
    SAME(read(gone[1], text, 100), 4);
    SAME(read(gone[1], text, 100), 0);
    set = receive_fd(watched[1], text, 99);
    event.data.u64 = 0;
    SAME(epoll_wait(set, &event, 1, 0), 0);
    CHECK(write(watched[0], "y", 1) == 1);
    SAME(epoll_wait(set, &event, 1, 0), 1);
    SAME(event.data.u64, 0x1234567890);
    /* The kernel knows the registration by the number that it was made with. */
    CHECK(epoll_ctl(set, EPOLL_CTL_DEL, watched[1], NULL) == 0);
    CHECK(write(datagrams[1], "new", 3) == 3 && read(datagrams[0], text, 100) == 3);
    char letters[8] = "";
    CHECK(write(early, "early", 5) == 5 && read(served, letters, 5) == 5);
    SAME(strcmp(letters, "early"), 0);
    int of_waiting = accept(linked, NULL, NULL);
    CHECK(of_waiting >= 0 && write(waits, "w", 1) == 1 && read(of_waiting, letters, 1) == 1);
    check_listens(renamed, "new", "sock");
    check_listens(linked, "other", "sock2");
    CHECK(slurp(file_of("new").sun_path, letters, sizeof letters) == 4);
    SAME(strcmp(letters, "mine"), 0);
    CHECK(access(file_of("other").sun_path, F_OK) == -1);
    ok();
}
