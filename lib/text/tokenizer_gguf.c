/* tokenizer_gguf.c: the tokenizer inside a GGUF file. Its keys hold what tokenizer.json holds, less
 * the rules, for which stands a name ("pre"). So the lists are written as a tokenizer.json and go
 * through the same loader: what it refuses in one kind of file, it refuses in both. */
#include "../base/sys.h"
#include "bpe.h"
#include "chat.h"
#include "tokenizer_rules.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

/* Numbers of tokenizer.ggml.token_type. */
enum { TOKEN_NORMAL = 1, TOKEN_CONTROL = 3, TOKEN_USER_DEFINED = 4, TOKEN_UNUSED = 5 };
enum { MAX_TOKENS = 1 << 20 };

/* The names of llama.cpp's converter, whose table knows a tokenizer by a hash of what it encodes.
 */
static const struct {
    const char *pre;
    dsi_tokenizer_rules rules;
} known[] = {
    {"deepseek-v3", {DSI_PRETOK_DEEPSEEK_V3, false, false}},
    {"deepseek-llm", {DSI_PRETOK_DEEPSEEK_V2, false, false}},
    {"deepseek-r1-qwen", {DSI_PRETOK_QWEN2, true, false}},
    {"qwen2", {DSI_PRETOK_QWEN2, true, false}},
    {"llama-bpe", {DSI_PRETOK_LLAMA3, false, true}},
    {"smollm", {DSI_PRETOK_SMOLLM, false, false}},
    {"deepseek-coder", {DSI_PRETOK_DEEPSEEK_CODER, false, false}},
};
static const char known_names[] =
    "deepseek-v3, deepseek-llm, deepseek-coder, deepseek-r1-qwen, qwen2, llama-bpe, smollm";

/* ---- A text that grows ---------------------------------------------------------------------- */

typedef struct writer {
    char *text;
    uint64_t n_bytes, capacity;
    bool no_memory;
} writer;

static void put_bytes(writer *w, const char *bytes, uint64_t n_bytes) {
    if (w->no_memory || n_bytes > UINT64_MAX / 4 - w->n_bytes) {
        w->no_memory = true;
        return;
    }
    if (w->n_bytes + n_bytes > w->capacity) {
        uint64_t capacity = 2 * (w->n_bytes + n_bytes) + 4096;
        char *grown = dsi_sys_realloc(w->text, capacity, 1);
        w->no_memory = grown == NULL;
        if (!grown) return;
        w->text = grown;
        w->capacity = capacity;
    }
    memcpy(w->text + w->n_bytes, bytes, n_bytes);
    w->n_bytes += n_bytes;
}
static void put(writer *w, const char *text) { put_bytes(w, text, strlen(text)); }

/* A JSON string. What is not UTF-8 the loader refuses. */
static void put_string(writer *w, const char *text, uint64_t n_bytes) {
    put(w, "\"");
    for (uint64_t i = 0, begin = 0; i <= n_bytes; i++) {
        uint8_t byte = i < n_bytes ? (uint8_t)text[i] : 0;
        if (i < n_bytes && byte >= 0x20 && byte != '"' && byte != '\\') continue;
        put_bytes(w, text + begin, i - begin);
        begin = i + 1;
        if (i == n_bytes) break;
        char escaped[8];
        snprintf(escaped, sizeof escaped, "\\u%04x", byte);
        put(w, escaped);
    }
    put(w, "\"");
}

/* ---- The lists ------------------------------------------------------------------------------ */

typedef struct lists {
    const dsi_gguf *gguf;
    const dsi_gguf_value *types; /* NULL: all tokens are normal */
    dsi_pretok pretok;
    dsi_gguf_strings tokens, merges;
    writer json;
} lists;

static uint64_t type_of(const lists *l, uint64_t i) {
    uint64_t type = TOKEN_NORMAL;
    dsi_gguf_element_u64(l->types, i, &type);
    return type;
}

static void put_id(writer *w, uint64_t id) {
    char text[32];
    snprintf(text, sizeof text, "%" PRIu64, id);
    put(w, text);
}

/* Marks and words that are found in a text before it is cut: added_tokens of tokenizer.json. */
static void put_added(lists *l) {
    dsi_gguf_strings tokens = l->tokens;
    const char *text, *comma = "";
    uint64_t n_bytes;
    put(&l->json, "{\"added_tokens\": [");
    for (uint64_t i = 0; dsi_gguf_strings_next(&tokens, &text, &n_bytes); i++) {
        uint64_t type = type_of(l, i);
        if (type != TOKEN_CONTROL && type != TOKEN_USER_DEFINED) continue;
        put(&l->json, comma);
        put(&l->json, "{\"id\": ");
        put_id(&l->json, i);
        put(&l->json, ", \"content\": ");
        put_string(&l->json, text, n_bytes);
        put(&l->json, type == TOKEN_CONTROL ? ", \"special\": true" : ", \"special\": false");
        /* so that the loader finds the letters of DeepSeek LLM, which are added by mistake */
        bool letters = l->pretok == DSI_PRETOK_DEEPSEEK_V2 && type == TOKEN_USER_DEFINED;
        put(&l->json, letters ? ", \"normalized\": true}\n" : ", \"normalized\": false}\n");
        comma = ",";
    }
    put(&l->json, "],\n");
}

/* Unused ids have made-up names, which are no text of the model. */
static void put_vocabulary(lists *l) {
    dsi_gguf_strings tokens = l->tokens;
    const char *text, *comma = "";
    uint64_t n_bytes;
    put(&l->json, "\"model\": {\"vocab\": {");
    for (uint64_t i = 0; dsi_gguf_strings_next(&tokens, &text, &n_bytes); i++) {
        uint64_t type = type_of(l, i);
        if (type == TOKEN_CONTROL || type == TOKEN_USER_DEFINED || type == TOKEN_UNUSED) continue;
        put(&l->json, comma);
        put_string(&l->json, text, n_bytes);
        put(&l->json, ":");
        put_id(&l->json, i);
        comma = ",\n";
    }
    put(&l->json, "},\n");
}

static void put_merges(lists *l) {
    const char *text, *comma = "";
    uint64_t n_bytes;
    put(&l->json, "\"merges\": [");
    while (dsi_gguf_strings_next(&l->merges, &text, &n_bytes)) {
        put(&l->json, comma);
        put_string(&l->json, text, n_bytes);
        comma = ",\n";
    }
    put(&l->json, "]}}\n");
}

/* ---- The tokenizer -------------------------------------------------------------------------- */

static dsi_status refuse(const dsi_gguf *gguf, const char *key, const char *supported,
                         dsi_error *error) {
    const char *text = "";
    uint64_t n_bytes = 0;
    dsi_gguf_text(dsi_gguf_find(gguf, key), &text, &n_bytes);
    return dsi_fail(error, DSI_E_UNSUPPORTED, "%s: %s is \"%.*s\"; supported are %s", gguf->path,
                    key, n_bytes < 64 ? (int)n_bytes : 64, text, supported);
}

static const dsi_tokenizer_rules *find_rules(const dsi_gguf *gguf) {
    const dsi_gguf_value *pre = dsi_gguf_find(gguf, "tokenizer.ggml.pre");
    for (size_t i = 0; i < sizeof known / sizeof known[0]; i++)
        if (dsi_gguf_text_is(pre, known[i].pre)) return &known[i].rules;
    return NULL;
}

static dsi_status find_lists(lists *l, dsi_error *error) {
    bool good = dsi_gguf_strings_of(dsi_gguf_find(l->gguf, "tokenizer.ggml.tokens"), &l->tokens) &&
                dsi_gguf_strings_of(dsi_gguf_find(l->gguf, "tokenizer.ggml.merges"), &l->merges);
    l->types = dsi_gguf_find(l->gguf, "tokenizer.ggml.token_type");
    uint64_t first;
    if (good && l->types)
        good = l->types->n == l->tokens.n_left && dsi_gguf_element_u64(l->types, 0, &first);
    if (good && l->tokens.n_left <= MAX_TOKENS && l->merges.n_left <= MAX_TOKENS) return DSI_OK;
    return dsi_fail(error, DSI_E_FORMAT,
                    "%s: tokenizer.ggml.tokens and merges must be arrays of at most %d strings, "
                    "token_type as many whole numbers",
                    l->gguf->path, MAX_TOKENS);
}

dsi_status dsi_tokenizer_of_gguf(const dsi_gguf *gguf, dsi_tokenizer **tokenizer,
                                 dsi_error *error) {
    DSI_MEMORY_SCOPE(TEXT);
    *tokenizer = NULL;
    const dsi_gguf_value *model = dsi_gguf_find(gguf, "tokenizer.ggml.model");
    if (!model || dsi_gguf_text_is(model, "no_vocab")) return DSI_OK;
    if (!dsi_gguf_text_is(model, "gpt2"))
        return refuse(gguf, "tokenizer.ggml.model", "gpt2 (byte-level BPE)", error);
    const dsi_tokenizer_rules *rules = find_rules(gguf);
    if (!rules) return refuse(gguf, "tokenizer.ggml.pre", known_names, error);
    lists l = {.gguf = gguf, .pretok = rules->pretok};
    dsi_status status = find_lists(&l, error);
    if (status != DSI_OK) return status;
    put_added(&l);
    put_vocabulary(&l);
    put_merges(&l);
    if (l.json.no_memory)
        status = dsi_fail(error, DSI_E_NOMEM, "%s: no memory for the tokenizer", gguf->path);
    else
        status = dsi_tokenizer_load_text(l.json.text, l.json.n_bytes, rules, tokenizer, error);
    dsi_sys_free(l.json.text);
    if (status != DSI_OK && !l.json.no_memory && error) dsi_fail_prefix(error, gguf->path);
    return status;
}

const char *dsi_tokenizer_gguf_pre(const dsi_tokenizer *tokenizer) {
    bool marks = dsi_tokenizer_special(tokenizer, DSI_CHAT_USER) >= 0;
    const char *pre = NULL;
    for (size_t i = 0; i < sizeof known / sizeof known[0]; i++) {
        const dsi_tokenizer_rules *r = &known[i].rules;
        if (r->pretok != tokenizer->pretok || r->normalizes != tokenizer->normalizes ||
            r->whole_first != tokenizer->whole_first)
            continue;
        /* of two names for the same rules the distills have the one with their maker in it */
        if (!pre || !marks) pre = known[i].pre;
    }
    return pre;
}
