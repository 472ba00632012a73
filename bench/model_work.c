/* model_work.c: sessions with a context of a wanted length, and what a step reads. The one part of
 * dsi-bench that looks behind the handles of the library. */
#include "model.h"

#include "../lib/internal.h"
#include <string.h>

enum { COMPUTED_AT_MOST = 512, COPIED = DSI_PROMPT_BLOCK };

dsi_status model_append_random(model_run *r, dsi_session *session, uint32_t n_tokens) {
    dsi_status status = DSI_OK;
    for (uint32_t i = 0; status == DSI_OK && i < n_tokens; i++) {
        int32_t token = (int32_t)(dsi_mix64(r->random) % r->info.vocab_size);
        r->random += DSI_MIX64_STEP;
        status = dsi_session_append(session, &token, 1);
    }
    return status;
}

dsi_status model_drain(model_side *side, uint32_t n_sessions, const char *what) {
    size_t most = 0;
    for (;;) {
        size_t queued = 0;
        for (uint32_t i = 0; i < n_sessions; i++) queued += dsi_session_n_queued(side->sessions[i]);
        if (queued > most) most = queued;
        if (what && most) bench_progress(what, most - queued, most);
        if (!queued) return DSI_OK;
        dsi_status status = dsi_engine_step(side->engine, side->sessions, n_sessions, NULL);
        if (status != DSI_OK) return status;
    }
}

/* ---- Context --------------------------------------------------------------------------------- */

static dsi_status copy_page(dsi_engine *e, int32_t from, int32_t to) {
    dsi_status status = DSI_OK;
    for (uint32_t i = 0; status == DSI_OK && i < dsi_kv_areas(e); i++) {
        const dsi_tensor area = dsi_kv_area(e, i);
        const uint64_t n = dsi_kv_page_bytes(&area);
        status =
            e->backend->read(e->stream, e->rows.page, e->kv, area.offset + (uint64_t)from * n, n);
        if (status == DSI_OK)
            status = e->backend->write(e->stream, e->kv, area.offset + (uint64_t)to * n,
                                       e->rows.page, n);
    }
    return status;
}

/* The computed rows of the session again and again, each time in pages of its own, until it holds
 * `depth` tokens, as a prompt that was computed in one piece. What a step does with a cached row
 * does not depend on the numbers in it, and reading memory does not either. */
static dsi_status copy_context(model_run *r, dsi_session *s, uint32_t depth) {
    dsi_engine *e = s->engine;
    uint32_t n_source = s->n_tokens / DSI_PAGE_ROWS;
    pthread_mutex_lock(&e->lock);
    dsi_status status = dsi_session_reserve(s, depth);
    for (uint32_t p = n_source; status == DSI_OK && p < s->n_pages; p++)
        status = copy_page(e, s->pages[p % n_source], s->pages[p]);
    if (status == DSI_OK) {
        for (uint32_t i = s->n_tokens; i < depth; i++, r->random += DSI_MIX64_STEP)
            s->tokens[i] = (int32_t)(dsi_mix64(r->random) % r->info.vocab_size);
        memset(s->sampled + s->n_tokens, 0, depth - s->n_tokens);
        s->n_tokens = s->n_total = depth;
        dsi_session_seal(s);
    }
    pthread_mutex_unlock(&e->lock);
    return status;
}

dsi_status model_fill(model_run *r, model_side *side, uint32_t index, uint32_t depth) {
    dsi_session *s = side->sessions[index];
    uint32_t have = (uint32_t)(dsi_session_n_tokens(s) + dsi_session_n_queued(s));
    dsi_status status = dsi_session_rewind(s, have < depth ? have : depth);
    bool copy = depth > COMPUTED_AT_MOST && strcmp(r->options->fill, "copy") == 0;
    uint32_t computed = copy ? COPIED : depth;
    dsi_session *alone = side->sessions[0];
    side->sessions[0] = s; /* steps run over the first sessions */
    if (have < depth && have > computed) {
        status = dsi_session_rewind(s, computed);
        have = computed;
    }
    if (status == DSI_OK && have < computed) status = model_append_random(r, s, computed - have);
    if (status == DSI_OK) status = model_drain(side, 1, depth > have ? "context" : NULL);
    side->sessions[0] = alone;
    if (status == DSI_OK && dsi_session_n_tokens(s) < depth) status = copy_context(r, s, depth);
    return status;
}

/* ---- What a step reads ----------------------------------------------------------------------- */

double model_kv_bytes(const model_side *side, double n_cached) {
    const dsi_engine *e = side->engine;
    const dsi_config *c = &e->model->config;
    const dsi_tensor area = dsi_kv_layer(e, 0);
    const double latents = (double)dsi_kv_page_bytes(&area) / DSI_PAGE_ROWS * c->n_layers;
    const double keys = (double)dsi_kv_row_bytes(e, c->n_layers) - latents;
    const bool chooses = c->arch->indexer && n_cached > c->index_topk;
    return (chooses ? c->index_topk : n_cached) * latents + (chooses ? n_cached * keys : 0);
}

uint64_t model_head_params(const model_run *r) {
    return (uint64_t)r->info.vocab_size * r->info.hidden_size;
}

uint64_t model_weight_bytes(const dsi_weight *w) {
    int64_t row = 0;
    dsi_dtype_row_bytes(w->dtype, w->n_in, &row);
    return (uint64_t)(w->n_out * row) +
           (uint64_t)(w->scale_rows * w->scale_columns) * dsi_dtype_bytes(w->scale_dtype);
}

typedef struct expert_count {
    dsi_engine *engine;
    uint64_t n_layers, n_experts; /* seen: layers of steps, distinct experts in them */
    int64_t more_bytes;           /* than those of one token */
} expert_count;

/* Called behind the router of every layer: the experts are in their scratch tensor then. */
static void count_layer(void *user, const char *name, int32_t layer, const float *values,
                        size_t n_rows, size_t n_columns) {
    expert_count *count = user;
    dsi_engine *e = count->engine;
    const dsi_tensor *t = &e->scratch.expert_ids;
    uint8_t seen[1024] = {0}; /* the most experts of a layer */
    int32_t ids[1024];
    (void)values;
    if (strcmp(name, "mlp.gate.weights") != 0) return;
    if (layer < 0 || (uint32_t)layer >= e->model->config.n_layers) return; /* a draft */
    uint32_t distinct = 0;
    for (size_t row = 0; row < n_rows; row++) {
        uint64_t at = t->offset + row * (uint64_t)t->stride[1] * sizeof *ids;
        if (e->backend->read(e->stream, ids, e->scratch.buf, at, n_columns * sizeof *ids)) return;
        for (size_t i = 0; i < n_columns; i++) {
            uint32_t id = (uint32_t)ids[i] % 1024;
            distinct += !seen[id];
            seen[id] = 1;
        }
    }
    const dsi_mlp_weights *one = &e->model->weights.layers[layer].experts[0];
    int64_t bytes =
        (int64_t)(model_weight_bytes(&one->gate_proj) + model_weight_bytes(&one->up_proj) +
                  model_weight_bytes(&one->down_proj));
    count->more_bytes += ((int64_t)distinct - (int64_t)n_columns) * bytes;
    count->n_experts += distinct;
    count->n_layers++;
}

dsi_status model_count_experts(model_run *r, model_side *side, uint32_t batch, uint32_t n_steps,
                               double *experts, uint64_t *bytes) {
    static int32_t tokens[MODEL_BATCH][16];
    expert_count count = {.engine = side->engine};
    dsi_status status = DSI_OK;
    if (n_steps > 16) n_steps = 16;
    for (uint32_t i = 0; status == DSI_OK && i < batch; i++) {
        const int32_t *all;
        size_t n;
        status = dsi_session_tokens(side->sessions[i], &all, &n);
        memcpy(tokens[i], all + n - n_steps, n_steps * sizeof **tokens);
        if (status == DSI_OK) status = dsi_session_rewind(side->sessions[i], n - n_steps);
    }
    if (status == DSI_OK) status = model_drain(side, batch, NULL);
    if (status == DSI_OK) status = dsi_engine_set_tap(side->engine, count_layer, &count);
    for (uint32_t step = 0; status == DSI_OK && step < n_steps; step++) {
        for (uint32_t i = 0; status == DSI_OK && i < batch; i++)
            status = dsi_session_append(side->sessions[i], &tokens[i][step], 1);
        if (status == DSI_OK) status = model_drain(side, batch, NULL);
    }
    dsi_engine_set_tap(side->engine, NULL, NULL);
    if (count.n_layers) {
        *experts = (double)count.n_experts / (double)count.n_layers;
        *bytes = (uint64_t)((int64_t)r->info.n_bytes_token + count.more_bytes / (int64_t)n_steps);
    }
    return status;
}

static expert_count tapped; /* dsi-bench measures one side at a time */

void model_tap_begin(model_side *side) {
    tapped = (expert_count){.engine = side->engine};
    dsi_engine_set_tap(side->engine, count_layer, &tapped);
}

double model_tap_end(model_side *side) {
    dsi_engine_set_tap(side->engine, NULL, NULL);
    return tapped.n_layers ? (double)tapped.n_experts / (double)tapped.n_layers : 0;
}
