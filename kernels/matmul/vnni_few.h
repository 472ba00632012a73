/* vnni_few.h: matmul of whole numbers with activations of 8 bits, for CPUs with VNNI (vpdpbusd:
 * four products of an unsigned and a signed byte into each 32-bit sum).
 *
 * Weights become unsigned by adding a zero point, 128 or 8 (a flipped bit; a nibble as it is),
 * which the sums in the activations' records take off again. Products are summed exactly in 32 bits
 * over the columns that share multipliers (over all of K where the rows do), so that their order is
 * free; then y = fma(scale * multiplier, sum, y), blocks ascending: one order for all that follows.
 *
 * Here: few activation rows, four weight rows side by side, 128 columns in two vectors, straight
 * from the file's bytes; the lanes of four sums are folded into one vector of four outputs per
 * block. Many rows: vnni.h. */
#ifndef DSI_KERNELS_MATMUL_VNNI_FEW_H
#define DSI_KERNELS_MATMUL_VNNI_FEW_H

#include "../formats.h"
#include "../kernels.h"
#include "../simd.h"
#include <immintrin.h>
#include <string.h>

enum {
    DSI_VNNI_DIRECT_N = 4,  /* weight rows of a direct tile */
    DSI_VNNI_DIRECT_M = 6,  /* activation rows of one: 6 x 4 sums, 4 + 1 operands */
    DSI_VNNI_N = 16,        /* weight rows in a vector of outputs */
    DSI_VNNI_PANEL_N = 32,  /* two of them */
    DSI_VNNI_PANEL_K = 512, /* 16 KB, a third of a cache of 48 */
    DSI_VNNI_WHOLE_K = 256, /* columns of a sum over all of K between two requests for weights */
    DSI_VNNI_TILE_M = 12,   /* 12 x 2 sums, 2 weights, 1 activation: 27 of 32 registers */
    DSI_VNNI_M_MAX = 192,   /* rows whose totals and columns of x stay in a cache of 1 MB */
    DSI_VNNI_SMALL = 32,    /* columns of a block where fewer than 128 share a scale */
    DSI_VNNI_BLOCKS = DSI_VNNI_PANEL_K / DSI_VNNI_SMALL,
    DSI_VNNI_K_MAX = 1 << 16 /* columns whose products surely fit into 32 bits */
};

/* DSI_UNROLL for loops of up to 16 steps. */
#if defined(__GNUC__) && !defined(__clang__) && !defined(DSI_SANITIZED)
#define DSI_UNROLL_16 _Pragma("GCC unroll 16")
#else
#define DSI_UNROLL_16 DSI_UNROLL
#endif

DSI_INLINE int64_t dsi_min(int64_t a, int64_t b) { return a < b ? a : b; }
DSI_INLINE int dsi_vnni_zero_bits(dsi_dtype w) { return w == DSI_DTYPE_I8 ? 7 : 3; }
/* One multiplier for each row on both sides: one sum over K. */
DSI_INLINE bool dsi_vnni_whole(const dsi_matmul_args *a) {
    return a->group_k >= a->k && a->x_group >= a->k && a->k <= DSI_VNNI_K_MAX;
}
DSI_INLINE int64_t dsi_vnni_block(const dsi_matmul_args *a) {
    return a->group_k < DSI_BLOCK ? DSI_VNNI_SMALL : DSI_BLOCK;
}
DSI_INLINE const uint8_t *dsi_vnni_x(const dsi_matmul_args *a, int64_t i) {
    return (const uint8_t *)a->x + (a->x_rows ? a->x_rows[i] : i) * a->x_stride;
}
/* Row of scales of weight row n: divisions are slow, and these groups the usual ones. */
DSI_INLINE int64_t dsi_vnni_scale_row(const dsi_matmul_args *a, int64_t n) {
    if (a->group_n == 1) return n;
    return a->group_n == DSI_BLOCK ? n / DSI_BLOCK : n / a->group_n;
}
DSI_INLINE float dsi_vnni_scale(const dsi_matmul_args *a, int64_t n, int64_t k) {
    return dsi_load_scale(a->scale_dtype, a->scale,
                          dsi_vnni_scale_row(a, n) * a->scale_stride +
                              (k < a->group_k ? 0 : k / a->group_k));
}
DSI_INLINE __mmask64 dsi_vnni_bytes(int64_t count) {
    return count >= 64 ? ~(__mmask64)0 : count <= 0 ? 0 : ((__mmask64)1 << count) - 1;
}

/* ---- Few rows: weights in registers ---------------------------------------------------------- */
/* 128 columns of a weight row, unsigned: first and second half of I8, even and odd columns of I4.
 */
typedef struct dsi_vnni_pair {
    __m512i first, second;
} dsi_vnni_pair;

/* `count` columns are read, never more (of an odd count of I4 with the other half of its byte). */
DSI_INLINE dsi_vnni_pair dsi_vnni_load(dsi_dtype w, const uint8_t *at, int64_t count) {
    if (w == DSI_DTYPE_I8) {
        const __m512i flip = _mm512_set1_epi8((char)0x80);
        __m512i first = count >= 64 ? _mm512_loadu_si512(at)
                                    : _mm512_maskz_loadu_epi8(dsi_vnni_bytes(count), at);
        __m512i second = count >= DSI_BLOCK
                             ? _mm512_loadu_si512(at + 64)
                             : _mm512_maskz_loadu_epi8(dsi_vnni_bytes(count - 64), at + 64);
        return (dsi_vnni_pair){_mm512_xor_si512(first, flip), _mm512_xor_si512(second, flip)};
    }
    const __m512i low4 = _mm512_set1_epi8(15);
    __m512i pairs = count >= DSI_BLOCK
                        ? _mm512_loadu_si512(at)
                        : _mm512_maskz_loadu_epi8(dsi_vnni_bytes((count + 1) / 2), at);
    return (dsi_vnni_pair){_mm512_and_si512(pairs, low4),
                           _mm512_and_si512(_mm512_srli_epi16(pairs, 4), low4)};
}

/* 128 activations as dsi_vnni_load has the weights; those from `count` on are 0. The record holds
 * zeros up to a multiple of 64 columns and other things behind them. */
DSI_INLINE dsi_vnni_pair dsi_vnni_load_x(dsi_dtype w, const uint8_t *at, int64_t count) {
    __m512i first = _mm512_loadu_si512(at);
    __m512i second = count > 64 ? _mm512_loadu_si512(at + 64) : _mm512_setzero_si512();
    if (w == DSI_DTYPE_I8) return (dsi_vnni_pair){first, second};
    const __m512i low8 = _mm512_set1_epi16(0xFF), order = _mm512_setr_epi64(0, 2, 4, 6, 1, 3, 5, 7);
    __m512i even =
        _mm512_packus_epi16(_mm512_and_si512(first, low8), _mm512_and_si512(second, low8));
    __m512i odd = _mm512_packus_epi16(_mm512_srli_epi16(first, 8), _mm512_srli_epi16(second, 8));
    return (dsi_vnni_pair){_mm512_permutexvar_epi64(order, even),
                           _mm512_permutexvar_epi64(order, odd)};
}

/* Activations of a call, and what takes the zero point off. */
typedef struct dsi_vnni_few {
    const uint8_t *x[DSI_VNNI_DIRECT_M]; /* per 128 columns a dsi_vnni_pair; I8: the record */
    const float *multiplier[DSI_VNNI_DIRECT_M];
    const int32_t *sum[DSI_VNNI_DIRECT_M];
    _Alignas(64) int32_t whole[DSI_VNNI_DIRECT_M][16]; /* -zero * sums over K, in any lanes */
} dsi_vnni_few;

DSI_INLINE __m512i dsi_vnni_minus_zero(__m512i sum, dsi_dtype w) {
    return _mm512_sub_epi32(_mm512_setzero_si512(),
                            _mm512_slli_epi32(sum, (unsigned)dsi_vnni_zero_bits(w)));
}

/* Activation rows i.. of the call, `rows` of them; the last stands in for those it lacks. */
DSI_INLINE void dsi_vnni_few_set(dsi_vnni_few *f, const dsi_matmul_args *a, int64_t i, int rows,
                                 dsi_dtype w) {
    const int64_t blocks = dsi_a8_blocks(a->k);
    for (int j = 0; j < rows; j++) {
        const uint8_t *record = dsi_vnni_x(a, dsi_min(i + j, a->m - 1));
        f->multiplier[j] = dsi_a8_multipliers(record, a->k);
        f->sum[j] = dsi_a8_sums(record, a->k);
        __m512i sum = _mm512_setzero_si512();
        for (int64_t b = 0; b < blocks; b++) /* four lanes hold them */
            sum = _mm512_add_epi32(sum, _mm512_zextsi128_si512(_mm_loadu_si128(
                                            (const __m128i *)(const void *)(f->sum[j] + b * 4))));
        _mm512_store_si512(f->whole[j], dsi_vnni_minus_zero(sum, w));
        f->x[j] = record;
        if (w == DSI_DTYPE_I8) continue;
        uint8_t *to = (uint8_t *)a->scratch + j * blocks * DSI_BLOCK;
        f->x[j] = to;
        for (int64_t k = 0; k < a->k; k += DSI_BLOCK, to += DSI_BLOCK) {
            dsi_vnni_pair x = dsi_vnni_load_x(w, record + k, a->k - k);
            _mm512_store_si512(to, x.first);
            _mm512_store_si512(to + 64, x.second);
        }
    }
}

/* Lane l of the result: the four sums' totals over their lane l. */
DSI_INLINE __m512i dsi_vnni_fold(const __m512i sum[DSI_VNNI_DIRECT_N]) {
    __m512i s01 = _mm512_add_epi32(_mm512_unpacklo_epi32(sum[0], sum[1]),
                                   _mm512_unpackhi_epi32(sum[0], sum[1]));
    __m512i s23 = _mm512_add_epi32(_mm512_unpacklo_epi32(sum[2], sum[3]),
                                   _mm512_unpackhi_epi32(sum[2], sum[3]));
    return _mm512_add_epi32(_mm512_unpacklo_epi64(s01, s23), _mm512_unpackhi_epi64(s01, s23));
}
DSI_INLINE __m128i dsi_vnni_fold_lanes(__m512i lanes) {
    __m256i two =
        _mm256_add_epi32(_mm512_castsi512_si256(lanes), _mm512_extracti64x4_epi64(lanes, 1));
    return _mm_add_epi32(_mm256_castsi256_si128(two), _mm256_extracti128_si256(two, 1));
}

/* 16 multipliers of a row from column k on, `block` columns apart. */
DSI_INLINE __m512 dsi_vnni_scales(const dsi_matmul_args *a, int64_t n, int64_t k, int64_t block) {
    const int64_t left = (a->k - k + block - 1) / block;
    const __mmask16 some = (__mmask16)(left >= 16 ? 0xFFFF : (1u << left) - 1u);
    if (a->group_k == block) {
        const uint8_t *at =
            (const uint8_t *)a->scale + (dsi_vnni_scale_row(a, n) * a->scale_stride + k / block) *
                                            dsi_element_bytes(a->scale_dtype);
        if (a->scale_dtype == DSI_DTYPE_F32) return _mm512_maskz_loadu_ps(some, at);
        __m256i half = _mm256_maskz_loadu_epi16(some, at);
        if (a->scale_dtype == DSI_DTYPE_F16) return _mm512_cvtph_ps(half);
        return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
    }
    if (a->group_k >= a->k) return _mm512_set1_ps(dsi_vnni_scale(a, n, 0));
    _Alignas(64) float scale[16] = {0};
    for (int64_t b = 0; b < 16 && b < left; b++) scale[b] = dsi_vnni_scale(a, n, k + b * block);
    return _mm512_load_ps(scale);
}

/* Asks for the scales of the next four rows: a few lines among many weights, which no hardware
 * foresees, and nothing goes on before they are there. */
DSI_INLINE void dsi_vnni_scales_ahead(const dsi_matmul_args *a,
                                      const int64_t row[DSI_VNNI_DIRECT_N], int64_t k) {
    const int64_t bytes = dsi_element_bytes(a->scale_dtype);
    const int64_t column = k < a->group_k ? 0 : k / a->group_k;
    for (int i = 0; i < DSI_VNNI_DIRECT_N; i++) {
        int64_t at = dsi_vnni_scale_row(a, row[i] + DSI_VNNI_DIRECT_N) * a->scale_stride + column;
        _mm_prefetch((const char *)((uintptr_t)a->scale + (uintptr_t)(at * bytes)), _MM_HINT_T0);
    }
}

/* The scales of sixteen blocks and four rows: those of block b begin at [b % 4][b / 4 * 4]. */
typedef struct dsi_vnni_quarter {
    _Alignas(64) float scale[4][16];
} dsi_vnni_quarter;

DSI_INLINE void dsi_vnni_quarter_set(dsi_vnni_quarter *q, const dsi_matmul_args *a,
                                     const int64_t row[DSI_VNNI_DIRECT_N], int64_t k,
                                     int64_t block) {
    __m512 r[DSI_VNNI_DIRECT_N];
    dsi_vnni_scales_ahead(a, row, k);
    DSI_UNROLL
    for (int i = 0; i < DSI_VNNI_DIRECT_N; i++) r[i] = dsi_vnni_scales(a, row[i], k, block);
    __m512 low01 = _mm512_unpacklo_ps(r[0], r[1]), high01 = _mm512_unpackhi_ps(r[0], r[1]);
    __m512 low23 = _mm512_unpacklo_ps(r[2], r[3]), high23 = _mm512_unpackhi_ps(r[2], r[3]);
    __m512d l01 = _mm512_castps_pd(low01), l23 = _mm512_castps_pd(low23);
    __m512d h01 = _mm512_castps_pd(high01), h23 = _mm512_castps_pd(high23);
    _mm512_store_pd(q->scale[0], _mm512_unpacklo_pd(l01, l23));
    _mm512_store_pd(q->scale[1], _mm512_unpackhi_pd(l01, l23));
    _mm512_store_pd(q->scale[2], _mm512_unpacklo_pd(h01, h23));
    _mm512_store_pd(q->scale[3], _mm512_unpackhi_pd(h01, h23));
}

/* Four weight rows from n on and where the next four begin. */
typedef struct dsi_vnni_rows {
    const uint8_t *w[DSI_VNNI_DIRECT_N];
    int64_t row[DSI_VNNI_DIRECT_N];
    uintptr_t ahead;
} dsi_vnni_rows;

/* sum += the products of up to 128 columns from k on. */
DSI_INLINE void dsi_vnni_direct_step(const dsi_vnni_rows *t, const dsi_vnni_few *f, int64_t k,
                                     int64_t count, int rows, dsi_dtype w,
                                     __m512i sum[DSI_VNNI_DIRECT_M][DSI_VNNI_DIRECT_N]) {
    dsi_vnni_pair weights[DSI_VNNI_DIRECT_N];
    DSI_UNROLL
    for (int r = 0; r < DSI_VNNI_DIRECT_N; r++)
        weights[r] = dsi_vnni_load(w, t->w[r] + dsi_row_bytes(w, k), count);
    DSI_UNROLL
    for (int j = 0; j < rows; j++) {
        const uint8_t *at = f->x[j] + k;
        __m512i first = _mm512_loadu_si512(at);
        __m512i second =
            w == DSI_DTYPE_I4 || count > 64 ? _mm512_loadu_si512(at + 64) : _mm512_setzero_si512();
        DSI_UNROLL
        for (int r = 0; r < DSI_VNNI_DIRECT_N; r++) {
            sum[j][r] = _mm512_dpbusd_epi32(sum[j][r], weights[r].first, first);
            sum[j][r] = _mm512_dpbusd_epi32(sum[j][r], weights[r].second, second);
        }
    }
}

/* Asks for what lies as far into the next four rows as column k into these: in the order of memory,
 * which arrives fastest. */
DSI_INLINE void dsi_vnni_direct_ahead(const dsi_vnni_rows *t, int64_t k, dsi_dtype w) {
    uintptr_t at = t->ahead + (uintptr_t)dsi_row_bytes(w, k * DSI_VNNI_DIRECT_N);
    DSI_UNROLL
    for (int64_t b = 0; b < dsi_row_bytes(w, DSI_BLOCK * DSI_VNNI_DIRECT_N); b += 64)
        _mm_prefetch((const char *)(at + (uintptr_t)b), _MM_HINT_T0);
}

/* total = fma(scale * multiplier, sum, total) for the block(s) in 128 columns from k on. */
DSI_INLINE __m128 dsi_vnni_direct_add(__m128 total, const __m512i sum[DSI_VNNI_DIRECT_N],
                                      const dsi_vnni_quarter *q, float multiplier, int64_t k,
                                      int64_t columns, int64_t block) {
    const __m128 by = _mm_set1_ps(multiplier);
    __m512i lanes = dsi_vnni_fold(sum);
    if (block == DSI_BLOCK) {
        const int64_t b = k / DSI_BLOCK % 16;
        __m128 factor = _mm_mul_ps(_mm_load_ps(q->scale[b % 4] + b / 4 * 4), by);
        return _mm_fmadd_ps(factor, _mm_cvtepi32_ps(dsi_vnni_fold_lanes(lanes)), total);
    }
    /* Of I4 lane l holds columns 32 l to 32 l + 31. */
    const int64_t at = k / DSI_BLOCK % 4 * 4;
    __m512 parts = _mm512_cvtepi32_ps(lanes);
    const __m128 part[4] = {_mm512_castps512_ps128(parts), _mm512_extractf32x4_ps(parts, 1),
                            _mm512_extractf32x4_ps(parts, 2), _mm512_extractf32x4_ps(parts, 3)};
    DSI_UNROLL
    for (int l = 0; l < 4; l++)
        if (l * DSI_VNNI_SMALL < columns)
            total = _mm_fmadd_ps(_mm_mul_ps(_mm_load_ps(q->scale[l] + at), by), part[l], total);
    return total;
}

/* Outputs of four weight rows and `rows` (a constant) activation rows, block by block. */
DSI_INLINE void dsi_vnni_direct_blocks(const dsi_matmul_args *a, const dsi_vnni_rows *rows_of,
                                       const dsi_vnni_few *f, int rows, int64_t block, dsi_dtype w,
                                       __m128 y[DSI_VNNI_DIRECT_M]) {
    const __m512i spread = _mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3);
    const dsi_vnni_rows t = *rows_of;
    dsi_vnni_quarter q;
    _Alignas(64) __m128 total[DSI_VNNI_DIRECT_M];
    for (int j = 0; j < rows; j++) total[j] = _mm_setzero_ps();
    for (int64_t k = 0; k < a->k; k += DSI_BLOCK) {
        const int64_t count = a->k - k;
        __m512i sum[DSI_VNNI_DIRECT_M][DSI_VNNI_DIRECT_N];
        if (k % (16 * block) == 0) dsi_vnni_quarter_set(&q, a, t.row, k, block);
        dsi_vnni_direct_ahead(&t, k, w);
        DSI_UNROLL
        for (int j = 0; j < rows; j++) {
            __m128i sums = _mm_loadu_si128((const __m128i *)(const void *)(f->sum[j] + k / 32));
            __m512i zero = dsi_vnni_minus_zero(
                _mm512_maskz_permutexvar_epi32(0x1111, spread, _mm512_castsi128_si512(sums)), w);
            DSI_UNROLL
            for (int r = 0; r < DSI_VNNI_DIRECT_N; r++) sum[j][r] = zero;
        }
        if (count >= DSI_BLOCK)
            dsi_vnni_direct_step(&t, f, k, DSI_BLOCK, rows, w, sum);
        else
            dsi_vnni_direct_step(&t, f, k, count, rows, w, sum);
        DSI_UNROLL
        for (int j = 0; j < rows; j++)
            total[j] = dsi_vnni_direct_add(total[j], sum[j], &q, f->multiplier[j][k / DSI_BLOCK], k,
                                           count, block);
    }
    for (int j = 0; j < rows; j++) y[j] = total[j];
}

/* The same where one sum goes over all columns. */
DSI_INLINE void dsi_vnni_direct_whole(const dsi_matmul_args *a, const dsi_vnni_rows *rows_of,
                                      const dsi_vnni_few *f, int rows, dsi_dtype w,
                                      __m128 y[DSI_VNNI_DIRECT_M]) {
    const dsi_vnni_rows t = *rows_of;
    __m512i sum[DSI_VNNI_DIRECT_M][DSI_VNNI_DIRECT_N];
    int64_t k = 0;
    DSI_UNROLL
    for (int j = 0; j < rows; j++) {
        sum[j][0] = sum[j][1] = sum[j][2] = sum[j][3] = _mm512_load_si512(f->whole[j]);
    }
    for (; k + DSI_BLOCK <= a->k; k += DSI_BLOCK) {
        dsi_vnni_direct_ahead(&t, k, w);
        dsi_vnni_direct_step(&t, f, k, DSI_BLOCK, rows, w, sum);
    }
    if (k < a->k) dsi_vnni_direct_step(&t, f, k, a->k - k, rows, w, sum);
    __m128 scale = _mm_setr_ps(dsi_vnni_scale(a, t.row[0], 0), dsi_vnni_scale(a, t.row[1], 0),
                               dsi_vnni_scale(a, t.row[2], 0), dsi_vnni_scale(a, t.row[3], 0));
    DSI_UNROLL
    for (int j = 0; j < rows; j++)
        y[j] = _mm_mul_ps(_mm_cvtepi32_ps(dsi_vnni_fold_lanes(dsi_vnni_fold(sum[j]))),
                          _mm_mul_ps(scale, _mm_set1_ps(f->multiplier[j][0])));
}

/* All weight rows against activation rows i.. of the call, `rows` (a constant) of them. */
DSI_INLINE void dsi_vnni_direct(const dsi_matmul_args *a, int64_t i, int rows, dsi_dtype w) {
    const bool whole = dsi_vnni_whole(a);
    const int64_t block = dsi_vnni_block(a), w_bytes = dsi_row_bytes(w, a->w_stride);
    dsi_vnni_few f;
    dsi_vnni_few_set(&f, a, i, rows, w);
    for (int64_t n = a->n0; n < a->n1; n += DSI_VNNI_DIRECT_N) {
        dsi_vnni_rows t = {.ahead =
                               (uintptr_t)a->w + (uintptr_t)((n + DSI_VNNI_DIRECT_N) * w_bytes)};
        __m128 y[DSI_VNNI_DIRECT_M];
        for (int64_t r = 0; r < DSI_VNNI_DIRECT_N; r++) {
            t.row[r] = dsi_min(n + r, a->n1 - 1);
            t.w[r] = a->w + t.row[r] * w_bytes;
        }
        if (whole)
            dsi_vnni_direct_whole(a, &t, &f, rows, w, y);
        else if (w == DSI_DTYPE_I8 || block == DSI_BLOCK)
            dsi_vnni_direct_blocks(a, &t, &f, rows, DSI_BLOCK, w, y);
        else
            dsi_vnni_direct_blocks(a, &t, &f, rows, DSI_VNNI_SMALL, w, y);
        const int64_t count = dsi_min(DSI_VNNI_DIRECT_N, a->n1 - n);
        for (int64_t j = 0; j < dsi_min(rows, a->m - i); j++)
            _mm_mask_storeu_ps(a->y + (i + j) * a->y_stride + n - a->n0,
                               (__mmask8)((1u << count) - 1u), y[j]);
    }
}

#endif
