/* Counts to a number, and writes its state when it is asked to; where it is kept is nothing to it. */
#include <gridcpr.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static gridcpr_app *app;
static _Atomic int64_t step;

static int on_event(const gridcpr_notice *notice, void *data) {
    (void)data;
    if (notice->event == GRIDCPR_TOLD && !strcmp(notice->reason, "checkpoint") && gridcpr_app_write(app) < 0)
        fprintf(stderr, "%s\n", gridcpr_error());
    return GRIDCPR_READY;
}

int main(int argc, char **argv) {
    int64_t last = argc > 1 ? atoll(argv[1]) : 0;
    app = gridcpr_app_open("", "keeps", NULL);
    if (!app || gridcpr_app_protect(app, "step", (void *)&step, GRIDCPR_INT64, 0, NULL, GRIDCPR_C_ORDER) < 0 ||
        gridcpr_app_restore(app, 0) < 0 || gridcpr_register(on_event, NULL, GRIDCPR_THREAD) < 0) {
        fprintf(stderr, "%s\n", gridcpr_error());
        return 1;
    }
    while (step < last) {
        printf("%lld\n", (long long)++step);
        fflush(stdout);
        usleep(30000);
    }
    return gridcpr_app_close(app) < 0;
}
