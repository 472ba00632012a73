/* cpu_gqa.c: grouped-query attention of the dense relatives (Qwen2, Llama). A page row holds the
 * keys of all KV heads, then the values.
 *
 * As in cpu_mla_attend.c the context is cut at absolute multiples of SPLIT_ROWS; each piece is an
 * online softmax of its own over its pages in ascending order, and pieces are merged in ascending
 * order. So a row's result depends on its own position alone, whether one thread computes all
 * pieces of it or many threads one each, which is done when there are fewer KV heads than threads.
 */
#include "cpu.h"
#include <math.h>
#include <string.h>

enum {
    SPLIT_ROWS = 1024,
    SPLIT_PAGES = SPLIT_ROWS / DSI_PAGE_ROWS,
    QUERIES = 256, /* (row, head) pairs of one KV head that share a read of its pages */
    FEW = 32,      /* of a task whose pieces go to several threads */
    SLOTS = 4      /* pieces per thread that wait for being merged */
};

/* The running sums of some queries. */
typedef struct sums {
    float *o, *m, *l; /* [n][head_dim], [n], [n] */
} sums;

/* What a thread needs; where the sums of split tasks begin. */
typedef struct room {
    sums task, piece;
    uint8_t *q;     /* act [QUERIES][head_dim] */
    uint16_t *page; /* keys, then values of a page of 8 bits, decoded: [2][64][head_dim] */
    dsi_cpu_arena split;
} room;

typedef struct gqa_job {
    const dsi_cpu_run *run;
    const dsi_attr_gqa *attr;
    const dsi_batch *batch;
    int64_t dim, group;  /* group: query heads of a KV head */
    int64_t rows, heads; /* of one task, at most */
    dsi_dtype act;
    bool split;
} gqa_job;

/* Rows [r0, r1) of one sequence and heads [h0, h1) of one KV head: query i is head h0 + i % n of
 * row r0 + i / n. */
typedef struct task {
    int64_t r0, r1, h0, h1;
} task;

static int64_t task_queries(const task *t) { return (t->r1 - t->r0) * (t->h1 - t->h0); }
static int64_t task_last(const gqa_job *job, const task *t) {
    return job->batch->position[t->r1 - 1];
}

/* The task behind *t; *t starts as zeros. */
static bool next_task(const gqa_job *job, task *t) {
    const dsi_batch *b = job->batch;
    if (t->h1 > 0 && t->h1 < (int64_t)job->attr->n_heads) {
        t->h0 = t->h1;
    } else {
        t->r0 = t->r1;
        if (t->r0 == b->n_rows) return false;
        for (t->r1 = t->r0 + 1;
             t->r1 < b->n_rows && t->r1 - t->r0 < job->rows && b->seq[t->r1] == b->seq[t->r0];)
            t->r1++;
        t->h0 = 0;
    }
    t->h1 = dsi_min_i64(t->h0 + job->heads, (t->h0 / job->group + 1) * job->group);
    return true;
}

static sums take_sums(dsi_cpu_arena *arena, const gqa_job *job, int64_t n) {
    sums s;
    s.o = dsi_cpu_take(arena, n * job->dim * 4);
    s.m = dsi_cpu_take(arena, n * 4);
    s.l = dsi_cpu_take(arena, n * 4);
    return s;
}

static room carve(const gqa_job *job, uint8_t *base, uint32_t thread, uint64_t *total) {
    dsi_cpu_arena arena = {base, 0};
    const int64_t n_threads = job->run->dev->n_threads;
    const bool coded = dsi_cpu_is_coded(job->run->op->in[1]->dtype);
    room own = {0};
    for (int64_t i = 0; i < n_threads; i++) {
        room r = {.task = take_sums(&arena, job, QUERIES),
                  .piece = take_sums(&arena, job, QUERIES),
                  .q = dsi_cpu_take(&arena, QUERIES * job->dim * dsi_dtype_bytes(job->act)),
                  .page = coded ? dsi_cpu_take(&arena, 4 * DSI_PAGE_ROWS * job->dim) : NULL};
        if (i == (int64_t)thread) own = r;
    }
    own.split = arena;
    if (job->attr->n_kv_heads < n_threads)
        for (int64_t i = 0; i < n_threads * (SLOTS + 1); i++) take_sums(&arena, job, FEW);
    *total = arena.used;
    return own;
}

static gqa_job job_of(const dsi_cpu_run *run) {
    const dsi_attr_gqa *a = run->op->attr;
    return (gqa_job){.run = run,
                     .attr = a,
                     .batch = a->batch,
                     .dim = a->head_dim,
                     .group = a->n_kv_heads ? a->n_heads / a->n_kv_heads : 0,
                     .act = dsi_cpu_kv_act(run->op->in[1]->dtype)};
}
static dsi_kv_row row_of(const dsi_attr_gqa *a) {
    return dsi_kv_row_of(2 * (int64_t)a->n_kv_heads, a->head_dim, 0);
}

dsi_status dsi_cpu_gqa_attend_check(dsi_dev *dev, const dsi_op *op, uint64_t *workspace) {
    dsi_cpu_run run = {dev, op, NULL};
    const gqa_job job = job_of(&run);
    const dsi_attr_gqa *a = op->attr;
    const dsi_tensor *q = op->in[0], *pages = op->in[1], *y = op->out[0];
    bool ok =
        q->dtype == DSI_DTYPE_F32 && dsi_cpu_is_act(job.act) && dsi_cpu_is_act(y->dtype) &&
        a->n_kv_heads && a->n_heads % a->n_kv_heads == 0 && job.group <= QUERIES &&
        q->ne[0] == (int64_t)a->n_heads * a->head_dim && y->ne[0] == q->ne[0] &&
        pages->ne[0] >= (dsi_cpu_is_coded(pages->dtype) ? row_of(a).n_bytes
                                                        : 2 * (int64_t)a->n_kv_heads * a->head_dim);
    if (ok) carve(&job, NULL, 0, workspace);
    return dsi_cpu_require(dev, op, ok, "types or shapes of q, pages, y do not fit");
}

/* ---- Sums of a piece, merged sums, results --------------------------------------------------- */

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
static void fetch_page(const gqa_job *job, const task *t, int64_t kv_head, int64_t p) {
    const dsi_tensor *pages = job->run->op->in[1];
    const int64_t bytes = job->dim * dsi_dtype_bytes(pages->dtype);
    if (p * DSI_PAGE_ROWS > task_last(job, t)) return;
    const int64_t row = dsi_cpu_page_row(job->batch, t->r0, p);
    const int64_t stride = pages->stride[1] * dsi_dtype_bytes(pages->dtype);
    const uint8_t *k = dsi_cpu_at(pages, row, kv_head * job->dim);
    const uint8_t *v = k + job->attr->n_kv_heads * bytes;
    for (int64_t j = 0; j < DSI_PAGE_ROWS; j++, k += stride, v += stride)
        for (int64_t i = 0; i < bytes; i += 64) {
            __builtin_prefetch(k + i, 0, 2);
            __builtin_prefetch(v + i, 0, 2);
        }
}

/* The queries of a task in the type of the pages. */
static void take_queries(const gqa_job *job, const task *t, const room *own) {
    const dsi_tensor *q = job->run->op->in[0];
    const int64_t n = (t->h1 - t->h0) * job->dim, act = dsi_dtype_bytes(job->act);
    for (int64_t r = t->r0; r < t->r1; r++)
        dsi_cpu_store(job->run->dev, dsi_cpu_at(q, r, t->h0 * job->dim),
                      own->q + (r - t->r0) * n * act, job->act, n);
}

/* Piece number `piece` of the context of a task whose queries were taken. */
static void attend_piece(const gqa_job *job, const task *t, int64_t piece, const sums *s,
                         const room *own) {
    const dsi_tensor *pages = job->run->op->in[1];
    const int64_t dim = job->dim, n_heads = t->h1 - t->h0;
    const int64_t n = task_queries(t), kv_head = t->h0 / job->group, last = task_last(job, t);
    int32_t limit[QUERIES];
    memset(s->o, 0, (size_t)(n * dim) * sizeof *s->o);
    for (int64_t i = 0; i < n; i++) s->m[i] = -INFINITY, s->l[i] = 0;
    dsi_attend_args a = {.q = own->q,
                         .q_stride = dim,
                         .k0_stride = pages->stride[1],
                         .v_stride = pages->stride[1],
                         .limit = limit,
                         .state_m = s->m,
                         .state_l = s->l,
                         .state_stride = 1,
                         .o = s->o,
                         .o_stride = dim,
                         .n_q = n,
                         .d0 = dim,
                         .dv = dim,
                         .scale = job->attr->scale};
    dsi_attend_fn attend = dsi_cpu_attend(job->run->dev, job->act);
    const int64_t end = dsi_min_i64((piece + 1) * SPLIT_PAGES, last / DSI_PAGE_ROWS + 1);
    for (int64_t p = piece * SPLIT_PAGES; p < end; p++) {
        for (int64_t r = t->r0, i = 0; r < t->r1; r++) {
            const int32_t visible = dsi_cpu_visible_rows(job->batch, r, p);
            for (int64_t h = 0; h < n_heads; h++) limit[i++] = visible;
        }
        const int64_t row = dsi_cpu_page_row(job->batch, t->r0, p);
        fetch_page(job, t, kv_head, p + 1);
        use_page(job->run, kv_head, row, dsi_min_i64(DSI_PAGE_ROWS, last + 1 - p * DSI_PAGE_ROWS),
                 own->page, &a);
        attend(&a);
    }
}

enum { STEP = 16 }; /* loops over floats in steps that compilers make vectors of */

/* Query i of `to` and of a later piece: the sums over both. */
static void merge_query(const gqa_job *job, const sums *to, const sums *piece, int64_t i) {
    const float m = fmaxf(to->m[i], piece->m[i]);
    const float a = expf(to->m[i] - m), b = expf(piece->m[i] - m);
    float *o = to->o + i * job->dim;
    const float *add = piece->o + i * job->dim;
    int64_t d = 0;
    for (; d + STEP <= job->dim; d += STEP)
        for (int j = 0; j < STEP; j++) o[d + j] = o[d + j] * a + add[d + j] * b;
    for (; d < job->dim; d++) o[d] = o[d] * a + add[d] * b;
    to->l[i] = to->l[i] * a + piece->l[i] * b;
    to->m[i] = m;
}

/* Queries [i0, i1) of a task: `to` so far holds the pieces before number `piece`. */
static void merge(const gqa_job *job, const task *t, const sums *to, const sums *s, int64_t piece,
                  int64_t i0, int64_t i1) {
    for (int64_t i = i0; i < i1; i++) {
        const int64_t row = t->r0 + i / (t->h1 - t->h0);
        /* a row that sees nothing of the piece must not notice it: -0 + 0 is 0 */
        if (job->batch->position[row] >= piece * SPLIT_ROWS) merge_query(job, to, s, i);
    }
}

/* Queries [i0, i1) of a task: o / l. */
static void finish(const gqa_job *job, const task *t, const sums *s, int64_t i0, int64_t i1) {
    const dsi_tensor *y = job->run->op->out[0];
    const int64_t dim = job->dim, n_heads = t->h1 - t->h0;
    for (int64_t i = i0; i < i1; i++) {
        float *sum = s->o + i * dim;
        const float l = s->l[i];
        int64_t d = 0;
        for (; d + STEP <= dim; d += STEP)
            for (int j = 0; j < STEP; j++) sum[d + j] /= l;
        for (; d < dim; d++) sum[d] /= l;
        dsi_cpu_store(job->run->dev, sum,
                      dsi_cpu_at(y, t->r0 + i / n_heads, (t->h0 + i % n_heads) * dim), y->dtype,
                      dim);
    }
}

/* ---- Tasks over threads ---------------------------------------------------------------------- */

static void run_task(const gqa_job *job, const task *t, const room *own) {
    const int64_t last = task_last(job, t), n = task_queries(t);
    take_queries(job, t, own);
    attend_piece(job, t, 0, &own->task, own);
    for (int64_t piece = 1; piece * SPLIT_ROWS <= last; piece++) {
        attend_piece(job, t, piece, &own->piece, own);
        merge(job, t, &own->task, &own->piece, piece, 0, n);
    }
    finish(job, t, &own->task, 0, n);
}

/* Piece number `piece` of a task, and which of the tasks it is. */
typedef struct unit {
    task t;
    int64_t number, piece;
} unit;
static bool next_unit(const gqa_job *job, unit *u) {
    if (u->t.h1 > 0 && (u->piece + 1) * SPLIT_ROWS <= task_last(job, &u->t)) {
        u->piece++;
        return true;
    }
    u->number += u->t.h1 > 0;
    u->piece = 0;
    return next_task(job, &u->t);
}

/* The i-th of sums that lie `bytes` bytes apart. */
static sums sums_at(const sums *first, int64_t bytes, int64_t i) {
    return (sums){first->o + i * bytes / 4, first->m + i * bytes / 4, first->l + i * bytes / 4};
}

/* Queries [i0, i1) of a piece that was computed join the sums of its task. */
static void join_piece(const gqa_job *job, const unit *u, const sums *to, const sums *slot,
                       int64_t i0, int64_t i1) {
    const size_t n = (size_t)(i1 - i0);
    if (u->piece == 0) {
        memcpy(to->o + i0 * job->dim, slot->o + i0 * job->dim,
               n * (size_t)job->dim * sizeof *to->o);
        memcpy(to->m + i0, slot->m + i0, n * sizeof *to->m);
        memcpy(to->l + i0, slot->l + i0, n * sizeof *to->l);
    } else {
        merge(job, &u->t, to, slot, u->piece, i0, i1);
    }
    if ((u->piece + 1) * SPLIT_ROWS > task_last(job, &u->t)) finish(job, &u->t, to, i0, i1);
}

/* Waves of SLOTS pieces per thread: all are computed, then merged, each query by one thread. */
static void run_pieces(const gqa_job *job, const room *own, uint32_t thread, uint32_t n_threads) {
    dsi_cpu_arena arena = own->split;
    const sums first = take_sums(&arena, job, FEW);
    const int64_t bytes = (int64_t)(arena.used - own->split.used); /* of one task or piece */
    const int64_t wave = (int64_t)n_threads * SLOTS;
    unit u = {0};
    bool more = next_unit(job, &u);
    while (more) {
        const unit start = u;
        for (int64_t i = 0; i < wave && more; i++, more = next_unit(job, &u)) {
            const sums slot = sums_at(&first, bytes, (int64_t)n_threads + i);
            if (i % n_threads != thread) continue;
            take_queries(job, &u.t, own);
            attend_piece(job, &u.t, u.piece, &slot, own);
        }
        dsi_cpu_barrier(job->run->dev, n_threads);
        u = start, more = true;
        for (int64_t i = 0; i < wave && more; i++, more = next_unit(job, &u)) {
            const sums slot = sums_at(&first, bytes, (int64_t)n_threads + i);
            const sums to = sums_at(&first, bytes, u.number);
            uint64_t i0, i1;
            dsi_pool_share((uint64_t)task_queries(&u.t), 1, thread, n_threads, &i0, &i1);
            if (i1 > i0) join_piece(job, &u, &to, &slot, (int64_t)i0, (int64_t)i1);
        }
        dsi_cpu_barrier(job->run->dev, n_threads);
    }
}

/* How many rows and heads a task has. With fewer tasks than threads a long context is split, and
 * in a short one the heads of a KV head go in smaller groups, which read its pages once each. */
static void cut_tasks(gqa_job *job, uint32_t n_threads) {
    int64_t longest = 0, n_tasks = 0;
    for (int64_t r = 0; r < job->batch->n_rows; r++)
        longest = dsi_max_i64(longest, job->batch->position[r]);
    job->heads = dsi_min_i64(job->group, FEW);
    job->rows = dsi_max_i64(1, FEW / job->group);
    for (task t = {0}; n_tasks < (int64_t)n_threads && next_task(job, &t);) n_tasks++;
    job->split = n_tasks < (int64_t)n_threads && longest >= SPLIT_ROWS;
    if (job->split) return;
    job->heads = job->group;
    while (job->heads > 1 &&
           job->attr->n_kv_heads * dsi_ceil_div(job->group, job->heads) < n_threads)
        job->heads = dsi_ceil_div(job->heads, 2);
    job->rows = QUERIES / job->heads;
}

static void attend_heads(void *context, uint32_t thread, uint32_t n_threads) {
    gqa_job job = job_of(context);
    uint64_t total;
    const room own = carve(&job, job.run->workspace, thread, &total);
    cut_tasks(&job, n_threads);
    if (job.split) {
        run_pieces(&job, &own, thread, n_threads);
        return;
    }
    int64_t number = 0; /* each thread takes every n_threads-th */
    for (task t = {0}; next_task(&job, &t); number++)
        if (number % n_threads == thread) run_task(&job, &t, &own);
}
void dsi_cpu_gqa_attend_run(const dsi_cpu_run *run) {
    const dsi_attr_gqa *s = run->op->attr;
    int64_t n_cached = 0; /* query-key pairs per head */
    for (int64_t r = 0; r < s->batch->n_rows; r++) n_cached += s->batch->position[r] + 1;
    dsi_cpu_parallel(run->dev, attend_heads, run, n_cached * 2 * s->n_heads * s->head_dim);
}
