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
    if (dtype == DSI_DTYPE_I8) return row[i] - (row[i] & 0x80 ? 256 : 0);
    if (dtype == DSI_DTYPE_I4) return dsi_load_i4(row, i);
    return (double)dsi_load_f32(row, i);
}

/* The multiplier of w[n][k]. */
static inline double dsi_scale_ref(const dsi_matmul_args *a, dsi_dtype w, int64_t n, int64_t k) {
    if (w == DSI_DTYPE_E4M3)
        return (double)dsi_load_f32(a->scale, n / DSI_BLOCK * a->scale_stride + k / DSI_BLOCK);
    if (w != DSI_DTYPE_I8 && w != DSI_DTYPE_I4) return 1;
    return (double)dsi_load_scale(a->scale_dtype, a->scale,
                                  n / a->group_n * a->scale_stride + k / a->group_k);
}

static inline void dsi_matmul_ref(const dsi_matmul_args *a, dsi_dtype w, dsi_dtype x) {
    for (int64_t i = 0; i < a->m; i++) {
        int64_t x_row = a->x_rows ? a->x_rows[i] : i;
        const uint8_t *xs = (const uint8_t *)a->x + x_row * a->x_stride * dsi_element_bytes(x);
        for (int64_t n = a->n0; n < a->n1; n++) {
            const uint8_t *ws = a->w + dsi_row_bytes(w, n * a->w_stride);
            double sum = 0;
            for (int64_t k = 0; k < a->k; k++)
                sum += dsi_element(x, xs, k) * dsi_element(w, ws, k) * dsi_scale_ref(a, w, n, k);
            a->y[i * a->y_stride + n - a->n0] = (float)sum;
        }
    }
}

/* Activations of 8 bits: whole numbers are summed as such as far as their multipliers are equal. */
static inline void dsi_matmul_a8_ref(const dsi_matmul_args *a, dsi_dtype w) {
    const int64_t group = a->group_k < a->x_group ? a->group_k : a->x_group;
    for (int64_t i = 0; i < a->m; i++) {
        int64_t x_row = a->x_rows ? a->x_rows[i] : i;
        const int8_t *x = (const int8_t *)a->x + x_row * a->x_stride;
        const float *multiplier = dsi_a8_multipliers(x, a->k);
        for (int64_t n = a->n0; n < a->n1; n++) {
            const uint8_t *ws = a->w + dsi_row_bytes(w, n * a->w_stride);
            double sum = 0;
            for (int64_t from = 0; from < a->k; from += group) {
                int64_t part = 0, end = a->k - from < group ? a->k : from + group;
                for (int64_t k = from; k < end; k++) part += x[k] * (int64_t)dsi_element(w, ws, k);
                sum += (double)part * dsi_scale_ref(a, w, n, from) *
                       (double)multiplier[from / DSI_BLOCK];
            }
            a->y[i * a->y_stride + n - a->n0] = (float)sum;
        }
    }
}

static inline void dsi_matmul_t_ref(const dsi_matmul_t_args *a, dsi_dtype w) {
    const dsi_matmul_args scales = {.scale = a->scale,
                                    .scale_stride = a->scale_stride,
                                    .scale_dtype = a->scale_dtype,
                                    .group_n = a->group_n,
                                    .group_k = a->group_k};
    for (int64_t i = 0; i < a->m; i++) {
        for (int64_t j = 0; j < a->k; j++) {
            double sum = 0;
            for (int64_t n = a->n0; n < a->n1; n++)
                sum += (double)a->x[i * a->x_stride + n - a->n0] *
                       dsi_element(w, a->w + dsi_row_bytes(w, n * a->w_stride), j) *
                       dsi_scale_ref(&scales, w, n, j);
            a->y[i * a->y_stride + j] = (float)sum;
        }
    }
}

#endif
