/* blocks_avx512.c: matmul_t of GGUF's blocks, AVX-512 F, BW, VL, DQ. */
#include "../matmul/chunk_avx512.h"

#include "../blocks/rows_t.h"

void dsi_matmul_t_blocks__avx512(const dsi_matmul_t_args *args) {
    dsi_rows_matmul_t(args);
}
