/* bf16_amx.c: matmul of BF16 weights, AMX. */
#include "amx.h"

void dsi_matmul_bf16_bf16__amx(const dsi_matmul_args *args) {
    dsi_matmul_amx(args, DSI_DTYPE_BF16);
}
