/* adapter.h: a LoRA adapter as PEFT saves it: a folder of adapter_config.json and
 * adapter_model.safetensors, checked against the model that it was trained on. */
#ifndef DSI_LIB_MODEL_ADAPTER_H
#define DSI_LIB_MODEL_ADAPTER_H

#include "model.h"

enum { DSI_MAX_ADAPTER_RANK = 512 };

/* The weights of a layer that an adapter may change: X(code, module). */
#define DSI_ADAPTED_LIST(X)                                                                        \
    X(DSI_ADAPTED_Q, "self_attn.q_proj")                                                           \
    X(DSI_ADAPTED_K, "self_attn.k_proj")                                                           \
    X(DSI_ADAPTED_V, "self_attn.v_proj")                                                           \
    X(DSI_ADAPTED_O, "self_attn.o_proj")                                                           \
    X(DSI_ADAPTED_Q_A, "self_attn.q_a_proj")                                                       \
    X(DSI_ADAPTED_Q_B, "self_attn.q_b_proj")                                                       \
    X(DSI_ADAPTED_KV_A, "self_attn.kv_a_proj_with_mqa")                                            \
    X(DSI_ADAPTED_KV_B, "self_attn.kv_b_proj")                                                     \
    X(DSI_ADAPTED_GATE, "mlp.gate_proj")                                                           \
    X(DSI_ADAPTED_UP, "mlp.up_proj")                                                               \
    X(DSI_ADAPTED_DOWN, "mlp.down_proj")                                                           \
    X(DSI_ADAPTED_SHARED_GATE, "mlp.shared_experts.gate_proj")                                     \
    X(DSI_ADAPTED_SHARED_UP, "mlp.shared_experts.up_proj")                                         \
    X(DSI_ADAPTED_SHARED_DOWN, "mlp.shared_experts.down_proj")
enum {
#define DSI_ADAPTED_ENUM(code, module) code,
    DSI_ADAPTED_LIST(DSI_ADAPTED_ENUM)
#undef DSI_ADAPTED_ENUM
        DSI_N_ADAPTED
};
/* The code of a module, DSI_N_ADAPTED if it is none of them; its name. */
uint32_t dsi_adapted_find(const char *module);
const char *dsi_adapted_name(uint32_t code);
/* Shape [n_out][n_in] of the weight in a layer; false if the layer has none. */
bool dsi_adapted_shape(const dsi_config *config, const dsi_layer_weights *layer, uint32_t code,
                       int64_t *n_out, int64_t *n_in);

/* W + scale * B A of one weight; a NULL: the weight stays as it is. */
typedef struct dsi_adapter_pair {
    const uint8_t *a;   /* [rank][n_in], in the mapped file or in `copies` */
    const uint8_t *b_t; /* [rank][n_out]: B transposed, in `copies`: its columns are what is read */
    dsi_dtype a_dtype, b_dtype;
    uint32_t rank;
    float scale;
    int64_t n_out, n_in;
} dsi_adapter_pair;

/* What adapter_config.json says. */
typedef struct dsi_adapter_config {
    uint32_t r;
    double alpha;
    bool rslora;                          /* scale = alpha / sqrt(rank), else alpha / rank */
    struct dsi_adapter_pattern *patterns; /* exceptions by module; owned */
    uint32_t n_patterns;
    char warning[256]; /* keys that are not known, "" if none */
} dsi_adapter_config;
/* Refuses what this library does not compute: by key, value and remedy. */
dsi_status dsi_adapter_config_load(const char *folder, dsi_adapter_config *config,
                                   dsi_error *error);
void dsi_adapter_config_free(dsi_adapter_config *config);
/* Rank and alpha of a module, "model.layers.0.self_attn.q_proj". */
void dsi_adapter_config_of(const dsi_adapter_config *config, const char *module, uint32_t *rank,
                           double *alpha);

typedef struct dsi_adapter_weights {
    dsi_checkpoint checkpoint; /* the mapped file */
    dsi_adapter_config config;
    dsi_adapter_pair *pairs; /* [n_layers][DSI_N_ADAPTED] */
    uint32_t n_layers, n_pairs, max_rank;
    uint64_t n_bytes;      /* of all pairs in the file */
    uint64_t n_bytes_used; /* of what a step reads, in the file or in copies */
    uint64_t fingerprint;  /* of scales and values */
    uint8_t *copies;       /* matrices that do not lie in the file as they are used */
    uint64_t n_bytes_copies;
} dsi_adapter_weights;
/* Opens the folder for a model; `scale` multiplies what its configuration says. All values are
 * read once: one that is not finite is refused. On failure *weights is empty.
 * Errors: IO, FORMAT, MODEL (does not fit the model), UNSUPPORTED, NOMEM. */
dsi_status dsi_adapter_weights_open(const char *folder, const dsi_config *config,
                                    const dsi_weights *model, double scale,
                                    dsi_adapter_weights *weights, dsi_error *error);
void dsi_adapter_weights_close(dsi_adapter_weights *weights);

#endif
