/* topology.h: the CPUs that this thread may use: which of them are one core, which share a cache,
 * which have memory of their own; and what a control group allows of them. */
#ifndef DSI_LIB_BASE_TOPOLOGY_H
#define DSI_LIB_BASE_TOPOLOGY_H

#include "sys.h"

typedef struct dsi_topology_cpu {
    uint32_t id;      /* the kernel's number */
    uint32_t core;    /* 0 .. n_cores-1 */
    uint32_t l3;      /* 0 .. n_l3-1: those that share a last-level cache, within one node */
    uint32_t node;    /* 0 .. n_nodes-1: those that are near the same memory */
    uint32_t sibling; /* 0: the first of its core that may be used; 1: its second thread; ... */
} dsi_topology_cpu;

typedef struct dsi_topology {
    uint32_t n_cpus, n_cores, n_l3, n_nodes; /* at least 1 */
    dsi_topology_cpu *cpus;                  /* [n_cpus] by id */
    double quota;                            /* CPUs that the control group pays for; 0: no limit */
    const char *source;                      /* "hwloc", "/sys", "affinity" */
} dsi_topology;

/* root: "" for this machine; else what is put before /proc and /sys, and hwloc is not asked. What
 * cannot be read, or contradicts itself, is left out: then a CPU is a core, and all share a cache
 * and a node. allowed: NULL for the CPUs of this thread. Errors: NOMEM. */
dsi_status dsi_topology_read(const char *root, const dsi_cpu_mask *allowed, dsi_topology *topology,
                             dsi_error *error);
void dsi_topology_free(dsi_topology *topology); /* zeroed: nothing */

/* One thread a core, none beyond the quota: a thread that is stopped for the rest of a period holds
 * up the others at the next barrier. At least 1. */
uint32_t dsi_topology_threads(const dsi_topology *topology);
/* The same for this machine and this thread; 1 if memory is short. */
uint32_t dsi_default_threads(void);

/* Chooses n of the CPUs that are not `taken`: spread over nodes, then caches, second threads of a
 * core last. chosen[n]: indices into topology->cpus, in the order of nodes, caches, cores, so that
 * neighbours are near. False if there are not so many. */
bool dsi_topology_choose(const dsi_topology *topology, const dsi_cpu_mask *taken, uint32_t n,
                         uint32_t *chosen);

/* "0-3,8": adds the numbers to the mask. False, with the mask undefined, if it is no such list or
 * names a CPU beyond DSI_MAX_CPUS. */
bool dsi_cpu_list(const char *list, dsi_cpu_mask *mask);

/* topology_hwloc.c, for topology.c: fills in core, l3 and node of the CPUs where hwloc knows them;
 * false if the library is not there. */
bool dsi_topology_hwloc(dsi_topology *topology);

#endif
