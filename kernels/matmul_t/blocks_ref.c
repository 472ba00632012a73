/* blocks_ref.c: matmul_t of GGUF's blocks, the truth. */
#include "../blocks/blocks.h"
#include "../formats.h"
#include "../kernels.h"

enum { ROWS = 8 }; /* rows of x for which a block is decoded once */

void dsi_matmul_t_blocks__ref(const dsi_matmul_t_args *a) {
    const int64_t values = dsi_block_shape_of(a->w_dtype).values;
    float w[DSI_BLOCK_VALUES_MAX];
    double sum[ROWS][DSI_BLOCK_VALUES_MAX];
    for (int64_t i0 = 0; i0 < a->m; i0 += ROWS) {
        const int64_t rows = a->m - i0 < ROWS ? a->m - i0 : ROWS;
        for (int64_t j = 0; j < a->k; j += values) {
            memset(sum, 0, sizeof sum);
            for (int64_t n = a->n0; n < a->n1; n++) {
                const int64_t at = n * a->w_stride + j;
                dsi_decode_blocks__ref(a->w_dtype, a->w + dsi_row_bytes(a->w_dtype, at), w, values);
                for (int64_t i = 0; i < rows; i++)
                    for (int64_t c = 0; c < values; c++)
                        sum[i][c] +=
                            (double)a->x[(i0 + i) * a->x_stride + n - a->n0] * (double)w[c];
            }
            for (int64_t i = 0; i < rows; i++)
                for (int64_t c = 0; c < values; c++)
                    a->y[(i0 + i) * a->y_stride + j + c] = (float)sum[i][c];
        }
    }
}
