/* cpu_selftest_blocks.c: the cases of kernels on GGUF's blocks, every type of them. */
#include "../../kernels/blocks/blocks.h"
#include "cpu_selftest_cases.h"

static const dsi_dtype types[] = {
#define BLOCK_TYPE(name, type, values, bytes, text) name,
    DSI_BLOCK_DTYPE_LIST(BLOCK_TYPE)
#undef BLOCK_TYPE
};
enum { TYPES = sizeof types / sizeof types[0], BEHIND = 16 };

/* Where d lies, and m; -1: nowhere. */
static void places(dsi_dtype dtype, int *d, int *m) {
    *d = 0, *m = -1;
    switch (dtype) {
    case DSI_DTYPE_Q4_1:
    case DSI_DTYPE_Q5_1:
    case DSI_DTYPE_Q4_K:
    case DSI_DTYPE_Q5_K:
        *m = 2;
        break;
    case DSI_DTYPE_Q2_K:
        *d = 80, *m = 82;
        break;
    case DSI_DTYPE_Q3_K:
        *d = 108;
        break;
    case DSI_DTYPE_Q6_K:
        *d = 208;
        break;
    case DSI_DTYPE_TQ1_0:
        *d = 52;
        break;
    case DSI_DTYPE_TQ2_0:
        *d = 64;
        break;
    default:
        break;
    }
}

void dsi_selftest_block_scale(dsi_dtype dtype, uint8_t *block, float d, float m) {
    uint16_t half = dsi_f32_to_f16(d);
    int d_at, m_at;
    if (dtype == DSI_DTYPE_MXFP4) { /* a power of two: 2^(e - 127) */
        block[0] = (uint8_t)(dsi_f32_bits(d) >> 23);
    } else if (dtype == DSI_DTYPE_NVFP4) {
        for (int g = 0; g < 4; g++) block[g] = dsi_f32_to_e4m3(fabsf(d)) & 0x7F;
    } else if (dtype == DSI_DTYPE_IQ1_M) {
        for (int i = 0; i < 4; i++)
            block[49 + 2 * i] = (uint8_t)((block[49 + 2 * i] & 15) | (half >> 4 * i & 15) << 4);
    } else {
        places(dtype, &d_at, &m_at);
        memcpy(block + d_at, &half, 2);
        half = dsi_f32_to_f16(m);
        if (m_at >= 0) memcpy(block + m_at, &half, 2);
    }
}

/* n blocks of random bytes with usual multipliers; one in four has all numbers of 8 bits at
 * their lowest. */
static void make_blocks(dsi_selftest *t, dsi_dtype dtype, uint8_t *at, int64_t n) {
    const dsi_block_shape shape = dsi_block_shape_of(dtype);
    for (int64_t i = 0; i < n; i++, at += shape.bytes) {
        for (int b = 0; b < shape.bytes; b++)
            at[b] = (uint8_t)(i % 4 == 1 ? 0x80 : dsi_selftest_below(t, 256));
        float d = (float)(0.5 + dsi_selftest_uniform(t) / 4) * (i % 7 == 3 ? -1.0f : 1.0f);
        dsi_selftest_block_scale(dtype, at, d, (float)dsi_selftest_uniform(t));
    }
}

/* What |s * q| and |m| of the weights of a row add up to, added to size[]: one number for the row,
 * or (by_column) one for each of the `n` columns of its blocks. */
static void add_sizes(dsi_dtype dtype, const uint8_t *row, int64_t n, bool by_column,
                      double *size) {
    const dsi_block_shape shape = dsi_block_shape_of(dtype);
    dsi_block_parts p;
    for (int64_t i = 0; i < n; i++) {
        const int64_t at = i % shape.values, g = at / shape.group;
        if (at == 0) dsi_block_read(dtype, row + i / shape.values * shape.bytes, &p);
        size[by_column ? i : 0] +=
            fabs((double)p.q[at] * (double)p.scale[g]) + fabs((double)p.min[g]);
    }
}

static void decode_case(dsi_selftest *t, dsi_dtype dtype) {
    const dsi_block_shape shape = dsi_block_shape_of(dtype);
    const int64_t n = 3, k = n * shape.values;
    dsi_selftest_case(t, "%d values of type %u", (int)k, (unsigned)(dtype - DSI_DTYPE_BLOCKS));
    uint8_t *w = (uint8_t *)dsi_selftest_take(t, n * shape.bytes + 1) + 1;
    make_blocks(t, dtype, w, n);
    dsi_selftest_block_scale(dtype, w, dtype == DSI_DTYPE_MXFP4 ? 0x1p-126f : 0x1p-24f, -0.0f);
    float *y = dsi_selftest_take(t, (k + BEHIND) * 4), *truth = dsi_selftest_take(t, k * 4);
    ((dsi_decode_blocks_fn)t->fn)(dtype, w, y, k);
    ((dsi_decode_blocks_fn)t->line->ref)(dtype, w, truth, k);
    for (int64_t i = 0; i < k; i++) dsi_selftest_same(t, y[i], truth[i], "y", i, 0);
    dsi_selftest_untouched(t, y + k, BEHIND);
}

static void run(dsi_any_fn fn, bool is_t, const dsi_matmul_args *a) {
    if (!is_t) {
        ((dsi_matmul_fn)fn)(a);
        return;
    }
    const dsi_matmul_t_args args = dsi_matmul_t_of(a);
    ((dsi_matmul_t_fn)fn)(&args);
}

/* Rows [1, 1 + n) of w against m rows of x, then the first row alone. */
static void product_case(dsi_selftest *t, dsi_dtype dtype, bool is_t, int64_t m, int64_t n,
                         int64_t blocks) {
    const dsi_block_shape shape = dsi_block_shape_of(dtype);
    const bool bf16 = strstr(t->line->stem, "_bf16") != NULL;
    const dsi_dtype x_dtype = bf16 ? DSI_DTYPE_BF16 : DSI_DTYPE_F32;
    const int64_t k = blocks * shape.values, row = (blocks + 1) * shape.bytes;
    const int64_t x_columns = is_t ? n : k, y_columns = is_t ? k : n;
    dsi_selftest_case(t, "type %u, m=%d n=%d k=%d", (unsigned)(dtype - DSI_DTYPE_BLOCKS), (int)m,
                      (int)n, (int)k);
    uint8_t *w = (uint8_t *)dsi_selftest_take(t, (n + 1) * row + 1) + 1;
    for (int64_t r = 1; r <= n; r++) make_blocks(t, dtype, w + r * row, blocks);
    void *x = dsi_selftest_take(t, m * x_columns * 4);
    for (int64_t i = 0; i < m * x_columns; i++)
        dsi_selftest_put(x_dtype, x, i, dsi_selftest_uniform(t));
    dsi_selftest_put(x_dtype, x, (m - 1) * x_columns + 1, NAN);
    dsi_matmul_args a = {.x = x,
                         .x_stride = x_columns,
                         .w = w,
                         .w_stride = k + shape.values,
                         .y_stride = y_columns,
                         .m = m,
                         .n0 = 1,
                         .n1 = n + 1,
                         .k = k,
                         .w_dtype = dtype};
    a.scratch = dsi_selftest_take(t, dsi_matmul_scratch_bytes(k));
    float *y = dsi_selftest_take(t, (m * y_columns + BEHIND) * 4);
    float *truth = dsi_selftest_take(t, m * y_columns * 4);
    float *alone = dsi_selftest_take(t, y_columns * 4);
    a.y = y;
    run(t->fn, is_t, &a);
    dsi_selftest_untouched(t, y + m * y_columns, BEHIND);
    a.y = truth;
    run(t->line->ref, is_t, &a);
    double *size = dsi_selftest_take(t, y_columns * 8); /* of |w|; |x| is at most 1 */
    memset(size, 0, (size_t)y_columns * 8);
    for (int64_t r = 0; r < n; r++)
        add_sizes(dtype, w + (r + 1) * row, k, is_t, size + (is_t ? 0 : r));
    for (int64_t j = 0; j < y_columns; j++)
        for (int64_t i = 0; i < m; i++)
            dsi_selftest_near(t, (double)y[i * y_columns + j], (double)truth[i * y_columns + j],
                              t->line->tolerance * size[j] + 1e-30, "y", i, j);
    a.y = alone, a.m = 1;
    run(t->fn, is_t, &a);
    for (int64_t j = 0; j < y_columns; j++)
        dsi_selftest_same(t, y[j], alone[j], "row alone: y", 0, j);
}

void dsi_selftest_blocks(dsi_selftest *t) {
    const bool is_t = t->line->type == DSI_KERNEL_matmul_t;
    for (int i = 0; i < TYPES; i++) {
        const int64_t values = dsi_block_shape_of(types[i]).values;
        if (t->line->type == DSI_KERNEL_decode_blocks)
            decode_case(t, types[i]);
        else
            product_case(t, types[i], is_t, 5, 6, is_t ? 2 : values == 256 ? 1 : 5);
    }
    /* More columns than a strip, more rows than a panel. */
    if (t->line->type == DSI_KERNEL_matmul) product_case(t, DSI_DTYPE_Q4_K, false, 7, 19, 3);
}
