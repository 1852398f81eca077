/* Two processes that count, each in a file of its name, and write down what their callbacks are called for; where there is a
 * file `fork` the first one makes a third. */
#include <fcntl.h>
#include <gridcpr.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

static const char *name = "one";

static void note(const char *word) {
    char line[64];
    int length = snprintf(line, sizeof line, "%s %s\n", word, name);
    int file = open("callbacks", O_WRONLY | O_CREAT | O_APPEND, 0600);
    if (file < 0 || write(file, line, length) != length) _exit(3);
    close(file);
}

static int on_event(const gridcpr_notice *notice, void *data) {
    (void)data;
    if (notice->event == GRIDCPR_BEFORE) {
        note("before");
        /* What a program says to whoever sits before it. */
        if (!strcmp(name, "one")) puts("temporarily unavailable");
        fflush(stdout);
    }
    if (notice->event == GRIDCPR_CONTINUE) note("continue");
    if (notice->event == GRIDCPR_RESTART) note("restart");
    return GRIDCPR_READY;
}

int main(void) {
    if (gridcpr_register(on_event, NULL, GRIDCPR_THREAD) < 0) return 1;
    if (fork() == 0) name = "two";
    for (long n = 1;; n++) {
        char number[16];
        int file = open(name, O_WRONLY | O_CREAT, 0600);
        int length = snprintf(number, sizeof number, "%8ld", n);
        if (file < 0 || pwrite(file, number, length, 0) != length) return 1;
        close(file);
        if (!strcmp(name, "one") && access("fork", F_OK) == 0) {
            unlink("fork");
            if (fork() == 0) name = "three";
        }
        usleep(5000);
    }
}
