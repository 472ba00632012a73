/* kernels.h: one function type per op, its formula and its memory layout.
 *
 * A kernel is a pure function of its arguments: no allocation, no threads, no mutable globals.
 * Rules that make answers batch-invariant (exact mode), for every kernel here:
 *   - an output element is computed in one fixed order along K that depends on k alone: not on m,
 *     not on the tile it falls in, not on n0/n1 or on the number of rows in the call;
 *   - results may differ between instruction sets, never between calls.
 * The truth for every kernel is its _ref twin (double accumulation); kernels.inc lists them all.
 * Pointers to weights carry no alignment promise (files are used as they are). */
#ifndef DSI_KERNELS_KERNELS_H
#define DSI_KERNELS_KERNELS_H

#include <deepseek/types.h>
#include <stdbool.h>
#include <stdint.h>

/* ---- Instruction sets: a mask found once by dsi_isa_detect (select.c). REF is always there. */
enum {
    DSI_ISA_REF = 1,
    DSI_ISA_AVX2 = 2,        /* AVX2 + FMA + F16C */
    DSI_ISA_AVX512 = 4,      /* F + BW + VL + DQ */
    DSI_ISA_AVX512BF16 = 8,  /* AVX512 + VBMI + BF16 */
    DSI_ISA_AMX = 16,        /* AVX512BF16 + AMX-TILE + AMX-BF16 + AMX-INT8 */
    DSI_ISA_AVX512VNNI = 32, /* AVX512 + VNNI */
    DSI_ISA_MASKS = 64       /* how many sets of these there are */
};
/* What the CPU has and its operating system saves. Linux also wants to be asked before a process
 * uses AMX: dsi_cpu_isa of lib/backend does that; without it the first tile ends the process. */
uint32_t dsi_isa_detect(void);

/* ---- matmul: y[i][n] = sum_k x[i][k] * w[n][k] * scale[n][k], n in [n0, n1) --------------------
 * Row-dot on weights as they lie in the file: w row-major [n][k]. Stem: matmul_<weights>_<x>.
 * Scales by weights: none for BF16, F16, F32; E4M3: f32, 128 rows and 128 columns share one; I8 and
 * I4: scale_dtype, and group_n rows and group_k columns (32, 64, 128, or k and more: the row) share
 * one. I4 is two values per byte as DSI_DTYPE_I4 says; rows begin at whole words.
 * <weights> = blocks: rows of GGUF's blocks, w_dtype says of which type; k is a whole number of
 * them and scales lie within. Where a type has minimums (w = s * q - m) kernels may sum s * q * x
 * and m * x apart: the terms of their tolerance are these, and an infinite x gives some number that
 * is not finite. */
typedef struct dsi_matmul_args {
    const void *x;         /* rows of k elements, f32 or bf16 by stem, aligned to the element; a8:
                              records of quantize_a8, aligned to 64 bytes */
    int64_t x_stride;      /* elements between rows; a8: bytes, a multiple of 64 */
    const int32_t *x_rows; /* NULL, or m row numbers: row i of the call is x row x_rows[i] */
    int64_t x_group;       /* a8 only: the group that the records were made with */
    const uint8_t *w;      /* first byte of weight row 0 */
    int64_t w_stride;      /* elements between weight rows (>= k); I4: a multiple of 8; blocks: of
                              the values of a block */
    const void *scale;     /* [ceil(n_total / group_n)][scale_stride] multipliers, block 0 on */
    int64_t scale_stride;  /* elements between scale rows */
    dsi_dtype scale_dtype; /* I8, I4: F32, BF16 or F16, at any byte */
    int64_t group_n, group_k; /* I8, I4 */
    float *y;                 /* row i of the call, column n: y[i * y_stride + n - n0] */
    int64_t y_stride;
    int64_t m, n0, n1, k; /* n0 and n1 are absolute row numbers of w */
    const void *library;  /* for lib/backend/cpu_gemm.c alone; no kernel looks at it */
    void *scratch;        /* dsi_matmul_scratch_bytes(k) bytes, 64-byte aligned, this call alone */
    dsi_dtype w_dtype;    /* blocks: which of GGUF's types */
} dsi_matmul_args;
typedef void (*dsi_matmul_fn)(const dsi_matmul_args *args);
/* Room for a panel of 32 decoded weight rows of k f32. */
static inline int64_t dsi_matmul_scratch_bytes(int64_t k) { return 32 * ((k + 63) / 64 * 64) * 4; }

/* ---- quantize_a8: a row of k activations as 8-bit integers, for the matmul stems ending in _a8
 * ---- `group` columns share a multiplier: 128, or k and more: the whole row. With amax = max |x|
 * of a group, multiplier = amax / 127 and q = x * (127 / amax) rounded to nearest even; x is q
 * times the multiplier. amax below 2^-100 counts as 0: multiplier and q are 0. A group with a NaN
 * or an infinity has the multiplier NaN (and q = 0), so that every product with it is NaN. A record
 * of dsi_a8_bytes(k) bytes, 64-byte aligned, every byte of it written: int8_t  q[]           k
 * rounded up to 64, zeros from k on float   multiplier[]  one per 128 columns, also where the whole
 * row shares one int32_t sum[]         of q, one per 32 columns; 0 where there are none Stems
 * quantize_a8_f32, quantize_a8_bf16: the type of x. All instruction sets give equal bits. */
typedef void (*dsi_quantize_fn)(const void *x, void *record, int64_t k, int64_t group);
enum { DSI_A8_SUM = 32 }; /* columns of one sum */
static inline int64_t dsi_a8_columns(int64_t k) { return (k + 63) / 64 * 64; }
static inline int64_t dsi_a8_blocks(int64_t k) { return (k + DSI_BLOCK - 1) / DSI_BLOCK; }
static inline int64_t dsi_a8_bytes(int64_t k) {
    /* Sums of whole blocks: four to a multiplier. */
    return (dsi_a8_columns(k) + dsi_a8_blocks(k) * 20 + 63) / 64 * 64;
}
static inline const float *dsi_a8_multipliers(const void *record, int64_t k) {
    return (const float *)(const void *)((const int8_t *)record + dsi_a8_columns(k));
}
static inline const int32_t *dsi_a8_sums(const void *record, int64_t k) {
    return (const int32_t *)(const void *)(dsi_a8_multipliers(record, k) + dsi_a8_blocks(k));
}

/* ---- matmul_t: y[i][j] = sum_n x[i][n] * w[n0 + n][j] * scale, n ascending, j in [0, k) ---------
 * The transposed product that absorbs W_UK: few rows n (qk_nope_head_dim), kv_lora_rank columns.
 * x and y are f32, the scales as in matmul. Stem: matmul_t_<weights>. */
typedef struct dsi_matmul_t_args {
    const float *x;   /* [m][n1 - n0] */
    int64_t x_stride; /* elements */
    const uint8_t *w;
    int64_t w_stride;
    const void *scale;
    int64_t scale_stride;
    dsi_dtype scale_dtype;
    int64_t group_n, group_k;
    float *y; /* [m][k] */
    int64_t y_stride;
    int64_t m, n0, n1, k;
    const void *next;   /* a hint as in dsi_attend_args; n0, n1 of another call, say */
    int64_t next_bytes; /* 0: nothing is known */
    dsi_dtype w_dtype;  /* blocks: which of GGUF's types */
} dsi_matmul_t_args;
typedef void (*dsi_matmul_t_fn)(const dsi_matmul_t_args *args);
/* The arguments that both products have, for checks that run either; x is f32. */
static inline dsi_matmul_t_args dsi_matmul_t_of(const dsi_matmul_args *a) {
    return (dsi_matmul_t_args){.x = (const float *)a->x,
                               .x_stride = a->x_stride,
                               .w = a->w,
                               .w_stride = a->w_stride,
                               .scale = a->scale,
                               .scale_stride = a->scale_stride,
                               .scale_dtype = a->scale_dtype,
                               .group_n = a->group_n,
                               .group_k = a->group_k,
                               .y = a->y,
                               .y_stride = a->y_stride,
                               .m = a->m,
                               .n0 = a->n0,
                               .n1 = a->n1,
                               .k = a->k,
                               .w_dtype = a->w_dtype};
}

/* ---- attend: one block of at most DSI_PAGE_ROWS cached rows for n_q queries of one KV head ------
 * Online softmax over blocks in ascending order; per query q with r = limit[q] visible rows:
 *   s_j = scale * (q . [k0_j | k1_j])        j < r
 *   m' = max(m, max_j s_j); c = exp(m - m'); p_j = exp(s_j - m')
 *   l' = l * c + sum_j p_j;  o' = o * c + sum_j p_j * v_j;  m = m', l = l', o = o'
 * (Milakov and Gimelshein 2018.) Start with m = -inf, l = 0, o = 0; the result is o / l.
 * A query with limit 0 is left untouched. Stem: attend_<kv type>: q, k and v have that type; for
 * bf16 p_j is an operand of a product like them, and rounded to bf16 before both sums, so that the
 * weights of the values add up to exactly 1. */
typedef struct dsi_attend_args {
    const void *q;     /* [n_q][d0 + d1] */
    int64_t q_stride;  /* elements */
    const void *k0;    /* [64][d0] */
    int64_t k0_stride; /* elements */
    const void *k1;    /* [64][d1]; NULL when d1 = 0 */
    int64_t k1_stride;
    const void *v; /* [64][dv] */
    int64_t v_stride;
    const int32_t *limit; /* [n_q] visible rows of this block, 0..64 */
    float *state_m;       /* [n_q], elements state_stride apart */
    float *state_l;       /* [n_q], elements state_stride apart */
    int64_t state_stride;
    float *o; /* [n_q][dv] unnormalised */
    int64_t o_stride;
    int64_t n_q, d0, d1, dv;
    float scale;
    const void *next;   /* a hint: what will be read after this call, brought closer meanwhile */
    int64_t next_bytes; /* 0: nothing is known */
} dsi_attend_args;
typedef void (*dsi_attend_fn)(const dsi_attend_args *args);

/* ---- index_score: what the indexer of DeepSeek-V3.2 gives to the 64 cached keys of a page -------
 *   score[i][s] = sum_h weights[i][h] * relu(q[i][h] . k[s])
 * (DeepSeek-V3.2-Exp, inference/model.py, Indexer, without its constant factor.) Heads are summed
 * in ascending order; a score is never -0. Stem: index_score_<type of q and k>. */
typedef struct dsi_index_args {
    const void *q;        /* [n_q][n_heads][dim] */
    const void *k;        /* [64][dim] */
    int64_t k_stride;     /* elements */
    const float *weights; /* [n_q][n_heads] */
    int64_t weights_stride;
    float *score; /* [n_q][64] */
    int64_t score_stride;
    int64_t n_q, n_heads, dim;
    void *scratch; /* dsi_index_scratch_bytes(dim) bytes, 64-byte aligned, this call alone */
} dsi_index_args;
typedef void (*dsi_index_fn)(const dsi_index_args *args);
/* Room for the page with its keys side by side. */
static inline int64_t dsi_index_scratch_bytes(int64_t dim) { return dim * DSI_PAGE_ROWS * 4; }

/* ---- rms_norm: y = x * rsqrt(mean(x^2) + eps) * w over n elements (f32 inside) ----------------
 * w is bf16 or f32 (w_dtype). Stems rms_norm_f32, rms_norm_bf16: the type of y (round to nearest
 * even). One row per call. */
typedef void (*dsi_rms_norm_fn)(const float *x, const void *w, dsi_dtype w_dtype, void *y,
                                int64_t n, float eps);

/* ---- swiglu: y = silu(gate) * up, silu(g) = g / (1 + exp(-g)); stems swiglu_f32, swiglu_bf16 */
typedef void (*dsi_swiglu_fn)(const float *gate, const float *up, void *y, int64_t n);

/* ---- cast_bf16: f32 -> bf16, round to nearest even, NaN stays NaN ---------------------------- */
typedef void (*dsi_cast_fn)(const float *x, uint16_t *y, int64_t n);

/* ---- decode: a row of k 8-bit values as bf16: y[i] = w[i] * scale[i / 128] ----------------------
 * Rounded once to f32 and once to bf16 (nearest even). Stems decode_fp8 (E4M3): cached rows, and
 * weights for libraries that multiply bf16; decode_i8: cached rows. All instruction sets give equal
 * bits. */
typedef void (*dsi_decode_fn)(const uint8_t *w, const float *scale, uint16_t *y, int64_t k);

/* ---- decode_blocks: k weights of GGUF's blocks (whole blocks, at any byte) as f32 --------------
 * kernels/blocks/blocks.h has the formula. All instruction sets give equal bits. */
typedef void (*dsi_decode_blocks_fn)(dsi_dtype w_dtype, const uint8_t *w, float *y, int64_t k);

/* ---- rope: rotates pairs of x[0..2*half) in place: (a, b) -> (a cos - b sin, b cos + a sin) -----
 * rope_interleaved pairs (2i, 2i+1), rope_half pairs (i, i+half). Angle = position * inv_freq[i];
 * cos and sin are multiplied by factor. They are taken in double, then f32, once for all heads. */
typedef struct dsi_rope_args {
    float *x;       /* [n_heads][2 * half] */
    int64_t stride; /* elements between heads */
    int64_t n_heads;
    const float *inv_freq; /* [half] */
    int64_t half, position;
    double factor;
} dsi_rope_args;
typedef void (*dsi_rope_fn)(const dsi_rope_args *args);

/* ---- moe_route: which experts a token goes to (one row per call) ------------------------------
 * logits [n_experts] f32. score = sigmoid or softmax. choice = score (+ bias for noaux_tc).
 *   GREEDY         the top_k largest choices
 *   GROUP_LIMITED  group score = max; keep topk_group groups, the rest is -inf
 *   NOAUX_TC       group score = sum of the two largest choices (bias included), then as above
 * weight_j = score_j (never the bias); if norm: / (sum + 1e-20); then * scale. Ties: the lower
 * index wins. Output in ascending order of expert id. (DeepSeek-V3 inference/model.py, Gate.) */
typedef struct dsi_route_args {
    const float *logits;
    const float *bias; /* NULL, or [n_experts] */
    int32_t *experts;  /* [top_k] */
    float *weights;    /* [top_k] */
    uint32_t n_experts, top_k, n_group, topk_group;
    uint32_t method;  /* 1 greedy, 2 group-limited, 3 noaux_tc (as DSI_ROUTER_*) */
    uint32_t sigmoid; /* 0: softmax */
    uint32_t norm;
    float scale;
} dsi_route_args;
typedef void (*dsi_route_fn)(const dsi_route_args *args); /* n_experts <= 1024 */

/* ---- The list -------------------------------------------------------------------------------
 * kernels.inc has lines K(type, stem, ISA, symbol, c): declares them here, dispatches them in
 * select.c (the first line of a stem whose ISA is there wins: best first), tests and times them in
 * tests/check_kernels.c. c is the tolerance: |y - ref| <= c * sum|terms|. */
#define K(type, stem, isa, symbol, c) void symbol DSI_KERNEL_ARGS_##type;
#define DSI_KERNEL_ARGS_matmul (const dsi_matmul_args *args)
#define DSI_KERNEL_ARGS_matmul_t (const dsi_matmul_t_args *args)
#define DSI_KERNEL_ARGS_attend (const dsi_attend_args *args)
#define DSI_KERNEL_ARGS_index (const dsi_index_args *args)
#define DSI_KERNEL_ARGS_rms_norm                                                                   \
    (const float *x, const void *w, dsi_dtype w_dtype, void *y, int64_t n, float eps)
#define DSI_KERNEL_ARGS_swiglu (const float *gate, const float *up, void *y, int64_t n)
#define DSI_KERNEL_ARGS_cast (const float *x, uint16_t *y, int64_t n)
#define DSI_KERNEL_ARGS_quantize (const void *x, void *record, int64_t k, int64_t group)
#define DSI_KERNEL_ARGS_decode (const uint8_t *w, const float *scale, uint16_t *y, int64_t k)
#define DSI_KERNEL_ARGS_decode_blocks (dsi_dtype w_dtype, const uint8_t *w, float *y, int64_t k)
#define DSI_KERNEL_ARGS_rope (const dsi_rope_args *args)
#define DSI_KERNEL_ARGS_route (const dsi_route_args *args)
#include "kernels.inc"
#undef K

#define DSI_KERNEL_STEMS(S)                                                                        \
    S(matmul, matmul_fp8_bf16)                                                                     \
    S(matmul, matmul_fp8_f32)                                                                      \
    S(matmul, matmul_bf16_bf16)                                                                    \
    S(matmul, matmul_bf16_f32)                                                                     \
    S(matmul, matmul_f16_bf16)                                                                     \
    S(matmul, matmul_f16_f32)                                                                      \
    S(matmul, matmul_f32_bf16)                                                                     \
    S(matmul, matmul_f32_f32)                                                                      \
    S(matmul, matmul_i8_bf16)                                                                      \
    S(matmul, matmul_i8_f32)                                                                       \
    S(matmul, matmul_i8_a8)                                                                        \
    S(matmul, matmul_i4_bf16)                                                                      \
    S(matmul, matmul_i4_f32)                                                                       \
    S(matmul, matmul_i4_a8)                                                                        \
    S(matmul, matmul_blocks_bf16)                                                                  \
    S(matmul, matmul_blocks_f32)                                                                   \
    S(matmul_t, matmul_t_fp8)                                                                      \
    S(matmul_t, matmul_t_bf16)                                                                     \
    S(matmul_t, matmul_t_f16)                                                                      \
    S(matmul_t, matmul_t_f32)                                                                      \
    S(matmul_t, matmul_t_i8)                                                                       \
    S(matmul_t, matmul_t_i4)                                                                       \
    S(matmul_t, matmul_t_blocks)                                                                   \
    S(attend, attend_bf16)                                                                         \
    S(attend, attend_f32)                                                                          \
    S(index, index_score_bf16)                                                                     \
    S(index, index_score_f32)                                                                      \
    S(rms_norm, rms_norm_bf16)                                                                     \
    S(rms_norm, rms_norm_f32)                                                                      \
    S(swiglu, swiglu_bf16)                                                                         \
    S(swiglu, swiglu_f32)                                                                          \
    S(cast, cast_bf16)                                                                             \
    S(quantize, quantize_a8_bf16)                                                                  \
    S(quantize, quantize_a8_f32)                                                                   \
    S(decode, decode_fp8)                                                                          \
    S(decode, decode_i8)                                                                           \
    S(decode_blocks, decode_blocks)                                                                \
    S(rope, rope_interleaved)                                                                      \
    S(rope, rope_half)                                                                             \
    S(route, moe_route)

/* One function per stem, and the symbol that was chosen (for people). */
typedef struct dsi_kernels {
#define DSI_KERNEL_FIELD(type, stem) dsi_##type##_fn stem;
    DSI_KERNEL_STEMS(DSI_KERNEL_FIELD)
#undef DSI_KERNEL_FIELD
#define DSI_KERNEL_NAME(type, stem) const char *name_##stem;
    DSI_KERNEL_STEMS(DSI_KERNEL_NAME)
#undef DSI_KERNEL_NAME
} dsi_kernels;
/* Fills the table with the best kernel of every stem among the ISAs in `mask` (REF is implied). */
void dsi_kernels_select(uint32_t mask, dsi_kernels *kernels);

/* One line of kernels.inc, for code that goes through all of them. */
enum {
    DSI_KERNEL_matmul,
    DSI_KERNEL_matmul_t,
    DSI_KERNEL_attend,
    DSI_KERNEL_rms_norm,
    DSI_KERNEL_swiglu,
    DSI_KERNEL_cast,
    DSI_KERNEL_quantize,
    DSI_KERNEL_decode,
    DSI_KERNEL_rope,
    DSI_KERNEL_route,
    DSI_KERNEL_decode_blocks,
    DSI_KERNEL_index
};
typedef void (*dsi_any_fn)(void);
typedef struct dsi_kernel_line {
    uint32_t type; /* DSI_KERNEL_*: what fn and ref must be cast to */
    uint32_t isa;  /* DSI_ISA_* */
    const char *stem, *symbol;
    dsi_any_fn fn, ref;
    double tolerance; /* c of kernels.inc */
} dsi_kernel_line;
/* All lines in the order of the list: of a stem the best first, its reference last. */
const dsi_kernel_line *dsi_kernel_lines(uint32_t *n_lines);
/* Puts fn, a kernel of line's type, in the place of line's stem. */
void dsi_kernels_use(dsi_kernels *kernels, const dsi_kernel_line *line, dsi_any_fn fn);

#endif
