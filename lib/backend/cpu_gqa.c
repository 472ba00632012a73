/* cpu_gqa.c: grouped-query attention of the dense relatives (Qwen2, Llama). A page row holds the
 * keys of all KV heads, then the values. */
#include "cpu.h"
#include <math.h>
#include <string.h>

enum { QUERIES = 256 }; /* (row, head) pairs of one KV head that share a read of its pages */

/* Bytes of a thread: sums, queries, and of pages of 8 bits a page's keys and values, decoded. */
static int64_t gqa_share(const dsi_attr_gqa *a, dsi_dtype kv_dtype) {
    return dsi_cpu_round_up(QUERIES * a->head_dim * 4, 64) +
           dsi_cpu_round_up(QUERIES * a->head_dim * 4, 64) +
           (dsi_cpu_is_coded(kv_dtype) ? 2 * DSI_PAGE_ROWS * (int64_t)a->head_dim * 2 : 0);
}
static dsi_kv_row row_of(const dsi_attr_gqa *a) {
    return dsi_kv_row_of(2 * (int64_t)a->n_kv_heads, a->head_dim, 0);
}

dsi_status dsi_cpu_gqa_attend_check(dsi_dev *dev, const dsi_op *op, uint64_t *workspace) {
    const dsi_attr_gqa *a = op->attr;
    const dsi_tensor *q = op->in[0], *pages = op->in[1], *y = op->out[0];
    bool ok =
        q->dtype == DSI_DTYPE_F32 && dsi_cpu_is_act(dsi_cpu_kv_act(pages->dtype)) &&
        dsi_cpu_is_act(y->dtype) && a->n_kv_heads && a->n_heads % a->n_kv_heads == 0 &&
        a->n_heads / a->n_kv_heads <= QUERIES && q->ne[0] == (int64_t)a->n_heads * a->head_dim &&
        y->ne[0] == q->ne[0] &&
        pages->ne[0] >= (dsi_cpu_is_coded(pages->dtype) ? row_of(a).n_bytes
                                                        : 2 * (int64_t)a->n_kv_heads * a->head_dim);
    *workspace = (uint64_t)gqa_share(a, pages->dtype) * dev->n_threads;
    return dsi_cpu_require(dev, op, ok, "types or shapes of q, pages, y do not fit");
}

/* Rows [r0, r1) of one sequence and heads [h0, h1) of one KV head: query i is head h0 + i % n of
 * row r0 + i / n. */
typedef struct task {
    int64_t r0, r1, h0, h1;
} task;

/* Keys and values of the first n rows of the page that begins with cached row `first`: as they lie,
 * or decoded into `scratch`. */
static void use_page(const dsi_cpu_run *run, int64_t kv_head, int64_t first, int64_t n,
                     uint16_t *scratch, dsi_attend_args *a) {
    const dsi_attr_gqa *s = run->op->attr;
    const dsi_tensor *pages = run->op->in[1];
    const int64_t dim = s->head_dim;
    if (!dsi_cpu_is_coded(pages->dtype)) {
        a->k0 = dsi_cpu_at(pages, first, kv_head * dim);
        a->v = dsi_cpu_at(pages, first, (s->n_kv_heads + kv_head) * dim);
        return;
    }
    const dsi_kv_row row = row_of(s);
    uint16_t *values = scratch + DSI_PAGE_ROWS * dim;
    dsi_cpu_decode_rows(run->dev, &row, pages, first, n, kv_head, scratch, dim);
    dsi_cpu_decode_rows(run->dev, &row, pages, first, n, s->n_kv_heads + kv_head, values, dim);
    a->k0 = scratch, a->v = values;
    a->k0_stride = a->v_stride = dim;
}

/* Keys and values of page p come closer while the page before it is used. */
static void fetch_page(const dsi_cpu_run *run, const task *t, int64_t kv_head, int64_t p) {
    const dsi_attr_gqa *s = run->op->attr;
    const dsi_tensor *pages = run->op->in[1];
    const int64_t bytes = s->head_dim * dsi_dtype_bytes(pages->dtype);
    if (p * DSI_PAGE_ROWS > s->batch->position[t->r1 - 1]) return;
    const int64_t row = dsi_cpu_page_row(s->batch, t->r0, p);
    for (int64_t j = 0; j < DSI_PAGE_ROWS; j++) {
        const uint8_t *k = dsi_cpu_at(pages, row + j, kv_head * s->head_dim);
        const uint8_t *v = dsi_cpu_at(pages, row + j, (s->n_kv_heads + kv_head) * s->head_dim);
        for (int64_t i = 0; i < bytes; i += 64) {
            __builtin_prefetch(k + i, 0, 2);
            __builtin_prefetch(v + i, 0, 2);
        }
    }
}

enum { STEP = 16 }; /* loops over floats in steps that compilers make vectors of */

static void finish(const dsi_cpu_run *run, const task *t, float *sums, const float *l) {
    const dsi_attr_gqa *s = run->op->attr;
    const dsi_tensor *y = run->op->out[0];
    const int64_t dim = s->head_dim, n_heads = t->h1 - t->h0;
    for (int64_t i = 0; i < (t->r1 - t->r0) * n_heads; i++) {
        float *sum = sums + i * dim;
        int64_t j = 0;
        for (; j + STEP <= dim; j += STEP)
            for (int k = 0; k < STEP; k++) sum[j + k] /= l[i];
        for (; j < dim; j++) sum[j] /= l[i];
        dsi_cpu_store(run->dev, sum,
                      dsi_cpu_at(y, t->r0 + i / n_heads, (t->h0 + i % n_heads) * dim), y->dtype,
                      dim);
    }
}

static void run_task(const dsi_cpu_run *run, uint8_t *scratch, const task *t) {
    const dsi_attr_gqa *s = run->op->attr;
    const dsi_tensor *q = run->op->in[0], *pages = run->op->in[1];
    const dsi_dtype type = dsi_cpu_kv_act(pages->dtype);
    const int64_t dim = s->head_dim, act = dsi_dtype_bytes(type), n_heads = t->h1 - t->h0;
    const int64_t n = (t->r1 - t->r0) * n_heads, kv_head = t->h0 / (s->n_heads / s->n_kv_heads);
    float *sums = (float *)(void *)scratch;
    uint8_t *q_act = scratch + dsi_cpu_round_up(QUERIES * dim * 4, 64);
    uint16_t *page = (uint16_t *)(void *)(q_act + dsi_cpu_round_up(QUERIES * dim * 4, 64));
    float m[QUERIES], l[QUERIES];
    int32_t limit[QUERIES];
    memset(sums, 0, (size_t)(n * dim) * sizeof *sums);
    for (int64_t i = 0; i < n; i++) m[i] = -INFINITY, l[i] = 0;
    for (int64_t r = t->r0; r < t->r1; r++)
        dsi_cpu_store(run->dev, dsi_cpu_at(q, r, t->h0 * dim),
                      q_act + (r - t->r0) * n_heads * dim * act, type, n_heads * dim);
    dsi_attend_args a = {.q = q_act,
                         .q_stride = dim,
                         .k0_stride = pages->stride[1],
                         .v_stride = pages->stride[1],
                         .limit = limit,
                         .state_m = m,
                         .state_l = l,
                         .state_stride = 1,
                         .o = sums,
                         .o_stride = dim,
                         .n_q = n,
                         .d0 = dim,
                         .dv = dim,
                         .scale = s->scale};
    dsi_attend_fn attend = dsi_cpu_attend(run->dev, type);
    const int64_t last = s->batch->position[t->r1 - 1];
    for (int64_t p = 0; p * DSI_PAGE_ROWS <= last; p++) {
        for (int64_t i = 0; i < n; i++)
            limit[i] = dsi_cpu_visible_rows(s->batch, t->r0 + i / n_heads, p);
        const int64_t row = dsi_cpu_page_row(s->batch, t->r0, p);
        fetch_page(run, t, kv_head, p + 1);
        use_page(run, kv_head, row, dsi_min_i64(DSI_PAGE_ROWS, last + 1 - p * DSI_PAGE_ROWS), page,
                 &a);
        attend(&a);
    }
    finish(run, t, sums, l);
}

/* A KV head and a run of rows after the other; each thread takes every n_threads-th. Fewer KV heads
 * than threads: the heads of one go in smaller groups, and read its pages more than once. */
static void attend_heads(void *context, uint32_t thread, uint32_t n_threads) {
    const dsi_cpu_run *run = context;
    const dsi_attr_gqa *s = run->op->attr;
    uint8_t *scratch = run->workspace + (uint64_t)gqa_share(s, run->op->in[1]->dtype) * thread;
    const int64_t group = s->n_heads / s->n_kv_heads;
    int64_t heads = group;
    while (heads > 1 && s->n_kv_heads * dsi_ceil_div(group, heads) < n_threads)
        heads = dsi_ceil_div(heads, 2);
    const int64_t rows = QUERIES / heads;
    int64_t number = 0;
    for (int64_t r = 0, end; r < s->batch->n_rows; r = end) {
        for (end = r + 1;
             end < s->batch->n_rows && end < r + rows && s->batch->seq[end] == s->batch->seq[r];)
            end++;
        for (int64_t h = 0; h < s->n_heads; number++) {
            const int64_t group_end = (h / group + 1) * group;
            const task t = {r, end, h, dsi_min_i64(h + heads, group_end)};
            if (number % n_threads == thread) run_task(run, scratch, &t);
            h = t.h1;
        }
    }
}
void dsi_cpu_gqa_attend_run(const dsi_cpu_run *run) {
    const dsi_attr_gqa *s = run->op->attr;
    int64_t n_cached = 0; /* query-key pairs per head */
    for (int64_t r = 0; r < s->batch->n_rows; r++) n_cached += s->batch->position[r] + 1;
    dsi_cpu_parallel(run->dev, attend_heads, run, n_cached * 2 * s->n_heads * s->head_dim);
}
