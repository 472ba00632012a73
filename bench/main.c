/* main.c: dsi-bench: what a machine can carry, measured. */
#include "../lib/base/sys.h"
#include "bench.h"

#include <errno.h>
#include <getopt.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const char help[] =
    "Examples:\n"
    "  dsi-bench synth --out build/v3-slice --preset v3-slice --dtype fp8\n"
    "  dsi-bench model -m build/v3-slice --prefill 128 --decode 24 --threads 2 --json\n"
    "  dsi-bench limits --threads 2\n"
    "\n"
    "synth    writes a checkpoint with random weights: presets v3-slice, v2-lite-half, tiny\n"
    "model    prefill and decode speed of a checkpoint, beside the limits of the machine\n"
    "limits   read bandwidth and peak multiply-adds of this machine\n"
    "\n"
    "Options:\n"
    "  --out DIR          synth: folder to write\n"
    "  --preset NAME      synth: shapes (default v3-slice)\n"
    "  --dtype TYPE       synth: fp8, bf16, int8 (by row), int8-block, int4 (group 128) or\n"
    "                     int4-g32 (default fp8)\n"
    "  --seed N           synth, model: random numbers (default 1)\n"
    "  -m, --model DIR    model: checkpoint folder\n"
    "  --prefill N        model: tokens of the timed prompt (default 128)\n"
    "  --decode N         model: timed steps behind it (default 24)\n"
    "  --depth N          model: tokens of context before it (default 0)\n"
    "  --batch N          model: sessions decoding together (default 1)\n"
    "  --chunk N          model: prompt tokens per step (default 256)\n"
    "  --kernels ISA      model: as dsinfer run (default: the best)\n"
    "  --threads N        threads (default: one per CPU)\n"
    "  --json             one JSON object as the last line\n";

void bench_say(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    fputs("dsi-bench: ", stderr);
    vfprintf(stderr, format, arguments);
    fputc('\n', stderr);
    va_end(arguments);
}

void bench_progress(const char *what, uint64_t done, uint64_t total) {
    enum { CELLS = 24 };
    static double last;
    if (!isatty(STDERR_FILENO) || total == 0) return;
    double now = dsi_sys_seconds();
    if (done < total && now - last < 0.1) return;
    last = now;
    char cells[CELLS + 1] = "";
    for (uint64_t i = 0; i < CELLS; i++) cells[i] = i * total < done * CELLS ? '#' : '.';
    fprintf(stderr, "\r%s [%s] %3.0f %%", what, cells, 100.0 * (double)done / (double)total);
    if (done >= total) fputs("\r\033[K", stderr);
}

static int ascending(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

double bench_median(double *values, size_t n) {
    if (n == 0) return 0;
    qsort(values, n, sizeof *values, ascending);
    return (values[(n - 1) / 2] + values[n / 2]) / 2;
}

static bool read_u32(const char *name, const char *text, uint32_t *value) {
    char *end;
    errno = 0;
    unsigned long long number = strtoull(text, &end, 10);
    if (*text < '0' || *text > '9' || *end || errno || number > 1u << 24) {
        bench_say("--%s is \"%s\"; it must be a number from 0 to %u", name, text, 1u << 24);
        return false;
    }
    *value = (uint32_t)number;
    return true;
}

enum { OUT = 256, PRESET, DTYPE, SEED, PREFILL, DECODE, DEPTH, BATCH, CHUNK, KERNELS, THREADS };
static const struct option long_options[] = {{"out", required_argument, NULL, OUT},
                                             {"preset", required_argument, NULL, PRESET},
                                             {"dtype", required_argument, NULL, DTYPE},
                                             {"seed", required_argument, NULL, SEED},
                                             {"model", required_argument, NULL, 'm'},
                                             {"prefill", required_argument, NULL, PREFILL},
                                             {"decode", required_argument, NULL, DECODE},
                                             {"depth", required_argument, NULL, DEPTH},
                                             {"batch", required_argument, NULL, BATCH},
                                             {"chunk", required_argument, NULL, CHUNK},
                                             {"kernels", required_argument, NULL, KERNELS},
                                             {"threads", required_argument, NULL, THREADS},
                                             {"json", no_argument, NULL, 'j'},
                                             {"help", no_argument, NULL, 'h'},
                                             {NULL, 0, NULL, 0}};

static int parse(int argc, char **argv, bench_options *o) {
    uint32_t seed = 1;
    int letter, index = 0;
    while ((letter = getopt_long(argc, argv, "m:h", long_options, &index)) != -1) {
        const char **text = letter == OUT       ? &o->out
                            : letter == PRESET  ? &o->preset
                            : letter == DTYPE   ? &o->dtype
                            : letter == KERNELS ? &o->kernels
                            : letter == 'm'     ? &o->model
                                                : NULL;
        uint32_t *number = letter == SEED      ? &seed
                           : letter == PREFILL ? &o->prefill
                           : letter == DECODE  ? &o->decode
                           : letter == DEPTH   ? &o->depth
                           : letter == BATCH   ? &o->batch
                           : letter == CHUNK   ? &o->chunk
                           : letter == THREADS ? &o->threads
                                               : NULL;
        if (text) *text = optarg;
        if (number && !read_u32(long_options[index].name, optarg, number)) return BENCH_USAGE;
        if (letter == 'j') o->json = true;
        if (letter == 'h') o->command = "help";
        if (letter == '?') return BENCH_USAGE;
    }
    o->seed = seed;
    if (!o->command && optind < argc) o->command = argv[optind++];
    if (optind < argc) {
        bench_say("\"%s\" is one argument too many; dsi-bench --help explains", argv[optind]);
        return BENCH_USAGE;
    }
    return BENCH_OK;
}

static int limits(const bench_options *o) {
    uint32_t n = o->threads ? o->threads : (uint32_t)sysconf(_SC_NPROCESSORS_ONLN);
    double read_gbs = bench_read_gbs(n);
    bench_peaks p = bench_measure_peaks(n);
    printf("{\"schema\": 1, \"threads\": %u, \"read_gbs\": %.2f, \"peak_f32_gflops\": %.1f, "
           "\"peak_bf16_gflops\": %.1f, \"peak_int8_gops\": %.1f}\n",
           n, read_gbs, p.f32_gflops, p.bf16_gflops, p.int8_gops);
    return BENCH_OK;
}

int main(int argc, char **argv) {
    bench_options o = {.preset = "v3-slice",
                       .dtype = "fp8",
                       .prefill = 128,
                       .decode = 24,
                       .batch = 1,
                       .chunk = 256};
    int code = parse(argc, argv, &o);
    if (code != BENCH_OK) return code;
    if (o.command && strcmp(o.command, "synth") == 0) return bench_synth(&o);
    if (o.command && strcmp(o.command, "model") == 0) return bench_model(&o);
    if (o.command && strcmp(o.command, "limits") == 0) return limits(&o);
    fputs(help, o.command && strcmp(o.command, "help") == 0 ? stdout : stderr);
    return o.command && strcmp(o.command, "help") == 0 ? BENCH_OK : BENCH_USAGE;
}
