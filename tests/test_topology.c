/* test_topology.c: cores, caches, nodes and quotas of machines that are not here. Their trees of
 * /proc and /sys are made up below a folder, healthy ones and hostile ones. */
#include "../lib/base/fault.h"
#include "../lib/base/topology.h"
#include "model_files.h"
#include <sys/wait.h>

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

/* A file below the root, with the folders above it. */
static void put(const char *text, const char *format, ...) {
    char path[200];
    va_list list;
    va_start(list, format);
    vsnprintf(path, sizeof path, format, list);
    va_end(list);
    char folder[300];
    snprintf(folder, sizeof folder, "%s/%s", root, path);
    for (char *slash = strchr(folder + strlen(root) + 1, '/'); slash != NULL;
         slash = strchr(slash + 1, '/')) {
        *slash = 0;
        mkdir(folder, 0755);
        *slash = '/';
    }
    write_file(root, path, text, strlen(text));
}

/* A machine of equal parts. CPU c and c + n_cores are one core, as on most servers. */
typedef struct machine {
    uint32_t n_nodes, n_l3, n_cores, n_threads; /* nodes; L3 a node; cores an L3; threads a core */
} machine;
static void put_cpu(const machine *m, uint32_t cpu, uint32_t n_cores) {
    char list[64], all[256] = "";
    uint32_t core = cpu % n_cores, l3 = core / m->n_cores;
    for (uint32_t t = 0; t < m->n_threads; t++) {
        snprintf(list, sizeof list, "%s%u", t ? "," : "", core + t * n_cores);
        strcat(all, list);
    }
    strcat(all, "\n");
    put(all, "sys/devices/system/cpu/cpu%u/topology/thread_siblings_list", cpu);
    all[0] = 0;
    for (uint32_t t = 0; t < m->n_threads; t++) {
        snprintf(list, sizeof list, "%s%u-%u", t ? "," : "", l3 * m->n_cores + t * n_cores,
                 (l3 + 1) * m->n_cores - 1 + t * n_cores);
        strcat(all, list);
    }
    put("2\n", "sys/devices/system/cpu/cpu%u/cache/index2/level", cpu);
    put("3\n", "sys/devices/system/cpu/cpu%u/cache/index3/level", cpu);
    put(all, "sys/devices/system/cpu/cpu%u/cache/index3/shared_cpu_list", cpu);
}
static uint32_t put_machine(const machine *m) {
    uint32_t n_cores = m->n_nodes * m->n_l3 * m->n_cores, a_node = m->n_l3 * m->n_cores;
    char text[128];
    for (uint32_t cpu = 0; cpu < n_cores * m->n_threads; cpu++) put_cpu(m, cpu, n_cores);
    snprintf(text, sizeof text, "0-%u\n", m->n_nodes); /* the last one is memory alone */
    put(text, "sys/devices/system/node/online");
    for (uint32_t node = 0; node < m->n_nodes; node++) {
        int n = snprintf(text, sizeof text, "%u-%u", node * a_node, (node + 1) * a_node - 1);
        for (uint32_t t = 1; t < m->n_threads; t++)
            n += snprintf(text + n, sizeof text - (size_t)n, ",%u-%u", node * a_node + t * n_cores,
                          (node + 1) * a_node - 1 + t * n_cores);
        put(text, "sys/devices/system/node/node%u/cpulist", node);
    }
    put("\n", "sys/devices/system/node/node%u/cpulist", m->n_nodes);
    return n_cores * m->n_threads;
}

static dsi_cpu_mask first_cpus(uint32_t n) {
    dsi_cpu_mask mask = {{0}};
    for (uint32_t i = 0; i < n; i++) dsi_cpu_mask_add(&mask, i);
    return mask;
}
static dsi_topology read_mask(const dsi_cpu_mask *mask) {
    dsi_topology t;
    dsi_error error;
    if (dsi_topology_read(root, mask, &t, &error) != DSI_OK) fail_msg("%s", error.text);
    return t;
}
static dsi_topology read_first(uint32_t n) {
    dsi_cpu_mask mask = first_cpus(n);
    return read_mask(&mask);
}

/* ---- Machines ------------------------------------------------------------------------------- */

static void test_machines(void **state) {
    (void)state;
    const machine machines[] = {
        {1, 1, 1, 1}, {1, 1, 4, 2}, {2, 4, 3, 2}, {4, 2, 8, 1}, {1, 2, 4, 4}};
    for (size_t i = 0; i < sizeof machines / sizeof *machines; i++) {
        const machine *m = &machines[i];
        uint32_t n_cores = m->n_nodes * m->n_l3 * m->n_cores, n = put_machine(m);
        dsi_topology t = read_first(n);
        assert_string_equal(t.source, "/sys");
        assert_int_equal(t.n_cpus, n);
        assert_int_equal(t.n_cores, n_cores);
        assert_int_equal(t.n_l3, m->n_nodes * m->n_l3);
        assert_int_equal(t.n_nodes, m->n_nodes);
        assert_int_equal(dsi_topology_threads(&t), n_cores);
        for (uint32_t c = 0; c < n; c++) {
            assert_int_equal(t.cpus[c].id, c);
            assert_int_equal(t.cpus[c].core, c % n_cores);
            assert_int_equal(t.cpus[c].sibling, c / n_cores);
            assert_int_equal(t.cpus[c].l3, c % n_cores / m->n_cores);
            assert_int_equal(t.cpus[c].node, c % n_cores / (m->n_cores * m->n_l3));
        }
        dsi_topology_free(&t);
        remove_folder(root);
        assert_int_equal(mkdir(root, 0700), 0);
    }
}

/* A part of a machine counts as what is left of it: numbers start at 0 again. */
static void test_part(void **state) {
    (void)state;
    put_machine(&(machine){2, 2, 2, 2}); /* cores 0-7, second threads 8-15 */
    dsi_cpu_mask mask = {{0}};
    assert_true(dsi_cpu_list("5-7,13,2000", &mask));
    dsi_topology t = read_mask(&mask);
    assert_int_equal(t.n_cpus, 5);
    assert_int_equal(t.n_cores, 4); /* 5 (with 13), 6, 7, and 2000, which nobody describes */
    assert_int_equal(t.n_nodes, 1); /* 2000 is put beside the first */
    assert_int_equal(t.n_l3, 3);
    assert_int_equal(t.cpus[3].id, 13);
    assert_int_equal(t.cpus[3].core, t.cpus[0].core);
    assert_int_equal(t.cpus[3].sibling, 1);
    dsi_topology_free(&t);
}

static void check_choice(const dsi_topology *t, const char *taken, uint32_t n, const char *want) {
    dsi_cpu_mask mask = {{0}};
    uint32_t chosen[64];
    char got[256] = "";
    if (*taken) assert_true(dsi_cpu_list(taken, &mask));
    if (!dsi_topology_choose(t, &mask, n, chosen)) n = 0;
    for (uint32_t i = 0; i < n; i++) {
        char one[16];
        snprintf(one, sizeof one, "%s%u", i ? "," : "", t->cpus[chosen[i]].id);
        strcat(got, one);
    }
    assert_string_equal(got, want);
}
static void test_choose(void **state) {
    (void)state;
    dsi_topology t = read_first(put_machine(&(machine){2, 2, 2, 2}));
    check_choice(&t, "", 1, "0");
    check_choice(&t, "", 2, "0,4");     /* a node each */
    check_choice(&t, "", 4, "0,2,4,6"); /* a cache each */
    check_choice(&t, "", 5, "0,1,2,4,6");
    check_choice(&t, "", 8, "0,1,2,3,4,5,6,7");
    check_choice(&t, "", 9, "0,8,1,2,3,4,5,6,7"); /* a second thread comes last, beside its first */
    check_choice(&t, "0-3", 4, "4,5,6,7");
    check_choice(&t, "0-7", 2, "8,12");
    check_choice(&t, "0-14", 1, "15");
    check_choice(&t, "0-14", 2, "");
    check_choice(&t, "", 17, "");
    dsi_topology_free(&t);
}

/* ---- Quotas --------------------------------------------------------------------------------- */

#define MOUNT_2 "35 31 0:38 / /sys/fs/cgroup rw,relatime - cgroup2 cgroup2 rw\n"
#define MOUNT_1 "32 31 0:29 /a /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu,cpuacct\n"

static void check_quota(double want, uint32_t n_threads) {
    dsi_topology t = read_first(8);
    assert_true(t.quota == want);
    assert_int_equal(dsi_topology_threads(&t), n_threads);
    dsi_topology_free(&t);
}
static void test_quota(void **state) {
    (void)state;
    check_quota(0, 8); /* nothing is there */
    put("23 1 8:1 / / rw - ext4 /dev/sda1 rw\n" MOUNT_2, "proc/self/mountinfo");
    check_quota(0, 8);
    put("0::/s/a\n", "proc/self/cgroup");
    check_quota(0, 8);
    put("max 100000\n", "sys/fs/cgroup/s/a/cpu.max");
    check_quota(0, 8);
    put("650000 100000\n", "sys/fs/cgroup/s/cpu.max");
    check_quota(6.5, 6);
    put("50000 100000\n", "sys/fs/cgroup/s/a/cpu.max"); /* the tightest counts */
    check_quota(0.5, 1);
    put("400000 100000\n", "sys/fs/cgroup/cpu.max");
    check_quota(0.5, 1);
    put("12800000 100000\n", "sys/fs/cgroup/s/a/cpu.max");
    put("max 100000\n", "sys/fs/cgroup/s/cpu.max");
    check_quota(4, 4);
    const char *const nonsense[] = {"",
                                    "\n",
                                    "100000",
                                    "100000 ",
                                    "0 100000",
                                    "100000 0",
                                    "-1 100000",
                                    "1e5 100000",
                                    "100000 -1",
                                    "x 100000",
                                    "100000 1x",
                                    "100000\t100000",
                                    "99999999999999999999999 1",
                                    " 100000 100000"};
    for (size_t i = 0; i < sizeof nonsense / sizeof *nonsense; i++) {
        put(nonsense[i], "sys/fs/cgroup/cpu.max");
        check_quota(128, 8);
    }
    put(MOUNT_1, "proc/self/mountinfo"); /* version 1, in a container that sees the part /a */
    put("4:memory:/a/b\n1:cpuacct,cpu:/a/b\n0::/\n", "proc/self/cgroup");
    put("-1\n", "sys/fs/cgroup/cpu/b/cpu.cfs_quota_us");
    put("100000\n", "sys/fs/cgroup/cpu/b/cpu.cfs_period_us");
    check_quota(0, 8);
    put("300000\n", "sys/fs/cgroup/cpu/cpu.cfs_quota_us");
    check_quota(0, 8);
    put("100000\n", "sys/fs/cgroup/cpu/cpu.cfs_period_us");
    check_quota(3, 3);
}

/* ---- Files that lie ------------------------------------------------------------------------- */

static void test_lists(void **state) {
    (void)state;
    static const char *const wrong[] = {"",
                                        " ",
                                        "a",
                                        "1,",
                                        ",1",
                                        "1-",
                                        "-1",
                                        "3-1",
                                        "1 2",
                                        "0x1",
                                        "8192",
                                        "1--2",
                                        "1-2-3",
                                        "+1",
                                        "1,,2",
                                        "0-99999999999999999999",
                                        "99999999999999999999",
                                        "1\n2"};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        dsi_cpu_mask mask = {{0}};
        if (dsi_cpu_list(wrong[i], &mask)) fail_msg("'%s' is no list", wrong[i]);
    }
    dsi_cpu_mask mask = {{0}};
    assert_true(dsi_cpu_list("0,2-3,8191\n", &mask));
    for (uint32_t i = 0; i < DSI_MAX_CPUS; i++)
        assert_int_equal(dsi_cpu_mask_has(&mask, i), i == 0 || i == 2 || i == 3 || i == 8191);
    assert_false(dsi_cpu_mask_has(&mask, UINT32_MAX));
}

static void check_sane(const dsi_topology *t, uint32_t n) {
    assert_int_equal(t->n_cpus, n);
    assert_in_range(t->n_cores, 1, n);
    assert_in_range(t->n_l3, 1, t->n_cores);
    assert_in_range(t->n_nodes, 1, t->n_l3);
    for (uint32_t i = 0; i < n; i++) {
        assert_true(t->cpus[i].core < t->n_cores && t->cpus[i].l3 < t->n_l3);
        assert_true(t->cpus[i].node < t->n_nodes && t->cpus[i].sibling < n);
    }
}

/* Any one file of a machine replaced by nonsense: never a fault, always a usable answer. */
static void test_hostile(void **state) {
    (void)state;
    char *large = malloc(200000);
    assert_non_null(large);
    for (int i = 0; i < 199999; i++) large[i] = i % 2 ? ',' : '1';
    large[199999] = 0;
    const char *const texts[] = {"",    "7",     "0-8191",   "4294967296", "-",         "0-\n",
                                 large, "1,1,1", "\x80\xff", "3",          "0,2,4,6\n", "99\n"};
    const char *const files[] = {"sys/devices/system/cpu/cpu1/topology/thread_siblings_list",
                                 "sys/devices/system/cpu/cpu0/cache/index3/level",
                                 "sys/devices/system/cpu/cpu0/cache/index3/shared_cpu_list",
                                 "sys/devices/system/node/online",
                                 "sys/devices/system/node/node1/cpulist"};
    for (size_t f = 0; f < sizeof files / sizeof *files; f++)
        for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
            uint32_t n = put_machine(&(machine){2, 1, 2, 2}), chosen[8];
            put(texts[i], "%s", files[f]);
            dsi_topology t = read_first(n);
            check_sane(&t, n);
            assert_true(dsi_topology_choose(&t, &(dsi_cpu_mask){{0}}, n, chosen));
            dsi_topology_free(&t);
        }
    free(large);
}

/* A pipe, a folder, a link to itself, nothing at all where a file should be. */
static void test_no_files(void **state) {
    (void)state;
    dsi_topology t = read_first(3);
    assert_string_equal(t.source, "affinity");
    assert_int_equal(t.n_cores, 3);
    assert_int_equal(t.n_l3 + t.n_nodes, 2);
    dsi_topology_free(&t);
    char path[600];
    put_machine(&(machine){1, 1, 2, 1});
    snprintf(path, sizeof path, "%s/sys/devices/system/node/online", root);
    assert_int_equal(unlink(path) | mkfifo(path, 0600), 0);
    snprintf(path, sizeof path, "%s/sys/devices/system/cpu/cpu0/cache/index3/level", root);
    assert_int_equal(unlink(path) | symlink("level", path), 0);
    snprintf(path, sizeof path, "%s/sys/devices/system/cpu/cpu0/topology/thread_siblings_list",
             root);
    assert_int_equal(unlink(path) | mkdir(path, 0700), 0);
    t = read_first(2);
    check_sane(&t, 2);
    assert_int_equal(t.n_cores, 2);
    dsi_topology_free(&t);
    dsi_cpu_mask none = {{0}};
    t = read_mask(&none); /* at least one */
    assert_int_equal(t.n_cpus, 1);
    dsi_topology_free(&t);
}

/* The N-th call of the system fails, each in turn: NOMEM or a usable answer. */
static void test_faults(void **state) {
    (void)state;
    uint32_t n = put_machine(&(machine){2, 1, 2, 1});
    put(MOUNT_2, "proc/self/mountinfo");
    put("0::/\n", "proc/self/cgroup");
    put("300000 100000\n", "sys/fs/cgroup/cpu.max");
    dsi_cpu_mask mask = first_cpus(n);
    for (uint64_t nth = 1;; nth++) {
        dsi_topology t;
        dsi_fault_arm(&(dsi_fault){.kind = DSI_CALL_ANY, .nth = nth});
        dsi_status st = dsi_topology_read(root, &mask, &t, NULL);
        dsi_fault_disarm();
        if (st == DSI_OK) check_sane(&t, n);
        if (st != DSI_OK) assert_int_equal(st, DSI_E_NOMEM);
        if (st == DSI_OK && dsi_fault_struck() == 0) assert_int_equal(t.n_nodes, 2);
        dsi_topology_free(&t);
        if (dsi_fault_struck() == 0) break;
        assert_in_range(nth, 1, 1000);
    }
}

/* ---- This machine, and hwloc where it is ------------------------------------------------------
 */

static void test_here(void **state) {
    (void)state;
    dsi_topology t;
    assert_int_equal(dsi_topology_read("", NULL, &t, NULL), DSI_OK);
    check_sane(&t, dsi_sys_cpu_count());
    assert_int_equal(dsi_default_threads(), dsi_topology_threads(&t));
    dsi_topology_free(&t);
}

/* In a process of its own: hwloc makes up a machine from HWLOC_SYNTHETIC, which is asked once. */
static int as_child(void) {
    dsi_topology t;
    dsi_cpu_mask mask = first_cpus(16);
    if (dsi_topology_read("", &mask, &t, NULL) != DSI_OK) return 1;
    if (strcmp(t.source, "hwloc") != 0) return 77;
    bool right = t.n_cpus == 16 && t.n_cores == 8 && t.n_l3 == 4 && t.n_nodes == 2 &&
                 t.cpus[5].core == 2 && t.cpus[5].sibling == 1 && t.cpus[9].node == 1;
    if (!right) printf("%u cores, %u l3, %u nodes\n", t.n_cores, t.n_l3, t.n_nodes);
    dsi_topology_free(&t);
    return right ? 0 : 2;
}
static void test_hwloc(void **state) {
    (void)state;
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        setenv("HWLOC_SYNTHETIC", "numa:2 l3:2 core:2 pu:2", 1);
        execl("/proc/self/exe", "test_topology", "hwloc", (char *)NULL);
        _exit(3);
    }
    int status;
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFEXITED(status));
    if (WEXITSTATUS(status) == 77) {
        printf("no libhwloc on this machine: its binding is not tested\n");
        skip();
    }
    assert_int_equal(WEXITSTATUS(status), 0);
}

int main(int argc, char **argv) {
    if (argc > 1 && strcmp(argv[1], "hwloc") == 0) return as_child();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_machines, make_root, drop_root),
        cmocka_unit_test_setup_teardown(test_part, make_root, drop_root),
        cmocka_unit_test_setup_teardown(test_choose, make_root, drop_root),
        cmocka_unit_test_setup_teardown(test_quota, make_root, drop_root),
        cmocka_unit_test(test_lists),
        cmocka_unit_test_setup_teardown(test_hostile, make_root, drop_root),
        cmocka_unit_test_setup_teardown(test_no_files, make_root, drop_root),
        cmocka_unit_test_setup_teardown(test_faults, make_root, drop_root),
        cmocka_unit_test(test_here),
        cmocka_unit_test(test_hwloc),
    };
    return cmocka_run_group_tests_name("topology", tests, NULL, NULL);
}
