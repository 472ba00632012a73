/* bf16_avx512bf16.c: attention over one page with VDPBF16PS, for scores and for values.
 *
 * Both products are GEMMs whose operand from the page is packed once for up to 128 queries, so that
 * no sum ever has to be added across lanes:
 *   scores   K as [pair of elements][row]: a lane is a row of the page, a query's pair of elements
 *            is broadcast; 4 queries x 64 rows are 16 sums in registers. Packed are 192 elements of
 *            K at a time (24 KB), the scores so far wait in memory;
 *   values   V as [pair of rows][column]: a lane is a column, a query's pair of probabilities is
 *            broadcast; 4 queries x 64 columns at a time.
 * What a query gets does not depend on its company: a score adds pairs of elements of d0 and then
 * d1 in ascending order, a column adds pairs of rows in ascending order up to the query's own
 * limit, an odd last row alone. */
#include "../kernels.h"
#include "../vector.h"
#include "transpose_avx512.h"
#include <math.h>

enum { GROUP = 4, BATCH = 128, COLUMNS = 64, K_PAIRS = 96 };
enum { P_STRIDE = 2 * DSI_PAGE_ROWS }; /* bf16 between the probabilities of two members */

/* The queries of a batch with a limit above 0, and what is known of them. */
typedef struct attend_batch {
    _Alignas(64) uint32_t packed[K_PAIRS][DSI_PAGE_ROWS]; /* pairs of bf16: of K, then of V */
    _Alignas(
        64) float score[BATCH][DSI_PAGE_ROWS]; /* later the probabilities: bf16, in its place */
    float change[BATCH];                       /* m - m', then exp of it */
    float sum[BATCH];                          /* of the probabilities */
    int64_t query[BATCH];
    int32_t limit[BATCH];
    int32_t most; /* the largest limit */
    int members;
} attend_batch;

DSI_INLINE const uint16_t *at(const void *array, int64_t element) {
    return (const uint16_t *)array + element;
}
DSI_INLINE __m512bh broadcast_pair(const void *pair) {
    int32_t both;
    memcpy(&both, pair, 4);
    return (__m512bh)_mm512_set1_epi32(both);
}

/* ---- Scores --------------------------------------------------------------------------------- */

/* Elements [first, first + n) of all rows of K below b->most as packed pairs from `pair` on. Rows
 * past it, up to a multiple of 16, and the partner of an odd last element are zero. */
static void pack_keys(attend_batch *b, const void *k, int64_t stride, int64_t first, int64_t n,
                      int64_t pair) {
    for (int32_t row = 0; row < b->most; row += 16)
        for (int64_t d = 0; d < n; d += 32) {
            const uint16_t *from = at(k, row * stride + first + d);
            uint32_t(*to)[DSI_PAGE_ROWS] =
                (uint32_t(*)[DSI_PAGE_ROWS])(void *)(b->packed[pair + d / 2] + row);
            __m512i low[8], high[8];
            if (n - d >= 32 && b->most - row >= 16) {
                DSI_UNROLL
                for (int i = 0; i < 8; i++) {
                    low[i] = _mm512_loadu_si512(from + i * stride);
                    high[i] = _mm512_loadu_si512(from + (i + 8) * stride);
                }
                dsi_store_transposed(low, high, 16, to);
                continue;
            }
            const __mmask32 lanes = dsi_v32_lanes(n - d);
            for (int i = 0; i < 8; i++) {
                low[i] = high[i] = _mm512_setzero_si512();
                if (row + i < b->most) low[i] = _mm512_maskz_loadu_epi16(lanes, from + i * stride);
                if (row + i + 8 < b->most)
                    high[i] = _mm512_maskz_loadu_epi16(lanes, from + (i + 8) * stride);
            }
            dsi_store_transposed(low, high, n - d < 32 ? (n - d + 1) / 2 : 16, to);
        }
}

/* Adds n packed elements to the scores of members [first, first + members) for the first 16 *
 * vectors rows; q[] points at their elements. An odd last one stands alone. */
DSI_INLINE void score_tile(attend_batch *b, int first, int members, int vectors, bool begin,
                           const uint16_t *const *q, int64_t n) {
    __m512 sum[GROUP][4];
    DSI_UNROLL
    for (int i = 0; i < members; i++) {
        DSI_UNROLL
        for (int v = 0; v < vectors; v++)
            sum[i][v] = begin ? _mm512_setzero_ps() : _mm512_load_ps(b->score[first + i] + 16 * v);
    }
    for (int64_t pair = 0; pair < n / 2; pair++) {
        __m512bh k[4];
        DSI_UNROLL
        for (int v = 0; v < vectors; v++)
            k[v] = (__m512bh)_mm512_load_si512(b->packed[pair] + 16 * v);
        DSI_UNROLL
        for (int i = 0; i < members; i++) {
            __m512bh both = broadcast_pair(q[i] + 2 * pair);
            DSI_UNROLL
            for (int v = 0; v < vectors; v++) sum[i][v] = _mm512_dpbf16_ps(sum[i][v], both, k[v]);
        }
    }
    DSI_UNROLL
    for (int i = 0; i < members; i++) {
        __m512bh last = (__m512bh)_mm512_set1_epi32(n % 2 ? q[i][n - 1] : 0);
        DSI_UNROLL
        for (int v = 0; v < vectors; v++) {
            if (n % 2)
                sum[i][v] = _mm512_dpbf16_ps(
                    sum[i][v], last, (__m512bh)_mm512_load_si512(b->packed[n / 2] + 16 * v));
            _mm512_store_ps(b->score[first + i] + 16 * v, sum[i][v]);
        }
    }
}

/* Adds the n packed elements, which are elements [start, start + n) of the queries. */
static void add_scores(const dsi_attend_args *args, attend_batch *b, int64_t start, int64_t n) {
    const bool begin = start == 0;
    const uint16_t *q[GROUP];
    int i = 0;
    for (; i + GROUP <= b->members; i += GROUP) {
        int32_t most = 0;
        for (int j = 0; j < GROUP; j++) {
            q[j] = at(args->q, b->query[i + j] * args->q_stride + start);
            most = b->limit[i + j] > most ? b->limit[i + j] : most;
        }
        if (most > 48)
            score_tile(b, i, GROUP, 4, begin, q, n);
        else if (most > 32)
            score_tile(b, i, GROUP, 3, begin, q, n);
        else if (most > 16)
            score_tile(b, i, GROUP, 2, begin, q, n);
        else
            score_tile(b, i, GROUP, 1, begin, q, n);
    }
    for (; i < b->members; i++) {
        q[0] = at(args->q, b->query[i] * args->q_stride + start);
        score_tile(b, i, 1, 4, begin, q, n);
    }
}

/* q . [k0 | k1] of all members. What is packed never goes beyond an odd element, so that pairs of a
 * query are where pairs of its keys are. */
static void all_scores(const dsi_attend_args *args, attend_batch *b) {
    int64_t start = 0, end = 0; /* elements of a query that are packed */
    for (int part = 0; part < 2; part++) {
        const void *k = part == 0 ? args->k0 : args->k1;
        const int64_t dim = part == 0 ? args->d0 : args->d1;
        for (int64_t d = 0; d < dim;) {
            int64_t n = 2 * K_PAIRS - (end - start);
            n = dim - d < n ? dim - d : n;
            pack_keys(b, k, part == 0 ? args->k0_stride : args->k1_stride, d, n, (end - start) / 2);
            d += n, end += n;
            if ((end - start) % 2 == 0 && end - start < 2 * K_PAIRS) continue;
            add_scores(args, b, start, end - start);
            start = end;
        }
    }
    if (end > start) add_scores(args, b, start, end - start);
}

/* ---- Probabilities -------------------------------------------------------------------------- */

/* 2^x for x <= 0 as 2^n 2^r, n = round(x): within 2 ulp of f32; 0 below -150; NaN stays NaN. */
DSI_INLINE __m512 exp2_negative(__m512 x) {
    x = _mm512_max_ps(_mm512_set1_ps(-200), x); /* the second operand if that is NaN */
    __m512 n = _mm512_cvtepi32_ps(_mm512_cvtps_epi32(x)), r = _mm512_sub_ps(x, n);
    __m512 p = _mm512_set1_ps(1.3264727e-3f);
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(9.671513e-3f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(5.5507336e-2f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(2.4022242e-1f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(6.93147e-1f));
    return _mm512_scalef_ps(_mm512_fmadd_ps(p, r, _mm512_set1_ps(1)), n);
}

/* Turns the scores of one member into probabilities; its new m. */
DSI_INLINE void softmax(const dsi_attend_args *args, attend_batch *b, int member) {
    float *m = &args->state_m[b->query[member] * args->state_stride];
    const int32_t limit = b->limit[member];
    const __m512 scale = _mm512_set1_ps(args->scale);
    __m512 x[4], largest = _mm512_set1_ps(*m);
    __mmask16 lanes[4];
    DSI_UNROLL
    for (int v = 0; v < 4; v++) {
        lanes[v] = dsi_v16_lanes(limit > 16 * v ? limit - 16 * v : 0);
        x[v] = _mm512_mul_ps(_mm512_load_ps(b->score[member] + 16 * v), scale);
        /* a NaN as the first operand is passed over */
        largest = _mm512_mask_max_ps(largest, lanes[v], x[v], largest);
    }
    const float new_m = _mm512_reduce_max_ps(largest);
    const __m512 offset = _mm512_set1_ps(new_m * DSI_LOG2_E), log2_e = _mm512_set1_ps(DSI_LOG2_E);
    DSI_UNROLL
    for (int v = 0; v < 4; v++) {
        x[v] = exp2_negative(_mm512_fmsub_ps(x[v], log2_e, offset));
        x[v] = _mm512_maskz_mov_ps(lanes[v], x[v]);
    }
    const __m512i low = (__m512i)_mm512_cvtne2ps_pbh(x[1], x[0]);
    const __m512i high = (__m512i)_mm512_cvtne2ps_pbh(x[3], x[2]);
    const __m512bh ones = (__m512bh)_mm512_set1_epi16(0x3F80);
    _mm512_store_si512(b->score[member], low);
    _mm512_store_si512(b->score[member] + 16, high);
    __m512 sum = _mm512_dpbf16_ps(_mm512_setzero_ps(), (__m512bh)low, ones);
    b->sum[member] = _mm512_reduce_add_ps(_mm512_dpbf16_ps(sum, (__m512bh)high, ones));
    b->change[member] = *m - new_m;
    *m = new_m;
}

/* exp(m - m') of all members, and their l. */
static void update_sums(const dsi_attend_args *args, attend_batch *b) {
    for (int i = 0; i < b->members; i += 16) {
        const __mmask16 lanes = dsi_v16_lanes(b->members - i);
        __m512 change = dsi_v16_load(b->change + i, lanes);
        change = exp2_negative(_mm512_mul_ps(change, _mm512_set1_ps(DSI_LOG2_E)));
        _mm512_mask_storeu_ps(b->change + i, lanes, change);
    }
    for (int i = 0; i < b->members; i++) {
        float *l = &args->state_l[b->query[i] * args->state_stride];
        *l = *l * b->change[i] + b->sum[i];
    }
}

/* What is left to prefetch, and how much of it at a time. */
typedef struct fetch {
    uintptr_t at, end;
    int64_t lines;
} fetch;

/* ---- Values --------------------------------------------------------------------------------- */

/* Rows below b->most of n_columns columns from `column` on as packed pairs; missing ones are zero.
 */
static void pack_values(const dsi_attend_args *args, attend_batch *b, int64_t column,
                        int64_t n_columns) {
    const __m512i step = _mm512_set1_epi32(0x00200000); /* an element of the odd row behind each */
    const __m512i low =
        _mm512_add_epi32(step, _mm512_mullo_epi32(_mm512_set1_epi32(0x00010001),
                                                  _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9,
                                                                    10, 11, 12, 13, 14, 15)));
    const __m512i high = _mm512_add_epi32(low, _mm512_set1_epi32(0x00100010));
    for (int32_t pair = 0; 2 * pair < b->most; pair++) {
        const uint16_t *even = at(args->v, 2 * pair * args->v_stride + column);
        uint32_t *to = b->packed[pair];
        DSI_UNROLL
        for (int half = 0; half < 2; half++) {
            const __mmask32 lanes = dsi_v32_lanes(n_columns - 32 * half);
            __m512i e = _mm512_maskz_loadu_epi16(lanes, even + 32 * half), o;
            o = 2 * pair + 1 < b->most
                    ? _mm512_maskz_loadu_epi16(lanes, even + args->v_stride + 32 * half)
                    : _mm512_setzero_si512();
            _mm512_store_si512(to + 32 * half, _mm512_permutex2var_epi16(e, low, o));
            _mm512_store_si512(to + 32 * half + 16, _mm512_permutex2var_epi16(e, high, o));
        }
    }
}

DSI_INLINE const uint16_t *probabilities(const attend_batch *b, int member) {
    return (const uint16_t *)(const void *)b->score[member];
}

/* The pairs [from, to) of one member, then its last row if that has no partner: what stands beside
 * it may be NaN, and is cut off. */
DSI_INLINE void add_own_rows(const attend_batch *b, int member, int32_t from, __m512 sum[4]) {
    const uint16_t *p = probabilities(b, member);
    const int32_t limit = b->limit[member];
    for (int32_t pair = from; pair < limit / 2; pair++) {
        __m512bh both = broadcast_pair(p + 2 * pair);
        DSI_UNROLL
        for (int c = 0; c < 4; c++)
            sum[c] = _mm512_dpbf16_ps(sum[c], both,
                                      (__m512bh)_mm512_load_si512(b->packed[pair] + 16 * c));
    }
    if (limit % 2 == 0) return;
    uint16_t alone;
    memcpy(&alone, p + limit - 1, 2);
    DSI_UNROLL
    for (int c = 0; c < 4; c++) {
        __m512i even = _mm512_and_si512(_mm512_load_si512(b->packed[limit / 2] + 16 * c),
                                        _mm512_set1_epi32(0xFFFF));
        sum[c] = _mm512_dpbf16_ps(sum[c], (__m512bh)_mm512_set1_epi32(alone), (__m512bh)even);
    }
}

/* n_columns columns of o for `members` members from `first` on, whose limits are at least
 * 2 * shared. `whole`: n_columns is COLUMNS. */
DSI_INLINE void values(const dsi_attend_args *args, const attend_batch *b, int first, int members,
                       int64_t column, int64_t n_columns, int32_t shared, bool whole) {
    __m512 sum[GROUP][4];
    /* one pointer: those of the members would not fit into registers */
    const uint16_t *p = probabilities(b, first);
    float *o[GROUP];
    DSI_UNROLL
    for (int i = 0; i < members; i++) {
        const __m512 carry = _mm512_set1_ps(b->change[first + i]);
        o[i] = args->o + b->query[first + i] * args->o_stride + column;
        DSI_UNROLL
        for (int c = 0; c < 4; c++) {
            __mmask16 lanes = dsi_v16_lanes(n_columns > 16 * c ? n_columns - 16 * c : 0);
            __m512 old =
                whole ? _mm512_loadu_ps(o[i] + 16 * c) : dsi_v16_load(o[i] + 16 * c, lanes);
            sum[i][c] = _mm512_mul_ps(old, carry);
        }
    }
    for (int32_t pair = 0; pair < shared; pair++) {
        __m512bh v[4];
        DSI_UNROLL
        for (int c = 0; c < 4; c++) v[c] = (__m512bh)_mm512_load_si512(b->packed[pair] + 16 * c);
        DSI_UNROLL
        for (int i = 0; i < members; i++) {
            __m512bh both = broadcast_pair(p + i * P_STRIDE + 2 * pair);
            DSI_UNROLL
            for (int c = 0; c < 4; c++) sum[i][c] = _mm512_dpbf16_ps(sum[i][c], both, v[c]);
        }
    }
    DSI_UNROLL
    for (int i = 0; i < members; i++) {
        if (b->limit[first + i] > 2 * shared) add_own_rows(b, first + i, shared, sum[i]);
        DSI_UNROLL
        for (int c = 0; c < 4; c++) {
            __mmask16 lanes = dsi_v16_lanes(n_columns > 16 * c ? n_columns - 16 * c : 0);
            if (whole)
                _mm512_storeu_ps(o[i] + 16 * c, sum[i][c]);
            else
                _mm512_mask_storeu_ps(o[i] + 16 * c, lanes, sum[i][c]);
        }
    }
}

/* What the next members' columns of o and a part of what comes next cost otherwise is waiting. */
DSI_INLINE void fetch_ahead(const dsi_attend_args *args, const attend_batch *b, int first,
                            int64_t column, fetch *next) {
    for (int i = first; i < first + GROUP && i < b->members; i++) {
        const float *o = args->o + b->query[i] * args->o_stride + column;
        for (int c = 0; c < COLUMNS; c += 16) __builtin_prefetch(o + c, 1, 3);
    }
    for (int i = 0; i < next->lines && next->at < next->end; i++, next->at += 64)
        _mm_prefetch((const char *)next->at, _MM_HINT_T1);
}

static void all_values(const dsi_attend_args *args, attend_batch *b) {
    int64_t calls = (args->dv + COLUMNS - 1) / COLUMNS * ((b->members + GROUP - 1) / GROUP);
    fetch next = {(uintptr_t)args->next, (uintptr_t)args->next + (uintptr_t)args->next_bytes, 0};
    next.lines = args->next_bytes / 64 / calls + 1;
    for (int64_t column = 0; column < args->dv; column += COLUMNS) {
        const int64_t n_columns = args->dv - column < COLUMNS ? args->dv - column : COLUMNS;
        pack_values(args, b, column, n_columns);
        int i = 0;
        for (; i + GROUP <= b->members; i += GROUP) {
            fetch_ahead(args, b, i + GROUP, column, &next);
            int32_t least = DSI_PAGE_ROWS;
            for (int j = 0; j < GROUP; j++)
                least = b->limit[i + j] < least ? b->limit[i + j] : least;
            if (n_columns == COLUMNS)
                values(args, b, i, GROUP, column, COLUMNS, least / 2, true);
            else
                values(args, b, i, GROUP, column, n_columns, least / 2, false);
        }
        for (; i < b->members; i++)
            values(args, b, i, 1, column, n_columns, b->limit[i] / 2, false);
    }
}

static void run_batch(const dsi_attend_args *args, attend_batch *b) {
    all_scores(args, b);
    for (int i = 0; i < b->members; i++) softmax(args, b, i);
    update_sums(args, b);
    all_values(args, b);
}

void dsi_attend_bf16__avx512bf16(const dsi_attend_args *args) {
    attend_batch b;
    for (int64_t i = 0; i < args->n_q;) {
        int32_t most = 0;
        int members = 0;
        for (; i < args->n_q && members < BATCH; i++) {
            const int32_t limit = args->limit[i];
            if (limit <= 0) continue;
            b.query[members] = i;
            b.limit[members++] = limit;
            most = limit > most ? limit : most;
        }
        b.members = members, b.most = most;
        if (members > 0) run_batch(args, &b);
    }
}
