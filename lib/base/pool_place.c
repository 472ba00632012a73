/* pool_place.c: decides whether threads are bound, and to which CPUs. A thread that is bound to one
 * CPU cannot go elsewhere when somebody else is put there, so this is done only where nobody should
 * be: when a pool takes every core that the process may use, and no other pool has them. */
#include "pool_place.h"

#include <deepseek/dsinfer.h>

/* CPUs of the pools of this process. A child of fork() inherits them: its parent is still there. */
static atomic_ullong reserved[DSI_MAX_CPUS / 64];

static bool reserve_one(uint32_t cpu) {
    unsigned long long bit = 1ull << cpu % 64;
    return (atomic_fetch_or(&reserved[cpu / 64], bit) & bit) == 0;
}
static void release(const uint32_t *cpus, uint32_t n) {
    for (uint32_t i = 0; i < n; i++)
        atomic_fetch_and(&reserved[cpus[i] / 64], ~(1ull << cpus[i] % 64));
}

static bool may_have_a_cpu_each(const dsi_topology *t, uint32_t n, uint32_t pin) {
    if (pin == DSI_POOL_PIN_OFF || n < 2 || n > t->n_cpus) return false;
    if (pin == DSI_POOL_PIN_ON) return true;
    return n >= t->n_cores && (t->quota == 0 || t->quota >= n);
}

/* A CPU for each thread that no other pool has; two pools that choose at the same time do not get
 * the same. */
static bool take_cpus(dsi_pool_place *place, uint32_t *chosen) {
    const dsi_topology *t = place->topology;
    dsi_cpu_mask taken;
    for (uint32_t i = 0; i < DSI_MAX_CPUS / 64; i++) taken.words[i] = atomic_load(&reserved[i]);
    if (!dsi_topology_choose(t, &taken, place->n, chosen)) return false;
    for (uint32_t i = 0; i < place->n; i++) {
        place->cpus[i] = t->cpus[chosen[i]].id;
        if (reserve_one(place->cpus[i])) continue;
        release(place->cpus, i);
        return false;
    }
    return place->reserved = true;
}

static void decide(dsi_pool_place *place, uint32_t pin, const dsi_log *log, uint32_t *chosen) {
    const dsi_topology *t = place->topology;
    static const dsi_cpu_mask none;
    uint32_t n = place->n;
    if (may_have_a_cpu_each(t, n, pin) && take_cpus(place, chosen))
        place->kind = DSI_PLACE_CPUS;
    else if (pin != DSI_POOL_PIN_OFF && t->n_nodes > 1 && dsi_topology_choose(t, &none, n, chosen))
        place->kind = DSI_PLACE_NODES;
    if (pin == DSI_POOL_PIN_ON && n > 1 && place->kind != DSI_PLACE_CPUS)
        dsi_logf(log, DSI_LOG_WARN, "pool",
                 "pin on: %u threads, but %u CPUs, of which other engines of this process may have "
                 "some; going on without; ask for fewer threads",
                 n, t->n_cpus);
    if (place->kind == DSI_PLACE_FREE) return;
    for (uint32_t i = 0; i < n; i++) {
        const dsi_topology_cpu *cpu = &t->cpus[chosen[i]];
        place->node[i] = cpu->node;
        place->group[i] = place->kind == DSI_PLACE_CPUS ? cpu->l3 : cpu->node;
    }
    dsi_logf(log, DSI_LOG_INFO, "pool", "%u threads, each bound to %s; CPUs by %s", n,
             place->kind == DSI_PLACE_CPUS ? "a CPU of its own" : "its memory node", t->source);
}

bool dsi_pool_place_choose(dsi_pool_place *place, uint32_t n, const dsi_pool_options *options) {
    *place = (dsi_pool_place){.n = n, .topology = options->topology};
    uint32_t *numbers = dsi_sys_calloc(4ull * n, sizeof *numbers);
    if (numbers == NULL) return false;
    place->cpus = numbers;
    place->node = numbers + n;
    place->group = numbers + 2 * (size_t)n;
    if (place->topology != NULL) decide(place, options->pin, options->log, numbers + 3 * (size_t)n);
    return true;
}

void dsi_pool_place_worker(dsi_pool_place *place, uint32_t index, pthread_t thread,
                           const dsi_log *log) {
    const dsi_topology *t = place->topology;
    dsi_cpu_mask mask = {{0}};
    if (place->kind == DSI_PLACE_FREE) return;
    if (place->kind == DSI_PLACE_CPUS) dsi_cpu_mask_add(&mask, place->cpus[index]);
    for (uint32_t i = 0; place->kind == DSI_PLACE_NODES && i < t->n_cpus; i++)
        if (t->cpus[i].node == place->node[index]) dsi_cpu_mask_add(&mask, t->cpus[i].id);
    int code = dsi_sys_set_affinity(thread, &mask);
    if (code != 0)
        dsi_logf(log, DSI_LOG_INFO, "pool",
                 "the system refused to bind thread %u (error %d); it runs anywhere", index, code);
}

bool dsi_pool_place_swap(dsi_pool_place *place, uint32_t index, pthread_t thread) {
    dsi_cpu_mask mask = {{0}};
    dsi_cpu_mask_add(&mask, place->cpus[0]);
    if (dsi_sys_set_affinity(thread, &mask) != 0) {
        place->kind = DSI_PLACE_FREE; /* it would refuse again, before every operator */
        return false;
    }
    uint32_t cpu = place->cpus[0];
    place->cpus[0] = place->cpus[index];
    place->cpus[index] = cpu;
    return true;
}

void dsi_pool_place_free(dsi_pool_place *place, bool in_child) {
    if (place->reserved && !in_child) release(place->cpus, place->n);
    dsi_sys_free(place->cpus);
    *place = (dsi_pool_place){0};
}
