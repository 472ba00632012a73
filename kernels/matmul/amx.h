/* amx.h: matmul on the tiles of AMX (Intel Sapphire Rapids and later): FP8 and BF16 weights with
 * BF16 activations, weights of 8 and 4 bits with activations of 8 bits.
 *
 * A tile is 16 rows of 64 bytes: 32 columns of bf16 or 64 of whole numbers. TDPBF16PS multiplies 16
 * activation rows, as they lie in memory, by weights in the order [2 columns][16 weight rows][2],
 * TDPBSSD by [4 columns][16 weight rows][4]. The order along K, the same for every number of rows:
 * inside a tile the instruction's own (of bf16 the even and the odd columns as two chains, then
 * their sum); the sums of tiles one by one into a zeroed tile, `part`; the parts of a block of
 * columns, times the block's multipliers, into y. Whole numbers are exact until then.
 *
 * Weights stay as they are in the file: a panel of 32 rows x 512 bytes of activations is decoded
 * and turned into tiles in scratch, once for all activation rows, of which 32 go together: 2x2
 * tiles of sums, two of each operand, all eight. Parts go through memory, where the vector units
 * add them to y while the tiles compute the next block.
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
    DSI_AMX_M = 2 * DSI_AMX_ROWS,
    DSI_AMX_N = 2 * DSI_AMX_ROWS,
    /* Of an activation row, in a turn: with them panel, parts and y take 44 KB of a cache of 48. */
    DSI_AMX_PANEL_BYTES = 512,
    DSI_AMX_BLOCKS = DSI_AMX_PANEL_BYTES / 32, /* blocks of columns in a panel, at most */
    DSI_AMX_K_MAX = 1 << 16 /* columns whose products surely fit into 32 bits, of either sign */
};

/* What is loaded from memory is what was stored to it: compilers see no memory in tile loads. */
#define DSI_AMX_FENCE() __asm__ volatile("" ::: "memory")

DSI_INLINE int64_t dsi_min(int64_t a, int64_t b) { return a < b ? a : b; }
DSI_INLINE int64_t dsi_round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

/* By the type of the weights: activations are whole numbers; the bytes of one. */
DSI_INLINE bool dsi_amx_is_a8(dsi_dtype w) { return w == DSI_DTYPE_I8 || w == DSI_DTYPE_I4; }
DSI_INLINE int64_t dsi_amx_x_bytes(dsi_dtype w) { return dsi_amx_is_a8(w) ? 1 : 2; }

/* Columns whose products meet in a part: those of one multiplier, or as many as a panel has. */
DSI_INLINE int64_t dsi_amx_block(const dsi_matmul_args *a, dsi_dtype w) {
    if (w == DSI_DTYPE_E4M3) return DSI_BLOCK;
    if (!dsi_amx_is_a8(w)) return DSI_AMX_PANEL_BYTES / 2;
    if (a->group_k >= a->k && a->x_group >= a->k && a->k <= DSI_AMX_K_MAX)
        return DSI_AMX_PANEL_BYTES;
    return a->group_k < dsi_min(a->k, DSI_BLOCK) ? a->group_k : DSI_BLOCK;
}

/* ---- Tiles: 0 to 3 are the sums [activation rows][weight rows], 4 and 5 activations, 6 and 7
 * weights ---- */

/* Memory layout of palette 1 (Intel SDM, LDTILECFG). */
typedef struct dsi_amx_config {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
} dsi_amx_config;

/* For blocks of m activation rows, 1 to 32, `bytes` of each in a step, 32 or 64. */
DSI_INLINE void dsi_amx_configure(int64_t m, int64_t bytes) {
    _Alignas(64) dsi_amx_config config = {.palette = 1};
    const uint8_t first = (uint8_t)dsi_min(m, DSI_AMX_ROWS), rest = (uint8_t)(m - first);
    const uint8_t deep = (uint8_t)(bytes / 4);
    const uint8_t rows[8] = {first, first, rest, rest, first, rest, deep, deep};
    for (int t = 0; t < 8; t++) {
        config.rows[t] = rows[t];
        config.row_bytes[t] = (uint16_t)(rows[t] == 0       ? 0
                                         : t == 4 || t == 5 ? bytes
                                                            : DSI_AMX_ROW_BYTES);
    }
    DSI_AMX_FENCE();
    _tile_loadconfig(&config);
}

/* A block of activation rows and the tiles of weights that it meets. */
typedef struct dsi_amx_turn {
    const uint8_t *x; /* first column of the panel */
    int64_t x_stride; /* bytes */
    const uint8_t *w; /* [64 bytes of x][2] tiles */
    int64_t at;       /* bytes of x to the turn's first column */
    int64_t bytes;    /* of x in a step: 32 or 64 */
    bool two_m, two_n;
} dsi_amx_turn;

DSI_INLINE void dsi_amx_zero(const dsi_amx_turn *t) {
    _tile_zero(0);
    if (t->two_n) _tile_zero(1);
    if (t->two_m) _tile_zero(2);
    if (t->two_m && t->two_n) _tile_zero(3);
}

#define DSI_AMX_DOT(sum, x, weights)                                                               \
    do {                                                                                           \
        if (dsi_amx_is_a8(w))                                                                      \
            _tile_dpbssd(sum, x, weights);                                                         \
        else                                                                                       \
            _tile_dpbf16ps(sum, x, weights);                                                       \
    } while (0)

/* The products of `bytes` columns. */
DSI_INLINE void dsi_amx_step(const dsi_amx_turn *t, int64_t step, dsi_dtype w) {
    const int64_t at = t->at + step * t->bytes;
    const uint8_t *x = t->x + at;
    const uint8_t *weights = t->w + at / DSI_AMX_ROW_BYTES * 2 * DSI_AMX_TILE_BYTES +
                             at % DSI_AMX_ROW_BYTES * DSI_AMX_ROWS;
    _tile_loadd(6, weights, DSI_AMX_ROW_BYTES);
    _tile_loadd(4, x, t->x_stride);
    DSI_AMX_DOT(0, 4, 6);
    if (t->two_n) {
        _tile_loadd(7, weights + DSI_AMX_TILE_BYTES, DSI_AMX_ROW_BYTES);
        DSI_AMX_DOT(1, 4, 7);
    }
    if (!t->two_m) return;
    _tile_loadd(5, x + DSI_AMX_ROWS * t->x_stride, t->x_stride);
    DSI_AMX_DOT(2, 5, 6);
    if (t->two_n) DSI_AMX_DOT(3, 5, 7);
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
    const float *part;  /* four tiles, of f32 or int32 */
    const float *scale; /* of each of 32 weight rows */
    float *y;           /* first row and column */
    int64_t rows, row;  /* how many, and the first one's number in the call */
    int64_t k;          /* the block's first column */
    __mmask16 lanes[2]; /* columns of y, by tile; the second may be none */
    bool first;         /* nothing is in y yet */
    bool whole, last;   /* int32 in y until the last part, over all of K */
} dsi_amx_sum;

DSI_INLINE int64_t dsi_amx_x_row(const dsi_matmul_args *a, int64_t i) {
    return a->x_rows != NULL ? a->x_rows[i] : i;
}

/* What y becomes: a row of `part` is added to `before`. */
DSI_INLINE __m512 dsi_amx_added(const dsi_matmul_args *a, const dsi_amx_sum *s, int64_t row,
                                __m512 scale, __m512 part, __m512 before, dsi_dtype w) {
    if (!dsi_amx_is_a8(w)) return _mm512_fmadd_ps(scale, part, before);
    __m512i sum = _mm512_castps_si512(part);
    if (s->whole) sum = _mm512_add_epi32(sum, _mm512_castps_si512(before));
    if (!s->last) return _mm512_castsi512_ps(sum);
    const int8_t *x = (const int8_t *)a->x + dsi_amx_x_row(a, row) * a->x_stride;
    scale = _mm512_mul_ps(scale, _mm512_set1_ps(dsi_a8_multipliers(x, a->k)[s->k / DSI_BLOCK]));
    __m512 value = _mm512_cvtepi32_ps(sum);
    return s->whole ? _mm512_mul_ps(scale, value) : _mm512_fmadd_ps(scale, value, before);
}

/* Adds tile q of four to y. */
DSI_INLINE void dsi_amx_add(const dsi_matmul_args *a, const dsi_amx_sum *s, int64_t q,
                            dsi_dtype w) {
    const __mmask16 lanes = s->lanes[q % 2], known = s->first ? 0 : lanes;
    const int64_t top = q / 2 * DSI_AMX_ROWS, rows = dsi_min(DSI_AMX_ROWS, s->rows - top);
    if (lanes == 0) return;
    const __m512 scale = _mm512_loadu_ps(s->scale + q % 2 * DSI_AMX_ROWS);
    const float *part = s->part + q * DSI_AMX_ROWS * DSI_AMX_ROWS;
    float *y = s->y + top * a->y_stride + q % 2 * DSI_AMX_ROWS;
    for (int64_t r = 0; r < rows; r++, y += a->y_stride, part += DSI_AMX_ROWS)
        _mm512_mask_storeu_ps(y, lanes,
                              dsi_amx_added(a, s, s->row + top + r, scale, _mm512_loadu_ps(part),
                                            _mm512_maskz_loadu_ps(known, y), w));
}

/* The products of `steps` tiles along K into `part`; meanwhile `waiting` is added to y. */
DSI_INLINE void dsi_amx_run(const dsi_matmul_args *a, const dsi_amx_turn *turn, int64_t steps,
                            float *part, const dsi_amx_sum *waiting, dsi_dtype w) {
    DSI_AMX_FENCE();
    dsi_amx_zero(turn);
    for (int64_t s = 0; s < steps || s < 4; s++) {
        if (s < steps) dsi_amx_step(turn, s, w);
        if (s < 4) dsi_amx_add(a, waiting, s, w);
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

/* Two vectors of tile rows out of the first and the other eight of every 16 bytes: E4M3 codes as
 * bf16, two values of four bits as two bytes, the lower first. */
DSI_INLINE dsi_wide dsi_amx_widen(dsi_dtype w, __m512i codes) {
    if (w == DSI_DTYPE_E4M3) return dsi_e4m3_to_bf16(codes);
    const __m512i four = _mm512_set1_epi8(15), offset = _mm512_set1_epi8(8);
    const __m512i low = _mm512_sub_epi8(_mm512_and_si512(codes, four), offset);
    const __m512i high =
        _mm512_sub_epi8(_mm512_and_si512(_mm512_srli_epi16(codes, 4), four), offset);
    return (dsi_wide){_mm512_unpacklo_epi8(low, high), _mm512_unpackhi_epi8(low, high)};
}

/* Turns 16 bytes of 16 rows into eight rows of a tile: 2 bytes of each row, widened to 4. */
DSI_INLINE void dsi_amx_turn_words(const __m512i rows[4], dsi_dtype w, uint8_t *to) {
    const __m512i low01 = _mm512_unpacklo_epi16(rows[0], rows[1]);
    const __m512i low23 = _mm512_unpacklo_epi16(rows[2], rows[3]);
    const __m512i high01 = _mm512_unpackhi_epi16(rows[0], rows[1]);
    const __m512i high23 = _mm512_unpackhi_epi16(rows[2], rows[3]);
    const __m512i words[4] = {
        _mm512_unpacklo_epi32(low01, low23), _mm512_unpackhi_epi32(low01, low23),
        _mm512_unpacklo_epi32(high01, high23), _mm512_unpackhi_epi32(high01, high23)};
    DSI_UNROLL
    for (int p = 0; p < 4; p++) {
        const dsi_wide wide = dsi_amx_widen(w, words[p]);
        _mm512_store_si512(to + 128 * p, wide.first);
        _mm512_store_si512(to + 128 * p + 64, wide.second);
    }
}

/* Columns [k, k + columns) of weight rows n.. of the call as tiles: [64 bytes of x][2], of which
 * this fills number `tile`. Rows past the last repeat it; columns behind the last are no matter, as
 * x is 0 there, but numbers. Meanwhile the next panel of 32 rows is brought closer, in the order of
 * memory. */
DSI_INLINE void dsi_amx_decode(const dsi_matmul_args *a, int64_t n, int64_t k, int64_t columns,
                               dsi_dtype w, int64_t tile, uint8_t *panel) {
    const bool widens = w == DSI_DTYPE_E4M3 || w == DSI_DTYPE_I4;
    const int64_t tile_columns = DSI_AMX_ROW_BYTES / dsi_amx_x_bytes(w);
    const int64_t tile_bytes = widens ? 32 : 64; /* of a weight row in a tile */
    const int64_t n_bytes = dsi_row_bytes(w, columns);
    const uint8_t *row[DSI_AMX_ROWS];
    for (int64_t r = 0; r < DSI_AMX_ROWS; r++) {
        const int64_t number = dsi_min(n + tile * DSI_AMX_ROWS + r, a->n1 - 1);
        row[r] = a->w + dsi_row_bytes(w, number * a->w_stride + k);
    }
    uintptr_t ahead = (uintptr_t)a->w + (uintptr_t)dsi_row_bytes(w, (n + DSI_AMX_N) * a->w_stride);
    ahead += (uintptr_t)(dsi_row_bytes(w, k * 2 + tile * columns) * DSI_AMX_ROWS);
    for (int64_t c = 0; c * tile_columns < columns; c++) {
        uint8_t *to = panel + (c * 2 + tile) * DSI_AMX_TILE_BYTES;
        for (int64_t b = 0; b < tile_bytes; b += 16, to += widens ? 512 : 256) {
            const int64_t at = c * tile_bytes + b;
            __m512i rows[4];
            dsi_amx_load_rows(row, at, n_bytes - at, rows);
            if (widens)
                dsi_amx_turn_words(rows, w, to);
            else
                dsi_amx_turn_dwords(rows, to);
        }
        for (int64_t b = 0; b < tile_bytes * DSI_AMX_ROWS; b += 64, ahead += 64)
            _mm_prefetch((const char *)ahead, _MM_HINT_T0);
    }
}

/* Where the multipliers of weight rows n.. begin; rows past the last repeat it. */
DSI_INLINE void dsi_amx_scale_rows(const dsi_matmul_args *a, int64_t n, dsi_dtype w,
                                   const uint8_t *row[DSI_AMX_N]) {
    if (w == DSI_DTYPE_BF16) return;
    const int64_t group = w == DSI_DTYPE_E4M3 ? DSI_BLOCK : a->group_n;
    const int64_t size = dsi_element_bytes(w == DSI_DTYPE_E4M3 ? DSI_DTYPE_F32 : a->scale_dtype);
    for (int64_t r = 0; r < DSI_AMX_N; r++)
        row[r] =
            (const uint8_t *)a->scale + dsi_min(n + r, a->n1 - 1) / group * a->scale_stride * size;
}

/* Up to 16 multipliers that lie side by side, at any byte. */
DSI_INLINE __m512 dsi_amx_load_scales(dsi_dtype dtype, const uint8_t *at, __mmask16 lanes) {
    if (dtype == DSI_DTYPE_F32) return _mm512_maskz_loadu_ps(lanes, at);
    const __m256i halves = _mm256_maskz_loadu_epi16(lanes, at);
    if (dtype == DSI_DTYPE_F16) return _mm512_cvtph_ps(halves);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16));
}

/* scales[block of the panel][weight row] for blocks from column k on: 1 where the weights have
 * none. row[]: the multipliers of each weight row. */
DSI_INLINE void dsi_amx_scales(const dsi_matmul_args *a, const uint8_t *const row[DSI_AMX_N],
                               int64_t k, int64_t n_blocks, dsi_dtype w,
                               float scales[DSI_AMX_BLOCKS][DSI_AMX_N]) {
    float by_row[DSI_AMX_N][DSI_AMX_BLOCKS];
    if (w == DSI_DTYPE_BF16) {
        for (int64_t n = 0; n < n_blocks * DSI_AMX_N; n++) scales[n / DSI_AMX_N][n % DSI_AMX_N] = 1;
        return;
    }
    const dsi_dtype dtype = w == DSI_DTYPE_E4M3 ? DSI_DTYPE_F32 : a->scale_dtype;
    const int64_t group = w == DSI_DTYPE_E4M3 ? DSI_BLOCK : a->group_k;
    const bool one = w != DSI_DTYPE_E4M3 && group >= a->k; /* for the whole row */
    const __mmask16 lanes = (__mmask16)(one ? 1 : (1u << n_blocks) - 1u);
    const int64_t at = one ? 0 : k / group * dsi_element_bytes(dtype);
    const __m512i number = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    const __m512i next_row = _mm512_mullo_epi32(number, _mm512_set1_epi32(DSI_AMX_BLOCKS));
    for (int64_t r = 0; r < DSI_AMX_N; r++)
        _mm512_storeu_ps(by_row[r], dsi_amx_load_scales(dtype, row[r] + at, lanes));
    for (int64_t b = 0; b < n_blocks; b++)
        for (int64_t half = 0; half < DSI_AMX_N; half += DSI_AMX_ROWS)
            _mm512_storeu_ps(scales[b] + half,
                             _mm512_i32gather_ps(next_row, &by_row[half][one ? 0 : b], 4));
}

/* ---- Activations ----------------------------------------------------------------------------- */

/* Points the turn at columns [k, k + columns) of rows [i, i + rows) of the call, as tiles that have
 * room for `tile_rows`: where they lie, if they lie at equal distances and fill the tiles, else in
 * a copy with zeros around. Records of whole numbers fill their tiles. */
DSI_INLINE void dsi_amx_set_x(const dsi_matmul_args *a, int64_t i, int64_t rows, int64_t tile_rows,
                              int64_t k, int64_t columns, dsi_dtype w, uint8_t *copy,
                              dsi_amx_turn *turn) {
    const int64_t size = dsi_amx_x_bytes(w);
    const uint8_t *x = (const uint8_t *)a->x + k * size;
    const int64_t first = dsi_amx_x_row(a, i);
    const int64_t distance = rows > 1 ? dsi_amx_x_row(a, i + 1) - first : 0;
    bool fits = rows == tile_rows;
    if (!dsi_amx_is_a8(w) && columns * size % DSI_AMX_ROW_BYTES != 0) fits = false;
    for (int64_t r = 2; r < rows && fits; r++)
        fits = dsi_amx_x_row(a, i + r) == first + r * distance;
    if (fits) {
        turn->x = x + first * a->x_stride * size;
        turn->x_stride = distance * a->x_stride * size;
        return;
    }
    const size_t used = (size_t)(columns * size);
    const size_t whole = (size_t)dsi_round_up(columns * size, DSI_AMX_ROW_BYTES);
    turn->x = copy;
    turn->x_stride = (int64_t)whole;
    for (int64_t r = 0; r < tile_rows; r++, copy += whole) {
        const size_t n = r < rows ? used : 0;
        if (n > 0) memcpy(copy, x + dsi_amx_x_row(a, i + r) * a->x_stride * size, n);
        memset(copy + n, 0, whole - n);
    }
}

/* ---- The loops ------------------------------------------------------------------------------- */

/* Adds columns [k, k + columns) to y of weight rows [n, n + 32), for all activation rows. */
DSI_INLINE void dsi_amx_panel(const dsi_matmul_args *a, const uint8_t *const scale_row[DSI_AMX_N],
                              int64_t n, int64_t k, int64_t columns, dsi_dtype w,
                              const uint8_t *panel, uint8_t *copy) {
    _Alignas(64) float part[2][4 * DSI_AMX_ROWS * DSI_AMX_ROWS];
    float scales[DSI_AMX_BLOCKS][DSI_AMX_N];
    const int64_t n_rows = dsi_min(DSI_AMX_N, a->n1 - n), size = dsi_amx_x_bytes(w);
    const int64_t block = dsi_amx_block(a, w);
    const uint32_t lanes = n_rows >= 32 ? 0xFFFFFFFFu : (1u << n_rows) - 1u;
    const bool whole = dsi_amx_is_a8(w) && block == DSI_AMX_PANEL_BYTES;
    dsi_amx_sum waiting = {.lanes = {0, 0}};
    dsi_amx_turn turn = {.w = panel, .two_n = n_rows > DSI_AMX_ROWS};
    turn.bytes = dsi_min(DSI_AMX_ROW_BYTES, block * size);
    int written = 0;
    if (!whole || k + columns >= a->k)
        dsi_amx_scales(a, scale_row, k, (columns + block - 1) / block, w, scales);
    for (int64_t i = 0; i < a->m; i += DSI_AMX_M) {
        const int64_t rows = dsi_min(DSI_AMX_M, a->m - i);
        /* The tiles are configured once: for few rows exactly, else for 32. */
        const int64_t tile_rows = a->m <= DSI_AMX_M ? rows : dsi_round_up(rows, DSI_AMX_ROWS);
        turn.two_m = rows > DSI_AMX_ROWS;
        dsi_amx_set_x(a, i, rows, tile_rows, k, columns, w, copy, &turn);
        for (int64_t b = 0; b * block < columns; b++, written ^= 1) {
            const int64_t left = dsi_min(block, columns - b * block) * size;
            turn.at = b * block * size;
            dsi_amx_run(a, &turn, (left + turn.bytes - 1) / turn.bytes, part[written], &waiting, w);
            waiting = (dsi_amx_sum){.part = part[written],
                                    .scale = scales[b],
                                    .y = a->y + i * a->y_stride + n - a->n0,
                                    .rows = rows,
                                    .row = i,
                                    .k = k + b * block,
                                    .lanes = {(__mmask16)lanes, (__mmask16)(lanes >> 16)},
                                    .first = k == 0 && b == 0,
                                    .whole = whole,
                                    .last = !whole || k + columns >= a->k};
        }
    }
    for (int64_t q = 0; q < 4; q++) dsi_amx_add(a, &waiting, q, w);
}

/* The matmul of weights of type w, a constant, and activations of bf16 or 8 bits. */
DSI_INLINE void dsi_matmul_amx(const dsi_matmul_args *a, dsi_dtype w) {
    if (a->m <= 0 || a->n1 <= a->n0) return;
    if (a->k <= 0) {
        for (int64_t i = 0; i < a->m; i++)
            for (int64_t n = a->n0; n < a->n1; n++) a->y[i * a->y_stride + n - a->n0] = 0;
        return;
    }
    /* Half of the smallest scratch holds the panel of so few columns, the other half rows of x. */
    uint8_t *panel = a->scratch, *copy = panel + dsi_matmul_scratch_bytes(a->k) / 2;
    const int64_t size = dsi_amx_x_bytes(w), step = DSI_AMX_PANEL_BYTES / size;
    dsi_amx_configure(dsi_min(a->m, DSI_AMX_M),
                      dsi_min(DSI_AMX_ROW_BYTES, dsi_amx_block(a, w) * size));
    for (int64_t n = a->n0; n < a->n1; n += DSI_AMX_N) {
        const uint8_t *scale_row[DSI_AMX_N];
        dsi_amx_scale_rows(a, n, w, scale_row);
        for (int64_t k = 0; k < a->k; k += step) {
            const int64_t columns = dsi_min(step, a->k - k);
            dsi_amx_decode(a, n, k, columns, w, 0, panel);
            if (a->n1 - n > DSI_AMX_ROWS) dsi_amx_decode(a, n, k, columns, w, 1, panel);
            dsi_amx_panel(a, scale_row, n, k, columns, w, panel, copy);
        }
    }
    _tile_release();
}

#endif
