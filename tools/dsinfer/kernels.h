/* kernels.h: the kernels that an engine with these options would take; for inspect and doctor. */
#ifndef DSINFER_TOOL_KERNELS_H
#define DSINFER_TOOL_KERNELS_H

#include "../../kernels/kernels.h"
#include "../../lib/backend/cpu_selftest.h"
#include "cli.h"

typedef struct cli_kernels {
    uint32_t isa;            /* DSI_ISA_* that the CPU has */
    const char *set;         /* the set in use: "avx512" */
    bool is_tested;          /* false: the self-test could not run, and `tested` is empty */
    dsi_cpu_selftest tested; /* its kernels are those an engine uses */
} cli_kernels;
/* Runs the self-test. */
void cli_kernels_read(const cli_options *options, cli_kernels *kernels);

#endif
