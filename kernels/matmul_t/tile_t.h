/* tile_t.h: the loop of every vector matmul_t; a chunk_<isa>.h included before says what a vector
 * is.
 *
 * A tile is DSI_TILE_T_M rows of x times DSI_TILE_T_J vectors of columns whose sums stay in
 * registers while n runs upwards: y = fma(w, x * scale, y), the product x * scale rounded first. */
#ifndef DSI_KERNELS_MATMUL_T_TILE_T_H
#define DSI_KERNELS_MATMUL_T_TILE_T_H

#include "../formats.h"
#include "../kernels.h"

enum { DSI_TILE_T_M = 4, DSI_TILE_T_COLUMNS = DSI_TILE_T_J * DSI_CHUNK };

DSI_INLINE int64_t dsi_t_min(int64_t a, int64_t b) { return a < b ? a : b; }

DSI_INLINE dsi_chunk dsi_t_load(dsi_dtype w, const uint8_t *at, int64_t count) {
    return w == DSI_DTYPE_E4M3 ? dsi_chunk_e4m3_nan(at, count) : dsi_chunk_load(w, at, count);
}

/* The multiplier of w[n][j]: one for DSI_CHUNK columns at least. */
DSI_INLINE float dsi_t_scale(const dsi_matmul_t_args *a, dsi_dtype w, int64_t n, int64_t j) {
    if (w == DSI_DTYPE_E4M3) /* dsi_chunk_e4m3_nan decodes to value * 2^-8 */
        return 256.0f * dsi_load_f32(a->scale, n / DSI_BLOCK * a->scale_stride + j / DSI_BLOCK);
    return dsi_load_scale(a->scale_dtype, a->scale,
                          n / a->group_n * a->scale_stride + j / a->group_k);
}

/* Columns [j, j + columns) of `rows` (a constant) rows of y from i on. Of E4M3 the columns lie in
 * one scale block: 128 is a multiple of DSI_TILE_T_COLUMNS. */
DSI_INLINE void dsi_tile_t_run(const dsi_matmul_t_args *a, int64_t i, int rows, int64_t j,
                               int64_t columns, dsi_dtype w) {
    const bool groups = w == DSI_DTYPE_I8 || w == DSI_DTYPE_I4;
    dsi_sum y[DSI_TILE_T_M][DSI_TILE_T_J];
    DSI_UNROLL
    for (int r = 0; r < rows; r++) {
        DSI_UNROLL
        for (int v = 0; v < DSI_TILE_T_J; v++) y[r][v] = dsi_sum_zero();
    }
    for (int64_t n = a->n0; n < a->n1; n++) {
        const uint8_t *row = a->w + dsi_row_bytes(w, n * a->w_stride + j);
        float scale[DSI_TILE_T_J] = {1.0f};
        dsi_chunk weights[DSI_TILE_T_J];
        if (w == DSI_DTYPE_E4M3) scale[0] = dsi_t_scale(a, w, n, j);
        DSI_UNROLL
        for (int v = 0; groups && v < DSI_TILE_T_J; v++)
            if (columns > v * DSI_CHUNK) scale[v] = dsi_t_scale(a, w, n, j + v * DSI_CHUNK);
        if (columns >= DSI_TILE_T_COLUMNS) {
            DSI_UNROLL
            for (int v = 0; v < DSI_TILE_T_J; v++)
                weights[v] = dsi_t_load(w, row + dsi_row_bytes(w, v * DSI_CHUNK), DSI_CHUNK);
        } else {
            DSI_UNROLL
            for (int v = 0; v < DSI_TILE_T_J; v++) {
                int64_t count = columns - v * DSI_CHUNK;
                weights[v] = count > 0 ? dsi_t_load(w, row + dsi_row_bytes(w, v * DSI_CHUNK), count)
                                       : dsi_sum_zero();
            }
        }
        DSI_UNROLL
        for (int r = 0; r < rows; r++) {
            float x = a->x[(i + r) * a->x_stride + n - a->n0];
            if (w == DSI_DTYPE_E4M3) x *= scale[0];
            DSI_UNROLL
            for (int v = 0; v < DSI_TILE_T_J; v++)
                y[r][v] = dsi_sum_add_scaled(y[r][v], groups ? x * scale[v] : x, weights[v]);
        }
    }
    DSI_UNROLL
    for (int r = 0; r < rows; r++) {
        DSI_UNROLL
        for (int v = 0; v < DSI_TILE_T_J; v++)
            if (columns > v * DSI_CHUNK)
                dsi_sum_store_some(a->y + (i + r) * a->y_stride + j + v * DSI_CHUNK, y[r][v],
                                   columns - v * DSI_CHUNK);
    }
}

/* The matmul_t of weights of type w, a constant. */
DSI_INLINE void dsi_matmul_t_tiles(const dsi_matmul_t_args *a, dsi_dtype w) {
    for (int64_t j = 0; j < a->k; j += DSI_TILE_T_COLUMNS) {
        int64_t columns = dsi_t_min(DSI_TILE_T_COLUMNS, a->k - j), i = 0;
        for (; i + DSI_TILE_T_M <= a->m; i += DSI_TILE_T_M)
            dsi_tile_t_run(a, i, DSI_TILE_T_M, j, columns, w);
        for (; i < a->m; i++) dsi_tile_t_run(a, i, 1, j, columns, w);
    }
}

#endif
