/* quads_avx512bf16.h: matmul of GGUF's blocks and bf16 activations with vdpbf16ps.
 *
 * Activations are packed once: the columns of a span in the order of its weight vectors, 16 bytes
 * for each, and in f32 the sums of the groups that minimums are multiplied with. The order along K:
 * the products of a group one vector after the other, times its scale into one of four sums of the
 * strip (DSI_STRIP columns), less minimum times sum; at the end of a strip the four as a fixed
 * tree, strips one after the other. Up to four activation rows the weights are decoded in
 * registers; of more a panel of 16 weight rows is decoded into scratch. */
#ifndef DSI_KERNELS_BLOCKS_QUADS_AVX512BF16_H
#define DSI_KERNELS_BLOCKS_QUADS_AVX512BF16_H

#include "../formats.h"
#include "../kernels.h"
#include "span_avx512bf16.h"
#include <string.h>

enum {
    DSI_STRIP = 512,
    DSI_PANEL_ROWS = 4 * DSI_PANEL_QUADS,
    DSI_STRIP_SPANS = DSI_STRIP / 64, /* at most */
    DSI_PACK_M = 6                    /* activation rows of a tile */
};

DSI_INLINE int64_t dsi_least(int64_t a, int64_t b) { return a < b ? a : b; }

/* Spans of k columns, the last one perhaps cut short. */
DSI_INLINE int64_t dsi_pack_spans(const dsi_span_type *t, int64_t k) {
    return (k + 4 * t->group - 1) / (4 * t->group);
}
/* A packed row: the spans, then their sums. */
DSI_INLINE int64_t dsi_pack_bytes(const dsi_span_type *t, int64_t spans) {
    return (spans * (t->steps * 16 + (t->has_min ? 16 : 0)) + 63) / 64 * 64;
}
DSI_INLINE const float *dsi_pack_sums(const dsi_span_type *t, const uint8_t *packed,
                                      int64_t spans) {
    return (const float *)(const void *)(packed + spans * t->steps * 16);
}

/* First column of group p of a span. */
DSI_INLINE int64_t dsi_pack_column(const dsi_span_type *t, int64_t span, int64_t p) {
    if (t->spans == 2 && t->group == 32) return span / 2 * 256 + (2 * p + span % 2) * 32;
    return (4 * span + p) * t->group;
}

/* Packs spans [s0, s0 + spans) of a row of k columns. */
DSI_INLINE void dsi_pack_row(const dsi_span_type *t, const uint8_t *x, int64_t k, int64_t s0,
                             int64_t spans, uint8_t *to) {
    const __m128i order = _mm_setr_epi8(0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15);
    const __m512i ones = _mm512_set1_epi16(0x3F80);
    float *sums = (float *)(void *)(to + spans * t->steps * 16);
    for (int64_t s = 0; s < spans; s++) {
        __m512 sum = _mm512_setzero_ps();
        for (int64_t c = 0; c < t->group; c += 8, to += 64) {
            __m128i v[4];
            DSI_UNROLL
            for (int p = 0; p < 4; p++) {
                int64_t column = dsi_pack_column(t, s0 + s, p);
                v[p] = column < k ? _mm_loadu_si128((const __m128i_u *)(x + (column + c) * 2))
                                  : _mm_setzero_si128();
                v[p] = _mm_shuffle_epi8(v[p], order);
            }
            __m128i a = _mm_unpacklo_epi32(v[0], v[1]), b = _mm_unpacklo_epi32(v[2], v[3]);
            __m128i d = _mm_unpackhi_epi32(v[0], v[1]), e = _mm_unpackhi_epi32(v[2], v[3]);
            __m512i all = _mm512_castsi128_si512(_mm_unpacklo_epi64(a, b));
            all = _mm512_inserti32x4(all, _mm_unpackhi_epi64(a, b), 1);
            all = _mm512_inserti32x4(all, _mm_unpacklo_epi64(d, e), 2);
            all = _mm512_inserti32x4(all, _mm_unpackhi_epi64(d, e), 3);
            _mm512_store_si512(to, all);
            if (t->has_min) sum = _mm512_dpbf16_ps(sum, (__m512bh)all, (__m512bh)ones);
        }
        if (!t->has_min) continue;
        __m256 eight = _mm256_add_ps(_mm512_castps512_ps256(sum), _mm512_extractf32x8_ps(sum, 1));
        _mm_store_ps(sums + 4 * s,
                     _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1)));
    }
}

DSI_INLINE void dsi_pack(const dsi_span_type *t, const dsi_matmul_args *a, int64_t i, int64_t m,
                         int64_t s0, int64_t spans, uint8_t *to) {
    const int64_t bytes = dsi_pack_bytes(t, spans);
    for (int64_t r = 0; r < m; r++) {
        int64_t row = a->x_rows ? a->x_rows[i + r] : i + r;
        dsi_pack_row(t, (const uint8_t *)a->x + row * a->x_stride * 2, a->k, s0, spans,
                     to + r * bytes);
    }
}

DSI_INLINE __m512 dsi_quad_sums(const float *at) { return _mm512_broadcast_f32x4(_mm_load_ps(at)); }

/* ---- Weight rows ----------------------------------------------------------------------------- */

/* Rows n to n + 3, the last one of the call in the place of those behind it. */
DSI_INLINE dsi_span_rows dsi_quad_rows(const dsi_matmul_args *a, int64_t n) {
    const int64_t bytes = dsi_row_bytes(a->w_dtype, a->w_stride);
    dsi_span_rows rows;
    for (int64_t r = 0; r < 4; r++) rows.row[r] = a->w + dsi_least(n + r, a->n1 - 1) * bytes;
    return rows;
}

/* Room for what cannot be read in place. */
typedef struct dsi_quad_room {
    dsi_block_parts parts[4];
    uint8_t tail[4][4 * 34];
} dsi_quad_room;

/* Blocks of 32 columns from k on that a unit of four lacks at the end of a row. */
DSI_INLINE int dsi_quad_lacks(const dsi_span_type *t, const dsi_matmul_args *a, int64_t k) {
    if (t->values != 32) return 0;
    return (int)(4 - dsi_least(4, (a->k - k) / 32));
}

/* A block of such a type, or four of them as one, as its parts. */
DSI_INLINE void dsi_quad_parts(const dsi_span_type *t, const dsi_matmul_args *a, int lacks,
                               dsi_span_rows *at, dsi_quad_room *room) {
    const dsi_blocks_read_fn read = dsi_blocks_reader__avx2(a->w_dtype);
    for (int r = 0; r < 4; r++) {
        dsi_block_parts *p = &room->parts[r];
        if (lacks) memset(p, 0, sizeof *p);
        read(at->row[r], t->values == 32 ? 4 - lacks : 1, p);
        at->row[r] = (const uint8_t *)p;
    }
}

static void dsi_quad_copy(uint8_t tail[4 * 34], const uint8_t *row, int bytes) {
    memset(tail, 0, 4 * 34);
    memcpy(tail, row, (size_t)bytes);
}

/* Weight rows n to n + 3 from column k on: of types without vector code their parts. At the end of
 * rows of small blocks a unit may end behind them: the rows that another one follows are read on
 * into it, of the last one there is a copy. dsi_quad_cut makes zeros of what is no weight. Pointers
 * must not go through memory here: the loads of a unit would wait for them. */
DSI_INLINE dsi_span_rows dsi_quad_at(const dsi_span_type *t, const dsi_matmul_args *a, int64_t n,
                                     const dsi_span_rows *rows, int64_t k, dsi_quad_room *room) {
    dsi_span_rows at;
    const int64_t byte = k / t->values * t->bytes;
    const int lacks = dsi_quad_lacks(t, a, k);
    DSI_UNROLL
    for (int r = 0; r < 4; r++) {
        const uint8_t *row = rows->row[r] + byte;
        const bool copied = !t->parts && lacks && (n + r >= a->n1 - 1 || a->k < 3 * 32);
        if (copied) dsi_quad_copy(room->tail[r], row, (4 - lacks) * t->bytes);
        at.row[r] = copied ? room->tail[r] : row;
    }
    if (t->parts) dsi_quad_parts(t, a, lacks, &at, room);
    return at;
}

/* Scales and minimums of the last `lacks` groups, which are not there, as zeros. */
DSI_INLINE void dsi_quad_cut(const dsi_span_type *t, int lacks, __m512 *scale, __m512 *min) {
    if (t->parts || t->values != 32 || lacks == 0) return;
    const __mmask16 there = (__mmask16)((15 >> lacks) * 0x1111);
    *scale = _mm512_maskz_mov_ps(there, *scale);
    if (t->has_min) *min = _mm512_maskz_mov_ps(there, *min);
}

/* Columns that dsi_quad_at gives at once, and units in them. */
DSI_INLINE int64_t dsi_quad_columns(const dsi_span_type *t) {
    return t->values == 32 ? 128 : t->values;
}
DSI_INLINE int dsi_quad_units(const dsi_span_type *t) {
    return (int)(dsi_quad_columns(t) / t->columns);
}

/* ---- Few rows -------------------------------------------------------------------------------- */

/* y = or += the four outputs of a strip, whose sums are the lanes of `total`. */
DSI_INLINE __m512 dsi_quad_tree(__m512 total) {
    total = _mm512_add_ps(total, _mm512_permute_ps(total, 0x4E));
    return _mm512_add_ps(total, _mm512_permute_ps(total, 0xB1));
}

/* Weight rows n to n + 3 against `rows` (a constant) packed rows. */
DSI_INLINE void dsi_quad_direct(const dsi_span_type *t, const dsi_matmul_args *a,
                                const uint8_t *packed, int64_t n, int rows, __m512i table) {
    const __m512i first = _mm512_setr_epi32(0, 4, 8, 12, 0, 4, 8, 12, 0, 4, 8, 12, 0, 4, 8, 12);
    const int64_t all = dsi_pack_spans(t, a->k), bytes = dsi_pack_bytes(t, all);
    const int64_t whole = dsi_quad_columns(t), unit_bytes = whole / t->values * t->bytes * 4;
    const dsi_span_rows w = dsi_quad_rows(a, n);
    uintptr_t ahead = (uintptr_t)w.row[0] + (uintptr_t)(4 * dsi_row_bytes(a->w_dtype, a->w_stride));
    dsi_quad_room room;
    __m512 y[DSI_SPAN_ROWS], total[DSI_SPAN_ROWS];
    DSI_UNROLL
    for (int i = 0; i < rows; i++) y[i] = total[i] = _mm512_setzero_ps();
    int64_t span = 0;
    for (int64_t k = 0; k < a->k; k += whole) {
        const dsi_span_rows at = dsi_quad_at(t, a, n, &w, k, &room);
        for (int64_t b = 0; b < unit_bytes; b += 64)
            _mm_prefetch((const char *)(ahead + (uintptr_t)b), _MM_HINT_T0);
        ahead += (uintptr_t)unit_bytes;
        for (int unit = 0; unit < dsi_quad_units(t); unit++, span += t->spans) {
            dsi_span_sink sink = {0};
            __m512 scale[DSI_UNIT_SPANS], min[DSI_UNIT_SPANS];
            DSI_UNROLL
            for (int i = 0; i < rows; i++)
                sink.x[i] = packed + dsi_least(i, a->m - 1) * bytes + span * t->steps * 16;
            dsi_span_decode(&sink, t, rows, &at, unit, table);
            dsi_span_scales(t, &at, unit, scale, min);
            dsi_quad_cut(t, dsi_quad_lacks(t, a, k), scale, min);
            DSI_UNROLL
            for (int s = 0; s < t->spans; s++) {
                DSI_UNROLL
                for (int i = 0; i < rows; i++) {
                    total[i] = _mm512_fmadd_ps(scale[s], sink.sum[s][i], total[i]);
                    if (!t->has_min) continue;
                    const float *sums =
                        dsi_pack_sums(t, packed + dsi_least(i, a->m - 1) * bytes, all);
                    total[i] =
                        _mm512_fnmadd_ps(min[s], dsi_quad_sums(sums + 4 * (span + s)), total[i]);
                }
            }
        }
        if ((k + whole) % DSI_STRIP != 0 && k + whole < a->k) continue;
        DSI_UNROLL
        for (int i = 0; i < rows; i++) {
            total[i] = dsi_quad_tree(total[i]);
            y[i] = k < DSI_STRIP ? total[i] : _mm512_add_ps(y[i], total[i]);
            total[i] = _mm512_setzero_ps();
        }
    }
    DSI_UNROLL
    for (int i = 0; i < rows; i++)
        if (i < a->m)
            _mm512_mask_storeu_ps(a->y + i * a->y_stride + n - a->n0,
                                  (__mmask16)((1u << dsi_least(4, a->n1 - n)) - 1u),
                                  _mm512_permutexvar_ps(first, y[i]));
}

DSI_INLINE void dsi_quad_few(const dsi_span_type *t, const dsi_matmul_args *a, int rows) {
    const __m512i table = dsi_span_table(t->dtype);
    dsi_pack(t, a, 0, a->m, 0, dsi_pack_spans(t, a->k), a->scratch);
    for (int64_t n = a->n0; n < a->n1; n += 4) dsi_quad_direct(t, a, a->scratch, n, rows, table);
}

/* ---- More rows ------------------------------------------------------------------------------- */

/* A strip of DSI_PANEL_ROWS weight rows: [span][step][quad][64 bytes], [span][quad][16]. */
typedef struct dsi_quad_panel {
    uint8_t *weights;
    _Alignas(64) float scale[DSI_STRIP_SPANS][DSI_PANEL_QUADS][16];
    _Alignas(64) float min[DSI_STRIP_SPANS][DSI_PANEL_QUADS][16];
    int64_t n, spans;
    bool first; /* strip of the rows */
} dsi_quad_panel;

/* Decodes columns [k, k1) of weight rows from p->n on; asks for `ahead` bytes further on. */
DSI_INLINE void dsi_quad_panel_decode(const dsi_span_type *t, const dsi_matmul_args *a,
                                      dsi_quad_panel *p, int64_t k0, int64_t k1, int64_t ahead) {
    const __m512i table = dsi_span_table(t->dtype);
    dsi_quad_room room;
    for (int64_t q = 0; q < DSI_PANEL_QUADS; q++) {
        const int64_t n = dsi_least(p->n + 4 * q, a->n1 - 1);
        const dsi_span_rows w = dsi_quad_rows(a, n);
        int64_t span = 0;
        for (int64_t k = k0; k < k1; k += dsi_quad_columns(t)) {
            const dsi_span_rows at = dsi_quad_at(t, a, n, &w, k, &room);
            const int64_t byte = k / t->values * t->bytes + ahead;
            for (int r = 0; r < 4; r++)
                for (int64_t b = 0; b < dsi_quad_columns(t) / t->values * t->bytes; b += 64)
                    _mm_prefetch((const char *)((uintptr_t)w.row[r] + (uintptr_t)(byte + b)),
                                 _MM_HINT_T1);
            for (int unit = 0; unit < dsi_quad_units(t); unit++, span += t->spans) {
                dsi_span_sink sink = {.panel = p->weights + q * 64 +
                                               span * t->steps * DSI_PANEL_QUADS * 64};
                __m512 scale[DSI_UNIT_SPANS], min[DSI_UNIT_SPANS];
                dsi_span_decode(&sink, t, 0, &at, unit, table);
                dsi_span_scales(t, &at, unit, scale, min);
                dsi_quad_cut(t, dsi_quad_lacks(t, a, k), scale, min);
                DSI_UNROLL
                for (int s = 0; s < t->spans; s++) {
                    _mm512_store_ps(p->scale[span + s][q], scale[s]);
                    if (t->has_min) _mm512_store_ps(p->min[span + s][q], min[s]);
                }
            }
        }
    }
}

/* The outputs of four quads in the order of weight rows. */
DSI_INLINE __m512 dsi_quad_fold(const float *total) {
    const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    __m512 q[4];
    DSI_UNROLL
    for (int i = 0; i < 4; i++) q[i] = _mm512_load_ps(total + 16 * i);
    __m512 a = _mm512_add_ps(_mm512_unpacklo_ps(q[0], q[1]), _mm512_unpackhi_ps(q[0], q[1]));
    __m512 b = _mm512_add_ps(_mm512_unpacklo_ps(q[2], q[3]), _mm512_unpackhi_ps(q[2], q[3]));
    __m512d c = _mm512_castps_pd(a), d = _mm512_castps_pd(b);
    __m512 sum = _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(c, d)),
                               _mm512_castpd_ps(_mm512_unpackhi_pd(c, d)));
    return _mm512_permutexvar_ps(order, sum);
}

/* `rows` (a constant) packed rows, `bytes` apart, against the panel: adds to y, of row i on. */
DSI_INLINE void dsi_quad_tile(const dsi_matmul_args *a, const dsi_quad_panel *p,
                              const uint8_t *packed, int64_t bytes, int64_t i, int rows, int steps,
                              bool has_min) {
    _Alignas(64) float total[DSI_PACK_M][DSI_PANEL_QUADS][16];
    memset(total, 0, sizeof total);
    const uint8_t *weights = p->weights, *x[DSI_PACK_M];
    const float *sums = (const float *)(const void *)(packed + p->spans * steps * 16);
    DSI_UNROLL
    for (int r = 0; r < rows; r++) x[r] = packed + r * bytes;
    for (int64_t span = 0; span < p->spans; span++) {
        __m512 part[DSI_PACK_M][DSI_PANEL_QUADS];
        DSI_UNROLL
        for (int r = 0; r < rows; r++) {
            DSI_UNROLL
            for (int q = 0; q < DSI_PANEL_QUADS; q++) part[r][q] = _mm512_setzero_ps();
        }
        for (int64_t step = 0; step < steps; step++, weights += DSI_PANEL_QUADS * 64) {
            const int64_t at = (span * steps + step) * 16;
            __m512i w[DSI_PANEL_QUADS];
            DSI_UNROLL
            for (int q = 0; q < DSI_PANEL_QUADS; q++) w[q] = _mm512_load_si512(weights + q * 64);
            DSI_UNROLL
            for (int r = 0; r < rows; r++) {
                __m512i v = _mm512_broadcast_i32x4(
                    _mm_load_si128((const __m128i *)(const void *)(x[r] + at)));
                DSI_UNROLL
                for (int q = 0; q < DSI_PANEL_QUADS; q++)
                    part[r][q] = _mm512_dpbf16_ps(part[r][q], (__m512bh)w[q], (__m512bh)v);
            }
        }
        __asm__ volatile("" ::: "memory"); /* no total is loaded before the parts are done */
        DSI_UNROLL
        for (int q = 0; q < DSI_PANEL_QUADS; q++) {
            const __m512 scale = _mm512_load_ps(p->scale[span][q]);
            DSI_UNROLL
            for (int r = 0; r < rows; r++) {
                __m512 sum = _mm512_fmadd_ps(scale, part[r][q], _mm512_load_ps(total[r][q]));
                if (has_min)
                    sum = _mm512_fnmadd_ps(_mm512_load_ps(p->min[span][q]),
                                           dsi_quad_sums(sums + r * (bytes / 4) + 4 * span), sum);
                _mm512_store_ps(total[r][q], sum);
            }
        }
    }
    const int64_t count = dsi_least(DSI_PANEL_ROWS, a->n1 - p->n);
    const __mmask16 some = (__mmask16)((1u << count) - 1u);
    for (int r = 0; r < rows; r++) {
        float *y = a->y + (i + r) * a->y_stride + p->n - a->n0;
        __m512 sum = dsi_quad_fold(total[r][0]);
        if (!p->first) sum = _mm512_add_ps(_mm512_maskz_loadu_ps(some, y), sum);
        _mm512_mask_storeu_ps(y, some, sum);
    }
}

DSI_INLINE void dsi_quad_tiles(const dsi_matmul_args *a, const dsi_quad_panel *p,
                               const uint8_t *packed, int64_t bytes, int64_t i, int64_t m,
                               int steps, bool has_min) {
    for (int64_t r = 0, rows; r < m; r += rows) {
        const int64_t left = m - r;
        rows = dsi_least(DSI_PACK_M, left);
        if (left > DSI_PACK_M && left < 2 * DSI_PACK_M) rows = (left + 1) / 2;
        const uint8_t *x = packed + r * bytes;
        if (rows == 6)
            dsi_quad_tile(a, p, x, bytes, i + r, 6, steps, has_min);
        else if (rows == 5)
            dsi_quad_tile(a, p, x, bytes, i + r, 5, steps, has_min);
        else if (rows == 4)
            dsi_quad_tile(a, p, x, bytes, i + r, 4, steps, has_min);
        else if (rows == 3)
            dsi_quad_tile(a, p, x, bytes, i + r, 3, steps, has_min);
        else if (rows == 2)
            dsi_quad_tile(a, p, x, bytes, i + r, 2, steps, has_min);
        else
            dsi_quad_tile(a, p, x, bytes, i + r, 1, steps, has_min);
    }
}

#endif
