/* kernels.c: `dsi-bench kernels`: every kernel that this CPU runs is held against its reference,
 * then timed at DeepSeek-V3 shapes on all threads at once, beside the limits and the libraries that
 * were measured in the same rounds. */
#include "kernels.h"

#include "../lib/backend/cpu_selftest.h"
#include "../lib/base/sys.h"
#include <fnmatch.h>
#include <stdlib.h>
#include <string.h>

static const char *isa_name(const dsi_kernel_line *line) { return strstr(line->symbol, "__") + 2; }

/* ---- What is printed ------------------------------------------------------------------------- */

static double median_of(const double *seconds, uint32_t n) {
    double sorted[KERNEL_ROUNDS];
    memcpy(sorted, seconds, n * sizeof *sorted);
    return bench_median(sorted, n);
}

typedef struct result {
    double us, gbs, gflops, of_read, of_peak; /* parts of 1; 0: not meaningful */
    double library_gflops[KERNEL_LIBRARIES];
} result;

static result result_of(const kernel_bench *b, const kernel_case *c) {
    const bench_limits *l = &b->limits;
    const double peaks[] = {[PEAK_NONE] = 0,
                            [PEAK_F32] = l->f32_gflops,
                            [PEAK_BF16] = l->bf16_gflops,
                            [PEAK_INT8] = l->int8_gops,
                            [PEAK_AVX2] = l->avx2_gflops};
    double seconds = median_of(c->seconds, b->options->rounds);
    result r = {.us = seconds * 1e6,
                .gbs = c->bytes / seconds / 1e9,
                .gflops = c->operations / seconds / 1e9};
    if (l->read_gbs > 0) r.of_read = r.gbs / l->read_gbs;
    if (peaks[c->peak] > 0) r.of_peak = r.gflops / peaks[c->peak];
    for (int i = 0; i < KERNEL_LIBRARIES; i++)
        if (c->gemm[i])
            r.library_gflops[i] =
                c->operations / median_of(c->library_seconds[i], b->options->rounds) / 1e9;
    return r;
}

static void print_number(const char *format, double value, const char *none) {
    if (value > 0)
        printf(format, value);
    else
        fputs(none, stdout);
}

static void print_md(const kernel_bench *b, const kernel_case *c, const result *r) {
    (void)b;
    printf("| %s | %s | %s | %.1f |", c->line->stem, isa_name(c->line), c->shape, r->us);
    print_number(" %.1f", r->gbs, " ");
    print_number(" (%.0f %%) |", 100 * r->of_read, " |");
    print_number(" %.0f", r->gflops, " ");
    print_number(" (%.0f %%) |", 100 * r->of_peak, " |");
    for (int i = 0; i < KERNEL_LIBRARIES; i++) {
        print_number(" %.0f", r->library_gflops[i], " ");
        print_number(" (%.2fx) |", r->library_gflops[i] > 0 ? r->gflops / r->library_gflops[i] : 0,
                     " |");
    }
    puts("");
}

static void print_csv(const kernel_bench *b, const kernel_case *c, const result *r) {
    printf("%s,%s,%s,%lld,%.2f,%.3f,%.4f,%.2f,%.4f,%.2f,%.2f,%.2f,%.1f\n", c->line->stem,
           isa_name(c->line), c->shape, (long long)c->m, r->us, r->gbs, r->of_read, r->gflops,
           r->of_peak, r->library_gflops[0], r->library_gflops[1], b->limits.read_gbs,
           b->limits.bf16_gflops);
}

static void print_json(const kernel_bench *b, const kernel_case *c, const result *r) {
    static bool any;
    printf("%s{\"stem\": \"%s\", \"isa\": \"%s\", \"shape\": \"%s\", \"m\": %lld, \"us\": %.2f, "
           "\"gbs\": %.3f, \"of_read\": %.4f, \"gflops\": %.2f, \"of_peak\": %.4f, "
           "\"onednn_gflops\": %.2f, \"openblas_gflops\": %.2f, \"read_gbs\": %.2f, "
           "\"peak_bf16_gflops\": %.1f}",
           any ? ", " : "", c->line->stem, isa_name(c->line), c->shape, (long long)c->m, r->us,
           r->gbs, r->of_read, r->gflops, r->of_peak, r->library_gflops[0], r->library_gflops[1],
           b->limits.read_gbs, b->limits.bf16_gflops);
    any = true;
}

static void print_head(const kernel_bench *b) {
    const char *names[KERNEL_LIBRARIES];
    for (int i = 0; i < KERNEL_LIBRARIES; i++)
        names[i] = b->libraries[i] ? dsi_gemm_name(b->libraries[i]) : "";
    if (b->options->format == BENCH_CSV)
        puts(
            "stem,isa,shape,m,us,gbs,of_read,gflops,of_peak,onednn_gflops,openblas_gflops,read_gbs,"
            "peak_bf16_gflops");
    else if (b->options->format == BENCH_JSON)
        printf("{\"schema\": 1, \"threads\": %u, \"onednn\": \"%s\", \"openblas\": \"%s\", "
               "\"kernels\": [",
               b->n_threads, names[0], names[1]);
    else
        printf(
            "%u threads, medians of %u rounds; weights from memory, %llu MB of them in turn.\n\n"
            "| kernel | set | rows x columns x k | us | GB/s (of read) | GFLOP/s (of peak) | %s | "
            "%s |\n|---|---|---|---|---|---|---|---|\n",
            b->n_threads, b->options->rounds, (unsigned long long)kernel_cold_bytes() / 1000000,
            names[0][0] ? names[0] : "oneDNN: not here",
            names[1][0] ? names[1] : "OpenBLAS: not here");
}

static void print_tail(const kernel_bench *b, const bench_limits *l) {
    if (b->options->format == BENCH_JSON)
        printf("], \"read_gbs\": %.2f, \"peak_f32_gflops\": %.1f, \"peak_bf16_gflops\": %.1f, "
               "\"peak_int8_gops\": %.1f, \"clock_ghz\": %.3f}\n",
               l->read_gbs, l->f32_gflops, l->bf16_gflops, l->int8_gops, l->clock_ghz);
    else if (b->options->format == BENCH_MD)
        printf(
            "\nLimits in between (medians): read %.1f GB/s; f32 %.0f (256-bit vectors %.0f), bf16 "
            "%.0f GFLOP/s; int8 %.0f GOP/s; %.2f GHz.\n",
            l->read_gbs, l->f32_gflops, l->avx2_gflops, l->bf16_gflops, l->int8_gops, l->clock_ghz);
}

/* ---- A line of kernels.inc ------------------------------------------------------------------- */

static bool check_line(kernel_bench *b, const dsi_kernel_line *line) {
    char why[224];
    if (line->isa == DSI_ISA_REF) return true;
    if (dsi_cpu_selftest_kernel(line, line->fn, why, sizeof why) &&
        kernel_check_shapes(b, line, why, sizeof why))
        return true;
    bench_say("%s is wrong: %s", line->symbol, why);
    return false;
}

static void measure_line(kernel_bench *b) {
    for (uint32_t i = 0; i < b->n_cases; i++) kernel_choose_turns(b, &b->cases[i]);
    bench_yardstick_mark(b->yardstick);
    for (uint32_t round = 0; round < b->options->rounds; round++) {
        bench_yardstick_round(b->yardstick, BENCH_ALL);
        for (uint32_t i = 0; i < b->n_cases; i++) {
            kernel_case *c = &b->cases[i];
            c->seconds[round] = kernel_time(b, c);
            for (int j = 0; j < KERNEL_LIBRARIES; j++)
                if (c->gemm[j]) c->library_seconds[j][round] = kernel_time_library(b, c, j);
        }
    }
    b->limits = bench_yardstick_since(b->yardstick);
    for (uint32_t i = 0; i < b->n_cases; i++) {
        result r = result_of(b, &b->cases[i]);
        void (*print)(const kernel_bench *, const kernel_case *, const result *) =
            b->options->format == BENCH_CSV    ? print_csv
            : b->options->format == BENCH_JSON ? print_json
                                               : print_md;
        print(b, &b->cases[i], &r);
    }
    fflush(stdout);
}

static bool fits(const kernel_bench *b, const dsi_kernel_line *line) {
    return (line->isa & (dsi_isa_detect() | DSI_ISA_REF)) != 0 &&
           fnmatch(b->options->stem, line->stem, 0) == 0 &&
           (!b->options->isa || strcmp(b->options->isa, isa_name(line)) == 0);
}

/* That some kernel can be measured at all. */
static bool usage_ok(const kernel_bench *b) {
    enum { MOST_ROWS = 4096 };
    uint32_t n, n_found = 0, rows = bench_largest(&b->options->m);
    const dsi_kernel_line *lines = dsi_kernel_lines(&n);
    if (rows < 1 || rows > MOST_ROWS) {
        bench_say("--m ends at %u; the largest number of rows may be 1 to %d", rows, MOST_ROWS);
        return false;
    }
    for (uint32_t i = 0; i < n; i++) n_found += fits(b, &lines[i]);
    if (!n_found)
        bench_say("no kernel that this CPU runs fits --stem %s --isa %s", b->options->stem,
                  b->options->isa ? b->options->isa : "*");
    return n_found > 0;
}

static int all_lines(kernel_bench *b, const kernel_room *room) {
    uint32_t n;
    const dsi_kernel_line *lines = dsi_kernel_lines(&n);
    int code = BENCH_OK;
    for (uint32_t i = 0; i < n; i++) {
        if (!fits(b, &lines[i])) continue;
        bench_progress("kernels", i, n);
        b->room = *room;
        if (!kernel_cases(b, &lines[i])) {
            bench_say("no memory for %s", lines[i].symbol);
            code = BENCH_ENVIRONMENT;
        } else if (check_line(b, &lines[i])) {
            measure_line(b);
        } else {
            code = BENCH_FAILED;
        }
        kernel_drop_cases(b);
    }
    bench_progress("kernels", n, n);
    return code;
}

static bool open_bench(kernel_bench *b, kernel_room *room) {
    dsi_error error;
    if (dsi_pool_new(b->n_threads, NULL, &b->pool, &error) != DSI_OK) {
        bench_say("%s", error.text);
        return false;
    }
    b->n_threads = dsi_pool_size(b->pool);
    b->yardstick = bench_yardstick_new(b->n_threads);
    room->n_bytes = 2 * kernel_cold_bytes() + (UINT64_C(64) << 20) +
                    b->n_threads * (UINT64_C(24) << 20) +
                    bench_largest(&b->options->m) * UINT64_C(7168 * 4) * 32;
    room->data = dsi_sys_alloc_aligned(room->n_bytes);
    for (uint32_t i = 0; i < KERNEL_LIBRARIES; i++)
        if (dsi_gemm_open(i + 1, &b->libraries[i], &error) != DSI_OK) bench_say("%s", error.text);
    if (b->yardstick && !room->data) bench_say("no memory for the operands of the kernels");
    return b->yardstick && room->data;
}

int bench_kernels(const bench_options *options) {
    kernel_bench *b = calloc(1, sizeof *b);
    if (!b) return BENCH_ENVIRONMENT;
    kernel_room room = {0};
    b->options = options;
    b->n_threads = bench_threads(options);
    int code = usage_ok(b) ? BENCH_ENVIRONMENT : BENCH_USAGE;
    if (code != BENCH_USAGE && open_bench(b, &room)) {
        print_head(b);
        code = all_lines(b, &room);
        bench_limits limits = bench_yardstick_result(b->yardstick);
        print_tail(b, &limits);
    }
    for (int i = 0; i < 32; i++) dsi_sys_free(b->library_w[i]);
    for (int i = 0; i < KERNEL_LIBRARIES; i++) dsi_gemm_close(b->libraries[i]);
    dsi_sys_free(room.data);
    bench_yardstick_free(b->yardstick);
    dsi_pool_free(b->pool);
    free(b);
    return code;
}
