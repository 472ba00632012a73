/* limits_avx2.c: f32 multiply-adds on 256-bit vectors. */
#include "limits.h"
#include <immintrin.h>

float limits_f32_avx2(uint64_t n_rounds) {
    enum { HALF = LIMITS_DOTS_PER_ROUND / 2 }; /* there are 16 registers */
    __m256 sum[HALF], x = _mm256_set1_ps(0.5f), y = _mm256_set1_ps(0.25f);
    for (int i = 0; i < HALF; i++) sum[i] = _mm256_set1_ps((float)i);
    for (uint64_t round = 0; round < 2 * n_rounds; round++) {
#pragma GCC unroll 12
        for (int i = 0; i < HALF; i++) sum[i] = _mm256_fmadd_ps(x, y, sum[i]);
        __asm__ volatile("" : "+x"(x), "+x"(y)); /* every round anew */
    }
    for (int i = 1; i < HALF; i++) sum[0] = _mm256_add_ps(sum[0], sum[i]);
    float lanes[8];
    _mm256_storeu_ps(lanes, sum[0]);
    return lanes[0] + lanes[7];
}
