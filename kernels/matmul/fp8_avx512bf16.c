/* fp8_avx512bf16.c: matmul of FP8 E4M3 weights with 128x128 block scales, AVX-512 with VBMI and
 * BF16. */
#include "quad_avx512bf16.h"

#include "quad.h"

void dsi_matmul_fp8_bf16__avx512bf16(const dsi_matmul_args *args) {
    dsi_matmul_quads(args, DSI_DTYPE_E4M3);
}
