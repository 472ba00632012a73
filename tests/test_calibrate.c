/* test_calibrate.c: dsinfer quantize --calibrate: codes that make up for each other, beside sums in
 * double; four bits in groups of 128 that keep tiny-gov's perplexity on other records within 5 %;
 * the same bytes for any number of threads, and after kills; what is refused. */
#include "quantize_run.h"

#include "../tools/dsinfer/quantize_search.inc"

#include "../tools/dsinfer/quantize_feedback.inc"
#include <math.h>

static const quantize_search plain_vectors = {symmetric, put_i4, q4_k,       put_q4_k,
                                              aim,       settle, accumulate, dots};

/* ---- One column after the other -------------------------------------------------------------- */

enum { N = 96, AT = 32, RUN = 32 };

static float number(uint32_t *seed) {
    *seed = *seed * 1664525u + 1013904223u;
    return (float)(int32_t)*seed * 0x1p-31f;
}

/* Codes of columns [AT, N): each is the nearest to the number and what is owed to its column, all
 * summed up in double. */
static void test_feedback(void **state) {
    (void)state;
    static float factor[N * N];
    static _Alignas(64) quantize_vector x[N], lost[N], target[N], scale[2], zero[2];
    uint32_t seed = 1, n_moved = 0;
    for (int i = 0; i < N * N; i++) factor[i] = 0.3f * number(&seed);
    for (int i = 0; i < N; i++)
        for (int l = 0; l < QUANTIZE_LANES; l++) {
            x[i][l] = number(&seed);
            lost[i][l] = i < AT ? 0.1f * number(&seed) : 99;
        }
    for (int i = 0; i < 2; i++)
        for (int l = 0; l < QUANTIZE_LANES; l++) {
            scale[i][l] = 0.1f + 0.01f * (float)(l + i);
            zero[i][l] = -0.6f - 0.02f * (float)l;
        }
    quantize_feedback f = {.factor = factor,
                           .stride = N,
                           .x = (const quantize_vector *)x,
                           .lost = lost,
                           .target = target,
                           .scale = (const quantize_vector *)scale,
                           .zero = (const quantize_vector *)zero,
                           .top = 15};
    plain_vectors.aim(&f, AT, N - AT);
    plain_vectors.settle(&f, AT, N - AT, RUN);
    for (int j = AT; j < N; j++)
        for (int l = 0; l < QUANTIZE_LANES; l++) {
            double want = (double)x[j][l], s = (double)scale[(j - AT) / RUN][l];
            double z = (double)zero[(j - AT) / RUN][l], code = (double)target[j - AT][l];
            for (int i = 0; i < j; i++) want += (double)lost[i][l] * (double)factor[j * N + i];
            double nearest = fmin(fmax((want - z) / s, 0), 15);
            if (fabs(code - nearest) > 0.501 || floor(code) < code)
                fail_msg("column %d: code %g, wanted %g", j, code, nearest);
            assert_true(fabs((double)x[j][l] - (s * code + z) - (double)lost[j][l]) < 1e-5);
            n_moved += fabs(code - ((double)x[j][l] - z) / s) > 0.6;
        }
    assert_true(n_moved > 50);
}

static void test_sums(void **state) {
    (void)state;
    enum { ROWS = 7, COLUMNS = 83 };
    float rows[ROWS][COLUMNS], to[3][COLUMNS], factors[ROWS][QUANTIZE_TOGETHER], results[4];
    uint32_t seed = 2;
    for (int i = 0; i < ROWS * COLUMNS; i++) rows[i / COLUMNS][i % COLUMNS] = number(&seed);
    for (int i = 0; i < ROWS * 4; i++) factors[i / 4][i % 4] = number(&seed);
    for (int j = 0; j < 3 * COLUMNS; j++) to[j / COLUMNS][j % COLUMNS] = (float)j;
    const quantize_products p = {to[0], COLUMNS, COLUMNS, 3, factors[0], 4, rows[0], COLUMNS, ROWS};
    plain_vectors.accumulate(&p);
    for (int j = 0; j < 3 * COLUMNS; j++) {
        double want = j;
        for (int i = 0; i < ROWS; i++)
            want += (double)factors[i][j / COLUMNS] * (double)rows[i][j % COLUMNS];
        assert_true(fabs(want - (double)to[j / COLUMNS][j % COLUMNS]) < 1e-4);
    }
    plain_vectors.dots(rows[0], rows[1], COLUMNS, COLUMNS, results);
    for (int r = 0; r < 4; r++) {
        double want = 0;
        for (int j = 0; j < COLUMNS; j++) want += (double)rows[0][j] * (double)rows[1 + r][j];
        assert_true(fabs(want - (double)results[r]) < 1e-5);
    }
}

/* ---- A model --------------------------------------------------------------------------------- */

static char calibration[256], judged[256];

/* Records [first, first + n) of the held-back ones. */
static void write_records(const char *name, int first, int n) {
    bytes file = read_file(TINY, "heldback.jsonl");
    char *begin = file.data;
    for (int i = 0; i < first; i++) begin = strchr(begin, '\n') + 1;
    char *end = begin;
    for (int i = 0; i < n; i++) end = strchr(end, '\n') + 1;
    write_file(root, name, begin, (size_t)(end - begin));
    free(file.data);
}

static double after(const char *out, const char *key, int which) {
    const char *at = strstr(out, key);
    assert_non_null(at);
    at = strpbrk(at + strlen(key), "0123456789");
    char *rest;
    double value = strtod(at, &rest);
    return which == 0 ? value : strtod(strpbrk(rest, "0123456789"), NULL);
}

/* The change of the perplexity on the other records; *kl the mean divergence. */
static double change(const char *form, bool calibrated, double *kl) {
    char out[256];
    under_root(out, form);
    cli_call call = {.arguments = {"quantize", "-m", TINY, "--to", form, "--out", out, "--keep",
                                   "none", "--text", judged, "--json",
                                   calibrated ? "--calibrate" : NULL, calibration}};
    cli_result r = cli_exec(&call);
    if (r.code != 0) fail_msg("exit %d\n%s", r.code, r.err);
    double before = after(r.out, "\"perplexity\": ", 0);
    double made = after(r.out, "\"perplexity\": ", 1);
    *kl = after(r.out, "\"mean_kl\": ", 0);
    cli_result_free(&r);
    remove_folder(out);
    return made / before - 1;
}

static void test_perplexity(void **state) {
    (void)state;
    double kl[2], rounded = change("int4", false, &kl[0]), made = change("int4", true, &kl[1]);
    print_message("all matrices in int4 of 128: perplexity %+.2f %%, KL %.1e; calibrated %+.2f %%, "
                  "KL %.1e\n",
                  100 * rounded, kl[0], 100 * made, kl[1]);
    assert_true(rounded > 0.1);
    assert_true(made < 0.05);
    assert_true(kl[1] < 0.4 * kl[0]);
}

/* ---- The same bytes ---------------------------------------------------------------------------
 */

static void test_same_bytes(void **state) {
    (void)state;
    char one[256], killed[256], journal[300], leftover[300];
    const char *const text[2] = {"--calibrate", judged};
    under_root(one, "one.gguf");
    under_root(killed, "killed.gguf");
    snprintf(journal, sizeof journal, "%s.journal", killed);
    snprintf(leftover, sizeof leftover, "%s.calibration", killed);
    cli_call call = {.arguments = {"quantize", "-m", TINY, "--to", "q4_k", "--out", one,
                                   "--threads", "1", text[0], text[1]}};
    cli_result r = cli_exec(&call);
    if (r.code != 0) fail_msg("exit %d\n%s", r.code, r.err);
    assert_non_null(strstr(r.out, "calibrated on"));
    cli_result_free(&r);
    int n_killed = 0, n_resumed = 0;
    for (int i = 0; n_killed < 3 && i < 20; i++) {
        if (!run_and_kill("q4_k", killed, text, i ? leftover : NULL, i ? 9000 * i : 60000)) {
            unlink(killed); /* it was done before it was killed: from the start again */
            continue;
        }
        n_killed++;
        n_resumed += access(leftover, F_OK) == 0;
    }
    assert_true(n_killed >= 2);
    assert_true(n_resumed >= 1);
    if (access(journal, F_OK) == 0 || access(killed, F_OK) != 0) {
        const char *const other[2] = {"--calibrate", calibration};
        if (access(journal, F_OK) == 0)
            must_refuse(TINY, "q4_k", killed, other, 2, "was begun with another model");
        must_make(TINY, "q4_k", killed, text);
    }
    assert_int_not_equal(access(leftover, F_OK), 0);
    same_files(root, "one.gguf", root, "killed.gguf");
    print_message("killed %d times, the rows of the text were there %d times\n", n_killed,
                  n_resumed);
}

static void test_refused(void **state) {
    (void)state;
    char out[256], lines[256];
    const char *const good[2] = {"--calibrate", calibration}, *const bad[2] = {"--calibrate",
                                                                               lines};
    const char *const missing[2] = {"--calibrate", "/nowhere.jsonl"};
    under_root(out, "refused");
    under_root(lines, "bad.jsonl");
    write_text(root, "bad.jsonl", "{\"text\": \"路灯\"}\n{\"question\": \"?\"}\n");
    must_refuse(TINY, "int8", out, good, 2, "--calibrate");
    must_refuse(TINY, "int4", out, missing, 3, "/nowhere.jsonl");
    assert_int_not_equal(access(out, F_OK), 0);
    must_refuse(TINY, "int4", out, bad, 4, "line 2");
    /* a model without a tokenizer reads no text */
    must_refuse("tests/data/golden/v3-fp8", "int4", out, good, 3, "tokenizer");
    assert_int_not_equal(access(out, F_OK), 0); /* nothing was begun */
}

static int begin(void **state) {
    make_root(state);
    under_root(calibration, "calibration.jsonl");
    under_root(judged, "judged.jsonl");
    write_records("calibration.jsonl", 300, 60);
    write_records("judged.jsonl", 0, 12);
    return 0;
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_feedback),   cmocka_unit_test(test_sums),
        cmocka_unit_test(test_perplexity), cmocka_unit_test(test_same_bytes),
        cmocka_unit_test(test_refused),
    };
    return cmocka_run_group_tests_name("calibrate", tests, begin, remove_root);
}
