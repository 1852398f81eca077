/* POSIX shared memory and named semaphores. With the mode `lost`, they are removed before each restart. */
#include "victim.h"
#include <semaphore.h>

#define PAGE 4096

int main(int argc, char **argv) {
    begin(argc, argv);
    char memory[64], pair[64];
    snprintf(memory, sizeof memory, "/cpr-memory-%s", mode);
    snprintf(pair, sizeof pair, "/cpr-semaphore-%s", mode);
    int fd = shm_open(memory, O_RDWR | O_CREAT | O_EXCL, 0640);
    CHECK(fd >= 0 && ftruncate(fd, 100 * PAGE + 10) == 0);
    unsigned char *at = mmap(NULL, 101 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    int reader = shm_open(memory, O_RDONLY, 0);
    unsigned char *reading = mmap(NULL, 101 * PAGE, PROT_READ, MAP_SHARED, reader, 0);
    CHECK(at != MAP_FAILED && reading != MAP_FAILED && close(reader) == 0);
    for (int i = 0; i < 100; i += 7) memset(at + i * PAGE, i + 1, PAGE);
    at[100 * PAGE + 9] = 'z';
    sem_t *semaphore = sem_open(pair, O_CREAT | O_EXCL, 0600, 2);
    CHECK(semaphore != SEM_FAILED);
    atomic_uchar *word = (atomic_uchar *)at + PAGE;
    pid_t child = fork();
    if (child == 0) {
        for (int i = 0; i < 3; i++) CHECK(sem_wait(semaphore) == 0);
        atomic_store(word, 'c');
        _exit(0);
    }
    AWAIT(({ int value; sem_getvalue(semaphore, &value); value == 0; }));
    ready();
    for (int i = 0; i < 100; i++) SAME(reading[i * PAGE + 5], i % 7 == 0 ? i + 1 : 0);
    SAME(at[100 * PAGE + 9], 'z');
    struct stat stat, named;
    CHECK(fstat(fd, &stat) == 0);
    SAME(stat.st_size, 100 * PAGE + 10);
    SAME(stat.st_mode & 07777, 0640);
    SAME(stat.st_uid, getuid());
    int again = shm_open(memory, O_RDWR, 0);
    CHECK(again >= 0 && fstat(again, &named) == 0);
    SAME(named.st_ino, stat.st_ino);
    CHECK(sem_post(semaphore) == 0);
    AWAIT(atomic_load(word) == 'c');
    SAME(reading[PAGE], 'c');
    int status;
    SAME(waitpid(child, &status, 0), child);
    SAME(status, 0);
    CHECK(shm_unlink(memory) == 0 && sem_unlink(pair) == 0);
    ok();
}
