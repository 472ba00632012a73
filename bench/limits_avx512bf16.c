/* limits_avx512bf16.c: dot products of pairs of bf16 on 512-bit vectors. */
#include "limits.h"
#include <immintrin.h>

float limits_bf16_avx512bf16(uint64_t n_rounds) {
    __m512i x = _mm512_set1_epi16(0x3f00), y = _mm512_set1_epi16(0x3e80); /* 0.5, 0.25 */
#define SUM(i) __m512 sum##i = _mm512_set1_ps(i);
    LIMITS_SUMS(SUM)
#undef SUM
    for (uint64_t round = 0; round < n_rounds; round++) {
#define DOT(i) __asm__ volatile("vdpbf16ps %2, %1, %0" : "+v"(sum##i) : "v"(x), "v"(y));
        LIMITS_SUMS(DOT)
#undef DOT
    }
#define ADD(i) sum0 = _mm512_add_ps(sum0, sum##i);
    LIMITS_SUMS(ADD)
#undef ADD
    return _mm512_reduce_add_ps(sum0);
}
