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

/* How matrices are stored, in the layouts of published checkpoints. */
typedef struct synth_form {
    const char *name, *about;
    dsi_dtype dtype; /* E4M3, BF16, I8, I4 */
    uint32_t scale_kind, scale_group;
    dsi_dtype scale_dtype;
    const char *scale_name; /* "weight_scale", ... */
    const char *config;     /* quantization_config; NULL: none */
} synth_form;
/* NULL: no such form. */
const synth_form *synth_form_find(const char *name);
/* "fp8, bf16, ..." for messages. */
const char *synth_form_names(void);
/* Units of the stored numbers in one standard deviation: E4M3 ends at 5.6 of them, I8 at 4, I4 at
 * 3. */
double synth_per_deviation(dsi_dtype dtype);

/* What the values of a tensor are. SHAPE: the shape of the weight beside it. */
enum { SYNTH_ONES, SYNTH_ZEROS, SYNTH_NORMAL, SYNTH_SCALES, SYNTH_SHAPE };
typedef struct synth_tensor {
    char name[80];
    dsi_dtype dtype;
    int64_t rows, columns; /* rows 0: 1-D */
    uint64_t n_bytes;
    uint32_t values;
    double deviation;  /* of NORMAL; of the weights that SCALES belong to, in their units */
    int64_t weight[2]; /* SHAPE: rows and columns */
    uint32_t shard;
} synth_tensor;
typedef struct synth_list {
    synth_tensor *tensors;
    size_t n, capacity;
    bool no_memory;
    uint64_t n_bytes;
    uint64_t n_params; /* without scales */
    const synth_form *form;
} synth_list;
/* All tensors of the shape, in the order of the layers. false: no memory. */
bool synth_list_make(const synth_shape *shape, const synth_form *form, synth_list *list);
void synth_list_free(synth_list *list);

/* Bytes of a tensor that are drawn from one generator of their own. */
enum { SYNTH_PIECE = 1 << 16 };

/* Writes config.json for the shape. */
void synth_write_config(FILE *file, const synth_shape *shape, const synth_form *form);

#endif
