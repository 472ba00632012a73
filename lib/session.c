/* session.c: dsi_session: a timeline of tokens, its KV pages, its sampler. */
#include "adapter.h"
#include <stdio.h>
#include <string.h>

void dsi_session_options_init(dsi_session_options *options) {
    *options =
        (dsi_session_options){.struct_size = sizeof *options, .top_p = 1, .repetition_penalty = 1};
}

static dsi_status check_options(const dsi_session_options *o, dsi_error *error) {
    const struct {
        const char *name, *range;
        float value;
        bool ok;
    } numbers[] = {{"temperature", "0 (greedy) to 100", o->temperature,
                    o->temperature >= 0 && o->temperature <= 100},
                   {"top_p", "above 0 to 1", o->top_p, o->top_p > 0 && o->top_p <= 1},
                   {"min_p", "0 to below 1", o->min_p, o->min_p >= 0 && o->min_p < 1},
                   {"repetition_penalty", "above 0 to 10, where 1 is none", o->repetition_penalty,
                    o->repetition_penalty > 0 && o->repetition_penalty <= 10},
                   {"presence_penalty", "-2 to 2", o->presence_penalty,
                    o->presence_penalty >= -2 && o->presence_penalty <= 2},
                   {"frequency_penalty", "-2 to 2", o->frequency_penalty,
                    o->frequency_penalty >= -2 && o->frequency_penalty <= 2},
                   {"all_logits", "0 or 1", (float)o->all_logits, o->all_logits <= 1},
                   {"ignore_end", "0 or 1", (float)o->ignore_end, o->ignore_end <= 1},
                   {"logprobs", "0 or 1", (float)o->logprobs, o->logprobs <= 1},
                   {"top_logprobs", "0 to 20", (float)o->top_logprobs,
                    o->top_logprobs <= DSI_MAX_TOP_LOGPROBS}};
    for (size_t i = 0; i < sizeof numbers / sizeof numbers[0]; i++)
        if (!numbers[i].ok) /* NaN is in no range */
            return dsi_fail(error, DSI_E_ARG, "%s is %g; it may be %s", numbers[i].name,
                            (double)numbers[i].value, numbers[i].range);
    if (o->top_logprobs && !o->logprobs)
        return dsi_fail(error, DSI_E_ARG, "top_logprobs is %u with logprobs 0; set logprobs to 1",
                        o->top_logprobs);
    return DSI_OK;
}

/* ---- Open and close
 * ------------------------------------------------------------------------------------------ */

static dsi_status allocate(dsi_session *s) {
    const dsi_engine *e = s->engine;
    const dsi_session_options *o = &s->options;
    uint64_t vocab = e->model->config.vocab_size;
    bool drawn = o->temperature > 0, penalties = dsi_has_penalty(o);
    const uint32_t n_drafts = e->options.draft_tokens;
    s->logit_rows = (o->all_logits ? e->options.chunk_tokens : 1) + n_drafts;
    if (n_drafts)
        s->held =
            dsi_sys_calloc((uint64_t)n_drafts + 1, e->model->config.hidden_size * sizeof *s->held);
    s->tokens = dsi_sys_calloc(e->options.max_context, sizeof *s->tokens);
    s->sampled = dsi_sys_calloc(e->options.max_context, 1);
    s->expanded = dsi_sys_calloc(e->options.max_context / DSI_PROMPT_BLOCK + 1, 1);
    s->pages = dsi_sys_calloc(e->max_pages, sizeof *s->pages);
    s->logits = dsi_sys_calloc(s->logit_rows, vocab * sizeof *s->logits);
    if (drawn) s->candidates = dsi_sys_calloc(2 * vocab, sizeof *s->candidates);
    if (penalties) s->penalized = dsi_sys_calloc(vocab, sizeof *s->penalized);
    if (penalties) s->seen = dsi_sys_calloc(vocab, sizeof *s->seen);
    if (s->tokens && s->sampled && s->expanded && s->pages && s->logits && (!n_drafts || s->held) &&
        (!drawn || s->candidates) && (!penalties || (s->penalized && s->seen)))
        return DSI_OK;
    return dsi_fail(&s->handle.error, DSI_E_NOMEM,
                    "no memory for a session of %u tokens; close sessions or open the engine with "
                    "a smaller max_context",
                    e->options.max_context);
}

/* Stop strings and the marks of reasoning: checked and found, or copied from the parent. */
static dsi_status open_answer(dsi_session *s, const dsi_session *parent) {
    if (!parent) return dsi_answer_open(s);
    s->think_open = parent->think_open;
    s->think_close = parent->think_close;
    if (parent->stop) s->stop = dsi_stop_copy(parent->stop);
    if (!parent->stop || s->stop) return DSI_OK;
    return dsi_fail(&s->handle.error, DSI_E_NOMEM, "no memory for the stop strings");
}

dsi_status dsi_session_new(dsi_engine *engine, const dsi_session_options *options,
                           const dsi_session *parent, dsi_session **out, dsi_error *error) {
    DSI_MEMORY_SCOPE(SESSIONS);
    *out = NULL;
    dsi_session *s = dsi_sys_calloc(1, sizeof *s);
    if (!s) return dsi_fail(error, DSI_E_NOMEM, "no memory for a session handle");
    s->error = &s->handle.error;
    s->engine = engine;
    atomic_fetch_add(&engine->n_holders, 1);
    s->end_token = -1;
    s->options = parent ? parent->options : *options;
    dsi_adapter_hold(s->options.adapter);
    dsi_status st = open_answer(s, parent);
    if (st == DSI_OK) st = allocate(s);
    if (st == DSI_OK) {
        *out = s;
        return st;
    }
    *error = s->handle.error;
    dsi_session_close(s);
    return st;
}

dsi_status dsi_session_open(dsi_engine *engine, const dsi_session_options *options,
                            dsi_session **out) {
    dsi_error *error = dsi_thread_error();
    if (!engine || !out)
        return dsi_fail(error, DSI_E_ARG, "dsi_session_open: engine or session is NULL");
    *out = NULL;
    if (dsi_is_child(engine->process))
        return dsi_fail_child(error, "dsi_session_open", engine->process);
    dsi_session_options all;
    dsi_session_options_init(&all);
    dsi_status st = dsi_copy_options(&all, sizeof all, options, "dsi_session_options", error);
    if (st == DSI_OK) st = check_options(&all, error);
    if (st == DSI_OK && all.adapter && all.adapter->engine != engine)
        st = dsi_fail(error, DSI_E_ARG,
                      "adapter %s was opened on another engine; open it on the session's own",
                      all.adapter->name);
    return st == DSI_OK ? dsi_session_new(engine, &all, NULL, out, error) : st;
}

void dsi_session_close(dsi_session *s) {
    if (!s) return;
    if (s->stream) dsi_stream_detach(s->stream);
    dsi_engine *e = s->engine;
    if (s->n_pages && !dsi_is_child(e->process)) {
        pthread_mutex_lock(&e->lock);
        if (!e->closed) dsi_pages_release(s, 0); /* the model may be closed as well */
        pthread_mutex_unlock(&e->lock);
    }
    void *blocks[] = {s->tokens,     s->sampled,   s->expanded, s->pages, s->logits,
                      s->candidates, s->penalized, s->seen,     s->held};
    for (size_t i = 0; i < sizeof blocks / sizeof blocks[0]; i++) dsi_sys_free(blocks[i]);
    dsi_stop_free(s->stop);
    dsi_adapter_release(s->options.adapter);
    dsi_sys_free(s);
    dsi_engine_release(e);
}

/* ---- The timeline grows
 * ------------------------------------------------------------------------------------------ */

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
    if (dsi_is_child(s->engine->process))
        return dsi_fail_child(&s->handle.error, call, s->engine->process);
    if (s->engine->closed)
        return dsi_fail(&s->handle.error, DSI_E_STATE,
                        "%s: the engine of this session was closed; close the session", call);
    if (s->stream)
        return dsi_fail(&s->handle.error, DSI_E_STATE,
                        "%s: a stream computes an answer in this session; close the stream first",
                        call);
    return DSI_OK;
}

void dsi_session_cancel(dsi_session *s) {
    if (!s || dsi_is_child(s->engine->process)) return;
    atomic_store(&s->cancel_flag, 1);
    dsi_engine_wake_runner(s->engine);
}

bool dsi_session_is_cancelled(const dsi_session *s) {
    return atomic_load(&s->cancel_flag) || (s->stream && dsi_stream_is_cancelled(s->stream));
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

static dsi_status fail_broken(dsi_session *s) {
    const dsi_broken *b = &s->broken;
    if (!s->engine->options.check_layers)
        return dsi_fail(s->error, DSI_E_NAN,
                        "a logit of the token at position %u is not a finite number: the weights "
                        "or the cached rows are damaged; check the checkpoint (dsinfer verify); "
                        "with the engine option check_layers the message names the layer",
                        b->position);
    char layer[32] = "";
    if (b->layer >= 0) snprintf(layer, sizeof layer, "layer %d: ", b->layer);
    return dsi_fail(s->error, DSI_E_NAN,
                    "%s%s gives a number that is not finite for token %d at position %u, the first "
                    "to do so: its weights are damaged, or its input is beyond what the number "
                    "format holds; check the checkpoint (dsinfer verify)",
                    layer, b->name, s->tokens[b->position], b->position);
}

dsi_status dsi_session_hindrance(dsi_session *s) {
    if (dsi_session_is_cancelled(s))
        return dsi_fail(s->error, DSI_E_CANCELLED,
                        "cancelled with %u tokens computed and %u queued; the session can go on",
                        s->n_tokens, s->n_total - s->n_tokens);
    if (s->deadline > 0 && dsi_sys_seconds() >= s->deadline)
        return dsi_fail(s->error, DSI_E_TIMEOUT,
                        "the deadline has passed with %u tokens computed and %u queued; "
                        "dsi_session_set_deadline gives more time, 0 removes the limit",
                        s->n_tokens, s->n_total - s->n_tokens);
    return s->broken.name ? fail_broken(s) : DSI_OK;
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
    if (n_tokens) dsi_draft_put_back(s);
    if (n_tokens) memcpy(s->tokens + s->n_total, tokens, n_tokens * sizeof *tokens);
    s->n_drafts = s->n_extra = 0; /* they were drafts of other tokens */
    s->n_total += (uint32_t)n_tokens;
    if (n_tokens == 0) return DSI_OK;
    s->n_answer = 0;
    s->finish = DSI_FINISH_NONE;
    s->end_token = -1;
    dsi_answer_rebuild(s, s->n_total);
    return DSI_OK;
}

static bool is_end_token(const dsi_session *s, int32_t token) {
    const dsi_config *c = &s->engine->model->config;
    for (uint32_t i = 0; i < c->n_eos_tokens; i++)
        if (c->eos_tokens[i] == token) return true;
    return false;
}

/* Keeps what the option logprobs asks for, of raw logits. */
static void keep_logprobs(dsi_session *s, const float *logits, uint32_t vocab, int32_t token) {
    if (!s->options.logprobs) return;
    s->logprob = dsi_logprob(logits, vocab, token);
    s->n_top = dsi_top_logprobs(logits, vocab, s->options.top_logprobs, s->top);
    s->has_logprob = true;
}

/* The timeline gets the token; without room for it the session is finished. */
static void push_sampled(dsi_session *s, int32_t token) {
    uint32_t max_context = s->engine->options.max_context;
    bool stopped = dsi_answer_token(s, token);
    if (s->n_total < max_context) {
        dsi_draft_meet(s, token);
        s->sampled[s->n_total] = 1;
        s->tokens[s->n_total++] = token;
    }
    s->n_sampled++, s->n_answer++;
    bool enough = s->options.max_tokens && s->n_answer >= s->options.max_tokens;
    if (enough || s->n_total == max_context) {
        s->finish = DSI_FINISH_LENGTH;
        stopped |= dsi_answer_finish(s);
    }
    if (stopped) s->finish = DSI_FINISH_STOP_TEXT;
}

dsi_status dsi_session_draw(dsi_session *s, int32_t *token) {
    *token = -1;
    if (s->finish != DSI_FINISH_NONE) return DSI_OK;
    if (s->broken.name) return fail_broken(s);
    if (s->n_tokens != s->n_total || !s->n_logits)
        return dsi_fail(s->error, DSI_E_STATE,
                        "%u tokens are queued and %u rows of logits are there; append tokens and "
                        "step first",
                        s->n_total - s->n_tokens, s->n_logits);
    uint32_t vocab = s->engine->model->config.vocab_size;
    const float *last = s->logits + (uint64_t)(s->n_logits - 1) * vocab, *logits = last;
    if (s->penalized) {
        dsi_penalize(&s->options, s->tokens, s->sampled, s->n_total, last, vocab, s->seen,
                     s->penalized);
        logits = s->penalized;
    }
    int32_t picked;
    dsi_status st =
        dsi_sample(&s->options, logits, vocab, s->n_sampled, s->candidates, &picked, s->error);
    if (st != DSI_OK) return st;
    keep_logprobs(s, last, vocab, picked);
    if (!s->options.ignore_end && is_end_token(s, picked)) {
        s->end_token = picked;
        s->finish = dsi_answer_finish(s) ? DSI_FINISH_STOP_TEXT : DSI_FINISH_STOP;
        return DSI_OK;
    }
    push_sampled(s, picked);
    *token = picked;
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

dsi_status dsi_session_logprobs(const dsi_session *session, float *logprob,
                                const dsi_token_logprob **top, size_t *n_top) {
    dsi_session *s = (dsi_session *)(uintptr_t)session; /* only its message is written */
    dsi_status st = dsi_session_enter(s, "dsi_session_logprobs");
    if (st != DSI_OK) return st;
    if (!logprob)
        return dsi_fail(&s->handle.error, DSI_E_ARG, "dsi_session_logprobs: logprob is NULL");
    if (!s->has_logprob)
        return dsi_fail(&s->handle.error, DSI_E_STATE,
                        s->options.logprobs
                            ? "dsi_session_logprobs: no token was sampled since the last step"
                            : "dsi_session_logprobs: open the session with the option logprobs 1");
    *logprob = s->logprob;
    if (top) *top = s->top;
    if (n_top) *n_top = s->n_top;
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
