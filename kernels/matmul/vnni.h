/* vnni.h: matmul of whole numbers with activations of 8 bits for any number of rows; vnni_few.h has
 * the arithmetic and the order of sums.
 *
 * Many activation rows: a panel of 32 weight rows is transposed into scratch, four columns of
 * sixteen rows in a vector, so that a sum holds sixteen outputs, and totals wait in y between two
 * panels along K. */
#ifndef DSI_KERNELS_MATMUL_VNNI_H
#define DSI_KERNELS_MATMUL_VNNI_H

#include "vnni_few.h"

/* ---- Many rows: a transposed panel ----------------------------------------------------------- */
/* The panel of the moment. */
typedef struct dsi_vnni_panel {
    const dsi_matmul_args *a;
    uint8_t *weights;      /* [column / 4][vector][row of 16][4], unsigned */
    float *scales;         /* [block][vector][row of 16] */
    int64_t n, k, columns; /* weight rows from n on, columns [k, k + columns) */
    int64_t block;         /* columns of a block */
    bool whole;
    uintptr_t ahead;           /* the panel that is to be fetched meanwhile: its first row */
    int64_t line, lines, step; /* the next of its cache lines, their number, how many at a time */
} dsi_vnni_panel;

/* 16 x 16 elements of 32 bits: vector 4 l + j of the result holds element j of lane l of all rows.
 */
DSI_INLINE void dsi_vnni_transpose(const __m512i row[16], __m512i to[16]) {
    __m512i by_set[4][4]; /* [rows 4 s to 4 s + 3][element of each lane] */
    DSI_UNROLL_16
    for (int s = 0; s < 4; s++) {
        const __m512i *r = row + s * 4;
        __m512i low01 = _mm512_unpacklo_epi32(r[0], r[1]),
                high01 = _mm512_unpackhi_epi32(r[0], r[1]);
        __m512i low23 = _mm512_unpacklo_epi32(r[2], r[3]),
                high23 = _mm512_unpackhi_epi32(r[2], r[3]);
        by_set[s][0] = _mm512_unpacklo_epi64(low01, low23);
        by_set[s][1] = _mm512_unpackhi_epi64(low01, low23);
        by_set[s][2] = _mm512_unpacklo_epi64(high01, high23);
        by_set[s][3] = _mm512_unpackhi_epi64(high01, high23);
    }
    DSI_UNROLL_16
    for (int j = 0; j < 4; j++) {
        __m512i low01 = _mm512_shuffle_i64x2(by_set[0][j], by_set[1][j], 0x44);
        __m512i low23 = _mm512_shuffle_i64x2(by_set[2][j], by_set[3][j], 0x44);
        __m512i high01 = _mm512_shuffle_i64x2(by_set[0][j], by_set[1][j], 0xEE);
        __m512i high23 = _mm512_shuffle_i64x2(by_set[2][j], by_set[3][j], 0xEE);
        to[j] = _mm512_shuffle_i64x2(low01, low23, 0x88);
        to[4 + j] = _mm512_shuffle_i64x2(low01, low23, 0xDD);
        to[8 + j] = _mm512_shuffle_i64x2(high01, high23, 0x88);
        to[12 + j] = _mm512_shuffle_i64x2(high01, high23, 0xDD);
    }
}

/* Transposes 64 bytes of sixteen rows from column c of the panel on; I4: the first or second eight
 * bytes' columns of every 16 bytes (`half`), 64 of the 128. */
DSI_INLINE void dsi_vnni_panel_bytes(const dsi_vnni_panel *p, int v, int64_t c, int half,
                                     dsi_dtype w) {
    const dsi_matmul_args *a = p->a;
    const int64_t count = p->columns - c;
    __m512i row[16], to[16];
    DSI_UNROLL_16
    for (int r = 0; r < 16; r++) {
        int64_t n = dsi_min(p->n + v * DSI_VNNI_N + r, a->n1 - 1);
        const uint8_t *at = a->w + dsi_row_bytes(w, n * a->w_stride + p->k + c);
        if (w == DSI_DTYPE_I8) {
            row[r] = _mm512_xor_si512(_mm512_maskz_loadu_epi8(dsi_vnni_bytes(count), at),
                                      _mm512_set1_epi8((char)0x80));
        } else {
            dsi_vnni_pair pair = dsi_vnni_load(w, at, count);
            row[r] = half ? _mm512_unpackhi_epi8(pair.first, pair.second)
                          : _mm512_unpacklo_epi8(pair.first, pair.second);
        }
    }
    dsi_vnni_transpose(row, to);
    const int64_t lane = w == DSI_DTYPE_I8 ? 4 : 8; /* fours of columns from a lane to the next */
    uint8_t *first = p->weights + ((c / 4 + half * 4) * 2 + v) * 64;
    DSI_UNROLL_16
    for (int t = 0; t < 16; t++)
        if (c + (t / 4 * lane + half * 4 + t % 4) * 4 < p->columns)
            _mm512_store_si512(first + (t / 4 * lane + t % 4) * 128, to[t]);
}

/* Decodes the panel and its scales. */
DSI_INLINE void dsi_vnni_panel_decode(const dsi_vnni_panel *p, int vectors, dsi_dtype w) {
    const dsi_matmul_args *a = p->a;
    for (int v = 0; v < vectors; v++)
        for (int64_t c = 0; c < p->columns; c += w == DSI_DTYPE_I8 ? 64 : 128) {
            dsi_vnni_panel_bytes(p, v, c, 0, w);
            if (w == DSI_DTYPE_I4) dsi_vnni_panel_bytes(p, v, c, 1, w);
        }
    const int64_t blocks = p->whole ? 1 : (p->columns + p->block - 1) / p->block;
    for (int64_t r = 0; r < vectors * DSI_VNNI_N; r++) {
        int64_t n = dsi_min(p->n + r, a->n1 - 1);
        for (int64_t b = 0; b < blocks; b++)
            p->scales[b * DSI_VNNI_PANEL_N + r] = dsi_vnni_scale(a, n, p->k + b * p->block);
    }
}

/* A few cache lines of the panel ahead, row after row. */
DSI_INLINE void dsi_vnni_panel_fetch(dsi_vnni_panel *p, dsi_dtype w) {
    const int64_t in_row = dsi_row_bytes(w, DSI_VNNI_PANEL_K) / 64;
    const int64_t w_bytes = dsi_row_bytes(w, p->a->w_stride);
    for (int64_t i = 0; i < p->step && p->line < p->lines; i++, p->line++)
        _mm_prefetch((const char *)(p->ahead + (uintptr_t)(p->line / in_row * w_bytes +
                                                           p->line % in_row * 64)),
                     _MM_HINT_T0);
}

/* sum += the products of columns [c, end) of the panel. */
DSI_INLINE void dsi_vnni_panel_dots(const dsi_vnni_panel *p,
                                    const uint8_t *const x[DSI_VNNI_TILE_M], int64_t c, int64_t end,
                                    int rows, int vectors, __m512i sum[DSI_VNNI_TILE_M][2]) {
    const uint8_t *weights = p->weights + c / 4 * 128;
    for (; c < end; c += 4, weights += 128) {
        __m512i w[2];
        DSI_UNROLL_16
        for (int v = 0; v < vectors; v++) w[v] = _mm512_load_si512(weights + v * 64);
        DSI_UNROLL_16
        for (int j = 0; j < rows; j++) {
            int32_t four;
            memcpy(&four, x[j] + c, 4);
            const __m512i activations = _mm512_set1_epi32(four);
            DSI_UNROLL_16
            for (int v = 0; v < vectors; v++)
                sum[j][v] = _mm512_dpbusd_epi32(sum[j][v], w[v], activations);
        }
    }
}

/* -zero * the sum of the activations of columns [k, k + block), all of them if `whole`. */
DSI_INLINE int32_t dsi_vnni_off(const int32_t *sum, const dsi_vnni_panel *p, int64_t k,
                                dsi_dtype w) {
    int64_t from = p->whole ? 0 : k / DSI_A8_SUM, n = p->whole ? dsi_a8_blocks(p->a->k) * 4 : 4;
    if (!p->whole && p->block == DSI_VNNI_SMALL) n = 1;
    uint32_t total = 0; /* wraps like the sums that it is added to */
    for (int64_t s = 0; s < n; s++) total += (uint32_t)sum[from + s];
    return (int32_t) - (total << dsi_vnni_zero_bits(w));
}

/* Adds the panel's columns to y of activation rows i.. of the call, `count` of `rows` (a constant)
 * of them. A sum over all of K waits in y as a whole number. */
DSI_INLINE void dsi_vnni_panel_tile(dsi_vnni_panel *p, int64_t i, int rows, int64_t count,
                                    int vectors, dsi_dtype w) {
    const dsi_matmul_args *a = p->a;
    const uint8_t *x[DSI_VNNI_TILE_M];
    const float *multiplier[DSI_VNNI_TILE_M];
    const int32_t *sums[DSI_VNNI_TILE_M];
    float *y[DSI_VNNI_TILE_M];
    DSI_UNROLL_16
    for (int j = 0; j < rows; j++) {
        const uint8_t *record = dsi_vnni_x(a, i + (j < count ? j : count - 1));
        x[j] = record + p->k;
        multiplier[j] = dsi_a8_multipliers(record, a->k);
        sums[j] = dsi_a8_sums(record, a->k);
        y[j] = a->y + (i + (j < count ? j : count - 1)) * a->y_stride + p->n - a->n0;
    }
    const int64_t left = a->n1 - p->n;
    const __mmask16 some[2] = {(__mmask16)(left >= 16 ? 0xFFFF : (1u << left) - 1u),
                               (__mmask16)(left >= 32   ? 0xFFFF
                                           : left <= 16 ? 0
                                                        : (1u << (left - 16)) - 1u)};
    const int64_t step = p->whole ? p->columns : p->block;
    const bool last = p->k + p->columns >= a->k;
    for (int64_t kb = 0; kb < p->columns; kb += step) {
        const int64_t k = p->k + kb, end = dsi_min(kb + step, p->columns);
        __m512i sum[DSI_VNNI_TILE_M][2];
        DSI_UNROLL_16
        for (int j = 0; j < rows; j++) {
            __m512i first = _mm512_setzero_si512();
            if (!p->whole || k == 0) first = _mm512_set1_epi32(dsi_vnni_off(sums[j], p, k, w));
            for (int v = 0; v < vectors; v++)
                sum[j][v] =
                    p->whole && k > 0 ? _mm512_maskz_loadu_epi32(some[v], y[j] + v * 16) : first;
        }
        for (int64_t c = kb; c < end; c += DSI_VNNI_SMALL) {
            dsi_vnni_panel_fetch(p, w);
            dsi_vnni_panel_dots(p, x, c, dsi_min(c + DSI_VNNI_SMALL, end), rows, vectors, sum);
        }
        const float *scale = p->scales + (p->whole ? 0 : kb / p->block * DSI_VNNI_PANEL_N);
        DSI_UNROLL_16
        for (int j = 0; j < rows; j++) {
            if (j >= count) continue;
            const __m512 by = _mm512_set1_ps(multiplier[j][k / DSI_BLOCK]);
            DSI_UNROLL_16
            for (int v = 0; v < vectors; v++) {
                float *at = y[j] + v * 16;
                if (p->whole && !last) {
                    _mm512_mask_storeu_epi32(at, some[v], sum[j][v]);
                    continue;
                }
                __m512 factor = _mm512_mul_ps(_mm512_load_ps(scale + v * 16), by);
                __m512 part = _mm512_cvtepi32_ps(sum[j][v]);
                __m512 before = k == 0 ? _mm512_setzero_ps() : _mm512_maskz_loadu_ps(some[v], at);
                _mm512_mask_storeu_ps(at, some[v],
                                      p->whole ? _mm512_mul_ps(factor, part)
                                               : _mm512_fmadd_ps(factor, part, before));
            }
        }
    }
}

DSI_INLINE void dsi_vnni_panel_rows(dsi_vnni_panel *p, int64_t i, int64_t rows, int vectors,
                                    dsi_dtype w) {
    if (vectors == 1)
        dsi_vnni_panel_tile(p, i, 12, rows, 1, w);
    else if (rows > 11)
        dsi_vnni_panel_tile(p, i, 12, rows, 2, w);
    else if (rows > 10)
        dsi_vnni_panel_tile(p, i, 11, rows, 2, w);
    else if (rows > 8)
        dsi_vnni_panel_tile(p, i, 10, rows, 2, w);
    else if (rows > 6)
        dsi_vnni_panel_tile(p, i, 8, rows, 2, w);
    else
        dsi_vnni_panel_tile(p, i, 6, rows, 2, w);
}

/* Points `ahead` at the panel after p: further along K, then the rows behind. */
DSI_INLINE void dsi_vnni_panel_ahead(dsi_vnni_panel *p, int64_t tiles, dsi_dtype w) {
    const dsi_matmul_args *a = p->a;
    int64_t n = p->n, k = p->k + DSI_VNNI_PANEL_K;
    if (k >= a->k) n += DSI_VNNI_PANEL_N, k = 0;
    p->ahead = (uintptr_t)a->w + (uintptr_t)dsi_row_bytes(w, n * a->w_stride + k);
    p->line = 0;
    p->lines = DSI_VNNI_PANEL_N * dsi_row_bytes(w, DSI_VNNI_PANEL_K) / 64;
    const int64_t times = tiles * DSI_VNNI_BLOCKS;
    p->step = (p->lines + times - 1) / times;
}

DSI_INLINE void dsi_vnni_panels(const dsi_matmul_args *a, dsi_dtype w) {
    dsi_vnni_panel p = {.a = a, .weights = a->scratch, .whole = dsi_vnni_whole(a)};
    _Alignas(64) float scales[DSI_VNNI_BLOCKS * DSI_VNNI_PANEL_N];
    const int64_t tiles = (a->m + DSI_VNNI_TILE_M - 1) / DSI_VNNI_TILE_M;
    p.scales = scales;
    p.block = dsi_vnni_block(a);
    for (p.n = a->n0; p.n < a->n1; p.n += DSI_VNNI_PANEL_N)
        for (p.k = 0; p.k < a->k; p.k += DSI_VNNI_PANEL_K) {
            const int vectors = a->n1 - p.n > DSI_VNNI_N ? 2 : 1;
            p.columns = dsi_min(DSI_VNNI_PANEL_K, a->k - p.k);
            dsi_vnni_panel_decode(&p, vectors, w);
            dsi_vnni_panel_ahead(&p, tiles, w);
            for (int64_t t = 0, i = 0, rows; t < tiles; t++, i += rows) {
                rows = (a->m - i + tiles - t - 1) / (tiles - t); /* even tiles */
                dsi_vnni_panel_rows(&p, i, rows, vectors, w);
            }
        }
}

/* The matmul of weights of type w (a constant) and activations of 8 bits. */
DSI_INLINE void dsi_matmul_vnni(const dsi_matmul_args *a, dsi_dtype w) {
    const bool lanes = w == DSI_DTYPE_I4 || a->group_k >= DSI_BLOCK; /* what a fold can part */
    if (a->k == 0) { /* no groups, and no scales to read */
        for (int64_t i = 0; i < a->m; i++)
            memset(a->y + i * a->y_stride, 0, (size_t)(a->n1 - a->n0) * sizeof *a->y);
        return;
    }
    if (a->m > 0 && (!lanes || a->m > 2 * DSI_VNNI_DIRECT_M)) {
        dsi_vnni_panels(a, w);
        return;
    }
    for (int64_t i = 0; i < a->m; i += DSI_VNNI_DIRECT_M) {
        const int64_t rows = a->m - i;
        if (rows == 1)
            dsi_vnni_direct(a, i, 1, w);
        else if (rows == 2)
            dsi_vnni_direct(a, i, 2, w);
        else if (rows <= 4)
            dsi_vnni_direct(a, i, 4, w);
        else
            dsi_vnni_direct(a, i, 6, w);
    }
}

#endif
