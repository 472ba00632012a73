/* cpu_selftest_matmul.c: the cases of matmul and matmul_t. */
#include "cpu_selftest_cases.h"

/* Two kinds of case. Dense: rows of many products, more than one panel, a block cut short, rows of
 * w on both sides of a scale block. Single: every output is one product, which shows each code of
 * FP8 and the ends of the other formats alone. */
typedef struct product {
    bool t, a8; /* matmul_t: x and y change their columns; a8: x becomes records */
    dsi_dtype w_dtype, x_dtype;
    void *x; /* plain numbers of x_dtype */
    int64_t x_stride;
    dsi_matmul_args args;
    int64_t x_rows, x_columns, y_columns;
} product;

enum { GAP = 3, BEHIND = 16 }; /* floats between the rows of y and behind the last */

static void call(dsi_any_fn fn, const product *p, const dsi_matmul_args *a) {
    if (!p->t) {
        ((dsi_matmul_fn)fn)(a);
        return;
    }
    const dsi_matmul_t_args args = dsi_matmul_t_of(a);
    ((dsi_matmul_t_fn)fn)(&args);
}

/* How whole numbers are scaled, beside the blocks of E4M3. */
typedef struct scheme {
    int64_t group_n, group_k, x_group; /* 0: the row */
    dsi_dtype scale_dtype;
} scheme;
static const scheme block_scheme = {DSI_BLOCK, DSI_BLOCK, DSI_BLOCK, DSI_DTYPE_F32};

/* A finite number of usual size; of FP8 any finite code, of whole numbers any. */
static double usual(dsi_selftest *t, dsi_dtype dtype) {
    if (dtype == DSI_DTYPE_I8) return (double)dsi_selftest_below(t, 256) - 128;
    if (dtype == DSI_DTYPE_I4) return (double)dsi_selftest_below(t, 16) - 8;
    if (dtype != DSI_DTYPE_E4M3) return dsi_selftest_uniform(t) * 2;
    uint8_t code = (uint8_t)dsi_selftest_below(t, 256);
    return (double)dsi_e4m3_to_f32((code & 0x7F) == 0x7F ? code ^ 1 : code);
}

static double sign_of(dsi_selftest *t) { return dsi_selftest_below(t, 2) ? 1 : -1; }

static void make_scales(dsi_selftest *t, product *p, const scheme *how) {
    dsi_matmul_args *a = &p->args;
    if (p->w_dtype != DSI_DTYPE_E4M3 && !dsi_selftest_is_whole(p->w_dtype)) return;
    a->group_n = how->group_n;
    a->group_k = how->group_k ? how->group_k : a->k;
    a->x_group = how->x_group ? how->x_group : a->k;
    a->scale_dtype = how->scale_dtype;
    a->scale_stride = dsi_ceil_div(a->k, a->group_k) + 1;
    int64_t n = dsi_ceil_div(a->n1, a->group_n) * a->scale_stride;
    void *scale = dsi_selftest_take(t, n * 4);
    for (int64_t i = 0; i < n; i++)
        dsi_selftest_put(a->scale_dtype, scale, i, 0.5 + 0.25 * dsi_selftest_uniform(t));
    a->scale = scale;
}

/* Room for all operands, the scales filled in; x and w are NaN, which the cases overwrite. */
static product make_product(dsi_selftest *t, bool is_t, int64_t m, int64_t n0, int64_t n1,
                            int64_t k, const scheme *how) {
    const char *stem = t->line->stem + (is_t ? 9 : 7); /* behind "matmul_t_" or "matmul_" */
    product p = {.t = is_t, .w_dtype = dsi_selftest_dtype(stem), .x_dtype = DSI_DTYPE_F32};
    if (!is_t) p.a8 = strcmp(strchr(stem, '_'), "_a8") == 0;
    if (!is_t && !p.a8) p.x_dtype = dsi_selftest_dtype(strchr(stem, '_') + 1);
    p.x_rows = m, p.x_columns = is_t ? n1 - n0 : k, p.y_columns = is_t ? k : n1 - n0;
    dsi_matmul_args *a = &p.args;
    a->m = m, a->n0 = n0, a->n1 = n1, a->k = k;
    p.x_stride = p.x_columns + 5, a->w_stride = k + 7, a->y_stride = p.y_columns + GAP;
    if (p.w_dtype == DSI_DTYPE_I4) a->w_stride = a->w_stride / 8 * 8;
    p.x = dsi_selftest_take(t, m * p.x_stride * 4);
    a->x = p.x, a->x_stride = p.x_stride;
    a->w = (uint8_t *)dsi_selftest_take(t, dsi_row_bytes(p.w_dtype, n1 * a->w_stride) + 1) + 1;
    make_scales(t, &p, how);
    if (p.a8) {
        a->x_stride = dsi_a8_bytes(k) + 64;
        a->x = dsi_selftest_take(t, m * a->x_stride);
    }
    if (!is_t) a->scratch = dsi_selftest_take(t, dsi_matmul_scratch_bytes(k));
    a->y = dsi_selftest_take(t, (m * a->y_stride + BEHIND) * 4);
    return p;
}

/* Records of what x is now. */
static void make_records(const product *p) {
    const dsi_matmul_args *a = &p->args;
    for (int64_t i = 0; p->a8 && i < p->x_rows; i++)
        dsi_quantize_a8_f32__ref((const float *)p->x + i * p->x_stride,
                                 (uint8_t *)(uintptr_t)a->x + i * a->x_stride, a->k, a->x_group);
}

static void *weights(const product *p) { return (void *)(uintptr_t)p->args.w; }

/* |x|, |w| in place: the scales are positive already. */
static void drop_signs(const product *p) {
    const dsi_matmul_args *a = &p->args;
    for (int64_t i = 0; i < p->x_rows; i++)
        for (int64_t j = 0; j < p->x_columns; j++) {
            int64_t at = i * p->x_stride + j;
            dsi_selftest_put(p->x_dtype, p->x, at, fabs(dsi_selftest_get(p->x_dtype, p->x, at)));
        }
    for (int64_t n = a->n0; n < a->n1; n++)
        for (int64_t k = 0; k < a->k; k++) {
            int64_t at = n * a->w_stride + k;
            dsi_selftest_put(p->w_dtype, weights(p), at,
                             fabs(dsi_selftest_get(p->w_dtype, a->w, at)));
        }
    make_records(p);
}

static float *reference(dsi_selftest *t, const product *p) {
    dsi_matmul_args a = p->args;
    a.y_stride = p->y_columns;
    a.y = dsi_selftest_take(t, a.m * p->y_columns * 4);
    call(t->line->ref, p, &a);
    return a.y;
}

static void check_gaps(dsi_selftest *t, const product *p) {
    const dsi_matmul_args *a = &p->args;
    for (int64_t i = 0; i < a->m; i++)
        dsi_selftest_untouched(t, a->y + i * a->y_stride + p->y_columns, GAP);
    dsi_selftest_untouched(t, a->y + a->m * a->y_stride, BEHIND);
}

/* The first `m` rows alone have the same bits. */
static void check_fewer_rows(dsi_selftest *t, const product *p, int64_t m) {
    dsi_matmul_args a = p->args;
    a.m = m;
    a.y = dsi_selftest_take(t, (m * a.y_stride + BEHIND) * 4);
    call(t->fn, p, &a);
    for (int64_t i = 0; i < m; i++)
        for (int64_t j = 0; j < p->y_columns; j++)
            dsi_selftest_same(t, a.y[i * a.y_stride + j], p->args.y[i * a.y_stride + j],
                              "fewer rows: y", i, j);
}

static void dense_case(dsi_selftest *t, bool is_t, int64_t m, int64_t k, const scheme *how) {
    enum { N0 = 123, N1 = 140, NAN_ROW = 4, INF_ROW = 2 };
    dsi_selftest_case(t, "m=%lld n=[%d, %d) k=%lld groups %lld, %lld", (long long)m, N0, N1,
                      (long long)k, (long long)how->group_n, (long long)how->group_k);
    product p = make_product(t, is_t, m, N0, N1, k, how);
    dsi_matmul_args *a = &p.args;
    for (int64_t i = 0; i < m; i++)
        for (int64_t j = 0; j < p.x_columns; j++)
            dsi_selftest_put(p.x_dtype, p.x, i * p.x_stride + j, dsi_selftest_uniform(t) * 2);
    for (int64_t n = N0; n < N1; n++)
        for (int64_t j = 0; j < k; j++)
            dsi_selftest_put(p.w_dtype, weights(&p), n * a->w_stride + j, usual(t, p.w_dtype));
    dsi_selftest_put(p.x_dtype, p.x, NAN_ROW * p.x_stride + 7, NAN);
    dsi_selftest_put(p.x_dtype, p.x, INF_ROW * p.x_stride + 11, INFINITY);
    make_records(&p);
    int32_t *rows = dsi_selftest_take(t, m * 4); /* in another order than they lie */
    for (int64_t i = 0; i < m; i++) rows[i] = (int32_t)((i * 5 + 3) % m);
    if (!is_t) a->x_rows = rows;
    call(t->fn, &p, a);
    check_gaps(t, &p);
    for (int64_t fewer = 1; fewer < 4; fewer++) check_fewer_rows(t, &p, fewer);
    if (m > 5) check_fewer_rows(t, &p, 5);
    const float *truth = reference(t, &p);
    drop_signs(&p);
    const float *terms = reference(t, &p);
    for (int64_t i = 0; i < m; i++)
        for (int64_t j = 0; j < p.y_columns; j++) {
            int64_t at = i * p.y_columns + j;
            dsi_selftest_near(t, (double)a->y[i * a->y_stride + j], (double)truth[at],
                              t->line->tolerance * (double)terms[at] + 1e-30, "y", i, j);
        }
}

/* ---- Single products --------------------------------------------------------------------------*/

enum { BIG_X = 2, SINGLE_M = 3, EXTREMES = 16 };

static double largest(dsi_dtype dtype) {
    if (dsi_selftest_is_whole(dtype)) return dtype == DSI_DTYPE_I8 ? 128 : 8;
    return dtype == DSI_DTYPE_E4M3 ? 448 : dtype == DSI_DTYPE_F16 ? 65504 : 0x1.FEp127;
}
static double smallest(dsi_dtype dtype) { /* the step of denormals, of f32 that of bf16 */
    return dtype == DSI_DTYPE_E4M3 ? 0x1p-9 : dtype == DSI_DTYPE_F16 ? 0x1p-24 : 0x1p-133;
}

/* Weight number `n`: of FP8 and whole numbers every code, NaN included, of the others their ends
 * and numbers of usual size. */
static double single_weight(dsi_selftest *t, dsi_dtype dtype, int64_t n) {
    if (dtype == DSI_DTYPE_E4M3) return (double)dsi_e4m3_to_f32((uint8_t)n);
    if (dtype == DSI_DTYPE_I8) return (double)(n % 256) - 128;
    if (dtype == DSI_DTYPE_I4) return (double)(n % 16) - 8;
    double step = smallest(dtype), most = largest(dtype), sign = n % 2 ? -1 : 1;
    const double ends[EXTREMES / 2] = {0,
                                       step,
                                       step * 3,
                                       dtype == DSI_DTYPE_F16 ? 1023 * step : 127 * step,
                                       dtype == DSI_DTYPE_F16 ? 0x1p-14 : 0x1p-126,
                                       1,
                                       most,
                                       NAN};
    return sign * (n < EXTREMES ? ends[n / 2] : usual(t, dtype));
}

/* Activations: of usual size, denormal, and as large as the largest weight allows. */
static double single_activation(dsi_selftest *t, const product *p, int64_t row) {
    double size = 1 + 0.5 * dsi_selftest_uniform(t);
    if (row == 1)
        size = smallest(p->x_dtype) * (double)(1 + dsi_selftest_below(t, 100));
    else if (row == BIG_X)
        size *= 0x1p126 / largest(p->w_dtype);
    return size * sign_of(t);
}

/* The product of x[i][.] and w[n][k], the only one of its sum. */
static void check_single(dsi_selftest *t, const product *p, const float *truth, int64_t i,
                         int64_t n, int64_t k) {
    const dsi_matmul_args *a = &p->args;
    int64_t column = p->t ? k : n - a->n0;
    int64_t x_column = p->t ? n - a->n0 : k;
    double x = dsi_selftest_get(p->x_dtype, p->x, i * p->x_stride + x_column);
    double w = dsi_selftest_get(p->w_dtype, a->w, n * a->w_stride + k);
    double expected = (double)truth[i * p->y_columns + column];
    double bound = t->line->tolerance * fabs(expected) + 0x1p-149 * 256;
    /* vdpbf16ps and tdpbf16ps take denormals as zero and make none. */
    if ((t->line->isa & (DSI_ISA_AVX512BF16 | DSI_ISA_AMX)) != 0 &&
        (fabs(x) < 0x1p-126 || fabs(w) < 0x1p-126 || fabs(x * w) < 0x1.01p-126))
        bound += fabs(expected) + 0x1p-126;
    /* matmul_t gives them x as a sum of two bf16, and the second product is smaller by 2^9. */
    else if ((t->line->isa & DSI_ISA_AVX512BF16) != 0 && p->t && fabs(x * w) < 0x1p-115)
        bound += 0x1p-126;
    dsi_selftest_near(t, (double)a->y[i * a->y_stride + column], expected, bound, "y", i, column);
}

/* matmul: weight row n is zero but for one column; matmul_t: column k but for one row. */
static void single_case(dsi_selftest *t, bool is_t) {
    const bool bytes = strstr(t->line->stem, "_fp8") != NULL || strstr(t->line->stem, "_i8");
    const int64_t k = 300, n = is_t ? 3 : bytes ? 256 : 40;
    dsi_selftest_case(t, "one product for each y, n=%lld k=%lld", (long long)n, (long long)k);
    product p = make_product(t, is_t, SINGLE_M, 0, n, k, &block_scheme);
    dsi_matmul_args *a = &p.args;
    for (int64_t i = 0; i < SINGLE_M; i++)
        for (int64_t j = 0; j < p.x_columns; j++)
            dsi_selftest_put(p.x_dtype, p.x, i * p.x_stride + j, single_activation(t, &p, i));
    make_records(&p);
    for (int64_t r = 0; r < n; r++)
        for (int64_t c = 0; c < k; c++)
            dsi_selftest_put(p.w_dtype, weights(&p), r * a->w_stride + c, r % 2 ? -0.0 : 0);
    for (int64_t s = 0; s < (is_t ? k : n); s++) {
        int64_t r = is_t ? s % n : s, c = is_t ? s : s * 7 % k;
        dsi_selftest_put(p.w_dtype, weights(&p), r * a->w_stride + c,
                         single_weight(t, p.w_dtype, s));
    }
    call(t->fn, &p, a);
    check_gaps(t, &p);
    const float *truth = reference(t, &p);
    for (int64_t i = 0; i < SINGLE_M; i++)
        for (int64_t s = 0; s < (is_t ? k : n); s++)
            check_single(t, &p, truth, i, is_t ? s % n : s, is_t ? s : s * 7 % k);
}

/* The same with the other ways to scale whole numbers. */
static void other_schemes(dsi_selftest *t, bool is_t, int64_t m, int64_t k) {
    static const scheme others[] = {{1, 0, 0, DSI_DTYPE_BF16},
                                    {1, 32, DSI_BLOCK, DSI_DTYPE_F16},
                                    {1, DSI_BLOCK, DSI_BLOCK, DSI_DTYPE_BF16}};
    const char *stem = t->line->stem + (is_t ? 9 : 7);
    if (!dsi_selftest_is_whole(dsi_selftest_dtype(stem))) return;
    for (int i = 0; i < 3; i++) dense_case(t, is_t, m, k, &others[i]);
}

void dsi_selftest_matmul(dsi_selftest *t) {
    if (strstr(t->line->stem, "_blocks")) {
        dsi_selftest_blocks(t);
        return;
    }
    dense_case(t, false, 13, 4 * DSI_BLOCK + 44, &block_scheme); /* more than a panel */
    dense_case(t, false, 5, 77, &block_scheme);
    other_schemes(t, false, 13, 4 * DSI_BLOCK + 45);
    single_case(t, false);
}

void dsi_selftest_matmul_t(dsi_selftest *t) {
    if (strstr(t->line->stem, "_blocks")) {
        dsi_selftest_blocks(t);
        return;
    }
    dense_case(t, true, 5, 2 * DSI_BLOCK + 44, &block_scheme);
    other_schemes(t, true, 5, DSI_BLOCK + 45);
    single_case(t, true);
}
