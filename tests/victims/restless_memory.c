/* Memory with known contents that is moved, given back, unmapped, protected, forked and handed to system calls as soon as
 * the program goes on, from two threads, and must hold what it should wherever that was said. With the mode "watch" it
 * looks at its memory again and again instead, and says in the file FAIL when it is not what it should be. */
#include "victim.h"

enum { PAGES = 48 << 10, SIZE = 4096, WORDS = SIZE / 8 };
static unsigned char *base;
static atomic_int done;

static uint64_t word(size_t page, size_t index) {
    uint64_t x = (page * WORDS + index + 1) * 0x9e3779b97f4a7c15u;
    return x ^ x >> 29;
}

static void verify(const unsigned char *at, size_t page) {
    const uint64_t *words = (const uint64_t *)at;
    for (size_t i = 0; i < WORDS; i += 73)
        if (words[i] != word(page, i)) fail(__LINE__, "page %zu has %llx at word %zu", page, (long long)words[i], i);
}

static void verify_all(const unsigned char *at, size_t first, size_t count) {
    for (size_t page = 0; page < count; page++) verify(at + page * SIZE, first + page);
}

static void zeros(const unsigned char *at, size_t count) {
    for (size_t page = 0; page < count; page++)
        for (size_t i = 0; i < SIZE; i += 512)
            if (at[page * SIZE + i]) fail(__LINE__, "page %zu of what was given back is not empty", page);
}

/* Pages in no order, in the part that nobody changes. */
static void *visit(void *unused) {
    unsigned random = 1;
    while (!done) {
        random = random * 1103515245 + 12345;
        size_t page = (random >> 8) % (PAGES / 2);
        verify(base + page * SIZE, page);
    }
    return unused;
}

static void change(void) {
    unsigned char *part = base + (size_t)PAGES / 2 * SIZE;
    size_t each = PAGES / 32, first = PAGES / 2;
    pthread_t thread;
    CHECK(pthread_create(&thread, NULL, visit, NULL) == 0);
    /* A child, and a child of it, have all the memory of that moment. */
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        pid_t second = fork();
        CHECK(second >= 0);
        verify_all(base, 0, PAGES);
        if (second == 0) _exit(0);
        int status;
        CHECK(waitpid(second, &status, 0) == second && status == 0);
        _exit(0);
    }
    /* Moved to another place, and grown. */
    unsigned char *moved = mremap(part, each * SIZE, 2 * each * SIZE, MREMAP_MAYMOVE);
    CHECK(moved != MAP_FAILED);
    verify_all(moved, first, each);
    zeros(moved + each * SIZE, each);
    /* Given back. */
    CHECK(madvise(part + each * SIZE, each * SIZE, MADV_DONTNEED) == 0);
    zeros(part + each * SIZE, each);
    /* Unmapped and mapped again. */
    CHECK(munmap(part + 2 * each * SIZE, each * SIZE) == 0);
    CHECK(mmap(part + 2 * each * SIZE, each * SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) ==
          part + 2 * each * SIZE);
    zeros(part + 2 * each * SIZE, each);
    /* Protected here and there, so that it is many mappings. */
    for (size_t page = 3 * each; page < 4 * each; page += 7) CHECK(mprotect(part + page * SIZE, SIZE, PROT_READ) == 0);
    verify_all(part + 3 * each * SIZE, first + 3 * each, each);
    CHECK(mprotect(part + 4 * each * SIZE, each * SIZE, PROT_NONE) == 0);
    /* Touched first by system calls, which must see it, and change only what they write. */
    int ends[2];
    CHECK(pipe(ends) == 0);
    for (size_t page = 5 * each; page < 6 * each; page += 11) {
        unsigned char got[SIZE];
        CHECK(write(ends[1], part + page * SIZE, SIZE) == SIZE);
        CHECK(read(ends[0], got, SIZE) == SIZE);
        verify(got, first + page);
        uint64_t last;
        CHECK(write(ends[1], "abcdefgh", 8) == 8);
        CHECK(read(ends[0], part + (page + 1) * SIZE + SIZE - 8, 8) == 8);
        memcpy(&last, part + (page + 1) * SIZE + SIZE - 16, 8);
        CHECK(last == word(first + page + 1, WORDS - 2));
    }
    CHECK(mprotect(part + 4 * each * SIZE, each * SIZE, PROT_READ) == 0);
    verify_all(part + 4 * each * SIZE, first + 4 * each, each);
    /* Moved onto memory that is missing, too. */
    unsigned char *onto = part + 7 * each * SIZE;
    CHECK(mremap(part + 6 * each * SIZE, each * SIZE, each * SIZE, MREMAP_MAYMOVE | MREMAP_FIXED, onto) == onto);
    verify_all(onto, first + 6 * each, each);
    int status;
    CHECK(waitpid(child, &status, 0) == child);
    CHECK(status == 0);
    verify_all(part + 8 * each * SIZE, first + 8 * each, each);
    done = 1;
    CHECK(pthread_join(thread, NULL) == 0);
}

int main(int argc, char **argv) {
    begin(argc, argv);
    base = mmap(NULL, (size_t)PAGES * SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(base != MAP_FAILED);
    for (size_t page = 0; page < PAGES; page++)
        for (size_t i = 0; i < WORDS; i++) ((uint64_t *)(base + page * SIZE))[i] = word(page, i);
    ready();
    if (strcmp(mode, "watch") == 0) {
        CHECK(freopen("FAIL", "a", stdout) != NULL);
        for (size_t page = 0;; page = (page + 4099) % PAGES) verify(base + page * SIZE, page);
    }
    if (strcmp(mode, "change") == 0) change();
    else verify_all(base, 0, PAGES);
    ok();
}
