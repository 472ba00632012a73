/* cpu_linear.c: products with weight matrices: linear and linear_swiglu. A task is some columns of
 * one product for all rows of the step. */
#include "cpu_tasks.h"

enum { MAX_OUT = 4 };

/* ---- What both have -----------------------------------------------------------------------------
 */

/* One thread's own memory: n_tiles tiles of results, then the scratch of a kernel. */
static uint64_t own_bytes(int64_t m, int64_t n_tiles, int64_t k) {
    dsi_cpu_arena arena = {NULL, 0};
    dsi_cpu_take(&arena, n_tiles * dsi_cpu_tile_floats(m) * 4);
    dsi_cpu_take(&arena, dsi_matmul_scratch_bytes(k));
    return arena.used;
}

/* The workspace of an op: x as its weights want it, then each thread's own memory. */
typedef struct layout {
    dsi_cpu_operand x;
    uint8_t *own;
    uint64_t own_bytes, total;
} layout;

/* Weights are the inputs first, first + step, ... Without a workspace only sizes count. */
static layout layout_of(const dsi_dev *dev, const dsi_op *op, uint8_t *workspace, int64_t n_tiles,
                        uint32_t first, uint32_t step) {
    const dsi_tensor *x = op->in[0];
    int64_t m = dsi_cpu_rows(x), k = x->ne[0];
    dsi_cpu_arena arena = {workspace, 0};
    layout l = {
        .x = dsi_cpu_operand_of(workspace ? dsi_cpu_data(x) : NULL, x->dtype, k, x->stride[1])};
    for (uint32_t i = first; i < op->n_in; i += step)
        dsi_cpu_operand_take(&l.x, dsi_cpu_form(dev, op->in[i]), m, &arena);
    l.own_bytes = own_bytes(m, n_tiles, k);
    l.own = dsi_cpu_take(&arena, (int64_t)(l.own_bytes * dev->n_threads));
    l.total = arena.used;
    return l;
}

/* ---- linear: y = x W^T (+ bias), or y +=; several products of one x in one run -----------------
 */

typedef struct product {
    const dsi_tensor *w, *bias, *y;
    int64_t columns, first; /* of a task; the number of the first task */
} product;
typedef struct linear_job {
    const dsi_cpu_run *run;
    product products[MAX_OUT];
    uint32_t n_products;
    int64_t n_tasks;
    bool add;
    layout layout;
} linear_job;

/* in: x, then a weight and a bias per output; absent biases are NULL, or missing at the end. */
static const dsi_tensor *input(const dsi_op *op, uint32_t i) {
    return i < op->n_in ? op->in[i] : NULL;
}

dsi_status dsi_cpu_linear_check(dsi_dev *dev, const dsi_op *op, uint64_t *workspace) {
    const dsi_tensor *x = op->in[0];
    const dsi_attr_linear *attr = op->attr;
    bool add = attr && (attr->flags & DSI_LINEAR_ADD);
    bool ok = dsi_cpu_is_act(x->dtype) && op->n_out >= 1 && op->n_out <= MAX_OUT && op->n_in >= 2 &&
              op->n_in <= 1 + 2 * op->n_out;
    for (uint32_t i = 0; ok && i < op->n_out; i++) {
        const dsi_tensor *w = input(op, 1 + 2 * i), *bias = input(op, 2 + 2 * i), *y = op->out[i];
        ok = dsi_cpu_weight_ok(w) && dsi_cpu_is_act(y->dtype) && x->ne[0] == w->ne[0] &&
             y->ne[0] == w->ne[1] &&
             (!bias || (bias->dtype == DSI_DTYPE_F32 && bias->ne[0] == y->ne[0])) &&
             (!add || y->dtype == DSI_DTYPE_F32);
    }
    if (ok) *workspace = layout_of(dev, op, NULL, 1, 1, 2).total;
    return dsi_cpu_require(dev, op, ok, "types or shapes of x, weight, bias, y do not fit");
}

/* Rows [r0, r0 + m) of a tile of columns [n0, n0 + n): adds the bias and puts them where they
 * belong. */
static void linear_finish(const linear_job *job, const product *p, float *tile, int64_t r0,
                          int64_t m, int64_t n0, int64_t n) {
    const float *bias = p->bias ? (const float *)dsi_cpu_data(p->bias) + n0 : NULL;
    for (int64_t r = 0; r < m; r++, tile += p->columns) {
        void *out = dsi_cpu_at(p->y, r0 + r, n0);
        if (bias) dsi_cpu_add_scaled(tile, bias, 1, n);
        if (job->add)
            dsi_cpu_add_scaled(out, tile, 1, n);
        else
            dsi_cpu_store(job->run->dev, tile, out, p->y->dtype, n);
    }
}

static void linear_task(const linear_job *job, const product *p, int64_t task, dsi_cpu_arena own) {
    const dsi_cpu_operand *x = &job->layout.x;
    int64_t m = dsi_cpu_rows(p->y), n0 = (task - p->first) * p->columns;
    float *tile = dsi_cpu_take(&own, dsi_cpu_tile_floats(m) * 4);
    dsi_matmul_args a = {.n0 = n0,
                         .n1 = dsi_min_i64(n0 + p->columns, p->w->ne[1]),
                         .scratch = dsi_cpu_take(&own, dsi_matmul_scratch_bytes(x->k))};
    bool direct = p->y->dtype == DSI_DTYPE_F32 && !p->bias && !job->add;
    int64_t step = direct ? m : DSI_CPU_ROWS_AT_ONCE;
    for (int64_t r = 0; r < m; r += step) {
        a.m = dsi_min_i64(step, m - r);
        a.y = direct ? dsi_cpu_at(p->y, r, n0) : tile;
        a.y_stride = direct ? p->y->stride[1] : p->columns;
        dsi_cpu_product(job->run->dev, p->w, x, r, &a)(&a);
        if (!direct) linear_finish(job, p, tile, r, a.m, n0, a.n1 - n0);
    }
}

static void linear_columns(void *context, uint32_t thread, uint32_t n_threads) {
    const linear_job *job = context;
    dsi_cpu_arena own = {job->layout.own + job->layout.own_bytes * thread, 0};
    for (int64_t task; dsi_cpu_next_task(job->run->dev->shares, thread, n_threads, &task);) {
        uint32_t i = job->n_products - 1;
        while (task < job->products[i].first) i--;
        linear_task(job, &job->products[i], task, own);
    }
}
void dsi_cpu_linear_run(const dsi_cpu_run *run) {
    const dsi_op *op = run->op;
    const dsi_attr_linear *attr = op->attr;
    linear_job job = {.run = run,
                      .n_products = op->n_out,
                      .layout = layout_of(run->dev, op, run->workspace, 1, 1, 2)};
    job.add = attr && (attr->flags & DSI_LINEAR_ADD);
    int64_t m = dsi_cpu_rows(op->in[0]), work = 0;
    for (uint32_t i = 0; i < op->n_out; i++) work += m * op->in[0]->ne[0] * op->out[i]->ne[0];
    uint32_t n_threads = dsi_cpu_threads(run->dev, work);
    for (uint32_t i = 0; i < op->n_out; i++) {
        product *p = &job.products[i];
        *p = (product){input(op, 1 + 2 * i), input(op, 2 + 2 * i), op->out[i], 0, job.n_tasks};
        p->columns = dsi_cpu_task_columns(p->w, m, DSI_CPU_TASK_BYTES, n_threads);
        job.n_tasks += dsi_ceil_div(p->w->ne[1], p->columns);
    }
    dsi_cpu_operand_fill_all(run->dev, &job.layout.x, m);
    dsi_cpu_deal_evenly(run->dev->shares, n_threads, job.n_tasks);
    dsi_cpu_parallel(run->dev, linear_columns, &job, work);
}

/* ---- linear_swiglu: h = silu(x G^T) * (x U^T), both products in one pass over x
 * ------------------- */

static dsi_attr_swiglu swiglu_attr(const dsi_op *op) {
    const dsi_attr_swiglu none = {sizeof none, 0, NULL, NULL}, *attr = op->attr;
    return attr ? *attr : none;
}

dsi_status dsi_cpu_linear_swiglu_check(dsi_dev *dev, const dsi_op *op, uint64_t *workspace) {
    const dsi_tensor *x = op->in[0], *gate = op->in[1], *up = op->in[2], *h = op->out[0];
    const dsi_attr_swiglu a = swiglu_attr(op);
    bool ok = op->n_in == 3 && dsi_cpu_weight_ok(gate) && dsi_cpu_weight_ok(up) &&
              dsi_cpu_is_act(x->dtype) && dsi_cpu_is_act(h->dtype) && x->ne[0] == gate->ne[0] &&
              up->ne[0] == gate->ne[0] && up->ne[1] == gate->ne[1] && h->ne[0] == gate->ne[1] &&
              dsi_cpu_low_rank_ok(a.gate_low_rank, gate->ne[1], gate->ne[0]) &&
              dsi_cpu_low_rank_ok(a.up_low_rank, up->ne[1], up->ne[0]);
    if (ok) *workspace = layout_of(dev, op, NULL, 2, 1, 1).total;
    return dsi_cpu_require(dev, op, ok, "types or shapes of x, gate, up, h do not fit");
}

typedef struct swiglu_job {
    const dsi_cpu_run *run;
    dsi_cpu_gated product;
    layout layout;
    int64_t columns;
} swiglu_job;

static void swiglu_columns(void *context, uint32_t thread, uint32_t n_threads) {
    const swiglu_job *job = context;
    const dsi_cpu_gated *p = &job->product;
    dsi_cpu_arena own = {job->layout.own + job->layout.own_bytes * thread, 0};
    int64_t last = -2;
    for (int64_t task; dsi_cpu_next_task(job->run->dev->shares, thread, n_threads, &task);) {
        int64_t n0 = task * job->columns, n1 = dsi_min_i64(n0 + job->columns, p->gate->ne[1]);
        if (task != last + 1) dsi_cpu_prefetch(p->up, n0);
        dsi_cpu_gated_columns(job->run->dev, p, n0, n1, NULL, own);
        last = task;
    }
}
void dsi_cpu_linear_swiglu_run(const dsi_cpu_run *run) {
    const dsi_tensor *x = run->op->in[0], *gate = run->op->in[1], *h = run->op->out[0];
    const dsi_attr_swiglu a = swiglu_attr(run->op);
    swiglu_job job = {.run = run,
                      .layout = layout_of(run->dev, run->op, run->workspace, 2, 1, 1),
                      .product = {.gate = gate,
                                  .up = run->op->in[2],
                                  .m = dsi_cpu_rows(x),
                                  .h = dsi_cpu_data(h),
                                  .h_stride = h->stride[1],
                                  .h_dtype = h->dtype,
                                  .gate_low_rank = a.gate_low_rank,
                                  .up_low_rank = a.up_low_rank}};
    job.product.x = &job.layout.x;
    int64_t work = 2 * job.product.m * gate->ne[0] * gate->ne[1];
    uint32_t n_threads = dsi_cpu_threads(run->dev, work);
    job.columns = dsi_cpu_task_columns(gate, job.product.m, DSI_CPU_TASK_BYTES, n_threads);
    dsi_cpu_operand_fill_all(run->dev, &job.layout.x, job.product.m);
    dsi_cpu_deal_evenly(run->dev->shares, n_threads, dsi_ceil_div(gate->ne[1], job.columns));
    dsi_cpu_parallel(run->dev, swiglu_columns, &job, work);
}
