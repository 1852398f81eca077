/* A process that has as much memory as its limits let it have. */
#include "victim.h"

int main(int argc, char **argv) {
    begin(argc, argv);
    char *memory = mmap(NULL, 1 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(memory != MAP_FAILED);
    memset(memory, 'm', 1 << 20);
    struct rlimit all = {0, 0}, now;
    CHECK(getrlimit(RLIMIT_AS, &all) == 0);
    all.rlim_cur = 4096;
    CHECK(setrlimit(RLIMIT_AS, &all) == 0);
    ready();
    CHECK(getrlimit(RLIMIT_AS, &now) == 0);
    SAME(now.rlim_cur, 4096);
    SAME(now.rlim_max, all.rlim_max);
    CHECK(mmap(NULL, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) == MAP_FAILED && errno == ENOMEM);
    for (int i = 0; i < 1 << 20; i++) SAME(memory[i], 'm');
    ok();
}
