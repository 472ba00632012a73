/* fuzz_chat.c: the input is a byte that chooses tokenizer and thinking, then messages (a byte for
 * the role, a text, a zero byte), and behind a byte 0xFF a tokenizer_config.json. Special pieces of
 * the prompt are the template's own; whatever stands in a message is plain text. */
#include "../../include/deepseek/dsinfer.h"
#include "texts.h"
#include "tokenizers.h"

typedef struct chat_check {
    const dsi_tokenizer *tokenizer;
    size_t n_plain;
    bool last_plain;
} chat_check;
static bool check_chat_piece(void *user, bool special, const char *text, size_t n) {
    chat_check *c = user;
    if (special) {
        char name[256];
        FUZZ_MUST(n > 0 && n < sizeof name);
        memcpy(name, text, n);
        name[n] = 0;
        FUZZ_MUST(dsi_tokenizer_special(c->tokenizer, name) >= 0);
    } else {
        FUZZ_MUST(!c->last_plain);
        c->n_plain += n;
    }
    c->last_plain = !special;
    return true;
}

enum { CHAT_TURNS = 32 };
/* The messages in data[0..n), up to a byte 0xFF; returns where that is, or n. */
static size_t read_chat_turns(const uint8_t *data, size_t n, dsi_chat_turn *turns,
                              size_t *n_turns) {
    size_t at = 0;
    while (at < n && data[at] != 0xff && *n_turns < CHAT_TURNS) {
        const uint8_t *text = data + at + 1;
        const uint8_t *end = at + 1 < n ? memchr(text, 0, n - at - 1) : NULL;
        size_t n_text = end ? (size_t)(end - text) : n - at - 1;
        turns[(*n_turns)++] = (dsi_chat_turn){data[at] & 3, (const char *)text, n_text};
        at += 1 + n_text + (end != NULL);
    }
    return at;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n) {
    if (n == 0) return 0;
    dsi_chat_turn turns[CHAT_TURNS];
    size_t n_turns = 0, n_text = 0, at = 1 + read_chat_turns(data + 1, n - 1, turns, &n_turns);
    const char *config = at < n && data[at] == 0xff ? (const char *)data + at + 1 : NULL;
    const dsi_tokenizer *tokenizer = fuzz_tokenizer(data[0] >> 2);
    const dsi_chat_template *chat = NULL;
    chat_check check = {.tokenizer = tokenizer};
    dsi_error error = {0};
    FUZZ_MUST(dsi_chat_choose(tokenizer, config, config ? n - at - 1 : 0, &chat, &error) == DSI_OK);
    if (!chat) return 0;
    dsi_status status =
        dsi_chat_render(chat, turns, n_turns, data[0] & 3, check_chat_piece, &check, &error);
    if (status) {
        FUZZ_MUST(status == error.status);
        fuzz_refused(error.text);
        return 0;
    }
    for (size_t i = 0; i < n_turns; i++) n_text += turns[i].n_bytes;
    FUZZ_MUST(n_turns > 0 && check.n_plain <= n_text + 64 * (n_turns + 1) + 256);
    return 0;
}
