/* test_engine.c: handles, limits, memory plan, sessions and generation through the public API. */
#include "../lib/internal.h"
#include "golden.h"
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <unistd.h>

#include <cmocka.h>

static const char *const TINY = "examples/models/tiny-gov";
static dsi_model *tiny;

static int open_tiny(void **state) {
    (void)state;
    return dsi_model_open(TINY, NULL, &tiny) == DSI_OK ? 0 : -1;
}
static int close_tiny(void **state) {
    (void)state;
    dsi_model_close(tiny);
    return 0;
}

static dsi_engine_options engine_options(void) {
    dsi_engine_options o;
    dsi_engine_options_init(&o);
    o.n_threads = 2;
    o.max_context = 512;
    return o;
}
static dsi_engine *new_engine(const dsi_engine_options *o) {
    dsi_engine *e = open_engine(tiny, o);
    assert_non_null(e);
    return e;
}
static dsi_session *new_session(dsi_engine *e, const dsi_session_options *o) {
    dsi_session *s = NULL;
    if (dsi_session_open(e, o, &s) != DSI_OK) fail_msg("%s", dsi_last_error(NULL));
    return s;
}
/* The message of a refused call must hold every one of the given words. */
static void assert_says(const char *message, const char *const *words) {
    for (; *words; words++)
        if (!strstr(message, *words)) fail_msg("no '%s' in: %s", *words, message);
}
#define SAYS(message, ...) assert_says(message, (const char *const[]){__VA_ARGS__, NULL})

/* ---- Arguments and limits
 * -------------------------------------------------------------------------- */

static void test_null_arguments(void **state) {
    (void)state;
    dsi_engine *e;
    dsi_session *s;
    int32_t token;
    assert_int_equal(dsi_model_open(NULL, NULL, NULL), DSI_E_ARG);
    assert_int_equal(dsi_engine_open(NULL, NULL, &e), DSI_E_ARG);
    assert_int_equal(dsi_session_open(NULL, NULL, &s), DSI_E_ARG);
    assert_int_equal(dsi_session_append(NULL, NULL, 0), DSI_E_ARG);
    assert_int_equal(dsi_session_next(NULL, &token), DSI_E_ARG);
    assert_int_equal(dsi_session_sample(NULL, &token), DSI_E_ARG);
    assert_int_equal(dsi_engine_step(NULL, NULL, 0, NULL), DSI_E_ARG);
    assert_int_equal(dsi_generate_chat(NULL, NULL, 0, 0, NULL, NULL, NULL), DSI_E_ARG);
    assert_int_equal(dsi_model_get_info(NULL, NULL), DSI_E_ARG);
    assert_int_equal(dsi_plan(NULL, NULL, NULL), DSI_E_ARG);
    assert_int_equal(dsi_engine_set_tap(NULL, NULL, NULL), DSI_E_ARG);
    assert_int_equal(dsi_tokenize(NULL, "a", 1, 0, NULL, 0, NULL), DSI_E_ARG);
    dsi_model_close(NULL);
    dsi_engine_close(NULL);
    dsi_session_close(NULL);
    dsi_close(NULL);
    assert_string_equal(dsi_status_name(DSI_E_NAN), "DSI_E_NAN");
    assert_string_equal(dsi_version(), DSI_VERSION_TEXT);
}

static void test_option_ranges(void **state) {
    (void)state;
    dsi_engine *e = NULL;
    dsi_engine_options o = engine_options();
    o.max_context = 1u << 20;
    assert_int_equal(dsi_engine_open(tiny, &o, &e), DSI_E_ARG);
    SAYS(dsi_last_error(NULL), "max_context", "1048576", "2048");
    o = engine_options();
    o.kv_tokens = 3;
    assert_int_equal(dsi_engine_open(tiny, &o, &e), DSI_E_ARG);
    SAYS(dsi_last_error(NULL), "kv_tokens", "512");
    o = engine_options();
    o.kernels = "avx9000";
    assert_int_equal(dsi_engine_open(tiny, &o, &e), DSI_E_ARG);
    SAYS(dsi_last_error(NULL), "avx9000", "ref, avx2, avx512");
    o = engine_options();
    o.backend = "quantum";
    assert_int_equal(dsi_engine_open(tiny, &o, &e), DSI_E_UNSUPPORTED);
    SAYS(dsi_last_error(NULL), "quantum", "cpu");
    o = engine_options();
    o.struct_size = 0;
    assert_int_equal(dsi_engine_open(tiny, &o, &e), DSI_E_ARG);
    SAYS(dsi_last_error(NULL), "struct_size", "dsi_engine_options_init");
    assert_null(e);
}

static void test_environment_stands_in_for_options(void **state) {
    (void)state;
    dsi_engine_options o = engine_options();
    setenv("DSINFER_KERNELS", "ref", 1);
    dsi_engine *e = new_engine(&o);
    assert_non_null(strstr(dsi_engine_describe(e), "ref kernels"));
    dsi_engine_close(e);
    setenv("DSINFER_KERNELS", "nonsense", 1);
    assert_int_equal(dsi_engine_open(tiny, &o, &e), DSI_E_ARG);
    unsetenv("DSINFER_KERNELS");
    setenv("DSINFER_THREADS", "99999999999999999999", 1);
    o.n_threads = 0;
    assert_int_equal(dsi_engine_open(tiny, &o, &e), DSI_E_ARG);
    SAYS(dsi_last_error(NULL), "n_threads");
    unsetenv("DSINFER_THREADS");
}

/* A struct of an older, shorter header gets the defaults for what it does not know. */
static void test_short_option_struct(void **state) {
    (void)state;
    dsi_engine_options o = engine_options();
    o.struct_size = offsetof(dsi_engine_options, chunk_tokens);
    o.chunk_tokens = 77777777; /* behind the end of the old struct */
    dsi_engine *e = new_engine(&o);
    assert_int_equal(e->options.chunk_tokens, DSI_PROMPT_BLOCK);
    dsi_engine_close(e);
}

/* ---- Memory
 * ------------------------------------------------------------------------------------------ */

/* By default a model with an MTP block drafts; where memory does not allow it, it does without. */
static void test_drafts_by_default(void **state) {
    (void)state;
    dsi_engine_options o = engine_options();
    dsi_memory_plan plan = {.struct_size = sizeof plan}, without = plan;
    assert_int_equal(o.draft_tokens, DSI_DRAFTS_AUTO);
    assert_int_equal(dsi_plan(tiny, &o, &plan), DSI_OK);
    assert_int_equal(plan.n_bytes_kv, 1024ull * 160 * 2 * 7);
    dsi_engine *e = new_engine(&o);
    SAYS(dsi_engine_describe(e), "drafts 1");
    assert_int_equal(e->options.draft_tokens, 1);
    dsi_engine_close(e);
    o.draft_tokens = 0;
    assert_int_equal(dsi_plan(tiny, &o, &without), DSI_OK);
    assert_true(without.n_bytes_total < plan.n_bytes_total);
    o.draft_tokens = DSI_DRAFTS_AUTO;
    o.max_memory = plan.n_bytes_total - 1;
    e = new_engine(&o);
    assert_null(strstr(dsi_engine_describe(e), "drafts"));
    assert_int_equal(e->plan.n_bytes_total, without.n_bytes_total);
    dsi_engine_close(e);
    o.draft_tokens = 1; /* asked for, so they are not left out */
    assert_int_equal(dsi_engine_open(tiny, &o, &e), DSI_E_MEMORY_CAP);
    o = engine_options();
    o.mode = DSI_MODE_FAST; /* there the rows of a step change the last bits */
    e = new_engine(&o);
    assert_int_equal(e->options.draft_tokens, 0);
    dsi_engine_close(e);
}

static void test_memory_plan_and_cap(void **state) {
    (void)state;
    dsi_engine_options o = engine_options();
    dsi_memory_plan plan = {.struct_size = sizeof plan};
    o.draft_tokens = 0;
    assert_int_equal(dsi_plan(tiny, &o, &plan), DSI_OK);
    assert_true(plan.n_bytes_weights > 8 << 20);
    assert_int_equal(plan.n_bytes_kv, 1024ull * 160 * 2 * 6); /* tokens, columns, bytes, layers */
    assert_int_equal(plan.n_bytes_total,
                     plan.n_bytes_weights + plan.n_bytes_kv + plan.n_bytes_scratch);
    dsi_engine *e = NULL;
    o.max_memory = plan.n_bytes_total - 1;
    assert_int_equal(dsi_engine_open(tiny, &o, &e), DSI_E_MEMORY_CAP);
    SAYS(dsi_last_error(NULL), "need", "have", "max_context", "chunk_tokens", "max_memory");
    o.max_memory = plan.n_bytes_total;
    e = new_engine(&o);
    dsi_engine_close(e);
    o = engine_options();
    o.kv_tokens = 1u << 30; /* 1.9 TB */
    assert_int_equal(dsi_engine_open(tiny, &o, &e), DSI_E_MEMORY_CAP);
    SAYS(dsi_last_error(NULL), "free memory of this machine");
}

static void test_pages_are_zeroed_on_release(void **state) {
    (void)state;
    dsi_engine_options o = engine_options();
    dsi_engine *e = new_engine(&o);
    dsi_session *s = new_session(e, NULL);
    int32_t tokens[100] = {0}, token;
    assert_int_equal(dsi_session_append(s, tokens, 100), DSI_OK);
    assert_int_equal(dsi_session_next(s, &token), DSI_OK);
    assert_int_equal(e->n_free_pages, e->n_pages - 2);
    uint8_t *all = calloc(1, e->plan.n_bytes_kv);
    size_t n_set[2] = {0};
    for (int after = 0; after < 2; after++) {
        e->backend->read(e->stream, all, e->kv, 0, e->plan.n_bytes_kv);
        for (uint64_t i = 0; i < e->plan.n_bytes_kv; i++) n_set[after] += all[i] != 0;
        if (!after) dsi_session_close(s);
    }
    assert_true(n_set[0] > 0);
    assert_int_equal(n_set[1], 0);
    assert_int_equal(e->n_free_pages, e->n_pages);
    free(all);
    dsi_engine_close(e);
}

/* ---- Sessions
 * ------------------------------------------------------------------------------------------ */

static void test_context_limits(void **state) {
    (void)state;
    dsi_engine_options o = engine_options();
    o.max_context = 64;
    o.kv_tokens = 128;
    dsi_engine *e = new_engine(&o);
    dsi_session *s[3];
    int32_t tokens[65] = {0}, bad[2] = {5, 4096}, token;
    for (int i = 0; i < 3; i++) s[i] = new_session(e, NULL);
    assert_int_equal(dsi_session_append(s[0], tokens, 65), DSI_E_CONTEXT);
    SAYS(dsi_last_error(s[0]), "65", "64", "max_context");
    assert_int_equal(dsi_session_append(s[0], bad, 2), DSI_E_ARG);
    SAYS(dsi_last_error(s[0]), "token 1", "4096", "4095");
    assert_int_equal(dsi_session_n_queued(s[0]), 0);
    assert_int_equal(dsi_session_sample(s[0], &token), DSI_E_STATE);
    for (int i = 0; i < 3; i++) assert_int_equal(dsi_session_append(s[i], tokens, 64), DSI_OK);
    assert_int_equal(dsi_session_next(s[0], &token), DSI_OK);
    assert_int_equal(dsi_session_finish(s[0]), DSI_FINISH_LENGTH); /* nowhere to go on */
    assert_int_equal(dsi_session_next(s[1], &token), DSI_OK);
    assert_int_equal(dsi_session_next(s[2], &token), DSI_E_CONTEXT); /* the pool is used up */
    SAYS(dsi_last_error(s[2]), "KV pool", "kv_tokens");
    dsi_session_close(s[0]);
    assert_int_equal(dsi_session_next(s[2], &token), DSI_OK); /* and goes on with room */
    dsi_session_close(s[1]);
    dsi_session_close(s[2]);
    dsi_engine_close(e);
}

static void test_step_refuses_wrong_sessions(void **state) {
    (void)state;
    dsi_engine_options o = engine_options();
    o.max_sessions = 2;
    dsi_engine *e = new_engine(&o), *other = new_engine(&o);
    dsi_session *s = new_session(e, NULL), *foreign = new_session(other, NULL);
    dsi_session *twice[] = {s, s}, *mixed[] = {s, foreign}, *three[] = {s, s, s};
    size_t n_rows = 9;
    assert_int_equal(dsi_engine_step(e, twice, 2, &n_rows), DSI_E_ARG);
    SAYS(dsi_last_error(e), "twice");
    assert_int_equal(dsi_engine_step(e, mixed, 2, NULL), DSI_E_ARG);
    SAYS(dsi_last_error(e), "another engine");
    assert_int_equal(dsi_engine_step(e, three, 3, NULL), DSI_E_ARG);
    SAYS(dsi_last_error(e), "max_sessions");
    assert_int_equal(dsi_engine_step(e, twice, 1, &n_rows), DSI_OK); /* nothing queued */
    assert_int_equal(n_rows, 0);
    dsi_session_close(s);
    dsi_session_close(foreign);
    dsi_engine_close(e);
    dsi_engine_close(other);
}

/* A NaN weight must end the request with its status, not with a token. */
static void test_nan_is_reported(void **state) {
    (void)state;
    dsi_engine_options o = engine_options();
    dsi_engine *e = new_engine(&o);
    float poison = NAN;
    e->backend->write(e->stream, e->placed.vectors, e->placed.norm.offset, &poison, sizeof poison);
    dsi_session *s = new_session(e, NULL);
    int32_t token = 5;
    assert_int_equal(dsi_session_append(s, &token, 1), DSI_OK);
    assert_int_equal(dsi_session_next(s, &token), DSI_E_NAN);
    SAYS(dsi_last_error(s), "logit", "verify");
    dsi_session_close(s);
    dsi_engine_close(e);
}

/* ---- Sampling
 * ------------------------------------------------------------------------------------------ */

static int32_t draw(const dsi_session_options *o, const float *logits, uint32_t n, uint64_t i) {
    dsi_candidate candidates[128];
    int32_t token = -1;
    assert_int_equal(dsi_sample(o, logits, n, i, candidates, &token, NULL), DSI_OK);
    return token;
}

static void test_sampling_distribution(void **state) {
    (void)state;
    const float logits[4] = {logf(0.5f), logf(0.25f), logf(0.2f), logf(0.05f)};
    const double want[4] = {0.5, 0.25, 0.2, 0.05};
    enum { N = 40000 };
    dsi_session_options o;
    dsi_session_options_init(&o);
    assert_int_equal(draw(&o, logits, 4, 0), 0); /* greedy */
    o.temperature = 1;
    o.seed = 42;
    double count[4] = {0}, chi2 = 0;
    for (uint64_t i = 0; i < N; i++) count[draw(&o, logits, 4, i)]++;
    for (int t = 0; t < 4; t++)
        chi2 += (count[t] - N * want[t]) * (count[t] - N * want[t]) / (N * want[t]);
    assert_true(chi2 < 16.27); /* 3 degrees of freedom, p = 0.001 */
}

static void test_sampling_filters(void **state) {
    (void)state;
    const float logits[5] = {logf(0.2f), logf(0.5f), logf(0.2f), logf(0.08f), logf(0.02f)};
    dsi_session_options o;
    bool seen[5];
    const struct {
        uint32_t top_k;
        float top_p, min_p;
        bool want[5];
    } cases[] = {{1, 1, 0, {0, 1, 0, 0, 0}},
                 {2, 1, 0, {1, 1, 0, 0, 0}}, /* a tie: the lower id is first */
                 {0, 0.5f, 0, {0, 1, 0, 0, 0}},
                 {0, 0.9f, 0, {1, 1, 1, 0, 0}},
                 {0, 1, 0.1f, {1, 1, 1, 1, 0}},
                 {0, 1, 0.3f, {1, 1, 1, 0, 0}},
                 {0, 1, 0, {1, 1, 1, 1, 1}}};
    for (size_t c = 0; c < sizeof cases / sizeof cases[0]; c++) {
        dsi_session_options_init(&o);
        o.temperature = 1;
        o.top_k = cases[c].top_k, o.top_p = cases[c].top_p, o.min_p = cases[c].min_p;
        memset(seen, 0, sizeof seen);
        for (uint64_t i = 0; i < 2000; i++) seen[draw(&o, logits, 5, i)] = true;
        assert_memory_equal(seen, cases[c].want, sizeof seen);
    }
    const float bad[2] = {1, INFINITY};
    int32_t token;
    assert_int_equal(dsi_sample(&o, bad, 2, 0, NULL, &token, NULL), DSI_E_NAN);
}

/* Many candidates are sorted in another way than few: the draw is that of a plain sort, equal
 * logits by ascending id, both zeros equal. */
static const float *sorted_logits;
static int by_plain_logit(const void *a, const void *b) {
    int32_t x = *(const int32_t *)a, y = *(const int32_t *)b;
    if (sorted_logits[x] != sorted_logits[y]) return sorted_logits[x] > sorted_logits[y] ? -1 : 1;
    return (x > y) - (x < y);
}
static void test_sampling_many(void **state) {
    (void)state;
    enum { N = 3000 };
    static dsi_candidate candidates[2 * N];
    static float logits[N];
    static int32_t order[N];
    uint32_t random = 9;
    for (int32_t i = 0; i < N; i++) {
        random = random * 1664525u + 1013904223u;
        logits[i] = (float)((int)(random >> 20) % 160 - 80) / 8; /* many equal, of both signs */
        if (logits[i] == 0 && random >> 19 & 1) logits[i] = -0.0f;
        order[i] = i;
    }
    sorted_logits = logits;
    qsort(order, N, sizeof *order, by_plain_logit);
    dsi_session_options o;
    dsi_session_options_init(&o);
    o.temperature = 2, o.seed = 3;
    for (uint32_t k = 1; k <= N; k += 1 + k / 7) { /* the last that may be drawn comes often */
        int32_t token;
        o.top_k = k;
        assert_int_equal(dsi_sample(&o, logits, N, k, candidates, &token, NULL), DSI_OK);
        bool among = false;
        for (uint32_t i = 0; i < k; i++) among |= order[i] == token;
        assert_true(among);
        for (uint32_t i = 0; i < N; i++) assert_int_equal(candidates[i].token, order[i]);
    }
}

static void test_session_option_ranges(void **state) {
    (void)state;
    dsi_engine_options eo = engine_options();
    dsi_engine *e = new_engine(&eo);
    dsi_session *s = NULL;
    const struct {
        float temperature, top_p, min_p;
        const char *name;
    } cases[] = {{-1, 1, 0, "temperature"}, {NAN, 1, 0, "temperature"}, {1, 0, 0, "top_p"},
                 {1, 1.5f, 0, "top_p"},     {1, NAN, 0, "top_p"},       {1, 1, 1, "min_p"}};
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        dsi_session_options o;
        dsi_session_options_init(&o);
        o.temperature = cases[i].temperature, o.top_p = cases[i].top_p, o.min_p = cases[i].min_p;
        assert_int_equal(dsi_session_open(e, &o, &s), DSI_E_ARG);
        SAYS(dsi_last_error(NULL), cases[i].name);
    }
    dsi_engine_close(e);
}

/* ---- Generation
 * ------------------------------------------------------------------------------------------ */

typedef struct heard {
    char text[2][4096];
    size_t n[2];
    int stop_after; /* pieces; -1: never */
} heard;
static int32_t hear(void *user, uint32_t part, const char *text, size_t n) {
    heard *h = user;
    if (h->n[part] + n < sizeof h->text[part]) memcpy(h->text[part] + h->n[part], text, n);
    h->n[part] += n;
    return h->stop_after >= 0 && h->stop_after-- == 0;
}

static const char TICKET[] =
    "请对以下工单进行分拨。\n工单：您好，南山区人民路路灯不亮，走路看不清，"
    "请尽快处理。";

static dsi_generate_result ask(dsi_engine *e, const dsi_session_options *o, uint32_t think,
                               heard *h) {
    dsi_generate_result r = {.struct_size = sizeof r};
    dsi_message m = {sizeof m, DSI_ROLE_USER, TICKET, sizeof TICKET - 1};
    dsi_session *s = new_session(e, o);
    int stop_after = h->stop_after;
    *h = (heard){.stop_after = stop_after};
    if (dsi_generate_chat(s, &m, 1, think, hear, h, &r) != DSI_OK)
        fail_msg("%s", dsi_last_error(s));
    dsi_session_close(s);
    return r;
}

static void test_generate_answer_and_reasoning(void **state) {
    (void)state;
    dsi_engine_options eo = engine_options();
    dsi_engine *e = new_engine(&eo);
    heard h = {.stop_after = -1};
    dsi_generate_result r = ask(e, NULL, DSI_THINK_OFF, &h);
    assert_int_equal(r.finish_reason, DSI_FINISH_STOP);
    assert_true(r.n_tokens_in > 10 && r.n_tokens_out > 10);
    assert_int_equal(h.n[DSI_PART_REASONING], 0);
    SAYS(h.text[DSI_PART_ANSWER], "{\"类别\": \"路灯故障\", \"部门\": \"城市管理局\"");
    char plain[4096];
    memcpy(plain, h.text[DSI_PART_ANSWER], sizeof plain);
    r = ask(e, NULL, DSI_THINK_ON, &h);
    assert_int_equal(r.finish_reason, DSI_FINISH_STOP);
    SAYS(h.text[DSI_PART_REASONING], "市民反映", "城市管理局");
    assert_int_equal(h.text[DSI_PART_REASONING][0] == '\n', 0);
    assert_int_equal(h.text[DSI_PART_REASONING][h.n[DSI_PART_REASONING] - 1] == '\n', 0);
    assert_string_equal(h.text[DSI_PART_ANSWER], plain); /* no line ends in front of it */
    assert_null(strstr(h.text[DSI_PART_REASONING], "think>"));
    h.stop_after = 3;
    r = ask(e, NULL, DSI_THINK_OFF, &h);
    assert_int_equal(r.finish_reason, DSI_FINISH_CALLER);
    dsi_session_options o;
    dsi_session_options_init(&o);
    o.max_tokens = 5;
    h.stop_after = -1;
    r = ask(e, &o, DSI_THINK_OFF, &h);
    assert_int_equal(r.finish_reason, DSI_FINISH_LENGTH);
    assert_int_equal(r.n_tokens_out, 5);
    dsi_engine_close(e);
}

/* Same seed, same answer; another seed, another answer (the model is hot enough at 3). */
static void test_seed_replays(void **state) {
    (void)state;
    dsi_engine_options eo = engine_options();
    dsi_engine *e = new_engine(&eo);
    dsi_session_options o;
    dsi_session_options_init(&o);
    o.temperature = 3;
    o.max_tokens = 40;
    heard h[3];
    for (int i = 0; i < 3; i++) {
        h[i].stop_after = -1;
        o.seed = i == 2 ? 8 : 7;
        ask(e, &o, DSI_THINK_OFF, &h[i]);
    }
    assert_string_equal(h[0].text[0], h[1].text[0]);
    assert_string_not_equal(h[0].text[0], h[2].text[0]);
    dsi_engine_close(e);
}

static void test_open_in_one_call(void **state) {
    (void)state;
    dsi_session *s = NULL;
    heard h = {.stop_after = -1};
    assert_int_equal(dsi_open("no/such/folder", &s), DSI_E_IO);
    SAYS(dsi_last_error(NULL), "no/such/folder", "config.json");
    assert_int_equal(dsi_open(TINY, &s), DSI_OK);
    assert_int_equal(dsi_generate(s, "你好", hear, &h), DSI_OK);
    assert_true(h.n[DSI_PART_ANSWER] > 0);
    dsi_close(s);
    assert_int_equal(dsi_open("tests/data/golden/llama", &s), DSI_OK);
    assert_int_equal(dsi_generate(s, "hello", hear, &h), DSI_E_STATE);
    SAYS(dsi_last_error(s), "tokenizer.json");
    dsi_close(s);
}

/* A checkpoint with a tokenizer of another family: tokens in, tokens out works, text calls say why
 * not. */
static void test_foreign_tokenizer(void **state) {
    (void)state;
    char dir[] = "/tmp/dsi_engine_XXXXXX", from[512], to[64], cwd[400];
    const char *files[] = {"config.json", "model.safetensors"};
    const char *json = "{\"model\": {\"type\": \"Unigram\", \"vocab\": {}}}";
    assert_non_null(mkdtemp(dir));
    assert_non_null(getcwd(cwd, sizeof cwd));
    for (int i = 0; i < 2; i++) {
        snprintf(from, sizeof from, "%s/tests/data/golden/qwen2/%s", cwd, files[i]);
        snprintf(to, sizeof to, "%s/%s", dir, files[i]);
        assert_int_equal(symlink(from, to), 0);
    }
    snprintf(to, sizeof to, "%s/tokenizer.json", dir);
    FILE *f = fopen(to, "w");
    assert_non_null(f);
    fputs(json, f);
    fclose(f);
    dsi_model *model;
    dsi_model_info info = {.struct_size = sizeof info};
    size_t n;
    if (dsi_model_open(dir, NULL, &model) != DSI_OK) fail_msg("%s", dsi_last_error(NULL));
    dsi_model_get_info(model, &info);
    assert_int_equal(info.has_tokenizer, 0);
    assert_true(info.n_params_active == info.n_params_total); /* tied and dense: all is read */
    assert_int_equal(dsi_tokenize(model, "a", 1, 0, NULL, 0, &n), DSI_E_UNSUPPORTED);
    SAYS(dsi_last_error(NULL), "tokenizer.json", "DeepSeek");
    dsi_engine *e = open_engine(model, NULL);
    dsi_session *s = new_session(e, NULL);
    int32_t token = 1;
    assert_int_equal(dsi_session_append(s, &token, 1), DSI_OK);
    assert_int_equal(dsi_session_next(s, &token), DSI_OK);
    dsi_session_close(s);
    dsi_engine_close(e);
    dsi_model_close(model);
    for (int i = 0; i < 2; i++) {
        snprintf(to, sizeof to, "%s/%s", dir, files[i]);
        unlink(to);
    }
    snprintf(to, sizeof to, "%s/tokenizer.json", dir);
    unlink(to);
    rmdir(dir);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_foreign_tokenizer),
        cmocka_unit_test(test_null_arguments),
        cmocka_unit_test(test_option_ranges),
        cmocka_unit_test(test_environment_stands_in_for_options),
        cmocka_unit_test(test_short_option_struct),
        cmocka_unit_test(test_drafts_by_default),
        cmocka_unit_test(test_memory_plan_and_cap),
        cmocka_unit_test(test_pages_are_zeroed_on_release),
        cmocka_unit_test(test_context_limits),
        cmocka_unit_test(test_step_refuses_wrong_sessions),
        cmocka_unit_test(test_nan_is_reported),
        cmocka_unit_test(test_sampling_distribution),
        cmocka_unit_test(test_sampling_filters),
        cmocka_unit_test(test_sampling_many),
        cmocka_unit_test(test_session_option_ranges),
        cmocka_unit_test(test_generate_answer_and_reasoning),
        cmocka_unit_test(test_seed_replays),
        cmocka_unit_test(test_open_in_one_call),
    };
    return cmocka_run_group_tests_name("engine", tests, open_tiny, close_tiny);
}
