/* gguf_config.c: the keys of a GGUF file, said in the words of config.json. The text that comes out
 * goes through the same reader as that file, so limits and contradictions have one place, config.c.
 *
 * Keys: llama.cpp's converter (conversion/deepseek.py, llama.py, qwen.py), gguf.md of ggml. */
#include "config.h"
#include "gguf_names.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

typedef struct writer {
    const dsi_checkpoint *checkpoint;
    const dsi_gguf *gguf;
    const char *arch; /* "deepseek2": in front of the keys */
    dsi_gguf_config_text *text;
    size_t n_bytes;
    dsi_error *error;
    dsi_status status;
} writer;

/* ---- Reading keys --------------------------------------------------------------------------- */

static const dsi_gguf_value *find(const writer *w, const char *key) {
    char full[96];
    snprintf(full, sizeof full, "%s.%s", w->arch, key);
    return dsi_gguf_find(w->gguf, full);
}

static void bad_key(writer *w, const char *key, const char *what) {
    if (w->status) return;
    w->status = dsi_fail(w->error, DSI_E_MODEL, "%s: key \"%s.%s\" %s; convert the model again",
                         w->gguf->path, w->arch, key, what);
}

/* A whole number; absent: `fallback`, or an error if that is negative. Per-layer arrays are of
 * models that are not supported. */
static uint64_t number(writer *w, const char *key, int64_t fallback) {
    const dsi_gguf_value *value = find(w, key);
    uint64_t out = fallback < 0 ? 0 : (uint64_t)fallback;
    if (!value && fallback < 0) bad_key(w, key, "is missing");
    if (value && !dsi_gguf_u64(value, &out)) bad_key(w, key, "is no whole number");
    return out;
}

static double real(writer *w, const char *key, double fallback) {
    const dsi_gguf_value *value = find(w, key);
    double out = fallback;
    if (value && (!dsi_gguf_f64(value, &out) || !isfinite(out))) {
        bad_key(w, key, "is no number");
        return fallback;
    }
    return out;
}

static bool has(const writer *w, const char *name) {
    return dsi_checkpoint_find(w->checkpoint, name) != NULL;
}

/* ---- Writing config.json -------------------------------------------------------------------- */

static void put(writer *w, const char *format, ...) __attribute__((format(printf, 2, 3)));
static void put(writer *w, const char *format, ...) {
    va_list list;
    va_start(list, format);
    size_t left = sizeof w->text->text - w->n_bytes;
    int n = vsnprintf(w->text->text + w->n_bytes, left, format, list);
    va_end(list);
    if (n >= 0 && (size_t)n < left) w->n_bytes += (size_t)n;
    /* Every value is a number or a word of this file: they fit, whatever the keys say. */
}
static void put_number(writer *w, const char *name, uint64_t value) {
    put(w, "\"%s\": %" PRIu64 ",\n", name, value);
}
static void put_real(writer *w, const char *name, double value) {
    put(w, "\"%s\": %.17g,\n", name, value);
}

/* GGUF stores f32; config.json means the decimal number that was rounded. */
static double decimal(double value) {
    char text[32];
    snprintf(text, sizeof text, "%.7g", value);
    double rounded = value;
    sscanf(text, "%lf", &rounded);
    return rounded;
}

static void put_common(writer *w) {
    const dsi_file_tensor *embed = dsi_checkpoint_find(w->checkpoint, "model.embed_tokens.weight");
    uint64_t draft = number(w, "nextn_predict_layers", 0), blocks = number(w, "block_count", -1);
    put_number(w, "hidden_size", number(w, "embedding_length", -1));
    put_number(w, "num_hidden_layers", blocks > draft ? blocks - draft : 0);
    if (draft) put_number(w, "num_nextn_predict_layers", draft);
    put_number(w, "vocab_size", number(w, "vocab_size", embed ? embed->shape[0] : -1));
    put_number(w, "intermediate_size", number(w, "feed_forward_length", -1));
    put_number(w, "max_position_embeddings", number(w, "context_length", -1));
    put_number(w, "num_attention_heads", number(w, "attention.head_count", -1));
    put_real(w, "rms_norm_eps", decimal(real(w, "attention.layer_norm_rms_epsilon", 1e-6)));
    put_real(w, "rope_theta", decimal(real(w, "rope.freq_base", 10000)));
    put(w, "\"tie_word_embeddings\": %s,\n", has(w, "lm_head.weight") ? "false" : "true");
    uint64_t token;
    if (dsi_gguf_u64(dsi_gguf_find(w->gguf, "tokenizer.ggml.bos_token_id"), &token))
        put_number(w, "bos_token_id", token);
    if (dsi_gguf_u64(dsi_gguf_find(w->gguf, "tokenizer.ggml.eos_token_id"), &token))
        put_number(w, "eos_token_id", token);
}

static void put_rope_scaling(writer *w, bool mla) {
    const dsi_gguf_value *type = find(w, "rope.scaling.type");
    if (!type || dsi_gguf_text_is(type, "none")) return;
    if (!dsi_gguf_text_is(type, "yarn")) {
        bad_key(w, "rope.scaling.type", "is not \"yarn\" or \"none\", the ones that are supported");
        return;
    }
    put(w, "\"rope_scaling\": {\n\"type\": \"yarn\",\n");
    put_real(w, "factor", decimal(real(w, "rope.scaling.factor", 1)));
    if (find(w, "rope.scaling.yarn_beta_fast"))
        put_real(w, "beta_fast", decimal(real(w, "rope.scaling.yarn_beta_fast", 32)));
    if (find(w, "rope.scaling.yarn_beta_slow"))
        put_real(w, "beta_slow", decimal(real(w, "rope.scaling.yarn_beta_slow", 1)));
    /* llama.cpp keeps one of the two and takes them for equal, as they are in published models. */
    double m = decimal(real(w, "rope.scaling.yarn_log_multiplier", 0)) / 0.1;
    if (mla && m > 0) {
        put_real(w, "mscale", decimal(m));
        put_real(w, "mscale_all_dim", decimal(m));
    }
    put(w, "\"original_max_position_embeddings\": %" PRIu64 "},\n",
        number(w, "rope.scaling.original_context_length", -1));
}

/* Files made before the converter knew expert groups leave them out. All published models of this
 * router and size have eight and keep four; without them other experts would be chosen. */
static void put_groups(writer *w, bool v3, uint64_t n_experts, uint64_t top_k) {
    bool stated = find(w, "expert_group_count") != NULL;
    bool published = v3 && n_experts == 256 && top_k == 8;
    uint64_t groups = number(w, "expert_group_count", published ? 8 : 1);
    put_number(w, "n_group", groups ? groups : 1);
    put_number(w, "topk_group", number(w, "expert_group_used_count", published ? 4 : 1));
    if (!v3) put(w, "\"topk_method\": \"%s\",\n", groups > 1 ? "group_limited_greedy" : "greedy");
    if (published && !stated)
        snprintf(w->text->warning, sizeof w->text->warning,
                 "%s: says nothing of expert groups; 8 groups of which 4 are kept are assumed, as "
                 "in DeepSeek-V3 and R1",
                 w->gguf->path);
}

static void put_experts(writer *w, bool v3) {
    uint64_t n_experts = number(w, "expert_count", 0), top_k = number(w, "expert_used_count", 0);
    if (n_experts == 0) {
        put(w, "\"n_routed_experts\": null,\n");
        return;
    }
    bool norm = v3;
    const dsi_gguf_value *value = find(w, "expert_weights_norm");
    if (value && !dsi_gguf_bool(value, &norm)) bad_key(w, "expert_weights_norm", "is no bool");
    put_number(w, "n_routed_experts", n_experts);
    put_number(w, "n_shared_experts", number(w, "expert_shared_count", 0));
    put_number(w, "num_experts_per_tok", top_k);
    put_number(w, "moe_intermediate_size", number(w, "expert_feed_forward_length", -1));
    put_number(w, "first_k_dense_replace", number(w, "leading_dense_block_count", 0));
    put(w, "\"norm_topk_prob\": %s,\n", norm ? "true" : "false");
    put_real(w, "routed_scaling_factor", decimal(real(w, "expert_weights_scale", 1)));
    put_groups(w, v3, n_experts, top_k);
}

/* Sigmoid scores with a bias for the choice are the router of V3; files without the key are V2. */
static bool is_v3(writer *w) {
    enum { NONE = 0, SOFTMAX = 1, SIGMOID = 2 };
    uint64_t function = number(w, "expert_gating_func", NONE);
    char name[64];
    snprintf(name, sizeof name, "model.layers.%" PRIu64 ".mlp.gate.e_score_correction_bias",
             number(w, "leading_dense_block_count", 0));
    bool bias = has(w, name);
    if (function == SIGMOID || (function == NONE && bias)) return true;
    if (function > SIGMOID || bias)
        bad_key(w, "expert_gating_func",
                "names a router that neither DeepSeek-V2 (1, without bias) nor V3 (2) has");
    return false;
}

static void put_mla(writer *w) {
    bool v3 = is_v3(w), split = find(w, "attention.key_length_mla") != NULL;
    uint64_t rope = number(w, "rope.dimension_count", -1);
    uint64_t key = number(w, split ? "attention.key_length_mla" : "attention.key_length", -1);
    const bool v32 = strcmp(w->arch, "deepseek32") == 0;
    put(w, "\"model_type\": \"deepseek_v%d\",\n", v32 ? 32 : v3 ? 3 : 2);
    put_common(w);
    if (v32) {
        put_number(w, "index_n_heads", number(w, "attention.indexer.head_count", -1));
        put_number(w, "index_head_dim", number(w, "attention.indexer.key_length", -1));
        put_number(w, "index_topk", number(w, "attention.indexer.top_k", -1));
    }
    if (find(w, "attention.q_lora_rank"))
        put_number(w, "q_lora_rank", number(w, "attention.q_lora_rank", -1));
    else
        put(w, "\"q_lora_rank\": null,\n");
    put_number(w, "kv_lora_rank", number(w, "attention.kv_lora_rank", -1));
    put_number(w, "qk_rope_head_dim", rope);
    put_number(w, "qk_nope_head_dim", key > rope ? key - rope : 0);
    put_number(w, "v_head_dim",
               number(w, split ? "attention.value_length_mla" : "attention.value_length", -1));
    put_rope_scaling(w, true);
    put_experts(w, v3);
}

static void put_gqa(writer *w, const char *model_type) {
    put(w, "\"model_type\": \"%s\",\n", model_type);
    put_common(w);
    put_number(
        w, "num_key_value_heads",
        number(w, "attention.head_count_kv", (int64_t)number(w, "attention.head_count", -1)));
    if (find(w, "attention.key_length"))
        put_number(w, "head_dim", number(w, "attention.key_length", -1));
    put_rope_scaling(w, false);
    if (number(w, "expert_count", 0))
        bad_key(w, "expert_count", "says that the model has experts, which is not supported here");
}

dsi_status dsi_gguf_config_text_of(const dsi_checkpoint *checkpoint, dsi_gguf_config_text *text,
                                   dsi_error *error) {
    static const struct {
        const char *gguf, *model_type;
    } archs[] = {{"deepseek2", "deepseek"},
                 {"deepseek32", "deepseek_v32"},
                 {"llama", "llama"},
                 {"qwen2", "qwen2"}};
    writer w = {
        .checkpoint = checkpoint, .gguf = &checkpoint->gguf[0], .text = text, .error = error};
    *text = (dsi_gguf_config_text){0};
    const dsi_gguf_value *arch = dsi_gguf_find(w.gguf, "general.architecture");
    for (size_t i = 0; i < sizeof archs / sizeof archs[0]; i++)
        if (dsi_gguf_text_is(arch, archs[i].gguf)) w.arch = archs[i].gguf;
    const char *name = "";
    uint64_t n_bytes = 0;
    dsi_gguf_text(arch, &name, &n_bytes);
    if (!w.arch)
        return dsi_fail(error, DSI_E_UNSUPPORTED,
                        "%s: general.architecture is \"%.*s\"; supported are deepseek2, "
                        "deepseek32, llama and qwen2",
                        w.gguf->path, n_bytes < 64 ? (int)n_bytes : 64, name);
    put(&w, "{\n");
    if (strncmp(w.arch, "deepseek", 8) == 0)
        put_mla(&w);
    else
        put_gqa(&w, w.arch);
    put(&w, "\"hidden_act\": \"silu\"}\n");
    text->n_bytes = w.n_bytes;
    return w.status;
}
