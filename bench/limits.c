/* limits.c: what this machine can do at most: bytes read from memory and multiply-adds a second.
 * Every speed is shown beside these, measured in the same run. */
#include "limits.h"

#include "../kernels/kernels.h"
#include "../lib/base/pool.h"
#include "../lib/base/sys.h"
#include "bench.h"
#include <string.h>
#include <sys/mman.h>

enum { REPEAT = 5, ROUNDS = 2000000 };
static const uint64_t array_bytes = UINT64_C(1) << 30; /* far more than any cache */

uint64_t limits_read_plain(const uint8_t *data, uint64_t n_bytes) {
    uint64_t sum[8] = {0}, word;
    for (uint64_t i = 0; i < n_bytes; i += sizeof sum)
        for (int j = 0; j < 8; j++) {
            memcpy(&word, data + i + 8 * j, 8);
            sum[j] ^= word;
        }
    return sum[0] ^ sum[1] ^ sum[2] ^ sum[3] ^ sum[4] ^ sum[5] ^ sum[6] ^ sum[7];
}

typedef struct job {
    limits_read_fn read;
    limits_dot_fn dot;
    uint8_t *data; /* [array_bytes], each thread's share touched by itself */
    volatile float sink;
} job;

static void touch(void *context, uint32_t thread, uint32_t n_threads) {
    const job *j = context;
    uint64_t begin, end;
    dsi_pool_share(array_bytes, 1 << 21, thread, n_threads, &begin, &end);
    for (uint64_t i = begin; i < end; i += 4096) j->data[i] = (uint8_t)(i >> 12);
}
static void read_share(void *context, uint32_t thread, uint32_t n_threads) {
    job *j = context;
    uint64_t begin, end;
    dsi_pool_share(array_bytes, 1 << 21, thread, n_threads, &begin, &end);
    j->sink = (float)j->read(j->data + begin, end - begin);
}
static void run_dots(void *context, uint32_t thread, uint32_t n_threads) {
    job *j = context;
    (void)thread;
    (void)n_threads;
    j->sink = j->dot(ROUNDS);
}

static double best_seconds(dsi_pool *pool, dsi_pool_fn fn, job *j) {
    double best = 0;
    for (int i = 0; i < REPEAT; i++) {
        double start = dsi_sys_seconds();
        dsi_pool_run(pool, fn, j);
        double seconds = dsi_sys_seconds() - start;
        if (i == 0 || seconds < best) best = seconds;
    }
    return best;
}

double bench_read_gbs(uint32_t n_threads) {
    dsi_pool *pool;
    dsi_error error = {0};
    if (dsi_pool_new(n_threads, NULL, &pool, &error) != DSI_OK) return 0;
    job j = {.read = limits_read_plain};
#if defined(__x86_64__)
    if (dsi_isa_detect() & DSI_ISA_AVX512) j.read = limits_read_avx512;
#endif
    double rate = 0;
    j.data = mmap(NULL, array_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (j.data != MAP_FAILED) {
        madvise(j.data, array_bytes, MADV_HUGEPAGE);
        dsi_pool_run(pool, touch, &j);
        rate = (double)array_bytes / best_seconds(pool, read_share, &j) / 1e9;
        munmap(j.data, array_bytes);
    }
    dsi_pool_free(pool);
    return rate;
}

/* 1e9 operations a second of all threads, or 0 if the CPU lacks the instruction. */
static double dot_rate(dsi_pool *pool, limits_dot_fn dot, int operations, bool there) {
    job j = {.dot = dot};
    if (!there) return 0;
    double n = (double)ROUNDS * LIMITS_DOTS_PER_ROUND * operations * dsi_pool_size(pool);
    return n / best_seconds(pool, run_dots, &j) / 1e9;
}

bench_peaks bench_measure_peaks(uint32_t n_threads) {
    bench_peaks peaks = {0};
    dsi_pool *pool;
    dsi_error error = {0};
    if (dsi_pool_new(n_threads, NULL, &pool, &error) != DSI_OK) return peaks;
#if defined(__x86_64__)
    uint32_t isa = dsi_isa_detect();
    bool vnni = (isa & DSI_ISA_AVX512) && __builtin_cpu_supports("avx512vnni");
    peaks.f32_gflops = isa & DSI_ISA_AVX512
                           ? dot_rate(pool, limits_f32_avx512, 32, true)
                           : dot_rate(pool, limits_f32_avx2, 16, isa & DSI_ISA_AVX2);
    peaks.bf16_gflops = dot_rate(pool, limits_bf16_avx512bf16, 64, isa & DSI_ISA_AVX512BF16);
    peaks.int8_gops = dot_rate(pool, limits_int8_avx512vnni, 128, vnni);
#else
    (void)dot_rate;
#endif
    dsi_pool_free(pool);
    return peaks;
}
