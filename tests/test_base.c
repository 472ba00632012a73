/* test_base.c: errors, checked arithmetic, tables, the log, and the thread pool. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "../lib/base/base.h"
#include "../lib/base/pool.h"
#include "../lib/base/sys.h"
#include <deepseek/dsinfer.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__) || defined(DSI_VALGRIND)
#define SANITIZED 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define SANITIZED 1
#endif
#endif
#ifndef SANITIZED
#define SANITIZED 0
#endif

/* ---- base.h ---- */

static void test_fail(void **state) {
    (void)state;
    dsi_error error = {0};
    assert_int_equal(dsi_fail(&error, DSI_E_ARG, "n is %d", 7), DSI_E_ARG);
    assert_int_equal(error.status, DSI_E_ARG);
    assert_string_equal(error.text, "n is 7");
    assert_int_equal(dsi_fail_prefix(&error, "config.json"), DSI_E_ARG);
    assert_string_equal(error.text, "config.json: n is 7");
    assert_int_equal(dsi_fail(&error, DSI_E_IO, "[%s]", error.text), DSI_E_IO);
    assert_string_equal(error.text, "[config.json: n is 7]");
    dsi_fail(&error, DSI_E_ARG, "%s", "a\nb\tc\x1B[1m\x7F");
    assert_string_equal(error.text, "a?b?c?[1m?");
    assert_int_equal(dsi_fail(NULL, DSI_E_NAN, "%s", "x"), DSI_E_NAN);
    assert_int_not_equal(dsi_fail_prefix(NULL, "x"), DSI_OK);
}

/* A message too long ends in front of the character that does not fit whole. */
static void test_fail_truncates(void **state) {
    (void)state;
    static const char *const characters[] = {"x", "\xC3\xA4", "\xE2\x82\xAC", "\xF0\x9F\x98\x80"};
    for (size_t c = 0; c < 4; c++) {
        size_t n_character = strlen(characters[c]);
        for (size_t shift = 0; shift < n_character; shift++) {
            char text[2000] = "yyyy";
            size_t n = shift;
            for (; n + n_character < sizeof text; n += n_character) {
                memcpy(text + n, characters[c], n_character + 1);
            }
            dsi_error error = {0};
            dsi_fail(&error, DSI_E_ARG, "%s", text);
            size_t limit = DSI_ERROR_TEXT_BYTES - 1;
            size_t want = shift + (limit - shift) / n_character * n_character;
            assert_int_equal(strlen(error.text), want);
            assert_memory_equal(error.text, text, want);
        }
    }
    char exact[DSI_ERROR_TEXT_BYTES];
    memset(exact, 'e', sizeof exact - 1);
    exact[sizeof exact - 1] = '\0';
    dsi_error error = {0};
    dsi_fail(&error, DSI_E_ARG, "%s", exact);
    assert_string_equal(error.text, exact);
    dsi_fail_prefix(&error, "p");
    assert_memory_equal(error.text, "p: eee", 6);
    assert_int_equal(strlen(error.text), sizeof exact - 1);
}

static void test_checked_arithmetic(void **state) {
    (void)state;
    uint64_t out = 5;
    assert_true(dsi_mul_ok(UINT32_MAX, UINT32_MAX, &out));
    assert_true(out == 0xFFFFFFFE00000001u);
    assert_false(dsi_mul_ok(UINT64_MAX, 2, &out));
    assert_false(dsi_add_ok(UINT64_MAX, 1, &out));
    assert_true(out == 0xFFFFFFFE00000001u);
    assert_true(dsi_add_ok(UINT64_MAX - 1, 1, &out) && out == UINT64_MAX);
    assert_true(dsi_mul_ok(0, UINT64_MAX, &out) && out == 0);
    assert_int_equal(dsi_ceil_div(0, 3), 0);
    assert_int_equal(dsi_ceil_div(7, 3), 3);
    assert_int_equal(dsi_ceil_div(9, 3), 3);
    assert_int_equal(dsi_min_i64(-1, 2), -1);
    assert_int_equal(dsi_max_i64(-1, 2), 2);
}

static int compare_items(const void *a, const void *b) {
    uint32_t x, y;
    memcpy(&x, a, sizeof x);
    memcpy(&y, b, sizeof y);
    return (x > y) - (x < y);
}

/* Every length to 100 and a long one, items of 4 to 64 bytes, keys that are random, few, rising and
 * falling: in order, and each item still whole (the last byte belongs to the key). */
static void test_sort(void **state) {
    (void)state;
    static unsigned char items[70000 * 8];
    static const uint64_t sizes[] = {5, 8, 12, 64};
    uint32_t random = 1;
    for (uint64_t n = 0; n <= 101; n++) {
        for (uint32_t way = 0; way < 4 * 4; way++) {
            uint64_t size = sizes[way % 4], count = n == 101 ? sizeof items / size : n, sum = 0;
            for (uint64_t i = 0; i < count; i++) {
                random = random * 1664525 + 1013904223;
                uint32_t keys[] = {random, random >> 30, (uint32_t)i, (uint32_t)(count - i)};
                uint32_t key = keys[way / 4];
                memcpy(items + i * size, &key, sizeof key);
                items[i * size + size - 1] = (unsigned char)(key * 7 + 1);
                sum += key;
            }
            dsi_sort(items, count, size, compare_items);
            uint32_t before = 0, key = 0;
            for (uint64_t i = 0; i < count; i++, before = key) {
                memcpy(&key, items + i * size, sizeof key);
                if (key < before || items[i * size + size - 1] != (unsigned char)(key * 7 + 1))
                    fail_msg("%u of %u items, way %u", (unsigned)i, (unsigned)count, way);
                sum -= key;
            }
            assert_true(sum == 0);
        }
    }
}

static void test_tables(void **state) {
    (void)state;
    assert_int_equal(dsi_dtype_bytes(DSI_DTYPE_BF16), 2);
    assert_int_equal(dsi_dtype_bytes(DSI_DTYPE_E4M3), 1);
    assert_int_equal(dsi_dtype_bytes(DSI_DTYPE_NONE), 0);
    assert_int_equal(dsi_dtype_bytes(99), 0);
    assert_string_equal(dsi_dtype_name(DSI_DTYPE_E4M3), "F8_E4M3");
    assert_string_equal(dsi_dtype_name(99), "?");
    uint32_t n_known = 0;
    for (dsi_dtype dtype = 1; dtype < 100; dtype++) {
        if (dsi_dtype_bytes(dtype) == 0) continue;
        n_known++;
        const char *name = dsi_dtype_name(dtype);
        assert_int_equal(dsi_dtype_from_name(name, strlen(name)), dtype);
        assert_int_equal(dsi_dtype_from_name(name, strlen(name) - 1), DSI_DTYPE_NONE);
    }
    assert_int_equal(n_known, 12);
    assert_string_equal(dsi_dtype_name(DSI_DTYPE_I4), "I4");
    assert_int_equal(dsi_dtype_from_name("I4", 2), DSI_DTYPE_NONE); /* no file holds it */
    assert_int_equal(dsi_dtype_from_name("F8_E4M3FN", 9), DSI_DTYPE_NONE);
    assert_int_equal(dsi_dtype_from_name("bf16", 4), DSI_DTYPE_NONE);
    assert_int_equal(dsi_dtype_from_name("", 0), DSI_DTYPE_NONE);
    assert_string_equal(dsi_status_name(DSI_OK), "DSI_OK");
    assert_string_equal(dsi_status_name(-17), "DSI_E_INTERNAL");
    assert_string_equal(dsi_status_name(1), "DSI_E_UNKNOWN");
    assert_string_equal(dsi_status_name(INT32_MIN), "DSI_E_UNKNOWN");
    for (dsi_status status = 0; status >= -17; status--) {
        assert_string_not_equal(dsi_status_name(status), "DSI_E_UNKNOWN");
        assert_string_not_equal(dsi_status_text(status), dsi_status_text(1));
    }
}

static void test_row_bytes(void **state) {
    (void)state;
    int64_t n = -1;
    assert_true(dsi_dtype_row_bytes(DSI_DTYPE_BF16, 7, &n) && n == 14);
    assert_true(dsi_dtype_row_bytes(DSI_DTYPE_I8, 0, &n) && n == 0);
    assert_true(dsi_dtype_row_bytes(DSI_DTYPE_I4, 0, &n) && n == 0);
    assert_true(dsi_dtype_row_bytes(DSI_DTYPE_Q8_0, 96, &n) && n == 3 * 34);
    assert_true(dsi_dtype_row_bytes(DSI_DTYPE_Q4_K, 7168, &n) && n == 28 * 144);
    assert_false(dsi_dtype_row_bytes(DSI_DTYPE_Q4_K, 128, &n)); /* half a block */
    assert_int_equal(dsi_dtype_block(DSI_DTYPE_IQ4_XS).values, 256);
    assert_int_equal(dsi_dtype_block(DSI_DTYPE_BF16).values, 0);
    assert_string_equal(dsi_dtype_name(DSI_DTYPE_Q6_K), "Q6_K");
    assert_int_equal(DSI_DTYPE_Q6_K - DSI_DTYPE_BLOCKS, 14);
    assert_true(dsi_dtype_row_bytes(DSI_DTYPE_I4, 1, &n) && n == 4); /* whole words */
    assert_true(dsi_dtype_row_bytes(DSI_DTYPE_I4, 8, &n) && n == 4);
    assert_true(dsi_dtype_row_bytes(DSI_DTYPE_I4, 9, &n) && n == 8);
    assert_true(dsi_dtype_row_bytes(DSI_DTYPE_I4, INT64_MAX, &n) && n == (INT64_C(1) << 62));
    assert_true(dsi_dtype_row_bytes(DSI_DTYPE_I8, INT64_MAX, &n) && n == INT64_MAX);
    n = 5;
    assert_false(dsi_dtype_row_bytes(DSI_DTYPE_BF16, INT64_MAX / 2 + 1, &n));
    assert_false(dsi_dtype_row_bytes(DSI_DTYPE_I8, -1, &n));
    assert_false(dsi_dtype_row_bytes(99, 1, &n));
    assert_int_equal(n, 5); /* untouched by a refusal */
    dsi_scale_span span = dsi_scale_span_of(DSI_SCALE_BLOCK_128, 0, 576);
    assert_true(span.n == 128 && span.k == 128);
    span = dsi_scale_span_of(DSI_SCALE_CHANNEL, 0, 576);
    assert_true(span.n == 1 && span.k == 576);
    span = dsi_scale_span_of(DSI_SCALE_GROUP, 32, 576);
    assert_true(span.n == 1 && span.k == 32);
    span = dsi_scale_span_of(DSI_SCALE_NONE, 32, 576);
    assert_true(span.n == 0 && span.k == 0);
}

typedef struct seen_log {
    uint32_t n, level;
    char text[DSI_ERROR_TEXT_BYTES], component[32];
} seen_log;

static void write_log(void *user, uint32_t level, const char *component, const char *text) {
    seen_log *seen = user;
    seen->n++;
    seen->level = level;
    snprintf(seen->text, sizeof seen->text, "%s", text);
    snprintf(seen->component, sizeof seen->component, "%s", component);
}

static void test_log(void **state) {
    (void)state;
    seen_log seen = {0};
    dsi_log log = {.write = write_log, .user = &seen};
    dsi_logf(&log, DSI_LOG_INFO, "model", "%d\nlayers", 61);
    assert_int_equal(seen.n, 1);
    assert_int_equal(seen.level, DSI_LOG_INFO);
    assert_string_equal(seen.component, "model");
    assert_string_equal(seen.text, "61?layers");
    dsi_logf(NULL, DSI_LOG_INFO, "x", "y");
    dsi_log silent = {0};
    dsi_logf(&silent, DSI_LOG_INFO, "x", "y");
    assert_int_equal(seen.n, 1);
}

/* ---- pool.h ---- */

enum { ROUNDS = 2, MAX_THREADS = 8 };

typedef struct shared {
    dsi_pool *pool;
    uint64_t cells[MAX_THREADS]; /* cell i is written by thread i, read by all behind a barrier */
    uint64_t sums[MAX_THREADS];
    uint32_t n_seen[MAX_THREADS];
} shared;

/* Each round: write the own cell, meet, add all cells, meet. A barrier that lets one thread pass
 * too early gives a wrong sum (and a race that ThreadSanitizer reports). */
static void sum_rounds(void *context, uint32_t thread, uint32_t n_threads) {
    shared *s = context;
    s->n_seen[thread] = n_threads;
    for (uint64_t round = 0; round < ROUNDS; round++) {
        s->cells[thread] = round * 10 + thread + 1;
        dsi_pool_barrier(s->pool);
        for (uint32_t i = 0; i < n_threads; i++) s->sums[thread] += s->cells[i];
        dsi_pool_barrier(s->pool);
    }
}

static void check_pool(uint32_t n_threads, uint32_t n_runs) {
    dsi_error error = {0};
    shared s = {0};
    assert_int_equal(dsi_pool_new(n_threads, NULL, &s.pool, &error), DSI_OK);
    assert_int_equal(dsi_pool_size(s.pool), n_threads);
    uint64_t n = n_threads, each = 0;
    for (uint64_t round = 0; round < ROUNDS; round++) each += n * round * 10 + n * (n + 1) / 2;
    for (uint32_t run = 1; run <= n_runs; run++) {
        dsi_pool_run(s.pool, sum_rounds, &s);
        for (uint32_t i = 0; i < n_threads; i++) {
            if (s.sums[i] != each * run || s.n_seen[i] != n_threads) {
                fail_msg("%u threads, run %u, thread %u: wrong sum", n_threads, run, i);
            }
        }
        if (run % 1000 == 0) usleep(300); /* the workers fall asleep */
    }
    dsi_pool_free(s.pool);
}

static void test_pool_sums(void **state) {
    (void)state;
    check_pool(1, 10000);
    check_pool(2, 10000);
    check_pool(3, 3000);
    check_pool(8, 1000); /* more threads than most test machines have CPUs: no spinning */
}

/* Threads that arrive late by turns: the others must have gone to sleep and wake up again. */
static void late_by_turns(void *context, uint32_t thread, uint32_t n_threads) {
    shared *s = context;
    for (uint32_t round = 0; round < n_threads; round++) {
        if (round == thread) usleep(1000);
        s->cells[thread]++;
        dsi_pool_barrier(s->pool);
        for (uint32_t i = 0; i < n_threads; i++) s->sums[thread] += s->cells[i];
        dsi_pool_barrier(s->pool);
    }
}

static void test_pool_sleeps(void **state) {
    (void)state;
    for (uint32_t n = 2; n <= 4; n++) {
        shared s = {0};
        dsi_error error = {0};
        assert_int_equal(dsi_pool_new(n, NULL, &s.pool, &error), DSI_OK);
        for (uint64_t run = 1; run <= 20; run++) {
            memset(s.sums, 0, sizeof s.sums);
            memset(s.cells, 0, sizeof s.cells);
            dsi_pool_run(s.pool, late_by_turns, &s);
            for (uint32_t i = 0; i < n; i++) {
                assert_int_equal(s.sums[i], (uint64_t)n * n * (n + 1) / 2);
            }
        }
        dsi_pool_free(s.pool);
    }
}

static void test_pool_unused(void **state) {
    (void)state;
    dsi_error error = {0};
    for (int i = 0; i < 200; i++) { /* freed while workers may still be starting */
        dsi_pool *pool;
        assert_int_equal(dsi_pool_new(4, NULL, &pool, &error), DSI_OK);
        dsi_pool_free(pool);
    }
    dsi_pool_free(NULL);
    dsi_pool *pool;
    assert_int_equal(dsi_pool_new(0, NULL, &pool, &error), DSI_E_ARG);
    assert_null(pool);
    assert_int_equal(dsi_pool_new(UINT32_MAX, NULL, &pool, &error), DSI_E_ARG);
    assert_string_equal(error.text, "n_threads is 4294967295; it must be 1 to 1024");
}

static void look_at_mask(void *context, uint32_t thread, uint32_t n_threads) {
    (void)n_threads;
    sigset_t mask;
    pthread_sigmask(SIG_SETMASK, NULL, &mask);
    ((int *)context)[thread] = sigismember(&mask, SIGTERM) == 1 && sigismember(&mask, SIGUSR1) == 1;
}

/* The host's signal handlers run on the host's threads, never on ours. */
static void test_pool_signals(void **state) {
    (void)state;
    dsi_error error = {0};
    dsi_pool *pool;
    int blocked[3] = {-1, -1, -1};
    assert_int_equal(dsi_pool_new(3, NULL, &pool, &error), DSI_OK);
    dsi_pool_run(pool, look_at_mask, blocked);
    dsi_pool_free(pool);
    assert_int_equal(blocked[0], 0);
    assert_int_equal(blocked[1], 1);
    assert_int_equal(blocked[2], 1);
}

/* In a process of its own: with no address space left for stacks the pool must be smaller, say so
 * once, and work. Returns the exit code: 0 if all that was seen. */
static int run_without_space(void) {
    unsigned long pages = 0;
    FILE *file = fopen("/proc/self/statm", "r");
    if (file == NULL || fscanf(file, "%lu", &pages) != 1) return 2;
    fclose(file);
    struct rlimit limit, stack;
    getrlimit(RLIMIT_AS, &limit);
    getrlimit(RLIMIT_STACK, &stack);
    rlim_t one = stack.rlim_cur == RLIM_INFINITY ? (rlim_t)8 << 20 : stack.rlim_cur;
    limit.rlim_cur = (rlim_t)pages * (rlim_t)sysconf(_SC_PAGESIZE) + 2 * one + one / 2;
    if (setrlimit(RLIMIT_AS, &limit) != 0) return 3;
    seen_log seen = {0};
    dsi_log log = {.write = write_log, .user = &seen};
    shared s = {0};
    dsi_error error = {0};
    if (dsi_pool_new(8, &log, &s.pool, &error) != DSI_OK) return 4;
    uint32_t n = dsi_pool_size(s.pool);
    if (n < 1 || n > 7) return 5;
    if (seen.n != 1 || seen.level != DSI_LOG_WARN || strstr(seen.text, "of 8") == NULL) return 6;
    for (int i = 0; i < 100; i++) dsi_pool_run(s.pool, sum_rounds, &s);
    for (uint32_t i = 0; i < n; i++) {
        if (s.n_seen[i] != n || s.sums[i] != s.sums[0]) return 7;
    }
    dsi_pool_free(s.pool);
    return 0;
}

static void test_pool_refused_threads(void **state) {
    (void)state;
    if (SANITIZED) skip(); /* sanitizers need the address space for themselves */
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) _exit(run_without_space());
    int status = 0;
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), 0);
}

static void test_pool_share(void **state) {
    (void)state;
    static const uint64_t items[] = {0, 1, 2, 7, 64, 65, 127, 1000, 7168, UINT64_MAX};
    static const uint64_t grains[] = {0, 1, 2, 16, 64, 5000, UINT64_MAX};
    for (size_t i = 0; i < sizeof items / sizeof *items; i++) {
        for (size_t g = 0; g < sizeof grains / sizeof *grains; g++) {
            for (uint32_t n_threads = 1; n_threads < 40; n_threads++) {
                uint64_t expected = 0, least = UINT64_MAX, most = 0;
                for (uint32_t thread = 0; thread < n_threads; thread++) {
                    uint64_t begin, end, grain = grains[g] == 0 ? 1 : grains[g];
                    dsi_pool_share(items[i], grains[g], thread, n_threads, &begin, &end);
                    assert_true(begin == expected && begin <= end);
                    assert_true(begin % grain == 0 || begin == items[i]);
                    uint64_t blocks = (end - begin) / grain + ((end - begin) % grain != 0);
                    if (blocks < least) least = blocks;
                    if (blocks > most) most = blocks;
                    expected = end;
                }
                assert_true(expected == items[i] && most - least <= 1);
            }
        }
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_pool_refused_threads), /* first: it forks a quiet process */
        cmocka_unit_test(test_fail),
        cmocka_unit_test(test_fail_truncates),
        cmocka_unit_test(test_checked_arithmetic),
        cmocka_unit_test(test_sort),
        cmocka_unit_test(test_tables),
        cmocka_unit_test(test_row_bytes),
        cmocka_unit_test(test_log),
        cmocka_unit_test(test_pool_share),
        cmocka_unit_test(test_pool_sums),
        cmocka_unit_test(test_pool_sleeps),
        cmocka_unit_test(test_pool_unused),
        cmocka_unit_test(test_pool_signals),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
