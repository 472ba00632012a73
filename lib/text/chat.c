/* chat.c: conversations as prompts, in the formats of chat.h, written as code.
 *
 * marks: BOS system {User question Assistant answer EOS} User question Assistant; templates that
 * think go on with <think> and a line end. Nothing separates texts from marks. System messages are
 * gathered in front, wherever they stand: all of them, with an empty line between, or (last_system)
 * only the last. Reasoning of past answers, up to the last </think>, is left out.
 *
 * marks V3.1: the same, but each Assistant is followed by </think>, the last one by <think> if the
 * model shall think; reasoning goes up to the first </think>.
 *
 * words: BOS, then in their order "system\n\n", "User: question\n\n", "Assistant: answer" EOS, at
 * last "Assistant:".
 *
 * chatml: each message as <|im_start|> "role\ntext" <|im_end|> "\n"; if the first is not the
 * system's, one with the template's own system text comes before; at last <|im_start|>
 * "assistant\n".
 *
 * headers: <|begin_of_text|>, then each message as <|start_header_id|> "role" <|end_header_id|>
 * "\n\ntext" <|eot_id|>, without white space around the text; at last the header of an answer. With
 * a preamble there is always a system message first, which begins with it; the first message, if
 * the system's, is part of that.
 *
 * What stands in a message is plain text, marks of tool calls and of reasoning too. Plain text of
 * the template and of messages between two marks is tokenized as one piece, as the reference does;
 * so it is gathered in a buffer, unless it is a single text. */
#include "chat.h"
#include "../base/sys.h"
#include "unicode_tables.h"
#include "utf8.h"

#include <deepseek/dsinfer.h>
#include <string.h>

/* ---- Pieces ---------------------------------------------------------------------------------- */

typedef struct renderer {
    const dsi_chat_template *chat;
    dsi_chat_sink sink;
    void *user;
    bool stopped;      /* the sink said stop, or memory ran out */
    dsi_status status; /* NOMEM */
    dsi_error *error;
    const char *plain; /* [n] plain text since the last mark: the caller's, or own */
    uint64_t n;
    char *own;
    uint64_t capacity;
} renderer;

/* Makes room for n_more bytes behind the plain text, in a buffer of our own. */
static bool make_room(renderer *r, uint64_t n_more) {
    uint64_t n_all = 0, capacity = 0;
    if (!dsi_add_ok(r->n, n_more, &n_all) || !dsi_mul_ok(n_all, 2, &capacity))
        capacity = UINT64_MAX;
    if (n_all > r->capacity || capacity == UINT64_MAX) {
        char *own = dsi_sys_realloc(r->own, capacity, 1);
        if (!own) return false;
        if (r->plain == r->own) r->plain = own;
        r->own = own;
        r->capacity = capacity;
    }
    if (r->plain != r->own) memcpy(r->own, r->plain, r->n);
    r->plain = r->own;
    return true;
}

static void put(renderer *r, const char *text, size_t n_bytes) {
    if (r->stopped || n_bytes == 0) return;
    if (r->n == 0) { /* may stay the only one */
        r->plain = text;
        r->n = n_bytes;
    } else if (make_room(r, n_bytes)) {
        memcpy(r->own + r->n, text, n_bytes);
        r->n += n_bytes;
    } else {
        r->stopped = true;
        r->status = dsi_fail(r->error, DSI_E_NOMEM,
                             "no memory to join %llu and %zu bytes of a conversation",
                             (unsigned long long)r->n, n_bytes);
    }
}

static void put_text(renderer *r, const char *text) { put(r, text, strlen(text)); }

static void flush(renderer *r) {
    if (r->n > 0 && !r->stopped) r->stopped = !r->sink(r->user, false, r->plain, r->n);
    r->n = 0;
}

static void put_mark(renderer *r, const char *mark) {
    flush(r);
    if (!r->stopped) r->stopped = !r->sink(r->user, true, mark, strlen(mark));
}

static void put_turn(renderer *r, const dsi_chat_turn *turn) { put(r, turn->text, turn->n_bytes); }

/* ---- Marks ----------------------------------------------------------------------------------- */

static void put_system(renderer *r, const dsi_chat_turn *turns, size_t n_turns) {
    size_t n_system = 0, last = 0;
    for (size_t i = 0; i < n_turns; i++) {
        if (turns[i].role != DSI_ROLE_SYSTEM) continue;
        last = i;
        if (r->chat->last_system) continue;
        if (n_system++ > 0) put_text(r, "\n\n");
        put_turn(r, &turns[i]);
    }
    if (r->chat->last_system && turns[last].role == DSI_ROLE_SYSTEM) put_turn(r, &turns[last]);
}

/* A past answer without its reasoning. */
static void put_answer(renderer *r, const dsi_chat_turn *turn, bool first_only) {
    const char *text = turn->text;
    size_t n_bytes = turn->n_bytes, n_mark = sizeof DSI_CHAT_END_THINK - 1;
    const char *mark;
    while (n_bytes >= n_mark &&
           (mark = memmem(text, n_bytes, DSI_CHAT_END_THINK, n_mark)) != NULL) {
        n_bytes -= (size_t)(mark - text) + n_mark;
        text = mark + n_mark;
        if (first_only) break;
    }
    put(r, text, n_bytes);
}

static void render_marks(renderer *r, const dsi_chat_turn *turns, size_t n_turns, bool thinks) {
    bool is_v3_1 = r->chat->form == DSI_CHAT_MARKS_V3_1;
    bool after_user = false;
    put_mark(r, DSI_CHAT_BOS);
    put_system(r, turns, n_turns);
    for (size_t i = 0; i < n_turns; i++) {
        if (turns[i].role == DSI_ROLE_USER) {
            put_mark(r, DSI_CHAT_USER);
            put_turn(r, &turns[i]);
            after_user = true;
        } else if (turns[i].role == DSI_ROLE_ASSISTANT) {
            /* V3.1 opens an answer behind a question only, not behind another answer. */
            if (!is_v3_1 || after_user) put_mark(r, DSI_CHAT_ASSISTANT);
            if (is_v3_1 && after_user) put_mark(r, DSI_CHAT_END_THINK);
            put_answer(r, &turns[i], is_v3_1);
            put_mark(r, DSI_CHAT_EOS);
            after_user = false;
        }
    }
    put_mark(r, DSI_CHAT_ASSISTANT);
    if (thinks) put_mark(r, DSI_CHAT_THINK);
    if (thinks && !is_v3_1) put_text(r, "\n");
    if (!thinks && is_v3_1) put_mark(r, DSI_CHAT_END_THINK);
}

/* ---- Words, ChatML, headers ------------------------------------------------------------------ */

static const char *role_name(uint32_t role) {
    static const char *const names[] = {"system", "user", "assistant"};
    return names[role];
}

static void render_words(renderer *r, const dsi_chat_turn *turns, size_t n_turns) {
    put_mark(r, DSI_CHAT_BOS);
    for (size_t i = 0; i < n_turns; i++) {
        if (turns[i].role == DSI_ROLE_USER) put_text(r, "User: ");
        if (turns[i].role == DSI_ROLE_ASSISTANT) put_text(r, "Assistant: ");
        put_turn(r, &turns[i]);
        if (turns[i].role == DSI_ROLE_ASSISTANT)
            put_mark(r, DSI_CHAT_EOS);
        else
            put_text(r, "\n\n");
    }
    put_text(r, "Assistant:");
}

static void put_chatml(renderer *r, uint32_t role, const char *text, size_t n_bytes) {
    put_mark(r, DSI_CHAT_IM_START);
    put_text(r, role_name(role));
    put_text(r, "\n");
    put(r, text, n_bytes);
    put_mark(r, DSI_CHAT_IM_END);
    put_text(r, "\n");
}

static void render_chatml(renderer *r, const dsi_chat_turn *turns, size_t n_turns) {
    if (turns[0].role != DSI_ROLE_SYSTEM)
        put_chatml(r, DSI_ROLE_SYSTEM, r->chat->preamble, strlen(r->chat->preamble));
    for (size_t i = 0; i < n_turns; i++)
        put_chatml(r, turns[i].role, turns[i].text, turns[i].n_bytes);
    put_mark(r, DSI_CHAT_IM_START);
    put_text(r, "assistant\n");
}

/* What Python's str.strip() takes away: White_Space, and four separators of ASCII. */
static bool is_stripped(const dsi_utf8_step *step) {
    uint32_t c = step->code_point;
    return step->kind == DSI_UTF8_CHARACTER &&
           ((dsi_unicode_lookup(c) & DSI_CAT_SPACE) || (c >= 0x1C && c <= 0x1F));
}

static void put_stripped(renderer *r, const dsi_chat_turn *turn) {
    const uint8_t *text = (const uint8_t *)turn->text;
    size_t begin = 0, end = turn->n_bytes;
    while (begin < end) {
        dsi_utf8_step step = dsi_utf8_next(text + begin, end - begin);
        if (!is_stripped(&step)) break;
        begin += step.n_bytes;
    }
    while (begin < end) {
        size_t at = end - 1;
        while (at > begin && end - at < 4 && (text[at] & 0xC0) == 0x80) at--;
        dsi_utf8_step step = dsi_utf8_next(text + at, end - at);
        if (!is_stripped(&step) || at + step.n_bytes != end) break;
        end = at;
    }
    put(r, turn->text + begin, end - begin);
}

static void put_header(renderer *r, uint32_t role) {
    put_mark(r, DSI_CHAT_START_HEADER);
    put_text(r, role_name(role));
    put_mark(r, DSI_CHAT_END_HEADER);
    put_text(r, "\n\n");
}

static void render_headers(renderer *r, const dsi_chat_turn *turns, size_t n_turns) {
    size_t i = 0;
    put_mark(r, DSI_CHAT_BEGIN_OF_TEXT);
    if (r->chat->preamble) {
        put_header(r, DSI_ROLE_SYSTEM);
        put_text(r, r->chat->preamble);
        if (turns[0].role == DSI_ROLE_SYSTEM) put_stripped(r, &turns[i++]);
        put_mark(r, DSI_CHAT_EOT);
    }
    for (; i < n_turns; i++) {
        put_header(r, turns[i].role);
        put_stripped(r, &turns[i]);
        put_mark(r, DSI_CHAT_EOT);
    }
    put_header(r, DSI_ROLE_ASSISTANT);
}

/* ---- A conversation -------------------------------------------------------------------------- */

static dsi_status check_turns(const dsi_chat_turn *turns, size_t n_turns, dsi_error *error) {
    uint32_t last = DSI_ROLE_SYSTEM;
    for (size_t i = 0; i < n_turns; i++) {
        if (turns[i].role > DSI_ROLE_ASSISTANT)
            return dsi_fail(error, DSI_E_ARG,
                            "message %zu has role %u: use DSI_ROLE_SYSTEM, USER "
                            "or ASSISTANT",
                            i, turns[i].role);
        if (!turns[i].text && turns[i].n_bytes > 0)
            return dsi_fail(error, DSI_E_ARG, "message %zu has no text but %zu bytes", i,
                            turns[i].n_bytes);
        if (turns[i].role != DSI_ROLE_SYSTEM) last = turns[i].role;
    }
    if (last != DSI_ROLE_USER)
        return dsi_fail(error, DSI_E_ARG,
                        "%s: the last message of a conversation (system messages "
                        "aside) must be the user's",
                        last == DSI_ROLE_SYSTEM ? "there is no user message"
                                                : "the last message is the assistant's");
    return DSI_OK;
}

static dsi_status check_think(const dsi_chat_template *chat, uint32_t think, bool *thinks,
                              dsi_error *error) {
    if (think > DSI_THINK_OFF)
        return dsi_fail(error, DSI_E_ARG, "think is %u: use DSI_THINK_AUTO, ON or OFF", think);
    if (think == DSI_THINK_ON && !chat->can_think)
        return dsi_fail(error, DSI_E_ARG,
                        "the chat template %s cannot think: use DSI_THINK_AUTO "
                        "or OFF",
                        chat->name);
    if (think == DSI_THINK_OFF && !chat->can_skip_thinking)
        return dsi_fail(error, DSI_E_ARG,
                        "the chat template %s always thinks: use DSI_THINK_AUTO "
                        "or ON, and leave the reasoning part of the answer unread",
                        chat->name);
    *thinks = think == DSI_THINK_ON || (think == DSI_THINK_AUTO && chat->thinks_default);
    return DSI_OK;
}

dsi_status dsi_chat_render(const dsi_chat_template *chat, const dsi_chat_turn *turns,
                           size_t n_turns, uint32_t think, dsi_chat_sink sink, void *user,
                           dsi_error *error) {
    bool thinks = false;
    dsi_status status = check_turns(turns, n_turns, error);
    if (status == DSI_OK) status = check_think(chat, think, &thinks, error);
    if (status != DSI_OK) return status;
    renderer r = {.chat = chat, .sink = sink, .user = user, .error = error};
    switch (chat->form) {
    case DSI_CHAT_WORDS:
        render_words(&r, turns, n_turns);
        break;
    case DSI_CHAT_CHATML:
        render_chatml(&r, turns, n_turns);
        break;
    case DSI_CHAT_HEADERS:
        render_headers(&r, turns, n_turns);
        break;
    default:
        render_marks(&r, turns, n_turns, thinks);
    }
    flush(&r);
    dsi_sys_free(r.own);
    return r.status;
}
