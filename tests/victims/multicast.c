/* Membership of multicast groups: of all senders, of one, and of all but one; in IPv4, in IPv6, and IPv4 groups of an
   IPv6 socket. All on the loopback interface, where what is sent to a group comes back. */
#include "victim.h"
#include <arpa/inet.h>
#include <net/if.h>
#include <netinet/in.h>

#define ALL "239.7.1.1"
#define ONE "232.7.1.2"
#define NOT_ONE "239.7.1.3"

static unsigned lo;

static struct sockaddr_storage address(const char *text, int port) {
    struct sockaddr_storage all = {0};
    struct sockaddr_in *v4 = (void *)&all;
    struct sockaddr_in6 *v6 = (void *)&all;
    if (inet_pton(AF_INET, text, &v4->sin_addr) == 1) {
        v4->sin_family = AF_INET, v4->sin_port = htons(port);
    } else {
        CHECK(inet_pton(AF_INET6, text, &v6->sin6_addr) == 1);
        v6->sin6_family = AF_INET6, v6->sin6_port = htons(port);
    }
    return all;
}

static int level(const struct sockaddr_storage *group) {
    return group->ss_family == AF_INET ? IPPROTO_IP : IPPROTO_IPV6;
}

static void join(int fd, const char *group) {
    struct group_req what = {.gr_interface = lo, .gr_group = address(group, 0)};
    CHECK(setsockopt(fd, level(&what.gr_group), MCAST_JOIN_GROUP, &what, sizeof what) == 0);
}

static void with_sender(int fd, int how, const char *group, const char *sender) {
    struct group_source_req what = {
        .gsr_interface = lo, .gsr_group = address(group, 0), .gsr_source = address(sender, 0)};
    CHECK(setsockopt(fd, level(&what.gsr_group), how, &what, sizeof what) == 0);
}

/* What the socket hears of a group: mode, number of senders, and the first of them. Minus one: it is no member. */
struct heard {
    int mode, senders;
    struct sockaddr_storage first;
};

static struct heard heard(int fd, const char *group) {
    struct heard all = {.mode = -1};
    union {
        struct group_filter filter;
        char room[4096];
    } what = {.filter = {.gf_interface = lo, .gf_group = address(group, 0), .gf_numsrc = 8}};
    socklen_t length = sizeof what;
    if (getsockopt(fd, level(&what.filter.gf_group), MCAST_MSFILTER, &what, &length) != 0) return all;
    all.mode = what.filter.gf_fmode, all.senders = what.filter.gf_numsrc;
    if (all.senders > 0) all.first = what.filter.gf_slist[0];
    return all;
}

static void require(int fd, const char *group, int mode, const char *sender) {
    struct heard now = heard(fd, group);
    SAME(now.mode, mode);
    SAME(now.senders, sender != NULL);
    if (sender == NULL) return;
    struct sockaddr_storage wanted = address(sender, 0);
    CHECK(now.first.ss_family == wanted.ss_family);
    CHECK(memcmp((char *)&now.first + (wanted.ss_family == AF_INET ? 4 : 8),
                 (char *)&wanted + (wanted.ss_family == AF_INET ? 4 : 8), wanted.ss_family == AF_INET ? 4 : 16) == 0);
}

/* Whether something sent to the group arrives at the socket. */
static int arrives(int from, int at, const char *group, int port) {
    struct sockaddr_storage to = address(group, port);
    struct pollfd look = {.fd = at, .events = POLLIN};
    char word[8];
    CHECK(sendto(from, "hello", 5, 0, (struct sockaddr *)&to, sizeof(struct sockaddr_in)) == 5);
    /* What goes through the loopback interface is there when the call returns, or soon. */
    if (poll(&look, 1, 300) == 0) return 0;
    SAME(recv(at, word, sizeof word, 0), 5);
    return 1;
}

int main(int argc, char **argv) {
    begin(argc, argv);
    lo = if_nametoindex("lo");
    CHECK(lo != 0);
    int four = socket(AF_INET, SOCK_DGRAM, 0), six = socket(AF_INET6, SOCK_DGRAM, 0);
    int from = socket(AF_INET, SOCK_DGRAM, 0);
    struct sockaddr_in any = {.sin_family = AF_INET}, here = any;
    here.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t length = sizeof any;
    struct ip_mreqn outgoing = {.imr_ifindex = lo};
    CHECK(four >= 0 && from >= 0 && bind(four, (struct sockaddr *)&any, length) == 0);
    CHECK(getsockname(four, (struct sockaddr *)&any, &length) == 0);
    CHECK(bind(from, (struct sockaddr *)&here, sizeof here) == 0);
    CHECK(setsockopt(from, IPPROTO_IP, IP_MULTICAST_IF, &outgoing, sizeof outgoing) == 0);
    int off = 0;
    /* Only what the socket itself has joined. */
    CHECK(setsockopt(four, IPPROTO_IP, IP_MULTICAST_ALL, &off, sizeof off) == 0);
    join(four, ALL);
    with_sender(four, MCAST_JOIN_SOURCE_GROUP, ONE, "127.0.0.1");
    join(four, NOT_ONE);
    with_sender(four, MCAST_BLOCK_SOURCE, NOT_ONE, "127.0.0.1");
    if (six >= 0) {
        join(six, "ff11::7:1");
        with_sender(six, MCAST_JOIN_SOURCE_GROUP, "ff31::7:2", "::1");
        join(six, ALL);
    }
    int port = ntohs(any.sin_port);
    CHECK(arrives(from, four, ALL, port) && arrives(from, four, ONE, port) && !arrives(from, four, NOT_ONE, port));
    ready();
    require(four, ALL, MCAST_EXCLUDE, NULL);
    require(four, ONE, MCAST_INCLUDE, "127.0.0.1");
    require(four, NOT_ONE, MCAST_EXCLUDE, "127.0.0.1");
    SAME(heard(four, "239.7.1.4").mode, -1);
    if (six >= 0) {
        require(six, "ff11::7:1", MCAST_EXCLUDE, NULL);
        require(six, "ff31::7:2", MCAST_INCLUDE, "::1");
        require(six, ALL, MCAST_EXCLUDE, NULL);
    }
    SAME(arrives(from, four, ALL, port), 1);
    SAME(arrives(from, four, ONE, port), 1);
    SAME(arrives(from, four, NOT_ONE, port), 0);
    ok();
}
