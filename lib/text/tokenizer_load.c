/* tokenizer_load.c: reads tokenizer.json. Only what the files of the known families say is
 * understood; whatever would change the tokens in another way is refused by name. */
#include "../base/sys.h"
#include "bpe.h"
#include "tokenizer_rules.h"

enum { MAX_FILE_BYTES = 128 * 1024 * 1024, MAX_JSON_NODES = 12 * 1024 * 1024 };

typedef struct loader {
    dsi_tokenizer *tokenizer;
    dsi_json json;
    uint64_t n_bytes_used; /* of tokenizer->bytes */
    uint64_t n_bytes_all;
    int16_t byte_of[DSI_BYTE_LEVEL_END];
    dsi_trie_entry *entries; /* [n_entries_all] scratch for building tries */
    uint32_t n_entries_all;
    int32_t (*merges)[3];
    uint32_t n_merges;
    dsi_error *error;
} loader;

/* ---- Strings ------------------------------------------------------------------------------- */

/* A JSON string, unescaped. */
typedef struct view {
    const uint8_t *bytes;
    size_t n_bytes;
    char *owned; /* NULL: bytes lie in the file's text */
} view;

static dsi_status view_string(const loader *l, uint32_t node, const char *what, view *v) {
    *v = (view){0};
    if (node == DSI_JSON_NONE || l->json.nodes[node].kind != DSI_JSON_STRING)
        return dsi_fail(l->error, DSI_E_FORMAT, "%s is not a string", what);
    const dsi_json_node *n = &l->json.nodes[node];
    if (n->escaped) {
        uint64_t n_bytes = 0;
        v->owned = dsi_json_string(&l->json, node, &n_bytes);
        if (!v->owned) return dsi_fail(l->error, DSI_E_NOMEM, "no memory for %s", what);
        v->bytes = (const uint8_t *)v->owned;
        v->n_bytes = n_bytes;
    } else {
        v->bytes = (const uint8_t *)l->json.text + n->offset;
        v->n_bytes = n->n_bytes;
    }
    return DSI_OK;
}

static void view_free(view *v) { dsi_sys_free(v->owned); }

/* Length of a text for "%.*s" in a message. */
static int shown(size_t n_bytes) { return (int)(n_bytes < 80 ? n_bytes : 80); }

/* The alphabet of byte-level BPE (GPT-2's bytes_to_unicode): a printable Latin-1 byte is its own
 * character, the others are U+0100, U+0101, ... in order. */
static void fill_byte_alphabet(int16_t byte_of[DSI_BYTE_LEVEL_END]) {
    int next = 0x100;
    for (int i = 0; i < DSI_BYTE_LEVEL_END; i++) byte_of[i] = -1;
    for (int byte = 0; byte < 256; byte++) {
        bool printable = (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte != 0xAD);
        byte_of[printable ? byte : next++] = (int16_t)byte;
    }
}

/* Writes the bytes that a text in that alphabet stands for to `out`, which has room for n_bytes.
 * false if a character is not in the alphabet. */
static bool map_to_bytes(const loader *l, const uint8_t *text, size_t n_bytes, uint8_t *out,
                         size_t *n_out) {
    *n_out = 0;
    for (size_t at = 0; at < n_bytes;) {
        dsi_utf8_step step = dsi_utf8_next(text + at, n_bytes - at);
        if (step.code_point >= DSI_BYTE_LEVEL_END || l->byte_of[step.code_point] < 0) return false;
        out[(*n_out)++] = (uint8_t)l->byte_of[step.code_point];
        at += step.n_bytes;
    }
    return true;
}

/* ---- Ids ----------------------------------------------------------------------------------- */

static dsi_status read_id(const loader *l, uint32_t node, const view *text, int32_t *id) {
    uint64_t value;
    if (!dsi_json_u64(&l->json, node, &value))
        return dsi_fail(l->error, DSI_E_FORMAT, "the id of token \"%.*s\" is not a whole number",
                        shown(text->n_bytes), (const char *)text->bytes);
    if (value >= DSI_TOKENIZER_MAX_ID)
        return dsi_fail(l->error, DSI_E_FORMAT, "token \"%.*s\" has id %llu, the limit is %d",
                        shown(text->n_bytes), (const char *)text->bytes, (unsigned long long)value,
                        DSI_TOKENIZER_MAX_ID - 1);
    *id = (int32_t)value;
    return DSI_OK;
}

/* Registers the n_bytes at the end of the arena as the text of `id`. */
static dsi_status add_token(loader *l, int32_t id, const view *text, size_t n_bytes) {
    dsi_bpe_token *token = &l->tokenizer->tokens[id];
    if (n_bytes == 0 || n_bytes > DSI_TOKENIZER_MAX_TOKEN_BYTES)
        return dsi_fail(l->error, DSI_E_FORMAT,
                        "token %d (\"%.*s\") has %zu bytes, allowed are 1 "
                        "to %d",
                        id, shown(text->n_bytes), (const char *)text->bytes, n_bytes,
                        DSI_TOKENIZER_MAX_TOKEN_BYTES);
    if (token->n_bytes > 0)
        return dsi_fail(l->error, DSI_E_FORMAT, "two tokens have id %d; the second is \"%.*s\"", id,
                        shown(text->n_bytes), (const char *)text->bytes);
    *token = (dsi_bpe_token){.start = (uint32_t)l->n_bytes_used,
                             .n_bytes = (uint32_t)n_bytes,
                             .rank = DSI_BPE_NO_RANK,
                             .left = -1,
                             .right = -1,
                             .prefix = -1};
    l->n_bytes_used += n_bytes;
    return DSI_OK;
}

static void add_entry(loader *l, uint32_t *n_entries, int32_t id) {
    const dsi_bpe_token *t = &l->tokenizer->tokens[id];
    l->entries[(*n_entries)++] =
        (dsi_trie_entry){l->tokenizer->bytes + t->start, t->n_bytes, id, 0};
}

static dsi_status build_trie(loader *l, dsi_trie *trie, uint32_t n_entries) {
    int32_t twice = -1;
    dsi_status status = dsi_trie_build(trie, l->entries, n_entries, &twice, l->error);
    if (twice < 0) return status;
    const dsi_bpe_token *t = &l->tokenizer->tokens[twice];
    return dsi_fail(l->error, DSI_E_FORMAT, "token %d (\"%.*s\") is listed twice", twice,
                    shown(t->n_bytes), (const char *)l->tokenizer->bytes + t->start);
}

/* ---- Added tokens -------------------------------------------------------------------------- */

/* Thirteen bytes never occur in UTF-8, so a vocabulary may lack them. DeepSeek LLM's lacks them and
 * has their letters of the byte-level alphabet as added tokens instead, by mistake: "ü" is then a
 * token wherever it stands in a text, plain or not, for the reference finds it there. */
static bool never_in_utf8(uint32_t byte) { return byte == 0xC0 || byte == 0xC1 || byte >= 0xF5; }

static bool is_letter_token(const loader *l, uint32_t node, const view *text) {
    bool special;
    if (!dsi_json_bool(&l->json, dsi_json_get(&l->json, node, "special"), &special) || special)
        return false;
    if (text->n_bytes != 2 || l->tokenizer->normalizes) return false;
    dsi_utf8_step step = dsi_utf8_next(text->bytes, text->n_bytes);
    return step.n_bytes == 2 && step.code_point <= 0xFF && never_in_utf8(step.code_point);
}

/* Sets of added tokens: 0 and 1 by "normalized", then the letters. */
enum { LETTERS = DSI_TOKENIZER_ADDED_SETS };

/* One added token, if it belongs to the set. */
static dsi_status add_added(loader *l, uint32_t node, uint32_t set, uint32_t *n_entries) {
    const dsi_json *json = &l->json;
    view text;
    int32_t id;
    bool normalized;
    dsi_status status =
        view_string(l, dsi_json_get(json, node, "content"), "the content of an added token", &text);
    if (status != DSI_OK) return status;
    if (!dsi_json_bool(json, dsi_json_get(json, node, "normalized"), &normalized))
        status = dsi_fail(l->error, DSI_E_FORMAT,
                          "added token \"%.*s\" has no true or false for "
                          "\"normalized\"",
                          shown(text.n_bytes), (const char *)text.bytes);
    bool letter = status == DSI_OK && normalized && is_letter_token(l, node, &text);
    if (status == DSI_OK && (letter ? LETTERS : (uint32_t)normalized) == set) {
        status = dsi_tokenizer_check_added(json, node, (const char *)text.bytes,
                                           shown(text.n_bytes), l->error);
        if (status == DSI_OK) status = read_id(l, dsi_json_get(json, node, "id"), &text, &id);
        if (status == DSI_OK) {
            memcpy(l->tokenizer->bytes + l->n_bytes_used, text.bytes, text.n_bytes);
            status = add_token(l, id, &text, text.n_bytes);
        }
        if (status == DSI_OK) {
            l->tokenizer->added[id] = letter ? DSI_ADDED_LETTER : DSI_ADDED;
            add_entry(l, n_entries, id);
        }
    }
    view_free(&text);
    return status;
}

static dsi_status load_added(loader *l, uint32_t parent) {
    for (uint32_t set = 0; set <= LETTERS; set++) {
        dsi_trie *trie = set == LETTERS ? &l->tokenizer->letters : &l->tokenizer->added_sets[set];
        uint32_t n_entries = 0;
        if (parent == DSI_JSON_NONE) break;
        for (uint32_t i = parent + 1; i < l->json.nodes[parent].end; i = l->json.nodes[i].end) {
            dsi_status status = add_added(l, i, set, &n_entries);
            if (status != DSI_OK) return status;
        }
        dsi_status status = build_trie(l, trie, n_entries);
        if (status != DSI_OK) return status;
    }
    return DSI_OK;
}

/* ---- Vocabulary ---------------------------------------------------------------------------- */

static dsi_status add_vocabulary_entry(loader *l, uint32_t key_node, uint32_t *n_entries) {
    view text;
    int32_t id;
    dsi_status status = view_string(l, key_node, "a vocabulary entry", &text);
    if (status == DSI_OK) status = read_id(l, key_node + 1, &text, &id);
    if (status != DSI_OK) goto done;
    for (int set = 0; set < DSI_TOKENIZER_ADDED_SETS; set++) {
        int32_t added = dsi_trie_find(&l->tokenizer->added_sets[set], text.bytes, text.n_bytes);
        if (added < 0) continue; /* else it is the same token, listed here too */
        if (added != id)
            status = dsi_fail(l->error, DSI_E_FORMAT,
                              "token \"%.*s\" has id %d in the vocabulary "
                              "and id %d as added token",
                              shown(text.n_bytes), (const char *)text.bytes, id, added);
        goto done;
    }
    size_t n_bytes = 0;
    if (!map_to_bytes(l, text.bytes, text.n_bytes, l->tokenizer->bytes + l->n_bytes_used,
                      &n_bytes)) {
        status = dsi_fail(l->error, DSI_E_UNSUPPORTED,
                          "vocabulary entry %d (\"%.*s\") has a "
                          "character that byte-level BPE does not use",
                          id, shown(text.n_bytes), (const char *)text.bytes);
        goto done;
    }
    status = add_token(l, id, &text, n_bytes);
    if (status != DSI_OK) goto done;
    if (n_bytes == 1) l->tokenizer->tokens[id].rank = 0;
    add_entry(l, n_entries, id);
done:
    view_free(&text);
    return status;
}

/* Vocabularies may lack control characters and the bytes that begin characters of the planes 4 to
 * 16, which hold no letters (SmolLM2's does): text without tokens is left out, as by the reference
 * implementations. Any other byte must be there. */
static bool may_lack(uint32_t byte) {
    bool control = byte < 0x20 && byte != '\t' && byte != '\n' && byte != '\r';
    return control || byte == 0x7F || byte >= 0xF1;
}

static dsi_status load_vocabulary(loader *l, uint32_t parent) {
    uint32_t n_entries = 0;
    for (uint32_t key = parent + 1; key < l->json.nodes[parent].end;
         key = l->json.nodes[key + 1].end) {
        dsi_status status = add_vocabulary_entry(l, key, &n_entries);
        if (status != DSI_OK) return status;
    }
    dsi_tokenizer *t = l->tokenizer;
    dsi_trie *trie = &t->vocabulary;
    dsi_status status = build_trie(l, trie, n_entries);
    if (status != DSI_OK) return status;
    for (uint32_t byte = 0; byte < 256; byte++) {
        if (trie->root[byte] && dsi_trie_value(trie, trie->root[byte]) >= 0) continue;
        if (never_in_utf8(byte)) continue;
        if (!may_lack(byte))
            return dsi_fail(l->error, DSI_E_FORMAT,
                            "the vocabulary has no token for byte 0x%02X; byte-level BPE needs all "
                            "that occur in UTF-8, but for control characters and 0xF1 to 0xF4",
                            byte);
        t->lacking[byte] = 1;
        t->lacks_bytes = true;
    }
    return DSI_OK;
}

/* ---- Merges -------------------------------------------------------------------------------- */

/* Looks up one part of a merge and writes its bytes to `bytes`. */
static dsi_status find_part(const loader *l, uint32_t rank, const uint8_t *text, size_t n_text,
                            uint8_t bytes[2 * DSI_TOKENIZER_MAX_TOKEN_BYTES], size_t *n_bytes,
                            uint32_t *node) {
    *node = 0;
    if (n_text <= 2 * DSI_TOKENIZER_MAX_TOKEN_BYTES && /* at most two bytes per character */
        map_to_bytes(l, text, n_text, bytes, n_bytes))
        *node = dsi_trie_walk(&l->tokenizer->vocabulary, 0, bytes, *n_bytes);
    if (*node == 0 || dsi_trie_value(&l->tokenizer->vocabulary, *node) < 0)
        return dsi_fail(l->error, DSI_E_FORMAT, "merge %u: \"%.*s\" is not in the vocabulary", rank,
                        shown(n_text), (const char *)text);
    return DSI_OK;
}

static dsi_status resolve_merge(const loader *l, uint32_t rank, const uint8_t *left, size_t n_left,
                                const uint8_t *right, size_t n_right) {
    const dsi_trie *trie = &l->tokenizer->vocabulary;
    uint8_t bytes[2 * DSI_TOKENIZER_MAX_TOKEN_BYTES]; /* in the end those of the right part */
    size_t n_bytes = 0;
    uint32_t left_node, right_node;
    dsi_status status = find_part(l, rank, left, n_left, bytes, &n_bytes, &left_node);
    if (status != DSI_OK) return status;
    status = find_part(l, rank, right, n_right, bytes, &n_bytes, &right_node);
    if (status != DSI_OK) return status;
    uint32_t node = dsi_trie_walk(trie, left_node, bytes, n_bytes);
    if (node == 0 || dsi_trie_value(trie, node) < 0)
        return dsi_fail(l->error, DSI_E_FORMAT,
                        "merge %u: what \"%.*s\" and \"%.*s\" make is not "
                        "in the vocabulary",
                        rank, shown(n_left), (const char *)left, shown(n_right),
                        (const char *)right);
    l->merges[rank][0] = dsi_trie_value(trie, left_node);
    l->merges[rank][1] = dsi_trie_value(trie, right_node);
    l->merges[rank][2] = dsi_trie_value(trie, node);
    return DSI_OK;
}

/* "left right": one blank, for no character of the alphabet is one. */
static dsi_status merge_from_string(const loader *l, uint32_t rank, uint32_t node) {
    view text;
    dsi_status status = view_string(l, node, "a merge", &text);
    if (status != DSI_OK) return status;
    const uint8_t *blank = memchr(text.bytes, ' ', text.n_bytes);
    if (blank) {
        size_t n_left = (size_t)(blank - text.bytes);
        status = resolve_merge(l, rank, text.bytes, n_left, blank + 1, text.n_bytes - n_left - 1);
    } else {
        status = dsi_fail(l->error, DSI_E_FORMAT,
                          "merge %u (\"%.*s\") has no blank between two "
                          "parts",
                          rank, shown(text.n_bytes), (const char *)text.bytes);
    }
    view_free(&text);
    return status;
}

/* ["left", "right"] */
static dsi_status merge_from_array(const loader *l, uint32_t rank, uint32_t node) {
    if (l->json.nodes[node].n_items != 2)
        return dsi_fail(l->error, DSI_E_FORMAT, "merge %u has %u parts, not 2", rank,
                        l->json.nodes[node].n_items);
    view left = {0}, right = {0};
    uint32_t first = node + 1;
    dsi_status status = view_string(l, first, "a part of a merge", &left);
    if (status == DSI_OK)
        status = view_string(l, l->json.nodes[first].end, "a part of a merge", &right);
    if (status == DSI_OK)
        status = resolve_merge(l, rank, left.bytes, left.n_bytes, right.bytes, right.n_bytes);
    view_free(&left);
    view_free(&right);
    return status;
}

static dsi_status load_merges(loader *l, uint32_t parent) {
    const dsi_json_node *nodes = l->json.nodes;
    l->n_merges = nodes[parent].n_items;
    if (l->n_merges >= DSI_TOKENIZER_MAX_ID)
        return dsi_fail(l->error, DSI_E_FORMAT, "there are %u merges, the limit is %d", l->n_merges,
                        DSI_TOKENIZER_MAX_ID - 1);
    l->merges = dsi_sys_calloc((uint64_t)l->n_merges + 1, sizeof *l->merges);
    if (!l->merges) return dsi_fail(l->error, DSI_E_NOMEM, "no memory for %u merges", l->n_merges);
    uint32_t rank = 0;
    for (uint32_t i = parent + 1; i < nodes[parent].end; i = nodes[i].end, rank++) {
        dsi_status status = nodes[i].kind == DSI_JSON_ARRAY ? merge_from_array(l, rank, i)
                                                            : merge_from_string(l, rank, i);
        if (status != DSI_OK) return status;
    }
    dsi_status status =
        dsi_bpe_hash_pairs(l->tokenizer, (const int32_t(*)[3])l->merges, l->n_merges, l->error);
    if (status != DSI_OK) return status;
    return dsi_bpe_prepare(l->tokenizer, (const int32_t(*)[3])l->merges, l->n_merges, l->error);
}

/* With "ignore_merges" a piece that is a vocabulary entry is that token, even if merges would never
 * make it. Those that merges make from their own bytes need no look-up. */
static dsi_status load_whole(loader *l) {
    dsi_tokenizer *t = l->tokenizer;
    uint32_t n_entries = 0;
    if (!t->whole_first) return DSI_OK;
    for (uint32_t id = 0; id < t->n_tokens; id++) {
        const dsi_bpe_token *token = &t->tokens[id];
        if (token->n_bytes == 0 || token->rank != DSI_BPE_NO_RANK || t->added[id]) continue;
        add_entry(l, &n_entries, (int32_t)id);
        if (token->n_bytes > t->whole_bytes) t->whole_bytes = token->n_bytes;
    }
    return build_trie(l, &t->whole, n_entries);
}

/* ---- The whole file ------------------------------------------------------------------------ */

/* Sizes the tables: the largest id decides, and no text is longer in the tokenizer than in the
 * file. Ids above the limit are reported when they are read. */
static dsi_status allocate(loader *l, uint32_t vocab, uint32_t added) {
    const dsi_json_node *nodes = l->json.nodes;
    dsi_tokenizer *t = l->tokenizer;
    uint64_t id, largest = 0;
    for (uint32_t key = vocab + 1; key < nodes[vocab].end; key = nodes[key + 1].end)
        if (dsi_json_u64(&l->json, key + 1, &id) && id > largest) largest = id;
    l->n_entries_all = nodes[vocab].n_items;
    if (added != DSI_JSON_NONE) {
        for (uint32_t i = added + 1; i < nodes[added].end; i = nodes[i].end)
            if (dsi_json_u64(&l->json, dsi_json_get(&l->json, i, "id"), &id) && id > largest)
                largest = id;
        if (nodes[added].n_items > l->n_entries_all) l->n_entries_all = nodes[added].n_items;
    }
    if (largest >= DSI_TOKENIZER_MAX_ID) largest = DSI_TOKENIZER_MAX_ID - 1;
    t->n_tokens = (uint32_t)largest + 1;
    t->tokens = dsi_sys_calloc(t->n_tokens, sizeof *t->tokens);
    t->added = dsi_sys_calloc(t->n_tokens, 1);
    t->bytes = dsi_sys_calloc(l->n_bytes_all, 1);
    l->entries = dsi_sys_calloc((uint64_t)l->n_entries_all + 1, sizeof *l->entries);
    if (!t->tokens || !t->added || !t->bytes || !l->entries)
        return dsi_fail(l->error, DSI_E_NOMEM, "no memory for %u tokens", t->n_tokens);
    return DSI_OK;
}

/* Gives back the part of the arena that was too much. A refusal changes nothing. */
static void trim_arena(loader *l) {
    uint8_t *bytes = dsi_sys_realloc(l->tokenizer->bytes, l->n_bytes_used, 1);
    if (bytes) l->tokenizer->bytes = bytes;
}

static dsi_status load(loader *l, const dsi_tokenizer_rules *given) {
    dsi_tokenizer_rules rules = {0};
    dsi_status status = DSI_OK;
    if (given)
        rules = *given;
    else
        status = dsi_tokenizer_check_rules(&l->json, &rules, l->error);
    if (status != DSI_OK) return status;
    l->tokenizer->pretok = rules.pretok;
    l->tokenizer->normalizes = rules.normalizes;
    l->tokenizer->whole_first = rules.whole_first;
    uint32_t model = dsi_json_get(&l->json, 0, "model");
    uint32_t vocab = dsi_json_get(&l->json, model, "vocab");
    uint32_t merges = dsi_json_get(&l->json, model, "merges");
    uint32_t added = dsi_json_get(&l->json, 0, "added_tokens");
    fill_byte_alphabet(l->byte_of);
    status = allocate(l, vocab, added);
    if (status == DSI_OK) status = load_added(l, added);
    if (status == DSI_OK) status = load_vocabulary(l, vocab);
    if (status == DSI_OK) status = load_merges(l, merges);
    if (status == DSI_OK) status = load_whole(l);
    if (status == DSI_OK) trim_arena(l);
    return status;
}

dsi_status dsi_tokenizer_load_text(const char *text, uint64_t n_bytes,
                                   const dsi_tokenizer_rules *given, dsi_tokenizer **tokenizer,
                                   dsi_error *error) {
    dsi_status status;
    *tokenizer = NULL;
    loader l = {.error = error, .n_bytes_all = n_bytes + 1};
    l.tokenizer = dsi_sys_calloc(1, sizeof *l.tokenizer);
    if (l.tokenizer) {
        l.tokenizer->window_bytes = DSI_TOKENIZER_WINDOW_BYTES;
        status = dsi_json_parse(text, n_bytes, MAX_JSON_NODES, &l.json, error);
        if (status == DSI_OK) status = load(&l, given);
    } else {
        status = dsi_fail(error, DSI_E_NOMEM, "no memory for a tokenizer");
    }
    dsi_json_free(&l.json);
    dsi_sys_free(l.entries);
    dsi_sys_free(l.merges);
    if (status == DSI_OK)
        *tokenizer = l.tokenizer;
    else
        dsi_tokenizer_free(l.tokenizer);
    return status;
}

dsi_status dsi_tokenizer_open(const char *path, dsi_tokenizer **tokenizer, dsi_error *error) {
    DSI_MEMORY_SCOPE(TEXT);
    *tokenizer = NULL;
    char *text = NULL;
    uint64_t n_bytes = 0;
    dsi_status status = dsi_sys_read_file(path, MAX_FILE_BYTES, &text, &n_bytes, error);
    if (status != DSI_OK) return status;
    status = dsi_tokenizer_load_text(text, n_bytes, NULL, tokenizer, error);
    dsi_sys_free(text);
    if (status != DSI_OK && error) dsi_fail_prefix(error, path);
    return status;
}
