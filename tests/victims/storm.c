/* Much of one kind of thing, or one kind of thing over and over, until it is time to look whether all is right. */
#include "victim.h"
#include <netinet/in.h>

static int over(void) { return access(go, F_OK) == 0; }

/* Signals with numbers go to and fro; none may be lost, doubled or out of order. */
static volatile sig_atomic_t last;
static void count(int signal, siginfo_t *info, void *context) {
    (void)signal, (void)context;
    if (info->si_value.sival_int != last + 1) fail(__LINE__, "signal %d after %d", info->si_value.sival_int, (int)last);
    last++;
}
static void signals(void) {
    struct sigaction action = {.sa_sigaction = count, .sa_flags = SA_SIGINFO | SA_RESTART};
    CHECK(sigaction(SIGRTMIN, &action, NULL) == 0);
    sigset_t block, before;
    sigemptyset(&block);
    sigaddset(&block, SIGRTMIN);
    CHECK(sigprocmask(SIG_BLOCK, &block, &before) == 0);
    pid_t other = fork();
    CHECK(other >= 0);
    int first = other != 0;
    if (!first) other = getppid();
    else CHECK(write(1, "READY\n", 6) == 6);
    for (int number = 1;; number++) {
        if (first) {
            int stop = number % 2 == 0 && over();
            CHECK(sigqueue(other, SIGRTMIN, (union sigval){.sival_int = stop ? -1 : number}) == 0);
            if (stop) break;
        }
        if (number % 2) {
            /* By a handler. */
            while (last < number) sigsuspend(&before);
        } else {
            siginfo_t info;
            int got;
            while ((got = sigwaitinfo(&block, &info)) < 0) CHECK(errno == EINTR);
            if (!first && info.si_value.sival_int == -1) _exit(9);
            if (info.si_value.sival_int != number) fail(__LINE__, "signal %d, should be %d", info.si_value.sival_int, number);
            last = number;
        }
        if (!first) CHECK(sigqueue(other, SIGRTMIN, (union sigval){.sival_int = number}) == 0);
    }
    int status;
    CHECK(waitpid(other, &status, 0) == other);
    SAME(status, 9 << 8);
}

/* Mappings come, change and go. */
static void mappings(void) {
    CHECK(write(1, "READY\n", 6) == 6);
    enum { SLOTS = 64 };
    static struct { unsigned char *at; size_t pages; unsigned char value; } slots[SLOTS];
    unsigned random = 1;
    for (unsigned round = 0; round % 256 || !over(); round++) {
        random = random * 1103515245 + 12345;
        int slot = random >> 16 & (SLOTS - 1);
        if (slots[slot].at) {
            for (size_t page = 0; page < slots[slot].pages; page++) {
                SAME(slots[slot].at[page * 4096], slots[slot].value);
                SAME(slots[slot].at[page * 4096 + 4095], slots[slot].value);
            }
            CHECK(munmap(slots[slot].at, slots[slot].pages * 4096) == 0);
            slots[slot].at = NULL;
            continue;
        }
        size_t pages = 1 + (random >> 24 & 31);
        int flags = MAP_ANONYMOUS | (random & 64 ? MAP_SHARED : MAP_PRIVATE);
        unsigned char *at = mmap(NULL, pages * 4096, PROT_READ | PROT_WRITE, flags, -1, 0);
        CHECK(at != MAP_FAILED);
        memset(at, slot + 1, pages * 4096);
        CHECK(mprotect(at, (pages + 1) / 2 * 4096, PROT_READ) == 0);
        slots[slot].at = at, slots[slot].pages = pages, slots[slot].value = slot + 1;
    }
}

/* Descriptors come and go; what is written to a pipe comes out of it. */
static void openings(void) {
    CHECK(write(1, "READY\n", 6) == 6);
    for (unsigned round = 0; round % 64 || !over(); round++) {
        int ends[2], copy, file;
        unsigned got = 0;
        CHECK(pipe2(ends, round & 1 ? O_CLOEXEC : 0) == 0);
        CHECK(write(ends[1], &round, sizeof round) == sizeof round);
        CHECK((copy = dup(ends[0])) >= 0 && close(ends[0]) == 0);
        CHECK((file = memfd_create("storm", 0)) >= 0);
        CHECK(write(file, &round, sizeof round) == sizeof round);
        CHECK(read(copy, &got, sizeof got) == sizeof got && got == round);
        CHECK(pread(file, &got, sizeof got, 0) == sizeof got && got == round);
        CHECK(close(copy) == 0 && close(ends[1]) == 0 && close(file) == 0);
    }
}

/* Signals with numbers are sent to eight processes as fast as they can be: whoever stands still for a moment while the
 * sender does not has thousands to take. */
static void receives(const sigset_t *number) {
    for (int last = 0;; last++) {
        siginfo_t info;
        int got;
        while ((got = sigwaitinfo(number, &info)) < 0) CHECK(errno == EINTR);
        if (info.si_value.sival_int == -1) _exit(9);
        if (info.si_value.sival_int != last) fail(__LINE__, "signal %d, should be %d", info.si_value.sival_int, last);
    }
}
static void deluge(void) {
    enum { RECEIVERS = 8 };
    pid_t receivers[RECEIVERS];
    sigset_t number;
    sigemptyset(&number);
    sigaddset(&number, SIGRTMIN);
    CHECK(sigprocmask(SIG_BLOCK, &number, NULL) == 0);
    for (int i = 0; i < RECEIVERS; i++) {
        CHECK((receivers[i] = fork()) >= 0);
        if (receivers[i] == 0) receives(&number);
    }
    CHECK(write(1, "READY\n", 6) == 6);
    for (int next = 0, last = 0; !last; next++) {
        last = next % 64 == 0 && over();
        for (int i = 0; i < RECEIVERS; i++) {
            while (sigqueue(receivers[i], SIGRTMIN, (union sigval){.sival_int = last ? -1 : next}) != 0) {
                CHECK(errno == EAGAIN);
                sched_yield();
            }
        }
    }
    for (int i = 0; i < RECEIVERS; i++) {
        int status;
        CHECK(waitpid(receivers[i], &status, 0) == receivers[i]);
        SAME(status, 9 << 8);
    }
}

/* Processes and threads come and go in every way there is; none may be lost, and each ends as it should. */
static void *returns(void *number) { return (void *)((long)number * 3); }
static pid_t born_by_vfork(int code) {
    pid_t child = vfork();
    if (child == 0) _exit(code);
    return child;
}
static pid_t born_by_spawn(int code) {
    static const char *const codes[] = {"exit 0", "exit 1", "exit 2", "exit 3", "exit 4", "exit 5", "exit 6", "exit 7"};
    pid_t child = vfork();
    if (child == 0) {
        execl("/bin/sh", "sh", "-c", codes[code], NULL);
        _exit(101);
    }
    return child;
}
static pid_t born_by_clone(int code) {
    pid_t child = syscall(SYS_clone, SIGCHLD, NULL, NULL, NULL, 0);
    if (child == 0) _exit(code);
    return child;
}
/* Its parent waits for it as after vfork(2), but each has memory of its own; and it takes its time. */
static pid_t born_waited_for(int code) {
    pid_t child = syscall(SYS_clone, CLONE_VFORK | SIGCHLD, NULL, NULL, NULL, 0);
    if (child == 0) {
        usleep(20000);
        _exit(code);
    }
    return child;
}
static pid_t born_by_fork(int code) {
    pid_t child = fork();
    if (child == 0) {
        pid_t grandchild = fork();
        if (grandchild == 0) _exit(code);
        int status;
        _exit(waitpid(grandchild, &status, 0) == grandchild ? WEXITSTATUS(status) : 102);
    }
    return child;
}
static void *bears(void *unused) {
    static pid_t (*const ways[])(int) = {born_by_fork, born_by_vfork, born_by_spawn, born_by_clone,
                                         born_waited_for};
    for (int round = 0; round % 64 || !over(); round++) {
        int status;
        pid_t child = ways[round % 5](round % 8);
        CHECK(child > 0);
        CHECK(waitpid(child, &status, 0) == child);
        SAME(status, round % 8 << 8);
    }
    return unused;
}
static void creation(void) {
    pthread_t bearer;
    CHECK(pthread_create(&bearer, NULL, bears, NULL) == 0);
    CHECK(write(1, "READY\n", 6) == 6);
    for (long round = 0; round % 64 || !over(); round++) {
        pthread_t threads[4];
        for (long i = 0; i < 4; i++) CHECK(pthread_create(&threads[i], NULL, returns, (void *)(round + i)) == 0);
        for (long i = 0; i < 4; i++) {
            void *result;
            CHECK(pthread_join(threads[i], &result) == 0);
            SAME((long)result, (round + i) * 3);
        }
    }
    CHECK(pthread_join(bearer, NULL) == 0);
    CHECK(waitpid(-1, NULL, WNOHANG) == -1 && errno == ECHILD);
}

/* Threads that fault all the time, each on a page of its own, and repair it: each fault is told once. There are more of them
 * than processors, so that some wait for one just when they have faulted. */
enum { FAULTING = 16 };
static volatile long *pages;
static volatile long repaired[FAULTING];
static long place(volatile void *address) {
    return ((char *)address - (char *)pages) / 4096;
}
static void repair(int signal, siginfo_t *info, void *context) {
    (void)context;
    long number = place(info->si_addr);
    if (signal != SIGSEGV || number < 0 || number >= FAULTING) _exit(3);
    if (mprotect((char *)pages + number * 4096, 4096, PROT_READ | PROT_WRITE) != 0) _exit(4);
    repaired[number]++;
}
static void *faulting(void *number) {
    volatile long *page = pages + (long)number * 512;
    for (long round = 0; round % 64 || !over(); round++) {
        CHECK(mprotect((void *)page, 4096, PROT_NONE) == 0);
        *page = round;
        SAME(repaired[(long)number], round + 1);
        SAME(*page, round);
    }
    return NULL;
}
static void faults(void) {
    pages = mmap(NULL, FAULTING * 4096, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(pages != MAP_FAILED);
    struct sigaction action = {.sa_sigaction = repair, .sa_flags = SA_SIGINFO};
    CHECK(sigaction(SIGSEGV, &action, NULL) == 0);
    pthread_t threads[FAULTING];
    for (long i = 0; i < FAULTING; i++) CHECK(pthread_create(&threads[i], NULL, faulting, (void *)i) == 0);
    CHECK(write(1, "READY\n", 6) == 6);
    for (long i = 0; i < FAULTING; i++) CHECK(pthread_join(threads[i], NULL) == 0);
}

/* A pipe that one process writes to at a time, which has ended by the time anybody has looked at it. */
static void successors(void) {
    int ends[2];
    CHECK(pipe(ends) == 0);
    pid_t first = fork();
    CHECK(first >= 0);
    for (long number = 0; first == 0; number++) {
        if (write(ends[1], &number, sizeof number) != sizeof number || over()) _exit(0);
        if (fork() != 0) _exit(0);
    }
    CHECK(close(ends[1]) == 0);
    CHECK(write(1, "READY\n", 6) == 6);
    long number, expected = 0;
    ssize_t size;
    for (; (size = read(ends[0], &number, sizeof number)) != 0; expected++) {
        CHECK(size == sizeof number);
        SAME(number, expected);
    }
    CHECK(over() && expected > 1);
    CHECK(waitpid(first, NULL, 0) == first);
}

/* Threads that keep processors busy and share their work; the sum is known. */
enum { BUSY = 16 };
static uint64_t work(uint64_t state, long steps) {
    for (long i = 0; i < steps; i++) state = state * 6364136223846793005u + 1442695040888963407u;
    return state;
}
static atomic_long rounds[BUSY];
static void *busy(void *number) {
    uint64_t *state = calloc(1, sizeof *state);
    for (long round = 0; !over(); round++) {
        *state = work(*state + (long)number, 100000);
        rounds[(long)number] = round + 1;
    }
    return state;
}
static void processors(void) {
    pthread_t threads[BUSY];
    for (long i = 0; i < BUSY; i++) CHECK(pthread_create(&threads[i], NULL, busy, (void *)i) == 0);
    CHECK(write(1, "READY\n", 6) == 6);
    for (long i = 0; i < BUSY; i++) {
        void *result;
        CHECK(pthread_join(threads[i], &result) == 0);
        uint64_t expected = 0;
        for (long round = 0; round < rounds[i]; round++) expected = work(expected + i, 100000);
        CHECK(*(uint64_t *)result == expected && rounds[i] > 1);
    }
}

static void many_processes(int count) {
    pid_t *pids = calloc(count, sizeof *pids);
    for (int i = 0; i < count; i++) {
        pids[i] = fork();
        CHECK(pids[i] >= 0);
        if (pids[i] == 0) {
            pid_t own = getpid();
            wait_for_go();
            _exit(getpid() == own ? i % 100 : 101);
        }
    }
    ready();
    for (int i = 0; i < count; i++) {
        int status;
        CHECK(waitpid(pids[i], &status, 0) == pids[i]);
        SAME(status, i % 100 << 8);
    }
}

static __thread long mine;
static pthread_mutex_t gate = PTHREAD_MUTEX_INITIALIZER;
static void *waits(void *number) {
    mine = (long)number;
    pid_t tid = syscall(SYS_gettid);
    pthread_mutex_lock(&gate);
    pthread_mutex_unlock(&gate);
    return (void *)(tid == syscall(SYS_gettid) ? mine * 3 : -1);
}
static void many_threads(int count) {
    pthread_t *threads = calloc(count, sizeof *threads);
    pthread_attr_t small;
    pthread_attr_init(&small);
    pthread_attr_setstacksize(&small, 64 * 1024);
    pthread_mutex_lock(&gate);
    for (long i = 0; i < count; i++) CHECK(pthread_create(&threads[i], &small, waits, (void *)i) == 0);
    ready();
    pthread_mutex_unlock(&gate);
    for (long i = 0; i < count; i++) {
        void *result;
        CHECK(pthread_join(threads[i], &result) == 0);
        SAME((long)result, i * 3);
    }
}

static void many_mappings(int count) {
    uint32_t **pages = calloc(count, sizeof *pages);
    for (int i = 0; i < count; i++) {
        /* Every second page has another protection, so that none are joined. */
        pages[i] = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        CHECK(pages[i] != MAP_FAILED);
        *pages[i] = i;
        if (i % 2) CHECK(mprotect(pages[i], 4096, PROT_READ) == 0);
    }
    ready();
    for (int i = 0; i < count; i++) {
        SAME(*pages[i], i);
        if (i % 2 == 0) *pages[i] = 0;
    }
}

static void many_descriptors(int count) {
    struct rlimit limit;
    CHECK(getrlimit(RLIMIT_NOFILE, &limit) == 0);
    limit.rlim_cur = limit.rlim_max;
    CHECK(setrlimit(RLIMIT_NOFILE, &limit) == 0);
    if (limit.rlim_cur < (rlim_t)count + 10) count = limit.rlim_cur - 10;
    int *fds = calloc(count, sizeof *fds);
    char name[64];
    for (int i = 0; i < count; i++) {
        snprintf(name, sizeof name, "many-%d", i % 100);
        CHECK((fds[i] = open(name, O_RDWR | O_CREAT, 0600)) >= 0);
        CHECK(lseek(fds[i], i, SEEK_SET) == i);
    }
    ready();
    for (int i = 0; i < count; i++) SAME(lseek(fds[i], 0, SEEK_CUR), i);
}

static void many_sockets(int count) {
    int (*pairs)[2] = calloc(count, sizeof *pairs);
    for (int i = 0; i < count; i++) {
        CHECK(socketpair(AF_UNIX, i % 2 ? SOCK_STREAM : SOCK_DGRAM, 0, pairs[i]) == 0);
        CHECK(write(pairs[i][0], &i, sizeof i) == sizeof i);
    }
    ready();
    for (int i = 0, got; i < count; i++) {
        CHECK(read(pairs[i][1], &got, sizeof got) == sizeof got);
        SAME(got, i);
        CHECK(write(pairs[i][1], &i, sizeof i) == sizeof i);
        CHECK(read(pairs[i][0], &got, sizeof got) == sizeof got);
        SAME(got, i);
    }
}

/* TCP connections of a process with itself: all of one listening socket. */
static void many_connections(int count) {
    struct rlimit limit;
    CHECK(getrlimit(RLIMIT_NOFILE, &limit) == 0);
    limit.rlim_cur = limit.rlim_max;
    CHECK(setrlimit(RLIMIT_NOFILE, &limit) == 0);
    /* Almost as many as there may be: nobody has one of them twice. */
    if (limit.rlim_cur < (rlim_t)(2 * count + 200)) count = (limit.rlim_cur - 200) / 2;
    int (*pairs)[2] = calloc(count, sizeof *pairs), listener = socket(AF_INET, SOCK_STREAM, 0);
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t length = sizeof at;
    CHECK(bind(listener, (void *)&at, sizeof at) == 0 && listen(listener, 16) == 0);
    CHECK(getsockname(listener, (void *)&at, &length) == 0);
    for (int i = 0; i < count; i++) {
        CHECK((pairs[i][0] = socket(AF_INET, SOCK_STREAM, 0)) >= 0);
        CHECK(connect(pairs[i][0], (void *)&at, sizeof at) == 0 && (pairs[i][1] = accept(listener, NULL, NULL)) >= 0);
        CHECK(write(pairs[i][i % 2], &i, sizeof i) == sizeof i);
    }
    /* One that was not accepted yet. */
    int last = socket(AF_INET, SOCK_STREAM, 0);
    CHECK(connect(last, (void *)&at, sizeof at) == 0);
    ready();
    for (int i = 0, got; i < count; i++) {
        CHECK(read(pairs[i][1 - i % 2], &got, sizeof got) == sizeof got);
        SAME(got, i);
        CHECK(write(pairs[i][1 - i % 2], &i, sizeof i) == sizeof i);
        CHECK(read(pairs[i][i % 2], &got, sizeof got) == sizeof got);
        SAME(got, i);
    }
    CHECK(accept(listener, NULL, NULL) >= 0);
}

int main(int argc, char **argv) {
    begin(argc, argv);
    int count = argc > 3 ? atoi(argv[3]) : 0;
    if (!strcmp(mode, "signals")) signals();
    else if (!strcmp(mode, "deluge")) deluge();
    else if (!strcmp(mode, "mappings")) mappings();
    else if (!strcmp(mode, "openings")) openings();
    else if (!strcmp(mode, "creation")) creation();
    else if (!strcmp(mode, "faults")) faults();
    else if (!strcmp(mode, "successors")) successors();
    else if (!strcmp(mode, "processors")) processors();
    else if (!strcmp(mode, "many processes")) many_processes(count);
    else if (!strcmp(mode, "many threads")) many_threads(count);
    else if (!strcmp(mode, "many mappings")) many_mappings(count);
    else if (!strcmp(mode, "many descriptors")) many_descriptors(count);
    else if (!strcmp(mode, "many sockets")) many_sockets(count);
    else if (!strcmp(mode, "many connections")) many_connections(count);
    else fail(__LINE__, "no such mode: %s", mode);
    ok();
}
