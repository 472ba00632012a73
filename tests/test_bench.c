/* test_bench.c: `dsi-bench`: synthetic checkpoints of every form open and answer; the GGUF files,
 * read here by a reader of its own, hold the weights of the checkpoint; each command measures a
 * little and reports numbers; what it refuses, it refuses with a reason and leaves nothing. */
#include "../kernels/kernels.h"
#include "../lib/base/json.h"
#include "bench_files.h"
#include "cli_run.h"
#include "model_files.h"
#include "quantize_checkpoint.h"
#include <deepseek/dsinfer.h>

#ifdef __SANITIZE_ADDRESS__
enum { SLOW_BUILD = 1 };
#else
enum { SLOW_BUILD = 0 };
#endif

static char folder[64];

static cli_result bench(unsigned long file_bytes, const char *words) {
    static char text[1024];
    cli_call call = {.file_bytes = file_bytes};
    size_t n = 0;
    snprintf(text, sizeof text, "%s", words);
    for (char *word = strtok(text, " "); word; word = strtok(NULL, " ")) call.arguments[n++] = word;
    return cli_exec(&call);
}

static void synth(const char *options) {
    char words[512];
    snprintf(words, sizeof words, "synth --preset tiny %s", options);
    cli_result r = bench(0, words);
    if (r.code != 0) fail_msg("%s: exit code %d: %s", words, r.code, r.err);
    cli_result_free(&r);
}

/* ---- Checkpoints ----------------------------------------------------------------------------- */

static int32_t answer(const char *path) {
    dsi_engine_options options;
    dsi_engine_options_init(&options);
    options.max_context = 64;
    dsi_model *model = NULL;
    dsi_engine *engine = NULL;
    dsi_session *session = NULL;
    int32_t tokens[12], token = -1;
    for (int i = 0; i < 12; i++) tokens[i] = 7 + 41 * i;
    dsi_status status = dsi_model_open(path, NULL, &model);
    if (status == DSI_OK) status = dsi_engine_open(model, &options, &engine);
    if (status == DSI_OK) status = dsi_session_open(engine, NULL, &session);
    if (status == DSI_OK) status = dsi_session_append(session, tokens, 12);
    while (status == DSI_OK && dsi_session_n_queued(session))
        status = dsi_engine_step(engine, &session, 1, NULL);
    if (status == DSI_OK) status = dsi_session_sample(session, &token);
    if (status != DSI_OK) fail_msg("%s: %s", path, dsi_last_error(NULL));
    dsi_session_close(session);
    dsi_engine_close(engine);
    dsi_model_close(model);
    return token;
}

static void test_every_form_opens_and_answers(void **state) {
    (void)state;
    static const char *const forms[] = {"fp8", "bf16", "int8", "int8-block", "int4", "int4-g32"};
    for (size_t i = 0; i < sizeof forms / sizeof forms[0]; i++) {
        char options[256], path[128];
        snprintf(path, sizeof path, "%s/%s", folder, forms[i]);
        snprintf(options, sizeof options, "--dtype %s --out %s", forms[i], path);
        synth(options);
        assert_in_range(answer(path), 0, 4095);
    }
}

/* The published sizes of the models, to the parameter; holes in place of weights. */
static void test_presets_have_their_published_sizes(void **state) {
    (void)state;
    static const struct {
        const char *name;
        uint64_t n_params, n_active; /* of the embeddings one row is read */
    } presets[] = {
        {"r1-distill-qwen-1.5b", 1777088000, 1543715840},
        {"r1-distill-qwen-7b", 7615616512, 7070622720},
        {"r1-distill-qwen-14b", 14770033664, 13991471104},
        {"r1-distill-qwen-32b", 32763876352, 31985313792},
        {"r1-distill-llama-8b", 8030261248, 7504928768},
        {"r1-distill-llama-70b", 70553706496, 69503041536},
        {"v3", 671026419200, 36625625600},
        {"v32", 671877944064, 37477150464}, /* with 64 heads of an indexer */
    };
    for (size_t i = 0; i < sizeof presets / sizeof presets[0]; i++) {
        char words[256], path[128];
        snprintf(path, sizeof path, "%s/hollow-%s", folder, presets[i].name);
        snprintf(words, sizeof words, "synth --hollow --preset %s --out %s", presets[i].name, path);
        cli_result r = bench(0, words);
        if (r.code != 0) fail_msg("%s: exit code %d: %s", words, r.code, r.err);
        cli_result_free(&r);
        dsi_model *model = NULL;
        dsi_model_info info = {.struct_size = sizeof info};
        if (dsi_model_open(path, NULL, &model) != DSI_OK)
            fail_msg("%s: %s", path, dsi_last_error(NULL));
        assert_int_equal(dsi_model_get_info(model, &info), DSI_OK);
        assert_int_equal(info.n_params_total, presets[i].n_params);
        assert_int_equal(info.n_params_active, presets[i].n_active);
        dsi_model_close(model);
    }
    /* DeepSeek-V3, to the byte of what its 163 files hold of tensors */
    char words[256], path[128];
    snprintf(path, sizeof path, "%s/hollow-v3", folder);
    snprintf(words, sizeof words, "synth --hollow --preset v3 --mtp --out %s", path);
    cli_result r = bench(0, words);
    if (r.code != 0) fail_msg("%s: exit code %d: %s", words, r.code, r.err);
    cli_result_free(&r);
    dsi_model *model = NULL;
    dsi_model_info info = {.struct_size = sizeof info};
    if (dsi_model_open(path, NULL, &model) != DSI_OK) fail_msg("%s", dsi_last_error(NULL));
    assert_int_equal(dsi_model_get_info(model, &info), DSI_OK);
    assert_int_equal(info.n_params_total, 671026419200);
    assert_int_equal(info.n_tensors, 91991);
    assert_int_equal(info.n_bytes_weights, 688574839360);
    dsi_model_close(model);
}

/* Real layers, few of them and with a small vocabulary, run; and so does a block that drafts. */
static void test_cut_presets_run(void **state) {
    (void)state;
    static const char *const cuts[] = {"r1-distill-qwen-1.5b --layers 1 --vocab 512",
                                       "r1-distill-llama-8b --layers 1 --dtype int4 "
                                       "--vocab 512",
                                       "tiny --layers 2 --mtp --dtype int8"};
    for (size_t i = 0; i < sizeof cuts / sizeof cuts[0]; i++) {
        char words[256], path[128];
        snprintf(path, sizeof path, "%s/cut-%zu", folder, i);
        snprintf(words, sizeof words, "synth --preset %s --out %s", cuts[i], path);
        cli_result r = bench(0, words);
        if (r.code != 0) fail_msg("%s: exit code %d: %s", words, r.code, r.err);
        cli_result_free(&r);
        assert_in_range(answer(path), 0, 4095);
    }
}

static void test_same_seed_same_bytes_whatever_the_threads(void **state) {
    (void)state;
    char options[256], a[128], b[128];
    snprintf(a, sizeof a, "%s/one", folder);
    snprintf(b, sizeof b, "%s/three", folder);
    snprintf(options, sizeof options, "--seed 5 --threads 1 --out %s", a);
    synth(options);
    snprintf(options, sizeof options, "--seed 5 --threads 3 --out %s", b);
    synth(options);
    bytes x = read_file(a, "model.safetensors"), y = read_file(b, "model.safetensors");
    assert_int_equal(x.n, y.n);
    assert_memory_equal(x.data, y.data, x.n);
    snprintf(options, sizeof options, "--seed 6 --out %s", b); /* over a checkpoint */
    synth(options);
    bytes z = read_file(b, "model.safetensors");
    assert_int_equal(x.n, z.n);
    assert_memory_not_equal(x.data, z.data, x.n);
    free(x.data), free(y.data), free(z.data);
}

/* ---- GGUF ------------------------------------------------------------------------------------ */

/* The tensor that matrix `name` of the checkpoint became. */
typedef struct pair {
    const char *gguf, *name;
    uint64_t matrix, head_rows, skip; /* of a stack; cut heads: rows of one, those before ours */
    bool transposed;
} pair;
static const pair pairs[] = {
    {"token_embd.weight", "model.embed_tokens.weight", 0, 0, 0, false},
    {"output.weight", "lm_head.weight", 0, 0, 0, false},
    {"blk.0.attn_norm.weight", "model.layers.0.input_layernorm.weight", 0, 0, 0, false},
    {"blk.0.ffn_down.weight", "model.layers.0.mlp.down_proj.weight", 0, 0, 0, false},
    {"blk.2.attn_q_b.weight", "model.layers.2.self_attn.q_b_proj.weight", 0, 0, 0, false},
    {"blk.3.ffn_gate_inp.weight", "model.layers.3.mlp.gate.weight", 0, 0, 0, false},
    {"blk.1.ffn_up_exps.weight", "model.layers.1.mlp.experts.0.up_proj.weight", 0, 0, 0, false},
    {"blk.5.ffn_down_exps.weight", "model.layers.5.mlp.experts.15.down_proj.weight", 15, 0, 0,
     false},
    {"blk.4.attn_v_b.weight", "model.layers.4.self_attn.kv_b_proj.weight", 7, 64, 32, false},
    {"blk.4.attn_k_b.weight", "model.layers.4.self_attn.kv_b_proj.weight", 6, 64, 0, true},
};

/* The number of the checkpoint at row r, column c of matrix p->matrix of the tensor. */
static float truth_at(const pair *p, const float *w, uint64_t columns, uint64_t r, uint64_t c) {
    if (!p->head_rows) return w[r * columns + c];
    uint64_t first = p->matrix * p->head_rows + p->skip;
    return p->transposed ? w[(first + c) * columns + r] : w[(first + r) * columns + c];
}

static void check_pair(const ggfile *g, const dsi_checkpoint *c, const pair *p) {
    const ggtensor *t = gg_find(g, p->gguf);
    const dsi_file_tensor *from = dsi_checkpoint_find(c, p->name);
    assert_non_null(t);
    assert_non_null(from);
    dsi_file_tensor flat = *from; /* a norm is one row */
    if (flat.n_dims == 1) flat.shape[1] = flat.shape[0], flat.shape[0] = 1;
    float *w = widened(c, &flat), row[1024], truth[1024];
    uint64_t columns = (uint64_t)flat.shape[1];
    assert_true(t->dims[0] <= 1024);
    if (!p->head_rows) assert_int_equal(t->dims[0], columns);
    for (uint64_t r = 0; r < t->dims[1]; r++) {
        gg_row(g, t, p->matrix * t->dims[1] + r, row);
        for (uint64_t i = 0; i < t->dims[0]; i++) truth[i] = truth_at(p, w, columns, r, i);
        for (uint64_t i = 0; i < t->dims[0]; i++)
            if (!(fabsf(row[i] - truth[i]) <= gg_rounding(t->type, truth, i)))
                fail_msg("%s: row %d, column %d: %g in the GGUF, %g in the checkpoint", p->gguf,
                         (int)r, (int)i, (double)row[i], (double)truth[i]);
    }
    free(w);
}

static void check_header(const ggfile *g) {
    assert_int_equal(g->version, 3);
    assert_int_equal(gg_number(g, "deepseek2.block_count"), 6);
    assert_int_equal(gg_number(g, "deepseek2.embedding_length"), 256);
    assert_int_equal(gg_number(g, "deepseek2.expert_count"), 16);
    assert_int_equal(gg_number(g, "deepseek2.expert_used_count"), 4);
    assert_int_equal(gg_number(g, "deepseek2.attention.kv_lora_rank"), 128);
    assert_int_equal(gg_number(g, "deepseek2.vocab_size"), 4096);
    uint64_t at = 0; /* tensors lie one behind the other, each at a multiple of 32 */
    for (uint64_t i = 0; i < g->n_tensors; i++) {
        assert_int_equal(g->tensors[i].offset % 32, 0);
        assert_int_equal(g->tensors[i].offset, at);
        at += (gg_bytes(&g->tensors[i]) + 31) / 32 * 32;
    }
    assert_int_equal(g->data % 32, 0);
    assert_int_equal(g->data + at, g->file.n);
}

static void test_gguf_holds_the_weights(void **state) {
    (void)state;
    static const struct {
        const char *name;
        uint32_t type;
    } types[] = {{"q8_0", GG_Q8_0}, {"q4_0", GG_Q4_0}, {"q4_k", GG_Q4_K}, {"bf16", GG_BF16}};
    char options[256], source[128], name[64];
    dsi_checkpoint c;
    dsi_error error = {0};
    snprintf(source, sizeof source, "%s/source", folder);
    snprintf(options, sizeof options, "--out %s", source);
    synth(options);
    assert_ok(dsi_checkpoint_open(source, NULL, NULL, &c, &error), &error);
    for (int i = 0; i < 4; i++) {
        snprintf(name, sizeof name, "%s.gguf", types[i].name);
        snprintf(options, sizeof options, "--gguf %s --out %s/%s", types[i].name, folder, name);
        synth(options);
        ggfile g = gg_open(read_file(folder, name));
        check_header(&g);
        assert_int_equal(gg_find(&g, "output.weight")->type, types[i].type);
        assert_int_equal(gg_find(&g, "output_norm.weight")->type, GG_F32);
        for (size_t k = 0; k < sizeof pairs / sizeof pairs[0]; k++) check_pair(&g, &c, &pairs[k]);
        gg_close(&g);
    }
    dsi_checkpoint_close(&c);
}

/* The decoder above against the values that gguf-py gives for random blocks. */
static void test_the_reader_decodes_as_gguf_py_does(void **state) {
    (void)state;
    static const struct {
        const char *name;
        uint32_t type;
    } types[] = {{"Q8_0", GG_Q8_0}, {"Q4_0", GG_Q4_0}, {"Q4_K", GG_Q4_K}};
    bytes file = read_file("tests/data", "ggml_blocks.bin");
    const uint8_t *at = (const uint8_t *)file.data;
    for (int i = 0; i < 3; i++) {
        uint32_t n = gg_block(types[i].type), n_bytes = gg_block_bytes(types[i].type);
        for (int b = 0; b < 8; b++) {
            float values[256], truth[256];
            memcpy(truth, at + n_bytes, n * sizeof *truth);
            gg_decode(types[i].type, at, values);
            for (uint32_t k = 0; k < n; k++)
                if (!(fabsf(values[k] - truth[k]) <= 1e-6f * fabsf(truth[k])))
                    fail_msg("%s block %d: number %d is %g, not %g", types[i].name, b, (int)k,
                             (double)values[k], (double)truth[k]);
            at += n_bytes + n * sizeof *truth;
        }
    }
    assert_ptr_equal(at, file.data + file.n);
    free(file.data);
}

/* ---- Measurements ---------------------------------------------------------------------------- */

/* The last line is a JSON object with these keys, each a number above 0. */
static void check_report(const char *words, const char *const *keys) {
    cli_result r = bench(0, words);
    dsi_json json;
    dsi_error error = {0};
    if (r.code != 0) fail_msg("%s: exit code %d: %s", words, r.code, r.err);
    while (r.n_out && r.out[r.n_out - 1] == '\n') r.out[--r.n_out] = 0;
    const char *line = strrchr(r.out, '\n');
    line = line ? line + 1 : r.out;
    assert_ok(dsi_json_parse(line, strlen(line), 100000, &json, &error), &error);
    for (; *keys; keys++) {
        double value = 0;
        if (!dsi_json_f64(&json, dsi_json_get(&json, 0, *keys), &value) || !(value > 0))
            fail_msg("%s: \"%s\" is %g", words, *keys, value);
    }
    dsi_json_free(&json);
    cli_result_free(&r);
}

static void test_model_reports(void **state) {
    (void)state;
    uint32_t isa = dsi_isa_detect();
    bool dots = isa & DSI_ISA_AVX512BF16 && isa & DSI_ISA_AVX512VNNI; /* else there are no peaks */
    const char *const keys[] = {"prefill_tps",    "decode_tps",
                                "decode_gbs",     "read_gbs",
                                "prefill_gflops", "bytes_per_token",
                                "threads",        dots ? "peak_bf16_gflops" : NULL,
                                "peak_int8_gops", NULL};
    char words[256];
    snprintf(words, sizeof words,
             "model -m %s/source --prefill 16 --decode 3 --depth 0 --batch 1 --threads 2 "
             "--gemm own --json",
             folder);
    check_report(words, keys);
}

/* Drafts that are made right in three of four cases are taken so often, and the report says plainly
 * that they were forced. V3's bytes are those of the published tensors. */
static void test_model_drafts(void **state) {
    (void)state;
    char words[256];
    snprintf(words, sizeof words,
             "model -m %s/cut-2 --prefill 0 --decode 40 --draft 1 --force-accept 0.75 --threads 2",
             folder);
    cli_result r = bench(0, words);
    if (r.code != 0) fail_msg("%s: exit code %d: %s", words, r.code, r.err);
    assert_non_null(strstr(r.out, "FORCED, not the model's own"));
    assert_non_null(strstr(r.out, "37.67 GB a token without, 60.12 GB a step with drafts"));
    const char *taken = strstr(r.out, "(--force-accept 0.75): ");
    assert_non_null(taken);
    double percent = atof(taken + strlen("(--force-accept 0.75): "));
    if (!(percent > 68 && percent < 82)) fail_msg("%g %% taken", percent);
    cli_result_free(&r);
}

static void test_limits_kernels_and_moe_report(void **state) {
    (void)state;
    static const char *const limits[] = {"read_gbs", "threads", NULL};
    static const char *const none[] = {"schema", NULL};
    check_report("limits --rounds 1 --threads 2 --json", limits);
    check_report("kernels --stem rms_norm_f32 --isa ref --m 1 --rounds 1 --json", limits);
    if (SLOW_BUILD) skip(); /* 1.4 GB of weights */
    check_report("moe --m 1 --json", none);
}

/* ---- Refusals -------------------------------------------------------------------------------- */

static void test_mistakes(void **state) {
    (void)state;
    static const struct {
        const char *words;
        int code;
        const char *text;
    } mistakes[] = {
        {"", 2, "Examples:"},
        {"nothing", 2, "there is no command \"nothing\""},
        {"limits twice", 2, "one argument too many"},
        {"limits --rounds 0", 2, "may be 1 to 100"},
        {"limits --rounds x", 2, "--rounds is \"x\""},
        {"limits --threads 1025", 2, "--threads is 1025; it may be 1 to 1024"},
        {"limits --bogus", 2, "bogus"},
        {"synth", 2, "needs --out"},
        {"synth --out x --preset no", 2, "there are v3-slice, v3, v32-slice, v32, v2-lite-half"},
        {"synth --out x --dtype no", 2, "there are fp8, bf16, int8"},
        {"synth --out x --gguf no", 2, "there are q8_0, q4_0, q4_k, bf16"},
        {"synth --out x --seed -1", 2, "--seed is \"-1\""},
        {"synth --out x --layers 5", 2, "preset v3-slice has 4 layers and 8192 tokens"},
        {"synth --out x --vocab 8193", 2, "ask for fewer"},
        {"synth --out x --preset v2-lite-half --mtp", 2, "only V3's shapes have a block that"},
        {"synth --out x --preset r1-distill-qwen-7b --gguf q8_0", 2, "let dsinfer quantize make"},
        {"synth --preset tiny --out /proc/x", 3, "cannot create the folder /proc/x"},
        {"synth --preset tiny --gguf q8_0 --out /proc/x.gguf", 3, "cannot create /proc/x.gguf"},
        {"model", 2, "needs -m DIR"},
        {"model -m nowhere", 4, "'nowhere' is not a folder"},
        {"model -m x --draft 5", 2, "--draft is 5; it may be 0 to 4"},
        {"model -m x --force-accept 0.5", 2, "it may be above 0 to 1, with drafts"},
        {"model -m x --draft 1 --force-accept 1.5", 2, "must be a number above 0 to 1"},
        {"model -m tests/data/golden/llama --draft 1", 2, "has no MTP block"},
        {"model -m x --batch 65", 2, "--batch has 65; it may be 1 to 64"},
        {"model -m x --prefill 1,,2", 2, "--prefill"},
        {"model -m x --gemm no", 2, "auto, own, onednn or openblas"},
        {"model -m x --activations no", 2, "bf16, f32, a8 or e4m3"},
        {"model -m examples/models/tiny-gov --kernels no", 2, "kernels 'no' do not exist"},
        {"model -m examples/models/tiny-gov --chunk 0", 2, "chunk_tokens is 0; it may be 1 to"},
        {"model -m examples/models/tiny-gov --prefill 16777216", 2, "it may be 1 to"},
        {"kernels --m 0", 2, "may be 1 to 4096"},
        {"kernels --m 16777216", 2, "may be 1 to 4096"},
        {"kernels --stem nothing", 2, "fits --stem nothing"},
        {"moe --m 4097", 2, "moe takes 1 to 4096 rows"},
        {"moe --isa no", 2, "--isa is \"no\""},
    };
    for (size_t i = 0; i < sizeof mistakes / sizeof mistakes[0]; i++) {
        cli_result r = bench(0, mistakes[i].words);
        if (r.code != mistakes[i].code || !strstr(r.err, mistakes[i].text) || r.n_out)
            fail_msg("%s: exit code %d, not %d with \"%s\": %s%s", mistakes[i].words, r.code,
                     mistakes[i].code, mistakes[i].text, r.out, r.err);
        cli_result_free(&r);
    }
}

static void assert_absent(const char *name) {
    char path[256];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    if (access(path, F_OK) == 0) fail_msg("%s was left behind", path);
}

/* No room: an error, and neither a half file nor the checkpoint that it was to replace. */
static void test_full_disk(void **state) {
    (void)state;
    char words[256];
    snprintf(words, sizeof words, "--dtype bf16 --out %s/full", folder);
    synth(words);
    static const char *const forms[] = {"%s/full", "--gguf q8_0 %s/full.gguf"};
    for (int i = 0; i < 2; i++) {
        snprintf(words, sizeof words, "synth --preset tiny %s --out %s/full%s",
                 i ? "--gguf q8_0" : "--dtype fp8", folder, i ? ".gguf" : "");
        cli_result r = bench(4 << 20, words);
        if (r.code != 3 || !strstr(r.err, "cannot write") || !strstr(r.err, "File too large"))
            fail_msg("%s: exit code %d: %s", forms[i], r.code, r.err);
        cli_result_free(&r);
    }
    static const char *const names[] = {"full/config.json", "full/model.safetensors",
                                        "full/model.safetensors.part", "full.gguf",
                                        "full.gguf.part"};
    for (int i = 0; i < 5; i++) assert_absent(names[i]);
    snprintf(words, sizeof words, "--out %s/full", folder);
    synth(words); /* and it can be tried again */
    snprintf(words, sizeof words, "%s/full", folder);
    assert_in_range(answer(words), 0, 4095);
}

static void test_results_that_cannot_be_written(void **state) {
    (void)state;
    if (access("/dev/full", W_OK) != 0) skip();
    cli_call call = {.arguments = {"--help"}, .stdout_path = "/dev/full"};
    call.arguments[0] = "limits", call.arguments[1] = "--rounds", call.arguments[2] = "1";
    cli_result r = cli_exec(&call);
    assert_int_equal(r.code, 3);
    assert_non_null(strstr(r.err, "cannot write the results"));
    cli_result_free(&r);
}

int main(void) {
    static char program[4096];
    const char *build = getenv("BUILD");
    snprintf(program, sizeof program, "%s/dsi-bench", build && *build ? build : "build");
    setenv("DSINFER_BIN", program, 1);
    temp_folder(folder);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_form_opens_and_answers),
        cmocka_unit_test(test_presets_have_their_published_sizes),
        cmocka_unit_test(test_cut_presets_run),
        cmocka_unit_test(test_same_seed_same_bytes_whatever_the_threads),
        cmocka_unit_test(test_the_reader_decodes_as_gguf_py_does),
        cmocka_unit_test(test_gguf_holds_the_weights),
        cmocka_unit_test(test_model_reports),
        cmocka_unit_test(test_model_drafts),
        cmocka_unit_test(test_limits_kernels_and_moe_report),
        cmocka_unit_test(test_mistakes),
        cmocka_unit_test(test_full_disk),
        cmocka_unit_test(test_results_that_cannot_be_written),
    };
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    remove_folder(folder);
    return failed;
}
