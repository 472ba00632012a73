/* adapter_step.c: the rows of a step by their adapters, and what these add to a weight. */
#include "adapter.h"

dsi_adapt *dsi_adapt_begin(dsi_engine *e) {
    dsi_adapt *d = e->adapt;
    const dsi_step_rows *r = &e->rows;
    uint32_t n = 0;
    if (!d) return NULL;
    d->n_parts = 0;
    for (uint32_t i = 0; i < r->n_sessions; i++) {
        const dsi_adapter *adapter = r->taken[i] ? r->sessions[i]->options.adapter : NULL;
        uint32_t p = 0;
        while (p < d->n_parts && d->adapters[p] != adapter) p++;
        if (adapter && p == d->n_parts) d->adapters[d->n_parts++] = adapter;
    }
    if (d->n_parts == 0) return NULL;
    for (uint32_t i = 0; i < r->n_rows; i++) d->part_of[i] = -1;
    for (uint32_t p = 0; p < d->n_parts; p++) {
        d->first[p] = n;
        for (uint32_t i = 0; i < r->n_rows; i++) {
            if (r->sessions[r->seq[i]]->options.adapter != d->adapters[p]) continue;
            d->part_of[i] = (int32_t)p;
            d->rows[n++] = (int32_t)i;
        }
        d->n_rows[p] = n - d->first[p];
    }
    return d;
}

static dsi_tensor plan_matrix(int64_t n_out, int64_t n_in) {
    return (dsi_tensor){.struct_size = sizeof(dsi_tensor),
                        .dtype = DSI_DTYPE_F32,
                        .n_dims = 2,
                        .ne = {n_in, n_out},
                        .stride = {1, n_in}};
}

/* Rows of t that are there: those of all parts. */
static void set_low_rank(dsi_adapt *d, uint32_t slot, uint32_t n_parts, int64_t n_rows) {
    d->t[slot].ne[1] = n_rows;
    d->low_rank[slot] = (dsi_low_rank){.struct_size = sizeof d->low_rank[slot],
                                       .n_parts = n_parts,
                                       .max_rank = d->max_rank,
                                       .parts = d->parts[slot],
                                       .rows = d->rows,
                                       .part_of = d->part_of,
                                       .t = &d->t[slot]};
}

const dsi_low_rank *dsi_adapt_find(dsi_adapt *d, dsi_forward_mode mode, uint32_t layer,
                                   const char *name, uint32_t slot, int64_t n_out, int64_t n_in) {
    const uint32_t code = dsi_adapted_find(name);
    if (code == DSI_N_ADAPTED) return NULL;
    dsi_low_rank_part *parts = d->parts[slot];
    if (mode == DSI_FORWARD_PLAN) {
        d->plan_a[slot] = plan_matrix(d->max_rank, n_in);
        d->plan_b_t[slot] = plan_matrix(d->max_rank, n_out);
        parts[0] = (dsi_low_rank_part){.a = &d->plan_a[slot], .b_t = &d->plan_b_t[slot]};
        set_low_rank(d, slot, 1, 0);
        return &d->low_rank[slot];
    }
    bool any = false;
    uint32_t n_rows = 0;
    for (uint32_t p = 0; p < d->n_parts; p++) {
        const dsi_placed_pair *pair = &d->adapters[p]->placed[layer * DSI_N_ADAPTED + code];
        bool there = pair->a.ne[0] != 0;
        any |= there;
        n_rows += d->n_rows[p];
        parts[p] = (dsi_low_rank_part){.a = there ? &pair->a : NULL,
                                       .b_t = there ? &pair->b_t : NULL,
                                       .scale = pair->scale,
                                       .first = d->first[p],
                                       .n_rows = d->n_rows[p]};
    }
    if (!any) return NULL;
    set_low_rank(d, slot, d->n_parts, n_rows);
    return &d->low_rank[slot];
}
