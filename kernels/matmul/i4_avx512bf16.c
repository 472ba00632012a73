/* i4_avx512bf16.c: matmul of weights of 4 bits, AVX-512 with VBMI and BF16. */
#include "quad_avx512bf16.h"

#include "quad.h"

void dsi_matmul_i4_bf16__avx512bf16(const dsi_matmul_args *args) {
    dsi_matmul_quads(args, DSI_DTYPE_I4);
}
