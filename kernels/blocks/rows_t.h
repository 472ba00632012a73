/* rows_t.h: the transposed product with rows of blocks. A chunk_<isa>.h comes before; `decode` is
 * the decode_blocks of the same instruction set. */
#ifndef DSI_KERNELS_BLOCKS_ROWS_T_H
#define DSI_KERNELS_BLOCKS_ROWS_T_H

#include "../formats.h"
#include "../kernels.h"
#include "blocks.h"

enum { DSI_ROWS_T_N = 8 }; /* rows of a piece */

/* y += x * w over a piece of rows and the columns of a block (a multiple of 16). */
DSI_INLINE void dsi_rows_t_add(const float *x, float w[DSI_ROWS_T_N][DSI_BLOCK_VALUES_MAX],
                               int64_t rows, int64_t columns, float *y) {
    for (int64_t j = 0; j < columns; j += DSI_LANES) {
        dsi_sum sum = dsi_sum_load(y + j);
        for (int64_t r = 0; r < rows; r++)
            sum = dsi_sum_add_scaled(sum, x[r], dsi_sum_load(w[r] + j));
        dsi_sum_store(y + j, sum);
    }
}

DSI_INLINE void dsi_rows_matmul_t(const dsi_matmul_t_args *a, dsi_decode_blocks_fn decode) {
    const dsi_block_shape shape = dsi_block_shape_of(a->w_dtype);
    const int64_t w_bytes = dsi_row_bytes(a->w_dtype, a->w_stride);
    float w[DSI_ROWS_T_N][DSI_BLOCK_VALUES_MAX];
    for (int64_t i = 0; i < a->m; i++)
        memset(a->y + i * a->y_stride, 0, (size_t)a->k * sizeof *a->y);
    for (int64_t j = 0; j < a->k; j += shape.values) {
        for (int64_t n = a->n0; n < a->n1; n += DSI_ROWS_T_N) {
            const int64_t rows = a->n1 - n < DSI_ROWS_T_N ? a->n1 - n : DSI_ROWS_T_N;
            for (int64_t r = 0; r < rows; r++)
                decode(a->w_dtype, a->w + (n + r) * w_bytes + dsi_row_bytes(a->w_dtype, j), w[r],
                       shape.values);
            for (int64_t i = 0; i < a->m; i++)
                dsi_rows_t_add(a->x + i * a->x_stride + n - a->n0, w, rows, shape.values,
                               a->y + i * a->y_stride + j);
        }
    }
}

#endif
