/* Two processes whose main threads have ended while others of theirs go on, the job's first process one of them. */
#include "victim.h"
#include <sys/file.h>

enum { CODE = 42, LAST = 7 };
static struct shared_state {
    atomic_int there, go_on, handled;
} *state;
static int channel[2], lock;
static pid_t below;
static pthread_key_t key;

/* An end of this thread only, and nothing else. */
__attribute__((noreturn)) static void end_thread(int code) {
    for (;;) syscall(SYS_exit, code);
}

static char state_of(pid_t pid, pid_t tid) {
    char path[64], text[1024];
    snprintf(path, sizeof path, "/proc/%d/task/%d/stat", (int)pid, (int)tid);
    slurp(path, text, sizeof text);
    const char *end = strrchr(text, ')');
    CHECK(end != NULL);
    return end[2];
}

static void has_no_leader(pid_t pid, const char *name) {
    char path[64], text[1024];
    AWAIT(state_of(pid, pid) == 'Z');
    snprintf(path, sizeof path, "/proc/%d/comm", (int)pid);
    slurp(path, text, sizeof text);
    if (strcmp(text, name) != 0) fail(__LINE__, "%d is called %s", (int)pid, text);
    snprintf(path, sizeof path, "/proc/%d/status", (int)pid);
    slurp(path, text, sizeof text);
    unsigned uid;
    const char *at = strstr(text, "\nUid:");
    CHECK(at != NULL && sscanf(at, "\nUid: %u", &uid) == 1);
    SAME(uid, getuid());
}

static void handle(int signal) {
    (void)signal;
    state->handled++;
}

/* A thread that outlives the main thread of the process below. */
static void *stays(void *argument) {
    long number = (long)argument;
    pid_t id = syscall(SYS_gettid), own = getpid();
    char text[16] = "", byte;
    CHECK(pthread_setspecific(key, &text) == 0);
    CHECK(id != own);
    if (number == 0) {
        /* A child of a thread that is none of the first. */
        below = fork();
        CHECK(below >= 0);
        if (below == 0) {
            CHECK(read(channel[0], &byte, 1) == 1);
            _exit(byte);
        }
    }
    state->there++;
    while (!state->go_on) nap(20);
    SAME(syscall(SYS_gettid), id);
    SAME(getpid(), own);
    CHECK(pthread_getspecific(key) == &text);
    SAME(kill(own, 0), 0);
    if (number == 0) {
        int status;
        has_no_leader(own, "first\n");
        /* What threads have in common is there: memory, descriptors, handlers, directories. */
        CHECK(write(channel[1], "c", 1) == 1);
        SAME(waitpid(below, &status, 0), below);
        SAME(status, 'c' << 8);
        CHECK(flock(lock, LOCK_EX | LOCK_NB) == 0);
        disturbed = 1;
        CHECK(kill(own, SIGUSR1) == 0);
        AWAIT(state->handled == 1);
        char here[4096];
        CHECK(getcwd(here, sizeof here) != NULL && strcmp(here, "/tmp") == 0);
    }
    end_thread(LAST);
}

static void *controls(void *argument) {
    pid_t child = *(pid_t *)argument, own = getpid();
    has_no_leader(own, "root\n");
    AWAIT(state->there == 2 && state_of(child, child) == 'Z');
    ready();
    has_no_leader(own, "root\n");
    int status;
    SAME(waitpid(child, &status, WNOHANG), 0);
    state->go_on = 1;
    SAME(waitpid(child, &status, 0), child);
    /* That of the thread that was the last to end; before Linux 5.17 that of the main thread. */
    if (status != CODE << 8) SAME(status, LAST << 8);
    dprintf(1, "OK\n");
    end_thread(0);
}

int main(int argc, char **argv) {
    begin(argc, argv);
    state = shared(sizeof *state);
    static pid_t child;
    pthread_t thread;
    CHECK(pthread_key_create(&key, NULL) == 0);
    CHECK(pipe2(channel, O_CLOEXEC) == 0);
    CHECK(chdir("/tmp") == 0);
    struct sigaction action = {.sa_handler = handle};
    CHECK(sigaction(SIGUSR1, &action, NULL) == 0);
    child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        CHECK((lock = memfd_create("lock", 0)) >= 0 && flock(lock, LOCK_EX) == 0);
        CHECK(prctl(PR_SET_NAME, "first") == 0);
        for (long number = 0; number < 2; number++) CHECK(pthread_create(&thread, NULL, stays, (void *)number) == 0);
        end_thread(CODE);
    }
    CHECK(prctl(PR_SET_NAME, "root") == 0);
    CHECK(pthread_create(&thread, NULL, controls, &child) == 0);
    end_thread(0);
}
