/* op_bench.h: for tests of single operators of the CPU: a device, tensors of made-up numbers, a
 * ragged batch whose pages lie scattered. */
#ifndef DSI_TESTS_OP_BENCH_H
#define DSI_TESTS_OP_BENCH_H

#include "../kernels/formats.h"
#include "../lib/backend/backends.h"
#include "../lib/backend/cpu.h"
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { MAX_TENSORS = 8, MAX_ROWS = 32, MAX_SEQS = 4, MAX_PAGES = 64 };

/* One device and what was made on it. */
typedef struct bench {
    const dsi_backend *backend;
    dsi_dev *dev;
    dsi_dev_stream *stream;
    dsi_buf *bufs[MAX_TENSORS];
    int n_bufs;
} bench;

static uint64_t random_state;
static inline double uniform(void) {
    random_state = random_state * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    return (double)(random_state >> 40) / (1 << 23) - 1; /* [-1, 1) */
}

static inline bench open_bench(uint32_t threads, const char *kernels) {
    bench b = {.backend = dsi_cpu_backend()};
    char options[64];
    snprintf(options, sizeof options, "threads=%u,kernels=%s", threads, kernels);
    assert_int_equal(b.backend->device_open(0, options, NULL, &b.dev), DSI_OK);
    assert_int_equal(b.backend->stream_new(b.dev, &b.stream), DSI_OK);
    random_state = 7; /* every bench makes the same numbers */
    return b;
}
static inline void close_bench(bench *b) {
    for (int i = 0; i < b->n_bufs; i++) b->backend->buf_free(b->bufs[i]);
    b->backend->stream_free(b->stream);
    b->backend->device_close(b->dev);
}

/* [rows][columns] of random numbers up to `size`. */
static inline dsi_tensor make(bench *b, dsi_dtype dtype, int64_t columns, int64_t rows,
                              double size) {
    dsi_tensor t = {.struct_size = sizeof t, .dtype = dtype, .n_dims = 2};
    t.ne[0] = columns, t.ne[1] = rows, t.ne[2] = t.ne[3] = 1;
    t.stride[0] = 1, t.stride[1] = columns;
    uint64_t n_bytes = (uint64_t)(columns * rows * dsi_element_bytes(dtype));
    assert_int_equal(b->backend->buf_alloc(b->dev, DSI_BUF_DEVICE, n_bytes, &t.buf), DSI_OK);
    b->bufs[b->n_bufs++] = t.buf;
    for (int64_t i = 0; i < columns * rows; i++) {
        float value = (float)(uniform() * size);
        uint16_t narrow = dsi_f32_to_bf16(value);
        if (dtype == DSI_DTYPE_F32)
            memcpy(t.buf->data + 4 * i, &value, 4);
        else
            memcpy(t.buf->data + 2 * i, &narrow, 2);
    }
    return t;
}
static inline double get(const dsi_tensor *t, int64_t row, int64_t column) {
    int64_t i = row * t->stride[1] + column;
    return t->dtype == DSI_DTYPE_F32 ? (double)dsi_load_f32(t->buf->data, i)
                                     : (double)dsi_bf16_to_f32(dsi_load_u16(t->buf->data, i));
}

static inline void run(bench *b, dsi_op_kind kind, const dsi_tensor *const *in, uint32_t n_in,
                       dsi_tensor *out, const void *attr) {
    dsi_op op = {sizeof op, kind, n_in, 1, in, &out, attr};
    uint64_t workspace = 0;
    dsi_buf *buf = NULL;
    assert_int_equal(b->backend->op_plan(b->dev, &op, &workspace), DSI_OK);
    assert_int_equal(b->backend->buf_alloc(b->dev, DSI_BUF_DEVICE, workspace + 64, &buf), DSI_OK);
    memset(buf->data, 0xFF, workspace); /* NaN, if somebody reads before he writes */
    assert_int_equal(b->backend->op_run(b->stream, &op, buf, 0), DSI_OK);
    b->backend->buf_free(buf);
}

/* A batch: pages of the sequences lie scattered. */
typedef struct rows {
    int32_t seq[MAX_ROWS], position[MAX_ROWS], table[MAX_SEQS * MAX_PAGES];
    uint8_t expanded[MAX_ROWS];
    dsi_batch batch;
} rows;

/* lengths[s] cached rows of sequence s, of which the last counts[s] are rows of the batch. */
static inline void make_rows(rows *r, int n_seqs, const int32_t *lengths, const int32_t *counts,
                             bool expanded) {
    uint32_t n = 0;
    for (int s = 0; s < n_seqs; s++)
        for (int32_t i = 0; i < counts[s]; i++, n++) {
            r->seq[n] = s;
            r->position[n] = lengths[s] - counts[s] + i;
            r->expanded[n] = expanded;
        }
    for (int i = 0; i < n_seqs * MAX_PAGES; i++) r->table[i] = n_seqs * MAX_PAGES - 1 - i;
    r->batch = (dsi_batch){sizeof r->batch, n,           (uint32_t)n_seqs, MAX_PAGES,
                           r->seq,          r->position, r->expanded,      r->table};
}

/* The rows of a batch from `first` on, alone. */
static inline dsi_batch part_of(const dsi_batch *b, uint32_t first, uint32_t n) {
    dsi_batch part = *b;
    part.n_rows = n;
    part.seq += first, part.position += first, part.expanded += first;
    return part;
}
static inline dsi_tensor rows_of(const dsi_tensor *t, uint32_t first, uint32_t n) {
    dsi_tensor part = *t;
    part.ne[1] = n;
    part.offset += (uint64_t)(first * t->stride[1] * dsi_element_bytes(t->dtype));
    return part;
}

static inline const char *best_kernels(void) {
    uint32_t have = dsi_isa_detect();
    return have & DSI_ISA_AVX512BF16 ? "avx512bf16"
           : have & DSI_ISA_AVX512   ? "avx512"
           : have & DSI_ISA_AVX2     ? "avx2"
                                     : "ref";
}

static inline void same_bits(const dsi_tensor *a, const dsi_tensor *b, int64_t row,
                             const char *what) {
    int64_t n_bytes = a->ne[0] * dsi_element_bytes(a->dtype);
    for (int64_t r = 0; r < b->ne[1]; r++)
        if (memcmp(a->buf->data + (row + r) * n_bytes, b->buf->data + r * n_bytes,
                   (size_t)n_bytes) != 0)
            fail_msg("%s: row %lld differs", what, (long long)(row + r));
}

#endif
