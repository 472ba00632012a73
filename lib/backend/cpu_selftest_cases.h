/* cpu_selftest_cases.h: what the cases of the self-test share: fixed numbers, comparisons, room. */
#ifndef DSI_LIB_BACKEND_CPU_SELFTEST_CASES_H
#define DSI_LIB_BACKEND_CPU_SELFTEST_CASES_H

#include "../../kernels/formats.h"
#include "cpu_selftest.h"
#include <math.h>

enum { DSI_SELFTEST_BYTES = 2 << 20 };

/* One kernel under test. */
typedef struct dsi_selftest {
    const dsi_kernel_line *line;
    dsi_any_fn fn;
    uint8_t *room; /* DSI_SELFTEST_BYTES, handed out from the start by every case */
    uint64_t used;
    uint64_t random;
    bool failed;
    char where[96]; /* the case */
    char why[224];  /* the first failure */
} dsi_selftest;

/* Starts a case: its name for the message; the room is free again, the numbers start anew. */
void dsi_selftest_case(dsi_selftest *t, const char *format, ...)
    __attribute__((format(printf, 2, 3)));
/* 64-byte aligned room filled with bytes of 0xFF: NaN in every format. */
void *dsi_selftest_take(dsi_selftest *t, int64_t n_bytes);
/* In [-1, 1); 0 .. n - 1. */
double dsi_selftest_uniform(dsi_selftest *t);
int64_t dsi_selftest_below(dsi_selftest *t, int64_t n);

/* |y - truth| <= bound; NaN must meet NaN, an infinity the same infinity. */
void dsi_selftest_near(dsi_selftest *t, double y, double truth, double bound, const char *what,
                       int64_t i, int64_t j);
/* Equal bits (any NaN equals any NaN). */
void dsi_selftest_same(dsi_selftest *t, float y, float again, const char *what, int64_t i,
                       int64_t j);
/* The n elements from `at` on still hold the bytes of dsi_selftest_take. */
void dsi_selftest_untouched(dsi_selftest *t, const float *at, int64_t n);

/* Element i of an array of E4M3, I8, I4, BF16, F16 or F32; put rounds. */
static inline double dsi_selftest_get(dsi_dtype dtype, const void *array, int64_t i) {
    if (dtype == DSI_DTYPE_I8) return ((const int8_t *)array)[i];
    if (dtype == DSI_DTYPE_I4) return dsi_load_i4(array, i);
    if (dtype == DSI_DTYPE_E4M3) return (double)dsi_e4m3_to_f32(((const uint8_t *)array)[i]);
    if (dtype == DSI_DTYPE_F32) return (double)dsi_load_f32(array, i);
    uint16_t half = dsi_load_u16(array, i);
    return (double)(dtype == DSI_DTYPE_BF16 ? dsi_bf16_to_f32(half) : dsi_f16_to_f32(half));
}
static inline void dsi_selftest_put(dsi_dtype dtype, void *array, int64_t i, double value) {
    float f32 = (float)value;
    if (dtype == DSI_DTYPE_I4) {
        uint8_t *pair = (uint8_t *)array + i / 2;
        int shift = (int)(i % 2) * 4, code = (int)fmin(fmax(value, -8), 7) + 8;
        *pair = (uint8_t)((*pair & ~(15 << shift)) | code << shift);
        return;
    }
    uint8_t *to = (uint8_t *)array + i * dsi_element_bytes(dtype);
    uint16_t half = dtype == DSI_DTYPE_BF16 ? dsi_f32_to_bf16(f32) : dsi_f32_to_f16(f32);
    if (dtype == DSI_DTYPE_I8)
        *to = (uint8_t)(int)fmin(fmax(value, -128), 127);
    else if (dtype == DSI_DTYPE_E4M3)
        *to = dsi_f32_to_e4m3(f32);
    else if (dtype == DSI_DTYPE_F32)
        memcpy(to, &f32, sizeof f32);
    else
        memcpy(to, &half, sizeof half);
}
static inline bool dsi_selftest_is_whole(dsi_dtype dtype) {
    return dtype == DSI_DTYPE_I8 || dtype == DSI_DTYPE_I4;
}
/* The type whose name ("fp8", "bf16", "f16", "f32", "i8", "i4") `text` begins with. */
static inline dsi_dtype dsi_selftest_dtype(const char *text) {
    if (strncmp(text, "fp8", 3) == 0) return DSI_DTYPE_E4M3;
    if (strncmp(text, "bf16", 4) == 0) return DSI_DTYPE_BF16;
    if (strncmp(text, "i8", 2) == 0) return DSI_DTYPE_I8;
    if (strncmp(text, "i4", 2) == 0) return DSI_DTYPE_I4;
    return strncmp(text, "f16", 3) == 0 ? DSI_DTYPE_F16 : DSI_DTYPE_F32;
}

/* All cases of a type of kernel. */
void dsi_selftest_matmul(dsi_selftest *t);
void dsi_selftest_matmul_t(dsi_selftest *t);
void dsi_selftest_attend(dsi_selftest *t);
void dsi_selftest_index(dsi_selftest *t);
void dsi_selftest_rms_norm(dsi_selftest *t);
void dsi_selftest_swiglu(dsi_selftest *t);
void dsi_selftest_cast(dsi_selftest *t);
void dsi_selftest_quantize(dsi_selftest *t);
void dsi_selftest_decode(dsi_selftest *t);
void dsi_selftest_rope(dsi_selftest *t);
void dsi_selftest_route(dsi_selftest *t);
/* decode_blocks, and the products with blocks. */
void dsi_selftest_blocks(dsi_selftest *t);

/* Fills a block of one of GGUF's types: its multiplier d, and its minimum m if it has one, become
 * these (rounded to what the type stores), its other bytes stay. */
void dsi_selftest_block_scale(dsi_dtype dtype, uint8_t *block, float d, float m);

#endif
