/* cpu_path.c: which kernel multiplies weights of a type; nobody is to be left on a slow path
 * without being told. */
#include "cpu_path.h"
#include "../../kernels/blocks/blocks.h"
#include "cpu.h"
#include <stdio.h>
#include <string.h>

enum { LEVEL_WARN = 1 }; /* DSI_LOG_WARN of dsinfer.h, which back-ends do not include */

static bool is_weight(dsi_dtype w) {
    return dsi_dtype_block(w).values || w == DSI_DTYPE_E4M3 || w == DSI_DTYPE_I8 ||
           w == DSI_DTYPE_I4 || w == DSI_DTYPE_BF16 || w == DSI_DTYPE_F16 || w == DSI_DTYPE_F32;
}

dsi_cpu_path dsi_cpu_path_of(const dsi_kernels *kernels, dsi_dtype w, dsi_dtype x) {
    dsi_cpu_path path = {.kind = DSI_CPU_PATH_NONE};
    if (!is_weight(w)) return path;
    if (x == DSI_DTYPE_I8 && w != DSI_DTYPE_I8 && w != DSI_DTYPE_I4) x = DSI_DTYPE_BF16;
    const dsi_any_fn fn = (dsi_any_fn)dsi_cpu_matmul_kernel(kernels, w, x);
    uint32_t n;
    const dsi_kernel_line *line = dsi_kernel_lines(&n);
    for (uint32_t i = 0; i < n; i++) {
        if (line[i].type != DSI_KERNEL_matmul || line[i].fn != fn) continue;
        snprintf(path.stem, sizeof path.stem, "%s", line[i].stem);
        snprintf(path.isa, sizeof path.isa, "%s", strstr(line[i].symbol, "__") + 2);
        path.kind = line[i].isa == DSI_ISA_REF ? DSI_CPU_PATH_REFERENCE
                    : dsi_block_is_apart(w)    ? DSI_CPU_PATH_APART
                                               : DSI_CPU_PATH_DIRECT;
    }
    return path;
}

static void note(dsi_dev *dev, dsi_dtype w, dsi_dtype x) {
    const uint64_t bit = 1ull << (w - DSI_DTYPE_BLOCKS);
    const dsi_cpu_path path = dsi_cpu_path_of(&dev->kernels, w, x);
    if ((dev->slow & bit) ||
        (path.kind != DSI_CPU_PATH_APART && path.kind != DSI_CPU_PATH_REFERENCE))
        return;
    dev->slow |= bit;
    dsi_logf(&dev->log, LEVEL_WARN, "cpu",
             path.kind == DSI_CPU_PATH_APART
                 ? "weights of type %s: %s, %s looks their blocks up in tables before it "
                   "multiplies, which is slower than memory is; Q4_K and the like are not"
                 : "weights of type %s: %s, %s is the reference and very slow; leave the option "
                   "kernels out, or use a CPU with AVX2",
             dsi_dtype_name(w), path.stem, path.isa);
}

void dsi_cpu_path_note(dsi_dev *dev, const dsi_op *op) {
    const bool multiplies = op->kind == DSI_OP_LINEAR || op->kind == DSI_OP_LINEAR_SWIGLU ||
                            op->kind == DSI_OP_MOE_FFN || op->kind == DSI_OP_MOE_ROUTED;
    if (!multiplies) return;
    for (uint32_t i = 1; i < op->n_in; i++)
        if (op->in[i] && dsi_dtype_block(op->in[i]->dtype).values)
            note(dev, op->in[i]->dtype, op->in[0]->dtype);
}

void dsi_cpu_path_describe(const dsi_dev *dev, char *text, uint64_t n_bytes) {
    uint64_t n = 0;
    text[0] = 0;
    for (uint32_t i = 0; i < 64 && n < n_bytes; i++)
        if (dev->slow & 1ull << i)
            n += (uint64_t)snprintf(text + n, n_bytes - n, ", %s",
                                    dsi_dtype_name(DSI_DTYPE_BLOCKS + i));
    if (n && n < n_bytes) snprintf(text + n, n_bytes - n, " slow");
}
