/* quantize_blocks.c: rows of f32 as the blocks of a GGUF file: Q8_0, Q4_K, and the plain types. */
#include "quantize.h"

#include "../../kernels/formats.h"
#include "quantize_search.h"
#include <math.h>
#include <string.h>

enum { Q8_0_BLOCK = 32, Q8_0_BYTES = 2 + Q8_0_BLOCK, Q4_K_BYTES = 4 + 12 + Q4_K_BLOCK / 2 };

/* To nearest, ties to even: behind this no fraction is left below 2^22. */
static const float rounding = 0x1.8p23f;

/* The f16 of a number goes to `to`; what it stands for comes back. */
static float put_f16(float value, uint8_t *to) {
    uint16_t half = dsi_f32_to_f16(value);
    memcpy(to, &half, sizeof half);
    return dsi_f16_to_f32(half);
}

/* ---- Q8_0: 32 codes of 8 bits with one scale ------------------------------------------------ */

static float pack_q8_0(const float *x, uint8_t *to) {
    float top = 0, lost = 0;
    for (int i = 0; i < Q8_0_BLOCK; i++) top = fabsf(x[i]) > top ? fabsf(x[i]) : top;
    const float scale = put_f16(top / 127, to), per_unit = scale > 0 ? 1 / scale : 0;
    for (int i = 0; i < Q8_0_BLOCK; i++) {
        float code = x[i] * per_unit;
        code = code < 127 ? code : 127; /* the scale may have been rounded down */
        code = code > -127 ? code : -127;
        code = code + rounding - rounding;
        float gap = x[i] - scale * code;
        lost += gap * gap;
        to[2 + i] = (uint8_t)(int8_t)(int32_t)code;
    }
    return lost;
}

/* ---- Q4_K: eight runs of 32 codes, each with a scale and an offset of six bits --------------- */

/* Eight scales and eight offsets in 12 bytes; the upper two bits of the last four of each lie above
 * the first four. */
static void put_six_bits(const quantize_q4_k *b, uint8_t *to) {
    for (int j = 0; j < 4; j++) {
        to[j] = (uint8_t)(b->scale[j] | (b->scale[j + 4] >> 4) << 6);
        to[j + 4] = (uint8_t)(b->offset[j] | (b->offset[j + 4] >> 4) << 6);
        to[j + 8] = (uint8_t)((b->scale[j + 4] & 15) | (b->offset[j + 4] & 15) << 4);
    }
}

static void put_head(const quantize_q4_k *b, uint8_t *to) {
    put_f16(b->unit, to);
    put_f16(b->offset_unit, to + 2);
    put_six_bits(b, to + 4);
}

void quantize_put_q4_k(const quantize_q4_k *block, const uint8_t codes[Q4_K_BLOCK], uint8_t *to) {
    put_head(block, to);
    for (int j = 0; j < Q4_K_RUNS; j += 2)
        for (int i = 0; i < Q4_K_RUN; i++)
            to[16 + j / 2 * Q4_K_RUN + i] =
                (uint8_t)(codes[j * Q4_K_RUN + i] | codes[(j + 1) * Q4_K_RUN + i] << 4);
}

/* n_blocks of them, which follow each other. */
static void pack_q4_k(const quantize_search *search, const float *x, int64_t n_blocks, uint8_t *to,
                      double error[2]) {
    for (int64_t b = 0; b < n_blocks; b += Q4_K_PAIR) {
        quantize_lanes rows = {.n = Q4_K_RUN};
        quantize_q4_k blocks[Q4_K_PAIR];
        const int64_t n = dsi_min_i64(Q4_K_PAIR, n_blocks - b); /* a last one is worked on twice */
        for (int l = 0; l < QUANTIZE_LANES; l++)
            rows.x[l] = x + (b + (l / Q4_K_RUNS) % n) * Q4_K_BLOCK + l % Q4_K_RUNS * Q4_K_RUN;
        search->q4_k(&rows, blocks);
        for (int64_t i = 0; i < n; i++, to += Q4_K_BYTES) {
            put_head(&blocks[i], to);
            error[0] += (double)search->put_q4_k(x + (b + i) * Q4_K_BLOCK, &blocks[i], to + 16);
        }
    }
}

/* ---- Rows ----------------------------------------------------------------------------------- */

static void pack_plain(dsi_dtype dtype, const float *x, int64_t n, uint8_t *to) {
    if (dtype == DSI_DTYPE_F32) memcpy(to, x, (size_t)n * sizeof *x);
    if (dtype == DSI_DTYPE_F32) return;
    for (int64_t i = 0; i < n; i++) {
        uint16_t half = dtype == DSI_DTYPE_F16 ? dsi_f32_to_f16(x[i]) : dsi_f32_to_bf16(x[i]);
        memcpy(to + 2 * i, &half, sizeof half);
    }
}

/* Rows are whole blocks, so all of them together are, too. */
void quantize_pack(const quantize_plan *plan, dsi_dtype dtype, const float *x, int64_t n, int64_t k,
                   uint8_t *to, double error[2]) {
    const int64_t all = n * k;
    error[0] = error[1] = 0;
    if (dtype == DSI_DTYPE_Q4_K) pack_q4_k(plan->search, x, all / Q4_K_BLOCK, to, error);
    for (int64_t i = 0; dtype == DSI_DTYPE_Q8_0 && i < all; i += Q8_0_BLOCK, to += Q8_0_BYTES)
        error[0] += (double)pack_q8_0(x + i, to);
    if (dtype < DSI_DTYPE_BLOCKS) pack_plain(dtype, x, all, to);
    error[1] = quantize_squares(x, all);
}
