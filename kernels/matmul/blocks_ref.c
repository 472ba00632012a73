/* blocks_ref.c: matmul of GGUF's blocks, the truth. */
#include "../blocks/blocks.h"
#include "ref.h"

enum { ROWS = 8 }; /* activation rows for which a block is decoded once */

static void matmul(const dsi_matmul_args *a, dsi_dtype x) {
    const int64_t values = dsi_block_shape_of(a->w_dtype).values;
    float w[DSI_BLOCK_VALUES_MAX];
    for (int64_t n = a->n0; n < a->n1; n++) {
        const uint8_t *row = a->w + dsi_row_bytes(a->w_dtype, n * a->w_stride);
        for (int64_t i0 = 0; i0 < a->m; i0 += ROWS) {
            const int64_t i1 = a->m - i0 < ROWS ? a->m : i0 + ROWS;
            double sum[ROWS] = {0};
            for (int64_t b = 0; b < a->k; b += values) {
                dsi_decode_blocks__ref(a->w_dtype, row + dsi_row_bytes(a->w_dtype, b), w, values);
                for (int64_t i = i0; i < i1; i++) {
                    const int64_t at = (a->x_rows ? a->x_rows[i] : i) * a->x_stride + b;
                    for (int64_t k = 0; k < values; k++)
                        sum[i - i0] += dsi_element(x, a->x, at + k) * (double)w[k];
                }
            }
            for (int64_t i = i0; i < i1; i++)
                a->y[i * a->y_stride + n - a->n0] = (float)sum[i - i0];
        }
    }
}

void dsi_matmul_blocks_bf16__ref(const dsi_matmul_args *args) { matmul(args, DSI_DTYPE_BF16); }
void dsi_matmul_blocks_f32__ref(const dsi_matmul_args *args) { matmul(args, DSI_DTYPE_F32); }
