/* session.c: dsi_session: a timeline of tokens, its KV pages, its sampler. */
#include "internal.h"
#include <math.h>
#include <string.h>

void dsi_session_options_init(dsi_session_options *options) {
    *options = (dsi_session_options){.struct_size = sizeof *options, .top_p = 1};
}

static dsi_status check_options(dsi_session *s) {
    const dsi_session_options *o = &s->options;
    dsi_error *error = &s->handle.error;
    if (!(o->temperature >= 0) || o->temperature > 100)
        return dsi_fail(error, DSI_E_ARG, "temperature is %g; it may be 0 (greedy) to 100",
                        (double)o->temperature);
    if (!(o->top_p > 0) || o->top_p > 1)
        return dsi_fail(error, DSI_E_ARG, "top_p is %g; it may be above 0 to 1", (double)o->top_p);
    if (!(o->min_p >= 0) || o->min_p >= 1)
        return dsi_fail(error, DSI_E_ARG, "min_p is %g; it may be 0 to below 1", (double)o->min_p);
    return DSI_OK;
}

static dsi_status allocate(dsi_session *s) {
    const dsi_engine *e = s->engine;
    uint64_t vocab = e->model->config.vocab_size;
    s->logit_rows = s->options.all_logits ? e->options.chunk_tokens : 1;
    s->tokens = dsi_sys_calloc(e->options.max_context, sizeof *s->tokens);
    s->expanded = dsi_sys_calloc(e->options.max_context / DSI_PROMPT_BLOCK + 1, 1);
    s->pages = dsi_sys_calloc(e->max_pages, sizeof *s->pages);
    s->logits = dsi_sys_calloc(s->logit_rows, vocab * sizeof *s->logits);
    if (s->options.temperature > 0) s->candidates = dsi_sys_calloc(vocab, sizeof *s->candidates);
    if (!s->tokens || !s->expanded || !s->pages || !s->logits ||
        (s->options.temperature > 0 && !s->candidates))
        return dsi_fail(&s->handle.error, DSI_E_NOMEM, "no memory for a session of %u tokens",
                        e->options.max_context);
    return DSI_OK;
}

dsi_status dsi_session_open(dsi_engine *engine, const dsi_session_options *options,
                            dsi_session **out) {
    DSI_MEMORY_SCOPE(SESSIONS);
    if (!engine || !out)
        return dsi_fail(dsi_thread_error(), DSI_E_ARG,
                        "dsi_session_open: engine or session is NULL");
    *out = NULL;
    dsi_session *s = dsi_sys_calloc(1, sizeof *s);
    if (!s) return dsi_fail(dsi_thread_error(), DSI_E_NOMEM, "no memory for a session handle");
    s->engine = engine;
    s->end_token = -1;
    dsi_session_options_init(&s->options);
    dsi_status st = dsi_copy_options(&s->options, sizeof s->options, options, "dsi_session_options",
                                     &s->handle.error);
    if (st == DSI_OK) st = check_options(s);
    if (st == DSI_OK) st = dsi_answer_open(s);
    if (st == DSI_OK) st = allocate(s);
    if (st != DSI_OK) {
        *dsi_thread_error() = s->handle.error;
        dsi_session_close(s);
        return st;
    }
    *out = s;
    return DSI_OK;
}

/* Overwrites the pages before others may have them: one tenant never sees another's latents. */
static void release_pages(dsi_session *s) {
    dsi_engine *e = s->engine;
    uint64_t bytes = dsi_kv_page_bytes(e);
    pthread_mutex_lock(&e->lock);
    for (uint32_t i = 0; i < s->n_pages; i++) {
        for (uint32_t l = 0; l < e->model->config.n_layers; l++) {
            dsi_tensor kv = dsi_kv_layer(e, l);
            e->backend->write(e->stream, e->kv, kv.offset + (uint64_t)s->pages[i] * bytes,
                              e->rows.zero_page, bytes);
        }
        e->free_pages[e->n_free_pages++] = s->pages[i];
    }
    pthread_mutex_unlock(&e->lock);
}

void dsi_session_close(dsi_session *s) {
    if (!s) return;
    if (s->n_pages) release_pages(s);
    dsi_sys_free(s->tokens);
    dsi_sys_free(s->expanded);
    dsi_sys_free(s->pages);
    dsi_sys_free(s->logits);
    dsi_sys_free(s->candidates);
    dsi_stop_free(s->stop);
    dsi_sys_free(s);
}

dsi_status dsi_session_reserve(dsi_session *s, uint32_t n_rows) {
    dsi_engine *e = s->engine;
    uint32_t need = (uint32_t)dsi_ceil_div(n_rows, DSI_PAGE_ROWS);
    if (need > s->n_pages + e->n_free_pages)
        return dsi_fail(&s->handle.error, DSI_E_CONTEXT,
                        "the KV pool is full: this session needs %u more pages of %d tokens, %u of "
                        "%u are free; close sessions or open the engine with more kv_tokens (now "
                        "%u)",
                        need - s->n_pages, DSI_PAGE_ROWS, e->n_free_pages, e->n_pages,
                        e->options.kv_tokens);
    while (s->n_pages < need) s->pages[s->n_pages++] = e->free_pages[--e->n_free_pages];
    return DSI_OK;
}

/* Exact mode: whether a row is expanded must not depend on how its prompt is cut into steps. So the
 * form of all that is queued is decided at once, when the first step after the append begins: whole
 * absolute blocks of 256 are expanded, what is left over is absorbed. */
void dsi_session_seal(dsi_session *s) {
    uint32_t first = (s->n_sealed + DSI_PROMPT_BLOCK - 1) / DSI_PROMPT_BLOCK;
    if (s->n_sealed == s->n_total) return;
    for (uint32_t b = first; (b + 1) * DSI_PROMPT_BLOCK <= s->n_total; b++) s->expanded[b] = 1;
    s->n_sealed = s->n_total;
}

/* ---- Who may use it, and what stands in its way
 * ----------------------------------------------------------------------- */

dsi_status dsi_session_enter(const dsi_session *session, const char *call) {
    dsi_session *s = (dsi_session *)(uintptr_t)session; /* only its message is written */
    if (!s) return dsi_fail(dsi_thread_error(), DSI_E_ARG, "%s: session is NULL", call);
    if (s->stream)
        return dsi_fail(&s->handle.error, DSI_E_STATE,
                        "%s: a stream computes an answer in this session; close the stream first",
                        call);
    return DSI_OK;
}

void dsi_session_cancel(dsi_session *s) {
    if (s) atomic_store(&s->cancel_flag, 1);
}

dsi_status dsi_session_set_deadline(dsi_session *s, double seconds) {
    dsi_status st = dsi_session_enter(s, "dsi_session_set_deadline");
    if (st != DSI_OK) return st;
    if (!(seconds >= 0))
        return dsi_fail(&s->handle.error, DSI_E_ARG,
                        "a deadline in %g seconds; give a time above 0, or 0 for none", seconds);
    s->deadline = seconds > 0 ? dsi_sys_seconds() + seconds : 0;
    return DSI_OK;
}

dsi_status dsi_session_hindrance(dsi_session *s) {
    dsi_error *error = &s->handle.error;
    if (atomic_load(&s->cancel_flag))
        return dsi_fail(error, DSI_E_CANCELLED,
                        "cancelled with %u tokens computed and %u queued; the session can go on",
                        s->n_tokens, s->n_total - s->n_tokens);
    if (s->deadline > 0 && dsi_sys_seconds() >= s->deadline)
        return dsi_fail(error, DSI_E_TIMEOUT,
                        "the deadline has passed with %u tokens computed and %u queued; "
                        "dsi_session_set_deadline gives more time, 0 removes the limit",
                        s->n_tokens, s->n_total - s->n_tokens);
    return DSI_OK;
}

dsi_status dsi_session_report(dsi_session *s, dsi_status status) {
    if (status == DSI_E_CANCELLED) atomic_store(&s->cancel_flag, 0);
    return status;
}

/* ---- Tokens
 * ----------------------------------------------------------------------- */

dsi_status dsi_session_append(dsi_session *s, const int32_t *tokens, size_t n_tokens) {
    dsi_status st = dsi_session_enter(s, "dsi_session_append");
    if (st != DSI_OK) return st;
    if (!tokens && n_tokens)
        return dsi_fail(&s->handle.error, DSI_E_ARG, "dsi_session_append: tokens is NULL");
    uint32_t vocab = s->engine->model->config.vocab_size, room;
    room = s->engine->options.max_context - s->n_total;
    if (n_tokens > room)
        return dsi_fail(&s->handle.error, DSI_E_CONTEXT,
                        "%zu tokens do not fit: the session holds %u of max_context %u; shorten "
                        "the text or open the engine with a larger max_context (the model allows "
                        "%u)",
                        n_tokens, s->n_total, s->engine->options.max_context,
                        s->engine->model->config.max_position);
    for (size_t i = 0; i < n_tokens; i++)
        if (tokens[i] < 0 || (uint32_t)tokens[i] >= vocab)
            return dsi_fail(&s->handle.error, DSI_E_ARG,
                            "token %zu is %d; the vocabulary has ids 0 to %u", i, tokens[i],
                            vocab - 1);
    if (n_tokens) memcpy(s->tokens + s->n_total, tokens, n_tokens * sizeof *tokens);
    s->n_total += (uint32_t)n_tokens;
    if (n_tokens) dsi_answer_rebuild(s, s->n_total);
    return DSI_OK;
}

static bool is_end_token(const dsi_session *s, int32_t token) {
    const dsi_config *c = &s->engine->model->config;
    for (uint32_t i = 0; i < c->n_eos_tokens; i++)
        if (c->eos_tokens[i] == token) return true;
    return false;
}

dsi_status dsi_session_draw(dsi_session *s, int32_t *token) {
    *token = -1;
    if (s->finish != DSI_FINISH_NONE) return DSI_OK;
    if (s->n_tokens != s->n_total || !s->n_logits)
        return dsi_fail(&s->handle.error, DSI_E_STATE,
                        "%u tokens are queued and %u rows of logits are there; append tokens and "
                        "step first",
                        s->n_total - s->n_tokens, s->n_logits);
    uint32_t vocab = s->engine->model->config.vocab_size;
    const float *last = s->logits + (uint64_t)(s->n_logits - 1) * vocab;
    int32_t picked;
    dsi_status st = dsi_sample(&s->options, last, vocab, s->n_sampled, s->candidates, &picked,
                               &s->handle.error);
    if (st != DSI_OK) return st;
    if (!s->options.ignore_end && is_end_token(s, picked)) {
        s->end_token = picked;
        s->finish = dsi_answer_finish(s) ? DSI_FINISH_STOP_TEXT : DSI_FINISH_STOP;
        return DSI_OK;
    }
    s->n_sampled++;
    *token = picked;
    bool stopped = dsi_answer_token(s, picked);
    if (s->n_total < s->engine->options.max_context) s->tokens[s->n_total++] = picked;
    if (s->n_sampled == s->options.max_tokens || s->n_total == s->engine->options.max_context) {
        s->finish = DSI_FINISH_LENGTH;
        stopped |= dsi_answer_finish(s);
    }
    if (stopped) s->finish = DSI_FINISH_STOP_TEXT;
    return DSI_OK;
}

dsi_status dsi_session_sample(dsi_session *s, int32_t *token) {
    dsi_status st = dsi_session_enter(s, "dsi_session_sample");
    if (st != DSI_OK) return st;
    if (!token) return dsi_fail(&s->handle.error, DSI_E_ARG, "dsi_session_sample: token is NULL");
    return dsi_session_draw(s, token);
}

dsi_status dsi_session_next(dsi_session *s, int32_t *token) {
    dsi_status st = dsi_session_enter(s, "dsi_session_next");
    if (st != DSI_OK) return st;
    if (!token) return dsi_fail(&s->handle.error, DSI_E_ARG, "dsi_session_next: token is NULL");
    *token = -1;
    if (s->finish != DSI_FINISH_NONE) return DSI_OK;
    while (s->n_tokens < s->n_total) {
        st = dsi_step_sessions(s->engine, &s, 1, NULL);
        if (st != DSI_OK) return st;
    }
    st = dsi_session_hindrance(s);
    return st == DSI_OK ? dsi_session_draw(s, token) : dsi_session_report(s, st);
}

dsi_status dsi_session_tokens(const dsi_session *s, const int32_t **tokens, size_t *n_tokens) {
    dsi_status st = dsi_session_enter(s, "dsi_session_tokens");
    if (st != DSI_OK) return st;
    if (!tokens || !n_tokens)
        return dsi_fail(&((dsi_session *)(uintptr_t)s)->handle.error, DSI_E_ARG,
                        "dsi_session_tokens: tokens or n_tokens is NULL");
    *tokens = s->tokens;
    *n_tokens = s->n_total;
    return DSI_OK;
}

/* While a stream owns the session these numbers move on another thread: 0 then. */
size_t dsi_session_n_queued(const dsi_session *s) {
    return s && !s->stream ? s->n_total - s->n_tokens : 0;
}
size_t dsi_session_n_tokens(const dsi_session *s) { return s && !s->stream ? s->n_tokens : 0; }
uint32_t dsi_session_finish(const dsi_session *s) {
    return s && !s->stream ? s->finish : DSI_FINISH_NONE;
}

dsi_status dsi_session_logits(const dsi_session *s, const float **logits, size_t *n_rows,
                              size_t *first_position) {
    dsi_status st = dsi_session_enter(s, "dsi_session_logits");
    if (st != DSI_OK) return st;
    if (!logits || !n_rows)
        return dsi_fail(&((dsi_session *)(uintptr_t)s)->handle.error, DSI_E_ARG,
                        "dsi_session_logits: logits or n_rows is NULL");
    *logits = s->logits;
    *n_rows = s->n_logits;
    if (first_position) *first_position = s->first_logit;
    return DSI_OK;
}
