/* limits_avx512vnni.c: dot products of quads of int8 on 512-bit vectors. */
#include "limits.h"
#include <immintrin.h>

float limits_int8_avx512vnni(uint64_t n_rounds) {
    __m512i x = _mm512_set1_epi8(1), y = _mm512_set1_epi8(2);
#define SUM(i) __m512i sum##i = _mm512_set1_epi32(i);
    LIMITS_SUMS(SUM)
#undef SUM
    for (uint64_t round = 0; round < n_rounds; round++) {
#define DOT(i) __asm__ volatile("vpdpbusd %2, %1, %0" : "+v"(sum##i) : "v"(x), "v"(y));
        LIMITS_SUMS(DOT)
#undef DOT
    }
#define ADD(i) sum0 = _mm512_add_epi32(sum0, sum##i);
    LIMITS_SUMS(ADD)
#undef ADD
    uint32_t lanes[16], all = 0; /* unsigned: after many rounds the sums wrap, which says nothing */
    _mm512_storeu_si512(lanes, sum0);
    for (int i = 0; i < 16; i++) all += lanes[i];
    return (float)all;
}
