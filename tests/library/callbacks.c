/* Registers callbacks as its arguments say and counts, once in 10 ms, in a file; callbacks write a line each into
 * another. Usage: callbacks DIRECTORY MODE.
 *
 * Modes: thread, signal, both, refuse, later, hang, hang-last, section, nested, fork, exec, many, memory, network.
 * Files in DIRECTORY: `ready` appears when all is set up, `log` is what callbacks write, `state` what the program
 * says, `go` makes it leave what it is in, and `end` ends it. */
#define _GNU_SOURCE
#include <errno.h>
#include <arpa/inet.h>
#include <fcntl.h>
#include <gridcpr.h>
#include <netinet/in.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static char log_path[256], ready_path[256], go_path[256], end_path[256];
static const char *mode;
static volatile int released;
static char *buffer;
static const size_t BIG = 32 << 20;
static char marker[64] = "marker: nothing yet";

static void die(const char *what) {
    fprintf(stderr, "%s: %s (%s)\n", what, strerror(errno), gridcpr_error());
    exit(1);
}

static void nap(long ms) {
    struct timespec t = {ms / 1000, ms % 1000 * 1000000};
    while (nanosleep(&t, &t) != 0 && errno == EINTR) {
    }
}

static int exists(const char *path) {
    struct stat st;
    return stat(path, &st) == 0;
}

/* One line, with system calls only: signal handlers do so, too. */
static void say(const char *what, const char *name, int failed) {
    char line[128];
    size_t n = 0;
    for (const char *p = name; *p; p++)
        line[n++] = *p;
    line[n++] = ' ';
    for (const char *p = what; *p; p++)
        line[n++] = *p;
    if (failed)
        for (const char *p = " failed"; *p; p++)
            line[n++] = *p;
    line[n++] = '\n';
    int fd = open(log_path, O_WRONLY | O_CREAT | O_APPEND, 0644);
    if (fd < 0 || write(fd, line, n) != (ssize_t)n)
        _exit(9);
    close(fd);
}

static pthread_t owner;
static int channel = -1;

/* Connects to the port in $PORT and says one byte. */
static void open_channel(void) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(getenv("PORT")))};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    channel = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (channel < 0 || connect(channel, (struct sockaddr *)&address, sizeof address) != 0 || write(channel, "x", 1) != 1)
        die("connect");
}

static int callback(const gridcpr_notice *notice, void *data) {
    const char *name = data;
    const char *what = notice->event == GRIDCPR_BEFORE     ? "before"
                       : notice->event == GRIDCPR_CONTINUE ? "continue"
                       : notice->event == GRIDCPR_RESTART  ? "restart"
                                                           : "?";
    if (notice->size < sizeof *notice)
        _exit(8);
    say(what, name, notice->failed);
    if (name[0] == 's' && !pthread_equal(owner, pthread_self()))
        say("WRONG THREAD", name, 0);
    if (notice->event != GRIDCPR_BEFORE) {
        if (strcmp(name, "network") == 0)
            open_channel();
        return GRIDCPR_REFUSE; /* Not listened to. */
    }
    strcpy(marker, "marker: written before the checkpoint");
    if (strcmp(name, "refuses") == 0) {
        gridcpr_explain("the solver holds a licence");
        return GRIDCPR_REFUSE;
    }
    if (strcmp(name, "later") == 0) {
        gridcpr_explain("a transfer is under way");
        return GRIDCPR_LATER;
    }
    if (strcmp(name, "hangs") == 0)
        while (!exists(go_path))
            nap(10);
    if (strcmp(name, "network") == 0) {
        close(channel);
        channel = -1;
    }
    if (strcmp(name, "frees") == 0 && buffer) {
        munmap(buffer, BIG);
        buffer = NULL;
    }
    return GRIDCPR_READY;
}

static void add(const char *name, int context) {
    if (gridcpr_register(callback, (void *)name, context) <= 0)
        die("gridcpr_register");
}

static void *inside(void *unused) {
    (void)unused;
    if (gridcpr_block() != 0 || gridcpr_block() != 0)
        die("gridcpr_block");
    while (!released)
        nap(5);
    if (gridcpr_unblock() != 0)
        die("gridcpr_unblock");
    nap(300);
    say("leaves", "section", 0);
    if (gridcpr_unblock() != 0)
        die("gridcpr_unblock");
    return NULL;
}

/* Enters and leaves sections all the time; the two words are equal outside of them. */
static volatile long left, right;
static void *busy(void *unused) {
    (void)unused;
    while (!exists(end_path)) {
        for (int i = 0; i < 1000; i++) {
            if (gridcpr_block() != 0)
                die("gridcpr_block");
            left++;
            for (volatile int k = 0; k < 500; k++) {
            }
            right++;
            gridcpr_unblock();
        }
    }
    return NULL;
}

static void watch_halves(const char *when) {
    if (left != right)
        say(when, "TORN", 0);
}

static int halves(const gridcpr_notice *notice, void *data) {
    (void)data;
    /* At a restart nobody may enter a section before this has returned. */
    if (notice->event == GRIDCPR_RESTART) {
        long before = left;
        watch_halves("at restart");
        nap(50);
        if (left != before)
            say("entered", "TORN", 0);
        say("restart", "halves", 0);
    }
    return 0;
}

int main(int argc, char **argv) {
    if (argc != 3)
        return 2;
    /* What whoever runs the tests has left open is not this program's. */
    close_range(3, ~0U, 0);
    mode = argv[2];
    snprintf(log_path, sizeof log_path, "%s/log", argv[1]);
    snprintf(ready_path, sizeof ready_path, "%s/ready", argv[1]);
    snprintf(go_path, sizeof go_path, "%s/go", argv[1]);
    snprintf(end_path, sizeof end_path, "%s/end", argv[1]);
    owner = pthread_self();
    if (gridcpr_init() != 0)
        die("gridcpr_init");
    pthread_t thread;
    int threads = 0;
    if (strcmp(mode, "thread") == 0) {
        add("one", GRIDCPR_THREAD);
        add("two", GRIDCPR_THREAD);
        add("gone", GRIDCPR_THREAD);
        if (gridcpr_unregister(3) != 0 || gridcpr_unregister(3) != GRIDCPR_E_NOT_FOUND)
            die("gridcpr_unregister");
    } else if (strcmp(mode, "signal") == 0) {
        add("s-one", GRIDCPR_SIGNAL);
    } else if (strcmp(mode, "both") == 0) {
        add("s-one", GRIDCPR_SIGNAL);
        add("one", GRIDCPR_THREAD);
        add("s-two", GRIDCPR_SIGNAL);
        add("two", GRIDCPR_THREAD);
    } else if (strcmp(mode, "refuse") == 0) {
        add("one", GRIDCPR_THREAD);
        add("refuses", GRIDCPR_THREAD);
        add("two", GRIDCPR_THREAD);
    } else if (strcmp(mode, "later") == 0) {
        add("later", GRIDCPR_THREAD);
    } else if (strcmp(mode, "hang") == 0) {
        add("one", GRIDCPR_THREAD);
        add("hangs", GRIDCPR_THREAD);
        add("two", GRIDCPR_THREAD);
    } else if (strcmp(mode, "section") == 0) {
        add("one", GRIDCPR_THREAD);
        if (pthread_create(&thread, NULL, inside, NULL) != 0)
            die("pthread_create");
        threads = 1;
    } else if (strcmp(mode, "nested") == 0) {
        if (gridcpr_register(halves, NULL, GRIDCPR_THREAD) <= 0)
            die("gridcpr_register");
        if (pthread_create(&thread, NULL, busy, NULL) != 0)
            die("pthread_create");
        threads = 1;
    } else if (strcmp(mode, "fork") == 0 || strcmp(mode, "many") == 0) {
        add("one", GRIDCPR_THREAD);
        add("s-two", GRIDCPR_SIGNAL);
        int children = strcmp(mode, "many") == 0 ? 20 : 1;
        for (int i = 0; i < children; i++) {
            pid_t child = fork();
            if (child < 0)
                die("fork");
            if (child == 0) {
                owner = pthread_self();
                while (!exists(end_path))
                    nap(10);
                _exit(0);
            }
        }
    } else if (strcmp(mode, "exec") == 0) {
        add("one", GRIDCPR_THREAD);
        execl(argv[0], argv[0], argv[1], "thread", (char *)NULL);
        die("execl");
    } else if (strcmp(mode, "network") == 0) {
        open_channel();
        add("network", GRIDCPR_THREAD);
    } else if (strcmp(mode, "memory") == 0) {
        buffer = mmap(NULL, BIG, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        memset(buffer, 0x5a, BIG);
        add("frees", GRIDCPR_THREAD);
    }
    int fd = open(ready_path, O_WRONLY | O_CREAT, 0644);
    if (fd < 0)
        die("open");
    close(fd);
    for (long count = 0; !exists(end_path); count++) {
        if (exists(go_path))
            released = 1;
        nap(10);
    }
    released = 1;
    if (threads)
        pthread_join(thread, NULL);
    while (wait(NULL) > 0) {
    }
    watch_halves("at the end");
    gridcpr_restart restart;
    int restarted = gridcpr_restarted(&restart);
    printf("restarted %d, %u times, generation %lld, image %s, job %s\n%s\n", restarted, restart.times,
           (long long)gridcpr_generation(), restart.image, restart.job, marker);
    return 0;
}
