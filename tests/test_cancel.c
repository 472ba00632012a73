/* test_cancel.c: cancel, deadlines, and sessions that a stream owns: who is stopped, when, with
 * which status, and that nothing is half done afterwards. */
#include "session_tools.h"
#include <signal.h>
#include <sys/time.h>

typedef struct fixture {
    dsi_model *model;
    dsi_engine *engine;
} fixture;

static int open_fixture(void **state) {
    static fixture f;
    f.model = load_model(V3_FP8);
    dsi_engine_options eo = engine_of(512, 64, 4);
    f.engine = start_engine(f.model, &eo);
    *state = &f;
    return 0;
}
static int close_fixture(void **state) {
    fixture *f = *state;
    assert_pool_empty(f->engine);
    dsi_engine_close(f->engine);
    dsi_model_close(f->model);
    return 0;
}
static dsi_session *hot_session(const fixture *f) {
    dsi_session_options o = hot_options();
    return start_session(f->engine, &o);
}

/* ---- Cancel
 * ------------------------------------------------------------------------------------------ */

static void test_cancel_before_a_call(void **state) {
    fixture *f = *state;
    dsi_session *s = hot_session(f), *twin = hot_session(f);
    int32_t token = 7;
    dsi_session_cancel(NULL);
    append_made_up(s, 100, 1);
    append_made_up(twin, 100, 1);
    dsi_session_cancel(s);
    dsi_session_cancel(s); /* twice is once */
    assert_int_equal(dsi_session_next(s, &token), DSI_E_CANCELLED);
    SAYS(dsi_last_error(s), "cancelled", "100 queued");
    assert_int_equal(token, -1);
    assert_int_equal(dsi_session_n_tokens(s), 0);
    assert_int_equal(dsi_session_finish(s), DSI_FINISH_NONE);
    dsi_session_cancel(s);
    assert_int_equal(dsi_engine_step(f->engine, &s, 1, NULL), DSI_E_CANCELLED);
    SAYS(dsi_last_error(f->engine), "cancelled");
    assert_true(future_hash(s) == future_hash(twin));
    dsi_session_cancel(s); /* nothing is queued: next would only sample, and is cancelled as well */
    assert_int_equal(dsi_session_n_queued(s), 0);
    assert_int_equal(dsi_session_next(s, &token), DSI_E_CANCELLED);
    assert_true(future_hash(s) == future_hash(twin));
    dsi_session_close(s);
    dsi_session_close(twin);
}

/* A tap runs on the thread of the step, between two operators. */
typedef struct tap_plan {
    dsi_session *cancel[2];
    int32_t at_layer, last_layer;
    uint32_t n_layers_seen;
} tap_plan;
static void cancel_in_tap(void *user, const char *name, int32_t layer, const float *values,
                          size_t n_rows, size_t n_columns) {
    (void)values, (void)n_rows, (void)n_columns;
    tap_plan *plan = user;
    if (strcmp(name, "input_layernorm") != 0) return;
    plan->n_layers_seen++;
    plan->last_layer = layer;
    for (int i = 0; i < 2 && layer == plan->at_layer; i++)
        if (plan->cancel[i]) dsi_session_cancel(plan->cancel[i]);
}

static void test_cancel_between_layers(void **state) {
    fixture *f = *state;
    for (int32_t layer = 0; layer < 3; layer++) {
        dsi_session *s = hot_session(f), *twin = hot_session(f);
        append_made_up(s, 150, 1);
        append_made_up(twin, 150, 1);
        OK(dsi_engine_step(f->engine, &s, 1, NULL), s); /* 64 of 150 */
        tap_plan plan = {.cancel = {s}, .at_layer = layer};
        dsi_engine_set_tap(f->engine, cancel_in_tap, &plan);
        dsi_status st = dsi_engine_step(f->engine, &s, 1, NULL);
        dsi_engine_set_tap(f->engine, NULL, NULL);
        assert_int_equal(plan.last_layer, layer); /* no layer began after it */
        if (layer < 2) {
            assert_int_equal(st, DSI_E_CANCELLED);
            assert_int_equal(dsi_session_n_tokens(s), 64);
        } else { /* behind the last layer there is nothing to save: the next call is cancelled */
            assert_int_equal(st, DSI_OK);
            assert_int_equal(dsi_session_n_tokens(s), 128);
            assert_int_equal(dsi_engine_step(f->engine, &s, 1, NULL), DSI_E_CANCELLED);
        }
        assert_true(future_hash(s) == future_hash(twin));
        dsi_session_close(s);
        dsi_session_close(twin);
    }
}

/* One of two sessions of a step is cancelled: this step goes on for both, the next one for the
 * other alone, and the cancel is reported once, by a call that has nothing else to do. */
static void test_cancel_beside_others(void **state) {
    fixture *f = *state;
    dsi_session *a = hot_session(f), *b = hot_session(f), *twin = hot_session(f);
    dsi_session *both[] = {a, b};
    size_t n_rows;
    append_made_up(a, 70, 1);
    append_made_up(b, 70, 2);
    append_made_up(twin, 70, 1);
    OK(dsi_engine_step(f->engine, both, 2, &n_rows), f->engine); /* 64 rows of a */
    tap_plan plan = {.cancel = {a}, .at_layer = 0};
    dsi_engine_set_tap(f->engine, cancel_in_tap, &plan);
    OK(dsi_engine_step(f->engine, both, 2, &n_rows), f->engine);
    dsi_engine_set_tap(f->engine, NULL, NULL);
    assert_int_equal(plan.last_layer, 2);
    assert_int_equal(n_rows, 64); /* the last 6 of a, 58 of b */
    assert_int_equal(dsi_session_n_queued(a), 0);
    append_made_up(a, 5, 3);
    append_made_up(twin, 0, 3);
    step_all(twin);
    append_made_up(twin, 5, 3);
    OK(dsi_engine_step(f->engine, both, 2, &n_rows), f->engine);
    assert_int_equal(n_rows, 12);
    assert_int_equal(dsi_session_n_queued(a), 5);
    assert_int_equal(a->outcome, DSI_E_CANCELLED);
    assert_int_equal(b->outcome, DSI_OK);
    SAYS(dsi_last_error(a), "cancelled");
    assert_int_equal(dsi_engine_step(f->engine, both, 2, &n_rows), DSI_E_CANCELLED);
    assert_int_equal(n_rows, 0);
    OK(dsi_engine_step(f->engine, both, 2, &n_rows), f->engine);
    assert_int_equal(n_rows, 5);
    assert_true(future_hash(a) == future_hash(twin));
    dsi_session_close(a);
    dsi_session_close(b);
    dsi_session_close(twin);
}

static void test_cancel_all_of_a_step(void **state) {
    fixture *f = *state;
    dsi_session *a = hot_session(f), *b = hot_session(f), *both[] = {a, b};
    size_t n_rows = 9;
    append_made_up(a, 20, 1);
    append_made_up(b, 20, 2);
    tap_plan plan = {.cancel = {a, b}, .at_layer = 0};
    dsi_engine_set_tap(f->engine, cancel_in_tap, &plan);
    assert_int_equal(dsi_engine_step(f->engine, both, 2, &n_rows), DSI_E_CANCELLED);
    dsi_engine_set_tap(f->engine, NULL, NULL);
    assert_int_equal(plan.n_layers_seen, 1);
    assert_int_equal(n_rows, 0);
    OK(dsi_engine_step(f->engine, both, 2, &n_rows), f->engine); /* reported for both */
    assert_int_equal(n_rows, 40);
    dsi_session_close(a);
    dsi_session_close(b);
}

static dsi_session *signalled;
static volatile sig_atomic_t n_signals;
static void on_alarm(int number) {
    (void)number;
    n_signals++;
    dsi_session_cancel(signalled);
}
/* Computes prompts until `stop` is set or a call is cancelled. */
static dsi_status work_until_cancelled(dsi_session *s) {
    dsi_status st = DSI_OK;
    int32_t token;
    for (int i = 0; st == DSI_OK && i < 100000; i++) {
        OK(dsi_session_rewind(s, 0), s);
        append_made_up(s, 60, (uint32_t)i);
        st = dsi_session_next(s, &token);
    }
    return st;
}
static void test_cancel_from_a_signal_handler(void **state) {
    fixture *f = *state;
    signalled = hot_session(f);
    n_signals = 0;
    struct sigaction action = {.sa_handler = on_alarm}, before;
    sigaction(SIGALRM, &action, &before);
    struct itimerval timer = {.it_value = {.tv_usec = 20000}};
    for (int i = 0; i < 3; i++) {
        setitimer(ITIMER_REAL, &timer, NULL);
        assert_int_equal(work_until_cancelled(signalled), DSI_E_CANCELLED);
        assert_int_equal(n_signals, i + 1);
    }
    sigaction(SIGALRM, &before, NULL);
    dsi_session_close(signalled);
}

static void *cancel_soon(void *session) {
    struct timespec pause = {0, 10000000};
    nanosleep(&pause, NULL);
    dsi_session_cancel(session);
    return NULL;
}
static void test_cancel_from_another_thread(void **state) {
    fixture *f = *state;
    dsi_session *s = hot_session(f);
    for (int i = 0; i < 3; i++) {
        pthread_t thread;
        assert_int_equal(pthread_create(&thread, NULL, cancel_soon, s), 0);
        assert_int_equal(work_until_cancelled(s), DSI_E_CANCELLED);
        pthread_join(thread, NULL);
    }
    dsi_session_close(s);
}

/* ---- Deadlines
 * ------------------------------------------------------------------------------------------ */

static void test_deadline_arguments(void **state) {
    fixture *f = *state;
    dsi_session *s = hot_session(f);
    assert_int_equal(dsi_session_set_deadline(NULL, 1), DSI_E_ARG);
    assert_int_equal(dsi_session_set_deadline(s, -1), DSI_E_ARG);
    SAYS(dsi_last_error(s), "-1", "0 for none");
    assert_int_equal(dsi_session_set_deadline(s, NAN), DSI_E_ARG);
    OK(dsi_session_set_deadline(s, INFINITY), s);
    append_made_up(s, 10, 1);
    step_all(s);
    dsi_session_close(s);
}

static void test_deadline_stays_until_it_is_changed(void **state) {
    fixture *f = *state;
    dsi_session *s = hot_session(f), *b = hot_session(f), *both[] = {s, b};
    int32_t token;
    size_t n_rows;
    append_made_up(s, 100, 1);
    OK(dsi_session_set_deadline(s, 1e-9), s);
    assert_int_equal(dsi_session_next(s, &token), DSI_E_TIMEOUT);
    SAYS(dsi_last_error(s), "deadline", "100 queued", "dsi_session_set_deadline");
    assert_int_equal(dsi_engine_step(f->engine, &s, 1, NULL), DSI_E_TIMEOUT);
    append_made_up(b, 30, 2);
    OK(dsi_engine_step(f->engine, both, 2, &n_rows), f->engine); /* passed over */
    assert_int_equal(n_rows, 30);
    assert_int_equal(s->outcome, DSI_E_TIMEOUT);
    assert_int_equal(dsi_engine_step(f->engine, both, 2, &n_rows), DSI_E_TIMEOUT);
    /* a cancel beside a passed deadline is reported first, then the deadline again */
    dsi_session_cancel(s);
    assert_int_equal(dsi_session_next(s, &token), DSI_E_CANCELLED);
    assert_int_equal(dsi_session_next(s, &token), DSI_E_TIMEOUT);
    OK(dsi_session_set_deadline(s, 0), s);
    OK(dsi_session_next(s, &token), s);
    OK(dsi_session_set_deadline(s, 3600), s);
    OK(dsi_session_next(s, &token), s);
    dsi_session_close(s);
    dsi_session_close(b);
}

/* Between two steps: the rows of the steps before it are kept. */
static void test_deadline_between_steps(void **state) {
    fixture *f = *state;
    dsi_engine_options eo = engine_of(512, 1, 2);
    dsi_engine *e = start_engine(f->model, &eo);
    dsi_session_options o = hot_options();
    dsi_session *s = start_session(e, &o), *twin = start_session(e, &o);
    int32_t token;
    append_made_up(s, 400, 1);
    append_made_up(twin, 400, 1);
    OK(dsi_engine_step(e, &s, 1, NULL), s);
    OK(dsi_session_set_deadline(s, 0.01), s);
    assert_int_equal(dsi_session_next(s, &token), DSI_E_TIMEOUT);
    assert_true(dsi_session_n_tokens(s) >= 1 && dsi_session_n_tokens(s) < 400);
    print_message("10 ms: %zu of 400 rows\n", dsi_session_n_tokens(s));
    OK(dsi_session_set_deadline(s, 0), s);
    assert_true(future_hash(s) == future_hash(twin));
    dsi_session_close(s);
    dsi_session_close(twin);
    dsi_engine_close(e);
}

/* ---- Others are kept out
 * ------------------------------------------------------------------------------------------ */

static void test_a_stream_owns_its_session(void **state) {
    (void)state;
    dsi_model *model = load_model(TINY_GOV);
    dsi_engine_options eo = engine_of(1024, 64, 3);
    dsi_engine *e = start_engine(model, &eo);
    dsi_session_options o = hot_options(); /* never ends before the context is full */
    dsi_session *s = start_session(e, &o), *b = start_session(e, &o), *both[] = {b, s}, *copy = s;
    int32_t token = 1;
    const float *logits;
    const int32_t *tokens;
    float logprob;
    size_t n;
    dsi_message m = {sizeof m, DSI_ROLE_USER, "a", 1};
    dsi_stream *stream = NULL;
    append_made_up(b, 10, 1);
    OK(dsi_stream_open(s, &m, 1, DSI_THINK_AUTO, &stream), s);
    assert_int_equal(dsi_session_append(s, &token, 1), DSI_E_STATE);
    SAYS(dsi_last_error(s), "dsi_session_append", "stream");
    assert_int_equal(dsi_session_next(s, &token), DSI_E_STATE);
    assert_int_equal(dsi_session_sample(s, &token), DSI_E_STATE);
    assert_int_equal(dsi_engine_step(e, both, 2, NULL), DSI_E_STATE);
    assert_int_equal(dsi_session_n_queued(b), 10); /* nothing was computed */
    assert_int_equal(dsi_session_rewind(s, 0), DSI_E_STATE);
    assert_int_equal(dsi_session_fork(s, &copy), DSI_E_STATE);
    assert_int_equal(dsi_session_save(s, "/dev/null"), DSI_E_STATE);
    assert_int_equal(dsi_session_restore(s, "/dev/null"), DSI_E_STATE);
    assert_int_equal(dsi_session_set_deadline(s, 1), DSI_E_STATE);
    assert_int_equal(dsi_session_tokens(s, &tokens, &n), DSI_E_STATE);
    assert_int_equal(dsi_session_logits(s, &logits, &n, NULL), DSI_E_STATE);
    assert_int_equal(dsi_session_logprobs(s, &logprob, NULL, NULL), DSI_E_STATE);
    assert_int_equal(dsi_generate(s, "a", NULL, NULL), DSI_E_STATE);
    assert_int_equal(dsi_session_n_tokens(s), 0);
    dsi_session_cancel(s);
    dsi_event event = {.struct_size = sizeof event};
    while (event.kind != DSI_EVENT_DONE) OK(dsi_stream_next(stream, 10000, &event), stream);
    assert_int_equal(event.status, DSI_E_CANCELLED);
    dsi_stream_close(stream);
    OK(dsi_session_append(s, &token, 1), s);
    OK(dsi_session_next(s, &token), s); /* the cancel is over */
    dsi_session_close(s);
    dsi_session_close(b);
    dsi_engine_close(e);
    dsi_model_close(model);
}

/* A session that finds no page does not fail the one beside it. */
static void test_no_page_is_no_matter_of_others(void **state) {
    fixture *f = *state;
    dsi_engine_options eo = engine_of(128, 128, 1);
    eo.kv_tokens = 192; /* three pages */
    dsi_engine *e = start_engine(f->model, &eo);
    dsi_session_options o = hot_options();
    dsi_session *a = start_session(e, &o), *b = start_session(e, &o), *both[] = {a, b};
    size_t n_rows;
    append_made_up(a, 120, 1);
    step_all(a);
    OK(dsi_session_rewind(a, 119), a); /* one row is queued again */
    append_made_up(b, 100, 2);
    OK(dsi_engine_step(e, both, 2, &n_rows), e);
    assert_int_equal(n_rows, 1);
    assert_int_equal(b->outcome, DSI_E_CONTEXT);
    SAYS(dsi_last_error(b), "KV pool", "2 more pages");
    assert_int_equal(dsi_engine_step(e, both, 2, &n_rows), DSI_E_CONTEXT);
    SAYS(dsi_last_error(e), "KV pool");
    append_made_up(a, 2, 1);
    OK(dsi_engine_step(e, both, 2, &n_rows), e);
    assert_int_equal(n_rows, 2);
    assert_int_equal(b->outcome, DSI_E_CONTEXT);
    dsi_session_close(a);
    OK(dsi_engine_step(e, &b, 1, &n_rows), e);
    assert_int_equal(n_rows, 100);
    dsi_session_close(b);
    dsi_engine_close(e);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_cancel_before_a_call),
        cmocka_unit_test(test_cancel_between_layers),
        cmocka_unit_test(test_cancel_beside_others),
        cmocka_unit_test(test_cancel_all_of_a_step),
        cmocka_unit_test(test_cancel_from_a_signal_handler),
        cmocka_unit_test(test_cancel_from_another_thread),
        cmocka_unit_test(test_deadline_arguments),
        cmocka_unit_test(test_deadline_stays_until_it_is_changed),
        cmocka_unit_test(test_deadline_between_steps),
        cmocka_unit_test(test_a_stream_owns_its_session),
        cmocka_unit_test(test_no_page_is_no_matter_of_others),
    };
    return cmocka_run_group_tests_name("cancel", tests, open_fixture, close_fixture);
}
