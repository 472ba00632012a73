/* i8_avx512bf16.c: matmul of weights of 8 bits, AVX-512 with VBMI and BF16. Fewer than 128 columns
 * with a scale of their own are no block of the order of quads; they are rare. */
#include "quad_avx512bf16.h"

#include "quad.h"

void dsi_matmul_i8_bf16__avx512bf16(const dsi_matmul_args *args) {
    if (args->group_k < DSI_BLOCK)
        dsi_matmul_i8_bf16__avx512(args);
    else
        dsi_matmul_quads(args, DSI_DTYPE_I8);
}
