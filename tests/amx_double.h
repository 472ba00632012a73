/* amx_double.h: the intrinsics of AMX on the model in amx_model.h, so that the *_amx.c kernels are
 * tested on machines without them. Used as bf16_double.h, with the same flags; the kernels then
 * carry the suffix _double. EMULATED: it proves the answers, never the speed. */
#ifndef DSI_TESTS_AMX_DOUBLE_H
#define DSI_TESTS_AMX_DOUBLE_H

#include "amx_model.h"

static _Thread_local amx_state dsi_double_tiles;

#undef _tile_loadd
#undef _tile_stored
#undef _tile_zero
#undef _tile_dpbf16ps
#undef _tile_dpbssd
#undef _tile_dpbsud
#undef _tile_dpbusd
#define _tile_loadconfig(config) amx_loadconfig(&dsi_double_tiles, (config))
#define _tile_release() amx_release(&dsi_double_tiles)
#define _tile_zero(t) amx_zero(&dsi_double_tiles, (t))
#define _tile_loadd(t, base, stride) amx_loadd(&dsi_double_tiles, (t), (base), (stride))
#define _tile_stored(t, base, stride) amx_stored(&dsi_double_tiles, (t), (base), (stride))
#define _tile_dpbf16ps(c, a, b) amx_dpbf16ps(&dsi_double_tiles, (c), (a), (b))
#define _tile_dpbssd(c, a, b) amx_dpb(&dsi_double_tiles, (c), (a), (b), true, true)
#define _tile_dpbsud(c, a, b) amx_dpb(&dsi_double_tiles, (c), (a), (b), true, false)
#define _tile_dpbusd(c, a, b) amx_dpb(&dsi_double_tiles, (c), (a), (b), false, true)
#define dsi_matmul_fp8_bf16__amx dsi_matmul_fp8_bf16__amx_double
#define dsi_matmul_bf16_bf16__amx dsi_matmul_bf16_bf16__amx_double
#define dsi_matmul_i8_a8__amx dsi_matmul_i8_a8__amx_double
#define dsi_matmul_i4_a8__amx dsi_matmul_i4_a8__amx_double

#endif
