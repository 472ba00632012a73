/* quad_avx512bf16.h: quads of bf16 for vdpbf16ps (AVX-512 VBMI and BF16).
 *
 * Defines for quad.h how weights are loaded and decoded. `count` columns of a row are read, never
 * more; the rest is zero. Every E4M3 value is a normal bf16, zero or NaN, and so is every integer
 * of 8 bits: weights are exact; vdpbf16ps takes denormal activations as zero. */
#ifndef DSI_KERNELS_MATMUL_QUAD_AVX512BF16_H
#define DSI_KERNELS_MATMUL_QUAD_AVX512BF16_H

#include "../formats.h"
#include "../simd.h"
#include "i8_bf16.h"
#include <immintrin.h>

enum { DSI_QUAD_CHUNK_MAX = 64 }; /* columns in 64 bytes of the narrowest weights */

/* 64 bytes of each of four rows: vector c holds their bytes [16 c, 16 c + 16), a row in a lane. */
typedef struct dsi_quad_codes {
    __m512i lanes[4];
} dsi_quad_codes;
/* Decoded: eight columns of four rows each; bf16 weights have no second. */
typedef struct dsi_quad_pair {
    __m512i first, second;
} dsi_quad_pair;

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

/* E4M3 codes, I8 or bf16 as bf16. */
DSI_INLINE dsi_quad_pair dsi_quad_widen(dsi_dtype w, __m512i codes) {
    if (w == DSI_DTYPE_BF16) return (dsi_quad_pair){codes, codes};
    const dsi_wide weights = w == DSI_DTYPE_I8 ? dsi_i8_to_bf16(codes) : dsi_e4m3_to_bf16(codes);
    return (dsi_quad_pair){weights.first, weights.second};
}

/* A chunk of `count` columns as vectors of eight columns, in order. */
DSI_INLINE void dsi_quad_decode(dsi_dtype w, const uint8_t *at, int64_t w_bytes, int64_t n_rows,
                                int64_t count, __m512i to[DSI_QUAD_CHUNK_MAX / 8]) {
    dsi_quad_codes codes = dsi_quad_load(at, w_bytes, n_rows, count * dsi_element_bytes(w));
    DSI_UNROLL
    for (int c = 0; c < 4; c++) {
        dsi_quad_pair weights = dsi_quad_widen(w, codes.lanes[c]);
        if (w != DSI_DTYPE_BF16) {
            to[2 * c] = weights.first;
            to[2 * c + 1] = weights.second;
        } else {
            to[c] = weights.first;
        }
    }
}

/* Lane i of the sum adds the products of elements 2i + 1, then 2i. */
DSI_INLINE __m512 dsi_quad_dot(__m512 sum, __m512i w, __m512i x) {
    return _mm512_dpbf16_ps(sum, (__m512bh)w, (__m512bh)x);
}

#endif
