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

/* Its number, GRIDCPR_E_*; for functions that give NULL. 0 where none has failed yet. */
int gridcpr_error_code(void);

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

/* ---- Other jobs, processes and sessions ----------------------------------------------------------------------- */

/* Does what the command cpr does, with its rights and its errors: `arguments` are those of the command, ended by NULL, and
 * --json is added. {"checkpoint", "--session", "4711", "--stop", "-o", "s.cpr", NULL} saves a session and ends it. Gives the
 * length of the result without the zero at the end, and writes at most `size` bytes of it, zero included, like
 * snprintf(3): a JSON object as docs/commands.md has it. The command is cpr on PATH, or what GRIDCPR_CPR names; no shell
 * takes part. Waits as long as the command takes. */
int64_t gridcpr_command(const char *const *arguments, char *result, size_t size);

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

/* ---- Checkpoints that a program writes itself ------------------------------------------------------------------- */

/* A checkpoint of this kind has a name, and a directory of that name below a base directory with its generations. A
 * generation holds the variables that were protected, has one part for each rank of the program, and counts when all
 * parts are on disk. It can be read on a machine with another byte order. See docs/app-format.md for the files. */
typedef struct gridcpr_app gridcpr_app;

/* Types of elements. */
#define GRIDCPR_INT8 0
#define GRIDCPR_INT16 1
#define GRIDCPR_INT32 2
#define GRIDCPR_INT64 3
#define GRIDCPR_UINT8 4
#define GRIDCPR_UINT16 5
#define GRIDCPR_UINT32 6
#define GRIDCPR_UINT64 7
#define GRIDCPR_FLOAT32 8
#define GRIDCPR_FLOAT64 9
#define GRIDCPR_COMPLEX64 10  /* two FLOAT32 */
#define GRIDCPR_COMPLEX128 11 /* two FLOAT64 */
#define GRIDCPR_BYTES 12      /* never converted */

/* Order of the elements of an array with several dimensions. */
#define GRIDCPR_C_ORDER 0       /* the last index runs fastest */
#define GRIDCPR_FORTRAN_ORDER 1 /* the first index runs fastest */

typedef struct gridcpr_app_options {
    uint32_t size;        /* sizeof(gridcpr_app_options) */
    uint32_t rank;        /* Which part is ours, from 0 ... */
    uint32_t ranks;       /* ... of how many; 0 means 1. */
    uint32_t keep;        /* How many complete generations are kept; 0: as the environment says, or all. */
    uint64_t lifetime;    /* Seconds for which one is kept; 0: as the environment says, or for ever. */
    const char *sequence; /* F: full; I: what changed since the last F; i: since the last one. In turn; may be NULL. */
    const char *session;  /* The same for all ranks of one run, another in the next; NULL: as the launcher says. */
} gridcpr_app_options;

/* Opens a checkpoint, and makes its directory if need be; NULL on failure. `options` may be NULL. A `base` that is NULL or
 * empty is GRIDCPR_APP_BASE or SAGA_CPR_BASE_LOCATION of the environment, or the working directory; GRIDCPR_APP_SEQUENCE,
 * GRIDCPR_APP_LIFETIME, GRIDCPR_APP_KEEP, SAGA_CPR_SEQUENCE and SAGA_CPR_TIME_TO_LIVE are honoured, too. To be used by
 * one thread at a time. One process at a time can have a rank open. */
gridcpr_app *gridcpr_app_open(const char *base, const char *name, const gridcpr_app_options *options);
/* Waits for a background write, and tells whether it failed. */
int gridcpr_app_close(gridcpr_app *app);

/* Names a variable; one protected before under that name is forgotten. It has to stay where it is until it is
 * unprotected or the checkpoint is closed. `shape` has the number of elements along each dimension, none for a single
 * element. */
int gridcpr_app_protect(gridcpr_app *app, const char *name, void *data, int type, unsigned dimensions,
                        const uint64_t *shape, int order);
/* The same for elements that do not lie one after the other: `strides` are bytes from one index to the next. */
int gridcpr_app_protect_strided(gridcpr_app *app, const char *name, void *data, int type, unsigned dimensions,
                                const uint64_t *shape, const uint64_t *strides, int order);
int gridcpr_app_unprotect(gridcpr_app *app, const char *name);
/* What generations written from now on remember. */
int gridcpr_app_set_attribute(gridcpr_app *app, const char *key, const char *value);

/* Writes all protected variables as our part of the next generation, and gives its number, 1 or more. It is on disk when
 * this returns. What is no longer to be kept is removed. */
int64_t gridcpr_app_write(gridcpr_app *app);
/* Copies them, and writes the copy while the program goes on. Every other function waits for its end first, and fails if
 * it failed. */
int gridcpr_app_write_begin(gridcpr_app *app);
/* 1 while one is being written, else 0; bytes done and in all. */
int gridcpr_app_progress(gridcpr_app *app, uint64_t *done, uint64_t *total);
/* Waits for its end, and gives its number, or 0 where none was begun. */
int64_t gridcpr_app_wait(gridcpr_app *app);

/* Fills all protected variables from a generation or, where it is 0, from the newest sound one; gives its number, or 0
 * where there is none yet. Generations in which a byte is altered or missing are passed over; where none is left that is
 * GRIDCPR_E_DAMAGED, and the variables may hold anything. GRIDCPR_E_INCOMPATIBLE: a variable is missing there, or has
 * another type or shape. */
int64_t gridcpr_app_restore(gridcpr_app *app, uint64_t generation);

typedef struct gridcpr_app_generation {
    uint64_t generation;
    uint64_t time_ns;  /* When writing began: nanoseconds since the epoch. */
    uint64_t bytes;    /* Of all its files. */
    uint64_t lifetime; /* Seconds, where that was set for this one; else 0. */
    int32_t state;     /* 0: parts are missing; 1: complete; 2: damaged. */
    uint32_t parts;    /* Parts that are there ... */
    uint32_t ranks;    /* ... and how many there have to be. */
    uint32_t needs;    /* How many other generations it needs. */
} gridcpr_app_generation;

/* Writes the first `count` generations to `out`, the oldest first; gives how many there are. */
int gridcpr_app_query(gridcpr_app *app, gridcpr_app_generation *out, size_t count);
/* What a generation remembers under `key`: its length, and the text itself, cut to `size` bytes. */
int gridcpr_app_get_attribute(gridcpr_app *app, uint64_t generation, const char *key, char *value, size_t size);
/* Changes an attribute (where `key` is not NULL) and the lifetime in seconds (where it is not 0). */
int gridcpr_app_update(gridcpr_app *app, uint64_t generation, const char *key, const char *value, uint64_t lifetime);
/* Removes a generation. GRIDCPR_E_IN_USE: another one needs it. */
int gridcpr_app_free(gridcpr_app *app, uint64_t generation);
/* Compares every hash of a generation. GRIDCPR_E_DAMAGED: gridcpr_error() tells what is wrong. */
int gridcpr_app_validate(gridcpr_app *app, uint64_t generation);
/* Copies a complete generation below another base directory; it needs no other one there. */
int gridcpr_app_transfer(gridcpr_app *app, uint64_t generation, const char *base);

#ifdef __cplusplus
}
#endif
#endif
