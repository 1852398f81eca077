/* Two threads write all their memory again and again, as fast as they can. Each page says in which pass it was written:
 * a thread that comes to a page looks first whether it is of the pass before. No child ever ends here, so that no signal
 * says so, and none is found by wait(2); a pipe to itself ends when it closes the other end. */
#include "victim.h"

enum { THREADS = 2, MIB = 100, SIZE = 4096, WORDS = SIZE / 8 };
static atomic_int done, told;

static void on_child(int signal) {
    (void)signal;
    told = 1;
}

static void *flood(void *argument) {
    size_t pages = ((size_t)MIB << 20) / SIZE;
    uint64_t *memory = mmap(NULL, pages * SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(memory != MAP_FAILED);
    atomic_int *filled = argument;
    for (uint64_t pass = 1; !done; pass++) {
        for (size_t page = 0; page < pages && !done; page++) {
            uint64_t *at = memory + page * WORDS;
            for (size_t i = 0; i < WORDS; i += 8) {
                uint64_t expected = pass == 1 ? 0 : (pass - 1) * 1000003 + page * WORDS + i;
                if (at[i] != expected)
                    fail(__LINE__, "pass %llu, page %zu, word %zu: %llx", (long long)pass, page, i, (long long)at[i]);
                at[i] = pass * 1000003 + page * WORDS + i;
            }
        }
        if (pass == 1) atomic_fetch_add(filled, 1);
    }
    return NULL;
}

int main(int argc, char **argv) {
    begin(argc, argv);
    CHECK(signal(SIGCHLD, on_child) != SIG_ERR);
    atomic_int filled = 0;
    pthread_t threads[THREADS];
    for (int i = 0; i < THREADS; i++) CHECK(pthread_create(&threads[i], NULL, flood, &filled) == 0);
    while (filled < THREADS) nap(10);
    CHECK(write(1, "READY\n", 6) == 6);
    unsigned passes = 0;
    while (passes++ < 20 || access(go, F_OK) != 0) {
        CHECK(waitpid(-1, NULL, __WALL) == -1 && errno == ECHILD);
        int ends[2];
        char byte;
        CHECK(pipe(ends) == 0 && close(ends[1]) == 0 && read(ends[0], &byte, 1) == 0 && close(ends[0]) == 0);
        nap(5);
    }
    done = 1;
    for (int i = 0; i < THREADS; i++) CHECK(pthread_join(threads[i], NULL) == 0);
    CHECK(!told);
    dprintf(1, "OK\n");
    return 0;
}
