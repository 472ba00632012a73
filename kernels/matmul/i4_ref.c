/* i4_ref.c: matmul of weights of 4 bits, the truth. */
#include "ref.h"

void dsi_matmul_i4_bf16__ref(const dsi_matmul_args *args) {
    dsi_matmul_ref(args, DSI_DTYPE_I4, DSI_DTYPE_BF16);
}

void dsi_matmul_i4_f32__ref(const dsi_matmul_args *args) {
    dsi_matmul_ref(args, DSI_DTYPE_I4, DSI_DTYPE_F32);
}

void dsi_matmul_i4_a8__ref(const dsi_matmul_args *args) { dsi_matmul_a8_ref(args, DSI_DTYPE_I4); }
