/* cgroup.c: finds the control group of this process and what CPU time it may use. The files come
 * from the system or from who made the container: nothing about their form is taken for granted. */
#include "cgroup.h"

#include "sys.h"
#include <stdio.h>
#include <string.h>

enum { PATH_PART = DSI_CGROUP_PATH_BYTES / 4, MOUNTS_BYTES = 1 << 16 };

/* ---- Words of a line ---- */

/* Field number `wanted` (from 0), copied without its escapes. */
static bool take_field(const char *line, uint32_t wanted, char *field, size_t n_bytes) {
    for (uint32_t i = 0; i < wanted; i++) {
        line = strpbrk(line, " \n");
        if (line == NULL || *line == '\n') return false;
        line++;
    }
    size_t n = strcspn(line, " \n");
    if (n == 0 || n >= n_bytes) return false;
    memcpy(field, line, n);
    field[n] = 0;
    return true;
}

static bool has_word(const char *list, const char *word) {
    size_t n = strlen(word);
    for (const char *at = list; at != NULL; at = strchr(at, ',')) {
        if (*at == ',') at++;
        if (strncmp(at, word, n) == 0 && (at[n] == ',' || at[n] == 0)) return true;
    }
    return false;
}

/* A number and nothing else: "max" and "-1", no limit, are none. */
static bool take_number(const char *text, double *value) {
    size_t n = strspn(text, "0123456789");
    *value = 0;
    for (size_t i = 0; i < n; i++) *value = *value * 10 + (text[i] - '0');
    return n > 0 && n < 19 && (text[n] == 0 || text[n] == ' ' || text[n] == '\n');
}

/* ---- The group ---- */

/* Where the hierarchy of `controller` is mounted, and which part of it. */
static bool find_mount(const char *mounts, const char *controller, char *point, char *top) {
    for (const char *line = mounts; line != NULL && *line != 0;) {
        const char *end = strchr(line, '\n');
        char one[1024], type[32], options[256];
        size_t n = end == NULL ? strlen(line) : (size_t)(end - line);
        if (n >= sizeof one) n = sizeof one - 1;
        memcpy(one, line, n);
        one[n] = 0;
        line = end == NULL ? NULL : end + 1;
        const char *rest = strstr(one, " - ");
        if (rest == NULL || !take_field(rest + 3, 0, type, sizeof type)) continue;
        bool fits = controller == NULL ? strcmp(type, "cgroup2") == 0
                                       : strcmp(type, "cgroup") == 0 &&
                                             take_field(rest + 3, 2, options, sizeof options) &&
                                             has_word(options, controller);
        if (fits && take_field(one, 3, top, PATH_PART) && take_field(one, 4, point, PATH_PART))
            return true;
    }
    return false;
}

/* This process's path in the hierarchy, out of /proc/self/cgroup: "4:memory:/a/b", "0::/a/b". */
static bool find_path(const char *groups, const char *controller, char *path) {
    for (const char *line = groups; line != NULL; line = strchr(line, '\n')) {
        if (*line == '\n') line++;
        const char *names = strchr(line, ':'), *at = names == NULL ? NULL : strchr(names + 1, ':');
        const char *end = strchr(line, '\n');
        if (at == NULL || (end != NULL && at > end)) continue;
        char list[256];
        size_t n = (size_t)(at - names - 1), n_path = strcspn(at + 1, "\n");
        if (n >= sizeof list || n_path >= PATH_PART) continue;
        memcpy(list, names + 1, n);
        list[n] = 0;
        if (controller == NULL ? n != 0 || line[0] != '0' : !has_word(list, controller)) continue;
        memcpy(path, at + 1, n_path);
        path[n_path] = 0;
        return true;
    }
    return false;
}

static bool read_below(const char *root, const char *path, char *text, size_t n_bytes) {
    char whole[2 * DSI_CGROUP_PATH_BYTES];
    int n = snprintf(whole, sizeof whole, "%s%s", root, path);
    return n > 0 && (size_t)n < sizeof whole && dsi_sys_read_text(whole, text, n_bytes);
}

bool dsi_cgroup_find(const char *root, const char *controller, dsi_cgroup *group) {
    char point[PATH_PART], top[PATH_PART], path[PATH_PART];
    char *text = dsi_sys_calloc(1, MOUNTS_BYTES); /* hundreds of mounts in a host of containers */
    bool found = text != NULL && read_below(root, "/proc/self/mountinfo", text, MOUNTS_BYTES) &&
                 find_mount(text, controller, point, top) &&
                 read_below(root, "/proc/self/cgroup", text, MOUNTS_BYTES) &&
                 find_path(text, controller, path);
    dsi_sys_free(text);
    if (!found) return false;
    /* In a container the mount shows a part of the tree, and the path may name the whole of it. */
    size_t n_top = strcmp(top, "/") == 0 ? 0 : strlen(top);
    const char *below = n_top > 0 && strncmp(path, top, n_top) == 0 ? path + n_top : path;
    if (strcmp(below, "/") == 0) below = "";
    group->n_mount = strlen(point);
    snprintf(group->folder, sizeof group->folder, "%s%s", point, below);
    return true;
}

bool dsi_cgroup_parent(dsi_cgroup *group) {
    char *slash = strrchr(group->folder, '/');
    if (slash == NULL || strlen(group->folder) <= group->n_mount) return false;
    *slash = 0;
    return true;
}

/* ---- CPU time ---- */

static bool read_in(const char *root, const dsi_cgroup *g, const char *name, char text[64]) {
    char path[DSI_CGROUP_PATH_BYTES + 64];
    snprintf(path, sizeof path, "%s/%s", g->folder, name);
    return read_below(root, path, text, 64);
}

/* Quota and period of one folder: "250000 100000" in version 2, a file each in version 1. */
static bool folder_quota(const char *root, const dsi_cgroup *g, bool two, double *cpus) {
    char quota[64], period[64];
    double q, p;
    if (!read_in(root, g, two ? "cpu.max" : "cpu.cfs_quota_us", quota)) return false;
    const char *behind = period;
    if (two) {
        behind = strchr(quota, ' ');
        if (behind == NULL) return false;
        behind++;
    } else if (!read_in(root, g, "cpu.cfs_period_us", period)) {
        return false;
    }
    if (!take_number(quota, &q) || !take_number(behind, &p) || q <= 0 || p <= 0) return false;
    *cpus = q / p;
    return true;
}

double dsi_cgroup_cpu_quota(const char *root) {
    dsi_cgroup g;
    double least = 0, here;
    for (int version = 2; version >= 1; version--)
        for (bool more = dsi_cgroup_find(root, version == 2 ? NULL : "cpu", &g); more;
             more = dsi_cgroup_parent(&g))
            if (folder_quota(root, &g, version == 2, &here) && (least == 0 || here < least))
                least = here;
    return least;
}
