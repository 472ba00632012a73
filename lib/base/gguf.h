/* gguf.h: the header of one mapped .gguf file: its keys with their values, and its tensors.
 * Format: docs/gguf.md of ggml. Little-endian: "GGUF", version, counts, keys, tensors, padding,
 * data.
 */
#ifndef DSI_LIB_BASE_GGUF_H
#define DSI_LIB_BASE_GGUF_H

#include "base.h"
#include "sys.h"

/* Types of values, by their numbers in the file. */
enum {
    DSI_GGUF_U8 = 0,
    DSI_GGUF_I8 = 1,
    DSI_GGUF_U16 = 2,
    DSI_GGUF_I16 = 3,
    DSI_GGUF_U32 = 4,
    DSI_GGUF_I32 = 5,
    DSI_GGUF_F32 = 6,
    DSI_GGUF_BOOL = 7,
    DSI_GGUF_STRING = 8,
    DSI_GGUF_ARRAY = 9,
    DSI_GGUF_U64 = 10,
    DSI_GGUF_I64 = 11,
    DSI_GGUF_F64 = 12
};

typedef struct dsi_gguf_value {
    const char *key; /* in the mapping, not zero-terminated; printable ASCII */
    uint32_t key_bytes;
    uint32_t type, element_type; /* the latter of arrays; never ARRAY */
    uint64_t n;                  /* elements of an array, bytes of a string, else 1 */
    const uint8_t *data;         /* first byte of the number, the text or the first element */
} dsi_gguf_value;

typedef struct dsi_gguf_tensor {
    const char *name; /* in the mapping, not zero-terminated; no control characters */
    uint32_t name_bytes;
    dsi_dtype dtype;
    uint32_t n_dims; /* 1 to 4 */
    int64_t ne[4];   /* elements of each dimension, the fastest first */
    uint64_t file_offset, n_bytes;
} dsi_gguf_tensor;

typedef struct dsi_gguf {
    const char *path; /* the caller's, for messages */
    dsi_gguf_value *values;
    uint32_t n_values;
    dsi_gguf_tensor *tensors; /* in order of their offsets */
    uint32_t n_tensors;
    uint32_t version, alignment;
} dsi_gguf;

/* Reads and checks the header of `map`, which holds the file `path`; both must live until
 * dsi_gguf_free. Reads no tensor. The rules are those of lib/base/README.md; on failure *gguf is
 * empty. Errors: FORMAT, UNSUPPORTED (a version, a type of blocks), NOMEM. */
dsi_status dsi_gguf_read(const char *path, const dsi_map *map, dsi_gguf *gguf, dsi_error *error);
void dsi_gguf_free(dsi_gguf *gguf);

/* The value of a key, NULL if the file has none. */
const dsi_gguf_value *dsi_gguf_find(const dsi_gguf *gguf, const char *key);
/* A number that is stored as any of the integer types and is not negative; as any type of numbers;
 * a bool; the text of a string. False, and *out untouched, if the value is NULL or of another kind.
 */
bool dsi_gguf_u64(const dsi_gguf_value *value, uint64_t *out);
bool dsi_gguf_f64(const dsi_gguf_value *value, double *out);
bool dsi_gguf_bool(const dsi_gguf_value *value, bool *out);
bool dsi_gguf_text(const dsi_gguf_value *value, const char **text, uint64_t *n_bytes);
bool dsi_gguf_text_is(const dsi_gguf_value *value, const char *text);
/* Element i of an array of integers, as dsi_gguf_u64. */
bool dsi_gguf_element_u64(const dsi_gguf_value *value, uint64_t i, uint64_t *out);

/* Goes through an array of strings. */
typedef struct dsi_gguf_strings {
    const uint8_t *at;
    uint64_t n_left;
} dsi_gguf_strings;
/* False if the value is NULL or no array of strings. */
bool dsi_gguf_strings_of(const dsi_gguf_value *value, dsi_gguf_strings *strings);
/* The next string; false behind the last one. */
bool dsi_gguf_strings_next(dsi_gguf_strings *strings, const char **text, uint64_t *n_bytes);

#endif
