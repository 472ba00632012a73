/* tokenizer.c: text to ids: added tokens are cut out first, the rest is cut into pieces by
 * pretok.c, and bpe.c encodes each piece. */
#include "../base/sys.h"
#include "bpe.h"

/* One call of dsi_tokenizer_encode. */
typedef struct encoder {
    const dsi_tokenizer *tokenizer;
    dsi_bpe_work work;
    dsi_bpe_out out;
    dsi_error *error;
} encoder;

static dsi_status encode_plain(encoder *e, const char *text, size_t n_bytes) {
    dsi_bpe_source source = {(const uint8_t *)text, n_bytes, 0};
    for (size_t begin = 0; begin < n_bytes && !e->out.stopped;) {
        size_t end = dsi_pretok_next(e->tokenizer->pretok, text, n_bytes, begin, NULL);
        dsi_status status =
            dsi_bpe_piece(e->tokenizer, &source, begin, end, &e->work, &e->out, e->error);
        if (status != DSI_OK) return status;
        begin = end;
    }
    return DSI_OK;
}

/* The next added token of the set in text[*begin, n_bytes): leftmost, of these the longest, as the
 * reference's automaton chooses. Returns its id and sets *begin and *end, or -1. */
static int32_t find_added(const dsi_trie *set, const char *text, size_t n_bytes, size_t *begin,
                          size_t *end) {
    if (set->n_nodes == 0) return -1;
    const uint8_t *bytes = (const uint8_t *)text;
    bool one_first_byte = set->nodes[1].first_child - set->nodes[0].first_child == 1;
    for (size_t at = *begin; at < n_bytes; at++) {
        if (one_first_byte) { /* all start with '<', for example */
            const uint8_t *hit = memchr(bytes + at, set->labels[1], n_bytes - at);
            if (!hit) break;
            at = (size_t)(hit - bytes);
        } else if (set->root[bytes[at]] == 0) {
            continue;
        }
        size_t length = 0;
        int32_t token = dsi_trie_longest(set, bytes + at, n_bytes - at, &length);
        if (token < 0) continue;
        *begin = at;
        *end = at + length;
        return token;
    }
    return -1;
}

/* Cuts the added tokens of the last set out; what is left is plain text. */
static dsi_status encode_inner(encoder *e, const char *text, size_t n_bytes) {
    const dsi_trie *set = &e->tokenizer->added_sets[1];
    size_t done = 0;
    while (done < n_bytes && !e->out.stopped) {
        size_t begin = done, end = n_bytes;
        int32_t token = find_added(set, text, n_bytes, &begin, &end);
        if (token < 0) begin = n_bytes;
        dsi_status status = encode_plain(e, text + done, begin - done);
        if (status != DSI_OK) return status;
        if (token >= 0) dsi_bpe_put(&e->out, token);
        done = end;
    }
    return DSI_OK;
}

/* The same with the first set; what is left goes to the second. */
static dsi_status encode_special(encoder *e, const char *text, size_t n_bytes) {
    const dsi_trie *set = &e->tokenizer->added_sets[0];
    size_t done = 0;
    while (done < n_bytes && !e->out.stopped) {
        size_t begin = done, end = n_bytes;
        int32_t token = find_added(set, text, n_bytes, &begin, &end);
        if (token < 0) begin = n_bytes;
        dsi_status status = encode_inner(e, text + done, begin - done);
        if (status != DSI_OK) return status;
        if (token >= 0) dsi_bpe_put(&e->out, token);
        done = end;
    }
    return DSI_OK;
}

dsi_status dsi_tokenizer_encode(const dsi_tokenizer *tokenizer, const char *text, size_t n_bytes,
                                bool special, dsi_token_sink sink, void *user, dsi_error *error) {
    encoder e;
    e.tokenizer = tokenizer;
    e.error = error;
    e.out.sink = sink;
    e.out.user = user;
    e.out.n_tokens = 0;
    e.out.stopped = false;
    dsi_bpe_work_init(&e.work);
    dsi_status status =
        special ? encode_special(&e, text, n_bytes) : encode_plain(&e, text, n_bytes);
    if (status == DSI_OK) dsi_bpe_flush(&e.out);
    dsi_bpe_work_free(&e.work);
    return status;
}

/* ---- Lookups ------------------------------------------------------------------------------- */

uint32_t dsi_tokenizer_n_tokens(const dsi_tokenizer *tokenizer) { return tokenizer->n_tokens; }

const char *dsi_tokenizer_bytes(const dsi_tokenizer *tokenizer, int32_t token, size_t *n_bytes) {
    *n_bytes = 0;
    if (token < 0 || (uint32_t)token >= tokenizer->n_tokens) return "";
    const dsi_bpe_token *t = &tokenizer->tokens[token];
    if (t->n_bytes == 0) return "";
    *n_bytes = t->n_bytes;
    return (const char *)tokenizer->bytes + t->start;
}

int32_t dsi_tokenizer_special(const dsi_tokenizer *tokenizer, const char *text) {
    for (int set = 0; set < DSI_TOKENIZER_ADDED_SETS; set++) {
        const dsi_trie *trie = &tokenizer->added_sets[set];
        if (trie->n_nodes == 0) continue;
        int32_t token = dsi_trie_find(trie, (const uint8_t *)text, strlen(text));
        if (token >= 0) return token;
    }
    return -1;
}

bool dsi_tokenizer_is_added(const dsi_tokenizer *tokenizer, int32_t token) {
    return token >= 0 && (uint32_t)token < tokenizer->n_tokens && tokenizer->added[token] != 0;
}

void dsi_tokenizer_free(dsi_tokenizer *tokenizer) {
    if (!tokenizer) return;
    dsi_trie_free(&tokenizer->vocabulary);
    for (int set = 0; set < DSI_TOKENIZER_ADDED_SETS; set++)
        dsi_trie_free(&tokenizer->added_sets[set]);
    dsi_sys_free(tokenizer->tokens);
    dsi_sys_free(tokenizer->added);
    dsi_sys_free(tokenizer->bytes);
    dsi_sys_free(tokenizer->pairs);
    dsi_sys_free(tokenizer);
}
