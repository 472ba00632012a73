/* blocks_avx512.c: GGUF's blocks as f32, AVX-512 F, BW, VL, DQ. */
#include "../matmul/chunk_avx512.h"

#include "../blocks/parts.h"

void dsi_decode_blocks__avx512(dsi_dtype w_dtype, const uint8_t *w, float *y, int64_t k) {
    const dsi_parts_type type = dsi_parts_type_of(w_dtype);
    dsi_parts_decode(&type, w, k, true, y);
}
