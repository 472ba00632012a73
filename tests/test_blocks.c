/* test_blocks.c: GGUF's 23 types of blocks against the values that the Python package `gguf` gives:
 * equal bits. tests/data/blocks.safetensors has 8 blocks of each type and their values; another
 * file of the same form may be named as the argument. */
#include "../kernels/blocks/blocks.h"
#include "../kernels/formats.h"
#include "../kernels/kernels.h"
#include "../lib/backend/cpu_isa.h"
#include "../lib/base/base.h"
#include "../lib/model/model.h"
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static const char *path = "tests/data/blocks.safetensors";
static dsi_checkpoint file;

static const dsi_file_tensor *tensor(const char *type, const char *what) {
    char name[64];
    snprintf(name, sizeof name, "%s.%s", type, what);
    const dsi_file_tensor *t = dsi_checkpoint_find(&file, name);
    if (!t) fail_msg("no %s in %s", name, path);
    return t;
}

static int open_file(void **state) {
    (void)state;
    dsi_error error = {0};
    if (dsi_checkpoint_open_file(path, &file, &error) == DSI_OK) return 0;
    fprintf(stderr, "%s\n", error.text);
    return 1;
}
static int close_file(void **state) {
    (void)state;
    dsi_checkpoint_close(&file);
    return 0;
}

static void check_type(dsi_decode_blocks_fn decode, dsi_dtype dtype, const char *name) {
    const dsi_block_shape shape = dsi_block_shape_of(dtype);
    const dsi_file_tensor *blocks = tensor(name, "blocks"), *values = tensor(name, "values");
    assert_int_equal(blocks->shape[1], shape.bytes);
    assert_int_equal(values->shape[1], shape.values);
    assert_true(blocks->shape[0] == values->shape[0] && blocks->shape[0] >= 8);
    const int64_t k = blocks->shape[0] * shape.values;
    float *y = malloc((size_t)k * sizeof *y);
    assert_non_null(y);
    decode(dtype, dsi_checkpoint_data(&file, blocks), y, k);
    const uint8_t *expected = dsi_checkpoint_data(&file, values);
    for (int64_t i = 0; i < k; i++) {
        float value;
        memcpy(&value, expected + i * 4, sizeof value);
        if (memcmp(&value, &y[i], sizeof value) != 0)
            fail_msg("%s: value %lld is %.9g, not %.9g", name, (long long)i, (double)y[i],
                     (double)value);
    }
    free(y);
}

static void test_values(void **state) {
    (void)state;
    const uint32_t isas = dsi_cpu_isa(dsi_isa_detect(), NULL);
    for (uint32_t mask = 0; mask < DSI_ISA_MASKS; mask = mask * 2 + 1) {
        dsi_kernels kernels;
        dsi_kernels_select(mask & isas, &kernels);
#define CHECK_TYPE(name, type, values, bytes, text) check_type(kernels.decode_blocks, name, text);
        DSI_BLOCK_DTYPE_LIST(CHECK_TYPE)
#undef CHECK_TYPE
    }
}

/* One block of a type as a weight row, 1 to 15 rows of activations: every instruction set's product
 * beside the reference's. */
static void check_products(const dsi_kernels *kernels, dsi_dtype dtype, const char *name) {
    enum { ROWS = 15, N = 8 };
    const int64_t k = dsi_block_shape_of(dtype).values;
    static float x[ROWS * DSI_BLOCK_VALUES_MAX], y[ROWS * N], truth[ROWS * N];
    static _Alignas(64) uint8_t scratch[32 * DSI_BLOCK_VALUES_MAX * 4];
    static uint16_t half[ROWS * DSI_BLOCK_VALUES_MAX];
    float values[N * DSI_BLOCK_VALUES_MAX];
    for (int64_t i = 0; i < ROWS * k; i++) {
        half[i] = (uint16_t)(0x3F00 + i * 37 % 256 + (i % 3 == 0 ? 0x8000 : 0));
        x[i] = dsi_bf16_to_f32(half[i]);
    }
    dsi_matmul_args a = {.x_stride = k,
                         .w_stride = k,
                         .y_stride = N,
                         .n1 = N,
                         .k = k,
                         .w = dsi_checkpoint_data(&file, tensor(name, "blocks")),
                         .scratch = scratch,
                         .w_dtype = dtype};
    dsi_decode_blocks__ref(dtype, a.w, values, N * k);
    for (a.m = 1; a.m <= ROWS; a.m += a.m < 4 ? 1 : 11)
        for (int f32 = 0; f32 < 2; f32++) {
            a.x = f32 ? (const void *)x : (const void *)half;
            a.y = truth;
            (f32 ? dsi_matmul_blocks_f32__ref : dsi_matmul_blocks_bf16__ref)(&a);
            a.y = y;
            (f32 ? kernels->matmul_blocks_f32 : kernels->matmul_blocks_bf16)(&a);
            for (int64_t i = 0; i < a.m * N; i++) {
                double terms = 0;
                for (int64_t j = 0; j < k; j++)
                    terms += fabs((double)x[i / N * k + j] * (double)values[i % N * k + j]);
                /* Minimums, where there are, are summed apart. */
                if (!(fabs((double)y[i] - (double)truth[i]) <= 1e-5 * terms))
                    fail_msg("%s m=%d: output %d is %.9g, not %.9g", name, (int)a.m, (int)i,
                             (double)y[i], (double)truth[i]);
            }
        }
}

static void test_products(void **state) {
    (void)state;
    const uint32_t isas = dsi_cpu_isa(dsi_isa_detect(), NULL);
    for (uint32_t mask = 0; mask < DSI_ISA_MASKS; mask = mask * 2 + 1) {
        dsi_kernels kernels;
        dsi_kernels_select(mask & isas, &kernels);
#define CHECK_TYPE(dtype, type, values, bytes, text) check_products(&kernels, dtype, text);
        DSI_BLOCK_DTYPE_LIST(CHECK_TYPE)
#undef CHECK_TYPE
    }
}

/* What other kernels rely on: the scales of a block and the sizes of types agree. */
static void test_shapes(void **state) {
    (void)state;
#define CHECK_SHAPE(name, type, n, size, text)                                                     \
    {                                                                                              \
        dsi_block_shape shape = dsi_block_shape_of(name);                                          \
        dsi_block_size block = dsi_dtype_block(name);                                              \
        assert_true(shape.values == (int32_t)block.values);                                        \
        assert_true(shape.bytes == (int32_t)block.bytes);                                          \
        assert_true(shape.values <= DSI_BLOCK_VALUES_MAX && shape.bytes <= DSI_BLOCK_BYTES_MAX);   \
        assert_true(shape.values / shape.group <= DSI_BLOCK_GROUPS_MAX);                           \
    }
    DSI_BLOCK_DTYPE_LIST(CHECK_SHAPE)
#undef CHECK_SHAPE
    assert_false(dsi_is_block(DSI_DTYPE_E4M3));
}

int main(int argc, char **argv) {
    if (argc > 1) path = argv[1];
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_values),
        cmocka_unit_test(test_products),
        cmocka_unit_test(test_shapes),
    };
    return cmocka_run_group_tests(tests, open_file, close_file);
}
