/* doctor_memory.c: judges memory: how much is free for the model's plan, where it lies, in which
 * pages, and what the limits of this process leave of it. */
#include "doctor.h"
#include <stdlib.h>
#include <string.h>

enum { MAX_NODES = 64 };

static bool planned(const doctor_report *r) {
    return r->facts->model != NULL && *r->facts->model_error == 0;
}

/* Bytes that must be there: what is not a mapped file. */
static uint64_t must_have(const doctor_report *r) {
    const dsi_memory_plan *plan = &r->facts->plan;
    return plan->n_bytes_kv + plan->n_bytes_scratch;
}

static void judge_plan(doctor_report *r, doctor_line *line, uint64_t available) {
    uint64_t total = r->facts->plan.n_bytes_total;
    doctor_want(line,
                doctor_tr(r, "the plan: %s, of which weights %s may stay on disk",
                          "内存计划：%s，其中权重 %s 可以留在磁盘上"),
                cli_bytes_text(total).text, cli_bytes_text(r->facts->plan.n_bytes_weights).text);
    if (available >= total) return;
    line->verdict = available < must_have(r) ? DOCTOR_FAIL : DOCTOR_WARN;
    doctor_mend(line, "dsinfer inspect -m %.150s --context 1024 --chunk 64", r->facts->model);
}

/* MemAvailable and the control group, each on its line. */
static void check_free(doctor_report *r, const char *meminfo) {
    uint64_t total = 0, available = 0, limit = 0, used = 0;
    if (!doctor_key(meminfo, "MemTotal", &total) ||
        !doctor_key(meminfo, "MemAvailable", &available) || total == 0) {
        doctor_unknown(r, "memory.free", "/proc/meminfo");
    } else {
        bool little = available < total / 10;
        doctor_line *line = doctor_add(r, "memory.free", little ? DOCTOR_WARN : DOCTOR_OK,
                                       doctor_tr(r, "%s of %s available", "可用 %s，共 %s"),
                                       cli_bytes_text(available).text, cli_bytes_text(total).text);
        if (little) {
            doctor_want(line, doctor_tr(r, "a tenth of it free", "至少十分之一空闲"));
            doctor_mend(line, "ps -eo rss,pid,comm --sort=-rss | head");
        }
        if (planned(r)) judge_plan(r, line, available);
    }
    if (!doctor_memory_limit(r->facts, &limit, &used)) {
        doctor_add(r, "memory.limit", DOCTOR_OK, "%s",
                   doctor_tr(r, "no limit of a control group", "控制组没有限额"));
        return;
    }
    uint64_t left = limit > used ? limit - used : 0;
    bool little = left < limit / 10;
    doctor_line *line = doctor_add(
        r, "memory.limit", little ? DOCTOR_WARN : DOCTOR_OK,
        doctor_tr(r, "the control group allows %s, %s are left", "控制组限额 %s，剩余 %s"),
        cli_bytes_text(limit).text, cli_bytes_text(left).text);
    if (little) {
        doctor_want(line, doctor_tr(r, "a tenth of it left", "至少剩余十分之一"));
        doctor_mend(line, "docker update --memory 64g CONTAINER || systemctl set-property UNIT "
                          "MemoryMax=64G");
    }
    if (planned(r)) judge_plan(r, line, left);
}

static void check_swap(doctor_report *r, const char *meminfo) {
    uint64_t total = 0, left = 0;
    if (!doctor_key(meminfo, "SwapTotal", &total) || !doctor_key(meminfo, "SwapFree", &left)) {
        doctor_unknown(r, "memory.swap", "/proc/meminfo");
        return;
    }
    if (total == 0) {
        doctor_add(r, "memory.swap", DOCTOR_OK, "%s", doctor_tr(r, "none", "没有"));
        return;
    }
    uint64_t used = total > left ? total - left : 0;
    bool much = used > total / 4;
    doctor_line *line = doctor_add(r, "memory.swap", much ? DOCTOR_WARN : DOCTOR_OK,
                                   doctor_tr(r, "%s of %s in use", "已用 %s，共 %s"),
                                   cli_bytes_text(used).text, cli_bytes_text(total).text);
    if (!much) return;
    doctor_want(line, doctor_tr(r, "at most a quarter: a KV cache on disk makes every token wait",
                                "不超过四分之一：KV 缓存若被换出，每个 token 都要等磁盘"));
    doctor_mend(line, "sudo sysctl vm.swappiness=1 && sudo swapoff -a && sudo swapon -a");
}

static void check_commit(doctor_report *r, const char *meminfo) {
    static const char path[] = "/proc/sys/vm/overcommit_memory";
    uint64_t mode, limit = 0, used = 0;
    if (!doctor_read_u64(r->facts, path, &mode)) {
        doctor_unknown(r, "memory.overcommit", path);
        return;
    }
    if (mode != 2) {
        doctor_add(r, "memory.overcommit", DOCTOR_OK, "%llu (%s)", (unsigned long long)mode,
                   mode == 0 ? doctor_tr(r, "heuristic", "启发式")
                             : doctor_tr(r, "always", "总是允许"));
        return;
    }
    doctor_key(meminfo, "CommitLimit", &limit);
    doctor_key(meminfo, "Committed_AS", &used);
    uint64_t left = limit > used ? limit - used : 0;
    uint64_t need = planned(r) ? must_have(r) : UINT64_C(1) << 30;
    doctor_line *line =
        doctor_add(r, "memory.overcommit", left < need ? DOCTOR_FAIL : DOCTOR_OK,
                   doctor_tr(r, "2 (strict), %s may still be promised", "2（严格），还可申请 %s"),
                   cli_bytes_text(left).text);
    if (left >= need) return;
    doctor_want(line, doctor_tr(r, "%s for KV cache and scratch", "KV 缓存与工作区需 %s"),
                cli_bytes_text(need).text);
    doctor_mend(line, "sudo sysctl vm.overcommit_memory=0");
}

/* ---- Where memory is, in which pages --------------------------------------------------------- */

static void check_nodes(doctor_report *r) {
    static const char path[] = "/sys/devices/system/node/online";
    char text[DOCTOR_TEXT_BYTES], list[256], policy[64] = "default", parts[128] = "";
    if (!doctor_read(r->facts, path, list, sizeof list)) {
        doctor_unknown(r, "memory.numa", path);
        return;
    }
    uint32_t n = doctor_list_count(list), n_free = 0;
    size_t at = 0;
    for (uint32_t node = 0; node < MAX_NODES; node++) {
        char file[64], key[32];
        uint64_t bytes;
        snprintf(file, sizeof file, "/sys/devices/system/node/node%u/meminfo", node);
        snprintf(key, sizeof key, "Node %u MemFree", node);
        if (!doctor_read(r->facts, file, text, sizeof text) || !doctor_key(text, key, &bytes))
            continue;
        if (at < sizeof parts)
            at += (size_t)snprintf(parts + at, sizeof parts - at, "%s%s", n_free > 0 ? " + " : "",
                                   cli_bytes_text(bytes).text);
        n_free++;
    }
    /* The second word of any mapping is the policy of the process. */
    if (doctor_read(r->facts, "/proc/self/numa_maps", text, sizeof text))
        sscanf(text, "%*s %63s", policy);
    bool spread = n <= 1 || strncmp(policy, "interleave", 10) == 0 ||
                  strncmp(policy, "weighted", 8) == 0 || strncmp(policy, "bind", 4) == 0;
    doctor_line *line =
        doctor_add(r, "memory.numa",
                   n == 0   ? DOCTOR_UNKNOWN
                   : spread ? DOCTOR_OK
                            : DOCTOR_WARN,
                   doctor_tr(r, "%u node(s), free %s, policy %s", "%u 个节点，空闲 %s，策略 %s"), n,
                   n_free > 0 ? parts : "?", policy);
    if (spread) return;
    doctor_want(line, doctor_tr(r, "interleave: else the first reader's node holds all weights",
                                "interleave：否则权重都落在首个读取者的节点上"));
    doctor_mend(line, "numactl --interleave=all dsinfer ...");
}

static void check_huge(doctor_report *r, const char *meminfo) {
    static const char path[] = "/sys/kernel/mm/transparent_hugepage/enabled";
    char text[64], mode[16] = "";
    const char *open = doctor_read(r->facts, path, text, sizeof text) ? strchr(text, '[') : NULL;
    if (open != NULL) sscanf(open, "[%15[a-z]]", mode);
    if (*mode == 0) {
        doctor_unknown(r, "memory.thp", path);
    } else {
        bool all = strcmp(mode, "always") == 0;
        doctor_line *line = doctor_add(r, "memory.thp", all ? DOCTOR_OK : DOCTOR_WARN, "%s", mode);
        if (!all) {
            doctor_want(line, doctor_tr(r, "always: KV cache and scratch in pages of 2 MiB",
                                        "always：KV 缓存与工作区用 2 MiB 的页"));
            doctor_mend(line, "echo always | sudo tee %s", path);
        }
    }
    uint64_t count = 0, left = 0, size = 0, total = 0;
    if (!doctor_key(meminfo, "HugePages_Total", &count) ||
        !doctor_key(meminfo, "HugePages_Free", &left) ||
        !doctor_key(meminfo, "Hugepagesize", &size) || size > UINT64_C(1) << 40 ||
        count > UINT64_C(1) << 20 || left > count) {
        doctor_unknown(r, "memory.hugetlb", "/proc/meminfo");
        return;
    }
    doctor_key(meminfo, "MemTotal", &total);
    bool wasted = left * size > total / 50;
    doctor_line *line = doctor_add(
        r, "memory.hugetlb", wasted ? DOCTOR_WARN : DOCTOR_OK,
        doctor_tr(r, "%s of %s reserved pages free, %s each", "预留大页空闲 %s / %s，每页 %s"),
        cli_count_text(left).text, cli_count_text(count).text, cli_bytes_text(size).text);
    if (!wasted) return;
    doctor_want(line, doctor_tr(r, "not reserved in vain: dsinfer does not use them",
                                "不应白白预留：dsinfer 不使用预留大页"));
    doctor_mend(line, "sudo sysctl vm.nr_hugepages=0");
}

/* ---- Limits ---------------------------------------------------------------------------------- */

/* The soft limit of a line of /proc/self/limits; UINT64_MAX: unlimited. */
static bool soft_limit(const char *limits, const char *name, uint64_t *value) {
    const char *at = strstr(limits, name);
    char word[32];
    if (at == NULL || sscanf(at + strlen(name), " %31s", word) != 1) return false;
    *value = UINT64_MAX;
    return strcmp(word, "unlimited") == 0 || cli_read_u64(word, value);
}

static const char *bytes_or_none(const doctor_report *r, uint64_t value, cli_number *number) {
    *number = cli_bytes_text(value);
    return value == UINT64_MAX ? doctor_tr(r, "unlimited", "无限制") : number->text;
}

static void check_limits(doctor_report *r) {
    static const char path[] = "/proc/self/limits";
    char text[DOCTOR_TEXT_BYTES];
    uint64_t value;
    cli_number number;
    doctor_line *line;
    bool seen = doctor_read(r->facts, path, text, sizeof text);
    if (seen && soft_limit(text, "Max open files", &value)) {
        bool little = value < 256, none = value < 16;
        line = doctor_add(r, "limit.files",
                          none     ? DOCTOR_FAIL
                          : little ? DOCTOR_WARN
                                   : DOCTOR_OK,
                          "%s",
                          value == UINT64_MAX ? doctor_tr(r, "unlimited", "无限制")
                                              : cli_count_text(value).text);
        doctor_want(line, doctor_tr(r, "at least 256; mapped weights hold none",
                                    "至少 256；映射的权重不占用"));
        if (little) doctor_mend(line, "ulimit -n 4096");
    } else {
        doctor_unknown(r, "limit.files", path);
    }
    if (seen && soft_limit(text, "Max locked memory", &value)) {
        bool little = value < 1 << 20;
        line = doctor_add(r, "limit.memlock", little ? DOCTOR_WARN : DOCTOR_OK, "%s",
                          bytes_or_none(r, value, &number));
        doctor_want(line,
                    doctor_tr(r, "at least 1 MiB; more only if the host program locks its memory",
                              "至少 1 MiB；只有宿主程序要锁定内存时才需更多"));
        if (little) doctor_mend(line, "ulimit -l unlimited");
    } else {
        doctor_unknown(r, "limit.memlock", path);
    }
    if (seen && soft_limit(text, "Max address space", &value)) {
        /* Programs, libraries and stacks of threads take their part of it. */
        uint64_t plan = r->facts->plan.n_bytes_total;
        uint64_t need = planned(r) ? plan + (512u << 20) : UINT64_MAX;
        bool fails = planned(r) && value < plan + (32u << 20);
        line = doctor_add(r, "limit.address",
                          fails          ? DOCTOR_FAIL
                          : value < need ? DOCTOR_WARN
                                         : DOCTOR_OK,
                          "%s", bytes_or_none(r, value, &number));
        if (value >= need) return;
        doctor_want(line, doctor_tr(r, "%s: weights are mapped whole", "%s：权重整个映射进来"),
                    bytes_or_none(r, need, &number));
        doctor_mend(line, "ulimit -v unlimited");
    } else {
        doctor_unknown(r, "limit.address", path);
    }
}

void doctor_check_memory(doctor_report *report) {
    static char meminfo[DOCTOR_TEXT_BYTES];
    if (!doctor_read(report->facts, "/proc/meminfo", meminfo, sizeof meminfo)) meminfo[0] = 0;
    check_free(report, meminfo);
    check_swap(report, meminfo);
    check_commit(report, meminfo);
    check_nodes(report);
    check_huge(report, meminfo);
    check_limits(report);
}
