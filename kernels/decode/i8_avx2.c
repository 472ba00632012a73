/* i8_avx2.c: a row of INT8 values as bf16, eight at a time. */
#include "../kernels.h"
#include "../vector.h"

void dsi_decode_i8__avx2(const uint8_t *w, const float *scale, uint16_t *y, int64_t k) {
    for (int64_t i = 0; i < k; i += 8) {
        int64_t codes = 0;
        memcpy(&codes, w + i, k - i >= 8 ? 8 : (size_t)(k - i));
        __m256i wide = _mm256_cvtepi8_epi32(_mm_cvtsi64_si128(codes));
        __m256 value =
            _mm256_mul_ps(_mm256_cvtepi32_ps(wide), _mm256_set1_ps(scale[i / DSI_BLOCK]));
        dsi_v8_store_bf16(y + i, value, k - i);
    }
}
