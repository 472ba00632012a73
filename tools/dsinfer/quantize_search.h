/* quantize_search.h: the search for scales: of rows of numbers, which scale (and offset) lets whole
 * codes come nearest to them, by weighted least squares. Sixteen rows are worked on together, one
 * in each lane of a vector, so that no sum goes across lanes: every instruction set finds the same
 * scales, bit by bit. */
#ifndef DSINFER_TOOL_QUANTIZE_SEARCH_H
#define DSINFER_TOOL_QUANTIZE_SEARCH_H

#include <stdint.h>

enum {
    QUANTIZE_LANES = 16,
    QUANTIZE_RUN = 128, /* numbers with one scale, at most */
    Q4_K_BLOCK = 256,   /* numbers of a block of Q4_K, in eight runs of 32 */
    Q4_K_RUN = 32,
    Q4_K_RUNS = 8,
    Q4_K_PAIR = 2,        /* blocks that are worked on together */
    QUANTIZE_TOGETHER = 4 /* rows of sums */
};

/* Rows of numbers and of their weights, which are not negative; a row of weights may be NULL: all
 * are one. */
typedef struct quantize_lanes {
    const float *x[QUANTIZE_LANES], *weight[QUANTIZE_LANES];
    int64_t n; /* numbers of a row, at most QUANTIZE_RUN */
} quantize_lanes;

/* A block of Q4_K but for its codes: x is about scale[j] * unit * code - offset[j] * offset_unit,
 * codes 0 to 15, scales and offsets of six bits, units of F16. */
typedef struct quantize_q4_k {
    float unit, offset_unit;
    uint8_t scale[Q4_K_RUNS], offset[Q4_K_RUNS];
} quantize_q4_k;

/* Sixteen rows whose codes are found column by column. Arrays of vectors: a number of each row. The
 * target of column j is x[j] and what the columns in front of it owe: the sum of
 * lost[i] * factor[j][i], i < j. */
typedef float quantize_vector[QUANTIZE_LANES];
typedef struct quantize_feedback {
    const float *factor; /* [columns][stride], its lower half */
    int64_t stride;
    const quantize_vector *x;            /* [columns] */
    quantize_vector *lost;               /* [columns] x less what is stored */
    quantize_vector *target;             /* [n] of the columns at hand; then their codes */
    const quantize_vector *scale, *zero; /* [runs] of the columns at hand */
    float bottom, top;                   /* of codes */
} quantize_feedback;

/* to[r][j] += the sum over i of scale[i][r] * rows[i][j], for j < n, in order of i. */
typedef struct quantize_products {
    float *to;
    int64_t to_stride, n;
    int n_to;           /* at most QUANTIZE_TOGETHER; as many scales are read in any case */
    const float *scale; /* scale[i * step + r] */
    int64_t step;
    const float *rows; /* rows[i * stride + j] */
    int64_t stride, n_rows;
} quantize_products;

typedef struct quantize_search {
    /* Scales for codes from -8 to 7; bf16: they are stored so, and rounded so here. */
    void (*symmetric)(const quantize_lanes *rows, int bf16, float scale[QUANTIZE_LANES]);
    /* n codes of such a scale, two a byte; sums[0]: the squares of what they lose, sums[1]: of x.
     */
    void (*put_i4)(const float *x, int64_t n, float scale, uint8_t *to, float sums[2]);
    /* Two blocks: lanes 0 to 7 are the runs of the first, 8 to 15 of the second. */
    void (*q4_k)(const quantize_lanes *rows, quantize_q4_k blocks[Q4_K_PAIR]);
    /* The 128 bytes of codes of a block; returns the sum of squares of what they lose. */
    float (*put_q4_k)(const float *x, const quantize_q4_k *block, uint8_t *to);
    /* Targets of columns [first, first + n), as far as the columns in front of `first` go; then
     * their codes, with a scale and a zero for each run of columns. */
    void (*aim)(const quantize_feedback *rows, int64_t first, int64_t n);
    void (*settle)(const quantize_feedback *rows, int64_t first, int64_t n, int64_t run);
    void (*accumulate)(const quantize_products *products);
    /* to[r] = the sum over i < n of a[i] * b[r * stride + i]. */
    void (*dots)(const float *a, const float *b, int64_t stride, int64_t n,
                 float to[QUANTIZE_TOGETHER]);
} quantize_search;
extern const quantize_search quantize_search_plain;
extern const quantize_search quantize_search_avx2, quantize_search_avx512; /* x86-64 */
/* The one for this CPU. */
const quantize_search *quantize_search_best(void);

#endif
