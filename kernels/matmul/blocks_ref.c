/* blocks_ref.c: matmul of GGUF's blocks, the truth. */
#include "../blocks/blocks.h"
#include "ref.h"

static void matmul(const dsi_matmul_args *a, dsi_dtype x) {
    const int64_t values = dsi_block_shape_of(a->w_dtype).values;
    float w[DSI_BLOCK_VALUES_MAX];
    for (int64_t n = a->n0; n < a->n1; n++) {
        const uint8_t *row = a->w + dsi_row_bytes(a->w_dtype, n * a->w_stride);
        for (int64_t i = 0; i < a->m; i++) {
            const int64_t x_row = a->x_rows ? a->x_rows[i] : i;
            const uint8_t *xs = (const uint8_t *)a->x + x_row * a->x_stride * dsi_element_bytes(x);
            double sum = 0;
            for (int64_t k = 0; k < a->k; k++) {
                if (k % values == 0)
                    dsi_decode_blocks__ref(a->w_dtype, row + dsi_row_bytes(a->w_dtype, k), w,
                                           values);
                sum += dsi_element(x, xs, k) * (double)w[k % values];
            }
            a->y[i * a->y_stride + n - a->n0] = (float)sum;
        }
    }
}

void dsi_matmul_blocks_bf16__ref(const dsi_matmul_args *args) { matmul(args, DSI_DTYPE_BF16); }
void dsi_matmul_blocks_f32__ref(const dsi_matmul_args *args) { matmul(args, DSI_DTYPE_F32); }
