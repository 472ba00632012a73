/* i4_amx.c: matmul of weights of 4 bits and activations of 8 bits, AMX. */
#include "amx.h"

void dsi_matmul_i4_a8__amx(const dsi_matmul_args *args) { dsi_matmul_amx(args, DSI_DTYPE_I4); }
