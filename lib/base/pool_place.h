/* pool_place.h: on which CPUs the threads of a pool run; for pool.c alone. */
#ifndef DSI_LIB_BASE_POOL_PLACE_H
#define DSI_LIB_BASE_POOL_PLACE_H

#include "pool.h"
#include "sys.h"
#include "topology.h"

typedef enum dsi_place_kind {
    DSI_PLACE_FREE,  /* wherever the system puts them */
    DSI_PLACE_NODES, /* each on any CPU of its memory node */
    DSI_PLACE_CPUS   /* each on a CPU of its own */
} dsi_place_kind;

typedef struct dsi_pool_place {
    dsi_place_kind kind;
    uint32_t n;             /* threads */
    bool reserved;          /* the CPUs are this pool's until dsi_pool_place_free */
    uint32_t *cpus;         /* [n]; [0] is kept free for the caller, who is never moved himself */
    uint32_t *node, *group; /* [n] ascending; threads of one group meet first */
    const dsi_topology *topology; /* until the pool is made */
} dsi_pool_place;

/* Zeroes and fills in *place for n threads; false if memory is short. */
bool dsi_pool_place_choose(dsi_pool_place *place, uint32_t n, const dsi_pool_options *options);
/* Binds the thread with this index (not 0), as chosen; a refusal is logged. */
void dsi_pool_place_worker(dsi_pool_place *place, uint32_t index, pthread_t thread,
                           const dsi_log *log);
/* Exchanges the CPUs of thread `index` and of the caller; false if the system refused. */
bool dsi_pool_place_swap(dsi_pool_place *place, uint32_t index, pthread_t thread);
void dsi_pool_place_free(dsi_pool_place *place, bool in_child);

#endif
