/* tokenize.c: dsinfer tokenize: texts to token ids and back, one text or a line of JSON at a time.
 */
#include "../../lib/base/json.h"
#include "../../lib/base/sys.h"
#include "../../lib/model/model.h"
#include "../../lib/text/text.h"
#include "cli.h"
#include <string.h>

typedef struct tokens_state {
    const cli_options *options;
    dsi_tokenizer *tokenizer;
    cli_bytes ids; /* int32_t each */
    cli_bytes decoded;
    bool no_memory;
} tokens_state;

static bool on_tokens(void *user, const int32_t *tokens, size_t n_tokens) {
    tokens_state *state = user;
    if (!cli_bytes_add(&state->ids, tokens, n_tokens * sizeof *tokens)) state->no_memory = true;
    return !state->no_memory;
}

static void on_decoded(void *user, const char *text, size_t n_bytes) {
    tokens_state *state = user;
    if (!cli_bytes_add(&state->decoded, text, n_bytes)) state->no_memory = true;
}

static size_t n_ids(const tokens_state *state) { return state->ids.n_bytes / sizeof(int32_t); }

static int32_t id_at(const tokens_state *state, size_t i) {
    int32_t id;
    memcpy(&id, state->ids.data + i * sizeof id, sizeof id);
    return id;
}

/* ids and decoded of one text. */
static int encode(tokens_state *state, const char *text, size_t n_bytes) {
    dsi_error error = {0};
    state->ids.n_bytes = state->decoded.n_bytes = 0;
    state->no_memory = false;
    dsi_status status = dsi_tokenizer_encode(state->tokenizer, text, n_bytes,
                                             state->options->special, on_tokens, state, &error);
    if (status == DSI_OK) {
        dsi_detokenizer detokenizer = {0};
        for (size_t i = 0; i < n_ids(state); i++) {
            size_t n_piece;
            const char *piece = dsi_tokenizer_bytes(state->tokenizer, id_at(state, i), &n_piece);
            dsi_detokenizer_push(&detokenizer, piece, n_piece, on_decoded, state);
        }
        dsi_detokenizer_finish(&detokenizer, on_decoded, state);
    }
    if (status == DSI_OK && !state->no_memory) return CLI_OK;
    cli_error(cli_tr("text of %zu bytes: %s", "%zu 字节的文本：%s"), n_bytes,
              status != DSI_OK && !state->no_memory ? error.text : dsi_status_text(DSI_E_NOMEM));
    return cli_status_exit(state->no_memory ? DSI_E_NOMEM : status);
}

static void print_ids(const tokens_state *state) {
    fputs("\"ids\": [", stdout);
    for (size_t i = 0; i < n_ids(state); i++) printf("%s%d", i == 0 ? "" : ", ", id_at(state, i));
    fputs("], \"decoded\": ", stdout);
    cli_json_text(stdout, state->decoded.data, state->decoded.n_bytes);
    fputs("}\n", stdout);
}

/* A piece as people can read it: what does not print is written as bytes. */
static void print_piece(const char *piece, size_t n_bytes) {
    uint32_t c = 0;
    for (size_t at = 0; at < n_bytes;) {
        size_t n = cli_utf8_next(piece + at, n_bytes - at, &c);
        if (n == 0 || cli_utf8_control(c)) {
            printf("\\x%02x", (uint8_t)piece[at]);
            at++;
        } else {
            fwrite(piece + at, 1, n, stdout);
            at += n;
        }
    }
}

static void print_table(const tokens_state *state) {
    printf("%8s %6s  %s\n", "id", cli_tr("bytes", "  字节"), cli_tr("piece", "内容"));
    for (size_t i = 0; i < n_ids(state); i++) {
        size_t n_piece;
        const char *piece = dsi_tokenizer_bytes(state->tokenizer, id_at(state, i), &n_piece);
        printf("%8d %6zu  ", id_at(state, i), n_piece);
        print_piece(piece, n_piece);
        fputc('\n', stdout);
    }
}

static int one_text(tokens_state *state) {
    const char *argument = state->options->argument;
    if (argument == NULL) {
        cli_error(cli_tr("no text was given", "没有文本"));
        cli_hint(cli_tr("put it in quotes at the end, - to read stdin, or --jsonl",
                        "请在末尾用引号给出，或用 - 从标准输入读取，或用 --jsonl"));
        return CLI_USAGE;
    }
    cli_bytes text = {0};
    int code = CLI_OK;
    if (strcmp(argument, "-") == 0) {
        code = cli_read_stdin(&text);
    } else if (!cli_bytes_add(&text, argument, strlen(argument))) {
        cli_error("%s", dsi_status_text(DSI_E_NOMEM));
        code = CLI_ENVIRONMENT;
    }
    if (code == CLI_OK) code = cli_check_utf8(cli_tr("text", "文本"), text.data, text.n_bytes);
    if (code == CLI_OK) code = encode(state, text.data, text.n_bytes);
    if (code == CLI_OK && state->options->json) {
        cli_json_begin(stdout);
        fputs(", ", stdout);
        print_ids(state);
    } else if (code == CLI_OK) {
        print_table(state);
        cli_say(cli_tr("%s tokens, %zu bytes", "%s 个 token，%zu 字节"),
                cli_count_text(n_ids(state)).text, text.n_bytes);
    }
    cli_bytes_free(&text);
    return code;
}

static int bad_line(uint64_t number, const char *why) {
    cli_error(cli_tr("stdin line %llu: %s", "标准输入第 %llu 行：%s"), (unsigned long long)number,
              why);
    cli_hint(cli_tr("each line is an object such as {\"text\": \"...\"}",
                    "每行应为一个对象，例如 {\"text\": \"...\"}"));
    return CLI_USAGE;
}

static int one_line(tokens_state *state, const cli_bytes *line, uint64_t number) {
    enum { MAX_NODES = 1 << 22 };
    dsi_json json = {0};
    dsi_error error = {0};
    dsi_status status = dsi_json_parse(line->data, line->n_bytes, MAX_NODES, &json, &error);
    if (status == DSI_E_NOMEM) {
        cli_error("%s", error.text);
        return CLI_ENVIRONMENT;
    }
    if (status != DSI_OK) return bad_line(number, error.text);
    uint64_t n_text = 0;
    uint32_t node = dsi_json_get(&json, 0, "text");
    bool is_text = node != DSI_JSON_NONE && json.nodes[node].kind == DSI_JSON_STRING;
    char *text = is_text ? dsi_json_string(&json, node, &n_text) : NULL;
    int code;
    if (text != NULL) {
        code = encode(state, text, n_text);
        if (code == CLI_OK) {
            fputc('{', stdout);
            print_ids(state);
        }
    } else if (is_text) {
        cli_error("%s", dsi_status_text(DSI_E_NOMEM));
        code = CLI_ENVIRONMENT;
    } else {
        code = bad_line(number, cli_tr("no string \"text\"", "缺少字符串 \"text\""));
    }
    dsi_sys_free(text);
    dsi_json_free(&json);
    return code;
}

static int many_lines(tokens_state *state) {
    if (state->options->argument != NULL && strcmp(state->options->argument, "-") != 0) {
        cli_error(
            cli_tr("--jsonl reads stdin, and \"%s\" is a text", "--jsonl 读标准输入，“%s”是文本"),
            cli_show(state->options->argument).text);
        cli_hint(cli_tr("leave out one of the two", "两者只能用其一"));
        return CLI_USAGE;
    }
    cli_bytes line = {0};
    bool end = false;
    int code = CLI_OK;
    for (uint64_t number = 1; code == CLI_OK && !cli_stdout_broken(); number++) {
        code = cli_read_line(&line, &end);
        if (end) break;
        size_t blank = 0;
        while (blank < line.n_bytes && strchr(" \t\r", line.data[blank]) != NULL) blank++;
        if (code == CLI_OK && blank < line.n_bytes) code = one_line(state, &line, number);
    }
    cli_bytes_free(&line);
    return code;
}

/* A tokenizer.json, or the one inside a GGUF file, which may hold nothing else. */
static dsi_status open_tokenizer(const char *path, dsi_tokenizer **tokenizer, dsi_error *error) {
    if (!dsi_is_gguf_name(path)) return dsi_tokenizer_open(path, tokenizer, error);
    dsi_map map = {0};
    dsi_gguf gguf = {0};
    dsi_status status = dsi_sys_map(path, &map, error);
    if (status == DSI_OK) status = dsi_gguf_read(path, &map, &gguf, error);
    if (status == DSI_OK) status = dsi_tokenizer_of_gguf(&gguf, tokenizer, error);
    if (status == DSI_OK && *tokenizer == NULL)
        status = dsi_fail(error, DSI_E_MODEL, "%s: has no tokenizer inside", path);
    dsi_gguf_free(&gguf);
    dsi_sys_unmap(&map);
    return status;
}

int cli_tokenize(const cli_options *options) {
    tokens_state state = {.options = options};
    int code = cli_need_model(options);
    if (code != CLI_OK) return code;
    cli_bytes path = {0};
    dsi_error error = {0};
    bool folder = dsi_sys_is_dir(options->model);
    bool room = cli_bytes_add(&path, options->model, strlen(options->model)) &&
                cli_bytes_add(&path, "/tokenizer.json", folder ? 15 : 0) &&
                cli_bytes_add(&path, "", 1);
    if (!room) {
        cli_error("%s", dsi_status_text(DSI_E_NOMEM));
        code = CLI_ENVIRONMENT;
    } else {
        dsi_status status = open_tokenizer(path.data, &state.tokenizer, &error);
        if (status != DSI_OK) {
            cli_error("%s: %s", cli_tr("tokenizer", "分词器"), error.text);
            cli_hint(
                cli_tr("-m takes a folder with tokenizer.json, that file itself, or a .gguf file",
                       "-m 接受含 tokenizer.json 的目录、该文件本身，或 .gguf 文件"));
            code = cli_status_exit(status);
            if (status == DSI_E_IO && !dsi_sys_is_file(path.data)) code = CLI_BAD_FILE;
        }
    }
    if (code == CLI_OK) code = options->jsonl ? many_lines(&state) : one_text(&state);
    dsi_tokenizer_free(state.tokenizer);
    cli_bytes_free(&path);
    cli_bytes_free(&state.ids);
    cli_bytes_free(&state.decoded);
    return code;
}
