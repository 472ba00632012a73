/* fault.h: one gate in front of every call that the operating system may refuse, so that a test can
 * make the N-th one fail. Unarmed, which is always outside tests, it is one branch on a flag. No
 * environment variable and no exported symbol leads here: a test links the static library.
 *
 * A test arms one fault, runs, and looks at the counts:
 *     dsi_fault_arm(&(dsi_fault){.kind = DSI_CALL_ANY, .nth = 7});
 *     dsi_status status = dsi_model_open(...);
 *     dsi_fault_disarm();
 * Arming and disarming while other threads use the library is safe; they see it at once or a few
 * calls later. */
#ifndef DSI_LIB_BASE_FAULT_H
#define DSI_LIB_BASE_FAULT_H

#include "base.h"
#include <errno.h>
#include <stdatomic.h>

/* Each call, its name and the error that tells the most about it. ALLOCATE is the caller's own
 * allocator (dsi_set_allocator). */
#define DSI_CALL_LIST(X)                                                                           \
    X(CALLOC, "calloc", ENOMEM)                                                                    \
    X(REALLOC, "realloc", ENOMEM)                                                                  \
    X(ALIGNED_ALLOC, "aligned_alloc", ENOMEM)                                                      \
    X(ALLOCATE, "allocator", ENOMEM)                                                               \
    X(MMAP, "mmap", ENOMEM)                                                                        \
    X(OPEN, "open", EMFILE)                                                                        \
    X(STAT, "stat", EACCES)                                                                        \
    X(FSTAT, "fstat", EIO)                                                                         \
    X(PREAD, "pread", EIO)                                                                         \
    X(WRITE, "write", ENOSPC)                                                                      \
    X(FSYNC, "fsync", EIO)                                                                         \
    X(CLOSE, "close", EIO)                                                                         \
    X(RENAME, "rename", EACCES)                                                                    \
    X(EVENTFD, "eventfd", EMFILE)                                                                  \
    X(DLOPEN, "dlopen", ENOENT)                                                                    \
    X(THREAD, "pthread_create", EAGAIN)                                                            \
    X(MUTEX, "pthread_mutex_init", ENOMEM)                                                         \
    X(COND, "pthread_cond_init", ENOMEM)                                                           \
    X(ARCH_PRCTL, "arch_prctl", ENOSPC)                                                            \
    X(GETAFFINITY, "sched_getaffinity", EINVAL)                                                    \
    X(SETAFFINITY, "sched_setaffinity", EINVAL)                                                    \
    X(MADVISE, "madvise", ENOMEM)

typedef enum dsi_call {
#define DSI_CALL_CODE(name, text, code) DSI_CALL_##name,
    DSI_CALL_LIST(DSI_CALL_CODE)
#undef DSI_CALL_CODE
        DSI_N_CALLS,
    DSI_CALL_ANY = DSI_N_CALLS
} dsi_call;

typedef enum dsi_fault_mode {
    DSI_FAULT_FAIL,      /* the call returns its error */
    DSI_FAULT_INTERRUPT, /* EINTR, where the system may say so: open, pread, write, fsync */
    DSI_FAULT_SHORT      /* pread and write move half of what was asked for (at least a byte) */
} dsi_fault_mode;

typedef struct dsi_fault {
    dsi_call kind; /* calls of this kind count, or of all with DSI_CALL_ANY */
    dsi_fault_mode mode;
    uint64_t nth; /* the nth call that mode can strike, from 1 on; 0: none, calls are counted */
    bool
        onwards; /* and every one behind it; with INTERRUPT every other one, so that work goes on */
    int code;    /* errno for FAIL; 0: the one in the list */
} dsi_fault;

/* Counts start from 0. */
void dsi_fault_arm(const dsi_fault *fault);
void dsi_fault_disarm(void);
/* Since arm: calls seen of this kind (or of all); calls that were struck. Kept after disarm. */
uint64_t dsi_fault_seen(dsi_call kind);
uint64_t dsi_fault_struck(void);
dsi_call dsi_fault_first_struck(void); /* the kind of the first of them, DSI_CALL_ANY if none */
/* "pread"; "any". */
const char *dsi_call_name(dsi_call kind);

extern atomic_uint dsi_fault_armed __attribute__((visibility("hidden")));
bool dsi_fault_pass(dsi_call kind, uint64_t *n_bytes);

/* In front of every call: false means that it must fail now, with the errno that is set. n_bytes:
 * what a read or write is about to move, may come back smaller; NULL for other calls. */
static inline bool dsi_sys_gate(dsi_call kind, uint64_t *n_bytes) {
    if (__builtin_expect(atomic_load_explicit(&dsi_fault_armed, memory_order_acquire) == 0, 1))
        return true;
    return dsi_fault_pass(kind, n_bytes);
}

#endif
