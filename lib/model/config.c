/* config.c: config.json, checked against a row of arch.c. Each number has its limits in one table;
 * values that contradict each other are refused here, so that no other file has to ask again. */
#include "config.h"
#include "safetensors.h"
#include <math.h>
#include <stdio.h>
#include <string.h>

enum { MAX_CONFIG_BYTES = 4 << 20, MAX_CONFIG_NODES = 1 << 18 };

/* ---- Values --------------------------------------------------------------------------------- */

/* The value as people will look for it in the file. */
static void describe(const dsi_json *json, uint32_t node, char text[96]) {
    static const char *const words[] = {"null", "false", "true", "", "", "an array", "an object"};
    if (node == DSI_JSON_NONE) {
        snprintf(text, 96, "missing");
        return;
    }
    const dsi_json_node *n = &json->nodes[node];
    bool raw = n->kind == DSI_JSON_NUMBER || n->kind == DSI_JSON_STRING;
    const char *quote = n->kind == DSI_JSON_STRING ? "\"" : "";
    if (!raw)
        snprintf(text, 96, "%s", words[n->kind]);
    else
        snprintf(text, 96, "%s%.*s%s", quote, n->n_bytes < 64 ? (int)n->n_bytes : 64,
                 json->text + n->offset, quote);
}

dsi_status dsi_config_bad(const dsi_config_reader *r, dsi_status status, const char *key,
                          uint32_t node, const char *format, ...) {
    char value[96], reason[512];
    va_list list;
    va_start(list, format);
    vsnprintf(reason, sizeof reason, format, list);
    va_end(list);
    describe(r->json, node, value);
    return dsi_fail(r->error, status, "%s: %s is %s; %s", r->path, key, value, reason);
}

uint32_t dsi_config_get(const dsi_config_reader *r, uint32_t parent, const char *key) {
    uint32_t node = dsi_json_get(r->json, parent, key);
    if (node != DSI_JSON_NONE && r->json->nodes[node].kind == DSI_JSON_NULL) return DSI_JSON_NONE;
    return node;
}

dsi_status dsi_config_f64(const dsi_config_reader *r, uint32_t parent, const char *key, double min,
                          double max, double fallback, double *out) {
    uint32_t node = dsi_config_get(r, parent, key);
    double value = fallback;
    bool good = node == DSI_JSON_NONE
                    ? !isnan(fallback)
                    : dsi_json_f64(r->json, node, &value) && value >= min && value <= max;
    if (!good)
        return dsi_config_bad(r, DSI_E_MODEL, key, node, "it must be a number from %g to %g", min,
                              max);
    *out = value;
    return DSI_OK;
}

dsi_status dsi_config_bool(const dsi_config_reader *r, uint32_t parent, const char *key,
                           bool fallback, bool *out) {
    uint32_t node = dsi_config_get(r, parent, key);
    *out = fallback;
    if (node == DSI_JSON_NONE || dsi_json_bool(r->json, node, out)) return DSI_OK;
    return dsi_config_bad(r, DSI_E_MODEL, key, node, "it must be true or false");
}

dsi_status dsi_config_must_be(const dsi_config_reader *r, uint32_t parent, const char *key,
                              const char *text) {
    uint32_t node = dsi_config_get(r, parent, key);
    if (node == DSI_JSON_NONE || dsi_json_string_is(r->json, node, text)) return DSI_OK;
    return dsi_config_bad(r, DSI_E_UNSUPPORTED, key, node, "only \"%s\" is supported", text);
}

/* ---- The table of whole numbers ------------------------------------------------------------- */

enum {
    ALL = 0,
    MLA = 1,
    GQA = 2,
    MOE = 3,
    EXPERTS = 4, /* MOE rows with n_routed_experts > 0 */
    INDEXER = 5
};
/* Instead of a default: the key must be there; it must be there, and null means 0; absent means
 * the number of heads. */
enum { REQUIRED = -1, OR_NULL = -2, N_HEADS = -3 };

typedef struct field {
    const char *key;
    size_t place; /* of a uint32_t in dsi_config */
    uint32_t min, max;
    int32_t when, fallback;
} field;
#define F(key, member, min, max, when, fallback)                                                   \
    { key, offsetof(dsi_config, member), min, max, when, fallback }

static const field fields[] = {
    F("hidden_size", hidden_size, 1, 65536, ALL, REQUIRED),
    F("num_hidden_layers", n_layers, 1, 256, ALL, REQUIRED),
    F("vocab_size", vocab_size, 1, 1 << 20, ALL, REQUIRED),
    F("intermediate_size", intermediate_size, 1, 1 << 20, ALL, REQUIRED),
    F("max_position_embeddings", max_position, 1, 1 << 24, ALL, REQUIRED),
    F("num_attention_heads", n_heads, 1, 1024, ALL, REQUIRED),
    F("num_key_value_heads", n_kv_heads, 1, 1024, ALL, N_HEADS),
    F("head_dim", head_dim, 2, 1024, GQA, 0), /* 0: hidden_size / num_attention_heads */
    F("q_lora_rank", q_lora_rank, 0, 65536, MLA, OR_NULL),
    F("kv_lora_rank", kv_lora_rank, 1, 65536, MLA, REQUIRED),
    F("qk_nope_head_dim", qk_nope_head_dim, 1, 1024, MLA, REQUIRED),
    F("qk_rope_head_dim", qk_rope_head_dim, 2, 1024, MLA, REQUIRED),
    F("v_head_dim", v_head_dim, 1, 1024, MLA, REQUIRED),
    F("index_n_heads", index_n_heads, 1, 1024, INDEXER, REQUIRED),
    F("index_head_dim", index_head_dim, 2, 1024, INDEXER, REQUIRED),
    F("index_topk", index_topk, 1, 1 << 20, INDEXER, REQUIRED),
    F("n_routed_experts", n_routed_experts, 0, 1024, MOE, OR_NULL),
    F("n_shared_experts", n_shared_experts, 0, 64, EXPERTS, OR_NULL),
    F("num_experts_per_tok", n_experts_per_token, 1, 1024, EXPERTS, REQUIRED),
    F("moe_intermediate_size", moe_intermediate_size, 1, 1 << 20, EXPERTS, REQUIRED),
    F("first_k_dense_replace", first_k_dense, 0, 256, EXPERTS, 0),
    F("moe_layer_freq", moe_layer_freq, 1, 256, EXPERTS, 1),
    F("n_group", n_group, 1, 1024, EXPERTS, 1),
    F("topk_group", topk_group, 1, 1024, EXPERTS, 1),
    F("num_nextn_predict_layers", n_mtp_layers, 0, 16, MOE, 0),
};

static bool applies(const field *f, const dsi_config *c) {
    if (f->when == MLA) return c->arch->attention == DSI_ATTENTION_MLA;
    if (f->when == GQA) return c->arch->attention == DSI_ATTENTION_GQA;
    if (f->when == INDEXER) return c->arch->indexer;
    if (f->when == MOE) return c->arch->moe;
    if (f->when == EXPERTS) return c->arch->moe && c->n_routed_experts > 0;
    return true;
}

static dsi_status read_field(const dsi_config_reader *r, const field *f, dsi_config *c) {
    uint32_t node = dsi_json_get(r->json, 0, f->key);
    bool null = node != DSI_JSON_NONE && r->json->nodes[node].kind == DSI_JSON_NULL;
    uint64_t value = 0;
    bool absent = node == DSI_JSON_NONE || null, good = true;
    if (!absent)
        good = dsi_json_u64(r->json, node, &value) && value >= f->min && value <= f->max;
    else if (f->fallback == REQUIRED || (f->fallback == OR_NULL && !null))
        good = false;
    else if (f->fallback == N_HEADS)
        value = c->n_heads;
    else if (f->fallback > 0)
        value = (uint64_t)f->fallback;
    if (!good)
        return dsi_config_bad(r, DSI_E_MODEL, f->key, node,
                              "it must be a whole number from %u to %u%s", f->min, f->max,
                              f->fallback == OR_NULL ? ", or null" : "");
    uint32_t number = (uint32_t)value;
    memcpy((char *)c + f->place, &number, sizeof number);
    return DSI_OK;
}

static dsi_status read_fields(const dsi_config_reader *r, dsi_config *c) {
    dsi_status status = DSI_OK;
    for (size_t i = 0; i < sizeof fields / sizeof *fields && !status; i++) {
        if (applies(&fields[i], c)) status = read_field(r, &fields[i], c);
    }
    if (!status) status = dsi_config_f64(r, 0, "rms_norm_eps", 1e-30, 0.1, 1e-6, &c->rms_norm_eps);
    if (!status)
        status = dsi_config_bool(r, 0, "tie_word_embeddings", false, &c->tie_word_embeddings);
    return status;
}

/* ---- Which model ---------------------------------------------------------------------------- */

static dsi_status read_arch(const dsi_config_reader *r, dsi_config *c) {
    char name[DSI_NAME_BYTES + 1];
    uint32_t node = dsi_config_get(r, 0, "model_type");
    if (!dsi_json_name(r->json, node, name))
        return dsi_config_bad(r, DSI_E_UNSUPPORTED, "model_type", node,
                              "it must name the model family; supported are %s", dsi_arch_names());
    c->arch = dsi_arch_find(name);
    const char *why = dsi_arch_why_not(name);
    if (!c->arch)
        return dsi_config_bad(r, DSI_E_UNSUPPORTED, "model_type", node, "%s%ssupported are %s",
                              why ? why : "", why ? "; " : "", dsi_arch_names());
    node = dsi_config_get(r, 0, "architectures");
    if (node == DSI_JSON_NONE) return DSI_OK;
    if (r->json->nodes[node].kind == DSI_JSON_ARRAY && r->json->nodes[node].n_items == 1 &&
        dsi_json_string_is(r->json, node + 1, c->arch->architecture))
        return DSI_OK;
    if (r->json->nodes[node].kind == DSI_JSON_ARRAY && r->json->nodes[node].n_items == 1) node++;
    return dsi_config_bad(r, DSI_E_UNSUPPORTED, "architectures", node,
                          "of model_type %s only [\"%s\"] is supported", name,
                          c->arch->architecture);
}

/* ---- Features that would change the result, were they passed over --------------------------- */

static dsi_status must_be_false(const dsi_config_reader *r, const char *key) {
    bool value = false;
    dsi_status status = dsi_config_bool(r, 0, key, false, &value);
    if (status || !value) return status;
    return dsi_config_bad(r, DSI_E_UNSUPPORTED, key, dsi_config_get(r, 0, key),
                          "only false is supported for this model_type");
}

static dsi_status check_layer_types(const dsi_config_reader *r, const dsi_config *c) {
    uint32_t node = dsi_config_get(r, 0, "layer_types");
    if (node == DSI_JSON_NONE) return DSI_OK;
    const dsi_json_node *nodes = r->json->nodes;
    if (nodes[node].kind != DSI_JSON_ARRAY || nodes[node].n_items != c->n_layers)
        return dsi_config_bad(r, DSI_E_MODEL, "layer_types", node,
                              "it must be an array of num_hidden_layers = %u names", c->n_layers);
    const char *only = c->arch->indexer ? "indexed_attention" : "full_attention";
    for (uint32_t i = node + 1; i < nodes[node].end; i = nodes[i].end) {
        if (!dsi_json_string_is(r->json, i, only))
            return dsi_config_bad(r, DSI_E_UNSUPPORTED, "layer_types", i,
                                  "only \"%s\" is supported for this model_type", only);
    }
    return DSI_OK;
}

static dsi_status check_features(const dsi_config_reader *r, const dsi_config *c) {
    bool interleave = true;
    dsi_status status = dsi_config_must_be(r, 0, "hidden_act", "silu");
    if (!status) status = must_be_false(r, "mlp_bias");
    if (!status && !c->arch->qkv_bias) status = must_be_false(r, "attention_bias");
    if (!status) status = check_layer_types(r, c);
    if (!status) status = must_be_false(r, "use_sliding_window");
    if (status) return status;
    /* Qwen2 states a window and says that it is unused; elsewhere a window is in use. */
    uint32_t node = dsi_config_get(r, 0, "sliding_window");
    if (node != DSI_JSON_NONE && !c->arch->qkv_bias &&
        dsi_config_get(r, 0, "use_sliding_window") == DSI_JSON_NONE)
        return dsi_config_bad(r, DSI_E_UNSUPPORTED, "sliding_window", node,
                              "sliding-window attention is not supported");
    if (!c->arch->rope_interleaved) return DSI_OK;
    status = dsi_config_bool(r, 0, "rope_interleave", true, &interleave);
    if (status || interleave) return status;
    return dsi_config_bad(r, DSI_E_UNSUPPORTED, "rope_interleave",
                          dsi_config_get(r, 0, "rope_interleave"),
                          "MLA rotates interleaved pairs; only true is supported");
}

/* ---- Attention and router ------------------------------------------------------------------- */

/* Its heads begin with the rotated columns; its queries are made from those of q_a_proj. */
static dsi_status check_indexer(const dsi_config_reader *r, const dsi_config *c) {
    if (!c->arch->indexer) return DSI_OK;
    if (c->index_head_dim < c->qk_rope_head_dim)
        return dsi_config_bad(
            r, DSI_E_MODEL, "index_head_dim", dsi_config_get(r, 0, "index_head_dim"),
            "qk_rope_head_dim, %u, of its columns are rotated", c->qk_rope_head_dim);
    if (!c->q_lora_rank)
        return dsi_config_bad(r, DSI_E_UNSUPPORTED, "q_lora_rank",
                              dsi_config_get(r, 0, "q_lora_rank"),
                              "the indexer reads the compressed query, it must be 1 or more");
    return DSI_OK;
}

static dsi_status check_attention(const dsi_config_reader *r, dsi_config *c) {
    uint32_t kv_heads = dsi_config_get(r, 0, "num_key_value_heads");
    if (c->arch->attention == DSI_ATTENTION_MLA) {
        if (c->n_kv_heads != c->n_heads)
            return dsi_config_bad(r, DSI_E_MODEL, "num_key_value_heads", kv_heads,
                                  "MLA has as many as num_attention_heads, %u", c->n_heads);
        if (c->qk_rope_head_dim % 2 != 0)
            return dsi_config_bad(r, DSI_E_MODEL, "qk_rope_head_dim",
                                  dsi_config_get(r, 0, "qk_rope_head_dim"),
                                  "rope turns pairs, it must be even");
        uint32_t whole = c->qk_nope_head_dim + c->qk_rope_head_dim;
        uint32_t node = dsi_config_get(r, 0, "qk_head_dim");
        uint64_t stated = 0;
        if (node != DSI_JSON_NONE && (!dsi_json_u64(r->json, node, &stated) || stated != whole))
            return dsi_config_bad(r, DSI_E_MODEL, "qk_head_dim", node,
                                  "qk_nope_head_dim + qk_rope_head_dim is %u", whole);
        return check_indexer(r, c);
    }
    if (c->n_heads % c->n_kv_heads != 0)
        return dsi_config_bad(r, DSI_E_MODEL, "num_key_value_heads", kv_heads,
                              "it must divide num_attention_heads, %u", c->n_heads);
    if (c->head_dim == 0 && c->hidden_size % c->n_heads != 0)
        return dsi_config_bad(r, DSI_E_MODEL, "head_dim", DSI_JSON_NONE,
                              "hidden_size %u is no multiple of num_attention_heads %u",
                              c->hidden_size, c->n_heads);
    if (c->head_dim == 0) c->head_dim = c->hidden_size / c->n_heads;
    if (c->head_dim % 2 != 0 || c->head_dim > 1024)
        return dsi_config_bad(r, DSI_E_MODEL, "head_dim", dsi_config_get(r, 0, "head_dim"),
                              "the heads have %u, which must be even (rope turns pairs) and at "
                              "most 1024",
                              c->head_dim);
    return DSI_OK;
}

/* Index of the string `key` (or its default) in `names`; UNSUPPORTED lists them. */
static dsi_status choose(const dsi_config_reader *r, const char *key, const char *fallback,
                         const char *const *names, uint32_t n, uint32_t *out) {
    uint32_t node = dsi_config_get(r, 0, key);
    char list[128] = "";
    for (uint32_t i = 0; i < n; i++) {
        if (node == DSI_JSON_NONE ? strcmp(fallback, names[i]) == 0
                                  : dsi_json_string_is(r->json, node, names[i])) {
            *out = i;
            return DSI_OK;
        }
        size_t used = strlen(list);
        snprintf(list + used, sizeof list - used, "%s%s", i ? ", " : "", names[i]);
    }
    return dsi_config_bad(r, DSI_E_UNSUPPORTED, key, node, "supported are %s", list);
}

static dsi_status check_groups(const dsi_config_reader *r, const dsi_config *c) {
    uint32_t groups = dsi_config_get(r, 0, "n_group");
    uint32_t top_k = dsi_config_get(r, 0, "num_experts_per_tok");
    if (c->n_routed_experts % c->n_group != 0)
        return dsi_config_bad(r, DSI_E_MODEL, "n_group", groups,
                              "it must divide n_routed_experts, %u", c->n_routed_experts);
    if (c->topk_group > c->n_group)
        return dsi_config_bad(r, DSI_E_MODEL, "topk_group", dsi_config_get(r, 0, "topk_group"),
                              "it must be at most n_group, %u", c->n_group);
    uint32_t group_size = c->n_routed_experts / c->n_group;
    if (c->router == DSI_ROUTER_NOAUX_TC && group_size < 2)
        return dsi_config_bad(r, DSI_E_MODEL, "n_group", groups,
                              "noaux_tc ranks a group by its two best experts, %u experts give %u "
                              "each",
                              c->n_routed_experts, group_size);
    uint32_t reachable = c->n_routed_experts;
    if (c->router != DSI_ROUTER_GREEDY) reachable = c->topk_group * group_size;
    if (c->n_experts_per_token > reachable)
        return dsi_config_bad(r, DSI_E_MODEL, "num_experts_per_tok", top_k,
                              "a token can reach %u experts (topk_group groups of %u)", reachable,
                              group_size);
    return DSI_OK;
}

static dsi_status read_router(const dsi_config_reader *r, dsi_config *c) {
    static const char *const methods[] = {"greedy", "group_limited_greedy", "noaux_tc"};
    static const char *const scorings[] = {"softmax", "sigmoid"};
    if (!c->arch->moe || c->n_routed_experts == 0) return DSI_OK;
    dsi_status status =
        choose(r, "topk_method", c->arch->topk_method_default, methods, 3, &c->router);
    if (!status)
        status = choose(r, "scoring_func", c->arch->scoring_default, scorings, 2, &c->scoring);
    if (!status)
        status =
            dsi_config_bool(r, 0, "norm_topk_prob", c->arch->norm_topk_default, &c->norm_topk_prob);
    if (!status)
        status =
            dsi_config_f64(r, 0, "routed_scaling_factor", 1e-6, 1e6, 1, &c->routed_scaling_factor);
    if (status) return status;
    c->router += DSI_ROUTER_GREEDY; /* methods[0] */
    /* DeepSeek-V2's code would leave out the scale, transformers ignores the key. */
    if (c->norm_topk_prob && c->scoring == DSI_SCORING_SOFTMAX)
        return dsi_config_bad(r, DSI_E_UNSUPPORTED, "norm_topk_prob",
                              dsi_config_get(r, 0, "norm_topk_prob"),
                              "with scoring_func softmax only false is supported: published "
                              "implementations disagree about the other");
    if (c->first_k_dense > c->n_layers)
        return dsi_config_bad(r, DSI_E_MODEL, "first_k_dense_replace",
                              dsi_config_get(r, 0, "first_k_dense_replace"),
                              "num_hidden_layers is %u", c->n_layers);
    return check_groups(r, c);
}

/* ---- Tokens that begin and end a text ------------------------------------------------------- */

static dsi_status add_end_token(const dsi_config_reader *r, uint32_t node, dsi_config *c) {
    uint64_t value = 0;
    if (!dsi_json_u64(r->json, node, &value) || value >= c->vocab_size)
        return dsi_config_bad(r, DSI_E_MODEL, "eos_token_id", node,
                              "it must be a token id below vocab_size, %u, or a list of such",
                              c->vocab_size);
    for (uint32_t i = 0; i < c->n_eos_tokens; i++) {
        if (c->eos_tokens[i] == (int32_t)value) return DSI_OK;
    }
    enum { MAX_EOS = sizeof c->eos_tokens / sizeof c->eos_tokens[0] };
    if (c->n_eos_tokens == MAX_EOS)
        return dsi_config_bad(r, DSI_E_MODEL, "eos_token_id", node,
                              "at most %d end tokens are supported", MAX_EOS);
    c->eos_tokens[c->n_eos_tokens++] = (int32_t)value;
    return DSI_OK;
}

static dsi_status read_end_tokens(const dsi_config_reader *r, dsi_config *c) {
    uint32_t node = dsi_config_get(r, 0, "eos_token_id");
    if (node == DSI_JSON_NONE) return DSI_OK;
    if (r->json->nodes[node].kind != DSI_JSON_ARRAY) return add_end_token(r, node, c);
    dsi_status status = DSI_OK;
    for (uint32_t i = node + 1; i < r->json->nodes[node].end && !status; i = r->json->nodes[i].end)
        status = add_end_token(r, i, c);
    return status;
}

static dsi_status read_begin_token(const dsi_config_reader *r, dsi_config *c) {
    uint32_t node = dsi_config_get(r, 0, "bos_token_id");
    uint64_t value = 0;
    c->bos_token = -1;
    if (node == DSI_JSON_NONE) return DSI_OK;
    if (!dsi_json_u64(r->json, node, &value) || value >= c->vocab_size)
        return dsi_config_bad(r, DSI_E_MODEL, "bos_token_id", node,
                              "it must be a token id below vocab_size, %u", c->vocab_size);
    c->bos_token = (int32_t)value;
    return DSI_OK;
}

/* ---- Files ---------------------------------------------------------------------------------- */

static dsi_status read_config(const dsi_config_reader *r, dsi_config *c) {
    memset(c->eos_tokens, 0xff, sizeof c->eos_tokens); /* -1 */
    dsi_status status = read_arch(r, c);
    if (!status) status = read_fields(r, c);
    if (!status) status = check_features(r, c);
    if (!status) status = dsi_config_quantization(r, c);
    if (!status) status = check_attention(r, c);
    if (!status) status = read_router(r, c);
    if (!status) status = dsi_config_rope(r, c);
    if (!status) status = read_begin_token(r, c);
    if (!status) status = read_end_tokens(r, c);
    if (!status) c->attention_bias = c->arch->qkv_bias;
    if (!status) c->rope_interleaved = c->arch->rope_interleaved;
    return status;
}

typedef dsi_status (*read_fn)(const dsi_config_reader *r, dsi_config *c);
static dsi_status read_json_text(const char *path, const char *text, uint64_t n_bytes, read_fn fill,
                                 dsi_config *c, dsi_error *error) {
    dsi_json json = {0};
    dsi_status status = dsi_json_parse(text, n_bytes, MAX_CONFIG_NODES, &json, error);
    if (status)
        status = dsi_fail_prefix(error, path);
    else if (json.nodes[0].kind != DSI_JSON_OBJECT)
        status = dsi_fail(error, DSI_E_FORMAT, "%s: is no JSON object", path);
    else
        status = fill(&(dsi_config_reader){.json = &json, .path = path, .error = error}, c);
    dsi_json_free(&json);
    return status;
}

static dsi_status read_json_file(const char *path, read_fn fill, dsi_config *c, dsi_error *error) {
    char *text = NULL;
    uint64_t n_bytes = 0;
    dsi_status status = dsi_sys_read_file(path, MAX_CONFIG_BYTES, &text, &n_bytes, error);
    if (!status) status = read_json_text(path, text, n_bytes, fill, c, error);
    dsi_sys_free(text);
    return status;
}

dsi_status dsi_config_of_gguf(dsi_checkpoint *checkpoint, dsi_config *config, dsi_error *error) {
    dsi_error local;
    if (!error) error = &local;
    *config = (dsi_config){0};
    dsi_gguf_config_text text;
    const char *path = checkpoint->shards[0].path;
    if (checkpoint->n_tensors == 0)
        return dsi_fail(error, DSI_E_MODEL,
                        "%s: holds no tensors, a vocabulary at most; it serves to tokenize alone",
                        path);
    dsi_status status = dsi_gguf_config_text_of(checkpoint, &text, error);
    if (!status) status = read_json_text(path, text.text, text.n_bytes, read_config, config, error);
    if (text.warning[0])
        snprintf(checkpoint->warning, sizeof checkpoint->warning, "%s", text.warning);
    if (status) {
        dsi_config_free(config);
        return status;
    }
    /* The converter reorders the rows of Llama's q and k so that pairs lie side by side. */
    if (config->arch->attention == DSI_ATTENTION_GQA && !config->arch->qkv_bias)
        config->rope_interleaved = true;
    return DSI_OK;
}

dsi_status dsi_config_load(const char *dir, dsi_config *config, dsi_error *error) {
    dsi_error local;
    char path[DSI_PATH_BYTES];
    if (!error) error = &local;
    *config = (dsi_config){0};
    dsi_sys_sort sort = DSI_SORT_NOTHING;
    dsi_status status = dsi_path_join(path, dir, "config.json", error);
    if (!status) status = dsi_sys_look(path, &sort, error);
    if (!status && sort != DSI_SORT_FILE)
        return dsi_fail(error, DSI_E_IO,
                        "%s: no such file; give the folder of a Hugging Face "
                        "checkpoint, which holds config.json",
                        path);
    if (!status) status = read_json_file(path, read_config, config, error);
    if (!status) status = dsi_path_join(path, dir, "generation_config.json", error);
    if (!status) status = dsi_sys_look(path, &sort, error);
    if (!status && sort == DSI_SORT_FILE)
        status = read_json_file(path, read_end_tokens, config, error);
    if (status) dsi_config_free(config);
    return status;
}

void dsi_config_free(dsi_config *config) {
    dsi_sys_free(config->quantization.ignored);
    *config = (dsi_config){0};
}
