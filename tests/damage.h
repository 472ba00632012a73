/* damage.h: for tests that damage checkpoints: seeded random numbers, changes of a text, a
 * safetensors file as a list of items that can be written in any shape, and a count of the
 * reasons for which files were refused. */
#ifndef DSI_TESTS_DAMAGE_H
#define DSI_TESTS_DAMAGE_H

#include "model_files.h"

/* ---- Random numbers: splitmix64 of the case number ------------------------------------------ */

static uint64_t random_state;
static inline void seed_random(uint64_t number) {
    random_state = number * UINT64_C(0xd1342543de82ef95) + 1;
}
static inline uint64_t next_random(void) {
    uint64_t z = random_state += UINT64_C(0x9e3779b97f4a7c15);
    z = (z ^ z >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ z >> 27) * UINT64_C(0x94d049bb133111eb);
    return z ^ z >> 31;
}
static inline size_t below(size_t n) { return n ? (size_t)(next_random() % n) : 0; }
#define ANY_OF(list) (list)[below(sizeof(list) / sizeof *(list))]

/* ---- Texts ---------------------------------------------------------------------------------- */

/* Replaces n bytes at `at` with `with`. */
static inline void splice_text(bytes *text, size_t at, size_t n, const char *with, size_t n_with) {
    char *out = malloc(text->n - n + n_with + 1);
    assert_non_null(out);
    memcpy(out, text->data, at);
    memcpy(out + at, with, n_with);
    memcpy(out + at + n_with, text->data + at + n, text->n - at - n);
    text->n = text->n - n + n_with;
    out[text->n] = 0;
    free(text->data);
    text->data = out;
}

static inline bytes copy_of(const char *data, size_t n) {
    bytes b = {calloc(n + 1, 1), n};
    assert_non_null(b.data);
    memcpy(b.data, data, n);
    return b;
}

/* A text that grows by formatted pieces. */
static inline void add_text(bytes *text, const char *format, ...)
    __attribute__((format(printf, 2, 3)));
static inline void add_text(bytes *text, const char *format, ...) {
    va_list list;
    va_start(list, format);
    int n = vsnprintf(NULL, 0, format, list);
    va_end(list);
    text->data = realloc(text->data, text->n + (size_t)n + 1);
    assert_non_null(text->data);
    va_start(list, format);
    vsnprintf(text->data + text->n, (size_t)n + 1, format, list);
    va_end(list);
    text->n += (size_t)n;
}

/* ---- A safetensors file as items ------------------------------------------------------------ */

enum { MAX_ITEMS = 256 };
enum { NO_DTYPE = 1, NO_SHAPE = 2, NO_OFFSETS = 4 }; /* keys to leave out */
typedef struct item {
    char name[640];  /* as it stands between the quotes */
    char dtype[340]; /* the three values, as JSON */
    char shape[200];
    char offsets[120];
    char extra[64];    /* behind the last key, with its comma */
    const char *whole; /* instead of the whole object; NULL: none */
    uint32_t without;  /* NO_DTYPE ... */
    int64_t dims[4];   /* what is true */
    uint32_t n_dims, n_element;
    const char *data;
    uint64_t begin, n_bytes;
} item;

/* The texts of what is true; begin is where the item's bytes lie. */
static inline void tell_truth(item *i, uint64_t begin) {
    size_t at = 1;
    i->begin = begin;
    strcpy(i->shape, "[");
    for (uint32_t k = 0; k < i->n_dims; k++)
        at += (size_t)snprintf(i->shape + at, sizeof i->shape - at, "%s%lld", k ? "," : "",
                               (long long)i->dims[k]);
    snprintf(i->shape + at, sizeof i->shape - at, "]");
    snprintf(i->offsets, sizeof i->offsets, "[%llu,%llu]", (unsigned long long)begin,
             (unsigned long long)(begin + i->n_bytes));
}

/* Items one behind the other, in their order. */
static inline void lay_out(item *items, size_t n) {
    uint64_t at = 0;
    for (size_t i = 0; i < n; at += items[i++].n_bytes) tell_truth(&items[i], at);
}

/* The items of a checkpoint of one file; their data points into `checkpoint`'s map. */
static inline size_t read_items(const dsi_checkpoint *checkpoint, item items[MAX_ITEMS]) {
    assert_true(checkpoint->n_tensors <= MAX_ITEMS);
    for (uint32_t i = 0; i < checkpoint->n_tensors; i++) {
        const dsi_file_tensor *t = &checkpoint->tensors[i];
        item *to = &items[i];
        memset(to, 0, sizeof *to);
        snprintf(to->name, sizeof to->name, "%s", t->name);
        snprintf(to->dtype, sizeof to->dtype, "\"%s\"", dsi_dtype_name(t->dtype));
        memcpy(to->dims, t->shape, sizeof to->dims);
        to->n_dims = t->n_dims;
        to->n_element = dsi_dtype_bytes(t->dtype);
        to->data = (const char *)dsi_checkpoint_data(checkpoint, t);
        to->n_bytes = t->n_bytes;
    }
    lay_out(items, checkpoint->n_tensors);
    return checkpoint->n_tensors;
}

static inline void add_item(bytes *header, const item *i) {
    add_text(header, ",\"%s\":", i->name);
    if (i->whole) {
        add_text(header, "%s", i->whole);
        return;
    }
    const char *comma = "{";
    if (!(i->without & NO_DTYPE)) add_text(header, "%s\"dtype\":%s", comma, i->dtype), comma = ",";
    if (!(i->without & NO_SHAPE)) add_text(header, "%s\"shape\":%s", comma, i->shape), comma = ",";
    if (!(i->without & NO_OFFSETS))
        add_text(header, "%s\"data_offsets\":%s", comma, i->offsets), comma = ",";
    add_text(header, "%s%s}", *comma == '{' ? "{" : "", i->extra);
}

/* metadata: its JSON value. The text is padded to a multiple of eight, as writers do. */
static inline bytes header_of(const item *items, size_t n, const char *metadata) {
    bytes header = {0};
    add_text(&header, "{\"__metadata__\":%s", metadata);
    for (size_t i = 0; i < n; i++) add_item(&header, &items[i]);
    add_text(&header, "}");
    while (header.n % 8 != 0) add_text(&header, " ");
    return header;
}

/* Length field (stated, not measured), header, and the items' data one behind the other; then a
 * file of `name`. */
static inline void write_items(const char *folder, const char *name, uint64_t stated,
                               const bytes *header, const item *items, size_t n) {
    size_t size = 8 + header->n, at = size;
    for (size_t i = 0; i < n; i++) size += items[i].n_bytes;
    char *file = malloc(size);
    assert_non_null(file);
    for (int i = 0; i < 8; i++) file[i] = (char)(stated >> (8 * i) & 255);
    memcpy(file + 8, header->data, header->n);
    for (size_t i = 0; i < n; at += items[i++].n_bytes)
        memcpy(file + at, items[i].data, items[i].n_bytes);
    write_file(folder, name, file, size);
    free(file);
}

/* ---- Reasons -------------------------------------------------------------------------------- */

typedef struct reason {
    char text[96];
    uint32_t n;
} reason;
static reason reasons[512];
static uint32_t n_reasons;

/* The message without its path, names in quotes and numbers: what kind of refusal it is. */
static inline void count_reason(const char *text) {
    char kind[96];
    size_t n = 0;
    bool quoted = false;
    const char *at = strstr(text, ": ");
    for (at = at ? at + 2 : text; *at && n + 1 < sizeof kind && n < 60; at++) {
        if (*at == '"') quoted = !quoted;
        if (*at == '/' && at[-1] == ' ') at += strcspn(at, " "); /* a path */
        if (*at >= '0' && *at <= '9') continue;
        if (!quoted || *at == '"') kind[n++] = *at;
    }
    kind[n] = 0;
    uint32_t i = 0;
    while (i < n_reasons && strcmp(reasons[i].text, kind) != 0) i++;
    if (i == sizeof reasons / sizeof *reasons) return;
    if (i == n_reasons) snprintf(reasons[n_reasons++].text, sizeof kind, "%s", kind);
    reasons[i].n++;
}
static inline int by_count(const void *a, const void *b) {
    uint32_t n = ((const reason *)a)->n, m = ((const reason *)b)->n;
    return (n < m) - (n > m);
}
static inline void print_reasons(void) {
    qsort(reasons, n_reasons, sizeof *reasons, by_count);
    for (uint32_t i = 0; i < n_reasons; i++) printf("%6u  %s\n", reasons[i].n, reasons[i].text);
}

#endif
