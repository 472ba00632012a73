/* test_adapter.c: LoRA adapters: logits against those of merged weights, for every weight that can
 * be adapted, in both forms of MLA; rows of several adapters and of none in one step, bit for bit
 * as alone; what keeps cached rows of one adapter from another; an adapter as the peft package
 * saved it; drafts; lifetimes. Hostile adapters: test_adapter_files.c. */
#include "adapter_files.h"
#include "session_tools.h"
#include "two_folders.h"

enum { N_PROMPT = 290, N_DECODE = 4, N_ROWS = N_PROMPT + N_DECODE }; /* a whole block, and a tail */
enum { CONTEXT = 320 };

static dsi_session *session_with(dsi_engine *e, dsi_adapter *a) {
    dsi_session_options o;
    dsi_session_options_init(&o);
    o.all_logits = 1;
    o.ignore_end = 1;
    o.adapter = a;
    return start_session(e, &o);
}
static dsi_engine_options f32_engine(uint32_t attention) {
    dsi_engine_options o = engine_of(CONTEXT, CONTEXT, 2);
    o.activations = DSI_ACTIVATIONS_F32;
    o.attention = attention;
    return o;
}

/* ---- Merged weights -------------------------------------------------------------------------- */

/* Logits of a made-up prompt and of tokens that come one by one behind it. */
static float *logits_of(dsi_engine *e, dsi_adapter *a) {
    const uint32_t vocab = e->model->config.vocab_size;
    float *out = calloc((size_t)N_ROWS * vocab, sizeof *out);
    int32_t tokens[N_ROWS];
    dsi_session *s = session_with(e, a);
    for (uint32_t i = 0; i < N_ROWS; i++) tokens[i] = made_up_token(i, 3, vocab);
    assert_true(all_logits(e, s, tokens, N_PROMPT, vocab, out));
    for (uint32_t i = N_PROMPT; i < N_ROWS; i++)
        assert_true(all_logits(e, s, tokens + i, 1, vocab, out));
    dsi_session_close(s);
    return out;
}

/* KL of the adapter's logits from those of the merged checkpoint; *effect: mean KL of the model's
 * own from them. */
static distance merged_kl(const char *model, const recipe *r, const dsi_engine_options *o,
                          double *effect) {
    dsi_model *base = load_model(model);
    const size_t vocab = base->config.vocab_size;
    made_file f = make_adapter(base, r);
    write_merged(model, other, &f, recipe_scale(r));
    write_made(folder, "adapter_model.safetensors", &f);
    write_adapter_config(folder, r);
    free_file(&f);
    dsi_model *merged = load_model(other);
    dsi_engine *e = start_engine(base, o), *truth = start_engine(merged, o);
    dsi_adapter *a = open_adapter(e, folder, NULL);
    float *want = logits_of(truth, NULL), *got = logits_of(e, a), *plain = logits_of(e, NULL);
    distance d = compare_logits(want, got, N_ROWS, vocab);
    *effect = compare_logits(want, plain, N_ROWS, vocab).mean_kl;
    free(want), free(got), free(plain);
    dsi_adapter_close(a);
    dsi_engine_close(e);
    dsi_engine_close(truth);
    dsi_model_close(base);
    dsi_model_close(merged);
    return d;
}

/* V3.2 last: where two cached rows score nearly the same, rounding decides which one a row sees;
 * such a row is then another one. */
static const char *const models[] = {"tests/data/golden/qwen2", "tests/data/golden/llama",
                                     "tests/data/golden/v2-lite", "tests/data/golden/v3-bf16",
                                     "tests/data/golden/v32"};
enum { N_MODELS = sizeof models / sizeof models[0], V32 = N_MODELS - 1 };
static double kl_of(int m, const distance *d) { return m == V32 ? d->median_kl : d->mean_kl; }

static void test_merged(void **state) {
    (void)state;
    const recipe recipes[] = {
        {.rank = 5, .alpha = 8, .dtype = DSI_DTYPE_F32, .seed = 1, .strength = 0.5f},
        {.rank = 16,
         .alpha = 16,
         .rslora = true,
         .dtype = DSI_DTYPE_BF16,
         .seed = 2,
         .strength = 0.3f},
        {.rank = 70, .alpha = 35, .dtype = DSI_DTYPE_F16, .seed = 3, .strength = 0.3f}};
    for (int m = 0; m < N_MODELS; m++)
        for (int i = 0; i < 3; i++) {
            dsi_engine_options o = f32_engine(DSI_ATTENTION_AUTO);
            double effect;
            distance d = merged_kl(models[m], &recipes[i], &o, &effect);
            print_message("%s, rank %u: mean KL %.1e, median %.1e, without the adapter %.1e\n",
                          models[m], recipes[i].rank, d.mean_kl, d.median_kl, effect);
            assert_true(effect > 1e-3 && d.mean_kl < 1e-3);
            assert_true(kl_of(m, &d) < 1e-9);
        }
}

/* Each module alone, so that none stands in for another; both forms of MLA. */
static void test_each_module(void **state) {
    (void)state;
    static const char *const modules[] = {"|q_proj|",
                                          "|k_proj|",
                                          "|v_proj|",
                                          "|o_proj|",
                                          "|q_a_proj|",
                                          "|q_b_proj|",
                                          "|kv_a_proj_with_mqa|",
                                          "|kv_b_proj|",
                                          "|gate_proj|",
                                          "|up_proj|",
                                          "|down_proj|"};
    uint32_t n = 0;
    for (int m = 0; m < N_MODELS; m++)
        for (size_t i = 0; i < sizeof modules / sizeof modules[0]; i++) {
            const bool mla = m >= 2, low = m >= 3;
            if (i > 3 && i < 8 && (!mla || (i < 6 && !low))) continue;
            if ((mla && (i == 1 || i == 2)) || (low && i == 0)) continue;
            const recipe r = {.modules = modules[i],
                              .rank = 4,
                              .alpha = 16,
                              .dtype = DSI_DTYPE_F32,
                              .seed = (uint32_t)i,
                              .strength = 1};
            for (uint32_t form = DSI_ATTENTION_AUTO; form <= DSI_ATTENTION_EXPANDED; form++) {
                if (form != DSI_ATTENTION_AUTO && i != 7) continue;
                dsi_engine_options o = f32_engine(form);
                double effect;
                distance d = merged_kl(models[m], &r, &o, &effect);
                if (!(kl_of(m, &d) < 1e-9 && effect > 1e-5 && effect > 1e3 * d.mean_kl))
                    fail_msg("%s, %s, form %u: mean KL %.1e, median %.1e, without the adapter %.1e",
                             models[m], modules[i], form, d.mean_kl, d.median_kl, effect);
                n++;
            }
        }
    print_message("%u modules and forms\n", n);
}

/* BF16 operands round both sides in their own way; the distance is theirs. */
static void test_merged_bf16(void **state) {
    (void)state;
    const recipe r = {.rank = 8, .alpha = 8, .dtype = DSI_DTYPE_BF16, .seed = 4, .strength = 0.5f};
    for (int m = 0; m < N_MODELS; m++) {
        dsi_engine_options o = f32_engine(DSI_ATTENTION_AUTO);
        o.activations = DSI_ACTIVATIONS_BF16;
        double effect;
        distance d = merged_kl(models[m], &r, &o, &effect);
        print_message("%s, bf16: mean KL %.1e, without the adapter %.1e\n", models[m], d.mean_kl,
                      effect);
        assert_true(d.mean_kl < (m == V32 ? 5e-2 : 5e-3) && effect > 20 * d.mean_kl);
    }
}

/* GGUF files hold q and k of Llama with the rows of a head in another order: B follows. */
static void test_gguf(void **state) {
    (void)state;
    const recipe r = {.rank = 6, .alpha = 12, .dtype = DSI_DTYPE_F32, .seed = 5, .strength = 0.5f};
    dsi_model *model = load_model("tests/data/golden/llama");
    dsi_model *gguf = load_model("tests/data/gguf/llama-f32.gguf");
    dsi_engine_options o = f32_engine(DSI_ATTENTION_AUTO);
    dsi_engine *e = start_engine(model, &o), *g = start_engine(gguf, &o);
    dsi_adapter *a = open_adapter(e, folder, &r), *b = open_adapter(g, folder, NULL);
    float *want = logits_of(e, a), *got = logits_of(g, b);
    double kl = compare_logits(want, got, N_ROWS, model->config.vocab_size).mean_kl;
    print_message("llama in GGUF: mean KL %.1e\n", kl);
    assert_true(kl < 1e-9);
    free(want), free(got);
    dsi_adapter_close(a);
    dsi_adapter_close(b);
    dsi_engine_close(e);
    dsi_engine_close(g);
    dsi_model_close(model);
    dsi_model_close(gguf);
}

/* ---- Rows in company ------------------------------------------------------------------------- */

enum { N_MIXED = 8, N_WATCHED = 3 };
static const uint32_t watched[N_WATCHED] = {0, 4, 5}; /* adapter one, adapter two, none */

/* Session number `who` of the company; whole blocks of a prompt where adapters are. */
static dsi_session *company(dsi_engine *e, dsi_adapter *const *adapters, uint32_t who) {
    int32_t tokens[N_PROMPT];
    const uint32_t n_tokens = who == 0 || who == 4 ? 258 + who : 5 + who * 7;
    dsi_session *s = session_with(e, adapters[who % 3]);
    for (uint32_t k = 0; k < n_tokens; k++)
        tokens[k] = made_up_token(k, who, e->model->config.vocab_size);
    OK(dsi_session_append(s, tokens, n_tokens), s);
    return s;
}

/* Hashes of the rows of the watched sessions; `only` below N_MIXED: that one alone. */
static void run_mixed(dsi_engine *e, dsi_adapter *const *adapters, uint32_t only,
                      uint64_t hashes[N_WATCHED][CONTEXT]) {
    dsi_session *all[N_MIXED], *s;
    const size_t vocab = e->model->config.vocab_size;
    uint32_t n = 0;
    const float *logits;
    size_t n_rows, first, first_of[N_WATCHED];
    int32_t token;
    for (uint32_t who = 0; who < N_MIXED; who++)
        if (only == N_MIXED || who == only) all[n++] = company(e, adapters, who);
    for (bool done = false; !done;) {
        OK(dsi_engine_step(e, all, n, NULL), e);
        done = true;
        for (uint32_t w = 0; w < N_WATCHED; w++) {
            if (only < N_MIXED && only != watched[w]) continue;
            s = all[only < N_MIXED ? 0 : watched[w]];
            OK(dsi_session_logits(s, &logits, &n_rows, &first_of[w]), s);
            first = first_of[w];
            for (size_t r = 0; r < n_rows; r++)
                hashes[w][first + r] = hash_bytes(1, logits + r * vocab, vocab * sizeof *logits);
            done &= dsi_session_n_tokens(s) >= (watched[w] == 5 ? 40 : 258 + watched[w]) + 6u;
        }
        for (uint32_t i = 0; i < n; i++)
            if (!dsi_session_n_queued(all[i]) && dsi_session_n_tokens(all[i]) < CONTEXT - 2)
                OK(dsi_session_sample(all[i], &token), all[i]);
    }
    for (uint32_t i = 0; i < n; i++) dsi_session_close(all[i]);
}

static void compare_mixed(uint64_t truth[N_WATCHED][CONTEXT], uint64_t hashes[N_WATCHED][CONTEXT],
                          const char *what) {
    for (int w = 0; w < N_WATCHED; w++)
        for (int r = 0; r < CONTEXT; r++)
            if (hashes[w][r] && truth[w][r] && hashes[w][r] != truth[w][r])
                fail_msg("%s: row %d of session %u differs", what, r, watched[w]);
}

/* Two adapters and none: what each row gives does not depend on company, threads or chunks; and
 * rows without an adapter are those of an engine that has never seen one. */
static void check_mixed(const char *path, const char *kernels, uint32_t activations, bool full) {
    static uint64_t truth[N_WATCHED][CONTEXT], hashes[N_WATCHED][CONTEXT];
    const recipe one = {.rank = 4, .alpha = 8, .dtype = DSI_DTYPE_BF16, .seed = 6},
                 two = {.rank = 19, .alpha = 30, .dtype = DSI_DTYPE_F32, .seed = 7};
    const struct { uint32_t chunk, threads; } layouts[] = {{300, 1}, {64, 2}, {7, 1}, {300, 2}};
    dsi_model *model = load_model(path);
    const int n_layouts = SLOW_BUILD ? 1 : full ? 4 : 2;
    memset(truth, 0, sizeof truth);
    for (int l = 0; l < n_layouts; l++) {
        dsi_engine_options o = engine_of(CONTEXT, layouts[l].chunk, N_MIXED);
        o.n_threads = layouts[l].threads;
        o.kernels = kernels;
        o.activations = activations;
        dsi_engine *e = start_engine(model, &o);
        dsi_adapter *a[3] = {NULL, NULL, NULL};
        if (l == 0) run_mixed(e, a, watched[2], truth); /* before there are adapters */
        a[0] = open_adapter(e, folder, &one), a[1] = open_adapter(e, other, &two);
        for (int w = 0; l == 0 && w < 2; w++) run_mixed(e, a, watched[w], truth);
        assert_true(truth[0][258] && truth[1][258] && truth[2][30] && truth[0][0] != truth[1][0]);
        memset(hashes, 0, sizeof hashes);
        run_mixed(e, a, N_MIXED, hashes);
        assert_true(hashes[0][258] && hashes[1][258] && hashes[2][30]);
        compare_mixed(truth, hashes, path);
        dsi_adapter_close(a[0]);
        dsi_adapter_close(a[1]);
        dsi_engine_close(e);
    }
    print_message("%s, %s kernels: %d layouts, all hashes equal\n", path, kernels, n_layouts);
    dsi_model_close(model);
}
static void test_mixed(void **state) {
    (void)state;
    const char *kernels[KERNEL_SETS];
    size_t n = kernel_sets(kernels);
    for (size_t i = n > 1 ? 1 : 0; i < n; i++)
        check_mixed("tests/data/golden/v3-bf16", kernels[i], DSI_ACTIVATIONS_BF16, i == n - 1);
    check_mixed("tests/data/golden/v2-lite", kernels[n - 1], DSI_ACTIVATIONS_F32, false);
    check_mixed("tests/data/golden/qwen2", kernels[n - 1], DSI_ACTIVATIONS_BF16, false);
    check_mixed("tests/data/golden/v32", kernels[n - 1], DSI_ACTIVATIONS_BF16, false);
    check_mixed("tests/data/golden/v3-fp8", kernels[n - 1], DSI_ACTIVATIONS_E4M3, false);
}

/* ---- As the peft package saves it ------------------------------------------------------------ */

/* Scale by the square root, a rank and an alpha of their own for two modules, BF16; the logits are
 * PyTorch's (tools/make_adapter.py). */
static void test_peft(void **state) {
    (void)state;
    dsi_checkpoint file;
    dsi_error error;
    dsi_model *model = load_model("tests/data/golden/v2-lite");
    dsi_engine_options o = f32_engine(DSI_ATTENTION_AUTO);
    dsi_engine *e = start_engine(model, &o);
    dsi_adapter *a = open_adapter(e, "tests/data/adapter", NULL);
    const uint32_t vocab = model->config.vocab_size;
    assert_int_equal(
        dsi_checkpoint_open_file("tests/data/adapter/golden.safetensors", &file, &error), DSI_OK);
    const dsi_file_tensor *tokens = dsi_checkpoint_find(&file, "tokens");
    const dsi_file_tensor *logits = dsi_checkpoint_find(&file, "logits");
    const size_t n = (size_t)tokens->shape[0];
    float *got = calloc(n * vocab, sizeof *got);
    double kl[2];
    for (int with = 0; with < 2; with++) {
        dsi_session *s = session_with(e, with ? a : NULL);
        assert_true(
            all_logits(e, s, (const void *)dsi_checkpoint_data(&file, tokens), n, vocab, got));
        kl[with] =
            compare_logits((const void *)dsi_checkpoint_data(&file, logits), got, n, vocab).mean_kl;
        dsi_session_close(s);
    }
    print_message("peft: mean KL %.1e, without the adapter %.1e\n", kl[1], kl[0]);
    assert_true(kl[1] < 1e-9 && kl[0] > 1e-3);
    dsi_adapter_info info = {.struct_size = sizeof info};
    OK(dsi_adapter_get_info(a, &info), a);
    assert_int_equal(info.max_rank, 3);
    assert_int_equal(info.n_weights, 4 * 3);
    assert_string_equal(info.name, "adapter");
    assert_string_equal(info.targets, "q_proj, o_proj, kv_a_proj_with_mqa, kv_b_proj");
    free(got);
    dsi_checkpoint_close(&file);
    dsi_adapter_close(a);
    dsi_engine_close(e);
    dsi_model_close(model);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_merged),      cmocka_unit_test(test_each_module),
        cmocka_unit_test(test_merged_bf16), cmocka_unit_test(test_gguf),
        cmocka_unit_test(test_mixed),       cmocka_unit_test(test_peft),
    };
    return cmocka_run_group_tests_name("adapter", tests, make_folders, drop_folders);
}
