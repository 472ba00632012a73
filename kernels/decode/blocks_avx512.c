/* blocks_avx512.c: GGUF's blocks as f32, AVX-512 F, BW, VL, DQ. */
#include "../blocks/blocks.h"
#include "../kernels.h"
#include <immintrin.h>

void dsi_decode_blocks__avx512(dsi_dtype w_dtype, const uint8_t *w, float *y, int64_t k) {
    const dsi_block_shape shape = dsi_block_shape_of(w_dtype);
    dsi_block_parts p;
    for (int64_t at = 0; at < k; at += shape.values, w += shape.bytes) {
        dsi_block_read(w_dtype, w, &p);
        for (int i = 0; i < shape.values; i += 16) {
            const int g = i / shape.group;
            __m512i q = _mm512_cvtepi8_epi32(_mm_load_si128((const __m128i *)(p.q + i)));
            __m512 value = _mm512_mul_ps(_mm512_cvtepi32_ps(q), _mm512_set1_ps(p.scale[g]));
            _mm512_storeu_ps(y + at + i, _mm512_sub_ps(value, _mm512_set1_ps(p.min[g])));
        }
    }
}
