/* quantize_checkpoint.h: for tests: a checkpoint with its matrices stored in another form (FP8,
 * INT8 by channel or block, INT4 by group), in the layouts of published files, and its twin, whose
 * F32 weights are exactly what the quantised ones stand for. Embeddings, head, router and norms
 * stay. */
#ifndef DSI_TESTS_QUANTIZE_CHECKPOINT_H
#define DSI_TESTS_QUANTIZE_CHECKPOINT_H

#include "../kernels/formats.h"
#include "model_files.h"
#include <math.h>

typedef struct stored_form {
    const char *name;
    dsi_dtype dtype; /* BF16: nothing is quantised */
    uint32_t scale_kind, group;
    dsi_dtype scale_dtype;
    const char *scale_name;
    const char *config; /* the value of quantization_config; NULL: none */
    const char *plain;  /* matrices with this in their names stay as they are; NULL: none do */
} stored_form;

#define CT_INT8(strategy, block)                                                                   \
    "{\"quant_method\": \"compressed-tensors\", \"format\": \"int-quantized\", "                   \
    "\"quantization_status\": \"compressed\", \"kv_cache_scheme\": null, "                         \
    "\"ignore\": [\"lm_head\", \"re:.*mlp.gate$\"], \"config_groups\": {\"group_0\": "             \
    "{\"targets\": [\"Linear\"], \"output_activations\": null, \"input_activations\": "            \
    "{\"num_bits\": 8, \"type\": \"int\", \"symmetric\": true, \"strategy\": \"token\", "          \
    "\"dynamic\": true}, \"weights\": {\"num_bits\": 8, \"type\": \"int\", "                       \
    "\"symmetric\": true, \"dynamic\": false, \"strategy\": \"" strategy                           \
    "\", \"group_size\": null, \"block_structure\": " block ", \"actorder\": null}}}}"
#define CT_INT4(group, ignore)                                                                     \
    "{\"quant_method\": \"compressed-tensors\", \"format\": \"pack-quantized\", "                  \
    "\"quantization_status\": \"compressed\", \"kv_cache_scheme\": null, "                         \
    "\"ignore\": [" ignore "], \"config_groups\": {\"group_0\": "                                  \
    "{\"targets\": [\"Linear\"], \"output_activations\": null, \"input_activations\": null, "      \
    "\"weights\": {\"num_bits\": 4, \"type\": \"int\", \"symmetric\": true, \"dynamic\": false, "  \
    "\"strategy\": \"group\", \"group_size\": " group ", \"actorder\": null}}}}"

static const stored_form form_bf16 = {.name = "bf16", .dtype = DSI_DTYPE_BF16};
static const stored_form form_fp8 = {
    .name = "fp8",
    .dtype = DSI_DTYPE_E4M3,
    .scale_kind = DSI_SCALE_BLOCK_128,
    .scale_dtype = DSI_DTYPE_F32,
    .scale_name = "weight_scale_inv",
    .config = "{\"quant_method\": \"fp8\", \"fmt\": \"e4m3\", \"activation_scheme\": \"dynamic\", "
              "\"weight_block_size\": [128, 128]}"};
/* As INT4 files of R1 are published: attention, a small part of the bytes, is left plain. */
static const stored_form form_int4_mlp = {
    "int4-g128, MLP",
    DSI_DTYPE_I4,
    DSI_SCALE_GROUP,
    128,
    DSI_DTYPE_BF16,
    "weight_scale",
    CT_INT4("128", "\"lm_head\", \"re:.*self_attn.*\", \"re:.*mlp.gate$\""),
    "self_attn"};
/* Each way of storing once, each type of scale twice. */
static const stored_form integer_forms[] = {
    {"int8-channel", DSI_DTYPE_I8, DSI_SCALE_CHANNEL, 0, DSI_DTYPE_BF16, "weight_scale",
     CT_INT8("channel", "null"), NULL},
    {"int8-w8a8", DSI_DTYPE_I8, DSI_SCALE_CHANNEL, 0, DSI_DTYPE_F32, "weight_scale",
     "{\"quant_method\": \"w8a8_int8\", \"activation_scheme\": \"dynamic\"}", NULL},
    {"int8-block", DSI_DTYPE_I8, DSI_SCALE_BLOCK_128, 0, DSI_DTYPE_F32, "weight_scale_inv",
     "{\"quant_method\": \"blockwise_int8\", \"activation_scheme\": \"dynamic\", "
     "\"weight_block_size\": [128, 128]}",
     NULL},
    {"int8-ct-block", DSI_DTYPE_I8, DSI_SCALE_BLOCK_128, 0, DSI_DTYPE_F16, "weight_scale",
     CT_INT8("block", "[128, 128]"), NULL},
    {"int4-g128", DSI_DTYPE_I4, DSI_SCALE_GROUP, 128, DSI_DTYPE_BF16, "weight_scale",
     CT_INT4("128", "\"lm_head\", \"re:.*mlp.gate$\""), NULL},
    {"int4-g32", DSI_DTYPE_I4, DSI_SCALE_GROUP, 32, DSI_DTYPE_F16, "weight_scale",
     CT_INT4("32", "\"lm_head\", \"re:.*mlp.gate$\""), NULL},
};
enum { N_INTEGER_FORMS = sizeof integer_forms / sizeof integer_forms[0] };
enum { FORM_INT8_CHANNEL = 0, FORM_INT8_BLOCK = 2, FORM_INT4_G128 = 4, FORM_INT4_G32 = 5 };

/* ---- The file that is written --------------------------------------------------------------- */

typedef struct stored_tensor {
    char name[160];
    dsi_dtype dtype;
    uint32_t n_dims;
    int64_t shape[4];
    uint64_t n_bytes;
    const void *data;
    void *owned;
} stored_tensor;
typedef struct stored_file {
    stored_tensor *tensors;
    size_t n;
} stored_file;

static inline stored_tensor *add_stored(stored_file *f, const char *name, dsi_dtype dtype,
                                        int64_t rows, int64_t columns) {
    f->tensors = realloc(f->tensors, (f->n + 1) * sizeof *f->tensors);
    assert_non_null(f->tensors);
    stored_tensor *t = &f->tensors[f->n++];
    *t = (stored_tensor){.dtype = dtype,
                         .n_dims = rows ? 2 : 1,
                         .shape = {rows ? rows : columns, columns},
                         .n_bytes =
                             (uint64_t)((rows ? rows : 1) * columns) * dsi_dtype_bytes(dtype)};
    snprintf(t->name, sizeof t->name, "%s", name);
    t->data = t->owned = calloc(t->n_bytes, 1);
    assert_non_null(t->owned);
    return t;
}

/* `shift` spaces behind the header move every tensor off the addresses that suit its type. */
static inline void write_stored(const stored_file *f, const char *folder, int shift) {
    char path[512], *header = calloc(f->n + 1, 320);
    uint64_t at = 0, n_header;
    size_t n = 0;
    assert_non_null(header);
    n += (size_t)sprintf(header, "{\"__metadata__\":{\"format\":\"pt\"}");
    for (size_t i = 0; i < f->n; at += f->tensors[i++].n_bytes) {
        const stored_tensor *t = &f->tensors[i];
        n += (size_t)sprintf(header + n, ",\"%s\":{\"dtype\":\"%s\",\"shape\":[", t->name,
                             dsi_dtype_name(t->dtype));
        for (uint32_t d = 0; d < t->n_dims; d++)
            n += (size_t)sprintf(header + n, "%s%" PRId64, d ? "," : "", t->shape[d]);
        n += (size_t)sprintf(header + n, "],\"data_offsets\":[%" PRIu64 ",%" PRIu64 "]}", at,
                             at + t->n_bytes);
    }
    n += (size_t)sprintf(header + n, "}");
    while (n % 8) header[n++] = ' ';
    for (int i = 0; i < shift; i++) header[n++] = ' ';
    snprintf(path, sizeof path, "%s/model.safetensors", folder);
    unlink(path);
    FILE *file = fopen(path, "wb");
    assert_non_null(file);
    n_header = n;
    assert_int_equal(fwrite(&n_header, 1, 8, file), 8); /* little-endian, as all our machines */
    assert_int_equal(fwrite(header, 1, n, file), n);
    for (size_t i = 0; i < f->n; i++)
        assert_int_equal(fwrite(f->tensors[i].data, 1, f->tensors[i].n_bytes, file),
                         f->tensors[i].n_bytes);
    assert_int_equal(fclose(file), 0);
    free(header);
}

static inline void free_stored(stored_file *f) {
    for (size_t i = 0; i < f->n; i++) free(f->tensors[i].owned);
    free(f->tensors);
}

/* ---- One matrix ----------------------------------------------------------------------------- */

/* The code of E4M3 nearest to a finite x; of two, the even one. Codes ascend with their values. */
static inline uint8_t nearest_e4m3(float x) {
    float magnitude = fabsf(x);
    uint8_t low = 0, high = 0x7E;
    while (high - low > 1) {
        uint8_t middle = (uint8_t)((low + high) / 2);
        if (dsi_e4m3_to_f32(middle) <= magnitude)
            low = middle;
        else
            high = middle;
    }
    float below = magnitude - dsi_e4m3_to_f32(low), above = dsi_e4m3_to_f32(high) - magnitude;
    uint8_t code = below < above || (below <= above && low % 2 == 0) ? low : high;
    return (uint8_t)(code | (signbit(x) ? 0x80 : 0));
}

static inline void put_scale(dsi_dtype dtype, void *scales, int64_t i, float *scale) {
    uint16_t half = dtype == DSI_DTYPE_F16 ? dsi_f32_to_f16(*scale) : dsi_f32_to_bf16(*scale);
    if (dtype == DSI_DTYPE_F32) {
        ((float *)scales)[i] = *scale;
        return;
    }
    ((uint16_t *)scales)[i] = half;
    *scale = dtype == DSI_DTYPE_F16 ? dsi_f16_to_f32(half) : dsi_bf16_to_f32(half);
}

/* Stores rows [n0, n1), columns [k0, k1) of w under one scale, and puts what they now stand for
 * back into w. */
static inline void quantize_span(const stored_form *form, float *w, int64_t k,
                                 const int64_t span[4], uint8_t *to, int64_t words, float scale) {
    for (int64_t n = span[0]; n < span[1]; n++)
        for (int64_t j = span[2]; j < span[3]; j++) {
            float x = w[n * k + j] / scale, value = rintf(x);
            if (form->dtype == DSI_DTYPE_E4M3) {
                uint8_t code = nearest_e4m3(fminf(fmaxf(x, -448), 448));
                to[n * k + j] = code;
                value = dsi_e4m3_to_f32(code);
            } else if (form->dtype == DSI_DTYPE_I8) {
                value = fminf(fmaxf(value, -128), 127);
                to[n * k + j] = (uint8_t)(int8_t)value;
            } else {
                value = fminf(fmaxf(value, -8), 7);
                uint8_t nibble = (uint8_t)((int)value + 8);
                to[n * 4 * words + j / 2] |= (uint8_t)(nibble << (j % 2 ? 4 : 0));
            }
            w[n * k + j] = value * scale;
        }
}

/* How far the rounding of a span under `scale` moves it. */
static inline double span_error(const stored_form *form, const float *w, int64_t k,
                                const int64_t span[4], float scale) {
    float top = form->dtype == DSI_DTYPE_I8 ? 127 : 7;
    double sum = 0;
    for (int64_t n = span[0]; n < span[1]; n++)
        for (int64_t j = span[2]; j < span[3]; j++) {
            float value = fminf(fmaxf(rintf(w[n * k + j] / scale), -top - 1), top);
            double d = (double)w[n * k + j] - (double)value * (double)scale;
            sum += d * d;
        }
    return sum;
}

/* The largest value on the largest code; with four bits a little less may move the rest nearer. */
static inline float choose_scale(const stored_form *form, const float *w, int64_t k,
                                 const int64_t span[4]) {
    float most = 0;
    for (int64_t n = span[0]; n < span[1]; n++)
        for (int64_t j = span[2]; j < span[3]; j++) most = fmaxf(most, fabsf(w[n * k + j]));
    if (most == 0) return 1;
    if (form->dtype == DSI_DTYPE_E4M3) return most / 448;
    if (form->dtype == DSI_DTYPE_I8) return most / 127.5f;
    float best = most / 7.5f;
    double least = span_error(form, w, k, span, best);
    for (int i = 1; i < 8; i++) {
        float scale = most / 7.5f * (1 - 0.04f * (float)i);
        double error = span_error(form, w, k, span, scale);
        if (error < least) least = error, best = scale;
    }
    return best;
}

/* w [n][k] in, what is stored stands for w afterwards. `name` ends in ".weight". */
static inline void store_matrix(stored_file *f, const stored_form *form, const char *name, float *w,
                                int64_t n, int64_t k) {
    char full[160];
    int stem = (int)(strlen(name) - strlen(".weight"));
    bool packed = form->dtype == DSI_DTYPE_I4;
    int64_t words = (k + 7) / 8;
    dsi_scale_span span = dsi_scale_span_of(form->scale_kind, form->group, k);
    int64_t rows = dsi_ceil_div(n, span.n), columns = dsi_ceil_div(k, span.k);
    snprintf(full, sizeof full, "%s%s", name, packed ? "_packed" : "");
    uint8_t *to =
        add_stored(f, full, packed ? DSI_DTYPE_I32 : form->dtype, n, packed ? words : k)->owned;
    snprintf(full, sizeof full, "%.*s.%s", stem, name, form->scale_name);
    void *scales = add_stored(f, full, form->scale_dtype, rows, columns)->owned;
    for (int64_t r = 0; r < rows; r++)
        for (int64_t c = 0; c < columns; c++) {
            const int64_t at[4] = {r * span.n, dsi_min_i64((r + 1) * span.n, n), c * span.k,
                                   dsi_min_i64((c + 1) * span.k, k)};
            float scale = choose_scale(form, w, k, at);
            put_scale(form->scale_dtype, scales, r * columns + c, &scale);
            quantize_span(form, w, k, at, to, words, scale);
        }
    if (!packed) return;
    snprintf(full, sizeof full, "%.*s.weight_shape", stem, name);
    int64_t *shape = add_stored(f, full, DSI_DTYPE_I64, 0, 2)->owned;
    shape[0] = n, shape[1] = k;
}

/* ---- The checkpoint ------------------------------------------------------------------------- */

static inline bool ends_in(const char *text, const char *tail) {
    size_t n = strlen(text), m = strlen(tail);
    return n >= m && strcmp(text + n - m, tail) == 0;
}
static inline bool is_quantisable(const dsi_config *config, const stored_form *form,
                                  const dsi_file_tensor *t) {
    if (form->plain && strstr(t->name, form->plain)) return false;
    return t->n_dims == 2 && ends_in(t->name, ".weight") && !strstr(t->name, "embed_tokens") &&
           !strstr(t->name, "lm_head") && !ends_in(t->name, "mlp.gate.weight") &&
           !dsi_tensor_is_mtp(config, t->name, NULL);
}

/* The F32 values of a stored matrix, FP8 with its scales included. */
static inline float *widened(const dsi_checkpoint *c, const dsi_file_tensor *t) {
    int64_t n = t->shape[0], k = t->shape[1];
    const uint8_t *from = dsi_checkpoint_data(c, t);
    float *w = calloc((size_t)(n * k), sizeof *w);
    char name[600];
    assert_non_null(w);
    snprintf(name, sizeof name, "%s_scale_inv", t->name);
    const dsi_file_tensor *scale = dsi_checkpoint_find(c, name);
    for (int64_t i = 0; i < n * k; i++) {
        int64_t block = i / k / 128 * ((k + 127) / 128) + i % k / 128;
        w[i] = t->dtype == DSI_DTYPE_F32    ? dsi_load_f32(from, i)
               : t->dtype == DSI_DTYPE_BF16 ? dsi_bf16_to_f32(dsi_load_u16(from, i))
               : t->dtype == DSI_DTYPE_F16
                   ? dsi_f16_to_f32(dsi_load_u16(from, i))
                   : dsi_e4m3_to_f32(from[i]) * dsi_load_f32(dsi_checkpoint_data(c, scale), block);
    }
    return w;
}

/* config.json with `quantization` (NULL: none) in the place of its quantization_config. */
static inline void write_config(const char *from, const char *folder, const char *quantization) {
    bytes file = read_file(from, "config.json");
    char *at = strstr(file.data, "\"quantization_config\"");
    if (at) {
        int depth = 0;
        char *end = strchr(at, '{');
        do depth += *end == '{' ? 1 : *end == '}' ? -1 : 0, end++;
        while (depth);
        end += strspn(end, " \n,");
        while (*end == '}' && strchr(" \n,", at[-1])) at--; /* it was the last one */
        memmove(at, end, strlen(end) + 1);
    }
    at = strchr(file.data, '{') + 1;
    size_t n = strlen(file.data) + (quantization ? strlen(quantization) : 0) + 64;
    char *text = calloc(n, 1);
    assert_non_null(text);
    snprintf(text, n, "{%s%s%s%s", quantization ? "\"quantization_config\": " : "",
             quantization ? quantization : "", quantization ? ", " : "", at);
    write_text(folder, "config.json", text);
    free(text);
    free(file.data);
}

static inline void store_twin(stored_file *twin, const char *name, const float *w, int64_t n,
                              int64_t k) {
    stored_tensor *t = add_stored(twin, name, DSI_DTYPE_F32, n, k);
    memcpy(t->owned, w, t->n_bytes);
}

static inline void store_bf16(stored_file *f, const char *name, const float *w, int64_t n,
                              int64_t k) {
    uint16_t *to = add_stored(f, name, DSI_DTYPE_BF16, n, k)->owned;
    for (int64_t i = 0; i < n * k; i++) to[i] = dsi_f32_to_bf16(w[i]);
}

/* Writes the checkpoint of `from` in another form into `folder`, and into `twin_folder`, unless
 * that is NULL, what it stands for in F32. `shift`: as for write_stored, of the first alone. */
static inline void quantize_checkpoint(const char *from, const stored_form *form,
                                       const char *folder, int shift, const char *twin_folder) {
    dsi_checkpoint c;
    dsi_config config;
    dsi_error error = {0};
    stored_file file = {0}, twin = {0};
    assert_ok(dsi_checkpoint_open(from, NULL, NULL, &c, &error), &error);
    assert_ok(dsi_config_load(from, &config, &error), &error);
    for (uint32_t i = 0; i < c.n_tensors; i++) {
        const dsi_file_tensor *t = &c.tensors[i];
        if (dsi_tensor_is_mtp(&config, t->name, NULL) || ends_in(t->name, ".weight_scale_inv"))
            continue; /* nothing reads the first yet, the second go with their weights */
        bool chosen = is_quantisable(&config, form, t);
        if (chosen || t->dtype == DSI_DTYPE_E4M3) {
            float *w = widened(&c, t);
            if (form->dtype == DSI_DTYPE_BF16 || !chosen)
                store_bf16(&file, t->name, w, t->shape[0], t->shape[1]);
            else
                store_matrix(&file, form, t->name, w, t->shape[0], t->shape[1]);
            if (twin_folder) store_twin(&twin, t->name, w, t->shape[0], t->shape[1]);
            free(w);
            continue;
        }
        for (int k = 0; k < (twin_folder ? 2 : 1); k++) {
            stored_file *to = k ? &twin : &file;
            stored_tensor *s = add_stored(to, t->name, t->dtype, t->n_dims == 2 ? t->shape[0] : 0,
                                          t->shape[t->n_dims - 1]);
            memcpy(s->owned, dsi_checkpoint_data(&c, t), t->n_bytes);
        }
    }
    write_stored(&file, folder, shift);
    write_config(from, folder, form->config);
    if (twin_folder) {
        write_stored(&twin, twin_folder, 0);
        write_config(from, twin_folder, NULL);
    }
    free_stored(&file);
    free_stored(&twin);
    dsi_checkpoint_close(&c);
    dsi_config_free(&config);
}

#endif
