/* session_tools.h: for tests of sessions: models and engines by folder, made-up prompts, and hashes
 * of logits, with which two timelines are compared bit for bit. */
#ifndef DSI_TESTS_SESSION_TOOLS_H
#define DSI_TESTS_SESSION_TOOLS_H

#include "../lib/internal.h"
#include "golden.h"
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

/* Sanitizers slow the steps down twenty times; they look at memory, not at hashes. */
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__) || defined(DSI_VALGRIND)
enum { SLOW_BUILD = 1 };
#else
enum { SLOW_BUILD = 0 };
#endif

#define TINY_GOV "examples/models/tiny-gov"
#define V3_FP8 "tests/data/golden/v3-fp8"
#define QWEN2 "tests/data/golden/qwen2"

static inline dsi_model *load_model(const char *folder) {
    dsi_model *model = NULL;
    if (dsi_model_open(folder, NULL, &model) != DSI_OK) fail_msg("%s", dsi_last_error(NULL));
    return model;
}

/* One thread: the models are too small to share; kv_tokens for `n_sessions` whole contexts. */
static inline dsi_engine_options engine_of(uint32_t max_context, uint32_t chunk,
                                           uint32_t n_sessions) {
    dsi_engine_options o;
    dsi_engine_options_init(&o);
    o.n_threads = 1;
    o.max_context = max_context;
    o.chunk_tokens = chunk;
    o.kv_tokens = n_sessions * (max_context + DSI_PAGE_ROWS);
    return o;
}
static inline dsi_engine *start_engine(dsi_model *model, const dsi_engine_options *o) {
    dsi_engine *e = open_engine(model, o);
    assert_non_null(e);
    return e;
}

/* Sampling hot enough that a wrong draw shows; end tokens do not stop it. */
static inline dsi_session_options hot_options(void) {
    dsi_session_options o;
    dsi_session_options_init(&o);
    o.temperature = 1.5f;
    o.seed = 11;
    o.ignore_end = 1;
    return o;
}
static inline dsi_session *start_session(dsi_engine *e, const dsi_session_options *o) {
    dsi_session *s = NULL;
    if (dsi_session_open(e, o, &s) != DSI_OK) fail_msg("%s", dsi_last_error(NULL));
    return s;
}

/* The call succeeded, or the test ends with its message. */
static inline void succeed(dsi_status st, const void *handle, const char *file, int line) {
    if (st != DSI_OK) fail_msg("%s:%d: %d: %s", file, line, st, dsi_last_error(handle));
}
#define OK(call, handle) succeed(call, handle, __FILE__, __LINE__)

/* The message of a refused call must hold every one of the given words. */
static inline void assert_says(const char *message, const char *const *words) {
    for (; *words; words++)
        if (!strstr(message, *words)) fail_msg("no '%s' in: %s", *words, message);
}
#define SAYS(message, ...) assert_says(message, (const char *const[]){__VA_ARGS__, NULL})

/* Token `i` of an endless text that depends on the seed alone. */
static inline int32_t made_up_token(uint32_t i, uint32_t seed, uint32_t vocab) {
    uint32_t x = (i + 1) * 2654435761u ^ seed * 40503u;
    x ^= x >> 15, x *= 2246822519u, x ^= x >> 13;
    return (int32_t)(x % vocab);
}
/* Queues n of them, from where the timeline ends. */
static inline void append_made_up(dsi_session *s, uint32_t n, uint32_t seed) {
    uint32_t vocab = s->engine->model->config.vocab_size;
    int32_t *tokens = calloc(n + 1, sizeof *tokens);
    assert_non_null(tokens);
    for (uint32_t i = 0; i < n; i++) tokens[i] = made_up_token(s->n_total + i, seed, vocab);
    OK(dsi_session_append(s, tokens, n), s);
    free(tokens);
}
static inline void step_all(dsi_session *s) {
    while (dsi_session_n_queued(s)) OK(dsi_engine_step(s->engine, &s, 1, NULL), s);
}
static inline void draw_tokens(dsi_session *s, uint32_t n) {
    int32_t token;
    for (uint32_t i = 0; i < n; i++) OK(dsi_session_next(s, &token), s);
}

static inline uint64_t hash_bytes(uint64_t h, const void *data, size_t n) { /* FNV-1a */
    const uint8_t *p = data;
    for (size_t i = 0; i < n; i++) h = (h ^ p[i]) * 0x100000001B3u;
    return h;
}
/* Of the last row of logits, after computing what is queued. */
static inline uint64_t last_hash(dsi_session *s) {
    const float *logits;
    size_t n_rows, first, vocab = s->engine->model->config.vocab_size;
    step_all(s);
    OK(dsi_session_logits(s, &logits, &n_rows, &first), s);
    assert_true(n_rows > 0 && first + n_rows == dsi_session_n_tokens(s));
    return hash_bytes(0xCBF29CE484222325u, logits + (n_rows - 1) * vocab, vocab * sizeof *logits);
}
/* Of the logits after each of these: what is queued, three sampled tokens, 70 appended ones: what
 * anybody can see of the future of a timeline. Empty timelines are given a token first. */
static inline uint64_t future_hash(dsi_session *s) {
    uint64_t all[5];
    int32_t token;
    if (!s->n_total) append_made_up(s, 1, 99);
    all[0] = last_hash(s);
    for (int i = 0; i < 3; i++) {
        OK(dsi_session_next(s, &token), s);
        all[1 + i] = last_hash(s) ^ (uint64_t)token;
    }
    append_made_up(s, 70, 98);
    all[4] = last_hash(s);
    return hash_bytes(0xCBF29CE484222325u, all, sizeof all);
}

/* Bytes of the KV pool that are not zero. */
static inline size_t kv_bytes_set(dsi_engine *e) {
    size_t n_set = 0;
    uint8_t *all = calloc(1, e->plan.n_bytes_kv);
    assert_non_null(all);
    assert_int_equal(e->backend->read(e->stream, all, e->kv, 0, e->plan.n_bytes_kv), DSI_OK);
    for (uint64_t i = 0; i < e->plan.n_bytes_kv; i++) n_set += all[i] != 0;
    free(all);
    return n_set;
}
/* Every page is free, and nothing is left in it. */
static inline void assert_pool_empty(dsi_engine *e) {
    assert_int_equal(e->n_free_pages, e->n_pages);
    assert_int_equal(kv_bytes_set(e), 0);
}

#endif
