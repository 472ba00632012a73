/* test_kernels_edge.c: the reference kernels against numbers worked out by hand or by independent
 * formulas. check_kernels holds every other kernel against the references; this test is what the
 * references themselves answer to. test_trap_NN names a known trap of DeepSeek's models. */
#include "../kernels/formats.h"
#include "../kernels/kernels.h"
#include "../lib/backend/cpu_isa.h"
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

static uint32_t usable_isas(void) { return dsi_cpu_isa(dsi_isa_detect(), NULL); }

static void assert_close(double a, double b, double tolerance) {
    if (!(fabs(a - b) <= tolerance)) fail_msg("%.17g is not %.17g +- %g", a, b, tolerance);
}

/* y of one row of w (k = 1, f32 activation 1): how a kernel decodes a weight. */
static float decode(dsi_matmul_fn fn, const void *w) {
    _Alignas(64) static uint8_t scratch[32 * 64 * 4];
    const float x = 1, scale = 1;
    float y;
    const dsi_matmul_args args = {.x = &x,
                                  .x_stride = 1,
                                  .w = w,
                                  .w_stride = 1,
                                  .scale = &scale,
                                  .scale_stride = 1,
                                  .y = &y,
                                  .y_stride = 1,
                                  .m = 1,
                                  .n1 = 1,
                                  .k = 1,
                                  .scratch = scratch};
    fn(&args);
    return y;
}

/* E4M3 by its definition (OCP OFP8 1.0): 1 sign, 4 exponent (bias 7), 3 mantissa bits. */
static double e4m3(uint32_t code) {
    uint32_t exponent = code >> 3 & 15, mantissa = code & 7;
    double value = exponent == 0 ? ldexp(mantissa, -9) : ldexp(8 + mantissa, (int)exponent - 10);
    return (code & 0x80) != 0 ? -value : value;
}

/* 1. weight_scale_inv is a multiplier, in spite of its name. */
static void test_trap_01_scale_multiplies(void **state) {
    (void)state;
    dsi_kernels k;
    for (uint32_t mask = 1; mask <= usable_isas(); mask = mask * 2 + 1) {
        dsi_kernels_select(mask & usable_isas(), &k);
        _Alignas(64) static uint8_t scratch[32 * 64 * 4];
        const float x = 3, scale = 0.25f;
        const uint8_t w = 0x40; /* 2.0 */
        float y;
        const dsi_matmul_args args = {.x = &x,
                                      .x_stride = 1,
                                      .w = &w,
                                      .w_stride = 1,
                                      .scale = &scale,
                                      .scale_stride = 1,
                                      .y = &y,
                                      .y_stride = 1,
                                      .m = 1,
                                      .n1 = 1,
                                      .k = 1,
                                      .scratch = scratch};
        k.matmul_fp8_f32(&args);
        assert_close((double)y, 3 * 2 * 0.25, 0);
        const dsi_matmul_t_args t = {.x = &x,
                                     .x_stride = 1,
                                     .w = &w,
                                     .w_stride = 1,
                                     .scale = &scale,
                                     .scale_stride = 1,
                                     .y = &y,
                                     .y_stride = 1,
                                     .m = 1,
                                     .n1 = 1,
                                     .k = 1};
        k.matmul_t_fp8(&t);
        assert_close((double)y, 3 * 2 * 0.25, 0);
    }
}

/* 2. kv_a_proj has 576 = 4.5 * 128 rows: the last scale row serves half a block; here also the last
 * scale column (k = 200). Every block has its own power of two as its scale. */
static void test_trap_02_half_block(void **state) {
    (void)state;
    enum { N = 576, K = 200, ROWS = 5, COLUMNS = 2 };
    static uint8_t w[N * K];
    static float x[K], y[N], scale[ROWS * COLUMNS];
    _Alignas(64) static uint8_t scratch[32 * 256 * 4];
    memset(w, 0x38, sizeof w); /* 1.0 */
    for (int i = 0; i < K; i++) x[i] = 1;
    for (int b = 0; b < ROWS * COLUMNS; b++) scale[b] = ldexpf(1, b);
    const dsi_matmul_args args = {.x = x,
                                  .x_stride = K,
                                  .w = w,
                                  .w_stride = K,
                                  .scale = scale,
                                  .scale_stride = COLUMNS,
                                  .y = y,
                                  .y_stride = N,
                                  .m = 1,
                                  .n1 = N,
                                  .k = K,
                                  .scratch = scratch};
    dsi_kernels k;
    for (uint32_t mask = 1; mask <= usable_isas(); mask = mask * 2 + 1) {
        dsi_kernels_select(mask & usable_isas(), &k);
        memset(y, 0, sizeof y);
        k.matmul_fp8_f32(&args);
        for (int n = 0; n < N; n++) {
            double row = (double)ldexpf(1, n / 128 * COLUMNS);
            assert_close((double)y[n], row * 128 + 2 * row * 72, 0);
        }
    }
}

static void route(const float *logits, const float *bias, uint32_t n_group, uint32_t topk_group,
                  uint32_t method, int32_t *experts, float *weights) {
    const dsi_route_args args = {.logits = logits,
                                 .bias = bias,
                                 .experts = experts,
                                 .weights = weights,
                                 .n_experts = 8,
                                 .top_k = 2,
                                 .n_group = n_group,
                                 .topk_group = topk_group,
                                 .method = method,
                                 .sigmoid = 1,
                                 .norm = 1,
                                 .scale = 2.5f};
    dsi_moe_route__ref(&args);
}

static double sigmoid(double z) { return 1 / (1 + exp(-z)); }

/* 3. The bias enters the selection and never the weights. */
static void test_trap_03_bias_never_in_weights(void **state) {
    (void)state;
    const float logits[8] = {2, 1, 0.5f, 0, -1, -2, -3, -4};
    const float bias[8] = {0, 0, 0, 0, 0, 0, 0, 5};
    int32_t experts[2];
    float weights[2];
    route(logits, bias, 1, 1, 3, experts, weights);
    assert_int_equal(experts[0], 0);
    assert_int_equal(experts[1], 7); /* by its bias alone */
    double a = sigmoid(2), b = sigmoid(-4);
    assert_close((double)weights[0], a / (a + b) * 2.5, 1e-6);
    assert_close((double)weights[1], b / (a + b) * 2.5, 1e-6);
}

/* 4. Rejected groups are -inf, not 0: with a strongly negative bias all choices of the kept group
 * lie below 0, and 0 would win. */
static void test_trap_04_rejected_groups_never_win(void **state) {
    (void)state;
    const float logits[8] = {0, 0, 0, 0, 3, 3, 1, 1};
    const float bias[8] = {-4, -4, -4, -4, -2, -2, -2, -2};
    int32_t experts[2];
    float weights[2];
    route(logits, bias, 2, 1, 3, experts, weights);
    assert_int_equal(experts[0], 4);
    assert_int_equal(experts[1], 5);
    assert_close((double)weights[0], 1.25, 1e-6);
}

/* Groups rank by the sum of their two best (noaux_tc) or by their best (group-limited). */
static void test_group_scores(void **state) {
    (void)state;
    const float logits[8] = {4, -9, -9, -9, 3, 3, -9, -9}, bias[8] = {0};
    int32_t experts[2];
    float weights[2];
    route(logits, bias, 2, 1, 3, experts, weights);
    assert_int_equal(experts[0], 4);
    assert_int_equal(experts[1], 5);
    route(logits, NULL, 2, 1, 2, experts, weights);
    assert_int_equal(experts[0], 0);
}

/* Ties go to the lower index, -0 equals +0, and experts come in ascending order. */
static void test_route_ties(void **state) {
    (void)state;
    const float logits[8] = {-0.0f, 0, -0.0f, 0, 0, 0, 0, 0};
    int32_t experts[2];
    float weights[2];
    route(logits, NULL, 1, 1, 1, experts, weights);
    assert_int_equal(experts[0], 0);
    assert_int_equal(experts[1], 1);
    const float rising[8] = {0, 1, 2, 3, 4, 5, 6, 7};
    route(rising, NULL, 1, 1, 1, experts, weights);
    assert_int_equal(experts[0], 6);
    assert_int_equal(experts[1], 7);
}

/* A NaN logit is chosen, so that its weight shows it; the experts stay valid and distinct. */
static void test_route_nan(void **state) {
    (void)state;
    float logits[8] = {0, 1, 2, 3, NAN, 5, 6, 7};
    const float bias[8] = {0};
    int32_t experts[2];
    float weights[2];
    for (uint32_t method = 1; method <= 3; method++) {
        route(logits, bias, 4, 2, method, experts, weights);
        assert_int_equal(experts[0], 4);
        assert_true(isnan(weights[0]));
    }
    for (int i = 0; i < 8; i++) logits[i] = NAN;
    for (uint32_t method = 1; method <= 3; method++) {
        route(logits, bias, 4, 2, method, experts, weights);
        assert_true(experts[0] >= 0 && experts[1] > experts[0] && experts[1] < 8);
    }
}

/* V2: softmax over all experts, no renormalisation, times the scale. */
static void test_route_softmax(void **state) {
    (void)state;
    const float logits[4] = {0, 1, 2, 3};
    int32_t experts[2];
    float weights[2];
    const dsi_route_args args = {.logits = logits,
                                 .experts = experts,
                                 .weights = weights,
                                 .n_experts = 4,
                                 .top_k = 2,
                                 .n_group = 1,
                                 .topk_group = 1,
                                 .method = 1,
                                 .scale = 16};
    dsi_moe_route__ref(&args);
    double sum = 1 + exp(1) + exp(2) + exp(3);
    assert_int_equal(experts[0], 2);
    assert_close((double)weights[0], exp(2) / sum * 16, 1e-5);
    assert_close((double)weights[1], exp(3) / sum * 16, 1e-5);
}

/* 6. MLA pairs neighbours, Llama and Qwen2 pair the halves. */
static void test_trap_06_interleaved_or_half(void **state) {
    (void)state;
    const float inv_freq[2] = {1, 0.1f};
    float a[4] = {1, 0, 0, 1}, b[4] = {1, 0, 0, 1};
    dsi_rope_interleaved__ref(&(dsi_rope_args){a, 4, 1, inv_freq, 2, 3, 1});
    assert_close((double)a[0], cos(3), 1e-7);
    assert_close((double)a[1], sin(3), 1e-7);
    assert_close((double)a[2], -sin(3 * (double)0.1f), 1e-7);
    assert_close((double)a[3], cos(3 * (double)0.1f), 1e-7);
    dsi_rope_half__ref(&(dsi_rope_args){b, 4, 1, inv_freq, 2, 3, 2});
    assert_close((double)b[0], 2 * cos(3), 2e-7);
    assert_close((double)b[2], 2 * sin(3), 2e-7);
    assert_close((double)b[1], -2 * sin(3 * (double)0.1f), 2e-7);
    assert_close((double)b[3], 2 * cos(3 * (double)0.1f), 2e-7);
}

/* 15. E4M3 has NaN at 0x7F and 0xFF, no infinities, and 448 as its largest number. */
static void test_trap_15_e4m3_codes(void **state) {
    (void)state;
    dsi_kernels k;
    for (uint32_t mask = 1; mask <= usable_isas(); mask = mask * 2 + 1) {
        dsi_kernels_select(mask & usable_isas(), &k);
        double largest = 0;
        for (uint32_t code = 0; code < 256; code++) {
            uint8_t w = (uint8_t)code;
            double value = (double)decode(k.matmul_fp8_f32, &w);
            if ((code & 0x7F) == 0x7F) {
                assert_true(isnan(value));
                continue;
            }
            assert_true(value == e4m3(code));
            largest = fmax(largest, value);
        }
        assert_true(largest == 448);
    }
}

/* Every bf16 and f16 weight, through every kernel; f16 by its definition (IEEE 754 binary16). */
static void test_16_bit_weights(void **state) {
    (void)state;
    dsi_kernels k;
    for (uint32_t mask = 1; mask <= usable_isas(); mask = mask * 2 + 1) {
        dsi_kernels_select(mask & usable_isas(), &k);
        for (uint32_t code = 0; code < 65536; code++) {
            uint16_t w = (uint16_t)code;
            uint32_t exponent = code >> 10 & 31, mantissa = code & 1023;
            double f16 =
                exponent == 0 ? ldexp(mantissa, -24) : ldexp(1024 + mantissa, (int)exponent - 25);
            if (exponent == 31) f16 = mantissa != 0 ? (double)NAN : (double)INFINITY;
            if ((code & 0x8000) != 0) f16 = -f16;
            double value = (double)decode(k.matmul_f16_f32, &w);
            assert_true(isnan(f16) ? isnan(value) : value == f16);
            uint32_t bits = code << 16;
            float bf16;
            memcpy(&bf16, &bits, sizeof bf16);
            float got = decode(k.matmul_bf16_f32, &w);
            assert_true(isnan(bf16) ? isnan(got) : got == bf16);
        }
    }
}

/* Softmax attention over two blocks is softmax attention over their rows. */
static void test_attend_blocks(void **state) {
    (void)state;
    enum { ROWS = 64 + 7, D0 = 5, D1 = 3, DV = 4 };
    float q[D0 + D1], k0[ROWS * D0], k1[ROWS * D1], v[ROWS * DV], o[DV] = {0};
    float m = -INFINITY, l = 0;
    for (int i = 0; i < D0 + D1; i++) q[i] = sinf((float)i);
    for (int i = 0; i < ROWS * D0; i++) k0[i] = cosf(1.3f * (float)i);
    for (int i = 0; i < ROWS * D1; i++) k1[i] = sinf(0.7f * (float)i);
    for (int i = 0; i < ROWS * DV; i++) v[i] = cosf(0.9f * (float)i);
    double sum = 0, expected[DV] = {0};
    for (int j = 0; j < ROWS; j++) {
        double dot = 0;
        for (int d = 0; d < D0; d++) dot += (double)q[d] * (double)k0[j * D0 + d];
        for (int d = 0; d < D1; d++) dot += (double)q[D0 + d] * (double)k1[j * D1 + d];
        sum += exp(0.5 * dot);
        for (int d = 0; d < DV; d++) expected[d] += exp(0.5 * dot) * (double)v[j * DV + d];
    }
    for (int first = 0; first < ROWS; first += 64) {
        const int32_t limit = ROWS - first < 64 ? ROWS - first : 64;
        const dsi_attend_args args = {.q = q,
                                      .q_stride = D0 + D1,
                                      .k0 = k0 + first * D0,
                                      .k0_stride = D0,
                                      .k1 = k1 + first * D1,
                                      .k1_stride = D1,
                                      .v = v + first * DV,
                                      .v_stride = DV,
                                      .limit = &limit,
                                      .state_m = &m,
                                      .state_l = &l,
                                      .state_stride = 1,
                                      .o = o,
                                      .o_stride = DV,
                                      .n_q = 1,
                                      .d0 = D0,
                                      .d1 = D1,
                                      .dv = DV,
                                      .scale = 0.5f};
        dsi_attend_f32__ref(&args);
    }
    for (int d = 0; d < DV; d++) assert_close((double)(o[d] / l), expected[d] / sum, 1e-6);
}

static void test_rms_norm_and_swiglu(void **state) {
    (void)state;
    const float x[3] = {1, -2, 3}, w[3] = {1, 0.5f, 2}, eps = 1e-6f;
    float y[3];
    dsi_rms_norm_f32__ref(x, w, DSI_DTYPE_F32, y, 3, eps);
    double inverse = 1 / sqrt(14.0 / 3 + (double)eps);
    for (int i = 0; i < 3; i++)
        assert_close((double)y[i], (double)x[i] * inverse * (double)w[i], 1e-7);
    const float gate[3] = {0, 2, -30}, up[3] = {5, 3, 1};
    dsi_swiglu_f32__ref(gate, up, y, 3);
    assert_close((double)y[0], 0, 0);
    assert_close((double)y[1], 2 / (1 + exp(-2)) * 3, 1e-6);
    assert_close((double)y[2], -30 * exp(-30) / (1 + exp(-30)), 1e-18);
}

/* Round to nearest even at the halves; overflow to infinity; NaN stays NaN, whatever its payload.
 */
static void test_cast_bf16(void **state) {
    (void)state;
    static const uint32_t cases[][2] = {
        {0x3F808000, 0x3F80}, {0x3F818000, 0x3F82}, {0x3F808001, 0x3F81}, {0x7F7FFFFF, 0x7F80},
        {0xFF7F7FFF, 0xFF7F}, {0x00000001, 0x0000}, {0x80008001, 0x8001}, {0x7F800001, 0x7FC0},
        {0xFFFFFFFF, 0xFFFF}, {0x7F800000, 0x7F80}};
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        float x;
        uint16_t y;
        memcpy(&x, &cases[i][0], sizeof x);
        dsi_cast_bf16__ref(&x, &y, 1);
        assert_int_equal(y, cases[i][1]);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_trap_01_scale_multiplies),
        cmocka_unit_test(test_trap_02_half_block),
        cmocka_unit_test(test_trap_03_bias_never_in_weights),
        cmocka_unit_test(test_trap_04_rejected_groups_never_win),
        cmocka_unit_test(test_trap_06_interleaved_or_half),
        cmocka_unit_test(test_trap_15_e4m3_codes),
        cmocka_unit_test(test_16_bit_weights),
        cmocka_unit_test(test_group_scores),
        cmocka_unit_test(test_route_ties),
        cmocka_unit_test(test_route_nan),
        cmocka_unit_test(test_route_softmax),
        cmocka_unit_test(test_attend_blocks),
        cmocka_unit_test(test_rms_norm_and_swiglu),
        cmocka_unit_test(test_cast_bf16),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
