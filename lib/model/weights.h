/* weights.h: inside lib/model only. What binds the tensors of a checkpoint, and the places that the
 * layers have for them. */
#ifndef DSI_LIB_MODEL_WEIGHTS_H
#define DSI_LIB_MODEL_WEIGHTS_H

#include "safetensors.h"

/* A bound tensor whose address in the mapped file is no multiple of its element size. */
typedef struct dsi_weight_copy {
    const dsi_file_tensor *tensor;
    dsi_weight *weight;
    bool scale;      /* fills weight->scale, else weight->data */
    uint64_t offset; /* in dsi_weights.copies */
} dsi_weight_copy;

typedef struct dsi_binder {
    const dsi_checkpoint *checkpoint;
    const dsi_config *config;
    dsi_weights *weights;
    dsi_error *error;
    uint8_t *used; /* [n_tensors] */
    char *names_end;
    dsi_weight_copy *copies;
    uint32_t n_copies, capacity;
    uint32_t layer; /* the layer that is bound, for names */
} dsi_binder;

/* Which types a place takes, beside BF16, F16, F32: E4M3, I8, I4; GGUF's types of blocks. */
enum { DSI_PLAIN = 0, DSI_MAY_BE_BLOCKS = 1, DSI_MAY_BE_QUANTISED = 2 | DSI_MAY_BE_BLOCKS };

/* The tensor `full_name` of shape [n_out][n_in], or [n_in] if n_out is 0. The weight's `name` is
 * `full_name` without a trailing ".weight". */
dsi_status dsi_bind_tensor(dsi_binder *b, dsi_weight *w, const char *full_name, int64_t n_out,
                           int64_t n_in, uint32_t types);
/* Type and shape alone; n_out as above. */
dsi_status dsi_check_tensor(dsi_binder *b, const dsi_file_tensor *t, int64_t n_out, int64_t n_in,
                            uint32_t types);
/* Is layer `layer`, behind the last one, a block that drafts (MTP)? It is known by its eh_proj. */
bool dsi_is_mtp_block(const dsi_binder *b, uint32_t layer);
/* The tensors of layer b->layer (weights_layers.c); embeddings, last norm and head; the first
 * block that drafts: one that cannot be bound is passed over, and weights->mtp_error says why. */
dsi_status dsi_bind_layer(dsi_binder *b, dsi_layer_weights *layer);
dsi_status dsi_bind_top(dsi_binder *b);
dsi_status dsi_bind_mtp(dsi_binder *b);

#endif
