/* Says how a file is treated by checkpoints of its job. Usage: policy [POLICY]. */
#include <fcntl.h>
#include <gridcpr.h>
#include <stdio.h>
#include <time.h>
#include <unistd.h>

int main(int argc, char **argv) {
    if (gridcpr_init() != 0)
        return 2;
    if (argc > 1) {
        int result = gridcpr_file_policy("log", argv[1]);
        if (result != 0) {
            printf("%d %s\n", result, gridcpr_error());
            return 3;
        }
    }
    int log = open("log", O_RDWR | O_CREAT | O_TRUNC, 0644);
    if (log < 0 || write(log, "one\n", 4) != 4)
        return 4;
    printf("ready\n");
    fflush(stdout);
    while (access("go", F_OK) != 0)
        nanosleep(&(struct timespec){0, 10000000}, NULL);
    return write(log, "two\n", 4) == 4 ? 0 : 5;
}
