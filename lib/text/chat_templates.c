/* chat_templates.c: the chat templates that are known, and which of them a checkpoint has. Its own
 * template is a program in a file from outside: it is recognised by its features and never run. */
#include "../base/json.h"
#include "../base/sys.h"
#include "chat.h"

#include <string.h>

static const dsi_chat_template deepseek_v2 = {
    .name = "deepseek-v2", .end = DSI_CHAT_EOS, .can_skip_thinking = true, .form = DSI_CHAT_WORDS};
static const dsi_chat_template deepseek_v3 = {
    .name = "deepseek-v3", .end = DSI_CHAT_EOS, .can_skip_thinking = true, .form = DSI_CHAT_MARKS};
/* V2.5: of several system messages the last one counts. */
static const dsi_chat_template deepseek_v3_last = {.name = "deepseek-v3",
                                                   .end = DSI_CHAT_EOS,
                                                   .can_skip_thinking = true,
                                                   .last_system = true,
                                                   .form = DSI_CHAT_MARKS};
static const dsi_chat_template deepseek_v3_1 = {.name = "deepseek-v3.1",
                                                .end = DSI_CHAT_EOS,
                                                .can_think = true,
                                                .can_skip_thinking = true,
                                                .form = DSI_CHAT_MARKS_V3_1};
static const dsi_chat_template deepseek_r1 = {.name = "deepseek-r1",
                                              .end = DSI_CHAT_EOS,
                                              .thinks_default = true,
                                              .can_think = true,
                                              .form = DSI_CHAT_MARKS};
static const dsi_chat_template deepseek_r1_distill = {.name = "deepseek-r1-distill",
                                                      .end = DSI_CHAT_EOS,
                                                      .thinks_default = true,
                                                      .can_think = true,
                                                      .last_system = true,
                                                      .form = DSI_CHAT_MARKS};
/* The first weeks' files: the model is left to write <think> itself, unless it is asked to think.
 */
static const dsi_chat_template deepseek_r1_distill_early = {.name = "deepseek-r1-distill",
                                                            .end = DSI_CHAT_EOS,
                                                            .can_think = true,
                                                            .last_system = true,
                                                            .form = DSI_CHAT_MARKS};
/* preamble: the system message of a conversation that has none. */
static const dsi_chat_template chatml[] = {
    {.name = "qwen2.5",
     .end = DSI_CHAT_IM_END,
     .can_skip_thinking = true,
     .preamble = "You are Qwen, created by Alibaba Cloud. You are a helpful assistant.",
     .form = DSI_CHAT_CHATML},
    {.name = "qwen2",
     .end = DSI_CHAT_IM_END,
     .can_skip_thinking = true,
     .preamble = "You are a helpful assistant.",
     .form = DSI_CHAT_CHATML},
    {.name = "qwen1.5",
     .end = DSI_CHAT_IM_END,
     .can_skip_thinking = true,
     .preamble = "You are a helpful assistant",
     .form = DSI_CHAT_CHATML},
};
static const dsi_chat_template llama_3 = {
    .name = "llama-3", .end = DSI_CHAT_EOT, .can_skip_thinking = true, .form = DSI_CHAT_HEADERS};
/* preamble: in front of the system message. The date is the one that Llama-3.1's and 3.3's files
 * give when the caller gives none; 3.2's would take today's where a clock is offered. A prompt that
 * changes overnight is not wanted here, so all get the date of the file. */
static const dsi_chat_template llama_3_1 = {
    .name = "llama-3.1",
    .end = DSI_CHAT_EOT,
    .can_skip_thinking = true,
    .preamble = "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n",
    .form = DSI_CHAT_HEADERS};

/* ---- From the template's text ---------------------------------------------------------------- */

static bool has(const char *text, const char *part) { return strstr(text, part) != NULL; }

static const dsi_chat_template *recognise_marks(const char *text) {
    /* Written by the later files only, which join system messages. */
    bool last = has(text, "system_prompt = message['content']") && !has(text, "is_first_sp");
    /* R1 writes the line end as a Jinja escape. V3.1 asks a variable whether to think. */
    if (has(text, DSI_CHAT_ASSISTANT DSI_CHAT_THINK "\\n") ||
        has(text, DSI_CHAT_ASSISTANT DSI_CHAT_THINK "\n"))
        return last ? &deepseek_r1_distill : &deepseek_r1;
    if (has(text, "thinking") && has(text, DSI_CHAT_THINK) && has(text, DSI_CHAT_END_THINK))
        return &deepseek_v3_1;
    if (!last) return &deepseek_v3;
    return has(text, DSI_CHAT_END_THINK) ? &deepseek_r1_distill_early : &deepseek_v3_last;
}

/* By the default system message, which stands in the text with an escaped or a true line end. */
static const dsi_chat_template *recognise_chatml(const char *text) {
    static const char *const starts[] = {DSI_CHAT_IM_START "system\\n",
                                         DSI_CHAT_IM_START "system\n"};
    if (has(text, "think")) return NULL; /* QwQ, Qwen3 */
    for (int i = 0; i < 2; i++)
        for (const char *at = text; (at = strstr(at, starts[i])) != NULL;) {
            at += strlen(starts[i]);
            for (size_t k = 0; k < sizeof chatml / sizeof *chatml; k++) {
                size_t n = strlen(chatml[k].preamble);
                if (strncmp(at, chatml[k].preamble, n) == 0 &&
                    strncmp(at + n, DSI_CHAT_IM_END, sizeof DSI_CHAT_IM_END - 1) == 0)
                    return &chatml[k];
            }
        }
    return NULL;
}

static const dsi_chat_template *recognise_headers(const char *text) {
    if (!has(text, "message['content'] | trim + '" DSI_CHAT_EOT "'") || has(text, "think"))
        return NULL;
    if (!has(text, "Cutting Knowledge Date")) return &llama_3;
    return has(text, "Cutting Knowledge Date: December 2023") && has(text, "26 Jul 2024")
               ? &llama_3_1
               : NULL;
}

static const dsi_chat_template *recognise(const char *text) {
    if (has(text, DSI_CHAT_USER) && has(text, DSI_CHAT_ASSISTANT)) return recognise_marks(text);
    if (has(text, DSI_CHAT_IM_START)) return recognise_chatml(text);
    if (has(text, DSI_CHAT_START_HEADER)) return recognise_headers(text);
    if (has(text, "'User: ' + message['content']") &&
        has(text, "'Assistant: ' + message['content'] + eos_token") && has(text, "'Assistant:'"))
        return &deepseek_v2;
    return NULL;
}

/* ---- From the tokens ---------------------------------------------------------------------------
 */

static bool has_tokens(const dsi_tokenizer *tokenizer, const dsi_chat_template *chat) {
    static const char *const needed[][5] = {
        [DSI_CHAT_MARKS] = {DSI_CHAT_BOS, DSI_CHAT_EOS, DSI_CHAT_USER, DSI_CHAT_ASSISTANT},
        [DSI_CHAT_MARKS_V3_1] = {DSI_CHAT_BOS, DSI_CHAT_EOS, DSI_CHAT_USER, DSI_CHAT_ASSISTANT,
                                 DSI_CHAT_END_THINK},
        [DSI_CHAT_WORDS] = {DSI_CHAT_BOS, DSI_CHAT_EOS},
        [DSI_CHAT_CHATML] = {DSI_CHAT_IM_START, DSI_CHAT_IM_END},
        [DSI_CHAT_HEADERS] = {DSI_CHAT_BEGIN_OF_TEXT, DSI_CHAT_START_HEADER, DSI_CHAT_END_HEADER,
                              DSI_CHAT_EOT}};
    for (int i = 0; i < 5 && needed[chat->form][i]; i++)
        if (dsi_tokenizer_special(tokenizer, needed[chat->form][i]) < 0) return false;
    return !chat->can_think || dsi_tokenizer_special(tokenizer, DSI_CHAT_THINK) >= 0;
}

/* For a checkpoint that has no template. Qwen's and Llama's tokens do not tell which system message
 * theirs begins with, so only DeepSeek's are enough. */
static const dsi_chat_template *guess(const dsi_tokenizer *tokenizer) {
    switch (dsi_tokenizer_pretok(tokenizer)) {
    case DSI_PRETOK_DEEPSEEK_V2:
        return &deepseek_v2;
    case DSI_PRETOK_DEEPSEEK_V3:
        return has_tokens(tokenizer, &deepseek_v3_1) ? &deepseek_v3_1 : &deepseek_v3;
    case DSI_PRETOK_QWEN2:
    case DSI_PRETOK_LLAMA3:
        return &deepseek_r1_distill;
    case DSI_PRETOK_SMOLLM:
    case DSI_PRETOK_DEEPSEEK_CODER:
        break;
    }
    return NULL;
}

/* ---- Choosing ----------------------------------------------------------------------------------
 */

enum { MAX_CONFIG_NODES = 1 << 20 };

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
    if (!has_template) found = guess(tokenizer);
    if (found && has_tokens(tokenizer, found)) *chat = found;
    return DSI_OK;
}

dsi_status dsi_chat_choose_template(const dsi_tokenizer *tokenizer, const char *template_text,
                                    size_t n_bytes, const dsi_chat_template **chat,
                                    dsi_error *error) {
    *chat = NULL;
    if (!template_text) return dsi_chat_choose(tokenizer, NULL, 0, chat, error);
    char *text = dsi_sys_strdup(template_text, n_bytes); /* with a zero behind it */
    if (!text) return dsi_fail(error, DSI_E_NOMEM, "no memory for the chat template's text");
    const dsi_chat_template *found = recognise(text);
    dsi_sys_free(text);
    if (found && has_tokens(tokenizer, found)) *chat = found;
    return DSI_OK;
}
