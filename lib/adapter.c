/* adapter.c: dsi_adapter: a LoRA adapter on an engine. Its matrices are used in the mapped file;
 * the weights of the model stay as they are. */
#include "adapter.h"
#include <stdio.h>

#define MAX_SCALE 100.0f

void dsi_adapter_options_init(dsi_adapter_options *options) {
    *options = (dsi_adapter_options){.struct_size = sizeof *options, .scale = 1};
}

/* ---- Room for a step -------------------------------------------------------------------------
 */

/* Shapes for ranks up to max_rank, without memory. */
static void lay_out(const dsi_engine *e, dsi_adapt *d, uint32_t max_rank) {
    const dsi_config *c = &e->model->config;
    const int64_t rows = e->options.chunk_tokens;
    const int64_t shared = (int64_t)c->n_shared_experts * c->moe_intermediate_size;
    d->n_bytes = 0;
    d->max_rank = max_rank;
    for (int i = 0; i < DSI_ADAPTED_AT_ONCE; i++)
        dsi_scratch_take(&d->n_bytes, &d->t[i], DSI_DTYPE_F32, rows, max_rank);
    dsi_scratch_take(&d->n_bytes, &d->shared_hidden, e->act, rows,
                     c->n_routed_experts && shared ? shared : 0);
}

/* Arrays by session and by row, whose number does not change. */
static dsi_adapt *new_adapt(const dsi_engine *e) {
    DSI_MEMORY_SCOPE(SCRATCH);
    const uint64_t sessions = e->options.max_sessions, rows = e->options.chunk_tokens;
    dsi_adapt *d = dsi_sys_calloc(1, sizeof *d);
    const uint64_t per_session = sizeof *d->adapters + DSI_ADAPTED_AT_ONCE * sizeof *d->parts[0] +
                                 sizeof *d->first + sizeof *d->n_rows;
    uint8_t *block = dsi_sys_calloc(sessions * per_session + 2 * rows * sizeof *d->rows, 1);
    if (!d || !block) {
        dsi_sys_free(d);
        dsi_sys_free(block);
        return NULL;
    }
    d->block = block;
    d->adapters = (const dsi_adapter **)(void *)block;
    block += sessions * sizeof *d->adapters;
    for (int i = 0; i < DSI_ADAPTED_AT_ONCE; i++, block += sessions * sizeof *d->parts[0])
        d->parts[i] = (dsi_low_rank_part *)(void *)block;
    d->first = (uint32_t *)(void *)block;
    d->n_rows = d->first + sessions;
    d->rows = (int32_t *)(void *)(d->n_rows + sessions);
    d->part_of = d->rows + rows;
    return d;
}

void dsi_adapt_free(dsi_engine *e) {
    if (!e->adapt) return;
    e->backend->buf_free(e->adapt->buf);
    dsi_sys_free(e->adapt->block);
    dsi_sys_free(e->adapt);
    e->adapt = NULL;
}

/* The whole plan with more bytes for adapters, against the cap. */
static dsi_status check_cap(const dsi_engine *e, uint64_t more, dsi_error *error) {
    const dsi_memory_plan *p = &e->plan;
    const uint64_t cap = e->options.max_memory;
    uint64_t total;
    if (!cap || (dsi_add_ok(p->n_bytes_total, more, &total) && total <= cap)) return DSI_OK;
    return dsi_fail(error, DSI_E_MEMORY_CAP,
                    "the adapter needs %.1f MiB, its room in a step included, beside %.1f MiB that "
                    "are planned; max_memory is %.1f MiB. Remedies: close adapters, a smaller rank "
                    "or chunk_tokens (now %u), or a larger max_memory",
                    (double)more / (1 << 20), (double)p->n_bytes_total / (1 << 20),
                    (double)cap / (1 << 20), e->options.chunk_tokens);
}

static void count_bytes(dsi_engine *e, uint64_t scratch, uint64_t weights) {
    e->plan.n_bytes_scratch += scratch;
    e->plan.n_bytes_weights += weights;
    e->plan.n_bytes_total += scratch + weights;
}

/* What is made anew for a larger rank. */
typedef struct growth {
    dsi_adapt *adapt;   /* the engine's, or a new one */
    dsi_adapt before;   /* its shapes */
    uint64_t workspace; /* bytes; 0: the one that is there is large enough */
    dsi_buf *buf, *new_workspace;
} growth;

static dsi_status allocate_growth(dsi_engine *e, growth *g, dsi_error *error) {
    DSI_MEMORY_SCOPE(SCRATCH);
    const dsi_backend *b = e->backend;
    dsi_status st = b->buf_alloc(e->dev, DSI_BUF_DEVICE, g->adapt->n_bytes, &g->buf);
    if (st == DSI_OK && g->workspace)
        st = b->buf_alloc(e->dev, DSI_BUF_DEVICE, g->workspace, &g->new_workspace);
    if (st != DSI_OK) dsi_fail(error, st, "%s", b->last_error(e->dev));
    return st;
}

/* How large the workspace of a step has to be with such ranks. */
static dsi_status plan_growth(dsi_engine *e, growth *g, dsi_error *error) {
    uint64_t workspace = e->scratch.n_bytes_workspace;
    const dsi_error message = e->handle.error; /* that of the caller's last call stays */
    dsi_adapt *was = e->adapt;
    e->adapt = g->adapt;
    dsi_status st = dsi_forward(e, DSI_FORWARD_PLAN, &workspace);
    e->adapt = was;
    if (st != DSI_OK) *error = e->handle.error;
    e->handle.error = message;
    g->workspace = workspace > e->scratch.n_bytes_workspace ? workspace : 0;
    return st;
}

static void take_growth(dsi_engine *e, growth *g) {
    dsi_adapt *d = g->adapt;
    e->backend->buf_free(d->buf);
    d->buf = g->buf;
    for (int i = 0; i < DSI_ADAPTED_AT_ONCE; i++) d->t[i].buf = d->buf;
    d->shared_hidden.buf = d->buf;
    count_bytes(e, d->n_bytes - g->before.n_bytes, 0);
    e->adapt = d;
    if (!g->workspace) return;
    e->backend->buf_free(e->scratch.workspace);
    e->scratch.workspace = g->new_workspace;
    count_bytes(e, g->workspace - e->scratch.n_bytes_workspace, 0);
    e->scratch.n_bytes_workspace = g->workspace;
}

/* Makes room in a step for an adapter of `rank` whose matrices have `weights` bytes. The lock is
 * held: no step runs. */
static dsi_status grow(dsi_engine *e, uint32_t rank, uint64_t weights, dsi_error *error) {
    growth g = {.adapt = e->adapt ? e->adapt : new_adapt(e)};
    if (!g.adapt) return dsi_fail(error, DSI_E_NOMEM, "no memory for the rows of adapters");
    dsi_status st = DSI_OK;
    g.before = *g.adapt;
    if (rank > g.adapt->max_rank) {
        lay_out(e, g.adapt, rank);
        st = plan_growth(e, &g, error);
    }
    uint64_t more = weights + g.adapt->n_bytes - g.before.n_bytes;
    if (g.workspace) more += g.workspace - e->scratch.n_bytes_workspace;
    if (st == DSI_OK) st = check_cap(e, more, error);
    if (st == DSI_OK && rank > g.before.max_rank) {
        st = allocate_growth(e, &g, error);
        if (st == DSI_OK) take_growth(e, &g);
    }
    if (st == DSI_OK) {
        count_bytes(e, 0, weights);
        return st;
    }
    e->backend->buf_free(g.buf);
    e->backend->buf_free(g.new_workspace);
    if (e->adapt) {
        *e->adapt = g.before;
    } else {
        dsi_sys_free(g.adapt->block);
        dsi_sys_free(g.adapt);
    }
    return st;
}

/* ---- Matrices on the device ------------------------------------------------------------------
 */

static dsi_status to_device(dsi_engine *e, const void *data, uint64_t n_bytes, dsi_buf **out,
                            dsi_error *error) {
    DSI_MEMORY_SCOPE(WEIGHTS);
    const dsi_backend *b = e->backend;
    dsi_status st;
    if (n_bytes == 0) return DSI_OK;
    if (DSI_HAS(b, buf_import)) {
        st = b->buf_import(e->dev, data, n_bytes, out);
    } else {
        st = b->buf_alloc(e->dev, DSI_BUF_WEIGHTS, n_bytes, out);
        if (st == DSI_OK) st = b->write(e->stream, *out, 0, data, n_bytes);
    }
    return st == DSI_OK ? st : dsi_fail(error, st, "%s", b->last_error(e->dev));
}

/* Where a matrix lies: in the file or in the copies. */
static dsi_tensor place(const dsi_adapter *a, const uint8_t *data, dsi_dtype dtype, int64_t rows,
                        int64_t columns) {
    const dsi_adapter_weights *w = &a->weights;
    const uint8_t *file = w->checkpoint.shards[0].map.data;
    bool copied = data >= w->copies && data < w->copies + w->n_bytes_copies;
    return (dsi_tensor){.struct_size = sizeof(dsi_tensor),
                        .dtype = dtype,
                        .n_dims = 2,
                        .ne = {columns, rows},
                        .stride = {1, columns},
                        .buf = copied ? a->copies : a->file,
                        .offset = (uint64_t)(data - (copied ? w->copies : file))};
}

static dsi_status place_all(dsi_adapter *a, dsi_error *error) {
    dsi_engine *e = a->engine;
    const dsi_adapter_weights *w = &a->weights;
    const dsi_map *map = &w->checkpoint.shards[0].map;
    a->placed = dsi_sys_calloc((uint64_t)w->n_layers * DSI_N_ADAPTED, sizeof *a->placed);
    if (!a->placed) return dsi_fail(error, DSI_E_NOMEM, "%s: no memory for its table", a->path);
    dsi_status st = to_device(e, map->data, map->n_bytes, &a->file, error);
    if (st == DSI_OK) st = to_device(e, w->copies, w->n_bytes_copies, &a->copies, error);
    for (uint32_t i = 0; st == DSI_OK && i < w->n_layers * DSI_N_ADAPTED; i++) {
        const dsi_adapter_pair *p = &w->pairs[i];
        if (!p->a) continue;
        a->placed[i].a = place(a, p->a, p->a_dtype, p->rank, p->n_in);
        a->placed[i].b_t = place(a, p->b_t, p->b_dtype, p->rank, p->n_out);
        a->placed[i].scale = p->scale;
    }
    return st;
}

/* ---- Open and close --------------------------------------------------------------------------
 */

/* "q_proj, o_proj": the ends of the names, each once. */
static void list_targets(dsi_adapter *a) {
    const dsi_adapter_weights *w = &a->weights;
    size_t n = 0;
    for (uint32_t code = 0; code < DSI_N_ADAPTED; code++) {
        bool there = false;
        for (uint32_t l = 0; l < w->n_layers && !there; l++)
            there = w->pairs[l * DSI_N_ADAPTED + code].a != NULL;
        const char *name = strrchr(dsi_adapted_name(code), '.') + 1;
        if (!there || strstr(a->targets, name)) continue;
        n += (size_t)snprintf(a->targets + n, sizeof a->targets - n, "%s%s", n ? ", " : "", name);
    }
}

/* The name of the folder, whatever slashes stand behind it. */
static void find_name(dsi_adapter *a) {
    size_t n = strlen(a->path);
    while (n > 1 && a->path[n - 1] == '/') a->path[--n] = 0;
    const char *slash = strrchr(a->path, '/');
    a->name = slash && slash[1] ? slash + 1 : a->path;
}

static dsi_status open_parts(dsi_adapter *a, const char *path, dsi_error *error) {
    dsi_engine *e = a->engine;
    const dsi_model *m = e->model;
    a->path = dsi_sys_strdup(path, strlen(path));
    if (!a->path) return dsi_fail(error, DSI_E_NOMEM, "no memory for the name of an adapter");
    find_name(a);
    dsi_status st = dsi_adapter_weights_open(path, &m->config, &m->weights,
                                             (double)a->options.scale, &a->weights, error);
    if (st != DSI_OK) return st;
    list_targets(a);
    if (a->weights.config.warning[0])
        dsi_logf(&m->log, DSI_LOG_WARN, "adapter", "%s", a->weights.config.warning);
    st = place_all(a, error);
    if (st != DSI_OK) return st;
    pthread_mutex_lock(&e->lock);
    if (e->closed)
        st = dsi_fail(error, DSI_E_STATE, "dsi_adapter_open: the engine was closed");
    else
        st = grow(e, a->weights.max_rank, a->weights.n_bytes_used, error);
    pthread_mutex_unlock(&e->lock);
    if (st != DSI_OK) dsi_fail_prefix(error, a->path);
    return st;
}

static void free_adapter(dsi_adapter *a) {
    dsi_engine *e = a->engine;
    e->backend->buf_free(a->file);
    e->backend->buf_free(a->copies);
    dsi_adapter_weights_close(&a->weights);
    dsi_sys_free(a->placed);
    dsi_sys_free(a->path);
    dsi_sys_free(a);
    dsi_engine_release(e);
}

dsi_status dsi_adapter_open(dsi_engine *engine, const char *path,
                            const dsi_adapter_options *options, dsi_adapter **out) {
    DSI_MEMORY_SCOPE(WEIGHTS);
    dsi_error *error = dsi_thread_error();
    dsi_adapter_options all;
    if (out) *out = NULL;
    if (!engine || !path || !out)
        return dsi_fail(error, DSI_E_ARG, "dsi_adapter_open: engine, path or adapter is NULL");
    if (dsi_is_child(engine->process))
        return dsi_fail_child(error, "dsi_adapter_open", engine->process);
    dsi_adapter_options_init(&all);
    dsi_status st = dsi_copy_options(&all, sizeof all, options, "dsi_adapter_options", error);
    if (st != DSI_OK) return st;
    if (!(all.scale >= -MAX_SCALE && all.scale <= MAX_SCALE))
        return dsi_fail(error, DSI_E_ARG, "scale is %g; it may be -100 to 100", (double)all.scale);
    dsi_adapter *a = dsi_sys_calloc(1, sizeof *a);
    if (!a) return dsi_fail(error, DSI_E_NOMEM, "no memory for an adapter handle");
    a->process = engine->process;
    a->engine = engine;
    a->options = all;
    a->n_holders = 1;
    atomic_fetch_add(&engine->n_holders, 1);
    st = open_parts(a, path, error);
    if (st == DSI_OK)
        *out = a;
    else
        free_adapter(a);
    return st;
}

void dsi_adapter_hold(dsi_adapter *a) {
    if (a) atomic_fetch_add(&a->n_holders, 1);
}

void dsi_adapter_release(dsi_adapter *a) {
    if (!a || atomic_fetch_sub(&a->n_holders, 1) != 1) return;
    dsi_engine *e = a->engine;
    bool child = dsi_is_child(a->process);
    if (!child) pthread_mutex_lock(&e->lock);
    e->plan.n_bytes_weights -= a->weights.n_bytes_used;
    e->plan.n_bytes_total -= a->weights.n_bytes_used;
    if (!child) pthread_mutex_unlock(&e->lock);
    free_adapter(a);
}

void dsi_adapter_close(dsi_adapter *a) { dsi_adapter_release(a); }

dsi_status dsi_adapter_get_info(const dsi_adapter *adapter, dsi_adapter_info *info) {
    dsi_adapter *a = (dsi_adapter *)(uintptr_t)adapter; /* only its message is written */
    if (!a || !info || info->struct_size < sizeof info->struct_size)
        return dsi_fail(a ? &a->handle.error : dsi_thread_error(), DSI_E_ARG,
                        "dsi_adapter_get_info: adapter is NULL, or info->struct_size is not set: "
                        "set it to sizeof *info first");
    if (dsi_is_child(a->process))
        return dsi_fail_child(&a->handle.error, "dsi_adapter_get_info", a->process);
    dsi_adapter_info all = {.max_rank = a->weights.max_rank,
                            .n_weights = a->weights.n_pairs,
                            .n_sessions = a->n_holders - 1,
                            .n_bytes = a->weights.n_bytes,
                            .scale = a->options.scale,
                            .name = a->name,
                            .path = a->path,
                            .targets = a->targets};
    dsi_copy_out(info, info->struct_size, &all, sizeof all);
    return DSI_OK;
}
