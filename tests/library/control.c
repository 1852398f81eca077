/* Saves a process and a session that are not its own, ends them, and lets the process go on.
 * Usage: control PID SID DATA. DATA is a file that the process has open; its contents may change. */
#include <gridcpr.h>
#include <stdio.h>
#include <string.h>

static char result[65536];

static void say(const char *what, const char *const *arguments) {
    int64_t length = gridcpr_command(arguments, result, sizeof result);
    if (length < 0)
        printf("%s failed %d %s\n", what, (int)length, gridcpr_error());
    else
        printf("%s %d %s\n", what, length == (int64_t)strlen(result), result);
    fflush(stdout);
}

int main(int argc, char **argv) {
    char policy[4096];
    if (argc != 4)
        return 2;
    snprintf(policy, sizeof policy, "%s=nocheck", argv[3]);
    const char *process[] = {"checkpoint", argv[1], "--stop", "--file", policy, "-o", "process.cpr", NULL};
    const char *session[] = {"checkpoint", "--session", argv[2], "--stop", "-o", "session.cpr", NULL};
    const char *again[] = {"restart", "-d", "--name", "again", "process.cpr", NULL};
    const char *list[] = {"ps", NULL}, *gone[] = {"checkpoint", argv[1], "-o", "gone.cpr", NULL}, *none[] = {NULL};
    say("process", process);
    say("session", session);
    say("gone", gone);
    say("none", none);
    say("again", again);
    say("list", list);
    return 0;
}
