/* model.c: dsi_model: opens a checkpoint folder and answers questions about it. */
#include "internal.h"
#include <stdio.h>
#include <string.h>

enum { MAX_TOKENIZER_CONFIG_BYTES = 1 << 24 };

const char *dsi_version(void) { return DSI_VERSION_TEXT; }

dsi_error *dsi_thread_error(void) {
    static _Thread_local dsi_error error;
    return &error;
}
const char *dsi_last_error(const void *handle) {
    return handle ? ((const dsi_handle *)handle)->error.text : dsi_thread_error()->text;
}

dsi_status dsi_fail_child(dsi_error *error, const char *call, int64_t process) {
    return dsi_fail(error, DSI_E_FORK,
                    "%s: the handle belongs to process %lld, before its fork(); this is process "
                    "%lld: open the model again here, or call this before forking",
                    call, (long long)process, (long long)dsi_sys_getpid());
}

dsi_status dsi_model_enter(const dsi_model *model, const char *call) {
    if (!dsi_is_child(model->process)) return DSI_OK;
    return dsi_fail_child(dsi_thread_error(), call, model->process);
}

dsi_status dsi_copy_options(void *to, uint32_t our_size, const void *from, const char *name,
                            dsi_error *error) {
    if (!from) return DSI_OK;
    uint32_t his_size;
    memcpy(&his_size, from, sizeof his_size);
    if (his_size < sizeof his_size || his_size > 65536)
        return dsi_fail(error, DSI_E_ARG,
                        "%s.struct_size is %u; call %s_init() on the struct before changing it",
                        name, his_size, name);
    memcpy(to, from, his_size < our_size ? his_size : our_size);
    return DSI_OK;
}

void dsi_model_options_init(dsi_model_options *options) {
    *options = (dsi_model_options){.struct_size = sizeof *options};
}

typedef struct load_progress {
    dsi_progress_fn fn;
    void *user;
} load_progress;
static void report_load(void *user, uint64_t done, uint64_t total) {
    const load_progress *progress = user;
    progress->fn(progress->user, DSI_STAGE_LOAD, done, total);
}

/* The token that ends an answer in the chat template ends it whatever the config files list: those
 * of base models know only the end of a text. */
static dsi_status add_end_of_answer(dsi_model *model, dsi_error *error) {
    dsi_config *c = &model->config;
    enum { MAX_EOS = sizeof c->eos_tokens / sizeof c->eos_tokens[0] };
    if (!model->chat) return DSI_OK;
    int32_t end = dsi_tokenizer_special(model->tokenizer, model->chat->end);
    for (uint32_t i = 0; i < c->n_eos_tokens; i++)
        if (c->eos_tokens[i] == end) return DSI_OK;
    if (end < 0) return DSI_OK;
    if (c->n_eos_tokens == MAX_EOS)
        return dsi_fail(error, DSI_E_MODEL,
                        "eos_token_id lists %d tokens and not %s, which ends answers in the chat "
                        "template %s; at most %d are supported",
                        MAX_EOS, model->chat->end, model->chat->name, MAX_EOS);
    c->eos_tokens[c->n_eos_tokens++] = end;
    return DSI_OK;
}

static dsi_status check_vocabulary(const dsi_model *model, const char *path, dsi_error *error) {
    uint32_t n_tokens = dsi_tokenizer_n_tokens(model->tokenizer);
    if (n_tokens <= model->config.vocab_size) return DSI_OK;
    return dsi_fail(error, DSI_E_MODEL,
                    "%s has token ids up to %u, the model a vocab_size of %u: the files belong to "
                    "different models",
                    path, n_tokens - 1, model->config.vocab_size);
}

/* The tokenizer inside the first of a model's GGUF files. */
static dsi_status open_gguf_tokenizer(dsi_model *model, dsi_error *error) {
    const dsi_gguf *gguf = &model->checkpoint.gguf[0];
    const char *text = NULL;
    uint64_t n_bytes = 0;
    dsi_status st = dsi_tokenizer_of_gguf(gguf, &model->tokenizer, error);
    if (st == DSI_E_UNSUPPORTED || st == DSI_E_FORMAT) {
        model->tokenizer_error = *error; /* tokens in, tokens out still works */
        return DSI_OK;
    }
    if (st != DSI_OK || !model->tokenizer) return st;
    st = check_vocabulary(model, gguf->path, error);
    dsi_gguf_text(dsi_gguf_find(gguf, "tokenizer.chat_template"), &text, &n_bytes);
    if (st == DSI_OK)
        st = dsi_chat_choose_template(model->tokenizer, text, n_bytes, &model->chat, error);
    return st == DSI_OK ? add_end_of_answer(model, error) : st;
}

/* A folder without tokenizer.json is usable for tokens in, tokens out. */
static dsi_status open_tokenizer(dsi_model *model, const char *dir, dsi_error *error) {
    char path[4096];
    int n = snprintf(path, sizeof path, "%s/tokenizer.json", dir);
    if (n < 0 || (size_t)n >= sizeof path)
        return dsi_fail(error, DSI_E_ARG, "the path of the checkpoint has over 4,000 characters");
    dsi_sys_sort sort;
    dsi_status st = dsi_sys_look(path, &sort, error);
    if (st != DSI_OK || sort != DSI_SORT_FILE) return st;
    st = dsi_tokenizer_open(path, &model->tokenizer, error);
    if (st == DSI_E_UNSUPPORTED) {
        /* a tokenizer of another family: tokens in, tokens out still works */
        model->tokenizer_error = *error;
        return DSI_OK;
    }
    if (st != DSI_OK) return st;
    st = check_vocabulary(model, path, error);
    if (st != DSI_OK) return st;
    snprintf(path, sizeof path, "%s/tokenizer_config.json", dir);
    char *text = NULL;
    uint64_t n_bytes = 0;
    st = dsi_sys_look(path, &sort, error);
    if (st == DSI_OK && sort == DSI_SORT_FILE)
        st = dsi_sys_read_file(path, MAX_TOKENIZER_CONFIG_BYTES, &text, &n_bytes, error);
    if (st == DSI_OK) st = dsi_chat_choose(model->tokenizer, text, n_bytes, &model->chat, error);
    dsi_sys_free(text);
    return st == DSI_OK ? add_end_of_answer(model, error) : st;
}

static dsi_status open_parts(dsi_model *model, const char *path, const dsi_model_options *options,
                             dsi_error *error) {
    load_progress progress = {options->progress, options->progress_user};
    dsi_sys_sort sort;
    dsi_status st = dsi_sys_look(path, &sort, error);
    if (st != DSI_OK) return st;
    bool gguf = sort == DSI_SORT_FILE && dsi_is_gguf_name(path);
    if (sort != DSI_SORT_FOLDER && !gguf)
        return dsi_fail(error, DSI_E_IO,
                        "'%s' is not a folder; give the checkpoint folder that holds config.json "
                        "and model.safetensors, or a .gguf file",
                        path);
    dsi_checkpoint_progress report = options->progress ? report_load : NULL;
    if (gguf) {
        st = dsi_checkpoint_open_gguf(path, report, &progress, &model->checkpoint, error);
        if (st == DSI_OK) st = dsi_config_of_gguf(&model->checkpoint, &model->config, error);
    } else {
        st = dsi_config_load(path, &model->config, error);
        if (st == DSI_OK)
            st = dsi_checkpoint_open(path, report, &progress, &model->checkpoint, error);
    }
    if (st == DSI_OK)
        st = dsi_weights_bind(&model->checkpoint, &model->config, &model->weights, error);
    if (st == DSI_OK)
        st = gguf ? open_gguf_tokenizer(model, error) : open_tokenizer(model, path, error);
    return st;
}

dsi_status dsi_model_open(const char *path, const dsi_model_options *options, dsi_model **out) {
    dsi_error *error = dsi_thread_error();
    dsi_model_options o;
    dsi_model_options_init(&o);
    if (!path || !out) return dsi_fail(error, DSI_E_ARG, "dsi_model_open: path or model is NULL");
    *out = NULL;
    dsi_status st = dsi_copy_options(&o, sizeof o, options, "dsi_model_options", error);
    if (st != DSI_OK) return st;
    dsi_model *model = dsi_sys_calloc(1, sizeof *model);
    if (!model) return dsi_fail(error, DSI_E_NOMEM, "no memory for a model handle");
    model->process = dsi_sys_getpid();
    model->options = o;
    model->log = (dsi_log){o.log, o.log_user};
    st = open_parts(model, path, &o, error);
    if (st != DSI_OK) {
        dsi_model_close(model);
        return st;
    }
    if (model->checkpoint.warning[0])
        dsi_logf(&model->log, DSI_LOG_WARN, "model", "%s", model->checkpoint.warning);
    if (!model->tokenizer && model->tokenizer_error.text[0])
        dsi_logf(&model->log, DSI_LOG_WARN, "model", "text calls are off: %s",
                 model->tokenizer_error.text);
    else if (!model->tokenizer)
        dsi_logf(&model->log, DSI_LOG_WARN, "model", "%s has no %s: text calls are off", path,
                 model->checkpoint.gguf ? "tokenizer inside" : "tokenizer.json");
    *out = model;
    return DSI_OK;
}

void dsi_model_close(dsi_model *model) {
    if (!model) return;
    dsi_tokenizer_free(model->tokenizer);
    dsi_weights_free(&model->weights);
    dsi_checkpoint_close(&model->checkpoint);
    dsi_config_free(&model->config);
    dsi_sys_free(model);
}

/* ---- Questions
 * ----------------------------------------------------------------------------------- */

typedef struct count {
    uint64_t params, active, bytes, active_bytes;
} count;

static void add(count *c, const dsi_weight *w, double active_share) {
    if (!w->name) return;
    uint64_t params = (uint64_t)w->n_out * (uint64_t)w->n_in;
    int64_t row = 0; /* the tensor fits into its file, so its bytes can be counted */
    dsi_dtype_row_bytes(w->dtype, w->n_in, &row);
    uint64_t bytes = (uint64_t)w->n_out * (uint64_t)row;
    bytes += (uint64_t)(w->scale_rows * w->scale_columns) * dsi_dtype_bytes(w->scale_dtype);
    c->params += params;
    c->bytes += bytes;
    c->active += (uint64_t)((double)params * active_share + 0.5);
    c->active_bytes += (uint64_t)((double)bytes * active_share + 0.5);
}
static void add_mlp(count *c, const dsi_mlp_weights *mlp, double active_share) {
    add(c, &mlp->gate_proj, active_share);
    add(c, &mlp->up_proj, active_share);
    add(c, &mlp->down_proj, active_share);
}
static void add_layer(count *c, const dsi_layer_weights *l, const dsi_config *config) {
    const dsi_weight *always[DSI_LAYER_WEIGHTS];
    dsi_layer_weights_always(l, always);
    for (uint32_t i = 0; i < DSI_LAYER_WEIGHTS; i++) add(c, always[i], 1);
    if (!l->is_moe) {
        add_mlp(c, &l->mlp, 1);
        return;
    }
    double share = (double)config->n_experts_per_token / (double)config->n_routed_experts;
    for (uint32_t e = 0; e < config->n_routed_experts; e++) add_mlp(c, &l->experts[e], share);
    add_mlp(c, &l->shared_experts, 1);
}

static count count_weights(const dsi_model *model) {
    const dsi_weights *w = &model->weights;
    count c = {0};
    bool tied = w->lm_head.data == w->embed_tokens.data;
    /* a token reads one row of the table; with tied weights the head reads all of it */
    add(&c, &w->embed_tokens, tied ? 1 : 1 / (double)w->embed_tokens.n_out);
    add(&c, &w->norm, 1);
    if (!tied) add(&c, &w->lm_head, 1);
    for (uint32_t i = 0; i < model->config.n_layers; i++)
        add_layer(&c, &w->layers[i], &model->config);
    return c;
}

uint64_t dsi_model_weight_bytes(const dsi_model *model) {
    return count_weights(model).bytes + model->weights.n_bytes_copies;
}

uint64_t dsi_model_mtp_bytes(const dsi_model *model) {
    const dsi_mtp_weights *m = &model->weights.mtp;
    count c = {0};
    if (!m->eh_proj.name) return 0;
    const dsi_weight *own[] = {&m->enorm, &m->hnorm,        &m->eh_proj,
                               &m->norm,  &m->embed_tokens, &m->head};
    for (size_t i = 0; i < sizeof own / sizeof own[0]; i++) add(&c, own[i], 1);
    add_layer(&c, &m->layer, &model->config);
    return c.bytes;
}

/* Parameters of the MTP blocks, scales not counted. */
static uint64_t count_mtp(const dsi_model *model) {
    uint64_t params = 0;
    for (uint32_t i = 0; i < model->checkpoint.n_tensors; i++) {
        const dsi_file_tensor *t = &model->checkpoint.tensors[i];
        if (!dsi_tensor_is_mtp(&model->config, t->name, NULL) || strstr(t->name, ".weight_scale") ||
            strstr(t->name, ".weight_shape"))
            continue;
        uint64_t n = 1; /* the shape fits into the file: no overflow */
        for (uint32_t d = 0; d < t->n_dims; d++) n *= (uint64_t)t->shape[d];
        params += strstr(t->name, ".weight_packed") ? 8 * n : n;
    }
    return params;
}

static const char *quantization_name(const dsi_quantization *q) {
    bool block = q->scale_kind == DSI_SCALE_BLOCK_128;
    if (q->dtype == DSI_DTYPE_E4M3) return "fp8 128x128";
    if (q->dtype == DSI_DTYPE_I8) return block ? "int8 128x128" : "int8 rows";
    if (q->dtype == DSI_DTYPE_I4) return q->scale_group == 32 ? "int4 group 32" : "int4 group 128";
    return "";
}

dsi_status dsi_model_get_info(const dsi_model *model, dsi_model_info *info) {
    if (!model || !info || info->struct_size < sizeof info->struct_size)
        return dsi_fail(dsi_thread_error(), DSI_E_ARG,
                        "dsi_model_get_info: set info->struct_size to sizeof *info first");
    dsi_status st = dsi_model_enter(model, "dsi_model_get_info");
    if (st != DSI_OK) return st;
    const dsi_config *c = &model->config;
    count n = count_weights(model);
    bool mla = c->arch->attention == DSI_ATTENTION_MLA;
    uint64_t kv_elements =
        mla ? c->kv_lora_rank + c->qk_rope_head_dim + c->index_head_dim /* 0 without an indexer */
            : 2ull * c->n_kv_heads * c->head_dim;
    dsi_model_info all = {
        .struct_size = info->struct_size,
        .n_layers = c->n_layers,
        .hidden_size = c->hidden_size,
        .vocab_size = c->vocab_size,
        .n_heads = c->n_heads,
        .max_context = c->max_position,
        .n_routed_experts = c->n_routed_experts,
        .n_experts_per_token = c->n_experts_per_token,
        .n_mtp_layers = model->weights.n_mtp_layers,
        .has_tokenizer = model->tokenizer != NULL,
        .n_tensors = model->checkpoint.n_tensors,
        .n_shards = model->checkpoint.n_shards,
        .n_params_total = n.params,
        .n_params_active = n.active,
        .n_params_mtp = count_mtp(model),
        .n_bytes_token = n.active_bytes,
        .n_bytes_kv = kv_elements * 2 * c->n_layers,
        .architecture = c->arch->model_type,
        .chat_template = model->chat ? model->chat->name : "",
        .quantization = quantization_name(&c->quantization),
    };
    for (uint32_t i = 0; i < all.n_tensors; i++)
        all.n_bytes_weights += model->checkpoint.tensors[i].n_bytes;
    dsi_copy_out(info, info->struct_size, &all, sizeof all);
    return DSI_OK;
}

dsi_status dsi_model_get_tensor(const dsi_model *model, uint32_t index, dsi_tensor_info *info) {
    if (!model || !info || info->struct_size < sizeof info->struct_size ||
        index >= model->checkpoint.n_tensors)
        return dsi_fail(dsi_thread_error(), DSI_E_ARG,
                        "dsi_model_get_tensor: index %u, the model has %u tensors; struct_size "
                        "must be set",
                        index, model ? model->checkpoint.n_tensors : 0);
    dsi_status st = dsi_model_enter(model, "dsi_model_get_tensor");
    if (st != DSI_OK) return st;
    const dsi_file_tensor *t = &model->checkpoint.tensors[index];
    dsi_tensor_info all = {.struct_size = info->struct_size,
                           .dtype = t->dtype,
                           .n_dims = t->n_dims,
                           .shard = t->shard,
                           .n_bytes = t->n_bytes,
                           .file_offset = t->file_offset,
                           .name = t->name,
                           .file = model->checkpoint.shards[t->shard].path};
    memcpy(all.shape, t->shape, sizeof all.shape);
    dsi_copy_out(info, info->struct_size, &all, sizeof all);
    return DSI_OK;
}
