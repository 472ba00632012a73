/* gguf_write.h: the pieces of a GGUF header, little-endian, into a stream: for the two programs
 * that write such files, dsinfer quantize and dsi-bench synth. Errors stay in the stream (ferror).
 */
#ifndef DSI_TOOLS_GGUF_WRITE_H
#define DSI_TOOLS_GGUF_WRITE_H

#include "../lib/base/gguf.h"
#include <stdio.h>
#include <string.h>

enum { GGUF_VERSION = 3, GGUF_ALIGNMENT = 32 };

static inline uint64_t gguf_aligned(uint64_t n) {
    return (n + GGUF_ALIGNMENT - 1) / GGUF_ALIGNMENT * GGUF_ALIGNMENT;
}

static inline void gguf_write_u32(FILE *file, uint32_t value) {
    for (int i = 0; i < 4; i++) fputc((int)(value >> 8 * i & 255), file);
}
static inline void gguf_write_u64(FILE *file, uint64_t value) {
    gguf_write_u32(file, (uint32_t)value);
    gguf_write_u32(file, (uint32_t)(value >> 32));
}
static inline void gguf_write_bytes(FILE *file, const char *text, uint64_t n_bytes) {
    gguf_write_u64(file, n_bytes);
    fwrite(text, 1, n_bytes, file);
}
static inline void gguf_write_text(FILE *file, const char *text) {
    gguf_write_bytes(file, text, strlen(text));
}
/* What stands in front of the keys; their number is often known only behind them. */
enum { GGUF_KEYS_AT = 16 };
static inline void gguf_write_begin(FILE *file, uint64_t n_tensors, uint64_t n_keys) {
    fputs("GGUF", file);
    gguf_write_u32(file, GGUF_VERSION);
    gguf_write_u64(file, n_tensors);
    gguf_write_u64(file, n_keys);
}
/* ne: elements of each dimension, the fastest first; type: its number in the format. */
static inline void gguf_write_tensor(FILE *file, const char *name, uint32_t n_dims,
                                     const int64_t *ne, uint32_t type, uint64_t offset) {
    gguf_write_text(file, name);
    gguf_write_u32(file, n_dims);
    for (uint32_t d = 0; d < n_dims; d++) gguf_write_u64(file, (uint64_t)ne[d]);
    gguf_write_u32(file, type);
    gguf_write_u64(file, offset);
}

/* ---- Keys. A name that begins with a point belongs to the architecture. */
typedef struct gguf_keys {
    FILE *file;
    const char *arch; /* "deepseek2" */
    uint64_t n;
} gguf_keys;

static inline void gguf_key(gguf_keys *k, const char *name, uint32_t type) {
    char full[96];
    snprintf(full, sizeof full, "%s%s", *name == '.' ? k->arch : "", name);
    gguf_write_text(k->file, full);
    gguf_write_u32(k->file, type);
    k->n++;
}
static inline void gguf_key_number(gguf_keys *k, const char *name, int64_t value) {
    gguf_key(k, name, DSI_GGUF_U32);
    gguf_write_u32(k->file, (uint32_t)value);
}
static inline void gguf_key_real(gguf_keys *k, const char *name, double value) {
    float narrow = (float)value;
    uint32_t bits;
    memcpy(&bits, &narrow, sizeof bits);
    gguf_key(k, name, DSI_GGUF_F32);
    gguf_write_u32(k->file, bits);
}
static inline void gguf_key_bool(gguf_keys *k, const char *name, bool value) {
    gguf_key(k, name, DSI_GGUF_BOOL);
    fputc(value ? 1 : 0, k->file);
}
static inline void gguf_key_text(gguf_keys *k, const char *name, const char *value) {
    gguf_key(k, name, DSI_GGUF_STRING);
    gguf_write_text(k->file, value);
}
/* n elements of `type` follow. */
static inline void gguf_key_list(gguf_keys *k, const char *name, uint32_t type, uint64_t n) {
    gguf_key(k, name, DSI_GGUF_ARRAY);
    gguf_write_u32(k->file, type);
    gguf_write_u64(k->file, n);
}

#endif
