/* One System V segment, whose key is the mode. */
#include "victim.h"
#include <sys/shm.h>

int main(int argc, char **argv) {
    begin(argc, argv);
    key_t key = atoi(mode);
    int id = shmget(key, 10000, IPC_CREAT | 0600);
    CHECK(id >= 0);
    atomic_int *count = shmat(id, NULL, 0);
    CHECK(count != (void *)-1);
    int turn = atomic_fetch_add(count, 1);
    if (turn == 0) count[2000] = 2000;
    ready();
    SAME(shmget(key, 0, 0), id);
    SAME(count[2000], 2000);
    /* Whoever came second leaves it to the first. */
    if (turn == 0) {
        struct shmid_ds state;
        CHECK(shmctl(id, IPC_STAT, &state) == 0);
        SAME(state.shm_nattch, 1);
        SAME(state.shm_perm.mode & 0777, 0600);
        CHECK(shmctl(id, IPC_RMID, NULL) == 0);
    }
    ok();
}
