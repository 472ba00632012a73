/* synth.c: `dsi-bench synth`: a checkpoint of a preset's exact layer shapes with random weights of
 * sane size, for measuring speed. The same seed gives the same bytes, whatever the threads. */
#include "synth.h"

#include "../kernels/formats.h"
#include "../lib/base/pool.h"
#include "../lib/base/sys.h"
#include "bench.h"
#include "gguf.h"
#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum {
    TABLE = 1 << 16, /* normal numbers to draw from */
    CHUNK_BYTES = 16 << 20
};
static const uint64_t shard_bytes = UINT64_C(4) << 30;

typedef struct writer {
    const bench_options *options;
    synth_shape shape;
    synth_list list;
    dsi_pool *pool;
    float *normal;  /* [TABLE] of deviation 1 */
    uint8_t *codes; /* [TABLE] the same as the form's E4M3, I8 or I4 (value + 8) */
    uint8_t *chunk; /* [CHUNK_BYTES] */
    uint64_t n_written;
    /* the job of the pool: part of one tensor */
    const synth_tensor *tensor;
    uint64_t offset, n_bytes, stream;
} writer;

/* ---- Values --------------------------------------------------------------------------------- */

static uint8_t code_of(dsi_dtype dtype, double value) {
    double top = dtype == DSI_DTYPE_I8 ? 127 : 7;
    if (dtype == DSI_DTYPE_E4M3) return dsi_f32_to_e4m3((float)value);
    double whole = fmax(-top - 1, fmin(top, rint(value)));
    return (uint8_t)((int)whole + (dtype == DSI_DTYPE_I4 ? 8 : 0));
}

/* The sum of twelve uniform numbers is normal enough, and the same on every machine. */
static void fill_tables(writer *w) {
    dsi_dtype dtype = w->list.form->dtype;
    for (uint64_t i = 0; i < TABLE; i++) {
        double sum = -6;
        for (uint64_t j = 0; j < 12; j++) sum += (double)(dsi_mix64(i * 12 + j) >> 11) * 0x1p-53;
        w->normal[i] = (float)sum;
        w->codes[i] = code_of(dtype, sum * synth_per_deviation(dtype));
    }
}

/* Words of eight values of four bits. */
static void fill_words(const writer *w, uint64_t state, uint8_t *to, uint64_t n_bytes) {
    for (uint64_t i = 0; i + 4 <= n_bytes; i += 4) {
        uint32_t word = 0;
        for (int half = 0; half < 2; half++) {
            uint64_t bits = dsi_mix64(state++);
            for (int j = 0; j < 4; j++)
                word |= (uint32_t)w->codes[bits >> 16 * j & 0xffff] << (4 * (4 * half + j));
        }
        for (int j = 0; j < 4; j++) to[i + (uint64_t)j] = (uint8_t)(word >> 8 * j);
    }
}

static float value_of(const writer *w, uint16_t draw) {
    const synth_tensor *t = w->tensor;
    if (t->values == SYNTH_ONES) return 1;
    if (t->values == SYNTH_NORMAL) return w->normal[draw] * (float)t->deviation;
    if (t->values == SYNTH_SCALES) /* within a half of the size that gives the deviation */
        return (float)(t->deviation * (0.75 + draw * 0x1p-17));
    return 0;
}

/* Bytes of one piece, drawn from its own stream of random numbers. */
static void fill_piece(const writer *w, uint64_t piece, uint8_t *to, uint64_t n_bytes) {
    const synth_tensor *t = w->tensor;
    uint64_t state = dsi_mix64(w->stream ^ dsi_mix64(piece)), bits = 0;
    uint32_t size = dsi_dtype_bytes(t->dtype);
    if (t->dtype == DSI_DTYPE_I32) {
        fill_words(w, state, to, n_bytes);
        return;
    }
    if (t->values == SYNTH_SHAPE) {
        memcpy(to, t->weight, n_bytes); /* two numbers of 64 bits */
        return;
    }
    for (uint64_t i = 0; i * size < n_bytes; i++) {
        if (i % 4 == 0) bits = dsi_mix64(state++);
        uint16_t draw = (uint16_t)(bits >> 16 * (i % 4));
        if (size == 1) {
            to[i] = w->codes[draw];
        } else if (size == 2) {
            uint16_t half = dsi_f32_to_bf16(value_of(w, draw));
            memcpy(to + i * 2, &half, 2);
        } else {
            float value = value_of(w, draw);
            memcpy(to + i * 4, &value, 4);
        }
    }
}

static void choose_tensor(writer *w, size_t index) {
    w->tensor = &w->list.tensors[index];
    w->stream = dsi_mix64(w->options->seed) ^ dsi_mix64(index + 1);
}

static void fill_chunk(void *context, uint32_t thread, uint32_t n_threads) {
    const writer *w = context;
    uint64_t begin, end;
    dsi_pool_share(w->n_bytes, SYNTH_PIECE, thread, n_threads, &begin, &end);
    for (uint64_t at = begin; at < end; at += SYNTH_PIECE) {
        uint64_t n = end - at < SYNTH_PIECE ? end - at : SYNTH_PIECE;
        fill_piece(w, (w->offset + at) / SYNTH_PIECE, w->chunk + at, n);
    }
}

/* For a GGUF: a piece of any tensor, from any thread. */
static void fill_of(const void *context, size_t index, uint64_t piece, uint8_t *to,
                    uint64_t n_bytes) {
    writer w = *(const writer *)context;
    choose_tensor(&w, index);
    fill_piece(&w, piece, to, n_bytes);
}

/* ---- Files ---------------------------------------------------------------------------------- */

static int create(const writer *w, const char *name, bench_file *file) {
    char path[4096];
    snprintf(path, sizeof path, "%s/%s", w->options->out, name);
    return bench_file_open(file, path);
}

static void shard_name(const writer *w, uint32_t shard, char name[64]) {
    uint32_t n_shards = w->list.tensors[w->list.n - 1].shard + 1;
    if (n_shards == 1)
        snprintf(name, 64, "model.safetensors");
    else
        snprintf(name, 64, "model-%05u-of-%05u.safetensors", shard + 1, n_shards);
}

/* Wider types first, as the reference writer does, so that every tensor is aligned. */
static const dsi_dtype order[] = {DSI_DTYPE_I64,  DSI_DTYPE_F32,  DSI_DTYPE_I32,
                                  DSI_DTYPE_BF16, DSI_DTYPE_E4M3, DSI_DTYPE_I8};
enum { N_ORDER = sizeof order / sizeof order[0] };

static void write_header(const writer *w, FILE *file, uint32_t shard) {
    uint64_t offset = 0, length = 0;
    fseek(file, 8, SEEK_SET); /* the length comes last */
    length += (uint64_t)fprintf(file, "{\"__metadata__\":{\"format\":\"pt\"}");
    for (int k = 0; k < N_ORDER; k++)
        for (size_t i = 0; i < w->list.n; i++) {
            const synth_tensor *t = &w->list.tensors[i];
            if (t->shard != shard || t->dtype != order[k]) continue;
            length += (uint64_t)fprintf(file, ",\"%s\":{\"dtype\":\"%s\",\"shape\":[", t->name,
                                        dsi_dtype_name(t->dtype));
            if (t->rows) length += (uint64_t)fprintf(file, "%" PRId64 ",", t->rows);
            length +=
                (uint64_t)fprintf(file, "%" PRId64 "],\"data_offsets\":[%" PRIu64 ",%" PRIu64 "]}",
                                  t->columns, offset, offset + t->n_bytes);
            offset += t->n_bytes;
        }
    length += (uint64_t)fprintf(file, "}");
    for (; length % 64 != 56; length++) fputc(' ', file); /* the data then starts at 64 bytes */
    fseek(file, 0, SEEK_SET);
    for (int i = 0; i < 8; i++) fputc((int)(length >> (8 * i) & 255), file);
    fseek(file, 0, SEEK_END);
}

static int write_tensor(writer *w, FILE *file, size_t index, const char *path) {
    choose_tensor(w, index);
    for (w->offset = 0; w->offset < w->tensor->n_bytes; w->offset += w->n_bytes) {
        uint64_t left = w->tensor->n_bytes - w->offset;
        w->n_bytes = left < CHUNK_BYTES ? left : CHUNK_BYTES;
        dsi_pool_run(w->pool, fill_chunk, w);
        if (fwrite(w->chunk, 1, w->n_bytes, file) != w->n_bytes)
            return bench_refused("write", path);
        w->n_written += w->n_bytes;
        bench_progress("writing", w->n_written, w->list.n_bytes);
    }
    return BENCH_OK;
}

/* A hole in place of all tensors of the shard: zeros that take no room on the disk. */
static int write_hole(const writer *w, FILE *file, uint32_t shard, const char *path) {
    uint64_t n = 0;
    for (size_t i = 0; i < w->list.n; i++)
        if (w->list.tensors[i].shard == shard) n += w->list.tensors[i].n_bytes;
    if (fflush(file) != 0 || ftruncate(fileno(file), ftell(file) + (off_t)n) != 0)
        return bench_refused("write", path);
    return BENCH_OK;
}

static int write_shard(writer *w, uint32_t shard) {
    char name[64];
    bench_file file;
    shard_name(w, shard, name);
    int code = create(w, name, &file);
    if (code != BENCH_OK) return code;
    write_header(w, file.stream, shard);
    if (w->options->hollow)
        return bench_file_close(&file, write_hole(w, file.stream, shard, file.part));
    for (int k = 0; k < N_ORDER; k++)
        for (size_t i = 0; code == BENCH_OK && i < w->list.n; i++)
            if (w->list.tensors[i].shard == shard && w->list.tensors[i].dtype == order[k])
                code = write_tensor(w, file.stream, i, file.part);
    return bench_file_close(&file, code);
}

static int write_index(const writer *w) {
    char name[64];
    bench_file file;
    int code = create(w, "model.safetensors.index.json", &file);
    if (code != BENCH_OK) return code;
    fprintf(file.stream, "{\n  \"metadata\": {\"total_size\": %" PRIu64 "},\n  \"weight_map\": {\n",
            w->list.n_bytes);
    for (size_t i = 0; i < w->list.n; i++) {
        shard_name(w, w->list.tensors[i].shard, name);
        fprintf(file.stream, "    \"%s\": \"%s\"%s\n", w->list.tensors[i].name, name,
                i + 1 < w->list.n ? "," : "");
    }
    fputs("  }\n}\n", file.stream);
    return bench_file_close(&file, BENCH_OK);
}

static int write_config(const writer *w) {
    bench_file file;
    int code = create(w, "config.json", &file);
    if (code != BENCH_OK) return code;
    synth_write_config(file.stream, &w->shape, w->list.form);
    return bench_file_close(&file, BENCH_OK);
}

/* A folder that held another checkpoint is none until the new one is whole. */
static int clear_folder(const writer *w) {
    static const char *const names[] = {"config.json", "model.safetensors.index.json",
                                        "model.safetensors"};
    char path[4096];
    for (int i = 0; i < 3; i++) {
        snprintf(path, sizeof path, "%s/%s", w->options->out, names[i]);
        if (unlink(path) != 0 && errno != ENOENT) return bench_refused("replace", path);
    }
    return BENCH_OK;
}

/* config.json comes last: without it the folder is no checkpoint. */
static int write_all(writer *w) {
    if (mkdir(w->options->out, 0777) != 0 && errno != EEXIST)
        return bench_refused("create the folder", w->options->out);
    int code = clear_folder(w);
    uint64_t in_shard = 0;
    uint32_t shard = 0;
    for (size_t i = 0; i < w->list.n; i++) {
        uint64_t n = w->list.tensors[i].n_bytes;
        if (in_shard && in_shard + n > shard_bytes) {
            shard++;
            in_shard = 0;
        }
        w->list.tensors[i].shard = shard;
        in_shard += n;
    }
    for (uint32_t i = 0; code == BENCH_OK && i <= shard; i++) code = write_shard(w, i);
    if (code == BENCH_OK && shard > 0) code = write_index(w);
    return code == BENCH_OK ? write_config(w) : code;
}

/* ---- The command ---------------------------------------------------------------------------- */

static int allocate_and_write(writer *w, const synth_form *form) {
    dsi_error error = {0};
    uint32_t n_threads = bench_threads(w->options);
    w->normal = dsi_sys_calloc(TABLE, sizeof *w->normal);
    w->codes = dsi_sys_calloc(TABLE, 1);
    w->chunk = dsi_sys_calloc(CHUNK_BYTES, 1);
    if (!w->normal || !w->codes || !w->chunk || !synth_list_make(&w->shape, form, &w->list) ||
        dsi_pool_new(n_threads, NULL, &w->pool, &error) != DSI_OK) {
        bench_say("no memory for the list of tensors; free some");
        return BENCH_ENVIRONMENT;
    }
    fill_tables(w);
    if (w->options->gguf) {
        gguf_source source = {&w->shape, &w->list, w->pool, fill_of, w};
        return gguf_write(&source, w->options);
    }
    double start = dsi_sys_seconds();
    int code = write_all(w);
    if (code == BENCH_OK)
        bench_say("%s: %zu tensors, %.2f B parameters, %.2f GB in %.1f s", w->options->out,
                  w->list.n, (double)w->list.n_params / 1e9, (double)w->list.n_bytes / 1e9,
                  dsi_sys_seconds() - start);
    return code;
}

/* What is asked for, or the reason why not. */
static bool choose_shape(const bench_options *o, synth_shape *shape) {
    if (!synth_find(o->preset, shape)) {
        bench_say("unknown preset \"%s\"; there are %s", o->preset, synth_names());
        return false;
    }
    if (o->gguf && (synth_is_dense(shape) || shape->index_topk || o->mtp || o->hollow)) {
        bench_say("--gguf writes DeepSeek's V3 and V2, without --mtp and --hollow; for %s leave it "
                  "out, or let dsinfer quantize make a GGUF of the folder",
                  o->preset);
        return false;
    }
    if (o->mtp && shape->family != SYNTH_V3) {
        bench_say("--mtp with preset %s; only V3's shapes have a block that drafts: v3-slice, tiny",
                  o->preset);
        return false;
    }
    const int64_t n_layers = shape->num_hidden_layers, n_vocabulary = shape->vocab_size;
    if (synth_cut(shape, o->layers, o->vocab, o->mtp)) return true;
    bench_say("--layers %u --vocab %u: preset %s has %" PRId64 " layers and %" PRId64 " tokens; "
              "ask for fewer, or 0 for all",
              o->layers, o->vocab, o->preset, n_layers, n_vocabulary);
    return false;
}

int bench_synth(const bench_options *options) {
    writer w = {.options = options};
    if (!choose_shape(options, &w.shape)) return BENCH_USAGE;
    const char *dtype = options->dtype ? options->dtype : synth_is_dense(&w.shape) ? "bf16" : "fp8";
    const synth_form *form = synth_form_find(dtype);
    if (!form) {
        bench_say("unknown --dtype \"%s\"; there are %s", dtype, synth_form_names());
        return BENCH_USAGE;
    }
    if (!options->out || !options->out[0] || strlen(options->out) > 3000) {
        bench_say("synth needs --out DIR, the folder to write, or the file with --gguf");
        return BENCH_USAGE;
    }
    int code = allocate_and_write(&w, form);
    dsi_pool_free(w.pool);
    synth_list_free(&w.list);
    dsi_sys_free(w.normal);
    dsi_sys_free(w.codes);
    dsi_sys_free(w.chunk);
    return code;
}
