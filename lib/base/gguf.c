/* gguf.c: reads the header of one mapped .gguf file, and believes nothing in it. Counts and lengths
 * are held against the bytes that are left before anything is allocated or walked through. */
#include "gguf.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

enum {
    MAGIC_BYTES = 4,
    MAX_KEYS = 4096, /* published files have some sixty */
    MAX_KEY_BYTES = 256,
    MAX_NAME_BYTES = 512,
    MAX_TENSORS = 1000000,
    MIN_KEY_ENTRY = 8 + 1 + 4 + 1,            /* a key of one letter and a byte */
    MIN_TENSOR_ENTRY = 8 + 1 + 4 + 8 + 4 + 8, /* a name of one letter, one dimension */
    DEFAULT_ALIGNMENT = 32,
    MAX_ALIGNMENT = 1 << 20
};

/* What is left of the file, and the messages about it. */
typedef struct cursor {
    dsi_gguf *gguf;
    const uint8_t *begin, *at;
    uint64_t n_left;
    dsi_error *error;
} cursor;

static dsi_status bad(const cursor *c, const char *format, ...)
    __attribute__((format(printf, 2, 3)));
static dsi_status bad(const cursor *c, const char *format, ...) {
    char reason[512];
    va_list list;
    va_start(list, format);
    vsnprintf(reason, sizeof reason, format, list);
    va_end(list);
    return dsi_fail(c->error, DSI_E_FORMAT, "%s: at byte %" PRIu64 ": %s", c->gguf->path,
                    (uint64_t)(c->at - c->begin), reason);
}

/* ---- Numbers -------------------------------------------------------------------------------- */

static uint64_t little_endian(const uint8_t *at, uint32_t n_bytes) {
    uint64_t value = 0;
    for (uint32_t i = n_bytes; i-- > 0;) value = value << 8 | at[i];
    return value;
}

/* Bytes of a value of fixed size, 0 of strings, arrays and unknown types. */
static uint32_t type_bytes(uint32_t type) {
    static const uint8_t bytes[] = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};
    return type < sizeof bytes ? bytes[type] : 0;
}

static bool take(cursor *c, uint64_t n_bytes, const uint8_t **at) {
    if (n_bytes > c->n_left) return false;
    *at = c->at;
    c->at += n_bytes;
    c->n_left -= n_bytes;
    return true;
}

static dsi_status take_number(cursor *c, uint32_t n_bytes, uint64_t *value) {
    const uint8_t *at;
    if (!take(c, n_bytes, &at))
        return bad(c, "the header ends in the middle of a number; the file is truncated, download "
                      "it again");
    *value = little_endian(at, n_bytes);
    return DSI_OK;
}

static dsi_status take_string(cursor *c, const char *what, const char **text, uint64_t *n_bytes) {
    const uint8_t *at;
    uint64_t n = 0;
    dsi_status status = take_number(c, 8, &n);
    if (status) return status;
    if (!take(c, n, &at))
        return bad(c,
                   "%s claims %" PRIu64 " bytes, the file has %" PRIu64
                   " left; it is truncated or damaged, download it again",
                   what, n, c->n_left);
    *text = (const char *)at;
    *n_bytes = n;
    return DSI_OK;
}

/* A name that goes into messages and comparisons: printable, of limited length. */
static dsi_status take_name(cursor *c, const char *what, uint32_t max_bytes, const char **text,
                            uint32_t *n_bytes) {
    uint64_t n = 0;
    dsi_status status = take_string(c, what, text, &n);
    if (status) return status;
    if (n == 0 || n > max_bytes)
        return bad(c, "%s has %" PRIu64 " bytes, it must have 1 to %u", what, n, max_bytes);
    for (uint64_t i = 0; i < n; i++) {
        uint8_t byte = (uint8_t)(*text)[i];
        if (byte < 0x20 || byte > 0x7e)
            return bad(c, "%s holds the byte 0x%02X; only printable ASCII is allowed", what, byte);
    }
    *n_bytes = (uint32_t)n;
    return DSI_OK;
}

/* ---- Keys ----------------------------------------------------------------------------------- */

static dsi_status take_array(cursor *c, dsi_gguf_value *v) {
    uint64_t type = 0, n_bytes = 0;
    dsi_status status = take_number(c, 4, &type);
    if (!status) status = take_number(c, 8, &v->n);
    if (status) return status;
    v->element_type = (uint32_t)type;
    v->data = c->at;
    bool strings = type == DSI_GGUF_STRING;
    if (!strings && (type > UINT32_MAX || type_bytes((uint32_t)type) == 0))
        return bad(c,
                   "key \"%.*s\" is an array of type %" PRIu64 "; arrays hold numbers or strings",
                   (int)v->key_bytes, v->key, type);
    /* A string has 8 bytes of length at least, so a loop over n of them ends with the file. */
    if (!dsi_mul_ok(v->n, strings ? 8 : type_bytes((uint32_t)type), &n_bytes) ||
        n_bytes > c->n_left)
        return bad(c,
                   "key \"%.*s\" is an array of %" PRIu64 " elements, for which the %" PRIu64
                   " bytes left do not suffice; the file is truncated or damaged",
                   (int)v->key_bytes, v->key, v->n, c->n_left);
    const uint8_t *at;
    const char *text;
    uint64_t length;
    if (!strings) return take(c, n_bytes, &at) ? DSI_OK : DSI_E_INTERNAL;
    for (uint64_t i = 0; i < v->n && !status; i++)
        status = take_string(c, "a string of an array", &text, &length);
    return status;
}

static dsi_status take_value(cursor *c, dsi_gguf_value *v) {
    const char *text;
    if (v->type == DSI_GGUF_ARRAY) return take_array(c, v);
    if (v->type == DSI_GGUF_STRING) {
        dsi_status status = take_string(c, "the string of a key", &text, &v->n);
        v->data = (const uint8_t *)text;
        return status;
    }
    v->n = 1;
    if (type_bytes(v->type) == 0)
        return bad(c, "key \"%.*s\" has the type %u, the largest known is %d", (int)v->key_bytes,
                   v->key, v->type, DSI_GGUF_F64);
    if (!take(c, type_bytes(v->type), &v->data))
        return bad(c, "the file ends in the value of key \"%.*s\"", (int)v->key_bytes, v->key);
    if (v->type == DSI_GGUF_BOOL && *v->data > 1)
        return bad(c, "key \"%.*s\" is a bool of value %u; it must be 0 or 1", (int)v->key_bytes,
                   v->key, *v->data);
    return DSI_OK;
}

static bool same(const char *a, uint32_t n_a, const char *b, uint32_t n_b) {
    return n_a == n_b && memcmp(a, b, n_a) == 0;
}

static dsi_status read_keys(cursor *c, uint64_t n) {
    dsi_gguf *g = c->gguf;
    if (n > MAX_KEYS || n > c->n_left / MIN_KEY_ENTRY)
        return bad(c,
                   "the header claims %" PRIu64 " keys; the limit is %d and what %" PRIu64
                   " bytes can hold",
                   n, MAX_KEYS, c->n_left);
    g->values = dsi_sys_calloc(n, sizeof *g->values);
    if (!g->values)
        return dsi_fail(c->error, DSI_E_NOMEM, "%s: no memory for %" PRIu64 " keys", g->path, n);
    for (uint64_t i = 0; i < n; i++) {
        dsi_gguf_value *v = &g->values[i];
        uint64_t type = 0;
        dsi_status status = take_name(c, "a key", MAX_KEY_BYTES, &v->key, &v->key_bytes);
        if (!status) status = take_number(c, 4, &type);
        v->type = (uint32_t)type;
        if (!status) status = take_value(c, v);
        if (status) return status;
        for (uint32_t j = 0; j < g->n_values; j++)
            if (same(g->values[j].key, g->values[j].key_bytes, v->key, v->key_bytes))
                return bad(c, "key \"%.*s\" stands in the file twice", (int)v->key_bytes, v->key);
        g->n_values++;
    }
    return DSI_OK;
}

static dsi_status read_alignment(cursor *c) {
    dsi_gguf *g = c->gguf;
    const dsi_gguf_value *v = dsi_gguf_find(g, "general.alignment");
    uint64_t value = DEFAULT_ALIGNMENT;
    bool good = !v || dsi_gguf_u64(v, &value);
    if (!good || value < 8 || value > MAX_ALIGNMENT || (value & (value - 1)) != 0)
        return bad(c, "general.alignment is %" PRIu64 "; it must be a power of two from 8 to %d",
                   good ? value : 0, MAX_ALIGNMENT);
    g->alignment = (uint32_t)value;
    return DSI_OK;
}

/* ---- Tensors -------------------------------------------------------------------------------- */

static dsi_dtype dtype_of(uint64_t type) {
    switch (type) {
    case 0:
        return DSI_DTYPE_F32;
    case 1:
        return DSI_DTYPE_F16;
    case 24:
        return DSI_DTYPE_I8;
    case 25:
        return DSI_DTYPE_I16;
    case 26:
        return DSI_DTYPE_I32;
    case 27:
        return DSI_DTYPE_I64;
    case 28:
        return DSI_DTYPE_F64;
    case 30:
        return DSI_DTYPE_BF16;
    default: /* no type number is that large */
        return type < 100 && dsi_dtype_block(DSI_DTYPE_BLOCKS + (dsi_dtype)type).values
                   ? DSI_DTYPE_BLOCKS + (dsi_dtype)type
                   : DSI_DTYPE_NONE;
    }
}

static dsi_status read_shape(cursor *c, dsi_gguf_tensor *t) {
    uint64_t n_dims = 0, size = 0, rows = 1;
    dsi_status status = take_number(c, 4, &n_dims);
    if (status) return status;
    if (n_dims < 1 || n_dims > 4)
        return bad(c, "tensor \"%.*s\" has %" PRIu64 " dimensions, it must have 1 to 4",
                   (int)t->name_bytes, t->name, n_dims);
    t->n_dims = (uint32_t)n_dims;
    for (uint32_t i = 0; i < t->n_dims; i++) {
        status = take_number(c, 8, &size);
        if (status) return status;
        if (size == 0 || size > INT64_MAX || (i > 0 && !dsi_mul_ok(rows, size, &rows)))
            return bad(c, "dimension %u of tensor \"%.*s\" is %" PRIu64 "; that is no size", i,
                       (int)t->name_bytes, t->name, size);
        t->ne[i] = (int64_t)size;
    }
    uint64_t type = 0;
    int64_t row_bytes = 0;
    status = take_number(c, 4, &type);
    if (status) return status;
    t->dtype = dtype_of(type);
    if (t->dtype == DSI_DTYPE_NONE)
        return dsi_fail(c->error, DSI_E_UNSUPPORTED,
                        "%s: tensor \"%.*s\" has the type number %" PRIu64
                        ", which is unknown or no longer in use; convert the model again",
                        c->gguf->path, (int)t->name_bytes, t->name, type);
    if (!dsi_dtype_row_bytes(t->dtype, t->ne[0], &row_bytes) ||
        !dsi_mul_ok((uint64_t)row_bytes, rows, &t->n_bytes))
        return bad(c,
                   "tensor \"%.*s\" has rows of %" PRId64
                   " elements of type %s: no whole number of blocks, or too many bytes",
                   (int)t->name_bytes, t->name, t->ne[0], dsi_dtype_name(t->dtype));
    return DSI_OK;
}

static int by_offset(const void *a, const void *b) {
    const dsi_gguf_tensor *const *x = a, *const *y = b;
    return ((*x)->file_offset > (*y)->file_offset) - ((*x)->file_offset < (*y)->file_offset);
}

/* Puts the tensors into the order of their bytes. Files come so, hence mostly nothing is done. */
static dsi_status sort_tensors(cursor *c) {
    dsi_gguf *g = c->gguf;
    uint32_t sorted = 1;
    while (sorted < g->n_tensors &&
           g->tensors[sorted - 1].file_offset <= g->tensors[sorted].file_offset)
        sorted++;
    if (sorted >= g->n_tensors) return DSI_OK;
    const dsi_gguf_tensor **order = dsi_sys_calloc(g->n_tensors, sizeof *order);
    dsi_gguf_tensor *moved = dsi_sys_calloc(g->n_tensors, sizeof *moved);
    for (uint32_t i = 0; order && moved && i < g->n_tensors; i++) order[i] = &g->tensors[i];
    if (order && moved) {
        dsi_sort(order, g->n_tensors, sizeof *order, by_offset);
        for (uint32_t i = 0; i < g->n_tensors; i++) moved[i] = *order[i];
        memcpy(g->tensors, moved, g->n_tensors * sizeof *moved);
    }
    bool good = order && moved;
    dsi_sys_free(order);
    dsi_sys_free(moved);
    if (good) return DSI_OK;
    return dsi_fail(c->error, DSI_E_NOMEM, "%s: no memory to sort %u tensors", g->path,
                    g->n_tensors);
}

static dsi_status bad_place(const cursor *c, const dsi_gguf_tensor *t, uint64_t expected) {
    return dsi_fail(c->error, DSI_E_FORMAT,
                    "%s: tensor \"%.*s\" begins %" PRIu64
                    " bytes behind the header, but what lies before it ends at %" PRIu64
                    ": tensors overlap or leave a hole; download the file again",
                    c->gguf->path, (int)t->name_bytes, t->name, t->file_offset, expected);
}

static bool align_up(uint64_t value, uint32_t alignment, uint64_t *aligned) {
    if (!dsi_add_ok(value, alignment - 1, aligned)) return false;
    *aligned -= *aligned % alignment;
    return true;
}

/* Every tensor begins where the one before ends, rounded up; the last one ends with the file, or
 * with the padding that some writers put behind it. Turns offsets into file offsets. */
static dsi_status check_layout(cursor *c) {
    dsi_gguf *g = c->gguf;
    uint64_t header = (uint64_t)(c->at - c->begin), data, next = 0, file = header + c->n_left, end;
    dsi_status status = sort_tensors(c);
    if (status) return status;
    if (!align_up(header, g->alignment, &data)) return bad(c, "the header passes 2^64 bytes");
    for (uint32_t i = 0; i < g->n_tensors; i++) {
        dsi_gguf_tensor *t = &g->tensors[i];
        if (t->file_offset != next) return bad_place(c, t, next);
        if (!dsi_add_ok(t->file_offset, t->n_bytes, &end) || !align_up(end, g->alignment, &next) ||
            !dsi_add_ok(data, t->file_offset, &t->file_offset))
            return bad_place(c, t, next);
        if (!dsi_add_ok(data, end, &end) || end > file)
            return dsi_fail(c->error, DSI_E_FORMAT,
                            "%s: tensor \"%.*s\" has %" PRIu64 " bytes from %" PRIu64
                            " on, the file has %" PRIu64
                            " bytes; it is truncated, download it again",
                            g->path, (int)t->name_bytes, t->name, t->n_bytes, t->file_offset, file);
        if (i + 1 == g->n_tensors && file - end >= g->alignment)
            return dsi_fail(c->error, DSI_E_FORMAT,
                            "%s: %" PRIu64 " bytes behind the last tensor belong to nothing; "
                            "download the file again",
                            g->path, file - end);
    }
    return DSI_OK;
}

static dsi_status read_tensors(cursor *c, uint64_t n) {
    dsi_gguf *g = c->gguf;
    if (n > MAX_TENSORS || n > c->n_left / MIN_TENSOR_ENTRY)
        return bad(c,
                   "the header claims %" PRIu64 " tensors; the limit is %d and what %" PRIu64
                   " bytes can hold",
                   n, MAX_TENSORS, c->n_left);
    g->tensors = dsi_sys_calloc(n, sizeof *g->tensors);
    if (!g->tensors)
        return dsi_fail(c->error, DSI_E_NOMEM, "%s: no memory for %" PRIu64 " tensors", g->path, n);
    for (uint64_t i = 0; i < n; i++) {
        dsi_gguf_tensor *t = &g->tensors[i];
        dsi_status status =
            take_name(c, "the name of a tensor", MAX_NAME_BYTES, &t->name, &t->name_bytes);
        if (!status) status = read_shape(c, t);
        if (!status) status = take_number(c, 8, &t->file_offset);
        if (status) return status;
        g->n_tensors++;
    }
    return DSI_OK;
}

/* ---- The whole header ----------------------------------------------------------------------- */

static dsi_status read_header(cursor *c) {
    const uint8_t *magic;
    uint64_t version = 0, n_tensors = 0, n_keys = 0;
    if (!take(c, MAGIC_BYTES, &magic) || memcmp(magic, "GGUF", MAGIC_BYTES) != 0)
        return dsi_fail(c->error, DSI_E_FORMAT,
                        "%s: does not begin with \"GGUF\"; this is no GGUF file", c->gguf->path);
    dsi_status status = take_number(c, 4, &version);
    if (status) return status;
    if (version != 2 && version != 3)
        return dsi_fail(c->error, DSI_E_UNSUPPORTED,
                        "%s: is of GGUF version %" PRIu64 "%s; supported are 2 and 3, convert the "
                        "model again",
                        c->gguf->path, version,
                        (version & 0xffff) == 0 ? " (written on a big-endian machine)" : "");
    c->gguf->version = (uint32_t)version;
    status = take_number(c, 8, &n_tensors);
    if (!status) status = take_number(c, 8, &n_keys);
    if (!status) status = read_keys(c, n_keys);
    if (!status) status = read_alignment(c);
    if (!status) status = read_tensors(c, n_tensors);
    return status ? status : check_layout(c);
}

dsi_status dsi_gguf_read(const char *path, const dsi_map *map, dsi_gguf *gguf, dsi_error *error) {
    *gguf = (dsi_gguf){.path = path};
    cursor c = {gguf, map->data, map->data, map->n_bytes, error};
    dsi_status status = read_header(&c);
    if (status) dsi_gguf_free(gguf);
    return status;
}

void dsi_gguf_free(dsi_gguf *gguf) {
    dsi_sys_free(gguf->values);
    dsi_sys_free(gguf->tensors);
    *gguf = (dsi_gguf){0};
}

/* ---- Values --------------------------------------------------------------------------------- */

const dsi_gguf_value *dsi_gguf_find(const dsi_gguf *gguf, const char *key) {
    uint32_t n_bytes = (uint32_t)strlen(key);
    for (uint32_t i = 0; i < gguf->n_values; i++)
        if (same(gguf->values[i].key, gguf->values[i].key_bytes, key, n_bytes))
            return &gguf->values[i];
    return NULL;
}

static bool number_u64(uint32_t type, const uint8_t *at, uint64_t *out) {
    bool is_signed =
        type == DSI_GGUF_I8 || type == DSI_GGUF_I16 || type == DSI_GGUF_I32 || type == DSI_GGUF_I64;
    uint32_t n_bytes = type_bytes(type);
    if (n_bytes == 0 || type == DSI_GGUF_BOOL || type == DSI_GGUF_F32 || type == DSI_GGUF_F64)
        return false;
    uint64_t value = little_endian(at, n_bytes);
    if (is_signed && value >> (8 * n_bytes - 1)) return false; /* negative */
    *out = value;
    return true;
}

bool dsi_gguf_u64(const dsi_gguf_value *value, uint64_t *out) {
    return value && number_u64(value->type, value->data, out);
}

bool dsi_gguf_f64(const dsi_gguf_value *value, double *out) {
    uint64_t whole;
    if (!value) return false;
    if (value->type == DSI_GGUF_F32) {
        uint32_t bits = (uint32_t)little_endian(value->data, 4);
        float number;
        memcpy(&number, &bits, sizeof number);
        *out = (double)number;
        return true;
    }
    if (value->type == DSI_GGUF_F64) {
        uint64_t bits = little_endian(value->data, 8);
        memcpy(out, &bits, sizeof *out);
        return true;
    }
    if (!dsi_gguf_u64(value, &whole)) return false;
    *out = (double)whole;
    return true;
}

bool dsi_gguf_bool(const dsi_gguf_value *value, bool *out) {
    if (!value || value->type != DSI_GGUF_BOOL) return false;
    *out = *value->data != 0;
    return true;
}

bool dsi_gguf_text(const dsi_gguf_value *value, const char **text, uint64_t *n_bytes) {
    if (!value || value->type != DSI_GGUF_STRING) return false;
    *text = (const char *)value->data;
    *n_bytes = value->n;
    return true;
}

bool dsi_gguf_text_is(const dsi_gguf_value *value, const char *text) {
    const char *is;
    uint64_t n_bytes;
    return dsi_gguf_text(value, &is, &n_bytes) && n_bytes == strlen(text) &&
           memcmp(is, text, n_bytes) == 0;
}

bool dsi_gguf_element_u64(const dsi_gguf_value *value, uint64_t i, uint64_t *out) {
    if (!value || value->type != DSI_GGUF_ARRAY || i >= value->n) return false;
    return number_u64(value->element_type, value->data + i * type_bytes(value->element_type), out);
}

bool dsi_gguf_strings_of(const dsi_gguf_value *value, dsi_gguf_strings *strings) {
    if (!value || value->type != DSI_GGUF_ARRAY || value->element_type != DSI_GGUF_STRING)
        return false;
    *strings = (dsi_gguf_strings){value->data, value->n};
    return true;
}

bool dsi_gguf_strings_next(dsi_gguf_strings *strings, const char **text, uint64_t *n_bytes) {
    if (strings->n_left == 0) return false;
    *n_bytes = little_endian(strings->at, 8); /* was held against the file in take_string */
    *text = (const char *)strings->at + 8;
    strings->at += 8 + *n_bytes;
    strings->n_left--;
    return true;
}
