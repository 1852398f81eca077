/* Changes its address space all the time: SLOTS of 16 pages are written, given back to the kernel, unmapped and mapped
 * anew, moved away and back, or protected and unprotected. The program knows what each has to contain, and which one it
 * is at work on; a copy of the memory that is not of one instant shows one that has something else.
 * Checks itself whenever the file `check` is there, and ends: 0 if the memory is of one instant. */
#define _GNU_SOURCE
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define PAGE 4096ul
#define SLOT (16 * PAGE)

static char *memory, *aside;
static uint64_t *expected; /* of each slot: what all its words are */
static volatile size_t current;

static void must(int good, const char *what) {
    if (!good) {
        perror(what);
        _exit(2);
    }
}

static void write_slot(size_t slot, uint64_t value) {
    uint64_t *words = (uint64_t *)(memory + slot * SLOT);
    for (size_t i = 0; i < SLOT / 8; i++)
        words[i] = value;
    expected[slot] = value;
}

static void change(size_t slot, uint64_t random) {
    char *at = memory + slot * SLOT;
    switch (random % 8) {
    case 0:
        must(madvise(at, SLOT, MADV_DONTNEED) == 0, "madvise");
        expected[slot] = 0;
        break;
    case 1:
        must(munmap(at, SLOT) == 0, "munmap");
        must(mmap(at, SLOT, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == at, "mmap");
        expected[slot] = 0;
        break;
    case 2:
        must(mremap(at, SLOT, SLOT, MREMAP_MAYMOVE | MREMAP_FIXED, aside) == aside, "mremap away");
        must(mremap(aside, SLOT, SLOT, MREMAP_MAYMOVE | MREMAP_FIXED, at) == at, "mremap back");
        break;
    case 3:
        must(mprotect(at, SLOT, PROT_READ) == 0, "mprotect");
        must(mprotect(at, SLOT, PROT_READ | PROT_WRITE) == 0, "mprotect");
        break;
    default:
        write_slot(slot, random | 1);
    }
}

int main(int argc, char **argv) {
    size_t slots = argc > 1 ? strtoul(argv[1], NULL, 10) : 1024;
    int flags = MAP_PRIVATE | MAP_ANONYMOUS;
    memory = mmap(NULL, slots * SLOT, PROT_READ | PROT_WRITE, flags, -1, 0);
    aside = mmap(NULL, SLOT, PROT_NONE, flags, -1, 0);
    expected = calloc(slots, 8);
    must(memory != MAP_FAILED && aside != MAP_FAILED && expected != NULL, "mmap");
    for (size_t slot = 0; slot < slots; slot++)
        write_slot(slot, slot * 2 + 1);
    puts("ready");
    fflush(stdout);
    uint64_t x = 88172645463325252ull;
    /* Slots change in one part of the memory at a time, so that there is always much that has not changed. */
    for (uint64_t step = 0; step % 256 || access("check", F_OK); step++) {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        size_t part = slots / 16, slot = (step >> 14) % 16 * part + (x >> 20) % part;
        current = slot;
        change(slot, x >> 3);
    }
    size_t wrong = 0;
    for (size_t slot = 0; slot < slots; slot++) {
        uint64_t *words = (uint64_t *)(memory + slot * SLOT);
        size_t differ = 0;
        for (size_t i = 0; i < SLOT / 8; i++)
            differ += words[i] != expected[slot];
        wrong += differ != 0;
        if (differ && wrong < 9)
            printf("slot %zu: %zu words differ from %llx\n", slot, differ, (unsigned long long)expected[slot]);
    }
    printf("wrong %zu\n", wrong);
    fflush(stdout);
    _exit(wrong ? 1 : 0);
}
