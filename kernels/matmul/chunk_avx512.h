/* chunk_avx512.h: 16 elements of any format as one vector of f32 (AVX-512 F, BW, VL, DQ).
 *
 * Defines for tile.h and tile_t.h: dsi_chunk (decoded elements), dsi_sum (running sums) and what is
 * done with them. `count` elements are read, never more; the rest of a chunk is zero. */
#ifndef DSI_KERNELS_MATMUL_CHUNK_AVX512_H
#define DSI_KERNELS_MATMUL_CHUNK_AVX512_H

#include "../simd.h"
#include <deepseek/types.h>
#include <immintrin.h>
#include <math.h>

typedef __m512 dsi_chunk;
typedef __m512 dsi_sum;
enum {
    DSI_CHUNK = 16, /* elements in a dsi_chunk */
    DSI_LANES = 16, /* floats in a dsi_sum */
    DSI_TILE_M = 6, /* activation rows of a tile: 6 x 4 sums, 4 weights, 1 activation: 29 of 32 */
    DSI_DIRECT_M = 12, /* up to this many rows decoding a weight again costs less than a panel */
    DSI_TILE_T_J = 4,  /* vectors of columns of a matmul_t tile: 4 x 4 sums */
    DSI_PANEL_DTYPE = DSI_DTYPE_F32
};

DSI_INLINE __mmask16 dsi_mask16(int64_t count) { return (__mmask16)((1u << count) - 1); }

DSI_INLINE dsi_chunk dsi_chunk_f32(const uint8_t *at, int64_t count) {
    if (count >= DSI_CHUNK) return _mm512_loadu_ps(at);
    return _mm512_maskz_loadu_ps(dsi_mask16(count), at);
}

DSI_INLINE __m256i dsi_load_16x16(const uint8_t *at, int64_t count) {
    if (count >= DSI_CHUNK) return _mm256_loadu_si256((const __m256i_u *)at);
    return _mm256_maskz_loadu_epi16(dsi_mask16(count), at);
}

DSI_INLINE dsi_chunk dsi_chunk_bf16(const uint8_t *at, int64_t count) {
    __m512i wide = _mm512_cvtepu16_epi32(dsi_load_16x16(at, count));
    return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
}

DSI_INLINE dsi_chunk dsi_chunk_f16(const uint8_t *at, int64_t count) {
    return _mm512_cvtph_ps(dsi_load_16x16(at, count));
}

DSI_INLINE __m128i dsi_load_16x8(const uint8_t *at, int64_t count) {
    if (count >= DSI_CHUNK) return _mm_loadu_si128((const __m128i_u *)at);
    return _mm_maskz_loadu_epi8(dsi_mask16(count), at);
}

/* E4M3 has the fields of f16 with 3 of its 10 mantissa bits and a bias of 7 instead of 15: moved
 * into place, the code is the f16 of value * 2^-8, exact for normals, denormals and zero.
 * Only NaN is lost (it reads as 480): see dsi_e4m3_scale. */
DSI_INLINE __m256i dsi_e4m3_to_f16(__m128i codes) {
    __m256i wide = _mm256_slli_epi16(_mm256_cvtepi8_epi16(codes), 7);
    return _mm256_and_si256(wide, _mm256_set1_epi16((short)0xBF80));
}

/* value * 2^-8; NaN codes read as 480. */
DSI_INLINE dsi_chunk dsi_chunk_e4m3(const uint8_t *at, int64_t count) {
    return _mm512_cvtph_ps(dsi_e4m3_to_f16(dsi_load_16x8(at, count)));
}

/* value * 2^-8; NaN codes are NaN. */
DSI_INLINE dsi_chunk dsi_chunk_e4m3_nan(const uint8_t *at, int64_t count) {
    __m128i codes = dsi_load_16x8(at, count);
    __mmask16 nan = _mm_cmpeq_epi8_mask(_mm_or_si128(codes, _mm_set1_epi8((char)0x80)),
                                        _mm_set1_epi8((char)0xFF));
    __m512 value = _mm512_cvtph_ps(dsi_e4m3_to_f16(codes));
    return _mm512_mask_mov_ps(value, nan, _mm512_set1_ps(NAN));
}

/* The multiplier of the sum over `count` <= 128 weights at `at` that dsi_chunk_e4m3 decoded: the
 * block's scale * 2^8, or NaN if one of the codes is NaN. */
DSI_INLINE float dsi_e4m3_scale(const uint8_t *at, int64_t count, float scale) {
    __m512i low, high;
    if (count >= DSI_BLOCK) {
        low = _mm512_loadu_si512(at);
        high = _mm512_loadu_si512(at + 64);
    } else {
        uint64_t one = 1;
        low = _mm512_maskz_loadu_epi8(count < 64 ? (one << count) - 1 : ~(uint64_t)0, at);
        high = _mm512_maskz_loadu_epi8(count > 64 ? (one << (count - 64)) - 1 : 0, at + 64);
    }
    __m512i magnitude = _mm512_set1_epi8(0x7F);
    __m512i largest =
        _mm512_max_epu8(_mm512_and_si512(low, magnitude), _mm512_and_si512(high, magnitude));
    return _mm512_cmpeq_epi8_mask(largest, magnitude) ? NAN : scale * 256.0f;
}

DSI_INLINE dsi_chunk dsi_chunk_i8(const uint8_t *at, int64_t count) {
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(dsi_load_16x8(at, count)));
}

/* Of an odd count the column behind the last is what its half of a byte holds. */
DSI_INLINE dsi_chunk dsi_chunk_i4(const uint8_t *at, int64_t count) {
    __m128i words = count >= DSI_CHUNK ? _mm_loadl_epi64((const __m128i_u *)at)
                                       : _mm_maskz_loadu_epi8(dsi_mask16((count + 1) / 2), at);
    const __m512i from = _mm512_setr_epi32(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1);
    const __m512i shift =
        _mm512_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28, 0, 4, 8, 12, 16, 20, 24, 28);
    __m512i columns = _mm512_permutexvar_epi32(from, _mm512_castsi128_si512(words));
    columns = _mm512_and_si512(_mm512_srlv_epi32(columns, shift), _mm512_set1_epi32(15));
    return _mm512_cvtepi32_ps(_mm512_sub_epi32(columns, _mm512_set1_epi32(8)));
}

DSI_INLINE dsi_chunk dsi_chunk_load(dsi_dtype dtype, const uint8_t *at, int64_t count) {
    if (dtype == DSI_DTYPE_I8) return dsi_chunk_i8(at, count);
    if (dtype == DSI_DTYPE_I4) return dsi_chunk_i4(at, count);
    if (dtype == DSI_DTYPE_E4M3) return dsi_chunk_e4m3(at, count);
    if (dtype == DSI_DTYPE_BF16) return dsi_chunk_bf16(at, count);
    if (dtype == DSI_DTYPE_F16) return dsi_chunk_f16(at, count);
    return dsi_chunk_f32(at, count);
}

/* Whole numbers for tile_a8.h: DSI_INTS columns of 16 bits, and sums of products of 32 bits. */
typedef __m512i dsi_ints;
enum { DSI_INTS = 32 };

/* Of an odd count of I4 the column behind the last is what its half of a byte holds. */
DSI_INLINE dsi_ints dsi_ints_load(dsi_dtype dtype, const uint8_t *at, int64_t count) {
    if (dtype == DSI_DTYPE_I8) {
        if (count >= DSI_INTS)
            return _mm512_cvtepi8_epi16(_mm256_loadu_si256((const __m256i_u *)at));
        __mmask32 some = (__mmask32)(((uint64_t)1 << count) - 1);
        return _mm512_cvtepi8_epi16(_mm256_maskz_loadu_epi8(some, at));
    }
    const __m128i low4 = _mm_set1_epi8(15);
    __m128i pairs = count >= DSI_INTS ? _mm_loadu_si128((const __m128i_u *)at)
                                      : _mm_maskz_loadu_epi8(dsi_mask16((count + 1) / 2), at);
    __m128i low = _mm_and_si128(pairs, low4), high = _mm_and_si128(_mm_srli_epi16(pairs, 4), low4);
    __m256i columns = _mm256_set_m128i(_mm_unpackhi_epi8(low, high), _mm_unpacklo_epi8(low, high));
    return _mm512_cvtepi8_epi16(_mm256_sub_epi8(columns, _mm256_set1_epi8(8)));
}
DSI_INLINE dsi_ints dsi_ints_zero(void) { return _mm512_setzero_si512(); }
DSI_INLINE dsi_ints dsi_ints_dot(dsi_ints sum, dsi_ints w, dsi_ints x) {
    return _mm512_add_epi32(sum, _mm512_madd_epi16(w, x));
}
DSI_INLINE dsi_sum dsi_ints_float(dsi_ints sum) { return _mm512_cvtepi32_ps(sum); }
DSI_INLINE int32_t dsi_ints_lanes(dsi_ints sum) { return _mm512_reduce_add_epi32(sum); }

/* Stores a chunk as DSI_PANEL_DTYPE. */
DSI_INLINE void dsi_chunk_store(uint8_t *to, dsi_chunk chunk) { _mm512_storeu_ps(to, chunk); }

/* For weights that are whole numbers times a scale, less a minimum. */
DSI_INLINE dsi_chunk dsi_chunk_all(float value) { return _mm512_set1_ps(value); }
DSI_INLINE dsi_chunk dsi_chunk_times(dsi_chunk a, dsi_chunk b) { return _mm512_mul_ps(a, b); }
DSI_INLINE dsi_chunk dsi_chunk_less(dsi_chunk a, dsi_chunk b) { return _mm512_sub_ps(a, b); }
/* a * b - c, rounded once. */
DSI_INLINE dsi_chunk dsi_chunk_times_less(dsi_chunk a, dsi_chunk b, dsi_chunk c) {
    return _mm512_fmsub_ps(a, b, c);
}

DSI_INLINE dsi_sum dsi_sum_zero(void) { return _mm512_setzero_ps(); }
DSI_INLINE dsi_sum dsi_sum_load(const float *from) { return _mm512_loadu_ps(from); }
DSI_INLINE void dsi_sum_store(float *to, dsi_sum sum) { _mm512_storeu_ps(to, sum); }
DSI_INLINE void dsi_sum_store_some(float *to, dsi_sum sum, int64_t count) {
    if (count >= DSI_LANES)
        _mm512_storeu_ps(to, sum);
    else
        _mm512_mask_storeu_ps(to, dsi_mask16(count), sum);
}
DSI_INLINE dsi_sum dsi_sum_dot(dsi_sum sum, dsi_chunk w, dsi_chunk x) {
    return _mm512_fmadd_ps(w, x, sum);
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
