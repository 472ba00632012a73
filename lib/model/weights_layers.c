/* weights_layers.c: which tensors a layer has: their official names, shapes from the configuration,
 * the types that may stand there. */
#include "weights.h"
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

/* model.layers.<layer>.<part> */
static dsi_status bind_part(dsi_binder *b, dsi_weight *w, const char *part, int64_t n_out,
                            int64_t n_in, uint32_t types) {
    char name[DSI_NAME_BYTES + 1];
    snprintf(name, sizeof name, "model.layers.%u.%s", b->layer, part);
    return dsi_bind_tensor(b, w, name, n_out, n_in, types);
}

/* <prefix>.gate_proj, up_proj [inter][hidden], down_proj [hidden][inter] */
static dsi_status bind_mlp(dsi_binder *b, dsi_mlp_weights *m, const char *prefix, int64_t inter) {
    int64_t hidden = b->config->hidden_size;
    char part[128];
    snprintf(part, sizeof part, "%s.gate_proj.weight", prefix);
    dsi_status status = bind_part(b, &m->gate_proj, part, inter, hidden, DSI_MAY_BE_QUANTISED);
    snprintf(part, sizeof part, "%s.up_proj.weight", prefix);
    if (!status) status = bind_part(b, &m->up_proj, part, inter, hidden, DSI_MAY_BE_QUANTISED);
    snprintf(part, sizeof part, "%s.down_proj.weight", prefix);
    if (!status) status = bind_part(b, &m->down_proj, part, hidden, inter, DSI_MAY_BE_QUANTISED);
    return status;
}

typedef struct place { /* one line of a layer's tensors; a row of zero size is absent */
    dsi_weight *weight;
    const char *part;
    int64_t n_out, n_in;
    uint32_t types;
} place;

static dsi_status bind_places(dsi_binder *b, const place *places, size_t n) {
    dsi_status status = DSI_OK;
    for (size_t i = 0; i < n && !status; i++)
        status = bind_part(b, places[i].weight, places[i].part, places[i].n_out, places[i].n_in,
                           places[i].types);
    return status;
}
#define COUNT(array) (sizeof(array) / sizeof *(array))

/* model.layers.<layer>.<part>, or NULL. */
static const dsi_file_tensor *has_part(const dsi_binder *b, const char *part) {
    char name[DSI_NAME_BYTES + 1];
    snprintf(name, sizeof name, "model.layers.%u.%s", b->layer, part);
    return dsi_checkpoint_find(b->checkpoint, name);
}

/* What these places hold stands elsewhere too. Only GGUF files have such. */
static void pass_over(dsi_binder *b, const place *places, size_t n) {
    for (size_t i = 0; i < n && b->checkpoint->gguf; i++) {
        const dsi_file_tensor *t = has_part(b, places[i].part);
        if (t) b->used[t - b->checkpoint->tensors] = 1;
    }
}

static dsi_status bind_mla(dsi_binder *b, dsi_layer_weights *l) {
    const dsi_config *c = b->config;
    int64_t hidden = c->hidden_size, heads = c->n_heads, latent = c->kv_lora_rank;
    int64_t q = heads * (c->qk_nope_head_dim + c->qk_rope_head_dim), q_rank = c->q_lora_rank;
    int64_t kv = heads * (c->qk_nope_head_dim + c->v_head_dim); /* per head: k rows, then v rows */
    const place with_rank[] = {
        {&l->q_a_proj, "self_attn.q_a_proj.weight", q_rank, hidden, DSI_MAY_BE_QUANTISED},
        {&l->q_a_layernorm, "self_attn.q_a_layernorm.weight", 0, q_rank, DSI_PLAIN},
        {&l->q_b_proj, "self_attn.q_b_proj.weight", q, q_rank, DSI_MAY_BE_QUANTISED}};
    const place without_rank[] = {
        {&l->q_proj, "self_attn.q_proj.weight", q, hidden, DSI_MAY_BE_QUANTISED}};
    const place rest[] = {
        {&l->kv_a_proj_with_mqa, "self_attn.kv_a_proj_with_mqa.weight",
         latent + c->qk_rope_head_dim, hidden, DSI_MAY_BE_QUANTISED},
        /* The norm covers the latent only; the rope key behind it is not normed. */
        {&l->kv_a_layernorm, "self_attn.kv_a_layernorm.weight", 0, latent, DSI_PLAIN},
        {&l->o_proj, "self_attn.o_proj.weight", hidden, heads * c->v_head_dim,
         DSI_MAY_BE_QUANTISED}};
    const place whole = {&l->kv_b_proj, "self_attn.kv_b_proj.weight", kv, latent,
                         DSI_MAY_BE_QUANTISED};
    /* GGUF's two halves: per head the key half transposed, and the value half. */
    const place halves[] = {{&l->k_b_proj, "self_attn.k_b_proj.weight", heads * latent,
                             c->qk_nope_head_dim, DSI_MAY_BE_BLOCKS},
                            {&l->v_b_proj, "self_attn.v_b_proj.weight", heads * c->v_head_dim,
                             latent, DSI_MAY_BE_BLOCKS}};
    dsi_status status = q_rank ? bind_places(b, with_rank, COUNT(with_rank))
                               : bind_places(b, without_rank, COUNT(without_rank));
    if (!status) status = bind_places(b, rest, COUNT(rest));
    if (status) return status;
    if (!b->checkpoint->gguf || has_part(b, whole.part)) {
        pass_over(b, halves, COUNT(halves)); /* some files have both */
        return bind_places(b, &whole, 1);
    }
    return bind_places(b, halves, COUNT(halves));
}

/* DeepSeek-V3.2. A block that drafts may come without it: then it attends to all tokens. */
static dsi_status bind_indexer(dsi_binder *b, dsi_layer_weights *l) {
    const dsi_config *c = b->config;
    const int64_t hidden = c->hidden_size, dim = c->index_head_dim, heads = c->index_n_heads;
    const place places[] = {
        {&l->index_wq_b, "self_attn.indexer.wq_b.weight", heads * dim, c->q_lora_rank,
         DSI_MAY_BE_QUANTISED},
        {&l->index_wk, "self_attn.indexer.wk.weight", dim, hidden, DSI_MAY_BE_QUANTISED},
        {&l->index_k_norm, "self_attn.indexer.k_norm.weight", 0, dim, DSI_PLAIN},
        {&l->index_k_norm_bias, "self_attn.indexer.k_norm.bias", 0, dim, DSI_PLAIN},
        {&l->index_weights_proj, "self_attn.indexer.weights_proj.weight", heads, hidden,
         DSI_MAY_BE_BLOCKS}};
    if (b->layer >= c->n_layers && !has_part(b, places[0].part)) return DSI_OK;
    return bind_places(b, places, COUNT(places));
}

static dsi_status bind_gqa(dsi_binder *b, dsi_layer_weights *l) {
    const dsi_config *c = b->config;
    int64_t hidden = c->hidden_size, q = (int64_t)c->n_heads * c->head_dim;
    int64_t kv = (int64_t)c->n_kv_heads * c->head_dim;
    const place matrices[] = {
        {&l->q_proj, "self_attn.q_proj.weight", q, hidden, DSI_MAY_BE_QUANTISED},
        {&l->k_proj, "self_attn.k_proj.weight", kv, hidden, DSI_MAY_BE_QUANTISED},
        {&l->v_proj, "self_attn.v_proj.weight", kv, hidden, DSI_MAY_BE_QUANTISED},
        {&l->o_proj, "self_attn.o_proj.weight", hidden, q, DSI_MAY_BE_QUANTISED}};
    const place biases[] = {{&l->q_bias, "self_attn.q_proj.bias", 0, q, DSI_PLAIN},
                            {&l->k_bias, "self_attn.k_proj.bias", 0, kv, DSI_PLAIN},
                            {&l->v_bias, "self_attn.v_proj.bias", 0, kv, DSI_PLAIN}};
    dsi_status status = bind_places(b, matrices, COUNT(matrices));
    if (status || !c->arch->qkv_bias) return status;
    return bind_places(b, biases, COUNT(biases));
}

static dsi_status bind_moe(dsi_binder *b, dsi_layer_weights *l) {
    const dsi_config *c = b->config;
    int64_t experts = c->n_routed_experts, inter = c->moe_intermediate_size;
    /* The gate decides by small differences: no checkpoint quantises it, none may. */
    dsi_status status =
        bind_part(b, &l->gate, "mlp.gate.weight", experts, c->hidden_size, DSI_PLAIN);
    if (!status && c->router == DSI_ROUTER_NOAUX_TC)
        status = bind_part(b, &l->e_score_correction_bias, "mlp.gate.e_score_correction_bias", 0,
                           experts, DSI_PLAIN);
    char prefix[64];
    for (int64_t j = 0; j < experts && !status; j++) {
        snprintf(prefix, sizeof prefix, "mlp.experts.%" PRId64, j);
        status = bind_mlp(b, &l->experts[j], prefix, inter);
    }
    if (status || c->n_shared_experts == 0) return status;
    return bind_mlp(b, &l->shared_experts, "mlp.shared_experts", inter * c->n_shared_experts);
}

dsi_status dsi_bind_layer(dsi_binder *b, dsi_layer_weights *l) {
    const dsi_config *c = b->config;
    int64_t hidden = c->hidden_size;
    const place norms[] = {
        {&l->input_layernorm, "input_layernorm.weight", 0, hidden, DSI_PLAIN},
        {&l->post_attention_layernorm, "post_attention_layernorm.weight", 0, hidden, DSI_PLAIN}};
    dsi_status status = bind_places(b, norms, COUNT(norms));
    if (!status) status = c->arch->attention == DSI_ATTENTION_MLA ? bind_mla(b, l) : bind_gqa(b, l);
    if (!status && c->arch->indexer) status = bind_indexer(b, l);
    if (status) return status;
    return l->is_moe ? bind_moe(b, l) : bind_mlp(b, &l->mlp, "mlp", c->intermediate_size);
}

dsi_status dsi_bind_top(dsi_binder *b) {
    const dsi_config *c = b->config;
    dsi_weights *w = b->weights;
    int64_t vocab = c->vocab_size, hidden = c->hidden_size;
    static const char head[] = "lm_head.weight", rope_freqs[] = "rope_freqs.weight";
    dsi_status status = dsi_bind_tensor(b, &w->embed_tokens, "model.embed_tokens.weight", vocab,
                                        hidden, DSI_MAY_BE_BLOCKS);
    if (!status) status = dsi_bind_tensor(b, &w->norm, "model.norm.weight", 0, hidden, DSI_PLAIN);
    if (!status && dsi_checkpoint_find(b->checkpoint, rope_freqs))
        status = dsi_bind_tensor(b, &w->rope_freqs, rope_freqs, 0, c->head_dim / 2, DSI_PLAIN);
    if (status || !c->tie_word_embeddings)
        return status ? status
                      : dsi_bind_tensor(b, &w->lm_head, head, vocab, hidden, DSI_MAY_BE_QUANTISED);
    /* A tied head that is stored all the same is a copy of embed_tokens, and passed over. */
    const dsi_file_tensor *t = dsi_checkpoint_find(b->checkpoint, head);
    if (t) b->used[t - b->checkpoint->tensors] = 1;
    return t ? dsi_check_tensor(b, t, vocab, hidden, DSI_MAY_BE_BLOCKS) : DSI_OK;
}

/* ---- What every row reads -------------------------------------------------------------------- */

void dsi_layer_weights_always(const dsi_layer_weights *l,
                              const dsi_weight *weights[DSI_LAYER_WEIGHTS]) {
    const dsi_weight *const all[] = {&l->input_layernorm,
                                     &l->post_attention_layernorm,
                                     &l->q_proj,
                                     &l->q_a_proj,
                                     &l->q_a_layernorm,
                                     &l->q_b_proj,
                                     &l->kv_a_proj_with_mqa,
                                     &l->kv_a_layernorm,
                                     &l->kv_b_proj,
                                     &l->k_b_proj,
                                     &l->v_b_proj,
                                     &l->o_proj,
                                     &l->index_wq_b,
                                     &l->index_wk,
                                     &l->index_weights_proj,
                                     &l->index_k_norm,
                                     &l->index_k_norm_bias,
                                     &l->k_proj,
                                     &l->v_proj,
                                     &l->q_bias,
                                     &l->k_bias,
                                     &l->v_bias,
                                     &l->gate,
                                     &l->e_score_correction_bias};
    _Static_assert(sizeof all / sizeof all[0] == DSI_LAYER_WEIGHTS, "the two lists agree");
    for (uint32_t i = 0; i < DSI_LAYER_WEIGHTS; i++) weights[i] = all[i];
}

/* ---- The block that drafts ------------------------------------------------------------------ */

/* Published files hold embeddings and head once more; without them those of the model serve. */
static dsi_status bind_again(dsi_binder *b, dsi_weight *w, const char *part, uint32_t types) {
    const dsi_config *c = b->config;
    if (!has_part(b, part)) return DSI_OK;
    return bind_part(b, w, part, c->vocab_size, c->hidden_size, types);
}

static dsi_status bind_mtp_parts(dsi_binder *b, dsi_mtp_weights *m) {
    const int64_t hidden = b->config->hidden_size;
    const place places[] = {
        {&m->enorm, "enorm.weight", 0, hidden, DSI_PLAIN},
        {&m->hnorm, "hnorm.weight", 0, hidden, DSI_PLAIN},
        {&m->norm, "shared_head.norm.weight", 0, hidden, DSI_PLAIN},
        /* trap 9: the embedding comes first */
        {&m->eh_proj, "eh_proj.weight", hidden, 2 * hidden, DSI_MAY_BE_QUANTISED}};
    m->layer.is_moe = b->config->n_routed_experts > 0 && has_part(b, "mlp.gate.weight") != NULL;
    dsi_status status = bind_places(b, places, COUNT(places));
    if (!status) status = bind_again(b, &m->embed_tokens, "embed_tokens.weight", DSI_MAY_BE_BLOCKS);
    if (!status) status = bind_again(b, &m->head, "shared_head.head.weight", DSI_MAY_BE_QUANTISED);
    return status ? status : dsi_bind_layer(b, &m->layer);
}

dsi_status dsi_bind_mtp(dsi_binder *b) {
    dsi_mtp_weights *m = &b->weights->mtp;
    dsi_mlp_weights *experts = m->layer.experts;
    b->layer = b->config->n_layers;
    if (!dsi_is_mtp_block(b, b->layer)) return DSI_OK;
    dsi_status status = bind_mtp_parts(b, m);
    if (status == DSI_OK || status == DSI_E_NOMEM) return status;
    b->weights->mtp_error = *b->error;
    *m = (dsi_mtp_weights){.layer.experts = experts};
    *b->error = (dsi_error){0};
    return DSI_OK;
}
