/* bench.h: what the files of dsi-bench share: options, talk, medians. */
#ifndef DSI_BENCH_BENCH_H
#define DSI_BENCH_BENCH_H

#include <deepseek/dsinfer.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

/* Exit codes, as of the dsinfer command. */
enum { BENCH_OK = 0, BENCH_FAILED = 1, BENCH_USAGE = 2, BENCH_ENVIRONMENT = 3, BENCH_BAD_FILE = 4 };

typedef struct bench_options {
    const char *command, *out, *preset, *dtype, *model, *kernels;
    uint64_t seed;
    uint32_t prefill, decode, depth, batch, threads, repeat, chunk;
    bool json;
} bench_options;

/* One line on stderr behind "dsi-bench: ". */
void bench_say(const char *format, ...) __attribute__((format(printf, 1, 2)));
/* Draws "what [####....] 45 %" on a terminal; done == total ends the line. */
void bench_progress(const char *what, uint64_t done, uint64_t total);
/* Sorts the values; the middle one, or the mean of the two in the middle. */
double bench_median(double *values, size_t n);

/* synth.c: writes a checkpoint of a preset's shapes with random weights. */
int bench_synth(const bench_options *options);
/* model.c: prefill and decode speed of a checkpoint. */
int bench_model(const bench_options *options);

/* limits.c: what this machine can do at most, measured now. n_threads threads, best of a few. */
double bench_read_gbs(uint32_t n_threads);
typedef struct bench_peaks {
    double f32_gflops, bf16_gflops, int8_gops; /* 0: this CPU has no such instruction */
} bench_peaks;
bench_peaks bench_measure_peaks(uint32_t n_threads);

#endif
