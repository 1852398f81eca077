/* Prints what an image says, and edits it. Usage: image show IMAGE | image edit IMAGE NEW FROM TO. */
#include <gridcpr.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static gridcpr_process processes[16];
static gridcpr_thread threads[16];
static gridcpr_region regions[256];
static gridcpr_file files[64];
static char bytes_of_nothing[16];

static int check(int result, const char *what) {
    if (result < 0) {
        fprintf(stderr, "%s: %d %s\n", what, result, gridcpr_error());
        exit(1);
    }
    return result;
}
#define CHECK(call) check((call), #call)

static int show(gridcpr_image *image) {
    gridcpr_image_info info;
    CHECK(gridcpr_image_info_get(image, &info));
    printf("id %s\nedited_from %s\ntime_ns %" PRIu64 "\ninitiator %u\nowner %u\n", info.id, info.edited_from, info.time_ns,
           info.initiator_uid, info.owner_uid);
    printf("uname %s %s %s %s %s\narchitecture %s\njob %s\n", info.sysname, info.nodename, info.release, info.version,
           info.machine, info.architecture, info.job);
    int n = CHECK(gridcpr_image_processes(image, processes, 16));
    for (int p = 0; p < n; p++) {
        int pid = processes[p].pid;
        printf("process %d parent %d threads %u name %s cwd %s\n", pid, processes[p].ppid, processes[p].threads,
               processes[p].name, processes[p].cwd);
        int m = CHECK(gridcpr_image_threads(image, pid, threads, 16));
        for (int t = 0; t < m; t++) {
            uint64_t rip = 0;
            CHECK(gridcpr_image_register(image, pid, threads[t].tid, "rip", &rip));
            printf("thread %d %s\n", threads[t].tid, rip == threads[t].program_counter ? "at its rip" : "WRONG");
        }
        m = CHECK(gridcpr_image_regions(image, pid, regions, 256));
        for (int r = 0; r < m; r++)
            printf("region %s %" PRIu64 " %s\n", regions[r].kind, regions[r].saved, regions[r].path);
        m = CHECK(gridcpr_image_files(image, pid, files, 64));
        for (int f = 0; f < m; f++)
            printf("file %d %s at %" PRIu64 " %s\n", files[f].fd, files[f].kind, files[f].position, files[f].path);
    }
    int64_t length = gridcpr_image_json(image, NULL, 0);
    char *json = malloc((size_t)length + 1);
    if (gridcpr_image_json(image, json, (size_t)length + 1) != length || strlen(json) != (size_t)length)
        return 1;
    printf("json %s\n", json);
    free(json);
    return 0;
}

static int edit(gridcpr_image *image, const char *new, const char *from, const char *to) {
    gridcpr_image_info info;
    CHECK(gridcpr_image_info_get(image, &info));
    int pid = info.root_pid;
    CHECK(gridcpr_image_replace_path(image, from, to));
    CHECK(gridcpr_image_set_environment(image, pid, "COLOUR", "red"));
    if (gridcpr_image_set_environment(image, pid, "COLOUR", "a much longer one") != GRIDCPR_E_UNSUPPORTED ||
        gridcpr_image_set_environment(image, pid, "NO_SUCH", "x") != GRIDCPR_E_NOT_FOUND)
        return 1;
    CHECK(gridcpr_image_set(image, "/processes/0/umask", "63"));
    if (gridcpr_image_set(image, "/processes/0/umask", "\"x\"") != GRIDCPR_E_USAGE ||
        gridcpr_image_set(image, "/processes/0/nothing", "1") != GRIDCPR_E_NOT_FOUND)
        return 1;
    /* A word of its memory, found by what is in it. */
    int m = CHECK(gridcpr_image_regions(image, pid, regions, 256)), found = 0;
    for (int r = 0; r < m; r++) {
        size_t length = regions[r].end - regions[r].start;
        if (!regions[r].saved || length > 16 << 20 || !(regions[r].protection & 2))
            continue;
        char *bytes = malloc(length);
        if (gridcpr_image_read(image, pid, regions[r].start, bytes, length) == 0)
            for (size_t i = 0; i + 24 < length; i += 8)
                if (memcmp(bytes + i, "word: before the edit;;", 24) == 0) {
                    CHECK(gridcpr_image_write(image, pid, regions[r].start + i, "word: after the edit;;;", 24));
                    found++;
                }
        free(bytes);
    }
    if (!found)
        return 1;
    uint64_t value = 0;
    CHECK(gridcpr_image_set_register(image, pid, pid, "gs_base", 0));
    CHECK(gridcpr_image_register(image, pid, pid, "gs_base", &value));
    if (value != 0)
        return 1;
    if (gridcpr_image_write(image, pid, 4096, "x", 1) != GRIDCPR_E_NOT_FOUND ||
        gridcpr_image_read(image, pid, UINT64_MAX - 2, bytes_of_nothing, 16) != GRIDCPR_E_USAGE)
        return 1;
    CHECK(gridcpr_image_save(image, new));
    return gridcpr_image_save(image, new) == GRIDCPR_E_ALREADY_EXISTS ? 0 : 1;
}

int main(int argc, char **argv) {
    if (argc < 3)
        return 2;
    if (gridcpr_image_open("/no/such/image") != NULL || gridcpr_image_open(NULL) != NULL ||
        gridcpr_image_processes(NULL, NULL, 0) != GRIDCPR_E_USAGE)
        return 3;
    gridcpr_image_close(NULL);
    gridcpr_image *image = gridcpr_image_open(argv[2]);
    if (!image) {
        fprintf(stderr, "%s\n", gridcpr_error());
        return 1;
    }
    CHECK(gridcpr_image_verify(image));
    int result = argc == 6 ? edit(image, argv[3], argv[4], argv[5]) : show(image);
    gridcpr_image_close(image);
    return result;
}
