/* test_quantize.c: dsinfer quantize: what it writes opens and is near the source, number by number;
 * a run that is killed anywhere is taken up and ends with the same bytes; what it refuses. */
#include "quantize_run.h"

#include "../kernels/formats.h"
#include <deepseek/dsinfer.h>
#include <math.h>

static const char ODD[] = "tests/data/golden/v3-odd", V32[] = "tests/data/golden/v32";

/* ---- Numbers -------------------------------------------------------------------------------- */

typedef struct opened {
    dsi_checkpoint files;
    dsi_config config;
    dsi_weights weights;
} opened;

static void open_model(const char *folder, opened *m) {
    dsi_error error = {0};
    assert_ok(dsi_config_load(folder, &m->config, &error), &error);
    assert_ok(dsi_checkpoint_open(folder, NULL, NULL, &m->files, &error), &error);
    assert_ok(dsi_weights_bind(&m->files, &m->config, &m->weights, &error), &error);
}
static void close_model(opened *m) {
    dsi_weights_free(&m->weights);
    dsi_checkpoint_close(&m->files);
    dsi_config_free(&m->config);
}

static double scale_at(const dsi_weight *w, int64_t n, int64_t k) {
    dsi_scale_span span = dsi_scale_span_of(w->scale_kind, w->scale_group, w->n_in);
    int64_t i = n / span.n * w->scale_columns + k / span.k;
    if (w->scale_dtype == DSI_DTYPE_F32) return (double)dsi_load_f32(w->scale, i);
    uint16_t half = dsi_load_u16(w->scale, i);
    return (double)(w->scale_dtype == DSI_DTYPE_BF16 ? dsi_bf16_to_f32(half)
                                                     : dsi_f16_to_f32(half));
}

static double value_at(const dsi_weight *w, int64_t n, int64_t k) {
    int64_t i = n * w->n_in + k;
    switch (w->dtype) {
    case DSI_DTYPE_F32:
        return (double)dsi_load_f32(w->data, i);
    case DSI_DTYPE_BF16:
        return (double)dsi_bf16_to_f32(dsi_load_u16(w->data, i));
    case DSI_DTYPE_E4M3:
        return (double)dsi_e4m3_to_f32(w->data[i]) * scale_at(w, n, k);
    case DSI_DTYPE_I8:
        return (double)(int8_t)w->data[i] * scale_at(w, n, k);
    default: { /* I4: rows of whole words */
        const uint8_t *row = w->data + n * ((w->n_in + 7) / 8 * 4);
        return ((row[k / 2] >> (k % 2 * 4) & 15) - 8) * scale_at(w, n, k);
    }
    }
}

/* Within half a step of eight bits; of four, where a large value may be cut off, within one and
 * near on the whole. Returns 1 if the matrix was quantised. */
static uint32_t compare_matrix(const dsi_weight *a, const dsi_weight *b) {
    double lost = 0, all = 0;
    if (!a->name) return 0;
    assert_string_equal(a->name, b->name);
    bool whole = b->dtype == DSI_DTYPE_I8 || b->dtype == DSI_DTYPE_I4;
    for (int64_t n = 0; n < a->n_out; n++)
        for (int64_t k = 0; k < a->n_in; k++) {
            double x = value_at(a, n, k), y = value_at(b, n, k), gap = fabs(x - y);
            double step = whole ? scale_at(b, n, k) : fabs(x) * 0x1p-8;
            if (b->dtype != DSI_DTYPE_I4 && gap > 0.5001 * step)
                fail_msg("%s [%d][%d]: %g became %g, a step is %g", a->name, (int)n, (int)k, x, y,
                         step);
            lost += gap * gap;
            all += x * x;
        }
    double limit = b->dtype == DSI_DTYPE_I4 ? 0.35 : b->dtype == DSI_DTYPE_I8 ? 0.045 : 0.003;
    if (all > 0 && sqrt(lost / all) > limit) fail_msg("%s: error %g", a->name, sqrt(lost / all));
    return whole ? 1 : 0;
}

static uint32_t compare_models(const char *from, const char *to) {
    opened a, b;
    uint32_t n = 0;
    open_model(from, &a);
    open_model(to, &b);
    for (uint32_t i = 0; i < a.config.n_layers; i++) {
        const dsi_layer_weights *x = &a.weights.layers[i], *y = &b.weights.layers[i];
        n += compare_matrix(&x->q_a_proj, &y->q_a_proj) + compare_matrix(&x->q_proj, &y->q_proj) +
             compare_matrix(&x->kv_a_proj_with_mqa, &y->kv_a_proj_with_mqa) +
             compare_matrix(&x->kv_b_proj, &y->kv_b_proj) + compare_matrix(&x->o_proj, &y->o_proj);
        for (uint32_t j = 0; x->is_moe && j < a.config.n_routed_experts; j++)
            n += compare_matrix(&x->experts[j].gate_proj, &y->experts[j].gate_proj) +
                 compare_matrix(&x->experts[j].down_proj, &y->experts[j].down_proj);
        n += compare_matrix(&x->mlp.up_proj, &y->mlp.up_proj);
        assert_int_equal(y->gate.dtype, x->gate.dtype);
    }
    assert_int_equal(b.weights.n_mtp_layers, a.weights.n_mtp_layers);
    assert_int_equal(b.weights.embed_tokens.dtype, a.weights.embed_tokens.dtype);
    close_model(&a);
    close_model(&b);
    return n;
}

static void test_numbers(void **state) {
    (void)state;
    static const char *const forms[] = {"int8", "int8-block", "int4", "int4-g32"};
    static const char *const kept[2] = {"--keep", "none"};
    static const char *const models[] = {TINY, ODD};
    char out[256];
    for (int m = 0; m < 2; m++)
        for (int i = 0; i < 4; i++) {
            char name[32];
            snprintf(name, sizeof name, "%d-%s", m, forms[i]);
            under_root(out, name);
            must_make(models[m], forms[i], out, i >= 2 ? kept : nothing);
            assert_true(compare_models(models[m], out) > 10);
        }
    /* V3.2's indexer stays as it is */
    under_root(out, "v32");
    must_make(V32, "int4", out, kept);
    assert_true(compare_models(V32, out) > 10);
    /* four bits leave attention unless they are told otherwise */
    under_root(out, "kept");
    must_make(TINY, "int4", out, nothing);
    opened m;
    open_model(out, &m);
    assert_int_equal(m.weights.layers[1].q_a_proj.dtype, DSI_DTYPE_BF16);
    assert_int_equal(m.weights.layers[1].experts[0].up_proj.dtype, DSI_DTYPE_I4);
    close_model(&m);
}

/* ---- Answers -------------------------------------------------------------------------------- */

static void test_answers(void **state) {
    (void)state;
    char out[256], text[256];
    under_root(out, "answers");
    under_root(text, "text");
    write_text(root, "text", "市民反映路灯不亮，希望尽快维修。请按流程分派并回复办理结果。");
    const char *const more[2] = {"--text", text};
    cli_result r = quantize(TINY, "int8", out, more);
    if (r.code != 0) fail_msg("exit %d\n%s", r.code, r.err);
    assert_non_null(strstr(r.out, "mlp.experts.up_proj"));
    assert_non_null(strstr(r.out, "perplexity"));
    cli_result_free(&r);
    cli_call run = {.arguments = {"run", "-m", out, "--max-tokens", "4", "路灯不亮"}};
    r = cli_exec(&run);
    assert_int_equal(r.code, 0);
    assert_true(r.n_out > 3);
    cli_result_free(&r);
}

static void test_json(void **state) {
    (void)state;
    char out[256];
    under_root(out, "json");
    cli_call call = {
        .arguments = {"quantize", "-m", TINY, "--to", "int8-block", "--out", out, "--json"}};
    cli_result r = cli_exec(&call);
    assert_int_equal(r.code, 0);
    assert_non_null(strstr(r.out, "\"form\": \"int8-block\""));
    assert_non_null(strstr(r.out, "\"model.layers.1.mlp.experts.0.up_proj.weight\": 0.0"));
    assert_int_equal(r.out[r.n_out - 2], '}');
    cli_result_free(&r);
}

/* ---- Killed --------------------------------------------------------------------------------- */

/* Twenty kills, each somewhat later in a run that goes on where the one before was stopped. */
static void test_killed(void **state) {
    (void)state;
    char straight[256], killed[256], journal[320];
    under_root(straight, "straight");
    under_root(killed, "killed");
    snprintf(journal, sizeof journal, "%s/quantize.journal", killed);
    must_make(TINY, "int4", straight, nothing);
    int n_killed = 0, n_resumed = 0;
    for (int i = 0; n_killed < 20 && i < 200; i++) {
        if (!run_and_kill("int4", killed, nothing, NULL, 3000 + 4000 * (i % 25))) {
            same_file(straight, killed, "model.safetensors");
            remove_folder(killed); /* it was done before it was killed: from the start again */
            continue;
        }
        n_killed++;
        n_resumed += access(journal, F_OK) == 0;
        char config[320];
        snprintf(config, sizeof config, "%s/config.json", killed);
        dsi_model *model = NULL;
        if (access(journal, F_OK) == 0 && access(config, F_OK) != 0)
            assert_int_not_equal(dsi_model_open(killed, NULL, &model), DSI_OK);
        dsi_model_close(model);
    }
    assert_int_equal(n_killed, 20);
    assert_true(n_resumed >= 5);
    if (access(journal, F_OK) == 0 || access(killed, F_OK) != 0)
        must_make(TINY, "int4", killed, nothing);
    same_file(straight, killed, "model.safetensors");
    same_file(straight, killed, "config.json");
    assert_int_not_equal(access(journal, F_OK), 0);
    print_message("killed 20 times, taken up %d times, the same bytes\n", n_resumed);
}

/* ---- Refused -------------------------------------------------------------------------------- */

static void test_refused(void **state) {
    (void)state;
    char out[256], gguf[256];
    const char *const keep_bad[2] = {"--keep", "a*b"}, *const keep_other[2] = {"--keep", "experts"};
    under_root(out, "refused");
    must_refuse(TINY, "int5", out, nothing, 2, "int5");
    must_refuse(TINY, "int8", out, keep_bad, 2, "--keep");
    must_refuse("/nowhere", "int8", out, nothing, 3, "/nowhere");
    must_refuse("tests/data/gguf/llama-f32.gguf", "int8", out, nothing, 4, "GGUF");
    assert_int_not_equal(access(out, F_OK), 0); /* nothing was begun */
    under_root(gguf, "full");
    assert_int_equal(mkdir(gguf, 0777), 0);
    write_text(gguf, "notes.txt", "mine");
    must_refuse(TINY, "int8", gguf, nothing, 2, "is not empty");
    must_make(TINY, "int8", out, nothing);
    must_refuse(TINY, "int8", out, nothing, 2, "holds a model already");
    must_refuse(out, "int4", gguf, nothing, 4, "is I8");
    /* a limit on the size of files, as a full disk: an error, and afterwards it goes on */
    under_root(out, "limited");
    cli_call call = {.arguments = {"quantize", "-m", TINY, "--to", "int8", "--out", out},
                     .file_bytes = 8 << 20};
    cli_result r = cli_exec(&call);
    assert_true(r.code == 3 || r.code == 1000 + SIGXFSZ);
    cli_result_free(&r);
    must_refuse(TINY, "int4", out, nothing, 2, "was begun with another model");
    must_refuse(TINY, "int8", out, keep_other, 2, "was begun with another model");
    must_make(TINY, "int8", out, nothing);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_numbers), cmocka_unit_test(test_answers), cmocka_unit_test(test_json),
        cmocka_unit_test(test_killed),  cmocka_unit_test(test_refused),
    };
    return cmocka_run_group_tests_name("quantize", tests, make_root, remove_root);
}
