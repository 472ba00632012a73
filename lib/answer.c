/* answer.c: one answer from its messages to its last event. The prompt, what of it the session
 * already holds, and sampled tokens turned into events; dsi_generate_chat and streams both use it,
 * and plain sessions for their stop strings. */
#include "internal.h"
#include <string.h>

/* ---- Sampled tokens to text ------------------------------------------------------------------ */

dsi_status dsi_answer_open(dsi_session *s) {
    const dsi_model *model = s->engine->model;
    dsi_session_options *o = &s->options;
    dsi_status st = dsi_stop_new(o->stop, o->n_stop, &s->stop, &s->handle.error);
    o->stop = NULL; /* the caller's */
    if (st != DSI_OK) return st;
    if (s->stop && !model->tokenizer)
        return dsi_fail(&s->handle.error, DSI_E_STATE,
                        "stop strings need a tokenizer, and %s has none that can be used; compare "
                        "token ids instead",
                        model->checkpoint.dir);
    s->think_open = s->think_close = -1;
    if (model->tokenizer) {
        s->think_open = dsi_tokenizer_special(model->tokenizer, "<think>");
        s->think_close = dsi_tokenizer_special(model->tokenizer, "</think>");
    }
    return DSI_OK;
}

static void text_event(void *user, uint32_t part, const char *text, size_t n) {
    const dsi_session *s = user;
    dsi_event event = {.struct_size = sizeof event,
                       .kind = DSI_EVENT_TEXT,
                       .part = part,
                       .token = -1,
                       .text = text,
                       .n_bytes = n};
    if (s->on_event) s->on_event(s->event_user, &event);
}

static void token_event(const dsi_session *s, int32_t token) {
    dsi_event event = {.struct_size = sizeof event,
                       .kind = DSI_EVENT_TOKEN,
                       .part = s->answer_text.part,
                       .token = token,
                       .top = s->top,
                       .n_top = s->n_top,
                       .logprob = s->logprob};
    event.text = dsi_tokenizer_bytes(s->engine->model->tokenizer, token, &event.n_bytes);
    s->on_event(s->event_user, &event);
}

/* The prompt ends in <think>, perhaps with a line end behind it: the answer begins with reasoning?
 */
static bool starts_reasoning(const dsi_session *s, uint32_t n_prompt) {
    for (uint32_t i = n_prompt; i > 0 && i + 2 > n_prompt; i--)
        if (s->think_open >= 0 && s->tokens[i - 1] == s->think_open) return true;
    return false;
}

static void start_text(dsi_session *s, uint32_t n_prompt) {
    s->answer_text.sink = text_event;
    s->answer_text.user = s;
    dsi_answer_text_start(&s->answer_text, s->stop, starts_reasoning(s, n_prompt));
    s->answer_started = true;
}

bool dsi_answer_token(dsi_session *s, int32_t token) {
    if (!s->on_event && !s->stop) return false;
    if (!s->answer_started) start_text(s, s->n_total);
    if (s->on_event && s->options.logprobs) token_event(s, token);
    dsi_answer_text *a = &s->answer_text;
    if (token == s->think_open && dsi_answer_text_think(a, true)) return false;
    if (token == s->think_close && dsi_answer_text_think(a, false)) return false;
    size_t n;
    const char *bytes = dsi_tokenizer_bytes(s->engine->model->tokenizer, token, &n);
    dsi_answer_text_push(a, bytes, n);
    return a->stop_index >= 0;
}

bool dsi_answer_finish(dsi_session *s) {
    if (!s->answer_started) return false;
    dsi_answer_text_finish(&s->answer_text);
    return s->answer_text.stop_index >= 0;
}

void dsi_answer_rebuild(dsi_session *s, uint32_t n_begin) {
    s->answer_started = false;
    if (!s->stop || n_begin == s->n_total) return;
    start_text(s, n_begin);
    for (uint32_t i = n_begin; i < s->n_total; i++)
        if (dsi_answer_token(s, s->tokens[i])) s->answer_text.stop_index = -1; /* it goes on */
}

/* ---- The prompt ------------------------------------------------------------------------------ */

/* Tokens of the conversation in *tokens (max_context of them have room; free it). */
static dsi_status render(dsi_session *s, const dsi_message *messages, size_t n_messages,
                         uint32_t think, int32_t **tokens, size_t *n_tokens) {
    dsi_error *error = &s->handle.error;
    uint32_t max_context = s->engine->options.max_context;
    *tokens = dsi_sys_calloc(max_context, sizeof **tokens);
    if (!*tokens)
        return dsi_fail(error, DSI_E_NOMEM, "no memory for a prompt of %u tokens", max_context);
    dsi_status st = dsi_chat_tokens(s->engine->model, messages, n_messages, think, *tokens,
                                    max_context, n_tokens);
    if (st == DSI_E_BUFFER)
        return dsi_fail(
            error, DSI_E_CONTEXT,
            "the conversation has %zu tokens, max_context is %u; leave out old messages "
            "or open the engine with a larger max_context (the model allows %u)",
            *n_tokens, max_context, s->engine->model->config.max_position);
    if (st != DSI_OK) *error = *dsi_thread_error();
    return st;
}

/* Cuts the session to the tokens it has in common with the prompt and queues the others: at least
 * one, since the logits of the last one are wanted. */
static dsi_status queue_prompt(dsi_answer *a, const int32_t *tokens, size_t n_tokens) {
    dsi_session *s = a->session;
    size_t n_common = 0;
    while (n_common < s->n_total && n_common + 1 < n_tokens &&
           s->tokens[n_common] == tokens[n_common])
        n_common++;
    dsi_status st = dsi_session_rewind(s, n_common);
    if (st != DSI_OK) return st;
    a->result.n_tokens_in = (uint32_t)n_tokens;
    a->result.n_tokens_kept = s->n_tokens;
    return dsi_session_append(s, tokens + n_common, n_tokens - n_common);
}

dsi_status dsi_answer_begin(dsi_answer *a, dsi_session *s, const dsi_message *messages,
                            size_t n_messages, uint32_t think) {
    *a = (dsi_answer){.session = s,
                      .start = dsi_sys_seconds(),
                      .n_drafted = s->n_drafted,
                      .n_accepted = s->n_accepted};
    a->result.struct_size = sizeof a->result;
    int32_t *tokens = NULL;
    size_t n_tokens = 0;
    dsi_status st = render(s, messages, n_messages, think, &tokens, &n_tokens);
    if (st == DSI_OK) st = queue_prompt(a, tokens, n_tokens);
    dsi_sys_free(tokens);
    return st;
}

/* ---- Step by step ---------------------------------------------------------------------------- */

void dsi_answer_listen(dsi_answer *a, void (*on_event)(void *user, const dsi_event *event),
                       void *user) {
    a->session->on_event = on_event;
    a->session->event_user = user;
}

static void report_prompt(dsi_answer *a) {
    dsi_session *s = a->session;
    uint32_t n_prompt = a->result.n_tokens_in;
    uint32_t done = s->n_tokens < n_prompt ? s->n_tokens : n_prompt;
    if (done <= a->n_reported) return; /* also when rows are computed once more */
    a->n_reported = done;
    dsi_event event = {.struct_size = sizeof event,
                       .kind = DSI_EVENT_PROGRESS,
                       .token = -1,
                       .done = done,
                       .total = n_prompt};
    if (done == n_prompt) a->result.prefill_seconds = dsi_sys_seconds() - a->start;
    if (s->on_event) s->on_event(s->event_user, &event);
}

dsi_status dsi_answer_advance(dsi_answer *a, bool *done) {
    dsi_session *s = a->session;
    *done = false;
    report_prompt(a);
    if (s->n_tokens < s->n_total) return DSI_OK;
    int32_t token;
    dsi_status st = dsi_session_draw(s, &token);
    if (st != DSI_OK) return st;
    double now = dsi_sys_seconds();
    if (a->first == 0) {
        a->first = now;
        a->result.first_token_seconds = now - a->start;
    }
    a->result.decode_seconds = now - a->first;
    if (token >= 0) a->result.n_tokens_out++;
    *done = s->finish != DSI_FINISH_NONE || a->caller_stopped;
    return DSI_OK;
}

static uint32_t reason_of(const dsi_answer *a, dsi_status status) {
    if (status == DSI_E_CANCELLED) return DSI_FINISH_CANCELLED;
    if (status == DSI_E_TIMEOUT) return DSI_FINISH_DEADLINE;
    if (status != DSI_OK) return DSI_FINISH_FAILED;
    return a->caller_stopped ? DSI_FINISH_CALLER : a->session->finish;
}

void dsi_answer_end(dsi_answer *a, dsi_status status) {
    dsi_session *s = a->session;
    if (s->on_event) dsi_answer_finish(s);
    a->result.finish_reason = reason_of(a, status);
    a->result.n_drafted = s->n_drafted - a->n_drafted;
    a->result.n_accepted = s->n_accepted - a->n_accepted;
    if (a->result.finish_reason == DSI_FINISH_STOP_TEXT)
        a->result.stop_index = (uint32_t)s->answer_text.stop_index;
    dsi_event event = {.struct_size = sizeof event,
                       .kind = DSI_EVENT_DONE,
                       .token = -1,
                       .status = status,
                       .result = a->result};
    if (s->on_event) s->on_event(s->event_user, &event);
    dsi_answer_listen(a, NULL, NULL);
}
