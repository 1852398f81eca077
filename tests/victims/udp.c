/* UDP sockets: bound, connected, with datagrams that were not read, their boundaries and senders; options. As root also
 * raw and ping sockets. */
#include "victim.h"
#include <netinet/in.h>
#include <arpa/inet.h>
#include <linux/filter.h>

static struct sockaddr_in own(int fd) {
    struct sockaddr_in name;
    socklen_t length = sizeof name;
    CHECK(getsockname(fd, (struct sockaddr *)&name, &length) == 0);
    return name;
}

static int bound(uint32_t address) {
    int fd = socket(AF_INET, SOCK_DGRAM, 0);
    struct sockaddr_in name = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(address)};
    CHECK(fd >= 0 && bind(fd, (struct sockaddr *)&name, sizeof name) == 0);
    return fd;
}

static void send_to(int from, struct sockaddr_in to, const char *text) {
    to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    CHECK(sendto(from, text, strlen(text), 0, (struct sockaddr *)&to, sizeof to) == (ssize_t)strlen(text));
}

static void expect(int fd, const char *text, uint16_t port) {
    char got[100];
    struct sockaddr_in from;
    socklen_t length = sizeof from;
    ssize_t n = recvfrom(fd, got, sizeof got, MSG_DONTWAIT, (struct sockaddr *)&from, &length);
    if (n != (ssize_t)strlen(text) || memcmp(got, text, n) != 0) fail(__LINE__, "got %zd bytes instead of %s", n, text);
    SAME(from.sin_port, port);
    SAME(from.sin_addr.s_addr, htonl(INADDR_LOOPBACK));
}

int main(int argc, char **argv) {
    begin(argc, argv);
    int any = bound(INADDR_ANY), local = bound(INADDR_LOOPBACK), other = bound(INADDR_LOOPBACK), passing = bound(INADDR_LOOPBACK);
    uint16_t gone = own(passing).sin_port, known = own(other).sin_port;
    struct sockaddr_in any_name = own(any), local_name = own(local);
    send_to(passing, own(any), "from one that is gone");
    send_to(other, own(any), "from another");
    send_to(passing, own(any), "the third");
    close(passing);
    send_to(other, own(local), "to the local one");
    /* Connected to each other, with a datagram under way. */
    struct sockaddr_in one = own(other);
    int client = socket(AF_INET, SOCK_DGRAM, 0);
    CHECK(connect(client, (struct sockaddr *)&one, sizeof one) == 0);
    struct sockaddr_in client_name = own(client);
    send_to(other, client_name, "to the client");
    CHECK(write(client, "from the client", 15) == 15);
    CHECK(setsockopt(client, SOL_SOCKET, SO_BROADCAST, &(int){1}, sizeof(int)) == 0);
    CHECK(setsockopt(client, SOL_SOCKET, SO_SELECT_ERR_QUEUE, &(int){1}, sizeof(int)) == 0);
    CHECK(setsockopt(client, IPPROTO_IP, IP_PKTINFO, &(int){1}, sizeof(int)) == 0);
    CHECK(setsockopt(client, IPPROTO_IP, IP_TTL, &(int){33}, sizeof(int)) == 0);
    int six = socket(AF_INET6, SOCK_DGRAM, 0);
    struct sockaddr_in6 six_name = {.sin6_family = AF_INET6}, now = {0};
    CHECK(bind(six, (struct sockaddr *)&six_name, sizeof six_name) == 0);
    socklen_t length = sizeof six_name;
    CHECK(getsockname(six, (struct sockaddr *)&six_name, &length) == 0);
    struct sockaddr_in via = {.sin_family = AF_INET, .sin_port = six_name.sin6_port};
    send_to(other, via, "four to six");
    int raw = -1;
    if (geteuid() == 0) raw = socket(AF_INET, SOCK_RAW, 253);
    if (raw >= 0) CHECK(setsockopt(raw, IPPROTO_IP, IP_HDRINCL, &(int){1}, sizeof(int)) == 0);

    /* One that takes only what begins with y (after eight bytes of header), for good. */
    struct sock_filter code[] = {
        BPF_STMT(BPF_LD | BPF_B | BPF_ABS, 8),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, 'y', 0, 1),
        BPF_STMT(BPF_RET | BPF_K, 0xffff),
        BPF_STMT(BPF_RET | BPF_K, 0),
    };
    struct sock_fprog program = {4, code};
    int picky = bound(INADDR_LOOPBACK);
    uint16_t picky_port = own(picky).sin_port;
    send_to(other, own(picky), "no: sent before the filter came");
    CHECK(setsockopt(picky, SOL_SOCKET, SO_ATTACH_FILTER, &program, sizeof program) == 0);
    CHECK(setsockopt(picky, SOL_SOCKET, SO_LOCK_FILTER, &(int){1}, sizeof(int)) == 0);
    CHECK(setsockopt(picky, SOL_SOCKET, SO_NO_CHECK, &(int){1}, sizeof(int)) == 0);
    /* One that is shut down, one that takes nothing any more, and one that sends nothing. */
    int shut = socket(AF_INET, SOCK_DGRAM, 0), taking_none = socket(AF_INET, SOCK_DGRAM, 0);
    CHECK(connect(shut, (struct sockaddr *)&one, sizeof one) == 0 && shutdown(shut, SHUT_RDWR) == 0);
    int sending_none = socket(AF_INET, SOCK_DGRAM, 0);
    CHECK(connect(sending_none, (struct sockaddr *)&one, sizeof one) == 0 && shutdown(sending_none, SHUT_WR) == 0);
    CHECK(connect(taking_none, (struct sockaddr *)&one, sizeof one) == 0 && shutdown(taking_none, SHUT_RD) == 0);

    ready();

    struct sockaddr_in picky_name = own(picky);
    SAME(picky_name.sin_port, picky_port);
    expect(picky, "no: sent before the filter came", known);
    send_to(other, picky_name, "no");
    send_to(other, picky_name, "yes");
    expect(picky, "yes", known);
    CHECK(setsockopt(picky, SOL_SOCKET, SO_DETACH_FILTER, &(int){0}, sizeof(int)) == -1 && errno == EPERM);
    int unchecked;
    length = sizeof unchecked;
    CHECK(getsockopt(picky, SOL_SOCKET, SO_NO_CHECK, &unchecked, &length) == 0 && unchecked == 1);
    CHECK(getsockopt(client, SOL_SOCKET, SO_SELECT_ERR_QUEUE, &unchecked, &length) == 0 && unchecked == 1);
    CHECK(recv(shut, &unchecked, 1, 0) == 0 && send(shut, "x", 1, MSG_NOSIGNAL) == -1 && errno == EPIPE);
    CHECK(recv(taking_none, &unchecked, 1, 0) == 0);
    CHECK(send(sending_none, "x", 1, MSG_NOSIGNAL) == -1 && errno == EPIPE);
    CHECK(recv(sending_none, &unchecked, 1, MSG_DONTWAIT) == -1 && errno == EAGAIN);

    CHECK(own(any).sin_port == any_name.sin_port && own(local).sin_port == local_name.sin_port);
    CHECK(own(client).sin_port == client_name.sin_port);
    expect(any, "from one that is gone", gone);
    expect(any, "from another", known);
    expect(any, "the third", gone);
    expect(local, "to the local one", known);
    expect(client, "to the client", known);
    expect(other, "from the client", client_name.sin_port);
    char text[100];
    CHECK(recv(any, text, 100, MSG_DONTWAIT) == -1 && errno == EAGAIN);
    CHECK(recv(six, text, 100, MSG_DONTWAIT) == 11);
    length = sizeof now;
    CHECK(getsockname(six, (struct sockaddr *)&now, &length) == 0 && now.sin6_port == six_name.sin6_port);
    CHECK(write(client, "more", 4) == 4);
    expect(other, "more", client_name.sin_port);
    /* Others cannot reach a connected one. */
    send_to(local, client_name, "stranger");
    CHECK(recv(client, text, 100, MSG_DONTWAIT) == -1 && errno == EAGAIN);
    int value;
    length = sizeof value;
    CHECK(getsockopt(client, SOL_SOCKET, SO_BROADCAST, &value, &length) == 0 && value == 1);
    CHECK(getsockopt(client, IPPROTO_IP, IP_TTL, &value, &length) == 0 && value == 33);
    CHECK(getsockopt(client, IPPROTO_IP, IP_PKTINFO, &value, &length) == 0 && value == 1);
    if (raw >= 0) CHECK(getsockopt(raw, IPPROTO_IP, IP_HDRINCL, &value, &length) == 0 && value == 1);
    ok();
}
