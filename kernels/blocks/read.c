/* read.c: the truth of GGUF's 23 types of blocks: bytes to whole numbers and multipliers.
 *
 * Fields are named as GGUF's documents do: d and m (multiplier and minimum of a block, f16), qs
 * (low bits of the numbers), qh (high bits), scales (of groups). */
#include "../formats.h"
#include "blocks.h"
#include "grids.h"

const int8_t dsi_iq4_values[16] = {-127, -104, -83, -65, -49, -35, -22, -10,
                                   1,    13,   25,  38,  53,  69,  89,  113};
const int8_t dsi_fp4_values[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};

static float half_at(const uint8_t *at) { return dsi_f16_to_f32(dsi_load_u16(at, 0)); }
static int low4(int byte) { return byte & 15; }
static int high4(int byte) { return byte >> 4; }
static uint32_t u32_at(const uint8_t *at) { return dsi_f32_bits(dsi_load_f32(at, 0)); }

/* ---- 32 values: Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, IQ4_NL, MXFP4; 64: NVFP4 ------------------------
 */

/* 16 bytes: values 0..15 in the low halves, 16..31 in the high ones; qh has a fifth bit of each. */
static void read_nibbles(const uint8_t *restrict qs, uint32_t qh, int offset, int8_t *restrict q) {
    if (qh == 0) {
        for (int i = 0; i < 16; i++) q[i] = (int8_t)((qs[i] & 15) - offset);
        for (int i = 0; i < 16; i++) q[16 + i] = (int8_t)((qs[i] >> 4) - offset);
        return;
    }
    for (int i = 0; i < 16; i++) {
        q[i] = (int8_t)((low4(qs[i]) | (int)(qh >> i & 1) << 4) - offset);
        q[i + 16] = (int8_t)((high4(qs[i]) | (int)(qh >> (i + 16) & 1) << 4) - offset);
    }
}

static void read_table(const uint8_t *qs, int n, const int8_t *values, int8_t *q) {
    for (int i = 0; i < n; i++) {
        q[i] = values[low4(qs[i])];
        q[i + n] = values[high4(qs[i])];
    }
}

static void read_small(dsi_dtype dtype, const uint8_t *b, dsi_block_parts *p) {
    p->scale[0] = half_at(b);
    switch (dtype) {
    case DSI_DTYPE_Q4_0:
        read_nibbles(b + 2, 0, 8, p->q);
        break;
    case DSI_DTYPE_Q4_1:
        p->min[0] = -half_at(b + 2);
        read_nibbles(b + 4, 0, 0, p->q);
        break;
    case DSI_DTYPE_Q5_0:
        read_nibbles(b + 6, u32_at(b + 2), 16, p->q);
        break;
    case DSI_DTYPE_Q5_1:
        p->min[0] = -half_at(b + 2);
        read_nibbles(b + 8, u32_at(b + 4), 0, p->q);
        break;
    case DSI_DTYPE_Q8_0:
        memcpy(p->q, b + 2, 32);
        break;
    default:
        read_table(b + 2, 16, dsi_iq4_values, p->q);
    }
}

/* The scale is a power of two, 2^(e - 128): the table has twice the values of E2M1. */
static void read_mxfp4(const uint8_t *b, dsi_block_parts *p) {
    uint32_t e = b[0];
    p->scale[0] = dsi_f32_from_bits(e < 2 ? 0x00200000u << e : (e - 1) << 23);
    read_table(b + 1, 16, dsi_fp4_values, p->q);
}

/* Four scales of E4M3 without a sign, whose code 0x7F counts as 0. */
static void read_nvfp4(const uint8_t *b, dsi_block_parts *p) {
    for (int g = 0; g < 4; g++) {
        int e = b[g] >> 3 & 15, mantissa = b[g] & 7;
        float scale = e == 0
                          ? (float)mantissa * 0x1p-10f
                          : dsi_f32_from_bits((uint32_t)(e + 119) << 23 | (uint32_t)mantissa << 20);
        p->scale[g] = b[g] == 0x7F ? 0 : scale;
        read_table(b + 4 + 8 * g, 8, dsi_fp4_values, p->q + 16 * g);
    }
}

/* ---- 256 values: Q2_K to Q6_K ------------------------------------------------------------------
 */

/* 2 bits of each of n bytes from bit `shift` on. Loops of constant length over bytes that do not
 * overlap become vector code. */
static void read_bits2(const uint8_t *restrict qs, int shift, int8_t *restrict q) {
    for (int i = 0; i < 32; i++) q[i] = (int8_t)(qs[i] >> shift & 3);
}
/* Every 32 bytes hold 128 values: 32 in their lowest two bits, then 32 in the next. */
static void read_all_bits2(const uint8_t *qs, int8_t *q) {
    for (int g = 0; g < 8; g++) read_bits2(qs + g / 4 * 32, g % 4 * 2, q + 32 * g);
}
static void read_low4(const uint8_t *restrict qs, int8_t *restrict q) {
    for (int i = 0; i < 32; i++) q[i] = (int8_t)(qs[i] & 15);
}
static void read_high4(const uint8_t *restrict qs, int8_t *restrict q) {
    for (int i = 0; i < 32; i++) q[i] = (int8_t)(qs[i] >> 4);
}
/* q += bits * 2^up, bits those under `mask` from bit `shift` of each byte on. */
static void add_bits(const uint8_t *restrict qh, int shift, int mask, int up, int less,
                     int8_t *restrict q) {
    for (int i = 0; i < 32; i++) q[i] = (int8_t)(q[i] + ((qh[i] >> shift & mask) << up) - less);
}

static void read_q2_k(const uint8_t *b, dsi_block_parts *p) {
    const float d = half_at(b + 80), m = half_at(b + 82);
    for (int g = 0; g < 16; g++) {
        p->scale[g] = d * (float)low4(b[g]);
        p->min[g] = m * (float)high4(b[g]);
    }
    read_all_bits2(b + 16, p->q);
}

/* Scales of 6 bits: the low four of 0..7 and 8..15 in the halves of 8 bytes, the high two in the
 * quarters of 4. Bit i / 32 of byte i % 32 says that 4 is not subtracted. */
static void read_q3_k(const uint8_t *b, dsi_block_parts *p) {
    const uint8_t *low = b + 96, *high = b + 104;
    const float d = half_at(b + 108);
    for (int g = 0; g < 16; g++) {
        int scale = (low[g % 8] >> g / 8 * 4 & 15) | (high[g % 4] >> g / 4 * 2 & 3) << 4;
        p->scale[g] = d * (float)(scale - 32);
    }
    read_all_bits2(b + 32, p->q);
    for (int g = 0; g < 8; g++) add_bits(b, g, 1, 2, 4, p->q + 32 * g);
}

/* Scales and minimums of 6 bits in 12 bytes: of 0..3 in the low six bits of bytes 0..3 and 4..7; of
 * 4..7 the low four in the halves of bytes 8..11, the high two on top of bytes 0..3 and 4..7. */
static void read_scales_k4(const uint8_t *b, dsi_block_parts *p) {
    const float d = half_at(b), m = half_at(b + 2);
    const uint8_t *s = b + 4;
    for (int g = 0; g < 4; g++) {
        p->scale[g] = d * (float)(s[g] & 63);
        p->min[g] = m * (float)(s[g + 4] & 63);
        p->scale[g + 4] = d * (float)(low4(s[g + 8]) | s[g] >> 6 << 4);
        p->min[g + 4] = m * (float)(high4(s[g + 8]) | s[g + 4] >> 6 << 4);
    }
}

/* 32 bytes hold 64 values: 32 in the low halves, then 32 in the high ones. */
static void read_halves(const uint8_t *qs, int8_t *q) {
    for (int c = 0; c < 4; c++) {
        read_low4(qs + 32 * c, q + 64 * c);
        read_high4(qs + 32 * c, q + 64 * c + 32);
    }
}

static void read_q4_k(const uint8_t *b, dsi_block_parts *p) {
    read_scales_k4(b, p);
    read_halves(b + 16, p->q);
}

static void read_q5_k(const uint8_t *b, dsi_block_parts *p) {
    read_scales_k4(b, p);
    read_halves(b + 48, p->q);
    for (int g = 0; g < 8; g++) add_bits(b + 16, g, 1, 4, 0, p->q + 32 * g);
}

static void read_q6_k(const uint8_t *b, dsi_block_parts *p) {
    const float d = half_at(b + 208);
    for (int g = 0; g < 16; g++) p->scale[g] = d * (float)(int8_t)b[192 + g];
    for (int h = 0; h < 4;
         h++) { /* 32 bytes: 32 values in the low halves, 64 further on the rest */
        int8_t *q = p->q + h / 2 * 128 + h % 2 * 32;
        read_low4(b + 32 * h, q);
        read_high4(b + 32 * h, q + 64);
    }
    for (int g = 0; g < 8; g++) add_bits(b + 128 + g / 4 * 32, g % 4 * 2, 3, 4, 32, p->q + 32 * g);
}

static void read_iq4_xs(const uint8_t *b, dsi_block_parts *p) {
    const float d = half_at(b);
    for (int g = 0; g < 8; g++) {
        int high = dsi_load_u16(b + 2, 0) >> 2 * g & 3, low = b[4 + g / 2] >> g % 2 * 4 & 15;
        p->scale[g] = d * (float)((low | high << 4) - 32);
        read_table(b + 8 + 16 * g, 16, dsi_iq4_values, p->q + 32 * g);
    }
}

/* ---- 256 values on grids -----------------------------------------------------------------------
 */

enum { BYTES = 8 };
static const uint64_t each_1 = 0x0101010101010101u, each_top = 0x8080808080808080u;

/* The point of 8 values with the signs of `signs`, bit i for value i. No value is 0, so that
 * ~value + 1 carries into no other byte. */
static void put_8(int8_t *q, uint64_t point, uint32_t signs) {
    uint64_t bit = signs * each_1 & 0x8040201008040201u;
    uint64_t top = ((bit + ~each_top) | bit) & each_top;
    uint64_t negative = top >> 7;
    point = (point ^ negative * 0xFF) + negative;
    memcpy(q, &point, BYTES);
}
static uint64_t pair(uint32_t first, uint32_t second) { return first | (uint64_t)second << 32; }
/* Seven signs are stored; the eighth makes their number even. */
static uint32_t even_signs(uint32_t seven) {
    uint32_t odd = seven ^ seven >> 4;
    odd ^= odd >> 2;
    odd ^= odd >> 1;
    return (seven & 127) | (odd & 1) << 7;
}

/* Per 32 values 8 bytes: four points, then 4 x 7 signs and a scale of 4 bits. */
static void read_iq2_xxs(const uint8_t *b, dsi_block_parts *p) {
    const float d = half_at(b);
    for (int g = 0; g < 8; g++) {
        const uint8_t *at = b + 2 + 8 * g;
        uint32_t signs = u32_at(at + 4);
        p->scale[g] = d * (0.5f + (float)(signs >> 28)) * 0.25f;
        for (int i = 0; i < 4; i++)
            put_8(p->q + 32 * g + 8 * i, dsi_grid_iq2_xxs[at[i]], even_signs(signs >> 7 * i & 127));
    }
}

static void read_iq2_xs(const uint8_t *b, dsi_block_parts *p) {
    const float d = half_at(b);
    for (int g = 0; g < 16; g++)
        p->scale[g] = d * (0.5f + (float)(b[66 + g / 2] >> g % 2 * 4 & 15)) * 0.25f;
    for (int i = 0; i < 32; i++) {
        uint32_t code = dsi_load_u16(b + 2, i);
        put_8(p->q + 8 * i, dsi_grid_iq2_xs[code & 511], even_signs(code >> 9));
    }
}

static void read_iq2_s(const uint8_t *b, dsi_block_parts *p) {
    const float d = half_at(b);
    const uint8_t *qs = b + 2, *signs = b + 34, *qh = b + 66, *scales = b + 74;
    for (int g = 0; g < 16; g++)
        p->scale[g] = d * (0.5f + (float)(scales[g / 2] >> g % 2 * 4 & 15)) * 0.25f;
    for (int i = 0; i < 32; i++)
        put_8(p->q + 8 * i, dsi_grid_iq2_s[qs[i] | (qh[i / 4] >> i % 4 * 2 & 3) << 8], signs[i]);
}

static void read_iq3_xxs(const uint8_t *b, dsi_block_parts *p) {
    const float d = half_at(b);
    const uint8_t *qs = b + 2;
    for (int g = 0; g < 8; g++) {
        uint32_t signs = u32_at(b + 66 + 4 * g);
        p->scale[g] = d * (0.5f + (float)(signs >> 28)) * 0.5f;
        for (int i = 0; i < 4; i++, qs += 2)
            put_8(p->q + 32 * g + 8 * i, pair(dsi_grid_iq3_xxs[qs[0]], dsi_grid_iq3_xxs[qs[1]]),
                  even_signs(signs >> 7 * i & 127));
    }
}

static void read_iq3_s(const uint8_t *b, dsi_block_parts *p) {
    const float d = half_at(b);
    const uint8_t *qs = b + 2, *qh = b + 66, *signs = b + 74, *scales = b + 106;
    for (int g = 0; g < 8; g++)
        p->scale[g] = d * (float)(1 + 2 * (scales[g / 2] >> g % 2 * 4 & 15));
    for (int i = 0; i < 32; i++, qs += 2) {
        int high = qh[i / 4] >> i % 4 * 2;
        put_8(p->q + 8 * i,
              pair(dsi_grid_iq3_s[qs[0] | (high & 1) << 8],
                   dsi_grid_iq3_s[qs[1] | (high >> 1 & 1) << 8]),
              signs[i]);
    }
}

/* A point of -1, 0, 1, all of them moved by an eighth up or (down) down: in eighths. */
static void put_eighths(int8_t *q, uint64_t point, bool down) {
    uint64_t eight = point << 3 & 0xF8F8F8F8F8F8F8F8u;
    /* Less 1 in each byte, without a borrow from the next. */
    uint64_t less = ((eight | each_top) - each_1) ^ (~eight & each_top);
    eight = down ? less : eight + each_1;
    memcpy(q, &eight, BYTES);
}

static void read_iq1_s(const uint8_t *b, dsi_block_parts *p) {
    const float d = half_at(b);
    for (int g = 0; g < 8; g++) {
        uint32_t qh = dsi_load_u16(b + 34, g);
        p->scale[g] = d * (float)(2 * (qh >> 12 & 7) + 1) * 0.125f;
        for (int i = 0; i < 4; i++)
            put_eighths(p->q + 32 * g + 8 * i,
                        dsi_grid_iq1_s[b[2 + 4 * g + i] | (qh >> 3 * i & 7) << 8], qh >> 15 != 0);
    }
}

/* The f16 of the block is spread over the tops of four words of scales. */
static void read_iq1_m(const uint8_t *b, dsi_block_parts *p) {
    const uint8_t *qh = b + 32, *scales = b + 48;
    uint32_t half = 0;
    for (int i = 0; i < 4; i++) half |= (uint32_t)dsi_load_u16(scales, i) >> 12 << 4 * i;
    const float d = dsi_f16_to_f32((uint16_t)half);
    for (int g = 0; g < 16; g++)
        p->scale[g] = d * (float)(2 * (dsi_load_u16(scales, g / 4) >> g % 4 * 3 & 7) + 1) * 0.125f;
    for (int i = 0; i < 32; i++) {
        int high = qh[i / 2] >> i % 2 * 4;
        put_eighths(p->q + 8 * i, dsi_grid_iq1_s[b[i] | (high & 7) << 8], (high & 8) != 0);
    }
}

/* ---- 256 values of -1, 0, 1 --------------------------------------------------------------------
 */

/* Digit i of five (to base 3, the first the most significant) of a byte that holds their number as
 * a fraction of 256. */
static int8_t trit(uint8_t byte, int i) {
    static const uint8_t power[5] = {1, 3, 9, 27, 81};
    return (int8_t)(((uint8_t)(byte * power[i]) * 3 >> 8) - 1);
}

static void read_tq1_0(const uint8_t *b, dsi_block_parts *p) {
    for (int i = 0; i < 160; i++) p->q[i] = trit(b[i % 32], i / 32);
    for (int i = 0; i < 80; i++) p->q[160 + i] = trit(b[32 + i % 16], i / 16);
    for (int i = 0; i < 16; i++) p->q[240 + i] = trit(b[48 + i % 4], i / 4);
    for (int g = 0; g < 8; g++) p->scale[g] = half_at(b + 52);
}

static void read_tq2_0(const uint8_t *b, dsi_block_parts *p) {
    read_all_bits2(b, p->q);
    for (int i = 0; i < 256; i++) p->q[i]--;
    for (int g = 0; g < 8; g++) p->scale[g] = half_at(b + 64);
}

void dsi_block_read(dsi_dtype dtype, const uint8_t *block, dsi_block_parts *parts) {
    static void (*const reader[64])(const uint8_t *b, dsi_block_parts *p) = {
        [DSI_DTYPE_MXFP4 - DSI_DTYPE_BLOCKS] = read_mxfp4,
        [DSI_DTYPE_NVFP4 - DSI_DTYPE_BLOCKS] = read_nvfp4,
        [DSI_DTYPE_Q2_K - DSI_DTYPE_BLOCKS] = read_q2_k,
        [DSI_DTYPE_Q3_K - DSI_DTYPE_BLOCKS] = read_q3_k,
        [DSI_DTYPE_Q4_K - DSI_DTYPE_BLOCKS] = read_q4_k,
        [DSI_DTYPE_Q5_K - DSI_DTYPE_BLOCKS] = read_q5_k,
        [DSI_DTYPE_Q6_K - DSI_DTYPE_BLOCKS] = read_q6_k,
        [DSI_DTYPE_IQ4_XS - DSI_DTYPE_BLOCKS] = read_iq4_xs,
        [DSI_DTYPE_IQ2_XXS - DSI_DTYPE_BLOCKS] = read_iq2_xxs,
        [DSI_DTYPE_IQ2_XS - DSI_DTYPE_BLOCKS] = read_iq2_xs,
        [DSI_DTYPE_IQ2_S - DSI_DTYPE_BLOCKS] = read_iq2_s,
        [DSI_DTYPE_IQ3_XXS - DSI_DTYPE_BLOCKS] = read_iq3_xxs,
        [DSI_DTYPE_IQ3_S - DSI_DTYPE_BLOCKS] = read_iq3_s,
        [DSI_DTYPE_IQ1_S - DSI_DTYPE_BLOCKS] = read_iq1_s,
        [DSI_DTYPE_IQ1_M - DSI_DTYPE_BLOCKS] = read_iq1_m,
        [DSI_DTYPE_TQ1_0 - DSI_DTYPE_BLOCKS] = read_tq1_0,
        [DSI_DTYPE_TQ2_0 - DSI_DTYPE_BLOCKS] = read_tq2_0,
    };
    memset(parts->min, 0, sizeof parts->min);
    uint32_t number = dtype - DSI_DTYPE_BLOCKS;
    if (number < 64 && reader[number])
        reader[number](block, parts);
    else
        read_small(dtype, block, parts);
}
