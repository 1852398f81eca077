/* A process in an IPC namespace that the job has made, with the same keys, numbers and names as at home, its child in
 * it, and a process that stayed. */
#include "victim.h"

#include <mqueue.h>
#include <sys/ipc.h>
#include <sys/msg.h>
#include <sys/sem.h>
#include <sys/shm.h>

enum { KEY = 0x43505231 };

struct text {
    long type;
    char byte;
};

struct objects {
    int segment, semaphores, queue;
    char *memory;
    mqd_t posix;
};

static struct objects make(char mark) {
    struct objects o;
    CHECK((o.segment = shmget(KEY, 8192, IPC_CREAT | IPC_EXCL | 0600)) >= 0);
    CHECK((o.memory = shmat(o.segment, NULL, 0)) != (void *)-1);
    o.memory[5000] = mark;
    CHECK((o.semaphores = semget(KEY, 2, IPC_CREAT | IPC_EXCL | 0600)) >= 0);
    CHECK(semctl(o.semaphores, 1, SETVAL, mark) == 0);
    CHECK((o.queue = msgget(KEY, IPC_CREAT | IPC_EXCL | 0600)) >= 0);
    struct text text = {.type = 3, .byte = mark};
    CHECK(msgsnd(o.queue, &text, 1, 0) == 0);
    struct mq_attr attributes = {.mq_maxmsg = 4, .mq_msgsize = 16};
    CHECK((o.posix = mq_open("/cpr-queue", O_RDWR | O_CREAT | O_EXCL, 0600, &attributes)) >= 0);
    CHECK(mq_send(o.posix, &mark, 1, 0) == 0);
    return o;
}

static void check(struct objects o, char mark) {
    SAME(shmget(KEY, 0, 0), o.segment);
    SAME(o.memory[5000], mark);
    SAME(semget(KEY, 0, 0), o.semaphores);
    SAME(semctl(o.semaphores, 1, GETVAL), mark);
    struct text text = {0};
    SAME(msgrcv(o.queue, &text, 1, 3, IPC_NOWAIT), 1);
    SAME(text.byte, mark);
    char got[16];
    SAME(mq_receive(o.posix, got, sizeof got, NULL), 1);
    SAME(got[0], mark);
    mqd_t again = mq_open("/cpr-queue", O_RDWR);
    CHECK(again >= 0 && mq_send(again, "z", 1, 0) == 0);
    SAME(mq_receive(o.posix, got, sizeof got, NULL), 1);
    SAME(got[0], 'z');
}

static const char LIMIT[] = "/proc/sys/kernel/msgmnb";

static int limit(void) {
    char text[32] = "";
    int fd = open(LIMIT, O_RDONLY);
    CHECK(fd >= 0 && read(fd, text, sizeof text - 1) > 0 && close(fd) == 0);
    return atoi(text);
}

static void *idle(void *unused) {
    pause();
    return unused;
}

static int there, go_on;

static void wait_for_word(void) {
    char byte = 'x';
    CHECK(write(there, &byte, 1) == 1 && read(go_on, &byte, 1) == 1);
}

/* Lives in the namespace of its parent, and has borrowed from a semaphore what it gives back when it ends. */
static pid_t borrower(struct objects o) {
    pid_t pid = fork();
    CHECK(pid >= 0);
    if (pid != 0) return pid;
    CHECK(semop(o.semaphores, &(struct sembuf){.sem_num = 0, .sem_op = 3, .sem_flg = SEM_UNDO}, 1) == 0);
    char *memory = shmat(o.segment, NULL, 0);
    CHECK(memory != (void *)-1);
    wait_for_word();
    SAME(semctl(o.semaphores, 0, GETVAL), 3);
    memory[1] = 'b';
    _exit(0);
}

static void inner(void) {
    CHECK(unshare(CLONE_NEWIPC) == 0);
    int fd = open(LIMIT, O_WRONLY);
    CHECK(fd >= 0 && write(fd, "12345", 5) == 5 && close(fd) == 0);
    struct objects o = make('i');
    pid_t child = borrower(o);
    pthread_t thread;
    CHECK(pthread_create(&thread, NULL, idle, NULL) == 0);
    wait_for_word();
    int status;
    CHECK(waitpid(child, &status, 0) == child);
    SAME(status, 0);
    SAME(semctl(o.semaphores, 0, GETVAL), 0);
    SAME(o.memory[1], 'b');
    SAME(limit(), 12345);
    check(o, 'i');
    _exit(0);
}

int main(int argc, char **argv) {
    begin(argc, argv);
    int arrived[2], onward[2];
    CHECK(pipe(arrived) == 0 && pipe(onward) == 0);
    there = arrived[1];
    go_on = onward[0];
    int before = limit();
    struct objects o = make('h');
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        CHECK(shmdt(o.memory) == 0);
        inner();
    }
    char bytes[2];
    for (int got = 0; got < 2;) {
        int more = read(arrived[0], bytes, sizeof bytes - got);
        CHECK(more > 0);
        got += more;
    }
    ready();
    SAME(limit(), before);
    CHECK(write(onward[1], "xx", 2) == 2);
    int status;
    CHECK(waitpid(child, &status, 0) == child);
    SAME(status, 0);
    check(o, 'h');
    ok();
}
