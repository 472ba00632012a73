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

/* Of I8: a multiplier for a row, or for group_n rows, of a block or of all columns. */
DSI_INLINE __m512 dsi_quad_scale_i8(const dsi_matmul_args *a, int64_t n, int64_t b) {
    const __m512i lanes = _mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3);
    float scale[DSI_QUAD_N];
    if (a->group_k > DSI_BLOCK) b = 0;
    for (int64_t r = 0; r < DSI_QUAD_N; r++) {
        const int64_t row = dsi_min(n + r, a->n1 - 1) / a->group_n;
        scale[r] = dsi_load_scale(a->scale_dtype, a->scale, row * a->scale_stride + b);
    }
    return _mm512_permutexvar_ps(lanes, _mm512_castps128_ps512(_mm_loadu_ps(scale)));
}

/* The lanes of weight row n + r: its multiplier in block b; the last row's beyond it. */
DSI_INLINE __m512 dsi_quad_scale(const dsi_matmul_args *a, int64_t n, int64_t b, dsi_dtype w) {
    if (w == DSI_DTYPE_I8) return dsi_quad_scale_i8(a, n, b);
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
    float *total; /* [x row][16] */
} dsi_quad_tile;

/* part += the products of the last `count` columns, less than a chunk, from column k on. */
DSI_INLINE void dsi_quad_direct_tail(const dsi_quad_tile *t, int64_t k, int64_t count, int rows,
                                     dsi_dtype w, __m512 part[DSI_DIRECT_M]) {
    __m512i weights[DSI_QUAD_CHUNK_MAX / DSI_QUAD_GROUP];
    dsi_quad_decode(w, t->w + k * dsi_element_bytes(w), t->w_bytes, DSI_QUAD_N, count, weights);
    for (int64_t c = 0; c < count; c += DSI_QUAD_GROUP) {
        DSI_UNROLL
        for (int i = 0; i < rows; i++)
            part[i] = dsi_quad_dot(part[i], weights[c / DSI_QUAD_GROUP],
                                   dsi_quad_x(t->x[i] + (k + c) * 2, count - c));
    }
}

/* part += the products of a whole chunk of columns from k on. */
DSI_INLINE void dsi_quad_direct_chunk(const dsi_quad_tile *t, int64_t k, int rows, dsi_dtype w,
                                      __m512 part[DSI_DIRECT_M]) {
    const int64_t bytes = dsi_element_bytes(w), columns = 16 / bytes;
    dsi_quad_codes codes = dsi_quad_load(t->w + k * bytes, t->w_bytes, DSI_QUAD_N, 64);
    DSI_UNROLL
    for (int c = 0; c < 4; c++) {
        dsi_quad_pair weights = dsi_quad_widen(w, codes.lanes[c]);
        DSI_UNROLL
        for (int i = 0; i < rows; i++) {
            const uint8_t *x = t->x[i] + (k + c * columns) * 2;
            part[i] = dsi_quad_dot(part[i], weights.first, dsi_quad_x(x, DSI_QUAD_GROUP));
            if (columns > DSI_QUAD_GROUP)
                part[i] = dsi_quad_dot(part[i], weights.second, dsi_quad_x(x + 16, DSI_QUAD_GROUP));
        }
    }
}

/* `rows` activation rows (a constant) over all columns. The sums of one block wait for each other,
 * those of different blocks do not, and the CPU looks several blocks ahead. */
DSI_INLINE void dsi_quad_direct_run(const dsi_matmul_args *a, const dsi_quad_tile *tile, int rows,
                                    dsi_dtype w) {
    const dsi_quad_tile t = *tile;
    const int64_t bytes = dsi_element_bytes(w), chunk = 64 / bytes, k = a->k;
    /* What the next quad will read, in the order of memory: see kernels/README.md. */
    uintptr_t ahead = (uintptr_t)t.w + (uintptr_t)(DSI_QUAD_N * a->w_stride * bytes);
    const bool scaled = dsi_quad_is_scaled(w), by_row = w == DSI_DTYPE_I8 && a->group_k > DSI_BLOCK;
    __m512 scale = by_row ? dsi_quad_scale(a, t.n, 0, w) : _mm512_setzero_ps();
    for (int64_t kb = 0; kb < k; kb += DSI_BLOCK) {
        const int64_t end = dsi_min(kb + DSI_BLOCK, k);
        int64_t c = kb;
        __m512 part[DSI_DIRECT_M];
        DSI_UNROLL
        for (int i = 0; i < rows; i++) part[i] = _mm512_setzero_ps();
        for (; c + chunk <= end; c += chunk) {
            for (int64_t b = 0; b < DSI_QUAD_N; b++, ahead += 64)
                _mm_prefetch((const char *)ahead, _MM_HINT_T0);
            dsi_quad_direct_chunk(&t, c, rows, w, part);
        }
        if (c < end) dsi_quad_direct_tail(&t, c, end - c, rows, w, part);
        if (scaled && !by_row) scale = dsi_quad_scale(a, t.n, kb / DSI_BLOCK, w);
        DSI_UNROLL
        for (int i = 0; i < rows; i++) dsi_quad_add(t.total + i * 16, scale, part[i], scaled);
    }
}

/* Weight rows n to n + 3, or row n alone. */
DSI_INLINE void dsi_quad_direct_tile(const dsi_matmul_args *a, int64_t n, bool alone, int rows,
                                     dsi_dtype w) {
    _Alignas(64) float total[DSI_DIRECT_M * 16];
    dsi_quad_tile t = {.w = a->w + n * a->w_stride * dsi_element_bytes(w),
                       .w_bytes = alone ? 0 : a->w_stride * dsi_element_bytes(w),
                       .n = n,
                       .total = total};
    DSI_UNROLL
    for (int r = 0; r < rows; r++) {
        t.x[r] = dsi_quad_x_row(a, dsi_min(r, a->m - 1));
        _mm512_store_ps(total + r * 16, _mm512_setzero_ps());
    }
    dsi_quad_direct_run(a, &t, rows, w);
    dsi_matmul_args one = *a;
    if (alone) one.n1 = n + 1;
    dsi_quad_finish(&one, total, 0, dsi_min(rows, a->m), n, 1);
}

/* The last quad of a range begins early rather than end late: an output made twice has the same
 * bits. */
DSI_INLINE void dsi_quad_direct(const dsi_matmul_args *a, int rows, dsi_dtype w) {
    int64_t n = a->n0;
    for (; a->n1 - a->n0 >= DSI_QUAD_N && n < a->n1; n += DSI_QUAD_N)
        dsi_quad_direct_tile(a, dsi_min(n, a->n1 - DSI_QUAD_N), false, rows, w);
    for (; n < a->n1; n++) dsi_quad_direct_tile(a, n, true, rows, w);
}

/* ---- More rows: a decoded panel ------------------------------------------------------------- */

/* The panel of the moment. */
typedef struct dsi_quad_panel {
    uint8_t *weights; /* bf16 [group of columns][quad][row][8] */
    _Alignas(64) float scales[DSI_PANEL_K / DSI_BLOCK][DSI_PANEL_QUADS][16];
    int64_t n, k, columns; /* weight rows from n on, columns [k, k + columns) */
    uintptr_t ahead;       /* address of the panel that is to be fetched meanwhile */
} dsi_quad_panel;

/* Decodes the panel. */
DSI_INLINE void dsi_quad_panel_decode(const dsi_matmul_args *a, dsi_quad_panel *p, dsi_dtype w) {
    const int64_t bytes = dsi_element_bytes(w), chunk = 64 / bytes;
    const int64_t w_bytes = a->w_stride * bytes;
    for (int64_t q = 0; q < DSI_PANEL_QUADS; q++) {
        const int64_t n = dsi_min(p->n + q * DSI_QUAD_N, a->n1 - 1);
        const int64_t n_rows = dsi_min(DSI_QUAD_N, a->n1 - n);
        const uint8_t *at = a->w + n * w_bytes + p->k * bytes;
        uint8_t *to = p->weights + q * 64;
        for (int64_t c = 0; c < p->columns; c += chunk, at += 64) {
            __m512i weights[DSI_QUAD_CHUNK_MAX / DSI_QUAD_GROUP];
            dsi_quad_decode(w, at, w_bytes, n_rows, dsi_min(chunk, p->columns - c), weights);
            DSI_UNROLL
            for (int64_t g = 0; g < chunk / DSI_QUAD_GROUP; g++)
                _mm512_store_si512(to + (c / DSI_QUAD_GROUP + g) * DSI_PANEL_QUADS * 64,
                                   weights[g]);
        }
        for (int64_t b = 0; dsi_quad_is_scaled(w) && b * DSI_BLOCK < p->columns; b++)
            _mm512_store_ps(p->scales[b][q], dsi_quad_scale(a, n, p->k / DSI_BLOCK + b, w));
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
                                    int rows, float *total, dsi_dtype w) {
    const int64_t bytes = dsi_element_bytes(w), w_bytes = a->w_stride * bytes;
    const uint8_t *x[DSI_TILE_M];
    DSI_UNROLL
    for (int r = 0; r < rows; r++) x[r] = dsi_quad_x_row(a, i + r) + p->k * 2;
    const uint8_t *weights = p->weights;
    for (int64_t kb = 0; kb < p->columns; kb += DSI_BLOCK) {
        const int64_t end = dsi_min(kb + DSI_BLOCK, p->columns);
        int64_t c = kb;
        __m512 part[DSI_TILE_M][DSI_PANEL_QUADS];
        DSI_UNROLL
        for (int r = 0; r < rows; r++) {
            DSI_UNROLL
            for (int q = 0; q < DSI_PANEL_QUADS; q++) part[r][q] = _mm512_setzero_ps();
        }
        while (c + 64 <= end) {
            uintptr_t ahead = p->ahead + (uintptr_t)(c * bytes);
            for (int g = 0; g < 8; g++, c += DSI_QUAD_GROUP, weights += DSI_PANEL_QUADS * 64) {
                dsi_quad_panel_step(weights, x, c, DSI_QUAD_GROUP, rows, part);
                for (int r = 0; r < DSI_PANEL_N / 8; r++, ahead += (uintptr_t)w_bytes)
                    for (int64_t b = 0; b < bytes; b++)
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
            __m512 scale =
                scaled ? _mm512_load_ps(p->scales[kb / DSI_BLOCK][q]) : _mm512_setzero_ps();
            DSI_UNROLL
            for (int r = 0; r < rows; r++)
                dsi_quad_add(total + (r * DSI_PANEL_QUADS + q) * 16, scale, part[r][q], scaled);
        }
    }
}

DSI_INLINE void dsi_quad_panel_rows(const dsi_matmul_args *a, const dsi_quad_panel *p, int64_t i,
                                    int64_t rows, float *total, dsi_dtype w) {
    if (rows == 6)
        dsi_quad_panel_tile(a, p, i, 6, total, w);
    else if (rows == 5)
        dsi_quad_panel_tile(a, p, i, 5, total, w);
    else if (rows == 4)
        dsi_quad_panel_tile(a, p, i, 4, total, w);
    else if (rows == 3)
        dsi_quad_panel_tile(a, p, i, 3, total, w);
    else if (rows == 2)
        dsi_quad_panel_tile(a, p, i, 2, total, w);
    else
        dsi_quad_panel_tile(a, p, i, 1, total, w);
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
    p->ahead = (uintptr_t)a->w + (uintptr_t)((row * a->w_stride + k) * dsi_element_bytes(w));
}

/* Outputs of weight rows [n, n1) and activation rows [m0, m0 + m): for each step along K panel
 * after panel, so that these columns of x are read from a near cache by all but the first.
 * totals: [panel][row][quad][16]. */
DSI_INLINE void dsi_quad_panels(const dsi_matmul_args *a, dsi_quad_panel *p, int64_t n, int64_t n1,
                                int64_t m0, int64_t m, int64_t panel_k, float *totals,
                                dsi_dtype w) {
    const int64_t row_floats = DSI_PANEL_QUADS * 16;
    memset(totals, 0, (size_t)((n1 - n + DSI_PANEL_N - 1) / DSI_PANEL_N * m * row_floats) * 4);
    for (p->k = 0; p->k < a->k; p->k += panel_k) {
        float *total = totals;
        p->columns = dsi_min(panel_k, a->k - p->k);
        for (p->n = n; p->n < n1; p->n += DSI_PANEL_N) {
            dsi_quad_panel_decode(a, p, w);
            dsi_quad_panel_ahead(a, p, n, n1, panel_k, w);
            for (int64_t i = 0, rows; i < m; i += rows, total += rows * row_floats) {
                rows = dsi_quad_tile_rows(m - i);
                dsi_quad_panel_rows(a, p, m0 + i, rows, total, w);
            }
        }
    }
    for (; n < n1; n += DSI_PANEL_N, totals += m * row_floats)
        dsi_quad_finish(a, totals, m0, m, n, DSI_PANEL_QUADS);
}

/* The matmul of weights of type w (a constant) and bf16 activations. */
DSI_INLINE void dsi_matmul_quads(const dsi_matmul_args *a, dsi_dtype w) {
    if (a->m <= DSI_DIRECT_M) {
        if (a->m == 1)
            dsi_quad_direct(a, 1, w);
        else if (a->m == 2)
            dsi_quad_direct(a, 2, w);
        else if (a->m > 2)
            dsi_quad_direct(a, 4, w);
        return;
    }
    if (a->k == 0) { /* no scratch either */
        for (int64_t i = 0; i < a->m; i++)
            memset(a->y + i * a->y_stride, 0, (size_t)(a->n1 - a->n0) * sizeof *a->y);
        return;
    }
    const int64_t panel_k = a->m <= DSI_PANEL_M_FEW ? DSI_PANEL_K_FEW : DSI_PANEL_K;
    const int64_t columns = (dsi_min(a->k, panel_k) + 63) / 64 * 64;
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
                            dsi_min(m_step, a->m - m0), panel_k, totals, w);
}

#endif
