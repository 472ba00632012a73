/* cpu_gemm.h: the fast mode of the CPU: products of many rows by a library, where it measures
 * faster than the own kernels. In exact mode nothing of this is there. */
#ifndef DSI_LIB_BACKEND_CPU_GEMM_H
#define DSI_LIB_BACKEND_CPU_GEMM_H

#include "cpu.h"

/* choice: "auto" (whichever measures faster), "onednn", "openblas", "own". A library that is
 * missing or of no use leaves the own kernels, with a warning in the log and in the description.
 * NOMEM. */
dsi_status dsi_cpu_gemm_open(dsi_dev *dev, const char *choice, dsi_error *error);
void dsi_cpu_gemm_close(dsi_dev *dev); /* harmless without open */

/* At load, for every op: measures its shapes where that was not done yet, and says how many bytes
 * of workspace the library wants behind the op's own. */
dsi_status dsi_cpu_gemm_plan(dsi_dev *dev, const dsi_op *op, uint64_t *n_bytes);
/* The same bytes, without measuring. */
uint64_t dsi_cpu_gemm_workspace(const dsi_dev *dev, const dsi_op *op);
/* Before an op runs: where that workspace is. Rows gathered for another op are forgotten. */
void dsi_cpu_gemm_begin(dsi_dev *dev, const dsi_op *op, uint8_t *area);
/* The kernel for these arguments: `own`, or one that calls a library where that is faster. */
dsi_matmul_fn dsi_cpu_gemm_use(const dsi_dev *dev, const dsi_tensor *w, dsi_dtype x_dtype,
                               dsi_matmul_args *args, dsi_matmul_fn own);
/* ", fast: oneDNN 2.6.3 for 3 of 5 kinds of product (...)". */
void dsi_cpu_gemm_describe(const dsi_dev *dev, char *text, size_t n_bytes);

#endif
