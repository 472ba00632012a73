/* check.h: shared by check_kernels*.c, the harness that holds every line of kernels.inc against its
 * reference: random cases, tolerances, guard pages, bit-invariance, times.
 *
 * A check runs in a forked child and writes its result to shared memory, so that a kernel that
 * crashes, hangs or leaves its buffers is a failed check and not the end of the harness. */
#ifndef DSI_TESTS_CHECK_H
#define DSI_TESTS_CHECK_H

#include "../kernels/formats.h"
#include "../kernels/kernels.h"
#include <math.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* One per function type of kernels.h; the names are those of kernels.inc. */
enum check_type {
    CHECK_matmul,
    CHECK_matmul_t,
    CHECK_attend,
    CHECK_rms_norm,
    CHECK_swiglu,
    CHECK_cast,
    CHECK_quantize,
    CHECK_decode,
    CHECK_rope,
    CHECK_route,
    CHECK_decode_blocks,
    CHECK_index
};

typedef void (*check_any_fn)(void);

/* One line of kernels.inc, or one mutant. */
typedef struct check_kernel {
    enum check_type type;
    const char *stem, *isa_name, *symbol;
    uint32_t isa;     /* what the CPU must have to run it */
    check_any_fn fn;  /* of the type's signature */
    check_any_fn ref; /* the truth of the stem */
    double c;         /* tolerance, see kernels.inc */
    bool is_ref;
    bool emulated;          /* built against a double of the instructions in tests/ */
    bool flushes_denormals; /* VDPBF16PS takes denormal bf16 as zero and flushes its results */
} check_kernel;

enum { CHECK_BENCH_SHAPES = 48 };
typedef struct check_speed {
    char shape[64];
    double gb_per_s, gflop_per_s; /* 0: not meaningful */
    double us_per_call;
} check_speed;

/* The state and the result of one check; lies in memory shared by parent and child. */
typedef struct check_run {
    const check_kernel *kernel;
    uint64_t random;
    bool stop_at_failure; /* mutants: the first failure is enough */
    bool at_end;          /* this case's buffers end (else begin) at a guard page */
    long cases, failures;
    double worst;    /* largest |y - ref| / bound seen */
    char where[160]; /* the case being run */
    char why[320];   /* the first failure */
    check_speed speed[CHECK_BENCH_SHAPES];
    int n_speeds;
} check_run;

/* The number formats of weights and activations, and how the harness reads and writes them. */
enum check_format { CHECK_FP8, CHECK_BF16, CHECK_F16, CHECK_F32, CHECK_I8, CHECK_I4 };
int check_format_size(enum check_format format); /* not of I4 */
int64_t check_format_bytes(enum check_format format, int64_t n);
static inline bool check_is_whole(enum check_format format) { return format >= CHECK_I8; }
/* "fp8", "bf16", "f16", "f32", "i8" or "i4" at the start of `text`. */
enum check_format check_format_named(const char *text);
void check_put(enum check_format format, void *array, int64_t i, double value);
double check_get(enum check_format format, const void *array, int64_t i);
/* Clears the sign of n elements; the lowest whole number becomes the highest. */
void check_clear_signs(enum check_format format, void *array, int64_t n);

/* Random numbers, a function of the seed alone. */
uint64_t check_random(check_run *run);
int64_t check_below(check_run *run, int64_t n); /* 0 .. n - 1 */
double check_uniform(check_run *run);           /* [-1, 1) */

/* Starts a case: its description (printed if it fails), fresh buffers. */
void check_case(check_run *run, const char *format, ...) __attribute__((format(printf, 2, 3)));
void check_fail(check_run *run, const char *format, ...) __attribute__((format(printf, 2, 3)));
bool check_done(const check_run *run);
/* |y - truth| <= bound; NaN must meet NaN, an infinity the same infinity. */
void check_near(check_run *run, double y, double truth, double bound, const char *what, int64_t i,
                int64_t j);
/* Equal bits (any NaN equals any NaN). */
void check_same(check_run *run, float a, float b, const char *what, int64_t i, int64_t j);

/* A buffer of this case in slot 0..15, filled with canaries: the byte behind it (or before it, by
 * run->at_end) is a guard page, the bytes on the other side are canaries. At most 2 MiB.
 * `offset` bytes (< 16) of deliberate misalignment are applied where the guard is at the start. */
void *check_buffer(check_run *run, int slot, int64_t n_bytes, int64_t offset);
/* The canaries around all buffers of the case are whole. */
void check_buffers_intact(check_run *run);
/* The bytes between the rows of an output (rows of `used` bytes, `stride` bytes apart). */
void check_gaps_intact(check_run *run, const void *y, int64_t rows, int64_t used, int64_t stride);
/* Plain memory that lives until the next case: a copy of n_bytes, or zeroed room. */
void *check_copy(const void *from, int64_t n_bytes);
void *check_room(int64_t n_bytes);

/* The checks by type; each runs all its cases on run->kernel. */
void check_matmul(check_run *run);
void check_matmul_t(check_run *run);
void check_attend(check_run *run);
void check_rms_norm(check_run *run);
void check_swiglu(check_run *run);
void check_cast(check_run *run);
void check_quantize(check_run *run);
void check_decode(check_run *run);
void check_rope(check_run *run);
void check_route(check_run *run);
void check_decode_blocks(check_run *run);
void check_index(check_run *run);
void check_blocks(check_run *run); /* matmul and matmul_t of GGUF's blocks */

/* Times run->kernel at DeepSeek-V3 shapes into run->speed. */
void check_bench(check_run *run);
/* Seconds of this thread per call of `call(context)`, repeated for at least 0.1 s. */
double check_seconds_per_call(void (*call)(void *context), void *context);
void check_add_speed(check_run *run, double seconds, double bytes, double flops, const char *format,
                     ...) __attribute__((format(printf, 5, 6)));

/* Deliberately broken kernels; every one must fail its check. */
typedef struct check_mutant {
    const char *name;
    check_kernel kernel;
} check_mutant;
int check_mutant_count(void);
/* Describes mutant i and arms its bug, or disarms all of them: then it must pass. */
check_mutant check_mutant_arm(int i, bool armed);

#endif
