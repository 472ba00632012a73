/* bf16_avx512.c: attention over one page, q, k and v in bf16. */
#include "block_avx512.h"

void dsi_attend_bf16__avx512(const dsi_attend_args *args) { attend_block(args, true); }
