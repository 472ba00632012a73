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
    dsi_dtype blocks; /* not NONE: a GGUF with matrices of this type; the five above are not set */
} quantize_form;
const quantize_form *quantize_form_find(const char *name); /* NULL: no such form */

/* ---- What is written (quantize_plan.c). One weight becomes several tensors, in its shard; of a
 * GGUF, a part of one tensor, or of two (quantize_gguf.c). */
enum {
    QUANTIZE_COPY,
    QUANTIZE_BF16,
    QUANTIZE_CODES,
    QUANTIZE_SCALES,
    QUANTIZE_SHAPE,
    /* GGUF: rows as they follow each other; with the halves of each head in turns, as the rope of
     * its llama architecture wants q and k; of kv_b_proj, each head's keys transposed, its values
     */
    QUANTIZE_ROWS,
    QUANTIZE_ROWS_TURNED,
    QUANTIZE_HEAD_KEYS,
    QUANTIZE_HEAD_VALUES
};
typedef struct quantize_tensor {
    uint32_t source; /* in the checkpoint */
    uint32_t role;
    const char *tail; /* behind the name of the source without ".weight"; NULL: the name itself */
    dsi_dtype dtype;
    uint32_t n_dims;
    int64_t shape[4];
    uint64_t n_bytes, offset; /* behind the header of its file */
} quantize_tensor;
/* A tensor of a GGUF. */
typedef struct quantize_gguf_tensor {
    char name[64];
    dsi_dtype dtype;
    uint32_t n_dims;
    int64_t ne[3]; /* the fastest first */
    uint64_t offset;
} quantize_gguf_tensor;
typedef struct quantize_plan {
    const dsi_checkpoint *from;
    const dsi_config *config;
    const quantize_form *form;
    const char *keep;
    const struct quantize_search *search; /* for scales */
    uint64_t calibration_sum;             /* of the bytes of --calibrate's file; 0: there is none */
    quantize_tensor *tensors;             /* shard by shard; inside one, wider types first */
    uint32_t n_tensors;
    uint32_t n_files;         /* to write: as many as there are shards, or one GGUF */
    uint32_t *first_of_shard; /* [n_shards + 1]; NULL: GGUF */
    quantize_gguf_tensor *gguf;
    uint32_t n_gguf, n_wide; /* tensors of the GGUF; those whose rows the type does not divide */
    float *rope_divisors;    /* [n_rope_divisors] the first tensor of a GGUF of Llama 3; NULL */
    uint32_t n_rope_divisors;
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

/* ---- GGUF (quantize_gguf.c, quantize_gguf_keys.c). */
/* The tensors of the GGUF, and of which weights they are made. As quantize_plan_make, which calls
 * it. */
dsi_status quantize_gguf_plan(quantize_plan *plan, dsi_error *error);
/* Rows of a tensor that are made together: unit `unit` of n_units. */
typedef struct quantize_unit {
    int64_t n, k;  /* rows and their numbers, in the order of the file */
    int64_t first; /* how many rows lie in front of them in the tensor */
} quantize_unit;
int64_t quantize_gguf_units(const quantize_plan *plan, const quantize_tensor *tensor);
/* Its numbers as f32 [n][k] in `to`; room: as much again. */
quantize_unit quantize_gguf_read(const quantize_plan *plan, const quantize_tensor *tensor,
                                 int64_t unit, float *to, float *room);
/* The header: keys, tokenizer, list of tensors, and the rope's divisors behind it. *n_bytes_header:
 * without those. CLI_OK or an exit code, after explaining. */
int quantize_gguf_header(const quantize_plan *plan, cli_bytes *bytes, uint64_t *n_bytes_header,
                         const char *path);
/* A block of Q4_K whose codes are known. */
struct quantize_q4_k;
void quantize_put_q4_k(const struct quantize_q4_k *block, const uint8_t codes[256], uint8_t *to);
/* n rows of k numbers in a type of the file; error as quantize_rows. */
void quantize_pack(const quantize_plan *plan, dsi_dtype dtype, const float *x, int64_t n, int64_t k,
                   uint8_t *to, double error[2]);

/* ---- Rows (quantize_rows.c). */
enum { QUANTIZE_BLOCK = 128 }; /* rows that are worked on together: those of a block of scales */
/* Rows [row, row + n) of a weight as f32 [n][k]. */
void quantize_read_rows(const quantize_plan *plan, const dsi_file_tensor *weight, int64_t row,
                        int64_t n, float *to);
/* The codes of n <= QUANTIZE_BLOCK rows as they are stored, their scales (the rows of the scale
 * tensor that belong to them), and what was lost: error[0] sum of squares of the differences,
 * error[1] of the weights. `row` is a multiple of QUANTIZE_BLOCK. */
void quantize_rows(const quantize_plan *plan, const float *x, int64_t n, int64_t k, uint8_t *codes,
                   uint8_t *scales, double error[2]);
/* Codes of four bits to columns [first, first + n) of a row that was zero; scale i of an array. */
void quantize_put4(const int8_t *codes, int64_t first, int64_t n, uint8_t *row);
void quantize_put_scale(dsi_dtype dtype, float scale, uint8_t *scales, int64_t i);
double quantize_squares(const float *x, int64_t n);                /* their sum */
int64_t quantize_code_bytes(const quantize_form *form, int64_t k); /* of a row */

/* ---- Files (quantize_files.c). */
typedef struct quantize_output {
    const char *folder; /* or the GGUF */
    int journal, file;  /* descriptors, -1: closed */
    uint64_t header_bytes;
    bool *done;    /* [n_tensors of the source] written, by an earlier run or this one */
    float *errors; /* [the same] relative error of what was quantised, -1 of what was copied */
    uint64_t n_done, n_unsynced, sync_bytes;
    cli_bytes lines; /* of the journal, whose bytes may not be on the disk yet */
} quantize_output;
/* The folder: new, empty, or one that an earlier run with the same source and options left
 * unfinished; or the GGUF, of which the same holds. CLI_OK or an exit code, after explaining; close
 * it in any case. */
int quantize_open_output(const quantize_plan *plan, const char *folder, quantize_output *out);
/* A file, at its full length, with its header. *whole: it is finished already. */
int quantize_open_file(const quantize_plan *plan, uint32_t file, quantize_output *out, bool *whole);
/* Bytes at an offset behind the header, from any thread; 0, or -1 with errno. */
int quantize_write(const quantize_output *out, const void *data, uint64_t n_bytes, uint64_t offset);
/* All that source tensor i becomes is written, n_bytes of it; error: as in `errors`. */
int quantize_note(quantize_output *out, uint32_t i, double error, uint64_t n_bytes);
int quantize_close_file(const quantize_plan *plan, uint32_t file, quantize_output *out);
/* The index, the small files, config.json last: from then on the folder is a model. */
int quantize_finish(const quantize_plan *plan, quantize_output *out);
/* Nothing was made yet: takes the journal away, and the folder if it is empty. */
void quantize_discard_output(const quantize_plan *plan, const quantize_output *out);
void quantize_close_output(quantize_output *out);

/* ---- Texts (quantize_text.c). */
typedef struct quantize_text {
    size_t max_tokens; /* set by the caller */
    int32_t *tokens;
    size_t n_tokens;
    size_t
        *ends; /* [n_parts] behind the last token of each part, which a session of its own gets */
    size_t n_parts, max_parts;
} quantize_text;
/* The first max_tokens tokens of a file, in parts of at most max_part: of a plain text, or, if its
 * name ends in .jsonl, of its lines, each an object with "text", or with "user" and "answer", which
 * are put into the model's template. option: for messages. Free it in any case. */
int quantize_text_read(const dsi_model *model, const char *path, const char *option,
                       size_t max_part, quantize_text *text);
/* A number that differs for other bytes; CLI_OK or an exit code. */
int quantize_text_sum(const char *path, uint64_t *sum);
void quantize_text_free(quantize_text *text);
typedef struct quantize_run {
    void *user;
    uint32_t all_logits;
    void (*before)(void *user, size_t token); /* a step that begins with this token; or NULL */
    int (*after)(void *user, dsi_session *session, size_t part); /* `part`: its first token */
} quantize_run;
/* All parts, one after the other. */
int quantize_text_run(const quantize_text *text, dsi_engine *engine, const quantize_run *run);

/* ---- What it costs (quantize_eval.c): both models over the tokens of a text. */
int quantize_compare(const cli_options *options, const char *made);

#endif
