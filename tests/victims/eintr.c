/* A call that is never made again once it was interrupted, whoever did that (signal(7)): recv(2) with SO_RCVTIMEO. */
#include "victim.h"

static int ends[2];
static atomic_int begun, done;
static ssize_t result;
static int error;

static void *receive(void *unused) {
    char c;
    begun = 1;
    result = recv(ends[0], &c, 1, 0);
    error = errno;
    done = 1;
    return unused;
}

int main(int argc, char **argv) {
    begin(argc, argv);
    struct timeval limit = {1000, 0};
    pthread_t thread;
    CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, ends) == 0);
    CHECK(setsockopt(ends[0], SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit) == 0);
    CHECK(pthread_create(&thread, NULL, receive, NULL) == 0);
    AWAIT(begun);
    nap(100);
    CHECK(!done);
    ready();
    AWAIT(done);
    SAME(result, -1);
    SAME(error, EINTR);
    ok();
}
