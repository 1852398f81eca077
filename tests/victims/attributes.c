/* Switches, scheduling, directories and limits of a process and of its threads, which may have their own. */
#include "victim.h"
#include <linux/mempolicy.h>
#include <linux/securebits.h>
#include <sys/personality.h>
#include <sys/syscall.h>

struct attributes {
    uint32_t size, policy;
    uint64_t flags;
    int32_t nice;
    uint32_t priority;
    uint64_t runtime, deadline, period;
};

#ifndef PR_SET_MDWE
#define PR_SET_MDWE 65
#define PR_GET_MDWE 66
#define PR_MDWE_REFUSE_EXEC_GAIN 1
#endif

#ifndef PR_SET_MEMORY_MERGE
#define PR_SET_MEMORY_MERGE 67
#define PR_GET_MEMORY_MERGE 68
#endif

/* All that a thread can have of its own. */
struct own {
    struct attributes schedule;
    int tsc, slack, death, io_priority, machine_check, keep_capabilities, no_new_privileges, policy, umask;
    unsigned long speculation[3], nodes[16], affinity[16];
    char cwd[256], name[16];
};

static int root;
static atomic_int set, check;

static void look(struct own *own) {
    memset(own, 0, sizeof *own);
    CHECK(syscall(SYS_sched_getattr, 0, &own->schedule, sizeof own->schedule, 0) == 0);
    CHECK(prctl(PR_GET_TSC, &own->tsc) == 0);
    CHECK((own->slack = prctl(PR_GET_TIMERSLACK)) >= 0);
    CHECK(prctl(PR_GET_PDEATHSIG, &own->death) == 0);
    CHECK((own->io_priority = syscall(SYS_ioprio_get, 1, 0)) >= 0);
    own->machine_check = prctl(PR_MCE_KILL_GET, 0, 0, 0, 0);
    CHECK((own->keep_capabilities = prctl(PR_GET_KEEPCAPS)) >= 0);
    CHECK((own->no_new_privileges = prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0)) >= 0);
    CHECK(prctl(PR_GET_NAME, own->name) == 0);
    for (int i = 0; i < 3; i++) own->speculation[i] = prctl(PR_GET_SPECULATION_CTRL, i, 0, 0, 0);
    CHECK(syscall(SYS_get_mempolicy, &own->policy, own->nodes, sizeof own->nodes * 8, 0, 0) == 0);
    CHECK(syscall(SYS_sched_getaffinity, 0, sizeof own->affinity, own->affinity) > 0);
    CHECK(readlink("/proc/thread-self/cwd", own->cwd, sizeof own->cwd - 1) > 0);
    char status[8192];
    slurp("/proc/thread-self/status", status, sizeof status);
    own->umask = strtol(strstr(status, "Umask:") + 6, NULL, 8);
}

static void same(const struct own *now, const struct own *before) {
#define ALIKE(field) SAME(now->field, before->field)
    ALIKE(schedule.policy);
    ALIKE(schedule.flags);
    ALIKE(schedule.nice);
    ALIKE(schedule.priority);
    ALIKE(schedule.deadline);
    ALIKE(schedule.period);
    ALIKE(tsc);
    ALIKE(slack);
    ALIKE(death);
    ALIKE(io_priority);
    ALIKE(machine_check);
    ALIKE(keep_capabilities);
    ALIKE(no_new_privileges);
    ALIKE(policy);
    ALIKE(umask);
    for (int i = 0; i < 3; i++) ALIKE(speculation[i]);
    for (int i = 0; i < 16; i++) ALIKE(nodes[i]);
    for (int i = 0; i < 16; i++) ALIKE(affinity[i]);
    if (strcmp(now->name, before->name) != 0) fail(__LINE__, "name %s, should be %s", now->name, before->name);
    if (strcmp(now->cwd, before->cwd) != 0) fail(__LINE__, "directory %s, should be %s", now->cwd, before->cwd);
}

static void schedule(int policy, int flags, int nice, int priority) {
    struct attributes wanted = {.size = sizeof wanted, .policy = policy, .flags = flags, .nice = nice, .priority = priority};
    CHECK(syscall(SYS_sched_setattr, 0, &wanted, 0) == 0);
}

static void *thread(void *unused) {
    unsigned long node = 1;
    schedule(root ? SCHED_RR : SCHED_IDLE, root ? 0 : 1, root ? 0 : 7, root ? 3 : 0);
    CHECK(unshare(CLONE_FS) == 0 && chdir("elsewhere") == 0);
    umask(0137);
    CHECK(prctl(PR_SET_TSC, PR_TSC_SIGSEGV) == 0);
    CHECK(prctl(PR_SET_TIMERSLACK, 123456) == 0);
    CHECK(prctl(PR_SET_NAME, "other") == 0);
    CHECK(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0);
    CHECK(prctl(PR_MCE_KILL, PR_MCE_KILL_SET, PR_MCE_KILL_EARLY, 0, 0) == 0);
    CHECK(syscall(SYS_ioprio_set, 1, 0, 3 << 13) == 0); /* idle */
    CHECK(syscall(SYS_set_mempolicy, MPOL_BIND, &node, 64) == 0);
    for (int i = 0; i < 2; i++) prctl(PR_SET_SPECULATION_CTRL, i, PR_SPEC_DISABLE, 0, 0); /* if the processor can */
    static struct own before, now;
    look(&before);
    SAME(before.umask, 0137);
    SAME(before.policy, MPOL_BIND);
    set = 1;
    while (!check) poll(NULL, 0, 20);
    look(&now);
    same(&now, &before);
    return unused;
}

static int number(const char *path, int base) {
    char text[64];
    slurp(path, text, sizeof text);
    return strtol(text, NULL, base);
}

int main(int argc, char **argv) {
    begin(argc, argv);
    root = geteuid() == 0;
    pthread_t other;
    CHECK(mkdir("elsewhere", 0700) == 0 || errno == EEXIST);
    CHECK(pthread_create(&other, NULL, thread, NULL) == 0);
    AWAIT(set);
    schedule(SCHED_BATCH, 0, 5, 0);
    umask(0026);
    cpu_set_t processors;
    CPU_ZERO(&processors);
    CPU_SET(0, &processors);
    CHECK(sched_setaffinity(0, sizeof processors, &processors) == 0);
    CHECK(prctl(PR_SET_TIMERSLACK, 654321) == 0);
    CHECK(prctl(PR_SET_PDEATHSIG, SIGUSR2) == 0);
    CHECK(prctl(PR_SET_KEEPCAPS, 1) == 0);
    CHECK(prctl(PR_SET_CHILD_SUBREAPER, 1) == 0);
    CHECK(prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0) == 0);
    CHECK(prctl(PR_SET_MDWE, PR_MDWE_REFUSE_EXEC_GAIN, 0, 0, 0) == 0);
    /* Linux 6.4, with KSM. */
    int merged = prctl(PR_SET_MEMORY_MERGE, 1, 0, 0, 0) == 0;
    CHECK(personality(ADDR_NO_RANDOMIZE) >= 0);
    CHECK(syscall(SYS_ioprio_set, 1, 0, 2 << 13 | 6) == 0);
    int setting = open("/proc/self/oom_score_adj", O_WRONLY);
    CHECK(setting >= 0 && write(setting, "321", 3) == 3 && close(setting) == 0);
    if (root) {
        setting = open("/proc/self/loginuid", O_WRONLY);
        CHECK(setting >= 0 && write(setting, "4321", 4) == 4 && close(setting) == 0);
    }
    setting = open("/proc/self/coredump_filter", O_WRONLY);
    CHECK(setting >= 0 && write(setting, "0x1f", 4) == 4 && close(setting) == 0);
    struct rlimit limit = {50, 77}, got;
    CHECK(setrlimit(RLIMIT_NOFILE, &limit) == 0);
    /* A directory that is nowhere to be found. */
    CHECK(mkdir("gone", 0700) == 0 && chdir("gone") == 0 && rmdir("../gone") == 0);
    if (root) {
        /* Root in an ordinary program is nothing special any more. */
        CHECK(prctl(PR_SET_SECUREBITS, SECBIT_NOROOT | SECBIT_KEEP_CAPS) == 0);
    }
    CHECK(prctl(PR_SET_DUMPABLE, root ? 0 : 1) == 0);
    static struct own before, now;
    look(&before);
    SAME(before.umask, 0026);
    SAME(before.slack, 654321);
    ready();
    look(&now);
    /* Of a deleted directory, only that it is one counts. */
    CHECK(strstr(now.cwd, " (deleted)") != NULL);
    CHECK(getcwd(now.cwd, sizeof now.cwd) == NULL && errno == ENOENT);
    CHECK(open("anything", O_CREAT | O_WRONLY, 0600) == -1 && errno == ENOENT);
    CHECK(access("../elsewhere", F_OK) == 0 && access("../gone", F_OK) == -1);
    strcpy(now.cwd, before.cwd);
    same(&now, &before);
    int reaper = 0;
    CHECK(prctl(PR_GET_CHILD_SUBREAPER, &reaper) == 0);
    SAME(reaper, 1);
    SAME(prctl(PR_GET_THP_DISABLE, 0, 0, 0, 0), 1);
    SAME(prctl(PR_GET_MDWE, 0, 0, 0, 0), PR_MDWE_REFUSE_EXEC_GAIN);
    CHECK(mmap(NULL, 4096, PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) == MAP_FAILED);
    if (merged) SAME(prctl(PR_GET_MEMORY_MERGE, 0, 0, 0, 0), 1);
    SAME(personality(0xffffffff), ADDR_NO_RANDOMIZE);
    SAME(prctl(PR_GET_DUMPABLE), root ? 0 : 1);
    SAME(prctl(PR_GET_SECUREBITS), root ? SECBIT_NOROOT | SECBIT_KEEP_CAPS : SECBIT_KEEP_CAPS);
    SAME(number("/proc/self/oom_score_adj", 10), 321);
    SAME(number("/proc/self/coredump_filter", 16), 0x1f);
    if (root) SAME(number("/proc/self/loginuid", 10), 4321);
    CHECK(getrlimit(RLIMIT_NOFILE, &got) == 0);
    SAME(got.rlim_cur, 50);
    SAME(got.rlim_max, 77);
    check = 1;
    CHECK(pthread_join(other, NULL) == 0);
    ok();
}
