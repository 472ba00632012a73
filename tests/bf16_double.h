/* bf16_double.h: computes in plain AVX-512 what the VBMI and BF16 instructions of the
 * *_avx512bf16.c kernels do, so that their code is tested on machines without them.
 *
 * Put before a kernel file with `gcc -include tests/bf16_double.h`, flags of an avx512 file; the
 * kernels then carry the suffix _double. EMULATED: it proves the answers, never the speed. */
#ifndef DSI_TESTS_BF16_DOUBLE_H
#define DSI_TESTS_BF16_DOUBLE_H

#include <immintrin.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>

/* vdpbf16ps takes denormal inputs as zero and makes denormal results zero, keeping the sign. */
static inline __m512 dsi_double_flush(__m512 value) {
    __m512i bits = _mm512_castps_si512(value), keep = _mm512_set1_epi32((int)0x80000000);
    __mmask16 normal = _mm512_test_epi32_mask(bits, _mm512_set1_epi32(0x7F800000));
    return _mm512_castsi512_ps(_mm512_mask_and_epi32(bits, (__mmask16)~normal, bits, keep));
}

/* a * b + sum, rounded to nearest even, then flushed. The instruction decides what is denormal as
 * if the exponent had no lower end: what lies less than a quarter step below the smallest normal
 * number becomes that number, the rest zero. f32 arithmetic rounds up from half a step, so that
 * lanes with this result are looked at again; the sum of doubles is exact there. */
static inline __m512 dsi_double_fma(__m512 a, __m512 b, __m512 sum) {
    const float smallest = 0x1p-126f;
    __m512 value = _mm512_fmadd_ps(a, b, sum);
    __mmask16 edge = _mm512_cmp_ps_mask(_mm512_abs_ps(value), _mm512_set1_ps(smallest), _CMP_EQ_OQ);
    if (edge != 0) {
        float x[16], y[16], z[16], result[16];
        _mm512_storeu_ps(x, a);
        _mm512_storeu_ps(y, b);
        _mm512_storeu_ps(z, sum);
        _mm512_storeu_ps(result, value);
        for (int i = 0; i < 16; i++) {
            double exact = (double)x[i] * (double)y[i] + (double)z[i];
            bool denormal = exact > -0x1p-126 + 0x1p-151 && exact < 0x1p-126 - 0x1p-151;
            if ((edge >> i & 1) != 0 && denormal) result[i] = result[i] < 0 ? -0.0f : 0.0f;
        }
        value = _mm512_loadu_ps(result);
    }
    return dsi_double_flush(value);
}

/* Per lane: sum += a[2i+1] * b[2i+1], then sum += a[2i] * b[2i], each one fused and rounded (Intel
 * SDM, VDPBF16PS). Equal to an AMD Zen 5 bit for bit: tests/test_bf16_double.c. */
static __attribute__((noinline, unused)) __m512 dsi_double_dpbf16_ps(__m512 sum, __m512i a,
                                                                     __m512i b) {
    const __m512i odd = _mm512_set1_epi32((int)0xFFFF0000);
    __m512 a1 = dsi_double_flush(_mm512_castsi512_ps(_mm512_and_si512(a, odd)));
    __m512 b1 = dsi_double_flush(_mm512_castsi512_ps(_mm512_and_si512(b, odd)));
    __m512 a0 = dsi_double_flush(_mm512_castsi512_ps(_mm512_slli_epi32(a, 16)));
    __m512 b0 = dsi_double_flush(_mm512_castsi512_ps(_mm512_slli_epi32(b, 16)));
    return dsi_double_fma(a0, b0, dsi_double_fma(a1, b1, dsi_double_flush(sum)));
}

/* vpermi2b: byte i is byte (index[i] & 127) of the 128 bytes low, high. */
static inline __m512i dsi_double_permutex2var_epi8(__m512i low, __m512i index, __m512i high) {
    uint8_t table[128], indices[64];
    _mm512_storeu_si512(table, low);
    _mm512_storeu_si512(table + 64, high);
    _mm512_storeu_si512(indices, index);
    for (int i = 0; i < 64; i++) indices[i] = table[indices[i] & 127];
    return _mm512_loadu_si512(indices);
}

/* vcvtne2ps2bf16: bf16 of the 32 lanes low, high, rounded to nearest even; denormals become zero, a
 * NaN quiet. */
static inline __m512i dsi_double_cvtne2ps_pbh(__m512 high, __m512 low) {
    float from[32];
    uint16_t to[32];
    _mm512_storeu_ps(from, dsi_double_flush(low));
    _mm512_storeu_ps(from + 16, dsi_double_flush(high));
    for (int i = 0; i < 32; i++) {
        uint32_t bits;
        memcpy(&bits, from + i, sizeof bits);
        bool nan = (bits & 0x7FFFFFFFu) > 0x7F800000u;
        to[i] = (uint16_t)((nan ? bits | 0x00400000u : bits + 0x7FFFu + (bits >> 16 & 1u)) >> 16);
    }
    return _mm512_loadu_si512(to);
}

#define _mm512_cvtne2ps_pbh dsi_double_cvtne2ps_pbh
#define _mm512_dpbf16_ps(sum, a, b) dsi_double_dpbf16_ps((sum), (__m512i)(a), (__m512i)(b))
#define _mm512_permutex2var_epi8 dsi_double_permutex2var_epi8
#define dsi_matmul_blocks_bf16__avx512bf16 dsi_matmul_blocks_bf16__avx512bf16_double
#define dsi_matmul_fp8_bf16__avx512bf16 dsi_matmul_fp8_bf16__avx512bf16_double
#define dsi_matmul_i8_bf16__avx512bf16 dsi_matmul_i8_bf16__avx512bf16_double
#define dsi_matmul_i4_bf16__avx512bf16 dsi_matmul_i4_bf16__avx512bf16_double
#define dsi_matmul_bf16_bf16__avx512bf16 dsi_matmul_bf16_bf16__avx512bf16_double
#define dsi_matmul_t_fp8__avx512bf16 dsi_matmul_t_fp8__avx512bf16_double
#define dsi_matmul_t_bf16__avx512bf16 dsi_matmul_t_bf16__avx512bf16_double
#define dsi_attend_bf16__avx512bf16 dsi_attend_bf16__avx512bf16_double
#define dsi_index_score_bf16__avx512bf16 dsi_index_score_bf16__avx512bf16_double
#define dsi_decode_fp8__avx512bf16 dsi_decode_fp8__avx512bf16_double

#endif
