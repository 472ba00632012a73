/* blocks_avx2.c: GGUF's blocks as f32, AVX2 + FMA + F16C. */
#include "../matmul/chunk_avx2.h"

#include "../blocks/parts.h"

void dsi_decode_blocks__avx2(dsi_dtype w_dtype, const uint8_t *w, float *y, int64_t k) {
    const dsi_parts_type type = dsi_parts_type_of(w_dtype);
    dsi_parts_decode(&type, w, k, true, y);
}
