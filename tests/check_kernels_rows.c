/* check_kernels_rows.c: the checks of the kernels that work on one row: rms_norm, swiglu, cast,
 * quantize, rope and moe_route. A bf16 result is held against the f32 reference before rounding. */
#include "check.h"

enum { SLOT_X, SLOT_W, SLOT_Y, SLOT_UP };

static const int64_t lengths[] = {0,  1,  2,  3,  7,  8,   9,   15,  16,  17,   31,   32,  33,
                                  63, 64, 65, 95, 96, 127, 128, 129, 192, 1408, 1536, 7168};
enum { LENGTHS = sizeof lengths / sizeof lengths[0] };

static float *floats(check_run *run, int slot, int64_t n, double size) {
    float *x = check_buffer(run, slot, n * 4, 0);
    for (int64_t i = 0; i < n; i++) x[i] = (float)(check_uniform(run) * size);
    return x;
}

static bool writes_bf16(const check_run *run) { return strstr(run->kernel->stem, "bf16") != NULL; }

/* Element i of the result y of the stem's type against the f32 truth; a slack for the denormal
 * range comes from the caller. The reference itself must be exact (c = 0). */
static void compare_result(check_run *run, const void *y, float truth, double slack, int64_t i) {
    double c = run->kernel->c, value, bound = c * fabs((double)truth) + slack;
    if (writes_bf16(run)) {
        value = check_get(CHECK_BF16, y, i);
        bound += 0x1p-134; /* half a step of denormal bf16 */
        if (run->kernel->is_ref) truth = dsi_bf16_to_f32(dsi_f32_to_bf16(truth));
        /* Rounding carries what lies above the largest bf16 to infinity. */
        else if (fabsf(truth) >= 0x1.FFp127f)
            truth = copysignf(INFINITY, truth);
    } else {
        value = check_get(CHECK_F32, y, i);
    }
    if (run->kernel->is_ref) bound = 0;
    check_near(run, value, (double)truth, bound, "y", i, 0);
}

/* The same bits when the buffers lie elsewhere (other alignments, other ends). */
static void compare_bits(check_run *run, const void *y, const void *again, int64_t n) {
    enum check_format format = writes_bf16(run) ? CHECK_BF16 : CHECK_F32;
    for (int64_t i = 0; i < n; i++)
        check_same(run, (float)check_get(format, y, i), (float)check_get(format, again, i),
                   "the same row elsewhere", i, 0);
}

/* ---- rms_norm ---- */

static void rms_norm_case(check_run *run, int64_t n, dsi_dtype w_dtype, int special) {
    static const char *const name[] = {"plain", "zeros", "denormal", "large", "NaN", "inf", "tiny"};
    static const double size[] = {3, 0, 1e-40, 1e15, 1, 1, 1e-3};
    if (check_done(run)) return;
    check_case(run, "n=%lld, w %s, %s, seed %llx", (long long)n,
               w_dtype == DSI_DTYPE_BF16 ? "bf16" : "f32", name[special],
               (unsigned long long)run->random);
    bool bf16 = w_dtype == DSI_DTYPE_BF16;
    float *x = floats(run, SLOT_X, n, size[special]), eps = check_below(run, 2) ? 1e-6f : 1e-5f;
    if (n > 0 && special == 4) x[check_below(run, n)] = NAN;
    if (n > 0 && special == 5) x[check_below(run, n)] = INFINITY;
    void *w = check_buffer(run, SLOT_W, n * (bf16 ? 2 : 4), check_below(run, 4));
    for (int64_t i = 0; i < n; i++)
        check_put(bf16 ? CHECK_BF16 : CHECK_F32, w, i, 1 + check_uniform(run));
    int64_t y_bytes = n * (writes_bf16(run) ? 2 : 4);
    void *y = check_buffer(run, SLOT_Y, y_bytes, 0), *again = check_room(y_bytes);
    float *truth = check_room(n * 4);
    dsi_rms_norm_fn fn = (dsi_rms_norm_fn)run->kernel->fn;
    fn(x, w, w_dtype, y, n, eps);
    dsi_rms_norm_f32__ref(x, w, w_dtype, truth, n, eps);
    for (int64_t i = 0; i < n; i++) compare_result(run, y, truth[i], 4 * 0x1p-149, i);
    fn(check_copy(x, n * 4), check_copy(w, n * (bf16 ? 2 : 4)), w_dtype, again, n, eps);
    compare_bits(run, y, again, n);
    check_buffers_intact(run);
}

void check_rms_norm(check_run *run) {
    for (int i = 0; i < LENGTHS; i++) {
        for (int special = 0; special < 7; special++) {
            rms_norm_case(run, lengths[i], DSI_DTYPE_BF16, special);
            rms_norm_case(run, lengths[i], DSI_DTYPE_F32, special);
        }
    }
}

/* ---- swiglu ---- */

static void swiglu_case(check_run *run, int64_t n, int special) {
    static const char *const name[] = {"plain", "zeros", "denormal", "large gates", "NaN", "inf"};
    static const double gate_size[] = {8, 0, 1e-40, 200, 8, 8};
    if (check_done(run)) return;
    check_case(run, "n=%lld, %s, seed %llx", (long long)n, name[special],
               (unsigned long long)run->random);
    float *gate = floats(run, SLOT_X, n, gate_size[special]), *up = floats(run, SLOT_UP, n, 4);
    if (n > 0 && special == 4) (check_below(run, 2) ? gate : up)[check_below(run, n)] = NAN;
    if (n > 0 && special == 5)
        (check_below(run, 2) ? gate : up)[check_below(run, n)] =
            check_below(run, 2) ? INFINITY : -INFINITY;
    int64_t y_bytes = n * (writes_bf16(run) ? 2 : 4);
    void *y = check_buffer(run, SLOT_Y, y_bytes, 0), *again = check_room(y_bytes);
    float *truth = check_room(n * 4);
    dsi_swiglu_fn fn = (dsi_swiglu_fn)run->kernel->fn;
    fn(gate, up, y, n);
    dsi_swiglu_f32__ref(gate, up, truth, n);
    for (int64_t i = 0; i < n; i++) {
        /* Steps of denormals: of exp(-|gate|), of silu(gate), of the product. */
        double slack = 0x1p-149 * (1 + fabs((double)up[i]) + fabs((double)gate[i] * (double)up[i]));
        compare_result(run, y, truth[i], isfinite(slack) ? slack : 0, i);
    }
    fn(check_copy(gate, n * 4), check_copy(up, n * 4), again, n);
    compare_bits(run, y, again, n);
    check_buffers_intact(run);
}

void check_swiglu(check_run *run) {
    for (int i = 0; i < LENGTHS; i++)
        for (int special = 0; special < 6; special++) swiglu_case(run, lengths[i], special);
}

/* ---- cast ---- */

static void compare_cast(check_run *run, const float *x, int64_t n) {
    uint16_t *y = check_buffer(run, SLOT_Y, n * 2, 0), *truth = check_room(n * 2);
    ((dsi_cast_fn)run->kernel->fn)(x, y, n);
    ((dsi_cast_fn)run->kernel->ref)(x, truth, n);
    for (int64_t i = 0; i < n; i++)
        if (y[i] != truth[i])
            check_fail(run, "cast of 0x%08x is 0x%04x, should be 0x%04x", dsi_f32_bits(x[i]), y[i],
                       truth[i]);
    check_buffers_intact(run);
}

void check_cast(check_run *run) {
    for (int i = 0; i < LENGTHS && !check_done(run); i++) {
        check_case(run, "n=%lld", (long long)lengths[i]);
        float *x = floats(run, SLOT_X, lengths[i], 100);
        compare_cast(run, x, lengths[i]);
    }
    /* All upper halves (every sign, exponent, NaN) with the lower halves where rounding turns. */
    static const uint32_t low[] = {0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF};
    for (size_t l = 0; l < sizeof low / sizeof low[0] && !check_done(run); l++) {
        check_case(run, "all upper halves with the lower half 0x%04x", low[l]);
        float *x = check_buffer(run, SLOT_X, 65536 * 4, 0);
        for (uint32_t high = 0; high < 65536; high++) {
            uint32_t bits = high << 16 | low[l];
            memcpy(&x[high], &bits, sizeof bits); /* a float assignment might quieten NaN */
        }
        compare_cast(run, x, 65536);
    }
}

/* ---- quantize ---- */

enum quantize_case { Q_PLAIN, Q_ZERO, Q_TINY, Q_HUGE, Q_TIES, Q_NAN, Q_INF, Q_CASES };
static const char *const quantize_name[] = {"plain", "zero", "tiny", "huge", "ties", "NaN", "inf"};

static void quantize_case(check_run *run, int64_t n, int64_t group, enum quantize_case kind) {
    static const double size[] = {3, 0, 0x1p-100, 0x1p127, 127, 1, 1};
    if (check_done(run)) return;
    check_case(run, "k=%lld group=%lld, %s, seed %llx", (long long)n, (long long)group,
               quantize_name[kind], (unsigned long long)run->random);
    enum check_format format = check_format_named(run->kernel->stem + 12); /* "quantize_a8_" */
    void *x = check_buffer(run, SLOT_X, n * check_format_size(format), 0);
    for (int64_t i = 0; i < n; i++) {
        double value = check_uniform(run) * size[kind];
        if (kind == Q_TIES) value = i % 128 == 0 ? 127 : floor(value) + 0.5;
        check_put(format, x, i, value);
    }
    if (n > 0 && kind >= Q_NAN)
        check_put(format, x, check_below(run, n), kind == Q_NAN ? NAN : -INFINITY);
    int64_t bytes = dsi_a8_bytes(n);
    uint8_t *record = check_buffer(run, SLOT_Y, bytes, 0), *truth = check_room(bytes);
    ((dsi_quantize_fn)run->kernel->fn)(x, record, n, group);
    ((dsi_quantize_fn)run->kernel->ref)(x, truth, n, group);
    for (int64_t i = 0; i < bytes; i++)
        if (record[i] != truth[i]) {
            check_fail(run, "byte %lld of the record is 0x%02x, should be 0x%02x", (long long)i,
                       record[i], truth[i]);
            break;
        }
    check_buffers_intact(run);
}

void check_quantize(check_run *run) {
    for (int i = 0; i < LENGTHS; i++)
        for (int kind = 0; kind < Q_CASES; kind++) {
            quantize_case(run, lengths[i], DSI_BLOCK, (enum quantize_case)kind);
            quantize_case(run, lengths[i], lengths[i] + 1, (enum quantize_case)kind);
        }
}

/* ---- decode ---- */

void check_decode(check_run *run) {
    static const double scales[] = {1, 0.0123, 0x1p-130, 0x1.8p120, 0};
    for (int n = 0; n < 5 * LENGTHS && !check_done(run); n++) {
        int64_t k = lengths[n / 5], blocks = (k + DSI_BLOCK - 1) / DSI_BLOCK;
        check_case(run, "k=%lld scale %g", (long long)k, scales[n % 5]);
        uint8_t *w = check_buffer(run, SLOT_X, k, check_below(run, 16));
        float *scale = check_buffer(run, SLOT_W, blocks * 4, 0);
        uint16_t *y = check_buffer(run, SLOT_Y, k * 2, 2 * check_below(run, 8));
        uint16_t *truth = check_room(k * 2 + 2);
        for (int64_t i = 0; i < k; i++) w[i] = (uint8_t)(i < 256 ? i : check_below(run, 256));
        for (int64_t i = 0; i < blocks; i++)
            scale[i] = (float)(scales[n % 5] * (1 + check_uniform(run) / 2));
        ((dsi_decode_fn)run->kernel->fn)(w, scale, y, k);
        ((dsi_decode_fn)run->kernel->ref)(w, scale, truth, k);
        for (int64_t i = 0; i < k; i++)
            check_same(run, dsi_bf16_to_f32(y[i]), dsi_bf16_to_f32(truth[i]), "y", i, 0);
        check_buffers_intact(run);
    }
}

/* ---- rope ---- */

void check_rope(check_run *run) {
    static const int64_t halves[] = {0, 1, 2, 3, 4, 7, 8, 16, 17, 32, 64};
    static const int64_t positions[] = {0, 1, 2, 63, 4095, 163839};
    for (int n = 0; n < 11 * 6 && !check_done(run); n++) {
        int64_t half = halves[n / 6], position = positions[n % 6], heads = 1 + n % 3;
        int64_t stride = 2 * half + n % 2, width = (heads - 1) * stride + 2 * half;
        double factor = check_below(run, 2) ? 1 : 1.2079441541679836;
        check_case(run, "half=%lld heads=%lld position=%lld", (long long)half, (long long)heads,
                   (long long)position);
        float *x = floats(run, SLOT_X, width, 3), *inv_freq = floats(run, SLOT_W, half, 0);
        for (int64_t i = 0; i < half; i++)
            inv_freq[i] = (float)pow(10000, -(double)i / (double)half);
        float *truth = check_copy(x, width * 4), *size = check_copy(x, width * 4);
        dsi_rope_args args = {x, stride, heads, inv_freq, half, position, factor};
        ((dsi_rope_fn)run->kernel->fn)(&args);
        args.x = truth;
        ((dsi_rope_fn)run->kernel->ref)(&args);
        for (int64_t i = 0; i < width; i++) {
            /* Partners differ by kind; the largest element bounds both terms. */
            double most = 0;
            for (int64_t j = 0; j < width; j++) most = fmax(most, fabs((double)size[j]));
            check_near(run, (double)x[i], (double)truth[i], run->kernel->c * 2 * most * factor, "x",
                       i, 0);
        }
        check_buffers_intact(run);
    }
}

/* ---- moe_route ---- */

enum { SLOT_LOGITS, SLOT_BIAS, SLOT_EXPERTS, SLOT_WEIGHTS };
enum logits { RANDOM, TIES, ALL_ZERO, NEGATIVE_BIAS, ONE_NAN, ALL_NAN, INFINITE, LOGIT_KINDS };
static const char *const logits_name[] = {"random",  "ties",    "all +-0", "negative bias",
                                          "one NaN", "all NaN", "infinite"};

static void fill_logits(check_run *run, enum logits kind, float *logits, float *bias, int64_t n) {
    for (int64_t e = 0; e < n; e++) {
        logits[e] = (float)(check_uniform(run) * 3);
        bias[e] = (float)(check_uniform(run) * 0.2);
        if (kind == TIES) logits[e] = (float)check_below(run, 3), bias[e] = 0;
        if (kind == ALL_ZERO) logits[e] = bias[e] = check_below(run, 2) ? 0.0f : -0.0f;
        if (kind == NEGATIVE_BIAS) bias[e] = -2 + bias[e];
        if (kind == ALL_NAN) logits[e] = NAN;
    }
    if (kind == ONE_NAN) logits[check_below(run, n)] = NAN;
    if (kind == INFINITE) {
        logits[check_below(run, n)] = INFINITY;
        logits[check_below(run, n)] = -INFINITY;
    }
}

static void route_case(check_run *run, const dsi_route_args *shape, enum logits kind) {
    if (check_done(run)) return;
    dsi_route_args args = *shape;
    check_case(run, "experts=%u top_k=%u groups=%u/%u method=%u sigmoid=%u norm=%u, %s, seed %llx",
               args.n_experts, args.top_k, args.topk_group, args.n_group, args.method, args.sigmoid,
               args.norm, logits_name[kind], (unsigned long long)run->random);
    float *logits = check_buffer(run, SLOT_LOGITS, args.n_experts * 4, 0);
    float *bias = check_buffer(run, SLOT_BIAS, args.n_experts * 4, 0);
    fill_logits(run, kind, logits, bias, args.n_experts);
    args.logits = logits;
    args.bias = args.method == 3 ? bias : NULL;
    args.experts = check_buffer(run, SLOT_EXPERTS, args.top_k * 4, 0);
    args.weights = check_buffer(run, SLOT_WEIGHTS, args.top_k * 4, 0);
    ((dsi_route_fn)run->kernel->fn)(&args);
    dsi_route_args truth = args;
    truth.experts = check_room(args.top_k * 4);
    truth.weights = check_room(args.top_k * 4);
    ((dsi_route_fn)run->kernel->ref)(&truth);
    for (int64_t j = 0; j < args.top_k; j++) {
        int32_t expert = args.experts[j];
        if (expert < 0 || (uint32_t)expert >= args.n_experts)
            check_fail(run, "expert %lld is %d, beyond the last", (long long)j, expert);
        if (j > 0 && expert <= args.experts[j - 1])
            check_fail(run, "experts are not in ascending order at %lld", (long long)j);
        if (expert != truth.experts[j])
            check_fail(run, "expert %lld is %d, should be %d", (long long)j, expert,
                       truth.experts[j]);
        check_near(run, (double)args.weights[j], (double)truth.weights[j],
                   run->kernel->c * fabs((double)truth.weights[j]), "weight", j, 0);
    }
    check_buffers_intact(run);
}

void check_route(check_run *run) {
    static const uint32_t shapes[][4] = {
        /* experts, top_k, groups, kept groups */
        {1, 1, 1, 1},  {2, 1, 1, 1},  {7, 7, 1, 1},   {8, 2, 4, 2},   {8, 2, 8, 3},
        {16, 4, 4, 2}, {64, 6, 1, 1}, {160, 6, 8, 3}, {256, 8, 8, 4}, {1024, 8, 32, 4}};
    for (size_t s = 0; s < sizeof shapes / sizeof shapes[0]; s++) {
        for (uint32_t n = 0; n < 3 * 4 * LOGIT_KINDS; n++) {
            dsi_route_args args = {.n_experts = shapes[s][0], .top_k = shapes[s][1]};
            args.n_group = shapes[s][2], args.topk_group = shapes[s][3];
            args.method = 1 + n % 3, args.sigmoid = n / 3 % 2, args.norm = n / 6 % 2;
            args.scale = args.norm ? 2.5f : 16;
            route_case(run, &args, (enum logits)(n / 12));
        }
    }
}
