/* Memory of which every other page is used, in large numbers, while it changes: the lists of pages are long. */
#include "victim.h"

enum { PAGES = 6000 };
int main(int argc, char **argv) {
    begin(argc, argv);
    unsigned char *at = mmap(NULL, PAGES * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(at != MAP_FAILED);
    static unsigned char value[PAGES];
    unsigned random = 1, used = mode[0] ? atoi(mode) : 700;
    CHECK(write(1, "READY\n", 6) == 6);
    for (unsigned round = 0; round % 256 || access(go, F_OK) != 0; round++) {
        random = random * 1103515245 + 12345;
        unsigned page = (random >> 12) % used * (PAGES / used);
        SAME(at[page * 4096 + 7], value[page]);
        at[page * 4096 + 7] = value[page] = round % 255 + 1;
    }
    for (unsigned page = 0; page < PAGES; page++) SAME(at[page * 4096 + 7], value[page]);
    ok();
}
