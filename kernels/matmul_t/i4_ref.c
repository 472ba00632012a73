/* i4_ref.c: matmul_t of weights of 4 bits, the truth. */
#include "../matmul/ref.h"

void dsi_matmul_t_i4__ref(const dsi_matmul_t_args *args) { dsi_matmul_t_ref(args, DSI_DTYPE_I4); }
