/* cpu_gemm.c: products by a library, in the place of a kernel. Its own threads are ours: each calls
 * it for some columns, with a panel of weights in the kernel's scratch when the library cannot read
 * them as they lie, and rows gathered once per op and thread. How many rows it takes for the
 * library to win is measured at load, for each kind of product. */
#include "cpu_gemm.h"
#include "../../kernels/formats.h"
#include "../base/sys.h"
#include "gemm.h"
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

enum { LEVEL_WARN = 1 }; /* DSI_LOG_WARN of dsinfer.h, which back-ends do not include */
enum {
    STEP = 16, /* numbers of rows for which a product is made */
    MOST_ROWS =
        256, /* of one product; a call of more rows is several, with the weights decoded once */
    STEPS = MOST_ROWS / STEP,
    KINDS = 32,
    NARROW = 16,             /* columns of a small task: for a library that was asked for by name */
    SCRATCH_BYTES = 1 << 18, /* of the library, in one call */
    REPEAT = 3,
    PANELS = 24 /* of weights in a trial, in turn: as in a step, none of them is in a near cache */
};

/* Weights of one format and length, multiplied by a library from min_rows rows on. */
typedef struct kind {
    dsi_dtype w_dtype, x_dtype;
    bool by_row; /* one scale for a whole row of weights */
    int64_t k;
    dsi_matmul_fn own;
    struct dsi_cpu_gemm *all;
    dsi_gemm_library *library;
    dsi_dtype operand;         /* what the library multiplies */
    int64_t columns;           /* at a time */
    int64_t min_rows;          /* INT64_MAX: never */
    double gain;               /* how many times as fast, at MOST_ROWS */
    dsi_gemm *gemms[2][STEPS]; /* of `columns` columns, and of NARROW */
} kind;

/* What one call at a time uses. */
typedef struct slot {
    _Alignas(64) atomic_bool taken;
    uint64_t op; /* whose rows are gathered */
    const void *x;
    const int32_t *x_rows;
    int64_t m, k;
} slot;

typedef struct dsi_cpu_gemm {
    dsi_gemm_library *libraries[2];
    bool measure;  /* else the library whenever it can */
    char why[160]; /* no library is used */
    kind kinds[KINDS];
    uint32_t n_kinds;
    slot *slots; /* [n_slots] */
    uint32_t n_slots;
    uint8_t *area; /* of the op that runs: n_slots times slot_bytes */
    uint64_t slot_bytes, op;
    atomic_bool refused; /* the library failed in a step: said once */
    const dsi_log *log;
    const dsi_kernels *kernels;
} dsi_cpu_gemm;

static _Thread_local uint32_t last_slot; /* where a thread finds its rows again */

/* ---- A call in place of a kernel ---------------------------------------------------------------
 */

static slot *claim(dsi_cpu_gemm *g, uint8_t **area) {
    for (uint32_t i = 0; i < g->n_slots; i++) {
        uint32_t at = (last_slot + i) % g->n_slots;
        if (atomic_exchange_explicit(&g->slots[at].taken, true, memory_order_acquire)) continue;
        last_slot = at;
        *area = g->area + g->slot_bytes * at;
        return &g->slots[at];
    }
    return NULL;
}

/* Bytes between two rows that the library reads, and of those what a row holds. */
static int64_t row_stride(const kind *p) {
    return p->operand == DSI_DTYPE_I8 ? dsi_a8_bytes(p->k)
                                      : p->k * (int64_t)dsi_dtype_bytes(p->operand);
}

static int64_t x_row_bytes(const kind *p, const dsi_matmul_args *a) {
    return p->operand == DSI_DTYPE_I8 ? a->x_stride
                                      : a->x_stride * (int64_t)dsi_dtype_bytes(p->x_dtype);
}

/* The rows of x one after the other, up to a multiple of STEP. */
static const void *gathered(const kind *p, slot *s, const dsi_matmul_args *a, uint8_t *to) {
    int64_t stride = row_stride(p), size = dsi_dtype_bytes(p->x_dtype);
    int64_t x_bytes = x_row_bytes(p, a);
    if (!a->x_rows && a->m % STEP == 0 && p->operand == p->x_dtype && x_bytes == stride)
        return a->x;
    bool same = s->op == p->all->op && s->x == a->x && s->x_rows == a->x_rows && s->m == a->m &&
                s->k == p->k;
    if (same) return to;
    for (int64_t i = 0; i < a->m; i++) {
        const uint8_t *from = (const uint8_t *)a->x + (a->x_rows ? a->x_rows[i] : i) * x_bytes;
        if (p->operand == p->x_dtype)
            memcpy(to + i * stride, from, (size_t)(p->k * size));
        else /* F32 from BF16 */
            for (int64_t j = 0; j < p->k; j++)
                ((float *)(void *)(to + i * stride))[j] = dsi_bf16_to_f32(dsi_load_u16(from, j));
    }
    int64_t padded = dsi_cpu_round_up(a->m, STEP);
    memset(to + a->m * stride, 0, (size_t)((padded - a->m) * stride));
    s->op = p->all->op, s->x = a->x, s->x_rows = a->x_rows, s->m = a->m, s->k = p->k;
    return to;
}

/* Weight row n as the library takes it; `to` has room for a row. */
static void decode_row(const kind *p, const dsi_matmul_args *a, int64_t n, uint8_t *to) {
    int64_t k = p->k;
    uint16_t *bf16 = (uint16_t *)(void *)(to + (p->operand == DSI_DTYPE_F32 ? 2 * k : 0));
    if (p->w_dtype == DSI_DTYPE_E4M3)
        p->all->kernels->decode_fp8(a->w + n * a->w_stride,
                                    (const float *)a->scale + n / DSI_BLOCK * a->scale_stride, bf16,
                                    k);
    else
        memcpy(bf16, a->w + n * a->w_stride * 2, (size_t)k * 2);
    if (p->operand != DSI_DTYPE_F32) return;
    /* the narrow values lie in the second half of the row and are widened from its start */
    for (int64_t i = 0; i < k; i++) {
        float value = dsi_bf16_to_f32(dsi_load_u16(to, k + i));
        memcpy(to + 4 * i, &value, 4);
    }
}

static const void *weights(const kind *p, const dsi_matmul_args *a, int64_t n0, int64_t columns) {
    int64_t size = dsi_dtype_bytes(p->w_dtype);
    const uint8_t *w = a->w + n0 * a->w_stride * size;
    if (p->operand == p->w_dtype && a->w_stride == p->k && (uintptr_t)w % (uintptr_t)size == 0)
        return w;
    uint8_t *panel = a->scratch;
    int64_t row = p->k * (int64_t)dsi_dtype_bytes(p->operand);
    if (p->operand == DSI_DTYPE_I8)
        for (int64_t i = 0; i < columns; i++)
            memcpy(panel + i * row, w + i * a->w_stride, (size_t)row);
    else
        for (int64_t i = 0; i < columns; i++) decode_row(p, a, n0 + i, panel + i * row);
    return panel;
}

/* The tile of results to where they belong; of integers, times their multipliers. */
static void hand_out(const kind *p, const dsi_matmul_args *a, int64_t n0, int64_t columns,
                     const void *tile) {
    for (int64_t i = 0; i < a->m; i++) {
        float *y = a->y + i * a->y_stride + n0 - a->n0;
        const uint8_t *from = (const uint8_t *)tile + i * columns * 4;
        if (p->operand != DSI_DTYPE_I8) {
            memcpy(y, from, (size_t)columns * 4);
            continue;
        }
        const uint8_t *record =
            (const uint8_t *)a->x + (a->x_rows ? a->x_rows[i] : i) * a->x_stride;
        float multiplier = dsi_a8_multipliers(record, p->k)[0];
        for (int64_t j = 0; j < columns; j++) {
            int32_t sum;
            memcpy(&sum, from + 4 * j, 4);
            y[j] = (float)sum * multiplier *
                   dsi_load_scale(a->scale_dtype, a->scale, (n0 + j) * a->scale_stride);
        }
    }
}

static void refused(dsi_cpu_gemm *g, const kind *p) {
    if (atomic_exchange(&g->refused, true)) return;
    dsi_logf(g->log, LEVEL_WARN, "cpu",
             "%s refused a product of %lld columns; the own kernels go on",
             dsi_gemm_name(p->library), (long long)p->k);
}

static uint64_t slot_bytes(const kind *p) {
    return SCRATCH_BYTES + MOST_ROWS * 64 * 4 +
           (uint64_t)dsi_cpu_round_up(MOST_ROWS * row_stride(p), 64);
}

/* Columns [n0, n0 + columns) for all rows. false: the library refused; y may hold anything there.
 */
static bool multiply(const kind *p, slot *s, const dsi_matmul_args *a, int64_t n0, bool whole,
                     uint8_t *area) {
    const int64_t columns = whole ? p->columns : NARROW;
    uint8_t *tile = area + SCRATCH_BYTES, *rows = tile + MOST_ROWS * 64 * 4;
    const void *w = weights(p, a, n0, columns);
    bool ok = true;
    for (int64_t r = 0; ok && r < a->m; r += MOST_ROWS) {
        dsi_matmul_args part = *a;
        part.m = dsi_min_i64(MOST_ROWS, a->m - r);
        part.y += r * a->y_stride;
        if (a->x_rows)
            part.x_rows += r;
        else
            part.x = (const uint8_t *)a->x + r * x_row_bytes(p, a);
        /* rows that make the number whole would be written too */
        bool direct = p->operand != DSI_DTYPE_I8 && a->y_stride == columns && part.m % STEP == 0;
        void *y = direct ? (void *)(part.y + (n0 - a->n0)) : tile;
        const dsi_gemm *gemm = p->gemms[whole ? 0 : 1][(part.m + STEP - 1) / STEP - 1];
        ok = dsi_gemm_run(gemm, gathered(p, s, &part, rows), w, y, area);
        if (ok && !direct) hand_out(p, &part, n0, columns, tile);
    }
    return ok;
}

static void library_matmul(const dsi_matmul_args *a) {
    const kind *p = a->library;
    int64_t n0 = a->n0;
    int64_t least = p->all->measure ? p->columns : NARROW; /* what was measured, or what is there */
    uint8_t *area;
    /* ops that were not planned for it have no room */
    bool fits = a->m >= p->min_rows && p->all->slot_bytes >= slot_bytes(p);
    slot *s = fits && a->n1 - n0 >= least ? claim(p->all, &area) : NULL;
    if (s) {
        bool ok = true;
        while (ok && n0 + least <= a->n1) {
            bool whole = n0 + p->columns <= a->n1;
            ok = multiply(p, s, a, n0, whole, area);
            if (ok) n0 += whole ? p->columns : NARROW;
        }
        if (!ok) refused(p->all, p);
        atomic_store_explicit(&s->taken, false, memory_order_release);
    }
    if (n0 == a->n1) return;
    dsi_matmul_args rest = *a;
    rest.y += n0 - a->n0;
    rest.n0 = n0;
    p->own(&rest);
}

/* ---- Kinds of products -------------------------------------------------------------------------
 */

static kind *find_kind(const dsi_cpu_gemm *g, const dsi_tensor *w, dsi_dtype x_dtype) {
    bool by_row = w->scale_kind == DSI_SCALE_CHANNEL;
    for (uint32_t i = 0; i < g->n_kinds; i++) {
        const kind *p = &g->kinds[i];
        if (p->w_dtype == w->dtype && p->x_dtype == x_dtype && p->k == w->ne[0] &&
            p->by_row == by_row)
            return (kind *)(uintptr_t)p;
    }
    return NULL;
}

dsi_matmul_fn dsi_cpu_gemm_use(const dsi_dev *dev, const dsi_tensor *w, dsi_dtype x_dtype,
                               dsi_matmul_args *args, dsi_matmul_fn own) {
    const kind *p = find_kind(dev->gemm, w, x_dtype);
    if (!p || p->min_rows == INT64_MAX || p->own != own) return own;
    args->library = p;
    return library_matmul;
}

/* The type in which a library can multiply this kind; NONE: in no type. */
static dsi_dtype operand_of(const kind *p, const dsi_gemm_library *library) {
    if (!library) return DSI_DTYPE_NONE;
    if (p->x_dtype == DSI_DTYPE_I8)
        return p->w_dtype == DSI_DTYPE_I8 && p->by_row && dsi_gemm_takes(library, DSI_DTYPE_I8)
                   ? DSI_DTYPE_I8
                   : DSI_DTYPE_NONE;
    bool narrow = p->w_dtype == DSI_DTYPE_E4M3 || p->w_dtype == DSI_DTYPE_BF16;
    if (p->x_dtype != DSI_DTYPE_BF16 || !narrow) return DSI_DTYPE_NONE;
    if (dsi_gemm_takes(library, DSI_DTYPE_BF16)) return DSI_DTYPE_BF16;
    return dsi_gemm_takes(library, DSI_DTYPE_F32) ? DSI_DTYPE_F32 : DSI_DTYPE_NONE;
}

static void free_products(kind *p) {
    for (int i = 0; i < 2 * STEPS; i++) {
        dsi_gemm_free(p->gemms[i / STEPS][i % STEPS]);
        p->gemms[i / STEPS][i % STEPS] = NULL;
    }
}

static bool make_products(dsi_cpu_gemm *g, kind *p) {
    dsi_error error;
    int64_t size = dsi_dtype_bytes(p->operand);
    for (int i = 0; i < 2 * STEPS; i++) {
        int64_t columns = i < STEPS ? p->columns : NARROW;
        dsi_gemm **gemm = &p->gemms[i / STEPS][i % STEPS];
        dsi_gemm_shape shape = {.dtype = p->operand,
                                .m = (i % STEPS + 1) * STEP,
                                .n = columns,
                                .k = p->k,
                                .x_stride = row_stride(p) / size,
                                .w_stride = p->k,
                                .y_stride = columns};
        dsi_status st = dsi_gemm_new(p->library, &shape, gemm, &error);
        if (st == DSI_OK && dsi_gemm_scratch(*gemm) <= SCRATCH_BYTES) continue;
        if (st == DSI_OK)
            dsi_fail(&error, DSI_E_UNSUPPORTED, "%s wants %llu bytes for a product",
                     dsi_gemm_name(p->library), (unsigned long long)dsi_gemm_scratch(*gemm));
        dsi_logf(g->log, LEVEL_WARN, "cpu", "%s; the own kernels are used", error.text);
        free_products(p);
        return false;
    }
    return true;
}

/* ---- Measuring ---------------------------------------------------------------------------------
 */

typedef struct trial {
    uint8_t *memory;
    dsi_matmul_args args;
    int64_t panel_bytes, n_calls;
} trial;

/* Plain numbers for PANELS times 64 columns and MOST_ROWS rows, and a slot for the library. */
static bool new_trial(dsi_cpu_gemm *g, const kind *p, trial *t) {
    int64_t x_bytes = p->x_dtype == DSI_DTYPE_I8 ? dsi_a8_bytes(p->k) : p->k * 2;
    t->panel_bytes = 64 * p->k * dsi_dtype_bytes(p->w_dtype);
    int64_t w_bytes = PANELS * t->panel_bytes;
    int64_t scales = 64 * dsi_ceil_div(p->k, DSI_BLOCK) * 4;
    dsi_cpu_arena arena = {NULL, 0};
    for (int pass = 0; pass < 2; pass++) {
        t->args =
            (dsi_matmul_args){.x = dsi_cpu_take(&arena, MOST_ROWS * x_bytes),
                              .x_stride = p->x_dtype == DSI_DTYPE_I8 ? x_bytes : p->k,
                              .x_group = p->by_row ? p->k : DSI_BLOCK,
                              .w = dsi_cpu_take(&arena, w_bytes),
                              .w_stride = p->k,
                              .scale = dsi_cpu_take(&arena, scales),
                              .scale_stride = p->by_row ? 1 : dsi_ceil_div(p->k, DSI_BLOCK),
                              .scale_dtype = DSI_DTYPE_F32,
                              .group_n = p->by_row ? 1 : DSI_BLOCK,
                              .group_k = p->by_row ? p->k : DSI_BLOCK,
                              .y = dsi_cpu_take(&arena, MOST_ROWS * 64 * 4),
                              .y_stride = 64,
                              .n1 = 64,
                              .k = p->k,
                              .library = p,
                              .scratch = dsi_cpu_take(&arena, dsi_matmul_scratch_bytes(p->k))};
        g->area = dsi_cpu_take(&arena, (int64_t)slot_bytes(p) * g->n_slots);
        if (pass == 0) t->memory = arena.base = dsi_sys_alloc_aligned(arena.used);
        if (!t->memory) return false;
        if (pass == 0) arena.used = 0;
    }
    g->slot_bytes = slot_bytes(p);
    memset((uint8_t *)(uintptr_t)t->args.w, 0x31, (size_t)w_bytes); /* a number in every format */
    memset((uint8_t *)(uintptr_t)t->args.x, 0x3d, (size_t)(MOST_ROWS * x_bytes));
    for (int64_t i = 0; i < scales / 4; i++) ((float *)(uintptr_t)t->args.scale)[i] = 0.01f;
    return true;
}

static double best_seconds(dsi_cpu_gemm *g, trial *t, dsi_matmul_fn matmul, int64_t m) {
    dsi_matmul_args a = t->args;
    double best = 0;
    a.m = m;
    for (int i = 0; i < REPEAT; i++) {
        g->op++; /* rows are gathered anew */
        a.w = t->args.w + t->n_calls++ % PANELS * t->panel_bytes;
        double start = dsi_sys_seconds();
        matmul(&a);
        double seconds = dsi_sys_seconds() - start;
        if (i == 0 || seconds < best) best = seconds;
    }
    return best;
}

/* What was measured in this process: a plan and the engine that is opened by it ask for the same.
 */
enum { KNOWN = 64 };
typedef struct measured {
    char library[64];
    dsi_matmul_fn own;
    dsi_dtype w_dtype, x_dtype;
    bool by_row, asked_for; /* by name, so that it is taken whether it is faster or not */
    int64_t k, min_rows;
    double gain;
} measured;
static measured known[KNOWN];
static uint32_t n_known;
static atomic_flag known_taken = ATOMIC_FLAG_INIT; /* who finds it taken does without: no waiting */

static bool is_known(const measured *m, const dsi_cpu_gemm *g, const kind *p) {
    return m->own == p->own && m->w_dtype == p->w_dtype && m->x_dtype == p->x_dtype &&
           m->by_row == p->by_row && m->asked_for == !g->measure && m->k == p->k &&
           strcmp(m->library, dsi_gemm_name(p->library)) == 0;
}
static bool recall(const dsi_cpu_gemm *g, kind *p) {
    bool found = false;
    if (atomic_flag_test_and_set(&known_taken)) return false;
    for (uint32_t i = 0; i < n_known && !found; i++) {
        found = is_known(&known[i], g, p);
        if (found) p->min_rows = known[i].min_rows, p->gain = known[i].gain;
    }
    atomic_flag_clear(&known_taken);
    return found;
}
static void remember(const dsi_cpu_gemm *g, const kind *p) {
    if (atomic_flag_test_and_set(&known_taken)) return;
    if (n_known < KNOWN) {
        measured *m = &known[n_known++];
        *m = (measured){.own = p->own,
                        .w_dtype = p->w_dtype,
                        .x_dtype = p->x_dtype,
                        .by_row = p->by_row,
                        .asked_for = !g->measure,
                        .k = p->k,
                        .min_rows = p->min_rows,
                        .gain = p->gain};
        snprintf(m->library, sizeof m->library, "%s", dsi_gemm_name(p->library));
    }
    atomic_flag_clear(&known_taken);
}

/* min_rows: the fewest rows from which on the library is faster, for all numbers that are tried. */
static bool measure(dsi_cpu_gemm *g, kind *p) {
    static const int64_t rows[] = {MOST_ROWS, 128, 64, 32, 16};
    trial t = {0};
    if (recall(g, p)) return true;
    if (!new_trial(g, p, &t)) return false;
    p->min_rows = 1;
    int64_t from = INT64_MAX;
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        double library = best_seconds(g, &t, library_matmul, rows[i]);
        double own = best_seconds(g, &t, p->own, rows[i]);
        if (i == 0) p->gain = own / library;
        if (g->measure && library > own) break;
        from = rows[i];
    }
    p->min_rows = from;
    remember(g, p);
    dsi_sys_free(t.memory);
    g->area = NULL;
    return true;
}

/* The better of the libraries for one kind. */
static bool choose(dsi_cpu_gemm *g, kind *p) {
    kind best = *p;
    best.min_rows = INT64_MAX;
    for (int i = 0; i < 2; i++) {
        kind trial_kind = *p;
        trial_kind.library = g->libraries[i];
        trial_kind.operand = operand_of(p, g->libraries[i]);
        if (trial_kind.operand == DSI_DTYPE_NONE) continue;
        trial_kind.columns = trial_kind.operand == DSI_DTYPE_F32 ? 32 : 64;
        *p = trial_kind; /* products and trials look at the kind itself */
        if (!make_products(g, p)) continue;
        if (!measure(g, p)) return false;
        bool better =
            p->min_rows != INT64_MAX && (best.min_rows == INT64_MAX || p->gain > best.gain);
        kind other = better ? best : *p;
        if (better) best = *p;
        free_products(&other);
    }
    *p = best;
    return true;
}

static dsi_status plan_weight(dsi_dev *dev, const dsi_tensor *w, dsi_dtype x_dtype) {
    dsi_cpu_gemm *g = dev->gemm;
    if (!w || w->n_dims != 2 || w->ne[0] < 64 || g->n_kinds == KINDS || find_kind(g, w, x_dtype))
        return DSI_OK;
    kind *p = &g->kinds[g->n_kinds];
    *p = (kind){.w_dtype = w->dtype,
                .x_dtype = x_dtype,
                .by_row = w->scale_kind == DSI_SCALE_CHANNEL,
                .k = w->ne[0],
                .own = dsi_cpu_matmul_kernel(&dev->kernels, w->dtype, x_dtype),
                .all = g,
                .min_rows = INT64_MAX};
    if (!p->own) return DSI_OK;
    g->n_kinds++;
    if (choose(g, p)) return DSI_OK;
    return dsi_fail(&dev->error, DSI_E_NOMEM, "cpu: no memory to measure a library");
}

static bool has_experts(const dsi_op *op) {
    return op->kind == DSI_OP_MOE_FFN || op->kind == DSI_OP_MOE_ROUTED;
}

/* The next input from *i on that is a weight, of the routed experts the first alone: all of them
 * have its shape. */
static const dsi_tensor *next_weight(const dsi_op *op, uint32_t *i) {
    for (; *i < op->n_in; ++*i) {
        const dsi_tensor *w = op->in[*i];
        if (has_experts(op) && *i == 6 && op->n_in > 9) *i = op->n_in - 3, w = op->in[*i];
        if (w && w->n_dims == 2 && w->dtype != DSI_DTYPE_I32) return op->in[(*i)++];
    }
    return NULL;
}

static uint64_t op_slot_bytes(const dsi_cpu_gemm *g, const dsi_op *op) {
    uint64_t most = 0;
    uint32_t i = 1;
    for (const dsi_tensor *w; (w = next_weight(op, &i));)
        for (uint32_t j = 0; j < g->n_kinds; j++)
            if (g->kinds[j].k == w->ne[0] && g->kinds[j].min_rows != INT64_MAX &&
                slot_bytes(&g->kinds[j]) > most)
                most = slot_bytes(&g->kinds[j]);
    return most;
}

static bool multiplies(const dsi_op *op) {
    return op->kind == DSI_OP_LINEAR || op->kind == DSI_OP_LINEAR_SWIGLU || has_experts(op);
}

dsi_status dsi_cpu_gemm_plan(dsi_dev *dev, const dsi_op *op, uint64_t *n_bytes) {
    *n_bytes = 0;
    if (!multiplies(op)) return DSI_OK;
    dsi_dtype x = op->in[0]->dtype;
    dsi_status st = DSI_OK;
    uint32_t i = 1;
    for (const dsi_tensor *w; st == DSI_OK && (w = next_weight(op, &i));) {
        bool a8 = dev->a8 && (w->dtype == DSI_DTYPE_I8 || w->dtype == DSI_DTYPE_I4);
        st = plan_weight(dev, w, a8 ? DSI_DTYPE_I8 : x);
    }
    *n_bytes = dsi_cpu_gemm_workspace(dev, op);
    return st;
}

uint64_t dsi_cpu_gemm_workspace(const dsi_dev *dev, const dsi_op *op) {
    return multiplies(op) ? op_slot_bytes(dev->gemm, op) * dev->gemm->n_slots : 0;
}

void dsi_cpu_gemm_begin(dsi_dev *dev, const dsi_op *op, uint8_t *area) {
    dsi_cpu_gemm *g = dev->gemm;
    g->op++;
    g->area = area;
    g->slot_bytes = multiplies(op) ? op_slot_bytes(g, op) : 0;
}

/* ---- Open and close ----------------------------------------------------------------------------
 */

dsi_status dsi_cpu_gemm_open(dsi_dev *dev, const char *choice, dsi_error *error) {
    static const char *const names[] = {"onednn", "openblas"};
    dsi_cpu_gemm *g = dev->gemm = dsi_sys_calloc(1, sizeof *g);
    if (!g) return dsi_fail(error, DSI_E_NOMEM, "no memory for the fast mode");
    g->measure = strcmp(choice, "auto") == 0;
    g->log = &dev->log;
    g->kernels = &dev->kernels;
    g->n_slots = dev->n_threads;
    g->slots = dsi_sys_alloc_aligned(g->n_slots * sizeof *g->slots);
    if (!g->slots) return dsi_fail(error, DSI_E_NOMEM, "no memory for the fast mode");
    bool any = strcmp(choice, "own") == 0;
    for (uint32_t i = 0; i < 2; i++) {
        dsi_error why;
        if (!g->measure && strcmp(choice, names[i]) != 0) continue;
        dsi_status st = dsi_gemm_open(i + 1, &g->libraries[i], &why);
        if (st == DSI_E_NOMEM) return dsi_fail(error, st, "%s", why.text);
        if (st == DSI_OK) any = true;
        if (st != DSI_OK && !any) snprintf(g->why, sizeof g->why, "%.150s", why.text);
        if (st != DSI_OK && !g->measure)
            dsi_logf(&dev->log, LEVEL_WARN, "cpu", "%s; the own kernels are used", why.text);
    }
    if (any) g->why[0] = 0;
    return DSI_OK;
}

void dsi_cpu_gemm_close(dsi_dev *dev) {
    dsi_cpu_gemm *g = dev->gemm;
    if (!g) return;
    for (uint32_t i = 0; i < g->n_kinds; i++) free_products(&g->kinds[i]);
    for (int i = 0; i < 2; i++) dsi_gemm_close(g->libraries[i]);
    dsi_sys_free(g->slots);
    dsi_sys_free(g);
    dev->gemm = NULL;
}

void dsi_cpu_gemm_describe(const dsi_dev *dev, char *text, size_t n_bytes) {
    const dsi_cpu_gemm *g = dev->gemm;
    const dsi_gemm_library *library = NULL;
    uint32_t used = 0;
    double gain = 0;
    for (uint32_t i = 0; i < g->n_kinds; i++) {
        if (g->kinds[i].min_rows == INT64_MAX) continue;
        used++;
        library = g->kinds[i].library;
        if (g->kinds[i].gain > gain) gain = g->kinds[i].gain;
    }
    if (used)
        snprintf(text, n_bytes,
                 ", fast: %s for %u of %u kinds of product, up to %.2f times as fast",
                 dsi_gemm_name(library), used, g->n_kinds, gain);
    else
        snprintf(text, n_bytes, ", fast: own kernels%s%s", g->why[0] ? "; " : "", g->why);
}
