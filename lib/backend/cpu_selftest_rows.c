/* cpu_selftest_rows.c: the cases of kernels that work on one row, and the tools of all cases. A
 * bf16 result is held against the f32 reference before rounding. */
#include "cpu_selftest_cases.h"
#include <stdio.h>

/* ---- Tools ----------------------------------------------------------------------------------- */

static uint64_t random_bits(dsi_selftest *t) {
    uint64_t bits = dsi_mix64(t->random);
    t->random += DSI_MIX64_STEP;
    return bits;
}
double dsi_selftest_uniform(dsi_selftest *t) {
    return (double)(random_bits(t) >> 11) * 0x1p-52 - 1;
}
int64_t dsi_selftest_below(dsi_selftest *t, int64_t n) {
    return (int64_t)((random_bits(t) >> 32) * (uint64_t)n >> 32);
}

void dsi_selftest_case(dsi_selftest *t, const char *format, ...) {
    va_list list;
    va_start(list, format);
    vsnprintf(t->where, sizeof t->where, format, list);
    va_end(list);
    t->used = 0;
    t->random = 1;
}

void *dsi_selftest_take(dsi_selftest *t, int64_t n_bytes) {
    uint8_t *room = t->room + t->used;
    t->used += ((uint64_t)n_bytes + 63) / 64 * 64;
    return memset(room, 0xFF, (size_t)n_bytes);
}

static void fail(dsi_selftest *t, const char *what, int64_t i, int64_t j, double got,
                 double expected, double bound) {
    if (t->failed) return;
    t->failed = true;
    snprintf(t->why, sizeof t->why, "%s: %s[%lld][%lld] is %.9g, should be %.9g +- %.2g", t->where,
             what, (long long)i, (long long)j, got, expected, bound);
}

void dsi_selftest_near(dsi_selftest *t, double y, double truth, double bound, const char *what,
                       int64_t i, int64_t j) {
    bool fits = isnan(truth)   ? isnan(y)
                : isinf(truth) ? y == truth
                               : isfinite(y) && fabs(y - truth) <= bound;
    if (!fits) fail(t, what, i, j, y, truth, bound);
}

void dsi_selftest_same(dsi_selftest *t, float y, float again, const char *what, int64_t i,
                       int64_t j) {
    if ((isnan(y) && isnan(again)) || dsi_f32_bits(y) == dsi_f32_bits(again)) return;
    fail(t, what, i, j, (double)y, (double)again, 0);
}

void dsi_selftest_untouched(dsi_selftest *t, const float *at, int64_t n) {
    for (int64_t i = 0; i < n; i++)
        if (dsi_f32_bits(at[i]) != 0xFFFFFFFFu)
            fail(t, "memory that is not the result's", i, 0, (double)at[i], NAN, 0);
}

/* ---- rms_norm, swiglu ------------------------------------------------------------------------ */

enum { ROW = 77, CANARIES = 16 };

/* n numbers of this size, or smaller, of both signs. */
static float *row_of(dsi_selftest *t, int64_t n, double size) {
    float *x = dsi_selftest_take(t, n * 4);
    for (int64_t i = 0; i < n; i++) x[i] = (float)(dsi_selftest_uniform(t) * size);
    return x;
}

static bool writes_bf16(const dsi_selftest *t) { return strstr(t->line->stem, "bf16") != NULL; }

static void *result_row(dsi_selftest *t) { return dsi_selftest_take(t, (ROW + CANARIES) * 4); }

static void compare_row(dsi_selftest *t, const void *y, const float *truth, const double *slack) {
    dsi_dtype dtype = writes_bf16(t) ? DSI_DTYPE_BF16 : DSI_DTYPE_F32;
    for (int64_t i = 0; i < ROW; i++) {
        double expected = (double)truth[i], bound = t->line->tolerance * fabs(expected) + slack[i];
        if (dtype == DSI_DTYPE_BF16) {
            bound += 0x1p-134; /* half a step of denormal bf16 */
            /* Rounding carries what lies above the largest bf16 to infinity. */
            if (fabs(expected) >= 0x1.FFp127) expected = copysign(INFINITY, expected);
        }
        dsi_selftest_near(t, dsi_selftest_get(dtype, y, i), expected, bound, "y", i, 0);
    }
    uint32_t left[CANARIES];
    memcpy(left, (const uint8_t *)y + ROW * dsi_element_bytes(dtype), sizeof left);
    for (int i = 0; i < CANARIES; i++)
        if (left[i] != 0xFFFFFFFFu) fail(t, "memory behind the row", i, 0, left[i], NAN, 0);
}

static void rms_norm_case(dsi_selftest *t, dsi_dtype w_dtype, double size, const char *name) {
    dsi_selftest_case(t, "n=%d, w %s, %s", ROW, w_dtype == DSI_DTYPE_BF16 ? "bf16" : "f32", name);
    float *x = row_of(t, ROW, size), *truth = dsi_selftest_take(t, ROW * 4);
    if (size == 0) x[5] = -0.0f;
    uint8_t *w = dsi_selftest_take(t, ROW * 4 + 4);
    double slack[ROW];
    w += 2; /* weights may lie at any byte */
    for (int64_t i = 0; i < ROW; i++) {
        dsi_selftest_put(w_dtype, w, i, 1 + dsi_selftest_uniform(t));
        slack[i] = 4 * 0x1p-149;
    }
    void *y = result_row(t);
    ((dsi_rms_norm_fn)t->fn)(x, w, w_dtype, y, ROW, 1e-6f);
    dsi_rms_norm_f32__ref(x, w, w_dtype, truth, ROW, 1e-6f);
    compare_row(t, y, truth, slack);
}

void dsi_selftest_rms_norm(dsi_selftest *t) {
    for (int n = 0; n < 2; n++) {
        dsi_dtype w_dtype = n == 0 ? DSI_DTYPE_BF16 : DSI_DTYPE_F32;
        rms_norm_case(t, w_dtype, 3, "plain");
        rms_norm_case(t, w_dtype, 1e-3, "small");
        rms_norm_case(t, w_dtype, 0, "zero");
        rms_norm_case(t, w_dtype, 1e-40, "denormal");
        rms_norm_case(t, w_dtype, 1e15, "large");
        rms_norm_case(t, w_dtype, NAN, "NaN");
    }
}

static void swiglu_case(dsi_selftest *t, double gate_size, double up_size, const char *name) {
    dsi_selftest_case(t, "n=%d, %s", ROW, name);
    float *gate = row_of(t, ROW, gate_size), *up = row_of(t, ROW, up_size);
    float *truth = dsi_selftest_take(t, ROW * 4);
    if (gate_size == 200) gate[0] = INFINITY, gate[17] = -INFINITY, gate[33] = NAN, up[50] = NAN;
    void *y = result_row(t);
    ((dsi_swiglu_fn)t->fn)(gate, up, y, ROW);
    dsi_swiglu_f32__ref(gate, up, truth, ROW);
    double slack[ROW];
    for (int64_t i = 0; i < ROW; i++) {
        /* Steps of denormals: of exp(-|gate|), of silu(gate), of the product. */
        slack[i] = 0x1p-149 * (1 + fabs((double)up[i]) + fabs((double)gate[i] * (double)up[i]));
        if (!isfinite(slack[i])) slack[i] = 0;
    }
    compare_row(t, y, truth, slack);
}

void dsi_selftest_swiglu(dsi_selftest *t) {
    swiglu_case(t, 8, 4, "plain");
    swiglu_case(t, 0, 4, "zero");
    swiglu_case(t, 1e-40, 4, "denormal");
    swiglu_case(t, 200, 4, "large gates, infinite, NaN");
    swiglu_case(t, 8, 1e38, "large");
}

/* ---- cast ------------------------------------------------------------------------------------ */

/* Upper halves of every sign and exponent, NaN too, with the lower halves where rounding turns. */
void dsi_selftest_cast(dsi_selftest *t) {
    static const uint32_t low[] = {0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF};
    enum { N = 65536 / 16 + 5 };
    for (size_t l = 0; l < sizeof low / sizeof low[0]; l++) {
        dsi_selftest_case(t, "lower halves 0x%04x", low[l]);
        float *x = dsi_selftest_take(t, N * 4);
        uint16_t *y = dsi_selftest_take(t, N * 2 + 64), *truth = dsi_selftest_take(t, N * 2 + 64);
        for (uint32_t i = 0; i < N; i++) {
            uint32_t bits = (i * 16 + i % 16) << 16 | low[l];
            memcpy(&x[i], &bits, sizeof bits); /* a float assignment might quieten NaN */
        }
        ((dsi_cast_fn)t->fn)(x, y, N);
        dsi_cast_bf16__ref(x, truth, N);
        for (int64_t i = 0; i < N + 32; i++)
            if (y[i] != truth[i]) fail(t, "the bits of y", i, 0, (double)y[i], (double)truth[i], 0);
    }
}

/* ---- quantize_a8 ----------------------------------------------------------------------------- */

/* Four groups: plain with ties, zero, below what counts, not finite. */
void dsi_selftest_quantize(dsi_selftest *t) {
    enum { K = 3 * DSI_BLOCK + 41 };
    const bool bf16 = strstr(t->line->stem, "bf16") != NULL;
    const dsi_dtype dtype = bf16 ? DSI_DTYPE_BF16 : DSI_DTYPE_F32;
    for (int n = 0; n < 4; n++) {
        const int64_t group = n % 2 ? K : DSI_BLOCK;
        dsi_selftest_case(t, "k=%d group=%lld, %s", K, (long long)group, n / 2 ? "odd" : "plain");
        void *x = dsi_selftest_take(t, K * 4);
        for (int64_t i = 0; i < K; i++) {
            double value = i < DSI_BLOCK ? floor(dsi_selftest_uniform(t) * 126) + 0.5 : 0;
            if (n / 2 == 0 || i >= 3 * DSI_BLOCK) value = i == 0 ? 127 : value + (i % 7 == 3);
            if (n / 2 && i / DSI_BLOCK == 2) value = 0x1p-101;
            dsi_selftest_put(dtype, x, i, value);
        }
        if (n / 2) dsi_selftest_put(dtype, x, K - 1, n == 2 ? NAN : -INFINITY);
        const int64_t bytes = dsi_a8_bytes(K);
        uint8_t *y = dsi_selftest_take(t, bytes + 64), *truth = dsi_selftest_take(t, bytes + 64);
        ((dsi_quantize_fn)t->fn)(x, y, K, group);
        ((dsi_quantize_fn)t->line->ref)(x, truth, K, group);
        for (int64_t i = 0; i < bytes + 64; i++)
            if (y[i] != truth[i]) fail(t, "the bytes of the record", i, 0, y[i], truth[i], 0);
    }
}

/* ---- decode ---------------------------------------------------------------------------------- */

/* Every code under three scales, and a block cut short. */
void dsi_selftest_decode(dsi_selftest *t) {
    enum { K = 6 * DSI_BLOCK + 41, BEHIND = 32 };
    dsi_selftest_case(t, "k=%d, every code", K);
    uint8_t *w = dsi_selftest_take(t, K);
    float *scale = dsi_selftest_take(t, 7 * 4);
    uint16_t *y = dsi_selftest_take(t, (K + BEHIND) * 2);
    uint16_t *truth = dsi_selftest_take(t, (K + BEHIND) * 2);
    for (int64_t i = 0; i < K; i++) w[i] = (uint8_t)i;
    for (int64_t i = 0; i < 7; i++)
        scale[i] = (float)ldexp(1 + dsi_selftest_uniform(t) / 2, i < 4 ? -6 : -130);
    ((dsi_decode_fn)t->fn)(w, scale, y, K);
    ((dsi_decode_fn)t->line->ref)(w, scale, truth, K);
    for (int64_t i = 0; i < K; i++)
        dsi_selftest_same(t, dsi_bf16_to_f32(y[i]), dsi_bf16_to_f32(truth[i]), "y", i, 0);
    dsi_selftest_untouched(t, (const float *)(const void *)(y + K + K % 2), BEHIND / 2 - 1);
}

/* ---- rope, moe_route ------------------------------------------------------------------------- */

void dsi_selftest_rope(dsi_selftest *t) {
    static const int64_t positions[] = {0, 1, 4095, 163839};
    enum { HALF = 19, WIDTH = 2 * HALF + 1 }; /* two heads, and one element between them */
    for (int n = 0; n < 4; n++) {
        double factor = n % 2 ? 1.2 : 1;
        dsi_selftest_case(t, "half=%d position=%lld", HALF, (long long)positions[n]);
        float *x = row_of(t, 2 * WIDTH, 3), *inv_freq = dsi_selftest_take(t, HALF * 4);
        for (int64_t i = 0; i < HALF; i++) inv_freq[i] = (float)pow(10000, -(double)i / HALF);
        float *truth = dsi_selftest_take(t, 2 * WIDTH * 4);
        memcpy(truth, x, 2 * WIDTH * 4);
        dsi_rope_args args = {x, WIDTH, 2, inv_freq, HALF, positions[n], factor};
        ((dsi_rope_fn)t->fn)(&args);
        args.x = truth;
        ((dsi_rope_fn)t->line->ref)(&args);
        for (int64_t i = 0; i < 2 * WIDTH; i++)
            dsi_selftest_near(t, (double)x[i], (double)truth[i], t->line->tolerance * 6 * factor,
                              "x", i, 0);
    }
}

static void route_case(dsi_selftest *t, uint32_t method, bool sigmoid, bool ties) {
    enum { EXPERTS = 48, TOP = 5 };
    dsi_selftest_case(t, "method=%u, %s%s", method, sigmoid ? "sigmoid" : "softmax",
                      ties ? ", ties" : "");
    float *logits = row_of(t, EXPERTS, 3), *bias = row_of(t, EXPERTS, 0.2);
    /* Groups with 0 for a mask would be taken before choices below 0. */
    for (int64_t e = 0; e < EXPERTS; e++) {
        bias[e] -= 2;
        if (ties) logits[e] = (float)dsi_selftest_below(t, 3), bias[e] = -2;
    }
    dsi_route_args args = {.logits = logits,
                           .bias = method == 3 ? bias : NULL,
                           .n_experts = EXPERTS,
                           .top_k = TOP,
                           .n_group = 6,
                           .topk_group = 3,
                           .method = method,
                           .sigmoid = sigmoid,
                           .norm = sigmoid,
                           .scale = 2.5f};
    dsi_route_args truth = args;
    args.experts = dsi_selftest_take(t, TOP * 4), args.weights = dsi_selftest_take(t, TOP * 4);
    truth.experts = dsi_selftest_take(t, TOP * 4), truth.weights = dsi_selftest_take(t, TOP * 4);
    ((dsi_route_fn)t->fn)(&args);
    ((dsi_route_fn)t->line->ref)(&truth);
    for (int64_t i = 0; i < TOP; i++) {
        dsi_selftest_near(t, args.experts[i], truth.experts[i], 0, "experts", i, 0);
        dsi_selftest_near(t, (double)args.weights[i], (double)truth.weights[i],
                          t->line->tolerance * fabs((double)truth.weights[i]), "weights", i, 0);
    }
}

void dsi_selftest_route(dsi_selftest *t) {
    for (uint32_t method = 1; method <= 3; method++)
        for (int n = 0; n < 4; n++) route_case(t, method, n % 2, n / 2);
}
