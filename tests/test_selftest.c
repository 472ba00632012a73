/* test_selftest.c: kernels that are wrong on purpose are put in the place of true ones; the engine
 * must notice before its first answer, use the next instruction set, say so, and answer right. */
#include "../kernels/formats.h"
#include "../lib/backend/cpu.h"
#include "../lib/backend/cpu_selftest.h"
#include "../lib/internal.h"
#include "golden.h"
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <time.h>

#include <cmocka.h>

#define MODEL "tests/data/golden/v3-fp8"

/* ---- Kernels that are wrong ------------------------------------------------------------------ */

/* Which ones stand in: those of this stem (NULL: of all) and these instruction sets. */
static struct {
    const char *stem;
    uint32_t isa;
    _Atomic int asked;
} wrong;

/* The last weight row of a call counts for nothing, as if a tail had been forgotten. */
static void wrong_matmul_fp8_f32(const dsi_matmul_args *a) {
    dsi_matmul_fp8_f32__ref(a);
    for (int64_t i = 0; i < a->m && a->n1 > a->n0; i++)
        a->y[i * a->y_stride + a->n1 - 1 - a->n0] = 0;
}
static void wrong_matmul(const dsi_matmul_args *a) {
    for (int64_t i = 0; i < a->m; i++)
        for (int64_t n = a->n0; n < a->n1; n++) a->y[i * a->y_stride + n - a->n0] = 1;
}
static void wrong_matmul_t(const dsi_matmul_t_args *a) {
    for (int64_t i = 0; i < a->m; i++)
        for (int64_t j = 0; j < a->k; j++) a->y[i * a->y_stride + j] = 1;
}
static void wrong_attend(const dsi_attend_args *a) {
    for (int64_t i = 0; i < a->n_q; i++) a->state_l[i * a->state_stride] += 1;
}
static void wrong_rms_norm(const float *x, const void *w, dsi_dtype w_dtype, void *y, int64_t n,
                           float eps) {
    (void)x, (void)w, (void)w_dtype, (void)eps;
    memset(y, 0, (size_t)n * 2);
}
static void wrong_swiglu(const float *gate, const float *up, void *y, int64_t n) {
    (void)gate, (void)up;
    memset(y, 0, (size_t)n * 2);
}
static void wrong_cast(const float *x, uint16_t *y, int64_t n) { /* truncates */
    for (int64_t i = 0; i < n; i++) y[i] = (uint16_t)(dsi_f32_bits(x[i]) >> 16);
}

static void wrong_quantize(const void *x, void *record, int64_t k, int64_t group) {
    (void)x, (void)group;
    memset(record, 1, (size_t)dsi_a8_bytes(k));
}

static void wrong_decode(const uint8_t *w, const float *scale, uint16_t *y, int64_t k) {
    (void)w, (void)scale;
    memset(y, 1, (size_t)k * 2);
}

static void wrong_decode_blocks(dsi_dtype w_dtype, const uint8_t *w, float *y, int64_t k) {
    (void)w_dtype, (void)w;
    memset(y, 1, (size_t)k * 4);
}

static void wrong_index(const dsi_index_args *a) {
    for (int64_t i = 0; i < a->n_q; i++)
        for (int64_t s = 0; s < DSI_PAGE_ROWS; s++) a->score[i * a->score_stride + s] = 1;
}

static dsi_any_fn swap(const dsi_kernel_line *line) {
    static const dsi_any_fn by_type[] = {
        [DSI_KERNEL_matmul] = (dsi_any_fn)wrong_matmul,
        [DSI_KERNEL_matmul_t] = (dsi_any_fn)wrong_matmul_t,
        [DSI_KERNEL_attend] = (dsi_any_fn)wrong_attend,
        [DSI_KERNEL_rms_norm] = (dsi_any_fn)wrong_rms_norm,
        [DSI_KERNEL_swiglu] = (dsi_any_fn)wrong_swiglu,
        [DSI_KERNEL_cast] = (dsi_any_fn)wrong_cast,
        [DSI_KERNEL_quantize] = (dsi_any_fn)wrong_quantize,
        [DSI_KERNEL_decode] = (dsi_any_fn)wrong_decode,
        [DSI_KERNEL_decode_blocks] = (dsi_any_fn)wrong_decode_blocks,
        [DSI_KERNEL_index] = (dsi_any_fn)wrong_index,
    };
    wrong.asked++;
    if ((line->isa & wrong.isa) == 0) return NULL;
    if (wrong.stem && strcmp(line->stem, wrong.stem) != 0) return NULL;
    if (strcmp(line->stem, "matmul_fp8_f32") == 0) return (dsi_any_fn)wrong_matmul_fp8_f32;
    return by_type[line->type];
}

static void arm(const char *stem, uint32_t isa) {
    wrong.stem = stem, wrong.isa = isa, wrong.asked = 0;
    dsi_cpu_selftest_swap = swap;
    dsi_cpu_selftest_forget();
}
static int disarm(void **state) {
    (void)state;
    dsi_cpu_selftest_swap = NULL;
    dsi_cpu_selftest_forget();
    return 0;
}

/* ---- An engine and what it says -------------------------------------------------------------- */

typedef struct said {
    int warnings;
    char first[1024], last[1024];
} said;

static void on_log(void *user, uint32_t level, const char *component, const char *text) {
    said *s = user;
    (void)component;
    if (level != DSI_LOG_WARN || !strstr(text, "self-test")) return;
    snprintf(s->warnings ? s->last : s->first, sizeof s->first, "%s", text);
    s->warnings++;
}

typedef struct opened {
    dsi_model *model;
    dsi_engine *engine;
    said said;
} opened;

static void open_both(opened *o, const char *kernels, uint32_t activations) {
    dsi_model_options mo;
    dsi_model_options_init(&mo);
    memset(&o->said, 0, sizeof o->said);
    mo.log = on_log, mo.log_user = &o->said;
    assert_int_equal(dsi_model_open(MODEL, &mo, &o->model), DSI_OK);
    dsi_engine_options eo;
    dsi_engine_options_init(&eo);
    eo.kernels = kernels, eo.n_threads = 1, eo.max_context = 512, eo.activations = activations;
    o->engine = open_engine(o->model, &eo);
    assert_non_null(o->engine);
}
static void close_both(opened *o) {
    dsi_engine_close(o->engine);
    dsi_model_close(o->model);
}

/* The distance of all logits of the golden prompt from PyTorch's. */
static distance from_golden(dsi_engine *engine) {
    golden g;
    assert_true(golden_open(MODEL "/golden.safetensors", &g));
    dsi_session_options so;
    dsi_session *s;
    dsi_session_options_init(&so);
    so.all_logits = 1;
    assert_int_equal(dsi_session_open(engine, &so, &s), DSI_OK);
    float *out = calloc(g.n_tokens * g.vocab, sizeof *out);
    assert_non_null(out);
    assert_true(all_logits(engine, s, g.tokens, g.n_tokens, g.vocab, out));
    distance d = compare_logits(g.logits, out, g.n_tokens, g.vocab);
    free(out);
    dsi_session_close(s);
    golden_close(&g);
    return d;
}

static const char *best_set(void) {
    const char *kernels[KERNEL_SETS];
    return kernels[kernel_sets(kernels) - 1];
}
static uint32_t usable_isas(void) { return dsi_cpu_isa(dsi_isa_detect(), NULL); }
static uint32_t vector_isas(void) { return usable_isas() & ~(uint32_t)DSI_ISA_REF; }

/* ---- Tests ----------------------------------------------------------------------------------- */

static double thread_seconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

/* Every set that this CPU has passes, and fast. */
static void test_true_kernels_pass(void **state) {
    (void)state;
    disarm(NULL);
    uint32_t n;
    const dsi_cpu_set *sets = dsi_cpu_sets(&n);
    for (uint32_t i = 0; i < n; i++) {
        if ((sets[i].mask & ~usable_isas()) != 0) continue;
        dsi_cpu_selftest r;
        dsi_error error = {0};
        dsi_kernels plain;
        double start = thread_seconds();
        assert_int_equal(dsi_cpu_selftest_run(sets[i].mask, &r, &error), DSI_OK);
        double seconds = thread_seconds() - start;
        print_message("self-test of %s: %u kernels in %.1f ms of CPU time\n", sets[i].name,
                      r.n_checked, seconds * 1e3);
        if (r.n_failed) print_error("%s: %s\n", r.faults[0].kernel, r.faults[0].why);
        assert_int_equal(r.n_failed, 0);
        assert_true(seconds < 0.2);
        dsi_kernels_select(sets[i].mask, &plain);
        assert_memory_equal(&plain, &r.kernels, sizeof plain);
    }
}

/* The engine says which kernel, which element, and what is used; and its logits are right, where
 * the same kernel let through spoils them. */
static void test_one_falls_back(void **state) {
    (void)state;
    uint32_t isas = vector_isas();
    if (!isas) skip();
    uint32_t best = isas & DSI_ISA_AVX512 ? DSI_ISA_AVX512 : DSI_ISA_AVX2;
    const char *failed =
        best == DSI_ISA_AVX512 ? "dsi_matmul_fp8_f32__avx512" : "dsi_matmul_fp8_f32__avx2";
    const char *used = best == DSI_ISA_AVX512 ? "dsi_matmul_fp8_f32__avx2 is used instead"
                                              : "dsi_matmul_fp8_f32__ref is used instead";
    opened o;
    arm("matmul_fp8_f32", best);
    open_both(&o, NULL, DSI_ACTIVATIONS_F32);
    print_message("%s\n%s\n", o.said.first, dsi_engine_describe(o.engine));
    assert_int_equal(o.said.warnings, 1);
    assert_non_null(strstr(o.said.first, failed));
    assert_non_null(strstr(o.said.first, used));
    assert_non_null(strstr(o.said.first, "y["));
    assert_non_null(strstr(o.said.first, " is "));
    assert_non_null(strstr(o.said.first, "should be "));
    assert_non_null(strstr(dsi_engine_describe(o.engine),
                           best == DSI_ISA_AVX512
                               ? "(self-test: matmul_fp8_f32 falls back to avx2)"
                               : "(self-test: matmul_fp8_f32 falls back to ref)"));
    assert_true(from_golden(o.engine).mean_kl <= 1e-6);
    o.engine->dev->kernels.matmul_fp8_f32 = wrong_matmul_fp8_f32;
    assert_true(from_golden(o.engine).mean_kl > 1e-2);
    close_both(&o);
}

/* Every vector kernel of every stem is wrong: the references answer, and the log stays short. */
static void test_all_fall_back(void **state) {
    (void)state;
    if (!vector_isas()) skip();
    opened o, reference;
    disarm(NULL);
    open_both(&reference, "ref", DSI_ACTIVATIONS_BF16);
    distance expected = from_golden(reference.engine);
    assert_int_equal(reference.said.warnings, 0);
    assert_null(strstr(dsi_engine_describe(reference.engine), "self-test"));
    arm(NULL, vector_isas());
    open_both(&o, NULL, DSI_ACTIVATIONS_BF16);
    print_message("%s\n%s\n", o.said.last, dsi_engine_describe(o.engine));
    assert_int_equal(o.said.warnings, DSI_CPU_FAULTS + 1);
    assert_non_null(strstr(o.said.last, "more kernels"));
    assert_non_null(strstr(dsi_engine_describe(o.engine), "falls back to ref, "));
    assert_memory_equal(&o.engine->dev->kernels, &reference.engine->dev->kernels,
                        sizeof(dsi_kernels));
    distance d = from_golden(o.engine);
    assert_memory_equal(&d, &expected, sizeof d);
    close_both(&o);
    close_both(&reference);
}

/* A set that was asked for by name falls back too, and a snapshot can tell the two apart. */
static void test_named_set(void **state) {
    (void)state;
    if (!vector_isas()) skip();
    opened o, whole;
    disarm(NULL);
    open_both(&whole, best_set(), DSI_ACTIVATIONS_BF16);
    arm("cast_bf16", vector_isas());
    open_both(&o, best_set(), DSI_ACTIVATIONS_BF16);
    assert_true(o.said.warnings >= 1);
    assert_non_null(strstr(o.said.first, "dsi_cast_bf16__ref is used instead"));
    assert_non_null(strstr(dsi_engine_describe(o.engine), best_set()));
    assert_non_null(
        strstr(dsi_engine_describe(o.engine), "(self-test: cast_bf16 falls back to ref"));
    assert_string_equal(o.engine->dev->kernels.name_cast_bf16, "dsi_cast_bf16__ref");
    assert_string_equal(whole.engine->dev->kernels_name, best_set());
    assert_string_not_equal(o.engine->dev->kernels_name, whole.engine->dev->kernels_name);
    assert_true(from_golden(o.engine).mean_kl <= 5e-2);
    close_both(&o);
    close_both(&whole);
}

/* The second engine costs nothing and says the same. */
static void test_remembered(void **state) {
    (void)state;
    if (!vector_isas()) skip();
    opened first, second;
    arm("swiglu_bf16", vector_isas());
    open_both(&first, NULL, DSI_ACTIVATIONS_BF16);
    int asked = wrong.asked;
    assert_true(asked > 0);
    open_both(&second, NULL, DSI_ACTIVATIONS_BF16);
    assert_int_equal(wrong.asked, asked);
    assert_true(first.said.warnings > 0);
    assert_int_equal(second.said.warnings, first.said.warnings);
    assert_string_equal(second.said.first, first.said.first);
    close_both(&first);
    close_both(&second);
}

static void *open_alone(void *context) {
    open_both(context, NULL, DSI_ACTIVATIONS_BF16);
    return NULL;
}

static void test_two_at_once(void **state) {
    (void)state;
    if (!vector_isas()) skip();
    enum { THREADS = 4, ROUNDS = 5 };
    for (int round = 0; round < ROUNDS; round++) {
        static opened o[THREADS];
        pthread_t thread[THREADS];
        arm("matmul_fp8_bf16", vector_isas());
        for (int i = 0; i < THREADS; i++)
            assert_int_equal(pthread_create(&thread[i], NULL, open_alone, &o[i]), 0);
        for (int i = 0; i < THREADS; i++) pthread_join(thread[i], NULL);
        for (int i = 0; i < THREADS; i++) {
            assert_true(o[i].said.warnings >= 1);
            assert_memory_equal(&o[i].engine->dev->kernels, &o[0].engine->dev->kernels,
                                sizeof(dsi_kernels));
            assert_string_equal(dsi_engine_describe(o[i].engine), dsi_engine_describe(o[0].engine));
        }
        for (int i = 0; i < THREADS; i++) close_both(&o[i]);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(test_true_kernels_pass, disarm),
        cmocka_unit_test_teardown(test_one_falls_back, disarm),
        cmocka_unit_test_teardown(test_all_fall_back, disarm),
        cmocka_unit_test_teardown(test_named_set, disarm),
        cmocka_unit_test_teardown(test_remembered, disarm),
        cmocka_unit_test_teardown(test_two_at_once, disarm),
    };
    return cmocka_run_group_tests_name("selftest", tests, NULL, NULL);
}
