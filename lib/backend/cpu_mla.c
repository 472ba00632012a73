/* cpu_mla.c: multi-head latent attention. Two forms of one formula (DeepSeek-V2, arXiv 2405.04434,
 * section 2.1): absorbed, where W_UK moves into the query and W_UV behind the sum, so that only
 * latents are read (cpu_mla_attend.c); and expanded, where keys and values are made once for many
 * rows (cpu_mla_expand.c). Here are the products with W_UK and W_UV of the absorbed form. */
#include "cpu_low_rank.h"
#include "cpu_tasks.h"

enum { ROWS_AT_ONCE = 64 }; /* rows of one tile in the absorbing products */

typedef struct mla_shape {
    int64_t n_heads, nope, rope, v, kv_lora, head_rows; /* head_rows: rows of kv_b per head */
    const dsi_batch *batch;
    float scale;
    const dsi_low_rank *low_rank;
} mla_shape;

static mla_shape shape_of(const dsi_op *op) {
    const dsi_attr_mla *a = op->attr;
    return (mla_shape){a->n_heads,
                       a->qk_nope_head_dim,
                       a->qk_rope_head_dim,
                       a->v_head_dim,
                       a->kv_lora_rank,
                       a->qk_nope_head_dim + a->v_head_dim,
                       a->batch,
                       a->scale,
                       a->low_rank};
}

static bool kv_b_ok(const dsi_tensor *w, const mla_shape *s) {
    return dsi_cpu_weight_ok(w) && w->ne[0] == s->kv_lora && w->ne[1] == s->n_heads * s->head_rows;
}
static bool low_rank_ok(const mla_shape *s) {
    return dsi_cpu_low_rank_ok(s->low_rank, s->n_heads * s->head_rows, s->kv_lora);
}
/* GGUF's halves of it: per head W_UK transposed, and W_UV. */
static bool k_b_ok(const dsi_tensor *w, const mla_shape *s) {
    return dsi_cpu_weight_ok(w) && w->ne[0] == s->nope && w->ne[1] == s->n_heads * s->kv_lora;
}
static bool v_b_ok(const dsi_tensor *w, const mla_shape *s) {
    return dsi_cpu_weight_ok(w) && w->ne[0] == s->kv_lora && w->ne[1] == s->n_heads * s->v;
}

/* The next run of adjacent absorbed rows, at most ROWS_AT_ONCE, of whatever sequences. */
static bool next_rows(const dsi_batch *b, int64_t *begin, int64_t *end) {
    int64_t r = *end, n = b->n_rows;
    while (r < n && b->expanded[r]) r++;
    *begin = r;
    while (r < n && !b->expanded[r] && r - *begin < ROWS_AT_ONCE) r++;
    *end = r;
    return r > *begin;
}

/* ---- q' = [W_UK^T q_nope | q_rope] for absorbed rows
 * --------------------------------------------- */

/* Of one thread: a tile of queries, and what a product with k_b or adapters want. */
static uint64_t absorb_q_room(const mla_shape *s) {
    dsi_cpu_arena arena = {NULL, 0};
    dsi_cpu_take(&arena, ROWS_AT_ONCE * s->kv_lora * 4);
    dsi_cpu_take(&arena, dsi_max_i64(dsi_matmul_scratch_bytes(s->nope),
                                     dsi_cpu_low_rank_room(s->low_rank, s->nope)));
    return arena.used;
}

dsi_status dsi_cpu_mla_absorb_q_check(dsi_dev *dev, const dsi_op *op, uint64_t *workspace) {
    mla_shape s = shape_of(op);
    bool ok =
        op->in[0]->dtype == DSI_DTYPE_F32 && (kv_b_ok(op->in[1], &s) || k_b_ok(op->in[1], &s)) &&
        op->in[0]->ne[0] == s.n_heads * (s.nope + s.rope) && dsi_cpu_is_act(op->out[0]->dtype) &&
        op->out[0]->ne[0] == s.n_heads * (s.kv_lora + s.rope) && low_rank_ok(&s);
    *workspace = absorb_q_room(&s) * dev->n_threads;
    return dsi_cpu_require(dev, op, ok, "types or shapes of q, kv_b, q' do not fit");
}

/* The product with W_UK^T of rows [r0, r1) of one head, from kv_b. */
static void absorb_from_kv_b(const dsi_cpu_run *run, const mla_shape *s, float *tile, int64_t head,
                             int64_t r0, int64_t r1) {
    const dsi_tensor *q = run->op->in[0];
    dsi_matmul_t_args a = {.x = dsi_cpu_at(q, r0, head * (s->nope + s->rope)),
                           .x_stride = q->stride[1],
                           .y = tile,
                           .y_stride = s->kv_lora,
                           .m = r1 - r0,
                           .n0 = head * s->head_rows,
                           .n1 = head * s->head_rows + s->nope};
    if (head + 1 < s->n_heads) {
        const dsi_tensor *w = run->op->in[1];
        a.next = dsi_cpu_at(w, a.n0 + s->head_rows, 0);
        a.next_bytes = s->nope * dsi_cpu_row_bytes(w);
    }
    dsi_cpu_matmul_t(run->dev, run->op->in[1], &a)(&a);
}
/* The same from k_b, where W_UK^T lies row by row; tile: absorb_q_room. */
static void absorb_from_k_b(const dsi_cpu_run *run, const mla_shape *s, float *tile, int64_t head,
                            int64_t r0, int64_t r1) {
    const dsi_tensor *q = run->op->in[0];
    dsi_cpu_arena arena = {(uint8_t *)tile, 0};
    dsi_matmul_args a = {.x = dsi_cpu_at(q, r0, head * (s->nope + s->rope)),
                         .x_stride = q->stride[1],
                         .y = dsi_cpu_take(&arena, ROWS_AT_ONCE * s->kv_lora * 4),
                         .y_stride = s->kv_lora,
                         .m = r1 - r0,
                         .n0 = head * s->kv_lora,
                         .n1 = (head + 1) * s->kv_lora};
    a.scratch = dsi_cpu_take(&arena, dsi_matmul_scratch_bytes(s->nope));
    dsi_cpu_matmul(run->dev, run->op->in[1], DSI_DTYPE_F32, &a)(&a);
}

/* W_UK of an adapter is B A: q' += scale A^T (B^T q). */
static void absorb_adapters(const dsi_cpu_run *run, const mla_shape *s, float *tile, int64_t head,
                            int64_t r0, int64_t r1) {
    const dsi_tensor *q = run->op->in[0];
    uint8_t *room = (uint8_t *)tile + dsi_cpu_round_up(ROWS_AT_ONCE * s->kv_lora * 4, 64);
    for (int64_t r = r0, end; r < r1; r = end) {
        const dsi_low_rank_part *part = dsi_cpu_low_rank_part(s->low_rank, r, r1, &end);
        dsi_cpu_low_rank_rows rows = {.x = dsi_cpu_at(q, r, head * (s->nope + s->rope)),
                                      .x_stride = q->stride[1],
                                      .m = end - r,
                                      .y = tile + (r - r0) * s->kv_lora,
                                      .y_stride = s->kv_lora,
                                      .n0 = head * s->head_rows,
                                      .n1 = head * s->head_rows + s->nope};
        if (part) dsi_cpu_low_rank_apply_t(run->dev, s->low_rank, part, &rows, room);
    }
}

/* One head, rows [r0, r1): at most ROWS_AT_ONCE of them. */
static void absorb_q_head(const dsi_cpu_run *run, const mla_shape *s, float *tile, int64_t head,
                          int64_t r0, int64_t r1) {
    const dsi_tensor *q = run->op->in[0], *out = run->op->out[0];
    if (k_b_ok(run->op->in[1], s))
        absorb_from_k_b(run, s, tile, head, r0, r1);
    else
        absorb_from_kv_b(run, s, tile, head, r0, r1);
    if (s->low_rank) absorb_adapters(run, s, tile, head, r0, r1);
    for (int64_t r = r0; r < r1; r++) {
        int64_t column = head * (s->kv_lora + s->rope);
        const float *q_rope = dsi_cpu_at(q, r, head * (s->nope + s->rope) + s->nope);
        dsi_cpu_store(run->dev, tile + (r - r0) * s->kv_lora, dsi_cpu_at(out, r, column),
                      out->dtype, s->kv_lora);
        dsi_cpu_store(run->dev, q_rope, dsi_cpu_at(out, r, column + s->kv_lora), out->dtype,
                      s->rope);
    }
}
static void absorb_q(void *context, uint32_t thread, uint32_t n_threads) {
    const dsi_cpu_run *run = context;
    mla_shape s = shape_of(run->op);
    float *tile = (float *)(void *)(run->workspace + absorb_q_room(&s) * thread);
    uint64_t h0, h1;
    dsi_pool_share((uint64_t)s.n_heads, 1, thread, n_threads, &h0, &h1);
    for (int64_t h = (int64_t)h0; h < (int64_t)h1; h++) {
        for (int64_t begin = 0, end = 0; next_rows(s.batch, &begin, &end);)
            absorb_q_head(run, &s, tile, h, begin, end);
    }
}
void dsi_cpu_mla_absorb_q_run(const dsi_cpu_run *run) {
    mla_shape s = shape_of(run->op);
    int64_t work = s.batch->n_rows * s.n_heads * s.nope * s.kv_lora;
    dsi_cpu_parallel(run->dev, absorb_q, run, work);
}

/* ---- y = W_UV o for absorbed rows
 * ------------------------------------------------------------------ */

/* Of one thread: a tile of results, the scratch of a kernel, what adapters want. */
static uint64_t absorb_v_room(const mla_shape *s) {
    dsi_cpu_arena arena = {NULL, 0};
    dsi_cpu_take(&arena, ROWS_AT_ONCE * s->v * 4);
    dsi_cpu_take(&arena, dsi_matmul_scratch_bytes(s->kv_lora));
    dsi_cpu_take(&arena, dsi_cpu_low_rank_room(s->low_rank, s->kv_lora));
    return arena.used;
}

dsi_status dsi_cpu_mla_absorb_v_check(dsi_dev *dev, const dsi_op *op, uint64_t *workspace) {
    mla_shape s = shape_of(op);
    const dsi_tensor *o = op->in[0], *y = op->out[0];
    bool ok = dsi_cpu_is_act(o->dtype) && dsi_cpu_is_act(y->dtype) &&
              (kv_b_ok(op->in[1], &s) || v_b_ok(op->in[1], &s)) && low_rank_ok(&s) &&
              o->ne[0] == s.n_heads * s.kv_lora && y->ne[0] == s.n_heads * s.v;
    *workspace = absorb_v_room(&s) * dev->n_threads;
    return dsi_cpu_require(dev, op, ok, "types or shapes of o, kv_b, y do not fit");
}

/* W_UV of an adapter: y += scale B (A o), to rows [r0, r1) of a tile of one head. */
static void add_adapters(const dsi_cpu_run *run, const mla_shape *s, float *tile, int64_t head,
                         int64_t r0, int64_t r1, uint8_t *room) {
    const dsi_tensor *o = run->op->in[0];
    for (int64_t r = r0, end; s->low_rank && r < r1; r = end) {
        const dsi_low_rank_part *part = dsi_cpu_low_rank_part(s->low_rank, r, r1, &end);
        dsi_cpu_low_rank_rows rows = {.x = dsi_cpu_at(o, r, head * s->kv_lora),
                                      .x_stride = o->stride[1],
                                      .x_dtype = o->dtype,
                                      .m = end - r,
                                      .y = tile + (r - r0) * s->v,
                                      .y_stride = s->v,
                                      .n0 = head * s->head_rows + s->nope,
                                      .n1 = (head + 1) * s->head_rows};
        if (part) dsi_cpu_low_rank_apply(run->dev, s->low_rank, part, &rows, room);
    }
}

static void absorb_v(void *context, uint32_t thread, uint32_t n_threads) {
    const dsi_cpu_run *run = context;
    mla_shape s = shape_of(run->op);
    const dsi_tensor *o = run->op->in[0], *y = run->op->out[0];
    dsi_cpu_arena arena = {run->workspace + absorb_v_room(&s) * thread, 0};
    float *tile = dsi_cpu_take(&arena, ROWS_AT_ONCE * s.v * 4);
    dsi_matmul_args a = {.x_stride = o->stride[1], .y = tile, .y_stride = s.v};
    a.scratch = dsi_cpu_take(&arena, dsi_matmul_scratch_bytes(s.kv_lora));
    uint8_t *room = arena.base + arena.used;
    dsi_matmul_fn matmul = dsi_cpu_matmul(run->dev, run->op->in[1], o->dtype, &a);
    const bool halves = v_b_ok(run->op->in[1], &s);
    uint64_t h0, h1;
    dsi_pool_share((uint64_t)s.n_heads, 1, thread, n_threads, &h0, &h1);
    for (int64_t h = (int64_t)h0; h < (int64_t)h1; h++) {
        a.n0 = halves ? h * s.v : h * s.head_rows + s.nope; /* trap 8: k rows first, then v rows */
        a.n1 = a.n0 + s.v;
        for (int64_t begin = 0, end = 0; next_rows(s.batch, &begin, &end);) {
            a.x = dsi_cpu_at(o, begin, h * s.kv_lora);
            a.m = end - begin;
            matmul(&a);
            add_adapters(run, &s, tile, h, begin, end, room);
            for (int64_t i = 0; i < a.m; i++)
                dsi_cpu_store(run->dev, tile + i * s.v, dsi_cpu_at(y, begin + i, h * s.v), y->dtype,
                              s.v);
        }
    }
}
void dsi_cpu_mla_absorb_v_run(const dsi_cpu_run *run) {
    mla_shape s = shape_of(run->op);
    int64_t work = s.batch->n_rows * s.n_heads * s.v * s.kv_lora;
    dsi_cpu_parallel(run->dev, absorb_v, run, work);
}
