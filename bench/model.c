/* model.c: `dsi-bench model`: prefill and decode of a checkpoint by depth and batch, beside the
 * limits of the machine, which are measured between the steps. Random tokens: the work does not
 * depend on what they say, but which experts they choose is counted. */
#include "model.h"

#include "../lib/base/sys.h"
#include <stdlib.h>
#include <string.h>

enum { STEPS_BETWEEN_LIMITS = 6, WARM_TOKENS = 64 };

/* ---- Open ------------------------------------------------------------------------------------ */

/* UINT32_MAX: no such type. */
static uint32_t activations_of(const char *name) {
    static const char *const names[] = {"bf16", "f32", "a8", "e4m3"};
    for (uint32_t i = 0; i < 4; i++)
        if (strcmp(name, names[i]) == 0) return i;
    return UINT32_MAX;
}

static const char *const kv_caches[] = {"bf16", "fp8", "int8"};
enum { KV_CACHES = sizeof kv_caches / sizeof kv_caches[0] };
static uint32_t kv_cache_of(const char *name) {
    uint32_t i = 0;
    while (i < KV_CACHES && strcmp(name, kv_caches[i]) != 0) i++;
    return i;
}

static dsi_engine_options engine_options(const model_run *r) {
    const bench_options *o = r->options;
    uint32_t prefill = bench_largest(&o->prefill), depth = bench_largest(&o->depth);
    uint32_t batch = bench_largest(&o->batch), tail = (o->profile ? 2 : 1) * o->decode + 8;
    if (o->draft) tail += MODEL_DRAFT_COUNTED + 4 * DSI_MAX_DRAFTS;
    dsi_engine_options e;
    dsi_engine_options_init(&e);
    e.n_threads = o->threads;
    e.kernels = o->kernels;
    e.activations = o->activations ? activations_of(o->activations) : DSI_ACTIVATIONS_BF16;
    e.kv_cache = kv_cache_of(o->kv_cache);
    e.max_sessions = batch;
    e.max_context = depth + (prefill > tail ? prefill : tail);
    if (e.max_context < WARM_TOKENS) e.max_context = WARM_TOKENS;
    e.kv_tokens = batch * (depth + tail + DSI_PAGE_ROWS) + e.max_context;
    e.chunk_tokens = o->chunk;
    e.draft_tokens = 0;
    return e;
}

static const char *const libraries[] = {"auto", "own", "onednn", "openblas"};

static dsi_status open_side(model_run *r, model_side *side) {
    dsi_engine_options engine = engine_options(r);
    engine.mode = strcmp(side->mode, "fast") == 0;
    if (strcmp(side->mode, "drafts") == 0) engine.draft_tokens = r->options->draft;
    for (uint32_t i = 0; engine.mode && i < 4; i++)
        if (strcmp(r->options->gemm, libraries[i]) == 0) engine.gemm = i;
    side->plan.struct_size = sizeof side->plan;
    r->what = "plan";
    dsi_status status = dsi_plan(r->model, &engine, &side->plan);
    double start = dsi_sys_seconds();
    if (status == DSI_OK) r->what = "engine";
    if (status == DSI_OK) status = dsi_engine_open(r->model, &engine, &side->engine);
    side->open_seconds = dsi_sys_seconds() - start;
    for (uint32_t i = 0; status == DSI_OK && i < engine.max_sessions; i++) {
        dsi_session_options session;
        dsi_session_options_init(&session);
        session.ignore_end = 1;
        session.temperature = 1; /* neighbours go ways of their own */
        session.seed = r->options->seed + i;
        status = dsi_session_open(side->engine, &session, &side->sessions[i]);
    }
    return status;
}

static void close_side(model_side *side) {
    for (uint32_t i = 0; i < MODEL_BATCH; i++) dsi_session_close(side->sessions[i]);
    dsi_engine_close(side->engine);
    memset(side, 0, sizeof *side);
}

static dsi_status open_all(model_run *r) {
    double start = dsi_sys_seconds();
    r->what = "model";
    dsi_status status = dsi_model_open(r->options->model, NULL, &r->model);
    double seconds = dsi_sys_seconds() - start;
    r->info.struct_size = sizeof r->info;
    if (status == DSI_OK) status = dsi_model_get_info(r->model, &r->info);
    r->sides[0].mode = "exact";
    r->sides[1].mode = r->options->draft ? "drafts" : "fast";
    r->n_sides = !r->options->draft && strcmp(r->options->gemm, "own") == 0 ? 1 : 2;
    for (uint32_t i = 0; status == DSI_OK && i < r->n_sides; i++) {
        status = open_side(r, &r->sides[i]);
        r->sides[i].open_seconds += seconds;
    }
    /* a fast mode that has nothing but the own kernels is the exact one */
    if (status == DSI_OK && r->n_sides == 2 && !r->options->draft &&
        strstr(dsi_engine_describe(r->sides[1].engine), "fast: own kernels"))
        close_side(&r->sides[--r->n_sides]);
    return status;
}

/* ---- Measure --------------------------------------------------------------------------------- */

/* The next free row; the last one again when the table is full. */
static model_row *new_row(model_run *r, const model_side *side) {
    model_row *row = &r->rows[r->n_rows < MODEL_ROWS ? r->n_rows++ : MODEL_ROWS - 1];
    *row = (model_row){.mode = side->mode};
    return row;
}

static void set_percentiles(model_row *row, double *seconds, uint32_t n) {
    row->p50 = bench_median(seconds, n); /* sorts them */
    row->p90 = bench_percentile(seconds, n, 0.9);
    row->p99 = bench_percentile(seconds, n, 0.99);
}

static dsi_status time_prompt(model_run *r, model_side *side, uint32_t depth, uint32_t tokens,
                              double *computed, double *first_token) {
    dsi_session *session = side->sessions[0];
    dsi_status status = model_fill(r, side, 0, depth);
    if (status == DSI_OK) status = model_append_random(r, session, tokens);
    double start = dsi_sys_seconds();
    if (status == DSI_OK) status = model_drain(side, 1, "prefill");
    *computed = dsi_sys_seconds() - start;
    int32_t token;
    if (status == DSI_OK) status = dsi_session_sample(session, &token);
    *first_token = dsi_sys_seconds() - start;
    return status;
}

static dsi_status measure_prompt(model_run *r, uint32_t depth, uint32_t tokens) {
    uint32_t n = r->options->repeat;
    double first[MODEL_SIDES][128];
    dsi_status status = DSI_OK;
    bench_yardstick_mark(r->yardstick);
    for (uint32_t i = 0; i < n; i++)
        for (uint32_t s = 0; s < r->n_sides && status == DSI_OK; s++) {
            bench_yardstick_round(r->yardstick, BENCH_ALL);
            status = time_prompt(r, &r->sides[s], depth, tokens, &r->seconds[s * r->room + i],
                                 &first[s][i]);
        }
    bench_yardstick_round(r->yardstick, BENCH_ALL);
    for (uint32_t s = 0; s < r->n_sides && status == DSI_OK; s++) {
        model_row *row = new_row(r, &r->sides[s]);
        row->tokens = tokens, row->depth = depth, row->batch = 1;
        row->limits = bench_yardstick_since(r->yardstick);
        set_percentiles(row, r->seconds + s * r->room, n);
        row->first_token_seconds = bench_median(first[s], n);
        row->tps = tokens / row->p50;
        /* the head computes one row of the prompt */
        double body = (double)(r->info.n_params_active - model_head_params(r));
        row->gflops = 2 * (body * tokens + (double)model_head_params(r)) / row->p50 / 1e9;
    }
    return status;
}

static dsi_status time_steps(model_side *side, uint32_t batch, uint32_t n, double *seconds) {
    dsi_status status = DSI_OK;
    for (uint32_t step = 0; status == DSI_OK && step < n; step++) {
        double start = dsi_sys_seconds();
        int32_t token;
        for (uint32_t i = 0; status == DSI_OK && i < batch; i++)
            status = dsi_session_sample(side->sessions[i], &token);
        if (status == DSI_OK) status = dsi_engine_step(side->engine, side->sessions, batch, NULL);
        seconds[step] = dsi_sys_seconds() - start;
    }
    return status;
}

/* All sessions at `depth`, then one random token in each: the sampler has logits to begin with. */
static dsi_status set_out(model_run *r, model_side *side, uint32_t depth, uint32_t batch) {
    dsi_status status = DSI_OK;
    for (uint32_t i = 0; status == DSI_OK && i < batch; i++) status = model_fill(r, side, i, depth);
    for (uint32_t i = 0; status == DSI_OK && i < batch; i++)
        status = model_append_random(r, side->sessions[i], 1);
    return status == DSI_OK ? model_drain(side, batch, NULL) : status;
}

static dsi_status finish_decode(model_run *r, model_side *side, model_row *row, double *seconds) {
    uint32_t n = row->tokens, batch = row->batch;
    set_percentiles(row, seconds, n);
    row->tps = batch / row->p50;
    row->n_bytes_step = r->info.n_bytes_token;
    row->experts = r->info.n_experts_per_token;
    dsi_status status = DSI_OK;
    if (batch > 1 && r->info.n_routed_experts)
        status =
            model_count_experts(r, side, batch, n < 16 ? n : 16, &row->experts, &row->n_bytes_step);
    double cached = row->depth + 1 + n / 2.0;
    row->gbs = (double)row->n_bytes_step / row->p50 / 1e9;
    row->kv_gbs = batch * model_kv_bytes(side, cached) / row->p50 / 1e9;
    return status;
}

static dsi_status measure_drafts(model_run *r, uint32_t depth, uint32_t batch) {
    model_row *plain = new_row(r, &r->sides[0]), *row = new_row(r, &r->sides[1]);
    bench_yardstick_mark(r->yardstick);
    plain->is_decode = row->is_decode = true;
    plain->depth = row->depth = depth, plain->batch = row->batch = batch;
    dsi_status status = model_measure_drafts(r, depth, batch, plain, row);
    bench_yardstick_round(r->yardstick, BENCH_READ);
    plain->limits = row->limits = bench_yardstick_since(r->yardstick);
    for (uint32_t s = 0; status == DSI_OK && r->options->profile && s < r->n_sides; s++)
        status = model_profile_steps(r, &r->sides[s], depth, batch);
    return status;
}

static dsi_status measure_decode(model_run *r, uint32_t depth, uint32_t batch) {
    uint32_t n = r->options->decode;
    dsi_status status = DSI_OK;
    for (uint32_t s = 0; status == DSI_OK && s < r->n_sides; s++)
        status = set_out(r, &r->sides[s], depth, batch);
    bench_yardstick_mark(r->yardstick);
    for (uint32_t done = 0; status == DSI_OK && done < n; done += STEPS_BETWEEN_LIMITS) {
        uint32_t now = n - done < STEPS_BETWEEN_LIMITS ? n - done : STEPS_BETWEEN_LIMITS;
        for (uint32_t s = 0; status == DSI_OK && s < r->n_sides; s++) {
            bench_yardstick_round(r->yardstick, BENCH_READ);
            status = time_steps(&r->sides[s], batch, now, r->seconds + s * r->room + done);
        }
        bench_progress("decode", done + now, n);
    }
    bench_yardstick_round(r->yardstick, BENCH_ALL);
    for (uint32_t s = 0; status == DSI_OK && s < r->n_sides; s++) {
        model_row *row = new_row(r, &r->sides[s]);
        row->is_decode = true;
        row->limits = bench_yardstick_since(r->yardstick);
        row->tokens = n, row->depth = depth, row->batch = batch;
        status = finish_decode(r, &r->sides[s], row, r->seconds + s * r->room);
        if (status == DSI_OK && r->options->profile)
            status = model_profile_steps(r, &r->sides[s], depth, batch);
    }
    return status;
}

/* The first touch of a mapped weight is a page fault, which no later one is. */
static dsi_status warm_up(model_run *r) {
    double a, b;
    dsi_status status = DSI_OK;
    r->what = "warm-up";
    for (uint32_t s = 0; status == DSI_OK && s < r->n_sides; s++)
        status = time_prompt(r, &r->sides[s], 0, WARM_TOKENS - 1, &a, &b);
    return status;
}

static dsi_status measure(model_run *r) {
    const bench_options *o = r->options;
    dsi_status status = warm_up(r);
    r->what = "measurement";
    for (uint32_t d = 0; status == DSI_OK && d < o->depth.n; d++) {
        for (uint32_t i = 0; status == DSI_OK && i < o->prefill.n; i++)
            if (o->prefill.values[i])
                status = measure_prompt(r, o->depth.values[d], o->prefill.values[i]);
        for (uint32_t i = 0; status == DSI_OK && o->decode && i < o->batch.n; i++)
            status = o->draft ? measure_drafts(r, o->depth.values[d], o->batch.values[i])
                              : measure_decode(r, o->depth.values[d], o->batch.values[i]);
    }
    return status;
}

/* ---- The command ----------------------------------------------------------------------------- */

static bool drafts_ok(const bench_options *o) {
    if (o->draft > DSI_MAX_DRAFTS) {
        bench_say("--draft is %u; it may be 0 to %d", o->draft, DSI_MAX_DRAFTS);
        return false;
    }
    if (o->force_accept > 0 && (!o->draft || !(o->force_accept <= 1))) {
        bench_say("--force-accept is %g with --draft %u; it may be above 0 to 1, with drafts",
                  o->force_accept, o->draft);
        return false;
    }
    return true;
}

static bool usage_ok(const bench_options *o) {
    if (!o->model) bench_say("model needs -m DIR, the checkpoint folder");
    bool known = false;
    for (uint32_t i = 0; i < 4; i++) known |= strcmp(o->gemm, libraries[i]) == 0;
    if (!known) {
        bench_say("--gemm is \"%s\"; it may be auto, own, onednn or openblas", o->gemm);
        return false;
    }
    if (strcmp(o->fill, "copy") != 0 && strcmp(o->fill, "compute") != 0) {
        bench_say("--fill is \"%s\"; it may be copy or compute", o->fill);
        return false;
    }
    if (o->activations && activations_of(o->activations) == UINT32_MAX) {
        bench_say("--activations is \"%s\"; it may be bf16, f32, a8 or e4m3", o->activations);
        return false;
    }
    if (kv_cache_of(o->kv_cache) == KV_CACHES) {
        bench_say("--kv-cache is \"%s\"; it may be bf16, fp8 or int8", o->kv_cache);
        return false;
    }
    for (uint32_t i = 0; i < o->batch.n; i++)
        if (o->batch.values[i] < 1 || o->batch.values[i] > MODEL_BATCH) {
            bench_say("--batch has %u; it may be 1 to %d", o->batch.values[i], MODEL_BATCH);
            return false;
        }
    return o->model != NULL && drafts_ok(o);
}

static int failed(const model_run *r, dsi_status status) {
    const char *text = "";
    for (uint32_t s = 0; s < r->n_sides && !text[0]; s++) {
        if (r->sides[s].engine) text = dsi_last_error(r->sides[s].engine);
        for (uint32_t i = 0; !text[0] && i < MODEL_BATCH && r->sides[s].sessions[i]; i++)
            text = dsi_last_error(r->sides[s].sessions[i]);
    }
    if (!text[0]) text = dsi_last_error(NULL);
    bench_say("%s: %s: %s", r->what, dsi_status_name(status), text);
    if (status == DSI_E_ARG) return BENCH_USAGE;
    return status == DSI_E_MEMORY_CAP || status == DSI_E_NOMEM ? BENCH_ENVIRONMENT : BENCH_BAD_FILE;
}

int bench_model(const bench_options *options) {
    if (!usage_ok(options)) return BENCH_USAGE;
    uint32_t n_threads = bench_threads(options);
    model_run *r = calloc(1, sizeof *r);
    if (!r) return BENCH_ENVIRONMENT;
    r->options = options;
    r->random = options->seed;
    r->room = options->decode > options->repeat ? options->decode : options->repeat;
    r->seconds = calloc((size_t)r->room * MODEL_SIDES, sizeof *r->seconds);
    r->yardstick = r->seconds ? bench_yardstick_new(n_threads) : NULL;
    int code = BENCH_ENVIRONMENT;
    if (r->yardstick) {
        dsi_status status = open_all(r);
        if (status == DSI_OK) status = measure(r);
        code = status == DSI_OK ? BENCH_OK : failed(r, status);
        r->limits = bench_yardstick_result(r->yardstick);
        if (code == BENCH_OK) model_report(r);
    }
    for (uint32_t s = 0; s < MODEL_SIDES; s++) close_side(&r->sides[s]);
    dsi_model_close(r->model);
    bench_yardstick_free(r->yardstick);
    model_profiles_free(r);
    free(r->seconds);
    free(r);
    return code;
}
