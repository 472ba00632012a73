/* synth.h: the shapes of synthetic checkpoints and the list of their tensors. */
#ifndef DSI_BENCH_SYNTH_H
#define DSI_BENCH_SYNTH_H

#include "../lib/base/base.h"
#include <stdio.h>

enum { SYNTH_V3, SYNTH_V2, SYNTH_QWEN2, SYNTH_LLAMA };

/* A geometry; the names are those of config.json. */
typedef struct synth_shape {
    const char *preset, *about;
    /* V3: sigmoid, noaux_tc, YaRN; V2: softmax, greedy, YaRN; dense ones: rope_theta */
    uint32_t family;
    int64_t hidden_size, num_hidden_layers, vocab_size, intermediate_size, num_attention_heads;
    int64_t bos_token_id, eos_token_id;
    /* V3, V2 */
    int64_t first_k_dense_replace, moe_intermediate_size;
    int64_t n_routed_experts, n_shared_experts, num_experts_per_tok, n_group, topk_group;
    int64_t q_lora_rank, kv_lora_rank; /* q_lora_rank 0: q_proj */
    int64_t qk_nope_head_dim, qk_rope_head_dim, v_head_dim;
    bool mtp; /* V3: behind the last layer, the block that drafts */
    int64_t index_n_heads, index_head_dim, index_topk; /* V3.2's indexer; 0: there is none */
    /* Qwen2, Llama; a head has hidden_size / num_attention_heads columns */
    int64_t num_key_value_heads;
    const char *rope_theta, *rms_norm_eps; /* as config.json has them */
} synth_shape;
/* false: no such preset. */
bool synth_find(const char *preset, synth_shape *shape);
/* "v3-slice, v2-lite-half, tiny, ..." for messages. */
const char *synth_names(void);
/* Fewer layers and a smaller vocabulary (0: as they are); with the block that drafts. false: there
 * are not so many, or this family has no such block. */
bool synth_cut(synth_shape *shape, uint32_t n_layers, uint32_t n_vocabulary, bool mtp);

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

/* Adds one tensor; a matrix with what belongs to the list's form (gain 1 keeps the size of a
 * normalised input); one that is BF16 in every form; gate, up and down of an MLP. */
synth_tensor *synth_add(synth_list *list, const char *prefix, const char *name, dsi_dtype dtype,
                        int64_t rows, int64_t columns, uint32_t values);
void synth_add_matrix(synth_list *list, const char *prefix, const char *name, int64_t rows,
                      int64_t columns, double gain);
void synth_add_bf16(synth_list *list, const char *prefix, const char *name, int64_t rows,
                    int64_t columns, double deviation);
void synth_add_mlp(synth_list *list, const synth_shape *shape, const char *prefix, const char *name,
                   int64_t inter);

/* Bytes of a tensor that are drawn from one generator of their own. */
enum { SYNTH_PIECE = 1 << 16 };

/* Writes config.json for the shape. */
void synth_write_config(FILE *file, const synth_shape *shape, const synth_form *form);
void synth_write_number(FILE *file, const char *key, int64_t value);

/* ---- synth_dense.c: the R1-Distill models: Qwen2 and Llama ---- */

#define SYNTH_DENSE_NAMES "r1-distill-qwen-1.5b, -7b, -14b, -32b, r1-distill-llama-8b, -70b"
static inline bool synth_is_dense(const synth_shape *shape) {
    return shape->family == SYNTH_QWEN2 || shape->family == SYNTH_LLAMA;
}
bool synth_find_dense(const char *preset, synth_shape *shape);
/* Attention and MLP of one layer, between its norms. */
void synth_add_dense_layer(synth_list *list, const synth_shape *shape, const char *prefix);
/* The keys of config.json that only these families have. */
void synth_write_dense(FILE *file, const synth_shape *shape);

#endif
