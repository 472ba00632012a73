/* quantize_text.c: the tokens of a text on which a model is run: parts of a plain text, or the
 * records of a file of JSON lines. */
#include "quantize.h"

#include "../../lib/base/json.h"
#include "../../lib/base/sys.h"
#include <stdlib.h>
#include <string.h>

enum { MAX_BYTES = 64 << 20, MAX_NODES = 256 };

typedef struct reader {
    const dsi_model *model;
    const char *path, *option;
    size_t max_part, room;
    quantize_text *text;
    uint32_t line;
} reader;

static int bad_line(const reader *r, const char *why) {
    cli_error(cli_tr("%s: line %u of %s: %s", "%s：第 %u 行（%s）：%s"), r->option, r->line,
              cli_show(r->path).text, why);
    return CLI_BAD_FILE;
}

/* Where the next tokens go, and how many may. */
static int32_t *place(const reader *r, size_t *room) {
    *room = r->room - r->text->n_tokens;
    return r->text->tokens + r->text->n_tokens;
}

/* n tokens behind those that there are, in parts that a session holds; the rest of a record that is
 * longer is left out. */
static void add_part(reader *r, size_t n, bool cut) {
    quantize_text *t = r->text;
    for (size_t begin = 0; begin < n && t->n_parts < t->max_parts; begin += r->max_part) {
        size_t part = n - begin < r->max_part ? n - begin : r->max_part;
        if (part < 2) break;
        t->n_tokens += part;
        t->ends[t->n_parts++] = t->n_tokens;
        if (cut) break;
    }
}

static int add_plain(reader *r, const char *text, uint64_t n_bytes, bool cut) {
    size_t room, n = 0;
    int32_t *to = place(r, &room);
    dsi_status status = dsi_tokenize(r->model, text, n_bytes, 0, to, room, &n);
    if (status != DSI_OK && status != DSI_E_BUFFER) return cli_fail(status, NULL, r->option);
    if (status == DSI_OK) add_part(r, n, cut);
    return CLI_OK;
}

/* A question in the model's own template, and its answer. */
static int add_dialogue(reader *r, const char *user, const char *answer) {
    size_t room, n = 0, m = 0;
    int32_t *to = place(r, &room);
    dsi_message message = {sizeof message, DSI_ROLE_USER, user, strlen(user)};
    dsi_status status = dsi_chat_tokens(r->model, &message, 1, DSI_THINK_AUTO, to, room, &n);
    if (status == DSI_OK)
        status = dsi_tokenize(r->model, answer, strlen(answer), 0, to + n, room - n, &m);
    if (status != DSI_OK && status != DSI_E_BUFFER) return cli_fail(status, NULL, r->option);
    if (status == DSI_OK) add_part(r, n + m, true);
    return CLI_OK;
}

static int add_record(reader *r, const char *line, uint64_t n_bytes) {
    dsi_json json = {0};
    dsi_error error = {0};
    if (dsi_json_parse(line, n_bytes, MAX_NODES, &json, &error) != DSI_OK)
        return bad_line(r, error.text);
    uint64_t n_text = 0;
    char *text = dsi_json_string(&json, dsi_json_get(&json, 0, "text"), &n_text);
    char *user = dsi_json_string(&json, dsi_json_get(&json, 0, "user"), NULL);
    char *answer = dsi_json_string(&json, dsi_json_get(&json, 0, "answer"), NULL);
    int code = CLI_OK;
    if (text)
        code = add_plain(r, text, n_text, true);
    else if (user && answer)
        code = add_dialogue(r, user, answer);
    else
        code = bad_line(r, cli_tr("no \"text\", and no \"user\" with \"answer\"",
                                  "没有 \"text\"，也没有 \"user\" 与 \"answer\""));
    dsi_sys_free(text);
    dsi_sys_free(user);
    dsi_sys_free(answer);
    dsi_json_free(&json);
    return code;
}

static int add_lines(reader *r, const char *text, uint64_t n_bytes) {
    int code = CLI_OK;
    for (uint64_t at = 0;
         at < n_bytes && code == CLI_OK && r->text->n_parts < r->text->max_parts;) {
        const char *end = memchr(text + at, '\n', n_bytes - at);
        uint64_t n = end ? (uint64_t)(end - text) - at : n_bytes - at;
        r->line++;
        if (n > 0) code = add_record(r, text + at, n);
        if (r->text->n_tokens >= r->text->max_tokens) break;
        at += n + 1;
    }
    return code;
}

/* The last parts go where there are more tokens than were asked for. */
static void cut_to(quantize_text *t) {
    if (t->n_tokens <= t->max_tokens) return;
    t->n_tokens = t->max_tokens;
    while (t->n_parts > 1 && t->ends[t->n_parts - 2] + 2 > t->n_tokens) t->n_parts--;
    if (t->ends[t->n_parts - 1] < t->n_tokens) t->n_tokens = t->ends[t->n_parts - 1];
    t->ends[t->n_parts - 1] = t->n_tokens;
}

int quantize_text_read(const dsi_model *model, const char *path, const char *option,
                       size_t max_part, quantize_text *text) {
    char *bytes = NULL;
    uint64_t n_bytes = 0;
    dsi_error error = {0};
    size_t n_path = strlen(path);
    dsi_status status = dsi_sys_read_file(path, MAX_BYTES, &bytes, &n_bytes, &error);
    if (status != DSI_OK) {
        cli_error("%s: %s", option, error.text);
        return cli_status_exit(status);
    }
    bool lines = n_path > 6 && strcmp(path + n_path - 6, ".jsonl") == 0;
    reader r = {.model = model,
                .path = path,
                .option = option,
                .max_part = max_part,
                .room = lines ? text->max_tokens + (1 << 16) : (size_t)n_bytes + 1,
                .text = text};
    text->max_parts = text->max_tokens / 2 + 1;
    text->tokens = dsi_sys_calloc(r.room, sizeof *text->tokens);
    text->ends = dsi_sys_calloc(text->max_parts, sizeof *text->ends);
    int code = text->tokens && text->ends ? CLI_OK : CLI_ENVIRONMENT;
    if (code != CLI_OK)
        cli_error("%s", dsi_status_text(DSI_E_NOMEM));
    else
        code = lines ? add_lines(&r, bytes, n_bytes) : add_plain(&r, bytes, n_bytes, false);
    dsi_sys_free(bytes);
    if (code != CLI_OK) return code;
    cut_to(text);
    if (text->n_tokens >= 2) return CLI_OK;
    cli_error(cli_tr("%s: %s has fewer than two tokens", "%s：%s 不足两个 token"), option,
              cli_show(path).text);
    return CLI_BAD_FILE;
}

int quantize_text_sum(const char *path, uint64_t *sum) {
    char *bytes = NULL;
    uint64_t n_bytes = 0;
    dsi_error error = {0};
    dsi_status status = dsi_sys_read_file(path, MAX_BYTES, &bytes, &n_bytes, &error);
    if (status != DSI_OK) {
        cli_error("--calibrate: %s", error.text);
        return cli_status_exit(status);
    }
    *sum = 1;
    for (uint64_t i = 0; i < n_bytes; i++) *sum = dsi_mix64(*sum ^ (uint8_t)bytes[i]);
    dsi_sys_free(bytes);
    return CLI_OK;
}

void quantize_text_free(quantize_text *text) {
    dsi_sys_free(text->tokens);
    dsi_sys_free(text->ends);
    *text = (quantize_text){0};
}

static int run_part(const quantize_text *text, uint32_t part, dsi_engine *engine,
                    const quantize_run *run, size_t begin) {
    dsi_session *sessions[1] = {NULL};
    dsi_session_options options;
    dsi_session_options_init(&options);
    options.all_logits = run->all_logits;
    dsi_status status = dsi_session_open(engine, &options, &sessions[0]);
    if (status != DSI_OK) return cli_fail(status, NULL, cli_tr("session", "会话"));
    size_t n = text->ends[part] - begin;
    status = dsi_session_append(sessions[0], text->tokens + begin, n);
    int code = status == DSI_OK ? CLI_OK : cli_fail(status, sessions[0], "tokens");
    for (size_t done = 0; code == CLI_OK && done < n;) {
        size_t n_rows = 0;
        if (run->before) run->before(run->user, begin + done);
        status = dsi_engine_step(engine, sessions, 1, &n_rows);
        if (status != DSI_OK) code = cli_fail(status, engine, cli_tr("step", "计算"));
        done = dsi_session_n_tokens(sessions[0]);
        if (code == CLI_OK && run->after) code = run->after(run->user, sessions[0], begin);
        cli_progress(NULL, DSI_STAGE_PREFILL, begin + done, text->n_tokens);
    }
    dsi_session_close(sessions[0]);
    return code;
}

int quantize_text_run(const quantize_text *text, dsi_engine *engine, const quantize_run *run) {
    int code = CLI_OK;
    for (uint32_t part = 0; part < text->n_parts && code == CLI_OK; part++)
        code = run_part(text, part, engine, run, part ? text->ends[part - 1] : 0);
    return code;
}
