/* check_kernels_index.c: the checks of index_score: shapes with tails, values at the edges of the
 * formats, queries alone and in company. */
#include "check.h"

enum { SLOT_Q, SLOT_K, SLOT_WEIGHTS, SLOT_SCORE };
enum special {
    PLAIN,
    ZEROS,
    DENORMAL,
    LARGE,
    NAN_IN_Q,
    NAN_IN_K,
    NAN_IN_WEIGHTS,
    INFINITE,
    SPECIALS
};
static const char *const special_name[] = {"plain",    "zeros",    "denormal",       "large",
                                           "NaN in q", "NaN in k", "NaN in weights", "infinite"};
static const double size_of[] = {2, 0, 1e-39, 1e12, 1, 1, 1, 1};

static void *matrix(check_run *run, int slot, enum check_format format, int64_t rows,
                    int64_t columns, int64_t stride, double size) {
    const int64_t n = rows > 0 ? (rows - 1) * stride + columns : 0;
    void *array = check_buffer(run, slot, n * check_format_size(format),
                               check_format_size(format) * check_below(run, 4));
    for (int64_t i = 0; i < rows; i++)
        for (int64_t j = 0; j < columns; j++)
            check_put(format, array, i * stride + j, check_uniform(run) * size);
    return array;
}

/* sum of |weight| |q k|, and what a score may be off where terms are denormal. */
static double terms_of(const dsi_index_args *a, enum check_format format, int64_t i, int64_t s) {
    double sum = 0;
    for (int64_t h = 0; h < a->n_heads; h++) {
        double dot = 0;
        for (int64_t d = 0; d < a->dim; d++)
            dot += fabs(check_get(format, a->q, (i * a->n_heads + h) * a->dim + d) *
                        check_get(format, a->k, s * a->k_stride + d));
        /* an infinity decides the score, or is cut at 0 */
        if (isfinite(dot)) sum += fabs((double)a->weights[i * a->weights_stride + h]) * dot;
    }
    return sum;
}

static void spoil(check_run *run, const dsi_index_args *a, enum check_format format,
                  enum special special) {
    const double value = special == INFINITE ? INFINITY : NAN;
    void *q = (void *)(uintptr_t)a->q, *k = (void *)(uintptr_t)a->k;
    float *weights = (float *)(uintptr_t)a->weights;
    if (a->n_q == 0) return;
    if (special == NAN_IN_Q || special == INFINITE)
        check_put(format, q, check_below(run, a->n_q * a->n_heads * a->dim), value);
    if (special == NAN_IN_K)
        check_put(format, k,
                  check_below(run, DSI_PAGE_ROWS) * a->k_stride + check_below(run, a->dim), NAN);
    if (special == NAN_IN_WEIGHTS) weights[check_below(run, a->n_heads)] = NAN;
}

static void index_case(check_run *run, int64_t n_q, int64_t n_heads, int64_t dim,
                       enum special special) {
    if (check_done(run)) return;
    const enum check_format format =
        check_format_named(run->kernel->stem + 12); /* "index_score_" */
    check_case(run, "n_q=%lld heads=%lld dim=%lld, %s, seed %llx", (long long)n_q,
               (long long)n_heads, (long long)dim, special_name[special],
               (unsigned long long)run->random);
    const double size = size_of[special];
    dsi_index_args a = {.n_q = n_q, .n_heads = n_heads, .dim = dim};
    a.k_stride = dim + check_below(run, 2) * check_below(run, 24);
    a.weights_stride = n_heads + check_below(run, 2);
    a.score_stride = DSI_PAGE_ROWS + check_below(run, 2) * check_below(run, 24);
    a.q = matrix(run, SLOT_Q, format, n_q, n_heads * dim, n_heads * dim, size);
    a.k =
        matrix(run, SLOT_K, format, DSI_PAGE_ROWS, dim, a.k_stride, special == DENORMAL ? 1 : size);
    a.weights = matrix(run, SLOT_WEIGHTS, CHECK_F32, n_q, n_heads, a.weights_stride, 1);
    a.score = matrix(run, SLOT_SCORE, CHECK_F32, n_q, DSI_PAGE_ROWS, a.score_stride, 1);
    a.scratch = check_room(dsi_index_scratch_bytes(dim));
    spoil(run, &a, format, special);
    dsi_index_args truth = a, alone = a;
    truth.score = check_room(n_q * a.score_stride * 4);
    ((dsi_index_fn)run->kernel->fn)(&a);
    ((dsi_index_fn)run->kernel->ref)(&truth);
    for (int64_t i = 0; i < n_q; i++)
        for (int64_t s = 0; s < DSI_PAGE_ROWS; s++) {
            const double terms = terms_of(&a, format, i, s);
            /* products below 2^-126 may count as 0 */
            const double slack = (double)(n_heads * dim) * 0x1p-126;
            const float got = a.score[i * a.score_stride + s];
            check_near(run, (double)got, (double)truth.score[i * a.score_stride + s],
                       isfinite(terms) ? run->kernel->c * terms + slack : 0, "score", i, s);
            if (got == 0 && signbit(got))
                check_fail(run, "score %lld of %lld is -0", (long long)s, (long long)i);
        }
    alone.n_q = 1, alone.score = check_room(DSI_PAGE_ROWS * 4);
    for (int64_t i = 0; i < n_q; i += 2) { /* elsewhere, without company: the same bits */
        alone.q = (const uint8_t *)a.q + i * n_heads * dim * check_format_size(format);
        alone.weights = a.weights + i * a.weights_stride;
        ((dsi_index_fn)run->kernel->fn)(&alone);
        for (int64_t s = 0; s < DSI_PAGE_ROWS; s++)
            check_same(run, a.score[i * a.score_stride + s], alone.score[s], "a query alone", i, s);
    }
    check_gaps_intact(run, a.score, n_q, DSI_PAGE_ROWS * 4, a.score_stride * 4);
    check_buffers_intact(run);
}

void check_index(check_run *run) {
    static const int64_t dims[] = {1,  2,  3,  7,  8,  9,  15,  16,  17, 31,
                                   32, 33, 63, 64, 65, 96, 127, 128, 129};
    static const int64_t heads[] = {1, 2, 3, 4, 5, 6, 7, 8};
    for (size_t d = 0; d < sizeof dims / sizeof dims[0]; d++)
        for (int special = 0; special < SPECIALS; special++)
            index_case(run, (int64_t)(d + (size_t)special) % 4,
                       heads[(d * 3 + (size_t)special) % 8], dims[d], (enum special)special);
    index_case(run, 4, 64, 128, PLAIN);
    index_case(run, 1, 64, 128, PLAIN);
}
