/*
 * libgridcpr: what a program can have to do with its own checkpoints.
 *
 * Functions that return int give zero or more on success and, where they fail, a negative number: one of
 * GRIDCPR_E_*, whose absolute value is the exit code that the cpr command has for the same error. gridcpr_error() then
 * tells what went wrong. Link with -lgridcpr (pkg-config: gridcpr). See docs/library.md or gridcpr(3).
 */
#ifndef GRIDCPR_H
#define GRIDCPR_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Errors. */
#define GRIDCPR_E_USAGE (-64)
#define GRIDCPR_E_DAMAGED (-65)
#define GRIDCPR_E_NOT_FOUND (-66)
#define GRIDCPR_E_ALREADY_EXISTS (-67)
#define GRIDCPR_E_GONE (-68)
#define GRIDCPR_E_UNSUPPORTED (-69)
#define GRIDCPR_E_INTERNAL (-70)
#define GRIDCPR_E_IN_USE (-71)
#define GRIDCPR_E_NO_SPACE (-73)
#define GRIDCPR_E_IO (-74)
#define GRIDCPR_E_BUSY (-75)
#define GRIDCPR_E_TIMED_OUT (-76)
#define GRIDCPR_E_DENIED (-77)
#define GRIDCPR_E_INCOMPATIBLE (-78)
#define GRIDCPR_E_CANCELLED (-80)

/* Why the last function that failed in this thread did; never NULL. Valid until the next call in this thread. */
const char *gridcpr_error(void);

/* Version of the library, such as "0.1.0". */
const char *gridcpr_version(void);

/* Starts the library: one page of memory and one sleeping thread. Every other function does so too. A program that
 * calls none before its first checkpoint cannot be told of a restart. */
int gridcpr_init(void);

/* ---- Callbacks ------------------------------------------------------------------------------------------------ */

/* What happens. */
#define GRIDCPR_BEFORE 1   /* A checkpoint is about to be taken; the callback can refuse it. */
#define GRIDCPR_CONTINUE 2 /* The program goes on after a checkpoint, or after one that failed. */
#define GRIDCPR_RESTART 3  /* The program goes on from an image. */

/* What a callback is told. `size` tells which fields are there: more may come at the end. */
typedef struct gridcpr_notice {
    uint32_t size;
    int32_t event;
    int32_t failed;    /* With GRIDCPR_CONTINUE: there is no checkpoint after all. */
    uint32_t restarts; /* How often the program was restarted. */
    uint64_t checkpoint; /* Number of the checkpoint, the same before and after it; the numbers grow. */
} gridcpr_notice;

/* What a callback returns with GRIDCPR_BEFORE; otherwise it is not looked at. */
#define GRIDCPR_READY 0
#define GRIDCPR_LATER 1  /* Not now: the checkpoint fails as busy. */
#define GRIDCPR_REFUSE 2 /* It must not be taken. Other values mean the same. */

typedef int (*gridcpr_callback)(const gridcpr_notice *notice, void *data);

/* Where a callback runs. */
#define GRIDCPR_THREAD 0 /* In a thread of the library, with signals blocked. */
#define GRIDCPR_SIGNAL 1 /* In a signal handler of the calling thread: it can do what signal handlers can. */

/* Registers a callback and gives its number, 1 or more. Before a checkpoint callbacks run in the opposite order of their
 * registration, those with GRIDCPR_THREAD first; afterwards the other way round. */
int gridcpr_register(gridcpr_callback callback, void *data, int context);
/* Removes it; one that runs now runs to its end. */
int gridcpr_unregister(int number);
/* In a callback that refuses: why. Can be used in signal handlers. Cut to 255 bytes. */
void gridcpr_explain(const char *reason);

/* ---- Critical sections ---------------------------------------------------------------------------------------- */

/* Between the two no checkpoint is taken: one that is asked for waits, up to its time limit. They nest, and belong to
 * the calling thread. gridcpr_block() waits while a checkpoint is being taken. */
int gridcpr_block(void);
int gridcpr_unblock(void);

/* ---- Checkpoints of the program's own job --------------------------------------------------------------------- */

#define GRIDCPR_CONTINUED 0
#define GRIDCPR_RESTARTED 1

#define GRIDCPR_STOP 1 /* End the job with the checkpoint; it goes on when it is restarted. */

/* Checkpoints the job that the program runs in (cpr run), and returns GRIDCPR_CONTINUED in the program that asked, and
 * GRIDCPR_RESTARTED in one restarted from the image. The path of the image is written to `image` where it is not NULL,
 * cut to `size` bytes. */
int gridcpr_checkpoint(unsigned flags, char *image, size_t size);

typedef struct gridcpr_restart {
    uint32_t size;
    uint32_t times;   /* How often the program was restarted. */
    char image[40];   /* Identifier of the image. */
    char job[72];     /* Name of the job. */
} gridcpr_restart;

/* 1 in a program that was restarted, else 0. `restart` may be NULL. */
int gridcpr_restarted(gridcpr_restart *restart);

/* ---- Images --------------------------------------------------------------------------------------------------- */

typedef struct gridcpr_image gridcpr_image;

/* Opens an image; NULL on failure. To be used by one thread at a time. */
gridcpr_image *gridcpr_image_open(const char *path);
void gridcpr_image_close(gridcpr_image *image);
/* Compares every hash in it. */
int gridcpr_image_verify(const gridcpr_image *image);

typedef struct gridcpr_image_info {
    uint32_t size;
    uint32_t processes;
    uint64_t time_ns;  /* When the job was stopped: nanoseconds since the epoch. */
    uint64_t bytes;    /* Length of the image. */
    uint32_t initiator_uid; /* Who asked for the checkpoint. */
    uint32_t owner_uid;
    uint32_t owner_gid;
    int32_t root_pid;
    char id[40];
    char edited_from[40]; /* Identifier of the image it was made from by editing, or empty. */
    char job[72];
    char architecture[24];
    char sysname[65]; /* uname(2) */
    char nodename[65];
    char release[65];
    char version[129];
    char machine[65];
} gridcpr_image_info;

int gridcpr_image_info_get(const gridcpr_image *image, gridcpr_image_info *info);

typedef struct gridcpr_process {
    int32_t pid;
    int32_t ppid;
    int32_t pgid;
    int32_t sid;
    uint32_t threads;     /* 0 for a zombie */
    uint32_t descriptors;
    uint32_t regions;
    uint32_t uid;         /* real user ID, or UINT32_MAX for a zombie */
    char name[32];
    char cwd[4096];
} gridcpr_process;

typedef struct gridcpr_thread {
    int32_t tid;
    uint32_t reserved;
    uint64_t program_counter;
    uint64_t stack_pointer;
    uint64_t blocked_signals;
    char name[32];
} gridcpr_thread;

typedef struct gridcpr_region {
    uint64_t start;
    uint64_t end;
    uint32_t protection; /* PROT_READ 1, PROT_WRITE 2, PROT_EXEC 4 */
    uint32_t reserved;
    uint64_t saved;      /* Bytes of it in the image */
    char kind[24];
    char path[4096];
} gridcpr_region;

typedef struct gridcpr_file {
    int32_t fd;
    int32_t flags;       /* O_* */
    uint64_t position;
    char kind[24];
    char path[4096];
} gridcpr_file;

/* Each gives how many there are, and writes the first `count` of them. */
int gridcpr_image_processes(const gridcpr_image *image, gridcpr_process *processes, size_t count);
int gridcpr_image_threads(const gridcpr_image *image, int pid, gridcpr_thread *threads, size_t count);
int gridcpr_image_regions(const gridcpr_image *image, int pid, gridcpr_region *regions, size_t count);
int gridcpr_image_files(const gridcpr_image *image, int pid, gridcpr_file *files, size_t count);

/* A general register, by its name in lower case ("rip"). */
int gridcpr_image_register(const gridcpr_image *image, int pid, int tid, const char *name, uint64_t *value);
int gridcpr_image_read(const gridcpr_image *image, int pid, uint64_t address, void *buffer, size_t length);
/* Everything that the image says, as JSON: every object in it. Gives the length without the zero at the end, and writes
 * at most `size` bytes, zero included, like snprintf(3). */
int64_t gridcpr_image_json(const gridcpr_image *image, char *buffer, size_t size);

/* Changes, which the functions above show at once, and which no file has before gridcpr_image_save(). */
int gridcpr_image_write(gridcpr_image *image, int pid, uint64_t address, const void *bytes, size_t length);
int gridcpr_image_set_register(gridcpr_image *image, int pid, int tid, const char *name, uint64_t value);
/* Of the environment the program was started with, in place: the new value must not be longer than the old one. */
int gridcpr_image_set_environment(gridcpr_image *image, int pid, const char *name, const char *value);
/* Every path that is `from` or below it. Gives how many. */
int gridcpr_image_replace_path(gridcpr_image *image, const char *from, const char *to);
/* Any field, by a JSON pointer (RFC 6901) into what gridcpr_image_json() gives. */
int gridcpr_image_set(gridcpr_image *image, const char *pointer, const char *json);
/* Writes a new image with an identifier of its own. An existing file is not replaced. */
int gridcpr_image_save(const gridcpr_image *image, const char *path);

#ifdef __cplusplus
}
#endif
#endif
