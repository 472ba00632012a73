/* quantize_avx2.c: a row of activations as 8-bit integers, eight elements at a time; the same bits
 * as quantize_ref.c. */
#include "../vector.h"
#include <deepseek/types.h>

DSI_INLINE __m256 load(const uint8_t *at, int64_t i, int64_t n, dsi_dtype x) {
    return x == DSI_DTYPE_F32 ? dsi_v8_load(at + i * 4, n - i)
                              : dsi_v8_load_bf16(at + i * 2, n - i);
}

DSI_INLINE uint32_t dsi_quantize_most(const uint8_t *at, int64_t n, dsi_dtype x) {
    const __m256i magnitude = _mm256_set1_epi32(0x7FFFFFFF);
    __m256i most = _mm256_setzero_si256();
    for (int64_t i = 0; i < n; i += 8) {
        __m256i bits = _mm256_and_si256(_mm256_castps_si256(load(at, i, n, x)), magnitude);
        most = _mm256_max_epi32(most, bits);
    }
    __m128i four = _mm_max_epi32(_mm256_castsi256_si128(most), _mm256_extracti128_si256(most, 1));
    __m128i two = _mm_max_epi32(four, _mm_unpackhi_epi64(four, four));
    return (uint32_t)_mm_cvtsi128_si32(_mm_max_epi32(two, _mm_shuffle_epi32(two, 1)));
}

DSI_INLINE void dsi_quantize_some(const uint8_t *at, int64_t n, dsi_dtype x, float factor,
                                  int8_t *q) {
    const __m256 by = _mm256_set1_ps(factor);
    for (int64_t i = 0; i < n; i += 8) {
        __m256i whole = _mm256_cvtps_epi32(_mm256_mul_ps(load(at, i, n, x), by));
        __m128i half =
            _mm_packs_epi32(_mm256_castsi256_si128(whole), _mm256_extracti128_si256(whole, 1));
        half = _mm_packs_epi16(half, half);
        if (n - i >= 8) {
            _mm_storel_epi64((__m128i_u *)(void *)(q + i), half);
        } else {
            int8_t part[16];
            _mm_storeu_si128((__m128i_u *)(void *)part, half);
            memcpy(q + i, part, (size_t)(n - i));
        }
    }
}

DSI_INLINE int32_t dsi_quantize_sum(const int8_t *q) {
    const __m256i one = _mm256_set1_epi16(1);
    const __m128i_u *from = (const __m128i_u *)(const void *)q;
    __m256i first = _mm256_cvtepi8_epi16(_mm_loadu_si128(from));
    __m256i second = _mm256_cvtepi8_epi16(_mm_loadu_si128(from + 1));
    __m256i sum = _mm256_madd_epi16(_mm256_add_epi16(first, second), one);
    __m128i four = _mm_add_epi32(_mm256_castsi256_si128(sum), _mm256_extracti128_si256(sum, 1));
    __m128i two = _mm_add_epi32(four, _mm_unpackhi_epi64(four, four));
    return _mm_cvtsi128_si32(_mm_add_epi32(two, _mm_shuffle_epi32(two, 1)));
}

#include "quantize.h"

void dsi_quantize_a8_bf16__avx2(const void *x, void *record, int64_t k, int64_t group) {
    dsi_quantize_row(x, record, k, group, DSI_DTYPE_BF16);
}

void dsi_quantize_a8_f32__avx2(const void *x, void *record, int64_t k, int64_t group) {
    dsi_quantize_row(x, record, k, group, DSI_DTYPE_F32);
}
