/* test_doctor.c: dsinfer doctor on machines that are not here: trees of /proc and /sys are made up,
 * and each verdict is checked; files that are missing, unreadable or nonsense give "unknown". */
#include "model_files.h"

#include "../kernels/kernels.h"
#include "../lib/base/json.h"
#include "../tools/dsinfer/doctor.h"
#include "cli_run.h"

/* ---- A machine that is all right ------------------------------------------------------------- */

#define LIMITS(files, memlock, address)                                                            \
    "Limit                     Soft Limit           Hard Limit           Units     \n"             \
    "Max open files            " files "                 1048576              files     \n"        \
    "Max locked memory         " memlock "              unlimited            bytes     \n"         \
    "Max address space         " address "            unlimited            bytes     \n"
#define MEMINFO(total, available, swap, swap_free, huge, huge_free)                                \
    "MemTotal:       " total " kB\nMemFree:        1000000 kB\n"                                   \
    "MemAvailable:   " available " kB\nSwapTotal:      " swap " kB\nSwapFree:       " swap_free    \
    " kB\nCommitLimit:    70000000 kB\nCommitted_AS:   60000000 kB\n"                              \
    "HugePages_Total:    " huge "\nHugePages_Free:    " huge_free                                  \
    "\nHugepagesize:       2048 kB\n"
#define CGROUP_2 "35 31 0:38 / /sys/fs/cgroup rw,relatime - cgroup2 cgroup2 rw\n"
#define CGROUP_1                                                                                   \
    "32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu,cpuacct\n"                 \
    "35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n"
#define GOVERNOR "/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"
#define THROTTLE(cpu) "/sys/devices/system/cpu/cpu" #cpu "/thermal_throttle/core_throttle_count"
#define SOURCE "/sys/devices/system/clocksource/clocksource0/current_clocksource"
#define THP "/sys/kernel/mm/transparent_hugepage/enabled"
#define NODE(n) "/sys/devices/system/node/node" #n "/meminfo"
#define GIB(n) ((uint64_t)(n) << 30)

typedef struct file {
    const char *path, *text;
} file;

static const file healthy[] = {
    {"/proc/sys/kernel/osrelease", "5.10.0-60.18.0.50.oe2203.x86_64\n"},
    {"/proc/cpuinfo", "processor\t: 0\nmodel name\t: Some CPU 9000 @ 2.5GHz\n"},
    {"/proc/self/status", "Name:\tx\nCpus_allowed_list:\t0-7\nMems_allowed_list:\t0\n"},
    {"/sys/devices/system/cpu/online", "0-7\n"},
    {"/proc/meminfo", MEMINFO("65536000", "60000000", "8000000", "8000000", "0", "0")},
    {"/proc/self/mountinfo", "23 1 8:1 / / rw - ext4 /dev/sda1 rw\n" CGROUP_2},
    {"/proc/self/cgroup", "0::/user.slice/a.service\n"},
    {"/proc/sys/vm/overcommit_memory", "0\n"},
    {"/sys/devices/system/node/online", "0\n"},
    {NODE(0), "Node 0 MemTotal:  65536000 kB\nNode 0 MemFree:  30000000 kB\n"},
    {"/proc/self/numa_maps", "557adb162000 default file=/usr/bin/dsinfer mapped=2\n"},
    {THP, "[always] madvise never\n"},
    {"/proc/self/limits", LIMITS("1024", "8388608", "unlimited")},
    {GOVERNOR, "performance\n"},
    {THROTTLE(0), "0\n"},
    {SOURCE, "tsc\n"},
};
enum { N_HEALTHY = sizeof healthy / sizeof healthy[0] };

static char root[64];

static int make_root(void **state) {
    (void)state;
    temp_folder(root);
    return 0;
}
static int drop_root(void **state) {
    (void)state;
    remove_folder(root);
    return 0;
}

static void put(const char *path, const void *text, size_t n) {
    char folder[512];
    snprintf(folder, sizeof folder, "%s%s", root, path);
    for (char *slash = strchr(folder + strlen(root) + 1, '/'); slash != NULL;
         slash = strchr(slash + 1, '/')) {
        *slash = 0;
        mkdir(folder, 0755);
        *slash = '/';
    }
    write_file(root, path + 1, text, n);
}
static void put_text(const char *path, const char *text) { put(path, text, strlen(text)); }
static void put_healthy(void) {
    for (int i = 0; i < N_HEALTHY; i++) put_text(healthy[i].path, healthy[i].text);
}
static void drop(const char *path) {
    char whole[512];
    snprintf(whole, sizeof whole, "%s%s", root, path);
    remove(whole);
}

static doctor_facts healthy_facts(void) {
    doctor_facts f = {.root = root,
                      .isa = DSI_ISA_REF | DSI_ISA_AVX2 | DSI_ISA_AVX512,
                      .kernels = "avx512",
                      .n_kernels = 19,
                      .selftest_seconds = 0.009,
                      .libc = "glibc 2.28",
                      .locale = "zh_CN.UTF-8",
                      .libcrypto = "OpenSSL 1.1.1f",
                      .clock_call = 3e-8,
                      .clock_sleep = 5.1e-3,
                      .model = "/models/v3",
                      .disk_speed = 2e9,
                      .disk_direct = true,
                      .disk_cached = 0.5,
                      .disk_sample = 64u << 20,
                      .disk_free = GIB(500),
                      .disk_free_known = true};
    f.info.architecture = "deepseek_v3";
    f.info.n_bytes_weights = GIB(20);
    f.info.n_shards = 163;
    f.plan.n_bytes_weights = GIB(20), f.plan.n_bytes_kv = GIB(2), f.plan.n_bytes_scratch = GIB(1);
    f.plan.n_bytes_total = GIB(23);
    return f;
}

static const doctor_line *find(const doctor_report *report, const char *id) {
    for (uint32_t i = 0; i < report->n_lines; i++)
        if (strcmp(report->lines[i].id, id) == 0) return &report->lines[i];
    fail_msg("no line %s", id);
    return NULL;
}

static const char *const words[] = {"ok", "unknown", "warn", "fail"};

/* What holds for every report, whatever the machine. */
static void check_report(const doctor_report *report) {
    assert_true(report->n_lines > 15 && report->n_lines < DOCTOR_LINES);
    for (uint32_t i = 0; i < report->n_lines; i++) {
        const doctor_line *line = &report->lines[i];
        assert_true(line->verdict <= DOCTOR_FAIL);
        assert_non_null(memchr(line->value, 0, sizeof line->value));
        assert_non_null(memchr(line->want, 0, sizeof line->want));
        assert_non_null(memchr(line->mend, 0, sizeof line->mend));
        assert_true(line->value[0] != 0);
        if ((line->mend[0] != 0) != (line->verdict >= DOCTOR_WARN))
            fail_msg("%s is %s and mended by \"%s\"", line->id, words[line->verdict], line->mend);
        for (uint32_t j = 0; j < i; j++) assert_string_not_equal(line->id, report->lines[j].id);
    }
}

static void expect(const doctor_facts *facts, const char *id, uint32_t verdict, const char *value,
                   const char *mend) {
    doctor_report report;
    doctor_check(facts, &report);
    check_report(&report);
    const doctor_line *line = find(&report, id);
    if (line->verdict != verdict || strstr(line->value, value) == NULL ||
        strstr(line->mend, mend) == NULL)
        fail_msg("%s is %s \"%s\", mend \"%s\"; expected %s, \"%s\", \"%s\"", id,
                 words[line->verdict], line->value, line->mend, words[verdict], value, mend);
}

/* ---- Verdicts -------------------------------------------------------------------------------- */

static void a_healthy_machine_is_all_ok(void **state) {
    (void)state;
    put_healthy();
    for (int zh = 0; zh < 2; zh++) {
        doctor_facts facts = healthy_facts();
        doctor_report report;
        facts.zh = zh;
        doctor_check(&facts, &report);
        check_report(&report);
        for (uint32_t i = 0; i < report.n_lines; i++)
            if (report.lines[i].verdict != DOCTOR_OK)
                fail_msg("%s: %s", report.lines[i].id, report.lines[i].value);
    }
}

/* One or two files differ from the healthy machine. */
static const struct {
    file changed[5];
    const char *id;
    uint32_t verdict;
    const char *value, *mend;
} machines[] = {
    {{{"/proc/sys/kernel/osrelease", "3.10.0-1160.el7.x86_64"}},
     "kernel",
     DOCTOR_WARN,
     "3.10.0-1160",
     "upgrade"},
    {{{"/proc/sys/kernel/osrelease", "4.19.90-2003.4.0.0036.oe1.aarch64"}},
     "kernel",
     DOCTOR_OK,
     "4.19.90",
     ""},
    /* CPUs and their quota */
    {{{"/proc/self/status", "Cpus_allowed_list:\t0-1,4,6-7\n"}},
     "cpus",
     DOCTOR_OK,
     "5 allowed of 8",
     ""},
    {{{"/sys/fs/cgroup/user.slice/a.service/cpu.max", "250000 100000\n"}},
     "cpus",
     DOCTOR_WARN,
     "pays for 2.50",
     "docker update --cpus 8"},
    {{{"/sys/fs/cgroup/user.slice/a.service/cpu.max", "max 100000\n"},
      {"/sys/fs/cgroup/user.slice/cpu.max", "50000 100000\n"}}, /* a parent is tighter */
     "cpus",
     DOCTOR_WARN,
     "pays for 0.50",
     "CPUQuota=800%"},
    {{{"/sys/fs/cgroup/cpu.max", "1600000 100000\n"}}, "cpus", DOCTOR_OK, "pays for 16.00", ""},
    {{{"/proc/self/mountinfo", CGROUP_1},
      {"/proc/self/cgroup", "4:memory:/a/b\n1:cpuacct,cpu:/a\n0::/\n"},
      {"/sys/fs/cgroup/cpu/a/cpu.cfs_quota_us", "400000"},
      {"/sys/fs/cgroup/cpu/a/cpu.cfs_period_us", "100000"}},
     "cpus",
     DOCTOR_WARN,
     "pays for 4.00",
     "docker update --cpus 8"},
    {{{"/proc/self/mountinfo", CGROUP_1},
      {"/proc/self/cgroup", "4:memory:/a/b\n1:cpuacct,cpu:/a\n0::/\n"},
      {"/sys/fs/cgroup/cpu/a/cpu.cfs_quota_us", "-1"},
      {"/sys/fs/cgroup/cpu/a/cpu.cfs_period_us", "100000"}},
     "cpus",
     DOCTOR_OK,
     "8 allowed",
     ""},
    /* Free memory: 1 % of 64 GiB is far below the plan; the plan needs 3 GiB beside its weights. */
    {{{"/proc/meminfo", MEMINFO("65536000", "655360", "0", "0", "0", "0")}},
     "memory.free",
     DOCTOR_FAIL,
     "640 MiB",
     "--context 1024"},
    {{{"/proc/meminfo", MEMINFO("65536000", "8388608", "0", "0", "0", "0")}},
     "memory.free",
     DOCTOR_WARN,
     "8.0 GiB",
     "--context 1024"},
    /* Memory limits of control groups; file pages that can be dropped are not in use. */
    {{{"/sys/fs/cgroup/user.slice/a.service/memory.max", "2147483648\n"},
      {"/sys/fs/cgroup/user.slice/a.service/memory.current", "1073741824\n"}},
     "memory.limit",
     DOCTOR_FAIL,
     "allows 2.0 GiB, 1.0 GiB are left",
     "--context 1024"},
    {{{"/sys/fs/cgroup/user.slice/memory.max", "34359738368\n"},
      {"/sys/fs/cgroup/user.slice/memory.current", "32212254720\n"},
      {"/sys/fs/cgroup/user.slice/memory.stat", "anon 5\ninactive_file 30064771072\n"},
      {"/sys/fs/cgroup/user.slice/a.service/memory.max", "max\n"}},
     "memory.limit",
     DOCTOR_OK,
     "allows 32.0 GiB, 30.0 GiB are left",
     ""},
    {{{"/proc/self/mountinfo", CGROUP_1},
      {"/proc/self/cgroup", "4:memory:/a/b\n"},
      {"/sys/fs/cgroup/memory/a/b/memory.limit_in_bytes", "8589934592"},
      {"/sys/fs/cgroup/memory/a/b/memory.usage_in_bytes", "1073741824"},
      {"/sys/fs/cgroup/memory/a/b/memory.stat", "cache 7\ntotal_inactive_file 0\n"}},
     "memory.limit",
     DOCTOR_WARN,
     "allows 8.0 GiB, 7.0 GiB are left",
     "--context 1024"},
    {{{"/proc/self/mountinfo", CGROUP_1},
      {"/proc/self/cgroup", "4:memory:/a/b\n"},
      {"/sys/fs/cgroup/memory/a/b/memory.limit_in_bytes", "9223372036854771712"}},
     "memory.limit",
     DOCTOR_OK,
     "no limit",
     ""},
    /* A container: the mount shows the group itself, the path names it from the host's root. */
    {{{"/proc/self/mountinfo",
       "41 31 0:38 /docker/abc /sys/fs/cgroup ro,relatime - cgroup2 cgroup rw\n"},
      {"/proc/self/cgroup", "0::/docker/abc\n"},
      {"/sys/fs/cgroup/memory.max", "1073741824\n"}},
     "memory.limit",
     DOCTOR_FAIL,
     "allows 1.0 GiB",
     "--context 1024"},
    {{{"/proc/meminfo", MEMINFO("65536000", "60000000", "8000000", "1000000", "0", "0")}},
     "memory.swap",
     DOCTOR_WARN,
     "of 7.6 GiB",
     "swapoff"},
    {{{"/proc/meminfo", MEMINFO("65536000", "60000000", "0", "0", "0", "0")}},
     "memory.swap",
     DOCTOR_OK,
     "none",
     ""},
    {{{"/proc/sys/vm/overcommit_memory", "2"}}, "memory.overcommit", DOCTOR_OK, "2 (strict)", ""},
    {{{"/proc/sys/vm/overcommit_memory", "2"},
      {"/proc/meminfo", "CommitLimit:    1000000 kB\nCommitted_AS:   999000 kB\n"}},
     "memory.overcommit",
     DOCTOR_FAIL,
     "1000 KiB",
     "vm.overcommit_memory=0"},
    /* NUMA */
    {{{"/sys/devices/system/node/online", "0-3\n"},
      {NODE(1), "Node 1 MemFree:  1048576 kB\n"},
      {NODE(2), "Node 2 MemFree:  2097152 kB\n"},
      {NODE(3), "Node 3 MemFree:  0 kB\n"}},
     "memory.numa",
     DOCTOR_WARN,
     "4 node(s), free 28.6 GiB + 1.0 GiB + 2.0 GiB + 0 B",
     "numactl"},
    {{{"/sys/devices/system/node/online", "0-1\n"},
      {NODE(1), "Node 1 MemFree:  1048576 kB\n"},
      {"/proc/self/numa_maps", "557adb162000 interleave:0-1 file=/usr/bin/dsinfer\n"}},
     "memory.numa",
     DOCTOR_OK,
     "policy interleave:0-1",
     ""},
    {{{THP, "always madvise [never]\n"}}, "memory.thp", DOCTOR_WARN, "never", "echo always"},
    {{{THP, "always [madvise] never\n"}}, "memory.thp", DOCTOR_WARN, "madvise", "echo always"},
    {{{"/proc/meminfo", MEMINFO("65536000", "60000000", "0", "0", "16384", "16384")}},
     "memory.hugetlb",
     DOCTOR_WARN,
     "16,384 of 16,384",
     "vm.nr_hugepages=0"},
    {{{"/proc/meminfo", MEMINFO("65536000", "60000000", "0", "0", "16384", "10")}},
     "memory.hugetlb",
     DOCTOR_OK,
     "10 of 16,384",
     ""},
    /* Limits */
    {{{"/proc/self/limits", LIMITS("1024", "65536", "unlimited")}},
     "limit.memlock",
     DOCTOR_WARN,
     "64.0 KiB",
     "ulimit -l"},
    {{{"/proc/self/limits", LIMITS("1024", "unlimited", "unlimited")}},
     "limit.memlock",
     DOCTOR_OK,
     "unlimited",
     ""},
    {{{"/proc/self/limits", LIMITS("10", "8388608", "unlimited")}},
     "limit.files",
     DOCTOR_FAIL,
     "10",
     "ulimit -n"},
    {{{"/proc/self/limits", LIMITS("128", "8388608", "unlimited")}},
     "limit.files",
     DOCTOR_WARN,
     "128",
     "ulimit -n"},
    {{{"/proc/self/limits", LIMITS("1024", "8388608", "8589934592")}},
     "limit.address",
     DOCTOR_FAIL,
     "8.0 GiB",
     "ulimit -v"},
    {{{"/proc/self/limits", LIMITS("1024", "8388608", "25000000000")}},
     "limit.address",
     DOCTOR_WARN,
     "23.3 GiB",
     "ulimit -v"},
    /* Clock */
    {{{GOVERNOR, "powersave\n"}}, "clock.governor", DOCTOR_WARN, "powersave", "cpupower"},
    {{{GOVERNOR, "schedutil\n"}}, "clock.governor", DOCTOR_OK, "schedutil", ""},
    {{{THROTTLE(0), "0\n"}, {THROTTLE(1), "1200\n"}, {THROTTLE(2), "34\n"}},
     "clock.throttling",
     DOCTOR_WARN,
     "1,234 times",
     "dmesg"},
    {{{SOURCE, "hpet\n"}}, "clock.source", DOCTOR_WARN, "hpet", "echo tsc"},
    {{{SOURCE, "kvm-clock\n"}}, "clock.source", DOCTOR_OK, "kvm-clock", ""},
};
enum { N_MACHINES = sizeof machines / sizeof machines[0] };

static void each_weakness_is_seen(void **state) {
    (void)state;
    for (int i = 0; i < N_MACHINES; i++) {
        put_healthy();
        for (int j = 0; j < 5 && machines[i].changed[j].path != NULL; j++)
            put_text(machines[i].changed[j].path, machines[i].changed[j].text);
        doctor_facts facts = healthy_facts();
        expect(&facts, machines[i].id, machines[i].verdict, machines[i].value, machines[i].mend);
        facts.zh = true;
        expect(&facts, machines[i].id, machines[i].verdict, "", machines[i].mend);
        for (int j = 0; j < 5 && machines[i].changed[j].path != NULL; j++)
            drop(machines[i].changed[j].path);
    }
}

/* What is tried out rather than read. */
static void each_finding_is_judged(void **state) {
    (void)state;
    put_healthy();
    doctor_facts f = healthy_facts();
#define JUDGE(change, id, verdict, value, mend)                                                    \
    do {                                                                                           \
        f = healthy_facts();                                                                       \
        change;                                                                                    \
        expect(&f, id, verdict, value, mend);                                                      \
    } while (0)
    JUDGE((f.isa = DSI_ISA_REF, f.kernels = "ref"), "kernels", DOCTOR_WARN, "ref", "host");
    JUDGE(f.selftest_seconds = 0.3, "selftest", DOCTOR_WARN, "300.0 ms", "uptime");
    JUDGE(f.selftest_seconds = -1, "selftest", DOCTOR_FAIL, "no memory", "free");
    JUDGE((f.n_wrong = 1, strcpy(f.wrong, "dsi_cast_bf16__avx512 (y[0][0] is 1) -> ref")),
          "selftest", DOCTOR_WARN, "1 of 19 kernels are wrong here and replaced", "doctor.json");
    JUDGE(f.locale[0] = 0, "locale", DOCTOR_WARN, "none", "LC_ALL");
    JUDGE(strcpy(f.locale, "zh_CN.GB18030"), "locale", DOCTOR_WARN, "GB18030", "LC_ALL");
    JUDGE(strcpy(f.locale, "en_US.utf8"), "locale", DOCTOR_OK, "utf8", "");
    JUDGE(f.libcrypto[0] = 0, "libcrypto", DOCTOR_WARN, "none", "openssl");
    JUDGE(f.libc[0] = 0, "libc", DOCTOR_UNKNOWN, "unknown", "");
    JUDGE(f.clock_back = 1e-3, "clock.monotonic", DOCTOR_FAIL, "0.001 s", "clocksource");
    JUDGE(f.clock_call = 5e-6, "clock.monotonic", DOCTOR_WARN, "5000 ns", "uptime");
    JUDGE(f.clock_sleep = 2, "clock.monotonic", DOCTOR_WARN, "2000.0 ms", "uptime");
    JUDGE(f.disk_speed = 1e8, "disk.speed", DOCTOR_WARN, "95.4 MiB/s", "cat /models/v3");
    JUDGE((f.disk_speed = 1e8, f.disk_cached = 1), "disk.speed", DOCTOR_OK, "100 %", "");
    JUDGE(f.disk_direct = false, "disk.speed", DOCTOR_OK, "page cache", "");
    JUDGE(f.disk_speed = 0, "disk.speed", DOCTOR_UNKNOWN, "unknown", "");
    JUDGE(f.disk_free = 1 << 20, "disk.free", DOCTOR_WARN, "1.0 MiB", "df -h");
    JUDGE(f.disk_free_known = false, "disk.free", DOCTOR_UNKNOWN, "unknown", "");
    JUDGE(strcpy(f.model_error, "config.json: no such file"), "model", DOCTOR_FAIL, "config.json",
          "dsinfer inspect -m /models/v3");
    /* Without a model a tenth of the memory must be free, and a limit is judged by itself. */
    put_text("/proc/meminfo", MEMINFO("65536000", "655360", "0", "0", "0", "0"));
    JUDGE(f.model = NULL, "memory.free", DOCTOR_WARN, "640 MiB of 62.5 GiB", "ps ");
    put_text("/proc/self/limits", LIMITS("1024", "8388608", "8589934592"));
    JUDGE(f.model = NULL, "limit.address", DOCTOR_WARN, "8.0 GiB", "ulimit -v");
#undef JUDGE
}

/* ---- Nothing to read, or nonsense ------------------------------------------------------------ */

static void unreadable_files_are_unknown(void **state) {
    (void)state;
    static const char *const ids[N_HEALTHY] = {"kernel",
                                               "cpu",
                                               "cpus",
                                               "",
                                               "memory.free",
                                               "",
                                               "",
                                               "memory.overcommit",
                                               "memory.numa",
                                               "",
                                               "",
                                               "memory.thp",
                                               "limit.files",
                                               "clock.governor",
                                               "clock.throttling",
                                               "clock.source"};
    for (int as_folder = 0; as_folder < 2; as_folder++) {
        for (int i = 0; i < N_HEALTHY; i++) {
            put_healthy();
            drop(healthy[i].path);
            char whole[512];
            snprintf(whole, sizeof whole, "%s%s", root, healthy[i].path);
            if (as_folder) assert_int_equal(mkdir(whole, 0755), 0);
            doctor_facts facts = healthy_facts();
            if (*ids[i] != 0)
                expect(&facts, ids[i], DOCTOR_UNKNOWN, "unknown", "");
            else
                expect(&facts, "cpu", DOCTOR_OK, "Some CPU 9000", "");
            drop(healthy[i].path);
        }
    }
    doctor_facts facts = healthy_facts();
    doctor_report report;
    facts.root = "/nowhere/at/all";
    doctor_check(&facts, &report);
    check_report(&report);
    assert_int_equal(find(&report, "memory.free")->verdict, DOCTOR_UNKNOWN);
    assert_int_equal(find(&report, "cpus")->verdict, DOCTOR_UNKNOWN);
}

static uint64_t random_bits(void) {
    static uint64_t state = 1;
    uint64_t z = state += 0x9E3779B97F4A7C15u; /* SplitMix64 */
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
}

/* A file with bytes changed, cut short, made long, or with its numbers blown up. */
static void damage(const file *f) {
    static char text[1 << 17];
    size_t n = strlen(f->text);
    memcpy(text, f->text, n);
    switch (random_bits() % 4) {
    case 0:
        for (int i = 0; i < 4; i++) text[random_bits() % n] = (char)random_bits();
        break;
    case 1:
        n = random_bits() % n;
        break;
    case 2:
        for (size_t i = 0; i < n; i++)
            if (text[i] >= '0' && text[i] <= '9') text[i] = '9';
        break;
    default:
        while (n + strlen(f->text) < sizeof text && random_bits() % 64 != 0) {
            memmove(text + n, text, strlen(f->text));
            n += strlen(f->text);
            if (random_bits() % 2) text[n - 1] = '9';
        }
    }
    put(f->path, text, n);
}

static void nonsense_never_crashes(void **state) {
    (void)state;
    static const file groups[] = {
        {"/sys/fs/cgroup/user.slice/a.service/cpu.max", "250000 100000\n"},
        {"/sys/fs/cgroup/user.slice/a.service/memory.max", "2147483648\n"},
        {"/sys/fs/cgroup/user.slice/a.service/memory.stat", "anon 5\ninactive_file 3006\n"},
    };
    enum { ROUNDS = 3000 };
    uint32_t seen[4] = {0};
    put_healthy();
    for (int i = 0; i < 3; i++) put_text(groups[i].path, groups[i].text);
    for (int round = 0; round < ROUNDS; round++) {
        const file *a = &healthy[random_bits() % N_HEALTHY], *b = &groups[random_bits() % 3];
        damage(a);
        damage(b);
        doctor_facts facts = healthy_facts();
        doctor_report report;
        facts.zh = round % 2;
        doctor_check(&facts, &report);
        check_report(&report);
        for (uint32_t i = 0; i < report.n_lines; i++) seen[report.lines[i].verdict]++;
        put_text(a->path, a->text);
        put_text(b->path, b->text);
    }
    print_message("%d damaged machines: %u lines ok, %u unknown, %u warn, %u fail\n", ROUNDS,
                  seen[DOCTOR_OK], seen[DOCTOR_UNKNOWN], seen[DOCTOR_WARN], seen[DOCTOR_FAIL]);
    assert_true(seen[DOCTOR_UNKNOWN] > 100 && seen[DOCTOR_WARN] > 100);
}

/* ---- The command ----------------------------------------------------------------------------- */

static void check_json(const char *text, size_t n, bool with_model, bool ok) {
    dsi_json json;
    dsi_error error = {0};
    uint64_t schema = 0;
    bool said = !ok;
    if (dsi_json_parse(text, n, 4096, &json, &error) != DSI_OK) fail_msg("%s", error.text);
    assert_true(dsi_json_u64(&json, dsi_json_get(&json, 0, "schema"), &schema));
    assert_int_equal(schema, 1);
    assert_true(dsi_json_bool(&json, dsi_json_get(&json, 0, "ok"), &said));
    assert_int_equal(said, ok);
    uint32_t checks = dsi_json_get(&json, 0, "checks"), n_checks = 0;
    bool has_model = false;
    for (uint32_t i = dsi_json_first(&json, checks); i < json.nodes[checks].end;
         i = json.nodes[i].end, n_checks++) {
        char *id = dsi_json_string(&json, dsi_json_get(&json, i, "id"), NULL);
        char *value = dsi_json_string(&json, dsi_json_get(&json, i, "value"), NULL);
        assert_non_null(id);
        assert_non_null(value);
        assert_true(dsi_json_get(&json, i, "verdict") != DSI_JSON_NONE);
        assert_true(dsi_json_get(&json, i, "want") != DSI_JSON_NONE);
        assert_true(dsi_json_get(&json, i, "mend") != DSI_JSON_NONE);
        for (const char *c = value; *c; c++) assert_true((unsigned char)*c < 128); /* English */
        has_model = has_model || strcmp(id, "model") == 0;
        dsi_sys_free(id);
        dsi_sys_free(value);
    }
    assert_true(n_checks > 15);
    assert_int_equal(has_model, with_model);
    dsi_json_free(&json);
}

static void the_command_reports(void **state) {
    (void)state;
    const char *model = "examples/models/tiny-gov";
    cli_result r = cli_exec(
        &(cli_call){.arguments = {"doctor", "--json", "-m", model, NULL}, .locale = "zh_CN.UTF-8"});
    assert_true(r.code == 0 || r.code == 1); /* this machine may have a weakness */
    check_json(r.out, r.n_out, true, r.code == 0);
    cli_result_free(&r);
    r = cli_exec(&(cli_call){.arguments = {"doctor", "--json", "-m", "/nowhere", NULL}});
    assert_int_equal(r.code, 1);
    check_json(r.out, r.n_out, true, false);
    cli_result_free(&r);
    r = cli_exec(&(cli_call){.arguments = {"doctor", NULL}, .locale = "zh_CN.UTF-8"});
    assert_non_null(strstr(r.out, "算子自检"));
    assert_int_equal(r.n_err, 0);
    cli_result_free(&r);
    r = cli_exec(&(cli_call){.arguments = {"doctor", "-q", NULL}, .locale = "C"});
    assert_non_null(strstr(r.out, "WARN  locale")); /* LC_ALL=C */
    assert_null(strstr(r.out, "OK  "));
    cli_result_free(&r);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(a_healthy_machine_is_all_ok, make_root, drop_root),
        cmocka_unit_test_setup_teardown(each_weakness_is_seen, make_root, drop_root),
        cmocka_unit_test_setup_teardown(each_finding_is_judged, make_root, drop_root),
        cmocka_unit_test_setup_teardown(unreadable_files_are_unknown, make_root, drop_root),
        cmocka_unit_test_setup_teardown(nonsense_never_crashes, make_root, drop_root),
        cmocka_unit_test(the_command_reports),
    };
    return cmocka_run_group_tests_name("doctor", tests, NULL, NULL);
}
