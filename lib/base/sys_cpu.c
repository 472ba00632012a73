/* sys_cpu.c: CPUs, and sleeping on a word of memory. Each fallible call appears exactly once in
 * lib/base/sys_*.c, in a wrapper of its own. */
#include "fault.h"
#include "sys.h"

#include <limits.h>
#include <linux/futex.h>
#include <sched.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

/* ---- CPUs ---- */

_Static_assert(sizeof(unsigned long) == 8 && CHAR_BIT == 8, "cpu_set_t is laid out as our mask");

static int sys_getaffinity(dsi_cpu_mask *mask) {
    /* The kernel refuses a mask shorter than its own. */
    return dsi_sys_gate(DSI_CALL_GETAFFINITY, NULL)
               ? sched_getaffinity(0, sizeof *mask, (cpu_set_t *)(void *)mask)
               : -1;
}

bool dsi_sys_affinity(dsi_cpu_mask *mask) {
    memset(mask, 0, sizeof *mask);
    if (sys_getaffinity(mask) == 0) return true;
    memset(mask, 0, sizeof *mask);
    long n = sysconf(_SC_NPROCESSORS_ONLN);
    for (long i = 0; i < n || i < 1; i++) dsi_cpu_mask_add(mask, (uint32_t)i);
    return false;
}

uint32_t dsi_sys_cpu_count(void) {
    dsi_cpu_mask mask;
    uint32_t n = 0;
    dsi_sys_affinity(&mask);
    for (uint32_t i = 0; i < DSI_MAX_CPUS / 64; i++)
        n += (uint32_t)__builtin_popcountll(mask.words[i]);
    return n;
}

int dsi_sys_set_affinity(pthread_t thread, const dsi_cpu_mask *mask) {
    if (!dsi_sys_gate(DSI_CALL_SETAFFINITY, NULL)) return errno;
    return pthread_setaffinity_np(thread, sizeof *mask, (const cpu_set_t *)(const void *)mask);
}

int dsi_sys_current_cpu(void) { return sched_getcpu(); }

/* ---- Sleeping. Not behind the gate: where futexes fail, no lock of libc works either, and both
 * calls may return early in any case. ---- */

void dsi_sys_futex_wait(atomic_uint *word, unsigned value) {
    int saved = errno; /* EAGAIN: it has moved already; EINTR: a signal */
    syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, value, NULL, NULL, 0);
    errno = saved;
}

void dsi_sys_futex_wake(atomic_uint *word) {
    int saved = errno;
    syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, INT_MAX, NULL, NULL, 0);
    errno = saved;
}
