/* cgroup.h: the control group of this process, version 1 or 2: what a container may use. */
#ifndef DSI_LIB_BASE_CGROUP_H
#define DSI_LIB_BASE_CGROUP_H

#include "base.h"

enum { DSI_CGROUP_PATH_BYTES = 2048 };

/* A folder of the hierarchy, without the root in front of it. */
typedef struct dsi_cgroup {
    char folder[DSI_CGROUP_PATH_BYTES];
    size_t n_mount; /* bytes of the mount point, above which nothing is looked for */
} dsi_cgroup;

/* root: what is put before /proc and /sys, "" for this machine. controller: "cpu", "memory", or
 * NULL for version 2. False: there is no such hierarchy, or it is not to be seen. */
bool dsi_cgroup_find(const char *root, const char *controller, dsi_cgroup *group);
/* Goes to the parent; false at the mount point. */
bool dsi_cgroup_parent(dsi_cgroup *group);
/* CPUs that the group pays for (2.5 of them), the tightest of all parents; 0: no limit to be seen.
 */
double dsi_cgroup_cpu_quota(const char *root);

#endif
