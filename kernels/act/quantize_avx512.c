/* quantize_avx512.c: a row of activations as 8-bit integers, sixteen elements at a time; the same
 * bits as quantize_ref.c. */
#include "../vector.h"
#include <deepseek/types.h>

DSI_INLINE __m512 load(const uint8_t *at, int64_t i, int64_t n, dsi_dtype x) {
    const __mmask16 lanes = dsi_v16_lanes(n - i);
    if (x == DSI_DTYPE_F32) return _mm512_maskz_loadu_ps(lanes, at + i * 4);
    __m512i wide = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(lanes, at + i * 2));
    return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
}

DSI_INLINE uint32_t dsi_quantize_most(const uint8_t *at, int64_t n, dsi_dtype x) {
    const __m512i magnitude = _mm512_set1_epi32(0x7FFFFFFF);
    __m512i most = _mm512_setzero_si512();
    for (int64_t i = 0; i < n; i += 16) {
        __m512i bits = _mm512_and_si512(_mm512_castps_si512(load(at, i, n, x)), magnitude);
        most = _mm512_max_epi32(most, bits);
    }
    return (uint32_t)_mm512_reduce_max_epi32(most);
}

DSI_INLINE void dsi_quantize_some(const uint8_t *at, int64_t n, dsi_dtype x, float factor,
                                  int8_t *q) {
    const __m512 by = _mm512_set1_ps(factor);
    for (int64_t i = 0; i < n; i += 16) {
        __m512i whole = _mm512_cvtps_epi32(_mm512_mul_ps(load(at, i, n, x), by));
        _mm_mask_storeu_epi8(q + i, dsi_v16_lanes(n - i), _mm512_cvtepi32_epi8(whole));
    }
}

DSI_INLINE int32_t dsi_quantize_sum(const int8_t *q) {
    __m512i wide = _mm512_cvtepi8_epi16(_mm256_loadu_si256((const __m256i_u *)(const void *)q));
    return _mm512_reduce_add_epi32(_mm512_madd_epi16(wide, _mm512_set1_epi16(1)));
}

#include "quantize.h"

void dsi_quantize_a8_bf16__avx512(const void *x, void *record, int64_t k, int64_t group) {
    dsi_quantize_row(x, record, k, group, DSI_DTYPE_BF16);
}

void dsi_quantize_a8_f32__avx512(const void *x, void *record, int64_t k, int64_t group) {
    dsi_quantize_row(x, record, k, group, DSI_DTYPE_F32);
}
