/* Heat in a rod whose ends are kept at a temperature; each rank has a part of it. Halfway through, until rank 0 sees the
   file `go`, the ranks pass numbers around and add them up, and every one that comes wrong ends the program. Rank 0
   counts these rounds in the file `rounds`, and prints what has become of the rod. */
#include <mpi.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

enum { CELLS = 4096, STEPS = 2000, WORDS = 8192 };

static int rank, ranks;

static void chatter(void) {
    static long out[WORDS], in[WORDS];
    long go = 0;
    for (long round = 0; !go; round++) {
        for (int at = 0; at < WORDS; at++) out[at] = round * WORDS + at + rank;
        int from = (rank + ranks - 1) % ranks;
        MPI_Sendrecv(out, WORDS, MPI_LONG, (rank + 1) % ranks, 1, in, WORDS, MPI_LONG, from, 1, MPI_COMM_WORLD,
                     MPI_STATUS_IGNORE);
        for (int at = 0; at < WORDS; at++) {
            if (in[at] != round * WORDS + at + from) {
                fprintf(stderr, "rank %d, round %ld: %ld at %d\n", rank, round, in[at], at);
                MPI_Abort(MPI_COMM_WORLD, 3);
            }
        }
        long own = rank == 0 && access("go", F_OK) == 0;
        MPI_Allreduce(&own, &go, 1, MPI_LONG, MPI_SUM, MPI_COMM_WORLD);
        if (rank == 0) {
            char text[32];
            int length = snprintf(text, sizeof text, "%020ld\n", round);
            int file = open("rounds", O_WRONLY | O_CREAT, 0644);
            if (file < 0 || pwrite(file, text, length, 0) != length) exit(4);
            close(file);
        }
    }
}

int main(int argc, char **argv) {
    MPI_Init(&argc, &argv);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &ranks);
    int cells = CELLS / ranks;
    double *now = calloc(cells + 2, sizeof *now), *next = calloc(cells + 2, sizeof *next);
    if (rank == 0) now[0] = next[0] = 100;
    if (rank == ranks - 1) now[cells + 1] = next[cells + 1] = 50;
    int left = rank == 0 ? MPI_PROC_NULL : rank - 1, right = rank == ranks - 1 ? MPI_PROC_NULL : rank + 1;
    for (int step = 0; step < STEPS; step++) {
        if (step == STEPS / 2) chatter();
        MPI_Sendrecv(now + 1, 1, MPI_DOUBLE, left, 0, now + cells + 1, 1, MPI_DOUBLE, right, 0, MPI_COMM_WORLD,
                     MPI_STATUS_IGNORE);
        MPI_Sendrecv(now + cells, 1, MPI_DOUBLE, right, 0, now, 1, MPI_DOUBLE, left, 0, MPI_COMM_WORLD,
                     MPI_STATUS_IGNORE);
        for (int cell = 1; cell <= cells; cell++) next[cell] = now[cell] + 0.4 * (now[cell - 1] - 2 * now[cell] + now[cell + 1]);
        next[0] = now[0];
        next[cells + 1] = now[cells + 1];
        double *swap = now;
        now = next;
        next = swap;
    }
    double *rod = rank == 0 ? calloc(CELLS, sizeof *rod) : NULL;
    MPI_Gather(now + 1, cells, MPI_DOUBLE, rod, cells, MPI_DOUBLE, 0, MPI_COMM_WORLD);
    if (rank == 0) {
        for (int cell = 0; cell < cells * ranks; cell += cell < 128 ? 4 : 512) printf("%d %.17g\n", cell, rod[cell]);
    }
    MPI_Finalize();
}
