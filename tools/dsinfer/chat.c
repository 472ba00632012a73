/* chat.c: dsinfer chat: a conversation on one session. Text in, answer out, until it is left. */
#include "chat.h"
#include "../../lib/base/sys.h"
#include <signal.h>
#include <string.h>
#include <unistd.h>

/* ---- The conversation ------------------------------------------------------------------------ */

bool chat_talk_add(chat_talk *talk, uint32_t role, const char *text, size_t n_bytes,
                   const cli_bytes *reasoning) {
    if (talk->n_messages == talk->capacity) {
        size_t capacity = talk->capacity == 0 ? 16 : 2 * talk->capacity;
        chat_message *grown = dsi_sys_realloc(talk->messages, capacity, sizeof *grown);
        if (grown == NULL) return false;
        talk->messages = grown;
        talk->capacity = capacity;
    }
    chat_message *message = &talk->messages[talk->n_messages];
    memset(message, 0, sizeof *message);
    message->role = role;
    bool good = cli_bytes_add(&message->text, text, n_bytes);
    if (good && reasoning != NULL && reasoning->n_bytes > 0) {
        good = cli_bytes_add(&message->reasoning, reasoning->data, reasoning->n_bytes);
    }
    if (good) {
        talk->n_messages++;
    } else {
        cli_bytes_free(&message->text);
    }
    return good;
}

void chat_talk_cut(chat_talk *talk, size_t n_messages) {
    while (talk->n_messages > n_messages) {
        chat_message *last = &talk->messages[--talk->n_messages];
        cli_bytes_free(&last->text);
        cli_bytes_free(&last->reasoning);
    }
}

void chat_talk_free(chat_talk *talk) {
    chat_talk_cut(talk, 0);
    dsi_sys_free(talk->messages);
    memset(talk, 0, sizeof *talk);
}

chat_message *chat_talk_system(const chat_talk *talk) {
    bool there = talk->n_messages > 0 && talk->messages[0].role == DSI_ROLE_SYSTEM;
    return there ? &talk->messages[0] : NULL;
}

static int no_memory(void) {
    cli_error("%s", dsi_status_text(DSI_E_NOMEM));
    return CLI_ENVIRONMENT;
}

/* ---- A turn ---------------------------------------------------------------------------------- */

int chat_open_session(chat *c) {
    dsi_session_options options;
    dsi_session *session = NULL;
    cli_answer_options(&c->options, &options);
    options.adapter = c->adapter;
    dsi_status status = dsi_session_open(c->engine, &options, &session);
    if (status != DSI_OK) return cli_fail(status, NULL, cli_tr("session", "会话"));
    dsi_session_close(c->session);
    c->session = session;
    return CLI_OK;
}

static int ask(chat *c) {
    size_t n = c->talk.n_messages;
    dsi_message *messages = dsi_sys_calloc(n, sizeof *messages);
    if (messages == NULL) return no_memory();
    for (size_t i = 0; i < n; i++) {
        const chat_message *m = &c->talk.messages[i];
        messages[i] = (dsi_message){sizeof *messages, m->role, m->text.data, m->text.n_bytes};
    }
    int code = cli_ask(&c->answer, c->session, messages, n);
    dsi_sys_free(messages);
    return code;
}

static void count(chat *c) {
    const dsi_generate_result *result = &c->answer.result;
    c->n_turns++;
    c->n_in += result->n_tokens_in;
    c->n_kept += result->n_tokens_kept;
    c->n_out += result->n_tokens_out;
    c->prefill_seconds += result->prefill_seconds;
    c->decode_seconds += result->decode_seconds;
}

static size_t context_used(const chat *c) {
    return dsi_session_n_tokens(c->session) + dsi_session_n_queued(c->session);
}

static void footer(const chat *c) {
    const dsi_generate_result *result = &c->answer.result;
    cli_say(cli_tr("first %.2f s | prompt %s (%s kept) %s tok/s | answer %s tok/s%s | %s/%s tok%s",
                   "首字 %.2f s | 预填 %s（沿用 %s）%s tok/s | 生成 %s tok/s%s | 上下文 %s/%s%s"),
            result->first_token_seconds, cli_count_text(result->n_tokens_in).text,
            cli_count_text(result->n_tokens_kept).text,
            cli_rate_text(cli_prefill_rate(result)).text,
            cli_rate_text(cli_decode_rate(result)).text, cli_draft_text(result).text,
            cli_count_text(context_used(c)).text, cli_count_text(c->context).text,
            c->answer.stopped ? cli_tr(" | stopped", " | 已停止") : "");
}

static void turn_json(const chat *c) {
    cli_json_begin(stdout);
    printf(", \"turn\": %llu", (unsigned long long)c->n_turns);
    cli_answer_json(&c->answer, -1);
    printf(", \"context_tokens\": %zu, \"context_limit\": %u}\n", context_used(c), c->context);
}

/* The context is full: what was answered stays, and the next question will not fit. */
static void full(const chat *c) {
    size_t used = context_used(c);
    if (c->answer.result.finish_reason != DSI_FINISH_LENGTH || used < c->context) return;
    cli_say(cli_tr("the context of %s tokens is full; /clear starts a new conversation, --context "
                   "N (at most %s) gives more room",
                   "上下文 %s 个 token 已满；/clear 开始新对话，--context N（最多 %s）可放更多"),
            cli_count_text(c->context).text, cli_count_text(c->info.max_context).text);
}

int chat_turn(chat *c, const char *text, size_t n_bytes) {
    size_t n_before = c->talk.n_messages;
    int code = cli_check_utf8(cli_tr("message", "消息"), text, n_bytes);
    if (code != CLI_OK) return code;
    if (!chat_talk_add(&c->talk, DSI_ROLE_USER, text, n_bytes, NULL)) return no_memory();
    code = ask(c);
    const cli_answer *answer = &c->answer;
    if (code == CLI_OK && answer->text.n_bytes > 0) {
        if (!chat_talk_add(&c->talk, DSI_ROLE_ASSISTANT, answer->text.data, answer->text.n_bytes,
                           &answer->reasoning)) {
            code = no_memory();
        }
    } else {
        chat_talk_cut(&c->talk, n_before); /* stopped or failed before the answer began */
    }
    if (code != CLI_OK) {
        chat_talk_cut(&c->talk, n_before);
        if (n_before > 0) {
            cli_hint(cli_tr("the conversation is as before your message: %zu messages; /clear "
                            "empties it, /retry asks again",
                            "对话恢复到这条消息之前：%zu 条；/clear 清空对话，/retry 再问一次"),
                     n_before);
        }
        return code;
    }
    count(c);
    if (c->options.json) turn_json(c);
    if (c->terminal) footer(c);
    full(c);
    return CLI_OK;
}

/* ---- The loop -------------------------------------------------------------------------------- */

static void greet(const chat *c) {
    if (!c->terminal) return;
    cli_say(cli_tr("%s, context %s tokens", "%s，上下文 %s 个 token"),
            cli_show(c->options.model).text, cli_count_text(c->context).text);
    cli_say("%s", cli_tr("/help lists the commands; Ctrl-C stops an answer, Ctrl-D leaves.",
                         "/help 列出命令；Ctrl-C 停止回答，Ctrl-D 退出。"));
}

/* Blank lines ask nothing. */
static bool is_blank(const cli_bytes *text) {
    for (size_t i = 0; i < text->n_bytes; i++) {
        if (strchr(" \t\r\n", text->data[i]) == NULL || text->data[i] == 0) return false;
    }
    return true;
}

static int one_line(chat *c, uint32_t found, const cli_bytes *text) {
    if (found == CHAT_COMMAND) return chat_command(c, text);
    if (is_blank(text)) return CLI_OK;
    c->retry.n_bytes = 0;
    if (!cli_bytes_add(&c->retry, text->data, text->n_bytes)) return no_memory();
    return chat_turn(c, text->data, text->n_bytes);
}

static int loop(chat *c) {
    cli_bytes text = {0};
    int code = CLI_OK;
    greet(c);
    while (!c->leave && !cli_wants_to_leave() && !cli_stdout_broken()) {
        uint32_t found = chat_read(c, &text, &code);
        if (found == CHAT_TEXT || found == CHAT_COMMAND) code = one_line(c, found, &text);
        fflush(stdout);
        if (code != CLI_OK && c->code == CLI_OK) c->code = code;
        if (code != CLI_OK) cli_json_report(code);
        cli_json_forget_error();
        if (found == CHAT_END) break;
    }
    if (c->terminal && !c->leave) fputc('\n', stderr);
    cli_bytes_free(&text);
    /* A person has seen every message; a script sees the exit code. */
    return c->terminal ? CLI_OK : c->code;
}

static int open_all(chat *c) {
    dsi_engine_options engine_options;
    int code = cli_open_model(&c->options, &c->model, &c->info);
    if (code == CLI_OK) code = cli_need_template(&c->options, c->model, &c->info);
    if (code != CLI_OK) return code;
    cli_engine_options(&c->options, &c->info, 0, &engine_options);
    c->context = engine_options.max_context;
    code = cli_open_engine(c->model, &engine_options, &c->engine);
    if (code == CLI_OK) code = cli_open_adapter(&c->options, c->engine, &c->adapter);
    if (code == CLI_OK) code = chat_open_session(c);
    return code;
}

static int start(chat *c) {
    const char *system = c->options.system;
    int code = cli_need_model(&c->options);
    if (code == CLI_OK && system != NULL) {
        code = cli_check_utf8(cli_tr("system message", "系统消息"), system, strlen(system));
    }
    if (code == CLI_OK && system != NULL &&
        !chat_talk_add(&c->talk, DSI_ROLE_SYSTEM, system, strlen(system), NULL)) {
        code = no_memory();
    }
    return code == CLI_OK ? open_all(c) : code;
}

int cli_chat(const cli_options *options) {
    chat c;
    memset(&c, 0, sizeof c);
    c.options = *options;
    c.terminal = isatty(STDIN_FILENO) == 1;
    int code = start(&c);
    if (code == CLI_OK) {
        c.answer.options = &c.options;
        c.answer.model = c.model;
        cli_catch_interrupt(CLI_SECOND_IS_COUNTED);
        chat_terminal_start(c.terminal);
        code = loop(&c);
        chat_terminal_end();
    }
    dsi_session_close(c.session);
    dsi_adapter_close(c.adapter);
    dsi_engine_close(c.engine);
    dsi_model_close(c.model);
    chat_talk_free(&c.talk);
    chat_edit_forget();
    cli_bytes_free(&c.stops);
    cli_bytes_free(&c.retry);
    cli_answer_free(&c.answer);
    if (cli_wants_to_leave() && !c.terminal) { /* a script that is interrupted must stop too */
        fflush(stdout);
        signal(SIGINT, SIG_DFL);
        raise(SIGINT);
    }
    return code;
}
