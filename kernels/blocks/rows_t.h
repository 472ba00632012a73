/* rows_t.h: the transposed product with rows of blocks. A chunk_<isa>.h comes before. */
#ifndef DSI_KERNELS_BLOCKS_ROWS_T_H
#define DSI_KERNELS_BLOCKS_ROWS_T_H

#include "../formats.h"
#include "../kernels.h"
#include "parts.h"

enum { DSI_ROWS_T_N = 8 }; /* rows of a piece */

/* y += x * w over a piece of rows and at most 256 columns, a multiple of 16. */
DSI_INLINE void dsi_rows_t_add(const float *x, float w[DSI_ROWS_T_N][DSI_BLOCK_VALUES_MAX],
                               int64_t rows, int64_t columns, float *y) {
    for (int64_t j = 0; j < columns; j += DSI_LANES) {
        dsi_sum sum = dsi_sum_load(y + j);
        if (rows == DSI_ROWS_T_N) {
            DSI_UNROLL
            for (int64_t r = 0; r < DSI_ROWS_T_N; r++)
                sum = dsi_sum_add_scaled(sum, x[r], dsi_sum_load(w[r] + j));
        } else {
            for (int64_t r = 0; r < rows; r++)
                sum = dsi_sum_add_scaled(sum, x[r], dsi_sum_load(w[r] + j));
        }
        dsi_sum_store(y + j, sum);
    }
}

DSI_INLINE void dsi_rows_matmul_t(const dsi_matmul_t_args *a) {
    const dsi_parts_type type = dsi_parts_type_of(a->w_dtype);
    const int64_t w_bytes = dsi_row_bytes(a->w_dtype, a->w_stride);
    const int64_t pieces = (a->k + DSI_BLOCK_VALUES_MAX - 1) / DSI_BLOCK_VALUES_MAX *
                           ((a->n1 - a->n0 + DSI_ROWS_T_N - 1) / DSI_ROWS_T_N);
    const uintptr_t end = (uintptr_t)a->next + (uintptr_t)a->next_bytes;
    uintptr_t next = (uintptr_t)a->next;
    float w[DSI_ROWS_T_N][DSI_BLOCK_VALUES_MAX];
    for (int64_t i = 0; i < a->m; i++)
        memset(a->y + i * a->y_stride, 0, (size_t)a->k * sizeof *a->y);
    for (int64_t j = 0; j < a->k; j += DSI_BLOCK_VALUES_MAX) {
        const int64_t left = a->k - j;
        const int64_t columns = left < DSI_BLOCK_VALUES_MAX ? left : DSI_BLOCK_VALUES_MAX;
        for (int64_t n = a->n0; n < a->n1; n += DSI_ROWS_T_N) {
            const int64_t rows = a->n1 - n < DSI_ROWS_T_N ? a->n1 - n : DSI_ROWS_T_N;
            for (int64_t b = 0; b <= a->next_bytes / 64 / pieces && next < end; b++, next += 64)
                _mm_prefetch((const char *)next, _MM_HINT_T1);
            for (int64_t r = 0; r < rows; r++)
                dsi_parts_decode(&type, a->w + (n + r) * w_bytes + dsi_row_bytes(a->w_dtype, j),
                                 columns, true, w[r]);
            for (int64_t i = 0; i < a->m; i++)
                dsi_rows_t_add(a->x + i * a->x_stride + n - a->n0, w, rows, columns,
                               a->y + i * a->y_stride + j);
        }
    }
}

#endif
