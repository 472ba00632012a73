/* text.c: the text calls of dsinfer.h: tokenize, detokenize, chat prompts. */
#include "internal.h"
#include <string.h>

static dsi_status need_tokenizer(const dsi_model *model, const char *call, dsi_error *error) {
    if (!model) return dsi_fail(error, DSI_E_ARG, "%s: model is NULL", call);
    if (dsi_is_child(model->process)) return dsi_fail_child(error, call, model->process);
    if (model->tokenizer) return DSI_OK;
    if (model->tokenizer_error.text[0])
        return dsi_fail(error, DSI_E_UNSUPPORTED, "%s: %s", call, model->tokenizer_error.text);
    return dsi_fail(error, DSI_E_STATE,
                    "%s: %s holds no tokenizer.json; put the model's own tokenizer.json there, or "
                    "work with token ids",
                    call, model->checkpoint.dir);
}

/* A caller's array that may be too small: counts on, stores what fits. */
typedef struct token_array {
    int32_t *tokens;
    size_t capacity, n;
} token_array;
static bool store_tokens(void *user, const int32_t *tokens, size_t n) {
    token_array *a = user;
    for (size_t i = 0; i < n; i++, a->n++)
        if (a->n < a->capacity) a->tokens[a->n] = tokens[i];
    return true;
}
static dsi_status finish_array(size_t need, size_t capacity, size_t *n_out, const char *what,
                               dsi_error *error) {
    if (n_out) *n_out = need;
    if (need <= capacity || capacity == 0) return DSI_OK;
    return dsi_fail(error, DSI_E_BUFFER, "the result has %zu %s, the buffer room for %zu", need,
                    what, capacity);
}

dsi_status dsi_tokenize(const dsi_model *model, const char *text, size_t n_bytes, uint32_t flags,
                        int32_t *tokens, size_t capacity, size_t *n_tokens) {
    dsi_error *error = dsi_thread_error();
    dsi_status st = need_tokenizer(model, "dsi_tokenize", error);
    if (st != DSI_OK) return st;
    if ((!text && n_bytes) || (!tokens && capacity))
        return dsi_fail(error, DSI_E_ARG, "dsi_tokenize: text or tokens is NULL");
    token_array array = {tokens, capacity, 0};
    st = dsi_tokenizer_encode(model->tokenizer, text, n_bytes, (flags & DSI_TOKENIZE_SPECIAL) != 0,
                              store_tokens, &array, error);
    return st == DSI_OK ? finish_array(array.n, capacity, n_tokens, "tokens", error) : st;
}

typedef struct byte_array {
    char *text;
    size_t capacity, n;
} byte_array;
static void store_bytes(void *user, const char *text, size_t n_bytes) {
    byte_array *a = user;
    if (a->n < a->capacity && n_bytes) {
        size_t room = a->capacity - a->n;
        memcpy(a->text + a->n, text, n_bytes < room ? n_bytes : room);
    }
    a->n += n_bytes;
}

dsi_status dsi_detokenize(const dsi_model *model, const int32_t *tokens, size_t n_tokens,
                          char *text, size_t capacity, size_t *n_bytes) {
    dsi_error *error = dsi_thread_error();
    dsi_status st = need_tokenizer(model, "dsi_detokenize", error);
    if (st != DSI_OK) return st;
    if ((!tokens && n_tokens) || (!text && capacity))
        return dsi_fail(error, DSI_E_ARG, "dsi_detokenize: tokens or text is NULL");
    byte_array array = {text, capacity, 0};
    dsi_detokenizer state = {0};
    for (size_t i = 0; i < n_tokens; i++) {
        size_t n;
        const char *bytes = dsi_tokenizer_bytes(model->tokenizer, tokens[i], &n);
        dsi_detokenizer_push(&state, bytes, n, store_bytes, &array);
    }
    dsi_detokenizer_finish(&state, store_bytes, &array);
    return finish_array(array.n, capacity, n_bytes, "bytes", error);
}

/* ---- Chat
 * ------------------------------------------------------------------------------------------ */

typedef struct chat_job {
    const dsi_model *model;
    token_array array;
    dsi_error *error;
    dsi_status status;
} chat_job;

/* Pieces of the template become one added token each; the users' text is encoded plainly. */
static bool encode_piece(void *user, bool special, const char *text, size_t n_bytes) {
    chat_job *job = user;
    char name[64];
    if (special && n_bytes < sizeof name) {
        memcpy(name, text, n_bytes);
        name[n_bytes] = 0;
        int32_t token = dsi_tokenizer_special(job->model->tokenizer, name);
        if (token >= 0) return store_tokens(&job->array, &token, 1);
        job->status = dsi_fail(job->error, DSI_E_MODEL,
                               "the chat template %s needs the token %s, which tokenizer.json "
                               "does not have",
                               job->model->chat->name, name);
        return false;
    }
    job->status = dsi_tokenizer_encode(job->model->tokenizer, text, n_bytes, false, store_tokens,
                                       &job->array, job->error);
    return job->status == DSI_OK;
}

static dsi_status render(chat_job *job, const dsi_message *messages, size_t n_messages,
                         uint32_t think) {
    enum { MAX_MESSAGES = 65536 };
    DSI_MEMORY_SCOPE(TEXT);
    if (n_messages == 0 || n_messages > MAX_MESSAGES || !messages)
        return dsi_fail(job->error, DSI_E_ARG,
                        "a conversation of %zu messages; it may have 1 to %d", n_messages,
                        MAX_MESSAGES);
    dsi_chat_turn *turns = dsi_sys_calloc(n_messages, sizeof *turns);
    if (!turns) return dsi_fail(job->error, DSI_E_NOMEM, "no memory for a conversation");
    dsi_status st = DSI_OK;
    for (size_t i = 0; st == DSI_OK && i < n_messages; i++) {
        dsi_message m = {0};
        st = dsi_copy_options(&m, sizeof m, &messages[i], "dsi_message", job->error);
        if (st == DSI_OK && !m.text && m.n_bytes)
            st = dsi_fail(job->error, DSI_E_ARG, "message %zu has %zu bytes at NULL", i, m.n_bytes);
        turns[i] = (dsi_chat_turn){m.role, m.text ? m.text : "", m.n_bytes};
    }
    if (st == DSI_OK)
        st = dsi_chat_render(job->model->chat, turns, n_messages, think, encode_piece, job,
                             job->error);
    dsi_sys_free(turns);
    return job->status != DSI_OK ? job->status : st;
}

dsi_status dsi_chat_tokens(const dsi_model *model, const dsi_message *messages, size_t n_messages,
                           uint32_t think, int32_t *tokens, size_t capacity, size_t *n_tokens) {
    dsi_error *error = dsi_thread_error();
    dsi_status st = need_tokenizer(model, "dsi_chat_tokens", error);
    if (st != DSI_OK) return st;
    if (!tokens && capacity) return dsi_fail(error, DSI_E_ARG, "dsi_chat_tokens: tokens is NULL");
    if (!model->chat)
        return dsi_fail(error, DSI_E_UNSUPPORTED,
                        "%s: none of the chat templates fits tokenizer_config.json and the tokens; "
                        "known are " DSI_CHAT_KNOWN "; build the prompt with dsi_tokenize instead",
                        model->checkpoint.dir);
    chat_job job = {model, {tokens, capacity, 0}, error, DSI_OK};
    st = render(&job, messages, n_messages, think);
    return st == DSI_OK ? finish_array(job.array.n, capacity, n_tokens, "tokens", error) : st;
}
