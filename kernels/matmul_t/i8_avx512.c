/* i8_avx512.c: matmul_t of weights of 8 bits, AVX-512 F, BW, VL, DQ. */
#include "../matmul/chunk_avx512.h"

#include "tile_t.h"

void dsi_matmul_t_i8__avx512(const dsi_matmul_t_args *args) {
    dsi_matmul_t_tiles(args, DSI_DTYPE_I8);
}
