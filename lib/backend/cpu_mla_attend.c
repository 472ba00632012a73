/* cpu_mla_attend.c: attention on latents, the absorbed form. All heads read the same rows, so a
 * page is read once for as many (row, head) pairs as a thread has. Rows that chose what they attend
 * to (DeepSeek-V3.2) see a context of top_k rows, which are gathered page by page.
 *
 * The context is cut at absolute multiples of SPLIT_ROWS. Each piece is an online softmax of its
 * own over its pages in ascending order; the pieces are merged in ascending order. So a row's
 * result depends on its own position alone, whether one thread computes all pieces of it or many
 * threads one each, which is done when there are fewer (row, 16 heads) pairs than threads. */
#include "cpu.h"
#include <math.h>
#include <string.h>

enum {
    SPLIT_ROWS = 1024,
    SPLIT_PAGES = SPLIT_ROWS / DSI_PAGE_ROWS,
    QUERIES = 128,  /* at most, of one task: their sums should stay in L2 */
    FEW_HEADS = 16, /* of fewer heads packing the pages costs more than it is worth */
    SLOTS = 4       /* pieces per thread that wait for being merged */
};

/* The running sums of some queries. */
typedef struct sums {
    float *o, *m, *l; /* [n][kv_lora], [n], [n] */
} sums;

typedef struct attend_job {
    const dsi_cpu_run *run;
    const dsi_batch *batch;
    int64_t n_heads, width, kv_lora; /* width: kv_lora + rope */
    int64_t rows, heads;             /* of one task, at most */
    bool split;
    dsi_kv_row row;    /* of pages of 8 bits */
    uint16_t *page;    /* of those: this thread's page, decoded */
    int64_t top_k;     /* rows from this position on see the rows they chose; 0: none do */
    uint8_t *gathered; /* of those: this thread's page of them, but for what is in `page` */
} attend_job;

/* Queries that are computed together: heads [h0, h1) of rows [r0, r1) of one sequence. Several rows
 * only with all heads: then their queries lie one behind the other. */
typedef struct task {
    int64_t r0, r1, h0, h1;
} task;

static bool is_sparse(const attend_job *job, int64_t row) {
    return job->top_k && job->batch->position[row] >= job->top_k;
}
/* How many rows it sees. */
static int64_t context_of(const attend_job *job, int64_t row) {
    return is_sparse(job, row) ? job->top_k : (int64_t)job->batch->position[row] + 1;
}

static int64_t task_queries(const task *t) { return (t->r1 - t->r0) * (t->h1 - t->h0); }
static int64_t task_last(const attend_job *job, const task *t) {
    return context_of(job, t->r1 - 1) - 1;
}

/* The task behind *t; *t starts as zeros. */
static bool next_task(const attend_job *job, task *t) {
    const dsi_batch *b = job->batch;
    if (t->h1 > 0 && t->h1 < job->n_heads) {
        t->h0 = t->h1;
    } else {
        for (t->r0 = t->r1; t->r0 < b->n_rows && b->expanded[t->r0]; t->r0++)
            ;
        if (t->r0 == b->n_rows) return false;
        for (t->r1 = t->r0 + 1; t->r1 < b->n_rows && t->r1 - t->r0 < job->rows &&
                                b->seq[t->r1] == b->seq[t->r0] && !b->expanded[t->r1] &&
                                !is_sparse(job, t->r1);)
            t->r1++;
        t->h0 = 0;
    }
    t->h1 = dsi_min_i64(t->h0 + job->heads, job->n_heads);
    return true;
}

static sums take_sums(dsi_cpu_arena *arena, const attend_job *job, int64_t n) {
    sums s;
    s.o = dsi_cpu_take(arena, n * job->kv_lora * 4);
    s.m = dsi_cpu_take(arena, n * 4);
    s.l = dsi_cpu_take(arena, n * 4);
    return s;
}

/* Every thread has sums of a task and of a piece. If there may be more threads than tasks: every
 * task has sums, and every thread slots for pieces. */
typedef struct room {
    sums task, piece;
    uint16_t *page;      /* [64][kv_lora] of decoded latents, if they are of 8 bits */
    uint8_t *gathered;   /* [64][width], with rows that choose */
    dsi_cpu_arena split; /* used + base: what the split needs begins there */
} room;

/* Rows begin at multiples of 64 bytes, and not all in the same sets of a cache. */
static int64_t gathered_columns(const attend_job *job) {
    return dsi_cpu_round_up(job->width, 32) + 32;
}

static room carve(const attend_job *job, uint8_t *base, uint32_t thread, uint64_t *total) {
    dsi_cpu_arena arena = {base, 0};
    const int64_t n_threads = job->run->dev->n_threads;
    room own = {0};
    for (int64_t i = 0; i < n_threads; i++) {
        room r = {.task = take_sums(&arena, job, QUERIES),
                  .piece = take_sums(&arena, job, QUERIES)};
        if (dsi_cpu_is_coded(job->run->op->in[1]->dtype))
            r.page = dsi_cpu_take(&arena, DSI_PAGE_ROWS * job->kv_lora * 2);
        if (job->top_k)
            r.gathered = dsi_cpu_take(&arena, DSI_PAGE_ROWS * gathered_columns(job) *
                                                  dsi_dtype_bytes(job->run->op->in[0]->dtype));
        if (i == (int64_t)thread) own = r;
    }
    own.split = arena;
    if (dsi_ceil_div(job->n_heads, FEW_HEADS) < n_threads)
        for (int64_t i = 0; i < n_threads * (SLOTS + 1); i++) take_sums(&arena, job, FEW_HEADS);
    *total = arena.used;
    return own;
}

static attend_job job_of(const dsi_cpu_run *run) {
    const dsi_attr_mla *a = run->op->attr;
    return (attend_job){.run = run,
                        .batch = a->batch,
                        .n_heads = a->n_heads,
                        .width = (int64_t)a->kv_lora_rank + a->qk_rope_head_dim,
                        .kv_lora = a->kv_lora_rank,
                        .top_k = run->op->n_in > 2 ? run->op->in[2]->ne[0] : 0,
                        .row = dsi_kv_row_of(1, a->kv_lora_rank, a->qk_rope_head_dim)};
}

dsi_status dsi_cpu_mla_attend_check(dsi_dev *dev, const dsi_op *op, uint64_t *workspace) {
    dsi_cpu_run run = {dev, op, NULL};
    attend_job job = job_of(&run);
    const dsi_tensor *q = op->in[0], *pages = op->in[1], *o = op->out[0];
    bool ok = dsi_cpu_is_act(q->dtype) && dsi_cpu_kv_act(pages->dtype) == q->dtype &&
              dsi_cpu_is_act(o->dtype) && q->ne[0] == job.n_heads * job.width &&
              pages->ne[0] >= (dsi_cpu_is_coded(pages->dtype) ? job.row.n_bytes : job.width) &&
              o->ne[0] == job.n_heads * job.kv_lora &&
              (op->n_in < 3 || (op->in[2]->dtype == DSI_DTYPE_I32 && job.top_k > 0));
    if (ok) carve(&job, NULL, 0, workspace);
    return dsi_cpu_require(dev, op, ok, "types or shapes of q', pages, o do not fit");
}

/* ---- Sums of a piece, merged sums, results --------------------------------------------------- */

/* The first n rows of the page that begins with cached row `first`: as they lie, or decoded but for
 * the rope columns. */
static void use_page(const attend_job *job, int64_t first, int64_t n, dsi_attend_args *a) {
    const dsi_tensor *pages = job->run->op->in[1];
    a->k0 = a->v = dsi_cpu_at(pages, first, 0);
    if (!job->page) return;
    dsi_cpu_decode_rows(job->run->dev, &job->row, pages, first, n, 0, job->page, job->kv_lora);
    a->k1 = (const uint8_t *)a->k0 + job->row.tail;
    a->k1_stride = pages->stride[1] / 2;
    a->k0 = a->v = job->page;
    a->k0_stride = a->v_stride = a->d0 = job->kv_lora;
    a->d1 = job->row.rest;
}

/* Page p of the rows that row `row` chose, n of them: copied one behind the other; latents of 8
 * bits decoded. */
static void gather_page(const attend_job *job, int64_t row, int64_t p, int64_t n,
                        dsi_attend_args *a) {
    const dsi_tensor *pages = job->run->op->in[1];
    const int32_t *chosen = dsi_cpu_at(job->run->op->in[2], row, p * DSI_PAGE_ROWS);
    const int64_t bytes = dsi_dtype_bytes(job->run->op->in[0]->dtype);
    const int64_t columns = gathered_columns(job), width = job->page ? job->row.rest : job->width;
    for (int64_t i = 0; i < n; i++) {
        const int64_t cached = dsi_cpu_cached_row(job->batch, row, chosen[i]);
        const uint8_t *from = dsi_cpu_at(pages, cached, 0);
        if (job->page)
            dsi_cpu_decode_rows(job->run->dev, &job->row, pages, cached, 1, 0,
                                job->page + i * job->kv_lora, job->kv_lora);
        memcpy(job->gathered + i * columns * bytes, from + (job->page ? job->row.tail : 0),
               (size_t)(width * bytes));
    }
    a->k0 = a->v = job->gathered;
    a->k0_stride = a->v_stride = columns;
    if (!job->page) return;
    a->k1 = job->gathered, a->k1_stride = columns;
    a->k0 = a->v = job->page;
    a->k0_stride = a->v_stride = a->d0 = job->kv_lora;
    a->d1 = job->row.rest;
}

/* How many rows of page p of its context row `row` sees. */
static int32_t visible(const attend_job *job, int64_t row, int64_t p) {
    const int64_t n = context_of(job, row) - p * DSI_PAGE_ROWS;
    return (int32_t)dsi_max_i64(0, dsi_min_i64(n, DSI_PAGE_ROWS));
}

/* Piece number `piece` of the context of a task. */
static void attend_piece(const attend_job *job, const task *t, int64_t piece, const sums *s) {
    const dsi_tensor *q = job->run->op->in[0], *pages = job->run->op->in[1];
    const dsi_attr_mla *attr = job->run->op->attr;
    const int64_t n_heads = t->h1 - t->h0, n = task_queries(t), last = task_last(job, t);
    int32_t limit[QUERIES];
    memset(s->o, 0, (size_t)(n * job->kv_lora) * sizeof *s->o);
    for (int64_t i = 0; i < n; i++) s->m[i] = -INFINITY, s->l[i] = 0;
    dsi_attend_args a = {.q = dsi_cpu_at(q, t->r0, t->h0 * job->width),
                         .q_stride = job->width,
                         .k0_stride = pages->stride[1],
                         .v_stride = pages->stride[1],
                         .limit = limit,
                         .state_m = s->m,
                         .state_l = s->l,
                         .state_stride = 1,
                         .o = s->o,
                         .o_stride = job->kv_lora,
                         .n_q = n,
                         .d0 = job->width,
                         .dv = job->kv_lora,
                         .scale = attr->scale};
    const int64_t page_bytes = DSI_PAGE_ROWS * pages->stride[1] * dsi_dtype_bytes(pages->dtype);
    dsi_attend_fn attend = dsi_cpu_attend(job->run->dev, q->dtype);
    const int64_t end = dsi_min_i64((piece + 1) * SPLIT_PAGES, last / DSI_PAGE_ROWS + 1);
    for (int64_t p = piece * SPLIT_PAGES; p < end; p++) {
        const int64_t n_rows = dsi_min_i64(DSI_PAGE_ROWS, last + 1 - p * DSI_PAGE_ROWS);
        const bool sparse = is_sparse(job, t->r0);
        for (int64_t i = 0; i < n; i++) limit[i] = visible(job, t->r0 + i / n_heads, p);
        if (sparse)
            gather_page(job, t->r0, p, n_rows, &a);
        else
            use_page(job, dsi_cpu_page_row(job->batch, t->r0, p), n_rows, &a);
        a.next_bytes = !sparse && (p + 1) * DSI_PAGE_ROWS <= last ? page_bytes : 0;
        if (a.next_bytes) a.next = dsi_cpu_at(pages, dsi_cpu_page_row(job->batch, t->r0, p + 1), 0);
        attend(&a);
    }
}

/* Loops over rows of floats go in steps that compilers make vectors of. */
enum { STEP = 16 };

/* Query i of `to` and of a later piece: the sums over both. */
static void merge_query(const attend_job *job, const sums *to, const sums *piece, int64_t i) {
    const float m = fmaxf(to->m[i], piece->m[i]);
    const float a = expf(to->m[i] - m), b = expf(piece->m[i] - m);
    float *o = to->o + i * job->kv_lora;
    const float *add = piece->o + i * job->kv_lora;
    int64_t d = 0;
    for (; d + STEP <= job->kv_lora; d += STEP)
        for (int j = 0; j < STEP; j++) o[d + j] = o[d + j] * a + add[d + j] * b;
    for (; d < job->kv_lora; d++) o[d] = o[d] * a + add[d] * b;
    to->l[i] = to->l[i] * a + piece->l[i] * b;
    to->m[i] = m;
}

/* Queries [i0, i1) of a task: `to` so far holds the pieces before number `piece`. */
static void merge(const attend_job *job, const task *t, const sums *to, const sums *s,
                  int64_t piece, int64_t i0, int64_t i1) {
    for (int64_t i = i0; i < i1; i++) {
        const int64_t row = t->r0 + i / (t->h1 - t->h0);
        /* a row that sees nothing of the piece must not notice it: -0 + 0 is 0 */
        if (context_of(job, row) > piece * SPLIT_ROWS) merge_query(job, to, s, i);
    }
}

/* Queries [i0, i1) of a task: o / l. */
static void finish(const attend_job *job, const task *t, const sums *s, int64_t i0, int64_t i1) {
    const dsi_tensor *o = job->run->op->out[0];
    for (int64_t i = i0; i < i1; i++) {
        const int64_t row = t->r0 + i / (t->h1 - t->h0), head = t->h0 + i % (t->h1 - t->h0);
        float *sum = s->o + i * job->kv_lora;
        const float l = s->l[i];
        int64_t d = 0;
        for (; d + STEP <= job->kv_lora; d += STEP)
            for (int j = 0; j < STEP; j++) sum[d + j] /= l;
        for (; d < job->kv_lora; d++) sum[d] /= l;
        dsi_cpu_store(job->run->dev, sum, dsi_cpu_at(o, row, head * job->kv_lora), o->dtype,
                      job->kv_lora);
    }
}

/* ---- Tasks over threads ---------------------------------------------------------------------- */

static void run_task(const attend_job *job, const task *t, const room *own) {
    const int64_t last = task_last(job, t), n = task_queries(t);
    attend_piece(job, t, 0, &own->task);
    for (int64_t piece = 1; piece * SPLIT_ROWS <= last; piece++) {
        attend_piece(job, t, piece, &own->piece);
        merge(job, t, &own->task, &own->piece, piece, 0, n);
    }
    finish(job, t, &own->task, 0, n);
}

/* Each thread takes the tasks whose middle falls into its share of the work. */
static void run_tasks(const attend_job *job, const room *own, uint32_t thread, uint32_t n_threads) {
    int64_t total = 0, before = 0;
    for (task t = {0}; next_task(job, &t);) total += task_queries(&t) * (task_last(job, &t) + 1);
    for (task t = {0}; next_task(job, &t);) {
        const int64_t work = task_queries(&t) * (task_last(job, &t) + 1);
        const double middle = (double)before + (double)work / 2;
        before += work;
        if ((uint32_t)(middle / (double)total * n_threads) == thread) run_task(job, &t, own);
    }
}

/* Piece number `piece` of a task, and which of the tasks it is. */
typedef struct unit {
    task t;
    int64_t number, piece;
} unit;
static bool next_unit(const attend_job *job, unit *u) {
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

/* Waves of SLOTS pieces per thread: all are computed, then merged, each head by one thread. */
static void run_pieces(const attend_job *job, const room *own, uint32_t thread,
                       uint32_t n_threads) {
    dsi_cpu_arena arena = own->split;
    sums first_task = take_sums(&arena, job, FEW_HEADS);
    const int64_t bytes = (int64_t)(arena.used - own->split.used); /* of one task or piece */
    unit u = {0};
    bool more = next_unit(job, &u);
    while (more) {
        const unit start = u;
        const int64_t wave = (int64_t)n_threads * SLOTS;
        for (int64_t i = 0; i < wave && more; i++, more = next_unit(job, &u)) {
            sums slot = sums_at(&first_task, bytes, (int64_t)n_threads + i);
            if (i % n_threads == thread) attend_piece(job, &u.t, u.piece, &slot);
        }
        dsi_cpu_barrier(job->run->dev, n_threads);
        u = start, more = true;
        for (int64_t i = 0; i < wave && more; i++, more = next_unit(job, &u)) {
            sums slot = sums_at(&first_task, bytes, (int64_t)n_threads + i),
                 to = sums_at(&first_task, bytes, u.number);
            const bool last = (u.piece + 1) * SPLIT_ROWS > task_last(job, &u.t);
            uint64_t i0, i1;
            dsi_pool_share((uint64_t)task_queries(&u.t), 1, thread, n_threads, &i0, &i1);
            if (i1 == i0) continue;
            if (u.piece == 0) {
                memcpy(to.o + (int64_t)i0 * job->kv_lora, slot.o + (int64_t)i0 * job->kv_lora,
                       (i1 - i0) * (size_t)job->kv_lora * sizeof *to.o);
                memcpy(to.m + i0, slot.m + i0, (i1 - i0) * sizeof *to.m);
                memcpy(to.l + i0, slot.l + i0, (i1 - i0) * sizeof *to.l);
            } else {
                merge(job, &u.t, &to, &slot, u.piece, (int64_t)i0, (int64_t)i1);
            }
            if (last) finish(job, &u.t, &to, (int64_t)i0, (int64_t)i1);
        }
        dsi_cpu_barrier(job->run->dev, n_threads);
    }
}

/* How many rows and heads a task has, so that every thread gets about as much. */
static void cut_tasks(attend_job *job, uint32_t n_threads) {
    const dsi_tensor *q = job->run->op->in[0];
    int64_t n_rows = 0, longest = 0;
    for (int64_t r = 0; r < job->batch->n_rows; r++) {
        if (job->batch->expanded[r]) continue;
        n_rows++;
        longest = dsi_max_i64(longest, context_of(job, r) - 1);
    }
    job->heads = dsi_min_i64(job->n_heads, QUERIES);
    job->rows = q->stride[1] == q->ne[0] ? dsi_max_i64(1, QUERIES / job->n_heads) : 1;
    for (;;) {
        int64_t n = dsi_ceil_div(n_rows, job->rows) * dsi_ceil_div(job->n_heads, job->heads);
        if (n % n_threads == 0 || n >= 8 * (int64_t)n_threads) return;
        if (job->rows > 1)
            job->rows = dsi_ceil_div(job->rows, 2);
        else if (job->heads > FEW_HEADS)
            job->heads = dsi_max_i64(FEW_HEADS, dsi_ceil_div(job->heads, 2));
        else
            break;
    }
    if (n_rows * dsi_ceil_div(job->n_heads, job->heads) >= n_threads) return;
    job->split = longest >= SPLIT_ROWS;
    if (!job->split) job->heads = dsi_ceil_div(job->n_heads, n_threads);
}

static void attend_rows(void *context, uint32_t thread, uint32_t n_threads) {
    attend_job job = job_of(context);
    uint64_t total;
    room own = carve(&job, job.run->workspace, thread, &total);
    job.page = own.page, job.gathered = own.gathered;
    cut_tasks(&job, n_threads);
    if (job.split)
        run_pieces(&job, &own, thread, n_threads);
    else
        run_tasks(&job, &own, thread, n_threads);
}
void dsi_cpu_mla_attend_run(const dsi_cpu_run *run) {
    attend_job job = job_of(run);
    int64_t n_cached = 0; /* query-key pairs per head */
    for (int64_t r = 0; r < job.batch->n_rows; r++)
        if (!job.batch->expanded[r]) n_cached += context_of(&job, r);
    dsi_cpu_parallel(run->dev, attend_rows, run,
                     n_cached * job.n_heads * (job.width + job.kv_lora));
}
