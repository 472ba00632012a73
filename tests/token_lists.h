/* token_lists.h: lists that the sinks of encoder and decoder fill, and both directions with them.
 * Included behind cmocka.h and text.h. */
#ifndef DSI_TESTS_TOKEN_LISTS_H
#define DSI_TESTS_TOKEN_LISTS_H

enum { MAX_LIST = 1 << 16 };
typedef struct id_list {
    int32_t id[MAX_LIST];
    size_t n;
} id_list;
typedef struct text_list {
    char text[MAX_LIST];
    size_t n;
} text_list;

static inline bool add_ids(void *user, const int32_t *ids, size_t n_tokens) {
    id_list *list = user;
    assert_true(list->n + n_tokens <= MAX_LIST);
    memcpy(list->id + list->n, ids, n_tokens * sizeof *ids);
    list->n += n_tokens;
    return true;
}

static inline void add_text(void *user, const char *text, size_t n_bytes) {
    text_list *list = user;
    assert_true(list->n + n_bytes <= MAX_LIST);
    memcpy(list->text + list->n, text, n_bytes);
    list->n += n_bytes;
}

static inline void encode(const dsi_tokenizer *tokenizer, const char *text, size_t n_bytes,
                          bool special, id_list *out) {
    out->n = 0;
    assert_int_equal(dsi_tokenizer_encode(tokenizer, text, n_bytes, special, add_ids, out, NULL),
                     DSI_OK);
}

static inline void decode(const dsi_tokenizer *tokenizer, const id_list *ids, text_list *out) {
    dsi_detokenizer stream = {0};
    out->n = 0;
    for (size_t i = 0; i < ids->n; i++) {
        size_t n_bytes;
        const char *bytes = dsi_tokenizer_bytes(tokenizer, ids->id[i], &n_bytes);
        dsi_detokenizer_push(&stream, bytes, n_bytes, add_text, out);
    }
    dsi_detokenizer_finish(&stream, add_text, out);
}

#endif
