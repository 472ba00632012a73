/* config_quant.c: quantization_config, in the four forms that DeepSeek checkpoints come in: "fp8"
 * (DeepSeek's own), "blockwise_int8" and "w8a8_int8" (the published INT8 files of R1), and
 * "compressed-tensors" (INT8 by channel or block, INT4 by group). Activations are quantised or not
 * as the engine is told, so what the file says about them is only checked, never followed. */
#include "config.h"
#include "safetensors.h"
#include <stdio.h>
#include <string.h>

enum { MAX_IGNORED = 65536, MAX_PATTERN_BYTES = 1024 /* of all "re:" patterns together */ };

/* ---- Values --------------------------------------------------------------------------------- */

static bool is_block_128(const dsi_json *json, uint32_t node) {
    uint64_t rows = 0, columns = 0;
    if (node == DSI_JSON_NONE) return false;
    if (dsi_json_string_is(json, node, "128x128")) return true; /* older compressed-tensors */
    return json->nodes[node].kind == DSI_JSON_ARRAY && json->nodes[node].n_items == 2 &&
           dsi_json_u64(json, node + 1, &rows) &&
           dsi_json_u64(json, json->nodes[node + 1].end, &columns) && rows == DSI_BLOCK &&
           columns == DSI_BLOCK;
}

/* `key` must be absent, null, or an empty object. */
static dsi_status must_be_empty(const dsi_config_reader *r, uint32_t parent, const char *key,
                                const char *what) {
    uint32_t node = dsi_config_get(r, parent, key);
    if (node == DSI_JSON_NONE ||
        (r->json->nodes[node].kind == DSI_JSON_OBJECT && r->json->nodes[node].n_items == 0))
        return DSI_OK;
    return dsi_config_bad(r, DSI_E_UNSUPPORTED, key, node, "%s", what);
}

/* A boolean that must have one value. */
static dsi_status must_be_bool(const dsi_config_reader *r, uint32_t parent, const char *key,
                               bool fallback, bool wanted, const char *remedy) {
    bool value = fallback;
    dsi_status status = dsi_config_bool(r, parent, key, fallback, &value);
    if (status || value == wanted) return status;
    return dsi_config_bad(r, DSI_E_UNSUPPORTED, key, dsi_config_get(r, parent, key),
                          "only %s is supported; %s", wanted ? "true" : "false", remedy);
}

static dsi_status read_blocks(const dsi_config_reader *r, uint32_t node) {
    uint32_t block = dsi_config_get(r, node, "weight_block_size");
    if (is_block_128(r->json, block)) return DSI_OK;
    return dsi_config_bad(r, DSI_E_UNSUPPORTED, "quantization_config.weight_block_size", block,
                          "only [128, 128] is supported");
}

/* ---- The forms of one line ------------------------------------------------------------------ */

static dsi_status read_fp8(const dsi_config_reader *r, uint32_t node, dsi_quantization *q) {
    dsi_status status = dsi_config_must_be(r, node, "fmt", "e4m3");
    if (!status) status = dsi_config_must_be(r, node, "activation_scheme", "dynamic");
    /* ue8m0 says that the scales are powers of two; they are stored as F32 all the same. */
    if (!status) status = dsi_config_must_be(r, node, "scale_fmt", "ue8m0");
    if (!status) status = read_blocks(r, node);
    *q = (dsi_quantization){.dtype = DSI_DTYPE_E4M3,
                            .scale_kind = DSI_SCALE_BLOCK_128,
                            .scale_name = "weight_scale_inv",
                            .power_of_two = dsi_config_get(r, node, "scale_fmt") != DSI_JSON_NONE};
    return status;
}

static dsi_status read_blockwise_int8(const dsi_config_reader *r, uint32_t node,
                                      dsi_quantization *q) {
    dsi_status status = dsi_config_must_be(r, node, "activation_scheme", "dynamic");
    if (!status) status = read_blocks(r, node);
    *q = (dsi_quantization){
        .dtype = DSI_DTYPE_I8, .scale_kind = DSI_SCALE_BLOCK_128, .scale_name = "weight_scale_inv"};
    return status;
}

static dsi_status read_w8a8_int8(const dsi_config_reader *r, uint32_t node, dsi_quantization *q) {
    *q = (dsi_quantization){
        .dtype = DSI_DTYPE_I8, .scale_kind = DSI_SCALE_CHANNEL, .scale_name = "weight_scale"};
    return dsi_config_must_be(r, node, "activation_scheme", "dynamic");
}

/* ---- compressed-tensors: the weights of a group --------------------------------------------- */

typedef enum strategy { CHANNEL, BLOCK, GROUP, OTHER } strategy;

/* Older files leave the strategy out: a group size of -1 then means channels. */
static dsi_status read_strategy(const dsi_config_reader *r, uint32_t weights, strategy *out,
                                uint32_t *group_size) {
    static const char *const names[] = {"channel", "block", "group"};
    const dsi_json *json = r->json;
    uint32_t node = dsi_config_get(r, weights, "strategy");
    uint32_t size_node = dsi_config_get(r, weights, "group_size");
    uint64_t size = 0;
    double number = 0;
    bool whole = dsi_json_u64(json, size_node, &size);
    bool minus_1 = dsi_json_f64(json, size_node, &number) && number >= -1 && number <= -1;
    if (size_node != DSI_JSON_NONE && !whole && !minus_1)
        return dsi_config_bad(r, DSI_E_MODEL, "group_size", size_node,
                              "it must be a whole number, -1 or null");
    *out = OTHER;
    for (uint32_t i = 0; i < OTHER; i++)
        if (dsi_json_string_is(json, node, names[i])) *out = (strategy)i;
    if (node == DSI_JSON_NONE) *out = whole ? GROUP : minus_1 ? CHANNEL : OTHER;
    if (*out == OTHER)
        return dsi_config_bad(
            r, DSI_E_UNSUPPORTED, "weights.strategy", node,
            "supported are \"channel\" and \"block\" for 8 bits, \"group\" for 4");
    *group_size = 0;
    if (*out != GROUP) {
        if (!whole) return DSI_OK;
        return dsi_config_bad(r, DSI_E_MODEL, "group_size", size_node,
                              "only weights of strategy \"group\" have one");
    }
    if (size != 32 && size != 128)
        return dsi_config_bad(r, DSI_E_UNSUPPORTED, "group_size", size_node,
                              "supported are 32 and 128");
    *group_size = (uint32_t)size;
    return DSI_OK;
}

/* What both widths must say. */
static dsi_status check_weights(const dsi_config_reader *r, uint32_t weights) {
    dsi_status status = dsi_config_must_be(r, weights, "type", "int");
    if (!status)
        status = must_be_bool(r, weights, "symmetric", true, true,
                              "weights with a zero point must be quantised again without one");
    if (!status)
        status = must_be_bool(r, weights, "dynamic", false, false,
                              "weights are quantised once, when the file is written");
    uint32_t order = dsi_config_get(r, weights, "actorder");
    bool plain = order == DSI_JSON_NONE || r->json->nodes[order].kind == DSI_JSON_FALSE ||
                 dsi_json_string_is(r->json, order, "weight") ||
                 dsi_json_string_is(r->json, order, "static");
    if (status || plain) return status;
    return dsi_config_bad(
        r, DSI_E_UNSUPPORTED, "actorder", order,
        "columns that are ordered by group (weight_g_idx) are not supported, only "
        "null, \"weight\" and \"static\"; quantise again with one of these");
}

static dsi_status read_weights(const dsi_config_reader *r, uint32_t weights, bool packed,
                               dsi_quantization *q) {
    uint32_t bits_node = dsi_config_get(r, weights, "num_bits"), group_size = 0;
    uint64_t bits = 0, wanted = packed ? 4 : 8;
    strategy how = OTHER;
    if (!dsi_json_u64(r->json, bits_node, &bits) || bits != wanted)
        return dsi_config_bad(r, DSI_E_UNSUPPORTED, "num_bits", bits_node,
                              "only %d is supported in format \"%s\"", packed ? 4 : 8,
                              packed ? "pack-quantized" : "int-quantized");
    dsi_status status = check_weights(r, weights);
    if (!status) status = read_strategy(r, weights, &how, &group_size);
    if (status) return status;
    if (packed ? how != GROUP : how == GROUP)
        return dsi_config_bad(r, DSI_E_UNSUPPORTED, "weights.strategy",
                              dsi_config_get(r, weights, "strategy"), "%s",
                              packed ? "weights of 4 bits must have \"group\""
                                     : "weights of 8 bits must have \"channel\" or \"block\"");
    uint32_t block = dsi_config_get(r, weights, "block_structure");
    if (how == BLOCK && !is_block_128(r->json, block))
        return dsi_config_bad(r, DSI_E_UNSUPPORTED, "block_structure", block,
                              "only [128, 128] is supported");
    *q = (dsi_quantization){.dtype = packed ? DSI_DTYPE_I4 : DSI_DTYPE_I8,
                            .scale_kind = how == BLOCK   ? DSI_SCALE_BLOCK_128
                                          : how == GROUP ? DSI_SCALE_GROUP
                                                         : DSI_SCALE_CHANNEL,
                            .scale_group = group_size,
                            .scale_name = "weight_scale"};
    return DSI_OK;
}

/* Operands that are quantised when they are made need nothing from the file; those with a scale of
 * their own (dynamic false) would. */
static dsi_status check_activations(const dsi_config_reader *r, uint32_t group) {
    uint32_t node = dsi_config_get(r, group, "input_activations");
    if (node == DSI_JSON_NONE) return DSI_OK;
    uint32_t bits_node = dsi_config_get(r, node, "num_bits");
    uint64_t bits = 0;
    if (!dsi_json_u64(r->json, bits_node, &bits) || bits != 8)
        return dsi_config_bad(r, DSI_E_UNSUPPORTED, "input_activations.num_bits", bits_node,
                              "only 8 is supported");
    dsi_status status = dsi_config_must_be(r, node, "type", "int");
    if (!status) status = dsi_config_must_be(r, node, "strategy", "token");
    if (!status)
        status = must_be_bool(r, node, "symmetric", true, true, "quantise again with symmetric");
    if (!status)
        status = must_be_bool(r, node, "dynamic", false, true,
                              "activations with scales in the file are not supported");
    return status;
}

/* ---- compressed-tensors: what stays plain --------------------------------------------------- */

/* The patterns that are understood: letters and '.', "\\." and ".*", '^' first, '$' last. */
static bool simple_pattern(const char *p) {
    if (*p == '^') p++;
    for (; *p; p++) {
        if (*p == '\\') {
            p++; /* of a letter or digit Python makes a class or a character of its own */
            if (!*p || (*p >= '0' && *p <= '9') || ((*p | 32) >= 'a' && (*p | 32) <= 'z'))
                return false;
        } else if (*p == '.') {
            if (p[1] == '*') p++;
        } else if (*p == '$') {
            if (p[1]) return false;
        } else if (strchr("*+?[](){}|^", *p)) {
            return false;
        }
    }
    return true;
}

/* Does the piece [p, end), one character or "." or an escape after the other, stand at `name`?
 * Returns how many characters it takes, -1 if not. */
static int piece_at(const char *p, const char *end, const char *name) {
    int n = 0;
    for (; p < end; p++, n++) {
        if (!name[n]) return -1;
        if (*p == '.') continue;
        if (*p == '\\') p++;
        if (*p != name[n]) return -1;
    }
    return n;
}

static const char *piece_end(const char *p) {
    for (; *p && !(*p == '.' && p[1] == '*') && !(*p == '$' && !p[1]); p++)
        if (*p == '\\') p++;
    return p;
}

/* Pieces between ".*" are taken where they stand first, which never loses a match; the last piece
 * before a '$' must stand at the end. Like Python's re.match: from the first character on. */
static bool pattern_matches(const char *p, const char *name) {
    bool anywhere = false;
    if (*p == '^') p++;
    for (;;) {
        const char *end = piece_end(p);
        bool at_end = *end == '$';
        int n = piece_at(p, end, name);
        while (anywhere && *name && (n < 0 || (at_end && name[n]))) n = piece_at(p, end, ++name);
        if (n < 0 || (at_end && name[n])) return false;
        if (*end != '.') return true;
        name += n;
        anywhere = true;
        p = end + 2;
    }
}

bool dsi_quantization_matches(const char *pattern, const char *name) {
    if (strncmp(pattern, "re:", 3) == 0) return pattern_matches(pattern + 3, name);
    return strcmp(pattern, name) == 0;
}

/* Fills q->ignored, or only checks the list if that is NULL; *n_bytes: what it takes. */
static dsi_status read_names(const dsi_config_reader *r, uint32_t list, dsi_quantization *q,
                             uint64_t *n_bytes) {
    char name[DSI_NAME_BYTES + 1];
    uint64_t used = 0, n_patterns = 0;
    for (uint32_t i = list + 1; i < r->json->nodes[list].end; i = r->json->nodes[i].end) {
        if (!dsi_json_name(r->json, i, name))
            return dsi_config_bad(r, DSI_E_MODEL, "quantization_config.ignore", i,
                                  "it must be a list of names of 1 to %d bytes", DSI_NAME_BYTES);
        size_t n = strlen(name) + 1;
        if (strncmp(name, "re:", 3) == 0) {
            n_patterns += n;
            if (!simple_pattern(name + 3))
                return dsi_config_bad(
                    r, DSI_E_UNSUPPORTED, "quantization_config.ignore", i,
                    "patterns may hold letters, \".\", \"\\.\", \".*\", \"^\" and "
                    "\"$\"; write the names out instead");
        }
        if (n_patterns > MAX_PATTERN_BYTES)
            return dsi_config_bad(r, DSI_E_UNSUPPORTED, "quantization_config.ignore", i,
                                  "its patterns are longer than %d bytes; write names instead",
                                  MAX_PATTERN_BYTES);
        if (q->ignored) memcpy(q->ignored + used, name, n);
        used += n;
    }
    *n_bytes = used; /* less than the file itself */
    return DSI_OK;
}

static dsi_status read_ignored(const dsi_config_reader *r, uint32_t node, dsi_quantization *q) {
    uint32_t list = dsi_config_get(r, node, "ignore");
    uint64_t n_bytes = 0;
    if (list == DSI_JSON_NONE) return DSI_OK;
    const dsi_json_node *n = &r->json->nodes[list];
    if (n->kind != DSI_JSON_ARRAY || n->n_items > MAX_IGNORED)
        return dsi_config_bad(r, DSI_E_MODEL, "quantization_config.ignore", list,
                              "it must be a list of at most %d names", MAX_IGNORED);
    dsi_status status = read_names(r, list, q, &n_bytes);
    if (status || n->n_items == 0) return status;
    q->ignored = dsi_sys_calloc(n_bytes, 1);
    if (!q->ignored)
        return dsi_fail(r->error, DSI_E_NOMEM, "%s: no memory for the names of plain modules",
                        r->path);
    q->n_ignored = n->n_items;
    return read_names(r, list, q, &n_bytes);
}

/* ---- compressed-tensors --------------------------------------------------------------------- */

static dsi_status check_targets(const dsi_config_reader *r, uint32_t group) {
    uint32_t list = dsi_config_get(r, group, "targets");
    bool good = list == DSI_JSON_NONE || r->json->nodes[list].kind == DSI_JSON_ARRAY;
    for (uint32_t i = list + 1; list != DSI_JSON_NONE && good && i < r->json->nodes[list].end;
         i = r->json->nodes[i].end)
        good = r->json->nodes[i].kind == DSI_JSON_STRING;
    if (good) return DSI_OK;
    return dsi_config_bad(r, DSI_E_MODEL, "targets", list, "it must be a list of names");
}

static dsi_status read_group(const dsi_config_reader *r, uint32_t group, bool packed,
                             dsi_quantization *q) {
    const char *format = packed ? "pack-quantized" : "int-quantized";
    uint32_t weights = dsi_config_get(r, group, "weights");
    if (weights == DSI_JSON_NONE || r->json->nodes[weights].kind != DSI_JSON_OBJECT)
        return dsi_config_bad(r, DSI_E_MODEL, "config_groups.weights", weights,
                              "it must be an object that says how the weights are stored");
    dsi_status status = dsi_config_must_be(r, group, "format", format);
    if (!status) status = check_targets(r, group);
    if (!status) status = check_activations(r, group);
    if (!status)
        status = must_be_empty(r, group, "output_activations",
                               "quantised outputs are not supported, only null");
    return status ? status : read_weights(r, weights, packed, q);
}

static dsi_status read_compressed_tensors(const dsi_config_reader *r, uint32_t node,
                                          dsi_quantization *q) {
    const dsi_json *json = r->json;
    uint32_t format = dsi_config_get(r, node, "format");
    bool packed = dsi_json_string_is(json, format, "pack-quantized");
    if (!packed && !dsi_json_string_is(json, format, "int-quantized"))
        return dsi_config_bad(r, DSI_E_UNSUPPORTED, "quantization_config.format", format,
                              "supported are \"int-quantized\" (INT8) and \"pack-quantized\" "
                              "(INT4)");
    dsi_status status = dsi_config_must_be(r, node, "quantization_status", "compressed");
    if (!status)
        status = must_be_empty(r, node, "kv_cache_scheme",
                               "scales of a KV cache are not supported, only null");
    uint32_t sparse = dsi_config_get(r, node, "sparsity_config");
    if (!status && !dsi_json_string_is(json, dsi_config_get(r, sparse, "format"), "dense"))
        status = must_be_empty(r, node, "sparsity_config", "sparse weights are not supported");
    if (!status)
        status = must_be_empty(r, node, "transform_config",
                               "transforms between layers are not supported");
    if (status) return status;
    uint32_t groups = dsi_config_get(r, node, "config_groups");
    if (groups == DSI_JSON_NONE || json->nodes[groups].kind != DSI_JSON_OBJECT ||
        json->nodes[groups].n_items != 1)
        return dsi_config_bad(r, DSI_E_UNSUPPORTED, "quantization_config.config_groups", groups,
                              "it must be an object with one group; several ways of quantising in "
                              "one model are not supported");
    status = read_group(r, groups + 2, packed, q);
    return status ? status : read_ignored(r, node, q);
}

dsi_status dsi_config_quantization(const dsi_config_reader *r, dsi_config *c) {
    static const char new_key[] = "quantization_config", old_key[] = "compression_config";
    uint32_t node = dsi_config_get(r, 0, new_key), old = dsi_config_get(r, 0, old_key);
    if (node != DSI_JSON_NONE && old != DSI_JSON_NONE)
        return dsi_config_bad(r, DSI_E_MODEL, old_key, old,
                              "quantization_config is there too; only one may say how weights are "
                              "stored");
    if (old != DSI_JSON_NONE) node = old; /* the name until 2024, with the same content */
    if (node == DSI_JSON_NONE) return DSI_OK;
    static const struct {
        const char *method;
        dsi_status (*read)(const dsi_config_reader *r, uint32_t node, dsi_quantization *q);
    } methods[] = {{"fp8", read_fp8},
                   {"blockwise_int8", read_blockwise_int8},
                   {"w8a8_int8", read_w8a8_int8},
                   {"compressed-tensors", read_compressed_tensors}};
    uint32_t method = dsi_config_get(r, node, "quant_method");
    for (size_t i = 0; i < sizeof methods / sizeof *methods; i++)
        if (dsi_json_string_is(r->json, method, methods[i].method))
            return methods[i].read(r, node, &c->quantization);
    return dsi_config_bad(r, DSI_E_UNSUPPORTED,
                          old != DSI_JSON_NONE ? "compression_config.quant_method"
                                               : "quantization_config.quant_method",
                          method,
                          "supported are \"fp8\", \"blockwise_int8\", \"w8a8_int8\" and "
                          "\"compressed-tensors\"; other checkpoints must be quantised again");
}
