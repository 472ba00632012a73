/* block_avx512.h: the online-softmax block of kernels.h on AVX-512. Included by bf16_avx512.c and
 * f32_avx512.c; `bf16` is a constant in both.
 *
 * Queries go in groups of four, so that a loaded row of K or V serves four of them. What a query
 * gets does not depend on its group: each (query, row) dot has one accumulator that walks d0 and
 * then d1, each element of o adds rows in ascending order, and both tile widths do it alike. */
#ifndef DSI_KERNELS_ATTEND_BLOCK_AVX512_H
#define DSI_KERNELS_ATTEND_BLOCK_AVX512_H

#include "../kernels.h"
#include "../vector.h"
#include <math.h>

enum { ATTEND_GROUP = 4, ATTEND_ROWS = 4, ATTEND_VECTORS = 4 };

/* Up to four queries with a limit above 0, and what is known of them. */
typedef struct attend_group {
    int64_t query[ATTEND_GROUP];
    float p[ATTEND_GROUP][DSI_PAGE_ROWS]; /* scores, then exp(score - m') */
    float carry[ATTEND_GROUP];            /* exp(m - m') */
} attend_group;

DSI_INLINE const uint8_t *attend_at(const void *array, int64_t element, bool bf16) {
    return (const uint8_t *)array + element * (bf16 ? 2 : 4);
}

/* Of 32 elements the first n, zeros behind them, as two vectors in an order that only the dot
 * products know: for bf16 the even and the odd elements, which needs no shuffle. */
DSI_INLINE void attend_load_pair(const uint8_t *from, int64_t n, bool bf16, __m512 pair[2]) {
    if (bf16) {
        __mmask32 lanes = n >= 32 ? 0xFFFFFFFFu : (1u << n) - 1u;
        __m512i both = _mm512_maskz_loadu_epi16(lanes, from);
        pair[0] = _mm512_castsi512_ps(_mm512_slli_epi32(both, 16));
        pair[1] =
            _mm512_castsi512_ps(_mm512_and_si512(both, _mm512_set1_epi32((int32_t)0xFFFF0000u)));
    } else {
        pair[0] = dsi_v16_load(from, dsi_v16_lanes(n));
        pair[1] = dsi_v16_load(from + 64, dsi_v16_lanes(n > 16 ? n - 16 : 0));
    }
}

/* Adds the products of n of 32 elements, from element d on, to dot[][]. */
DSI_INLINE void attend_dot_step(const uint8_t *const *q, const uint8_t *const *k, int64_t d,
                                int64_t n, bool bf16, int n_q,
                                __m512 dot[ATTEND_GROUP][ATTEND_ROWS]) {
    __m512 query[ATTEND_GROUP][2], row[2];
    DSI_UNROLL
    for (int i = 0; i < n_q; i++) attend_load_pair(attend_at(q[i], d, bf16), n, bf16, query[i]);
    DSI_UNROLL
    for (int j = 0; j < ATTEND_ROWS; j++) {
        attend_load_pair(attend_at(k[j], d, bf16), n, bf16, row);
        DSI_UNROLL
        for (int i = 0; i < n_q; i++) {
            dot[i][j] = _mm512_fmadd_ps(query[i][0], row[0], dot[i][j]);
            dot[i][j] = _mm512_fmadd_ps(query[i][1], row[1], dot[i][j]);
        }
    }
}

/* Adds the products of n_q queries with ATTEND_ROWS rows over `dim` elements to dot[][]. */
DSI_INLINE void attend_dot(const uint8_t *const *q, const uint8_t *const *k, int64_t dim, bool bf16,
                           int n_q, __m512 dot[ATTEND_GROUP][ATTEND_ROWS]) {
    int64_t d = 0;
    for (; d + 32 <= dim; d += 32) attend_dot_step(q, k, d, 32, bf16, n_q, dot);
    if (d < dim) attend_dot_step(q, k, d, dim - d, bf16, n_q, dot);
}

/* Scores of group members [first, first + n_q) for the rows below `limit`. */
DSI_INLINE void attend_scores(const dsi_attend_args *args, attend_group *group, int first, int n_q,
                              int32_t limit, bool bf16) {
    const uint8_t *q0[ATTEND_GROUP], *q1[ATTEND_GROUP], *k0[ATTEND_ROWS], *k1[ATTEND_ROWS];
    for (int i = 0; i < n_q; i++) {
        q0[i] = attend_at(args->q, group->query[first + i] * args->q_stride, bf16);
        q1[i] = attend_at(q0[i], args->d0, bf16);
    }
    for (int32_t j = 0; j < limit; j += ATTEND_ROWS) {
        for (int r = 0; r < ATTEND_ROWS; r++) {
            /* Past the limit the last row is taken again and its score never used. */
            int64_t row = j + r < limit ? j + r : limit - 1;
            k0[r] = attend_at(args->k0, row * args->k0_stride, bf16);
            k1[r] = args->d1 > 0 ? attend_at(args->k1, row * args->k1_stride, bf16) : NULL;
        }
        __m512 dot[ATTEND_GROUP][ATTEND_ROWS];
        DSI_UNROLL
        for (int i = 0; i < n_q; i++) {
            DSI_UNROLL
            for (int r = 0; r < ATTEND_ROWS; r++) dot[i][r] = _mm512_setzero_ps();
        }
        attend_dot(q0, k0, args->d0, bf16, n_q, dot);
        attend_dot(q1, k1, args->d1, bf16, n_q, dot);
        DSI_UNROLL
        for (int i = 0; i < n_q; i++) {
            DSI_UNROLL
            for (int r = 0; r < ATTEND_ROWS; r++)
                group->p[first + i][j + r] = _mm512_reduce_add_ps(dot[i][r]) * args->scale;
        }
    }
}

/* Turns the scores of one member into probabilities and updates its m and l. */
static inline void attend_softmax(const dsi_attend_args *args, attend_group *group, int member,
                                  bool bf16) {
    int64_t query = group->query[member];
    int32_t limit = args->limit[query];
    float *m = &args->state_m[query * args->state_stride], *p = group->p[member];
    float *l = &args->state_l[query * args->state_stride];
    __m512 largest = _mm512_set1_ps(*m), sum = _mm512_setzero_ps();
    for (int32_t j = 0; j < limit; j += 16)
        largest =
            _mm512_mask_max_ps(largest, dsi_v16_lanes(limit - j), _mm512_loadu_ps(p + j), largest);
    float new_m = _mm512_reduce_max_ps(largest);
    for (int32_t j = 0; j < limit; j += 16) {
        __mmask16 lanes = dsi_v16_lanes(limit - j);
        __m512 score = _mm512_sub_ps(dsi_v16_load(p + j, lanes), _mm512_set1_ps(new_m));
        __m512 e = _mm512_maskz_mov_ps(lanes, dsi_v16_exp(score));
        if (bf16) e = dsi_v16_widen(dsi_v16_narrow(e));
        _mm512_storeu_ps(p + j, e);
        sum = _mm512_add_ps(sum, e);
    }
    float carry = _mm512_cvtss_f32(dsi_v16_exp(_mm512_set1_ps(*m - new_m)));
    group->carry[member] = carry;
    *l = *l * carry + _mm512_reduce_add_ps(sum);
    *m = new_m;
}

/* o = o * carry + sum of p_j v_j, j in [j0, j1), for n_q members and n_v vectors of columns. */
DSI_INLINE void attend_values(const dsi_attend_args *args, const attend_group *group, int first,
                              int n_q, const float *carry, int32_t j0, int32_t j1, int64_t column,
                              int n_v, __mmask16 lanes, bool bf16) {
    __m512 sum[ATTEND_GROUP][ATTEND_VECTORS], value[ATTEND_VECTORS];
    DSI_UNROLL
    for (int i = 0; i < n_q; i++) {
        const float *o = args->o + group->query[first + i] * args->o_stride + column;
        DSI_UNROLL
        for (int c = 0; c < n_v; c++)
            sum[i][c] = _mm512_mul_ps(dsi_v16_load(o + 16 * c, lanes), _mm512_set1_ps(carry[i]));
    }
    for (int32_t j = j0; j < j1; j++) {
        const uint8_t *row = attend_at(args->v, j * args->v_stride + column, bf16);
        DSI_UNROLL
        for (int c = 0; c < n_v; c++)
            value[c] =
                bf16 ? dsi_v16_load_bf16(row + 32 * c, lanes) : dsi_v16_load(row + 64 * c, lanes);
        DSI_UNROLL
        for (int i = 0; i < n_q; i++) {
            __m512 p = _mm512_set1_ps(group->p[first + i][j]);
            DSI_UNROLL
            for (int c = 0; c < n_v; c++) sum[i][c] = _mm512_fmadd_ps(p, value[c], sum[i][c]);
        }
    }
    DSI_UNROLL
    for (int i = 0; i < n_q; i++) {
        float *o = args->o + group->query[first + i] * args->o_stride + column;
        DSI_UNROLL
        for (int c = 0; c < n_v; c++) _mm512_mask_storeu_ps(o + 16 * c, lanes, sum[i][c]);
    }
}

/* All columns of o for members [first, first + n_q) and rows [j0, j1). */
DSI_INLINE void attend_output(const dsi_attend_args *args, const attend_group *group, int first,
                              int n_q, const float *carry, int32_t j0, int32_t j1, bool bf16) {
    int64_t column = 0, wide = 16 * ATTEND_VECTORS;
    for (; column + wide <= args->dv; column += wide)
        attend_values(args, group, first, n_q, carry, j0, j1, column, ATTEND_VECTORS, 0xFFFF, bf16);
    for (; column < args->dv; column += 16)
        attend_values(args, group, first, n_q, carry, j0, j1, column, 1,
                      dsi_v16_lanes(args->dv - column), bf16);
}

/* A full group shares the rows that all its members see; what only some see is added one by one. */
DSI_INLINE void attend_full_group(const dsi_attend_args *args, attend_group *group, bool bf16) {
    int32_t least = DSI_PAGE_ROWS, most = 0;
    for (int i = 0; i < ATTEND_GROUP; i++) {
        int32_t limit = args->limit[group->query[i]];
        least = limit < least ? limit : least;
        most = limit > most ? limit : most;
    }
    attend_scores(args, group, 0, ATTEND_GROUP, most, bf16);
    for (int i = 0; i < ATTEND_GROUP; i++) attend_softmax(args, group, i, bf16);
    attend_output(args, group, 0, ATTEND_GROUP, group->carry, 0, least, bf16);
    for (int i = 0; i < ATTEND_GROUP; i++) {
        static const float carried = 1;
        int32_t limit = args->limit[group->query[i]];
        if (limit > least) attend_output(args, group, i, 1, &carried, least, limit, bf16);
    }
}

DSI_INLINE void attend_block(const dsi_attend_args *args, bool bf16) {
    attend_group group;
    int members = 0;
    for (int64_t i = 0; i < args->n_q; i++) {
        if (args->limit[i] <= 0) continue;
        group.query[members++] = i;
        if (members == ATTEND_GROUP) {
            attend_full_group(args, &group, bf16);
            members = 0;
        }
    }
    for (int i = 0; i < members; i++) {
        int32_t limit = args->limit[group.query[i]];
        attend_scores(args, &group, i, 1, limit, bf16);
        attend_softmax(args, &group, i, bf16);
        attend_output(args, &group, i, 1, group.carry + i, 0, limit, bf16);
    }
}

#endif
