/* stream_tools.h: for the tests of streams: questions, their answers by dsi_generate_chat, and what
 * came out of a stream. */
#ifndef DSI_TESTS_STREAM_TOOLS_H
#define DSI_TESTS_STREAM_TOOLS_H

#include "../lib/stream.h"
#include "golden.h"
#include <errno.h>
#include <poll.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <unistd.h>

#include <cmocka.h>

enum { N_QUESTIONS = 12, MAX_TEXT = 16384 };

static dsi_model *tiny;
static _Atomic uint32_t n_put_back; /* streams whose pages were taken, by the log */
static char questions[N_QUESTIONS][512];

/* What came out of an answer. */
typedef struct heard {
    char text[2][MAX_TEXT]; /* by part */
    size_t n[2];
    uint64_t done, total; /* of the last PROGRESS */
    uint32_t n_events, n_progress, n_tokens;
    bool finished;
    dsi_status status;
    dsi_generate_result result;
} heard;

static inline void on_log(void *user, uint32_t level, const char *component, const char *text) {
    (void)user;
    if (level == DSI_LOG_DEBUG && !strcmp(component, "streams") && strstr(text, "computed again"))
        n_put_back++;
}
static inline int open_tiny(void **state) {
    (void)state;
    dsi_model_options o;
    dsi_model_options_init(&o);
    o.log = on_log;
    static const char *const what[] = {"路灯不亮，走路看不清",   "外地户口能不能在这里读书",
                                       "垃圾没人清运，味道很大", "工地半夜施工，吵得睡不着",
                                       "公交车很久不来",         "水管漏水没人修"};
    for (int i = 0; i < N_QUESTIONS; i++)
        snprintf(questions[i], sizeof questions[i],
                 i % 3 == 2
                     ? "依据材料回答问题。\n材料：《失业保险金申领办事指南》补贴金额：每月%d元。"
                       "收费标准：每件450元。办理地点：天河区工业大道396号。咨询电话：71895558。\n"
                       "问题：失业保险金申领的补贴金额是多少？"
                     : "工单分拨：\n我要举报，南山区%d号，%s。望尽快解决。",
                 1000 + 37 * i, what[i % 6]);
    return dsi_model_open("examples/models/tiny-gov", &o, &tiny) == DSI_OK ? 0 : -1;
}
static inline int close_tiny(void **state) {
    (void)state;
    dsi_model_close(tiny);
    return 0;
}

static inline dsi_engine *new_engine(uint32_t max_sessions, uint32_t max_context,
                                     uint32_t kv_tokens) {
    dsi_engine_options o;
    dsi_engine_options_init(&o);
    o.n_threads = 1 + max_sessions % 2; /* both */
    o.max_sessions = max_sessions;
    o.max_context = max_context;
    o.kv_tokens = kv_tokens;
    o.chunk_tokens = 24;
    dsi_engine *e = open_engine(tiny, &o);
    assert_non_null(e);
    return e;
}
/* Question i has its own options, so that no two answers are computed alike. */
static inline dsi_session_options options_of(int i) {
    dsi_session_options o;
    dsi_session_options_init(&o);
    if (i % 4 == 1) o.temperature = 0.7f, o.seed = (uint64_t)i;
    if (i % 4 == 2) o.temperature = 3, o.top_k = 50, o.max_tokens = 40;
    return o;
}
static inline dsi_session *new_session(dsi_engine *e, const dsi_session_options *o) {
    dsi_session *s = NULL;
    if (dsi_session_open(e, o, &s) != DSI_OK) fail_msg("%s", dsi_last_error(NULL));
    return s;
}
static inline dsi_message message_of(int i) {
    return (dsi_message){sizeof(dsi_message), DSI_ROLE_USER, questions[i], strlen(questions[i])};
}
static uint32_t think_of(int i) { return i % 2 ? DSI_THINK_ON : DSI_THINK_OFF; }
static inline dsi_stream *open_stream(dsi_session *s, int i) {
    dsi_message m = message_of(i);
    dsi_stream *stream = NULL;
    if (dsi_stream_open(s, &m, 1, think_of(i), &stream) != DSI_OK)
        fail_msg("%s", dsi_last_error(s));
    return stream;
}

static inline void add_text(heard *h, uint32_t part, const char *text, size_t n) {
    if (h->n[part] + n >= MAX_TEXT) fail_msg("the answer is too long");
    memcpy(h->text[part] + h->n[part], text, n);
    h->n[part] += n;
}
static inline int32_t on_text(void *user, uint32_t part, const char *text, size_t n) {
    add_text(user, part, text, n);
    return 0;
}
static inline void add_event(heard *h, const dsi_event *e) {
    assert_false(h->finished); /* nothing behind DONE */
    h->n_events++;
    if (e->kind == DSI_EVENT_PROGRESS) {
        assert_true(e->done > h->done && e->done <= e->total && !h->n[0] && !h->n[1]);
        h->done = e->done, h->total = e->total, h->n_progress++;
    } else if (e->kind == DSI_EVENT_TEXT) {
        assert_true(e->n_bytes > 0 && h->done == h->total);
        add_text(h, e->part, e->text, e->n_bytes);
    } else if (e->kind == DSI_EVENT_TOKEN) {
        h->n_tokens++;
    } else {
        assert_int_equal(e->kind, DSI_EVENT_DONE);
        h->finished = true, h->status = e->status, h->result = e->result;
    }
}
/* Takes one event within half a minute. */
static inline void hear_next(dsi_stream *stream, heard *h) {
    dsi_event e = {.struct_size = sizeof e};
    dsi_status st = dsi_stream_next(stream, 30000, &e);
    if (st != DSI_OK) fail_msg("%d: %s", st, dsi_last_error(stream));
    add_event(h, &e);
}
static inline void hear_all(dsi_stream *stream, heard *h) {
    while (!h->finished) hear_next(stream, h);
}

/* The answer of dsi_generate_chat on an engine of its own. */
static inline void reference(int i, const dsi_session_options *o, uint32_t max_context, heard *h) {
    dsi_engine *e = new_engine(1, max_context, 0);
    dsi_session *s = new_session(e, o);
    dsi_message m = message_of(i);
    *h = (heard){.result.struct_size = sizeof h->result};
    if (dsi_generate_chat(s, &m, 1, think_of(i), on_text, h, &h->result) != DSI_OK)
        fail_msg("%s", dsi_last_error(s));
    dsi_session_close(s);
    dsi_engine_close(e);
}
static inline const heard *reference_of(int i) {
    static heard all[N_QUESTIONS];
    dsi_session_options o = options_of(i);
    if (!all[i].result.struct_size) reference(i, &o, 512, &all[i]);
    return &all[i];
}
static inline void assert_same(const heard *h, const heard *want) {
    if (!h->finished || h->status != DSI_OK) fail_msg("status %d", h->status);
    for (int part = 0; part < 2; part++)
        if (h->n[part] != want->n[part] || memcmp(h->text[part], want->text[part], h->n[part]))
            fail_msg("part %d is\n%.*s\nwanted\n%.*s", part, (int)h->n[part], h->text[part],
                     (int)want->n[part], want->text[part]);
    assert_int_equal(h->result.finish_reason, want->result.finish_reason);
    assert_int_equal(h->result.n_tokens_in, want->result.n_tokens_in);
    assert_int_equal(h->result.n_tokens_out, want->result.n_tokens_out);
}
static inline bool is_readable(const dsi_stream *stream) {
    struct pollfd p = {.fd = dsi_stream_fd(stream), .events = POLLIN};
    return poll(&p, 1, 0) == 1;
}

static uint64_t random_state = 88172645463325252u;
static inline uint32_t random_below(uint32_t n) {
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return (uint32_t)(random_state >> 33) % n;
}

typedef struct crowd {
    dsi_engine *engine;
    dsi_session *sessions[N_QUESTIONS];
    dsi_stream *streams[N_QUESTIONS];
    heard *heard; /* [N_QUESTIONS] */
    int n;
} crowd;
static inline void close_crowd(crowd *c) {
    for (int i = 0; i < c->n; i++) dsi_stream_close(c->streams[i]);
    for (int i = 0; i < c->n; i++) dsi_session_close(c->sessions[i]);
    dsi_engine_close(c->engine);
    free(c->heard);
}
static inline crowd open_crowd(dsi_engine *e, int n, const dsi_session_options *same) {
    crowd c = {.engine = e, .n = n, .heard = calloc(N_QUESTIONS, sizeof(heard))};
    for (int i = 0; i < n; i++) {
        dsi_session_options o = same ? *same : options_of(i);
        c.sessions[i] = new_session(e, &o);
        c.streams[i] = open_stream(c.sessions[i], i);
    }
    return c;
}
/* One thread reads all of them, as an event loop does. */
static inline void hear_crowd(crowd *c) {
    for (int n_left = c->n; n_left > 0;) {
        struct pollfd p[N_QUESTIONS];
        for (int i = 0; i < c->n; i++) {
            p[i] = (struct pollfd){.fd = dsi_stream_fd(c->streams[i]), .events = POLLIN};
            if (c->heard[i].finished) p[i].fd = -1;
        }
        assert_true(poll(p, (nfds_t)c->n, 30000) > 0);
        for (int i = 0; i < c->n; i++) {
            if (!(p[i].revents & POLLIN)) continue;
            hear_next(c->streams[i], &c->heard[i]);
            n_left -= c->heard[i].finished;
        }
    }
}

static inline dsi_session_options endless(void) {
    dsi_session_options o;
    dsi_session_options_init(&o);
    o.ignore_end = 1;
    return o;
}

#endif
