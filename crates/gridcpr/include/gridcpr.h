/** @file
 * libgridcpr: what a program can have to do with its own checkpoints.
 *
 * Functions that return int give zero or more on success and, where they fail, a negative number: one of
 * GRIDCPR_E_*, whose absolute value is the exit code that the cpr command has for the same error. gridcpr_error() then
 * tells what went wrong. Link with -lgridcpr (pkg-config: gridcpr). See docs/library.md or gridcpr(3).
 *
 * Generated from the sources of the library, crates/gridcpr/src/ffi, by `make header`.
 */
#ifndef GRIDCPR_H
#define GRIDCPR_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* ---- Errors ------------------------------------------------------------------------------------------------------ */

/** The call makes no sense: an argument is NULL, unknown or out of bounds. */
#define GRIDCPR_E_USAGE (-64)

/** Bytes of an image or checkpoint are altered or missing. */
#define GRIDCPR_E_DAMAGED (-65)

/** What is named is not there. */
#define GRIDCPR_E_NOT_FOUND (-66)

/** It is there already, and is not replaced. */
#define GRIDCPR_E_ALREADY_EXISTS (-67)

/** It has ended meanwhile. */
#define GRIDCPR_E_GONE (-68)

/** That cannot be saved or restored. */
#define GRIDCPR_E_UNSUPPORTED (-69)

/** A fault of the library. */
#define GRIDCPR_E_INTERNAL (-70)

/** Something that is needed belongs to somebody else now, such as a PID. */
#define GRIDCPR_E_IN_USE (-71)

/** The disk or the memory is full. */
#define GRIDCPR_E_NO_SPACE (-73)

/** A disk or another device fails. */
#define GRIDCPR_E_IO (-74)

/** Not now: something else is under way. */
#define GRIDCPR_E_BUSY (-75)

/** It has taken too long. */
#define GRIDCPR_E_TIMED_OUT (-76)

/** The caller lacks the right. */
#define GRIDCPR_E_DENIED (-77)

/** It belongs to another machine, version, type or shape. */
#define GRIDCPR_E_INCOMPATIBLE (-78)

/** Whoever asked for it has given up. */
#define GRIDCPR_E_CANCELLED (-80)

/** Why the last function that failed in this thread did; never NULL. Valid until the next call in this thread. */
const char *gridcpr_error(void);

/** Its number, GRIDCPR_E_*; for functions that give NULL. 0 where none has failed yet. */
int gridcpr_error_code(void);

/** Version of the library, such as "0.1.0". */
const char *gridcpr_version(void);

/** Starts the library: one page of memory and one sleeping thread. Every other function does so too. A program that
 * calls none before its first checkpoint cannot be told of a restart. */
int gridcpr_init(void);

/* ---- Callbacks --------------------------------------------------------------------------------------------------- */

/** A checkpoint is about to be taken; the callback can refuse it. */
#define GRIDCPR_BEFORE 1

/** The program goes on after a checkpoint, or after one that failed. */
#define GRIDCPR_CONTINUE 2

/** The program goes on from an image. */
#define GRIDCPR_RESTART 3

/** Something has happened: `reason` says what (cpr notify). Nothing else changes. */
#define GRIDCPR_TOLD 4

/** What a callback returns with GRIDCPR_BEFORE: the checkpoint can be taken. */
#define GRIDCPR_READY 0

/** Not now: the checkpoint fails as busy. */
#define GRIDCPR_LATER 1

/** It must not be taken. Other values mean the same. */
#define GRIDCPR_REFUSE 2

/** The callback runs in a thread of the library, with signals blocked. */
#define GRIDCPR_THREAD 0

/** It runs in a signal handler of the calling thread: it can do what signal handlers can. */
#define GRIDCPR_SIGNAL 1

/** What a callback is told. `size` tells which fields are there: more may come at the end. */
typedef struct gridcpr_notice {
    /** sizeof(gridcpr_notice) of the library. */
    uint32_t size;
    /** What happens: GRIDCPR_BEFORE to GRIDCPR_TOLD. */
    int32_t event;
    /** With GRIDCPR_CONTINUE: there is no checkpoint after all. */
    int32_t failed;
    /** How often the program was restarted. */
    uint32_t restarts;
    /** Number of the checkpoint, the same before and after it; the numbers grow. */
    uint64_t checkpoint;
    /** With GRIDCPR_TOLD: what has happened (255 bytes at most); else empty. Gone after. */
    const char *reason;
} gridcpr_notice;

/** A callback. `data` is what it was registered with; what it returns is looked at with GRIDCPR_BEFORE only. */
typedef int (*gridcpr_callback)(const gridcpr_notice *notice, void *data);

/** Registers a callback and gives its number, 1 or more. Before a checkpoint callbacks run in the opposite order of
 * their registration, those with GRIDCPR_THREAD first; afterwards the other way round. */
int gridcpr_register(gridcpr_callback callback, void *data, int context);

/** Removes it; one that runs now runs to its end. */
int gridcpr_unregister(int number);

/** In a callback that refuses: why. Can be used in signal handlers. Cut to 255 bytes. */
void gridcpr_explain(const char *reason);

/* ---- Critical sections ------------------------------------------------------------------------------------------- */

/** Enters a critical section: until gridcpr_unblock() no checkpoint is taken; one that is asked for waits, up to its
 * time limit. They nest, and belong to the calling thread. gridcpr_block() waits while a checkpoint is being taken. */
int gridcpr_block(void);

/** Leaves the innermost section of this thread. */
int gridcpr_unblock(void);

/* ---- Checkpoints of the program's own job ------------------------------------------------------------------------ */

/** The program that asked goes on. */
#define GRIDCPR_CONTINUED 0

/** This is a program restarted from the image. */
#define GRIDCPR_RESTARTED 1

/** End the job with the checkpoint; it goes on when it is restarted. */
#define GRIDCPR_STOP 1

/** What is known of the newest restart. Names are cut to what fits, with a zero at their end. */
typedef struct gridcpr_restart {
    /** sizeof(gridcpr_restart) of the library. */
    uint32_t size;
    /** How often the program was restarted. */
    uint32_t times;
    /** Identifier of the image. */
    char image[40];
    /** Name of the job. */
    char job[72];
} gridcpr_restart;

/** Checkpoints the job that the program runs in (cpr run), and returns GRIDCPR_CONTINUED in the program that asked, and
 * GRIDCPR_RESTARTED in one restarted from the image. The path of the image is written to `image` where it is not NULL,
 * cut to `size` bytes. */
int gridcpr_checkpoint(uint32_t flags, char *image, size_t size);

/** Says how checkpoints of the job that the program runs in treat files, from the next one on and whoever asks for
 * them, as cpr run --file PATTERN=POLICY does: "check", "nocheck", "truncate", "nottruncate", "append",
 * "backup-restore", "backup-anonymous", or several with commas between them. A pattern that does not begin with a
 * slash is taken below the working directory. It stays with the job, and not with an image that is restarted as
 * another one. */
int gridcpr_file_policy(const char *pattern, const char *policy);

/** In a program that was restarted: the number of the checkpoint that it goes on from, as callbacks were told around it
 * (`checkpoint` of gridcpr_notice); else 0. The first checkpoint of a program is 1, and the numbers grow across
 * restarts. */
int64_t gridcpr_generation(void);

/** 1 in a program that was restarted, else 0. `restart` may be NULL. */
int gridcpr_restarted(gridcpr_restart *restart);

/* ---- Other jobs, processes and sessions -------------------------------------------------------------------------- */

/** Does what the command cpr does, with its rights and its errors: `arguments` are those of the command, ended by NULL,
 * and --json is added. {"checkpoint", "--session", "4711", "--stop", "-o", "s.cpr", NULL} saves a session and ends it.
 * Gives the length of the result without the zero at the end, and writes at most `size` bytes of it, zero included,
 * like snprintf(3): a JSON object as docs/commands.md has it. The command is cpr on PATH, or what GRIDCPR_CPR names;
 * no shell takes part. Waits as long as the command takes. */
int64_t gridcpr_command(const char *const *arguments, char *result, size_t size);

/* ---- Images ------------------------------------------------------------------------------------------------------ */

/** An opened image, with the changes made to it so far. */
typedef struct gridcpr_image gridcpr_image;

/** What an image says of itself. */
typedef struct gridcpr_image_info {
    /** sizeof(gridcpr_image_info) of the library. */
    uint32_t size;
    /** How many processes it has. */
    uint32_t processes;
    /** When the job was stopped: nanoseconds since the epoch. */
    uint64_t time_ns;
    /** Length of the image. */
    uint64_t bytes;
    /** Who asked for the checkpoint. */
    uint32_t initiator_uid;
    /** Whom the processes belonged to. */
    uint32_t owner_uid;
    /** Their group. */
    uint32_t owner_gid;
    /** The process above all others. */
    int32_t root_pid;
    /** Identifier of the image. */
    char id[40];
    /** Identifier of the image it was made from by editing, or empty. */
    char edited_from[40];
    /** Name of the job, or empty. */
    char job[72];
    /** Of the processor: x86_64. */
    char architecture[24];
    /** From uname(2), as the four that follow: name of the system. */
    char sysname[65];
    /** Name of the host. */
    char nodename[65];
    /** Release of the kernel. */
    char release[65];
    /** Version of the kernel. */
    char version[129];
    /** Kind of the machine. */
    char machine[65];
} gridcpr_image_info;

/** A process in an image. */
typedef struct gridcpr_process {
    /** Process ID. */
    int32_t pid;
    /** Its parent. */
    int32_t ppid;
    /** Its process group. */
    int32_t pgid;
    /** Its session. */
    int32_t sid;
    /** How many threads it has; 0 for a zombie. */
    uint32_t threads;
    /** How many open descriptors. */
    uint32_t descriptors;
    /** How many mappings. */
    uint32_t regions;
    /** Real user ID, or UINT32_MAX for a zombie. */
    uint32_t uid;
    /** Its name. */
    char name[32];
    /** Its working directory. */
    char cwd[4096];
} gridcpr_process;

/** A thread in an image. */
typedef struct gridcpr_thread {
    /** Thread ID. */
    int32_t tid;
    /** Nothing. */
    uint32_t reserved;
    /** Where it was. */
    uint64_t program_counter;
    /** Where its stack was. */
    uint64_t stack_pointer;
    /** Signal mask; bit 0 is signal 1. */
    uint64_t blocked_signals;
    /** Its name. */
    char name[32];
} gridcpr_thread;

/** A mapping of a process in an image. */
typedef struct gridcpr_region {
    /** First address. */
    uint64_t start;
    /** The address after the last one. */
    uint64_t end;
    /** PROT_READ 1, PROT_WRITE 2, PROT_EXEC 4. */
    uint32_t protection;
    /** Nothing. */
    uint32_t reserved;
    /** Bytes of it in the image. */
    uint64_t saved;
    /** What it is, such as anonymous, file or stack. */
    char kind[24];
    /** The file that is mapped, or empty. */
    char path[4096];
} gridcpr_region;

/** A descriptor of a process in an image. */
typedef struct gridcpr_file {
    /** Its number. */
    int32_t fd;
    /** How it was opened: O_*. */
    int32_t flags;
    /** Where the next read or write would be. */
    uint64_t position;
    /** What it is, such as regular, pipe or socket. */
    char kind[24];
    /** Its path, or empty. */
    char path[4096];
} gridcpr_file;

/** Opens an image; NULL on failure. To be used by one thread at a time. */
gridcpr_image *gridcpr_image_open(const char *path);

/** Closes an image, and forgets its changes; NULL does nothing. */
void gridcpr_image_close(gridcpr_image *image);

/** Compares every hash in it. */
int gridcpr_image_verify(const gridcpr_image *image);

/** Fills in what an image says of itself. */
int gridcpr_image_info_get(const gridcpr_image *image, gridcpr_image_info *info);

/** Writes the first `count` processes to `processes`, and gives how many there are. */
int gridcpr_image_processes(const gridcpr_image *image, gridcpr_process *processes, size_t count);

/** The same for the threads of a process. */
int gridcpr_image_threads(const gridcpr_image *image, int pid, gridcpr_thread *threads, size_t count);

/** The same for its mappings. */
int gridcpr_image_regions(const gridcpr_image *image, int pid, gridcpr_region *regions, size_t count);

/** The same for its descriptors. */
int gridcpr_image_files(const gridcpr_image *image, int pid, gridcpr_file *files, size_t count);

/** A general register, by its name in lower case ("rip"). */
int gridcpr_image_register(const gridcpr_image *image, int pid, int tid, const char *name, uint64_t *value);

/** Memory of a process. */
int gridcpr_image_read(const gridcpr_image *image, int pid, uint64_t address, void *buffer, size_t length);

/** Everything that the image says, as JSON: every object in it. Gives the length without the zero at the end, and
 * writes at most `size` bytes, zero included, like snprintf(3). */
int64_t gridcpr_image_json(const gridcpr_image *image, char *buffer, size_t size);

/** Writes memory of a process. This and the functions that follow change the opened image, which shows it at once; no
 * file has it before gridcpr_image_save(). */
int gridcpr_image_write(gridcpr_image *image, int pid, uint64_t address, const void *bytes, size_t length);

/** Sets a general register. */
int gridcpr_image_set_register(gridcpr_image *image, int pid, int tid, const char *name, uint64_t value);

/** Of the environment the program was started with, in place: the new value must not be longer than the old one. */
int gridcpr_image_set_environment(gridcpr_image *image, int pid, const char *name, const char *value);

/** Every path that is `from` or below it. Gives how many. */
int gridcpr_image_replace_path(gridcpr_image *image, const char *from, const char *to);

/** Any field, by a JSON pointer (RFC 6901) into what gridcpr_image_json() gives. */
int gridcpr_image_set(gridcpr_image *image, const char *pointer, const char *json);

/** Writes a new image with an identifier of its own. An existing file is not replaced. */
int gridcpr_image_save(const gridcpr_image *image, const char *path);

/* ---- Checkpoints that a program writes itself -------------------------------------------------------------------- */

/** Integer of 8 bits, the first of the types of elements. */
#define GRIDCPR_INT8 0

/** Integer of 16 bits. */
#define GRIDCPR_INT16 1

/** Integer of 32 bits. */
#define GRIDCPR_INT32 2

/** Integer of 64 bits. */
#define GRIDCPR_INT64 3

/** Unsigned integer of 8 bits. */
#define GRIDCPR_UINT8 4

/** Unsigned integer of 16 bits. */
#define GRIDCPR_UINT16 5

/** Unsigned integer of 32 bits. */
#define GRIDCPR_UINT32 6

/** Unsigned integer of 64 bits. */
#define GRIDCPR_UINT64 7

/** IEEE 754 number of 32 bits. */
#define GRIDCPR_FLOAT32 8

/** IEEE 754 number of 64 bits. */
#define GRIDCPR_FLOAT64 9

/** Two FLOAT32. */
#define GRIDCPR_COMPLEX64 10

/** Two FLOAT64. */
#define GRIDCPR_COMPLEX128 11

/** Never converted. */
#define GRIDCPR_BYTES 12

/** Order of elements: the last index runs fastest. */
#define GRIDCPR_C_ORDER 0

/** The first index runs fastest. */
#define GRIDCPR_FORTRAN_ORDER 1

/** A checkpoint of this kind has a name, and a directory of that name below a base directory with its generations. A
 * generation holds the variables that were protected, has one part for each rank of the program, and counts when all
 * parts are on disk. It can be read on a machine with another byte order. See docs/app-format.md for the files. */
typedef struct gridcpr_app gridcpr_app;

/** How a checkpoint is opened. All zero but `size` leaves things as the environment says. */
typedef struct gridcpr_app_options {
    /** sizeof(gridcpr_app_options). */
    uint32_t size;
    /** Which part is ours, from 0 ... */
    uint32_t rank;
    /** ... of how many; 0 means 1. */
    uint32_t ranks;
    /** How many complete generations are kept; 0: as the environment says, or all. */
    uint32_t keep;
    /** Seconds for which one is kept; 0: as the environment says, or for ever. */
    uint64_t lifetime;
    /** F: full; I: what changed since F; i: since the last one. In turn; may be NULL. */
    const char *sequence;
    /** The same for all ranks of one run, another in the next; NULL: as the launcher says. */
    const char *session;
} gridcpr_app_options;

/** A generation, as queries give it. */
typedef struct gridcpr_app_generation {
    /** Its number, from 1. */
    uint64_t generation;
    /** When writing began: nanoseconds since the epoch. */
    uint64_t time_ns;
    /** Of all its files. */
    uint64_t bytes;
    /** Seconds, where that was set for this one; else 0. */
    uint64_t lifetime;
    /** 0: parts are missing; 1: complete; 2: damaged. */
    int32_t state;
    /** Parts that are there ... */
    uint32_t parts;
    /** ... and how many there have to be. */
    uint32_t ranks;
    /** How many other generations it needs. */
    uint32_t needs;
} gridcpr_app_generation;

/** Opens a checkpoint, and makes its directory if need be; NULL on failure. `options` may be NULL. A `base` that is
 * NULL or empty is GRIDCPR_APP_BASE or SAGA_CPR_BASE_LOCATION of the environment, or the working directory;
 * GRIDCPR_APP_SEQUENCE, GRIDCPR_APP_LIFETIME, GRIDCPR_APP_KEEP, SAGA_CPR_SEQUENCE and SAGA_CPR_TIME_TO_LIVE are
 * honoured, too. To be used by one thread at a time. One process at a time can have a rank open. */
gridcpr_app *gridcpr_app_open(const char *base, const char *name, const gridcpr_app_options *options);

/** Waits for a background write, and tells whether it failed. */
int gridcpr_app_close(gridcpr_app *app);

/** Names a variable; one protected before under that name is forgotten. It has to stay where it is until it is
 * unprotected or the checkpoint is closed. `shape` has the number of elements along each dimension, none for a single
 * element. */
int gridcpr_app_protect(gridcpr_app *app,
                        const char *name,
                        void *data,
                        int element,
                        uint32_t dimensions,
                        const uint64_t *shape,
                        int order);

/** The same for elements that do not lie one after the other: `strides` are bytes from one index to the next. */
int gridcpr_app_protect_strided(gridcpr_app *app,
                                const char *name,
                                void *data,
                                int element,
                                uint32_t dimensions,
                                const uint64_t *shape,
                                const uint64_t *strides,
                                int order);

/** Forgets a variable. */
int gridcpr_app_unprotect(gridcpr_app *app, const char *name);

/** What generations written from now on remember. */
int gridcpr_app_set_attribute(gridcpr_app *app, const char *key, const char *value);

/** Writes all protected variables as our part of the next generation, and gives its number, 1 or more. It is on disk
 * when this returns. What is no longer to be kept is removed. */
int64_t gridcpr_app_write(gridcpr_app *app);

/** Gets the memory that copies of the protected variables go to, which the first gridcpr_app_write_begin() does
 * otherwise: that takes longer than the copy itself. It is kept until the checkpoint is closed. */
int gridcpr_app_prepare(gridcpr_app *app);

/** Copies the protected variables, and writes the copy while the program goes on. Every other function waits for its
 * end first, and fails if it failed. */
int gridcpr_app_write_begin(gridcpr_app *app);

/** 1 while one is being written, else 0; bytes done and in all. */
int gridcpr_app_progress(gridcpr_app *app, uint64_t *done, uint64_t *total);

/** Waits for its end, and gives its number, or 0 where none was begun. */
int64_t gridcpr_app_wait(gridcpr_app *app);

/** Fills all protected variables from a generation or, where it is 0, from the newest sound one; gives its number, or 0
 * where there is none yet. Generations in which a byte is altered or missing are passed over; where none is left that
 * is GRIDCPR_E_DAMAGED, and the variables may hold anything. GRIDCPR_E_INCOMPATIBLE: a variable is missing there, or
 * has another type or shape. */
int64_t gridcpr_app_restore(gridcpr_app *app, uint64_t generation);

/** Files that the program writes itself can belong to a generation, beside variables or instead of them. `name` has no
 * slashes and does not begin with a dot. This tells where to write such a file for the next generation; it writes the
 * path, gives its length, and fails where it does not fit into `size` bytes. The file belongs to the generation when
 * gridcpr_app_write() or gridcpr_app_wait() returns; it must be there, whole, when gridcpr_app_write() or
 * gridcpr_app_write_begin() is called. */
int gridcpr_app_route(gridcpr_app *app, const char *name, char *path, size_t size);

/** Where such a file of a generation is, for reading, after its hash was compared. Of our rank. The path is written as
 * by gridcpr_app_route(). */
int gridcpr_app_file(gridcpr_app *app, uint64_t generation, const char *name, char *path, size_t size);

/** Reads `length` bytes of a variable from `offset` on, of any rank, wherever it is protected; in this machine's byte
 * order. The hashes of all pieces that they are in are compared. */
int gridcpr_app_read(gridcpr_app *app,
                     uint64_t generation,
                     uint32_t rank,
                     const char *name,
                     uint64_t offset,
                     void *buffer,
                     size_t length);

/** Writes the first `count` generations to `out`, the oldest first; gives how many there are. */
int gridcpr_app_query(gridcpr_app *app, gridcpr_app_generation *out, size_t count);

/** As gridcpr_app_query(), but only generations that remember `value` under `key`. */
int gridcpr_app_find(gridcpr_app *app,
                     const char *key,
                     const char *value,
                     gridcpr_app_generation *out,
                     size_t count);

/** Removes all generations, in whatever state, and what is known of them. */
int gridcpr_app_forget(gridcpr_app *app);

/** What a generation remembers under `key`: its length, and the text itself, cut to `size` bytes. */
int gridcpr_app_get_attribute(gridcpr_app *app, uint64_t generation, const char *key, char *value, size_t size);

/** Changes an attribute (where `key` is not NULL) and the lifetime in seconds (where it is not 0). */
int gridcpr_app_update(gridcpr_app *app,
                       uint64_t generation,
                       const char *key,
                       const char *value,
                       uint64_t lifetime);

/** Removes a generation. GRIDCPR_E_IN_USE: another one needs it. */
int gridcpr_app_free(gridcpr_app *app, uint64_t generation);

/** Compares every hash of a generation. GRIDCPR_E_DAMAGED: gridcpr_error() tells what is wrong. */
int gridcpr_app_validate(gridcpr_app *app, uint64_t generation);

/** Copies a complete generation below another base directory; it needs no other one there. */
int gridcpr_app_transfer(gridcpr_app *app, uint64_t generation, const char *base);

#ifdef __cplusplus
}
#endif
#endif
