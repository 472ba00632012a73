/* test_inspect.c: dsinfer inspect names the kernel that every type of weights gets, and marks slow
 * ones; the engine's log and description say it too. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "../kernels/kernels.h"
#include "../lib/base/json.h"
#include "cli_run.h"
#include <deepseek/dsinfer.h>

#define Q8_0 "tests/data/gguf/v3-bf16-q8_0.gguf"
#define TINY "examples/models/tiny-gov"

static cli_result inspect(const char *model, const char *option, const char *value) {
    cli_call call = {.arguments = {"inspect", "-m", model, option, value}};
    cli_result result = cli_exec(&call);
    if (result.code != 0) fail_msg("inspect %s: exit %d: %s", model, result.code, result.err);
    return result;
}
static void expect(const char *text, const char *part) {
    if (strstr(text, part) == NULL) fail_msg("no \"%s\" in: %.2000s", part, text);
}

static void every_type_has_its_kernel(void **state) {
    (void)state;
    cli_result result = inspect(Q8_0, "--kernels", "ref");
    expect(result.out, "75 tensors; kernel matmul_blocks_bf16, ref (very slow: the reference)\n");
    expect(result.out, "kernel matmul_f16_bf16, ref");
    expect(result.err, "weights of type Q8_0: matmul_blocks_bf16, ref is the reference");
    cli_result_free(&result);
    result = inspect(TINY, "--kernels", "ref"); /* scales of F32 are no weights */
    expect(result.out, "kernel matmul_fp8_bf16, ref");
    assert_null(strstr(result.out, "matmul_f32"));
    cli_result_free(&result);
    result = inspect(TINY, "--activations", "f32");
    expect(result.out, "; kernel matmul_fp8_f32, ");
    cli_result_free(&result);
    if ((dsi_isa_detect() & DSI_ISA_AVX2) == 0) skip();
    result = inspect(Q8_0, "--kernels", "avx2");
    expect(result.out, "75 tensors; kernel matmul_blocks_bf16, avx2\n");
    assert_null(strstr(result.err, "slow"));
    cli_result_free(&result);
    cli_call zh = {.arguments = {"inspect", "-m", Q8_0, "--kernels", "avx2", "--lang", "zh"}};
    result = cli_exec(&zh);
    expect(result.out, "75 个张量；算子 matmul_blocks_bf16，avx2\n");
    cli_result_free(&result);
}

static void kernels_are_fields(void **state) {
    (void)state;
    cli_call call = {.arguments = {"inspect", "-m", Q8_0, "--json", "--kernels", "ref"}};
    cli_result result = cli_exec(&call);
    dsi_json json;
    assert_int_equal(dsi_json_parse(result.out, result.n_out, 1 << 20, &json, NULL), DSI_OK);
    uint32_t dtype = dsi_json_get(&json, dsi_json_get(&json, 0, "dtypes"), "Q8_0");
    assert_true(dsi_json_string_is(&json, dsi_json_get(&json, dtype, "isa"), "ref"));
    assert_true(dsi_json_string_is(&json, dsi_json_get(&json, dtype, "path"), "reference"));
    assert_true(
        dsi_json_string_is(&json, dsi_json_get(&json, dtype, "kernel"), "matmul_blocks_bf16"));
    dsi_json_free(&json);
    cli_result_free(&result);
}

/* ---- A file with a type whose blocks are looked up in tables: the last matrix of Q8_0 as MXFP4,
 * whose blocks are half as long, and the vector behind it moved there. */

enum { TYPE_Q8_0 = 8, TYPE_MXFP4 = 39, HALF = 256 * 128 / 32 * 17, VECTOR = 192 * 4 };
static char path[] = "/tmp/dsinfer-inspect-XXXXXX.gguf";

/* What follows the dimensions of a tensor in the header: its type, then its offset. */
static uint8_t *type_of(uint8_t *data, size_t n, const char *name, size_t n_dims) {
    uint8_t *at = memmem(data, n, name, strlen(name));
    return at == NULL ? NULL : at + strlen(name) + 4 + n_dims * 8;
}

static int make_file(void **state) {
    (void)state;
    static uint8_t data[4 << 20];
    FILE *from = fopen(Q8_0, "rb");
    if (from == NULL) return 1;
    size_t n = fread(data, 1, sizeof data, from);
    fclose(from);
    uint8_t *matrix = type_of(data, n, "blk.2.attn_q_b.weight", 2);
    uint8_t *vector = type_of(data, n, "output_norm.weight", 1);
    uint64_t offset;
    if (matrix == NULL || vector == NULL || *matrix != TYPE_Q8_0) return 1;
    *matrix = TYPE_MXFP4;
    memcpy(&offset, vector + 4, sizeof offset);
    offset -= HALF;
    memcpy(vector + 4, &offset, sizeof offset);
    n -= HALF;
    memmove(data + n - VECTOR, data + n - VECTOR + HALF, VECTOR);
    const int to = mkstemps(path, 5);
    const bool good = to >= 0 && write(to, data, n) == (ssize_t)n;
    return to < 0 || close(to) != 0 || !good;
}
static int remove_file(void **state) {
    (void)state;
    return unlink(path);
}

static char said[1024];
static void keep(void *user, uint32_t level, const char *component, const char *text) {
    (void)user, (void)component;
    if (level == DSI_LOG_WARN && strstr(text, "slow")) snprintf(said, sizeof said, "%s", text);
}

static void slow_types_are_marked(void **state) {
    (void)state;
    if ((dsi_isa_detect() & DSI_ISA_AVX2) == 0) skip();
    cli_result result = inspect(path, NULL, NULL);
    expect(result.out, "(slow: blocks are looked up in tables first)\n");
    expect(result.err, "weights of type MXFP4: matmul_blocks_bf16, ");
    cli_result_free(&result);
    cli_call zh = {.arguments = {"inspect", "-m", path, "--lang", "zh"}};
    result = cli_exec(&zh);
    expect(result.out, "（较慢：需先逐块查表解码）\n");
    cli_result_free(&result);
    result = inspect(path, "--json", NULL);
    expect(result.out, "\"path\": \"apart\"}");
    cli_result_free(&result);

    dsi_model *model = NULL;
    dsi_engine *engine = NULL;
    dsi_model_options open;
    dsi_model_options_init(&open);
    open.log = keep;
    assert_int_equal(dsi_model_open(path, &open, &model), DSI_OK);
    assert_int_equal(dsi_engine_open(model, NULL, &engine), DSI_OK);
    expect(said, "weights of type MXFP4");
    expect(dsi_engine_describe(engine), ", MXFP4 slow");
    dsi_engine_close(engine);
    dsi_model_close(model);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_type_has_its_kernel),
        cmocka_unit_test(kernels_are_fields),
        cmocka_unit_test_setup_teardown(slow_types_are_marked, make_file, remove_file),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
