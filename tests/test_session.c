/* test_session.c: rewind and fork. A timeline that was cut or doubled must go on exactly as one
 * that never was: hashes of logits, sampled tokens, pages. */
#include "session_tools.h"

/* A life of a session: two appends around six sampled tokens, computed as they come. The cuts lie
 * at the edges of pages (64), blocks (256), appends and chunks. */
enum { N_PROMPT = 300, N_SAMPLED = 6, N_SECOND = 90, N_ALL = N_PROMPT + N_SAMPLED + N_SECOND };
static const uint32_t CUTS[] = {0,   1,   2,   63,  64,  65,  99,  100, 101,
                                127, 128, 129, 255, 256, 257, 260, 299, 300,
                                301, 303, 305, 306, 307, 320, 384, 395, 396};
enum { N_CUTS = sizeof CUTS / sizeof CUTS[0] };

/* The same life, but the timeline never grows beyond n: appends and steps cut at n. */
static void live(dsi_session *s, uint32_t n) {
    append_made_up(s, n < N_PROMPT ? n : N_PROMPT, 5);
    step_all(s);
    int32_t token;
    for (int i = 0; i < N_SAMPLED && s->n_total < n; i++) OK(dsi_session_next(s, &token), s);
    if (s->n_total < n) append_made_up(s, n - s->n_total, 6);
    step_all(s);
}

static void check_cut(dsi_engine *e, const dsi_session_options *o, uint32_t n) {
    dsi_session *cut = start_session(e, o), *fresh = start_session(e, o);
    live(cut, N_ALL);
    OK(dsi_session_rewind(cut, n), cut);
    assert_int_equal(cut->n_total, n);
    assert_true(dsi_session_n_queued(cut) <= 255);
    assert_int_equal(cut->n_pages, dsi_ceil_div(cut->n_tokens, DSI_PAGE_ROWS));
    live(fresh, n);
    assert_memory_equal(cut->tokens, fresh->tokens, n * sizeof *cut->tokens);
    assert_int_equal(cut->n_sampled, fresh->n_sampled);
    uint64_t want = future_hash(fresh), got = future_hash(cut);
    if (got != want) fail_msg("cut at %u: the future differs", n);
    assert_int_equal(cut->n_sampled, fresh->n_sampled);
    dsi_session_close(cut);
    dsi_session_close(fresh);
    assert_pool_empty(e);
}

static void check_rewind(const char *folder, uint32_t chunk, uint32_t all_logits, uint32_t every) {
    dsi_model *model = load_model(folder);
    dsi_engine_options eo = engine_of(512, chunk, 2);
    dsi_engine *e = start_engine(model, &eo);
    dsi_session_options o = hot_options();
    o.all_logits = all_logits;
    for (uint32_t i = 0; i < N_CUTS; i += every) check_cut(e, &o, CUTS[i]);
    dsi_engine_close(e);
    dsi_model_close(model);
}
static void test_rewind_v3(void **state) {
    (void)state;
    const uint32_t chunks[] = {100, 256, 64, 512};
    for (uint32_t i = 0; i < (SLOW_BUILD ? 1 : 4); i++)
        check_rewind(V3_FP8, chunks[i], i % 2, SLOW_BUILD ? 7 : i ? 2 : 1);
}
static void test_rewind_qwen2(void **state) {
    (void)state;
    check_rewind(QWEN2, 100, 0, SLOW_BUILD ? 9 : 1);
}
static void test_rewind_tiny_gov(void **state) {
    (void)state;
    check_rewind(TINY_GOV, 100, 1, SLOW_BUILD ? 26 : 4);
}

/* A cut in the middle of an expanded block, and more appended before any step: the form of the
 * block is decided anew, with what stands in it now. */
static void test_rewind_then_append(void **state) {
    (void)state;
    dsi_model *model = load_model(V3_FP8);
    dsi_engine_options eo = engine_of(512, 100, 2);
    dsi_engine *e = start_engine(model, &eo);
    dsi_session_options o = hot_options();
    const uint32_t cuts[] = {1, 63, 64, 200, 255};
    for (uint32_t i = 0; i < 5; i++) {
        dsi_session *cut = start_session(e, &o), *fresh = start_session(e, &o);
        live(cut, N_ALL);
        OK(dsi_session_rewind(cut, cuts[i]), cut);
        assert_int_equal(dsi_session_n_queued(cut), cuts[i]);
        append_made_up(cut, 400 - cuts[i], 5);
        append_made_up(fresh, 400, 5);
        assert_true(future_hash(cut) == future_hash(fresh));
        assert_int_equal(cut->expanded[0], 1);
        dsi_session_close(cut);
        dsi_session_close(fresh);
    }
    dsi_engine_close(e);
    dsi_model_close(model);
}

/* Rows that are queued or half computed when the cut comes. */
static void test_rewind_while_queued(void **state) {
    (void)state;
    dsi_model *model = load_model(V3_FP8);
    dsi_engine_options eo = engine_of(512, 100, 2);
    dsi_engine *e = start_engine(model, &eo);
    dsi_session_options o = hot_options();
    const uint32_t cuts[] = {0, 50, 100, 101, 255, 256, 300, 400};
    for (uint32_t steps = 0; steps < 4; steps++)
        for (uint32_t i = SLOW_BUILD ? 3 + steps : 0; i < 8; i += SLOW_BUILD ? 4 : 1) {
            dsi_session *cut = start_session(e, &o), *fresh = start_session(e, &o);
            append_made_up(cut, 400, 5);
            for (uint32_t k = 0; k < steps; k++) OK(dsi_engine_step(e, &cut, 1, NULL), e);
            OK(dsi_session_rewind(cut, cuts[i]), cut);
            append_made_up(fresh, cuts[i], 5);
            assert_true(future_hash(cut) == future_hash(fresh));
            dsi_session_close(cut);
            dsi_session_close(fresh);
        }
    assert_pool_empty(e);
    dsi_engine_close(e);
    dsi_model_close(model);
}

/* "Answer again": back to the end of the prompt, any number of times, by next alone. */
static void test_rewind_and_answer_again(void **state) {
    (void)state;
    dsi_model *model = load_model(TINY_GOV);
    dsi_engine_options eo = engine_of(512, 256, 1);
    dsi_engine *e = start_engine(model, &eo);
    dsi_session_options o = hot_options();
    o.max_tokens = 8;
    dsi_session *s = start_session(e, &o);
    int32_t first[9], again[9];
    append_made_up(s, 70, 3);
    for (int i = 0; i < 9; i++) OK(dsi_session_next(s, &first[i]), s);
    assert_int_equal(first[8], -1);
    assert_int_equal(dsi_session_finish(s), DSI_FINISH_LENGTH);
    for (int round = 0; round < 3; round++) {
        OK(dsi_session_rewind(s, 70), s);
        assert_int_equal(dsi_session_finish(s), DSI_FINISH_NONE);
        for (int i = 0; i < 9; i++) OK(dsi_session_next(s, &again[i]), s);
        assert_memory_equal(first, again, sizeof first);
    }
    /* the next turn has max_tokens of its own, and appending ends "finished" */
    append_made_up(s, 5, 4);
    assert_int_equal(dsi_session_finish(s), DSI_FINISH_NONE);
    for (int i = 0; i < 9; i++) OK(dsi_session_next(s, &again[i]), s);
    assert_true(again[7] >= 0 && again[8] == -1);
    assert_int_equal(s->n_sampled, 16);
    dsi_session_close(s);
    dsi_engine_close(e);
    dsi_model_close(model);
}

static void test_rewind_refuses(void **state) {
    (void)state;
    dsi_model *model = load_model(QWEN2);
    dsi_engine_options eo = engine_of(128, 64, 1);
    dsi_engine *e = start_engine(model, &eo);
    dsi_session *s = start_session(e, NULL);
    assert_int_equal(dsi_session_rewind(NULL, 0), DSI_E_ARG);
    OK(dsi_session_rewind(s, 0), s);
    assert_int_equal(dsi_session_rewind(s, 1), DSI_E_ARG);
    append_made_up(s, 7, 1);
    assert_int_equal(dsi_session_rewind(s, 8), DSI_E_ARG);
    SAYS(dsi_last_error(s), "dsi_session_rewind", "8 tokens", "7");
    assert_int_equal(dsi_session_rewind(s, SIZE_MAX), DSI_E_ARG);
    const int32_t *tokens;
    size_t n;
    OK(dsi_session_tokens(s, &tokens, &n), s);
    assert_int_equal(n, 7);
    assert_int_equal(tokens[6], made_up_token(6, 1, 512));
    dsi_session_close(s);
    dsi_engine_close(e);
    dsi_model_close(model);
}

/* ---- Fork
 * ------------------------------------------------------------------------------------------ */

static const uint32_t FORKS[] = {0,   1,   63,  64,  65,  127, 128, 255,
                                 256, 257, 300, 303, 306, 350, 396};
enum { N_FORKS = sizeof FORKS / sizeof FORKS[0] };

/* Parent and child go their own ways; neither may see a trace of the other. */
static void check_fork(dsi_engine *e, const dsi_session_options *o, uint32_t n, bool parent_first) {
    dsi_session *parent = start_session(e, o), *child = NULL, *twin = start_session(e, o);
    live(parent, n);
    uint32_t before = e->n_free_pages;
    OK(dsi_session_fork(parent, &child), parent);
    assert_int_equal(before - e->n_free_pages, n % DSI_PAGE_ROWS != 0);
    assert_int_equal(child->n_sampled, parent->n_sampled);
    append_made_up(child, 10, 77); /* diverge */
    step_all(child);
    live(twin, n);
    uint64_t want = future_hash(twin);
    OK(dsi_session_rewind(twin, n), twin);
    append_made_up(twin, 10, 77);
    uint64_t want_child = future_hash(twin);
    if (parent_first) {
        assert_true(future_hash(parent) == want);
        dsi_session_close(parent);
    }
    if (future_hash(child) != want_child) fail_msg("fork at %u: the child differs", n);
    dsi_session_close(child);
    if (!parent_first) {
        if (future_hash(parent) != want) fail_msg("fork at %u: the parent differs", n);
        dsi_session_close(parent);
    }
    dsi_session_close(twin);
    assert_pool_empty(e);
}

static void check_forks(const char *folder, uint32_t every) {
    dsi_model *model = load_model(folder);
    dsi_engine_options eo = engine_of(512, 100, 3);
    dsi_engine *e = start_engine(model, &eo);
    dsi_session_options o = hot_options();
    for (uint32_t i = 0; i < N_FORKS; i += every) check_fork(e, &o, FORKS[i], i % 2);
    dsi_engine_close(e);
    dsi_model_close(model);
}
static void test_fork_v3(void **state) {
    (void)state;
    check_forks(V3_FP8, SLOW_BUILD ? 5 : 1);
}
static void test_fork_qwen2(void **state) {
    (void)state;
    check_forks(QWEN2, SLOW_BUILD ? 5 : 1);
}
static void test_fork_tiny_gov(void **state) {
    (void)state;
    check_forks(TINY_GOV, SLOW_BUILD ? 7 : 3);
}

/* A fork that is cut back into pages it shares must copy them before it writes. */
static void test_fork_then_rewind_into_shared_pages(void **state) {
    (void)state;
    dsi_model *model = load_model(V3_FP8);
    dsi_engine_options eo = engine_of(512, 100, 3);
    dsi_engine *e = start_engine(model, &eo);
    dsi_session_options o = hot_options();
    const uint32_t cuts[] = {0, 1, 64, 100, 200, 256, 260, 300};
    for (uint32_t i = 0; i < 8; i++) {
        dsi_session *parent = start_session(e, &o), *child = NULL, *twin = start_session(e, &o);
        live(parent, 330);
        OK(dsi_session_fork(parent, &child), parent);
        uint32_t *holders = e->page_holders;
        assert_int_equal(holders[parent->pages[0]], 2);
        dsi_session *cutter = i % 2 ? parent : child, *other = i % 2 ? child : parent;
        OK(dsi_session_rewind(cutter, cuts[i]), cutter);
        append_made_up(cutter, 120, 31);
        step_all(cutter);
        live(twin, 330);
        assert_true(future_hash(other) == future_hash(twin));
        OK(dsi_session_rewind(twin, cuts[i]), twin);
        append_made_up(twin, 120, 31);
        assert_true(future_hash(cutter) == future_hash(twin));
        for (uint32_t p = 0; p < other->n_pages; p++)
            for (uint32_t q = 0; q < cutter->n_pages; q++)
                if (other->pages[p] == cutter->pages[q])
                    assert_true(p == q && holders[other->pages[p]] == 2 &&
                                (p + 1) * DSI_PAGE_ROWS <= cuts[i]);
        dsi_session_close(parent);
        dsi_session_close(child);
        dsi_session_close(twin);
        assert_pool_empty(e);
    }
    dsi_engine_close(e);
    dsi_model_close(model);
}

/* The n best first tokens, each answered in a fork of the prompt. */
static void test_n_best(void **state) {
    (void)state;
    dsi_model *model = load_model(TINY_GOV);
    dsi_engine_options eo = engine_of(512, 256, 6);
    dsi_engine *e = start_engine(model, &eo);
    dsi_session_options o = hot_options();
    o.logprobs = 1, o.top_logprobs = 4;
    dsi_session *prompt = start_session(e, &o), *best[4];
    append_made_up(prompt, 150, 8);
    int32_t token, first[4];
    OK(dsi_session_next(prompt, &token), prompt);
    const dsi_token_logprob *top;
    size_t n_top;
    float logprob;
    OK(dsi_session_logprobs(prompt, &logprob, &top, &n_top), prompt);
    assert_int_equal(n_top, 4);
    for (int i = 0; i < 4; i++) first[i] = top[i].token;
    OK(dsi_session_rewind(prompt, 150), prompt);
    assert_int_equal(dsi_session_n_queued(prompt), 0); /* the logits were still there */
    for (int i = 0; i < 4; i++) {
        OK(dsi_session_fork(prompt, &best[i]), prompt);
        OK(dsi_session_append(best[i], &first[i], 1), best[i]);
    }
    size_t n_rows;
    OK(dsi_engine_step(e, best, 4, &n_rows), e);
    assert_int_equal(n_rows, 4);
    for (int i = 0; i < 4; i++) {
        dsi_session *fresh = start_session(e, &o);
        append_made_up(fresh, 150, 8);
        step_all(fresh);
        OK(dsi_session_append(fresh, &first[i], 1), fresh);
        assert_true(future_hash(best[i]) == future_hash(fresh));
        dsi_session_close(fresh);
        dsi_session_close(best[i]);
    }
    dsi_session_close(prompt);
    assert_pool_empty(e);
    dsi_engine_close(e);
    dsi_model_close(model);
}

/* Forks of a session that is finished, queued, out of pages, or empty. */
static void test_fork_states(void **state) {
    (void)state;
    dsi_model *model = load_model(QWEN2);
    dsi_engine_options eo = engine_of(128, 64, 1);
    eo.kv_tokens = 256; /* four pages */
    dsi_engine *e = start_engine(model, &eo);
    dsi_session_options o = hot_options();
    o.max_tokens = 2;
    dsi_session *s = start_session(e, &o), *c = NULL, *d = NULL;
    int32_t token;
    assert_int_equal(dsi_session_fork(NULL, &c), DSI_E_ARG);
    assert_int_equal(dsi_session_fork(s, NULL), DSI_E_ARG);
    append_made_up(s, 100, 1);
    OK(dsi_session_fork(s, &c), s); /* all is queued: no page to copy */
    assert_int_equal(dsi_session_n_queued(c), 100);
    assert_true(last_hash(s) == last_hash(c));
    dsi_session_close(c);
    for (int i = 0; i < 3; i++) OK(dsi_session_next(s, &token), s);
    assert_int_equal(token, -1);
    OK(dsi_session_fork(s, &c), s);
    assert_int_equal(dsi_session_finish(c), DSI_FINISH_LENGTH);
    OK(dsi_session_next(c, &token), c);
    assert_int_equal(token, -1);
    OK(dsi_session_fork(s, &d), s); /* page 0 is shared by three; three partial ones: all four */
    assert_int_equal(e->n_free_pages, 0);
    dsi_session *none = NULL;
    assert_int_equal(dsi_session_fork(s, &none), DSI_E_CONTEXT);
    SAYS(dsi_last_error(s), "KV pool", "kv_tokens");
    assert_null(none);
    assert_int_equal(e->page_holders[s->pages[0]], 3);
    dsi_session_close(d);
    OK(dsi_session_fork(s, &none), s);
    dsi_session_close(none);
    dsi_session_close(s);
    dsi_session_close(c);
    assert_pool_empty(e);
    dsi_engine_close(e);
    dsi_model_close(model);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_rewind_v3),
        cmocka_unit_test(test_rewind_qwen2),
        cmocka_unit_test(test_rewind_tiny_gov),
        cmocka_unit_test(test_rewind_then_append),
        cmocka_unit_test(test_rewind_while_queued),
        cmocka_unit_test(test_rewind_and_answer_again),
        cmocka_unit_test(test_rewind_refuses),
        cmocka_unit_test(test_fork_v3),
        cmocka_unit_test(test_fork_qwen2),
        cmocka_unit_test(test_fork_tiny_gov),
        cmocka_unit_test(test_fork_then_rewind_into_shared_pages),
        cmocka_unit_test(test_n_best),
        cmocka_unit_test(test_fork_states),
    };
    return cmocka_run_group_tests_name("session", tests, NULL, NULL);
}
