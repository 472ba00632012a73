/* check_kernels_matmul.c: the checks of matmul and matmul_t. */
#include "check.h"

enum { SLOT_X, SLOT_W, SLOT_SCALE, SLOT_Y, SLOT_ROWS, SLOT_SCRATCH };

/* What a case puts into the numbers, beside random ones. */
enum special { PLAIN, ZEROS, DENORMAL, MAX, NAN_IN_W, NAN_IN_X, INF_IN_X, SPECIALS };
static const char *const special_name[] = {"plain",    "zeros",    "denormal", "max",
                                           "NaN in w", "NaN in x", "inf in x"};

/* One case. Both ops share x, w, scale and y; `t` says which. */
typedef struct product {
    bool t;
    enum check_format w_format, x_format;
    enum special special;
    dsi_matmul_args args;
    int64_t x_rows_held, x_columns, y_columns;
    double w_max, x_max, scale_max; /* largest finite magnitudes */
} product;

static void call(check_any_fn fn, bool t, const dsi_matmul_args *a) {
    if (!t) {
        ((dsi_matmul_fn)fn)(a);
        return;
    }
    const dsi_matmul_t_args args = dsi_matmul_t_of(a);
    ((dsi_matmul_t_fn)fn)(&args);
}

static double largest(enum check_format format) {
    return format == CHECK_FP8 ? 448 : format == CHECK_F16 ? 65504 : 0x1.FEp127;
}

static double smallest(enum check_format format) {
    return format == CHECK_FP8 ? 0x1p-9 : format == CHECK_F16 ? 0x1p-24 : 0x1p-133;
}

/* A random element: FP8 any finite code, others magnitudes around 1. */
static double element(check_run *run, enum check_format format, enum special special) {
    if (special == ZEROS && check_below(run, 3) != 0) return check_below(run, 2) ? 0.0 : -0.0;
    if (special == DENORMAL && check_below(run, 2) != 0)
        return smallest(format) * (double)(1 + check_below(run, 7)) *
               (check_below(run, 2) ? 1 : -1);
    if (format == CHECK_FP8) {
        uint8_t code = (uint8_t)check_random(run);
        return dsi_e4m3_to_f32((code & 0x7F) == 0x7F ? code ^ 1 : code);
    }
    return check_uniform(run) * (double)(1 << check_below(run, 7)) * 0.125;
}

/* Elements from the first to the last one of a matrix. */
static int64_t extent(int64_t rows, int64_t columns, int64_t stride) {
    return rows > 0 && columns > 0 ? (rows - 1) * stride + columns : 0;
}

/* Fills rows [first, rows) of `columns` elements; the rows before and the gaps between rows stay
 * NaN, so that reading them shows. Returns the largest magnitude. */
static double fill(check_run *run, void *array, enum check_format format, enum special special,
                   int64_t first, int64_t rows, int64_t columns, int64_t stride, double factor) {
    double most = 0;
    if (rows == 0 || columns == 0) return 0;
    memset(array, 0xFF, (size_t)(extent(rows, columns, stride) * check_format_size(format)));
    for (int64_t i = first; i < rows; i++) {
        for (int64_t j = 0; j < columns; j++) {
            check_put(format, array, i * stride + j, element(run, format, special) * factor);
            most = fmax(most, fabs(check_get(format, array, i * stride + j)));
        }
    }
    return most;
}

static void *matrix(check_run *run, int slot, int64_t rows, int64_t columns, int64_t stride,
                    int size, int64_t offset) {
    return check_buffer(run, slot, extent(rows, columns, stride) * size, offset);
}

/* One odd value somewhere in the part of w or x that the call reads. */
static void place_special(check_run *run, product *p) {
    dsi_matmul_args *a = &p->args;
    if (a->n1 <= a->n0 || a->k <= 0 || p->x_rows_held == 0) return;
    int64_t w_at = (a->n0 + check_below(run, a->n1 - a->n0)) * a->w_stride + check_below(run, a->k);
    int64_t x_at = check_below(run, p->x_rows_held) * a->x_stride + check_below(run, p->x_columns);
    void *w = (void *)(uintptr_t)a->w, *x = (void *)(uintptr_t)a->x;
    if (p->special == NAN_IN_W) check_put(p->w_format, w, w_at, NAN);
    if (p->special == NAN_IN_X) check_put(p->x_format, x, x_at, NAN);
    if (p->special == INF_IN_X) check_put(p->x_format, x, x_at, INFINITY);
    if (p->special == MAX) {
        check_put(p->w_format, w, w_at, largest(p->w_format));
        p->w_max = largest(p->w_format);
    }
}

/* Builds a case in guarded buffers: n1 - n0 = n. */
static product make_product(check_run *run, bool t, int64_t m, int64_t n, int64_t k) {
    static const int64_t first_row[] = {0, 0, 5, 120, 128, 200};
    const char *stem = run->kernel->stem + (t ? 9 : 7); /* behind "matmul_t_" or "matmul_" */
    product p = {.t = t, .w_format = check_format_named(stem), .x_format = CHECK_F32};
    if (!t) p.x_format = check_format_named(strchr(stem, '_') + 1);
    p.special = (enum special)check_below(run, 2 * SPECIALS);
    if (p.special >= SPECIALS) p.special = PLAIN;
    dsi_matmul_args *a = &p.args;
    a->m = m, a->k = k, a->n0 = first_row[check_below(run, 6)], a->n1 = a->n0 + n;
    check_case(run, "m=%lld n=[%lld, %lld) k=%lld, %s, seed %llx", (long long)m, (long long)a->n0,
               (long long)a->n1, (long long)k, special_name[p.special],
               (unsigned long long)run->random);
    p.x_rows_held = t || m == 0 ? m : m + check_below(run, 3);
    p.x_columns = t ? n : k;
    p.y_columns = t ? k : n;
    a->x_stride = p.x_columns + check_below(run, 2) * check_below(run, 40);
    a->w_stride = k + check_below(run, 2) * check_below(run, 40);
    a->y_stride = p.y_columns + check_below(run, 2) * check_below(run, 40);
    int w_size = check_format_size(p.w_format), x_size = check_format_size(p.x_format);
    void *x = matrix(run, SLOT_X, p.x_rows_held, p.x_columns, a->x_stride, x_size, 0);
    /* Weights may lie at any byte. */
    void *w = matrix(run, SLOT_W, a->n1, k, a->w_stride, w_size, check_below(run, 4));
    /* Where a weight or a product is near the top of its range, activations are scaled down. */
    double x_factor = p.special == MAX ? 0x1p-20 : 1;
    p.w_max = fill(run, w, p.w_format, p.special, a->n0, a->n1, k, a->w_stride, 1);
    p.x_max =
        fill(run, x, p.x_format, p.special, 0, p.x_rows_held, p.x_columns, a->x_stride, x_factor);
    a->x = x, a->w = w, p.scale_max = 1;
    if (p.w_format == CHECK_FP8) {
        int64_t blocks = (k + DSI_BLOCK - 1) / DSI_BLOCK;
        a->scale_stride = blocks + check_below(run, 3);
        float *scale = matrix(run, SLOT_SCALE, (a->n1 + DSI_BLOCK - 1) / DSI_BLOCK, blocks,
                              a->scale_stride, 4, 0);
        p.scale_max = fill(run, scale, CHECK_F32, PLAIN, 0, (a->n1 + DSI_BLOCK - 1) / DSI_BLOCK,
                           blocks, a->scale_stride, 0.25);
        a->scale = scale;
    }
    place_special(run, &p);
    if (!t && m > 0 && check_below(run, 2)) {
        int32_t *rows = check_buffer(run, SLOT_ROWS, m * 4, 0);
        for (int64_t i = 0; i < m; i++) rows[i] = (int32_t)check_below(run, p.x_rows_held);
        a->x_rows = rows;
    }
    if (!t) a->scratch = check_buffer(run, SLOT_SCRATCH, dsi_matmul_scratch_bytes(k), 0);
    a->y = matrix(run, SLOT_Y, m, p.y_columns, a->y_stride, 4, 0);
    return p;
}

/* The reference on |x|, |w|, |scale|: the sum of |terms| for every output. */
static float *sum_of_terms(check_run *run, const product *p) {
    dsi_matmul_args a = p->args;
    int64_t x_n = extent(p->x_rows_held, p->x_columns, a.x_stride);
    int64_t w_n = extent(a.n1, a.k, a.w_stride);
    void *x = check_copy(a.x, x_n * check_format_size(p->x_format));
    void *w = check_copy(a.w, w_n * check_format_size(p->w_format));
    check_clear_signs(p->x_format, x, x_n);
    check_clear_signs(p->w_format, w, w_n);
    if (a.scale != NULL && a.n1 > 0 && a.k > 0) {
        int64_t n = (a.n1 - 1) / DSI_BLOCK * a.scale_stride + (a.k - 1) / DSI_BLOCK + 1;
        float *scale = check_copy(a.scale, n * 4);
        check_clear_signs(CHECK_F32, scale, n);
        a.scale = scale;
    }
    a.x = x, a.w = w, a.y_stride = p->y_columns;
    a.y = check_room(a.m * p->y_columns * 4);
    call(run->kernel->ref, p->t, &a);
    return a.y;
}

/* What rounding in the denormal range may add, however small the terms are. */
static double denormal_slack(const check_run *run, const product *p) {
    double n_terms = (double)(p->t ? p->args.n1 - p->args.n0 : p->args.k);
    /* FP8 sums may run 2^8 lower than the terms, and a product is rounded before the scale. */
    double step = 0x1p-149 * 256 * fmax(1, p->scale_max);
    if (p->t) step *= fmax(1, p->w_max);
    if (!run->kernel->flushes_denormals) return run->kernel->is_ref ? 0 : (n_terms + 1) * step;
    double flushed = 0x1p-126 * (1 + p->w_max + p->x_max) * fmax(1, p->scale_max);
    return (n_terms + 1) * flushed;
}

static void compare(check_run *run, const product *p) {
    const dsi_matmul_args *a = &p->args;
    dsi_matmul_args truth = *a;
    truth.y_stride = p->y_columns;
    truth.y = check_room(a->m * p->y_columns * 4);
    call(run->kernel->ref, p->t, &truth);
    const float *terms = run->kernel->is_ref ? truth.y : sum_of_terms(run, p);
    double slack = denormal_slack(run, p);
    for (int64_t i = 0; i < a->m; i++) {
        for (int64_t j = 0; j < p->y_columns; j++) {
            int64_t at = i * p->y_columns + j;
            check_near(run, (double)a->y[i * a->y_stride + j], (double)truth.y[at],
                       run->kernel->c * (double)terms[at] + slack, "y", i, j);
        }
    }
    check_gaps_intact(run, a->y, a->m, p->y_columns * 4, a->y_stride * 4);
    check_buffers_intact(run);
}

/* Runs `part`, whose y is fresh, and holds its rows against rows of the full call from column
 * `first` on. */
static void compare_part(check_run *run, const product *p, dsi_matmul_args *part, int64_t row,
                         int64_t first, const char *what) {
    int64_t columns = p->t ? part->k : part->n1 - part->n0;
    part->y_stride = columns;
    part->y = check_room(part->m * columns * 4);
    call(run->kernel->fn, p->t, part);
    for (int64_t i = 0; i < part->m; i++)
        for (int64_t j = 0; j < columns; j++)
            check_same(run, part->y[i * columns + j],
                       p->args.y[(row + i) * p->args.y_stride + first + j], what, row + i,
                       first + j);
}

/* The same bits for a row alone, for a part of the rows of w, and gathered or not. */
static void compare_parts(check_run *run, const product *p) {
    const dsi_matmul_args *a = &p->args;
    if (a->m == 0 || p->y_columns == 0) return;
    for (int64_t tried = 0; tried < 6 && tried < a->m; tried++) {
        int64_t i = a->m <= 6 ? tried : check_below(run, a->m);
        int64_t x_row = a->x_rows != NULL ? a->x_rows[i] : i;
        dsi_matmul_args part = *a;
        part.m = 1, part.x_rows = NULL;
        part.x = (const uint8_t *)a->x + x_row * a->x_stride * check_format_size(p->x_format);
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

static void check_product(check_run *run, bool t, int64_t m, int64_t n, int64_t k) {
    if (check_done(run)) return;
    product p = make_product(run, t, m, n, k);
    call(run->kernel->fn, t, &p.args);
    compare(run, &p);
    compare_parts(run, &p);
}

static void check_shapes(check_run *run, bool t) {
    static const int64_t edge[] = {0, 1, 2, 3, 7, 63, 64, 65, 127, 128, 129};
    enum { EDGES = sizeof edge / sizeof edge[0] };
    /* All pairs (m, k) and (n, k), the third one small or random, then longer rows. */
    for (int i = 0; i < EDGES; i++) {
        for (int j = 0; j < EDGES; j++) {
            check_product(run, t, edge[i], edge[check_below(run, 6)], edge[j]);
            check_product(run, t, edge[check_below(run, 5)], edge[i], edge[j]);
        }
    }
    static const int64_t odd_k[] = {4, 5, 8, 15, 16, 17, 31, 33, 48, 96, 130, 160, 255, 257, 320};
    for (size_t i = 0; i < sizeof odd_k / sizeof odd_k[0]; i++)
        check_product(run, t, 1 + check_below(run, 9), 1 + check_below(run, 40), odd_k[i]);
    for (int64_t m = 1; m <= 20; m++) check_product(run, t, m, 33, 200);
    check_product(run, t, 2, 9, 1100);
    check_product(run, t, 200, 5, 600);
    check_product(run, t, 35, 36, 1111);
}

void check_matmul(check_run *run) { check_shapes(run, false); }

void check_matmul_t(check_run *run) { check_shapes(run, true); }
