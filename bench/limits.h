/* limits.h: the loops that measure a machine, one file per instruction set. Each returns a number
 * made of its results, so that no compiler drops the work. */
#ifndef DSI_BENCH_LIMITS_H
#define DSI_BENCH_LIMITS_H

#include <stdint.h>

/* Reads n_bytes (a multiple of 512, 64-byte aligned). */
typedef uint64_t (*limits_read_fn)(const uint8_t *data, uint64_t n_bytes);
uint64_t limits_read_plain(const uint8_t *data, uint64_t n_bytes);
uint64_t limits_read_avx512(const uint8_t *data, uint64_t n_bytes);

/* n_rounds rounds of 24 independent multiply-add instructions on full vectors. */
typedef float (*limits_dot_fn)(uint64_t n_rounds);
enum { LIMITS_DOTS_PER_ROUND = 24 };
/* As many named sums: an array may end up in memory, and a compiler may copy them. */
#define LIMITS_SUMS(X)                                                                             \
    X(0)                                                                                           \
    X(1)                                                                                           \
    X(2)                                                                                           \
    X(3) X(4) X(5) X(6) X(7) X(8) X(9) X(10) X(11) X(12) X(13) X(14) X(15) X(16) X(17) X(18) X(19) \
        X(20) X(21) X(22) X(23)
float limits_f32_avx2(uint64_t n_rounds);        /* 16 operations each */
float limits_f32_avx512(uint64_t n_rounds);      /* 32 */
float limits_bf16_avx512bf16(uint64_t n_rounds); /* 64 */
float limits_int8_avx512vnni(uint64_t n_rounds); /* 128 */

#endif
