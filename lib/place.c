/* place.c: puts the weights on the engine's device. Matrices stay where the loader mapped them (the
 * CPU imports the mapping) or are copied; norms and biases, a few MB in all, are widened to f32. */
#include "base/convert.h"
#include "internal.h"

typedef struct placer {
    dsi_engine *engine;
    bool dry_run;
    uint64_t vectors_used; /* bytes of the f32 vectors so far */
    uint64_t copy_used;    /* bytes of the copied matrices so far */
    dsi_status status;     /* of copying */
} placer;

/* The imported buffer that holds `data`, and its offset there. */
static dsi_buf *find_buf(const placer *p, uint32_t shard, const void *data, uint64_t *offset) {
    const dsi_placement *placed = &p->engine->placed;
    const dsi_map *map = &p->engine->model->checkpoint.shards[shard].map;
    const uint8_t *byte = data;
    if (byte >= map->data && byte < map->data + map->n_bytes) {
        *offset = (uint64_t)(byte - map->data);
        return placed->shards[shard];
    }
    *offset = (uint64_t)(byte - (const uint8_t *)p->engine->model->weights.copies);
    return placed->shards[placed->n_shards - 1];
}

/* Rows to the next place in the copy; the place. */
static uint64_t copy_rows(placer *p, const void *from, uint64_t n_rows, uint64_t row_bytes) {
    dsi_engine *e = p->engine;
    const dsi_model_options *o = &e->model->options;
    uint64_t at = p->copy_used, n = n_rows * row_bytes; /* of a tensor that fits into its file */
    p->copy_used += (n + 63) / 64 * 64;
    if (p->dry_run || p->status != DSI_OK) return at;
    p->status = DSI_HAS(e->backend, write_rows)
                    ? e->backend->write_rows(e->stream, e->placed.copy, at, from, n_rows, row_bytes)
                    : e->backend->write(e->stream, e->placed.copy, at, from, n);
    if (o->progress)
        o->progress(o->progress_user, DSI_STAGE_LOAD, p->copy_used, e->placed.n_bytes_copy);
    return at;
}

/* What has been copied is of no more use in the mapping, where it would count twice. */
static void drop_copied(const placer *p, const dsi_weight *w, uint64_t n) {
    const dsi_map *map = &p->engine->model->checkpoint.shards[w->shard].map;
    const uint8_t *from = w->data;
    bool is_mapped =
        from >= map->data && from < map->data + map->n_bytes; /* no copy of the loader */
    if (!p->dry_run && is_mapped) dsi_sys_drop_file_pages(map, (uint64_t)(from - map->data), n);
}

static void copy_matrix(placer *p, const dsi_weight *w, dsi_tensor *t) {
    int64_t row = 0; /* counted before, when the checkpoint was opened */
    dsi_dtype_row_bytes(w->dtype, t->stride[1], &row);
    t->offset = copy_rows(p, w->data, (uint64_t)w->n_out, (uint64_t)row);
    drop_copied(p, w, (uint64_t)(w->n_out * row));
    uint64_t n_scale = (uint64_t)(w->scale_rows * w->scale_columns);
    if (w->scale)
        t->scale_offset = copy_rows(p, w->scale, n_scale, dsi_dtype_bytes(w->scale_dtype));
    t->buf = p->engine->placed.copy;
    if (w->scale) t->scale = p->engine->placed.copy;
}

static void place_matrix(placer *p, const dsi_weight *w, dsi_tensor *t) {
    if (!w->name) return;
    *t = (dsi_tensor){.struct_size = sizeof *t,
                      .dtype = w->dtype,
                      .n_dims = 2,
                      .ne = {w->n_in, w->n_out},
                      .stride = {1, w->dtype == DSI_DTYPE_I4 ? (w->n_in + 7) / 8 * 8 : w->n_in},
                      .scale_kind = w->scale_kind,
                      .scale_dtype = w->scale_dtype,
                      .scale_group = w->scale_group};
    if (p->engine->placed.is_copy) copy_matrix(p, w, t);
    if (p->dry_run || p->engine->placed.is_copy) return;
    t->buf = find_buf(p, w->shard, w->data, &t->offset);
    if (w->scale) t->scale = find_buf(p, w->scale_shard, w->scale, &t->scale_offset);
}

static dsi_status place_vector(placer *p, const dsi_weight *w, dsi_tensor *t) {
    dsi_engine *e = p->engine;
    if (!w->name) return DSI_OK;
    *t = (dsi_tensor){.struct_size = sizeof *t,
                      .dtype = DSI_DTYPE_F32,
                      .n_dims = 1,
                      .ne = {w->n_in},
                      .stride = {1},
                      .offset = p->vectors_used};
    uint64_t n = (uint64_t)w->n_in;
    p->vectors_used += (n * 4 + 63) / 64 * 64;
    if (p->dry_run) return DSI_OK;
    float *values = dsi_sys_calloc(n, sizeof *values);
    if (!values) return dsi_fail(&e->handle.error, DSI_E_NOMEM, "no memory to widen %s", w->name);
    dsi_status st = DSI_OK;
    if (!dsi_widen(w->dtype, w->data, values, n))
        st = dsi_fail(&e->handle.error, DSI_E_UNSUPPORTED,
                      "%s has type %s; norms and biases may "
                      "be BF16, F16 or F32",
                      w->name, dsi_dtype_name(w->dtype));
    t->buf = e->placed.vectors;
    if (st == DSI_OK) st = e->backend->write(e->stream, t->buf, t->offset, values, n * 4);
    dsi_sys_free(values);
    return st;
}

static void place_mlp(placer *p, const dsi_mlp_weights *mlp, dsi_tensor *three) {
    place_matrix(p, &mlp->gate_proj, &three[0]);
    place_matrix(p, &mlp->up_proj, &three[1]);
    place_matrix(p, &mlp->down_proj, &three[2]);
}

static void place_experts(placer *p, const dsi_layer_weights *l, dsi_placed_layer *to) {
    uint32_t n = p->engine->model->config.n_routed_experts;
    for (uint32_t i = 0; i < n; i++) place_mlp(p, &l->experts[i], to->experts + 3 * i);
    if (l->shared_experts.gate_proj.name) place_mlp(p, &l->shared_experts, to->experts + 3 * n);
    to->n_moe_in = 3 + 3 * (n + (l->shared_experts.gate_proj.name ? 1 : 0));
    for (uint32_t i = 3; i < to->n_moe_in; i++) to->moe_in[i] = &to->experts[i - 3];
}

static dsi_status place_layer(placer *p, const dsi_layer_weights *l, dsi_placed_layer *to) {
    struct {
        const dsi_weight *from;
        dsi_tensor *to;
    } matrices[] = {{&l->q_proj, &to->q_proj},
                    {&l->q_a_proj, &to->q_a_proj},
                    {&l->q_b_proj, &to->q_b_proj},
                    {&l->kv_a_proj_with_mqa, &to->kv_a_proj_with_mqa},
                    {&l->kv_b_proj, &to->kv_b_proj},
                    {&l->k_b_proj, &to->k_b_proj},
                    {&l->v_b_proj, &to->v_b_proj},
                    {&l->o_proj, &to->o_proj},
                    {&l->index_wq_b, &to->index_wq_b},
                    {&l->index_wk, &to->index_wk},
                    {&l->index_weights_proj, &to->index_weights_proj},
                    {&l->k_proj, &to->k_proj},
                    {&l->v_proj, &to->v_proj},
                    {&l->gate, &to->gate}};
    struct {
        const dsi_weight *from;
        dsi_tensor *to;
    } vectors[] = {{&l->input_layernorm, &to->input_layernorm},
                   {&l->post_attention_layernorm, &to->post_attention_layernorm},
                   {&l->q_a_layernorm, &to->q_a_layernorm},
                   {&l->kv_a_layernorm, &to->kv_a_layernorm},
                   {&l->index_k_norm, &to->index_k_norm},
                   {&l->index_k_norm_bias, &to->index_k_norm_bias},
                   {&l->q_bias, &to->q_bias},
                   {&l->k_bias, &to->k_bias},
                   {&l->v_bias, &to->v_bias},
                   {&l->e_score_correction_bias, &to->e_score_correction_bias}};
    for (size_t i = 0; i < sizeof matrices / sizeof matrices[0]; i++)
        place_matrix(p, matrices[i].from, matrices[i].to);
    dsi_status st = DSI_OK;
    for (size_t i = 0; st == DSI_OK && i < sizeof vectors / sizeof vectors[0]; i++)
        st = place_vector(p, vectors[i].from, vectors[i].to);
    if (l->is_moe)
        place_experts(p, l, to);
    else
        place_mlp(p, &l->mlp, to->mlp);
    return st;
}

static dsi_status import_shards(placer *p) {
    DSI_MEMORY_SCOPE(WEIGHTS);
    dsi_engine *e = p->engine;
    const dsi_model *model = e->model;
    dsi_status st = DSI_OK;
    bool in_place = !e->placed.is_copy;
    if (!in_place)
        st =
            e->backend->buf_alloc(e->dev, DSI_BUF_WEIGHTS, e->placed.n_bytes_copy, &e->placed.copy);
    for (uint32_t i = 0; in_place && st == DSI_OK && i + 1 < e->placed.n_shards; i++)
        st = e->backend->buf_import(e->dev, model->checkpoint.shards[i].map.data,
                                    model->checkpoint.shards[i].map.n_bytes, &e->placed.shards[i]);
    if (in_place && st == DSI_OK)
        st = e->backend->buf_import(e->dev, model->weights.copies, model->weights.n_bytes_copies,
                                    &e->placed.shards[e->placed.n_shards - 1]);
    if (st == DSI_OK)
        st = e->backend->buf_alloc(e->dev, DSI_BUF_DEVICE, e->placed.n_bytes_vectors,
                                   &e->placed.vectors);
    return st;
}

/* GGUF files of Llama 3 hold the result of its frequency scaling, not what it is made from. */
static dsi_status divide_inv_freq(dsi_engine *e, float *values, uint32_t n) {
    const dsi_weight *w = &e->model->weights.rope_freqs;
    if (!w->name) return DSI_OK;
    float *divisors = dsi_sys_calloc(n, sizeof *divisors);
    if (!divisors) return dsi_fail(&e->handle.error, DSI_E_NOMEM, "no memory for the rope");
    bool good = dsi_widen(w->dtype, w->data, divisors, n);
    for (uint32_t i = 0; i < n && good; i++) {
        good = divisors[i] > 0 && divisors[i] <= 1e6f;
        if (good) values[i] /= divisors[i];
    }
    dsi_sys_free(divisors);
    if (good) return DSI_OK;
    return dsi_fail(&e->handle.error, DSI_E_MODEL,
                    "%s: rope_freqs.weight holds values that are no divisors from 0 to 1e6",
                    e->model->checkpoint.shards[w->shard].path);
}

/* The rope's frequencies go last into the vectors. */
static dsi_status place_inv_freq(placer *p) {
    dsi_engine *e = p->engine;
    const dsi_config *c = &e->model->config;
    uint32_t dim = c->arch->attention == DSI_ATTENTION_MLA ? c->qk_rope_head_dim : c->head_dim;
    e->placed.inv_freq = (dsi_tensor){.struct_size = sizeof(dsi_tensor),
                                      .dtype = DSI_DTYPE_F32,
                                      .n_dims = 1,
                                      .ne = {dim / 2},
                                      .stride = {1},
                                      .offset = p->vectors_used};
    p->vectors_used += (dim * 2 + 63) / 64 * 64;
    if (p->dry_run) return DSI_OK;
    float *values = dsi_sys_calloc(dim / 2, sizeof *values);
    if (!values) return dsi_fail(&e->handle.error, DSI_E_NOMEM, "no memory for the rope");
    dsi_rope_inv_freq(c, dim, values);
    dsi_status st = divide_inv_freq(e, values, dim / 2);
    e->placed.inv_freq.buf = e->placed.vectors;
    if (st == DSI_OK)
        st = e->backend->write(e->stream, e->placed.vectors, e->placed.inv_freq.offset, values,
                               dim * 2);
    dsi_sys_free(values);
    return st;
}

static dsi_status allocate(dsi_engine *e) {
    const dsi_config *c = &e->model->config;
    dsi_placement *placed = &e->placed;
    const uint32_t n_layers = e->n_kv_layers;
    uint64_t per_layer = 3ull * (c->n_routed_experts + 1), n_tensors = per_layer * n_layers;
    placed->n_shards = e->model->checkpoint.n_shards + 1;
    placed->layers = dsi_sys_calloc(n_layers, sizeof *placed->layers);
    placed->expert_storage = dsi_sys_calloc(n_tensors, sizeof(dsi_tensor));
    placed->moe_in_storage =
        dsi_sys_calloc(n_tensors + 3ull * n_layers, sizeof *placed->moe_in_storage);
    placed->shards = dsi_sys_calloc(placed->n_shards, sizeof *placed->shards);
    if (!placed->layers || !placed->expert_storage || !placed->moe_in_storage || !placed->shards)
        return dsi_fail(&e->handle.error, DSI_E_NOMEM, "no memory for the table of weights");
    for (uint32_t i = 0; i < n_layers; i++) {
        placed->layers[i].experts = placed->expert_storage + i * per_layer;
        placed->layers[i].moe_in = placed->moe_in_storage + i * (per_layer + 3);
    }
    return DSI_OK;
}

/* The block that drafts, as the layer behind the last one. */
static dsi_status place_mtp(placer *p) {
    dsi_engine *e = p->engine;
    const dsi_mtp_weights *m = &e->model->weights.mtp;
    dsi_placement *to = &e->placed;
    to->mtp_embed_tokens = to->embed_tokens, to->mtp_head = to->lm_head;
    place_matrix(p, &m->embed_tokens, &to->mtp_embed_tokens);
    place_matrix(p, &m->head, &to->mtp_head);
    place_matrix(p, &m->eh_proj, &to->eh_proj);
    dsi_status st = place_vector(p, &m->enorm, &to->enorm);
    if (st == DSI_OK) st = place_vector(p, &m->hnorm, &to->hnorm);
    if (st == DSI_OK) st = place_vector(p, &m->norm, &to->mtp_norm);
    return st == DSI_OK ? place_layer(p, &m->layer, &to->layers[e->model->config.n_layers]) : st;
}

dsi_status dsi_place_weights(dsi_engine *e, bool dry_run) {
    const dsi_weights *w = &e->model->weights;
    placer p = {.engine = e, .dry_run = dry_run, .status = DSI_OK};
    /* tied: one matrix, of which there is one copy */
    bool tied = w->lm_head.data == w->embed_tokens.data;
    dsi_status st = dry_run ? allocate(e) : import_shards(&p);
    if (st != DSI_OK) return st;
    place_matrix(&p, &w->embed_tokens, &e->placed.embed_tokens);
    if (tied)
        e->placed.lm_head = e->placed.embed_tokens;
    else
        place_matrix(&p, &w->lm_head, &e->placed.lm_head);
    st = place_vector(&p, &w->norm, &e->placed.norm);
    for (uint32_t i = 0; st == DSI_OK && i < e->model->config.n_layers; i++)
        st = place_layer(&p, &w->layers[i], &e->placed.layers[i]);
    if (st == DSI_OK && e->options.draft_tokens) st = place_mtp(&p);
    if (st == DSI_OK) st = place_inv_freq(&p);
    e->placed.n_bytes_vectors = p.vectors_used;
    if (e->placed.is_copy && dry_run) e->placed.n_bytes_copy = p.copy_used;
    return st == DSI_OK ? p.status : st;
}

void dsi_unplace_weights(dsi_engine *e) {
    for (uint32_t i = 0; e->placed.shards && i < e->placed.n_shards; i++)
        e->backend->buf_free(e->placed.shards[i]);
    if (e->backend) e->backend->buf_free(e->placed.vectors);
    if (e->backend) e->backend->buf_free(e->placed.copy);
    dsi_sys_free(e->placed.shards);
    dsi_sys_free(e->placed.layers);
    dsi_sys_free(e->placed.expert_storage);
    dsi_sys_free((void *)e->placed.moe_in_storage);
    e->placed = (dsi_placement){0};
}
