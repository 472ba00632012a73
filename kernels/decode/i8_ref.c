/* i8_ref.c: a row of INT8 values as bf16. */
#include "../formats.h"
#include "../kernels.h"

void dsi_decode_i8__ref(const uint8_t *w, const float *scale, uint16_t *y, int64_t k) {
    for (int64_t i = 0; i < k; i++)
        y[i] = dsi_f32_to_bf16((float)(int8_t)w[i] * scale[i / DSI_BLOCK]);
}
