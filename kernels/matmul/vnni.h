/* vnni.h: matmul of whole numbers with activations of 8 bits for any number of rows; vnni_few.h has
 * the arithmetic and the order of sums.
 *
 * Many activation rows: a panel of 32 weight rows is transposed into scratch, four columns of
 * sixteen rows in a vector, so that a sum holds sixteen outputs, and totals wait in scratch between
 * two blocks. */
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
    float *totals;   /* [slot][vector][row of 16]; of sums over all of K whole numbers */
    int32_t *off;    /* [block of K][slot]: what takes the zero point off; whole: one block */
    float *by;       /* [128 columns of K][slot]: multipliers; whole: one */
    int64_t slots;   /* a row of activations each, twelve to a tile */
    uintptr_t ahead; /* the panel that is to be fetched meanwhile: its first row */
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
    for (int v = 0; v < DSI_VNNI_PANEL_N / DSI_VNNI_N; v++) {
        __m512i row[16], to[16];
        DSI_UNROLL_16
        for (int r = 0; r < 16; r++) {
            int64_t n = dsi_min(p->n + v * DSI_VNNI_N + r, a->n1 - 1);
            row[r] = _mm512_castps_si512(p->block == DSI_VNNI_SMALL
                                             ? dsi_vnni_scales(a, n, p->k, DSI_VNNI_SMALL)
                                             : dsi_vnni_scales(a, n, p->k, DSI_BLOCK));
        }
        dsi_vnni_transpose(row, to);
        for (int b = 0; b < DSI_VNNI_BLOCKS; b++)
            _mm512_store_si512(p->scales + b * DSI_VNNI_PANEL_N + v * DSI_VNNI_N, to[b]);
    }
}

/* Some cache lines of the panel ahead, row after row, while `columns` are multiplied. */
DSI_INLINE void dsi_vnni_panel_fetch(dsi_vnni_panel *p, int64_t columns, dsi_dtype w) {
    const int64_t n = p->step * columns / DSI_VNNI_SMALL;
    const int64_t in_row = dsi_row_bytes(w, DSI_VNNI_PANEL_K) / 64;
    const int64_t w_bytes = dsi_row_bytes(w, p->a->w_stride);
    for (int64_t i = 0; i < n && p->line < p->lines; i++, p->line++)
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

/* Fills off and by of the slots of activation rows m0 to m0 + m - 1: tiles of even size, the last
 * row of each again in the slots that it lacks. */
DSI_INLINE void dsi_vnni_panel_slots(const dsi_vnni_panel *p, int64_t m0, int64_t m, dsi_dtype w) {
    const dsi_matmul_args *a = p->a;
    const int64_t tiles = p->slots / DSI_VNNI_TILE_M,
                  per = p->whole ? dsi_a8_blocks(a->k) * 4 : p->block / DSI_A8_SUM;
    const int64_t offs = p->whole ? 1 : (a->k + p->block - 1) / p->block;
    for (int64_t s = 0; s < p->slots; s++) {
        const int64_t t = s / DSI_VNNI_TILE_M, i0 = m * t / tiles, i1 = m * (t + 1) / tiles;
        const uint8_t *x = dsi_vnni_x(a, m0 + dsi_min(i0 + s % DSI_VNNI_TILE_M, i1 - 1));
        const int32_t *sum = dsi_a8_sums(x, a->k);
        const float *by = dsi_a8_multipliers(x, a->k);
        for (int64_t b = 0; b < offs; b++) {
            uint32_t total = 0; /* wraps like the sums that it is added to */
            for (int64_t q = 0; q < per; q++) total += (uint32_t)*sum++;
            p->off[b * p->slots + s] = (int32_t) - (total << dsi_vnni_zero_bits(w));
        }
        for (int64_t b = 0; b < (p->whole ? 1 : dsi_a8_blocks(a->k)); b++)
            p->by[b * p->slots + s] = by[b];
    }
}

/* Adds the panel's columns to the totals of a tile: slots `slot` on, activation rows i.., `count`
 * of `rows` (a constant) of them. whole, a constant: as the panel says. */
DSI_INLINE void dsi_vnni_panel_tile(dsi_vnni_panel *p, int64_t slot, int64_t i, int rows,
                                    int64_t count, bool whole, dsi_dtype w) {
    const uint8_t *x[DSI_VNNI_TILE_M];
    DSI_UNROLL_16
    for (int j = 0; j < rows; j++) x[j] = dsi_vnni_x(p->a, i + (j < count ? j : count - 1)) + p->k;
    const int64_t step = whole ? DSI_VNNI_WHOLE_K : p->block;
    float *totals = p->totals + slot * DSI_VNNI_PANEL_N;
    const float *scale = p->scales;
    for (int64_t kb = 0; kb < p->columns; kb += step, scale += DSI_VNNI_PANEL_N) {
        const int64_t end = dsi_min(kb + step, p->columns);
        const int32_t *off = p->off + (whole ? 0 : (p->k + kb) / step * p->slots) + slot;
        const float *by = p->by + (p->k + kb) / DSI_BLOCK * p->slots + slot;
        dsi_vnni_panel_fetch(p, end - kb, w);
        __m512i sum[DSI_VNNI_TILE_M][2];
        DSI_UNROLL_16
        for (int j = 0; j < rows; j++) {
            DSI_UNROLL_16
            for (int v = 0; v < 2; v++)
                sum[j][v] = whole ? _mm512_load_si512(totals + (j * 2 + v) * DSI_VNNI_N)
                                  : _mm512_set1_epi32(off[j]);
        }
        dsi_vnni_panel_dots(p, x, kb, end, rows, 2, sum);
        __asm__ volatile("" ::: "memory"); /* no total is loaded before the sums are done */
        DSI_UNROLL_16
        for (int j = 0; j < rows; j++) {
            DSI_UNROLL_16
            for (int v = 0; v < 2; v++) {
                float *at = totals + (j * 2 + v) * DSI_VNNI_N;
                if (whole) {
                    _mm512_store_si512(at, sum[j][v]);
                    continue;
                }
                __m512 factor =
                    _mm512_mul_ps(_mm512_load_ps(scale + v * DSI_VNNI_N), _mm512_set1_ps(by[j]));
                _mm512_store_ps(
                    at, _mm512_fmadd_ps(factor, _mm512_cvtepi32_ps(sum[j][v]), _mm512_load_ps(at)));
            }
        }
    }
}

DSI_INLINE void dsi_vnni_panel_rows(dsi_vnni_panel *p, int64_t slot, int64_t i, int64_t rows,
                                    bool whole, dsi_dtype w) {
    if (rows > 11)
        dsi_vnni_panel_tile(p, slot, i, 12, rows, whole, w);
    else if (rows > 10)
        dsi_vnni_panel_tile(p, slot, i, 11, rows, whole, w);
    else if (rows > 8)
        dsi_vnni_panel_tile(p, slot, i, 10, rows, whole, w);
    else if (rows > 6)
        dsi_vnni_panel_tile(p, slot, i, 8, rows, whole, w);
    else
        dsi_vnni_panel_tile(p, slot, i, 6, rows, whole, w);
}

/* What totals begin with: 0, or what takes the zero point off. */
DSI_INLINE void dsi_vnni_panel_begin(const dsi_vnni_panel *p) {
    for (int64_t s = 0; s < p->slots * 2; s++)
        _mm512_store_si512(p->totals + s * DSI_VNNI_N,
                           p->whole ? _mm512_set1_epi32(p->off[s / 2]) : _mm512_setzero_si512());
}

/* Writes y of activation rows i.. of the call, `count` of them, in slots `slot` on. */
DSI_INLINE void dsi_vnni_panel_finish(const dsi_vnni_panel *p, int64_t slot, int64_t i,
                                      int64_t count) {
    const dsi_matmul_args *a = p->a;
    for (int64_t v = 0; v < 2; v++) {
        const int64_t left = a->n1 - p->n - v * DSI_VNNI_N;
        if (left <= 0) break;
        const __mmask16 some = (__mmask16)(left >= 16 ? 0xFFFF : (1u << left) - 1u);
        for (int64_t j = 0; j < count; j++) {
            __m512 total = _mm512_load_ps(p->totals + ((slot + j) * 2 + v) * DSI_VNNI_N);
            if (p->whole)
                total = _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_castps_si512(total)),
                                      _mm512_mul_ps(_mm512_load_ps(p->scales + v * DSI_VNNI_N),
                                                    _mm512_set1_ps(p->by[slot + j])));
            _mm512_mask_storeu_ps(a->y + (i + j) * a->y_stride + p->n - a->n0 + v * DSI_VNNI_N,
                                  some, total);
        }
    }
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

/* All weight rows against activation rows m0 to m0 + m - 1. */
DSI_INLINE void dsi_vnni_panels_of(dsi_vnni_panel *p, int64_t m0, int64_t m, dsi_dtype w) {
    const dsi_matmul_args *a = p->a;
    const int64_t tiles = p->slots / DSI_VNNI_TILE_M;
    dsi_vnni_panel_slots(p, m0, m, w);
    for (p->n = a->n0; p->n < a->n1; p->n += DSI_VNNI_PANEL_N) {
        dsi_vnni_panel_begin(p);
        for (p->k = 0; p->k < a->k; p->k += DSI_VNNI_PANEL_K) {
            p->columns = dsi_min(DSI_VNNI_PANEL_K, a->k - p->k);
            dsi_vnni_panel_decode(p, 2, w);
            dsi_vnni_panel_ahead(p, tiles, w);
            for (int64_t t = 0; t < tiles; t++) {
                const int64_t i = m * t / tiles, rows = m * (t + 1) / tiles - i;
                if (p->whole)
                    dsi_vnni_panel_rows(p, t * DSI_VNNI_TILE_M, m0 + i, rows, true, w);
                else
                    dsi_vnni_panel_rows(p, t * DSI_VNNI_TILE_M, m0 + i, rows, false, w);
            }
        }
        for (int64_t t = 0; t < tiles; t++) {
            const int64_t i = m * t / tiles;
            dsi_vnni_panel_finish(p, t * DSI_VNNI_TILE_M, m0 + i, m * (t + 1) / tiles - i);
        }
    }
}

/* Activation rows as many at a time as have room for their slots in scratch: 42 and more. */
DSI_INLINE void dsi_vnni_panels(const dsi_matmul_args *a, dsi_dtype w) {
    dsi_vnni_panel p = {.a = a, .weights = a->scratch, .whole = dsi_vnni_whole(a)};
    _Alignas(64) float scales[DSI_VNNI_BLOCKS * DSI_VNNI_PANEL_N];
    p.scales = scales;
    p.block = dsi_vnni_block(a);
    const int64_t offs = (a->k + p.block - 1) / p.block, bys = dsi_a8_blocks(a->k);
    const int64_t columns = (dsi_min(a->k, DSI_VNNI_PANEL_K) + 63) / 64 * 64;
    const int64_t panel_bytes = DSI_VNNI_PANEL_N * columns;
    const int64_t slot_bytes = DSI_VNNI_PANEL_N * 4 + (offs + bys) * 4;
    const int64_t room = (dsi_matmul_scratch_bytes(a->k) - panel_bytes) / slot_bytes;
    const int64_t m_step = dsi_min(room, DSI_VNNI_M_MAX) / DSI_VNNI_TILE_M * DSI_VNNI_TILE_M;
    p.totals = (float *)(void *)(p.weights + panel_bytes);
    for (int64_t m0 = 0; m0 < a->m; m0 += m_step) {
        const int64_t m = dsi_min(m_step, a->m - m0);
        p.slots = (m + DSI_VNNI_TILE_M - 1) / DSI_VNNI_TILE_M * DSI_VNNI_TILE_M;
        p.by = p.totals + p.slots * DSI_VNNI_PANEL_N;
        p.off = (int32_t *)(void *)(p.by + p.slots * bys);
        dsi_vnni_panels_of(&p, m0, m, w);
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
