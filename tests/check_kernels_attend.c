/* check_kernels_attend.c: the check of attend: blocks in a row, limits, invariance, tolerances. */
#include "check.h"

enum { SLOT_Q, SLOT_K0, SLOT_K1, SLOT_V, SLOT_LIMIT, SLOT_M, SLOT_L, SLOT_O };
enum special { PLAIN, ZERO_QUERIES, LARGE_SCORES, LARGE_VALUES, NAN_IN_K, NAN_IN_V, SPECIALS };
static const char *const special_name[] = {"plain",        "zero queries", "large scores",
                                           "large values", "NaN in k",     "NaN in v"};

typedef struct attention {
    enum check_format format;
    enum special special;
    dsi_attend_args args;
    int64_t rows; /* rows of k and v that exist: the largest limit */
} attention;

/* m, l and o of all queries, closely packed. */
typedef struct state {
    float *m, *l, *o;
} state;

static void call(check_any_fn fn, const dsi_attend_args *args) { ((dsi_attend_fn)fn)(args); }

static void *matrix(check_run *run, int slot, enum check_format format, int64_t rows,
                    int64_t columns, int64_t stride, double size) {
    int64_t n = rows > 0 && columns > 0 ? (rows - 1) * stride + columns : 0;
    void *array = check_buffer(run, slot, n * check_format_size(format), 0);
    memset(array, 0xFF, (size_t)(n * check_format_size(format))); /* NaN in the gaps */
    for (int64_t i = 0; i < rows; i++)
        for (int64_t j = 0; j < columns; j++)
            check_put(format, array, i * stride + j, check_uniform(run) * size);
    return array;
}

static int64_t padded(check_run *run, int64_t columns) {
    return columns + check_below(run, 2) * check_below(run, 24);
}

/* Fresh q, k, v and limits. Limits are all alike, causal (one more per query), or random. */
static void fill_block(check_run *run, attention *a) {
    dsi_attend_args *g = &a->args;
    int64_t kind = check_below(run, 3), first = check_below(run, DSI_PAGE_ROWS + 1);
    int32_t *limit = check_buffer(run, SLOT_LIMIT, g->n_q * 4, 0);
    a->rows = 0;
    for (int64_t i = 0; i < g->n_q; i++) {
        int64_t rows = kind == 0   ? first
                       : kind == 1 ? (first + i < DSI_PAGE_ROWS ? first + i : DSI_PAGE_ROWS)
                                   : check_below(run, DSI_PAGE_ROWS + 1);
        limit[i] = (int32_t)rows;
        if (rows > a->rows) a->rows = rows;
    }
    double q_size = a->special == ZERO_QUERIES ? 0 : a->special == LARGE_SCORES ? 30 : 2;
    g->limit = limit;
    g->q = matrix(run, SLOT_Q, a->format, g->n_q, g->d0 + g->d1, g->q_stride, q_size);
    g->k0 = matrix(run, SLOT_K0, a->format, a->rows, g->d0, g->k0_stride, 1);
    g->k1 = g->d1 > 0 ? matrix(run, SLOT_K1, a->format, a->rows, g->d1, g->k1_stride, 1) : NULL;
    g->v = matrix(run, SLOT_V, a->format, a->rows, g->dv, g->v_stride,
                  a->special == LARGE_VALUES ? 1e30 : 1);
    if (a->rows == 0) return;
    g->next = g->v; /* a hint, which may be wrong: no result depends on it */
    g->next_bytes = check_below(run, 2) * check_below(run, 1 << 20);
    int64_t row = check_below(run, a->rows);
    if (a->special == NAN_IN_K)
        check_put(a->format, (void *)(uintptr_t)g->k0, row * g->k0_stride + check_below(run, g->d0),
                  NAN);
    if (a->special == NAN_IN_V)
        check_put(a->format, (void *)(uintptr_t)g->v, row * g->v_stride + check_below(run, g->dv),
                  NAN);
}

static attention make_attention(check_run *run, int64_t n_q, int64_t d0, int64_t d1, int64_t dv) {
    attention a = {.format = check_format_named(run->kernel->stem + 7)}; /* behind "attend_" */
    int64_t special = check_below(run, 2 * SPECIALS);
    a.special = special < SPECIALS ? (enum special)special : PLAIN;
    check_case(run, "n_q=%lld d0=%lld d1=%lld dv=%lld, %s, seed %llx", (long long)n_q,
               (long long)d0, (long long)d1, (long long)dv, special_name[a.special],
               (unsigned long long)run->random);
    dsi_attend_args *g = &a.args;
    g->n_q = n_q, g->d0 = d0, g->d1 = d1, g->dv = dv;
    g->q_stride = padded(run, d0 + d1), g->k0_stride = padded(run, d0);
    g->k1_stride = padded(run, d1), g->v_stride = padded(run, dv), g->o_stride = padded(run, dv);
    g->scale = (float)(1 / sqrt((double)(d0 + d1)));
    g->next = NULL, g->next_bytes = 0;
    /* m and l of a query may lie apart; the floats between them are not ours. */
    g->state_stride = 1 + check_below(run, 3);
    int64_t n = n_q > 0 ? (n_q - 1) * g->state_stride + 1 : 0;
    g->state_m = check_buffer(run, SLOT_M, n * 4, 0);
    g->state_l = check_buffer(run, SLOT_L, n * 4, 0);
    g->o = check_buffer(run, SLOT_O, n_q > 0 ? ((n_q - 1) * g->o_stride + dv) * 4 : 0, 0);
    for (int64_t i = 0; i < n_q; i++) {
        g->state_m[i * g->state_stride] = -INFINITY;
        g->state_l[i * g->state_stride] = 0;
        memset(g->o + i * g->o_stride, 0, (size_t)(dv * 4));
    }
    return a;
}

static state take_state(const dsi_attend_args *g) {
    state s = {check_room(g->n_q * 4), check_room(g->n_q * 4), check_room(g->n_q * g->dv * 4)};
    for (int64_t i = 0; i < g->n_q; i++) {
        s.m[i] = g->state_m[i * g->state_stride];
        s.l[i] = g->state_l[i * g->state_stride];
        memcpy(s.o + i * g->dv, g->o + i * g->o_stride, (size_t)(g->dv * 4));
    }
    return s;
}

/* The arguments of `g` with a copy of `from` as the state, for query numbers [first, first + n). */
static dsi_attend_args on_copy(const dsi_attend_args *g, enum check_format format,
                               const state *from, int64_t first, int64_t n) {
    dsi_attend_args part = *g;
    part.q = (const uint8_t *)g->q + first * g->q_stride * check_format_size(format);
    part.limit = g->limit + first;
    part.state_m = check_copy(from->m + first, n * 4);
    part.state_l = check_copy(from->l + first, n * 4);
    part.o = check_copy(from->o + first * g->dv, n * g->dv * 4);
    part.state_stride = 1, part.o_stride = g->dv, part.n_q = n;
    return part;
}

/* max_j scale * sum |q k_j| of query i: how far rounding of a dot may move a score. */
static double score_terms(const attention *a, int64_t i) {
    const dsi_attend_args *g = &a->args;
    double most = 0;
    for (int64_t j = 0; j < g->limit[i]; j++) {
        double sum = 0;
        for (int64_t d = 0; d < g->d0; d++)
            sum += fabs(check_get(a->format, g->q, i * g->q_stride + d) *
                        check_get(a->format, g->k0, j * g->k0_stride + d));
        for (int64_t d = 0; d < g->d1; d++)
            sum += fabs(check_get(a->format, g->q, i * g->q_stride + g->d0 + d) *
                        check_get(a->format, g->k1, j * g->k1_stride + d));
        most = fmax(most, sum * (double)g->scale);
    }
    return most;
}

/* Compares with the reference, which starts from the same state as the tested call did.
 * A score with rounding error e changes p by the factor exp(e), about 1 + e: relative errors grow
 * by the size of the scores, here `growth`. */
static void compare_block(check_run *run, const attention *a, const state *before) {
    const dsi_attend_args *g = &a->args;
    dsi_attend_args truth = on_copy(g, a->format, before, 0, g->n_q), terms = truth;
    call(run->kernel->ref, &truth);
    int64_t v_n = a->rows > 0 ? (a->rows - 1) * g->v_stride + g->dv : 0;
    terms = on_copy(g, a->format, before, 0, g->n_q);
    void *v = check_copy(g->v, v_n * check_format_size(a->format));
    check_clear_signs(a->format, v, v_n);
    check_clear_signs(CHECK_F32, terms.o, g->n_q * g->dv);
    terms.v = v;
    call(run->kernel->ref, &terms);
    for (int64_t i = 0; i < g->n_q; i++) {
        double size = score_terms(a, i), old_m = (double)before->m[i], c = run->kernel->c;
        double growth = 1 + 2 * size + fabs((double)truth.state_m[i]);
        if (isfinite(old_m)) growth += fabs(old_m);
        /* 64 terms, each of which may be rounded in the denormal range. */
        double slack = run->kernel->is_ref ? 0 : 64 * 0x1p-149;
        double m_bound = c * size + slack, l_bound = c * growth * (double)truth.state_l[i] + slack;
        if (g->limit[i] == 0) m_bound = l_bound = 0;
        check_near(run, (double)g->state_m[i * g->state_stride], (double)truth.state_m[i], m_bound,
                   "m", i, 0);
        check_near(run, (double)g->state_l[i * g->state_stride], (double)truth.state_l[i], l_bound,
                   "l", i, 0);
        for (int64_t d = 0; d < g->dv; d++) {
            int64_t at = i * g->dv + d;
            double bound = g->limit[i] == 0 ? 0 : c * growth * (double)terms.o[at] + slack;
            check_near(run, (double)g->o[i * g->o_stride + d], (double)truth.o[at], bound, "o", i,
                       d);
        }
    }
    check_gaps_intact(run, g->o, g->n_q, g->dv * 4, g->o_stride * 4);
    check_gaps_intact(run, g->state_m, g->n_q, 4, g->state_stride * 4);
    check_gaps_intact(run, g->state_l, g->n_q, 4, g->state_stride * 4);
    check_buffers_intact(run);
}

static void compare_query(check_run *run, const dsi_attend_args *g, int64_t i,
                          const dsi_attend_args *part, int64_t part_i, const char *what) {
    check_same(run, part->state_m[part_i], g->state_m[i * g->state_stride], what, i, -1);
    check_same(run, part->state_l[part_i], g->state_l[i * g->state_stride], what, i, -2);
    for (int64_t d = 0; d < g->dv; d++)
        check_same(run, part->o[part_i * part->o_stride + d], g->o[i * g->o_stride + d], what, i,
                   d);
}

/* The same bits for a query alone, in any company, and whatever lies behind its limit. */
static void compare_parts(check_run *run, const attention *a, const state *before) {
    const dsi_attend_args *g = &a->args;
    if (g->n_q == 0) return;
    for (int64_t tried = 0; tried < 5 && tried < g->n_q; tried++) {
        int64_t i = g->n_q <= 5 ? tried : check_below(run, g->n_q);
        dsi_attend_args part = on_copy(g, a->format, before, i, 1);
        call(run->kernel->fn, &part);
        compare_query(run, g, i, &part, 0, "query alone");
    }
    int64_t first = check_below(run, g->n_q), n = 1 + check_below(run, g->n_q - first);
    dsi_attend_args part = on_copy(g, a->format, before, first, n);
    call(run->kernel->fn, &part);
    for (int64_t i = 0; i < n; i++) compare_query(run, g, first + i, &part, i, "some queries");

    int32_t seen = g->limit[check_below(run, g->n_q)];
    if (seen >= a->rows) return;
    int size = check_format_size(a->format);
    int64_t k_n = (a->rows - 1) * g->k0_stride + g->d0, v_n = (a->rows - 1) * g->v_stride + g->dv;
    part = on_copy(g, a->format, before, 0, g->n_q);
    uint8_t *k0 = check_copy(g->k0, k_n * size), *v = check_copy(g->v, v_n * size);
    memset(k0 + seen * g->k0_stride * size, 0xFF, (size_t)((k_n - seen * g->k0_stride) * size));
    memset(v + seen * g->v_stride * size, 0xFF, (size_t)((v_n - seen * g->v_stride) * size));
    part.k0 = k0, part.v = v;
    call(run->kernel->fn, &part);
    for (int64_t i = 0; i < g->n_q; i++)
        if (g->limit[i] <= seen) compare_query(run, g, i, &part, i, "NaN behind the limit");
}

static void check_attention(check_run *run, int64_t n_q, int64_t d0, int64_t d1, int64_t dv) {
    if (check_done(run)) return;
    attention a = make_attention(run, n_q, d0, d1, dv);
    int64_t blocks = 1 + check_below(run, 3);
    for (int64_t b = 0; b < blocks && !check_done(run); b++) {
        fill_block(run, &a);
        state before = take_state(&a.args);
        call(run->kernel->fn, &a.args);
        compare_block(run, &a, &before);
        compare_parts(run, &a, &before);
    }
}

void check_attend(check_run *run) {
    static const int64_t dims[] = {1, 2, 3, 5, 7, 8, 15, 16, 17, 31, 32, 33, 40, 48, 64, 65, 128};
    static const int64_t ropes[] = {0, 1, 3, 7, 8, 16, 32, 33, 64};
    static const int64_t queries[] = {0, 1, 2, 3, 4, 5, 7, 8, 9, 16};
    for (size_t i = 0; i < sizeof dims / sizeof dims[0]; i++)
        for (size_t j = 0; j < sizeof ropes / sizeof ropes[0]; j++)
            check_attention(run, queries[check_below(run, 10)], dims[i], ropes[j],
                            dims[check_below(run, 17)]);
    for (size_t i = 0; i < sizeof queries / sizeof queries[0]; i++)
        for (size_t j = 0; j < sizeof dims / sizeof dims[0]; j++)
            check_attention(run, queries[i], 16, 8, dims[j]);
    check_attention(run, 5, 512, 64, 512); /* DeepSeek-V3, absorbed */
    check_attention(run, 9, 128, 64, 128); /* DeepSeek-V3, expanded */
    check_attention(run, 4, 48, 32, 40);
    check_attention(run, 33, 24, 8, 24);
    check_attention(run, 7, 193, 5, 66); /* more elements than a kernel packs at a time */
    check_attention(run, 3, 190, 200, 1);
    check_attention(run, 131, 40, 3, 65); /* more queries than one takes at a time */
    check_attention(run, 257, 7, 0, 17);
}
