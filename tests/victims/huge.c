/* Memory in explicit huge pages. Private: written, partly written, untouched, protected, and shared with a child until
 * one of them writes. Shared with the child: without a name, of a memfd that is open, of one that is not, and of a
 * System V segment where the user may make one. Prints MISSING where the machine has too few. */
#include "victim.h"
#include <linux/memfd.h>
#include <sys/shm.h>

#define HUGE (2ul << 20)

static unsigned char *map(size_t pages) {
    int how = MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB | 21 << 26;
    void *at = mmap(NULL, pages * HUGE, PROT_READ | PROT_WRITE, how, -1, 0);
    if (at == MAP_FAILED) {
        dprintf(1, "MISSING huge pages: %s\n", strerror(errno));
        _exit(0);
    }
    return at;
}

static unsigned char *map_shared(int fd, size_t pages, off_t from) {
    int how = MAP_SHARED | (fd < 0 ? MAP_ANONYMOUS | MAP_HUGETLB | 21 << 26 : 0);
    void *at = mmap(NULL, pages * HUGE, PROT_READ | PROT_WRITE, how, fd, from);
    CHECK(at != MAP_FAILED);
    return at;
}

static int memfd(const char *name, size_t pages) {
    int fd = memfd_create(name, MFD_HUGETLB | MFD_HUGE_2MB);
    CHECK(fd >= 0 && ftruncate(fd, pages * HUGE) == 0);
    return fd;
}

/* What /proc says of the mapping that starts there, in KiB. */
static long tell(void *start, const char *field) {
    char line[512], wanted[32];
    snprintf(wanted, sizeof wanted, "%lx-", (unsigned long)start);
    FILE *file = fopen("/proc/self/smaps", "r");
    CHECK(file != NULL);
    long found = -1;
    for (int here = 0; found < 0 && fgets(line, sizeof line, file);) {
        if (strncmp(line, wanted, strlen(wanted)) == 0) here = 1;
        if (here && strncmp(line, field, strlen(field)) == 0) found = atol(line + strlen(field));
    }
    fclose(file);
    return found;
}

static void require(unsigned char *at, size_t length, unsigned seed) {
    for (size_t i = 0; i < length; i++)
        if (at[i] != (unsigned char)(i * 7 + i / 4096 + seed)) fail(__LINE__, "byte %zu of seed %u", i, seed);
}

static void fill(unsigned char *at, size_t length, unsigned seed) {
    for (size_t i = 0; i < length; i++) at[i] = (unsigned char)(i * 7 + i / 4096 + seed);
}

int main(int argc, char **argv) {
    begin(argc, argv);
    unsigned char *memory = map(4), *fixed = map(1);
    fill(memory, HUGE, 1);
    fill(memory + 2 * HUGE + 8192, 4096, 2);
    fill(fixed, HUGE, 3);
    CHECK(mprotect(fixed, HUGE, PROT_READ) == 0);
    unsigned char *nameless = map_shared(-1, 2, 0);
    int open_file = memfd("open", 2), closed = memfd("closed", 1);
    unsigned char *second = map_shared(open_file, 1, HUGE), *rest = map_shared(closed, 1, 0);
    CHECK(close(closed) == 0);
    int id = shmget(IPC_PRIVATE, HUGE, SHM_HUGETLB | 21 << 26 | IPC_CREAT | 0600);
    /* It takes a privilege, or a group. */
    unsigned char *segment = id < 0 ? NULL : shmat(id, NULL, 0);
    CHECK(id >= 0 || errno == EPERM);
    CHECK(segment != (void *)-1);
    fill(nameless + HUGE, HUGE, 11);
    fill(second + 4096, HUGE - 4096, 12);
    fill(rest + 4096, 4096, 13);
    if (segment) fill(segment + 4096, HUGE - 4096, 14);
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0)
        wait_for_go();
    else
        ready();
    require(nameless + HUGE, HUGE, 11);
    require(second + 4096, HUGE - 4096, 12);
    require(rest + 4096, 4096, 13);
    if (segment) require(segment + 4096, HUGE - 4096, 14);
    SAME(tell(nameless, "KernelPageSize:"), 2048);
    SAME(tell(second, "KernelPageSize:"), 2048);
    SAME(tell(rest, "KernelPageSize:"), 2048);
    if (segment) SAME(tell(segment, "KernelPageSize:"), 2048);
    struct stat file;
    CHECK(fstat(open_file, &file) == 0);
    SAME(file.st_size, 2 * HUGE);
    unsigned char byte = 1;
    CHECK(pread(open_file, &byte, 1, HUGE + 4097) == 1 && byte == second[4097]);
    CHECK(nameless[0] == 0 || nameless[0] == 'c');
    if (child == 0) {
        nameless[0] = 'c', second[1] = 'd', rest[2] = 'e';
        if (segment) segment[3] = 'f';
    }
    require(memory, HUGE, 1);
    require(memory + 2 * HUGE + 8192, 4096, 2);
    require(fixed, HUGE, 3);
    SAME(tell(memory, "KernelPageSize:"), 2048);
    SAME(tell(fixed, "KernelPageSize:"), 2048);
    for (size_t i = 0; i < 8192; i++) CHECK(memory[2 * HUGE + i] == 0 && memory[2 * HUGE + 12288 + i] == 0);
    if (child == 0) _exit(0);
    int status;
    CHECK(waitpid(child, &status, 0) == child && status == 0);
    CHECK(nameless[0] == 'c' && second[1] == 'd' && rest[2] == 'e' && (segment == NULL || segment[3] == 'f'));
    CHECK(memory[HUGE] == 0 && memory[4 * HUGE - 1] == 0);
    fill(memory + HUGE, HUGE, 4);
    require(memory + HUGE, HUGE, 4);
    CHECK(mprotect(fixed, HUGE, PROT_READ | PROT_WRITE) == 0);
    fill(fixed, HUGE, 5);
    ok();
}
