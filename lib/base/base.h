/* base.h: errors, checked arithmetic, log. Everything in lib/ builds on it. */
#ifndef DSI_LIB_BASE_BASE_H
#define DSI_LIB_BASE_BASE_H

#include <deepseek/types.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* ---- Errors: a status and one message, filled where the failure is seen, passed up unchanged. */
enum { DSI_ERROR_TEXT_BYTES = 1024 };
typedef struct dsi_error {
    dsi_status status;
    char text[DSI_ERROR_TEXT_BYTES];
} dsi_error;

/* Writes the message (truncated to fit, always terminated) and returns `status`. error may be
 * NULL. The message names the file, the value, the limit and the remedy. Control characters become
 * '?': values out of untrusted files must not forge lines of a log. Arguments may point into
 * error->text. */
dsi_status dsi_fail(dsi_error *error, dsi_status status, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
/* Puts "prefix: " before the message that is already there; returns error->status. */
dsi_status dsi_fail_prefix(dsi_error *error, const char *prefix);

/* ---- Checked arithmetic: false (and *out untouched) on overflow. Every size that comes from
 * input goes through these (grep-tested). */
static inline bool dsi_mul_ok(uint64_t a, uint64_t b, uint64_t *out) {
    uint64_t r;
    if (__builtin_mul_overflow(a, b, &r)) return false;
    *out = r;
    return true;
}
static inline bool dsi_add_ok(uint64_t a, uint64_t b, uint64_t *out) {
    uint64_t r;
    if (__builtin_add_overflow(a, b, &r)) return false;
    *out = r;
    return true;
}

/* One step of splitmix64 (Steele, Lea and Flood 2014): a good 64-bit mix of x. Adding
 * DSI_MIX64_STEP to x after each call gives its sequence of random numbers. */
#define DSI_MIX64_STEP UINT64_C(0x9E3779B97F4A7C15)
static inline uint64_t dsi_mix64(uint64_t x) {
    x += DSI_MIX64_STEP;
    x = (x ^ (x >> 30)) * UINT64_C(0xBF58476D1CE4E5B9);
    x = (x ^ (x >> 27)) * UINT64_C(0x94D049BB133111EB);
    return x ^ (x >> 31);
}

static inline int64_t dsi_min_i64(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t dsi_max_i64(int64_t a, int64_t b) { return a > b ? a : b; }
static inline int64_t dsi_ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

/* As qsort for items of at most 64 bytes, in place: that of glibc allocates behind the caller's
 * allocator. Never worse than n log n; equal items come out in any order. */
void dsi_sort(void *items, uint64_t n, uint64_t size, int (*compare)(const void *, const void *));

/* Bytes of one element of `dtype`, 0 if the code is unknown or an element is no whole number of
 * bytes (I4, blocks of GGUF); its name in safetensors files ("I4" for that one) or GGUF, "?" if
 * unknown; the code of a safetensors name, DSI_DTYPE_NONE if unknown. */
uint32_t dsi_dtype_bytes(dsi_dtype dtype);
/* Bytes of a row of n elements, I4 in whole 32-bit words; false if the code is unknown, n is
 * negative or no whole number of blocks, or the number passes 2^63. */
bool dsi_dtype_row_bytes(dsi_dtype dtype, int64_t n, int64_t *n_bytes);
/* Values and bytes of a block of one of GGUF's types of blocks; {0, 0} for every other format. */
typedef struct dsi_block_size {
    uint32_t values, bytes;
} dsi_block_size;
dsi_block_size dsi_dtype_block(dsi_dtype dtype);
const char *dsi_dtype_name(dsi_dtype dtype);
dsi_dtype dsi_dtype_from_name(const char *name, size_t n_bytes);
/* Rows and columns of the weight that share one scale; `group` is the size of GROUP. Both are 0 if
 * `kind` is DSI_SCALE_NONE or unknown. */
typedef struct dsi_scale_span {
    int64_t n, k;
} dsi_scale_span;
dsi_scale_span dsi_scale_span_of(uint32_t kind, uint32_t group, int64_t n_in);

/* ---- Log: a caller's function or nothing. */
typedef struct dsi_log {
    void (*write)(void *user, uint32_t level, const char *component, const char *text);
    void *user;
} dsi_log;
void dsi_logf(const dsi_log *log, uint32_t level, const char *component, const char *format, ...)
    __attribute__((format(printf, 4, 5)));

#endif
