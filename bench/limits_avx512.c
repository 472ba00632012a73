/* limits_avx512.c: reading and f32 multiply-adds on 512-bit vectors. */
#include "limits.h"
#include <immintrin.h>

uint64_t limits_read_avx512(const uint8_t *data, uint64_t n_bytes) {
    enum { AHEAD = 4096 };
    __m512i a = _mm512_setzero_si512(), b = a, c = a, d = a;
    for (uint64_t i = 0; i < n_bytes; i += 256) {
        for (int line = 0; line < 256; line += 64)
            _mm_prefetch((const char *)data + i + AHEAD + line, _MM_HINT_T0);
        a = _mm512_xor_si512(a, _mm512_load_si512(data + i));
        b = _mm512_xor_si512(b, _mm512_load_si512(data + i + 64));
        c = _mm512_xor_si512(c, _mm512_load_si512(data + i + 128));
        d = _mm512_xor_si512(d, _mm512_load_si512(data + i + 192));
    }
    a = _mm512_xor_si512(_mm512_xor_si512(a, b), _mm512_xor_si512(c, d));
    return (uint64_t)_mm512_reduce_add_epi64(a);
}

float limits_f32_avx512(uint64_t n_rounds) {
    __m512 x = _mm512_set1_ps(0.5f), y = _mm512_set1_ps(0.25f);
#define SUM(i) __m512 sum##i = _mm512_set1_ps(i);
    LIMITS_SUMS(SUM)
#undef SUM
    for (uint64_t round = 0; round < n_rounds; round++) {
#define DOT(i) __asm__ volatile("vfmadd231ps %2, %1, %0" : "+v"(sum##i) : "v"(x), "v"(y));
        LIMITS_SUMS(DOT)
#undef DOT
    }
#define ADD(i) sum0 = _mm512_add_ps(sum0, sum##i);
    LIMITS_SUMS(ADD)
#undef ADD
    return _mm512_reduce_add_ps(sum0);
}
