/* cpu_tasks.h: products cut into tasks, dealt to threads. */
#ifndef DSI_LIB_BACKEND_CPU_TASKS_H
#define DSI_LIB_BACKEND_CPU_TASKS_H

#include "cpu_low_rank.h"

enum {
    DSI_CPU_FEW_ROWS_COLUMNS = 512, /* columns of one task at most */
    DSI_CPU_MANY_ROWS_COLUMNS = 64, /* the same for many rows: the results stay in a cache */
    DSI_CPU_ROWS_AT_ONCE = 256,     /* rows of one call of a kernel that writes into a tile */
    DSI_CPU_TASK_BYTES = 1 << 18    /* weights of one task: 10 us of one thread's bandwidth */
};

/* Deals the tasks [begin, end) to one thread; before the run that takes them. */
void dsi_cpu_deal(dsi_cpu_share *share, int64_t begin, int64_t end);
/* Deals the tasks 0..n_tasks-1 to n_threads threads, as many to each. */
void dsi_cpu_deal_evenly(dsi_cpu_share *shares, uint32_t n_threads, int64_t n_tasks);
/* Weights that were written by rows lie on the nodes of the threads to which dsi_pool_share gives
 * their rows. *thread: the first one of a node, and the first one of the next on return; the row of
 * a matrix of n_rows behind the last one on this node, a multiple of what kernels compute at once.
 */
int64_t dsi_cpu_node_rows(const dsi_cpu_share *shares, uint32_t n_threads, int64_t n_rows,
                          uint32_t *thread);
/* The next task of `thread`, or one that another thread has not begun, of its own memory node if
 * there is any; false: all are taken. */
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

/* ---- Operands
 * Rows of activations as kernels take them: as they are and, on a device with a8, as records of
 * quantize_a8 for I8 and I4 weights, whose groups decide how many columns share a multiplier; with
 * e4m3 as F32 values that E4M3 holds, for such weights. */
enum { DSI_CPU_PLAIN, DSI_CPU_A8_ROW, DSI_CPU_A8_BLOCK, DSI_CPU_E4M3, DSI_CPU_FORMS };
typedef struct dsi_cpu_operand {
    uint8_t *data[DSI_CPU_FORMS];  /* NULL: this form is not there */
    int64_t bytes[DSI_CPU_FORMS];  /* between rows */
    int64_t stride[DSI_CPU_FORMS]; /* between rows, as kernels count */
    dsi_dtype dtype;               /* of the plain form */
    int64_t k;
} dsi_cpu_operand;

/* The form that a product with w takes. */
int dsi_cpu_form(const dsi_dev *dev, const dsi_tensor *w);
/* Rows of `dtype` at `data`, `stride` elements apart; the other forms are not there. */
dsi_cpu_operand dsi_cpu_operand_of(uint8_t *data, dsi_dtype dtype, int64_t k, int64_t stride);
/* Takes room for m rows of a form, unless that is PLAIN or there already. */
void dsi_cpu_operand_take(dsi_cpu_operand *x, int form, int64_t m, dsi_cpu_arena *arena);
/* Fills all forms but PLAIN of rows [r0, r1) from it. */
void dsi_cpu_operand_fill(const dsi_dev *dev, const dsi_cpu_operand *x, int64_t r0, int64_t r1);
/* The same of m rows on all threads, before a run. */
void dsi_cpu_operand_fill_all(const dsi_dev *dev, const dsi_cpu_operand *x, int64_t m);
/* Sets weights and activations of a call, from row r on or, with a->x_rows, from row 0 on. */
dsi_matmul_fn dsi_cpu_product(const dsi_dev *dev, const dsi_tensor *w, const dsi_cpu_operand *x,
                              int64_t r, dsi_matmul_args *a);

/* h[i] = silu(gate x) * up x for m rows of x. */
typedef struct dsi_cpu_gated {
    const dsi_cpu_operand *x;
    const dsi_tensor *gate, *up;
    const int32_t *rows; /* NULL, or [m] which rows of x */
    int64_t m;
    uint8_t *h;       /* [m][h_stride] of h_dtype */
    int64_t h_stride; /* elements */
    dsi_dtype h_dtype;
    /* what adapters add before SiLU, where rows is NULL; NULL: nothing */
    const dsi_low_rank *gate_low_rank, *up_low_rank;
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
