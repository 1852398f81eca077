/* All vector and mask registers the processor has, and the rights of protection keys, with other values in each thread.
   They are set and looked at with xrstor and xsave: what there is depends on the machine. */
#include "victim.h"
#include <cpuid.h>

enum { THREADS = 4, SIZE = 16384, SSE = 1, AVX = 2, MASKS = 5, UPPER = 6, HIGH = 7, KEYS = 9 };
static const int components[] = {SSE, AVX, MASKS, UPPER, HIGH, KEYS};
static unsigned char in[THREADS][SIZE] __attribute__((aligned(64))), out[THREADS][SIZE] __attribute__((aligned(64)));
static volatile int check;
static atomic_int set;
static uint64_t mask;

/* Where a component is in the area. */
static unsigned place(int component, unsigned *size) {
    unsigned offset = 160, c, d;
    *size = 256;
    if (component != SSE) CHECK(__get_cpuid_count(0xd, component, size, &offset, &c, &d));
    return offset;
}

static void *thread(void *argument) {
    unsigned char *mine = in[(long)argument], *found = out[(long)argument];
    uint32_t low = mask, high = mask >> 32, ignored, rights = 0;
    __asm__ volatile("xsave64 (%0)" : : "r"(mine), "a"(low), "d"(high) : "memory");
    for (size_t i = 0; i < sizeof components / sizeof *components; i++) {
        unsigned size, offset;
        if (!(mask >> components[i] & 1)) continue;
        offset = place(components[i], &size);
        if (components[i] == KEYS) {
            memcpy(&rights, mine + offset, sizeof rights);
            /* Of keys that no page has. */
            uint32_t value = (rights & 0x0fffffff) | (uint32_t)(long)argument << 28;
            memcpy(mine + offset, &value, sizeof value);
        } else {
            for (unsigned b = 0; b < size; b++) mine[offset + b] = b * 7 + components[i] + (long)argument * 31 + 1;
        }
        mine[512 + components[i] / 8] |= 1 << components[i] % 8;
    }
    set++;
    __asm__ volatile(
        "xrstor64 (%0)\n1: pause; mov (%2), %%r8d; test %%r8d, %%r8d; jz 1b; xsave64 (%1)"
        : : "r"(mine), "r"(found), "r"(&check), "a"(low), "d"(high)
        : "r8", "memory", "cc", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10",
          "xmm11", "xmm12", "xmm13", "xmm14", "xmm15");
    if (mask >> KEYS & 1) __asm__ volatile("wrpkru" : "=a"(ignored) : "0"(rights), "c"(0), "d"(0) : "memory");
    for (size_t i = 0; i < sizeof components / sizeof *components; i++) {
        unsigned size, offset;
        if (!(mask >> components[i] & 1)) continue;
        offset = place(components[i], &size);
        if (components[i] == KEYS) size = 4;
        if (memcmp(mine + offset, found + offset, size) != 0) fail(__LINE__, "component %d", components[i]);
    }
    return argument;
}

int main(int argc, char **argv) {
    begin(argc, argv);
    unsigned a, b, c, d;
    CHECK(__get_cpuid_count(0xd, 0, &a, &b, &c, &d) && b <= SIZE);
    uint64_t there = (uint64_t)d << 32 | a;
    for (size_t i = 0; i < sizeof components / sizeof *components; i++) mask |= there & 1ull << components[i];
    /* The kernel may have left some off. */
    __asm__ volatile("xgetbv" : "=a"(a), "=d"(d) : "c"(0));
    mask &= (uint64_t)d << 32 | a;
    CHECK(mask >> SSE & 1);
    pthread_t threads[THREADS];
    for (long i = 0; i < THREADS; i++) CHECK(pthread_create(&threads[i], NULL, thread, (void *)i) == 0);
    AWAIT(set == THREADS);
    ready();
    check = 1;
    for (int i = 0; i < THREADS; i++) CHECK(pthread_join(threads[i], NULL) == 0);
    ok();
}
