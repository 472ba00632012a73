/* cpu_index.c: the indexer of DeepSeek-V3.2, which chooses the cached rows that a row attends to
 * (DeepSeek-V3.2-Exp, inference/model.py, Indexer): the norm of its keys, the rounding of its
 * reference, scores and choice.
 *
 * A score is summed over the heads in one order and the choice is one of values alone, so that it
 * does not depend on threads or on the other rows of a step. */
#include "cpu.h"
#include <math.h>
#include <string.h>

enum {
    ROWS = 16,    /* of one round: their scores are kept until the choice is made */
    OPERANDS = 4, /* of them, those that meet a page of keys at once */
    LIGHT = 8     /* multiply-adds that one element of a light loop takes */
};

/* ---- layer_norm: y = (x - mean) / sqrt(variance + eps) * weight + bias ------------------------
 */

dsi_status dsi_cpu_layer_norm_check(dsi_dev *dev, const dsi_op *op, uint64_t *workspace) {
    (void)workspace;
    bool ok = op->n_in == 3 && op->n_out == 1 && op->out[0]->dtype == DSI_DTYPE_F32 &&
              op->out[0]->ne[0] == op->in[0]->ne[0];
    for (uint32_t i = 0; i < 3 && ok; i++)
        ok = op->in[i]->dtype == DSI_DTYPE_F32 && op->in[i]->ne[0] == op->in[0]->ne[0];
    return dsi_cpu_require(dev, op, ok, "x, weight, bias and y must be F32 of one width");
}
static void layer_norm_row(const float *x, const float *w, const float *bias, float *y, int64_t n,
                           float eps) {
    double mean = 0, variance = 0;
    for (int64_t i = 0; i < n; i++) mean += (double)x[i];
    mean /= (double)n;
    for (int64_t i = 0; i < n; i++) variance += ((double)x[i] - mean) * ((double)x[i] - mean);
    const double factor = 1 / sqrt(variance / (double)n + (double)eps);
    for (int64_t i = 0; i < n; i++) y[i] = (float)(((double)x[i] - mean) * factor) * w[i] + bias[i];
}
void dsi_cpu_layer_norm_run(const dsi_cpu_run *run) {
    const dsi_tensor *x = run->op->in[0], *y = run->op->out[0];
    const dsi_attr_norm *attr = run->op->attr;
    for (int64_t r = 0; r < dsi_cpu_rows(x); r++)
        layer_norm_row(dsi_cpu_at(x, r, 0), dsi_cpu_data(run->op->in[1]),
                       dsi_cpu_data(run->op->in[2]), dsi_cpu_at(y, r, 0), x->ne[0], attr->eps);
}

/* ---- index_round ----------------------------------------------------------------------------- */

static bool is_power_of_two(int64_t n) { return n > 0 && (n & (n - 1)) == 0; }

dsi_status dsi_cpu_index_round_check(dsi_dev *dev, const dsi_op *op, uint64_t *workspace) {
    (void)workspace;
    const dsi_attr_index *a = op->attr;
    bool ok = op->n_in == 1 && op->n_out == 1 && op->in[0]->dtype == DSI_DTYPE_F32 &&
              op->out[0]->dtype == DSI_DTYPE_F32 && is_power_of_two(a->head_dim) &&
              op->in[0]->ne[0] == (int64_t)a->n_heads * a->head_dim;
    return dsi_cpu_require(dev, op, ok, "x must be F32, heads of a power of two");
}
/* In place, in the order of Sylvester: H2n = [Hn Hn; Hn -Hn]. */
static void hadamard(float *x, int64_t n) {
    for (int64_t half = 1; half < n; half *= 2)
        for (int64_t i = 0; i < n; i += 2 * half)
            for (int64_t j = i; j < i + half; j++) {
                const float a = x[j], b = x[j + half];
                x[j] = a + b, x[j + half] = a - b;
            }
    const float factor = 1 / sqrtf((float)n);
    for (int64_t i = 0; i < n; i++) x[i] *= factor;
}
static void round_rows(void *context, uint32_t thread, uint32_t n_threads) {
    const dsi_cpu_run *run = context;
    const dsi_tensor *x = run->op->out[0];
    const dsi_attr_index *a = run->op->attr;
    uint64_t i0, i1;
    dsi_pool_share((uint64_t)dsi_cpu_rows(x) * a->n_heads, 1, thread, n_threads, &i0, &i1);
    for (uint64_t i = i0; i < i1; i++) {
        float *head =
            dsi_cpu_at(x, (int64_t)(i / a->n_heads), (int64_t)(i % a->n_heads) * a->head_dim);
        hadamard(head, a->head_dim);
        dsi_cpu_round_e4m3(true, head, DSI_DTYPE_F32, head, a->head_dim);
    }
}
void dsi_cpu_index_round_run(const dsi_cpu_run *run) {
    const dsi_tensor *x = run->op->out[0];
    dsi_cpu_parallel(run->dev, round_rows, run, 8 * LIGHT * dsi_cpu_rows(x) * x->ne[0]);
}

/* ---- Scores -----------------------------------------------------------------------------------
 */

typedef struct index_job {
    const dsi_cpu_run *run;
    const dsi_batch *batch;
    int64_t n_heads, dim, top_k, context; /* context: cached rows of a sequence, at most */
    dsi_dtype act;
} index_job;

typedef struct room {
    float *scores;  /* [ROWS][context], shared by all threads */
    uint8_t *q;     /* act [OPERANDS * n_heads][dim] */
    uint32_t *keys; /* [context] that are still in the running */
    void *panel;    /* of the kernel */
} room;

static index_job job_of(const dsi_cpu_run *run) {
    const dsi_attr_index *a = run->op->attr;
    return (index_job){.run = run,
                       .batch = a->batch,
                       .n_heads = a->n_heads,
                       .dim = a->head_dim,
                       .top_k = run->op->out[0]->ne[0],
                       .context = (int64_t)a->batch->max_pages * DSI_PAGE_ROWS,
                       .act = run->op->in[2]->dtype};
}

static room carve(const index_job *job, uint8_t *base, uint32_t thread, uint64_t *total) {
    dsi_cpu_arena arena = {base, 0};
    const int64_t queries = OPERANDS * job->n_heads;
    room own = {0};
    float *scores = dsi_cpu_take(&arena, ROWS * job->context * 4);
    for (uint32_t i = 0; i < job->run->dev->n_threads; i++) {
        room r = {.scores = scores};
        r.q = dsi_cpu_take(&arena, queries * job->dim * dsi_dtype_bytes(job->act));
        r.keys = dsi_cpu_take(&arena, job->context * 4);
        r.panel = dsi_cpu_take(&arena, dsi_index_scratch_bytes(job->dim));
        if (i == thread) own = r;
    }
    *total = arena.used;
    return own;
}

dsi_status dsi_cpu_index_topk_check(dsi_dev *dev, const dsi_op *op, uint64_t *workspace) {
    dsi_cpu_run run = {dev, op, NULL};
    bool ok = op->n_in == 3 && op->n_out == 1;
    index_job job = {0};
    if (ok) {
        job = job_of(&run);
        ok = op->in[0]->dtype == DSI_DTYPE_F32 && op->in[0]->ne[0] == job.n_heads * job.dim &&
             op->in[1]->dtype == DSI_DTYPE_F32 && op->in[1]->ne[0] == job.n_heads &&
             dsi_cpu_is_act(job.act) && op->in[2]->ne[0] >= job.dim &&
             op->out[0]->dtype == DSI_DTYPE_I32 && job.top_k > 0;
    }
    if (ok) carve(&job, NULL, 0, workspace);
    return dsi_cpu_require(dev, op, ok, "types or shapes of q, weights, keys do not fit");
}

/* The rows of a round: those of one sequence, adjacent, that have a choice. */
static bool next_round(const index_job *job, int64_t *begin, int64_t *end) {
    const dsi_batch *b = job->batch;
    int64_t r = *end;
    while (r < b->n_rows && b->position[r] < job->top_k) r++;
    *begin = r;
    while (r < b->n_rows && r - *begin < ROWS && b->position[r] >= job->top_k &&
           b->seq[r] == b->seq[*begin])
        r++;
    *end = r;
    return r > *begin;
}

/* Rows [r, r + n), n <= OPERANDS, against pages [p0, p1); `first`: the first row of the round. */
static void score_rows(const index_job *job, const room *own, int64_t first, int64_t r, int64_t n,
                       int64_t p0, int64_t p1) {
    const dsi_tensor *q = job->run->op->in[0], *keys = job->run->op->in[2];
    const int64_t columns = job->n_heads * job->dim;
    for (int64_t i = 0; i < n; i++)
        dsi_cpu_store(job->run->dev, dsi_cpu_at(q, r + i, 0),
                      own->q + i * columns * dsi_dtype_bytes(job->act), job->act, columns);
    const dsi_tensor *weights = job->run->op->in[1];
    const dsi_kernels *kernels = &job->run->dev->kernels;
    dsi_index_fn score =
        job->act == DSI_DTYPE_BF16 ? kernels->index_score_bf16 : kernels->index_score_f32;
    dsi_index_args a = {.q = own->q,
                        .k_stride = keys->stride[1],
                        .weights = dsi_cpu_at(weights, r, 0),
                        .weights_stride = weights->stride[1],
                        .score_stride = job->context,
                        .n_q = n,
                        .n_heads = job->n_heads,
                        .dim = job->dim,
                        .scratch = own->panel};
    for (int64_t p = p0; p < p1; p++) {
        a.k = dsi_cpu_at(keys, dsi_cpu_page_row(job->batch, r, p), 0);
        a.score = own->scores + (r - first) * job->context + p * DSI_PAGE_ROWS;
        score(&a);
    }
}

/* ---- The choice -------------------------------------------------------------------------------
 */

/* Integers in the order of the numbers; sums are never -0. A NaN is the largest. */
static uint32_t order_of(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    if (x != x) return UINT32_MAX;
    return bits >> 31 ? ~bits : bits | 0x80000000u;
}

/* Which digit the `rank`-th largest (from 0 on) of n keys has at `shift`; *above: how many of them
 * have a larger one. */
enum { DIGIT_BITS = 11, DIGITS = 1 << DIGIT_BITS };
static uint32_t digit_of_rank(const uint32_t *keys, int64_t n, int shift, int64_t rank,
                              int64_t *above) {
    uint32_t counts[DIGITS] = {0}, digit = DIGITS - 1;
    for (int64_t i = 0; i < n; i++) counts[keys[i] >> shift & (DIGITS - 1)]++;
    for (*above = 0; *above + counts[digit] <= rank; digit--) *above += counts[digit];
    return digit;
}

/* The k largest of n scores, ascending by index; of equal ones the lower index wins. keys: [n]. */
static void choose(const float *scores, int64_t n, int64_t k, uint32_t *keys, int32_t *chosen) {
    int64_t left = n, rank = k - 1, above;
    uint32_t bound = 0;
    for (int64_t i = 0; i < n; i++) keys[i] = order_of(scores[i]);
    for (int shift = 2 * DIGIT_BITS; shift >= 0; shift -= DIGIT_BITS) {
        const uint32_t digit = digit_of_rank(keys, left, shift, rank, &above);
        int64_t kept = 0;
        for (int64_t i = 0; i < left; i++) {
            keys[kept] = keys[i];
            kept += (keys[i] >> shift & (DIGITS - 1)) == digit;
        }
        left = kept, rank -= above;
        bound |= digit << shift;
    }
    int64_t equal = rank + 1, n_chosen = 0; /* how many of those that equal the bound are chosen */
    for (int64_t i = 0; i < n && n_chosen < k; i++) {
        const uint32_t key = order_of(scores[i]);
        const bool wins = key > bound || (key == bound && equal > 0);
        equal -= key == bound;
        chosen[n_chosen] = (int32_t)i;
        n_chosen += wins;
    }
}

static void index_topk(void *context, uint32_t thread, uint32_t n_threads) {
    const index_job job = job_of(context);
    uint64_t total, i0, i1;
    const room own = carve(&job, job.run->workspace, thread, &total);
    for (int64_t begin = 0, end = 0; next_round(&job, &begin, &end);) {
        for (int64_t r = begin; r < end; r += OPERANDS) {
            const int64_t n = dsi_min_i64(OPERANDS, end - r);
            const int64_t n_pages = job.batch->position[r + n - 1] / DSI_PAGE_ROWS + 1;
            dsi_pool_share((uint64_t)n_pages, 1, thread, n_threads, &i0, &i1);
            score_rows(&job, &own, begin, r, n, (int64_t)i0, (int64_t)i1);
        }
        dsi_cpu_barrier(job.run->dev, n_threads);
        dsi_pool_share((uint64_t)(end - begin), 1, thread, n_threads, &i0, &i1);
        for (int64_t i = (int64_t)i0; i < (int64_t)i1; i++)
            choose(own.scores + i * job.context, (int64_t)job.batch->position[begin + i] + 1,
                   job.top_k, own.keys, dsi_cpu_at(job.run->op->out[0], begin + i, 0));
        if (end < job.batch->n_rows) dsi_cpu_barrier(job.run->dev, n_threads);
    }
}
void dsi_cpu_index_topk_run(const dsi_cpu_run *run) {
    const index_job job = job_of(run);
    int64_t n_cached = 0;
    for (int64_t begin = 0, end = 0; next_round(&job, &begin, &end);)
        for (int64_t r = begin; r < end; r++) n_cached += job.batch->position[r] + 1;
    dsi_cpu_parallel(run->dev, index_topk, run, n_cached * job.n_heads * job.dim);
}
