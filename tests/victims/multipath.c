/* Multipath TCP sockets that have no connection: new, bound, listening. Plain TCP connections come to a listening one,
   as they do to servers that know of several paths when their clients do not. */
#include "victim.h"
#include <netinet/in.h>
#include <netinet/tcp.h>

static int connected(struct sockaddr_in *to) {
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    CHECK(fd >= 0 && connect(fd, (struct sockaddr *)to, sizeof *to) == 0);
    return fd;
}

static int number(int fd, int level, int option) {
    int value = -1;
    socklen_t length = sizeof value;
    CHECK(getsockopt(fd, level, option, &value, &length) == 0);
    return value;
}

static void exchange(int one, int other, char what) {
    char got = 0;
    CHECK(write(one, &what, 1) == 1 && read(other, &got, 1) == 1);
    SAME(got, what);
}

int main(int argc, char **argv) {
    begin(argc, argv);
    int listener = socket(AF_INET, SOCK_STREAM, IPPROTO_MPTCP), fresh = socket(AF_INET, SOCK_STREAM, IPPROTO_MPTCP);
    int bound = socket(AF_INET, SOCK_STREAM, IPPROTO_MPTCP), one = 1, idle = 77;
    struct sockaddr_in here = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)}, there = here, now;
    socklen_t length = sizeof here;
    CHECK(listener >= 0 && fresh >= 0 && bound >= 0);
    CHECK(setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one) == 0);
    CHECK(setsockopt(listener, IPPROTO_TCP, TCP_KEEPIDLE, &idle, sizeof idle) == 0);
    CHECK(bind(listener, (struct sockaddr *)&here, length) == 0 && listen(listener, 5) == 0);
    CHECK(getsockname(listener, (struct sockaddr *)&here, &length) == 0);
    CHECK(bind(bound, (struct sockaddr *)&there, length) == 0);
    CHECK(getsockname(bound, (struct sockaddr *)&there, &length) == 0);
    int client = connected(&here), server = accept(listener, NULL, NULL);
    CHECK(server >= 0);
    SAME(number(server, SOL_SOCKET, SO_PROTOCOL), IPPROTO_TCP);
    /* It waits to be accepted. */
    int waiting = connected(&here);
    ready();
    exchange(client, server, 'a');
    exchange(server, client, 'b');
    int accepted = accept(listener, NULL, NULL);
    CHECK(accepted >= 0);
    exchange(waiting, accepted, 'c');
    int later = connected(&here), new = accept(listener, NULL, NULL);
    CHECK(new >= 0);
    exchange(new, later, 'd');
    /* Those who know of several paths still find somebody who does. */
    SAME(number(listener, SOL_SOCKET, SO_PROTOCOL), IPPROTO_MPTCP);
    SAME(number(listener, IPPROTO_TCP, TCP_KEEPIDLE), 77);
    CHECK(connect(fresh, (struct sockaddr *)&here, length) == 0);
    int several = accept(listener, NULL, NULL);
    CHECK(several >= 0);
    SAME(number(several, SOL_SOCKET, SO_PROTOCOL), IPPROTO_MPTCP);
    exchange(fresh, several, 'e');
    CHECK(getsockname(bound, (struct sockaddr *)&now, &length) == 0);
    SAME(now.sin_port, there.sin_port);
    SAME(number(bound, SOL_SOCKET, SO_PROTOCOL), IPPROTO_MPTCP);
    CHECK(listen(bound, 1) == 0);
    ok();
}
