/* cpu_linear.c: the row-wise ops of the CPU back-end: embed, norm, linear, rope, kv_write. */
#include "../../kernels/formats.h"
#include "cpu.h"
#include <string.h>

/* Multiply-adds that take as long as one element of a light op (load, convert, store). */
enum { LIGHT = 8, SINE_COSINE = 128 };

/* ---- embed: x[r] = table[tokens[r]]
 * -------------------------------------------------------------- */

dsi_status dsi_cpu_embed_check(dsi_dev *dev, const dsi_op *op, uint64_t *workspace) {
    (void)workspace;
    bool ok = op->n_in == 2 && op->n_out == 1 && op->in[0]->dtype == DSI_DTYPE_I32 &&
              dsi_cpu_weight_ok(op->in[1]) && op->in[1]->dtype != DSI_DTYPE_E4M3 &&
              op->out[0]->dtype == DSI_DTYPE_F32 && op->out[0]->ne[0] == op->in[1]->ne[0];
    return dsi_cpu_require(dev, op, ok, "the table must be BF16, F16 or F32");
}

static void widen(const void *src, dsi_dtype dtype, float *dst, int64_t n) {
    const uint8_t *p = src; /* may be unaligned: tables are used as they lie in the file */
    for (int64_t i = 0; i < n; i++) {
        uint16_t half = 0;
        if (dtype != DSI_DTYPE_F32) memcpy(&half, p + i * 2, 2);
        if (dtype == DSI_DTYPE_BF16)
            dst[i] = dsi_bf16_to_f32(half);
        else if (dtype == DSI_DTYPE_F16)
            dst[i] = dsi_f16_to_f32(half);
        else
            memcpy(dst + i, p + i * 4, 4);
    }
}

static void embed_rows(void *context, uint32_t thread, uint32_t n_threads) {
    const dsi_cpu_run *run = context;
    const dsi_tensor *table = run->op->in[1], *x = run->op->out[0];
    const int32_t *tokens = dsi_cpu_data(run->op->in[0]);
    uint64_t r0, r1;
    dsi_pool_share((uint64_t)dsi_cpu_rows(x), 1, thread, n_threads, &r0, &r1);
    for (uint64_t r = r0; r < r1; r++)
        widen(dsi_cpu_at(table, tokens[r], 0), table->dtype, dsi_cpu_at(x, (int64_t)r, 0),
              table->ne[0]);
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

/* ---- linear: y = x W^T (+ bias), or y +=
 * --------------------------------------------------------- */

/* One thread's share of the workspace: `n_rows` rows of a tile, then the panel of a kernel. */
static uint64_t tile_workspace(int64_t n_rows, int64_t k) {
    dsi_cpu_arena arena = {NULL, 0};
    dsi_cpu_take(&arena, n_rows * DSI_CPU_TILE * 4);
    dsi_cpu_take(&arena, dsi_matmul_scratch_bytes(k));
    return arena.used;
}

dsi_status dsi_cpu_linear_check(dsi_dev *dev, const dsi_op *op, uint64_t *workspace) {
    const dsi_tensor *x = op->in[0], *w = op->in[1], *bias = op->n_in > 2 ? op->in[2] : NULL;
    const dsi_tensor *y = op->out[0];
    const dsi_attr_linear *attr = op->attr;
    bool add = attr && (attr->flags & DSI_LINEAR_ADD);
    bool ok = dsi_cpu_weight_ok(w) && dsi_cpu_is_act(x->dtype) && dsi_cpu_is_act(y->dtype) &&
              x->ne[0] == w->ne[0] && y->ne[0] == w->ne[1] &&
              (!bias || (bias->dtype == DSI_DTYPE_F32 && bias->ne[0] == y->ne[0])) &&
              (!add || y->dtype == DSI_DTYPE_F32);
    *workspace = tile_workspace(dsi_cpu_rows(x), w->ne[0]) * dev->n_threads;
    return dsi_cpu_require(dev, op, ok, "types or shapes of x, weight, bias, y do not fit");
}

/* Adds bias to a tile of columns [n0, n0 + n) and puts it where it belongs. */
static void linear_finish(const dsi_cpu_run *run, float *tile, int64_t n0, int64_t n) {
    const dsi_tensor *y = run->op->out[0], *bias = run->op->n_in > 2 ? run->op->in[2] : NULL;
    const dsi_attr_linear *attr = run->op->attr;
    bool add = attr && (attr->flags & DSI_LINEAR_ADD);
    const float *b = bias ? (const float *)dsi_cpu_data(bias) + n0 : NULL;
    for (int64_t r = 0; r < dsi_cpu_rows(y); r++, tile += DSI_CPU_TILE) {
        void *out = dsi_cpu_at(y, r, n0);
        for (int64_t i = 0; b && i < n; i++) tile[i] += b[i];
        if (add) {
            float *sum = out;
            for (int64_t i = 0; i < n; i++) sum[i] += tile[i];
        } else {
            dsi_cpu_store(run->dev, tile, out, y->dtype, n);
        }
    }
}

static void linear_columns(void *context, uint32_t thread, uint32_t n_threads) {
    const dsi_cpu_run *run = context;
    const dsi_tensor *x = run->op->in[0], *w = run->op->in[1];
    int64_t m = dsi_cpu_rows(x);
    dsi_cpu_arena arena = {run->workspace + tile_workspace(m, w->ne[0]) * thread, 0};
    float *tile = dsi_cpu_take(&arena, m * DSI_CPU_TILE * 4);
    dsi_matmul_args a = {.x = dsi_cpu_data(x),
                         .x_stride = x->stride[1],
                         .y = tile,
                         .y_stride = DSI_CPU_TILE,
                         .m = m};
    a.scratch = dsi_cpu_take(&arena, dsi_matmul_scratch_bytes(w->ne[0]));
    dsi_matmul_fn matmul = dsi_cpu_matmul(run->dev, w, x->dtype, &a);
    uint64_t n0, n1;
    dsi_pool_share((uint64_t)w->ne[1], DSI_CPU_TILE, thread, n_threads, &n0, &n1);
    for (int64_t n = (int64_t)n0; n < (int64_t)n1; n += DSI_CPU_TILE) {
        a.n0 = n;
        a.n1 = dsi_min_i64(n + DSI_CPU_TILE, (int64_t)n1);
        matmul(&a);
        linear_finish(run, tile, n, a.n1 - n);
    }
}
void dsi_cpu_linear_run(const dsi_cpu_run *run) {
    const dsi_tensor *w = run->op->in[1];
    dsi_cpu_parallel(run->dev, linear_columns, run,
                     dsi_cpu_rows(run->op->in[0]) * w->ne[0] * w->ne[1]);
}

/* ---- linear_swiglu: h = silu(x G^T) * (x U^T), both products in one pass over x
 * ------------------- */

dsi_status dsi_cpu_linear_swiglu_check(dsi_dev *dev, const dsi_op *op, uint64_t *workspace) {
    const dsi_tensor *x = op->in[0], *gate = op->in[1], *up = op->in[2], *h = op->out[0];
    bool ok = op->n_in == 3 && dsi_cpu_weight_ok(gate) && dsi_cpu_weight_ok(up) &&
              dsi_cpu_is_act(x->dtype) && dsi_cpu_is_act(h->dtype) && x->ne[0] == gate->ne[0] &&
              up->ne[0] == gate->ne[0] && up->ne[1] == gate->ne[1] && h->ne[0] == gate->ne[1];
    *workspace = tile_workspace(2 * dsi_cpu_rows(x), gate->ne[0]) * dev->n_threads;
    return dsi_cpu_require(dev, op, ok, "types or shapes of x, gate, up, h do not fit");
}

static void swiglu_columns(void *context, uint32_t thread, uint32_t n_threads) {
    const dsi_cpu_run *run = context;
    const dsi_tensor *x = run->op->in[0], *gate = run->op->in[1], *up = run->op->in[2];
    const dsi_tensor *h = run->op->out[0];
    int64_t m = dsi_cpu_rows(x);
    dsi_cpu_arena arena = {run->workspace + tile_workspace(2 * m, gate->ne[0]) * thread, 0};
    float *tile_gate = dsi_cpu_take(&arena, 2 * m * DSI_CPU_TILE * 4);
    float *tile_up = tile_gate + m * DSI_CPU_TILE;
    dsi_matmul_args a = {
        .x = dsi_cpu_data(x), .x_stride = x->stride[1], .y_stride = DSI_CPU_TILE, .m = m};
    dsi_matmul_args b = a;
    a.scratch = b.scratch = dsi_cpu_take(&arena, dsi_matmul_scratch_bytes(gate->ne[0]));
    a.y = tile_gate;
    b.y = tile_up;
    dsi_matmul_fn matmul_gate = dsi_cpu_matmul(run->dev, gate, x->dtype, &a);
    dsi_matmul_fn matmul_up = dsi_cpu_matmul(run->dev, up, x->dtype, &b);
    dsi_swiglu_fn swiglu =
        h->dtype == DSI_DTYPE_BF16 ? run->dev->kernels.swiglu_bf16 : run->dev->kernels.swiglu_f32;
    uint64_t n0, n1;
    dsi_pool_share((uint64_t)gate->ne[1], DSI_CPU_TILE, thread, n_threads, &n0, &n1);
    for (int64_t n = (int64_t)n0; n < (int64_t)n1; n += DSI_CPU_TILE) {
        a.n0 = b.n0 = n;
        a.n1 = b.n1 = dsi_min_i64(n + DSI_CPU_TILE, (int64_t)n1);
        matmul_gate(&a);
        matmul_up(&b);
        for (int64_t r = 0; r < m; r++)
            swiglu(tile_gate + r * DSI_CPU_TILE, tile_up + r * DSI_CPU_TILE, dsi_cpu_at(h, r, n),
                   a.n1 - n);
    }
}
void dsi_cpu_linear_swiglu_run(const dsi_cpu_run *run) {
    const dsi_tensor *w = run->op->in[1];
    dsi_cpu_parallel(run->dev, swiglu_columns, run,
                     2 * dsi_cpu_rows(run->op->in[0]) * w->ne[0] * w->ne[1]);
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
    dsi_pool_share((uint64_t)(x->ne[1] * x->ne[2]), 1, thread, n_threads, &i0, &i1);
    for (int64_t i = (int64_t)i0; i < (int64_t)i1; i++) {
        int64_t head = i % x->ne[1], row = i / x->ne[1];
        float *values = (float *)dsi_cpu_data(x) + row * x->stride[2] + head * x->stride[1];
        rope(values, inv_freq, x->ne[0] / 2, position[row], attr->factor);
    }
}
void dsi_cpu_rope_run(const dsi_cpu_run *run) {
    const dsi_tensor *x = run->op->out[0];
    dsi_cpu_parallel(run->dev, rope_rows, run, SINE_COSINE * x->ne[0] * x->ne[1] * x->ne[2]);
}

dsi_status dsi_cpu_kv_write_check(dsi_dev *dev, const dsi_op *op, uint64_t *workspace) {
    (void)workspace;
    const dsi_tensor *pages = op->out[0];
    const dsi_attr_kv_write *attr = op->attr;
    bool ok = op->n_in == 2 && op->in[0]->dtype == DSI_DTYPE_F32 &&
              op->in[1]->dtype == DSI_DTYPE_I64 && dsi_cpu_is_act(pages->dtype) &&
              (int64_t)attr->column + op->in[0]->ne[0] <= pages->ne[0];
    return dsi_cpu_require(dev, op, ok, "src must be F32 and fit into a page row");
}
void dsi_cpu_kv_write_run(const dsi_cpu_run *run) {
    const dsi_tensor *src = run->op->in[0], *pages = run->op->out[0];
    const int64_t *slots = dsi_cpu_data(run->op->in[1]);
    const dsi_attr_kv_write *attr = run->op->attr;
    for (int64_t r = 0; r < dsi_cpu_rows(src); r++)
        dsi_cpu_store(run->dev, dsi_cpu_at(src, r, 0), dsi_cpu_at(pages, slots[r], attr->column),
                      pages->dtype, src->ne[0]);
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
