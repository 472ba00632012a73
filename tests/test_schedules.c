/* test_schedules.c: random schedules of what may happen at the same time: runs and barriers of the
 * pool; sessions and streams on several threads, cancelled from another one, with deadlines, closed
 * in every allowed order. Run under ThreadSanitizer by `make check-tsan`.
 *
 *   test_schedules [SCHEDULES [FIRST]]   default 200 from number 0, `make check-tsan` 2,000; a
 *                                        number always draws the same calls on each thread */
#include "../lib/base/pool.h"
#include "../lib/base/topology.h"
#include "session_tools.h"
#include <stdatomic.h>

static uint32_t n_schedules = 200, first_schedule;

/* splitmix64; each thread has its own. */
typedef struct rng {
    uint64_t state;
} rng;
static uint64_t draw(rng *r) {
    uint64_t z = r->state += UINT64_C(0x9e3779b97f4a7c15);
    z = (z ^ z >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ z >> 27) * UINT64_C(0x94d049bb133111eb);
    return z ^ z >> 31;
}
static uint32_t pick(rng *r, uint32_t n) { return (uint32_t)(draw(r) % n); }

/* ---- The pool ------------------------------------------------------------------------------- */

enum { POOL_THREADS = 6, POOL_BARRIERS = 5 };
typedef struct pool_run {
    dsi_pool *pool;
    uint32_t n_barriers, slow;       /* slow: the thread that comes late */
    uint64_t sums[POOL_THREADS][16]; /* plain memory: only the barriers order it */
    atomic_uint n_wrong;
} pool_run;

/* Between two barriers every thread writes its own sum and reads those of the others. */
static void pool_work(void *context, uint32_t thread, uint32_t n_threads) {
    pool_run *run = context;
    for (uint32_t b = 0; b < run->n_barriers; b++) {
        for (uint32_t i = 0; thread == run->slow && i < 2000; i++) run->sums[thread][1] += i;
        run->sums[thread][0] += thread + b + 1;
        dsi_pool_barrier(run->pool);
        uint64_t total = 0, wanted = 0;
        for (uint32_t i = 0; i < n_threads; i++) {
            total += run->sums[i][0];
            for (uint32_t k = 0; k <= b; k++) wanted += i + k + 1;
        }
        if (total != wanted) atomic_fetch_add(&run->n_wrong, 1);
        dsi_pool_barrier(run->pool);
    }
    run->sums[thread][2]++;
}

static void pool_schedule(rng *r) {
    dsi_error error;
    pool_run run = {0};
    uint32_t n_threads = 1 + pick(r, POOL_THREADS), n_runs = pick(r, 6);
    /* a made-up machine, so that threads meet in a tree of caches and nodes */
    dsi_topology_cpu cpus[POOL_THREADS];
    dsi_topology machine = {.n_cpus = POOL_THREADS, .n_cores = POOL_THREADS, .cpus = cpus};
    for (uint32_t c = 0, l3 = 0, node = 0; c < POOL_THREADS; c++) {
        if (c > 0 && pick(r, 2)) l3++, node += pick(r, 2);
        cpus[c] = (dsi_topology_cpu){.id = c, .core = c, .l3 = l3, .node = node};
        machine.n_l3 = l3 + 1, machine.n_nodes = node + 1;
    }
    dsi_pool_options o = {.n_threads = n_threads, .pin = pick(r, 3), .topology = &machine};
    if (pick(r, 3) == 0) o.topology = NULL;
    if (dsi_pool_new_placed(&o, &run.pool, &error)) fail_msg("%s", error.text);
    n_threads = dsi_pool_size(run.pool);
    for (uint32_t i = 0; i < n_runs; i++) {
        run.n_barriers = pick(r, POOL_BARRIERS);
        run.slow = pick(r, 2 * POOL_THREADS);
        for (uint32_t t = 0; t < POOL_THREADS; t++) run.sums[t][0] = 0;
        dsi_pool_run(run.pool, pool_work, &run);
        for (uint32_t t = 0; t < n_threads; t++) assert_int_equal(run.sums[t][2], i + 1);
    }
    assert_int_equal(run.n_wrong, 0);
    dsi_pool_free(run.pool);
}

static void pools(void **state) {
    (void)state;
    for (uint32_t k = first_schedule; k < first_schedule + n_schedules; k++) {
        rng r = {k * UINT64_C(0xd1342543de82ef95) + 7};
        pool_schedule(&r);
    }
    printf("%u schedules of the pool\n", n_schedules);
}

/* ---- Sessions and streams ------------------------------------------------------------------- */

enum { MAX_WORKERS = 3, STEADY_TOKENS = 4, MAX_OPS = 10 };
static const int32_t steady_prompt[] = {3, 141, 59, 26, 535, 89, 79, 323, 84};
static int32_t steady_answer[STEADY_TOKENS];
static dsi_model *model;

/* One thread's objects. The lock keeps them open while another thread cancels. */
typedef struct worker {
    pthread_t thread;
    pthread_mutex_t lock;
    rng r;
    dsi_engine *engine;
    dsi_session *session, *copy;
    dsi_stream *stream;
    uint32_t n_calls, n_cancelled, n_late, n_done, n_steady;
    char why[256]; /* what went wrong, "" if nothing */
} worker;
static atomic_uint n_working;

#define WRONG(w, ...)                                                                              \
    do {                                                                                           \
        if (!(w)->why[0]) snprintf((w)->why, sizeof(w)->why, __VA_ARGS__);                         \
    } while (0)

/* The statuses that a schedule can bring about; everything else is a mistake of the library. */
static bool judged(worker *w, const char *call, dsi_status st, const void *handle) {
    w->n_calls++;
    w->n_cancelled += st == DSI_E_CANCELLED;
    w->n_late += st == DSI_E_TIMEOUT;
    bool expected = st == DSI_OK || st == DSI_E_CANCELLED || st == DSI_E_TIMEOUT ||
                    st == DSI_E_CONTEXT || st == DSI_E_STATE;
    if (!expected) WRONG(w, "%s: %d: %.180s", call, st, dsi_last_error(handle));
    return st == DSI_OK;
}

static void open_something(worker *w) {
    static const char *const stops[] = {"。", "\n\n"};
    dsi_session_options o;
    dsi_session *s = NULL;
    dsi_session_options_init(&o);
    o.temperature = pick(&w->r, 2) ? 0 : 1.2f;
    o.seed = draw(&w->r);
    o.max_tokens = pick(&w->r, 3) ? 1 + pick(&w->r, 12) : 0;
    o.ignore_end = pick(&w->r, 2);
    o.logprobs = pick(&w->r, 2);
    o.repetition_penalty = pick(&w->r, 4) ? 1 : 1.1f;
    if (pick(&w->r, 3) == 0) o.stop = stops, o.n_stop = 2;
    if (!judged(w, "session_open", dsi_session_open(w->engine, &o, &s), NULL)) return;
    pthread_mutex_lock(&w->lock);
    w->session = s;
    pthread_mutex_unlock(&w->lock);
}

static void open_stream(worker *w) {
    static const char *const texts[] = {"你好", "工单分拨：\n文化路路灯不亮。", "路", "查询政策"};
    const char *text = texts[pick(&w->r, 4)];
    dsi_message message = {sizeof message, DSI_ROLE_USER, text, strlen(text)};
    dsi_stream *stream = NULL;
    dsi_status st = dsi_stream_open(w->session, &message, 1,
                                    pick(&w->r, 2) ? DSI_THINK_AUTO : DSI_THINK_OFF, &stream);
    if (!judged(w, "stream_open", st, w->session)) return;
    pthread_mutex_lock(&w->lock);
    w->stream = stream;
    pthread_mutex_unlock(&w->lock);
}

static void close_stream(worker *w) {
    pthread_mutex_lock(&w->lock);
    dsi_stream *stream = w->stream;
    w->stream = NULL;
    pthread_mutex_unlock(&w->lock);
    dsi_stream_close(stream);
}
static void close_session(worker *w) {
    pthread_mutex_lock(&w->lock);
    dsi_session *session = w->session;
    w->session = NULL;
    pthread_mutex_unlock(&w->lock);
    dsi_session_close(session);
}

/* Some events; with `all` up to the last one. */
static void read_stream(worker *w, bool all) {
    for (uint32_t i = 0; all || i < 4; i++) {
        dsi_event event = {.struct_size = sizeof event};
        int32_t wait = all ? -1 : (int32_t)pick(&w->r, 3);
        dsi_status st = dsi_stream_next(w->stream, wait, &event);
        if (!judged(w, "stream_next", st, w->stream) || event.kind == DSI_EVENT_DONE) {
            if (all && st == DSI_E_TIMEOUT) WRONG(w, "stream_next(-1) timed out");
            if (st == DSI_OK) judged(w, "stream", event.status, w->stream);
            w->n_done += st == DSI_OK;
            return;
        }
    }
}

/* A session that nobody cancels answers as it does alone, whatever else the engine computes. */
static void steady(worker *w) {
    dsi_session_options o;
    dsi_session *s = NULL;
    int32_t token = -1;
    dsi_session_options_init(&o);
    o.ignore_end = 1;
    if (!judged(w, "session_open", dsi_session_open(w->engine, &o, &s), NULL)) return;
    dsi_status st =
        dsi_session_append(s, steady_prompt, sizeof steady_prompt / sizeof *steady_prompt);
    for (uint32_t i = 0; i < STEADY_TOKENS && st == DSI_OK; i++) {
        st = dsi_session_next(s, &token);
        if (st == DSI_OK && token != steady_answer[i])
            WRONG(w, "token %u is %d, alone it is %d", i, token, steady_answer[i]);
    }
    if (st != DSI_OK && st != DSI_E_CONTEXT)
        WRONG(w, "steady session: %d: %.180s", st, dsi_last_error(s));
    w->n_steady += st == DSI_OK;
    dsi_session_close(s);
}

static void append_some(worker *w) {
    int32_t tokens[24];
    uint32_t n = 1 + pick(&w->r, sizeof tokens / sizeof *tokens);
    for (uint32_t i = 0; i < n; i++) tokens[i] = (int32_t)pick(&w->r, 2000);
    judged(w, "append", dsi_session_append(w->session, tokens, n), w->session);
}

static void step_some(worker *w) {
    dsi_session *both[] = {w->session, w->copy};
    size_t n_rows = 0;
    judged(w, "step", dsi_engine_step(w->engine, both, w->copy ? 2 : 1, &n_rows), w->engine);
}

static void rewind_some(worker *w) {
    size_t n = dsi_session_n_tokens(w->session) + dsi_session_n_queued(w->session);
    judged(w, "rewind", dsi_session_rewind(w->session, pick(&w->r, (uint32_t)n + 1)), w->session);
}

static void fork_some(worker *w) {
    dsi_session_close(w->copy);
    w->copy = NULL;
    judged(w, "fork", dsi_session_fork(w->session, &w->copy), w->session);
}

static void next_some(worker *w) {
    int32_t token;
    for (uint32_t i = 1 + pick(&w->r, 4); i > 0; i--) {
        if (!judged(w, "next", dsi_session_next(w->session, &token), w->session)) return;
        if (token < 0) return;
    }
}

static void look_around(worker *w) {
    const int32_t *tokens;
    const float *logits;
    size_t n, first;
    dsi_memory_use use = {.struct_size = sizeof use};
    judged(w, "tokens", dsi_session_tokens(w->session, &tokens, &n), w->session);
    judged(w, "logits", dsi_session_logits(w->session, &logits, &n, &first), w->session);
    if (dsi_memory_report(&use) || use.n_blocks == 0) WRONG(w, "no memory in use");
    if (!*dsi_engine_describe(w->engine)) WRONG(w, "an engine without a description");
}

static void one_call(worker *w) {
    uint32_t what = pick(&w->r, 16);
    if (what == 0) {
        steady(w);
    } else if (!w->session) {
        open_something(w);
    } else if (w->stream) {
        if (what < 6) read_stream(w, false);
        if (what == 6) read_stream(w, true);
        if (what == 7 || what == 8) close_stream(w);
        if (what == 9) dsi_stream_cancel(w->stream);
        if (what == 10) close_session(w); /* before its stream */
        if (what == 11) next_some(w);     /* refused: the stream has the session */
        if (what == 12) dsi_session_cancel(w->session);
        if (what > 12) read_stream(w, false);
        if (!w->session) close_stream(w);
    } else {
        if (what < 3) open_stream(w);
        if (what == 3 || what == 4) append_some(w);
        if (what == 5 || what == 6) next_some(w);
        if (what == 7 || what == 8) step_some(w);
        if (what == 9) rewind_some(w);
        if (what == 10) fork_some(w);
        if (what == 11) dsi_session_cancel(w->session);
        if (what == 12)
            judged(w, "set_deadline", dsi_session_set_deadline(w->session, pick(&w->r, 2) * 0.0005),
                   w->session);
        if (what == 13) look_around(w);
        if (what == 14) close_session(w);
        if (what == 15)
            judged(w, "sample", dsi_session_sample(w->session, &(int32_t){0}), w->session);
    }
}

static void *work(void *context) {
    worker *w = context;
    for (uint32_t n = 2 + pick(&w->r, MAX_OPS); n > 0 && !w->why[0]; n--) one_call(w);
    atomic_fetch_sub(&n_working, 1);
    return NULL;
}

/* From the main thread: cancels of random sessions and streams until the others are through. */
static uint32_t disturb(worker *workers, uint32_t n_workers, rng *r) {
    uint32_t n = 0;
    while (atomic_load(&n_working) > 0) {
        worker *w = &workers[pick(r, n_workers)];
        struct timespec pause = {.tv_nsec = 1000 * (long)pick(r, 400)};
        nanosleep(&pause, NULL);
        if (pick(r, 3)) continue;
        pthread_mutex_lock(&w->lock);
        if (pick(r, 2) && w->stream)
            dsi_stream_cancel(w->stream), n++;
        else if (w->session)
            dsi_session_cancel(w->session), n++;
        pthread_mutex_unlock(&w->lock);
    }
    return n;
}

/* Sessions before their engine; streams whenever. */
static void close_all(worker *workers, uint32_t n_workers, dsi_engine *engine, rng *r) {
    for (uint32_t i = 0; i < n_workers; i++)
        if (pick(r, 2)) close_stream(&workers[i]);
    for (uint32_t i = 0; i < n_workers; i++) {
        dsi_session_close(workers[i].copy);
        close_session(&workers[i]);
        if (pick(r, 2)) close_stream(&workers[i]);
    }
    dsi_engine_close(engine);
    for (uint32_t i = 0; i < n_workers; i++) {
        if (workers[i].stream && pick(r, 2)) read_stream(&workers[i], true);
        close_stream(&workers[i]);
        pthread_mutex_destroy(&workers[i].lock);
    }
}

static dsi_engine *random_engine(rng *r) {
    dsi_engine_options o = engine_of(96, 4 + pick(r, 60), 1 + pick(r, 4));
    o.n_threads = 1 + pick(r, 3);
    o.max_sessions = 2 + pick(r, 3);
    return start_engine(model, &o);
}

static uint64_t n_blocks(void) {
    dsi_memory_use use = {.struct_size = sizeof use};
    assert_int_equal(dsi_memory_report(&use), DSI_OK);
    return use.n_blocks;
}

typedef struct totals {
    uint64_t calls, cancels, cancelled, late, done, steady;
} totals;

static void one_schedule(uint32_t number, totals *sum) {
    static worker workers[MAX_WORKERS];
    rng r = {number * UINT64_C(0xd1342543de82ef95) + 1};
    uint32_t n_workers = 1 + pick(&r, MAX_WORKERS);
    uint64_t blocks = n_blocks();
    dsi_engine *engine = random_engine(&r);
    memset(workers, 0, sizeof workers);
    atomic_store(&n_working, n_workers);
    for (uint32_t i = 0; i < n_workers; i++) {
        workers[i].engine = engine;
        workers[i].r.state = draw(&r);
        assert_int_equal(pthread_mutex_init(&workers[i].lock, NULL), 0);
        assert_int_equal(pthread_create(&workers[i].thread, NULL, work, &workers[i]), 0);
    }
    sum->cancels += disturb(workers, n_workers, &r);
    for (uint32_t i = 0; i < n_workers; i++) pthread_join(workers[i].thread, NULL);
    close_all(workers, n_workers, engine, &r);
    for (uint32_t i = 0; i < n_workers; i++) {
        const worker *w = &workers[i];
        if (w->why[0]) fail_msg("schedule %u, thread %u: %s", number, i, w->why);
        sum->calls += w->n_calls;
        sum->cancelled += w->n_cancelled;
        sum->late += w->n_late;
        sum->done += w->n_done;
        sum->steady += w->n_steady;
    }
    if (n_blocks() != blocks)
        fail_msg("schedule %u: %llu blocks left", number,
                 (unsigned long long)(n_blocks() - blocks));
}

static void sessions_and_streams(void **state) {
    (void)state;
    totals sum = {0};
    for (uint32_t k = first_schedule; k < first_schedule + n_schedules; k++) one_schedule(k, &sum);
    printf("%u schedules of sessions and streams: %llu calls, %llu cancels from another thread, "
           "%llu cancelled, %llu late, %llu streams to their end, %llu steady answers\n",
           n_schedules, (unsigned long long)sum.calls, (unsigned long long)sum.cancels,
           (unsigned long long)sum.cancelled, (unsigned long long)sum.late,
           (unsigned long long)sum.done, (unsigned long long)sum.steady);
    if (n_schedules >= 200)
        assert_true(sum.cancels && sum.cancelled && sum.late && sum.done && sum.steady);
}

static int set_up(void **state) {
    (void)state;
    model = load_model(TINY_GOV);
    dsi_engine_options eo = engine_of(96, 64, 1);
    dsi_session_options so;
    dsi_session_options_init(&so);
    so.ignore_end = 1;
    dsi_engine *engine = start_engine(model, &eo);
    dsi_session *s = start_session(engine, &so);
    OK(dsi_session_append(s, steady_prompt, sizeof steady_prompt / sizeof *steady_prompt), s);
    for (int i = 0; i < STEADY_TOKENS; i++) OK(dsi_session_next(s, &steady_answer[i]), s);
    dsi_session_close(s);
    dsi_engine_close(engine);
    return 0;
}
static int tear_down(void **state) {
    (void)state;
    dsi_model_close(model);
    return 0;
}

int main(int argc, char **argv) {
    if (argc > 1) n_schedules = (uint32_t)strtoul(argv[1], NULL, 10);
    if (argc > 2) first_schedule = (uint32_t)strtoul(argv[2], NULL, 10);
    const struct CMUnitTest tests[] = {cmocka_unit_test(pools),
                                       cmocka_unit_test(sessions_and_streams)};
    return cmocka_run_group_tests_name("schedules", tests, set_up, tear_down);
}
