/* cpu_path.h: which kernel multiplies weights of a type, and whether that is a slow path. */
#ifndef DSI_LIB_BACKEND_CPU_PATH_H
#define DSI_LIB_BACKEND_CPU_PATH_H

#include "../../kernels/kernels.h"

enum {
    DSI_CPU_PATH_DIRECT,    /* in registers, from the file's bytes */
    DSI_CPU_PATH_APART,     /* blocks are looked up in tables first: slower than memory */
    DSI_CPU_PATH_REFERENCE, /* plain C, for checks: the slowest */
    DSI_CPU_PATH_NONE       /* no product with such weights */
};
typedef struct dsi_cpu_path {
    char stem[32], isa[16]; /* "matmul_blocks_bf16", "avx512bf16"; "" if there is none */
    uint32_t kind;          /* DSI_CPU_PATH_* */
} dsi_cpu_path;

/* Of weights w and activations x (BF16, F32; I8: records of quantize_a8, where w has a kernel for
 * those, else as BF16). */
dsi_cpu_path dsi_cpu_path_of(const dsi_kernels *kernels, dsi_dtype w, dsi_dtype x);

/* For plans: a warning to the log for every type of blocks whose products are slow, once a device;
 * and ", IQ1_S, IQ2_XXS slow: ..." for descriptions, "" if there are none. */
struct dsi_dev;
struct dsi_op;
void dsi_cpu_path_note(struct dsi_dev *dev, const struct dsi_op *op);
void dsi_cpu_path_describe(const struct dsi_dev *dev, char *text, uint64_t n_bytes);

#endif
