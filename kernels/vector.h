/* vector.h: vector helpers that the attend, norm and act kernels share: loads and stores of f32 and
 * bf16 with tails, round to nearest even, and exp. The suffix of the including file decides which
 * half exists. No helper reads or writes past the elements it is told of. */
#ifndef DSI_KERNELS_VECTOR_H
#define DSI_KERNELS_VECTOR_H

#include "formats.h"
#include "simd.h"
#include <immintrin.h>

/* exp(x) = 2^n * exp(r) with n = round(x / ln 2) and |r| <= ln(2) / 2. ln 2 is taken in two parts
 * so that r is exact to the last bits; exp(r) = 1 + r + r^2 P(r), P as in Cephes expf (S. Moshier).
 * Below EXP_LOW the result rounds to 0, above EXP_HIGH to infinity. */
#define DSI_EXP_LOW (-105.0f)
#define DSI_EXP_HIGH 89.0f
#define DSI_LOG2_E 1.44269504088896341f
#define DSI_LN2_HIGH 0.693359375f
#define DSI_LN2_LOW (-2.12194440e-4f)
#define DSI_EXP_P0 1.9875691500e-4f
#define DSI_EXP_P1 1.3981999507e-3f
#define DSI_EXP_P2 8.3334519073e-3f
#define DSI_EXP_P3 4.1665795894e-2f
#define DSI_EXP_P4 1.6666665459e-1f
#define DSI_EXP_P5 5.0000001201e-1f

#ifdef __AVX2__

DSI_INLINE __m256 dsi_v8_widen(__m128i bf16) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bf16), 16));
}

/* Eight f32 as bf16, as dsi_f32_to_bf16. */
DSI_INLINE __m128i dsi_v8_narrow(__m256 value) {
    __m256i bits = _mm256_castps_si256(value);
    __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    __m256i rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7FFF)));
    __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x00400000));
    __m256i is_nan = _mm256_castps_si256(_mm256_cmp_ps(value, value, _CMP_UNORD_Q));
    __m256i high = _mm256_srli_epi32(_mm256_blendv_epi8(rounded, quiet, is_nan), 16);
    return _mm_packus_epi32(_mm256_castsi256_si128(high), _mm256_extracti128_si256(high, 1));
}

/* The first n (1..8) elements, zeros behind them. A whole vector is the common case. */
DSI_INLINE __m256 dsi_v8_load(const void *f32, int64_t n) {
    if (n >= 8) return _mm256_loadu_ps((const float *)f32);
    float part[8] = {0};
    memcpy(part, f32, (size_t)n * sizeof(float));
    return _mm256_loadu_ps(part);
}

DSI_INLINE __m256 dsi_v8_load_bf16(const void *bf16, int64_t n) {
    if (n >= 8) return dsi_v8_widen(_mm_loadu_si128((const __m128i *)bf16));
    uint16_t part[8] = {0};
    memcpy(part, bf16, (size_t)n * sizeof(uint16_t));
    return dsi_v8_widen(_mm_loadu_si128((const __m128i *)part));
}

DSI_INLINE void dsi_v8_store(float *y, __m256 value, int64_t n) {
    if (n >= 8) {
        _mm256_storeu_ps(y, value);
        return;
    }
    float part[8];
    _mm256_storeu_ps(part, value);
    memcpy(y, part, (size_t)n * sizeof(float));
}

DSI_INLINE void dsi_v8_store_bf16(uint16_t *y, __m256 value, int64_t n) {
    __m128i narrow = dsi_v8_narrow(value);
    if (n >= 8) {
        _mm_storeu_si128((__m128i *)y, narrow);
        return;
    }
    uint16_t part[8];
    _mm_storeu_si128((__m128i *)part, narrow);
    memcpy(y, part, (size_t)n * sizeof(uint16_t));
}

DSI_INLINE float dsi_v8_sum(__m256 value) {
    __m128 half = _mm_add_ps(_mm256_castps256_ps128(value), _mm256_extractf128_ps(value, 1));
    half = _mm_add_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_add_ss(half, _mm_movehdup_ps(half)));
}

DSI_INLINE float dsi_v8_max(__m256 value) {
    __m128 half = _mm_max_ps(_mm256_castps256_ps128(value), _mm256_extractf128_ps(value, 1));
    half = _mm_max_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_max_ss(half, _mm_movehdup_ps(half)));
}

/* Within 2 ulp; exp(-inf) = 0, exp(inf) = inf, exp(NaN) = NaN; denormal results are kept. */
DSI_INLINE __m256 dsi_v8_exp(__m256 x) {
    /* max and min return their second operand when one is NaN, so x comes second. */
    x = _mm256_max_ps(_mm256_set1_ps(DSI_EXP_LOW), x);
    x = _mm256_min_ps(_mm256_set1_ps(DSI_EXP_HIGH), x);
    __m256 n = _mm256_round_ps(_mm256_mul_ps(x, _mm256_set1_ps(DSI_LOG2_E)),
                               _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    __m256 r = _mm256_fnmadd_ps(n, _mm256_set1_ps(DSI_LN2_HIGH), x);
    r = _mm256_fnmadd_ps(n, _mm256_set1_ps(DSI_LN2_LOW), r);
    __m256 p = _mm256_set1_ps(DSI_EXP_P0);
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(DSI_EXP_P1));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(DSI_EXP_P2));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(DSI_EXP_P3));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(DSI_EXP_P4));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(DSI_EXP_P5));
    p = _mm256_fmadd_ps(p, _mm256_mul_ps(r, r), _mm256_add_ps(r, _mm256_set1_ps(1)));
    /* 2^n in two factors: n reaches -151 and 128, beyond what one exponent field holds. */
    __m256i whole = _mm256_cvtps_epi32(n), first = _mm256_srai_epi32(whole, 1);
    __m256i second = _mm256_sub_epi32(whole, first), bias = _mm256_set1_epi32(127);
    first = _mm256_slli_epi32(_mm256_add_epi32(first, bias), 23);
    second = _mm256_slli_epi32(_mm256_add_epi32(second, bias), 23);
    p = _mm256_mul_ps(p, _mm256_castsi256_ps(first));
    return _mm256_mul_ps(p, _mm256_castsi256_ps(second));
}

#endif
#ifdef __AVX512F__

/* The lanes of the first n elements; all of them from 16 on. */
DSI_INLINE __mmask16 dsi_v16_lanes(int64_t n) {
    return (__mmask16)(n >= 16 ? 0xFFFFu : (1u << n) - 1u);
}

DSI_INLINE __m512 dsi_v16_load(const void *f32, __mmask16 lanes) {
    return _mm512_maskz_loadu_ps(lanes, f32);
}

DSI_INLINE __m512 dsi_v16_widen(__m256i bf16) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bf16), 16));
}

DSI_INLINE __m512 dsi_v16_load_bf16(const void *bf16, __mmask16 lanes) {
    return dsi_v16_widen(_mm256_maskz_loadu_epi16(lanes, bf16));
}

/* Sixteen f32 as bf16, as dsi_f32_to_bf16. */
DSI_INLINE __m256i dsi_v16_narrow(__m512 value) {
    __m512i bits = _mm512_castps_si512(value);
    __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7FFF)));
    __mmask16 is_nan = _mm512_cmp_ps_mask(value, value, _CMP_UNORD_Q);
    rounded = _mm512_mask_or_epi32(rounded, is_nan, bits, _mm512_set1_epi32(0x00400000));
    return _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded, 16));
}

/* As dsi_v8_exp. */
DSI_INLINE __m512 dsi_v16_exp(__m512 x) {
    x = _mm512_max_ps(_mm512_set1_ps(DSI_EXP_LOW), x);
    x = _mm512_min_ps(_mm512_set1_ps(DSI_EXP_HIGH), x);
    /* Rounded by way of integers: gcc 12 warns about its own roundscale without optimization. */
    __m512 n = _mm512_cvtepi32_ps(_mm512_cvtps_epi32(_mm512_mul_ps(x, _mm512_set1_ps(DSI_LOG2_E))));
    __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(DSI_LN2_HIGH), x);
    r = _mm512_fnmadd_ps(n, _mm512_set1_ps(DSI_LN2_LOW), r);
    __m512 p = _mm512_set1_ps(DSI_EXP_P0);
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(DSI_EXP_P1));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(DSI_EXP_P2));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(DSI_EXP_P3));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(DSI_EXP_P4));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(DSI_EXP_P5));
    p = _mm512_fmadd_ps(p, _mm512_mul_ps(r, r), _mm512_add_ps(r, _mm512_set1_ps(1)));
    return _mm512_scalef_ps(p, n);
}

#endif
#endif
