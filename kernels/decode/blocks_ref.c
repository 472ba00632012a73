/* blocks_ref.c: GGUF's blocks as f32, the truth. */
#include "../blocks/blocks.h"

#include "../kernels.h"

void dsi_decode_blocks__ref(dsi_dtype w_dtype, const uint8_t *w, float *y, int64_t k) {
    const dsi_block_shape shape = dsi_block_shape_of(w_dtype);
    dsi_block_parts p;
    for (int64_t at = 0; at < k; at += shape.values, w += shape.bytes) {
        dsi_block_read(w_dtype, w, &p);
        for (int i = 0; i < shape.values; i++)
            y[at + i] = (float)p.q[i] * p.scale[i / shape.group] - p.min[i / shape.group];
    }
}
