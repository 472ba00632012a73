/* pool.c: persistent threads that start a run together and meet at barriers. Everything rests on
 * one primitive, "wait until this counter moves": spin a bounded time, then sleep. */
#include "pool.h"

#include "sys.h"
#include <deepseek/dsinfer.h>
#include <stdatomic.h>

/* Longer than the gaps between two kernels of a step (microseconds), far shorter than the time
 * slice another program on this CPU would lose. */
#define SPIN_SECONDS 40e-6
enum { SPINS_PER_CLOCK = 32 }; /* pauses between two looks at the clock */

typedef struct worker {
    dsi_pool *pool;
    pthread_t thread;
    uint32_t index;
} worker;

struct dsi_pool {
    /* Written between runs only, published by `generation`. */
    int64_t process; /* that started the threads: fork() copies none of them */
    uint32_t n_threads;
    bool spin, stop;
    dsi_pool_fn fn;
    void *context;
    worker *workers; /* n_threads - 1 */
    pthread_mutex_t mutex;
    pthread_cond_t moved;
    /* Each on a cache line of its own: threads spin on one while others write its neighbour. */
    _Alignas(64) atomic_uint generation; /* moves when a run starts, or when the pool ends */
    _Alignas(64) atomic_uint phase;      /* moves when a barrier opens */
    _Alignas(64) atomic_uint n_arrived;  /* threads waiting at the barrier */
    _Alignas(64) atomic_uint n_sleepers;
};

static void cpu_pause(void) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

/* True if the counter left `old` within SPIN_SECONDS. */
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
static void wait_until_moved(dsi_pool *pool, atomic_uint *counter, unsigned old) {
    if (pool->spin && spin_until_moved(counter, old)) return;
    pthread_mutex_lock(&pool->mutex);
    atomic_fetch_add(&pool->n_sleepers, 1);
    while (atomic_load(counter) == old) pthread_cond_wait(&pool->moved, &pool->mutex);
    atomic_fetch_sub(&pool->n_sleepers, 1);
    pthread_mutex_unlock(&pool->mutex);
}

static void move(dsi_pool *pool, atomic_uint *counter) {
    atomic_fetch_add(counter, 1);
    if (atomic_load(&pool->n_sleepers) == 0) return;
    pthread_mutex_lock(&pool->mutex);
    pthread_cond_broadcast(&pool->moved);
    pthread_mutex_unlock(&pool->mutex);
}

void dsi_pool_barrier(dsi_pool *pool) {
    if (pool->n_threads == 1) return;
    /* The phase cannot move before this thread has arrived, so this is the phase of this meeting;
     * the last one resets the count before it lets the others go on to the next meeting. */
    unsigned phase = atomic_load_explicit(&pool->phase, memory_order_relaxed);
    if (atomic_fetch_add(&pool->n_arrived, 1) + 1 == pool->n_threads) {
        atomic_store(&pool->n_arrived, 0);
        move(pool, &pool->phase);
    } else {
        wait_until_moved(pool, &pool->phase, phase);
    }
}

static void *worker_main(void *argument) {
    worker *self = argument;
    dsi_pool *pool = self->pool;
    for (unsigned generation = 0;; generation++) {
        wait_until_moved(pool, &pool->generation, generation);
        if (pool->stop) return NULL;
        pool->fn(pool->context, self->index, pool->n_threads);
        dsi_pool_barrier(pool); /* the end of the run */
    }
}

void dsi_pool_run(dsi_pool *pool, dsi_pool_fn fn, void *context) {
    if (pool->n_threads == 1) {
        fn(context, 0, 1);
        return;
    }
    pool->fn = fn;
    pool->context = context;
    move(pool, &pool->generation);
    fn(context, 0, pool->n_threads);
    dsi_pool_barrier(pool);
}

/* Starts the workers one by one; the first refusal sets the size of the pool. */
static void start_workers(dsi_pool *pool, uint32_t n_threads, const dsi_log *log) {
    for (uint32_t i = 1; i < n_threads; i++) {
        worker *new_worker = &pool->workers[i - 1];
        *new_worker = (worker){.pool = pool, .index = i};
        int code = dsi_sys_thread_create(&new_worker->thread, worker_main, new_worker);
        if (code != 0) {
            dsi_logf(log, DSI_LOG_WARN, "pool",
                     "the system refused thread %u of %u (error %d); going on with %u; raise the "
                     "limit of processes (ulimit -u) or ask for fewer threads",
                     i + 1, n_threads, code, i);
            return;
        }
        pool->n_threads = i + 1; /* workers read it after the first run is published */
    }
}

dsi_status dsi_pool_new(uint32_t n_threads, const dsi_log *log, dsi_pool **pool, dsi_error *error) {
    *pool = NULL;
    if (n_threads < 1 || n_threads > DSI_POOL_MAX_THREADS) {
        return dsi_fail(error, DSI_E_ARG, "n_threads is %u; it must be 1 to %d", n_threads,
                        DSI_POOL_MAX_THREADS);
    }
    dsi_pool *made = dsi_sys_alloc_aligned(sizeof *made);
    worker *workers = dsi_sys_calloc(n_threads, sizeof *workers);
    if (made == NULL || workers == NULL) goto no_memory;
    if (dsi_sys_mutex_init(&made->mutex) != 0) goto no_memory;
    if (dsi_sys_cond_init(&made->moved) != 0) {
        pthread_mutex_destroy(&made->mutex);
        goto no_memory;
    }
    made->process = dsi_sys_getpid();
    made->n_threads = 1;
    made->workers = workers;
    /* A thread that spins on the CPU its partner needs only delays it. */
    made->spin = n_threads <= dsi_sys_cpu_count();
    start_workers(made, n_threads, log);
    *pool = made;
    return DSI_OK;

no_memory:
    dsi_sys_free(workers);
    dsi_sys_free(made);
    return dsi_fail(error, DSI_E_NOMEM, "no memory for a pool of %u threads; ask for fewer threads",
                    n_threads);
}

/* Not in a child of fork(): there is no thread to join there, and destroying the condition would
 * wait for sleepers that do not exist. */
static void stop_workers(dsi_pool *pool) {
    pool->stop = true;
    move(pool, &pool->generation);
    for (uint32_t i = 1; i < pool->n_threads; i++) {
        dsi_sys_thread_join(pool->workers[i - 1].thread);
    }
    pthread_cond_destroy(&pool->moved);
    pthread_mutex_destroy(&pool->mutex);
}

void dsi_pool_free(dsi_pool *pool) {
    if (pool == NULL) return;
    if (dsi_sys_getpid() == pool->process) stop_workers(pool);
    dsi_sys_free(pool->workers);
    dsi_sys_free(pool);
}

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
