/* test_quantized.c: checkpoints of INT8 and INT4: how they are bound, what they compute, what is
 * refused. They are made here from the small golden ones (quantize_checkpoint.h). */
#include "quantize_checkpoint.h"
#include <deepseek/dsinfer.h>

#define GOLDEN "tests/data/golden/"

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

typedef struct model {
    dsi_checkpoint checkpoint;
    dsi_config config;
    dsi_weights weights;
} model;

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

/* ---- What is bound -------------------------------------------------------------------------- */

static void check_matrix(const stored_form *form, const dsi_weight *w, int64_t n, int64_t k) {
    dsi_scale_span span = dsi_scale_span_of(form->scale_kind, form->group, k);
    assert_int_equal(w->dtype, form->dtype);
    assert_int_equal(w->n_out, n);
    assert_int_equal(w->n_in, k);
    assert_int_equal(w->scale_kind, form->scale_kind);
    assert_int_equal(w->scale_group, form->group);
    assert_int_equal(w->scale_dtype, form->scale_dtype);
    assert_int_equal(w->scale_rows, dsi_ceil_div(n, span.n));
    assert_int_equal(w->scale_columns, dsi_ceil_div(k, span.k));
    assert_null(strstr(w->name, ".weight"));
    assert_int_equal((uintptr_t)w->data % (form->dtype == DSI_DTYPE_I4 ? 4 : 1), 0);
    assert_int_equal((uintptr_t)w->scale % dsi_dtype_bytes(form->scale_dtype), 0);
}

/* Every form, at its place and one byte off it: what is misaligned is copied, and nothing else. */
static void test_places(void **state) {
    (void)state;
    for (int i = 0; i < N_INTEGER_FORMS; i++)
        for (int shift = 0; shift < 2; shift++) {
            const stored_form *form = &integer_forms[i];
            model m;
            dsi_error error;
            quantize_checkpoint(GOLDEN "v3-bf16", form, folder, shift, NULL);
            assert_ok(open_model(folder, &m, &error), &error);
            const dsi_layer_weights *l = &m.weights.layers[1];
            check_matrix(form, &l->kv_a_proj_with_mqa, 160, 192);   /* a half row block */
            check_matrix(form, &l->experts[11].down_proj, 192, 80); /* half a column block */
            check_matrix(form, &l->shared_experts.up_proj, 80, 192);
            check_matrix(form, &m.weights.layers[0].mlp.gate_proj, 320, 192);
            assert_string_equal(l->o_proj.name, "model.layers.1.self_attn.o_proj");
            assert_int_equal(l->gate.dtype, DSI_DTYPE_BF16);
            assert_int_equal(l->gate.scale_kind, DSI_SCALE_NONE);
            assert_int_equal(m.weights.lm_head.dtype, DSI_DTYPE_BF16);
            if (shift)
                assert_true(m.weights.n_copies > 50);
            else
                assert_int_equal(m.weights.n_copies, 0);
            close_model(&m);
        }
}

/* Bytes and parameters: four bits count as elements, words as the bytes they are. */
static void test_sizes(void **state) {
    (void)state;
    dsi_model *plain, *packed;
    dsi_model_info a = {.struct_size = sizeof a}, b = a;
    assert_int_equal(dsi_model_open(GOLDEN "v3-bf16", NULL, &plain), DSI_OK);
    quantize_checkpoint(GOLDEN "v3-bf16", &integer_forms[FORM_INT4_G32], folder, 0, NULL);
    if (dsi_model_open(folder, NULL, &packed)) fail_msg("%s", dsi_last_error(NULL));
    assert_int_equal(dsi_model_get_info(plain, &a), DSI_OK);
    assert_int_equal(dsi_model_get_info(packed, &b), DSI_OK);
    assert_true(a.n_params_total == b.n_params_total);
    assert_true(a.n_params_active == b.n_params_active);
    /* 512 x 192 embeddings and head stay; matrices of 4.5 bits a value take 28 % of 16 */
    uint64_t stay = 2 * 512 * 192 * 2, rest = a.n_bytes_weights - stay;
    assert_in_range(b.n_bytes_weights - stay, rest * 27 / 100, rest * 33 / 100);
    assert_true(b.n_bytes_token < a.n_bytes_token / 2);
    assert_string_equal(a.quantization, "");
    assert_string_equal(b.quantization, "int4 group 32");
    dsi_model_close(plain);
    dsi_model_close(packed);
}

/* ---- What config.json may say --------------------------------------------------------------- */

static void test_ignore_patterns(void **state) {
    (void)state;
    static const struct {
        const char *pattern, *name;
        bool matches;
    } cases[] = {
        {"lm_head", "lm_head", true},
        {"lm_head", "model.lm_head", false},
        {"re:.*lm_head", "model.lm_head", true},
        {"re:.*mlp.gate$", "model.layers.3.mlp.gate", true},
        {"re:.*mlp.gate$", "model.layers.3.mlp.gate_proj", false},
        {"re:.*mlp.gate", "model.layers.3.mlp.gate_proj", true}, /* the end is open, as in Python */
        {"re:.*mlp\\.gate$", "model.layers.3.mlp_gate", false},
        {"re:.*mlp.gate$", "model.layers.3.mlp_gate", true},
        {"re:mlp.gate$", "model.layers.3.mlp.gate", false}, /* from the first character on */
        {"re:^model.layers.0.*", "model.layers.0.mlp.up_proj", true},
        {"re:model.*self_attn.*_proj$", "model.layers.0.self_attn.q_a_proj", true},
        {"re:model.*self_attn.*_proj$", "model.layers.0.self_attn.q_a_norm", false},
        {"re:.*a.*ab$", "xaab", true}, /* the first place of a piece is not its last */
        {"re:.*$", "", true},
        {"re:", "anything", true},
        {"re:.", "", false},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++)
        if (dsi_quantization_matches(cases[i].pattern, cases[i].name) != cases[i].matches)
            fail_msg("%s and %s", cases[i].pattern, cases[i].name);
}

/* config.json of a form with one text replaced. */
static dsi_status load_changed(int form, const char *from, const char *to, dsi_config *c,
                               dsi_error *error) {
    write_config(GOLDEN "v3-bf16", folder, integer_forms[form].config);
    bytes file = read_file(folder, "config.json");
    char *text = replaced(file.data, from, to);
    write_text(folder, "config.json", text);
    free(text);
    free(file.data);
    *error = (dsi_error){0};
    return dsi_config_load(folder, c, error);
}

static void test_configs_that_load(void **state) {
    (void)state;
    static const struct {
        int form;
        const char *from, *to;
    } changes[] = {
        {FORM_INT8_CHANNEL, "\"ignore\": [\"lm_head\", \"re:.*mlp.gate$\"]", "\"ignore\": []"},
        {FORM_INT8_CHANNEL, "\"quantization_config\"", "\"compression_config\""},
        {FORM_INT8_CHANNEL, "\"kv_cache_scheme\": null",
         "\"sparsity_config\": {}, \"transform_config\": {}"},
        {FORM_INT8_CHANNEL, "\"kv_cache_scheme\": null",
         "\"sparsity_config\": {\"format\": \"dense\"}"},
        {FORM_INT8_CHANNEL, "\"group_0\": {", "\"group_0\": {\"format\": \"int-quantized\", "},
        {FORM_INT8_CHANNEL, "\"strategy\": \"channel\", \"group_size\": null",
         "\"group_size\": -1"},
        {3, "[128, 128]", "\"128x128\""},
        {FORM_INT4_G128, "\"strategy\": \"group\", ", ""},
        {FORM_INT4_G128, "\"actorder\": null", "\"actorder\": \"weight\""},
        {FORM_INT4_G32, "\"actorder\": null", "\"actorder\": \"static\""},
        {FORM_INT4_G32, "\"targets\": [\"Linear\"], ", ""},
    };
    for (size_t i = 0; i < sizeof changes / sizeof changes[0]; i++) {
        dsi_config c;
        dsi_error error;
        const stored_form *form = &integer_forms[changes[i].form];
        assert_ok(load_changed(changes[i].form, changes[i].from, changes[i].to, &c, &error),
                  &error);
        assert_int_equal(c.quantization.dtype, form->dtype);
        assert_int_equal(c.quantization.scale_kind, form->scale_kind);
        assert_int_equal(c.quantization.scale_group, form->group);
        assert_int_equal(c.quantization.n_ignored, i == 0 ? 0 : 2);
        dsi_config_free(&c);
    }
}

static const struct {
    int form;
    const char *from, *to, *reason;
} bad_configs[] = {
    {0, "\"compressed-tensors\"", "\"gptq\"", "quant_method is \"gptq\"; supported are"},
    {0, "\"int-quantized\"", "\"float-quantized\"", "format is \"float-quantized\"; supported"},
    {0, "\"int-quantized\"", "7", "format is 7"},
    {0, "\"compressed\"", "\"frozen\"", "quantization_status is \"frozen\"; only"},
    {0, "\"kv_cache_scheme\": null", "\"kv_cache_scheme\": {\"num_bits\": 8}",
     "kv_cache_scheme is an object; scales of a KV cache"},
    {0, "\"kv_cache_scheme\": null", "\"sparsity_config\": {\"format\": \"sparse-24-bitmask\"}",
     "sparsity_config is an object; sparse weights"},
    {0, "\"kv_cache_scheme\": null", "\"transform_config\": {\"config_groups\": {}}",
     "transform_config is an object; transforms"},
    {0, "\"config_groups\": {", "\"config_groups\": {\"group_1\": {}, ",
     "config_groups is an object; it must be an object with one group"},
    {0, "\"config_groups\": {", "\"config_groups\": 0, \"x\": {", "config_groups is 0"},
    {0, "\"group_0\": {", "\"group_0\": {\"format\": \"pack-quantized\", ",
     "format is \"pack-quantized\"; only \"int-quantized\""},
    {0, "[\"Linear\"]", "\"Linear\"", "targets is \"Linear\"; it must be a list"},
    {0, "[\"Linear\"]", "[3]", "targets is an array; it must be a list of names"},
    {0, "\"output_activations\": null", "\"output_activations\": {\"num_bits\": 8}",
     "output_activations is an object; quantised outputs"},
    {0, "\"num_bits\": 8", "\"num_bits\": 4", "input_activations.num_bits is 4; only 8"},
    {0, "\"strategy\": \"token\"", "\"strategy\": \"tensor\"", "strategy is \"tensor\"; only"},
    {0, "\"dynamic\": true", "\"dynamic\": false", "dynamic is false; only true is supported"},
    {0, "\"symmetric\": true", "\"symmetric\": false", "symmetric is false; only true"},
    {0, "\"weights\": {\"num_bits\": 8", "\"weights\": {\"num_bits\": 4", "num_bits is 4; only 8"},
    {0, "\"weights\": {\"num_bits\": 8", "\"weights\": {\"num_bits\": 8.5", "num_bits is 8.5"},
    {0, "\"weights\": {", "\"weights\": 1, \"x\": {", "config_groups.weights is 1; it must be"},
    {0, "\"dynamic\": false", "\"dynamic\": true", "dynamic is true; only false is supported"},
    {0, "\"strategy\": \"channel\"", "\"strategy\": \"tensor\"",
     "weights.strategy is \"tensor\"; supported are"},
    {0, "\"strategy\": \"channel\", \"group_size\": null", "\"x\": null",
     "weights.strategy is missing"},
    {0, "\"strategy\": \"channel\", \"group_size\": null",
     "\"strategy\": \"group\", \"group_size\": 128", "weights of 8 bits must have"},
    {0, "\"group_size\": null", "\"group_size\": 128", "group_size is 128; only weights of"},
    {0, "\"group_size\": null", "\"group_size\": \"all\"", "group_size is \"all\"; it must be"},
    {0, "\"ignore\": [", "\"ignore\": [\"re:model.layers.[0-2].*\", ",
     "ignore is \"re:model.layers.[0-2].*\"; patterns may hold"},
    {0, "\"ignore\": [", "\"ignore\": [\"re:layers.\\\\d\", ", "patterns may hold"},
    {0, "\"ignore\": [", "\"ignore\": [7, ", "ignore is 7; it must be a list of names"},
    {0, "\"ignore\": [\"lm_head\", \"re:.*mlp.gate$\"]", "\"ignore\": \"lm_head\"",
     "ignore is \"lm_head\"; it must be a list"},
    {1, "\"dynamic\"", "\"static\"", "activation_scheme is \"static\"; only \"dynamic\""},
    {2, "\"dynamic\"", "\"static\"", "activation_scheme is \"static\"; only \"dynamic\""},
    {2, "[128, 128]", "[64, 64]", "weight_block_size is an array; only [128, 128]"},
    {2, "\"weight_block_size\": [128, 128]", "\"x\": 0", "weight_block_size is missing"},
    {3, "[128, 128]", "[1, 128]", "block_structure is an array; only [128, 128]"},
    {3, "[128, 128]", "null", "block_structure is missing; only [128, 128]"},
    {4, "\"num_bits\": 4", "\"num_bits\": 8",
     "num_bits is 8; only 4 is supported in format \"pack-quantized\""},
    {4, "\"symmetric\": true", "\"symmetric\": false", "weights with a zero point must be"},
    {4, "\"actorder\": null", "\"actorder\": \"group\"", "actorder is \"group\"; columns that"},
    {4, "\"actorder\": null", "\"actorder\": true", "actorder is true; columns that"},
    {4, "\"group_size\": 128", "\"group_size\": 64", "group_size is 64; supported are 32 and 128"},
    {4, "\"group_size\": 128", "\"group_size\": 0", "group_size is 0; supported are"},
    {4, "\"strategy\": \"group\", \"group_size\": 128", "\"strategy\": \"channel\"",
     "weights of 4 bits must have \"group\""},
    {4, "\"type\": \"int\"", "\"type\": \"float\"", "type is \"float\"; only \"int\""},
};

static void test_configs_that_are_refused(void **state) {
    (void)state;
    for (size_t i = 0; i < sizeof bad_configs / sizeof bad_configs[0]; i++) {
        dsi_config c;
        dsi_error error;
        dsi_status status =
            load_changed(bad_configs[i].form, bad_configs[i].from, bad_configs[i].to, &c, &error);
        if (status != DSI_E_UNSUPPORTED && status != DSI_E_MODEL)
            fail_msg("%s -> %s: %d %s", bad_configs[i].from, bad_configs[i].to, status, error.text);
        assert_refused(status, &error, status, "/config.json: ", bad_configs[i].reason);
        assert_null(c.quantization.ignored);
    }
}

/* Patterns could keep an open busy: their sum is limited. */
static void test_long_patterns(void **state) {
    (void)state;
    char list[4096] = "\"ignore\": [";
    dsi_config c;
    dsi_error error;
    for (int i = 0; i < 4; i++) {
        strcat(list, "\"re:");
        for (int j = 0; j < 100; j++) strcat(list, "..");
        strcat(list, "\", ");
    }
    assert_ok(load_changed(0, "\"ignore\": [", list, &c, &error), &error);
    assert_int_equal(c.quantization.n_ignored, 6);
    dsi_config_free(&c);
    strcat(list, "\"re:");
    for (int j = 0; j < 100; j++) strcat(list, "..");
    strcat(list, "\", ");
    assert_refused(load_changed(0, "\"ignore\": [", list, &c, &error), &error, DSI_E_UNSUPPORTED,
                   "/config.json", "patterns are longer than 1024 bytes");
}

/* ---- What the files may hold ---------------------------------------------------------------- */

/* One more tensor of eight bytes behind the last one. */
static void add_tensor(const char *name) {
    bytes file = read_file(folder, "model.safetensors");
    uint64_t n = 0;
    memcpy(&n, file.data, 8);
    uint64_t n_data = file.n - 8 - n;
    char *header = strndup(file.data + 8, n), *end = strrchr(header, '}'), entry[512];
    assert_non_null(end);
    *end = 0;
    snprintf(entry, sizeof entry,
             ",\"%s\":{\"dtype\":\"I64\",\"shape\":[1],\"data_offsets\":[%" PRIu64 ",%" PRIu64
             "]}}",
             name, n_data, n_data + 8);
    size_t n_header = strlen(header) + strlen(entry);
    char *whole = calloc(8 + n_header + n_data + 8, 1);
    assert_non_null(whole);
    memcpy(whole, &n_header, 8);
    memcpy(whole + 8, header, strlen(header));
    memcpy(whole + 8 + strlen(header), entry, strlen(entry));
    memcpy(whole + 8 + n_header, file.data + 8 + n, n_data);
    write_file(folder, "model.safetensors", whole, 8 + n_header + n_data + 8);
    free(whole);
    free(header);
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

#define O "model.layers.1.self_attn.o_proj."
static void test_tensors_that_are_refused(void **state) {
    (void)state;
    static const struct {
        int form;
        const char *from, *to; /* in the header; from NULL: a tensor of this name is added */
        dsi_status status;
        const char *reason;
    } bad[] = {
        {0, O "weight_scale\"", O "weight_scale_inv\"", DSI_E_MODEL,
         "\"" O "weight_scale\" is missing"},
        {2, O "weight_scale_inv\"", O "weight_scale\"", DSI_E_MODEL,
         "\"" O "weight_scale_inv\" is missing"},
        {0, O "weight_scale\":{\"dtype\":\"BF16\"", O "weight_scale\":{\"dtype\":\"I16\"",
         DSI_E_UNSUPPORTED, "is I16; scales must be F32, BF16 or F16"},
        {0, O "weight_scale\":{\"dtype\":\"BF16\",\"shape\":[192,1]",
         O "weight_scale\":{\"dtype\":\"BF16\",\"shape\":[1,192]", DSI_E_MODEL,
         "has shape [1, 192], config.json makes it [192, 1]"},
        {4, O "weight_scale\":{\"dtype\":\"BF16\",\"shape\":[192,1]",
         O "weight_scale\":{\"dtype\":\"BF16\",\"shape\":[192]", DSI_E_MODEL,
         "has shape [192], config.json makes it [192, 1]"},
        {0, O "weight\":{\"dtype\":\"I8\"", O "weight\":{\"dtype\":\"U8\"", DSI_E_UNSUPPORTED,
         "is U8; this weight must be BF16, F16, F32, F8_E4M3 or I8"},
        {0, O "weight\":{\"dtype\":\"I8\"", O "weight\":{\"dtype\":\"F8_E4M3\"", DSI_E_MODEL,
         "is F8_E4M3, but config.json has no quantization_config that says so"},
        {0, "mlp.gate.weight\":{\"dtype\":\"BF16\",\"shape\":[12,192]",
         "mlp.gate.weight\":{\"dtype\":\"I8\",\"shape\":[24,192]", DSI_E_UNSUPPORTED,
         "is I8; this weight must be BF16, F16 or F32"},
        {4, O "weight_packed\":{\"dtype\":\"I32\"", O "weight_packed\":{\"dtype\":\"F32\"",
         DSI_E_UNSUPPORTED, "is F32; packed weights must be I32"},
        {4, O "weight_packed\":{\"dtype\":\"I32\",\"shape\":[192,16]",
         O "weight_packed\":{\"dtype\":\"I32\",\"shape\":[96,32]", DSI_E_MODEL,
         "has shape [96, 32], config.json makes it [192, 16]"},
        {4, O "weight_shape\":{\"dtype\":\"I64\"", O "weight_shape\":{\"dtype\":\"F64\"",
         DSI_E_MODEL, "is F64 of 1 dimension(s); it must be two I64"},
        {4, O "weight_shape\":{\"dtype\":\"I64\",\"shape\":[2]",
         O "weight_shape\":{\"dtype\":\"I64\",\"shape\":[2,1]", DSI_E_MODEL,
         "of 2 dimension(s); it must be two I64"},
        {4, O "weight_shape\"", O "weight_form\"", DSI_E_MODEL, "weight_shape\" is missing"},
        {4, O "weight_packed\"", O "weight\"", DSI_E_UNSUPPORTED, "is I32; this weight must be"},
        {4, NULL, O "weight_zero_point", DSI_E_UNSUPPORTED,
         "weights with a zero point are not supported; quantise symmetrically"},
        {0, NULL, O "weight_zero_point", DSI_E_UNSUPPORTED, "weights with a zero point"},
        {4, NULL, O "weight_g_idx", DSI_E_UNSUPPORTED, "columns out of order are not supported"},
        {0, NULL, O "input_scale", DSI_E_UNSUPPORTED, "activations with scales in the file"},
        {4, NULL, O "weight", DSI_E_MODEL, "\"" O "weight\" has no place"},
        {0, NULL, O "weight_packed", DSI_E_MODEL,
         "holds packed weights, but config.json has no quantization_config that says so"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        quantize_checkpoint(GOLDEN "v3-bf16", &integer_forms[bad[i].form], folder, 0, NULL);
        if (bad[i].from)
            write_changed_header(folder, folder, bad[i].from, bad[i].to);
        else
            add_tensor(bad[i].to);
        check_refused(bad[i].status, "/model.safetensors", bad[i].reason);
    }
}

static void test_files_and_config_disagree(void **state) {
    (void)state;
    dsi_config c;
    dsi_error error;
    quantize_checkpoint(GOLDEN "v3-bf16", &integer_forms[FORM_INT8_CHANNEL], folder, 0, NULL);
    write_config(GOLDEN "v3-bf16", folder, NULL);
    check_refused(DSI_E_MODEL, "/model.safetensors", "is I8, but config.json has no");
    write_config(GOLDEN "v3-bf16", folder, integer_forms[FORM_INT8_BLOCK].config);
    check_refused(DSI_E_MODEL, "/model.safetensors", "weight_scale_inv\" is missing");
    write_config(GOLDEN "v3-bf16", folder, integer_forms[3].config); /* blocks, not channels */
    check_refused(DSI_E_MODEL, "/model.safetensors", "config.json makes it [1, 2]");
    assert_ok(load_changed(0, "\"lm_head\", ", "\"" O "\", \"model.layers.1.self_attn.o_proj\", ",
                           &c, &error),
              &error);
    dsi_config_free(&c);
    check_refused(DSI_E_MODEL, "/model.safetensors",
                  "is quantised, but quantization_config.ignore");
    assert_ok(load_changed(0, "\"lm_head\", ", "\"re:.*experts.11.*\", ", &c, &error), &error);
    dsi_config_free(&c);
    check_refused(DSI_E_MODEL, "/model.safetensors",
                  "\"model.layers.1.mlp.experts.11.gate_proj\" is quantised, but "
                  "quantization_config.ignore in config.json has \"re:.*experts.11.*\"");
    quantize_checkpoint(GOLDEN "v3-bf16", &integer_forms[FORM_INT4_G128], folder, 0, NULL);
    write_config(GOLDEN "v3-bf16", folder, integer_forms[FORM_INT4_G32].config);
    check_refused(DSI_E_MODEL, "/model.safetensors",
                  "weight_scale\" has shape [128, 2], "
                  "config.json makes it [128, 6]");
}

/* The stated shape of a packed weight is believed in no direction. */
static void test_packed_shape_that_lies(void **state) {
    (void)state;
    quantize_checkpoint(GOLDEN "v3-bf16", &integer_forms[FORM_INT4_G32], folder, 0, NULL);
    model m;
    dsi_error error;
    assert_ok(open_model(folder, &m, &error), &error);
    const dsi_file_tensor *t = dsi_checkpoint_find(&m.checkpoint, O "weight_shape");
    assert_non_null(t);
    uint64_t at = t->file_offset;
    close_model(&m);
    bytes file = read_file(folder, "model.safetensors");
    file.data[at + 15] = -1; /* a negative second number */
    write_file(folder, "model.safetensors", file.data, file.n);
    free(file.data);
    check_refused(DSI_E_MODEL, "/model.safetensors", "config.json makes it [192, 128]");
}

/* A matrix that the quantiser left plain is read as it is stored. */
static void test_plain_beside_quantised(void **state) {
    (void)state;
    model m;
    dsi_error error;
    link_file(GOLDEN "v3-bf16", folder, "model.safetensors");
    for (int i = 0; i < N_INTEGER_FORMS; i++) {
        write_config(GOLDEN "v3-bf16", folder, integer_forms[i].config);
        assert_ok(open_model(folder, &m, &error), &error);
        assert_int_equal(m.weights.layers[1].o_proj.dtype, DSI_DTYPE_BF16);
        close_model(&m);
    }
}

#define ONE(test) cmocka_unit_test_setup_teardown(test, setup, teardown)
int main(void) {
    const struct CMUnitTest tests[] = {
        ONE(test_ignore_patterns),
        ONE(test_configs_that_load),
        ONE(test_configs_that_are_refused),
        ONE(test_long_patterns),
        ONE(test_tensors_that_are_refused),
        ONE(test_files_and_config_disagree),
        ONE(test_packed_shape_that_lies),
        ONE(test_plain_beside_quantised),
        ONE(test_places),
        ONE(test_sizes),
    };
    return cmocka_run_group_tests_name("quantized", tests, NULL, NULL);
}
