/* A daemon: opens files that only root may open, then becomes another user. */
#include "victim.h"
#include <grp.h>

int main(int argc, char **argv) {
    begin(argc, argv);
    int log = open("roots.log", O_RDWR | O_CREAT | O_APPEND, 0600);
    CHECK(log >= 0 && write(log, "begun\n", 6) == 6);
    CHECK(mkdir("roots", 0700) == 0);
    int directory = open("roots", O_RDONLY | O_DIRECTORY);
    CHECK(directory >= 0);
    CHECK(setgroups(0, NULL) == 0 && setresgid(65534, 65534, 65534) == 0 && setresuid(65534, 65534, 65534) == 0);
    CHECK(open("roots.log", O_RDONLY) == -1 && errno == EACCES);
    ready();
    char text[16] = "";
    CHECK(write(log, "ended\n", 6) == 6 && pread(log, text, 12, 0) == 12 && strcmp(text, "begun\nended\n") == 0);
    CHECK(fchdir(directory) == -1 && errno == EACCES);
    SAME(geteuid(), 65534);
    ok();
}
