/* i4_avx2.c: matmul_t of weights of 4 bits, AVX2 + FMA + F16C. */
#include "../matmul/chunk_avx2.h"

#include "tile_t.h"

void dsi_matmul_t_i4__avx2(const dsi_matmul_t_args *args) {
    dsi_matmul_t_tiles(args, DSI_DTYPE_I4);
}
