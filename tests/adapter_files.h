/* adapter_files.h: for tests: LoRA adapters of made-up values in PEFT's layout, and the checkpoint
 * that one gives when it is merged: W + scale * B A in F32 for every weight that it changes. */
#ifndef DSI_TESTS_ADAPTER_FILES_H
#define DSI_TESTS_ADAPTER_FILES_H

#include "../lib/adapter.h"
#include "../lib/base/convert.h"
#include "model_files.h"
#include <math.h>

/* ---- A safetensors file ---------------------------------------------------------------------- */

typedef struct made_tensor {
    char name[160];
    dsi_dtype dtype;
    int64_t rows, columns; /* rows 0: one dimension */
    uint8_t *data;         /* owned */
    size_t n_bytes;
} made_tensor;
typedef struct made_file {
    made_tensor *tensors;
    uint32_t n;
} made_file;

static inline made_tensor *add_tensor(made_file *f, const char *name, dsi_dtype dtype, int64_t rows,
                                      int64_t columns) {
    f->tensors = realloc(f->tensors, (f->n + 1) * sizeof *f->tensors);
    assert_non_null(f->tensors);
    made_tensor *t = &f->tensors[f->n++];
    *t = (made_tensor){.dtype = dtype, .rows = rows, .columns = columns};
    snprintf(t->name, sizeof t->name, "%s", name);
    t->n_bytes = (size_t)((rows ? rows : 1) * columns) * dsi_dtype_bytes(dtype);
    t->data = calloc(1, t->n_bytes);
    assert_non_null(t->data);
    return t;
}
static inline made_tensor *find_tensor(const made_file *f, const char *name) {
    for (uint32_t i = 0; i < f->n; i++)
        if (strcmp(f->tensors[i].name, name) == 0) return &f->tensors[i];
    fail_msg("no tensor %s", name);
    return NULL;
}
/* The tensor goes, and with it its bytes. */
static inline void drop_tensor(made_file *f, const char *name) {
    made_tensor *t = find_tensor(f, name);
    free(t->data);
    *t = f->tensors[--f->n];
}
static inline void free_file(made_file *f) {
    for (uint32_t i = 0; i < f->n; i++) free(f->tensors[i].data);
    free(f->tensors);
    *f = (made_file){0};
}
static inline void write_made(const char *folder, const char *name, const made_file *f) {
    char *text = NULL;
    size_t n_text = 0, at = 0;
    FILE *out = open_memstream(&text, &n_text);
    for (uint32_t i = 0; i < f->n; i++) {
        const made_tensor *t = &f->tensors[i];
        fprintf(out, "%s\"%s\":{\"dtype\":\"%s\",\"shape\":[", i ? "," : "{", t->name,
                dsi_dtype_name(t->dtype));
        if (t->rows) fprintf(out, "%lld,", (long long)t->rows);
        fprintf(out, "%lld],\"data_offsets\":[%zu,%zu]}", (long long)t->columns, at,
                at + t->n_bytes);
        at += t->n_bytes;
    }
    fputc('}', out);
    while (ftell(out) % 8) fputc(' ', out);
    fclose(out);
    uint8_t *all = malloc(8 + n_text + at), *data = all + 8 + n_text;
    assert_non_null(all);
    for (int i = 0; i < 8; i++) all[i] = (uint8_t)(n_text >> (8 * i));
    memcpy(all + 8, text, n_text);
    for (uint32_t i = 0; i < f->n; data += f->tensors[i++].n_bytes)
        memcpy(data, f->tensors[i].data, f->tensors[i].n_bytes);
    write_file(folder, name, all, 8 + n_text + at);
    free(all);
    free(text);
}

/* ---- An adapter ------------------------------------------------------------------------------ */

typedef struct recipe {
    const char *modules; /* ends of names in "|q_proj|o_proj|"; NULL: all that there are */
    uint32_t rank;
    double alpha;
    bool rslora;
    dsi_dtype dtype;
    uint32_t seed;
    float strength; /* of the values; 0: 1 */
} recipe;

static inline bool recipe_has(const recipe *r, uint32_t code) {
    char word[64];
    if (!r->modules) return true;
    snprintf(word, sizeof word, "|%s|", strrchr(dsi_adapted_name(code), '.') + 1);
    return strstr(r->modules, word) != NULL;
}
static inline double recipe_scale(const recipe *r) {
    return r->alpha / (r->rslora ? sqrt(r->rank) : (double)r->rank);
}

static inline void put_value(made_tensor *t, int64_t i, float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    if (t->dtype == DSI_DTYPE_F32) {
        memcpy(t->data + 4 * i, &value, 4);
        return;
    }
    uint16_t half = (uint16_t)(bits >> 16);
    if (t->dtype == DSI_DTYPE_F16) { /* values of normal size, cut */
        uint32_t exponent = (bits >> 23 & 255) - 112;
        half = (uint16_t)((bits >> 16 & 0x8000) | exponent << 10 | (bits >> 13 & 0x3FF));
        if ((bits >> 23 & 255) <= 112) half = 0;
    }
    memcpy(t->data + 2 * i, &half, 2);
}
static inline float get_value(const made_tensor *t, int64_t i) {
    float value = 0;
    dsi_widen(t->dtype, t->data + (size_t)i * dsi_dtype_bytes(t->dtype), &value, 1);
    return value;
}

static inline void fill_random(made_tensor *t, uint64_t seed, double width) {
    for (int64_t i = 0; i < t->rows * t->columns; i++) {
        uint64_t x = dsi_mix64(seed * 1000003 + (uint64_t)i);
        put_value(t, i, (float)(((double)(x >> 11) * 0x1p-53 * 2 - 1) * width));
    }
}

/* A and B of every weight that the recipe names, of a size that changes answers. */
static inline made_file make_adapter(const dsi_model *m, const recipe *r) {
    made_file f = {0};
    for (uint32_t l = 0; l < m->config.n_layers; l++)
        for (uint32_t code = 0; code < DSI_N_ADAPTED; code++) {
            int64_t n_out, n_in;
            char name[160];
            const double width = r->strength > 0 ? (double)r->strength : 1;
            if (!recipe_has(r, code) ||
                !dsi_adapted_shape(&m->config, &m->weights.layers[l], code, &n_out, &n_in))
                continue;
            for (int b = 0; b < 2; b++) {
                snprintf(name, sizeof name, "base_model.model.model.layers.%u.%s.lora_%c.weight", l,
                         dsi_adapted_name(code), 'A' + b);
                made_tensor *t = b ? add_tensor(&f, name, r->dtype, n_out, r->rank)
                                   : add_tensor(&f, name, r->dtype, (int64_t)r->rank, n_in);
                fill_random(t, (uint64_t)r->seed * 7919 + l * 64 + code * 2 + (uint64_t)b,
                            b ? 0.15 * width : 1.5 / sqrt((double)n_in));
            }
        }
    assert_true(f.n > 0);
    return f;
}

static inline void write_adapter_config(const char *folder, const recipe *r) {
    char text[512];
    snprintf(text, sizeof text,
             "{\"peft_type\": \"LORA\", \"r\": %u, \"lora_alpha\": %g, \"use_rslora\": %s, "
             "\"bias\": \"none\", \"target_modules\": [\"q_proj\"], \"modules_to_save\": null, "
             "\"use_dora\": false, \"lora_dropout\": 0.05, \"task_type\": \"CAUSAL_LM\"}",
             r->rank, r->alpha, r->rslora ? "true" : "false");
    write_text(folder, "adapter_config.json", text);
}

/* The folder, with both files. */
static inline void write_adapter(const char *folder, const dsi_model *m, const recipe *r) {
    made_file f = make_adapter(m, r);
    write_made(folder, "adapter_model.safetensors", &f);
    write_adapter_config(folder, r);
    free_file(&f);
}

/* The folder is written first, if there is a recipe. */
static inline dsi_adapter *open_adapter(dsi_engine *e, const char *path, const recipe *r) {
    dsi_adapter *a = NULL;
    if (r) write_adapter(path, e->model, r);
    if (dsi_adapter_open(e, path, NULL, &a) != DSI_OK) fail_msg("%s", dsi_last_error(NULL));
    return a;
}
/* ---- The merged checkpoint ------------------------------------------------------------------- */

/* W as F32, with scale * B A added in double. */
static inline void merge_one(made_tensor *to, const made_tensor *w, const made_tensor *a,
                             const made_tensor *b, double scale) {
    for (int64_t i = 0; i < w->rows; i++)
        for (int64_t j = 0; j < w->columns; j++) {
            double sum = 0;
            for (int64_t k = 0; k < a->rows; k++)
                sum += (double)get_value(b, i * b->columns + k) *
                       (double)get_value(a, k * a->columns + j);
            put_value(to, i * w->columns + j,
                      (float)((double)get_value(w, i * w->columns + j) + scale * sum));
        }
}

/* `folder` becomes the checkpoint `source` with the adapter merged; weights of the source must be
 * F32, F16 or BF16. */
static inline void write_merged(const char *source, const char *folder, const made_file *adapter,
                                double scale) {
    dsi_checkpoint c;
    dsi_error error;
    made_file f = {0};
    char name[256], single[256];
    snprintf(single, sizeof single, "%s/model.safetensors", source);
    if (dsi_checkpoint_open_file(single, &c, &error) != DSI_OK) fail_msg("%s", error.text);
    for (uint32_t i = 0; i < c.n_tensors; i++) {
        const dsi_file_tensor *t = &c.tensors[i];
        made_tensor w = {.dtype = t->dtype,
                         .rows = t->n_dims > 1 ? t->shape[0] : 0,
                         .columns = t->shape[t->n_dims > 1],
                         .data = (uint8_t *)(uintptr_t)dsi_checkpoint_data(&c, t)};
        const made_tensor *a = NULL, *b = NULL;
        size_t n = strlen(t->name) - strlen(".weight");
        for (uint32_t j = 0; j < adapter->n; j++)
            for (int is_b = 0; is_b < 2; is_b++) {
                snprintf(name, sizeof name, "base_model.model.%.*s.lora_%c.weight", (int)n, t->name,
                         'A' + is_b);
                if (strcmp(adapter->tensors[j].name, name) != 0) continue;
                *(is_b ? &b : &a) = &adapter->tensors[j];
            }
        made_tensor *to = add_tensor(&f, t->name, a ? DSI_DTYPE_F32 : t->dtype, w.rows, w.columns);
        if (a)
            merge_one(to, &w, a, b, scale);
        else
            memcpy(to->data, w.data, to->n_bytes);
    }
    write_made(folder, "model.safetensors", &f);
    link_file(source, folder, "config.json");
    free_file(&f);
    dsi_checkpoint_close(&c);
}

#endif
