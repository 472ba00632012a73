/* check_kernels_mutants.c: kernels that are wrong on purpose, one bug each. They run through the
 * same checks as the real ones, and every one must fail: a test of the tests. */
#include "../kernels/blocks/blocks.h"
#include "check.h"

/* M(name, type, stem, what the bug is) */
#define MUTANTS(M)                                                                                 \
    M(TAIL_DROPPED, matmul, matmul_fp8_bf16, "drops the last k % 16 products")                     \
    M(TAIL_TWICE, matmul, matmul_fp8_bf16, "adds the last k % 16 products twice")                  \
    M(SCALE_ROW, matmul, matmul_fp8_bf16, "takes the scale row of n - n0")                         \
    M(SCALE_COLUMN, matmul, matmul_fp8_bf16, "takes the scale column of k - 1")                    \
    M(SCALE_DIVIDES, matmul, matmul_fp8_bf16, "divides by the scale")                              \
    M(SIGN, matmul, matmul_fp8_bf16, "loses the sign of every 16th weight")                        \
    M(ORDER_BY_M, matmul, matmul_fp8_bf16, "adds downwards when m is above 1")                     \
    M(NAN_SWALLOWED, matmul, matmul_fp8_bf16, "counts a NaN product as 0")                         \
    M(PAST_END, matmul, matmul_fp8_bf16, "reads one weight past the end of a row")                 \
    M(DENORMAL_FLUSHED, matmul, matmul_fp8_bf16, "counts denormal E4M3 as 0")                      \
    M(N0_FORGOTTEN, matmul, matmul_fp8_bf16, "takes weight row n - n0")                            \
    M(GATHER_FORGOTTEN, matmul, matmul_fp8_bf16, "ignores x_rows")                                 \
    M(WRITES_PAST, matmul, matmul_fp8_bf16, "writes one column too many")                          \
    M(T_SCALE_ROW, matmul_t, matmul_t_fp8, "takes the scale row of n - n0")                        \
    M(T_LAST_ROW, matmul_t, matmul_t_fp8, "drops the last row of w")                               \
    M(LIMIT_MORE, attend, attend_f32, "sees one row more than the limit")                          \
    M(LIMIT_LESS, attend, attend_f32, "sees one row less than the limit")                          \
    M(NOT_RESCALED, attend, attend_f32, "does not rescale o")                                      \
    M(SUM_NOT_RESCALED, attend, attend_f32, "does not rescale l")                                  \
    M(K1_FORGOTTEN, attend, attend_f32, "leaves the rope part out of the dot")                     \
    M(LIMIT_ZERO_TOUCHED, attend, attend_f32, "clears l of a query with limit 0")                  \
    M(WEIGHTED_UNSEEN, attend, attend_f32, "multiplies unseen rows by 0 instead of skipping")      \
    M(RELU_BEHIND, index, index_score_f32, "cuts the weighted term, not the dot, at 0")            \
    M(MINUS_ZERO, index, index_score_f32, "begins the sum with its first term")                    \
    M(EPS_OUTSIDE, rms_norm, rms_norm_f32, "adds eps outside of the root")                         \
    M(MEAN_PADDED, rms_norm, rms_norm_f32, "divides by n rounded up to 16")                        \
    M(GATE_UP_SWAPPED, swiglu, swiglu_f32, "takes up for gate")                                    \
    M(EXP_OVERFLOWS, swiglu, swiglu_f32, "computes g * e / (1 + e) with e = exp(g)")               \
    M(TRUNCATED, cast, cast_bf16, "truncates")                                                     \
    M(HALF_UP, cast, cast_bf16, "rounds ties away from zero")                                      \
    M(NAN_TO_INF, cast, cast_bf16, "rounds NaN like a number")                                     \
    M(NIBBLES_SWAPPED, matmul_int, matmul_i4_bf16, "takes the high half of a byte first")          \
    M(GROUP_128, matmul_int, matmul_i4_bf16, "takes a scale for 128 columns, whatever the group")  \
    M(GROUP_ROW, matmul_int, matmul_i4_bf16, "takes the scale row of n / 128")                     \
    M(SCALE_BF16, matmul_int, matmul_i4_bf16, "reads every scale as BF16")                         \
    M(LAST_NIBBLE, matmul_int, matmul_i4_bf16, "drops the last column of an odd k")                \
    M(SATURATED, matmul_a8, matmul_i8_a8, "saturates pairs of products at 16 bits")                \
    M(UNSIGNED, matmul_a8, matmul_i8_a8, "takes weights for unsigned without a correction")        \
    M(LOWEST, matmul_a8, matmul_i8_a8, "takes the weight -128 for -127")                           \
    M(FIRST_MULTIPLIER, matmul_a8, matmul_i8_a8, "takes the first multiplier for all blocks")      \
    M(X_ROUNDED, matmul_a8, matmul_i8_a8, "counts a row with NaN as zero")                         \
    M(HALF_AWAY, quantize, quantize_a8_f32, "rounds ties away from zero")                          \
    M(NAN_LOST, quantize, quantize_a8_f32, "makes a number of NaN")                                \
    M(BY_ROW, quantize, quantize_a8_f32, "takes one multiplier for the row")                       \
    M(SUMS_STALE, quantize, quantize_a8_f32, "leaves the sums of the last columns")                \
    M(PADDING_LEFT, quantize, quantize_a8_f32, "leaves the columns behind k")                      \
    M(DENORMALS_LOST, decode, decode_fp8, "takes denormal codes for zero")                         \
    M(NAN_AS_480, decode, decode_fp8, "makes the number 480 of NaN")                               \
    M(FIRST_SCALE, decode, decode_fp8, "takes the first scale for all blocks")                     \
    M(CUT_DOWN, decode, decode_fp8, "cuts instead of rounding")                                    \
    M(SIGNLESS, decode_i8, decode_i8, "takes values for unsigned")                                 \
    M(LAST_SCALE, decode_i8, decode_i8, "takes the last scale for all blocks")                     \
    M(MIN_ADDED, decode_blocks, decode_blocks, "adds the minimum")                                 \
    M(GROUP_OF_32, decode_blocks, decode_blocks, "takes the scale of 32 columns for all types")    \
    M(FIFTH_BIT, decode_blocks, decode_blocks, "drops the fifth bit of Q5_1")                      \
    M(CODE_128, decode_blocks, decode_blocks, "takes -128 of Q8_0 for -127")                       \
    M(DENORMAL_D, decode_blocks, decode_blocks, "takes multipliers below 2^-14 for 0")             \
    M(LAST_BLOCK, blocks_mm, matmul_blocks_bf16, "drops the last block of a row")                  \
    M(MIN_FORGOTTEN, blocks_mm, matmul_blocks_bf16, "forgets the minimums")                        \
    M(ROW_STRIDE, blocks_mm, matmul_blocks_bf16, "takes k for the stride of rows")                 \
    M(BLOCKS_BY_M, blocks_mm, matmul_blocks_bf16, "adds downwards when m is above 1")              \
    M(T_COLUMN, blocks_t, matmul_t_blocks, "takes the first block for all columns")                \
    M(HALVES_PAIRED, rope, rope_interleaved, "pairs the halves instead of neighbours")             \
    M(SINE_SIGN, rope, rope_interleaved, "turns the other way")                                    \
    M(FIRST_HEAD_ALONE, rope, rope_interleaved, "turns the first head alone")                      \
    M(BIAS_IN_WEIGHTS, route, moe_route, "takes the biased score for the weight")                  \
    M(GROUP_MAX, route, moe_route, "ranks groups by their largest choice, not the top two")        \
    M(MASK_ZERO, route, moe_route, "masks groups with 0 instead of -inf")                          \
    M(TIES_HIGH, route, moe_route, "lets the higher index win a tie")

enum bug {
#define M(name, type, stem, text) name,
    MUTANTS(M)
#undef M
        NO_BUG
};
/* The bug that the broken_ functions below have; one child process runs one mutant. Without it
 * they are right, and must pass. */
static enum bug bug = NO_BUG;

static void broken_matmul(const dsi_matmul_args *a) {
    for (int64_t i = 0; i < a->m; i++) {
        int64_t x_row = a->x_rows != NULL && bug != GATHER_FORGOTTEN ? a->x_rows[i] : i;
        const uint16_t *x = (const uint16_t *)a->x + x_row * a->x_stride;
        for (int64_t n = a->n0; n < a->n1; n++) {
            const uint8_t *w = a->w + (bug == N0_FORGOTTEN ? n - a->n0 : n) * a->w_stride;
            const float *scale = (const float *)a->scale +
                                 (bug == SCALE_ROW ? n - a->n0 : n) / DSI_BLOCK * a->scale_stride;
            double sum = bug == PAST_END ? 0 * (double)*(const volatile uint8_t *)(w + a->k) : 0;
            float f32_sum = 0;
            for (int64_t step = 0; step < a->k; step++) {
                int64_t k = bug == ORDER_BY_M && a->m > 1 ? a->k - 1 - step : step;
                float weight = dsi_e4m3_to_f32(w[k]);
                if (bug == SIGN && k % 16 == 15) weight = fabsf(weight);
                if (bug == DENORMAL_FLUSHED && (w[k] & 0x78) == 0) weight = 0;
                double s = (double)scale[(bug == SCALE_COLUMN && k > 0 ? k - 1 : k) / DSI_BLOCK];
                double term = (double)dsi_bf16_to_f32(x[k]) * (double)weight;
                term = bug == SCALE_DIVIDES ? term / s : term * s;
                if (bug == NAN_SWALLOWED && isnan(term)) term = 0;
                bool tail = k >= a->k - a->k % 16;
                if (tail && bug == TAIL_DROPPED) continue;
                sum += tail && bug == TAIL_TWICE ? 2 * term : term;
                f32_sum += (float)term;
            }
            a->y[i * a->y_stride + n - a->n0] = bug == ORDER_BY_M ? f32_sum : (float)sum;
        }
        if (bug == WRITES_PAST && a->n1 > a->n0) a->y[i * a->y_stride + a->n1 - a->n0] = 0;
    }
}

static void broken_matmul_t(const dsi_matmul_t_args *a) {
    dsi_matmul_t_args changed = *a;
    if (bug == T_LAST_ROW && a->n1 > a->n0) changed.n1--;
    /* The scale rows of the first rows of w. */
    if (bug == T_SCALE_ROW && a->n0 < a->n1) {
        changed.w += a->n0 * a->w_stride;
        changed.n1 -= a->n0;
        changed.n0 = 0;
    }
    dsi_matmul_t_fp8__ref(&changed);
}

static void broken_attend_query(const dsi_attend_args *a, int64_t i) {
    int32_t limit = a->limit[i] - (bug == LIMIT_LESS);
    if (bug == LIMIT_MORE && limit < DSI_PAGE_ROWS) limit++;
    float *m = a->state_m + i * a->state_stride, *l = a->state_l + i * a->state_stride;
    float before_m = *m, before_l = *l, *o = a->o + i * a->o_stride;
    float *before_o = check_copy(o, a->dv * 4);
    dsi_attend_args one = *a;
    one.q = (const float *)a->q + i * a->q_stride;
    one.limit = &limit, one.state_m = m, one.state_l = l, one.o = o, one.n_q = 1;
    if (bug == K1_FORGOTTEN) one.d1 = 0;
    dsi_attend_f32__ref(&one);
    double carry = exp((double)before_m - (double)*m);
    if (bug == SUM_NOT_RESCALED) *l = (float)((double)*l + (double)before_l * (1 - carry));
    for (int64_t d = 0; d < a->dv && bug == NOT_RESCALED; d++)
        o[d] = (float)((double)o[d] + (double)before_o[d] * (1 - carry));
    if (bug != WEIGHTED_UNSEEN) return;
    int32_t most = 0;
    for (int64_t other = 0; other < a->n_q; other++)
        if (a->limit[other] > most) most = a->limit[other];
    for (int64_t j = limit; j < most; j++)
        for (int64_t d = 0; d < a->dv; d++) o[d] += 0 * ((const float *)a->v)[j * a->v_stride + d];
}

static void broken_attend(const dsi_attend_args *a) {
    for (int64_t i = 0; i < a->n_q; i++) {
        if (a->limit[i] > 0)
            broken_attend_query(a, i);
        else if (bug == LIMIT_ZERO_TOUCHED)
            a->state_l[i * a->state_stride] = 0;
    }
}

static void broken_index(const dsi_index_args *a) {
    const float *q = a->q, *k = a->k;
    for (int64_t i = 0; i < a->n_q; i++)
        for (int64_t s = 0; s < DSI_PAGE_ROWS; s++) {
            double sum = 0;
            for (int64_t h = 0; h < a->n_heads; h++) {
                double dot = 0;
                for (int64_t d = 0; d < a->dim; d++)
                    dot += (double)q[(i * a->n_heads + h) * a->dim + d] *
                           (double)k[s * a->k_stride + d];
                double weight = (double)a->weights[i * a->weights_stride + h];
                if (bug != RELU_BEHIND && dot < 0) dot = 0;
                double term = weight * dot;
                if (bug == RELU_BEHIND && term < 0) term = 0;
                sum = bug == MINUS_ZERO && h == 0 ? term : sum + term;
            }
            a->score[i * a->score_stride + s] = (float)sum;
        }
}

static void broken_rms_norm(const float *x, const void *w, dsi_dtype w_dtype, void *y, int64_t n,
                            float eps) {
    double sum = 0;
    for (int64_t i = 0; i < n; i++) sum += (double)x[i] * (double)x[i];
    sum /= (double)(bug == MEAN_PADDED ? (n + 15) / 16 * 16 : n);
    double divisor = bug == EPS_OUTSIDE ? sqrt(sum) + (double)eps : sqrt(sum + (double)eps);
    enum check_format format = w_dtype == DSI_DTYPE_BF16 ? CHECK_BF16 : CHECK_F32;
    for (int64_t i = 0; i < n; i++)
        ((float *)y)[i] = (float)((double)x[i] / divisor * check_get(format, w, i));
}

static void broken_swiglu(const float *gate, const float *up, void *y, int64_t n) {
    if (bug != EXP_OVERFLOWS) {
        bool swapped = bug == GATE_UP_SWAPPED;
        dsi_swiglu_f32__ref(swapped ? up : gate, swapped ? gate : up, y, n);
        return;
    }
    for (int64_t i = 0; i < n; i++) {
        float e = expf(gate[i]);
        ((float *)y)[i] = gate[i] * e / (1 + e) * up[i];
    }
}

static void broken_cast(const float *x, uint16_t *y, int64_t n) {
    for (int64_t i = 0; i < n; i++) {
        uint32_t bits = dsi_f32_bits(x[i]);
        if (bug == TRUNCATED)
            y[i] = (uint16_t)(bits >> 16 | (isnan(x[i]) ? 0x40 : 0));
        else if (bug == HALF_UP && !isnan(x[i]))
            y[i] = (uint16_t)((bits + 0x8000u) >> 16);
        else if (bug == NAN_TO_INF && isnan(x[i]))
            y[i] = (uint16_t)(bits >> 16 & 0xFF80u);
        else
            y[i] = dsi_f32_to_bf16(x[i]);
    }
}

/* I4 and BF16. */
static void broken_matmul_int(const dsi_matmul_args *a) {
    for (int64_t i = 0; i < a->m; i++) {
        const uint16_t *x = (const uint16_t *)a->x + (a->x_rows ? a->x_rows[i] : i) * a->x_stride;
        for (int64_t n = a->n0; n < a->n1; n++) {
            const uint8_t *w = a->w + n * a->w_stride / 2;
            int64_t group_k = bug == GROUP_128 && a->group_k < a->k ? DSI_BLOCK : a->group_k;
            int64_t group_n = bug == GROUP_ROW ? DSI_BLOCK : a->group_n;
            dsi_dtype dtype = bug == SCALE_BF16 ? DSI_DTYPE_BF16 : a->scale_dtype;
            double sum = 0;
            for (int64_t k = 0; k < a->k; k++) {
                if (bug == LAST_NIBBLE && k % 2 == 0 && k + 1 == a->k) continue;
                int64_t column = bug == NIBBLES_SWAPPED && (k ^ 1) < a->k ? k ^ 1 : k;
                float scale =
                    dsi_load_scale(dtype, a->scale, n / group_n * a->scale_stride + k / group_k);
                sum += (double)dsi_bf16_to_f32(x[k]) * dsi_load_i4(w, column) * (double)scale;
            }
            a->y[i * a->y_stride + n - a->n0] = (float)sum;
        }
    }
}

static int broken_product(int8_t w, int8_t x) {
    if (bug == UNSIGNED || bug == SATURATED) return (uint8_t)(w ^ 0x80) * x;
    return (bug == LOWEST && w == -128 ? -127 : w) * x;
}

static void broken_matmul_a8(const dsi_matmul_args *a) {
    const int64_t group = a->group_k < a->x_group ? a->group_k : a->x_group;
    for (int64_t i = 0; i < a->m; i++) {
        const int8_t *x = (const int8_t *)a->x + (a->x_rows ? a->x_rows[i] : i) * a->x_stride;
        const float *multiplier = dsi_a8_multipliers(x, a->k);
        for (int64_t n = a->n0; n < a->n1; n++) {
            const int8_t *w = (const int8_t *)a->w + n * a->w_stride;
            double sum = 0;
            for (int64_t g = 0; g < a->k; g += group) {
                int64_t part = 0, end = a->k - g < group ? a->k : g + group;
                for (int64_t k = g; k < end; k += 2) {
                    int pair = broken_product(w[k], x[k]);
                    if (k + 1 < end) pair += broken_product(w[k + 1], x[k + 1]);
                    if (bug == SATURATED) /* vpmaddubsw on w + 128, which is taken off again */
                        pair = (pair > 32767    ? 32767
                                : pair < -32768 ? -32768
                                                : pair) -
                               128 * (x[k] + (k + 1 < end ? x[k + 1] : 0));
                    part += pair;
                }
                float by = multiplier[bug == FIRST_MULTIPLIER ? 0 : g / DSI_BLOCK];
                if (bug == X_ROUNDED && isnan(by)) by = 0;
                sum += (double)part * (double)by *
                       (double)dsi_load_scale(a->scale_dtype, a->scale,
                                              n / a->group_n * a->scale_stride + g / a->group_k);
            }
            a->y[i * a->y_stride + n - a->n0] = (float)sum;
        }
    }
}

static void broken_quantize(const void *x, void *record, int64_t k, int64_t group) {
    int8_t *q = record;
    int64_t columns = dsi_a8_columns(k);
    uint8_t *last = (uint8_t *)(uintptr_t)dsi_a8_sums(record, k) + (columns / 32 - 1) * 4, kept[4];
    if (k > 0) memcpy(kept, last, 4);
    int8_t behind = k < columns ? q[k] : 0;
    dsi_quantize_a8_f32__ref(x, record, k, bug == BY_ROW ? k + 1 : group);
    float *multiplier = (float *)(void *)(q + columns);
    for (int64_t i = 0; i < k; i++) {
        if (bug == NAN_LOST && isnan(multiplier[i / DSI_BLOCK])) multiplier[i / DSI_BLOCK] = 1;
        float most = 0, value = ((const float *)x)[i];
        int64_t first = i / group * group, end = first + group < k ? first + group : k;
        for (int64_t j = first; j < end && bug == HALF_AWAY; j++)
            most = fmaxf(most, fabsf(((const float *)x)[j]));
        if (bug == HALF_AWAY && q[i] != 0) q[i] = (int8_t)roundf(value * (127.0f / most));
    }
    if (bug == SUMS_STALE && k > 0) memcpy(last, kept, 4);
    if (bug == PADDING_LEFT && k < columns) q[k] = behind;
}

static void broken_decode(const uint8_t *w, const float *scale, uint16_t *y, int64_t k) {
    for (int64_t i = 0; i < k; i++) {
        float value = dsi_e4m3_to_f32(w[i]);
        if (bug == DENORMALS_LOST && (w[i] & 0x78) == 0) value = 0;
        if (bug == NAN_AS_480 && (w[i] & 0x7F) == 0x7F) value = 480;
        value *= scale[bug == FIRST_SCALE ? 0 : i / DSI_BLOCK];
        y[i] = bug == CUT_DOWN && !isnan(value) ? (uint16_t)(dsi_f32_bits(value) >> 16)
                                                : dsi_f32_to_bf16(value);
    }
}

static void broken_decode_i8(const uint8_t *w, const float *scale, uint16_t *y, int64_t k) {
    for (int64_t i = 0; i < k; i++) {
        float value = bug == SIGNLESS ? (float)w[i] : (float)(int8_t)w[i];
        y[i] = dsi_f32_to_bf16(value * scale[(bug == LAST_SCALE ? k - 1 : i) / DSI_BLOCK]);
    }
}

static void broken_rope(const dsi_rope_args *args) {
    dsi_rope_args a = *args;
    if (bug == SINE_SIGN) a.position = -a.position;
    if (bug == FIRST_HEAD_ALONE) a.n_heads = 1;
    if (bug == HALVES_PAIRED)
        dsi_rope_half__ref(&a);
    else
        dsi_rope_interleaved__ref(&a);
}

/* NaN above every number, as in the reference. */
static bool is_larger(float a, float b) { return a > b || (isnan(a) && !isnan(b)); }

static float broken_group_score(const float *choice, uint32_t n, bool top_two) {
    float first = -INFINITY, second = -INFINITY;
    for (uint32_t i = 0; i < n; i++) {
        if (is_larger(choice[i], first))
            second = first, first = choice[i];
        else if (is_larger(choice[i], second))
            second = choice[i];
    }
    return top_two && n > 1 && bug != GROUP_MAX ? first + second : first;
}

static void broken_top(const float *value, uint32_t n, uint32_t count, bool *taken) {
    memset(taken, 0, n);
    for (uint32_t t = 0; t < count; t++) {
        uint32_t best = n;
        for (uint32_t i = 0; i < n; i++) {
            if (taken[i]) continue;
            bool equal_wins = bug == TIES_HIGH && best < n && !is_larger(value[best], value[i]);
            if (best == n || is_larger(value[i], value[best]) || equal_wins) best = i;
        }
        taken[best] = true;
    }
}

static void broken_route(const dsi_route_args *a) {
    float score[1024], choice[1024] = {0}, group[1024];
    int32_t all[1024];
    bool taken[1024], kept[1024];
    /* Every expert, neither normed nor scaled: the scores themselves. */
    dsi_route_args plain = *a;
    plain.method = 1, plain.norm = 0, plain.scale = 1, plain.top_k = a->n_experts;
    plain.experts = all, plain.weights = score;
    dsi_moe_route__ref(&plain);
    uint32_t size = a->n_experts / a->n_group, n = 0;
    for (uint32_t e = 0; e < a->n_experts; e++)
        choice[e] = score[e] + (a->method == 3 ? a->bias[e] : 0);
    if (a->method != 1 && a->n_group > 1) {
        for (uint32_t g = 0; g < a->n_group; g++)
            group[g] = broken_group_score(choice + g * size, size, a->method == 3);
        broken_top(group, a->n_group, a->topk_group, kept);
        for (uint32_t e = 0; e < a->n_experts; e++)
            if (!kept[e / size]) choice[e] = bug == MASK_ZERO ? 0 : -INFINITY;
    }
    broken_top(choice, a->n_experts, a->top_k, taken);
    double sum = 0;
    for (uint32_t e = 0; e < a->n_experts; e++) {
        if (!taken[e]) continue;
        a->experts[n] = (int32_t)e;
        a->weights[n] = bug == BIAS_IN_WEIGHTS && a->method == 3 ? score[e] + a->bias[e] : score[e];
        sum += (double)a->weights[n++];
    }
    for (uint32_t j = 0; j < n; j++)
        a->weights[j] =
            (float)((double)a->weights[j] / (a->norm ? sum + 1e-20 : 1) * (double)a->scale);
}

static void broken_decode_blocks(dsi_dtype dtype, const uint8_t *w, float *y, int64_t k) {
    const dsi_block_shape shape = dsi_block_shape_of(dtype);
    dsi_block_parts p;
    for (int64_t at = 0; at < k; at += shape.values, w += shape.bytes) {
        dsi_block_read(dtype, w, &p);
        for (int i = 0; i < shape.values; i++) {
            int g = bug == GROUP_OF_32 ? i / 32 * 32 / shape.group : i / shape.group, q = p.q[i];
            float m = bug == MIN_ADDED && shape.has_min ? -p.min[g]
                      : bug == MIN_FORGOTTEN            ? 0
                                                        : p.min[g];
            if (bug == FIFTH_BIT && dtype == DSI_DTYPE_Q5_1) q &= 15;
            if (bug == CODE_128 && dtype == DSI_DTYPE_Q8_0 && q == -128) q = -127;
            float scale = bug == DENORMAL_D && fabsf(p.scale[g]) < 0x1p-14f ? 0 : p.scale[g];
            y[at + i] = (float)q * scale - m;
        }
    }
}

static void broken_blocks_mm(const dsi_matmul_args *a) {
    const int64_t values = dsi_block_shape_of(a->w_dtype).values;
    const int64_t stride = bug == ROW_STRIDE ? a->k : a->w_stride;
    float *w = check_room((a->k + 1) * 4);
    for (int64_t n = a->n0; n < a->n1; n++) {
        broken_decode_blocks(a->w_dtype, a->w + dsi_row_bytes(a->w_dtype, n * stride), w, a->k);
        if (bug == LAST_BLOCK && a->k > 0) memset(w + a->k - values, 0, (size_t)values * 4);
        for (int64_t i = 0; i < a->m; i++) {
            const uint16_t *x =
                (const uint16_t *)a->x + (a->x_rows ? a->x_rows[i] : i) * a->x_stride;
            double sum = 0;
            float f32_sum = 0;
            for (int64_t step = 0; step < a->k; step++) {
                int64_t k = a->m > 1 ? a->k - 1 - step : step;
                sum += (double)dsi_bf16_to_f32(x[step]) * (double)w[step];
                f32_sum += dsi_bf16_to_f32(x[k]) * w[k];
            }
            a->y[i * a->y_stride + n - a->n0] = bug == BLOCKS_BY_M ? f32_sum : (float)sum;
        }
    }
}

static void broken_blocks_t(const dsi_matmul_t_args *a) {
    const int64_t values = dsi_block_shape_of(a->w_dtype).values;
    dsi_matmul_t_args piece = *a;
    piece.k = values;
    for (int64_t j = 0; j < a->k; j += values) {
        piece.w = a->w + (bug == T_COLUMN ? 0 : dsi_row_bytes(a->w_dtype, j));
        piece.y = a->y + j;
        dsi_matmul_t_blocks__ref(&piece);
    }
}

/* Kernels of one type, broken by functions of their own. */
#define CHECK_blocks_mm CHECK_matmul
#define CHECK_blocks_t CHECK_matmul_t
#define CHECK_matmul_int CHECK_matmul
#define CHECK_matmul_a8 CHECK_matmul
#define CHECK_decode_i8 CHECK_decode

int check_mutant_count(void) { return NO_BUG; }

check_mutant check_mutant_arm(int i, bool armed) {
#define M(name, type, stem, text)                                                                  \
    {text,                                                                                         \
     {CHECK_##type, #stem, "mutant", #name, DSI_ISA_REF, (check_any_fn)broken_##type,              \
      (check_any_fn)dsi_##stem##__ref, 4e-6, false, false, false}},
    static const check_mutant mutants[] = {MUTANTS(M)};
#undef M
    bug = armed ? (enum bug)i : NO_BUG;
    return mutants[i];
}
