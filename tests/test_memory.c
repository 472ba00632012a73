/* test_memory.c: the caller's allocator and the memory report, from open to close. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "../lib/base/sys.h"
#include <deepseek/dsinfer.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#if defined(__has_feature) && !defined(__SANITIZE_ADDRESS__)
#if __has_feature(address_sanitizer)
#define __SANITIZE_ADDRESS__ 1
#endif
#endif
#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#include <sanitizer/lsan_interface.h>
#endif

static const char model_path[] = "examples/models/tiny-gov";

/* ---- An allocator that keeps its own books and refuses to be wrong ---- */

enum { MAX_BLOCKS = 4096 };

typedef struct books {
    pthread_mutex_t mutex;
    struct {
        void *block;
        size_t n_bytes;
    } blocks[MAX_BLOCKS];
    uint64_t n_blocks, n_bytes, n_allocated, n_released, n_peak;
    uint64_t fails_at; /* this allocation gets nothing; 0: none */
    char wrong[128];   /* the first broken promise of the library */
} books;

static void note_wrong(books *b, const char *what) {
    if (b->wrong[0] == '\0') strncpy(b->wrong, what, sizeof b->wrong - 1);
}

static void *allocate(void *user, size_t n_bytes, size_t alignment) {
    books *b = user;
    void *block = NULL;
    pthread_mutex_lock(&b->mutex);
    if (n_bytes == 0) note_wrong(b, "0 bytes asked for");
    if (alignment < 16 || (alignment & (alignment - 1)) != 0) note_wrong(b, "odd alignment");
    bool fails = ++b->n_allocated == b->fails_at;
    if (!fails && b->n_blocks < MAX_BLOCKS &&
        posix_memalign(&block, alignment, n_bytes + alignment) == 0) {
        memset(block, 0xA5, n_bytes); /* need not be zeroed */
        b->blocks[b->n_blocks].block = block;
        b->blocks[b->n_blocks++].n_bytes = n_bytes;
        b->n_bytes += n_bytes;
        if (b->n_bytes > b->n_peak) b->n_peak = b->n_bytes;
    }
    pthread_mutex_unlock(&b->mutex);
    return block;
}

static void release(void *user, void *block, size_t n_bytes) {
    books *b = user;
    pthread_mutex_lock(&b->mutex);
    uint64_t i = 0;
    while (i < b->n_blocks && b->blocks[i].block != block) i++;
    if (i == b->n_blocks) {
        note_wrong(b, "a block that is not ours, or given back twice");
    } else {
        if (b->blocks[i].n_bytes != n_bytes) note_wrong(b, "another size than was asked for");
        b->n_bytes -= b->blocks[i].n_bytes;
        b->blocks[i] = b->blocks[--b->n_blocks];
        b->n_released++;
        memset(block, 0xDD, n_bytes);
        free(block);
    }
    pthread_mutex_unlock(&b->mutex);
}

static books the_books = {.mutex = PTHREAD_MUTEX_INITIALIZER};

static void set_books(void) {
    the_books = (books){.mutex = PTHREAD_MUTEX_INITIALIZER};
    dsi_allocator ours = {sizeof ours, 0, &the_books, allocate, release};
    assert_int_equal(dsi_set_allocator(&ours), DSI_OK);
    memset(&ours, 0xEE, sizeof ours); /* the struct was copied */
}

static dsi_memory_use report(void) {
    dsi_memory_use use = {.struct_size = sizeof use};
    assert_int_equal(dsi_memory_report(&use), DSI_OK);
    assert_int_equal(use.struct_size, sizeof use);
    assert_true(use.n_bytes_total == use.n_bytes_weights + use.n_bytes_kv + use.n_bytes_scratch +
                                         use.n_bytes_sessions + use.n_bytes_text +
                                         use.n_bytes_other);
    assert_true(use.n_bytes_peak >= use.n_bytes_total);
    return use;
}

/* ---- A small answer ---- */

typedef struct handles {
    dsi_model *model;
    dsi_engine *engine;
    dsi_session *session;
} handles;

static void close_all(handles *h) {
    dsi_session_close(h->session);
    dsi_engine_close(h->engine);
    dsi_model_close(h->model);
    *h = (handles){0};
}

static dsi_status open_all(handles *h) {
    dsi_engine_options engine;
    dsi_session_options session;
    dsi_engine_options_init(&engine);
    dsi_session_options_init(&session);
    engine.n_threads = 2;
    engine.max_context = 128;
    engine.chunk_tokens = 16;
    session.max_tokens = 4;
    *h = (handles){0};
    dsi_status status = dsi_model_open(model_path, NULL, &h->model);
    if (status == DSI_OK) status = dsi_engine_open(h->model, &engine, &h->engine);
    if (status == DSI_OK) status = dsi_session_open(h->engine, &session, &h->session);
    return status;
}

typedef struct answer {
    char text[512];
    size_t n;
} answer;

static int32_t add_text(void *user, uint32_t part, const char *text, size_t n_bytes) {
    answer *a = user;
    (void)part;
    assert_true(a->n + n_bytes < sizeof a->text);
    memcpy(a->text + a->n, text, n_bytes);
    a->n += n_bytes;
    return 0;
}

static void run(answer *a) {
    handles h;
    *a = (answer){0};
    assert_int_equal(open_all(&h), DSI_OK);
    assert_int_equal(dsi_generate(h.session, "The lamp is out.", add_text, a), DSI_OK);
    close_all(&h);
}

/* ---- The contracts ---- */

static void test_report(void **state) {
    (void)state;
    dsi_memory_use use = report();
    assert_int_equal(use.n_blocks, 0);
    assert_int_equal(use.n_bytes_total, 0);
    assert_int_equal(use.n_bytes_mapped, 0);
    handles h;
    assert_int_equal(dsi_model_open(model_path, NULL, &h.model), DSI_OK);
    use = report();
    assert_true(use.n_bytes_text > 100000 && use.n_bytes_mapped > (10 << 20));
    assert_int_equal(use.n_bytes_kv + use.n_bytes_scratch + use.n_bytes_sessions, 0);
    dsi_model_close(h.model);
    assert_int_equal(open_all(&h), DSI_OK);
    dsi_memory_plan plan = {.struct_size = sizeof plan};
    dsi_engine_options options;
    dsi_engine_options_init(&options);
    options.max_context = 128;
    options.chunk_tokens = 16;
    assert_int_equal(dsi_plan(h.model, &options, &plan), DSI_OK);
    use = report();
    assert_true(use.n_bytes_weights > 1000 && use.n_bytes_sessions > 1000);
    assert_true(use.n_bytes_scratch > plan.n_bytes_scratch / 2);
    /* The pool of the plan and the bookkeeping of two blocks, a page at most each. */
    assert_true(use.n_bytes_kv >= plan.n_bytes_kv && use.n_bytes_kv < plan.n_bytes_kv + 16384);
    assert_true(use.n_bytes_other > 0 && use.n_blocks > 20);
    uint64_t peak = use.n_bytes_peak;
    close_all(&h);
    use = report();
    assert_int_equal(use.n_blocks, 0);
    assert_int_equal(use.n_bytes_total, 0);
    assert_int_equal(use.n_bytes_mapped, 0);
    assert_true(use.n_bytes_peak >= peak);
}

/* What a session allocates while it answers belongs to it, to scratch or to the text. */
static void test_classes_of_an_answer(void **state) {
    (void)state;
    handles h;
    answer a = {0};
    assert_int_equal(open_all(&h), DSI_OK);
    dsi_memory_use before = report();
    assert_int_equal(dsi_generate(h.session, "The lamp is out.", add_text, &a), DSI_OK);
    dsi_memory_use after = report();
    assert_int_equal(after.n_bytes_other, before.n_bytes_other);
    assert_int_equal(after.n_bytes_kv, before.n_bytes_kv);
    assert_int_equal(after.n_bytes_weights, before.n_bytes_weights);
    /* A stream, and the engine's thread for all of them, count with the sessions. */
    dsi_message message = {sizeof message, DSI_ROLE_USER, "And now?", 8};
    dsi_stream *stream;
    assert_int_equal(dsi_session_rewind(h.session, 0), DSI_OK);
    before = report();
    assert_int_equal(dsi_stream_open(h.session, &message, 1, DSI_THINK_AUTO, &stream), DSI_OK);
    dsi_event event = {.struct_size = sizeof event};
    while (event.kind != DSI_EVENT_DONE)
        assert_int_equal(dsi_stream_next(stream, -1, &event), DSI_OK);
    after = report();
    assert_int_equal(after.n_bytes_other, before.n_bytes_other);
    assert_true(after.n_bytes_sessions > before.n_bytes_sessions);
    dsi_stream_close(stream);
    assert_true(report().n_bytes_sessions < after.n_bytes_sessions);
    dsi_session_close(h.session);
    h.session = NULL;
    dsi_engine_close(h.engine);
    h.engine = NULL;
    after = report();
    assert_int_equal(after.n_bytes_kv, 0);
    assert_int_equal(after.n_bytes_scratch, 0);
    assert_int_equal(after.n_bytes_sessions, 0);
    close_all(&h);
    assert_int_equal(report().n_blocks, 0);
}

static void test_report_sizes(void **state) {
    (void)state;
    assert_int_equal(dsi_memory_report(NULL), DSI_E_ARG);
    dsi_memory_use use = {0};
    assert_int_equal(dsi_memory_report(&use), DSI_E_ARG);
    assert_non_null(strstr(dsi_last_error(NULL), "struct_size"));
    memset(&use, 0x7E, sizeof use);
    use.struct_size = offsetof(dsi_memory_use, n_bytes_kv); /* of an older header */
    assert_int_equal(dsi_memory_report(&use), DSI_OK);
    assert_true(use.n_bytes_mapped == 0 && use.n_bytes_weights == 0);
    assert_true(use.n_bytes_kv == UINT64_C(0x7E7E7E7E7E7E7E7E)); /* untouched */
}

static void test_allocator(void **state) {
    (void)state;
    answer plain, hooked;
    run(&plain);
    set_books();
    handles h;
    hooked = (answer){0};
    assert_int_equal(open_all(&h), DSI_OK);
    dsi_memory_use use = report();
    assert_true(use.n_bytes_total == the_books.n_bytes && use.n_blocks == the_books.n_blocks);
    assert_true(use.n_blocks > 20);
    assert_int_equal(dsi_set_allocator(NULL), DSI_E_STATE);
    assert_non_null(strstr(dsi_last_error(NULL), " are alive; call it first of all"));
    assert_int_equal(dsi_generate(h.session, "The lamp is out.", add_text, &hooked), DSI_OK);
    use = report();
    assert_true(use.n_bytes_total == the_books.n_bytes && use.n_blocks == the_books.n_blocks);
    close_all(&h);
    assert_string_equal(the_books.wrong, "");
    assert_int_equal(the_books.n_blocks, 0);
    assert_int_equal(the_books.n_bytes, 0);
    assert_int_equal(the_books.n_released, the_books.n_allocated);
    assert_true(report().n_bytes_peak >= the_books.n_peak);
    assert_int_equal(hooked.n, plain.n);
    assert_memory_equal(hooked.text, plain.text, plain.n);
    assert_int_equal(dsi_set_allocator(NULL), DSI_OK);
    uint64_t n_allocated = the_books.n_allocated;
    run(&plain);
    assert_int_equal(the_books.n_allocated, n_allocated); /* libc again */
}

static void test_allocator_refused(void **state) {
    (void)state;
    dsi_allocator half = {sizeof half, 0, NULL, allocate, NULL};
    assert_int_equal(dsi_set_allocator(&half), DSI_E_ARG);
    assert_string_equal(dsi_last_error(NULL),
                        "dsi_set_allocator: release is NULL; set both functions");
    half = (dsi_allocator){sizeof half, 0, NULL, NULL, release};
    assert_int_equal(dsi_set_allocator(&half), DSI_E_ARG);
    half = (dsi_allocator){8, 0, NULL, allocate, release};
    assert_int_equal(dsi_set_allocator(&half), DSI_E_ARG);
    assert_non_null(strstr(dsi_last_error(NULL), "struct_size is 8; set it to"));
    answer a;
    run(&a); /* nothing was set */
}

/* The address sanitizer sees a write in front of a block as well as one behind it. */
static void test_fronts_are_poisoned(void **state) {
    (void)state;
#ifdef __SANITIZE_ADDRESS__
    uint8_t *blocks[] = {dsi_sys_calloc(1, 8), dsi_sys_alloc_aligned(8),
                         dsi_sys_alloc_aligned(2 << 20)};
    for (int i = 0; i < 3; i++) {
        assert_true(__asan_address_is_poisoned(blocks[i] - 1));
        assert_true(__asan_address_is_poisoned(blocks[i] - 16));
        assert_false(__asan_address_is_poisoned(blocks[i]));
        dsi_sys_free(blocks[i]);
    }
    uint8_t *block = dsi_sys_realloc(dsi_sys_calloc(1, 8), 1 << 16, 1);
    assert_true(__asan_address_is_poisoned(block - 1));
    assert_false(__asan_address_is_poisoned(block + (1 << 16) - 1));
    dsi_sys_free(block);
#else
    skip();
#endif
}

/* A program that ends with a model open has no leak, whatever the model allocated nothing for. */
static void test_empty_blocks_are_reachable(void **state) {
    (void)state;
#ifdef __SANITIZE_ADDRESS__
    static void *kept[64];
    for (int i = 0; i < 64; i++) kept[i] = dsi_sys_calloc((uint64_t)(i % 2), 0);
    assert_int_equal(__lsan_do_recoverable_leak_check(), 0);
    for (int i = 0; i < 64; i++) dsi_sys_free(kept[i]);
#else
    skip();
#endif
}

/* Blocks of each form grow, shrink and keep their content and class through the allocator. */
static void check_blocks(void) {
    DSI_MEMORY_SCOPE(SESSIONS);
    uint8_t *block = dsi_sys_realloc(NULL, 100, 1);
    uint8_t *aligned = dsi_sys_alloc_aligned(3 << 20);
    assert_true(block != NULL && aligned != NULL);
    assert_int_equal((uintptr_t)aligned % 64, 0);
    assert_true(aligned[0] == 0 && aligned[(3 << 20) - 1] == 0);
    for (int i = 0; i < 100; i++) block[i] = aligned[i] = (uint8_t)i;
    assert_true(report().n_bytes_sessions > (3 << 20));
    {
        DSI_MEMORY_SCOPE(KV);
        block = dsi_sys_realloc(block, 1000, 100);
        aligned = dsi_sys_realloc(aligned, 50, 1);
    }
    assert_true(block != NULL && aligned != NULL);
    for (int i = 0; i < 100; i++) assert_int_equal(block[i], i);
    for (int i = 0; i < 50; i++) assert_int_equal(aligned[i], i);
    dsi_memory_use use = report();
    assert_true(use.n_bytes_kv == 0 && use.n_blocks == 2);
    assert_true(use.n_bytes_sessions > 100000 && use.n_bytes_sessions < 101000);
    dsi_sys_free(block);
    dsi_sys_free(aligned);
    assert_int_equal(report().n_blocks, 0);
}

static void test_blocks(void **state) {
    (void)state;
    check_blocks();
    set_books();
    check_blocks();
    assert_string_equal(the_books.wrong, "");
    assert_int_equal(the_books.n_blocks, 0);
    assert_int_equal(dsi_set_allocator(NULL), DSI_OK);
}

/* Every allocation of an open fails in turn: NOMEM with a message, or the open does without (a
 * block that could not shrink); nothing is kept. */
static void test_allocator_fails(void **state) {
    (void)state;
    uint64_t n = 0, n_failed = 0;
    do {
        set_books();
        the_books.fails_at = ++n;
        handles h;
        dsi_status status = open_all(&h);
        if (status != DSI_OK) {
            n_failed++;
            if (status != DSI_E_NOMEM || strlen(dsi_last_error(NULL)) < 10)
                fail_msg("allocation %llu: status %d, \"%s\"", (unsigned long long)n, status,
                         dsi_last_error(NULL));
        }
        close_all(&h);
        assert_string_equal(the_books.wrong, "");
        assert_int_equal(the_books.n_blocks, 0);
        assert_int_equal(report().n_bytes_mapped, 0);
        assert_int_equal(dsi_set_allocator(NULL), DSI_OK);
    } while (the_books.n_allocated >= n);
    print_message("%llu allocations of an open, each refused once: %llu errors\n",
                  (unsigned long long)n - 1, (unsigned long long)n_failed);
    assert_true(n_failed > 40);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_report),
        cmocka_unit_test(test_classes_of_an_answer),
        cmocka_unit_test(test_report_sizes),
        cmocka_unit_test(test_allocator),
        cmocka_unit_test(test_allocator_refused),
        cmocka_unit_test(test_blocks),
        cmocka_unit_test(test_fronts_are_poisoned),
        cmocka_unit_test(test_empty_blocks_are_reachable),
        cmocka_unit_test(test_allocator_fails),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
