/* gguf.h: a synthetic checkpoint once more, as one GGUF file that llama.cpp opens: the same weights
 * (those of --dtype, as f32), rounded to a type of GGUF as ggml's reference does it. */
#ifndef DSI_BENCH_GGUF_H
#define DSI_BENCH_GGUF_H

#include "../lib/base/pool.h"
#include "../tools/gguf_write.h"
#include "bench.h"
#include "synth.h"

/* ---- gguf_pack.c: rows of numbers. The codes are those of the file format. ---- */
enum { GGUF_F32 = 0, GGUF_Q4_0 = 2, GGUF_Q8_0 = 8, GGUF_Q4_K = 12, GGUF_BF16 = 30 };

/* "q8_0" to GGUF_Q8_0; false: no such name. */
bool gguf_type_find(const char *name, uint32_t *type);
/* `type`, or Q8_0 where its blocks do not divide a row (Q4_K holds 256 numbers in one). */
uint32_t gguf_type_for(uint32_t type, int64_t n_columns);
uint64_t gguf_row_bytes(uint32_t type, int64_t n_columns);
void gguf_pack_row(uint32_t type, const float *row, int64_t n_columns, uint8_t *to);

/* ---- gguf_deepseek.c: keys and tensors of a DeepSeek shape. ---- */

/* How a tensor comes from the matrices of the checkpoint: n_stacked of them as they are, or parts
 * of every head's rows of kv_b_proj: the keys' transposed, the values' as they are. */
enum { GGUF_WHOLE, GGUF_HEAD_KEYS, GGUF_HEAD_VALUES };
typedef struct gguf_tensor {
    char name[64];
    uint32_t type, n_dims, cut;
    int64_t dims[3];               /* columns first, as the format wants it */
    size_t first, n_stacked, step; /* matrices first, first + step, ... of the checkpoint's list */
    uint64_t n_bytes;
} gguf_tensor;
typedef struct gguf_list {
    gguf_tensor *tensors;
    size_t n, capacity;
    bool no_memory;
    uint64_t n_bytes;
} gguf_list;

bool gguf_list_make(const synth_shape *shape, const synth_list *from, uint32_t type,
                    gguf_list *list);
void gguf_list_free(gguf_list *list);
/* Writes the keys behind the header and returns their number. */
uint64_t gguf_write_keys(FILE *file, const synth_shape *shape, const char *type_name);

/* ---- gguf.c ---- */

/* Fills `to` with piece `piece` (SYNTH_PIECE bytes, the last is shorter) of a tensor of the list;
 * any thread. */
typedef void (*gguf_fill)(const void *context, size_t tensor, uint64_t piece, uint8_t *to,
                          uint64_t n_bytes);
typedef struct gguf_source {
    const synth_shape *shape;
    const synth_list *list;
    dsi_pool *pool;
    gguf_fill fill;
    const void *context;
} gguf_source;
/* Writes options->out (or model-TYPE.gguf in it, if it does not end in .gguf). An exit code. */
int gguf_write(const gguf_source *source, const bench_options *options);

#endif
