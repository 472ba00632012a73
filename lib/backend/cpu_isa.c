/* cpu_isa.c: the instruction sets by name, and which of them this process may use. */
#include "cpu_isa.h"
#include "../base/sys.h"
#include <errno.h>
#include <stdatomic.h>

enum { LEVEL_WARN = 1 }; /* DSI_LOG_WARN of dsinfer.h, which back-ends do not include */

#define UP_TO_AVX512 (DSI_ISA_AVX512 | DSI_ISA_AVX2 | DSI_ISA_REF)
/* No CPU has the BF16 instructions without VNNI. */
#define UP_TO_VNNI (DSI_ISA_AVX512VNNI | UP_TO_AVX512)

const dsi_cpu_set *dsi_cpu_sets(uint32_t *n) {
    static const dsi_cpu_set sets[] = {
        {"amx", DSI_ISA_AMX | DSI_ISA_AVX512BF16 | UP_TO_VNNI},
        {"avx512bf16", DSI_ISA_AVX512BF16 | UP_TO_VNNI},
        {"avx512vnni", UP_TO_VNNI},
        {"avx512", UP_TO_AVX512},
        {"avx2", DSI_ISA_AVX2 | DSI_ISA_REF},
        {"ref", DSI_ISA_REF},
    };
    *n = sizeof sets / sizeof sets[0];
    return sets;
}

uint32_t dsi_cpu_isa(uint32_t have, const dsi_log *log) {
    static _Atomic bool permitted; /* and a process keeps what it was given */
    if ((have & DSI_ISA_AMX) == 0 || atomic_load(&permitted)) return have;
    int code = dsi_sys_permit_amx();
    if (code == 0) {
        atomic_store(&permitted, true);
        return have;
    }
    dsi_logf(log, LEVEL_WARN, "cpu",
             "this CPU has AMX, but the system does not let this process use it (arch_prctl: error "
             "%d); the next best kernels are used. Linux 5.16 and newer permit it, unless an "
             "alternate signal stack of a running thread is too small for its state (error %d) or "
             "a sandbox forbids the call",
             code, ENOSPC);
    return have & ~(uint32_t)DSI_ISA_AMX;
}
