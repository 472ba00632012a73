/* quantize.c: dsinfer quantize: a model's matrices in fewer bits, shard by shard, in memory for
 * some rows of one matrix. A run that was killed is taken up by giving the same command again, and
 * writes the same bytes. */
#include "quantize_calibrate.h"

#include "../../kernels/formats.h"
#include "../../lib/base/sys.h"
#include "../../lib/base/topology.h"
#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <string.h>
#include <unistd.h>

enum { COPY_BYTES = 64 << 20, NO_TENSOR = -1 };

typedef struct quantizer {
    const cli_options *options;
    dsi_checkpoint from;
    dsi_config config;
    quantize_plan plan;
    quantize_output out;
    dsi_pool *pool;
    int64_t (*made)[3]; /* [n_tensors of the source] places in plan.tensors, NO_TENSOR: none */
    uint8_t *room;      /* room_bytes of each thread */
    uint64_t room_bytes;
    double (*lost)[2]; /* [units of the largest matrix] */
    uint64_t n_bytes_done, n_bytes_began;
    quantize_calibration calibration;
    quantize_factor factors[2];
    uint8_t *feedback_room; /* quantize_feedback_room() of each thread, from a multiple of 64 on */
    uint32_t n_calibrated;
    char calibration_path[4096];
    /* the job of the pool: one matrix */
    const dsi_file_tensor *weight;
    const quantize_tensor *first, *scales;
    const quantize_factor *factor; /* NULL: nothing is known of what it multiplies */
    int64_t n_units;               /* blocks of rows, or heads */
    int write_error;               /* errno of a thread; 0: none */
} quantizer;

static int no_memory(void) {
    cli_error("%s", dsi_status_text(DSI_E_NOMEM));
    return CLI_ENVIRONMENT;
}

/* ---- One matrix ----------------------------------------------------------------------------- */

static void write_piece(quantizer *q, const void *data, uint64_t n_bytes, uint64_t offset) {
    if (quantize_write(&q->out, data, n_bytes, offset) != 0) q->write_error = errno;
}

static void *room_for_feedback(const quantizer *q, uint32_t thread) {
    uintptr_t begin = (uintptr_t)q->feedback_room;
    return q->feedback_room + (63 - (begin + 63) % 64) + thread * quantize_feedback_room();
}

/* Rows [r, r + n) as codes and scales, or as BF16. */
static void do_block(quantizer *q, float *x, int64_t r, int64_t n, uint32_t thread) {
    const int64_t k = q->weight->shape[1];
    uint8_t *codes = (uint8_t *)(x + QUANTIZE_BLOCK * k);
    uint8_t *scales = codes + 2 * QUANTIZE_BLOCK * k; /* BF16 is the widest */
    quantize_read_rows(&q->plan, q->weight, r, n, x);
    if (q->first->role == QUANTIZE_BF16) {
        uint16_t *half = (uint16_t *)(void *)codes;
        for (int64_t i = 0; i < n * k; i++) half[i] = dsi_f32_to_bf16(x[i]);
        write_piece(q, half, (uint64_t)(n * k) * 2, q->first->offset + (uint64_t)(r * k) * 2);
        return;
    }
    const quantize_form *form = q->plan.form;
    const uint64_t code_bytes = (uint64_t)quantize_code_bytes(form, k);
    const dsi_scale_span span = dsi_scale_span_of(form->scale_kind, form->scale_group, k);
    const uint64_t scale_row = (uint64_t)q->scales->shape[1] * dsi_dtype_bytes(form->scale_dtype);
    const uint64_t n_scale_rows = (uint64_t)dsi_ceil_div(n, span.n);
    if (q->factor)
        quantize_rows_with(&q->plan, q->factor, x, n, k, codes, scales, q->lost[r / QUANTIZE_BLOCK],
                           room_for_feedback(q, thread));
    else
        quantize_rows(&q->plan, x, n, k, codes, scales, q->lost[r / QUANTIZE_BLOCK]);
    write_piece(q, codes, (uint64_t)n * code_bytes, q->first->offset + (uint64_t)r * code_bytes);
    write_piece(q, scales, n_scale_rows * scale_row,
                q->scales->offset + (uint64_t)(r / span.n) * scale_row);
}

/* Unit `unit` of a tensor of a GGUF. */
static void do_unit(quantizer *q, float *x, int64_t unit, uint32_t thread) {
    uint8_t *packed = (uint8_t *)x + q->room_bytes / 2;
    quantize_unit u = quantize_gguf_read(&q->plan, q->first, unit, x, (float *)(void *)packed);
    const uint64_t row = (uint64_t)dsi_row_bytes(q->first->dtype, u.k);
    if (q->factor)
        quantize_pack_with(&q->plan, q->factor, x, u.n, u.k, packed, q->lost[unit],
                           room_for_feedback(q, thread));
    else
        quantize_pack(&q->plan, q->first->dtype, x, u.n, u.k, packed, q->lost[unit]);
    write_piece(q, packed, (uint64_t)u.n * row, q->first->offset + (uint64_t)u.first * row);
}

static void do_matrix(void *context, uint32_t thread, uint32_t n_threads) {
    quantizer *q = context;
    uint64_t begin, end;
    float *x = (float *)(void *)(q->room + thread * q->room_bytes);
    dsi_pool_share((uint64_t)q->n_units, 1, thread, n_threads, &begin, &end);
    for (int64_t b = (int64_t)begin; b < (int64_t)end; b++) {
        const int64_t r = b * QUANTIZE_BLOCK;
        if (q->first->role >= QUANTIZE_ROWS)
            do_unit(q, x, b, thread);
        else
            do_block(q, x, r, dsi_min_i64(QUANTIZE_BLOCK, q->weight->shape[0] - r), thread);
    }
}

/* What is known of the inputs of q->weight; false: no memory. */
static bool look_at_inputs(quantizer *q) {
    bool four_bits = q->first->role == QUANTIZE_CODES ||
                     (q->first->role >= QUANTIZE_ROWS && q->first->dtype == DSI_DTYPE_Q4_K);
    bool no_memory = false;
    q->factor = NULL;
    if (!q->calibration.n_tokens || !four_bits) return true;
    q->factor = quantize_factor_of(q->factors, &q->calibration, q->weight, q->pool, &no_memory);
    q->n_calibrated += q->factor != NULL;
    return !no_memory;
}

/* Makes q->first of q->weight; the sums of the units in their order: the same numbers for any
 * number of threads. */
static int make_tensor(quantizer *q, double sums[2]) {
    if (!look_at_inputs(q)) return no_memory();
    const bool blocks = q->first->role >= QUANTIZE_ROWS;
    q->n_units = blocks ? quantize_gguf_units(&q->plan, q->first)
                        : dsi_ceil_div(q->weight->shape[0], QUANTIZE_BLOCK);
    dsi_pool_run(q->pool, do_matrix, q);
    bool plain = q->first->role == QUANTIZE_BF16 || (blocks && q->first->dtype < DSI_DTYPE_BLOCKS);
    for (int64_t b = 0; b < q->n_units && !plain; b++)
        for (int i = 0; i < 2; i++) sums[i] += q->lost[b][i];
    return CLI_OK;
}

static int copy_tensor(quantizer *q, const quantize_tensor *t) {
    const uint8_t *data = dsi_checkpoint_data(&q->from, q->weight);
    for (uint64_t at = 0; at < t->n_bytes; at += COPY_BYTES) {
        uint64_t n = t->n_bytes - at < COPY_BYTES ? t->n_bytes - at : COPY_BYTES;
        write_piece(q, data + at, n, t->offset + at);
        cli_progress(NULL, CLI_STAGE_QUANTIZE, q->n_bytes_done + at, q->plan.n_bytes_in);
    }
    return CLI_OK;
}

/* All that source tensor i becomes. */
static int do_tensor(quantizer *q, uint32_t i) {
    const quantize_tensor *tensors = q->plan.tensors;
    double sums[2] = {0, 0}, error = -1;
    uint64_t n_written = 0;
    int code = CLI_OK;
    q->weight = &q->from.tensors[i];
    q->first = q->scales = NULL;
    for (int j = 0; j < 3 && q->made[i][j] != NO_TENSOR; j++) {
        const quantize_tensor *t = &tensors[q->made[i][j]];
        n_written += t->n_bytes;
        if (t->role == QUANTIZE_COPY) copy_tensor(q, t);
        if (t->role >= QUANTIZE_ROWS) {
            q->first = t;
            if (code == CLI_OK) code = make_tensor(q, sums);
            q->first = NULL;
        }
        if (t->role == QUANTIZE_CODES || t->role == QUANTIZE_BF16) q->first = t;
        if (t->role == QUANTIZE_SCALES) q->scales = t;
        if (t->role == QUANTIZE_SHAPE) write_piece(q, q->weight->shape, 16, t->offset);
    }
    if (q->first) code = make_tensor(q, sums);
    if (code != CLI_OK) return code;
    if (sums[1] > 0) error = sqrt(sums[0] / sums[1]);
    if (!isfinite(sums[0] + sums[1])) {
        cli_error(
            cli_tr("%s: tensor \"%s\" has numbers that are not finite", "%s：张量“%s”含有非有限数"),
            q->from.shards[q->weight->shard].path, cli_show(q->weight->name).text);
        return CLI_BAD_FILE;
    }
    if (q->write_error) {
        errno = q->write_error;
        cli_error(cli_tr("cannot write to %s: %s", "无法写入 %s：%s"), cli_show(q->out.folder).text,
                  strerror(q->write_error));
        cli_hint(cli_tr("free some space and run the same command again: it goes on from here",
                        "请腾出空间后重新运行同一命令：会从此处继续"));
        return CLI_ENVIRONMENT;
    }
    dsi_sys_drop_file_pages(&q->from.shards[q->weight->shard].map, q->weight->file_offset,
                            q->weight->n_bytes);
    return quantize_note(&q->out, i, error, n_written);
}

/* ---- All of them ---------------------------------------------------------------------------- */

static int do_shard(quantizer *q, uint32_t shard, bool whole) {
    int code = CLI_OK;
    for (uint32_t i = 0; i < q->from.n_tensors && code == CLI_OK; i++) {
        const dsi_file_tensor *t = &q->from.tensors[i];
        if (t->shard != shard) continue;
        if (!whole && !q->out.done[i]) code = do_tensor(q, i);
        q->n_bytes_done += t->n_bytes;
        cli_progress(NULL, CLI_STAGE_QUANTIZE, q->n_bytes_done, q->plan.n_bytes_in);
    }
    return code;
}

/* A file of the output: of one shard, or, a GGUF, of all of them. */
static int do_file(quantizer *q, uint32_t file) {
    bool whole = false;
    int code = quantize_open_file(&q->plan, file, &q->out, &whole);
    for (uint32_t shard = 0; shard < q->from.n_shards && code == CLI_OK; shard++)
        if (q->plan.form->blocks || shard == file) code = do_shard(q, shard, whole);
    return code != CLI_OK || whole ? code : quantize_close_file(&q->plan, file, &q->out);
}

/* Bytes that a thread needs for a weight: f32 rows, codes or BF16, scales (four bytes for 32
 * columns at most); of a GGUF the rows or a head twice, as f32 at most. */
static uint64_t room_of(const quantizer *q, const dsi_file_tensor *t) {
    uint64_t k = (uint64_t)t->shape[t->n_dims - 1], rows = t->n_dims == 2 ? QUANTIZE_BLOCK : 1;
    uint64_t head = q->config.qk_nope_head_dim + q->config.v_head_dim;
    if (q->plan.form->blocks) return 2 * (k * (rows > head ? rows : head) * sizeof(float) + 64);
    return k * rows * (4 + 2) + (k / 32 + 1) * rows * 4 + 64;
}

static int allocate(quantizer *q) {
    int64_t units = q->config.n_heads;
    q->made = dsi_sys_calloc(q->from.n_tensors, sizeof *q->made);
    if (!q->made) return no_memory();
    for (uint32_t i = 0; i < q->from.n_tensors; i++) {
        const dsi_file_tensor *t = &q->from.tensors[i];
        for (int j = 0; j < 3; j++) q->made[i][j] = NO_TENSOR;
        if (t->n_dims != 2 && !(t->n_dims == 1 && q->plan.form->blocks)) continue;
        uint64_t room = room_of(q, t);
        if (room > q->room_bytes) q->room_bytes = (room + 127) / 128 * 128;
        units = dsi_max_i64(units, dsi_ceil_div(t->shape[0], QUANTIZE_BLOCK));
    }
    for (uint32_t k = 0; k < q->plan.n_tensors; k++) {
        int j = 0;
        while (q->made[q->plan.tensors[k].source][j] != NO_TENSOR) j++;
        q->made[q->plan.tensors[k].source][j] = k;
    }
    q->room = dsi_sys_calloc(q->room_bytes, dsi_pool_size(q->pool));
    q->lost = dsi_sys_calloc((uint64_t)units, sizeof *q->lost);
    return q->room && q->lost ? CLI_OK : no_memory();
}

/* ---- What was lost -------------------------------------------------------------------------- */

typedef struct kind_of_matrix { /* matrices of one name in all layers and experts */
    char name[64];
    uint32_t n;
    double sum, worst;
} kind_of_matrix;

/* "mlp.experts.gate_proj": the name without numbers, "model.layers" and ".weight". */
static void kind_name(const char *name, char kind[64]) {
    size_t n = 0;
    if (strncmp(name, "model.", 6) == 0) name += 6;
    if (strncmp(name, "layers.", 7) == 0) name += 6;
    for (const char *c = name; *c && n < 63; c++) {
        if (*c >= '0' && *c <= '9') continue;
        if (*c == '.' && (n == 0 || kind[n - 1] == '.')) continue;
        kind[n++] = *c;
    }
    kind[n] = 0;
    char *tail = strstr(kind, ".weight");
    if (tail) *tail = 0;
}

static void print_errors(const quantizer *q) {
    kind_of_matrix kinds[32];
    uint32_t n_kinds = 0;
    for (uint32_t i = 0; i < q->from.n_tensors; i++) {
        char kind[64];
        double error = (double)q->out.errors[i];
        uint32_t k = 0;
        if (error < 0) continue;
        kind_name(q->from.tensors[i].name, kind);
        while (k < n_kinds && strcmp(kinds[k].name, kind) != 0) k++;
        if (k == sizeof kinds / sizeof kinds[0]) continue;
        if (k == n_kinds) {
            kinds[n_kinds] = (kind_of_matrix){0};
            memcpy(kinds[n_kinds++].name, kind, sizeof kind);
        }
        kinds[k].n++;
        kinds[k].sum += error * error;
        if (error > kinds[k].worst) kinds[k].worst = error;
    }
    printf("  %-32s %8s %12s %12s\n", cli_tr("matrices", "矩阵"), cli_tr("number", "数量"),
           cli_tr("error", "误差"), cli_tr("worst", "最大"));
    for (uint32_t k = 0; k < n_kinds; k++)
        printf("  %-32s %8u %11.3f%% %11.3f%%\n", kinds[k].name, kinds[k].n,
               100 * sqrt(kinds[k].sum / kinds[k].n), 100 * kinds[k].worst);
}

static void print_json(const quantizer *q, double seconds) {
    const char *comma = "";
    cli_json_begin(stdout);
    printf(", \"form\": \"%s\", \"bytes_in\": %" PRIu64 ", \"bytes_out\": %" PRIu64
           ", \"seconds\": %.3f, \"errors\": {",
           q->plan.form->name, q->plan.n_bytes_in, q->plan.n_bytes_out, seconds);
    for (uint32_t i = 0; i < q->from.n_tensors; i++) {
        if (q->out.errors[i] < 0) continue;
        printf("%s\"%s\": %.6g", comma, q->from.tensors[i].name, (double)q->out.errors[i]);
        comma = ", ";
    }
    printf("}");
}

static void report(const quantizer *q, double seconds) {
    uint64_t n = q->plan.n_bytes_in - q->n_bytes_began;
    if (q->options->json) {
        print_json(q, seconds);
        return;
    }
    printf(cli_tr("%s: %s in %s, %u of %u tensors in %s, %s in %.1f s (%.2f GB/s read)\n",
                  "%s：%s，%s，%u/%u 个张量转为 %s，本次处理 %s，用时 %.1f 秒（读取 %.2f GB/s）\n"),
           q->out.folder, cli_bytes_text(q->plan.n_bytes_out).text,
           q->plan.form->blocks ? cli_tr("one GGUF", "单个 GGUF")
                                : cli_tr("shards as the source's", "分片同源模型"),
           q->plan.n_quantised, q->from.n_tensors, q->plan.form->name, cli_bytes_text(n).text,
           seconds, seconds > 0 ? (double)n / seconds / 1e9 : 0);
    print_errors(q);
    if (q->n_calibrated)
        printf(cli_tr("%u matrices calibrated on %u tokens of %s\n",
                      "%u 个矩阵按 %u 个 token（%s）校准\n"),
               q->n_calibrated, (uint32_t)q->calibration.n_tokens, q->options->calibrate);
    if (q->plan.n_wide)
        printf(cli_tr("%u tensors have rows that %s cannot divide: they are wider\n",
                      "%u 个张量的行长不是 %s 块长的整数倍：改用更宽的类型\n"),
               q->plan.n_wide, q->plan.form->name);
    if (q->plan.form->blocks && q->config.n_mtp_layers)
        printf("%s\n", cli_tr("the MTP block is left out, as llama.cpp's converter does",
                              "MTP 层未写入，与 llama.cpp 的转换程序一致"));
}

/* ---- The command ---------------------------------------------------------------------------- */

/* --keep: part of a name, of characters that the loader's patterns know. */
static int choose_kept(const cli_options *options, const quantize_form *form, const char **keep) {
    *keep = options->keep ? options->keep : form->keep;
    if (*keep && strcmp(*keep, "none") == 0) *keep = NULL;
    size_t n = *keep ? strlen(*keep) : 1;
    if (n >= 1 && n <= 128 &&
        (!*keep || strspn(*keep, "abcdefghijklmnopqrstuvwxyz"
                                 "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.") == n))
        return CLI_OK;
    cli_error(cli_tr("--keep \"%s\": 1 to 128 letters, digits, _ and . of a tensor's name",
                     "--keep“%s”：须为张量名中 1 到 128 个字母、数字、_ 或 ."),
              cli_show(*keep).text);
    cli_hint(cli_tr("for example --keep self_attn, or --keep none",
                    "例如 --keep self_attn，或 --keep none"));
    return CLI_USAGE;
}

static int check_out(const cli_options *options, const quantize_form *form) {
    bool four_bits = form->dtype == DSI_DTYPE_I4 || form->blocks == DSI_DTYPE_Q4_K;
    if (options->calibrate && !four_bits) {
        cli_error(
            cli_tr("--calibrate is for four bits, not for %s", "--calibrate 用于 4 位，不用于 %s"),
            form->name);
        cli_hint(cli_tr("leave it out: eight bits lose too little to be made up",
                        "请去掉：8 位的损失太小，无需补偿"));
        return CLI_USAGE;
    }
    if (dsi_is_gguf_name(options->out) == (form->blocks != DSI_DTYPE_NONE)) return CLI_OK;
    if (form->blocks) {
        cli_error(cli_tr("--to %s writes one file; --out %s does not end in .gguf",
                         "--to %s 写出单个文件；--out %s 不以 .gguf 结尾"),
                  form->name, cli_show(options->out).text);
        cli_hint(cli_tr("for example --out MODEL-%s.gguf", "例如 --out MODEL-%s.gguf"), form->name);
    } else {
        cli_error(cli_tr("--to %s writes a folder; --out %s is the name of a GGUF file",
                         "--to %s 写出目录；--out %s 是 GGUF 文件名"),
                  form->name, cli_show(options->out).text);
        cli_hint(cli_tr("for a GGUF give --to q8_0 or q4_k", "要 GGUF 请用 --to q8_0 或 q4_k"));
    }
    return CLI_USAGE;
}

/* The loader's own checks: what opens here opens as a model. */
static int open_source(quantizer *q) {
    dsi_error error = {0};
    dsi_weights weights = {0};
    const char *path = q->options->model;
    if (dsi_is_gguf_name(path)) {
        cli_error(cli_tr("%s: a GGUF file cannot be quantised again", "%s：GGUF 文件不能再次量化"),
                  cli_show(path).text);
        cli_hint(cli_tr("start from the FP8 or BF16 checkpoint", "请从 FP8 或 BF16 模型开始"));
        return CLI_BAD_FILE;
    }
    dsi_status status = dsi_config_load(path, &q->config, &error);
    if (status == DSI_OK) status = dsi_checkpoint_open(path, NULL, NULL, &q->from, &error);
    if (status == DSI_OK) status = dsi_weights_bind(&q->from, &q->config, &weights, &error);
    dsi_weights_free(&weights);
    if (status == DSI_OK) return CLI_OK;
    cli_error("%s", error.text);
    return cli_status_exit(status);
}

/* Once for all the runs that it may take: the rows lie in a file until the output is whole. */
static int calibrate(quantizer *q) {
    const char *tail = q->plan.form->blocks ? ".calibration" : "/quantize.calibration";
    if (q->out.n_done == q->from.n_tensors) return CLI_OK; /* there was only to finish it */
    int n =
        snprintf(q->calibration_path, sizeof q->calibration_path, "%s%s", q->options->out, tail);
    if (n < 0 || (size_t)n >= sizeof q->calibration_path) {
        cli_error(cli_tr("--out: the path is too long", "--out：路径过长"));
        return CLI_USAGE;
    }
    q->feedback_room = dsi_sys_calloc(dsi_pool_size(q->pool), quantize_feedback_room());
    if (!q->feedback_room) return no_memory();
    int code =
        quantize_calibration_open(&q->calibration, q->options, &q->plan, q->calibration_path);
    if (code != CLI_OK && q->out.n_done == 0) quantize_discard_output(&q->plan, &q->out);
    return code;
}

static int make_all(quantizer *q, const quantize_form *form, const char *keep) {
    dsi_error error = {0};
    uint32_t n_threads = q->options->threads ? q->options->threads : dsi_sys_cpu_count();
    uint64_t sum = 0;
    int code = q->options->calibrate ? quantize_text_sum(q->options->calibrate, &sum) : CLI_OK;
    if (code != CLI_OK) return code;
    dsi_status status = quantize_plan_make(&q->from, &q->config, form, keep, &q->plan, &error);
    q->plan.calibration_sum = sum;
    if (status == DSI_OK) status = dsi_pool_new(n_threads, NULL, &q->pool, &error);
    if (status != DSI_OK) {
        cli_error("%s", error.text);
        return cli_status_exit(status);
    }
    code = allocate(q);
    if (code == CLI_OK) code = quantize_open_output(&q->plan, q->options->out, &q->out);
    for (uint32_t i = 0; i < q->from.n_tensors && code == CLI_OK; i++)
        if (q->out.done[i]) q->n_bytes_began += q->from.tensors[i].n_bytes;
    if (code == CLI_OK && q->n_bytes_began)
        cli_say(cli_tr("going on with %s: %s of %s are there", "继续 %s：已完成 %s / %s"),
                cli_show(q->options->out).text, cli_bytes_text(q->n_bytes_began).text,
                cli_bytes_text(q->plan.n_bytes_in).text);
    double start = dsi_sys_seconds();
    if (code == CLI_OK && q->options->calibrate) code = calibrate(q);
    for (uint32_t file = 0; file < q->plan.n_files && code == CLI_OK; file++)
        code = do_file(q, file);
    if (code == CLI_OK && q->calibration.n_tokens) unlink(q->calibration_path);
    if (code == CLI_OK) code = quantize_finish(&q->plan, &q->out);
    cli_progress_clear();
    if (code == CLI_OK) report(q, dsi_sys_seconds() - start);
    return code;
}

int cli_quantize(const cli_options *options) {
    quantizer q = {.options = options, .out = {.journal = -1, .file = -1}};
    int code = cli_need_model(options);
    if (code != CLI_OK) return code;
    if (!options->to || !options->out) {
        cli_error(cli_tr("--to FORM and --out DIR are needed", "需要 --to FORM 与 --out DIR"));
        cli_hint(
            cli_tr("for example --to int8 --out MODEL-int8", "例如 --to int8 --out MODEL-int8"));
        return CLI_USAGE;
    }
    const quantize_form *form = quantize_form_find(options->to);
    const char *keep = NULL;
    code = choose_kept(options, form, &keep);
    if (code == CLI_OK) code = check_out(options, form);
    if (code == CLI_OK) code = open_source(&q);
    if (code == CLI_OK) code = make_all(&q, form, keep);
    quantize_close_output(&q.out);
    quantize_plan_free(&q.plan);
    dsi_checkpoint_close(&q.from);
    dsi_config_free(&q.config);
    quantize_calibration_close(&q.calibration);
    quantize_factors_free(q.factors);
    dsi_sys_free(q.feedback_room);
    dsi_pool_free(q.pool);
    dsi_sys_free(q.made);
    dsi_sys_free(q.room);
    dsi_sys_free(q.lost);
    if (code == CLI_OK && options->text) code = quantize_compare(options, options->out);
    if (code == CLI_OK && options->json) printf("}\n");
    return code;
}
