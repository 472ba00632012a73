/* vnni_double.h: computes in plain AVX-512 what the VNNI instruction of the *_avx512vnni.c kernels
 * does, so that their code is tested on machines without it.
 *
 * Put before a kernel file with `gcc -include tests/vnni_double.h`, flags of an avx512 file; the
 * kernels then carry the suffix _double. EMULATED: it proves the answers, never the speed. */
#ifndef DSI_TESTS_VNNI_DOUBLE_H
#define DSI_TESTS_VNNI_DOUBLE_H

#include <immintrin.h>

/* vpdpbusd: per 32-bit lane sum += the four products of a's bytes, unsigned, and b's, signed; what
 * overflows wraps (Intel SDM). Pairs of products stay inside of 16 + 16 bits: they are formed from
 * 16-bit numbers, even and odd bytes apart. */
static inline __m512i dsi_double_dpbusd_epi32(__m512i sum, __m512i a, __m512i b) {
    const __m512i low = _mm512_set1_epi16(0xFF);
    __m512i a_even = _mm512_and_si512(a, low), a_odd = _mm512_srli_epi16(a, 8);
    __m512i b_even = _mm512_srai_epi16(_mm512_slli_epi16(b, 8), 8), b_odd = _mm512_srai_epi16(b, 8);
    sum = _mm512_add_epi32(sum, _mm512_madd_epi16(a_even, b_even));
    return _mm512_add_epi32(sum, _mm512_madd_epi16(a_odd, b_odd));
}

#define _mm512_dpbusd_epi32 dsi_double_dpbusd_epi32
#define dsi_matmul_i8_a8__avx512vnni dsi_matmul_i8_a8__avx512vnni_double
#define dsi_matmul_i4_a8__avx512vnni dsi_matmul_i4_a8__avx512vnni_double

#endif
