/* chat.c: the three chat formats of the V3 family, as code. A checkpoint's own template is a
 * program in a file from outside; it is recognised by its features and never run.
 *
 *   deepseek-v3    BOS system {User question Assistant answer EOS} User question Assistant
 *   deepseek-r1    the same, then <think> and a line end: the model always thinks
 *   deepseek-v3.1  each Assistant is followed by </think>, the last one by <think> if it shall
 *                  think
 *
 * BOS, User, ... stand for the added tokens below. Nothing separates texts from them. Reasoning of
 * past answers (what is before </think>) is left out. System messages are gathered in front,
 * wherever they stand, with an empty line between them. */
#include "../base/json.h"
#include "../base/sys.h"
#include "text.h"

#include <deepseek/dsinfer.h>
#include <string.h>

#define BOS "<｜begin▁of▁sentence｜>"
#define EOS "<｜end▁of▁sentence｜>"
#define USER "<｜User｜>"
#define ASSISTANT "<｜Assistant｜>"
#define THINK "<think>"
#define END_THINK "</think>"

static const dsi_chat_template deepseek_v3 = {"deepseek-v3", false, false, true};
static const dsi_chat_template deepseek_r1 = {"deepseek-r1", true, true, false};
static const dsi_chat_template deepseek_v3_1 = {"deepseek-v3.1", false, true, true};

/* ---- Choosing ------------------------------------------------------------------------------ */

enum { MAX_CONFIG_NODES = 1 << 20 };

static bool has_tokens(const dsi_tokenizer *tokenizer, const dsi_chat_template *chat) {
    static const char *const always[] = {BOS, EOS, USER, ASSISTANT};
    for (int i = 0; i < 4; i++)
        if (dsi_tokenizer_special(tokenizer, always[i]) < 0) return false;
    if (!chat->can_think) return true;
    return dsi_tokenizer_special(tokenizer, THINK) >= 0 &&
           (!chat->can_skip_thinking || dsi_tokenizer_special(tokenizer, END_THINK) >= 0);
}

static const dsi_chat_template *recognise(const char *text) {
    if (!strstr(text, USER) || !strstr(text, ASSISTANT)) return NULL;
    /* R1 writes the line end as a Jinja escape. V3.1 asks a variable whether to think. */
    if (strstr(text, ASSISTANT THINK "\\n") || strstr(text, ASSISTANT THINK "\n"))
        return &deepseek_r1;
    if (strstr(text, "thinking") && strstr(text, THINK) && strstr(text, END_THINK))
        return &deepseek_v3_1;
    return &deepseek_v3;
}

/* The node of the template's text: a string, or the entry "default" of a list of named ones. */
static uint32_t find_template(const dsi_json *json) {
    uint32_t node = dsi_json_get(json, 0, "chat_template");
    if (node == DSI_JSON_NONE || json->nodes[node].kind != DSI_JSON_ARRAY) return node;
    for (uint32_t i = node + 1; i < json->nodes[node].end; i = json->nodes[i].end)
        if (dsi_json_string_is(json, dsi_json_get(json, i, "name"), "default"))
            return dsi_json_get(json, i, "template");
    return node;
}

/* The template that the config names: *has_template, and *chat if it is known. What is wrong with
 * the file leaves no template; what is wrong with the machine is an error. */
static dsi_status read_template(const char *config, size_t n_bytes, bool *has_template,
                                const dsi_chat_template **chat, dsi_error *error) {
    dsi_json json = {0};
    dsi_error local = {0};
    *has_template = true;
    dsi_status status = dsi_json_parse(config, n_bytes, MAX_CONFIG_NODES, &json, &local);
    if (status != DSI_OK) {
        if (status == DSI_E_NOMEM)
            return dsi_fail(error, status, "tokenizer_config.json: %s", local.text);
        return DSI_OK;
    }
    uint32_t node = find_template(&json);
    *has_template = node != DSI_JSON_NONE && json.nodes[node].kind != DSI_JSON_NULL;
    if (*has_template && json.nodes[node].kind == DSI_JSON_STRING) {
        char *text = dsi_json_string(&json, node, NULL);
        if (text)
            *chat = recognise(text);
        else
            status = dsi_fail(error, DSI_E_NOMEM, "no memory for the chat template's text");
        dsi_sys_free(text);
    }
    dsi_json_free(&json);
    return status;
}

dsi_status dsi_chat_choose(const dsi_tokenizer *tokenizer, const char *tokenizer_config_text,
                           size_t n_bytes, const dsi_chat_template **chat, dsi_error *error) {
    const dsi_chat_template *found = NULL;
    bool has_template = false;
    *chat = NULL;
    if (tokenizer_config_text) {
        dsi_status status =
            read_template(tokenizer_config_text, n_bytes, &has_template, &found, error);
        if (status != DSI_OK) return status;
    }
    if (!has_template)
        found = has_tokens(tokenizer, &deepseek_v3_1) ? &deepseek_v3_1 : &deepseek_v3;
    if (found && has_tokens(tokenizer, found)) *chat = found;
    return DSI_OK;
}

/* ---- Rendering ----------------------------------------------------------------------------- */

typedef struct renderer {
    const dsi_chat_template *chat;
    dsi_chat_sink sink;
    void *user;
    bool stopped; /* the sink said stop */
} renderer;

static void put(renderer *r, bool special, const char *text, size_t n_bytes) {
    if (n_bytes > 0 && !r->stopped) r->stopped = !r->sink(r->user, special, text, n_bytes);
}

static void put_special(renderer *r, const char *text) { put(r, true, text, strlen(text)); }

typedef struct span {
    const char *text;
    size_t n_bytes;
} span;

/* A past answer without its reasoning: V3.1 cuts behind the first </think>, the others behind the
 * last one. */
static span answer_of(const renderer *r, const dsi_chat_turn *turn) {
    span s = {turn->text, turn->n_bytes};
    size_t n_mark = sizeof END_THINK - 1;
    const char *mark;
    while (s.n_bytes >= n_mark && (mark = memmem(s.text, s.n_bytes, END_THINK, n_mark)) != NULL) {
        s.n_bytes -= (size_t)(mark - s.text) + n_mark;
        s.text = mark + n_mark;
        if (r->chat == &deepseek_v3_1) break;
    }
    return s;
}

/* V3.1 opens an answer behind a question only: one that opens the conversation has nothing between
 * the system text and itself. Empty if there is none such. */
static span answer_behind_system(const renderer *r, const dsi_chat_turn *turns, size_t n_turns) {
    size_t i = 0, n_system = 0;
    for (size_t k = 0; k < n_turns; k++) n_system += turns[k].role == DSI_ROLE_SYSTEM;
    while (i < n_turns && turns[i].role == DSI_ROLE_SYSTEM) i++;
    bool bare = r->chat == &deepseek_v3_1 && n_system > 0 && i < n_turns &&
                turns[i].role == DSI_ROLE_ASSISTANT;
    return bare ? answer_of(r, &turns[i]) : (span){0};
}

/* All system texts, and what stands right behind them, as one piece: two neighbours would be
 * tokenized apart. */
static dsi_status put_system(renderer *r, const dsi_chat_turn *turns, size_t n_turns, span behind,
                             dsi_error *error) {
    static const char separator[] = "\n\n";
    enum { N_SEPARATOR = sizeof separator - 1 };
    uint64_t n_bytes = behind.n_bytes;
    size_t n_system = 0, last = 0;
    for (size_t i = 0; i < n_turns; i++) {
        if (turns[i].role != DSI_ROLE_SYSTEM) continue;
        if (!dsi_add_ok(n_bytes, turns[i].n_bytes, &n_bytes) ||
            !dsi_add_ok(n_bytes, N_SEPARATOR, &n_bytes))
            return dsi_fail(error, DSI_E_ARG, "the system messages are longer than memory");
        n_system++;
        last = i;
    }
    if (n_system == 0) return DSI_OK;
    if (n_system == 1 && behind.n_bytes == 0) {
        put(r, false, turns[last].text, turns[last].n_bytes);
        return DSI_OK;
    }
    char *joined = dsi_sys_calloc(n_bytes, 1);
    if (!joined)
        return dsi_fail(error, DSI_E_NOMEM, "no memory to join %zu system messages of %llu bytes",
                        n_system, (unsigned long long)n_bytes);
    size_t at = 0;
    for (size_t i = 0; i <= last; i++) {
        if (turns[i].role != DSI_ROLE_SYSTEM) continue;
        if (turns[i].n_bytes > 0) memcpy(joined + at, turns[i].text, turns[i].n_bytes);
        at += turns[i].n_bytes;
        if (i == last) break;
        memcpy(joined + at, separator, N_SEPARATOR);
        at += N_SEPARATOR;
    }
    if (behind.n_bytes > 0) memcpy(joined + at, behind.text, behind.n_bytes);
    put(r, false, joined, at + behind.n_bytes);
    dsi_sys_free(joined);
    return DSI_OK;
}

/* first_answer: of the first turn that is no system text, whether it still has to be written. */
static void put_turns(renderer *r, const dsi_chat_turn *turns, size_t n_turns, bool first_answer) {
    bool is_v3_1 = r->chat == &deepseek_v3_1;
    bool after_user = false;
    for (size_t i = 0; i < n_turns; i++) {
        if (turns[i].role == DSI_ROLE_USER) {
            put_special(r, USER);
            put(r, false, turns[i].text, turns[i].n_bytes);
            after_user = true;
        } else if (turns[i].role == DSI_ROLE_ASSISTANT) {
            /* V3.1 opens an answer behind a question only, not behind another answer. */
            if (!is_v3_1 || after_user) put_special(r, ASSISTANT);
            if (is_v3_1 && after_user) put_special(r, END_THINK);
            span answer = answer_of(r, &turns[i]);
            if (first_answer) put(r, false, answer.text, answer.n_bytes);
            first_answer = true;
            put_special(r, EOS);
            after_user = false;
        }
    }
}

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
    renderer r = {.chat = chat, .sink = sink, .user = user};
    put_special(&r, BOS);
    span behind = answer_behind_system(&r, turns, n_turns);
    status = put_system(&r, turns, n_turns, behind, error);
    if (status != DSI_OK) return status;
    put_turns(&r, turns, n_turns, behind.n_bytes == 0);
    put_special(&r, ASSISTANT);
    if (thinks) put_special(&r, THINK);
    if (thinks && chat == &deepseek_r1) put(&r, false, "\n", 1);
    if (!thinks && chat == &deepseek_v3_1) put_special(&r, END_THINK);
    return DSI_OK;
}
