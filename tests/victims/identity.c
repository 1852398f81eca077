/* Users, groups and capabilities that differ in every way they can, of the process and of a thread; pending signals,
   timers, actions and memory that a listing of the image has to show. */
#include "victim.h"
#include <linux/capability.h>
#include <sys/fsuid.h>
#include <grp.h>

enum { KEPT = 1 << CAP_NET_BIND_SERVICE | 1 << CAP_NET_RAW };
static const char *const lines[] = {"Uid:", "Gid:", "Groups:", "CapInh:", "CapPrm:", "CapEff:", "CapBnd:", "CapAmb:", NULL};
static atomic_int set, check;
static int less;

struct own {
    char text[8][512];
};

static void look(struct own *own) {
    char status[8192];
    slurp("/proc/thread-self/status", status, sizeof status);
    for (int i = 0; lines[i] != NULL; i++) {
        const char *line = strstr(status, lines[i]) + strlen(lines[i]);
        snprintf(own->text[i], sizeof own->text[i], "%.*s", (int)strcspn(line, "\n"), line);
    }
}

/* Who restarts without a capability cannot give it. */
static void same(const struct own *now, const struct own *before) {
    for (int i = 0; lines[i] != NULL; i++) {
        if (i >= 3) {
            unsigned long had = strtoul(before->text[i], NULL, 16), has = strtoul(now->text[i], NULL, 16);
            if (less) had &= ~(1ul << CAP_NET_BIND_SERVICE);
            if (had != has) fail(__LINE__, "%s %lx, should be %lx", lines[i], has, had);
        } else if (strcmp(now->text[i], before->text[i]) != 0) {
            fail(__LINE__, "%s %s, should be %s", lines[i], now->text[i], before->text[i]);
        }
    }
}

/* Libraries change all threads; the kernel changes the one that asks. */
static void become(int real, int base, unsigned effective) {
    gid_t groups[] = {base + 5, base + 6, base + 7};
    CHECK(prctl(PR_CAPBSET_DROP, CAP_SYS_CHROOT) == 0);
    CHECK(prctl(PR_SET_KEEPCAPS, 1) == 0);
    CHECK(syscall(SYS_setgroups, 3, groups) == 0);
    CHECK(syscall(SYS_setresgid, base + 1, base + 2, base + 3) == 0);
    syscall(SYS_setfsgid, base + 4);
    CHECK(syscall(SYS_setresuid, real, base + 2, base + 3) == 0);
    struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
    struct __user_cap_data_struct sets[2] = {{KEPT | 1 << CAP_SETUID, KEPT | 1 << CAP_SETUID, KEPT}, {0, 0, 0}};
    CHECK(syscall(SYS_capset, &header, sets) == 0);
    syscall(SYS_setfsuid, base + 4);
    sets[0].effective = effective;
    sets[0].permitted = KEPT;
    CHECK(syscall(SYS_capset, &header, sets) == 0);
    CHECK(prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, CAP_NET_RAW, 0, 0) == 0);
}

static void *thread(void *unused) {
    static struct own before, now;
    become(3001, 3000, KEPT);
    look(&before);
    set = 1;
    while (!check) nap(10);
    look(&now);
    same(&now, &before);
    return unused;
}

static void handler(int signal) { (void)signal; }

static double used(void) {
    struct rusage usage;
    CHECK(getrusage(RUSAGE_SELF, &usage) == 0);
    return usage.ru_utime.tv_sec + usage.ru_utime.tv_usec / 1e6;
}

int main(int argc, char **argv) {
    begin(argc, argv);
    less = strcmp(mode, "less") == 0;
    /* What is not locked up stays, whoever asks. */
    umask(0026);
    struct rlimit limit;
    CHECK(getrlimit(RLIMIT_CORE, &limit) == 0);
    limit.rlim_cur = 1 << 20;
    CHECK(setrlimit(RLIMIT_CORE, &limit) == 0);
    struct sigaction action = {.sa_handler = handler, .sa_flags = SA_RESTART | SA_NODEFER};
    sigaddset(&action.sa_mask, SIGHUP);
    CHECK(sigaction(SIGUSR1, &action, NULL) == 0);
    sigset_t blocked;
    sigemptyset(&blocked);
    sigaddset(&blocked, SIGRTMIN + 3);
    CHECK(sigprocmask(SIG_BLOCK, &blocked, NULL) == 0);
    for (int i = 0; i < 5; i++) CHECK(sigqueue(getpid(), SIGRTMIN + 3, (union sigval){.sival_int = i}) == 0);
    for (int which = 0; which < 3; which++) {
        struct itimerval timer = {{which + 1, 0}, {10000 + which, 0}};
        CHECK(setitimer(which, &timer, NULL) == 0);
    }
    char *area = mmap((void *)0x200000000, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
    CHECK(area == (void *)0x200000000);
    memset(area, 'x', 8192);
    CHECK(mprotect(area, 4096, PROT_NONE) == 0 && mlock(area + 4096, 4096) == 0);
    while (used() < 0.3) continue;
    pthread_t other;
    CHECK(pthread_create(&other, NULL, thread, NULL) == 0);
    AWAIT(set);
    static struct own before, now;
    /* The image is the real user's. */
    become(0, 2000, 1 << CAP_NET_RAW);
    look(&before);
    ready();
    look(&now);
    same(&now, &before);
    check = 1;
    CHECK(pthread_join(other, NULL) == 0);
    CHECK(used() < 0.3);
    CHECK(getrlimit(RLIMIT_CORE, &limit) == 0);
    SAME(limit.rlim_cur, less ? 4096 : 1 << 20);
    if (less) SAME(limit.rlim_max, 4096);
    ok();
}
