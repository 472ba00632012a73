/* cpu_low_rank.c: what adapters add to products. First A x of all rows that have an adapter, into t
 * (low_rank_down); then B t, either to the result of a product (low_rank_up), or inside an operator
 * to its tile, before that is rounded or goes through SiLU (dsi_cpu_low_rank_add). */
#include "cpu_low_rank.h"
#include "cpu_tasks.h"

enum {
    MAX_PRODUCTS = 4,
    ROWS = 16,   /* of one call of a kernel */
    TILE = 1024, /* floats of its results, on the stack */
    UNIT = 64,   /* columns that are dealt to threads together */
    RANKS = 16,  /* the same of A */
    DOWN_ROWS = 32
};

/* y[i] = w[n0, n1) x[i] by the device's own kernel: nothing here is worth a library. */
static void product(const dsi_dev *dev, const dsi_tensor *w, dsi_dtype x_dtype,
                    dsi_matmul_args *a) {
    a->w = dsi_cpu_data(w);
    a->w_stride = w->stride[1];
    a->w_dtype = w->dtype;
    a->k = w->ne[0];
    dsi_cpu_matmul_kernel(&dev->kernels, w->dtype, x_dtype)(a);
}
/* y[i] = sum of x[i][j] w[j][n0, n1) of m rows. The sum is as short as the rank, so a kernel runs
 * along the columns. */
static void product_t(const dsi_dev *dev, const dsi_tensor *w, const float *x, int64_t x_stride,
                      int64_t m, int64_t n0, int64_t n1, float *y) {
    dsi_matmul_t_args a = {.x = x, .x_stride = x_stride, .y = y, .y_stride = n1 - n0, .m = m};
    dsi_matmul_t_fn matmul_t = dsi_cpu_matmul_t(dev, w, &a);
    a.w = dsi_cpu_at(w, 0, n0);
    a.n1 = w->ne[1];
    a.k = n1 - n0;
    matmul_t(&a);
}
/* Where results are added: row j of a product to row j of y, or to row rows[j] - first. */
typedef struct added_rows {
    float *y;
    int64_t stride;
    const int32_t *rows; /* or NULL */
    int64_t first;
} added_rows;

/* y [m][n1 - n0] += scale * t w[.][n0, n1), m at most ROWS. */
static void add_product_t(const dsi_dev *dev, const dsi_tensor *w, float scale, const float *t,
                          int64_t t_stride, int64_t m, int64_t n0, int64_t n1,
                          const added_rows *to) {
    float tile[TILE];
    const int64_t columns = TILE / m / UNIT * UNIT;
    for (int64_t n = n0; n < n1; n += columns) {
        const int64_t width = dsi_min_i64(columns, n1 - n);
        product_t(dev, w, t, t_stride, m, n, n + width, tile);
        for (int64_t j = 0; j < m; j++) {
            const int64_t row = to->rows ? to->rows[j] - to->first : j;
            dsi_cpu_add_scaled(to->y + row * to->stride + (n - n0), tile + j * width, scale, width);
        }
    }
}

static bool matrix_ok(const dsi_tensor *w) {
    return w->n_dims == 2 && w->stride[0] == 1 && w->scale_kind == DSI_SCALE_NONE &&
           (w->dtype == DSI_DTYPE_F32 || w->dtype == DSI_DTYPE_BF16 || w->dtype == DSI_DTYPE_F16);
}
bool dsi_cpu_low_rank_ok(const dsi_low_rank *l, int64_t n, int64_t k) {
    for (uint32_t i = 0; l && i < l->n_parts; i++) {
        const dsi_tensor *a = l->parts[i].a, *b = l->parts[i].b_t;
        if (!a && !b) continue;
        if (!a || !b || !matrix_ok(a) || !matrix_ok(b) || a->ne[0] != k || b->ne[0] != n ||
            a->ne[1] != b->ne[1] || a->ne[1] > l->max_rank)
            return false;
    }
    return true;
}

/* ---- Rows of t -------------------------------------------------------------------------------
 */

/* The first slot of a part whose row is `row` or behind it. */
static int64_t slot_from(const dsi_low_rank *l, const dsi_low_rank_part *p, int64_t row) {
    int64_t low = p->first, high = low + p->n_rows;
    while (low < high) {
        int64_t middle = (low + high) / 2;
        if (l->rows[middle] < row)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

void dsi_cpu_low_rank_add(const dsi_dev *dev, const dsi_low_rank *l, int64_t r0, int64_t m,
                          int64_t n0, int64_t n1, float *y, int64_t y_stride) {
    for (uint32_t i = 0; l && i < l->n_parts; i++) {
        const dsi_low_rank_part *p = &l->parts[i];
        if (!p->b_t) continue;
        const int64_t end = slot_from(l, p, r0 + m);
        for (int64_t s = slot_from(l, p, r0); s < end; s += ROWS) {
            const added_rows to = {y, y_stride, l->rows + s, r0};
            add_product_t(dev, p->b_t, p->scale, dsi_cpu_at(l->t, s, 0), l->t->stride[1],
                          dsi_min_i64(ROWS, end - s), n0, n1, &to);
        }
    }
}

/* ---- low_rank_down: t = A x -------------------------------------------------------------------
 */

dsi_status dsi_cpu_low_rank_down_check(dsi_dev *dev, const dsi_op *op, uint64_t *workspace) {
    const dsi_attr_low_rank *attr = op->attr;
    const dsi_tensor *x = op->in[0];
    bool ok = attr && attr->n >= 1 && attr->n <= MAX_PRODUCTS && op->n_in == 1 &&
              op->n_out == attr->n && dsi_cpu_is_act(x->dtype);
    for (uint32_t i = 0; ok && i < attr->n; i++)
        ok = op->out[i]->dtype == DSI_DTYPE_F32 && op->out[i]->ne[0] >= attr->products[i].max_rank;
    for (uint32_t i = 0; ok && i < attr->n; i++) {
        const dsi_low_rank *l = &attr->products[i];
        for (uint32_t p = 0; ok && p < l->n_parts; p++)
            ok = !l->parts[p].a ||
                 dsi_cpu_low_rank_ok(l, l->parts[p].b_t ? l->parts[p].b_t->ne[0] : 0, x->ne[0]);
    }
    *workspace = (uint64_t)dsi_matmul_scratch_bytes(x->ne[0]) * dev->n_threads;
    return dsi_cpu_require(dev, op, ok, "types or shapes of x, A, t do not fit");
}

/* Some rows and ranks of one part. */
static void down_unit(const dsi_cpu_run *run, const dsi_low_rank *l, const dsi_low_rank_part *p,
                      const dsi_tensor *t, int64_t s, int64_t n, void *scratch) {
    const dsi_tensor *x = run->op->in[0];
    dsi_matmul_args a = {.x = dsi_cpu_data(x),
                         .x_stride = x->stride[1],
                         .x_rows = l->rows + p->first + s,
                         .y = dsi_cpu_at(t, p->first + s, n),
                         .y_stride = t->stride[1],
                         .m = dsi_min_i64(DOWN_ROWS, p->n_rows - s),
                         .n0 = n,
                         .n1 = dsi_min_i64(n + RANKS, p->a->ne[1]),
                         .scratch = scratch};
    product(run->dev, p->a, x->dtype, &a);
}
static void down(void *context, uint32_t thread, uint32_t n_threads) {
    const dsi_cpu_run *run = context;
    const dsi_attr_low_rank *attr = run->op->attr;
    uint32_t unit = 0;
    void *scratch =
        run->workspace + (uint64_t)dsi_matmul_scratch_bytes(run->op->in[0]->ne[0]) * thread;
    for (uint32_t i = 0; i < attr->n; i++)
        for (uint32_t j = 0; j < attr->products[i].n_parts; j++) {
            const dsi_low_rank_part *p = &attr->products[i].parts[j];
            for (int64_t s = 0; p->a && s < p->n_rows; s += DOWN_ROWS)
                for (int64_t n = 0; n < p->a->ne[1]; n += RANKS)
                    if (unit++ % n_threads == thread)
                        down_unit(run, &attr->products[i], p, run->op->out[i], s, n, scratch);
        }
}

/* Multiply-adds: of all parts, their ranks times the columns of the other side. */
static int64_t work_of(const dsi_attr_low_rank *attr, bool up) {
    int64_t work = 0;
    for (uint32_t i = 0; i < attr->n; i++)
        for (uint32_t j = 0; j < attr->products[i].n_parts; j++) {
            const dsi_low_rank_part *p = &attr->products[i].parts[j];
            if (p->a) work += p->n_rows * p->a->ne[1] * (up ? p->b_t->ne[0] : p->a->ne[0]);
        }
    return work;
}
void dsi_cpu_low_rank_down_run(const dsi_cpu_run *run) {
    dsi_cpu_parallel(run->dev, down, run, work_of(run->op->attr, false));
}

/* ---- low_rank_up: y += scale * B t ------------------------------------------------------------
 */

dsi_status dsi_cpu_low_rank_up_check(dsi_dev *dev, const dsi_op *op, uint64_t *workspace) {
    (void)workspace;
    const dsi_attr_low_rank *attr = op->attr;
    bool ok = attr && attr->n >= 1 && attr->n <= MAX_PRODUCTS && op->n_in == attr->n &&
              op->n_out == attr->n;
    for (uint32_t i = 0; ok && i < attr->n; i++) {
        const dsi_low_rank *l = &attr->products[i];
        const dsi_tensor *y = op->out[i];
        ok = y->dtype == DSI_DTYPE_F32 && op->in[i]->dtype == DSI_DTYPE_F32;
        for (uint32_t p = 0; ok && p < l->n_parts; p++)
            ok = !l->parts[p].a || dsi_cpu_low_rank_ok(l, y->ne[0], l->parts[p].a->ne[0]);
    }
    return dsi_cpu_require(dev, op, ok, "types or shapes of t, B, y do not fit");
}
static void up(void *context, uint32_t thread, uint32_t n_threads) {
    const dsi_cpu_run *run = context;
    const dsi_attr_low_rank *attr = run->op->attr;
    for (uint32_t i = 0; i < attr->n; i++) {
        const dsi_low_rank *l = &attr->products[i];
        const dsi_tensor *y = run->op->out[i];
        uint64_t u0, u1;
        dsi_pool_share((uint64_t)dsi_ceil_div(y->ne[0], UNIT), 1, thread, n_threads, &u0, &u1);
        int64_t n0 = (int64_t)u0 * UNIT, n1 = dsi_min_i64((int64_t)u1 * UNIT, y->ne[0]);
        dsi_cpu_low_rank_add(run->dev, l, 0, dsi_cpu_rows(y), n0, n1, dsi_cpu_at(y, 0, n0),
                             y->stride[1]);
    }
}
void dsi_cpu_low_rank_up_run(const dsi_cpu_run *run) {
    dsi_cpu_parallel(run->dev, up, run, work_of(run->op->attr, true));
}

/* ---- Rows that were not multiplied by A before -------------------------------------------------
 */

const dsi_low_rank_part *dsi_cpu_low_rank_part(const dsi_low_rank *l, int64_t r, int64_t limit,
                                               int64_t *end) {
    int32_t part = l->part_of[r];
    for (*end = r + 1; *end < limit && l->part_of[*end] == part;) ++*end;
    return part >= 0 && l->parts[part].a ? &l->parts[part] : NULL;
}

int64_t dsi_cpu_low_rank_room(const dsi_low_rank *l, int64_t k) {
    if (!l) return 0;
    return dsi_cpu_round_up(ROWS * 4 * (int64_t)l->max_rank, 64) + dsi_matmul_scratch_bytes(k);
}

/* What lies in a room: t of some rows, the scratch of a kernel. */
typedef struct room_parts {
    float *t;
    void *scratch;
} room_parts;
static room_parts parts_of(const dsi_low_rank *l, uint8_t *room) {
    dsi_cpu_arena arena = {room, 0};
    room_parts r;
    r.t = dsi_cpu_take(&arena, ROWS * 4 * (int64_t)l->max_rank);
    r.scratch = room + arena.used;
    return r;
}

void dsi_cpu_low_rank_apply(const dsi_dev *dev, const dsi_low_rank *l,
                            const dsi_low_rank_part *part, const dsi_cpu_low_rank_rows *rows,
                            uint8_t *room) {
    const room_parts own = parts_of(l, room);
    const int64_t rank = part->a->ne[1], x_bytes = rows->x_stride * dsi_dtype_bytes(rows->x_dtype);
    const uint8_t *x = rows->x;
    for (int64_t i = 0; i < rows->m; i += ROWS) {
        dsi_matmul_args a = {.x = x + (rows->x_rows ? 0 : i * x_bytes),
                             .x_stride = rows->x_stride,
                             .x_rows = rows->x_rows ? rows->x_rows + i : NULL,
                             .y = own.t,
                             .y_stride = rank,
                             .m = dsi_min_i64(ROWS, rows->m - i),
                             .n1 = rank,
                             .scratch = own.scratch};
        product(dev, part->a, rows->x_dtype, &a);
        const added_rows to = {rows->y + i * rows->y_stride, rows->y_stride, NULL, 0};
        add_product_t(dev, part->b_t, part->scale, own.t, rank, a.m, rows->n0, rows->n1, &to);
    }
}

void dsi_cpu_low_rank_apply_t(const dsi_dev *dev, const dsi_low_rank *l,
                              const dsi_low_rank_part *part, const dsi_cpu_low_rank_rows *rows,
                              uint8_t *room) {
    const int64_t rank = part->a->ne[1];
    const room_parts own = parts_of(l, room);
    const float *x = rows->x;
    for (int64_t i = 0; i < rows->m; i += ROWS) {
        dsi_matmul_args b = {.x = x + i * rows->x_stride,
                             .x_stride = rows->x_stride,
                             .w = dsi_cpu_at(part->b_t, 0, rows->n0),
                             .w_stride = part->b_t->stride[1],
                             .y = own.t,
                             .y_stride = rank,
                             .m = dsi_min_i64(ROWS, rows->m - i),
                             .n1 = rank,
                             .k = rows->n1 - rows->n0,
                             .scratch = own.scratch,
                             .w_dtype = part->b_t->dtype};
        dsi_cpu_matmul_kernel(&dev->kernels, part->b_t->dtype, DSI_DTYPE_F32)(&b);
        const added_rows to = {rows->y + i * rows->y_stride, rows->y_stride, NULL, 0};
        add_product_t(dev, part->a, part->scale, own.t, rank, b.m, 0, part->a->ne[0], &to);
    }
}
