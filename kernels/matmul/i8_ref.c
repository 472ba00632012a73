/* i8_ref.c: matmul of weights of 8 bits, the truth. */
#include "ref.h"

void dsi_matmul_i8_bf16__ref(const dsi_matmul_args *args) {
    dsi_matmul_ref(args, DSI_DTYPE_I8, DSI_DTYPE_BF16);
}

void dsi_matmul_i8_f32__ref(const dsi_matmul_args *args) {
    dsi_matmul_ref(args, DSI_DTYPE_I8, DSI_DTYPE_F32);
}

void dsi_matmul_i8_a8__ref(const dsi_matmul_args *args) { dsi_matmul_a8_ref(args, DSI_DTYPE_I8); }
