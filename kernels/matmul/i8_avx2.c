/* i8_avx2.c: matmul of weights of 8 bits, AVX2 + FMA + F16C. */
#include "chunk_avx2.h"

#include "tile.h"

#include "tile_a8.h"

void dsi_matmul_i8_bf16__avx2(const dsi_matmul_args *args) {
    dsi_matmul_tiles(args, DSI_DTYPE_I8, DSI_DTYPE_BF16);
}

void dsi_matmul_i8_f32__avx2(const dsi_matmul_args *args) {
    dsi_matmul_tiles(args, DSI_DTYPE_I8, DSI_DTYPE_F32);
}

void dsi_matmul_i8_a8__avx2(const dsi_matmul_args *args) {
    dsi_matmul_a8_tiles(args, DSI_DTYPE_I8);
}
