/* kernels_work.c: products at DeepSeek-V3 shapes: weights from memory, a few matrices in turn, each
 * thread with columns of its own, as the engine calls a kernel. */
#include "kernels.h"

#include "../kernels/formats.h"
#include "../lib/base/sys.h"
#include <math.h>
#include <stdarg.h>
#include <string.h>

enum { HIDDEN = 7168, EXPERT = 2048, HEADS = 128, NOPE = 128, RANK = 512 };
enum { FEW_ROWS_BYTES = 1 << 18, FEW_ROWS_COLUMNS = 512, MANY_ROWS_COLUMNS = 64 };
enum { OWN_RESULTS = KERNEL_ROWS_AT_ONCE * FEW_ROWS_COLUMNS * 4, LIBRARY_SCRATCH = 2 << 20 };
static const double target_seconds = 4e-3; /* of one timed run */

/* ---- Numbers --------------------------------------------------------------------------------- */

static void put(dsi_dtype dtype, uint8_t *at, int64_t i, float value) {
    uint16_t half = dtype == DSI_DTYPE_BF16 ? dsi_f32_to_bf16(value) : dsi_f32_to_f16(value);
    if (dtype == DSI_DTYPE_E4M3)
        at[i] = dsi_f32_to_e4m3(value);
    else if (dtype == DSI_DTYPE_F32 || dtype == DSI_DTYPE_I32)
        memcpy(at + i * 4, &value, 4);
    else if (dtype == DSI_DTYPE_I8 || dtype == DSI_DTYPE_I4)
        at[i] = (uint8_t)(int8_t)lrintf(value * 127);
    else
        memcpy(at + i * 2, &half, 2);
}

static int64_t bytes_of(dsi_dtype dtype, int64_t n) {
    return dtype == DSI_DTYPE_I4 ? (n + 1) / 2 : n * dsi_dtype_bytes(dtype);
}

void *kernel_numbers(kernel_room *room, dsi_dtype dtype, int64_t n, double size) {
    const int64_t period = 8191; /* odd, so that rows differ */
    int64_t bytes = bytes_of(dtype, n), filled = bytes_of(dtype, period);
    uint64_t need = (uint64_t)(bytes + 127) / 64 * 64;
    if (room->n_bytes < need) return NULL;
    uint8_t *array = room->data;
    room->data += need, room->n_bytes -= need;
    if (dtype == DSI_DTYPE_I4) filled = period;
    for (int64_t i = 0; i < period && i * (filled / period) < bytes; i++)
        put(dtype, array, i, (float)(size * sin((double)i * 0.37)));
    for (int64_t at = filled; at < bytes; at += filled)
        memcpy(array + at, array, (size_t)(bytes - at < filled ? bytes - at : filled));
    return array;
}

kernel_case *kernel_new_case(kernel_bench *b, const dsi_kernel_line *line, const char *format,
                             ...) {
    if (b->n_cases == KERNEL_CASES) return NULL;
    kernel_case *c = &b->cases[b->n_cases++];
    memset(c, 0, sizeof *c);
    c->line = line;
    c->data = &b->data;
    c->turns = 1;
    va_list list;
    va_start(list, format);
    vsnprintf(c->shape, sizeof c->shape, format, list);
    va_end(list);
    return c;
}

/* "fp8", "bf16" ... at the start of a part of a stem. */
static dsi_dtype named(const char *text) {
    static const struct {
        const char *name;
        dsi_dtype dtype;
    } names[] = {{"fp8", DSI_DTYPE_E4M3}, {"bf16", DSI_DTYPE_BF16}, {"f16", DSI_DTYPE_F16},
                 {"f32", DSI_DTYPE_F32},  {"i8", DSI_DTYPE_I8},     {"i4", DSI_DTYPE_I4},
                 {"a8", DSI_DTYPE_I8}};
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++)
        if (strncmp(text, names[i].name, strlen(names[i].name)) == 0) return names[i].dtype;
    return DSI_DTYPE_NONE;
}

/* ---- A turn ---------------------------------------------------------------------------------- */

/* Of matrix `number`, with a thread's own memory. */
static dsi_matmul_args product_args(const kernel_case *c, int64_t number, uint8_t *own) {
    const kernel_data *d = c->data;
    dsi_matmul_args a = c->args;
    a.w = d->w + number % d->copies * d->copy_bytes;
    a.scale = (const uint8_t *)a.scale + number % d->copies * c->scale_bytes;
    a.y = (float *)(void *)own;
    a.scratch = own + OWN_RESULTS;
    return a;
}

static void turn_matmul(const kernel_case *c, uint32_t thread, uint32_t n_threads, int64_t number) {
    const kernel_data *d = c->data;
    dsi_matmul_args a = product_args(c, number, d->own[thread]);
    int64_t columns = MANY_ROWS_COLUMNS, row_bytes = bytes_of(d->w_dtype, c->k);
    if (c->m <= KERNEL_FEW_ROWS) {
        columns = FEW_ROWS_BYTES / row_bytes / 16 * 16;
        if (columns < 16) columns = 16;
        if (columns > FEW_ROWS_COLUMNS) columns = FEW_ROWS_COLUMNS;
    }
    uint64_t n0, n1;
    dsi_pool_share((uint64_t)c->n, 16, thread, n_threads, &n0, &n1);
    for (int64_t n = (int64_t)n0; n < (int64_t)n1; n += columns)
        for (int64_t r = 0; r < c->m; r += KERNEL_ROWS_AT_ONCE) {
            a.n0 = n;
            a.n1 = n + columns < (int64_t)n1 ? n + columns : (int64_t)n1;
            a.y_stride = a.n1 - a.n0;
            a.x = (const uint8_t *)c->args.x + r * c->x_row_bytes;
            a.m = c->m - r < KERNEL_ROWS_AT_ONCE ? c->m - r : KERNEL_ROWS_AT_ONCE;
            ((dsi_matmul_fn)c->line->fn)(&a);
        }
}

/* W_UK of all heads, each thread its share of them. */
static void turn_matmul_t(const kernel_case *c, uint32_t thread, uint32_t n_threads,
                          int64_t number) {
    const kernel_data *d = c->data;
    dsi_matmul_args a = product_args(c, number, d->own[thread]);
    uint64_t h0, h1;
    dsi_pool_share(HEADS, 1, thread, n_threads, &h0, &h1);
    a.x_stride = NOPE, a.y_stride = RANK, a.m = c->m;
    for (uint64_t h = h0; h < h1; h++) {
        a.n0 = (int64_t)h * NOPE, a.n1 = a.n0 + NOPE;
        dsi_matmul_t_args t = dsi_matmul_t_of(&a);
        ((dsi_matmul_t_fn)c->line->fn)(&t);
    }
}

typedef struct timed_run {
    const kernel_case *c;
    int library; /* -1: the kernel */
    int64_t first;
} timed_run;

static void run_turns(void *context, uint32_t thread, uint32_t n_threads) {
    const timed_run *r = context;
    for (int i = 0; i < r->c->turns; i++) r->c->turn(r->c, thread, n_threads, r->first + i);
}

/* One call for all columns of the thread: what suits a library best. */
static void run_library(void *context, uint32_t thread, uint32_t n_threads) {
    const timed_run *r = context;
    const kernel_case *c = r->c;
    const dsi_gemm *gemm = c->gemm[r->library];
    const dsi_gemm_shape *s = &gemm->shape;
    int64_t row = bytes_of(s->dtype, s->k), matrix = c->n * row;
    uint8_t *scratch = c->data->own[thread] + OWN_RESULTS + dsi_matmul_scratch_bytes(c->k);
    (void)n_threads;
    for (int i = 0; i < c->turns; i++) {
        const uint8_t *w =
            c->library_w[r->library] + (r->first + i) % c->library_copies[r->library] * matrix;
        dsi_gemm_run(gemm, c->library_x[r->library], w + thread * s->n * row,
                     scratch + LIBRARY_SCRATCH, scratch);
    }
}

static double seconds_of(kernel_bench *b, const kernel_case *c, int library) {
    static int64_t next;
    timed_run run = {c, library, next};
    next += c->turns;
    double start = dsi_sys_seconds();
    dsi_pool_run(b->pool, library < 0 ? run_turns : run_library, &run);
    return (dsi_sys_seconds() - start) / c->turns;
}
double kernel_time(kernel_bench *b, const kernel_case *c) { return seconds_of(b, c, -1); }
double kernel_time_library(kernel_bench *b, const kernel_case *c, int i) {
    return seconds_of(b, c, i);
}

void kernel_choose_turns(kernel_bench *b, kernel_case *c) {
    double first = kernel_time(b, c), turns = target_seconds / (first > 0 ? first : 1e-9);
    c->turns = turns < 1 ? 1 : turns > 4096 ? 4096 : (int)turns;
}

/* ---- Cases ----------------------------------------------------------------------------------- */

uint64_t kernel_cold_bytes(void) { return 4 * bench_last_cache_bytes(); }

/* The type that library i multiplies in place of x, the one with the fastest instructions first. */
static dsi_dtype library_dtype(const dsi_gemm_library *library, const kernel_data *d) {
    if (!library) return DSI_DTYPE_NONE;
    if (dsi_gemm_takes(library, d->x_dtype)) return d->x_dtype;
    return d->x_dtype == DSI_DTYPE_BF16 ? DSI_DTYPE_F32 : DSI_DTYPE_NONE;
}

static bool library_weights(kernel_bench *b, dsi_dtype dtype) {
    if (b->library_w[dtype]) return true;
    kernel_room room = {.n_bytes = kernel_cold_bytes() + 256};
    room.data = dsi_sys_alloc_aligned(room.n_bytes);
    if (!room.data) return false;
    b->library_w[dtype] = room.data;
    int64_t n = (int64_t)kernel_cold_bytes() / dsi_dtype_bytes(dtype);
    return kernel_numbers(&room, dtype, n, 0.1) != NULL;
}

/* The same product by the libraries, in a case of the best kernel of a stem. */
static bool add_libraries(kernel_bench *b, kernel_case *c) {
    dsi_error error;
    for (int i = 0; i < KERNEL_LIBRARIES; i++) {
        dsi_dtype dtype = library_dtype(b->libraries[i], &b->data);
        if (dtype == DSI_DTYPE_NONE) continue;
        dsi_gemm_shape shape = {dtype, c->m, c->n / b->n_threads, c->k, c->k, c->k, 0};
        shape.y_stride = shape.n;
        if (!library_weights(b, dtype)) return false;
        dsi_status status = dsi_gemm_new(b->libraries[i], &shape, &c->gemm[i], &error);
        if (status != DSI_OK || dsi_gemm_scratch(c->gemm[i]) > LIBRARY_SCRATCH) {
            dsi_gemm_free(c->gemm[i]);
            c->gemm[i] = NULL;
            continue;
        }
        c->library_w[i] = b->library_w[dtype];
        c->library_copies[i] =
            (int64_t)kernel_cold_bytes() / (c->n * c->k * (int64_t)dsi_dtype_bytes(dtype));
        c->library_x[i] =
            dtype == b->data.x_dtype ? b->data.x : kernel_numbers(&b->room, dtype, c->m * c->k, 1);
        if (!c->library_x[i]) return false;
    }
    return true;
}

void kernel_drop_cases(kernel_bench *b) {
    for (uint32_t i = 0; i < b->n_cases; i++)
        for (int j = 0; j < KERNEL_LIBRARIES; j++) dsi_gemm_free(b->cases[i].gemm[j]);
    b->n_cases = 0;
}

static uint32_t peak_of(const dsi_kernel_line *line, dsi_dtype x) {
    if (line->isa == DSI_ISA_REF) return PEAK_NONE;
    if (x == DSI_DTYPE_I8) return PEAK_INT8;
    if (line->isa == DSI_ISA_AVX2) return PEAK_AVX2;
    return line->isa == DSI_ISA_AVX512 || x == DSI_DTYPE_F32 ? PEAK_F32 : PEAK_BF16;
}

static bool is_best(const dsi_kernel_line *line) {
    uint32_t n, isa = dsi_isa_detect();
    const dsi_kernel_line *l = dsi_kernel_lines(&n);
    for (uint32_t i = 0; i < n; i++)
        if (strcmp(l[i].stem, line->stem) == 0 && l[i].isa & (isa | DSI_ISA_REF))
            return l[i].symbol == line->symbol;
    return false;
}

/* How the weights of a case are scaled; names NULL: the format has one way. */
typedef struct scaling {
    const char *name;
    int64_t group_n, group_k; /* 0: none; ROW: the whole row */
} scaling;
enum { ROW = 1 << 20 };

static const scaling *scalings_of(dsi_dtype dtype, int *n) {
    static const scaling none[] = {{NULL, 0, 0}}, fp8[] = {{NULL, DSI_BLOCK, DSI_BLOCK}};
    static const scaling i8[] = {{"by row", 1, ROW}, {"by block", DSI_BLOCK, DSI_BLOCK}};
    static const scaling i4[] = {{"by 128", 1, 128}, {"by 32", 1, 32}};
    *n = dtype == DSI_DTYPE_I8 || dtype == DSI_DTYPE_I4 ? 2 : 1;
    return dtype == DSI_DTYPE_I8     ? i8
           : dtype == DSI_DTYPE_I4   ? i4
           : dtype == DSI_DTYPE_E4M3 ? fp8
                                     : none;
}

/* Fills what all calls of a case share; `x` rows of k values. */
static bool set_args(kernel_bench *b, kernel_case *c, const scaling *by) {
    kernel_data *d = &b->data;
    int64_t group_k = by->group_k < c->k ? by->group_k : c->k;
    dsi_dtype dtype = d->w_dtype == DSI_DTYPE_E4M3 ? DSI_DTYPE_F32 : DSI_DTYPE_BF16;
    c->args = (dsi_matmul_args){.x = d->x,
                                .x_stride = c->k,
                                .w_stride = c->k,
                                .scale = d->scale,
                                .scale_dtype = dtype,
                                .group_n = by->group_n,
                                .group_k = by->group_k < c->k ? by->group_k : c->k,
                                .k = c->k};
    c->x_row_bytes = bytes_of(d->x_dtype, c->k);
    if (by->group_n) {
        int64_t rows = (c->n + by->group_n - 1) / by->group_n;
        c->args.scale_stride = (c->k + group_k - 1) / group_k;
        c->scale_bytes = rows * c->args.scale_stride * dsi_dtype_bytes(dtype);
        c->args.scale =
            kernel_numbers(&b->room, dtype, rows * c->args.scale_stride * d->copies, 0.01);
    }
    if (!d->a8) return c->args.scale != NULL;
    /* the records hold a multiplier per 128 columns, or one for the row if the weights do */
    dsi_kernels kernels;
    dsi_kernels_select(dsi_isa_detect(), &kernels);
    int64_t bytes = dsi_a8_bytes(c->k);
    uint8_t *records = kernel_numbers(&b->room, DSI_DTYPE_I8, c->m * bytes, 0);
    const float *row = kernel_numbers(&b->room, DSI_DTYPE_F32, c->k, 1);
    c->args.x_group = by->group_k < c->k ? DSI_BLOCK : c->k;
    for (int64_t i = 0; records && row && i < c->m; i++)
        kernels.quantize_a8_f32(row, records + i * bytes, c->k, c->args.x_group);
    c->args.x = records;
    c->args.x_stride = c->x_row_bytes = bytes;
    return records && row && c->args.scale;
}

/* Weights of `n` values a matrix, and each thread's own room for rows of up to k. */
static bool set_data(kernel_bench *b, int64_t n, int64_t k, int64_t x_values) {
    kernel_data *d = &b->data;
    d->copy_bytes = bytes_of(d->w_dtype, n);
    d->copies = (int64_t)kernel_cold_bytes() / d->copy_bytes + 1;
    d->w = kernel_numbers(&b->room, d->w_dtype, d->copies * n, 0.1);
    d->x = kernel_numbers(&b->room, d->x_dtype, x_values, 1);
    d->scale = d->x; /* not read where there are none */
    int64_t columns = HIDDEN / b->n_threads + 1,
            y = (int64_t)bench_largest(&b->options->m) * columns;
    int64_t own = OWN_RESULTS + dsi_matmul_scratch_bytes(k) + LIBRARY_SCRATCH + y * 4 + 4096;
    for (uint32_t t = 0; t < b->n_threads; t++) {
        d->own[t] = kernel_numbers(&b->room, DSI_DTYPE_F32, own / 4, 0);
        if (!d->own[t]) return false;
    }
    return d->w && d->x;
}

static bool add_product(kernel_bench *b, const dsi_kernel_line *line, const scaling *by, int64_t m,
                        int64_t n, int64_t k) {
    kernel_case *c = kernel_new_case(b, line, "%lld x %lld x %lld%s%s", (long long)m, (long long)n,
                                     (long long)k, by->name ? " " : "", by->name ? by->name : "");
    if (!c) return true;
    c->m = m, c->n = n, c->k = k;
    c->turn = turn_matmul;
    c->peak = peak_of(line, b->data.x_dtype);
    if (!set_args(b, c, by)) return false;
    c->bytes = (double)(b->data.copy_bytes + c->scale_bytes);
    c->operations = 2.0 * (double)(m * n * k);
    return !is_best(line) || add_libraries(b, c);
}

static bool product_cases(kernel_bench *b, const dsi_kernel_line *line) {
    static const int64_t shapes[][2] = {{EXPERT, HIDDEN}, {HIDDEN, EXPERT}};
    const bench_list *m = &b->options->m;
    bool is_ref = line->isa == DSI_ISA_REF;
    const char *weights = line->stem + strlen("matmul_"), *x = strchr(weights, '_') + 1;
    kernel_data *d = &b->data;
    int n_ways;
    d->w_dtype = named(weights);
    d->x_dtype = named(x);
    d->a8 = strcmp(x, "a8") == 0;
    const scaling *ways = scalings_of(d->w_dtype, &n_ways);
    if (!set_data(b, EXPERT * HIDDEN, HIDDEN, (int64_t)bench_largest(m) * HIDDEN)) return false;
    for (int s = 0; s < (is_ref ? 1 : 2); s++)
        for (int way = 0; way < n_ways; way++)
            for (uint32_t i = 0; i < (is_ref ? 1 : m->n); i++)
                if (!add_product(b, line, &ways[way], is_ref ? 1 : m->values[i], shapes[s][0],
                                 shapes[s][1]))
                    return false;
    return true;
}

static bool product_t_cases(kernel_bench *b, const dsi_kernel_line *line) {
    static const int64_t rows[] = {1, 8, 64};
    kernel_data *d = &b->data;
    int n_ways;
    d->w_dtype = named(line->stem + strlen("matmul_t_"));
    d->x_dtype = DSI_DTYPE_F32;
    const scaling *way = scalings_of(d->w_dtype, &n_ways);
    if (!set_data(b, HEADS * NOPE * RANK, RANK, 64 * NOPE)) return false;
    for (int i = 0; i < (line->isa == DSI_ISA_REF ? 1 : 3); i++) {
        kernel_case *c = kernel_new_case(b, line, "%lld x %d heads of %d x %d", (long long)rows[i],
                                         HEADS, RANK, NOPE);
        c->m = rows[i], c->n = HEADS * NOPE, c->k = RANK;
        c->turn = turn_matmul_t;
        c->peak = peak_of(line, DSI_DTYPE_F32);
        if (!set_args(b, c, way)) return false;
        c->bytes = (double)(d->copy_bytes + c->scale_bytes);
        c->operations = 2.0 * (double)(rows[i] * HEADS * NOPE * RANK);
    }
    return true;
}

bool kernel_cases(kernel_bench *b, const dsi_kernel_line *line) {
    memset(&b->data, 0, sizeof b->data);
    if (line->type == DSI_KERNEL_matmul) return product_cases(b, line);
    if (line->type == DSI_KERNEL_matmul_t) return product_t_cases(b, line);
    if (line->type == DSI_KERNEL_attend) return kernel_attend_cases(b, line);
    if (line->type == DSI_KERNEL_index) return kernel_index_cases(b, line);
    return kernel_row_cases(b, line);
}

/* ---- Against the reference ------------------------------------------------------------------- */

/* Three rows and the last 16 columns of each shape. The bound is loose (every term as large as the
 * largest); the strict one is that of the self-test. */
bool kernel_check_shapes(kernel_bench *b, const dsi_kernel_line *line, char *why, size_t n_bytes) {
    enum { ROWS = 3, COLUMNS = 16 };
    float truth[ROWS * COLUMNS], one[COLUMNS];
    for (uint32_t i = 0; line->type == DSI_KERNEL_matmul && i < b->n_cases; i++) {
        const kernel_case *c = &b->cases[i];
        if (i + 1 < b->n_cases && c->m < ROWS && c[1].m > c->m) continue; /* one with more rows */
        dsi_matmul_args a = product_args(c, 0, b->data.own[0]);
        float *y = a.y;
        a.n0 = c->n - COLUMNS, a.n1 = c->n, a.y_stride = COLUMNS;
        a.m = c->m < ROWS ? c->m : ROWS;
        ((dsi_matmul_fn)line->fn)(&a);
        dsi_matmul_args r = a;
        r.y = truth;
        ((dsi_matmul_fn)line->ref)(&r);
        r = a;
        r.y = one, r.m = 1;
        ((dsi_matmul_fn)line->fn)(&r);
        double largest = b->data.w_dtype == DSI_DTYPE_I8     ? 13 * 0.01
                         : b->data.w_dtype == DSI_DTYPE_I4   ? 8 * 0.01
                         : b->data.w_dtype == DSI_DTYPE_E4M3 ? 0.1 * 0.01
                                                             : 0.1;
        double bound = line->tolerance * (double)c->k * largest;
        for (int64_t j = 0; j < a.m * COLUMNS; j++) {
            if (fabs((double)y[j] - (double)truth[j]) <= bound && (j >= COLUMNS || y[j] == one[j]))
                continue;
            snprintf(why, n_bytes, "%s: row %d column %d is %.9g, should be %.9g", c->shape,
                     (int)(j / COLUMNS), (int)(j % COLUMNS), (double)y[j], (double)truth[j]);
            return false;
        }
    }
    return true;
}
