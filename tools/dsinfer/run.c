/* run.c: dsinfer run: one prompt, the answer while it grows, one line of figures. */
#include "../../lib/base/sys.h"
#include "cli.h"
#include <signal.h>
#include <string.h>
#include <unistd.h>

static volatile sig_atomic_t interrupted;
static void on_interrupt(int signal_number) {
    (void)signal_number;
    interrupted = 1;
}

/* Once: the answer ends. Twice: the default action, the process ends. */
static void catch_interrupt(void) {
    struct sigaction action;
    memset(&action, 0, sizeof action);
    action.sa_handler = on_interrupt;
    action.sa_flags = (int)SA_RESETHAND | SA_RESTART;
    sigaction(SIGINT, &action, NULL);
}

typedef struct run_state {
    const cli_options *options;
    cli_bytes prompt, answer, reasoning; /* answer and reasoning: kept under --json only */
    bool in_reasoning, no_memory, wrote;
    char last; /* byte written last */
    double load_seconds;
    dsi_generate_result result;
} run_state;

static void reasoning_mark(run_state *state, bool open) {
    const char *mark = open ? "<think>\n" : "\n</think>\n\n";
    if (open && cli_stdout_has_colour()) fputs("\033[2m", stdout);
    fputs(mark, stdout);
    if (!open && cli_stdout_has_colour()) fputs("\033[22m", stdout);
    state->in_reasoning = open;
}

static int32_t on_text(void *user, uint32_t part, const char *text, size_t n_bytes) {
    run_state *state = user;
    bool reasoning = part == DSI_PART_REASONING;
    if (n_bytes == 0) return interrupted;
    cli_progress_clear();
    if (state->options->json) {
        cli_bytes *kept = reasoning ? &state->reasoning : &state->answer;
        state->no_memory = !cli_bytes_add(kept, text, n_bytes);
        return interrupted || state->no_memory;
    }
    bool terminal = cli_stdout_is_terminal();
    if (reasoning && !terminal) return interrupted;
    if (reasoning != state->in_reasoning) reasoning_mark(state, reasoning);
    if (terminal) {
        cli_print_safe(stdout, text, n_bytes);
    } else {
        fwrite(text, 1, n_bytes, stdout);
    }
    fflush(stdout);
    state->wrote = true;
    state->last = text[n_bytes - 1];
    return interrupted || cli_stdout_broken();
}

static int read_prompt(run_state *state) {
    const char *argument = state->options->argument;
    const char *what = cli_tr("prompt", "提示");
    if (argument == NULL) {
        cli_error(cli_tr("no prompt was given", "没有提示文本"));
        cli_hint(cli_tr("put it in quotes at the end, or - to read stdin",
                        "请在末尾用引号给出，或用 - 从标准输入读取"));
        return CLI_USAGE;
    }
    if (strcmp(argument, "-") == 0) {
        int code = cli_read_stdin(&state->prompt);
        if (code != CLI_OK) return code;
    } else if (!cli_bytes_add(&state->prompt, argument, strlen(argument))) {
        cli_error(cli_tr("no memory for the prompt", "内存不足，放不下提示"));
        return CLI_ENVIRONMENT;
    }
    if (state->prompt.n_bytes == 0) {
        cli_error(cli_tr("the prompt is empty: 0 bytes", "提示为空：0 字节"));
        cli_hint(cli_tr("give at least one character", "请至少给出一个字"));
        return CLI_USAGE;
    }
    const char *system = state->options->system;
    int code = system == NULL
                   ? CLI_OK
                   : cli_check_utf8(cli_tr("system message", "系统消息"), system, strlen(system));
    return code != CLI_OK ? code : cli_check_utf8(what, state->prompt.data, state->prompt.n_bytes);
}

/* A rate over the tokens that the seconds were spent on; 0 where nothing was measured. */
static double rate(double n, double seconds) { return n > 0 && seconds > 0 ? n / seconds : 0; }

/* The first token belongs to the prompt's time; the end token is computed but not counted. */
static double decode_rate(const dsi_generate_result *result) {
    double ended = result->finish_reason == DSI_FINISH_STOP ? 0 : 1;
    return rate(result->n_tokens_out - ended, result->decode_seconds);
}

static void print_footer(const run_state *state, const dsi_engine *engine) {
    const dsi_generate_result *result = &state->result;
    cli_say(cli_tr("first token %.2f s | prompt %s tok %s tok/s | answer %s tok %s tok/s | "
                   "memory %s | %s%s",
                   "首字 %.2f s | 预填 %s tok %s tok/s | 生成 %s tok %s tok/s | 内存 %s | %s%s"),
            result->first_token_seconds, cli_count_text(result->n_tokens_in).text,
            cli_rate_text(rate(result->n_tokens_in, result->prefill_seconds)).text,
            cli_count_text(result->n_tokens_out).text, cli_rate_text(decode_rate(result)).text,
            cli_bytes_text(cli_peak_memory()).text, dsi_engine_describe(engine),
            interrupted ? cli_tr(" | stopped", " | 已停止") : "");
}

static const char *finish_name(uint32_t reason) {
    switch (reason) {
    case DSI_FINISH_STOP:
        return "stop";
    case DSI_FINISH_LENGTH:
        return "length";
    default:
        return "cancelled";
    }
}

static void json_seconds(const char *key, double value, const char *end) {
    printf("\"%s\": ", key);
    cli_json_number(stdout, value);
    fputs(end, stdout);
}

static void print_json(const run_state *state) {
    const dsi_generate_result *result = &state->result;
    cli_json_begin(stdout);
    fputs(", \"text\": ", stdout);
    cli_json_text(stdout, state->answer.data, state->answer.n_bytes);
    fputs(", \"reasoning\": ", stdout);
    cli_json_text(stdout, state->reasoning.data, state->reasoning.n_bytes);
    printf(", \"tokens_in\": %u, \"tokens_out\": %u, \"finish_reason\": \"%s\", \"timings\": {",
           result->n_tokens_in, result->n_tokens_out, finish_name(result->finish_reason));
    json_seconds("load_seconds", state->load_seconds, ", ");
    json_seconds("first_token_seconds", result->first_token_seconds, ", ");
    json_seconds("prefill_seconds", result->prefill_seconds, ", ");
    json_seconds("decode_seconds", result->decode_seconds, ", ");
    json_seconds("prefill_tokens_per_second", rate(result->n_tokens_in, result->prefill_seconds),
                 ", ");
    json_seconds("decode_tokens_per_second", decode_rate(result), "}");
    printf(", \"memory_bytes\": %llu, \"model\": ", (unsigned long long)cli_peak_memory());
    cli_json_text(stdout, state->options->model, strlen(state->options->model));
    printf(", \"seed\": %llu}\n", (unsigned long long)state->options->seed);
}

static int generate(run_state *state, dsi_engine *engine) {
    const cli_options *options = state->options;
    dsi_session_options session_options;
    dsi_session_options_init(&session_options);
    session_options.temperature = (float)options->temperature;
    session_options.top_p = (float)options->top_p;
    session_options.min_p = (float)options->min_p;
    session_options.top_k = options->top_k;
    session_options.max_tokens = options->max_tokens;
    session_options.seed = options->seed;
    dsi_session *session = NULL;
    dsi_status status = dsi_session_open(engine, &session_options, &session);
    if (status != DSI_OK) return cli_fail(status, NULL, cli_tr("session", "会话"));
    dsi_message messages[2];
    size_t n_messages = 0;
    if (options->system != NULL) {
        messages[n_messages++] = (dsi_message){sizeof(dsi_message), DSI_ROLE_SYSTEM,
                                               options->system, strlen(options->system)};
    }
    messages[n_messages++] = (dsi_message){sizeof(dsi_message), DSI_ROLE_USER, state->prompt.data,
                                           state->prompt.n_bytes};
    state->result.struct_size = sizeof state->result;
    catch_interrupt();
    status = dsi_generate_chat(session, messages, n_messages, options->think, on_text, state,
                               &state->result);
    cli_progress_clear();
    if (state->in_reasoning) reasoning_mark(state, false);
    if (state->wrote && state->last != '\n') fputc('\n', stdout);
    int code = CLI_OK;
    if (status != DSI_OK) code = cli_fail(status, session, cli_tr("answer", "生成"));
    if (state->no_memory) {
        cli_error(
            cli_tr("no memory to keep the answer for --json", "内存不足，无法保存 --json 的回答"));
        code = CLI_ENVIRONMENT;
    }
    dsi_session_close(session);
    return code;
}

static int answer(run_state *state) {
    const cli_options *options = state->options;
    dsi_model *model = NULL;
    dsi_model_info info;
    double start = dsi_sys_seconds();
    int code = cli_open_model(options, &model, &info);
    if (code != CLI_OK) return code;
    dsi_engine *engine = NULL;
    dsi_engine_options engine_options;
    cli_engine_options(options, &info, 0, &engine_options);
    if (!info.has_tokenizer || *info.chat_template == 0) {
        cli_error(cli_tr("%s: %s, so there is no way to write a prompt", "%s：%s，无法构造提示"),
                  cli_show(options->model).text,
                  info.has_tokenizer ? cli_tr("no chat template fits", "没有适用的对话模板")
                                     : cli_tr("no tokenizer.json", "没有 tokenizer.json"));
        cli_hint(cli_tr("copy tokenizer.json and tokenizer_config.json from the model's source",
                        "请从模型来源补上 tokenizer.json 与 tokenizer_config.json"));
        code = CLI_BAD_FILE;
    }
    if (code == CLI_OK) code = cli_open_engine(model, &engine_options, &engine);
    state->load_seconds = dsi_sys_seconds() - start;
    if (code == CLI_OK) code = generate(state, engine);
    if (code == CLI_OK && options->json) print_json(state);
    if (code == CLI_OK && !cli_stdout_broken()) {
        fflush(stdout);
        print_footer(state, engine);
    }
    dsi_engine_close(engine);
    dsi_model_close(model);
    return code;
}

int cli_run(const cli_options *options) {
    run_state state;
    memset(&state, 0, sizeof state);
    state.options = options;
    int code = cli_need_model(options);
    if (code == CLI_OK) code = read_prompt(&state);
    if (code == CLI_OK) code = answer(&state);
    cli_bytes_free(&state.prompt);
    cli_bytes_free(&state.answer);
    cli_bytes_free(&state.reasoning);
    return code;
}
