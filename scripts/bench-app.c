/* How fast libgridcpr writes a checkpoint of one array of 1 GiB, beside a plain write of the same bytes to the same file
 * system in the same run, and how long a background write keeps the program waiting, beside a copy of the array into memory
 * that the program has already: `make bench-app`. Prints the median of the runs and the ratio of the medians. */
#include <errno.h>
#include <fcntl.h>
#include <gridcpr.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { PLAIN, WRITE, RESTORE, COPY, BEGIN, WAYS };
enum { RUNS = 5 };
static const size_t BYTES = (size_t)1 << 30;

static double now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec + time.tv_nsec / 1e9;
}

static void check(long long result) {
    if (result < 0) {
        fprintf(stderr, "bench-app: %s\n", gridcpr_error());
        exit(1);
    }
}

static void need(int condition, const char *what) {
    if (!condition) {
        fprintf(stderr, "bench-app: %s: %s\n", what, strerror(errno));
        exit(1);
    }
}

static int ascending(const void *left, const void *right) {
    double l = *(const double *)left, r = *(const double *)right;
    return (l > r) - (l < r);
}

static double plain(const char *path, const char *data) {
    double begun = now();
    int file = open(path, O_CREAT | O_WRONLY | O_TRUNC | O_CLOEXEC, 0600);
    need(file >= 0, path);
    for (size_t done = 0; done < BYTES;) {
        ssize_t written = write(file, data + done, 1 << 20);
        need(written > 0, path);
        done += (size_t)written;
    }
    need(fsync(file) == 0, path);
    close(file);
    double took = now() - begun;
    unlink(path);
    return took;
}

int main(int argc, char **argv) {
    need(argc == 2, "usage: bench-app DIRECTORY");
    char base[] = "gridcpr-bench-XXXXXX", path[64];
    need(chdir(argv[1]) == 0 && mkdtemp(base) != NULL, argv[1]);
    uint64_t *data = malloc(BYTES), random = 1;
    need(data != NULL, "1 GiB of memory");
    for (size_t i = 0; i < BYTES / 8; i++) data[i] = random = random * 6364136223846793005u + 1442695040888963407u;
    snprintf(path, sizeof path, "%s/plain", base);

    char *copy = malloc(BYTES);
    need(copy != NULL, "another GiB of memory");
    memset(copy, 1, BYTES);

    gridcpr_app_options options = {.size = sizeof options};
    gridcpr_app *app = gridcpr_app_open(base, "array", &options);
    if (!app) check(-1);
    const uint64_t shape[] = {BYTES / 8};
    check(gridcpr_app_protect(app, "data", data, GRIDCPR_UINT64, 1, shape, GRIDCPR_C_ORDER));
    static const char *const names[WAYS] = {"plain write and fsync", "gridcpr_app_write", "gridcpr_app_restore",
                                            "copy in memory", "gridcpr_app_write_begin"};
    double times[WAYS][RUNS], first = 0, prepared = 0;
    for (int run = 0; run < RUNS; run++) {
        times[PLAIN][run] = plain(path, (const char *)data);
        double begun = now();
        int64_t generation = gridcpr_app_write(app);
        times[WRITE][run] = now() - begun;
        check(generation);
        begun = now();
        check(gridcpr_app_restore(app, 0));
        times[RESTORE][run] = now() - begun;
        check(gridcpr_app_free(app, (uint64_t)generation));
        if (run == 0) {
            begun = now();
            check(gridcpr_app_prepare(app));
            prepared = now() - begun;
        }
        /* The first of all is looked at by itself: it uses memory that was got, but never copied to and written. */
        for (int again = run > 0; again < 2; again++) {
            begun = now();
            memcpy(copy, data, BYTES);
            times[COPY][run] = now() - begun;
            begun = now();
            check(gridcpr_app_write_begin(app));
            times[BEGIN][run] = now() - begun;
            if (!again) first = times[BEGIN][run];
            generation = gridcpr_app_wait(app);
            check(generation);
            check(gridcpr_app_free(app, (uint64_t)generation));
        }
    }
    check(gridcpr_app_close(app));
    snprintf(path, sizeof path, "rm -rf ./%s", base);
    need(system(path) == 0, path);
    for (int way = 0; way < WAYS; way++) {
        qsort(times[way], RUNS, sizeof(double), ascending);
        double median = times[way][RUNS / 2];
        int beside = way < COPY ? PLAIN : COPY;
        printf("%-26s %7.3f s (%.3f to %.3f)  %4.0f %% of the speed of a %s\n", names[way], median, times[way][0],
               times[way][RUNS - 1], 100 * times[beside][RUNS / 2] / median, names[beside]);
    }
    printf("%-26s %7.3f s, and then the first %s %.3f s\n", "gridcpr_app_prepare", prepared, names[BEGIN], first);
    return 0;
}
