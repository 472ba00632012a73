/* quantize.h: what the files of `dsinfer quantize` share: the forms that can be made, the list of
 * tensors to write, rows to codes, and the files of an output that can be taken up again. */
#ifndef DSINFER_TOOL_QUANTIZE_H
#define DSINFER_TOOL_QUANTIZE_H

#include "../../lib/base/pool.h"
#include "../../lib/model/model.h"
#include "cli.h"

/* ---- Forms (quantize_plan.c): how matrices are stored, as the loader knows them. */
typedef struct quantize_form {
    const char *name; /* of --to */
    dsi_dtype dtype;  /* I8 or I4 */
    uint32_t scale_kind, scale_group;
    dsi_dtype scale_dtype;
    const char *scale_name;
    const char *config; /* value of quantization_config; %s: the list of what is left plain */
    const char *keep;   /* part of the names of matrices that stay plain; NULL: none */
} quantize_form;
const quantize_form *quantize_form_find(const char *name); /* NULL: no such form */

/* ---- What is written (quantize_plan.c). One weight becomes several tensors, in its shard. */
enum { QUANTIZE_COPY, QUANTIZE_BF16, QUANTIZE_CODES, QUANTIZE_SCALES, QUANTIZE_SHAPE };
typedef struct quantize_tensor {
    uint32_t source; /* in the checkpoint */
    uint32_t role;
    const char *tail; /* behind the name of the source without ".weight"; NULL: the name itself */
    dsi_dtype dtype;
    uint32_t n_dims;
    int64_t shape[4];
    uint64_t n_bytes, offset; /* behind the header of its file */
} quantize_tensor;
typedef struct quantize_plan {
    const dsi_checkpoint *from;
    const dsi_config *config;
    const quantize_form *form;
    const char *keep;
    quantize_tensor *tensors; /* shard by shard; inside one, wider types first */
    uint32_t n_tensors;
    uint32_t *first_of_shard; /* [n_shards + 1] */
    uint64_t n_bytes_in, n_bytes_out;
    uint32_t n_quantised;
} quantize_plan;
/* DSI_OK, or NOMEM, UNSUPPORTED (a tensor that cannot be read as numbers). */
dsi_status quantize_plan_make(const dsi_checkpoint *from, const dsi_config *config,
                              const quantize_form *form, const char *keep, quantize_plan *plan,
                              dsi_error *error);
void quantize_plan_free(quantize_plan *plan);
/* Name of an output tensor; false: longer than the room. */
bool quantize_name(const quantize_plan *plan, const quantize_tensor *tensor, char *name,
                   size_t n_bytes);

/* ---- Rows (quantize_rows.c). */
enum { QUANTIZE_BLOCK = 128 }; /* rows that are worked on together: those of a block of scales */
/* Rows [row, row + n) of a weight as f32 [n][k]. */
void quantize_read_rows(const quantize_plan *plan, const dsi_file_tensor *weight, int64_t row,
                        int64_t n, float *to);
/* The codes of n <= QUANTIZE_BLOCK rows as they are stored, their scales (the rows of the scale
 * tensor that belong to them), and what was lost: error[0] sum of squares of the differences,
 * error[1] of the weights. `row` is a multiple of QUANTIZE_BLOCK. */
void quantize_rows(const quantize_form *form, const float *x, int64_t n, int64_t k, uint8_t *codes,
                   uint8_t *scales, double error[2]);
int64_t quantize_code_bytes(const quantize_form *form, int64_t k); /* of a row */

/* ---- Files (quantize_files.c). */
typedef struct quantize_output {
    const char *folder;
    int journal, file; /* descriptors, -1: closed */
    uint64_t header_bytes;
    bool *done;    /* [n_tensors of the source] written, by an earlier run or this one */
    float *errors; /* [the same] relative error of what was quantised, -1 of what was copied */
    uint64_t n_done, n_unsynced, sync_bytes;
    cli_bytes lines; /* of the journal, whose bytes may not be on the disk yet */
} quantize_output;
/* The folder: new, empty, or one that an earlier run with the same source and options left
 * unfinished. CLI_OK or an exit code, after explaining; close it in any case. */
int quantize_open_output(const quantize_plan *plan, const char *folder, quantize_output *out);
/* The file of a shard, at its full length, with its header. *whole: it is finished already. */
int quantize_open_shard(const quantize_plan *plan, uint32_t shard, quantize_output *out,
                        bool *whole);
/* Bytes at an offset behind the header, from any thread; 0, or -1 with errno. */
int quantize_write(const quantize_output *out, const void *data, uint64_t n_bytes, uint64_t offset);
/* All that source tensor i becomes is written, n_bytes of it; error: as in `errors`. */
int quantize_note(quantize_output *out, uint32_t i, double error, uint64_t n_bytes);
int quantize_close_shard(const quantize_plan *plan, uint32_t shard, quantize_output *out);
/* The index, the small files, config.json last: from then on the folder is a model. */
int quantize_finish(const quantize_plan *plan, quantize_output *out);
void quantize_close_output(quantize_output *out);

/* ---- What it costs (quantize_eval.c): both models over the tokens of a text. */
int quantize_compare(const cli_options *options, const char *made);

#endif
