/* read_avx2.c: read.c with AVX2 and F16C, for every kernel that has those: the same whole numbers
 * and multipliers. 32 whole numbers are one vector. */
#include "../formats.h"
#include "../simd.h"
#include "blocks.h"
#include "grids.h"
#include <immintrin.h>

DSI_INLINE float half_at(const uint8_t *at) { return _cvtsh_ss(dsi_load_u16(at, 0)); }
DSI_INLINE uint32_t u32_at(const uint8_t *at) {
    uint32_t v;
    memcpy(&v, at, sizeof v);
    return v;
}
DSI_INLINE uint64_t u64_at(const uint8_t *at) {
    uint64_t v;
    memcpy(&v, at, sizeof v);
    return v;
}
DSI_INLINE __m128i load_16(const uint8_t *at) { return _mm_loadu_si128((const __m128i_u *)at); }
DSI_INLINE __m256i load_32(const uint8_t *at) { return _mm256_loadu_si256((const __m256i_u *)at); }
/* Four times 8 bytes. */
DSI_INLINE __m256i points_8(uint64_t a, uint64_t b, uint64_t c, uint64_t d) {
    return _mm256_set_epi64x((long long)d, (long long)c, (long long)b, (long long)a);
}
DSI_INLINE void put_32(int8_t *q, __m256i v) { _mm256_store_si256((__m256i *)(void *)q, v); }

/* The low halves of 16 bytes, then the high ones. */
DSI_INLINE __m256i nibbles(__m128i qs) {
    __m256i both = _mm256_set_m128i(_mm_srli_epi16(qs, 4), qs);
    return _mm256_and_si256(both, _mm256_set1_epi8(15));
}
DSI_INLINE __m256i table_16(const int8_t values[16]) {
    return _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i_u *)values));
}
/* Bit i of `bits` as all bits of byte i. */
DSI_INLINE __m256i spread(uint32_t bits) {
    const __m256i order =
        _mm256_setr_epi64x(0, 0x0101010101010101, 0x0202020202020202, 0x0303030303030303);
    const __m256i each = _mm256_set1_epi64x((long long)0x8040201008040201u);
    __m256i v = _mm256_shuffle_epi8(_mm256_set1_epi32((int)bits), order);
    return _mm256_cmpeq_epi8(_mm256_and_si256(v, each), each);
}
/* d times the whole numbers of 8 bytes, as 8 floats. */
DSI_INLINE void put_scales(float *to, float d, __m256i whole) {
    _mm256_storeu_ps(to, _mm256_mul_ps(_mm256_set1_ps(d), _mm256_cvtepi32_ps(whole)));
}

/* ---- 32 values, up to 8 blocks; 64 values, up to 4 ------------------------------------------- */

/* The whole numbers of one block. */
DSI_INLINE __m256i small_numbers(dsi_dtype dtype, const uint8_t *b, int bytes) {
    if (dtype == DSI_DTYPE_Q8_0) return load_32(b + 2);
    __m256i v = nibbles(load_16(b + bytes - 16));
    if (dtype == DSI_DTYPE_Q4_0) v = _mm256_sub_epi8(v, _mm256_set1_epi8(8));
    if (dtype == DSI_DTYPE_IQ4_NL) v = _mm256_shuffle_epi8(table_16(dsi_iq4_values), v);
    if (dtype == DSI_DTYPE_MXFP4) v = _mm256_shuffle_epi8(table_16(dsi_fp4_values), v);
    if (dtype == DSI_DTYPE_Q5_0) /* without the fifth bit 16 less */
        v = _mm256_or_si256(
            v, _mm256_andnot_si256(spread(u32_at(b + 2)), _mm256_set1_epi8((char)0xF0)));
    if (dtype == DSI_DTYPE_Q5_1)
        v = _mm256_or_si256(v, _mm256_and_si256(spread(u32_at(b + 4)), _mm256_set1_epi8(16)));
    return v;
}

/* The f16 at the start of 8 blocks. */
DSI_INLINE __m256 small_heads(const uint8_t *b, int bytes) {
    uint64_t v[2] = {0, 0};
    DSI_UNROLL
    for (int i = 0; i < 8; i++) v[i / 4] |= (uint64_t)dsi_load_u16(b + i * bytes, 0) << i % 4 * 16;
    return _mm256_cvtph_ps(_mm_set_epi64x((long long)v[1], (long long)v[0]));
}

/* The two f16 at the start of 8 blocks: the scale, and what is added to the product. */
DSI_INLINE void small_heads_2(const uint8_t *b, int bytes, float scale[8], float min[8]) {
    uint64_t v[4];
    DSI_UNROLL
    for (int i = 0; i < 4; i++)
        v[i] = u32_at(b + 2 * i * bytes) | (uint64_t)u32_at(b + (2 * i + 1) * bytes) << 32;
    const __m256i both = points_8(v[0], v[1], v[2], v[3]);
    __m256i halves = _mm256_packus_epi32(_mm256_and_si256(both, _mm256_set1_epi32(0xFFFF)),
                                         _mm256_srli_epi32(both, 16));
    halves = _mm256_permute4x64_epi64(halves, 0xD8);
    const __m256 less = _mm256_cvtph_ps(_mm256_extracti128_si256(halves, 1));
    _mm256_storeu_ps(scale, _mm256_cvtph_ps(_mm256_castsi256_si128(halves)));
    _mm256_storeu_ps(min, _mm256_xor_ps(less, _mm256_set1_ps(-0.0f)));
}

DSI_INLINE void read_small(dsi_dtype dtype, const uint8_t *b, int bytes, int n,
                           dsi_block_parts *p) {
    const bool has_min = dtype == DSI_DTYPE_Q4_1 || dtype == DSI_DTYPE_Q5_1;
    if (n == 8 && dtype != DSI_DTYPE_MXFP4) {
        DSI_UNROLL
        for (int i = 0; i < 8; i++)
            put_32(p->q + 32 * i, small_numbers(dtype, b + i * bytes, bytes));
        if (has_min)
            small_heads_2(b, bytes, p->scale, p->min);
        else
            _mm256_storeu_ps(p->scale, small_heads(b, bytes));
        return;
    }
    for (int i = 0; i < n; i++, b += bytes) {
        const uint32_t e = b[0];
        put_32(p->q + 32 * i, small_numbers(dtype, b, bytes));
        p->scale[i] = dtype != DSI_DTYPE_MXFP4
                          ? half_at(b)
                          : dsi_f32_from_bits(e < 2 ? 0x00200000u << e : (e - 1) << 23);
        if (has_min) p->min[i] = -half_at(b + 2);
    }
}

static void read_q4_0(const uint8_t *b, int n, dsi_block_parts *p) {
    read_small(DSI_DTYPE_Q4_0, b, 18, n, p);
}
static void read_q4_1(const uint8_t *b, int n, dsi_block_parts *p) {
    read_small(DSI_DTYPE_Q4_1, b, 20, n, p);
}
static void read_q5_0(const uint8_t *b, int n, dsi_block_parts *p) {
    read_small(DSI_DTYPE_Q5_0, b, 22, n, p);
}
static void read_q5_1(const uint8_t *b, int n, dsi_block_parts *p) {
    read_small(DSI_DTYPE_Q5_1, b, 24, n, p);
}
static void read_q8_0(const uint8_t *b, int n, dsi_block_parts *p) {
    read_small(DSI_DTYPE_Q8_0, b, 34, n, p);
}
static void read_iq4_nl(const uint8_t *b, int n, dsi_block_parts *p) {
    read_small(DSI_DTYPE_IQ4_NL, b, 18, n, p);
}
static void read_mxfp4(const uint8_t *b, int n, dsi_block_parts *p) {
    read_small(DSI_DTYPE_MXFP4, b, 17, n, p);
}

static void read_nvfp4(const uint8_t *b, int n, dsi_block_parts *p) {
    for (int i = 0; i < n; i++, b += 36) {
        for (int g = 0; g < 4; g++) {
            int e = b[g] >> 3 & 15, mantissa = b[g] & 7;
            float scale =
                e == 0 ? (float)mantissa * 0x1p-10f
                       : dsi_f32_from_bits((uint32_t)(e + 119) << 23 | (uint32_t)mantissa << 20);
            p->scale[4 * i + g] = b[g] == 0x7F ? 0 : scale;
        }
        for (int h = 0; h < 2; h++) { /* 8 bytes are 16 values: those in the low halves first */
            __m256i v = nibbles(load_16(b + 4 + 16 * h));
            v = _mm256_permute4x64_epi64(v, 0xD8);
            put_32(p->q + 64 * i + 32 * h, _mm256_shuffle_epi8(table_16(dsi_fp4_values), v));
        }
    }
}

/* ---- 256 values: Q2_K to Q6_K, IQ4_XS -------------------------------------------------------- */

DSI_INLINE __m256i bits_at(__m256i v, int shift, int mask) {
    return _mm256_and_si256(_mm256_srli_epi16(v, shift), _mm256_set1_epi8((char)mask));
}
/* Every 32 bytes hold 128 values: 32 in their lowest two bits, then 32 in the next. */
DSI_INLINE __m256i two_bits(const uint8_t *qs, int g) {
    return bits_at(load_32(qs + g / 4 * 32), g % 4 * 2, 3);
}

static void read_q2_k(const uint8_t *b, int n, dsi_block_parts *p) {
    (void)n;
    const float d = half_at(b + 80), m = half_at(b + 82);
    const __m128i low4 = _mm_set1_epi8(15), s = load_16(b);
    const __m128i scale = _mm_and_si128(s, low4), min = _mm_and_si128(_mm_srli_epi16(s, 4), low4);
    put_scales(p->scale, d, _mm256_cvtepu8_epi32(scale));
    put_scales(p->scale + 8, d, _mm256_cvtepu8_epi32(_mm_srli_si128(scale, 8)));
    put_scales(p->min, m, _mm256_cvtepu8_epi32(min));
    put_scales(p->min + 8, m, _mm256_cvtepu8_epi32(_mm_srli_si128(min, 8)));
    DSI_UNROLL
    for (int g = 0; g < 8; g++) put_32(p->q + 32 * g, two_bits(b + 16, g));
}

static void read_q3_k(const uint8_t *b, int n, dsi_block_parts *p) {
    (void)n;
    const float d = half_at(b + 108);
    const uint64_t low = u64_at(b + 96), high4 = u32_at(b + 104);
    const uint64_t high = high4 | high4 << 32; /* of 0..3 and 4..7, two bits further 8.. and 12.. */
    const uint64_t two = 0x0303030303030303u, four = 0x0F0F0F0F0F0F0F0Fu;
    const uint64_t high_0 = (high & 0x03030303u) | (high >> 2 & 0x0303030300000000u);
    const uint64_t high_8 = (high >> 4 & 0x03030303u) | (high >> 6 & 0x0303030300000000u);
    __m128i s = _mm_set_epi64x((long long)((low >> 4 & four) | (high_8 & two) << 4),
                               (long long)((low & four) | (high_0 & two) << 4));
    s = _mm_sub_epi8(s, _mm_set1_epi8(32));
    put_scales(p->scale, d, _mm256_cvtepi8_epi32(s));
    put_scales(p->scale + 8, d, _mm256_cvtepi8_epi32(_mm_srli_si128(s, 8)));
    const __m256i four_less = _mm256_set1_epi8(4),
                  absent = _mm256_xor_si256(load_32(b), _mm256_set1_epi8(-1));
    DSI_UNROLL
    for (int g = 0; g < 8; g++) { /* 4 less where bit g is not set */
        __m256i less = _mm256_and_si256(
            g < 2 ? _mm256_slli_epi16(absent, 2 - g) : _mm256_srli_epi16(absent, g - 2), four_less);
        put_32(p->q + 32 * g, _mm256_sub_epi8(two_bits(b + 32, g), less));
    }
}

DSI_INLINE void scales_k4(const uint8_t *b, dsi_block_parts *p) {
    const uint64_t s = u32_at(b + 4), m = u32_at(b + 8), more = u32_at(b + 12);
    const uint64_t six = 0x3F3F3F3Fu, four = 0x0F0F0F0Fu, two = 0x03030303u;
    const uint64_t scales = (s & six) | ((more & four) | (s >> 6 & two) << 4) << 32;
    const uint64_t mins = (m & six) | ((more >> 4 & four) | (m >> 6 & two) << 4) << 32;
    put_scales(p->scale, half_at(b), _mm256_cvtepu8_epi32(_mm_cvtsi64_si128((long long)scales)));
    put_scales(p->min, half_at(b + 2), _mm256_cvtepu8_epi32(_mm_cvtsi64_si128((long long)mins)));
}

static void read_q4_k(const uint8_t *b, int n, dsi_block_parts *p) {
    (void)n;
    scales_k4(b, p);
    DSI_UNROLL
    for (int c = 0; c < 4; c++) {
        const __m256i v = load_32(b + 16 + 32 * c);
        put_32(p->q + 64 * c, bits_at(v, 0, 15));
        put_32(p->q + 64 * c + 32, bits_at(v, 4, 15));
    }
}

static void read_q5_k(const uint8_t *b, int n, dsi_block_parts *p) {
    (void)n;
    const __m256i high = load_32(b + 16), fifth = _mm256_set1_epi8(16);
    scales_k4(b, p);
    DSI_UNROLL
    for (int g = 0; g < 8; g++) {
        const __m256i bit = g < 4 ? _mm256_slli_epi16(high, 4 - g) : _mm256_srli_epi16(high, g - 4);
        const __m256i v = bits_at(load_32(b + 48 + g / 2 * 32), g % 2 * 4, 15);
        put_32(p->q + 32 * g, _mm256_or_si256(v, _mm256_and_si256(bit, fifth)));
    }
}

static void read_q6_k(const uint8_t *b, int n, dsi_block_parts *p) {
    (void)n;
    const float d = half_at(b + 208);
    const __m128i s = load_16(b + 192);
    const __m256i above = _mm256_set1_epi8(0x30), less = _mm256_set1_epi8(32);
    put_scales(p->scale, d, _mm256_cvtepi8_epi32(s));
    put_scales(p->scale + 8, d, _mm256_cvtepi8_epi32(_mm_srli_si128(s, 8)));
    DSI_UNROLL
    for (int g = 0; g < 8; g++) { /* groups 0, 1 of 4: low halves of 64 bytes; 2, 3: high ones */
        const __m256i high = load_32(b + 128 + g / 4 * 32);
        const __m256i bits =
            g % 4 == 3 ? _mm256_srli_epi16(high, 2) : _mm256_slli_epi16(high, 4 - g % 4 * 2);
        const __m256i v = bits_at(load_32(b + g / 4 * 64 + g % 2 * 32), g % 4 / 2 * 4, 15);
        put_32(p->q + 32 * g,
               _mm256_sub_epi8(_mm256_or_si256(v, _mm256_and_si256(bits, above)), less));
    }
}

static void read_iq4_xs(const uint8_t *b, int n, dsi_block_parts *p) {
    (void)n;
    const __m256i shift = _mm256_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14);
    const __m256i nibble = _mm256_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28);
    __m256i high = _mm256_srlv_epi32(_mm256_set1_epi32(dsi_load_u16(b + 2, 0)), shift);
    __m256i low = _mm256_srlv_epi32(_mm256_set1_epi32((int)u32_at(b + 4)), nibble);
    high = _mm256_slli_epi32(_mm256_and_si256(high, _mm256_set1_epi32(3)), 4);
    low = _mm256_or_si256(_mm256_and_si256(low, _mm256_set1_epi32(15)), high);
    put_scales(p->scale, half_at(b), _mm256_sub_epi32(low, _mm256_set1_epi32(32)));
    DSI_UNROLL
    for (int g = 0; g < 8; g++)
        put_32(p->q + 32 * g,
               _mm256_shuffle_epi8(table_16(dsi_iq4_values), nibbles(load_16(b + 8 + 16 * g))));
}

/* ---- 256 values on grids --------------------------------------------------------------------- */

DSI_INLINE void put_signed(int8_t *q, __m256i points, uint32_t signs) {
    const __m256i negative = spread(signs);
    put_32(q, _mm256_sub_epi8(_mm256_xor_si256(points, negative), negative));
}
/* Bytes of seven signs each, the eighth making their number even. */
DSI_INLINE __m256i even_signs(__m256i seven) {
    /* What comes from the next byte stays above bit 3. */
    __m256i odd = _mm256_xor_si256(seven, _mm256_srli_epi32(seven, 4));
    odd = _mm256_xor_si256(odd, _mm256_srli_epi32(odd, 2));
    odd = _mm256_xor_si256(odd, _mm256_srli_epi32(odd, 1));
    odd = _mm256_slli_epi32(_mm256_and_si256(odd, _mm256_set1_epi8(1)), 7);
    return _mm256_or_si256(seven, odd);
}
DSI_INLINE __m256i field(__m256i x, int mask, int left) {
    return _mm256_slli_epi32(_mm256_and_si256(x, _mm256_set1_epi32(mask)), left);
}
/* Words of 4 x 7 bits and a scale above: the signs of 8 groups, and d * (0.5 + scale) * factor. */
DSI_INLINE void signs_and_scales(__m256i words, float d, float factor, uint32_t signs[8],
                                 float scale[8]) {
    __m256i seven = _mm256_or_si256(field(words, 0x7F, 0), field(words, 0x3F80, 1));
    seven = _mm256_or_si256(seven,
                            _mm256_or_si256(field(words, 0x1FC000, 2), field(words, 0xFE00000, 3)));
    _mm256_storeu_si256((__m256i_u *)signs, even_signs(seven));
    __m256 s = _mm256_cvtepi32_ps(_mm256_srli_epi32(words, 28));
    s = _mm256_mul_ps(_mm256_set1_ps(d), _mm256_add_ps(_mm256_set1_ps(0.5f), s));
    _mm256_storeu_ps(scale, _mm256_mul_ps(s, _mm256_set1_ps(factor)));
}
/* Points of 4 values; a gather is slower on AMD's processors. */
DSI_INLINE uint64_t pair(const uint32_t *grid, uint32_t first, uint32_t second) {
    return grid[first] | (uint64_t)grid[second] << 32;
}
/* d times (0.5 + s) times factor, s the 16 halves of 8 bytes. */
DSI_INLINE void scales_half(const uint8_t *b, float d, float factor, dsi_block_parts *p) {
    const __m128i s = _mm_loadl_epi64((const __m128i_u *)b), low4 = _mm_set1_epi8(15);
    const __m128i all =
        _mm_unpacklo_epi8(_mm_and_si128(s, low4), _mm_and_si128(_mm_srli_epi16(s, 4), low4));
    const __m256 half = _mm256_set1_ps(0.5f), by = _mm256_set1_ps(factor), ds = _mm256_set1_ps(d);
    __m256 s0 = _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(all));
    __m256 s1 = _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_srli_si128(all, 8)));
    s0 = _mm256_mul_ps(_mm256_mul_ps(ds, _mm256_add_ps(half, s0)), by);
    s1 = _mm256_mul_ps(_mm256_mul_ps(ds, _mm256_add_ps(half, s1)), by);
    _mm256_storeu_ps(p->scale, s0);
    _mm256_storeu_ps(p->scale + 8, s1);
}

static void read_iq2_xxs(const uint8_t *b, int n, dsi_block_parts *p) {
    (void)n;
    const uint64_t *grid = dsi_grid_iq2_xxs;
    uint32_t signs[8];
    /* Four points, then a word; eight times. */
    const __m256 low = _mm256_castsi256_ps(load_32(b + 2)),
                 high = _mm256_castsi256_ps(load_32(b + 34));
    const __m256i words = _mm256_castps_si256(_mm256_shuffle_ps(low, high, 0xDD));
    signs_and_scales(_mm256_permute4x64_epi64(words, 0xD8), half_at(b), 0.25f, signs, p->scale);
    for (int g = 0; g < 8; g++) {
        const uint8_t *at = b + 2 + 8 * g;
        put_signed(p->q + 32 * g, points_8(grid[at[0]], grid[at[1]], grid[at[2]], grid[at[3]]),
                   signs[g]);
    }
}

static void read_iq2_xs(const uint8_t *b, int n, dsi_block_parts *p) {
    (void)n;
    const uint64_t *grid = dsi_grid_iq2_xs;
    uint32_t signs[8];
    __m256i seven = _mm256_packus_epi16(_mm256_srli_epi16(load_32(b + 2), 9),
                                        _mm256_srli_epi16(load_32(b + 34), 9));
    seven = even_signs(_mm256_permute4x64_epi64(seven, 0xD8));
    _mm256_storeu_si256((__m256i_u *)signs, seven);
    scales_half(b + 66, half_at(b), 0.25f, p);
    for (int g = 0; g < 8; g++) {
        const uint64_t codes = u64_at(b + 2 + 8 * g);
        put_signed(p->q + 32 * g,
                   points_8(grid[codes & 511], grid[codes >> 16 & 511], grid[codes >> 32 & 511],
                            grid[codes >> 48 & 511]),
                   signs[g]);
    }
}

static void read_iq2_s(const uint8_t *b, int n, dsi_block_parts *p) {
    (void)n;
    const uint8_t *qs = b + 2, *signs = b + 34, *qh = b + 66;
    scales_half(b + 74, half_at(b), 0.25f, p);
    for (int g = 0; g < 8; g++, qs += 4) {
        const uint32_t high = qh[g];
        put_signed(p->q + 32 * g,
                   points_8(dsi_grid_iq2_s[qs[0] | (high << 8 & 0x300)],
                            dsi_grid_iq2_s[qs[1] | (high << 6 & 0x300)],
                            dsi_grid_iq2_s[qs[2] | (high << 4 & 0x300)],
                            dsi_grid_iq2_s[qs[3] | (high << 2 & 0x300)]),
                   u32_at(signs + 4 * g));
    }
}

static void read_iq3_xxs(const uint8_t *b, int n, dsi_block_parts *p) {
    (void)n;
    const uint32_t *grid = dsi_grid_iq3_xxs;
    uint32_t signs[8];
    signs_and_scales(load_32(b + 66), half_at(b), 0.5f, signs, p->scale);
    for (int g = 0; g < 8; g++) {
        const uint8_t *q = b + 2 + 8 * g;
        put_signed(p->q + 32 * g,
                   points_8(pair(grid, q[0], q[1]), pair(grid, q[2], q[3]), pair(grid, q[4], q[5]),
                            pair(grid, q[6], q[7])),
                   signs[g]);
    }
}

static void read_iq3_s(const uint8_t *b, int n, dsi_block_parts *p) {
    (void)n;
    const uint32_t *grid = dsi_grid_iq3_s;
    const float d = half_at(b);
    const uint8_t *q = b + 2, *qh = b + 66, *signs = b + 74, *scales = b + 106;
    for (int g = 0; g < 8; g++, q += 8) {
        const uint32_t h = qh[g];
        p->scale[g] = d * (float)(1 + 2 * (scales[g / 2] >> g % 2 * 4 & 15));
        put_signed(p->q + 32 * g,
                   points_8(pair(grid, q[0] | (h << 8 & 256), q[1] | (h << 7 & 256)),
                            pair(grid, q[2] | (h << 6 & 256), q[3] | (h << 5 & 256)),
                            pair(grid, q[4] | (h << 4 & 256), q[5] | (h << 3 & 256)),
                            pair(grid, q[6] | (h << 2 & 256), q[7] | (h << 1 & 256))),
                   u32_at(signs + 4 * g));
    }
}

/* Eight times the points, all of them an eighth (1) up or down as `step` says. */
DSI_INLINE void put_eighths(int8_t *q, __m256i points, __m256i step) {
    points = _mm256_and_si256(_mm256_slli_epi16(points, 3), _mm256_set1_epi8((char)0xF8));
    put_32(q, _mm256_add_epi8(points, step));
}

static void read_iq1_s(const uint8_t *b, int n, dsi_block_parts *p) {
    (void)n;
    const uint64_t *grid = dsi_grid_iq1_s;
    const float d = half_at(b);
    const uint8_t *qs = b + 2;
    for (int g = 0; g < 8; g++, qs += 4) {
        const uint32_t h = dsi_load_u16(b + 34, g);
        p->scale[g] = d * (float)(2 * (h >> 12 & 7) + 1) * 0.125f;
        put_eighths(p->q + 32 * g,
                    points_8(grid[qs[0] | (h << 8 & 0x700)], grid[qs[1] | (h << 5 & 0x700)],
                             grid[qs[2] | (h << 2 & 0x700)], grid[qs[3] | (h >> 1 & 0x700)]),
                    _mm256_set1_epi8(h >> 15 ? -1 : 1));
    }
}

static void read_iq1_m(const uint8_t *b, int n, dsi_block_parts *p) {
    (void)n;
    const uint64_t *grid = dsi_grid_iq1_s, scales = u64_at(b + 48);
    const uint32_t half = (uint32_t)((scales >> 12 & 15) | (scales >> 24 & 0xF0) |
                                     (scales >> 36 & 0xF00) | (scales >> 48 & 0xF000));
    const __m256 d = _mm256_set1_ps(_cvtsh_ss((uint16_t)half));
    const __m256i right = _mm256_setr_epi32(0, 3, 6, 9, 16, 19, 22, 25);
    const __m256i each = _mm256_setr_epi64x(0x8, 0x80, 0x800, 0x8000);
    const uint8_t *qs = b, *qh = b + 32;
    for (int i = 0; i < 2; i++) {
        __m256i s = _mm256_srlv_epi32(_mm256_set1_epi32((int)u32_at(b + 48 + 4 * i)), right);
        s = _mm256_slli_epi32(_mm256_and_si256(s, _mm256_set1_epi32(7)), 1);
        const __m256 odd = _mm256_cvtepi32_ps(_mm256_or_si256(s, _mm256_set1_epi32(1)));
        _mm256_storeu_ps(p->scale + 8 * i,
                         _mm256_mul_ps(_mm256_mul_ps(d, odd), _mm256_set1_ps(0.125f)));
    }
    for (int g = 0; g < 8; g++, qs += 4, qh += 2) {
        const uint32_t h = qh[0] | (uint32_t)qh[1] << 8;
        __m256i down = _mm256_and_si256(_mm256_set1_epi64x((long long)h), each);
        down = _mm256_cmpeq_epi64(down, each);
        put_eighths(p->q + 32 * g,
                    points_8(grid[qs[0] | (h << 8 & 0x700)], grid[qs[1] | (h << 4 & 0x700)],
                             grid[qs[2] | (h & 0x700)], grid[qs[3] | (h >> 4 & 0x700)]),
                    _mm256_or_si256(down, _mm256_set1_epi8(1)));
    }
}

/* ---- 256 values of -1, 0, 1 ------------------------------------------------------------------ */

/* The first digit (to base 3) of bytes that hold numbers as fractions of 256, less 1: 0 below a
 * third, 2 from two thirds on. */
DSI_INLINE __m256i trits(__m256i v) {
    const __m256i third = _mm256_set1_epi8(86), thirds = _mm256_set1_epi8((char)171);
    __m256i q = _mm256_cmpeq_epi8(_mm256_max_epu8(v, third), v);
    q = _mm256_add_epi8(q, _mm256_cmpeq_epi8(_mm256_max_epu8(v, thirds), v));
    return _mm256_sub_epi8(_mm256_set1_epi8(-1), q);
}
DSI_INLINE __m256i times_3(__m256i v) { return _mm256_add_epi8(v, _mm256_add_epi8(v, v)); }

static void read_tq1_0(const uint8_t *b, int n, dsi_block_parts *p) {
    (void)n;
    __m256i v = load_32(b);
    for (int i = 0; i < 5; i++, v = times_3(v)) put_32(p->q + 32 * i, trits(v));
    /* 16 bytes of five digits, and 4 of four. */
    v = _mm256_castsi128_si256(load_16(b + 32));
    for (int i = 0; i < 5; i++, v = times_3(v))
        _mm_store_si128((__m128i *)(void *)(p->q + 160 + 16 * i), _mm256_castsi256_si128(trits(v)));
    v = _mm256_castsi128_si256(_mm_cvtsi32_si128((int)u32_at(b + 48)));
    for (int i = 0; i < 4; i++, v = times_3(v)) {
        const int32_t four = _mm_cvtsi128_si32(_mm256_castsi256_si128(trits(v)));
        memcpy(p->q + 240 + 4 * i, &four, sizeof four);
    }
    for (int g = 0; g < 8; g++) p->scale[g] = half_at(b + 52);
}

static void read_tq2_0(const uint8_t *b, int n, dsi_block_parts *p) {
    (void)n;
    DSI_UNROLL
    for (int g = 0; g < 8; g++)
        put_32(p->q + 32 * g, _mm256_sub_epi8(two_bits(b, g), _mm256_set1_epi8(1)));
    for (int g = 0; g < 8; g++) p->scale[g] = half_at(b + 64);
}

dsi_blocks_read_fn dsi_blocks_reader__avx2(dsi_dtype dtype) {
    static const dsi_blocks_read_fn reader[64] = {
#define READER(type, name) [DSI_DTYPE_##type - DSI_DTYPE_BLOCKS] = name
        READER(Q4_0, read_q4_0),       READER(Q4_1, read_q4_1),       READER(Q5_0, read_q5_0),
        READER(Q5_1, read_q5_1),       READER(Q8_0, read_q8_0),       READER(Q2_K, read_q2_k),
        READER(Q3_K, read_q3_k),       READER(Q4_K, read_q4_k),       READER(Q5_K, read_q5_k),
        READER(Q6_K, read_q6_k),       READER(IQ2_XXS, read_iq2_xxs), READER(IQ2_XS, read_iq2_xs),
        READER(IQ3_XXS, read_iq3_xxs), READER(IQ1_S, read_iq1_s),     READER(IQ4_NL, read_iq4_nl),
        READER(IQ3_S, read_iq3_s),     READER(IQ2_S, read_iq2_s),     READER(IQ4_XS, read_iq4_xs),
        READER(IQ1_M, read_iq1_m),     READER(TQ1_0, read_tq1_0),     READER(TQ2_0, read_tq2_0),
        READER(MXFP4, read_mxfp4),     READER(NVFP4, read_nvfp4),
#undef READER
    };
    return reader[(dtype - DSI_DTYPE_BLOCKS) % 64];
}
