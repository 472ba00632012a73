/* engine.c: dsi_engine: plans the memory of a model, places it on a device, owns scratch and KV
 * pages. The only file of the library that reads the environment. */
#include "adapter.h"
#include "base/topology.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_THREADS = 1024, MAX_SESSIONS = 4096, MAX_CHUNK = 16384, DEFAULT_CONTEXT = 4096 };

void dsi_engine_options_init(dsi_engine_options *options) {
    *options = (dsi_engine_options){.struct_size = sizeof *options,
                                    .max_sessions = 8,
                                    .chunk_tokens = DSI_PROMPT_BLOCK,
                                    .draft_tokens = DSI_DRAFTS_AUTO};
}

/* ---- Options ------------------------------------------------------------------------------------
 */

static dsi_status check_range(dsi_engine *e, const char *name, uint64_t value, uint64_t low,
                              uint64_t high) {
    if (value >= low && value <= high) return DSI_OK;
    return dsi_fail(&e->handle.error, DSI_E_ARG, "%s is %llu; it may be %llu to %llu", name,
                    (unsigned long long)value, (unsigned long long)low, (unsigned long long)high);
}

/* Environment: DSINFER_THREADS, DSINFER_KERNELS, DSINFER_PIN and DSINFER_WEIGHTS stand in for
 * options that were left out. */
static void read_environment(dsi_engine_options *o) {
    const char *threads = getenv("DSINFER_THREADS"), *kernels = getenv("DSINFER_KERNELS");
    if (!o->n_threads && threads) {
        unsigned long n = strtoul(threads, NULL, 10);
        o->n_threads = n > MAX_THREADS ? MAX_THREADS + 1 : (uint32_t)n;
    }
    if (!o->kernels && kernels && kernels[0]) o->kernels = kernels;
    const char *pin = getenv("DSINFER_PIN"), *weights = getenv("DSINFER_WEIGHTS");
    if (o->weights == DSI_WEIGHTS_AUTO && weights)
        o->weights = !strcmp(weights, "copy")  ? DSI_WEIGHTS_COPY
                     : !strcmp(weights, "map") ? DSI_WEIGHTS_MAP
                                               : DSI_WEIGHTS_AUTO;
    if (o->pin == DSI_PIN_AUTO && pin)
        o->pin = !strcmp(pin, "on") ? DSI_PIN_ON : !strcmp(pin, "off") ? DSI_PIN_OFF : DSI_PIN_AUTO;
}

/* A8 and E4M3 are forms of operands for certain weights; without such they would do nothing. */
static dsi_status check_activations(dsi_engine *e) {
    uint32_t activations = e->options.activations;
    dsi_dtype dtype = e->model->config.quantization.dtype;
    const char *dir = e->model->checkpoint.dir;
    if (activations == DSI_ACTIVATIONS_A8 && dtype != DSI_DTYPE_I8 && dtype != DSI_DTYPE_I4)
        return dsi_fail(&e->handle.error, DSI_E_ARG,
                        "activations a8: %s has no INT8 or INT4 weights for them; use bf16 or f32",
                        dir);
    if (activations == DSI_ACTIVATIONS_E4M3 && dtype != DSI_DTYPE_E4M3)
        return dsi_fail(&e->handle.error, DSI_E_ARG,
                        "activations e4m3: %s has no FP8 weights for them; use bf16 or f32", dir);
    return DSI_OK;
}
/* AUTO becomes 0 or 1. */
static void set_drafts(dsi_engine *e, uint32_t n) {
    e->options.draft_tokens = n;
    e->n_kv_layers = e->model->config.n_layers + (n ? 1 : 0);
}
static dsi_status check_drafts(dsi_engine *e) {
    const dsi_weights *w = &e->model->weights;
    const dsi_engine_options *o = &e->options;
    if (o->draft_tokens == DSI_DRAFTS_AUTO) {
        e->auto_drafts = w->mtp.eh_proj.name && o->mode == DSI_MODE_EXACT && o->chunk_tokens > 1;
        set_drafts(e, e->auto_drafts);
        return DSI_OK;
    }
    set_drafts(e, o->draft_tokens);
    if (!e->options.draft_tokens || w->mtp.eh_proj.name) return DSI_OK;
    bool bad = w->mtp_error.text[0] != 0;
    return dsi_fail(&e->handle.error, bad ? w->mtp_error.status : DSI_E_ARG,
                    "draft_tokens %u: %s%s; use draft_tokens 0", e->options.draft_tokens,
                    bad ? "the MTP block cannot be used: " : e->model->checkpoint.dir,
                    bad ? w->mtp_error.text : " has no MTP block, which drafts tokens");
}
static const char *activations_name(const dsi_engine *e) {
    static const char *const names[] = {"bf16", "f32", "a8", "e4m3"};
    return names[e->options.activations];
}

static const char *const KV_CACHE_NAMES[] = {"bf16", "fp8", "int8"};
static dsi_status choose_kv_cache(dsi_engine *e) {
    const uint32_t wanted = e->options.kv_cache;
    e->kv_dtype = wanted == DSI_KV_CACHE_FP8    ? DSI_DTYPE_E4M3
                  : wanted == DSI_KV_CACHE_INT8 ? DSI_DTYPE_I8
                                                : e->act;
    if (wanted == DSI_KV_CACHE_BF16 || e->act == DSI_DTYPE_BF16) return DSI_OK;
    return dsi_fail(&e->handle.error, DSI_E_ARG,
                    "kv_cache %s is read as BF16, but activations are f32, whose cache is F32; use "
                    "activations bf16 or leave kv_cache out",
                    KV_CACHE_NAMES[wanted]);
}

static dsi_status check_indexer(dsi_engine *e) {
    const uint32_t dim = e->model->config.index_head_dim;
    if (e->options.indexer == DSI_INDEXER_PLAIN || (dim & (dim - 1)) == 0) return DSI_OK;
    return dsi_fail(&e->handle.error, DSI_E_UNSUPPORTED,
                    "indexer fp8: a Hadamard transform needs a power of two, index_head_dim of %s "
                    "is %u; use indexer plain",
                    e->model->checkpoint.dir, dim);
}

static dsi_status resolve_options(dsi_engine *e, const dsi_engine_options *options) {
    dsi_engine_options *o = &e->options;
    const dsi_config *c = &e->model->config;
    dsi_engine_options_init(o);
    dsi_status st = dsi_copy_options(o, sizeof *o, options, "dsi_engine_options", &e->handle.error);
    if (st != DSI_OK) return st;
    read_environment(o);
    if (!o->n_threads) o->n_threads = dsi_default_threads();
    if (!o->max_context) o->max_context = (uint32_t)dsi_min_i64(c->max_position, DEFAULT_CONTEXT);
    if (!o->kv_tokens) o->kv_tokens = 2 * o->max_context;
    const struct {
        const char *name;
        uint64_t value, low, high;
    } ranges[] = {{"n_threads", o->n_threads, 1, MAX_THREADS},
                  {"max_sessions", o->max_sessions, 1, MAX_SESSIONS},
                  {"chunk_tokens", o->chunk_tokens, 1, MAX_CHUNK},
                  {"max_context", o->max_context, 1, c->max_position},
                  {"kv_tokens", o->kv_tokens, o->max_context, 1u << 30},
                  {"activations", o->activations, 0, DSI_ACTIVATIONS_E4M3},
                  {"attention", o->attention, 0, DSI_ATTENTION_EXPANDED},
                  {"mode", o->mode, 0, DSI_MODE_FAST},
                  {"gemm", o->gemm, 0, DSI_GEMM_OPENBLAS},
                  {"check_layers", o->check_layers, 0, 1},
                  {"pin", o->pin, 0, DSI_PIN_OFF},
                  {"weights", o->weights, 0, DSI_WEIGHTS_COPY},
                  {"kv_cache", o->kv_cache, 0, DSI_KV_CACHE_INT8},
                  {"draft_tokens", o->draft_tokens == DSI_DRAFTS_AUTO ? 0 : o->draft_tokens, 0,
                   DSI_MAX_DRAFTS},
                  {"indexer", o->indexer, 0, DSI_INDEXER_FP8}};
    for (size_t i = 0; st == DSI_OK && i < sizeof ranges / sizeof ranges[0]; i++)
        st = check_range(e, ranges[i].name, ranges[i].value, ranges[i].low, ranges[i].high);
    if (st == DSI_OK && o->gemm != DSI_GEMM_AUTO && o->mode == DSI_MODE_EXACT)
        st = dsi_fail(&e->handle.error, DSI_E_ARG,
                      "gemm is %u, but in mode exact the own kernels compute everything; "
                      "ask for mode fast, or leave gemm out",
                      o->gemm);
    e->act = o->activations == DSI_ACTIVATIONS_F32 ? DSI_DTYPE_F32 : DSI_DTYPE_BF16;
    if (st == DSI_OK) st = check_activations(e);
    if (st == DSI_OK) st = choose_kv_cache(e);
    if (st == DSI_OK) st = check_drafts(e);
    if (st == DSI_OK) st = check_indexer(e);
    e->max_pages = (uint32_t)dsi_ceil_div(o->max_context, DSI_PAGE_ROWS);
    e->n_pages = (uint32_t)dsi_ceil_div(o->kv_tokens, DSI_PAGE_ROWS);
    return st;
}

/* ---- Device and plan
 * ------------------------------------------------------------------------------- */

static void device_log(void *user, uint32_t level, const char *text) {
    const dsi_engine *e = user;
    dsi_logf(&e->model->log, level, e->backend->id, "%s", text);
}

static dsi_status open_device(dsi_engine *e) {
    static const char *const pins[] = {"auto", "on", "off"};
    static const char *const libraries[] = {"auto", "own", "onednn", "openblas"};
    char options[128];
    e->backend = dsi_backend_find(e->options.backend, &e->handle.error);
    if (!e->backend) return e->handle.error.status;
    bool e4m3 = e->options.activations == DSI_ACTIVATIONS_E4M3, fast = e->options.mode != 0;
    bool power_of_two = e4m3 && e->model->config.quantization.power_of_two;
    snprintf(options, sizeof options, "threads=%u,kernels=%.20s,pin=%s,activations=%s%s%s%s",
             e->options.n_threads, e->options.kernels ? e->options.kernels : "",
             pins[e->options.pin], activations_name(e), power_of_two ? "-ue8m0" : "",
             fast ? ",library=" : "", fast ? libraries[e->options.gemm] : "");
    e->host = (dsi_host){.struct_size = sizeof e->host, .user = e, .log = device_log};
    dsi_status st = e->backend->device_open(0, options, &e->host, &e->dev);
    if (st == DSI_OK) st = e->backend->stream_new(e->dev, &e->stream);
    if (st != DSI_OK) return dsi_fail(&e->handle.error, st, "%s", e->backend->last_error(e->dev));
    return st;
}

/* When all ops were planned: what the device says of itself may depend on them. */
static void describe(dsi_engine *e) {
    const uint32_t kv_cache = e->options.kv_cache;
    int n = snprintf(e->describe, sizeof e->describe, "%s, %s activations%s%s",
                     e->backend->describe(e->dev), activations_name(e),
                     kv_cache ? ", kv cache " : "", kv_cache ? KV_CACHE_NAMES[kv_cache] : "");
    if (e->options.draft_tokens && n > 0 && (size_t)n < sizeof e->describe)
        snprintf(e->describe + n, sizeof e->describe - (size_t)n, ", drafts %u",
                 e->options.draft_tokens);
}

/* Bytes of the KV pool, all layers; false if that overflows. */
static bool kv_bytes(const dsi_engine *e, uint64_t *bytes) {
    const uint64_t row = dsi_kv_row_bytes(e, e->n_kv_layers);
    return dsi_mul_ok(row, (uint64_t)e->n_pages * DSI_PAGE_ROWS, bytes);
}

/* Elements of the largest tensor that a tap or check_layers looks at. */
static uint64_t tap_elements(const dsi_engine *e) {
    const dsi_scratch *s = &e->scratch;
    const dsi_tensor *widest[] = {&s->hidden,     &s->q,   &s->kv,           &s->attention,
                                  &s->ffn_hidden, &s->q_a, &s->router_logits};
    uint64_t n = (uint64_t)s->logits.ne[0] * dsi_head_rows(e);
    for (size_t i = 0; i < sizeof widest / sizeof widest[0]; i++)
        n = (uint64_t)dsi_max_i64((int64_t)n, widest[i]->ne[0] * e->options.chunk_tokens);
    return n;
}

static dsi_status allocate_tap_values(dsi_engine *e) {
    DSI_MEMORY_SCOPE(SCRATCH);
    if (e->rows.tap_values) return DSI_OK;
    e->rows.tap_values = dsi_sys_calloc(tap_elements(e), sizeof *e->rows.tap_values);
    if (e->rows.tap_values) return DSI_OK;
    return dsi_fail(&e->handle.error, DSI_E_NOMEM, "no memory for the values of a tap");
}

/* AUTO copies on machines of several memory nodes, where there is room with an eighth to spare. */
static bool choose_copy(const dsi_engine *e) {
    if (e->options.weights != DSI_WEIGHTS_AUTO) return e->options.weights == DSI_WEIGHTS_COPY;
    dsi_topology topology;
    if (dsi_topology_read("", NULL, &topology, NULL) != DSI_OK) return false;
    bool several = topology.n_nodes > 1;
    dsi_topology_free(&topology);
    uint64_t room = dsi_sys_memory_available(), cap = e->options.max_memory;
    if (cap && cap < room) room = cap;
    return several && dsi_model_weight_bytes(e->model) < room - room / 8;
}

static dsi_status plan_drafts(dsi_engine *e, uint64_t *workspace) {
    uint32_t rows = e->options.chunk_tokens, heads = e->options.max_sessions;
    dsi_status st = dsi_forward_mtp_states(e, DSI_FORWARD_PLAN, rows, workspace);
    if (st == DSI_OK) st = dsi_forward_mtp_block(e, DSI_FORWARD_PLAN, rows, rows, workspace);
    return st == DSI_OK ? dsi_forward_mtp_head(e, DSI_FORWARD_PLAN, heads, NULL, workspace) : st;
}

static dsi_status make_plan(dsi_engine *e) {
    dsi_memory_plan *p = &e->plan;
    e->placed.is_copy = choose_copy(e);
    dsi_status st = dsi_place_weights(e, true);
    if (st != DSI_OK) return st;
    dsi_scratch_layout(e);
    uint64_t workspace = 0, logits = 0;
    st = dsi_forward(e, DSI_FORWARD_PLAN, &workspace);
    if (st == DSI_OK)
        st = dsi_forward_head(e, DSI_FORWARD_PLAN, 0, dsi_head_rows(e), NULL, &workspace);
    if (st == DSI_OK && e->options.draft_tokens) st = plan_drafts(e, &workspace);
    if (st != DSI_OK) return st;
    e->scratch.n_bytes_workspace = workspace;
    /* logits: one slice in the engine, as many rows in the sessions */
    logits = 2ull * dsi_head_rows(e) * e->model->config.vocab_size * sizeof(float);
    p->struct_size = sizeof *p;
    p->n_bytes_weights = e->placed.is_copy
                             ? e->placed.n_bytes_copy + e->model->weights.n_bytes_copies
                             : dsi_model_weight_bytes(e->model);
    if (!e->placed.is_copy && e->options.draft_tokens)
        p->n_bytes_weights += dsi_model_mtp_bytes(e->model);
    p->n_bytes_weights += e->placed.n_bytes_vectors;
    p->n_bytes_scratch = e->scratch.n_bytes + workspace + logits;
    if (e->options.check_layers) p->n_bytes_scratch += tap_elements(e) * sizeof(float);
    p->n_bytes_available = dsi_sys_memory_available();
    if (!kv_bytes(e, &p->n_bytes_kv) ||
        !dsi_add_ok(p->n_bytes_weights, p->n_bytes_scratch, &p->n_bytes_total) ||
        !dsi_add_ok(p->n_bytes_total, p->n_bytes_kv, &p->n_bytes_total))
        return dsi_fail(&e->handle.error, DSI_E_ARG,
                        "kv_tokens %u needs more bytes than 64 bits count; ask for fewer",
                        e->options.kv_tokens);
    return DSI_OK;
}

static uint64_t memory_cap(const dsi_engine *e) {
    return e->options.max_memory ? e->options.max_memory : e->plan.n_bytes_available;
}
static bool fits(const dsi_engine *e) {
    return !memory_cap(e) || e->plan.n_bytes_total <= memory_cap(e);
}
static dsi_status check_cap(dsi_engine *e) {
    const dsi_memory_plan *p = &e->plan;
    const uint64_t cap = memory_cap(e);
    bool large = p->n_bytes_total >> 34 != 0; /* from 16 GiB on */
    const double unit = large ? 1 << 30 : 1 << 20;
    const char *name = large ? "GiB" : "MiB";
    if (fits(e)) {
        if (p->n_bytes_available && p->n_bytes_total > p->n_bytes_available)
            dsi_logf(&e->model->log, DSI_LOG_WARN, "engine",
                     "the plan needs %.1f %s, the machine has %.1f %s free: expect paging",
                     (double)p->n_bytes_total / unit, name, (double)p->n_bytes_available / unit,
                     name);
        return DSI_OK;
    }
    return dsi_fail(&e->handle.error, DSI_E_MEMORY_CAP,
                    "need %.1f %s (weights %.1f%s, KV %.1f, scratch %.1f), have %.1f %s (%s). "
                    "Remedies: %sa shorter max_context or kv_tokens (now %u and %u)%s; smaller "
                    "chunk_tokens (now %u); a smaller model; or a larger max_memory",
                    (double)p->n_bytes_total / unit, name, (double)p->n_bytes_weights / unit,
                    e->placed.is_copy ? " copied" : "", (double)p->n_bytes_kv / unit,
                    (double)p->n_bytes_scratch / unit, (double)cap / unit, name,
                    e->options.max_memory ? "max_memory" : "free memory of this machine",
                    e->placed.is_copy ? "weights map (the files are used where they are); " : "",
                    e->options.max_context, e->options.kv_tokens,
                    e->kv_dtype == DSI_DTYPE_BF16 ? "; kv_cache fp8 or int8" : "",
                    e->options.chunk_tokens);
}

/* ---- Open and close
 * ---------------------------------------------------------------------------------- */

static dsi_status allocate_rows(dsi_engine *e) {
    DSI_MEMORY_SCOPE(SCRATCH);
    dsi_step_rows *r = &e->rows;
    uint64_t n = e->options.chunk_tokens, sessions = e->options.max_sessions;
    r->tokens = dsi_sys_calloc(n, sizeof *r->tokens);
    r->seq = dsi_sys_calloc(n, sizeof *r->seq);
    r->position = dsi_sys_calloc(n, sizeof *r->position);
    r->slots = dsi_sys_calloc(n, sizeof *r->slots);
    r->expanded = dsi_sys_calloc(n, sizeof *r->expanded);
    r->head_rows = dsi_sys_calloc(n, sizeof *r->head_rows);
    r->head_seq = dsi_sys_calloc(n, sizeof *r->head_seq);
    r->taken = dsi_sys_calloc(sessions, sizeof *r->taken);
    r->extra = dsi_sys_calloc(sessions, sizeof *r->extra);
    r->mtp_rows = dsi_sys_calloc(n, sizeof *r->mtp_rows);
    r->page_table = dsi_sys_calloc(sessions * e->max_pages, sizeof *r->page_table);
    r->head_logits = dsi_sys_calloc(dsi_head_rows(e), e->model->config.vocab_size * sizeof(float));
    r->zero_page = dsi_sys_calloc(1, dsi_kv_largest_page(e));
    r->page = dsi_sys_calloc(1, dsi_kv_largest_page(e));
    r->broken = dsi_sys_calloc(sessions, sizeof *r->broken);
    e->free_pages = dsi_sys_calloc(e->n_pages, sizeof *e->free_pages);
    e->page_holders = dsi_sys_calloc(e->n_pages, sizeof *e->page_holders);
    if (!r->tokens || !r->seq || !r->position || !r->slots || !r->expanded || !r->head_rows ||
        !r->head_seq || !r->taken || !r->extra || !r->mtp_rows || !r->page_table ||
        !r->head_logits || !r->zero_page || !r->page || !r->broken || !e->free_pages ||
        !e->page_holders)
        return dsi_fail(&e->handle.error, DSI_E_NOMEM, "no memory for the rows of a step");
    for (uint32_t i = 0; i < e->n_pages; i++) e->free_pages[i] = (int32_t)(e->n_pages - 1 - i);
    e->n_free_pages = e->n_pages;
    return DSI_OK;
}

static dsi_status allocate_kv(dsi_engine *e) {
    DSI_MEMORY_SCOPE(KV);
    return e->backend->buf_alloc(e->dev, DSI_BUF_DEVICE, e->plan.n_bytes_kv, &e->kv);
}

static dsi_status allocate_device(dsi_engine *e) {
    DSI_MEMORY_SCOPE(SCRATCH);
    const dsi_backend *b = e->backend;
    dsi_status st = b->buf_alloc(e->dev, DSI_BUF_DEVICE, e->scratch.n_bytes, &e->scratch.buf);
    if (st == DSI_OK)
        st = b->buf_alloc(e->dev, DSI_BUF_DEVICE, e->scratch.n_bytes_workspace,
                          &e->scratch.workspace);
    if (st == DSI_OK) st = allocate_kv(e);
    if (st != DSI_OK) dsi_fail(&e->handle.error, st, "%s", b->last_error(e->dev));
    return st;
}

static dsi_status open_parts(dsi_engine *e, const dsi_engine_options *options, bool plan_only) {
    dsi_status st = resolve_options(e, options);
    if (st == DSI_OK) st = open_device(e);
    if (st == DSI_OK) st = make_plan(e);
    if (st == DSI_OK && e->auto_drafts && !fits(e)) {
        e->auto_drafts = false;
        set_drafts(e, 0);
        dsi_unplace_weights(e); /* the table of the plan that did not fit */
        st = make_plan(e);
    }
    if (st == DSI_OK) describe(e);
    if (st != DSI_OK || plan_only) return st;
    st = check_cap(e);
    if (st == DSI_OK) st = allocate_device(e);
    if (st == DSI_OK) st = dsi_place_weights(e, false);
    if (st == DSI_OK) st = allocate_rows(e);
    if (st == DSI_OK && e->options.check_layers) st = allocate_tap_values(e);
    e->softmax_scale = (float)dsi_softmax_scale(&e->model->config);
    e->rope_factor = dsi_rope_cos_sin_factor(&e->model->config);
    return st;
}

/* A new engine; on failure the message is left for dsi_last_error(NULL). */
static dsi_status new_engine(const dsi_model *model, const dsi_engine_options *options,
                             bool plan_only, dsi_engine **out) {
    dsi_status st = dsi_model_enter(model, plan_only ? "dsi_plan" : "dsi_engine_open");
    if (st != DSI_OK) return st;
    dsi_engine *e = dsi_sys_calloc(1, sizeof *e);
    if (!e) return dsi_fail(dsi_thread_error(), DSI_E_NOMEM, "no memory for an engine handle");
    if (dsi_sys_mutex_init(&e->lock) != 0) {
        dsi_sys_free(e);
        return dsi_fail(dsi_thread_error(), DSI_E_NOMEM, "the system has no more locks");
    }
    e->process = dsi_sys_getpid();
    e->n_holders = 1;
    e->model = (dsi_model *)(uintptr_t)model; /* only read */
    st = open_parts(e, options, plan_only);
    if (st != DSI_OK) {
        if (!e->handle.error.text[0]) dsi_fail(&e->handle.error, st, "%s", dsi_status_text(st));
        *dsi_thread_error() = e->handle.error;
        dsi_engine_close(e);
        return st;
    }
    *out = e;
    return DSI_OK;
}

dsi_status dsi_engine_open(dsi_model *model, const dsi_engine_options *options, dsi_engine **out) {
    if (!model || !out)
        return dsi_fail(dsi_thread_error(), DSI_E_ARG, "dsi_engine_open: model or engine is NULL");
    *out = NULL;
    dsi_status st = new_engine(model, options, false, out);
    if (st == DSI_OK) dsi_logf(&model->log, DSI_LOG_INFO, "engine", "%s", (*out)->describe);
    return st;
}

dsi_status dsi_plan(const dsi_model *model, const dsi_engine_options *options,
                    dsi_memory_plan *plan) {
    if (!model || !plan || plan->struct_size < sizeof plan->struct_size)
        return dsi_fail(dsi_thread_error(), DSI_E_ARG,
                        "dsi_plan: set plan->struct_size to sizeof *plan first");
    dsi_engine *e = NULL;
    dsi_status st = new_engine(model, options, true, &e);
    if (st != DSI_OK) return st;
    dsi_copy_out(plan, plan->struct_size, &e->plan, sizeof e->plan);
    dsi_engine_close(e);
    return DSI_OK;
}

static void free_engine(dsi_engine *e) {
    dsi_step_rows *r = &e->rows;
    void *blocks[] = {r->tokens,     r->seq,        r->position,    r->slots,       r->expanded,
                      r->head_rows,  r->head_seq,   r->page_table,  r->head_logits, r->zero_page,
                      r->tap_values, r->taken,      r->extra,       r->mtp_rows,    r->page,
                      r->broken,     e->free_pages, e->page_holders};
    for (size_t i = 0; i < sizeof blocks / sizeof blocks[0]; i++) dsi_sys_free(blocks[i]);
    dsi_unplace_weights(e);
    dsi_adapt_free(e);
    if (e->backend) {
        e->backend->buf_free(e->scratch.buf);
        e->backend->buf_free(e->scratch.workspace);
        e->backend->buf_free(e->kv);
        e->backend->stream_free(e->stream);
        e->backend->device_close(e->dev);
    }
    /* in a child the lock may be held by a thread that is not there */
    if (!dsi_is_child(e->process)) pthread_mutex_destroy(&e->lock);
    dsi_sys_free(e);
}

void dsi_engine_release(dsi_engine *e) {
    if (atomic_fetch_sub(&e->n_holders, 1) == 1) free_engine(e);
}

void dsi_engine_close(dsi_engine *e) {
    if (!e) return;
    dsi_engine_stop_runner(e);
    bool child = dsi_is_child(e->process);
    if (!child) pthread_mutex_lock(&e->lock);
    e->closed = true;
    if (!child) pthread_mutex_unlock(&e->lock);
    dsi_engine_release(e);
}

/* ---- Inspect
 * ------------------------------------------------------------------------------------------ */

const char *dsi_engine_describe(const dsi_engine *engine) { return engine ? engine->describe : ""; }

dsi_status dsi_engine_set_tap(dsi_engine *e, dsi_tap_fn tap, void *user) {
    if (!e) return dsi_fail(dsi_thread_error(), DSI_E_ARG, "dsi_engine_set_tap: engine is NULL");
    if (dsi_is_child(e->process))
        return dsi_fail_child(&e->handle.error, "dsi_engine_set_tap", e->process);
    dsi_status st = tap ? allocate_tap_values(e) : DSI_OK;
    if (st != DSI_OK) return st;
    e->tap = tap;
    e->tap_user = user;
    return DSI_OK;
}
