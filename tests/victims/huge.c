/* Private memory in explicit huge pages: written, partly written, untouched, protected, and shared with a child until
 * one of them writes. Prints MISSING where the machine has too few. */
#include "victim.h"

#define HUGE (2ul << 20)

static unsigned char *map(size_t pages) {
    int how = MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB | 21 << 26;
    void *at = mmap(NULL, pages * HUGE, PROT_READ | PROT_WRITE, how, -1, 0);
    if (at == MAP_FAILED) {
        dprintf(1, "MISSING huge pages: %s\n", strerror(errno));
        _exit(0);
    }
    return at;
}

/* What /proc says of the mapping that starts there, in KiB. */
static long tell(void *start, const char *field) {
    char line[512], wanted[32];
    snprintf(wanted, sizeof wanted, "%lx-", (unsigned long)start);
    FILE *file = fopen("/proc/self/smaps", "r");
    CHECK(file != NULL);
    long found = -1;
    for (int here = 0; found < 0 && fgets(line, sizeof line, file);) {
        if (strncmp(line, wanted, strlen(wanted)) == 0) here = 1;
        if (here && strncmp(line, field, strlen(field)) == 0) found = atol(line + strlen(field));
    }
    fclose(file);
    return found;
}

static void require(unsigned char *at, size_t length, unsigned seed) {
    for (size_t i = 0; i < length; i++)
        if (at[i] != (unsigned char)(i * 7 + i / 4096 + seed)) fail(__LINE__, "byte %zu of seed %u", i, seed);
}

static void fill(unsigned char *at, size_t length, unsigned seed) {
    for (size_t i = 0; i < length; i++) at[i] = (unsigned char)(i * 7 + i / 4096 + seed);
}

int main(int argc, char **argv) {
    begin(argc, argv);
    unsigned char *memory = map(4), *fixed = map(1);
    fill(memory, HUGE, 1);
    fill(memory + 2 * HUGE + 8192, 4096, 2);
    fill(fixed, HUGE, 3);
    CHECK(mprotect(fixed, HUGE, PROT_READ) == 0);
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0)
        wait_for_go();
    else
        ready();
    require(memory, HUGE, 1);
    require(memory + 2 * HUGE + 8192, 4096, 2);
    require(fixed, HUGE, 3);
    SAME(tell(memory, "KernelPageSize:"), 2048);
    SAME(tell(fixed, "KernelPageSize:"), 2048);
    for (size_t i = 0; i < 8192; i++) CHECK(memory[2 * HUGE + i] == 0 && memory[2 * HUGE + 12288 + i] == 0);
    if (child == 0) _exit(0);
    int status;
    CHECK(waitpid(child, &status, 0) == child && status == 0);
    CHECK(memory[HUGE] == 0 && memory[4 * HUGE - 1] == 0);
    fill(memory + HUGE, HUGE, 4);
    require(memory + HUGE, HUGE, 4);
    CHECK(mprotect(fixed, HUGE, PROT_READ | PROT_WRITE) == 0);
    fill(fixed, HUGE, 5);
    ok();
}
