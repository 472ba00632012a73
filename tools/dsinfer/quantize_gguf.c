/* quantize_gguf.c: which tensors a GGUF of a checkpoint has, as llama.cpp's converter names, shapes
 * and orders them: the matrices of all experts of a layer in one, kv_b_proj in two with the keys
 * transposed, rows of q and k of Llama in another order. Of each weight it is known where its
 * numbers will lie before one is read. */
#include "quantize.h"

#include "../../kernels/formats.h"
#include "../../lib/base/convert.h"
#include "../../lib/base/sys.h"
#include "../../lib/model/gguf_names.h"
#include "../gguf_write.h"
#include <math.h>
#include <string.h>

/* ---- Types ---------------------------------------------------------------------------------- */

static int64_t values_of_block(dsi_dtype dtype) { return dtype == DSI_DTYPE_Q4_K ? 256 : 32; }

/* As it is, or BF16 for FP8. */
static dsi_dtype plain_type(dsi_dtype dtype) {
    return dtype == DSI_DTYPE_E4M3 ? DSI_DTYPE_BF16 : dtype;
}

/* Vectors and routers are F32. Of a model in Q4_K these are Q8_0, which costs it under a hundredth
 * of its bytes: embeddings and head, the way into the latent and the two out of it, and rows that
 * are no whole number of 256; of 32 neither, then plain. */
static dsi_dtype type_of(quantize_plan *p, const dsi_file_tensor *t, const char *name, int64_t k) {
    static const char *const eight_bits[] = {"token_embd.", ".attn_kv_a_mqa.", ".attn_k_b.",
                                             ".attn_v_b."};
    dsi_dtype dtype = p->form->blocks;
    if (t->n_dims < 2 || strstr(name, "ffn_gate_inp.")) return DSI_DTYPE_F32;
    if (p->keep && strstr(t->name, p->keep)) return plain_type(t->dtype);
    if (strcmp(name, "output.weight") == 0) dtype = DSI_DTYPE_Q8_0;
    for (size_t i = 0; i < sizeof eight_bits / sizeof *eight_bits; i++)
        if (strstr(name, eight_bits[i])) dtype = DSI_DTYPE_Q8_0;
    if (k % values_of_block(dtype) == 0) return dtype;
    p->n_wide++;
    return k % values_of_block(DSI_DTYPE_Q8_0) == 0 ? DSI_DTYPE_Q8_0 : plain_type(t->dtype);
}

/* ---- Tensors -------------------------------------------------------------------------------- */

static const dsi_file_tensor *find_source(const quantize_plan *p, const dsi_gguf_place *place,
                                          uint32_t expert) {
    char name[160];
    if (place->heads) /* kv_b_proj, whose halves these are */
        snprintf(name, sizeof name, "model.layers.%d.self_attn.kv_b_proj.weight", place->layer);
    else
        dsi_gguf_official_name(place, expert, name, sizeof name);
    return dsi_checkpoint_find(p->from, name);
}

static uint32_t role_of(const quantize_plan *p, const char *name) {
    if (strstr(name, ".attn_k_b.")) return QUANTIZE_HEAD_KEYS;
    if (strstr(name, ".attn_v_b.")) return QUANTIZE_HEAD_VALUES;
    bool turned = strcmp(p->config->arch->model_type, "llama") == 0 &&
                  (strstr(name, ".attn_q.") || strstr(name, ".attn_k."));
    return turned ? QUANTIZE_ROWS_TURNED : QUANTIZE_ROWS;
}

/* Shape in the order of the file; returns the number of weights that are stacked in it. */
static uint32_t shape_of(const quantize_plan *p, const dsi_gguf_place *place, uint32_t role,
                         const dsi_file_tensor *t, quantize_gguf_tensor *g) {
    const dsi_config *c = p->config;
    g->n_dims = t->n_dims;
    g->ne[0] = t->n_dims == 2 ? t->shape[1] : t->shape[0];
    g->ne[1] = t->n_dims == 2 ? t->shape[0] : 1;
    g->ne[2] = 1;
    if (role == QUANTIZE_HEAD_KEYS || role == QUANTIZE_HEAD_VALUES) {
        bool keys = role == QUANTIZE_HEAD_KEYS;
        g->ne[0] = keys ? c->qk_nope_head_dim : c->kv_lora_rank;
        g->ne[1] = keys ? c->kv_lora_rank : c->v_head_dim;
        g->ne[2] = c->n_heads;
    } else if (place->experts) {
        g->ne[2] = c->n_routed_experts;
    }
    if (g->ne[2] > 1 || place->heads || place->experts) g->n_dims = 3;
    return place->experts ? c->n_routed_experts : 1;
}

/* The tensor `name`, if the model has what it holds. */
static dsi_status add_tensor(quantize_plan *p, const char *name, dsi_error *error) {
    quantize_gguf_tensor *g = &p->gguf[p->n_gguf];
    dsi_gguf_place place;
    if (!dsi_gguf_place_of(name, (uint32_t)strlen(name), &place)) return DSI_OK;
    const dsi_file_tensor *t = find_source(p, &place, 0);
    if (!t) return DSI_OK;
    uint32_t role = role_of(p, name), n = shape_of(p, &place, role, t, g);
    snprintf(g->name, sizeof g->name, "%s", name);
    g->dtype = type_of(p, t, name, g->ne[0]);
    g->offset = gguf_aligned(p->n_bytes_out);
    uint64_t n_bytes = (uint64_t)dsi_row_bytes(g->dtype, g->ne[0]) * (uint64_t)g->ne[1] *
                       (uint64_t)(n > 1 ? 1 : g->ne[2]);
    for (uint32_t i = 0; i < n; i++) {
        t = find_source(p, &place, i);
        if (!t)
            return dsi_fail(error, DSI_E_MODEL, "%s: expert %u of %s is missing", p->from->dir, i,
                            name);
        p->tensors[p->n_tensors++] = (quantize_tensor){.source = (uint32_t)(t - p->from->tensors),
                                                       .role = role,
                                                       .dtype = g->dtype,
                                                       .n_bytes = n_bytes,
                                                       .offset = g->offset + i * n_bytes};
    }
    p->n_bytes_out = g->offset + n * n_bytes;
    p->n_quantised += n * (g->dtype >= DSI_DTYPE_BLOCKS && role != QUANTIZE_HEAD_VALUES);
    p->n_gguf++;
    return DSI_OK;
}

/* Llama 3's rope is a tensor of divisors in this format. */
static dsi_status add_rope(quantize_plan *p, dsi_error *error) {
    dsi_config plain = *p->config;
    uint32_t dim = plain.head_dim, n = dim / 2;
    if (plain.rope.kind != DSI_ROPE_LLAMA3) return DSI_OK;
    float *room = dsi_sys_calloc(2 * (uint64_t)n, sizeof *room);
    if (!room) return dsi_fail(error, DSI_E_NOMEM, "no memory for %u frequencies", n);
    dsi_rope_inv_freq(p->config, dim, room);
    plain.rope.kind = DSI_ROPE_DEFAULT;
    dsi_rope_inv_freq(&plain, dim, room + n);
    for (uint32_t i = 0; i < n; i++) room[i] = room[n + i] / room[i];
    p->rope_divisors = room;
    p->n_rope_divisors = n;
    quantize_gguf_tensor *g = &p->gguf[p->n_gguf++];
    *g = (quantize_gguf_tensor){.dtype = DSI_DTYPE_F32, .n_dims = 1, .ne = {n, 1, 1}};
    snprintf(g->name, sizeof g->name, "rope_freqs.weight");
    p->n_bytes_out = n * sizeof *room;
    return DSI_OK;
}

/* What this architecture's keys cannot say, so that another model would come out of the file. */
static dsi_status check_config(const quantize_plan *p, dsi_error *error) {
    const dsi_config *c = p->config;
    const char *type = c->arch->model_type, *dir = p->from->dir;
    bool mla = c->arch->attention == DSI_ATTENTION_MLA;
    const dsi_rope_config *r = &c->rope;
    if (strcmp(type, "deepseek_v2") != 0 && strcmp(type, "deepseek_v3") != 0 &&
        strcmp(type, "llama") != 0 && strcmp(type, "qwen2") != 0)
        return dsi_fail(error, DSI_E_UNSUPPORTED,
                        "%s: model_type is \"%s\"; a GGUF is written of deepseek_v2, deepseek_v3, "
                        "llama and qwen2",
                        dir, type);
    if (c->n_routed_experts && c->moe_layer_freq != 1)
        return dsi_fail(error, DSI_E_UNSUPPORTED,
                        "%s: moe_layer_freq is %u; a GGUF can say 1 alone", dir, c->moe_layer_freq);
    if (r->kind == DSI_ROPE_YARN &&
        (r->attention_factor > 0 || (mla && fabs(r->mscale - r->mscale_all_dim) > 1e-9)))
        return dsi_fail(error, DSI_E_UNSUPPORTED,
                        "%s: rope_scaling says attention_factor %g, mscale %g, mscale_all_dim %g; "
                        "in a GGUF the first is absent and the others are equal",
                        dir, r->attention_factor, r->mscale, r->mscale_all_dim);
    return DSI_OK;
}

static dsi_status add_layer(quantize_plan *p, uint32_t layer, dsi_error *error) {
    const char *part;
    char name[64];
    dsi_status status = DSI_OK;
    for (uint32_t i = 0; (part = dsi_gguf_layer_name(i)) != NULL && !status; i++) {
        if (strcmp(part, "attn_kv_b.weight") == 0) continue; /* in two */
        snprintf(name, sizeof name, "blk.%u.%s", layer, part);
        status = add_tensor(p, name, error);
    }
    return status;
}

dsi_status quantize_gguf_plan(quantize_plan *p, dsi_error *error) {
    uint64_t room = 2ull * p->from->n_tensors + 1;
    p->n_files = 1;
    p->gguf = dsi_sys_calloc(room, sizeof *p->gguf);
    if (!p->gguf) return dsi_fail(error, DSI_E_NOMEM, "no memory for a list of tensors");
    dsi_status status = check_config(p, error);
    if (!status) status = add_rope(p, error);
    if (!status) status = add_tensor(p, "token_embd.weight", error);
    for (uint32_t i = 0; i < p->config->n_layers && !status; i++) status = add_layer(p, i, error);
    if (!status) status = add_tensor(p, "output_norm.weight", error);
    if (!status && !p->config->tie_word_embeddings) status = add_tensor(p, "output.weight", error);
    p->n_bytes_out = gguf_aligned(p->n_bytes_out);
    return status;
}

/* ---- Rows ----------------------------------------------------------------------------------- */

static int64_t rows_of(const dsi_file_tensor *t) { return t->n_dims == 2 ? t->shape[0] : 1; }

int64_t quantize_gguf_units(const quantize_plan *plan, const quantize_tensor *t) {
    if (t->role == QUANTIZE_HEAD_KEYS || t->role == QUANTIZE_HEAD_VALUES)
        return plan->config->n_heads;
    return dsi_ceil_div(rows_of(&plan->from->tensors[t->source]), QUANTIZE_BLOCK);
}

/* Row i of the file: the halves of a head, whose columns turn together, lie in turns. */
static int64_t turned_row(int64_t i, int64_t head) {
    int64_t inside = i % head;
    return i - inside + inside % 2 * (head / 2) + inside / 2;
}

quantize_unit quantize_gguf_read(const quantize_plan *plan, const quantize_tensor *t, int64_t unit,
                                 float *to, float *room) {
    const dsi_file_tensor *w = &plan->from->tensors[t->source];
    const dsi_config *c = plan->config;
    const int64_t columns = w->n_dims == 2 ? w->shape[1] : w->shape[0];
    const int64_t keys = c->qk_nope_head_dim, head = keys + c->v_head_dim;
    int64_t first = unit * QUANTIZE_BLOCK;
    quantize_unit u = {dsi_min_i64(QUANTIZE_BLOCK, rows_of(w) - first), columns, first};
    switch (t->role) {
    case QUANTIZE_ROWS_TURNED:
        for (int64_t i = 0; i < u.n; i++)
            quantize_read_rows(plan, w, turned_row(first + i, c->head_dim), 1, to + i * columns);
        break;
    case QUANTIZE_HEAD_VALUES:
        u = (quantize_unit){c->v_head_dim, columns, unit * c->v_head_dim};
        quantize_read_rows(plan, w, unit * head + keys, u.n, to);
        break;
    case QUANTIZE_HEAD_KEYS:
        u = (quantize_unit){columns, keys, unit * columns};
        quantize_read_rows(plan, w, unit * head, keys, room);
        for (int64_t r = 0; r < keys; r++)
            for (int64_t i = 0; i < columns; i++) to[i * keys + r] = room[r * columns + i];
        break;
    default:
        quantize_read_rows(plan, w, first, u.n, to);
    }
    return u;
}
