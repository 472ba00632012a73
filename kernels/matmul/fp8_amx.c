/* fp8_amx.c: matmul of FP8 E4M3 weights with 128x128 block scales, AMX. */
#include "amx.h"

void dsi_matmul_fp8_bf16__amx(const dsi_matmul_args *args) { dsi_matmul_amx(args, DSI_DTYPE_E4M3); }
