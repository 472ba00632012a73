/* test_torture.c: a drawn part of `make torture`, the same in every run. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "../lib/base/base.h"
#include "../lib/base/sys.h"
#include "torture.h"
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

static void test_sample(void **state) {
    (void)state;
    const torture_options options = {.n_sample = 20, .seed = 1};
    uint64_t n_passed, n_failed;
    torture_run(&options, &n_passed, &n_failed);
    print_message("torture: %llu injections drawn, %llu failed\n",
                  (unsigned long long)(n_passed + n_failed), (unsigned long long)n_failed);
    assert_int_equal(n_failed, 0);
    assert_true(n_passed > 200);
}

/* ---- Torture that sees nothing would pass too: each of these does one thing wrong ---- */

static bool nothing(torture_state *s) {
    (void)s;
    return true;
}
static void no_reset(torture_state *s) { (void)s; }

/* Two blocks; what a fault does to the second is the scenario's. */
static bool take_two(torture_outcome *outcome) {
    void *first = dsi_sys_calloc(1, 8), *second = dsi_sys_calloc(1, 8);
    bool both = first && second;
    outcome->hash = 1;
    dsi_sys_free(first);
    dsi_sys_free(second);
    if (both) return true;
    outcome->status = DSI_E_NOMEM;
    snprintf(outcome->message, sizeof outcome->message, "no memory for two blocks");
    return false;
}
static void run_good(torture_state *s, torture_outcome *outcome) {
    (void)s;
    take_two(outcome);
}
static void run_silent(torture_state *s, torture_outcome *outcome) {
    (void)s;
    if (!take_two(outcome)) outcome->message[0] = 0;
}
static void run_wrong_blame(torture_state *s, torture_outcome *outcome) {
    (void)s;
    if (!take_two(outcome)) outcome->status = DSI_E_FORMAT;
}
static void run_other_answer(torture_state *s, torture_outcome *outcome) {
    (void)s;
    if (!take_two(outcome)) *outcome = (torture_outcome){.hash = 2};
}
static void run_leak(torture_state *s, torture_outcome *outcome) {
    static void *kept;
    (void)s;
    if (!take_two(outcome)) kept = dsi_sys_alloc_aligned(8);
    if (!kept) kept = dsi_sys_alloc_aligned(8);
}
static void run_crash(torture_state *s, torture_outcome *outcome) {
    (void)s;
    if (!take_two(outcome)) raise(SIGKILL);
}
static void run_hang(torture_state *s, torture_outcome *outcome) {
    (void)s;
    if (!take_two(outcome)) pause();
}
/* What a fault broke stays broken. */
static void run_no_retry(torture_state *s, torture_outcome *outcome) {
    if (s->folder[0]) outcome->status = DSI_E_NOMEM;
    if (!take_two(outcome)) s->folder[0] = 'x';
}

static void check_mutant(const char *name, void (*run)(torture_state *, torture_outcome *),
                         uint64_t want_passed, uint64_t want_failed) {
    const torture_scenario scenario = {name, nothing, run, no_reset, no_reset};
    const torture_options options = {
        .scenarios = &scenario, .n_scenarios = 1, .seconds = 0.3, .quiet = true};
    uint64_t n_passed, n_failed;
    torture_run(&options, &n_passed, &n_failed);
    assert_int_equal(n_passed, want_passed);
    assert_int_equal(n_failed, want_failed);
}

/* Six injections each: calloc 1 and 2 once, from there on, and of the kind from there on. */
static void test_mutants(void **state) {
    (void)state;
    check_mutant("good", run_good, 6, 0);
    check_mutant("silent", run_silent, 0, 6);
    check_mutant("blame", run_wrong_blame, 0, 6);
    check_mutant("answer", run_other_answer, 0, 6);
#ifdef __SANITIZE_ADDRESS__
    check_mutant("leak", run_leak, 0, 8); /* the leak checker ends the process on top of them */
#else
    check_mutant("leak", run_leak, 0, 7); /* and what is alive at the end */
#endif
    check_mutant("crash", run_crash, 0, 6);
    check_mutant("hang", run_hang, 0, 6);
    check_mutant("no-retry", run_no_retry, 0, 6);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_sample),
                                       cmocka_unit_test(test_mutants)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
