/* The solver of examples/app/heat.c for a machine that libgridcpr is not built for: goes on from the newest generation that
 * was written elsewhere, and prints the same result. It knows of docs/app-format.md and nothing else; hashes are not
 * compared, which only a test may leave out.
 *
 *   heat_elsewhere BASE STEPS
 */
#include <dirent.h>
#include <inttypes.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { N = 256, CHUNK = 1 << 20 };
static double now[N][N], next[N][N];
static int64_t step;

static void fail(const char *why) {
    fprintf(stderr, "heat_elsewhere: %s\n", why);
    exit(1);
}

static uint64_t little(const unsigned char *at, int bytes) {
    uint64_t value = 0;
    while (bytes--) value = value << 8 | at[bytes];
    return value;
}

static unsigned char *contents(const char *path, uint64_t *length) {
    FILE *file = fopen(path, "rb");
    if (!file || fseek(file, 0, SEEK_END)) fail("a part cannot be opened");
    *length = ftell(file);
    unsigned char *bytes = malloc(*length + 1);
    rewind(file);
    if (!bytes || fread(bytes, 1, *length, file) != *length) fail("a part cannot be read");
    fclose(file);
    return bytes;
}

/* CBOR: what is at `at`, which is moved on. */
static const unsigned char *at, *end;

static int head(uint64_t *value) {
    if (at >= end) fail("the metadata are cut off");
    int major = *at >> 5, minor = *at++ & 31, bytes = minor < 24 ? 0 : 1 << (minor - 24);
    if (minor > 27 || end - at < bytes) fail("the metadata are not understood");
    *value = minor < 24 ? (uint64_t)minor : 0;
    for (; bytes; bytes--) *value = *value << 8 | *at++;
    return major;
}

static void skip(void) {
    uint64_t value;
    int major = head(&value);
    if (major == 2 || major == 3) {
        if (value > (uint64_t)(end - at)) fail("the metadata are cut off");
        at += value;
    }
    if (major == 4) while (value--) skip();
    if (major == 5) while (value--) { skip(); skip(); }
    if (major == 6) skip();
}

static uint64_t number(void) {
    uint64_t value;
    if (head(&value) != 0) fail("a number is missing");
    return value;
}

static uint64_t begin(int major) {
    uint64_t count;
    if (head(&count) != major) fail("an array or a map is missing");
    return count;
}

static void text(char *to, size_t size) {
    uint64_t length = begin(3);
    if (length >= size || length > (uint64_t)(end - at)) fail("a text is too long");
    memcpy(to, at, length);
    to[length] = 0;
    at += length;
}

/* Moves to the value of a key of the map that begins here; everything after it is looked for anew. */
static int seek(const char *wanted) {
    const unsigned char *start = at;
    char key[64];
    for (uint64_t left = begin(5); left; left--) {
        text(key, sizeof key);
        if (!strcmp(key, wanted)) return 1;
        skip();
    }
    at = start;
    return 0;
}

static const unsigned char *entry;
static void field(const char *name) {
    at = entry;
    if (!seek(name)) fail(name);
}

static void take(const char *base, const char *name, const char *element, void *to, uint64_t bytes, int is_little) {
    char found[64];
    field("element");
    text(found, sizeof found);
    if (strcmp(found, element)) fail("a variable has another type");
    field("bytes");
    if (number() != bytes) fail("a variable has another size");
    field("chunks");
    const unsigned char *chunk = at;
    uint64_t count = begin(4), done = 0;
    chunk = at;
    for (; count; count--, done += CHUNK) {
        const unsigned char *kept = entry;
        entry = chunk;
        field("generation");
        uint64_t generation = number();
        field("offset");
        uint64_t offset = number(), length, piece = bytes - done < CHUNK ? bytes - done : CHUNK;
        char path[4096];
        snprintf(path, sizeof path, "%s/heat/%06" PRIu64 "/part-00000", base, generation);
        unsigned char *part = contents(path, &length);
        if (offset + piece > length) fail("a chunk leads out of its file");
        memcpy((char *)to + done, part + offset, piece);
        free(part);
        at = chunk;
        skip();
        chunk = at;
        entry = kept;
    }
    /* All elements of ours have eight bytes. */
    const int one = 1, we_are_little = *(const char *)&one;
    if (is_little != we_are_little)
        for (char *p = to; p < (char *)to + bytes; p += 8)
            for (int i = 0; i < 4; i++) { char c = p[i]; p[i] = p[7 - i]; p[7 - i] = c; }
    (void)name;
}

static void restore(const char *base) {
    char path[4096];
    snprintf(path, sizeof path, "%s/heat", base);
    DIR *all = opendir(path);
    uint64_t newest = 0;
    for (struct dirent *each; all && (each = readdir(all));) {
        uint64_t generation = strtoull(each->d_name, NULL, 10);
        snprintf(path, sizeof path, "%s/heat/%06" PRIu64 "/complete", base, generation);
        if (generation > newest && !access(path, R_OK)) newest = generation;
    }
    if (!newest) fail("there is no complete generation");
    snprintf(path, sizeof path, "%s/heat/%06" PRIu64 "/part-00000", base, newest);
    uint64_t length;
    unsigned char *part = contents(path, &length);
    if (length < 4096 + 64 || memcmp(part, "GridAPP\1", 8) || memcmp(part + length - 8, "GridAPP\1", 8) ||
        little(part + 8, 4) != 1 || little(part + length - 16, 8) != length)
        fail("this is no part");
    uint64_t offset = little(part + length - 64, 8), size = little(part + length - 56, 8);
    if (offset % 4096 || offset > length || size > length - offset) fail("the metadata are not there");
    const unsigned char *metadata = part + offset;
    at = metadata, end = metadata + size;
    if (!seek("little_endian")) fail("the byte order is not said");
    int is_little = *at == 0xf5;
    at = metadata;
    if (!seek("variables")) fail("there are no variables");
    uint64_t count = begin(4);
    const unsigned char *variable = at;
    int found = 0;
    for (; count; count--) {
        char name[256];
        entry = variable;
        field("name");
        text(name, sizeof name);
        if (!strcmp(name, "temperature")) take(base, name, "float64", now, sizeof now, is_little), found |= 1;
        if (!strcmp(name, "step")) take(base, name, "int64", &step, sizeof step, is_little), found |= 2;
        at = variable;
        skip();
        variable = at;
    }
    if (found != 3) fail("a variable is missing");
    free(part);
}

int main(int argc, char **argv) {
    if (argc != 3) fail("usage: heat_elsewhere BASE STEPS");
    restore(argv[1]);
    int64_t last = atoll(argv[2]);
    fprintf(stderr, "heat: going on at step %lld\n", (long long)step);
    for (; step < last; step++) {
        for (int i = 1; i < N - 1; i++)
            for (int j = 1; j < N - 1; j++)
                next[i][j] = now[i][j] + 0.2 * (now[i - 1][j] + now[i + 1][j] + now[i][j - 1] + now[i][j + 1] - 4 * now[i][j]);
        for (int i = 1; i < N - 1; i++)
            for (int j = 1; j < N - 1; j++) now[i][j] = next[i][j];
    }
    double sum = 0;
    for (int i = 0; i < N; i++)
        for (int j = 0; j < N; j++) sum += now[i][j] * (i * 31 + j);
    printf("%lld steps, %.17g\n", (long long)step, sum);
    return 0;
}
