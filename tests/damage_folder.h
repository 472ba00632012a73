/* damage_folder.h: wrong by construction: the index and its shards, config.json, tokenizer.json.
 * Each function makes one folder that must not open (a tokenizer: that must not tokenize). */
#ifndef DSI_TESTS_DAMAGE_FOLDER_H
#define DSI_TESTS_DAMAGE_FOLDER_H

#include "damage_weights.h"

/* ---- Index and shards ----------------------------------------------------------------------- */

enum { N_SHARDS = 3 };
static const char *const shards[N_SHARDS] = {"model-00001-of-00003.safetensors",
                                             "model-00002-of-00003.safetensors",
                                             "model-00003-of-00003.safetensors"};
static inline size_t shard_of_item(const damaged *d, size_t i) { return i * N_SHARDS / d->n; }

/* The items of one shard, and item `guest` (SIZE_MAX: none) behind them. */
static inline void write_shard(const damaged *d, size_t shard, size_t guest) {
    item *part = calloc(MAX_ITEMS, sizeof *part);
    assert_non_null(part);
    size_t n = 0;
    for (size_t i = 0; i < d->n; i++)
        if (shard_of_item(d, i) == shard || i == guest) part[n++] = d->items[i];
    lay_out(part, n);
    bytes header = header_of(part, n, plain_metadata);
    write_items(d->folder, shards[shard], header.n, &header, part, n);
    free(header.data);
    free(part);
}
static inline void write_shards(damaged *d) {
    char path[512];
    for (size_t i = 0; i < N_SHARDS; i++) write_shard(d, i, SIZE_MAX);
    snprintf(path, sizeof path, "%s/%s", d->folder, weights);
    assert_int_equal(unlink(path), 0);
}
/* The index; the entry of item `at` (SIZE_MAX: none) has another JSON value, or with NULL is
 * left out. `more` stands behind the last entry. */
static inline bytes index_text(const damaged *d, size_t at, const char *value, const char *more) {
    bytes text = {0};
    add_text(&text, "{\"metadata\": {\"total_size\": 7}, \"weight_map\": {");
    const char *comma = "";
    for (size_t i = 0; i < d->n; i++) {
        if (i == at && !value) continue;
        add_text(&text, "%s\"%s\": ", comma, d->items[i].name);
        if (i == at && value)
            add_text(&text, "%s", value);
        else
            add_text(&text, "\"%s\"", shards[shard_of_item(d, i)]);
        comma = ",\n";
    }
    add_text(&text, "%s}}\n", more ? more : "");
    return text;
}
static inline void write_index(damaged *d, size_t at, const char *value, const char *more) {
    bytes text = index_text(d, at, value, more);
    write_file(d->folder, index_name, text.data, text.n);
    free(text.data);
}

static inline void bad_index(damaged *d) {
    write_shards(d);
    bytes text = index_text(d, SIZE_MAX, NULL, NULL);
    spoil_json(&text);
    write_file(d->folder, index_name, text.data, text.n);
    free(text.data);
}
static inline void bad_weight_map(damaged *d) {
    static const char *const texts[] = {"",
                                        "{}",
                                        "[]",
                                        "null",
                                        "7",
                                        "\"weight_map\"",
                                        "{\"weight_map\": {}}",
                                        "{\"weight_map\": []}",
                                        "{\"weight_map\": null}",
                                        "{\"weight_map\": \"model.safetensors\"}",
                                        "{\"metadata\": {}}",
                                        "{\"Weight_map\": {\"a\": \"a.safetensors\"}}",
                                        "[{\"weight_map\": {}}]"};
    write_shards(d);
    write_text(d->folder, index_name, ANY_OF(texts));
}
static inline void bad_shard_name(damaged *d) {
    static const char *const values[] = {"\"../model-00001-of-00003.safetensors\"",
                                         "\"/etc/passwd\"",
                                         "\"./model-00001-of-00003.safetensors\"",
                                         "\"sub/x.safetensors\"",
                                         "\"sub\\\\x.safetensors\"",
                                         "\"\"",
                                         "\".safetensors\"",
                                         "\"model.bin\"",
                                         "\"model.SAFETENSORS\"",
                                         "\"x..safetensors\"",
                                         "\"x\\u0000.safetensors\"",
                                         "\"x\\n.safetensors\"",
                                         "null",
                                         "7",
                                         "[\"model-00001-of-00003.safetensors\"]",
                                         "{}",
                                         "true"};
    char value[700];
    snprintf(value, sizeof value, "%s", ANY_OF(values));
    if (below(8) == 0) snprintf(value, sizeof value, "\"%0600d.safetensors\"", 0);
    write_shards(d);
    write_index(d, below(d->n), value, NULL);
}
static inline void wrong_shard(damaged *d) {
    char value[64];
    size_t i = below(d->n);
    snprintf(value, sizeof value, "\"%s\"",
             shards[(shard_of_item(d, i) + 1 + below(2)) % N_SHARDS]);
    write_shards(d);
    write_index(d, i, value, NULL);
}
static inline void shards_swapped(damaged *d) {
    char a[512], b[512], c[512];
    size_t first = below(N_SHARDS), second = (first + 1 + below(2)) % N_SHARDS;
    write_shards(d);
    write_index(d, SIZE_MAX, NULL, NULL);
    snprintf(a, sizeof a, "%s/%s", d->folder, shards[first]);
    snprintf(b, sizeof b, "%s/%s", d->folder, shards[second]);
    snprintf(c, sizeof c, "%s/spare", d->folder);
    assert_int_equal(rename(a, c) | rename(b, a) | rename(c, b), 0);
}
static inline void not_listed(damaged *d) {
    write_shards(d);
    write_index(d, below(d->n), NULL, NULL);
}
static inline void listed_only(damaged *d) {
    char more[128];
    write_shards(d);
    snprintf(more, sizeof more, ", \"model.layers.%zu.mlp.up_proj.weight\": \"%s\"", 3 + below(9),
             shards[below(N_SHARDS)]);
    write_index(d, SIZE_MAX, NULL, more);
}
static inline void shard_damaged(damaged *d) {
    char path[512];
    size_t shard = below(N_SHARDS);
    write_shards(d);
    write_index(d, SIZE_MAX, NULL, NULL);
    bytes file = read_file(d->folder, shards[shard]);
    snprintf(path, sizeof path, "%s/%s", d->folder, shards[shard]);
    d->file = shards[shard];
    switch (below(5)) {
    case 0:
        write_file(d->folder, shards[shard], file.data, below(file.n));
        break;
    case 1:
        write_file(d->folder, shards[shard], file.data, file.n + 1); /* its closing zero byte */
        break;
    case 2:
        assert_int_equal(unlink(path), 0);
        break;
    case 3:
        assert_int_equal(unlink(path) | mkdir(path, 0700), 0);
        break;
    default: /* twice the same */
        write_file(d->folder, shards[(shard + 1) % N_SHARDS], file.data, file.n);
        break;
    }
    free(file.data);
}
static inline void in_two_shards(damaged *d) {
    size_t i = below(d->n);
    write_shards(d);
    write_shard(d, (shard_of_item(d, i) + 1 + below(2)) % N_SHARDS, i);
    write_index(d, SIZE_MAX, NULL, NULL);
}

/* ---- config.json ---------------------------------------------------------------------------- */

/* Start and length of the value of a top-level key in the goldens' style (one blank deep). */
static inline bool find_value(const bytes *text, const char *key, size_t *at, size_t *n) {
    char line[96];
    snprintf(line, sizeof line, "\n \"%s\": ", key);
    const char *start = strstr(text->data, line);
    if (!start) return false;
    start += strlen(line);
    const char *end = strstr(start, ",\n \"");
    if (!end) end = strstr(start, "\n}");
    assert_non_null(end);
    *at = (size_t)(start - text->data);
    *n = (size_t)(end - start);
    return true;
}
/* config.json with another value (JSON) of the key, which may be new; NULL: without the key. */
static inline void change_config(damaged *d, const char *key, const char *value) {
    bytes text = copy_of(configs[d->model].data, configs[d->model].n);
    size_t at, n;
    char entry[1024];
    if (find_value(&text, key, &at, &n)) {
        size_t before = at - strlen(key) - 5; /* the newline of "\n \"key\": " */
        if (value)
            splice_text(&text, at, n, value, strlen(value));
        else if (text.data[at + n] == ',')
            splice_text(&text, before, at + n + 1 - before, "", 0);
        else
            splice_text(&text, before - 1, at + n - before + 1, "", 0);
    } else if (value) {
        snprintf(entry, sizeof entry, "\n \"%s\": %s,", key, value);
        insert_first(&text, entry);
    } else {
        fail_msg("%s is not there", key);
    }
    write_file(d->folder, "config.json", text.data, text.n);
    free(text.data);
}
static inline unsigned config_number(const damaged *d, const char *key) {
    size_t at = 0, n = 0;
    if (!find_value(&configs[d->model], key, &at, &n)) fail_msg("no %s", key);
    return (unsigned)strtoul(configs[d->model].data + at, NULL, 10);
}

static const char *const all_sizes[] = {"hidden_size", "num_hidden_layers", "vocab_size",
                                        "intermediate_size", "num_attention_heads"};
static const char *const mla_sizes[] = {"kv_lora_rank",          "qk_nope_head_dim",
                                        "qk_rope_head_dim",      "v_head_dim",
                                        "moe_intermediate_size", "n_routed_experts"};
/* A key whose value decides shapes, at least 1 where it is there. */
static inline const char *any_size(const damaged *d) {
    if (below(2)) return ANY_OF(all_sizes);
    return d->model == QWEN2 ? "num_key_value_heads" : ANY_OF(mla_sizes);
}

static inline void broken_config(damaged *d) {
    static const char *const roots[] = {"", "[]", "null", "7", "\"config\"", "[{}]", "{}"};
    bytes text = copy_of(configs[d->model].data, configs[d->model].n);
    spoil_json(&text);
    write_file(d->folder, "config.json", text.data, text.n);
    free(text.data);
    if (below(8) == 0) write_text(d->folder, "config.json", ANY_OF(roots));
    if (below(8) == 0) { /* above the limit of 4 MiB */
        text = (bytes){calloc((4 << 20) + 2, 1), (4 << 20) + 1};
        assert_non_null(text.data);
        memset(text.data, ' ', text.n);
        memcpy(text.data, "{}", 2);
        write_file(d->folder, "config.json", text.data, text.n);
        free(text.data);
    }
}
static inline void number_missing(damaged *d) {
    static const char *const or_null[] = {"q_lora_rank", "n_routed_experts", "n_shared_experts"};
    const char *key = below(6) ? any_size(d) : "max_position_embeddings";
    const char *value = below(2) ? "null" : NULL;
    if (d->model != QWEN2 && below(4) == 0) key = ANY_OF(or_null), value = NULL;
    change_config(d, key, value);
}
static inline void number_bad(damaged *d) {
    static const char *const values[] = {"0",    "-1", "0.5", "\"7\"",    "true",
                                         "[]",   "{}", "1e3", "1e400",    "4294967296",
                                         "[64]", "-0", "2.0", "99999999", "18446744073709551616"};
    static const char *const floats[][2] = {
        {"rms_norm_eps", "0"},        {"rms_norm_eps", "-1e-6"},           {"rms_norm_eps", "1"},
        {"rms_norm_eps", "\"x\""},    {"rms_norm_eps", "1e-400"},          {"rms_norm_eps", "[]"},
        {"tie_word_embeddings", "1"}, {"tie_word_embeddings", "\"false\""}};
    if (below(4)) {
        change_config(d, any_size(d), ANY_OF(values));
    } else {
        size_t i = below(sizeof floats / sizeof *floats);
        change_config(d, floats[i][0], floats[i][1]);
    }
}
static inline void size_changed(damaged *d) { /* to another that is allowed */
    char value[32];
    const char *key = any_size(d);
    unsigned old = config_number(d, key);
    const unsigned values[] = {old + 1, old - 1, old * 2, old + 64, old * 3};
    unsigned now = ANY_OF(values);
    snprintf(value, sizeof value, "%u", now ? now : old + 1);
    if (d->model != QWEN2 && below(4) == 0) {
        key = below(2) ? "n_shared_experts" : "first_k_dense_replace";
        snprintf(value, sizeof value, "%zu", (2 + below(3)) % 4); /* not 1 */
    }
    if (d->model == V3 && below(6) == 0) key = "q_lora_rank";
    change_config(d, key, value);
}
static inline void feature_asked_for(damaged *d) {
    static const char *const features[][2] = {
        {"hidden_act", "\"gelu\""},
        {"hidden_act", "\"silu \""},
        {"hidden_act", "7"},
        {"mlp_bias", "true"},
        {"mlp_bias", "\"no\""},
        {"use_sliding_window", "true"},
        {"layer_types", "[\"full_attention\", \"sliding_attention\", \"full_attention\"]"},
        {"layer_types", "[\"full_attention\"]"},
        {"layer_types", "\"full_attention\""},
        {"rope_scaling", "{\"type\": \"linear\", \"factor\": 2}"},
        {"rope_scaling", "{\"rope_type\": \"dynamic\", \"factor\": 2}"},
        {"rope_scaling", "{\"type\": \"yarn\"}"},
        {"rope_scaling", "{\"type\": \"yarn\", \"factor\": 0.5, "
                         "\"original_max_position_embeddings\": 64}"},
        {"rope_scaling", "[]"},
        {"rope_scaling", "\"yarn\""},
        {"rope_theta", "1"},
        {"rope_theta", "777"},
        {"rope_theta", "1e13"},
        {"rope_theta", "\"10000\""},
        {"rope_parameters", "{\"rope_type\": \"default\"}"},
        {"rope_parameters", "{\"rope_type\": \"longrope\", \"rope_theta\": 10000}"},
        {"rope_parameters", "{\"rope_type\": \"llama3\", \"rope_theta\": 10000}"},
        {"rope_parameters", "{\"rope_type\": \"default\", \"type\": \"yarn\", \"rope_theta\": 9}"},
        {"rope_parameters", "{\"rope_theta\": 10000}"},
        {"rope_parameters", "7"},
        {"partial_rotary_factor", "0.5"},
        {"partial_rotary_factor", "-1"},
        {"quantization_config", "{\"quant_method\": \"awq\"}"},
        {"quantization_config", "{\"quant_method\": \"gptq\", \"bits\": 4}"},
        {"quantization_config", "{}"},
        {"quantization_config", "7"},
        {"quantization_config", "{\"quant_method\": \"blockwise_int8\"}"},
        {"quantization_config",
         "{\"quant_method\": \"w8a8_int8\", \"activation_scheme\": \"static\"}"},
        {"quantization_config", "{\"quant_method\": \"compressed-tensors\"}"},
        {"quantization_config",
         "{\"quant_method\": \"compressed-tensors\", \"format\": \"marlin-24\"}"},
        {"quantization_config",
         "{\"quant_method\": \"compressed-tensors\", \"format\": \"pack-quantized\"}"},
        {"compression_config", "{\"format\": \"int4\"}"},
        {"architectures", "[\"OtherForCausalLM\"]"},
        {"architectures", "[]"},
        {"architectures", "\"DeepseekV3ForCausalLM\""},
        {"architectures", "[\"A\", \"B\"]"},
    };
    size_t i = below(sizeof features / sizeof *features);
    change_config(d, features[i][0], features[i][1]);
}
static inline void feature_of_moe(damaged *d) {
#define FP8(rest) "{\"quant_method\": \"fp8\"" rest "}"
    static const char *const features[][2] = {
        {"topk_method", "\"aux_tc\""},
        {"topk_method", "7"},
        {"scoring_func", "\"tanh\""},
        {"scoring_func", "\"softmax\""},
        {"n_group", "5"},
        {"n_group", "0"},
        {"n_group", "12"},
        {"n_group", "1025"},
        {"topk_group", "5"},
        {"topk_group", "0"},
        {"num_experts_per_tok", "13"},
        {"num_experts_per_tok", "7"},
        {"num_experts_per_tok", "0"},
        {"norm_topk_prob", "1"},
        {"routed_scaling_factor", "0"},
        {"routed_scaling_factor", "1e300"},
        {"moe_layer_freq", "2"},
        {"moe_layer_freq", "0"},
        {"first_k_dense_replace", "4"},
        {"rope_interleave", "false"},
        {"rope_interleave", "1"},
        {"qk_head_dim", "63"},
        {"num_key_value_heads", "2"},
        {"attention_bias", "true"},
        {"num_nextn_predict_layers", "17"},
        {"quantization_config", NULL},
        {"quantization_config", FP8("")},
        {"quantization_config", FP8(", \"weight_block_size\": [64, 64]")},
        {"quantization_config", FP8(", \"weight_block_size\": [128]")},
        {"quantization_config", FP8(", \"weight_block_size\": 128")},
        {"quantization_config", FP8(", \"fmt\": \"e5m2\", \"weight_block_size\": [128, 128]")},
        {"quantization_config", FP8(", \"activation_scheme\": \"static\"")},
        {"quantization_config", FP8(", \"scale_fmt\": \"float\"")},
    };
    size_t i = below(sizeof features / sizeof *features);
    change_config(d, features[i][0], features[i][1]);
}
static inline void other_family(damaged *d) { /* `architectures` stays */
    static const char *const types[] = {"\"deepseek_v4\"",
                                        "\"deepseek_v32\"",
                                        "\"kimi_k2\"",
                                        "\"gpt2\"",
                                        "\"llama\"",
                                        "\"mixtral\"",
                                        "\"\"",
                                        "null",
                                        "7",
                                        "[\"qwen2\"]",
                                        "\"qwen2\\u0000\"",
                                        "\"DEEPSEEK_V3\""};
    change_config(d, "model_type", ANY_OF(types));
}
static inline void token_bad(damaged *d) {
    static const char *const values[] = {"512", "-1", "\"1\"", "1.5", "true", "{}", "4294967297"};
    static const char *const lists[] = {"[1, 512]", "[0,1,2,3,4,5,6,7,8]", "[null]", "[[1]]"};
    const char *value = ANY_OF(values);
    char text[128];
    if (below(3) == 0) {
        change_config(d, "bos_token_id", value);
        return;
    }
    if (below(2)) value = ANY_OF(lists);
    if (below(2)) {
        change_config(d, "eos_token_id", value);
        return;
    }
    snprintf(text, sizeof text, "{\"eos_token_id\": %s}", value);
    write_text(d->folder, "generation_config.json", text);
}

/* ---- tokenizer.json ------------------------------------------------------------------------- */

/* A character of the byte-level alphabet as JSON: printable bytes are themselves, the others
 * U+0100 on. */
static inline void add_byte(bytes *text, int byte, int *next) {
    bool printable = (byte >= 0x21 && byte <= 0x7e) || (byte >= 0xa1 && byte != 0xad);
    int c = printable ? byte : (*next)++;
    if (c < 0x80)
        add_text(text, "%s%c", c == '"' || c == '\\' ? "\\" : "", c);
    else
        add_text(text, "%c%c", 0xc0 | c >> 6, 0x80 | (c & 0x3f));
}

/* 256 bytes, two merges, two added tokens; of DeepSeek's form. */
static inline bytes tokenizer_text(void) {
    bytes text = {0};
    static const char split[] = "{\"type\":\"Split\",\"pattern\":{\"Regex\":\"%s\"},"
                                "\"behavior\":\"Isolated\",\"invert\":false},";
    /* As they stand in the file: JSON of the patterns in lib/text/tokenizer_rules.c. */
    static const char words[] =
        "[!\\\"#$%&'()*+,\\\\-./:;<=>?@\\\\[\\\\\\\\\\\\]^_`{|}~][A-Za-z]+"
        "|[^\\r\\n\\\\p{L}\\\\p{P}\\\\p{S}]?[\\\\p{L}\\\\p{M}]+| ?[\\\\p{P}\\\\p{S}]+[\\r\\n]*"
        "|\\\\s*[\\r\\n]+|\\\\s+(?!\\\\S)|\\\\s+";
    add_text(&text, "{\"truncation\":null,\"padding\":null,\"added_tokens\":["
                    "{\"id\":300,\"content\":\"<one>\",\"normalized\":false,\"special\":true},"
                    "{\"id\":301,\"content\":\"<two>\",\"normalized\":false,\"special\":true}],"
                    "\"normalizer\":null,"
                    "\"pre_tokenizer\":{\"type\":\"Sequence\",\"pretokenizers\":[");
    add_text(&text, split, "\\\\p{N}{1,3}");
    add_text(&text, split, "[一-龥぀-ゟ゠-ヿ]+");
    add_text(&text, split, words);
    add_text(&text, "{\"type\":\"ByteLevel\",\"add_prefix_space\":false,\"use_regex\":false}]},"
                    "\"post_processor\":null,\"decoder\":{\"type\":\"ByteLevel\"},"
                    "\"model\":{\"type\":\"BPE\",\"dropout\":null,\"vocab\":{");
    for (int byte = 0, next = 0x100; byte < 256; byte++) {
        add_text(&text, "%s\"", byte ? "," : "");
        add_byte(&text, byte, &next);
        add_text(&text, "\":%d", byte);
    }
    add_text(&text, ",\"ab\":256,\"abc\":257},\"merges\":[\"a b\",\"ab c\"]}}");
    return text;
}

/* With the first `from` replaced by `to`; NULL: as it is. */
static inline void write_tokenizer(damaged *d, const char *from, const char *to) {
    bytes text = tokenizer_text();
    char *changed = from ? replaced(text.data, from, to) : strdup(text.data);
    write_text(d->folder, "tokenizer.json", changed);
    free(changed);
    free(text.data);
}
static inline void broken_tokenizer(damaged *d) {
    bytes text = tokenizer_text();
    spoil_json(&text);
    write_file(d->folder, "tokenizer.json", text.data, text.n);
    free(text.data);
}
#define WRITE_ANY_OF(rows) write_any(d, rows, sizeof(rows) / sizeof *(rows))
static inline void write_any(damaged *d, const char *const (*rows)[2], size_t n) {
    size_t i = below(n);
    write_tokenizer(d, rows[i][0], rows[i][1]);
}

static inline void tokenizer_rule(damaged *d) {
    static const char *const rules[][2] = {
        {"\"truncation\":null", "\"truncation\":{\"max_length\":512}"},
        {"\"padding\":null", "\"padding\":{\"strategy\":\"BatchLongest\"}"},
        {"\"normalizer\":null", "\"normalizer\":{\"type\":\"Lowercase\"}"},
        {"\"normalizer\":null", "\"normalizer\":\"NFKC\""},
        {"\"normalizer\":null", "\"normalizer\":{\"type\":\"Sequence\",\"normalizers\":[1]}"},
        {"\"pre_tokenizer\":{", "\"pre_tokenizer\":{\"a\":1},\"x\":{"},
        {"\"pre_tokenizer\":", "\"pre_tokenizer\":null,\"x\":"},
        {"\"pretokenizers\":[", "\"pretokenizers\":[{\"type\":\"Whitespace\"},"},
        {"\"pretokenizers\":", "\"pretokenizers\":{},\"x\":"},
        {"{1,3}", "{1,4}"},
        {"\\\\p{N}", "\\\\p{Nd}"},
        {"[A-Za-z]+|", "[A-Za-z]*|"},
        {"Isolated", "Removed"},
        {"Isolated", "MergedWithNext"},
        {"\"invert\":false", "\"invert\":true"},
        {"\"invert\":false", "\"invert\":0"},
        {"\"add_prefix_space\":false", "\"add_prefix_space\":true"},
        {"\"use_regex\":false", "\"use_regex\":true"},
        {"\"type\":\"Split\"", "\"type\":\"Digits\""},
        {"\"pattern\":{\"Regex\"", "\"pattern\":{\"String\""},
        {"\"post_processor\":null", "\"post_processor\":{\"type\":\"BertProcessing\"}"},
        {"\"decoder\":{\"type\":\"ByteLevel\"}", "\"decoder\":{\"type\":\"WordPiece\"}"},
        {"\"decoder\":{\"type\":\"ByteLevel\"}", "\"decoder\":null"},
        {"\"type\":\"BPE\"", "\"type\":\"Unigram\""},
        {"\"type\":\"BPE\"", "\"type\":\"WordPiece\""},
        {"\"type\":\"BPE\"", "\"type\":7"},
        {"\"model\":{", "\"Model\":{"},
        {"\"dropout\":null", "\"dropout\":0.1"},
        {"\"dropout\":null", "\"unk_token\":\"a\""},
        {"\"dropout\":null", "\"continuing_subword_prefix\":\"##\""},
        {"\"dropout\":null", "\"end_of_word_suffix\":\"</w>\""},
        {"\"dropout\":null", "\"byte_fallback\":true"},
        {"\"dropout\":null", "\"cache_capacity\":7"}};
    WRITE_ANY_OF(rules);
}
static inline void vocabulary_bad(damaged *d) {
    static const char *const rows[][2] = {
        {"\"a\":97", "\"a\":-1"},
        {"\"a\":97", "\"a\":97.5"},
        {"\"a\":97", "\"a\":\"97\""},
        {"\"a\":97", "\"a\":null"},
        {"\"a\":97", "\"a\":98"},
        {"\"a\":97", "\"a\":300"},
        {"\"a\":97", "\"a\":512"},
        {"\"a\":97", "\"a\":4294967296"},
        {"\"a\":97", "\"a\":18446744073709551616"},
        {"\"a\":97", "\"a\":2147483647"},
        {"\"a\":97,", ""},
        {"\"a\":97", "\"aa\":97"},
        {"\"a\":97", "\"\":302,\"a\":97"},
        {"\"a\":97", "\"中\":302,\"a\":97"},
        {"\"a\":97", "\"a b\":302,\"a\":97"},
        {"\"a\":97", "\"<one>\":302,\"a\":97"},
        {"\"a\":97", "\"\\u0061\":302,\"a\":97"},
        {"\"abc\":257", "\"abd\":257"},
        {"\"vocab\":{", "\"vocab\":[],\"x\":{"},
        {"\"vocab\":{", "\"vocab\":null,\"cache\":{"},
        {"\"dropout\":null,\"vocab\"", "\"merges\""},
    };
    WRITE_ANY_OF(rows);
}
static inline void merges_bad(damaged *d) {
    static const char *const rows[][2] = {
        {"\"a b\"", "7"},
        {"\"a b\"", "null"},
        {"\"a b\"", "\"ab\""},
        {"\"a b\"", "\"\""},
        {"\"a b\"", "\" \""},
        {"\"a b\"", "\"a \""},
        {"\"a b\"", "\" b\""},
        {"\"a b\"", "\"a b c\""},
        {"\"a b\"", "\"q z\""},
        {"\"a b\"", "\"ax b\""},
        {"\"a b\"", "\"中 b\""},
        {"\"a b\"", "[\"a\"]"},
        {"\"a b\"", "[]"},
        {"\"a b\"", "[\"a\",\"b\",\"c\"]"},
        {"\"a b\"", "[\"a\",1]"},
        {"\"a b\"", "[[\"a\"],[\"b\"]]"},
        {"\"a b\"", "{\"a\":\"b\"}"},
        {"\"merges\":[", "\"merges\":{},\"x\":["},
        {"\"merges\":[\"a b\",\"ab c\"]", "\"merges\":\"a b\""},
        {",\"merges\":[\"a b\",\"ab c\"]", ""},
    };
    WRITE_ANY_OF(rows);
}
static inline void added_bad(damaged *d) {
    static const char *const rows[][2] = {
        {"\"content\":\"<one>\"", "\"contents\":\"<one>\""},
        {"\"content\":\"<one>\"", "\"content\":7"},
        {"\"content\":\"<one>\"", "\"content\":\"\""},
        {"\"content\":\"<one>\"", "\"content\":\"<two>\""},
        {"\"id\":300,", ""},
        {"\"id\":300", "\"id\":-1"},
        {"\"id\":300", "\"id\":301"},
        {"\"id\":300", "\"id\":97"},
        {"\"id\":300", "\"id\":512"},
        {"\"id\":300", "\"id\":99999999999"},
        {"\"id\":300", "\"id\":\"300\""},
        {"\"normalized\":false", "\"normalized\":null"},
        {"\"normalized\":false,", ""},
        {"\"normalized\":false", "\"normalized\":false,\"lstrip\":true"},
        {"\"normalized\":false", "\"normalized\":false,\"rstrip\":1"},
        {"\"normalized\":false", "\"normalized\":false,\"single_word\":true"},
        {"\"added_tokens\":[", "\"added_tokens\":[7,"},
        {"\"added_tokens\":[", "\"added_tokens\":[null,"},
        {"\"added_tokens\":[", "\"added_tokens\":[[],"},
        {"\"added_tokens\":", "\"added_tokens\":{},\"x\":"},
        {"\"added_tokens\":", "\"added_tokens\":null,\"x\":"},
    };
    WRITE_ANY_OF(rows);
}

#endif
