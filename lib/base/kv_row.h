/* kv_row.h: where things lie in a cached row of 8 bits, as backend.h describes it. */
#ifndef DSI_LIB_BASE_KV_ROW_H
#define DSI_LIB_BASE_KV_ROW_H

#include <deepseek/types.h>

/* A row of `heads` runs of `columns` coded values (MLA: one, the latents; grouped-query attention:
 * the keys, then the values of every KV head) and `rest` values in BF16 behind their scales. */
typedef struct dsi_kv_row {
    int64_t heads, columns, rest;
    int64_t head_scales;           /* of one run: one per 128 columns */
    int64_t scales, tail, n_bytes; /* first byte of the scales, of the rest; the whole row */
} dsi_kv_row;

static inline dsi_kv_row dsi_kv_row_of(int64_t heads, int64_t columns, int64_t rest) {
    dsi_kv_row r = {.heads = heads, .columns = columns, .rest = rest};
    r.head_scales = (columns + DSI_BLOCK - 1) / DSI_BLOCK;
    r.scales = (heads * columns + 3) / 4 * 4;
    r.tail = r.scales + 4 * heads * r.head_scales;
    r.n_bytes = (r.tail + 2 * rest + 15) / 16 * 16;
    return r;
}

#endif
