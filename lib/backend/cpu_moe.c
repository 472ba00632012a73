/* cpu_moe.c: routing and the mixture of experts. Tokens are grouped by expert; one barrier parts
 * the up pass (gate, up, SiLU) from the down pass. The down pass cuts the output columns, and each
 * token adds its experts in ascending id, then the shared expert: the order depends on the token
 * alone, and no reduction over threads is needed.
 *
 * Of few rows the router is part of the same run: its columns are the first tasks, the up pass of
 * the shared expert the next ones, which nobody has to choose. Who completes the logits routes
 * while the others are busy with those, and opens the gate to the experts that were chosen. */
#include "cpu_tasks.h"
#include <string.h>

enum { ROUTE_WORK = 256 }; /* multiply-adds that take as long as choosing among one expert more */

/* ---- moe_route ----------------------------------------------------------------------------------
 */

dsi_status dsi_cpu_moe_route_check(dsi_dev *dev, const dsi_op *op, uint64_t *workspace) {
    (void)workspace;
    const dsi_attr_route *a = op->attr;
    const dsi_tensor *logits = op->in[0], *bias = op->n_in > 1 ? op->in[1] : NULL;
    bool ok = logits->dtype == DSI_DTYPE_F32 && op->n_out == 2 && logits->ne[0] <= 1024 &&
              (!bias || (bias->dtype == DSI_DTYPE_F32 && bias->ne[0] == logits->ne[0])) &&
              a->top_k >= 1 && a->top_k <= logits->ne[0] && op->out[0]->dtype == DSI_DTYPE_I32 &&
              op->out[0]->ne[0] == a->top_k && op->out[1]->ne[0] == a->top_k;
    return dsi_cpu_require(dev, op, ok, "logits must be F32 of at most 1024 experts");
}
/* Rows [r0, r1); out: ids, weights. */
static void route_some(const dsi_dev *dev, const dsi_attr_route *a, const dsi_tensor *logits,
                       const dsi_tensor *bias, dsi_tensor *const *out, int64_t r0, int64_t r1) {
    for (int64_t r = r0; r < r1; r++) {
        dsi_route_args args = {.logits = dsi_cpu_at(logits, r, 0),
                               .bias = bias ? dsi_cpu_data(bias) : NULL,
                               .experts = dsi_cpu_at(out[0], r, 0),
                               .weights = dsi_cpu_at(out[1], r, 0),
                               .n_experts = (uint32_t)logits->ne[0],
                               .top_k = a->top_k,
                               .n_group = a->n_group,
                               .topk_group = a->topk_group,
                               .method = a->method,
                               .sigmoid = a->sigmoid,
                               .norm = a->norm,
                               .scale = a->scale};
        dev->kernels.moe_route(&args);
    }
}
static void route_rows(void *context, uint32_t thread, uint32_t n_threads) {
    const dsi_cpu_run *run = context;
    const dsi_tensor *logits = run->op->in[0], *bias = run->op->n_in > 1 ? run->op->in[1] : NULL;
    uint64_t r0, r1;
    dsi_pool_share((uint64_t)dsi_cpu_rows(logits), 1, thread, n_threads, &r0, &r1);
    route_some(run->dev, run->op->attr, logits, bias, run->op->out, (int64_t)r0, (int64_t)r1);
}
void dsi_cpu_moe_route_run(const dsi_cpu_run *run) {
    const dsi_tensor *logits = run->op->in[0];
    int64_t work = ROUTE_WORK * dsi_cpu_rows(logits) * logits->ne[0];
    if (dsi_cpu_rows(logits) == 1) work = 0; /* one row is one task */
    dsi_cpu_parallel(run->dev, route_rows, run, work);
}

/* ---- moe_ffn ------------------------------------------------------------------------------------
 */

/* An expert that has tokens; the shared expert comes last and has all of them. */
typedef struct moe_part {
    const dsi_tensor *const *w; /* gate, up, down */
    const int32_t *rows;        /* [m] its tokens, ascending; NULL: all */
    const float *weights;       /* [m]; NULL: 1 (trap 10: the shared expert is not scaled) */
    dsi_cpu_operand h;          /* [m] hidden activations */
    int64_t m;
    int64_t columns; /* of a task of the up pass */
} moe_part;

/* The columns of a part whose weights lie on one memory node, in the up pass. */
typedef struct moe_piece {
    const moe_part *part;
    int64_t n0, n1, first; /* the number of its first task */
} moe_piece;

/* The tokens of one call sorted by expert, and where their hidden activations lie. */
typedef struct moe_job {
    const dsi_cpu_run *run;
    const dsi_attr_moe *attr;
    const dsi_tensor *ids, *shares; /* [n_rows][top_k] the experts of a row, their weights */
    int64_t n_rows, hidden, inter, shared_inter, act;
    int32_t *start;    /* [n_experts + 1] first slot of an expert */
    int32_t *rows;     /* [n_rows * top_k] token of a slot, ascending inside an expert */
    float *weights;    /* [n_rows * top_k] */
    moe_part *parts;   /* [n_experts + 1] */
    moe_piece *pieces; /* [n_nodes][n_experts + 1]: all of a node, then all of the next */
    int64_t n_parts, n_pieces, n_up_tasks;
    int64_t n_up_parts;           /* whose up pass follows: all, or all but the shared expert */
    int64_t down_columns;         /* of a task of the down pass */
    dsi_cpu_operand x, h, shared; /* h: [n_rows * top_k]; shared: [n_rows] */
    bool fill_h;                  /* they have other forms than the plain one */
    uint8_t *own;                 /* per thread: two tiles, then the scratch of a kernel */
    uint64_t own_bytes;
    /* with its router */
    const dsi_attr_moe_routed *routed; /* NULL: without */
    moe_part shared_part;              /* of the first pass; without columns if there is none */
    int64_t router_columns, n_router_tasks;
    _Atomic int64_t router_left; /* tasks that are not complete */
    uint32_t gate, n_threads;
} moe_job;

static int64_t padded(int64_t columns) { return dsi_cpu_round_up(columns, 32); }

static dsi_cpu_operand hidden_rows(const moe_job *job, int64_t inter, int64_t m,
                                   dsi_cpu_arena *arena) {
    uint8_t *data = dsi_cpu_take(arena, m * padded(inter) * job->act);
    return dsi_cpu_operand_of(data, job->run->op->in[0]->dtype, inter, padded(inter));
}

/* The forms of x and h that some expert takes. */
static void take_forms(moe_job *job, int64_t slots, dsi_cpu_arena *arena) {
    const dsi_dev *dev = job->run->dev;
    const dsi_tensor *const *w = job->run->op->in + 3;
    for (uint32_t e = 0; e < job->attr->n_experts + (job->attr->has_shared ? 1 : 0); e++, w += 3) {
        bool routed = e < job->attr->n_experts;
        int down = dsi_cpu_form(dev, w[2]);
        dsi_cpu_operand_take(&job->x, dsi_cpu_form(dev, w[0]), job->n_rows, arena);
        dsi_cpu_operand_take(&job->x, dsi_cpu_form(dev, w[1]), job->n_rows, arena);
        dsi_cpu_operand_take(routed ? &job->h : &job->shared, down, routed ? slots : job->n_rows,
                             arena);
        job->fill_h |= down != DSI_CPU_PLAIN;
    }
}

/* Where the hidden activations of the shared expert are wanted; NULL: nowhere. */
static const dsi_tensor *shared_hidden(const dsi_op *op) {
    uint32_t others = op->kind == DSI_OP_MOE_ROUTED ? 4 : 1;
    return op->n_out > others ? op->out[others] : NULL;
}

static moe_job job_of(const dsi_cpu_run *run, uint64_t *total) {
    const dsi_op *op = run->op;
    const dsi_attr_moe_routed *routed = op->kind == DSI_OP_MOE_ROUTED ? op->attr : NULL;
    const dsi_attr_moe *a = routed ? &routed->moe : op->attr;
    moe_job job = {.run = run,
                   .attr = a,
                   .routed = routed,
                   .ids = routed ? op->out[2] : op->in[1],
                   .shares = routed ? op->out[3] : op->in[2],
                   .n_rows = dsi_cpu_rows(op->in[0]),
                   .hidden = op->in[0]->ne[0],
                   .inter = op->in[3]->ne[1],
                   .act = dsi_dtype_bytes(op->in[0]->dtype)};
    if (a->has_shared) job.shared_inter = op->in[3 + 3 * a->n_experts]->ne[1];
    int64_t slots = job.n_rows * a->top_k;
    int64_t k_max = dsi_max_i64(job.hidden, dsi_max_i64(job.inter, job.shared_inter));
    dsi_cpu_arena arena = {run->workspace, 0}, own = {NULL, 0};
    job.start = dsi_cpu_take(&arena, ((int64_t)a->n_experts + 1) * 4);
    job.rows = dsi_cpu_take(&arena, slots * 4);
    job.weights = dsi_cpu_take(&arena, slots * 4);
    job.parts = dsi_cpu_take(&arena, ((int64_t)a->n_experts + 1) * (int64_t)sizeof *job.parts);
    int64_t n_nodes = (int64_t)run->dev->shares[run->dev->n_threads - 1].node + 1;
    job.pieces =
        dsi_cpu_take(&arena, n_nodes * ((int64_t)a->n_experts + 1) * (int64_t)sizeof *job.pieces);
    const dsi_tensor *x = op->in[0];
    job.x = dsi_cpu_operand_of(run->workspace ? dsi_cpu_data(x) : NULL, x->dtype, job.hidden,
                               x->stride[1]);
    job.h = hidden_rows(&job, job.inter, slots, &arena);
    const dsi_tensor *h = shared_hidden(op);
    job.shared = h ? dsi_cpu_operand_of(run->workspace ? dsi_cpu_data(h) : NULL, h->dtype,
                                        job.shared_inter, h->stride[1])
                   : hidden_rows(&job, job.shared_inter, job.n_rows, &arena);
    if (run->dev->a8 || run->dev->e4m3) take_forms(&job, slots, &arena);
    dsi_cpu_take(&own, 2 * dsi_cpu_tile_floats(job.n_rows) * 4);
    dsi_cpu_take(&own, dsi_matmul_scratch_bytes(k_max));
    job.own_bytes = own.used;
    job.own = dsi_cpu_take(&arena, (int64_t)(job.own_bytes * run->dev->n_threads));
    *total = arena.used;
    return job;
}

static bool mlp_ok(const dsi_tensor *gate, const dsi_tensor *up, const dsi_tensor *down,
                   int64_t hidden, int64_t inter) {
    return dsi_cpu_weight_ok(gate) && dsi_cpu_weight_ok(up) && dsi_cpu_weight_ok(down) &&
           gate->ne[0] == hidden && gate->ne[1] == inter && up->ne[0] == hidden &&
           up->ne[1] == inter && down->ne[0] == inter && down->ne[1] == hidden;
}

/* What adapters change of the shared expert, and where its activations go. */
static bool adapters_ok(const dsi_op *op, const dsi_attr_moe *a) {
    const dsi_tensor *h = shared_hidden(op);
    if (!a->has_shared) return !h && !a->gate_low_rank && !a->up_low_rank;
    const dsi_tensor *gate = op->in[3 + 3 * a->n_experts];
    return dsi_cpu_low_rank_ok(a->gate_low_rank, gate->ne[1], gate->ne[0]) &&
           dsi_cpu_low_rank_ok(a->up_low_rank, gate->ne[1], gate->ne[0]) &&
           (!h || (h->dtype == op->in[0]->dtype && h->ne[0] == gate->ne[1]));
}

/* What both forms of the op have: x, the experts, y. */
static dsi_status check_experts(dsi_dev *dev, const dsi_op *op, const dsi_attr_moe *a, bool ok,
                                uint64_t *workspace) {
    ok = ok && a->n_experts >= 1 && op->n_in == 3 + 3 * (a->n_experts + (a->has_shared ? 1 : 0)) &&
         dsi_cpu_is_act(op->in[0]->dtype) && op->out[0]->dtype == DSI_DTYPE_F32 &&
         op->out[0]->ne[0] == op->in[0]->ne[0] && adapters_ok(op, a);
    /* op_run comes here once per layer: shapes of hundreds of experts were seen at load */
    for (uint32_t e = 0; ok && !op->in[0]->buf && e < a->n_experts; e++)
        ok = mlp_ok(op->in[3 + 3 * e], op->in[4 + 3 * e], op->in[5 + 3 * e], op->in[0]->ne[0],
                    op->in[3]->ne[1]);
    if (ok && !op->in[0]->buf && a->has_shared) {
        const dsi_tensor *const *s = op->in + 3 + 3 * a->n_experts;
        ok = mlp_ok(s[0], s[1], s[2], op->in[0]->ne[0], s[0]->ne[1]);
    }
    dsi_cpu_run run = {dev, op, NULL};
    if (ok) job_of(&run, workspace);
    return dsi_cpu_require(dev, op, ok, "types or shapes of x, ids, experts, y do not fit");
}
dsi_status dsi_cpu_moe_ffn_check(dsi_dev *dev, const dsi_op *op, uint64_t *workspace) {
    const dsi_attr_moe *a = op->attr;
    bool ok = op->in[1]->dtype == DSI_DTYPE_I32 && op->in[1]->ne[0] == a->top_k;
    return check_experts(dev, op, a, ok, workspace);
}
dsi_status dsi_cpu_moe_routed_check(dsi_dev *dev, const dsi_op *op, uint64_t *workspace) {
    const dsi_attr_moe_routed *a = op->attr;
    const dsi_tensor *x = op->in[0], *w = op->in[1], *bias = op->in[2];
    bool ok = (op->n_out == 4 || op->n_out == 5) && dsi_cpu_rows(x) <= DSI_MOE_ROUTED_ROWS &&
              dsi_cpu_weight_ok(w) && w->ne[0] == x->ne[0] && w->ne[1] == a->moe.n_experts &&
              dsi_cpu_form(dev, w) == DSI_CPU_PLAIN;
    if (ok) {
        dsi_attr_route route = a->route;
        dsi_op choose = {sizeof choose,
                         DSI_OP_MOE_ROUTE,
                         bias ? 2 : 1,
                         2,
                         (const dsi_tensor *[]){op->out[1], bias},
                         (dsi_tensor *[]){op->out[2], op->out[3]},
                         &route};
        dsi_status st = dsi_cpu_moe_route_check(dev, &choose, workspace);
        if (st != DSI_OK) return st;
        ok = op->out[1]->ne[0] == w->ne[1] && a->route.top_k == a->moe.top_k;
    }
    return check_experts(dev, op, &a->moe, ok, workspace);
}

/* Counting sort of (token, slot) by expert; tokens stay ascending inside an expert. */
static void group_by_expert(moe_job *job) {
    const dsi_tensor *ids = job->ids, *weights = job->shares;
    uint32_t n_experts = job->attr->n_experts, top_k = job->attr->top_k;
    memset(job->start, 0, (n_experts + 1) * sizeof *job->start);
    for (int64_t r = 0; r < job->n_rows; r++) {
        const int32_t *id = dsi_cpu_at(ids, r, 0);
        for (uint32_t k = 0; k < top_k; k++) job->start[id[k] + 1]++;
    }
    for (uint32_t e = 0; e < n_experts; e++) job->start[e + 1] += job->start[e];
    for (int64_t r = 0; r < job->n_rows; r++) {
        const int32_t *id = dsi_cpu_at(ids, r, 0);
        const float *weight = dsi_cpu_at(weights, r, 0);
        for (uint32_t k = 0; k < top_k; k++) {
            int32_t slot = job->start[id[k]]++;
            job->rows[slot] = (int32_t)r;
            job->weights[slot] = weight[k];
        }
    }
    for (uint32_t e = n_experts; e > 0; e--) job->start[e] = job->start[e - 1];
    job->start[0] = 0;
}

/* Rows from `r` on. */
static dsi_cpu_operand rows_from(const dsi_cpu_operand *x, int64_t r) {
    dsi_cpu_operand part = *x;
    for (int form = 0; form < DSI_CPU_FORMS; form++)
        if (part.data[form]) part.data[form] += r * part.bytes[form];
    return part;
}

/* The experts that have tokens, in ascending id, then the shared one. */
static void list_parts(moe_job *job) {
    const dsi_tensor *const *w = job->run->op->in + 3;
    uint32_t n_experts = job->attr->n_experts;
    for (uint32_t e = 0; e < n_experts; e++) {
        int64_t slot = job->start[e], m = job->start[e + 1] - slot;
        if (m == 0) continue;
        job->parts[job->n_parts++] = (moe_part){.w = w + 3 * e,
                                                .rows = job->rows + slot,
                                                .weights = job->weights + slot,
                                                .h = rows_from(&job->h, slot),
                                                .m = m};
    }
    if (job->attr->has_shared)
        job->parts[job->n_parts++] =
            (moe_part){.w = w + 3 * n_experts, .h = job->shared, .m = job->n_rows};
    job->n_up_parts = job->n_parts - (job->routed && job->attr->has_shared ? 1 : 0);
}

/* What a task of the up pass costs: bytes of weights, and multiply-adds from some rows on. */
static int64_t task_cost(const moe_part *p) { return p->columns * (8 + p->m); }

/* The shares of a pass. The first pass is that of the router. */
enum { FIRST_PASS, UP_PASS, DOWN_PASS };
static dsi_cpu_share *shares_of(const moe_job *job, int pass) {
    return job->run->dev->shares + pass * (int64_t)job->run->dev->n_threads;
}

static void cut_up_pass(moe_part *p, uint32_t n_threads) {
    p->columns = dsi_cpu_task_columns(p->w[0], p->m, DSI_CPU_TASK_BYTES, n_threads);
}

static int64_t piece_tasks(const moe_piece *p) {
    return dsi_ceil_div(p->n1 - p->n0, p->part->columns);
}

/* The up pass in the order of nodes, so that shares of equal cost fall on the threads of each. What
 * all of it costs. */
static int64_t list_pieces(moe_job *job, uint32_t n_threads) {
    const dsi_cpu_share *shares = shares_of(job, UP_PASS);
    int64_t cost = 0;
    for (int64_t i = 0; i < job->n_up_parts; i++) cut_up_pass(&job->parts[i], n_threads);
    for (uint32_t thread = 0, next; thread < n_threads; thread = next) {
        for (int64_t i = 0; i < job->n_up_parts; i++) {
            const moe_part *p = &job->parts[i];
            int64_t n = p->w[0]->ne[1], n0 = 0;
            if (thread > 0) { /* where the rows of the node before end */
                uint32_t before = 0;
                while (before < thread) n0 = dsi_cpu_node_rows(shares, n_threads, n, &before);
            }
            next = thread;
            moe_piece piece = {p, n0, dsi_cpu_node_rows(shares, n_threads, n, &next),
                               job->n_up_tasks};
            if (piece.n1 <= piece.n0) continue;
            job->pieces[job->n_pieces++] = piece;
            job->n_up_tasks += piece_tasks(&piece);
            cost += piece_tasks(&piece) * task_cost(p);
        }
    }
    return cost;
}

/* Cuts both passes into tasks and deals them, the first in shares of equal cost. */
static void deal(moe_job *job, uint32_t n_threads) {
    dsi_cpu_share *shares = shares_of(job, UP_PASS);
    int64_t cost = list_pieces(job, n_threads), spent = 0, begin = 0;
    uint32_t t = 0;
    for (int64_t i = 0; i < job->n_pieces; i++) {
        const moe_piece *p = &job->pieces[i];
        int64_t end = p->first + piece_tasks(p);
        /* threads whose share ends within this piece */
        for (; t + 1 < n_threads; t++) {
            int64_t left = cost / n_threads * (t + 1) - spent;
            int64_t at = p->first + dsi_max_i64(left, 0) / task_cost(p->part);
            if (at >= end) break;
            dsi_cpu_deal(&shares[t], begin, dsi_max_i64(at, begin));
            begin = dsi_max_i64(at, begin);
        }
        spent += piece_tasks(p) * task_cost(p->part);
    }
    for (; t < n_threads; t++, begin = job->n_up_tasks)
        dsi_cpu_deal(&shares[t], begin, job->n_up_tasks);
    /* one task takes its columns through all experts */
    const moe_part *last = &job->parts[job->n_parts - 1];
    job->down_columns = dsi_cpu_task_columns(last->w[2], dsi_max_i64(last->m, job->n_rows),
                                             4 * DSI_CPU_TASK_BYTES, n_threads);
    dsi_cpu_deal_evenly(shares_of(job, DOWN_PASS), n_threads,
                        dsi_ceil_div(job->hidden, job->down_columns));
}

/* h = silu(x gate^T) * (x up^T), columns [n0, n1): a task is some columns of one expert. next: the
 * weight and row where the thread goes on; NULL: with the columns behind. */
static void up_columns(const moe_job *job, const moe_part *p, int64_t n0, int64_t n1,
                       const dsi_cpu_place *next, dsi_cpu_arena own) {
    bool shared = !p->rows; /* adapters change no other expert */
    dsi_cpu_gated product = {&job->x,
                             p->w[0],
                             p->w[1],
                             p->rows,
                             p->m,
                             p->h.data[DSI_CPU_PLAIN],
                             p->h.stride[DSI_CPU_PLAIN],
                             p->h.dtype,
                             shared ? job->attr->gate_low_rank : NULL,
                             shared ? job->attr->up_low_rank : NULL};
    dsi_cpu_gated_columns(job->run->dev, &product, n0, dsi_min_i64(n0 + p->columns, n1), next, own);
}
static void up_pass(const moe_job *job, uint32_t thread, uint32_t n_threads, dsi_cpu_arena own) {
    dsi_cpu_share *shares = shares_of(job, UP_PASS);
    int64_t i = 0, last = -2;
    for (int64_t task; dsi_cpu_next_task(shares, thread, n_threads, &task); last = task) {
        bool goes_on = task == last + 1;
        while (i > 0 && task < job->pieces[i].first) i--;
        while (i + 1 < job->n_pieces && task >= job->pieces[i + 1].first) i++, goes_on = false;
        const moe_piece *p = &job->pieces[i];
        int64_t n0 = p->n0 + (task - p->first) * p->part->columns;
        bool ends = i + 1 < job->n_pieces && dsi_cpu_task_ahead(shares, thread) == p[1].first;
        dsi_cpu_place next = {ends ? p[1].part->w[0] : NULL, ends ? p[1].n0 : 0};
        if (!goes_on) dsi_cpu_prefetch(p->part->w[1], n0);
        up_columns(job, p->part, n0, p->n1, ends ? &next : NULL, own);
    }
}

/* y[token] += weight * (h down^T) for columns [n0, n1) of one expert. */
static void down_columns(const moe_job *job, const moe_part *p, int64_t n0, int64_t n1,
                         dsi_cpu_arena own) {
    const dsi_tensor *y = job->run->op->out[0];
    float *tile = dsi_cpu_take(&own, 2 * dsi_cpu_tile_floats(job->n_rows) * 4);
    int64_t n = n1 - n0;
    dsi_matmul_args a = {
        .y = tile, .y_stride = n, .n0 = n0, .n1 = n1, .scratch = own.base + own.used};
    for (int64_t r = 0; r < p->m; r += DSI_CPU_ROWS_AT_ONCE) {
        a.m = dsi_min_i64(DSI_CPU_ROWS_AT_ONCE, p->m - r);
        dsi_cpu_product(job->run->dev, p->w[2], &p->h, r, &a)(&a);
        for (int64_t i = 0; i < a.m; i++)
            dsi_cpu_add_scaled(dsi_cpu_at(y, p->rows ? p->rows[r + i] : r + i, n0), tile + i * n,
                               p->weights ? p->weights[r + i] : 1.0f, n);
    }
}
static void down_pass(const moe_job *job, uint32_t thread, uint32_t n_threads, dsi_cpu_arena own) {
    dsi_cpu_share *shares = shares_of(job, DOWN_PASS);
    for (int64_t task; dsi_cpu_next_task(shares, thread, n_threads, &task);) {
        int64_t n0 = task * job->down_columns,
                n1 = dsi_min_i64(n0 + job->down_columns, job->hidden);
        for (int64_t i = 0; i < job->n_parts; i++) {
            if (i + 1 < job->n_parts)
                dsi_cpu_prefetch(job->parts[i + 1].w[2], n0);
            else if (n1 < job->hidden)
                dsi_cpu_prefetch(job->parts[0].w[2], n1);
            down_columns(job, &job->parts[i], n0, n1, own);
        }
    }
}

/* Other forms of the hidden activations; the slots of all experts, then the shared one's rows. */
static void fill_hidden(const moe_job *job, uint32_t thread, uint32_t n_threads) {
    int64_t slots = job->n_rows * job->attr->top_k;
    int64_t shared = job->attr->has_shared ? job->n_rows : 0;
    uint64_t r0, r1;
    dsi_pool_share((uint64_t)(slots + shared), 1, thread, n_threads, &r0, &r1);
    int64_t begin = (int64_t)r0, end = (int64_t)r1;
    dsi_cpu_operand_fill(job->run->dev, &job->h, begin, dsi_min_i64(end, slots));
    dsi_cpu_operand_fill(job->run->dev, &job->shared, dsi_max_i64(begin - slots, 0), end - slots);
}

/* Behind the up pass: the barrier, and the down pass. */
static void end_passes(const moe_job *job, uint32_t thread, uint32_t n_threads, dsi_cpu_arena own) {
    const dsi_dev *dev = job->run->dev;
    int64_t ahead = dsi_cpu_task_ahead(shares_of(job, DOWN_PASS), thread);
    if (ahead >= 0) dsi_cpu_prefetch(job->parts[0].w[2], ahead * job->down_columns);
    dsi_cpu_barrier(dev, n_threads);
    if (job->fill_h) {
        fill_hidden(job, thread, n_threads);
        dsi_cpu_barrier(dev, n_threads);
    }
    down_pass(job, thread, n_threads, own);
}

static int64_t work_of(const moe_job *job) {
    return 3 * job->n_rows * job->hidden * (job->attr->top_k * job->inter + job->shared_inter);
}

static void moe_ffn(void *context, uint32_t thread, uint32_t n_threads) {
    const moe_job *job = context;
    dsi_cpu_arena own = {job->own + job->own_bytes * thread, 0};
    up_pass(job, thread, n_threads, own);
    end_passes(job, thread, n_threads, own);
}
void dsi_cpu_moe_ffn_run(const dsi_cpu_run *run) {
    uint64_t total;
    moe_job job = job_of(run, &total);
    if (job.n_rows == 0) return;
    group_by_expert(&job);
    list_parts(&job);
    dsi_cpu_operand_fill_all(run->dev, &job.x, job.n_rows);
    deal(&job, dsi_cpu_threads(run->dev, work_of(&job)));
    dsi_cpu_parallel(run->dev, moe_ffn, &job, work_of(&job));
}

/* ---- moe_routed: the same with its router, for few rows -----------------------------------------
 */

/* Some columns of the logits, all rows of them. */
static void router_columns(const moe_job *job, int64_t task, dsi_cpu_arena own) {
    const dsi_tensor *w = job->run->op->in[1], *logits = job->run->op->out[1];
    int64_t n0 = task * job->router_columns;
    dsi_matmul_args a = {.m = job->n_rows,
                         .n0 = n0,
                         .n1 = dsi_min_i64(n0 + job->router_columns, w->ne[1]),
                         .y = dsi_cpu_at(logits, 0, n0),
                         .y_stride = logits->stride[1],
                         .scratch = dsi_cpu_take(&own, dsi_matmul_scratch_bytes(job->hidden))};
    dsi_cpu_product(job->run->dev, w, &job->x, 0, &a)(&a);
}

/* By the thread that has completed the logits. */
static void choose_experts(moe_job *job) {
    const dsi_op *op = job->run->op;
    route_some(job->run->dev, &job->routed->route, op->out[1], op->in[2], op->out + 2, 0,
               job->n_rows);
    group_by_expert(job);
    list_parts(job);
    deal(job, job->n_threads);
    dsi_pool_gate_open(job->run->dev->pool);
}

static void moe_routed(void *context, uint32_t thread, uint32_t n_threads) {
    moe_job *job = context;
    const moe_part *shared = &job->shared_part;
    dsi_cpu_share *shares = shares_of(job, FIRST_PASS);
    dsi_cpu_arena own = {job->own + job->own_bytes * thread, 0};
    for (int64_t task, last = -2; dsi_cpu_next_task(shares, thread, n_threads, &task);
         last = task) {
        int64_t n0 = (task - job->n_router_tasks) * shared->columns;
        if (task >= job->n_router_tasks) {
            if (task != last + 1 || n0 == 0) dsi_cpu_prefetch(shared->w[1], n0);
            up_columns(job, shared, n0, job->shared_inter, NULL, own);
            continue;
        }
        router_columns(job, task, own);
        /* the order makes the logits of all threads visible to the last one */
        if (atomic_fetch_sub(&job->router_left, 1) == 1) choose_experts(job);
    }
    dsi_pool_gate_wait(job->run->dev->pool, job->gate);
    up_pass(job, thread, n_threads, own);
    end_passes(job, thread, n_threads, own);
}

void dsi_cpu_moe_routed_run(const dsi_cpu_run *run) {
    uint64_t total;
    moe_job job = job_of(run, &total);
    const dsi_tensor *router = run->op->in[1];
    int64_t n_tasks = 0;
    if (job.n_rows == 0) return;
    job.n_threads = dsi_cpu_threads(run->dev, work_of(&job));
    job.router_columns =
        dsi_cpu_task_columns(router, job.n_rows, DSI_CPU_TASK_BYTES, job.n_threads);
    job.n_router_tasks = n_tasks = dsi_ceil_div(router->ne[1], job.router_columns);
    atomic_init(&job.router_left, n_tasks);
    if (job.attr->has_shared) {
        job.shared_part = (moe_part){
            .w = run->op->in + 3 + 3 * job.attr->n_experts, .h = job.shared, .m = job.n_rows};
        cut_up_pass(&job.shared_part, job.n_threads);
        n_tasks += dsi_ceil_div(job.shared_inter, job.shared_part.columns);
    }
    dsi_cpu_operand_fill_all(run->dev, &job.x, job.n_rows);
    dsi_cpu_deal_evenly(shares_of(&job, FIRST_PASS), job.n_threads, n_tasks);
    job.gate = dsi_pool_gate(run->dev->pool);
    dsi_cpu_parallel(run->dev, moe_routed, &job, work_of(&job));
}
