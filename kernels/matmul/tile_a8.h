/* tile_a8.h: the loops of matmul with activations of 8 bits on CPUs without VNNI; a chunk_<isa>.h
 * included before says what a vector is.
 *
 * Products of whole numbers are summed exactly in 32 bits: over all of K where each side has one
 * multiplier for the row, else over a block of columns; blocks are then scaled and added in
 * ascending order into a vector of f32, whose lanes are added as a fixed tree at the end. */
#ifndef DSI_KERNELS_MATMUL_TILE_A8_H
#define DSI_KERNELS_MATMUL_TILE_A8_H

#include "../formats.h"
#include "../kernels.h"

enum {
    DSI_A8_N = 4,          /* weight rows of a tile */
    DSI_A8_M = 4,          /* activation rows of a tile */
    DSI_A8_K_MAX = 1 << 16 /* columns whose products surely fit into 32 bits, of either sign */
};

typedef struct dsi_a8_tile {
    const dsi_matmul_args *a;
    const uint8_t *w[DSI_A8_N];
    const float *multiplier[DSI_A8_M];
    const uint8_t *x[DSI_A8_M];
    int64_t n, block;
    bool whole;
} dsi_a8_tile;

DSI_INLINE float dsi_a8_scale(const dsi_a8_tile *t, int64_t r, int64_t k) {
    const dsi_matmul_args *a = t->a;
    int64_t row = t->n + r < a->n1 ? t->n + r : a->n1 - 1;
    return dsi_load_scale(a->scale_dtype, a->scale,
                          row / a->group_n * a->scale_stride + k / a->group_k);
}

/* y of `rows` (a constant) activation rows from i on; those from `count` on are not written. */
DSI_INLINE void dsi_a8_run(const dsi_a8_tile *t, int64_t i, int rows, int64_t count, dsi_dtype w) {
    const dsi_matmul_args *a = t->a;
    const int64_t step = t->whole ? a->k : t->block;
    dsi_sum total[DSI_A8_M][DSI_A8_N];
    for (int j = 0; j < rows; j++)
        for (int r = 0; r < DSI_A8_N; r++) total[j][r] = dsi_sum_zero();
    for (int64_t kb = 0; kb < a->k; kb += step) {
        const int64_t end = a->k - kb < step ? a->k : kb + step;
        dsi_ints part[DSI_A8_M][DSI_A8_N];
        DSI_UNROLL
        for (int j = 0; j < rows; j++) {
            DSI_UNROLL
            for (int r = 0; r < DSI_A8_N; r++) part[j][r] = dsi_ints_zero();
        }
        for (int64_t k = kb; k < end; k += DSI_INTS) {
            dsi_ints weights[DSI_A8_N];
            DSI_UNROLL
            for (int r = 0; r < DSI_A8_N; r++)
                weights[r] = dsi_ints_load(w, t->w[r] + dsi_row_bytes(w, k), end - k);
            DSI_UNROLL
            for (int j = 0; j < rows; j++) {
                dsi_ints x = dsi_ints_load(DSI_DTYPE_I8, t->x[j] + k, DSI_INTS);
                DSI_UNROLL
                for (int r = 0; r < DSI_A8_N; r++)
                    part[j][r] = dsi_ints_dot(part[j][r], weights[r], x);
            }
        }
        DSI_UNROLL
        for (int r = 0; r < DSI_A8_N; r++) {
            float scale = dsi_a8_scale(t, r, kb);
            DSI_UNROLL
            for (int j = 0; j < rows; j++) {
                float factor = scale * t->multiplier[j][kb / DSI_BLOCK];
                if (!t->whole)
                    total[j][r] =
                        dsi_sum_add_scaled(total[j][r], factor, dsi_ints_float(part[j][r]));
                else if (j < count && t->n + r < a->n1)
                    a->y[(i + j) * a->y_stride + t->n + r - a->n0] =
                        (float)dsi_ints_lanes(part[j][r]) * factor;
            }
        }
    }
    if (t->whole && a->k > 0) return;
    for (int j = 0; j < rows && j < count; j++)
        for (int r = 0; r < DSI_A8_N && t->n + r < a->n1; r++)
            a->y[(i + j) * a->y_stride + t->n + r - a->n0] = dsi_sum_lanes(total[j][r]);
}

/* The matmul of weights of type w (a constant) and activations of 8 bits. */
DSI_INLINE void dsi_matmul_a8_tiles(const dsi_matmul_args *a, dsi_dtype w) {
    dsi_a8_tile t = {.a = a, .block = a->group_k < DSI_BLOCK ? DSI_A8_SUM : DSI_BLOCK};
    t.whole = a->group_k >= a->k && a->x_group >= a->k && a->k <= DSI_A8_K_MAX;
    for (t.n = a->n0; t.n < a->n1; t.n += DSI_A8_N) {
        for (int64_t r = 0; r < DSI_A8_N; r++) {
            int64_t row = t.n + r < a->n1 ? t.n + r : a->n1 - 1;
            t.w[r] = a->w + dsi_row_bytes(w, row * a->w_stride);
        }
        for (int64_t i = 0; i < a->m; i += DSI_A8_M) {
            for (int64_t j = 0; j < DSI_A8_M; j++) {
                int64_t row = i + j < a->m ? i + j : a->m - 1;
                if (a->x_rows) row = a->x_rows[row];
                t.x[j] = (const uint8_t *)a->x + row * a->x_stride;
                t.multiplier[j] = dsi_a8_multipliers(t.x[j], a->k);
            }
            if (a->m - i == 1)
                dsi_a8_run(&t, i, 1, 1, w);
            else
                dsi_a8_run(&t, i, DSI_A8_M, a->m - i, w);
        }
    }
}

#endif
