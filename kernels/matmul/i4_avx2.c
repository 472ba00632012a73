/* i4_avx2.c: matmul of weights of 4 bits, AVX2 + FMA + F16C. */
#include "chunk_avx2.h"

#include "tile.h"

#include "tile_a8.h"

void dsi_matmul_i4_bf16__avx2(const dsi_matmul_args *args) {
    dsi_matmul_tiles(args, DSI_DTYPE_I4, DSI_DTYPE_BF16);
}

void dsi_matmul_i4_f32__avx2(const dsi_matmul_args *args) {
    dsi_matmul_tiles(args, DSI_DTYPE_I4, DSI_DTYPE_F32);
}

void dsi_matmul_i4_a8__avx2(const dsi_matmul_args *args) {
    dsi_matmul_a8_tiles(args, DSI_DTYPE_I4);
}
