/* i4_avx512vnni.c: matmul of weights of 4 bits and activations of 8 bits, AVX-512 with VNNI. */
#include "vnni.h"

void dsi_matmul_i4_a8__avx512vnni(const dsi_matmul_args *args) {
    dsi_matmul_vnni(args, DSI_DTYPE_I4);
}
