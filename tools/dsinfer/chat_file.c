/* chat_file.c: a conversation as a JSON file. What is read comes from outside: all of it is checked
 * before anything of the running conversation changes. */
#include "../../lib/base/json.h"
#include "../../lib/base/sys.h"
#include "chat.h"
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#define KIND "dsinfer-conversation"
#define START "{\"schema\": 1, \"kind\": \"" KIND "\""
enum { MAX_FILE_BYTES = 1 << 26, MAX_NODES = 1 << 20, MAX_MESSAGES = 100000, PATH_BYTES = 4096 };

static const char *const role_names[] = {"system", "user", "assistant"}; /* DSI_ROLE_* */
static const char *const think_names[] = {"auto", "on", "off"};          /* DSI_THINK_* */

/* Settings that are saved and loaded, under the names of their options. */
static const struct {
    const char *key, *option;
} settings[] = {{"temperature", "temperature"},
                {"top_p", "top-p"},
                {"min_p", "min-p"},
                {"top_k", "top-k"},
                {"max_tokens", "max-tokens"},
                {"seed", "seed"},
                {"repetition_penalty", "repetition-penalty"},
                {"presence_penalty", "presence-penalty"},
                {"frequency_penalty", "frequency-penalty"}};
enum { N_SETTINGS = sizeof settings / sizeof settings[0] };

static int no_memory(void) {
    cli_error("%s", dsi_status_text(DSI_E_NOMEM));
    return CLI_ENVIRONMENT;
}

/* "~/x" is the shell's way to write a path; here is no shell. */
static bool expand(const char *path, char out[PATH_BYTES]) {
    const char *home = path[0] == '~' && path[1] == '/' ? getenv("HOME") : NULL;
    int n =
        snprintf(out, PATH_BYTES, "%s%s", home == NULL ? "" : home, home == NULL ? path : path + 1);
    if (n >= 0 && n < PATH_BYTES) return true;
    cli_error(cli_tr("a path of %zu bytes; the limit is %d", "路径有 %zu 字节；上限为 %d"),
              strlen(path), PATH_BYTES - 1);
    cli_hint(cli_tr("use a shorter one", "请用较短的路径"));
    return false;
}

/* ---- Saving ---------------------------------------------------------------------------------- */

static void put_text(FILE *file, const char *before, const char *text, size_t n_bytes) {
    fputs(before, file);
    cli_json_text(file, text, n_bytes);
}

static void put_settings(FILE *file, const cli_options *options) {
    fprintf(file, ",\n \"settings\": {\"think\": \"%s\"", think_names[options->think]);
    for (size_t i = 0; i < N_SETTINGS; i++) {
        const cli_option *option = cli_find_option(settings[i].option);
        const char *field = (const char *)options + option->offset;
        fprintf(file, ", \"%s\": ", settings[i].key);
        if (option->kind == CLI_F64) cli_json_number(file, *(const double *)(const void *)field);
        if (option->kind == CLI_U32) fprintf(file, "%u", *(const uint32_t *)(const void *)field);
        if (option->kind == CLI_U64) {
            fprintf(file, "%llu", (unsigned long long)*(const uint64_t *)(const void *)field);
        }
    }
    fputs(", \"stop\": [", file);
    for (uint32_t i = 0; i < options->n_stop; i++) {
        put_text(file, i == 0 ? "" : ", ", options->stop[i], strlen(options->stop[i]));
    }
    fputs("]}", file);
}

static void put_talk(FILE *file, const chat *c) {
    fputs(START, file);
    put_text(file, ",\n \"version\": ", dsi_version(), strlen(dsi_version()));
    put_text(file, ", \"model\": ", c->options.model, strlen(c->options.model));
    put_text(file, ", \"architecture\": ", c->info.architecture, strlen(c->info.architecture));
    put_text(file, ", \"chat_template\": ", c->info.chat_template, strlen(c->info.chat_template));
    put_settings(file, &c->options);
    fputs(",\n \"messages\": [", file);
    for (size_t i = 0; i < c->talk.n_messages; i++) {
        const chat_message *m = &c->talk.messages[i];
        fprintf(file, "%s\n  {\"role\": \"%s\"", i == 0 ? "" : ",", role_names[m->role]);
        put_text(file, ", \"text\": ", m->text.data, m->text.n_bytes);
        if (m->reasoning.n_bytes > 0) {
            put_text(file, ", \"reasoning\": ", m->reasoning.data, m->reasoning.n_bytes);
        }
        fputc('}', file);
    }
    fputs("\n ]}\n", file);
}

/* A slip of the finger must not replace a model, or a letter: only a saved conversation. */
static bool may_replace(const char *path) {
    char start[sizeof START] = "";
    if (!dsi_sys_is_file(path)) return true; /* not there, or refused by the writer */
    FILE *file = fopen(path, "r");
    size_t n = file == NULL ? 0 : fread(start, 1, sizeof START - 1, file);
    if (file != NULL) fclose(file);
    if (n == 0 || strcmp(start, START) == 0) return file != NULL;
    return false;
}

static int save_failed(const char *path, dsi_status status, const char *text) {
    cli_json_note_name(dsi_status_name(status));
    cli_error(cli_tr("/save: %s", "/save：%s"), text);
    cli_hint(cli_tr("nothing was written to %s; name another place, or free some",
                    "%s 未被改动；请换一个位置，或清理空间"),
             cli_show(path).text);
    return cli_status_exit(status);
}

static int write_file(const char *path, const char *text, size_t n_bytes) {
    dsi_error error = {0};
    dsi_sys_writer writer = {.fd = -1};
    dsi_status status = dsi_sys_writer_open(path, &writer, &error);
    if (status != DSI_OK) return save_failed(path, status, error.text);
    status = dsi_sys_writer_add(&writer, text, n_bytes, &error);
    if (status == DSI_OK) status = dsi_sys_writer_commit(&writer, &error);
    if (status != DSI_OK) {
        dsi_sys_writer_abort(&writer);
        return save_failed(path, status, error.text);
    }
    return CLI_OK;
}

int chat_save(const chat *c, const char *path) {
    char place[PATH_BYTES];
    if (!expand(path, place)) return CLI_USAGE;
    if (!may_replace(place)) {
        cli_error(cli_tr("/save: %s is there and is no saved conversation",
                         "/save：%s 已存在，且不是保存的对话"),
                  cli_show(place).text);
        cli_hint(cli_tr("name another file, or remove that one first",
                        "请换一个文件名，或先删除该文件"));
        return CLI_USAGE;
    }
    char *text = NULL;
    size_t n_bytes = 0;
    FILE *memory = open_memstream(&text, &n_bytes);
    if (memory != NULL) put_talk(memory, c);
    bool good = memory != NULL && fclose(memory) == 0;
    int code = !good ? no_memory() : CLI_OK;
    if (code == CLI_OK && n_bytes > MAX_FILE_BYTES) { /* it could not be loaded again */
        cli_error(cli_tr("/save: the conversation is %s, the limit of a file is %s",
                         "/save：对话有 %s，文件上限为 %s"),
                  cli_bytes_text(n_bytes).text, cli_bytes_text(MAX_FILE_BYTES).text);
        cli_hint(cli_tr("/clear starts a shorter one", "可用 /clear 开始较短的对话"));
        code = CLI_USAGE;
    }
    if (code == CLI_OK) code = write_file(place, text, n_bytes);
    if (code == CLI_OK) {
        cli_say(cli_tr("%zu messages, %s, written to %s", "%zu 条消息，%s，已写入 %s"),
                c->talk.n_messages, cli_bytes_text(n_bytes).text, cli_show(place).text);
    }
    free(text);
    return code;
}

/* ---- Loading --------------------------------------------------------------------------------- */

typedef struct loaded {
    const char *path;
    dsi_json json;
    cli_options options;
    chat_talk talk;
    cli_bytes stops; /* zero-terminated texts, one behind the other */
} loaded;

static int bad(const loaded *l, const char *format, ...) __attribute__((format(printf, 2, 3)));
static int bad(const loaded *l, const char *format, ...) {
    char why[512];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(why, sizeof why, format, arguments);
    va_end(arguments);
    cli_error(cli_tr("/load: %s: %s", "/load：%s：%s"), cli_show(l->path).text, why);
    cli_hint(cli_tr("/load reads what /save wrote; the conversation stays as it is",
                    "/load 读取 /save 写出的文件；当前对话保持不变"));
    return CLI_BAD_FILE;
}

/* One number within the limits of its option. */
static int load_number(loaded *l, size_t i, uint32_t node) {
    const cli_option *option = cli_find_option(settings[i].option);
    char *field = (char *)&l->options + option->offset;
    double number = 0;
    uint64_t whole = 0;
    bool good;
    if (option->kind == CLI_F64) {
        good = dsi_json_f64(&l->json, node, &number) && number >= option->low &&
               number <= option->high;
        if (good) *(double *)(void *)field = number;
    } else if (option->kind == CLI_U64) {
        good = dsi_json_u64(&l->json, node, (uint64_t *)(void *)field);
    } else { /* 0: as if the option was not given */
        good = dsi_json_u64(&l->json, node, &whole) && (double)whole <= option->high;
        if (good) *(uint32_t *)(void *)field = (uint32_t)whole;
    }
    if (good) return CLI_OK;
    if (option->kind == CLI_U64) {
        return bad(
            l, cli_tr("settings: %s is no whole number of 64 bits", "settings：%s 不是 64 位整数"),
            settings[i].key);
    }
    return bad(l,
               cli_tr("settings: %s is no number from %g to %g", "settings：%s 不是 %g 到 %g 的数"),
               settings[i].key, option->kind == CLI_F64 ? option->low : 0, option->high);
}

static int load_stops(loaded *l, uint32_t node) {
    size_t places[CLI_MAX_STOPS];
    if (l->json.nodes[node].kind != DSI_JSON_ARRAY || l->json.nodes[node].n_items > CLI_MAX_STOPS) {
        return bad(l,
                   cli_tr("settings: stop is no list of at most %d texts",
                          "settings：stop 不是最多 %d 段文本的列表"),
                   CLI_MAX_STOPS);
    }
    l->options.n_stop = 0;
    for (uint32_t i = node + 1; i < l->json.nodes[node].end; i = l->json.nodes[i].end) {
        uint64_t n = 0;
        char *text = dsi_json_string(&l->json, i, &n);
        bool good = text != NULL && n >= 1 && n <= CLI_MAX_STOP_BYTES && strlen(text) == n;
        places[l->options.n_stop] = l->stops.n_bytes;
        bool kept = good && cli_bytes_add(&l->stops, text, n + 1);
        dsi_sys_free(text);
        if (!good) {
            return bad(l,
                       cli_tr("settings: stop %u is no text of 1 to %d bytes",
                              "settings：第 %u 个 stop 不是 1 到 %d 字节的文本"),
                       l->options.n_stop + 1, CLI_MAX_STOP_BYTES);
        }
        if (!kept) return no_memory();
        l->options.n_stop++;
    }
    for (uint32_t i = 0; i < l->options.n_stop; i++) {
        l->options.stop[i] = l->stops.data + places[i];
    }
    return CLI_OK;
}

static int load_settings(loaded *l) {
    uint32_t node = dsi_json_get(&l->json, 0, "settings");
    cli_default_sampling(&l->options);
    if (node == DSI_JSON_NONE) return CLI_OK;
    if (l->json.nodes[node].kind != DSI_JSON_OBJECT) {
        return bad(l, "%s", cli_tr("settings is no object", "settings 不是对象"));
    }
    int code = CLI_OK;
    for (size_t i = 0; i < N_SETTINGS && code == CLI_OK; i++) {
        uint32_t value = dsi_json_get(&l->json, node, settings[i].key);
        if (value != DSI_JSON_NONE) code = load_number(l, i, value);
    }
    uint32_t stop = dsi_json_get(&l->json, node, "stop");
    if (code == CLI_OK && stop != DSI_JSON_NONE) code = load_stops(l, stop);
    uint32_t think = dsi_json_get(&l->json, node, "think");
    if (code != CLI_OK || think == DSI_JSON_NONE) return code;
    for (uint32_t i = 0; i < 3; i++) {
        if (!dsi_json_string_is(&l->json, think, think_names[i])) continue;
        l->options.think = i;
        return CLI_OK;
    }
    return bad(l, "%s",
               cli_tr("settings: think is none of auto, on, off",
                      "settings：think 不是 auto、on、off 之一"));
}

/* Message i: its role fits the place, its text is a text. */
static int load_message(loaded *l, size_t i, uint32_t node) {
    uint32_t role = 0, role_node = dsi_json_get(&l->json, node, "role");
    while (role < 3 && !dsi_json_string_is(&l->json, role_node, role_names[role])) role++;
    if (role == 3) {
        return bad(l,
                   cli_tr("message %zu: the role is none of system, user, assistant",
                          "第 %zu 条消息：角色不是 system、user、assistant 之一"),
                   i + 1);
    }
    bool system = chat_talk_system(&l->talk) != NULL;
    uint32_t wanted = (i - system) % 2 == 0 ? DSI_ROLE_USER : DSI_ROLE_ASSISTANT;
    if (role != wanted && !(i == 0 && role == DSI_ROLE_SYSTEM)) {
        return bad(l,
                   cli_tr("message %zu is of the %s, and the %s is due",
                          "第 %zu 条消息的角色是 %s，此处应为 %s"),
                   i + 1, role_names[role], role_names[wanted]);
    }
    uint32_t text_node = dsi_json_get(&l->json, node, "text");
    uint32_t reasoning_node = dsi_json_get(&l->json, node, "reasoning");
    bool is_text = text_node != DSI_JSON_NONE && l->json.nodes[text_node].kind == DSI_JSON_STRING;
    if (!is_text) {
        return bad(l,
                   cli_tr("message %zu: no string \"text\"", "第 %zu 条消息：缺少字符串 \"text\""),
                   i + 1);
    }
    uint64_t n = 0, n_reasoning = 0;
    char *text = dsi_json_string(&l->json, text_node, &n);
    char *reasoning = dsi_json_string(&l->json, reasoning_node, &n_reasoning);
    cli_bytes thought = {.data = reasoning, .n_bytes = reasoning == NULL ? 0 : n_reasoning};
    bool good = text != NULL && chat_talk_add(&l->talk, role, text, n, &thought);
    dsi_sys_free(text);
    dsi_sys_free(reasoning);
    return good ? CLI_OK : no_memory();
}

static int load_messages(loaded *l) {
    uint32_t node = dsi_json_get(&l->json, 0, "messages");
    if (node == DSI_JSON_NONE || l->json.nodes[node].kind != DSI_JSON_ARRAY) {
        return bad(l, "%s", cli_tr("no list \"messages\"", "缺少列表 \"messages\""));
    }
    if (l->json.nodes[node].n_items > MAX_MESSAGES) {
        return bad(l, cli_tr("%u messages; the limit is %d", "有 %u 条消息；上限为 %d"),
                   l->json.nodes[node].n_items, MAX_MESSAGES);
    }
    size_t n = 0;
    for (uint32_t i = node + 1; i < l->json.nodes[node].end; i = l->json.nodes[i].end) {
        int code = load_message(l, n++, i);
        if (code != CLI_OK) return code;
    }
    if (n > 0 && l->talk.messages[n - 1].role == DSI_ROLE_USER) {
        return bad(l,
                   cli_tr("the last of %zu messages is the user's, without an answer",
                          "%zu 条消息的最后一条是用户的，没有回答"),
                   n);
    }
    return CLI_OK;
}

/* Tokens of the conversation and a short question behind it. */
static int check_room(const loaded *l, const chat *c, size_t *n_tokens) {
    size_t n = l->talk.n_messages;
    dsi_message *messages = dsi_sys_calloc(n + 1, sizeof *messages);
    if (messages == NULL) return no_memory();
    for (size_t i = 0; i < n; i++) {
        const chat_message *m = &l->talk.messages[i];
        messages[i] = (dsi_message){sizeof *messages, m->role, m->text.data, m->text.n_bytes};
    }
    messages[n] = (dsi_message){sizeof *messages, DSI_ROLE_USER, "?", 1};
    dsi_status status =
        dsi_chat_tokens(c->model, messages, n + 1, l->options.think, NULL, 0, n_tokens);
    dsi_sys_free(messages);
    if (status != DSI_OK) return cli_fail(status, NULL, "/load");
    if (*n_tokens < c->context) return CLI_OK;
    cli_error(cli_tr("/load: %s has %zu tokens, the context is %u",
                     "/load：%s 有 %zu 个 token，上下文为 %u"),
              cli_show(l->path).text, *n_tokens, c->context);
    cli_hint(cli_tr("start dsinfer chat with a larger --context (the model allows %u)",
                    "请用更大的 --context 启动 dsinfer chat（模型最多 %u）"),
             c->info.max_context);
    return CLI_USAGE;
}

static int read_and_check(loaded *l, char **text) {
    dsi_error error = {0};
    uint64_t n_bytes = 0, schema = 0;
    dsi_status status = dsi_sys_read_file(l->path, MAX_FILE_BYTES, text, &n_bytes, &error);
    if (status == DSI_OK) {
        status = dsi_json_parse(*text, n_bytes, MAX_NODES, &l->json, &error);
        if (status != DSI_OK && status != DSI_E_NOMEM) return bad(l, "%s", error.text);
    }
    if (status != DSI_OK) {
        cli_json_note_name(dsi_status_name(status));
        cli_error(cli_tr("/load: %s", "/load：文件无法读取：%s"), error.text);
        cli_hint(cli_tr("check path and permissions; files of /save are at most %s",
                        "请检查路径与权限；/save 的文件不超过 %s"),
                 cli_bytes_text(MAX_FILE_BYTES).text);
        return cli_status_exit(status);
    }
    if (!dsi_json_string_is(&l->json, dsi_json_get(&l->json, 0, "kind"), KIND)) {
        return bad(l, "%s",
                   cli_tr("no saved conversation: \"kind\" is not \"" KIND "\"",
                          "不是保存的对话：\"kind\" 不是 \"" KIND "\""));
    }
    if (!dsi_json_u64(&l->json, dsi_json_get(&l->json, 0, "schema"), &schema) || schema != 1) {
        return bad(l,
                   cli_tr("schema is %llu, this program knows 1", "schema 为 %llu，本程序只认识 1"),
                   (unsigned long long)schema);
    }
    int code = load_settings(l);
    return code == CLI_OK ? load_messages(l) : code;
}

/* All is well: the session with its new settings first, as only that can fail. */
static int commit(loaded *l, chat *c) {
    cli_options before = c->options;
    c->options = l->options;
    int code = chat_open_session(c);
    if (code != CLI_OK) {
        c->options = before;
        return code;
    }
    chat_talk talk = c->talk;
    c->talk = l->talk;
    l->talk = talk;
    cli_bytes stops = c->stops;
    c->stops = l->stops;
    l->stops = stops;
    c->retry.n_bytes = 0;
    return CLI_OK;
}

int chat_load(chat *c, const char *path) {
    char place[PATH_BYTES];
    if (!expand(path, place)) return CLI_USAGE;
    loaded l = {.path = place, .options = c->options};
    char *text = NULL;
    size_t n_tokens = 0;
    int code = read_and_check(&l, &text);
    if (code == CLI_OK) code = check_room(&l, c, &n_tokens);
    bool same =
        dsi_json_string_is(&l.json, dsi_json_get(&l.json, 0, "architecture"), c->info.architecture);
    if (code == CLI_OK) code = commit(&l, c);
    if (code == CLI_OK) {
        cli_say(cli_tr("%zu messages, %zu of %u tokens%s", "%zu 条消息，%zu / %u 个 token%s"),
                c->talk.n_messages, n_tokens, c->context,
                same ? "" : cli_tr("; they were written with another model", "；由另一个模型写成"));
    }
    dsi_json_free(&l.json);
    dsi_sys_free(text);
    chat_talk_free(&l.talk);
    cli_bytes_free(&l.stops);
    return code;
}
