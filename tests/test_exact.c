/* test_exact.c: exact mode. The hash of every row of logits must not depend on how the prompt is
 * cut into steps, on the number of threads, or on what else is in the batch.
 *
 *   test_exact                              the models of the repository
 *   test_exact FOLDER [bf16|f32|a8|e4m3]    another one, by the best kernels; some minutes for one
 *                                           of V3's layer shapes */
#include "golden.h"
#include "quantize_checkpoint.h"

/* Sanitizers slow the steps down twenty times; they look at memory, not at hashes. */
#ifdef __SANITIZE_ADDRESS__
enum { SLOW_BUILD = 1 };
#else
enum { SLOW_BUILD = 0 };
#endif
enum { N_PROMPT = 330, N_DECODE = 6, N_ROWS = N_PROMPT + N_DECODE, N_OTHERS = 7 };

/* One expanded block of 256 tokens, then 74 absorbed ones; any ids will do. */
static void make_prompt(int32_t *tokens, uint32_t n, uint32_t vocab, uint32_t seed) {
    for (uint32_t i = 0; i < n; i++) {
        seed = seed * 1664525u + 1013904223u;
        tokens[i] = (int32_t)((seed >> 8) % vocab);
    }
}

static uint64_t hash_bytes(const void *data, size_t n) { /* FNV-1a */
    const uint8_t *p = data;
    uint64_t h = 0xCBF29CE484222325u;
    for (size_t i = 0; i < n; i++) h = (h ^ p[i]) * 0x100000001B3u;
    return h;
}

typedef struct layout {
    uint32_t chunk, threads;
    bool beside_others;
    uint32_t activations, kv_cache, drafts;
} layout;

static dsi_session *new_session(dsi_engine *e) {
    dsi_session_options so;
    dsi_session_options_init(&so);
    so.all_logits = 1;
    so.ignore_end = 1;
    dsi_session *s = NULL;
    assert_int_equal(dsi_session_open(e, &so, &s), DSI_OK);
    return s;
}

/* Hashes the rows that the last step gave `s`, those of drafts that were taken among them. */
static void hash_rows(const dsi_session *s, size_t vocab, uint64_t *hashes, uint32_t *n_seen) {
    const float *logits;
    size_t n_rows, first;
    dsi_session_logits(s, &logits, &n_rows, &first);
    for (size_t r = 0; r < n_rows && first + r < N_ROWS; r++)
        hashes[first + r] = hash_bytes(logits + r * vocab, vocab * sizeof *logits);
    *n_seen = (uint32_t)(first + n_rows);
}

static void run_layout(dsi_model *model, size_t vocab, const layout *l, const char *kernels,
                       uint64_t *hashes) {
    dsi_engine_options o;
    dsi_engine_options_init(&o);
    o.n_threads = l->threads;
    o.activations = l->activations;
    o.kv_cache = l->kv_cache;
    o.chunk_tokens = l->chunk;
    o.draft_tokens = l->drafts;
    o.max_context = N_ROWS + 6;
    o.kv_tokens = 8 * (N_ROWS + 64);
    o.kernels = kernels;
    dsi_engine *e = open_engine(model, &o);
    assert_non_null(e);
    int32_t tokens[N_PROMPT], other[N_PROMPT], token;
    dsi_session *all[1 + N_OTHERS];
    uint32_t n = l->beside_others ? 1 + N_OTHERS : 1, n_seen = 0, mine = n / 2;
    make_prompt(tokens, N_PROMPT, (uint32_t)vocab, 7);
    for (uint32_t i = 0; i < n; i++) {
        all[i] = new_session(e);
        make_prompt(other, N_PROMPT, (uint32_t)vocab, 100 + i);
        /* the others are of many lengths, so they prefill and decode while ours does */
        assert_int_equal(i == mine ? dsi_session_append(all[i], tokens, N_PROMPT)
                                   : dsi_session_append(all[i], other, 1 + i * 40),
                         DSI_OK);
    }
    while (n_seen < N_ROWS) {
        size_t before = dsi_session_n_queued(all[mine]);
        assert_int_equal(dsi_engine_step(e, all, n, NULL), DSI_OK);
        if (dsi_session_n_queued(all[mine]) != before) hash_rows(all[mine], vocab, hashes, &n_seen);
        for (uint32_t i = 0; i < n; i++)
            while (!dsi_session_n_queued(all[i]) && !dsi_session_finish(all[i])) {
                assert_int_equal(dsi_session_sample(all[i], &token), DSI_OK);
                if (i == mine) hash_rows(all[i], vocab, hashes, &n_seen);
            }
    }
    for (uint32_t i = 0; i < n; i++) dsi_session_close(all[i]);
    dsi_engine_close(e);
}

/* `full`: every combination; else each layout of a prompt, threads and company at least once. */
static void check_cache(const char *dir, const char *kernels, uint32_t activations,
                        uint32_t kv_cache, bool full) {
    dsi_model *model;
    dsi_model_info info = {.struct_size = sizeof info};
    if (dsi_model_open(dir, NULL, &model) != DSI_OK) fail_msg("%s", dsi_last_error(NULL));
    dsi_model_get_info(model, &info);
    const uint32_t chunks[] = {N_PROMPT, 1, 7, 64};
    static uint64_t truth[N_ROWS], hashes[N_ROWS];
    uint32_t n_layouts = 0;
    for (int c = 0; c < 4; c++)
        for (uint32_t threads = 1; threads <= 3; threads++)
            for (int others = 0; others < 2; others++) {
                /* by default one draft alone, none in company; else some */
                uint32_t drafts = !info.n_mtp_layers || c < 2 ? DSI_DRAFTS_AUTO : (uint32_t)c - 1;
                layout l = {chunks[c], threads, others != 0, activations, kv_cache, drafts};
                if (SLOW_BUILD && (chunks[c] == 1 || threads != 2)) continue;
                if (!full && (c == 0 ? others && threads != 3 : threads != 2)) continue;
                memset(hashes, 0, sizeof hashes);
                run_layout(model, info.vocab_size, &l, kernels, n_layouts ? hashes : truth);
                for (int r = 0; n_layouts && r < N_ROWS; r++)
                    if (hashes[r] != truth[r])
                        fail_msg("%s: row %d differs: chunk %u, %u threads, %d others", dir, r,
                                 l.chunk, threads, others * N_OTHERS);
                n_layouts++;
            }
    print_message("%s, %s kernels: %u layouts, %d rows each, all hashes equal\n", dir, kernels,
                  n_layouts, N_ROWS);
    dsi_model_close(model);
}

static void check_model(const char *dir, const char *kernels, uint32_t activations, bool full) {
    check_cache(dir, kernels, activations, DSI_KV_CACHE_BF16, full);
}

/* The best set of this machine takes every layout, the others a selection. */
static void test_exact_tiny_gov(void **state) {
    (void)state;
    const char *kernels[KERNEL_SETS];
    size_t n = kernel_sets(kernels);
    check_model("examples/models/tiny-gov", kernels[n - 1], DSI_ACTIVATIONS_BF16, false);
}
static void test_exact_v3_fp8(void **state) {
    (void)state;
    const char *kernels[KERNEL_SETS];
    size_t n = kernel_sets(kernels);
    for (size_t i = 1; i < n; i++)
        check_model("tests/data/golden/v3-fp8", kernels[i], DSI_ACTIVATIONS_BF16, i == n - 1);
}
/* DeepSeek-V3.2: which tokens a row chooses is a matter of that row, in whatever step it is. */
static void test_exact_v32(void **state) {
    (void)state;
    const char *kernels[KERNEL_SETS];
    size_t n = kernel_sets(kernels);
    for (size_t i = 1; i < n; i++)
        check_model("tests/data/golden/v32", kernels[i], DSI_ACTIVATIONS_BF16, i == n - 1);
    check_cache("tests/data/golden/v32", kernels[n - 1], DSI_ACTIVATIONS_BF16, DSI_KV_CACHE_FP8,
                false);
}
/* Grouped-query attention keeps the same promise. */
static void test_exact_qwen2(void **state) {
    (void)state;
    const char *kernels[KERNEL_SETS];
    size_t n = kernel_sets(kernels);
    check_model("tests/data/golden/qwen2", kernels[n - 1], DSI_ACTIVATIONS_BF16, false);
}
/* INT8 and INT4 weights, and operands of eight bits: a row has multipliers of its own, so it
 * knows no other row either. */
static void test_exact_integers(void **state) {
    (void)state;
    const char *kernels[KERNEL_SETS];
    size_t n = kernel_sets(kernels);
    const struct {
        const stored_form *form;
        uint32_t activations;
        const char *name;
    } cases[] = {{&integer_forms[FORM_INT8_CHANNEL], DSI_ACTIVATIONS_A8, "a8"},
                 {&integer_forms[FORM_INT8_BLOCK], DSI_ACTIVATIONS_BF16, "bf16"},
                 {&integer_forms[FORM_INT4_G32], DSI_ACTIVATIONS_A8, "a8"},
                 {&form_fp8, DSI_ACTIVATIONS_E4M3, "e4m3"}};
    for (int i = 0; i < 4; i++) {
        char folder[64];
        const stored_form *form = cases[i].form;
        temp_folder(folder);
        print_message("%s, %s activations:\n", form->name, cases[i].name);
        quantize_checkpoint("tests/data/golden/v2-lite", form, folder, 0, NULL);
        check_model(folder, kernels[n - 1], cases[i].activations, false);
        remove_folder(folder);
    }
}

/* A cached row is coded from itself alone. */
static void test_exact_kv_cache(void **state) {
    (void)state;
    const char *kernels[KERNEL_SETS];
    size_t n = kernel_sets(kernels);
    check_cache("tests/data/golden/v3-fp8", kernels[n - 1], DSI_ACTIVATIONS_BF16, DSI_KV_CACHE_FP8,
                false);
    check_cache("tests/data/golden/v3-fp8", kernels[n - 1], DSI_ACTIVATIONS_BF16, DSI_KV_CACHE_INT8,
                false);
    check_cache("tests/data/golden/qwen2", kernels[n - 1], DSI_ACTIVATIONS_BF16, DSI_KV_CACHE_FP8,
                false);
}

static const char *folder;
static uint32_t folder_activations;
static void test_exact_folder(void **state) {
    (void)state;
    const char *kernels[KERNEL_SETS];
    size_t n = kernel_sets(kernels);
    check_model(folder, kernels[n - 1], folder_activations, false);
}

int main(int argc, char **argv) {
    static const char *const names[] = {"bf16", "f32", "a8", "e4m3"}; /* DSI_ACTIVATIONS_* */
    const struct CMUnitTest one[] = {cmocka_unit_test(test_exact_folder)};
    for (uint32_t i = 0; argc > 2 && i < 4; i++)
        if (strcmp(argv[2], names[i]) == 0) folder_activations = i;
    folder = argc > 1 ? argv[1] : NULL;
    if (folder) return cmocka_run_group_tests_name("exact", one, NULL, NULL);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_exact_v3_fp8),   cmocka_unit_test(test_exact_qwen2),
        cmocka_unit_test(test_exact_integers), cmocka_unit_test(test_exact_kv_cache),
        cmocka_unit_test(test_exact_tiny_gov), cmocka_unit_test(test_exact_v32),
    };
    return cmocka_run_group_tests_name("exact", tests, NULL, NULL);
}
