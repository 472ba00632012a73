/* bf16_avx512bf16.c: matmul_t of BF16 weights, AVX-512 with VBMI and BF16. */
#include "pairs_avx512bf16.h"

void dsi_matmul_t_bf16__avx512bf16(const dsi_matmul_t_args *args) {
    dsi_matmul_t_pairs(args, DSI_DTYPE_BF16);
}
