/* amx.h: matmul on the tiles of AMX (Intel Sapphire Rapids and later), BF16 products.
 *
 * A tile is 16 rows of 64 bytes. TDPBF16PS multiplies 16 activation rows x 32 columns, as they lie
 * in memory, by 32 columns x 16 weight rows in the order [pair of columns][weight row][2]. The
 * order along K, the same for every number of rows: inside 32 columns the instruction's own (the
 * even and the odd columns as two chains, then their sum); the sums of 32 columns one by one into a
 * zeroed tile, `part`; the parts of a block of columns, times the block's scale, into y.
 *
 * Weights stay as they are in the file: a panel of 32 rows x 256 columns is decoded and turned into
 * tiles in scratch, once for all activation rows, of which 32 go together: 2x2 tiles of sums, two
 * of each operand, all eight. Parts go through memory, where the vector units add them to y while
 * the tiles compute the next block.
 *
 * A kernel loads the tile configuration when it begins and releases it when it ends, so that no
 * thread keeps 8 KB of tile state between two calls. */
#ifndef DSI_KERNELS_MATMUL_AMX_H
#define DSI_KERNELS_MATMUL_AMX_H

#include "../formats.h"
#include "../kernels.h"
#include "../simd.h"
#include "e4m3_bf16.h"
#include <immintrin.h>
#include <string.h>

enum {
    DSI_AMX_ROWS = 16,      /* rows of a tile, and f32 in one of its rows */
    DSI_AMX_ROW_BYTES = 64, /* bytes in a row of a tile */
    DSI_AMX_TILE_BYTES = DSI_AMX_ROWS * DSI_AMX_ROW_BYTES,
    DSI_AMX_STEP = 32, /* columns of bf16 in a tile */
    DSI_AMX_M = 2 * DSI_AMX_ROWS,
    DSI_AMX_N = 2 * DSI_AMX_ROWS,
    DSI_AMX_PANEL_K = 256, /* panel, activations, parts and y of a turn: 44 KB of a cache of 48 */
    DSI_AMX_BLOCKS = DSI_AMX_PANEL_K / DSI_BLOCK
};

/* What is loaded from memory is what was stored to it: compilers see no memory in tile loads. */
#define DSI_AMX_FENCE() __asm__ volatile("" ::: "memory")

DSI_INLINE int64_t dsi_min(int64_t a, int64_t b) { return a < b ? a : b; }
DSI_INLINE int64_t dsi_round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }
/* Columns whose products meet in a part: those of one scale, or as many as a panel has. */
DSI_INLINE int64_t dsi_amx_block(dsi_dtype w) {
    return w == DSI_DTYPE_E4M3 ? DSI_BLOCK : DSI_AMX_PANEL_K;
}

/* ---- Tiles: 0 to 3 are the sums [activation rows][weight rows], 4 and 5 activations, 6 and 7
 * weights ---- */

/* Memory layout of palette 1 (Intel SDM, LDTILECFG). */
typedef struct dsi_amx_config {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
} dsi_amx_config;

/* For blocks of m activation rows, 1 to 32. */
DSI_INLINE void dsi_amx_configure(int64_t m) {
    _Alignas(64) dsi_amx_config config = {.palette = 1};
    const uint8_t first = (uint8_t)dsi_min(m, DSI_AMX_ROWS), rest = (uint8_t)(m - first);
    const uint8_t rows[8] = {first, first, rest, rest, first, rest, DSI_AMX_ROWS, DSI_AMX_ROWS};
    for (int t = 0; t < 8; t++) {
        config.rows[t] = rows[t];
        config.row_bytes[t] = rows[t] > 0 ? DSI_AMX_ROW_BYTES : 0;
    }
    DSI_AMX_FENCE();
    _tile_loadconfig(&config);
}

/* A block of activation rows and the tiles of weights that it meets. */
typedef struct dsi_amx_turn {
    const uint8_t *x; /* column 0 of the turn */
    int64_t x_stride; /* bytes */
    const uint8_t *w; /* [step][2] tiles */
    bool two_m, two_n;
} dsi_amx_turn;

DSI_INLINE void dsi_amx_zero(const dsi_amx_turn *t) {
    _tile_zero(0);
    if (t->two_n) _tile_zero(1);
    if (t->two_m) _tile_zero(2);
    if (t->two_m && t->two_n) _tile_zero(3);
}

/* The products of 32 columns. */
DSI_INLINE void dsi_amx_step(const dsi_amx_turn *t, int64_t step) {
    const uint8_t *x = t->x + step * DSI_AMX_ROW_BYTES;
    const uint8_t *w = t->w + step * 2 * DSI_AMX_TILE_BYTES;
    _tile_loadd(6, w, DSI_AMX_ROW_BYTES);
    _tile_loadd(4, x, t->x_stride);
    _tile_dpbf16ps(0, 4, 6);
    if (t->two_n) {
        _tile_loadd(7, w + DSI_AMX_TILE_BYTES, DSI_AMX_ROW_BYTES);
        _tile_dpbf16ps(1, 4, 7);
    }
    if (!t->two_m) return;
    _tile_loadd(5, x + DSI_AMX_ROWS * t->x_stride, t->x_stride);
    _tile_dpbf16ps(2, 5, 6);
    if (t->two_n) _tile_dpbf16ps(3, 5, 7);
}

/* part: four tiles. */
DSI_INLINE void dsi_amx_store(const dsi_amx_turn *t, float *part) {
    enum { TILE = DSI_AMX_ROWS * DSI_AMX_ROWS };
    _tile_stored(0, part, DSI_AMX_ROW_BYTES);
    if (t->two_n) _tile_stored(1, part + TILE, DSI_AMX_ROW_BYTES);
    if (t->two_m) _tile_stored(2, part + 2 * TILE, DSI_AMX_ROW_BYTES);
    if (t->two_m && t->two_n) _tile_stored(3, part + 3 * TILE, DSI_AMX_ROW_BYTES);
}

/* ---- Sums: parts that wait to be added to y -------------------------------------------------- */

typedef struct dsi_amx_sum {
    const float *part;  /* four tiles */
    const float *scale; /* of each of 32 weight rows */
    float *y;           /* first row and column */
    int64_t y_stride, rows;
    __mmask16 lanes[2]; /* columns of y, by tile; the second may be none */
    bool first;         /* nothing is in y yet */
} dsi_amx_sum;

/* y += scale * part for tile q of four. */
DSI_INLINE void dsi_amx_add(const dsi_amx_sum *s, int64_t q) {
    const __mmask16 lanes = s->lanes[q % 2], known = s->first ? 0 : lanes;
    const int64_t row = q / 2 * DSI_AMX_ROWS, rows = dsi_min(DSI_AMX_ROWS, s->rows - row);
    if (lanes == 0) return;
    const __m512 scale = _mm512_loadu_ps(s->scale + q % 2 * DSI_AMX_ROWS);
    const float *part = s->part + q * DSI_AMX_ROWS * DSI_AMX_ROWS;
    float *y = s->y + row * s->y_stride + q % 2 * DSI_AMX_ROWS;
    for (int64_t r = 0; r < rows; r++, y += s->y_stride, part += DSI_AMX_ROWS)
        _mm512_mask_storeu_ps(
            y, lanes,
            _mm512_fmadd_ps(scale, _mm512_loadu_ps(part), _mm512_maskz_loadu_ps(known, y)));
}

/* The products of `steps` tiles along K into `part`; meanwhile `waiting` is added to y. */
DSI_INLINE void dsi_amx_run(const dsi_amx_turn *turn, int64_t steps, float *part,
                            const dsi_amx_sum *waiting) {
    DSI_AMX_FENCE();
    dsi_amx_zero(turn);
    for (int64_t s = 0; s < steps || s < 4; s++) {
        if (s < steps) dsi_amx_step(turn, s);
        if (s < 4) dsi_amx_add(waiting, s);
    }
    dsi_amx_store(turn, part);
}

/* ---- Weights --------------------------------------------------------------------------------- */

/* 16 bytes, from byte `at` on, of each of 16 rows; of them `count` are read, the others are 0.
 * Vector i holds row 4 L + i in its 128-bit lane L. */
DSI_INLINE void dsi_amx_load_rows(const uint8_t *const row[DSI_AMX_ROWS], int64_t at, int64_t count,
                                  __m512i to[4]) {
    const __mmask16 bytes = (__mmask16)(count >= 16 ? 0xFFFF : count > 0 ? (1u << count) - 1u : 0);
    DSI_UNROLL
    for (int i = 0; i < 4; i++) {
        __m128i lane[4];
        DSI_UNROLL
        for (int l = 0; l < 4; l++)
            lane[l] = count >= 16
                          ? _mm_loadu_si128((const __m128i *)(const void *)(row[4 * l + i] + at))
                          : _mm_maskz_loadu_epi8(bytes, row[4 * l + i] + (count > 0 ? at : 0));
        /* Masked broadcasts from memory use no shuffle unit. */
        to[i] = _mm512_broadcast_i32x4(lane[0]);
        to[i] = _mm512_mask_broadcast_i32x4(to[i], 0x00F0, lane[1]);
        to[i] = _mm512_mask_broadcast_i32x4(to[i], 0x0F00, lane[2]);
        to[i] = _mm512_mask_broadcast_i32x4(to[i], 0xF000, lane[3]);
    }
}

/* Turns 16 bytes of 16 rows into four rows of a tile: 4 bytes of each row, row after row. */
DSI_INLINE void dsi_amx_turn_dwords(const __m512i rows[4], uint8_t *to) {
    const __m512i low01 = _mm512_unpacklo_epi32(rows[0], rows[1]);
    const __m512i low23 = _mm512_unpacklo_epi32(rows[2], rows[3]);
    const __m512i high01 = _mm512_unpackhi_epi32(rows[0], rows[1]);
    const __m512i high23 = _mm512_unpackhi_epi32(rows[2], rows[3]);
    _mm512_store_si512(to, _mm512_unpacklo_epi64(low01, low23));
    _mm512_store_si512(to + 64, _mm512_unpackhi_epi64(low01, low23));
    _mm512_store_si512(to + 128, _mm512_unpacklo_epi64(high01, high23));
    _mm512_store_si512(to + 192, _mm512_unpackhi_epi64(high01, high23));
}

/* Turns 16 codes of 16 rows into eight rows of a tile of bf16: two codes of each row. */
DSI_INLINE void dsi_amx_turn_e4m3(const __m512i rows[4], uint8_t *to) {
    const __m512i low01 = _mm512_unpacklo_epi16(rows[0], rows[1]);
    const __m512i low23 = _mm512_unpacklo_epi16(rows[2], rows[3]);
    const __m512i high01 = _mm512_unpackhi_epi16(rows[0], rows[1]);
    const __m512i high23 = _mm512_unpackhi_epi16(rows[2], rows[3]);
    const __m512i pairs[4] = {
        _mm512_unpacklo_epi32(low01, low23), _mm512_unpackhi_epi32(low01, low23),
        _mm512_unpacklo_epi32(high01, high23), _mm512_unpackhi_epi32(high01, high23)};
    DSI_UNROLL
    for (int p = 0; p < 4; p++) {
        const dsi_e4m3_bf16 weights = dsi_e4m3_to_bf16(pairs[p]);
        _mm512_store_si512(to + 128 * p, weights.first);
        _mm512_store_si512(to + 128 * p + 64, weights.second);
    }
}

/* Columns [k, k + columns) of weight rows n.. of the call as tiles: [step][2], of which this fills
 * number `tile`. Rows past the last repeat it; columns behind the last are 0. Meanwhile the next
 * panel of 32 rows is brought closer, in the order of memory. */
DSI_INLINE void dsi_amx_decode(const dsi_matmul_args *a, int64_t n, int64_t k, int64_t columns,
                               dsi_dtype w, int64_t tile, uint8_t *panel) {
    const int64_t size = dsi_element_bytes(w), group = 16 / size;
    const uint8_t *row[DSI_AMX_ROWS];
    for (int64_t r = 0; r < DSI_AMX_ROWS; r++)
        row[r] = a->w + (dsi_min(n + tile * DSI_AMX_ROWS + r, a->n1 - 1) * a->w_stride + k) * size;
    uintptr_t ahead = (uintptr_t)a->w + (uintptr_t)((n + DSI_AMX_N) * a->w_stride * size);
    ahead += (uintptr_t)((k * 2 + tile * columns) * DSI_AMX_ROWS * size);
    for (int64_t c = 0; c < columns; c += DSI_AMX_STEP) {
        uint8_t *to = panel + (c / DSI_AMX_STEP * 2 + tile) * DSI_AMX_TILE_BYTES;
        for (int64_t g = 0; g < DSI_AMX_STEP; g += group, to += group * 2 * DSI_AMX_ROWS) {
            __m512i rows[4];
            dsi_amx_load_rows(row, (c + g) * size, (columns - c - g) * size, rows);
            if (w == DSI_DTYPE_E4M3)
                dsi_amx_turn_e4m3(rows, to);
            else
                dsi_amx_turn_dwords(rows, to);
        }
        for (int64_t b = 0; b < DSI_AMX_STEP * DSI_AMX_ROWS * size; b += 64, ahead += 64)
            _mm_prefetch((const char *)ahead, _MM_HINT_T0);
    }
}

/* scales[block of the panel][weight row]: 1 where the weights have none. */
DSI_INLINE void dsi_amx_scales(const dsi_matmul_args *a, int64_t n, int64_t k, int64_t columns,
                               dsi_dtype w, float scales[DSI_AMX_BLOCKS][DSI_AMX_N]) {
    for (int64_t b = 0; b * dsi_amx_block(w) < columns; b++)
        for (int64_t r = 0; r < DSI_AMX_N; r++) {
            const int64_t row = dsi_min(n + r, a->n1 - 1) / DSI_BLOCK;
            scales[b][r] =
                w == DSI_DTYPE_E4M3
                    ? dsi_load_f32(a->scale, row * a->scale_stride + k / DSI_BLOCK + b)
                    : 1.0f;
        }
}

/* ---- Activations ----------------------------------------------------------------------------- */

DSI_INLINE int64_t dsi_amx_x_row(const dsi_matmul_args *a, int64_t i) {
    return a->x_rows != NULL ? a->x_rows[i] : i;
}

/* Points the turn at columns [k, k + columns) of rows [i, i + rows) of the call, as tiles that have
 * room for `tile_rows`: where they lie, if they lie at equal distances and fill the tiles, else in
 * a copy with zeros around. */
DSI_INLINE void dsi_amx_set_x(const dsi_matmul_args *a, int64_t i, int64_t rows, int64_t tile_rows,
                              int64_t k, int64_t columns, uint8_t *copy, dsi_amx_turn *turn) {
    const uint8_t *x = (const uint8_t *)a->x + k * 2;
    const int64_t first = dsi_amx_x_row(a, i);
    const int64_t distance = rows > 1 ? dsi_amx_x_row(a, i + 1) - first : 0;
    bool fits = rows == tile_rows && columns % DSI_AMX_STEP == 0;
    for (int64_t r = 2; r < rows && fits; r++)
        fits = dsi_amx_x_row(a, i + r) == first + r * distance;
    if (fits) {
        turn->x = x + first * a->x_stride * 2;
        turn->x_stride = distance * a->x_stride * 2;
        return;
    }
    const size_t used = (size_t)columns * 2;
    const size_t whole = (size_t)dsi_round_up(columns, DSI_AMX_STEP) * 2;
    turn->x = copy;
    turn->x_stride = (int64_t)whole;
    for (int64_t r = 0; r < tile_rows; r++, copy += whole) {
        const size_t n = r < rows ? used : 0;
        if (n > 0) memcpy(copy, x + dsi_amx_x_row(a, i + r) * a->x_stride * 2, n);
        memset(copy + n, 0, whole - n);
    }
}

/* ---- The loops ------------------------------------------------------------------------------- */

/* Adds columns [k, k + columns) to y of weight rows [n, n + 32), for all activation rows. */
DSI_INLINE void dsi_amx_panel(const dsi_matmul_args *a, int64_t n, int64_t k, int64_t columns,
                              dsi_dtype w, const uint8_t *panel, uint8_t *copy) {
    _Alignas(64) float part[2][4 * DSI_AMX_ROWS * DSI_AMX_ROWS];
    float scales[DSI_AMX_BLOCKS][DSI_AMX_N];
    const int64_t n_rows = dsi_min(DSI_AMX_N, a->n1 - n), block = dsi_amx_block(w);
    const uint32_t lanes = n_rows >= 32 ? 0xFFFFFFFFu : (1u << n_rows) - 1u;
    dsi_amx_sum waiting = {.rows = 0, .lanes = {0, 0}};
    dsi_amx_turn turn = {.two_n = n_rows > DSI_AMX_ROWS};
    int written = 0;
    dsi_amx_scales(a, n, k, columns, w, scales);
    for (int64_t i = 0; i < a->m; i += DSI_AMX_M) {
        const int64_t rows = dsi_min(DSI_AMX_M, a->m - i);
        /* The tiles are configured once: for few rows exactly, else for 32. */
        const int64_t tile_rows = a->m <= DSI_AMX_M ? rows : dsi_round_up(rows, DSI_AMX_ROWS);
        turn.two_m = rows > DSI_AMX_ROWS;
        dsi_amx_set_x(a, i, rows, tile_rows, k, columns, copy, &turn);
        turn.w = panel;
        for (int64_t b = 0; b * block < columns; b++, written ^= 1) {
            const int64_t left = dsi_min(block, columns - b * block);
            dsi_amx_run(&turn, (left + DSI_AMX_STEP - 1) / DSI_AMX_STEP, part[written], &waiting);
            waiting = (dsi_amx_sum){.part = part[written],
                                    .scale = scales[b],
                                    .y = a->y + i * a->y_stride + n - a->n0,
                                    .y_stride = a->y_stride,
                                    .rows = rows,
                                    .lanes = {(__mmask16)lanes, (__mmask16)(lanes >> 16)},
                                    .first = k == 0 && b == 0};
            turn.x += block * 2;
            turn.w += block / DSI_AMX_STEP * 2 * DSI_AMX_TILE_BYTES;
        }
    }
    for (int64_t q = 0; q < 4; q++) dsi_amx_add(&waiting, q);
}

/* The matmul of weights of type w, a constant, and bf16 activations. */
DSI_INLINE void dsi_matmul_amx(const dsi_matmul_args *a, dsi_dtype w) {
    if (a->m <= 0 || a->n1 <= a->n0) return;
    if (a->k <= 0) {
        for (int64_t i = 0; i < a->m; i++)
            for (int64_t n = a->n0; n < a->n1; n++) a->y[i * a->y_stride + n - a->n0] = 0;
        return;
    }
    /* Half of the smallest scratch holds the panel of so few columns, the other half rows of x. */
    uint8_t *panel = a->scratch, *copy = panel + dsi_matmul_scratch_bytes(a->k) / 2;
    dsi_amx_configure(dsi_min(a->m, DSI_AMX_M));
    for (int64_t n = a->n0; n < a->n1; n += DSI_AMX_N)
        for (int64_t k = 0; k < a->k; k += DSI_AMX_PANEL_K) {
            const int64_t columns = dsi_min(DSI_AMX_PANEL_K, a->k - k);
            dsi_amx_decode(a, n, k, columns, w, 0, panel);
            if (a->n1 - n > DSI_AMX_ROWS) dsi_amx_decode(a, n, k, columns, w, 1, panel);
            dsi_amx_panel(a, n, k, columns, w, panel, copy);
        }
    _tile_release();
}

#endif
