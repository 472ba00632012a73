/* adapter.c: the tensors of a LoRA adapter bound to the weights of a model that they change. */
#include "adapter.h"
#include "../base/convert.h"
#include "safetensors.h"
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

static const char prefix[] = "base_model.model.model.layers.";
static const char file_name[] = "adapter_model.safetensors", old_name[] = "adapter_model.bin";

uint32_t dsi_adapted_find(const char *module) {
    for (uint32_t i = 0; i < DSI_N_ADAPTED; i++)
        if (strcmp(dsi_adapted_name(i), module) == 0) return i;
    return DSI_N_ADAPTED;
}
const char *dsi_adapted_name(uint32_t code) {
#define NAME(value, module) module,
    static const char *const names[] = {DSI_ADAPTED_LIST(NAME)};
#undef NAME
    return code < DSI_N_ADAPTED ? names[code] : "?";
}

bool dsi_adapted_shape(const dsi_config *c, const dsi_layer_weights *l, uint32_t code,
                       int64_t *n_out, int64_t *n_in) {
    const dsi_weight *const weights[DSI_N_ADAPTED] = {
        [DSI_ADAPTED_Q] = &l->q_proj,
        [DSI_ADAPTED_K] = &l->k_proj,
        [DSI_ADAPTED_V] = &l->v_proj,
        [DSI_ADAPTED_O] = &l->o_proj,
        [DSI_ADAPTED_Q_A] = &l->q_a_proj,
        [DSI_ADAPTED_Q_B] = &l->q_b_proj,
        [DSI_ADAPTED_KV_A] = &l->kv_a_proj_with_mqa,
        [DSI_ADAPTED_KV_B] = &l->kv_b_proj,
        [DSI_ADAPTED_GATE] = l->is_moe ? NULL : &l->mlp.gate_proj,
        [DSI_ADAPTED_UP] = l->is_moe ? NULL : &l->mlp.up_proj,
        [DSI_ADAPTED_DOWN] = l->is_moe ? NULL : &l->mlp.down_proj,
        [DSI_ADAPTED_SHARED_GATE] = l->is_moe ? &l->shared_experts.gate_proj : NULL,
        [DSI_ADAPTED_SHARED_UP] = l->is_moe ? &l->shared_experts.up_proj : NULL,
        [DSI_ADAPTED_SHARED_DOWN] = l->is_moe ? &l->shared_experts.down_proj : NULL};
    if (code == DSI_ADAPTED_KV_B && l->k_b_proj.name) { /* GGUF's two halves of it */
        *n_out = (int64_t)c->n_heads * (c->qk_nope_head_dim + c->v_head_dim);
        *n_in = c->kv_lora_rank;
        return true;
    }
    const dsi_weight *w = code < DSI_N_ADAPTED ? weights[code] : NULL;
    if (!w || !w->name) return false;
    *n_out = w->n_out, *n_in = w->n_in;
    return true;
}

typedef struct binder {
    const char *path; /* of the file */
    const dsi_config *config;
    const dsi_weights *model;
    dsi_adapter_weights *weights;
    double scale; /* the caller's */
    dsi_error *error;
} binder;

static dsi_status bad(const binder *b, dsi_status status, const char *name, const char *format, ...)
    __attribute__((format(printf, 4, 5)));
static dsi_status bad(const binder *b, dsi_status status, const char *name, const char *format,
                      ...) {
    char reason[512];
    va_list list;
    va_start(list, format);
    vsnprintf(reason, sizeof reason, format, list);
    va_end(list);
    return dsi_fail(b->error, status, "%s: tensor \"%s\" %s", b->path, name, reason);
}

/* ---- Names ----------------------------------------------------------------------------------- */

/* Parts of names of what is not supported, the first that fits counts. */
static const struct {
    const char *part, *reason;
} refused[] = {
    {".experts.", "belongs to routed experts, whose weights cannot be adapted; train without them, "
                  "or merge the adapter into the model"},
    {".mlp.gate.", "belongs to the router, which cannot be adapted; train without it, or merge the "
                   "adapter into the model"},
    {"embed_tokens", "belongs to the embeddings, which cannot be adapted; train without "
                     "embed_tokens, or merge the adapter into the model"},
    {"lm_head", "belongs to the head, which cannot be adapted; train without lm_head, or merge the "
                "adapter into the model"},
    {"lora_magnitude_vector", "belongs to DoRA, which is not supported; train without use_dora, or "
                              "merge the adapter into the model"},
    {"lora_embedding", "belongs to an embedding, which cannot be adapted; train without it, or "
                       "merge the adapter into the model"},
    {".bias", "is a bias; train with bias \"none\" and lora_bias false, or merge the adapter into "
              "the model"},
    {".base_layer.", "is a weight of the model itself; save the adapter alone (save_pretrained)"},
    {"layernorm", "belongs to a norm, which has no A and B; train without it, or merge the adapter "
                  "into the model"},
};

static dsi_status refuse_name(const binder *b, const char *name) {
    for (size_t i = 0; i < sizeof refused / sizeof refused[0]; i++)
        if (strstr(name, refused[i].part))
            return bad(b, DSI_E_UNSUPPORTED, name, "%s", refused[i].reason);
    return bad(b, DSI_E_UNSUPPORTED, name,
               "is not known; names are %sN.MODULE.lora_A.weight and lora_B.weight, with a MODULE "
               "such as self_attn.q_proj or mlp.down_proj, as save_pretrained writes them",
               prefix);
}

/* What a name says. */
typedef struct place {
    uint32_t layer, code;
    bool is_b;
    char module[160]; /* model.layers.N.self_attn.q_proj */
} place;

/* Layer number and what follows it; false if there is none. */
static bool read_layer(const char *name, uint64_t *layer, const char **rest) {
    size_t n = sizeof prefix - 1;
    if (strncmp(name, prefix, n) != 0) return false;
    const char *c = name + n;
    for (*layer = 0; *c >= '0' && *c <= '9' && c < name + n + 6; c++)
        *layer = *layer * 10 + (uint64_t)(*c - '0');
    *rest = c + 1;
    return c > name + n && *c == '.';
}

static dsi_status read_name(const binder *b, const char *name, place *p) {
    static const char *const ends[] = {".lora_A.weight", ".lora_B.weight"};
    uint64_t layer;
    const char *rest;
    if (!read_layer(name, &layer, &rest)) return refuse_name(b, name);
    size_t n = strlen(rest), tail = strlen(ends[0]);
    char module[128];
    p->is_b = n > tail && strcmp(rest + n - tail, ends[1]) == 0;
    if (n <= tail || n - tail >= sizeof module || strcmp(rest + n - tail, ends[p->is_b]) != 0)
        return refuse_name(b, name);
    snprintf(module, sizeof module, "%.*s", (int)(n - tail), rest);
    p->code = dsi_adapted_find(module);
    if (p->code == DSI_N_ADAPTED) return refuse_name(b, name);
    if (layer >= b->config->n_layers)
        return bad(b, DSI_E_MODEL, name,
                   "is of layer %" PRIu64 "; the model has layers 0 to %u: the adapter belongs to "
                   "another model",
                   layer, b->config->n_layers - 1);
    p->layer = (uint32_t)layer;
    snprintf(p->module, sizeof p->module, "model.layers.%u.%s", p->layer, module);
    return DSI_OK;
}

/* ---- Shapes ---------------------------------------------------------------------------------- */

static dsi_status bind_tensor(const binder *b, const dsi_file_tensor *t) {
    place at;
    int64_t n_out = 0, n_in = 0;
    double alpha;
    dsi_adapter_weights *w = b->weights;
    dsi_status st = read_name(b, t->name, &at);
    if (st != DSI_OK) return st;
    if (!dsi_adapted_shape(b->config, &b->model->layers[at.layer], at.code, &n_out, &n_in))
        return bad(b, DSI_E_MODEL, t->name,
                   "changes %s, which this model (%s) does not have: the adapter belongs to "
                   "another model",
                   at.module, b->config->arch->model_type);
    dsi_adapter_pair *pair = &w->pairs[at.layer * DSI_N_ADAPTED + at.code];
    dsi_adapter_config_of(&w->config, at.module, &pair->rank, &alpha);
    const int64_t rows = at.is_b ? n_out : pair->rank, columns = at.is_b ? pair->rank : n_in;
    if (t->dtype != DSI_DTYPE_F32 && t->dtype != DSI_DTYPE_F16 && t->dtype != DSI_DTYPE_BF16)
        return bad(b, DSI_E_UNSUPPORTED, t->name,
                   "has type %s; A and B may be F32, F16 or BF16: save the adapter in one of them",
                   dsi_dtype_name(t->dtype));
    if (t->n_dims != 2 || t->shape[0] != rows || t->shape[1] != columns)
        return bad(b, DSI_E_MODEL, t->name,
                   "has shape [%" PRId64 "][%" PRId64 "]%s, it must be [%" PRId64 "][%" PRId64
                   "] for rank %u: the adapter belongs to another model, or to another "
                   "adapter_config.json",
                   t->shape[0], t->n_dims > 1 ? t->shape[1] : 1, t->n_dims > 2 ? "..." : "", rows,
                   columns, pair->rank);
    double scale = b->scale * alpha / (w->config.rslora ? sqrt(pair->rank) : (double)pair->rank);
    pair->scale = (float)scale;
    pair->n_out = n_out, pair->n_in = n_in;
    if (at.is_b)
        pair->b_t = dsi_checkpoint_data(&w->checkpoint, t), pair->b_dtype = t->dtype;
    else
        pair->a = dsi_checkpoint_data(&w->checkpoint, t), pair->a_dtype = t->dtype;
    w->n_bytes += t->n_bytes; /* of tensors in the file */
    return DSI_OK;
}

/* A without B, or nothing at all. */
static dsi_status check_pairs(const binder *b) {
    dsi_adapter_weights *w = b->weights;
    for (uint32_t i = 0; i < w->n_layers * DSI_N_ADAPTED; i++) {
        const dsi_adapter_pair *p = &w->pairs[i];
        if (!p->a && !p->b_t) continue;
        if (!p->a || !p->b_t)
            return dsi_fail(b->error, DSI_E_FORMAT,
                            "%s: %s%u.%s has lora_%s.weight, but no lora_%s.weight; the file is "
                            "not whole: save the adapter again",
                            b->path, prefix, i / DSI_N_ADAPTED, dsi_adapted_name(i % DSI_N_ADAPTED),
                            p->a ? "A" : "B", p->a ? "B" : "A");
        w->n_pairs++;
        if (p->rank > w->max_rank) w->max_rank = p->rank;
    }
    return DSI_OK;
}

/* ---- Values ---------------------------------------------------------------------------------- */

enum { WIDENED = 256 };

static uint64_t mix(uint64_t sum, const void *data, size_t n_bytes) {
    const uint8_t *at = data;
    for (uint64_t word; n_bytes > 0; at += 8) {
        size_t n = n_bytes < 8 ? n_bytes : 8;
        word = 0;
        memcpy(&word, at, n);
        sum = dsi_mix64(sum ^ word) + DSI_MIX64_STEP;
        n_bytes -= n;
    }
    return sum;
}

/* Reads every value once. */
static dsi_status check_values(const binder *b, const dsi_file_tensor *t) {
    const uint8_t *data = dsi_checkpoint_data(&b->weights->checkpoint, t);
    const uint64_t size = dsi_dtype_bytes(t->dtype), n = t->n_bytes / size;
    uint64_t *sum = &b->weights->fingerprint;
    float values[WIDENED];
    *sum = mix(mix(*sum, t->name, strlen(t->name)), &t->dtype, sizeof t->dtype);
    for (uint64_t i = 0; i < n; i += WIDENED) {
        uint64_t count = n - i < WIDENED ? n - i : WIDENED;
        dsi_widen(t->dtype, data + i * size, values, count);
        *sum = mix(*sum, data + i * size, count * size);
        for (uint64_t j = 0; j < count; j++)
            if (!isfinite(values[j]))
                return bad(b, DSI_E_FORMAT, t->name,
                           "holds %g at value %" PRIu64 ": the training went wrong or the file is "
                           "damaged; use another checkpoint of the adapter",
                           (double)values[j], i + j);
    }
    return DSI_OK;
}

/* ---- Copies ---------------------------------------------------------------------------------- */

/* GGUF files of Llama hold q and k with the rows of each head in another order: rows (i, i + dim /
 * 2) of a head become neighbours. Row r here is which row of B. */
static int64_t row_of_b(const dsi_config *c, uint32_t code, int64_t r) {
    const int64_t dim = c->head_dim;
    bool reordered = c->rope_interleaved && !c->arch->rope_interleaved &&
                     (code == DSI_ADAPTED_Q || code == DSI_ADAPTED_K);
    if (!reordered) return r;
    return r - r % dim + r % dim % 2 * (dim / 2) + r % dim / 2;
}

static void transpose(const dsi_config *c, uint32_t code, const dsi_adapter_pair *p, uint8_t *to) {
    const size_t size = dsi_dtype_bytes(p->b_dtype);
    for (int64_t r = 0; r < p->n_out; r++) {
        const uint8_t *from = p->b_t + (size_t)(row_of_b(c, code, r) * p->rank) * size;
        for (int64_t j = 0; j < p->rank; j++)
            memcpy(to + (size_t)(j * p->n_out + r) * size, from + (size_t)j * size, size);
    }
}

/* Copies B transposed, and A where it is misaligned; or with to NULL counts the bytes. */
static uint64_t copy_pairs(const binder *b, uint8_t *to) {
    dsi_adapter_weights *w = b->weights;
    uint64_t used = 0;
    for (uint32_t i = 0; i < w->n_layers * DSI_N_ADAPTED; i++) {
        dsi_adapter_pair *p = &w->pairs[i];
        if (!p->a) continue;
        const uint64_t a_bytes = (uint64_t)(p->n_in * p->rank) * dsi_dtype_bytes(p->a_dtype);
        const uint64_t b_bytes = (uint64_t)(p->n_out * p->rank) * dsi_dtype_bytes(p->b_dtype);
        if ((uintptr_t)p->a % dsi_dtype_bytes(p->a_dtype) != 0) {
            if (to) p->a = memcpy(to + used, p->a, a_bytes);
            used += (a_bytes + 63) / 64 * 64;
        } else if (!to) {
            w->n_bytes_used += a_bytes;
        }
        if (to) {
            const dsi_map *map = &w->checkpoint.shards[0].map;
            transpose(b->config, i % DSI_N_ADAPTED, p, to + used);
            dsi_sys_drop_file_pages(map, (uint64_t)(p->b_t - map->data), b_bytes);
            p->b_t = to + used;
        }
        used += (b_bytes + 63) / 64 * 64;
    }
    return used;
}

static dsi_status make_copies(const binder *b) {
    DSI_MEMORY_SCOPE(WEIGHTS);
    dsi_adapter_weights *w = b->weights;
    uint64_t n = copy_pairs(b, NULL); /* of matrices in a mapped file: no sum overflows */
    w->copies = dsi_sys_alloc_aligned(n);
    if (!w->copies)
        return dsi_fail(b->error, DSI_E_NOMEM, "%s: no memory for %" PRIu64 " bytes of copies",
                        b->path, n);
    w->n_bytes_copies = n;
    w->n_bytes_used += n;
    copy_pairs(b, w->copies);
    return DSI_OK;
}

/* ---- Open and close -------------------------------------------------------------------------- */

static dsi_status bind_all(binder *b) {
    dsi_adapter_weights *w = b->weights;
    const dsi_checkpoint *c = &w->checkpoint;
    w->n_layers = b->config->n_layers;
    w->pairs = dsi_sys_calloc((uint64_t)w->n_layers * DSI_N_ADAPTED, sizeof *w->pairs);
    if (!w->pairs) return dsi_fail(b->error, DSI_E_NOMEM, "%s: no memory for its table", b->path);
    dsi_status st = DSI_OK;
    for (uint32_t i = 0; i < c->n_tensors && st == DSI_OK; i++) st = bind_tensor(b, &c->tensors[i]);
    if (st == DSI_OK) st = check_pairs(b);
    for (uint32_t i = 0; i < c->n_tensors && st == DSI_OK; i++)
        st = check_values(b, &c->tensors[i]);
    for (uint32_t i = 0; i < w->n_layers * DSI_N_ADAPTED && st == DSI_OK; i++)
        w->fingerprint = mix(w->fingerprint, &w->pairs[i].scale, sizeof w->pairs[i].scale);
    return st == DSI_OK ? make_copies(b) : st;
}

/* The weights as PyTorch pickles them are code to be run: never read. */
static dsi_status find_file(const char *folder, char path[DSI_PATH_BYTES], dsi_error *error) {
    char old[DSI_PATH_BYTES];
    dsi_sys_sort there = DSI_SORT_NOTHING, old_there = DSI_SORT_NOTHING;
    dsi_status st = dsi_path_join(path, folder, file_name, error);
    if (st == DSI_OK) st = dsi_path_join(old, folder, old_name, error);
    if (st == DSI_OK) st = dsi_sys_look(path, &there, error);
    if (st == DSI_OK) st = dsi_sys_look(old, &old_there, error);
    if (st != DSI_OK || there == DSI_SORT_FILE) return st;
    return dsi_fail(error, DSI_E_IO, "%s: holds no %s%s", folder, file_name,
                    old_there == DSI_SORT_FILE
                        ? "; adapter_model.bin is not read: save the adapter with "
                          "safe_serialization=True"
                        : "; give the folder that save_pretrained has written");
}

dsi_status dsi_adapter_weights_open(const char *folder, const dsi_config *config,
                                    const dsi_weights *model, double scale,
                                    dsi_adapter_weights *weights, dsi_error *error) {
    char path[DSI_PATH_BYTES];
    *weights = (dsi_adapter_weights){0};
    binder b = {.path = path,
                .config = config,
                .model = model,
                .weights = weights,
                .scale = scale,
                .error = error};
    dsi_sys_sort sort;
    dsi_status st = dsi_sys_look(folder, &sort, error);
    if (st == DSI_OK && sort != DSI_SORT_FOLDER)
        st = dsi_fail(error, DSI_E_IO,
                      "%s: no such folder; give the folder that holds adapter_config.json and %s",
                      folder, file_name);
    if (st == DSI_OK) st = dsi_adapter_config_load(folder, &weights->config, error);
    if (st == DSI_OK) st = find_file(folder, path, error);
    if (st == DSI_OK) st = dsi_checkpoint_open_file(path, &weights->checkpoint, error);
    if (st == DSI_OK) st = bind_all(&b);
    if (st != DSI_OK) dsi_adapter_weights_close(weights);
    return st;
}

void dsi_adapter_weights_close(dsi_adapter_weights *w) {
    dsi_checkpoint_close(&w->checkpoint);
    dsi_adapter_config_free(&w->config);
    dsi_sys_free(w->pairs);
    dsi_sys_free(w->copies);
    *w = (dsi_adapter_weights){0};
}
