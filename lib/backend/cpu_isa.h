/* cpu_isa.h: the instruction sets by name, and which of them this process may use. */
#ifndef DSI_LIB_BACKEND_CPU_ISA_H
#define DSI_LIB_BACKEND_CPU_ISA_H

#include "../../kernels/kernels.h"
#include "../base/base.h"

typedef struct dsi_cpu_set {
    const char *name;
    uint32_t mask; /* DSI_ISA_* of this set and what it builds on */
} dsi_cpu_set;
/* All of them, best first. */
const dsi_cpu_set *dsi_cpu_sets(uint32_t *n);

/* What of `have`, instruction sets of this CPU (dsi_isa_detect), the process may use. The tiles of
 * AMX are 8 KB of state more for every thread, so Linux wants to be asked for them: this asks, once
 * for the whole process and all its threads, now and later. From then on the system refuses
 * alternate signal stacks (sigaltstack) without room for that state. If the system says no, the log
 * gets a line and the others are left. Any thread; call it before threads that will compute. */
uint32_t dsi_cpu_isa(uint32_t have, const dsi_log *log);

#endif
