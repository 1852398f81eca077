/* Everything about mappings that has no contents: advice, locks, seals, guards, memory nodes, and very many of them. */
#include "victim.h"
#include <linux/mempolicy.h>
#include <setjmp.h>

#define PAGE 4096
#define MANY 20000
#ifndef MADV_GUARD_INSTALL
#define MADV_GUARD_INSTALL 102
#endif
static sigjmp_buf jump;
static volatile sig_atomic_t faults;
static void on_fault(int signal) { (void)signal; faults++; siglongjmp(jump, 1); }
#define FAULTS(statement) ({ int before_ = faults; if (sigsetjmp(jump, 1) == 0) { statement; } faults == before_ + 1; })

static unsigned char *map(size_t size, int protection, int how) {
    void *at = mmap(NULL, size, protection, how | MAP_ANONYMOUS, -1, 0);
    CHECK(at != MAP_FAILED);
    return at;
}

/* VmFlags of an area, without those that neighbours leave behind (`gu`: perhaps guarded) and soft-dirty. */
static void flags(void *at, char *to) {
    FILE *file = fopen("/proc/self/smaps", "re");
    CHECK(file != NULL);
    char line[512];
    int in = 0;
    *to = 0;
    while (fgets(line, sizeof line, file)) {
        unsigned long start, end;
        if (sscanf(line, "%lx-%lx ", &start, &end) == 2) {
            if (in) break;
            in = start <= (unsigned long)at && (unsigned long)at < end;
        } else if (in && strncmp(line, "VmFlags:", 8) == 0)
            for (char *word = strtok(line + 8, " \n"); word; word = strtok(NULL, " \n"))
                if (strcmp(word, "sd") != 0 && strcmp(word, "gu") != 0) strcat(strcat(to, word), " ");
    }
    fclose(file);
}

/* mbind(2), with the first memory node or with none. */
static void bind_to(void *at, int policy, unsigned long nodes) {
    CHECK(syscall(SYS_mbind, at, 2 * PAGE, policy, &nodes, 8 * sizeof nodes, 0) == 0);
}

static void require_bound(void *at, int policy, unsigned long nodes) {
    int found = -1;
    unsigned long mask[16] = {0};
    CHECK(syscall(SYS_get_mempolicy, &found, mask, 8 * sizeof mask, at, MPOL_F_ADDR) == 0);
    SAME(found, policy);
    SAME(mask[0], nodes);
}

int main(int argc, char **argv) {
    begin(argc, argv);
    const int rw = PROT_READ | PROT_WRITE;
    struct sigaction action = {.sa_handler = on_fault};
    sigaction(SIGSEGV, &action, NULL);
    static const int advice[] = {MADV_RANDOM, MADV_SEQUENTIAL, MADV_HUGEPAGE, MADV_NOHUGEPAGE, MADV_MERGEABLE,
                                 MADV_DONTDUMP, MADV_DONTFORK, MADV_WIPEONFORK};
    enum { ADVICE = sizeof advice / sizeof *advice, AREAS = ADVICE + 5 };
    unsigned char *areas[AREAS];
    for (int i = 0; i < ADVICE; i++) {
        areas[i] = map(8 * PAGE, rw, MAP_PRIVATE);
        memset(areas[i], i + 1, 8 * PAGE);
        CHECK(madvise(areas[i], 8 * PAGE, advice[i]) == 0);
    }
    unsigned char *lazy = areas[ADVICE] = map(4 * PAGE, rw, MAP_PRIVATE | MAP_NORESERVE);
    CHECK(mlock2(lazy, 4 * PAGE, MLOCK_ONFAULT) == 0);
    lazy[PAGE] = 'l';
    unsigned char *eager = areas[ADVICE + 1] = map(2 * PAGE, rw, MAP_PRIVATE | MAP_LOCKED);
    eager[0] = 'e';
    unsigned char *fixed = areas[ADVICE + 2] = map(4 * PAGE, rw, MAP_PRIVATE);
    memset(fixed, 's', 4 * PAGE);
    CHECK(mprotect(fixed, 4 * PAGE, PROT_READ) == 0);
    int sealed = syscall(462, fixed, 4 * PAGE, 0) == 0;
    unsigned char *guarded = areas[ADVICE + 3] = map(64 * PAGE, rw, MAP_PRIVATE);
    memset(guarded, 'g', 64 * PAGE);
    int guards = madvise(guarded + 10 * PAGE, 3 * PAGE, MADV_GUARD_INSTALL) == 0;
    unsigned char *hidden = areas[ADVICE + 4] = map(8 * PAGE, rw, MAP_PRIVATE);
    memset(hidden, 'h', 8 * PAGE);
    CHECK(mprotect(hidden, 8 * PAGE, PROT_NONE) == 0);
    /* A kernel without NUMA has no memory nodes. */
    int nodes = syscall(SYS_get_mempolicy, NULL, NULL, 0, NULL, 0) == 0;
    unsigned char *private_node = map(2 * PAGE, rw, MAP_PRIVATE), *shared_node = map(2 * PAGE, rw, MAP_SHARED);
    unsigned char *child_node = map(2 * PAGE, rw, MAP_PRIVATE);
    private_node[0] = 'n', shared_node[0] = 'm', child_node[0] = 'o';
    if (nodes) {
        bind_to(private_node, MPOL_BIND, 1);
        bind_to(shared_node, MPOL_INTERLEAVE, 1);
        bind_to(child_node, MPOL_PREFERRED, 1);
    }
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        if (nodes) bind_to(child_node, MPOL_DEFAULT, 0);
        wait_for_go();
        if (nodes) {
            require_bound(private_node, MPOL_BIND, 1);
            require_bound(child_node, MPOL_DEFAULT, 0);
        }
        _exit(child_node[0] == 'o' ? 0 : 1);
    }
    /* Two protections in turn, so that no two neighbours are one area. */
    unsigned char *many = map((size_t)MANY * PAGE, PROT_READ, MAP_PRIVATE);
    for (int i = 0; i < MANY; i += 2) CHECK(mprotect(many + (size_t)i * PAGE, PAGE, rw) == 0);
    for (int i = 0; i < MANY; i += 200) many[(size_t)i * PAGE + 1] = i / 200 + 1;
    /* What is mapped from now on is locked when it is touched. */
    CHECK(mlockall(MCL_FUTURE | MCL_ONFAULT) == 0);
    unsigned char *later = map(2 * PAGE, rw, MAP_PRIVATE);
    char before[AREAS + 1][256], after[256];
    for (int i = 0; i < AREAS; i++) flags(areas[i], before[i]);
    flags(later, before[AREAS]);
    CHECK(strstr(before[AREAS], "lo") && strstr(before[AREAS], "lf"));
    ready();
    for (int i = 0; i < AREAS; i++) {
        flags(areas[i], after);
        if (strcmp(before[i], after) != 0) fail(__LINE__, "area %d: flags %s became %s", i, before[i], after);
    }
    later = map(2 * PAGE, rw, MAP_PRIVATE);
    flags(later, after);
    if (strcmp(before[AREAS], after) != 0) fail(__LINE__, "new area: flags %s became %s", before[AREAS], after);
    CHECK(munlockall() == 0);
    CHECK(private_node[0] == 'n' && shared_node[0] == 'm' && child_node[0] == 'o');
    if (nodes) {
        require_bound(private_node, MPOL_BIND, 1);
        require_bound(shared_node, MPOL_INTERLEAVE, 1);
        require_bound(child_node, MPOL_PREFERRED, 1);
    }
    int ended;
    CHECK(waitpid(child, &ended, 0) == child);
    SAME(ended, 0);
    for (int i = 0; i < ADVICE; i++) SAME(areas[i][8 * PAGE - 1], i + 1);
    CHECK(lazy[PAGE] == 'l' && eager[0] == 'e' && fixed[3 * PAGE] == 's');
    if (sealed) CHECK(munmap(fixed, PAGE) == -1 && mprotect(fixed, PAGE, rw) == -1);
    if (guards) {
        CHECK(FAULTS(*(volatile unsigned char *)(guarded + 11 * PAGE)));
        CHECK(guarded[9 * PAGE] == 'g' && guarded[13 * PAGE] == 'g');
    }
    CHECK(FAULTS(*(volatile unsigned char *)hidden));
    CHECK(mprotect(hidden, 8 * PAGE, PROT_READ) == 0 && hidden[8 * PAGE - 1] == 'h');
    for (int i = 0; i < MANY; i += 200) SAME(many[(size_t)i * PAGE + 1], i / 200 + 1);
    CHECK(FAULTS(*(volatile unsigned char *)(many + PAGE) = 1));
    ok();
}
