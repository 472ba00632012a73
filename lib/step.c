/* step.c: dsi_engine_step: one ragged batch of decode rows and prompt chunks of several sessions.
 *
 * A session that was cancelled, is late, or finds no free page is passed over: its rows stay
 * queued, session->outcome and its handle say why, and the others are computed. Only when nothing
 * at all was computed does the step return that status. So one session never fails its neighbours.
 */
#include "internal.h"
#include <string.h>

/* What is wrong with session `i` of the call, NULL if nothing. */
static const char *wrong_session(const dsi_engine *e, const dsi_session *s) {
    if (!s) return "NULL";
    if (s->engine != e) return "of another engine";
    return s->in_step ? "twice in the step" : NULL;
}

static dsi_status check_sessions(dsi_engine *e, dsi_session *const *sessions, size_t n,
                                 bool guarded) {
    dsi_status st = DSI_OK;
    size_t seen = 0;
    if (n > e->options.max_sessions)
        return dsi_fail(&e->handle.error, DSI_E_ARG,
                        "%zu sessions in one step; the engine was opened for max_sessions %u", n,
                        e->options.max_sessions);
    for (; st == DSI_OK && seen < n; seen++) {
        dsi_session *s = sessions[seen];
        const char *wrong = wrong_session(e, s);
        if (wrong) {
            st = dsi_fail(&e->handle.error, DSI_E_ARG, "session %zu is %s", seen, wrong);
            break;
        }
        s->in_step = true;
        if (guarded) st = dsi_session_enter(s, "dsi_engine_step");
        if (st != DSI_OK) e->handle.error = s->handle.error;
    }
    for (size_t i = 0; i < seen; i++) sessions[i]->in_step = false;
    return st;
}

/* Which form row `position` takes; the engine option may force one, for comparisons. */
static uint8_t form_of(const dsi_session *s, uint32_t position) {
    const dsi_config *c = &s->engine->model->config;
    if (s->engine->options.attention == DSI_ATTENTION_ABSORBED) return 0;
    if (c->arch->indexer && position >= c->index_topk) return 0; /* it attends to a choice */
    if (s->engine->options.attention == DSI_ATTENTION_EXPANDED) return 1;
    return s->expanded[position / DSI_PROMPT_BLOCK];
}

/* Adds the next `n` queued rows of a session, whose place in the step is `seq`. */
static dsi_status add_rows(dsi_session *s, uint32_t seq, uint32_t n) {
    dsi_engine *e = s->engine;
    dsi_step_rows *r = &e->rows;
    dsi_status st = dsi_session_reserve(s, s->n_tokens + n);
    if (st != DSI_OK) return st;
    memcpy(r->page_table + (uint64_t)seq * e->max_pages, s->pages, s->n_pages * sizeof *s->pages);
    for (uint32_t i = 0; i < n; i++) {
        uint32_t position = s->n_tokens + i, row = r->n_rows++;
        r->tokens[row] = s->tokens[position];
        r->seq[row] = (int32_t)seq;
        r->position[row] = (int32_t)position;
        r->slots[row] =
            (int64_t)s->pages[position / DSI_PAGE_ROWS] * DSI_PAGE_ROWS + position % DSI_PAGE_ROWS;
        r->expanded[row] = form_of(s, position);
        if (s->options.all_logits || position + 1 >= s->n_total) { /* drafts too */
            r->head_rows[r->n_head_rows] = (int32_t)row;
            r->head_seq[r->n_head_rows++] = seq;
        }
    }
    uint32_t end = s->n_tokens + n;
    r->extra[seq] = end > s->n_total ? end - s->n_total : 0;
    r->taken[seq] = n - r->extra[seq];
    return DSI_OK;
}

/* Drafts that the step computes behind n rows of a session: none where they could take the row or
 * the page of another session. */
static uint32_t drafts_of(const dsi_session *s, uint32_t n, uint32_t room) {
    const dsi_engine *e = s->engine;
    uint32_t n_pages = (uint32_t)dsi_ceil_div(s->n_tokens + n + s->n_drafts, DSI_PAGE_ROWS);
    bool rows = n + s->n_drafts + e->rows.n_sessions - 1 <= room;
    bool pages = n_pages <= s->n_pages || e->n_free_pages > e->rows.n_sessions;
    return rows && pages ? s->n_drafts : 0;
}

/* Rows of one session never lie apart: each session is asked once, in one of the two passes. */
static void collect_rows(dsi_engine *e) {
    dsi_step_rows *r = &e->rows;
    r->n_rows = r->n_head_rows = 0;
    for (uint32_t i = 0; i < r->n_sessions; i++) {
        dsi_session *s = r->sessions[i];
        r->taken[i] = r->extra[i] = 0;
        r->broken[i] = (dsi_broken){0};
        s->is_ahead = false;
        s->outcome = s->n_total > s->n_tokens ? dsi_session_hindrance(s) : DSI_OK;
    }
    for (int prompts = 0; prompts < 2; prompts++)
        for (uint32_t i = 0; i < r->n_sessions; i++) {
            dsi_session *s = r->sessions[i];
            uint32_t queued = s->n_total - s->n_tokens, room = e->options.chunk_tokens - r->n_rows;
            if (!queued || (queued > 1) != prompts || s->outcome != DSI_OK) continue;
            dsi_session_seal(s);
            uint32_t n = queued < room ? queued : room;
            uint32_t drafts = n == queued ? drafts_of(s, n, room) : 0;
            if (n) s->outcome = add_rows(s, i, n + drafts);
            if (s->outcome == DSI_E_CONTEXT && drafts) /* no page for them: without */
                s->outcome = add_rows(s, i, n);
        }
}

/* Copies a row of logits to its session and looks for what is not a number. */
static void hand_out(dsi_engine *e, uint32_t head, const float *logits) {
    dsi_step_rows *r = &e->rows;
    uint32_t seq = r->head_seq[head], vocab = e->model->config.vocab_size;
    dsi_session *s = r->sessions[seq];
    float *to = s->logits + (uint64_t)s->n_logits++ * vocab;
    memcpy(to, logits, vocab * sizeof *to);
    if (!r->broken[seq].name && !dsi_all_finite(to, vocab))
        r->broken[seq] = (dsi_broken){"lm_head", -1, (uint32_t)r->position[r->head_rows[head]]};
}

static dsi_status compute_heads(dsi_engine *e) {
    dsi_step_rows *r = &e->rows;
    uint64_t vocab = e->model->config.vocab_size;
    for (uint32_t i = 0; i < r->n_sessions; i++)
        if (r->taken[i]) r->sessions[i]->n_logits = 0, r->sessions[i]->has_logprob = false;
    for (uint32_t first = 0; first < r->n_head_rows;) {
        uint32_t n = r->n_head_rows - first;
        if (n > dsi_head_rows(e)) n = dsi_head_rows(e);
        dsi_status st = dsi_forward_head(e, DSI_FORWARD_RUN, first, n, r->head_logits, NULL);
        if (st != DSI_OK) return st;
        for (uint32_t i = 0; i < n; i++) hand_out(e, first + i, r->head_logits + i * vocab);
        first += n;
    }
    return DSI_OK;
}

bool dsi_step_cancelled(const dsi_engine *e) {
    const dsi_step_rows *r = &e->rows;
    for (uint32_t i = 0; i < r->n_sessions; i++)
        if (r->taken[i] && !dsi_session_is_cancelled(r->sessions[i])) return false;
    return r->n_rows > 0;
}

/* What the caller gets: success if any session was computed, else what hindered the first. */
static dsi_status conclude(dsi_engine *e, size_t *n_rows) {
    dsi_step_rows *r = &e->rows;
    dsi_session *first = NULL;
    uint32_t n = 0;
    for (uint32_t i = 0; i < r->n_sessions; i++) {
        if (r->sessions[i]->outcome == DSI_OK)
            n += r->taken[i];
        else if (!first)
            first = r->sessions[i];
    }
    if (n_rows) *n_rows = n;
    if (n || !first) return DSI_OK;
    e->handle.error = *first->error;
    for (uint32_t i = 0; i < r->n_sessions; i++)
        if (r->sessions[i]->outcome == first->outcome)
            dsi_session_report(r->sessions[i], first->outcome);
    return first->outcome;
}

/* What became of the rows of one session in a step that ended with `st`. Only a success moves
 * n_tokens: the rows of any other are computed again, or never. */
static void settle(dsi_engine *e, uint32_t i, dsi_status st) {
    dsi_session *s = e->rows.sessions[i];
    if (st == DSI_OK && !e->rows.broken[i].name) {
        s->n_tokens += e->rows.taken[i];
        s->n_extra = e->rows.extra[i];
        s->n_logits -= s->n_extra; /* those of drafts count once they are met */
        s->first_logit = s->n_tokens - s->n_logits;
    } else if (st == DSI_OK) {
        s->broken = e->rows.broken[i];
        s->n_logits = 0;
        s->outcome = dsi_session_hindrance(s);
    } else if (st == DSI_E_CANCELLED) {
        s->outcome = dsi_session_hindrance(s);
    } else {
        s->n_logits = 0;
        s->outcome = st;
        *s->error = e->handle.error;
    }
}

static dsi_status step(dsi_engine *e, size_t *n_rows) {
    dsi_step_rows *r = &e->rows;
    const bool drafts = e->options.draft_tokens != 0;
    dsi_status st = drafts ? dsi_draft_before_step(e) : DSI_OK;
    if (st != DSI_OK) return st;
    collect_rows(e);
    if (r->n_rows) st = dsi_forward(e, DSI_FORWARD_RUN, NULL);
    if (r->n_rows && st == DSI_OK) st = compute_heads(e);
    if (r->n_rows && st == DSI_OK && drafts) st = dsi_draft_after_step(e);
    if (r->n_rows && st == DSI_OK) st = e->backend->stream_sync(e->stream, UINT32_MAX);
    for (uint32_t i = 0; i < r->n_sessions; i++)
        if (r->taken[i]) settle(e, i, st);
    return st == DSI_OK || st == DSI_E_CANCELLED ? conclude(e, n_rows) : st;
}

static dsi_status locked_step(dsi_engine *e, dsi_session *const *sessions, size_t n, bool guarded,
                              size_t *n_rows) {
    pthread_mutex_lock(&e->lock);
    dsi_status st = check_sessions(e, sessions, n, guarded);
    if (st == DSI_OK) {
        e->rows.sessions = sessions;
        e->rows.n_sessions = (uint32_t)n;
        st = step(e, n_rows);
    } else {
        /* the sessions learn why, while no other step can overwrite the message */
        for (size_t i = 0; i < n; i++)
            if (sessions[i] && sessions[i]->engine == e)
                sessions[i]->handle.error = e->handle.error;
    }
    pthread_mutex_unlock(&e->lock);
    return st;
}

dsi_status dsi_step_sessions(dsi_engine *e, dsi_session *const *sessions, size_t n,
                             size_t *n_rows) {
    return locked_step(e, sessions, n, false, n_rows);
}

dsi_status dsi_engine_step(dsi_engine *engine, dsi_session *const *sessions, size_t n_sessions,
                           size_t *n_rows) {
    if (n_rows) *n_rows = 0;
    if (!engine || (!sessions && n_sessions))
        return dsi_fail(dsi_thread_error(), DSI_E_ARG,
                        "dsi_engine_step: engine or sessions is NULL");
    if (dsi_is_child(engine->process))
        return dsi_fail_child(&engine->handle.error, "dsi_engine_step", engine->process);
    return locked_step(engine, sessions, n_sessions, true, n_rows);
}
