/* timeline.c: what a timeline goes through besides growing: cut short (rewind), doubled (fork).
 *
 * Exact mode sets the rule of a cut: what follows is computed as if the rest had never been there.
 * A block of 256 tokens that was expanded as a whole, and is cut in its middle, would never have
 * been whole: its kept rows are queued again and get their form anew. And where the logits of the
 * last kept row are gone, that row is queued again, so that a token can be sampled from it. */
#include "internal.h"

/* Rows of the cut timeline that keep their place in the cache; *n_sealed: those whose form stays.
 */
static uint32_t kept_rows(const dsi_session *s, uint32_t n, uint32_t *n_sealed) {
    uint32_t begin = n - n % DSI_PROMPT_BLOCK, computed = s->n_tokens < n ? s->n_tokens : n;
    bool forms = s->engine->model->config.arch->attention == DSI_ATTENTION_MLA &&
                 s->engine->options.attention == DSI_ATTENTION_AUTO;
    *n_sealed = s->n_sealed < n ? s->n_sealed : n;
    if (begin == n || !s->expanded[n / DSI_PROMPT_BLOCK] || !forms) return computed;
    *n_sealed = begin;
    return computed < begin ? computed : begin;
}

/* Keeps the logits of rows that stay; without those of the last row it must be computed again. */
static uint32_t kept_logits(dsi_session *s, uint32_t n, uint32_t computed) {
    uint32_t end = s->first_logit + s->n_logits;
    bool has_last = computed > s->first_logit && computed <= end;
    if (computed == n && n && !has_last) computed--;
    if (end > computed) end = computed;
    s->n_logits = s->first_logit < end ? end - s->first_logit : 0;
    return computed;
}

void dsi_session_count_samples(dsi_session *s) {
    s->n_sampled = s->n_answer = 0;
    for (uint32_t i = 0; i < s->n_total; i++) {
        s->n_sampled += s->sampled[i];
        s->n_answer = s->sampled[i] ? s->n_answer + 1 : 0;
    }
}

void dsi_session_cut(dsi_session *s, uint32_t n) {
    dsi_engine *e = s->engine;
    uint32_t block = n / DSI_PROMPT_BLOCK, n_blocks = e->options.max_context / DSI_PROMPT_BLOCK + 1;
    dsi_draft_put_back(s);
    uint32_t n_sealed, computed = kept_rows(s, n, &n_sealed);
    memset(s->expanded + block, 0, n_blocks - block);
    memset(s->sampled + n, 0, s->n_total - n);
    s->n_tokens = kept_logits(s, n, computed);
    s->n_sealed = n_sealed;
    s->n_total = n;
    dsi_draft_cut(s);
    s->finish = DSI_FINISH_NONE;
    s->end_token = -1;
    s->has_logprob = false;
    s->broken.name = NULL;
    dsi_session_count_samples(s);
    dsi_answer_rebuild(s, n - s->n_answer);
    uint32_t n_keep = (uint32_t)dsi_ceil_div(s->n_tokens, DSI_PAGE_ROWS);
    if (n_keep >= s->n_pages) return; /* does not wait for a running step */
    pthread_mutex_lock(&e->lock);
    dsi_pages_release(s, n_keep);
    pthread_mutex_unlock(&e->lock);
}

dsi_status dsi_session_rewind(dsi_session *s, size_t n_tokens) {
    dsi_status st = dsi_session_enter(s, "dsi_session_rewind");
    if (st != DSI_OK) return st;
    if (n_tokens > s->n_total)
        return dsi_fail(&s->handle.error, DSI_E_ARG,
                        "dsi_session_rewind to %zu tokens; the timeline has %u", n_tokens,
                        s->n_total);
    dsi_session_cut(s, (uint32_t)n_tokens);
    return DSI_OK;
}

/* All but the pages. */
static void copy_state(const dsi_session *from, dsi_session *to) {
    const dsi_engine *e = from->engine;
    uint64_t vocab = e->model->config.vocab_size;
    memcpy(to->tokens, from->tokens, from->n_total * sizeof *to->tokens);
    memcpy(to->sampled, from->sampled, from->n_total);
    memcpy(to->expanded, from->expanded, e->options.max_context / DSI_PROMPT_BLOCK + 1);
    memcpy(to->logits, from->logits, from->n_logits * vocab * sizeof *to->logits);
    memcpy(to->top, from->top, sizeof to->top);
    to->n_tokens = from->n_tokens, to->n_total = from->n_total, to->n_sealed = from->n_sealed;
    to->n_logits = from->n_logits, to->first_logit = from->first_logit;
    to->n_sampled = from->n_sampled, to->n_answer = from->n_answer;
    to->finish = from->finish, to->end_token = from->end_token;
    to->has_logprob = from->has_logprob, to->logprob = from->logprob, to->n_top = from->n_top;
    to->broken = from->broken;
    dsi_draft_hold(to, from->held, dsi_draft_held(from));
}

dsi_status dsi_session_fork(dsi_session *s, dsi_session **copy) {
    dsi_status st = dsi_session_enter(s, "dsi_session_fork");
    if (st != DSI_OK) return st;
    if (!copy) return dsi_fail(&s->handle.error, DSI_E_ARG, "dsi_session_fork: copy is NULL");
    *copy = NULL;
    dsi_draft_put_back(s);
    dsi_session *c = NULL;
    st = dsi_session_new(s->engine, NULL, s, &c, &s->handle.error);
    if (st != DSI_OK) return st;
    copy_state(s, c);
    dsi_answer_rebuild(c, c->n_total - c->n_answer);
    pthread_mutex_lock(&s->engine->lock);
    st = dsi_pages_share(s, c);
    pthread_mutex_unlock(&s->engine->lock);
    if (st != DSI_OK) {
        dsi_session_close(c);
        return st;
    }
    *copy = c;
    return DSI_OK;
}
