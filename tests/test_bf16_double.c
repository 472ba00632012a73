/* test_bf16_double.c: the instructions that tests/bf16_double.h stands in for, where this CPU has
 * them: what the double computes is compared bit by bit, so that an EMULATED line of check_kernels
 * says the same as a run. Elsewhere the test is skipped. */
#include "../kernels/kernels.h"
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#if defined(__x86_64__)
#include <immintrin.h>

/* Only what stands below may use these instructions: main must start on every CPU. */
#if defined(__clang__)
#pragma clang attribute push(                                                                      \
    __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512vbmi,avx512bf16,fma"))),       \
    apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx512vbmi,avx512bf16,fma")
#endif

static void native_dot(const uint32_t *sum, const uint32_t *a, const uint32_t *b, uint32_t *out) {
    __m512 r = _mm512_dpbf16_ps(_mm512_loadu_ps(sum), (__m512bh)_mm512_loadu_si512(a),
                                (__m512bh)_mm512_loadu_si512(b));
    _mm512_storeu_ps(out, r);
}
static void native_lookup(const uint8_t *table, const uint8_t *index, uint8_t *out) {
    __m512i low = _mm512_loadu_si512(table), high = _mm512_loadu_si512(table + 64);
    _mm512_storeu_si512(out, _mm512_permutex2var_epi8(low, _mm512_loadu_si512(index), high));
}
static void native_round(const uint32_t *x, uint16_t *out) {
    _mm512_storeu_si512(out,
                        (__m512i)_mm512_cvtne2ps_pbh(_mm512_loadu_ps(x + 16), _mm512_loadu_ps(x)));
}

#include "bf16_double.h"

static void double_round(const uint32_t *x, uint16_t *out) {
    _mm512_storeu_si512(out, dsi_double_cvtne2ps_pbh(_mm512_loadu_ps(x + 16), _mm512_loadu_ps(x)));
}
static void double_dot(const uint32_t *sum, const uint32_t *a, const uint32_t *b, uint32_t *out) {
    __m512 r =
        dsi_double_dpbf16_ps(_mm512_loadu_ps(sum), _mm512_loadu_si512(a), _mm512_loadu_si512(b));
    _mm512_storeu_ps(out, r);
}
static void double_lookup(const uint8_t *table, const uint8_t *index, uint8_t *out) {
    __m512i low = _mm512_loadu_si512(table), high = _mm512_loadu_si512(table + 64);
    _mm512_storeu_si512(out, dsi_double_permutex2var_epi8(low, _mm512_loadu_si512(index), high));
}

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

enum { LANES = 16, ROUNDS = 400000, KINDS = 5 };

static uint64_t random_bits(void) {
    static uint64_t state = 1;
    uint64_t z = state += 0x9E3779B97F4A7C15u; /* SplitMix64 */
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
}

static bool is_nan(uint32_t bits) { return (bits & 0x7FFFFFFFu) > 0x7F800000u; }

/* Two bf16 of one lane. kind 0: any bits; 1: usual sizes; 2: products and sums around the smallest
 * normal number, from both sides; 3: around the largest; 4: products below half a step of the
 * smallest normal number, which is the sum. */
static uint32_t pair(uint64_t kind, uint32_t exponent) {
    uint32_t bits = (uint32_t)random_bits();
    if (kind == 0) return bits;
    uint32_t low = exponent + (uint32_t)(random_bits() % 4), high = exponent + bits % 4;
    return (bits & 0x807F807Fu) | low << 7 | high << 23;
}

static void fill(uint64_t kind, uint32_t *sum, uint32_t *a, uint32_t *b) {
    /* Exponents of the sum, a and b: 127 is 1. a * b of kind 2 is near 2^-126. */
    static const uint32_t size[KINDS][3] = {
        {0, 0, 0}, {124, 124, 124}, {0, 63, 63}, {250, 190, 187}, {1, 50, 50}};
    for (int i = 0; i < LANES; i++) {
        uint32_t bits = (uint32_t)random_bits();
        a[i] = pair(kind, size[kind][1]);
        b[i] = pair(kind, size[kind][2]);
        sum[i] = kind == 0 ? bits : (bits & 0x807FFFFFu) | (size[kind][0] + bits % 5) << 23;
        if (kind == 2 && bits % 3 == 0) a[i] &= 0xFFFF8000u; /* one product is zero */
        if (kind == 4) sum[i] = (bits & 0x80000000u) | 0x00800000u;
        if (kind == 2 && bits % 7 == 0) sum[i] = (bits & 0x80000000u) | (0x00800000u + bits % 3);
    }
}

static void test_dot(void **state) {
    (void)state;
    if ((dsi_isa_detect() & DSI_ISA_AVX512BF16) == 0) skip();
    uint32_t sum[LANES], a[LANES], b[LANES], native[LANES], ours[LANES];
    uint64_t n_nan = 0, n_zero = 0;
    for (uint64_t round = 0; round < ROUNDS; round++) {
        fill(round % KINDS, sum, a, b);
        native_dot(sum, a, b, native);
        double_dot(sum, a, b, ours);
        for (int i = 0; i < LANES; i++) {
            n_zero += (native[i] & 0x7FFFFFFFu) == 0;
            n_nan += is_nan(native[i]);
            if (native[i] == ours[i] || (is_nan(native[i]) && is_nan(ours[i]))) continue;
            print_error("%08x + %08x . %08x is %08x here, the double says %08x\n", sum[i], a[i],
                        b[i], native[i], ours[i]);
            fail();
        }
    }
    print_message("vdpbf16ps: %d sums equal the double bit for bit (%llu zero, %llu NaN)\n",
                  ROUNDS * LANES, (unsigned long long)n_zero, (unsigned long long)n_nan);
    /* The cases were worth their name. */
    assert_true(n_zero > 1000 && n_nan > 1000);
}

static void test_lookup(void **state) {
    (void)state;
    if ((dsi_isa_detect() & DSI_ISA_AVX512BF16) == 0) skip();
    uint8_t table[128], index[64], native[64], ours[64];
    for (int round = 0; round < 2000; round++) {
        for (int i = 0; i < 128; i++) table[i] = (uint8_t)random_bits();
        for (int i = 0; i < 64; i++) index[i] = (uint8_t)random_bits();
        native_lookup(table, index, native);
        double_lookup(table, index, ours);
        assert_memory_equal(native, ours, sizeof ours);
    }
}

static void test_round(void **state) {
    (void)state;
    if ((dsi_isa_detect() & DSI_ISA_AVX512BF16) == 0) skip();
    uint32_t x[2 * LANES];
    uint16_t native[2 * LANES], ours[2 * LANES];
    uint64_t n_nan = 0, n_zero = 0;
    for (int round = 0; round < 100000; round++) {
        for (int i = 0; i < 2 * LANES; i++) {
            x[i] = (uint32_t)random_bits();
            if (round % 4 == 1) x[i] = (x[i] & 0xFFFF0000u) | 0x8000u; /* half way */
            if (round % 4 == 2) x[i] = (x[i] & 0x80FFFFFFu);           /* denormal, or nearly */
            if (round % 4 == 3) x[i] |= 0x7F000000u;                   /* large, infinite, NaN */
        }
        native_round(x, native);
        double_round(x, ours);
        assert_memory_equal(native, ours, sizeof ours);
        for (int i = 0; i < 2 * LANES; i++) {
            n_nan += (native[i] & 0x7FFFu) > 0x7F80u;
            n_zero += (native[i] & 0x7FFFu) == 0;
        }
    }
    assert_true(n_zero > 1000 && n_nan > 1000);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_dot), cmocka_unit_test(test_lookup),
                                       cmocka_unit_test(test_round)};
    return cmocka_run_group_tests_name("bf16_double", tests, NULL, NULL);
}

#else

int main(void) {
    puts("bf16_double: not an x86-64 machine, nothing to compare");
    return 0;
}

#endif
