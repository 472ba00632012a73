/* kernels.c: the kernels that an engine with these options would take. */
#include "kernels.h"
#include "../../lib/backend/cpu_isa.h"
#include <stdlib.h>
#include <string.h>

/* The set that an engine would take, and all that is below it. */
static uint32_t choose_mask(const cli_options *options, cli_kernels *kernels) {
    const char *want = options->kernels != NULL ? options->kernels : getenv("DSINFER_KERNELS");
    uint32_t n, best = UINT32_MAX;
    const dsi_cpu_set *sets = dsi_cpu_sets(&n);
    kernels->isa = dsi_cpu_isa(dsi_isa_detect() | DSI_ISA_REF, NULL);
    for (uint32_t i = n; i-- > 0;) {
        if ((sets[i].mask & ~kernels->isa) != 0) break;
        best = i;
        if (want != NULL && strcmp(want, sets[i].name) == 0) break;
    }
    kernels->set = sets[best].name;
    return sets[best].mask;
}

void cli_kernels_read(const cli_options *options, cli_kernels *kernels) {
    memset(kernels, 0, sizeof *kernels);
    const uint32_t mask = choose_mask(options, kernels);
    kernels->is_tested = dsi_cpu_selftest_run(mask, &kernels->tested, NULL) == DSI_OK;
}
