/* Processes in network namespaces that the job has made: two that are connected by a cable, each with connections, a
 * name, addresses, a route and a setting of its own, and one that stayed. */
#include "victim.h"

#include <arpa/inet.h>
#include <linux/netlink.h>
#include <net/if.h>
#include <netinet/in.h>
#include <sys/ioctl.h>

enum { PORT = 4000 };

static void run(const char *command) {
    if (system(command) != 0) fail(__LINE__, "%s", command);
}

static void write_file(const char *path, const char *text) {
    int fd = open(path, O_WRONLY);
    CHECK(fd >= 0 && write(fd, text, strlen(text)) == (ssize_t)strlen(text) && close(fd) == 0);
}

static void require_file(const char *path, const char *text) {
    char now[64] = "";
    int fd = open(path, O_RDONLY);
    CHECK(fd >= 0 && read(fd, now, sizeof now - 1) >= 0 && close(fd) == 0);
    if (strcmp(now, text) != 0) fail(__LINE__, "%s is %s", path, now);
}

static struct sockaddr_in address(const char *ip, int port) {
    struct sockaddr_in name = {.sin_family = AF_INET, .sin_port = htons(port)};
    CHECK(inet_pton(AF_INET, ip, &name.sin_addr) == 1);
    return name;
}

/* What every namespace has: a connection with unread data, and an abstract name. */
struct sockets {
    int listening, client, server, named, route;
};

static struct sockets open_sockets(char mark) {
    struct sockets s;
    struct sockaddr_in name = address("127.0.0.1", PORT);
    s.listening = socket(AF_INET, SOCK_STREAM, 0);
    CHECK(bind(s.listening, (void *)&name, sizeof name) == 0 && listen(s.listening, 5) == 0);
    s.client = socket(AF_INET, SOCK_STREAM, 0);
    CHECK(connect(s.client, (void *)&name, sizeof name) == 0);
    CHECK((s.server = accept(s.listening, NULL, NULL)) >= 0);
    CHECK(write(s.client, &mark, 1) == 1);
    struct sockaddr_un abstract = {.sun_family = AF_UNIX, .sun_path = "\0cpr-networks"};
    s.named = socket(AF_UNIX, SOCK_DGRAM, 0);
    CHECK(bind(s.named, (void *)&abstract, sizeof(sa_family_t) + 13) == 0);
    CHECK(sendto(s.named, &mark, 1, 0, (void *)&abstract, sizeof(sa_family_t) + 13) == 1);
    s.route = socket(AF_NETLINK, SOCK_RAW, NETLINK_ROUTE);
    struct sockaddr_nl any = {.nl_family = AF_NETLINK};
    CHECK(bind(s.route, (void *)&any, sizeof any) == 0);
    return s;
}

static void check_sockets(struct sockets s, char mark) {
    char got = 0;
    CHECK(read(s.server, &got, 1) == 1);
    SAME(got, mark);
    CHECK(write(s.server, "b", 1) == 1 && read(s.client, &got, 1) == 1);
    SAME(got, 'b');
    CHECK(recv(s.named, &got, 1, 0) == 1);
    SAME(got, mark);
    struct sockaddr_un abstract = {.sun_family = AF_UNIX, .sun_path = "\0cpr-networks"};
    CHECK(sendto(s.named, "c", 1, 0, (void *)&abstract, sizeof(sa_family_t) + 13) == 1);
    CHECK(recv(s.named, &got, 1, 0) == 1);
    SAME(got, 'c');
    struct sockaddr_in name = address("127.0.0.1", PORT);
    int more = socket(AF_INET, SOCK_STREAM, 0);
    CHECK(connect(more, (void *)&name, sizeof name) == 0 && accept(s.listening, NULL, NULL) >= 0);
}

static void *idle(void *unused) {
    pause();
    return unused;
}

static void say(int fd) { CHECK(write(fd, "x", 1) == 1); }

static void hear(int fd) {
    char byte;
    CHECK(read(fd, &byte, 1) == 1);
}

static int mtu_of(const char *name) {
    struct ifreq request = {0};
    strcpy(request.ifr_name, name);
    int fd = socket(AF_INET, SOCK_DGRAM, 0);
    if (fd < 0 || ioctl(fd, SIOCGIFMTU, &request) != 0) fail(__LINE__, "there is no %s", name);
    close(fd);
    return request.ifr_mtu;
}

/* A connection over the cable. */
static int connect_across(int number) {
    struct sockaddr_in name = address("10.7.0.1", 6000);
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    CHECK(fd >= 0);
    if (number == 0) {
        CHECK(bind(fd, (void *)&name, sizeof name) == 0 && listen(fd, 5) == 0);
        return accept(fd, NULL, NULL);
    }
    for (int tries = 0; connect(fd, (void *)&name, sizeof name) != 0; tries++) {
        CHECK(tries < 1000 && usleep(10000) == 0);
    }
    return fd;
}

static int told[2][2], heard[2];

/* One end of the cable. Both have the same port and name as the other. */
static void end(int number, int other_pid_from) {
    CHECK(unshare(CLONE_NEWNET) == 0);
    say(heard[1]);
    if (number == 0) {
        pid_t other;
        CHECK(read(other_pid_from, &other, sizeof other) == sizeof other);
        char command[128];
        snprintf(command, sizeof command, "ip link add left mtu 1400 type veth peer name right netns %d", (int)other);
        run(command);
    }
    say(heard[1]);
    hear(told[number][0]);
    run("ip link set lo up");
    if (number == 0) {
        run("ip addr add 10.7.0.1/24 dev left && ip link set left up");
        run("ip route add 10.8.0.0/16 via 10.7.0.2 && ip route del 10.7.0.0/24 && ip route add 10.7.0.2 dev left metric 7"
            " && ip rule add to 10.66.0.0/16 prohibit priority 100");
        write_file("/proc/sys/net/ipv4/conf/left/forwarding", "1");
        write_file("/proc/sys/net/core/somaxconn", "77");
    } else {
        run("ip addr add 10.7.0.2/24 dev right && ip link set right up && ip -6 addr add fd07::2/64 dev right nodad");
    }
    struct sockets sockets = open_sockets('0' + number);
    struct sockaddr_in own = address(number ? "10.7.0.2" : "10.7.0.1", 5000);
    struct sockaddr_in other = address(number ? "10.7.0.1" : "10.7.0.2", 5000);
    int cable = socket(AF_INET, SOCK_DGRAM, 0);
    CHECK(bind(cable, (void *)&own, sizeof own) == 0);
    int across = connect_across(number);
    CHECK(write(across, number ? "R" : "L", 1) == 1);
    pthread_t thread;
    CHECK(pthread_create(&thread, NULL, idle, NULL) == 0);
    if (number == 0) {
        /* Nobody says where that is: the kernel has the datagram for some seconds. */
        run("ip route add 10.9.0.1 dev left");
        struct sockaddr_in nobody = address("10.9.0.1", 9);
        int lost = socket(AF_INET, SOCK_DGRAM, 0);
        CHECK(lost >= 0 && sendto(lost, "x", 1, 0, (void *)&nobody, sizeof nobody) == 1);
    }
    say(heard[1]);
    hear(told[number][0]);
    check_sockets(sockets, '0' + number);
    char got = 0;
    CHECK(sendto(cable, number ? "r" : "l", 1, 0, (void *)&other, sizeof other) == 1);
    struct pollfd wait_for = {.fd = cable, .events = POLLIN};
    SAME(poll(&wait_for, 1, 10000), 1);
    CHECK(recv(cable, &got, 1, 0) == 1);
    SAME(got, number ? 'l' : 'r');
    CHECK(read(across, &got, 1) == 1);
    SAME(got, number ? 'L' : 'R');
    CHECK(write(across, "!", 1) == 1 && read(across, &got, 1) == 1);
    SAME(got, '!');
    if (number == 0) {
        SAME(mtu_of("left"), 1400);
        require_file("/proc/sys/net/core/somaxconn", "77\n");
        require_file("/proc/sys/net/ipv4/conf/left/forwarding", "1\n");
        struct sockaddr_in far = address("10.8.1.1", 1), banned = address("10.66.1.1", 1), gone = address("10.7.0.3", 1);
        int probe = socket(AF_INET, SOCK_DGRAM, 0);
        SAME(connect(probe, (void *)&banned, sizeof banned), -1);
        SAME(errno, EACCES);
        SAME(connect(probe, (void *)&gone, sizeof gone), -1);
        SAME(errno, ENETUNREACH);
        CHECK(connect(probe, (void *)&far, sizeof far) == 0);
        struct sockaddr_in from;
        socklen_t length = sizeof from;
        CHECK(getsockname(probe, (void *)&from, &length) == 0);
        SAME(from.sin_addr.s_addr, own.sin_addr.s_addr);
    } else {
        struct sockaddr_in6 six = {.sin6_family = AF_INET6};
        CHECK(inet_pton(AF_INET6, "fd07::2", &six.sin6_addr) == 1);
        CHECK(bind(socket(AF_INET6, SOCK_DGRAM, 0), (void *)&six, sizeof six) == 0);
    }
    _exit(0);
}

int main(int argc, char **argv) {
    begin(argc, argv);
    be_root_somewhere();
    int pids[2];
    CHECK(pipe(pids) == 0 && pipe(heard) == 0 && pipe(told[0]) == 0 && pipe(told[1]) == 0);
    struct sockaddr_un abstract = {.sun_family = AF_UNIX};
    snprintf(abstract.sun_path + 1, 60, "cpr-networks-%d", (int)getpid());
    int home = socket(AF_UNIX, SOCK_DGRAM, 0);
    CHECK(bind(home, (void *)&abstract, sizeof(sa_family_t) + 30) == 0);
    pid_t ends[2];
    for (int i = 0; i < 2; i++) {
        CHECK((ends[i] = fork()) >= 0);
        if (ends[i] == 0) end(i, pids[0]);
    }
    hear(heard[0]);
    hear(heard[0]);
    CHECK(write(pids[1], &ends[1], sizeof ends[1]) == sizeof ends[1]);
    for (int i = 0; i < 2; i++) hear(heard[0]);
    for (int i = 0; i < 2; i++) say(told[i][1]);
    for (int i = 0; i < 2; i++) hear(heard[0]);
    ready();
    SAME(access("/proc/self/net/dev", R_OK), 0);
    for (int i = 0; i < 2; i++) say(told[i][1]);
    for (int i = 0; i < 2; i++) {
        int status;
        pid_t ended = wait(&status);
        CHECK(ended == ends[0] || ended == ends[1]);
        SAME(status, 0);
    }
    ok();
}
