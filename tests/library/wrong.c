/* Uses libgridcpr wrongly in every way that a function can notice: each call must give an error and touch nothing. Prints
 * how many calls did. Usage: wrong DIRECTORY IMAGE, an image of processes. */
#include <gridcpr.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int refused;

static void expect(long long result, const char *what) {
    if (result >= 0) {
        fprintf(stderr, "%s: %lld\n", what, result);
        exit(1);
    }
    if (!gridcpr_error() || !*gridcpr_error() || gridcpr_error_code() != result) {
        fprintf(stderr, "%s: %lld has no message\n", what, result);
        exit(1);
    }
    refused++;
}

static void expect_null(const void *result, const char *what) {
    if (result) {
        fprintf(stderr, "%s: something\n", what);
        exit(1);
    }
    expect(gridcpr_error_code(), what);
}

#define WRONG(call) expect(call, #call)
#define NOTHING(call) expect_null(call, #call)

static int callback(const gridcpr_notice *notice, void *data) {
    (void)notice, (void)data;
    return 0;
}

static void checkpoints(const char *base) {
    uint64_t two[] = {2, 2}, huge[] = {UINT64_MAX, UINT64_MAX}, far[] = {UINT64_MAX, 1};
    double numbers[4] = {0};
    char text[8];
    gridcpr_app_generation found[1];
    const gridcpr_app_options none = {0}, odd = {.size = sizeof odd, .rank = 7, .ranks = 2};
    const gridcpr_app_options letters = {.size = sizeof letters, .sequence = "IXF"};
    NOTHING(gridcpr_app_open(base, NULL, NULL));
    NOTHING(gridcpr_app_open(base, "", NULL));
    NOTHING(gridcpr_app_open(base, "a/../b", NULL));
    NOTHING(gridcpr_app_open(base, "\xff\xfe", NULL));
    NOTHING(gridcpr_app_open(base, "wrong", &none));
    NOTHING(gridcpr_app_open(base, "wrong", &odd));
    NOTHING(gridcpr_app_open(base, "wrong", &letters));
    NOTHING(gridcpr_app_open("/proc/self", "wrong", NULL));
    WRONG(gridcpr_app_protect(NULL, "x", numbers, GRIDCPR_FLOAT64, 2, two, 0));
    WRONG(gridcpr_app_write(NULL));
    WRONG(gridcpr_app_write_begin(NULL));
    WRONG(gridcpr_app_wait(NULL));
    WRONG(gridcpr_app_restore(NULL, 0));
    WRONG(gridcpr_app_progress(NULL, NULL, NULL));
    WRONG(gridcpr_app_query(NULL, NULL, 0));
    WRONG(gridcpr_app_forget(NULL));
    WRONG(gridcpr_app_transfer(NULL, 1, base));
    if (gridcpr_app_close(NULL) != 0) exit(1);

    gridcpr_app *app = gridcpr_app_open(base, "wrong", NULL);
    if (!app) exit(1);
    NOTHING(gridcpr_app_open(base, "wrong", NULL));
    WRONG(gridcpr_app_protect(app, NULL, numbers, GRIDCPR_FLOAT64, 2, two, 0));
    WRONG(gridcpr_app_protect(app, "x", NULL, GRIDCPR_FLOAT64, 2, two, 0));
    WRONG(gridcpr_app_protect(app, "x", numbers, 13, 2, two, 0));
    WRONG(gridcpr_app_protect(app, "x", numbers, -1, 2, two, 0));
    WRONG(gridcpr_app_protect(app, "x", numbers, GRIDCPR_FLOAT64, 2, NULL, 0));
    WRONG(gridcpr_app_protect(app, "x", numbers, GRIDCPR_FLOAT64, 65, two, 0));
    WRONG(gridcpr_app_protect(app, "x", numbers, GRIDCPR_FLOAT64, 2, huge, 0));
    WRONG(gridcpr_app_protect(app, "x", numbers, GRIDCPR_FLOAT64, 2, two, 2));
    WRONG(gridcpr_app_protect_strided(app, "x", numbers, GRIDCPR_FLOAT64, 2, two, far, 0));
    WRONG(gridcpr_app_unprotect(app, "x"));
    WRONG(gridcpr_app_set_attribute(app, NULL, "v"));
    WRONG(gridcpr_app_set_attribute(app, "k", NULL));
    WRONG(gridcpr_app_restore(app, 1));
    WRONG(gridcpr_app_validate(app, 1));
    WRONG(gridcpr_app_free(app, UINT64_MAX));
    WRONG(gridcpr_app_update(app, 1, "k", "v", 0));
    WRONG(gridcpr_app_get_attribute(app, 1, "k", text, sizeof text));
    WRONG(gridcpr_app_read(app, 1, 0, "x", 0, text, 1));
    WRONG(gridcpr_app_file(app, 1, "x", text, sizeof text));
    WRONG(gridcpr_app_route(app, "../x", text, sizeof text));
    WRONG(gridcpr_app_route(app, "x", text, 1));
    WRONG(gridcpr_app_route(app, "x", NULL, 100));
    /* What was routed is not there. */
    WRONG(gridcpr_app_write(app));
    if (gridcpr_app_close(app) != 0) exit(1);

    app = gridcpr_app_open(base, "wrong", NULL);
    if (!app || gridcpr_app_protect(app, "x", numbers, GRIDCPR_FLOAT64, 2, two, 0) != 0 || gridcpr_app_write(app) < 1)
        exit(1);
    WRONG(gridcpr_app_query(app, NULL, 1));
    WRONG(gridcpr_app_find(app, NULL, "v", found, 1));
    WRONG(gridcpr_app_read(app, 1, 0, "y", 0, text, 1));
    WRONG(gridcpr_app_read(app, 1, 1, "x", 0, text, 1));
    WRONG(gridcpr_app_read(app, 1, 0, "x", 31, text, 2));
    WRONG(gridcpr_app_read(app, 1, 0, "x", UINT64_MAX, text, 2));
    WRONG(gridcpr_app_read(app, 1, 0, "x", 0, NULL, 2));
    WRONG(gridcpr_app_read(app, 1, 0, "x", 0, text, SIZE_MAX));
    WRONG(gridcpr_app_transfer(app, 1, NULL));
    WRONG(gridcpr_app_transfer(app, 1, base));
    /* A shape that is another than what was written. */
    if (gridcpr_app_protect(app, "x", numbers, GRIDCPR_FLOAT64, 1, two, 0) != 0) exit(1);
    WRONG(gridcpr_app_restore(app, 0));
    if (gridcpr_app_get_attribute(app, 1, "k", NULL, 0) >= 0 || gridcpr_app_close(app) != 0) exit(1);
}

static void images(const char *path) {
    uint64_t word;
    char byte = 0;
    gridcpr_image_info info;
    gridcpr_process process;
    NOTHING(gridcpr_image_open(NULL));
    NOTHING(gridcpr_image_open("/no/such/image"));
    NOTHING(gridcpr_image_open("/proc/self/exe"));
    WRONG(gridcpr_image_verify(NULL));
    WRONG(gridcpr_image_info_get(NULL, &info));
    gridcpr_image_close(NULL);
    gridcpr_image *image = gridcpr_image_open(path);
    if (!image || gridcpr_image_processes(image, &process, 1) != 1) exit(1);
    WRONG(gridcpr_image_info_get(image, NULL));
    WRONG(gridcpr_image_processes(image, NULL, 1));
    WRONG(gridcpr_image_threads(image, -1, NULL, 0));
    WRONG(gridcpr_image_register(image, process.pid, -1, "rip", &word));
    WRONG(gridcpr_image_register(image, process.pid, process.pid, "no such", &word));
    WRONG(gridcpr_image_register(image, process.pid, process.pid, "rip", NULL));
    WRONG(gridcpr_image_read(image, process.pid, 0, &byte, 1));
    WRONG(gridcpr_image_read(image, process.pid, UINT64_MAX, &byte, 1));
    WRONG(gridcpr_image_read(image, process.pid, 0, NULL, 1));
    WRONG(gridcpr_image_write(image, process.pid, 0, &byte, 1));
    WRONG(gridcpr_image_write(image, process.pid, 0, NULL, SIZE_MAX));
    WRONG(gridcpr_image_set_register(image, process.pid, process.pid, NULL, 0));
    WRONG(gridcpr_image_set_environment(image, process.pid, "NO_SUCH", "x"));
    WRONG(gridcpr_image_replace_path(image, "/no/such", "relative"));
    WRONG(gridcpr_image_set(image, "/processes/0/pid", "{"));
    WRONG(gridcpr_image_set(image, "no pointer", "1"));
    WRONG(gridcpr_image_set(image, NULL, "1"));
    WRONG(gridcpr_image_save(image, path));
    WRONG(gridcpr_image_save(image, NULL));
    gridcpr_image_close(image);
}

int main(int argc, char **argv) {
    if (argc != 3) return 64;
    const char *none[] = {NULL}, *verb[] = {"no-such-verb", NULL};
    WRONG(gridcpr_register(NULL, NULL, GRIDCPR_THREAD));
    WRONG(gridcpr_register(callback, NULL, 2));
    WRONG(gridcpr_unregister(0));
    WRONG(gridcpr_unregister(77));
    WRONG(gridcpr_unblock());
    WRONG(gridcpr_checkpoint(8, NULL, 0));
    WRONG(gridcpr_checkpoint(0, NULL, 0)); /* part of no job */
    WRONG(gridcpr_command(NULL, NULL, 0));
    WRONG(gridcpr_command(none, NULL, 0));
    WRONG(gridcpr_command(verb, NULL, 0));
    gridcpr_explain(NULL);
    if (gridcpr_restarted(NULL) != 0) return 1;
    checkpoints(argv[1]);
    images(argv[2]);
    printf("%d\n", refused);
    return 0;
}
