/* runner.c: the engine's own thread. Round after round it looks at all open streams, chooses those
 * of the next step, computes it and turns sampled tokens into events (continuous batching).
 *
 * Who is chosen. Streams go in the order they were opened, up to max_sessions in a step; the others
 * wait. One whose queue of events is full is passed over until its reader has made room. If because
 * of that more have begun than a step takes, they take turns.
 *
 * Pages of the KV pool. A stream begins when the pool has pages for its whole prompt; nobody
 * overtakes one that waits for pages. An answer that is complete gives its pages to whoever needs
 * them: its session computes them anew if it is used again. If nobody can go on, the oldest one
 * gets the pages of streams that are paused, then of those opened last, which begin again later:
 * rows that are computed once more are the same bit for bit, so nobody sees it. A stream fails,
 * with DSI_E_CONTEXT, only if all that is left is held by sessions without a stream. */
#include "stream.h"
#include <math.h>

/* ---- Looking --------------------------------------------------------------------------------- */

/* Lock held. What is decided here may be used without it until planning ends: nobody but the runner
 * changes the list or touches the sessions meanwhile. */
static void look(dsi_runner *r) {
    dsi_stream **end = &r->streams;
    while (*end) end = &(*end)->next;
    *end = r->arrived;
    r->arrived = NULL;
    for (dsi_stream *s = r->streams; s; s = s->next)
        s->ready = !s->done && dsi_queue_has_room(&s->queue);
    r->planning = true;
}

static void end_stream(dsi_stream *s, dsi_status status) {
    dsi_session_report(s->session, status);
    dsi_answer_end(&s->answer, status);
    s->done = true;
    s->ready = false;
}

/* Ends what was cancelled or is late; the time when the next one will be late. */
static double end_hindered(dsi_runner *r) {
    double until = INFINITY;
    for (dsi_stream *s = r->streams; s; s = s->next) {
        if (s->done) continue;
        dsi_status st = dsi_session_hindrance(s->session);
        if (st != DSI_OK)
            end_stream(s, st);
        else if (s->session->deadline > 0 && s->session->deadline < until)
            until = s->session->deadline;
    }
    return until;
}

/* ---- Pages: the engine's lock is held ------------------------------------------------------- */

/* Takes the pages away from a session; all its rows are queued again. */
static void evict(dsi_stream *s) {
    if (!s->done)
        dsi_logf(&s->session->engine->model->log, DSI_LOG_DEBUG, "streams",
                 "stream %llu gives its %u KV pages to others and will be computed again; more "
                 "kv_tokens would avoid it",
                 (unsigned long long)s->age, s->session->n_pages);
    dsi_pages_release(s->session, 0);
    s->session->n_tokens = 0;
    s->session->n_logits = 0;
    s->admitted = false;
}

/* Whom to take pages from, NULL if there is nobody. Answers that are complete come first, the
 * oldest before the others; with `running` also the paused ones, then the rest, the youngest first.
 */
static dsi_stream *find_victim(const dsi_runner *r, const dsi_stream *for_whom, bool running) {
    dsi_stream *paused = NULL, *youngest = NULL;
    for (dsi_stream *s = r->streams; s; s = s->next) {
        if (s == for_whom || !s->session->n_pages) continue;
        if (s->done) return s;
        youngest = s;
        if (!s->ready) paused = s;
    }
    if (!running) return NULL;
    return paused ? paused : youngest;
}

/* Without success the stream's message says why. */
static bool get_pages(dsi_runner *r, dsi_stream *s, bool from_running) {
    for (;;) {
        dsi_status st = dsi_session_reserve(s->session, s->session->n_total);
        if (st == DSI_OK) s->admitted = true;
        dsi_stream *victim = st == DSI_E_CONTEXT ? find_victim(r, s, from_running) : NULL;
        if (!victim) return st == DSI_OK;
        evict(victim);
    }
}

/* ---- Choosing: the engine's lock is held ---------------------------------------------------- */

static void choose(dsi_runner *r, dsi_stream *s) {
    r->chosen[r->n_chosen++] = s;
    r->last_served = s->age;
}

/* More streams have begun than one step takes: the next ones in turn. */
static void choose_in_turn(dsi_runner *r) {
    uint64_t last = r->last_served;
    for (int lap = 0; lap < 2; lap++)
        for (dsi_stream *s = r->streams; s && r->n_chosen < r->max_chosen; s = s->next)
            if (s->ready && s->admitted && (s->age > last) == (lap == 0) && get_pages(r, s, false))
                choose(r, s);
}

static void choose_by_age(dsi_runner *r) {
    bool waits = false;
    for (dsi_stream *s = r->streams; s && r->n_chosen < r->max_chosen; s = s->next) {
        if (!s->ready || (waits && !s->admitted)) continue;
        if (get_pages(r, s, false))
            choose(r, s);
        else
            waits = true;
    }
}

/* Fills r->chosen; returns a stream that cannot be computed, or NULL. */
static dsi_stream *choose_streams(dsi_runner *r) {
    uint32_t n_begun = 0;
    dsi_stream *oldest = NULL;
    r->n_chosen = 0;
    for (dsi_stream *s = r->streams; s; s = s->next) {
        n_begun += s->ready && s->admitted;
        if (s->ready && !oldest) oldest = s;
    }
    if (n_begun > r->max_chosen)
        choose_in_turn(r);
    else
        choose_by_age(r);
    if (r->n_chosen || !oldest) return NULL;
    if (!get_pages(r, oldest, true)) return oldest;
    choose(r, oldest);
    return NULL;
}

/* One plan; returns the time to wait until, if nothing was chosen. */
static double plan(dsi_runner *r) {
    double until = end_hindered(r);
    pthread_mutex_lock(&r->engine->lock);
    dsi_stream *stuck = choose_streams(r);
    pthread_mutex_unlock(&r->engine->lock);
    if (!stuck) return until;
    end_stream(stuck, stuck->error.status);
    return 0; /* look again at once */
}

/* ---- Computing ------------------------------------------------------------------------------- */

/* After a step: goes on with the answer, or ends it. */
static void advance(dsi_stream *s, dsi_status st) {
    bool done = false;
    if (st == DSI_OK) st = dsi_session_hindrance(s->session);
    if (st == DSI_OK) st = dsi_answer_advance(&s->answer, &done);
    if (st != DSI_OK || done) end_stream(s, st);
}

static bool concerns_all(dsi_status st) {
    return st != DSI_OK && st != DSI_E_CANCELLED && st != DSI_E_TIMEOUT && st != DSI_E_CONTEXT &&
           st != DSI_E_NAN;
}

static void compute(dsi_runner *r) {
    for (uint32_t i = 0; i < r->n_chosen; i++) r->batch[i] = r->chosen[i]->session;
    dsi_status st = dsi_step_sessions(r->engine, r->batch, r->n_chosen, NULL);
    bool alone = concerns_all(st) && r->n_chosen > 1; /* to see whose fault it is */
    for (uint32_t i = 0; i < r->n_chosen; i++) {
        if (alone) dsi_step_sessions(r->engine, &r->batch[i], 1, NULL);
        if (r->batch[i]->outcome != DSI_E_CONTEXT) advance(r->chosen[i], r->batch[i]->outcome);
    }
}

/* Lock held. */
static void set_busy(dsi_runner *r, bool busy) {
    for (uint32_t i = 0; i < r->n_chosen; i++) r->chosen[i]->busy = busy;
    r->planning = false;
    pthread_cond_broadcast(&r->let_go);
}

static void end_all(dsi_runner *r) {
    for (dsi_stream *s = r->streams; s; s = s->next) {
        if (s->done) continue;
        dsi_fail(&s->error, DSI_E_CANCELLED, "the engine of the stream was closed");
        end_stream(s, DSI_E_CANCELLED);
    }
}

static void *run(void *context) {
    dsi_runner *r = context;
    bool stop = false;
    while (!stop) {
        /* Drained before the look: whoever changes something afterwards wakes it again. */
        dsi_sys_eventfd_drain(r->wake_fd);
        pthread_mutex_lock(&r->lock);
        look(r);
        stop = r->stop;
        pthread_mutex_unlock(&r->lock);
        r->n_chosen = 0;
        double until = 0;
        if (stop)
            end_all(r);
        else
            until = plan(r);
        pthread_mutex_lock(&r->lock);
        set_busy(r, true);
        pthread_mutex_unlock(&r->lock);
        if (!r->n_chosen) {
            dsi_sys_eventfd_wait(r->wake_fd, until);
            continue;
        }
        compute(r);
        pthread_mutex_lock(&r->lock);
        set_busy(r, false);
        pthread_mutex_unlock(&r->lock);
    }
    return NULL;
}

/* ---- Streams come and go --------------------------------------------------------------------- */

void dsi_runner_wake(const dsi_runner *r) { dsi_sys_eventfd_signal(r->wake_fd); }

void dsi_runner_add(dsi_runner *r, dsi_stream *stream) {
    pthread_mutex_lock(&r->lock);
    stream->age = ++r->n_opened;
    dsi_stream **end = &r->arrived;
    while (*end) end = &(*end)->next;
    *end = stream;
    pthread_mutex_unlock(&r->lock);
    dsi_runner_wake(r);
}

static void unlink_from(dsi_stream **list, const dsi_stream *stream) {
    while (*list && *list != stream) list = &(*list)->next;
    if (*list) *list = stream->next;
}

void dsi_runner_remove(dsi_runner *r, dsi_stream *stream) {
    pthread_mutex_lock(&r->lock);
    while (r->planning || stream->busy) pthread_cond_wait(&r->let_go, &r->lock);
    unlink_from(&r->streams, stream);
    unlink_from(&r->arrived, stream);
    stream->next = NULL;
    pthread_mutex_unlock(&r->lock);
}

/* ---- Start and end --------------------------------------------------------------------------- */

static uint32_t longest_token(const dsi_tokenizer *tokenizer) {
    size_t longest = 0, n;
    uint32_t n_tokens = tokenizer ? dsi_tokenizer_n_tokens(tokenizer) : 0;
    for (uint32_t i = 0; i < n_tokens; i++) {
        dsi_tokenizer_bytes(tokenizer, (int32_t)i, &n);
        if (n > longest) longest = n;
    }
    return longest < UINT32_MAX ? (uint32_t)longest : UINT32_MAX;
}

static void free_runner(dsi_runner *r) {
    dsi_sys_close(r->wake_fd);
    dsi_sys_free(r->chosen);
    dsi_sys_free(r->batch);
    if (!dsi_is_child(r->process)) {
        pthread_cond_destroy(&r->let_go);
        pthread_mutex_destroy(&r->lock);
    }
    dsi_sys_free(r);
}

static dsi_status fill_runner(dsi_runner *r, dsi_engine *e, dsi_error *error) {
    r->process = dsi_sys_getpid();
    r->engine = e;
    r->n_holders = 1;
    r->max_token_bytes = longest_token(e->model->tokenizer);
    /* each of them gets a row, also when all wait for one token */
    r->max_chosen = (uint32_t)dsi_min_i64(e->options.max_sessions, e->options.chunk_tokens);
    r->chosen = dsi_sys_calloc(r->max_chosen, sizeof *r->chosen);
    r->batch = dsi_sys_calloc(r->max_chosen, sizeof *r->batch);
    r->wake_fd = dsi_sys_eventfd();
    if (!r->chosen || !r->batch)
        return dsi_fail(error, DSI_E_NOMEM, "no memory for the thread that computes streams");
    if (r->wake_fd < 0)
        return dsi_fail(error, DSI_E_IO,
                        "the system has no eventfd for the thread that computes streams; close "
                        "files or raise the limit (ulimit -n)");
    int code = dsi_sys_thread_create(&r->thread, run, r);
    if (code != 0)
        return dsi_fail(error, DSI_E_NOMEM,
                        "the system refused the thread that computes streams (error %d); raise the "
                        "limit of processes (ulimit -u)",
                        code);
    return DSI_OK;
}

static dsi_status new_runner(dsi_engine *e, dsi_runner **out, dsi_error *error) {
    DSI_MEMORY_SCOPE(SESSIONS);
    dsi_runner *r = dsi_sys_calloc(1, sizeof *r);
    if (!r) return dsi_fail(error, DSI_E_NOMEM, "no memory for the thread that computes streams");
    if (dsi_sys_mutex_init(&r->lock) != 0) {
        dsi_sys_free(r);
        return dsi_fail(error, DSI_E_NOMEM, "the system has no more locks");
    }
    if (dsi_sys_cond_init(&r->let_go) != 0) {
        pthread_mutex_destroy(&r->lock);
        dsi_sys_free(r);
        return dsi_fail(error, DSI_E_NOMEM, "the system has no more condition variables");
    }
    dsi_status st = fill_runner(r, e, error);
    if (st == DSI_OK)
        *out = r;
    else
        free_runner(r);
    return st;
}

dsi_status dsi_runner_hold(dsi_engine *e, dsi_runner **out, dsi_error *error) {
    dsi_status st = DSI_OK;
    *out = atomic_load(&e->runner);
    if (!*out) { /* only the first stream waits for a running step */
        pthread_mutex_lock(&e->lock);
        *out = atomic_load(&e->runner);
        if (!*out) st = new_runner(e, out, error);
        if (st == DSI_OK) atomic_store(&e->runner, *out);
        pthread_mutex_unlock(&e->lock);
    }
    if (st != DSI_OK) return st;
    pthread_mutex_lock(&(*out)->lock);
    (*out)->n_holders++;
    pthread_mutex_unlock(&(*out)->lock);
    return DSI_OK;
}

void dsi_runner_release(dsi_runner *r) {
    bool child = dsi_is_child(r->process);
    if (!child) pthread_mutex_lock(&r->lock);
    bool last = --r->n_holders == 0;
    if (!child) pthread_mutex_unlock(&r->lock);
    if (last) free_runner(r);
}

void dsi_engine_wake_runner(const dsi_engine *e) {
    const dsi_runner *r = atomic_load(&e->runner);
    if (r) dsi_runner_wake(r);
}

void dsi_engine_stop_runner(dsi_engine *e) {
    dsi_runner *r = atomic_load(&e->runner);
    if (!r) return;
    if (!dsi_is_child(r->process)) {
        pthread_mutex_lock(&r->lock);
        r->stop = true;
        pthread_mutex_unlock(&r->lock);
        dsi_runner_wake(r);
        dsi_sys_thread_join(r->thread);
    }
    atomic_store(&e->runner, NULL);
    dsi_runner_release(r);
}
