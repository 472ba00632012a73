/* amx_model.h: what the instructions of AMX do, written down in C after the pseudo-code of Intel's
 * SDM (volume 2: LDTILECFG, TILELOADD, TILESTORED, TDPBF16PS, TDPBSSD, ...): for amx_double.h,
 * which puts it in the place of the intrinsics, and for test_amx, which puts it in the place of the
 * instructions. What the processor would refuse (#UD, #GP) ends the process. EMULATED: it proves
 * the answers, never the speed. */
#ifndef DSI_TESTS_AMX_MODEL_H
#define DSI_TESTS_AMX_MODEL_H

#include "bf16_double.h"
#include <string.h>

enum { AMX_TILES = 8, AMX_ROWS = 16, AMX_ROW_BYTES = 64 };

/* The tile state of one thread. */
typedef struct amx_state {
    bool configured;
    uint8_t config[64]; /* as it was loaded */
    uint16_t row_bytes[AMX_TILES];
    uint8_t rows[AMX_TILES];
    _Alignas(64) uint8_t tile[AMX_TILES][AMX_ROWS][AMX_ROW_BYTES];
    uint64_t n_products; /* instructions that multiplied, for tests */
} amx_state;

/* What must hold, or the processor raises an exception. */
static inline void amx_require(bool holds) {
    if (!holds) __builtin_trap();
}

static inline void amx_release(amx_state *s) {
    uint64_t n_products = s->n_products;
    memset(s, 0, sizeof *s);
    s->n_products = n_products;
}

/* Palette 0 is the initial state. Reserved bytes must be 0, and so must what lies behind tile 7. */
static inline void amx_loadconfig(amx_state *s, const void *config) {
    uint8_t bytes[64], palette, start_row;
    memcpy(bytes, config, sizeof bytes);
    amx_release(s);
    palette = bytes[0], start_row = bytes[1];
    amx_require(palette <= 1);
    if (palette == 0) return;
    amx_require(start_row == 0); /* only an interrupted load leaves another one */
    for (int i = 2; i < 16; i++) amx_require(bytes[i] == 0);
    for (int t = 0; t < 16; t++) {
        uint16_t row_bytes;
        memcpy(&row_bytes, bytes + 16 + 2 * t, sizeof row_bytes);
        uint8_t rows = bytes[48 + t];
        if (t >= AMX_TILES) {
            amx_require(row_bytes == 0 && rows == 0);
            continue;
        }
        amx_require(row_bytes <= AMX_ROW_BYTES && rows <= AMX_ROWS);
        amx_require((row_bytes == 0) == (rows == 0));
        s->row_bytes[t] = row_bytes;
        s->rows[t] = rows;
    }
    memcpy(s->config, bytes, sizeof bytes);
    s->configured = true;
}

static inline void amx_require_tile(const amx_state *s, int t) {
    amx_require(s->configured && t >= 0 && t < AMX_TILES && s->rows[t] > 0);
}

static inline void amx_zero(amx_state *s, int t) {
    amx_require_tile(s, t);
    memset(s->tile[t], 0, sizeof s->tile[t]);
}

/* Reads row_bytes of every configured row; the rest of the tile becomes 0. */
static inline void amx_loadd(amx_state *s, int t, const void *base, int64_t stride) {
    amx_require_tile(s, t);
    memset(s->tile[t], 0, sizeof s->tile[t]);
    for (int64_t r = 0; r < s->rows[t]; r++)
        memcpy(s->tile[t][r], (const uint8_t *)base + r * stride, s->row_bytes[t]);
}

static inline void amx_stored(const amx_state *s, int t, void *base, int64_t stride) {
    amx_require_tile(s, t);
    for (int64_t r = 0; r < s->rows[t]; r++)
        memcpy((uint8_t *)base + r * stride, s->tile[t][r], s->row_bytes[t]);
}

/* c is rows x n, a rows x k, b k x n, in units of 4 bytes; no two may be the same tile. */
static inline void amx_require_product(amx_state *s, int c, int a, int b) {
    amx_require_tile(s, c);
    amx_require_tile(s, a);
    amx_require_tile(s, b);
    amx_require(c != a && c != b && a != b);
    amx_require(s->row_bytes[a] % 4 == 0 && s->row_bytes[b] % 4 == 0 && s->row_bytes[c] % 4 == 0);
    amx_require(s->rows[c] == s->rows[a] && s->row_bytes[c] == s->row_bytes[b]);
    amx_require(s->row_bytes[a] / 4 == s->rows[b]);
    s->n_products++;
}

/* For every row of c: the products of even elements as one chain of fused multiply-adds from 0 on,
 * those of odd elements as another, their sum, and that added to c; each step rounded to nearest
 * even, denormals taken as zero and never made. */
static inline void amx_dpbf16ps(amx_state *s, int c, int a, int b) {
    amx_require_product(s, c, a, b);
    const __m512i odd = _mm512_set1_epi32((int)0xFFFF0000);
    for (int m = 0; m < s->rows[c]; m++) {
        __m512 even_sum = _mm512_setzero_ps(), odd_sum = _mm512_setzero_ps();
        for (int k = 0; k < s->row_bytes[a] / 4; k++) {
            int pair;
            memcpy(&pair, s->tile[a][m] + 4 * k, sizeof pair);
            __m512i x = _mm512_set1_epi32(pair), w = _mm512_load_si512(s->tile[b][k]);
            __m512 x0 = dsi_double_flush(_mm512_castsi512_ps(_mm512_slli_epi32(x, 16)));
            __m512 w0 = dsi_double_flush(_mm512_castsi512_ps(_mm512_slli_epi32(w, 16)));
            __m512 x1 = dsi_double_flush(_mm512_castsi512_ps(_mm512_and_si512(x, odd)));
            __m512 w1 = dsi_double_flush(_mm512_castsi512_ps(_mm512_and_si512(w, odd)));
            even_sum = dsi_double_fma(x0, w0, even_sum);
            odd_sum = dsi_double_fma(x1, w1, odd_sum);
        }
        __m512 before = dsi_double_flush(_mm512_load_ps(s->tile[c][m]));
        __m512 sum = dsi_double_flush(_mm512_add_ps(even_sum, odd_sum));
        sum = dsi_double_flush(_mm512_add_ps(before, sum));
        uint8_t row[AMX_ROW_BYTES] = {0};
        _mm512_storeu_ps(row, sum);
        memset(s->tile[c][m], 0, AMX_ROW_BYTES);
        memcpy(s->tile[c][m], row, s->row_bytes[c]);
    }
    for (int m = s->rows[c]; m < AMX_ROWS; m++) memset(s->tile[c][m], 0, AMX_ROW_BYTES);
}

/* Sums of four products of bytes, modulo 2^32; a_signed, b_signed: which operand is signed. */
static inline void amx_dpb(amx_state *s, int c, int a, int b, bool a_signed, bool b_signed) {
    amx_require_product(s, c, a, b);
    for (int m = 0; m < s->rows[c]; m++)
        for (int k = 0; k < s->row_bytes[a] / 4; k++)
            for (int n = 0; n < s->row_bytes[c] / 4; n++) {
                uint32_t sum;
                memcpy(&sum, s->tile[c][m] + 4 * n, sizeof sum);
                for (int i = 0; i < 4; i++) {
                    uint8_t x = s->tile[a][m][4 * k + i], w = s->tile[b][k][4 * n + i];
                    int32_t x_value = a_signed ? (int8_t)x : x, w_value = b_signed ? (int8_t)w : w;
                    sum += (uint32_t)(x_value * w_value);
                }
                memcpy(s->tile[c][m] + 4 * n, &sum, sizeof sum);
            }
    for (int m = s->rows[c]; m < AMX_ROWS; m++) memset(s->tile[c][m], 0, AMX_ROW_BYTES);
}

#endif
