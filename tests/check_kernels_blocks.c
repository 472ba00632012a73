/* check_kernels_blocks.c: the checks of kernels on GGUF's blocks: each type, edge shapes and odd
 * multipliers. */
#include "../kernels/blocks/blocks.h"
#include "../lib/backend/cpu_selftest_cases.h"
#include "check.h"

enum { SLOT_X, SLOT_W, SLOT_Y, SLOT_ROWS, SLOT_SCRATCH };

static const dsi_dtype types[] = {
#define BLOCK_TYPE(name, type, values, bytes, text) name,
    DSI_BLOCK_DTYPE_LIST(BLOCK_TYPE)
#undef BLOCK_TYPE
};
static const char *const type_name[] = {
#define BLOCK_TEXT(name, type, values, bytes, text) text,
    DSI_BLOCK_DTYPE_LIST(BLOCK_TEXT)
#undef BLOCK_TEXT
};
enum { TYPES = sizeof types / sizeof types[0] };

/* What a case puts into the multipliers of its blocks or into x. */
enum special { PLAIN, ZERO, DENORMAL, HUGE_D, NAN_D, INF_D, ONES, NAN_IN_X, INF_IN_X, SPECIALS };
static const char *const special_name[] = {"plain", "zero d",   "denormal d", "largest d", "NaN d",
                                           "inf d", "all bits", "NaN in x",   "inf in x"};

/* A block of random bytes. */
static void make_block(check_run *run, dsi_dtype dtype, enum special special, uint8_t *block) {
    const dsi_block_shape shape = dsi_block_shape_of(dtype);
    const bool fp4 = dtype == DSI_DTYPE_MXFP4;
    for (int i = 0; i < shape.bytes; i++)
        block[i] = special == ONES ? 0xFF : (uint8_t)check_random(run);
    float sign = check_below(run, 4) ? 1 : -1;
    float d = sign * (float)(0.25 + 0.25 * check_uniform(run)), m = (float)check_uniform(run) / 2;
    if (special == ZERO && check_below(run, 2)) d = m = 0;
    if (special == DENORMAL) d = sign * (fp4 ? 0x1p-126f : 0x1p-24f), m = 0x1p-23f;
    if (special == HUGE_D) d = sign * (fp4 ? 0x1p100f : 65504.0f), m = 65504;
    if (special == NAN_D && !fp4 && check_below(run, 3) == 0) d = NAN;
    if (special == INF_D && !fp4 && check_below(run, 3) == 0) d = INFINITY;
    if (special == INF_D && !fp4 && check_below(run, 3) == 0) m = INFINITY;
    dsi_selftest_block_scale(dtype, block, d, m);
}

/* Rows [first, rows) of `blocks` blocks, stride bytes apart; the bytes around them stay 0xFF. */
static void make_rows(check_run *run, dsi_dtype dtype, enum special special, uint8_t *w,
                      int64_t first, int64_t rows, int64_t blocks, int64_t stride) {
    const int64_t bytes = dsi_block_shape_of(dtype).bytes;
    if (rows == 0 || blocks == 0) return;
    memset(w, 0xFF, (size_t)((rows - 1) * stride + blocks * bytes));
    for (int64_t r = first; r < rows; r++)
        for (int64_t b = 0; b < blocks; b++)
            make_block(run, dtype, special, w + r * stride + b * bytes);
}

/* ---- decode_blocks ---- */

static void check_decode_type(check_run *run, int type, int64_t blocks, enum special special) {
    const dsi_block_shape shape = dsi_block_shape_of(types[type]);
    const int64_t k = blocks * shape.values;
    if (check_done(run)) return;
    check_case(run, "%s, %lld blocks, %s, seed %llx", type_name[type], (long long)blocks,
               special_name[special], (unsigned long long)run->random);
    uint8_t *w = check_buffer(run, SLOT_W, blocks * shape.bytes, check_below(run, 16));
    make_rows(run, types[type], special, w, 0, 1, blocks, blocks * shape.bytes);
    float *y = check_buffer(run, SLOT_Y, k * 4, 0), *truth = check_room(k * 4 + 4);
    ((dsi_decode_blocks_fn)run->kernel->fn)(types[type], w, y, k);
    ((dsi_decode_blocks_fn)run->kernel->ref)(types[type], w, truth, k);
    for (int64_t i = 0; i < k; i++) check_same(run, y[i], truth[i], "y", i, 0);
    check_buffers_intact(run);
}

void check_decode_blocks(check_run *run) {
    for (int type = 0; type < TYPES; type++)
        for (int special = 0; special < NAN_IN_X; special++)
            for (int64_t blocks = 0; blocks < 6; blocks++)
                check_decode_type(run, type, blocks, (enum special)special);
}

/* ---- matmul, matmul_t ---- */

typedef struct product {
    bool t;
    int type;
    enum special special;
    dsi_matmul_args args;
    enum check_format x_format;
    int64_t x_columns, y_columns, w_bytes; /* bytes of a row */
} product;

static void call(check_any_fn fn, bool t, const dsi_matmul_args *a) {
    if (!t) {
        ((dsi_matmul_fn)fn)(a);
        return;
    }
    const dsi_matmul_t_args args = dsi_matmul_t_of(a);
    ((dsi_matmul_t_fn)fn)(&args);
}

static product make_product(check_run *run, int type, int64_t m, int64_t n, int64_t blocks) {
    static const int64_t first_row[] = {0, 0, 1, 3, 5, 18};
    const dsi_block_shape shape = dsi_block_shape_of(types[type]);
    product p = {.t = run->kernel->type == CHECK_matmul_t, .type = type, .x_format = CHECK_F32};
    if (strstr(run->kernel->stem, "_bf16")) p.x_format = CHECK_BF16;
    p.special = (enum special)check_below(run, 2 * SPECIALS);
    if (p.special >= SPECIALS) p.special = PLAIN;
    dsi_matmul_args *a = &p.args;
    a->w_dtype = types[type];
    a->m = m, a->k = blocks * shape.values, a->n0 = first_row[check_below(run, 6)],
    a->n1 = a->n0 + n;
    check_case(run, "%s m=%lld n=[%lld, %lld) k=%lld, %s, seed %llx", type_name[type], (long long)m,
               (long long)a->n0, (long long)a->n1, (long long)a->k, special_name[p.special],
               (unsigned long long)run->random);
    p.x_columns = p.t ? n : a->k, p.y_columns = p.t ? a->k : n;
    a->x_stride = p.x_columns + check_below(run, 2) * check_below(run, 40);
    a->y_stride = p.y_columns + check_below(run, 2) * check_below(run, 40);
    a->w_stride = a->k + check_below(run, 2) * shape.values;
    p.w_bytes = a->w_stride / shape.values * shape.bytes;
    int64_t w_end = a->n1 > 0 && blocks > 0 ? (a->n1 - 1) * p.w_bytes + blocks * shape.bytes : 0;
    int64_t x_n = m > 0 && p.x_columns > 0 ? (m - 1) * a->x_stride + p.x_columns : 0;
    uint8_t *w = check_buffer(run, SLOT_W, w_end, check_below(run, 4));
    void *x = check_buffer(run, SLOT_X, x_n * check_format_size(p.x_format), 0);
    make_rows(run, a->w_dtype, p.special, w, a->n0, a->n1, blocks, p.w_bytes);
    if (x_n > 0) memset(x, 0xFF, (size_t)(x_n * check_format_size(p.x_format)));
    for (int64_t i = 0; i < m; i++)
        for (int64_t j = 0; j < p.x_columns; j++)
            check_put(p.x_format, x, i * a->x_stride + j, check_uniform(run));
    if (x_n > 0 && (p.special == NAN_IN_X || p.special == INF_IN_X))
        check_put(p.x_format, x, check_below(run, m) * a->x_stride + check_below(run, p.x_columns),
                  p.special == NAN_IN_X ? NAN : INFINITY);
    a->x = x, a->w = w;
    if (!p.t && m > 0 && check_below(run, 2)) {
        int32_t *rows = check_buffer(run, SLOT_ROWS, m * 4, 0);
        for (int64_t i = 0; i < m; i++) rows[i] = (int32_t)check_below(run, m);
        a->x_rows = rows;
    }
    if (!p.t) a->scratch = check_buffer(run, SLOT_SCRATCH, dsi_matmul_scratch_bytes(a->k), 0);
    int64_t y_n = m > 0 && p.y_columns > 0 ? (m - 1) * a->y_stride + p.y_columns : 0;
    a->y = check_buffer(run, SLOT_Y, y_n * 4, 0);
    return p;
}

/* |s * q| + |m| of every weight, as f32 rows of k. */
static float *sizes(const product *p, double *largest) {
    const dsi_matmul_args *a = &p->args;
    const dsi_block_shape shape = dsi_block_shape_of(a->w_dtype);
    float *size = check_room((a->n1 * a->k + 1) * 4);
    dsi_block_parts parts;
    for (int64_t n = a->n0; n < a->n1; n++)
        for (int64_t k = 0; k < a->k; k++) {
            int64_t i = k % shape.values, g = i / shape.group;
            if (i == 0)
                dsi_block_read(a->w_dtype, a->w + n * p->w_bytes + k / shape.values * shape.bytes,
                               &parts);
            float v = fabsf((float)parts.q[i] * parts.scale[g]) + fabsf(parts.min[g]);
            size[n * a->k + k] = v;
            if (isfinite(v)) *largest = fmax(*largest, v);
        }
    return size;
}

/* The sum of |terms| of every output: the products of f32 with |x| and the sizes. */
static float *sum_of_terms(const product *p, double *largest) {
    dsi_matmul_args a = p->args;
    float *x = check_room((a.m * p->x_columns + 1) * 4);
    for (int64_t i = 0; i < a.m; i++)
        for (int64_t j = 0; j < p->x_columns; j++) {
            int64_t row = a.x_rows ? a.x_rows[i] : i;
            x[i * p->x_columns + j] =
                fabsf((float)check_get(p->x_format, a.x, row * a.x_stride + j));
        }
    a.w = (const uint8_t *)sizes(p, largest), a.w_stride = a.k;
    a.x = x, a.x_stride = p->x_columns, a.x_rows = NULL, a.y_stride = p->y_columns;
    a.y = check_room((a.m * p->y_columns + 1) * 4);
    call(p->t ? (check_any_fn)dsi_matmul_t_f32__ref : (check_any_fn)dsi_matmul_f32_f32__ref, p->t,
         &a);
    return a.y;
}

static void compare(check_run *run, const product *p) {
    const dsi_matmul_args *a = &p->args;
    dsi_matmul_args truth = *a;
    double largest = 1;
    truth.y_stride = p->y_columns;
    truth.y = check_room((a->m * p->y_columns + 1) * 4);
    call(run->kernel->ref, p->t, &truth);
    const float *terms = sum_of_terms(p, &largest);
    double n_terms = (double)p->x_columns + 1;
    double slack = n_terms * (run->kernel->flushes_denormals ? 0x1p-126 : 0x1p-140) * largest;
    if (run->kernel->is_ref) slack = 0;
    for (int64_t i = 0; i < a->m; i++)
        for (int64_t j = 0; j < p->y_columns; j++) {
            int64_t at = i * p->y_columns + j;
            float y = a->y[i * a->y_stride + j];
            /* Which of them depends on whether infinities meet in the sum of s * q or later. */
            bool infinite = p->special == INF_D || p->special == INF_IN_X;
            if (infinite && !isfinite(truth.y[at]) && !isfinite(y)) continue;
            check_near(run, (double)y, (double)truth.y[at],
                       run->kernel->c * (double)terms[at] + slack, "y", i, j);
        }
    check_gaps_intact(run, a->y, a->m, p->y_columns * 4, a->y_stride * 4);
    check_buffers_intact(run);
}

static void compare_part(check_run *run, const product *p, dsi_matmul_args *part, int64_t row,
                         int64_t first, const char *what) {
    int64_t columns = p->t ? part->k : part->n1 - part->n0;
    part->y_stride = columns;
    part->y = check_room((part->m * columns + 1) * 4);
    call(run->kernel->fn, p->t, part);
    for (int64_t i = 0; i < part->m; i++)
        for (int64_t j = 0; j < columns; j++)
            check_same(run, part->y[i * columns + j],
                       p->args.y[(row + i) * p->args.y_stride + first + j], what, row + i,
                       first + j);
}

static void compare_parts(check_run *run, const product *p) {
    const dsi_matmul_args *a = &p->args;
    if (a->m == 0 || p->y_columns == 0) return;
    for (int64_t tried = 0; tried < 3 && tried < a->m; tried++) {
        int64_t i = check_below(run, a->m), row = a->x_rows ? a->x_rows[i] : i;
        dsi_matmul_args part = *a;
        part.m = 1, part.x_rows = NULL;
        part.x = (const uint8_t *)a->x + row * a->x_stride * check_format_size(p->x_format);
        compare_part(run, p, &part, i, 0, "row alone");
    }
    dsi_matmul_args part = *a;
    part.m = 1 + check_below(run, a->m);
    compare_part(run, p, &part, 0, 0, "first rows");
    if (p->t) return;
    int64_t middle = a->n0 + check_below(run, a->n1 - a->n0 + 1);
    part = *a;
    part.n1 = middle;
    compare_part(run, p, &part, 0, 0, "n split, first part");
    part = *a;
    part.n0 = middle;
    compare_part(run, p, &part, 0, middle - a->n0, "n split, last part");
}

static void check_product(check_run *run, int type, int64_t m, int64_t n, int64_t blocks) {
    if (check_done(run)) return;
    product p = make_product(run, type, m, n, blocks);
    call(run->kernel->fn, p.t, &p.args);
    compare(run, &p);
    compare_parts(run, &p);
}

void check_blocks(check_run *run) {
    static const int64_t rows[] = {0, 1, 2, 3, 4, 5, 6, 7, 9, 13};
    for (int type = 0; type < TYPES; type++) {
        const int64_t values = dsi_block_shape_of(types[type]).values;
        for (int i = 0; i < 10; i++) {
            const int64_t blocks =
                values == 256 ? 1 + check_below(run, 2) : 1 + check_below(run, 9);
            check_product(run, type, rows[i], 1 + check_below(run, 9), blocks);
            check_product(run, type, 1 + check_below(run, 5), rows[i], blocks);
        }
        check_product(run, type, 3, 4, 0);
        check_product(run, type, 2, 9, 1300 / values);
        check_product(run, type, 14, 18, 768 / values);
        check_product(run, type, 75, 5, 256 / values);
        if (values < 256) check_product(run, type, 15, 5, 608 / values); /* no whole 256 */
    }
}
