/* limits.c: what this machine can do at most: bytes read from memory, multiply-adds a second,
 * clock. Every speed is shown beside these, measured in the same run. */
#include "limits.h"

#include "../kernels/kernels.h"
#include "../lib/base/pool.h"
#include "../lib/base/sys.h"
#include "bench.h"
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

enum { PASSES = 3, ROUNDS = 1000000, MULTIPLIES = 2000000, MULTIPLY_CYCLES = 3 };
enum { READ, F32, AVX2, BF16, INT8, CLOCK, N_RATES };
enum { MOST_ROUNDS = 4096 };

struct bench_yardstick {
    dsi_pool *pool;
    uint8_t *data; /* [n_bytes], each thread's share touched by itself */
    uint64_t n_bytes;
    limits_read_fn read;
    limits_dot_fn dot[N_RATES]; /* NULL: this CPU has no such instruction */
    int operations[N_RATES];    /* of one instruction */
    limits_dot_fn running;
    volatile float sink;
    uint32_t n_rounds[N_RATES], mark[N_RATES];
    double rates[N_RATES][MOST_ROUNDS];
};

uint64_t limits_read_plain(const uint8_t *data, uint64_t n_bytes) {
    uint64_t sum[8] = {0}, word;
    for (uint64_t i = 0; i < n_bytes; i += sizeof sum)
        for (int j = 0; j < 8; j++) {
            memcpy(&word, data + i + 8 * j, 8);
            sum[j] ^= word;
        }
    return sum[0] ^ sum[1] ^ sum[2] ^ sum[3] ^ sum[4] ^ sum[5] ^ sum[6] ^ sum[7];
}

/* ---- Passes ---------------------------------------------------------------------------------- */

static void touch(void *context, uint32_t thread, uint32_t n_threads) {
    const bench_yardstick *y = context;
    uint64_t begin, end;
    dsi_pool_share(y->n_bytes, 1 << 21, thread, n_threads, &begin, &end);
    for (uint64_t i = begin; i < end; i += 4096) y->data[i] = (uint8_t)(i >> 12);
}
static void read_share(void *context, uint32_t thread, uint32_t n_threads) {
    bench_yardstick *y = context;
    uint64_t begin, end;
    dsi_pool_share(y->n_bytes, 1 << 21, thread, n_threads, &begin, &end);
    y->sink = (float)y->read(y->data + begin, end - begin);
}
static void run_dots(void *context, uint32_t thread, uint32_t n_threads) {
    bench_yardstick *y = context;
    (void)thread;
    (void)n_threads;
    y->sink = y->running(ROUNDS);
}

/* A chain of multiplications, each of which waits MULTIPLY_CYCLES for the one before it, on every
 * x86-64 of the last fifteen years. */
static void run_clock(void *context, uint32_t thread, uint32_t n_threads) {
    bench_yardstick *y = context;
    uint64_t x = thread + 3;
    (void)n_threads;
#if defined(__x86_64__)
    for (uint64_t i = 0; i < MULTIPLIES / 8; i++)
        __asm__ volatile("imul %0, %0\n imul %0, %0\n imul %0, %0\n imul %0, %0\n"
                         "imul %0, %0\n imul %0, %0\n imul %0, %0\n imul %0, %0"
                         : "+r"(x));
#endif
    y->sink = (float)x;
}

static double best_seconds(bench_yardstick *y, dsi_pool_fn fn) {
    double best = 0;
    for (int i = 0; i < PASSES; i++) {
        double start = dsi_sys_seconds();
        dsi_pool_run(y->pool, fn, y);
        double seconds = dsi_sys_seconds() - start;
        if (i == 0 || seconds < best) best = seconds;
    }
    return best;
}

static void add_rate(bench_yardstick *y, int which, double rate) {
    if (y->n_rounds[which] < MOST_ROUNDS) y->rates[which][y->n_rounds[which]++] = rate;
}

void bench_yardstick_round(bench_yardstick *y, uint32_t what) {
    if (what & BENCH_READ)
        add_rate(y, READ, (double)y->n_bytes / best_seconds(y, read_share) / 1e9);
    for (int i = F32; what & BENCH_PEAKS && i <= INT8; i++) {
        if (!y->dot[i]) continue;
        y->running = y->dot[i];
        double n = (double)ROUNDS * LIMITS_DOTS_PER_ROUND * y->operations[i];
        add_rate(y, i, n * dsi_pool_size(y->pool) / best_seconds(y, run_dots) / 1e9);
    }
#if defined(__x86_64__)
    if (what & BENCH_CLOCK)
        add_rate(y, CLOCK, (double)MULTIPLIES * MULTIPLY_CYCLES / best_seconds(y, run_clock) / 1e9);
#else
    (void)run_clock;
#endif
}

static bench_limits medians(const bench_yardstick *y, const uint32_t *first) {
    double median[N_RATES], sorted[MOST_ROUNDS];
    for (int i = 0; i < N_RATES; i++) {
        uint32_t n = y->n_rounds[i] - first[i];
        memcpy(sorted, y->rates[i] + first[i], n * sizeof *sorted);
        median[i] = bench_median(sorted, n);
    }
    return (bench_limits){.n_threads = dsi_pool_size(y->pool),
                          .read_gbs = median[READ],
                          .f32_gflops = median[F32],
                          .avx2_gflops = median[AVX2],
                          .bf16_gflops = median[BF16],
                          .int8_gops = median[INT8],
                          .clock_ghz = median[CLOCK]};
}

bench_limits bench_yardstick_result(const bench_yardstick *y) {
    static const uint32_t first[N_RATES];
    return medians(y, first);
}

void bench_yardstick_mark(bench_yardstick *y) { memcpy(y->mark, y->n_rounds, sizeof y->mark); }

bench_limits bench_yardstick_since(const bench_yardstick *y) { return medians(y, y->mark); }

/* ---- A yardstick ----------------------------------------------------------------------------- */

static void choose_loops(bench_yardstick *y) {
    y->read = limits_read_plain;
#if defined(__x86_64__)
    uint32_t isa = dsi_isa_detect();
    bool avx512 = isa & DSI_ISA_AVX512;
    y->operations[F32] = avx512 ? 32 : 16;
    y->operations[AVX2] = 16;
    y->operations[BF16] = 64;
    y->operations[INT8] = 128;
    if (avx512) y->read = limits_read_avx512;
    if (isa & DSI_ISA_AVX2) y->dot[F32] = avx512 ? limits_f32_avx512 : limits_f32_avx2;
    if (isa & DSI_ISA_AVX2) y->dot[AVX2] = limits_f32_avx2;
    if (isa & DSI_ISA_AVX512BF16) y->dot[BF16] = limits_bf16_avx512bf16;
    if (avx512 && __builtin_cpu_supports("avx512vnni")) y->dot[INT8] = limits_int8_avx512vnni;
#endif
}

uint64_t bench_last_cache_bytes(void) {
    uint64_t most = 0, kb;
    char path[96];
    for (int i = 0; i < 8; i++) {
        snprintf(path, sizeof path, "/sys/devices/system/cpu/cpu0/cache/index%d/size", i);
        FILE *f = fopen(path, "r");
        char unit = 0;
        unsigned long long n;
        if (f && fscanf(f, "%llu%c", &n, &unit) >= 1) {
            kb = n * (unit == 'M' ? 1024 : 1);
            if (kb > most) most = kb;
        }
        if (f) fclose(f);
    }
    return most ? most << 10 : UINT64_C(32) << 20;
}

/* At least sixteen times the last cache, so that what is left of one pass in it does not help the
 * next. */
static uint64_t array_bytes(void) {
    uint64_t n = UINT64_C(1) << 30;
    while (n < 16 * bench_last_cache_bytes() && n < UINT64_C(4) << 30) n *= 2;
    return n;
}

bench_yardstick *bench_yardstick_new(uint32_t n_threads) {
    dsi_error error = {0};
    bench_yardstick *y = calloc(1, sizeof *y);
    if (!y || dsi_pool_new(n_threads, NULL, &y->pool, &error) != DSI_OK) {
        bench_say("the limits cannot be measured: %s", y ? error.text : "no memory");
        free(y);
        return NULL;
    }
    choose_loops(y);
    y->n_bytes = array_bytes();
    y->data = mmap(NULL, y->n_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (y->data == MAP_FAILED) {
        bench_say("the limits cannot be measured: no memory for %llu MiB to read",
                  (unsigned long long)(y->n_bytes >> 20));
        y->data = NULL;
        bench_yardstick_free(y);
        return NULL;
    }
    madvise(y->data, y->n_bytes, MADV_HUGEPAGE);
    dsi_pool_run(y->pool, touch, y);
    return y;
}

void bench_yardstick_free(bench_yardstick *y) {
    if (!y) return;
    if (y->data) munmap(y->data, y->n_bytes);
    dsi_pool_free(y->pool);
    free(y);
}

uint64_t bench_yardstick_bytes(const bench_yardstick *y) { return y->n_bytes; }

/* ---- The command ----------------------------------------------------------------------------- */

static void print_json(const bench_limits *one, const bench_limits *all) {
    printf("{\"schema\": 1, \"threads\": %u, \"read_gbs\": %.2f, \"peak_f32_gflops\": %.1f, "
           "\"peak_bf16_gflops\": %.1f, \"peak_int8_gops\": %.1f, \"clock_ghz\": %.3f, "
           "\"one_thread\": {\"read_gbs\": %.2f, \"peak_f32_gflops\": %.1f, "
           "\"peak_bf16_gflops\": %.1f, \"peak_int8_gops\": %.1f, \"clock_ghz\": %.3f}}\n",
           all->n_threads, all->read_gbs, all->f32_gflops, all->bf16_gflops, all->int8_gops,
           all->clock_ghz, one->read_gbs, one->f32_gflops, one->bf16_gflops, one->int8_gops,
           one->clock_ghz);
}

static void print_rows(const bench_limits *one, const bench_limits *all, bool csv) {
    const struct {
        const char *what, *unit;
        double one, all;
    } rows[] = {{"read from memory", "GB/s", one->read_gbs, all->read_gbs},
                {"f32 multiply-adds", "GFLOP/s", one->f32_gflops, all->f32_gflops},
                {"bf16 dot products", "GFLOP/s", one->bf16_gflops, all->bf16_gflops},
                {"int8 dot products", "GOP/s", one->int8_gops, all->int8_gops},
                {"clock", "GHz", one->clock_ghz, all->clock_ghz}};
    if (csv)
        printf("what,unit,one_thread,%u_threads\n", all->n_threads);
    else
        printf("| limit | 1 thread | %u threads |\n|---|---|---|\n", all->n_threads);
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++)
        printf(csv ? "%s,%s,%.2f,%.2f\n" : "| %s, %s | %.2f | %.2f |\n", rows[i].what, rows[i].unit,
               rows[i].one, rows[i].all);
}

int bench_limits_command(const bench_options *o) {
    uint32_t n = bench_threads(o);
    bench_yardstick *one = bench_yardstick_new(1), *all = n > 1 ? bench_yardstick_new(n) : NULL;
    bool there = one && (all || n == 1);
    for (uint32_t round = 0; there && round < o->rounds; round++) {
        bench_yardstick_round(one, BENCH_ALL);
        if (all) bench_yardstick_round(all, BENCH_ALL);
        bench_progress("limits", round + 1, o->rounds);
    }
    if (there) {
        bench_limits first = bench_yardstick_result(one);
        bench_limits every = all ? bench_yardstick_result(all) : first;
        if (o->format == BENCH_JSON)
            print_json(&first, &every);
        else
            print_rows(&first, &every, o->format == BENCH_CSV);
    }
    bench_yardstick_free(one);
    bench_yardstick_free(all);
    if (there && o->format == BENCH_MD) bench_barriers(n);
    return there ? BENCH_OK : BENCH_ENVIRONMENT;
}
