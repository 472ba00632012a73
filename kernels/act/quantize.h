/* quantize.h: the record that quantize_a8 writes, and its order: a group at a time, its largest
 * magnitude first. A file for one instruction set defines before, for n elements from `at` on:
 *   dsi_quantize_most(at, n, x)                the bits of the largest |x|
 *   dsi_quantize_some(at, n, x, factor, q)     q = x * factor rounded to nearest even, as int8
 *   dsi_quantize_sum(q)                        of 32 q */
#ifndef DSI_KERNELS_ACT_QUANTIZE_H
#define DSI_KERNELS_ACT_QUANTIZE_H

#include "../formats.h"
#include "../kernels.h"
#include "../simd.h"
#include <math.h>

#define DSI_A8_LEAST 0x1p-100f /* what is smaller counts as zero: 127 / amax stays finite */

/* The record of k columns of type x (a constant). */
DSI_INLINE void dsi_quantize_row(const uint8_t *from, void *record, int64_t k, int64_t group,
                                 dsi_dtype x) {
    int8_t *q = record;
    const int64_t columns = dsi_a8_columns(k), blocks = dsi_a8_blocks(k);
    float *multiplier = (float *)(void *)(q + columns);
    int32_t *sum = (int32_t *)(void *)(multiplier + blocks);
    for (int64_t g = 0; g < k; g += group) {
        const int64_t n = k - g < group ? k - g : group;
        const uint32_t bits = dsi_quantize_most(from + g * dsi_element_bytes(x), n, x);
        const float most = dsi_f32_from_bits(bits);
        const bool finite = bits < 0x7F800000u, some = finite && most >= DSI_A8_LEAST;
        if (some)
            dsi_quantize_some(from + g * dsi_element_bytes(x), n, x, 127.0f / most, q + g);
        else if (n > 0) /* it is, which gcc does not see when it builds for a sanitizer */
            memset(q + g, 0, (size_t)n);
        const float value = !finite ? NAN : some ? most / 127.0f : 0;
        for (int64_t b = g / DSI_BLOCK; b * DSI_BLOCK < g + n; b++) multiplier[b] = value;
    }
    memset(q + k, 0, (size_t)(columns - k));
    for (int64_t s = 0; s < columns / DSI_A8_SUM; s++)
        sum[s] = dsi_quantize_sum(q + s * DSI_A8_SUM);
    uint8_t *rest = (uint8_t *)(sum + columns / DSI_A8_SUM);
    memset(rest, 0, (size_t)((uint8_t *)record + dsi_a8_bytes(k) - rest));
}

#endif
