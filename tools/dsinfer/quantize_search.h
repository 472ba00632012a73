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
    Q4_K_PAIR = 2 /* blocks that are worked on together */
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

typedef struct quantize_search {
    /* Scales for codes from -8 to 7; bf16: they are stored so, and rounded so here. */
    void (*symmetric)(const quantize_lanes *rows, int bf16, float scale[QUANTIZE_LANES]);
    /* Two blocks: lanes 0 to 7 are the runs of the first, 8 to 15 of the second. */
    void (*q4_k)(const quantize_lanes *rows, quantize_q4_k blocks[Q4_K_PAIR]);
    /* The 128 bytes of codes of a block; returns the sum of squares of what they lose. */
    float (*put_q4_k)(const float *x, const quantize_q4_k *block, uint8_t *to);
} quantize_search;
extern const quantize_search quantize_search_plain;
extern const quantize_search quantize_search_avx2, quantize_search_avx512; /* x86-64 */
/* The one for this CPU. */
const quantize_search *quantize_search_best(void);

#endif
