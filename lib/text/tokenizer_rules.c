/* tokenizer_rules.c: recognises the kinds of tokenizer.json that the pre-tokenizers and the encoder
 * implement. A file is compared with the table below byte for byte; whatever else would change the
 * tokens is refused by name. */
#include "tokenizer_rules.h"

/* ---- The families ---------------------------------------------------------------------------- */

/* pretok.c and pretok_v2.c say what the patterns mean. */
#define SPACE_ENDS "|\\s*[\r\n]+|\\s+(?!\\S)|\\s+"
#define V3_WORDS                                                                                   \
    "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+"                                        \
    "|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+"                                                   \
    "| ?[\\p{P}\\p{S}]+[\r\n]*" SPACE_ENDS
/* Qwen2 and Llama write \r and \n as the expression's own escapes, DeepSeek as the characters. */
#define LLAMA(digits)                                                                              \
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|" digits                           \
    "| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"
/* Letters with case. In bytes: three of them have look-alikes that editors replace them with. */
#define V2_LETTERS                                                                                 \
    "A-Za-z\xC2\xB5\xC3\x80-\xC3\x96\xC3\x98-\xC3\xB6\xC3\xB8-\xC6\xBA\xC6\xBC-\xC6\xBF"           \
    "\xC7\x84-\xCA\x93\xCA\x95-\xCA\xAF\xCD\xB0-\xCD\xB3\xCD\xB6\xCD\xB7\xCD\xBB-\xCD\xBD"         \
    "\xCD\xBF\xCE\x86\xCE\x88-\xCE\x8A\xCE\x8C\xCE\x8E-\xCE\xA1\xCE\xA3-\xCF\xB5"                  \
    "\xCF\xB7-\xD2\x81\xD2\x8A-\xD4\xAF\xD4\xB1-\xD5\x96\xE1\x82\xA0-\xE1\x83\x85"                 \
    "\xE1\x8E\xA0-\xE1\x8F\xB5\xE1\x8F\xB8-\xE1\x8F\xBD\xE1\xB2\x90-\xE1\xB2\xBA"                  \
    "\xE1\xB2\xBD-\xE1\xB2\xBF\xE1\xB4\x80-\xE1\xB4\xAB\xE1\xB5\xAB-\xE1\xB5\xB7"                  \
    "\xE1\xB5\xB9-\xE1\xB6\x9A\xE1\xB8\x80-\xE1\xBC\x95\xE1\xBC\x98-\xE1\xBC\x9D"                  \
    "\xE1\xBC\xA0-\xE1\xBD\x85\xE1\xBD\x88-\xE1\xBD\x8D\xE1\xBD\x90-\xE1\xBD\x97\xE1\xBD\x99"      \
    "\xE1\xBD\x9B\xE1\xBD\x9D\xE1\xBD\x9F-\xE1\xBD\xBD\xE1\xBE\x80-\xE1\xBE\xB4"                   \
    "\xE1\xBE\xB6-\xE1\xBE\xBC\xE1\xBE\xBE\xE1\xBF\x82-\xE1\xBF\x84\xE1\xBF\x86-\xE1\xBF\x8C"      \
    "\xE1\xBF\x90-\xE1\xBF\x93\xE1\xBF\x96-\xE1\xBF\x9B\xE1\xBF\xA0-\xE1\xBF\xAC"                  \
    "\xE1\xBF\xB2-\xE1\xBF\xB4\xE1\xBF\xB6-\xE1\xBF\xBC\xE2\x84\x82\xE2\x84\x87"                   \
    "\xE2\x84\x8A-\xE2\x84\x93\xE2\x84\x95\xE2\x84\x99-\xE2\x84\x9D\xE2\x84\xA4\xE2\x84\xA6"       \
    "\xE2\x84\xA8\xE2\x84\xAA-\xE2\x84\xAD\xE2\x84\xAF-\xE2\x84\xB4\xE2\x84\xB9"                   \
    "\xE2\x84\xBC-\xE2\x84\xBF\xE2\x85\x85-\xE2\x85\x89\xE2\x85\x8E\xE2\x86\x83\xE2\x86\x84"       \
    "\xE2\xB0\x80-\xE2\xB1\xBB\xE2\xB1\xBE-\xE2\xB3\xA4\xE2\xB3\xAB-\xE2\xB3\xAE\xE2\xB3\xB2"      \
    "\xE2\xB3\xB3\xEA\x99\x80-\xEA\x99\xAD\xEA\x9A\x80-\xEA\x9A\x9B\xEA\x9C\xA2-\xEA\x9D\xAF"      \
    "\xEA\x9D\xB1-\xEA\x9E\x87\xEA\x9E\x8B-\xEA\x9E\x8E\xEA\xAD\xB0-\xEA\xAE\xBF"                  \
    "\xEF\xAC\x80-\xEF\xAC\x86\xEF\xAC\x93-\xEF\xAC\x97\xEF\xBC\xA1-\xEF\xBC\xBA"                  \
    "\xEF\xBD\x81-\xEF\xBD\x9A\xF0\x90\x90\x80-\xF0\x90\x91\x8F"                                   \
    "\xF0\x90\x92\xB0-\xF0\x90\x93\x93\xF0\x90\x93\x98-\xF0\x90\x93\xBB"                           \
    "\xF0\x90\xB2\x80-\xF0\x90\xB2\xB2\xF0\x90\xB3\x80-\xF0\x90\xB3\xB2"                           \
    "\xF0\x91\xA2\xA0-\xF0\x91\xA3\x9F\xF0\x9E\xA4\x80-\xF0\x9E\xA5\x83"

enum { MAX_PATTERNS = 5 };
static const struct family {
    const char *name;
    dsi_pretok pretok;
    bool digits; /* a step "Digits" behind the patterns */
    const char *patterns[MAX_PATTERNS + 1];
} families[] = {
    {"DeepSeek-V3",
     DSI_PRETOK_DEEPSEEK_V3,
     false,
     {"\\p{N}{1,3}", "[一-龥぀-ゟ゠-ヿ]+", V3_WORDS}},
    {"DeepSeek-V2",
     DSI_PRETOK_DEEPSEEK_V2,
     true,
     {"[\r\n]", "\\s?[" V2_LETTERS "]+", "\\s?[!-/:-~！-／：-～‘-‟　-。]+", "\\s+$",
      "[一-龥ࠀ-一가-\xED\x9F\xBF]+"}},
    {"Qwen2", DSI_PRETOK_QWEN2, false, {LLAMA("\\p{N}")}},
    {"Llama-3", DSI_PRETOK_LLAMA3, false, {LLAMA("\\p{N}{1,3}")}},
};
enum { N_FAMILIES = sizeof families / sizeof *families };
#define KNOWN                                                                                      \
    "supported are the byte-level BPE tokenizers of DeepSeek-V3 and R1, DeepSeek-V2 and LLM, "     \
    "Qwen2, Llama-3, and the R1 distills of the last two"

static bool is_absent(const dsi_json *json, uint32_t node) {
    return node == DSI_JSON_NONE || json->nodes[node].kind == DSI_JSON_NULL;
}

static bool is_false(const dsi_json *json, uint32_t node) {
    return node != DSI_JSON_NONE && json->nodes[node].kind == DSI_JSON_FALSE;
}

static bool has_type(const dsi_json *json, uint32_t node, const char *type) {
    return dsi_json_string_is(json, dsi_json_get(json, node, "type"), type);
}

/* The raw text of a value, for messages. */
static dsi_status refuse(const dsi_json *json, uint32_t node, const char *what, dsi_error *error) {
    uint32_t type = dsi_json_get(json, node, "type");
    if (type != DSI_JSON_NONE) node = type;
    static const char *const kinds[] = {"null", "false", "true", "", "", "an array", "an object"};
    const dsi_json_node *n = node == DSI_JSON_NONE ? NULL : &json->nodes[node];
    if (n && (n->kind == DSI_JSON_STRING || n->kind == DSI_JSON_NUMBER))
        return dsi_fail(error, DSI_E_UNSUPPORTED, "%s is %.*s: " KNOWN, what,
                        (int)(n->n_bytes < 200 ? n->n_bytes : 200), json->text + n->offset);
    return dsi_fail(error, DSI_E_UNSUPPORTED, "%s is %s: " KNOWN, what,
                    n ? kinds[n->kind] : "missing");
}

static dsi_status check_split(const dsi_json *json, uint32_t node, const char *pattern,
                              dsi_error *error) {
    uint32_t rule = dsi_json_get(json, node, "pattern");
    uint32_t regex = dsi_json_get(json, rule, "Regex");
    if (!has_type(json, node, "Split")) return refuse(json, node, "a step of pre_tokenizer", error);
    if (!dsi_json_string_is(json, regex, pattern))
        return refuse(json, regex, "the pattern of a pre_tokenizer step", error);
    uint32_t behavior = dsi_json_get(json, node, "behavior");
    if (!dsi_json_string_is(json, behavior, "Isolated"))
        return refuse(json, behavior, "the behavior of a pre_tokenizer step", error);
    uint32_t invert = dsi_json_get(json, node, "invert");
    if (!is_false(json, invert))
        return refuse(json, invert, "invert of a pre_tokenizer step", error);
    return DSI_OK;
}

/* The family whose first pattern the list's first step has: no two families share it. */
static const struct family *find_family(const dsi_json *json, uint32_t list) {
    uint32_t regex = dsi_json_get(json, dsi_json_get(json, list + 1, "pattern"), "Regex");
    for (int i = 0; i < N_FAMILIES; i++)
        if (dsi_json_string_is(json, regex, families[i].patterns[0])) return &families[i];
    return NULL;
}

static dsi_status check_digits(const dsi_json *json, uint32_t node, dsi_error *error) {
    if (!has_type(json, node, "Digits"))
        return refuse(json, node, "a step of pre_tokenizer", error);
    uint32_t value = dsi_json_get(json, node, "individual_digits");
    if (value == DSI_JSON_NONE || json->nodes[value].kind != DSI_JSON_TRUE)
        return refuse(json, value, "individual_digits", error);
    return DSI_OK;
}

static dsi_status check_byte_level(const dsi_json *json, uint32_t node, dsi_error *error) {
    if (!has_type(json, node, "ByteLevel"))
        return refuse(json, node, "the last step of pre_tokenizer", error);
    static const char *const off[] = {"add_prefix_space", "use_regex"};
    for (int i = 0; i < 2; i++) {
        uint32_t value = dsi_json_get(json, node, off[i]);
        if (!is_false(json, value)) return refuse(json, value, off[i], error);
    }
    return DSI_OK;
}

static dsi_status check_pre_tokenizer(const dsi_json *json, dsi_pretok *pretok, dsi_error *error) {
    uint32_t node = dsi_json_get(json, 0, "pre_tokenizer");
    uint32_t list = dsi_json_get(json, node, "pretokenizers");
    if (!has_type(json, node, "Sequence") || list == DSI_JSON_NONE ||
        json->nodes[list].kind != DSI_JSON_ARRAY)
        return refuse(json, node, "pre_tokenizer", error);
    if (json->nodes[list].n_items == 0)
        return dsi_fail(error, DSI_E_UNSUPPORTED, "pre_tokenizer has no steps: " KNOWN);
    const struct family *family = find_family(json, list);
    uint32_t step = list + 1;
    if (!family && !has_type(json, step, "Split"))
        return refuse(json, step, "a step of pre_tokenizer", error);
    if (!family)
        return refuse(json, dsi_json_get(json, dsi_json_get(json, step, "pattern"), "Regex"),
                      "the pattern of a pre_tokenizer step", error);
    uint32_t n_patterns = 0;
    while (family->patterns[n_patterns]) n_patterns++;
    uint32_t n_steps = n_patterns + family->digits + 1;
    if (json->nodes[list].n_items != n_steps)
        return dsi_fail(error, DSI_E_UNSUPPORTED,
                        "pre_tokenizer has %u steps and starts as %s's, which has %u: " KNOWN,
                        json->nodes[list].n_items, family->name, n_steps);
    for (uint32_t i = 0; i < n_patterns; i++, step = json->nodes[step].end) {
        dsi_status status = check_split(json, step, family->patterns[i], error);
        if (status != DSI_OK) return status;
    }
    if (family->digits) {
        dsi_status status = check_digits(json, step, error);
        if (status != DSI_OK) return status;
        step = json->nodes[step].end;
    }
    *pretok = family->pretok;
    return check_byte_level(json, step, error);
}

/* ---- What stands around it ------------------------------------------------------------------- */

/* Null, form C, or a Sequence of at most that. */
static dsi_status check_normalizer(const dsi_json *json, bool *normalizes, dsi_error *error) {
    uint32_t node = dsi_json_get(json, 0, "normalizer");
    *normalizes = false;
    if (is_absent(json, node)) return DSI_OK;
    uint32_t only = node;
    if (has_type(json, node, "Sequence")) {
        uint32_t list = dsi_json_get(json, node, "normalizers");
        if (list == DSI_JSON_NONE || json->nodes[list].kind != DSI_JSON_ARRAY ||
            json->nodes[list].n_items > 1)
            return refuse(json, node, "normalizer", error);
        if (json->nodes[list].n_items == 0) return DSI_OK;
        only = list + 1;
    }
    if (!has_type(json, only, "NFC")) return refuse(json, only, "normalizer", error);
    *normalizes = true;
    return DSI_OK;
}

/* ByteLevel moves offsets and changes no id. TemplateProcessing puts a begin token in front, which
 * the library leaves to its caller and to the chat templates. */
static dsi_status check_post_processor(const dsi_json *json, dsi_error *error) {
    uint32_t node = dsi_json_get(json, 0, "post_processor");
    if (is_absent(json, node)) return DSI_OK;
    uint32_t list = dsi_json_get(json, node, "processors");
    bool several = has_type(json, node, "Sequence") && list != DSI_JSON_NONE &&
                   json->nodes[list].kind == DSI_JSON_ARRAY;
    uint32_t end = several ? json->nodes[list].end : json->nodes[node].end;
    for (uint32_t i = several ? list + 1 : node; i < end; i = json->nodes[i].end)
        if (!has_type(json, i, "ByteLevel") && !has_type(json, i, "TemplateProcessing"))
            return refuse(json, i, "post_processor", error);
    return DSI_OK;
}

static dsi_status check_model(const dsi_json *json, uint32_t model, bool *whole_first,
                              dsi_error *error) {
    static const char *const known[] = {"type",
                                        "dropout",
                                        "unk_token",
                                        "continuing_subword_prefix",
                                        "end_of_word_suffix",
                                        "fuse_unk",
                                        "byte_fallback",
                                        "ignore_merges",
                                        "vocab",
                                        "merges"};
    enum { N_KNOWN = sizeof known / sizeof *known };
    if (!has_type(json, model, "BPE")) return refuse(json, model, "model", error);
    for (uint32_t key = model + 1; key < json->nodes[model].end; key = json->nodes[key + 1].end) {
        int i = 0;
        while (i < N_KNOWN && !dsi_json_string_is(json, key, known[i])) i++;
        if (i == N_KNOWN) return refuse(json, key, "an unknown option of model", error);
    }
    static const char *const null_only[] = {"dropout", "unk_token"};
    static const char *const null_or_empty[] = {"continuing_subword_prefix", "end_of_word_suffix"};
    for (int i = 0; i < 2; i++) {
        uint32_t value = dsi_json_get(json, model, null_only[i]);
        if (!is_absent(json, value)) return refuse(json, value, null_only[i], error);
        value = dsi_json_get(json, model, null_or_empty[i]);
        if (!is_absent(json, value) && !dsi_json_string_is(json, value, ""))
            return refuse(json, value, null_or_empty[i], error);
    }
    uint32_t value = dsi_json_get(json, model, "byte_fallback");
    if (!is_absent(json, value) && !is_false(json, value))
        return refuse(json, value, "byte_fallback", error);
    value = dsi_json_get(json, model, "ignore_merges");
    *whole_first = false;
    if (!is_absent(json, value) && !dsi_json_bool(json, value, whole_first))
        return refuse(json, value, "ignore_merges", error);
    uint32_t vocab = dsi_json_get(json, model, "vocab");
    if (vocab == DSI_JSON_NONE || json->nodes[vocab].kind != DSI_JSON_OBJECT)
        return dsi_fail(error, DSI_E_FORMAT, "model.vocab is not an object");
    uint32_t merges = dsi_json_get(json, model, "merges");
    if (merges == DSI_JSON_NONE || json->nodes[merges].kind != DSI_JSON_ARRAY)
        return dsi_fail(error, DSI_E_FORMAT, "model.merges is not an array");
    return DSI_OK;
}

dsi_status dsi_tokenizer_check_rules(const dsi_json *json, dsi_tokenizer_rules *rules,
                                     dsi_error *error) {
    static const char *const null_only[] = {"truncation", "padding"};
    for (int i = 0; i < 2; i++) {
        uint32_t value = dsi_json_get(json, 0, null_only[i]);
        if (!is_absent(json, value)) return refuse(json, value, null_only[i], error);
    }
    dsi_status status = check_normalizer(json, &rules->normalizes, error);
    if (status == DSI_OK) status = check_pre_tokenizer(json, &rules->pretok, error);
    if (status == DSI_OK) status = check_post_processor(json, error);
    if (status != DSI_OK) return status;
    uint32_t node = dsi_json_get(json, 0, "decoder");
    if (!has_type(json, node, "ByteLevel")) return refuse(json, node, "decoder", error);
    node = dsi_json_get(json, 0, "added_tokens");
    if (node != DSI_JSON_NONE && json->nodes[node].kind != DSI_JSON_ARRAY)
        return dsi_fail(error, DSI_E_FORMAT, "added_tokens is not an array");
    node = dsi_json_get(json, 0, "model");
    return check_model(json, node, &rules->whole_first, error);
}

dsi_status dsi_tokenizer_check_added(const dsi_json *json, uint32_t node, const char *text,
                                     int n_text, dsi_error *error) {
    static const char *const options[] = {"single_word", "lstrip", "rstrip"};
    for (int i = 0; i < 3; i++) {
        uint32_t value = dsi_json_get(json, node, options[i]);
        if (!is_absent(json, value) && !is_false(json, value))
            return dsi_fail(error, DSI_E_UNSUPPORTED,
                            "added token \"%.*s\" has %s: only false is "
                            "supported",
                            n_text, text, options[i]);
    }
    return DSI_OK;
}
