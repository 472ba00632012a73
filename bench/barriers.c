/* barriers.c: what meeting costs: a barrier inside a run, and a run whose threads are asleep. */
#include "../lib/base/pool.h"
#include "../lib/base/sys.h"
#include "../lib/base/topology.h"
#include "bench.h"
#include <stdlib.h>
#include <unistd.h>

enum { BARRIERS = 20000, WAKES = 200, ASLEEP_MICROSECONDS = 2000 };

typedef struct meeting_times {
    dsi_pool *pool;
    double *seconds; /* [BARRIERS], of thread 0 */
} meeting_times;

static void meet(void *context, uint32_t thread, uint32_t n_threads) {
    const meeting_times *t = context;
    (void)n_threads;
    for (int i = 0; i < BARRIERS; i++) {
        double start = thread == 0 ? dsi_sys_seconds() : 0;
        dsi_pool_barrier(t->pool);
        if (thread == 0) t->seconds[i] = dsi_sys_seconds() - start;
    }
}
static void nothing(void *context, uint32_t thread, uint32_t n_threads) {
    (void)context, (void)thread, (void)n_threads;
}

static void print_line(const char *what, uint32_t n_threads, const char *bound, double *seconds,
                       size_t n) {
    double middle = bench_median(seconds, n); /* sorts */
    printf("| %s | %u | %s | %.2f | %.2f |\n", what, n_threads, bound, middle * 1e6,
           bench_percentile(seconds, n, 0.99) * 1e6);
}

static void measure(const dsi_topology *topology, uint32_t n_threads, uint32_t pin,
                    double *seconds) {
    static const char *const bound[] = {"no", "to nodes", "to CPUs"};
    dsi_pool_options o = {.n_threads = n_threads, .pin = pin, .topology = topology};
    meeting_times t = {.seconds = seconds};
    dsi_error error;
    if (dsi_pool_new_placed(&o, &t.pool, &error) != DSI_OK) {
        bench_say("%s", error.text);
        return;
    }
    const char *how = bound[dsi_pool_bound(t.pool)];
    dsi_pool_run(t.pool, meet, &t); /* once for the caches */
    dsi_pool_run(t.pool, meet, &t);
    print_line("barrier", n_threads, how, seconds, BARRIERS);
    for (int i = 0; i < WAKES; i++) {
        usleep(ASLEEP_MICROSECONDS);
        double start = dsi_sys_seconds();
        dsi_pool_run(t.pool, nothing, NULL);
        seconds[i] = dsi_sys_seconds() - start;
    }
    print_line("run after sleep", n_threads, how, seconds, WAKES);
    dsi_pool_free(t.pool);
}

void bench_barriers(uint32_t most_threads) {
    dsi_topology topology;
    double *seconds = malloc(BARRIERS * sizeof *seconds);
    if (seconds == NULL || dsi_topology_read("", NULL, &topology, NULL) != DSI_OK) {
        free(seconds);
        bench_say("no memory to measure barriers");
        return;
    }
    printf("\n%u CPUs: %u cores, %u L3, %u memory nodes, by %s\n\n", topology.n_cpus,
           topology.n_cores, topology.n_l3, topology.n_nodes, topology.source);
    printf("| meeting of threads | threads | bound | p50, us | p99, us |\n"
           "| --- | --- | --- | --- | --- |\n");
    for (uint32_t n = 2; n <= most_threads; n = n == most_threads      ? n + 1
                                                : 2 * n < most_threads ? 2 * n
                                                                       : most_threads) {
        measure(&topology, n, DSI_POOL_PIN_OFF, seconds);
        measure(&topology, n, DSI_POOL_PIN_ON, seconds);
    }
    dsi_topology_free(&topology);
    free(seconds);
}
