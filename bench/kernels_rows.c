/* kernels_rows.c: attention over the cache, and what works on one row: at DeepSeek-V3 shapes, in
 * the caches of the CPU. */
#include "kernels.h"

#include <math.h>
#include <string.h>

enum { HIDDEN = 7168, EXPERT = 2048, HEADS = 128, NOPE = 128, ROPE = 64, RANK = 512 };
enum { DECODE_PAGES = 64, PROMPT_ROWS = 256, PROMPT_PAGES = 20, PROMPT_HEADS = 8 };

/* ---- Attention ------------------------------------------------------------------------------- */

/* What the threads read, and each thread's own: queries' states and sums. */
static dsi_attend_args attend_args(const kernel_case *c, uint32_t thread, int64_t n_q, int64_t dv) {
    float *own = (float *)(void *)c->data->own[thread];
    return (dsi_attend_args){.q = c->data->x,
                             .state_m = own,
                             .state_l = own + n_q,
                             .state_stride = 1,
                             .o = own + 2 * n_q,
                             .o_stride = dv,
                             .n_q = n_q,
                             .dv = dv,
                             .scale = 0.07f};
}
static void attend_begin(const dsi_attend_args *a) {
    for (int64_t i = 0; i < a->n_q; i++) a->state_m[i] = -INFINITY, a->state_l[i] = 0;
    memset(a->o, 0, (size_t)(a->n_q * a->dv) * sizeof *a->o);
}

/* Absorbed: all heads share the latent rows; each thread takes its part of the context. */
static void turn_decode(const kernel_case *c, uint32_t thread, uint32_t n_threads, int64_t number) {
    int64_t size = dsi_dtype_bytes(c->data->w_dtype);
    const int32_t *limit = (const int32_t *)(const void *)c->data->scale;
    dsi_attend_args a = attend_args(c, thread, HEADS, RANK);
    a.q_stride = a.k0_stride = a.k1_stride = a.v_stride = RANK + ROPE;
    a.d0 = RANK, a.d1 = ROPE, a.limit = limit;
    uint64_t p0, p1;
    (void)number;
    dsi_pool_share(DECODE_PAGES, 1, thread, n_threads, &p0, &p1);
    attend_begin(&a);
    for (uint64_t p = p0; p < p1; p++) {
        const uint8_t *page = c->data->w + (int64_t)p * DSI_PAGE_ROWS * (RANK + ROPE) * size;
        a.k0 = a.v = page;
        a.k1 = page + RANK * size;
        ((dsi_attend_fn)c->line->fn)(&a);
    }
}

/* Expanded: the last 256 of 1,280 rows of a prompt, each thread with heads of its own. */
static void turn_prompt(const kernel_case *c, uint32_t thread, uint32_t n_threads, int64_t number) {
    int64_t size = dsi_dtype_bytes(c->data->w_dtype);
    const int32_t *limit = (const int32_t *)(const void *)c->data->scale;
    dsi_attend_args a = attend_args(c, thread, PROMPT_ROWS, NOPE);
    int64_t width = NOPE + ROPE + NOPE;
    a.q_stride = NOPE + ROPE;
    a.k0_stride = a.k1_stride = a.v_stride = width;
    a.d0 = NOPE, a.d1 = ROPE;
    uint64_t h0, h1;
    (void)number;
    dsi_pool_share((uint64_t)PROMPT_HEADS * n_threads, 1, thread, n_threads, &h0, &h1);
    for (uint64_t h = h0; h < h1; h++) {
        attend_begin(&a);
        for (int64_t p = 0; p < PROMPT_PAGES; p++) {
            const uint8_t *page = c->data->w + p * DSI_PAGE_ROWS * width * size;
            a.k0 = page;
            a.k1 = page + NOPE * size;
            a.v = page + (NOPE + ROPE) * size;
            a.limit = limit + p * PROMPT_ROWS;
            ((dsi_attend_fn)c->line->fn)(&a);
        }
    }
}

/* limit[page][row] of the prompt; the first 128 of page 0 serve the decode too: all rows are seen.
 */
static int32_t *make_limits(kernel_bench *b, double *seen) {
    int32_t *limit = kernel_numbers(&b->room, DSI_DTYPE_I32, PROMPT_PAGES * PROMPT_ROWS, 0);
    *seen = 0;
    for (int p = 0; limit && p < PROMPT_PAGES; p++)
        for (int q = 0; q < PROMPT_ROWS; q++) {
            int visible = (PROMPT_PAGES - PROMPT_ROWS / DSI_PAGE_ROWS - p) * DSI_PAGE_ROWS + q + 1;
            visible = visible < 0 ? 0 : visible > DSI_PAGE_ROWS ? DSI_PAGE_ROWS : visible;
            limit[p * PROMPT_ROWS + q] = visible;
            *seen += visible;
        }
    return limit;
}

bool kernel_attend_cases(kernel_bench *b, const dsi_kernel_line *line) {
    kernel_data *d = &b->data;
    bool bf16 = strstr(line->stem, "bf16") != NULL;
    double seen;
    d->w_dtype = d->x_dtype = bf16 ? DSI_DTYPE_BF16 : DSI_DTYPE_F32;
    d->w = kernel_numbers(&b->room, d->w_dtype, DECODE_PAGES * DSI_PAGE_ROWS * (RANK + ROPE), 1);
    d->x = kernel_numbers(&b->room, d->x_dtype, PROMPT_ROWS * (RANK + ROPE), 1);
    d->scale = (const float *)(const void *)make_limits(b, &seen);
    for (uint32_t t = 0; t < b->n_threads; t++) {
        d->own[t] = kernel_numbers(&b->room, DSI_DTYPE_F32, PROMPT_ROWS * (RANK + 2), 0);
        if (!d->own[t]) return false;
    }
    if (!d->w || !d->x || !d->scale) return false;
    uint32_t peak = line->isa == DSI_ISA_REF              ? PEAK_NONE
                    : line->isa == DSI_ISA_AVX2           ? PEAK_AVX2
                    : bf16 && line->isa != DSI_ISA_AVX512 ? PEAK_BF16
                                                          : PEAK_F32;
    kernel_case *c = kernel_new_case(b, line, "decode: %d heads, context %d", HEADS,
                                     DECODE_PAGES * DSI_PAGE_ROWS);
    c->turn = turn_decode;
    c->peak = peak;
    c->operations = 2.0 * HEADS * DECODE_PAGES * DSI_PAGE_ROWS * (2 * RANK + ROPE);
    c = kernel_new_case(b, line, "prompt: %d heads, rows 1024 to 1279", PROMPT_HEADS);
    c->turn = turn_prompt;
    c->peak = peak;
    c->operations = 2.0 * PROMPT_HEADS * b->n_threads * seen * (2 * NOPE + ROPE);
    return true;
}

/* ---- The indexer's scores -------------------------------------------------------------------- */

enum { INDEX_HEADS = 64, INDEX_DIM = 128, INDEX_ROWS = 4 };

/* A context of 4,096 keys: each thread takes its part of it, for one row or for four. */
static void turn_index(const kernel_case *c, uint32_t thread, uint32_t n_threads, int64_t number) {
    const kernel_data *d = c->data;
    float *own = (float *)(void *)d->own[thread];
    const int64_t page = DSI_PAGE_ROWS * INDEX_DIM * dsi_dtype_bytes(d->w_dtype);
    dsi_index_args a = {.q = d->x,
                        .k_stride = INDEX_DIM,
                        .weights = d->scale,
                        .weights_stride = INDEX_HEADS,
                        .score = own + INDEX_DIM * DSI_PAGE_ROWS,
                        .score_stride = DSI_PAGE_ROWS,
                        .n_q = c->n,
                        .n_heads = INDEX_HEADS,
                        .dim = INDEX_DIM,
                        .scratch = own};
    uint64_t p0, p1;
    (void)number;
    dsi_pool_share(DECODE_PAGES, 1, thread, n_threads, &p0, &p1);
    for (uint64_t p = p0; p < p1; p++) {
        a.k = d->w + (int64_t)p * page;
        ((dsi_index_fn)c->line->fn)(&a);
    }
}

bool kernel_index_cases(kernel_bench *b, const dsi_kernel_line *line) {
    kernel_data *d = &b->data;
    const bool bf16 = strstr(line->stem, "bf16") != NULL;
    d->w_dtype = d->x_dtype = bf16 ? DSI_DTYPE_BF16 : DSI_DTYPE_F32;
    d->w = kernel_numbers(&b->room, d->w_dtype, DECODE_PAGES * DSI_PAGE_ROWS * INDEX_DIM, 1);
    d->x = kernel_numbers(&b->room, d->x_dtype, INDEX_ROWS * INDEX_HEADS * INDEX_DIM, 1);
    d->scale = kernel_numbers(&b->room, DSI_DTYPE_F32, INDEX_ROWS * INDEX_HEADS, 1);
    for (uint32_t t = 0; t < b->n_threads; t++) {
        d->own[t] =
            kernel_numbers(&b->room, DSI_DTYPE_F32, (INDEX_DIM + INDEX_ROWS) * DSI_PAGE_ROWS, 0);
        if (!d->own[t]) return false;
    }
    if (!d->w || !d->x || !d->scale) return false;
    for (int64_t n = 1; n <= INDEX_ROWS; n += INDEX_ROWS - 1) {
        kernel_case *c =
            kernel_new_case(b, line, "%lld row%s of %d heads, context %d", (long long)n,
                            n == 1 ? "" : "s", INDEX_HEADS, DECODE_PAGES * DSI_PAGE_ROWS);
        c->turn = turn_index;
        c->n = n;
        c->peak = line->isa == DSI_ISA_REF                          ? PEAK_NONE
                  : line->isa == DSI_ISA_AVX2                       ? PEAK_AVX2
                  : bf16 && (line->isa & (uint32_t)~DSI_ISA_AVX512) ? PEAK_BF16
                                                                    : PEAK_F32;
        c->operations = 2.0 * (double)n * INDEX_HEADS * INDEX_DIM * DECODE_PAGES * DSI_PAGE_ROWS;
    }
    return true;
}

/* ---- One row --------------------------------------------------------------------------------- */

static void turn_row(const kernel_case *c, uint32_t thread, uint32_t n_threads, int64_t number) {
    const kernel_data *d = c->data;
    float *x = (float *)(void *)d->own[thread], *y = x + 2 * HIDDEN;
    dsi_any_fn fn = c->line->fn;
    (void)n_threads, (void)number;
    switch (c->line->type) {
    case DSI_KERNEL_rms_norm:
        ((dsi_rms_norm_fn)fn)(x, d->w, DSI_DTYPE_BF16, y, c->n, 1e-6f);
        break;
    case DSI_KERNEL_swiglu:
        ((dsi_swiglu_fn)fn)(x, (const float *)(const void *)d->x, y, c->n);
        break;
    case DSI_KERNEL_cast:
        ((dsi_cast_fn)fn)(x, (uint16_t *)(void *)y, c->n);
        break;
    case DSI_KERNEL_rope:
        ((dsi_rope_fn)fn)(&(dsi_rope_args){.x = x + NOPE,
                                           .stride = NOPE + ROPE,
                                           .n_heads = HEADS,
                                           .inv_freq = d->scale,
                                           .half = ROPE / 2,
                                           .position = 4095,
                                           .factor = 1});
        break;
    case DSI_KERNEL_decode:
        ((dsi_decode_fn)fn)((const uint8_t *)x, d->scale, (uint16_t *)(void *)y, c->n);
        break;
    case DSI_KERNEL_quantize:
        ((dsi_quantize_fn)fn)(x, y, c->n, DSI_BLOCK);
        break;
    default:
        break;
    }
}

static void turn_route(const kernel_case *c, uint32_t thread, uint32_t n_threads, int64_t number) {
    float *own = (float *)(void *)c->data->own[thread];
    dsi_route_args a = {.logits = (const float *)(const void *)c->data->x,
                        .bias = c->data->scale,
                        .experts = (int32_t *)(void *)own,
                        .weights = own + 64,
                        .n_experts = 256,
                        .top_k = 8,
                        .n_group = 8,
                        .topk_group = 4,
                        .method = 3,
                        .sigmoid = 1,
                        .norm = 1,
                        .scale = 2.5f};
    (void)n_threads, (void)number;
    ((dsi_route_fn)c->line->fn)(&a);
}

bool kernel_row_cases(kernel_bench *b, const dsi_kernel_line *line) {
    kernel_data *d = &b->data;
    d->w = kernel_numbers(&b->room, DSI_DTYPE_BF16, HIDDEN, 1);
    d->x = kernel_numbers(&b->room, DSI_DTYPE_F32, HIDDEN, 2);
    d->scale = kernel_numbers(&b->room, DSI_DTYPE_F32, HIDDEN, 0.1);
    for (uint32_t t = 0; t < b->n_threads; t++) {
        d->own[t] = kernel_numbers(&b->room, DSI_DTYPE_F32, 4 * HIDDEN, 1);
        if (!d->own[t]) return false;
    }
    if (!d->w || !d->x || !d->scale) return false;
    if (line->type == DSI_KERNEL_route) {
        kernel_new_case(b, line, "256 experts, 8 of 4/8 groups")->turn = turn_route;
        return true;
    }
    if (line->type == DSI_KERNEL_rope) {
        kernel_new_case(b, line, "a row of %d heads of %d", HEADS, ROPE)->turn = turn_row;
        return true;
    }
    int64_t n = line->type == DSI_KERNEL_swiglu ? EXPERT : HIDDEN;
    kernel_case *c = kernel_new_case(b, line, "a row of %lld", (long long)n);
    c->turn = turn_row;
    c->n = n;
    return true;
}
