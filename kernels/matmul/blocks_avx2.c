/* blocks_avx2.c: matmul of GGUF's blocks, AVX2 + FMA + F16C. */
#include "chunk_avx2.h"

#include "../blocks/rows.h"

void dsi_matmul_blocks_bf16__avx2(const dsi_matmul_args *args) {
    dsi_rows_matmul(args, DSI_DTYPE_BF16);
}

void dsi_matmul_blocks_f32__avx2(const dsi_matmul_args *args) {
    dsi_rows_matmul(args, DSI_DTYPE_F32);
}
