/* sys.h: every fallible call to the operating system, in one place, so that a test can make the
 * N-th one fail. Nothing else in lib/ calls malloc, open, mmap, pthread_create ... directly. */
#ifndef DSI_LIB_BASE_SYS_H
#define DSI_LIB_BASE_SYS_H

#include "base.h"
#include <pthread.h>
#include <stdatomic.h>

/* ---- Memory (sys_memory.c): all of it counted by class, and taken from the caller's allocator if
 * he has set one ---- */

typedef enum dsi_memory_class {
    DSI_MEMORY_OTHER,
    DSI_MEMORY_WEIGHTS,
    DSI_MEMORY_KV,
    DSI_MEMORY_SCRATCH,
    DSI_MEMORY_SESSIONS,
    DSI_MEMORY_TEXT,
    DSI_N_MEMORY_CLASSES
} dsi_memory_class;

/* DSI_MEMORY_SCOPE(TEXT); until the end of the block around it, what this thread allocates counts
 * as TEXT. Scopes of called functions take precedence; a block that grows keeps its class. */
#define DSI_MEMORY_SCOPE(name)                                                                     \
    __attribute__((cleanup(dsi_memory_leave), unused))                                             \
    const dsi_memory_class dsi_memory_before_##name = dsi_memory_enter(DSI_MEMORY_##name)
dsi_memory_class dsi_memory_enter(dsi_memory_class owner);
void dsi_memory_leave(const dsi_memory_class *before);

/* Zeroed memory for count * size bytes (checked); NULL if that overflows or memory is short. */
void *dsi_sys_calloc(uint64_t count, uint64_t size);
/* As realloc, for count * size bytes; the old block stays valid on failure. */
void *dsi_sys_realloc(void *block, uint64_t count, uint64_t size);
/* 64-byte aligned, zeroed, from mmap when large (pages arrive zeroed and lazily). */
void *dsi_sys_alloc_aligned(uint64_t n_bytes);
/* The same in huge pages (2 MiB, aligned to them) where the system gives them: for memory that is
 * read at full speed and filled soon. Small blocks, and those of a caller's allocator, are as of
 * dsi_sys_alloc_aligned. */
void *dsi_sys_alloc_huge(uint64_t n_bytes);
void dsi_sys_free(void *block); /* a block of any of these; NULL is allowed */
char *dsi_sys_strdup(const char *text, size_t n_bytes);

/* What is in use now, with the few bytes of bookkeeping in front of each block; mapped files apart.
 */
typedef struct dsi_memory_counts {
    uint64_t n_bytes[DSI_N_MEMORY_CLASSES];
    uint64_t n_bytes_total, n_bytes_peak, n_bytes_mapped, n_blocks;
} dsi_memory_counts;
void dsi_memory_counts_now(dsi_memory_counts *counts);
/* NULL: libc. False, and nothing changed, while a block is alive. */
struct dsi_allocator;
bool dsi_memory_set_allocator(const struct dsi_allocator *allocator);

/* A file mapped read-only, or zeroed pages of memory if fd is -1; NULL with errno set. For the
 * other sys_*.c files. */
void *dsi_sys_mmap(int fd, uint64_t n_bytes);
void dsi_sys_munmap_file(const void *data, uint64_t n_bytes);
/* Bytes of a mapped file count as this process's memory no longer, with what shares a page with
 * them; reading brings them back. */
struct dsi_map;
void dsi_sys_drop_file_pages(const struct dsi_map *map, uint64_t offset, uint64_t n_bytes);

/* ---- Files (sys_file.c) ---- */

/* Whole small files (config.json, tokenizer.json): refuses more than max_bytes. *text is
 * zero-terminated behind n_bytes; free with dsi_sys_free. Errors of both readers: IO (not there,
 * a directory, a pipe, a read error), NOMEM, FORMAT (too large, or empty for dsi_sys_map). */
dsi_status dsi_sys_read_file(const char *path, uint64_t max_bytes, char **text, uint64_t *n_bytes,
                             dsi_error *error);
/* A small file of /proc or /sys, which do not tell their size, zero-terminated: the first
 * n_bytes - 1 of it. False, and "", if it is not there, not a regular file, empty or unreadable. */
bool dsi_sys_read_text(const char *path, char *text, size_t n_bytes);
/* What stands at `path`, symbolic links followed. NOTHING is an answer; that the system does not
 * tell (no permission, a disk error) is DSI_E_IO: a file must not be missed because of that. */
typedef enum dsi_sys_sort {
    DSI_SORT_NOTHING,
    DSI_SORT_FILE,
    DSI_SORT_FOLDER,
    DSI_SORT_OTHER /* pipe, socket, device */
} dsi_sys_sort;
dsi_status dsi_sys_look(const char *path, dsi_sys_sort *sort, dsi_error *error);
/* Regular file? Directory? Errors are "no". */
bool dsi_sys_is_file(const char *path);
bool dsi_sys_is_dir(const char *path);

/* A file mapped read-only, private. Empty files are refused. The file must not shrink while it is
 * mapped: the kernel then answers a read behind its end with SIGBUS. */
typedef struct dsi_map {
    const uint8_t *data;
    uint64_t n_bytes;
} dsi_map;
dsi_status dsi_sys_map(const char *path, dsi_map *map, dsi_error *error);
void dsi_sys_unmap(dsi_map *map);

/* A regular file that is read from its beginning on, piece by piece: unlike a mapping it may shrink
 * meanwhile. `path` must live until close. get returns exactly n_bytes, or IO, or FORMAT where the
 * file ends before. close is harmless on a closed reader. */
typedef struct dsi_sys_reader {
    int fd; /* -1: closed */
    const char *path;
    uint64_t n_bytes, at; /* the file's size when it was opened; bytes read so far */
} dsi_sys_reader;
dsi_status dsi_sys_reader_open(const char *path, dsi_sys_reader *reader, dsi_error *error);
dsi_status dsi_sys_reader_get(dsi_sys_reader *reader, void *to, uint64_t n_bytes, dsi_error *error);
void dsi_sys_reader_close(dsi_sys_reader *reader);

/* A file that appears whole or not at all: it is written beside `path` under a name of its own
 * (mode 0600) and takes its place in commit, so that even a power cut leaves the old file or the
 * new one. A symbolic link at `path` is replaced, not followed; a folder, pipe or device is
 * refused. One thread at a time. Errors: IO (with what to do when the disk, a quota or a limit is
 * used up), NOMEM. open that fails leaves nothing behind and needs no abort; after an error of add
 * or commit call abort, which removes what was written. */
typedef struct dsi_sys_writer {
    int fd;          /* -1: closed */
    char *path;      /* owned */
    char *temporary; /* owned; NULL once nothing is left to remove */
} dsi_sys_writer;
dsi_status dsi_sys_writer_open(const char *path, dsi_sys_writer *writer, dsi_error *error);
/* Appends; every call is at least one write to the system, so hand over large pieces. */
dsi_status dsi_sys_writer_add(dsi_sys_writer *writer, const void *data, uint64_t n_bytes,
                              dsi_error *error);
/* On DSI_OK the writer is closed. The one error that leaves the new file in place is that of the
 * folder's own fsync, the last step: its message says so. */
dsi_status dsi_sys_writer_commit(dsi_sys_writer *writer, dsi_error *error);
/* Harmless on a zeroed, closed or committed writer. */
void dsi_sys_writer_abort(dsi_sys_writer *writer);

/* A counter to poll for (eventfd: non-blocking, closed on exec); -1 with errno set if the system
 * has none left. signal makes it readable; drain makes it unreadable until the next signal. Both
 * cannot fail, may be called from any thread and from signal handlers, and leave errno alone. */
int dsi_sys_eventfd(void);
void dsi_sys_eventfd_signal(int fd);
void dsi_sys_eventfd_drain(int fd);
/* Waits until the counter is readable or dsi_sys_seconds() reaches `deadline` (INFINITY: without
 * end); may return before. */
void dsi_sys_eventfd_wait(int fd, double deadline);
void dsi_sys_close(int fd); /* negative: nothing; leaves errno alone */

/* ---- Libraries that may be there or not (sys_library.c) ---- */

/* The shared library `name`, looked for as the linker does; NULL if it is not there, with why
 * (`text` of n_bytes, may be NULL). It stays loaded until the process ends: what it left in other
 * threads may still be used. `was_loaded` (may be NULL): the program had it before. */
void *dsi_sys_library_open(const char *name, bool *was_loaded, char *text, size_t n_bytes);
/* A symbol of the library or of one that it brought along; NULL if there is none. */
void *dsi_sys_library_symbol(void *library, const char *name);

/* ---- Threads and the machine (sys_thread.c) ---- */

/* 0 or an errno code. The new thread receives no signals: those stay with the host's threads. */
int dsi_sys_thread_create(pthread_t *thread, void *(*run)(void *), void *context);
void dsi_sys_thread_join(pthread_t thread);
int dsi_sys_mutex_init(pthread_mutex_t *mutex); /* 0 or an errno code */
int dsi_sys_cond_init(pthread_cond_t *cond);    /* 0 or an errno code; on CLOCK_MONOTONIC */
/* Waits as pthread_cond_wait does, but no longer than until dsi_sys_seconds() reaches `deadline`
 * (INFINITY: without end): false once it has, true after a wake-up. Wake-ups may be spurious: look
 * at the condition again in either case. */
bool dsi_sys_cond_wait_until(pthread_cond_t *cond, pthread_mutex_t *mutex, double deadline);
uint64_t dsi_sys_memory_available(void); /* MemAvailable in bytes, 0 if unknown */
double dsi_sys_seconds(void);            /* CLOCK_MONOTONIC */
/* Asks Linux to let this process use the tiles of AMX, all its threads, those that exist and those
 * to come; a process keeps the permission. 0 or an errno code: ENOSPC where an alternate signal
 * stack is too small for their state, others where kernel or CPU do not have them. */
int dsi_sys_permit_amx(void);
int64_t dsi_sys_getpid(void); /* differs after fork(): the child is another process */

/* ---- CPUs, and sleeping on a word of memory (sys_cpu.c) ---- */

enum { DSI_MAX_CPUS = 8192 }; /* the kernel's largest build */
typedef struct dsi_cpu_mask {
    uint64_t words[DSI_MAX_CPUS / 64];
} dsi_cpu_mask;
static inline bool dsi_cpu_mask_has(const dsi_cpu_mask *mask, uint32_t cpu) {
    return cpu < DSI_MAX_CPUS && (mask->words[cpu / 64] >> cpu % 64 & 1) != 0;
}
static inline void dsi_cpu_mask_add(dsi_cpu_mask *mask, uint32_t cpu) {
    if (cpu < DSI_MAX_CPUS) mask->words[cpu / 64] |= UINT64_C(1) << cpu % 64;
}

/* The CPUs that this thread, and threads it starts, may use; false (and those that are online) if
 * the system does not say. At least one in any case. */
bool dsi_sys_affinity(dsi_cpu_mask *mask);
uint32_t dsi_sys_cpu_count(void); /* how many that are */
/* 0 or an errno code. */
int dsi_sys_set_affinity(pthread_t thread, const dsi_cpu_mask *mask);
/* The CPU this thread runs on now; -1 if unknown. No call of the system on common machines. */
int dsi_sys_current_cpu(void);

/* Sleeps while *word is `value`, until a wake; may return before: look at the word again. */
void dsi_sys_futex_wait(atomic_uint *word, unsigned value);
void dsi_sys_futex_wake(atomic_uint *word); /* all that sleep on it */

#endif
