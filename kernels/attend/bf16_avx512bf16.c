/* bf16_avx512bf16.c: attention over one page with VDPBF16PS, for scores and for values.
 *
 * Queries come in batches of up to 64. First all scores and probabilities of a batch, four queries
 * times four rows at once, one accumulator per score that walks d0 and then d1. Then the values,
 * 64 columns at a time: pairs of rows are interleaved once per batch, so that a lane adds
 * p[j] v[j] + p[j + 1] v[j + 1] at once. What a query gets does not depend on its company: each
 * element adds pairs of rows in ascending order up to the query's own limit, an odd last row alone.
 * Accumulators hold columns in the order that unpack leaves inside 128-bit lanes. */
#include "../kernels.h"
#include "../vector.h"
#include <math.h>

enum { GROUP = 4, ROWS = 4, BATCH = 64, COLUMNS = 64, PAIRS = DSI_PAGE_ROWS / 2 };

/* The queries of a batch with a limit above 0, and what is known of them. */
typedef struct attend_batch {
    int64_t query[BATCH];
    int32_t limit[BATCH];
    float carry[BATCH];                /* exp(m - m') */
    float score[GROUP][DSI_PAGE_ROWS]; /* of the group at hand */
    uint16_t p[BATCH][DSI_PAGE_ROWS];  /* probabilities as bf16, zero from the limit on */
    uint16_t v[PAIRS][4][32];          /* 64 columns of v: rows 2i and 2i + 1 interleaved */
    int members;
} attend_batch;

DSI_INLINE const uint16_t *at(const void *array, int64_t element) {
    return (const uint16_t *)array + element;
}

DSI_INLINE __mmask32 lanes32(int64_t n) { return n >= 32 ? 0xFFFFFFFFu : (1u << n) - 1u; }

/* ---- Scores --------------------------------------------------------------------------------- */

/* Adds the products of n of 32 elements, from element d on. */
DSI_INLINE void dot_step(const uint16_t *const *q, const uint16_t *const *k, int64_t d, int64_t n,
                         __m512 dot[GROUP][ROWS]) {
    __m512bh row[ROWS];
    DSI_UNROLL
    for (int j = 0; j < ROWS; j++)
        row[j] = (__m512bh)(n >= 32 ? _mm512_loadu_si512(k[j] + d)
                                    : _mm512_maskz_loadu_epi16(lanes32(n), k[j] + d));
    DSI_UNROLL
    for (int i = 0; i < GROUP; i++) {
        __m512bh query = (__m512bh)(n >= 32 ? _mm512_loadu_si512(q[i] + d)
                                            : _mm512_maskz_loadu_epi16(lanes32(n), q[i] + d));
        DSI_UNROLL
        for (int j = 0; j < ROWS; j++) dot[i][j] = _mm512_dpbf16_ps(dot[i][j], query, row[j]);
    }
}

DSI_INLINE void dot_range(const uint16_t *const *q, const uint16_t *const *k, int64_t dim,
                          __m512 dot[GROUP][ROWS]) {
    int64_t d = 0;
    for (; d + 32 <= dim; d += 32) dot_step(q, k, d, 32, dot);
    if (d < dim) dot_step(q, k, d, dim - d, dot);
}

/* The lanes of four vectors, each added as a fixed tree: one lane of the result for each. */
DSI_INLINE __m128 add_lanes(__m512 a, __m512 b, __m512 c, __m512 d) {
    __m512 ab = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
    __m512 cd = _mm512_add_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
    __m512 all = _mm512_add_ps(
        _mm512_castpd_ps(_mm512_unpacklo_pd(_mm512_castps_pd(ab), _mm512_castps_pd(cd))),
        _mm512_castpd_ps(_mm512_unpackhi_pd(_mm512_castps_pd(ab), _mm512_castps_pd(cd))));
    __m256 half = _mm256_add_ps(_mm512_castps512_ps256(all), _mm512_extractf32x8_ps(all, 1));
    return _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
}

/* Scores of members [first, first + GROUP) for the rows below `limit`; the last member stands in
 * for those that do not exist, the last row for those past the limit. */
static void scores(const dsi_attend_args *args, attend_batch *b, int first, int32_t limit) {
    const uint16_t *q0[GROUP], *q1[GROUP], *k0[ROWS], *k1[ROWS];
    for (int i = 0; i < GROUP; i++) {
        int member = first + i < b->members ? first + i : b->members - 1;
        q0[i] = at(args->q, b->query[member] * args->q_stride);
        q1[i] = q0[i] + args->d0;
    }
    const __m128 scale = _mm_set1_ps(args->scale);
    for (int32_t j = 0; j < limit; j += ROWS) {
        for (int r = 0; r < ROWS; r++) {
            int64_t row = j + r < limit ? j + r : limit - 1;
            k0[r] = at(args->k0, row * args->k0_stride);
            k1[r] = args->d1 > 0 ? at(args->k1, row * args->k1_stride) : NULL;
        }
        __m512 dot[GROUP][ROWS];
        DSI_UNROLL
        for (int i = 0; i < GROUP; i++) {
            DSI_UNROLL
            for (int r = 0; r < ROWS; r++) dot[i][r] = _mm512_setzero_ps();
        }
        dot_range(q0, k0, args->d0, dot);
        if (args->d1 > 0) dot_range(q1, k1, args->d1, dot);
        DSI_UNROLL
        for (int i = 0; i < GROUP; i++)
            _mm_storeu_ps(b->score[i] + j,
                          _mm_mul_ps(add_lanes(dot[i][0], dot[i][1], dot[i][2], dot[i][3]), scale));
    }
}

/* Turns the scores of one member into probabilities and updates its m and l. */
static void softmax(const dsi_attend_args *args, attend_batch *b, int member, float *score) {
    int64_t query = b->query[member];
    int32_t limit = b->limit[member];
    float *m = &args->state_m[query * args->state_stride];
    float *l = &args->state_l[query * args->state_stride];
    __m512 largest = _mm512_set1_ps(*m), sum = _mm512_setzero_ps();
    for (int32_t j = 0; j < limit; j += 16)
        largest = _mm512_mask_max_ps(largest, dsi_v16_lanes(limit - j), _mm512_loadu_ps(score + j),
                                     largest);
    float new_m = _mm512_reduce_max_ps(largest);
    for (int32_t j = 0; j < DSI_PAGE_ROWS; j += 16) {
        __mmask16 lanes = dsi_v16_lanes(limit > j ? limit - j : 0);
        __m512 shifted = _mm512_sub_ps(dsi_v16_load(score + j, lanes), _mm512_set1_ps(new_m));
        __m256i p = dsi_v16_narrow(_mm512_maskz_mov_ps(lanes, dsi_v16_exp(shifted)));
        _mm256_storeu_si256((__m256i *)(b->p[member] + j), p);
        sum = _mm512_add_ps(sum, dsi_v16_widen(p));
    }
    float carry = _mm512_cvtss_f32(dsi_v16_exp(_mm512_set1_ps(*m - new_m)));
    b->carry[member] = carry;
    *l = *l * carry + _mm512_reduce_add_ps(sum);
    *m = new_m;
}

/* ---- Values --------------------------------------------------------------------------------- */

/* Interleaves rows [0, limit) of n_columns columns from `column` on; missing ones are zero. */
static void interleave(const dsi_attend_args *args, attend_batch *b, int64_t column,
                       int64_t n_columns, int32_t limit) {
    const __mmask32 first = lanes32(n_columns),
                    second = lanes32(n_columns > 32 ? n_columns - 32 : 0);
    for (int32_t pair = 0; 2 * pair < limit; pair++) {
        const uint16_t *even = at(args->v, 2 * pair * args->v_stride + column);
        __m512i e0 = _mm512_maskz_loadu_epi16(first, even);
        __m512i e1 = _mm512_maskz_loadu_epi16(second, even + 32);
        __m512i o0 = _mm512_setzero_si512(), o1 = o0;
        if (2 * pair + 1 < limit) {
            const uint16_t *odd = even + args->v_stride;
            o0 = _mm512_maskz_loadu_epi16(first, odd);
            o1 = _mm512_maskz_loadu_epi16(second, odd + 32);
        }
        _mm512_storeu_si512(b->v[pair][0], _mm512_unpacklo_epi16(e0, o0));
        _mm512_storeu_si512(b->v[pair][1], _mm512_unpackhi_epi16(e0, o0));
        _mm512_storeu_si512(b->v[pair][2], _mm512_unpacklo_epi16(e1, o1));
        _mm512_storeu_si512(b->v[pair][3], _mm512_unpackhi_epi16(e1, o1));
    }
}

/* sum[c] += the pairs [from, to) of one member. */
DSI_INLINE void add_pairs(const attend_batch *b, int member, int32_t from, int32_t to,
                          __m512 sum[4]) {
    for (int32_t pair = from; pair < to; pair++) {
        int32_t both;
        memcpy(&both, b->p[member] + 2 * pair, 4);
        __m512bh p = (__m512bh)_mm512_set1_epi32(both);
        DSI_UNROLL
        for (int c = 0; c < 4; c++)
            sum[c] = _mm512_dpbf16_ps(sum[c], p, (__m512bh)_mm512_loadu_si512(b->v[pair][c]));
    }
}

/* The same for a last row without a partner: what stands beside it may be NaN, and is cut off. */
DSI_INLINE void add_last_row(const attend_batch *b, int member, __m512 sum[4]) {
    int32_t pair = b->limit[member] / 2;
    __m512bh p = (__m512bh)_mm512_set1_epi32(b->p[member][2 * pair]);
    DSI_UNROLL
    for (int c = 0; c < 4; c++) {
        __m512i even =
            _mm512_and_si512(_mm512_loadu_si512(b->v[pair][c]), _mm512_set1_epi32(0xFFFF));
        sum[c] = _mm512_dpbf16_ps(sum[c], p, (__m512bh)even);
    }
}

/* 32 columns of o between the order of memory and that of unpack. */
DSI_INLINE void load_o(const float *o, int64_t n, float carry, __m512 sum[2]) {
    __m512 a = dsi_v16_load(o, dsi_v16_lanes(n));
    __m512 b = dsi_v16_load(o + 16, dsi_v16_lanes(n > 16 ? n - 16 : 0));
    sum[0] = _mm512_mul_ps(_mm512_shuffle_f32x4(a, b, 0x88), _mm512_set1_ps(carry));
    sum[1] = _mm512_mul_ps(_mm512_shuffle_f32x4(a, b, 0xDD), _mm512_set1_ps(carry));
}
DSI_INLINE void store_o(float *o, int64_t n, const __m512 sum[2]) {
    const __m512i low = _mm512_setr_epi32(0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23);
    const __m512i high =
        _mm512_setr_epi32(8, 9, 10, 11, 24, 25, 26, 27, 12, 13, 14, 15, 28, 29, 30, 31);
    _mm512_mask_storeu_ps(o, dsi_v16_lanes(n), _mm512_permutex2var_ps(sum[0], low, sum[1]));
    _mm512_mask_storeu_ps(o + 16, dsi_v16_lanes(n > 16 ? n - 16 : 0),
                          _mm512_permutex2var_ps(sum[0], high, sum[1]));
}

/* n_columns columns of o for n members from `first` on, whose limits are at least 2 * shared. */
DSI_INLINE void values(const dsi_attend_args *args, const attend_batch *b, int first, int n,
                       int64_t column, int64_t n_columns, int32_t shared) {
    __m512 sum[GROUP][4];
    int64_t n_second = n_columns > 32 ? n_columns - 32 : 0;
    DSI_UNROLL
    for (int i = 0; i < n; i++) {
        const float *o = args->o + b->query[first + i] * args->o_stride + column;
        load_o(o, n_columns, b->carry[first + i], sum[i]);
        load_o(o + 32, n_second, b->carry[first + i], sum[i] + 2);
    }
    for (int32_t pair = 0; pair < shared; pair++) {
        __m512bh v[4];
        DSI_UNROLL
        for (int c = 0; c < 4; c++) v[c] = (__m512bh)_mm512_loadu_si512(b->v[pair][c]);
        DSI_UNROLL
        for (int i = 0; i < n; i++) {
            int32_t both;
            memcpy(&both, b->p[first + i] + 2 * pair, 4);
            __m512bh p = (__m512bh)_mm512_set1_epi32(both);
            DSI_UNROLL
            for (int c = 0; c < 4; c++) sum[i][c] = _mm512_dpbf16_ps(sum[i][c], p, v[c]);
        }
    }
    DSI_UNROLL
    for (int i = 0; i < n; i++) {
        float *o = args->o + b->query[first + i] * args->o_stride + column;
        add_pairs(b, first + i, shared, b->limit[first + i] / 2, sum[i]);
        if (b->limit[first + i] % 2) add_last_row(b, first + i, sum[i]);
        store_o(o, n_columns, sum[i]);
        store_o(o + 32, n_second, sum[i] + 2);
    }
}

static void run_batch(const dsi_attend_args *args, attend_batch *b) {
    int32_t most = 0;
    for (int i = 0; i < b->members; i += GROUP) {
        int32_t limit = 0;
        int n = b->members - i < GROUP ? b->members - i : GROUP;
        for (int j = 0; j < n; j++) limit = b->limit[i + j] > limit ? b->limit[i + j] : limit;
        scores(args, b, i, limit);
        for (int j = 0; j < n; j++) softmax(args, b, i + j, b->score[j]);
        if (limit > most) most = limit;
    }
    for (int64_t column = 0; column < args->dv; column += COLUMNS) {
        int64_t n_columns = args->dv - column < COLUMNS ? args->dv - column : COLUMNS;
        interleave(args, b, column, n_columns, most);
        int i = 0;
        for (; i + GROUP <= b->members; i += GROUP) {
            int32_t least = DSI_PAGE_ROWS;
            for (int j = 0; j < GROUP; j++)
                least = b->limit[i + j] < least ? b->limit[i + j] : least;
            values(args, b, i, GROUP, column, n_columns, least / 2);
        }
        for (; i < b->members; i++) values(args, b, i, 1, column, n_columns, b->limit[i] / 2);
    }
    b->members = 0;
}

void dsi_attend_bf16__avx512bf16(const dsi_attend_args *args) {
    attend_batch b;
    b.members = 0;
    for (int64_t i = 0; i < args->n_q; i++) {
        if (args->limit[i] <= 0) continue;
        b.query[b.members] = i;
        b.limit[b.members++] = args->limit[i];
        if (b.members == BATCH) run_batch(args, &b);
    }
    if (b.members > 0) run_batch(args, &b);
}
