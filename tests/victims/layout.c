/* Where the parts of an address space are: code, data, heap, stacks, arguments, environment, auxiliary vector; and
   what grows goes on growing. */
#include "victim.h"
#include <sys/auxv.h>

enum { THREADS = 3, FRAME = 1000, DEEP = 2000, DEEPER = 6000 };

static pthread_barrier_t set;
static atomic_int check;

struct where {
    char bounds[1024], arguments[4096], environment[16384], auxiliary[1024], program[256];
    size_t lengths[3];
};

/* What the kernel knows of the address space. */
static void look(struct where *where) {
    char text[4096];
    memset(where, 0, sizeof *where);
    slurp("/proc/self/stat", text, sizeof text);
    /* startcode, endcode, startstack; start_data, end_data, start_brk, arg_start, arg_end, env_start, env_end. */
    char *word = strtok(strrchr(text, ')') + 2, " ");
    for (int field = 3; word != NULL; field++, word = strtok(NULL, " "))
        if ((field >= 26 && field <= 28) || (field >= 45 && field <= 51)) strcat(strcat(where->bounds, word), " ");
    where->lengths[0] = slurp("/proc/self/cmdline", where->arguments, sizeof where->arguments);
    where->lengths[1] = slurp("/proc/self/environ", where->environment, sizeof where->environment);
    where->lengths[2] = slurp("/proc/self/auxv", where->auxiliary, sizeof where->auxiliary);
    CHECK(where->lengths[0] > 0 && where->lengths[2] > 0);
    CHECK(readlink("/proc/self/exe", where->program, sizeof where->program - 1) > 0);
}

static void same(const struct where *now, const struct where *before) {
    if (strcmp(now->bounds, before->bounds) != 0) fail(__LINE__, "%s, should be %s", now->bounds, before->bounds);
    if (strcmp(now->program, before->program) != 0) fail(__LINE__, "%s, should be %s", now->program, before->program);
    for (int i = 0; i < 3; i++) SAME(now->lengths[i], before->lengths[i]);
    CHECK(memcmp(now->arguments, before->arguments, sizeof now->arguments) == 0);
    CHECK(memcmp(now->environment, before->environment, sizeof now->environment) == 0);
    CHECK(memcmp(now->auxiliary, before->auxiliary, sizeof now->auxiliary) == 0);
}

/* Fills its frame, goes down, and looks at it again on its way up. */
__attribute__((noinline)) static int dive(int depth, int bottom, void (*at_bottom)(void)) {
    volatile unsigned char frame[FRAME];
    for (int i = 0; i < FRAME; i++) frame[i] = depth * 7 + i;
    int sum = depth == bottom ? (at_bottom(), 0) : dive(depth + 1, bottom, at_bottom);
    for (int i = 0; i < FRAME; i++)
        if (frame[i] != (unsigned char)(depth * 7 + i)) fail(__LINE__, "frame %d, byte %d", depth, i);
    return sum + 1;
}

static void nothing(void) {}

static void rest(void) {
    pthread_barrier_wait(&set);
    while (!check) nap(10);
}

static void *thread(void *argument) {
    SAME(dive(1, 50, rest), 50);
    return argument;
}

static unsigned char pattern(size_t i) { return i * 13 + i / 4096; }

int main(int argc, char **argv) {
    begin(argc, argv);
    pthread_t threads[THREADS];
    CHECK(pthread_barrier_init(&set, NULL, THREADS + 1) == 0);
    for (long i = 0; i < THREADS; i++) CHECK(pthread_create(&threads[i], NULL, thread, NULL) == 0);
    pthread_barrier_wait(&set);
    /* Three megabytes of heap. */
    const size_t size = 3 << 20;
    unsigned char *top = sbrk(0);
    CHECK(sbrk(size) == top);
    for (size_t i = 0; i < size; i++) top[i] = pattern(i);
    clockid_t clocks[] = {CLOCK_REALTIME, CLOCK_MONOTONIC, CLOCK_BOOTTIME};
    static struct where before, now_;
    look(&before);
    double start[3];
    for (int i = 0; i < 3; i++) start[i] = now(clocks[i]);
    SAME(dive(1, DEEP, ready), DEEP);
    look(&now_);
    same(&now_, &before);
    CHECK(strcmp(now_.arguments, argv[0]) == 0 && getauxval(AT_PAGESZ) == 4096);
    /* Its clocks are read in the vDSO, which may be another one. */
    for (int i = 0; i < 3; i++) {
        double gone = now(clocks[i]) - start[i];
        struct timespec real;
        CHECK(syscall(SYS_clock_gettime, clocks[i], &real) == 0);
        double apart = now(clocks[i]) - (real.tv_sec + real.tv_nsec / 1e9);
        if (gone < 0 || gone > 1000 || apart < 0 || apart > 10) fail(__LINE__, "clock %d: %f, %f", clocks[i], gone, apart);
    }
    for (size_t i = 0; i < size; i++) SAME(top[i], pattern(i));
    CHECK(sbrk(0) == top + size && sbrk(size) == top + size);
    memset(top + size, 1, size);
    SAME(dive(1, DEEPER, nothing), DEEPER);
    check = 1;
    for (int i = 0; i < THREADS; i++) CHECK(pthread_join(threads[i], NULL) == 0);
    ok();
}
