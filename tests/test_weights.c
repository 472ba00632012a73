/* test_weights.c: tensors bound to their places: names, shapes and types by config.json, what is
 * refused, what is passed over, what is copied. */
#include "model_files.h"

#define GOLDEN "tests/data/golden/"
#define V3 GOLDEN "v3-fp8"
#define LITE GOLDEN "v2-lite"
#define QWEN GOLDEN "qwen2"
#define TINY "examples/models/tiny-gov"

typedef struct model {
    dsi_checkpoint checkpoint;
    dsi_config config;
    dsi_weights weights;
} model;

static char folder[64];
static int setup(void **state) {
    (void)state;
    temp_folder(folder);
    return 0;
}
static int teardown(void **state) {
    (void)state;
    remove_folder(folder);
    return 0;
}

static dsi_status open_model(const char *dir, model *m, dsi_error *error) {
    *m = (model){0};
    *error = (dsi_error){0};
    dsi_status status = dsi_checkpoint_open(dir, NULL, NULL, &m->checkpoint, error);
    if (!status) status = dsi_config_load(dir, &m->config, error);
    if (!status) status = dsi_weights_bind(&m->checkpoint, &m->config, &m->weights, error);
    return status;
}
static void close_model(model *m) {
    dsi_weights_free(&m->weights);
    dsi_checkpoint_close(&m->checkpoint);
    dsi_config_free(&m->config);
}

/* The golden checkpoint with one change in its header and, if config_from is set, one in its
 * config.json. */
static void make_changed(const char *golden, const char *from, const char *to,
                         const char *config_from, const char *config_to) {
    write_changed_header(golden, folder, from, to);
    link_file(golden, folder, "config.json");
    if (!config_from) return;
    bytes file = read_file(golden, "config.json");
    char *text = replaced(file.data, config_from, config_to);
    write_text(folder, "config.json", text);
    free(text);
    free(file.data);
}

static void check_refused(dsi_status status, const char *file, const char *reason) {
    model m;
    dsi_error error;
    dsi_status got = open_model(folder, &m, &error);
    assert_refused(got, &error, status, file, reason);
    assert_null(m.weights.layers);
    close_model(&m);
}

/* The bytes of a mapped weight are those the header points to. */
static void check_place(const model *m, const dsi_weight *w, const char *tensor, dsi_dtype dtype,
                        int64_t n_out, int64_t n_in) {
    const dsi_file_tensor *t = dsi_checkpoint_find(&m->checkpoint, tensor);
    assert_non_null(t);
    assert_ptr_equal(w->data, dsi_checkpoint_data(&m->checkpoint, t));
    assert_int_equal(w->dtype, dtype);
    assert_int_equal(w->n_out, n_out);
    assert_int_equal(w->n_in, n_in);
    assert_int_equal(w->shard, t->shard);
    assert_int_equal(w->file_offset, t->file_offset);
    size_t n = strlen(tensor);
    if (n > 7 && strcmp(tensor + n - 7, ".weight") == 0) n -= 7;
    assert_int_equal(strlen(w->name), n);
    assert_memory_equal(w->name, tensor, n);
}

/* ---- What is bound -------------------------------------------------------------------------- */

static void test_all_models_of_the_tree_bind(void **state) {
    (void)state;
    static const char *const folders[] = {
        GOLDEN "llama",   QWEN, GOLDEN "v2", LITE, GOLDEN "v3-bf16", V3, GOLDEN "v3-odd",
        GOLDEN "v3-yarn", TINY, GOLDEN "v32"};
    for (size_t i = 0; i < sizeof folders / sizeof *folders; i++) {
        model m;
        dsi_error error;
        assert_ok(open_model(folders[i], &m, &error), &error);
        assert_int_equal(m.weights.n_copies, 0);
        assert_int_equal(m.weights.n_mtp_layers, i == 8);
        close_model(&m);
    }
}

static void test_v3_places(void **state) {
    (void)state;
    model m;
    dsi_error error;
    assert_ok(open_model(V3, &m, &error), &error);
    const dsi_layer_weights *l = m.weights.layers;
    check_place(&m, &m.weights.embed_tokens, "model.embed_tokens.weight", DSI_DTYPE_BF16, 512, 192);
    check_place(&m, &m.weights.norm, "model.norm.weight", DSI_DTYPE_BF16, 1, 192);
    check_place(&m, &m.weights.lm_head, "lm_head.weight", DSI_DTYPE_BF16, 512, 192);
    check_place(&m, &l[1].input_layernorm, "model.layers.1.input_layernorm.weight", DSI_DTYPE_BF16,
                1, 192);
    check_place(&m, &l[1].q_b_proj, "model.layers.1.self_attn.q_b_proj.weight", DSI_DTYPE_E4M3, 256,
                128);
    check_place(&m, &l[2].experts[11].down_proj, "model.layers.2.mlp.experts.11.down_proj.weight",
                DSI_DTYPE_E4M3, 192, 80);
    check_place(&m, &l[2].shared_experts.up_proj,
                "model.layers.2.mlp.shared_experts.up_proj.weight", DSI_DTYPE_E4M3, 80, 192);
    check_place(&m, &l[2].e_score_correction_bias,
                "model.layers.2.mlp.gate.e_score_correction_bias", DSI_DTYPE_F32, 1, 12);
    check_place(&m, &l[0].mlp.gate_proj, "model.layers.0.mlp.gate_proj.weight", DSI_DTYPE_E4M3, 320,
                192);
    assert_false(l[0].is_moe);
    assert_true(l[1].is_moe && l[2].is_moe);
    assert_null(l[0].experts);
    assert_null(l[1].q_proj.name);
    assert_null(l[1].mlp.gate_proj.name);
    close_model(&m);
}

/* Trap 2: kv_a_proj_with_mqa has 576 rows at full size, 160 here: its last row block is part full,
 * and its scales still have a row for it. */
static void test_trap_02_half_scale_block(void **state) {
    (void)state;
    model m;
    dsi_error error;
    assert_ok(open_model(V3, &m, &error), &error);
    const dsi_weight *w = &m.weights.layers[1].kv_a_proj_with_mqa;
    const dsi_file_tensor *t = dsi_checkpoint_find(
        &m.checkpoint, "model.layers.1.self_attn.kv_a_proj_with_mqa.weight_scale_inv");
    assert_int_equal(w->n_out, 160);
    assert_int_equal(t->shape[0], 2);
    assert_int_equal(t->shape[1], 2);
    assert_ptr_equal(w->scale, dsi_checkpoint_data(&m.checkpoint, t));
    assert_int_equal(w->scale_offset, t->file_offset);
    assert_int_equal(w->scale_shard, t->shard);
    close_model(&m);
    make_changed(V3, "kv_a_proj_with_mqa.weight_scale_inv\":{\"dtype\":\"F32\",\"shape\":[2,2]",
                 "kv_a_proj_with_mqa.weight_scale_inv\":{\"dtype\":\"F32\",\"shape\":[1,4]", NULL,
                 NULL);
    check_refused(DSI_E_MODEL, "/model.safetensors",
                  "has shape [1, 4], config.json makes it [2, 2]");
}

/* Trap 7: the norm behind kv_a_proj covers the latent (512 at full size), not the rope key. */
static void test_trap_07_kv_a_layernorm_covers_the_latent(void **state) {
    (void)state;
    model m;
    dsi_error error;
    assert_ok(open_model(V3, &m, &error), &error);
    assert_int_equal(m.weights.layers[0].kv_a_layernorm.n_in, 128);
    assert_int_equal(m.weights.layers[0].kv_a_proj_with_mqa.n_out, 128 + 32);
    close_model(&m);
}

/* Trap 8: kv_b_proj has nope + v rows per head; with v other than nope the shape shows it. */
static void test_trap_08_kv_b_rows_per_head(void **state) {
    (void)state;
    model m;
    dsi_error error;
    assert_ok(open_model(GOLDEN "v3-odd", &m, &error), &error);
    assert_int_equal(m.weights.layers[0].kv_b_proj.n_out, 5 * (48 + 40));
    assert_int_equal(m.weights.layers[0].kv_b_proj.n_in, 96);
    assert_int_equal(m.weights.layers[0].o_proj.n_in, 5 * 40);
    close_model(&m);
}

/* Trap 14: the router's weight is never quantised. */
static void test_trap_14_gate_is_not_e4m3(void **state) {
    (void)state;
    make_changed(V3, "mlp.gate.weight\":{\"dtype\":\"BF16\",\"shape\":[12,192]",
                 "mlp.gate.weight\":{\"dtype\":\"F8_E4M3\",\"shape\":[12,384]", NULL, NULL);
    check_refused(DSI_E_UNSUPPORTED, "/model.safetensors",
                  "layers.1.mlp.gate.weight\" is F8_E4M3; this weight must be BF16, F16 or F32");
}

/* Trap 15: E4M3 holds NaN codes, 0x7F and 0xFF: opening does not read weights, so they are no
 * reason to refuse, and the byte is handed on as it is. */
static void test_trap_15_nan_codes_open(void **state) {
    (void)state;
    model m;
    dsi_error error;
    bytes file = read_file(V3, "model.safetensors");
    assert_ok(open_model(V3, &m, &error), &error);
    uint64_t place = m.weights.layers[1].q_a_proj.file_offset;
    close_model(&m);
    file.data[place] = 0x7f;
    write_file(folder, "model.safetensors", file.data, file.n);
    link_file(V3, folder, "config.json");
    free(file.data);
    assert_ok(open_model(folder, &m, &error), &error);
    assert_int_equal(m.weights.layers[1].q_a_proj.data[0], 0x7f);
    close_model(&m);
}

static void test_lite_and_qwen_places(void **state) {
    (void)state;
    model m;
    dsi_error error;
    assert_ok(open_model(LITE, &m, &error), &error);
    check_place(&m, &m.weights.layers[0].q_proj, "model.layers.0.self_attn.q_proj.weight",
                DSI_DTYPE_BF16, 256, 192);
    assert_null(m.weights.layers[0].q_a_proj.name);
    assert_null(m.weights.layers[1].e_score_correction_bias.name);
    close_model(&m);
    assert_ok(open_model(QWEN, &m, &error), &error);
    check_place(&m, &m.weights.layers[2].k_bias, "model.layers.2.self_attn.k_proj.bias",
                DSI_DTYPE_BF16, 1, 32);
    check_place(&m, &m.weights.layers[2].v_proj, "model.layers.2.self_attn.v_proj.weight",
                DSI_DTYPE_BF16, 32, 96);
    assert_ptr_equal(m.weights.lm_head.data, m.weights.embed_tokens.data);
    assert_string_equal(m.weights.lm_head.name, "model.embed_tokens");
    close_model(&m);
}

/* Trap 16: the MTP block is counted, not bound, and nothing of it is copied. */
static void test_trap_16_mtp_block_is_passed_over(void **state) {
    (void)state;
    model m;
    dsi_error error;
    uint32_t layer = 0;
    assert_ok(open_model(TINY, &m, &error), &error);
    assert_int_equal(m.weights.n_mtp_layers, 1);
    assert_int_equal(m.weights.n_mtp_tensors, 6 + 4 + 10 + 2 + 6 + 16 * 6);
    assert_int_equal(m.weights.n_bytes_copies, 0);
    assert_true(dsi_tensor_is_mtp(&m.config, "model.layers.6.eh_proj.weight", &layer));
    assert_int_equal(layer, 6);
    assert_true(dsi_tensor_is_mtp(&m.config, "model.layers.999.x", NULL));
    static const char *const others[] = {
        "model.layers.5.x",  "model.layers.06.x", "model.layers..x",          "model.layers.6",
        "model.norm.weight", "model.layers.-6.x", "model.layers.4294967302.x"};
    for (size_t i = 0; i < sizeof others / sizeof *others; i++)
        assert_false(dsi_tensor_is_mtp(&m.config, others[i], NULL));
    close_model(&m);
}

/* ---- What is refused ------------------------------------------------------------------------ */

static void test_missing_tensors(void **state) {
    (void)state;
    make_changed(V3, "layers.1.mlp.experts.5.up_proj.weight\"",
                 "layers.1.mlp.experts.5.up_prof.weight\"", NULL, NULL);
    check_refused(DSI_E_MODEL, "/model.safetensors",
                  "\"model.layers.1.mlp.experts.5.up_proj.weight\" is missing");
    make_changed(V3, "layers.1.self_attn.o_proj.weight_scale_inv\"",
                 "layers.1.self_attn.o_proj.weight_scale_inw\"", NULL, NULL);
    check_refused(DSI_E_MODEL, "/model.safetensors",
                  "\"model.layers.1.self_attn.o_proj.weight_scale_inv\" is missing");
    make_changed(GOLDEN "llama", "lm_head.weight", "lm_heat.weight", NULL, NULL);
    check_refused(DSI_E_MODEL, "/model.safetensors", "\"lm_head.weight\" is missing");
    make_changed(LITE, "format", "format", "\"q_lora_rank\": null", "\"q_lora_rank\": 96");
    check_refused(DSI_E_MODEL, "/model.safetensors", "self_attn.q_a_proj.weight\" is missing");
}

static void test_wrong_shapes_and_types(void **state) {
    (void)state;
    make_changed(V3, "format", "format", "\"hidden_size\": 192", "\"hidden_size\": 193");
    check_refused(
        DSI_E_MODEL, "/model.safetensors",
        "\"model.embed_tokens.weight\" has shape [512, 192], config.json makes it [512, 193]");
    make_changed(QWEN, "k_proj.bias\":{\"dtype\":\"BF16\",\"shape\":[32]",
                 "k_proj.bias\":{\"dtype\":\"BF16\",\"shape\":[1,32]", NULL, NULL);
    check_refused(DSI_E_MODEL, "/model.safetensors",
                  "has shape [1, 32], config.json makes it [32]");
    make_changed(QWEN, "k_proj.bias\":{\"dtype\":\"BF16\"", "k_proj.bias\":{\"dtype\":\"I16\"",
                 NULL, NULL);
    check_refused(DSI_E_UNSUPPORTED, "/model.safetensors",
                  "k_proj.bias\" is I16; this weight must");
    make_changed(V3, "q_a_proj.weight_scale_inv\":{\"dtype\":\"F32\"",
                 "q_a_proj.weight_scale_inv\":{\"dtype\":\"I32\"", NULL, NULL);
    check_refused(DSI_E_UNSUPPORTED, "/model.safetensors", "weight_scale_inv\" is I32");
    make_changed(V3, "q_a_proj.weight\":{\"dtype\":\"F8_E4M3\"",
                 "q_a_proj.weight\":{\"dtype\":\"F8_E5M2\"", NULL, NULL);
    check_refused(DSI_E_UNSUPPORTED, "/model.safetensors", "q_a_proj.weight\" is F8_E5M2");
    make_changed(V3, "format", "format", "\"quantization_config\"", "\"quantisation_config\"");
    check_refused(DSI_E_MODEL, "/model.safetensors", "no quantization_config that says so");
}

static void test_tensors_nobody_reads(void **state) {
    (void)state;
    /* A Qwen2 checkpoint as a Llama: its biases have no place. */
    make_changed(QWEN, "format", "format", "\"model_type\": \"qwen2\"",
                 "\"model_type\": \"llama\"");
    bytes file = read_file(folder, "config.json");
    char *text = replaced(file.data, "Qwen2ForCausalLM", "LlamaForCausalLM");
    write_text(folder, "config.json", text);
    free(text);
    free(file.data);
    check_refused(DSI_E_MODEL, "/model.safetensors", "_proj.bias\" has no place in a llama model");
    /* Layers that config.json does not know are no MTP blocks. */
    make_changed(V3, "format", "format", "\"num_hidden_layers\": 3", "\"num_hidden_layers\": 2");
    check_refused(DSI_E_MODEL, "/model.safetensors", "lies behind the last layer");
    make_changed(GOLDEN "llama", "format", "format", "\"num_hidden_layers\": 3",
                 "\"num_hidden_layers\": 2");
    check_refused(DSI_E_MODEL, "/model.safetensors", "lies behind the last layer");
}

/* ---- What is passed over, and what is copied ------------------------------------------------ */

/* A Qwen2 of one layer with 2 x 2 heads, every weight of type `dtype`, `extra` before the rest. */
static void write_small_qwen(const char *dtype, size_t n_bytes, const char *extra, size_t n_extra) {
    static const struct {
        const char *name;
        int rows, columns;
    } tensors[] = {{"model.embed_tokens.weight", 8, 4},
                   {"model.norm.weight", 0, 4},
                   {"model.layers.0.input_layernorm.weight", 0, 4},
                   {"model.layers.0.post_attention_layernorm.weight", 0, 4},
                   {"model.layers.0.self_attn.q_proj.weight", 4, 4},
                   {"model.layers.0.self_attn.k_proj.weight", 4, 4},
                   {"model.layers.0.self_attn.v_proj.weight", 4, 4},
                   {"model.layers.0.self_attn.o_proj.weight", 4, 4},
                   {"model.layers.0.self_attn.q_proj.bias", 0, 4},
                   {"model.layers.0.self_attn.k_proj.bias", 0, 4},
                   {"model.layers.0.self_attn.v_proj.bias", 0, 4},
                   {"model.layers.0.mlp.gate_proj.weight", 6, 4},
                   {"model.layers.0.mlp.up_proj.weight", 6, 4},
                   {"model.layers.0.mlp.down_proj.weight", 4, 6}};
    char json[4096];
    size_t at = n_extra, n = (size_t)snprintf(json, sizeof json, "{%s", extra);
    for (size_t i = 0; i < sizeof tensors / sizeof *tensors; i++) {
        int rows = tensors[i].rows, columns = tensors[i].columns;
        size_t size = (size_t)((rows ? rows : 1) * columns) * n_bytes;
        n += (size_t)snprintf(json + n, sizeof json - n, "%s\"%s\":{\"dtype\":\"%s\",\"shape\":[",
                              n > 1 ? "," : "", tensors[i].name, dtype);
        if (rows) n += (size_t)snprintf(json + n, sizeof json - n, "%d,", rows);
        n += (size_t)snprintf(json + n, sizeof json - n, "%d],\"data_offsets\":[%zu,%zu]}", columns,
                              at, at + size);
        at += size;
    }
    n += (size_t)snprintf(json + n, sizeof json - n, "}");
    while ((n + 1) % 8 != 0) json[n++] = ' ';
    json[n++] = ' ';
    json[n] = 0;
    write_safetensors(folder, "model.safetensors", json, at);
    write_text(
        folder, "config.json",
        "{\"model_type\":\"qwen2\",\"hidden_size\":4,\"num_hidden_layers\":1,\"vocab_size\":8,"
        "\"intermediate_size\":6,\"max_position_embeddings\":16,\"num_attention_heads\":2,"
        "\"tie_word_embeddings\":true}");
}

static void test_misaligned_tensors_are_copied(void **state) {
    (void)state;
    static const char extra[] =
        "\"model.layers.0.self_attn.rotary_emb.inv_freq\":{\"dtype\":\"U8\",\"shape\":[1],"
        "\"data_offsets\":[0,1]}";
    static const struct {
        const char *name;
        size_t n_bytes;
    } types[] = {{"F32", 4}, {"BF16", 2}};
    for (int k = 0; k < 2; k++) {
        model m;
        dsi_error error;
        write_small_qwen(types[k].name, types[k].n_bytes, extra, 1);
        assert_ok(open_model(folder, &m, &error), &error);
        const dsi_weights *w = &m.weights;
        assert_int_equal(w->n_copies, 14);
        assert_true(w->n_bytes_copies % 64 == 0 && w->n_bytes_copies >= 14 * 64);
        const dsi_file_tensor *t = dsi_checkpoint_find(&m.checkpoint, "model.norm.weight");
        assert_int_equal(t->file_offset % types[k].n_bytes, 1);
        assert_memory_equal(w->norm.data, dsi_checkpoint_data(&m.checkpoint, t), t->n_bytes);
        const dsi_weight *q = &w->layers[0].q_proj;
        t = dsi_checkpoint_find(&m.checkpoint, "model.layers.0.self_attn.q_proj.weight");
        assert_memory_equal(q->data, dsi_checkpoint_data(&m.checkpoint, t), t->n_bytes);
        assert_int_equal(q->shard, 0);
        assert_int_equal(q->file_offset, t->file_offset);
        assert_true(q->data >= (const uint8_t *)w->copies &&
                    q->data + t->n_bytes <= (const uint8_t *)w->copies + w->n_bytes_copies);
        assert_int_equal((uintptr_t)q->data % 64, 0);
        assert_ptr_equal(w->lm_head.data, w->embed_tokens.data);
        close_model(&m);
    }
}

/* The scales of an E4M3 weight as well: a header one byte longer moves everything to odd places. */
static void test_misaligned_scales_are_copied(void **state) {
    (void)state;
    model m;
    dsi_error error;
    make_changed(V3, "format", "formats", NULL, NULL);
    assert_ok(open_model(folder, &m, &error), &error);
    const dsi_weight *w = &m.weights.layers[2].experts[7].up_proj;
    const dsi_file_tensor *t =
        dsi_checkpoint_find(&m.checkpoint, "model.layers.2.mlp.experts.7.up_proj.weight_scale_inv");
    assert_int_equal(t->file_offset % 4, 1);
    assert_int_equal((uintptr_t)w->scale % 64, 0);
    assert_memory_equal(w->scale, dsi_checkpoint_data(&m.checkpoint, t), t->n_bytes);
    assert_int_equal(w->scale_offset, t->file_offset);
    t = dsi_checkpoint_find(&m.checkpoint, "model.layers.2.mlp.experts.7.up_proj.weight");
    assert_ptr_equal(w->data, dsi_checkpoint_data(&m.checkpoint, t)); /* single bytes stay */
    close_model(&m);
}

/* Norms and biases may be F16 as well as BF16 and F32, aligned or not. */
static void test_f16_model_binds(void **state) {
    (void)state;
    model m;
    dsi_error error;
    write_small_qwen("F16", 2, "", 0);
    assert_ok(open_model(folder, &m, &error), &error);
    assert_int_equal(m.weights.n_copies, 0);
    assert_int_equal(m.weights.norm.dtype, DSI_DTYPE_F16);
    assert_int_equal(m.weights.layers[0].q_bias.dtype, DSI_DTYPE_F16);
    close_model(&m);
}

static void test_tied_head_may_be_stored(void **state) {
    (void)state;
    static const char good[] = "\"lm_head.weight\":{\"dtype\":\"BF16\",\"shape\":[8,4],"
                               "\"data_offsets\":[0,64]}";
    static const char bad[] = "\"lm_head.weight\":{\"dtype\":\"BF16\",\"shape\":[4,8],"
                              "\"data_offsets\":[0,64]}";
    model m;
    dsi_error error;
    write_small_qwen("BF16", 2, good, 64);
    assert_ok(open_model(folder, &m, &error), &error);
    assert_string_equal(m.weights.lm_head.name, "model.embed_tokens");
    close_model(&m);
    write_small_qwen("BF16", 2, bad, 64);
    check_refused(DSI_E_MODEL, "/model.safetensors", "\"lm_head.weight\" has shape [4, 8]");
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, setup, teardown)

int main(void) {
    static const struct CMUnitTest tests[] = {TEST(test_all_models_of_the_tree_bind),
                                              TEST(test_v3_places),
                                              TEST(test_trap_02_half_scale_block),
                                              TEST(test_trap_07_kv_a_layernorm_covers_the_latent),
                                              TEST(test_trap_08_kv_b_rows_per_head),
                                              TEST(test_trap_14_gate_is_not_e4m3),
                                              TEST(test_trap_15_nan_codes_open),
                                              TEST(test_lite_and_qwen_places),
                                              TEST(test_trap_16_mtp_block_is_passed_over),
                                              TEST(test_missing_tensors),
                                              TEST(test_wrong_shapes_and_types),
                                              TEST(test_tensors_nobody_reads),
                                              TEST(test_misaligned_tensors_are_copied),
                                              TEST(test_misaligned_scales_are_copied),
                                              TEST(test_f16_model_binds),
                                              TEST(test_tied_head_may_be_stored)};
    return cmocka_run_group_tests_name("weights", tests, NULL, NULL);
}
