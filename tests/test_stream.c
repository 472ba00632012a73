/* test_stream.c: streams: their events, the descriptor to poll, timeouts, slow readers, many at
 * once with the answers of dsi_generate_chat, conversations, and many threads. */
#include "../lib/base/fault.h"
#include "stream_tools.h"

/* ---- The queue ----------------------------------------------------------------------------- */

/* All that goes in comes out, in order and whole, however full the queue is in between. */
static void test_queue_loses_nothing(void **state) {
    (void)state;
    dsi_event_queue q;
    assert_int_equal(dsi_queue_init(&q, 700, 3, NULL), DSI_OK);
    uint32_t n_in = 0, n_out = 0, token_in = 0, token_out = 0, n_full = 0; /* bytes, tokens */
    char text[3000];
    for (int round = 0; round < 200000; round++) {
        bool in = random_below(100) < (round / 1000 % 2 ? 60 : 40);
        if (in && !dsi_queue_has_room(&q)) {
            n_full++;
        } else if (in) {
            dsi_token_logprob top[3];
            uint32_t n = 1 + random_below(round % 7 ? 12 : 2100), token = random_below(4) == 0;
            if (token && n > 700) n = 700;
            for (uint32_t i = 0; i < n; i++) text[i] = (char)('a' + (n_in + i) % 23);
            for (int i = 0; i < 3; i++) top[i] = (dsi_token_logprob){(int32_t)token_in + i, -1.5f};
            dsi_event e = {.kind = token ? DSI_EVENT_TOKEN : DSI_EVENT_TEXT, .text = text};
            e.n_bytes = n, e.part = random_below(2), e.top = top, e.n_top = token ? 3 : 0;
            e.token = token ? (int32_t)token_in++ : -1;
            dsi_queue_put(&q, &e);
            n_in += n;
        } else if (dsi_queue_n_waiting(&q)) {
            dsi_event e;
            dsi_queue_take(&q, &e);
            for (uint32_t i = 0; i < e.n_bytes; i++, n_out++)
                if (e.text[i] != (char)('a' + n_out % 23)) fail_msg("byte %u is wrong", n_out);
            if (e.kind != DSI_EVENT_TOKEN) continue;
            assert_int_equal(e.token, token_out);
            assert_int_equal(e.n_top, 3);
            for (int i = 0; i < 3; i++) assert_int_equal(e.top[i].token, (int)token_out + i);
            token_out++;
        }
    }
    printf("%u bytes, %u tokens, full %u times\n", n_in, token_in, n_full);
    assert_true(n_full > 1000);
    dsi_event e = {.kind = DSI_EVENT_DONE, .status = DSI_E_NAN}, got = {0};
    dsi_queue_put(&q, &e);
    while (got.kind != DSI_EVENT_DONE) {
        dsi_queue_take(&q, &got);
        n_out += (uint32_t)got.n_bytes;
    }
    assert_int_equal(n_out, n_in);
    assert_int_equal(got.status, DSI_E_NAN);
    assert_int_equal(dsi_queue_n_waiting(&q), 0);
    dsi_queue_free(&q);
}

/* ---- Events -------------------------------------------------------------------------------- */

static void test_events_of_one_answer(void **state) {
    (void)state;
    dsi_engine *e = new_engine(4, 512, 0);
    dsi_session_options o = options_of(1);
    dsi_session *s = new_session(e, &o);
    dsi_stream *stream = open_stream(s, 1);
    heard h = {0};
    assert_true(dsi_stream_fd(stream) >= 0);
    hear_all(stream, &h);
    assert_same(&h, reference_of(1));
    assert_true(h.n[DSI_PART_REASONING] > 0 && h.n[DSI_PART_ANSWER] > 0);
    assert_true(h.n_progress >= 1 && h.total == h.result.n_tokens_in);
    const dsi_generate_result *r = &h.result;
    assert_true(r->prefill_seconds > 0 && r->first_token_seconds >= r->prefill_seconds);
    assert_true(r->decode_seconds > 0);
    dsi_event event = {.struct_size = sizeof event};
    assert_false(is_readable(stream));
    assert_int_equal(dsi_stream_next(stream, -1, &event), DSI_E_STATE);
    assert_non_null(strstr(dsi_last_error(stream), "DONE"));
    dsi_stream_cancel(stream); /* too late: nothing happens */
    dsi_stream_close(stream);
    assert_int_equal(dsi_session_finish(s), DSI_FINISH_STOP);
    dsi_session_close(s);
    dsi_engine_close(e);
}

static void test_wrong_arguments(void **state) {
    (void)state;
    dsi_engine *e = new_engine(4, 128, 0);
    dsi_session *s = new_session(e, NULL);
    dsi_message m = message_of(0), wrong = m;
    dsi_event event = {0};
    dsi_stream *stream = (dsi_stream *)&event;
    assert_int_equal(dsi_stream_open(NULL, &m, 1, 0, &stream), DSI_E_ARG);
    assert_int_equal(dsi_stream_open(s, &m, 1, 0, NULL), DSI_E_ARG);
    assert_int_equal(dsi_stream_open(s, &m, 0, 0, &stream), DSI_E_ARG);
    assert_null(stream);
    wrong.role = DSI_ROLE_ASSISTANT;
    assert_int_equal(dsi_stream_open(s, &wrong, 1, 0, &stream), DSI_E_ARG);
    assert_non_null(strstr(dsi_last_error(s), "user"));
    char much[2048];
    memset(much, 'x', sizeof much);
    for (int i = 0; i < 2048; i += 2) much[i] = '7';
    wrong = (dsi_message){sizeof wrong, DSI_ROLE_USER, much, sizeof much};
    assert_int_equal(dsi_stream_open(s, &wrong, 1, 0, &stream), DSI_E_CONTEXT);
    assert_non_null(strstr(dsi_last_error(s), "max_context is 128"));
    assert_int_equal(dsi_stream_next(NULL, 0, &event), DSI_E_ARG);
    assert_int_equal(dsi_stream_fd(NULL), -1);
    dsi_stream_cancel(NULL);
    dsi_stream_close(NULL);
    stream = open_stream(s, 0);
    assert_int_equal(dsi_stream_next(stream, 0, NULL), DSI_E_ARG);
    assert_int_equal(dsi_stream_next(stream, 0, &event), DSI_E_ARG); /* struct_size is 0 */
    assert_non_null(strstr(dsi_last_error(stream), "struct_size"));
    /* the session belongs to the stream (llama.cpp #27456: a second request on a busy slot) */
    const int32_t token = 1, *tokens;
    int32_t sampled;
    size_t n;
    assert_int_equal(dsi_session_append(s, &token, 1), DSI_E_STATE);
    assert_int_equal(dsi_session_next(s, &sampled), DSI_E_STATE);
    assert_int_equal(dsi_session_sample(s, &sampled), DSI_E_STATE);
    assert_int_equal(dsi_session_rewind(s, 0), DSI_E_STATE);
    assert_int_equal(dsi_session_tokens(s, &tokens, &n), DSI_E_STATE);
    assert_int_equal(dsi_engine_step(e, &s, 1, NULL), DSI_E_STATE);
    assert_int_equal(dsi_generate_chat(s, &m, 1, 0, NULL, NULL, NULL), DSI_E_STATE);
    dsi_stream *second;
    assert_int_equal(dsi_stream_open(s, &m, 1, 0, &second), DSI_E_STATE);
    assert_non_null(strstr(dsi_last_error(s), "close the stream first"));
    heard h = {0};
    hear_all(stream, &h);
    assert_int_equal(h.status, DSI_OK);
    dsi_stream_close(stream);
    assert_int_equal(dsi_session_rewind(s, 0), DSI_OK);
    dsi_session_close(s);
    dsi_engine_close(e);
}

/* A short event struct of an older program. */
static void test_short_event_struct(void **state) {
    (void)state;
    dsi_engine *e = new_engine(1, 512, 0);
    dsi_session *s = new_session(e, NULL);
    dsi_stream *stream = open_stream(s, 0);
    union {
        dsi_event event;
        uint8_t bytes[sizeof(dsi_event)];
    } u;
    size_t known = offsetof(dsi_event, done);
    do {
        memset(u.bytes, 0xAB, sizeof u.bytes);
        u.event.struct_size = (uint32_t)known;
        assert_int_equal(dsi_stream_next(stream, 30000, &u.event), DSI_OK);
        assert_int_equal(u.event.struct_size, known);
        for (size_t i = known; i < sizeof u.bytes; i++) assert_int_equal(u.bytes[i], 0xAB);
    } while (u.event.kind != DSI_EVENT_DONE);
    dsi_stream_close(stream);
    dsi_session_close(s);
    dsi_engine_close(e);
}

/* Readable: an event is there. Not readable: the next look waits for one. */
static void test_descriptor(void **state) {
    (void)state;
    dsi_engine *e = new_engine(4, 512, 0);
    dsi_session *s = new_session(e, NULL);
    dsi_stream *stream = open_stream(s, 1);
    heard h = {0};
    uint32_t n_early = 0;
    while (!h.finished) {
        struct pollfd p = {.fd = dsi_stream_fd(stream), .events = POLLIN};
        assert_int_equal(poll(&p, 1, 30000), 1);
        dsi_event event = {.struct_size = sizeof event};
        assert_int_equal(dsi_stream_next(stream, 0, &event), DSI_OK); /* never in vain */
        add_event(&h, &event);
        if (h.finished) break;
        /* the lock keeps the runner from adding an event between the two looks */
        pthread_mutex_lock(&stream->runner->lock);
        bool waits = dsi_queue_n_waiting(&stream->queue) > 0;
        assert_int_equal(is_readable(stream), waits);
        pthread_mutex_unlock(&stream->runner->lock);
        if (waits) continue;
        dsi_status st = dsi_stream_next(stream, 0, &event);
        if (st == DSI_OK) add_event(&h, &event), n_early++;
        if (st != DSI_OK) assert_int_equal(st, DSI_E_TIMEOUT);
    }
    assert_false(is_readable(stream));
    assert_int_equal(h.status, DSI_OK);
    dsi_stream_close(stream);
    dsi_session_close(s);
    dsi_engine_close(e);
}

static void test_timeouts(void **state) {
    (void)state;
    dsi_engine *e = new_engine(4, 512, 0);
    dsi_session *s = new_session(e, NULL);
    dsi_stream *stream = open_stream(s, 0);
    dsi_event event = {.struct_size = sizeof event};
    heard h = {0};
    hear_next(stream, &h);
    pthread_mutex_lock(&e->lock); /* as a step of somebody else that takes long */
    while (dsi_stream_next(stream, 200, &event) == DSI_OK) add_event(&h, &event);
    assert_false(h.finished);
    double start = dsi_sys_seconds();
    assert_int_equal(dsi_stream_next(stream, 80, &event), DSI_E_TIMEOUT);
    double took = dsi_sys_seconds() - start;
    assert_true(took >= 0.079 && took < 2);
    start = dsi_sys_seconds();
    assert_int_equal(dsi_stream_next(stream, 0, &event), DSI_E_TIMEOUT);
    assert_true(dsi_sys_seconds() - start < 0.05);
    assert_non_null(strstr(dsi_last_error(stream), "0 ms"));
    pthread_mutex_unlock(&e->lock);
    hear_all(stream, &h);
    dsi_stream_close(stream);
    dsi_session_close(s);
    dsi_engine_close(e);
}

/* ---- Many at once -------------------------------------------------------------------------- */

static void test_answers_do_not_depend_on_company(void **state) {
    (void)state;
    static const int n[] = {1, 3, 12};
    for (int c = 0; c < 3; c++) {
        crowd all = open_crowd(new_engine(4, 512, N_QUESTIONS * 512), n[c], NULL);
        hear_crowd(&all);
        for (int i = 0; i < n[c]; i++) assert_same(&all.heard[i], reference_of(i));
        close_crowd(&all);
    }
}

/* Once streams are open, computing and reading them asks the system for nothing. */
static void test_steps_allocate_nothing(void **state) {
    (void)state;
    dsi_session_options o = endless();
    o.max_tokens = 60;
    o.logprobs = 1, o.top_logprobs = 20;
    crowd c = open_crowd(new_engine(2, 512, 512), 5, &o); /* some wait, and lose their pages */
    dsi_fault_arm(&(dsi_fault){.kind = DSI_CALL_ANY, .nth = 1, .onwards = true}); /* all fail */
    hear_crowd(&c);
    dsi_fault_disarm();
    for (int i = 0; i < 5; i++) {
        assert_int_equal(c.heard[i].status, DSI_OK);
        assert_int_equal(c.heard[i].n_tokens, 60);
    }
    close_crowd(&c);
}

/* First opened, first answered. */
static void test_waiting_streams_go_in_order(void **state) {
    (void)state;
    dsi_session_options o;
    dsi_session_options_init(&o);
    o.max_tokens = 12;
    o.ignore_end = 1;
    crowd c = open_crowd(new_engine(2, 512, N_QUESTIONS * 512), N_QUESTIONS, &o);
    hear_crowd(&c);
    for (int i = 0; i + 2 < N_QUESTIONS; i++) {
        double first = c.streams[i]->answer.first, later = c.streams[i + 2]->answer.first;
        if (!(first < later)) fail_msg("stream %d began before stream %d", i + 2, i);
    }
    close_crowd(&c);
}

/* Too many have begun because one paused: they take turns, and all of them end. */
static void test_slow_reader_pauses_alone(void **state) {
    (void)state;
    dsi_session_options o;
    dsi_session_options_init(&o);
    o.ignore_end = 1;
    o.max_tokens = 150;
    o.logprobs = 1; /* a TOKEN event each: the queue is full soon */
    heard want[3] = {0}, slow = {0};
    for (int i = 0; i < 3; i++) reference(i, &o, 512, &want[i]);
    crowd c = open_crowd(new_engine(2, 512, 3 * 512), 3, &o);
    hear_next(c.streams[0], &slow);
    hear_all(c.streams[1], &c.heard[1]); /* nobody reads 0 meanwhile */
    hear_all(c.streams[2], &c.heard[2]);
    assert_same(&c.heard[1], &want[1]);
    assert_same(&c.heard[2], &want[2]);
    pthread_mutex_lock(&c.streams[0]->runner->lock);
    assert_false(dsi_queue_has_room(&c.streams[0]->queue));
    pthread_mutex_unlock(&c.streams[0]->runner->lock);
    hear_all(c.streams[0], &slow);
    assert_same(&slow, &want[0]);
    assert_int_equal(slow.n_tokens, 150);
    close_crowd(&c);
}

/* ---- Turn after turn ----------------------------------------------------------------------- */

static void test_conversation_keeps_its_beginning(void **state) {
    (void)state;
    dsi_engine *e = new_engine(2, 1024, 4096);
    dsi_session *by_stream = new_session(e, NULL), *by_call = new_session(e, NULL);
    static char answers[3][MAX_TEXT];
    dsi_message m[5];
    for (int turn = 0; turn < 3; turn++) {
        size_t n = 2 * (size_t)turn + 1;
        m[2 * turn] = message_of(2 * turn);
        heard h = {0}, want = {.result.struct_size = sizeof want.result};
        dsi_stream *stream;
        assert_int_equal(dsi_stream_open(by_stream, m, n, DSI_THINK_OFF, &stream), DSI_OK);
        hear_all(stream, &h);
        dsi_stream_close(stream);
        assert_int_equal(
            dsi_generate_chat(by_call, m, n, DSI_THINK_OFF, on_text, &want, &want.result), DSI_OK);
        assert_same(&h, &want);
        assert_int_equal(h.result.n_tokens_kept, want.result.n_tokens_kept);
        if (turn == 0) assert_int_equal(h.result.n_tokens_kept, 0);
        if (h.result.n_tokens_in < DSI_PROMPT_BLOCK) { /* as a session that sees it all at once */
            dsi_session *fresh = new_session(e, NULL);
            want = (heard){.result.struct_size = sizeof want.result};
            dsi_generate_chat(fresh, m, n, DSI_THINK_OFF, on_text, &want, &want.result);
            assert_same(&h, &want);
            dsi_session_close(fresh);
        }
        if (turn > 0) assert_true(h.result.n_tokens_kept > h.result.n_tokens_in / 3);
        if (turn == 2) break;
        memcpy(answers[turn], h.text[0], h.n[0]);
        m[2 * turn + 1] =
            (dsi_message){sizeof *m, DSI_ROLE_ASSISTANT, answers[turn], h.n[DSI_PART_ANSWER]};
    }
    /* the same question again: all of its prompt but the last tokens is there */
    heard first = {0}, again = {0};
    for (int i = 0; i < 2; i++) {
        dsi_stream *stream;
        assert_int_equal(dsi_stream_open(by_stream, m, 1, DSI_THINK_OFF, &stream), DSI_OK);
        hear_all(stream, i ? &again : &first);
        dsi_stream_close(stream);
    }
    assert_same(&again, &first);
    assert_true(again.result.n_tokens_kept + 2 >= again.result.n_tokens_in);
    dsi_session_close(by_stream);
    dsi_session_close(by_call);
    dsi_engine_close(e);
}

/* ---- Threads ------------------------------------------------------------------------------- */

typedef struct visitor {
    dsi_engine *engine;
    uint64_t random;
    int n_answers, n_wrong;
    pthread_t thread;
} visitor;
static uint32_t dice(visitor *v, uint32_t n) {
    v->random = v->random * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(v->random >> 33) % n;
}
static void *visit(void *context) {
    visitor *v = context;
    heard *h = malloc(sizeof *h);
    for (int round = 0; round < 6; round++) {
        int i = (int)dice(v, N_QUESTIONS);
        dsi_session_options o = options_of(i);
        dsi_session *s = NULL;
        dsi_stream *stream = NULL;
        dsi_message m = message_of(i);
        bool given_up = false;
        v->n_wrong += dsi_session_open(v->engine, &o, &s) != DSI_OK;
        *h = (heard){0};
        if (dice(v, 4) == 0) { /* one that computes on its own thread */
            h->result.struct_size = sizeof h->result;
            h->status = dsi_generate_chat(s, &m, 1, think_of(i), on_text, h, &h->result);
            h->finished = true;
        } else {
            v->n_wrong += dsi_stream_open(s, &m, 1, think_of(i), &stream) != DSI_OK;
        }
        while (!h->finished && !given_up) {
            dsi_event event = {.struct_size = sizeof event};
            dsi_status st = dsi_stream_next(stream, (int32_t)dice(v, 20), &event);
            if (st == DSI_OK) add_event(h, &event);
            if (dice(v, 150) == 0) given_up = true;
            if (given_up && dice(v, 2)) dsi_stream_cancel(stream);
        }
        dsi_stream_close(stream);
        dsi_session_close(s);
        if (given_up) continue;
        const heard *want = reference_of(i);
        bool same = h->status == DSI_OK && h->n[0] == want->n[0] && h->n[1] == want->n[1] &&
                    !memcmp(h->text[0], want->text[0], h->n[0]) &&
                    !memcmp(h->text[1], want->text[1], h->n[1]);
        v->n_answers++;
        v->n_wrong += !same;
    }
    free(h);
    return NULL;
}
static void test_many_threads(void **state) {
    (void)state;
    for (int i = 0; i < N_QUESTIONS; i++) reference_of(i);
    visitor v[5];
    dsi_engine *e = new_engine(3, 512, 2560); /* a session without a stream needs its pages */
    for (int i = 0; i < 5; i++) {
        v[i] = (visitor){.engine = e, .random = (uint64_t)i + 1};
        assert_int_equal(pthread_create(&v[i].thread, NULL, visit, &v[i]), 0);
    }
    int n_answers = 0;
    for (int i = 0; i < 5; i++) {
        pthread_join(v[i].thread, NULL);
        assert_int_equal(v[i].n_wrong, 0);
        n_answers += v[i].n_answers;
    }
    printf("%d answers on 5 threads\n", n_answers);
    dsi_engine_close(e);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_queue_loses_nothing),
        cmocka_unit_test(test_events_of_one_answer),
        cmocka_unit_test(test_wrong_arguments),
        cmocka_unit_test(test_short_event_struct),
        cmocka_unit_test(test_descriptor),
        cmocka_unit_test(test_timeouts),
        cmocka_unit_test(test_answers_do_not_depend_on_company),
        cmocka_unit_test(test_steps_allocate_nothing),
        cmocka_unit_test(test_waiting_streams_go_in_order),
        cmocka_unit_test(test_slow_reader_pauses_alone),
        cmocka_unit_test(test_conversation_keeps_its_beginning),
        cmocka_unit_test(test_many_threads),
    };
    return cmocka_run_group_tests_name("stream", tests, open_tiny, close_tiny);
}
