/* snapshot_model.c: which model a saved session is of. */
#include "snapshot.h"

enum { MAX_SAMPLES = 1024, SAMPLE_BYTES = 64 };

static uint64_t mix_double(uint64_t sum, double value) {
    uint64_t bits;
    memcpy(&bits, &value, sizeof bits);
    return dsi_mix(sum, bits);
}

static uint64_t mix_config(uint64_t sum, const dsi_config *c) {
    const uint32_t numbers[] = {c->hidden_size,
                                c->n_layers,
                                c->vocab_size,
                                c->intermediate_size,
                                c->max_position,
                                c->n_heads,
                                c->n_kv_heads,
                                c->head_dim,
                                c->q_lora_rank,
                                c->kv_lora_rank,
                                c->qk_nope_head_dim,
                                c->qk_rope_head_dim,
                                c->v_head_dim,
                                c->n_routed_experts,
                                c->n_shared_experts,
                                c->n_experts_per_token,
                                c->first_k_dense,
                                c->moe_layer_freq,
                                c->n_group,
                                c->topk_group,
                                c->router,
                                c->scoring,
                                c->norm_topk_prob,
                                c->tie_word_embeddings,
                                c->attention_bias,
                                c->rope.kind,
                                c->moe_intermediate_size};
    const double reals[] = {c->routed_scaling_factor,
                            c->rms_norm_eps,
                            c->rope.theta,
                            c->rope.factor,
                            c->rope.original_max_position,
                            c->rope.beta_fast,
                            c->rope.beta_slow,
                            c->rope.mscale,
                            c->rope.mscale_all_dim,
                            c->rope.attention_factor,
                            c->rope.low_freq_factor,
                            c->rope.high_freq_factor};
    sum = dsi_mix_bytes(sum, c->arch->model_type, strlen(c->arch->model_type));
    for (size_t i = 0; i < sizeof numbers / sizeof numbers[0]; i++) sum = dsi_mix(sum, numbers[i]);
    for (size_t i = 0; i < sizeof reals / sizeof reals[0]; i++) sum = mix_double(sum, reals[i]);
    if (!c->arch->indexer) return sum;
    return dsi_mix(dsi_mix(dsi_mix(sum, c->index_n_heads), c->index_head_dim), c->index_topk);
}

/* Configuration, table of tensors, sizes of the shards, and a sample of the weights themselves: 64
 * bytes from the middle of up to 1,024 tensors, so that a fine-tune of the same shape is told from
 * its base. */
uint64_t dsi_snapshot_fingerprint(const dsi_model *model) {
    const dsi_checkpoint *c = &model->checkpoint;
    uint64_t sum = mix_config(0, &model->config);
    uint32_t stride = c->n_tensors / MAX_SAMPLES + 1;
    for (uint32_t i = 0; i < c->n_shards; i++) sum = dsi_mix(sum, c->shards[i].map.n_bytes);
    for (uint32_t i = 0; i < c->n_tensors; i++) {
        const dsi_file_tensor *t = &c->tensors[i];
        sum = dsi_mix_bytes(sum, t->name, strlen(t->name));
        sum = dsi_mix(dsi_mix(dsi_mix(sum, t->dtype), t->n_bytes), t->file_offset);
        for (uint32_t d = 0; d < t->n_dims; d++) sum = dsi_mix(sum, (uint64_t)t->shape[d]);
        if (i % stride) continue;
        uint64_t n = t->n_bytes < SAMPLE_BYTES ? t->n_bytes : SAMPLE_BYTES;
        sum = dsi_mix_bytes(sum, dsi_checkpoint_data(c, t) + (t->n_bytes - n) / 2, n);
    }
    return sum;
}
