/* What parent and child have had in common since fork(2) stays one copy, and what they changed stays their own. */
#include "victim.h"

#define PAGES 512
#define PAGE 4096

/* Bytes of the mapping at `address` that are this process's alone, or (of all its pages) present. */
static long smaps(const char *key, const void *address) {
    static char text[1 << 20];
    slurp("/proc/self/smaps", text, sizeof text);
    char head[64];
    snprintf(head, sizeof head, "%lx-", (unsigned long)address);
    char *at = strstr(text, head);
    CHECK(at);
    at = strstr(at, key);
    CHECK(at);
    return strtol(at + strlen(key), NULL, 10) * 1024;
}

static void verify(const unsigned char *memory, int who) {
    for (int page = 0; page < PAGES; page++) {
        unsigned char wanted = page;
        if (page == 7 || (page == 9 && who)) wanted = 100 + who;
        if (page == 11 && who == 2) wanted = 0;
        if (memory[page * PAGE] != wanted) fail(__LINE__, "page %d of %d has %d", page, who, memory[page * PAGE]);
    }
}

int main(int argc, char **argv) {
    begin(argc, argv);
    unsigned char *memory =
        mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    CHECK(memory != MAP_FAILED && madvise(memory, PAGES * PAGE, MADV_NOHUGEPAGE) == 0);
    for (int page = 0; page < PAGES; page++) memset(memory + page * PAGE, page, PAGE);
    /* A process, its child, and its grandchild. */
    int who = 0;
    int *done = shared(3 * sizeof *done);
    pid_t child = 0;
    while (who < 2 && (child = fork()) == 0) who++;
    memory[7 * PAGE] = 100 + who;
    if (who) memory[9 * PAGE] = 100 + who;
    if (who == 2) CHECK(madvise(memory + 11 * PAGE, PAGE, MADV_DONTNEED) == 0);
    /* Given other rights, it cannot be filled as it is. */
    if (who == 1) CHECK(mprotect(memory, PAGES * PAGE, PROT_READ) == 0);
    done[who] = 1;
    AWAIT(done[0] && done[1] && done[2]);
    if (who == 0)
        ready();
    else
        wait_for_go();
    verify(memory, who);
    /* All live until all have looked. */
    long own = smaps("Private_Dirty:", memory), present = smaps("Rss:", memory);
    if (present < (PAGES - 8) * PAGE) fail(__LINE__, "%ld bytes are present", present);
    if (own > 16 * PAGE) fail(__LINE__, "%ld of %ld bytes are not shared", own, present);
    done[who] = 2;
    AWAIT(done[0] == 2 && done[1] == 2 && done[2] == 2);
    int status = 0;
    if (who < 2) CHECK(waitpid(child, &status, 0) == child);
    SAME(status, 0);
    if (who) _exit(0);
    ok();
}
