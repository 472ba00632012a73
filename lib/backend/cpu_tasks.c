/* cpu_tasks.c: how the columns of products are cut into tasks and dealt to threads. A thread begins
 * with a contiguous run of its own, which keeps its weights one stream (and on one NUMA node); who
 * is done first takes over what others have not begun. Results never depend on who computes a task.
 */
#include "cpu_tasks.h"

enum {
    FEW_ROWS = 16,    /* up to so many rows, the bytes of the weights decide; beyond, products */
    COLUMNS_MIN = 16, /* what kernels compute at once */
    TASKS_PER_THREAD = 8,
    PREFETCH_ROWS = 4,    /* weight rows that a kernel reads side by side */
    PREFETCH_BYTES = 8192 /* of each: what arrives while the kernel before ends */
};

/* ---- Dealing ------------------------------------------------------------------------------------
 */

void dsi_cpu_deal(dsi_cpu_share *share, int64_t begin, int64_t end) {
    atomic_store_explicit(&share->next, begin, memory_order_relaxed);
    share->end = end;
}
void dsi_cpu_deal_evenly(dsi_cpu_share *shares, uint32_t n_threads, int64_t n_tasks) {
    for (uint32_t t = 0; t < n_threads; t++) {
        uint64_t begin, end;
        dsi_pool_share((uint64_t)n_tasks, 1, t, n_threads, &begin, &end);
        dsi_cpu_deal(&shares[t], (int64_t)begin, (int64_t)end);
    }
}

bool dsi_cpu_next_task(dsi_cpu_share *shares, uint32_t thread, uint32_t n_threads, int64_t *task) {
    for (int elsewhere = 0; elsewhere < 2; elsewhere++) /* the own memory node first */
        for (uint32_t i = 0; i < n_threads; i++) {
            dsi_cpu_share *share = &shares[(thread + i) % n_threads];
            if ((share->node != shares[thread].node) != elsewhere) continue;
            /* a look first: who has nothing left is not disturbed again and again */
            if (atomic_load_explicit(&share->next, memory_order_relaxed) >= share->end) continue;
            *task = atomic_fetch_add_explicit(&share->next, 1, memory_order_relaxed);
            if (*task < share->end) return true;
        }
    return false;
}

int64_t dsi_cpu_node_rows(const dsi_cpu_share *shares, uint32_t n_threads, int64_t n_rows,
                          uint32_t *thread) {
    uint32_t first = *thread;
    while (*thread < n_threads && shares[*thread].node == shares[first].node) ++*thread;
    if (*thread == n_threads) return n_rows;
    uint64_t begin, end;
    dsi_pool_share((uint64_t)n_rows, 1, *thread, n_threads, &begin, &end);
    return dsi_min_i64(dsi_cpu_round_up((int64_t)begin, COLUMNS_MIN), n_rows);
}

/* ---- Cutting ------------------------------------------------------------------------------------
 */

int64_t dsi_cpu_row_bytes(const dsi_tensor *w) {
    int64_t bytes = 0;
    return dsi_dtype_row_bytes(w->dtype, w->stride[1], &bytes) ? bytes : 0;
}

int64_t dsi_cpu_task_columns(const dsi_tensor *w, int64_t m, int64_t task_bytes,
                             uint32_t n_threads) {
    int64_t n = w->ne[1], columns = DSI_CPU_MANY_ROWS_COLUMNS;
    if (m <= FEW_ROWS)
        columns = dsi_min_i64(task_bytes / dsi_max_i64(dsi_cpu_row_bytes(w), 1),
                              DSI_CPU_FEW_ROWS_COLUMNS);
    /* enough tasks that no thread waits long for the last one */
    columns = dsi_min_i64(columns, n / ((int64_t)n_threads * TASKS_PER_THREAD));
    return dsi_max_i64(columns / COLUMNS_MIN * COLUMNS_MIN, COLUMNS_MIN);
}

int64_t dsi_cpu_tile_floats(int64_t m) {
    return dsi_max_i64(dsi_min_i64(m, FEW_ROWS) * DSI_CPU_FEW_ROWS_COLUMNS,
                       dsi_min_i64(m, DSI_CPU_ROWS_AT_ONCE) * DSI_CPU_MANY_ROWS_COLUMNS);
}

/* ---- Ahead of the kernels -----------------------------------------------------------------------
 */

void dsi_cpu_prefetch(const dsi_tensor *w, int64_t row) {
    const uint8_t *at = dsi_cpu_at(w, row, 0);
    int64_t stride = dsi_cpu_row_bytes(w), n = dsi_min_i64(stride, PREFETCH_BYTES);
    for (int64_t r = 0; r < dsi_min_i64(PREFETCH_ROWS, w->ne[1] - row); r++, at += stride)
        for (int64_t b = 0; b < n; b += 64) __builtin_prefetch(at + b, 0, 2);
}

void dsi_cpu_add_scaled(float *restrict sum, const float *restrict x, float factor, int64_t n) {
    int64_t i = 0;
    for (; i + 16 <= n; i += 16) /* a count known beforehand, so that gcc -O2 makes vectors */
        for (int64_t j = i; j < i + 16; j++) sum[j] += factor * x[j];
    for (; i < n; i++) sum[i] += factor * x[i];
}

/* ---- Operands -----------------------------------------------------------------------------------
 */

enum { QUANTIZE_WORK = 8 }; /* multiply-adds that take as long as one number */

int dsi_cpu_form(const dsi_dev *dev, const dsi_tensor *w) {
    if (dev->e4m3 && w->dtype == DSI_DTYPE_E4M3) return DSI_CPU_E4M3;
    if (!dev->a8 || (w->dtype != DSI_DTYPE_I8 && w->dtype != DSI_DTYPE_I4)) return DSI_CPU_PLAIN;
    return w->scale_kind == DSI_SCALE_CHANNEL ? DSI_CPU_A8_ROW : DSI_CPU_A8_BLOCK;
}

dsi_cpu_operand dsi_cpu_operand_of(uint8_t *data, dsi_dtype dtype, int64_t k, int64_t stride) {
    return (dsi_cpu_operand){.data = {data},
                             .bytes = {stride * (int64_t)dsi_dtype_bytes(dtype)},
                             .stride = {stride},
                             .dtype = dtype,
                             .k = k};
}

void dsi_cpu_operand_take(dsi_cpu_operand *x, int form, int64_t m, dsi_cpu_arena *arena) {
    if (form == DSI_CPU_PLAIN || x->bytes[form]) return;
    x->bytes[form] = x->stride[form] = dsi_a8_bytes(x->k);
    if (form == DSI_CPU_E4M3) {
        x->stride[form] = dsi_cpu_round_up(x->k, 16);
        x->bytes[form] = 4 * x->stride[form];
    }
    x->data[form] = dsi_cpu_take(arena, m * x->bytes[form]);
}

void dsi_cpu_operand_fill(const dsi_dev *dev, const dsi_cpu_operand *x, int64_t r0, int64_t r1) {
    dsi_quantize_fn quantize =
        x->dtype == DSI_DTYPE_BF16 ? dev->kernels.quantize_a8_bf16 : dev->kernels.quantize_a8_f32;
    for (int64_t r = r0; x->data[DSI_CPU_E4M3] && r < r1; r++)
        dsi_cpu_round_e4m3(
            dev->power_of_two, x->data[DSI_CPU_PLAIN] + r * x->bytes[DSI_CPU_PLAIN], x->dtype,
            (float *)(void *)(x->data[DSI_CPU_E4M3] + r * x->bytes[DSI_CPU_E4M3]), x->k);
    for (int form = DSI_CPU_A8_ROW; form <= DSI_CPU_A8_BLOCK; form++)
        for (int64_t r = r0; x->data[form] && r < r1; r++)
            quantize(x->data[DSI_CPU_PLAIN] + r * x->bytes[DSI_CPU_PLAIN],
                     x->data[form] + r * x->bytes[form], x->k,
                     form == DSI_CPU_A8_ROW ? x->k : DSI_BLOCK);
}

typedef struct fill_job {
    const dsi_dev *dev;
    const dsi_cpu_operand *x;
    int64_t m;
} fill_job;
static void fill_rows(void *context, uint32_t thread, uint32_t n_threads) {
    const fill_job *job = context;
    uint64_t r0, r1;
    dsi_pool_share((uint64_t)job->m, 1, thread, n_threads, &r0, &r1);
    dsi_cpu_operand_fill(job->dev, job->x, (int64_t)r0, (int64_t)r1);
}
void dsi_cpu_operand_fill_all(const dsi_dev *dev, const dsi_cpu_operand *x, int64_t m) {
    bool none = true;
    for (int form = DSI_CPU_PLAIN + 1; form < DSI_CPU_FORMS; form++) none &= !x->data[form];
    if (none) return;
    fill_job job = {dev, x, m};
    dsi_cpu_parallel(dev, fill_rows, &job, m == 1 ? 0 : QUANTIZE_WORK * m * x->k);
}

dsi_matmul_fn dsi_cpu_product(const dsi_dev *dev, const dsi_tensor *w, const dsi_cpu_operand *x,
                              int64_t r, dsi_matmul_args *a) {
    int form = dsi_cpu_form(dev, w);
    a->x = x->data[form] + (a->x_rows ? 0 : r) * x->bytes[form];
    a->x_stride = x->stride[form];
    dsi_dtype dtype = form == DSI_CPU_PLAIN  ? x->dtype
                      : form == DSI_CPU_E4M3 ? DSI_DTYPE_F32
                                             : DSI_DTYPE_I8;
    return dsi_cpu_matmul(dev, w, dtype, a);
}

/* ---- Gate, up and SiLU --------------------------------------------------------------------------
 */

void dsi_cpu_gated_columns(const dsi_dev *dev, const dsi_cpu_gated *p, int64_t n0, int64_t n1,
                           const dsi_cpu_place *next, dsi_cpu_arena own) {
    const int64_t columns = n1 - n0, act = dsi_dtype_bytes(p->h_dtype);
    float *gate = dsi_cpu_take(&own, 2 * dsi_cpu_tile_floats(p->m) * 4);
    float *up = gate + dsi_cpu_tile_floats(p->m);
    dsi_matmul_args a = {.y_stride = columns, .n0 = n0, .n1 = n1};
    a.scratch = dsi_cpu_take(&own, dsi_matmul_scratch_bytes(p->gate->ne[0]));
    dsi_swiglu_fn swiglu =
        p->h_dtype == DSI_DTYPE_BF16 ? dev->kernels.swiglu_bf16 : dev->kernels.swiglu_f32;
    for (int64_t r = 0; r < p->m; r += DSI_CPU_ROWS_AT_ONCE) {
        a.m = dsi_min_i64(DSI_CPU_ROWS_AT_ONCE, p->m - r);
        a.x_rows = p->rows ? p->rows + r : NULL;
        a.y = gate;
        dsi_cpu_product(dev, p->gate, p->x, r, &a)(&a);
        dsi_cpu_low_rank_add(dev, p->gate_low_rank, r, a.m, n0, n1, gate, columns);
        if (next && r == 0) dsi_cpu_prefetch(next->w, next->row);
        a.y = up;
        dsi_cpu_product(dev, p->up, p->x, r, &a)(&a);
        dsi_cpu_low_rank_add(dev, p->up_low_rank, r, a.m, n0, n1, up, columns);
        for (int64_t i = 0; i < a.m; i++)
            swiglu(gate + i * columns, up + i * columns, p->h + ((r + i) * p->h_stride + n0) * act,
                   columns);
    }
}
