/* Counts, and saves how far in a callback when it is told to: the engine of a job that has no signal to spare. */
#include <gridcpr.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

static volatile long count;

static int save(const gridcpr_notice *notice, void *data) {
    char path[PATH_MAX], aside[PATH_MAX + 4];
    (void)data;
    if (notice->event != GRIDCPR_TOLD || strcmp(notice->reason, "checkpoint") != 0) return GRIDCPR_READY;
    mkdir(getenv("SAGA_CPR_BASE_LOCATION"), 0700);
    snprintf(path, sizeof path, "%s/count", getenv("SAGA_CPR_BASE_LOCATION"));
    snprintf(aside, sizeof aside, "%s.tmp", path);
    FILE *file = fopen(aside, "w");
    if (file == NULL || fprintf(file, "%ld\n", count) < 0 || fclose(file) != 0 || rename(aside, path) != 0) perror(path);
    return GRIDCPR_READY;
}

int main(void) {
    char path[PATH_MAX];
    snprintf(path, sizeof path, "%s/count", getenv("SAGA_CPR_BASE_LOCATION"));
    FILE *file = fopen(path, "r");
    long saved = 0;
    if (file != NULL && fscanf(file, "%ld", &saved) == 1) count = saved;
    if (gridcpr_register(save, NULL, GRIDCPR_THREAD) < 0) return 1;
    for (;;) {
        count++;
        printf("%ld\n", count);
        fflush(stdout);
        nanosleep(&(struct timespec){0, 20000000}, NULL);
    }
}
