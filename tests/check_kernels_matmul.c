/* check_kernels_matmul.c: the checks of matmul and matmul_t. */
#include "check.h"

enum { SLOT_X, SLOT_W, SLOT_SCALE, SLOT_Y, SLOT_ROWS, SLOT_SCRATCH };

/* What a case puts into the numbers, beside random ones. */
enum special { PLAIN, ZEROS, DENORMAL, MAX, NAN_IN_W, INF_IN_W, NAN_IN_X, INF_IN_X, SPECIALS };
static const char *const special_name[] = {"plain",    "zeros",    "denormal", "max",
                                           "NaN in w", "inf in w", "NaN in x", "inf in x"};

/* One case. Both ops share x, w, scale and y; `t` says which. */
typedef struct product {
    bool t, a8; /* a8: x are records of quantize_a8 */
    enum check_format w_format, x_format, scale_format;
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
    if (check_is_whole(format)) return -1e3; /* check_put makes it the lowest */
    return format == CHECK_FP8 ? 448 : format == CHECK_F16 ? 65504 : 0x1.FEp127;
}

static double smallest(enum check_format format) {
    if (check_is_whole(format)) return 1;
    return format == CHECK_FP8 ? 0x1p-9 : format == CHECK_F16 ? 0x1p-24 : 0x1p-133;
}

/* A random element: FP8 any finite code, whole numbers any, others magnitudes around 1. */
static double element(check_run *run, enum check_format format, enum special special) {
    if (special == ZEROS && check_below(run, 3) != 0) return check_below(run, 2) ? 0.0 : -0.0;
    if (special == DENORMAL && check_below(run, 2) != 0)
        return smallest(format) * (double)(1 + check_below(run, 7)) *
               (check_below(run, 2) ? 1 : -1);
    if (format == CHECK_I8) return (double)check_below(run, 256) - 128;
    if (format == CHECK_I4) return (double)check_below(run, 16) - 8;
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
    memset(array, 0xFF, (size_t)check_format_bytes(format, extent(rows, columns, stride)));
    for (int64_t i = first; i < rows; i++) {
        for (int64_t j = 0; j < columns; j++) {
            check_put(format, array, i * stride + j, element(run, format, special) * factor);
            most = fmax(most, fabs(check_get(format, array, i * stride + j)));
        }
    }
    return most;
}

static void *matrix(check_run *run, int slot, int64_t rows, int64_t columns, int64_t stride,
                    enum check_format format, int64_t offset) {
    return check_buffer(run, slot, check_format_bytes(format, extent(rows, columns, stride)),
                        offset);
}

/* The multiplier of w[n][k] as an element of the array. */
static int64_t scale_at(const dsi_matmul_args *a, int64_t n, int64_t k) {
    return n / a->group_n * a->scale_stride + k / a->group_k;
}

/* One odd value somewhere in the part of w, its scales or x (plain numbers) that the call reads. */
static void place_special(check_run *run, product *p, void *x, int64_t x_stride) {
    dsi_matmul_args *a = &p->args;
    if (a->n1 <= a->n0 || a->k <= 0 || p->x_rows_held == 0) return;
    int64_t n = a->n0 + check_below(run, a->n1 - a->n0), k = check_below(run, a->k);
    int64_t w_at = n * a->w_stride + k;
    int64_t x_at = check_below(run, p->x_rows_held) * x_stride + check_below(run, p->x_columns);
    void *w = (void *)(uintptr_t)a->w, *scale = (void *)(uintptr_t)a->scale;
    double odd = p->special == NAN_IN_W ? NAN : INFINITY;
    if (p->special == NAN_IN_W || p->special == INF_IN_W) {
        if (check_is_whole(p->w_format))
            check_put(p->scale_format, scale, scale_at(a, n, k), odd);
        else if (p->w_format != CHECK_FP8 || p->special == NAN_IN_W)
            check_put(p->w_format, w, w_at, odd);
    }
    if (p->special == NAN_IN_X) check_put(p->x_format, x, x_at, NAN);
    if (p->special == INF_IN_X) check_put(p->x_format, x, x_at, INFINITY);
    if (p->special == MAX) {
        check_put(p->w_format, w, w_at, largest(p->w_format));
        p->w_max = fabs(check_get(p->w_format, w, w_at));
    }
}

/* The scales of weights that have some: their groups and their type, then their values. */
static void make_scales(check_run *run, product *p) {
    static const int64_t some_k[] = {32, 64, 128, 128, 0, 0};
    static const enum check_format formats[] = {CHECK_F32, CHECK_BF16, CHECK_F16};
    static const dsi_dtype dtypes[] = {DSI_DTYPE_F32, DSI_DTYPE_BF16, DSI_DTYPE_F16};
    dsi_matmul_args *a = &p->args;
    p->scale_max = 1, p->scale_format = CHECK_F32;
    if (p->w_format != CHECK_FP8 && !check_is_whole(p->w_format)) return;
    a->group_n = a->group_k = DSI_BLOCK, a->scale_dtype = DSI_DTYPE_F32;
    int64_t offset = 0;
    if (check_is_whole(p->w_format)) {
        int64_t type = check_below(run, 3), columns = some_k[check_below(run, 6)];
        a->group_n = check_below(run, 2) ? 1 : DSI_BLOCK;
        a->group_k = columns > 0 ? columns : a->k + 1 - check_below(run, a->k > 0 ? 2 : 1);
        a->scale_dtype = dtypes[type], p->scale_format = formats[type];
        offset = check_below(run, 4);
    }
    int64_t groups = (a->k + a->group_k - 1) / a->group_k;
    int64_t first = a->n0 / a->group_n, rows = (a->n1 + a->group_n - 1) / a->group_n;
    a->scale_stride = groups + check_below(run, 3);
    void *scale = matrix(run, SLOT_SCALE, rows, groups, a->scale_stride, p->scale_format, offset);
    p->scale_max = fill(run, scale, p->scale_format, PLAIN, p->w_format == CHECK_FP8 ? 0 : first,
                        rows, groups, a->scale_stride, 0.25);
    a->scale = scale;
}

/* The records of the f32 rows x. */
static void make_records(check_run *run, product *p, const float *x, int64_t x_stride) {
    dsi_matmul_args *a = &p->args;
    int64_t bytes = dsi_a8_bytes(a->k);
    a->x_stride = bytes + 64 * check_below(run, 2);
    a->x_group = check_below(run, 2) ? DSI_BLOCK : a->k + check_below(run, 2) + (a->k == 0);
    int64_t all = p->x_rows_held > 0 ? (p->x_rows_held - 1) * a->x_stride + bytes : 0;
    uint8_t *records = check_buffer(run, SLOT_X, all, 0);
    memset(records, 0xFF, (size_t)all);
    for (int64_t i = 0; i < p->x_rows_held; i++)
        dsi_quantize_a8_f32__ref(x + i * x_stride, records + i * a->x_stride, a->k, a->x_group);
    a->x = records;
}

/* Builds a case in guarded buffers: n1 - n0 = n. */
static product make_product(check_run *run, bool t, int64_t m, int64_t n, int64_t k) {
    static const int64_t first_row[] = {0, 0, 5, 120, 128, 200};
    const char *stem = run->kernel->stem + (t ? 9 : 7); /* behind "matmul_t_" or "matmul_" */
    product p = {.t = t, .w_format = check_format_named(stem), .x_format = CHECK_F32};
    if (!t) p.a8 = strcmp(strchr(stem, '_'), "_a8") == 0;
    if (!t && !p.a8) p.x_format = check_format_named(strchr(stem, '_') + 1);
    p.special = (enum special)check_below(run, 2 * SPECIALS);
    if (p.special >= SPECIALS) p.special = PLAIN;
    dsi_matmul_args *a = &p.args;
    a->m = m, a->k = k, a->n0 = first_row[check_below(run, 6)], a->n1 = a->n0 + n;
    p.x_rows_held = t || m == 0 ? m : m + check_below(run, 3);
    p.x_columns = t ? n : k;
    p.y_columns = t ? k : n;
    a->x_stride = p.x_columns + check_below(run, 2) * check_below(run, 40);
    a->w_stride = k + check_below(run, 2) * check_below(run, 40);
    if (p.w_format == CHECK_I4) a->w_stride = (a->w_stride + 7) / 8 * 8;
    a->y_stride = p.y_columns + check_below(run, 2) * check_below(run, 40);
    check_case(run, "m=%lld n=[%lld, %lld) k=%lld, %s, seed %llx", (long long)m, (long long)a->n0,
               (long long)a->n1, (long long)k, special_name[p.special],
               (unsigned long long)run->random);
    int64_t x_bytes =
        extent(p.x_rows_held, p.x_columns, a->x_stride) * check_format_size(p.x_format);
    void *x = p.a8 ? check_room(x_bytes) : check_buffer(run, SLOT_X, x_bytes, 0);
    /* Weights may lie at any byte. */
    void *w = matrix(run, SLOT_W, a->n1, k, a->w_stride, p.w_format, check_below(run, 4));
    /* Where a weight or a product is near the top of its range, activations are scaled down. */
    double x_factor = p.special == MAX ? 0x1p-20 : 1;
    p.w_max = fill(run, w, p.w_format, p.special, a->n0, a->n1, k, a->w_stride, 1);
    p.x_max =
        fill(run, x, p.x_format, p.special, 0, p.x_rows_held, p.x_columns, a->x_stride, x_factor);
    a->x = x, a->w = w;
    make_scales(run, &p);
    place_special(run, &p, x, a->x_stride);
    if (p.a8) make_records(run, &p, x, a->x_stride);
    if (!t && m > 0 && check_below(run, 2)) {
        int32_t *rows = check_buffer(run, SLOT_ROWS, m * 4, 0);
        for (int64_t i = 0; i < m; i++) rows[i] = (int32_t)check_below(run, p.x_rows_held);
        a->x_rows = rows;
    }
    if (!t) a->scratch = check_buffer(run, SLOT_SCRATCH, dsi_matmul_scratch_bytes(k), 0);
    a->y = matrix(run, SLOT_Y, m, p.y_columns, a->y_stride, CHECK_F32, 0);
    return p;
}

/* |q| and |multiplier| of all records in a copy. */
static void *records_without_signs(const product *p) {
    const dsi_matmul_args *a = &p->args;
    uint8_t *copy = check_room(p->x_rows_held * a->x_stride);
    for (int64_t i = 0; i < p->x_rows_held; i++) {
        uint8_t *to = copy + i * a->x_stride;
        memcpy(to, (const uint8_t *)a->x + i * a->x_stride, (size_t)dsi_a8_bytes(a->k));
        check_clear_signs(CHECK_I8, to, a->k);
        check_clear_signs(CHECK_F32, (void *)(uintptr_t)dsi_a8_multipliers(to, a->k),
                          dsi_a8_blocks(a->k));
    }
    return copy;
}

/* The reference on |x|, |w|, |scale|: the sum of |terms| for every output. */
static float *sum_of_terms(check_run *run, const product *p) {
    dsi_matmul_args a = p->args;
    int64_t x_n = extent(p->x_rows_held, p->x_columns, a.x_stride);
    int64_t w_n = extent(a.n1, a.k, a.w_stride);
    void *x =
        p->a8 ? records_without_signs(p) : check_copy(a.x, x_n * check_format_size(p->x_format));
    void *w = check_copy(a.w, check_format_bytes(p->w_format, w_n));
    if (!p->a8) check_clear_signs(p->x_format, x, x_n);
    check_clear_signs(p->w_format, w, w_n);
    if (a.scale != NULL && a.n1 > 0 && a.k > 0) {
        int64_t n = scale_at(&a, a.n1 - 1, a.k - 1) + 1;
        void *scale = check_copy(a.scale, n * check_format_size(p->scale_format));
        check_clear_signs(p->scale_format, scale, n);
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
            float y = a->y[i * a->y_stride + j];
            /* What an infinite scale makes of a sum around 0 depends on its last bit. */
            if (p->special == INF_IN_W && !isfinite(truth.y[at]) && !isfinite(y)) continue;
            check_near(run, (double)y, (double)truth.y[at],
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
        part.x = (const uint8_t *)a->x +
                 x_row * a->x_stride * (p->a8 ? 1 : check_format_size(p->x_format));
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
