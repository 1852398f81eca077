/* Two hundred threads with their IDs, names, thread-local data and vector registers. */
#include "victim.h"
#include <immintrin.h>
#include <linux/futex.h>
#include <sys/rseq.h>

enum { THREADS = 200, SPINNERS = 4 };
static atomic_int begun, stop;
static _Thread_local int local = 0;
static _Thread_local char big[1000];
static pthread_mutex_t robust, plain = PTHREAD_MUTEX_INITIALIZER;
static int total;
static atomic_int owner;

__attribute__((target("avx"))) static void spin(int seed) {
    char patterns[16][32], got[16][32];
    for (int i = 0; i < 16; i++)
        for (int j = 0; j < 32; j++) patterns[i][j] = seed * 37 + i * 11 + j;
    int mismatch = 0;
    while (!stop && !mismatch) {
        __asm__ volatile(
            "vmovdqu 0(%0), %%ymm0; vmovdqu 32(%0), %%ymm1; vmovdqu 64(%0), %%ymm2; vmovdqu 96(%0), %%ymm3;"
            "vmovdqu 128(%0), %%ymm4; vmovdqu 160(%0), %%ymm5; vmovdqu 192(%0), %%ymm6; vmovdqu 224(%0), %%ymm7;"
            "vmovdqu 256(%0), %%ymm8; vmovdqu 288(%0), %%ymm9; vmovdqu 320(%0), %%ymm10; vmovdqu 352(%0), %%ymm11;"
            "vmovdqu 384(%0), %%ymm12; vmovdqu 416(%0), %%ymm13; vmovdqu 448(%0), %%ymm14; vmovdqu 480(%0), %%ymm15;"
            "mov $2000000, %%rcx; 1: dec %%rcx; jnz 1b;"
            "vmovdqu %%ymm0, 0(%1); vmovdqu %%ymm1, 32(%1); vmovdqu %%ymm2, 64(%1); vmovdqu %%ymm3, 96(%1);"
            "vmovdqu %%ymm4, 128(%1); vmovdqu %%ymm5, 160(%1); vmovdqu %%ymm6, 192(%1); vmovdqu %%ymm7, 224(%1);"
            "vmovdqu %%ymm8, 256(%1); vmovdqu %%ymm9, 288(%1); vmovdqu %%ymm10, 320(%1); vmovdqu %%ymm11, 352(%1);"
            "vmovdqu %%ymm12, 384(%1); vmovdqu %%ymm13, 416(%1); vmovdqu %%ymm14, 448(%1); vmovdqu %%ymm15, 480(%1);"
            :: "r"(patterns), "r"(got)
            : "rcx", "memory", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10",
              "xmm11", "xmm12", "xmm13", "xmm14", "xmm15");
        mismatch = memcmp(patterns, got, sizeof got);
    }
    if (mismatch) fail(__LINE__, "vector registers of spinner %d", seed);
}

static void *thread(void *argument) {
    long number = (long)argument;
    pid_t id = syscall(SYS_gettid);
    char name[16], expected[16];
    snprintf(expected, sizeof expected, "thread %ld", number);
    CHECK(prctl(PR_SET_NAME, expected) == 0);
    local = number;
    memset(big, number, sizeof big);
    if (number == 1) {
        CHECK(pthread_mutex_lock(&robust) == 0);
        owner = id;
    }
    begun++;
    if (number >= THREADS - SPINNERS) spin(number);
    while (!stop) nap(50);
    SAME(syscall(SYS_gettid), id);
    SAME(local, number);
    for (size_t i = 0; i < sizeof big; i++) SAME(big[i], (char)number);
    CHECK(prctl(PR_GET_NAME, name) == 0 && strcmp(name, expected) == 0);
    unsigned cpu, real = 0;
    /* glibc takes the CPU from the registered area, the kernel knows it: a move in between is possible, not forever. */
    AWAIT((cpu = sched_getcpu(), syscall(SYS_getcpu, &real, NULL, NULL) == 0) && cpu == real);
    if (__rseq_size > 0) {
        struct rseq *area = (struct rseq *)((char *)__builtin_thread_pointer() + __rseq_offset);
        AWAIT((cpu = area->cpu_id, syscall(SYS_getcpu, &real, NULL, NULL) == 0) && cpu == real);
        /* The kernel still knows the area: registering it again is refused. */
        CHECK(syscall(SYS_rseq, area, 32, 0, RSEQ_SIG) == -1 && (errno == EBUSY || errno == EINVAL));
    }
    CHECK(pthread_mutex_lock(&plain) == 0);
    total++;
    CHECK(pthread_mutex_unlock(&plain) == 0);
    /* Thread 1 ends with the robust mutex locked. */
    return argument;
}

int main(int argc, char **argv) {
    begin(argc, argv);
    pthread_mutexattr_t attributes;
    CHECK(pthread_mutexattr_init(&attributes) == 0);
    CHECK(pthread_mutexattr_setrobust(&attributes, PTHREAD_MUTEX_ROBUST) == 0);
    CHECK(pthread_mutex_init(&robust, &attributes) == 0);
    static pthread_t threads[THREADS];
    pthread_attr_t small;
    pthread_attr_init(&small);
    pthread_attr_setstacksize(&small, 128 << 10);
    for (long i = 0; i < THREADS; i++) CHECK(pthread_create(&threads[i], &small, thread, (void *)i) == 0);
    AWAIT(begun == THREADS && owner != 0);
    ready();
    int tasks = 0;
    DIR *directory = opendir("/proc/self/task");
    CHECK(directory != NULL);
    for (struct dirent *entry; (entry = readdir(directory));) tasks += *entry->d_name != '.';
    SAME(tasks, THREADS + 1);
    CHECK(pthread_mutex_trylock(&robust) == EBUSY);
    stop = 1;
    for (long i = 0; i < THREADS; i++) {
        void *result;
        CHECK(pthread_join(threads[i], &result) == 0);
        SAME((long)result, i);
    }
    SAME(total, THREADS);
    SAME(pthread_mutex_lock(&robust), EOWNERDEAD);
    /* New threads can still be made. */
    pthread_t more;
    CHECK(pthread_create(&more, NULL, thread, (void *)2L) == 0 && pthread_join(more, NULL) == 0);
    ok();
}
