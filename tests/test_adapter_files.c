/* test_adapter_files.c: hostile and foreign LoRA adapters: each is refused with the status and the
 * words that say which file, which key or tensor, which value and what to do; and a thousand
 * damaged files that may not crash anything. */
#include "adapter_files.h"
#include "session_tools.h"

static char folder[64];
static dsi_model *model; /* v2-lite: MLA without q_a, a dense layer, two of experts */
static dsi_engine *engine;
static const recipe plain = {.modules = "|q_proj|kv_b_proj|down_proj|",
                             .rank = 4,
                             .alpha = 8,
                             .dtype = DSI_DTYPE_F32,
                             .seed = 1};
#define LAYERS "base_model.model.model.layers."
static const char config_text[] =
    "{\"peft_type\": \"LORA\", \"r\": 4, \"lora_alpha\": 8, \"bias\": \"none\", \"use_dora\": "
    "false, \"target_modules\": [\"q_proj\"], \"modules_to_save\": null, \"rank_pattern\": {}, "
    "\"alpha_pattern\": {}, \"init_lora_weights\": true, \"use_rslora\": false}";

static int open_all(void **state) {
    (void)state;
    temp_folder(folder);
    model = load_model("tests/data/golden/v2-lite");
    dsi_engine_options o = engine_of(64, 64, 1);
    engine = start_engine(model, &o);
    return 0;
}
static int close_all(void **state) {
    (void)state;
    dsi_engine_close(engine);
    dsi_model_close(model);
    remove_folder(folder);
    return 0;
}

static void expect(dsi_status wanted, const char *what, const char *const *words) {
    dsi_adapter *a = NULL;
    dsi_status st = dsi_adapter_open(engine, folder, NULL, &a);
    const char *text = dsi_last_error(NULL);
    if (st != wanted) fail_msg("%s: status %d, wanted %d: %s", what, st, wanted, text);
    if (st == DSI_OK) {
        dsi_adapter_close(a);
        return;
    }
    assert_null(a);
    for (; *words; words++)
        if (!strstr(text, *words)) fail_msg("%s: no '%s' in: %s", what, *words, text);
}

/* ---- adapter_config.json --------------------------------------------------------------------- */

static const struct {
    const char *from, *to;
    dsi_status status;
    const char *words[4];
} configs[] = {
    {"\"LORA\"", "\"LOHA\"", DSI_E_UNSUPPORTED, {"peft_type is \"LOHA\"", "\"LORA\""}},
    {"\"peft_type\": \"LORA\", ", "", DSI_E_UNSUPPORTED, {"peft_type is missing"}},
    {"\"none\"", "\"all\"", DSI_E_UNSUPPORTED, {"bias is \"all\"", "\"none\""}},
    {"\"use_dora\": false", "\"use_dora\": true", DSI_E_UNSUPPORTED, {"use_dora is true", "merge"}},
    {"\"modules_to_save\": null",
     "\"modules_to_save\": [\"lm_head\"]",
     DSI_E_UNSUPPORTED,
     {"modules_to_save", "merge"}},
    {"\"modules_to_save\": null",
     "\"target_parameters\": [\"gate_up_proj\"]",
     DSI_E_UNSUPPORTED,
     {"target_parameters", "routed experts", "merge"}},
    {"\"modules_to_save\": null",
     "\"alora_invocation_tokens\": [1]",
     DSI_E_UNSUPPORTED,
     {"alora_invocation_tokens"}},
    {"\"modules_to_save\": null",
     "\"layer_replication\": [[0, 2]]",
     DSI_E_UNSUPPORTED,
     {"layer_replication"}},
    {"\"modules_to_save\": null",
     "\"trainable_token_indices\": {\"embed_tokens\": [1]}",
     DSI_E_UNSUPPORTED,
     {"trainable_token_indices"}},
    {"\"modules_to_save\": null", "\"lora_bias\": true", DSI_E_UNSUPPORTED, {"lora_bias is true"}},
    {"\"r\": 4", "\"r\": 0", DSI_E_MODEL, {"r is 0", "1 to 512"}},
    {"\"r\": 4", "\"r\": 513", DSI_E_MODEL, {"r is 513", "1 to 512"}},
    {"\"r\": 4", "\"r\": 4.5", DSI_E_MODEL, {"r is 4.5", "whole number"}},
    {"\"r\": 4", "\"r\": -4", DSI_E_MODEL, {"r is -4"}},
    {"\"r\": 4", "\"r\": \"4\"", DSI_E_MODEL, {"r is \"4\""}},
    {"\"r\": 4, ", "", DSI_E_MODEL, {"r is missing"}},
    {"\"r\": 4", "\"r\": 8", DSI_E_MODEL, {"[4][", "must be [8][", "rank 8"}},
    {"\"lora_alpha\": 8", "\"lora_alpha\": 1e9", DSI_E_MODEL, {"lora_alpha is 1e9", "1e+06"}},
    {"\"lora_alpha\": 8", "\"lora_alpha\": null", DSI_E_MODEL, {"lora_alpha is missing"}},
    {"\"use_rslora\": false", "\"use_rslora\": 1", DSI_E_MODEL, {"use_rslora is 1"}},
    {"\"init_lora_weights\": true",
     "\"init_lora_weights\": \"pissa_niter_4\"",
     DSI_E_UNSUPPORTED,
     {"init_lora_weights is \"pissa_niter_4\"", "path_initial_model_for_weight_conversion"}},
    {"\"init_lora_weights\": true", "\"init_lora_weights\": \"gaussian\"", DSI_OK, {NULL}},
    {"[\"q_proj\"]", "[\"q_proj\", 7]", DSI_E_MODEL, {"target_modules"}},
    {"[\"q_proj\"]", "{}", DSI_E_MODEL, {"target_modules is an object"}},
    {"[\"q_proj\"]", "\"all-linear\"", DSI_OK, {NULL}},
    {"\"rank_pattern\": {}",
     "\"rank_pattern\": {\"q_proj\": 600}",
     DSI_E_MODEL,
     {"rank_pattern is 600", "q_proj"}},
    {"\"rank_pattern\": {}",
     "\"rank_pattern\": {\"q_(a|b)\": 6}",
     DSI_E_UNSUPPORTED,
     {"rank_pattern", "no patterns"}},
    {"\"rank_pattern\": {}", "\"rank_pattern\": [3]", DSI_E_MODEL, {"rank_pattern is an array"}},
    {"\"rank_pattern\": {}",
     "\"rank_pattern\": {\"1.self_attn.q_proj\": 3}",
     DSI_E_MODEL,
     {"layers.1.self_attn.q_proj", "must be [3]["}},
    {"\"rank_pattern\": {}", "\"rank_pattern\": {\"proj\": 3}", DSI_OK, {NULL}},
    {"\"alpha_pattern\": {}",
     "\"alpha_pattern\": {\"q_proj\": true}",
     DSI_E_MODEL,
     {"alpha_pattern is true"}},
    {"\"alpha_pattern\": {}", "\"alpha_pattern\": {\"q_proj\": 3}", DSI_OK, {NULL}},
    {"{\"peft", "[{\"peft", DSI_E_FORMAT, {"adapter_config.json"}},
    {"\"r\": 4,", "\"r\": 4, \"r\": 4,", DSI_E_FORMAT, {"adapter_config.json"}},
};

static void test_configs(void **state) {
    (void)state;
    write_adapter(folder, model, &plain);
    write_text(folder, "adapter_config.json", config_text);
    expect(DSI_OK, "as it is", NULL);
    for (size_t i = 0; i < sizeof configs / sizeof configs[0]; i++) {
        char *text = replaced(config_text, configs[i].from, configs[i].to);
        write_text(folder, "adapter_config.json", text);
        expect(configs[i].status, configs[i].to, configs[i].words);
        if (configs[i].status != DSI_OK)
            assert_non_null(
                strstr(dsi_last_error(NULL),
                       configs[i].status == DSI_E_MODEL && strstr(dsi_last_error(NULL), "tensor")
                           ? "adapter_model.safetensors"
                           : "adapter_config.json"));
        free(text);
    }
}

static void test_files_missing(void **state) {
    (void)state;
    char path[128];
    write_adapter(folder, model, &plain);
    snprintf(path, sizeof path, "%s/adapter_model.safetensors", folder);
    assert_int_equal(unlink(path), 0);
    expect(DSI_E_IO, "no weights", (const char *[]){folder, "adapter_model.safetensors", NULL});
    write_text(folder, "adapter_model.bin", "PK");
    expect(DSI_E_IO, "pickled weights",
           (const char *[]){"adapter_model.bin is not read", "safe_serialization", NULL});
    snprintf(path, sizeof path, "%s/adapter_model.bin", folder);
    assert_int_equal(unlink(path), 0);
    write_adapter(folder, model, &plain);
    snprintf(path, sizeof path, "%s/adapter_config.json", folder);
    assert_int_equal(unlink(path), 0);
    expect(DSI_E_IO, "no config", (const char *[]){"adapter_config.json", NULL});
    dsi_adapter *a = NULL;
    assert_int_equal(dsi_adapter_open(engine, "/nowhere/at/all", NULL, &a), DSI_E_IO);
    SAYS(dsi_last_error(NULL), "/nowhere/at/all", "no such folder", "adapter_config.json");
}

/* ---- adapter_model.safetensors --------------------------------------------------------------- */

static const char q_a[] = LAYERS "0.self_attn.q_proj.lora_A.weight";
static const char q_b[] = LAYERS "0.self_attn.q_proj.lora_B.weight";

static void put_nan(made_file *f) { put_value(find_tensor(f, q_b), 37, NAN); }
static void put_infinity(made_file *f) { put_value(find_tensor(f, q_a), 300, -INFINITY); }
static void drop_b(made_file *f) { drop_tensor(f, q_b); }
static void drop_a(made_file *f) { drop_tensor(f, q_a); }
static void swap_shape(made_file *f) {
    made_tensor *t = find_tensor(f, q_a);
    int64_t rows = t->rows;
    t->rows = t->columns, t->columns = rows;
}
static void flatten(made_file *f) {
    made_tensor *t = find_tensor(f, q_a);
    t->columns *= t->rows, t->rows = 0;
}
static void rename_a(made_file *f, const char *name) {
    made_tensor *t = find_tensor(f, q_a);
    snprintf(t->name, sizeof t->name, "%s", name);
}
static void to_int8(made_file *f) {
    made_tensor *t = find_tensor(f, q_a);
    t->dtype = DSI_DTYPE_I8;
    t->n_bytes /= 4;
}

static const struct {
    void (*change)(made_file *f);
    const char *name; /* or the new name of A */
    dsi_status status;
    const char *words[4];
} files[] = {
    {put_nan, NULL, DSI_E_FORMAT, {q_b, "holds nan at value 37", "another checkpoint"}},
    {put_infinity, NULL, DSI_E_FORMAT, {q_a, "holds -inf at value 300"}},
    {drop_b, NULL, DSI_E_FORMAT, {"layers.0.self_attn.q_proj", "no lora_B.weight", "again"}},
    {drop_a, NULL, DSI_E_FORMAT, {"layers.0.self_attn.q_proj", "no lora_A.weight"}},
    {swap_shape, NULL, DSI_E_MODEL, {q_a, "[192][4]", "must be [4][192]"}},
    {flatten, NULL, DSI_E_MODEL, {q_a, "must be [4][192]"}},
    {to_int8, NULL, DSI_E_UNSUPPORTED, {q_a, "type I8", "F32, F16 or BF16"}},
    {NULL,
     LAYERS "3.self_attn.q_proj.lora_A.weight",
     DSI_E_MODEL,
     {"of layer 3", "layers 0 to 2", "another model"}},
    {NULL,
     LAYERS "99999999999999999999.self_attn.q_proj.lora_A.weight",
     DSI_E_UNSUPPORTED,
     {"is not known"}},
    {NULL, LAYERS "-1.self_attn.q_proj.lora_A.weight", DSI_E_UNSUPPORTED, {"is not known"}},
    {NULL,
     LAYERS "0.self_attn.q_a_proj.lora_A.weight",
     DSI_E_MODEL,
     {"model.layers.0.self_attn.q_a_proj", "deepseek_v2", "another model"}},
    {NULL,
     LAYERS "0.mlp.shared_experts.up_proj.lora_A.weight",
     DSI_E_MODEL,
     {"model.layers.0.mlp.shared_experts.up_proj", "does not have"}},
    {NULL, LAYERS "1.mlp.up_proj.lora_A.weight", DSI_E_MODEL, {"model.layers.1.mlp.up_proj"}},
    {NULL,
     LAYERS "1.mlp.experts.7.up_proj.lora_A.weight",
     DSI_E_UNSUPPORTED,
     {"experts.7.up_proj", "routed experts", "merge the adapter"}},
    {NULL, LAYERS "1.mlp.experts.lora_A.weight", DSI_E_UNSUPPORTED, {"routed experts"}},
    {NULL, LAYERS "1.mlp.gate.lora_A.weight", DSI_E_UNSUPPORTED, {"router", "merge the adapter"}},
    {NULL,
     "base_model.model.model.embed_tokens.lora_embedding_A",
     DSI_E_UNSUPPORTED,
     {"embed_tokens", "embeddings"}},
    {NULL, "base_model.model.lm_head.lora_A.weight", DSI_E_UNSUPPORTED, {"lm_head", "head"}},
    {NULL, LAYERS "0.self_attn.q_proj.lora_magnitude_vector", DSI_E_UNSUPPORTED, {"DoRA"}},
    {NULL, LAYERS "0.self_attn.q_proj.lora_B.bias", DSI_E_UNSUPPORTED, {"bias"}},
    {NULL, LAYERS "0.input_layernorm.lora_A.weight", DSI_E_UNSUPPORTED, {"norm"}},
    {NULL,
     LAYERS "0.self_attn.q_proj.lora_A.default.weight",
     DSI_E_UNSUPPORTED,
     {"is not known", "save_pretrained"}},
    {NULL, LAYERS "0.self_attn.qkv_proj.lora_A.weight", DSI_E_UNSUPPORTED, {"is not known"}},
    {NULL, "model.layers.0.self_attn.q_proj.lora_A.weight", DSI_E_UNSUPPORTED, {"is not known"}},
    {NULL, LAYERS, DSI_E_UNSUPPORTED, {"is not known"}},
    {NULL, LAYERS "0..lora_A.weight", DSI_E_UNSUPPORTED, {"is not known"}},
};

static void test_tensors(void **state) {
    (void)state;
    write_adapter_config(folder, &plain);
    for (size_t i = 0; i < sizeof files / sizeof files[0]; i++) {
        made_file f = make_adapter(model, &plain);
        if (files[i].change)
            files[i].change(&f);
        else
            rename_a(&f, files[i].name);
        write_made(folder, "adapter_model.safetensors", &f);
        expect(files[i].status, files[i].name ? files[i].name : files[i].words[0], files[i].words);
        assert_non_null(strstr(dsi_last_error(NULL), "adapter_model.safetensors"));
        free_file(&f);
    }
}

/* Matrices at odd addresses: A is copied too, and all gives the same. */
static void test_misaligned(void **state) {
    (void)state;
    uint64_t hashes[2], n_copied = 0;
    for (int odd = 0; odd < 2; odd++) {
        dsi_adapter *a = NULL;
        write_adapter(folder, model, &plain);
        bytes file = read_file(folder, "adapter_model.safetensors");
        if (odd) { /* one blank more in the header */
            uint64_t n = 0;
            for (int i = 7; i >= 0; i--) n = n << 8 | (uint8_t)file.data[i];
            file.data = realloc(file.data, file.n + 1);
            memmove(file.data + 8 + n + 1, file.data + 8 + n, file.n - 8 - n);
            file.data[8 + n++] = ' ';
            for (int i = 0; i < 8; i++) file.data[i] = (char)(n >> (8 * i));
            write_file(folder, "adapter_model.safetensors", file.data, file.n + 1);
        }
        free(file.data);
        OK(dsi_adapter_open(engine, folder, NULL, &a), NULL);
        if (odd) assert_true(a->weights.n_bytes_copies > n_copied);
        n_copied = a->weights.n_bytes_copies;
        dsi_session_options o = hot_options();
        o.adapter = a;
        dsi_session *s = start_session(engine, &o);
        append_made_up(s, 40, 1);
        hashes[odd] = last_hash(s);
        dsi_session_close(s);
        dsi_adapter_close(a);
    }
    assert_true(hashes[0] == hashes[1]);
}

static void compute_with(dsi_adapter *a) {
    dsi_session_options o = hot_options();
    o.adapter = a;
    dsi_session *s = start_session(engine, &o);
    append_made_up(s, 3, 1);
    dsi_status st = dsi_engine_step(engine, &s, 1, NULL);
    assert_true(st == DSI_OK || st == DSI_E_NAN);
    dsi_session_close(s);
}

/* Some bytes of either file changed, or its end cut off: refused or not, nothing breaks, and what
 * opens answers with finite numbers or DSI_E_NAN. */
static void test_damage(void **state) {
    (void)state;
    const int n_cases = SLOW_BUILD ? 300 : 1000;
    uint64_t x = 12345;
    int n_opened = 0;
    write_adapter(folder, model, &plain);
    bytes weights = read_file(folder, "adapter_model.safetensors"),
          config = read_file(folder, "adapter_config.json");
    uint64_t n_header = 0;
    for (int i = 7; i >= 0; i--) n_header = n_header << 8 | (uint8_t)weights.data[i];
    for (int i = 0; i < n_cases; i++) {
        const bool of_config = i % 3 == 0;
        bytes *from = of_config ? &config : &weights;
        char *copy = malloc(from->n);
        size_t n = from->n, head = of_config ? n : 8 + n_header;
        assert_non_null(copy);
        memcpy(copy, from->data, n);
        for (int k = 0; k <= i % 3; k++) {
            x = dsi_mix64(x + 1);
            copy[x % (i % 2 ? head : n)] ^= (char)(1u << (x >> 40) % 8);
        }
        if (i % 17 == 0) n = x % n;
        write_file(folder, of_config ? "adapter_config.json" : "adapter_model.safetensors", copy,
                   n);
        dsi_adapter *a = NULL;
        if (dsi_adapter_open(engine, folder, NULL, &a) == DSI_OK) {
            n_opened++;
            compute_with(a);
        } else if (!strstr(dsi_last_error(NULL), folder)) {
            fail_msg("case %d: no file named in: %s", i, dsi_last_error(NULL));
        }
        dsi_adapter_close(a);
        write_file(folder, of_config ? "adapter_config.json" : "adapter_model.safetensors",
                   from->data, from->n);
        free(copy);
    }
    print_message("%d damaged adapters, %d of them opened\n", n_cases, n_opened);
    free(weights.data);
    free(config.data);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_configs), cmocka_unit_test(test_files_missing),
        cmocka_unit_test(test_tensors), cmocka_unit_test(test_misaligned),
        cmocka_unit_test(test_damage),
    };
    return cmocka_run_group_tests_name("adapter_files", tests, open_all, close_all);
}
