/* ref.h: the truth for every matmul: sums in double, rounded to f32 once. */
#ifndef DSI_KERNELS_MATMUL_REF_H
#define DSI_KERNELS_MATMUL_REF_H

#include "../formats.h"
#include "../kernels.h"

/* Element i of a row of the given type. */
static inline double dsi_element(dsi_dtype dtype, const uint8_t *row, int64_t i) {
    if (dtype == DSI_DTYPE_E4M3) return (double)dsi_e4m3_to_f32(row[i]);
    if (dtype == DSI_DTYPE_BF16) return (double)dsi_bf16_to_f32(dsi_load_u16(row, i));
    if (dtype == DSI_DTYPE_F16) return (double)dsi_f16_to_f32(dsi_load_u16(row, i));
    return (double)dsi_load_f32(row, i);
}

static inline void dsi_matmul_ref(const dsi_matmul_args *a, dsi_dtype w, dsi_dtype x) {
    for (int64_t i = 0; i < a->m; i++) {
        int64_t x_row = a->x_rows ? a->x_rows[i] : i;
        const uint8_t *xs = (const uint8_t *)a->x + x_row * a->x_stride * dsi_element_bytes(x);
        for (int64_t n = a->n0; n < a->n1; n++) {
            const uint8_t *ws = a->w + n * a->w_stride * dsi_element_bytes(w);
            double sum = 0;
            for (int64_t k = 0; k < a->k; k++) {
                double scale = 1;
                if (w == DSI_DTYPE_E4M3)
                    scale = (double)a->scale[n / DSI_BLOCK * a->scale_stride + k / DSI_BLOCK];
                sum += dsi_element(x, xs, k) * dsi_element(w, ws, k) * scale;
            }
            a->y[i * a->y_stride + n - a->n0] = (float)sum;
        }
    }
}

static inline void dsi_matmul_t_ref(const dsi_matmul_t_args *a, dsi_dtype w) {
    for (int64_t i = 0; i < a->m; i++) {
        for (int64_t j = 0; j < a->k; j++) {
            double sum = 0;
            for (int64_t n = a->n0; n < a->n1; n++) {
                double scale = 1;
                if (w == DSI_DTYPE_E4M3)
                    scale = (double)a->scale[n / DSI_BLOCK * a->scale_stride + j / DSI_BLOCK];
                sum += (double)a->x[i * a->x_stride + n - a->n0] *
                       dsi_element(w, a->w + n * a->w_stride * dsi_element_bytes(w), j) * scale;
            }
            a->y[i * a->y_stride + j] = (float)sum;
        }
    }
}

#endif
