/* What was there only while something was set up: options that let a socket be bound, directories of sockets' names; and
 * memory that may be emptied at any time. */
#include "victim.h"
#include <netinet/in.h>

#ifndef MAP_DROPPABLE
#define MAP_DROPPABLE 8
#endif

static void set(int fd, int level, int option, int value) {
    CHECK(setsockopt(fd, level, option, &value, sizeof value) == 0);
}

static int get(int fd, int level, int option) {
    int value = -1;
    socklen_t length = sizeof value;
    CHECK(getsockopt(fd, level, option, &value, &length) == 0);
    return value;
}

static struct sockaddr_in own(int fd) {
    struct sockaddr_in name;
    socklen_t length = sizeof name;
    CHECK(getsockname(fd, (struct sockaddr *)&name, &length) == 0);
    return name;
}

/* Bound to a name in a directory of its own, both of which are removed. */
static int hidden(const char *directory, int kind) {
    struct sockaddr_un name = {.sun_family = AF_UNIX};
    snprintf(name.sun_path, sizeof name.sun_path, "%s/name", directory);
    /* An absolute name: for a relative one nobody knows where it was. */
    CHECK(mkdir(directory, 0700) == 0 || errno == EEXIST);
    int fd = socket(AF_UNIX, kind, 0);
    CHECK(bind(fd, (struct sockaddr *)&name, sizeof name) == 0);
    CHECK(unlink(name.sun_path) == 0);
    return fd;
}

/* Whether the kernel lists the mapping with the flag for that. */
static int is_droppable(const void *at) {
    FILE *file = fopen("/proc/self/smaps", "re");
    CHECK(file != NULL);
    char line[512];
    int in = 0, found = 0;
    while (fgets(line, sizeof line, file)) {
        unsigned long start, end;
        if (sscanf(line, "%lx-%lx ", &start, &end) == 2) in = start <= (unsigned long)at && (unsigned long)at < end;
        else if (in && strncmp(line, "VmFlags:", 8) == 0) found = strstr(line, " dp") != NULL;
    }
    fclose(file);
    return found;
}

int main(int argc, char **argv) {
    begin(argc, argv);
    /* An address that this machine does not have. */
    struct sockaddr_in foreign = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(0xc0000207)};
    int free = socket(AF_INET, SOCK_DGRAM, 0);
    set(free, IPPROTO_IP, IP_FREEBIND, 1);
    CHECK(bind(free, (struct sockaddr *)&foreign, sizeof foreign) == 0);
    foreign = own(free);
    set(free, IPPROTO_IP, IP_FREEBIND, 0);
    /* Two that listen at one port. */
    struct sockaddr_in local = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int first = socket(AF_INET, SOCK_STREAM, 0), second = socket(AF_INET, SOCK_STREAM, 0);
    set(first, SOL_SOCKET, SO_REUSEPORT, 1);
    set(second, SOL_SOCKET, SO_REUSEPORT, 1);
    CHECK(bind(first, (struct sockaddr *)&local, sizeof local) == 0);
    local = own(first);
    CHECK(bind(second, (struct sockaddr *)&local, sizeof local) == 0);
    CHECK(listen(first, 3) == 0 && listen(second, 3) == 0);
    set(first, SOL_SOCKET, SO_REUSEPORT, 0);
    /* Several in one directory that is gone. */
    char gone[80], gone_name[100];
    CHECK(getcwd(gone, sizeof gone - 5) != NULL);
    strcat(gone, "/gone");
    snprintf(gone_name, sizeof gone_name, "%s/name", gone);
    int names[3] = {hidden(gone, SOCK_DGRAM), hidden(gone, SOCK_STREAM), hidden(gone, SOCK_DGRAM)};
    CHECK(rmdir(gone) == 0);
    char *droppable = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_DROPPABLE | MAP_ANONYMOUS, -1, 0);
    if (droppable != MAP_FAILED) {
        strcpy(droppable, "perhaps");
        CHECK(is_droppable(droppable));
    }

    ready();

    struct sockaddr_in now = own(free);
    CHECK(now.sin_addr.s_addr == foreign.sin_addr.s_addr && now.sin_port == foreign.sin_port);
    SAME(get(free, IPPROTO_IP, IP_FREEBIND), 0);
    CHECK(own(first).sin_port == local.sin_port && own(second).sin_port == local.sin_port);
    SAME(get(first, SOL_SOCKET, SO_REUSEPORT), 0);
    SAME(get(second, SOL_SOCKET, SO_REUSEPORT), 1);
    for (int i = 0; i < 3; i++) {
        struct sockaddr_un name;
        socklen_t length = sizeof name;
        CHECK(getsockname(names[i], (struct sockaddr *)&name, &length) == 0 && strcmp(name.sun_path, gone_name) == 0);
    }
    CHECK(access(gone, F_OK) == -1 && errno == ENOENT);
    if (droppable != MAP_FAILED) {
        CHECK(is_droppable(droppable));
        CHECK(!*droppable || strcmp(droppable, "perhaps") == 0);
        /* A child has nothing of it. */
        strcpy(droppable, "again");
        pid_t child = fork();
        CHECK(child >= 0);
        if (child == 0) _exit(*droppable ? 1 : 0);
        int status;
        CHECK(waitpid(child, &status, 0) == child && status == 0);
    }
    ok();
}
