/* moe.c: `dsi-bench moe`: the routed experts of one DeepSeek-V3 layer as an operator alone, FP8, 32
 * of them, 8 per row: what other libraries offer as an operator too (bench/peers). */
#include "bench.h"

#include "../kernels/kernels.h"
#include "../lib/base/sys.h"
#include "../lib/internal.h"
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

enum { HIDDEN = 7168, INTER = 2048, EXPERTS = 32, TOP_K = 8, MATRICES = 3, CHOICES = 8 };
enum { BLOCK = 128, ENOUGH = 40, FILL = 1 << 20 };
static const double seconds_at_most = 1.5; /* of one number of rows */

typedef struct bench_moe_work {
    const dsi_backend *backend;
    dsi_dev *dev;
    dsi_dev_stream *stream;
    dsi_buf *weights, *rows, *workspace;
    dsi_tensor experts[MATRICES * EXPERTS], x, ids, shares, y;
    const dsi_tensor *in[3 + MATRICES * EXPERTS];
    uint64_t random, weights_bytes;
} work;

static uint64_t draw(work *w) { return dsi_mix64(w->random++); }

static dsi_tensor matrix(dsi_dtype dtype, int64_t rows, int64_t columns, dsi_buf *buf,
                         uint64_t *at) {
    dsi_tensor t = {.struct_size = sizeof t,
                    .dtype = dtype,
                    .n_dims = 2,
                    .ne = {columns, rows},
                    .stride = {1, columns},
                    .buf = buf,
                    .offset = *at};
    *at += (uint64_t)(rows * columns) * dsi_dtype_bytes(dtype);
    *at = (*at + 63) / 64 * 64;
    return t;
}

/* E4M3 codes of moderate size, scales near 1/100. */
static dsi_status fill_weights(work *w, uint64_t n_codes, uint64_t n_bytes) {
    uint8_t *block = malloc(FILL);
    float scale = 0.01f;
    dsi_status status = block ? DSI_OK : DSI_E_NOMEM;
    for (uint64_t at = 0; status == DSI_OK && at < n_bytes; at += FILL) {
        uint64_t n = n_bytes - at < FILL ? n_bytes - at : FILL, codes = 0;
        if (at < n_codes) codes = n_codes - at < n ? n_codes - at : n;
        for (uint64_t i = 0; i + 8 <= FILL && i < codes; i += 8) {
            uint64_t bits = draw(w) & UINT64_C(0xbfbfbfbfbfbfbfbf);
            memcpy(block + i, &bits, 8);
        }
        for (uint64_t i = codes; i + 4 <= n; i += 4) memcpy(block + i, &scale, 4);
        status = w->backend->write(w->stream, w->weights, at, block, n);
    }
    free(block);
    return status;
}

static dsi_status make_weights(work *w) {
    uint64_t one = (uint64_t)HIDDEN * INTER, n_scales = one / BLOCK / BLOCK;
    uint64_t n_codes = one * MATRICES * EXPERTS, at = 0;
    w->weights_bytes = n_codes + n_scales * MATRICES * EXPERTS * sizeof(float);
    dsi_status status =
        w->backend->buf_alloc(w->dev, DSI_BUF_DEVICE, w->weights_bytes, &w->weights);
    if (status == DSI_OK) status = fill_weights(w, n_codes, w->weights_bytes);
    for (uint64_t i = 0; i < MATRICES * EXPERTS; i++) {
        bool down = i % MATRICES == 2;
        dsi_tensor *t = &w->experts[i];
        *t = matrix(DSI_DTYPE_E4M3, down ? HIDDEN : INTER, down ? INTER : HIDDEN, w->weights, &at);
        t->scale = w->weights;
        t->scale_offset = n_codes + i * n_scales * sizeof(float);
        t->scale_kind = DSI_SCALE_BLOCK_128;
        t->scale_dtype = DSI_DTYPE_F32;
        w->in[3 + i] = t;
    }
    return status;
}

/* Rows of activations and CHOICES sets of ascending experts for them, drawn at random. */
static dsi_status make_rows(work *w, uint32_t n, uint64_t ids_at[CHOICES]) {
    uint64_t at = 0;
    w->x = matrix(DSI_DTYPE_BF16, n, HIDDEN, NULL, &at);
    w->y = matrix(DSI_DTYPE_F32, n, HIDDEN, NULL, &at);
    w->shares = matrix(DSI_DTYPE_F32, n, TOP_K, NULL, &at);
    for (int c = 0; c < CHOICES; c++) {
        ids_at[c] = at;
        w->ids = matrix(DSI_DTYPE_I32, n, TOP_K, NULL, &at);
    }
    uint8_t *bytes = calloc(1, at);
    if (!bytes) return DSI_E_NOMEM;
    for (uint64_t i = 0; i < (uint64_t)n * HIDDEN; i++) { /* between 1/2 and 1, both signs */
        uint16_t half = (uint16_t)(0x3f00 | (draw(w) & 0x807f));
        memcpy(bytes + w->x.offset + 2 * i, &half, 2);
    }
    for (uint64_t i = 0; i < (uint64_t)n * TOP_K; i++) {
        float share = 1.0f / TOP_K;
        memcpy(bytes + w->shares.offset + 4 * i, &share, 4);
    }
    for (uint64_t r = 0; r < (uint64_t)CHOICES * n; r++) {
        uint64_t c = r / n, row = r % n, left = TOP_K;
        for (int32_t e = 0; e < EXPERTS; e++) { /* each of the rest with equal chance */
            if (draw(w) % (uint64_t)(EXPERTS - e) >= left) continue;
            memcpy(bytes + ids_at[c] + (row * TOP_K + (TOP_K - left)) * 4, &e, 4);
            left--;
        }
    }
    dsi_status status = w->backend->buf_alloc(w->dev, DSI_BUF_DEVICE, at, &w->rows);
    if (status == DSI_OK) status = w->backend->write(w->stream, w->rows, 0, bytes, at);
    w->x.buf = w->y.buf = w->shares.buf = w->ids.buf = w->rows;
    free(bytes);
    return status;
}

/* Median seconds of one call with n rows, every call with other experts. */
static dsi_status time_rows(work *w, uint32_t n, double *seconds) {
    uint64_t ids_at[CHOICES], need = 0;
    double times[ENOUGH], begin = dsi_sys_seconds();
    size_t n_times = 0;
    dsi_attr_moe attr = {sizeof attr, EXPERTS, TOP_K, 0, NULL, NULL};
    dsi_tensor *out[] = {&w->y};
    dsi_op op = {sizeof op, DSI_OP_MOE_FFN, 3 + MATRICES * EXPERTS, 1, w->in, out, &attr};
    dsi_status status = make_rows(w, n, ids_at);
    w->in[0] = &w->x, w->in[1] = &w->ids, w->in[2] = &w->shares;
    if (status == DSI_OK) status = w->backend->op_plan(w->dev, &op, &need);
    if (status == DSI_OK)
        status = w->backend->buf_alloc(w->dev, DSI_BUF_DEVICE, need + 1, &w->workspace);
    for (int i = -CHOICES; status == DSI_OK && n_times < ENOUGH; i++) { /* warm first */
        w->ids.offset = ids_at[(i + CHOICES) % CHOICES];
        double start = dsi_sys_seconds();
        status = w->backend->op_run(w->stream, &op, w->workspace, 0);
        if (status == DSI_OK) status = w->backend->stream_sync(w->stream, 0);
        if (i >= 0 || n >= BLOCK) times[n_times++] = dsi_sys_seconds() - start;
        if (n_times >= 2 && dsi_sys_seconds() - begin > seconds_at_most) break;
    }
    *seconds = bench_median(times, n_times);
    w->backend->buf_free(w->workspace);
    w->backend->buf_free(w->rows);
    w->workspace = w->rows = NULL;
    return status;
}

/* Different experts among n rows, on average. */
static double experts_read(uint32_t n) {
    double missed = 1;
    for (uint32_t i = 0; i < n; i++) missed *= 1 - (double)TOP_K / EXPERTS;
    return EXPERTS * (1 - missed);
}

static void print_row(const bench_options *o, uint32_t n, double seconds, bool first) {
    double one = 3.0 * HIDDEN * INTER;
    double gbs = experts_read(n) * one / seconds / 1e9;
    double gflops = 2.0 * n * TOP_K * one / seconds / 1e9;
    if (o->format == BENCH_JSON)
        printf("%s{\"rows\": %u, \"ms\": %.4f, \"gbs\": %.3f, \"gflops\": %.2f}", first ? "" : ", ",
               n, seconds * 1e3, gbs, gflops);
    else
        printf(o->format == BENCH_CSV ? "%u,%.4f,%.3f,%.2f\n" : "| %u | %.2f | %.1f | %.0f |\n", n,
               seconds * 1e3, gbs, gflops);
}

static bool usage_ok(const bench_options *o) {
    uint32_t n, i = 0;
    const dsi_kernel_line *lines = dsi_kernel_lines(&n);
    while (o->isa && i < n && strcmp(strstr(lines[i].symbol, "__") + 2, o->isa) != 0) i++;
    if (i == n) bench_say("--isa is \"%s\"; there is no such set of kernels here", o->isa);
    for (uint32_t j = 0; j < o->m.n; j++) {
        if (o->m.values[j] >= 1 && o->m.values[j] <= 4096) continue;
        bench_say("--m has %u; moe takes 1 to 4096 rows", o->m.values[j]);
        return false;
    }
    return i < n;
}

int bench_moe(const bench_options *o) {
    if (!usage_ok(o)) return BENCH_USAGE;
    work w = {.random = o->seed};
    dsi_error error = {0};
    char options[64];
    w.backend = dsi_backend_find(NULL, &error);
    snprintf(options, sizeof options, "threads=%u,kernels=%s", bench_threads(o),
             o->isa ? o->isa : "auto");
    if (!o->isa) *strchr(options, ',') = 0;
    dsi_status status = w.backend->device_open(0, options, NULL, &w.dev);
    if (status == DSI_OK) status = w.backend->stream_new(w.dev, &w.stream);
    if (status == DSI_OK) status = make_weights(&w);
    if (status == DSI_OK && o->format == BENCH_MD)
        printf("| rows | ms | GB/s of weights | GFLOP/s |\n|---|---|---|---|\n");
    if (status == DSI_OK && o->format == BENCH_JSON)
        printf("{\"schema\": 1, \"device\": \"%s\", \"moe\": [", w.backend->describe(w.dev));
    for (uint32_t i = 0; status == DSI_OK && i < o->m.n; i++) {
        double seconds = 0;
        uint32_t n = o->m.values[i];
        status = time_rows(&w, n, &seconds);
        if (status == DSI_OK) print_row(o, n, seconds, i == 0);
    }
    if (status == DSI_OK && o->format == BENCH_JSON) printf("]}\n");
    if (status != DSI_OK) bench_say("moe: %s", dsi_status_text(status));
    w.backend->buf_free(w.weights);
    w.backend->stream_free(w.stream);
    if (w.dev) w.backend->device_close(w.dev);
    return status == DSI_OK ? BENCH_OK : status == DSI_E_ARG ? BENCH_USAGE : BENCH_ENVIRONMENT;
}
