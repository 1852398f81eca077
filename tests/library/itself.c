/* Checkpoints its own job. Usage: itself continue|stop|outside. */
#include <gridcpr.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int main(int argc, char **argv) {
    char image[4096] = "";
    gridcpr_restart restart;
    if (argc != 2 || gridcpr_init() != 0)
        return 2;
    if (gridcpr_restarted(&restart) != 0 || restart.size != sizeof restart || restart.times != 0 || gridcpr_generation() != 0)
        return 3;
    if (strcmp(argv[1], "outside") == 0) {
        int result = gridcpr_checkpoint(0, NULL, 0);
        printf("%d %s\n", result, gridcpr_error());
        return result == GRIDCPR_E_NOT_FOUND ? 0 : 4;
    }
    /* In a critical section it would wait for itself. */
    gridcpr_block();
    if (gridcpr_checkpoint(0, NULL, 0) != GRIDCPR_E_USAGE)
        return 5;
    gridcpr_unblock();
    unsigned flags = strcmp(argv[1], "stop") == 0 ? GRIDCPR_STOP : 0;
    for (int i = 1; i <= 3; i++) {
        int result = gridcpr_checkpoint(flags, image, sizeof image);
        if (result == GRIDCPR_CONTINUED) {
            printf("%d continued %s\n", i, image);
        } else if (result == GRIDCPR_RESTARTED) {
            gridcpr_restarted(&restart);
            printf("%d restarted %u %lld %s %s\n", i, restart.times, (long long)gridcpr_generation(), restart.image,
                   restart.job);
        } else {
            printf("%d: %d %s\n", i, result, gridcpr_error());
            return 1;
        }
        fflush(stdout);
    }
    return 0;
}
