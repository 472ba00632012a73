/* chunk_avx512bf16.h: 64 whole numbers or bf16 as two vectors of bf16 for vdpbf16ps (AVX-512 VBMI
 * and BF16).
 *
 * Defines for tile.h: dsi_chunk (decoded elements), dsi_sum (running sums) and what is done with
 * them. `count` elements are read, never more; the rest of a chunk is zero (of an odd count of I4
 * the column behind the last is what its half of a byte holds). Every number of 8 bits is a bf16;
 * vdpbf16ps takes denormal activations as zero. */
#ifndef DSI_KERNELS_MATMUL_CHUNK_AVX512BF16_H
#define DSI_KERNELS_MATMUL_CHUNK_AVX512BF16_H

#include "../simd.h"
#include <deepseek/types.h>
#include <immintrin.h>

typedef struct dsi_chunk {
    __m512i first, second; /* 32 bf16 each, in the order of memory */
} dsi_chunk;
typedef __m512 dsi_sum;
enum {
    DSI_CHUNK = 64, /* elements in a dsi_chunk */
    DSI_LANES = 16, /* floats in a dsi_sum */
    DSI_TILE_M = 4, /* activation rows of a tile: 4 x 4 sums, 8 weights, 2 activations: 26 of 32 */
    DSI_DIRECT_M = 8, /* up to this many rows decoding a weight again costs less than a panel */
    DSI_PANEL_DTYPE = DSI_DTYPE_BF16
};

DSI_INLINE __mmask64 dsi_mask64(int64_t count) {
    return count >= 64 ? ~(__mmask64)0 : ((__mmask64)1 << count) - 1;
}

#define DSI_LOW_8(n) 0x##n##0, 0x##n##2, 0x##n##4, 0x##n##6, 0x##n##8, 0x##n##A, 0x##n##C, 0x##n##E
/* Low and high bytes of the bf16 of 0 to 127: a power of two has 128 as many steps as it is. */
static const uint8_t dsi_i8_bf16_low[128] = {
    // clang-format off
    0x00, 0x80, 0x00, 0x40, 0x80, 0xA0, 0xC0, 0xE0, 0x00, 0x10, 0x20, 0x30, 0x40, 0x50, 0x60, 0x70,
    0x80, 0x88, 0x90, 0x98, 0xA0, 0xA8, 0xB0, 0xB8, 0xC0, 0xC8, 0xD0, 0xD8, 0xE0, 0xE8, 0xF0, 0xF8,
    0x00, 0x04, 0x08, 0x0C, 0x10, 0x14, 0x18, 0x1C, 0x20, 0x24, 0x28, 0x2C, 0x30, 0x34, 0x38, 0x3C,
    0x40, 0x44, 0x48, 0x4C, 0x50, 0x54, 0x58, 0x5C, 0x60, 0x64, 0x68, 0x6C, 0x70, 0x74, 0x78, 0x7C,
    DSI_LOW_8(8), DSI_LOW_8(9), DSI_LOW_8(A), DSI_LOW_8(B),
    DSI_LOW_8(C), DSI_LOW_8(D), DSI_LOW_8(E), DSI_LOW_8(F),
    // clang-format on
};
#undef DSI_LOW_8
static const uint8_t dsi_i8_bf16_high[128] = {
    // clang-format off
    0x00, 0x3F, 0x40, 0x40, 0x40, 0x40, 0x40, 0x40, 0x41, 0x41, 0x41, 0x41, 0x41, 0x41, 0x41, 0x41,
    0x41, 0x41, 0x41, 0x41, 0x41, 0x41, 0x41, 0x41, 0x41, 0x41, 0x41, 0x41, 0x41, 0x41, 0x41, 0x41,
    0x42, 0x42, 0x42, 0x42, 0x42, 0x42, 0x42, 0x42, 0x42, 0x42, 0x42, 0x42, 0x42, 0x42, 0x42, 0x42,
    0x42, 0x42, 0x42, 0x42, 0x42, 0x42, 0x42, 0x42, 0x42, 0x42, 0x42, 0x42, 0x42, 0x42, 0x42, 0x42,
    0x42, 0x42, 0x42, 0x42, 0x42, 0x42, 0x42, 0x42, 0x42, 0x42, 0x42, 0x42, 0x42, 0x42, 0x42, 0x42,
    0x42, 0x42, 0x42, 0x42, 0x42, 0x42, 0x42, 0x42, 0x42, 0x42, 0x42, 0x42, 0x42, 0x42, 0x42, 0x42,
    0x42, 0x42, 0x42, 0x42, 0x42, 0x42, 0x42, 0x42, 0x42, 0x42, 0x42, 0x42, 0x42, 0x42, 0x42, 0x42,
    0x42, 0x42, 0x42, 0x42, 0x42, 0x42, 0x42, 0x42, 0x42, 0x42, 0x42, 0x42, 0x42, 0x42, 0x42, 0x42,
    // clang-format on
};

DSI_INLINE dsi_chunk dsi_chunk_i8(const uint8_t *at, int64_t count) {
    const __m512i low0 = _mm512_loadu_si512(dsi_i8_bf16_low);
    const __m512i low1 = _mm512_loadu_si512(dsi_i8_bf16_low + 64);
    const __m512i high0 = _mm512_loadu_si512(dsi_i8_bf16_high);
    const __m512i high1 = _mm512_loadu_si512(dsi_i8_bf16_high + 64);
    const __m512i sign = _mm512_set1_epi8((char)0x80);
    __m512i whole = count >= DSI_CHUNK ? _mm512_loadu_si512(at)
                                       : _mm512_maskz_loadu_epi8(dsi_mask64(count), at);
    /* unpack works inside 16-byte lanes: with eight numbers of each half of the chunk in every
     * lane, its results come out in the order of memory. */
    whole = _mm512_permutexvar_epi64(_mm512_setr_epi64(0, 4, 1, 5, 2, 6, 3, 7), whole);
    __m512i magnitude = _mm512_abs_epi8(whole);
    __m512i low = _mm512_permutex2var_epi8(low0, magnitude, low1);
    __m512i high = _mm512_permutex2var_epi8(high0, magnitude, high1);
    /* high | (whole & 0x80): the sign. The tables took -128, whose magnitude has 8 bits, for 0. */
    high = _mm512_ternarylogic_epi32(high, whole, sign, 0xF8);
    high = _mm512_mask_mov_epi8(high, _mm512_cmpeq_epi8_mask(whole, sign),
                                _mm512_set1_epi8((char)0xC3));
    return (dsi_chunk){_mm512_unpacklo_epi8(low, high), _mm512_unpackhi_epi8(low, high)};
}

/* The bf16 of -8 to 7, twice: vpermw looks at five bits, and a nibble has a neighbour. */
static const uint16_t dsi_i4_bf16[32] = {
    0xC100, 0xC0E0, 0xC0C0, 0xC0A0, 0xC080, 0xC040, 0xC000, 0xBF80, 0x0000, 0x3F80, 0x4000,
    0x4040, 0x4080, 0x40A0, 0x40C0, 0x40E0, 0xC100, 0xC0E0, 0xC0C0, 0xC0A0, 0xC080, 0xC040,
    0xC000, 0xBF80, 0x0000, 0x3F80, 0x4000, 0x4040, 0x4080, 0x40A0, 0x40C0, 0x40E0};

DSI_INLINE dsi_chunk dsi_chunk_i4(const uint8_t *at, int64_t count) {
    const __m512i table = _mm512_loadu_si512(dsi_i4_bf16);
    __m256i pairs = count >= DSI_CHUNK
                        ? _mm256_loadu_si256((const __m256i_u *)at)
                        : _mm256_maskz_loadu_epi8((__mmask32)dsi_mask64((count + 1) / 2), at);
    /* As above: the two halves of the chunk side by side in every lane. */
    pairs = _mm256_permutevar8x32_epi32(pairs, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
    __m512i wide = _mm512_cvtepu8_epi16(pairs);
    __m512i even = _mm512_permutexvar_epi16(wide, table);
    __m512i odd = _mm512_permutexvar_epi16(_mm512_srli_epi16(wide, 4), table);
    return (dsi_chunk){_mm512_unpacklo_epi16(even, odd), _mm512_unpackhi_epi16(even, odd)};
}

/* For tile.h, whose other weights are no whole numbers: not used here. */
DSI_INLINE float dsi_e4m3_scale(const uint8_t *at, int64_t count, float scale) {
    (void)at, (void)count;
    return scale;
}

DSI_INLINE dsi_chunk dsi_chunk_bf16(const uint8_t *at, int64_t count) {
    if (count >= DSI_CHUNK) return (dsi_chunk){_mm512_loadu_si512(at), _mm512_loadu_si512(at + 64)};
    __mmask64 mask = dsi_mask64(count);
    return (dsi_chunk){_mm512_maskz_loadu_epi16((__mmask32)mask, at),
                       _mm512_maskz_loadu_epi16((__mmask32)(mask >> 32), at + 64)};
}

DSI_INLINE dsi_chunk dsi_chunk_load(dsi_dtype dtype, const uint8_t *at, int64_t count) {
    if (dtype == DSI_DTYPE_I8) return dsi_chunk_i8(at, count);
    return dtype == DSI_DTYPE_I4 ? dsi_chunk_i4(at, count) : dsi_chunk_bf16(at, count);
}

/* Stores a chunk as DSI_PANEL_DTYPE. */
DSI_INLINE void dsi_chunk_store(uint8_t *to, dsi_chunk chunk) {
    _mm512_storeu_si512(to, chunk.first);
    _mm512_storeu_si512(to + 64, chunk.second);
}

DSI_INLINE dsi_sum dsi_sum_zero(void) { return _mm512_setzero_ps(); }
DSI_INLINE dsi_sum dsi_sum_load(const float *from) { return _mm512_loadu_ps(from); }
DSI_INLINE void dsi_sum_store(float *to, dsi_sum sum) { _mm512_storeu_ps(to, sum); }
/* Lane i adds the products of elements 2i + 1 and 2i, of the first and then the second half. */
DSI_INLINE dsi_sum dsi_sum_dot(dsi_sum sum, dsi_chunk w, dsi_chunk x) {
    sum = _mm512_dpbf16_ps(sum, (__m512bh)w.first, (__m512bh)x.first);
    return _mm512_dpbf16_ps(sum, (__m512bh)w.second, (__m512bh)x.second);
}
DSI_INLINE dsi_sum dsi_sum_add(dsi_sum a, dsi_sum b) { return _mm512_add_ps(a, b); }
/* sum + factor * part */
DSI_INLINE dsi_sum dsi_sum_add_scaled(dsi_sum sum, float factor, dsi_sum part) {
    return _mm512_fmadd_ps(_mm512_set1_ps(factor), part, sum);
}

/* The lanes added as a fixed tree: halves onto halves. */
DSI_INLINE float dsi_sum_lanes(dsi_sum sum) {
    __m256 eight = _mm256_add_ps(_mm512_castps512_ps256(sum), _mm512_extractf32x8_ps(sum, 1));
    __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

#endif
