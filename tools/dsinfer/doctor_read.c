/* doctor_read.c: reads /proc, /sys and control groups below a root; takes nothing for granted. */
#include "doctor.h"
#include <stdlib.h>
#include <string.h>

enum { PATH_BYTES = 2048 };

bool doctor_read(const doctor_facts *facts, const char *path, char *text, size_t n_bytes) {
    char whole[PATH_BYTES];
    int n = snprintf(whole, sizeof whole, "%s%s", facts->root, path);
    text[0] = 0;
    if (n < 0 || (size_t)n >= sizeof whole) return false;
    FILE *file = fopen(whole, "re");
    if (file == NULL) return false;
    size_t got = fread(text, 1, n_bytes - 1, file);
    bool ok = !ferror(file);
    fclose(file);
    text[got] = 0;
    while (got > 0 && (text[got - 1] == '\n' || text[got - 1] == ' ')) text[--got] = 0;
    return ok && text[0] != 0;
}

bool doctor_read_u64(const doctor_facts *facts, const char *path, uint64_t *value) {
    char text[64];
    return doctor_read(facts, path, text, sizeof text) && cli_read_u64(text, value);
}

bool doctor_key(const char *text, const char *key, uint64_t *value) {
    size_t n_key = strlen(key);
    for (const char *line = text; line != NULL; line = strchr(line, '\n')) {
        if (*line == '\n') line++;
        if (strncmp(line, key, n_key) != 0 || line[n_key] != ':') continue;
        const char *at = line + n_key + 1;
        char digits[24];
        while (*at == ' ' || *at == '\t') at++;
        size_t n = strspn(at, "0123456789");
        if (n == 0 || n >= sizeof digits) return false;
        memcpy(digits, at, n);
        digits[n] = 0;
        if (!cli_read_u64(digits, value)) return false;
        if (strncmp(at + n, " kB", 3) != 0) return true;
        if (*value > UINT64_MAX / 1024) return false;
        *value *= 1024;
        return true;
    }
    return false;
}

uint32_t doctor_list_count(const char *list) {
    uint64_t count = 0;
    for (const char *at = list; *at != 0;) {
        char *end;
        unsigned long first = strtoul(at, &end, 10), last = first;
        if (end == at || *at == '-' || *at == '+') return 0;
        if (*end == '-') {
            at = end + 1;
            last = strtoul(at, &end, 10);
            if (end == at || last < first) return 0;
        }
        if (*end != ',' && *end != 0) return 0;
        if (last > 1u << 20) return 0;
        count += last - first + 1;
        at = *end == ',' ? end + 1 : end;
    }
    return count > 1u << 20 ? 0 : (uint32_t)count;
}

/* ---- Control groups -------------------------------------------------------------------------- */

/* Field number `wanted` (from 0) of a line of mountinfo, copied without its escapes. */
static bool mount_field(const char *line, uint32_t wanted, char *field, size_t n_bytes) {
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

/* Where the hierarchy of `controller` (NULL: version 2) is mounted, and which part of it. */
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
        if (rest == NULL || !mount_field(rest + 3, 0, type, sizeof type)) continue;
        bool fits = controller == NULL ? strcmp(type, "cgroup2") == 0
                                       : strcmp(type, "cgroup") == 0 &&
                                             mount_field(rest + 3, 2, options, sizeof options) &&
                                             has_word(options, controller);
        if (fits && mount_field(one, 3, top, PATH_BYTES / 4) &&
            mount_field(one, 4, point, PATH_BYTES / 4)) {
            return true;
        }
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
        if (n >= sizeof list || n_path >= PATH_BYTES / 4) continue;
        memcpy(list, names + 1, n);
        list[n] = 0;
        if (controller == NULL ? n != 0 || line[0] != '0' : !has_word(list, controller)) continue;
        memcpy(path, at + 1, n_path);
        path[n_path] = 0;
        return true;
    }
    return false;
}

/* Folder of this process's group; cut_folder goes to its parent until the mount point is left. */
typedef struct group {
    char folder[PATH_BYTES];
    size_t n_mount;
} group;

static bool find_group(const doctor_facts *facts, const char *controller, group *g) {
    static char text[4 * DOCTOR_TEXT_BYTES];
    char point[PATH_BYTES / 4], top[PATH_BYTES / 4], path[PATH_BYTES / 4];
    if (!doctor_read(facts, "/proc/self/mountinfo", text, sizeof text)) return false;
    if (!find_mount(text, controller, point, top)) return false;
    if (!doctor_read(facts, "/proc/self/cgroup", text, sizeof text)) return false;
    if (!find_path(text, controller, path)) return false;
    /* In a container the mount shows a part of the tree, and the path may name the whole of it. */
    size_t n_top = strcmp(top, "/") == 0 ? 0 : strlen(top);
    const char *below = n_top > 0 && strncmp(path, top, n_top) == 0 ? path + n_top : path;
    if (strcmp(below, "/") == 0) below = "";
    g->n_mount = strlen(point);
    snprintf(g->folder, sizeof g->folder, "%s%s", point, below);
    return true;
}

static bool cut_folder(group *g) {
    char *slash = strrchr(g->folder, '/');
    if (slash == NULL || strlen(g->folder) <= g->n_mount) return false;
    *slash = 0;
    return true;
}

static bool read_in(const doctor_facts *facts, const group *g, const char *name, char *text,
                    size_t n_bytes) {
    char path[PATH_BYTES + 64];
    snprintf(path, sizeof path, "%s/%s", g->folder, name);
    return doctor_read(facts, path, text, n_bytes);
}

bool doctor_cpu_quota(const doctor_facts *facts, double *cpus) {
    group g;
    char quota[64], period[64];
    uint64_t q, p;
    double least = 0;
    bool more = find_group(facts, NULL, &g);
    for (; more; more = cut_folder(&g)) {
        if (!read_in(facts, &g, "cpu.max", quota, sizeof quota)) continue;
        char *blank = strchr(quota, ' ');
        if (blank == NULL) continue;
        *blank = 0; /* "max" is no number */
        if (!cli_read_u64(quota, &q) || !cli_read_u64(blank + 1, &p) || p == 0) continue;
        double value = (double)q / (double)p;
        if (least == 0 || value < least) least = value;
    }
    more = find_group(facts, "cpu", &g);
    for (; more; more = cut_folder(&g)) {
        if (!read_in(facts, &g, "cpu.cfs_quota_us", quota, sizeof quota)) continue;
        if (!read_in(facts, &g, "cpu.cfs_period_us", period, sizeof period)) continue;
        /* -1 is no number either */
        if (!cli_read_u64(quota, &q) || !cli_read_u64(period, &p) || p == 0) continue;
        double value = (double)q / (double)p;
        if (least == 0 || value < least) least = value;
    }
    *cpus = least;
    return least > 0;
}

/* The limit of one folder, if it is tighter than *limit. */
static void take_limit(const doctor_facts *facts, const group *g, bool two, uint64_t *limit,
                       uint64_t *used) {
    char text[DOCTOR_TEXT_BYTES];
    uint64_t here, now = 0, clean = 0;
    if (!read_in(facts, g, two ? "memory.max" : "memory.limit_in_bytes", text, sizeof text)) return;
    if (!cli_read_u64(text, &here) || here >= *limit) return;
    *limit = here;
    if (read_in(facts, g, two ? "memory.current" : "memory.usage_in_bytes", text, sizeof text)) {
        if (!cli_read_u64(text, &now)) now = 0;
    }
    if (read_in(facts, g, "memory.stat", text, sizeof text)) {
        const char *key = two ? "inactive_file " : "total_inactive_file ";
        const char *at = strncmp(text, key, strlen(key)) == 0 ? text : strstr(text, key);
        if (at != NULL) clean = strtoull(at + strlen(key), NULL, 10);
    }
    *used = now > clean ? now - clean : 0;
}

bool doctor_memory_limit(const doctor_facts *facts, uint64_t *limit, uint64_t *used) {
    /* Version 1 says "none" with a number near 2^63. */
    const uint64_t none = UINT64_C(1) << 60;
    group g;
    *limit = none;
    *used = 0;
    for (bool more = find_group(facts, NULL, &g); more; more = cut_folder(&g))
        take_limit(facts, &g, true, limit, used);
    for (bool more = find_group(facts, "memory", &g); more; more = cut_folder(&g))
        take_limit(facts, &g, false, limit, used);
    return *limit < none;
}
