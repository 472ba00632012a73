/* texts.h: what every tokenizer must keep, for the fuzz targets that encode. */
#ifndef DSI_TESTS_FUZZ_TEXTS_H
#define DSI_TESTS_FUZZ_TEXTS_H

#include "../../lib/text/bpe.h"
#include "../../lib/text/nfc.h"
#include "fuzz.h"

typedef struct fuzz_text {
    char *data; /* room for n, or more */
    size_t n, room;
} fuzz_text;
static inline void fuzz_add(void *user, const char *data, size_t n) {
    fuzz_text *text = user;
    if (text->n + n > text->room) {
        text->room = 2 * (text->n + n);
        text->data = realloc(text->data, text->room);
        FUZZ_MUST(text->data != NULL);
    }
    if (n) memcpy(text->data + text->n, data, n);
    text->n += n;
}

typedef struct fuzz_decoded {
    const dsi_tokenizer *tokenizer;
    bool special;
    size_t n_tokens;
    dsi_detokenizer state;
    fuzz_text raw, streamed;
} fuzz_decoded;
static inline bool fuzz_decode(void *user, const int32_t *tokens, size_t n_tokens) {
    fuzz_decoded *d = user;
    for (size_t i = 0; i < n_tokens; i++) {
        size_t n = 0;
        FUZZ_MUST(tokens[i] >= 0 && (uint32_t)tokens[i] < dsi_tokenizer_n_tokens(d->tokenizer));
        const char *token = dsi_tokenizer_bytes(d->tokenizer, tokens[i], &n);
        FUZZ_MUST(n > 0);
        /* Text of users is plain text. */
        FUZZ_MUST(d->special || !dsi_tokenizer_is_added(d->tokenizer, tokens[i]));
        fuzz_add(&d->raw, token, n);
        dsi_detokenizer_push(&d->state, token, n, fuzz_add, &d->streamed);
    }
    d->n_tokens += n_tokens;
    return true;
}

/* `text` as the tokenizer sees it: what is not UTF-8 is U+FFFD, one per maximal subpart. */
static inline void fuzz_clean_utf8(const char *text, size_t n, fuzz_text *out) {
    dsi_detokenizer state = {0};
    dsi_detokenizer_push(&state, text, n, fuzz_add, out);
    dsi_detokenizer_finish(&state, fuzz_add, out);
}

/* Form C of a text, read in pieces of `room` bytes. */
static inline void fuzz_normalise(const char *text, size_t n, size_t room, fuzz_text *out) {
    dsi_nfc nfc;
    uint8_t piece[256];
    dsi_error error = {0};
    dsi_nfc_start(&nfc, text, n);
    for (size_t n_out = 1; n_out > 0; fuzz_add(out, (const char *)piece, n_out)) {
        FUZZ_MUST(dsi_nfc_read(&nfc, piece, room, &n_out, &error) == DSI_OK && n_out <= room);
    }
    dsi_nfc_end(&nfc);
}
static inline bool fuzz_same(const fuzz_text *a, const fuzz_text *b) {
    return a->n == b->n && (a->n == 0 || memcmp(a->data, b->data, a->n) == 0);
}

/* A tokenizer that normalises gives form C of the text; where special tokens cut the text first,
 * the parts are normalised one by one, and form C of all of them is that of the text. */
static inline void fuzz_normal_trip(const fuzz_text *clean, const fuzz_decoded *d) {
    fuzz_text whole = {0}, pieces = {0}, again = {0};
    fuzz_normalise(clean->data, clean->n, 256, &whole);
    fuzz_normalise(clean->data, clean->n, 4 + clean->n % 9, &pieces);
    fuzz_normalise(d->raw.data, d->raw.n, 64, &again);
    FUZZ_MUST(fuzz_same(&whole, &pieces) && fuzz_same(&whole, &again));
    FUZZ_MUST(d->special || fuzz_same(&whole, &d->raw));
    FUZZ_MUST(!dsi_nfc_is_normal(clean->data, clean->n) || fuzz_same(clean, &whole));
    free(whole.data);
    free(pieces.data);
    free(again.data);
}

/* Tokens of a text, put together again, are the text: raw and streamed. */
static inline void fuzz_round_trip(const dsi_tokenizer *tokenizer, const char *text, size_t n,
                                   bool special) {
    dsi_error error = {0};
    fuzz_text clean = {0};
    fuzz_decoded d = {.tokenizer = tokenizer, .special = special};
    fuzz_clean_utf8(text, n, &clean);
    dsi_status status = dsi_tokenizer_encode(tokenizer, text, n, special, fuzz_decode, &d, &error);
    FUZZ_MUST(status == DSI_OK);
    dsi_detokenizer_finish(&d.state, fuzz_add, &d.streamed);
    FUZZ_MUST(fuzz_same(&d.raw, &d.streamed) && d.n_tokens <= d.raw.n);
    if (tokenizer->normalizes)
        fuzz_normal_trip(&clean, &d);
    else
        FUZZ_MUST(fuzz_same(&d.raw, &clean));
    free(clean.data);
    free(d.raw.data);
    free(d.streamed.data);
}

#endif
