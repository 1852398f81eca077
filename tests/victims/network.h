/* What the victims with network namespaces of their own have in common. */
#include "victim.h"

static void put(const char *path, const char *text) {
    int fd = open(path, O_WRONLY);
    CHECK(fd >= 0 && write(fd, text, strlen(text)) == (ssize_t)strlen(text) && close(fd) == 0);
}

/* Goes to a new network namespace of a new user namespace, where the numbers of users and groups are what they were. */
static void go_to_a_network_of_ones_own(void) {
    char user[64], group[64];
    snprintf(user, sizeof user, "%d %d 1", geteuid(), geteuid());
    snprintf(group, sizeof group, "%d %d 1", getegid(), getegid());
    CHECK(unshare(CLONE_NEWUSER | CLONE_NEWNET) == 0);
    put("/proc/self/setgroups", "deny");
    put("/proc/self/uid_map", user);
    put("/proc/self/gid_map", group);
}
