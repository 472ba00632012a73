/* gguf_names.c: the names that llama.cpp's converter gives to tensors, and the official ones. One
 * table: what is not in it belongs to no model of arch.c. */
#include "gguf_names.h"

#include <stdio.h>
#include <string.h>

enum { MAX_LAYER = 1000 };

typedef struct name_pair {
    const char *gguf, *official;
} name_pair;

static const name_pair top[] = {
    {"token_embd.weight", "model.embed_tokens.weight"},
    {"output_norm.weight", "model.norm.weight"},
    {"output.weight", "lm_head.weight"},
    {"rope_freqs.weight", "rope_freqs.weight"}, /* of llama.cpp alone: config_rope's llama3 */
};

/* Behind "blk.N." and behind "model.layers.N.". */
static const name_pair layer_names[] = {
    {"attn_norm.weight", "input_layernorm.weight"},
    {"ffn_norm.weight", "post_attention_layernorm.weight"},
    {"attn_q.weight", "self_attn.q_proj.weight"},
    {"attn_k.weight", "self_attn.k_proj.weight"},
    {"attn_v.weight", "self_attn.v_proj.weight"},
    {"attn_q.bias", "self_attn.q_proj.bias"},
    {"attn_k.bias", "self_attn.k_proj.bias"},
    {"attn_v.bias", "self_attn.v_proj.bias"},
    {"attn_output.weight", "self_attn.o_proj.weight"},
    {"attn_q_a.weight", "self_attn.q_a_proj.weight"},
    {"attn_q_a_norm.weight", "self_attn.q_a_layernorm.weight"},
    {"attn_q_b.weight", "self_attn.q_b_proj.weight"},
    {"attn_kv_a_mqa.weight", "self_attn.kv_a_proj_with_mqa.weight"},
    {"attn_kv_a_norm.weight", "self_attn.kv_a_layernorm.weight"},
    {"attn_kv_b.weight", "self_attn.kv_b_proj.weight"},
    {"ffn_gate.weight", "mlp.gate_proj.weight"},
    {"ffn_up.weight", "mlp.up_proj.weight"},
    {"ffn_down.weight", "mlp.down_proj.weight"},
    {"ffn_gate_inp.weight", "mlp.gate.weight"},
    {"exp_probs_b.bias", "mlp.gate.e_score_correction_bias"},
    {"ffn_gate_shexp.weight", "mlp.shared_experts.gate_proj.weight"},
    {"ffn_up_shexp.weight", "mlp.shared_experts.up_proj.weight"},
    {"ffn_down_shexp.weight", "mlp.shared_experts.down_proj.weight"},
    /* the block that drafts tokens (MTP) */
    {"nextn.eh_proj.weight", "eh_proj.weight"},
    {"nextn.embed_tokens.weight", "embed_tokens.weight"},
    {"nextn.enorm.weight", "enorm.weight"},
    {"nextn.hnorm.weight", "hnorm.weight"},
    {"nextn.shared_head_head.weight", "shared_head.head.weight"},
    {"nextn.shared_head_norm.weight", "shared_head.norm.weight"},
    /* DeepSeek-V3.2 */
    {"indexer.attn_q_b.weight", "self_attn.indexer.wq_b.weight"},
    {"indexer.attn_k.weight", "self_attn.indexer.wk.weight"},
    {"indexer.k_norm.weight", "self_attn.indexer.k_norm.weight"},
    {"indexer.k_norm.bias", "self_attn.indexer.k_norm.bias"},
    {"indexer.proj.weight", "self_attn.indexer.weights_proj.weight"},
};
/* kv_b_proj in two: the key half transposed, head by head, and the value half. */
static const name_pair head_names[] = {
    {"attn_k_b.weight", "self_attn.k_b_proj.weight"},
    {"attn_v_b.weight", "self_attn.v_b_proj.weight"},
};
static const name_pair expert_names[] = {
    {"ffn_gate_exps.weight", "mlp.experts.%u.gate_proj.weight"},
    {"ffn_up_exps.weight", "mlp.experts.%u.up_proj.weight"},
    {"ffn_down_exps.weight", "mlp.experts.%u.down_proj.weight"},
};

static const char *find(const name_pair *pairs, size_t n, const char *name, size_t n_bytes) {
    for (size_t i = 0; i < n; i++)
        if (strlen(pairs[i].gguf) == n_bytes && memcmp(pairs[i].gguf, name, n_bytes) == 0)
            return pairs[i].official;
    return NULL;
}
#define FIND(pairs, name, n_bytes) find(pairs, sizeof(pairs) / sizeof *(pairs), name, n_bytes)

/* "blk.12." at the front: its number, and where the rest begins; 0 if there is none. */
static uint32_t read_layer(const char *name, uint32_t n_bytes, int32_t *layer) {
    uint32_t i = 4;
    if (n_bytes < 6 || memcmp(name, "blk.", 4) != 0) return 0;
    *layer = 0;
    for (; i < n_bytes && name[i] >= '0' && name[i] <= '9' && *layer <= MAX_LAYER; i++)
        *layer = 10 * *layer + (name[i] - '0');
    bool padded = name[4] == '0' && i > 5; /* blk.01 would be a second name of blk.1 */
    return i > 4 && i < n_bytes && name[i] == '.' && !padded ? i + 1 : 0;
}

bool dsi_gguf_place_of(const char *name, uint32_t name_bytes, dsi_gguf_place *place) {
    *place = (dsi_gguf_place){.part = FIND(top, name, name_bytes), .layer = -1};
    if (place->part) return true;
    uint32_t begin = read_layer(name, name_bytes, &place->layer);
    if (begin == 0) return false;
    name += begin, name_bytes -= begin;
    place->part = FIND(layer_names, name, name_bytes);
    if (place->part) return true;
    place->part = FIND(head_names, name, name_bytes);
    place->heads = place->part != NULL;
    if (place->part) return true;
    place->part = FIND(expert_names, name, name_bytes);
    place->experts = place->part != NULL;
    return place->experts;
}

const char *dsi_gguf_layer_name(uint32_t i) {
    enum {
        N_LAYER = sizeof layer_names / sizeof *layer_names,
        N_HEAD = sizeof head_names / sizeof *head_names,
        N_EXPERT = sizeof expert_names / sizeof *expert_names
    };
    if (i < N_LAYER) return layer_names[i].gguf;
    if (i < N_LAYER + N_HEAD) return head_names[i - N_LAYER].gguf;
    return i < N_LAYER + N_HEAD + N_EXPERT ? expert_names[i - N_LAYER - N_HEAD].gguf : NULL;
}

int dsi_gguf_official_name(const dsi_gguf_place *place, uint32_t expert, char *text, size_t size) {
    char part[96];
    if (place->layer < 0) return snprintf(text, size, "%s", place->part);
    const char *number = strstr(place->part, "%u");
    if (!number) return snprintf(text, size, "model.layers.%d.%s", place->layer, place->part);
    snprintf(part, sizeof part, "%.*s", (int)(number - place->part), place->part);
    return snprintf(text, size, "model.layers.%d.%s%u%s", place->layer, part, expert, number + 2);
}
