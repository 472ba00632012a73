/* gguf_names.h: the official names of what a GGUF file holds; for lib/model, and for the
 * command that writes such files. */
#ifndef DSI_LIB_MODEL_GGUF_NAMES_H
#define DSI_LIB_MODEL_GGUF_NAMES_H

#include "../base/gguf.h"
#include "model.h"

/* How a tensor of a GGUF file becomes tensors of a checkpoint. */
typedef struct dsi_gguf_place {
    const char *part; /* behind "model.layers.N.", or the whole name if layer is -1 */
    int32_t layer;
    bool experts; /* `part` has a %u for the expert; the last dimension counts them */
    bool heads;   /* the last dimension counts heads: their rows follow each other in one matrix */
} dsi_gguf_place;
/* Where the tensor `name` belongs; false if no supported model has such a name. */
bool dsi_gguf_place_of(const char *name, uint32_t name_bytes, dsi_gguf_place *place);
/* The official name ("model.layers.3.mlp.experts.7.up_proj.weight") into `text`; returns its bytes
 * without the zero behind it, as snprintf. */
int dsi_gguf_official_name(const dsi_gguf_place *place, uint32_t expert, char *text, size_t size);
/* The names of a layer's tensors behind "blk.N.", one after the other; NULL: there are no more. */
const char *dsi_gguf_layer_name(uint32_t i);

#endif
