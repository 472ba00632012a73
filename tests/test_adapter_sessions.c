/* test_adapter_sessions.c: what keeps the cached rows of one LoRA adapter from another; drafts and
 * streams with adapters; in which order handles are closed; memory; wrong calls. */
#include "adapter_files.h"
#include "session_tools.h"
#include "two_folders.h"

/* ---- Cached rows ----------------------------------------------------------------------------- */

static dsi_session *fresh(dsi_engine *e, dsi_adapter *a) {
    dsi_session_options o = hot_options();
    o.adapter = a;
    return start_session(e, &o);
}
/* The future of a session with this adapter that has computed the common prompt itself. */
static uint64_t own_future(dsi_engine *e, dsi_adapter *a) {
    dsi_session *s = fresh(e, a);
    append_made_up(s, 300, 9);
    uint64_t hash = future_hash(s);
    dsi_session_close(s);
    return hash;
}

/* Everywhere that cached rows go from one timeline to another, the adapter goes with them. */
static void test_cached_rows(void **state) {
    (void)state;
    char path[128];
    snprintf(path, sizeof path, "%s/a.session", other);
    const recipe one = {.rank = 4, .alpha = 8, .dtype = DSI_DTYPE_F32, .seed = 8};
    dsi_model *model = load_model(V3_FP8);
    dsi_engine_options eo = engine_of(512, 128, 6);
    dsi_engine *e = start_engine(model, &eo);
    dsi_adapter *a = open_adapter(e, folder, &one), *b = NULL, *same = NULL;
    dsi_adapter_options ao;
    dsi_adapter_options_init(&ao);
    ao.scale = 0.5f; /* the same files at half their strength: another adapter */
    OK(dsi_adapter_open(e, folder, &ao, &b), NULL);
    OK(dsi_adapter_open(e, folder, NULL, &same), NULL);
    const uint64_t with_a = own_future(e, a), with_b = own_future(e, b),
                   plain = own_future(e, NULL);
    assert_true(with_a != with_b && with_a != plain && with_b != plain);
    assert_true(own_future(e, same) == with_a);

    dsi_session *s = fresh(e, a), *copy = NULL, *back;
    append_made_up(s, 300, 9);
    step_all(s);
    OK(dsi_session_save(s, path), s);
    OK(dsi_session_fork(s, &copy), s); /* pages are shared: the copy has the adapter too */
    assert_true(copy->options.adapter == a);
    assert_true(future_hash(copy) == with_a);
    dsi_session_close(copy);
    OK(dsi_session_rewind(s, 0), s); /* nothing of what was computed stays */
    append_made_up(s, 300, 9);
    assert_true(future_hash(s) == with_a);
    dsi_session_close(s);

    back = fresh(e, same);
    OK(dsi_session_restore(back, path), back);
    assert_true(future_hash(back) == with_a);
    dsi_session_close(back);
    back = fresh(e, b);
    assert_int_equal(dsi_session_restore(back, path), DSI_E_MODEL);
    SAYS(dsi_last_error(back), path, "another model or adapter", b->name);
    dsi_session_close(back);
    back = fresh(e, NULL);
    assert_int_equal(dsi_session_restore(back, path), DSI_E_MODEL);
    SAYS(dsi_last_error(back), path, "another model or adapter", "no adapter");
    append_made_up(back, 300, 9);
    step_all(back);
    OK(dsi_session_save(back, path), back);
    dsi_session_close(back);
    back = fresh(e, a);
    assert_int_equal(dsi_session_restore(back, path), DSI_E_MODEL);
    SAYS(dsi_last_error(back), path, "another model or adapter", a->name);
    dsi_session_close(back);
    dsi_adapter_close(a), dsi_adapter_close(b), dsi_adapter_close(same);
    assert_pool_empty(e);
    dsi_engine_close(e);
    dsi_model_close(model);
}

/* ---- Drafts ---------------------------------------------------------------------------------- */

/* The block drafts without adapters; answers are the same token for token. */
static void test_drafts(void **state) {
    (void)state;
    const recipe r = {.rank = 4, .alpha = 8, .dtype = DSI_DTYPE_BF16, .seed = 9, .strength = 0.1f};
    dsi_model *model = load_model(TINY_GOV);
    int32_t answers[2][2][40];
    uint32_t n_drafted = 0;
    for (uint32_t drafts = 0; drafts < 2; drafts++) {
        dsi_engine_options o = engine_of(256, 256, 2);
        o.draft_tokens = 2 * drafts;
        dsi_engine *e = start_engine(model, &o);
        dsi_adapter *a = open_adapter(e, folder, &r);
        dsi_session *s[2] = {fresh(e, a), fresh(e, NULL)};
        for (int k = 0; k < 2; k++) append_made_up(s[k], 20, 4);
        for (int i = 0; i < 40; i++)
            for (int k = 0; k < 2; k++) OK(dsi_session_next(s[k], &answers[drafts][k][i]), s[k]);
        n_drafted += s[0]->n_drafted;
        for (int k = 0; k < 2; k++) dsi_session_close(s[k]);
        dsi_adapter_close(a);
        dsi_engine_close(e);
    }
    assert_memory_equal(answers[0], answers[1], sizeof answers[0]);
    assert_true(memcmp(answers[0][0], answers[0][1], sizeof answers[0][0]) != 0);
    assert_true(n_drafted > 0);
    dsi_model_close(model);
}

/* ---- Streams --------------------------------------------------------------------------------- */

enum { ANSWER_BYTES = 4096 };
static void drain(dsi_stream *s, char text[ANSWER_BYTES]) {
    dsi_event event = {.struct_size = sizeof event};
    size_t n = 0;
    do {
        OK(dsi_stream_next(s, -1, &event), s);
        if (event.kind != DSI_EVENT_TEXT) continue;
        assert_true(n + event.n_bytes < ANSWER_BYTES);
        memcpy(text + n, event.text, event.n_bytes);
        n += event.n_bytes;
    } while (event.kind != DSI_EVENT_DONE);
    assert_int_equal(event.status, DSI_OK);
    text[n] = 0;
}

/* Answers with two adapters and with none, computed together by the engine's thread. */
static void test_streams(void **state) {
    (void)state;
    static const char question[] = "小区门口的路灯坏了三天，请派人维修。";
    static char together[3][ANSWER_BYTES], alone[3][ANSWER_BYTES];
    const dsi_message m = {sizeof m, DSI_ROLE_USER, question, sizeof question - 1};
    const recipe
        one = {.rank = 4, .alpha = 8, .dtype = DSI_DTYPE_BF16, .seed = 13, .strength = 0.5f},
        two = {.rank = 9, .alpha = 9, .dtype = DSI_DTYPE_F16, .seed = 14, .strength = 0.5f};
    dsi_model *model = load_model(TINY_GOV);
    dsi_engine_options eo = engine_of(256, 64, 3);
    dsi_engine *e = start_engine(model, &eo);
    dsi_adapter *a[3] = {open_adapter(e, folder, &one), open_adapter(e, other, &two), NULL};
    for (int company = 0; company < 2; company++) {
        dsi_session *s[3];
        dsi_stream *streams[3];
        for (int i = 0; i < 3; i++) {
            dsi_session_options o;
            dsi_session_options_init(&o);
            o.adapter = a[i];
            o.max_tokens = 40;
            s[i] = start_session(e, &o);
            OK(dsi_stream_open(s[i], &m, 1, DSI_THINK_AUTO, &streams[i]), s[i]);
            if (!company) drain(streams[i], alone[i]);
        }
        for (int i = 0; i < 3; i++) {
            if (company) drain(streams[i], together[i]);
            dsi_stream_close(streams[i]);
            dsi_session_close(s[i]);
        }
    }
    for (int i = 0; i < 3; i++) {
        assert_string_equal(together[i], alone[i]);
        assert_true(strcmp(alone[i], alone[(i + 1) % 3]) != 0);
    }
    dsi_adapter_close(a[0]);
    dsi_adapter_close(a[1]);
    dsi_engine_close(e);
    dsi_model_close(model);
}

/* ---- Lifetimes and memory -------------------------------------------------------------------- */

static uint32_t n_users(const dsi_adapter *a) {
    dsi_adapter_info info = {.struct_size = sizeof info};
    OK(dsi_adapter_get_info(a, &info), a);
    return info.n_sessions;
}

static void test_lifetimes(void **state) {
    (void)state;
    const recipe r = {.rank = 8, .alpha = 8, .dtype = DSI_DTYPE_F32, .seed = 10};
    dsi_model *model = load_model(QWEN2);
    dsi_engine_options o = engine_of(512, 64, 4);
    dsi_engine *e = start_engine(model, &o), *elsewhere = start_engine(model, &o);
    const dsi_memory_plan before = e->plan;
    dsi_adapter *a = open_adapter(e, folder, &r);
    dsi_session *s = fresh(e, a), *copy = NULL, *wrong = NULL;
    assert_true(e->plan.n_bytes_weights > before.n_bytes_weights);
    assert_int_equal(n_users(a), 1);
    OK(dsi_session_fork(s, &copy), s);
    assert_int_equal(n_users(a), 2);
    dsi_session_options so;
    dsi_session_options_init(&so);
    so.adapter = a;
    assert_int_equal(dsi_session_open(elsewhere, &so, &wrong), DSI_E_ARG);
    SAYS(dsi_last_error(NULL), "another engine");
    so.struct_size = offsetof(dsi_session_options, adapter); /* of a program built before */
    assert_int_equal(dsi_session_open(elsewhere, &so, &wrong), DSI_OK);
    assert_null(wrong->options.adapter);
    dsi_session_close(wrong);
    dsi_session_close(copy);
    assert_int_equal(n_users(a), 1);
    dsi_adapter_close(a); /* the session goes on with it */
    append_made_up(s, 100, 1);
    step_all(s);
    dsi_session_close(s);
    assert_int_equal(e->plan.n_bytes_weights, before.n_bytes_weights);
    a = open_adapter(e, folder, NULL);
    s = fresh(e, a);
    dsi_engine_close(e); /* its memory goes with the last of these two */
    dsi_session_close(s);
    dsi_adapter_close(a);
    dsi_adapter_close(NULL);
    dsi_engine_close(elsewhere);
    dsi_model_close(model);
}

/* The first adapter enlarges the room for a step, and so does one of a larger rank: both count. */
static void test_memory(void **state) {
    (void)state;
    const recipe small = {.rank = 2, .alpha = 8, .dtype = DSI_DTYPE_F32, .seed = 11},
                 large = {.rank = 200, .alpha = 8, .dtype = DSI_DTYPE_F32, .seed = 12};
    dsi_model *model = load_model(V3_FP8);
    dsi_engine_options o = engine_of(512, 64, 4);
    dsi_memory_plan plan = {.struct_size = sizeof plan};
    dsi_adapter *a, *b = NULL;
    OK(dsi_plan(model, &o, &plan), NULL);
    o.max_memory = plan.n_bytes_total + (3u << 19);
    dsi_engine *e = start_engine(model, &o);
    a = open_adapter(e, folder, &small);
    const dsi_memory_plan with = e->plan;
    assert_true(with.n_bytes_scratch > plan.n_bytes_scratch);
    write_adapter(other, model, &large);
    assert_int_equal(dsi_adapter_open(e, other, NULL, &b), DSI_E_MEMORY_CAP);
    SAYS(dsi_last_error(NULL), "max_memory", "Remedies");
    assert_null(b);
    assert_memory_equal(&with, &e->plan, sizeof with); /* nothing has changed */
    const uint64_t alone = own_future(e, a);
    dsi_adapter_close(a);
    dsi_engine_close(e);
    o.max_memory = 0;
    e = start_engine(model, &o);
    a = open_adapter(e, folder, NULL);
    dsi_session *s = fresh(e, a);
    append_made_up(s, 300, 9);
    OK(dsi_engine_step(e, &s, 1, NULL), s);
    b = open_adapter(e, other, NULL); /* in the middle of a prompt */
    assert_true(future_hash(s) == alone);
    assert_true(own_future(e, b) != alone);
    dsi_session_close(s);
    dsi_adapter_close(a);
    dsi_adapter_close(b);
    dsi_engine_close(e);
    dsi_model_close(model);
}

static void test_wrong_calls(void **state) {
    (void)state;
    dsi_model *model = load_model(QWEN2);
    dsi_engine_options o = engine_of(64, 64, 1);
    dsi_engine *e = start_engine(model, &o);
    dsi_adapter *a = NULL;
    dsi_adapter_info info = {0};
    dsi_adapter_options ao;
    assert_int_equal(dsi_adapter_open(NULL, folder, NULL, &a), DSI_E_ARG);
    assert_int_equal(dsi_adapter_open(e, NULL, NULL, &a), DSI_E_ARG);
    assert_int_equal(dsi_adapter_open(e, folder, NULL, NULL), DSI_E_ARG);
    const float scales[] = {101, -101, NAN, INFINITY};
    for (int i = 0; i < 4; i++) {
        dsi_adapter_options_init(&ao);
        ao.scale = scales[i];
        assert_int_equal(dsi_adapter_open(e, folder, &ao, &a), DSI_E_ARG);
        SAYS(dsi_last_error(NULL), "scale is", "-100 to 100");
    }
    ao.struct_size = 1;
    assert_int_equal(dsi_adapter_open(e, folder, &ao, &a), DSI_E_ARG);
    assert_null(a);
    assert_int_equal(dsi_adapter_get_info(NULL, &info), DSI_E_ARG);
    const recipe r = {.rank = 1, .alpha = 1, .dtype = DSI_DTYPE_F32, .seed = 1};
    a = open_adapter(e, folder, &r);
    assert_int_equal(dsi_adapter_get_info(a, &info), DSI_E_ARG);
    SAYS(dsi_last_error(a), "struct_size");
    dsi_adapter_close(a);
    dsi_engine_close(e);
    dsi_model_close(model);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_cached_rows), cmocka_unit_test(test_drafts),
        cmocka_unit_test(test_streams),     cmocka_unit_test(test_lifetimes),
        cmocka_unit_test(test_memory),      cmocka_unit_test(test_wrong_calls),
    };
    return cmocka_run_group_tests_name("adapter_sessions", tests, make_folders, drop_folders);
}
