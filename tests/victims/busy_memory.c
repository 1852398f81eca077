/* Two processes with much memory of known contents, of which they write a little all the time, and look at it. */
#include "victim.h"

enum { PAGES = 8 << 10, SIZE = 4096, WORDS = SIZE / 8, HOT = 48 };
static uint64_t *memory, *kept;

static uint64_t word(size_t page, size_t index, uint64_t turn) {
    uint64_t x = (page * WORDS + index + 1 + (turn << 32)) * 0x9e3779b97f4a7c15u;
    return x ^ x >> 29;
}

/* The page that is written in this turn: of those that are written, here and there. */
static size_t page_of(uint64_t turn) {
    return turn % HOT * (PAGES / HOT);
}

static void write_page(uint64_t turn) {
    size_t page = page_of(turn);
    for (size_t i = 0; i < WORDS; i++) memory[page * WORDS + i] = word(page, i, turn);
    for (size_t i = 0; i < WORDS; i++) kept[turn % HOT * WORDS + i] = word(page, i, turn);
}

/* `last`: the turn that was last; every page has what was written to it last. */
static void verify(uint64_t last) {
    for (size_t page = 0; page < PAGES; page++) {
        uint64_t turn = 0, slot = page / (PAGES / HOT);
        if (page % (PAGES / HOT) == 0 && slot < HOT && last >= HOT) turn = last - (last - slot) % HOT;
        for (size_t i = 0; i < WORDS; i++)
            if (memory[page * WORDS + i] != word(page, i, turn))
                fail(__LINE__, "page %zu is not of turn %llu at word %zu", page, (long long)turn, i);
        if (turn != 0)
            for (size_t i = 0; i < WORDS; i++)
                if (kept[slot * WORDS + i] != word(page, i, turn)) fail(__LINE__, "shared page %zu", page);
    }
}

int main(int argc, char **argv) {
    begin(argc, argv);
    /* Some who save it from outside interrupt its sleep. */
    disturbed = 1;
    memory = mmap(NULL, (size_t)PAGES * SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(memory != MAP_FAILED);
    for (size_t page = 0; page < PAGES; page++)
        for (size_t i = 0; i < WORDS; i++) memory[page * WORDS + i] = word(page, i, 0);
    pid_t child = fork();
    CHECK(child >= 0);
    kept = shared((size_t)HOT * SIZE);
    uint64_t turn = 0;
    while (turn < 2 * HOT) write_page(++turn);
    if (child != 0) dprintf(1, "READY\n");
    while (access(go, F_OK) != 0) {
        write_page(++turn);
        nap(1);
    }
    verify(turn);
    if (child == 0) _exit(0);
    int status;
    CHECK(waitpid(child, &status, 0) == child && status == 0);
    ok();
}
