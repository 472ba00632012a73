/* rows.h: products with rows of blocks that are decoded to f32 first and then multiplied by the
 * common tiles, for CPUs without BF16 instructions and for activations of f32. A chunk_<isa>.h
 * comes before; `decode` is the decode_blocks of the same instruction set. */
#ifndef DSI_KERNELS_BLOCKS_ROWS_H
#define DSI_KERNELS_BLOCKS_ROWS_H

#include "../matmul/tile.h"
#include "blocks.h"

enum { DSI_ROWS_N = 16 }; /* rows decoded at once: half of the scratch */

/* Activations of type x, a constant. */
DSI_INLINE void dsi_rows_matmul(const dsi_matmul_args *a, dsi_dtype x,
                                dsi_decode_blocks_fn decode) {
    const int64_t w_bytes = dsi_row_bytes(a->w_dtype, a->w_stride);
    dsi_matmul_args rows = *a;
    rows.w = a->scratch, rows.w_stride = a->k, rows.n0 = 0;
    for (int64_t n = a->n0; n < a->n1; n += rows.n1) {
        rows.n1 = dsi_min(DSI_ROWS_N, a->n1 - n);
        for (int64_t r = 0; r < rows.n1; r++)
            decode(a->w_dtype, a->w + (n + r) * w_bytes, (float *)a->scratch + r * a->k, a->k);
        rows.y = a->y + n - a->n0;
        dsi_matmul_direct(&rows, DSI_DTYPE_F32, x, DSI_BLOCK);
    }
}

#endif
