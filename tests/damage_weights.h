/* damage_weights.h: wrong by construction: model.safetensors, its header, the file around it. Each
 * function makes one folder that must not open. */
#ifndef DSI_TESTS_DAMAGE_WEIGHTS_H
#define DSI_TESTS_DAMAGE_WEIGHTS_H

#include "damage_text.h"

/* ---- The whole checkpoints ------------------------------------------------------------------ */

static const char *const goldens[] = {"tests/data/golden/v3-fp8", "tests/data/golden/v2-lite",
                                      "tests/data/golden/qwen2"};
enum { V3 = 0, V2 = 1, QWEN2 = 2, N_GOLDENS = 3 };
static bytes configs[N_GOLDENS];
static dsi_checkpoint checkpoints[N_GOLDENS];
static const char weights[] = "model.safetensors", index_name[] = "model.safetensors.index.json";
static const char plain_metadata[] = "{\"format\":\"pt\"}";

/* One damaged folder. The items start as the truth about checkpoints[model]. */
typedef struct damaged {
    char folder[64];
    size_t model, n;
    const char *file; /* which the message must name; NULL: any of the folder */
    const char *metadata;
    item items[MAX_ITEMS];
} damaged;

static inline void choose_model(damaged *d, size_t model) {
    d->model = model;
    d->n = read_items(&checkpoints[model], d->items);
}
static inline item *any_item(damaged *d) { return &d->items[below(d->n)]; }
static inline item *any_matrix(damaged *d) {
    item *i = any_item(d);
    while (i->n_dims != 2 || i->dims[0] == i->dims[1]) i = any_item(d);
    return i;
}

static inline void write_weights(damaged *d) {
    bytes header = header_of(d->items, d->n, d->metadata);
    write_items(d->folder, weights, header.n, &header, d->items, d->n);
    free(header.data);
}

/* ---- The file around the header ------------------------------------------------------------- */

static inline void cut_file(damaged *d) {
    char path[512];
    bytes file = read_file(goldens[d->model], weights);
    size_t n = below(3) ? below(file.n) : below(64); /* any length is too short */
    write_file(d->folder, weights, file.data, n);
    snprintf(path, sizeof path, "%s/%s", d->folder, weights);
    free(file.data);
}
static inline void grow_file(damaged *d) {
    bytes file = read_file(goldens[d->model], weights), more = copy_of(file.data, file.n);
    splice_text(&more, more.n, 0, file.data, 1 + below(64));
    write_file(d->folder, weights, more.data, more.n);
    free(file.data);
    free(more.data);
}
/* Another length of the header than it has: the text ends early, or runs into the weights. */
static inline void wrong_length(damaged *d) {
    static const uint64_t lengths[] = {
        0, 1, 7, 100000001, UINT64_C(1) << 32, UINT64_C(1) << 63, UINT64_MAX, UINT64_MAX - 8};
    bytes header = header_of(d->items, d->n, plain_metadata);
    uint64_t stated =
        below(2) ? ANY_OF(lengths) : header.n + 8 * (1 + below(40)) * (below(2) ? 1 : -1ull);
    if (below(3) == 0) stated = next_random() >> below(64);
    if (stated == header.n) stated++;
    write_items(d->folder, weights, stated, &header, d->items, d->n);
    free(header.data);
}
static inline void
other_model(damaged *d) { /* of two models: config.json from one, weights from another */
    link_file(goldens[(d->model + 1 + below(N_GOLDENS - 1)) % N_GOLDENS], d->folder, weights);
}
static inline void no_file(damaged *d) {
    char path[512];
    snprintf(path, sizeof path, "%s/%s", d->folder, below(2) ? weights : "config.json");
    assert_int_equal(unlink(path), 0);
    if (below(2)) assert_int_equal(mkdir(path, 0700), 0);
    d->file = NULL;
}
/* What a hub serves instead of a large file. */
static inline void other_file(damaged *d) {
    static const char *const texts[] = {
        "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 4302348\n",
        "<!DOCTYPE html><html><head><title>404</title></head></html>\n",
        "PK\x03\x04 and so on, which is what a zip file of weights begins with ............",
        "GGUF\x03 and so on, which is another format for weights ...........................",
        "{\"error\": \"Repository not found\"}"};
    write_text(d->folder, weights, ANY_OF(texts));
}

/* ---- The header's JSON ---------------------------------------------------------------------- */

/* The header is changed as text; its stated length is right. */
static inline void write_changed(damaged *d, void (*change)(bytes *text)) {
    bytes header = header_of(d->items, d->n, plain_metadata);
    change(&header);
    write_items(d->folder, weights, header.n, &header, d->items, d->n);
    free(header.data);
}
static inline void break_header(damaged *d) { write_changed(d, break_json); }
static inline void cut_header(damaged *d) { write_changed(d, cut_json); }
static inline void bad_bytes_in_header(damaged *d) { write_changed(d, bad_bytes); }
static inline void doubled_entry(damaged *d) {
    d->items[d->n] = *any_item(d);
    d->items[d->n++].n_bytes = 0;
    write_weights(d);
}
static inline void bad_metadata(damaged *d) {
    static const char *const values[] = {
        "1", "[]", "\"pt\"", "null", "{\"a\":1}", "{\"a\":null}", "{\"a\":{}}", "{\"a\":[\"b\"]}"};
    d->metadata = ANY_OF(values);
    write_weights(d);
}

/* ---- Types, shapes, offsets, names ---------------------------------------------------------- */

static inline void other_type(damaged *d) { /* known, but no weight has it, or of another size */
    static const char *const types[] = {"\"I32\"", "\"I64\"",  "\"I8\"",  "\"U8\"",
                                        "\"F64\"", "\"BOOL\"", "\"I16\"", "\"F8_E5M2\""};
    snprintf(any_item(d)->dtype, 64, "%s", ANY_OF(types));
    write_weights(d);
}
static inline void unknown_type(damaged *d) {
    static const char *const types[] = {
        "\"\"",   "\"bf16\"", "\"BF16 \"",   "\"F8_E4M3FN\"", "null",          "3", "[]", "{}",
        "\"I4\"", "true",     "\"\\u0000\"", "\"U16\"",       "\"F32\\u0000\""};
    item *i = any_item(d);
    snprintf(i->dtype, sizeof i->dtype, "%s", ANY_OF(types));
    if (below(8) == 0) snprintf(i->dtype, sizeof i->dtype, "\"%0300d\"", 7);
    write_weights(d);
}
static inline void bad_shape(damaged *d) {
    static const char *const shapes[] = {"[0]",
                                         "[]",
                                         "[-1]",
                                         "[1.5]",
                                         "[1e2]",
                                         "[\"2\"]",
                                         "[null]",
                                         "[[2]]",
                                         "[9223372036854775808]",
                                         "[18446744073709551616]",
                                         "[4294967296,4294967296]",
                                         "[2147483648,2147483648,4]",
                                         "[9223372036854775807,9223372036854775807]",
                                         "[1,1,1,1,1]",
                                         "[2,0]",
                                         "{}",
                                         "7",
                                         "null",
                                         "\"[2,3]\"",
                                         "{\"0\":2}"};
    snprintf(any_item(d)->shape, 64, "%s", ANY_OF(shapes));
    write_weights(d);
}
/* Sizes that fit the bytes, in another order or number than config.json asks for. */
static inline void other_shape(damaged *d) {
    item *i = any_matrix(d);
    int64_t a = i->dims[0], b = i->dims[1];
    const int64_t shapes[][4] = {{b, a}, {a * b}, {1, a, b}, {a, b, 1}, {a, 1, b}, {1, 1, a, b}};
    const uint32_t n_dims[] = {2, 1, 3, 3, 3, 4};
    size_t which = below(6);
    memcpy(i->dims, shapes[which], sizeof i->dims);
    i->n_dims = n_dims[which];
    tell_truth(i, i->begin);
    write_weights(d);
}
static inline void
other_size(damaged *d) { /* a whole file of a model with one row or column less */
    item *i = any_item(d);
    uint32_t axis = (uint32_t)below(i->n_dims);
    uint64_t rest = i->n_bytes / (uint64_t)i->dims[axis];
    if (i->dims[axis] < 2) {
        snprintf(i->shape, sizeof i->shape, "[%lld]", (long long)i->dims[0] + 7);
    } else {
        i->dims[axis] -= 1;
        i->n_bytes -= rest;
        lay_out(d->items, d->n);
    }
    write_weights(d);
}
static inline void bad_offsets(damaged *d) {
    static const char *const offsets[] = {"[]",
                                          "[0]",
                                          "[0,8,16]",
                                          "[-8,8]",
                                          "[0.0,8.0]",
                                          "[\"0\",\"8\"]",
                                          "[null,8]",
                                          "[[0],[8]]",
                                          "[8,0]",
                                          "[18446744073709551608,18446744073709551615]",
                                          "[18446744073709551615,7]",
                                          "[0,18446744073709551616]",
                                          "[9223372036854775807,9223372036854775808]",
                                          "{}",
                                          "null",
                                          "0"};
    snprintf(any_item(d)->offsets, 64, "%s", ANY_OF(offsets));
    write_weights(d);
}
/* Right length, wrong place: a hole before it or behind it, an overlap, beyond the end. */
static inline void moved(damaged *d) {
    item *i = any_item(d);
    uint64_t by = 1 + below(below(2) ? 16 : 1 << 20), begin = i->begin;
    begin = below(2) && begin >= by ? begin - by : begin + by;
    snprintf(i->offsets, sizeof i->offsets, "[%llu,%llu]", (unsigned long long)begin,
             (unsigned long long)(begin + i->n_bytes));
    write_weights(d);
}
/* One longer than type and shape say, everything behind it moved along; or the end alone. */
static inline void stretched(damaged *d) {
    item *i = any_item(d);
    int64_t by = 1 + (int64_t)below(64);
    if (below(2) && i->n_bytes > 64) by = -by;
    snprintf(i->offsets, sizeof i->offsets, "[%llu,%llu]", (unsigned long long)i->begin,
             (unsigned long long)(i->begin + i->n_bytes + (uint64_t)by));
    write_weights(d);
}
static inline void same_place(damaged *d) { /* two tensors of the same bytes */
    item *i = any_item(d), *other = any_item(d);
    while (other == i) other = any_item(d);
    strcpy(i->offsets, other->offsets);
    write_weights(d);
}
static inline void bad_name(damaged *d) {
    static const char *const names[] = {"",
                                        "\\u0000",
                                        "a\\u0000b",
                                        "a\\nb",
                                        "\\u001b[31m",
                                        "\\u007f",
                                        "model.layers.1000000.mlp.up_proj.weight",
                                        "model.layers.-1.mlp.up_proj.weight",
                                        "model.layers.00.mlp.up_proj.weight",
                                        "Model.embed_tokens.weight",
                                        "model.embed_tokens.weight ",
                                        "__metadata__",
                                        "../model.norm.weight"};
    item *i = any_item(d);
    snprintf(i->name, sizeof i->name, "%s", ANY_OF(names));
    if (below(8) == 0) snprintf(i->name, sizeof i->name, "%0513d", 0);
    if (below(8) == 0) snprintf(i->name, sizeof i->name, "%0512d", 0);
    write_weights(d);
}
static inline void renamed(damaged *d) { /* by one character */
    item *i = any_item(d);
    size_t at = below(strlen(i->name));
    i->name[at] = i->name[at] == 'x' ? 'y' : 'x';
    write_weights(d);
}
static inline void names_swapped(damaged *d) { /* of tensors with different shapes */
    char name[sizeof d->items[0].name];
    item *i = any_item(d), *other = any_item(d);
    while (strcmp(i->shape, other->shape) == 0) other = any_item(d);
    strcpy(name, i->name);
    strcpy(i->name, other->name);
    strcpy(other->name, name);
    write_weights(d);
}

/* ---- Missing, doubled and added tensors ----------------------------------------------------- */

static inline void missing(damaged *d) { /* with its bytes, or as a hole */
    size_t at = below(d->n);
    bool hole = below(2);
    memmove(&d->items[at], &d->items[at + 1], (d->n - at - 1) * sizeof *d->items);
    d->n--;
    if (!hole) lay_out(d->items, d->n);
    write_weights(d);
}
static inline void half_missing(damaged *d) { /* as if a shard were not there */
    d->n = 1 + below(d->n - 1);
    lay_out(d->items, d->n);
    write_weights(d);
}
static inline void added(damaged *d) {
    static const char *const names[] = {"model.layers.0.self_attn.k_norm.weight",
                                        "model.layers.0.mlp.experts.1000.up_proj.weight",
                                        "model.layers.77.mlp.up_proj.weight",
                                        "model.norm.bias",
                                        "lm_head.bias",
                                        "model.embed_positions.weight",
                                        "model.layers.0.self_attn.q_proj.lora_A.weight",
                                        "extra",
                                        "model.layers.0.mlp.gate_proj.weight_scale",
                                        "transformer.h.0.attn.weight"};
    item *made = &d->items[d->n];
    *made = *any_item(d);
    snprintf(made->name, sizeof made->name, "%s", ANY_OF(names));
    d->n++;
    lay_out(d->items, d->n);
    write_weights(d);
}
static inline void doubled_data(damaged *d) { /* the same name twice, each with bytes */
    d->items[d->n] = *any_item(d);
    d->n++;
    lay_out(d->items, d->n);
    write_weights(d);
}
static inline void no_tensor(damaged *d) {
    d->n = 0;
    write_weights(d);
}
static inline void keys_missing(damaged *d) {
    any_item(d)->without = (uint32_t)(1 + below(7));
    write_weights(d);
}
static inline void keys_added(damaged *d) {
    static const char *const keys[] = {",\"dtype\":\"BF16\"", ",\"shape\":[1]",
                                       ",\"scale\":1",        ",\"data\":\"AAAA\"",
                                       ",\"\":null",          ",\"dtyp\\u0065\":\"F32\""};
    snprintf(any_item(d)->extra, sizeof d->items[0].extra, "%s", ANY_OF(keys));
    write_weights(d);
}
static inline void no_object(damaged *d) {
    static const char *const values[] = {"null", "[]",   "{}",   "1",
                                         "true", "\"\"", "[{}]", "{\"a\":{\"b\":{}}}"};
    any_item(d)->whole = ANY_OF(values);
    write_weights(d);
}

#endif
