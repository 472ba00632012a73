/* rows.h: products with rows of blocks as f32, for CPUs without BF16 instructions and for
 * activations of f32. A chunk_<isa>.h comes before.
 *
 * Few activation rows: four weight rows are taken apart 256 columns at a time and become weights in
 * registers. Many: panels are decoded into scratch as for other types. The order along K is that of
 * tile.h either way: the bits are the same. */
#ifndef DSI_KERNELS_BLOCKS_ROWS_H
#define DSI_KERNELS_BLOCKS_ROWS_H

#include "../matmul/tile.h"
#include "parts.h"

enum {
    DSI_PARTS_TILES =
        DSI_TILE_M > 4 ? 2 : 4, /* of activation rows for which blocks are read once */
    DSI_PARTS_M = DSI_PARTS_TILES * DSI_TILE_M
};

/* part += the products of a group: of the columns from c on with those of x from `at` on. Weight
 * row after weight row, with the activations in registers: loads are what few rows have too many
 * of. */
DSI_INLINE void dsi_rows_group(const dsi_block_parts parts[DSI_TILE_N],
                               const uint8_t *const x[DSI_TILE_M], int64_t at, int64_t c, int rows,
                               dsi_dtype x_dtype, int group, bool has_min,
                               dsi_sum part[DSI_TILE_M][DSI_TILE_N]) {
    dsi_chunk activations[DSI_TILE_M][32 / DSI_CHUNK];
    DSI_UNROLL
    for (int i = 0; i < rows; i++) {
        DSI_UNROLL
        for (int s = 0; s < group / DSI_CHUNK; s++) {
            const int64_t byte = (at + s * DSI_CHUNK) * dsi_element_bytes(x_dtype);
            activations[i][s] = dsi_chunk_load(x_dtype, x[i] + byte, DSI_CHUNK);
        }
    }
    DSI_UNROLL
    for (int r = 0; r < DSI_TILE_N; r++) {
        dsi_parts_group by = dsi_parts_group_of(&parts[r], c / group, has_min);
        __asm__("" : "+v"(by.scale)); /* loaded once */
        if (has_min) __asm__("" : "+v"(by.min));
        DSI_UNROLL
        for (int s = 0; s < group / DSI_CHUNK; s++) {
            const dsi_chunk w = dsi_parts_chunk(&parts[r], c + s * DSI_CHUNK, by, has_min);
            DSI_UNROLL
            for (int i = 0; i < rows; i++)
                part[i][r] = dsi_sum_dot(part[i][r], w, activations[i][s]);
        }
    }
}

/* Adds the products of `columns` (at most 256) columns from k on to the totals of `rows` (a
 * constant) activation rows. */
DSI_INLINE void dsi_rows_tile(const dsi_block_parts parts[DSI_TILE_N],
                              const uint8_t *const x[DSI_TILE_M], int64_t k, int64_t columns,
                              int rows, dsi_dtype x_dtype, int group, bool has_min, float *total) {
    for (int64_t c = 0; c < columns;) {
        const int64_t end = dsi_min(columns, c + DSI_BLOCK);
        dsi_sum part[DSI_TILE_M][DSI_TILE_N];
        DSI_UNROLL
        for (int i = 0; i < rows; i++) {
            DSI_UNROLL
            for (int r = 0; r < DSI_TILE_N; r++) part[i][r] = dsi_sum_zero();
        }
        for (; c < end; c += group)
            dsi_rows_group(parts, x, k + c, c, rows, x_dtype, group, has_min, part);
        __asm__ volatile("" ::: "memory"); /* totals stay in memory, as in tile.h */
        DSI_UNROLL
        for (int i = 0; i < rows; i++) {
            DSI_UNROLL
            for (int r = 0; r < DSI_TILE_N; r++) {
                float *at = total + (i * DSI_TILE_N + r) * DSI_LANES;
                dsi_sum_store(at, dsi_sum_add(dsi_sum_load(at), part[i][r]));
            }
        }
    }
}

/* x[] is padded, so 3 rows may run as 4. */
DSI_INLINE void dsi_rows_tile_rows(const dsi_block_parts parts[DSI_TILE_N], const dsi_tile *t,
                                   int64_t k, int64_t columns, int64_t rows, dsi_dtype x, int group,
                                   bool has_min) {
    if (rows == 1)
        dsi_rows_tile(parts, t->x, k, columns, 1, x, group, has_min, t->total);
    else if (rows == 2)
        dsi_rows_tile(parts, t->x, k, columns, 2, x, group, has_min, t->total);
    else if (rows <= 4 && DSI_TILE_M > 4)
        dsi_rows_tile(parts, t->x, k, columns, 4, x, group, has_min, t->total);
    else
        dsi_rows_tile(parts, t->x, k, columns, DSI_TILE_M, x, group, has_min, t->total);
}

/* Activation rows [i0, i1) of a call, at most DSI_PARTS_M, and their totals. */
typedef struct dsi_rows_some {
    int64_t i0, i1, tiles;
    dsi_tile tile[DSI_PARTS_TILES];
    _Alignas(64) float total[DSI_PARTS_TILES * DSI_TILE_FLOATS];
} dsi_rows_some;

DSI_INLINE void dsi_rows_set(dsi_rows_some *s, const dsi_matmul_args *a, int64_t i0, dsi_dtype x) {
    s->i0 = i0, s->i1 = dsi_min(a->m, i0 + DSI_PARTS_M);
    s->tiles = (s->i1 - i0 + DSI_TILE_M - 1) / DSI_TILE_M;
    for (int64_t j = 0; j < s->tiles; j++) {
        s->tile[j].total = s->total + j * DSI_TILE_FLOATS;
        dsi_tile_set_x(&s->tile[j], a, i0 + j * DSI_TILE_M, 0, x);
    }
}

/* Weight rows n to n + 3. */
DSI_INLINE void dsi_rows_direct(const dsi_matmul_args *a, const dsi_parts_type *type,
                                dsi_rows_some *s, int64_t n, dsi_dtype x, int group, bool has_min) {
    dsi_block_parts parts[DSI_TILE_N];
    const int64_t w_bytes = dsi_row_bytes(a->w_dtype, a->w_stride), m = s->i1 - s->i0;
    uintptr_t ahead = (uintptr_t)a->w + (uintptr_t)((n + DSI_TILE_N) * w_bytes);
    if (m == 1) /* the others are not used */
        memset(s->total, 0, DSI_TILE_N * DSI_LANES * sizeof *s->total);
    else
        memset(s->total, 0, (size_t)(s->tiles * DSI_TILE_FLOATS) * sizeof *s->total);
    for (int64_t k = 0; k < a->k; k += DSI_BLOCK_VALUES_MAX) {
        const int64_t columns = dsi_min(DSI_BLOCK_VALUES_MAX, a->k - k);
        const int64_t bytes = DSI_TILE_N * (columns / type->shape.values) * type->shape.bytes;
        /* In the order of memory, four rows ahead. */
        for (int64_t b = 0; b < bytes; b += 64)
            _mm_prefetch((const char *)(ahead + (uintptr_t)b), _MM_HINT_T0);
        ahead += (uintptr_t)bytes;
        for (int64_t r = 0; r < DSI_TILE_N; r++)
            dsi_parts_read(type, a->w + dsi_min(n + r, a->n1 - 1) * w_bytes, k, columns, &parts[r]);
        for (int64_t j = 0; j < s->tiles; j++)
            dsi_rows_tile_rows(parts, &s->tile[j], k, columns, m - j * DSI_TILE_M, x, group,
                               has_min);
    }
    for (int64_t j = 0; j < s->tiles; j++)
        dsi_tile_finish(a, s->tile[j].total, s->i0 + j * DSI_TILE_M,
                        dsi_min(DSI_TILE_M, m - j * DSI_TILE_M), n);
}

DSI_INLINE void dsi_rows_all(const dsi_matmul_args *a, const dsi_parts_type *type, dsi_dtype x,
                             int group, bool has_min) {
    dsi_rows_some s;
    for (int64_t i = 0; i < a->m; i += DSI_PARTS_M) {
        dsi_rows_set(&s, a, i, x);
        for (int64_t n = a->n0; n < a->n1; n += DSI_TILE_N)
            dsi_rows_direct(a, type, &s, n, x, group, has_min);
    }
}

/* As dsi_panel_decode. */
DSI_INLINE void dsi_rows_panel(const dsi_matmul_args *a, int64_t n, int64_t n_rows, int64_t k,
                               int64_t columns, dsi_dtype w, int64_t block, uint8_t *panel,
                               float *scales) {
    const dsi_parts_type type = dsi_parts_type_of(a->w_dtype);
    const int64_t w_bytes = dsi_row_bytes(a->w_dtype, a->w_stride);
    const int64_t ahead = dsi_row_bytes(a->w_dtype, DSI_PANEL_K);
    (void)w, (void)block, (void)scales;
    for (int64_t r = 0; r < n_rows; r++) {
        const uint8_t *from = a->w + (n + r) * w_bytes + dsi_row_bytes(a->w_dtype, k);
        for (int64_t b = 0; b < ahead; b += 64)
            _mm_prefetch((const char *)((uintptr_t)from + (uintptr_t)(ahead + b)), _MM_HINT_T1);
        dsi_parts_decode(&type, from, columns, false, (float *)(void *)panel + r * DSI_PANEL_K);
    }
}

/* Activations of type x, a constant. */
DSI_INLINE void dsi_rows_matmul(const dsi_matmul_args *a, dsi_dtype x) {
    const dsi_parts_type type = dsi_parts_type_of(a->w_dtype);
    if (a->m > DSI_PARTS_M && a->k >= DSI_PANEL_K)
        dsi_matmul_panels(a, DSI_DTYPE_F32, x, DSI_BLOCK, dsi_rows_panel);
    else if (type.shape.group == 16 && type.shape.has_min)
        dsi_rows_all(a, &type, x, 16, true);
    else if (type.shape.group == 16)
        dsi_rows_all(a, &type, x, 16, false);
    else if (type.shape.has_min)
        dsi_rows_all(a, &type, x, 32, true);
    else
        dsi_rows_all(a, &type, x, 32, false);
}

#endif
