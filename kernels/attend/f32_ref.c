/* f32_ref.c: attention over one page, q, k and v in f32. */
#include "block_ref.h"

void dsi_attend_f32__ref(const dsi_attend_args *args) { attend_block(args, dsi_load_f32, false); }
