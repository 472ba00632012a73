/* blocks.h: GGUF's blocks of weights, as whole numbers and multipliers.
 *
 * Whatever the type, weight i of a block is q[i] * scale[g] - min[g] with a whole number q of 8
 * bits
 * (-128..127) and g = i / (columns of a group): 16 or 32 columns share a scale and a minimum. The
 * product is rounded to f32 and then the difference: the numbers that GGUF's own decoders give. */
#ifndef DSI_KERNELS_BLOCKS_BLOCKS_H
#define DSI_KERNELS_BLOCKS_BLOCKS_H

#include <deepseek/types.h>
#include <stdbool.h>
#include <stdint.h>

enum { DSI_BLOCK_VALUES_MAX = 256, DSI_BLOCK_BYTES_MAX = 210, DSI_BLOCK_GROUPS_MAX = 16 };

typedef struct dsi_block_parts {
    _Alignas(64) int8_t q[DSI_BLOCK_VALUES_MAX];
    float scale[DSI_BLOCK_GROUPS_MAX], min[DSI_BLOCK_GROUPS_MAX]; /* min: 0 if the type has none */
} dsi_block_parts;

/* Values, bytes, columns of a group, and whether minimums exist. */
typedef struct dsi_block_shape {
    int32_t values, bytes, group;
    bool has_min;
} dsi_block_shape;

static inline dsi_block_shape dsi_block_shape_of(dsi_dtype dtype) {
    dsi_block_shape shape = {0, 0, 32, false};
    switch (dtype) {
#define DSI_BLOCK_SHAPE(name, type, n, size, text)                                                 \
    case name:                                                                                     \
        shape.values = (n), shape.bytes = (size);                                                  \
        break;
        DSI_BLOCK_DTYPE_LIST(DSI_BLOCK_SHAPE)
#undef DSI_BLOCK_SHAPE
    default:
        break;
    }
    switch (dtype) {
    case DSI_DTYPE_Q2_K:
    case DSI_DTYPE_Q3_K:
    case DSI_DTYPE_Q6_K:
    case DSI_DTYPE_IQ2_XS:
    case DSI_DTYPE_IQ2_S:
    case DSI_DTYPE_IQ1_M:
    case DSI_DTYPE_NVFP4:
        shape.group = 16;
        break;
    default:
        break;
    }
    shape.has_min = dtype == DSI_DTYPE_Q4_1 || dtype == DSI_DTYPE_Q5_1 || dtype == DSI_DTYPE_Q2_K ||
                    dtype == DSI_DTYPE_Q4_K || dtype == DSI_DTYPE_Q5_K;
    return shape;
}

static inline bool dsi_is_block(dsi_dtype dtype) { return dtype >= DSI_DTYPE_BLOCKS; }

/* Is a block of this type looked up in tables, or its digits divided, before it can be multiplied?
 * Products with few rows are as fast as that then, not as fast as memory. */
static inline bool dsi_block_is_apart(dsi_dtype dtype) {
    switch (dtype) {
    case DSI_DTYPE_Q8_0:
    case DSI_DTYPE_Q4_0:
    case DSI_DTYPE_Q4_1:
    case DSI_DTYPE_Q5_0:
    case DSI_DTYPE_Q5_1:
    case DSI_DTYPE_Q2_K:
    case DSI_DTYPE_Q3_K:
    case DSI_DTYPE_Q4_K:
    case DSI_DTYPE_Q5_K:
    case DSI_DTYPE_Q6_K:
    case DSI_DTYPE_IQ4_NL:
    case DSI_DTYPE_IQ4_XS:
        return false;
    default:
        return dsi_is_block(dtype);
    }
}

/* Takes a block apart: the truth. */
void dsi_block_read(dsi_dtype dtype, const uint8_t *block, dsi_block_parts *parts);
/* Takes n blocks that lie side by side apart as if they were one, of at most DSI_BLOCK_VALUES_MAX
 * values; types of 256 values: one block. `min` of types without minimums is left as it is. */
typedef void (*dsi_blocks_read_fn)(const uint8_t *blocks, int n, dsi_block_parts *parts);
/* read_avx2.c: for CPUs with AVX2 and F16C. */
dsi_blocks_read_fn dsi_blocks_reader__avx2(dsi_dtype dtype);

/* The values of 4 bits of IQ4_NL and IQ4_XS; of MXFP4 and NVFP4. */
extern const int8_t dsi_iq4_values[16], dsi_fp4_values[16];

#endif
