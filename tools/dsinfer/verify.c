/* verify.c: dsinfer verify: recorded tokens through the engine, its logits against recorded ones.
 */
#include "../../lib/base/sys.h"
#include "../../lib/model/model.h"
#include "cli.h"
#include "compare.h"
#include <errno.h>
#include <string.h>
#include <unistd.h>

typedef struct golden {
    dsi_checkpoint file;
    const char *path;
    int32_t *tokens, *greedy, *prompt; /* owned copies: data in the file may be misaligned */
    const uint8_t *logits;             /* f32 [n_tokens][n_vocab] in the file */
    uint32_t n_tokens, n_vocab, n_greedy, n_prompt;
} golden;

typedef struct verified {
    double *kl; /* [n_tokens] */
    float *row; /* one golden row */
    double max_abs, mean_kl, median_kl, top1;
    uint32_t n_same, greedy_match;
} verified;

static int golden_bad(const golden *file, const char *key, const char *why) {
    cli_error("%s: %s: %s", cli_show(file->path).text, key, why);
    cli_hint(cli_tr("needed: tokens I32 [T], logits F32 [T][vocab], greedy I32 [G]; T, G >= 1",
                    "需要：tokens I32 [T]、logits F32 [T][vocab]、greedy I32 [G]，T、G >= 1"));
    return CLI_BAD_FILE;
}

/* A list of token ids, every one below n_vocab. */
static int read_tokens(golden *file, const char *key, bool needed, int32_t **tokens,
                       uint32_t *n_tokens) {
    enum { LONGEST = 1 << 24 };
    const dsi_file_tensor *tensor = dsi_checkpoint_find(&file->file, key);
    if (tensor == NULL) return needed ? golden_bad(file, key, cli_tr("missing", "缺少")) : CLI_OK;
    if (tensor->dtype != DSI_DTYPE_I32 || tensor->n_dims != 1 || tensor->shape[0] < 1 ||
        tensor->shape[0] > LONGEST) {
        return golden_bad(file, key, cli_tr("not a list of I32", "不是 I32 列表"));
    }
    uint32_t n = (uint32_t)tensor->shape[0];
    *tokens = dsi_sys_calloc(n, sizeof **tokens);
    if (*tokens == NULL) {
        cli_error("%s", dsi_status_text(DSI_E_NOMEM));
        return CLI_ENVIRONMENT;
    }
    *n_tokens = n;
    memcpy(*tokens, dsi_checkpoint_data(&file->file, tensor), n * sizeof **tokens);
    for (uint32_t i = 0; i < n; i++) {
        int32_t id = (*tokens)[i];
        if (id >= 0 && (uint32_t)id < file->n_vocab) continue;
        char why[96];
        snprintf(why, sizeof why,
                 cli_tr("token %u is %d, the vocabulary has %u",
                        "第 %u 个 token 为 %d，而词表只有 %u 个"),
                 i, id, file->n_vocab);
        return golden_bad(file, key, why);
    }
    return CLI_OK;
}

static int golden_open(golden *file, const char *path, uint32_t n_vocab) {
    dsi_error error = {0};
    file->path = path;
    file->n_vocab = n_vocab;
    bool folder = dsi_sys_is_dir(path);
    if (folder || access(path, R_OK) != 0) {
        cli_error("--golden: %s: %s", cli_show(path).text, strerror(folder ? EISDIR : errno));
        cli_hint(cli_tr("give the path of a safetensors file that can be read",
                        "请给出可读的 safetensors 文件的路径"));
        return CLI_ENVIRONMENT;
    }
    dsi_status status = dsi_checkpoint_open_file(path, &file->file, &error);
    if (status != DSI_OK) {
        cli_error("--golden: %s", error.text);
        cli_hint(cli_tr("--golden takes a .safetensors file", "--golden 接受 .safetensors 文件"));
        return cli_status_exit(status);
    }
    int code = read_tokens(file, "tokens", true, &file->tokens, &file->n_tokens);
    if (code == CLI_OK) code = read_tokens(file, "greedy", true, &file->greedy, &file->n_greedy);
    if (code == CLI_OK) {
        code = read_tokens(file, "greedy_prompt", false, &file->prompt, &file->n_prompt);
    }
    if (code != CLI_OK) return code;
    const dsi_file_tensor *logits = dsi_checkpoint_find(&file->file, "logits");
    if (logits == NULL) return golden_bad(file, "logits", cli_tr("missing", "缺少"));
    if (logits->dtype != DSI_DTYPE_F32 || logits->n_dims != 2) {
        return golden_bad(file, "logits", cli_tr("not a table of F32", "不是 F32 表"));
    }
    if (logits->shape[0] != file->n_tokens || logits->shape[1] != n_vocab) {
        char why[160];
        snprintf(why, sizeof why,
                 cli_tr("shape [%lld, %lld]; %u tokens and the model's vocabulary want [%u, %u]",
                        "形状 [%lld, %lld]；%u 个 token 与模型词表要求 [%u, %u]"),
                 (long long)logits->shape[0], (long long)logits->shape[1], file->n_tokens,
                 file->n_tokens, n_vocab);
        return golden_bad(file, "logits", why);
    }
    file->logits = dsi_checkpoint_data(&file->file, logits);
    return CLI_OK;
}

static void golden_close(golden *file) {
    dsi_sys_free(file->tokens);
    dsi_sys_free(file->greedy);
    dsi_sys_free(file->prompt);
    dsi_checkpoint_close(&file->file);
}

/* Tokens of the longest timeline: the recorded text, and the greedy tokens behind it or behind
 * their own prompt. 0: more than 32 bits. */
static uint32_t context_needed(const golden *file) {
    uint64_t start = file->n_prompt == 0 ? file->n_tokens : file->n_prompt;
    uint64_t need = start + file->n_greedy;
    if (need < file->n_tokens) need = file->n_tokens;
    return need > UINT32_MAX ? 0 : (uint32_t)need;
}

static int open_session(dsi_engine *engine, uint32_t all_logits, dsi_session **session) {
    dsi_session_options options;
    dsi_session_options_init(&options);
    options.all_logits = all_logits;
    options.ignore_end = 1; /* a recorded answer may go on behind an end token */
    dsi_status status = dsi_session_open(engine, &options, session);
    return status == DSI_OK ? CLI_OK : cli_fail(status, NULL, cli_tr("session", "会话"));
}

static int compare_step(const golden *file, dsi_session *session, uint32_t *n_done,
                        verified *found) {
    const float *logits = NULL;
    size_t n_rows = 0, first = 0;
    dsi_status status = dsi_session_logits(session, &logits, &n_rows, &first);
    if (status != DSI_OK) return cli_fail(status, session, "logits");
    if (n_rows == 0 || first != *n_done || n_rows > file->n_tokens - *n_done) {
        cli_error("logits: %zu + %zu / %u", first, n_rows, *n_done);
        return cli_status_exit(DSI_E_INTERNAL);
    }
    for (size_t i = 0; i < n_rows; i++) {
        compared_row row;
        size_t n_vocab = file->n_vocab, at = first + i;
        memcpy(found->row, file->logits + at * n_vocab * sizeof(float), n_vocab * sizeof(float));
        if (!compare_rows(found->row, logits + i * n_vocab, n_vocab, &row)) {
            cli_error(cli_tr("%s: logits of token %zu are not finite",
                             "%s：第 %zu 个 token 的 logits 非有限"),
                      cli_show(file->path).text, at);
            return CLI_BAD_FILE;
        }
        found->kl[at] = row.kl;
        found->n_same += row.same_top;
        if (row.max_abs > found->max_abs) found->max_abs = row.max_abs;
    }
    *n_done += (uint32_t)n_rows;
    cli_progress(NULL, DSI_STAGE_PREFILL, *n_done, file->n_tokens);
    return CLI_OK;
}

static int compare_prompt(const golden *file, dsi_engine *engine, dsi_session *session,
                          verified *found) {
    dsi_status status = dsi_session_append(session, file->tokens, file->n_tokens);
    if (status != DSI_OK) return cli_fail(status, session, "tokens");
    for (uint32_t n_done = 0; n_done < file->n_tokens;) {
        dsi_session *sessions[1] = {session};
        size_t n_rows = 0;
        status = dsi_engine_step(engine, sessions, 1, &n_rows);
        if (status != DSI_OK) return cli_fail(status, engine, cli_tr("step", "计算"));
        int code = compare_step(file, session, &n_done, found);
        if (code != CLI_OK) return code;
    }
    found->mean_kl = compare_mean(found->kl, file->n_tokens);
    found->median_kl = compare_median(found->kl, file->n_tokens);
    found->top1 = (double)found->n_same / file->n_tokens;
    return CLI_OK;
}

/* Greedy tokens generated from our own tokens; counts how many at the start are the recorded. */
static int compare_greedy(const golden *file, dsi_session *session, verified *found) {
    for (uint32_t i = 0; i < file->n_greedy; i++) {
        int32_t token = -1;
        bool computed = i == 0 && dsi_session_n_queued(session) == 0;
        dsi_status status =
            computed ? dsi_session_sample(session, &token) : dsi_session_next(session, &token);
        if (status != DSI_OK) return cli_fail(status, session, "greedy");
        if (token != file->greedy[i]) break;
        found->greedy_match++;
    }
    return CLI_OK;
}

static int compare_all(const golden *file, dsi_engine *engine, verified *found) {
    dsi_session *session = NULL;
    int code = open_session(engine, 1, &session);
    if (code == CLI_OK) code = compare_prompt(file, engine, session, found);
    if (code == CLI_OK && file->n_prompt != 0) {
        dsi_session_close(session);
        session = NULL;
        code = open_session(engine, 0, &session);
        if (code == CLI_OK) {
            dsi_status status = dsi_session_append(session, file->prompt, file->n_prompt);
            if (status != DSI_OK) code = cli_fail(status, session, "greedy_prompt");
        }
    }
    if (code == CLI_OK) code = compare_greedy(file, session, found);
    dsi_session_close(session);
    return code;
}

/* One line per figure: value, limit, verdict. A limit below 0 is none. */
static bool judge(const char *name, double value, double limit, bool at_most, bool print) {
    bool pass = limit < 0 || (at_most ? value <= limit : value >= limit);
    if (!print) return pass;
    printf("  %-14s %-12.4g ", name, value);
    if (limit < 0) {
        printf("%s\n", "-");
    } else {
        printf("%s %-10.4g %s\n", at_most ? "<=" : ">=", limit, pass ? "PASS" : "FAIL");
    }
    return pass;
}

/* The limits of the two activation types: f32 must reproduce, bf16 must stay near (near-tied
 * experts flip by rounding, so single rows may be far while the median is not). */
static bool judge_all(const cli_options *options, const golden *file, const verified *found) {
    bool f32 = options->activations == DSI_ACTIVATIONS_F32, print = !options->json;
    bool bf16 = options->activations == DSI_ACTIVATIONS_BF16;
    double max_mean = options->max_mean_kl >= 0 ? options->max_mean_kl : f32 ? 1e-6 : 5e-2;
    double min_top1 = options->min_top1 >= 0 ? options->min_top1 : bf16 ? 0.85 : -1;
    if (print) {
        const char *const types[] = {"bf16", "f32", "a8", "e4m3"};
        printf("%s: %u tok, %s\n", cli_show(file->path).text, file->n_tokens,
               types[options->activations]);
    }
    bool pass = judge("mean_kl", found->mean_kl, max_mean, true, print);
    pass = judge("median_kl", found->median_kl, bf16 ? 2e-3 : -1, true, print) && pass;
    pass = judge("max_abs", found->max_abs, -1, true, print) && pass;
    pass = judge("top1", found->top1, min_top1, false, print) && pass;
    pass = judge("greedy_match", found->greedy_match, f32 ? (double)file->n_greedy : -1, false,
                 print) &&
           pass;
    if (print) printf("%s\n", pass ? "PASS" : "FAIL");
    return pass;
}

static void print_json(const golden *file, const verified *found, bool ok) {
    cli_json_begin(stdout);
    printf(", \"tokens\": %u, \"max_abs\": ", file->n_tokens);
    cli_json_number(stdout, found->max_abs);
    fputs(", \"mean_kl\": ", stdout);
    cli_json_number(stdout, found->mean_kl);
    fputs(", \"median_kl\": ", stdout);
    cli_json_number(stdout, found->median_kl);
    fputs(", \"top1\": ", stdout);
    cli_json_number(stdout, found->top1);
    printf(", \"greedy_match\": %u, \"greedy_total\": %u, \"ok\": %s}\n", found->greedy_match,
           file->n_greedy, ok ? "true" : "false");
}

static int verify_model(const cli_options *options, dsi_model *model, const dsi_model_info *info) {
    golden file;
    verified found;
    memset(&file, 0, sizeof file);
    memset(&found, 0, sizeof found);
    dsi_engine *engine = NULL;
    int code = golden_open(&file, options->golden, info->vocab_size);
    uint32_t need = code == CLI_OK ? context_needed(&file) : 1;
    if (need == 0 || need > info->max_context) {
        cli_error(
            cli_tr("%s: %u tokens, the model's context is %u", "%s：%u 个 token，模型上下文为 %u"),
            cli_show(options->golden).text, need, info->max_context);
        code = CLI_BAD_FILE;
    }
    if (code == CLI_OK) {
        dsi_engine_options engine_options;
        cli_engine_options(options, info, need, &engine_options);
        code = cli_open_engine(model, &engine_options, &engine);
    }
    if (code == CLI_OK) {
        found.kl = dsi_sys_calloc(file.n_tokens, sizeof *found.kl);
        found.row = dsi_sys_calloc(file.n_vocab, sizeof *found.row);
        if (found.kl == NULL || found.row == NULL) {
            cli_error("%s", dsi_status_text(DSI_E_NOMEM));
            code = CLI_ENVIRONMENT;
        }
    }
    if (code == CLI_OK) {
        cli_say("%s", dsi_engine_describe(engine));
        code = compare_all(&file, engine, &found);
    }
    if (code == CLI_OK) {
        code = judge_all(options, &file, &found) ? CLI_OK : CLI_FAILED;
        if (options->json) print_json(&file, &found, code == CLI_OK);
    }
    dsi_sys_free(found.kl);
    dsi_sys_free(found.row);
    dsi_engine_close(engine);
    golden_close(&file);
    return code;
}

int cli_verify(const cli_options *options) {
    int code = cli_need_model(options);
    if (code != CLI_OK) return code;
    if (options->golden == NULL && options->manifest == NULL && options->write_manifest == NULL) {
        cli_error(cli_tr("no golden file and no manifest was named", "没有指定标准答案文件或清单"));
        cli_hint(cli_tr("give --golden FILE.safetensors, --manifest FILE or --write-manifest FILE",
                        "用 --golden FILE.safetensors、--manifest FILE 或 --write-manifest FILE"));
        return CLI_USAGE;
    }
    if (options->write_manifest != NULL && (options->golden != NULL || options->manifest != NULL)) {
        cli_error(cli_tr("--write-manifest stands alone", "--write-manifest 须单独使用"));
        cli_hint(cli_tr("check in a second call", "请另行核对"));
        return CLI_USAGE;
    }
    if (options->write_manifest != NULL) return cli_write_manifest(options);
    if (options->golden == NULL) return cli_check_manifest(options, true);
    dsi_model *model = NULL;
    dsi_model_info info;
    code = cli_open_model(options, &model, &info);
    if (code != CLI_OK) return code;
    code = verify_model(options, model, &info);
    dsi_model_close(model);
    return code;
}
