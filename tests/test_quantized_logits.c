/* test_quantized_logits.c: INT8 and INT4 checkpoints compute what their weights stand for: logits
 * against those of a twin with the same weights in F32, and the perplexity of tiny-gov on its
 * held-back records in every form. */
#include "../lib/backend/cpu.h"
#include "../lib/base/json.h"
#include "golden.h"
#include "quantize_checkpoint.h"

#define GOLDEN "tests/data/golden/"
#define TINY_GOV "examples/models/tiny-gov"

/* Sanitizers slow the steps down twenty times; they look at memory, not at numbers. */
#ifdef __SANITIZE_ADDRESS__
enum { SLOW_BUILD = 1 };
#else
enum { SLOW_BUILD = 0 };
#endif

static char folder[64], twin_folder[64];
static int setup(void **state) {
    (void)state;
    temp_folder(folder);
    temp_folder(twin_folder);
    return 0;
}
static int teardown(void **state) {
    (void)state;
    remove_folder(folder);
    remove_folder(twin_folder);
    return 0;
}

static dsi_model *open_folder(const char *dir) {
    dsi_model *model = NULL;
    if (dsi_model_open(dir, NULL, &model)) fail_msg("%s", dsi_last_error(NULL));
    return model;
}

static uint32_t kv_cache = DSI_KV_CACHE_BF16; /* of the engines that follow */
/* Logits of all n tokens, [n][vocab]; the caller frees them. */
static float *logits_of(dsi_model *model, uint32_t activations, const char *kernels,
                        const int32_t *tokens, size_t n) {
    dsi_engine_options o;
    dsi_session_options so;
    dsi_model_info info = {.struct_size = sizeof info};
    dsi_session *session;
    dsi_engine_options_init(&o);
    dsi_session_options_init(&so);
    assert_int_equal(dsi_model_get_info(model, &info), DSI_OK);
    o.activations = activations;
    o.kv_cache = kv_cache;
    o.kernels = kernels;
    o.n_threads = 2;
    o.max_context = 512;
    so.all_logits = 1;
    dsi_engine *engine = open_engine(model, &o);
    assert_non_null(engine);
    assert_int_equal(dsi_session_open(engine, &so, &session), DSI_OK);
    float *out = calloc(n * info.vocab_size, sizeof *out);
    assert_non_null(out);
    assert_true(all_logits(engine, session, tokens, n, info.vocab_size, out));
    dsi_session_close(session);
    dsi_engine_close(engine);
    return out;
}

/* ---- Against a twin in F32 ------------------------------------------------------------------ */

static void check_twin(const char *name, const stored_form *form, int shift, bool all_kernels) {
    char dir[128], path[160];
    const char *kernels[KERNEL_SETS];
    golden g;
    snprintf(dir, sizeof dir, GOLDEN "%s", name);
    snprintf(path, sizeof path, "%s/golden.safetensors", dir);
    assert_true(golden_open(path, &g));
    quantize_checkpoint(dir, form, folder, shift, twin_folder);
    dsi_model *model = open_folder(folder), *twin = open_folder(twin_folder);
    size_t n_kernels = kernel_sets(kernels), n = SLOW_BUILD ? 20 : g.n_tokens;
    float *wanted = logits_of(twin, DSI_ACTIVATIONS_F32, NULL, g.tokens, n);
    distance moved = compare_logits(g.logits, wanted, n, g.vocab);
    for (size_t i = all_kernels ? 0 : n_kernels - 1; i < n_kernels; i++) {
        float *ours = logits_of(model, DSI_ACTIVATIONS_F32, kernels[i], g.tokens, n);
        distance d = compare_logits(wanted, ours, n, g.vocab);
        print_message("%-8s %-13s %-10s to its twin: mean KL %.1e max |d| %.1e; the twin to the "
                      "golden logits %.1e\n",
                      name, form->name, kernels[i], d.mean_kl, d.max_abs, moved.mean_kl);
        assert_true(d.max_abs <= 1e-4);
        assert_true(d.mean_kl <= 1e-9);
        free(ours);
    }
    /* The storing moved the logits, by what its bits allow: the twin is no copy of the original. */
    assert_true(moved.mean_kl > 1e-7);
    free(wanted);
    dsi_model_close(model);
    dsi_model_close(twin);
    golden_close(&g);
}

static void test_twins(void **state) {
    (void)state;
    for (int i = 0; i < N_INTEGER_FORMS; i++) {
        check_twin("v3-bf16", &integer_forms[i], 0, i % 2 == 0);
        if (i % 2 == 0) check_twin("qwen2", &integer_forms[i], 0, false);
        check_twin("v2-lite", &integer_forms[i], 1, false);           /* everything misaligned */
        if (i % 2) check_twin("v3-odd", &integer_forms[i], 0, false); /* part full groups */
    }
}

/* ---- Perplexity of tiny-gov ----------------------------------------------------------------- */

enum { N_RECORDS = SLOW_BUILD ? 4 : 12, MAX_TOKENS = 480 };
typedef struct record {
    int32_t tokens[MAX_TOKENS];
    size_t n;
} record;

static size_t add_tokens(record *r, size_t n) {
    assert_true(r->n + n <= MAX_TOKENS);
    return r->n += n;
}

/* The prompt of a record's question, its answer, and the end. */
static void read_record(const dsi_model *model, const char *line, size_t n_line, record *r) {
    dsi_json json;
    dsi_error error = {0};
    size_t n = 0;
    assert_ok(dsi_json_parse(line, n_line, 64, &json, &error), &error);
    char *user = dsi_json_string(&json, dsi_json_get(&json, 0, "user"), NULL);
    char *answer = dsi_json_string(&json, dsi_json_get(&json, 0, "answer"), NULL);
    assert_non_null(user);
    assert_non_null(answer);
    dsi_message message = {sizeof message, DSI_ROLE_USER, user, strlen(user)};
    r->n = 0;
    assert_int_equal(
        dsi_chat_tokens(model, &message, 1, DSI_THINK_OFF, r->tokens, MAX_TOKENS - 1, &n), DSI_OK);
    add_tokens(r, n);
    assert_int_equal(dsi_tokenize(model, answer, strlen(answer), DSI_TOKENIZE_PLAIN,
                                  r->tokens + r->n, MAX_TOKENS - 1 - r->n, &n),
                     DSI_OK);
    add_tokens(r, n);
    r->tokens[r->n++] = 1; /* the end of an answer */
    dsi_sys_free(user);
    dsi_sys_free(answer);
    dsi_json_free(&json);
}

static double perplexity(dsi_model *model, uint32_t activations, const record *records) {
    double sum = 0;
    size_t n = 0, vocab = 4096;
    for (int i = 0; i < N_RECORDS; i++) {
        const record *r = &records[i];
        float *logits = logits_of(model, activations, NULL, r->tokens, r->n);
        for (size_t t = 0; t + 1 < r->n; t++, n++) {
            const float *row = logits + t * vocab;
            sum += log_sum_exp(row, vocab) - (double)row[r->tokens[t + 1]];
        }
        free(logits);
    }
    return exp(sum / (double)n);
}

static void judge(const char *name, double value, double base, double limit) {
    double change = value / base - 1;
    print_message("tiny-gov %-20s perplexity %.4f, %+.2f %% of BF16 (limit %.1f %%)\n", name, value,
                  100 * change, 100 * limit);
    assert_true(fabs(change) <= limit);
}

static void test_perplexity(void **state) {
    (void)state;
    static record records[N_RECORDS];
    static const char *const tokenizer[] = {"tokenizer.json", "tokenizer_config.json"};
    for (int i = 0; i < 2; i++) link_file(TINY_GOV, folder, tokenizer[i]);
    quantize_checkpoint(TINY_GOV, &form_bf16, folder, 0, NULL);
    dsi_model *model = open_folder(folder);
    bytes file = read_file(TINY_GOV, "heldback.jsonl");
    char *line = file.data;
    for (int i = 0; i < N_RECORDS; i++) {
        char *end = strchr(line, '\n');
        assert_non_null(end);
        read_record(model, line, (size_t)(end - line), &records[i]);
        line = end + 1;
    }
    free(file.data);
    double base = perplexity(model, DSI_ACTIVATIONS_BF16, records);
    judge("BF16", base, base, 0);
    for (kv_cache = DSI_KV_CACHE_FP8; kv_cache <= DSI_KV_CACHE_INT8; kv_cache++)
        judge(kv_cache == DSI_KV_CACHE_FP8 ? "BF16, fp8 cache" : "BF16, int8 cache",
              perplexity(model, DSI_ACTIVATIONS_BF16, records), base, 0.01);
    kv_cache = DSI_KV_CACHE_BF16;
    dsi_model_close(model);
    const struct {
        const stored_form *form;
        double limit;
    } cases[] = {{&form_fp8, 0.005},
                 {&integer_forms[FORM_INT8_CHANNEL], 0.01},
                 {&integer_forms[FORM_INT8_BLOCK], 0.01},
                 {&integer_forms[FORM_INT4_G32], 0.05},
                 {&form_int4_mlp, 0.05}};
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        char name[40];
        const stored_form *form = cases[i].form;
        quantize_checkpoint(TINY_GOV, form, folder, 0, NULL);
        model = open_folder(folder);
        judge(form->name, perplexity(model, DSI_ACTIVATIONS_BF16, records), base, cases[i].limit);
        snprintf(name, sizeof name, "%s, %s", form->name,
                 form->dtype == DSI_DTYPE_E4M3 ? "e4m3" : "a8");
        uint32_t narrow = DSI_ACTIVATIONS_A8;
        if (form->dtype == DSI_DTYPE_E4M3) narrow = DSI_ACTIVATIONS_E4M3;
        judge(name, perplexity(model, narrow, records), base, cases[i].limit);
        dsi_model_close(model);
    }
}

/* ---- Damaged scales, operands of eight bits -------------------------------------------------- */

/* The bytes of one tensor of the checkpoint in `folder` become `value`, over and over. */
static void overwrite(const char *name, uint16_t value) {
    dsi_checkpoint c;
    dsi_error error = {0};
    assert_ok(dsi_checkpoint_open(folder, NULL, NULL, &c, &error), &error);
    const dsi_file_tensor *t = dsi_checkpoint_find(&c, name);
    assert_non_null(t);
    bytes file = read_file(folder, "model.safetensors");
    for (uint64_t i = 0; i < t->n_bytes; i += 2) memcpy(file.data + t->file_offset + i, &value, 2);
    dsi_checkpoint_close(&c);
    write_file(folder, "model.safetensors", file.data, file.n);
    free(file.data);
}

/* A8 and E4M3 are what they say: other logits than BF16 gives, near those of the twin, and nearly
 * the same on every kernel set. */
static void test_narrow_operands(void **state) {
    (void)state;
    const char *kernels[KERNEL_SETS];
    size_t n_kernels = kernel_sets(kernels), n;
    const stored_form *forms[] = {&integer_forms[FORM_INT8_CHANNEL],
                                  &integer_forms[FORM_INT8_BLOCK], &integer_forms[FORM_INT4_G32],
                                  &form_fp8};
    golden g;
    assert_true(golden_open(GOLDEN "v2-lite/golden.safetensors", &g));
    n = SLOW_BUILD ? 20 : g.n_tokens;
    for (int i = 0; i < 4; i++) {
        uint32_t narrow = i < 3 ? DSI_ACTIVATIONS_A8 : DSI_ACTIVATIONS_E4M3;
        quantize_checkpoint(GOLDEN "v2-lite", forms[i], folder, 0, twin_folder);
        dsi_model *model = open_folder(folder), *twin = open_folder(twin_folder);
        float *wanted = logits_of(twin, DSI_ACTIVATIONS_F32, NULL, g.tokens, n);
        float *bf16 = logits_of(model, DSI_ACTIVATIONS_BF16, NULL, g.tokens, n);
        distance plain = compare_logits(wanted, bf16, n, g.vocab);
        for (size_t k = 0; k < n_kernels; k++) {
            float *ours = logits_of(model, narrow, kernels[k], g.tokens, n);
            distance d = compare_logits(wanted, ours, n, g.vocab);
            print_message("v2-lite  %-13s %-10s %s: to the twin mean KL %.1e (BF16 %.1e)\n",
                          forms[i]->name, kernels[k], i < 3 ? "a8" : "e4m3", d.mean_kl,
                          plain.mean_kl);
            assert_true(memcmp(ours, bf16, n * g.vocab * sizeof *ours) != 0);
            assert_true(d.mean_kl > plain.mean_kl && d.mean_kl <= (i < 3 ? 0.05 : 0.2));
            free(ours);
        }
        free(wanted);
        free(bf16);
        dsi_model_close(model);
        dsi_model_close(twin);
    }
    golden_close(&g);
}

/* For weights that they do not fit they are refused, not passed over. */
static void test_narrow_operands_refused(void **state) {
    (void)state;
    static const char *const dirs[] = {GOLDEN "v3-bf16", GOLDEN "v3-fp8", GOLDEN "v3-bf16"};
    static const uint32_t types[] = {DSI_ACTIVATIONS_A8, DSI_ACTIVATIONS_A8, DSI_ACTIVATIONS_E4M3};
    for (int i = 0; i < 3; i++) {
        dsi_model *model = open_folder(dirs[i]);
        dsi_engine *engine = NULL;
        dsi_engine_options o;
        dsi_engine_options_init(&o);
        o.activations = types[i];
        assert_int_equal(dsi_engine_open(model, &o, &engine), DSI_E_ARG);
        assert_non_null(strstr(dsi_last_error(NULL), i < 2 ? "no INT8 or INT4" : "no FP8 weights"));
        assert_non_null(strstr(dsi_last_error(NULL), dirs[i]));
        dsi_model_close(model);
    }
}

/* E4M3 by hand: the formula of act_quant in DeepSeek's inference/kernel.py. */
static void test_e4m3_by_hand(void **state) {
    (void)state;
    float x[131] = {448, 17, 19, -1.0625f, 0.001f, 0}, y[131];
    x[128] = 300, x[129] = 1, x[130] = -0x1p-20f; /* a block of three */
    dsi_cpu_round_e4m3(false, x, DSI_DTYPE_F32, y, 131);
    const float wanted[] = {448, 16, 20, -1, 0x1p-9f, 0}; /* ties go to the even code */
    for (int i = 0; i < 6; i++) assert_near(y[i], wanted[i], 0);
    float scale = 300.0f / 448;
    assert_near(y[128], 448 * scale, 0);
    assert_near(y[129], 1.5f * scale, 0); /* 1.4933 in steps of 0.125 */
    assert_near(y[130], 0, 0);
    dsi_cpu_round_e4m3(true, x, DSI_DTYPE_F32, y, 131);
    assert_near(y[0], 448, 0);   /* 448 / 448 is a power of two already */
    assert_near(y[128], 288, 0); /* the scale is 1: 300 lies between 288 and 320 */
    assert_near(y[129], 1, 0);
    const uint16_t half[] = {0x3F80, 0x7FC0, 0}; /* BF16: 1, NaN, 0 */
    dsi_cpu_round_e4m3(false, half, DSI_DTYPE_BF16, y, 3);
    for (int i = 0; i < 3; i++) assert_true(isnan(y[i]));
    memset(x, 0, sizeof x);
    dsi_cpu_round_e4m3(false, x, DSI_DTYPE_F32, y, 131);
    for (int i = 0; i < 131; i++) assert_near(y[i], 0, 0);
}

/* A scale that is no number ends in DSI_E_NAN, whatever the type of the operands. */
static void test_damaged_scales(void **state) {
    (void)state;
    static const uint16_t bad[] = {0x7FC0, 0x7F80, 0xFF80}; /* NaN, infinities */
    static const int forms[] = {FORM_INT8_CHANNEL, FORM_INT4_G128};
    for (int i = 0; i < 6; i++)
        for (uint32_t activations = 0; activations <= DSI_ACTIVATIONS_A8; activations++) {
            const int32_t tokens[] = {5, 6, 7, 8};
            dsi_engine_options o;
            dsi_session *session;
            quantize_checkpoint(GOLDEN "v2-lite", &integer_forms[forms[i / 3]], folder, 0, NULL);
            overwrite("model.layers.1.self_attn.o_proj.weight_scale", bad[i % 3]);
            dsi_model *model = open_folder(folder);
            dsi_engine_options_init(&o);
            o.activations = activations;
            dsi_engine *engine = open_engine(model, &o);
            assert_non_null(engine);
            assert_int_equal(dsi_session_open(engine, NULL, &session), DSI_OK);
            assert_int_equal(dsi_session_append(session, tokens, 4), DSI_OK);
            dsi_status status = dsi_engine_step(engine, &session, 1, NULL);
            assert_int_equal(status, DSI_E_NAN);
            dsi_session_close(session);
            dsi_engine_close(engine);
            dsi_model_close(model);
        }
}

#define ONE(test) cmocka_unit_test_setup_teardown(test, setup, teardown)
int main(void) {
    const struct CMUnitTest tests[] = {ONE(test_twins),
                                       ONE(test_perplexity),
                                       ONE(test_damaged_scales),
                                       ONE(test_narrow_operands),
                                       ONE(test_narrow_operands_refused),
                                       cmocka_unit_test(test_e4m3_by_hand)};
    return cmocka_run_group_tests_name("quantized logits", tests, NULL, NULL);
}
