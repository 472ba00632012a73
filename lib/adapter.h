/* adapter.h: adapters (LoRA) on an engine: what is behind dsi_adapter, and what a step knows of the
 * adapters of its rows. */
#ifndef DSI_LIB_ADAPTER_H
#define DSI_LIB_ADAPTER_H

#include "internal.h"
#include "model/adapter.h"

/* A, and B transposed, of one weight on the device; a.ne[0] = 0: the weight stays as it is. */
typedef struct dsi_placed_pair {
    dsi_tensor a, b_t;
    float scale;
} dsi_placed_pair;

struct dsi_adapter {
    dsi_handle handle;
    int64_t process; /* that opened it */
    dsi_engine *engine;
    dsi_adapter_options options;
    dsi_adapter_weights weights;
    dsi_placed_pair *placed;    /* [n_layers][DSI_N_ADAPTED] */
    dsi_buf *file, *copies;     /* the mapping, the loader's copies */
    _Atomic uint32_t n_holders; /* the caller until dsi_adapter_close, and sessions */
    char *path;
    const char *name; /* in path */
    char targets[256];
};

/* Products of one x that adapters add to at once. */
enum { DSI_ADAPTED_AT_ONCE = 4 };

/* Of the engine: room for the rows of adapters in a step, made with the first adapter. */
typedef struct dsi_adapt {
    uint32_t max_rank; /* of all adapters so far */
    dsi_buf *buf;      /* t and shared_hidden */
    uint64_t n_bytes;
    dsi_tensor t[DSI_ADAPTED_AT_ONCE]; /* F32 [chunk_tokens][max_rank] */
    dsi_tensor shared_hidden;          /* act [chunk_tokens][shared experts]; ne[0] = 0: none */
    /* of the step that runs */
    uint32_t n_parts;
    const dsi_adapter **adapters; /* [max_sessions] of each part */
    uint32_t *first, *n_rows;     /* [max_sessions] of each part */
    int32_t *rows, *part_of;      /* [chunk_tokens] */
    /* of the weights whose products run */
    dsi_low_rank_part *parts[DSI_ADAPTED_AT_ONCE]; /* [max_sessions] */
    dsi_low_rank low_rank[DSI_ADAPTED_AT_ONCE];
    dsi_tensor plan_a[DSI_ADAPTED_AT_ONCE], plan_b_t[DSI_ADAPTED_AT_ONCE];
    void *block; /* that holds the arrays */
} dsi_adapt;

/* One holder more, for a session; NULL is allowed. */
void dsi_adapter_hold(dsi_adapter *adapter);
void dsi_adapter_release(dsi_adapter *adapter);
void dsi_adapt_free(dsi_engine *engine);

/* Which rows of engine->rows have which adapter; NULL if none has. */
dsi_adapt *dsi_adapt_begin(dsi_engine *engine);
/* What the step's adapters add to the weight `name` ("mlp.down_proj") [n_out][n_in] of a layer;
 * NULL if none changes it. slot: which of the t it may use, until another call names the same one.
 * PLAN: as if one of the largest rank did. */
const dsi_low_rank *dsi_adapt_find(dsi_adapt *adapt, dsi_forward_mode mode, uint32_t layer,
                                   const char *name, uint32_t slot, int64_t n_out, int64_t n_in);

#endif
