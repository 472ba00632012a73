/* cpu_tasks.h: products cut into tasks, dealt to threads. */
#ifndef DSI_LIB_BACKEND_CPU_TASKS_H
#define DSI_LIB_BACKEND_CPU_TASKS_H

#include "cpu.h"

enum {
    DSI_CPU_FEW_ROWS_COLUMNS = 512, /* columns of one task at most */
    DSI_CPU_MANY_ROWS_COLUMNS = 64, /* the same for many rows: the results stay in a cache */
    DSI_CPU_ROWS_AT_ONCE = 192,     /* rows of one call of a kernel that writes into a tile */
    DSI_CPU_TASK_BYTES = 1 << 18    /* weights of one task: 10 us of one thread's bandwidth */
};

/* Deals the tasks [begin, end) to one thread; before the run that takes them. */
void dsi_cpu_deal(dsi_cpu_share *share, int64_t begin, int64_t end);
/* Deals the tasks 0..n_tasks-1 to n_threads threads, as many to each. */
void dsi_cpu_deal_evenly(dsi_cpu_share *shares, uint32_t n_threads, int64_t n_tasks);
/* The next task of `thread`, or one that another thread has not begun; false: all are taken. */
bool dsi_cpu_next_task(dsi_cpu_share *shares, uint32_t thread, uint32_t n_threads, int64_t *task);
/* The task that will probably follow, to prefetch for; -1: none that is known. */
static inline int64_t dsi_cpu_task_ahead(dsi_cpu_share *shares, uint32_t thread) {
    int64_t next = atomic_load_explicit(&shares[thread].next, memory_order_relaxed);
    return next < shares[thread].end ? next : -1;
}

/* Bytes between two rows of a weight. */
int64_t dsi_cpu_row_bytes(const dsi_tensor *w);
/* Columns of a task of m rows: about task_bytes of weights, or what suits many rows. */
int64_t dsi_cpu_task_columns(const dsi_tensor *w, int64_t m, int64_t task_bytes,
                             uint32_t n_threads);
/* Floats of a tile that holds a task's results, DSI_CPU_ROWS_AT_ONCE rows of them at a time, for m
 * rows and for fewer. */
int64_t dsi_cpu_tile_floats(int64_t m);

/* Asks for the first bytes of the weight rows from `row` on, where a thread will read next: kernels
 * prefetch within a matrix, not from its end into another. */
void dsi_cpu_prefetch(const dsi_tensor *w, int64_t row);

/* h[i] = silu(gate x) * up x for m rows of x. */
typedef struct dsi_cpu_gated {
    const dsi_tensor *x, *gate, *up;
    const int32_t *rows; /* NULL, or [m] which rows of x */
    int64_t m;
    uint8_t *h;       /* [m][h_stride] of h_dtype */
    int64_t h_stride; /* elements */
    dsi_dtype h_dtype;
} dsi_cpu_gated;
/* Columns [n0, n1), at most those of dsi_cpu_task_columns. `next`: where the thread goes on after
 * them if not with the columns behind, else NULL: its first bytes are asked for. own: two tiles and
 * the scratch of a kernel. */
typedef struct dsi_cpu_place {
    const dsi_tensor *w;
    int64_t row;
} dsi_cpu_place;
void dsi_cpu_gated_columns(const dsi_dev *dev, const dsi_cpu_gated *p, int64_t n0, int64_t n1,
                           const dsi_cpu_place *next, dsi_cpu_arena own);

/* sum[i] += factor * x[i], two roundings. */
void dsi_cpu_add_scaled(float *restrict sum, const float *restrict x, float factor, int64_t n);

#endif
