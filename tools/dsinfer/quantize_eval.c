/* quantize_eval.c: what quantising costs, on a text: the perplexity of both models and how far
 * their distributions are apart. One model at a time is open; the logits of the first wait in a
 * file. */
#include "quantize.h"

#include "../../lib/base/sys.h"
#include "compare.h"
#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <string.h>

enum { MAX_TOKENS = 4096, MAX_PART = 512 };

typedef struct judged {
    const cli_options *options;
    quantize_text text;
    int which;  /* the model that runs: 0 the source, 1 what was made of it */
    FILE *kept; /* logits of the source, [n_tokens][n_vocab], in a file without a name */
    float *row;
    uint32_t n_vocab;
    double loss[2], kl, same; /* sums over the tokens */
    size_t n_rows[2], n_losses;
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

/* The row of token `at`; the next one is what it should foresee, if it is in the same part. */
static int judge_row(judged *j, size_t at, const float *logits) {
    const size_t n = j->n_vocab, which = (size_t)j->which;
    bool last = false;
    for (size_t i = 0; i < j->text.n_parts; i++) last = last || j->text.ends[i] == at + 1;
    if (!last) j->loss[which] += loss_of(logits, j->n_vocab, j->text.tokens[at + 1]);
    j->n_rows[which]++;
    if (which == 0) {
        j->n_losses += !last;
        return fwrite(logits, sizeof *logits, n, j->kept) == n ? CLI_OK : io_error();
    }
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

static int judge_step(void *user, dsi_session *session, size_t part) {
    judged *j = user;
    const float *logits = NULL;
    size_t n_rows = 0, first = 0;
    dsi_status status = dsi_session_logits(session, &logits, &n_rows, &first);
    if (status != DSI_OK) return cli_fail(status, session, cli_tr("step", "计算"));
    int code = CLI_OK;
    for (size_t i = 0; i < n_rows && code == CLI_OK; i++)
        code = judge_row(j, part + first + i, logits + i * j->n_vocab);
    return code;
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
    const uint32_t part = info.max_context < MAX_PART ? info.max_context : MAX_PART;
    j->which = which;
    if (code == CLI_OK && which == 0)
        code = quantize_text_read(model, options.text, "--text", part, &j->text);
    j->n_vocab = info.vocab_size;
    if (code == CLI_OK && which == 0) j->row = dsi_sys_calloc(j->n_vocab, sizeof *j->row);
    if (code == CLI_OK) {
        cli_engine_options(&options, &info, part, &engine_options);
        code = cli_open_engine(model, &engine_options, &engine);
    }
    const quantize_run run = {.user = j, .all_logits = 1, .after = judge_step};
    if (code == CLI_OK) code = j->row ? quantize_text_run(&j->text, engine, &run) : CLI_ENVIRONMENT;
    dsi_engine_close(engine);
    dsi_model_close(model);
    return code;
}

int quantize_compare(const cli_options *options, const char *made) {
    judged j = {.options = options, .text = {.max_tokens = MAX_TOKENS}, .kept = tmpfile()};
    if (!j.kept) return io_error();
    int code = judge_model(&j, 0, options->model);
    rewind(j.kept);
    if (code == CLI_OK) code = judge_model(&j, 1, made);
    cli_progress_clear();
    if (code == CLI_OK) {
        double n = (double)j.n_rows[1], n_losses = (double)j.n_losses,
               before = exp(j.loss[0] / n_losses), after = exp(j.loss[1] / n_losses);
        if (options->json)
            printf(", \"tokens\": %zu, \"perplexity\": [%.6g, %.6g], \"mean_kl\": %.6g, "
                   "\"top1\": %.6g",
                   j.text.n_tokens, before, after, j.kl / n, j.same / n);
        else
            printf(cli_tr("%zu tokens of %s: perplexity %.4f -> %.4f (%+.2f %%), mean KL %.2e, "
                          "same first choice %.1f %%\n",
                          "%zu 个 token（%s）：困惑度 %.4f -> %.4f（%+.2f %%），平均 KL %.2e，"
                          "首选一致 %.1f %%\n"),
                   j.text.n_tokens, options->text, before, after, 100 * (after / before - 1),
                   j.kl / n, 100 * j.same / n);
    }
    fclose(j.kept);
    quantize_text_free(&j.text);
    dsi_sys_free(j.row);
    return code;
}
