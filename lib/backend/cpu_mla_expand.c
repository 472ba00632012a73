/* cpu_mla_expand.c: the expanded form of multi-head latent attention, for whole blocks of a prompt.
 * A thread takes one head at a time and walks the context in steps of a few pages: it makes the
 * keys and values of that head, which stay in its L2, and every row of the chunk uses them. Nothing
 * is shared between threads, so there are no barriers. */
#include "../base/convert.h"
#include "cpu_low_rank.h"
#include <math.h>
#include <string.h>

enum { PAGES = 3, CONTEXT = PAGES * DSI_PAGE_ROWS }; /* of one step: rows of one matmul */

typedef struct expand_job {
    const dsi_cpu_run *run;
    const dsi_attr_mla *attr;
    const dsi_batch *batch;
    int64_t row0, n_rows; /* the rows of one sequence that are in flight */
    int64_t q_dim, head_rows;
    bool halves; /* k_b and v_b instead of kv_b */
    bool coded;  /* pages of 8 bits */
    dsi_dtype act;
    dsi_kv_row row; /* of such pages */
} expand_job;

/* What a thread needs for one head and n rows of the chunk. */
typedef struct room {
    uint8_t *kv;       /* act [CONTEXT][nope + v] */
    uint8_t *q;        /* act [n][nope + rope] */
    float *sums;       /* [n][v] unnormalised */
    float *m, *l;      /* [n] */
    int32_t *limit;    /* [n] */
    float *tile;       /* [CONTEXT][nope + v] */
    uint16_t *decoded; /* [CONTEXT][kv_lora] of pages of 8 bits */
    float *latents;    /* [DSI_PAGE_ROWS][kv_lora] as f32, with k_b and v_b alone */
    void *panel;       /* matmul scratch */
    uint8_t *low_rank; /* what adapters want */
} room;

static room carve(const expand_job *job, int64_t n, uint8_t *base, uint32_t thread,
                  uint64_t *total) {
    const dsi_attr_mla *a = job->attr;
    const int64_t act = dsi_dtype_bytes(job->act);
    dsi_cpu_arena arena = {base, 0};
    room own = {0};
    for (uint32_t i = 0; i < job->run->dev->n_threads; i++) {
        room r;
        r.kv = dsi_cpu_take(&arena, CONTEXT * job->head_rows * act);
        r.q = dsi_cpu_take(&arena, n * job->q_dim * act);
        r.sums = dsi_cpu_take(&arena, n * a->v_head_dim * 4);
        r.m = dsi_cpu_take(&arena, n * 4);
        r.l = dsi_cpu_take(&arena, n * 4);
        r.limit = dsi_cpu_take(&arena, n * 4);
        r.tile = dsi_cpu_take(&arena, CONTEXT * job->head_rows * 4);
        r.panel = dsi_cpu_take(&arena, dsi_matmul_scratch_bytes(a->kv_lora_rank));
        r.latents = dsi_cpu_take(&arena, job->halves ? DSI_PAGE_ROWS * a->kv_lora_rank * 4 : 0);
        r.decoded = dsi_cpu_take(&arena, job->coded ? CONTEXT * (int64_t)a->kv_lora_rank * 2 : 0);
        r.low_rank = dsi_cpu_take(&arena, dsi_cpu_low_rank_room(a->low_rank, a->kv_lora_rank));
        if (i == thread) own = r;
    }
    *total = arena.used;
    return own;
}

static expand_job job_of(const dsi_cpu_run *run) {
    const dsi_attr_mla *a = run->op->attr;
    return (expand_job){.run = run,
                        .attr = a,
                        .batch = a->batch,
                        .n_rows = dsi_cpu_rows(run->op->in[0]),
                        .q_dim = (int64_t)a->qk_nope_head_dim + a->qk_rope_head_dim,
                        .head_rows = (int64_t)a->qk_nope_head_dim + a->v_head_dim,
                        .halves = run->op->n_in == 4,
                        .coded = dsi_cpu_is_coded(run->op->in[2]->dtype),
                        .act = dsi_cpu_kv_act(run->op->in[2]->dtype),
                        .row = dsi_kv_row_of(1, a->kv_lora_rank, a->qk_rope_head_dim)};
}

/* kv_b, or per head W_UK transposed (k_b) and W_UV (v_b). */
static bool weights_ok(const expand_job *job) {
    const dsi_attr_mla *a = job->attr;
    const dsi_tensor *w = job->run->op->in[1], *v_b = job->halves ? job->run->op->in[3] : NULL;
    if (!job->halves)
        return dsi_cpu_weight_ok(w) && w->ne[0] == a->kv_lora_rank &&
               w->ne[1] == a->n_heads * job->head_rows;
    return dsi_cpu_weight_ok(w) && dsi_cpu_weight_ok(v_b) && w->ne[0] == a->qk_nope_head_dim &&
           w->ne[1] == (int64_t)a->n_heads * a->kv_lora_rank && v_b->ne[0] == a->kv_lora_rank &&
           v_b->ne[1] == (int64_t)a->n_heads * a->v_head_dim;
}

dsi_status dsi_cpu_mla_expand_attend_check(dsi_dev *dev, const dsi_op *op, uint64_t *workspace) {
    dsi_cpu_run run = {dev, op, NULL};
    const expand_job job = job_of(&run);
    const dsi_attr_mla *a = job.attr;
    const dsi_tensor *q = op->in[0], *pages = op->in[2], *y = op->out[0];
    bool ok = q->dtype == DSI_DTYPE_F32 && dsi_cpu_is_act(job.act) &&
              pages->ne[0] >=
                  (job.coded ? job.row.n_bytes : (int64_t)a->kv_lora_rank + a->qk_rope_head_dim) &&
              dsi_cpu_is_act(y->dtype) && weights_ok(&job) &&
              dsi_cpu_low_rank_ok(a->low_rank, a->n_heads * job.head_rows, a->kv_lora_rank) &&
              q->ne[0] == (int64_t)a->n_heads * job.q_dim &&
              y->ne[0] == (int64_t)a->n_heads * a->v_head_dim;
    if (ok) carve(&job, job.n_rows, NULL, 0, workspace);
    return dsi_cpu_require(dev, op, ok, "types or shapes of q, kv_b, pages, y do not fit");
}

/* Rows of latents in the type of operands: row i of the step is row rows[i] from x on. */
typedef struct latents {
    const uint8_t *x;
    int64_t stride;
    int32_t rows[CONTEXT];
} latents;

/* Cached rows [first, first + n): where they lie, or decoded. */
static void find_latents(const expand_job *job, const room *own, int64_t first, int64_t n,
                         latents *found) {
    const dsi_tensor *pages = job->run->op->in[2];
    const int64_t kv_lora = job->attr->kv_lora_rank;
    found->x = job->coded ? (const uint8_t *)own->decoded : dsi_cpu_data(pages);
    found->stride = job->coded ? kv_lora : pages->stride[1];
    for (int64_t j = 0; j < n; j += DSI_PAGE_ROWS) {
        const int64_t page = dsi_cpu_page_row(job->batch, job->row0, (first + j) / DSI_PAGE_ROWS);
        const int64_t m = dsi_min_i64(DSI_PAGE_ROWS, n - j);
        for (int64_t i = 0; i < m; i++)
            found->rows[j + i] = (int32_t)(job->coded ? j + i : page + i);
        if (job->coded)
            dsi_cpu_decode_rows(job->run->dev, &job->row, pages, page, m, 0,
                                own->decoded + j * kv_lora, kv_lora);
    }
}

/* Keys by the transposed product with k_b: page by page, for its operand is f32. */
static void expand_keys(const expand_job *job, const room *own, int64_t head, const latents *from,
                        int64_t n) {
    const dsi_tensor *k_b = job->run->op->in[1];
    const int64_t latent = job->attr->kv_lora_rank;
    for (int64_t j = 0; j < n; j += DSI_PAGE_ROWS) {
        const int64_t m = dsi_min_i64(DSI_PAGE_ROWS, n - j);
        for (int64_t i = 0; i < m; i++)
            dsi_widen(job->act,
                      from->x + from->rows[j + i] * from->stride * dsi_dtype_bytes(job->act),
                      own->latents + i * latent, (uint64_t)latent);
        dsi_matmul_t_args a = {.x = own->latents,
                               .x_stride = latent,
                               .y = own->tile + j * job->head_rows,
                               .y_stride = job->head_rows,
                               .m = m,
                               .n0 = head * latent,
                               .n1 = (head + 1) * latent};
        dsi_cpu_matmul_t(job->run->dev, k_b, &a)(&a);
    }
}

/* What the adapter of the rows in flight adds to keys and values: scale B (A latent). */
static void expand_adapter(const expand_job *job, const room *own, int64_t head,
                           const latents *from, int64_t n) {
    int64_t end;
    const dsi_low_rank *l = job->attr->low_rank;
    const dsi_low_rank_part *part =
        l ? dsi_cpu_low_rank_part(l, job->row0, job->row0 + 1, &end) : NULL;
    dsi_cpu_low_rank_rows rows = {.x = from->x,
                                  .x_stride = from->stride,
                                  .x_rows = from->rows,
                                  .x_dtype = job->act,
                                  .m = n,
                                  .y = own->tile,
                                  .y_stride = job->head_rows,
                                  .n0 = head * job->head_rows,
                                  .n1 = (head + 1) * job->head_rows};
    if (part) dsi_cpu_low_rank_apply(job->run->dev, l, part, &rows, own->low_rank);
}

/* Keys and values of head `head` for cached rows [first, first + n), n <= CONTEXT. */
static void expand(const expand_job *job, const room *own, int64_t head, int64_t first, int64_t n) {
    const dsi_tensor *w = job->run->op->in[job->halves ? 3 : 1];
    const int64_t nope = job->halves ? job->attr->qk_nope_head_dim : 0;
    const int64_t columns = job->head_rows - nope; /* of this product */
    latents from;
    find_latents(job, own, first, n, &from);
    dsi_matmul_args a = {.x = from.x,
                         .x_stride = from.stride,
                         .x_rows = from.rows,
                         .y = own->tile + nope,
                         .y_stride = job->head_rows,
                         .m = n,
                         .n0 = head * columns,
                         .n1 = (head + 1) * columns,
                         .scratch = own->panel};
    if (job->halves) expand_keys(job, own, head, &from, n);
    dsi_cpu_matmul(job->run->dev, w, job->act, &a)(&a);
    expand_adapter(job, own, head, &from, n);
    dsi_cpu_store(job->run->dev, own->tile, own->kv, job->act, n * job->head_rows);
}

/* n rows of the chunk from row r on against the expanded page p; kv: its first row. */
static void attend_page(const expand_job *job, const room *own, const uint8_t *kv, int64_t p,
                        int64_t r, int64_t n) {
    const dsi_attr_mla *s = job->attr;
    const dsi_tensor *pages = job->run->op->in[2];
    const int64_t act = dsi_dtype_bytes(job->act), nope = s->qk_nope_head_dim;
    for (int64_t i = 0; i < n; i++)
        own->limit[i] = dsi_cpu_visible_rows(job->batch, job->row0 + r + i, p);
    const int64_t page = dsi_cpu_page_row(job->batch, job->row0, p);
    dsi_attend_args a = {.q = own->q,
                         .q_stride = job->q_dim,
                         .k0 = kv,
                         .k0_stride = job->head_rows,
                         .k1 =
                             dsi_cpu_at(pages, page, job->coded ? job->row.tail : s->kv_lora_rank),
                         .k1_stride = job->coded ? pages->stride[1] / 2 : pages->stride[1],
                         .v = kv + nope * act,
                         .v_stride = job->head_rows,
                         .limit = own->limit,
                         .state_m = own->m,
                         .state_l = own->l,
                         .state_stride = 1,
                         .o = own->sums,
                         .o_stride = s->v_head_dim,
                         .n_q = n,
                         .d0 = nope,
                         .d1 = s->qk_rope_head_dim,
                         .dv = s->v_head_dim,
                         .scale = s->scale};
    dsi_cpu_attend(job->run->dev, job->act)(&a);
}

enum { STEP = 16 }; /* loops over floats in steps that compilers make vectors of */

/* Head `head` for rows [r, r + n) of the chunk. */
static void run_head(const expand_job *job, const room *own, int64_t head, int64_t r, int64_t n) {
    const dsi_tensor *q = job->run->op->in[0], *y = job->run->op->out[0];
    const int64_t act = dsi_dtype_bytes(job->act), v = job->attr->v_head_dim;
    for (int64_t i = 0; i < n; i++) {
        dsi_cpu_store(job->run->dev, dsi_cpu_at(q, job->row0 + r + i, head * job->q_dim),
                      own->q + i * job->q_dim * act, job->act, job->q_dim);
        own->m[i] = -INFINITY, own->l[i] = 0;
    }
    memset(own->sums, 0, (size_t)(n * v) * sizeof *own->sums);
    const int64_t n_context = (int64_t)job->batch->position[job->row0 + r + n - 1] + 1;
    for (int64_t first = 0; first < n_context; first += CONTEXT) {
        const int64_t n_step = dsi_min_i64(CONTEXT, n_context - first);
        expand(job, own, head, first, n_step);
        for (int64_t j = 0; j < n_step; j += DSI_PAGE_ROWS)
            attend_page(job, own, own->kv + j * job->head_rows * act, (first + j) / DSI_PAGE_ROWS,
                        r, n);
    }
    for (int64_t i = 0; i < n; i++) {
        float *sum = own->sums + i * v;
        const float l = own->l[i];
        int64_t d = 0;
        for (; d + STEP <= v; d += STEP)
            for (int j = 0; j < STEP; j++) sum[d + j] /= l;
        for (; d < v; d++) sum[d] /= l;
        dsi_cpu_store(job->run->dev, sum, dsi_cpu_at(y, job->row0 + r + i, head * v), y->dtype, v);
    }
}

static void expand_attend(void *context, uint32_t thread, uint32_t n_threads) {
    const expand_job *job = context;
    uint64_t total, i0, i1;
    const room own = carve(job, job->n_rows, job->run->workspace, thread, &total);
    /* fewer heads than threads: the rows are cut too, so that every thread has a share */
    const int64_t parts = dsi_ceil_div(n_threads, job->attr->n_heads);
    const int64_t rows = dsi_ceil_div(job->n_rows, parts);
    dsi_pool_share((uint64_t)(job->attr->n_heads * parts), 1, thread, n_threads, &i0, &i1);
    for (int64_t i = (int64_t)i0; i < (int64_t)i1; i++) {
        const int64_t r = i % parts * rows;
        if (r < job->n_rows) run_head(job, &own, i / parts, r, dsi_min_i64(rows, job->n_rows - r));
    }
}

void dsi_cpu_mla_expand_attend_run(const dsi_cpu_run *run) {
    expand_job job = job_of(run);
    for (int64_t begin = 0, r = 0; dsi_cpu_next_run(job.batch, true, &begin, &r);) {
        job.row0 = begin, job.n_rows = r - begin;
        const dsi_tensor *w = run->op->in[1]; /* making keys and values is most of the work */
        int64_t work = w->ne[0] * w->ne[1] * ((int64_t)job.batch->position[r - 1] + 1);
        dsi_cpu_parallel(run->dev, expand_attend, &job, work);
    }
}
