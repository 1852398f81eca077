/* System V shared memory, semaphores with SEM_UNDO, and message queues, used by several processes and blocked on. */
#include "victim.h"
#include <sys/ipc.h>
#include <sys/msg.h>
#include <sys/sem.h>
#include <sys/shm.h>

#define PAGE 4096
/* What a child tells: each takes the next step when it is its turn. */
struct board {
    atomic_int turn, done;
};
struct letter {
    long type;
    char text[100];
};

static int operate(int set, int index, int change, int flags) {
    struct sembuf step = {.sem_num = index, .sem_op = change, .sem_flg = flags};
    return semop(set, &step, 1);
}

static int value(int set, int index) {
    int found = semctl(set, index, GETVAL);
    CHECK(found >= 0);
    return found;
}

static void same_segment(int id, const struct shmid_ds *then) {
    struct shmid_ds now;
    CHECK(shmctl(id, IPC_STAT, &now) == 0);
    SAME(now.shm_perm.__key, then->shm_perm.__key);
    SAME(now.shm_perm.mode, then->shm_perm.mode);
    SAME(now.shm_perm.uid, then->shm_perm.uid);
    SAME(now.shm_perm.gid, then->shm_perm.gid);
    SAME(now.shm_segsz, then->shm_segsz);
    SAME(now.shm_nattch, then->shm_nattch);
}

static int protection(void *at, char *to) {
    FILE *file = fopen("/proc/self/maps", "re");
    CHECK(file != NULL);
    char line[512];
    int found = 0;
    while (fgets(line, sizeof line, file)) {
        unsigned long start, end;
        if (sscanf(line, "%lx-%lx %4s", &start, &end, to) == 3 && start <= (unsigned long)at && (unsigned long)at < end) {
            found = 1;
            break;
        }
    }
    fclose(file);
    return found;
}

int main(int argc, char **argv) {
    begin(argc, argv);
    struct board *board = shared(PAGE);

    /* Identifiers with a sequence number. */
    for (int i = 0; i < 3; i++) {
        int id = shmget(IPC_PRIVATE, PAGE, 0600);
        CHECK(id >= 0 && shmctl(id, IPC_RMID, NULL) == 0);
        id = semget(IPC_PRIVATE, 1, 0600);
        CHECK(id >= 0 && semctl(id, 0, IPC_RMID) == 0);
        id = msgget(IPC_PRIVATE, 0600);
        CHECK(id >= 0 && msgctl(id, IPC_RMID, NULL) == 0);
    }

    /* An odd size, sparse contents. */
    int big = shmget(0x43505201, 300 * PAGE + 100, IPC_CREAT | IPC_EXCL | 0640);
    CHECK(big >= 0);
    unsigned char *whole = shmat(big, NULL, 0);
    CHECK(whole != (void *)-1);
    for (int i = 0; i < 300; i += 3) memset(whole + i * PAGE, i + 1, PAGE);
    memset(whole + 300 * PAGE, 0xee, 100);
    /* Once more, for reading only. */
    unsigned char *reading = shmat(big, NULL, SHM_RDONLY);
    CHECK(reading != (void *)-1);
    /* Never attached. */
    int idle = shmget(0x43505202, 3 * PAGE, IPC_CREAT | IPC_EXCL | 0600);
    CHECK(idle >= 0);
    unsigned char *at = shmat(idle, NULL, 0);
    CHECK(at != (void *)-1);
    strcpy((char *)at + PAGE + 7, "left alone");
    CHECK(shmdt(at) == 0);
    /* Removed while attached. */
    int gone = shmget(0x43505203, 2 * PAGE, IPC_CREAT | IPC_EXCL | 0600);
    CHECK(gone >= 0);
    unsigned char *orphan = shmat(gone, NULL, 0);
    CHECK(orphan != (void *)-1 && shmctl(gone, IPC_RMID, NULL) == 0);
    strcpy((char *)orphan, "removed");
    /* Another one with the key it had. */
    int heir = shmget(0x43505203, PAGE, IPC_CREAT | IPC_EXCL | 0600);
    CHECK(heir >= 0 && heir != gone);
    /* Only parts of it are left, with different protections. */
    int cut = shmget(IPC_PRIVATE, 8 * PAGE, 0600);
    CHECK(cut >= 0);
    unsigned char *parts = shmat(cut, NULL, 0);
    CHECK(parts != (void *)-1);
    for (int i = 0; i < 8; i++) memset(parts + i * PAGE, 'A' + i, PAGE);
    CHECK(munmap(parts, PAGE) == 0 && munmap(parts + 3 * PAGE, 2 * PAGE) == 0);
    CHECK(mprotect(parts + 2 * PAGE, PAGE, PROT_READ) == 0 && mprotect(parts + 6 * PAGE, PAGE, PROT_NONE) == 0);

    int set = semget(0x43505204, 4, IPC_CREAT | IPC_EXCL | 0660);
    CHECK(set >= 0);
    unsigned short values[4] = {0, 5, 0, 32767};
    CHECK(semctl(set, 0, SETALL, values) == 0);
    int fresh = semget(IPC_PRIVATE, 2, 0600);
    CHECK(fresh >= 0 && semctl(fresh, 1, SETVAL, 9) == 0);
    int full = msgget(0x43505205, IPC_CREAT | IPC_EXCL | 0620);
    int empty = msgget(IPC_PRIVATE, 0600);
    CHECK(full >= 0 && empty >= 0);
    struct msqid_ds capacity;
    CHECK(msgctl(full, IPC_STAT, &capacity) == 0);
    capacity.msg_qbytes = 300;
    CHECK(msgctl(full, IPC_SET, &capacity) == 0);
    struct letter letter = {.type = 7, .text = "second of its type is first"};
    CHECK(msgsnd(full, &letter, 30, 0) == 0);
    letter = (struct letter){.type = 3, .text = ""};
    CHECK(msgsnd(full, &letter, 0, 0) == 0);
    letter = (struct letter){.type = 7, .text = "last"};
    CHECK(msgsnd(full, &letter, 100, 0) == 0);

    /* Takes two of semaphore 1 and gives one to semaphore 2, to be undone when it ends. */
    pid_t undoer = fork();
    if (undoer == 0) {
        CHECK(operate(set, 1, -2, SEM_UNDO) == 0 && operate(set, 2, 1, SEM_UNDO) == 0);
        CHECK(operate(set, 3, -32767, SEM_UNDO) == 0);
        atomic_store(&board->turn, 1);
        AWAIT(atomic_load(&board->turn) == 10);
        _exit(0);
    }
    AWAIT(atomic_load(&board->turn) == 1);
    /* Waits for semaphore 0 with a limit that is far away. */
    pid_t waiter = fork();
    if (waiter == 0) {
        struct sembuf step = {.sem_num = 0, .sem_op = -1};
        struct timespec limit = {.tv_sec = 600};
        CHECK(semtimedop(set, &step, 1, &limit) == 0);
        atomic_fetch_add(&board->done, 1);
        _exit(0);
    }
    /* Waits for a limit that comes. */
    pid_t late = fork();
    if (late == 0) {
        struct sembuf step = {.sem_num = 0, .sem_op = -100};
        struct timespec limit = {.tv_sec = 3};
        CHECK(semtimedop(set, &step, 1, &limit) == -1 && errno == EAGAIN);
        atomic_fetch_add(&board->done, 1);
        _exit(0);
    }
    pid_t receiver = fork();
    if (receiver == 0) {
        struct letter got;
        SAME(msgrcv(empty, &got, sizeof got.text, 4, 0), 6);
        CHECK(strcmp(got.text, "hello") == 0);
        atomic_fetch_add(&board->done, 1);
        _exit(0);
    }
    pid_t sender = fork();
    if (sender == 0) {
        struct letter more = {.type = 99, .text = "waited for room"};
        SAME(msgsnd(full, &more, 100, 0), 0);
        more.type = 100;
        SAME(msgsnd(full, &more, 100, 0), 0);
        atomic_fetch_add(&board->done, 1);
        _exit(0);
    }
    pid_t mate = fork();
    if (mate == 0) {
        AWAIT(atomic_load(&board->turn) == 2);
        CHECK(whole[0] == 'p' && reading[0] == 'p' && orphan[PAGE] == 'q');
        whole[1] = 'c';
        CHECK(shmdt(whole) == 0 && shmdt(reading) == 0 && shmdt(orphan) == 0);
        atomic_store(&board->turn, 3);
        _exit(0);
    }
    CHECK(operate(set, 1, 1, 0) == 0);
    AWAIT(semctl(set, 0, GETNCNT) == 2);
    struct shmid_ds segments[3];
    CHECK(shmctl(big, IPC_STAT, &segments[0]) == 0 && shmctl(idle, IPC_STAT, &segments[1]) == 0);
    CHECK(shmctl(gone, IPC_STAT, &segments[2]) == 0);
    char modes[6][5];
    for (int i = 0; i < 6; i++) CHECK(protection(i < 2 ? (i ? reading : whole) : parts + (int[]){1, 2, 6, 7}[i - 2] * PAGE, modes[i]));
    ready();

    same_segment(big, &segments[0]);
    same_segment(idle, &segments[1]);
    same_segment(gone, &segments[2]);
    CHECK(segments[2].shm_perm.mode & SHM_DEST);
    SAME(shmget(0x43505201, 0, 0), big);
    SAME(shmget(0x43505202, 0, 0), idle);
    SAME(shmget(0x43505203, 0, 0), heir);
    SAME(semget(0x43505204, 0, 0), set);
    SAME(msgget(0x43505205, 0), full);
    for (int i = 0; i < 6; i++) {
        char mode_now[5];
        CHECK(protection(i < 2 ? (i ? reading : whole) : parts + (int[]){1, 2, 6, 7}[i - 2] * PAGE, mode_now));
        if (strcmp(mode_now, modes[i]) != 0) fail(__LINE__, "mapping %d has %s, should have %s", i, mode_now, modes[i]);
    }
    for (int i = 0; i < 300; i++)
        for (int j = 0; j < PAGE; j += 511) SAME(whole[i * PAGE + j], i % 3 == 0 ? (unsigned char)(i + 1) : 0);
    for (int j = 0; j < 100; j++) SAME(whole[300 * PAGE + j], 0xee);
    CHECK(strcmp((char *)orphan, "removed") == 0);
    at = shmat(idle, NULL, 0);
    CHECK(at != (void *)-1 && strcmp((char *)at + PAGE + 7, "left alone") == 0);
    CHECK(shmdt(at) == 0);
    CHECK(parts[PAGE] == 'B' && parts[2 * PAGE] == 'C' && parts[5 * PAGE] == 'F' && parts[7 * PAGE] == 'H');
    CHECK(mprotect(parts + 6 * PAGE, PAGE, PROT_READ) == 0 && parts[6 * PAGE] == 'G');
    whole[0] = 'p';
    CHECK(reading[0] == 'p');
    orphan[PAGE] = 'q';
    /* Attached for reading means for ever. */
    CHECK(mprotect(reading, PAGE, PROT_READ | PROT_WRITE) != 0);
    atomic_store(&board->turn, 2);
    AWAIT(atomic_load(&board->turn) == 3);
    CHECK(whole[1] == 'c' && reading[1] == 'c');
    SAME(waitpid(mate, NULL, 0), mate);
    /* The last one lets go of what was removed. */
    for (pid_t *each = (pid_t[]){undoer, waiter, late, receiver, sender, 0}; *each; each++) CHECK(waitpid(*each, NULL, WNOHANG) >= 0);

    SAME(value(set, 0), 0);
    SAME(value(set, 1), 4);
    SAME(value(set, 2), 1);
    SAME(value(set, 3), 0);
    SAME(semctl(set, 1, GETPID), getpid());
    SAME(semctl(set, 2, GETPID), undoer);
    SAME(value(fresh, 0), 0);
    SAME(value(fresh, 1), 9);
    SAME(semctl(fresh, 1, GETPID), getpid());
    struct semid_ds state;
    CHECK(semctl(set, 0, IPC_STAT, &state) == 0);
    CHECK(state.sem_otime != 0 && state.sem_nsems == 4 && (state.sem_perm.mode & 0777) == 0660);
    CHECK(semctl(fresh, 0, IPC_STAT, &state) == 0 && state.sem_otime == 0);
    /* What it did is undone at its end. */
    atomic_store(&board->turn, 10);
    AWAIT(value(set, 1) == 6);
    AWAIT(value(set, 2) == 0);
    AWAIT(value(set, 3) == 32767);
    CHECK(operate(set, 0, 1, 0) == 0);
    AWAIT(atomic_load(&board->done) == 2);
    SAME(value(set, 0), 0);

    struct msqid_ds queue;
    CHECK(msgctl(full, IPC_STAT, &queue) == 0);
    SAME(queue.msg_qbytes, 300);
    SAME(queue.msg_perm.mode & 0777, 0620);
    SAME(msgrcv(full, &letter, 100, 3, IPC_NOWAIT), 0);
    SAME(msgrcv(full, &letter, 100, 0, IPC_NOWAIT), 30);
    CHECK(letter.type == 7 && strcmp(letter.text, "second of its type is first") == 0);
    SAME(msgrcv(full, &letter, 100, 0, IPC_NOWAIT), 100);
    CHECK(letter.type == 7 && strcmp(letter.text, "last") == 0);
    for (int type = 99; type <= 100; type++) {
        SAME(msgrcv(full, &letter, 100, 0, 0), 100);
        CHECK(letter.type == type && strcmp(letter.text, "waited for room") == 0);
    }
    letter = (struct letter){.type = 4, .text = "hello"};
    CHECK(msgsnd(empty, &letter, 6, 0) == 0);
    AWAIT(atomic_load(&board->done) == 4);
    for (int i = 0; i < 5; i++) {
        int status;
        CHECK(wait(&status) > 0);
        SAME(status, 0);
    }
    CHECK(shmdt(orphan) == 0 && shmctl(gone, IPC_STAT, &segments[2]) == -1);
    ok();
}
