/* quantize_factor.c: second moments of what a matrix multiplies, and their factor. */
#include "quantize_calibrate.h"

#include "../../lib/base/sys.h"
#include <string.h>

enum { BLOCK = QUANTIZE_FACTOR_COLUMNS };
/* Added to every second moment, as a share of their mean: what the text says of columns that hardly
 * move, or of more columns than it has tokens, is not relied on. */
static const float damping = 0.003f;

typedef struct maker {
    quantize_factor *factor;
    dsi_pool *pool;
    const quantize_search *search;
    const float *x; /* [n_rows][n] columns of the block at hand */
    int64_t n_rows, n;
    float *block, *weight;
} maker;

enum { PANEL = 64, WIDTH = 128 /* columns that a thread takes at once */ };

/* The first n columns of a row, and more of those that are never read, in whole vectors. */
static int64_t whole_vectors(const maker *m, int64_t n) {
    return dsi_min_i64(m->n, dsi_ceil_div(n, PANEL) * PANEL);
}

/* Row j holds the moments of column j with itself and those in front of it. */
static void do_moments(void *context, uint32_t thread, uint32_t n_threads) {
    const maker *m = context;
    /* rows get longer, so they are dealt out in turns */
    for (int64_t j = (int64_t)thread * QUANTIZE_TOGETHER; j < m->n;
         j += (int64_t)n_threads * QUANTIZE_TOGETHER) {
        const int64_t n_to = dsi_min_i64(QUANTIZE_TOGETHER, m->n - j);
        const quantize_products p = {.to = m->block + j * m->n,
                                     .to_stride = m->n,
                                     .n = whole_vectors(m, j + n_to),
                                     .n_to = (int)n_to,
                                     .scale = m->x + j,
                                     .step = m->n,
                                     .rows = m->x,
                                     .stride = m->n,
                                     .n_rows = m->n_rows};
        m->search->accumulate(&p);
    }
}

static void damp(const maker *m) {
    double sum = 0;
    for (int64_t j = 0; j < m->n; j++) sum += (double)m->block[j * m->n + j];
    float more = damping * (float)(sum / (double)m->n);
    if (!(more > 0)) more = 1;
    for (int64_t j = 0; j < m->n; j++) m->block[j * m->n + j] += more;
}

/* What rows from `end` on explain of the rows of the panel [begin, end), in some of their columns.
 */
static void subtract(const maker *m, int64_t begin, int64_t end, int64_t column, int64_t width,
                     const float *scales) {
    for (int64_t j = begin; j < end; j += QUANTIZE_TOGETHER) {
        const quantize_products p = {.to = m->block + j * m->n + column,
                                     .to_stride = m->n,
                                     .n = width,
                                     .n_to = (int)dsi_min_i64(QUANTIZE_TOGETHER, end - j),
                                     .scale = scales + (j - begin),
                                     .step = PANEL + QUANTIZE_TOGETHER,
                                     .rows = m->block + end * m->n + column,
                                     .stride = m->n,
                                     .n_rows = m->n - end};
        m->search->accumulate(&p);
    }
}

/* The rows of a panel, the last one first: what those behind it explain goes off, then its diagonal
 * is D and the rest, over D, is R. */
static void finish_panel(const maker *m, int64_t begin, int64_t end, float least) {
    float scales[(PANEL + 1) * QUANTIZE_TOGETHER] = {0};
    for (int64_t j = end - 1; j >= begin; j--) {
        float *row = m->block + j * m->n;
        for (int64_t i = j + 1; i < end; i++)
            scales[(i - j - 1) * QUANTIZE_TOGETHER] = -m->weight[i] * m->block[i * m->n + j];
        const quantize_products p = {.to = row,
                                     .n = whole_vectors(m, j + 1),
                                     .n_to = 1,
                                     .scale = scales,
                                     .step = QUANTIZE_TOGETHER,
                                     .rows = row + m->n,
                                     .stride = m->n,
                                     .n_rows = end - 1 - j};
        m->search->accumulate(&p);
        m->weight[j] = row[j] > least ? row[j] : least;
        for (int64_t i = 0; i < j; i++) row[i] /= m->weight[j];
    }
}

/* All threads on one block, panel by panel from the last column to the first. */
static void do_factor(void *context, uint32_t thread, uint32_t n_threads) {
    const maker *m = context;
    float *scales = m->factor->scales;
    const float least = 1e-7f * (m->block[0] > 0 ? m->block[0] : 1);
    dsi_pool_barrier(m->pool); /* all have read the first moment, which changes at the end */
    for (int64_t begin = (m->n - 1) / PANEL * PANEL; begin >= 0; begin -= PANEL) {
        const int64_t end = dsi_min_i64(begin + PANEL, m->n);
        for (int64_t i = end + thread; i < m->n; i += n_threads)
            for (int64_t j = begin; j < end; j++)
                scales[(i - end) * (PANEL + QUANTIZE_TOGETHER) + j - begin] =
                    -m->weight[i] * m->block[i * m->n + j];
        dsi_pool_barrier(m->pool);
        for (int64_t c = (int64_t)thread * WIDTH; c < end; c += (int64_t)n_threads * WIDTH)
            subtract(m, begin, end, c, dsi_min_i64(WIDTH, end - c), scales);
        dsi_pool_barrier(m->pool);
        if (thread == 0) finish_panel(m, begin, end, least);
        dsi_pool_barrier(m->pool);
    }
}

/* Room for k columns, and for the rows of one block. */
static bool make_room(quantize_factor *f, int64_t k, uint64_t n_rows) {
    uint64_t n_blocks = (uint64_t)dsi_ceil_div(k, BLOCK);
    uint64_t columns = (uint64_t)dsi_min_i64(k, BLOCK);
    uint64_t n = (n_blocks - 1) * BLOCK * BLOCK + columns * columns;
    if (n < (uint64_t)k * columns) n = (uint64_t)k * columns;
    uint64_t n_scales = columns * (PANEL + QUANTIZE_TOGETHER);
    uint64_t all = n + (uint64_t)k + n_scales + n_rows * columns + QUANTIZE_TOGETHER;
    if (all > f->room) {
        dsi_sys_free(f->transposed);
        f->transposed = dsi_sys_calloc(all, sizeof *f->transposed);
        f->room = f->transposed ? all : 0;
    }
    if (!f->transposed) return false;
    memset(f->transposed, 0, (size_t)n * sizeof *f->transposed);
    f->weight = f->transposed + n;
    f->scales = f->weight + k;
    f->columns = f->scales + n_scales;
    f->k = k;
    return true;
}

static bool same_input(const quantize_input *a, const quantize_input *b) {
    return a->layer == b->layer && a->kind == b->kind && a->expert == b->expert &&
           a->shared == b->shared;
}

const quantize_factor *quantize_factor_of(quantize_factor factors[2], quantize_calibration *c,
                                          const dsi_file_tensor *t, dsi_pool *pool,
                                          bool *no_memory) {
    quantize_input in;
    if (!quantize_input_of(c, t->name, &in)) return NULL;
    quantize_factor *f = &factors[in.kind == QUANTIZE_HIDDEN];
    if (f->made && same_input(&f->of, &in)) return f;
    f->made = false;
    *no_memory = in.kind == QUANTIZE_HIDDEN && !quantize_input_hidden(c, &in, t, pool);
    const uint64_t n_rows = quantize_input_rows(c, &in);
    if (*no_memory || n_rows == 0) return NULL; /* an expert that no token came to */
    *no_memory = !make_room(f, t->shape[1], n_rows);
    if (*no_memory) return NULL;
    maker m = {.factor = f,
               .pool = pool,
               .search = c->plan->search,
               .x = f->columns,
               .n_rows = (int64_t)n_rows};
    for (int64_t first = 0; first < f->k; first += BLOCK) {
        m.n = dsi_min_i64(BLOCK, f->k - first);
        m.block = f->transposed + first * BLOCK;
        quantize_input_columns(c, &in, first, m.n, f->columns);
        m.weight = f->weight + first;
        dsi_pool_run(pool, do_moments, &m);
        damp(&m);
        dsi_pool_run(pool, do_factor, &m);
    }
    f->of = in;
    f->made = true;
    return f;
}

void quantize_factors_free(quantize_factor factors[2]) {
    for (int i = 0; i < 2; i++) dsi_sys_free(factors[i].transposed);
    memset(factors, 0, 2 * sizeof *factors);
}
