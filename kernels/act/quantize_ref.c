/* quantize_ref.c: a row of activations as 8-bit integers with their multipliers, the truth. */
#include "../formats.h"
#include "../simd.h"
#include <deepseek/types.h>
#include <math.h>

static inline float element(const uint8_t *at, int64_t i, dsi_dtype x) {
    return x == DSI_DTYPE_F32 ? dsi_load_f32(at, i) : dsi_bf16_to_f32(dsi_load_u16(at, i));
}

DSI_INLINE uint32_t dsi_quantize_most(const uint8_t *at, int64_t n, dsi_dtype x) {
    uint32_t most = 0; /* bits of magnitudes are ordered as they are; NaN is above infinity */
    for (int64_t i = 0; i < n; i++) {
        uint32_t bits = dsi_f32_bits(element(at, i, x)) & 0x7FFFFFFFu;
        if (bits > most) most = bits;
    }
    return most;
}

DSI_INLINE void dsi_quantize_some(const uint8_t *at, int64_t n, dsi_dtype x, float factor,
                                  int8_t *q) {
    for (int64_t i = 0; i < n; i++) q[i] = (int8_t)lrintf(element(at, i, x) * factor);
}

DSI_INLINE int32_t dsi_quantize_sum(const int8_t *q) {
    int32_t sum = 0;
    for (int i = 0; i < 32; i++) sum += q[i];
    return sum;
}

#include "quantize.h"

void dsi_quantize_a8_bf16__ref(const void *x, void *record, int64_t k, int64_t group) {
    dsi_quantize_row(x, record, k, group, DSI_DTYPE_BF16);
}

void dsi_quantize_a8_f32__ref(const void *x, void *record, int64_t k, int64_t group) {
    dsi_quantize_row(x, record, k, group, DSI_DTYPE_F32);
}
