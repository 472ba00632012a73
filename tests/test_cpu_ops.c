/* test_cpu_ops.c: linear, linear_swiglu and moe_ffn of the CPU back-end called alone: every row of
 * a call has the bits it has alone, with any number of threads and any columns beside it; sums are
 * those of plain C. Shapes no model has: odd widths, more rows than a kernel takes at once. */
#include "../lib/backend/backends.h"
#include "../lib/backend/cpu_tasks.h"
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { HIDDEN = 136, INTER = 70, SHARED = 150, EXPERTS = 5, TOP_K = 3, MAX_ROWS = 420 };
enum { MEMORY = 1 << 23 };

static const dsi_backend *cpu;

typedef struct device {
    dsi_dev *dev;
    dsi_dev_stream *stream;
    dsi_buf *memory, *workspace;
    uint8_t *bytes;
    uint64_t used;
} device;

static device open_device_with(uint32_t n_threads, const char *more) {
    device d = {0};
    char options[64];
    snprintf(options, sizeof options, "threads=%u%s", n_threads, more);
    assert_int_equal(cpu->device_open(0, options, NULL, &d.dev), DSI_OK);
    assert_int_equal(cpu->stream_new(d.dev, &d.stream), DSI_OK);
    assert_int_equal(cpu->buf_alloc(d.dev, 0, MEMORY, &d.memory), DSI_OK);
    d.bytes = d.memory->data;
    return d;
}
static device open_device(uint32_t n_threads) { return open_device_with(n_threads, ""); }
static void close_device(device *d) {
    cpu->buf_free(d->workspace);
    cpu->buf_free(d->memory);
    cpu->stream_free(d->stream);
    cpu->device_close(d->dev);
}

static uint64_t random_state;
static float uniform(void) {
    random_state = random_state * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    return (float)((double)(random_state >> 40) * 0x1p-23 - 1);
}

/* A matrix in the device's memory; of F32 with numbers in it. */
static dsi_tensor take(device *d, dsi_dtype dtype, int64_t rows, int64_t columns, int64_t stride) {
    dsi_tensor t = {.struct_size = sizeof t,
                    .dtype = dtype,
                    .n_dims = 2,
                    .ne = {columns, rows},
                    .stride = {1, stride},
                    .buf = d->memory,
                    .offset = d->used};
    uint64_t bytes = (uint64_t)(rows * stride) * dsi_dtype_bytes(dtype);
    assert_true(d->used + bytes <= MEMORY);
    for (uint64_t i = 0; dtype == DSI_DTYPE_F32 && i < bytes / 4; i++) {
        float value = uniform();
        memcpy(d->bytes + d->used + i * 4, &value, 4);
    }
    d->used += (bytes + 63) / 64 * 64;
    return t;
}

static void run(device *d, const dsi_op *op) {
    uint64_t need = 0;
    assert_int_equal(cpu->op_plan(d->dev, op, &need), DSI_OK);
    cpu->buf_free(d->workspace);
    assert_int_equal(cpu->buf_alloc(d->dev, 0, need + 1, &d->workspace), DSI_OK);
    memset(d->workspace->data, 0xFF, need);
    assert_int_equal(cpu->op_run(d->stream, op, d->workspace, 0), DSI_OK);
}

static float *row_of(const dsi_tensor *t, int64_t row) { return dsi_cpu_at(t, row, 0); }
static dsi_tensor row_alone(const dsi_tensor *t, int64_t row) {
    dsi_tensor view = *t;
    view.ne[1] = 1;
    view.offset += (uint64_t)(row * t->stride[1]) * dsi_dtype_bytes(t->dtype);
    return view;
}
static double dot(const float *x, const dsi_tensor *w, int64_t n) {
    double sum = 0;
    for (int64_t k = 0; k < w->ne[0]; k++) sum += (double)x[k] * (double)row_of(w, n)[k];
    return sum;
}
static double silu(double g) { return g / (1 + exp(-g)); }
static void assert_near(double ours, double truth) {
    if (!(fabs(ours - truth) <= 1e-4 * (1 + fabs(truth)))) fail_msg("%g is not %g", ours, truth);
}

/* ---- linear: three outputs, the second with a bias, the third added to what is there --------- */

static void linear_rows(device *d, int64_t m, int64_t y_dtype, bool add) {
    static const int64_t widths[] = {300, 17, 1};
    d->used = 0, random_state = 5;
    dsi_tensor x = take(d, DSI_DTYPE_F32, m, HIDDEN, HIDDEN + 3), w[3], y[3], alone[3], bias;
    const dsi_tensor *in[7] = {&x};
    dsi_tensor *out[3], *out_alone[3];
    for (int i = 0; i < 3; i++) {
        w[i] = take(d, DSI_DTYPE_F32, widths[i], HIDDEN, HIDDEN);
        y[i] = take(d, (dsi_dtype)y_dtype, m, widths[i], widths[i] + 5);
        memset(dsi_cpu_data(&y[i]), 0, (size_t)(m * (widths[i] + 5) * dsi_dtype_bytes(y[i].dtype)));
        alone[i] = take(d, (dsi_dtype)y_dtype, 1, widths[i], widths[i]);
        in[1 + 2 * i] = &w[i], in[2 + 2 * i] = NULL;
        out[i] = &y[i], out_alone[i] = &alone[i];
    }
    bias = take(d, DSI_DTYPE_F32, 1, widths[1], widths[1]);
    in[4] = &bias;
    dsi_attr_linear attr = {sizeof attr, add ? DSI_LINEAR_ADD : 0};
    dsi_op op = {sizeof op, DSI_OP_LINEAR, 6, 3, in, out, &attr};
    run(d, &op);
    for (int64_t r = 0; r < m; r += 1 + m / 7) {
        dsi_tensor x_alone = row_alone(&x, r);
        for (int i = 0; i < 3; i++)
            memset(dsi_cpu_data(&alone[i]), 0, (size_t)(widths[i] * dsi_dtype_bytes(y[i].dtype)));
        in[0] = &x_alone;
        run(d, &(dsi_op){sizeof op, DSI_OP_LINEAR, 6, 3, in, out_alone, &attr});
        for (int i = 0; i < 3; i++) {
            size_t bytes = (size_t)widths[i] * dsi_dtype_bytes(y[i].dtype);
            assert_memory_equal(row_of(&y[i], r), row_of(&alone[i], 0), bytes);
            for (int64_t n = 0; y_dtype == DSI_DTYPE_F32 && n < widths[i]; n++) {
                double truth = dot(row_of(&x, r), &w[i], n);
                if (i == 1) truth += (double)row_of(&bias, 0)[n];
                assert_near((double)row_of(&y[i], r)[n], truth);
            }
        }
    }
}

static const int64_t row_counts[] = {1, 2, 7, 16, 17, 192, 193, MAX_ROWS};
enum { N_COUNTS = sizeof row_counts / sizeof row_counts[0] };

static void test_linear(void **state) {
    (void)state;
    for (uint32_t n_threads = 1; n_threads <= 3; n_threads++) {
        device d = open_device(n_threads);
        for (int i = 0; i < N_COUNTS; i++) {
            linear_rows(&d, row_counts[i], DSI_DTYPE_F32, false);
            linear_rows(&d, row_counts[i], DSI_DTYPE_F32, true);
            linear_rows(&d, row_counts[i], DSI_DTYPE_BF16, false);
        }
        close_device(&d);
    }
}

/* A bias of the wrong width, a weight of another input, more outputs than there may be. */
static void test_linear_refused(void **state) {
    (void)state;
    device d = open_device(1);
    dsi_tensor x = take(&d, DSI_DTYPE_F32, 2, 8, 8), w = take(&d, DSI_DTYPE_F32, 4, 8, 8);
    dsi_tensor y = take(&d, DSI_DTYPE_F32, 2, 4, 4), bias = take(&d, DSI_DTYPE_F32, 1, 4, 4);
    const dsi_tensor *in[11] = {&x, &w, &bias, &w, NULL, &w, NULL, &w, NULL, &w, NULL};
    dsi_tensor *out[5] = {&y, &y, &y, &y, &y};
    uint64_t bytes;
    dsi_op op = {sizeof op, DSI_OP_LINEAR, 9, 4, in, out, NULL};
    assert_int_equal(cpu->op_plan(d.dev, &op, &bytes), DSI_OK);
    op.n_in = 11, op.n_out = 5;
    assert_int_equal(cpu->op_plan(d.dev, &op, &bytes), DSI_E_UNSUPPORTED);
    op.n_in = 1, op.n_out = 1;
    assert_int_equal(cpu->op_plan(d.dev, &op, &bytes), DSI_E_UNSUPPORTED);
    op.n_in = 3, bias.ne[0] = 5;
    assert_int_equal(cpu->op_plan(d.dev, &op, &bytes), DSI_E_UNSUPPORTED);
    bias.ne[0] = 4, w.ne[0] = 7;
    assert_int_equal(cpu->op_plan(d.dev, &op, &bytes), DSI_E_UNSUPPORTED);
    close_device(&d);
}

/* ---- linear_swiglu and moe_ffn ----------------------------------------------------------------
 */

static void swiglu_rows(device *d, int64_t m) {
    d->used = 0, random_state = 7;
    dsi_tensor x = take(d, DSI_DTYPE_F32, m, HIDDEN, HIDDEN);
    dsi_tensor gate = take(d, DSI_DTYPE_F32, SHARED, HIDDEN, HIDDEN);
    dsi_tensor up = take(d, DSI_DTYPE_F32, SHARED, HIDDEN, HIDDEN);
    dsi_tensor h = take(d, DSI_DTYPE_F32, m, SHARED, SHARED + 1);
    dsi_tensor alone = take(d, DSI_DTYPE_F32, 1, SHARED, SHARED), *out = &h, *out_alone = &alone;
    const dsi_tensor *in[] = {&x, &gate, &up};
    run(d, &(dsi_op){sizeof(dsi_op), DSI_OP_LINEAR_SWIGLU, 3, 1, in, &out, NULL});
    for (int64_t r = 0; r < m; r += 1 + m / 5) {
        dsi_tensor x_alone = row_alone(&x, r);
        in[0] = &x_alone;
        run(d, &(dsi_op){sizeof(dsi_op), DSI_OP_LINEAR_SWIGLU, 3, 1, in, &out_alone, NULL});
        assert_memory_equal(row_of(&h, r), row_of(&alone, 0), SHARED * 4);
        for (int64_t n = 0; n < SHARED; n++)
            assert_near((double)row_of(&h, r)[n],
                        silu(dot(row_of(&x, r), &gate, n)) * dot(row_of(&x, r), &up, n));
    }
}
static void test_swiglu(void **state) {
    (void)state;
    for (uint32_t n_threads = 1; n_threads <= 3; n_threads++) {
        device d = open_device(n_threads);
        for (int i = 0; i < N_COUNTS; i++) swiglu_rows(&d, row_counts[i]);
        close_device(&d);
    }
}

typedef struct mixture {
    dsi_tensor x, ids, weights, y, start, alone, experts[3 * (EXPERTS + 1)];
    const dsi_tensor *in[3 + 3 * (EXPERTS + 1)];
    bool has_shared;
} mixture;

static void compute(device *d, mixture *t, const dsi_tensor *x, const dsi_tensor *ids,
                    const dsi_tensor *weights, dsi_tensor *y) {
    dsi_attr_moe attr = {sizeof attr, EXPERTS, TOP_K, t->has_shared, NULL, NULL};
    t->in[0] = x, t->in[1] = ids, t->in[2] = weights;
    uint32_t n_in = 3 + 3 * (EXPERTS + (t->has_shared ? 1 : 0));
    run(d, &(dsi_op){sizeof(dsi_op), DSI_OP_MOE_FFN, n_in, 1, t->in, &y, &attr});
}

static double expert_of(const mixture *t, int e, const double *h, int64_t n) {
    double sum = 0;
    const dsi_tensor *down = &t->experts[3 * e + 2];
    for (int64_t k = 0; k < down->ne[0]; k++) sum += h[k] * (double)row_of(down, n)[k];
    return sum;
}

/* Row r in plain C. */
static void check_truth(const mixture *t, int64_t r) {
    double y[HIDDEN], h[SHARED];
    const int32_t *id = (const int32_t *)(const void *)row_of(&t->ids, r);
    for (int64_t n = 0; n < HIDDEN; n++) y[n] = (double)row_of(&t->start, r)[n];
    for (int k = 0; k < TOP_K + (t->has_shared ? 1 : 0); k++) {
        int e = k < TOP_K ? id[k] : EXPERTS;
        double weight = k < TOP_K ? (double)row_of(&t->weights, r)[k] : 1;
        const dsi_tensor *gate = &t->experts[3 * e], *up = gate + 1;
        for (int64_t n = 0; n < gate->ne[1]; n++)
            h[n] = silu(dot(row_of(&t->x, r), gate, n)) * dot(row_of(&t->x, r), up, n);
        for (int64_t n = 0; n < HIDDEN; n++) y[n] += weight * expert_of(t, e, h, n);
    }
    for (int64_t n = 0; n < HIDDEN; n++) {
        double ours = (double)row_of(&t->y, r)[n];
        if (!(fabs(ours - y[n]) <= 1e-3 * (1 + fabs(y[n])))) fail_msg("%g is not %g", ours, y[n]);
    }
}

/* crowded: all rows want the same experts, so that one has more rows than a kernel takes at once,
 * and some have none. */
static void moe_rows(device *d, int64_t m, bool crowded, bool has_shared) {
    d->used = 0, random_state = 11;
    mixture t = {.has_shared = has_shared};
    t.x = take(d, DSI_DTYPE_F32, m, HIDDEN, HIDDEN + 8);
    t.ids = take(d, DSI_DTYPE_I32, m, TOP_K, TOP_K + 1);
    t.weights = take(d, DSI_DTYPE_F32, m, TOP_K, TOP_K);
    t.start = take(d, DSI_DTYPE_F32, m, HIDDEN, HIDDEN);
    t.y = take(d, DSI_DTYPE_F32, m, HIDDEN, HIDDEN);
    t.alone = take(d, DSI_DTYPE_F32, 1, HIDDEN, HIDDEN);
    memcpy(dsi_cpu_data(&t.y), dsi_cpu_data(&t.start), (size_t)(m * HIDDEN * 4));
    for (int64_t r = 0; r < m; r++)
        for (int32_t k = 0; k < TOP_K; k++)
            ((int32_t *)(void *)row_of(&t.ids, r))[k] = k + (crowded ? 1 : (int32_t)(r % 3));
    for (int e = 0; e <= EXPERTS; e++) {
        int64_t inter = e < EXPERTS ? INTER : SHARED;
        for (int i = 0; i < 3; i++) {
            dsi_tensor *w = &t.experts[3 * e + i];
            *w = i < 2 ? take(d, DSI_DTYPE_F32, inter, HIDDEN, HIDDEN)
                       : take(d, DSI_DTYPE_F32, HIDDEN, inter, inter);
            t.in[3 + 3 * e + i] = w;
        }
    }
    compute(d, &t, &t.x, &t.ids, &t.weights, &t.y);
    for (int64_t r = 0; r < m; r += 1 + m / 5) {
        dsi_tensor x = row_alone(&t.x, r), ids = row_alone(&t.ids, r);
        dsi_tensor weights = row_alone(&t.weights, r);
        memcpy(dsi_cpu_data(&t.alone), row_of(&t.start, r), HIDDEN * 4);
        compute(d, &t, &x, &ids, &weights, &t.alone);
        assert_memory_equal(row_of(&t.y, r), row_of(&t.alone, 0), HIDDEN * 4);
        check_truth(&t, r);
    }
}
/* As on a machine of several memory nodes: threads 0.. of node 0, the last one of node 1. */
static void two_nodes(device *d, uint32_t n_threads) {
    for (uint32_t phase = 0; phase < DSI_CPU_PHASES; phase++)
        d->dev->shares[phase * n_threads + n_threads - 1].node = 1;
}

static void test_moe(void **state) {
    (void)state;
    for (uint32_t n = 1; n <= 5; n++) {
        uint32_t n_threads = n <= 3 ? n : n - 2;
        device d = open_device(n_threads);
        if (n > 3) two_nodes(&d, n_threads);
        for (int i = 0; i < N_COUNTS; i++)
            for (int kind = 0; kind < 4; kind++) moe_rows(&d, row_counts[i], kind & 1, kind & 2);
        close_device(&d);
    }
}

/* The experts with their router as one op and as three: the same logits, choice and sum. */
static void routed_rows(device *d, int64_t m, bool has_bias, bool has_shared) {
    d->used = 0, random_state = (uint64_t)m;
    dsi_attr_moe_routed attr = {sizeof attr,
                                0,
                                {sizeof attr.route, 3, 1, 1, 1, TOP_K, 1, 2.5f},
                                {sizeof attr.moe, EXPERTS, TOP_K, has_shared, NULL, NULL}};
    dsi_tensor x = take(d, DSI_DTYPE_F32, m, HIDDEN, HIDDEN + 8), w[3 * (EXPERTS + 1)];
    dsi_tensor router = take(d, DSI_DTYPE_F32, EXPERTS, HIDDEN, HIDDEN);
    dsi_tensor bias = take(d, DSI_DTYPE_F32, 1, EXPERTS, EXPERTS), of[2][4];
    const dsi_tensor *in[3 + 3 * (EXPERTS + 1)] = {&x, &router, has_bias ? &bias : NULL};
    bias.n_dims = 1;
    for (int i = 0; i < 3 * (EXPERTS + 1); i++) {
        int64_t inter = i < 3 * EXPERTS ? INTER : SHARED;
        w[i] = i % 3 < 2 ? take(d, DSI_DTYPE_F32, inter, HIDDEN, HIDDEN)
                         : take(d, DSI_DTYPE_F32, HIDDEN, inter, inter);
        in[3 + i] = &w[i];
    }
    for (int way = 0; way < 2; way++) {
        random_state = 5; /* y begins as the same numbers */
        of[way][0] = take(d, DSI_DTYPE_F32, m, HIDDEN, HIDDEN);
        of[way][1] = take(d, DSI_DTYPE_F32, m, EXPERTS, EXPERTS);
        of[way][2] = take(d, DSI_DTYPE_I32, m, TOP_K, TOP_K);
        of[way][3] = take(d, DSI_DTYPE_F32, m, TOP_K, TOP_K);
    }
    dsi_tensor *a = of[0], *b = of[1], *logits = &a[1];
    uint32_t n_in = 3 + 3 * (EXPERTS + (has_shared ? 1 : 0));
    run(d, &(dsi_op){sizeof(dsi_op), DSI_OP_MOE_ROUTED, n_in, 4, in,
                     (dsi_tensor *[]){&b[0], &b[1], &b[2], &b[3]}, &attr});
    run(d, &(dsi_op){sizeof(dsi_op), DSI_OP_LINEAR, 2, 1, in, &logits, NULL});
    run(d, &(dsi_op){sizeof(dsi_op), DSI_OP_MOE_ROUTE, has_bias ? 2 : 1, 2,
                     (const dsi_tensor *[]){logits, &bias}, (dsi_tensor *[]){&a[2], &a[3]},
                     &attr.route});
    in[1] = &a[2], in[2] = &a[3];
    run(d,
        &(dsi_op){sizeof(dsi_op), DSI_OP_MOE_FFN, n_in, 1, in, (dsi_tensor *[]){&a[0]}, &attr.moe});
    for (int i = 0; i < 4; i++)
        assert_memory_equal(dsi_cpu_data(&a[i]), dsi_cpu_data(&b[i]), (size_t)(m * a[i].ne[0] * 4));
}
static void test_moe_routed(void **state) {
    (void)state;
    for (uint32_t n = 1; n <= 5; n++) {
        uint32_t n_threads = n <= 3 ? n : n - 2;
        device d = open_device(n_threads);
        if (n > 3) two_nodes(&d, n_threads);
        for (int64_t m = 1; m <= DSI_MOE_ROUTED_ROWS; m++)
            for (int kind = 0; kind < 4; kind++) routed_rows(&d, m, kind & 1, kind & 2);
        close_device(&d);
    }
}

/* ---- Activations of 8 bits ---------------------------------------------------------------------
 */

/* Random weights of I8 with a multiplier of F32 per row or per block of 128 x 128. */
static dsi_tensor take_i8(device *d, int64_t rows, int64_t columns, uint32_t scale_kind) {
    dsi_tensor w = take(d, DSI_DTYPE_I8, rows, columns, columns);
    for (int64_t i = 0; i < rows * columns; i++)
        ((int8_t *)dsi_cpu_data(&w))[i] = (int8_t)(uniform() * 127);
    bool channel = scale_kind == DSI_SCALE_CHANNEL;
    int64_t n = channel ? rows : dsi_ceil_div(rows, DSI_BLOCK) * dsi_ceil_div(columns, DSI_BLOCK);
    dsi_tensor scale = take(d, DSI_DTYPE_F32, 1, n, n);
    for (int64_t i = 0; i < n; i++) row_of(&scale, 0)[i] = 0.01f + 0.001f * (float)(i % 7);
    w.scale = d->memory, w.scale_offset = scale.offset;
    w.scale_kind = scale_kind, w.scale_dtype = DSI_DTYPE_F32;
    return w;
}
static double weight_i8(const dsi_tensor *w, int64_t n, int64_t k) {
    const float *scale = (const float *)(const void *)(w->scale->data + w->scale_offset);
    int64_t at = n;
    if (w->scale_kind == DSI_SCALE_BLOCK_128)
        at = n / DSI_BLOCK * dsi_ceil_div(w->ne[0], DSI_BLOCK) + k / DSI_BLOCK;
    return ((const int8_t *)dsi_cpu_data(w))[n * w->ne[0] + k] * (double)scale[at];
}

/* Two products of one x whose weights want different records, and one that wants x as it is. Each
 * number is off by at most half a step of its group, which is at most half of the row's. */
static void a8_rows(device *d, int64_t m, bool a8) {
    d->used = 0, random_state = 13;
    dsi_tensor x = take(d, DSI_DTYPE_F32, m, HIDDEN, HIDDEN + 3), w[3], y[3], alone[3];
    w[0] = take_i8(d, 300, HIDDEN, DSI_SCALE_CHANNEL);
    w[1] = take_i8(d, 131, HIDDEN, DSI_SCALE_BLOCK_128);
    w[2] = take(d, DSI_DTYPE_F32, 9, HIDDEN, HIDDEN);
    const dsi_tensor *in[6] = {&x, &w[0], NULL, &w[1], NULL, &w[2]};
    dsi_tensor *out[3], *out_alone[3];
    for (int i = 0; i < 3; i++) {
        y[i] = take(d, DSI_DTYPE_F32, m, w[i].ne[1], w[i].ne[1]);
        alone[i] = take(d, DSI_DTYPE_F32, 1, w[i].ne[1], w[i].ne[1]);
        out[i] = &y[i], out_alone[i] = &alone[i];
    }
    run(d, &(dsi_op){sizeof(dsi_op), DSI_OP_LINEAR, 6, 3, in, out, NULL});
    for (int64_t r = 0; r < m; r += 1 + m / 5) {
        dsi_tensor x_alone = row_alone(&x, r);
        in[0] = &x_alone;
        run(d, &(dsi_op){sizeof(dsi_op), DSI_OP_LINEAR, 6, 3, in, out_alone, NULL});
        for (int i = 0; i < 3; i++)
            assert_memory_equal(row_of(&y[i], r), row_of(&alone[i], 0), (size_t)w[i].ne[1] * 4);
        double most = 0, worst = 0;
        for (int64_t k = 0; k < HIDDEN; k++) most = fmax(most, fabs((double)row_of(&x, r)[k]));
        for (int i = 0; i < 2; i++)
            for (int64_t n = 0; n < w[i].ne[1]; n++) {
                double truth = 0, size = 0, ours = (double)row_of(&y[i], r)[n];
                for (int64_t k = 0; k < HIDDEN; k++) {
                    truth += (double)row_of(&x, r)[k] * weight_i8(&w[i], n, k);
                    size += fabs(weight_i8(&w[i], n, k));
                }
                double off = fabs(ours - truth);
                if (!(off <= size * most / 254 * 1.01)) fail_msg("%g is not %g", ours, truth);
                worst = fmax(worst, off / size);
            }
        /* The records were used if asked for, and only then. */
        assert_true(a8 ? worst > 1e-5 : worst < 1e-6);
        assert_near((double)row_of(&y[2], r)[8], dot(row_of(&x, r), &w[2], 8));
    }
}

/* Experts of I8: routed ones per row, the shared one per block. */
static void a8_moe_rows(device *d, int64_t m) {
    d->used = 0, random_state = 17;
    mixture t = {.has_shared = true};
    t.x = take(d, DSI_DTYPE_BF16, m, HIDDEN, HIDDEN);
    for (int64_t i = 0; i < m * HIDDEN; i++)
        ((uint16_t *)dsi_cpu_data(&t.x))[i] = (uint16_t)(0x3F00 + i * 37 % 256 + (i % 3 << 15));
    t.ids = take(d, DSI_DTYPE_I32, m, TOP_K, TOP_K);
    t.weights = take(d, DSI_DTYPE_F32, m, TOP_K, TOP_K);
    t.y = take(d, DSI_DTYPE_F32, m, HIDDEN, HIDDEN);
    t.start = take(d, DSI_DTYPE_F32, m, HIDDEN, HIDDEN);
    t.alone = take(d, DSI_DTYPE_F32, 1, HIDDEN, HIDDEN);
    memcpy(dsi_cpu_data(&t.y), dsi_cpu_data(&t.start), (size_t)(m * HIDDEN * 4));
    for (int64_t r = 0; r < m; r++)
        for (int32_t k = 0; k < TOP_K; k++)
            ((int32_t *)(void *)row_of(&t.ids, r))[k] = k + (int32_t)(r % 3);
    for (int e = 0; e <= EXPERTS; e++) {
        int64_t inter = e < EXPERTS ? INTER : SHARED;
        uint32_t kind = e < EXPERTS ? DSI_SCALE_CHANNEL : DSI_SCALE_BLOCK_128;
        for (int i = 0; i < 3; i++) {
            t.experts[3 * e + i] = take_i8(d, i < 2 ? inter : HIDDEN, i < 2 ? HIDDEN : inter, kind);
            t.in[3 + 3 * e + i] = &t.experts[3 * e + i];
        }
    }
    compute(d, &t, &t.x, &t.ids, &t.weights, &t.y);
    for (int64_t r = 0; r < m; r += 1 + m / 5) {
        dsi_tensor x = row_alone(&t.x, r), ids = row_alone(&t.ids, r);
        dsi_tensor weights = row_alone(&t.weights, r);
        memcpy(dsi_cpu_data(&t.alone), row_of(&t.start, r), HIDDEN * 4);
        compute(d, &t, &x, &ids, &weights, &t.alone);
        assert_memory_equal(row_of(&t.y, r), row_of(&t.alone, 0), HIDDEN * 4);
    }
}

/* The same with and without a8 differ by what rounding to 8 bits costs, and by something. */
static void test_a8(void **state) {
    (void)state;
    for (uint32_t n_threads = 1; n_threads <= 3; n_threads++) {
        device d = open_device_with(n_threads, ",activations=a8"), plain = open_device(n_threads);
        for (int i = 0; i < N_COUNTS; i++) {
            a8_rows(&d, row_counts[i], true);
            a8_rows(&plain, row_counts[i], false);
            a8_moe_rows(&d, row_counts[i]);
            a8_moe_rows(&plain, row_counts[i]);
            assert_int_equal(d.used, plain.used); /* what differs in memory is y */
            double off = 0, size = 0;
            for (uint64_t at = 0; at + 4 <= d.used; at += 4) {
                float a, b;
                memcpy(&a, d.bytes + at, 4);
                memcpy(&b, plain.bytes + at, 4);
                if (memcmp(&a, &b, 4) == 0) continue;
                off += ((double)a - (double)b) * ((double)a - (double)b),
                    size += (double)b * (double)b;
            }
            assert_true(off > 0 && off < 1e-3 * size);
        }
        close_device(&d);
        close_device(&plain);
    }
}

/* ---- dealing ----------------------------------------------------------------------------------
 */

/* Every task is taken once, whoever asks and in whatever order. */
static void test_deal(void **state) {
    (void)state;
    static dsi_cpu_share shares[4];
    for (int64_t n_tasks = 0; n_tasks < 40; n_tasks++)
        for (uint32_t n_threads = 1; n_threads <= 4; n_threads++) {
            int taken[40] = {0};
            int64_t task, n = 0;
            dsi_cpu_deal_evenly(shares, n_threads, n_tasks);
            random_state = (uint64_t)n_tasks;
            for (; dsi_cpu_next_task(shares, (uint32_t)(n * n % 7) % n_threads, n_threads, &task);
                 n++) {
                assert_in_range(task, 0, n_tasks - 1);
                taken[task]++;
            }
            assert_int_equal(n, n_tasks);
            for (int64_t i = 0; i < n_tasks; i++) assert_int_equal(taken[i], 1);
            for (uint32_t t = 0; t < n_threads; t++)
                assert_int_equal(dsi_cpu_task_ahead(shares, t), -1);
        }
}

/* Four threads on two nodes: who is done helps on its own node first. Rows of a matrix are cut
 * where dsi_pool_share cuts them, at what kernels compute at once. */
static void test_nodes(void **state) {
    (void)state;
    static dsi_cpu_share shares[4];
    for (uint32_t t = 0; t < 4; t++) shares[t].node = t / 2;
    for (uint32_t thread = 0; thread < 4; thread++) {
        int64_t task, n = 0;
        dsi_cpu_deal_evenly(shares, 4, 40);
        for (; dsi_cpu_next_task(shares, thread, 4, &task); n++)
            assert_int_equal(task / 20, n < 20 ? thread / 2 : 1 - thread / 2);
        assert_int_equal(n, 40);
    }
    uint32_t thread = 0;
    assert_int_equal(dsi_cpu_node_rows(shares, 4, 2048, &thread), 1024);
    assert_int_equal(thread, 2);
    assert_int_equal(dsi_cpu_node_rows(shares, 4, 2048, &thread), 2048);
    assert_int_equal(thread, 4);
    thread = 0;
    assert_int_equal(dsi_cpu_node_rows(shares, 3, 100, &thread), 80); /* 68 rounded up */
    thread = 0;
    assert_int_equal(dsi_cpu_node_rows(shares, 3, 5, &thread), 5);
}

int main(void) {
    cpu = dsi_cpu_backend();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_linear),     cmocka_unit_test(test_linear_refused),
        cmocka_unit_test(test_swiglu),     cmocka_unit_test(test_moe),
        cmocka_unit_test(test_a8),         cmocka_unit_test(test_deal),
        cmocka_unit_test(test_moe_routed), cmocka_unit_test(test_nodes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
