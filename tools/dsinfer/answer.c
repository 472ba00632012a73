/* answer.c: one answer through dsi_stream: its events shown, kept, and counted. */
#include "answer.h"
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

/* ---- Ctrl-C ---------------------------------------------------------------------------------- */

/* The handler runs on the main thread: those of the library take no signals. */
static struct {
    dsi_stream *volatile stream; /* the answer that is being computed */
    volatile sig_atomic_t stopped, leave;
    volatile int64_t last_ns; /* when the last one came */
} interrupt;

static void on_interrupt(int signal_number) {
    (void)signal_number;
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    int64_t ns = (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
    bool again = interrupt.last_ns != 0 && ns - interrupt.last_ns < 1000000000;
    interrupt.last_ns = ns;
    if (again || interrupt.stream == NULL) interrupt.leave = 1;
    if (interrupt.stream != NULL) {
        interrupt.stopped = 1;
        dsi_stream_cancel(interrupt.stream);
    }
}

void cli_catch_interrupt(uint32_t second) {
    struct sigaction action;
    memset(&action, 0, sizeof action);
    action.sa_handler = on_interrupt;
    /* No SA_RESTART in a conversation: a read that waits for the next line must return. */
    action.sa_flags =
        second == CLI_SECOND_ENDS_PROCESS ? (int)((unsigned)SA_RESETHAND | SA_RESTART) : 0;
    sigaction(SIGINT, &action, NULL);
}

bool cli_wants_to_leave(void) { return interrupt.leave != 0; }

/* ---- Text ------------------------------------------------------------------------------------ */

static void reasoning_mark(cli_answer *answer, bool open) {
    const char *mark = open ? "<think>\n" : "\n</think>\n\n";
    if (open && cli_stdout_has_colour()) fputs("\033[2m", stdout);
    fputs(mark, stdout);
    if (!open && cli_stdout_has_colour()) fputs("\033[22m", stdout);
    answer->in_reasoning = open;
}

static void show(cli_answer *answer, bool reasoning, const char *text, size_t n_bytes) {
    bool terminal = cli_stdout_is_terminal();
    if (reasoning && !terminal) return;
    cli_progress_clear();
    if (reasoning != answer->in_reasoning) reasoning_mark(answer, reasoning);
    if (terminal) {
        cli_print_safe(stdout, text, n_bytes);
    } else {
        fwrite(text, 1, n_bytes, stdout);
    }
    fflush(stdout);
    answer->wrote = true;
    answer->last = text[n_bytes - 1];
}

static void take_text(cli_answer *answer, const dsi_event *event) {
    bool reasoning = event->part == DSI_PART_REASONING;
    cli_bytes *kept = reasoning ? &answer->reasoning : &answer->text;
    if (event->n_bytes == 0) return;
    if (!cli_bytes_add(kept, event->text, event->n_bytes)) answer->no_memory = true;
    if (!answer->options->json) show(answer, reasoning, event->text, event->n_bytes);
}

/* ---- Log-probabilities: a JSON item for each token ------------------------------------------- */

static void add_token_text(FILE *file, const dsi_model *model, int32_t token) {
    char text[512];
    size_t n_bytes = 0;
    bool known = dsi_detokenize(model, &token, 1, text, sizeof text, &n_bytes) == DSI_OK;
    cli_json_text(file, text, known ? n_bytes : 0);
}

static void write_token(FILE *file, const dsi_model *model, int32_t token, float logprob) {
    fprintf(file, "{\"token\": %d, \"text\": ", token);
    add_token_text(file, model, token);
    fputs(", \"logprob\": ", file);
    cli_json_number(file, (double)logprob);
}

static void take_token(cli_answer *answer, const dsi_event *event) {
    char *item = NULL;
    size_t n_bytes = 0;
    FILE *file = open_memstream(&item, &n_bytes);
    if (file == NULL) {
        answer->no_memory = true;
        return;
    }
    if (answer->tokens.n_bytes > 0) fputs(", ", file);
    write_token(file, answer->model, event->token, event->logprob);
    fputs(", \"top\": [", file);
    for (uint32_t i = 0; i < event->n_top; i++) {
        if (i > 0) fputs(", ", file);
        write_token(file, answer->model, event->top[i].token, event->top[i].logprob);
        fputc('}', file);
    }
    fputs("]}", file);
    bool good = fclose(file) == 0 && cli_bytes_add(&answer->tokens, item, n_bytes);
    if (!good) answer->no_memory = true;
    free(item);
}

/* ---- Asking ---------------------------------------------------------------------------------- */

void cli_answer_options(const cli_options *options, dsi_session_options *session) {
    dsi_session_options_init(session);
    session->temperature = (float)options->temperature;
    session->top_p = (float)options->top_p;
    session->min_p = (float)options->min_p;
    session->top_k = options->top_k;
    session->max_tokens = options->max_tokens;
    session->seed = options->seed;
    session->stop = options->n_stop == 0 ? NULL : options->stop;
    session->n_stop = options->n_stop;
    session->repetition_penalty = (float)options->repetition_penalty;
    session->presence_penalty = (float)options->presence_penalty;
    session->frequency_penalty = (float)options->frequency_penalty;
    session->logprobs = options->logprobs != 0;
    session->top_logprobs = options->logprobs == 0 ? 0 : options->logprobs - 1;
}

static void start(cli_answer *answer) {
    answer->text.n_bytes = answer->reasoning.n_bytes = answer->tokens.n_bytes = 0;
    memset(&answer->result, 0, sizeof answer->result);
    answer->prompt_done = 0;
    answer->in_reasoning = answer->no_memory = answer->wrote = answer->stopped = false;
    answer->last = '\n';
    interrupt.stopped = 0;
}

/* Events until the last one, whose status is returned. */
static dsi_status receive(cli_answer *answer, dsi_stream *stream) {
    for (;;) {
        dsi_event event;
        memset(&event, 0, sizeof event);
        event.struct_size = sizeof event;
        dsi_status status = dsi_stream_next(stream, -1, &event);
        if (status != DSI_OK) return status;
        switch (event.kind) {
        case DSI_EVENT_PROGRESS:
            answer->prompt_done = event.done;
            cli_progress(NULL, DSI_STAGE_PREFILL, event.done, event.total);
            break;
        case DSI_EVENT_TEXT:
            take_text(answer, &event);
            break;
        case DSI_EVENT_TOKEN:
            take_token(answer, &event);
            break;
        case DSI_EVENT_DONE:
            answer->result = event.result;
            return event.status;
        default: /* of a newer library */
            break;
        }
        if (answer->no_memory || cli_stdout_broken()) dsi_stream_cancel(stream);
    }
}

/* Nothing was answered before the deadline: that is no answer, whatever the caller asked for. */
static int late(const cli_answer *answer) {
    cli_error(cli_tr("the deadline of %g s passed before the answer began: %llu of %u prompt "
                     "tokens were computed",
                     "期限 %g 秒已到，回答尚未开始：提示 %llu / %u 个 token 已计算"),
              answer->options->deadline, (unsigned long long)answer->prompt_done,
              answer->result.n_tokens_in);
    cli_hint(cli_tr("give more time with --deadline, or a shorter prompt",
                    "请延长 --deadline，或缩短提示"));
    return CLI_ENVIRONMENT;
}

static int judge(cli_answer *answer, dsi_status status, const dsi_stream *stream) {
    if (answer->no_memory) {
        cli_error("%s", dsi_status_text(DSI_E_NOMEM));
        return CLI_ENVIRONMENT;
    }
    if (status == DSI_OK || status == DSI_E_CANCELLED) return CLI_OK;
    if (status == DSI_E_TIMEOUT) return answer->text.n_bytes == 0 ? late(answer) : CLI_OK;
    return cli_fail(status, stream, cli_tr("answer", "生成"));
}

int cli_ask(cli_answer *answer, dsi_session *session, const dsi_message *messages,
            size_t n_messages) {
    dsi_stream *stream = NULL;
    start(answer);
    dsi_status status = dsi_session_set_deadline(session, answer->options->deadline);
    if (status == DSI_OK) {
        status = dsi_stream_open(session, messages, n_messages, answer->options->think, &stream);
    }
    if (status != DSI_OK) return cli_fail(status, session, cli_tr("answer", "生成"));
    interrupt.stream = stream;
    if (interrupt.leave) dsi_stream_cancel(stream); /* pressed before there was a stream */
    status = receive(answer, stream);
    interrupt.stream = NULL;
    answer->stopped = interrupt.stopped != 0;
    cli_progress_clear();
    if (answer->in_reasoning) reasoning_mark(answer, false);
    if (answer->wrote && answer->last != '\n') fputc('\n', stdout);
    fflush(stdout);
    int code = judge(answer, status, stream);
    dsi_stream_close(stream);
    return code;
}

void cli_answer_free(cli_answer *answer) {
    cli_bytes_free(&answer->text);
    cli_bytes_free(&answer->reasoning);
    cli_bytes_free(&answer->tokens);
}

/* ---- Figures --------------------------------------------------------------------------------- */

static double rate(double n, double seconds) { return n > 0 && seconds > 0 ? n / seconds : 0; }

/* Tokens that the session still held cost nothing. */
double cli_prefill_rate(const dsi_generate_result *result) {
    return rate((double)result->n_tokens_in - result->n_tokens_kept, result->prefill_seconds);
}

/* The first token belongs to the prompt's time; the end token is computed but not counted. */
double cli_decode_rate(const dsi_generate_result *result) {
    double ended = result->finish_reason == DSI_FINISH_STOP ? 0 : 1;
    return rate(result->n_tokens_out - ended, result->decode_seconds);
}

cli_shown cli_draft_text(const dsi_generate_result *result) {
    cli_shown shown = {""};
    if (result->n_drafted)
        snprintf(shown.text, sizeof shown.text,
                 cli_tr(" | drafts %s, %.0f %% taken", " | 起草 %s，采纳 %.0f %%"),
                 cli_count_text(result->n_drafted).text,
                 100.0 * result->n_accepted / result->n_drafted);
    return shown;
}

static const char *finish_name(uint32_t reason) {
    static const char *const names[] = {"none",      "stop",      "length",   "cancelled",
                                        "stop_text", "cancelled", "deadline", "failed"};
    return reason < sizeof names / sizeof names[0] ? names[reason] : "unknown";
}

static void json_seconds(const char *key, double value, const char *end) {
    printf("\"%s\": ", key);
    cli_json_number(stdout, value);
    fputs(end, stdout);
}

void cli_answer_json(const cli_answer *answer, double load_seconds) {
    const dsi_generate_result *result = &answer->result;
    fputs(", \"text\": ", stdout);
    cli_json_text(stdout, answer->text.data, answer->text.n_bytes);
    fputs(", \"reasoning\": ", stdout);
    cli_json_text(stdout, answer->reasoning.data, answer->reasoning.n_bytes);
    printf(", \"tokens_in\": %u, \"tokens_kept\": %u, \"tokens_out\": %u, \"finish_reason\": "
           "\"%s\", \"stop_text\": ",
           result->n_tokens_in, result->n_tokens_kept, result->n_tokens_out,
           finish_name(result->finish_reason));
    const cli_options *options = answer->options;
    if (result->finish_reason == DSI_FINISH_STOP_TEXT && result->stop_index < options->n_stop) {
        const char *stop = options->stop[result->stop_index];
        cli_json_text(stdout, stop, strlen(stop));
    } else {
        fputs("null", stdout);
    }
    fputs(", \"timings\": {", stdout);
    if (load_seconds >= 0) json_seconds("load_seconds", load_seconds, ", ");
    json_seconds("first_token_seconds", result->first_token_seconds, ", ");
    json_seconds("prefill_seconds", result->prefill_seconds, ", ");
    json_seconds("decode_seconds", result->decode_seconds, ", ");
    json_seconds("prefill_tokens_per_second", cli_prefill_rate(result), ", ");
    json_seconds("decode_tokens_per_second", cli_decode_rate(result), "}");
    if (result->n_drafted || (options->draft && options->draft != DSI_DRAFTS_AUTO))
        printf(", \"drafted\": %u, \"accepted\": %u", result->n_drafted, result->n_accepted);
    printf(", \"memory_bytes\": %llu", (unsigned long long)cli_peak_memory());
    if (options->logprobs != 0) {
        fputs(", \"logprobs\": [", stdout);
        if (answer->tokens.n_bytes > 0) {
            fwrite(answer->tokens.data, 1, answer->tokens.n_bytes, stdout);
        }
        fputc(']', stdout);
    }
}
