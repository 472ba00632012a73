/* quantize_calibrate.h: what the matrices of a model multiply when it reads the text of
 * --calibrate, and what is made of it: which columns matter, and how what one loses can be made up
 * by others. */
#ifndef DSINFER_TOOL_QUANTIZE_CALIBRATE_H
#define DSINFER_TOOL_QUANTIZE_CALIBRATE_H

#include "quantize.h"
#include "quantize_search.h"

/* ---- Rows that are multiplied (quantize_calibrate.c). HIDDEN, between the matrices of a
 * feed-forward, is computed when it is wanted, the others lie in the file. */
enum {
    QUANTIZE_NORMED,
    QUANTIZE_QUERIES,
    QUANTIZE_LATENTS,
    QUANTIZE_ATTENTION,
    QUANTIZE_NORMED_AGAIN,
    QUANTIZE_LOGITS,
    QUANTIZE_KINDS,
    QUANTIZE_HIDDEN = QUANTIZE_KINDS
};
typedef struct quantize_calibration {
    const quantize_plan *plan;
    const char *path;
    dsi_map map;
    uint64_t n_tokens;
    /* of the feed-forward at hand */
    const dsi_file_tensor *gate, *up;
    float *hidden, *rows,
        *weight; /* [n_hidden][hidden_width], [n_hidden][hidden size], [n_hidden] */
    uint64_t n_hidden, room_hidden, room_rows;
    int64_t hidden_width;
} quantize_calibration;
typedef struct quantize_input {
    uint32_t layer, kind;
    int32_t expert; /* of HIDDEN; -1: not one of the routed ones */
    bool shared;    /* of HIDDEN: the shared expert */
} quantize_input;
/* The file `path`; if it is not there, the model reads the text now. CLI_OK or an exit code. */
int quantize_calibration_open(quantize_calibration *c, const cli_options *options,
                              const quantize_plan *plan, const char *path);
void quantize_calibration_close(quantize_calibration *c);
/* Of a tensor; false: nothing is known (embeddings, head, MTP blocks). */
bool quantize_input_of(const quantize_calibration *c, const char *name, quantize_input *in);
/* Before the two below, for HIDDEN: computes the rows. False: no memory. */
bool quantize_input_hidden(quantize_calibration *c, const quantize_input *in,
                           const dsi_file_tensor *down, dsi_pool *pool);
uint64_t quantize_input_rows(const quantize_calibration *c, const quantize_input *in);
/* Columns [first, first + n) of all rows, as f32 [rows][n]. */
void quantize_input_columns(const quantize_calibration *c, const quantize_input *in, int64_t first,
                            int64_t n, float *to);

/* ---- Factors (quantize_factor.c). The second moments of the rows' columns, in blocks on the
 * diagonal, are R D R' with R upper triangular and ones on its diagonal. D weighs what a column
 * loses, the columns of R say what the ones behind it can make up. */
enum { QUANTIZE_FACTOR_COLUMNS = 1024 };
typedef struct quantize_factor {
    quantize_input of; /* what it was made of */
    bool made;
    int64_t k;
    float *transposed;       /* block by block [columns][columns]: row j holds R[i][j], i < j */
    float *weight;           /* [k] D */
    float *scales, *columns; /* while it is made */
    uint64_t room;
} quantize_factor;
/* Of a tensor with k columns; the same is not made twice. NULL: nothing is known of its inputs.
 * *no_memory is set if there is none. */
const quantize_factor *quantize_factor_of(quantize_factor factors[2], quantize_calibration *c,
                                          const dsi_file_tensor *t, dsi_pool *pool,
                                          bool *no_memory);
void quantize_factors_free(quantize_factor factors[2]);

/* ---- Codes with feedback (quantize_feedback.c): n rows of k numbers as quantize_rows and
 * quantize_pack make them; room: quantize_feedback_room() bytes, from a multiple of 64 on. */
uint64_t quantize_feedback_room(void);
void quantize_rows_with(const quantize_plan *plan, const quantize_factor *factor, const float *x,
                        int64_t n, int64_t k, uint8_t *codes, uint8_t *scales, double error[2],
                        void *room);
void quantize_pack_with(const quantize_plan *plan, const quantize_factor *factor, const float *x,
                        int64_t n, int64_t k, uint8_t *to, double error[2], void *room);

#endif
