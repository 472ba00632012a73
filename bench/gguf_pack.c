/* gguf_pack.c: rows of f32 in the number formats of GGUF, rounded as ggml's reference rounds. */
#include "../lib/base/convert.h"
#include "gguf.h"
#include <math.h>
#include <string.h>

enum { BLOCK = 32, SUPER = 256, N_SUB = SUPER / BLOCK };

static const struct {
    const char *name;
    uint32_t type;
    int64_t n_block, n_bytes; /* of one block */
} types[] = {{"q8_0", GGUF_Q8_0, BLOCK, 2 + BLOCK},
             {"q4_0", GGUF_Q4_0, BLOCK, 2 + BLOCK / 2},
             {"q4_k", GGUF_Q4_K, SUPER, 4 + 12 + SUPER / 2},
             {"bf16", GGUF_BF16, 1, 2},
             {"f32", GGUF_F32, 1, 4}};
enum { N_TYPES = sizeof types / sizeof types[0] };

bool gguf_type_find(const char *name, uint32_t *type) {
    for (size_t i = 0; i < N_TYPES - 1; i++) { /* f32 is for norms */
        *type = types[i].type;
        if (strcmp(name, types[i].name) == 0) return true;
    }
    return false;
}

uint32_t gguf_type_for(uint32_t type, int64_t n_columns) {
    return type == GGUF_Q4_K && n_columns % SUPER ? GGUF_Q8_0 : type;
}

uint64_t gguf_row_bytes(uint32_t type, int64_t n_columns) {
    for (size_t i = 0; i < N_TYPES; i++)
        if (types[i].type == type)
            return (uint64_t)(n_columns / types[i].n_block * types[i].n_bytes);
    return 0;
}

/* ---- Numbers of 16 bits --------------------------------------------------------------------- */

static void put_bf16(float value, uint8_t *to) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    uint16_t half = (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
    memcpy(to, &half, 2);
}

/* To nearest, ties to even, small ones denormal; returns the value that was stored. */
static float put_f16(float value, uint8_t *to) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    uint16_t sign = (uint16_t)(bits >> 16 & 0x8000), half = 0x7c00;
    bits &= 0x7fffffff;
    if (fabsf(value) < 0x1p-14f)
        half = (uint16_t)rintf(fabsf(value) * 0x1p24f);
    else if (fabsf(value) < 65520.0f)
        half = (uint16_t)(((bits + 0xfff + (bits >> 13 & 1)) >> 13) - (112 << 10));
    half |= sign;
    memcpy(to, &half, 2);
    float stored;
    dsi_widen(DSI_DTYPE_F16, to, &stored, 1);
    return stored;
}

/* ---- Blocks of 32 with one scale ------------------------------------------------------------ */

static void pack_q8_0(const float *x, uint8_t *to) {
    float top = 0;
    for (int i = 0; i < BLOCK; i++) top = fmaxf(top, fabsf(x[i]));
    float scale = top / 127, inverse = scale != 0 ? 1 / scale : 0;
    put_f16(scale, to);
    for (int i = 0; i < BLOCK; i++) to[2 + i] = (uint8_t)(int8_t)roundf(x[i] * inverse);
}

/* The number of largest size becomes -8, whatever its sign. */
static void pack_q4_0(const float *x, uint8_t *to) {
    float top = 0;
    for (int i = 0; i < BLOCK; i++)
        if (fabsf(x[i]) > fabsf(top)) top = x[i];
    float scale = top / -8, inverse = scale != 0 ? 1 / scale : 0;
    put_f16(scale, to);
    for (int i = 0; i < BLOCK / 2; i++) {
        int low = (int)(x[i] * inverse + 8.5f), high = (int)(x[BLOCK / 2 + i] * inverse + 8.5f);
        to[2 + i] = (uint8_t)((low < 15 ? low : 15) | (high < 15 ? high : 15) << 4);
    }
}

/* ---- Q4_K: 8 blocks of 32, each with a scale and an offset of 6 bits ------------------------ */

/* Ties to even for anything below 2^22: adding 1.5 * 2^23 leaves the integer in the low bits. */
static int nearest(float value) {
    float moved = value + 0x1.8p23f;
    int32_t bits;
    memcpy(&bits, &moved, sizeof bits);
    return (bits & 0x7fffff) - 0x400000;
}

static int clamp(int value, int top) { return value < 0 ? 0 : value > top ? top : value; }

typedef struct line {
    float scale, min; /* x is about scale * code + min, min <= 0 */
} line;

/* The line through the codes that errs least by weight; false if the codes are all alike. */
static bool fit(const float *x, const float *weight, const uint8_t *code, line *best) {
    float w = 0, wx = 0, wc = 0, wcc = 0, wcx = 0;
    for (int i = 0; i < BLOCK; i++) {
        float of = weight[i] * code[i];
        w += weight[i];
        wx += weight[i] * x[i];
        wc += of;
        wcc += of * code[i];
        wcx += of * x[i];
    }
    float determinant = w * wcc - wc * wc;
    if (!(determinant > 0)) return false;
    best->scale = (w * wcx - wx * wc) / determinant;
    best->min = (wcc * wx - wc * wcx) / determinant;
    if (best->min > 0) *best = (line){wcx / wcc, 0};
    return true;
}

static float error_of(const float *x, const float *weight, const uint8_t *code, line l) {
    float sum = 0;
    for (int i = 0; i < BLOCK; i++) {
        float difference = l.scale * code[i] + l.min - x[i];
        sum += weight[i] * (difference * difference);
    }
    return sum;
}

/* Codes 0..15 of one block: of 21 spacings around the plain one, the one that errs least. */
static line spread(const float *x, const float *weight, uint8_t *code) {
    uint8_t trial[BLOCK];
    float low = 0, high = x[0];
    for (int i = 0; i < BLOCK; i++) {
        low = fminf(low, x[i]);
        high = fmaxf(high, x[i]);
    }
    memset(code, 0, BLOCK);
    if (high == low) return (line){0, low};
    float per_unit = 15 / (high - low);
    line best = {1 / per_unit, low};
    for (int i = 0; i < BLOCK; i++) code[i] = (uint8_t)clamp(nearest(per_unit * (x[i] - low)), 15);
    float least = error_of(x, weight, code, best);
    for (int step = 0; step <= 20; step++) {
        per_unit = (-1.0f + 0.1f * (float)step + 15) / (high - low);
        for (int i = 0; i < BLOCK; i++)
            trial[i] = (uint8_t)clamp(nearest(per_unit * (x[i] - low)), 15);
        line l;
        if (!fit(x, weight, trial, &l)) continue;
        float error = error_of(x, weight, trial, l);
        if (error >= least) continue;
        least = error;
        best = l;
        low = l.min; /* the reference measures the next spacings from here */
        memcpy(code, trial, BLOCK);
    }
    return best;
}

/* Six bits each of 8 scales and 8 offsets in 12 bytes. */
static void put_sixes(const uint8_t *scale, const uint8_t *offset, uint8_t *to) {
    for (int j = 0; j < 4; j++) {
        to[j] = (uint8_t)(scale[j] | (scale[j + 4] >> 4) << 6);
        to[j + 4] = (uint8_t)(offset[j] | (offset[j + 4] >> 4) << 6);
        to[j + 8] = (uint8_t)((scale[j + 4] & 15) | (offset[j + 4] & 15) << 4);
    }
}

static void pack_q4_k(const float *x, uint8_t *to) {
    uint8_t code[SUPER], scale6[N_SUB], offset6[N_SUB];
    float weight[BLOCK], top_scale = 0, top_offset = 0;
    line lines[N_SUB];
    for (int j = 0; j < N_SUB; j++) {
        const float *part = x + j * BLOCK;
        float squares = 0;
        for (int i = 0; i < BLOCK; i++) squares += part[i] * part[i];
        float size = sqrtf(squares / BLOCK);
        for (int i = 0; i < BLOCK; i++) weight[i] = size + fabsf(part[i]);
        lines[j] = spread(part, weight, code + j * BLOCK);
        top_scale = fmaxf(top_scale, lines[j].scale);
        top_offset = fmaxf(top_offset, -lines[j].min);
    }
    float per_scale = top_scale > 0 ? 63 / top_scale : 0;
    float per_offset = top_offset > 0 ? 63 / top_offset : 0;
    float unit = put_f16(top_scale / 63, to), offset_unit = put_f16(top_offset / 63, to + 2);
    for (int j = 0; j < N_SUB; j++) {
        scale6[j] = (uint8_t)clamp(nearest(per_scale * lines[j].scale), 63);
        offset6[j] = (uint8_t)clamp(nearest(per_offset * -lines[j].min), 63);
        float scale = unit * scale6[j], offset = offset_unit * offset6[j];
        if (scale == 0) continue;
        for (int i = j * BLOCK; i < (j + 1) * BLOCK; i++)
            code[i] = (uint8_t)clamp(nearest((x[i] + offset) / scale), 15);
    }
    put_sixes(scale6, offset6, to + 4);
    for (int j = 0; j < N_SUB / 2; j++)
        for (int i = 0; i < BLOCK; i++)
            to[16 + j * BLOCK + i] =
                (uint8_t)(code[2 * j * BLOCK + i] | code[(2 * j + 1) * BLOCK + i] << 4);
}

void gguf_pack_row(uint32_t type, const float *row, int64_t n_columns, uint8_t *to) {
    if (type == GGUF_F32) memcpy(to, row, (size_t)n_columns * sizeof *row);
    if (type == GGUF_BF16)
        for (int64_t i = 0; i < n_columns; i++) put_bf16(row[i], to + 2 * i);
    for (size_t k = 0; k < N_TYPES; k++) {
        if (types[k].type != type || types[k].n_block == 1) continue;
        for (int64_t i = 0; i < n_columns; i += types[k].n_block, to += types[k].n_bytes) {
            if (type == GGUF_Q8_0) pack_q8_0(row + i, to);
            if (type == GGUF_Q4_0) pack_q4_0(row + i, to);
            if (type == GGUF_Q4_K) pack_q4_k(row + i, to);
        }
    }
}
