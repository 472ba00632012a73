/* bf16_avx2.c: attention over one page, q, k and v in bf16. */
#include "block_avx2.h"

void dsi_attend_bf16__avx2(const dsi_attend_args *args) { attend_block(args, true); }
