/* Three levels of processes, two process groups and a second session. */
#include "victim.h"

enum { ROOT, CHILD, GRANDCHILD, SIBLING, LEADER, MEMBER, COUNT };
struct ids { pid_t pid, parent, group, session; };
static struct { struct ids before[COUNT]; atomic_int ready, hit[COUNT], done[COUNT]; } *all;
static int me;

static void hit(int signal) { (void)signal; all->hit[me]++; }

static struct ids mine(void) {
    return (struct ids){getpid(), getppid(), getpgid(0), getsid(0)};
}

static void check(void) {
    struct ids ids = mine(), *before = &all->before[me];
    SAME(syscall(SYS_getpid), before->pid);
    SAME(ids.pid, before->pid);
    SAME(ids.parent, before->parent);
    SAME(ids.group, before->group);
    SAME(ids.session, before->session);
}

static void work(void) {
    all->before[me] = mine();
    all->ready++;
    wait_for_go();
    check();
    all->done[me] = 1;
    AWAIT(all->done[ROOT] == 2);
    while (wait(NULL) > 0);
    _exit(0);
}

static pid_t start(int who) {
    pid_t pid = fork();
    CHECK(pid >= 0);
    if (pid == 0) me = who;
    return pid;
}

int main(int argc, char **argv) {
    begin(argc, argv);
    all = shared(sizeof *all);
    signal(SIGUSR1, hit);
    disturbed = 1;
    if (start(CHILD) == 0) {
        CHECK(setpgid(0, 0) == 0);
        if (start(GRANDCHILD) == 0) work();
        work();
    }
    if (start(SIBLING) == 0) work();
    if (start(LEADER) == 0) {
        CHECK(setsid() > 0);
        if (start(MEMBER) == 0) work();
        work();
    }
    all->before[ROOT] = mine();
    AWAIT(all->ready == COUNT - 1);
    SAME(all->before[GRANDCHILD].group, all->before[CHILD].pid);
    SAME(all->before[MEMBER].session, all->before[LEADER].pid);
    ready();
    check();
    for (int i = 1; i < COUNT; i++) AWAIT(all->done[i]);
    /* A signal to a group reaches its members and nobody else. */
    CHECK(kill(-all->before[CHILD].pid, SIGUSR1) == 0);
    AWAIT(all->hit[CHILD] == 1 && all->hit[GRANDCHILD] == 1);
    nap(50);
    for (int i = 0; i < COUNT; i++) SAME(all->hit[i], i == CHILD || i == GRANDCHILD);
    all->done[ROOT] = 2;
    int status, children = 0;
    for (; wait(&status) > 0; children++) SAME(status, 0);
    SAME(children, 3);
    ok();
}
