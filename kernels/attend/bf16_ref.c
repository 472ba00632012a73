/* bf16_ref.c: attention over one page, q, k and v in bf16. */
#include "block_ref.h"

static float load_bf16(const void *array, int64_t i) {
    return dsi_bf16_to_f32(dsi_load_u16(array, i));
}

void dsi_attend_bf16__ref(const dsi_attend_args *args) { attend_block(args, load_bf16, true); }
