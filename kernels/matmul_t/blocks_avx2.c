/* blocks_avx2.c: matmul_t of GGUF's blocks, AVX2 + FMA + F16C. */
#include "../matmul/chunk_avx2.h"

#include "../blocks/rows_t.h"

void dsi_matmul_t_blocks__avx2(const dsi_matmul_t_args *args) {
    dsi_rows_matmul_t(args);
}
