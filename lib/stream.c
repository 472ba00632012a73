/* stream.c: dsi_stream: one answer that the engine's own thread computes, and its events. */
#include "stream.h"
#include <math.h>

/* ---- Open and close -------------------------------------------------------------------------- */

static void free_stream(dsi_stream *s, bool child) {
    dsi_queue_free(&s->queue);
    dsi_sys_close(s->fd);
    if (!child) pthread_cond_destroy(&s->moved);
    dsi_sys_free(s);
}

/* A stream that nobody knows yet. */
static dsi_status new_stream(dsi_session *session, uint32_t max_token_bytes, dsi_stream **out) {
    dsi_error *error = &session->handle.error;
    const dsi_session_options *o = &session->options;
    dsi_stream *s = dsi_sys_calloc(1, sizeof *s);
    if (!s || dsi_sys_cond_init(&s->moved) != 0) {
        dsi_sys_free(s);
        return dsi_fail(error, DSI_E_NOMEM, "no memory for a stream");
    }
    s->fd = dsi_sys_eventfd();
    dsi_status st = DSI_OK;
    if (s->fd < 0)
        st = dsi_fail(error, DSI_E_IO,
                      "the system has no eventfd for a stream; close files or raise the limit "
                      "(ulimit -n)");
    if (st == DSI_OK)
        st = dsi_queue_init(&s->queue, max_token_bytes, o->logprobs ? o->top_logprobs : 0, error);
    if (st != DSI_OK) {
        free_stream(s, false);
        return st;
    }
    s->session = session;
    *out = s;
    return DSI_OK;
}

dsi_status dsi_stream_open(dsi_session *session, const dsi_message *messages, size_t n_messages,
                           uint32_t think, dsi_stream **out) {
    dsi_status st = dsi_session_enter(session, "dsi_stream_open");
    if (st != DSI_OK) return st;
    dsi_error *error = &session->handle.error;
    if (!out) return dsi_fail(error, DSI_E_ARG, "dsi_stream_open: stream is NULL");
    *out = NULL;
    DSI_MEMORY_SCOPE(SESSIONS);
    dsi_runner *runner = NULL;
    dsi_stream *s = NULL;
    st = dsi_runner_hold(session->engine, &runner, error);
    if (st != DSI_OK) return st;
    st = new_stream(session, runner->max_token_bytes, &s);
    if (st == DSI_OK) st = dsi_answer_begin(&s->answer, session, messages, n_messages, think);
    if (st != DSI_OK) {
        if (s) free_stream(s, false);
        dsi_runner_release(runner);
        return st;
    }
    s->runner = runner;
    session->stream = s;
    session->error = &s->error;
    dsi_answer_listen(&s->answer, dsi_stream_hear, s);
    dsi_runner_add(runner, s);
    *out = s;
    return DSI_OK;
}

/* The session is its caller's again. */
static void let_session_go(dsi_stream *s) {
    dsi_session *session = s->session;
    if (!session) return;
    session->on_event = NULL;
    session->stream = NULL;
    session->error = &session->handle.error;
    s->session = NULL;
}

void dsi_stream_close(dsi_stream *s) {
    if (!s) return;
    bool child = dsi_is_child(s->runner->process);
    dsi_stream_cancel(s);
    if (!child) dsi_runner_remove(s->runner, s);
    let_session_go(s);
    dsi_runner_release(s->runner);
    free_stream(s, child);
}

void dsi_stream_detach(dsi_stream *s) {
    if (!dsi_is_child(s->runner->process)) {
        dsi_stream_cancel(s);
        dsi_runner_remove(s->runner, s);
        if (!s->done) {
            dsi_fail(&s->error, DSI_E_CANCELLED, "the session of the stream was closed");
            dsi_answer_end(&s->answer, DSI_E_CANCELLED);
        }
    }
    let_session_go(s);
}

/* The descriptors of a child are those of its parent. */
void dsi_stream_cancel(dsi_stream *s) {
    if (!s || dsi_is_child(s->runner->process)) return;
    atomic_store(&s->cancelled, 1);
    dsi_runner_wake(s->runner);
}

bool dsi_stream_is_cancelled(const dsi_stream *s) { return atomic_load(&s->cancelled) != 0; }

/* ---- Events ---------------------------------------------------------------------------------- */

/* The descriptor is readable exactly while events wait: both change under the lock. */
void dsi_stream_hear(void *stream, const dsi_event *event) {
    dsi_stream *s = stream;
    pthread_mutex_lock(&s->runner->lock);
    if (!dsi_queue_n_waiting(&s->queue)) dsi_sys_eventfd_signal(s->fd);
    dsi_queue_put(&s->queue, event);
    pthread_cond_signal(&s->moved);
    pthread_mutex_unlock(&s->runner->lock);
}

int32_t dsi_stream_fd(const dsi_stream *s) {
    if (!s) return -1;
    return dsi_is_child(s->runner->process) ? DSI_E_FORK : s->fd;
}

/* Waits for an event; lock held. */
static dsi_status wait_for_event(dsi_stream *s, int32_t timeout_ms) {
    double until = timeout_ms < 0 ? INFINITY : dsi_sys_seconds() + 1e-3 * timeout_ms;
    while (!dsi_queue_n_waiting(&s->queue)) {
        if (s->queue.done_taken)
            return dsi_fail(&s->handle.error, DSI_E_STATE,
                            "the answer has ended: DONE was already handed out; close the stream");
        if (timeout_ms == 0 || !dsi_sys_cond_wait_until(&s->moved, &s->runner->lock, until)) {
            if (dsi_queue_n_waiting(&s->queue)) break;
            return dsi_fail(&s->handle.error, DSI_E_TIMEOUT, "no event within %d ms", timeout_ms);
        }
    }
    return DSI_OK;
}

dsi_status dsi_stream_next(dsi_stream *s, int32_t timeout_ms, dsi_event *event) {
    if (!s) return dsi_fail(dsi_thread_error(), DSI_E_ARG, "dsi_stream_next: stream is NULL");
    if (!event || event->struct_size < sizeof event->struct_size)
        return dsi_fail(&s->handle.error, DSI_E_ARG,
                        "dsi_stream_next: set event->struct_size to sizeof *event first");
    if (dsi_is_child(s->runner->process))
        return dsi_fail_child(&s->handle.error, "dsi_stream_next", s->runner->process);
    dsi_event taken = {0};
    pthread_mutex_lock(&s->runner->lock);
    dsi_status st = wait_for_event(s, timeout_ms);
    bool had_room = dsi_queue_has_room(&s->queue);
    if (st == DSI_OK) {
        dsi_queue_take(&s->queue, &taken);
        if (!dsi_queue_n_waiting(&s->queue)) dsi_sys_eventfd_drain(s->fd);
    }
    bool go_on = !had_room && dsi_queue_has_room(&s->queue);
    pthread_mutex_unlock(&s->runner->lock);
    if (st != DSI_OK) return st;
    if (go_on) dsi_runner_wake(s->runner);
    if (taken.kind == DSI_EVENT_DONE && taken.status != DSI_OK) s->handle.error = s->error;
    dsi_copy_out(event, event->struct_size, &taken, sizeof taken);
    return DSI_OK;
}
