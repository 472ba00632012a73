/* fp8_avx512.c: a row of E4M3 weights as bf16, sixteen at a time. Shifted to where F16 has its
 * fields, a code is the F16 of 2^-8 times its value, denormals included; the one exception is NaN.
 */
#include "../kernels.h"
#include "../vector.h"

void dsi_decode_fp8__avx512(const uint8_t *w, const float *scale, uint16_t *y, int64_t k) {
    const __m128i nan_code = _mm_set1_epi8(0x7F);
    for (int64_t i = 0; i < k; i += 16) {
        __mmask16 lanes = dsi_v16_lanes(k - i);
        __m128i codes = _mm_maskz_loadu_epi8(lanes, w + i);
        __m256i wide = _mm256_slli_epi16(_mm256_cvtepi8_epi16(codes), 7);
        __m256i half = _mm256_and_si256(wide, _mm256_set1_epi16((short)0xBF80));
        __m512 value = _mm512_mul_ps(_mm512_cvtph_ps(half), _mm512_set1_ps(256));
        __mmask16 is_nan = _mm_cmpeq_epi8_mask(_mm_and_si128(codes, nan_code), nan_code);
        value = _mm512_mask_mov_ps(value, is_nan, _mm512_set1_ps(__builtin_nanf("")));
        value = _mm512_mul_ps(value, _mm512_set1_ps(scale[i / DSI_BLOCK]));
        _mm256_mask_storeu_epi16(y + i, lanes, dsi_v16_narrow(value));
    }
}
