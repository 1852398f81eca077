/* One program for each category of functions of GFD.93's table 2, all with the library's calls alone:
 *
 *   categories state BASE         application state: written, read, updated
 *   categories data BASE JOB      checkpoint data: queried, validated, freed, with their metadata
 *   categories failure            failures: waits until it is told of one, which another has said
 *   categories fault NODE REASON  the other one
 *   categories jobs               job management: submits a job and waits for its end
 *   categories whole BASE         what the next one brings
 *   categories transport ID NODE BASE TO   transport: brings checkpoint ID to NODE, and a generation from BASE to TO
 *   categories account            accounting: what was done is counted
 *   categories stranger JOB NODE  authorisation: nobody is let to what belongs to others
 */
#include <gridcpr.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define NEED(condition)                                                                            \
    do {                                                                                           \
        if (!(condition)) {                                                                        \
            fprintf(stderr, "line %d: %s: %s\n", __LINE__, #condition, gridcpr_error());           \
            exit(1);                                                                               \
        }                                                                                          \
    } while (0)

/* More than any of these answers has. */
static char answer[1 << 20];

static int64_t cpr(const char *a, const char *b, const char *c, const char *d) {
    const char *words[] = {a, b, c, d, NULL};
    return gridcpr_command(words, answer, sizeof answer);
}

/* The number after a name in the last answer. */
static long long told(const char *name) {
    char wanted[64];
    snprintf(wanted, sizeof wanted, "\"%s\":", name);
    const char *at = strstr(answer, wanted);
    NEED(at);
    return atoll(at + strlen(wanted));
}

static void state(const char *base) {
    int64_t step = 0;
    double field[3] = {0, 0, 0};
    gridcpr_app_options options = {.size = sizeof options, .keep = 2};
    for (int run = 0; run < 2; run++) {
        gridcpr_app *app = gridcpr_app_open(base, "state", &options);
        NEED(app);
        const uint64_t shape[] = {3};
        NEED(gridcpr_app_protect(app, "step", &step, GRIDCPR_INT64, 0, NULL, GRIDCPR_C_ORDER) == 0);
        NEED(gridcpr_app_protect(app, "field", field, GRIDCPR_FLOAT64, 1, shape, GRIDCPR_C_ORDER) == 0);
        if (run == 0) {
            step = 400;
            field[2] = 2.5;
            int64_t made = gridcpr_app_write(app);
            NEED(made == 1);
            NEED(gridcpr_app_update(app, made, "progress", "step 400", 0) == 0);
            step = 0;
            field[2] = 0;
        } else {
            double last;
            char progress[32];
            NEED(gridcpr_app_restore(app, 0) == 1 && step == 400 && field[2] == 2.5);
            NEED(gridcpr_app_read(app, 1, 0, "field", 16, &last, sizeof last) == 0 && last == 2.5);
            NEED(gridcpr_app_get_attribute(app, 1, "progress", progress, sizeof progress) >= 0);
            NEED(!strcmp(progress, "step 400"));
        }
        NEED(gridcpr_app_close(app) == 0);
    }
}

static void data(const char *base, const char *job) {
    int64_t step = 0;
    gridcpr_app *app = gridcpr_app_open(base, "data", NULL);
    NEED(app && gridcpr_app_protect(app, "step", &step, GRIDCPR_INT64, 0, NULL, GRIDCPR_C_ORDER) == 0);
    for (step = 1; step <= 3; step++) NEED(gridcpr_app_write(app) == step);
    gridcpr_app_generation all[4];
    NEED(gridcpr_app_query(app, all, 4) == 3);
    NEED(gridcpr_app_validate(app, 3) == 0);
    NEED(gridcpr_app_free(app, 1) == 0 && gridcpr_app_query(app, all, 4) == 2);
    NEED(gridcpr_app_forget(app) == 0 && gridcpr_app_query(app, all, 4) == 0);
    NEED(gridcpr_app_close(app) == 0);
    /* Those of a job, which the grid has: the oldest is listed first. */
    NEED(cpr("checkpoints", job, NULL, NULL) > 0);
    char oldest[32];
    snprintf(oldest, sizeof oldest, "%lld", told("id"));
    const char *newest = NULL;
    for (const char *at = answer; (at = strstr(at, "\"id\":")); at++) newest = at + 5;
    char last[32];
    snprintf(last, sizeof last, "%lld", atoll(newest));
    NEED(strcmp(oldest, last));
    NEED(cpr("free", oldest, NULL, NULL) > 0 && strstr(answer, "\"freed\""));
    NEED(cpr("free", oldest, NULL, NULL) > 0);
    NEED(cpr("free", last, NULL, NULL) == GRIDCPR_E_IN_USE);
    NEED(cpr("checkpoints", job, NULL, NULL) > 0 && told("id") != atoll(oldest));
}

static volatile int was_told;

static int on_event(const gridcpr_notice *notice, void *data) {
    (void)data;
    if (notice->event == GRIDCPR_TOLD) {
        printf("told: %s\n", notice->reason);
        fflush(stdout);
        was_told = 1;
    }
    return GRIDCPR_READY;
}

static void failure(void) {
    NEED(gridcpr_register(on_event, NULL, GRIDCPR_THREAD) > 0);
    printf("ready\n");
    fflush(stdout);
    /* Whatever a program does meanwhile. */
    while (!was_told) usleep(10000);
}

static void jobs(void) {
    const char *words[] = {"submit", "-o", "by-library", "--", "sh", "-c", "echo done; exit 3", NULL};
    NEED(gridcpr_command(words, answer, sizeof answer) > 0);
    char job[32];
    snprintf(job, sizeof job, "@%lld", told("job"));
    NEED(cpr("wait", job, NULL, NULL) > 0);
    NEED(strstr(answer, "\"failed\"") && told("exit_code") == 3);
}

static void transport(const char *id, const char *node, const char *base, const char *to) {
    NEED(cpr("transfer", "--wait", id, node) > 0 && strstr(answer, node));
    /* A program that is recovered asks what there is, and for one checkpoint by its number; all of that comes. */
    gridcpr_app *there = gridcpr_app_open(base, "whole", NULL);
    NEED(there);
    gridcpr_app_generation all[4];
    NEED(gridcpr_app_query(there, all, 4) == 2 && all[1].state == 1);
    uint64_t asked = all[0].generation;
    NEED(gridcpr_app_transfer(there, asked, to) == 0);
    NEED(gridcpr_app_close(there) == 0);
    int64_t step = 0;
    char path[4096], line[32] = "";
    gridcpr_app *here = gridcpr_app_open(to, "whole", NULL);
    NEED(here && gridcpr_app_query(here, all, 4) == 1 && all[0].generation == asked);
    NEED(gridcpr_app_protect(here, "step", &step, GRIDCPR_INT64, 0, NULL, GRIDCPR_C_ORDER) == 0);
    NEED(gridcpr_app_validate(here, asked) == 0);
    NEED(gridcpr_app_restore(here, 0) == (int64_t)asked && step == 7);
    for (int number = 1; number <= 2; number++) {
        char name[16];
        snprintf(name, sizeof name, "mesh-%d", number);
        NEED(gridcpr_app_file(here, asked, name, path, sizeof path) > 0 && strstr(path, to) == path);
        FILE *file = fopen(path, "r");
        NEED(file && fgets(line, sizeof line, file) && line[0] == '0' + number);
        fclose(file);
    }
    NEED(gridcpr_app_close(here) == 0);
}

/* What is brought: a variable and two files; and a newer one. */
static void whole(const char *base) {
    int64_t step = 7;
    char path[4096];
    gridcpr_app *app = gridcpr_app_open(base, "whole", NULL);
    NEED(app && gridcpr_app_protect(app, "step", &step, GRIDCPR_INT64, 0, NULL, GRIDCPR_C_ORDER) == 0);
    for (int number = 1; number <= 2; number++) {
        char name[16];
        snprintf(name, sizeof name, "mesh-%d", number);
        NEED(gridcpr_app_route(app, name, path, sizeof path) > 0);
        FILE *file = fopen(path, "w");
        NEED(file && fprintf(file, "%d\n", number) == 2 && fclose(file) == 0);
    }
    NEED(gridcpr_app_write(app) == 1);
    step = 8;
    NEED(gridcpr_app_write(app) == 2);
    NEED(gridcpr_app_close(app) == 0);
}

static void account(void) {
    NEED(cpr("usage", NULL, NULL, NULL) > 0 && told("operations") > 0 && told("bytes_stored") > 0);
}

/* Who is neither the owner of a job nor an operator. */
static void stranger(const char *job, const char *node) {
    NEED(cpr("jobs", job, NULL, NULL) == GRIDCPR_E_NOT_FOUND);
    NEED(cpr("drain", node, NULL, NULL) == GRIDCPR_E_DENIED);
}

int main(int argc, char **argv) {
    const char *what = argc > 1 ? argv[1] : "";
    if (!strcmp(what, "state") && argc == 3) state(argv[2]);
    else if (!strcmp(what, "data") && argc == 4) data(argv[2], argv[3]);
    else if (!strcmp(what, "failure")) failure();
    else if (!strcmp(what, "fault") && argc == 4) NEED(cpr("fault", argv[2], argv[3], NULL) > 0);
    else if (!strcmp(what, "jobs")) jobs();
    else if (!strcmp(what, "whole") && argc == 3) whole(argv[2]);
    else if (!strcmp(what, "transport") && argc == 6) transport(argv[2], argv[3], argv[4], argv[5]);
    else if (!strcmp(what, "account")) account();
    else if (!strcmp(what, "stranger") && argc == 4) stranger(argv[2], argv[3]);
    else return 2;
    return 0;
}
