/* test_config.c: config.json and generation_config.json: both styles of keys, every limit and every
 * contradiction; rope frequencies and the softmax scale against numbers computed elsewhere. */
#include "model_files.h"
#include <math.h>

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

/* Loads golden/config.json after one replacement, keys joined to one line ("key": value, ...). */
static dsi_status load_changed(const char *golden, const char *from, const char *to, dsi_config *c,
                               dsi_error *error) {
    bytes file = read_file(golden, "config.json");
    size_t n = 0;
    for (size_t i = 0; i < file.n; i++)
        if (file.data[i] != '\n' && !(file.data[i] == ' ' && n > 0 && file.data[n - 1] == ' '))
            file.data[n++] = file.data[i];
    file.data[n] = 0;
    char *text = replaced(file.data, from, to);
    write_text(folder, "config.json", text);
    free(text);
    free(file.data);
    *error = (dsi_error){0};
    return dsi_config_load(folder, c, error);
}

/* ---- What is refused ------------------------------------------------------------------------ */

typedef struct bad_config {
    const char *test, *golden, *from, *to;
    dsi_status status;
    const char *reason;
} bad_config;
#define V3 GOLDEN "v3-fp8"
#define YARN GOLDEN "v3-yarn"
#define V2 GOLDEN "v2"
#define QWEN GOLDEN "qwen2"
#define LLAMA GOLDEN "llama"
#define NUMBER(test, golden, key, is, to, limits)                                                  \
    {                                                                                              \
        test, golden, "\"" key "\": " is ",", "\"" key "\": " to ",", DSI_E_MODEL,                 \
            key " is " to limits                                                                   \
    }
#define MISSING(test, golden, key, is)                                                             \
    { test, golden, "\"" key "\": " is ",", "", DSI_E_MODEL, key " is missing; it must be" }
#define UNSUPPORTED DSI_E_UNSUPPORTED

static const bad_config bad_configs[] = {
    {"model_type_missing", V3, "\"model_type\": \"deepseek_v3\",", "", UNSUPPORTED,
     "model_type is missing; it must name the model family; supported are deepseek_v2, "
     "deepseek_v3"},
    {"model_type_unknown", V3, "\"deepseek_v3\"", "\"gpt2\"", UNSUPPORTED,
     "\"gpt2\"; supported are deepseek_v2, deepseek_v3, deepseek_v32, llama, qwen2"},
    {"model_type_v4", V3, "\"deepseek_v3\"", "\"deepseek_v4\"", UNSUPPORTED, "DeepSeek-V4 has"},
    {"architectures_other", V3, "DeepseekV3ForCausalLM", "LlamaForCausalLM", UNSUPPORTED,
     "architectures is \"LlamaForCausalLM\"; of model_type deepseek_v3 only"},
    {"architectures_text", V3, "[ \"DeepseekV3ForCausalLM\" ]", "\"DeepseekV3ForCausalLM\"",
     UNSUPPORTED, "architectures is"},

    MISSING("hidden_size_missing", V3, "hidden_size", "192"),
    NUMBER("hidden_size_0", V3, "hidden_size", "192", "0", "; it must be a whole number from 1 to"),
    NUMBER("hidden_size_limit", V3, "hidden_size", "192", "65537",
           "; it must be a whole number"
           " from 1 to 65536"),
    NUMBER("hidden_size_negative", V3, "hidden_size", "192", "-1", "; it must be"),
    NUMBER("hidden_size_float", V3, "hidden_size", "192", "192.0", "; it must be"),
    NUMBER("hidden_size_huge", V3, "hidden_size", "192", "18446744073709551808", "; it must be"),
    NUMBER("hidden_size_text", V3, "hidden_size", "192", "\"192\"", "; it must be"),
    NUMBER("hidden_size_null", V3, "hidden_size", "192", "null", "; it must be"),
    NUMBER("layers_limit", V3, "num_hidden_layers", "3", "257",
           "; it must be a whole number from "
           "1 to 256"),
    NUMBER("vocab_limit", V3, "vocab_size", "512", "1048577",
           "; it must be a whole number from 1 "
           "to 1048576"),
    NUMBER("heads_limit", V3, "num_attention_heads", "4", "1025",
           "; it must be a whole number "
           "from 1 to 1024"),
    NUMBER("experts_limit", V3, "n_routed_experts", "12", "1025",
           "; it must be a whole number "
           "from 0 to 1024, or null"),
    NUMBER("intermediate_limit", V3, "intermediate_size", "320", "1048577", "; it must be"),
    NUMBER("context_limit", V3, "max_position_embeddings", "512", "16777217", "; it must be"),
    MISSING("q_lora_rank_missing", V3, "q_lora_rank", "128"),
    MISSING("kv_lora_rank_missing", V3, "kv_lora_rank", "128"),
    MISSING("experts_missing", V3, "n_routed_experts", "12"),
    MISSING("moe_intermediate_missing", V3, "moe_intermediate_size", "80"),
    NUMBER("shared_limit", V3, "n_shared_experts", "1", "65", "; it must be"),
    NUMBER("rms_norm_eps_0", V3, "rms_norm_eps", "1e-06", "0", "; it must be a number from 1e-30"),
    NUMBER("scale_infinite", V3, "routed_scaling_factor", "2.5", "1e999", "; it must be a number"),
    NUMBER("scale_negative", V3, "routed_scaling_factor", "2.5", "-1", "; it must be a number"),
    NUMBER("bool_number", V3, "norm_topk_prob", "true", "1", "; it must be true or false"),

    NUMBER("mla_kv_heads", V3, "num_key_value_heads", "4", "2", "; MLA has as many"),
    NUMBER("odd_rope_dim", V3, "qk_rope_head_dim", "32", "31", "; rope turns pairs"),
    NUMBER("qk_head_dim", V3, "qk_head_dim", "64", "96",
           "; qk_nope_head_dim + qk_rope_head_dim is"
           " 64"),
    NUMBER("gqa_kv_heads", LLAMA, "num_key_value_heads", "3", "4",
           "; it must divide "
           "num_attention_heads, 6"),
    NUMBER("gqa_odd_head_dim", LLAMA, "head_dim", "16", "15", "; the heads have 15, which must be"),
    NUMBER("gqa_head_dim_limit", LLAMA, "head_dim", "16", "1026", "; it must be"),
    {"gqa_hidden_not_divisible", QWEN, "\"hidden_size\": 96", "\"hidden_size\": 94", DSI_E_MODEL,
     "head_dim is missing; hidden_size 94 is no multiple of num_attention_heads 6"},
    NUMBER("groups_do_not_divide", V3, "n_group", "4", "5", "; it must divide n_routed_experts"),
    NUMBER("topk_group", V3, "topk_group", "2", "5", "; it must be at most n_group, 4"),
    NUMBER("top_k_unreachable", V3, "num_experts_per_tok", "4", "7", "; a token can reach 6"),
    NUMBER("top_k_0", V3, "num_experts_per_tok", "4", "0", "; it must be"),
    NUMBER("groups_of_one", V3, "n_group", "4", "12", "; noaux_tc ranks a group by its two best"),
    NUMBER("dense_layers", V3, "first_k_dense_replace", "1", "4", "; num_hidden_layers is 3"),
    {"topk_method", V3, "noaux_tc", "lottery", UNSUPPORTED,
     "topk_method is \"lottery\"; supported are greedy, group_limited_greedy, noaux_tc"},
    {"scoring_func", V3, "sigmoid", "sqrtsoftplus", UNSUPPORTED,
     "scoring_func is \"sqrtsoftplus\"; supported are softmax, sigmoid"},
    {"softmax_renormalised", V2, "\"norm_topk_prob\": false", "\"norm_topk_prob\": true",
     UNSUPPORTED, "norm_topk_prob is true; with scoring_func softmax"},
    {"hidden_act", V3, "silu", "gelu", UNSUPPORTED, "hidden_act is \"gelu\"; only \"silu\""},
    {"attention_bias", V3, "\"attention_bias\": false", "\"attention_bias\": true", UNSUPPORTED,
     "attention_bias is true"},
    {"mlp_bias", LLAMA, "\"mlp_bias\": false", "\"mlp_bias\": true", UNSUPPORTED,
     "mlp_bias is true"},
    {"rope_half_split", V3, "\"rope_interleave\": true", "\"rope_interleave\": false", UNSUPPORTED,
     "rope_interleave is false"},
    {"sliding_window_used", QWEN, "\"use_sliding_window\": false", "\"use_sliding_window\": true",
     UNSUPPORTED, "use_sliding_window is true"},
    {"sliding_window", LLAMA, "\"mlp_bias\": false", "\"sliding_window\": 4096", UNSUPPORTED,
     "sliding_window is 4096"},
    {"layer_types_kind", QWEN, "\"full_attention\"", "\"sliding_attention\"", UNSUPPORTED,
     "layer_types is \"sliding_attention\""},
    {"layer_types_count", QWEN, "\"full_attention\",", "", DSI_E_MODEL, "layer_types is an array"},

    {"quant_method", V3, "\"quant_method\": \"fp8\"", "\"quant_method\": \"awq\"", UNSUPPORTED,
     "quant_method is \"awq\"; supported are \"fp8\""},
    {"quant_fmt", V3, "e4m3", "e5m2", UNSUPPORTED, "fmt is \"e5m2\""},
    {"quant_static", V3, "dynamic", "static", UNSUPPORTED, "activation_scheme is \"static\""},
    {"quant_block", V3, "[ 128, 128 ]", "[32, 32]", UNSUPPORTED, "only [128, 128]"},
    {"quant_block_missing", V3, "\"weight_block_size\": [ 128, 128 ]", "\"x\": 0", UNSUPPORTED,
     "weight_block_size is missing"},
    {"quant_text", V3, "\"quantization_config\": {", "\"quantization_config\": 7, \"x\": {",
     UNSUPPORTED, "quant_method is missing"},
    {"compression_config", V3, "\"use_cache\": true", "\"compression_config\": {}", DSI_E_MODEL,
     "compression_config is an object; quantization_config is there too"},

    {"rope_type_unknown", YARN, "\"rope_type\": \"yarn\"", "\"rope_type\": \"longrope\"",
     UNSUPPORTED, "rope_type is \"longrope\"; supported are default, yarn and llama3"},
    {"rope_type_missing", YARN, "\"rope_type\": \"yarn\", \"type\": \"yarn\"", "\"x\": 0",
     UNSUPPORTED, "rope_type is missing"},
    {"rope_type_twice", YARN, "\"type\": \"yarn\"", "\"type\": \"linear\"", DSI_E_MODEL,
     "type is \"linear\"; rope_type says yarn"},
    {"rope_text", YARN, "\"rope_parameters\": {", "\"rope_parameters\": 3, \"x\": {", DSI_E_MODEL,
     "rope_parameters is 3; it must be an object or null"},
    MISSING("yarn_factor_missing", YARN, "factor", "8.0"),
    NUMBER("yarn_factor", YARN, "factor", "8.0", "0.5", "; it must be a number from 1 to 1e+06"),
    NUMBER("yarn_beta", YARN, "beta_fast", "32", "1", "; it must be above beta_slow, 1"),
    MISSING("yarn_original_missing", YARN, "original_max_position_embeddings", "64"),
    NUMBER("theta_1", YARN, "rope_theta", "10000.0", "1", "; it must be a number from 2"),
    MISSING("theta_missing", YARN, "rope_theta", "10000.0"),
    {"yarn_unrounded", YARN, "\"factor\"", "\"truncate\": false, \"factor\"", UNSUPPORTED,
     "truncate is false"},
    NUMBER("llama3_bounds", LLAMA, "high_freq_factor", "4.0", "1.0",
           "; it must be above "
           "low_freq_factor, 1"),
    MISSING("llama3_missing", LLAMA, "low_freq_factor", "1.0"),
    {"theta_twice", YARN, "\"use_cache\": true", "\"rope_theta\": 5000", DSI_E_MODEL,
     "rope_theta is 5000; rope_parameters says 10000"},
    {"rope_twice", YARN, "\"use_cache\": true",
     "\"rope_scaling\": {\"type\": \"yarn\", \"factor\": 4, \"original_max_position_embeddings\": "
     "64}",
     DSI_E_MODEL, "rope_scaling is an object; rope_parameters differs"},
    {"partial_rotary", LLAMA, "\"use_cache\": true", "\"partial_rotary_factor\": 0.5", UNSUPPORTED,
     "partial_rotary_factor is 0.5"},

    NUMBER("eos_outside", V3, "eos_token_id", "1", "512",
           "; it must be a token id below vocab_size,"
           " 512"),
    {"eos_negative", V3, "\"eos_token_id\": 1", "\"eos_token_id\": [0, -1]", DSI_E_MODEL,
     "eos_token_id is -1; it must be"},
    {"eos_many", V3, "\"eos_token_id\": 1", "\"eos_token_id\": [0,1,2,3,4,5,6,7,8]", DSI_E_MODEL,
     "at most 8 end tokens"},
    NUMBER("bos_outside", V3, "bos_token_id", "0", "512", "; it must be a token id"),
};

static void test_bad_config(void **state) {
    const bad_config *bad = *state;
    dsi_config c;
    dsi_error error;
    temp_folder(folder);
    dsi_status status = load_changed(bad->golden, bad->from, bad->to, &c, &error);
    assert_refused(status, &error, bad->status, "/config.json: ", bad->reason);
    remove_folder(folder);
}

static void test_bad_files(void **state) {
    (void)state;
    dsi_config c;
    dsi_error error = {0};
    assert_refused(dsi_config_load(folder, &c, &error), &error, DSI_E_IO, "/config.json",
                   "no such file");
    write_text(folder, "config.json", "[1]");
    assert_refused(dsi_config_load(folder, &c, &error), &error, DSI_E_FORMAT, "/config.json",
                   "is no JSON object");
    write_text(folder, "config.json", "{\"a\": 1, \"a\": 2}");
    assert_refused(dsi_config_load(folder, &c, &error), &error, DSI_E_FORMAT, "/config.json",
                   "JSON line 1");
    char *large = calloc((4 << 20) + 2, 1);
    assert_non_null(large);
    memset(large, ' ', (4 << 20) + 1);
    write_text(folder, "config.json", large);
    free(large);
    assert_refused(dsi_config_load(folder, &c, &error), &error, DSI_E_FORMAT, "/config.json",
                   "the limit is 4194304");
    assert_int_equal(dsi_config_load(folder, &c, NULL), DSI_E_FORMAT);
}

/* ---- What is read --------------------------------------------------------------------------- */

static void test_all_configs_of_the_tree_load(void **state) {
    (void)state;
    static const char *const folders[] = {GOLDEN "llama",   GOLDEN "qwen2",
                                          GOLDEN "v2",      GOLDEN "v2-lite",
                                          GOLDEN "v3-bf16", GOLDEN "v3-fp8",
                                          GOLDEN "v3-odd",  GOLDEN "v3-yarn",
                                          GOLDEN "v32",     "examples/models/tiny-gov"};
    for (size_t i = 0; i < sizeof folders / sizeof *folders; i++) {
        dsi_config c;
        dsi_error error = {0};
        assert_ok(dsi_config_load(folders[i], &c, &error), &error);
        assert_non_null(strstr(dsi_arch_names(), c.arch->model_type));
        assert_int_equal(c.router == DSI_ROUTER_NONE, c.n_routed_experts == 0);
    }
}

static void test_v3_values(void **state) {
    (void)state;
    dsi_config c;
    dsi_error error = {0};
    assert_ok(dsi_config_load(V3, &c, &error), &error);
    assert_string_equal(c.arch->model_type, "deepseek_v3");
    assert_int_equal(c.hidden_size, 192);
    assert_int_equal(c.n_layers, 3);
    assert_int_equal(c.q_lora_rank, 128);
    assert_int_equal(c.n_routed_experts, 12);
    assert_int_equal(c.n_experts_per_token, 4);
    assert_int_equal(c.first_k_dense, 1);
    assert_int_equal(c.moe_layer_freq, 1);
    assert_int_equal(c.router, DSI_ROUTER_NOAUX_TC);
    assert_int_equal(c.scoring, DSI_SCORING_SIGMOID);
    assert_true(c.norm_topk_prob && !c.tie_word_embeddings && !c.attention_bias);
    assert_int_equal(c.quantization.dtype, DSI_DTYPE_E4M3);
    assert_near(c.routed_scaling_factor, 2.5, 0);
    assert_near(c.rms_norm_eps, 1e-6, 0);
    assert_int_equal(c.bos_token, 0);
    assert_int_equal(c.n_eos_tokens, 1);
    assert_int_equal(c.eos_tokens[0], 1);
    assert_int_equal(c.eos_tokens[1], -1);
    assert_int_equal(c.rope.kind, DSI_ROPE_DEFAULT);
    assert_near(c.rope.theta, 10000, 0);
}

static void test_defaults_of_the_rows(void **state) {
    (void)state;
    dsi_config c;
    dsi_error error;
    assert_ok(load_changed(V3, ", \"topk_method\": \"noaux_tc\"", "", &c, &error), &error);
    assert_int_equal(c.router, DSI_ROUTER_NOAUX_TC);
    assert_ok(load_changed(V3, "\"scoring_func\": \"sigmoid\",", "", &c, &error), &error);
    assert_int_equal(c.scoring, DSI_SCORING_SIGMOID);
    assert_ok(load_changed(V3, "\"norm_topk_prob\": true,", "", &c, &error), &error);
    assert_true(c.norm_topk_prob);
    assert_ok(load_changed(V2, "\"topk_method\": \"group_limited_greedy\",", "", &c, &error),
              &error);
    assert_int_equal(c.router, DSI_ROUTER_GREEDY);
    assert_ok(load_changed(V2, ", \"scoring_func\": \"softmax\"", "", &c, &error), &error);
    assert_int_equal(c.router, DSI_ROUTER_GROUP_LIMITED);
    assert_int_equal(c.scoring, DSI_SCORING_SOFTMAX);
    assert_ok(load_changed(V2, "\"norm_topk_prob\": false,", "", &c, &error), &error);
    assert_false(c.norm_topk_prob);
    assert_ok(load_changed(V2, "\"num_key_value_heads\": 4,", "", &c, &error), &error);
    assert_int_equal(c.n_kv_heads, 4);
    assert_ok(
        load_changed(V3, "\"n_routed_experts\": 12", "\"n_routed_experts\": null", &c, &error),
        &error);
    assert_int_equal(c.router, DSI_ROUTER_NONE);
    assert_ok(load_changed(V3, "e4m3\"", "e4m3\", \"scale_fmt\": \"ue8m0\"", &c, &error), &error);
    assert_int_equal(c.quantization.dtype, DSI_DTYPE_E4M3);
    assert_ok(dsi_config_load(GOLDEN "v2-lite", &c, &error), &error);
    assert_int_equal(c.q_lora_rank, 0);
    assert_int_equal(c.router, DSI_ROUTER_GREEDY);
    assert_ok(dsi_config_load(QWEN, &c, &error), &error);
    assert_int_equal(c.head_dim, 16);
    assert_true(c.tie_word_embeddings && c.attention_bias);
    assert_int_equal(c.bos_token, -1);
    assert_int_equal(c.n_eos_tokens, 0);
    /* R1-Distill states a window that is not used. */
    assert_ok(
        load_changed(QWEN, "\"sliding_window\": null", "\"sliding_window\": 131072", &c, &error),
        &error);
}

/* The same rope in the old style, in the new style, and in both. */
static void test_old_and_new_rope_keys(void **state) {
    (void)state;
    static const char old[] =
        "\"rope_theta\": 10000, \"torch_dtype\": \"float32\", \"rope_scaling\": "
        "{ \"beta_fast\": 32,";
    dsi_config fresh, c;
    dsi_error error;
    assert_ok(dsi_config_load(YARN, &fresh, &error), &error);
    assert_int_equal(fresh.rope.kind, DSI_ROPE_YARN);
    assert_near(fresh.rope.factor, 8, 0);
    assert_near(fresh.rope.mscale_all_dim, 1, 0);
    assert_ok(load_changed(YARN, "\"rope_parameters\": { \"beta_fast\": 32,", old, &c, &error),
              &error);
    assert_memory_equal(&c.rope, &fresh.rope, sizeof c.rope);
    assert_ok(load_changed(YARN, "\"use_cache\": true",
                           "\"rope_theta\": 10000.0, \"rope_scaling\": {\"type\": \"yarn\", "
                           "\"factor\": 8, \"original_max_position_embeddings\": 64, \"mscale\": 1,"
                           " \"mscale_all_dim\": 1}",
                           &c, &error),
              &error);
    assert_memory_equal(&c.rope, &fresh.rope, sizeof c.rope);
    assert_ok(
        load_changed(V3,
                     "\"rope_parameters\": { \"rope_theta\": 10000.0, \"rope_type\": \"default\" }",
                     "\"rope_scaling\": null", &c, &error),
        &error);
    assert_int_equal(c.rope.kind, DSI_ROPE_DEFAULT);
    assert_near(c.rope.theta, 10000, 0);
    assert_ok(dsi_config_load("examples/models/tiny-gov", &c, &error), &error);
    assert_int_equal(c.rope.kind, DSI_ROPE_YARN);
    assert_near(c.rope.original_max_position, 512, 0);
    assert_int_equal(c.n_mtp_layers, 1);
}

static void test_end_tokens_of_both_files(void **state) {
    (void)state;
    dsi_config c;
    dsi_error error;
    write_text(folder, "generation_config.json", "{\"eos_token_id\": [7, 1, 9], \"top_p\": 0.95}");
    assert_ok(load_changed(V3, "\"eos_token_id\": 1", "\"eos_token_id\": 1", &c, &error), &error);
    assert_int_equal(c.n_eos_tokens, 3);
    assert_int_equal(c.eos_tokens[0], 1);
    assert_int_equal(c.eos_tokens[1], 7);
    assert_int_equal(c.eos_tokens[2], 9);
    write_text(folder, "generation_config.json", "{\"eos_token_id\": 512}");
    assert_refused(dsi_config_load(folder, &c, &error), &error, DSI_E_MODEL,
                   "/generation_config.json", "eos_token_id is 512");
    write_text(folder, "generation_config.json", "{");
    assert_refused(dsi_config_load(folder, &c, &error), &error, DSI_E_FORMAT,
                   "/generation_config.json", "JSON line 1");
}

/* ---- Rope and scale ------------------------------------------------------------------------- */

static dsi_config deepseek(const char *model_type, double mscale) {
    return (dsi_config){.arch = dsi_arch_find(model_type),
                        .qk_nope_head_dim = 128,
                        .qk_rope_head_dim = 64,
                        .rope = {.kind = DSI_ROPE_YARN,
                                 .theta = 10000,
                                 .factor = 40,
                                 .original_max_position = 4096,
                                 .beta_fast = 32,
                                 .beta_slow = 1,
                                 .mscale = mscale,
                                 .mscale_all_dim = mscale}};
}

/* low = 10, high = 23: pairs up to 10 keep their frequency, from 23 on it is divided by 40. */
static void test_yarn_frequencies(void **state) {
    (void)state;
    float f[32];
    dsi_config c = deepseek("deepseek_v3", 1);
    dsi_rope_inv_freq(&c, 64, f);
    for (int i = 0; i < 32; i++) {
        double plain = exp(-2.0 * i / 64 * log(10000)), ramp = (i - 10) / 13.0;
        if (i <= 10) ramp = 0;
        if (i >= 23) ramp = 1;
        double expected = plain * (1 - ramp) + plain / 40 * ramp;
        assert_true(fabs(f[i] - expected) <= 1e-6 * expected);
    }
    assert_true(f[11] < 0.95 * exp(-22.0 / 64 * log(10000)));
    assert_near(dsi_rope_cos_sin_factor(&c), 1, 0);
    c.rope.kind = DSI_ROPE_DEFAULT;
    dsi_rope_inv_freq(&c, 64, f);
    assert_near(f[0], 1, 0);
    assert_near(f[31], pow(10000, -62.0 / 64), 1e-9);
    assert_near(dsi_rope_cos_sin_factor(&c), 1, 0);
}

/* A short trained context puts the low bound below 0 (clamped, as transformers does), and with 6
 * tokens both bounds on 0: a step instead of a ramp. */
static void test_yarn_bounds_are_clamped(void **state) {
    (void)state;
    static const double contexts[] = {8, 6};
    for (int k = 0; k < 2; k++) {
        float f[32];
        dsi_config c = deepseek("deepseek_v3", 1);
        c.rope.original_max_position = contexts[k];
        dsi_rope_inv_freq(&c, 64, f);
        assert_near(f[0], 1, 0);
        for (int i = 1; i < 32; i++) assert_near(f[i], pow(10000, -i / 32.0) / 40, 1e-8);
    }
}

static void test_yarn_cos_sin_factor(void **state) {
    (void)state;
    dsi_config c = deepseek("qwen2", 0);
    assert_near(dsi_rope_cos_sin_factor(&c), 0.1 * log(40) + 1, 1e-12);
    c.rope.mscale = 2;
    assert_near(dsi_rope_cos_sin_factor(&c), 0.1 * log(40) + 1, 1e-12);
    c.rope.mscale_all_dim = 1;
    assert_near(dsi_rope_cos_sin_factor(&c), (0.2 * log(40) + 1) / (0.1 * log(40) + 1), 1e-12);
    c.rope.attention_factor = 1.25;
    assert_near(dsi_rope_cos_sin_factor(&c), 1.25, 0);
    c = deepseek("qwen2", 0);
    c.rope.factor = 1;
    assert_near(dsi_rope_cos_sin_factor(&c), 1, 0);
}

/* Trap 5: m^2 once, in the scale. Trap 13: also where the context is below the trained 4096: the
 * scale and the frequencies do not depend on a length at all. */
static void test_trap_05_13_softmax_scale(void **state) {
    (void)state;
    dsi_config c = deepseek("deepseek_v3", 1);
    assert_near(dsi_softmax_scale(&c), 0.13523378, 5e-9);
    c.max_position = 2048;
    assert_near(dsi_softmax_scale(&c), 0.13523378, 5e-9);
    c = deepseek("deepseek_v2", 0.707);
    assert_near(dsi_softmax_scale(&c), 0.114721, 5e-7);
    c.rope.factor = 1;
    assert_near(dsi_softmax_scale(&c), 1 / sqrt(192), 1e-15);
    c = deepseek("deepseek_v3", 0);
    assert_near(dsi_softmax_scale(&c), 1 / sqrt(192), 1e-15);
    c = deepseek("deepseek_v3", 1);
    c.rope.kind = DSI_ROPE_DEFAULT;
    assert_near(dsi_softmax_scale(&c), 1 / sqrt(192), 1e-15);
    c = deepseek("qwen2", 1);
    c.head_dim = 16;
    assert_near(dsi_softmax_scale(&c), 0.25, 0);
}

/* Llama-3.1: one of its 64 pairs or more in each branch of the formula. */
static void test_llama3_frequencies(void **state) {
    (void)state;
    float f[64];
    dsi_config c = {.arch = dsi_arch_find("llama"),
                    .rope = {.kind = DSI_ROPE_LLAMA3,
                             .theta = 500000,
                             .factor = 8,
                             .original_max_position = 8192,
                             .low_freq_factor = 1,
                             .high_freq_factor = 4}};
    dsi_rope_inv_freq(&c, 128, f);
    const double pi = acos(-1);
    int n_low = 0, n_high = 0, n_medium = 0;
    for (int i = 0; i < 64; i++) {
        double plain = pow(500000, -i / 64.0), wavelength = 2 * pi / plain, expected = plain;
        if (wavelength > 8192) {
            expected = plain / 8;
            n_low++;
        } else if (wavelength < 2048) {
            n_high++;
        } else {
            double smooth = (8192 / wavelength - 1) / 3;
            expected = (1 - smooth) * plain / 8 + smooth * plain;
            n_medium++;
        }
        assert_true(fabs(f[i] - expected) <= 1e-6 * expected);
    }
    assert_true(n_low > 0 && n_high > 0 && n_medium > 0);
    assert_near(dsi_rope_cos_sin_factor(&c), 1, 0);
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
#define COUNT(a) (sizeof(a) / sizeof *(a))

int main(void) {
    static const struct CMUnitTest plain[] = {TEST(test_bad_files),
                                              TEST(test_all_configs_of_the_tree_load),
                                              TEST(test_v3_values),
                                              TEST(test_defaults_of_the_rows),
                                              TEST(test_old_and_new_rope_keys),
                                              TEST(test_end_tokens_of_both_files),
                                              TEST(test_yarn_frequencies),
                                              TEST(test_yarn_bounds_are_clamped),
                                              TEST(test_yarn_cos_sin_factor),
                                              TEST(test_trap_05_13_softmax_scale),
                                              TEST(test_llama3_frequencies)};
    struct CMUnitTest tests[COUNT(plain) + COUNT(bad_configs)];
    size_t n = 0;
    for (size_t i = 0; i < COUNT(bad_configs); i++)
        tests[n++] = (struct CMUnitTest){bad_configs[i].test, test_bad_config, NULL, NULL,
                                         (void *)(uintptr_t)&bad_configs[i]};
    for (size_t i = 0; i < COUNT(plain); i++) tests[n++] = plain[i];
    return _cmocka_run_group_tests("config", tests, n, NULL, NULL);
}
