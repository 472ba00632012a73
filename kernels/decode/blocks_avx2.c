/* blocks_avx2.c: GGUF's blocks as f32, AVX2. */
#include "../blocks/blocks.h"
#include "../kernels.h"
#include <immintrin.h>

void dsi_decode_blocks__avx2(dsi_dtype w_dtype, const uint8_t *w, float *y, int64_t k) {
    const dsi_block_shape shape = dsi_block_shape_of(w_dtype);
    dsi_block_parts p;
    for (int64_t at = 0; at < k; at += shape.values, w += shape.bytes) {
        dsi_block_read(w_dtype, w, &p);
        for (int i = 0; i < shape.values; i += 8) {
            const int g = i / shape.group;
            __m256i q = _mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)(p.q + i)));
            __m256 value = _mm256_mul_ps(_mm256_cvtepi32_ps(q), _mm256_set1_ps(p.scale[g]));
            _mm256_storeu_ps(y + at + i, _mm256_sub_ps(value, _mm256_set1_ps(p.min[g])));
        }
    }
}
