/* doctor_read.c: reads /proc, /sys and control groups below a root; takes nothing for granted. */
#include "../../lib/base/cgroup.h"
#include "doctor.h"
#include <stdlib.h>
#include <string.h>

enum { PATH_BYTES = DSI_CGROUP_PATH_BYTES };

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

static bool read_in(const doctor_facts *facts, const dsi_cgroup *g, const char *name, char *text,
                    size_t n_bytes) {
    char path[PATH_BYTES + 64];
    snprintf(path, sizeof path, "%s/%s", g->folder, name);
    return doctor_read(facts, path, text, n_bytes);
}

/* The limit of one folder, if it is tighter than *limit. */
static void take_limit(const doctor_facts *facts, const dsi_cgroup *g, bool two, uint64_t *limit,
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
    dsi_cgroup g;
    *limit = none;
    *used = 0;
    for (bool more = dsi_cgroup_find(facts->root, NULL, &g); more; more = dsi_cgroup_parent(&g))
        take_limit(facts, &g, true, limit, used);
    for (bool more = dsi_cgroup_find(facts->root, "memory", &g); more; more = dsi_cgroup_parent(&g))
        take_limit(facts, &g, false, limit, used);
    return *limit < none;
}
