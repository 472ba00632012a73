/* pairs_avx512bf16.h: matmul_t with VDPBF16PS (AVX-512 VBMI and BF16). Included by the files of
 * its weight formats.
 *
 * x is f32 and goes in as the sum of two bf16, 16 bits of it: x = high + low. Weights are exact.
 * 64 columns of up to 128 rows of w are packed as [pair of rows][column] for up to 64 rows of x;
 * two of those at a time meet them, 2 x 64 sums of high and as many of low in registers.
 * The rows of one row of scale blocks are a sum of their own, which is then multiplied by the scale
 * and added to y; so the order depends on n0 and n1 alone. */
#ifndef DSI_KERNELS_MATMUL_T_PAIRS_AVX512BF16_H
#define DSI_KERNELS_MATMUL_T_PAIRS_AVX512BF16_H

#include "../kernels.h"
#include "../matmul/e4m3_bf16.h"
#include "../vector.h"

enum { T_GROUP = 2, T_ROWS = 64, T_COLUMNS = 64, T_PAIRS = DSI_BLOCK / 2 };

typedef struct pairs {
    _Alignas(64) uint32_t w[T_PAIRS][T_COLUMNS];
    _Alignas(64) uint16_t high[T_ROWS][DSI_BLOCK], low[T_ROWS][DSI_BLOCK];
} pairs;

DSI_INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

/* 16 lanes of x as high + low: high the nearest bf16 that is finite, low the rest; of what is not
 * finite the rest is 0. */
DSI_INLINE void split_x(__m512 x, uint16_t *high, uint16_t *low) {
    const __m512i kept = _mm512_set1_epi32((int32_t)0xFFFF0000u);
    __m512 near = dsi_v16_widen(dsi_v16_narrow(x));
    const __mmask16 odd = _mm512_fpclass_ps_mask(x, 0x99); /* NaN or infinite */
    const __mmask16 beyond = _mm512_fpclass_ps_mask(near, 0x18) & (__mmask16)~odd;
    near = _mm512_castsi512_ps(
        _mm512_mask_and_epi32(_mm512_castps_si512(near), beyond, _mm512_castps_si512(x), kept));
    __m512 rest = _mm512_maskz_sub_ps((__mmask16)~odd, x, near);
    _mm256_storeu_si256((__m256i *)(void *)high, dsi_v16_narrow(near));
    _mm256_storeu_si256((__m256i *)(void *)low, dsi_v16_narrow(rest));
}

/* Columns [first, first + n) of x rows [i, i + rows); behind them zeros up to a multiple of 16. */
static void take_x(pairs *p, const dsi_matmul_t_args *a, int64_t i, int64_t rows, int64_t first,
                   int64_t n) {
    for (int64_t r = 0; r < rows; r++) {
        const float *x = a->x + (i + r) * a->x_stride + first;
        for (int64_t c = 0; c < n; c += 16)
            split_x(dsi_v16_load(x + c, dsi_v16_lanes(n - c)), p->high[r] + c, p->low[r] + c);
    }
}

/* 64 codes of a row and of the row below, as four vectors of 16 pairs of bf16 in the order of
 * columns. */
DSI_INLINE void store_e4m3(uint32_t *to, __m512i even, __m512i odd) {
    /* unpack works inside 16 bytes: with four columns of each quarter in all of them, its results
     * come out in the order of columns */
    const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    even = _mm512_permutexvar_epi32(order, even);
    odd = _mm512_permutexvar_epi32(order, odd);
    const dsi_wide low = dsi_e4m3_to_bf16(_mm512_unpacklo_epi8(even, odd));
    const dsi_wide high = dsi_e4m3_to_bf16(_mm512_unpackhi_epi8(even, odd));
    _mm512_store_si512(to, low.first);
    _mm512_store_si512(to + 16, low.second);
    _mm512_store_si512(to + 32, high.first);
    _mm512_store_si512(to + 48, high.second);
}

/* The same of 32 bf16 of each row. */
DSI_INLINE void store_bf16(uint32_t *to, __m512i even, __m512i odd) {
    const __m512i low = _mm512_setr_epi64(0, 1, 8, 9, 2, 3, 10, 11);
    const __m512i high = _mm512_setr_epi64(4, 5, 12, 13, 6, 7, 14, 15);
    const __m512i a = _mm512_unpacklo_epi16(even, odd), b = _mm512_unpackhi_epi16(even, odd);
    _mm512_store_si512(to, _mm512_permutex2var_epi64(a, low, b));
    _mm512_store_si512(to + 16, _mm512_permutex2var_epi64(a, high, b));
}

/* What is left to prefetch, and how much of it beside every pair of rows. */
typedef struct fetch {
    uintptr_t at, end;
    int64_t lines;
} fetch;

/* Columns [j, j + columns) of w rows [n, n + rows); missing ones are zero. */
DSI_INLINE void pack_w(pairs *p, const dsi_matmul_t_args *a, int64_t n, int64_t rows, int64_t j,
                       int64_t columns, dsi_dtype w, fetch *next) {
    const int64_t bytes = dsi_element_bytes(w);
    const uint64_t all = columns >= 64 ? ~(uint64_t)0 : ((uint64_t)1 << columns) - 1;
    for (int64_t r = 0; r < rows; r += 2) {
        for (int64_t i = 0; i < next->lines && next->at < next->end; i++, next->at += 64)
            _mm_prefetch((const char *)next->at, _MM_HINT_T1);
        const uint8_t *even = a->w + ((n + r) * a->w_stride + j) * bytes;
        const uint8_t *odd = even + a->w_stride * bytes;
        uint32_t *to = p->w[r / 2];
        const uint64_t below = r + 1 < rows ? all : 0;
        if (r + 1 == rows) odd = even; /* its lanes are masked off */
        if (w == DSI_DTYPE_E4M3) {
            store_e4m3(to, _mm512_maskz_loadu_epi8(all, even), _mm512_maskz_loadu_epi8(below, odd));
            continue;
        }
        DSI_UNROLL
        for (int half = 0; half < 2; half++)
            store_bf16(to + 32 * half,
                       _mm512_maskz_loadu_epi16((__mmask32)(all >> 32 * half), even + 64 * half),
                       _mm512_maskz_loadu_epi16((__mmask32)(below >> 32 * half), odd + 64 * half));
    }
}

DSI_INLINE __m512bh broadcast(const uint16_t *two) {
    int32_t both;
    memcpy(&both, two, 4);
    return (__m512bh)_mm512_set1_epi32(both);
}

/* Rows [r, r + rows) of what is packed: y = scale * sum, or y += it. */
DSI_INLINE void multiply(const pairs *p, const dsi_matmul_t_args *a, int64_t i, int64_t r, int rows,
                         int64_t n_pairs, int64_t j, int64_t columns, float scale, bool add) {
    __m512 sum[T_GROUP][4], rest[T_GROUP][4]; /* of high, of low */
    DSI_UNROLL
    for (int g = 0; g < rows; g++) {
        DSI_UNROLL
        for (int c = 0; c < 4; c++) sum[g][c] = rest[g][c] = _mm512_setzero_ps();
    }
    for (int64_t pair = 0; pair < n_pairs; pair++) {
        __m512bh w[4];
        DSI_UNROLL
        for (int c = 0; c < 4; c++) w[c] = (__m512bh)_mm512_load_si512(p->w[pair] + 16 * c);
        DSI_UNROLL
        for (int g = 0; g < rows; g++) {
            __m512bh high = broadcast(p->high[r + g] + 2 * pair);
            __m512bh low = broadcast(p->low[r + g] + 2 * pair);
            DSI_UNROLL
            for (int c = 0; c < 4; c++) sum[g][c] = _mm512_dpbf16_ps(sum[g][c], high, w[c]);
            DSI_UNROLL
            for (int c = 0; c < 4; c++) rest[g][c] = _mm512_dpbf16_ps(rest[g][c], low, w[c]);
        }
    }
    DSI_UNROLL
    for (int g = 0; g < rows; g++) {
        float *y = a->y + (i + r + g) * a->y_stride + j;
        DSI_UNROLL
        for (int c = 0; c < 4; c++) {
            __mmask16 lanes = dsi_v16_lanes(columns > 16 * c ? columns - 16 * c : 0);
            __m512 old = add ? dsi_v16_load(y + 16 * c, lanes) : _mm512_setzero_ps();
            _mm512_mask_storeu_ps(
                y + 16 * c, lanes,
                _mm512_fmadd_ps(_mm512_set1_ps(scale), _mm512_add_ps(sum[g][c], rest[g][c]), old));
        }
    }
}

/* The matmul_t of weights of type w, a constant. */
DSI_INLINE void dsi_matmul_t_pairs(const dsi_matmul_t_args *a, dsi_dtype w) {
    pairs p;
    const int64_t pairs_of_rows = (a->n1 - a->n0 + 1) / 2 * ((a->k + T_COLUMNS - 1) / T_COLUMNS);
    fetch next = {(uintptr_t)a->next, (uintptr_t)a->next + (uintptr_t)a->next_bytes, 1};
    if (pairs_of_rows > 0) next.lines = a->next_bytes / 64 / pairs_of_rows + 1;
    for (int64_t i = 0; i < a->m; i += T_ROWS) {
        const int64_t rows = least(T_ROWS, a->m - i);
        int64_t n = a->n0;
        do { /* once at least: a sum of no rows is 0 */
            const int64_t n_end = least((n / DSI_BLOCK + 1) * DSI_BLOCK, a->n1);
            const int64_t n_rows = n_end > n ? n_end - n : 0;
            take_x(&p, a, i, rows, n - a->n0, n_rows);
            for (int64_t j = 0; j < a->k; j += T_COLUMNS) {
                const int64_t columns = least(T_COLUMNS, a->k - j), n_pairs = (n_rows + 1) / 2;
                float scale = 1;
                if (w == DSI_DTYPE_E4M3 && n_rows > 0)
                    scale = dsi_load_f32(a->scale, n / DSI_BLOCK * a->scale_stride + j / DSI_BLOCK);
                pack_w(&p, a, n, n_rows, j, columns, w, &next);
                int64_t r = 0;
                for (; r + T_GROUP <= rows; r += T_GROUP)
                    multiply(&p, a, i, r, T_GROUP, n_pairs, j, columns, scale, n > a->n0);
                for (; r < rows; r++)
                    multiply(&p, a, i, r, 1, n_pairs, j, columns, scale, n > a->n0);
            }
            n = n_end;
        } while (n < a->n1);
    }
}

#endif
