/* quantize_calibrate.c: what the matrices of a model multiply when it reads a text. The rows lie in
 * a file beside the output, BF16 as the model computes with them, until the run is done; what
 * stands between two matrices of a feed-forward is computed again from them. */
#include "quantize_calibrate.h"

#include "../../kernels/formats.h"
#include "../../kernels/kernels.h"
#include "../../lib/base/convert.h"
#include "../../lib/base/sys.h"
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum {
    MAX_TOKENS = 4096,
    MAX_PART = 512,
    HEADER_BYTES = 64,
    PATH_BYTES = 4096,
    HIDDEN_COLUMNS = 8
};
static const char magic[8] = "dsiquant";

/* ---- The file ------------------------------------------------------------------------------- */

/* Columns of one kind of rows; 0: the model has none. Logits of routers are F32. */
static uint64_t width_of(const dsi_config *c, uint32_t kind) {
    bool mla = c->arch->attention == DSI_ATTENTION_MLA;
    switch (kind) {
    case QUANTIZE_QUERIES:
        return mla ? c->q_lora_rank : 0;
    case QUANTIZE_LATENTS:
        return mla ? c->kv_lora_rank : 0;
    case QUANTIZE_ATTENTION:
        return (uint64_t)c->n_heads * (mla ? c->v_head_dim : c->head_dim);
    case QUANTIZE_LOGITS:
        return c->n_routed_experts;
    default:
        return c->hidden_size;
    }
}
static uint64_t row_bytes(const dsi_config *c, uint32_t kind) {
    return width_of(c, kind) * (kind == QUANTIZE_LOGITS ? 4 : 2);
}

/* Where the rows of a kind in a layer begin. */
static uint64_t place_of(const dsi_config *c, uint64_t n_tokens, uint32_t layer, uint32_t kind) {
    uint64_t all = 0, before = 0;
    for (uint32_t k = 0; k < QUANTIZE_KINDS; k++) {
        if (k == kind) before = all;
        all += row_bytes(c, k);
    }
    return HEADER_BYTES + n_tokens * (layer * all + before);
}

/* ---- Writing: the model reads the text ------------------------------------------------------- */

typedef struct recorder {
    const dsi_config *config;
    uint64_t n_tokens;
    size_t at; /* token of the step's first row */
    int file, error;
    uint16_t *half;
    uint64_t n_half; /* room in it */
} recorder;

static void put_rows(recorder *r, uint32_t layer, uint32_t kind, const float *values, size_t n_rows,
                     size_t n) {
    const uint64_t bytes = row_bytes(r->config, kind), count = (uint64_t)n_rows * n;
    const void *from = values;
    if (n != width_of(r->config, kind) || layer >= r->config->n_layers) return;
    if (kind != QUANTIZE_LOGITS) {
        if (count > r->n_half) {
            uint16_t *more = dsi_sys_realloc(r->half, count, sizeof *more);
            if (!more) r->error = ENOMEM;
            if (!more) return;
            r->half = more;
            r->n_half = count;
        }
        for (uint64_t i = 0; i < count; i++) r->half[i] = dsi_f32_to_bf16(values[i]);
        from = r->half;
    }
    uint64_t offset = place_of(r->config, r->n_tokens, layer, kind) + r->at * bytes;
    if (pwrite(r->file, from, n_rows * bytes, (off_t)offset) != (ssize_t)(n_rows * bytes))
        r->error = errno ? errno : EIO;
}

static void on_rows(void *user, const char *name, int32_t layer, const float *values, size_t n_rows,
                    size_t n) {
    static const char *const names[QUANTIZE_KINDS] = {
        "input_layernorm", "self_attn.q_a_layernorm",  "self_attn.kv_a_layernorm",
        "self_attn",       "post_attention_layernorm", "mlp.gate"};
    recorder *r = user;
    for (uint32_t kind = 0; kind < QUANTIZE_KINDS && layer >= 0; kind++)
        if (strcmp(names[kind], name) == 0) put_rows(r, (uint32_t)layer, kind, values, n_rows, n);
}
static void on_step(void *user, size_t token) { ((recorder *)user)->at = token; }

static int record(recorder *r, const cli_options *given) {
    cli_options options = *given;
    dsi_model *model = NULL;
    dsi_model_info info = {0};
    dsi_engine *engine = NULL;
    dsi_engine_options engine_options;
    quantize_text text = {.max_tokens = MAX_TOKENS};
    options.activations = DSI_ACTIVATIONS_BF16;
    int code = cli_open_model(&options, &model, &info);
    const uint32_t part = info.max_context < MAX_PART ? info.max_context : MAX_PART;
    if (code == CLI_OK)
        code = quantize_text_read(model, options.calibrate, "--calibrate", part, &text);
    r->n_tokens = text.n_tokens;
    if (code == CLI_OK) {
        cli_engine_options(&options, &info, part, &engine_options);
        code = cli_open_engine(model, &engine_options, &engine);
    }
    if (code == CLI_OK && dsi_engine_set_tap(engine, on_rows, r) != DSI_OK)
        code = cli_fail(DSI_E_NOMEM, engine, "--calibrate");
    const quantize_run run = {.user = r, .before = on_step};
    if (code == CLI_OK) code = quantize_text_run(&text, engine, &run);
    cli_progress_clear();
    dsi_engine_close(engine);
    dsi_model_close(model);
    quantize_text_free(&text);
    dsi_sys_free(r->half);
    return code;
}

static int io_error(const char *path, int reason) {
    cli_error("%s: %s", cli_show(path).text, strerror(reason));
    return CLI_ENVIRONMENT;
}

/* The whole file, or none. */
static int write_file(const cli_options *options, const dsi_config *config, const char *path) {
    char part[PATH_BYTES + 8], header[HEADER_BYTES] = {0};
    snprintf(part, sizeof part, "%s.part", path);
    recorder r = {.config = config};
    r.file = open(part, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    if (r.file < 0) return io_error(part, errno);
    int code = record(&r, options);
    memcpy(header, magic, sizeof magic);
    memcpy(header + sizeof magic, &r.n_tokens, sizeof r.n_tokens);
    errno = 0;
    uint64_t end = place_of(config, r.n_tokens, config->n_layers, 0);
    if (code == CLI_OK &&
        (r.error || ftruncate(r.file, (off_t)end) != 0 ||
         pwrite(r.file, header, sizeof header, 0) != sizeof header || fsync(r.file) != 0))
        code = io_error(part, r.error ? r.error : errno);
    close(r.file);
    if (code == CLI_OK && rename(part, path) != 0) code = io_error(path, errno);
    if (code != CLI_OK) unlink(part);
    return code;
}

int quantize_calibration_open(quantize_calibration *c, const cli_options *options,
                              const quantize_plan *plan, const char *path) {
    dsi_error error = {0};
    *c = (quantize_calibration){.plan = plan, .path = path};
    int code = dsi_sys_is_file(path) ? CLI_OK : write_file(options, plan->config, path);
    if (code != CLI_OK) return code;
    dsi_status status = dsi_sys_map(path, &c->map, &error);
    if (status != DSI_OK) {
        cli_error("%s", error.text);
        return cli_status_exit(status);
    }
    if (c->map.n_bytes >= HEADER_BYTES) memcpy(&c->n_tokens, c->map.data + 8, sizeof c->n_tokens);
    if (c->map.n_bytes >= HEADER_BYTES && memcmp(c->map.data, magic, sizeof magic) == 0 &&
        c->n_tokens <= MAX_TOKENS &&
        c->map.n_bytes == place_of(plan->config, c->n_tokens, plan->config->n_layers, 0))
        return CLI_OK;
    cli_error(cli_tr("%s is not of this run", "%s 不属于本次运行"), cli_show(path).text);
    cli_hint(cli_tr("remove it and run the same command again", "请删除后重新运行同一命令"));
    return CLI_USAGE;
}

void quantize_calibration_close(quantize_calibration *c) {
    dsi_sys_unmap(&c->map);
    dsi_sys_free(c->hidden);
    dsi_sys_free(c->rows);
    *c = (quantize_calibration){0};
}

/* ---- Reading: the rows that a matrix multiplies -----------------------------------------------
 */

static const struct {
    const char *tail;
    uint32_t kind;
} inputs[] = {{"self_attn.q_proj", QUANTIZE_NORMED},
              {"self_attn.k_proj", QUANTIZE_NORMED},
              {"self_attn.v_proj", QUANTIZE_NORMED},
              {"self_attn.q_a_proj", QUANTIZE_NORMED},
              {"self_attn.kv_a_proj_with_mqa", QUANTIZE_NORMED},
              {"self_attn.q_b_proj", QUANTIZE_QUERIES},
              {"self_attn.kv_b_proj", QUANTIZE_LATENTS},
              {"self_attn.o_proj", QUANTIZE_ATTENTION},
              {"gate_proj", QUANTIZE_NORMED_AGAIN},
              {"up_proj", QUANTIZE_NORMED_AGAIN},
              {"down_proj", QUANTIZE_HIDDEN}};

bool quantize_input_of(const quantize_calibration *c, const char *name, quantize_input *in) {
    char part[128];
    int n = 0;
    *in = (quantize_input){.expert = -1};
    if (sscanf(name, "model.layers.%u.%127[a-z0-9_.]%n", &in->layer, part, &n) != 2 || name[n] != 0)
        return false;
    size_t length = strlen(part);
    if (length < 7 || strcmp(part + length - 7, ".weight") != 0) return false;
    part[length - 7] = 0;
    if (in->layer >= c->plan->config->n_layers) return false;
    int expert;
    if (sscanf(part, "mlp.experts.%d.", &expert) == 1) in->expert = expert;
    for (size_t i = 0; i < sizeof inputs / sizeof *inputs; i++) {
        size_t n_tail = strlen(inputs[i].tail), n_part = strlen(part);
        if (n_part < n_tail || strcmp(part + n_part - n_tail, inputs[i].tail) != 0) continue;
        in->kind = inputs[i].kind;
        if (in->kind != QUANTIZE_HIDDEN) in->expert = -1;
        in->shared = strstr(part, "shared_experts") != NULL && in->kind == QUANTIZE_HIDDEN;
        return in->kind == QUANTIZE_HIDDEN || width_of(c->plan->config, in->kind) > 0;
    }
    return false;
}

static const uint8_t *stored_row(const quantize_calibration *c, uint32_t layer, uint32_t kind,
                                 uint64_t token) {
    const dsi_config *config = c->plan->config;
    return c->map.data + place_of(config, c->n_tokens, layer, kind) +
           token * row_bytes(config, kind);
}

void quantize_input_columns(const quantize_calibration *c, const quantize_input *in, int64_t first,
                            int64_t n, float *to) {
    if (in->kind == QUANTIZE_HIDDEN) {
        for (uint64_t t = 0; t < c->n_hidden; t++)
            memcpy(to + (int64_t)t * n, c->hidden + (int64_t)t * c->hidden_width + first,
                   (size_t)n * sizeof *to);
        return;
    }
    for (uint64_t t = 0; t < c->n_tokens; t++)
        dsi_widen(DSI_DTYPE_BF16, stored_row(c, in->layer, in->kind, t) + 2 * first,
                  to + (int64_t)t * n, (uint64_t)n);
}

uint64_t quantize_input_rows(const quantize_calibration *c, const quantize_input *in) {
    return in->kind == QUANTIZE_HIDDEN ? c->n_hidden : c->n_tokens;
}

/* ---- Between the matrices of a feed-forward ----------------------------------------------------
 */

/* The weight of an expert for a token; 0: it is not chosen. */
static float chosen(const quantize_calibration *c, const quantize_input *in, const float *bias,
                    uint64_t token) {
    const dsi_config *config = c->plan->config;
    float logits[1024], weights[1024];
    int32_t experts[1024];
    if (in->expert < 0) return 1;
    memcpy(logits, stored_row(c, in->layer, QUANTIZE_LOGITS, token),
           config->n_routed_experts * sizeof *logits);
    dsi_route_args route = {.logits = logits,
                            .bias = bias,
                            .experts = experts,
                            .weights = weights,
                            .n_experts = config->n_routed_experts,
                            .top_k = config->n_experts_per_token,
                            .n_group = config->n_group,
                            .topk_group = config->topk_group,
                            .method = config->router,
                            .sigmoid = config->scoring == DSI_SCORING_SIGMOID,
                            .norm = config->norm_topk_prob,
                            .scale = (float)config->routed_scaling_factor};
    dsi_moe_route__ref(&route);
    for (uint32_t i = 0; i < config->n_experts_per_token; i++)
        if (experts[i] == in->expert) return weights[i];
    return 0;
}

/* Rows t .. t + 3, columns first .. first + n; room: rows of gate and up. */
static void hidden_columns(quantize_calibration *c, const float *room, uint64_t t, int64_t first,
                           int64_t n) {
    const int64_t k = c->gate->shape[1];
    const float *x = c->rows + t * (uint64_t)k;
    float g[QUANTIZE_TOGETHER], u[QUANTIZE_TOGETHER];
    for (int64_t i = 0; i < n; i++) {
        c->plan->search->dots(room + i * k, x, k, k, g);
        c->plan->search->dots(room + (HIDDEN_COLUMNS + i) * k, x, k, k, u);
        for (uint64_t r = 0; r < QUANTIZE_TOGETHER && t + r < c->n_hidden; r++)
            c->hidden[(int64_t)(t + r) * c->hidden_width + first + i] =
                c->weight[t + r] * u[r] * g[r] / (1 + expf(-g[r]));
    }
}

/* One block of columns of the hidden rows: silu(gate x) * up x, times the expert's weight. */
static void do_hidden(void *context, uint32_t thread, uint32_t n_threads) {
    quantize_calibration *c = context;
    const dsi_file_tensor *gate = c->gate, *up = c->up;
    const int64_t k = gate->shape[1];
    float *room = c->rows + (c->n_tokens + QUANTIZE_TOGETHER) * (uint64_t)k +
                  thread * 2 * HIDDEN_COLUMNS * (uint64_t)k;
    uint64_t begin, end;
    dsi_pool_share((uint64_t)dsi_ceil_div(gate->shape[0], HIDDEN_COLUMNS), 1, thread, n_threads,
                   &begin, &end);
    for (uint64_t b = begin; b < end; b++) {
        const int64_t first = (int64_t)b * HIDDEN_COLUMNS;
        const int64_t n = dsi_min_i64(HIDDEN_COLUMNS, gate->shape[0] - first);
        quantize_read_rows(c->plan, gate, first, n, room);
        quantize_read_rows(c->plan, up, first, n, room + HIDDEN_COLUMNS * k);
        for (uint64_t t = 0; t < c->n_hidden; t += QUANTIZE_TOGETHER)
            hidden_columns(c, room, t, first, n);
    }
}

static const dsi_file_tensor *beside(const quantize_plan *p, const char *down, const char *part) {
    char name[256];
    const char *tail = strstr(down, "down_proj");
    snprintf(name, sizeof name, "%.*s%s.weight", (int)(tail - down), down, part);
    return dsi_checkpoint_find(p->from, name);
}

/* The rows that come to the expert, and its weights for them. */
static void take_rows(quantize_calibration *c, const quantize_input *in) {
    const int64_t k = c->gate->shape[1];
    char name[128];
    float bias[1024];
    snprintf(name, sizeof name, "model.layers.%u.mlp.gate.e_score_correction_bias", in->layer);
    const dsi_file_tensor *b = dsi_checkpoint_find(c->plan->from, name);
    if (b && in->expert >= 0)
        dsi_widen(b->dtype, dsi_checkpoint_data(c->plan->from, b), bias, (uint64_t)b->shape[0]);
    c->n_hidden = 0;
    for (uint64_t t = 0; t < c->n_tokens; t++) {
        float weight = chosen(c, in, b ? bias : NULL, t);
        if (!(fabsf(weight) > 0)) continue;
        c->weight[c->n_hidden] = weight;
        dsi_widen(DSI_DTYPE_BF16, stored_row(c, in->layer, QUANTIZE_NORMED_AGAIN, t),
                  c->rows + c->n_hidden++ * (uint64_t)k, (uint64_t)k);
    }
}

bool quantize_input_hidden(quantize_calibration *c, const quantize_input *in,
                           const dsi_file_tensor *down, dsi_pool *pool) {
    c->gate = beside(c->plan, down->name, "gate_proj");
    c->up = beside(c->plan, down->name, "up_proj");
    c->n_hidden = 0;
    if (!c->gate || !c->up) return true;
    c->hidden_width = c->gate->shape[0];
    const uint64_t k = (uint64_t)c->gate->shape[1];
    /* rows, some that are never used behind them, a room for each thread */
    uint64_t n_matrix =
        c->n_tokens + QUANTIZE_TOGETHER + 2ull * HIDDEN_COLUMNS * dsi_pool_size(pool);
    uint64_t n_rows = n_matrix * k + c->n_tokens;
    uint64_t n_hidden = c->n_tokens * (uint64_t)c->hidden_width;
    if (n_rows > c->room_rows) {
        dsi_sys_free(c->rows);
        c->rows = dsi_sys_calloc(n_rows, sizeof *c->rows);
        c->room_rows = c->rows ? n_rows : 0;
    }
    if (n_hidden > c->room_hidden) {
        dsi_sys_free(c->hidden);
        c->hidden = dsi_sys_calloc(n_hidden, sizeof *c->hidden);
        c->room_hidden = c->hidden ? n_hidden : 0;
    }
    if (!c->rows || !c->hidden) return false;
    c->weight = c->rows + n_matrix * k;
    take_rows(c, in);
    dsi_pool_run(pool, do_hidden, c);
    return true;
}
