/* Processes in namespaces for host names that the job has made: one alone, one with its parent, one that stayed. */
#include "victim.h"

struct names {
    char host[65], domain[65];
};

static struct names ask(void) {
    struct names names = {"", ""};
    CHECK(gethostname(names.host, sizeof names.host) == 0);
    CHECK(getdomainname(names.domain, sizeof names.domain) == 0);
    return names;
}

static void require(const char *host, const char *domain) {
    struct names now = ask();
    if (strcmp(now.host, host) != 0 || strcmp(now.domain, domain) != 0)
        fail(__LINE__, "%s.%s should be %s.%s", now.host, now.domain, host, domain);
}

static void become(const char *host, const char *domain) {
    CHECK(unshare(CLONE_NEWUTS) == 0);
    CHECK(sethostname(host, strlen(host)) == 0 && setdomainname(domain, strlen(domain)) == 0);
}

static void *idle(void *unused) {
    pause();
    return unused;
}

static int there;

/* A child that says that it is there, waits for a byte, and looks at its names. */
static pid_t child(int own, int in, struct names wanted, const char *later) {
    pid_t pid = fork();
    CHECK(pid >= 0);
    if (pid != 0) return pid;
    if (own) become(wanted.host, wanted.domain);
    pthread_t thread;
    CHECK(pthread_create(&thread, NULL, idle, NULL) == 0);
    char byte = 'x';
    CHECK(write(there, &byte, 1) == 1 && read(in, &byte, 1) == 1);
    require(later ? later : wanted.host, wanted.domain);
    _exit(0);
}

int main(int argc, char **argv) {
    begin(argc, argv);
    int go_on[2], arrived[2];
    CHECK(pipe(go_on) == 0 && pipe(arrived) == 0);
    there = arrived[1];
    struct names before = ask();
    pid_t stays = child(0, go_on[0], before, NULL);
    pid_t alone = child(1, go_on[0], (struct names){"cpr-alone", ""}, NULL);
    become("cpr-here", "example.org");
    pid_t with = child(0, go_on[0], ask(), "cpr-later");
    char bytes[3];
    for (int got = 0; got < 3;) {
        int more = read(arrived[0], bytes, sizeof bytes - got);
        CHECK(more > 0);
        got += more;
    }
    ready();
    require("cpr-here", "example.org");
    CHECK(sethostname("cpr-later", 9) == 0);
    CHECK(write(go_on[1], "xxx", 3) == 3);
    for (int i = 0; i < 3; i++) {
        int status;
        pid_t ended = wait(&status);
        CHECK(ended == stays || ended == alone || ended == with);
        SAME(status, 0);
    }
    ok();
}
