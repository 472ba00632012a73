/* quad.h: matmul in the order of quads, for CPUs with 512-bit dot-product instructions; a
 * quad_<isa>.h included before says how weights are decoded.
 *
 * A quad is four weight rows side by side in a vector: 16 bytes of one row in each 128-bit lane,
 * against 16 bytes of an activation row in all four lanes. A running sum then holds four outputs in
 * four phases of K each. The order along K, the same everywhere: groups of 16 bytes (8 columns of
 * bf16) are added into a zeroed vector `part`; parts of a block of columns, times the scale of the
 * block, into the vector `total`; at the end the four phases of an output as a fixed tree. A block
 * of 128 columns costs one multiply-add per 16 dot products, where a sum over the columns of one
 * row would cost one per 4.
 *
 * Up to four activation rows: weights are decoded in registers, straight from the file's bytes:
 * four row loads, a transpose of 128-bit lanes. More: a panel of 16 weight rows is decoded into
 * scratch once for all of them, and totals wait there between two panels of a row. Both decode to
 * the same numbers and add in the same order, so the answers have the same bits. */
#ifndef DSI_KERNELS_MATMUL_QUAD_H
#define DSI_KERNELS_MATMUL_QUAD_H

#include "../formats.h"
#include "../kernels.h"
#include "../simd.h"
#include <immintrin.h>
#include <string.h>

enum {
    DSI_QUAD_N = 4,      /* weight rows of a quad */
    DSI_QUAD_GROUP = 8,  /* columns of one row in a decoded vector: 16 bytes of bf16 */
    DSI_QUAD_SMALL = 32, /* columns of a block where fewer than 128 share a multiplier */
    DSI_PANEL_QUADS = 4, /* quads of a panel, and of a tile */
    DSI_PANEL_N = DSI_PANEL_QUADS * DSI_QUAD_N,
    DSI_PANEL_K = 512,        /* columns of a panel: 16 KB of bf16, a third of a cache of 48 */
    DSI_PANEL_K_FEW = 128,    /* for few rows: memory is read all the time, not in bursts */
    DSI_PANEL_M_FEW = 16,     /* up to this many */
    DSI_PANEL_M_MAX = 192,    /* rows whose totals and columns of x stay in a cache of 1 MB */
    DSI_X_CACHED = 384 << 10, /* bytes of x that stay in a cache from one panel to the next */
    DSI_TILE_M = 6,           /* 6 x 4 sums, 4 weights, 1 activation: 29 of 32 registers */
    DSI_DIRECT_M = 4          /* up to this many rows without a panel */
};

DSI_INLINE int64_t dsi_min(int64_t a, int64_t b) { return a < b ? a : b; }

/* Eight columns of an activation row in all four lanes; columns from `count` on are 0. */
DSI_INLINE __m512i dsi_quad_x(const uint8_t *at, int64_t count) {
    if (count >= DSI_QUAD_GROUP)
        return _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *)(const void *)at));
    return _mm512_broadcast_i32x4(_mm_maskz_loadu_epi16((__mmask8)((1u << count) - 1u), at));
}

DSI_INLINE const uint8_t *dsi_quad_x_row(const dsi_matmul_args *a, int64_t i) {
    return (const uint8_t *)a->x + (a->x_rows ? a->x_rows[i] : i) * a->x_stride * 2;
}

DSI_INLINE bool dsi_quad_is_scaled(dsi_dtype w) { return w != DSI_DTYPE_BF16; }
DSI_INLINE bool dsi_quad_is_whole(dsi_dtype w) { return w == DSI_DTYPE_I8 || w == DSI_DTYPE_I4; }

/* Where the multipliers of a quad of I8 or I4 weights lie. */
typedef struct dsi_quad_scales {
    const uint8_t *row[DSI_QUAD_N]; /* the last row's beyond it */
    dsi_dtype dtype;
    int shift; /* 2^shift columns share one; 63: the row */
} dsi_quad_scales;

DSI_INLINE dsi_quad_scales dsi_quad_scales_of(const dsi_matmul_args *a, int64_t n) {
    dsi_quad_scales s = {.dtype = a->scale_dtype, .shift = 63};
    if (a->group_k < a->k) s.shift = __builtin_ctzll((unsigned long long)a->group_k);
    const int64_t bytes = a->scale_stride * dsi_element_bytes(a->scale_dtype);
    for (int64_t r = 0; r < DSI_QUAD_N; r++)
        s.row[r] = (const uint8_t *)a->scale + dsi_min(n + r, a->n1 - 1) / a->group_n * bytes;
    return s;
}

/* The lanes of weight row n + r: its multiplier at column k. */
DSI_INLINE __m512 dsi_quad_scale_whole(const dsi_quad_scales *s, int64_t k) {
    const __m512i lanes = _mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3);
    const int64_t b = k >> s->shift;
    __m128 scale;
    if (s->dtype == DSI_DTYPE_BF16)
        scale = _mm_castsi128_ps(
            _mm_slli_epi32(_mm_setr_epi32(dsi_load_u16(s->row[0], b), dsi_load_u16(s->row[1], b),
                                          dsi_load_u16(s->row[2], b), dsi_load_u16(s->row[3], b)),
                           16));
    else
        scale = _mm_setr_ps(
            dsi_load_scale(s->dtype, s->row[0], b), dsi_load_scale(s->dtype, s->row[1], b),
            dsi_load_scale(s->dtype, s->row[2], b), dsi_load_scale(s->dtype, s->row[3], b));
    return _mm512_permutexvar_ps(lanes, _mm512_castps128_ps512(scale));
}

/* In lane r four BF16 multipliers of weight row n + r, those of column k and of the next three
 * groups. */
DSI_INLINE __m512 dsi_quad_scale_four(const dsi_quad_scales *s, int64_t k) {
    __m128i row[DSI_QUAD_N];
    DSI_UNROLL
    for (int r = 0; r < DSI_QUAD_N; r++)
        row[r] = _mm_loadl_epi64((const __m128i *)(const void *)(s->row[r] + (k >> s->shift) * 2));
    const __m256i all =
        _mm256_set_m128i(_mm_unpacklo_epi64(row[2], row[3]), _mm_unpacklo_epi64(row[0], row[1]));
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(all), 16));
}

/* The lanes of weight row n + r: its multiplier at column k; the last row's beyond it. */
DSI_INLINE __m512 dsi_quad_scale(const dsi_matmul_args *a, int64_t n, int64_t k) {
    const int64_t b = k / DSI_BLOCK;
    const int64_t last = dsi_min(n + DSI_QUAD_N, a->n1) - 1;
    __m512 scale = _mm512_set1_ps(dsi_load_f32(a->scale, n / DSI_BLOCK * a->scale_stride + b));
    if (n / DSI_BLOCK == last / DSI_BLOCK) return scale;
    const int64_t next = last / DSI_BLOCK, lanes = next * DSI_BLOCK - n; /* of the first scale */
    return _mm512_mask_blend_ps((__mmask16)(0xFFFFu << (4 * lanes)), scale,
                                _mm512_set1_ps(dsi_load_f32(a->scale, next * a->scale_stride + b)));
}

/* total += scale * part, the total in memory: held in registers totals would push out parts. */
DSI_INLINE void dsi_quad_add(float *at, __m512 scale, __m512 part, bool scaled) {
    __m512 total = _mm512_load_ps(at);
    _mm512_store_ps(at, scaled ? _mm512_fmadd_ps(scale, part, total) : _mm512_add_ps(total, part));
}

/* Writes y of `rows` activation rows from i on, weight rows from n on. total: [row][quad][16]. */
DSI_INLINE void dsi_quad_finish(const dsi_matmul_args *a, const float *total, int64_t i,
                                int64_t rows, int64_t n, int64_t quads) {
    const __m512i first = _mm512_setr_epi32(0, 4, 8, 12, 0, 4, 8, 12, 0, 4, 8, 12, 0, 4, 8, 12);
    for (int64_t j = 0; j < rows; j++)
        for (int64_t q = 0; q < quads; q++) {
            int64_t column = n + q * DSI_QUAD_N, count = dsi_min(DSI_QUAD_N, a->n1 - column);
            if (count <= 0) break;
            __m512 sum = _mm512_load_ps(total + (j * quads + q) * 16);
            sum = _mm512_add_ps(sum, _mm512_permute_ps(sum, 0x4E)); /* phases 0 + 2, 1 + 3 */
            sum = _mm512_add_ps(sum, _mm512_permute_ps(sum, 0xB1));
            sum = _mm512_permutexvar_ps(first, sum);
            /* A whole vector under a mask: of a quarter gcc 12 makes vextractf32x4, which faults on
             * masked addresses too. */
            _mm512_mask_storeu_ps(a->y + (i + j) * a->y_stride + column - a->n0,
                                  (__mmask16)((1u << count) - 1u), sum);
        }
}

/* ---- Few rows: weights decoded in registers -------------------------------------------------- */

/* A quad of weight rows against all activation rows of the call. */
typedef struct dsi_quad_tile {
    const uint8_t *w; /* row n */
    int64_t w_bytes;  /* from one row to the next; 0: row n alone, four times */
    int64_t n;
    const uint8_t *x[DSI_DIRECT_M];
    float *total;           /* [x row][16] */
    dsi_quad_scales scales; /* of I8, I4 */
    __m512 row_scale;       /* of those: that of the row, if one serves all columns */
} dsi_quad_tile;

/* part += the products of the last `count` columns, less than a chunk, from column k on. */
DSI_INLINE void dsi_quad_direct_tail(const dsi_quad_tile *t, int64_t k, int64_t count, int rows,
                                     dsi_dtype w, __m512 part[DSI_DIRECT_M]) {
    const int vectors = dsi_quad_vectors(w);
    dsi_quad_codes codes =
        dsi_quad_load(t->w + dsi_row_bytes(w, k), t->w_bytes, DSI_QUAD_N, dsi_row_bytes(w, count));
    for (int64_t c = 0; c < count; c += DSI_QUAD_GROUP) {
        const int64_t v = c / DSI_QUAD_GROUP;
        const dsi_quad_wide weights = dsi_quad_widen(w, codes.lanes[v / vectors]);
        DSI_UNROLL
        for (int i = 0; i < rows; i++)
            part[i] = dsi_quad_dot(part[i], weights.vectors[v % vectors],
                                   dsi_quad_x(t->x[i] + (k + c) * 2, count - c));
    }
}

DSI_INLINE __m512 dsi_quad_direct_scale(const dsi_matmul_args *a, const dsi_quad_tile *t, int64_t k,
                                        dsi_dtype w) {
    if (w == DSI_DTYPE_E4M3) return dsi_quad_scale(a, t->n, k);
    if (!dsi_quad_is_whole(w)) return _mm512_setzero_ps();
    return t->scales.shift == 63 ? t->row_scale : dsi_quad_scale_whole(&t->scales, k);
}

/* total += scale * part, and part is zero again. */
DSI_INLINE void dsi_quad_direct_add(const dsi_quad_tile *t, __m512 scale, int rows, dsi_dtype w,
                                    __m512 part[DSI_DIRECT_M]) {
    DSI_UNROLL
    for (int i = 0; i < rows; i++) {
        dsi_quad_add(t->total + i * 16, scale, part[i], dsi_quad_is_scaled(w));
        part[i] = _mm512_setzero_ps();
    }
}

/* part += the products of a whole chunk of columns from k on; blocks that end inside are added to
 * the totals. */
DSI_INLINE void dsi_quad_direct_chunk(const dsi_matmul_args *a, const dsi_quad_tile *t, int64_t k,
                                      int rows, dsi_dtype w, int64_t block,
                                      __m512 part[DSI_DIRECT_M]) {
    const int vectors = dsi_quad_vectors(w), columns = vectors * DSI_QUAD_GROUP; /* of a lane */
    dsi_quad_codes codes = dsi_quad_load(t->w + dsi_row_bytes(w, k), t->w_bytes, DSI_QUAD_N, 64);
    /* four groups of 32 columns of I4 in BF16, as they are published, are loaded at once */
    const bool four = w == DSI_DTYPE_I4 && block < DSI_BLOCK && t->scales.shift == 5 &&
                      t->scales.dtype == DSI_DTYPE_BF16;
    const __m512 scales = four ? dsi_quad_scale_four(&t->scales, k) : _mm512_setzero_ps();
    DSI_UNROLL
    for (int c = 0; c < 4; c++) {
        dsi_quad_wide weights = dsi_quad_widen(w, codes.lanes[c]);
        DSI_UNROLL
        for (int i = 0; i < rows; i++) {
            const uint8_t *x = t->x[i] + (k + c * columns) * 2;
            DSI_UNROLL
            for (int v = 0; v < vectors; v++)
                part[i] = dsi_quad_dot(part[i], weights.vectors[v],
                                       dsi_quad_x(x + v * 16, DSI_QUAD_GROUP));
        }
        if (block == DSI_BLOCK || (c + 1) * columns % block != 0) continue;
        const __m512 all[4] = {_mm512_permute_ps(scales, 0x00), _mm512_permute_ps(scales, 0x55),
                               _mm512_permute_ps(scales, 0xAA), _mm512_permute_ps(scales, 0xFF)};
        dsi_quad_direct_add(t, four ? all[c] : dsi_quad_direct_scale(a, t, k + c * columns, w),
                            rows, w, part);
    }
}

/* `rows` activation rows (a constant) over all columns. The sums of one block wait for each other,
 * those of different blocks do not, and the CPU looks several blocks ahead. block (a constant):
 * columns whose products are added before they are scaled. */
DSI_INLINE void dsi_quad_direct_run(const dsi_matmul_args *a, const dsi_quad_tile *tile, int rows,
                                    dsi_dtype w, int64_t block) {
    const dsi_quad_tile t = *tile;
    const int64_t chunk = dsi_quad_chunk(w), k = a->k;
    /* What the next quad will read, in the order of memory: see kernels/README.md. */
    uintptr_t ahead = (uintptr_t)t.w + (uintptr_t)dsi_row_bytes(w, DSI_QUAD_N * a->w_stride);
    __m512 part[DSI_DIRECT_M];
    DSI_UNROLL
    for (int i = 0; i < rows; i++) part[i] = _mm512_setzero_ps();
    for (int64_t kb = 0; kb < k; kb += DSI_BLOCK) {
        const int64_t end = dsi_min(kb + DSI_BLOCK, k);
        int64_t c = kb;
        for (; c + chunk <= end; c += chunk) {
            for (int64_t b = 0; b < DSI_QUAD_N; b++, ahead += 64)
                _mm_prefetch((const char *)ahead, _MM_HINT_T0);
            dsi_quad_direct_chunk(a, &t, c, rows, w, block, part);
        }
        for (; c < end; c += block) {
            const int64_t count = dsi_min(block - c % block, end - c);
            dsi_quad_direct_tail(&t, c, count, rows, w, part);
            if (block < DSI_BLOCK)
                dsi_quad_direct_add(&t, dsi_quad_direct_scale(a, &t, c, w), rows, w, part);
        }
        if (block == DSI_BLOCK)
            dsi_quad_direct_add(&t, dsi_quad_direct_scale(a, &t, kb, w), rows, w, part);
    }
}

/* Weight rows n to n + 3, or row n alone. */
DSI_INLINE void dsi_quad_direct_tile(const dsi_matmul_args *a, int64_t n, bool alone, int rows,
                                     dsi_dtype w, int64_t block) {
    _Alignas(64) float total[DSI_DIRECT_M * 16];
    dsi_quad_tile t = {.w = a->w + dsi_row_bytes(w, n * a->w_stride),
                       .w_bytes = alone ? 0 : dsi_row_bytes(w, a->w_stride),
                       .n = n,
                       .total = total};
    DSI_UNROLL
    for (int r = 0; r < rows; r++) {
        t.x[r] = dsi_quad_x_row(a, dsi_min(r, a->m - 1));
        _mm512_store_ps(total + r * 16, _mm512_setzero_ps());
    }
    if (dsi_quad_is_whole(w) && a->k > 0) {
        t.scales = dsi_quad_scales_of(a, n);
        t.row_scale = dsi_quad_scale_whole(&t.scales, 0);
    }
    dsi_quad_direct_run(a, &t, rows, w, block);
    dsi_matmul_args one = *a;
    if (alone) one.n1 = n + 1;
    dsi_quad_finish(&one, total, 0, dsi_min(rows, a->m), n, 1);
}

/* The last quad of a range begins early rather than end late: an output made twice has the same
 * bits. */
DSI_INLINE void dsi_quad_direct(const dsi_matmul_args *a, int rows, dsi_dtype w, int64_t block) {
    int64_t n = a->n0;
    for (; a->n1 - a->n0 >= DSI_QUAD_N && n < a->n1; n += DSI_QUAD_N)
        dsi_quad_direct_tile(a, dsi_min(n, a->n1 - DSI_QUAD_N), false, rows, w, block);
    for (; n < a->n1; n++) dsi_quad_direct_tile(a, n, true, rows, w, block);
}

/* ---- More rows: a decoded panel ------------------------------------------------------------- */

/* The panel of the moment. */
typedef struct dsi_quad_panel {
    uint8_t *weights; /* bf16 [group of columns][quad][row][8] */
    _Alignas(64) float scales[DSI_PANEL_K / DSI_QUAD_SMALL][DSI_PANEL_QUADS][16];
    int64_t n, k, columns; /* weight rows from n on, columns [k, k + columns) */
    uintptr_t ahead;       /* address of the panel that is to be fetched meanwhile */
} dsi_quad_panel;

/* The multipliers of quad q of the panel, whose first weight row is n. */
DSI_INLINE void dsi_quad_panel_scales(const dsi_matmul_args *a, dsi_quad_panel *p, int64_t q,
                                      int64_t n, dsi_dtype w, int64_t block) {
    if (w == DSI_DTYPE_E4M3)
        for (int64_t b = 0; b * block < p->columns; b++)
            _mm512_store_ps(p->scales[b][q], dsi_quad_scale(a, n, p->k + b * block));
    if (!dsi_quad_is_whole(w)) return;
    const dsi_quad_scales scales = dsi_quad_scales_of(a, n);
    for (int64_t b = 0; b * block < p->columns; b++)
        _mm512_store_ps(p->scales[b][q], dsi_quad_scale_whole(&scales, p->k + b * block));
}

/* Decodes the panel. */
DSI_INLINE void dsi_quad_panel_decode(const dsi_matmul_args *a, dsi_quad_panel *p, dsi_dtype w,
                                      int64_t block) {
    const int64_t chunk = dsi_quad_chunk(w), w_bytes = dsi_row_bytes(w, a->w_stride);
    const int vectors = dsi_quad_vectors(w);
    for (int64_t q = 0; q < DSI_PANEL_QUADS; q++) {
        const int64_t n = dsi_min(p->n + q * DSI_QUAD_N, a->n1 - 1);
        const int64_t n_rows = dsi_min(DSI_QUAD_N, a->n1 - n);
        const uint8_t *at = a->w + n * w_bytes + dsi_row_bytes(w, p->k);
        uint8_t *to = p->weights + q * 64;
        for (int64_t c = 0; c < p->columns; c += chunk, at += 64) {
            const int64_t n_bytes = dsi_row_bytes(w, dsi_min(chunk, p->columns - c));
            dsi_quad_codes codes = dsi_quad_load(at, w_bytes, n_rows, n_bytes);
            DSI_UNROLL
            for (int l = 0; l < 4; l++) {
                dsi_quad_wide weights = dsi_quad_widen(w, codes.lanes[l]);
                DSI_UNROLL
                for (int v = 0; v < vectors; v++, to += DSI_PANEL_QUADS * 64)
                    _mm512_store_si512(to, weights.vectors[v]);
            }
        }
        dsi_quad_panel_scales(a, p, q, n, w, block);
    }
}

/* part += the products of one group of columns; count < 8: the end of a row. */
DSI_INLINE void dsi_quad_panel_step(const uint8_t *weights, const uint8_t *const x[DSI_TILE_M],
                                    int64_t column, int64_t count, int rows,
                                    __m512 part[DSI_TILE_M][DSI_PANEL_QUADS]) {
    __m512i w[DSI_PANEL_QUADS];
    DSI_UNROLL
    for (int q = 0; q < DSI_PANEL_QUADS; q++) w[q] = _mm512_load_si512(weights + q * 64);
    DSI_UNROLL
    for (int i = 0; i < rows; i++) {
        __m512i activations = dsi_quad_x(x[i] + column * 2, count);
        DSI_UNROLL
        for (int q = 0; q < DSI_PANEL_QUADS; q++)
            part[i][q] = dsi_quad_dot(part[i][q], w[q], activations);
    }
}

/* Adds the panel's columns to the totals of activation rows i.. of the call, `rows` of them (a
 * constant). total: [row][quad][16]. Asks for the bytes of the panel ahead in even steps: in bursts
 * the memory would idle between them. */
DSI_INLINE void dsi_quad_panel_tile(const dsi_matmul_args *a, const dsi_quad_panel *p, int64_t i,
                                    int rows, float *total, dsi_dtype w, int64_t block) {
    const int64_t w_bytes = dsi_row_bytes(w, a->w_stride);
    const int64_t lines = (dsi_row_bytes(w, 64) + 63) / 64; /* of 64 columns of a row */
    const uint8_t *x[DSI_TILE_M];
    DSI_UNROLL
    for (int r = 0; r < rows; r++) x[r] = dsi_quad_x_row(a, i + r) + p->k * 2;
    const uint8_t *weights = p->weights;
    const int64_t step = dsi_min(block, 64);
    for (int64_t kb = 0; kb < p->columns; kb += block) {
        const int64_t end = dsi_min(kb + block, p->columns);
        int64_t c = kb;
        __m512 part[DSI_TILE_M][DSI_PANEL_QUADS];
        DSI_UNROLL
        for (int r = 0; r < rows; r++) {
            DSI_UNROLL
            for (int q = 0; q < DSI_PANEL_QUADS; q++) part[r][q] = _mm512_setzero_ps();
        }
        while (c + step <= end) {
            /* of 64 columns the lines of all rows, two rows with every group */
            uintptr_t ahead = p->ahead + (uintptr_t)(dsi_row_bytes(w, c / 64 * 64) +
                                                     c % 64 / DSI_QUAD_GROUP * 2 * w_bytes);
            for (int64_t g = 0; g < step; g += DSI_QUAD_GROUP) {
                dsi_quad_panel_step(weights, x, c, DSI_QUAD_GROUP, rows, part);
                c += DSI_QUAD_GROUP, weights += DSI_PANEL_QUADS * 64;
                for (int r = 0; r < DSI_PANEL_N / 8; r++, ahead += (uintptr_t)w_bytes)
                    for (int64_t b = 0; b < lines; b++)
                        _mm_prefetch((const char *)(ahead + (uintptr_t)b * 64), _MM_HINT_T1);
            }
        }
        for (; c + DSI_QUAD_GROUP <= end; c += DSI_QUAD_GROUP, weights += DSI_PANEL_QUADS * 64)
            dsi_quad_panel_step(weights, x, c, DSI_QUAD_GROUP, rows, part);
        if (c < end) dsi_quad_panel_step(weights, x, c, end - c, rows, part);
        __asm__ volatile("" ::: "memory"); /* no total is loaded before the parts are done */
        DSI_UNROLL
        for (int q = 0; q < DSI_PANEL_QUADS; q++) {
            const bool scaled = dsi_quad_is_scaled(w);
            __m512 scale = scaled ? _mm512_load_ps(p->scales[kb / block][q]) : _mm512_setzero_ps();
            DSI_UNROLL
            for (int r = 0; r < rows; r++)
                dsi_quad_add(total + (r * DSI_PANEL_QUADS + q) * 16, scale, part[r][q], scaled);
        }
    }
}

DSI_INLINE void dsi_quad_panel_rows(const dsi_matmul_args *a, const dsi_quad_panel *p, int64_t i,
                                    int64_t rows, float *total, dsi_dtype w, int64_t block) {
    if (rows == 6)
        dsi_quad_panel_tile(a, p, i, 6, total, w, block);
    else if (rows == 5)
        dsi_quad_panel_tile(a, p, i, 5, total, w, block);
    else if (rows == 4)
        dsi_quad_panel_tile(a, p, i, 4, total, w, block);
    else if (rows == 3)
        dsi_quad_panel_tile(a, p, i, 3, total, w, block);
    else if (rows == 2)
        dsi_quad_panel_tile(a, p, i, 2, total, w, block);
    else
        dsi_quad_panel_tile(a, p, i, 1, total, w, block);
}

/* Rows of the next tile when `left` are left: at the end two even ones, not a whole and a rest. */
DSI_INLINE int64_t dsi_quad_tile_rows(int64_t left) {
    if (left > DSI_TILE_M && left < 2 * DSI_TILE_M) return (left + 1) / 2;
    return dsi_min(left, DSI_TILE_M);
}

/* Points `ahead` at the panel that is read a little after p: of few rows four steps along K later,
 * of many the next one in the order of dsi_quad_panels on weight rows [n, n1). Behind the end of a
 * row of few lies the next panel; the addresses need not exist. */
DSI_INLINE void dsi_quad_panel_ahead(const dsi_matmul_args *a, dsi_quad_panel *p, int64_t n,
                                     int64_t n1, int64_t panel_k, dsi_dtype w) {
    int64_t row = p->n, k = p->k;
    if (panel_k == DSI_PANEL_K_FEW) {
        k += 4 * DSI_PANEL_K_FEW;
        if (k >= a->k) row += DSI_PANEL_N, k -= a->k;
    } else if (row + DSI_PANEL_N < n1) {
        row += DSI_PANEL_N;
    } else if (k + panel_k < a->k) {
        row = n, k += panel_k;
    } else {
        row = n1, k = 0;
    }
    p->ahead = (uintptr_t)a->w + (uintptr_t)dsi_row_bytes(w, row * a->w_stride + k);
}

/* Outputs of weight rows [n, n1) and activation rows [m0, m0 + m): for each step along K panel
 * after panel, so that these columns of x are read from a near cache by all but the first.
 * totals: [panel][row][quad][16]. */
DSI_INLINE void dsi_quad_panels(const dsi_matmul_args *a, dsi_quad_panel *p, int64_t n, int64_t n1,
                                int64_t m0, int64_t m, int64_t panel_k, float *totals, dsi_dtype w,
                                int64_t block) {
    const int64_t row_floats = DSI_PANEL_QUADS * 16;
    memset(totals, 0, (size_t)((n1 - n + DSI_PANEL_N - 1) / DSI_PANEL_N * m * row_floats) * 4);
    for (p->k = 0; p->k < a->k; p->k += panel_k) {
        float *total = totals;
        p->columns = dsi_min(panel_k, a->k - p->k);
        for (p->n = n; p->n < n1; p->n += DSI_PANEL_N) {
            dsi_quad_panel_decode(a, p, w, block);
            dsi_quad_panel_ahead(a, p, n, n1, panel_k, w);
            for (int64_t i = 0, rows; i < m; i += rows, total += rows * row_floats) {
                rows = dsi_quad_tile_rows(m - i);
                dsi_quad_panel_rows(a, p, m0 + i, rows, total, w, block);
            }
        }
    }
    for (; n < n1; n += DSI_PANEL_N, totals += m * row_floats)
        dsi_quad_finish(a, totals, m0, m, n, DSI_PANEL_QUADS);
}

/* The matmul of weights of type w and bf16 activations; block: DSI_BLOCK, or DSI_QUAD_SMALL where
 * fewer columns share a multiplier. Both are constants. */
DSI_INLINE void dsi_matmul_quads_by(const dsi_matmul_args *a, dsi_dtype w, int64_t block) {
    if (a->m <= DSI_DIRECT_M) {
        if (a->m == 1)
            dsi_quad_direct(a, 1, w, block);
        else if (a->m == 2)
            dsi_quad_direct(a, 2, w, block);
        else if (a->m > 2)
            dsi_quad_direct(a, 4, w, block);
        return;
    }
    if (a->k == 0) { /* no scratch either */
        for (int64_t i = 0; i < a->m; i++)
            memset(a->y + i * a->y_stride, 0, (size_t)(a->n1 - a->n0) * sizeof *a->y);
        return;
    }
    const int64_t panel_k = a->m <= DSI_PANEL_M_FEW ? DSI_PANEL_K_FEW : DSI_PANEL_K;
    const int64_t chunk = dsi_quad_chunk(w);
    const int64_t columns = (dsi_min(a->k, panel_k) + chunk - 1) / chunk * chunk;
    const int64_t panel_bytes = DSI_PANEL_N * columns * 2;
    const int64_t row_bytes = DSI_PANEL_QUADS * 16 * (int64_t)sizeof(float);
    const int64_t room = dsi_matmul_scratch_bytes(a->k) - panel_bytes;
    const int64_t m_step = dsi_min(a->m, dsi_min(room / row_bytes, DSI_PANEL_M_MAX));
    const int64_t n_panels = a->m * a->k * 2 <= DSI_X_CACHED ? 1 : room / row_bytes / m_step;
    dsi_quad_panel p = {.weights = a->scratch};
    float *totals = (float *)(void *)(p.weights + panel_bytes);
    for (int64_t n = a->n0; n < a->n1; n += n_panels * DSI_PANEL_N)
        for (int64_t m0 = 0; m0 < a->m; m0 += m_step)
            dsi_quad_panels(a, &p, n, dsi_min(n + n_panels * DSI_PANEL_N, a->n1), m0,
                            dsi_min(m_step, a->m - m0), panel_k, totals, w, block);
}

DSI_INLINE void dsi_matmul_quads(const dsi_matmul_args *a, dsi_dtype w) {
    if (dsi_quad_is_whole(w) && a->group_k < DSI_BLOCK && a->group_k < a->k)
        dsi_matmul_quads_by(a, w, DSI_QUAD_SMALL);
    else
        dsi_matmul_quads_by(a, w, DSI_BLOCK);
}

#endif
