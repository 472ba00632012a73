/* sys_file.c: files: read whole, mapped, written so that they appear whole; descriptors to poll.
 * Each fallible call appears exactly once in lib/base/sys_*.c, in a wrapper of its own. */
#include "fault.h"
#include "sys.h"

#include <fcntl.h>
#include <limits.h>
#include <math.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/stat.h>
#include <unistd.h>

/* ---- One wrapper per call. -1 or NULL means failure with errno set, as in libc. ---- */

static int sys_open(const char *path, int flags) {
    int fd;
    do {
        fd =
            dsi_sys_gate(DSI_CALL_OPEN, NULL) ? open(path, flags | O_CLOEXEC | O_NOCTTY, 0600) : -1;
    } while (fd < 0 && errno == EINTR);
    return fd;
}

/* O_NONBLOCK: opening a named pipe must not wait for a writer. No effect on regular files. */
static int open_to_read(const char *path) { return sys_open(path, O_RDONLY | O_NONBLOCK); }

/* Never retried: Linux has released the descriptor even if close reports EINTR. */
static int sys_close(int fd) { return close(fd); }

void dsi_sys_close(int fd) {
    int saved = errno;
    if (fd >= 0) sys_close(fd);
    errno = saved;
}

/* Where its result counts: the last chance of a file system to say that data is lost. */
static int close_written(int fd) {
    bool fails = !dsi_sys_gate(DSI_CALL_CLOSE, NULL);
    int code = errno;
    int closed = sys_close(fd);
    if (!fails) return closed;
    errno = code;
    return -1;
}

static int sys_stat(const char *path, struct stat *info) {
    return dsi_sys_gate(DSI_CALL_STAT, NULL) ? stat(path, info) : -1;
}

static int sys_fstat(int fd, struct stat *info) {
    return dsi_sys_gate(DSI_CALL_FSTAT, NULL) ? fstat(fd, info) : -1;
}

/* Reads until n_bytes are there or the file ends; bytes read or -1. */
static int64_t sys_pread(int fd, char *buffer, uint64_t n_bytes, uint64_t offset) {
    uint64_t done = 0;
    while (done < n_bytes) {
        uint64_t wanted = n_bytes - done;
        ssize_t n = dsi_sys_gate(DSI_CALL_PREAD, &wanted)
                        ? pread(fd, buffer + done, wanted, (off_t)(offset + done))
                        : -1;
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) return -1;
        if (n == 0) break;
        done += (uint64_t)n;
    }
    return (int64_t)done;
}

/* One write, which may be short. An eventfd takes its 8 bytes or says EAGAIN, so no fault is made
 * there: a signal that gets lost is none of this world. */
static ssize_t sys_write(int fd, const void *data, uint64_t n_bytes, bool is_file) {
    ssize_t n;
    do {
        n = !is_file || dsi_sys_gate(DSI_CALL_WRITE, &n_bytes) ? write(fd, data, n_bytes) : -1;
    } while (n < 0 && errno == EINTR);
    return n;
}

static int sys_fsync(int fd) {
    int code;
    do {
        code = dsi_sys_gate(DSI_CALL_FSYNC, NULL) ? fsync(fd) : -1;
    } while (code != 0 && errno == EINTR);
    return code;
}

static int sys_rename(const char *from, const char *to) {
    return dsi_sys_gate(DSI_CALL_RENAME, NULL) ? rename(from, to) : -1;
}

static void sys_unlink(const char *path) { unlink(path); }

/* ---- Reading ---- */

/* `path` is read or written. */
typedef enum purpose { TO_READ, TO_WRITE } purpose;

static const char *remedy(int code, purpose why) {
    switch (code) {
    case ENOENT:
    case ENOTDIR:
        return "check the path";
    case ENAMETOOLONG:
        return why == TO_READ ? "check the path" : "give the file a shorter name";
    case ELOOP:
        return "check the symbolic links of the path";
    case EACCES:
    case EPERM:
        return why == TO_READ ? "give this process permission to read it"
                              : "give this process permission to write in that folder";
    case EROFS:
        return "choose a folder on a disk that can be written";
    case ENOSPC:
        return "free some space on that disk or choose a folder on another one";
    case EDQUOT:
        return "the disk quota of this user is used up: delete files or have it raised";
    case EFBIG:
        return "raise the limit of file sizes (ulimit -f) or choose another file system";
    case EMFILE:
    case ENFILE:
        return "close files or raise the limit (ulimit -n)";
    case ENOMEM:
        return "free memory or raise the limits (ulimit -v, vm.max_map_count)";
    default:
        return why == TO_READ ? "check the disk or fetch the file again"
                              : "check the disk or choose a folder on another one";
    }
}

/* The message of a failed call on `path`: what was tried, what the system said, what to do. */
static dsi_status fail_os(dsi_error *error, const char *path, const char *tried, int code,
                          purpose why) {
    char buffer[128];
    const char *said = strerror_r(code, buffer, sizeof buffer);
    return dsi_fail(error, code == ENOMEM ? DSI_E_NOMEM : DSI_E_IO, "%s: cannot %s: %s; %s", path,
                    tried, said, remedy(code, why));
}

/* Opens a regular file (symbolic links are followed); *fd stays open on DSI_OK only. */
static dsi_status open_regular(const char *path, int *fd, uint64_t *n_bytes, dsi_error *error) {
    int opened = open_to_read(path);
    if (opened < 0) return fail_os(error, path, "open", errno, TO_READ);
    struct stat info;
    dsi_status status = DSI_OK;
    if (sys_fstat(opened, &info) != 0) {
        status = fail_os(error, path, "ask for the size", errno, TO_READ);
    } else if (S_ISDIR(info.st_mode)) {
        status = dsi_fail(error, DSI_E_IO, "%s: is a directory; give the path of a file", path);
    } else if (!S_ISREG(info.st_mode)) {
        status =
            dsi_fail(error, DSI_E_IO,
                     "%s: is a pipe, socket or device; copy its content to a regular file", path);
    }
    if (status != DSI_OK) {
        dsi_sys_close(opened);
        return status;
    }
    *fd = opened;
    *n_bytes = info.st_size > 0 ? (uint64_t)info.st_size : 0;
    return DSI_OK;
}

/* The part of dsi_sys_read_file between open and close. */
static dsi_status read_whole(int fd, const char *path, uint64_t size, uint64_t max_bytes,
                             char **text, dsi_error *error) {
    uint64_t with_zero;
    if (size > max_bytes || !dsi_add_ok(size, 1, &with_zero)) {
        return dsi_fail(error, DSI_E_FORMAT,
                        "%s: has %llu bytes, the limit is %llu; check that it is the right file",
                        path, (unsigned long long)size, (unsigned long long)max_bytes);
    }
    char *block = dsi_sys_realloc(NULL, with_zero, 1);
    if (block == NULL) {
        return dsi_fail(error, DSI_E_NOMEM, "%s: no memory for its %llu bytes; free some memory",
                        path, (unsigned long long)size);
    }
    int64_t got = sys_pread(fd, block, size, 0);
    if (got < 0 || (uint64_t)got != size) {
        dsi_status status =
            got < 0 ? fail_os(error, path, "read", errno, TO_READ)
                    : dsi_fail(error, DSI_E_IO,
                               "%s: ended after %lld of %llu bytes; it is being written, try again",
                               path, (long long)got, (unsigned long long)size);
        dsi_sys_free(block);
        return status;
    }
    block[size] = '\0';
    *text = block;
    return DSI_OK;
}

dsi_status dsi_sys_read_file(const char *path, uint64_t max_bytes, char **text, uint64_t *n_bytes,
                             dsi_error *error) {
    *text = NULL;
    *n_bytes = 0;
    int fd;
    uint64_t size;
    dsi_status status = open_regular(path, &fd, &size, error);
    if (status != DSI_OK) return status;
    status = read_whole(fd, path, size, max_bytes, text, error);
    dsi_sys_close(fd);
    if (status == DSI_OK) *n_bytes = size;
    return status;
}

dsi_status dsi_sys_look(const char *path, dsi_sys_sort *sort, dsi_error *error) {
    struct stat info;
    *sort = DSI_SORT_NOTHING;
    if (sys_stat(path, &info) == 0) {
        *sort = S_ISREG(info.st_mode)   ? DSI_SORT_FILE
                : S_ISDIR(info.st_mode) ? DSI_SORT_FOLDER
                                        : DSI_SORT_OTHER;
        return DSI_OK;
    }
    if (errno == ENOENT || errno == ENOTDIR || errno == ENAMETOOLONG) return DSI_OK;
    return fail_os(error, path, "look at", errno, TO_READ);
}

bool dsi_sys_is_file(const char *path) {
    dsi_sys_sort sort;
    return dsi_sys_look(path, &sort, NULL) == DSI_OK && sort == DSI_SORT_FILE;
}

bool dsi_sys_is_dir(const char *path) {
    dsi_sys_sort sort;
    return dsi_sys_look(path, &sort, NULL) == DSI_OK && sort == DSI_SORT_FOLDER;
}

dsi_status dsi_sys_map(const char *path, dsi_map *map, dsi_error *error) {
    *map = (dsi_map){0};
    int fd;
    uint64_t size;
    dsi_status status = open_regular(path, &fd, &size, error);
    if (status != DSI_OK) return status;
    if (size == 0) {
        dsi_sys_close(fd);
        return dsi_fail(error, DSI_E_FORMAT, "%s: is empty (0 bytes); fetch the file again", path);
    }
    const uint8_t *data = dsi_sys_mmap(fd, size);
    if (data == NULL) {
        status = fail_os(error, path, "map", errno, TO_READ);
    } else {
        *map = (dsi_map){.data = data, .n_bytes = size};
    }
    dsi_sys_close(fd); /* the mapping keeps the file alive */
    return status;
}

void dsi_sys_unmap(dsi_map *map) {
    if (map->data != NULL) dsi_sys_munmap_file(map->data, map->n_bytes);
    *map = (dsi_map){0};
}

dsi_status dsi_sys_reader_open(const char *path, dsi_sys_reader *reader, dsi_error *error) {
    *reader = (dsi_sys_reader){.fd = -1, .path = path};
    return open_regular(path, &reader->fd, &reader->n_bytes, error);
}

dsi_status dsi_sys_reader_get(dsi_sys_reader *reader, void *to, uint64_t n_bytes,
                              dsi_error *error) {
    int64_t got = sys_pread(reader->fd, to, n_bytes, reader->at);
    if (got < 0) return fail_os(error, reader->path, "read", errno, TO_READ);
    reader->at += (uint64_t)got;
    if ((uint64_t)got == n_bytes) return DSI_OK;
    return dsi_fail(error, DSI_E_FORMAT, "%s: ends at byte %llu, where more must follow",
                    reader->path, (unsigned long long)reader->at);
}

void dsi_sys_reader_close(dsi_sys_reader *reader) {
    dsi_sys_close(reader->fd);
    reader->fd = -1;
}

bool dsi_sys_read_text(const char *path, char *text, size_t n_bytes) {
    struct stat info;
    int fd = open_to_read(path);
    text[0] = 0;
    if (fd < 0) return false;
    int64_t n = -1;
    if (sys_fstat(fd, &info) == 0 && S_ISREG(info.st_mode)) n = sys_pread(fd, text, n_bytes - 1, 0);
    dsi_sys_close(fd);
    text[n > 0 ? n : 0] = 0;
    return n > 0;
}

uint64_t dsi_sys_memory_available(void) {
    static const char key[] = "\nMemAvailable:";
    char text[4096];
    if (!dsi_sys_read_text("/proc/meminfo", text, sizeof text)) return 0;
    const char *at = strstr(text, key);
    if (at == NULL) return 0;
    at += sizeof key - 1;
    while (*at == ' ') at++;
    uint64_t kib = 0, n_bytes = 0;
    for (; *at >= '0' && *at <= '9'; at++) {
        if (!dsi_mul_ok(kib, 10, &kib) || !dsi_add_ok(kib, (uint64_t)(*at - '0'), &kib)) return 0;
    }
    return dsi_mul_ok(kib, 1024, &n_bytes) ? n_bytes : 0;
}

/* ---- Writing ---- */

/* Past the limit of file sizes (ulimit -f) the kernel sends SIGXFSZ with the EFBIG, and that ends a
 * process that does not expect it. A library must not decide so for its host: the signal, which
 * goes to the writing thread, is held back and taken away. */
static ssize_t write_without_signal(int fd, const void *data, uint64_t n_bytes) {
    sigset_t only, pending, before;
    sigemptyset(&only);
    sigaddset(&only, SIGXFSZ);
    sigemptyset(&pending);
    sigpending(&pending);
    bool masked = pthread_sigmask(SIG_BLOCK, &only, &before) == 0;
    ssize_t n = sys_write(fd, data, n_bytes, true);
    int code = errno;
    const struct timespec no_time = {0};
    if (masked && n < 0 && code == EFBIG && sigismember(&pending, SIGXFSZ) != 1)
        while (sigtimedwait(&only, NULL, &no_time) < 0 && errno == EINTR) {
        }
    if (masked) pthread_sigmask(SIG_SETMASK, &before, NULL);
    errno = code;
    return n;
}

/* What `path` already is must be replaceable by a file. */
static dsi_status check_target(const char *path, dsi_error *error) {
    struct stat info;
    if (path[0] == '\0') return fail_os(error, path, "create", ENOENT, TO_WRITE);
    if (sys_stat(path, &info) != 0) return DSI_OK; /* not there; other reasons show on open */
    if (S_ISDIR(info.st_mode))
        return dsi_fail(error, DSI_E_IO, "%s: is a directory; give the path of a file", path);
    if (!S_ISREG(info.st_mode))
        return dsi_fail(error, DSI_E_IO,
                        "%s: is a pipe, socket or device; give the path of a regular file", path);
    return DSI_OK;
}

/* Opens path.PID-N.tmp; a name that is taken (left by a process that was killed) is passed over. */
static int open_temporary(const char *path, char *name, size_t n_bytes_name) {
    enum { MAX_TRIES = 100 };
    static atomic_uint next;
    int fd = -1;
    for (int i = 0; i < MAX_TRIES && fd < 0; i++) {
        snprintf(name, n_bytes_name, "%s.%lld-%u.tmp", path, (long long)getpid(),
                 atomic_fetch_add(&next, 1) + 1);
        fd = sys_open(name, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW);
        if (fd < 0 && errno != EEXIST) return -1;
    }
    return fd;
}

dsi_status dsi_sys_writer_open(const char *path, dsi_sys_writer *writer, dsi_error *error) {
    enum { SUFFIX_BYTES = 48 };
    *writer = (dsi_sys_writer){.fd = -1};
    dsi_status status = check_target(path, error);
    if (status != DSI_OK) return status;
    size_t n = strlen(path);
    writer->path = dsi_sys_strdup(path, n);
    writer->temporary = dsi_sys_calloc(n + SUFFIX_BYTES, 1);
    if (writer->path == NULL || writer->temporary == NULL) {
        status = dsi_fail(error, DSI_E_NOMEM, "%s: no memory for its name; free some memory", path);
    } else {
        writer->fd = open_temporary(path, writer->temporary, n + SUFFIX_BYTES);
        if (writer->fd < 0) status = fail_os(error, path, "create", errno, TO_WRITE);
    }
    if (status == DSI_OK) return status;
    dsi_sys_free(writer->path);
    dsi_sys_free(writer->temporary);
    *writer = (dsi_sys_writer){.fd = -1};
    return status;
}

dsi_status dsi_sys_writer_add(dsi_sys_writer *writer, const void *data, uint64_t n_bytes,
                              dsi_error *error) {
    const char *at = data;
    if (writer->fd < 0) return dsi_fail(error, DSI_E_STATE, "the file to write is not open");
    while (n_bytes > 0) {
        ssize_t n = write_without_signal(writer->fd, at, n_bytes);
        if (n < 0) return fail_os(error, writer->path, "write", errno, TO_WRITE);
        at += n;
        n_bytes -= (uint64_t)n;
    }
    return DSI_OK;
}

/* The folder that holds `path`, opened, or -1. */
static int open_folder(const char *path) {
    char folder[PATH_MAX];
    const char *slash = strrchr(path, '/');
    if (slash == NULL) return sys_open(".", O_RDONLY | O_DIRECTORY);
    size_t n = slash == path ? 1 : (size_t)(slash - path); /* "/" keeps its slash */
    if (n >= sizeof folder) {
        errno = ENAMETOOLONG;
        return -1;
    }
    memcpy(folder, path, n);
    folder[n] = '\0';
    return sys_open(folder, O_RDONLY | O_DIRECTORY);
}

/* Content first, name second: a name that survives a power cut without its content is half a file.
 * *renamed tells whether the new file is in place. */
static dsi_status put_in_place(dsi_sys_writer *w, int folder, bool *renamed, dsi_error *error) {
    if (sys_fsync(w->fd) != 0) return fail_os(error, w->path, "write to the disk", errno, TO_WRITE);
    int fd = w->fd;
    w->fd = -1;
    if (close_written(fd) != 0 && errno != EINTR)
        return fail_os(error, w->path, "finish", errno, TO_WRITE);
    if (sys_rename(w->temporary, w->path) != 0)
        return fail_os(error, w->path, "replace", errno, TO_WRITE);
    *renamed = true;
    if (sys_fsync(folder) != 0 && errno != EINVAL) /* EINVAL: a file system without it */
        return fail_os(error, w->path, "make sure (it is written, a power cut may undo it)", errno,
                       TO_WRITE);
    return DSI_OK;
}

dsi_status dsi_sys_writer_commit(dsi_sys_writer *writer, dsi_error *error) {
    if (writer->fd < 0) return dsi_fail(error, DSI_E_STATE, "the file to write is not open");
    /* Opened before the rename, so that most failures come while the old file is in place. */
    int folder = open_folder(writer->path);
    if (folder < 0) return fail_os(error, writer->path, "open the folder of", errno, TO_WRITE);
    bool renamed = false;
    dsi_status status = put_in_place(writer, folder, &renamed, error);
    dsi_sys_close(folder);
    if (renamed) {
        dsi_sys_free(writer->temporary);
        writer->temporary = NULL;
    }
    if (status == DSI_OK) dsi_sys_writer_abort(writer); /* frees the names */
    return status;
}

void dsi_sys_writer_abort(dsi_sys_writer *writer) {
    if (writer->path == NULL) return; /* zeroed, or closed before */
    dsi_sys_close(writer->fd);
    if (writer->temporary != NULL) sys_unlink(writer->temporary);
    dsi_sys_free(writer->path);
    dsi_sys_free(writer->temporary);
    *writer = (dsi_sys_writer){.fd = -1};
}

/* ---- Descriptors to poll ---- */

int dsi_sys_eventfd(void) {
    return dsi_sys_gate(DSI_CALL_EVENTFD, NULL) ? eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK) : -1;
}

void dsi_sys_eventfd_signal(int fd) {
    const uint64_t one = 1;
    int saved = errno;
    /* EAGAIN: the counter is full, hence readable already. */
    (void)!sys_write(fd, &one, sizeof one, false);
    errno = saved;
}

void dsi_sys_eventfd_drain(int fd) {
    uint64_t count;
    int saved = errno;
    ssize_t n;
    do {
        n = read(fd, &count, sizeof count); /* EAGAIN: nothing was signalled */
    } while (n < 0 && errno == EINTR);
    errno = saved;
}

void dsi_sys_eventfd_wait(int fd, double deadline) {
    struct pollfd one = {.fd = fd, .events = POLLIN};
    double left_ms = ceil((deadline - dsi_sys_seconds()) * 1e3);
    int saved = errno, timeout = -1;
    if (left_ms < INT_MAX) timeout = left_ms > 0 ? (int)left_ms : 0;
    poll(&one, 1, timeout); /* a signal or a lack of memory in the kernel: the caller looks again */
    errno = saved;
}
