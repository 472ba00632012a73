/* model.h: a checkpoint as files, as a configuration, and as named weights. */
#ifndef DSI_LIB_MODEL_MODEL_H
#define DSI_LIB_MODEL_MODEL_H

#include "../base/base.h"
#include "../base/gguf.h"
#include "../base/sys.h"

/* ---- Files: shards and their tensors (checkpoint.c, safetensors.c, gguf_checkpoint.c) -------- */
typedef struct dsi_file_tensor {
    const char *name; /* zero-terminated, owned by the checkpoint */
    dsi_dtype dtype;
    uint32_t n_dims; /* 0 (scalar) to 4 */
    int64_t shape[4];
    uint32_t shard;
    uint64_t file_offset; /* first byte in the file */
    uint64_t n_bytes;
} dsi_file_tensor;
typedef struct dsi_shard {
    char *path;
    dsi_map map;
} dsi_shard;
typedef struct dsi_checkpoint {
    char *dir;
    dsi_shard *shards;
    uint32_t n_shards;
    dsi_file_tensor *tensors; /* in file order: shard by shard, by offset */
    uint32_t n_tensors;
    uint32_t *index; /* open-addressing hash of names -> tensor + 1 */
    uint32_t index_mask;
    char **names_blocks; /* storage of the names, one block per shard */
    dsi_gguf *gguf;      /* [n_shards] the headers of GGUF files; NULL: safetensors */
    char warning[256];   /* e.g. a total_size that contradicts the headers; "" if none */
} dsi_checkpoint;

/* Reads and checks every header by the strict rules (README.md here lists them); maps the shards;
 * reads no weight. progress may be NULL and is called per shard with (done, total) bytes. */
typedef void (*dsi_checkpoint_progress)(void *user, uint64_t done, uint64_t total);
dsi_status dsi_checkpoint_open(const char *dir, dsi_checkpoint_progress progress, void *user,
                               dsi_checkpoint *checkpoint, dsi_error *error);
/* A model in GGUF: the file `path`, or all the files of which it is one (-00002-of-00005.gguf). The
 * tensors get their official names and shapes [n_out][n_in], each expert one of its own; what has
 * no official name keeps its own. Rules: README.md here. */
dsi_status dsi_checkpoint_open_gguf(const char *path, dsi_checkpoint_progress progress, void *user,
                                    dsi_checkpoint *checkpoint, dsi_error *error);
/* Does the name of a file say that it is a GGUF? */
bool dsi_is_gguf_name(const char *path);
/* One .safetensors file on its own (golden files). */
dsi_status dsi_checkpoint_open_file(const char *path, dsi_checkpoint *checkpoint, dsi_error *error);
void dsi_checkpoint_close(dsi_checkpoint *checkpoint);
const dsi_file_tensor *dsi_checkpoint_find(const dsi_checkpoint *checkpoint, const char *name);
const uint8_t *dsi_checkpoint_data(const dsi_checkpoint *checkpoint, const dsi_file_tensor *tensor);

/* ---- Configuration: config.json checked against a row of arch.c (config.c, arch.c) ----------- */
enum { DSI_ATTENTION_MLA = 0, DSI_ATTENTION_GQA = 1 };
enum {
    DSI_ROUTER_NONE = 0,
    DSI_ROUTER_GREEDY = 1,
    DSI_ROUTER_GROUP_LIMITED = 2,
    DSI_ROUTER_NOAUX_TC = 3
};
enum { DSI_SCORING_SOFTMAX = 0, DSI_SCORING_SIGMOID = 1 };
enum { DSI_ROPE_DEFAULT = 0, DSI_ROPE_YARN = 1, DSI_ROPE_LLAMA3 = 2 };

/* A model family is a row: what config.json must say, which ops run, which names weights have. */
typedef struct dsi_arch {
    const char *model_type;   /* "deepseek_v3" */
    const char *architecture; /* "DeepseekV3ForCausalLM" */
    uint32_t attention;       /* DSI_ATTENTION_* */
    bool moe;                 /* may hold routed experts */
    bool indexer;             /* MLA attends to the tokens that an indexer chooses (V3.2) */
    bool qkv_bias;            /* q_proj, k_proj, v_proj carry biases (Qwen2) */
    bool rope_interleaved;    /* pairs (2i, 2i+1) as in MLA; else half-split */
    bool norm_topk_default;   /* when config.json does not say, as transformers' classes */
    const char *scoring_default;
    const char *topk_method_default;
} dsi_arch;
/* NULL: no such row. */
const dsi_arch *dsi_arch_find(const char *model_type);
/* Why a model_type that people will try has no row ("DeepSeek-V4 has compressed attention, ..."),
 * or NULL if nothing is known about it. */
const char *dsi_arch_why_not(const char *model_type);
/* "deepseek_v2, deepseek_v3, ..." for messages. */
const char *dsi_arch_names(void);

typedef struct dsi_rope_config {
    uint32_t kind; /* DSI_ROPE_* */
    double theta, factor, original_max_position;
    double beta_fast, beta_slow, mscale, mscale_all_dim, attention_factor; /* YaRN; 0 = absent */
    double low_freq_factor, high_freq_factor;                              /* llama3 */
} dsi_rope_config;

/* How the matrices of a checkpoint are stored: quantization_config. Each tensor states its own type
 * all the same, so matrices that are left out of it are BF16, F16 or F32 beside quantised ones. */
typedef struct dsi_quantization {
    dsi_dtype dtype;     /* E4M3, I8, I4; NONE: nothing is quantised */
    uint32_t scale_kind; /* DSI_SCALE_* */
    uint32_t scale_group;
    bool power_of_two;      /* scale_fmt "ue8m0": multipliers of operands are, too */
    const char *scale_name; /* "weight_scale_inv" or "weight_scale" */
    char *ignored;          /* names and "re:" patterns of plain modules, one zero-terminated */
    uint32_t n_ignored;     /* text behind the other; owned */
} dsi_quantization;
/* Is `name` (a module without ".weight") what `pattern`, a name or "re:" and a pattern, stands
 * for? */
bool dsi_quantization_matches(const char *pattern, const char *name);

typedef struct dsi_config {
    const dsi_arch *arch;
    uint32_t hidden_size, n_layers, vocab_size, intermediate_size, max_position;
    uint32_t n_heads, n_kv_heads, head_dim; /* GQA: head_dim of q, k, v */
    uint32_t q_lora_rank /* 0: q_proj */, kv_lora_rank;
    uint32_t qk_nope_head_dim, qk_rope_head_dim, v_head_dim; /* MLA */
    uint32_t index_n_heads, index_head_dim, index_topk;      /* V3.2; else 0 */
    uint32_t n_routed_experts, n_shared_experts, n_experts_per_token, moe_intermediate_size;
    uint32_t first_k_dense, moe_layer_freq, n_group, topk_group;
    uint32_t router, scoring;
    bool norm_topk_prob, tie_word_embeddings;
    bool attention_bias;   /* q, k and v have biases: a fact of the row (Qwen2) */
    bool rope_interleaved; /* the row's, but for Llama in GGUF, whose q and k are reordered */
    double routed_scaling_factor, rms_norm_eps;
    dsi_rope_config rope;
    uint32_t n_mtp_layers;
    dsi_quantization quantization;
    int32_t bos_token, eos_tokens[8]; /* -1: absent */
    uint32_t n_eos_tokens;
} dsi_config;
/* dir/config.json (old and new key style) and, where present, dir/generation_config.json for the
 * end tokens. Every number is limited: layers <= 256, experts <= 1024, hidden <= 65536,
 * vocabulary <= 1 M, heads <= 1024. Freed with dsi_config_free; empty after a failure. */
dsi_status dsi_config_load(const char *dir, dsi_config *config, dsi_error *error);
void dsi_config_free(dsi_config *config);
/* The same out of the keys of a GGUF file; what had to be assumed goes to checkpoint->warning. */
dsi_status dsi_config_of_gguf(dsi_checkpoint *checkpoint, dsi_config *config, dsi_error *error);

/* inv_freq[dim/2] of the rope and the factor on cos and sin: default, YaRN, llama3, by the formulas
 * of transformers' modeling_rope_utils.py (rope.c states them). */
void dsi_rope_inv_freq(const dsi_config *config, uint32_t dim, float *inv_freq);
double dsi_rope_cos_sin_factor(const dsi_config *config);
/* Softmax scale. GQA: head_dim^-0.5. MLA: (nope + rope)^-0.5 * m^2, at every length of context;
 * m = 0.1 * mscale_all_dim * ln(factor) + 1 with YaRN, else 1. */
double dsi_softmax_scale(const dsi_config *config);

/* ---- Weights: tensors bound to their places, shapes checked against the config (weights.c) --- */
typedef struct dsi_weight {
    const char *name;    /* official name without ".weight"; NULL: absent */
    const uint8_t *data; /* mapped [n_out][n_in], row-major; 1-D: n_out = 1, n_in = n */
    dsi_dtype dtype;     /* E4M3, I8, I4, blocks, BF16, F16, F32; 1-D: one of the last three */
    uint32_t shard;      /* place in the files; data may point to a copy (dsi_weights.copies) */
    uint64_t file_offset;
    int64_t n_out, n_in;
    const void *scale;     /* E4M3, I8, I4: multipliers as scale_kind lays them out; else NULL */
    uint32_t scale_kind;   /* DSI_SCALE_* */
    uint32_t scale_group;  /* columns of one group if the kind is GROUP */
    dsi_dtype scale_dtype; /* F32, BF16 or F16: as they lie in the file */
    uint32_t scale_shard;
    uint64_t scale_offset;             /* place of the scales in their shard */
    int64_t scale_rows, scale_columns; /* 0 if there are none */
} dsi_weight;
typedef struct dsi_mlp_weights {
    dsi_weight gate_proj, up_proj, down_proj;
} dsi_mlp_weights;
typedef struct dsi_layer_weights {
    dsi_weight input_layernorm, post_attention_layernorm;
    dsi_weight q_proj, q_a_proj, q_a_layernorm, q_b_proj; /* MLA */
    dsi_weight kv_a_proj_with_mqa, kv_a_layernorm, kv_b_proj, o_proj;
    dsi_weight k_b_proj, v_b_proj; /* GGUF, instead of kv_b_proj: [heads * kv_lora_rank][nope] and
                                      [heads * v_head_dim][kv_lora_rank] */
    dsi_weight index_wq_b, index_wk, index_weights_proj; /* V3.2 */
    dsi_weight index_k_norm, index_k_norm_bias;
    dsi_weight k_proj, v_proj, q_bias, k_bias, v_bias; /* GQA */
    bool is_moe;
    dsi_mlp_weights mlp; /* dense layers */
    dsi_weight gate, e_score_correction_bias;
    dsi_mlp_weights *experts;       /* [n_routed_experts] */
    dsi_mlp_weights shared_experts; /* names NULL if n_shared_experts is 0 */
} dsi_layer_weights;
/* Multi-token prediction: the block behind the last layer, which drafts the token after the next.
 * h' = eh_proj [enorm(embedding); hnorm(hidden state after the last norm)], through a layer of its
 * own, then norm and head (DeepSeek-V3, README_WEIGHTS.md). */
typedef struct dsi_mtp_weights {
    dsi_weight embed_tokens, head; /* names NULL: not stored again */
    dsi_weight enorm, hnorm, eh_proj, norm;
    dsi_layer_weights layer;
} dsi_mtp_weights;
typedef struct dsi_weights {
    dsi_weight embed_tokens, norm, lm_head; /* lm_head = embed_tokens when tied */
    dsi_weight rope_freqs; /* GGUF of Llama: [head_dim / 2] divisors of the rope's frequencies */
    dsi_layer_weights *layers; /* [n_layers] */
    dsi_mtp_weights
        mtp; /* eh_proj.name NULL: there is none, or mtp_error says why it is not used */
    dsi_error mtp_error;
    dsi_mlp_weights *expert_storage;
    void *copies; /* one block: tensors whose place in the file is misaligned for their type */
    uint64_t n_bytes_copies;
    char *names;           /* storage of dsi_weight.name */
    uint32_t n_copies;     /* tensors in copies */
    uint32_t n_mtp_layers; /* MTP blocks found in the files, and their tensors */
    uint32_t n_mtp_tensors;
} dsi_weights;
/* Does `name` ("model.layers.61.eh_proj.weight") belong to a layer behind the last one? *layer
 * (may be NULL) gets its number. After a successful bind such a layer is an MTP block. */
bool dsi_tensor_is_mtp(const dsi_config *config, const char *name, uint32_t *layer);
/* The weights of a layer that every row reads, those of attention and the router with the norms and
 * biases: all but the MLPs. Absent ones have no name. */
enum { DSI_LAYER_WEIGHTS = 24 };
void dsi_layer_weights_always(const dsi_layer_weights *layer,
                              const dsi_weight *weights[DSI_LAYER_WEIGHTS]);
/* The tensors stay where they are: weights must be freed before the checkpoint is closed.
 * Refuses a missing tensor, a shape other than the config's, a type the kernels cannot read, an
 * E4M3 weight without weight_scale_inv of the right shape; tensors that nobody reads are refused
 * too, except MTP blocks (a layer behind the last one that has an eh_proj), rotary inv_freq buffers
 * and the lm_head of a tied model. On failure *weights is empty. */
dsi_status dsi_weights_bind(const dsi_checkpoint *checkpoint, const dsi_config *config,
                            dsi_weights *weights, dsi_error *error);
void dsi_weights_free(dsi_weights *weights);

#endif
