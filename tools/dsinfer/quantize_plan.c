/* quantize_plan.c: the forms that weights can be stored in, and which tensors a model in such a
 * form has. Every name and shape follows from the source, so the files can be laid out before a
 * number is read. */
#include "quantize.h"

#include "../../lib/base/sys.h"
#include "quantize_search.h"
#include <inttypes.h>
#include <string.h>

#define CT_ACTIVATIONS                                                                             \
    "{\"num_bits\": 8, \"type\": \"int\", \"symmetric\": true, \"strategy\": \"token\", "          \
    "\"dynamic\": true}"
#define CT(format, activations, bits, strategy)                                                    \
    "{\"quant_method\": \"compressed-tensors\", \"format\": \"" format                             \
    "\", \"quantization_status\": \"compressed\", \"kv_cache_scheme\": null, \"ignore\": [%s], "   \
    "\"config_groups\": {\"group_0\": {\"targets\": [\"Linear\"], \"output_activations\": null, "  \
    "\"input_activations\": " activations ", \"weights\": {\"num_bits\": " bits                    \
    ", \"type\": \"int\", \"symmetric\": true, \"dynamic\": false, \"actorder\": null, " strategy  \
    "}}}}"

/* What four bits lose in attention costs more than its bytes are worth: published files leave it.
 */
static const quantize_form forms[] = {
    {"int8", DSI_DTYPE_I8, DSI_SCALE_CHANNEL, 0, DSI_DTYPE_F32, "weight_scale",
     CT("int-quantized", CT_ACTIVATIONS, "8", "\"strategy\": \"channel\""), NULL, DSI_DTYPE_NONE},
    {"int8-block", DSI_DTYPE_I8, DSI_SCALE_BLOCK_128, 0, DSI_DTYPE_F32, "weight_scale",
     CT("int-quantized", CT_ACTIVATIONS, "8",
        "\"strategy\": \"block\", \"block_structure\": [128, 128]"),
     NULL, DSI_DTYPE_NONE},
    {"int4", DSI_DTYPE_I4, DSI_SCALE_GROUP, 128, DSI_DTYPE_BF16, "weight_scale",
     CT("pack-quantized", "null", "4", "\"strategy\": \"group\", \"group_size\": 128"), "self_attn",
     DSI_DTYPE_NONE},
    {"int4-g32", DSI_DTYPE_I4, DSI_SCALE_GROUP, 32, DSI_DTYPE_BF16, "weight_scale",
     CT("pack-quantized", "null", "4", "\"strategy\": \"group\", \"group_size\": 32"), "self_attn",
     DSI_DTYPE_NONE},
    {.name = "q8_0", .blocks = DSI_DTYPE_Q8_0},
    {.name = "q4_k", .blocks = DSI_DTYPE_Q4_K},
};

const quantize_form *quantize_form_find(const char *name) {
    for (size_t i = 0; i < sizeof forms / sizeof forms[0]; i++)
        if (strcmp(forms[i].name, name) == 0) return &forms[i];
    return NULL;
}

/* ---- Which tensors -------------------------------------------------------------------------- */

static bool ends_with(const char *text, const char *tail) {
    size_t n = strlen(text), m = strlen(tail);
    return n >= m && strcmp(text + n - m, tail) == 0;
}

/* The matrices of the layers, those of MTP blocks too; not their eh_proj, router and embeddings,
 * and not V3.2's indexer, which is small and decides what is read. */
static bool is_matrix(const dsi_file_tensor *t) {
    return t->n_dims == 2 && strncmp(t->name, "model.layers.", 13) == 0 &&
           (ends_with(t->name, "_proj.weight") || ends_with(t->name, "_with_mqa.weight")) &&
           !ends_with(t->name, ".eh_proj.weight") && !strstr(t->name, ".indexer.");
}

static bool is_plain(dsi_dtype dtype) {
    return dtype == DSI_DTYPE_BF16 || dtype == DSI_DTYPE_F16 || dtype == DSI_DTYPE_F32;
}

/* Scales of FP8 go with their weights. */
static bool is_scale(const dsi_checkpoint *c, const dsi_file_tensor *t) {
    static const char tail[] = "_scale_inv";
    char weight[600];
    if (!ends_with(t->name, tail)) return false;
    snprintf(weight, sizeof weight, "%.*s", (int)(strlen(t->name) - (sizeof tail - 1)), t->name);
    const dsi_file_tensor *w = dsi_checkpoint_find(c, weight);
    return w && w->dtype == DSI_DTYPE_E4M3;
}

static void set_shape(quantize_tensor *t, dsi_dtype dtype, uint32_t n_dims, int64_t rows,
                      int64_t columns) {
    t->dtype = dtype;
    t->n_dims = n_dims;
    t->shape[0] = n_dims == 2 ? rows : columns;
    t->shape[1] = columns;
}

/* The tensors that one of the source becomes; at most three. */
static uint32_t make_tensors(const quantize_plan *p, uint32_t i, quantize_tensor out[3]) {
    const dsi_file_tensor *t = &p->from->tensors[i];
    const quantize_form *f = p->form;
    bool kept = p->keep && strstr(t->name, p->keep);
    for (int j = 0; j < 3; j++) out[j] = (quantize_tensor){.source = i};
    if (is_scale(p->from, t)) return 0;
    if (!is_matrix(t) || kept) {
        bool widened = t->dtype == DSI_DTYPE_E4M3;
        out[0].role = widened ? QUANTIZE_BF16 : QUANTIZE_COPY;
        out[0].dtype = widened ? DSI_DTYPE_BF16 : t->dtype;
        out[0].n_dims = t->n_dims;
        memcpy(out[0].shape, t->shape, sizeof out[0].shape);
        return 1;
    }
    const int64_t n = t->shape[0], k = t->shape[1];
    dsi_scale_span span = dsi_scale_span_of(f->scale_kind, f->scale_group, k);
    out[0].role = QUANTIZE_CODES;
    out[0].tail = f->dtype == DSI_DTYPE_I4 ? ".weight_packed" : NULL;
    if (f->dtype == DSI_DTYPE_I4)
        set_shape(&out[0], DSI_DTYPE_I32, 2, n, dsi_ceil_div(k, 8));
    else
        set_shape(&out[0], DSI_DTYPE_I8, 2, n, k);
    out[1].role = QUANTIZE_SCALES;
    out[1].tail = ".weight_scale";
    set_shape(&out[1], f->scale_dtype, 2, dsi_ceil_div(n, span.n), dsi_ceil_div(k, span.k));
    out[2].role = QUANTIZE_SHAPE;
    out[2].tail = ".weight_shape";
    set_shape(&out[2], DSI_DTYPE_I64, 1, 0, 2);
    return f->dtype == DSI_DTYPE_I4 ? 3 : 2;
}

static dsi_status check_source(const quantize_plan *p, const dsi_file_tensor *t, dsi_error *error) {
    char name[600];
    if (t->dtype == DSI_DTYPE_E4M3) { /* the loader saw to it, but for MTP blocks */
        snprintf(name, sizeof name, "%s_scale_inv", t->name);
        const dsi_file_tensor *s = dsi_checkpoint_find(p->from, name);
        if (s && s->dtype == DSI_DTYPE_F32 && t->n_dims == 2 && s->n_dims == 2 &&
            s->shape[0] == dsi_ceil_div(t->shape[0], DSI_BLOCK) &&
            s->shape[1] == dsi_ceil_div(t->shape[1], DSI_BLOCK))
            return DSI_OK;
        return dsi_fail(error, DSI_E_MODEL,
                        "%s: tensor \"%s\" is FP8 and has no F32 scales of 128 x 128 blocks",
                        p->from->shards[t->shard].path, t->name);
    }
    if (is_plain(t->dtype) || !(is_matrix(t) || p->form->blocks)) return DSI_OK;
    return dsi_fail(error, DSI_E_UNSUPPORTED,
                    "%s: tensor \"%s\" is %s; a model is quantised from FP8, BF16, F16 or F32",
                    p->from->shards[t->shard].path, t->name, dsi_dtype_name(t->dtype));
}

/* ---- Their places --------------------------------------------------------------------------- */

/* Wider types first, so that every tensor lies at a multiple of its type's size. */
static void lay_out(quantize_plan *p, uint32_t shard, const quantize_tensor *made, uint32_t n) {
    static const uint32_t sizes[] = {8, 4, 2, 1};
    uint64_t offset = 0;
    for (int s = 0; s < 4; s++)
        for (uint32_t i = 0; i < n; i++) {
            uint32_t size = dsi_dtype_bytes(made[i].dtype);
            if (p->from->tensors[made[i].source].shard != shard || size != sizes[s]) continue;
            quantize_tensor *t = &p->tensors[p->n_tensors++];
            *t = made[i];
            t->n_bytes = size;
            for (uint32_t d = 0; d < t->n_dims; d++) t->n_bytes *= (uint64_t)t->shape[d];
            t->offset = offset;
            offset += t->n_bytes;
        }
    p->n_bytes_out += offset;
    p->first_of_shard[shard + 1] = p->n_tensors;
}

/* Every shard becomes one of the same name. */
static dsi_status plan_shards(quantize_plan *p, quantize_tensor *made, dsi_error *error) {
    const dsi_checkpoint *from = p->from;
    uint32_t n = 0;
    p->n_files = from->n_shards;
    p->first_of_shard = dsi_sys_calloc((uint64_t)from->n_shards + 1, sizeof *p->first_of_shard);
    if (!p->first_of_shard)
        return dsi_fail(error, DSI_E_NOMEM, "no memory for a list of %u files", from->n_shards);
    for (uint32_t i = 0; i < from->n_tensors; i++) {
        uint32_t n_made = make_tensors(p, i, made + n);
        p->n_quantised += n_made > 1;
        n += n_made;
    }
    for (uint32_t shard = 0; shard < from->n_shards; shard++) lay_out(p, shard, made, n);
    return DSI_OK;
}

dsi_status quantize_plan_make(const dsi_checkpoint *from, const dsi_config *config,
                              const quantize_form *form, const char *keep, quantize_plan *plan,
                              dsi_error *error) {
    *plan = (quantize_plan){.from = from,
                            .config = config,
                            .form = form,
                            .keep = keep,
                            .search = quantize_search_best()};
    uint64_t room = 3ull * from->n_tensors;
    quantize_tensor *made = dsi_sys_calloc(room, sizeof *made);
    plan->tensors = dsi_sys_calloc(room, sizeof *plan->tensors);
    dsi_status status = DSI_OK;
    if (!made || !plan->tensors)
        status = dsi_fail(error, DSI_E_NOMEM, "no memory for a list of %" PRIu64 " tensors", room);
    for (uint32_t i = 0; i < from->n_tensors && !status; i++) {
        status = check_source(plan, &from->tensors[i], error);
        plan->n_bytes_in += from->tensors[i].n_bytes;
    }
    if (!status)
        status = form->blocks ? quantize_gguf_plan(plan, error) : plan_shards(plan, made, error);
    dsi_sys_free(made);
    if (status) quantize_plan_free(plan);
    return status;
}

void quantize_plan_free(quantize_plan *plan) {
    dsi_sys_free(plan->tensors);
    dsi_sys_free(plan->first_of_shard);
    dsi_sys_free(plan->gguf);
    dsi_sys_free(plan->rope_divisors);
    *plan = (quantize_plan){0};
}

bool quantize_name(const quantize_plan *plan, const quantize_tensor *tensor, char *name,
                   size_t n_bytes) {
    const char *full = plan->from->tensors[tensor->source].name;
    size_t length = strlen(full) - (tensor->tail ? strlen(".weight") : 0);
    int n = snprintf(name, n_bytes, "%.*s%s", (int)length, full, tensor->tail ? tensor->tail : "");
    return n > 0 && (size_t)n < n_bytes;
}
