/* topology.c: reads which CPUs are one core, share a cache or a memory node, from hwloc or /sys. */
#include "topology.h"

#include "cgroup.h"
#include <stddef.h>
#include <stdio.h>
#include <string.h>

enum {
    LIST_BYTES = 16384, /* a list that alternates over 4,096 CPUs */
    N_CACHES = 8,       /* folders index0 .. of a CPU */
    N_NODES = 1024
};
#define UNKNOWN UINT32_MAX

/* ---- Lists of CPUs ---- */

static bool take_cpu(const char **at, uint32_t *cpu) {
    uint32_t value = 0, n = 0;
    for (; **at >= '0' && **at <= '9' && n < 6; (*at)++, n++)
        value = value * 10 + (uint32_t)(**at - '0');
    *cpu = value;
    return n > 0 && value < DSI_MAX_CPUS;
}

bool dsi_cpu_list(const char *list, dsi_cpu_mask *mask) {
    uint32_t first, last;
    for (const char *at = list;;) {
        if (!take_cpu(&at, &first)) return false;
        last = first;
        if (*at == '-') {
            at++;
            if (!take_cpu(&at, &last) || last < first) return false;
        }
        for (uint32_t cpu = first; cpu <= last; cpu++) dsi_cpu_mask_add(mask, cpu);
        if (*at == '\n' || *at == 0) return at[0] == 0 || at[1] == 0;
        if (*at++ != ',') return false;
    }
}

/* ---- /sys ---- */

typedef struct reader {
    const char *root;
    dsi_topology *topology;
    char *text; /* [LIST_BYTES] */
} reader;

/* All CPUs of the mask whose field is not known yet get `value`. */
static void assign(dsi_topology *topology, size_t field, const dsi_cpu_mask *mask, uint32_t value) {
    for (uint32_t i = 0; i < topology->n_cpus; i++) {
        dsi_topology_cpu *cpu = &topology->cpus[i];
        uint32_t *to = (uint32_t *)(void *)((uint8_t *)cpu + field);
        if (*to == UNKNOWN && dsi_cpu_mask_has(mask, cpu->id)) *to = value;
    }
}

static bool read_list(const reader *r, const char *path, dsi_cpu_mask *mask) {
    memset(mask, 0, sizeof *mask);
    return dsi_sys_read_text(path, r->text, LIST_BYTES) && strlen(r->text) < LIST_BYTES - 1 &&
           dsi_cpu_list(r->text, mask);
}

/* The siblings of one CPU; a list that does not name the CPU itself is nonsense. */
static void read_core(const reader *r, uint32_t cpu, uint32_t value) {
    char path[512];
    dsi_cpu_mask mask;
    snprintf(path, sizeof path, "%.400s/sys/devices/system/cpu/cpu%u/topology/thread_siblings_list",
             r->root, cpu);
    if (read_list(r, path, &mask) && dsi_cpu_mask_has(&mask, cpu))
        assign(r->topology, offsetof(dsi_topology_cpu, core), &mask, value);
}

static void read_l3(const reader *r, uint32_t cpu, uint32_t value) {
    char path[512];
    dsi_cpu_mask mask;
    for (int i = N_CACHES - 1; i >= 0; i--) {
        int n = snprintf(path, sizeof path, "%.400s/sys/devices/system/cpu/cpu%u/cache/index%d/",
                         r->root, cpu, i);
        snprintf(path + n, sizeof path - (size_t)n, "level");
        if (!dsi_sys_read_text(path, r->text, LIST_BYTES) || strcmp(r->text, "3\n") != 0) continue;
        snprintf(path + n, sizeof path - (size_t)n, "shared_cpu_list");
        if (!read_list(r, path, &mask) || !dsi_cpu_mask_has(&mask, cpu)) continue;
        assign(r->topology, offsetof(dsi_topology_cpu, l3), &mask, value);
        return;
    }
}

static void read_nodes(const reader *r) {
    char path[512];
    dsi_cpu_mask online, cpus;
    snprintf(path, sizeof path, "%.400s/sys/devices/system/node/online", r->root);
    if (!read_list(r, path, &online)) return;
    for (uint32_t node = 0; node < N_NODES; node++) {
        if (!dsi_cpu_mask_has(&online, node)) continue;
        snprintf(path, sizeof path, "%.400s/sys/devices/system/node/node%u/cpulist", r->root, node);
        /* a node of memory alone has an empty list */
        if (read_list(r, path, &cpus))
            assign(r->topology, offsetof(dsi_topology_cpu, node), &cpus, node);
    }
}

static bool read_sys(const char *root, dsi_topology *t) {
    reader r = {root, t, dsi_sys_calloc(1, LIST_BYTES)};
    bool any = false;
    if (r.text == NULL) return false;
    for (uint32_t i = 0; i < t->n_cpus; i++) {
        dsi_topology_cpu *cpu = &t->cpus[i];
        if (cpu->core == UNKNOWN) read_core(&r, cpu->id, i);
        if (cpu->l3 == UNKNOWN && (i == 0 || t->cpus[i - 1].l3 != UNKNOWN))
            read_l3(&r, cpu->id, i); /* who has none is not asked CPU by CPU */
        any = any || cpu->core != UNKNOWN || cpu->l3 != UNKNOWN;
    }
    read_nodes(&r);
    for (uint32_t i = 0; i < t->n_cpus; i++) any = any || t->cpus[i].node != UNKNOWN;
    dsi_sys_free(r.text);
    return any;
}

/* ---- From numbers of others to our own ---- */

static bool is_before(const dsi_topology_cpu *x, const dsi_topology_cpu *y) {
    if (x->node != y->node) return x->node < y->node;
    if (x->l3 != y->l3) return x->l3 < y->l3;
    if (x->core != y->core) return x->core < y->core;
    return x->id < y->id;
}

/* Insertion, since lists are nearly in order. By place, or by id. */
static void sort(dsi_topology_cpu *cpus, uint32_t n, bool by_place) {
    for (uint32_t i = 1; i < n; i++) {
        dsi_topology_cpu one = cpus[i];
        uint32_t at = i;
        for (; at > 0 && (by_place ? is_before(&one, &cpus[at - 1]) : one.id < cpus[at - 1].id);
             at--)
            cpus[at] = cpus[at - 1];
        cpus[at] = one;
    }
}

/* Counts 0, 1, .. in each field. Who has no node is on that of the first CPU, without a cache on
 * one with the others of its node, without a core on one of its own. A cache that spans two nodes
 * (a socket cut in halves) counts as two, a core as well. */
static void renumber(dsi_topology *t) {
    for (uint32_t i = 0; i < t->n_cpus; i++) {
        dsi_topology_cpu *cpu = &t->cpus[i];
        if (cpu->node == UNKNOWN) cpu->node = i == 0 ? 0 : t->cpus[0].node;
        if (cpu->core == UNKNOWN) cpu->core = DSI_MAX_CPUS + i;
    }
    sort(t->cpus, t->n_cpus, true);
    dsi_topology_cpu before = {0}, number = {0};
    for (uint32_t i = 0; i < t->n_cpus; i++) {
        dsi_topology_cpu now = t->cpus[i];
        bool node = i > 0 && now.node != before.node;
        bool l3 = node || (i > 0 && now.l3 != before.l3);
        bool core = l3 || (i > 0 && now.core != before.core);
        number.node += node, number.l3 += l3, number.core += core;
        number.sibling = i == 0 || core ? 0 : number.sibling + 1;
        number.id = now.id;
        t->cpus[i] = number;
        before = now;
    }
    t->n_nodes = number.node + 1, t->n_l3 = number.l3 + 1, t->n_cores = number.core + 1;
    sort(t->cpus, t->n_cpus, false);
}

/* ---- Public ---- */

dsi_status dsi_topology_read(const char *root, const dsi_cpu_mask *allowed, dsi_topology *topology,
                             dsi_error *error) {
    dsi_cpu_mask mask;
    *topology = (dsi_topology){.source = "affinity"};
    if (allowed != NULL)
        mask = *allowed;
    else
        dsi_sys_affinity(&mask);
    for (uint32_t cpu = 0; cpu < DSI_MAX_CPUS; cpu++)
        topology->n_cpus += dsi_cpu_mask_has(&mask, cpu);
    if (topology->n_cpus == 0) dsi_cpu_mask_add(&mask, 0), topology->n_cpus = 1;
    topology->cpus = dsi_sys_calloc(topology->n_cpus, sizeof *topology->cpus);
    if (topology->cpus == NULL)
        return dsi_fail(error, DSI_E_NOMEM, "no memory for a list of %u CPUs; free some memory",
                        topology->n_cpus);
    for (uint32_t cpu = 0, i = 0; cpu < DSI_MAX_CPUS; cpu++)
        if (dsi_cpu_mask_has(&mask, cpu))
            topology->cpus[i++] = (dsi_topology_cpu){cpu, UNKNOWN, UNKNOWN, UNKNOWN, 0};
    if (root[0] == 0 && dsi_topology_hwloc(topology))
        topology->source = "hwloc";
    else if (read_sys(root, topology))
        topology->source = "/sys";
    renumber(topology);
    topology->quota = dsi_cgroup_cpu_quota(root);
    return DSI_OK;
}

void dsi_topology_free(dsi_topology *topology) {
    dsi_sys_free(topology->cpus);
    *topology = (dsi_topology){0};
}

uint32_t dsi_topology_threads(const dsi_topology *topology) {
    double n = topology->n_cores;
    if (topology->quota > 0 && topology->quota < n) n = topology->quota;
    return n < 1 ? 1 : (uint32_t)n;
}

uint32_t dsi_default_threads(void) {
    dsi_topology topology;
    if (dsi_topology_read("", NULL, &topology, NULL) != DSI_OK) return 1;
    uint32_t n = dsi_topology_threads(&topology);
    dsi_topology_free(&topology);
    return n;
}

/* ---- Choosing ---- */

/* What has been chosen so far, so that the next one goes where least is. */
typedef struct crowd {
    uint32_t *nodes, *caches; /* [n_cpus] each: there are no more of them */
    bool *used;               /* [n_cpus] */
} crowd;

static bool is_better(const dsi_topology *t, const crowd *c, uint32_t a, uint32_t b) {
    const dsi_topology_cpu *x = &t->cpus[a], *y = &t->cpus[b];
    if (x->sibling != y->sibling) return x->sibling < y->sibling;
    if (c->nodes[x->node] != c->nodes[y->node]) return c->nodes[x->node] < c->nodes[y->node];
    if (c->caches[x->l3] != c->caches[y->l3]) return c->caches[x->l3] < c->caches[y->l3];
    return is_before(x, y);
}

bool dsi_topology_choose(const dsi_topology *topology, const dsi_cpu_mask *taken, uint32_t n,
                         uint32_t *chosen) {
    const dsi_topology *t = topology;
    uint32_t *counts = dsi_sys_calloc(3ull * t->n_cpus, sizeof *counts), n_chosen = 0;
    if (counts == NULL) return false;
    crowd c = {counts, counts + t->n_cpus, (bool *)(void *)(counts + 2 * (size_t)t->n_cpus)};
    for (; n_chosen < n; n_chosen++) {
        uint32_t best = UNKNOWN;
        for (uint32_t i = 0; i < t->n_cpus; i++) {
            if (c.used[i] || dsi_cpu_mask_has(taken, t->cpus[i].id)) continue;
            if (best == UNKNOWN || is_better(t, &c, i, best)) best = i;
        }
        if (best == UNKNOWN) break;
        c.used[best] = true;
        c.nodes[t->cpus[best].node]++;
        c.caches[t->cpus[best].l3]++;
        uint32_t at = n_chosen; /* into its place among the others */
        for (; at > 0 && is_before(&t->cpus[best], &t->cpus[chosen[at - 1]]); at--)
            chosen[at] = chosen[at - 1];
        chosen[at] = best;
    }
    dsi_sys_free(counts);
    return n_chosen == n;
}
