/* i8_ref.c: matmul_t of weights of 8 bits, the truth. */
#include "../matmul/ref.h"

void dsi_matmul_t_i8__ref(const dsi_matmul_t_args *args) { dsi_matmul_t_ref(args, DSI_DTYPE_I8); }
