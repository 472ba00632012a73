/* parts.h: rows of blocks in pieces of 256 columns, taken apart into whole numbers and multipliers
 * that stay in the nearest cache, and made weights of f32 in registers. A chunk_<isa>.h comes
 * before. */
#ifndef DSI_KERNELS_BLOCKS_PARTS_H
#define DSI_KERNELS_BLOCKS_PARTS_H

#include "../kernels.h"
#include "blocks.h"

/* How the blocks of a type are read. */
typedef struct dsi_parts_type {
    dsi_block_shape shape;
    dsi_blocks_read_fn read;
    int64_t blocks, bytes; /* of 256 columns */
} dsi_parts_type;

DSI_INLINE dsi_parts_type dsi_parts_type_of(dsi_dtype dtype) {
    const dsi_block_shape shape = dsi_block_shape_of(dtype);
    const int64_t blocks = DSI_BLOCK_VALUES_MAX / shape.values;
    return (dsi_parts_type){shape, dsi_blocks_reader__avx2(dtype), blocks, blocks * shape.bytes};
}

/* Columns [k, k + columns) of a row, at most 256 of them, k a multiple of that. */
DSI_INLINE void dsi_parts_read(const dsi_parts_type *t, const uint8_t *row, int64_t k,
                               int64_t columns, dsi_block_parts *p) {
    const bool whole = columns == DSI_BLOCK_VALUES_MAX;
    const int64_t blocks = whole ? t->blocks : columns / t->shape.values;
    t->read(row + k / DSI_BLOCK_VALUES_MAX * t->bytes, (int)blocks, p);
}

/* The multipliers of a group, in registers for all its columns. */
typedef struct dsi_parts_group {
    dsi_chunk scale, min;
} dsi_parts_group;

DSI_INLINE dsi_parts_group dsi_parts_group_of(const dsi_block_parts *p, int64_t g, bool has_min) {
    dsi_parts_group group = {dsi_chunk_all(p->scale[g]), dsi_chunk_all(0)};
    if (has_min) group.min = dsi_chunk_all(p->min[g]);
    return group;
}

DSI_INLINE dsi_chunk dsi_parts_whole(const dsi_block_parts *p, int64_t c) {
    return dsi_chunk_i8((const uint8_t *)p->q + c, DSI_CHUNK);
}
/* DSI_CHUNK weights from column c on, rounded once. */
DSI_INLINE dsi_chunk dsi_parts_chunk(const dsi_block_parts *p, int64_t c, dsi_parts_group group,
                                     bool has_min) {
    const dsi_chunk whole = dsi_parts_whole(p, c);
    return has_min ? dsi_chunk_times_less(whole, group.scale, group.min)
                   : dsi_chunk_times(whole, group.scale);
}

/* All columns as f32; exact: as decode_blocks rounds them, else as dsi_parts_chunk does. */
DSI_INLINE void dsi_parts_store(const dsi_block_parts *p, int64_t columns, int group, bool has_min,
                                bool exact, float *to) {
    for (int64_t k = 0; k < columns; k += group) {
        const dsi_parts_group by = dsi_parts_group_of(p, k / group, has_min);
        DSI_UNROLL
        for (int64_t c = k; c < k + group; c += DSI_CHUNK) {
            dsi_chunk weights = dsi_parts_chunk(p, c, by, has_min);
            if (exact && has_min)
                weights = dsi_chunk_less(dsi_chunk_times(dsi_parts_whole(p, c), by.scale), by.min);
            dsi_sum_store(to + c, weights);
        }
    }
}

/* k columns of a row as f32, k a whole number of blocks. */
DSI_INLINE void dsi_parts_decode(const dsi_parts_type *t, const uint8_t *row, int64_t k, bool exact,
                                 float *to) {
    dsi_block_parts p;
    for (int64_t at = 0; at < k; at += DSI_BLOCK_VALUES_MAX) {
        const int64_t left = k - at;
        const int64_t columns = left < DSI_BLOCK_VALUES_MAX ? left : DSI_BLOCK_VALUES_MAX;
        dsi_parts_read(t, row, at, columns, &p);
        if (t->shape.group == 16 && t->shape.has_min)
            dsi_parts_store(&p, columns, 16, true, exact, to + at);
        else if (t->shape.group == 16)
            dsi_parts_store(&p, columns, 16, false, exact, to + at);
        else if (t->shape.has_min)
            dsi_parts_store(&p, columns, 32, true, exact, to + at);
        else
            dsi_parts_store(&p, columns, 32, false, exact, to + at);
    }
}

#endif
