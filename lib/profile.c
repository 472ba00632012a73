/* profile.c: where the time of a step goes: each op by name, with the bytes it read, how often its
 * threads met and how long they waited for each other there. */
#include "internal.h"

static dsi_dev_counters counters(dsi_engine *e, bool watch) {
    dsi_dev_counters c = {.struct_size = sizeof c};
    if (DSI_HAS(e->backend, counters)) e->backend->counters(e->dev, watch, &c);
    return c;
}

void dsi_engine_profile(dsi_engine *e, dsi_profile *profile) {
    dsi_caps caps = {.struct_size = sizeof caps};
    e->profile = profile;
    counters(e, profile != NULL);
    if (!profile || profile->n_threads) return;
    e->backend->device_caps(e->dev, &caps);
    profile->n_threads = caps.n_threads ? caps.n_threads : 1;
}

void dsi_profile_begin(dsi_engine *e) {
    e->profile->before = counters(e, true);
    e->profile->start = dsi_sys_seconds();
}

/* ---- What an op reads -------------------------------------------------------------------------*/

static uint64_t matrix_bytes(const dsi_tensor *w) {
    int64_t row = 0;
    if (!w || w->n_dims != 2 || !dsi_dtype_row_bytes(w->dtype, w->ne[0], &row)) return 0;
    return (uint64_t)(w->ne[1] * row);
}

/* Every expert that some row has chosen, once; the shared one. */
static uint64_t expert_bytes(dsi_engine *e, const dsi_op *op) {
    const dsi_attr_moe_routed *routed = op->kind == DSI_OP_MOE_ROUTED ? op->attr : NULL;
    const dsi_attr_moe *attr = routed ? &routed->moe : op->attr;
    const dsi_tensor *ids = routed ? op->out[2] : op->in[1];
    const dsi_tensor *const *w = op->in + 3;
    uint8_t seen[1024] = {0};
    int32_t row[64];
    uint64_t n = routed ? matrix_bytes(op->in[1]) : 0;
    for (int64_t r = 0; r < ids->ne[1] && ids->ne[0] <= 64; r++) {
        uint64_t at = ids->offset + (uint64_t)(r * ids->stride[1]) * sizeof *row;
        if (e->backend->read(e->stream, row, ids->buf, at, (uint64_t)ids->ne[0] * sizeof *row))
            return 0;
        for (int64_t k = 0; k < ids->ne[0]; k++) {
            uint32_t id = (uint32_t)row[k];
            if (id >= attr->n_experts || seen[id % 1024]) continue;
            seen[id % 1024] = 1;
            for (uint32_t i = 0; i < 3; i++) n += matrix_bytes(w[3 * id + i]);
        }
    }
    for (uint32_t i = 0; attr->has_shared && i < 3; i++)
        n += matrix_bytes(w[3 * attr->n_experts + i]);
    return n;
}

/* Cached rows of each sequence, up to its last row here. */
static uint64_t cache_bytes(const dsi_batch *b, const dsi_tensor *pages) {
    uint64_t n = 0, row = (uint64_t)pages->stride[1] * dsi_dtype_bytes(pages->dtype);
    for (uint32_t r = 0; r < b->n_rows; r++)
        if (r + 1 == b->n_rows || b->seq[r + 1] != b->seq[r])
            n += (uint64_t)(b->position[r] + 1) * row;
    return n;
}

/* Rows that attend to top_k tokens of their own choice share none. */
static uint64_t chosen_bytes(const dsi_batch *b, const dsi_tensor *pages, int64_t top_k) {
    uint64_t n = 0, row = (uint64_t)pages->stride[1] * dsi_dtype_bytes(pages->dtype);
    for (uint32_t r = 0; r < b->n_rows; r++)
        if (b->position[r] >= top_k)
            n += (uint64_t)top_k * row;
        else if (r + 1 == b->n_rows || b->seq[r + 1] != b->seq[r] || b->position[r + 1] >= top_k)
            n += (uint64_t)(b->position[r] + 1) * row;
    return n;
}

static uint64_t op_bytes(dsi_engine *e, const dsi_op *op) {
    const dsi_attr_mla *mla = op->attr;
    const dsi_attr_gqa *gqa = op->attr;
    uint64_t n = 0;
    switch (op->kind) {
    case DSI_OP_LINEAR:
    case DSI_OP_LINEAR_SWIGLU:
        for (uint32_t i = 1; i < op->n_in; i++) n += matrix_bytes(op->in[i]);
        return n;
    case DSI_OP_MOE_FFN:
    case DSI_OP_MOE_ROUTED:
        return expert_bytes(e, op);
    case DSI_OP_MLA_ABSORB_Q:
        return matrix_bytes(op->in[1]) * mla->qk_nope_head_dim /
               (mla->qk_nope_head_dim + mla->v_head_dim);
    case DSI_OP_MLA_ABSORB_V:
        return matrix_bytes(op->in[1]) * mla->v_head_dim /
               (mla->qk_nope_head_dim + mla->v_head_dim);
    case DSI_OP_MLA_ATTEND:
        return op->n_in == 3 ? chosen_bytes(mla->batch, op->in[1], op->in[2]->ne[0])
                             : cache_bytes(mla->batch, op->in[1]);
    case DSI_OP_INDEX_TOPK:
        return cache_bytes(((const dsi_attr_index *)op->attr)->batch, op->in[2]);
    case DSI_OP_MLA_EXPAND_ATTEND:
        return matrix_bytes(op->in[1]) + cache_bytes(mla->batch, op->in[2]);
    case DSI_OP_GQA_ATTEND:
        return cache_bytes(gqa->batch, op->in[1]);
    default:
        return 0;
    }
}

static dsi_profile_row *row_of(dsi_profile *p, const char *name) {
    const uint32_t most = sizeof p->rows / sizeof p->rows[0];
    for (uint32_t i = 0; i < p->n_rows; i++)
        if (strcmp(p->rows[i].name, name) == 0) return &p->rows[i];
    if (p->n_rows == most) return &p->rows[most - 1];
    p->rows[p->n_rows] = (dsi_profile_row){.name = name};
    return &p->rows[p->n_rows++];
}

static const char *op_name(dsi_op_kind kind) {
    switch (kind) {
#define NAME(op, code)                                                                             \
    case op:                                                                                       \
        return &#op[sizeof "DSI_OP"]; /* behind "DSI_OP_" */
        DSI_OP_LIST(NAME)
#undef NAME
    default:
        return "?";
    }
}

void dsi_profile_end(dsi_engine *e, const dsi_op *op, const char *name) {
    double end = dsi_sys_seconds();
    dsi_profile *p = e->profile;
    dsi_dev_counters after = counters(e, true);
    dsi_profile_row *row = row_of(p, name ? name : op_name(op->kind));
    row->n_calls++;
    row->n_bytes += op_bytes(e, op);
    row->n_meetings += after.n_meetings - p->before.n_meetings;
    row->seconds += end - p->start;
    row->waited_seconds += (after.waited_seconds - p->before.waited_seconds) / (double)p->n_threads;
}
