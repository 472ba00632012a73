/* test_cli.c: the contracts of the dsinfer command: exit codes, streams, JSON, languages. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "../lib/base/json.h"
#include "../lib/base/sys.h"
#include "../tools/dsinfer/compare.c"
#include "../tools/dsinfer/values.c"
#include "cli_run.h"
#include <math.h>

#define TINY "examples/models/tiny-gov"
#define TICKET "工单分拨：\n我要举报，南山区文化路，外地户口能不能在这里读书。望尽快解决。"

/* Runs arguments (up to 23), and fails the test with what was said if the code is another. */
static cli_result run_expect(int code, const cli_call *call) {
    cli_result result = cli_exec(call);
    if (result.code != code) {
        print_error("dsinfer %s %s ...: exit %d, expected %d\nstdout: %.400s\nstderr: %.800s\n",
                    call->arguments[0], call->arguments[1] == NULL ? "" : call->arguments[1],
                    result.code, code, result.out, result.err);
    }
    assert_int_equal(result.code, code);
    return result;
}
#define RUN(code, ...) run_expect(code, &(cli_call){.arguments = {__VA_ARGS__}})

static dsi_json parse(const char *text, size_t n_bytes) {
    dsi_json json;
    dsi_error error = {0};
    if (dsi_json_parse(text, n_bytes, 1 << 20, &json, &error) != DSI_OK) {
        fail_msg("not JSON: %s: %.200s", error.text, text);
    }
    return json;
}

static double number(const dsi_json *json, uint32_t parent, const char *key) {
    double value = NAN;
    if (!dsi_json_f64(json, dsi_json_get(json, parent, key), &value)) fail_msg("no number %s", key);
    return value;
}

/* ---- Values and arithmetic, without a process */

static void sizes_are_strict(void **state) {
    (void)state;
    static const struct {
        const char *text;
        uint64_t bytes;
    } good[] = {{"1", 1},
                {"512M", UINT64_C(512) << 20},
                {"16G", UINT64_C(16) << 30},
                {"1.5GiB", UINT64_C(3) << 29},
                {"800MB", 800000000},
                {"7KiB", 7168},
                {"2k", 2048},
                {"1T", UINT64_C(1) << 40},
                {"64B", 64},
                {"18446744073709551615", UINT64_MAX}};
    static const char *const bad[] = {"",
                                      " 1",
                                      "1 G",
                                      "G",
                                      "-1G",
                                      "+1",
                                      "1.G",
                                      ".5G",
                                      "0x10",
                                      "1e9",
                                      "1GG",
                                      "1Gb",
                                      "1GiBB",
                                      "12 MB",
                                      "1,5G",
                                      "16777216T",
                                      "18446744073709551616"};
    uint64_t value;
    for (size_t i = 0; i < sizeof good / sizeof good[0]; i++) {
        assert_true(cli_read_size(good[i].text, &value));
        assert_int_equal(value, good[i].bytes);
    }
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        if (cli_read_size(bad[i], &value)) fail_msg("size \"%s\" was taken", bad[i]);
    }
}

static void numbers_are_strict(void **state) {
    (void)state;
    static const char *const bad[] = {"",   "nan",   "inf", "0x1p3", " 1",
                                      "1 ", "1e999", "--1", "1..2",  "e"};
    uint64_t whole;
    double value;
    assert_true(cli_read_u64("18446744073709551615", &whole) && whole == UINT64_MAX);
    assert_false(cli_read_u64("18446744073709551616", &whole));
    assert_false(cli_read_u64("-1", &whole) || cli_read_u64("1.0", &whole));
    assert_true(cli_read_f64("-2.5e-3", &value) && value == -2.5e-3);
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        if (cli_read_f64(bad[i], &value)) fail_msg("number \"%s\" was taken", bad[i]);
    }
    assert_int_equal(cli_distance("thread", "threads"), 1);
    assert_int_equal(cli_distance("jsno", "json"), 1);
    assert_int_equal(cli_distance("kitten", "sitting"), 3);
    assert_int_equal(cli_distance("", "abc"), 3);
}

static void kl_is_right(void **state) {
    (void)state;
    compared_row row;
    /* p = (1/2, 1/2), q = (3/4, 1/4): KL = ln(2/3)/2 + ln(2)/2 */
    const float golden[2] = {5, 5}, ours[2] = {(float)log(3), 0};
    assert_true(compare_rows(golden, ours, 2, &row));
    assert_true(fabs(row.kl - 0.5 * log(4.0 / 3)) < 1e-7);
    assert_true(fabs(row.max_abs - 5) < 1e-6);
    assert_true(row.same_top); /* a tie goes to the lower id */
    const float swapped[2] = {0, 1}, far[2] = {3e38f, -3e38f}, broken[2] = {0, INFINITY};
    assert_true(compare_rows(golden, swapped, 2, &row) && !row.same_top);
    assert_true(compare_rows(far, far, 2, &row));
    assert_true(row.kl == 0 && row.max_abs == 0);
    assert_false(compare_rows(golden, broken, 2, &row));
    double values[4] = {4, 1, 3, 2};
    assert_true(compare_mean(values, 4) == 2.5 && compare_median(values, 4) == 2.5);
    assert_true(compare_median(values, 3) == 2 && compare_median(values, 0) == 0);
}

/* ---- Help and usage */

static void help_starts_with_examples(void **state) {
    (void)state;
    static const char *const commands[] = {"run", "tokenize", "inspect", "verify"};
    static const char *const locales[] = {"C", "zh_CN.UTF-8"};
    static const char *const first[] = {"Examples:\n  dsinfer ", "示例：\n  dsinfer "};
    for (size_t i = 0; i < 8; i++) {
        cli_call call = {.arguments = {"help", commands[i / 2]}, .locale = locales[i % 2]};
        cli_result result = run_expect(0, &call);
        assert_int_equal(result.n_err, 0);
        assert_int_equal(strncmp(result.out, first[i % 2], strlen(first[i % 2])), 0);
        const char *line = result.out;
        for (int n = 0; n < 3; n++) { /* three examples of this very command */
            char start[64];
            snprintf(start, sizeof start, "  dsinfer %s ", commands[i / 2]);
            line = strchr(line, '\n') + 1;
            assert_int_equal(strncmp(line, start, strlen(start)), 0);
        }
        assert_non_null(strstr(result.out, "--model DIR"));
        assert_non_null(strstr(result.out, "--max-memory SIZE"));
        cli_result same = run_expect(
            0, &(cli_call){.arguments = {commands[i / 2], "--help"}, .locale = locales[i % 2]});
        assert_string_equal(same.out, result.out);
        cli_result_free(&same);
        cli_result_free(&result);
    }
    cli_result none = RUN(2, NULL);
    assert_int_equal(none.n_out, 0);
    assert_non_null(strstr(none.err, "verify"));
    cli_result version = RUN(0, "--version");
    assert_string_equal(version.out, "dsinfer " DSI_VERSION_TEXT "\n");
    cli_result_free(&none);
    cli_result_free(&version);
}

static void languages_follow_the_locale(void **state) {
    (void)state;
    static const struct {
        const char *locale, *option, *expected;
    } cases[] = {{"C", NULL, "error: "},
                 {"zh_CN.UTF-8", NULL, "错误："},
                 {"zh_TW", NULL, "错误："},
                 {"C", "--lang=zh", "错误："},
                 {"zh_CN.UTF-8", "--lang=en", "error: "},
                 {"en_US.UTF-8", NULL, "error: "}};
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        cli_call call = {
            .arguments = {"run", cases[i].option == NULL ? "--quiet" : cases[i].option},
            .locale = cases[i].locale};
        cli_result result = run_expect(2, &call);
        assert_int_equal(result.n_out, 0);
        assert_non_null(strstr(result.err, cases[i].expected));
        cli_result_free(&result);
    }
}

/* ---- tokenize */

static char *read_text(const char *path, size_t *n_bytes) {
    FILE *file = fopen(path, "rb");
    if (file == NULL) fail_msg("%s is missing", path);
    char *text = cli_slurp(file, n_bytes);
    fclose(file);
    return text;
}

/* The ids of two documents are the same list. */
static void same_ids(const dsi_json *a, const dsi_json *b) {
    uint32_t x = dsi_json_get(a, 0, "ids"), y = dsi_json_get(b, 0, "ids");
    assert_true(x != DSI_JSON_NONE && y != DSI_JSON_NONE);
    assert_int_equal(a->nodes[x].n_items, b->nodes[y].n_items);
    for (uint32_t i = 1; i <= a->nodes[x].n_items; i++) {
        uint64_t left = 0, right = 1;
        assert_true(dsi_json_u64(a, x + i, &left) && dsi_json_u64(b, y + i, &right));
        assert_int_equal(left, right);
    }
}

static void tokenize_gives_the_vectors(void **state) {
    (void)state;
    size_t n_bytes, n_lines = 0;
    char *vectors = read_text("tests/data/tokenizer/vectors.jsonl", &n_bytes);
    cli_call call = {.arguments = {"tokenize", "-m", "tests/data/tokenizer/tokenizer.json",
                                   "--special", "--jsonl"},
                     .input = vectors};
    cli_result result = run_expect(0, &call);
    assert_int_equal(result.n_err, 0);
    const char *ours = result.out, *wanted = vectors;
    while (*wanted != 0) {
        size_t n_ours = strcspn(ours, "\n"), n_wanted = strcspn(wanted, "\n");
        assert_int_equal(strncmp(ours, "{\"ids\": [", 9), 0);
        dsi_json a = parse(ours, n_ours), b = parse(wanted, n_wanted);
        same_ids(&a, &b);
        uint64_t n_decoded, n_expected;
        char *decoded = dsi_json_string(&a, dsi_json_get(&a, 0, "decoded"), &n_decoded);
        char *expected = dsi_json_string(&b, dsi_json_get(&b, 0, "decoded"), &n_expected);
        assert_int_equal(n_decoded, n_expected);
        assert_memory_equal(decoded, expected, n_decoded);
        dsi_sys_free(decoded);
        dsi_sys_free(expected);
        dsi_json_free(&a);
        dsi_json_free(&b);
        ours += n_ours + 1;
        wanted += n_wanted + (wanted[n_wanted] == '\n');
        n_lines++;
    }
    assert_int_equal(*ours, 0);
    print_message("tokenize: %zu vectors equal, %.3f s\n", n_lines, result.seconds);
    cli_result_free(&result);
    free(vectors);
}

static void tokenize_takes_texts(void **state) {
    (void)state;
    cli_call zero = {
        .arguments = {"tokenize", "-m", TINY, "--jsonl"},
        .input =
            "{\"text\": \"a\\u0000b\\n\\\"市民\\\"\", \"other\": [1, {}]}\n\n{\"text\": \"\"}"};
    cli_result result = run_expect(0, &zero);
    assert_non_null(strstr(result.out, ", \"decoded\": \"a\\u0000b\\n\\\"市民\\\"\"}\n"));
    assert_non_null(strstr(result.out, "\n{\"ids\": [], \"decoded\": \"\"}\n"));
    cli_result_free(&result);
    cli_call bad = {.arguments = {"tokenize", "-m", TINY, "--jsonl"},
                    .input =
                        "{\"text\": \"a\"}\n{\"text\": \"b\"}\n{\"text\": 3}\n{\"text\": \"c\"}\n"};
    result = run_expect(2, &bad);
    assert_non_null(strstr(result.err, "line 3"));
    assert_int_equal(strcspn(strchr(result.out, '\n') + 1, "\n") + strcspn(result.out, "\n") + 2,
                     result.n_out); /* two lines came before the bad one */
    cli_result_free(&result);
    result = RUN(0, "tokenize", "-m", TINY, "--threads", "1", "--max-memory", "1G", "南山区 12号");
    assert_non_null(strstr(result.out, "山区\n"));
    assert_non_null(strstr(result.err, "tokens"));
    cli_result_free(&result);
    cli_call whole = {.arguments = {"tokenize", "-m", TINY, "--json", "-"}, .input = TICKET};
    result = run_expect(0, &whole);
    dsi_json json = parse(result.out, result.n_out);
    assert_true(number(&json, 0, "schema") == 1);
    assert_true(dsi_json_string_is(&json, dsi_json_get(&json, 0, "decoded"), TICKET));
    dsi_json_free(&json);
    cli_result_free(&result);
    result = RUN(2, "tokenize", "-m", TINY, "ab\xff");
    assert_non_null(strstr(result.err, "byte 2 (0xff)"));
    cli_result_free(&result);
}

/* ---- inspect and verify */

static void inspect_adds_up(void **state) {
    (void)state;
    cli_result result = RUN(0, "inspect", "-m", TINY, "--tensors", "--json");
    dsi_json json = parse(result.out, result.n_out);
    assert_true(number(&json, 0, "schema") == 1);
    assert_true(dsi_json_string_is(&json, dsi_json_get(&json, 0, "architecture"), "deepseek_v3"));
    uint32_t dtypes = dsi_json_get(&json, 0, "dtypes"), tensors = dsi_json_get(&json, 0, "tensors");
    double n_bytes = 0, n_tensors = 0, n_listed = 0;
    for (uint32_t i = dsi_json_first(&json, dtypes); i < json.nodes[dtypes].end;
         i = json.nodes[i + 1].end) {
        n_bytes += number(&json, i + 1, "bytes");
        n_tensors += number(&json, i + 1, "tensors");
    }
    for (uint32_t i = dsi_json_first(&json, tensors); i < json.nodes[tensors].end;
         i = json.nodes[i].end) {
        n_listed += number(&json, i, "bytes");
    }
    assert_true(n_bytes == number(&json, 0, "weight_bytes") && n_bytes == n_listed);
    assert_true(n_tensors == number(&json, 0, "n_tensors"));
    assert_true(n_tensors == json.nodes[tensors].n_items);
    assert_true(number(&json, 0, "vocab_size") == 4096 && number(&json, 0, "layers") == 6);
    assert_true(number(&json, 0, "parameters_active") < number(&json, 0, "parameters_total"));
    dsi_json_free(&json);
    cli_result_free(&result);
    result = RUN(0, "inspect", "-m", TINY, "--tensors");
    assert_int_equal(result.n_err, 0);
    assert_non_null(strstr(result.out, "at 100 GB/s: "));
    assert_non_null(strstr(result.out, "model.layers.5.mlp.experts.15.down_proj.weight_scale_inv"));
    cli_result_free(&result);
    result = RUN(3, "inspect", "-m", TINY, "--max-memory", "1M");
    assert_non_null(strstr(result.err, "--max-memory"));
    cli_result_free(&result);
    result = RUN(3, "inspect", "-m", TINY, "--max-memory", "1M", "--json"); /* figures and error */
    json = parse(result.out, result.n_out);
    assert_true(number(&json, 0, "layers") == 6);
    assert_true(number(&json, dsi_json_get(&json, 0, "error"), "code") == 3);
    dsi_json_free(&json);
    cli_result_free(&result);
}

static void verify_judges(void **state) {
    (void)state;
    static const char *const keys[] = {"schema",    "tokens", "max_abs",      "mean_kl",
                                       "median_kl", "top1",   "greedy_match", "greedy_total"};
    cli_result result = RUN(0, "verify", "-m", TINY, "--golden", TINY "/golden.safetensors",
                            "--activations", "f32", "--json");
    result.out[result.n_out - 1] = 0; /* its newline */
    const char *last = strrchr(result.out, '\n');
    last = last == NULL ? result.out : last + 1;
    dsi_json json = parse(last, strlen(last));
    for (size_t i = 0; i < 8; i++) assert_true(isfinite(number(&json, 0, keys[i])));
    assert_true(number(&json, 0, "tokens") == 192 && number(&json, 0, "greedy_total") == 48);
    assert_true(number(&json, 0, "mean_kl") <= 1e-6);
    assert_true(number(&json, 0, "greedy_match") == 48);
    bool ok = false;
    assert_true(dsi_json_bool(&json, dsi_json_get(&json, 0, "ok"), &ok) && ok);
    print_message("%s\n", last);
    dsi_json_free(&json);
    cli_result_free(&result);
    result = RUN(1, "verify", "-m", TINY, "--golden", TINY "/golden.safetensors", "--max-mean-kl",
                 "1e-15", "-q", "--json");
    assert_non_null(strstr(result.out, "\"ok\": false}\n"));
    cli_result_free(&result);
    result = RUN(0, "verify", "-m", TINY, "--golden", TINY "/golden.safetensors");
    assert_non_null(strstr(result.out, "PASS"));
    assert_null(strstr(result.out, "FAIL"));
    cli_result_free(&result);
    result = RUN(1, "verify", "-m", TINY, "--golden", TINY "/golden.safetensors", "--max-mean-kl",
                 "1e-15", "-q");
    assert_non_null(strstr(result.out, "FAIL"));
    assert_int_equal(result.n_err, 0);
    cli_result_free(&result);
    result = RUN(0, "verify", "-m", "tests/data/golden/v3-fp8", "--golden",
                 "tests/data/golden/v3-fp8/golden.safetensors", "--activations", "f32");
    cli_result_free(&result);
    result =
        RUN(4, "verify", "-m", TINY, "--golden", "tests/data/golden/v3-fp8/golden.safetensors");
    assert_non_null(strstr(result.err, "4096"));
    cli_result_free(&result);
    result = RUN(4, "verify", "-m", TINY, "--golden", TINY "/model.safetensors");
    assert_non_null(strstr(result.err, "tokens"));
    cli_result_free(&result);
}

/* ---- run */

/* A cache of 8 bits is smaller, in the plan too, and answers. */
static void run_with_small_cache(void **state) {
    (void)state;
    static const char *const types[] = {"bf16", "fp8", "int8"};
    /* 128 latents, a scale, 32 rotated columns in 6 layers; rows of 8 bits are whole 16 bytes */
    static const char *const bytes[] = {"\"kv_bytes_per_token\": 1920,",
                                        "\"kv_bytes_per_token\": 1248,",
                                        "\"kv_bytes_per_token\": 1248,"};
    for (int i = 0; i < 3; i++) {
        cli_result result = RUN(0, "inspect", "-m", TINY, "--kv-cache", types[i], "--json");
        assert_non_null(strstr(result.out, bytes[i]));
        cli_result_free(&result);
        result = RUN(0, "run", "-m", TINY, "--no-think", "--kv-cache", types[i], TICKET);
        assert_true(result.n_out > 2);
        cli_result_free(&result);
    }
    cli_result result = RUN(2, "run", "-m", TINY, "--kv-cache", "int4", TICKET);
    assert_non_null(strstr(result.err, "bf16"));
    cli_result_free(&result);
    result = RUN(2, "run", "-m", TINY, "--kv-cache", "fp8", "--activations", "f32", TICKET);
    assert_non_null(strstr(result.err, "activations bf16"));
    cli_result_free(&result);
}

static void run_answers(void **state) {
    (void)state;
    cli_result result = RUN(0, "run", "-m", TINY, "--no-think", TICKET);
    assert_true(result.n_out > 2 && result.out[result.n_out - 1] == '\n');
    assert_null(strchr(result.out, '\033'));
    assert_non_null(strstr(result.err, "memory: weights"));
    assert_non_null(strstr(result.err, "tok/s | memory "));
    assert_null(strstr(result.out, "tok/s"));
    print_message("dsinfer run: %.3f s wall\n%s%s", result.seconds, result.out, result.err);
    cli_call from_stdin = {.arguments = {"run", "-m", TINY, "--no-think", "--quiet", "-"},
                           .input = TICKET,
                           .locale = "zh_CN.UTF-8"};
    cli_result same = run_expect(0, &from_stdin);
    assert_string_equal(same.out, result.out);
    assert_int_equal(same.n_err, 0);
    cli_result_free(&same);
    same =
        RUN(0, "run", "-m", TINY, "--no-think", "--json", "--seed", "18446744073709551615", TICKET);
    dsi_json json = parse(same.out, same.n_out);
    char *text = dsi_json_string(&json, dsi_json_get(&json, 0, "text"), NULL);
    result.out[result.n_out - 1] = 0;
    assert_string_equal(text, result.out);
    assert_true(dsi_json_string_is(&json, dsi_json_get(&json, 0, "reasoning"), ""));
    assert_true(dsi_json_string_is(&json, dsi_json_get(&json, 0, "finish_reason"), "stop"));
    assert_true(dsi_json_string_is(&json, dsi_json_get(&json, 0, "model"), TINY));
    uint32_t timings = dsi_json_get(&json, 0, "timings");
    static const char *const keys[] = {
        "load_seconds",   "first_token_seconds",       "prefill_seconds",
        "decode_seconds", "prefill_tokens_per_second", "decode_tokens_per_second"};
    for (size_t i = 0; i < 6; i++) assert_true(number(&json, timings, keys[i]) > 0);
    assert_true(number(&json, 0, "tokens_in") > 10 && number(&json, 0, "tokens_out") > 10);
    assert_true(number(&json, 0, "memory_bytes") > 1e6 && number(&json, 0, "schema") == 1);
    uint64_t seed = 0;
    assert_true(dsi_json_u64(&json, dsi_json_get(&json, 0, "seed"), &seed) && seed == UINT64_MAX);
    dsi_sys_free(text);
    dsi_json_free(&json);
    cli_result_free(&same);
    cli_result_free(&result);
}

static void run_reasons_and_stops(void **state) {
    (void)state;
    cli_result result = RUN(0, "run", "-m", TINY, "--think", "--json", TICKET);
    dsi_json json = parse(result.out, result.n_out);
    uint64_t n_reasoning = 0, n_text = 0;
    char *reasoning = dsi_json_string(&json, dsi_json_get(&json, 0, "reasoning"), &n_reasoning);
    char *text = dsi_json_string(&json, dsi_json_get(&json, 0, "text"), &n_text);
    assert_true(n_reasoning > 0 && n_text > 0);
    assert_null(strstr(text, "think>"));
    cli_result plain = RUN(0, "run", "-m", TINY, "--think", TICKET); /* a pipe: the answer alone */
    plain.out[plain.n_out - 1] = 0;
    assert_string_equal(plain.out, text);
    cli_result_free(&plain);
    dsi_sys_free(reasoning);
    dsi_sys_free(text);
    dsi_json_free(&json);
    cli_result_free(&result);
    result = RUN(0, "run", "-m", TINY, "--json", "--max-tokens", "3", "--temperature", "0.8",
                 "--top-p", "0.9", "--top-k", "40", "--min-p", "0.01", TICKET);
    json = parse(result.out, result.n_out);
    assert_true(number(&json, 0, "tokens_out") == 3);
    assert_true(dsi_json_string_is(&json, dsi_json_get(&json, 0, "finish_reason"), "length"));
    dsi_json_free(&json);
    cli_result_free(&result);
}

static void run_survives_its_surroundings(void **state) {
    (void)state;
    int ends[2];
    assert_int_equal(pipe(ends), 0);
    close(ends[0]);
    cli_call left = {.arguments = {"run", "-m", TINY, TICKET}, .stdout_fd = ends[1]};
    cli_result result = run_expect(0, &left); /* the reader is gone: no noise, no signal */
    assert_null(strstr(result.err, "error"));
    cli_result_free(&result);
    close(ends[1]);
    cli_call full = {.arguments = {"run", "-m", TINY, TICKET}, .stdout_path = "/dev/full"};
    result = run_expect(3, &full);
    assert_non_null(strstr(result.err, "stdout could not be written"));
    cli_result_free(&result);
    size_t n_long = 10u << 20;
    char *prompt = malloc(n_long);
    assert_non_null(prompt);
    for (size_t i = 0; i < n_long; i++) prompt[i] = (char)('a' + i % 7 * (i % 11 != 0));
    cli_call too_long = {.arguments = {"run", "-m", TINY, "-"}, .input = prompt, .n_input = n_long};
    result = run_expect(2, &too_long);
    assert_non_null(strstr(result.err, "--context"));
    print_message("a prompt of 10 MB is refused in %.2f s\n", result.seconds);
    cli_result_free(&result);
    free(prompt);
}

/* What a terminal receives on stdout and stderr together; the caller frees it. */
static char *on_terminal(const char *const *arguments, const char *term, const char *no_color) {
    int terminal = posix_openpt(O_RDWR | O_NOCTTY);
    assert_true(terminal >= 0 && grantpt(terminal) == 0 && unlockpt(terminal) == 0);
    int side = open(ptsname(terminal), O_RDWR | O_NOCTTY);
    assert_true(side >= 0);
    pid_t pid = fork();
    if (pid == 0) {
        cli_call call = {.arguments = {NULL}};
        for (size_t i = 0; arguments[i] != NULL; i++) call.arguments[i] = arguments[i];
        setenv("TERM", term, 1);
        setenv("NO_COLOR", no_color, 1);
        cli_child(&call, side, side, side);
    }
    close(side);
    size_t n_bytes = 0, capacity = 1 << 20;
    char *text = calloc(capacity, 1);
    assert_non_null(text);
    ssize_t n;
    while ((n = read(terminal, text + n_bytes, capacity - 1 - n_bytes)) > 0) n_bytes += (size_t)n;
    close(terminal);
    int status = 0;
    waitpid(pid, &status, 0);
    assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    return text;
}

static void terminals_are_respected(void **state) {
    (void)state;
    int probe = posix_openpt(O_RDWR | O_NOCTTY);
    if (probe < 0) { /* a bare chroot */
        print_message("no pseudo-terminal to be had here (is /dev/pts mounted?)\n");
        skip();
    }
    close(probe);
    static const char *const think[] = {"run", "-m", TINY, "--think", TICKET, NULL};
    static const char *const rows[] = {
        "verify", "-m", TINY, "--golden", TINY "/golden.safetensors", "--chunk", "8", NULL};
    char *text = on_terminal(think, "xterm", "");
    assert_non_null(strstr(text, "\033[2m<think>\r\n"));
    assert_non_null(strstr(text, "</think>\r\n\r\n\033[22m{"));
    free(text);
    text = on_terminal(think, "xterm", "1");
    assert_non_null(strstr(text, "<think>\r\n"));
    assert_null(strstr(text, "\033[2m"));
    free(text);
    text = on_terminal(rows, "xterm", "");
    assert_non_null(strstr(text, "\rprompt ["));
    free(text);
    text = on_terminal(rows, "dumb", "");
    assert_null(strchr(text, '\033'));
    assert_null(strstr(text, "prompt ["));
    free(text);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(sizes_are_strict),
        cmocka_unit_test(numbers_are_strict),
        cmocka_unit_test(kl_is_right),
        cmocka_unit_test(help_starts_with_examples),
        cmocka_unit_test(languages_follow_the_locale),
        cmocka_unit_test(tokenize_gives_the_vectors),
        cmocka_unit_test(tokenize_takes_texts),
        cmocka_unit_test(inspect_adds_up),
        cmocka_unit_test(verify_judges),
        cmocka_unit_test(run_with_small_cache),
        cmocka_unit_test(run_answers),
        cmocka_unit_test(run_reasons_and_stops),
        cmocka_unit_test(run_survives_its_surroundings),
        cmocka_unit_test(terminals_are_respected),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
