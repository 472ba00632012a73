/* test_fault.c: the gate in front of the system's calls, and what files, pool and memory do when
 * one of them fails. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "../lib/base/fault.h"
#include "../lib/base/pool.h"
#include "../lib/base/sys.h"
#include <deepseek/dsinfer.h>
#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static void arm(dsi_call kind, uint64_t nth, bool onwards) {
    dsi_fault_arm(&(dsi_fault){.kind = kind, .nth = nth, .onwards = onwards});
}

static bool calloc_works(void) {
    void *block = dsi_sys_calloc(1, 8);
    dsi_sys_free(block);
    return block != NULL;
}

static void test_counts(void **state) {
    (void)state;
    arm(DSI_CALL_ANY, 0, false);
    for (int i = 0; i < 3; i++) assert_true(calloc_works());
    dsi_sys_free(dsi_sys_alloc_aligned(100));
    dsi_sys_free(dsi_sys_alloc_aligned(2 << 20));
    assert_true(dsi_sys_is_dir("/"));
    dsi_fault_disarm();
    assert_true(calloc_works());
    assert_int_equal(dsi_fault_seen(DSI_CALL_CALLOC), 3);
    assert_int_equal(dsi_fault_seen(DSI_CALL_ALIGNED_ALLOC), 1);
    assert_int_equal(dsi_fault_seen(DSI_CALL_MMAP), 1);
    assert_int_equal(dsi_fault_seen(DSI_CALL_STAT), 1);
    assert_int_equal(dsi_fault_seen(DSI_CALL_ANY), 6);
    assert_int_equal(dsi_fault_struck(), 0);
    arm(DSI_CALL_ANY, 0, false);
    assert_int_equal(dsi_fault_seen(DSI_CALL_ANY), 0);
    dsi_fault_disarm();
    assert_string_equal(dsi_call_name(DSI_CALL_PREAD), "pread");
    assert_string_equal(dsi_call_name(DSI_CALL_ANY), "any");
}

static void test_nth(void **state) {
    (void)state;
    arm(DSI_CALL_CALLOC, 2, false);
    assert_true(calloc_works());
    dsi_sys_free(dsi_sys_alloc_aligned(100)); /* another kind: not counted */
    assert_false(calloc_works());
    assert_true(calloc_works());
    assert_int_equal(dsi_fault_struck(), 1);
    arm(DSI_CALL_ANY, 2, true);
    assert_true(calloc_works());
    assert_false(calloc_works());
    assert_null(dsi_sys_alloc_aligned(100));
    assert_null(dsi_sys_realloc(NULL, 1, 1));
    assert_null(dsi_sys_mmap(-1, 4096));
    assert_int_equal(errno, ENOMEM);
    assert_int_equal(dsi_sys_eventfd(), -1);
    assert_int_equal(errno, EMFILE);
    assert_false(dsi_sys_is_dir("/"));
    assert_int_equal(dsi_fault_struck(), 6);
    dsi_fault_disarm();
    assert_true(calloc_works());
}

static void test_code(void **state) {
    (void)state;
    dsi_error error = {0};
    dsi_map map;
    dsi_fault_arm(&(dsi_fault){.kind = DSI_CALL_OPEN, .nth = 1, .code = ENFILE});
    assert_int_equal(dsi_sys_map("/etc/passwd", &map, &error), DSI_E_IO);
    assert_string_equal(error.text, "/etc/passwd: cannot open: Too many open files in system; "
                                    "close files or raise the limit (ulimit -n)");
    arm(DSI_CALL_MMAP, 1, false);
    assert_int_equal(dsi_sys_map("/etc/passwd", &map, &error), DSI_E_NOMEM);
    dsi_fault_disarm();
}

/* A block that may not grow stays what it was. */
static void test_growing(void **state) {
    (void)state;
    char *block = dsi_sys_strdup("kept", 4);
    arm(DSI_CALL_REALLOC, 1, true);
    assert_null(dsi_sys_realloc(block, 1000, 1));
    dsi_fault_disarm();
    assert_string_equal(block, "kept");
    dsi_memory_counts counts;
    dsi_memory_counts_now(&counts);
    assert_int_equal(counts.n_blocks, 1);
    block = dsi_sys_realloc(block, 1000, 1);
    assert_string_equal(block, "kept");
    dsi_sys_free(block);
    dsi_memory_counts_now(&counts);
    assert_true(counts.n_blocks == 0 && counts.n_bytes_total == 0);
}

/* ---- Files ---- */

typedef struct place {
    char folder[64], file[96];
} place;

static void make_place(place *p) {
    strcpy(p->folder, "/tmp/dsi_fault_XXXXXX");
    assert_non_null(mkdtemp(p->folder));
    snprintf(p->file, sizeof p->file, "%s/file", p->folder);
}

static int count_files(const char *path) {
    DIR *listing = opendir(path);
    assert_non_null(listing);
    int n = 0;
    for (struct dirent *entry; (entry = readdir(listing)) != NULL;) n += entry->d_name[0] != '.';
    closedir(listing);
    return n;
}

enum { PIECE = 5000, N_PIECES = 3 };

static dsi_status write_pieces(const char *path, char fill, dsi_error *error) {
    char piece[PIECE];
    memset(piece, fill, sizeof piece);
    dsi_sys_writer w;
    dsi_status status = dsi_sys_writer_open(path, &w, error);
    if (status != DSI_OK) return status;
    for (int i = 0; status == DSI_OK && i < N_PIECES; i++)
        status = dsi_sys_writer_add(&w, piece, sizeof piece, error);
    if (status == DSI_OK) status = dsi_sys_writer_commit(&w, error);
    dsi_sys_writer_abort(&w);
    return status;
}

/* The whole content is `fill`; reads with the fault of the caller still armed. */
static dsi_status read_pieces(const char *path, char fill, dsi_error *error) {
    char *text;
    uint64_t n;
    dsi_status status = dsi_sys_read_file(path, 1 << 20, &text, &n, error);
    if (status != DSI_OK) return status;
    assert_int_equal(n, PIECE * N_PIECES);
    for (uint64_t i = 0; i < n; i++) assert_int_equal(text[i], fill);
    dsi_sys_free(text);
    return status;
}

/* Whichever call fails, the old content or the new one is there, and nothing else. */
static void check_writer_fault(const place *p, uint64_t nth, bool onwards) {
    dsi_error error = {0};
    assert_int_equal(write_pieces(p->file, 'o', &error), DSI_OK);
    arm(DSI_CALL_ANY, nth, onwards);
    dsi_status status = write_pieces(p->file, 'n', &error);
    dsi_fault_disarm();
    assert_int_equal(count_files(p->folder), 1);
    bool synced = status == DSI_OK || strstr(error.text, "a power cut may undo it") != NULL;
    assert_int_equal(read_pieces(p->file, synced ? 'n' : 'o', &error), DSI_OK);
    if (status != DSI_OK && strstr(error.text, p->file) != error.text)
        fail_msg("%s does not name the file", error.text);
}

static void test_writer_faults(void **state) {
    (void)state;
    place p;
    make_place(&p);
    dsi_error error = {0};
    arm(DSI_CALL_ANY, 0, false);
    assert_int_equal(write_pieces(p.file, 'n', &error), DSI_OK);
    dsi_fault_disarm();
    uint64_t n = dsi_fault_seen(DSI_CALL_ANY);
    /* stat, two names, open, writes, folder, fsync, close, rename, fsync of the folder */
    assert_int_equal(n, 4 + N_PIECES + 5);
    for (uint64_t nth = 1; nth <= n; nth++) {
        check_writer_fault(&p, nth, false);
        check_writer_fault(&p, nth, true);
    }
    unlink(p.file);
    rmdir(p.folder);
}

static void test_remedies(void **state) {
    (void)state;
    place p;
    make_place(&p);
    static const struct {
        dsi_call kind;
        int code;
        const char *remedy;
    } cases[] = {
        {DSI_CALL_WRITE, ENOSPC, "cannot write: No space left on device; free some space"},
        {DSI_CALL_WRITE, EDQUOT, "the disk quota of this user is used up"},
        {DSI_CALL_WRITE, EFBIG, "raise the limit of file sizes (ulimit -f)"},
        {DSI_CALL_OPEN, EROFS, "choose a folder on a disk that can be written"},
        {DSI_CALL_OPEN, EACCES, "give this process permission to write in that folder"},
        {DSI_CALL_FSYNC, EIO, "cannot write to the disk: Input/output error; check the disk"},
        {DSI_CALL_RENAME, EACCES, "cannot replace: Permission denied; give this process"},
        {DSI_CALL_CLOSE, EIO, "cannot finish: Input/output error"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        dsi_error error = {0};
        dsi_fault_arm(&(dsi_fault){.kind = cases[i].kind, .nth = 1, .code = cases[i].code});
        assert_int_equal(write_pieces(p.file, 'n', &error), DSI_E_IO);
        dsi_fault_disarm();
        if (strstr(error.text, cases[i].remedy) == NULL)
            fail_msg("%s lacks %s", error.text, cases[i].remedy);
        assert_int_equal(count_files(p.folder), 0);
    }
    rmdir(p.folder);
}

/* Interrupted and short calls are the system's everyday life: nothing of it may be seen. */
static void test_everyday(void **state) {
    (void)state;
    place p;
    make_place(&p);
    static const dsi_fault_mode modes[] = {DSI_FAULT_INTERRUPT, DSI_FAULT_SHORT};
    for (size_t i = 0; i < 2; i++) {
        for (uint64_t nth = 1; nth <= 20; nth++) {
            dsi_error error = {0};
            dsi_fault_arm(&(dsi_fault){
                .kind = DSI_CALL_ANY, .mode = modes[i], .nth = nth, .onwards = nth % 2 != 0});
            assert_int_equal(write_pieces(p.file, 'a', &error), DSI_OK);
            assert_int_equal(read_pieces(p.file, 'a', &error), DSI_OK);
            dsi_fault_disarm();
            if (nth == 1) assert_true(dsi_fault_struck() >= 4);
        }
    }
    unlink(p.file);
    rmdir(p.folder);
}

/* A file that the system will not show is not a file that is missing: tokenizer.json left out
 * because of that would open a model without text, the template's file one without its template. */
static void test_looking(void **state) {
    (void)state;
    dsi_sys_sort sort;
    dsi_error error = {0};
    assert_int_equal(dsi_sys_look("/etc/passwd", &sort, &error), DSI_OK);
    assert_int_equal(sort, DSI_SORT_FILE);
    assert_int_equal(dsi_sys_look("/etc", &sort, &error), DSI_OK);
    assert_int_equal(sort, DSI_SORT_FOLDER);
    assert_int_equal(dsi_sys_look("/dev/null", &sort, &error), DSI_OK);
    assert_int_equal(sort, DSI_SORT_OTHER);
    static const char *const absent[] = {"/none", "/none/file", "/etc/passwd/file", ""};
    for (size_t i = 0; i < sizeof absent / sizeof *absent; i++) {
        assert_int_equal(dsi_sys_look(absent[i], &sort, &error), DSI_OK);
        assert_int_equal(sort, DSI_SORT_NOTHING);
    }
    arm(DSI_CALL_STAT, 1, false);
    assert_int_equal(dsi_sys_look("/etc/passwd", &sort, &error), DSI_E_IO);
    assert_string_equal(error.text, "/etc/passwd: cannot look at: Permission denied; give this "
                                    "process permission to read it");
    uint64_t nth = 0, n_refused = 0;
    do {
        dsi_model *model;
        arm(DSI_CALL_STAT, ++nth, false);
        dsi_status status = dsi_model_open("examples/models/tiny-gov", NULL, &model);
        dsi_fault_disarm();
        if (dsi_fault_struck() != 0) {
            assert_int_equal(status, DSI_E_IO);
            assert_non_null(strstr(dsi_last_error(NULL), "cannot look at: Permission denied"));
            n_refused++;
        }
        dsi_model_close(model);
    } while (dsi_fault_struck() != 0);
    assert_true(n_refused >= 7);
}

/* ---- Threads ---- */

static void add_one(void *context, uint32_t thread, uint32_t n_threads) {
    (void)n_threads;
    ((uint32_t *)context)[thread]++;
}

static void count_warning(void *user, uint32_t level, const char *component, const char *text) {
    (void)component;
    *(int *)user += level == DSI_LOG_WARN && strstr(text, "refused thread") != NULL;
}

/* From any thread on the system has none left: a smaller team, said once, that works. */
static void test_pool_threads(void **state) {
    (void)state;
    for (uint64_t nth = 1; nth <= 4; nth++) {
        int n_warnings = 0;
        dsi_log log = {.write = count_warning, .user = &n_warnings};
        dsi_error error = {0};
        dsi_pool *pool;
        uint32_t seen[4] = {0};
        arm(DSI_CALL_THREAD, nth, true);
        assert_int_equal(dsi_pool_new(4, &log, &pool, &error), DSI_OK);
        dsi_fault_disarm();
        assert_int_equal(dsi_pool_size(pool), nth);
        assert_int_equal(n_warnings, nth < 4);
        for (int i = 0; i < 3; i++) dsi_pool_run(pool, add_one, seen);
        for (uint64_t i = 0; i < 4; i++) assert_int_equal(seen[i], i < nth ? 3 : 0);
        dsi_pool_free(pool);
    }
}

static void test_pool_memory(void **state) {
    (void)state;
    static const dsi_call kinds[] = {DSI_CALL_CALLOC, DSI_CALL_ALIGNED_ALLOC};
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) {
        dsi_error error = {0};
        dsi_pool *pool;
        arm(kinds[i], 1, false);
        assert_int_equal(dsi_pool_new(2, NULL, &pool, &error), DSI_E_NOMEM);
        dsi_fault_disarm();
        assert_int_equal(dsi_fault_struck(), 1);
        assert_null(pool);
        assert_true(strlen(error.text) > 10);
        dsi_memory_counts counts;
        dsi_memory_counts_now(&counts);
        assert_int_equal(counts.n_blocks, 0);
    }
}

/* Threads pass the gate while another arms and disarms: for ThreadSanitizer, and no call of theirs
 * may fail that no fault was meant for. */
static void *pass_gate(void *argument) {
    atomic_uint *stop = argument;
    uint64_t n_failed = 0;
    while (!atomic_load(stop)) n_failed += !calloc_works();
    return (void *)(uintptr_t)n_failed;
}

static void test_arm_while_used(void **state) {
    (void)state;
    atomic_uint stop = 0;
    pthread_t threads[2];
    uintptr_t n_failed = 0;
    for (int i = 0; i < 2; i++)
        assert_int_equal(dsi_sys_thread_create(&threads[i], pass_gate, &stop), 0);
    for (int i = 0; i < 2000; i++) {
        arm(DSI_CALL_CALLOC, 3, false);
        dsi_fault_disarm();
    }
    atomic_store(&stop, 1);
    for (int i = 0; i < 2; i++) {
        void *result;
        assert_int_equal(pthread_join(threads[i], &result), 0);
        n_failed += (uintptr_t)result;
    }
    assert_true(n_failed <= 2 * 2000);
    assert_true(calloc_works());
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_counts),         cmocka_unit_test(test_nth),
        cmocka_unit_test(test_code),           cmocka_unit_test(test_growing),
        cmocka_unit_test(test_writer_faults),  cmocka_unit_test(test_remedies),
        cmocka_unit_test(test_everyday),       cmocka_unit_test(test_pool_threads),
        cmocka_unit_test(test_pool_memory),     cmocka_unit_test(test_looking),
        cmocka_unit_test(test_arm_while_used),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
