/* cpu_rows.c: the ops that treat each row alone: embed, norm, rope, kv_write, gather_rows. */
#include "../../kernels/formats.h"
#include "cpu.h"
#include <string.h>

/* Multiply-adds that take as long as one element of a light op (load, convert, store). */
enum { LIGHT = 8, SINE_COSINE = 128, CODE = 64 };
enum { STEP = 16 }; /* elements widened at once */

/* ---- embed: x[r] = table[tokens[r]]
 * -------------------------------------------------------------- */

dsi_status dsi_cpu_embed_check(dsi_dev *dev, const dsi_op *op, uint64_t *workspace) {
    (void)workspace;
    bool ok = op->n_in == 2 && op->n_out == 1 && op->in[0]->dtype == DSI_DTYPE_I32 &&
              dsi_cpu_weight_ok(op->in[1]) && op->in[1]->scale_kind == DSI_SCALE_NONE &&
              op->out[0]->dtype == DSI_DTYPE_F32 && op->out[0]->ne[0] == op->in[1]->ne[0];
    return dsi_cpu_require(dev, op, ok, "the table must be BF16, F16, F32 or blocks of GGUF");
}

/* dst = src as f32; src may be unaligned: tables are used as they lie in the file. */
static void widen(const void *src, dsi_dtype dtype, float *dst, int64_t n) {
    const uint8_t *from = src;
    if (dtype == DSI_DTYPE_F32) {
        memcpy(dst, src, (size_t)n * sizeof *dst);
        return;
    }
    for (int64_t i = 0; i < n; i += STEP) {
        uint16_t half[STEP] = {0};
        float wide[STEP];
        size_t count = (size_t)dsi_min_i64(STEP, n - i);
        memcpy(half, from + i * 2, count * sizeof *half);
        for (int j = 0; j < STEP; j++)
            wide[j] = dtype == DSI_DTYPE_BF16 ? dsi_bf16_to_f32(half[j]) : dsi_f16_to_f32(half[j]);
        memcpy(dst + i, wide, count * sizeof *dst);
    }
}

static void embed_rows(void *context, uint32_t thread, uint32_t n_threads) {
    const dsi_cpu_run *run = context;
    const dsi_tensor *table = run->op->in[1], *x = run->op->out[0];
    const int32_t *tokens = dsi_cpu_data(run->op->in[0]);
    uint64_t r0, r1;
    dsi_pool_share((uint64_t)dsi_cpu_rows(x), 1, thread, n_threads, &r0, &r1);
    for (uint64_t r = r0; r < r1; r++) {
        const void *row = dsi_cpu_at(table, tokens[r], 0);
        float *to = dsi_cpu_at(x, (int64_t)r, 0);
        if (dsi_dtype_block(table->dtype).values)
            run->dev->kernels.decode_blocks(table->dtype, row, to, table->ne[0]);
        else
            widen(row, table->dtype, to, table->ne[0]);
    }
}
void dsi_cpu_embed_run(const dsi_cpu_run *run) {
    const dsi_tensor *x = run->op->out[0];
    dsi_cpu_parallel(run->dev, embed_rows, run, LIGHT * dsi_cpu_rows(x) * x->ne[0]);
}

/* ---- rms_norm
 * ------------------------------------------------------------------------------------ */

dsi_status dsi_cpu_rms_norm_check(dsi_dev *dev, const dsi_op *op, uint64_t *workspace) {
    (void)workspace;
    bool ok = op->n_in == 2 && op->n_out == 1 && op->in[0]->dtype == DSI_DTYPE_F32 &&
              op->in[1]->dtype == DSI_DTYPE_F32 && op->in[1]->ne[0] == op->in[0]->ne[0] &&
              dsi_cpu_is_act(op->out[0]->dtype);
    return dsi_cpu_require(dev, op, ok, "x and weight must be F32, y F32 or BF16");
}
static void norm_rows(void *context, uint32_t thread, uint32_t n_threads) {
    const dsi_cpu_run *run = context;
    const dsi_tensor *x = run->op->in[0], *w = run->op->in[1], *y = run->op->out[0];
    const dsi_attr_norm *attr = run->op->attr;
    dsi_rms_norm_fn norm = y->dtype == DSI_DTYPE_BF16 ? run->dev->kernels.rms_norm_bf16
                                                      : run->dev->kernels.rms_norm_f32;
    uint64_t r0, r1;
    dsi_pool_share((uint64_t)dsi_cpu_rows(x), 1, thread, n_threads, &r0, &r1);
    for (int64_t r = (int64_t)r0; r < (int64_t)r1; r++)
        norm(dsi_cpu_at(x, r, 0), dsi_cpu_data(w), DSI_DTYPE_F32, dsi_cpu_at(y, r, 0), x->ne[0],
             attr->eps);
}
void dsi_cpu_rms_norm_run(const dsi_cpu_run *run) {
    const dsi_tensor *x = run->op->in[0];
    dsi_cpu_parallel(run->dev, norm_rows, run, LIGHT * dsi_cpu_rows(x) * x->ne[0]);
}

/* ---- rope, kv_write, gather_rows
 * ------------------------------------------------------------------- */

dsi_status dsi_cpu_rope_check(dsi_dev *dev, const dsi_op *op, uint64_t *workspace) {
    (void)workspace;
    const dsi_tensor *x = op->out[0];
    bool ok = op->n_in == 2 && x->n_dims == 3 && x->dtype == DSI_DTYPE_F32 && x->ne[0] % 2 == 0 &&
              op->in[0]->dtype == DSI_DTYPE_I32 && op->in[1]->ne[0] == x->ne[0] / 2;
    return dsi_cpu_require(dev, op, ok, "x must be F32 [rows][heads][even dim]");
}
static void rope_rows(void *context, uint32_t thread, uint32_t n_threads) {
    const dsi_cpu_run *run = context;
    const dsi_tensor *x = run->op->out[0];
    const int32_t *position = dsi_cpu_data(run->op->in[0]);
    const float *inv_freq = dsi_cpu_data(run->op->in[1]);
    const dsi_attr_rope *attr = run->op->attr;
    dsi_rope_fn rope =
        attr->interleaved ? run->dev->kernels.rope_interleaved : run->dev->kernels.rope_half;
    uint64_t i0, i1;
    dsi_pool_share((uint64_t)x->ne[2], 1, thread, n_threads, &i0, &i1);
    for (int64_t i = (int64_t)i0; i < (int64_t)i1; i++) {
        float *values = (float *)dsi_cpu_data(x) + i * x->stride[2];
        rope(&(dsi_rope_args){values, x->stride[1], x->ne[1], inv_freq, x->ne[0] / 2, position[i],
                              attr->factor});
    }
}
void dsi_cpu_rope_run(const dsi_cpu_run *run) {
    const dsi_tensor *x = run->op->out[0];
    int64_t work = x->ne[0] * x->ne[2] * (SINE_COSINE + LIGHT * x->ne[1]);
    if (x->ne[2] == 1) work = 0; /* one row is one task */
    dsi_cpu_parallel(run->dev, rope_rows, run, work);
}

/* The coded row that the attributes describe, if the pages are of 8 bits. */
static dsi_kv_row coded_row(const dsi_op *op) {
    const dsi_attr_kv_write *a = op->attr;
    int64_t n_coded = (int64_t)a->n_heads * a->head_columns;
    return dsi_kv_row_of(a->n_heads, a->head_columns, op->in[0]->ne[0] - n_coded);
}
dsi_status dsi_cpu_kv_write_check(dsi_dev *dev, const dsi_op *op, uint64_t *workspace) {
    (void)workspace;
    const dsi_tensor *pages = op->out[0];
    const dsi_attr_kv_write *attr = op->attr;
    bool ok =
        op->n_in == 2 && op->in[0]->dtype == DSI_DTYPE_F32 && op->in[1]->dtype == DSI_DTYPE_I64;
    if (ok && dsi_cpu_is_coded(pages->dtype)) {
        const dsi_kv_row row = coded_row(op);
        ok = attr->column == 0 && row.heads * row.columns > 0 && row.rest >= 0 &&
             pages->ne[0] >= row.n_bytes && pages->stride[1] % 16 == 0;
    } else if (ok) {
        ok = dsi_cpu_is_act(pages->dtype) &&
             (int64_t)attr->column + op->in[0]->ne[0] <= pages->ne[0];
    }
    return dsi_cpu_require(dev, op, ok, "src must be F32 and fit into a page row");
}
static void kv_write_rows(void *context, uint32_t thread, uint32_t n_threads) {
    const dsi_cpu_run *run = context;
    const dsi_tensor *src = run->op->in[0], *pages = run->op->out[0];
    const int64_t *slots = dsi_cpu_data(run->op->in[1]);
    const dsi_attr_kv_write *attr = run->op->attr;
    const bool coded = dsi_cpu_is_coded(pages->dtype);
    const dsi_kv_row row = coded ? coded_row(run->op) : (dsi_kv_row){0};
    uint64_t r0, r1;
    dsi_pool_share((uint64_t)dsi_cpu_rows(src), 1, thread, n_threads, &r0, &r1);
    for (int64_t r = (int64_t)r0; r < (int64_t)r1; r++) {
        void *to = dsi_cpu_at(pages, slots[r], attr->column);
        if (coded)
            dsi_cpu_code_row(run->dev, &row, pages->dtype, dsi_cpu_at(src, r, 0), to);
        else
            dsi_cpu_store(run->dev, dsi_cpu_at(src, r, 0), to, pages->dtype, src->ne[0]);
    }
}
void dsi_cpu_kv_write_run(const dsi_cpu_run *run) {
    const dsi_tensor *src = run->op->in[0];
    bool coded = dsi_cpu_is_coded(run->op->out[0]->dtype);
    dsi_cpu_parallel(run->dev, kv_write_rows, run,
                     coded ? CODE * dsi_cpu_rows(src) * src->ne[0] : 0);
}

dsi_status dsi_cpu_gather_rows_check(dsi_dev *dev, const dsi_op *op, uint64_t *workspace) {
    (void)workspace;
    bool ok = op->n_in == 2 && op->in[0]->dtype == DSI_DTYPE_F32 &&
              op->in[1]->dtype == DSI_DTYPE_I32 && op->out[0]->dtype == DSI_DTYPE_F32 &&
              op->out[0]->ne[0] == op->in[0]->ne[0];
    return dsi_cpu_require(dev, op, ok, "x and y must be F32 rows of one width");
}
void dsi_cpu_gather_rows_run(const dsi_cpu_run *run) {
    const dsi_tensor *x = run->op->in[0], *y = run->op->out[0];
    const int32_t *rows = dsi_cpu_data(run->op->in[1]);
    for (int64_t r = 0; r < dsi_cpu_rows(y); r++)
        memcpy(dsi_cpu_at(y, r, 0), dsi_cpu_at(x, rows[r], 0), (size_t)x->ne[0] * 4);
}
