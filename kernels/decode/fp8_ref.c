/* fp8_ref.c: a row of E4M3 weights as bf16. */
#include "../formats.h"
#include "../kernels.h"

void dsi_decode_fp8__ref(const uint8_t *w, const float *scale, uint16_t *y, int64_t k) {
    for (int64_t i = 0; i < k; i++)
        y[i] = dsi_f32_to_bf16(dsi_e4m3_to_f32(w[i]) * scale[i / DSI_BLOCK]);
}
