/* Netlink sockets: port number, groups, options; they answer after a restart. One has messages under way all the time. */
#include "victim.h"
#include <linux/netlink.h>
#include <linux/rtnetlink.h>

static struct sockaddr_nl name_of(int fd) {
    struct sockaddr_nl name;
    socklen_t length = sizeof name;
    CHECK(getsockname(fd, (struct sockaddr *)&name, &length) == 0);
    return name;
}

static atomic_int stop;

/* Asks again and again, and is slow to read the answers: most of the time there is one. */
static void *inquire(void *nothing) {
    (void)nothing;
    int route = socket(AF_NETLINK, SOCK_RAW, NETLINK_ROUTE);
    CHECK(route >= 0);
    struct {
        struct nlmsghdr head;
        struct rtgenmsg body;
    } ask = {{.nlmsg_len = sizeof ask, .nlmsg_type = RTM_GETLINK, .nlmsg_flags = NLM_F_REQUEST | NLM_F_DUMP}, {AF_UNSPEC}};
    static char answer[65536];
    while (!stop) {
        CHECK(send(route, &ask, sizeof ask, 0) == sizeof ask);
        nap(3);
        const struct nlmsghdr *head = (const struct nlmsghdr *)answer;
        do {
            CHECK(recv(route, answer, sizeof answer, 0) >= (ssize_t)sizeof *head);
            CHECK(head->nlmsg_type == RTM_NEWLINK || head->nlmsg_type == NLMSG_DONE);
        } while (head->nlmsg_type != NLMSG_DONE);
        nap(1);
    }
    return NULL;
}

int main(int argc, char **argv) {
    begin(argc, argv);
    int route = socket(AF_NETLINK, SOCK_RAW, NETLINK_ROUTE), events = socket(AF_NETLINK, SOCK_DGRAM, NETLINK_USERSOCK);
    int fresh = socket(AF_NETLINK, SOCK_RAW | SOCK_NONBLOCK, NETLINK_ROUTE);
    /* A number of this run alone, which is nobody's process ID. */
    unsigned number = 2166136261;
    for (const char *at = go; *at; at++) number = (number ^ (unsigned char)*at) * 16777619;
    number = 1u << 30 | number >> 2;
    struct sockaddr_nl any = {.nl_family = AF_NETLINK, .nl_pid = number}, group = {.nl_family = AF_NETLINK, .nl_groups = 1};
    CHECK(bind(route, (struct sockaddr *)&any, sizeof any) == 0);
    int grouped = bind(events, (struct sockaddr *)&group, sizeof group) == 0;
    struct sockaddr_nl first = name_of(route);
    SAME(first.nl_pid, number);
    CHECK(setsockopt(route, SOL_NETLINK, NETLINK_EXT_ACK, &(int){1}, sizeof(int)) == 0);
    pthread_t asks;
    CHECK(pthread_create(&asks, NULL, inquire, NULL) == 0);

    ready();

    stop = 1;
    CHECK(pthread_join(asks, NULL) == 0);

    SAME(name_of(route).nl_pid, first.nl_pid);
    if (grouped) CHECK(name_of(events).nl_pid != 0);
    if (grouped) SAME(name_of(events).nl_groups, 1);
    SAME(name_of(fresh).nl_pid, 0);
    int value;
    socklen_t length = sizeof value;
    CHECK(getsockopt(route, SOL_NETLINK, NETLINK_EXT_ACK, &value, &length) == 0 && value == 1);
    struct {
        struct nlmsghdr head;
        struct rtgenmsg body;
    } ask = {{.nlmsg_len = sizeof ask, .nlmsg_type = RTM_GETLINK, .nlmsg_flags = NLM_F_REQUEST | NLM_F_DUMP, .nlmsg_seq = 7}, {AF_UNSPEC}};
    CHECK(send(route, &ask, sizeof ask, 0) == sizeof ask);
    static char answer[65536];
    CHECK(recv(route, answer, sizeof answer, 0) > (ssize_t)sizeof(struct nlmsghdr));
    SAME(((struct nlmsghdr *)answer)->nlmsg_pid, first.nl_pid);
    ok();
}
