/* text.h: tokenizer, streaming detokenizer, chat templates. Nothing here allocates per call except
 * where said; nothing recurses on input. */
#ifndef DSI_LIB_TEXT_TEXT_H
#define DSI_LIB_TEXT_TEXT_H

#include "../base/base.h"
#include "../base/gguf.h"

/* ---- Tokenizer: byte-level BPE of tokenizer.json ------------------------------------------- */
typedef struct dsi_tokenizer dsi_tokenizer;
/* Families: what cuts a text into pieces before BPE. */
typedef enum dsi_pretok {
    DSI_PRETOK_DEEPSEEK_V3,
    DSI_PRETOK_DEEPSEEK_V2, /* and DeepSeek LLM */
    DSI_PRETOK_QWEN2,
    DSI_PRETOK_LLAMA3,
    DSI_PRETOK_SMOLLM, /* these two in GGUF files alone */
    DSI_PRETOK_DEEPSEEK_CODER
} dsi_pretok;

/* path: a tokenizer.json. Refuses (by name) a model other than BPE, and what no known family has
 * (tokenizer_rules.c). Immutable afterwards: any number of threads may use it. */
dsi_status dsi_tokenizer_open(const char *path, dsi_tokenizer **tokenizer, dsi_error *error);
/* The tokenizer in the keys of a GGUF file (tokenizer.ggml.*), which is not needed afterwards.
 * Refuses by name what is not byte-level BPE and a `pre` that no family has. *tokenizer is NULL,
 * with DSI_OK, if the file has none. */
dsi_status dsi_tokenizer_of_gguf(const dsi_gguf *gguf, dsi_tokenizer **tokenizer, dsi_error *error);
/* The `pre` of a GGUF file with this tokenizer; NULL: its rules have no name there. */
const char *dsi_tokenizer_gguf_pre(const dsi_tokenizer *tokenizer);
void dsi_tokenizer_free(dsi_tokenizer *tokenizer);
uint32_t dsi_tokenizer_n_tokens(const dsi_tokenizer *tokenizer); /* largest id + 1 */
dsi_pretok dsi_tokenizer_pretok(const dsi_tokenizer *tokenizer);

/* Receives ids in order; return false to stop. */
typedef bool (*dsi_token_sink)(void *user, const int32_t *tokens, size_t n_tokens);
/* special: recognise added tokens in the text; else everything is plain text. Any bytes are
 * accepted: what is not UTF-8 is replaced by U+FFFD first, as the reference does. Time is linear
 * in n_bytes (times log of the longest token), memory is constant: a few KB of stack, and a window
 * of 2.5 MB for a single piece (a run of letters, of blanks ...) of more than 256 bytes. Text
 * that must be normalised (Qwen2) takes 64 KB more, or twice its longest piece, and 16 bytes for
 * each combining mark of its longest run of them.
 * Errors: NOMEM (these windows). A stop by the sink is no error: DSI_OK. */
dsi_status dsi_tokenizer_encode(const dsi_tokenizer *tokenizer, const char *text, size_t n_bytes,
                                bool special, dsi_token_sink sink, void *user, dsi_error *error);
/* Raw bytes of one token (owned by the tokenizer, not zero-terminated); n_bytes 0 and "" for an id
 * that does not exist. Added tokens give their text. */
const char *dsi_tokenizer_bytes(const dsi_tokenizer *tokenizer, int32_t token, size_t *n_bytes);
/* Id of an added ("special") token by its text, or -1. */
int32_t dsi_tokenizer_special(const dsi_tokenizer *tokenizer, const char *text);
bool dsi_tokenizer_is_added(const dsi_tokenizer *tokenizer, int32_t token);

/* ---- Streaming decode: tokens in, whole UTF-8 characters out --------------------------------- */
typedef struct dsi_detokenizer {
    uint8_t held[4]; /* an incomplete character at the end of the stream so far */
    uint32_t n_held;
} dsi_detokenizer;
typedef void (*dsi_text_sink)(void *user, const char *text, size_t n_bytes);
/* Start from a zeroed struct. Invalid bytes become U+FFFD (one per maximal broken piece, as
 * Unicode's recommended practice), never in the middle of a character. */
void dsi_detokenizer_push(dsi_detokenizer *state, const char *bytes, size_t n_bytes,
                          dsi_text_sink sink, void *user);
/* End of the stream: what is still held becomes one U+FFFD. */
void dsi_detokenizer_finish(dsi_detokenizer *state, dsi_text_sink sink, void *user);

/* ---- Stop strings (stop.c) ------------------------------------------------------------------
 * Found in a stream of text however it is cut into pieces. Time is linear in the text; no copy of
 * it is made. Of several matches the one that is complete first wins, of those complete with the
 * same byte the longest, of equal strings the lowest index: so a match never depends on what
 * follows. */
enum { DSI_STOP_MAX_STRINGS = 16, DSI_STOP_MAX_BYTES = 256 };
typedef struct dsi_stop_set dsi_stop_set; /* immutable, no pointers inside */
typedef struct dsi_stop_state {
    uint16_t n_matched[DSI_STOP_MAX_STRINGS]; /* bytes of each string at the end of the text */
} dsi_stop_state;
/* Checks and copies n zero-terminated strings; *set is NULL if n is 0. Errors: ARG (too many, NULL,
 * empty, too long, not UTF-8), NOMEM. */
dsi_status dsi_stop_new(const char *const *strings, uint32_t n, dsi_stop_set **set,
                        dsi_error *error);
dsi_stop_set *dsi_stop_copy(const dsi_stop_set *set); /* NULL: no memory */
void dsi_stop_free(dsi_stop_set *set);
/* Start from a zeroed state. The sink gets what can no longer belong to a match; what still can is
 * held back. Returns the index of the string found, or -1; text from its first byte on is never
 * handed out. If the pieces pushed are whole characters, so are those handed out. */
int32_t dsi_stop_push(const dsi_stop_set *set, dsi_stop_state *state, const char *text,
                      size_t n_bytes, dsi_text_sink sink, void *user);
/* End of the text: hands out what is held back. */
void dsi_stop_finish(const dsi_stop_set *set, dsi_stop_state *state, dsi_text_sink sink,
                     void *user);

/* ---- The text of an answer (answer_text.c): bytes of sampled tokens in, text by part out -------
 */
/* part: DSI_PART_* of dsinfer.h. Whole characters only. */
typedef void (*dsi_part_sink)(void *user, uint32_t part, const char *text, size_t n_bytes);
enum {
    DSI_ANSWER_MAX_LINE_ENDS = 64, /* held back at the end of reasoning; what is more is text */
    /* the most text that n bytes of a token can set free: 3 n and this much */
    DSI_ANSWER_MAX_HELD = DSI_STOP_MAX_BYTES + DSI_ANSWER_MAX_LINE_ENDS + 2 * 3
};
typedef struct dsi_answer_text {
    dsi_part_sink sink; /* NULL: nobody listens */
    void *user;
    const dsi_stop_set *stop; /* looked for in the answer part; NULL: none */
    uint32_t part;
    int32_t stop_index;   /* the stop string that was found, or -1; no text follows it */
    bool any_text;        /* in this part */
    bool reasoned;        /* reasoning has ended */
    uint32_t n_line_ends; /* held back */
    dsi_detokenizer detokenizer;
    dsi_stop_state stop_state;
} dsi_answer_text;
/* A new answer; the sink stays. reasoning: the prompt has opened it already. */
void dsi_answer_text_start(dsi_answer_text *answer, const dsi_stop_set *stop, bool reasoning);
/* The mark before (opens) or behind reasoning was sampled. False: it is plain text in this place.
 */
bool dsi_answer_text_think(dsi_answer_text *answer, bool opens);
void dsi_answer_text_push(dsi_answer_text *answer, const char *bytes, size_t n_bytes);
/* The end: hands out all that is held back but line ends behind reasoning. */
void dsi_answer_text_finish(dsi_answer_text *answer);

/* ---- Pre-tokenizers (pretok.c, pretok_v2.c): hand-written, linear, no recursion ----------------
 * Each does what the patterns of its family's tokenizer.json do, applied in order. */
/* Returns the end of the piece that starts at `begin`, which is 0 or the end of a piece
 * (begin < n_bytes). *saw_end (may be NULL): whether more text behind could change that. */
size_t dsi_pretok_next(dsi_pretok pretok, const char *text, size_t n_bytes, size_t begin,
                       bool *saw_end);
/* Unicode general category groups of a code point (unicode_tables.c is generated). */
enum {
    DSI_CAT_L = 1,
    DSI_CAT_M = 2,
    DSI_CAT_N = 4,
    DSI_CAT_P = 8,
    DSI_CAT_S = 16,
    DSI_CAT_SPACE = 32, /* White_Space, the \s of the patterns */
    DSI_CAT_CASED = 128 /* beside L: a letter of DeepSeek-V2's word pattern */
};
uint32_t dsi_unicode_category(uint32_t code_point);

/* ---- Chat templates (chat_templates.c, chat.c) ----------------------------------------------- */
typedef struct dsi_chat_turn {
    uint32_t role; /* DSI_ROLE_* of dsinfer.h */
    const char *text;
    size_t n_bytes;
} dsi_chat_turn;
/* The names, for messages. */
#define DSI_CHAT_KNOWN                                                                             \
    "deepseek-v2, deepseek-v3, deepseek-v3.1, deepseek-r1, deepseek-r1-distill, qwen1.5, qwen2, "  \
    "qwen2.5, llama-3 and llama-3.1"
typedef struct dsi_chat_template {
    const char *name;
    const char *end;     /* the added token that ends an answer */
    bool thinks_default; /* what DSI_THINK_AUTO means */
    bool can_think, can_skip_thinking;
    bool last_system;     /* of several system messages only the last one counts */
    const char *preamble; /* text of the template before or instead of a system message, or NULL */
    uint32_t form;        /* how the messages are put together: chat.h */
} dsi_chat_template;
/* Chosen from the checkpoint folder: its tokenizer_config.json's chat_template is recognised by its
 * features (never run), else the tokens present decide. *chat is NULL if none fits, which is no
 * error. tokenizer_config_text may be NULL. Error: NOMEM. */
dsi_status dsi_chat_choose(const dsi_tokenizer *tokenizer, const char *tokenizer_config_text,
                           size_t n_bytes, const dsi_chat_template **chat, dsi_error *error);
/* The same for the template of a GGUF file; NULL: it has none. */
dsi_status dsi_chat_choose_template(const dsi_tokenizer *tokenizer, const char *template_text,
                                    size_t n_bytes, const dsi_chat_template **chat,
                                    dsi_error *error);
/* Pieces of the prompt in order: special pieces are added tokens by their text, plain pieces are
 * user text to encode without specials; no two plain pieces are neighbours. sink returns false to
 * stop, which is no error (DSI_OK). Errors: ARG (role order, thinking on/off the template cannot
 * do), NOMEM (plain texts that follow each other are joined in a buffer). `chat` is of
 * dsi_chat_choose. */
typedef bool (*dsi_chat_sink)(void *user, bool special, const char *text, size_t n_bytes);
dsi_status dsi_chat_render(const dsi_chat_template *chat, const dsi_chat_turn *turns,
                           size_t n_turns, uint32_t think, dsi_chat_sink sink, void *user,
                           dsi_error *error);

#endif
