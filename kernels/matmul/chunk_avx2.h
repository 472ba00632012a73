/* chunk_avx2.h: 8 elements of any format as one vector of f32 (AVX2, FMA, F16C).
 *
 * Defines for tile.h and tile_t.h: dsi_chunk (decoded elements), dsi_sum (running sums) and what is
 * done with them. `count` elements are read, never more; the rest of a chunk is zero. */
#ifndef DSI_KERNELS_MATMUL_CHUNK_AVX2_H
#define DSI_KERNELS_MATMUL_CHUNK_AVX2_H

#include "../simd.h"
#include <deepseek/types.h>
#include <immintrin.h>
#include <math.h>
#include <string.h>

typedef __m256 dsi_chunk;
typedef __m256 dsi_sum;
enum {
    DSI_CHUNK = 8,    /* elements in a dsi_chunk */
    DSI_LANES = 8,    /* floats in a dsi_sum */
    DSI_TILE_M = 2,   /* activation rows of a tile: 2 x 4 sums, 4 weights, 1 activation: 13 of 16 */
    DSI_DIRECT_M = 4, /* up to this many rows decoding a weight again costs less than a panel */
    DSI_TILE_T_J = 2, /* vectors of columns of a matmul_t tile: 4 x 2 sums */
    DSI_PANEL_DTYPE = DSI_DTYPE_F32
};

/* AVX2 masks whole dwords only, and a load past the end may fault: the tail goes through a copy. */
DSI_INLINE __m256 dsi_load_8x32(const uint8_t *at, int64_t count) {
    if (count >= DSI_CHUNK) return _mm256_loadu_ps((const float *)(const void *)at);
    float tail[DSI_CHUNK] = {0};
    memcpy(tail, at, (size_t)count * 4);
    return _mm256_loadu_ps(tail);
}

DSI_INLINE __m128i dsi_load_8x16(const uint8_t *at, int64_t count) {
    if (count >= DSI_CHUNK) return _mm_loadu_si128((const __m128i_u *)at);
    uint16_t tail[DSI_CHUNK] = {0};
    memcpy(tail, at, (size_t)count * 2);
    return _mm_loadu_si128((const __m128i_u *)tail);
}

DSI_INLINE __m128i dsi_load_8x8(const uint8_t *at, int64_t count) {
    if (count >= DSI_CHUNK) return _mm_loadl_epi64((const __m128i_u *)at);
    uint8_t tail[DSI_CHUNK] = {0};
    memcpy(tail, at, (size_t)count);
    return _mm_loadl_epi64((const __m128i_u *)tail);
}

DSI_INLINE dsi_chunk dsi_chunk_f32(const uint8_t *at, int64_t count) {
    return dsi_load_8x32(at, count);
}

DSI_INLINE dsi_chunk dsi_chunk_bf16(const uint8_t *at, int64_t count) {
    __m256i wide = _mm256_cvtepu16_epi32(dsi_load_8x16(at, count));
    return _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
}

DSI_INLINE dsi_chunk dsi_chunk_f16(const uint8_t *at, int64_t count) {
    return _mm256_cvtph_ps(dsi_load_8x16(at, count));
}

/* E4M3 has the fields of f16 with 3 of its 10 mantissa bits and a bias of 7 instead of 15: moved
 * into place, the code is the f16 of value * 2^-8, exact for normals, denormals and zero.
 * Only NaN is lost (it reads as 480): see dsi_e4m3_scale. */
DSI_INLINE __m128i dsi_e4m3_to_f16(__m128i codes) {
    __m128i wide = _mm_slli_epi16(_mm_cvtepi8_epi16(codes), 7);
    return _mm_and_si128(wide, _mm_set1_epi16((short)0xBF80));
}

/* value * 2^-8; NaN codes read as 480. */
DSI_INLINE dsi_chunk dsi_chunk_e4m3(const uint8_t *at, int64_t count) {
    return _mm256_cvtph_ps(dsi_e4m3_to_f16(dsi_load_8x8(at, count)));
}

/* value * 2^-8; NaN codes are NaN: all bits set. */
DSI_INLINE dsi_chunk dsi_chunk_e4m3_nan(const uint8_t *at, int64_t count) {
    __m128i codes = dsi_load_8x8(at, count);
    __m128i nan =
        _mm_cmpeq_epi8(_mm_or_si128(codes, _mm_set1_epi8((char)0x80)), _mm_set1_epi8((char)0xFF));
    __m256 value = _mm256_cvtph_ps(dsi_e4m3_to_f16(codes));
    return _mm256_or_ps(value, _mm256_castsi256_ps(_mm256_cvtepi8_epi32(nan)));
}

/* The multiplier of the sum over `count` <= 128 weights at `at` that dsi_chunk_e4m3 decoded: the
 * block's scale * 2^8, or NaN if one of the codes is NaN. */
DSI_INLINE float dsi_e4m3_scale(const uint8_t *at, int64_t count, float scale) {
    uint8_t tail[DSI_BLOCK] = {0};
    if (count < DSI_BLOCK) {
        memcpy(tail, at, (size_t)count);
        at = tail;
    }
    const __m256i magnitude = _mm256_set1_epi8(0x7F);
    __m256i largest = _mm256_setzero_si256();
    DSI_UNROLL
    for (int i = 0; i < DSI_BLOCK; i += 32) {
        __m256i codes = _mm256_loadu_si256((const __m256i_u *)(at + i));
        largest = _mm256_max_epu8(largest, _mm256_and_si256(codes, magnitude));
    }
    return _mm256_movemask_epi8(_mm256_cmpeq_epi8(largest, magnitude)) ? NAN : scale * 256.0f;
}

DSI_INLINE dsi_chunk dsi_chunk_i8(const uint8_t *at, int64_t count) {
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(dsi_load_8x8(at, count)));
}

/* Of an odd count the column behind the last is what its half of a byte holds. */
DSI_INLINE dsi_chunk dsi_chunk_i4(const uint8_t *at, int64_t count) {
    uint32_t word = 0;
    memcpy(&word, at, count >= DSI_CHUNK ? 4 : (size_t)(count + 1) / 2);
    __m256i columns = _mm256_srlv_epi32(_mm256_set1_epi32((int)word),
                                        _mm256_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28));
    columns = _mm256_and_si256(columns, _mm256_set1_epi32(15));
    return _mm256_cvtepi32_ps(_mm256_sub_epi32(columns, _mm256_set1_epi32(8)));
}

DSI_INLINE dsi_chunk dsi_chunk_load(dsi_dtype dtype, const uint8_t *at, int64_t count) {
    if (dtype == DSI_DTYPE_I8) return dsi_chunk_i8(at, count);
    if (dtype == DSI_DTYPE_I4) return dsi_chunk_i4(at, count);
    if (dtype == DSI_DTYPE_E4M3) return dsi_chunk_e4m3(at, count);
    if (dtype == DSI_DTYPE_BF16) return dsi_chunk_bf16(at, count);
    if (dtype == DSI_DTYPE_F16) return dsi_chunk_f16(at, count);
    return dsi_chunk_f32(at, count);
}

/* Whole numbers for tile_a8.h: DSI_INTS columns of 16 bits, and sums of products of 32 bits.
 * (vpmaddubsw would add pairs of products in 16 bits and saturate.) */
typedef __m256i dsi_ints;
enum { DSI_INTS = 16 };

DSI_INLINE __m128i dsi_load_bytes(const uint8_t *at, int64_t count, int64_t whole) {
    if (count >= whole)
        return whole == 16 ? _mm_loadu_si128((const __m128i_u *)at)
                           : _mm_loadl_epi64((const __m128i_u *)at);
    uint8_t tail[16] = {0};
    memcpy(tail, at, (size_t)count);
    return _mm_loadu_si128((const __m128i_u *)tail);
}

/* Of an odd count of I4 the column behind the last is what its half of a byte holds. */
DSI_INLINE dsi_ints dsi_ints_load(dsi_dtype dtype, const uint8_t *at, int64_t count) {
    if (dtype == DSI_DTYPE_I8) return _mm256_cvtepi8_epi16(dsi_load_bytes(at, count, 16));
    const __m128i low4 = _mm_set1_epi8(15);
    __m128i pairs = dsi_load_bytes(at, (count + 1) / 2, 8);
    __m128i high = _mm_and_si128(_mm_srli_epi16(pairs, 4), low4);
    __m128i columns = _mm_unpacklo_epi8(_mm_and_si128(pairs, low4), high);
    return _mm256_cvtepi8_epi16(_mm_sub_epi8(columns, _mm_set1_epi8(8)));
}
DSI_INLINE dsi_ints dsi_ints_zero(void) { return _mm256_setzero_si256(); }
DSI_INLINE dsi_ints dsi_ints_dot(dsi_ints sum, dsi_ints w, dsi_ints x) {
    return _mm256_add_epi32(sum, _mm256_madd_epi16(w, x));
}
DSI_INLINE dsi_sum dsi_ints_float(dsi_ints sum) { return _mm256_cvtepi32_ps(sum); }
DSI_INLINE int32_t dsi_ints_lanes(dsi_ints sum) {
    __m128i four = _mm_add_epi32(_mm256_castsi256_si128(sum), _mm256_extracti128_si256(sum, 1));
    __m128i two = _mm_add_epi32(four, _mm_unpackhi_epi64(four, four));
    return _mm_cvtsi128_si32(_mm_add_epi32(two, _mm_shuffle_epi32(two, 1)));
}

/* Stores a chunk as DSI_PANEL_DTYPE. */
DSI_INLINE void dsi_chunk_store(uint8_t *to, dsi_chunk chunk) {
    _mm256_storeu_ps((float *)(void *)to, chunk);
}

/* For weights that are whole numbers times a scale, less a minimum. */
DSI_INLINE dsi_chunk dsi_chunk_all(float value) { return _mm256_set1_ps(value); }
DSI_INLINE dsi_chunk dsi_chunk_times(dsi_chunk a, dsi_chunk b) { return _mm256_mul_ps(a, b); }
DSI_INLINE dsi_chunk dsi_chunk_less(dsi_chunk a, dsi_chunk b) { return _mm256_sub_ps(a, b); }
/* a * b - c, rounded once. */
DSI_INLINE dsi_chunk dsi_chunk_times_less(dsi_chunk a, dsi_chunk b, dsi_chunk c) {
    return _mm256_fmsub_ps(a, b, c);
}

DSI_INLINE dsi_sum dsi_sum_zero(void) { return _mm256_setzero_ps(); }
DSI_INLINE dsi_sum dsi_sum_load(const float *from) { return _mm256_loadu_ps(from); }
DSI_INLINE void dsi_sum_store(float *to, dsi_sum sum) { _mm256_storeu_ps(to, sum); }
DSI_INLINE void dsi_sum_store_some(float *to, dsi_sum sum, int64_t count) {
    if (count >= DSI_LANES) {
        _mm256_storeu_ps(to, sum);
    } else {
        float tail[DSI_LANES];
        _mm256_storeu_ps(tail, sum);
        memcpy(to, tail, (size_t)count * 4);
    }
}
DSI_INLINE dsi_sum dsi_sum_dot(dsi_sum sum, dsi_chunk w, dsi_chunk x) {
    return _mm256_fmadd_ps(w, x, sum);
}
DSI_INLINE dsi_sum dsi_sum_add(dsi_sum a, dsi_sum b) { return _mm256_add_ps(a, b); }
/* sum + factor * part */
DSI_INLINE dsi_sum dsi_sum_add_scaled(dsi_sum sum, float factor, dsi_sum part) {
    return _mm256_fmadd_ps(_mm256_set1_ps(factor), part, sum);
}

/* The lanes added as a fixed tree: halves onto halves. */
DSI_INLINE float dsi_sum_lanes(dsi_sum sum) {
    __m128 four = _mm_add_ps(_mm256_castps256_ps128(sum), _mm256_extractf128_ps(sum, 1));
    __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

#endif
