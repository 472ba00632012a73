/* run.c: dsinfer run: one prompt, the answer while it grows, one line of figures. */
#include "../../lib/base/sys.h"
#include "answer.h"
#include <string.h>

typedef struct run_state {
    const cli_options *options;
    cli_bytes prompt;
    double load_seconds;
    cli_answer answer;
} run_state;

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

static void print_footer(const run_state *state, const dsi_engine *engine) {
    const dsi_generate_result *result = &state->answer.result;
    cli_say(cli_tr("first token %.2f s | prompt %s tok %s tok/s | answer %s tok %s tok/s | "
                   "memory %s%s | %s%s",
                   "首字 %.2f s | 预填 %s tok %s tok/s | 生成 %s tok %s tok/s | 内存 %s%s | %s%s"),
            result->first_token_seconds, cli_count_text(result->n_tokens_in).text,
            cli_rate_text(cli_prefill_rate(result)).text, cli_count_text(result->n_tokens_out).text,
            cli_rate_text(cli_decode_rate(result)).text, cli_bytes_text(cli_peak_memory()).text,
            cli_draft_text(result).text, dsi_engine_describe(engine),
            state->answer.stopped ? cli_tr(" | stopped", " | 已停止") : "");
}

static void print_json(const run_state *state) {
    cli_json_begin(stdout);
    cli_answer_json(&state->answer, state->load_seconds);
    fputs(", \"model\": ", stdout);
    cli_json_text(stdout, state->options->model, strlen(state->options->model));
    if (state->options->adapter != NULL) {
        fputs(", \"adapter\": ", stdout);
        cli_json_text(stdout, state->options->adapter, strlen(state->options->adapter));
    }
    printf(", \"seed\": %llu}\n", (unsigned long long)state->options->seed);
}

static int generate(run_state *state, dsi_engine *engine, dsi_adapter *adapter) {
    const cli_options *options = state->options;
    dsi_session_options session_options;
    dsi_session *session = NULL;
    cli_answer_options(options, &session_options);
    session_options.adapter = adapter;
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
    cli_catch_interrupt(CLI_SECOND_ENDS_PROCESS);
    int code = cli_ask(&state->answer, session, messages, n_messages);
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
    dsi_adapter *adapter = NULL;
    dsi_engine_options engine_options;
    cli_engine_options(options, &info, 0, &engine_options);
    code = cli_need_template(options, model, &info);
    if (code == CLI_OK) code = cli_open_engine(model, &engine_options, &engine);
    if (code == CLI_OK) code = cli_open_adapter(options, engine, &adapter);
    state->load_seconds = dsi_sys_seconds() - start;
    state->answer.options = options;
    state->answer.model = model;
    if (code == CLI_OK) code = generate(state, engine, adapter);
    if (code == CLI_OK && options->json) print_json(state);
    if (code == CLI_OK && !cli_stdout_broken()) {
        fflush(stdout);
        print_footer(state, engine);
    }
    dsi_adapter_close(adapter);
    dsi_engine_close(engine);
    dsi_model_close(model);
    return code;
}

/* Without --json there is no place for them. */
static int check_logprobs(const cli_options *options) {
    if (options->logprobs == 0 || options->json) return CLI_OK;
    cli_error(
        cli_tr("--logprobs: they are written with --json only", "--logprobs：只随 --json 输出"));
    cli_hint(cli_tr("add --json", "请加上 --json"));
    return CLI_USAGE;
}

int cli_run(const cli_options *options) {
    run_state state;
    memset(&state, 0, sizeof state);
    state.options = options;
    int code = cli_need_model(options);
    if (code == CLI_OK) code = check_logprobs(options);
    if (code == CLI_OK) code = read_prompt(&state);
    if (code == CLI_OK) code = answer(&state);
    cli_bytes_free(&state.prompt);
    cli_answer_free(&state.answer);
    return code;
}
