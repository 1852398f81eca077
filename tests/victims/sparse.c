/* A mapping of terabytes of which a few pages are used, as sanitizers and virtual machines of languages have: it is
   saved, and neither a checkpoint nor a restart makes page tables for what is not used. */
#include "victim.h"

#define TIB (1ul << 40)
#define LENGTH (4 * TIB)
#define PAGES 5

static long page_tables(void) {
    char text[8192];
    slurp("/proc/self/status", text, sizeof text);
    char *line = strstr(text, "VmPTE:");
    CHECK(line != NULL);
    return strtol(line + strlen("VmPTE:"), NULL, 10);
}

int main(int argc, char **argv) {
    begin(argc, argv);
    int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
    unsigned char *all = mmap(NULL, LENGTH, PROT_READ | PROT_WRITE, flags, -1, 0);
    CHECK(all != MAP_FAILED);
    size_t places[PAGES] = {0, LENGTH / 4 - 4096, LENGTH / 2 + 4096 * 7, LENGTH / 4 * 3, LENGTH - 4096};
    for (int page = 0; page < PAGES; page++) all[places[page] + 5] = page + 1;
    ready();
    for (int page = 0; page < PAGES; page++) {
        SAME(all[places[page] + 5], page + 1);
        SAME(all[places[page] + 4], 0);
    }
    SAME(all[TIB], 0);
    all[TIB + 1] = 1;
    /* Those of the pages used, and of the program. */
    long kib = page_tables();
    if (kib > 4096) fail(__LINE__, "page tables take %ld KiB", kib);
    ok();
}
