/* bench_files.h: a reader of GGUF for the tests of dsi-bench, written from the description of the
 * format alone: nothing of it is shared with what writes such files or reads them in the library.
 */
#ifndef DSI_TESTS_BENCH_FILES_H
#define DSI_TESTS_BENCH_FILES_H

#include "model_files.h"
#include <math.h>

enum { GG_F32 = 0, GG_Q4_0 = 2, GG_Q8_0 = 8, GG_Q4_K = 12, GG_BF16 = 30 };
enum { GG_TENSORS = 256, GG_KEYS = 64 };

typedef struct ggtensor {
    char name[80];
    uint32_t n_dims, type;
    uint64_t dims[4], offset;
} ggtensor;
typedef struct ggfile {
    bytes file;
    uint32_t version;
    uint64_t n_tensors, n_keys, data, at; /* data: where tensors begin */
    ggtensor tensors[GG_TENSORS];
    struct {
        char name[80];
        uint64_t number; /* of a whole number */
    } keys[GG_KEYS];
} ggfile;

static inline uint64_t gg_take(ggfile *g, size_t n) {
    uint64_t value = 0;
    assert_true(g->at + n <= g->file.n);
    for (size_t i = 0; i < n; i++) value |= (uint64_t)(uint8_t)g->file.data[g->at + i] << 8 * i;
    g->at += n;
    return value;
}
static inline void gg_text(ggfile *g, char to[80]) {
    uint64_t n = gg_take(g, 8);
    assert_true(n < 80 && g->at + n <= g->file.n);
    memcpy(to, g->file.data + g->at, n);
    to[n] = 0;
    g->at += n;
}
static inline uint64_t gg_value(ggfile *g, uint32_t type) {
    static const size_t sizes[] = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};
    char text[80];
    assert_true(type <= 12);
    if (type == 9) {
        uint32_t inner = (uint32_t)gg_take(g, 4);
        uint64_t n = gg_take(g, 8);
        assert_int_not_equal(inner, 9);
        while (n--) gg_value(g, inner);
        return 0;
    }
    if (type != 8) return gg_take(g, sizes[type]);
    gg_text(g, text);
    return 0;
}

static inline ggfile gg_open(bytes file) {
    ggfile g = {.file = file};
    assert_memory_equal(file.data, "GGUF", 4);
    g.at = 4;
    g.version = (uint32_t)gg_take(&g, 4);
    g.n_tensors = gg_take(&g, 8);
    g.n_keys = gg_take(&g, 8);
    assert_true(g.n_tensors <= GG_TENSORS && g.n_keys <= GG_KEYS);
    for (uint64_t i = 0; i < g.n_keys; i++) {
        gg_text(&g, g.keys[i].name);
        g.keys[i].number = gg_value(&g, (uint32_t)gg_take(&g, 4));
    }
    for (uint64_t i = 0; i < g.n_tensors; i++) {
        ggtensor *t = &g.tensors[i];
        gg_text(&g, t->name);
        t->n_dims = (uint32_t)gg_take(&g, 4);
        assert_in_range(t->n_dims, 1, 4);
        for (uint32_t d = 0; d < 4; d++) t->dims[d] = d < t->n_dims ? gg_take(&g, 8) : 1;
        t->type = (uint32_t)gg_take(&g, 4);
        t->offset = gg_take(&g, 8);
    }
    g.data = (g.at + 31) / 32 * 32;
    return g;
}
static inline void gg_close(ggfile *g) { free(g->file.data); }

static inline const ggtensor *gg_find(const ggfile *g, const char *name) {
    for (uint64_t i = 0; i < g->n_tensors; i++)
        if (strcmp(g->tensors[i].name, name) == 0) return &g->tensors[i];
    fail_msg("the GGUF has no tensor %s", name);
    return NULL;
}
static inline uint64_t gg_number(const ggfile *g, const char *name) {
    for (uint64_t i = 0; i < g->n_keys; i++)
        if (strcmp(g->keys[i].name, name) == 0) return g->keys[i].number;
    fail_msg("the GGUF has no key %s", name);
    return 0;
}

/* Numbers and bytes of a block. */
static inline uint32_t gg_block(uint32_t type) {
    return type == GG_Q4_K ? 256 : type == GG_Q8_0 || type == GG_Q4_0 ? 32 : 1;
}
static inline uint32_t gg_block_bytes(uint32_t type) {
    return type == GG_Q4_K   ? 144
           : type == GG_Q8_0 ? 34
           : type == GG_Q4_0 ? 18
           : type == GG_BF16 ? 2
                             : 4;
}
static inline uint64_t gg_bytes(const ggtensor *t) {
    uint64_t n = t->dims[0] / gg_block(t->type) * gg_block_bytes(t->type);
    for (int d = 1; d < 4; d++) n *= t->dims[d];
    return n;
}

static inline float gg_half(const uint8_t *p) {
    int bits = p[0] | p[1] << 8, exponent = bits >> 10 & 31, mantissa = bits & 1023;
    float size =
        exponent ? ldexpf((float)(1024 + mantissa), exponent - 25) : ldexpf((float)mantissa, -24);
    return bits >> 15 ? -size : size;
}

/* Scale and offset of block j of a Q4_K: the first four in the low six bits of bytes 0..7, the
 * others' low four bits in bytes 8..11 and their high two in the top of bytes 0..7. */
static inline void gg_sixes(const uint8_t *p, int j, int *scale, int *offset) {
    if (j < 4) {
        *scale = p[j] & 63, *offset = p[j + 4] & 63;
        return;
    }
    *scale = (p[j + 4] & 15) | (p[j - 4] >> 6) << 4;
    *offset = p[j + 4] >> 4 | (p[j] >> 6) << 4;
}

static inline void gg_decode(uint32_t type, const uint8_t *p, float *to) {
    uint32_t bits = 0;
    if (type == GG_F32) bits = (uint32_t)(p[0] | p[1] << 8 | p[2] << 16) | (uint32_t)p[3] << 24;
    if (type == GG_BF16) bits = (uint32_t)(p[0] | p[1] << 8) << 16;
    if (type == GG_F32 || type == GG_BF16) memcpy(to, &bits, 4);
    if (type == GG_Q8_0)
        for (int i = 0; i < 32; i++) to[i] = gg_half(p) * (float)(int8_t)p[2 + i];
    if (type == GG_Q4_0)
        for (int i = 0; i < 32; i++)
            to[i] = gg_half(p) * (float)((p[2 + i % 16] >> (i < 16 ? 0 : 4) & 15) - 8);
    if (type != GG_Q4_K) return;
    for (int i = 0; i < 256; i++) {
        int scale, offset, code = p[16 + i / 64 * 32 + i % 32] >> (i / 32 % 2 ? 4 : 0) & 15;
        gg_sixes(p + 4, i / 32, &scale, &offset);
        to[i] = gg_half(p) * (float)scale * (float)code - gg_half(p + 2) * (float)offset;
    }
}

/* Row `row` of all rows of the tensor. */
static inline void gg_row(const ggfile *g, const ggtensor *t, uint64_t row, float *to) {
    uint32_t n = gg_block(t->type), n_bytes = gg_block_bytes(t->type);
    uint64_t begin = g->data + t->offset + row * (t->dims[0] / n * n_bytes);
    assert_true(begin + t->dims[0] / n * n_bytes <= g->file.n);
    const uint8_t *from = (const uint8_t *)g->file.data + begin;
    for (uint64_t i = 0; i < t->dims[0]; i += n, from += n_bytes) gg_decode(t->type, from, to + i);
}

/* How far the number at i of a row may move: half a step of its block, with the half float of the
 * scale; Q4_K also rounds scale and offset of 32 numbers to 1/63 of the largest of 256. */
static inline float gg_rounding(uint32_t type, const float *row, uint64_t i) {
    uint64_t n = gg_block(type), begin = i / n * n;
    float most = 0, low = 0, high = 0;
    for (uint64_t k = begin; k < begin + n; k++) {
        most = fmaxf(most, fabsf(row[k]));
        low = fminf(low, row[k]), high = fmaxf(high, row[k]);
    }
    if (type == GG_F32) return 0;
    if (type == GG_BF16) return fabsf(row[i]) * 0x1p-8f;
    if (type == GG_Q8_0) return most / 127 * (0.5f + 127 * 0x1p-11f);
    if (type == GG_Q4_0) return most / 8 * (1.0f + 8 * 0x1p-11f); /* +8 is cut to +7 */
    return (high - low) / 15 * 0.8f + (high - low) / 63;
}

#endif
