/* test_stream_end.c: how streams end before their time: cancels, deadlines, failures of one, a KV
 * pool that is full, and every order of closing; the others never notice. */
#include "stream_tools.h"
#include <sys/wait.h>

/* After k events, for every k up to some tokens of the answer; a neighbour does not notice. */
static void test_cancel_at_every_stage(void **state) {
    (void)state;
    dsi_engine *e = new_engine(2, 512, 2048);
    dsi_session_options o = endless(), plain;
    dsi_session_options_init(&plain);
    plain.max_tokens = 20;
    heard want = {0};
    reference(3, &plain, 512, &want);
    for (int k = 0; k < 40; k++) {
        dsi_session *s = new_session(e, &o), *other = new_session(e, &plain);
        dsi_stream *stream = open_stream(s, 0), *neighbour = k % 4 ? NULL : open_stream(other, 3);
        heard h = {0}, n = {0};
        for (int i = 0; i < k; i++) hear_next(stream, &h);
        if (k % 2)
            dsi_stream_cancel(stream);
        else
            dsi_session_cancel(s);
        hear_all(stream, &h);
        assert_int_equal(h.status, DSI_E_CANCELLED);
        assert_int_equal(h.result.finish_reason, DSI_FINISH_CANCELLED);
        assert_non_null(strstr(dsi_last_error(stream), "cancelled"));
        dsi_stream_close(stream);
        if (neighbour) hear_all(neighbour, &n);
        if (neighbour) assert_same(&n, &want);
        dsi_stream_close(neighbour);
        /* the session stays usable */
        assert_int_equal(dsi_session_set_deadline(s, 1000), DSI_OK);
        stream = open_stream(s, 0);
        h = (heard){0};
        hear_next(stream, &h);
        assert_false(h.finished);
        dsi_stream_close(stream);
        dsi_session_close(other);
        dsi_session_close(s);
    }
    dsi_engine_close(e);
}

static dsi_stream *signalled;
static void on_signal(int number) {
    (void)number;
    dsi_stream_cancel(signalled);
}
static void test_cancel_in_a_signal_handler(void **state) {
    (void)state;
    dsi_engine *e = new_engine(2, 2048, 0);
    dsi_session_options o = endless();
    dsi_session *s = new_session(e, &o);
    struct sigaction action = {.sa_handler = on_signal}, before;
    assert_int_equal(sigaction(SIGUSR1, &action, &before), 0);
    signalled = open_stream(s, 0);
    heard h = {0};
    while (!h.n[0]) hear_next(signalled, &h);
    raise(SIGUSR1);
    hear_all(signalled, &h);
    assert_int_equal(h.status, DSI_E_CANCELLED);
    sigaction(SIGUSR1, &before, NULL);
    dsi_stream_close(signalled);
    dsi_session_close(s);
    dsi_engine_close(e);
}

static void test_cancel_while_paused_or_waiting(void **state) {
    (void)state;
    dsi_engine *e = new_engine(1, 2048, 3 * 2048);
    dsi_session_options o = endless();
    o.logprobs = 1;
    dsi_session *s[2] = {new_session(e, &o), new_session(e, &o)};
    dsi_stream *stream[2] = {open_stream(s[0], 0), open_stream(s[1], 1)};
    heard h[2] = {0};
    dsi_stream_cancel(stream[1]); /* it waits, or has just begun because the other paused */
    hear_all(stream[1], &h[1]);
    assert_int_equal(h[1].status, DSI_E_CANCELLED);
    for (bool paused = false; !paused; usleep(1000)) {
        pthread_mutex_lock(&stream[0]->runner->lock);
        paused = !dsi_queue_has_room(&stream[0]->queue);
        pthread_mutex_unlock(&stream[0]->runner->lock);
    }
    dsi_session_cancel(s[0]); /* the thread of the streams sleeps */
    hear_all(stream[0], &h[0]);
    assert_int_equal(h[0].status, DSI_E_CANCELLED);
    assert_true(h[0].n_tokens > 10 && h[0].n_tokens < 70);
    for (int i = 0; i < 2; i++) dsi_stream_close(stream[i]);
    for (int i = 0; i < 2; i++) dsi_session_close(s[i]);
    dsi_engine_close(e);
}

static void test_deadline_ends_one_only(void **state) {
    (void)state;
    dsi_engine *e = new_engine(2, 2048, 2 * 2048);
    dsi_session_options o = endless(), paused = endless();
    paused.logprobs = 1;
    dsi_session *s[3] = {new_session(e, &o), new_session(e, NULL), new_session(e, &paused)};
    assert_int_equal(dsi_session_set_deadline(s[0], 0.15), DSI_OK);
    assert_int_equal(dsi_session_set_deadline(s[2], 0.3), DSI_OK);
    dsi_stream *stream[3];
    heard h[3] = {0};
    double start = dsi_sys_seconds();
    for (int i = 0; i < 3; i++) stream[i] = open_stream(s[i], i);
    hear_all(stream[0], &h[0]);
    assert_int_equal(h[0].status, DSI_E_TIMEOUT);
    assert_int_equal(h[0].result.finish_reason, DSI_FINISH_DEADLINE);
    assert_non_null(strstr(dsi_last_error(stream[0]), "deadline"));
    hear_all(stream[1], &h[1]);
    assert_int_equal(h[1].status, DSI_OK);
    while (dsi_sys_seconds() - start < 0.6)
        usleep(10000); /* nobody reads: it pauses, then is late */
    hear_all(stream[2], &h[2]);
    assert_int_equal(h[2].status, DSI_E_TIMEOUT);
    for (int i = 0; i < 3; i++) dsi_stream_close(stream[i]);
    for (int i = 0; i < 3; i++) dsi_session_close(s[i]);
    dsi_engine_close(e);
}

/* A row of one session's cache becomes NaN: its logits do, nobody else's. */
static void test_failure_of_one(void **state) {
    (void)state;
    dsi_engine *e = new_engine(3, 512, 2048);
    dsi_session_options o = endless();
    dsi_session *s[3];
    dsi_stream *stream[3];
    heard h[3] = {0}, want[3] = {0};
    for (int i = 0; i < 3; i++) {
        s[i] = new_session(e, i == 1 ? &o : NULL);
        stream[i] = open_stream(s[i], i);
    }
    while (!h[1].n[0] && !h[1].n[1]) hear_next(stream[1], &h[1]);
    pthread_mutex_lock(&e->lock);
    uint64_t page = dsi_kv_largest_page(e);
    uint8_t *poison = malloc(page);
    memset(poison, 0xFF, page);
    dsi_tensor kv = dsi_kv_layer(e, 0);
    e->backend->write(e->stream, e->kv, kv.offset + (uint64_t)s[1]->pages[0] * page, poison, page);
    free(poison);
    pthread_mutex_unlock(&e->lock);
    hear_all(stream[1], &h[1]);
    assert_int_equal(h[1].status, DSI_E_NAN);
    assert_int_equal(h[1].result.finish_reason, DSI_FINISH_FAILED);
    assert_non_null(strstr(dsi_last_error(stream[1]), "verify"));
    dsi_session_options plain;
    dsi_session_options_init(&plain);
    for (int i = 0; i < 3; i += 2) {
        hear_all(stream[i], &h[i]);
        reference(i, &plain, 512, &want[i]);
        assert_same(&h[i], &want[i]);
    }
    for (int i = 0; i < 3; i++) dsi_stream_close(stream[i]);
    for (int i = 0; i < 3; i++) dsi_session_close(s[i]);
    dsi_engine_close(e);
}

/* ---- The KV pool --------------------------------------------------------------------------- */

/* Six answers in a pool for little more than one: streams wait, are put back, and give the same
 * answers as ever. */
static void test_pool_for_few(void **state) {
    (void)state;
    enum { N = 6 };
    dsi_session_options o = endless();
    o.max_tokens = 130;
    static heard want[N];
    for (int i = 0; i < N; i++) reference(i, &o, 256, &want[i]);
    n_put_back = 0;
    crowd c = open_crowd(new_engine(4, 256, 320), N, &o); /* five pages, each wants three */
    hear_crowd(&c);
    for (int i = 0; i < N; i++) assert_same(&c.heard[i], &want[i]);
    printf("%u times a stream was put back\n", n_put_back);
    assert_true(n_put_back > 0 && n_put_back < 100);
    /* sessions whose pages were taken can be asked again */
    heard again = {0};
    dsi_stream_close(c.streams[0]);
    c.streams[0] = open_stream(c.sessions[0], 0);
    hear_all(c.streams[0], &again);
    assert_same(&again, &want[0]);
    close_crowd(&c);
}

/* Sessions without a stream keep their pages: if they hold too many, a stream fails, and says so;
 * one that has its pages goes on. */
static void test_pool_held_by_sessions(void **state) {
    (void)state;
    dsi_engine *e = new_engine(4, 256, 256); /* four pages */
    dsi_session *holder = new_session(e, NULL), *s[2];
    int32_t tokens[128] = {0}, token;
    assert_int_equal(dsi_session_append(holder, tokens, 128), DSI_OK);
    assert_int_equal(dsi_session_next(holder, &token), DSI_OK);
    dsi_session_options o = endless();
    o.max_tokens = 160;
    heard h[2] = {0}, want = {0};
    dsi_stream *stream[2];
    for (int i = 0; i < 2; i++) {
        s[i] = new_session(e, &o);
        stream[i] = open_stream(s[i], 2 * i);
    }
    for (int i = 0; i < 2; i++) {
        hear_all(stream[i], &h[i]);
        assert_int_equal(h[i].status, DSI_E_CONTEXT); /* each needs three pages in the end */
        assert_int_equal(h[i].result.finish_reason, DSI_FINISH_FAILED);
        assert_non_null(strstr(dsi_last_error(stream[i]), "kv_tokens"));
        dsi_stream_close(stream[i]);
    }
    assert_true(h[0].n[0] > 0);
    dsi_session_close(holder);
    dsi_session_close(s[0]);
    stream[1] = open_stream(s[1], 2);
    h[1] = (heard){0};
    hear_all(stream[1], &h[1]);
    reference(2, &o, 256, &want);
    assert_same(&h[1], &want);
    dsi_stream_close(stream[1]);
    dsi_session_close(s[1]);
    dsi_engine_close(e);
}

/* ---- Closing ------------------------------------------------------------------------------- */

/* Streams, sessions and the engine closed in random order after a random number of events, with
 * the answers still running. */
static void test_close_in_any_order(void **state) {
    (void)state;
    dsi_session_options o = endless();
    for (int round = 0; round < 40; round++) {
        crowd c = open_crowd(new_engine(1 + random_below(4), 512, 1024), 5, &o);
        bool stream_open[5] = {1, 1, 1, 1, 1}, session_open[5] = {1, 1, 1, 1, 1};
        for (uint32_t k = random_below(60); k > 0; k--) {
            uint32_t i = random_below(5);
            dsi_event event = {.struct_size = sizeof event};
            if (dsi_stream_next(c.streams[i], 1, &event) == DSI_OK) add_event(&c.heard[i], &event);
        }
        for (int n_left = 10; n_left > 0;) {
            uint32_t i = random_below(5), what = random_below(3);
            if (what == 0 && stream_open[i]) {
                dsi_stream_close(c.streams[i]);
                stream_open[i] = false, n_left--;
            } else if (what == 1 && session_open[i]) {
                dsi_session_close(c.sessions[i]);
                session_open[i] = false, n_left--;
                if (!stream_open[i] || c.heard[i].finished) continue;
                hear_all(c.streams[i], &c.heard[i]); /* the rest, and DONE */
                assert_int_equal(c.heard[i].status, DSI_E_CANCELLED);
                assert_non_null(strstr(dsi_last_error(c.streams[i]), "session"));
            } else if (stream_open[i] && random_below(4) == 0) {
                dsi_stream_cancel(c.streams[i]);
            }
        }
        c.n = 0;
        close_crowd(&c);
    }
}

/* Engine first, and the model after it, with answers running; the handles that are left can only be
 * closed, in any order. */
static void test_close_the_engine_first(void **state) {
    (void)state;
    dsi_session_options o = endless();
    dsi_model *before = tiny;
    for (int k = 0; k < 12; k++) {
        assert_int_equal(dsi_model_open("examples/models/tiny-gov", NULL, &tiny), DSI_OK);
        crowd c = open_crowd(new_engine(2, 512, 1024), 4, &o);
        for (int i = 0; i < k; i++) hear_next(c.streams[0], &c.heard[0]);
        if (k % 3 == 1) dsi_session_close(c.sessions[0]);
        if (k % 3 == 2) dsi_stream_close(c.streams[0]);
        dsi_engine_close(c.engine);
        dsi_model_close(tiny);
        int32_t token;
        if (k % 3 != 1) assert_int_equal(dsi_session_next(c.sessions[0], &token), DSI_E_STATE);
        if (k % 3 != 1) assert_non_null(strstr(dsi_last_error(c.sessions[0]), "engine"));
        for (int i = 0; i < 4; i++) {
            if (i > 0 && k % 2) dsi_session_close(c.sessions[i]);
            if (i > 0 || k % 3 != 2) {
                hear_all(c.streams[i], &c.heard[i]);
                assert_int_equal(c.heard[i].status, DSI_E_CANCELLED);
                dsi_stream_cancel(c.streams[i]);
                dsi_stream_close(c.streams[i]);
            }
            if (i > 0 ? k % 2 == 0 : k % 3 != 1) dsi_session_close(c.sessions[i]);
        }
        free(c.heard);
    }
    tiny = before;
}

/* ---- fork() -------------------------------------------------------------------------------- */

/* In a child the thread of the streams is missing: calls are refused, a close frees the copies. */
static int child_is_refused(crowd *c) {
    dsi_event event = {.struct_size = sizeof event};
    alarm(60);
    if (dsi_stream_next(c->streams[0], -1, &event) != DSI_E_FORK) return 1;
    if (!strstr(dsi_last_error(c->streams[0]), "dsi_stream_next")) return 2;
    if (dsi_stream_fd(c->streams[0]) >= 0) return 3;
    dsi_message m = message_of(0);
    dsi_stream *stream;
    if (dsi_stream_open(c->sessions[0], &m, 1, 0, &stream) != DSI_E_FORK) return 4;
    dsi_stream_cancel(c->streams[0]);
    dsi_session_cancel(c->sessions[0]);
    dsi_stream_close(c->streams[0]);
    dsi_session_close(c->sessions[1]); /* before its stream */
    dsi_session_close(c->sessions[0]);
    dsi_engine_close(c->engine);
    dsi_stream_close(c->streams[1]);
    return 0;
}

static void test_child_of_fork(void **state) {
    (void)state;
    for (int round = 0; round < 8; round++) {
        crowd c = open_crowd(new_engine(2, 512, 1024), 2, NULL);
        for (int k = 0; k < 3 * round; k++) hear_next(c.streams[0], &c.heard[0]);
        int status = -1;
        pid_t child = fork(); /* at some point of a step */
        if (child == 0) _exit(child_is_refused(&c));
        assert_true(child > 0);
        hear_crowd(&c); /* the parent does not notice */
        for (int i = 0; i < 2; i++) assert_same(&c.heard[i], reference_of(i));
        assert_int_equal(waitpid(child, &status, 0), child);
        if (status) fail_msg("the child ended with %d, signal %d", status >> 8, status & 127);
        close_crowd(&c);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_cancel_at_every_stage),
        cmocka_unit_test(test_cancel_in_a_signal_handler),
        cmocka_unit_test(test_cancel_while_paused_or_waiting),
        cmocka_unit_test(test_deadline_ends_one_only),
        cmocka_unit_test(test_failure_of_one),
        cmocka_unit_test(test_pool_for_few),
        cmocka_unit_test(test_pool_held_by_sessions),
        cmocka_unit_test(test_close_in_any_order),
        cmocka_unit_test(test_close_the_engine_first),
        cmocka_unit_test(test_child_of_fork),
    };
    return cmocka_run_group_tests_name("stream_end", tests, open_tiny, close_tiny);
}
