/* gguf.c: `dsi-bench synth --gguf TYPE`: the weights of a synthetic checkpoint in one GGUF file,
 * piece by piece, so that memory stays small whatever the size. */
#include "gguf.h"

#include "../kernels/formats.h"
#include "../lib/base/convert.h"
#include "../lib/base/sys.h"
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

enum {
    UNIT_NUMBERS = 1 << 18, /* what a thread turns over at once, one row at least */
    UNITS = 16              /* in memory together */
};

/* ---- One tensor: units of whole rows, each made by one thread ------------------------------- */

typedef struct job {
    const gguf_source *source;
    const gguf_tensor *tensor;
    uint64_t n_units, n_per_matrix; /* units of the tensor, of one of its stacked matrices */
    int64_t unit_rows;              /* of the checkpoint's matrix; a head, if it is cut */
    uint64_t unit_bytes;            /* of a full one in the file */
    uint64_t first;                 /* unit at the start of `out` */
    uint8_t *out;                   /* [UNITS][unit_bytes] */
    bool failed[UNITS];             /* no memory */
} job;

/* A matrix of the checkpoint while its rows are read. */
typedef struct matrix {
    const gguf_source *source;
    size_t index;
    const synth_tensor *tensor;
    int64_t n_columns;
    dsi_scale_span span;
    float *scales;     /* NULL: none */
    int64_t per_row;   /* scales in one row of them */
    uint8_t *raw;      /* pieces that hold the rows */
    float decode[256]; /* of 8-bit codes */
} matrix;

/* Bytes [begin, begin + n) of a tensor; `to` has room for the pieces around them. Returns where
 * they begin in it. */
static const uint8_t *read_bytes(const gguf_source *s, size_t index, uint64_t begin, uint64_t n,
                                 uint8_t *to) {
    uint64_t all = s->list->tensors[index].n_bytes, first = begin / SYNTH_PIECE;
    for (uint64_t piece = first; piece * SYNTH_PIECE < begin + n; piece++) {
        uint64_t left = all - piece * SYNTH_PIECE;
        s->fill(s->context, index, piece, to + (piece - first) * SYNTH_PIECE,
                left < SYNTH_PIECE ? left : SYNTH_PIECE);
    }
    return to + (begin - first * SYNTH_PIECE);
}

/* The scales of a matrix stand behind it in the list. */
static bool read_scales(matrix *m) {
    const synth_form *form = m->source->list->form;
    dsi_dtype dtype = m->tensor->dtype;
    if (dtype == DSI_DTYPE_BF16 || dtype == DSI_DTYPE_F32) return true;
    const synth_tensor *t = &m->source->list->tensors[m->index + 1];
    uint64_t n = (uint64_t)(t->rows * t->columns);
    uint8_t *bytes = malloc(t->n_bytes + 2 * SYNTH_PIECE);
    m->scales = malloc(n * sizeof *m->scales);
    bool ok = bytes && m->scales;
    if (ok)
        dsi_widen(t->dtype, read_bytes(m->source, m->index + 1, 0, t->n_bytes, bytes), m->scales,
                  n);
    free(bytes);
    m->span = dsi_scale_span_of(form->scale_kind, form->scale_group, m->n_columns);
    m->per_row = t->columns;
    for (int i = 0; i < 256; i++)
        m->decode[i] = dtype == DSI_DTYPE_E4M3 ? dsi_e4m3_to_f32((uint8_t)i) : (float)(int8_t)i;
    return ok;
}

static bool open_matrix(matrix *m, const gguf_source *source, size_t index, int64_t n_rows) {
    const synth_tensor *t = &source->list->tensors[index];
    *m = (matrix){.source = source, .index = index, .tensor = t, .n_columns = t->columns};
    if (t->dtype == DSI_DTYPE_I32) m->n_columns *= 8;
    uint64_t row_bytes = (uint64_t)t->columns * dsi_dtype_bytes(t->dtype);
    m->raw = malloc((uint64_t)n_rows * row_bytes + 2 * SYNTH_PIECE);
    return m->raw && read_scales(m);
}

static void close_matrix(matrix *m) {
    free(m->raw);
    free(m->scales);
}

/* One row; columns that share a scale together. */
static void widen_row(const matrix *m, const uint8_t *row, const float *scales, float *to) {
    bool words = m->tensor->dtype == DSI_DTYPE_I32; /* of eight, the first in the lowest bits */
    for (int64_t begin = 0; begin < m->n_columns; begin += m->span.k) {
        int64_t end = begin + m->span.k < m->n_columns ? begin + m->span.k : m->n_columns;
        float scale = scales[begin / m->span.k];
        for (int64_t c = begin; c < end; c++)
            to[c] =
                scale * (words ? (float)((row[c / 2] >> 4 * (c % 2) & 15) - 8) : m->decode[row[c]]);
    }
}

/* Rows [begin, begin + n) as f32. */
static void read_rows(const matrix *m, int64_t begin, int64_t n, float *to) {
    uint64_t row_bytes = (uint64_t)m->tensor->columns * dsi_dtype_bytes(m->tensor->dtype);
    const uint8_t *from = read_bytes(m->source, m->index, (uint64_t)begin * row_bytes,
                                     (uint64_t)n * row_bytes, m->raw);
    if (!m->scales) {
        dsi_widen(m->tensor->dtype, from, to, (uint64_t)(n * m->n_columns));
        return;
    }
    for (int64_t r = 0; r < n; r++)
        widen_row(m, from + (uint64_t)r * row_bytes,
                  m->scales + (begin + r) / m->span.n * m->per_row, to + r * m->n_columns);
}

/* The part of a head's rows that the tensor holds; `room` for the keys, which are transposed. */
static const float *cut_head(const job *j, const float *rows, int64_t n_columns, float *room) {
    const gguf_tensor *t = j->tensor;
    if (t->cut == GGUF_WHOLE) return rows;
    if (t->cut == GGUF_HEAD_VALUES) return rows + j->source->shape->qk_nope_head_dim * n_columns;
    for (int64_t r = 0; r < t->dims[0]; r++)
        for (int64_t c = 0; c < n_columns; c++) room[c * t->dims[0] + r] = rows[r * n_columns + c];
    return room;
}

/* Unit `unit` of the tensor as the file wants it. false: no memory. */
static bool make_unit(const job *j, uint64_t unit, uint8_t *to) {
    const gguf_tensor *t = j->tensor;
    size_t index = t->first + t->step * (unit / j->n_per_matrix);
    int64_t begin = (int64_t)(unit % j->n_per_matrix) * j->unit_rows;
    int64_t rows = j->source->list->tensors[index].rows, n = (rows ? rows : 1) - begin;
    if (n > j->unit_rows) n = j->unit_rows;
    matrix m;
    float *values = NULL;
    bool ok = open_matrix(&m, j->source, index, n);
    if (ok) values = malloc((uint64_t)(n * m.n_columns) * 2 * sizeof *values);
    if (ok && values) {
        uint64_t row_bytes = gguf_row_bytes(t->type, t->dims[0]);
        int64_t n_out = t->cut == GGUF_WHOLE ? n : t->dims[1];
        read_rows(&m, begin, n, values);
        const float *from = cut_head(j, values, m.n_columns, values + n * m.n_columns);
        for (int64_t r = 0; r < n_out; r++)
            gguf_pack_row(t->type, from + r * t->dims[0], t->dims[0], to + (uint64_t)r * row_bytes);
    }
    close_matrix(&m);
    free(values);
    return ok && values;
}

static void make_units(void *context, uint32_t thread, uint32_t n_threads) {
    job *j = context;
    for (uint64_t i = thread; i < UNITS && j->first + i < j->n_units; i += n_threads)
        if (!make_unit(j, j->first + i, j->out + i * j->unit_bytes)) j->failed[i] = true;
}

static void plan_units(job *j) {
    const gguf_tensor *t = j->tensor;
    const synth_shape *s = j->source->shape;
    int64_t rows = j->source->list->tensors[t->first].rows, out_rows;
    if (rows == 0) rows = 1;
    if (t->cut == GGUF_WHOLE) {
        j->unit_rows = t->dims[0] < UNIT_NUMBERS ? UNIT_NUMBERS / t->dims[0] : 1;
        if (j->unit_rows > rows) j->unit_rows = rows;
        out_rows = j->unit_rows;
    } else {
        j->unit_rows = s->qk_nope_head_dim + s->v_head_dim;
        out_rows = t->dims[1];
    }
    j->n_per_matrix = (uint64_t)dsi_ceil_div(rows, j->unit_rows);
    j->n_units = j->n_per_matrix * t->n_stacked;
    j->unit_bytes = (uint64_t)out_rows * gguf_row_bytes(t->type, t->dims[0]);
}

/* ---- The file ------------------------------------------------------------------------------- */

typedef struct output {
    const gguf_source *source;
    gguf_list list;
    bench_file file;
    uint64_t n_written;
} output;

static void pad(FILE *file) {
    for (long at = ftell(file); at % GGUF_ALIGNMENT; at++) fputc(0, file);
}

static void write_header(output *o, const char *type_name) {
    uint64_t offset = 0;
    gguf_write_begin(o->file.stream, o->list.n, 0); /* keys: known when they are written */
    uint64_t n_keys = gguf_write_keys(o->file.stream, o->source->shape, type_name);
    for (size_t i = 0; i < o->list.n; i++) {
        const gguf_tensor *t = &o->list.tensors[i];
        gguf_write_tensor(o->file.stream, t->name, t->n_dims, t->dims, t->type, offset);
        offset += gguf_aligned(t->n_bytes);
    }
    pad(o->file.stream);
    long end = ftell(o->file.stream);
    fseek(o->file.stream, GGUF_KEYS_AT, SEEK_SET);
    gguf_write_u64(o->file.stream, n_keys);
    fseek(o->file.stream, end, SEEK_SET);
}

static int write_tensor(output *o, const gguf_tensor *t) {
    job j = {.source = o->source, .tensor = t};
    int code = BENCH_OK;
    plan_units(&j);
    j.out = malloc(UNITS * j.unit_bytes);
    if (!j.out) return bench_refused("hold", t->name);
    for (; code == BENCH_OK && j.first < j.n_units; j.first += UNITS) {
        dsi_pool_run(o->source->pool, make_units, &j);
        /* The last unit of each stacked matrix may be shorter than the others. */
        for (uint64_t i = 0; code == BENCH_OK && i < UNITS && j.first + i < j.n_units; i++) {
            uint64_t in_matrix = (j.first + i) % j.n_per_matrix * j.unit_bytes;
            uint64_t n = t->n_bytes / t->n_stacked - in_matrix;
            if (n > j.unit_bytes) n = j.unit_bytes;
            if (j.failed[i])
                code = bench_refused("hold", t->name);
            else if (fwrite(j.out + i * j.unit_bytes, 1, n, o->file.stream) != n)
                code = bench_refused("write", o->file.part);
            o->n_written += n;
        }
        bench_progress("writing", o->n_written, o->list.n_bytes);
    }
    free(j.out);
    pad(o->file.stream);
    return code;
}

static int open_output(output *o, const bench_options *options) {
    size_t length = strlen(options->out);
    char path[4096];
    if (length > 5 && strcmp(options->out + length - 5, ".gguf") == 0)
        return bench_file_open(&o->file, options->out);
    if (mkdir(options->out, 0777) != 0 && errno != EEXIST)
        return bench_refused("create the folder", options->out);
    snprintf(path, sizeof path, "%s/model-%s.gguf", options->out, options->gguf);
    return bench_file_open(&o->file, path);
}

int gguf_write(const gguf_source *source, const bench_options *options) {
    output o = {.source = source};
    uint32_t type;
    double start = dsi_sys_seconds();
    if (!gguf_type_find(options->gguf, &type)) {
        bench_say("unknown --gguf \"%s\"; there are q8_0, q4_0, q4_k, bf16", options->gguf);
        return BENCH_USAGE;
    }
    if (!gguf_list_make(source->shape, source->list, type, &o.list)) {
        bench_say("no memory for the list of tensors; free some");
        return BENCH_ENVIRONMENT;
    }
    int code = open_output(&o, options);
    if (code == BENCH_OK) {
        write_header(&o, options->gguf);
        for (size_t i = 0; code == BENCH_OK && i < o.list.n; i++)
            code = write_tensor(&o, &o.list.tensors[i]);
        code = bench_file_close(&o.file, code);
    }
    if (code == BENCH_OK)
        bench_say("%s: %zu tensors, %.2f GB in %.1f s", o.file.path, o.list.n,
                  (double)o.n_written / 1e9, dsi_sys_seconds() - start);
    gguf_list_free(&o.list);
    return code;
}
