/* transpose_avx512.h: rows of a page to columns: for kernels in which a lane is a row. */
#ifndef DSI_KERNELS_ATTEND_TRANSPOSE_AVX512_H
#define DSI_KERNELS_ATTEND_TRANSPOSE_AVX512_H

#include "../kernels.h"
#include "../vector.h"

/* The first n of 32 lanes of 16 bits. */
DSI_INLINE __mmask32 dsi_v32_lanes(int64_t n) {
    return n >= 32 ? 0xFFFFFFFFu : n > 0 ? (1u << n) - 1u : 0;
}

/* The first two steps of a transposition of 32-bit elements, f32 or pairs of bf16: columns j of
 * rows 4i to 4i + 3 in r[4i + j], for the four columns of every 128 bits. Two halves: compilers
 * unroll loops of up to eight. */
DSI_INLINE void dsi_transpose_quads(__m512i r[8]) {
    __m512i t[8];
    DSI_UNROLL
    for (int i = 0; i < 8; i += 2) {
        t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
        t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
    }
    DSI_UNROLL
    for (int i = 0; i < 8; i += 4) {
        r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
        r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
        r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
        r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
    }
}

/* Columns of 16 rows, [16][16] elements in low (rows 0 to 7) and high, to to[]; the first n of
 * them.
 */
DSI_INLINE void dsi_store_transposed(__m512i low[8], __m512i high[8], int64_t n,
                                     uint32_t (*to)[DSI_PAGE_ROWS]) {
    dsi_transpose_quads(low);
    dsi_transpose_quads(high);
    DSI_UNROLL
    for (int i = 0; i < 4; i++) {
        __m512i a = _mm512_shuffle_i32x4(low[i], low[i + 4], 0x88);
        __m512i b = _mm512_shuffle_i32x4(low[i], low[i + 4], 0xDD);
        __m512i c = _mm512_shuffle_i32x4(high[i], high[i + 4], 0x88);
        __m512i d = _mm512_shuffle_i32x4(high[i], high[i + 4], 0xDD);
        if (i < n) _mm512_store_si512(to[i], _mm512_shuffle_i32x4(a, c, 0x88));
        if (i + 4 < n) _mm512_store_si512(to[i + 4], _mm512_shuffle_i32x4(b, d, 0x88));
        if (i + 8 < n) _mm512_store_si512(to[i + 8], _mm512_shuffle_i32x4(a, c, 0xDD));
        if (i + 12 < n) _mm512_store_si512(to[i + 12], _mm512_shuffle_i32x4(b, d, 0xDD));
    }
}

#endif
