/* 200 threads in step: a barrier of a mutex and a condition variable, a lock per cell, thread-local counters.
   Usage: threads ROUNDS OUTPUT */
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

enum { THREADS = 200, WORK = 600 };

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t turned = PTHREAD_COND_INITIALIZER;
static int waiting, generation, rounds;
static uint64_t cells[2][THREADS], steps_of[THREADS];
static pthread_mutex_t cell_lock[THREADS];
static uint64_t meetings[THREADS];
static _Thread_local uint64_t steps;
static _Thread_local int self;
static FILE *out;

static void fail(const char *what)
{
    fprintf(stderr, "%s\n", what);
    exit(70);
}

/* Waits until all threads are here; the last one runs `last` first. */
static void barrier(void (*last)(int), int round)
{
    pthread_mutex_lock(&lock);
    int mine = generation;
    if (++waiting == THREADS) {
        waiting = 0;
        if (last)
            last(round);
        generation++;
        pthread_cond_broadcast(&turned);
    } else {
        while (mine == generation)
            pthread_cond_wait(&turned, &lock);
    }
    pthread_mutex_unlock(&lock);
}

static void report(int round)
{
    uint64_t sum = 0;
    for (int i = 0; i < THREADS; i++)
        sum = sum * 31 + cells[(round + 1) % 2][i];
    fprintf(out, "%d %016llx\n", round, (unsigned long long)sum);
    fflush(out);
}

static void *work(void *argument)
{
    self = (int)(intptr_t)argument;
    for (int round = 0; round < rounds; round++) {
        const uint64_t *from = cells[round % 2];
        uint64_t x = from[self] + from[(self + 1) % THREADS] + from[(self + THREADS - 1) % THREADS];
        for (int i = 0; i < WORK; i++)
            x = x * 6364136223846793005u + 1442695040888963407u;
        cells[(round + 1) % 2][self] = x;
        /* Meet somebody else: a lock that is often contended. */
        int other = (int)(x % THREADS);
        pthread_mutex_lock(&cell_lock[other]);
        meetings[other]++;
        pthread_mutex_unlock(&cell_lock[other]);
        steps++;
        if (self != (int)(intptr_t)argument)
            fail("thread-local data is somebody else's");
        barrier(report, round);
    }
    steps_of[self] = steps;
    return NULL;
}

int main(int argc, char **argv)
{
    if (argc != 3)
        return 64;
    rounds = atoi(argv[1]);
    out = fopen(argv[2], "w");
    if (!out)
        return 74;
    pthread_t thread[THREADS];
    pthread_attr_t small;
    pthread_attr_init(&small);
    pthread_attr_setstacksize(&small, 64 << 10);
    for (int i = 0; i < THREADS; i++) {
        cells[0][i] = (uint64_t)i;
        pthread_mutex_init(&cell_lock[i], NULL);
    }
    for (int i = 0; i < THREADS; i++)
        if (pthread_create(&thread[i], &small, work, (void *)(intptr_t)i))
            fail("pthread_create");
    uint64_t all_steps = 0, all_meetings = 0;
    for (int i = 0; i < THREADS; i++) {
        pthread_join(thread[i], NULL);
        all_steps += steps_of[i];
        all_meetings += meetings[i];
        fprintf(out, "thread %d meetings %llu\n", i, (unsigned long long)meetings[i]);
    }
    if (all_steps != (uint64_t)rounds * THREADS || all_meetings != all_steps)
        fail("steps were lost");
    fprintf(out, "steps %llu\n", (unsigned long long)all_steps);
    return fclose(out) ? 74 : 0;
}
