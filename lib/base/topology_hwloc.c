/* topology_hwloc.c: asks libhwloc, if this machine has it, for cores, caches and nodes. It is found
 * at run time; the few functions and the first fields of its objects that are used here have been
 * the same in all of its versions 2.x, and others are refused. */
#include "topology.h"

#include <stddef.h>
#include <string.h>

/* The names are those of hwloc.h. */
enum { HWLOC_OBJ_CORE = 2, HWLOC_OBJ_L3CACHE = 6, HWLOC_OBJ_NUMANODE = 13 };
enum { API_MAJOR = 2, API_WITH_FLAG = 0x20500, MAX_OBJECTS = UINT16_MAX };
#define DONT_CHANGE_BINDING (1ul << 6) /* without it, it may move this thread from CPU to CPU */

typedef struct hwloc_topology hwloc_topology;
typedef struct hwloc_bitmap hwloc_bitmap;
typedef struct hwloc_obj {
    int type;
    char *subtype;
    unsigned os_index;
    char *name;
    uint64_t total_memory;
    void *attr;
    int depth;
    unsigned logical_index;
    void *cousins_and_parent[3];
    unsigned sibling_rank;
    void *siblings[2];
    unsigned arity;
    void *children[3];
    int symmetric_subtree;
    unsigned memory_arity;
    void *memory_first_child;
    unsigned io_arity;
    void *io_first_child;
    unsigned misc_arity;
    void *misc_first_child;
    const hwloc_bitmap *cpuset;
} hwloc_obj;
_Static_assert(offsetof(hwloc_obj, cpuset) == 184, "as in hwloc 2 on 64-bit machines");

typedef struct hwloc {
    unsigned (*get_api_version)(void);
    int (*topology_init)(hwloc_topology **);
    int (*topology_set_flags)(hwloc_topology *, unsigned long);
    int (*topology_load)(hwloc_topology *);
    void (*topology_destroy)(hwloc_topology *);
    int (*get_type_depth)(hwloc_topology *, int);
    hwloc_obj *(*get_obj_by_depth)(hwloc_topology *, int, unsigned);
    int (*bitmap_next)(const hwloc_bitmap *, int);
} hwloc;

static bool bind(void *library, hwloc *h) {
    static const char *const names[] = {
        "hwloc_get_api_version",  "hwloc_topology_init",    "hwloc_topology_set_flags",
        "hwloc_topology_load",    "hwloc_topology_destroy", "hwloc_get_type_depth",
        "hwloc_get_obj_by_depth", "hwloc_bitmap_next",
    };
    void *found[sizeof names / sizeof names[0]];
    _Static_assert(sizeof found == sizeof *h, "a name for each function, in their order");
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        found[i] = dsi_sys_library_symbol(library, names[i]);
        if (found[i] == NULL) return false;
    }
    memcpy(h, found, sizeof *h);
    return h->get_api_version() >> 16 == API_MAJOR;
}

/* Loading takes milliseconds and drags in hwloc's plug-ins, and the machine stays the same: it is
 * asked once in a process. Object + 1 of every CPU, 0 if it has none. */
enum { CORE, L3, NODE, N_KINDS };
static uint16_t objects[N_KINDS][DSI_MAX_CPUS];
static atomic_uint state; /* of `objects` */
enum { EMPTY, FILLING, FILLED };

/* All objects of one type, each as the number of its CPUs. */
static void take_objects(const hwloc *h, hwloc_topology *from, int type, uint16_t *to) {
    int depth = h->get_type_depth(from, type);
    for (unsigned i = 0; i < MAX_OBJECTS; i++) {
        const hwloc_obj *object = h->get_obj_by_depth(from, depth, i);
        if (object == NULL) return;
        if (object->cpuset == NULL) continue;
        for (int cpu = h->bitmap_next(object->cpuset, -1); cpu >= 0 && cpu < DSI_MAX_CPUS;
             cpu = h->bitmap_next(object->cpuset, cpu))
            to[cpu] = (uint16_t)(i + 1);
    }
}

static bool ask(const hwloc *h) {
    hwloc_topology *from;
    if (h->topology_init(&from) != 0) return false;
    if (h->get_api_version() >= API_WITH_FLAG) h->topology_set_flags(from, DONT_CHANGE_BINDING);
    bool loaded = h->topology_load(from) == 0;
    if (loaded) {
        take_objects(h, from, HWLOC_OBJ_CORE, objects[CORE]);
        take_objects(h, from, HWLOC_OBJ_L3CACHE, objects[L3]);
        take_objects(h, from, HWLOC_OBJ_NUMANODE, objects[NODE]);
    }
    h->topology_destroy(from);
    return loaded;
}

static bool fill(void) {
    hwloc h;
    void *library = dsi_sys_library_open("libhwloc.so.15", NULL, NULL, 0); /* the soname of 2.x */
    return library != NULL && bind(library, &h) && ask(&h);
}

/* False while another thread fills the table: that one caller is content with /sys. */
static bool be_filled(void) {
    unsigned before = EMPTY;
    if (!atomic_compare_exchange_strong(&state, &before, FILLING)) return before == FILLED;
    bool filled = fill();
    atomic_store(&state, filled ? FILLED : EMPTY);
    return filled;
}

bool dsi_topology_hwloc(dsi_topology *topology) {
    if (!be_filled()) return false;
    for (uint32_t i = 0; i < topology->n_cpus; i++) {
        dsi_topology_cpu *cpu = &topology->cpus[i];
        if (objects[CORE][cpu->id]) cpu->core = objects[CORE][cpu->id];
        if (objects[L3][cpu->id]) cpu->l3 = objects[L3][cpu->id];
        if (objects[NODE][cpu->id]) cpu->node = objects[NODE][cpu->id];
    }
    return true;
}
