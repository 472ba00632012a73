/* test_placement.c: weights read in the mapped files and weights copied into memory of the engine's
 * own: the same bits, counted in the plan, refused by a cap, and given back. */
#include "../lib/base/fault.h"
#include "session_tools.h"

static const char *const models[] = {TINY_GOV,
                                     "tests/data/golden/v3-fp8",
                                     "tests/data/golden/v3-odd",
                                     "tests/data/golden/v2-lite",
                                     "tests/data/golden/qwen2",
                                     "tests/data/golden/llama"};
enum { N_MODELS = sizeof models / sizeof models[0], N_TOKENS = 12 };

static dsi_engine_options options_with(uint32_t weights, uint32_t n_threads) {
    dsi_engine_options o = engine_of(96, 16, 1);
    o.weights = weights;
    o.n_threads = n_threads;
    return o;
}

/* Of all logits of a prompt and some tokens behind it. */
static uint64_t hash_of_answer(dsi_model *model, uint32_t weights, uint32_t n_threads) {
    dsi_engine_options o = options_with(weights, n_threads);
    dsi_session_options so;
    dsi_session_options_init(&so);
    so.ignore_end = 1;
    dsi_engine *e = start_engine(model, &o);
    dsi_session *s = start_session(e, &so);
    append_made_up(s, 30, 1);
    step_all(s);
    uint64_t hash = last_hash(s);
    for (int i = 0; i < N_TOKENS; i++) {
        draw_tokens(s, 1);
        hash = hash * 31 + last_hash(s);
    }
    dsi_session_close(s);
    dsi_engine_close(e);
    return hash;
}

static void test_same_bits(void **state) {
    (void)state;
    for (int i = 0; i < N_MODELS; i++) {
        dsi_model *model = load_model(models[i]);
        uint64_t want = hash_of_answer(model, DSI_WEIGHTS_MAP, 1);
        assert_true(want != 0);
        for (uint32_t n = 1; n <= 3; n++)
            if (hash_of_answer(model, DSI_WEIGHTS_COPY, n) != want)
                fail_msg("%s, %u threads: copied weights give other logits", models[i], n);
        dsi_model_close(model);
    }
}

/* ---- Plan, cap, progress, memory --------------------------------------------------------------
 */

typedef struct seen {
    uint64_t done, total, n_calls;
    bool in_order;
} seen;
static void look(void *user, uint32_t stage, uint64_t done, uint64_t total) {
    seen *s = user;
    if (stage != DSI_STAGE_LOAD) return;
    s->in_order = s->in_order && done >= s->done && done <= total;
    s->done = done, s->total = total, s->n_calls++;
}

static uint64_t weights_in_use(void) {
    dsi_memory_counts counts;
    dsi_memory_counts_now(&counts);
    return counts.n_bytes[DSI_MEMORY_WEIGHTS];
}

static void test_counted(void **state) {
    (void)state;
    seen s = {.in_order = true};
    dsi_model_options mo;
    dsi_model_options_init(&mo);
    mo.progress = look, mo.progress_user = &s;
    dsi_model *model;
    assert_int_equal(dsi_model_open(TINY_GOV, &mo, &model), DSI_OK);
    dsi_memory_plan plans[2] = {{.struct_size = sizeof(dsi_memory_plan)},
                                {.struct_size = sizeof(dsi_memory_plan)}};
    dsi_engine_options map = options_with(DSI_WEIGHTS_MAP, 2);
    dsi_engine_options copy = options_with(DSI_WEIGHTS_COPY, 2);
    assert_int_equal(dsi_plan(model, &map, &plans[0]), DSI_OK);
    assert_int_equal(dsi_plan(model, &copy, &plans[1]), DSI_OK);
    /* a few bytes more, as matrices begin at multiples of 64 */
    assert_true(plans[1].n_bytes_weights >= plans[0].n_bytes_weights);
    assert_true(plans[1].n_bytes_weights < plans[0].n_bytes_weights * 101 / 100 + 65536);
    uint64_t before = weights_in_use();
    dsi_engine *mapped = start_engine(model, &map);
    uint64_t with_map = weights_in_use() - before;
    dsi_engine_close(mapped);
    s = (seen){.in_order = true};
    dsi_engine *copied = start_engine(model, &copy);
    uint64_t with_copy = weights_in_use() - before;
    assert_true(s.in_order && s.n_calls > 10 && s.done == s.total);
    assert_true(with_map < 1 << 20); /* norms and tables */
    assert_true(with_copy >= plans[1].n_bytes_weights);
    assert_true(with_copy < plans[1].n_bytes_weights + (5 << 20)); /* a huge page in front */
    dsi_engine_close(copied);
    assert_int_equal(weights_in_use(), before);
    dsi_model_close(model);
}

static void test_cap(void **state) {
    (void)state;
    dsi_model *model = load_model(TINY_GOV);
    dsi_engine_options o = options_with(DSI_WEIGHTS_COPY, 1);
    dsi_engine *e;
    o.max_memory = 5 << 20;
    assert_int_equal(dsi_engine_open(model, &o, &e), DSI_E_MEMORY_CAP);
    const char *const words[] = {"copied", "weights map", "max_memory", NULL};
    assert_says(dsi_last_error(NULL), words);
    o.weights = 3;
    assert_int_equal(dsi_engine_open(model, &o, &e), DSI_E_ARG);
    assert_says(dsi_last_error(NULL), (const char *const[]){"weights is 3", NULL});
    o.weights = 0, o.pin = 3;
    assert_int_equal(dsi_engine_open(model, &o, &e), DSI_E_ARG);
    assert_says(dsi_last_error(NULL), (const char *const[]){"pin is 3", NULL});
    dsi_model_close(model);
}

/* Every mapping of memory refused in turn, and all advice: an error or the same engine. */
static void test_faults(void **state) {
    (void)state;
    dsi_model *model = load_model(TINY_GOV);
    dsi_memory_counts before, after;
    dsi_memory_counts_now(&before);
    dsi_engine_options o = options_with(DSI_WEIGHTS_COPY, 2);
    uint64_t n_failed = 0;
    for (uint64_t nth = 1;; nth++) {
        dsi_engine *e = NULL;
        dsi_fault_arm(&(dsi_fault){.kind = DSI_CALL_MMAP, .nth = nth});
        dsi_status st = dsi_engine_open(model, &o, &e);
        dsi_fault_disarm();
        bool struck = dsi_fault_struck() != 0;
        assert_int_equal(st, struck ? DSI_E_NOMEM : DSI_OK);
        n_failed += struck;
        dsi_engine_close(e);
        dsi_memory_counts_now(&after);
        assert_int_equal(after.n_blocks, before.n_blocks);
        if (!struck) break;
    }
    assert_true(n_failed >= 1); /* the copy itself */
    uint64_t want = hash_of_answer(model, DSI_WEIGHTS_MAP, 2);
    dsi_fault_arm(&(dsi_fault){.kind = DSI_CALL_MADVISE, .nth = 1, .onwards = true});
    assert_true(hash_of_answer(model, DSI_WEIGHTS_COPY, 2) == want);
    dsi_fault_disarm();
    assert_true(dsi_fault_struck() >= 2);
    dsi_model_close(model);
}

/* ---- Huge blocks ------------------------------------------------------------------------------
 */

static void test_huge_blocks(void **state) {
    (void)state;
    const uint64_t sizes[] = {0, 1, 4096, (2 << 20) - 1, 2 << 20, (2 << 20) + 1, 9 << 20};
    dsi_memory_counts before, after;
    dsi_memory_counts_now(&before);
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        uint8_t *block = dsi_sys_alloc_huge(sizes[i]);
        assert_non_null(block);
        assert_int_equal((uintptr_t)block % 64, 0);
        if (sizes[i] >= 2 << 20) assert_int_equal((uintptr_t)block % (2 << 20), 0);
        for (uint64_t b = 0; b < sizes[i]; b += 509) assert_int_equal(block[b], 0);
        if (sizes[i]) memset(block, 0xa5, sizes[i]);
        dsi_sys_free(block);
    }
    assert_null(dsi_sys_alloc_huge(UINT64_MAX));
    assert_null(dsi_sys_alloc_huge(UINT64_MAX - (3 << 20)));
    assert_null(dsi_sys_alloc_huge((uint64_t)1 << 62));
    dsi_memory_counts_now(&after);
    assert_int_equal(after.n_blocks, before.n_blocks);
    assert_int_equal(after.n_bytes_total, before.n_bytes_total);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_same_bits),   cmocka_unit_test(test_counted),
        cmocka_unit_test(test_cap),         cmocka_unit_test(test_faults),
        cmocka_unit_test(test_huge_blocks),
    };
    return cmocka_run_group_tests_name("placement", tests, NULL, NULL);
}
