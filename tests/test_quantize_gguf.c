/* test_quantize_gguf.c: dsinfer quantize to Q8_0 and Q4_K: keys and tensors are those of
 * llama.cpp's converter, read with formulas of this file; scales are searched alike on every CPU;
 * the tokenizer inside; answers; a killed run; what is refused. */
#include "gguf_source.h"
#include "quantize_run.h"

#include "../kernels/formats.h"
#include "../lib/text/text.h"
#include "../tools/dsinfer/quantize_search.inc"

#include "../tools/dsinfer/quantize_feedback.inc"
#include <deepseek/dsinfer.h>
#include <math.h>

static const quantize_search plain_vectors = {symmetric, put_i4, q4_k,       put_q4_k,
                                              aim,       settle, accumulate, dots};
static const char *const keep_all[2] = {"--keep", "weight"};

/* ---- A file and its numbers ----------------------------------------------------------------- */

static const dsi_gguf_tensor *find_tensor(const source *s, const char *name, size_t n_name) {
    for (uint32_t i = 0; i < s->gguf.n_tensors; i++) {
        const dsi_gguf_tensor *t = &s->gguf.tensors[i];
        if (t->name_bytes == n_name && memcmp(t->name, name, n_name) == 0) return t;
    }
    return NULL;
}

static float half_at(const uint8_t *at) { return dsi_f16_to_f32(dsi_load_u16(at, 0)); }

/* Q4_K: two F16 units, 12 bytes with eight scales and eight offsets of six bits, 128 bytes of
 * codes: runs 2j and 2j + 1 are the low and high halves of bytes 32j ... */
static float q4_k_at(const uint8_t *block, int64_t i) {
    const uint8_t *six = block + 4;
    int64_t run = i / 32, low = run % 4;
    int scale = six[low] & 63, offset = six[low + 4] & 63;
    if (run >= 4) {
        scale = (six[low + 8] & 15) | (six[low] >> 6) << 4;
        offset = six[low + 8] >> 4 | (six[low + 4] >> 6) << 4;
    }
    int code = block[16 + run / 2 * 32 + i % 32] >> run % 2 * 4 & 15;
    return half_at(block) * (float)scale * (float)code - half_at(block + 2) * (float)offset;
}

static float value_at(const source *s, const dsi_gguf_tensor *t, int64_t i) {
    const uint8_t *data = s->map.data + t->file_offset;
    switch (t->dtype) {
    case DSI_DTYPE_F32:
        return dsi_load_f32(data, i);
    case DSI_DTYPE_F16:
        return dsi_f16_to_f32(dsi_load_u16(data, i));
    case DSI_DTYPE_BF16:
        return dsi_bf16_to_f32(dsi_load_u16(data, i));
    case DSI_DTYPE_Q8_0: /* 32 signed bytes behind one F16 */
        data += i / 32 * 34;
        return half_at(data) * (float)(int8_t)data[2 + i % 32];
    case DSI_DTYPE_Q4_K:
        return q4_k_at(data + i / 256 * 144, i % 256);
    default:
        fail_msg("type %s", dsi_dtype_name(t->dtype));
        return 0;
    }
}

static int64_t count(const dsi_gguf_tensor *t) {
    int64_t n = 1;
    for (uint32_t d = 0; d < t->n_dims; d++) n *= t->ne[d];
    return n;
}

/* Root mean square of the difference over that of a. */
static double distance(const source *a, const dsi_gguf_tensor *t, const source *b,
                       const dsi_gguf_tensor *u) {
    double lost = 0, all = 0;
    for (int64_t i = 0; i < count(t); i++) {
        double x = (double)value_at(a, t, i), gap = x - (double)value_at(b, u, i);
        lost += gap * gap;
        all += x * x;
    }
    return all > 0 ? sqrt(lost / all) : 0;
}

/* ---- As the converter writes it ------------------------------------------------------------- */

static void same_value(const dsi_gguf_value *a, const dsi_gguf_value *b) {
    static const size_t sizes[] = {1, 1, 2, 2, 4, 4, 4, 1, 1, 0, 8, 8, 8};
    if (!b || a->type != b->type || a->n != b->n)
        fail_msg("key %.*s is missing or of another type", (int)a->key_bytes, a->key);
    if (memcmp(a->data, b->data, a->n * sizes[a->type]) != 0)
        fail_msg("key %.*s has another value", (int)a->key_bytes, a->key);
}

/* Every key but names and the tokenizer (which this golden case has not), every tensor by name and
 * shape, and by its numbers within `limit`. */
static void like_converter(const char *theirs, const char *model, const char *const more[2],
                           double limit) {
    char out[256];
    under_root(out, "converted.gguf");
    unlink(out);
    must_make(model, "q8_0", out, more);
    source a = open_source(theirs), b = open_source(out);
    for (uint32_t i = 0; i < a.gguf.n_values; i++) {
        const dsi_gguf_value *v = &a.gguf.values[i];
        char key[128];
        snprintf(key, sizeof key, "%.*s", (int)v->key_bytes, v->key);
        if (strncmp(key, "tokenizer.", 10) == 0 || strcmp(key, "general.name") == 0 ||
            strcmp(key, "general.size_label") == 0 || strcmp(key, "general.file_type") == 0)
            continue;
        same_value(v, dsi_gguf_find(&b.gguf, key));
    }
    assert_int_equal(a.gguf.n_tensors, b.gguf.n_tensors);
    for (uint32_t i = 0; i < a.gguf.n_tensors; i++) {
        const dsi_gguf_tensor *t = &a.gguf.tensors[i];
        const dsi_gguf_tensor *u = find_tensor(&b, t->name, t->name_bytes);
        if (!u) fail_msg("tensor %.*s is missing", (int)t->name_bytes, t->name);
        assert_int_equal(t->n_dims, u->n_dims);
        assert_memory_equal(t->ne, u->ne, t->n_dims * sizeof *t->ne);
        double gap = distance(&a, t, &b, u);
        bool exact = t->n_dims == 1 || strstr(t->name, "ffn_gate_inp") == t->name + 6;
        if (exact) assert_int_equal(u->dtype, DSI_DTYPE_F32);
        if (gap > (exact ? 0 : limit)) fail_msg("%.*s: %g", (int)t->name_bytes, t->name, gap);
    }
    close_source(&a);
    close_source(&b);
}

static void test_converter(void **state) {
    (void)state;
    like_converter("tests/data/gguf/v3-bf16-q8_0.gguf", "tests/data/golden/v3-bf16", nothing,
                   0.004);
    /* rows of q and k in another order, and the rope's divisors; numbers that BF16 rounds */
    like_converter("tests/data/gguf/llama-f32.gguf", "tests/data/golden/llama", keep_all, 0.003);
}

/* ---- Numbers -------------------------------------------------------------------------------- */

/* All tensors of tiny-gov in a form, beside the same file with plain numbers. */
static void test_numbers(void **state) {
    (void)state;
    char plain[256], out[256];
    under_root(plain, "plain.gguf");
    must_make(TINY, "q8_0", plain, keep_all);
    source a = open_source(plain);
    for (int f = 0; f < 2; f++) {
        uint32_t n_blocks = 0;
        under_root(out, f ? "numbers-q4_k.gguf" : "numbers-q8_0.gguf");
        must_make(TINY, f ? "q4_k" : "q8_0", out, nothing);
        source b = open_source(out);
        assert_int_equal(a.gguf.n_tensors, b.gguf.n_tensors);
        for (uint32_t i = 0; i < b.gguf.n_tensors; i++) {
            const dsi_gguf_tensor *t = &b.gguf.tensors[i];
            const dsi_gguf_tensor *u = find_tensor(&a, t->name, t->name_bytes);
            double gap = distance(&a, u, &b, t);
            double limit = t->dtype == DSI_DTYPE_Q4_K ? 0.095 : 0.0135; /* rows with outliers */
            if (gap > (t->dtype == DSI_DTYPE_F32 ? 0 : limit))
                fail_msg("%.*s in %s: %g", (int)t->name_bytes, t->name, dsi_dtype_name(t->dtype),
                         gap);
            n_blocks += t->dtype == (f ? DSI_DTYPE_Q4_K : DSI_DTYPE_Q8_0);
        }
        assert_true(n_blocks > 20);
        /* rows of 128 numbers are no blocks of 256 */
        const dsi_gguf_tensor *t = find_tensor(&b, "blk.1.ffn_down_exps.weight", 26);
        assert_int_equal(t->dtype, DSI_DTYPE_Q8_0);
        close_source(&b);
    }
    close_source(&a);
}

/* The scales in the file, which the best vectors of this CPU found, are those that plain ones
 * find. */
static void test_same_scales(void **state) {
    (void)state;
    char out[256];
    under_root(out, "numbers-q4_k.gguf");
    source b = open_source(out);
    dsi_checkpoint c;
    dsi_error error = {0};
    assert_ok(dsi_checkpoint_open(TINY, NULL, NULL, &c, &error), &error);
    const dsi_file_tensor *w = dsi_checkpoint_find(&c, "model.layers.0.mlp.up_proj.weight");
    const dsi_file_tensor *s =
        dsi_checkpoint_find(&c, "model.layers.0.mlp.up_proj.weight_scale_inv");
    const dsi_gguf_tensor *t = find_tensor(&b, "blk.0.ffn_up.weight", 19);
    const uint8_t *blocks = b.map.data + t->file_offset;
    float x[2 * Q4_K_BLOCK];
    quantize_lanes rows = {.n = Q4_K_RUN};
    for (int l = 0; l < QUANTIZE_LANES; l++) rows.x[l] = x + l * Q4_K_RUN;
    for (int64_t pair = 0; pair < w->shape[0] / 2; pair++) {
        quantize_q4_k found[Q4_K_PAIR];
        for (int64_t i = 0; i < 512; i++) {
            int64_t row = 2 * pair + i / 256, at = row / 128 * 2 + i % 256 / 128;
            x[i] = dsi_e4m3_to_f32(dsi_checkpoint_data(&c, w)[row * 256 + i % 256]) *
                   dsi_load_f32(dsi_checkpoint_data(&c, s), at);
        }
        plain_vectors.q4_k(&rows, found);
        for (int i = 0; i < 2; i++) {
            uint8_t codes[128];
            const uint8_t *block = blocks + (2 * pair + i) * 144;
            plain_vectors.put_q4_k(x + i * Q4_K_BLOCK, &found[i], codes);
            assert_int_equal(dsi_f32_to_f16(found[i].unit), dsi_load_u16(block, 0));
            assert_int_equal(dsi_f32_to_f16(found[i].offset_unit), dsi_load_u16(block, 1));
            assert_memory_equal(codes, block + 16, sizeof codes);
        }
    }
    dsi_checkpoint_close(&c);
    close_source(&b);
}

/* ---- The tokenizer and the answers ---------------------------------------------------------- */

static void test_tokenizer(void **state) {
    (void)state;
    static const char text[] = "粤府〔2025〕12号：<｜User｜>路灯  不亮 hello\n\n12345 <think>é ü";
    char out[256];
    under_root(out, "numbers-q8_0.gguf");
    dsi_model *models[2];
    dsi_model_info info[2] = {{.struct_size = sizeof *info}, {.struct_size = sizeof *info}};
    assert_int_equal(dsi_model_open(TINY, NULL, &models[0]), DSI_OK);
    assert_int_equal(dsi_model_open(out, NULL, &models[1]), DSI_OK);
    for (uint32_t flags = 0; flags < 2; flags++) {
        int32_t tokens[2][128];
        size_t n[2];
        for (int i = 0; i < 2; i++)
            assert_int_equal(
                dsi_tokenize(models[i], text, strlen(text), flags, tokens[i], 128, &n[i]), DSI_OK);
        assert_int_equal(n[0], n[1]);
        assert_memory_equal(tokens[0], tokens[1], n[0] * sizeof **tokens);
    }
    for (int i = 0; i < 2; i++) assert_int_equal(dsi_model_get_info(models[i], &info[i]), DSI_OK);
    assert_string_equal(info[0].chat_template, info[1].chat_template);
    assert_int_equal(info[0].max_context, info[1].max_context);
    for (int i = 0; i < 2; i++) dsi_model_close(models[i]);
    /* the names that the families have in such files */
    static const struct {
        const char *folder, *pre;
    } cases[] = {{"deepseek-v2", "deepseek-llm"},
                 {"deepseek-llm", "deepseek-llm"},
                 {"qwen2", "qwen2"},
                 {"r1-distill-qwen", "deepseek-r1-qwen"},
                 {"llama-3", "llama-bpe"},
                 {"r1-distill-llama", "llama-bpe"}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char path[256];
        dsi_tokenizer *tokenizer = NULL;
        dsi_error error = {0};
        snprintf(path, sizeof path, "tests/data/tokenizer/%s/tokenizer.json", cases[i].folder);
        assert_ok(dsi_tokenizer_open(path, &tokenizer, &error), &error);
        assert_string_equal(dsi_tokenizer_gguf_pre(tokenizer), cases[i].pre);
        dsi_tokenizer_free(tokenizer);
    }
}

static double mean_kl(const char *form, const char *text) {
    char out[256];
    under_root(out, "answers.gguf");
    unlink(out);
    cli_call call = {.arguments = {"quantize", "-m", TINY, "--to", form, "--out", out, "--text",
                                   text, "--json"}};
    cli_result r = cli_exec(&call);
    if (r.code != 0) fail_msg("exit %d\n%s", r.code, r.err);
    const char *at = strstr(r.out, "\"mean_kl\": ");
    assert_non_null(at);
    double kl = atof(at + 11);
    cli_result_free(&r);
    return kl;
}

static void test_answers(void **state) {
    (void)state;
    char text[256];
    under_root(text, "text");
    write_text(root, "text", "市民反映路灯不亮，希望尽快维修。请按流程分派并回复办理结果。");
    double q8_0 = mean_kl("q8_0", text), q4_k = mean_kl("q4_k", text);
    print_message("mean KL: q8_0 %.2e, q4_k %.2e\n", q8_0, q4_k);
    assert_true(q8_0 < 0.05);
    assert_true(q4_k < 0.3);
}

/* ---- Killed, refused ------------------------------------------------------------------------ */

static void test_killed(void **state) {
    (void)state;
    char killed[256], journal[300];
    int n_killed = 0, n_resumed = 0;
    under_root(killed, "killed.gguf");
    snprintf(journal, sizeof journal, "%s.journal", killed);
    for (int i = 0; n_killed < 8 && i < 80; i++) {
        if (!run_and_kill("q4_k", killed, nothing, NULL, 4000 + 9000 * (i % 12))) {
            unlink(killed); /* it was done before it was killed: from the start again */
            continue;
        }
        n_killed++;
        n_resumed += access(journal, F_OK) == 0;
    }
    assert_int_equal(n_killed, 8);
    assert_true(n_resumed >= 2);
    if (access(journal, F_OK) == 0 || access(killed, F_OK) != 0)
        must_make(TINY, "q4_k", killed, nothing);
    assert_int_not_equal(access(journal, F_OK), 0);
    same_files(root, "killed.gguf", root, "numbers-q4_k.gguf");
}

static void test_refused(void **state) {
    (void)state;
    char out[256], folder[256];
    under_root(out, "refused.gguf");
    under_root(folder, "refused");
    must_refuse(TINY, "q4_k", folder, nothing, 2, ".gguf");
    must_refuse(TINY, "int8", out, nothing, 2, "GGUF");
    must_refuse("tests/data/gguf/llama-f32.gguf", "q8_0", out, nothing, 4, "GGUF");
    assert_int_not_equal(access(folder, F_OK), 0);
    must_make("tests/data/golden/qwen2", "q8_0", out, nothing);
    must_refuse(TINY, "q8_0", out, nothing, 2, "is there already");
    unlink(out);
    /* what its keys cannot say */
    assert_int_equal(mkdir(folder, 0777), 0);
    link_file("tests/data/golden/v3-yarn", folder, "model.safetensors");
    bytes config = read_file("tests/data/golden/v3-yarn", "config.json");
    char *changed = replaced(config.data, "\"mscale\": 1.0", "\"mscale\": 0.7");
    write_text(folder, "config.json", changed);
    must_refuse(folder, "q8_0", out, nothing, 4, "mscale");
    free(changed);
    free(config.data);
    assert_int_not_equal(access(out, F_OK), 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_converter),   cmocka_unit_test(test_numbers),
        cmocka_unit_test(test_same_scales), cmocka_unit_test(test_tokenizer),
        cmocka_unit_test(test_answers),     cmocka_unit_test(test_killed),
        cmocka_unit_test(test_refused),
    };
    return cmocka_run_group_tests_name("quantize_gguf", tests, make_root, remove_root);
}
