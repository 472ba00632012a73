/* doctor_checks.c: judges processor, kernels, clock, limits and disk; memory is in
 * doctor_memory.c. A check that cannot see what it needs says "unknown" and is no failure. */
#include "../../kernels/kernels.h"
#include "../../lib/base/topology.h"
#include "doctor.h"
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

/* ---- Lines ----------------------------------------------------------------------------------- */

const char *doctor_tr(const doctor_report *report, const char *en, const char *zh) {
    return report->facts->zh ? zh : en;
}

doctor_line *doctor_add(doctor_report *report, const char *id, uint32_t verdict, const char *format,
                        ...) {
    if (report->n_lines < DOCTOR_LINES) report->n_lines++;
    doctor_line *line = &report->lines[report->n_lines - 1];
    *line = (doctor_line){.id = id, .verdict = verdict};
    va_list list;
    va_start(list, format);
    vsnprintf(line->value, sizeof line->value, format, list);
    va_end(list);
    return line;
}

void doctor_want(doctor_line *line, const char *format, ...) {
    va_list list;
    va_start(list, format);
    vsnprintf(line->want, sizeof line->want, format, list);
    va_end(list);
}

void doctor_mend(doctor_line *line, const char *format, ...) {
    va_list list;
    va_start(list, format);
    vsnprintf(line->mend, sizeof line->mend, format, list);
    va_end(list);
}

doctor_line *doctor_unknown(doctor_report *report, const char *id, const char *path) {
    return doctor_add(report, id, DOCTOR_UNKNOWN,
                      doctor_tr(report, "unknown: %s cannot be read", "未知：无法读取 %s"), path);
}

/* ---- System ---------------------------------------------------------------------------------- */

static void check_kernel(doctor_report *r) {
    static const char path[] = "/proc/sys/kernel/osrelease";
    char text[128], *end;
    if (!doctor_read(r->facts, path, text, sizeof text)) {
        doctor_unknown(r, "kernel", path);
        return;
    }
    unsigned long major = strtoul(text, &end, 10), minor = 0;
    if (end != text && *end == '.') minor = strtoul(end + 1, NULL, 10);
    bool old = major < 4 || (major == 4 && minor < 18);
    doctor_line *line = doctor_add(r, "kernel", old ? DOCTOR_WARN : DOCTOR_OK, "Linux %s", text);
    doctor_want(line, doctor_tr(r, "4.18 or newer is tested", "已测试的版本：4.18 及以上"));
    if (old) doctor_mend(line, "sudo apt-get dist-upgrade || sudo dnf upgrade");
}

static void check_libc(doctor_report *r) {
    if (*r->facts->libc == 0)
        doctor_add(r, "libc", DOCTOR_UNKNOWN,
                   doctor_tr(r, "unknown: not glibc", "未知：不是 glibc"));
    else
        doctor_add(r, "libc", DOCTOR_OK, "%s", r->facts->libc);
}

static bool is_utf8(const char *locale) {
    for (; *locale != 0; locale++)
        if (strncasecmp(locale, "utf-8", 5) == 0 || strncasecmp(locale, "utf8", 4) == 0)
            return true;
    return false;
}

static void check_locale(doctor_report *r) {
    const char *locale = r->facts->locale;
    bool right = is_utf8(locale);
    doctor_line *line = doctor_add(r, "locale", right ? DOCTOR_OK : DOCTOR_WARN, "%s",
                                   *locale == 0 ? doctor_tr(r, "none (C)", "未设置（C）") : locale);
    doctor_want(line, doctor_tr(r, "UTF-8: prompts and answers are", "UTF-8：提示和回答都用它"));
    if (!right) doctor_mend(line, "export LC_ALL=C.UTF-8");
}

static void check_libcrypto(doctor_report *r) {
    const char *version = r->facts->libcrypto;
    if (*version != 0) {
        doctor_add(r, "libcrypto", DOCTOR_OK, "%s", version);
        return;
    }
    doctor_line *line = doctor_add(r, "libcrypto", DOCTOR_WARN, "%s", doctor_tr(r, "none", "没有"));
    doctor_want(line, doctor_tr(r, "needed for dsinfer verify --manifest alone",
                                "只有 dsinfer verify --manifest 需要它"));
    doctor_mend(line, "sudo apt-get install -y openssl || sudo dnf install -y openssl-libs");
}

/* ---- Processor ------------------------------------------------------------------------------- */

static void check_processor(doctor_report *r) {
    static const char path[] = "/proc/cpuinfo";
    static char text[4 * DOCTOR_TEXT_BYTES];
    const char *name = NULL;
    if (!doctor_read(r->facts, path, text, sizeof text)) {
        doctor_unknown(r, "cpu", path);
        return;
    }
    static const char *const keys[] = {"model name", "Model Name",
                                       "CPU part"}; /* x86, ARM, Loong */
    for (size_t i = 0; i < 3 && name == NULL; i++) name = strstr(text, keys[i]);
    if (name != NULL) name = strchr(name, ':');
    if (name != NULL) name += strspn(name, ": \t\n");
    if (name == NULL || *name == 0) {
        doctor_add(r, "cpu", DOCTOR_UNKNOWN,
                   doctor_tr(r, "unknown: %s names none", "未知：%s 没有写明"), path);
        return;
    }
    doctor_add(r, "cpu", DOCTOR_OK, "%.*s", (int)strcspn(name, "\n"), name);
}

static void check_kernel_set(doctor_report *r) {
    const doctor_facts *f = r->facts;
    bool vector = (f->isa & ~(uint32_t)DSI_ISA_REF) != 0;
    doctor_line *line = doctor_add(
        r, "kernels", vector ? DOCTOR_OK : DOCTOR_WARN, "%s; %s%s%s%s%s%s", f->kernels,
        doctor_tr(r, "this CPU has ref", "本机支持 ref"), f->isa & DSI_ISA_AVX2 ? ", avx2" : "",
        f->isa & DSI_ISA_AVX512 ? ", avx512" : "",
        f->isa & DSI_ISA_AVX512VNNI ? ", avx512vnni" : "",
        f->isa & DSI_ISA_AVX512BF16 ? ", avx512bf16" : "", f->isa & DSI_ISA_AMX ? ", amx" : "");
    if (vector) return;
    doctor_want(line, doctor_tr(r, "AVX2, FMA and F16C, or it is tens of times slower",
                                "AVX2、FMA、F16C，否则慢几十倍"));
    doctor_mend(line, doctor_tr(r,
                                "in a virtual machine: qemu -cpu host, or <cpu mode="
                                "'host-passthrough'/>",
                                "虚拟机请用 qemu -cpu host 或 <cpu mode='host-passthrough'/>"));
}

static void check_selftest(doctor_report *r) {
    const doctor_facts *f = r->facts;
    doctor_line *line;
    if (f->selftest_seconds < 0) {
        line = doctor_add(r, "selftest", DOCTOR_FAIL, "%s",
                          doctor_tr(r, "no memory for the self-test", "自检所需内存不足"));
        doctor_mend(line, "free -h");
        return;
    }
    double ms = f->selftest_seconds * 1e3;
    if (f->n_wrong > 0) {
        line = doctor_add(r, "selftest", DOCTOR_WARN,
                          doctor_tr(r, "%u of %u kernels are wrong here and replaced, %.1f ms: %s",
                                    "%u / %u 个算子在本机结果错误，已被替换，%.1f 毫秒：%s"),
                          f->n_wrong, f->n_kernels, ms, f->wrong);
        doctor_want(line, doctor_tr(r, "0 wrong; answers stay right and may be slower",
                                    "0 个错误；回答仍然正确，可能变慢"));
        doctor_mend(line, "dsinfer doctor --json > doctor.json");
        return;
    }
    bool slow = f->selftest_seconds > 0.2;
    line = doctor_add(r, "selftest", slow ? DOCTOR_WARN : DOCTOR_OK,
                      doctor_tr(r, "%u kernels equal the reference, %.1f ms",
                                "%u 个算子与参考实现一致，%.1f 毫秒"),
                      f->n_kernels, ms);
    doctor_want(line, doctor_tr(r, "at most 200 ms", "不超过 200 毫秒"));
    if (slow) doctor_mend(line, "uptime");
}

/* Cores, caches and nodes behind the allowed CPUs, the quota, and the threads that come of it. */
static void add_topology(doctor_report *r, doctor_line *line, const char *allowed) {
    dsi_cpu_mask mask = {{0}};
    dsi_topology t;
    if (!dsi_cpu_list(allowed, &mask) ||
        dsi_topology_read(r->facts->root, &mask, &t, NULL) != DSI_OK)
        return;
    size_t at = strlen(line->value);
    at += (size_t)snprintf(
        line->value + at, sizeof line->value - at,
        doctor_tr(r, "; %u cores, %u L3, %u nodes by %s", "；%u 核，%u 个 L3，%u 个节点（%s）"),
        t.n_cores, t.n_l3, t.n_nodes, t.source);
    if (t.quota > 0)
        at += (size_t)snprintf(
            line->value + at, sizeof line->value - at,
            doctor_tr(r, "; the control group pays for %.2f", "；控制组配额 %.2f 个"), t.quota);
    snprintf(line->value + at, sizeof line->value - at,
             doctor_tr(r, "; threads by default: %u", "；默认线程数 %u"), dsi_topology_threads(&t));
    if (t.quota > 0 && t.quota < t.n_cores) {
        line->verdict = DOCTOR_WARN;
        doctor_want(line, doctor_tr(r, "a quota for every core: it is what leaves the others idle",
                                    "配额不少于核数：其余的核因配额而闲置"));
        doctor_mend(line,
                    "docker update --cpus %u CONTAINER || systemctl set-property UNIT "
                    "CPUQuota=%u00%%",
                    t.n_cores, t.n_cores);
    }
    dsi_topology_free(&t);
}

static void check_cpus(doctor_report *r) {
    static const char path[] = "/proc/self/status",
                      online_path[] = "/sys/devices/system/cpu/online";
    char text[DOCTOR_TEXT_BYTES], online[256];
    const char *list = NULL;
    if (doctor_read(r->facts, path, text, sizeof text)) list = strstr(text, "Cpus_allowed_list:");
    char allowed[1024] = "";
    if (list != NULL) sscanf(list, "Cpus_allowed_list: %1023s", allowed);
    uint32_t n = doctor_list_count(allowed), n_online = 0;
    if (doctor_read(r->facts, online_path, online, sizeof online))
        n_online = doctor_list_count(online);
    if (n == 0) {
        doctor_unknown(r, "cpus", path);
        return;
    }
    doctor_line *line =
        n_online == 0
            ? doctor_add(r, "cpus", DOCTOR_OK, doctor_tr(r, "%u allowed", "可用 %u 个"), n)
            : doctor_add(r, "cpus", DOCTOR_OK,
                         doctor_tr(r, "%u allowed of %u", "可用 %u 个，共 %u 个"), n, n_online);
    add_topology(r, line, allowed);
}

/* ---- Clock ----------------------------------------------------------------------------------- */

static void check_governor(doctor_report *r) {
    static const char path[] = "/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor";
    char text[64];
    if (!doctor_read(r->facts, path, text, sizeof text)) {
        doctor_add(r, "clock.governor", DOCTOR_UNKNOWN, "%s",
                   doctor_tr(r, "unknown: not shown here, as in most virtual machines",
                             "未知：本机不显示，虚拟机多是如此"));
        return;
    }
    bool slow = strcmp(text, "powersave") == 0 || strcmp(text, "conservative") == 0 ||
                strcmp(text, "userspace") == 0;
    doctor_line *line = doctor_add(r, "clock.governor", slow ? DOCTOR_WARN : DOCTOR_OK, "%s", text);
    doctor_want(line, "performance");
    if (slow) doctor_mend(line, "sudo cpupower frequency-set -g performance");
}

static void check_throttle(doctor_report *r) {
    static const char form[] = "/sys/devices/system/cpu/cpu%u/thermal_throttle/core_throttle_count";
    uint64_t total = 0, count;
    bool seen = false;
    for (uint32_t cpu = 0; cpu < 1024; cpu++) {
        char path[128];
        snprintf(path, sizeof path, form, cpu);
        if (!doctor_read_u64(r->facts, path, &count)) {
            if (cpu > 0) break;
            continue;
        }
        seen = true;
        total = count > UINT64_MAX - total ? UINT64_MAX : total + count;
    }
    if (!seen) {
        doctor_add(r, "clock.throttling", DOCTOR_UNKNOWN, "%s",
                   doctor_tr(r, "unknown: not shown here", "未知：本机不显示"));
        return;
    }
    doctor_line *line = doctor_add(r, "clock.throttling", total > 0 ? DOCTOR_WARN : DOCTOR_OK,
                                   doctor_tr(r, "%s times since boot", "开机以来 %s 次"),
                                   cli_count_text(total).text);
    if (total == 0) return;
    doctor_want(
        line, doctor_tr(r, "0: the CPU was too hot to keep its clock", "0 次：CPU 曾因过热而降频"));
    doctor_mend(line, "sudo dmesg | grep -i thermal");
}

static void check_clock_source(doctor_report *r) {
    static const char path[] = "/sys/devices/system/clocksource/clocksource0/current_clocksource";
    static const char *const slow[] = {"hpet", "acpi_pm", "jiffies", "pit", "refined-jiffies"};
    char text[64];
    if (!doctor_read(r->facts, path, text, sizeof text)) {
        doctor_unknown(r, "clock.source", path);
        return;
    }
    bool is_slow = false;
    for (size_t i = 0; i < sizeof slow / sizeof slow[0]; i++)
        is_slow = is_slow || strcmp(text, slow[i]) == 0;
    doctor_line *line =
        doctor_add(r, "clock.source", is_slow ? DOCTOR_WARN : DOCTOR_OK, "%s", text);
    if (!is_slow) return;
    doctor_want(line, doctor_tr(r, "tsc or the hypervisor's: this one costs a system call a look",
                                "tsc 或虚拟机时钟：目前的时钟每次读取都要系统调用"));
    doctor_mend(line, "echo tsc | sudo tee %s", path);
}

static void check_clock(doctor_report *r) {
    const doctor_facts *f = r->facts;
    bool back = f->clock_back > 0, slow = f->clock_call > 2e-6 || f->clock_sleep > 0.1;
    doctor_line *line =
        doctor_add(r, "clock.monotonic",
                   back   ? DOCTOR_FAIL
                   : slow ? DOCTOR_WARN
                          : DOCTOR_OK,
                   doctor_tr(r, "steps back %.9g s; %.0f ns a look; a sleep of 5 ms takes %.1f ms",
                             "倒退 %.9g 秒，读取一次 %.0f 纳秒，睡眠 5 毫秒实为 %.1f 毫秒"),
                   f->clock_back, f->clock_call * 1e9, f->clock_sleep * 1e3);
    doctor_want(line, doctor_tr(r, "0 s, at most 2000 ns, at most 100 ms",
                                "0 秒，不超过 2000 纳秒，不超过 100 毫秒"));
    if (back)
        doctor_mend(line, "dmesg | grep -i clocksource");
    else if (slow)
        doctor_mend(line, "uptime");
}

/* ---- Model and disk -------------------------------------------------------------------------- */

static void check_model(doctor_report *r) {
    const doctor_facts *f = r->facts;
    if (f->model == NULL) return;
    doctor_line *line;
    if (*f->model_error != 0) {
        line = doctor_add(r, "model", DOCTOR_FAIL, "%.190s", f->model_error);
        doctor_mend(line, "dsinfer inspect -m %.200s", f->model);
        return;
    }
    line = doctor_add(r, "model", DOCTOR_OK,
                      doctor_tr(r, "%s, weights %s in %u file(s)", "%s，权重 %s，%u 个文件"),
                      f->info.architecture, cli_bytes_text(f->info.n_bytes_weights).text,
                      f->info.n_shards);
}

static void check_disk_speed(doctor_report *r) {
    const doctor_facts *f = r->facts;
    if (f->model == NULL || *f->model_error != 0) return;
    if (f->disk_speed <= 0) {
        doctor_add(
            r, "disk.speed", DOCTOR_UNKNOWN, "%s",
            doctor_tr(r, "unknown: the weights could not be read", "未知：无法读取权重文件"));
        return;
    }
    double seconds = (double)f->info.n_bytes_weights / f->disk_speed;
    bool warm = f->disk_cached > 0.95, slow = seconds > 60 && !warm;
    char cached[64] = "";
    if (f->disk_cached >= 0)
        snprintf(cached, sizeof cached,
                 doctor_tr(r, "; %.0f %% of it is in memory", "；%.0f %% 已在内存中"),
                 f->disk_cached * 100);
    doctor_line *line = doctor_add(
        r, "disk.speed", slow ? DOCTOR_WARN : DOCTOR_OK,
        doctor_tr(r, "%s/s (%s read, %s), all weights in %.1f s%s",
                  "%s/秒（读取 %s，%s），读完权重需 %.1f 秒%s"),
        cli_bytes_text((uint64_t)f->disk_speed).text, cli_bytes_text(f->disk_sample).text,
        f->disk_direct ? doctor_tr(r, "from the disk", "来自磁盘")
                       : doctor_tr(r, "perhaps from the page cache", "可能来自页缓存"),
        seconds, cached);
    doctor_want(line, doctor_tr(r, "at most 60 s, or weights that stay in memory",
                                "不超过 60 秒，或权重常驻内存"));
    if (slow) doctor_mend(line, "cat %.190s/*.safetensors > /dev/null", f->model);
}

static void check_disk_space(doctor_report *r) {
    const doctor_facts *f = r->facts;
    if (!f->disk_free_known) {
        doctor_add(r, "disk.free", DOCTOR_UNKNOWN, "%s",
                   doctor_tr(r, "unknown: the file system does not say", "未知：文件系统没有给出"));
        return;
    }
    bool little = f->disk_free >> 30 == 0;
    const char *where = f->model == NULL ? "." : f->model;
    doctor_line *line = doctor_add(r, "disk.free", little ? DOCTOR_WARN : DOCTOR_OK,
                                   doctor_tr(r, "%s at %.120s", "%s，位于 %.120s"),
                                   cli_bytes_text(f->disk_free).text, where);
    doctor_want(line, doctor_tr(r, "at least 1 GiB for saved sessions", "至少 1 GiB，供保存会话"));
    if (little) doctor_mend(line, "df -h %.200s", where);
}

void doctor_check(const doctor_facts *facts, doctor_report *report) {
    memset(report, 0, sizeof *report);
    report->facts = facts;
    check_kernel(report);
    check_libc(report);
    check_processor(report);
    check_kernel_set(report);
    check_selftest(report);
    check_cpus(report);
    check_model(report);
    doctor_check_memory(report);
    check_governor(report);
    check_throttle(report);
    check_clock_source(report);
    check_clock(report);
    check_disk_speed(report);
    check_disk_space(report);
    check_locale(report);
    check_libcrypto(report);
}
