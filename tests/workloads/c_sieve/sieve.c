/* Primes in segments, written to standard output: one process, standard streams only. Usage: sieve SEGMENTS */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SEGMENT = 1 << 20, ROOTS = 1 << 16 };

static unsigned char composite[SEGMENT], small[ROOTS];

int main(int argc, char **argv)
{
    if (argc != 2)
        return 64;
    int segments = atoi(argv[1]);
    for (uint32_t i = 2; i * i < ROOTS; i++)
        if (!small[i])
            for (uint32_t j = i * i; j < ROOTS; j += i)
                small[j] = 1;
    uint64_t count = 0, hash = 14695981039346656037u;
    for (int s = 0; s < segments; s++) {
        uint64_t from = (uint64_t)s * SEGMENT, to = from + SEGMENT, last = 0;
        memset(composite, 0, sizeof composite);
        for (uint64_t p = 2; p < ROOTS && p * p < to; p++) {
            if (small[p])
                continue;
            uint64_t start = (from + p - 1) / p * p;
            if (start < p * p)
                start = p * p;
            for (uint64_t j = start; j < to; j += p)
                composite[j - from] = 1;
        }
        for (uint64_t n = from < 2 ? 2 : from; n < to; n++)
            if (!composite[n - from]) {
                count++;
                last = n;
                hash = (hash ^ n) * 1099511628211u;
            }
        printf("%llu primes, last %llu, hash %016llx\n", (unsigned long long)count, (unsigned long long)last,
               (unsigned long long)hash);
        if (fflush(stdout))
            return 74;
    }
    return 0;
}
