/* texts.h: what every tokenizer must keep, for the fuzz targets that encode. */
#ifndef DSI_TESTS_FUZZ_TEXTS_H
#define DSI_TESTS_FUZZ_TEXTS_H

#include "../../lib/text/text.h"
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
    FUZZ_MUST(d.raw.n == clean.n && (clean.n == 0 || memcmp(d.raw.data, clean.data, clean.n) == 0));
    FUZZ_MUST(d.streamed.n == clean.n &&
              (clean.n == 0 || memcmp(d.streamed.data, clean.data, clean.n) == 0));
    FUZZ_MUST(d.n_tokens <= clean.n);
    free(clean.data);
    free(d.raw.data);
    free(d.streamed.data);
}

#endif
