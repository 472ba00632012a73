/* forward.c: the way of a token through the model, read from top to bottom:
 *
 *   dsi_forward       embed, then every layer
 *   layer             norm, attention, add, norm, dense or moe, add
 *   mla               q_a, q_b | kv_a, norm, rope | kv pages | attend | o_proj
 *   gqa               the same for the dense relatives
 *   moe               router logits, route, experts and shared expert
 *   dsi_forward_head  final norm, lm_head
 *
 * Every op goes through the back-end table; the residual stream is f32, the operands of products
 * are "act" (BF16 by default). With DSI_FORWARD_PLAN the same walk asks the back-end whether it can
 * run each op and how much workspace it wants. */
#include "adapter.h"
#include "base/convert.h"

/* One walk. Once status is not DSI_OK every later op is passed over. */
typedef struct walk {
    dsi_engine *e;
    const dsi_config *config;
    dsi_scratch t; /* the scratch tensors, cut to the rows of this step */
    dsi_batch batch;
    dsi_forward_mode mode;
    uint64_t workspace;       /* PLAN: the largest so far */
    int32_t layer;            /* -1 outside the layers */
    const int32_t *head_rows; /* the head: which rows of the batch it works on; else NULL */
    bool any_absorbed, any_expanded;
    bool any_selected;   /* a row attends to fewer tokens than there are */
    bool is_draft;       /* the MTP block: what is not finite there spoils a draft, no answer */
    dsi_adapt *adapt;    /* NULL: no row has an adapter */
    const char *product; /* the name of the op that comes next, where its kind does not say it */
    dsi_status status;
} walk;

/* ---- Submitting ops ----------------------------------------------------------------------------
 */

static dsi_status run_op(walk *w, const dsi_op *op) {
    dsi_engine *e = w->e;
    if (e->profile) dsi_profile_begin(e);
    dsi_status st = e->backend->op_run(e->stream, op, e->scratch.workspace, 0);
    if (e->profile) dsi_profile_end(e, op, w->product);
    w->product = NULL;
    return st;
}

static void submit(walk *w, dsi_op_kind kind, const dsi_tensor *const *in, uint32_t n_in,
                   dsi_tensor *const *out, uint32_t n_out, const void *attr) {
    dsi_engine *e = w->e;
    dsi_op op = {sizeof op, kind, n_in, n_out, in, out, attr};
    uint64_t workspace = 0;
    if (w->status != DSI_OK) return;
    if (w->mode == DSI_FORWARD_PLAN)
        w->status = e->backend->op_plan(e->dev, &op, &workspace);
    else
        w->status = run_op(w, &op);
    if (workspace > w->workspace) w->workspace = workspace;
    if (w->status != DSI_OK)
        dsi_fail(&e->handle.error, w->status, "layer %d: %s", w->layer,
                 e->backend->last_error(e->dev));
}

/* Notes the first name whose output is not finite, for the session of row r. */
static void check_row(walk *w, const char *name, int64_t r, const float *row, uint64_t n) {
    dsi_step_rows *rows = &w->e->rows;
    int64_t batch_row = w->head_rows ? w->head_rows[r] : r;
    dsi_broken *broken = &rows->broken[rows->seq[batch_row]];
    if (!broken->name && !dsi_all_finite(row, n))
        *broken = (dsi_broken){name, w->layer, (uint32_t)rows->position[batch_row]};
}

/* Reads a named intermediate as f32, for the check for NaN and for the caller's tap. */
static void observe(walk *w, const char *name, const dsi_tensor *t, dsi_tap_fn to_tap) {
    dsi_engine *e = w->e;
    if (!to_tap && (!e->options.check_layers || w->is_draft)) return;
    if (w->mode == DSI_FORWARD_PLAN || w->status != DSI_OK) return;
    uint64_t n = (uint64_t)t->ne[0], bytes = n * dsi_dtype_bytes(t->dtype);
    for (int64_t r = 0; r < t->ne[1] && w->status == DSI_OK; r++) {
        float *row = e->rows.tap_values + (uint64_t)r * n;
        /* narrow values go to the end of the row's place and are widened from there */
        void *raw = (uint8_t *)row + (n * sizeof *row - bytes);
        uint64_t offset = t->offset + (uint64_t)(r * t->stride[1]) * dsi_dtype_bytes(t->dtype);
        w->status = e->backend->read(e->stream, raw, t->buf, offset, bytes);
        dsi_widen(t->dtype, raw, row, n);
        if (e->options.check_layers && !w->is_draft) check_row(w, name, r, row, n);
    }
    if (w->status == DSI_OK && to_tap)
        to_tap(e->tap_user, name, w->layer, e->rows.tap_values, (size_t)t->ne[1], (size_t)n);
}
static void tap(walk *w, const char *name, const dsi_tensor *t) { observe(w, name, t, w->e->tap); }

/* Columns [first, first + n) of a tensor. */
static dsi_tensor columns(const dsi_tensor *t, int64_t first, int64_t n) {
    dsi_tensor view = *t;
    view.ne[0] = n;
    view.offset += (uint64_t)first * dsi_dtype_bytes(t->dtype);
    return view;
}

static void rms_norm(walk *w, const char *name, const dsi_tensor *x, const dsi_tensor *weight,
                     dsi_tensor *y) {
    dsi_attr_norm attr = {sizeof attr, (float)w->config->rms_norm_eps};
    submit(w, DSI_OP_RMS_NORM, (const dsi_tensor *[]){x, weight}, 2, (dsi_tensor *[]){y}, 1, &attr);
    tap(w, name, y);
}
/* A product of the op: bias may be NULL or absent (ne[0] = 0). */
typedef struct product {
    const char *name;
    const dsi_tensor *weight, *bias;
    dsi_tensor *y;
} product;
enum { MAX_PRODUCTS = 4 };

/* What adapters add to one weight; NULL: nothing. slot: as dsi_adapt_find says. */
static const dsi_low_rank *low_rank(walk *w, const char *name, const dsi_tensor *weight,
                                    uint32_t slot) {
    if (!w->adapt) return NULL;
    return dsi_adapt_find(w->adapt, w->mode, (uint32_t)w->layer, name, slot, weight->ne[1],
                          weight->ne[0]);
}
/* A x of the adapters, for products of the same x; y NULL: an op that comes adds B of it. */
static void low_rank_ops(walk *w, const dsi_tensor *x, const dsi_low_rank *const *added,
                         dsi_tensor *const *y, uint32_t n) {
    dsi_low_rank some[DSI_ADAPTED_AT_ONCE];
    dsi_tensor *t[DSI_ADAPTED_AT_ONCE], *to[DSI_ADAPTED_AT_ONCE];
    dsi_attr_low_rank attr = {sizeof attr, 0, some};
    for (uint32_t i = 0; i < n; i++) {
        if (!added[i]) continue;
        some[attr.n] = *added[i];
        to[attr.n] = y ? y[i] : NULL;
        t[attr.n++] = added[i]->t;
    }
    if (!attr.n) return;
    submit(w, DSI_OP_LOW_RANK_DOWN, &x, 1, t, attr.n, &attr);
    if (y) submit(w, DSI_OP_LOW_RANK_UP, (const dsi_tensor *const *)t, attr.n, to, attr.n, &attr);
}

/* Several products of the same x; add: y += instead of y =. */
static void linears(walk *w, const dsi_tensor *x, const product *products, uint32_t n, bool add) {
    dsi_attr_linear attr = {sizeof attr, add ? DSI_LINEAR_ADD : 0};
    const dsi_tensor *in[1 + 2 * MAX_PRODUCTS] = {x};
    dsi_tensor *out[MAX_PRODUCTS] = {NULL};
    const dsi_low_rank *added[MAX_PRODUCTS] = {NULL};
    for (uint32_t i = 0; i < n; i++) {
        const dsi_tensor *bias = products[i].bias;
        in[1 + 2 * i] = products[i].weight;
        in[2 + 2 * i] = bias && bias->ne[0] ? bias : NULL;
        out[i] = products[i].y;
        added[i] = low_rank(w, products[i].name, products[i].weight, i);
    }
    w->product = products[0].name;
    submit(w, DSI_OP_LINEAR, in, 1 + 2 * n, out, n, &attr);
    low_rank_ops(w, x, added, out, n);
    for (uint32_t i = 0; i < n; i++) tap(w, products[i].name, products[i].y);
}
static void linear(walk *w, const char *name, const dsi_tensor *x, const dsi_tensor *weight,
                   dsi_tensor *y, bool add) {
    linears(w, x, &(product){name, weight, NULL, y}, 1, add);
}
/* Columns [first, first + dim) of each of n_heads heads that are `width` columns apart. */
static dsi_tensor heads_of(const dsi_tensor *x, int64_t first, int64_t dim, int64_t n_heads,
                           int64_t width) {
    dsi_tensor view = columns(x, first, dim);
    view.n_dims = 3;
    view.ne[1] = n_heads, view.ne[2] = x->ne[1];
    view.stride[1] = width, view.stride[2] = x->stride[1];
    return view;
}
static void rope(walk *w, dsi_tensor view, bool interleaved) {
    dsi_attr_rope attr = {sizeof attr, interleaved, w->e->rope_factor};
    submit(w, DSI_OP_ROPE, (const dsi_tensor *[]){&w->t.positions, &w->e->placed.inv_freq}, 2,
           (dsi_tensor *[]){&view}, 1, &attr);
}
/* Coded, if the pages are of 8 bits: n_heads runs of columns. */
static void kv_write(walk *w, const dsi_tensor *src, dsi_tensor *pages, uint32_t n_heads,
                     uint32_t head_columns) {
    dsi_attr_kv_write attr = {sizeof attr, 0, n_heads, head_columns};
    submit(w, DSI_OP_KV_WRITE, (const dsi_tensor *[]){src, &w->t.slots}, 2, (dsi_tensor *[]){pages},
           1, &attr);
}

/* ---- Attention
 * ----------------------------------------------------------------------------------- */

static const dsi_low_rank *kv_b_low_rank(walk *w) {
    const dsi_config *c = w->config;
    const int64_t n_out = (int64_t)c->n_heads * (c->qk_nope_head_dim + c->v_head_dim);
    const dsi_tensor kv_b = {.ne = {c->kv_lora_rank, n_out}}; /* also where it lies in halves */
    return low_rank(w, "self_attn.kv_b_proj", &kv_b, 0);
}

/* Absorbed rows read latents only; expanded rows get keys and values made per page. Which row takes
 * which form was decided when its prompt was sealed (session.c). */
static void mla_attend(walk *w, const dsi_placed_layer *l, dsi_tensor *pages) {
    const bool selects = w->any_selected && l->index_wk.ne[0];
    const dsi_config *c = w->config;
    dsi_attr_mla attr = {sizeof attr,   c->n_heads,      c->qk_nope_head_dim, c->qk_rope_head_dim,
                         c->v_head_dim, c->kv_lora_rank, w->e->softmax_scale, 0,
                         &w->batch,     kv_b_low_rank(w)};
    const bool halves = l->k_b_proj.ne[0] != 0;
    const dsi_tensor *keys = halves ? &l->k_b_proj : &l->kv_b_proj;
    const dsi_tensor *values = halves ? &l->v_b_proj : &l->kv_b_proj;
    if (w->any_absorbed) {
        submit(w, DSI_OP_MLA_ABSORB_Q, (const dsi_tensor *[]){&w->t.q, keys}, 2,
               (dsi_tensor *[]){&w->t.q_absorbed}, 1, &attr);
        submit(w, DSI_OP_MLA_ATTEND,
               (const dsi_tensor *[]){&w->t.q_absorbed, pages, &w->t.selected}, selects ? 3 : 2,
               (dsi_tensor *[]){&w->t.o_latent}, 1, &attr);
        submit(w, DSI_OP_MLA_ABSORB_V, (const dsi_tensor *[]){&w->t.o_latent, values}, 2,
               (dsi_tensor *[]){&w->t.attention}, 1, &attr);
    }
    if (w->any_expanded)
        submit(w, DSI_OP_MLA_EXPAND_ATTEND, (const dsi_tensor *[]){&w->t.q, keys, pages, values},
               halves ? 4 : 3, (dsi_tensor *[]){&w->t.attention}, 1, &attr);
}

/* DeepSeek-V3.2: a key of every row goes to the indexer's own cache; rows with more tokens before
 * them than index_topk choose those that they attend to. Heads begin with the rotated columns, and
 * these pair with the ones half a rope away, unlike MLA's. */
static void choose_tokens(walk *w, const dsi_placed_layer *l) {
    const dsi_config *c = w->config;
    dsi_scratch *t = &w->t;
    const int64_t dim = c->index_head_dim, heads = c->index_n_heads;
    const bool rounds = w->e->options.indexer == DSI_INDEXER_FP8;
    dsi_tensor pages = dsi_index_layer(w->e, (uint32_t)w->layer);
    dsi_attr_norm norm = {sizeof norm, 1e-6f};
    dsi_attr_index attr = {sizeof attr, 1, c->index_head_dim, 0, &w->batch};
    submit(w, DSI_OP_LAYER_NORM,
           (const dsi_tensor *[]){&t->index_k, &l->index_k_norm, &l->index_k_norm_bias}, 3,
           (dsi_tensor *[]){&t->index_k}, 1, &norm);
    tap(w, "self_attn.indexer.k_norm", &t->index_k);
    rope(w, heads_of(&t->index_k, 0, c->qk_rope_head_dim, 1, 0), false);
    if (rounds)
        submit(w, DSI_OP_INDEX_ROUND, (const dsi_tensor *[]){&t->index_k}, 1,
               (dsi_tensor *[]){&t->index_k}, 1, &attr);
    kv_write(w, &t->index_k, &pages, 1, c->index_head_dim);
    if (!w->any_selected) return;
    attr.n_heads = c->index_n_heads;
    rope(w, heads_of(&t->index_q, 0, c->qk_rope_head_dim, heads, dim), false);
    if (rounds)
        submit(w, DSI_OP_INDEX_ROUND, (const dsi_tensor *[]){&t->index_q}, 1,
               (dsi_tensor *[]){&t->index_q}, 1, &attr);
    submit(w, DSI_OP_INDEX_TOPK, (const dsi_tensor *[]){&t->index_q, &t->index_weights, &pages}, 3,
           (dsi_tensor *[]){&t->selected}, 1, &attr);
}

/* What is made of the normed row: the compressed query (or the query), latents, and of the indexer
 * its key and, if they are wanted, the weights of its heads; then the queries of both. */
static void project_mla(walk *w, const dsi_placed_layer *l) {
    dsi_scratch *t = &w->t;
    const bool indexed = l->index_wk.ne[0] != 0;
    product kv_a = {"self_attn.kv_a_proj_with_mqa", &l->kv_a_proj_with_mqa, NULL, &t->kv};
    product q = {"self_attn.q_proj", &l->q_proj, NULL, &t->q};
    product q_a = {"self_attn.q_a_proj", &l->q_a_proj, NULL, &t->q_a};
    product q_b = {"self_attn.q_b_proj", &l->q_b_proj, NULL, &t->q};
    product wq_b = {"self_attn.indexer.wq_b", &l->index_wq_b, NULL, &t->index_q};
    product wk = {"self_attn.indexer.wk", &l->index_wk, NULL, &t->index_k};
    product weights = {"self_attn.indexer.weights_proj", &l->index_weights_proj, NULL,
                       &t->index_weights};
    if (!w->config->q_lora_rank) {
        linears(w, &t->normed, (product[]){q, kv_a}, 2, false);
        return;
    }
    const uint32_t n = !indexed ? 2 : w->any_selected ? 4 : 3;
    linears(w, &t->normed, (product[]){q_a, kv_a, wk, weights}, n, false);
    rms_norm(w, "self_attn.q_a_layernorm", &t->q_a, &l->q_a_layernorm, &t->q_a_normed);
    linears(w, &t->q_a_normed, (product[]){q_b, wq_b}, n == 4 ? 2 : 1, false);
}

static void mla(walk *w, const dsi_placed_layer *l, dsi_tensor *pages) {
    const dsi_config *c = w->config;
    dsi_scratch *t = &w->t;
    project_mla(w, l);
    /* the norm covers the latent only, not the rope columns behind it */
    dsi_tensor latent = columns(&t->kv, 0, c->kv_lora_rank);
    rms_norm(w, "self_attn.kv_a_layernorm", &latent, &l->kv_a_layernorm, &latent);
    int64_t q_dim = c->qk_nope_head_dim + c->qk_rope_head_dim;
    rope(w, heads_of(&t->q, c->qk_nope_head_dim, c->qk_rope_head_dim, c->n_heads, q_dim),
         c->rope_interleaved);
    rope(w, heads_of(&t->kv, c->kv_lora_rank, c->qk_rope_head_dim, 1, 0), c->rope_interleaved);
    kv_write(w, &t->kv, pages, 1, c->kv_lora_rank);
    if (l->index_wk.ne[0]) choose_tokens(w, l);
    mla_attend(w, l, pages);
    tap(w, "self_attn", &t->attention);
    linear(w, "self_attn.o_proj", &t->attention, &l->o_proj, &t->hidden, true);
}

static void gqa(walk *w, const dsi_placed_layer *l, dsi_tensor *pages) {
    const dsi_config *c = w->config;
    dsi_scratch *t = &w->t;
    int64_t kv_width = (int64_t)c->n_kv_heads * c->head_dim;
    dsi_tensor k = columns(&t->kv, 0, kv_width), v = columns(&t->kv, kv_width, kv_width);
    product qkv[] = {{"self_attn.q_proj", &l->q_proj, &l->q_bias, &t->q},
                     {"self_attn.k_proj", &l->k_proj, &l->k_bias, &k},
                     {"self_attn.v_proj", &l->v_proj, &l->v_bias, &v}};
    linears(w, &t->normed, qkv, 3, false);
    rope(w, heads_of(&t->q, 0, c->head_dim, c->n_heads, c->head_dim), c->rope_interleaved);
    rope(w, heads_of(&k, 0, c->head_dim, c->n_kv_heads, c->head_dim), c->rope_interleaved);
    kv_write(w, &t->kv, pages, 2 * c->n_kv_heads, c->head_dim);
    dsi_attr_gqa attr = {sizeof attr,         c->n_heads, c->n_kv_heads, c->head_dim,
                         w->e->softmax_scale, 0,          &w->batch};
    submit(w, DSI_OP_GQA_ATTEND, (const dsi_tensor *[]){&t->q, pages}, 2,
           (dsi_tensor *[]){&t->attention}, 1, &attr);
    tap(w, "self_attn", &t->attention);
    linear(w, "self_attn.o_proj", &t->attention, &l->o_proj, &t->hidden, true);
}

/* ---- Feed-forward
 * ---------------------------------------------------------------------------------- */

static void dense(walk *w, const dsi_placed_layer *l) {
    dsi_scratch *t = &w->t;
    dsi_attr_swiglu attr = {sizeof attr, 0, low_rank(w, "mlp.gate_proj", &l->mlp[0], 0),
                            low_rank(w, "mlp.up_proj", &l->mlp[1], 1)};
    low_rank_ops(w, &t->normed, (const dsi_low_rank *[]){attr.gate_low_rank, attr.up_low_rank},
                 NULL, 2);
    submit(w, DSI_OP_LINEAR_SWIGLU, (const dsi_tensor *[]){&t->normed, &l->mlp[0], &l->mlp[1]}, 3,
           (dsi_tensor *[]){&t->ffn_hidden}, 1, &attr);
    observe(w, "mlp.gate_proj or mlp.up_proj", &t->ffn_hidden, NULL);
    linear(w, "mlp.down_proj", &t->ffn_hidden, &l->mlp[2], &t->hidden, true);
}

static dsi_attr_route route_attr(const dsi_config *c) {
    return (dsi_attr_route){sizeof(dsi_attr_route),
                            c->router,
                            c->scoring == DSI_SCORING_SIGMOID,
                            c->n_group,
                            c->topk_group,
                            c->n_experts_per_token,
                            c->norm_topk_prob,
                            (float)c->routed_scaling_factor};
}

/* Few rows: router and experts as one op, where the back-end has it. */
static void moe_routed(walk *w, const dsi_placed_layer *l, const dsi_attr_moe *experts,
                       dsi_tensor *h) {
    dsi_scratch *t = &w->t;
    const dsi_tensor *bias = &l->e_score_correction_bias;
    dsi_attr_moe_routed attr = {sizeof attr, 0, route_attr(w->config), *experts};
    l->moe_in[0] = &t->normed, l->moe_in[1] = &l->gate;
    l->moe_in[2] = bias->ne[0] ? bias : NULL;
    submit(w, DSI_OP_MOE_ROUTED, l->moe_in, l->n_moe_in,
           (dsi_tensor *[]){&t->hidden, &t->router_logits, &t->expert_ids, &t->expert_weights, h},
           h ? 5 : 4, &attr);
    tap(w, "mlp.gate", &t->router_logits);
    tap(w, "mlp.gate.weights", &t->expert_weights);
}
static void moe_in_steps(walk *w, const dsi_placed_layer *l, const dsi_attr_moe *experts,
                         dsi_tensor *h) {
    dsi_scratch *t = &w->t;
    dsi_attr_route route = route_attr(w->config);
    bool has_bias = l->e_score_correction_bias.ne[0] != 0;
    linear(w, "mlp.gate", &t->normed, &l->gate, &t->router_logits, false);
    submit(w, DSI_OP_MOE_ROUTE,
           (const dsi_tensor *[]){&t->router_logits, &l->e_score_correction_bias}, has_bias ? 2 : 1,
           (dsi_tensor *[]){&t->expert_ids, &t->expert_weights}, 2, &route);
    tap(w, "mlp.gate.weights", &t->expert_weights);
    l->moe_in[0] = &t->normed, l->moe_in[1] = &t->expert_ids, l->moe_in[2] = &t->expert_weights;
    submit(w, DSI_OP_MOE_FFN, l->moe_in, l->n_moe_in, (dsi_tensor *[]){&t->hidden, h}, h ? 2 : 1,
           experts);
}

/* Asks whether the back-end has the one op for few rows; without it nothing is missing. */
static void plan_moe_routed(walk *w, const dsi_placed_layer *l, const dsi_attr_moe *experts,
                            const dsi_tensor *h) {
    dsi_tensor few_h = h ? *h : (dsi_tensor){0};
    walk few = *w;
    dsi_tensor *rows[] = {&few.t.normed, &few.t.hidden, &few.t.router_logits, &few.t.expert_ids,
                          &few.t.expert_weights};
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++)
        if (rows[i]->ne[1] > DSI_MOE_ROUTED_ROWS) rows[i]->ne[1] = DSI_MOE_ROUTED_ROWS;
    dsi_error before = w->e->handle.error;
    if (h && h->ne[1] > DSI_MOE_ROUTED_ROWS) few_h.ne[1] = DSI_MOE_ROUTED_ROWS;
    moe_routed(&few, l, experts, h ? &few_h : NULL);
    w->e->in_steps |= few.status == DSI_E_UNSUPPORTED;
    if (few.status == DSI_E_UNSUPPORTED)
        w->e->handle.error = before;
    else
        w->status = few.status;
    w->workspace = few.workspace;
}

/* What adapters change of the shared expert: before SiLU in *attr; what they add behind it is
 * returned, and h is then where its hidden activations go. */
static const dsi_low_rank *adapt_shared(walk *w, const dsi_placed_layer *l, dsi_attr_moe *attr,
                                        dsi_tensor *h) {
    const dsi_tensor *const *shared = l->moe_in + l->n_moe_in - 3;
    attr->gate_low_rank = low_rank(w, "mlp.shared_experts.gate_proj", shared[0], 0);
    attr->up_low_rank = low_rank(w, "mlp.shared_experts.up_proj", shared[1], 1);
    low_rank_ops(w, &w->t.normed, (const dsi_low_rank *[]){attr->gate_low_rank, attr->up_low_rank},
                 NULL, 2);
    *h = w->adapt->shared_hidden;
    h->ne[1] = w->t.hidden.ne[1];
    return low_rank(w, "mlp.shared_experts.down_proj", shared[2], 2);
}

static void moe(walk *w, const dsi_placed_layer *l) {
    const dsi_config *c = w->config;
    bool has_shared = l->n_moe_in > 3 + 3 * c->n_routed_experts;
    dsi_attr_moe attr = {sizeof attr, c->n_routed_experts, c->n_experts_per_token, has_shared, NULL,
                         NULL};
    dsi_tensor shared, *h = NULL;
    const dsi_low_rank *down = NULL;
    if (has_shared && w->adapt) down = adapt_shared(w, l, &attr, &shared);
    if (down) h = &shared;
    bool plans = w->mode == DSI_FORWARD_PLAN && w->status == DSI_OK;
    if (plans) plan_moe_routed(w, l, &attr, h);
    if (!plans && w->t.hidden.ne[1] <= DSI_MOE_ROUTED_ROWS && !w->e->in_steps)
        moe_routed(w, l, &attr, h);
    else
        moe_in_steps(w, l, &attr, h);
    if (down) low_rank_ops(w, h, &down, (dsi_tensor *[]){&w->t.hidden}, 1);
    tap(w, "mlp.experts", &w->t.hidden);
}

static void layer(walk *w, uint32_t index) {
    const dsi_placed_layer *l = &w->e->placed.layers[index];
    dsi_tensor pages = dsi_kv_layer(w->e, index);
    w->layer = (int32_t)index;
    rms_norm(w, "input_layernorm", &w->t.hidden, &l->input_layernorm, &w->t.normed);
    if (w->config->arch->attention == DSI_ATTENTION_MLA)
        mla(w, l, &pages);
    else
        gqa(w, l, &pages);
    rms_norm(w, "post_attention_layernorm", &w->t.hidden, &l->post_attention_layernorm,
             &w->t.normed);
    if (l->n_moe_in)
        moe(w, l);
    else
        dense(w, l);
}

/* ---- The walk
 * ----------------------------------------------------------------------------------------- */

/* Cuts a scratch tensor to n rows and gives it its buffer. */
static void cut(const walk *w, dsi_tensor *t, int64_t n) {
    t->ne[1] = n;
    t->buf = w->e->scratch.buf;
}
static walk start(dsi_engine *e, dsi_forward_mode mode, int64_t n, int64_t n_head) {
    walk w = {.e = e, .config = &e->model->config, .t = e->scratch, .mode = mode, .layer = -1};
    dsi_tensor *all[] = {&w.t.tokens,     &w.t.positions,     &w.t.slots,      &w.t.hidden,
                         &w.t.normed,     &w.t.q_a,           &w.t.q_a_normed, &w.t.q,
                         &w.t.kv,         &w.t.q_absorbed,    &w.t.o_latent,   &w.t.attention,
                         &w.t.ffn_hidden, &w.t.router_logits, &w.t.expert_ids, &w.t.expert_weights,
                         &w.t.mtp_hidden, &w.t.mtp_concat,    &w.t.index_q,    &w.t.index_k,
                         &w.t.selected,   &w.t.index_weights};
    dsi_tensor *head[] = {&w.t.head_rows, &w.t.head_hidden, &w.t.head_normed, &w.t.logits,
                          &w.t.mtp_rows};
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++) cut(&w, all[i], n);
    for (size_t i = 0; i < sizeof head / sizeof head[0]; i++) cut(&w, head[i], n_head);
    const dsi_step_rows *r = &e->rows;
    w.batch = (dsi_batch){sizeof w.batch, (uint32_t)n,  e->options.max_sessions,
                          e->max_pages,   r->seq,       r->position,
                          r->expanded,    r->page_table};
    w.any_absorbed = w.any_expanded = mode == DSI_FORWARD_PLAN;
    w.any_selected = mode == DSI_FORWARD_PLAN && dsi_selects(e);
    for (int64_t i = 0; mode == DSI_FORWARD_RUN && i < n; i++) {
        w.any_selected |= dsi_selects(e) && r->position[i] >= (int32_t)w.config->index_topk;
        w.any_expanded |= r->expanded[i] != 0;
        w.any_absorbed |= r->expanded[i] == 0;
    }
    return w;
}

static void send(walk *w, const dsi_tensor *t, const void *values, uint64_t n_bytes) {
    dsi_engine *e = w->e;
    if (w->mode == DSI_FORWARD_PLAN || w->status != DSI_OK) return;
    w->status = e->backend->write(e->stream, t->buf, t->offset, values, n_bytes);
    if (w->status != DSI_OK)
        dsi_fail(&e->handle.error, w->status, "%s", e->backend->last_error(e->dev));
}

dsi_status dsi_forward(dsi_engine *e, dsi_forward_mode mode, uint64_t *workspace) {
    uint32_t n = mode == DSI_FORWARD_PLAN ? e->options.chunk_tokens : e->rows.n_rows;
    walk w = start(e, mode, n, 0);
    w.adapt = mode == DSI_FORWARD_PLAN ? e->adapt : dsi_adapt_begin(e);
    send(&w, &w.t.tokens, e->rows.tokens, n * sizeof *e->rows.tokens);
    send(&w, &w.t.positions, e->rows.position, n * sizeof *e->rows.position);
    send(&w, &w.t.slots, e->rows.slots, n * sizeof *e->rows.slots);
    submit(&w, DSI_OP_EMBED, (const dsi_tensor *[]){&w.t.tokens, &e->placed.embed_tokens}, 2,
           (dsi_tensor *[]){&w.t.hidden}, 1, NULL);
    tap(&w, "embed_tokens", &w.t.hidden);
    for (uint32_t i = 0; i < w.config->n_layers && w.status == DSI_OK; i++) {
        if (mode == DSI_FORWARD_RUN && dsi_step_cancelled(e)) return DSI_E_CANCELLED;
        layer(&w, i);
    }
    if (workspace && w.workspace > *workspace) *workspace = w.workspace;
    return w.status;
}

static void read_logits(walk *w, uint32_t n, float *logits) {
    const dsi_tensor *t = &w->t.logits;
    uint64_t row = (uint64_t)t->ne[0] * sizeof *logits;
    for (uint32_t i = 0; w->mode == DSI_FORWARD_RUN && w->status == DSI_OK && i < n; i++) {
        uint64_t offset = t->offset + i * (uint64_t)t->stride[1] * sizeof *logits;
        w->status =
            w->e->backend->read(w->e->stream, logits + i * (uint64_t)t->ne[0], t->buf, offset, row);
    }
}

dsi_status dsi_forward_head(dsi_engine *e, dsi_forward_mode mode, uint32_t first, uint32_t n,
                            float *logits, uint64_t *workspace) {
    walk w = start(e, mode, e->options.chunk_tokens, n);
    if (mode == DSI_FORWARD_RUN) w.head_rows = e->rows.head_rows + first; /* a plan has no rows */
    send(&w, &w.t.head_rows, w.head_rows, n * sizeof *e->rows.head_rows);
    submit(&w, DSI_OP_GATHER_ROWS, (const dsi_tensor *[]){&w.t.hidden, &w.t.head_rows}, 2,
           (dsi_tensor *[]){&w.t.head_hidden}, 1, NULL);
    rms_norm(&w, "norm", &w.t.head_hidden, &e->placed.norm, &w.t.head_normed);
    linear(&w, "lm_head", &w.t.head_normed, &e->placed.lm_head, &w.t.logits, false);
    read_logits(&w, n, logits);
    if (workspace && w.workspace > *workspace) *workspace = w.workspace;
    return w.status;
}

/* ---- The MTP block
 * ------------------------------------------------------------------------------------ */

/* Rows of `from` by rows.mtp_rows. */
static void gather(walk *w, const dsi_tensor *from, dsi_tensor *rows, dsi_tensor *to, uint32_t n) {
    if (w->mode == DSI_FORWARD_RUN) send(w, rows, w->e->rows.mtp_rows, n * sizeof(int32_t));
    submit(w, DSI_OP_GATHER_ROWS, (const dsi_tensor *[]){from, rows}, 2, (dsi_tensor *[]){to}, 1,
           NULL);
}

static dsi_status end_mtp(const walk *w, uint64_t *workspace) {
    if (workspace && w->workspace > *workspace) *workspace = w->workspace;
    return w->status;
}

dsi_status dsi_forward_mtp_states(dsi_engine *e, dsi_forward_mode mode, uint32_t n,
                                  uint64_t *workspace) {
    walk w = start(e, mode, e->options.chunk_tokens, n);
    w.is_draft = true;
    w.t.mtp_hidden.ne[1] = n;
    gather(&w, &w.t.hidden, &w.t.mtp_rows, &w.t.mtp_hidden, n);
    rms_norm(&w, "mtp.norm", &w.t.mtp_hidden, &e->placed.norm, &w.t.mtp_hidden);
    return end_mtp(&w, workspace);
}

/* What later rows attend to of the block's rows: their latents, and the indexer's keys. Nothing
 * behind the block reads the others' output, so a row that does not draft ends here. */
static void cache_mtp_rows(walk *w) {
    const dsi_config *c = w->config;
    const dsi_placed_layer *l = &w->e->placed.layers[c->n_layers];
    const bool indexed = l->index_wk.ne[0] != 0;
    dsi_tensor pages = dsi_kv_layer(w->e, c->n_layers);
    dsi_scratch *t = &w->t;
    dsi_tensor latent = columns(&t->kv, 0, c->kv_lora_rank);
    product kv_a = {"mtp.kv_a_proj_with_mqa", &l->kv_a_proj_with_mqa, NULL, &t->kv};
    product wk = {"mtp.indexer.wk", &l->index_wk, NULL, &t->index_k};
    w->layer = (int32_t)c->n_layers;
    w->any_selected = false; /* they choose nothing */
    rms_norm(w, "mtp.input_layernorm", &t->hidden, &l->input_layernorm, &t->normed);
    linears(w, &t->normed, (product[]){kv_a, wk}, indexed ? 2 : 1, false);
    rms_norm(w, "mtp.kv_a_layernorm", &latent, &l->kv_a_layernorm, &latent);
    rope(w, heads_of(&t->kv, c->kv_lora_rank, c->qk_rope_head_dim, 1, 0), c->rope_interleaved);
    kv_write(w, &t->kv, &pages, 1, c->kv_lora_rank);
    if (indexed) choose_tokens(w, l);
}

dsi_status dsi_forward_mtp_block(dsi_engine *e, dsi_forward_mode mode, uint32_t n, uint32_t n_draft,
                                 uint64_t *workspace) {
    walk w = start(e, mode, n, 0), drafting = start(e, mode, n_draft, 0);
    const int64_t hidden = w.config->hidden_size;
    w.is_draft = drafting.is_draft = true;
    send(&w, &w.t.tokens, e->rows.tokens, n * sizeof *e->rows.tokens);
    send(&w, &w.t.positions, e->rows.position, n * sizeof *e->rows.position);
    send(&w, &w.t.slots, e->rows.slots, n * sizeof *e->rows.slots);
    submit(&w, DSI_OP_EMBED, (const dsi_tensor *[]){&w.t.tokens, &e->placed.mtp_embed_tokens}, 2,
           (dsi_tensor *[]){&w.t.hidden}, 1, NULL);
    dsi_tensor embedding = columns(&w.t.mtp_concat, 0, hidden);
    dsi_tensor state = columns(&w.t.mtp_concat, hidden, hidden);
    rms_norm(&w, "mtp.enorm", &w.t.hidden, &e->placed.enorm, &embedding);
    rms_norm(&w, "mtp.hnorm", &w.t.mtp_hidden, &e->placed.hnorm, &state);
    linear(&w, "mtp.eh_proj", &w.t.mtp_concat, &e->placed.eh_proj, &w.t.hidden, false);
    if (n > n_draft || mode == DSI_FORWARD_PLAN) cache_mtp_rows(&w);
    drafting.status = w.status, drafting.workspace = w.workspace;
    if (n_draft) layer(&drafting, w.config->n_layers);
    return end_mtp(&drafting, workspace);
}

dsi_status dsi_forward_mtp_head(dsi_engine *e, dsi_forward_mode mode, uint32_t n, float *logits,
                                uint64_t *workspace) {
    walk w = start(e, mode, e->options.chunk_tokens, n);
    w.is_draft = true;
    w.t.mtp_hidden.ne[1] = n;
    gather(&w, &w.t.hidden, &w.t.mtp_rows, &w.t.head_hidden, n);
    rms_norm(&w, "mtp.shared_head.norm", &w.t.head_hidden, &e->placed.mtp_norm, &w.t.mtp_hidden);
    rms_norm(&w, "mtp.shared_head.norm", &w.t.head_hidden, &e->placed.mtp_norm, &w.t.head_normed);
    linear(&w, "mtp.shared_head.head", &w.t.head_normed, &e->placed.mtp_head, &w.t.logits, false);
    read_logits(&w, n, logits);
    return end_mtp(&w, workspace);
}
