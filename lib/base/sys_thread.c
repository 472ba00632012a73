/* sys_thread.c: threads, locks, the clock, the process. Each fallible call appears exactly once in
 * lib/base/sys_*.c, in a wrapper of its own. */
#include "fault.h"
#include "sys.h"

#include <signal.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

/* ---- Threads ---- */

int dsi_sys_thread_create(pthread_t *thread, void *(*run)(void *), void *context) {
    /* The new thread inherits this mask: signals of the host program stay on its own threads. */
    sigset_t all, before;
    sigfillset(&all);
    int masked = pthread_sigmask(SIG_SETMASK, &all, &before);
    int code =
        dsi_sys_gate(DSI_CALL_THREAD, NULL) ? pthread_create(thread, NULL, run, context) : errno;
    if (masked == 0) pthread_sigmask(SIG_SETMASK, &before, NULL);
    return code;
}

void dsi_sys_thread_join(pthread_t thread) {
    pthread_join(thread, NULL); /* fails for a thread that is not joinable only */
}

int dsi_sys_mutex_init(pthread_mutex_t *mutex) {
    return dsi_sys_gate(DSI_CALL_MUTEX, NULL) ? pthread_mutex_init(mutex, NULL) : errno;
}

int dsi_sys_cond_init(pthread_cond_t *cond) {
    pthread_condattr_t attributes;
    int code = pthread_condattr_init(&attributes);
    if (code != 0) return code;
    /* The wall clock jumps; a deadline must not. */
    code = pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    if (code == 0)
        code = dsi_sys_gate(DSI_CALL_COND, NULL) ? pthread_cond_init(cond, &attributes) : errno;
    pthread_condattr_destroy(&attributes);
    return code;
}

bool dsi_sys_cond_wait_until(pthread_cond_t *cond, pthread_mutex_t *mutex, double deadline) {
    const double end_of_time = 1e15; /* seconds; beyond, a double is no longer exact to one */
    if (deadline >= end_of_time) {
        pthread_cond_wait(cond, mutex);
        return true;
    }
    if (!(deadline > 0)) deadline = 0; /* NaN too */
    struct timespec until = {.tv_sec = (time_t)deadline};
    until.tv_nsec = (long)((deadline - (double)until.tv_sec) * 1e9);
    return pthread_cond_timedwait(cond, mutex, &until) != ETIMEDOUT;
}

/* ---- The machine ---- */

int dsi_sys_permit_amx(void) {
#if defined(__x86_64__) && defined(SYS_arch_prctl)
    enum { REQUEST_PERMISSION = 0x1023, TILE_DATA = 18 }; /* asm/prctl.h since Linux 5.16 */
    if (!dsi_sys_gate(DSI_CALL_ARCH_PRCTL, NULL)) return errno;
    return syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) == 0 ? 0 : errno;
#else
    return ENOSYS;
#endif
}

double dsi_sys_seconds(void) {
    struct timespec now = {0};
    clock_gettime(CLOCK_MONOTONIC, &now); /* cannot fail on Linux */
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

int64_t dsi_sys_getpid(void) { return getpid(); }
