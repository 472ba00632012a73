/* kernels.h: what the files of `dsi-bench kernels` share. */
#ifndef DSI_BENCH_KERNELS_H
#define DSI_BENCH_KERNELS_H

#include "../kernels/kernels.h"
#include "../lib/backend/gemm.h"
#include "../lib/base/pool.h"
#include "bench.h"

/* Which limit a kernel's arithmetic is held against. */
enum { PEAK_NONE, PEAK_F32, PEAK_BF16, PEAK_INT8, PEAK_AVX2 };

enum { KERNEL_LIBRARIES = 2, KERNEL_ROUNDS = 100, KERNEL_CASES = 64 };
enum { KERNEL_ROWS_AT_ONCE = 192, KERNEL_FEW_ROWS = 16 }; /* as the engine calls them */

/* Memory that stays from one line to the next. */
typedef struct kernel_room {
    uint8_t *data;
    uint64_t n_bytes;
} kernel_room;

/* One thing that is timed: a kernel at one shape, on all threads at once, each with columns, heads
 * or rows of its own. */
typedef struct kernel_case {
    const dsi_kernel_line *line;
    char shape[64];
    uint32_t peak;
    int64_t m, n, k;                  /* matmul, matmul_t */
    dsi_matmul_args args;             /* the same for all threads: x, scales and their groups */
    int64_t x_row_bytes, scale_bytes; /* of a row of x; of the scales of one matrix */
    double bytes, operations; /* of one turn: weights or cache from memory (0: all is in a cache);
                                 a multiply and an add are two */
    int turns;                /* of one timed run */
    /* what is run */
    void (*turn)(const struct kernel_case *c, uint32_t thread, uint32_t n_threads, int64_t number);
    const struct kernel_data *data;
    dsi_gemm *gemm[KERNEL_LIBRARIES]; /* of all columns of one thread; NULL: none */
    const uint8_t *library_x[KERNEL_LIBRARIES], *library_w[KERNEL_LIBRARIES];
    int64_t library_copies[KERNEL_LIBRARIES];
    /* medians come from these: seconds of a turn */
    double seconds[KERNEL_ROUNDS], library_seconds[KERNEL_LIBRARIES][KERNEL_ROUNDS];
} kernel_case;

/* Operands of the cases of one line. */
typedef struct kernel_data {
    dsi_dtype w_dtype, x_dtype; /* I8 as x: A8 records */
    bool a8;                    /* x is records of quantize_a8 */
    int64_t copies, copy_bytes; /* different weights in turn, more than the caches */
    const uint8_t *w;
    const void *scale;
    const uint8_t *x;
    uint8_t *own[DSI_POOL_MAX_THREADS]; /* each thread's: results, scratch, y and scratch of a
                                           library */
} kernel_data;

typedef struct kernel_bench {
    const bench_options *options;
    uint32_t n_threads;
    dsi_pool *pool;
    bench_yardstick *yardstick;
    dsi_gemm_library *libraries[KERNEL_LIBRARIES];
    kernel_room room;       /* free part of what the line at hand may use */
    uint8_t *library_w[32]; /* weights by type, made when they are first wanted */
    kernel_case cases[KERNEL_CASES];
    uint32_t n_cases;
    kernel_data data;
    bench_limits limits; /* measured between the rounds of this line */
} kernel_bench;

/* kernels_work.c: the cases of a line of kernels.inc; false: no memory. */
bool kernel_cases(kernel_bench *b, const dsi_kernel_line *line);
void kernel_drop_cases(kernel_bench *b);
/* Bytes of weights that are in turn, so that they come from memory. */
uint64_t kernel_cold_bytes(void);
/* Finds how many turns are timed at once; after the first of them. */
void kernel_choose_turns(kernel_bench *b, kernel_case *c);
/* Seconds of one turn of a case; of the same product by library i. */
double kernel_time(kernel_bench *b, const kernel_case *c);
double kernel_time_library(kernel_bench *b, const kernel_case *c, int i);
/* The kernel at the shapes of its cases against its reference, some rows and columns. False with
 * why (of n_bytes). */
bool kernel_check_shapes(kernel_bench *b, const dsi_kernel_line *line, char *why, size_t n_bytes);

/* kernels_rows.c: attention, and what works on one row. */
bool kernel_attend_cases(kernel_bench *b, const dsi_kernel_line *line);
bool kernel_index_cases(kernel_bench *b, const dsi_kernel_line *line);
bool kernel_row_cases(kernel_bench *b, const dsi_kernel_line *line);

/* Room of n elements with plain numbers of a type, for the rest of this line; NULL: no memory. */
void *kernel_numbers(kernel_room *room, dsi_dtype dtype, int64_t n, double size);
kernel_case *kernel_new_case(kernel_bench *b, const dsi_kernel_line *line, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

#endif
