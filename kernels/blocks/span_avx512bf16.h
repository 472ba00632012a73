/* span_avx512bf16.h: GGUF's blocks as whole numbers in bf16 for vdpbf16ps, four weight rows at once
 * (AVX-512 VBMI and BF16).
 *
 * A span is four groups of columns that have scales of their own. A vector of a span holds a weight
 * row in each 128-bit lane and a group in each of its dwords, so that a sum of products becomes
 * four rows x four groups and takes their scales in one multiply-add. A dword is two columns of its
 * group: vector 2i has columns 4i and 4i + 2, vector 2i + 1 columns 4i + 1 and 4i + 3: bytes of raw
 * numbers lie there so. A unit is what is decoded at once: one span or two. */
#ifndef DSI_KERNELS_BLOCKS_SPAN_AVX512BF16_H
#define DSI_KERNELS_BLOCKS_SPAN_AVX512BF16_H

#include "../matmul/i8_bf16.h"
#include "blocks.h"

enum {
    DSI_SPAN_N = 4,     /* weight rows, and groups */
    DSI_UNIT_SPANS = 2, /* at most */
    DSI_SPAN_ROWS = 4,  /* activation rows of a direct product, at most */
    DSI_PANEL_QUADS = 4
};

/* Types without vector code here are taken apart by dsi_block_read first; `row` are then the parts
 * of the block. */
typedef struct dsi_span_type {
    dsi_dtype dtype;
    bool parts, has_min;
    int group, steps, spans, columns; /* of a group; vectors of a span; of a unit: spans, columns */
    int values, bytes;                /* of a block */
} dsi_span_type;

DSI_INLINE dsi_span_type dsi_span_type_of(dsi_dtype dtype, bool parts, int group) {
    const dsi_block_shape shape = dsi_block_shape_of(dtype);
    dsi_span_type t = {.dtype = dtype, .parts = parts, .group = group, .spans = 1};
    t.has_min = !parts && shape.has_min, t.values = shape.values, t.bytes = shape.bytes;
    t.steps = group / 2;
    if (!parts && shape.values == 256 && dtype != DSI_DTYPE_IQ4_XS) t.spans = 2;
    t.columns = t.spans * 4 * group;
    return t;
}

/* The bytes of four weight rows from the same column on. */
typedef struct dsi_span_rows {
    const uint8_t *row[DSI_SPAN_N];
} dsi_span_rows;

/* 16 bytes of each row. */
DSI_INLINE __m512i dsi_span_lanes(const dsi_span_rows *rows, int64_t at) {
    __m512i v = _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i_u *)(rows->row[0] + at)));
    v = _mm512_mask_broadcast_i32x4(v, 0x00F0,
                                    _mm_loadu_si128((const __m128i_u *)(rows->row[1] + at)));
    v = _mm512_mask_broadcast_i32x4(v, 0x0F00,
                                    _mm_loadu_si128((const __m128i_u *)(rows->row[2] + at)));
    return _mm512_mask_broadcast_i32x4(v, 0xF000,
                                       _mm_loadu_si128((const __m128i_u *)(rows->row[3] + at)));
}

/* Dword i of four vectors side by side in vector i, within lanes. */
DSI_INLINE void dsi_span_transpose(const __m512i x[4], __m512i out[4]) {
    __m512i a = _mm512_unpacklo_epi32(x[0], x[1]), b = _mm512_unpacklo_epi32(x[2], x[3]);
    __m512i c = _mm512_unpackhi_epi32(x[0], x[1]), d = _mm512_unpackhi_epi32(x[2], x[3]);
    out[0] = _mm512_unpacklo_epi64(a, b), out[1] = _mm512_unpackhi_epi64(a, b);
    out[2] = _mm512_unpacklo_epi64(c, d), out[3] = _mm512_unpackhi_epi64(c, d);
}

/* Dwords a_i b_i a_i b_i. */
DSI_INLINE void dsi_span_pairs(__m512i a, __m512i b, __m512i out[4]) {
    __m512i low = _mm512_unpacklo_epi32(a, b), high = _mm512_unpackhi_epi32(a, b);
    out[0] = _mm512_unpacklo_epi64(low, low), out[1] = _mm512_unpackhi_epi64(low, low);
    out[2] = _mm512_unpacklo_epi64(high, high), out[3] = _mm512_unpackhi_epi64(high, high);
}

/* ---- Where decoded vectors go ---------------------------------------------------------------- */

/* To a panel, or against packed activations. */
typedef struct dsi_span_sink {
    uint8_t *panel; /* NULL: to the sums */
    const uint8_t *x[DSI_SPAN_ROWS];
    __m512 sum[DSI_UNIT_SPANS][DSI_SPAN_ROWS];
} dsi_span_sink;

DSI_INLINE void dsi_span_emit(dsi_span_sink *k, const dsi_span_type *t, int rows, int span,
                              int step, __m512i w) {
    const int64_t at = span * t->steps + step;
    if (rows == 0) {
        _mm512_store_si512(k->panel + at * DSI_PANEL_QUADS * 64, w);
        return;
    }
    DSI_UNROLL
    for (int i = 0; i < rows; i++) {
        __m512i x = _mm512_broadcast_i32x4(
            _mm_load_si128((const __m128i *)(const void *)(k->x[i] + at * 16)));
        k->sum[span][i] = _mm512_dpbf16_ps(k->sum[span][i], (__m512bh)w, (__m512bh)x);
    }
}

/* Numbers of at most 5 bits, one in each byte: those of dword `i` of the groups. */
DSI_INLINE void dsi_span_emit_5(dsi_span_sink *k, const dsi_span_type *t, int rows, int span, int i,
                                __m512i table, __m512i u) {
    dsi_span_emit(k, t, rows, span, 2 * i, _mm512_permutexvar_epi16(u, table));
    dsi_span_emit(k, t, rows, span, 2 * i + 1,
                  _mm512_permutexvar_epi16(_mm512_srli_epi16(u, 8), table));
}

/* Whole numbers of 8 bits. */
DSI_INLINE void dsi_span_emit_8(dsi_span_sink *k, const dsi_span_type *t, int rows, int span, int i,
                                __m512i q) {
    const dsi_bf16_bytes b = dsi_i8_bf16_bytes(q);
    const __mmask64 odd = 0xAAAAAAAAAAAAAAAAu;
    dsi_span_emit(k, t, rows, span, 2 * i,
                  _mm512_mask_blend_epi8(odd, b.low, _mm512_slli_epi16(b.high, 8)));
    dsi_span_emit(k, t, rows, span, 2 * i + 1,
                  _mm512_mask_blend_epi8(odd, _mm512_srli_epi16(b.low, 8), b.high));
}

/* ---- Tables ---------------------------------------------------------------------------------- */

/* 16 whole numbers as bf16. */
DSI_INLINE __m256i dsi_span_bf16(__m512i whole) {
    __m512i bits = _mm512_castps_si512(_mm512_cvtepi32_ps(whole));
    return _mm512_cvtepi32_epi16(_mm512_srli_epi32(bits, 16));
}

/* The bf16 of (i & mask) - offset from i = first on; 32 of them. */
DSI_INLINE __m512i dsi_span_numbers(int first, int mask, int offset) {
    const __m512i i = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    const __m512i bits = _mm512_set1_epi32(mask), less = _mm512_set1_epi32(offset);
    __m512i low = _mm512_add_epi32(i, _mm512_set1_epi32(first));
    __m512i high = _mm512_add_epi32(i, _mm512_set1_epi32(first + 16));
    low = _mm512_sub_epi32(_mm512_and_si512(low, bits), less);
    high = _mm512_sub_epi32(_mm512_and_si512(high, bits), less);
    return _mm512_inserti64x4(_mm512_castsi256_si512(dsi_span_bf16(low)), dsi_span_bf16(high), 1);
}

DSI_INLINE __m512i dsi_span_table(dsi_dtype dtype) {
    switch (dtype) {
    case DSI_DTYPE_Q4_0:
        return dsi_span_numbers(0, 15, 8);
    case DSI_DTYPE_Q5_0:
        return dsi_span_numbers(0, 31, 16);
    case DSI_DTYPE_Q5_1:
    case DSI_DTYPE_Q5_K:
        return dsi_span_numbers(0, 31, 0);
    case DSI_DTYPE_Q3_K:
        return dsi_span_numbers(0, 7, 4);
    case DSI_DTYPE_Q2_K:
        return dsi_span_numbers(0, 3, 0);
    case DSI_DTYPE_Q6_K:
        return dsi_span_numbers(0, 63, 32); /* its first half */
    case DSI_DTYPE_IQ4_NL:
    case DSI_DTYPE_IQ4_XS:
        return _mm512_broadcast_i64x4(dsi_span_bf16(
            _mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i_u *)dsi_iq4_values))));
    default: /* Q4_1, Q4_K */
        return dsi_span_numbers(0, 15, 0);
    }
}

/* ---- Numbers of a unit ----------------------------------------------------------------------- */

/* Four blocks of 32 values, or half a block of IQ4_XS: 16 bytes of each, columns 0..15 in the low
 * halves and 16..31 in the high ones. first: of the bytes of the first block; apart: to the next.
 */
DSI_INLINE void dsi_span_nibbles(dsi_span_sink *k, const dsi_span_type *t, int rows,
                                 const dsi_span_rows *r, int64_t first, int64_t apart,
                                 __m512i table) {
    __m512i x[4], v[4];
    DSI_UNROLL
    for (int p = 0; p < 4; p++) x[p] = dsi_span_lanes(r, first + p * apart);
    dsi_span_transpose(x, v);
    DSI_UNROLL
    for (int i = 0; i < 4; i++) dsi_span_emit_5(k, t, rows, 0, i, table, v[i]);
    DSI_UNROLL
    for (int i = 0; i < 4; i++)
        dsi_span_emit_5(k, t, rows, 0, 4 + i, table, _mm512_srli_epi16(v[i], 4));
}

/* Q5_0, Q5_1: the same with a fifth bit from four bytes `bits` behind the start of a block. */
DSI_INLINE void dsi_span_nibbles_5(dsi_span_sink *k, const dsi_span_type *t, int rows,
                                   const dsi_span_rows *r, int64_t bits, __m512i table) {
    const __m512i low4 = _mm512_set1_epi8(15), fifth = _mm512_set1_epi8(16);
    const __m512i some = _mm512_set1_epi32(0x08040201), others = _mm512_set1_epi32((int)0x80402010);
    __m512i x[4], v[4];
    /* 16 bytes from the field of bits on: the bits in dword 0, within the block. */
    DSI_UNROLL
    for (int p = 0; p < 4; p++) x[p] = dsi_span_lanes(r, bits + p * t->bytes);
    __m512i high =
        _mm512_unpacklo_epi64(_mm512_unpacklo_epi32(x[0], x[1]), _mm512_unpacklo_epi32(x[2], x[3]));
    DSI_UNROLL
    for (int p = 0; p < 4; p++) x[p] = dsi_span_lanes(r, bits + 4 + p * t->bytes);
    dsi_span_transpose(x, v);
    DSI_UNROLL
    for (int i = 0; i < 8; i++) {
        const int byte = i / 2;
        const __m512i spread =
            _mm512_set4_epi32(0x0C0C0C0C + byte * 0x01010101, 0x08080808 + byte * 0x01010101,
                              0x04040404 + byte * 0x01010101, byte * 0x01010101);
        __mmask64 set =
            _mm512_test_epi8_mask(_mm512_shuffle_epi8(high, spread), i % 2 ? others : some);
        __m512i u = i < 4 ? v[i % 4] : _mm512_srli_epi16(v[i % 4], 4);
        u = _mm512_and_si512(u, low4);
        u = _mm512_or_si512(u, _mm512_maskz_mov_epi8(set, fifth));
        dsi_span_emit_5(k, t, rows, 0, i, table, u);
    }
}

DSI_INLINE void dsi_span_bytes(dsi_span_sink *k, const dsi_span_type *t, int rows,
                               const dsi_span_rows *r, int64_t first, int64_t apart) {
    DSI_UNROLL
    for (int h = 0; h < t->group / 16; h++) {
        __m512i x[4], v[4];
        DSI_UNROLL
        for (int p = 0; p < 4; p++) x[p] = dsi_span_lanes(r, first + p * apart + 16 * h);
        dsi_span_transpose(x, v);
        DSI_UNROLL
        for (int i = 0; i < 4; i++) dsi_span_emit_8(k, t, rows, 0, 4 * h + i, v[i]);
    }
}

/* Q4_K, Q5_K: spans of the groups 0, 2, 4, 6 and 1, 3, 5, 7: the low and the high halves. */
DSI_INLINE void dsi_span_k4(dsi_span_sink *k, const dsi_span_type *t, int rows,
                            const dsi_span_rows *r, __m512i table) {
    const bool five = t->dtype == DSI_DTYPE_Q5_K;
    const __m512i low4 = _mm512_set1_epi8(15), fifth = _mm512_set1_epi8(16);
    /* Bit g of group g: group 2p + s in dword p, moved to bit 4. */
    const __m512i left = _mm512_set4_epi32(0, 0, 2, 4), right = _mm512_set4_epi32(2, 0, 0, 0);
    const __m512i left1 = _mm512_set4_epi32(0, 0, 1, 3), right1 = _mm512_set4_epi32(3, 1, 0, 0);
    DSI_UNROLL
    for (int h = 0; h < 2; h++) {
        __m512i x[4], v[4], bits[4];
        DSI_UNROLL
        for (int p = 0; p < 4; p++) x[p] = dsi_span_lanes(r, (five ? 48 : 16) + 32 * p + 16 * h);
        dsi_span_transpose(x, v);
        if (five) {
            __m512i high = dsi_span_lanes(r, 16 + 16 * h);
            bits[0] = _mm512_shuffle_epi32(high, 0x00), bits[1] = _mm512_shuffle_epi32(high, 0x55);
            bits[2] = _mm512_shuffle_epi32(high, 0xAA), bits[3] = _mm512_shuffle_epi32(high, 0xFF);
        }
        DSI_UNROLL
        for (int i = 0; i < 4; i++) {
            __m512i low = v[i], high = _mm512_srli_epi16(v[i], 4);
            if (five) {
                __m512i b0 = _mm512_srlv_epi32(_mm512_sllv_epi32(bits[i], left), right);
                __m512i b1 = _mm512_srlv_epi32(_mm512_sllv_epi32(bits[i], left1), right1);
                /* (b & 16) | (nibble & 15) */
                low = _mm512_ternarylogic_epi32(_mm512_and_si512(low, low4), b0, fifth, 0xF8);
                high = _mm512_ternarylogic_epi32(_mm512_and_si512(high, low4), b1, fifth, 0xF8);
            }
            dsi_span_emit_5(k, t, rows, 0, 4 * h + i, table, low);
            dsi_span_emit_5(k, t, rows, 1, 4 * h + i, table, high);
        }
    }
}

/* Half a block of Q6_K: groups 0..3 in the low halves, 4..7 in the high ones; two more bits each.
 */
DSI_INLINE void dsi_span_q6(dsi_span_sink *k, const dsi_span_type *t, int rows,
                            const dsi_span_rows *r, int half, __m512i table) {
    const __m512i table1 = dsi_span_numbers(32, 63, 32);
    const __m512i low4 = _mm512_set1_epi8(15), two = _mm512_set1_epi8(0x30);
    const __m512i shift = _mm512_set4_epi32(2, 2, 0, 0);
    __m512i x[4], v[4], bits[4];
    DSI_UNROLL
    for (int p = 0; p < 4; p++) x[p] = dsi_span_lanes(r, 64 * half + 16 * p);
    dsi_span_transpose(x, v);
    dsi_span_pairs(dsi_span_lanes(r, 128 + 32 * half), dsi_span_lanes(r, 144 + 32 * half), bits);
    DSI_UNROLL
    for (int i = 0; i < 4; i++) {
        /* Bits 0, 1 or 2, 3 of a byte belong to the low halves, 4, 5 or 6, 7 to the high ones. */
        __m512i b = _mm512_srlv_epi32(bits[i], shift);
        __m512i u[2] = {_mm512_slli_epi16(b, 4), b};
        u[0] = _mm512_ternarylogic_epi32(_mm512_and_si512(v[i], low4), u[0], two, 0xF8);
        u[1] = _mm512_ternarylogic_epi32(_mm512_and_si512(_mm512_srli_epi16(v[i], 4), low4), u[1],
                                         two, 0xF8);
        DSI_UNROLL
        for (int s = 0; s < 2; s++) {
            dsi_span_emit(k, t, rows, s, 2 * i, _mm512_permutex2var_epi16(table, u[s], table1));
            dsi_span_emit(k, t, rows, s, 2 * i + 1,
                          _mm512_permutex2var_epi16(table, _mm512_srli_epi16(u[s], 8), table1));
        }
    }
}

/* Half a block of Q2_K or Q3_K: two bits of 32 bytes are 32 columns. */
DSI_INLINE void dsi_span_q23(dsi_span_sink *k, const dsi_span_type *t, int rows,
                             const dsi_span_rows *r, int half, __m512i table) {
    const bool three = t->dtype == DSI_DTYPE_Q3_K;
    const int64_t at = (three ? 32 : 16) + 32 * half;
    const __m512i low2 = _mm512_set1_epi8(3), third = _mm512_set1_epi8(4);
    const __m512i by2 = _mm512_set4_epi32(2, 2, 0, 0), by1 = _mm512_set4_epi32(1, 1, 0, 0);
    __m512i v[4], bits[4];
    dsi_span_pairs(dsi_span_lanes(r, at), dsi_span_lanes(r, at + 16), v);
    if (three) dsi_span_pairs(dsi_span_lanes(r, 0), dsi_span_lanes(r, 16), bits);
    DSI_UNROLL
    for (int i = 0; i < 4; i++) {
        v[i] = _mm512_srlv_epi32(v[i], by2);
        if (three)
            bits[i] = _mm512_slli_epi16(
                _mm512_srl_epi16(_mm512_srlv_epi32(bits[i], by1), _mm_cvtsi32_si128(4 * half)), 2);
        DSI_UNROLL
        for (int s = 0; s < 2; s++) {
            __m512i u = s ? _mm512_srli_epi16(v[i], 4) : v[i];
            if (three) {
                __m512i b = s ? _mm512_srli_epi16(bits[i], 2) : bits[i];
                u = _mm512_ternarylogic_epi32(_mm512_and_si512(u, low2), b, third, 0xF8);
            }
            dsi_span_emit_5(k, t, rows, s, i, table, u);
        }
    }
}

/* All numbers of unit `unit` of the rows' block (of types of 32 values: of four blocks). */
DSI_INLINE void dsi_span_decode(dsi_span_sink *k, const dsi_span_type *t, int rows,
                                const dsi_span_rows *r, int unit, __m512i table) {
    if (t->parts) {
        dsi_span_bytes(k, t, rows, r, unit * t->columns, t->group);
        return;
    }
    switch (t->dtype) {
    case DSI_DTYPE_Q8_0:
        dsi_span_bytes(k, t, rows, r, 2, t->bytes);
        break;
    case DSI_DTYPE_Q5_0:
    case DSI_DTYPE_Q5_1:
        dsi_span_nibbles_5(k, t, rows, r, t->bytes - 20, table);
        break;
    case DSI_DTYPE_IQ4_XS:
        dsi_span_nibbles(k, t, rows, r, 8 + 64 * unit, 16, table);
        break;
    case DSI_DTYPE_Q4_K:
    case DSI_DTYPE_Q5_K:
        dsi_span_k4(k, t, rows, r, table);
        break;
    case DSI_DTYPE_Q6_K:
        dsi_span_q6(k, t, rows, r, unit, table);
        break;
    case DSI_DTYPE_Q2_K:
    case DSI_DTYPE_Q3_K:
        dsi_span_q23(k, t, rows, r, unit, table);
        break;
    default: /* Q4_0, Q4_1, IQ4_NL */
        dsi_span_nibbles(k, t, rows, r, t->bytes - 16, t->bytes, table);
    }
}

/* ---- Scales of a unit ------------------------------------------------------------------------ */

/* Word `word` of every lane's 16 bytes, an f16, four times. */
DSI_INLINE __m512 dsi_span_half(__m512i lanes, int word) {
    const __m512i index =
        _mm512_add_epi16(_mm512_set_epi16(24, 24, 24, 24, 16, 16, 16, 16, 8, 8, 8, 8, 0, 0, 0, 0,
                                          24, 24, 24, 24, 16, 16, 16, 16, 8, 8, 8, 8, 0, 0, 0, 0),
                         _mm512_set1_epi16((short)word));
    return _mm512_cvtph_ps(_mm512_castsi512_si256(_mm512_permutexvar_epi16(index, lanes)));
}

/* Byte `from` and the three behind it as dwords. */
DSI_INLINE __m512i dsi_span_bytes_at(__m512i lanes, int from) {
    const __m512i index =
        _mm512_set4_epi32((int)0x80808003, (int)0x80808002, (int)0x80808001, (int)0x80808000);
    return _mm512_shuffle_epi8(lanes, _mm512_add_epi32(index, _mm512_set1_epi32(from)));
}

/* The f16 at byte `at` of four blocks of each row. */
DSI_INLINE __m512 dsi_span_heads(const dsi_span_type *t, const dsi_span_rows *r, int at) {
    const int word = t->bytes / 2, behind = t->dtype == DSI_DTYPE_Q8_0 ? 68 : 4 * t->bytes - 64;
    int16_t from[4];
    DSI_UNROLL
    for (int p = 0; p < 4; p++) {
        int w = p * word + at / 2;
        from[p] = (int16_t)(w < 32 ? w : w - behind / 2 + 32);
    }
    const __m512i index = _mm512_set1_epi64(
        (int64_t)((uint64_t)(uint16_t)from[0] | (uint64_t)(uint16_t)from[1] << 16 |
                  (uint64_t)(uint16_t)from[2] << 32 | (uint64_t)(uint16_t)from[3] << 48));
    __m512i all = _mm512_setzero_si512();
    DSI_UNROLL
    for (int i = 0; i < DSI_SPAN_N; i++) {
        __m512i words = _mm512_permutex2var_epi16(_mm512_loadu_si512(r->row[i]), index,
                                                  _mm512_loadu_si512(r->row[i] + behind));
        all = _mm512_mask_mov_epi64(all, (__mmask8)(1 << i), words);
    }
    return _mm512_cvtph_ps(_mm512_castsi512_si256(all));
}

DSI_INLINE void dsi_span_scales_k4(const dsi_span_rows *r, __m512 scale[2], __m512 min[2]) {
    const __m512i lanes = dsi_span_lanes(r, 0); /* d m | D | M | H */
    /* Bytes: scales 0..3, 4..7, minimums 0..3, 4..7. */
    __m512i six = _mm512_shuffle_epi32(lanes, 0xA5), four = _mm512_shuffle_epi32(lanes, 0xFF);
    six = _mm512_srlv_epi32(six, _mm512_set4_epi32(2, 0, 2, 0));
    six = _mm512_and_si512(six, _mm512_set4_epi32(0x30303030, 0x3F3F3F3F, 0x30303030, 0x3F3F3F3F));
    four = _mm512_srlv_epi32(four, _mm512_set4_epi32(4, 0, 0, 0));
    four = _mm512_and_si512(four, _mm512_set4_epi32(0x0F0F0F0F, 0, 0x0F0F0F0F, 0));
    const __m512i all = _mm512_or_si512(six, four);
    const __m512i even =
        _mm512_set4_epi32((int)0x80808006, (int)0x80808004, (int)0x80808002, (int)0x80808000);
    const __m512 d = dsi_span_half(lanes, 0), m = dsi_span_half(lanes, 1);
    DSI_UNROLL
    for (int s = 0; s < 2; s++) {
        __m512i a = _mm512_shuffle_epi8(all, _mm512_add_epi32(even, _mm512_set1_epi32(s)));
        __m512i b = _mm512_shuffle_epi8(all, _mm512_add_epi32(even, _mm512_set1_epi32(8 + s)));
        scale[s] = _mm512_mul_ps(d, _mm512_cvtepi32_ps(a));
        min[s] = _mm512_mul_ps(m, _mm512_cvtepi32_ps(b));
    }
}

/* Half a block of a type with groups of 16, or of IQ4_XS. */
DSI_INLINE void dsi_span_scales_half(const dsi_span_type *t, const dsi_span_rows *r, int half,
                                     __m512 scale[2], __m512 min[2]) {
    const __m512i low4 = _mm512_set1_epi32(15);
    if (t->dtype == DSI_DTYPE_IQ4_XS) {
        const __m512i lanes = dsi_span_lanes(r, 0);
        const __m512i two =
            _mm512_set4_epi32((int)0x80800302, (int)0x80800302, (int)0x80800302, (int)0x80800302);
        const __m512i one =
            _mm512_set4_epi32((int)0x80808005, (int)0x80808005, (int)0x80808004, (int)0x80808004);
        __m512i low =
            _mm512_shuffle_epi8(lanes, _mm512_add_epi32(one, _mm512_set1_epi32(2 * half)));
        low = _mm512_and_si512(_mm512_srlv_epi32(low, _mm512_set4_epi32(4, 0, 4, 0)), low4);
        __m512i high = _mm512_srlv_epi32(
            _mm512_shuffle_epi8(lanes, two),
            _mm512_add_epi32(_mm512_set4_epi32(6, 4, 2, 0), _mm512_set1_epi32(8 * half)));
        high = _mm512_slli_epi32(_mm512_and_si512(high, _mm512_set1_epi32(3)), 4);
        low = _mm512_sub_epi32(_mm512_or_si512(low, high), _mm512_set1_epi32(32));
        scale[0] = _mm512_mul_ps(dsi_span_half(lanes, 0), _mm512_cvtepi32_ps(low));
        return;
    }
    const int64_t at = t->dtype == DSI_DTYPE_Q6_K ? 192 : t->dtype == DSI_DTYPE_Q3_K ? 94 : 0;
    const __m512i lanes = dsi_span_lanes(r, at);
    const __m512i ends = at == 94 ? lanes : dsi_span_lanes(r, t->bytes - 16);
    const __m512 d = dsi_span_half(ends, t->dtype == DSI_DTYPE_Q2_K ? 6 : 7);
    DSI_UNROLL
    for (int s = 0; s < 2; s++) {
        __m512i a;
        if (t->dtype == DSI_DTYPE_Q6_K) {
            a = dsi_span_bytes_at(lanes, 8 * half + 4 * s);
            a = _mm512_srai_epi32(_mm512_slli_epi32(a, 24), 24);
        } else if (t->dtype == DSI_DTYPE_Q3_K) {
            a = _mm512_srl_epi32(dsi_span_bytes_at(lanes, 2 + 4 * s), _mm_cvtsi32_si128(4 * half));
            __m512i high = _mm512_srl_epi32(dsi_span_bytes_at(lanes, 10),
                                            _mm_cvtsi32_si128(2 * (2 * half + s)));
            high = _mm512_slli_epi32(_mm512_and_si512(high, _mm512_set1_epi32(3)), 4);
            a = _mm512_sub_epi32(_mm512_or_si512(_mm512_and_si512(a, low4), high),
                                 _mm512_set1_epi32(32));
        } else {
            a = dsi_span_bytes_at(lanes, 8 * half + 4 * s);
            min[s] =
                _mm512_mul_ps(dsi_span_half(ends, 7), _mm512_cvtepi32_ps(_mm512_srli_epi32(a, 4)));
            a = _mm512_and_si512(a, low4);
        }
        scale[s] = _mm512_mul_ps(d, _mm512_cvtepi32_ps(a));
    }
}

DSI_INLINE void dsi_span_scales(const dsi_span_type *t, const dsi_span_rows *r, int unit,
                                __m512 scale[2], __m512 min[2]) {
    if (t->parts) {
        const int64_t at = (int64_t)offsetof(dsi_block_parts, scale) + unit * 16;
        scale[0] = _mm512_castsi512_ps(dsi_span_lanes(r, at));
        return;
    }
    if (t->values == 32) {
        scale[0] = dsi_span_heads(t, r, 0);
        if (t->has_min) /* stored as what is added */
            min[0] = _mm512_xor_ps(dsi_span_heads(t, r, 2), _mm512_set1_ps(-0.0f));
    } else if (t->dtype == DSI_DTYPE_Q4_K || t->dtype == DSI_DTYPE_Q5_K) {
        dsi_span_scales_k4(r, scale, min);
    } else {
        dsi_span_scales_half(t, r, unit, scale, min);
    }
}

#endif
