/* cpu_e4m3.c: operands as DeepSeek's inference code for GPUs rounds them before a product with FP8
 * weights (act_quant of inference/kernel.py): per row and 128 columns,
 *   s = max(max |x|, 1e-4) / 448, with scale_fmt "ue8m0" the next power of two, x' = E4M3(x / s) *
 * s. Here x' is handed on in f32: the product with a decoded weight and its sums are then those of
 * the reference but for the rounding of f32. */
#include "../../kernels/formats.h"
#include "cpu.h"
#include <math.h>

/* The scale of n values; NaN or infinite where one of them is. */
static float scale_of(const float *x, int64_t n, bool power_of_two) {
    float most = 1e-4f;
    for (int64_t i = 0; i < n; i++) {
        float size = fabsf(x[i]);
        if (!(size <= most)) most = size;
        if (isnan(most)) return most;
    }
    float scale = most / 448;
    if (!power_of_two || isinf(scale)) return scale;
    int exponent;
    float fraction = frexpf(scale, &exponent); /* 0.5 <= fraction < 1 */
    return ldexpf(1, fraction <= 0.5f ? exponent - 1 : exponent);
}

void dsi_cpu_round_e4m3(bool power_of_two, const void *x, dsi_dtype dtype, float *y, int64_t k) {
    for (int64_t at = 0; at < k; at += DSI_BLOCK) {
        int64_t n = dsi_min_i64(DSI_BLOCK, k - at);
        for (int64_t i = at; i < at + n; i++)
            y[i] =
                dtype == DSI_DTYPE_F32 ? dsi_load_f32(x, i) : dsi_bf16_to_f32(dsi_load_u16(x, i));
        float scale = scale_of(y + at, n, power_of_two);
        for (int64_t i = at; i < at + n; i++)
            y[i] = dsi_e4m3_to_f32(dsi_f32_to_e4m3(y[i] / scale)) * scale;
    }
}
