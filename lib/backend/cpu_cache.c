/* cpu_cache.c: cached rows of 8 bits: coded once, when a row is written, and decoded to BF16 a page
 * at a time into a scratch that all heads or queries of a task read. Where things lie in a row says
 * kv_row.h. */
#include "../../kernels/formats.h"
#include "cpu.h"
#include <math.h>

enum { E4M3_MOST = 448, I8_MOST = 127 };

/* n values of one group and their scale: the largest gets the largest code. A group with a NaN or
 * an infinity has the scale NaN; one whose largest value is below 2^-100 is zeros. */
static void code_group(const float *x, int64_t n, dsi_dtype dtype, uint8_t *codes, float *scale) {
    float most = 0;
    bool finite = true;
    for (int64_t i = 0; i < n; i++) {
        float size = fabsf(x[i]);
        finite &= size <= 3.402823466e38f;
        most = size > most ? size : most;
    }
    *scale = !finite            ? NAN
             : most < 0x1p-100f ? 0
                                : most / (dtype == DSI_DTYPE_I8 ? I8_MOST : E4M3_MOST);
    for (int64_t i = 0; i < n; i++) {
        const float value = *scale > 0 ? x[i] / *scale : 0;
        if (dtype == DSI_DTYPE_I8)
            codes[i] = (uint8_t)(int8_t)fminf(fmaxf(rintf(value), -I8_MOST), I8_MOST);
        else
            codes[i] = dsi_f32_to_e4m3(value);
    }
}

void dsi_cpu_code_row(const dsi_dev *dev, const dsi_kv_row *row, dsi_dtype dtype, const float *x,
                      uint8_t *to) {
    float *scales = (float *)(void *)(to + row->scales);
    for (int64_t h = 0; h < row->heads; h++)
        for (int64_t g = 0; g < row->head_scales; g++) {
            const int64_t at = h * row->columns + g * DSI_BLOCK;
            code_group(x + at, dsi_min_i64(DSI_BLOCK, row->columns - g * DSI_BLOCK), dtype, to + at,
                       scales + h * row->head_scales + g);
        }
    dsi_cpu_store(dev, x + row->heads * row->columns, to + row->tail, DSI_DTYPE_BF16, row->rest);
}

void dsi_cpu_decode_rows(const dsi_dev *dev, const dsi_kv_row *row, const dsi_tensor *pages,
                         int64_t first, int64_t n, int64_t head, uint16_t *to, int64_t stride) {
    dsi_decode_fn decode =
        pages->dtype == DSI_DTYPE_I8 ? dev->kernels.decode_i8 : dev->kernels.decode_fp8;
    for (int64_t i = 0; i < n; i++) {
        const uint8_t *from = dsi_cpu_at(pages, first + i, 0);
        const float *scales = (const float *)(const void *)(from + row->scales);
        decode(from + head * row->columns, scales + head * row->head_scales, to + i * stride,
               row->columns);
    }
}
