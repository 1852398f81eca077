/* What the victims with mount namespaces of their own have in common. */
#include "victim.h"

static int there, go_on;

static void wait_for_word(void) {
    char byte = 'x';
    CHECK(write(there, &byte, 1) == 1 && read(go_on, &byte, 1) == 1);
}

static void finish(pid_t pid) {
    int status;
    CHECK(waitpid(pid, &status, 0) == pid);
    SAME(status, 0);
}

struct mount_line {
    char point[512], rest[512];
};

/* What is mounted, without the numbers that the kernel gives: by place, and at one place in the order they lie on each
 * other. */
static void mounted(char *to, size_t size) {
    static char text[1 << 18];
    static struct mount_line lines[512];
    int count = 0;
    slurp("/proc/self/mountinfo", text, sizeof text);
    for (char *line = strtok(text, "\n"); line != NULL; line = strtok(NULL, "\n")) {
        char root[256], options[200], tag[32];
        struct mount_line new;
        CHECK(sscanf(line, "%*d %*d %*s %255s %511s %199s %31s", root, new.point, options, tag) == 4);
        snprintf(new.rest, sizeof new.rest, "%s %s %d", root, options, tag[0] != '-');
        CHECK(count < 512);
        int at = count++;
        for (; at > 0 && strcmp(lines[at - 1].point, new.point) > 0; at--) lines[at] = lines[at - 1];
        lines[at] = new;
    }
    to[0] = 0;
    for (int i = 0; i < count; i++) {
        size_t length = strlen(to);
        CHECK((size_t)snprintf(to + length, size - length, "%s %s\n", lines[i].point, lines[i].rest) < size - length);
    }
}
