/* What an image is edited of: a file that is written through its path, a variable, a word of memory, the umask.
 * Usage: edited FILE. Ends when a file named FILE.end appears. */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

static char word[24] __attribute__((aligned(8)));

int main(int argc, char **argv) {
    char end[4096];
    if (argc != 2)
        return 2;
    snprintf(end, sizeof end, "%s.end", argv[1]);
    memcpy(word, "word: before the edit;;", 24);
    int fd = open(argv[1], O_RDWR | O_CREAT, 0644);
    if (fd < 0 || write(fd, "first\n", 6) != 6)
        return 1;
    printf("ready\n");
    fflush(stdout);
    while (access(end, F_OK) != 0) {
        struct timespec t = {0, 10000000};
        nanosleep(&t, NULL);
    }
    if (write(fd, "second\n", 7) != 7)
        return 1;
    printf("%s\n%s\n%o\n", getenv("COLOUR"), word, umask(0));
    return 0;
}
