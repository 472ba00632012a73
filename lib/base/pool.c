/* pool.c: persistent threads that start a run together and meet at barriers. Everything rests on
 * one primitive, "wait until this counter moves": spin a bounded time, then sleep on it. */
#include "pool.h"

#include "pool_place.h"
#include "sys.h"
#include <deepseek/dsinfer.h>

/* Longer than what one thread does alone between two operators of a step. Not longer: schedulers of
 * virtual machines may put a thread that is woken onto the CPU of who woke it, and there it waits
 * until that one has stopped spinning. */
#define SPIN_SECONDS 40e-6
enum { SPINS_PER_CLOCK = 32 }; /* pauses between two looks at the clock */

/* Where threads meet: those that share a cache, then the meetings of a node, then those of all
 * nodes. Each word on a cache line of its own: threads spin on one while others write the next. */
typedef struct meeting {
    _Alignas(64) atomic_uint n_arrived; /* threads, or meetings below, that are complete */
    uint32_t n_expected;
    struct meeting *above;          /* NULL: the last one */
    _Alignas(64) atomic_uint start; /* moves when a run starts, or when the pool ends */
    _Alignas(64) atomic_uint phase; /* moves when the barrier opens */
    _Alignas(64) atomic_uint n_sleepers;
} meeting;

typedef struct worker {
    dsi_pool *pool;
    pthread_t thread;
    uint32_t index;
    meeting *leaf;
} worker;

struct dsi_pool {
    /* Written between runs only, published by the moves of `start`. */
    int64_t process; /* that started the threads: fork() copies none of them */
    uint32_t n_threads, n_leaves;
    bool spin, stop, watched;
    dsi_pool_fn fn;
    void *context;
    worker *workers;   /* n_threads - 1 */
    meeting *meetings; /* the leaves first: start, phase and sleepers of the others are unused */
    meeting *gate;     /* behind them: of it, phase and sleepers are used */
    uint32_t *leaf;    /* [n_threads] */
    /* [n_threads], while watched: when a thread came to the meeting; how long it stood at gates */
    double *arrived, *stood;
    /* written by who completes a meeting, before anybody is let go */
    dsi_pool_counters counters;
    dsi_pool_place place;
};

static _Thread_local uint32_t own_index; /* in the pool whose run this thread is in */

static void cpu_pause(void) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

/* True if the counter left `old` within SPIN_SECONDS. No yielding in between: two threads that take
 * turns on one CPU look busy and are not separated (measured: 24 us a barrier instead of 0.1). */
static bool spin_until_moved(atomic_uint *counter, unsigned old) {
    double limit = 0; /* the clock is read late: most waits end before */
    for (;;) {
        for (int i = 0; i < SPINS_PER_CLOCK; i++) {
            if (atomic_load_explicit(counter, memory_order_acquire) != old) return true;
            cpu_pause();
        }
        double now = dsi_sys_seconds();
        if (limit == 0) limit = now + SPIN_SECONDS;
        if (now >= limit) return false;
    }
}

/* Returns when the counter has left `old`; what was written before its move is then visible.
 * No wake-up is lost: a sleeper announces itself before it looks at the counter, move() writes the
 * counter before it looks for sleepers, and both orders are sequentially consistent. */
static void wait_until_moved(const dsi_pool *pool, meeting *m, atomic_uint *counter, unsigned old) {
    if (pool->spin && spin_until_moved(counter, old)) return;
    atomic_fetch_add(&m->n_sleepers, 1);
    while (atomic_load(counter) == old) dsi_sys_futex_wait(counter, old);
    atomic_fetch_sub(&m->n_sleepers, 1);
}

static void move(meeting *m, atomic_uint *counter) {
    atomic_fetch_add(counter, 1);
    if (atomic_load(&m->n_sleepers) != 0) dsi_sys_futex_wake(counter);
}

/* By the thread that came last. */
static void count_meeting(dsi_pool *pool) {
    pool->counters.n_meetings++;
    for (uint32_t i = 0; pool->watched && i < pool->n_threads; i++) {
        pool->counters.waited_seconds +=
            pool->arrived[own_index] - pool->arrived[i] + pool->stood[i];
        pool->stood[i] = 0;
    }
}

void dsi_pool_barrier(dsi_pool *pool) {
    if (pool->n_threads == 1) return;
    if (pool->watched) pool->arrived[own_index] = dsi_sys_seconds();
    /* The phase cannot move before this thread has arrived, so this is the phase of this meeting.
     * Whoever completes a meeting resets its count before anybody is let go, and goes up. */
    meeting *leaf = &pool->meetings[pool->leaf[own_index]];
    unsigned phase = atomic_load_explicit(&leaf->phase, memory_order_relaxed);
    for (meeting *m = leaf; m != NULL; m = m->above) {
        if (atomic_fetch_add(&m->n_arrived, 1) + 1 != m->n_expected) {
            wait_until_moved(pool, leaf, &leaf->phase, phase);
            return;
        }
        atomic_store_explicit(&m->n_arrived, 0, memory_order_relaxed);
    }
    count_meeting(pool);
    for (uint32_t i = 0; i < pool->n_leaves; i++)
        move(&pool->meetings[i], &pool->meetings[i].phase);
}

uint32_t dsi_pool_gate(const dsi_pool *pool) {
    return atomic_load_explicit(&pool->gate->phase, memory_order_relaxed);
}
void dsi_pool_gate_open(dsi_pool *pool) { move(pool->gate, &pool->gate->phase); }
void dsi_pool_gate_wait(dsi_pool *pool, uint32_t number) {
    if (atomic_load_explicit(&pool->gate->phase, memory_order_acquire) != number) return;
    double start = pool->watched ? dsi_sys_seconds() : 0;
    wait_until_moved(pool, pool->gate, &pool->gate->phase, number);
    if (pool->watched) pool->stood[own_index] += dsi_sys_seconds() - start;
}

static void *worker_main(void *argument) {
    worker *self = argument;
    dsi_pool *pool = self->pool;
    own_index = self->index;
    for (unsigned start = 0;; start++) {
        wait_until_moved(pool, self->leaf, &self->leaf->start, start);
        if (pool->stop) return NULL;
        pool->fn(pool->context, self->index, pool->n_threads);
        dsi_pool_barrier(pool); /* the end of the run */
    }
}

static void start_all(dsi_pool *pool) {
    for (uint32_t i = 0; i < pool->n_leaves; i++)
        move(&pool->meetings[i], &pool->meetings[i].start);
}

/* If the host's scheduler has put the caller onto a worker's CPU, that worker goes to the one that
 * was kept for the caller. */
static void make_way(dsi_pool *pool) {
    int cpu = dsi_sys_current_cpu();
    if (cpu < 0 || (uint32_t)cpu == pool->place.cpus[0]) return;
    for (uint32_t i = 1; i < pool->n_threads; i++) {
        if (pool->place.cpus[i] != (uint32_t)cpu) continue;
        if (dsi_pool_place_swap(&pool->place, i, pool->workers[i - 1].thread)) return;
    }
}

void dsi_pool_run(dsi_pool *pool, dsi_pool_fn fn, void *context) {
    if (pool->n_threads == 1) {
        fn(context, 0, 1);
        return;
    }
    uint32_t index_before = own_index; /* the caller may be a thread of another pool */
    own_index = 0;
    if (pool->place.kind == DSI_PLACE_CPUS) make_way(pool);
    pool->fn = fn;
    pool->context = context;
    start_all(pool);
    fn(context, 0, pool->n_threads);
    dsi_pool_barrier(pool);
    own_index = index_before;
}

/* ---- Making and ending ---- */

/* Meetings for threads 0..n-1, whose places are in the order of nodes and caches. May be called
 * again for fewer while workers wait for their first run: their leaves stay the same. */
static void arrange_meetings(dsi_pool *pool, uint32_t n) {
    const dsi_pool_place *p = &pool->place;
    uint32_t n_leaves = 0, n_nodes = 0;
    for (uint32_t i = 0; i < 2 * p->n + 1; i++) {
        pool->meetings[i].n_expected = 0;
        pool->meetings[i].above = NULL;
    }
    for (uint32_t t = 0; t < n; t++) {
        if (t == 0 || p->group[t] != p->group[t - 1]) n_leaves++;
        pool->leaf[t] = n_leaves - 1;
    }
    meeting *nodes = pool->meetings + n_leaves, *root = nodes;
    for (uint32_t t = 0; t < n; t++) {
        bool new_leaf = t == 0 || pool->leaf[t] != pool->leaf[t - 1];
        bool new_node = t == 0 || p->node[t] != p->node[t - 1];
        meeting *leaf = &pool->meetings[pool->leaf[t]];
        n_nodes += new_node;
        leaf->n_expected++;
        if (!new_leaf) continue;
        leaf->above = &nodes[n_nodes - 1];
        leaf->above->n_expected++;
    }
    /* A meeting of one is none. */
    if (n_nodes > 1) root = nodes + n_nodes;
    for (uint32_t i = 0; n_nodes > 1 && i < n_nodes; i++) nodes[i].above = root, root->n_expected++;
    for (uint32_t i = 0; i < n_leaves; i++)
        while (pool->meetings[i].above && pool->meetings[i].above->n_expected == 1)
            pool->meetings[i].above = pool->meetings[i].above->above;
    pool->n_leaves = n_leaves;
}

/* Starts the workers one by one; the first refusal sets the size of the pool. */
static void start_workers(dsi_pool *pool, uint32_t n_threads, const dsi_log *log) {
    for (uint32_t i = 1; i < n_threads; i++) {
        worker *new_worker = &pool->workers[i - 1];
        meeting *leaf = &pool->meetings[pool->leaf[i]];
        *new_worker = (worker){.pool = pool, .index = i, .leaf = leaf};
        int code = dsi_sys_thread_create(&new_worker->thread, worker_main, new_worker);
        if (code != 0) {
            dsi_logf(log, DSI_LOG_WARN, "pool",
                     "the system refused thread %u of %u (error %d); going on with %u; raise the "
                     "limit of processes (ulimit -u) or ask for fewer threads",
                     i + 1, n_threads, code, i);
            return;
        }
        pool->n_threads = i + 1; /* workers read it after the first run is published */
        dsi_pool_place_worker(&pool->place, i, new_worker->thread, log);
    }
}

static void free_parts(dsi_pool *pool, bool in_child) {
    dsi_pool_place_free(&pool->place, in_child);
    dsi_sys_free(pool->workers);
    dsi_sys_free(pool->leaf);
    dsi_sys_free(pool->arrived);
    dsi_sys_free(pool->stood);
    dsi_sys_free(pool->meetings);
    dsi_sys_free(pool);
}

dsi_status dsi_pool_new_placed(const dsi_pool_options *options, dsi_pool **pool, dsi_error *error) {
    uint32_t n = options->n_threads;
    *pool = NULL;
    if (n < 1 || n > DSI_POOL_MAX_THREADS) {
        return dsi_fail(error, DSI_E_ARG, "n_threads is %u; it must be 1 to %d", n,
                        DSI_POOL_MAX_THREADS);
    }
    dsi_pool *made = dsi_sys_calloc(1, sizeof *made);
    bool whole = made != NULL;
    if (whole) {
        made->workers = dsi_sys_calloc(n, sizeof *made->workers);
        made->leaf = dsi_sys_calloc(n, sizeof *made->leaf);
        made->arrived = dsi_sys_calloc(n, sizeof *made->arrived);
        made->stood = dsi_sys_calloc(n, sizeof *made->stood);
        made->meetings = dsi_sys_alloc_aligned((2ull * n + 2) * sizeof *made->meetings);
        whole = made->workers != NULL && made->leaf != NULL && made->arrived != NULL &&
                made->stood != NULL && made->meetings != NULL &&
                dsi_pool_place_choose(&made->place, n, options);
    }
    if (!whole) {
        if (made != NULL) free_parts(made, false);
        return dsi_fail(error, DSI_E_NOMEM,
                        "no memory for a pool of %u threads; ask for fewer threads", n);
    }
    made->process = dsi_sys_getpid();
    made->n_threads = 1;
    /* A thread that spins on the CPU its partner needs only delays it. */
    double quota = options->topology != NULL ? options->topology->quota : 0;
    made->spin = n <= dsi_sys_cpu_count() && (quota == 0 || n <= quota);
    made->gate = &made->meetings[2 * n + 1];
    arrange_meetings(made, n);
    start_workers(made, n, options->log);
    if (made->n_threads < n) arrange_meetings(made, made->n_threads);
    made->place.topology = NULL;
    *pool = made;
    return DSI_OK;
}

dsi_status dsi_pool_new(uint32_t n_threads, const dsi_log *log, dsi_pool **pool, dsi_error *error) {
    return dsi_pool_new_placed(&(dsi_pool_options){.n_threads = n_threads, .log = log}, pool,
                               error);
}

/* In a child of fork() there is no thread to join. */
void dsi_pool_free(dsi_pool *pool) {
    if (pool == NULL) return;
    bool in_child = dsi_sys_getpid() != pool->process;
    if (!in_child) {
        pool->stop = true;
        start_all(pool);
        for (uint32_t i = 1; i < pool->n_threads; i++)
            dsi_sys_thread_join(pool->workers[i - 1].thread);
    }
    free_parts(pool, in_child);
}

uint32_t dsi_pool_node(const dsi_pool *pool, uint32_t thread) {
    return thread < pool->n_threads ? pool->place.node[thread] : 0;
}
uint32_t dsi_pool_bound(const dsi_pool *pool) { return (uint32_t)pool->place.kind; }

void dsi_pool_watch(dsi_pool *pool, bool on) { pool->watched = on; }
dsi_pool_counters dsi_pool_count(const dsi_pool *pool) { return pool->counters; }

uint32_t dsi_pool_size(const dsi_pool *pool) { return pool->n_threads; }

void dsi_pool_share(uint64_t n, uint64_t grain, uint32_t thread, uint32_t n_threads,
                    uint64_t *begin, uint64_t *end) {
    if (grain == 0) grain = 1;
    uint64_t n_blocks = n / grain + (n % grain != 0);
    uint64_t each = n_blocks / n_threads, extra = n_blocks % n_threads;
    /* The first `extra` threads take one block more. No product here can exceed n. */
    uint64_t first = each * thread + (thread < extra ? thread : extra);
    uint64_t last = first + each + (thread < extra);
    *begin = first == n_blocks ? n : first * grain;
    *end = last == n_blocks ? n : last * grain;
}
