/* A process in a cgroup namespace that the job has made, with its child, and one that stayed. */
#include "victim.h"

static void namespace(char *name, size_t size) {
    ssize_t length = readlink("/proc/self/ns/cgroup", name, size - 1);
    CHECK(length > 0);
    name[length] = 0;
}

/* In all hierarchies it is in the root of what it can see. */
static void require_root(void) {
    char line[4096];
    int lines = 0;
    FILE *file = fopen("/proc/self/cgroup", "r");
    CHECK(file != NULL);
    while (fgets(line, sizeof line, file)) {
        size_t length = strlen(line);
        if (length < 3 || strcmp(line + length - 3, ":/\n") != 0) fail(__LINE__, "%s", line);
        lines++;
    }
    fclose(file);
    CHECK(lines > 0);
}

int main(int argc, char **argv) {
    begin(argc, argv);
    be_root_somewhere();
    int out[2], in[2];
    char home[64], theirs[2][64];
    CHECK(pipe(out) == 0 && pipe(in) == 0);
    pid_t inner = fork();
    CHECK(inner >= 0);
    if (inner == 0) {
        CHECK(unshare(CLONE_NEWCGROUP) == 0);
        pid_t child = fork();
        CHECK(child >= 0);
        char byte = 'x';
        CHECK(write(out[1], &byte, 1) == 1 && read(in[0], &byte, 1) == 1);
        require_root();
        char name[64] = "";
        namespace(name, sizeof name);
        CHECK(write(out[1], name, sizeof name) == sizeof name);
        if (child != 0) {
            int status;
            CHECK(waitpid(child, &status, 0) == child);
            SAME(status, 0);
        }
        _exit(0);
    }
    char byte;
    for (int i = 0; i < 2; i++) CHECK(read(out[0], &byte, 1) == 1);
    ready();
    CHECK(write(in[1], "xx", 2) == 2);
    for (int i = 0; i < 2; i++) CHECK(read(out[0], theirs[i], sizeof theirs[i]) == sizeof theirs[i]);
    namespace(home, sizeof home);
    CHECK(strcmp(theirs[0], theirs[1]) == 0);
    CHECK(strcmp(theirs[0], home) != 0);
    int status;
    CHECK(waitpid(inner, &status, 0) == inner);
    SAME(status, 0);
    ok();
}
