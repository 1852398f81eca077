/* Pseudo-terminals, also where one side has been closed, and controlling terminals that nobody has open. */
#include "victim.h"
#include <sys/ioctl.h>
#include <termios.h>

static int new_master(char *slave, size_t size) {
    int master = posix_openpt(O_RDWR | O_NOCTTY);
    CHECK(master >= 0 && grantpt(master) == 0 && unlockpt(master) == 0 && ptsname_r(master, slave, size) == 0);
    return master;
}

int main(int argc, char **argv) {
    begin(argc, argv);
    disturbed = 1;
    char name[64];
    int *said = shared(sizeof *said);

    /* The slave's last descriptor was closed. */
    int lonely = new_master(name, sizeof name);
    CHECK(close(open(name, O_RDWR | O_NOCTTY)) == 0);

    /* The master was closed. */
    int master = new_master(name, sizeof name);
    int orphan = open(name, O_RDWR | O_NOCTTY);
    CHECK(orphan >= 0 && close(master) == 0);

    /* What exec(2) closes, and what it does not: opened by name and by its master, and a copy. */
    int both = new_master(name, sizeof name);
    int named = open(name, O_RDWR | O_NOCTTY);
    int closing = ioctl(both, TIOCGPTPEER, O_RDWR | O_NOCTTY | O_CLOEXEC), copy = dup(closing);
    CHECK(named >= 0 && closing >= 0 && copy >= 0);
    int flags = fcntl(named, F_GETFL);

    /* A session's terminal, which only the master's holder has open. */
    int control = new_master(name, sizeof name);
    pid_t child = fork();
    if (child == 0) {
        CHECK(close(lonely) == 0 && close(orphan) == 0 && close(control) == 0);
        CHECK(setsid() > 0);
        int slave = open(name, O_RDWR);
        CHECK(slave >= 0 && (ioctl(slave, TIOCSCTTY, 0) == 0 || errno == EPERM) && close(slave) == 0);
        *said = 1;
        wait_for_go();
        int tty = open("/dev/tty", O_RDWR);
        CHECK(tty >= 0);
        CHECK(write(tty, "hello", 5) == 5);
        *said = 2;
        for (;;) pause();
    }
    AWAIT(*said >= 1);
    ready();
    SAME(fcntl(named, F_GETFD), 0);
    SAME(fcntl(named, F_GETFL), flags);
    SAME(fcntl(closing, F_GETFD), FD_CLOEXEC);
    SAME(fcntl(copy, F_GETFD), 0);
    char byte;
    CHECK(read(lonely, &byte, 1) == -1 && errno == EIO);
    SAME(read(orphan, &byte, 1), 0);
    CHECK(write(orphan, "x", 1) == -1 && errno == EIO);
    pid_t session = 0;
    CHECK(ioctl(control, TIOCGSID, &session) == 0);
    SAME(session, child);
    AWAIT(*said == 2);
    CHECK(read(control, &byte, 1) == 1 && byte == 'h');
    /* Closing the master hangs the session up. */
    CHECK(close(control) == 0);
    int status;
    CHECK(waitpid(child, &status, 0) == child && WIFSIGNALED(status));
    SAME(WTERMSIG(status), SIGHUP);
    ok();
}
