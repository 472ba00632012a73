/* test_kv_cache.c: the cache of 8 bits: how far it moves logits and perplexity, how many bytes it
 * takes, what is refused, and that a saved session goes on bit for bit. The operators on such pages
 * are in test_attention.c, the hashes of rows in test_exact.c. */
#include "golden.h"
#include "model_files.h"
#include "session_tools.h"

enum { FORMS = 3 };
static const char *const names[FORMS] = {"bf16", "fp8", "int8"};

static float *logits_with(dsi_model *model, uint32_t kv_cache, uint32_t attention,
                          const golden *g) {
    dsi_engine_options o = engine_of(512, 64, 1);
    dsi_session_options so;
    dsi_session_options_init(&so);
    so.all_logits = 1;
    o.kv_cache = kv_cache;
    o.attention = attention;
    dsi_engine *e = start_engine(model, &o);
    dsi_session *s = start_session(e, &so);
    float *out = calloc(g->n_tokens * g->vocab, sizeof *out);
    assert_non_null(out);
    assert_true(all_logits(e, s, g->tokens, g->n_tokens, g->vocab, out));
    dsi_session_close(s);
    dsi_engine_close(e);
    return out;
}

/* Perplexity of the tokens themselves. */
static double perplexity(const golden *g, const float *logits) {
    double sum = 0;
    for (size_t t = 0; t + 1 < g->n_tokens; t++)
        sum += log_sum_exp(logits + t * g->vocab, g->vocab) -
               (double)logits[t * g->vocab + (size_t)g->tokens[t + 1]];
    return exp(sum / (double)(g->n_tokens - 1));
}

/* KL to the logits of the BF16 cache, beside what BF16 itself costs against the golden logits. Of
 * the golden models the weights are random: a rounding changes which experts they choose, and what
 * they say means nothing, so of them the mean alone is judged. */
static void check_distance(const char *dir, bool trained) {
    char path[320];
    golden g;
    snprintf(path, sizeof path, "%s/golden.safetensors", dir);
    assert_true(golden_open(path, &g));
    dsi_model *model = load_model(dir);
    for (uint32_t form = DSI_ATTENTION_ABSORBED; form <= DSI_ATTENTION_EXPANDED; form++) {
        float *plain = logits_with(model, DSI_KV_CACHE_BF16, form, &g);
        distance to_golden = compare_logits(g.logits, plain, g.n_tokens, g.vocab);
        for (uint32_t i = 1; i < FORMS; i++) {
            float *ours = logits_with(model, i, form, &g);
            distance d = compare_logits(plain, ours, g.n_tokens, g.vocab);
            double change = perplexity(&g, ours) / perplexity(&g, plain) - 1;
            print_message("%-25s %s, %-4s: to bf16 mean KL %.1e, median %.1e, top-1 %.3f, "
                          "perplexity %+.2f %% (bf16 to f32: mean KL %.1e)\n",
                          dir, form == DSI_ATTENTION_ABSORBED ? "absorbed" : "expanded", names[i],
                          d.mean_kl, d.median_kl, d.top1, 100 * change, to_golden.mean_kl);
            assert_true(d.mean_kl > 0 && d.mean_kl <= (trained ? 1e-2 : 0.25));
            assert_true(!trained || (d.median_kl <= 2e-5 && d.top1 >= 0.97));
            assert_true(!trained || fabs(change) <= 0.015);
            free(ours);
        }
        free(plain);
    }
    dsi_model_close(model);
    golden_close(&g);
}

static void test_distance(void **state) {
    (void)state;
    check_distance(TINY_GOV, true);
    check_distance("tests/data/golden/v3-fp8", false);
    check_distance("tests/data/golden/v3-odd", false);
    check_distance("tests/data/golden/qwen2", false);
}

/* Bytes of the plan: v3-fp8 caches 128 latents and 32 rotated columns, qwen2 keys and values. */
static void test_plan(void **state) {
    (void)state;
    const struct {
        const char *dir;
        uint64_t coded, plain; /* bytes of a row */
    } cases[] = {{"tests/data/golden/v3-fp8", (128 + 4 + 64 + 15) / 16 * 16, 320}};
    for (size_t c = 0; c < sizeof cases / sizeof cases[0]; c++) {
        dsi_model *model = load_model(cases[c].dir);
        for (uint32_t i = 0; i < FORMS; i++) {
            dsi_memory_plan plan = {.struct_size = sizeof plan};
            dsi_engine_options o = engine_of(256, 64, 1);
            o.kv_cache = i, o.kv_tokens = 1024;
            assert_int_equal(dsi_plan(model, &o, &plan), DSI_OK);
            assert_int_equal(plan.n_bytes_kv,
                             1024 * model->config.n_layers * (i ? cases[c].coded : cases[c].plain));
        }
        dsi_model_close(model);
    }
}

static void test_refused(void **state) {
    (void)state;
    dsi_model *model = load_model("tests/data/golden/v3-fp8");
    dsi_engine *e = NULL;
    dsi_engine_options o = engine_of(256, 64, 1);
    o.kv_cache = 3;
    assert_int_equal(dsi_engine_open(model, &o, &e), DSI_E_ARG);
    assert_non_null(strstr(dsi_last_error(NULL), "kv_cache is 3; it may be 0 to 2"));
    o.kv_cache = DSI_KV_CACHE_INT8;
    o.activations = DSI_ACTIVATIONS_F32;
    assert_int_equal(dsi_engine_open(model, &o, &e), DSI_E_ARG);
    assert_non_null(strstr(dsi_last_error(NULL), "kv_cache int8"));
    assert_non_null(strstr(dsi_last_error(NULL), "activations bf16"));
    o.activations = DSI_ACTIVATIONS_BF16;
    o.max_memory = 1 << 20;
    assert_int_equal(dsi_engine_open(model, &o, &e), DSI_E_MEMORY_CAP);
    assert_null(strstr(dsi_last_error(NULL), "kv_cache"));
    o.kv_cache = DSI_KV_CACHE_BF16;
    assert_int_equal(dsi_engine_open(model, &o, &e), DSI_E_MEMORY_CAP);
    assert_non_null(strstr(dsi_last_error(NULL), "kv_cache fp8 or int8"));
    dsi_model_close(model);
}

/* What was saved goes on bit for bit where the cache is the same, and is refused elsewhere. */
static void check_snapshot(const char *dir, const char *path) {
    dsi_model *model = load_model(dir);
    dsi_engine *engines[FORMS];
    for (uint32_t i = 0; i < FORMS; i++) {
        dsi_engine_options o = engine_of(400, 64, 2);
        o.kv_cache = i;
        engines[i] = start_engine(model, &o);
        assert_true(!i == !strstr(dsi_engine_describe(engines[i]), "kv cache"));
    }
    for (uint32_t i = 0; i < FORMS; i++) {
        dsi_session *s = start_session(engines[i], NULL);
        append_made_up(s, 300, 1);
        step_all(s);
        OK(dsi_session_save(s, path), s);
        for (uint32_t j = 0; j < FORMS; j++) {
            char text[64];
            dsi_session *back = start_session(engines[j], NULL);
            dsi_status st = dsi_session_restore(back, path);
            snprintf(text, sizeof text, "kv_cache %s, this engine has %s", names[i], names[j]);
            if (i != j) {
                assert_int_equal(st, DSI_E_STATE);
                if (!strstr(dsi_last_error(back), text)) fail_msg("%s", dsi_last_error(back));
                assert_int_equal(dsi_session_n_tokens(back), 0);
            } else {
                OK(st, back);
                assert_true(future_hash(back) == future_hash(s));
            }
            dsi_session_close(back);
        }
        dsi_session_close(s);
    }
    for (uint32_t i = 0; i < FORMS; i++) dsi_engine_close(engines[i]);
    dsi_model_close(model);
}
static void test_snapshot(void **state) {
    (void)state;
    char folder[64], path[96];
    temp_folder(folder);
    snprintf(path, sizeof path, "%s/a.session", folder);
    check_snapshot("tests/data/golden/v3-fp8", path);
    check_snapshot("tests/data/golden/qwen2", path);
    check_snapshot("tests/data/golden/v32", path);
    remove_folder(folder);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_distance), cmocka_unit_test(test_plan),
                                       cmocka_unit_test(test_refused),
                                       cmocka_unit_test(test_snapshot)};
    return cmocka_run_group_tests_name("kv cache", tests, NULL, NULL);
}
