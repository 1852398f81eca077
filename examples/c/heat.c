/*
 * Heat in a square plate, with checkpoints.
 *
 * The plate is heated at one edge; each step replaces every inner point by the mean of its neighbours. The program
 * keeps its progress in a file, which it must not have half written in an image: so writing it is a critical section.
 * Before a checkpoint a callback writes out what is buffered, and after a restart another line says so.
 *
 *   gcc -O2 -o heat heat.c $(pkg-config --cflags --libs gridcpr)
 *   cpr run --name heat -- ./heat 200 2000 result.txt
 *
 * Usage: heat POINTS STEPS RESULT [SELF]. With SELF the program asks for a checkpoint of itself after so many steps.
 */
#include <gridcpr.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static FILE *result;

static int on_checkpoint(const gridcpr_notice *notice, void *data) {
    (void)data;
    switch (notice->event) {
    case GRIDCPR_BEFORE:
        if (fflush(result) != 0) {
            gridcpr_explain("the result cannot be written");
            return GRIDCPR_REFUSE;
        }
        return GRIDCPR_READY;
    case GRIDCPR_RESTART:
        fprintf(stderr, "heat: restarted, for the %u. time\n", notice->restarts);
        return GRIDCPR_READY;
    default:
        return GRIDCPR_READY;
    }
}

static void require(int result_code, const char *what) {
    if (result_code < 0) {
        fprintf(stderr, "heat: %s: %s\n", what, gridcpr_error());
        exit(1);
    }
}

int main(int argc, char **argv) {
    if (argc < 4) {
        fprintf(stderr, "usage: heat POINTS STEPS RESULT [SELF]\n");
        return 64;
    }
    long n = atol(argv[1]), steps = atol(argv[2]), self = argc > 4 ? atol(argv[4]) : 0;
    double *now = calloc((size_t)n * n, sizeof *now), *next = calloc((size_t)n * n, sizeof *next);
    if (n < 3 || !now || !next)
        return 1;
    for (long x = 0; x < n; x++)
        now[x] = next[x] = 100.0;
    result = fopen(argv[3], "w");
    if (!result)
        return 1;
    require(gridcpr_register(on_checkpoint, NULL, GRIDCPR_THREAD), "register");
    for (long step = 1; step <= steps; step++) {
        for (long y = 1; y < n - 1; y++)
            for (long x = 1; x < n - 1; x++)
                next[y * n + x] = 0.25 * (now[y * n + x - 1] + now[y * n + x + 1] + now[(y - 1) * n + x] + now[(y + 1) * n + x]);
        double *swap = now;
        now = next;
        next = swap;
        if (step % 10 == 0) {
            double sum = 0;
            for (long i = 0; i < n * n; i++)
                sum += now[i];
            /* Both lines, or none. */
            require(gridcpr_block(), "block");
            fprintf(result, "step %ld\n", step);
            fprintf(result, "heat %.12e\n", sum);
            require(gridcpr_unblock(), "unblock");
        }
        if (self && step % self == 0) {
            int how = gridcpr_checkpoint(0, NULL, 0);
            require(how, "checkpoint");
            if (how == GRIDCPR_RESTARTED)
                fprintf(stderr, "heat: going on from step %ld\n", step);
        }
    }
    if (fclose(result) != 0)
        return 1;
    printf("heat: done\n");
    free(now);
    free(next);
    return 0;
}
