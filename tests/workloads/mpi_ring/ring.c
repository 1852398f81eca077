/* Ranks that pass values around a ring and add them up. Rank 0 makes the file `half` halfway; all wait there until the
   file `go` exists, the others in a barrier. Each rank prints its result. */
#include <mpi.h>
#include <fcntl.h>
#include <stdio.h>
#include <unistd.h>

enum { STEPS = 2000 };

int main(int argc, char **argv) {
    int rank, ranks;
    MPI_Init(&argc, &argv);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &ranks);
    double value = rank + 1;
    for (int step = 0; step < STEPS; step++) {
        if (step == STEPS / 2) {
            if (rank == 0) {
                close(open("half", O_WRONLY | O_CREAT, 0644));
                while (access("go", F_OK) != 0) usleep(10000);
            }
            MPI_Barrier(MPI_COMM_WORLD);
        }
        double received, sum;
        MPI_Sendrecv(&value, 1, MPI_DOUBLE, (rank + 1) % ranks, step, &received, 1, MPI_DOUBLE,
                     (rank + ranks - 1) % ranks, step, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
        MPI_Allreduce(&received, &sum, 1, MPI_DOUBLE, MPI_SUM, MPI_COMM_WORLD);
        value = (received + sum / ranks) / 2 + 1.0 / (step + 1 + rank);
    }
    printf("rank %d of %d: %.17g\n", rank, ranks, value);
    MPI_Finalize();
}
