/* weights.c: binds the tensors of a checkpoint to their places in the model by their official
 * names. Shapes follow from config.json; a tensor that nothing reads is an error, because a model
 * that passes over one of its weights answers wrongly without a sign. */
#include "safetensors.h"
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

/* A bound tensor whose address in the mapped file is no multiple of its element size. */
typedef struct copy {
    const dsi_file_tensor *tensor;
    dsi_weight *weight;
    bool scale;      /* fills weight->scale, else weight->data */
    uint64_t offset; /* in dsi_weights.copies */
} copy;

enum { COPY_ALIGNMENT = 64 };

typedef struct binder {
    const dsi_checkpoint *checkpoint;
    const dsi_config *config;
    dsi_weights *weights;
    dsi_error *error;
    uint8_t *used; /* [n_tensors] */
    char *names_end;
    copy *copies;
    uint32_t n_copies, capacity;
    uint32_t layer; /* the layer that is bound, for names */
} binder;

/* ---- Messages ------------------------------------------------------------------------------- */

/* The file a message about the whole checkpoint names. */
static const char *main_file(const dsi_checkpoint *c) {
    return c->n_shards == 1 ? c->shards[0].path : c->dir;
}
static const char *shard_of(const binder *b, const dsi_file_tensor *t) {
    return b->checkpoint->shards[t->shard].path;
}
static void print_shape(const int64_t *shape, uint32_t n_dims, char text[96]) {
    size_t used = 0;
    text[0] = 0;
    for (uint32_t i = 0; i < n_dims && used < 70; i++)
        used += (size_t)snprintf(text + used, 96 - used, "%s%" PRId64, i ? ", " : "", shape[i]);
}

/* ---- Copies --------------------------------------------------------------------------------- */

static dsi_status plan_copy(binder *b, const dsi_file_tensor *t, dsi_weight *weight, bool scale) {
    if (b->n_copies == b->capacity) {
        uint32_t capacity = b->capacity ? 2 * b->capacity : 64;
        copy *grown = dsi_sys_realloc(b->copies, capacity, sizeof *grown);
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
    b->copies[b->n_copies++] = (copy){t, weight, scale, offset};
    b->weights->n_bytes_copies = end - end % COPY_ALIGNMENT;
    return DSI_OK;
}

/* All copies lie in one block, so that a backend imports them as one buffer. */
static dsi_status make_copies(binder *b) {
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
        const copy *c = &b->copies[i];
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

/* Which types a place takes, beside BF16, F16, F32. */
enum { PLAIN = 0, MAY_BE_E4M3 = 1 };

/* Type and shape; n_out 0: 1-D of n_in. */
static dsi_status check_tensor(binder *b, const dsi_file_tensor *t, int64_t n_out, int64_t n_in,
                               uint32_t types) {
    bool e4m3 = t->dtype == DSI_DTYPE_E4M3, may_be_e4m3 = types & MAY_BE_E4M3;
    bool plain =
        t->dtype == DSI_DTYPE_BF16 || t->dtype == DSI_DTYPE_F16 || t->dtype == DSI_DTYPE_F32;
    if (!plain && !(e4m3 && may_be_e4m3))
        return dsi_fail(b->error, DSI_E_UNSUPPORTED,
                        "%s: tensor \"%s\" is %s; this weight must be BF16, F16%s", shard_of(b, t),
                        t->name, dsi_dtype_name(t->dtype),
                        may_be_e4m3 ? ", F32 or F8_E4M3" : " or F32");
    if (e4m3 && !b->config->fp8)
        return dsi_fail(b->error, DSI_E_MODEL,
                        "%s: tensor \"%s\" is F8_E4M3, but config.json has no quantization_config "
                        "that says so",
                        shard_of(b, t), t->name);
    int64_t shape[2] = {n_out, n_in}, *expected = n_out ? shape : shape + 1;
    uint32_t n_dims = n_out ? 2 : 1;
    if (t->n_dims == n_dims && memcmp(t->shape, expected, n_dims * sizeof *shape) == 0)
        return DSI_OK;
    char is[96], wanted[96];
    print_shape(t->shape, t->n_dims, is);
    print_shape(expected, n_dims, wanted);
    return dsi_fail(b->error, DSI_E_MODEL,
                    "%s: tensor \"%s\" has shape [%s], config.json makes it [%s]", shard_of(b, t),
                    t->name, is, wanted);
}

static dsi_status find_tensor(binder *b, const char *name, const dsi_file_tensor **t) {
    *t = dsi_checkpoint_find(b->checkpoint, name);
    if (!*t)
        return dsi_fail(b->error, DSI_E_MODEL,
                        "%s: tensor \"%s\" is missing, config.json asks for it; the files are "
                        "incomplete or of different models",
                        main_file(b->checkpoint), name);
    b->used[*t - b->checkpoint->tensors] = 1;
    return DSI_OK;
}

/* The F32 multipliers of an E4M3 weight: one per block of 128 x 128, partial blocks too (the last
 * row block of DeepSeek-V3's kv_a_proj_with_mqa, 576 rows, is half full). */
static dsi_status bind_scale(binder *b, dsi_weight *w) {
    char name[DSI_NAME_BYTES + 1];
    const dsi_file_tensor *t;
    snprintf(name, sizeof name, "%s.weight_scale_inv", w->name);
    dsi_status status = find_tensor(b, name, &t);
    if (!status)
        status = check_tensor(b, t, dsi_ceil_div(w->n_out, DSI_BLOCK),
                              dsi_ceil_div(w->n_in, DSI_BLOCK), PLAIN);
    if (status) return status;
    if (t->dtype != DSI_DTYPE_F32)
        return dsi_fail(b->error, DSI_E_UNSUPPORTED, "%s: tensor \"%s\" is %s; scales must be F32",
                        shard_of(b, t), t->name, dsi_dtype_name(t->dtype));
    w->scale_kind = DSI_SCALE_BLOCK_128;
    w->scale_dtype = t->dtype;
    w->scale_rows = t->shape[0];
    w->scale_columns = t->shape[1];
    w->scale_shard = t->shard;
    w->scale_offset = t->file_offset;
    w->scale = dsi_checkpoint_data(b->checkpoint, t);
    if (t->file_offset % dsi_dtype_bytes(t->dtype) != 0) return plan_copy(b, t, w, true);
    return DSI_OK;
}

/* n_out as above. The weight's `name` is `full_name` without a trailing ".weight". */
static dsi_status bind_tensor(binder *b, dsi_weight *w, const char *full_name, int64_t n_out,
                              int64_t n_in, uint32_t types) {
    const dsi_file_tensor *t;
    dsi_status status = find_tensor(b, full_name, &t);
    if (!status) status = check_tensor(b, t, n_out, n_in, types);
    if (status) return status;
    static const char tail[] = ".weight";
    size_t length = strlen(full_name), cut = sizeof tail - 1;
    if (length > cut && strcmp(full_name + length - cut, tail) == 0) length -= cut;
    memcpy(b->names_end, full_name, length); /* the block is zeroed and holds every name once */
    *w = (dsi_weight){.name = b->names_end,
                      .data = dsi_checkpoint_data(b->checkpoint, t),
                      .dtype = t->dtype,
                      .shard = t->shard,
                      .file_offset = t->file_offset,
                      .n_out = n_out ? n_out : 1,
                      .n_in = n_in};
    b->names_end += length + 1;
    if (t->dtype == DSI_DTYPE_E4M3) return bind_scale(b, w);
    if (t->file_offset % dsi_dtype_bytes(t->dtype) == 0) return DSI_OK;
    return plan_copy(b, t, w, false);
}

/* ---- The layers ----------------------------------------------------------------------------- */

/* model.layers.<layer>.<part> */
static dsi_status bind_part(binder *b, dsi_weight *w, const char *part, int64_t n_out, int64_t n_in,
                            uint32_t types) {
    char name[DSI_NAME_BYTES + 1];
    snprintf(name, sizeof name, "model.layers.%u.%s", b->layer, part);
    return bind_tensor(b, w, name, n_out, n_in, types);
}

/* <prefix>.gate_proj, up_proj [inter][hidden], down_proj [hidden][inter] */
static dsi_status bind_mlp(binder *b, dsi_mlp_weights *m, const char *prefix, int64_t inter) {
    int64_t hidden = b->config->hidden_size;
    char part[128];
    snprintf(part, sizeof part, "%s.gate_proj.weight", prefix);
    dsi_status status = bind_part(b, &m->gate_proj, part, inter, hidden, MAY_BE_E4M3);
    snprintf(part, sizeof part, "%s.up_proj.weight", prefix);
    if (!status) status = bind_part(b, &m->up_proj, part, inter, hidden, MAY_BE_E4M3);
    snprintf(part, sizeof part, "%s.down_proj.weight", prefix);
    if (!status) status = bind_part(b, &m->down_proj, part, hidden, inter, MAY_BE_E4M3);
    return status;
}

typedef struct place { /* one line of a layer's tensors; a row of zero size is absent */
    dsi_weight *weight;
    const char *part;
    int64_t n_out, n_in;
    uint32_t types;
} place;

static dsi_status bind_places(binder *b, const place *places, size_t n) {
    dsi_status status = DSI_OK;
    for (size_t i = 0; i < n && !status; i++)
        status = bind_part(b, places[i].weight, places[i].part, places[i].n_out, places[i].n_in,
                           places[i].types);
    return status;
}
#define COUNT(array) (sizeof(array) / sizeof *(array))

static dsi_status bind_mla(binder *b, dsi_layer_weights *l) {
    const dsi_config *c = b->config;
    int64_t hidden = c->hidden_size, heads = c->n_heads, latent = c->kv_lora_rank;
    int64_t q = heads * (c->qk_nope_head_dim + c->qk_rope_head_dim), q_rank = c->q_lora_rank;
    int64_t kv = heads * (c->qk_nope_head_dim + c->v_head_dim); /* per head: k rows, then v rows */
    const place with_rank[] = {
        {&l->q_a_proj, "self_attn.q_a_proj.weight", q_rank, hidden, MAY_BE_E4M3},
        {&l->q_a_layernorm, "self_attn.q_a_layernorm.weight", 0, q_rank, PLAIN},
        {&l->q_b_proj, "self_attn.q_b_proj.weight", q, q_rank, MAY_BE_E4M3}};
    const place without_rank[] = {{&l->q_proj, "self_attn.q_proj.weight", q, hidden, MAY_BE_E4M3}};
    const place rest[] = {
        {&l->kv_a_proj_with_mqa, "self_attn.kv_a_proj_with_mqa.weight",
         latent + c->qk_rope_head_dim, hidden, MAY_BE_E4M3},
        /* The norm covers the latent only; the rope key behind it is not normed. */
        {&l->kv_a_layernorm, "self_attn.kv_a_layernorm.weight", 0, latent, PLAIN},
        {&l->kv_b_proj, "self_attn.kv_b_proj.weight", kv, latent, MAY_BE_E4M3},
        {&l->o_proj, "self_attn.o_proj.weight", hidden, heads * c->v_head_dim, MAY_BE_E4M3}};
    dsi_status status = q_rank ? bind_places(b, with_rank, COUNT(with_rank))
                               : bind_places(b, without_rank, COUNT(without_rank));
    return status ? status : bind_places(b, rest, COUNT(rest));
}

static dsi_status bind_gqa(binder *b, dsi_layer_weights *l) {
    const dsi_config *c = b->config;
    int64_t hidden = c->hidden_size, q = (int64_t)c->n_heads * c->head_dim;
    int64_t kv = (int64_t)c->n_kv_heads * c->head_dim;
    const place matrices[] = {{&l->q_proj, "self_attn.q_proj.weight", q, hidden, MAY_BE_E4M3},
                              {&l->k_proj, "self_attn.k_proj.weight", kv, hidden, MAY_BE_E4M3},
                              {&l->v_proj, "self_attn.v_proj.weight", kv, hidden, MAY_BE_E4M3},
                              {&l->o_proj, "self_attn.o_proj.weight", hidden, q, MAY_BE_E4M3}};
    const place biases[] = {{&l->q_bias, "self_attn.q_proj.bias", 0, q, PLAIN},
                            {&l->k_bias, "self_attn.k_proj.bias", 0, kv, PLAIN},
                            {&l->v_bias, "self_attn.v_proj.bias", 0, kv, PLAIN}};
    dsi_status status = bind_places(b, matrices, COUNT(matrices));
    if (status || !c->arch->qkv_bias) return status;
    return bind_places(b, biases, COUNT(biases));
}

static dsi_status bind_moe(binder *b, dsi_layer_weights *l) {
    const dsi_config *c = b->config;
    int64_t experts = c->n_routed_experts, inter = c->moe_intermediate_size;
    /* The gate decides by small differences: no checkpoint quantises it, none may. */
    dsi_status status = bind_part(b, &l->gate, "mlp.gate.weight", experts, c->hidden_size, PLAIN);
    if (!status && c->router == DSI_ROUTER_NOAUX_TC)
        status = bind_part(b, &l->e_score_correction_bias, "mlp.gate.e_score_correction_bias", 0,
                           experts, PLAIN);
    char prefix[64];
    for (int64_t j = 0; j < experts && !status; j++) {
        snprintf(prefix, sizeof prefix, "mlp.experts.%" PRId64, j);
        status = bind_mlp(b, &l->experts[j], prefix, inter);
    }
    if (status || c->n_shared_experts == 0) return status;
    return bind_mlp(b, &l->shared_experts, "mlp.shared_experts", inter * c->n_shared_experts);
}

static dsi_status bind_layer(binder *b, dsi_layer_weights *l) {
    const dsi_config *c = b->config;
    int64_t hidden = c->hidden_size;
    const place norms[] = {
        {&l->input_layernorm, "input_layernorm.weight", 0, hidden, PLAIN},
        {&l->post_attention_layernorm, "post_attention_layernorm.weight", 0, hidden, PLAIN}};
    dsi_status status = bind_places(b, norms, COUNT(norms));
    if (!status) status = c->arch->attention == DSI_ATTENTION_MLA ? bind_mla(b, l) : bind_gqa(b, l);
    if (status) return status;
    return l->is_moe ? bind_moe(b, l) : bind_mlp(b, &l->mlp, "mlp", c->intermediate_size);
}

static dsi_status bind_top(binder *b) {
    const dsi_config *c = b->config;
    dsi_weights *w = b->weights;
    int64_t vocab = c->vocab_size, hidden = c->hidden_size;
    static const char head[] = "lm_head.weight";
    dsi_status status =
        bind_tensor(b, &w->embed_tokens, "model.embed_tokens.weight", vocab, hidden, PLAIN);
    if (!status) status = bind_tensor(b, &w->norm, "model.norm.weight", 0, hidden, PLAIN);
    if (status || !c->tie_word_embeddings)
        return status ? status : bind_tensor(b, &w->lm_head, head, vocab, hidden, MAY_BE_E4M3);
    /* A tied head that is stored all the same is a copy of embed_tokens, and passed over. */
    const dsi_file_tensor *t = dsi_checkpoint_find(b->checkpoint, head);
    if (t) b->used[t - b->checkpoint->tensors] = 1;
    return t ? check_tensor(b, t, vocab, hidden, PLAIN) : DSI_OK;
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
static bool is_mtp_block(const binder *b, uint32_t layer) {
    char name[64];
    snprintf(name, sizeof name, "model.layers.%u.eh_proj.weight", layer);
    return b->config->arch->moe && dsi_checkpoint_find(b->checkpoint, name) != NULL;
}

static bool ends_with(const char *text, const char *tail) {
    size_t n = strlen(text), m = strlen(tail);
    return n >= m && strcmp(text + n - m, tail) == 0;
}

static dsi_status check_unused(binder *b) {
    const dsi_checkpoint *c = b->checkpoint;
    uint8_t known[1001] = {0}; /* layers: 1 is an MTP block, 2 is not */
    for (uint32_t i = 0; i < c->n_tensors; i++) {
        const dsi_file_tensor *t = &c->tensors[i];
        uint32_t layer = 0;
        if (b->used[i] || ends_with(t->name, ".rotary_emb.inv_freq")) continue;
        bool behind = dsi_tensor_is_mtp(b->config, t->name, &layer);
        if (behind && known[layer] == 0) {
            known[layer] = is_mtp_block(b, layer) ? 1 : 2;
            if (known[layer] == 1) b->weights->n_mtp_layers++;
        }
        if (behind && known[layer] == 1) {
            b->weights->n_mtp_tensors++;
            continue;
        }
        if (behind)
            return dsi_fail(b->error, DSI_E_MODEL,
                            "%s: tensor \"%s\" lies behind the last layer and belongs to no MTP "
                            "block; config.json says num_hidden_layers = %u",
                            shard_of(b, t), t->name, b->config->n_layers);
        return dsi_fail(b->error, DSI_E_MODEL,
                        "%s: tensor \"%s\" has no place in a %s model with this config.json; the "
                        "files are of different models, or the model is a variant that is not "
                        "supported",
                        shard_of(b, t), t->name, b->config->arch->model_type);
    }
    return DSI_OK;
}

/* ---- Bind and free -------------------------------------------------------------------------- */

static dsi_status allocate(binder *b) {
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
    return DSI_OK;
}

dsi_status dsi_weights_bind(const dsi_checkpoint *checkpoint, const dsi_config *config,
                            dsi_weights *weights, dsi_error *error) {
    dsi_error local;
    *weights = (dsi_weights){0};
    binder b = {.checkpoint = checkpoint,
                .config = config,
                .weights = weights,
                .error = error ? error : &local};
    dsi_status status = allocate(&b);
    if (!status) status = bind_top(&b);
    for (; b.layer < config->n_layers && !status; b.layer++)
        status = bind_layer(&b, &weights->layers[b.layer]);
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
