/* i8_avx512.c: a row of INT8 values as bf16, sixteen at a time. */
#include "../kernels.h"
#include "../vector.h"

void dsi_decode_i8__avx512(const uint8_t *w, const float *scale, uint16_t *y, int64_t k) {
    for (int64_t i = 0; i < k; i += 16) {
        __mmask16 lanes = dsi_v16_lanes(k - i);
        __m512i wide = _mm512_cvtepi8_epi32(_mm_maskz_loadu_epi8(lanes, w + i));
        __m512 value =
            _mm512_mul_ps(_mm512_cvtepi32_ps(wide), _mm512_set1_ps(scale[i / DSI_BLOCK]));
        _mm256_mask_storeu_epi16(y + i, lanes, dsi_v16_narrow(value));
    }
}
