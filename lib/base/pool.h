/* pool.h: one team of threads that runs the same function on every thread and meets at barriers.
 * Results must never depend on the number of threads: work is split by index, sums are not. */
#ifndef DSI_LIB_BASE_POOL_H
#define DSI_LIB_BASE_POOL_H

#include "base.h"

typedef struct dsi_pool dsi_pool;
typedef void (*dsi_pool_fn)(void *context, uint32_t thread, uint32_t n_threads);

enum { DSI_POOL_MAX_THREADS = 1024 };

/* n_threads counts the caller; outside 1..DSI_POOL_MAX_THREADS it is DSI_E_ARG. If the system
 * refuses threads the pool is smaller (logged, never an error). */
dsi_status dsi_pool_new(uint32_t n_threads, const dsi_log *log, dsi_pool **pool, dsi_error *error);

/* AUTO: a CPU each if the pool has a thread for every core of the topology, no more than its quota,
 * and no other pool of the process has them; else the CPUs of one memory node each, if there are
 * several; else nothing. ON: a CPU each if there are enough; refused with a warning. The calling
 * thread is never bound; the CPU that would be its own stays free, and follows it. */
enum { DSI_POOL_PIN_AUTO = 0, DSI_POOL_PIN_ON = 1, DSI_POOL_PIN_OFF = 2 };
struct dsi_topology;
typedef struct dsi_pool_options {
    uint32_t n_threads, pin;
    const struct dsi_topology *topology; /* NULL: unknown, nobody is bound */
    const dsi_log *log;
} dsi_pool_options;
dsi_status dsi_pool_new_placed(const dsi_pool_options *options, dsi_pool **pool, dsi_error *error);
/* The memory node of a thread: 0, 0, .. 1, .. ascending; 0 if threads are not bound. */
uint32_t dsi_pool_node(const dsi_pool *pool, uint32_t thread);
/* Threads are bound: 0 no, 1 to memory nodes, 2 to a CPU each. */
uint32_t dsi_pool_bound(const dsi_pool *pool);
/* Ends and joins all threads; NULL is allowed; never during a run. In a child of fork(), where the
 * threads are not, it frees the memory alone. */
void dsi_pool_free(dsi_pool *pool);
uint32_t dsi_pool_size(const dsi_pool *pool);
/* Runs fn(context, 0..n-1, n) and returns when all have returned; the caller is thread 0.
 * One run at a time (the engine's step lock guarantees it). */
void dsi_pool_run(dsi_pool *pool, dsi_pool_fn fn, void *context);
/* Inside a run, called by all its threads or by none: returns when every thread has arrived. Spins
 * for a bounded time, then sleeps. */
void dsi_pool_barrier(dsi_pool *pool);

/* A gate, for what all threads need and one of them makes while the others have something else to
 * do. Before a run: its number. Inside the run one thread opens it, once; who waits for that number
 * returns when it is open, and sees what was written before. */
uint32_t dsi_pool_gate(const dsi_pool *pool);
void dsi_pool_gate_open(dsi_pool *pool);
void dsi_pool_gate_wait(dsi_pool *pool, uint32_t number);

/* What the meetings of a pool cost. */
typedef struct dsi_pool_counters {
    uint64_t n_meetings;   /* barriers, and ends of runs of several threads */
    double waited_seconds; /* there and at gates, of all threads together, while watched */
} dsi_pool_counters;
/* Between runs. Watching costs two looks at the clock per thread and meeting. */
void dsi_pool_watch(dsi_pool *pool, bool on);
dsi_pool_counters dsi_pool_count(const dsi_pool *pool);

/* The [*begin, *end) share of `thread` in n items, in multiples of `grain` (the last is shorter).
 * The shares of all threads cover 0..n once, in order. */
void dsi_pool_share(uint64_t n, uint64_t grain, uint32_t thread, uint32_t n_threads,
                    uint64_t *begin, uint64_t *end);

#endif
