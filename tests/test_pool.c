/* test_pool.c: where the threads of a pool run and how they meet on machines of several caches and
 * nodes. Those machines are made up (this one need not have them): the tree of meetings is as it
 * would be there, the CPUs that threads are bound to exist only as far as they do here. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "../lib/base/fault.h"
#include "../lib/base/pool.h"
#include "../lib/base/topology.h"
#include <deepseek/dsinfer.h>
#include <sched.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

enum { MAX_THREADS = 16 };

typedef struct machine {
    dsi_topology_cpu cpus[MAX_THREADS];
    dsi_topology topology;
} machine;

/* CPUs first_id, first_id + 1, ..: one core each. */
static void make_machine(machine *m, uint32_t n_nodes, uint32_t n_l3, uint32_t n_cores,
                         uint32_t first_id) {
    uint32_t n = n_nodes * n_l3 * n_cores;
    for (uint32_t c = 0; c < n; c++)
        m->cpus[c] = (dsi_topology_cpu){first_id + c, c, c / n_cores, c / n_cores / n_l3, 0};
    m->topology = (dsi_topology){n, n, n_nodes * n_l3, n_nodes, m->cpus, 0, "made up"};
}
static dsi_pool *make_pool(const dsi_topology *topology, uint32_t n_threads, uint32_t pin,
                           const dsi_log *log) {
    dsi_pool *pool;
    dsi_error error;
    dsi_pool_options o = {n_threads, pin, topology, log};
    if (dsi_pool_new_placed(&o, &pool, &error) != DSI_OK) fail_msg("%s", error.text);
    return pool;
}

/* ---- Meetings ------------------------------------------------------------------------------- */

typedef struct rounds {
    dsi_pool *pool;
    uint64_t cells[MAX_THREADS][8], sums[MAX_THREADS][8];
} rounds;

static void sum_rounds(void *context, uint32_t thread, uint32_t n_threads) {
    rounds *r = context;
    for (uint64_t round = 1; round <= 4; round++) {
        r->cells[thread][0] = round * 100 + thread;
        dsi_pool_barrier(r->pool);
        for (uint32_t i = 0; i < n_threads; i++) r->sums[thread][0] += r->cells[i][0];
        dsi_pool_barrier(r->pool);
    }
}
static void check_meetings(dsi_pool *pool, uint64_t n_runs) {
    rounds r = {.pool = pool};
    uint64_t n = dsi_pool_size(pool), each = 1000 * n + 2 * n * (n - 1);
    for (uint64_t run = 1; run <= n_runs; run++) {
        dsi_pool_run(pool, sum_rounds, &r);
        for (uint32_t t = 0; t < n; t++)
            if (r.sums[t][0] != each * run) fail_msg("run %d, thread %u", (int)run, t);
        if (run % 20 == 0) usleep(400); /* all fall asleep */
    }
}

static void test_trees(void **state) {
    (void)state;
    const uint32_t shapes[][4] = {{1, 1, 4, 4}, {1, 2, 2, 4}, {2, 1, 2, 4},  {2, 2, 2, 8},
                                  {2, 2, 2, 5}, {4, 1, 1, 4}, {1, 3, 2, 6},  {2, 2, 2, 3},
                                  {3, 1, 4, 7}, {2, 4, 2, 9}, {2, 2, 4, 16}, {2, 1, 1, 2}};
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        machine m;
        make_machine(&m, shapes[i][0], shapes[i][1], shapes[i][2], 0);
        for (uint32_t pin = DSI_POOL_PIN_AUTO; pin <= DSI_POOL_PIN_OFF; pin++) {
            dsi_pool *pool = make_pool(&m.topology, shapes[i][3], pin, NULL);
            check_meetings(pool, 60);
            uint32_t n = dsi_pool_size(pool), node = 0;
            for (uint32_t t = 0; t < n; t++) { /* threads of a node are neighbours */
                uint32_t next = dsi_pool_node(pool, t);
                assert_true(next == node || (t > 0 && next == node + 1));
                node = next;
            }
            bool bound = pin != DSI_POOL_PIN_OFF &&
                         (pin == DSI_POOL_PIN_ON || shapes[i][0] > 1 || n == m.topology.n_cores);
            assert_int_equal(dsi_pool_bound(pool) != 0, bound);
            if (bound) assert_int_equal(node + 1, n < m.topology.n_nodes ? n : m.topology.n_nodes);
            dsi_pool_free(pool);
        }
    }
}

/* Fewer threads than were arranged for: the meetings are those of the threads that are there. */
static void test_refused(void **state) {
    (void)state;
    machine m;
    make_machine(&m, 2, 2, 2, 0);
    for (uint64_t nth = 1; nth <= 7; nth++) {
        dsi_fault_arm(&(dsi_fault){.kind = DSI_CALL_THREAD, .nth = nth, .onwards = true});
        dsi_pool *pool = make_pool(&m.topology, 8, DSI_POOL_PIN_ON, NULL);
        dsi_fault_disarm();
        assert_int_equal(dsi_pool_size(pool), nth);
        check_meetings(pool, 20);
        dsi_pool_free(pool);
    }
    dsi_fault_arm(&(dsi_fault){.kind = DSI_CALL_SETAFFINITY, .nth = 1, .onwards = true});
    dsi_pool *pool = make_pool(&m.topology, 8, DSI_POOL_PIN_ON, NULL);
    check_meetings(pool, 20);
    dsi_fault_disarm();
    assert_true(dsi_fault_struck() >= 7);
    dsi_pool_free(pool);
}

/* ---- Binding -------------------------------------------------------------------------------- */

typedef struct masks {
    cpu_set_t of[MAX_THREADS];
    int cpu[MAX_THREADS];
} masks;
static void look_at_masks(void *context, uint32_t thread, uint32_t n_threads) {
    (void)n_threads;
    masks *m = context;
    sched_getaffinity(0, sizeof m->of[thread], &m->of[thread]);
    m->cpu[thread] = sched_getcpu();
}

/* All CPUs of this machine: each worker has one of its own, the caller has what it had. */
static void test_bound(void **state) {
    (void)state;
    dsi_topology t;
    masks seen;
    cpu_set_t before, after, all;
    assert_int_equal(dsi_topology_read("", NULL, &t, NULL), DSI_OK);
    if (t.n_cpus < 2 || t.n_cpus > MAX_THREADS) {
        dsi_topology_free(&t);
        skip();
    }
    t.quota = 0;
    assert_int_equal(sched_getaffinity(0, sizeof before, &before), 0);
    dsi_pool *pool = make_pool(&t, t.n_cpus, DSI_POOL_PIN_AUTO, NULL);
    assert_int_equal(dsi_pool_bound(pool), 2);
    dsi_pool_run(pool, look_at_masks, &seen);
    CPU_ZERO(&all);
    for (uint32_t i = 1; i < t.n_cpus; i++) {
        assert_int_equal(CPU_COUNT(&seen.of[i]), 1);
        assert_true(CPU_ISSET((size_t)seen.cpu[i], &seen.of[i]));
        assert_false(CPU_ISSET((size_t)seen.cpu[i], &all)); /* nobody else has it */
        CPU_SET((size_t)seen.cpu[i], &all);
    }
    assert_true(CPU_EQUAL(&seen.of[0], &before));
    /* The caller is moved onto each CPU in turn, as a scheduler might: its worker makes way. */
    for (uint32_t c = 0; c < t.n_cpus; c++) {
        cpu_set_t one;
        CPU_ZERO(&one);
        CPU_SET(t.cpus[c].id, &one);
        assert_int_equal(sched_setaffinity(0, sizeof one, &one), 0);
        dsi_pool_run(pool, look_at_masks, &seen);
        for (uint32_t i = 1; i < t.n_cpus; i++) {
            assert_int_equal(CPU_COUNT(&seen.of[i]), 1);
            assert_false(CPU_ISSET(t.cpus[c].id, &seen.of[i]));
        }
    }
    assert_int_equal(sched_setaffinity(0, sizeof before, &before), 0);
    dsi_pool_free(pool);
    assert_int_equal(sched_getaffinity(0, sizeof after, &after), 0);
    assert_true(CPU_EQUAL(&before, &after));
    dsi_topology_free(&t);
}

static void count_warning(void *user, uint32_t level, const char *component, const char *text) {
    (void)component;
    if (level == DSI_LOG_WARN && strstr(text, "pin on")) ++*(int *)user;
}

/* CPUs belong to one pool; a child of fork() has those of its parent in mind. */
static void test_no_stacking(void **state) {
    (void)state;
    machine m;
    int n_warnings = 0;
    dsi_log log = {.write = count_warning, .user = &n_warnings};
    make_machine(&m, 1, 1, 4, 0);
    dsi_pool *first = make_pool(&m.topology, 4, DSI_POOL_PIN_AUTO, NULL);
    dsi_pool *second = make_pool(&m.topology, 4, DSI_POOL_PIN_AUTO, NULL);
    dsi_pool *third = make_pool(&m.topology, 2, DSI_POOL_PIN_ON, &log);
    assert_int_equal(dsi_pool_bound(first), 2);
    assert_int_equal(dsi_pool_bound(second) + dsi_pool_bound(third), 0);
    assert_int_equal(n_warnings, 1);
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        dsi_pool_free(first); /* the parent's CPUs stay the parent's */
        dsi_pool *own = make_pool(&m.topology, 4, DSI_POOL_PIN_AUTO, NULL);
        _exit(dsi_pool_bound(own) == 0 ? 0 : 1);
    }
    int status;
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    dsi_pool_free(first);
    dsi_pool_free(second);
    dsi_pool_free(third);
    first = make_pool(&m.topology, 2, DSI_POOL_PIN_ON, &log);
    second = make_pool(&m.topology, 2, DSI_POOL_PIN_ON, &log);
    assert_int_equal(dsi_pool_bound(first) + dsi_pool_bound(second), 4); /* two CPUs each */
    assert_int_equal(n_warnings, 1);
    dsi_pool_free(first);
    dsi_pool_free(second);
}

/* Who has not all cores, or is not paid for them, stays where the scheduler puts him. */
static void test_auto(void **state) {
    (void)state;
    machine m;
    make_machine(&m, 1, 2, 2, 0);
    const struct {
        uint32_t n, pin;
        double quota;
        uint32_t bound;
    } cases[] = {
        {4, DSI_POOL_PIN_AUTO, 0, 2}, {3, DSI_POOL_PIN_AUTO, 0, 0}, {4, DSI_POOL_PIN_AUTO, 3.5, 0},
        {4, DSI_POOL_PIN_AUTO, 4, 2}, {5, DSI_POOL_PIN_AUTO, 0, 0}, {5, DSI_POOL_PIN_ON, 0, 0},
        {3, DSI_POOL_PIN_ON, 1, 2},   {4, DSI_POOL_PIN_OFF, 0, 0},  {1, DSI_POOL_PIN_ON, 0, 0}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        m.topology.quota = cases[i].quota;
        dsi_pool *pool = make_pool(&m.topology, cases[i].n, cases[i].pin, NULL);
        assert_int_equal(dsi_pool_bound(pool), cases[i].bound);
        check_meetings(pool, 3);
        dsi_pool_free(pool);
    }
}

/* A run inside a run of another pool: each thread keeps its number in both. */
static void inner(void *context, uint32_t thread, uint32_t n_threads) {
    rounds *r = context;
    (void)n_threads;
    dsi_pool_barrier(r->pool);
    r->cells[thread][1]++;
}
typedef struct nested {
    dsi_pool *outer;
    rounds in;
} nested;
static void outer(void *context, uint32_t thread, uint32_t n_threads) {
    nested *n = context;
    dsi_pool_barrier(n->outer);
    if (thread + 1 == n_threads) dsi_pool_run(n->in.pool, inner, &n->in);
    dsi_pool_barrier(n->outer);
}
static void test_nested(void **state) {
    (void)state;
    machine m;
    make_machine(&m, 2, 1, 2, 0);
    nested n = {.outer = make_pool(&m.topology, 4, DSI_POOL_PIN_AUTO, NULL)};
    n.in.pool = make_pool(&m.topology, 3, DSI_POOL_PIN_AUTO, NULL);
    for (uint64_t i = 1; i <= 50; i++) {
        dsi_pool_run(n.outer, outer, &n);
        for (int t = 0; t < 3; t++) assert_int_equal(n.in.cells[t][1], i);
    }
    dsi_pool_free(n.outer);
    dsi_pool_free(n.in.pool);
}

/* ---- Gates and what is counted --------------------------------------------------------------- */

typedef struct behind {
    dsi_pool *pool;
    uint32_t number, opener;
    uint64_t made, seen[MAX_THREADS];
} behind;
static void go_through(void *context, uint32_t thread, uint32_t n_threads) {
    behind *b = context;
    (void)n_threads;
    if (thread == b->opener) {
        if (b->number % 8 == 0) usleep(200); /* the others are asleep by then */
        b->made++;
        dsi_pool_gate_open(b->pool);
    }
    dsi_pool_gate_wait(b->pool, b->number);
    b->seen[thread] = b->made;
}
static void test_gate(void **state) {
    (void)state;
    machine m;
    make_machine(&m, 2, 2, 1, 0);
    for (uint32_t n_threads = 1; n_threads <= 4; n_threads++) {
        behind b = {.pool = make_pool(&m.topology, n_threads, DSI_POOL_PIN_AUTO, NULL)};
        for (uint64_t i = 1; i <= 200; i++) {
            b.number = dsi_pool_gate(b.pool);
            b.opener = (uint32_t)i % n_threads;
            dsi_pool_run(b.pool, go_through, &b);
            for (uint32_t t = 0; t < n_threads; t++) assert_int_equal(b.seen[t], i);
        }
        dsi_pool_free(b.pool);
    }
}

static void stand(void *context, uint32_t thread, uint32_t n_threads) {
    behind *b = context;
    (void)n_threads;
    if (thread == 1) usleep(20000);
    if (thread == 1) dsi_pool_gate_open(b->pool);
    if (thread == 2) dsi_pool_gate_wait(b->pool, b->number);
    dsi_pool_barrier(b->pool);
}
/* Two of three threads wait 20 ms for the third, one at a gate and one at the barrier. */
static void test_counters(void **state) {
    (void)state;
    machine m;
    make_machine(&m, 1, 1, 3, 0);
    behind b = {.pool = make_pool(&m.topology, 3, DSI_POOL_PIN_OFF, NULL)};
    for (int watched = 0; watched < 2; watched++) {
        b.number = dsi_pool_gate(b.pool);
        dsi_pool_watch(b.pool, watched != 0);
        dsi_pool_run(b.pool, stand, &b);
        dsi_pool_counters c = dsi_pool_count(b.pool);
        assert_int_equal(c.n_meetings, 2 + 2 * watched); /* the barrier, the end of the run */
        if (!watched) assert_true(c.waited_seconds == 0);
        if (watched) assert_true(c.waited_seconds >= 0.038 && c.waited_seconds < 30);
    }
    dsi_pool_free(b.pool);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_trees), cmocka_unit_test(test_refused),
        cmocka_unit_test(test_bound), cmocka_unit_test(test_no_stacking),
        cmocka_unit_test(test_auto),  cmocka_unit_test(test_nested),
        cmocka_unit_test(test_gate),  cmocka_unit_test(test_counters),
    };
    return cmocka_run_group_tests_name("pool", tests, NULL, NULL);
}
