/* The cases that every language has; all print the same. Usage:
 *   suite write BASE SEED    writes a generation of checkpoint `suite`
 *   suite read BASE SEED     restores it and compares; prints generation and who wrote it
 *   suite cases BASE         everything else that needs no job
 *   suite job                in a job: callbacks, sections, a checkpoint of itself */
#include <gridcpr.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { FIELD = 1000, SPREAD = 13, BIG = 3 << 20 };
static int64_t step;
static double field[FIELD], grid[4][3]; /* grid: 3 by 4 in Fortran order */
static float spread[SPREAD];            /* every third element is saved */
static int32_t counts[7];
static char big[BIG];

static int64_t good(int64_t result) {
    if (result < 0) {
        fprintf(stderr, "suite: %s\n", gridcpr_error());
        exit(1);
    }
    return result;
}

static gridcpr_app *open_app(const char *base, const char *name, gridcpr_app_options options) {
    options.size = sizeof options;
    gridcpr_app *app = gridcpr_app_open(base, name, &options);
    if (!app) good(-1);
    return app;
}

static void fill(long seed) {
    step = seed;
    for (int i = 0; i < FIELD; i++) field[i] = seed + i * 0.5;
    for (int i = 0; i < 3; i++)
        for (int j = 0; j < 4; j++) grid[j][i] = seed + 10 * i + j;
    for (int k = 0; k < SPREAD; k++) spread[k] = k % 3 ? -1 : seed + k / 3;
    for (int i = 0; i < 7; i++) counts[i] = (int32_t)(seed * i);
}

static void protect(gridcpr_app *app) {
    const uint64_t all[] = {FIELD}, shape[] = {3, 4}, five[] = {5}, stride[] = {3 * sizeof(float)}, seven[] = {7};
    good(gridcpr_app_protect(app, "step", &step, GRIDCPR_INT64, 0, NULL, GRIDCPR_C_ORDER));
    good(gridcpr_app_protect(app, "field", field, GRIDCPR_FLOAT64, 1, all, GRIDCPR_C_ORDER));
    good(gridcpr_app_protect(app, "grid", grid, GRIDCPR_FLOAT64, 2, shape, GRIDCPR_FORTRAN_ORDER));
    good(gridcpr_app_protect_strided(app, "spread", spread, GRIDCPR_FLOAT32, 1, five, stride, GRIDCPR_C_ORDER));
    good(gridcpr_app_protect(app, "counts", counts, GRIDCPR_INT32, 1, seven, GRIDCPR_C_ORDER));
}

static void write_one(const char *base, long seed) {
    gridcpr_app *app = open_app(base, "suite", (gridcpr_app_options){0});
    fill(seed);
    protect(app);
    good(gridcpr_app_set_attribute(app, "writer", "c"));
    printf("%lld\n", (long long)good(gridcpr_app_write(app)));
    good(gridcpr_app_close(app));
}

static void read_one(const char *base, long seed) {
    gridcpr_app *app = open_app(base, "suite", (gridcpr_app_options){0});
    fill(seed);
    double wanted_field[FIELD], wanted_grid[4][3];
    float wanted_spread[SPREAD];
    int32_t wanted_counts[7];
    memcpy(wanted_field, field, sizeof field);
    memcpy(wanted_grid, grid, sizeof grid);
    memcpy(wanted_spread, spread, sizeof spread);
    memcpy(wanted_counts, counts, sizeof counts);
    fill(-1);
    for (int k = 0; k < SPREAD; k++) spread[k] = -1;
    protect(app);
    uint64_t generation = (uint64_t)good(gridcpr_app_restore(app, 0));
    if (step != seed || memcmp(field, wanted_field, sizeof field) || memcmp(grid, wanted_grid, sizeof grid) ||
        memcmp(spread, wanted_spread, sizeof spread) || memcmp(counts, wanted_counts, sizeof counts)) {
        fprintf(stderr, "suite: what was read differs\n");
        exit(1);
    }
    char writer[32];
    good(gridcpr_app_get_attribute(app, generation, "writer", writer, sizeof writer));
    printf("%llu %s\n", (unsigned long long)generation, writer);
    good(gridcpr_app_close(app));
}

static void list(const char *what, gridcpr_app *app) {
    gridcpr_app_generation found[16];
    int64_t count = good(gridcpr_app_query(app, found, 16));
    printf("%s:", what);
    for (int64_t i = 0; i < count; i++)
        printf(" %llu/%d/%u", (unsigned long long)found[i].generation, found[i].state, found[i].needs);
    printf("\n");
}

static gridcpr_app *with_step(const char *base, const char *name, gridcpr_app_options options) {
    gridcpr_app *app = open_app(base, name, options);
    good(gridcpr_app_protect(app, "step", &step, GRIDCPR_INT64, 0, NULL, GRIDCPR_C_ORDER));
    return app;
}

static void increments(const char *base) {
    gridcpr_app *app = open_app(base, "increments", (gridcpr_app_options){.sequence = "FIi"});
    const uint64_t shape[] = {BIG};
    good(gridcpr_app_protect(app, "big", big, GRIDCPR_BYTES, 1, shape, GRIDCPR_C_ORDER));
    for (int i = 0; i < 3; i++) {
        big[i << 20] = (char)(i + 1);
        good(gridcpr_app_write(app));
    }
    list("increments", app);
    memset(big, 0, BIG);
    good(gridcpr_app_restore(app, 0));
    printf("restored: %d %d %d\n", big[0], big[1 << 20], big[2 << 20]);
    printf("needed: %d\n", gridcpr_app_free(app, 1));
    good(gridcpr_app_close(app));
}

static void retention(const char *base) {
    gridcpr_app *app = with_step(base, "keep", (gridcpr_app_options){.keep = 2});
    for (step = 1; step <= 4; step++) good(gridcpr_app_write(app));
    list("kept", app);
    good(gridcpr_app_close(app));
    app = with_step(base, "expire", (gridcpr_app_options){.lifetime = 1});
    good(gridcpr_app_write(app));
    nanosleep(&(struct timespec){1, 200000000}, NULL);
    good(gridcpr_app_write(app));
    list("lives", app);
    good(gridcpr_app_close(app));
}

static void metadata(const char *base) {
    gridcpr_app *app = with_step(base, "metadata", (gridcpr_app_options){0});
    for (step = 1; step <= 3; step++) {
        good(gridcpr_app_set_attribute(app, "phase", step == 2 ? "spin-up" : "run"));
        good(gridcpr_app_write(app));
    }
    gridcpr_app_generation found[16];
    int64_t count = good(gridcpr_app_find(app, "phase", "run", found, 16));
    printf("found: %lld, the last %llu\n", (long long)count, (unsigned long long)found[count - 1].generation);
    good(gridcpr_app_update(app, 3, "phase", "done", 60));
    char phase[32];
    good(gridcpr_app_get_attribute(app, 3, "phase", phase, sizeof phase));
    good(gridcpr_app_query(app, found, 16));
    printf("updated: %s %llu\n", phase, (unsigned long long)found[2].lifetime);
    int64_t piece;
    good(gridcpr_app_read(app, 2, 0, "step", 0, &piece, sizeof piece));
    printf("read: %lld\n", (long long)piece);
    good(gridcpr_app_validate(app, 2));
    good(gridcpr_app_free(app, 2));
    list("freed", app);
    char there[4096];
    snprintf(there, sizeof there, "%s/there", base);
    good(gridcpr_app_transfer(app, 3, there));
    good(gridcpr_app_forget(app));
    list("forgotten", app);
    good(gridcpr_app_close(app));
    app = with_step(there, "metadata", (gridcpr_app_options){0});
    step = 0;
    good(gridcpr_app_restore(app, 0));
    printf("transferred: %lld\n", (long long)step);
    good(gridcpr_app_close(app));
}

static void ranks(const char *base) {
    gridcpr_app *one = with_step(base, "ranks", (gridcpr_app_options){.rank = 0, .ranks = 2, .session = "a"});
    gridcpr_app *two = with_step(base, "ranks", (gridcpr_app_options){.rank = 1, .ranks = 2, .session = "a"});
    step = 10;
    good(gridcpr_app_write(one));
    list("half", one);
    step = 11;
    good(gridcpr_app_write(two));
    list("whole", one);
    good(gridcpr_app_restore(one, 0));
    printf("rank 0: %lld\n", (long long)step);
    good(gridcpr_app_restore(two, 0));
    printf("rank 1: %lld\n", (long long)step);
    good(gridcpr_app_close(one));
    good(gridcpr_app_close(two));
}

static void background(const char *base) {
    gridcpr_app *app = with_step(base, "background", (gridcpr_app_options){0});
    good(gridcpr_app_prepare(app));
    step = 7;
    good(gridcpr_app_write_begin(app));
    step = 8;
    int64_t generation = good(gridcpr_app_wait(app));
    uint64_t done, total;
    int under_way = (int)good(gridcpr_app_progress(app, &done, &total));
    good(gridcpr_app_restore(app, 0));
    printf("background: %lld %d %llu of %llu, %lld\n", (long long)generation, under_way, (unsigned long long)done,
           (unsigned long long)total, (long long)step);
    good(gridcpr_app_close(app));
}

static void files(const char *base) {
    gridcpr_app *app = with_step(base, "files", (gridcpr_app_options){0});
    char path[4096], text[32] = "";
    good(gridcpr_app_route(app, "notes.txt", path, sizeof path));
    FILE *file = fopen(path, "w");
    if (!file || fputs("of its own", file) < 0 || fclose(file)) exit(1);
    int64_t generation = good(gridcpr_app_write(app));
    good(gridcpr_app_file(app, (uint64_t)generation, "notes.txt", path, sizeof path));
    file = fopen(path, "r");
    if (!file || !fgets(text, sizeof text, file) || fclose(file)) exit(1);
    printf("file: %s\n", text);
    good(gridcpr_app_close(app));
}

static void wrong(const char *base) {
    gridcpr_app *app = with_step(base, "wrong", (gridcpr_app_options){0});
    printf("none: %lld\n", (long long)good(gridcpr_app_restore(app, 0)));
    good(gridcpr_app_write(app));
    int32_t narrow;
    good(gridcpr_app_protect(app, "step", &narrow, GRIDCPR_INT32, 0, NULL, GRIDCPR_C_ORDER));
    printf("another type: %lld\n", (long long)gridcpr_app_restore(app, 0));
    printf("no such generation: %d\n", gridcpr_app_validate(app, 9));
    printf("open twice: %d\n", gridcpr_app_open(base, "wrong", NULL) ? 0 : gridcpr_error_code());
    good(gridcpr_app_close(app));
}

static volatile int told;

static int callback(const gridcpr_notice *notice, void *data) {
    static const char *const names[] = {"?", "before", "continue", "restart", "told"};
    (void)data;
    printf("%s%s%s\n", names[notice->event], *notice->reason ? ": " : "", notice->reason);
    fflush(stdout);
    told |= notice->event == GRIDCPR_TOLD;
    return GRIDCPR_READY;
}

static void job(void) {
    int number = (int)good(gridcpr_register(callback, NULL, GRIDCPR_THREAD));
    good(gridcpr_block());
    good(gridcpr_block());
    good(gridcpr_unblock());
    good(gridcpr_unblock());
    good(gridcpr_file_policy("*.txt", "nocheck,nottruncate"));
    int outcome = (int)good(gridcpr_checkpoint(0, NULL, 0));
    good(gridcpr_block()); /* Not before the callbacks have returned. */
    gridcpr_restart restart = {.size = sizeof restart};
    good(gridcpr_restarted(&restart));
    if (outcome == GRIDCPR_RESTARTED)
        printf("restarted %u %lld %s %s\n", restart.times, (long long)good(gridcpr_generation()), restart.image, restart.job);
    else printf("continued %u %lld\n", restart.times, (long long)good(gridcpr_generation()));
    fflush(stdout);
    good(gridcpr_unblock());
    while (!told) nanosleep(&(struct timespec){0, 10000000}, NULL);
    good(gridcpr_unregister(number));
    printf("end\n");
}

int main(int argc, char **argv) {
    const char *what = argc > 1 ? argv[1] : "";
    if (argc == 4 && strcmp(what, "write") == 0) write_one(argv[2], atol(argv[3]));
    else if (argc == 4 && strcmp(what, "read") == 0) read_one(argv[2], atol(argv[3]));
    else if (argc == 3 && strcmp(what, "cases") == 0) {
        increments(argv[2]);
        retention(argv[2]);
        metadata(argv[2]);
        ranks(argv[2]);
        background(argv[2]);
        files(argv[2]);
        wrong(argv[2]);
    } else if (argc == 2 && strcmp(what, "job") == 0) job();
    else return 64;
    return 0;
}
