/* gguf_deepseek.c: the keys and tensors of GGUF's architecture "deepseek2" (V2, V3) for a preset.
 */
#include "gguf.h"
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

/* ---- Tensors -------------------------------------------------------------------------------- */

typedef struct maker {
    const synth_shape *shape;
    const synth_list *from;
    gguf_list *list;
    uint32_t type;
} maker;

/* The place of a tensor in the checkpoint; both lists come from the same shape, so it is there. */
static size_t find(const synth_list *from, const char *name) {
    size_t i = 0;
    while (i + 1 < from->n && strcmp(from->tensors[i].name, name) != 0) i++;
    return i;
}

static gguf_tensor *add(maker *m, const char *name, const char *source, uint32_t type) {
    static gguf_tensor nowhere; /* written to when memory is out; the list is then discarded */
    gguf_list *l = m->list;
    if (l->n == l->capacity) {
        size_t capacity = l->capacity ? 2 * l->capacity : 64;
        gguf_tensor *larger = realloc(l->tensors, capacity * sizeof *larger);
        if (!larger) {
            l->no_memory = true;
            return &nowhere;
        }
        l->tensors = larger;
        l->capacity = capacity;
    }
    gguf_tensor *t = &l->tensors[l->n++];
    *t = (gguf_tensor){.type = type, .n_stacked = 1, .first = find(m->from, source)};
    snprintf(t->name, sizeof t->name, "%s", name);
    const synth_tensor *s = &m->from->tensors[t->first];
    int64_t per_number = s->dtype == DSI_DTYPE_I32 ? 8 : 1;
    t->dims[0] = s->columns * per_number;
    t->dims[1] = s->rows;
    t->n_dims = s->rows ? 2 : 1;
    return t;
}

/* A tensor of a layer that keeps its numbers: norms, the router, its bias. */
static void add_plain(maker *m, int64_t layer, const char *name, const char *source) {
    char full[64], from[80];
    snprintf(full, sizeof full, "blk.%" PRId64 ".%s", layer, name);
    snprintf(from, sizeof from, "model.layers.%" PRId64 ".%s", layer, source);
    add(m, full, from, GGUF_F32);
}

static gguf_tensor *add_matrix(maker *m, int64_t layer, const char *name, const char *source) {
    char full[64], from[80];
    bool packed = m->from->form->dtype == DSI_DTYPE_I4;
    snprintf(full, sizeof full, "blk.%" PRId64 ".%s.weight", layer, name);
    snprintf(from, sizeof from, "model.layers.%" PRId64 ".%s.weight%s", layer, source,
             packed ? "_packed" : "");
    return add(m, full, from, m->type);
}

/* The same matrix of every expert, one behind the other. */
static void add_experts(maker *m, int64_t layer, const char *name, const char *part) {
    char source[64], second[80];
    bool packed = m->from->form->dtype == DSI_DTYPE_I4;
    snprintf(source, sizeof source, "mlp.experts.0.%s", part);
    gguf_tensor *t = add_matrix(m, layer, name, source);
    t->n_stacked = (size_t)m->shape->n_routed_experts;
    t->n_dims = 3;
    t->dims[2] = m->shape->n_routed_experts;
    snprintf(second, sizeof second, "model.layers.%" PRId64 ".mlp.experts.1.%s.weight%s", layer,
             part, packed ? "_packed" : "");
    t->step = find(m->from, second) - t->first;
}

/* llama.cpp wants kv_b_proj in two: what turns queries into latents, and latents into values. */
static void add_heads(maker *m, int64_t layer) {
    const synth_shape *s = m->shape;
    gguf_tensor *keys = add_matrix(m, layer, "attn_k_b", "self_attn.kv_b_proj");
    keys->cut = GGUF_HEAD_KEYS;
    keys->n_dims = 3;
    keys->dims[0] = s->qk_nope_head_dim;
    keys->dims[1] = s->kv_lora_rank;
    keys->dims[2] = s->num_attention_heads;
    gguf_tensor *values = add_matrix(m, layer, "attn_v_b", "self_attn.kv_b_proj");
    values->cut = GGUF_HEAD_VALUES;
    values->n_dims = 3;
    values->dims[1] = s->v_head_dim;
    values->dims[2] = s->num_attention_heads;
}

static void add_layer(maker *m, int64_t layer) {
    const synth_shape *s = m->shape;
    add_plain(m, layer, "attn_norm.weight", "input_layernorm.weight");
    if (s->q_lora_rank) {
        add_matrix(m, layer, "attn_q_a", "self_attn.q_a_proj");
        add_plain(m, layer, "attn_q_a_norm.weight", "self_attn.q_a_layernorm.weight");
        add_matrix(m, layer, "attn_q_b", "self_attn.q_b_proj");
    } else {
        add_matrix(m, layer, "attn_q", "self_attn.q_proj");
    }
    add_matrix(m, layer, "attn_kv_a_mqa", "self_attn.kv_a_proj_with_mqa");
    add_plain(m, layer, "attn_kv_a_norm.weight", "self_attn.kv_a_layernorm.weight");
    add_heads(m, layer);
    add_matrix(m, layer, "attn_output", "self_attn.o_proj");
    add_plain(m, layer, "ffn_norm.weight", "post_attention_layernorm.weight");
    if (layer < s->first_k_dense_replace) {
        add_matrix(m, layer, "ffn_gate", "mlp.gate_proj");
        add_matrix(m, layer, "ffn_up", "mlp.up_proj");
        add_matrix(m, layer, "ffn_down", "mlp.down_proj");
        return;
    }
    add_plain(m, layer, "ffn_gate_inp.weight", "mlp.gate.weight");
    if (s->family == SYNTH_V3)
        add_plain(m, layer, "exp_probs_b.bias", "mlp.gate.e_score_correction_bias");
    add_experts(m, layer, "ffn_gate_exps", "gate_proj");
    add_experts(m, layer, "ffn_up_exps", "up_proj");
    add_experts(m, layer, "ffn_down_exps", "down_proj");
    add_matrix(m, layer, "ffn_gate_shexp", "mlp.shared_experts.gate_proj");
    add_matrix(m, layer, "ffn_up_shexp", "mlp.shared_experts.up_proj");
    add_matrix(m, layer, "ffn_down_shexp", "mlp.shared_experts.down_proj");
}

bool gguf_list_make(const synth_shape *shape, const synth_list *from, uint32_t type,
                    gguf_list *list) {
    *list = (gguf_list){0};
    maker m = {.shape = shape, .from = from, .list = list, .type = type};
    add(&m, "token_embd.weight", "model.embed_tokens.weight", type);
    for (int64_t layer = 0; layer < shape->num_hidden_layers; layer++) add_layer(&m, layer);
    add(&m, "output_norm.weight", "model.norm.weight", GGUF_F32);
    add(&m, "output.weight", "lm_head.weight", type);
    for (size_t i = 0; i < list->n; i++) {
        gguf_tensor *t = &list->tensors[i];
        if (t->type != GGUF_F32) t->type = gguf_type_for(t->type, t->dims[0]);
        t->n_bytes = gguf_row_bytes(t->type, t->dims[0]);
        for (uint32_t d = 1; d < t->n_dims; d++) t->n_bytes *= (uint64_t)t->dims[d];
        list->n_bytes += t->n_bytes;
    }
    if (list->no_memory) gguf_list_free(list);
    return !list->no_memory;
}

void gguf_list_free(gguf_list *list) {
    free(list->tensors);
    list->tensors = NULL;
    list->n = list->capacity = 0;
}

/* ---- Keys ----------------------------------------------------------------------------------- */

/* A vocabulary of the right size without meaning: "t0", "t1", ... */
static void write_vocabulary(gguf_keys *k, int64_t n) {
    char token[32];
    gguf_key_text(k, "tokenizer.ggml.model", "gpt2");
    gguf_key_text(k, "tokenizer.ggml.pre", "deepseek-v3");
    gguf_key_list(k, "tokenizer.ggml.tokens", DSI_GGUF_STRING, (uint64_t)n);
    for (int64_t i = 0; i < n; i++) {
        snprintf(token, sizeof token, "t%" PRId64, i);
        gguf_write_text(k->file, token);
    }
    gguf_key_list(k, "tokenizer.ggml.token_type", DSI_GGUF_I32, (uint64_t)n);
    for (int64_t i = 0; i < n; i++) gguf_write_u32(k->file, 1); /* normal */
    gguf_key_list(k, "tokenizer.ggml.merges", DSI_GGUF_STRING, 1);
    gguf_write_text(k->file, "t 0");
    gguf_key_number(k, "tokenizer.ggml.bos_token_id", 0);
    gguf_key_number(k, "tokenizer.ggml.eos_token_id", 1);
}

static void write_attention(gguf_keys *k, const synth_shape *s) {
    gguf_key_number(k, ".attention.head_count", s->num_attention_heads);
    gguf_key_number(k, ".attention.head_count_kv", 1); /* one latent for all heads */
    gguf_key_real(k, ".attention.layer_norm_rms_epsilon", 1e-6f);
    gguf_key_number(k, ".attention.q_lora_rank", s->q_lora_rank);
    gguf_key_number(k, ".attention.kv_lora_rank", s->kv_lora_rank);
    gguf_key_number(k, ".attention.key_length", s->kv_lora_rank + s->qk_rope_head_dim);
    gguf_key_number(k, ".attention.value_length", s->kv_lora_rank);
    gguf_key_number(k, ".attention.key_length_mla", s->qk_nope_head_dim + s->qk_rope_head_dim);
    gguf_key_number(k, ".attention.value_length_mla", s->v_head_dim);
    gguf_key_number(k, ".rope.dimension_count", s->qk_rope_head_dim);
    gguf_key_real(k, ".rope.freq_base", 10000);
    gguf_key_text(k, ".rope.scaling.type", "yarn");
    gguf_key_real(k, ".rope.scaling.factor", 40);
    gguf_key_number(k, ".rope.scaling.original_context_length", 4096);
    gguf_key_real(k, ".rope.scaling.yarn_log_multiplier", s->family == SYNTH_V3 ? 0.1f : 0.0707f);
}

static void write_experts(gguf_keys *k, const synth_shape *s) {
    enum { SOFTMAX = 1, SIGMOID = 2 };
    gguf_key_number(k, ".leading_dense_block_count", s->first_k_dense_replace);
    gguf_key_number(k, ".expert_feed_forward_length", s->moe_intermediate_size);
    gguf_key_number(k, ".expert_count", s->n_routed_experts);
    gguf_key_number(k, ".expert_used_count", s->num_experts_per_tok);
    gguf_key_number(k, ".expert_shared_count", s->n_shared_experts);
    gguf_key_number(k, ".expert_gating_func", s->family == SYNTH_V3 ? SIGMOID : SOFTMAX);
    gguf_key_real(k, ".expert_weights_scale", s->family == SYNTH_V3 ? 2.5f : 1.0f);
    gguf_key_bool(k, ".expert_weights_norm", s->family == SYNTH_V3);
    if (s->n_group == 1) return;
    gguf_key_number(k, ".expert_group_count", s->n_group);
    gguf_key_number(k, ".expert_group_used_count", s->topk_group);
}

uint64_t gguf_write_keys(FILE *file, const synth_shape *s, const char *type_name) {
    char name[96];
    gguf_keys k = {.file = file, .arch = "deepseek2"};
    snprintf(name, sizeof name, "%s %s", s->preset, type_name);
    gguf_key_text(&k, "general.architecture", "deepseek2");
    gguf_key_text(&k, "general.name", name);
    gguf_key_number(&k, "general.quantization_version", 2);
    gguf_key_number(&k, ".context_length", 163840);
    gguf_key_number(&k, ".embedding_length", s->hidden_size);
    gguf_key_number(&k, ".block_count", s->num_hidden_layers);
    gguf_key_number(&k, ".feed_forward_length", s->intermediate_size);
    gguf_key_number(&k, ".vocab_size", s->vocab_size);
    write_attention(&k, s);
    write_experts(&k, s);
    write_vocabulary(&k, s->vocab_size);
    return k.n;
}
