/* A lot of memory with known contents. Usage: bulk random|zeros|equal|text MIB
 *
 * Of `zeros` and `equal`, every tenth page is random and the others are all alike. Whenever there is a file step-N in
 * the working directory (N from 1 on), one page in a hundred is written anew, some are given back to the kernel, and
 * some are unmapped and mapped again; in the first step a child is made, which takes part from then on. When there is a
 * file `check`, everything is compared with what it has to be. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#define PAGE 4096ul
#define ZERO 0xffff

static uint64_t *memory;
static uint16_t *version; /* of each page: the step that wrote it, or ZERO */
static size_t pages;
static const char *mode;
static unsigned child;

static void fail(const char *what) {
    perror(what);
    _exit(2);
}

static uint64_t mix(uint64_t x) {
    x ^= x >> 33;
    x *= 0xff51afd7ed558ccdull;
    x ^= x >> 33;
    x *= 0xc4ceb9fe1a85ec53ull;
    return x ^ x >> 33;
}

static uint64_t word(size_t page, size_t index, unsigned step) {
    if (step == ZERO)
        return 0;
    if (step == 0) {
        if (!strcmp(mode, "zeros") && page % 10)
            return 0;
        if (!strcmp(mode, "equal") && page % 10)
            return mix(index);
        if (!strcmp(mode, "text"))
            return page << 16 | index % 8;
        return mix(page << 20 | index);
    }
    return mix(((uint64_t)step << 8 | child) << 40 | page << 10 | index);
}

static void fill(size_t page, unsigned step) {
    uint64_t *at = memory + page * (PAGE / 8);
    for (size_t i = 0; i < PAGE / 8; i++)
        at[i] = word(page, i, step);
    version[page] = step;
}

static void zero(size_t page, size_t count) {
    for (size_t i = 0; i < count; i++)
        version[page + i] = ZERO;
}

static void step(unsigned number) {
    if (number == 1 && !child) {
        pid_t pid = fork();
        if (pid < 0)
            fail("fork");
        if (pid == 0)
            child = 1;
    }
    for (size_t page = 0; page < pages; page++)
        if (mix(page * 1000 + number * 2 + child) % 100 == 0)
            fill(page, number);
    size_t part = pages / 16 * (number % 15);
    if (madvise((char *)memory + part * PAGE, 8 * PAGE, MADV_DONTNEED))
        fail("madvise");
    zero(part, 8);
    char *at = (char *)memory + (part + 32) * PAGE;
    if (munmap(at, 8 * PAGE))
        fail("munmap");
    if (mmap(at, 8 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) != at)
        fail("mmap");
    zero(part + 32, 8);
    if (mprotect((char *)memory + (part + 64) * PAGE, 8 * PAGE, PROT_READ | PROT_WRITE | PROT_EXEC))
        fail("mprotect");
}

int main(int argc, char **argv) {
    if (argc != 3)
        return 2;
    mode = argv[1];
    pages = strtoul(argv[2], 0, 10) * 256;
    int flags = MAP_PRIVATE | MAP_ANONYMOUS;
    memory = mmap(0, pages * PAGE, PROT_READ | PROT_WRITE, flags, -1, 0);
    version = mmap(0, pages * 2, PROT_READ | PROT_WRITE, flags, -1, 0);
    if (memory == MAP_FAILED || version == MAP_FAILED)
        fail("mmap");
    for (size_t page = 0; page < pages; page++)
        fill(page, 0);
    printf("ready\n");
    fflush(stdout);
    unsigned next = 1;
    while (access("check", F_OK)) {
        char name[32];
        snprintf(name, sizeof name, "step-%u", next);
        if (!access(name, F_OK)) {
            step(next);
            printf("step %u of %u\n", next, child);
            fflush(stdout);
            next++;
        }
        usleep(1000);
    }
    unsigned wrong = 0;
    for (size_t page = 0; page < pages; page++)
        for (size_t i = 0; i < PAGE / 8; i++)
            if (memory[page * (PAGE / 8) + i] != word(page, i, version[page])) {
                if (!wrong++)
                    printf("page %zu of %u is not of step %u\n", page, child, version[page]);
                break;
            }
    if (child)
        _exit(wrong ? 1 : 0);
    int status = 0;
    while (wait(&status) > 0)
        wrong += status != 0;
    printf("%u wrong\n", wrong);
    return wrong ? 1 : 0;
}
