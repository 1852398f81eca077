/* What an MPI library can do with checkpoints, as a layer between a program and its MPI library that is loaded before both:
 * it is told in every rank that a checkpoint is coming, before any rank is stopped, and afterwards how it went.
 *
 *   mpicc -O2 -fPIC -shared -o hook.so hook.c $(pkg-config --cflags --libs gridcpr)
 *   cpr run -- mpirun -n 4 -x LD_PRELOAD=./hook.so ./program
 *
 * It writes a line for each event into the file that HOOK_LOG names. A library whose ranks are on several nodes would at
 * these places empty its channels and let go of its network, and set both up again. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <gridcpr.h>
#include <mpi.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

static int rank, ranks;
static atomic_long messages;

static int around(const gridcpr_notice *notice, void *data) {
    static const char *const names[] = {"", "before", "continue", "restart", "told"};
    const char *path = getenv("HOOK_LOG");
    (void)data;
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    char line[128];
    int length = snprintf(line, sizeof line, "%lld rank %d of %d: %s, %ld messages\n",
                          now.tv_sec * 1000000000LL + now.tv_nsec, rank, ranks, names[notice->event],
                          atomic_load(&messages));
    int file = path ? open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644) : STDERR_FILENO;
    if (file < 0 || write(file, line, (size_t)length) != length) {
        gridcpr_explain("the log of the MPI layer cannot be written");
        return GRIDCPR_REFUSE;
    }
    if (path) close(file);
    return GRIDCPR_READY;
}

int MPI_Init(int *argc, char ***argv) {
    int result = PMPI_Init(argc, argv);
    if (result == MPI_SUCCESS) {
        PMPI_Comm_rank(MPI_COMM_WORLD, &rank);
        PMPI_Comm_size(MPI_COMM_WORLD, &ranks);
        if (gridcpr_register(around, NULL, GRIDCPR_THREAD) < 0) fprintf(stderr, "hook: %s\n", gridcpr_error());
    }
    return result;
}

int MPI_Sendrecv(const void *send, int send_count, MPI_Datatype send_type, int to, int send_tag, void *receive,
                 int receive_count, MPI_Datatype receive_type, int from, int receive_tag, MPI_Comm among,
                 MPI_Status *status) {
    atomic_fetch_add(&messages, 1);
    return PMPI_Sendrecv(send, send_count, send_type, to, send_tag, receive, receive_count, receive_type, from,
                         receive_tag, among, status);
}
