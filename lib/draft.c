/* draft.c: multi-token prediction: the block behind the last layer drafts the token after the next,
 * and the next step computes it beside the sampled one.
 *
 * The block takes the state of a row behind the last norm, and the token behind that row. So rows
 * of a prompt go to its cache in their own step; the state of its last row is held until a token
 * was sampled, and goes through the block at the beginning of the next step, which gives the draft.
 * Rows that do not draft are of use to later ones as keys alone, so they take that part of the
 * block and no more.
 *
 * A draft is one token, not a distribution. The sampler draws from the model's own logits as it
 * would without drafts, with the same random numbers; if it draws the draft, the row behind it is
 * there already. That is rejection sampling for a draft of one token: the draft is taken with the
 * probability that the model gives it, and the answer is the same token for token. */
#include "internal.h"

/* ---- Rows of the block ---------------------------------------------------------------------- */

/* The block's row for `position`: the token is the one behind it. */
static void set_row(dsi_engine *e, uint32_t row, const dsi_session *s, uint32_t seq,
                    uint32_t position, int32_t token) {
    dsi_step_rows *r = &e->rows;
    r->tokens[row] = token;
    r->seq[row] = (int32_t)seq;
    r->position[row] = (int32_t)position;
    r->slots[row] =
        (int64_t)s->pages[position / DSI_PAGE_ROWS] * DSI_PAGE_ROWS + position % DSI_PAGE_ROWS;
    r->expanded[row] = 0;
}

static dsi_status move_state(dsi_engine *e, float *values, uint32_t row, bool to_device) {
    const dsi_tensor *t = &e->scratch.mtp_hidden;
    uint64_t offset = t->offset + (uint64_t)row * (uint64_t)t->stride[1] * sizeof *values;
    uint64_t n = (uint64_t)t->ne[0] * sizeof *values;
    return to_device ? e->backend->write(e->stream, e->scratch.buf, offset, values, n)
                     : e->backend->read(e->stream, values, e->scratch.buf, offset, n);
}

static int32_t likeliest(const float *logits, uint32_t n) {
    uint32_t best = 0;
    for (uint32_t i = 1; i < n; i++)
        if (logits[i] > logits[best]) best = i;
    return (int32_t)best;
}

/* ---- Before a step -------------------------------------------------------------------------- */

/* Held states whose rows stayed: a cut or a refused draft leaves fewer. */
static uint32_t n_valid(const dsi_session *s) {
    if (s->first_held >= s->n_tokens) return 0;
    uint32_t n = s->n_tokens - s->first_held;
    return n < s->n_held ? n : s->n_held;
}

/* Row `row` of the block gets the held state of `position`. */
static dsi_status add_state(dsi_engine *e, uint32_t row, dsi_session *s, uint32_t seq,
                            uint32_t position) {
    const uint32_t hidden = e->model->config.hidden_size;
    set_row(e, row, s, seq, position, s->tokens[position + 1]);
    return move_state(e, s->held + (uint64_t)(position - s->first_held) * hidden, row, true);
}

/* Rows that session `seq` sends through the block before this step. *drafts: the last one is to
 * draft: with a prompt behind it, or without room, nothing is drafted. */
static uint32_t n_waiting(const dsi_session *s, uint32_t room, bool *drafts) {
    const uint32_t n = n_valid(s);
    *drafts = false;
    if (!s->n_pages || dsi_session_is_cancelled(s) || n == 0 || s->n_total == s->n_tokens ||
        n > room)
        return 0;
    *drafts = s->n_total == s->n_tokens + 1 && s->first_held + n == s->n_tokens &&
              s->n_total < s->engine->options.max_context;
    return n;
}

/* By default, drafts for so many sessions of a step; rows of more share the experts already. */
enum { AUTO_SESSIONS = 2 };
static bool too_many(const dsi_engine *e) {
    uint32_t n = 0;
    for (uint32_t i = 0; i < e->rows.n_sessions; i++)
        n += e->rows.sessions[i]->n_total == e->rows.sessions[i]->n_tokens + 1;
    return e->auto_drafts && n > AUTO_SESSIONS;
}

/* The held states of all sessions: first those that draft, of each session the last one, then the
 * others, which only go to the block's cache. */
static dsi_status add_held(dsi_engine *e, uint32_t *n_rows, uint32_t *n_draft) {
    dsi_step_rows *r = &e->rows;
    dsi_status st = DSI_OK;
    uint32_t n = 0, n_all = 0, n_drafting = 0;
    const bool none = too_many(e);
    bool drafts;
    for (uint32_t i = 0; i < r->n_sessions; i++) {
        dsi_session *s = r->sessions[i];
        s->n_drafts = 0;
        r->taken[i] = n_waiting(s, e->options.chunk_tokens - n_all, &drafts);
        if (!r->taken[i]) continue;
        memcpy(r->page_table + (uint64_t)i * e->max_pages, s->pages, s->n_pages * sizeof *s->pages);
        n_all += r->taken[i];
        s->n_held = 0;
        if (!drafts || none) continue;
        r->mtp_rows[n_drafting] = (int32_t)n_drafting;
        r->head_seq[n_drafting++] = i;
        r->taken[i]--;
    }
    for (; n < n_drafting && st == DSI_OK; n++) {
        dsi_session *s = r->sessions[r->head_seq[n]];
        st = add_state(e, n, s, r->head_seq[n], s->n_tokens - 1);
    }
    for (uint32_t i = 0; i < r->n_sessions; i++) {
        dsi_session *s = r->sessions[i];
        for (uint32_t k = 0; k < r->taken[i] && st == DSI_OK; k++)
            st = add_state(e, n++, s, i, s->first_held + k);
    }
    *n_rows = n_all, *n_draft = n_drafting;
    return st;
}

/* The token that row `i` of the head drafts for session `seq`; the next row of a chain. */
static void take_draft(dsi_engine *e, uint32_t i, uint32_t seq, const float *logits) {
    dsi_session *s = e->rows.sessions[seq];
    uint32_t at = s->n_total + s->n_drafts; /* below max_context */
    s->tokens[at] = likeliest(logits, e->model->config.vocab_size);
    if (e->choose_draft) s->tokens[at] = e->choose_draft(e->choose_user, s, at, s->tokens[at]);
    s->n_drafts++;
    set_row(e, i, s, seq, at - 1, s->tokens[at]);
}

/* Drafts behind the first: the block's own normed output is the state of the row behind. Pages for
 * these rows come with the step; a chain ends where its page is not there yet. */
static uint32_t keep_chains(dsi_engine *e, uint32_t n) {
    dsi_step_rows *r = &e->rows;
    uint32_t n_kept = 0;
    for (uint32_t i = 0; i < n; i++) {
        const dsi_session *s = r->sessions[r->seq[i]];
        uint32_t position = (uint32_t)r->position[i];
        bool fits = position / DSI_PAGE_ROWS < s->n_pages && position + 2 < e->options.max_context;
        if (!fits || n_kept != i) return n_kept; /* states lie in order: the first ones stay */
        n_kept++;
    }
    return n_kept;
}

static dsi_status draft(dsi_engine *e, uint32_t n) {
    dsi_step_rows *r = &e->rows;
    const uint64_t vocab = e->model->config.vocab_size;
    dsi_status st = dsi_forward_mtp_head(e, DSI_FORWARD_RUN, n, r->head_logits, NULL);
    for (uint32_t i = 0; i < n && st == DSI_OK; i++)
        take_draft(e, i, (uint32_t)r->head_seq[i], r->head_logits + i * vocab);
    return st;
}

dsi_status dsi_draft_before_step(dsi_engine *e) {
    dsi_step_rows *r = &e->rows;
    uint32_t n_rows, n;
    dsi_status st = add_held(e, &n_rows, &n);
    if (n_rows && st == DSI_OK) st = dsi_forward_mtp_block(e, DSI_FORWARD_RUN, n_rows, n, NULL);
    if (n && st == DSI_OK) st = draft(e, n);
    for (uint32_t d = 1; d < e->options.draft_tokens && n && st == DSI_OK; d++) {
        n = keep_chains(e, n);
        for (uint32_t i = 0; i < n; i++) r->mtp_rows[i] = (int32_t)i;
        if (n) st = dsi_forward_mtp_block(e, DSI_FORWARD_RUN, n, n, NULL);
        if (n && st == DSI_OK) st = draft(e, n);
    }
    return st;
}

void dsi_engine_choose_drafts(dsi_engine *engine, dsi_draft_choose choose, void *user) {
    engine->choose_draft = choose;
    engine->choose_user = user;
}

/* ---- Behind a step -------------------------------------------------------------------------- */

/* The states of rows from the last queued token on are held: what follows them is not sampled. */
static dsi_status hold(dsi_engine *e, const int32_t *rows, uint32_t n_known, uint32_t n) {
    dsi_step_rows *r = &e->rows;
    const uint32_t hidden = e->model->config.hidden_size;
    dsi_status st = DSI_OK;
    for (uint32_t i = n_known; i < n && st == DSI_OK; i++) {
        dsi_session *s = r->sessions[r->seq[rows[i]]];
        uint32_t position = (uint32_t)r->position[rows[i]];
        if (position + 1 == s->n_total) s->first_held = position, s->n_held = 0;
        st = move_state(e, s->held + (uint64_t)s->n_held++ * hidden, i, false);
    }
    return st;
}

dsi_status dsi_draft_after_step(dsi_engine *e) {
    dsi_step_rows *r = &e->rows;
    const uint32_t n = r->n_rows;
    uint32_t n_known = 0, n_all = 0;
    int32_t *rows = r->mtp_rows;
    for (int held = 0; held < 2; held++)
        for (uint32_t i = 0; i < n; i++) {
            const dsi_session *s = r->sessions[r->seq[i]];
            bool known = (uint32_t)r->position[i] + 1 < s->n_total;
            if (known != (held == 0)) continue;
            rows[n_all++] = (int32_t)i;
            n_known += known;
        }
    dsi_status st = dsi_forward_mtp_states(e, DSI_FORWARD_RUN, n_all, NULL);
    if (st == DSI_OK) st = hold(e, rows, n_known, n_all);
    if (st != DSI_OK || n_known == 0) return st;
    for (uint32_t i = 0; i < n_known; i++) { /* rows[i] >= i: nothing is overwritten too early */
        const int32_t from = rows[i], seq = r->seq[from], position = r->position[from];
        const uint8_t expanded = r->expanded[from];
        const dsi_session *s = r->sessions[seq];
        set_row(e, i, s, (uint32_t)seq, (uint32_t)position, s->tokens[position + 1]);
        r->expanded[i] = expanded;
    }
    return dsi_forward_mtp_block(e, DSI_FORWARD_RUN, n_known, 0, NULL);
}

/* ---- The sampler ---------------------------------------------------------------------------- */

uint32_t dsi_draft_held(const dsi_session *s) {
    const uint32_t n = n_valid(s);
    return s->first_held + n == s->n_tokens ? n : 0;
}

void dsi_draft_hold(dsi_session *s, const float *states, uint32_t n) {
    const uint64_t hidden = s->engine->model->config.hidden_size;
    if (!s->held || n == 0 || n > 1 + s->engine->options.draft_tokens) return;
    memcpy(s->held, states, n * hidden * sizeof *s->held);
    s->first_held = s->n_tokens - n;
    s->n_held = n;
}

void dsi_draft_cut(dsi_session *s) {
    s->n_drafts = s->n_extra = 0;
    s->n_held = n_valid(s);
}

void dsi_draft_put_back(dsi_session *s) {
    const bool there = s->is_ahead && s->n_tokens == s->n_total; /* its pages may be gone since */
    s->is_ahead = false;
    if (!there) return;
    s->n_drafts = s->n_extra = 0;
    s->n_sealed = --s->n_tokens;
    s->n_logits--;
}

void dsi_draft_meet(dsi_session *s, int32_t token) {
    s->is_ahead = false;
    s->n_drafts = 0; /* those of this place are spent */
    if (s->n_extra == 0) return;
    s->n_drafted++;
    if (s->tokens[s->n_total] != token) {
        s->n_extra = 0;
        return;
    }
    s->n_accepted++;
    s->n_extra--;
    s->n_tokens++;
    s->n_logits++;
    s->n_sealed = s->n_tokens; /* in absorbed form, like every token that comes alone */
    s->is_ahead = true;
}
