/* block_avx2.h: the online-softmax block of kernels.h on AVX2 and FMA. Included by bf16_avx2.c and
 * f32_avx2.c; `bf16` is a constant in both.
 *
 * Queries go in groups of four, so that a loaded row of K or V serves four of them. What a query
 * gets does not depend on its group: each (query, row) dot has one accumulator that walks d0 and
 * then d1, each element of o adds rows in ascending order, and both tile widths do it alike. */
#ifndef DSI_KERNELS_ATTEND_BLOCK_AVX2_H
#define DSI_KERNELS_ATTEND_BLOCK_AVX2_H

#include "../kernels.h"
#include "../vector.h"
#include <math.h>

enum { ATTEND_GROUP = 4, ATTEND_ROWS = 2, ATTEND_VECTORS = 2 };

/* Up to four queries with a limit above 0, and what is known of them. */
typedef struct attend_group {
    int64_t query[ATTEND_GROUP];
    float p[ATTEND_GROUP][DSI_PAGE_ROWS]; /* scores, then exp(score - m') */
    float carry[ATTEND_GROUP];            /* exp(m - m') */
} attend_group;

DSI_INLINE const uint8_t *attend_at(const void *array, int64_t element, bool bf16) {
    return (const uint8_t *)array + element * (bf16 ? 2 : 4);
}

/* Half 0 or 1 of 16 elements, in an order that only the dot products know: for bf16 the even or the
 * odd elements, which needs no shuffle. */
DSI_INLINE __m256 attend_load_half(const uint8_t *from, int half, bool bf16) {
    if (!bf16) return _mm256_loadu_ps((const float *)(const void *)(from + 32 * half));
    __m256i both = _mm256_loadu_si256((const __m256i *)(const void *)from);
    return _mm256_castsi256_ps(
        half == 0 ? _mm256_slli_epi32(both, 16)
                  : _mm256_and_si256(both, _mm256_set1_epi32((int32_t)0xFFFF0000u)));
}

/* Adds the products of 16 elements of n_q queries with ATTEND_ROWS rows to dot[][]. */
DSI_INLINE void attend_dot_step(const uint8_t *const *q, const uint8_t *const *k, int64_t offset,
                                bool bf16, int n_q, __m256 dot[ATTEND_GROUP][ATTEND_ROWS]) {
    DSI_UNROLL
    for (int half = 0; half < 2; half++) {
        __m256 row[ATTEND_ROWS];
        DSI_UNROLL
        for (int j = 0; j < ATTEND_ROWS; j++) row[j] = attend_load_half(k[j] + offset, half, bf16);
        DSI_UNROLL
        for (int i = 0; i < n_q; i++) {
            __m256 query = attend_load_half(q[i] + offset, half, bf16);
            DSI_UNROLL
            for (int j = 0; j < ATTEND_ROWS; j++)
                dot[i][j] = _mm256_fmadd_ps(query, row[j], dot[i][j]);
        }
    }
}

/* The same over `dim` elements. The tail is copied to zeroed room, since AVX2 has no masked loads
 * of 16-bit elements. */
DSI_INLINE void attend_dot(const uint8_t *const *q, const uint8_t *const *k, int64_t dim, bool bf16,
                           int n_q, __m256 dot[ATTEND_GROUP][ATTEND_ROWS]) {
    int64_t size = bf16 ? 2 : 4, d = 0;
    for (; d + 16 <= dim; d += 16) attend_dot_step(q, k, d * size, bf16, n_q, dot);
    if (d == dim) return;
    uint8_t room[ATTEND_GROUP + ATTEND_ROWS][64] = {{0}};
    const uint8_t *q_tail[ATTEND_GROUP], *k_tail[ATTEND_ROWS];
    for (int i = 0; i < n_q; i++)
        q_tail[i] = memcpy(room[i], q[i] + d * size, (size_t)((dim - d) * size));
    for (int j = 0; j < ATTEND_ROWS; j++)
        k_tail[j] = memcpy(room[ATTEND_GROUP + j], k[j] + d * size, (size_t)((dim - d) * size));
    attend_dot_step(q_tail, k_tail, 0, bf16, n_q, dot);
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
        __m256 dot[ATTEND_GROUP][ATTEND_ROWS];
        DSI_UNROLL
        for (int i = 0; i < n_q; i++) {
            DSI_UNROLL
            for (int r = 0; r < ATTEND_ROWS; r++) dot[i][r] = _mm256_setzero_ps();
        }
        attend_dot(q0, k0, args->d0, bf16, n_q, dot);
        attend_dot(q1, k1, args->d1, bf16, n_q, dot);
        DSI_UNROLL
        for (int i = 0; i < n_q; i++) {
            DSI_UNROLL
            for (int r = 0; r < ATTEND_ROWS; r++)
                group->p[first + i][j + r] = dsi_v8_sum(dot[i][r]) * args->scale;
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
    /* Rows past the limit get -inf, hence probability 0, up to a whole vector. */
    for (int32_t j = limit; j % 8 != 0; j++) p[j] = -INFINITY;
    __m256 largest = _mm256_set1_ps(*m), sum = _mm256_setzero_ps();
    for (int32_t j = 0; j < limit; j += 8) largest = _mm256_max_ps(_mm256_loadu_ps(p + j), largest);
    float new_m = dsi_v8_max(largest);
    for (int32_t j = 0; j < limit; j += 8) {
        __m256 e = dsi_v8_exp(_mm256_sub_ps(_mm256_loadu_ps(p + j), _mm256_set1_ps(new_m)));
        if (bf16) e = dsi_v8_widen(dsi_v8_narrow(e));
        _mm256_storeu_ps(p + j, e);
        sum = _mm256_add_ps(sum, e);
    }
    float carry = _mm256_cvtss_f32(dsi_v8_exp(_mm256_set1_ps(*m - new_m)));
    group->carry[member] = carry;
    *l = *l * carry + dsi_v8_sum(sum);
    *m = new_m;
}

/* o = o * carry + sum of p_j v_j, j in [j0, j1), for n_q members and n_v vectors of columns, of
 * which the last holds n_last elements. */
DSI_INLINE void attend_values(const dsi_attend_args *args, const attend_group *group, int first,
                              int n_q, const float *carry, int32_t j0, int32_t j1, int64_t column,
                              int n_v, int64_t n_last, bool bf16) {
    __m256 sum[ATTEND_GROUP][ATTEND_VECTORS], value[ATTEND_VECTORS];
    DSI_UNROLL
    for (int i = 0; i < n_q; i++) {
        const float *o = args->o + group->query[first + i] * args->o_stride + column;
        DSI_UNROLL
        for (int c = 0; c < n_v; c++)
            sum[i][c] = _mm256_mul_ps(dsi_v8_load(o + 8 * c, n_last), _mm256_set1_ps(carry[i]));
    }
    for (int32_t j = j0; j < j1; j++) {
        const uint8_t *row = attend_at(args->v, j * args->v_stride + column, bf16);
        DSI_UNROLL
        for (int c = 0; c < n_v; c++)
            value[c] =
                bf16 ? dsi_v8_load_bf16(row + 16 * c, n_last) : dsi_v8_load(row + 32 * c, n_last);
        DSI_UNROLL
        for (int i = 0; i < n_q; i++) {
            __m256 p = _mm256_set1_ps(group->p[first + i][j]);
            DSI_UNROLL
            for (int c = 0; c < n_v; c++) sum[i][c] = _mm256_fmadd_ps(p, value[c], sum[i][c]);
        }
    }
    DSI_UNROLL
    for (int i = 0; i < n_q; i++) {
        float *o = args->o + group->query[first + i] * args->o_stride + column;
        DSI_UNROLL
        for (int c = 0; c < n_v; c++) dsi_v8_store(o + 8 * c, sum[i][c], n_last);
    }
}

/* All columns of o for members [first, first + n_q) and rows [j0, j1). */
DSI_INLINE void attend_output(const dsi_attend_args *args, const attend_group *group, int first,
                              int n_q, const float *carry, int32_t j0, int32_t j1, bool bf16) {
    int64_t column = 0, wide = 8 * ATTEND_VECTORS;
    for (; column + wide <= args->dv; column += wide)
        attend_values(args, group, first, n_q, carry, j0, j1, column, ATTEND_VECTORS, 8, bf16);
    for (; column < args->dv; column += 8)
        attend_values(args, group, first, n_q, carry, j0, j1, column, 1, args->dv - column, bf16);
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
