/* test_cli_run.c: what shapes an answer of dsinfer run: stop texts, penalties, log-probabilities,
 * deadlines, Ctrl-C. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "../lib/base/json.h"
#include "../lib/base/sys.h"
#include "terminal.h"
#include <math.h>

#define TINY "examples/models/tiny-gov"
#define TICKET "工单分拨：文化路路灯不亮。"
#define LINE "我要举报，南山区文化路，外地户口能不能在这里读书。望尽快解决。\n"

typedef struct run_answer {
    cli_result result;
    dsi_json json;
    char *text, *finish;
} run_answer;

static double number(const dsi_json *json, uint32_t parent, const char *key) {
    double value = NAN;
    if (!dsi_json_f64(json, dsi_json_get(json, parent, key), &value)) fail_msg("no number %s", key);
    return value;
}

static run_answer ask(int code, const char *const *options, const char *prompt) {
    run_answer a = {.text = NULL};
    cli_call call = {.arguments = {"run", "-m", TINY, "--json", "-q", "-"}, .input = prompt};
    for (size_t i = 0; options[i] != NULL; i++) call.arguments[6 + i] = options[i];
    a.result = cli_exec(&call);
    if (a.result.code != code) {
        fail_msg("exit %d, expected %d: %s%s", a.result.code, code, a.result.out, a.result.err);
    }
    if (dsi_json_parse(a.result.out, a.result.n_out, 1 << 20, &a.json, NULL) != DSI_OK) {
        fail_msg("not JSON: %s", a.result.out);
    }
    a.text = dsi_json_string(&a.json, dsi_json_get(&a.json, 0, "text"), NULL);
    a.finish = dsi_json_string(&a.json, dsi_json_get(&a.json, 0, "finish_reason"), NULL);
    return a;
}
#define ASK(code, prompt, ...) ask(code, (const char *const[]){__VA_ARGS__, NULL}, prompt)

static void answer_free(run_answer *a) {
    dsi_sys_free(a->text);
    dsi_sys_free(a->finish);
    dsi_json_free(&a->json);
    cli_result_free(&a->result);
}

/* The answer ends in front of the stop text that comes first, and says which one it was. */
static void stop_texts_end_it(void **state) {
    (void)state;
    run_answer whole = ASK(0, TICKET, "--seed", "1");
    assert_string_equal(whole.finish, "stop");
    assert_int_equal(dsi_json_get(&whole.json, 0, "logprobs"), DSI_JSON_NONE);
    assert_int_equal(whole.json.nodes[dsi_json_get(&whole.json, 0, "stop_text")].kind,
                     DSI_JSON_NULL);
    const char *end = strstr(whole.text, "部门");
    assert_non_null(end);
    run_answer cut = ASK(0, TICKET, "--stop", "不在其中", "--stop", "部门", "--stop=紧急");
    assert_string_equal(cut.finish, "stop_text");
    assert_true(dsi_json_string_is(&cut.json, dsi_json_get(&cut.json, 0, "stop_text"), "部门"));
    assert_int_equal(strlen(cut.text), end - whole.text);
    assert_memory_equal(cut.text, whole.text, strlen(cut.text));
    answer_free(&cut);
    answer_free(&whole);
}

static void penalties_change_it(void **state) {
    (void)state;
    run_answer plain = ASK(0, TICKET, "--max-tokens", "200", "--temperature", "2");
    static const char *const options[][7] = {
        {"--max-tokens", "200", "--temperature", "2", "--repetition-penalty", "3", NULL},
        {"--max-tokens", "200", "--temperature", "2", "--presence-penalty", "2", NULL},
        {"--max-tokens", "200", "--temperature", "2", "--frequency-penalty=2", NULL, NULL},
        {"--max-tokens", "200", "--temperature", "2", "--frequency-penalty=-2", NULL, NULL}};
    for (size_t i = 0; i < 4; i++) {
        run_answer other = ask(0, options[i], TICKET);
        if (strcmp(other.text, plain.text) == 0) fail_msg("%s changes nothing", options[i][4]);
        answer_free(&other);
    }
    run_answer same =
        ASK(0, TICKET, "--max-tokens", "200", "--temperature", "2", "--repetition-penalty", "1",
            "--presence-penalty", "0", "--frequency-penalty", "0");
    assert_string_equal(same.text, plain.text);
    answer_free(&same);
    answer_free(&plain);
}

/* Greedy tokens are the likeliest ones; their texts make up the answer. */
static void logprobs_are_given(void **state) {
    (void)state;
    run_answer a = ASK(0, TICKET, "--logprobs=3", "--no-think", "--max-tokens", "12");
    uint32_t list = dsi_json_get(&a.json, 0, "logprobs");
    assert_int_not_equal(list, DSI_JSON_NONE);
    assert_int_equal(a.json.nodes[list].n_items, number(&a.json, 0, "tokens_out"));
    assert_int_equal(a.json.nodes[list].n_items, 12);
    char text[4096] = "";
    for (uint32_t i = list + 1; i < a.json.nodes[list].end; i = a.json.nodes[i].end) {
        char *piece = dsi_json_string(&a.json, dsi_json_get(&a.json, i, "text"), NULL);
        strncat(text, piece, sizeof text - strlen(text) - 1);
        dsi_sys_free(piece);
        uint32_t top = dsi_json_get(&a.json, i, "top"), first = top + 1;
        assert_int_equal(a.json.nodes[top].n_items, 3);
        assert_true(number(&a.json, i, "token") == number(&a.json, first, "token"));
        assert_true(number(&a.json, i, "logprob") == number(&a.json, first, "logprob"));
        double sum = 0, last = 0;
        for (uint32_t j = first; j < a.json.nodes[top].end; j = a.json.nodes[j].end) {
            double logprob = number(&a.json, j, "logprob");
            assert_true(logprob <= last);
            sum += exp(logprob);
            last = logprob;
        }
        assert_true(sum > 0 && sum <= 1 + 1e-5);
    }
    assert_string_equal(text, a.text);
    answer_free(&a);
    a = ASK(0, TICKET, "--logprobs", "--max-tokens", "2");
    list = dsi_json_get(&a.json, 0, "logprobs");
    assert_int_equal(a.json.nodes[list].n_items, 2);
    assert_int_equal(a.json.nodes[dsi_json_get(&a.json, list + 1, "top")].n_items, 0);
    answer_free(&a);
}

static void deadlines_hold(void **state) {
    (void)state;
    run_answer a =
        ASK(0, TICKET, "--deadline", "2", "--temperature", "100", "--no-think", "--kernels", "ref");
    assert_string_equal(a.finish, "deadline");
    assert_true(*a.text != 0);
    assert_true(number(&a.json, dsi_json_get(&a.json, 0, "timings"), "decode_seconds") < 4);
    answer_free(&a);
    /* Nothing answered in time is a failure. */
    char prompt[60 * sizeof LINE] = "";
    for (int i = 0; i < 60; i++) strcat(prompt, LINE);
    a = ASK(3, prompt, "--deadline", "0.1", "--kernels", "ref", "--threads", "1", "--chunk", "16");
    uint32_t error = dsi_json_get(&a.json, 0, "error");
    char *message = dsi_json_string(&a.json, dsi_json_get(&a.json, error, "message"), NULL);
    assert_non_null(message);
    assert_non_null(strstr(message, "0.1 s passed before the answer began"));
    assert_true(a.result.seconds < 5);
    print_message("%s (%.2f s)\n", message, a.result.seconds);
    dsi_sys_free(message);
    answer_free(&a);
}

/* Ctrl-C while the prompt is computed ends it at once; the object says so. */
static void ctrl_c_ends_it(void **state) {
    (void)state;
    char prompt[60 * sizeof LINE] = "";
    for (int i = 0; i < 60; i++) strcat(prompt, LINE);
    const char *const arguments[] = {"run",       "-m", TINY,      "--kernels", "ref",  "--json",
                                     "--threads", "1",  "--chunk", "64",        prompt, NULL};
    terminal t = {.fd = -1};
    if (!terminal_start(&t, "xterm", arguments)) {
        print_message("no pseudo-terminal to be had here (is /dev/pts mounted?)\n");
        skip();
    }
    assert_true(terminal_expect(&t, "\rprompt [")); /* the first part is done */
    double pressed = terminal_now();
    assert_true(terminal_type(&t, "\003"));
    assert_true(terminal_expect(&t, "\"finish_reason\": \"cancelled\""));
    print_message("run ends %.3f s after Ctrl-C\n", terminal_now() - pressed);
    assert_true(terminal_now() - pressed < 4);
    assert_int_equal(terminal_end(&t), 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(stop_texts_end_it),  cmocka_unit_test(penalties_change_it),
        cmocka_unit_test(logprobs_are_given), cmocka_unit_test(deadlines_hold),
        cmocka_unit_test(ctrl_c_ends_it),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
