/* backend.h: what a device plug-in implements. ABI 1.0, not frozen before release 1.0.
 *
 * One exported table per plug-in. The unit of work is a fused operator with a DeepSeek name; the
 * unit of submission is one engine step. Buffers are opaque handles, never raw pointers; op_plan
 * answers at load time whether an operator runs (UNSUPPORTED = the host must place it elsewhere),
 * op_run only enqueues. Structs carry struct_size and grow at the end. The CPU inside the library
 * is the first plug-in and the oracle for the others.
 *
 * Threads: a dsi_dev and its streams are used by one thread at a time (the engine's step lock). */
#ifndef DEEPSEEK_BACKEND_H
#define DEEPSEEK_BACKEND_H

#include <deepseek/types.h>

#ifdef __cplusplus
extern "C" {
#endif

#define DSI_BACKEND_ABI_MAJOR 1u /* incompatible change: a new symbol, dsi_backend_entry_v2 */
#define DSI_BACKEND_ABI_MINOR 0u /* append-only growth, seen through struct_size */

typedef struct dsi_dev dsi_dev;
typedef struct dsi_buf dsi_buf;
typedef struct dsi_dev_stream dsi_dev_stream;

/* A view of device memory. ne[0] is the fastest dimension (columns), strides are in elements: in a
 * weight of I4, whose rows are whole 32-bit words, a multiple of 8. */
typedef struct dsi_tensor {
    uint32_t struct_size;
    dsi_dtype dtype;
    uint32_t n_dims;
    uint32_t format; /* 0: row-major; else a packed format of the plug-in */
    int64_t ne[4], stride[4];
    dsi_buf *buf;
    uint64_t offset; /* bytes */
    dsi_buf *scale;  /* quantised weights: their multipliers, as types.h lays them out */
    uint64_t scale_offset;
    uint32_t scale_kind;   /* DSI_SCALE_* */
    dsi_dtype scale_dtype; /* F32, BF16 or F16 */
    uint32_t scale_group;  /* columns of one group if the kind is GROUP */
    uint32_t reserved;
} dsi_tensor;

/* The operators. Shapes are [rows][columns]; R = rows of the step, "act" = BF16 or F32, the
 * activation type of the step. X(name, code): in -> out (attributes) */
#define DSI_OP_LIST(X)                                                                             \
    /* tokens I32 [R], table [vocab][hidden] -> x F32 [R][hidden] */                               \
    X(DSI_OP_EMBED, 1)                                                                             \
    /* x F32 [R][n], weight [n] -> y act or F32 [R][n] (dsi_attr_norm) */                          \
    X(DSI_OP_RMS_NORM, 2)                                                                          \
    /* x act [R][k], then w [n][k] and optional bias [n] per y -> 1 to 4 y, F32 or act [R][n] */   \
    /* (dsi_attr_linear); the last bias may be left out of the list */                             \
    X(DSI_OP_LINEAR, 3)                                                                            \
    /* x act [R][k], gate [n][k], up [n][k] -> h act [R][n] = silu(gate x) * up x */               \
    /* (dsi_attr_swiglu, or NULL) */                                                               \
    X(DSI_OP_LINEAR_SWIGLU, 4)                                                                     \
    /* x F32 [R][heads][dim], positions I32 [R], inv_freq F32 [dim/2] -> x (dsi_attr_rope) */      \
    X(DSI_OP_ROPE, 5)                                                                              \
    /* src F32 [R][width], slots I64 [R] -> pages [.][64][row], column (dsi_attr_kv_write); pages  \
     */                                                                                            \
    /* are act here and in the operators of attention, or rows of 8 bits (see there) */            \
    X(DSI_OP_KV_WRITE, 6)                                                                          \
    /* kv_b [heads][nope + v][kv_lora] in these ops may also be two matrices, as GGUF has them: */ \
    /* k_b [heads][kv_lora][nope], v_b [heads][v][kv_lora] */                                      \
    /* q F32 [R][heads][nope + rope], kv_b or k_b -> q' act [R][heads][kv_lora + rope] */          \
    /* (dsi_attr_mla) */                                                                           \
    X(DSI_OP_MLA_ABSORB_Q, 7)                                                                      \
    /* q' act, pages act, batch -> o act [R][heads][kv_lora], absorbed rows only (dsi_attr_mla);   \
     */                                                                                            \
    /* with a third input, selected I32 [R][top_k] out of INDEX_TOPK, rows from position top_k on  \
     */                                                                                            \
    /* see the cached rows listed there alone */                                                   \
    X(DSI_OP_MLA_ATTEND, 8)                                                                        \
    /* o act [R][heads][kv_lora], kv_b or v_b -> y act [R][heads * v], absorbed rows */            \
    /* (dsi_attr_mla) */                                                                           \
    X(DSI_OP_MLA_ABSORB_V, 9)                                                                      \
    /* q F32, kv_b, pages act (or k_b, pages, v_b) -> y act [R][heads * v], expanded rows only */  \
    /* (dsi_attr_mla) */                                                                           \
    X(DSI_OP_MLA_EXPAND_ATTEND, 10)                                                                \
    /* q F32 [R][heads][dim], pages act [.][64][2 * kv_heads * dim], batch -> y (dsi_attr_gqa) */  \
    X(DSI_OP_GQA_ATTEND, 11)                                                                       \
    /* logits F32 [R][experts], optional bias [experts] -> ids I32, weights F32 [R][top_k] */      \
    X(DSI_OP_MOE_ROUTE, 12)                                                                        \
    /* x act, ids, weights, then gate, up, down of each expert, then of the shared expert */       \
    /* -> y F32 [R][hidden] += sum (dsi_attr_moe); optional second output: h act [R][n] of */      \
    /* the shared expert, silu(gate x) * up x */                                                   \
    X(DSI_OP_MOE_FFN, 13)                                                                          \
    /* x F32 [.][n], rows I32 [r] -> y F32 [r][n] */                                               \
    X(DSI_OP_GATHER_ROWS, 14)                                                                      \
    /* optional, for at most 16 rows: MOE_FFN with its router in one op (dsi_attr_moe_routed): */  \
    /* x act, router [experts][hidden], bias [experts] or NULL, then experts as in MOE_FFN */      \
    /* -> y F32 [R][hidden] += sum, logits F32 [R][experts], ids I32, weights F32 [R][top_k], */   \
    /* optional h as in MOE_FFN */                                                                 \
    X(DSI_OP_MOE_ROUTED, 15)                                                                       \
    /* DeepSeek-V3.2 alone, here and below */                                                      \
    /* x F32 [R][n], weight [n], bias [n] -> y F32 [R][n] (dsi_attr_norm); y may be x */           \
    X(DSI_OP_LAYER_NORM, 16)                                                                       \
    /* x F32 [R][heads * dim] -> x: each head through a Hadamard transform times dim^-0.5, then */ \
    /* rounded to E4M3 with multipliers that are powers of two (dsi_attr_index) */                 \
    X(DSI_OP_INDEX_ROUND, 17)                                                                      \
    /* q F32 [R][heads * dim], weights F32 [R][heads], pages act [.][64][dim], batch */            \
    /* -> selected I32 [R][top_k] (dsi_attr_index); rows before position top_k are left alone */   \
    X(DSI_OP_INDEX_TOPK, 18)                                                                       \
    /* optional, for adapters: who has them heeds the low_rank fields of attributes */             \
    /* x act [R][k] -> t F32 [S][rank] = A x, 1 to 4 of them (dsi_attr_low_rank) */                \
    X(DSI_OP_LOW_RANK_DOWN, 20)                                                                    \
    /* t F32 [S][rank] -> y F32 [R][n] += scale * B t, 1 to 4 of them (dsi_attr_low_rank) */       \
    X(DSI_OP_LOW_RANK_UP, 21)

typedef uint32_t dsi_op_kind;
enum {
#define DSI_OP_ENUM(name, code) name = code,
    DSI_OP_LIST(DSI_OP_ENUM)
#undef DSI_OP_ENUM
};

typedef struct dsi_attr_norm {
    uint32_t struct_size;
    float eps;
} dsi_attr_norm;

/* What adapters (LoRA) add to the product of some rows with one weight W [n][k]:
 * y[r] = W x[r] + scale * B (A x[r]). Every part is one adapter, with the rows of the step that are
 * its own. A product with A takes the activations as they are (never A8 or E4M3), everything behind
 * it is F32. Host structs and arrays: valid during op_run. */
typedef struct dsi_low_rank_part {
    /* A [rank][k], B transposed: [rank][n], each F32, F16 or BF16; NULL: nothing */
    const dsi_tensor *a, *b_t;
    float scale;
    uint32_t first, n_rows; /* its rows: rows[first] ... rows[first + n_rows - 1], ascending */
} dsi_low_rank_part;
typedef struct dsi_low_rank {
    uint32_t struct_size, n_parts;
    uint32_t max_rank; /* no rank is larger, in this call and in any after the same op_plan */
    uint32_t reserved;
    const dsi_low_rank_part *parts;
    const int32_t *rows;    /* [S] rows of the step, part by part */
    const int32_t *part_of; /* [R] the part of a row, or -1 */
    dsi_tensor *t;          /* F32 [S][max_rank]: t[i] = A x[rows[i]], from LOW_RANK_DOWN */
} dsi_low_rank;
typedef struct dsi_attr_low_rank {
    uint32_t struct_size, n; /* n: products of the op */
    const dsi_low_rank *products;
} dsi_attr_low_rank;
typedef struct dsi_attr_swiglu {
    uint32_t struct_size, reserved;
    const dsi_low_rank *gate_low_rank, *up_low_rank; /* t is there; NULL: none */
} dsi_attr_swiglu;
enum { DSI_LINEAR_ADD = 1 }; /* y += instead of y = (the residual stream) */
typedef struct dsi_attr_linear {
    uint32_t struct_size;
    uint32_t flags;
} dsi_attr_linear;
typedef struct dsi_attr_rope {
    uint32_t struct_size;
    uint32_t interleaved; /* 1: pairs (2i, 2i+1); 0: pairs (i, i + dim/2) */
    double factor;        /* on cos and sin */
} dsi_attr_rope;
/* Pages of dtype E4M3 or I8 hold rows of 8 bits; ne[0] and stride[1] are then the bytes of a row, a
 * multiple of 16. n_heads runs of head_columns values are coded, what src has behind them is not:
 *   codes   E4M3 or int8, one byte a value, filled up to a multiple of 4
 *   scales  f32, one for every 128 columns of each run: value = code * scale
 *   rest    BF16
 * MLA: one run of kv_lora_rank columns, the rest are the rotated ones: with 512 and 64 of them 656
 * bytes (512 + 4 scales + 64 BF16), as FlashMLA lays out an FP8 cache. Grouped-query attention: the
 * keys, then the values of all KV heads, n_heads = 2 * n_kv_heads, no rest. scale = max |x| / 448,
 * or / 127; 0 below a maximum of 2^-100; NaN where a value is not finite. Products read code *
 * scale rounded to BF16. */
typedef struct dsi_attr_kv_write {
    uint32_t struct_size;
    uint32_t column;  /* first column of the page row that is written; 0 if it is of 8 bits */
    uint32_t n_heads; /* of rows of 8 bits alone, as head_columns is */
    uint32_t head_columns;
} dsi_attr_kv_write;

/* The rows of a ragged batch, for the attention operators. Host arrays: valid during op_run.
 * Row r belongs to sequence seq[r], stands at position[r] and sees the cached rows 0..position[r].
 * Cached row p of sequence s lies in page page_table[s * max_pages + p / 64], row p % 64.
 * Rows of one sequence are adjacent and in ascending position. */
typedef struct dsi_batch {
    uint32_t struct_size;
    uint32_t n_rows, n_seqs, max_pages;
    const int32_t *seq;        /* [n_rows] */
    const int32_t *position;   /* [n_rows] */
    const uint8_t *expanded;   /* [n_rows] 1: the expanded form, 0: the absorbed form */
    const int32_t *page_table; /* [n_seqs][max_pages] */
} dsi_batch;
typedef struct dsi_attr_mla {
    uint32_t struct_size;
    uint32_t n_heads, qk_nope_head_dim, qk_rope_head_dim, v_head_dim, kv_lora_rank;
    float scale;
    uint32_t reserved;
    const dsi_batch *batch;
    const dsi_low_rank *low_rank; /* of kv_b [heads][nope + v][kv_lora], without t; NULL: none */
} dsi_attr_mla;
/* The indexer: which cached rows s the row t sees. score = sum_h weights[h] * relu(q[h] . k[s]), s
 * <= position[t]; the top_k largest win, of equal ones the lower s; they are listed in ascending
 * order. A NaN counts as the largest. (DeepSeek-V3.2-Exp, inference/model.py, Indexer; its positive
 * factor head_dim^-0.5 n_heads^-0.5 does not change the order and is left out.) */
typedef struct dsi_attr_index {
    uint32_t struct_size;
    uint32_t n_heads, head_dim;
    uint32_t reserved;
    const dsi_batch *batch;
} dsi_attr_index;
typedef struct dsi_attr_gqa {
    uint32_t struct_size;
    uint32_t n_heads, n_kv_heads, head_dim;
    float scale;
    uint32_t reserved;
    const dsi_batch *batch;
} dsi_attr_gqa;
typedef struct dsi_attr_route {
    uint32_t struct_size;
    uint32_t method;  /* 1 greedy, 2 group-limited greedy, 3 noaux_tc */
    uint32_t sigmoid; /* 0: softmax */
    uint32_t n_group, topk_group, top_k;
    uint32_t norm; /* divide the weights by their sum */
    float scale;   /* routed_scaling_factor */
} dsi_attr_route;
typedef struct dsi_attr_moe {
    uint32_t struct_size;
    uint32_t n_experts, top_k;
    uint32_t has_shared; /* the last three inputs are the shared expert, weight 1 */
    /* of the shared expert; t is there; NULL: none */
    const dsi_low_rank *gate_low_rank, *up_low_rank;
} dsi_attr_moe;
typedef struct dsi_attr_moe_routed {
    uint32_t struct_size;
    uint32_t reserved;
    dsi_attr_route route;
    dsi_attr_moe moe;
} dsi_attr_moe_routed;
enum { DSI_MOE_ROUTED_ROWS = 16 };

typedef struct dsi_op {
    uint32_t struct_size;
    dsi_op_kind kind;
    uint32_t n_in, n_out;
    const dsi_tensor *const *in; /* an optional input that is absent is NULL */
    dsi_tensor *const *out;
    const void *attr; /* the attribute struct of the operator, NULL if it has none */
} dsi_op;

/* WEIGHTS: written once, then read in every step. */
enum { DSI_BUF_DEVICE = 0, DSI_BUF_HOST_PINNED = 1, DSI_BUF_WEIGHTS = 2 };
enum {
    DSI_CAP_ASYNC = 1,
    DSI_CAP_HOST_IMPORT = 2,
    DSI_CAP_DETERMINISTIC = 4,
    DSI_CAP_EMULATED = 8
};
typedef struct dsi_caps {
    uint32_t struct_size, flags; /* DSI_CAP_* */
    char vendor[32], device[64], arch[32], driver[64];
    uint64_t mem_total, mem_free;
    uint32_t align, n_threads;
} dsi_caps;

/* What the threads, or whatever computes side by side, spent on meeting each other. */
typedef struct dsi_dev_counters {
    uint32_t struct_size;
    uint32_t reserved;
    uint64_t n_meetings;   /* since the device was opened */
    double waited_seconds; /* at them, of all threads together; only while watched */
} dsi_dev_counters;

typedef struct dsi_host { /* services lent to the plug-in; outlives its devices */
    uint32_t struct_size;
    uint32_t reserved;
    void *user;
    void (*log)(void *user, uint32_t level, const char *text);
} dsi_host;

/* The one exported table; fields are only ever appended. "optional" entries may be NULL. */
typedef struct dsi_backend {
    uint32_t struct_size, abi_major, abi_minor, flags;
    const char *id, *version, *build;
    dsi_status (*device_count)(uint32_t *n);
    /* options: "key=value,key=value", e.g. "threads=2,kernels=avx2" */
    dsi_status (*device_open)(uint32_t index, const char *options, const dsi_host *host,
                              dsi_dev **out);
    void (*device_close)(dsi_dev *dev);
    dsi_status (*device_caps)(dsi_dev *dev, dsi_caps *caps);
    const char *(*last_error)(dsi_dev *dev); /* dev NULL: of a failed device_open, this thread */
    const char *(*describe)(dsi_dev *dev);   /* one line for people */
    dsi_status (*buf_alloc)(dsi_dev *dev, uint32_t kind, uint64_t n_bytes, dsi_buf **out);
    /* optional: read-only host memory (mapped weights) used in place; must outlive the buffer */
    dsi_status (*buf_import)(dsi_dev *dev, const void *host, uint64_t n_bytes, dsi_buf **out);
    void (*buf_free)(dsi_buf *buf);
    dsi_status (*write)(dsi_dev_stream *s, dsi_buf *dst, uint64_t offset, const void *src,
                        uint64_t n);
    dsi_status (*read)(dsi_dev_stream *s, void *dst, const dsi_buf *src, uint64_t offset,
                       uint64_t n);
    dsi_status (*stream_new)(dsi_dev *dev, dsi_dev_stream **out);
    void (*stream_free)(dsi_dev_stream *s);
    dsi_status (*stream_sync)(dsi_dev_stream *s, uint32_t timeout_ms);
    /* Says whether the op runs with these shapes and types (R = the largest step), and how many
     * bytes of workspace it wants. Called once per distinct op at load. */
    dsi_status (*op_plan)(dsi_dev *dev, const dsi_op *op, uint64_t *workspace);
    dsi_status (*op_run)(dsi_dev_stream *s, const dsi_op *op, dsi_buf *workspace, uint64_t offset);
    /* optional: write for the rows of a weight, so that each lies near the part of the device that
     * will read it (memory nodes) */
    dsi_status (*write_rows)(dsi_dev_stream *s, dsi_buf *dst, uint64_t offset, const void *src,
                             uint64_t n_rows, uint64_t row_bytes);
    /* optional: the counters so far; watch: times are taken from now on, or no longer */
    dsi_status (*counters)(dsi_dev *dev, uint32_t watch, dsi_dev_counters *counters);
} dsi_backend;
/* A plug-in exports one symbol, dsi_backend_entry_v1, of this type. */
typedef const dsi_backend *(*dsi_backend_entry_v1_fn)(uint32_t host_major, uint32_t host_minor);

#define DSI_HAS(backend, field)                                                                    \
    ((backend)->struct_size >= offsetof(dsi_backend, field) + sizeof((backend)->field) &&          \
     (backend)->field)

#ifdef __cplusplus
}
#endif
#endif
