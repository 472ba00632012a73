/* fp8_avx2.c: a row of E4M3 values as bf16, eight at a time, by way of F16 as fp8_avx512.c says. */
#include "../kernels.h"
#include "../vector.h"

void dsi_decode_fp8__avx2(const uint8_t *w, const float *scale, uint16_t *y, int64_t k) {
    const __m128i nan_code = _mm_set1_epi16(0x7F);
    for (int64_t i = 0; i < k; i += 8) {
        int64_t bytes = 0;
        memcpy(&bytes, w + i, k - i >= 8 ? 8 : (size_t)(k - i));
        __m128i codes = _mm_cvtepi8_epi16(_mm_cvtsi64_si128(bytes));
        __m128i half = _mm_and_si128(_mm_slli_epi16(codes, 7), _mm_set1_epi16((short)0xBF80));
        __m256 value = _mm256_mul_ps(_mm256_cvtph_ps(half), _mm256_set1_ps(256));
        __m128i is_nan = _mm_cmpeq_epi16(_mm_and_si128(codes, nan_code), nan_code);
        value = _mm256_or_ps(value, _mm256_castsi256_ps(_mm256_cvtepi16_epi32(is_nan)));
        value = _mm256_mul_ps(value, _mm256_set1_ps(scale[i / DSI_BLOCK]));
        dsi_v8_store_bf16(y + i, value, k - i);
    }
}
