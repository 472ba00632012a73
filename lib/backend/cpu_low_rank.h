/* cpu_low_rank.h: what adapters add to products: y[r] += scale * B (A x[r]) of some rows. A row is
 * computed from itself alone, by the kernels of all products, so exact mode holds. */
#ifndef DSI_LIB_BACKEND_CPU_LOW_RANK_H
#define DSI_LIB_BACKEND_CPU_LOW_RANK_H

#include "cpu.h"

/* Rows [r0, r0 + m) of the step, columns [n0, n1): y[r - r0][n - n0] += scale * B t, where t is
 * there. Nothing if l is NULL. */
void dsi_cpu_low_rank_add(const dsi_dev *dev, const dsi_low_rank *l, int64_t r0, int64_t m,
                          int64_t n0, int64_t n1, float *y, int64_t y_stride);
/* Do the parts fit a weight [n][k]? True if l is NULL. */
bool dsi_cpu_low_rank_ok(const dsi_low_rank *l, int64_t n, int64_t k);

/* ---- Rows of x that were not multiplied by A before: attention on latents ----------------------
 */

/* Some rows, with one adapter; x is act or F32. */
typedef struct dsi_cpu_low_rank_rows {
    const void *x; /* row 0 */
    int64_t x_stride;
    const int32_t *x_rows; /* NULL, or which rows of x */
    dsi_dtype x_dtype;
    int64_t m;
    float *y; /* [m][n1 - n0] */
    int64_t y_stride;
    int64_t n0, n1; /* rows of B */
} dsi_cpu_low_rank_rows;
/* The part of row r of the step, NULL if nothing changes for it; *end: behind the last of the rows
 * up to `limit` that follow r and have the same part. */
const dsi_low_rank_part *dsi_cpu_low_rank_part(const dsi_low_rank *l, int64_t r, int64_t limit,
                                               int64_t *end);
/* y += scale * B[n0, n1) (A x). */
void dsi_cpu_low_rank_apply(const dsi_dev *dev, const dsi_low_rank *l,
                            const dsi_low_rank_part *part, const dsi_cpu_low_rank_rows *rows,
                            uint8_t *room);
/* y[m][k] += scale * A^T (B[n0, n1)^T x), x F32 [m][n1 - n0] without x_rows. */
void dsi_cpu_low_rank_apply_t(const dsi_dev *dev, const dsi_low_rank *l,
                              const dsi_low_rank_part *part, const dsi_cpu_low_rank_rows *rows,
                              uint8_t *room);
/* Room of one thread for these two, k: columns of A for the first, n1 - n0 for the second; 0 if l
 * is NULL. */
int64_t dsi_cpu_low_rank_room(const dsi_low_rank *l, int64_t k);

#endif
