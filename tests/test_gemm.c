/* test_gemm.c: libraries of matrix products: one that is missing, of another version or without a
 * function is refused and named, and the engine computes as before; one that is there gives the
 * logits of exact mode within what another order of sums may change. Made-up libraries are built
 * here with the C compiler ($CC or cc); without one those tests are skipped. */
#include "../lib/backend/gemm.h"
#include "../lib/internal.h"
#include "golden.h"
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <unistd.h>

#include <cmocka.h>

static const char *const MODEL = "tests/data/golden/v3-fp8";
static char folder[64];

/* A library of this source, in the test's folder; skips the test if there is no compiler. */
static const char *build_library(const char *name, const char *source) {
    static char path[128], command[512];
    char file[128];
    const char *cc = getenv("CC");
    snprintf(file, sizeof file, "%s/%s.c", folder, name);
    snprintf(path, sizeof path, "%s/%s.so", folder, name);
    FILE *f = fopen(file, "w");
    assert_non_null(f);
    fputs(source, f);
    fclose(f);
    snprintf(command, sizeof command, "%s -shared -fPIC -o %s %s 2>/dev/null",
             cc && *cc ? cc : "cc", path, file);
    if (system(command) != 0) skip();
    return path;
}

static void refuses(uint32_t which, const char *file, const char *word) {
    dsi_gemm_library *library;
    dsi_error error = {0};
    dsi_gemm_file[which] = file;
    assert_int_equal(dsi_gemm_open(which, &library, &error), DSI_E_UNSUPPORTED);
    assert_null(library);
    if (!strstr(error.text, word)) fail_msg("no '%s' in: %s", word, error.text);
    dsi_gemm_file[which] = NULL;
}

static void test_missing(void **state) {
    (void)state;
    refuses(DSI_LIBRARY_ONEDNN, "/nowhere/libdnnl.so", "oneDNN is not here");
    refuses(DSI_LIBRARY_OPENBLAS, "/nowhere/libopenblas.so", "OpenBLAS is not here");
}

static void test_other_versions(void **state) {
    (void)state;
    const char *version = "typedef struct { int a, b, c; const char *h; unsigned cpu, gpu; } v;\n"
                          "const v *dnnl_version(void) { static const v x = {%s}; return &x; }\n";
    static const struct {
        const char *name, *numbers, *word;
    } cases[] = {{"nine", "9, 1, 2, \"\", 1, 0", "oneDNN 9.1.2"},
                 {"old", "1, 7, 0, \"\", 1, 0", "versions 2.4 to 3"},
                 {"tbb", "3, 4, 0, \"\", 4, 0", "runtime 4"},
                 {"empty", "3, 4, 0, \"\", 1, 0", "has no dnnl_"}};
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        char source[512];
        snprintf(source, sizeof source, version, cases[i].numbers);
        refuses(DSI_LIBRARY_ONEDNN, build_library(cases[i].name, source), cases[i].word);
    }
    refuses(DSI_LIBRARY_ONEDNN, build_library("mute", "int nothing;\n"),
            "does not say its version");
    refuses(DSI_LIBRARY_OPENBLAS, build_library("bare", "int nothing;\n"), "has no cblas_sgemm");
    refuses(DSI_LIBRARY_OPENBLAS,
            build_library("threads", "void cblas_sgemm(void) {}\n"
                                     "int openblas_get_parallel(void) { return 1; }\n"),
            "threads of its own");
}

/* ---- In an engine ---------------------------------------------------------------------------- */

typedef struct answer {
    float *logits;
    size_t n;
    char describe[512], warning[512];
} answer;

static void keep_warning(void *user, uint32_t level, const char *component, const char *text) {
    (void)component;
    if (level == DSI_LOG_WARN) snprintf(((answer *)user)->warning, 512, "%s", text);
}

/* The logits of 150 tokens. */
static answer compute(uint32_t mode, uint32_t gemm) {
    enum { TOKENS = 150 };
    answer a = {0};
    dsi_model_options options;
    dsi_model_options_init(&options);
    options.log = keep_warning, options.log_user = &a;
    dsi_model *model;
    dsi_engine *engine;
    dsi_session *session;
    assert_int_equal(dsi_model_open(MODEL, &options, &model), DSI_OK);
    dsi_model_info info = {.struct_size = sizeof info};
    dsi_model_get_info(model, &info);
    dsi_engine_options e;
    dsi_engine_options_init(&e);
    e.n_threads = 2, e.mode = mode, e.gemm = gemm, e.max_context = 160;
    if (dsi_engine_open(model, &e, &engine) != DSI_OK) fail_msg("%s", dsi_last_error(NULL));
    snprintf(a.describe, sizeof a.describe, "%s", dsi_engine_describe(engine));
    assert_int_equal(dsi_session_open(engine, NULL, &session), DSI_OK);
    for (int32_t i = 0; i < TOKENS; i++) {
        int32_t token = (i * 37 + 11) % (int32_t)info.vocab_size;
        assert_int_equal(dsi_session_append(session, &token, 1), DSI_OK);
    }
    while (dsi_session_n_queued(session))
        assert_int_equal(dsi_engine_step(engine, &session, 1, NULL), DSI_OK);
    const float *logits;
    size_t n_rows, first;
    assert_int_equal(dsi_session_logits(session, &logits, &n_rows, &first), DSI_OK);
    a.n = info.vocab_size;
    a.logits = malloc(a.n * sizeof *a.logits);
    memcpy(a.logits, logits, a.n * sizeof *a.logits);
    dsi_session_close(session);
    dsi_engine_close(engine);
    dsi_model_close(model);
    return a;
}

static void test_without_library(void **state) {
    (void)state;
    dsi_gemm_file[DSI_LIBRARY_ONEDNN] = dsi_gemm_file[DSI_LIBRARY_OPENBLAS] = "/nowhere/lib.so";
    answer exact = compute(DSI_MODE_EXACT, DSI_GEMM_AUTO);
    answer fast = compute(DSI_MODE_FAST, DSI_GEMM_AUTO);
    answer named = compute(DSI_MODE_FAST, DSI_GEMM_ONEDNN);
    dsi_gemm_file[DSI_LIBRARY_ONEDNN] = dsi_gemm_file[DSI_LIBRARY_OPENBLAS] = NULL;
    assert_null(strstr(exact.describe, "fast"));
    assert_non_null(strstr(fast.describe, "fast: own kernels"));
    assert_non_null(strstr(named.describe, "is not here"));
    assert_non_null(strstr(named.warning, "the own kernels are used"));
    assert_memory_equal(exact.logits, fast.logits, exact.n * sizeof(float));
    assert_memory_equal(exact.logits, named.logits, exact.n * sizeof(float));
    free(exact.logits), free(fast.logits), free(named.logits);
}

static void assert_close(const answer *a, const answer *b) {
    double most = 0, apart = 0;
    for (size_t i = 0; i < a->n; i++) {
        assert_true(isfinite(b->logits[i]));
        most = fmax(most, fabs((double)a->logits[i]));
        apart = fmax(apart, fabs((double)a->logits[i] - (double)b->logits[i]));
    }
    print_message("%g apart, the largest is %g\n", apart, most);
    if (apart > 0.1 * most) fail_msg("%s: %g apart, the largest is %g", b->describe, apart, most);
}

static void with_library(uint32_t which, uint32_t gemm, const char *name) {
    dsi_gemm_library *library;
    dsi_error error;
    if (dsi_gemm_open(which, &library, &error) != DSI_OK) {
        print_message("skipped: %s\n", error.text);
        skip();
    }
    dsi_gemm_close(library);
    answer exact = compute(DSI_MODE_EXACT, DSI_GEMM_AUTO), fast = compute(DSI_MODE_FAST, gemm);
    print_message("%s\n", fast.describe);
    assert_non_null(strstr(fast.describe, name));
    assert_close(&exact, &fast);
    free(exact.logits), free(fast.logits);
}

static void test_onednn(void **state) {
    (void)state;
    with_library(DSI_LIBRARY_ONEDNN, DSI_GEMM_ONEDNN, "fast: oneDNN");
}
static void test_openblas(void **state) {
    (void)state;
    with_library(DSI_LIBRARY_OPENBLAS, DSI_GEMM_OPENBLAS, "fast: OpenBLAS");
}

/* A CBLAS of three loops, so that the way to a library is taken everywhere. */
static void test_made_up_openblas(void **state) {
    (void)state;
    dsi_gemm_file[DSI_LIBRARY_OPENBLAS] = build_library(
        "loops",
        "int openblas_get_parallel(void) { return 0; }\n"
        "const char *openblas_get_config(void) { return \"OpenBLAS 7.8.9 loops\"; }\n"
        "void cblas_sgemm(int o, int ta, int tb, int m, int n, int k, float alpha,\n"
        "    const float *a, int lda, const float *b, int ldb, float beta, float *c,\n"
        "    int ldc) { for (int i = 0; i < m; i++) for (int j = 0; j < n; j++) {\n"
        "    float s = 0; for (int p = 0; p < k; p++) s += a[i * lda + p] * b[j * ldb + p];\n"
        "    c[i * ldc + j] = alpha * s; } (void)o, (void)ta, (void)tb, (void)beta; }\n");
    answer exact = compute(DSI_MODE_EXACT, DSI_GEMM_AUTO);
    answer fast = compute(DSI_MODE_FAST, DSI_GEMM_OPENBLAS);
    dsi_gemm_file[DSI_LIBRARY_OPENBLAS] = NULL;
    assert_non_null(strstr(fast.describe, "OpenBLAS 7.8.9"));
    assert_close(&exact, &fast);
    free(exact.logits), free(fast.logits);
}

/* What is measured once in a process holds for every engine after it: the same choice, the same
 * bits. */
static void test_measured_once(void **state) {
    (void)state;
    answer first = compute(DSI_MODE_FAST, DSI_GEMM_AUTO);
    for (int i = 0; i < 3; i++) {
        answer again = compute(DSI_MODE_FAST, DSI_GEMM_AUTO);
        assert_string_equal(again.describe, first.describe);
        assert_int_equal(again.n, first.n);
        assert_memory_equal(again.logits, first.logits, first.n * sizeof *first.logits);
        free(again.logits);
    }
    free(first.logits);
}

static void test_options(void **state) {
    (void)state;
    dsi_model *model;
    dsi_engine *engine = NULL;
    assert_int_equal(dsi_model_open(MODEL, NULL, &model), DSI_OK);
    dsi_engine_options e;
    dsi_engine_options_init(&e);
    assert_int_equal(e.mode, DSI_MODE_EXACT);
    e.gemm = DSI_GEMM_ONEDNN; /* of a mode that is not asked for */
    assert_int_equal(dsi_engine_open(model, &e, &engine), DSI_E_ARG);
    assert_non_null(strstr(dsi_last_error(NULL), "gemm is 2"));
    e.mode = 2;
    assert_int_equal(dsi_engine_open(model, &e, &engine), DSI_E_ARG);
    dsi_model_close(model);
}

static int make_folder(void **state) {
    (void)state;
    snprintf(folder, sizeof folder, "/tmp/dsi-gemm-XXXXXX");
    return mkdtemp(folder) ? 0 : -1;
}
static int remove_folder(void **state) {
    (void)state;
    char command[128];
    snprintf(command, sizeof command, "rm -rf %s", folder);
    return system(command);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_missing),         cmocka_unit_test(test_other_versions),
        cmocka_unit_test(test_without_library), cmocka_unit_test(test_onednn),
        cmocka_unit_test(test_openblas),        cmocka_unit_test(test_made_up_openblas),
        cmocka_unit_test(test_options),         cmocka_unit_test(test_measured_once),
    };
    return cmocka_run_group_tests_name("gemm", tests, make_folder, remove_folder);
}
