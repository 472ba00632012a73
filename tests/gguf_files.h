/* gguf_files.h: GGUF files with parts of the test's choice, written number by number. */
#ifndef DSI_TESTS_GGUF_FILES_H
#define DSI_TESTS_GGUF_FILES_H

#include "../lib/base/gguf.h"
#include <stdlib.h>
#include <string.h>

typedef struct gguf_file {
    uint8_t *data;
    size_t n, capacity;
} gguf_file;

static inline void put_bytes(gguf_file *f, const void *from, size_t n) {
    if (f->n + n > f->capacity) {
        f->capacity = 2 * (f->n + n) + 256;
        f->data = realloc(f->data, f->capacity);
        assert_non_null(f->data);
    }
    memcpy(f->data + f->n, from, n);
    f->n += n;
}
static inline void put_number(gguf_file *f, uint64_t value, size_t n) {
    uint8_t little[8];
    for (size_t i = 0; i < n; i++) little[i] = (uint8_t)(value >> (8 * i));
    put_bytes(f, little, n);
}
static inline void put_text(gguf_file *f, const char *text, size_t n) {
    put_number(f, n, 8);
    put_bytes(f, text, n);
}
/* Version 3 with the counts of a header; the tensors and keys follow. */
static inline gguf_file begin_gguf(uint64_t n_tensors, uint64_t n_keys) {
    gguf_file f = {0};
    put_bytes(&f, "GGUF", 4);
    put_number(&f, 3, 4);
    put_number(&f, n_tensors, 8);
    put_number(&f, n_keys, 8);
    return f;
}
static inline void put_key(gguf_file *f, const char *key, uint32_t type) {
    put_text(f, key, strlen(key));
    put_number(f, type, 4);
}
static inline void put_key_u32(gguf_file *f, const char *key, uint32_t value) {
    put_key(f, key, DSI_GGUF_U32);
    put_number(f, value, 4);
}
static inline void put_key_text(gguf_file *f, const char *key, const char *value) {
    put_key(f, key, DSI_GGUF_STRING);
    put_text(f, value, strlen(value));
}
static inline void put_key_array(gguf_file *f, const char *key, uint32_t type, uint64_t n) {
    put_key(f, key, DSI_GGUF_ARRAY);
    put_number(f, type, 4);
    put_number(f, n, 8);
}
/* A tensor of two dimensions. */
static inline void put_tensor(gguf_file *f, const char *name, uint64_t columns, uint64_t rows,
                              uint32_t type, uint64_t offset) {
    put_text(f, name, strlen(name));
    put_number(f, 2, 4);
    put_number(f, columns, 8);
    put_number(f, rows, 8);
    put_number(f, type, 4);
    put_number(f, offset, 8);
}
/* Zeros up to the alignment, then n bytes of zeros. */
static inline void put_data(gguf_file *f, size_t n) {
    static const uint8_t zeros[64];
    while (f->n % 32 != 0) put_bytes(f, zeros, 1);
    for (; n > sizeof zeros; n -= sizeof zeros) put_bytes(f, zeros, sizeof zeros);
    put_bytes(f, zeros, n);
}
static inline void free_gguf(gguf_file *f) {
    free(f->data);
    *f = (gguf_file){0};
}

#endif
