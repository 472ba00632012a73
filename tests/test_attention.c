/* test_attention.c: the attention operators of the CPU at contexts longer than small checkpoints
 * have: against plain sums in double, and bit by bit between numbers of threads, alone and in
 * company. */
#include "../kernels/formats.h"
#include "../lib/backend/backends.h"
#include "../lib/backend/cpu.h"
#include <math.h>
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
static double uniform(void) {
    random_state = random_state * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    return (double)(random_state >> 40) / (1 << 23) - 1; /* [-1, 1) */
}

static bench open_bench(uint32_t threads, const char *kernels) {
    bench b = {.backend = dsi_cpu_backend()};
    char options[64];
    snprintf(options, sizeof options, "threads=%u,kernels=%s", threads, kernels);
    assert_int_equal(b.backend->device_open(0, options, NULL, &b.dev), DSI_OK);
    assert_int_equal(b.backend->stream_new(b.dev, &b.stream), DSI_OK);
    random_state = 7; /* every bench makes the same numbers */
    return b;
}
static void close_bench(bench *b) {
    for (int i = 0; i < b->n_bufs; i++) b->backend->buf_free(b->bufs[i]);
    b->backend->stream_free(b->stream);
    b->backend->device_close(b->dev);
}

/* [rows][columns] of random numbers up to `size`. */
static dsi_tensor make(bench *b, dsi_dtype dtype, int64_t columns, int64_t rows, double size) {
    dsi_tensor t = {.struct_size = sizeof t, .dtype = dtype, .n_dims = 2};
    t.ne[0] = columns, t.ne[1] = rows, t.ne[2] = t.ne[3] = 1;
    t.stride[0] = 1, t.stride[1] = columns;
    uint64_t bytes = (uint64_t)(columns * rows * dsi_element_bytes(dtype));
    assert_int_equal(b->backend->buf_alloc(b->dev, DSI_BUF_DEVICE, bytes, &t.buf), DSI_OK);
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
static double get(const dsi_tensor *t, int64_t row, int64_t column) {
    int64_t i = row * t->stride[1] + column;
    return t->dtype == DSI_DTYPE_F32 ? (double)dsi_load_f32(t->buf->data, i)
                                     : (double)dsi_bf16_to_f32(dsi_load_u16(t->buf->data, i));
}

static void run(bench *b, dsi_op_kind kind, const dsi_tensor *const *in, uint32_t n_in,
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
static void make_rows(rows *r, int n_seqs, const int32_t *lengths, const int32_t *counts,
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
static dsi_batch part_of(const dsi_batch *b, uint32_t first, uint32_t n) {
    dsi_batch part = *b;
    part.n_rows = n;
    part.seq += first, part.position += first, part.expanded += first;
    return part;
}
static dsi_tensor rows_of(const dsi_tensor *t, uint32_t first, uint32_t n) {
    dsi_tensor part = *t;
    part.ne[1] = n;
    part.offset += (uint64_t)(first * t->stride[1] * dsi_element_bytes(t->dtype));
    return part;
}

/* ---- Attention in double --------------------------------------------------------------------- */

/* sum softmax(q . k) v of row r: d elements of q from column q0 on, keys from k0 on, values from
 * v0 on. */
static void attention(const dsi_batch *b, uint32_t r, const dsi_tensor *q, int64_t q0, int64_t d,
                      const dsi_tensor *pages, int64_t k0, int64_t v0, int64_t dv, double scale,
                      double *out) {
    static double p[MAX_PAGES * DSI_PAGE_ROWS];
    double largest = -INFINITY, sum = 0;
    for (int64_t j = 0; j <= b->position[r]; j++) {
        int64_t row = dsi_cpu_page_row(b, r, j / DSI_PAGE_ROWS) + j % DSI_PAGE_ROWS;
        p[j] = 0;
        for (int64_t i = 0; i < d; i++) p[j] += get(q, r, q0 + i) * get(pages, row, k0 + i) * scale;
        largest = fmax(largest, p[j]);
    }
    for (int64_t i = 0; i < dv; i++) out[i] = 0;
    for (int64_t j = 0; j <= b->position[r]; j++) {
        int64_t row = dsi_cpu_page_row(b, r, j / DSI_PAGE_ROWS) + j % DSI_PAGE_ROWS;
        p[j] = exp(p[j] - largest);
        sum += p[j];
        for (int64_t i = 0; i < dv; i++) out[i] += p[j] * get(pages, row, v0 + i);
    }
    for (int64_t i = 0; i < dv; i++) out[i] /= sum;
}

static const char *best_kernels(void) {
    uint32_t have = dsi_isa_detect();
    return have & DSI_ISA_AVX512BF16 ? "avx512bf16"
           : have & DSI_ISA_AVX512   ? "avx512"
           : have & DSI_ISA_AVX2     ? "avx2"
                                     : "ref";
}

/* ---- MLA, absorbed --------------------------------------------------------------------------- */

enum { HEADS = 19, RANK = 24, ROPE = 8 };
/* Where pieces of the context end (multiples of 1,024), and one that is its own first row. */
static const int32_t LENGTHS[MAX_SEQS] = {2900, 1024, 3074, 1}, COUNTS[MAX_SEQS] = {1, 9, 3, 1};
static const dsi_attr_mla MLA = {sizeof MLA, HEADS, 16, ROPE, 16, RANK, 0.7f, 0, NULL};

static dsi_tensor mla_attend(bench *b, const dsi_batch *batch, dsi_dtype act, dsi_tensor *q,
                             dsi_tensor *pages) {
    *q = make(b, act, HEADS * (RANK + ROPE), batch->n_rows, 1);
    *pages = make(b, act, RANK + ROPE, MAX_SEQS * MAX_PAGES * DSI_PAGE_ROWS, 1);
    dsi_tensor o = make(b, act, HEADS * RANK, batch->n_rows, 0);
    dsi_attr_mla attr = MLA;
    attr.batch = batch;
    run(b, DSI_OP_MLA_ATTEND, (const dsi_tensor *[]){q, pages}, 2, &o, &attr);
    return o;
}

static void same_bits(const dsi_tensor *a, const dsi_tensor *b, int64_t row, const char *what) {
    int64_t bytes = a->ne[0] * dsi_element_bytes(a->dtype);
    for (int64_t r = 0; r < b->ne[1]; r++)
        if (memcmp(a->buf->data + (row + r) * bytes, b->buf->data + r * bytes, (size_t)bytes) != 0)
            fail_msg("%s: row %lld differs", what, (long long)(row + r));
}

static void check_mla(const char *kernels, dsi_dtype act, double bound) {
    rows r;
    make_rows(&r, MAX_SEQS, LENGTHS, COUNTS, false);
    bench b = open_bench(1, kernels);
    dsi_tensor q, pages, o = mla_attend(&b, &r.batch, act, &q, &pages);
    double worst = 0;
    for (uint32_t row = 0; row < r.batch.n_rows; row++)
        for (int64_t h = 0; h < HEADS; h++) {
            double truth[RANK];
            attention(&r.batch, row, &q, h * (RANK + ROPE), RANK + ROPE, &pages, 0, 0, RANK,
                      (double)MLA.scale, truth);
            for (int64_t i = 0; i < RANK; i++)
                worst = fmax(worst, fabs(get(&o, row, h * RANK + i) - truth[i]));
        }
    print_message("mla_attend, %s, %s: worst error %.2g\n", kernels,
                  act == DSI_DTYPE_F32 ? "f32" : "bf16", worst);
    assert_true(worst < bound);
    /* 2 threads: fewer tasks than queries; 7: pieces of the context on different threads */
    for (uint32_t threads = 2; threads <= 7; threads += 5) {
        bench other = open_bench(threads, kernels);
        dsi_tensor q2, pages2, o2 = mla_attend(&other, &r.batch, act, &q2, &pages2);
        same_bits(&o, &o2, 0, "threads");
        for (uint32_t first = 0; first < r.batch.n_rows; first += 2) {
            dsi_batch part = part_of(&r.batch, first, 1);
            dsi_tensor q_part = rows_of(&q2, first, 1), alone = rows_of(&o2, 0, 1);
            dsi_attr_mla attr = MLA;
            attr.batch = &part;
            run(&other, DSI_OP_MLA_ATTEND, (const dsi_tensor *[]){&q_part, &pages2}, 2, &alone,
                &attr);
            same_bits(&o, &alone, first, "a row alone");
        }
        close_bench(&other);
    }
    close_bench(&b);
}

static void test_mla(void **state) {
    (void)state;
    check_mla(best_kernels(), DSI_DTYPE_BF16, 2e-2);
    check_mla(best_kernels(), DSI_DTYPE_F32, 1e-5);
}

/* ---- MLA, expanded --------------------------------------------------------------------------- */

enum { NOPE = 12, VALUE = 20, X_HEADS = 3 };
static const dsi_attr_mla EXPANDED = {
    sizeof EXPANDED, X_HEADS, NOPE, ROPE, VALUE, RANK, 0.5f, 0, NULL};

static dsi_tensor expand_attend(bench *b, const dsi_batch *batch, dsi_tensor in[3]) {
    in[0] = make(b, DSI_DTYPE_F32, X_HEADS * (NOPE + ROPE), batch->n_rows, 1);
    in[1] = make(b, DSI_DTYPE_F32, RANK, X_HEADS * (NOPE + VALUE), 0.3);
    in[2] = make(b, DSI_DTYPE_F32, RANK + ROPE, MAX_SEQS * MAX_PAGES * DSI_PAGE_ROWS, 1);
    dsi_tensor y = make(b, DSI_DTYPE_F32, X_HEADS * VALUE, batch->n_rows, 0);
    dsi_attr_mla attr = EXPANDED;
    attr.batch = batch;
    run(b, DSI_OP_MLA_EXPAND_ATTEND, (const dsi_tensor *[]){&in[0], &in[1], &in[2]}, 3, &y, &attr);
    return y;
}

/* The cached rows of row r's sequence as [keys | values] of one head, where the pages have them. */
static dsi_tensor expand_rows(bench *b, const dsi_batch *batch, uint32_t r, const dsi_tensor in[3],
                              int64_t head) {
    dsi_tensor kv = make(b, DSI_DTYPE_F32, NOPE + ROPE + VALUE, in[2].ne[1], 0);
    for (int64_t j = 0; j <= batch->position[r]; j++) {
        int64_t row = dsi_cpu_page_row(batch, r, j / DSI_PAGE_ROWS) + j % DSI_PAGE_ROWS;
        for (int64_t n = 0; n < NOPE + ROPE + VALUE; n++) {
            bool is_rope = n >= NOPE && n < NOPE + ROPE;
            int64_t w_row = head * (NOPE + VALUE) + (n < NOPE ? n : n - ROPE);
            double sum = is_rope ? get(&in[2], row, RANK + n - NOPE) : 0;
            for (int64_t i = 0; i < RANK && !is_rope; i++)
                sum += get(&in[1], w_row, i) * get(&in[2], row, i);
            float value = (float)sum;
            memcpy(kv.buf->data + 4 * (row * kv.stride[1] + n), &value, 4);
        }
    }
    return kv;
}

static void test_expanded(void **state) {
    (void)state;
    static const int32_t lengths[2] = {700, 130}, counts[2] = {11, 4};
    rows r;
    make_rows(&r, 2, lengths, counts, true);
    bench b = open_bench(1, best_kernels());
    dsi_tensor in[3], y = expand_attend(&b, &r.batch, in);
    double worst = 0;
    for (uint32_t row = 0; row < r.batch.n_rows; row += 5)
        for (int64_t h = 0; h < X_HEADS; h++) {
            double truth[VALUE];
            bench own = {.backend = b.backend, .dev = b.dev};
            dsi_tensor kv = expand_rows(&own, &r.batch, row, in, h);
            attention(&r.batch, row, &in[0], h * (NOPE + ROPE), NOPE + ROPE, &kv, 0, NOPE + ROPE,
                      VALUE, (double)EXPANDED.scale, truth);
            for (int64_t i = 0; i < VALUE; i++)
                worst = fmax(worst, fabs(get(&y, row, h * VALUE + i) - truth[i]));
            b.backend->buf_free(kv.buf);
        }
    print_message("mla_expand_attend: worst error %.2g\n", worst);
    assert_true(worst < 1e-5);
    for (uint32_t threads = 2; threads <= 7; threads += 5) { /* 7: more threads than heads */
        bench other = open_bench(threads, best_kernels());
        dsi_tensor in2[3], y2 = expand_attend(&other, &r.batch, in2);
        same_bits(&y, &y2, 0, "threads");
        close_bench(&other);
    }
    close_bench(&b);
}

/* ---- Grouped queries ------------------------------------------------------------------------- */

enum { KV_HEADS = 2, GROUP = 3, DIM = 20 };
static const dsi_attr_gqa GQA = {sizeof GQA, KV_HEADS *GROUP, KV_HEADS, DIM, 0.4f, 0, NULL};

static dsi_tensor gqa_attend(bench *b, const dsi_batch *batch, dsi_tensor in[2]) {
    in[0] = make(b, DSI_DTYPE_F32, KV_HEADS * GROUP * DIM, batch->n_rows, 1);
    in[1] = make(b, DSI_DTYPE_F32, 2 * KV_HEADS * DIM, MAX_SEQS * MAX_PAGES * DSI_PAGE_ROWS, 1);
    dsi_tensor y = make(b, DSI_DTYPE_F32, KV_HEADS * GROUP * DIM, batch->n_rows, 0);
    dsi_attr_gqa attr = GQA;
    attr.batch = batch;
    run(b, DSI_OP_GQA_ATTEND, (const dsi_tensor *[]){&in[0], &in[1]}, 2, &y, &attr);
    return y;
}

static void test_gqa(void **state) {
    (void)state;
    rows r;
    make_rows(&r, MAX_SEQS, LENGTHS, COUNTS, false);
    bench b = open_bench(1, best_kernels());
    dsi_tensor in[2], y = gqa_attend(&b, &r.batch, in);
    double worst = 0;
    for (uint32_t row = 0; row < r.batch.n_rows; row++)
        for (int64_t h = 0; h < KV_HEADS * GROUP; h++) {
            double truth[DIM];
            attention(&r.batch, row, &in[0], h * DIM, DIM, &in[1], h / GROUP * DIM,
                      (KV_HEADS + h / GROUP) * DIM, DIM, (double)GQA.scale, truth);
            for (int64_t i = 0; i < DIM; i++)
                worst = fmax(worst, fabs(get(&y, row, h * DIM + i) - truth[i]));
        }
    print_message("gqa_attend: worst error %.2g\n", worst);
    assert_true(worst < 1e-5);
    for (uint32_t threads = 2; threads <= 7; threads += 5) { /* 7: more threads than KV heads */
        bench other = open_bench(threads, best_kernels());
        dsi_tensor in2[2], y2 = gqa_attend(&other, &r.batch, in2);
        same_bits(&y, &y2, 0, "threads");
        close_bench(&other);
    }
    close_bench(&b);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_mla), cmocka_unit_test(test_expanded),
                                       cmocka_unit_test(test_gqa)};
    return cmocka_run_group_tests_name("attention", tests, NULL, NULL);
}
