/* Mappings of every kind, shared and private, with their protection and attributes. */
#include "victim.h"
#include <setjmp.h>

#define PAGE 4096
static sigjmp_buf jump;
static volatile sig_atomic_t faults;
static void on_fault(int signal) { (void)signal; faults++; siglongjmp(jump, 1); }
#define FAULTS(statement) ({ int before_ = faults; if (sigsetjmp(jump, 1) == 0) { statement; } faults == before_ + 1; })

static unsigned char pattern(size_t i) { return i * 31 + i / PAGE; }
static void fill(unsigned char *at, size_t size) { for (size_t i = 0; i < size; i++) at[i] = pattern(i); }
static int filled(unsigned char *at, size_t size) {
    for (size_t i = 0; i < size; i++) if (at[i] != pattern(i)) return 0;
    return 1;
}

/* VmFlags of the area at an address, without what changes by itself. */
static void flags(void *at, char *to) {
    FILE *file = fopen("/proc/self/smaps", "re");
    CHECK(file != NULL);
    char line[512];
    int in = 0;
    *to = 0;
    while (fgets(line, sizeof line, file)) {
        unsigned long start, end;
        if (sscanf(line, "%lx-%lx ", &start, &end) == 2) in = start <= (unsigned long)at && (unsigned long)at < end;
        else if (in && strncmp(line, "VmFlags:", 8) == 0) {
            for (char *word = strtok(line + 8, " \n"); word; word = strtok(NULL, " \n"))
                if (strcmp(word, "sd") != 0) strcat(strcat(to, word), " ");
        }
    }
    fclose(file);
}

static long locked(void) {
    char text[4096];
    slurp("/proc/self/status", text, sizeof text);
    return atol(strstr(text, "VmLck:") + 6);
}

static unsigned char *map(size_t size, int protection, int how, int fd) {
    void *at = mmap(NULL, size, protection, how, fd, 0);
    CHECK(at != MAP_FAILED);
    return at;
}

int main(int argc, char **argv) {
    begin(argc, argv);
    const int rw = PROT_READ | PROT_WRITE;
    char name[256];
    snprintf(name, sizeof name, "%s.map", strrchr(go, '/') + 1);
    int fd = open(name, O_RDWR | O_CREAT, 0600);
    static unsigned char data[16 * PAGE];
    fill(data, sizeof data);
    CHECK(write(fd, data, sizeof data) == sizeof data);
    unsigned char *areas[16];
    size_t n = 0;
    unsigned char *anonymous = areas[n++] = map(1 << 22, rw, MAP_PRIVATE | MAP_ANONYMOUS, -1);
    fill(anonymous, 1 << 22);
    unsigned char *together = areas[n++] = map(1 << 20, rw, MAP_SHARED | MAP_ANONYMOUS, -1);
    fill(together, 1 << 19);
    unsigned char *private = areas[n++] = map(16 * PAGE, rw, MAP_PRIVATE, fd);
    private[3 * PAGE + 1] = 'P';
    unsigned char *public = areas[n++] = map(16 * PAGE, rw, MAP_SHARED, fd);
    public[5 * PAGE + 1] = 'S';
    unsigned char *hidden = areas[n++] = map(64 * PAGE, rw, MAP_PRIVATE | MAP_ANONYMOUS, -1);
    fill(hidden, 64 * PAGE);
    CHECK(mprotect(hidden, 64 * PAGE, PROT_NONE) == 0);
    unsigned char *fixed = areas[n++] = map(64 * PAGE, rw, MAP_PRIVATE | MAP_ANONYMOUS, -1);
    fill(fixed, 64 * PAGE);
    CHECK(mprotect(fixed, 32 * PAGE, PROT_READ) == 0);
    unsigned char *pinned = areas[n++] = map(2 * PAGE, rw, MAP_PRIVATE | MAP_ANONYMOUS, -1);
    fill(pinned, 2 * PAGE);
    CHECK(mlock(pinned, 2 * PAGE) == 0);
    unsigned char *advised = areas[n++] = map(16 * PAGE, rw, MAP_PRIVATE | MAP_ANONYMOUS, -1);
    CHECK(madvise(advised, 16 * PAGE, MADV_DONTDUMP) == 0 && madvise(advised, 16 * PAGE, MADV_NOHUGEPAGE) == 0);
    unsigned char *wiped = areas[n++] = map(16 * PAGE, rw, MAP_PRIVATE | MAP_ANONYMOUS, -1);
    fill(wiped, 16 * PAGE);
    CHECK(madvise(wiped, 16 * PAGE, MADV_WIPEONFORK) == 0);
    unsigned char *alone = areas[n++] = map(16 * PAGE, rw, MAP_PRIVATE | MAP_ANONYMOUS, -1);
    fill(alone, 16 * PAGE);
    CHECK(madvise(alone, 16 * PAGE, MADV_DONTFORK) == 0);
    unsigned char *code = areas[n++] = map(PAGE, rw, MAP_PRIVATE | MAP_ANONYMOUS, -1);
    memcpy(code, "\xb8\x2a\0\0\0\xc3", 6);
    CHECK(mprotect(code, PAGE, PROT_READ | PROT_EXEC) == 0);
    /* An area that grows down, with room below it. */
    unsigned char *room = map(1024 * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1);
    CHECK(munmap(room, 1024 * PAGE) == 0);
    unsigned char *growing = mmap(room + 1020 * PAGE, 4 * PAGE, rw, MAP_PRIVATE | MAP_ANONYMOUS | MAP_GROWSDOWN | MAP_FIXED, -1, 0);
    CHECK(growing == room + 1020 * PAGE);
    growing[0] = 'G';
    areas[n++] = growing;
    unsigned char *zero = areas[n++] = map(PAGE, rw, MAP_PRIVATE, open("/dev/zero", O_RDWR));
    unsigned char *top = sbrk(0);
    CHECK(sbrk(PAGE * 10) != (void *)-1);
    fill(top, PAGE * 10);
    struct sigaction action = {.sa_handler = on_fault};
    sigaction(SIGSEGV, &action, NULL);
    static char before[16][512], after[512];
    for (size_t i = 0; i < n; i++) flags(areas[i], before[i]);
    long lock = locked();
    SAME(lock, 8);
    pid_t child = fork();
    if (child == 0) {
        CHECK(private[3 * PAGE + 1] == 'P');
        private[3 * PAGE + 1] = 'C';
        wait_for_go();
        CHECK(private[3 * PAGE + 1] == 'C');
        CHECK(wiped[5] == 0);
        AWAIT(((atomic_uchar *)together)[1 << 19] == 'a');
        CHECK(public[7 * PAGE] == 'b');
        public[8 * PAGE] = 'd';
        ((atomic_uchar *)together)[(1 << 19) + 1] = 'c';
        _exit(0);
    }
    unsigned char *end = sbrk(0);
    ready();
    CHECK(sbrk(0) == end && sbrk(PAGE) == end);
    end[PAGE - 1] = 1;
    for (size_t i = 0; i < n; i++) {
        flags(areas[i], after);
        if (strcmp(before[i], after) != 0) fail(__LINE__, "area %zu: flags %s became %s", i, before[i], after);
    }
    SAME(locked(), lock);
    CHECK(filled(anonymous, 1 << 22) && filled(together, 1 << 19) && filled(pinned, 2 * PAGE) && filled(wiped, 16 * PAGE));
    CHECK(filled(alone, 16 * PAGE) && filled(fixed, 64 * PAGE) && filled(top, PAGE * 10));
    CHECK(FAULTS(*(volatile unsigned char *)(hidden + 5)));
    CHECK(FAULTS(*(volatile unsigned char *)(fixed + 5) = 1));
    fixed[40 * PAGE] = 1;
    CHECK(FAULTS(*(volatile unsigned char *)code = 1));
    CHECK(mprotect(hidden, 64 * PAGE, PROT_READ) == 0 && filled(hidden, 64 * PAGE));
    int (*answer)(void);
    memcpy(&answer, &code, sizeof answer);
    SAME(answer(), 42);
    CHECK(growing[0] == 'G');
    growing[-PAGE] = 'g';
    CHECK(growing[-PAGE] == 'g');
    CHECK(zero[17] == 0);
    CHECK(private[3 * PAGE + 1] == 'P' && public[5 * PAGE + 1] == 'S' && private[5 * PAGE + 1] == 'S');
    public[7 * PAGE] = 'b';
    ((atomic_uchar *)together)[1 << 19] = 'a';
    AWAIT(((atomic_uchar *)together)[(1 << 19) + 1] == 'c');
    CHECK(public[8 * PAGE] == 'd');
    CHECK(msync(public, 16 * PAGE, MS_SYNC) == 0);
    unsigned char bytes[3];
    CHECK(pread(fd, bytes, 1, 7 * PAGE) == 1 && pread(fd, bytes + 1, 1, 8 * PAGE) == 1 && pread(fd, bytes + 2, 1, 3 * PAGE + 1) == 1);
    SAME(bytes[0], 'b');
    SAME(bytes[1], 'd');
    SAME(bytes[2], pattern(3 * PAGE + 1));
    int status;
    SAME(waitpid(child, &status, 0), child);
    SAME(status, 0);
    ok();
}
