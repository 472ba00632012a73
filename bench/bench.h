/* bench.h: what the files of dsi-bench share: options, talk, medians, the limits of the machine. */
#ifndef DSI_BENCH_BENCH_H
#define DSI_BENCH_BENCH_H

#include <deepseek/dsinfer.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

/* Exit codes, as of the dsinfer command. */
enum { BENCH_OK = 0, BENCH_FAILED = 1, BENCH_USAGE = 2, BENCH_ENVIRONMENT = 3, BENCH_BAD_FILE = 4 };

/* What is printed: a table for people (Markdown), comma-separated values, or one JSON object as the
 * last line. */
enum { BENCH_MD, BENCH_CSV, BENCH_JSON };

enum { BENCH_LIST = 16 };
/* "1,4,8" */
typedef struct bench_list {
    uint32_t n, values[BENCH_LIST];
} bench_list;

typedef struct bench_options {
    const char *command, *out, *preset, *dtype, *model, *kernels, *fill, *stem, *isa, *gguf, *gemm;
    const char *kv_cache;    /* "bf16", "fp8", "int8" */
    const char *activations; /* "bf16", "f32", "a8", "e4m3"; NULL: bf16 */
    uint64_t seed;
    bench_list prefill, depth, batch, m;
    uint32_t decode, threads, repeat, chunk, rounds;
    uint32_t draft;         /* model: drafts a step; 0: none */
    double force_accept;    /* model: part of the drafts that is made right; 0: as they come */
    uint32_t layers, vocab; /* synth: 0: as the preset */
    bool profile, mtp, hollow;
    uint32_t format; /* BENCH_MD, BENCH_CSV, BENCH_JSON */
} bench_options;

/* One line on stderr behind "dsi-bench: ". */
void bench_say(const char *format, ...) __attribute__((format(printf, 1, 2)));
/* Says "cannot WHAT PATH" with the reason that errno holds; BENCH_ENVIRONMENT. */
int bench_refused(const char *what, const char *path);
/* Draws "what [####....] 45 %" on a terminal; done == total ends the line. */
void bench_progress(const char *what, uint64_t done, uint64_t total);
/* Sorts the values; the middle one, or the mean of the two in the middle. */
double bench_median(double *values, size_t n);
/* Of sorted values: the one that `part` (0 to 1) of them do not exceed. */
double bench_percentile(const double *sorted, size_t n, double part);
/* The largest of a list; 0 of an empty one. */
uint32_t bench_largest(const bench_list *list);

/* ---- file.c: a file is written as PATH.part and renamed when it is whole, so that nothing half
 * written has the name of a checkpoint. Both return an exit code and say what failed. ---- */
typedef struct bench_file {
    FILE *stream;
    char path[4096], part[4104];
} bench_file;
int bench_file_open(bench_file *file, const char *path);
/* `code`: how the writing went; unless it is BENCH_OK, the part is removed. */
int bench_file_close(bench_file *file, int code);

/* synth.c: writes a checkpoint of a preset's shapes with random weights. */
int bench_synth(const bench_options *options);
/* barriers.c: prints what meetings of 2, 4, .. threads cost. */
void bench_barriers(uint32_t most_threads);
/* kernels.c: speed of every kernel. */
int bench_kernels(const bench_options *options);
/* moe.c: the experts of one DeepSeek-V3 layer as an operator. */
int bench_moe(const bench_options *options);
/* model.c: prefill and decode speed of a checkpoint. */
int bench_model(const bench_options *options);

/* ---- limits.c: what this machine can do at most, measured beside the work ----------------------
 * A yardstick is measured in rounds between pieces of work, so that both see the same minutes: on a
 * machine that is shared, bandwidth moves by the hour. A round takes the best of a few passes; the
 * result is the median of the rounds. */
enum { BENCH_READ = 1, BENCH_PEAKS = 2, BENCH_CLOCK = 4, BENCH_ALL = 7 };
typedef struct bench_yardstick bench_yardstick;
typedef struct bench_limits {
    uint32_t n_threads;
    double read_gbs;                           /* 1e9 bytes a second, all threads together */
    double f32_gflops, bf16_gflops, int8_gops; /* likewise; 0: this CPU has no such instruction */
    double avx2_gflops;                        /* f32 on vectors of 256 bits */
    double clock_ghz;                          /* of a busy CPU; 0: not known here */
} bench_limits;

/* NULL, with a message on stderr, if memory or threads are short. */
bench_yardstick *bench_yardstick_new(uint32_t n_threads);
void bench_yardstick_free(bench_yardstick *yardstick); /* NULL is allowed */
/* `what`: BENCH_READ (75 ms and more), BENCH_PEAKS (100 ms), BENCH_CLOCK (3 ms). */
void bench_yardstick_round(bench_yardstick *yardstick, uint32_t what);
/* Of all rounds; of those since the last call of bench_yardstick_mark. */
bench_limits bench_yardstick_result(const bench_yardstick *yardstick);
void bench_yardstick_mark(bench_yardstick *yardstick);
bench_limits bench_yardstick_since(const bench_yardstick *yardstick);
/* Bytes of the last cache of CPU 0, as /sys says; 32 MiB where it does not. */
uint64_t bench_last_cache_bytes(void);
/* Bytes of memory that the yardstick itself holds. */
uint64_t bench_yardstick_bytes(const bench_yardstick *yardstick);
/* `dsi-bench limits`: one thread and all, in turn. */
int bench_limits_command(const bench_options *options);

/* Threads asked for, else one per core: what an engine takes by itself. */
uint32_t bench_threads(const bench_options *options);

#endif
