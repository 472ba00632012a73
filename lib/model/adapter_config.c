/* adapter_config.c: adapter_config.json of a LoRA adapter, as the peft package writes it. What
 * would change the computation in a way that is not done here is refused by its key. */
#include "adapter.h"
#include "config.h"
#include "safetensors.h"
#include <math.h>
#include <stdio.h>
#include <string.h>

enum { MAX_FILE_BYTES = 4 << 20, MAX_NODES = 1 << 18, MAX_PATTERNS = 4096, MODULE_BYTES = 256 };
#define MAX_ALPHA 1e6

/* Modules whose name ends in `suffix` have another rank or another alpha. */
typedef struct dsi_adapter_pattern {
    char suffix[MODULE_BYTES];
    bool is_alpha;
    double value;
} dsi_adapter_pattern;

/* Keys that must be left at null, false, {} or []: any other value changes what is computed. */
static const struct {
    const char *key, *reason;
} unused[] = {
    {"use_dora", "DoRA is not supported: train without it, or merge the adapter into the model"},
    {"use_qalora", "QA-LoRA is not supported: merge the adapter into the model"},
    {"use_bdlora", "block-diagonal LoRA is not supported: train without it, or merge the adapter"},
    {"lora_bias",
     "biases of B are not supported: train with lora_bias false, or merge the adapter"},
    {"fan_in_fan_out", "transposed weights are not supported; models here have none"},
    {"modules_to_save", "whole weights beside A and B are not supported: train without them, or "
                        "merge the adapter into the model"},
    {"layer_replication", "replicated layers are not supported: merge the adapter into the model"},
    {"trainable_token_indices",
     "trained embeddings are not supported: train without them, or merge "
     "the adapter into the model"},
    {"target_parameters", "adapters of routed experts are not supported: train without them, or "
                          "merge the adapter into the model"},
    {"alora_invocation_tokens", "activated LoRA is not supported: train without it"},
    {"arrow_config", "routing between adapters is not supported: train without it"},
    {"kasa_config", "KaSA is not supported: train without it, or merge the adapter"},
    {"monteclora_config", "MonteCLoRA is not supported: train without it, or merge the adapter"},
    {"megatron_config", "weights cut by Megatron are not supported: save the adapter whole"},
};

/* Keys that say nothing about the computation, or that tensors say better. */
static const char *const known[] = {"auto_mapping",
                                    "base_model_name_or_path",
                                    "corda_config",
                                    "ensure_weight_tying",
                                    "eva_config",
                                    "exclude_modules",
                                    "inference_mode",
                                    "layers_pattern",
                                    "loftq_config",
                                    "layers_to_transform",
                                    "lora_dropout",
                                    "lora_ga_config",
                                    "megatron_core",
                                    "peft_version",
                                    "qalora_group_size",
                                    "revision",
                                    "runtime_config",
                                    "task_type",
                                    "velora_config",
                                    "peft_type",
                                    "r",
                                    "lora_alpha",
                                    "use_rslora",
                                    "bias",
                                    "init_lora_weights",
                                    "rank_pattern",
                                    "alpha_pattern",
                                    "target_modules"};

/* null, false, an empty array or object. */
static bool says_nothing(const dsi_json *json, uint32_t node) {
    const dsi_json_node *n = &json->nodes[node];
    if (n->kind == DSI_JSON_NULL || n->kind == DSI_JSON_FALSE) return true;
    return (n->kind == DSI_JSON_ARRAY || n->kind == DSI_JSON_OBJECT) && n->n_items == 0;
}

static bool is_known(const dsi_json *json, uint32_t key) {
    for (size_t i = 0; i < sizeof known / sizeof known[0]; i++)
        if (dsi_json_string_is(json, key, known[i])) return true;
    return false;
}

/* Refuses what `unused` lists; notes what nobody knows. */
static dsi_status check_keys(const dsi_config_reader *r, dsi_adapter_config *config) {
    const dsi_json *json = r->json;
    for (size_t i = 0; i < sizeof unused / sizeof unused[0]; i++) {
        uint32_t node = dsi_json_get(json, 0, unused[i].key);
        if (node != DSI_JSON_NONE && !says_nothing(json, node))
            return dsi_config_bad(r, DSI_E_UNSUPPORTED, unused[i].key, node, "%s",
                                  unused[i].reason);
    }
    for (uint32_t key = dsi_json_first(json, 0); key < json->nodes[0].end;
         key = json->nodes[key + 1].end) {
        char name[DSI_NAME_BYTES + 1];
        if (is_known(json, key) || says_nothing(json, key + 1) || !dsi_json_name(json, key, name))
            continue;
        snprintf(config->warning, sizeof config->warning,
                 "%.100s: the key \"%.60s\" is not known and has no effect", r->path, name);
    }
    return DSI_OK;
}

/* Some ways to begin change the model's own weights: the adapter then fits those alone. */
static dsi_status check_init(const dsi_config_reader *r) {
    static const char *const fits[] = {"gaussian", "eva", "orthogonal"};
    uint32_t node = dsi_config_get(r, 0, "init_lora_weights");
    bool good = node == DSI_JSON_NONE || r->json->nodes[node].kind == DSI_JSON_TRUE ||
                r->json->nodes[node].kind == DSI_JSON_FALSE;
    for (size_t i = 0; i < sizeof fits / sizeof fits[0] && !good; i++)
        good = dsi_json_string_is(r->json, node, fits[i]);
    if (good) return DSI_OK;
    return dsi_config_bad(r, DSI_E_UNSUPPORTED, "init_lora_weights", node,
                          "this changes the weights of the model, which the adapter then needs: "
                          "save it with path_initial_model_for_weight_conversion, or merge it");
}

/* A list of names, or a pattern as one text. The tensors say which modules there are. */
static dsi_status check_targets(const dsi_config_reader *r) {
    const dsi_json *json = r->json;
    uint32_t node = dsi_config_get(r, 0, "target_modules");
    if (node == DSI_JSON_NONE || json->nodes[node].kind == DSI_JSON_STRING) return DSI_OK;
    bool good = json->nodes[node].kind == DSI_JSON_ARRAY;
    for (uint32_t i = dsi_json_first(json, node); good && i < json->nodes[node].end;
         i = json->nodes[i].end)
        good = json->nodes[i].kind == DSI_JSON_STRING;
    if (good) return DSI_OK;
    return dsi_config_bad(r, DSI_E_MODEL, "target_modules", node,
                          "it must be a list of names or one text");
}

/* ---- Exceptions by module -------------------------------------------------------------------- */

/* The key of a pattern as the end of a name; false if it is a pattern beyond names. */
static bool read_suffix(const dsi_json *json, uint32_t key, char suffix[MODULE_BYTES]) {
    char name[DSI_NAME_BYTES + 1];
    size_t n = 0;
    if (!dsi_json_name(json, key, name)) return false;
    for (const char *c = name; *c; c++) {
        if (*c == '\\' && c[1] == '.') c++;
        bool plain = (*c >= 'a' && *c <= 'z') || (*c >= 'A' && *c <= 'Z') ||
                     (*c >= '0' && *c <= '9') || *c == '_' || *c == '.';
        if (!plain || n + 1 == MODULE_BYTES) return false;
        suffix[n++] = *c;
    }
    suffix[n] = 0;
    return n > 0;
}

static dsi_status read_pattern(const dsi_config_reader *r, const char *name, uint32_t key,
                               bool is_alpha, dsi_adapter_pattern *pattern) {
    const dsi_json *json = r->json;
    uint64_t rank;
    pattern->is_alpha = is_alpha;
    if (!read_suffix(json, key, pattern->suffix))
        return dsi_config_bad(r, DSI_E_UNSUPPORTED, name, key,
                              "its keys must be names of modules or their ends, no patterns");
    if (is_alpha) {
        bool good = dsi_json_f64(json, key + 1, &pattern->value);
        if (good && fabs(pattern->value) <= MAX_ALPHA) return DSI_OK;
        return dsi_config_bad(r, DSI_E_MODEL, name, key + 1,
                              "it must be a number from -1e6 to 1e6 (\"%s\")", pattern->suffix);
    }
    if (!dsi_json_u64(json, key + 1, &rank) || rank < 1 || rank > DSI_MAX_ADAPTER_RANK)
        return dsi_config_bad(r, DSI_E_MODEL, name, key + 1,
                              "it must be a whole number from 1 to %d (\"%s\")",
                              DSI_MAX_ADAPTER_RANK, pattern->suffix);
    pattern->value = (double)rank;
    return DSI_OK;
}

static dsi_status read_patterns(const dsi_config_reader *r, const char *name, bool is_alpha,
                                dsi_adapter_config *config) {
    const dsi_json *json = r->json;
    uint32_t node = dsi_config_get(r, 0, name);
    if (node == DSI_JSON_NONE) return DSI_OK;
    if (json->nodes[node].kind != DSI_JSON_OBJECT || json->nodes[node].n_items > MAX_PATTERNS)
        return dsi_config_bad(r, DSI_E_MODEL, name, node, "it must be an object of at most %d keys",
                              MAX_PATTERNS);
    uint32_t n = json->nodes[node].n_items;
    if (n == 0) return DSI_OK;
    dsi_adapter_pattern *grown =
        dsi_sys_realloc(config->patterns, (uint64_t)config->n_patterns + n, sizeof *grown);
    if (!grown) return dsi_fail(r->error, DSI_E_NOMEM, "%s: no memory for %s", r->path, name);
    config->patterns = grown;
    for (uint32_t key = dsi_json_first(json, node); key < json->nodes[node].end;
         key = json->nodes[key + 1].end) {
        dsi_status st = read_pattern(r, name, key, is_alpha, &grown[config->n_patterns]);
        if (st != DSI_OK) return st;
        config->n_patterns++;
    }
    return DSI_OK;
}

void dsi_adapter_config_of(const dsi_adapter_config *config, const char *module, uint32_t *rank,
                           double *alpha) {
    bool found[2] = {false, false};
    *rank = config->r, *alpha = config->alpha;
    for (uint32_t i = 0; i < config->n_patterns; i++) {
        const dsi_adapter_pattern *p = &config->patterns[i];
        size_t n = strlen(module), n_suffix = strlen(p->suffix);
        if (found[p->is_alpha] || n_suffix > n || strcmp(module + n - n_suffix, p->suffix) != 0 ||
            (n > n_suffix && module[n - n_suffix - 1] != '.'))
            continue;
        found[p->is_alpha] = true; /* the first one that fits counts */
        if (p->is_alpha)
            *alpha = p->value;
        else
            *rank = (uint32_t)p->value;
    }
}

/* ---- The file -------------------------------------------------------------------------------- */

static dsi_status read_config(const dsi_config_reader *r, dsi_adapter_config *config) {
    const dsi_json *json = r->json;
    uint64_t rank = 0;
    uint32_t node = dsi_config_get(r, 0, "peft_type");
    if (node == DSI_JSON_NONE || !dsi_json_string_is(json, node, "LORA"))
        return dsi_config_bad(r, DSI_E_UNSUPPORTED, "peft_type", node,
                              "only \"LORA\" is supported");
    dsi_status st = dsi_config_must_be(r, 0, "bias", "none");
    if (st == DSI_OK) st = check_keys(r, config);
    if (st == DSI_OK) st = check_init(r);
    if (st == DSI_OK) st = check_targets(r);
    if (st != DSI_OK) return st;
    node = dsi_config_get(r, 0, "r");
    if (node == DSI_JSON_NONE || !dsi_json_u64(json, node, &rank) || rank < 1 ||
        rank > DSI_MAX_ADAPTER_RANK)
        return dsi_config_bad(r, DSI_E_MODEL, "r", node,
                              "the rank must be a whole number from 1 to %d", DSI_MAX_ADAPTER_RANK);
    config->r = (uint32_t)rank;
    st = dsi_config_f64(r, 0, "lora_alpha", -MAX_ALPHA, MAX_ALPHA, NAN, &config->alpha);
    if (st == DSI_OK) st = dsi_config_bool(r, 0, "use_rslora", false, &config->rslora);
    if (st == DSI_OK) st = read_patterns(r, "rank_pattern", false, config);
    return st == DSI_OK ? read_patterns(r, "alpha_pattern", true, config) : st;
}

dsi_status dsi_adapter_config_load(const char *folder, dsi_adapter_config *config,
                                   dsi_error *error) {
    char path[DSI_PATH_BYTES];
    char *text = NULL;
    uint64_t n_bytes = 0;
    *config = (dsi_adapter_config){0};
    dsi_status st = dsi_path_join(path, folder, "adapter_config.json", error);
    if (st == DSI_OK) st = dsi_sys_read_file(path, MAX_FILE_BYTES, &text, &n_bytes, error);
    if (st != DSI_OK) return st;
    dsi_json json = {0};
    st = dsi_json_parse(text, n_bytes, MAX_NODES, &json, error);
    if (st != DSI_OK) {
        st = dsi_fail_prefix(error, path);
    } else if (json.nodes[0].kind != DSI_JSON_OBJECT) {
        st = dsi_fail(error, DSI_E_FORMAT, "%s: is no JSON object", path);
    } else {
        dsi_config_reader r = {&json, path, error};
        st = read_config(&r, config);
    }
    dsi_json_free(&json);
    dsi_sys_free(text);
    if (st != DSI_OK) dsi_adapter_config_free(config);
    return st;
}

void dsi_adapter_config_free(dsi_adapter_config *config) {
    dsi_sys_free(config->patterns);
    *config = (dsi_adapter_config){0};
}
