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

/* What is mounted, without the numbers that the kernel gives. */
static void mounted(char *to, size_t size) {
    static char text[1 << 18];
    slurp("/proc/self/mountinfo", text, sizeof text);
    to[0] = 0;
    for (char *line = strtok(text, "\n"); line != NULL; line = strtok(NULL, "\n")) {
        char root[4096], point[4096], options[256], tag[64];
        CHECK(sscanf(line, "%*d %*d %*s %4095s %4095s %255s %63s", root, point, options, tag) == 4);
        CHECK(strlen(to) + strlen(point) + strlen(root) + strlen(options) + 16 < size);
        sprintf(to + strlen(to), "%s %s %s %d\n", root, point, options, tag[0] != '-');
    }
}
