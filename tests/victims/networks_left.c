/* Sockets of a network namespace where nobody lives any more: a process has made it, and sockets there, and come back. */
#include "network.h"
#include <arpa/inet.h>
#include <net/if.h>
#include <netinet/in.h>
#include <sys/ioctl.h>

#ifndef SO_NETNS_COOKIE
#define SO_NETNS_COOKIE 71
#endif

static uint64_t cookie(int fd) {
    uint64_t value = 0;
    socklen_t length = sizeof value;
    CHECK(getsockopt(fd, SOL_SOCKET, SO_NETNS_COOKIE, &value, &length) == 0);
    return value;
}

int main(int argc, char **argv) {
    begin(argc, argv);
    if (geteuid() != 0) {
        /* A user comes back only to a network of his own. */
        go_to_a_network_of_ones_own();
    }
    int home = open("/proc/self/ns/net", O_RDONLY);
    CHECK(home >= 0 && unshare(CLONE_NEWNET) == 0);
    int listener = socket(AF_INET, SOCK_STREAM, 0), client = socket(AF_INET, SOCK_STREAM, 0);
    int heard = socket(AF_INET, SOCK_DGRAM, 0), route = socket(AF_NETLINK, SOCK_RAW, 0);
    struct ifreq up = {.ifr_name = "lo", .ifr_flags = IFF_UP | IFF_LOOPBACK | IFF_RUNNING};
    CHECK(ioctl(heard, SIOCSIFFLAGS, &up) == 0);
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons(7), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    CHECK(bind(listener, (struct sockaddr *)&at, sizeof at) == 0 && listen(listener, 1) == 0);
    CHECK(connect(client, (struct sockaddr *)&at, sizeof at) == 0);
    int server = accept(listener, NULL, NULL);
    CHECK(server >= 0 && bind(heard, (struct sockaddr *)&at, sizeof at) == 0);
    CHECK(send(client, "under way", 9, 0) == 9);
    CHECK(setns(home, CLONE_NEWNET) == 0 && close(home) == 0);
    int here = socket(AF_INET, SOCK_DGRAM, 0);

    ready();

    char text[16] = "";
    SAME(recv(server, text, sizeof text, 0), 9);
    CHECK(strcmp(text, "under way") == 0);
    CHECK(send(server, "answer", 6, 0) == 6);
    SAME(recv(client, text, sizeof text, 0), 6);
    SAME(sendto(heard, "self", 4, 0, (struct sockaddr *)&at, sizeof at), 4);
    SAME(recv(heard, text, sizeof text, 0), 4);
    uint64_t there = cookie(listener);
    CHECK(there == cookie(client) && there == cookie(server) && there == cookie(heard) && there == cookie(route));
    CHECK(there != cookie(here));
    int fresh = socket(AF_INET, SOCK_STREAM, 0);
    CHECK(cookie(fresh) == cookie(here));
    ok();
}
