/* TCP sockets: listening, bound, connected within the job with unread data, half closed, closed by the peer, waiting to
 * be accepted; their options. */
#include "victim.h"
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <arpa/inet.h>

static struct sockaddr_storage name_of(int fd, int peer) {
    struct sockaddr_storage name = {0};
    socklen_t length = sizeof name;
    CHECK((peer ? getpeername : getsockname)(fd, (struct sockaddr *)&name, &length) == 0);
    return name;
}

static int same(struct sockaddr_storage a, struct sockaddr_storage b) {
    return memcmp(&a, &b, a.ss_family == AF_INET ? sizeof(struct sockaddr_in) : sizeof(struct sockaddr_in6)) == 0;
}

/* Of a connection that has ended, too. */
static struct sockaddr_storage last_peer_of(int fd) {
    struct sockaddr_storage name = {0};
    socklen_t length = sizeof(struct sockaddr_in);
    CHECK(getsockopt(fd, SOL_SOCKET, SO_PEERNAME, &name, &length) == 0);
    return name;
}

static struct sockaddr_in loopback(int port) {
    return (struct sockaddr_in){.sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
}

static int listener4(void) {
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    struct sockaddr_in address = loopback(0);
    CHECK(fd >= 0 && setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &(int){1}, sizeof(int)) == 0);
    CHECK(bind(fd, (struct sockaddr *)&address, sizeof address) == 0 && listen(fd, 7) == 0);
    return fd;
}

static int client_of(int listener) {
    struct sockaddr_storage name = name_of(listener, 0);
    int fd = socket(name.ss_family, SOCK_STREAM, 0);
    CHECK(fd >= 0 && connect(fd, (struct sockaddr *)&name, sizeof name) == 0);
    return fd;
}

static void pair(int listener, int ends[2]) {
    ends[0] = client_of(listener);
    ends[1] = accept(listener, NULL, NULL);
    CHECK(ends[1] >= 0);
}

static int number(int fd, int level, int option) {
    int value = -1;
    socklen_t length = sizeof value;
    CHECK(getsockopt(fd, level, option, &value, &length) == 0);
    return value;
}

static void set(int fd, int level, int option, int value) {
    if (setsockopt(fd, level, option, &value, sizeof value) != 0) fail(__LINE__, "option %d of level %d", option, level);
}

static void read_all(int fd, char *to, size_t size) {
    for (size_t at = 0; at < size;) {
        ssize_t n = read(fd, to + at, size - at);
        if (n <= 0) fail(__LINE__, "read %zd at %zu of %zu", n, at, size);
        at += n;
    }
}

static socklen_t length_of_info;
static char data[200000], got[200000];

int main(int argc, char **argv) {
    begin(argc, argv);
    signal(SIGPIPE, SIG_IGN);
    for (size_t i = 0; i < sizeof data; i++) data[i] = i * 17 + i / 251;
    char text[100];
    int listener = listener4(), six = socket(AF_INET6, SOCK_STREAM, 0);
    struct sockaddr_in6 any = {.sin6_family = AF_INET6};
    CHECK(bind(six, (struct sockaddr *)&any, sizeof any) == 0 && listen(six, 3) == 0);
    struct sockaddr_storage listening = name_of(listener, 0), listening6 = name_of(six, 0);

    /* A connection with unread data in both directions, inherited by nobody; with options. */
    int both[2], half[2], gone[2], ended[2], large[2], mapped[2], reset[2], deaf[2];
    pair(listener, both);
    SAME(write(both[0], "to the server", 13), 13);
    SAME(write(both[1], "to the client, longer", 21), 21);
    set(both[0], IPPROTO_TCP, TCP_NODELAY, 1);
    set(both[0], SOL_SOCKET, SO_KEEPALIVE, 1);
    set(both[0], IPPROTO_TCP, TCP_KEEPIDLE, 77);
    set(both[0], IPPROTO_TCP, TCP_KEEPINTVL, 11);
    set(both[0], IPPROTO_TCP, TCP_KEEPCNT, 5);
    set(both[0], IPPROTO_TCP, TCP_USER_TIMEOUT, 12345);
    set(both[0], SOL_SOCKET, SO_OOBINLINE, 1);
    set(both[0], IPPROTO_IP, IP_TOS, 0x10);
    set(both[0], SOL_SOCKET, SO_PRIORITY, 5);
    set(both[0], SOL_SOCKET, SO_RCVBUF, 50000);
    CHECK(setsockopt(both[0], IPPROTO_TCP, TCP_CONGESTION, "reno", 4) == 0);
    /* Linux 6.15: TCP_RTO_MAX_MS. */
    int hurries = setsockopt(both[0], IPPROTO_TCP, 44, &(int){50000}, sizeof(int)) == 0;
    struct linger linger = {1, 9};
    CHECK(setsockopt(both[0], SOL_SOCKET, SO_LINGER, &linger, sizeof linger) == 0);
    struct timeval limit = {3, 250000};
    CHECK(setsockopt(both[0], SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit) == 0);
    int buffer = number(both[0], SOL_SOCKET, SO_RCVBUF);
    set(listener, IPPROTO_TCP, TCP_DEFER_ACCEPT, 0);
    struct sockaddr_storage both_name = name_of(both[0], 0), both_peer = name_of(both[1], 1);
    CHECK(same(both_name, both_peer));

    /* One side has shut down its sending side; there is data before the end. */
    pair(listener, half);
    CHECK(write(half[0], "the last", 8) == 8 && shutdown(half[0], SHUT_WR) == 0);
    /* The peer is gone, with data before the end. */
    pair(listener, gone);
    CHECK(write(gone[1], "left behind", 11) == 11);
    close(gone[1]);
    /* Both sides have shut down. */
    pair(listener, ended);
    CHECK(write(ended[0], "bye", 3) == 3);
    CHECK(shutdown(ended[0], SHUT_WR) == 0 && shutdown(ended[1], SHUT_WR) == 0);
    struct sockaddr_storage ended_name = name_of(ended[0], 0);
    CHECK(same(last_peer_of(ended[1]), ended_name));
    /* Reset by the peer, and nobody knows yet. */
    pair(listener, reset);
    struct linger now = {1, 0};
    CHECK(setsockopt(reset[1], SOL_SOCKET, SO_LINGER, &now, sizeof now) == 0);
    close(reset[1]);
    /* One side does not want to read any more. */
    pair(listener, deaf);
    CHECK(shutdown(deaf[0], SHUT_RD) == 0);
    /* More data than fits into a small buffer at once, if the reader is quick enough. */
    pair(listener, large);
    set(large[1], SOL_SOCKET, SO_SNDBUF, 400000);
    size_t written = 0;
    for (ssize_t n; written < 40000 && (n = send(large[1], data + written, 40000 - written, MSG_DONTWAIT)) > 0;) written += n;
    SAME(written, 40000);
    if (geteuid() == 0 && mode[0] == 'f')
        for (ssize_t n; (n = send(large[1], data + written, sizeof data - written, MSG_DONTWAIT)) > 0;) written += n;
    /* IPv4 to a listening socket of both families. */
    struct sockaddr_in to_six = loopback(ntohs(((struct sockaddr_in6 *)&listening6)->sin6_port));
    mapped[0] = socket(AF_INET, SOCK_STREAM, 0);
    CHECK(connect(mapped[0], (struct sockaddr *)&to_six, sizeof to_six) == 0);
    mapped[1] = accept(six, NULL, NULL);
    CHECK(mapped[1] >= 0 && write(mapped[0], "four", 4) == 4);
    struct sockaddr_storage mapped_name = name_of(mapped[1], 1);
    /* IPv6 all the way. */
    struct sockaddr_in6 own = {.sin6_family = AF_INET6, .sin6_addr = IN6ADDR_LOOPBACK_INIT,
                               .sin6_port = ((struct sockaddr_in6 *)&listening6)->sin6_port};
    int pair6[2] = {socket(AF_INET6, SOCK_STREAM, 0), -1};
    CHECK(connect(pair6[0], (struct sockaddr *)&own, sizeof own) == 0);
    CHECK((pair6[1] = accept(six, NULL, NULL)) >= 0 && write(pair6[1], "six", 3) == 3);

    /* Sockets that are bound and not connected, and new ones. */
    int bound = socket(AF_INET, SOCK_STREAM, 0), fresh = socket(AF_INET6, SOCK_STREAM, 0);
    struct sockaddr_in address = loopback(0);
    CHECK(bind(bound, (struct sockaddr *)&address, sizeof address) == 0);
    struct sockaddr_storage bound_name = name_of(bound, 0);
    set(fresh, IPPROTO_IPV6, IPV6_V6ONLY, 1);

    /* A connection between two processes. */
    int other[2];
    pair(listener, other);
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        close(other[0]);
        for (int i = 0;; i++) {
            char byte;
            ssize_t n = read(other[1], &byte, 1);
            if (n == 0) _exit(42);
            if (n != 1 || write(other[1], &byte, 1) != 1) _exit(1);
        }
    }
    close(other[1]);
    for (int i = 0; i < 100; i++) {
        char byte = i;
        CHECK(write(other[0], &byte, 1) == 1 && read(other[0], &byte, 1) == 1 && byte == i);
    }

    /* A connection that waits to be accepted. */
    int early = client_of(listener);
    struct sockaddr_storage early_name = name_of(early, 0);

    /* A connection that is being made: one waits to be accepted, and there is no room for another. */
    int busy = socket(AF_INET, SOCK_STREAM, 0), connecting[2];
    struct sockaddr_in busy_name = loopback(0);
    CHECK(bind(busy, (struct sockaddr *)&busy_name, sizeof busy_name) == 0 && listen(busy, 0) == 0);
    struct sockaddr_storage busy_at = name_of(busy, 0);
    for (int i = 0; i < 2; i++) {
        connecting[i] = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
        CHECK(connecting[i] >= 0);
        connect(connecting[i], (struct sockaddr *)&busy_at, sizeof busy_at);
    }
    struct tcp_info info;
    length_of_info = sizeof info;
    CHECK(getsockopt(connecting[1], IPPROTO_TCP, TCP_INFO, &info, &length_of_info) == 0 && info.tcpi_state == 2);
    struct sockaddr_storage connecting_name = name_of(connecting[1], 0);

    ready();

    for (int i = 0; i < 100; i++) {
        char byte = i;
        CHECK(write(other[0], &byte, 1) == 1 && read(other[0], &byte, 1) == 1 && byte == i);
    }
    close(other[0]);
    int status;
    CHECK(waitpid(child, &status, 0) == child);
    SAME(WEXITSTATUS(status), 42);

    CHECK(same(name_of(both[0], 0), both_name) && same(name_of(both[1], 1), both_peer));
    CHECK(same(name_of(both[0], 1), listening) && same(name_of(both[1], 0), listening));
    SAME(number(both[0], IPPROTO_TCP, TCP_NODELAY), 1);
    SAME(number(both[1], IPPROTO_TCP, TCP_NODELAY), 0);
    SAME(number(both[0], SOL_SOCKET, SO_KEEPALIVE), 1);
    SAME(number(both[0], IPPROTO_TCP, TCP_KEEPIDLE), 77);
    SAME(number(both[0], IPPROTO_TCP, TCP_KEEPINTVL), 11);
    SAME(number(both[0], IPPROTO_TCP, TCP_KEEPCNT), 5);
    SAME(number(both[0], IPPROTO_TCP, TCP_USER_TIMEOUT), 12345);
    SAME(number(both[0], SOL_SOCKET, SO_OOBINLINE), 1);
    SAME(number(both[0], IPPROTO_IP, IP_TOS), 0x10);
    SAME(number(both[0], SOL_SOCKET, SO_PRIORITY), 5);
    SAME(number(both[0], SOL_SOCKET, SO_RCVBUF), buffer);
    SAME(number(both[0], SOL_SOCKET, SO_REUSEADDR), 0);
    SAME(number(listener, SOL_SOCKET, SO_REUSEADDR), 1);
    SAME(number(both[1], SOL_SOCKET, SO_REUSEADDR), 1);
    socklen_t length = sizeof text;
    if (hurries) SAME(number(both[0], IPPROTO_TCP, 44), 50000);
    CHECK(getsockopt(both[0], IPPROTO_TCP, TCP_CONGESTION, text, &length) == 0 && strncmp(text, "reno", 5) == 0);
    length = sizeof linger;
    CHECK(getsockopt(both[0], SOL_SOCKET, SO_LINGER, &linger, &length) == 0 && linger.l_onoff == 1 && linger.l_linger == 9);
    length = sizeof limit;
    CHECK(getsockopt(both[0], SOL_SOCKET, SO_RCVTIMEO, &limit, &length) == 0 && limit.tv_sec == 3);
    SAME(read(both[1], text, 100), 13);
    CHECK(memcmp(text, "to the server", 13) == 0);
    SAME(read(both[0], text, 100), 21);
    CHECK(memcmp(text, "to the client, longer", 21) == 0);
    CHECK(write(both[0], "again", 5) == 5 && read(both[1], text, 100) == 5);

    SAME(read(half[1], text, 100), 8);
    SAME(read(half[1], text, 100), 0);
    CHECK(write(half[1], "still", 5) == 5 && read(half[0], text, 100) == 5);
    CHECK(write(half[0], "x", 1) == -1 && errno == EPIPE);
    close(half[1]);
    SAME(read(half[0], text, 100), 0);
    SAME(read(gone[0], text, 100), 11);
    SAME(read(gone[0], text, 100), 0);
    CHECK(same(name_of(ended[0], 0), ended_name) && same(last_peer_of(ended[1]), ended_name));
    CHECK(same(last_peer_of(ended[0]), listening) && same(name_of(ended[1], 0), listening));
    CHECK(write(ended[0], "x", 1) == -1 && errno == EPIPE);
    SAME(read(ended[1], text, 100), 3);
    SAME(read(ended[1], text, 100), 0);
    SAME(read(ended[0], text, 100), 0);
    CHECK(read(reset[0], text, 100) == -1 && errno == ECONNRESET);
    SAME(read(deaf[0], text, 100), 0);
    CHECK(write(deaf[0], "speaks", 6) == 6 && read(deaf[1], text, 100) == 6);
    read_all(large[0], got, written);
    CHECK(memcmp(got, data, written) == 0);
    SAME(number(large[0], SOL_SOCKET, SO_REUSEADDR), 0);
    SAME(read(mapped[1], text, 100), 4);
    CHECK(same(name_of(mapped[1], 1), mapped_name));
    CHECK(write(mapped[1], "back", 4) == 4 && read(mapped[0], text, 100) == 4);
    SAME(read(pair6[0], text, 100), 3);
    CHECK(same(name_of(listener, 0), listening) && same(name_of(six, 0), listening6));
    CHECK(same(name_of(bound, 0), bound_name) && listen(bound, 1) == 0);
    close(client_of(bound));
    SAME(number(fresh, IPPROTO_IPV6, IPV6_V6ONLY), 1);
    CHECK(same(name_of(connecting[1], 0), connecting_name));
    for (int i = 0; i < 2; i++) {
        int end = accept(busy, NULL, NULL);
        struct pollfd made = {.fd = connecting[i], .events = POLLOUT};
        CHECK(end >= 0 && poll(&made, 1, 30000) == 1 && number(connecting[i], SOL_SOCKET, SO_ERROR) == 0);
    }
    int accepted = accept(listener, NULL, NULL);
    CHECK(accepted >= 0 && same(name_of(accepted, 1), early_name));
    CHECK(write(early, "at last", 7) == 7 && read(accepted, text, 100) == 7);
    int more[2];
    pair(listener, more);
    CHECK(write(more[0], "new", 3) == 3 && read(more[1], text, 100) == 3);
    pair(listener, more);
    ok();
}
