/* Packet sockets: protocols, interfaces, memberships, options, a fanout group, and a ring in use. Whoever may have none gets
   them in a network of his own. */
#include "network.h"
#include <arpa/inet.h>
#include <linux/if_packet.h>
#include <linux/rtnetlink.h>
#include <net/if.h>
#include <sys/ioctl.h>

enum { PROTOCOL = 0x88b6, BLOCK = 4096, FRAME = 2048, FRAMES = 4, HOLD = 0x77 };

static int loopback, sender, ringed;
static char *ring;

static void network_of_ones_own(void) {
    go_to_a_network_of_ones_own();
    int any = socket(AF_INET, SOCK_DGRAM, 0);
    struct ifreq up = {.ifr_name = "lo", .ifr_flags = IFF_UP | IFF_LOOPBACK | IFF_RUNNING};
    CHECK(any >= 0 && ioctl(any, SIOCSIFFLAGS, &up) == 0 && close(any) == 0);
}

static int option(int fd, int name) {
    int value = -1;
    socklen_t length = sizeof value;
    CHECK(getsockopt(fd, SOL_PACKET, name, &value, &length) == 0);
    return value;
}

static void set(int fd, int name, int value) { CHECK(setsockopt(fd, SOL_PACKET, name, &value, sizeof value) == 0); }

/* How many have the loopback interface receive everything. */
static int promiscuity(void) {
    struct {
        struct nlmsghdr head;
        struct ifinfomsg body;
    } ask = {{.nlmsg_len = sizeof ask, .nlmsg_type = RTM_GETLINK, .nlmsg_flags = NLM_F_REQUEST}, {.ifi_index = loopback}};
    static char answer[65536] __attribute__((aligned(8)));
    int route = socket(AF_NETLINK, SOCK_RAW, NETLINK_ROUTE);
    CHECK(route >= 0 && send(route, &ask, sizeof ask, 0) == sizeof ask);
    CHECK(recv(route, answer, sizeof answer, 0) > 0 && close(route) == 0);
    struct nlmsghdr *head = (void *)answer;
    int left = IFLA_PAYLOAD(head);
    for (struct rtattr *one = IFLA_RTA(NLMSG_DATA(head)); RTA_OK(one, left); one = RTA_NEXT(one, left))
        if (one->rta_type == IFLA_PROMISCUITY) return *(int *)RTA_DATA(one);
    return -1;
}

static void bind_to(int fd, int protocol) {
    struct sockaddr_ll to = {.sll_family = AF_PACKET, .sll_protocol = htons(protocol), .sll_ifindex = loopback};
    CHECK(bind(fd, (struct sockaddr *)&to, sizeof to) == 0);
}

static void is_bound_to(int fd, int protocol, int interface) {
    struct sockaddr_ll name;
    socklen_t length = sizeof name;
    CHECK(getsockname(fd, (struct sockaddr *)&name, &length) == 0);
    SAME(ntohs(name.sll_protocol), protocol);
    SAME(name.sll_ifindex, interface);
}

static void say(int number) {
    struct sockaddr_ll to = {.sll_family = AF_PACKET, .sll_protocol = htons(PROTOCOL), .sll_ifindex = loopback, .sll_halen = 6};
    char text[100] = {0};
    snprintf(text, sizeof text, "packet %d", number);
    SAME(sendto(sender, text, sizeof text, 0, (struct sockaddr *)&to, sizeof to), sizeof text);
}

/* The packet that has come into a frame; with `take`, the frame is the kernel's again. */
static void heard(int frame, int number, int take) {
    struct tpacket2_hdr *head = (struct tpacket2_hdr *)(ring + frame * FRAME);
    for (int tries = 0; !(__atomic_load_n(&head->tp_status, __ATOMIC_ACQUIRE) & TP_STATUS_USER); tries++) {
        if (tries > 6000) fail(__LINE__, "no packet %d in frame %d", number, frame);
        nap(10);
    }
    int said = -1;
    CHECK(sscanf((char *)head + head->tp_net, "packet %d", &said) == 1);
    SAME(said, number);
    if (take) __atomic_store_n(&head->tp_status, TP_STATUS_KERNEL, __ATOMIC_RELEASE);
}

int main(int argc, char **argv) {
    begin(argc, argv);
    int apart = geteuid() != 0;
    if (apart) network_of_ones_own();
    loopback = if_nametoindex("lo");
    sender = socket(AF_PACKET, SOCK_DGRAM, 0);
    ringed = socket(AF_PACKET, SOCK_RAW, 0);
    CHECK(loopback > 0 && sender >= 0 && ringed >= 0);
    set(ringed, PACKET_VERSION, TPACKET_V2);
    set(ringed, PACKET_RESERVE, 8);
    set(ringed, PACKET_AUXDATA, 1);
    struct tpacket_req shape = {.tp_block_size = BLOCK, .tp_block_nr = 2, .tp_frame_size = FRAME, .tp_frame_nr = FRAMES};
    CHECK(setsockopt(ringed, SOL_PACKET, PACKET_RX_RING, &shape, sizeof shape) == 0);
    ring = mmap(NULL, 2 * BLOCK, PROT_READ | PROT_WRITE, MAP_SHARED, ringed, 0);
    CHECK(ring != MAP_FAILED);
    bind_to(ringed, PROTOCOL);
    struct packet_mreq wanted = {.mr_ifindex = loopback, .mr_type = PACKET_MR_PROMISC};
    for (int i = 0; i < 2; i++) CHECK(setsockopt(ringed, SOL_PACKET, PACKET_ADD_MEMBERSHIP, &wanted, sizeof wanted) == 0);
    /* Once around and a little further; the last one stays. */
    for (int i = 1; i <= 6; i++) {
        say(i);
        heard((i - 1) % FRAMES, i, i < 6);
    }
    int old = socket(AF_PACKET, SOCK_PACKET, htons(0x88b7));
    struct sockaddr to = {.sa_family = AF_PACKET, .sa_data = "lo"};
    CHECK(old >= 0 && bind(old, &to, sizeof to) == 0);
    int all = socket(AF_PACKET, SOCK_DGRAM | SOCK_NONBLOCK, htons(0x88b8));
    CHECK(all >= 0);
    int grouped = socket(AF_PACKET, SOCK_DGRAM, 0);
    CHECK(grouped >= 0);
    bind_to(grouped, 0x88b9);
    set(grouped, PACKET_ORIGDEV, 1);
    /* A number of this run alone. */
    unsigned number = 2166136261;
    for (const char *at = go; *at; at++) number = (number ^ (unsigned char)*at) * 16777619;
    int fanout = (int)(number & 0xffff) | PACKET_FANOUT_LB << 16;
    set(grouped, PACKET_FANOUT, fanout);
    /* Mapped, unused and never bound. */
    int quiet = socket(AF_PACKET, SOCK_RAW, 0);
    CHECK(quiet >= 0 && setsockopt(quiet, SOL_PACKET, PACKET_TX_RING, &shape, sizeof shape) == 0);
    char *sending = mmap(NULL, 2 * BLOCK, PROT_READ | PROT_WRITE, MAP_SHARED, quiet, 0);
    CHECK(sending != MAP_FAILED);
    sending[BLOCK - 1] = HOLD;

    ready();

    heard(1, 6, 1);
    for (int i = 7; i <= 12; i++) {
        say(i);
        heard((i - 1) % FRAMES, i, 1);
    }
    is_bound_to(ringed, PROTOCOL, loopback);
    SAME(option(ringed, PACKET_VERSION), TPACKET_V2);
    SAME(option(ringed, PACKET_RESERVE), 8);
    SAME(option(ringed, PACKET_AUXDATA), 1);
    for (int i = 0; i < 2; i++) {
        int others = promiscuity() - 1;
        if (apart ? others != 0 : others < 0) fail(__LINE__, "%d of %d", others, i);
        CHECK(setsockopt(ringed, SOL_PACKET, PACKET_DROP_MEMBERSHIP, &wanted, sizeof wanted) == 0);
    }
    if (apart) SAME(promiscuity(), 0);
    struct sockaddr name;
    socklen_t length = sizeof name;
    CHECK(getsockname(old, &name, &length) == 0 && strcmp(name.sa_data, "lo") == 0);
    is_bound_to(all, 0x88b8, 0);
    CHECK(fcntl(all, F_GETFL) & O_NONBLOCK);
    is_bound_to(grouped, 0x88b9, loopback);
    SAME(option(grouped, PACKET_ORIGDEV), 1);
    SAME(option(grouped, PACKET_FANOUT), fanout);
    is_bound_to(quiet, 0, 0);
    SAME(sending[BLOCK - 1], HOLD);
    SAME(recv(all, &name, sizeof name, 0), -1);
    ok();
}
