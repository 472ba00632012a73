/* model_draft.c: `dsi-bench model --draft N`: decode with drafts of the MTP block beside decode
 * without, in turns, and what the bytes that both read allow; the same bytes for DeepSeek-V3.
 *
 * Random weights draft nothing right. So with --force-accept P every draft is computed and then
 * replaced: by the token that the side without drafts has sampled there, evenly in P of all cases,
 * else by another one. The answers are those of the side without drafts in any case. */
#include "model.h"

#include "../lib/base/sys.h"
#include "../lib/internal.h"
#include "synth.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

/* Steps without drafts between those with. Before each turn a pause, in which the threads of the
 * other engine fall asleep: while they still spin, the system wakes ours on one CPU together. */
enum { TURN = 10, PAUSE_NS = 5000000 };

/* ---- Bytes ----------------------------------------------------------------------------------- */

/* What steps read of weights, in bytes. */
typedef struct draft_bytes {
    double plain;          /* a step of one row */
    double block;          /* one draft: the MTP block for one row, and its head */
    double expert;         /* one routed expert */
    double n_moe;          /* layers with experts, the block not among them */
    double n_experts, n_k; /* of a layer, of a row */
} draft_bytes;

/* Distinct experts that `rows` rows choose in a layer, if rows choose independently and all experts
 * alike: an expert is left out by all of them with the chance (1 - k/E)^rows. Groups do not change
 * that: the chance of one row and one expert is k/E all the same. */
static double distinct_experts(const draft_bytes *b, double rows) {
    return b->n_experts > 0 ? b->n_experts * (1 - pow(1 - b->n_k / b->n_experts, rows)) : 0;
}

/* A step of `batch` sessions with n drafts each reads what the rows of all read together, and the
 * block once for every draft of a chain (its rows share it, but for their experts). */
static double step_bytes(const draft_bytes *b, double batch, double n_drafts, double distinct) {
    double of_block = distinct_experts(b, batch) - b->n_k;
    return b->plain + b->n_moe * (distinct - b->n_k) * b->expert +
           n_drafts * (b->block + (b->n_experts > 0 ? of_block * b->expert : 0));
}

/* Tokens of a session and step, if each draft behind an accepted one is right with chance p. */
static double tokens_of(double p, double n_drafts) {
    double sum = 1;
    for (double i = 1; i <= n_drafts; i++) sum += pow(p, i);
    return sum;
}

/* By how much `batch` sessions become faster, if time is bytes. */
static double faster_by(const draft_bytes *b, double batch, double n_drafts, double tokens,
                        double distinct) {
    double without = step_bytes(b, batch, 0, distinct_experts(b, batch));
    return tokens * without / step_bytes(b, batch, n_drafts, distinct);
}

static double sum_weights(const dsi_weight *const *weights, size_t n) {
    uint64_t sum = 0;
    for (size_t i = 0; i < n; i++)
        if (weights[i]->name) sum += model_weight_bytes(weights[i]);
    return (double)sum;
}
static double mlp_bytes(const dsi_mlp_weights *m) {
    return sum_weights((const dsi_weight *[]){&m->gate_proj, &m->up_proj, &m->down_proj}, 3);
}

static draft_bytes bytes_of_model(const model_run *r) {
    const dsi_weights *w = &r->model->weights;
    const dsi_config *c = &r->model->config;
    const dsi_mtp_weights *m = &w->mtp;
    const dsi_layer_weights *l = &m->layer;
    const dsi_weight *const block[] = {&m->enorm, &m->hnorm, &m->eh_proj, &m->norm};
    const dsi_weight *always[DSI_LAYER_WEIGHTS];
    dsi_layer_weights_always(l, always);
    draft_bytes b = {.plain = (double)r->info.n_bytes_token,
                     .block = sum_weights(block, sizeof block / sizeof block[0]) +
                              sum_weights(always, DSI_LAYER_WEIGHTS)};
    b.block += (double)model_weight_bytes(m->head.name ? &m->head : &w->lm_head);
    for (uint32_t i = 0; i < c->n_layers; i++) b.n_moe += w->layers[i].is_moe;
    if (!l->is_moe) b.block += mlp_bytes(&l->mlp);
    if (b.n_moe == 0) return b;
    b.n_experts = c->n_routed_experts, b.n_k = c->n_experts_per_token;
    b.expert = mlp_bytes(&w->layers[c->n_layers - 1].experts[0]);
    if (l->is_moe) b.block += b.n_k * b.expert + mlp_bytes(&l->shared_experts);
    return b;
}

/* DeepSeek-V3 with its 61 layers, 256 experts and whole vocabulary in published FP8, tensor by
 * tensor. false: no memory. */
static bool bytes_of_v3(draft_bytes *b) {
    synth_shape v3;
    synth_list list;
    if (!synth_find("v3", &v3) || !synth_cut(&v3, 0, 0, true) ||
        !synth_list_make(&v3, synth_form_find("fp8"), &list))
        return false;
    *b = (draft_bytes){.n_moe = (double)(v3.num_hidden_layers - v3.first_k_dense_replace),
                       .n_experts = (double)v3.n_routed_experts,
                       .n_k = (double)v3.num_experts_per_tok};
    for (size_t i = 0; i < list.n; i++) {
        const synth_tensor *t = &list.tensors[i];
        double bytes = (double)t->n_bytes;
        if (strstr(t->name, "layers.3.mlp.experts.0.")) b->expert += bytes;
        if (strstr(t->name, ".mlp.experts.")) bytes *= b->n_k / b->n_experts;
        if (strstr(t->name, "embed_tokens")) bytes /= (double)v3.vocab_size; /* one row */
        *(strstr(t->name, "model.layers.61.") ? &b->block : &b->plain) += bytes;
    }
    synth_list_free(&list);
    return true;
}

/* ---- Forced drafts --------------------------------------------------------------------------- */

typedef struct forced {
    const model_run *r;
    uint64_t n[DSI_MAX_DRAFTS]; /* drafts so far, by their place in the chain */
} forced;

static int32_t choose(void *user, const dsi_session *session, uint32_t position, int32_t drafted) {
    forced *f = user;
    const model_side *sides = f->r->sides;
    uint32_t i = 0;
    while (i + 1 < MODEL_BATCH && sides[1].sessions[i] != session) i++;
    const dsi_session *plain = sides[0].sessions[i];
    if (!plain || position >= plain->n_total) return drafted;
    uint64_t *n = &f->n[session->n_drafts < DSI_MAX_DRAFTS ? session->n_drafts : 0];
    const double p = f->r->options->force_accept;
    bool right = floor((double)(*n + 1) * p) > floor((double)*n * p);
    ++*n;
    return right ? plain->tokens[position]
                 : (plain->tokens[position] + 1) % (int32_t)f->r->info.vocab_size;
}

/* ---- Measure --------------------------------------------------------------------------------- */

/* One step of the side with drafts: every session samples until it must wait. */
static dsi_status draft_step(model_side *side, uint32_t batch, uint32_t *n_tokens) {
    dsi_status status = DSI_OK;
    int32_t token;
    for (uint32_t i = 0; i < batch; i++)
        while (status == DSI_OK && !dsi_session_n_queued(side->sessions[i])) {
            status = dsi_session_sample(side->sessions[i], &token);
            ++*n_tokens;
        }
    return status == DSI_OK ? dsi_engine_step(side->engine, side->sessions, batch, NULL) : status;
}

/* Tokens that the side without drafts is ahead, in the session where these are fewest. */
static uint32_t ahead(const model_run *r, uint32_t batch) {
    uint32_t least = UINT32_MAX;
    for (uint32_t i = 0; i < batch; i++) {
        const uint32_t a = r->sides[0].sessions[i]->n_total, b = r->sides[1].sessions[i]->n_total;
        const uint32_t lead = a > b ? a - b : 0;
        if (lead < least) least = lead;
    }
    return least;
}

static void pause_between_turns(void) {
    const struct timespec pause = {0, PAUSE_NS};
    nanosleep(&pause, NULL);
}

static dsi_status plain_steps(model_run *r, uint32_t batch, uint32_t n, double *seconds) {
    dsi_status status = DSI_OK;
    uint32_t n_tokens = 0;
    pause_between_turns();
    for (uint32_t i = 0; i < n && status == DSI_OK; i++) {
        double start = dsi_sys_seconds();
        status = draft_step(&r->sides[0], batch, &n_tokens);
        if (seconds) seconds[i] = dsi_sys_seconds() - start;
    }
    return status;
}

/* Both sides at the same tokens: the side without drafts some steps ahead, so that it knows what
 * the other one will sample. */
static dsi_status set_out(model_run *r, uint32_t depth, uint32_t batch, uint32_t lead) {
    const uint64_t random = r->random;
    dsi_status status = DSI_OK;
    for (uint32_t s = 0; s < 2; s++) {
        r->random = random;
        for (uint32_t i = 0; i < batch && status == DSI_OK; i++) {
            status = dsi_session_rewind(r->sides[s].sessions[i], 0);
            if (status == DSI_OK) status = model_fill(r, &r->sides[s], i, depth);
            if (status == DSI_OK) status = model_append_random(r, r->sides[s].sessions[i], 1);
        }
        if (status == DSI_OK) status = model_drain(&r->sides[s], batch, NULL);
    }
    return status == DSI_OK ? plain_steps(r, batch, lead, NULL) : status;
}

/* Steps with drafts until nothing is left that is known before; returns their number in *n. */
static dsi_status catch_up(model_run *r, uint32_t batch, uint32_t lead, double *seconds,
                           uint32_t *n, uint32_t *n_tokens) {
    dsi_status status = DSI_OK;
    pause_between_turns();
    while (status == DSI_OK && *n < r->room && ahead(r, batch) >= lead) {
        double start = dsi_sys_seconds();
        status = draft_step(&r->sides[1], batch, n_tokens);
        seconds[(*n)++] = dsi_sys_seconds() - start;
    }
    return status;
}

/* The steps once more, untimed: the distinct experts of a layer. */
static dsi_status count_experts(model_run *r, uint32_t depth, uint32_t batch, uint32_t lead,
                                double *distinct) {
    uint32_t n = 0, n_tokens = 0;
    double unused[MODEL_DRAFT_COUNTED];
    const uint32_t room = r->room;
    dsi_status status = set_out(r, depth, batch, lead + MODEL_DRAFT_COUNTED);
    if (status != DSI_OK) return status;
    model_tap_begin(&r->sides[1]);
    r->room = MODEL_DRAFT_COUNTED;
    status = catch_up(r, batch, lead, unused, &n, &n_tokens);
    r->room = room;
    *distinct = model_tap_end(&r->sides[1]);
    return status;
}

static dsi_status measure(model_run *r, uint32_t depth, uint32_t batch, model_drafts *d) {
    const uint32_t lead = 2 * (r->options->draft + 1), n = r->options->decode;
    double *plain = r->seconds, *drafted = r->seconds + r->room;
    uint32_t n_tokens = 0, n_before[2] = {0}, n_after[2] = {0};
    const uint64_t random = r->random;
    dsi_status status = set_out(r, depth, batch, lead);
    for (uint32_t i = 0; i < batch; i++) {
        n_before[0] += r->sides[1].sessions[i]->n_drafted;
        n_before[1] += r->sides[1].sessions[i]->n_accepted;
    }
    for (uint32_t done = 0; status == DSI_OK && done < n; done += TURN) {
        uint32_t now = n - done < TURN ? n - done : TURN;
        bench_yardstick_round(r->yardstick, BENCH_READ);
        status = plain_steps(r, batch, now, plain + done);
        if (status == DSI_OK) status = catch_up(r, batch, lead, drafted, &d->n_steps, &n_tokens);
        bench_progress("decode with and without drafts", done + now, n);
    }
    for (uint32_t i = 0; i < batch; i++) {
        n_after[0] += r->sides[1].sessions[i]->n_drafted;
        n_after[1] += r->sides[1].sessions[i]->n_accepted;
    }
    if (status != DSI_OK || !d->n_steps) return status;
    uint32_t n_drafted = n_after[0] - n_before[0];
    d->accepted = n_drafted ? (double)(n_after[1] - n_before[1]) / n_drafted : 0;
    d->tokens_step = (double)n_tokens / d->n_steps / batch;
    d->plain_seconds = bench_median(plain, n);
    d->seconds = bench_median(drafted, d->n_steps);
    r->random = random;
    return d->bytes_expert > 0 ? count_experts(r, depth, batch, lead, &d->experts) : status;
}

static void fill_row(model_row *row, uint32_t n_steps, double seconds, double tokens,
                     double bytes) {
    row->tokens = n_steps;
    row->p50 = row->p90 = row->p99 = seconds;
    row->tps = row->batch * tokens / seconds;
    row->n_bytes_step = (uint64_t)bytes;
    row->gbs = bytes / seconds / 1e9;
}

dsi_status model_measure_drafts(model_run *r, uint32_t depth, uint32_t batch, model_row *plain,
                                model_row *row) {
    forced f = {.r = r};
    draft_bytes b = bytes_of_model(r), v3;
    const double n = r->options->draft;
    model_drafts d = {.bytes_expert = b.expert};
    if (r->options->force_accept > 0) dsi_engine_choose_drafts(r->sides[1].engine, choose, &f);
    dsi_status status = measure(r, depth, batch, &d);
    dsi_engine_choose_drafts(r->sides[1].engine, NULL, NULL);
    if (status != DSI_OK || !d.n_steps) return status;
    d.experts_expected = distinct_experts(&b, batch * (1 + n));
    if (d.experts <= 0) d.experts = d.experts_expected;
    d.bytes_plain = step_bytes(&b, batch, 0, distinct_experts(&b, batch));
    d.bytes_step = step_bytes(&b, batch, n, d.experts);
    d.faster = d.tokens_step * d.plain_seconds / d.seconds;
    d.faster_by_bytes = faster_by(&b, batch, n, d.tokens_step, d.experts);
    if (!bytes_of_v3(&v3)) return DSI_E_NOMEM;
    static const double rates[] = {0.7, 0.85, 0.9};
    d.v3_plain = v3.plain;
    d.v3_step = step_bytes(&v3, 1, n, distinct_experts(&v3, 1 + n));
    for (int i = 0; i < 3; i++)
        d.v3_faster[i] = faster_by(&v3, 1, n, tokens_of(rates[i], n), distinct_experts(&v3, 1 + n));
    row->drafts = d;
    fill_row(row, d.n_steps, d.seconds, d.tokens_step, d.bytes_step);
    row->experts = d.experts;
    fill_row(plain, r->options->decode, d.plain_seconds, 1, d.bytes_plain);
    plain->experts = distinct_experts(&b, batch);
    return status;
}

/* ---- Reports --------------------------------------------------------------------------------- */

void model_drafts_md(const model_run *r) {
    for (uint32_t i = 0; i < r->n_rows; i++) {
        const model_drafts *d = &r->rows[i].drafts;
        if (!d->n_steps) continue;
        printf("\nDrafts, %u a step, batch %u, depth %u, %u steps: ", r->options->draft,
               r->rows[i].batch, r->rows[i].depth, d->n_steps);
        if (r->options->force_accept > 0)
            printf("FORCED, not the model's own (--force-accept %g): ", r->options->force_accept);
        printf("%.1f %% taken, %.3f tokens a step and session.\n", 100 * d->accepted,
               d->tokens_step);
        printf(
            "Decode is %.3f times as fast as without (%.2f ms a step, %.2f without); bytes allow "
            "%.3f: %.1f %% of it.\n",
            d->faster, d->seconds * 1e3, d->plain_seconds * 1e3, d->faster_by_bytes,
            100 * d->faster / d->faster_by_bytes);
        printf("Bytes: %.3f GB a step without, %.3f with: %.2f distinct experts a layer counted "
               "(%.2f if rows chose independently).\n",
               d->bytes_plain / 1e9, d->bytes_step / 1e9, d->experts, d->experts_expected);
        printf("DeepSeek-V3, 671 B parameters in FP8, one session, by the same count of bytes: "
               "%.2f GB a token without, %.2f GB a step with drafts: %.3f times as fast if 70 %% "
               "are taken, %.3f with 85 %%, %.3f with 90 %%.\n",
               d->v3_plain / 1e9, d->v3_step / 1e9, d->v3_faster[0], d->v3_faster[1],
               d->v3_faster[2]);
    }
}

void model_drafts_json(const model_run *r, const model_drafts *d) {
    printf(", \"drafts\": {\"draft_tokens\": %u, \"forced\": %s, \"accepted\": %.4f, "
           "\"tokens_per_step\": %.4f, \"faster\": %.4f, \"faster_by_bytes\": %.4f, "
           "\"bytes_plain\": %.0f, \"bytes_step\": %.0f, \"experts\": %.3f, "
           "\"experts_independent\": %.3f, \"v3_bytes_plain\": %.0f, \"v3_bytes_step\": %.0f, "
           "\"v3_faster_70\": %.4f, \"v3_faster_85\": %.4f, \"v3_faster_90\": %.4f}",
           r->options->draft, r->options->force_accept > 0 ? "true" : "false", d->accepted,
           d->tokens_step, d->faster, d->faster_by_bytes, d->bytes_plain, d->bytes_step, d->experts,
           d->experts_expected, d->v3_plain, d->v3_step, d->v3_faster[0], d->v3_faster[1],
           d->v3_faster[2]);
}
