/* Fills blocks of memory, gives them back in several ways, and looks whether they hold what they should: what was
 * copied of a block before it was given back must not come back. */
#include "victim.h"

enum { SIZE = 2 << 20, BLOCKS = 24 };
static unsigned char *base, *spare;
static unsigned char value[BLOCKS];

static void verify(int block) {
    const uint64_t *words = (const uint64_t *)(base + (size_t)block * SIZE);
    uint64_t expected = value[block] * 0x0101010101010101u;
    for (size_t i = 0; i < SIZE / 8; i += 64)
        if (words[i] != expected)
            fail(__LINE__, "block %d, page %zu: %llx, should be %llx", block, i / 512, (long long)words[i], (long long)expected);
}

static void *map(void *at, int fixed) {
    void *got = mmap(at, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | fixed, -1, 0);
    CHECK(got != MAP_FAILED);
    return got;
}

static void empty(int block, unsigned how) {
    unsigned char *at = base + (size_t)block * SIZE;
    switch (how % 5) {
    case 0: CHECK(madvise(at, SIZE, MADV_DONTNEED) == 0); break;
    case 1: CHECK(munmap(at, SIZE) == 0); map(at, MAP_FIXED_NOREPLACE); break;
    case 2: map(at, MAP_FIXED); break;
    case 3: /* moved away and back, empty */
        CHECK(mremap(at, SIZE, SIZE, MREMAP_MAYMOVE | MREMAP_FIXED, spare) == spare);
        map(at, MAP_FIXED_NOREPLACE);
        break;
    case 4: memset(at, 0, SIZE); break;
    }
    if (how & 8) CHECK(madvise(at, SIZE, MADV_HUGEPAGE) == 0);
    if (how & 16) CHECK(madvise(at, SIZE, MADV_NOHUGEPAGE) == 0);
}

int main(int argc, char **argv) {
    begin(argc, argv);
    size_t room = (size_t)(BLOCKS + 2) * SIZE;
    unsigned char *at = mmap(NULL, room, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    CHECK(at != MAP_FAILED);
    base = (unsigned char *)(((uintptr_t)at + SIZE - 1) / SIZE * SIZE);
    spare = base + (size_t)BLOCKS * SIZE;
    for (int block = 0; block <= BLOCKS; block++) {
        map(base + (size_t)block * SIZE, MAP_FIXED);
        if (block % 3 == 0) CHECK(madvise(base + (size_t)block * SIZE, SIZE, MADV_HUGEPAGE) == 0);
    }
    CHECK(write(1, "READY\n", 6) == 6);
    unsigned random = 12345;
    for (unsigned round = 1; round % 16 || access(go, F_OK) != 0; round++) {
        random = random * 1103515245 + 12345;
        int block = (random >> 16) % BLOCKS;
        verify(block);
        if (value[block]) {
            empty(block, random >> 24);
            value[block] = 0;
        } else {
            value[block] = 1 + round % 255;
            memset(base + (size_t)block * SIZE, value[block], SIZE);
        }
    }
    for (int block = 0; block < BLOCKS; block++) verify(block);
    ok();
}
