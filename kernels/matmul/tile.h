/* tile.h: the loops of every vector matmul; a chunk_<isa>.h included before says what a vector is.
 *
 * A tile is DSI_TILE_N weight rows times up to DSI_TILE_M activation rows. The order along K, the
 * same in every tile: chunks of a 128-block are added into a zeroed vector `part`, parts times the
 * block's scale into the vector `total`, and at the end the lanes of `total` as a fixed tree.
 *
 * Few activation rows: weights are decoded in registers, straight from the file's bytes. Many: a
 * panel of DSI_PANEL_N rows x DSI_PANEL_K columns is decoded into scratch once for all of them;
 * totals wait in scratch between two panels of a row. Both decode to the same numbers and add in
 * the same order, so the answers have the same bits. */
#ifndef DSI_KERNELS_MATMUL_TILE_H
#define DSI_KERNELS_MATMUL_TILE_H

#include "../formats.h"
#include "../kernels.h"
#include <string.h>

enum {
    DSI_TILE_N = 4,
    DSI_TILE_FLOATS = DSI_TILE_M * DSI_TILE_N * DSI_LANES,
    DSI_PANEL_N = 16,
    DSI_PANEL_K = 512,
    DSI_SMALL_BLOCK = 32, /* columns of a block where fewer than 128 share a scale */
    DSI_PANEL_BLOCKS = DSI_PANEL_K / DSI_SMALL_BLOCK,
    DSI_PANEL_M_MAX = 192,    /* rows whose totals and columns of x stay in a cache of 1 MB */
    DSI_PREFETCH_BYTES = 1024 /* distance ahead in each of the weight rows being read */
};

typedef struct dsi_tile {
    const uint8_t *w[DSI_TILE_N];     /* from the first column of this call on */
    const uint8_t *scale[DSI_TILE_N]; /* of that column on; weights with scales only */
    dsi_dtype scale_dtype;
    int64_t group; /* columns that share a scale */
    const uint8_t *x[DSI_TILE_M];
    float *total; /* [x row][w row][lane] */
} dsi_tile;

DSI_INLINE int64_t dsi_min(int64_t a, int64_t b) { return a < b ? a : b; }
DSI_INLINE bool dsi_is_scaled(dsi_dtype w) {
    return w == DSI_DTYPE_E4M3 || w == DSI_DTYPE_I8 || w == DSI_DTYPE_I4;
}

/* part += the products of `count` columns from column k on. */
DSI_INLINE void dsi_tile_step(const dsi_tile *t, int64_t k, int64_t count, int rows, dsi_dtype w,
                              dsi_dtype x, dsi_sum part[DSI_TILE_M][DSI_TILE_N]) {
    dsi_chunk weights[DSI_TILE_N];
    DSI_UNROLL
    for (int r = 0; r < DSI_TILE_N; r++)
        weights[r] = dsi_chunk_load(w, t->w[r] + dsi_row_bytes(w, k), count);
    DSI_UNROLL
    for (int i = 0; i < rows; i++) {
        dsi_chunk activations = dsi_chunk_load(x, t->x[i] + k * dsi_element_bytes(x), count);
        DSI_UNROLL
        for (int r = 0; r < DSI_TILE_N; r++)
            part[i][r] = dsi_sum_dot(part[i][r], weights[r], activations);
    }
}

/* Adds k columns to the totals of `rows` activation rows (a constant). next_tile is the distance in
 * bytes from the end of a weight row to the row that the next tile will read in its place; 0: the
 * weights are a panel in cache. block: columns whose products are summed before they are scaled.
 * scaled: the weights have scales. */
DSI_INLINE void dsi_tile_run(const dsi_tile *tile, int64_t k, int rows, dsi_dtype w, dsi_dtype x,
                             int64_t block, bool scaled, int64_t next_tile) {
    const dsi_tile t = *tile;
    for (int64_t kb = 0; kb < k; kb += block) {
        int64_t left = dsi_min(block, k - kb), c = 0;
        if (next_tile != 0) {
            int64_t ahead = dsi_row_bytes(w, kb) + DSI_PREFETCH_BYTES;
            if (ahead >= dsi_row_bytes(w, k)) ahead += next_tile;
            for (int r = 0; r < DSI_TILE_N; r++)
                for (int64_t b = 0; b < dsi_row_bytes(w, block); b += 64)
                    _mm_prefetch((const char *)((uintptr_t)t.w[r] + (uintptr_t)(ahead + b)),
                                 _MM_HINT_T0);
        }
        dsi_sum part[DSI_TILE_M][DSI_TILE_N];
        DSI_UNROLL
        for (int i = 0; i < rows; i++) {
            DSI_UNROLL
            for (int r = 0; r < DSI_TILE_N; r++) part[i][r] = dsi_sum_zero();
        }
        if (left == block && block >= DSI_CHUNK) {
            for (; c < block; c += DSI_CHUNK)
                dsi_tile_step(&t, kb + c, DSI_CHUNK, rows, w, x, part);
        } else {
            for (; c < left; c += DSI_CHUNK)
                dsi_tile_step(&t, kb + c, dsi_min(DSI_CHUNK, left - c), rows, w, x, part);
        }
        /* Totals live in memory between blocks: held in registers they would push out parts. */
        __asm__ volatile("" ::: "memory");
        DSI_UNROLL
        for (int r = 0; r < DSI_TILE_N; r++) {
            float scale = 1.0f;
            if (scaled)
                scale = next_tile == 0 || w == DSI_DTYPE_E4M3
                            ? dsi_load_f32(t.scale[r], kb / block)
                            : dsi_load_scale(t.scale_dtype, t.scale[r], kb / t.group);
            if (w == DSI_DTYPE_E4M3) scale = dsi_e4m3_scale(t.w[r] + kb, left, scale);
            DSI_UNROLL
            for (int i = 0; i < rows; i++) {
                float *at = t.total + (i * DSI_TILE_N + r) * DSI_LANES;
                dsi_sum total = dsi_sum_load(at);
                dsi_sum_store(at, scaled ? dsi_sum_add_scaled(total, scale, part[i][r])
                                         : dsi_sum_add(total, part[i][r]));
            }
        }
    }
}

/* dsi_tile_run for a number of rows not known beforehand; x[] is padded, so 3 may run as 4. */
DSI_INLINE void dsi_tile_run_rows(const dsi_tile *t, int64_t k, int64_t rows, dsi_dtype w,
                                  dsi_dtype x, int64_t block, int64_t next_tile) {
    const bool scaled = dsi_is_scaled(w);
    if (rows == 1)
        dsi_tile_run(t, k, 1, w, x, block, scaled, next_tile);
    else if (rows == 2)
        dsi_tile_run(t, k, 2, w, x, block, scaled, next_tile);
    else if (rows <= 4 && DSI_TILE_M > 4)
        dsi_tile_run(t, k, 4, w, x, block, scaled, next_tile);
    else
        dsi_tile_run(t, k, DSI_TILE_M, w, x, block, scaled, next_tile);
}

/* Points x[] at column k of rows i.. of the call and returns how many of them are rows of it; the
 * others repeat the last row. */
DSI_INLINE int64_t dsi_tile_set_x(dsi_tile *t, const dsi_matmul_args *a, int64_t i, int64_t k,
                                  dsi_dtype x) {
    for (int64_t j = 0; j < DSI_TILE_M; j++) {
        int64_t row = dsi_min(i + j, a->m - 1);
        if (a->x_rows) row = a->x_rows[row];
        t->x[j] = (const uint8_t *)a->x + (row * a->x_stride + k) * dsi_element_bytes(x);
    }
    return dsi_min(DSI_TILE_M, a->m - i);
}

/* Writes the outputs of `rows` activation rows from i on, weight rows from n on. */
DSI_INLINE void dsi_tile_finish(const dsi_matmul_args *a, const float *total, int64_t i,
                                int64_t rows, int64_t n) {
    for (int64_t j = 0; j < rows; j++)
        for (int64_t r = 0; r < dsi_min(DSI_TILE_N, a->n1 - n); r++)
            a->y[(i + j) * a->y_stride + n + r - a->n0] =
                dsi_sum_lanes(dsi_sum_load(total + (j * DSI_TILE_N + r) * DSI_LANES));
}

/* The scales of a weight row, from column 0 on. */
DSI_INLINE const uint8_t *dsi_tile_scales(const dsi_matmul_args *a, int64_t row, dsi_dtype w) {
    const uint8_t *scale = a->scale;
    if (w == DSI_DTYPE_E4M3) return scale + row / DSI_BLOCK * a->scale_stride * 4;
    return scale + row / a->group_n * a->scale_stride * dsi_element_bytes(a->scale_dtype);
}

DSI_INLINE void dsi_matmul_direct(const dsi_matmul_args *a, dsi_dtype w, dsi_dtype x,
                                  int64_t block) {
    _Alignas(64) float total[DSI_TILE_FLOATS];
    const int64_t next_tile = dsi_row_bytes(w, DSI_TILE_N * a->w_stride) - dsi_row_bytes(w, a->k);
    for (int64_t n = a->n0; n < a->n1; n += DSI_TILE_N) {
        dsi_tile t = {.total = total, .scale_dtype = a->scale_dtype, .group = a->group_k};
        for (int64_t r = 0; r < DSI_TILE_N; r++) {
            int64_t row = dsi_min(n + r, a->n1 - 1);
            t.w[r] = a->w + dsi_row_bytes(w, row * a->w_stride);
            if (dsi_is_scaled(w)) t.scale[r] = dsi_tile_scales(a, row, w);
        }
        for (int64_t i = 0; i < a->m; i += DSI_TILE_M) {
            int64_t rows = dsi_tile_set_x(&t, a, i, 0, x);
            memset(total, 0, sizeof total);
            dsi_tile_run_rows(&t, a->k, rows, w, x, block, next_tile);
            dsi_tile_finish(a, total, i, rows, n);
        }
    }
}

/* Decodes columns [k, k + columns) of `n_rows` weight rows from n on; scales [row][block]. */
typedef void (*dsi_panel_decode_fn)(const dsi_matmul_args *a, int64_t n, int64_t n_rows, int64_t k,
                                    int64_t columns, dsi_dtype w, int64_t block, uint8_t *panel,
                                    float *scales);

DSI_INLINE void dsi_panel_decode(const dsi_matmul_args *a, int64_t n, int64_t n_rows, int64_t k,
                                 int64_t columns, dsi_dtype w, int64_t block, uint8_t *panel,
                                 float *scales) {
    for (int64_t r = 0; r < n_rows; r++) {
        const uint8_t *from = a->w + dsi_row_bytes(w, (n + r) * a->w_stride + k);
        uint8_t *to = panel + r * DSI_PANEL_K * dsi_element_bytes(DSI_PANEL_DTYPE);
        int64_t c = 0;
        for (int64_t b = 0; b < dsi_row_bytes(w, DSI_PANEL_K); b += 64)
            _mm_prefetch(
                (const char *)((uintptr_t)from + (uintptr_t)(dsi_row_bytes(w, DSI_PANEL_K) + b)),
                _MM_HINT_T1);
        for (; c + DSI_CHUNK <= columns; c += DSI_CHUNK)
            dsi_chunk_store(to + c * dsi_element_bytes(DSI_PANEL_DTYPE),
                            dsi_chunk_load(w, from + dsi_row_bytes(w, c), DSI_CHUNK));
        if (c < columns)
            dsi_chunk_store(to + c * dsi_element_bytes(DSI_PANEL_DTYPE),
                            dsi_chunk_load(w, from + dsi_row_bytes(w, c), columns - c));
        if (!dsi_is_scaled(w)) continue;
        const uint8_t *scale = dsi_tile_scales(a, n + r, w);
        for (int64_t kb = 0; kb < columns; kb += block)
            scales[r * DSI_PANEL_BLOCKS + kb / block] =
                w == DSI_DTYPE_E4M3 ? dsi_e4m3_scale(from + kb, dsi_min(DSI_BLOCK, columns - kb),
                                                     dsi_load_f32(scale, (k + kb) / DSI_BLOCK))
                                    : dsi_load_scale(a->scale_dtype, scale, (k + kb) / a->group_k);
    }
}

/* Outputs of weight rows [n, n + n_rows) and activation rows [m0, m1): panel after panel along K.
 * totals: [tile of activation rows][tile of weight rows][DSI_TILE_FLOATS]. */
DSI_INLINE void dsi_matmul_panel(const dsi_matmul_args *a, int64_t n, int64_t n_rows, int64_t m0,
                                 int64_t m1, dsi_dtype w, dsi_dtype x, int64_t block,
                                 dsi_panel_decode_fn decode, uint8_t *panel, float *totals) {
    float scales[DSI_PANEL_N * DSI_PANEL_BLOCKS];
    const int64_t tiles_m = (m1 - m0 + DSI_TILE_M - 1) / DSI_TILE_M;
    const int64_t tiles_n = (n_rows + DSI_TILE_N - 1) / DSI_TILE_N;
    memset(totals, 0, (size_t)(tiles_m * tiles_n * DSI_TILE_FLOATS) * sizeof *totals);
    for (int64_t k = 0; k < a->k; k += DSI_PANEL_K) {
        int64_t columns = dsi_min(DSI_PANEL_K, a->k - k);
        decode(a, n, n_rows, k, columns, w, block, panel, scales);
        for (int64_t i = 0; i < tiles_m; i++) {
            dsi_tile t;
            dsi_tile_set_x(&t, a, m0 + i * DSI_TILE_M, k, x);
            for (int64_t j = 0; j < tiles_n; j++) {
                for (int64_t r = 0; r < DSI_TILE_N; r++) {
                    int64_t row = dsi_min(j * DSI_TILE_N + r, n_rows - 1);
                    t.w[r] = panel + row * DSI_PANEL_K * dsi_element_bytes(DSI_PANEL_DTYPE);
                    t.scale[r] = (const uint8_t *)(scales + row * DSI_PANEL_BLOCKS);
                }
                t.total = totals + (i * tiles_n + j) * DSI_TILE_FLOATS;
                dsi_tile_run(&t, columns, DSI_TILE_M, DSI_PANEL_DTYPE, x, block, dsi_is_scaled(w),
                             0);
            }
        }
    }
    for (int64_t i = 0; i < tiles_m; i++)
        for (int64_t j = 0; j < tiles_n; j++)
            dsi_tile_finish(a, totals + (i * tiles_n + j) * DSI_TILE_FLOATS, m0 + i * DSI_TILE_M,
                            dsi_min(DSI_TILE_M, m1 - m0 - i * DSI_TILE_M), n + j * DSI_TILE_N);
}

DSI_INLINE void dsi_matmul_panels(const dsi_matmul_args *a, dsi_dtype w, dsi_dtype x, int64_t block,
                                  dsi_panel_decode_fn decode) {
    /* Half of the scratch at most is panel; totals of one activation row take row_bytes. */
    const int64_t panel_bytes = DSI_PANEL_N * DSI_PANEL_K * dsi_element_bytes(DSI_PANEL_DTYPE);
    const int64_t row_bytes = DSI_PANEL_N * DSI_LANES * (int64_t)sizeof(float);
    int64_t m_step = (dsi_matmul_scratch_bytes(a->k) - panel_bytes) / row_bytes;
    m_step = dsi_min(m_step, DSI_PANEL_M_MAX) / DSI_TILE_M * DSI_TILE_M;
    uint8_t *panel = a->scratch;
    float *totals = (float *)(void *)(panel + panel_bytes);
    for (int64_t n = a->n0; n < a->n1; n += DSI_PANEL_N)
        for (int64_t i = 0; i < a->m; i += m_step)
            dsi_matmul_panel(a, n, dsi_min(DSI_PANEL_N, a->n1 - n), i, dsi_min(a->m, i + m_step), w,
                             x, block, decode, panel, totals);
}

DSI_INLINE void dsi_matmul_blocks(const dsi_matmul_args *a, dsi_dtype w, dsi_dtype x,
                                  int64_t block) {
    if (a->m <= DSI_DIRECT_M || a->k < DSI_PANEL_K)
        dsi_matmul_direct(a, w, x, block);
    else
        dsi_matmul_panels(a, w, x, block, dsi_panel_decode);
}

/* The matmul of weights of type w and activations of type x, both constants. */
DSI_INLINE void dsi_matmul_tiles(const dsi_matmul_args *a, dsi_dtype w, dsi_dtype x) {
    if ((w == DSI_DTYPE_I8 || w == DSI_DTYPE_I4) && a->group_k < DSI_BLOCK)
        dsi_matmul_blocks(a, w, x, DSI_SMALL_BLOCK);
    else
        dsi_matmul_blocks(a, w, x, DSI_BLOCK);
}

#endif
