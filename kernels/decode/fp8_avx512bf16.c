/* fp8_avx512bf16.c: a row of E4M3 weights as bf16, 64 at a time, with the tables of VBMI. */
#include "../kernels.h"
#include "../matmul/e4m3_bf16.h"

/* f32 to bf16 in the upper halves: to the nearest, ties to even. Right for all but NaN with bits
 * below the sixteenth set, which no product of a code and a number is. */
DSI_INLINE __m512i rounded(__m512 value) {
    const __m512i bits = _mm512_castps_si512(value);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    return _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7FFF)), odd);
}

/* 32 bf16 times a scale. */
DSI_INLINE __m512i scaled(__m512i values, __m512 scale) {
    const __m512i upper = _mm512_set1_epi32((int32_t)0xFFFF0000u);
    const __m512 even = _mm512_castsi512_ps(_mm512_slli_epi32(values, 16));
    const __m512 odd = _mm512_castsi512_ps(_mm512_and_si512(values, upper));
    const __m512i low = _mm512_srli_epi32(rounded(_mm512_mul_ps(even, scale)), 16);
    /* low | (rounded & upper) */
    return _mm512_ternarylogic_epi32(low, rounded(_mm512_mul_ps(odd, scale)), upper, 0xF8);
}

void dsi_decode_fp8__avx512bf16(const uint8_t *w, const float *scale, uint16_t *y, int64_t k) {
    /* eight codes of each half of the result to where unpacking takes them from */
    const __m512i order = _mm512_setr_epi64(0, 4, 1, 5, 2, 6, 3, 7);
    for (int64_t i = 0; i < k; i += 64) {
        const float factor = scale[i / DSI_BLOCK];
        const int64_t left = k - i;
        const uint64_t all = left >= 64 ? ~(uint64_t)0 : ((uint64_t)1 << left) - 1;
        if (factor != factor) { /* NaN: all of them are */
            const __m512i nan = _mm512_set1_epi16(0x7FC0);
            _mm512_mask_storeu_epi16(y + i, (__mmask32)all, nan);
            _mm512_mask_storeu_epi16(y + i + 32, (__mmask32)(all >> 32), nan);
            continue;
        }
        const __m512i codes = _mm512_maskz_loadu_epi8(all, w + i);
        const dsi_wide wide = dsi_e4m3_to_bf16(_mm512_permutexvar_epi64(order, codes));
        const __m512 factors = _mm512_set1_ps(factor);
        _mm512_mask_storeu_epi16(y + i, (__mmask32)all, scaled(wide.first, factors));
        _mm512_mask_storeu_epi16(y + i + 32, (__mmask32)(all >> 32), scaled(wide.second, factors));
    }
}
