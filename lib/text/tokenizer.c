/* tokenizer.c: text to ids: added tokens are cut out first, what is left is normalised if the
 * family wants that, cut into pieces by pretok.c, and bpe.c encodes each piece. */
#include "../base/sys.h"
#include "bpe.h"
#include "nfc.h"

/* One call of dsi_tokenizer_encode. */
typedef struct encoder {
    const dsi_tokenizer *tokenizer;
    dsi_bpe_work work;
    dsi_bpe_out out;
    dsi_error *error;
} encoder;

static dsi_status encode_pieces(encoder *e, const char *text, size_t n_bytes) {
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

typedef dsi_status (*encode_fn)(encoder *e, const char *text, size_t n_bytes);

/* Cuts the tokens of the set out and leaves what is between them to `inner`. */
static dsi_status cut_out(encoder *e, const dsi_trie *set, encode_fn inner, const char *text,
                          size_t n_bytes) {
    size_t done = 0;
    while (done < n_bytes && !e->out.stopped) {
        size_t begin = done, end = n_bytes;
        int32_t token = find_added(set, text, n_bytes, &begin, &end);
        if (token < 0) begin = n_bytes;
        dsi_status status = begin > done ? inner(e, text + done, begin - done) : DSI_OK;
        if (status != DSI_OK) return status;
        if (token >= 0) dsi_bpe_put(&e->out, token);
        done = end;
    }
    return DSI_OK;
}

static dsi_status encode_plain(encoder *e, const char *text, size_t n_bytes) {
    return cut_out(e, &e->tokenizer->letters, encode_pieces, text, n_bytes);
}

/* ---- Normalised text ------------------------------------------------------------------------- */

/* A text that is normalised while it is read: [0, n) of `bytes` is what waits to be encoded. */
typedef struct normalised {
    dsi_nfc nfc;
    char *bytes;
    size_t n, capacity;
    bool whole; /* the rest of the text is in there */
} normalised;

/* Fills the buffer up; one that is full, because a single piece fills it, doubles. */
static dsi_status refill(normalised *t, dsi_error *error) {
    DSI_MEMORY_SCOPE(TEXT);
    if (t->capacity - t->n < 4) {
        uint64_t capacity = 0;
        char *bytes = NULL;
        if (dsi_mul_ok(t->capacity, 2, &capacity)) bytes = dsi_sys_realloc(t->bytes, capacity, 1);
        if (!bytes)
            return dsi_fail(error, DSI_E_NOMEM, "no memory to normalise a piece of %zu bytes",
                            t->n);
        t->bytes = bytes;
        t->capacity = capacity;
    }
    while (!t->whole && t->capacity - t->n >= 4) {
        size_t n = 0;
        dsi_status status =
            dsi_nfc_read(&t->nfc, (uint8_t *)t->bytes + t->n, t->capacity - t->n, &n, error);
        if (status != DSI_OK) return status;
        t->n += n;
        t->whole = n == 0;
    }
    return DSI_OK;
}

/* Encodes the pieces of bytes[begin, end) that are final; returns where it stopped. `closed`: the
 * text ends at `end`, whatever follows. */
static dsi_status encode_settled(encoder *e, const normalised *t, size_t *begin, size_t end,
                                 bool closed) {
    dsi_bpe_source source = {(const uint8_t *)t->bytes, end, 0};
    while (*begin < end && !e->out.stopped) {
        bool saw_end = false;
        size_t next = dsi_pretok_next(e->tokenizer->pretok, t->bytes, end, *begin, &saw_end);
        if (saw_end && !closed) break;
        dsi_status status =
            dsi_bpe_piece(e->tokenizer, &source, *begin, next, &e->work, &e->out, e->error);
        if (status != DSI_OK) return status;
        *begin = next;
    }
    return DSI_OK;
}

/* Encodes what of the buffer cannot change any more, and moves the rest to its front. */
static dsi_status drain(encoder *e, const dsi_trie *set, normalised *t) {
    size_t begin = 0;
    while (begin < t->n && !e->out.stopped) {
        size_t end = t->n, at = begin, behind = 0;
        int32_t token = set ? find_added(set, t->bytes, t->n, &at, &behind) : -1;
        bool closed = t->whole;
        if (set && set->n_nodes > 0 &&
            !t->whole) { /* a token may reach behind the buffer: then it waits for more */
            end = t->n > DSI_TOKENIZER_MAX_TOKEN_BYTES ? t->n - DSI_TOKENIZER_MAX_TOKEN_BYTES : 0;
            while (end > begin && ((uint8_t)t->bytes[end] & 0xC0) == 0x80) end--;
        }
        if (token >= 0 && at < end) {
            end = at;
            closed = true;
        } else {
            token = -1;
        }
        dsi_status status = encode_settled(e, t, &begin, end, closed);
        if (status != DSI_OK) return status;
        if (token < 0) break;
        dsi_bpe_put(&e->out, token);
        begin = behind;
    }
    t->n -= begin;
    memmove(t->bytes, t->bytes + begin, t->n);
    return DSI_OK;
}

/* Form C of the text, in a buffer of DSI_TOKENIZER_NFC_BYTES, or less if the text is short: no
 * text becomes longer than three times itself. */
static dsi_status encode_normalised(encoder *e, const dsi_trie *set, const char *text,
                                    size_t n_bytes) {
    DSI_MEMORY_SCOPE(TEXT);
    normalised t = {.capacity = DSI_TOKENIZER_NFC_BYTES};
    if (n_bytes < DSI_TOKENIZER_NFC_BYTES / 3 - 8) t.capacity = 3 * n_bytes + 8;
    t.bytes = dsi_sys_calloc(t.capacity, 1);
    if (!t.bytes) return dsi_fail(e->error, DSI_E_NOMEM, "no memory to normalise a text");
    dsi_nfc_start(&t.nfc, text, n_bytes);
    dsi_status status = DSI_OK;
    while (status == DSI_OK && !e->out.stopped && (!t.whole || t.n > 0)) {
        status = refill(&t, e->error);
        if (status == DSI_OK) status = drain(e, set, &t);
    }
    dsi_nfc_end(&t.nfc);
    dsi_sys_free(t.bytes);
    return status;
}

/* ---- A text ---------------------------------------------------------------------------------- */

static bool must_normalise(const encoder *e, const char *text, size_t n_bytes) {
    return e->tokenizer->normalizes && !dsi_nfc_is_normal(text, n_bytes);
}

static dsi_status encode_unmarked(encoder *e, const char *text, size_t n_bytes) {
    if (must_normalise(e, text, n_bytes)) return encode_normalised(e, NULL, text, n_bytes);
    return encode_plain(e, text, n_bytes);
}

/* Behind the first set of added tokens: those of the second are looked for in normalised text. */
static dsi_status encode_behind_first(encoder *e, const char *text, size_t n_bytes) {
    const dsi_trie *set = &e->tokenizer->added_sets[1];
    if (must_normalise(e, text, n_bytes)) return encode_normalised(e, set, text, n_bytes);
    return cut_out(e, set, encode_plain, text, n_bytes);
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
        special ? cut_out(&e, &tokenizer->added_sets[0], encode_behind_first, text, n_bytes)
                : encode_unmarked(&e, text, n_bytes);
    if (status == DSI_OK) dsi_bpe_flush(&e.out);
    dsi_bpe_work_free(&e.work);
    return status;
}

/* ---- Lookups ------------------------------------------------------------------------------- */

uint32_t dsi_tokenizer_n_tokens(const dsi_tokenizer *tokenizer) { return tokenizer->n_tokens; }

dsi_pretok dsi_tokenizer_pretok(const dsi_tokenizer *tokenizer) { return tokenizer->pretok; }

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
    return token >= 0 && (uint32_t)token < tokenizer->n_tokens &&
           tokenizer->added[token] == DSI_ADDED;
}

void dsi_tokenizer_free(dsi_tokenizer *tokenizer) {
    if (!tokenizer) return;
    dsi_trie_free(&tokenizer->vocabulary);
    dsi_trie_free(&tokenizer->whole);
    dsi_trie_free(&tokenizer->letters);
    for (int set = 0; set < DSI_TOKENIZER_ADDED_SETS; set++)
        dsi_trie_free(&tokenizer->added_sets[set]);
    dsi_sys_free(tokenizer->tokens);
    dsi_sys_free(tokenizer->added);
    dsi_sys_free(tokenizer->bytes);
    dsi_sys_free(tokenizer->pairs);
    dsi_sys_free(tokenizer);
}
