/* fp8_avx512bf16.c: matmul_t of FP8 E4M3 weights with 128x128 block scales, AVX-512 with VBMI and
 * BF16. */
#include "pairs_avx512bf16.h"

void dsi_matmul_t_fp8__avx512bf16(const dsi_matmul_t_args *args) {
    dsi_matmul_t_pairs(args, DSI_DTYPE_E4M3);
}
