/* scratch.c: shapes and sizes of everything a step writes: activations by name, and the KV pages.
 */
#include "base/kv_row.h"
#include "internal.h"

/* Rows start at multiples of 64 bytes whatever the type. */
static int64_t padded(int64_t columns) { return (columns + 31) / 32 * 32; }

void dsi_scratch_take(uint64_t *used, dsi_tensor *t, dsi_dtype dtype, int64_t rows,
                      int64_t columns) {
    int64_t stride = columns == 1 ? 1 : padded(columns);
    *t = (dsi_tensor){.struct_size = sizeof *t,
                      .dtype = dtype,
                      .n_dims = 2,
                      .ne = {columns, rows},
                      .stride = {1, stride},
                      .offset = *used};
    *used += (uint64_t)(padded(rows * stride) * (int64_t)dsi_dtype_bytes(dtype));
}
static void take(dsi_scratch *s, dsi_tensor *t, dsi_dtype dtype, int64_t rows, int64_t columns) {
    dsi_scratch_take(&s->n_bytes, t, dtype, rows, columns);
}

static void take_mla(dsi_engine *e, int64_t rows) {
    dsi_scratch *s = &e->scratch;
    const dsi_config *c = &e->model->config;
    int64_t heads = c->n_heads, q_dim = c->qk_nope_head_dim + c->qk_rope_head_dim;
    int64_t latent = c->kv_lora_rank + c->qk_rope_head_dim;
    take(s, &s->q_a, DSI_DTYPE_F32, rows, c->q_lora_rank);
    take(s, &s->q_a_normed, e->act, rows, c->q_lora_rank);
    take(s, &s->q, DSI_DTYPE_F32, rows, heads * q_dim);
    take(s, &s->kv, DSI_DTYPE_F32, rows, latent);
    take(s, &s->q_absorbed, e->act, rows, heads * latent);
    take(s, &s->o_latent, e->act, rows, heads * c->kv_lora_rank);
    take(s, &s->attention, e->act, rows, heads * c->v_head_dim);
    e->kv_columns = e->kv_dtype == e->act
                        ? padded(latent)
                        : dsi_kv_row_of(1, c->kv_lora_rank, c->qk_rope_head_dim).n_bytes;
}
static void take_indexer(dsi_engine *e, int64_t rows) {
    dsi_scratch *s = &e->scratch;
    const dsi_config *c = &e->model->config;
    e->index_columns = c->arch->indexer ? padded(c->index_head_dim) : 0;
    take(s, &s->index_q, DSI_DTYPE_F32, rows, (int64_t)c->index_n_heads * c->index_head_dim);
    take(s, &s->index_k, DSI_DTYPE_F32, rows, c->index_head_dim);
    take(s, &s->index_weights, DSI_DTYPE_F32, rows, c->index_n_heads);
    take(s, &s->selected, DSI_DTYPE_I32, rows, dsi_selects(e) ? c->index_topk : 0);
}
static void take_gqa(dsi_engine *e, int64_t rows) {
    dsi_scratch *s = &e->scratch;
    const dsi_config *c = &e->model->config;
    take(s, &s->q, DSI_DTYPE_F32, rows, (int64_t)c->n_heads * c->head_dim);
    take(s, &s->kv, DSI_DTYPE_F32, rows, 2 * (int64_t)c->n_kv_heads * c->head_dim);
    take(s, &s->attention, e->act, rows, (int64_t)c->n_heads * c->head_dim);
    const int64_t kv_heads = 2 * (int64_t)c->n_kv_heads;
    e->kv_columns = e->kv_dtype == e->act ? padded(kv_heads * c->head_dim)
                                          : dsi_kv_row_of(kv_heads, c->head_dim, 0).n_bytes;
    /* The rows of a head would all lie in the same few sets of a cache. */
    if (e->kv_columns * (int64_t)dsi_dtype_bytes(e->kv_dtype) % 4096 == 0)
        e->kv_columns += 64 / (int64_t)dsi_dtype_bytes(e->kv_dtype);
}

void dsi_scratch_layout(dsi_engine *e) {
    dsi_scratch *s = &e->scratch;
    const dsi_config *c = &e->model->config;
    int64_t rows = e->options.chunk_tokens, head_rows = dsi_head_rows(e);
    s->n_bytes = 0;
    take(s, &s->tokens, DSI_DTYPE_I32, rows, 1);
    take(s, &s->positions, DSI_DTYPE_I32, rows, 1);
    take(s, &s->slots, DSI_DTYPE_I64, rows, 1);
    take(s, &s->head_rows, DSI_DTYPE_I32, head_rows, 1);
    take(s, &s->hidden, DSI_DTYPE_F32, rows, c->hidden_size);
    take(s, &s->normed, e->act, rows, c->hidden_size);
    if (c->arch->attention == DSI_ATTENTION_MLA)
        take_mla(e, rows);
    else
        take_gqa(e, rows);
    take_indexer(e, rows);
    take(s, &s->ffn_hidden, e->act, rows, c->intermediate_size);
    take(s, &s->router_logits, DSI_DTYPE_F32, rows, c->n_routed_experts);
    take(s, &s->expert_ids, DSI_DTYPE_I32, rows, c->n_experts_per_token);
    take(s, &s->expert_weights, DSI_DTYPE_F32, rows, c->n_experts_per_token);
    take(s, &s->head_hidden, DSI_DTYPE_F32, head_rows, c->hidden_size);
    take(s, &s->head_normed, e->act, head_rows, c->hidden_size);
    take(s, &s->logits, DSI_DTYPE_F32, head_rows, c->vocab_size);
    if (!e->options.draft_tokens) return;
    take(s, &s->mtp_rows, DSI_DTYPE_I32, rows, 1);
    take(s, &s->mtp_hidden, DSI_DTYPE_F32, rows, c->hidden_size);
    take(s, &s->mtp_concat, e->act, rows, 2 * (int64_t)c->hidden_size);
}

dsi_tensor dsi_kv_area(const dsi_engine *e, uint32_t area) {
    const int64_t rows = (int64_t)e->n_pages * DSI_PAGE_ROWS;
    const bool index = area >= e->n_kv_layers;
    const dsi_dtype dtype = index ? e->act : e->kv_dtype;
    const int64_t columns = index ? e->index_columns : e->kv_columns;
    const uint64_t bytes = (uint64_t)(rows * columns) * dsi_dtype_bytes(dtype); /* of an area */
    const uint64_t layers =
        (uint64_t)(rows * e->kv_columns) * dsi_dtype_bytes(e->kv_dtype) * e->n_kv_layers;
    return (dsi_tensor){.struct_size = sizeof(dsi_tensor),
                        .dtype = dtype,
                        .n_dims = 2,
                        .ne = {columns, rows},
                        .stride = {1, columns},
                        .buf = e->kv,
                        .offset = index ? layers + (area - e->n_kv_layers) * bytes : area * bytes};
}

uint64_t dsi_kv_largest_page(const dsi_engine *e) {
    const dsi_tensor first = dsi_kv_area(e, 0), last = dsi_kv_area(e, dsi_kv_areas(e) - 1);
    const uint64_t a = dsi_kv_page_bytes(&first), b = dsi_kv_page_bytes(&last);
    return a > b ? a : b;
}

uint64_t dsi_kv_row_bytes(const dsi_engine *e, uint32_t n_layers) {
    return n_layers * ((uint64_t)e->kv_columns * dsi_dtype_bytes(e->kv_dtype) +
                       (uint64_t)e->index_columns * dsi_dtype_bytes(e->act));
}
