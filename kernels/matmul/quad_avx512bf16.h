/* quad_avx512bf16.h: quads of bf16 for vdpbf16ps (AVX-512 VBMI and BF16).
 *
 * Defines for quad.h how weights are loaded and decoded. `count` columns of a row are read, never
 * more; the rest is zero. Every E4M3 value is a normal bf16, zero or NaN, and so is every integer
 * of 8 or 4 bits: weights are exact; vdpbf16ps takes denormal activations as zero. */
#ifndef DSI_KERNELS_MATMUL_QUAD_AVX512BF16_H
#define DSI_KERNELS_MATMUL_QUAD_AVX512BF16_H

#include "../formats.h"
#include "../simd.h"
#include "i8_bf16.h"
#include <immintrin.h>

/* 64 bytes of each of four rows: vector c holds their bytes [16 c, 16 c + 16), a row in a lane. */
typedef struct dsi_quad_codes {
    __m512i lanes[4];
} dsi_quad_codes;
/* Decoded: eight columns of four rows each, in order; dsi_quad_vectors of them. */
typedef struct dsi_quad_wide {
    __m512i vectors[4];
} dsi_quad_wide;

/* Columns in 64 bytes of a row. */
DSI_INLINE int64_t dsi_quad_chunk(dsi_dtype w) {
    return w == DSI_DTYPE_BF16 ? 32 : w == DSI_DTYPE_I4 ? 128 : 64;
}
/* Vectors in a lane of codes. */
DSI_INLINE int dsi_quad_vectors(dsi_dtype w) { return (int)(dsi_quad_chunk(w) / 32); }

/* n_bytes (up to 64) of each of n_rows rows from `at` on, w_bytes apart; the last row stands in for
 * those that a quad lacks. */
DSI_INLINE dsi_quad_codes dsi_quad_load(const uint8_t *at, int64_t w_bytes, int64_t n_rows,
                                        int64_t n_bytes) {
    __m512i row[4];
    const __mmask64 bytes = n_bytes >= 64 ? ~(__mmask64)0 : ((__mmask64)1 << n_bytes) - 1;
    DSI_UNROLL
    for (int r = 0; r < 4; r++) {
        const uint8_t *from = at + (r < n_rows ? r : n_rows - 1) * w_bytes;
        row[r] = n_bytes >= 64 ? _mm512_loadu_si512(from) : _mm512_maskz_loadu_epi8(bytes, from);
    }
    /* A 4x4 transpose of 128-bit lanes. */
    __m512i low01 = _mm512_shuffle_i64x2(row[0], row[1], 0x44);
    __m512i low23 = _mm512_shuffle_i64x2(row[2], row[3], 0x44);
    __m512i high01 = _mm512_shuffle_i64x2(row[0], row[1], 0xEE);
    __m512i high23 = _mm512_shuffle_i64x2(row[2], row[3], 0xEE);
    return (dsi_quad_codes){
        {_mm512_shuffle_i64x2(low01, low23, 0x88), _mm512_shuffle_i64x2(low01, low23, 0xDD),
         _mm512_shuffle_i64x2(high01, high23, 0x88), _mm512_shuffle_i64x2(high01, high23, 0xDD)}};
}

/* Codes 0..15 stand for -8..7; of two columns in a byte the first is the low half. */
DSI_INLINE dsi_quad_wide dsi_quad_widen_i4(__m512i codes) {
    const __m512i low_bytes = _mm512_broadcast_i32x4(_mm_setr_epi8(
        0x00, (char)0xE0, (char)0xC0, (char)0xA0, (char)0x80, 0x40, 0x00, (char)0x80, 0x00,
        (char)0x80, 0x00, 0x40, (char)0x80, (char)0xA0, (char)0xC0, (char)0xE0));
    const __m512i high_bytes = _mm512_broadcast_i32x4(
        _mm_setr_epi8((char)0xC1, (char)0xC0, (char)0xC0, (char)0xC0, (char)0xC0, (char)0xC0,
                      (char)0xC0, (char)0xBF, 0x00, 0x3F, 0x40, 0x40, 0x40, 0x40, 0x40, 0x40));
    const __m512i half = _mm512_set1_epi8(0x0F);
    const __m512i even = _mm512_and_si512(codes, half);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi16(codes, 4), half);
    const __m512i even_low = _mm512_shuffle_epi8(low_bytes, even);
    const __m512i even_high = _mm512_shuffle_epi8(high_bytes, even);
    const __m512i odd_low = _mm512_shuffle_epi8(low_bytes, odd);
    const __m512i odd_high = _mm512_shuffle_epi8(high_bytes, odd);
    const __m512i even0 = _mm512_unpacklo_epi8(even_low, even_high);
    const __m512i even1 = _mm512_unpackhi_epi8(even_low, even_high);
    const __m512i odd0 = _mm512_unpacklo_epi8(odd_low, odd_high);
    const __m512i odd1 = _mm512_unpackhi_epi8(odd_low, odd_high);
    return (dsi_quad_wide){{_mm512_unpacklo_epi16(even0, odd0), _mm512_unpackhi_epi16(even0, odd0),
                            _mm512_unpacklo_epi16(even1, odd1),
                            _mm512_unpackhi_epi16(even1, odd1)}};
}

/* E4M3 codes, I8, I4 or bf16 as bf16. */
DSI_INLINE dsi_quad_wide dsi_quad_widen(dsi_dtype w, __m512i codes) {
    if (w == DSI_DTYPE_BF16) return (dsi_quad_wide){{codes, codes, codes, codes}};
    if (w == DSI_DTYPE_I4) return dsi_quad_widen_i4(codes);
    const dsi_wide wide = w == DSI_DTYPE_I8 ? dsi_i8_to_bf16(codes) : dsi_e4m3_to_bf16(codes);
    return (dsi_quad_wide){{wide.first, wide.second, wide.second, wide.second}};
}

/* Lane i of the sum adds the products of elements 2i + 1, then 2i. */
DSI_INLINE __m512 dsi_quad_dot(__m512 sum, __m512i w, __m512i x) {
    return _mm512_dpbf16_ps(sum, (__m512bh)w, (__m512bh)x);
}

#endif
