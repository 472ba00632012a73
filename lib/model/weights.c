/* weights.c: binds the tensors of a checkpoint to their places in the model by their official
 * names. Shapes follow from config.json; a tensor that nothing reads is an error, because a model
 * that passes over one of its weights answers wrongly without a sign. */
#include "weights.h"
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

/* ---- Messages ------------------------------------------------------------------------------- */

/* The file a message about the whole checkpoint names. */
static const char *main_file(const dsi_checkpoint *c) {
    return c->n_shards == 1 ? c->shards[0].path : c->dir;
}
static const char *shard_of(const dsi_binder *b, const dsi_file_tensor *t) {
    return b->checkpoint->shards[t->shard].path;
}
/* What says which tensors there are. */
static const char *source_of(const dsi_binder *b) {
    return b->checkpoint->gguf ? "its header" : "config.json";
}
static void print_shape(const int64_t *shape, uint32_t n_dims, char text[96]) {
    size_t used = 0;
    text[0] = 0;
    for (uint32_t i = 0; i < n_dims && used < 70; i++)
        used += (size_t)snprintf(text + used, 96 - used, "%s%" PRId64, i ? ", " : "", shape[i]);
}

enum { COPY_ALIGNMENT = 64 };

/* ---- Copies --------------------------------------------------------------------------------- */

static dsi_status plan_copy(dsi_binder *b, const dsi_file_tensor *t, dsi_weight *weight,
                            bool scale) {
    if (b->n_copies == b->capacity) {
        uint32_t capacity = b->capacity ? 2 * b->capacity : 64;
        dsi_weight_copy *grown = dsi_sys_realloc(b->copies, capacity, sizeof *grown);
        if (!grown)
            return dsi_fail(b->error, DSI_E_NOMEM, "%s: no memory for the list of copies",
                            shard_of(b, t));
        b->copies = grown;
        b->capacity = capacity;
    }
    uint64_t offset = b->weights->n_bytes_copies, end;
    if (!dsi_add_ok(offset, t->n_bytes, &end) || !dsi_add_ok(end, COPY_ALIGNMENT - 1, &end))
        return dsi_fail(b->error, DSI_E_NOMEM, "%s: tensor \"%s\": copies pass 2^64 bytes",
                        shard_of(b, t), t->name);
    b->copies[b->n_copies++] = (dsi_weight_copy){t, weight, scale, offset};
    b->weights->n_bytes_copies = end - end % COPY_ALIGNMENT;
    return DSI_OK;
}

/* All copies lie in one block, so that a backend imports them as one buffer. */
static dsi_status make_copies(dsi_binder *b) {
    DSI_MEMORY_SCOPE(WEIGHTS);
    dsi_weights *w = b->weights;
    if (b->n_copies == 0) return DSI_OK;
    uint8_t *block = dsi_sys_alloc_aligned(w->n_bytes_copies);
    if (!block)
        return dsi_fail(b->error, DSI_E_NOMEM,
                        "%s: no memory for copies of %u misaligned tensors, %" PRIu64
                        " bytes; save the checkpoint again with a current safetensors",
                        main_file(b->checkpoint), b->n_copies, w->n_bytes_copies);
    w->copies = block;
    w->n_copies = b->n_copies;
    for (uint32_t i = 0; i < b->n_copies; i++) {
        const dsi_weight_copy *c = &b->copies[i];
        uint8_t *to = block + c->offset;
        memcpy(to, dsi_checkpoint_data(b->checkpoint, c->tensor), c->tensor->n_bytes);
        if (c->scale)
            c->weight->scale = to;
        else
            c->weight->data = to;
    }
    return DSI_OK;
}

/* ---- One tensor ----------------------------------------------------------------------------- */

static dsi_status check_shape(dsi_binder *b, const dsi_file_tensor *t, const int64_t *expected,
                              uint32_t n_dims) {
    if (t->n_dims == n_dims && memcmp(t->shape, expected, n_dims * sizeof *expected) == 0)
        return DSI_OK;
    char is[96], wanted[96];
    print_shape(t->shape, t->n_dims, is);
    print_shape(expected, n_dims, wanted);
    return dsi_fail(b->error, DSI_E_MODEL, "%s: tensor \"%s\" has shape [%s], %s makes it [%s]",
                    shard_of(b, t), t->name, is, source_of(b), wanted);
}

/* Type and shape; n_out 0: 1-D of n_in. */
dsi_status dsi_check_tensor(dsi_binder *b, const dsi_file_tensor *t, int64_t n_out, int64_t n_in,
                            uint32_t types) {
    bool quantised = t->dtype == DSI_DTYPE_E4M3 || t->dtype == DSI_DTYPE_I8;
    bool plain =
        t->dtype == DSI_DTYPE_BF16 || t->dtype == DSI_DTYPE_F16 || t->dtype == DSI_DTYPE_F32;
    bool blocks = dsi_dtype_block(t->dtype).values != 0 && (types & DSI_MAY_BE_BLOCKS);
    if (!plain && !blocks && !(quantised && types == DSI_MAY_BE_QUANTISED))
        return dsi_fail(b->error, DSI_E_UNSUPPORTED,
                        "%s: tensor \"%s\" is %s; this weight must be BF16, F16%s", shard_of(b, t),
                        t->name, dsi_dtype_name(t->dtype),
                        types == DSI_MAY_BE_QUANTISED ? ", F32, F8_E4M3 or I8" : " or F32");
    if (quantised && b->config->quantization.dtype != t->dtype)
        return dsi_fail(b->error, DSI_E_MODEL,
                        "%s: tensor \"%s\" is %s, but config.json has no quantization_config "
                        "that says so",
                        shard_of(b, t), t->name, dsi_dtype_name(t->dtype));
    const int64_t shape[2] = {n_out, n_in};
    return n_out ? check_shape(b, t, shape, 2) : check_shape(b, t, shape + 1, 1);
}

static dsi_status find_tensor(dsi_binder *b, const char *name, const dsi_file_tensor **t) {
    *t = dsi_checkpoint_find(b->checkpoint, name);
    if (!*t)
        return dsi_fail(b->error, DSI_E_MODEL,
                        "%s: tensor \"%s\" is missing, %s asks for it; the files are "
                        "incomplete or of different models",
                        main_file(b->checkpoint), name, source_of(b));
    b->used[*t - b->checkpoint->tensors] = 1;
    return DSI_OK;
}

/* Takes the name of `w` out of the names' storage, `full_name` without `tail`. */
static void name_weight(dsi_binder *b, dsi_weight *w, const char *full_name, const char *tail) {
    size_t length = strlen(full_name), cut = strlen(tail);
    if (length > cut && strcmp(full_name + length - cut, tail) == 0) length -= cut;
    memcpy(b->names_end, full_name, length); /* the block is zeroed and holds every name once */
    w->name = b->names_end;
    b->names_end += length + 1;
}

/* ---- A quantised tensor --------------------------------------------------------------------- */

/* A companion "<weight>.<tail>" that this library does not compute with. */
static dsi_status refuse_companion(dsi_binder *b, const dsi_weight *w, const char *tail,
                                   const char *what) {
    char name[DSI_NAME_BYTES + 32];
    snprintf(name, sizeof name, "%s.%s", w->name, tail);
    const dsi_file_tensor *t = dsi_checkpoint_find(b->checkpoint, name);
    if (!t) return DSI_OK;
    return dsi_fail(b->error, DSI_E_UNSUPPORTED, "%s: tensor \"%s\": %s", shard_of(b, t), t->name,
                    what);
}

static dsi_status refuse_companions(dsi_binder *b, const dsi_weight *w) {
    dsi_status status =
        refuse_companion(b, w, "weight_zero_point",
                         "weights with a zero point are not supported; quantise symmetrically");
    if (!status)
        status = refuse_companion(b, w, "weight_g_idx",
                                  "columns out of order are not supported; quantise with actorder "
                                  "null, \"weight\" or \"static\"");
    if (!status)
        status = refuse_companion(b, w, "input_scale",
                                  "activations with scales in the file are not supported; quantise "
                                  "with dynamic activations");
    return status;
}

/* The file's own list says that this weight is plain. */
static dsi_status refuse_ignored(dsi_binder *b, const dsi_weight *w) {
    const dsi_quantization *q = &b->config->quantization;
    const char *pattern = q->ignored;
    for (uint32_t i = 0; i < q->n_ignored; i++, pattern += strlen(pattern) + 1) {
        if (strncmp(pattern, "re:", 3) == 0 && dsi_quantization_matches(pattern, w->name))
            return dsi_fail(
                b->error, DSI_E_MODEL,
                "%s: \"%s\" is quantised, but quantization_config.ignore in config.json "
                "has \"%s\", which says that it is not",
                main_file(b->checkpoint), w->name, pattern);
    }
    return DSI_OK;
}

/* The multipliers of a quantised weight, partial blocks and groups included (the last row block of
 * DeepSeek-V3's kv_a_proj_with_mqa, 576 rows, is half full). Those of FP8 are F32. */
static dsi_status bind_scale(dsi_binder *b, dsi_weight *w) {
    const dsi_quantization *q = &b->config->quantization;
    char name[DSI_NAME_BYTES + 32];
    const dsi_file_tensor *t;
    snprintf(name, sizeof name, "%s.%s", w->name, q->scale_name);
    dsi_status status = find_tensor(b, name, &t);
    if (status) return status;
    dsi_scale_span span = dsi_scale_span_of(q->scale_kind, q->scale_group, w->n_in);
    const int64_t shape[2] = {dsi_ceil_div(w->n_out, span.n), dsi_ceil_div(w->n_in, span.k)};
    bool flat = q->scale_kind == DSI_SCALE_CHANNEL && t->n_dims == 1; /* [n], not [n][1] */
    status = check_shape(b, t, shape, flat ? 1 : 2);
    if (status) return status;
    bool f32 = t->dtype == DSI_DTYPE_F32, fp8 = w->dtype == DSI_DTYPE_E4M3;
    if (!f32 && (fp8 || (t->dtype != DSI_DTYPE_BF16 && t->dtype != DSI_DTYPE_F16)))
        return dsi_fail(b->error, DSI_E_UNSUPPORTED,
                        "%s: tensor \"%s\" is %s; scales must be F32%s", shard_of(b, t), t->name,
                        dsi_dtype_name(t->dtype), fp8 ? "" : ", BF16 or F16");
    w->scale_kind = q->scale_kind;
    w->scale_group = q->scale_group;
    w->scale_dtype = t->dtype;
    w->scale_rows = shape[0];
    w->scale_columns = shape[1];
    w->scale_shard = t->shard;
    w->scale_offset = t->file_offset;
    w->scale = dsi_checkpoint_data(b->checkpoint, t);
    if (t->file_offset % dsi_dtype_bytes(t->dtype) != 0) status = plan_copy(b, t, w, true);
    if (!status && !fp8) status = refuse_companions(b, w);
    return status ? status : refuse_ignored(b, w);
}

/* "weight_shape" repeats the shape of a packed weight: two I64 at any place of the file. */
static dsi_status check_packed_shape(dsi_binder *b, const dsi_weight *w) {
    char name[DSI_NAME_BYTES + 32];
    const dsi_file_tensor *t;
    snprintf(name, sizeof name, "%s.weight_shape", w->name);
    dsi_status status = find_tensor(b, name, &t);
    if (status) return status;
    if (t->dtype != DSI_DTYPE_I64 || t->n_dims != 1 || t->shape[0] != 2)
        return dsi_fail(b->error, DSI_E_MODEL,
                        "%s: tensor \"%s\" is %s of %u dimension(s); it must be two I64",
                        shard_of(b, t), t->name, dsi_dtype_name(t->dtype), t->n_dims);
    int64_t shape[2];
    memcpy(shape, dsi_checkpoint_data(b->checkpoint, t), sizeof shape);
    if (shape[0] == w->n_out && shape[1] == w->n_in) return DSI_OK;
    return dsi_fail(b->error, DSI_E_MODEL,
                    "%s: tensor \"%s\" says [%" PRId64 ", %" PRId64
                    "], config.json makes it [%" PRId64 ", %" PRId64 "]",
                    shard_of(b, t), t->name, shape[0], shape[1], w->n_out, w->n_in);
}

/* "<name>.weight_packed": eight values of four bits in each I32 of a row. */
static dsi_status bind_packed(dsi_binder *b, dsi_weight *w, const dsi_file_tensor *t, int64_t n_out,
                              int64_t n_in) {
    const int64_t shape[2] = {n_out, dsi_ceil_div(n_in, 8)};
    b->used[t - b->checkpoint->tensors] = 1;
    if (b->config->quantization.dtype != DSI_DTYPE_I4)
        return dsi_fail(b->error, DSI_E_MODEL,
                        "%s: tensor \"%s\" holds packed weights, but config.json has no "
                        "quantization_config that says so",
                        shard_of(b, t), t->name);
    if (t->dtype != DSI_DTYPE_I32)
        return dsi_fail(b->error, DSI_E_UNSUPPORTED,
                        "%s: tensor \"%s\" is %s; packed weights must be I32", shard_of(b, t),
                        t->name, dsi_dtype_name(t->dtype));
    dsi_status status = check_shape(b, t, shape, 2);
    if (status) return status;
    *w = (dsi_weight){.data = dsi_checkpoint_data(b->checkpoint, t),
                      .dtype = DSI_DTYPE_I4,
                      .shard = t->shard,
                      .file_offset = t->file_offset,
                      .n_out = n_out,
                      .n_in = n_in};
    name_weight(b, w, t->name, ".weight_packed");
    status = check_packed_shape(b, w);
    if (!status && t->file_offset % sizeof(uint32_t) != 0) status = plan_copy(b, t, w, false);
    return status ? status : bind_scale(b, w);
}

/* n_out as above. The weight's `name` is `full_name` without a trailing ".weight". */
dsi_status dsi_bind_tensor(dsi_binder *b, dsi_weight *w, const char *full_name, int64_t n_out,
                           int64_t n_in, uint32_t types) {
    const dsi_file_tensor *t;
    if (types == DSI_MAY_BE_QUANTISED) {
        char packed[DSI_NAME_BYTES + 32];
        snprintf(packed, sizeof packed, "%s_packed", full_name);
        t = dsi_checkpoint_find(b->checkpoint, packed);
        if (t) return bind_packed(b, w, t, n_out, n_in);
    }
    dsi_status status = find_tensor(b, full_name, &t);
    if (!status) status = dsi_check_tensor(b, t, n_out, n_in, types);
    if (status) return status;
    *w = (dsi_weight){.data = dsi_checkpoint_data(b->checkpoint, t),
                      .dtype = t->dtype,
                      .shard = t->shard,
                      .file_offset = t->file_offset,
                      .n_out = n_out ? n_out : 1,
                      .n_in = n_in};
    name_weight(b, w, full_name, ".weight");
    if (t->dtype == DSI_DTYPE_E4M3 || t->dtype == DSI_DTYPE_I8) return bind_scale(b, w);
    uint32_t element = dsi_dtype_bytes(t->dtype); /* 0: blocks, which may lie anywhere */
    if (element == 0 || t->file_offset % element == 0) return DSI_OK;
    return plan_copy(b, t, w, false);
}

/* Names that quantization_config.ignore writes out are looked up; its patterns met every quantised
 * weight when that was bound. */
static dsi_status check_ignored(dsi_binder *b) {
    const dsi_quantization *q = &b->config->quantization;
    const char *module = q->ignored;
    char name[DSI_NAME_BYTES + 32];
    for (uint32_t i = 0; i < q->n_ignored; i++, module += strlen(module) + 1) {
        snprintf(name, sizeof name, "%s.weight%s", module,
                 q->dtype == DSI_DTYPE_I4 ? "_packed" : "");
        const dsi_file_tensor *t = dsi_checkpoint_find(b->checkpoint, name);
        if (t && (q->dtype == DSI_DTYPE_I4 || t->dtype == q->dtype))
            return dsi_fail(b->error, DSI_E_MODEL,
                            "%s: tensor \"%s\" is quantised, but quantization_config.ignore in "
                            "config.json names \"%s\"",
                            shard_of(b, t), t->name, module);
    }
    return DSI_OK;
}

/* ---- Tensors that no place asked for -------------------------------------------------------- */

bool dsi_tensor_is_mtp(const dsi_config *config, const char *name, uint32_t *layer) {
    static const char head[] = "model.layers.";
    if (strncmp(name, head, sizeof head - 1) != 0) return false;
    const char *digit = name + sizeof head - 1;
    uint32_t number = 0;
    if (*digit == '0' && digit[1] != '.') return false;
    for (; *digit >= '0' && *digit <= '9'; digit++) {
        number = 10 * number + (uint32_t)(*digit - '0');
        if (number > 1000) return false;
    }
    if (digit == name + sizeof head - 1 || *digit != '.' || number < config->n_layers) return false;
    if (layer) *layer = number;
    return true;
}

/* An MTP block is known by its eh_proj. A layer behind the last one without it means that
 * config.json says too few layers. */
bool dsi_is_mtp_block(const dsi_binder *b, uint32_t layer) {
    char name[64];
    snprintf(name, sizeof name, "model.layers.%u.eh_proj.weight", layer);
    return b->config->arch->moe && dsi_checkpoint_find(b->checkpoint, name) != NULL;
}

static bool ends_with(const char *text, const char *tail) {
    size_t n = strlen(text), m = strlen(tail);
    return n >= m && strcmp(text + n - m, tail) == 0;
}

static dsi_status check_unused(dsi_binder *b) {
    const dsi_checkpoint *c = b->checkpoint;
    uint8_t known[1001] = {0}; /* layers: 1 is an MTP block, 2 is not */
    for (uint32_t i = 0; i < c->n_tensors; i++) {
        const dsi_file_tensor *t = &c->tensors[i];
        uint32_t layer = 0;
        bool behind = dsi_tensor_is_mtp(b->config, t->name, &layer);
        if (behind && known[layer] == 0) {
            known[layer] = dsi_is_mtp_block(b, layer) ? 1 : 2;
            if (known[layer] == 1) b->weights->n_mtp_layers++;
        }
        if (behind && known[layer] == 1) {
            b->weights->n_mtp_tensors++;
            continue;
        }
        if (b->used[i] || ends_with(t->name, ".rotary_emb.inv_freq")) continue;
        if (behind)
            return dsi_fail(b->error, DSI_E_MODEL,
                            "%s: tensor \"%s\" lies behind the last layer and belongs to no MTP "
                            "block; config.json says num_hidden_layers = %u",
                            shard_of(b, t), t->name, b->config->n_layers);
        return dsi_fail(b->error, DSI_E_MODEL,
                        "%s: tensor \"%s\" has no place in a %s model with %s; the files are "
                        "of different models, or the model is a variant that is not supported",
                        shard_of(b, t), t->name, b->config->arch->model_type,
                        b->checkpoint->gguf ? "these keys" : "this config.json");
    }
    return DSI_OK;
}

/* ---- Bind and free -------------------------------------------------------------------------- */

static dsi_status allocate(dsi_binder *b) {
    const dsi_config *c = b->config;
    dsi_weights *w = b->weights;
    uint64_t n_moe = 0, n_bytes_names = 1;
    for (uint32_t i = 0; i < b->checkpoint->n_tensors; i++)
        n_bytes_names += strlen(b->checkpoint->tensors[i].name) + 1;
    b->used = dsi_sys_calloc(b->checkpoint->n_tensors, 1);
    w->names = b->names_end = dsi_sys_calloc(n_bytes_names, 1);
    w->layers = dsi_sys_calloc(c->n_layers, sizeof *w->layers);
    if (w->layers) {
        for (uint32_t i = 0; i < c->n_layers; i++) {
            w->layers[i].is_moe =
                c->n_routed_experts > 0 && i >= c->first_k_dense && i % c->moe_layer_freq == 0;
            n_moe += w->layers[i].is_moe;
        }
        /* At most 256 layers of 1024 experts. */
        n_moe++; /* the block that drafts */
        w->expert_storage = dsi_sys_calloc(n_moe * c->n_routed_experts, sizeof *w->expert_storage);
    }
    if (!b->used || !w->names || !w->layers || !w->expert_storage)
        return dsi_fail(b->error, DSI_E_NOMEM, "%s: no memory for the list of weights",
                        main_file(b->checkpoint));
    dsi_mlp_weights *next = w->expert_storage;
    for (uint32_t i = 0; i < c->n_layers; i++) {
        if (!w->layers[i].is_moe) continue;
        w->layers[i].experts = next;
        next += c->n_routed_experts;
    }
    w->mtp.layer.experts = next;
    return DSI_OK;
}

dsi_status dsi_weights_bind(const dsi_checkpoint *checkpoint, const dsi_config *config,
                            dsi_weights *weights, dsi_error *error) {
    dsi_error local;
    *weights = (dsi_weights){0};
    dsi_binder b = {.checkpoint = checkpoint,
                    .config = config,
                    .weights = weights,
                    .error = error ? error : &local};
    dsi_status status = allocate(&b);
    if (!status) status = dsi_bind_top(&b);
    for (; b.layer < config->n_layers && !status; b.layer++)
        status = dsi_bind_layer(&b, &weights->layers[b.layer]);
    if (!status) status = dsi_bind_mtp(&b);
    if (!status) status = check_ignored(&b);
    if (!status) status = check_unused(&b);
    if (!status) status = make_copies(&b);
    if (!status && config->tie_word_embeddings) weights->lm_head = weights->embed_tokens;
    dsi_sys_free(b.used);
    dsi_sys_free(b.copies);
    if (status) dsi_weights_free(weights);
    return status;
}

void dsi_weights_free(dsi_weights *weights) {
    dsi_sys_free(weights->layers);
    dsi_sys_free(weights->expert_storage);
    dsi_sys_free(weights->names);
    dsi_sys_free(weights->copies);
    *weights = (dsi_weights){0};
}
