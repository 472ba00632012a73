/* cpu.h: what the files of the CPU back-end share. */
#ifndef DSI_LIB_BACKEND_CPU_H
#define DSI_LIB_BACKEND_CPU_H

#include "../../kernels/kernels.h"
#include "../base/base.h"
#include "../base/kv_row.h"
#include "../base/pool.h"
#include <deepseek/backend.h>
#include <stdatomic.h>

/* The tasks of one thread that nobody has begun: next .. end-1 (cpu_tasks.c). */
typedef struct dsi_cpu_share {
    _Alignas(64) _Atomic int64_t next; /* a cache line each: all threads look at all of them */
    int64_t end;
    uint32_t node; /* the thread's memory node, set once; ascending from thread to thread */
} dsi_cpu_share;
enum { DSI_CPU_PHASES = 3 }; /* in which one op deals tasks */

struct dsi_dev {
    dsi_pool *pool;
    dsi_kernels kernels;
    uint32_t n_threads;
    struct dsi_cpu_gemm *gemm; /* NULL: exact mode (cpu_gemm.h) */
    /* operands in linear, linear_swiglu and moe_ffn: A8 where they meet I8 or I4 weights; rounded
     * to E4M3 where they meet such, with multipliers that are powers of two or not */
    bool a8, e4m3, power_of_two;
    dsi_cpu_share *shares; /* [DSI_CPU_PHASES][n_threads] */
    dsi_log log;
    dsi_error error;
    uint64_t slow; /* bit n: a planned product has weights of DSI_DTYPE_BLOCKS + n, and is slow */
    char kernels_name[32]; /* of the set, and a mark if the self-test replaced a kernel */
    char describe[512];
    uint32_t n_described; /* bytes of it that do not depend on what was planned */
};
struct dsi_buf {
    dsi_dev *dev;
    uint8_t *data;
    uint64_t n_bytes;
    bool imported; /* someone else's memory, read-only */
};
struct dsi_dev_stream {
    dsi_dev *dev;
};

/* One op in flight: the op and its workspace. Filled by op_run, read by the workers. */
typedef struct dsi_cpu_run {
    dsi_dev *dev;
    const dsi_op *op;
    uint8_t *workspace;
} dsi_cpu_run;

/* Every op is a pair: check validates types and shapes and says how much workspace R rows need;
 * run computes, with operands that have passed check. */
typedef dsi_status (*dsi_cpu_check_fn)(dsi_dev *dev, const dsi_op *op, uint64_t *workspace);
typedef void (*dsi_cpu_run_fn)(const dsi_cpu_run *run);

#define DSI_CPU_OP(name)                                                                           \
    dsi_status dsi_cpu_##name##_check(dsi_dev *dev, const dsi_op *op, uint64_t *workspace);        \
    void dsi_cpu_##name##_run(const dsi_cpu_run *run);
DSI_CPU_OP(embed)
DSI_CPU_OP(rms_norm)
DSI_CPU_OP(linear)
DSI_CPU_OP(linear_swiglu)
DSI_CPU_OP(rope)
DSI_CPU_OP(kv_write)
DSI_CPU_OP(mla_absorb_q)
DSI_CPU_OP(mla_attend)
DSI_CPU_OP(mla_absorb_v)
DSI_CPU_OP(mla_expand_attend)
DSI_CPU_OP(gqa_attend)
DSI_CPU_OP(moe_route)
DSI_CPU_OP(moe_ffn)
DSI_CPU_OP(gather_rows)
DSI_CPU_OP(moe_routed)
DSI_CPU_OP(layer_norm)
DSI_CPU_OP(index_round)
DSI_CPU_OP(index_topk)
DSI_CPU_OP(low_rank_down)
DSI_CPU_OP(low_rank_up)
#undef DSI_CPU_OP

/* ---- Helpers (cpu_tensor.c) */

/* Host address of element (row, column) of a 2-D view, or of a weight's first byte; of I4, where
 * two share a byte, of an even column. */
void *dsi_cpu_at(const dsi_tensor *t, int64_t row, int64_t column);
static inline void *dsi_cpu_data(const dsi_tensor *t) { return t->buf->data + t->offset; }
static inline int64_t dsi_cpu_rows(const dsi_tensor *t) { return t->n_dims < 2 ? 1 : t->ne[1]; }
static inline bool dsi_cpu_is_act(dsi_dtype d) { return d == DSI_DTYPE_BF16 || d == DSI_DTYPE_F32; }
static inline int64_t dsi_cpu_round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

/* DSI_OK, or DSI_E_UNSUPPORTED with "op: what" in the device's error if `ok` is false. */
dsi_status dsi_cpu_require(dsi_dev *dev, const dsi_op *op, bool ok, const char *what);

/* Fills the weight side of the arguments (w, strides, scales, k, scratch) and picks the kernel for
 * x's type (I8: records of quantize_a8 made with dsi_cpu_a8_group(w)); NULL if the weight's type
 * has none. */
dsi_matmul_fn dsi_cpu_matmul(const dsi_dev *dev, const dsi_tensor *w, dsi_dtype x_dtype,
                             dsi_matmul_args *args);
/* The kernel alone, without a weight. */
dsi_matmul_fn dsi_cpu_matmul_kernel(const dsi_kernels *k, dsi_dtype w_dtype, dsi_dtype x_dtype);
dsi_matmul_t_fn dsi_cpu_matmul_t(const dsi_dev *dev, const dsi_tensor *w, dsi_matmul_t_args *args);
bool dsi_cpu_weight_ok(const dsi_tensor *w);
/* Columns that share a multiplier in records for these I8 or I4 weights. */
int64_t dsi_cpu_a8_group(const dsi_tensor *w);

/* k values of x, BF16 or F32, as E4M3 with multipliers of 128 columns keeps them; power_of_two: of
 * the multipliers (cpu_e4m3.c). y may be x. */
void dsi_cpu_round_e4m3(bool power_of_two, const void *x, dsi_dtype dtype, float *y, int64_t k);

/* ---- Walking a batch */

/* The next run [*begin, *end) of adjacent rows of one sequence and one form, starting the search at
 * *end; false when there is none. */
bool dsi_cpu_next_run(const dsi_batch *batch, bool expanded, int64_t *begin, int64_t *end);
/* Page p of the sequence of row r: the number of its first cached row. */
static inline int64_t dsi_cpu_page_row(const dsi_batch *batch, int64_t r, int64_t p) {
    return (int64_t)batch->page_table[(int64_t)batch->seq[r] * batch->max_pages + p] *
           DSI_PAGE_ROWS;
}
/* How many rows of page p row r sees: 0 to DSI_PAGE_ROWS. */
static inline int32_t dsi_cpu_visible_rows(const dsi_batch *batch, int64_t r, int64_t p) {
    int64_t n = (int64_t)batch->position[r] + 1 - p * DSI_PAGE_ROWS;
    return (int32_t)dsi_max_i64(0, dsi_min_i64(n, DSI_PAGE_ROWS));
}
/* Cached row p of the sequence of row r: its number. */
static inline int64_t dsi_cpu_cached_row(const dsi_batch *batch, int64_t r, int64_t p) {
    return dsi_cpu_page_row(batch, r, p / DSI_PAGE_ROWS) + p % DSI_PAGE_ROWS;
}
static inline dsi_attend_fn dsi_cpu_attend(const dsi_dev *dev, dsi_dtype kv_dtype) {
    return kv_dtype == DSI_DTYPE_F32 ? dev->kernels.attend_f32 : dev->kernels.attend_bf16;
}

/* ---- Cached rows of 8 bits (cpu_cache.c) */

/* Are these pages of codes? Products read them as BF16 then. */
static inline bool dsi_cpu_is_coded(dsi_dtype kv_dtype) {
    return kv_dtype == DSI_DTYPE_E4M3 || kv_dtype == DSI_DTYPE_I8;
}
/* The type of the operands that pages of a type are, or are decoded to. */
static inline dsi_dtype dsi_cpu_kv_act(dsi_dtype kv_dtype) {
    return dsi_cpu_is_coded(kv_dtype) ? DSI_DTYPE_BF16 : kv_dtype;
}
/* x [heads * columns + rest] as a row of the pages. */
void dsi_cpu_code_row(const dsi_dev *dev, const dsi_kv_row *row, dsi_dtype dtype, const float *x,
                      uint8_t *to);
/* The columns of run `head` of n rows from number `first` on, as BF16 [n][stride]. */
void dsi_cpu_decode_rows(const dsi_dev *dev, const dsi_kv_row *row, const dsi_tensor *pages,
                         int64_t first, int64_t n, int64_t head, uint16_t *to, int64_t stride);

/* Stores n f32 values as `dtype` (F32 or BF16). */
void dsi_cpu_store(const dsi_dev *dev, const float *x, void *y, dsi_dtype dtype, int64_t n);

/* Runs fn on the pool, or on the calling thread alone when `work` (multiply-adds, or what takes as
 * long) is less than waking the others is worth. fn gets n_threads = 1 then and must not wait at a
 * barrier. The result is the same either way. */
uint32_t dsi_cpu_threads(const dsi_dev *dev, int64_t work); /* how many it will be */
void dsi_cpu_parallel(const dsi_dev *dev, dsi_pool_fn fn, const void *context, int64_t work);
/* Inside fn: waits for the other threads, if there are any. */
static inline void dsi_cpu_barrier(const dsi_dev *dev, uint32_t n_threads) {
    if (n_threads > 1) dsi_pool_barrier(dev->pool);
}

/* Columns of one tile of work: the panel that a matmul kernel decodes at once. */
enum { DSI_CPU_TILE = 32 };

/* Workspace is handed out in 64-byte steps; with base NULL only the size is counted. */
typedef struct dsi_cpu_arena {
    uint8_t *base;
    uint64_t used;
} dsi_cpu_arena;
void *dsi_cpu_take(dsi_cpu_arena *arena, int64_t n_bytes);

#endif
