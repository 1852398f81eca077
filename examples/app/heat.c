/* Heat in a plate, explicit differences. Writes its state every hundred steps, and goes on from the newest state when it
 * is started again: killed at any moment, it ends with the same result.
 *
 *   gcc -O2 -o heat heat.c $(pkg-config --cflags --libs gridcpr) && ./heat /scratch 2000
 */
#include <gridcpr.h>
#include <stdio.h>
#include <stdlib.h>

enum { N = 256 };
static double now[N][N], next[N][N];

static void check(long long result) {
    if (result < 0) {
        fprintf(stderr, "heat: %s\n", gridcpr_error());
        exit(1);
    }
}

int main(int argc, char **argv) {
    int64_t step = 0, last = argc > 2 ? atoll(argv[2]) : 2000;
    for (int i = 0; i < N; i++) now[0][i] = 100;

    gridcpr_app_options options = {.size = sizeof options, .keep = 2};
    gridcpr_app *checkpoint = gridcpr_app_open(argc > 1 ? argv[1] : "", "heat", &options);
    if (!checkpoint) check(-1);
    const uint64_t shape[] = {N, N};
    check(gridcpr_app_protect(checkpoint, "temperature", now, GRIDCPR_FLOAT64, 2, shape, GRIDCPR_C_ORDER));
    check(gridcpr_app_protect(checkpoint, "step", &step, GRIDCPR_INT64, 0, NULL, GRIDCPR_C_ORDER));
    int64_t generation = gridcpr_app_restore(checkpoint, 0);
    check(generation);
    if (generation > 0) fprintf(stderr, "heat: going on at step %lld\n", (long long)step);

    for (; step < last;) {
        for (int i = 1; i < N - 1; i++)
            for (int j = 1; j < N - 1; j++)
                next[i][j] = now[i][j] + 0.2 * (now[i - 1][j] + now[i + 1][j] + now[i][j - 1] + now[i][j + 1] - 4 * now[i][j]);
        for (int i = 1; i < N - 1; i++)
            for (int j = 1; j < N - 1; j++) now[i][j] = next[i][j];
        if (++step % 100 == 0) check(gridcpr_app_write(checkpoint));
    }
    check(gridcpr_app_close(checkpoint));

    double sum = 0;
    for (int i = 0; i < N; i++)
        for (int j = 0; j < N; j++) sum += now[i][j] * (i * 31 + j);
    printf("%lld steps, %.17g\n", (long long)step, sum);
    return 0;
}
