/* quantize_eval.c: what quantising costs, on a text: the perplexity of both models and how far
 * their distributions are apart. One model at a time is open; the logits of the first wait in a
 * file. */
#include "quantize.h"

#include "../../lib/base/sys.h"
#include "compare.h"
#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { MAX_TOKENS = 512, MAX_TEXT_BYTES = 1 << 20 };

typedef struct judged {
    const cli_options *options;
    int32_t *tokens;
    size_t n_tokens;
    FILE *kept; /* logits of the source, [n_tokens][n_vocab], in a file without a name */
    float *row;
    uint32_t n_vocab;
    double loss[2], kl, same; /* sums over the tokens */
    size_t n_done;
} judged;

static int io_error(void) {
    cli_error(cli_tr("a temporary file: %s", "临时文件：%s"), strerror(errno));
    return CLI_ENVIRONMENT;
}

static double loss_of(const float *logits, uint32_t n, int32_t token) {
    double top = -INFINITY, sum = 0;
    for (uint32_t i = 0; i < n; i++) top = fmax(top, (double)logits[i]);
    for (uint32_t i = 0; i < n; i++) sum += exp((double)logits[i] - top);
    return top + log(sum) - (double)logits[token];
}

/* One row of the model `which`: 0 the source, 1 what was made of it. */
static int judge_row(judged *j, int which, size_t at, const float *logits) {
    const size_t n = j->n_vocab;
    if (at + 1 < j->n_tokens) j->loss[which] += loss_of(logits, j->n_vocab, j->tokens[at + 1]);
    if (which == 0) return fwrite(logits, sizeof *logits, n, j->kept) == n ? CLI_OK : io_error();
    compared_row row;
    if (fread(j->row, sizeof *j->row, n, j->kept) != n) return io_error();
    if (!compare_rows(j->row, logits, n, &row)) {
        cli_error(cli_tr("logits of token %zu are not finite", "第 %zu 个 token 的 logits 非有限"),
                  at);
        return CLI_FAILED;
    }
    j->kl += row.kl;
    j->same += row.same_top;
    return CLI_OK;
}

static int judge_step(judged *j, int which, dsi_engine *engine, dsi_session *session) {
    dsi_session *sessions[1] = {session};
    const float *logits = NULL;
    size_t n_rows = 0, first = 0;
    dsi_status status = dsi_engine_step(engine, sessions, 1, &n_rows);
    if (status == DSI_OK) status = dsi_session_logits(session, &logits, &n_rows, &first);
    if (status != DSI_OK) return cli_fail(status, engine, cli_tr("step", "计算"));
    int code = CLI_OK;
    for (size_t i = 0; i < n_rows && code == CLI_OK; i++)
        code = judge_row(j, which, first + i, logits + i * j->n_vocab);
    j->n_done = first + n_rows;
    cli_progress(NULL, DSI_STAGE_PREFILL, j->n_done, j->n_tokens);
    return code;
}

static int run_engine(judged *j, int which, dsi_engine *engine) {
    dsi_session *session = NULL;
    dsi_session_options options;
    dsi_session_options_init(&options);
    options.all_logits = 1;
    dsi_status status = dsi_session_open(engine, &options, &session);
    if (status != DSI_OK) return cli_fail(status, NULL, cli_tr("session", "会话"));
    status = dsi_session_append(session, j->tokens, j->n_tokens);
    int code = status == DSI_OK ? CLI_OK : cli_fail(status, session, "tokens");
    for (j->n_done = 0; code == CLI_OK && j->n_done < j->n_tokens;)
        code = judge_step(j, which, engine, session);
    dsi_session_close(session);
    return code;
}

static int take_tokens(judged *j, const dsi_model *model) {
    char *text = NULL;
    uint64_t n_bytes = 0;
    dsi_error error = {0};
    dsi_status status =
        dsi_sys_read_file(j->options->text, MAX_TEXT_BYTES, &text, &n_bytes, &error);
    if (status != DSI_OK) {
        cli_error("--text: %s", error.text);
        return cli_status_exit(status);
    }
    size_t room = n_bytes + 1;
    j->tokens = dsi_sys_calloc(room, sizeof *j->tokens);
    status = j->tokens ? dsi_tokenize(model, text, n_bytes, 0, j->tokens, room, &j->n_tokens)
                       : DSI_E_NOMEM;
    dsi_sys_free(text);
    if (status != DSI_OK) return cli_fail(status, NULL, "--text");
    if (j->n_tokens > MAX_TOKENS) j->n_tokens = MAX_TOKENS;
    if (j->n_tokens >= 2) return CLI_OK;
    cli_error(cli_tr("--text: %s has fewer than two tokens", "--text：%s 不足两个 token"),
              cli_show(j->options->text).text);
    return CLI_BAD_FILE;
}

static int judge_model(judged *j, int which, const char *path) {
    cli_options options = *j->options;
    dsi_model *model = NULL;
    dsi_model_info info;
    dsi_engine *engine = NULL;
    dsi_engine_options engine_options;
    options.model = path;
    if (which == 0) options.activations = DSI_ACTIVATIONS_BF16;
    int code = cli_open_model(&options, &model, &info);
    if (code == CLI_OK && which == 0) code = take_tokens(j, model);
    if (code == CLI_OK && j->n_tokens > info.max_context) j->n_tokens = info.max_context;
    j->n_vocab = info.vocab_size;
    if (code == CLI_OK && which == 0) j->row = dsi_sys_calloc(j->n_vocab, sizeof *j->row);
    if (code == CLI_OK) {
        cli_engine_options(&options, &info, (uint32_t)j->n_tokens, &engine_options);
        code = cli_open_engine(model, &engine_options, &engine);
    }
    if (code == CLI_OK) code = j->row ? run_engine(j, which, engine) : CLI_ENVIRONMENT;
    dsi_engine_close(engine);
    dsi_model_close(model);
    return code;
}

int quantize_compare(const cli_options *options, const char *made) {
    judged j = {.options = options, .kept = tmpfile()};
    if (!j.kept) return io_error();
    int code = judge_model(&j, 0, options->model);
    rewind(j.kept);
    if (code == CLI_OK) code = judge_model(&j, 1, made);
    cli_progress_clear();
    if (code == CLI_OK) {
        double n = (double)j.n_tokens, before = exp(j.loss[0] / (n - 1)),
               after = exp(j.loss[1] / (n - 1));
        if (options->json)
            printf(", \"tokens\": %zu, \"perplexity\": [%.6g, %.6g], \"mean_kl\": %.6g, "
                   "\"top1\": %.6g",
                   j.n_tokens, before, after, j.kl / n, j.same / n);
        else
            printf(cli_tr("%zu tokens of %s: perplexity %.4f -> %.4f (%+.2f %%), mean KL %.2e, "
                          "same first choice %.1f %%\n",
                          "%zu 个 token（%s）：困惑度 %.4f -> %.4f（%+.2f %%），平均 KL %.2e，"
                          "首选一致 %.1f %%\n"),
                   j.n_tokens, options->text, before, after, 100 * (after / before - 1), j.kl / n,
                   100 * j.same / n);
    }
    fclose(j.kept);
    dsi_sys_free(j.tokens);
    dsi_sys_free(j.row);
    return code;
}
