/* Writes the same number to two places far apart, all the time. A copy of the memory that is not of one instant shows
 * pairs that differ; in a true one at most the pair being written does. PAIRS and THREADS say how many.
 * Checks itself whenever the file `check` is there, and ends: 0 if the memory is of one instant. */
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

static volatile uint64_t *a, *b;
static size_t pairs, threads;

static void *work(void *argument) {
    size_t part = pairs / threads, base = part * (size_t)argument;
    uint64_t x = (uint64_t)argument * 7919 + 1;
    for (uint64_t step = 0;; step++) {
        x = x * 6364136223846793005u + 1442695040888963407u;
        size_t i = base + (x >> 33) % part;
        a[i] = x;
        b[i] = x;
        if (step % 20000 == 0 && argument == 0 && access("check", F_OK) == 0)
            return NULL;
    }
}

int main(int argc, char **argv) {
    pairs = argc > 1 ? strtoul(argv[1], NULL, 10) : 1 << 20;
    threads = argc > 2 ? strtoul(argv[2], NULL, 10) : 1;
    a = calloc(pairs, 8);
    b = calloc(pairs, 8);
    pthread_t first;
    for (size_t t = 0; t < threads; t++) {
        pthread_t thread;
        pthread_create(&thread, NULL, work, (void *)t);
        if (t == 0)
            first = thread;
    }
    puts("ready");
    fflush(stdout);
    pthread_join(first, NULL);
    size_t differ = 0;
    for (size_t i = 0; i < pairs / threads; i++)
        differ += a[i] != b[i];
    printf("differ %zu\n", differ);
    fflush(stdout);
    /* The other threads still write, so only the first one's pairs are looked at. */
    _exit(differ ? 1 : 0);
}
