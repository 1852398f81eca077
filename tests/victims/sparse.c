/* A mapping of terabytes of which a few pages are used, as sanitizers and virtual machines of languages have: it is
   saved, and neither a checkpoint nor a restart makes page tables for what is not used. */
#include "victim.h"
#include <sys/sysinfo.h>

#define TIB (1ul << 40)
#define LENGTH (4 * TIB)
#define PAGES 5
/* Of shared memory, a few pages of which are used as well. */
#define SHARED (2ul << 30)

/* KiB, of /proc/self/status. */
static long status(const char *name) {
    char text[8192];
    slurp("/proc/self/status", text, sizeof text);
    char *line = strstr(text, name);
    CHECK(line != NULL);
    return strtol(line + strlen(name), NULL, 10);
}

/* More memory than the machine has, asked for bit by bit: no machine gives it in one piece. */
static unsigned char *grow(size_t *length) {
    struct sysinfo machine;
    CHECK(sysinfo(&machine) == 0);
    size_t piece = 1ul << 28, has = (machine.totalram + machine.totalswap) * machine.mem_unit;
    size_t all = (has / piece + 4) * piece;
    unsigned char *start = mmap(NULL, all, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(start != MAP_FAILED);
    for (*length = 0; *length < all; *length += piece) {
        int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED;
        if (mmap(start + *length, piece, PROT_READ | PROT_WRITE, flags, -1, 0) == MAP_FAILED) break;
    }
    return start;
}

int main(int argc, char **argv) {
    begin(argc, argv);
    size_t grown;
    unsigned char *heap = grow(&grown);
    CHECK(grown > 0);
    heap[5] = 1, heap[grown - 1] = 2;
    int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
    unsigned char *all = mmap(NULL, LENGTH, PROT_READ | PROT_WRITE, flags, -1, 0);
    CHECK(all != MAP_FAILED);
    size_t places[PAGES] = {0, LENGTH / 4 - 4096, LENGTH / 2 + 4096 * 7, LENGTH / 4 * 3, LENGTH - 4096};
    for (int page = 0; page < PAGES; page++) all[places[page] + 5] = page + 1;
    unsigned char *common = mmap(NULL, SHARED, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    CHECK(common != MAP_FAILED);
    common[7] = 4, common[SHARED / 2] = 5, common[SHARED - 1] = 6;
    long kib;
    ready();
    kib = status("RssShmem:");
    if (kib > 65536) fail(__LINE__, "%ld KiB of shared memory are there", kib);
    SAME(common[7], 4);
    SAME(common[SHARED / 2], 5);
    SAME(common[SHARED - 1], 6);
    SAME(common[SHARED / 4], 0);
    for (int page = 0; page < PAGES; page++) {
        SAME(all[places[page] + 5], page + 1);
        SAME(all[places[page] + 4], 0);
    }
    SAME(all[TIB], 0);
    SAME(heap[5], 1);
    SAME(heap[grown - 1], 2);
    heap[grown / 2] = 3;
    all[TIB + 1] = 1;
    /* Those of the pages used, and of the program. */
    kib = status("VmPTE:");
    if (kib > 4096) fail(__LINE__, "page tables take %ld KiB", kib);
    ok();
}
