/* synth.h: the shapes of synthetic checkpoints and the list of their tensors. */
#ifndef DSI_BENCH_SYNTH_H
#define DSI_BENCH_SYNTH_H

#include "../lib/base/base.h"
#include <stdio.h>

/* A DeepSeek geometry; the names are those of config.json. */
typedef struct synth_shape {
    const char *preset, *about;
    bool v3; /* deepseek_v3 (sigmoid, noaux_tc, YaRN), else deepseek_v2 (softmax, greedy) */
    int64_t hidden_size, num_hidden_layers, first_k_dense_replace, vocab_size;
    int64_t intermediate_size, moe_intermediate_size;
    int64_t n_routed_experts, n_shared_experts, num_experts_per_tok, n_group, topk_group;
    int64_t num_attention_heads, q_lora_rank, kv_lora_rank; /* q_lora_rank 0: q_proj */
    int64_t qk_nope_head_dim, qk_rope_head_dim, v_head_dim;
} synth_shape;
/* NULL: no such preset. */
const synth_shape *synth_find(const char *preset);
/* "v3-slice, v2-lite-half, tiny" for messages. */
const char *synth_names(void);

/* What the values of a tensor are. */
enum { SYNTH_ONES, SYNTH_ZEROS, SYNTH_NORMAL, SYNTH_SCALES };
typedef struct synth_tensor {
    char name[80];
    dsi_dtype dtype;
    int64_t rows, columns; /* rows 0: 1-D */
    uint64_t n_bytes;
    uint32_t values;
    double deviation; /* of NORMAL; of the weights that SCALES belong to */
    uint32_t shard;
} synth_tensor;
typedef struct synth_list {
    synth_tensor *tensors;
    size_t n, capacity;
    bool no_memory;
    uint64_t n_bytes;
    uint64_t n_params; /* without scales */
    dsi_dtype matrix;  /* E4M3 or BF16 */
} synth_list;
/* All tensors of the shape, in the order of the layers. false: no memory. */
bool synth_list_make(const synth_shape *shape, dsi_dtype matrix, synth_list *list);
void synth_list_free(synth_list *list);

/* Writes config.json for the shape. */
void synth_write_config(FILE *file, const synth_shape *shape, dsi_dtype matrix);

#endif
