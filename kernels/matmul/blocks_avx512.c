/* blocks_avx512.c: matmul of GGUF's blocks, AVX-512 F, BW, VL, DQ. */
#include "chunk_avx512.h"

#include "../blocks/rows.h"

void dsi_matmul_blocks_bf16__avx512(const dsi_matmul_args *args) {
    dsi_rows_matmul(args, DSI_DTYPE_BF16);
}

void dsi_matmul_blocks_f32__avx512(const dsi_matmul_args *args) {
    dsi_rows_matmul(args, DSI_DTYPE_F32);
}
