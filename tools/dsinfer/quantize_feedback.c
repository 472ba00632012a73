/* quantize_feedback.c: codes of calibrated matrices: column by column, each with what those before
 * it lost, in groups whose scales are searched with the weights of their columns. */
#include "quantize_calibrate.h"

#include "../../kernels/formats.h"
#include <string.h>

enum { BLOCK = QUANTIZE_FACTOR_COLUMNS, GROUP = 256 /* the largest */ };

typedef struct workroom { /* of a thread */
    quantize_vector x[BLOCK], lost[BLOCK];
    quantize_vector target[GROUP], scale[Q4_K_RUNS], zero[Q4_K_RUNS];
    float rows[QUANTIZE_LANES][GROUP]; /* targets, row by row */
    quantize_q4_k blocks[QUANTIZE_LANES];
} workroom;

uint64_t quantize_feedback_room(void) { return (sizeof(workroom) + 127) / 64 * 64; }

/* Sixteen rows; where there are fewer, the last one again. */
typedef struct sixteen_rows {
    const quantize_plan *plan;
    const quantize_factor *factor;
    const float *x;
    int64_t n, k;
    workroom *room;
    quantize_feedback feedback;
} sixteen_rows;

static const float *row_of(const sixteen_rows *r, int lane) {
    return r->x + (lane < r->n ? lane : r->n - 1) * r->k;
}

/* The block of columns from `first` on. */
static int64_t begin_block(sixteen_rows *r, int64_t first) {
    const int64_t n = dsi_min_i64(BLOCK, r->k - first);
    for (int l = 0; l < QUANTIZE_LANES; l++) {
        const float *x = row_of(r, l) + first;
        for (int64_t j = 0; j < n; j++) r->room->x[j][l] = x[j];
    }
    r->feedback.factor = r->factor->transposed + first * BLOCK;
    r->feedback.stride = n;
    return n;
}

/* Targets of a group, also row by row. */
static void aim_at(sixteen_rows *r, int64_t at, int64_t n) {
    r->plan->search->aim(&r->feedback, at, n);
    for (int64_t j = 0; j < n; j++)
        for (int l = 0; l < QUANTIZE_LANES; l++) r->room->rows[l][j] = r->room->target[j][l];
}

static void add_lost(const sixteen_rows *r, int64_t at, int64_t n, double error[2]) {
    for (int64_t j = at; j < at + n; j++)
        for (int l = 0; l < r->n; l++)
            error[0] += (double)r->room->lost[j][l] * (double)r->room->lost[j][l];
}

static sixteen_rows take(const quantize_plan *plan, const quantize_factor *factor, const float *x,
                         int64_t n, int64_t k, void *room, float bottom, float top) {
    workroom *w = room;
    sixteen_rows r = {.plan = plan,
                      .factor = factor,
                      .x = x,
                      .n = dsi_min_i64(n, QUANTIZE_LANES),
                      .k = k,
                      .room = w};
    r.feedback = (quantize_feedback){.x = (const quantize_vector *)w->x,
                                     .lost = w->lost,
                                     .target = w->target,
                                     .scale = (const quantize_vector *)w->scale,
                                     .zero = (const quantize_vector *)w->zero,
                                     .bottom = bottom,
                                     .top = top};
    return r;
}

/* ---- Groups around zero ---------------------------------------------------------------------- */

static void code_group(sixteen_rows *r, int64_t first, int64_t at, int64_t n, uint8_t *codes,
                       uint8_t *scales) {
    const quantize_form *form = r->plan->form;
    const int64_t row_bytes = quantize_code_bytes(form, r->k);
    const int64_t n_groups = dsi_ceil_div(r->k, form->scale_group);
    quantize_lanes rows = {.n = n};
    aim_at(r, at, n);
    for (int l = 0; l < QUANTIZE_LANES; l++) {
        rows.x[l] = r->room->rows[l];
        rows.weight[l] = r->factor->weight + first + at;
    }
    r->plan->search->symmetric(&rows, form->scale_dtype == DSI_DTYPE_BF16, r->room->scale[0]);
    memset(r->room->zero, 0, sizeof r->room->zero[0]);
    r->plan->search->settle(&r->feedback, at, n, n);
    for (int l = 0; l < r->n; l++) {
        int8_t row[QUANTIZE_RUN];
        for (int64_t j = 0; j < n; j++) row[j] = (int8_t)r->room->target[j][l];
        quantize_put4(row, first + at, n, codes + l * row_bytes);
        quantize_put_scale(form->scale_dtype, r->room->scale[0][l], scales,
                           l * n_groups + (first + at) / form->scale_group);
    }
}

void quantize_rows_with(const quantize_plan *plan, const quantize_factor *factor, const float *x,
                        int64_t n, int64_t k, uint8_t *codes, uint8_t *scales, double error[2],
                        void *room) {
    const quantize_form *form = plan->form;
    const int64_t row_bytes = quantize_code_bytes(form, k), group = form->scale_group;
    const int64_t scale_row = dsi_ceil_div(k, group) * dsi_dtype_bytes(form->scale_dtype);
    error[0] = 0;
    error[1] = quantize_squares(x, n * k);
    memset(codes, 0, (size_t)(n * row_bytes));
    for (int64_t i = 0; i < n; i += QUANTIZE_LANES) {
        sixteen_rows r = take(plan, factor, x + i * k, n - i, k, room, -8, 7);
        for (int64_t first = 0; first < k; first += BLOCK) {
            const int64_t columns = begin_block(&r, first);
            for (int64_t at = 0; at < columns; at += group)
                code_group(&r, first, at, dsi_min_i64(group, columns - at), codes + i * row_bytes,
                           scales + i * scale_row);
            add_lost(&r, 0, columns, error);
        }
    }
}

/* ---- Q4_K ------------------------------------------------------------------------------------ */

/* Scales and offsets of a block in each of the rows. */
static void find_q4_k(sixteen_rows *r, const float *weight) {
    for (int i = 0; i < QUANTIZE_LANES; i += Q4_K_PAIR) {
        quantize_lanes rows = {.n = Q4_K_RUN};
        for (int l = 0; l < QUANTIZE_LANES; l++) {
            const int run = l % Q4_K_RUNS * Q4_K_RUN;
            rows.x[l] = r->room->rows[i + l / Q4_K_RUNS] + run;
            rows.weight[l] = weight + run;
        }
        r->plan->search->q4_k(&rows, &r->room->blocks[i]);
    }
    for (int l = 0; l < QUANTIZE_LANES; l++) {
        const quantize_q4_k *b = &r->room->blocks[l];
        for (int j = 0; j < Q4_K_RUNS; j++) {
            r->room->scale[j][l] = b->unit * b->scale[j];
            r->room->zero[j][l] = -(b->offset_unit * b->offset[j]);
        }
    }
}

void quantize_pack_with(const quantize_plan *plan, const quantize_factor *factor, const float *x,
                        int64_t n, int64_t k, uint8_t *to, double error[2], void *room) {
    const int64_t row_bytes = dsi_row_bytes(DSI_DTYPE_Q4_K, k);
    const int64_t block_bytes = dsi_row_bytes(DSI_DTYPE_Q4_K, Q4_K_BLOCK);
    error[0] = 0;
    error[1] = quantize_squares(x, n * k);
    for (int64_t i = 0; i < n; i += QUANTIZE_LANES) {
        sixteen_rows r = take(plan, factor, x + i * k, n - i, k, room, 0, 15);
        for (int64_t first = 0; first < k; first += BLOCK) {
            const int64_t columns = begin_block(&r, first);
            for (int64_t at = 0; at < columns; at += Q4_K_BLOCK) {
                aim_at(&r, at, Q4_K_BLOCK);
                find_q4_k(&r, factor->weight + first + at);
                plan->search->settle(&r.feedback, at, Q4_K_BLOCK, Q4_K_RUN);
                for (int l = 0; l < r.n; l++) {
                    uint8_t codes[Q4_K_BLOCK];
                    for (int j = 0; j < Q4_K_BLOCK; j++) codes[j] = (uint8_t)r.room->target[j][l];
                    quantize_put_q4_k(&r.room->blocks[l], codes,
                                      to + (i + l) * row_bytes +
                                          (first + at) / Q4_K_BLOCK * block_bytes);
                }
            }
            add_lost(&r, 0, columns, error);
        }
    }
}
