/* cpu_selftest_attend.c: the cases of attend: pages in a row, limits, a dimension cut short; those
 * of index_score. */
#include "cpu_selftest_cases.h"

enum { N_Q = 5, D0 = 40, D1 = 8, DV = 72, STATE_STRIDE = 2, PAGES = 3, GAP = 3 };

/* m, l and o of all queries. */
typedef struct state {
    float *m, *l, *o;
} state;

static state new_state(dsi_selftest *t) {
    return (state){dsi_selftest_take(t, N_Q * STATE_STRIDE * 4),
                   dsi_selftest_take(t, N_Q * STATE_STRIDE * 4),
                   dsi_selftest_take(t, N_Q * (DV + GAP) * 4)};
}

static void *matrix(dsi_selftest *t, dsi_dtype dtype, int64_t rows, int64_t columns, double size) {
    void *array = dsi_selftest_take(t, DSI_PAGE_ROWS * (columns + 1) * dsi_element_bytes(dtype));
    for (int64_t i = 0; i < rows; i++)
        for (int64_t j = 0; j < columns; j++)
            dsi_selftest_put(dtype, array, i * (columns + 1) + j, dsi_selftest_uniform(t) * size);
    return array;
}

static void use_state(dsi_attend_args *a, const state *s) {
    a->state_m = s->m, a->state_l = s->l, a->o = s->o;
}
static void copy_state(const state *to, const state *from) {
    memcpy(to->m, from->m, N_Q * STATE_STRIDE * 4);
    memcpy(to->l, from->l, N_Q * STATE_STRIDE * 4);
    memcpy(to->o, from->o, N_Q * (DV + GAP) * 4);
}

/* max_j scale * sum |q k_j|: how far rounding of a dot may move a score. */
static double score_terms(const dsi_attend_args *a, dsi_dtype dtype, int64_t i) {
    double most = 0;
    for (int64_t j = 0; j < a->limit[i]; j++) {
        double sum = 0;
        for (int64_t d = 0; d < D0; d++)
            sum += fabs(dsi_selftest_get(dtype, a->q, i * a->q_stride + d) *
                        dsi_selftest_get(dtype, a->k0, j * a->k0_stride + d));
        for (int64_t d = 0; d < a->d1; d++)
            sum += fabs(dsi_selftest_get(dtype, a->q, i * a->q_stride + D0 + d) *
                        dsi_selftest_get(dtype, a->k1, j * a->k1_stride + d));
        most = fmax(most, sum * (double)a->scale);
    }
    return most;
}

/* A score that is off by e changes its term by the factor exp(e): relative errors grow by the size
 * of the scores. `terms` is the truth for |v| and |o|. */
static void compare(dsi_selftest *t, const dsi_attend_args *a, dsi_dtype dtype, const state *before,
                    const state *truth, const state *terms) {
    for (int64_t i = 0; i < N_Q; i++) {
        int64_t s = i * STATE_STRIDE;
        double size = score_terms(a, dtype, i), old_m = (double)before->m[s];
        double growth = 1 + 2 * size + fabs((double)truth->m[s]), c = t->line->tolerance;
        if (isfinite(old_m)) growth += fabs(old_m);
        double seen = a->limit[i] > 0 ? 1 : 0;
        dsi_selftest_near(t, (double)a->state_m[s], (double)truth->m[s], seen * c * size, "m", i,
                          0);
        dsi_selftest_near(t, (double)a->state_l[s], (double)truth->l[s],
                          seen * c * growth * (double)truth->l[s], "l", i, 0);
        for (int64_t d = 0; d < DV; d++) {
            int64_t at = i * a->o_stride + d;
            dsi_selftest_near(t, (double)a->o[at], (double)truth->o[at],
                              seen * (c * growth * (double)terms->o[at] + 1e-40), "o", i, d);
        }
        dsi_selftest_untouched(t, a->o + i * a->o_stride + DV, GAP);
        dsi_selftest_untouched(t, a->state_m + s + 1, STATE_STRIDE - 1);
        dsi_selftest_untouched(t, a->state_l + s + 1, STATE_STRIDE - 1);
    }
}

/* One page on the state that the pages before left. Rows nobody may see are NaN. */
static void page_case(dsi_selftest *t, dsi_attend_args *a, dsi_dtype dtype, const int32_t *limit,
                      double size) {
    int32_t rows = 0;
    for (int i = 0; i < N_Q; i++) rows = limit[i] > rows ? limit[i] : rows;
    a->limit = limit;
    a->k0 = matrix(t, dtype, rows, D0, size);
    if (a->d1 > 0) a->k1 = matrix(t, dtype, rows, D1, size);
    void *v = matrix(t, dtype, rows, DV, 1);
    a->v = v;
    /* Who may not see the last row must not notice it. */
    dsi_selftest_put(dtype, v, (rows - 1) * a->v_stride + 3, NAN);
    state tested = {a->state_m, a->state_l, a->o}, before = new_state(t), truth = new_state(t);
    state terms = new_state(t);
    copy_state(&before, &tested);
    copy_state(&truth, &tested);
    copy_state(&terms, &tested);
    ((dsi_attend_fn)t->fn)(a);
    dsi_attend_args reference = *a;
    use_state(&reference, &truth);
    ((dsi_attend_fn)t->line->ref)(&reference);
    for (int64_t i = 0; i < N_Q; i++)
        for (int64_t d = 0; d < DV; d++)
            terms.o[i * a->o_stride + d] = fabsf(terms.o[i * a->o_stride + d]);
    for (int64_t i = 0; i < rows * (DV + 1); i++)
        dsi_selftest_put(dtype, v, i, fabs(dsi_selftest_get(dtype, v, i)));
    use_state(&reference, &terms);
    ((dsi_attend_fn)t->line->ref)(&reference);
    compare(t, a, dtype, &before, &truth, &terms);
}

static void sequence(dsi_selftest *t, int64_t d1) {
    /* Visible rows of every query in every page, and the size of the keys. */
    static const int32_t limit[PAGES][N_Q] = {
        {64, 64, 64, 1, 64}, {0, 37, 64, 9, 17}, {5, 0, 36, 1, 20}};
    static const double size[PAGES] = {1, 4, 40};
    dsi_dtype dtype = dsi_selftest_dtype(t->line->stem + 7); /* behind "attend_" */
    dsi_selftest_case(t, "n_q=%d d0=%d d1=%lld dv=%d", N_Q, D0, (long long)d1, DV);
    dsi_attend_args a = {.q_stride = D0 + D1 + 1,
                         .k0_stride = D0 + 1,
                         .k1_stride = D1 + 1,
                         .v_stride = DV + 1,
                         .state_stride = STATE_STRIDE,
                         .o_stride = DV + GAP,
                         .n_q = N_Q,
                         .d0 = D0,
                         .d1 = d1,
                         .dv = DV,
                         .scale = 0.15f};
    a.q = matrix(t, dtype, N_Q, D0 + D1, 2);
    state s = new_state(t);
    use_state(&a, &s);
    for (int64_t i = 0; i < N_Q; i++) {
        s.m[i * STATE_STRIDE] = -INFINITY;
        s.l[i * STATE_STRIDE] = 0;
        for (int64_t d = 0; d < DV; d++) s.o[i * a.o_stride + d] = 0;
    }
    for (int p = 0; p < PAGES; p++) page_case(t, &a, dtype, limit[p], size[p]);
}

void dsi_selftest_attend(dsi_selftest *t) {
    sequence(t, D1);
    sequence(t, 0);
}

/* ---- index_score ----------------------------------------------------------------------------- */

enum { ROWS = 3 };

static void index_case(dsi_selftest *t, int64_t heads, int64_t dim, bool nan) {
    dsi_dtype dtype = dsi_selftest_dtype(t->line->stem + 12); /* behind "index_score_" */
    dsi_selftest_case(t, "heads=%lld dim=%lld%s", (long long)heads, (long long)dim,
                      nan ? ", NaN" : "");
    dsi_index_args a = {.k_stride = dim + 1,
                        .weights_stride = heads,
                        .score_stride = DSI_PAGE_ROWS + GAP,
                        .n_q = ROWS,
                        .n_heads = heads,
                        .dim = dim};
    void *q = dsi_selftest_take(t, ROWS * heads * dim * dsi_element_bytes(dtype));
    float *weights = dsi_selftest_take(t, ROWS * heads * 4);
    for (int64_t i = 0; i < ROWS * heads * dim; i++)
        dsi_selftest_put(dtype, q, i, dsi_selftest_uniform(t));
    for (int64_t i = 0; i < ROWS * heads; i++) weights[i] = (float)dsi_selftest_uniform(t);
    if (nan) dsi_selftest_put(dtype, q, heads * dim, NAN);
    void *k = matrix(t, dtype, DSI_PAGE_ROWS, dim, 1);
    /* a score of 0 from weights below 0 is no -0: it would come behind the others */
    for (int64_t d = 0; d < dim; d++) dsi_selftest_put(dtype, k, d, 0);
    for (int64_t h = 0; h < heads; h++) weights[h] = -fabsf(weights[h]);
    a.q = q, a.weights = weights, a.k = k;
    a.scratch = dsi_selftest_take(t, dsi_index_scratch_bytes(dim));
    a.score = dsi_selftest_take(t, ROWS * a.score_stride * 4);
    dsi_index_args truth = a;
    truth.score = dsi_selftest_take(t, ROWS * a.score_stride * 4);
    ((dsi_index_fn)t->fn)(&a);
    ((dsi_index_fn)t->line->ref)(&truth);
    for (int64_t i = 0; i < ROWS; i++) {
        for (int64_t s = 0; s < DSI_PAGE_ROWS; s++)
            dsi_selftest_near(t, (double)a.score[i * a.score_stride + s],
                              (double)truth.score[i * a.score_stride + s],
                              t->line->tolerance * (double)(heads * dim), "score", i, s);
        dsi_selftest_same(t, a.score[i * a.score_stride], truth.score[i * a.score_stride],
                          "score of zeros", i, 0);
        dsi_selftest_untouched(t, a.score + i * a.score_stride + DSI_PAGE_ROWS, GAP);
    }
}

void dsi_selftest_index(dsi_selftest *t) {
    index_case(t, 7, 45, false);
    index_case(t, 4, 64, true);
}
