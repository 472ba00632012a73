/* quantize_rows.c: rows of weights as numbers, and numbers as codes with scales. The loops over
 * floats go in steps that compilers make vectors of. */
#include "quantize.h"

#include "../../kernels/formats.h"
#include "../../lib/base/convert.h"
#include "quantize_search.h"
#include <math.h>
#include <string.h>

enum { STEP = 16 };

/* ---- Reading -------------------------------------------------------------------------------- */

static void read_fp8_row(const uint8_t *codes, const uint8_t *scales, int64_t k, const float *table,
                         float *to) {
    for (int64_t b = 0; b * DSI_BLOCK < k; b++) {
        const float scale = dsi_load_f32(scales, b);
        const int64_t end = dsi_min_i64(k, (b + 1) * DSI_BLOCK);
        for (int64_t i = b * DSI_BLOCK; i < end; i++) to[i] = table[codes[i]] * scale;
    }
}

void quantize_read_rows(const quantize_plan *plan, const dsi_file_tensor *weight, int64_t row,
                        int64_t n, float *to) {
    const int64_t k = weight->shape[weight->n_dims - 1];
    const uint8_t *data = dsi_checkpoint_data(plan->from, weight);
    if (weight->dtype != DSI_DTYPE_E4M3) {
        const int64_t row_bytes = k * dsi_dtype_bytes(weight->dtype);
        dsi_widen(weight->dtype, data + row * row_bytes, to, (uint64_t)(n * k));
        return;
    }
    char name[600];
    float table[256];
    for (int code = 0; code < 256; code++) table[code] = dsi_e4m3_to_f32((uint8_t)code);
    snprintf(name, sizeof name, "%s_scale_inv", weight->name);
    const dsi_file_tensor *t = dsi_checkpoint_find(plan->from, name); /* the loader bound it */
    const uint8_t *scales = dsi_checkpoint_data(plan->from, t);
    const int64_t scale_row = dsi_ceil_div(k, DSI_BLOCK) * (int64_t)sizeof(float);
    for (int64_t r = row; r < row + n; r++)
        read_fp8_row(data + r * k, scales + r / DSI_BLOCK * scale_row, k, table,
                     to + (r - row) * k);
}

/* ---- Scales --------------------------------------------------------------------------------- */

static float largest(const float *x, int64_t n) {
    float top[STEP] = {0}, all = 0;
    int64_t i = 0;
    for (; i + STEP <= n; i += STEP)
        for (int j = 0; j < STEP; j++) {
            float size = fabsf(x[i + j]);
            top[j] = size > top[j] ? size : top[j];
        }
    for (; i < n; i++) top[0] = fabsf(x[i]) > top[0] ? fabsf(x[i]) : top[0];
    for (int j = 0; j < STEP; j++) all = top[j] > all ? top[j] : all;
    return all;
}

/* To nearest, ties to even: behind this no fraction is left below 2^22. */
static const float rounding = 0x1.8p23f;

/* The scale as it will be read: what is stored is rounded first, then divided by. */
static float stored_scale(dsi_dtype dtype, float scale) {
    return dtype == DSI_DTYPE_BF16 ? dsi_bf16_to_f32(dsi_f32_to_bf16(scale)) : scale;
}
static float per_unit_of(float scale) { return scale > 0 ? 1 / scale : 0; }

static float code_of(float x, float per_unit, float top) {
    float code = x * per_unit;
    code = code > top ? top : code;
    code = code < -top - 1 ? -top - 1 : code;
    return code + rounding - rounding;
}

/* Sum of the squares of what n <= QUANTIZE_BLOCK values lose; codes as they are where wanted. */
static float encode(const float *x, int64_t n, float scale, float top, int8_t *codes) {
    const float per_unit = per_unit_of(scale);
    float lost[STEP] = {0}, all = 0;
    int64_t i = 0;
    for (; i + STEP <= n; i += STEP)
        for (int j = 0; j < STEP; j++) {
            float code = code_of(x[i + j], per_unit, top), gap = x[i + j] - scale * code;
            lost[j] += gap * gap;
            codes[i + j] = (int8_t)(int32_t)code;
        }
    for (; i < n; i++) {
        float code = code_of(x[i], per_unit, top), gap = x[i] - scale * code;
        lost[0] += gap * gap;
        codes[i] = (int8_t)(int32_t)code;
    }
    for (int j = 0; j < STEP; j++) all += lost[j];
    return all;
}

static float squares(const float *x, int64_t n) {
    float sum[STEP] = {0}, all = 0;
    int64_t i = 0;
    for (; i + STEP <= n; i += STEP)
        for (int j = 0; j < STEP; j++) sum[j] += x[i + j] * x[i + j];
    for (; i < n; i++) sum[0] += x[i] * x[i];
    for (int j = 0; j < STEP; j++) all += sum[j];
    return all;
}

double quantize_squares(const float *x, int64_t n) {
    double all = 0;
    for (int64_t i = 0; i < n; i += QUANTIZE_BLOCK)
        all += (double)squares(x + i, dsi_min_i64(QUANTIZE_BLOCK, n - i));
    return all;
}

void quantize_put_scale(dsi_dtype dtype, float scale, uint8_t *scales, int64_t i) {
    if (dtype == DSI_DTYPE_F32) {
        memcpy(scales + 4 * i, &scale, sizeof scale);
    } else {
        uint16_t half = dsi_f32_to_bf16(scale);
        memcpy(scales + 2 * i, &half, sizeof half);
    }
}

/* ---- Codes ---------------------------------------------------------------------------------- */

int64_t quantize_code_bytes(const quantize_form *form, int64_t k) {
    return form->dtype == DSI_DTYPE_I4 ? dsi_ceil_div(k, 8) * 4 : k;
}

/* Columns [first, first + n) of a row of words; what is stored is the code and eight. */
void quantize_put4(const int8_t *codes, int64_t first, int64_t n, uint8_t *row) {
    for (int64_t i = 0; i < n; i++) {
        uint32_t code = (uint32_t)(codes[i] + 8);
        row[(first + i) / 2] |= (uint8_t)(code << ((first + i) % 2 * 4));
    }
}

/* Eight bits: columns [c, c + n) of a row with one scale, in pieces that the sums of f32 are good
 * for. */
static void put_columns(const float *row, int64_t c, int64_t n, float scale, uint8_t *to,
                        double error[2]) {
    for (int64_t i = 0; i < n; i += QUANTIZE_BLOCK) {
        const int64_t piece = dsi_min_i64(QUANTIZE_BLOCK, n - i);
        const float *x = row + c + i;
        error[0] += (double)encode(x, piece, scale, 127, (int8_t *)to + c + i);
        error[1] += (double)squares(x, piece);
    }
}

/* Eight bits: of rows that share their scales (one, or a block) in columns [c, c + n). */
static float scale_of(const quantize_form *f, const float *x, int64_t rows, int64_t k, int64_t c,
                      int64_t n) {
    float top = 0;
    for (int64_t r = 0; r < rows; r++) {
        float value = largest(x + r * k + c, n);
        top = value > top ? value : top;
    }
    return stored_scale(f->scale_dtype, top / 127);
}

/* Four bits: sixteen rows' groups from column c on are searched together. */
static void find_scales(const quantize_plan *plan, const float *x, int64_t n, int64_t k, int64_t c,
                        float scale[QUANTIZE_BLOCK]) {
    const quantize_form *f = plan->form;
    quantize_lanes rows = {.n = dsi_min_i64(f->scale_group, k - c)};
    for (int64_t r = 0; r < n; r += QUANTIZE_LANES) {
        for (int64_t l = 0; l < QUANTIZE_LANES; l++)
            rows.x[l] = x + dsi_min_i64(r + l, n - 1) * k + c;
        plan->search->symmetric(&rows, f->scale_dtype == DSI_DTYPE_BF16, scale + r);
    }
}

static void rows_of_eight_bits(const quantize_form *form, const float *x, int64_t n, int64_t k,
                               uint8_t *codes, uint8_t *scales, double error[2]) {
    const dsi_scale_span span = dsi_scale_span_of(form->scale_kind, form->scale_group, k);
    int64_t i_scale = 0;
    for (int64_t r = 0; r < n; r += span.n)
        for (int64_t c = 0; c < k; c += span.k, i_scale++) {
            const int64_t rows = dsi_min_i64(span.n, n - r), columns = dsi_min_i64(span.k, k - c);
            const float scale = scale_of(form, x + r * k, rows, k, c, columns);
            quantize_put_scale(form->scale_dtype, scale, scales, i_scale);
            for (int64_t i = r; i < r + rows; i++)
                put_columns(x + i * k, c, columns, scale, codes + i * k, error);
        }
}

void quantize_rows(const quantize_plan *plan, const float *x, int64_t n, int64_t k, uint8_t *codes,
                   uint8_t *scales, double error[2]) {
    const quantize_form *form = plan->form;
    const int64_t row_bytes = quantize_code_bytes(form, k), group = form->scale_group;
    float scale[QUANTIZE_BLOCK];
    error[0] = error[1] = 0;
    memset(codes, 0, (size_t)(n * row_bytes));
    if (form->dtype != DSI_DTYPE_I4) {
        rows_of_eight_bits(form, x, n, k, codes, scales, error);
        return;
    }
    for (int64_t c = 0; c < k; c += group) {
        find_scales(plan, x, n, k, c, scale);
        for (int64_t r = 0; r < n; r++) {
            float sums[2];
            quantize_put_scale(form->scale_dtype, scale[r], scales,
                               r * dsi_ceil_div(k, group) + c / group);
            plan->search->put_i4(x + r * k + c, dsi_min_i64(group, k - c), scale[r],
                                 codes + r * row_bytes + c / 2, sums);
            for (int i = 0; i < 2; i++) error[i] += (double)sums[i];
        }
    }
}
