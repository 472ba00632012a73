/* test_snapshot.c: sessions in files. What was restored goes on bit for bit; what does not fit or
 * is damaged is refused and changes nothing; a failed save leaves the old file. */
#include "../lib/base/fault.h"
#include "model_files.h"
#include "session_tools.h"
#include <dirent.h>
#include <signal.h>
#include <sys/wait.h>

static char folder[64], path[128];

static int make_folder(void **state) {
    (void)state;
    temp_folder(folder);
    snprintf(path, sizeof path, "%s/a.session", folder);
    return 0;
}
static int drop_folder(void **state) {
    (void)state;
    remove_folder(folder);
    return 0;
}
/* Files in the folder: a failed save must leave no temporary one. */
static int count_files(void) {
    DIR *dir = opendir(folder);
    int n = -2; /* . and .. */
    assert_non_null(dir);
    while (readdir(dir)) n++;
    closedir(dir);
    return n;
}

/* ---- Bit for bit
 * ------------------------------------------------------------------------------------------ */

/* Prompt, draws, a second prompt, cut at n; see test_session.c. */
static void live(dsi_session *s, uint32_t n) {
    int32_t token;
    append_made_up(s, n < 300 ? n : 300, 5);
    step_all(s);
    for (int i = 0; i < 6 && s->n_total < n; i++) OK(dsi_session_next(s, &token), s);
    if (s->n_total < n) append_made_up(s, n - s->n_total, 6);
}

static void check_round_trip(dsi_engine *from, dsi_engine *to, const dsi_session_options *o,
                             uint32_t n, uint32_t n_steps) {
    dsi_session *s = start_session(from, o), *back = start_session(to, o);
    live(s, n);
    for (uint32_t i = 0; i < n_steps && dsi_session_n_queued(s); i++)
        OK(dsi_engine_step(from, &s, 1, NULL), s);
    OK(dsi_session_save(s, path), s);
    OK(dsi_session_restore(back, path), back);
    assert_int_equal(back->n_total, s->n_total);
    assert_int_equal(back->n_tokens, s->n_tokens);
    assert_int_equal(back->n_sampled, s->n_sampled);
    assert_int_equal(back->n_answer, s->n_answer);
    assert_int_equal(back->finish, s->finish);
    if (future_hash(back) != future_hash(s)) fail_msg("saved at %u: the future differs", n);
    /* a restored timeline can be cut as the one it came from */
    OK(dsi_session_rewind(s, n / 2), s);
    OK(dsi_session_rewind(back, n / 2), back);
    assert_true(future_hash(back) == future_hash(s));
    dsi_session_close(s);
    dsi_session_close(back);
    assert_pool_empty(to);
}

static void check_model(const char *model_folder, uint32_t activations, uint32_t every) {
    dsi_model *model = load_model(model_folder);
    dsi_engine_options eo = engine_of(512, 100, 2);
    eo.activations = activations;
    dsi_engine *from = start_engine(model, &eo);
    eo.n_threads = 2, eo.chunk_tokens = 64, eo.kv_tokens *= 2; /* none of these matters */
    dsi_engine *to = start_engine(model, &eo);
    dsi_session_options o = hot_options();
    o.repetition_penalty = 1.2f, o.frequency_penalty = 0.3f, o.penalty_window = 50;
    const uint32_t cuts[] = {0, 1, 63, 64, 65, 255, 256, 257, 300, 303, 306, 307, 320, 396};
    for (uint32_t i = 0; i < sizeof cuts / sizeof cuts[0]; i += every) {
        check_round_trip(from, to, &o, cuts[i], UINT32_MAX);
        check_round_trip(from, to, &o, cuts[i], i % 4); /* some are still queued */
    }
    dsi_engine_close(from);
    dsi_engine_close(to);
    dsi_model_close(model);
}
static void test_round_trip_v3(void **state) {
    (void)state;
    check_model(V3_FP8, DSI_ACTIVATIONS_BF16, SLOW_BUILD ? 5 : 1);
    check_model(V3_FP8, DSI_ACTIVATIONS_F32, SLOW_BUILD ? 9 : 3);
}
static void test_round_trip_qwen2(void **state) {
    (void)state;
    check_model(QWEN2, DSI_ACTIVATIONS_BF16, SLOW_BUILD ? 5 : 2);
}
static void test_round_trip_tiny_gov(void **state) {
    (void)state;
    check_model(TINY_GOV, DSI_ACTIVATIONS_BF16, SLOW_BUILD ? 13 : 6);
}

/* Finished ones, forks, sessions with all logits; and a file is overwritten. */
static void test_states(void **state) {
    (void)state;
    dsi_model *model = load_model(QWEN2);
    dsi_engine_options eo = engine_of(128, 64, 4);
    dsi_engine *e = start_engine(model, &eo);
    dsi_session_options o = hot_options();
    o.max_tokens = 3, o.all_logits = 1, o.logprobs = 1;
    dsi_session *s = start_session(e, &o), *child = NULL, *back = start_session(e, &o);
    int32_t token;
    float logprob;
    append_made_up(s, 70, 1);
    draw_tokens(s, 3);
    OK(dsi_session_save(s, path), s);
    OK(dsi_session_fork(s, &child), s);
    OK(dsi_session_save(child, path), child);
    OK(dsi_session_restore(back, path), back);
    assert_int_equal(dsi_session_finish(back), DSI_FINISH_LENGTH);
    assert_int_equal(dsi_session_logprobs(back, &logprob, NULL, NULL), DSI_E_STATE);
    OK(dsi_session_next(back, &token), back);
    assert_int_equal(token, -1);
    append_made_up(back, 5, 1);
    append_made_up(s, 5, 1);
    assert_true(last_hash(back) == last_hash(s));
    draw_tokens(back, 3); /* a new answer has max_tokens of its own */
    assert_int_equal(dsi_session_finish(back), DSI_FINISH_LENGTH);
    dsi_session_close(s);
    dsi_session_close(child);
    dsi_session_close(back);
    dsi_engine_close(e);
    dsi_model_close(model);
}

/* A file that an earlier build wrote (reference kernels, f32) is read by this one. It belongs to
 * the golden checkpoint qwen2; DSI_WRITE_SESSION=1 in the environment writes it anew. */
static void test_a_file_of_version_1(void **state) {
    (void)state;
    const char *const old = "tests/data/session/qwen2-version-1";
    dsi_model *model = load_model(QWEN2);
    dsi_engine_options eo = engine_of(128, 64, 2);
    eo.kernels = "ref", eo.activations = DSI_ACTIVATIONS_F32;
    dsi_engine *e = start_engine(model, &eo);
    dsi_session *s = start_session(e, NULL), *fresh = start_session(e, NULL);
    int32_t token, want;
    append_made_up(fresh, 6, 5);
    draw_tokens(fresh, 2);
    if (getenv("DSI_WRITE_SESSION")) OK(dsi_session_save(fresh, old), fresh);
    OK(dsi_session_restore(s, old), s);
    assert_int_equal(s->n_total, 8);
    assert_memory_equal(s->tokens, fresh->tokens, 8 * sizeof *s->tokens);
    assert_int_equal(s->n_sampled, 2);
    for (int i = 0; i < 4; i++) {
        OK(dsi_session_next(s, &token), s);
        OK(dsi_session_next(fresh, &want), fresh);
        assert_int_equal(token, want);
    }
    dsi_session_close(s);
    dsi_session_close(fresh);
    dsi_engine_close(e);
    dsi_model_close(model);
}

/* ---- What does not fit
 * ------------------------------------------------------------------------------------------ */

/* A restore of `path` is refused with `status` and the words, and the session stays usable. */
static void refused(dsi_model *model, const dsi_engine_options *eo, dsi_status status,
                    const char *word, const char *other) {
    dsi_engine *e = start_engine(model, eo);
    dsi_session *s = start_session(e, NULL);
    assert_int_equal(dsi_session_restore(s, path), status);
    SAYS(dsi_last_error(s), word, other);
    assert_int_equal(s->n_total, 0);
    assert_pool_empty(e);
    append_made_up(s, 5, 1);
    step_all(s);
    dsi_session_close(s);
    dsi_engine_close(e);
}

static void save_one(dsi_model *model, const dsi_engine_options *eo, uint32_t n) {
    dsi_engine *e = start_engine(model, eo);
    dsi_session *s = start_session(e, NULL);
    append_made_up(s, n, 1);
    step_all(s);
    OK(dsi_session_save(s, path), s);
    dsi_session_close(s);
    dsi_engine_close(e);
}

static void test_other_engines_are_refused(void **state) {
    (void)state;
    dsi_model *model = load_model(V3_FP8), *bf16 = load_model("tests/data/golden/v3-bf16");
    dsi_engine_options eo = engine_of(256, 64, 2), other = eo;
    save_one(model, &eo, 100);
    refused(bf16, &eo, DSI_E_MODEL, "another model", "v3-bf16");
    other.activations = DSI_ACTIVATIONS_F32;
    refused(model, &other, DSI_E_STATE, "activations BF16", "F32");
    other = eo;
    other.attention = DSI_ATTENTION_ABSORBED;
    refused(model, &other, DSI_E_STATE, "attention auto", "absorbed");
    other = engine_of(64, 64, 2);
    refused(model, &other, DSI_E_CONTEXT, "100 tokens", "max_context 64");
    const char *kernels[KERNEL_SETS];
    if (kernel_sets(kernels) > 1) {
        other = eo;
        other.kernels = "ref";
        refused(model, &other, DSI_E_STATE, "kernels", "cpu/ref");
    }
    dsi_model_close(model);
    dsi_model_close(bf16);
}

/* The same shapes, names and sizes; one weight differs: a fine-tune. */
static void test_a_fine_tune_is_another_model(void **state) {
    (void)state;
    char other[64];
    temp_folder(other);
    link_file(QWEN2, other, "config.json");
    bytes file = read_file(QWEN2, "model.safetensors");
    dsi_model *model = load_model(QWEN2);
    const dsi_file_tensor *t = &model->checkpoint.tensors[5];
    file.data[t->file_offset + t->n_bytes / 2] ^= 1;
    write_file(other, "model.safetensors", file.data, file.n);
    free(file.data);
    dsi_model *tuned = load_model(other);
    dsi_engine_options eo = engine_of(128, 64, 1);
    save_one(model, &eo, 20);
    refused(tuned, &eo, DSI_E_MODEL, "another model", "fingerprint");
    dsi_model_close(tuned);
    dsi_model_close(model);
    remove_folder(other);
}

static void test_arguments(void **state) {
    (void)state;
    dsi_model *model = load_model(QWEN2);
    dsi_engine_options eo = engine_of(128, 64, 2);
    eo.kv_tokens = 128;
    dsi_engine *e = start_engine(model, &eo);
    dsi_session *s = start_session(e, NULL), *b = start_session(e, NULL);
    assert_int_equal(dsi_session_save(NULL, path), DSI_E_ARG);
    assert_int_equal(dsi_session_restore(NULL, path), DSI_E_ARG);
    assert_int_equal(dsi_session_save(s, NULL), DSI_E_ARG);
    assert_int_equal(dsi_session_restore(s, NULL), DSI_E_ARG);
    assert_int_equal(dsi_session_restore(s, "/no/such/file"), DSI_E_IO);
    SAYS(dsi_last_error(s), "/no/such/file", "check the path");
    assert_int_equal(dsi_session_restore(s, folder), DSI_E_IO);
    assert_int_equal(dsi_session_save(s, folder), DSI_E_IO);
    assert_int_equal(dsi_session_save(s, "/no/such/folder/file"), DSI_E_IO);
    assert_int_equal(dsi_session_save(s, "/dev/full"), DSI_E_IO);
    append_made_up(s, 70, 1);
    step_all(s);
    OK(dsi_session_save(s, path), s);
    assert_int_equal(dsi_session_restore(s, path), DSI_E_STATE);
    SAYS(dsi_last_error(s), "70 tokens", "dsi_session_rewind");
    assert_int_equal(dsi_session_restore(b, path), DSI_E_CONTEXT); /* s holds both pages */
    SAYS(dsi_last_error(b), "KV pool");
    OK(dsi_session_rewind(s, 0), s);
    OK(dsi_session_restore(b, path), b);
    dsi_session_close(s);
    dsi_session_close(b);
    dsi_engine_close(e);
    dsi_model_close(model);
}

/* ---- Damage
 * ------------------------------------------------------------------------------------------ */

typedef struct victim {
    dsi_model *model;
    dsi_engine *engine;
    bytes file; /* a good one */
    uint64_t want;
} victim;

static victim new_victim(void) {
    victim v = {.model = load_model(QWEN2)};
    dsi_engine_options eo = engine_of(128, 64, 2);
    v.engine = start_engine(v.model, &eo);
    dsi_session_options o = hot_options();
    dsi_session *s = start_session(v.engine, &o);
    append_made_up(s, 5, 1);
    draw_tokens(s, 3);
    OK(dsi_session_save(s, path), s);
    v.want = future_hash(s);
    dsi_session_close(s);
    v.file = read_file(folder, "a.session");
    return v;
}
static void drop_victim(victim *v) {
    dsi_engine_close(v->engine);
    dsi_model_close(v->model);
    free(v->file.data);
}

/* What holds for every session that came about by calls alone. */
static void assert_possible(const dsi_session *s) {
    assert_true(s->n_tokens <= s->n_sealed && s->n_sealed <= s->n_total);
    assert_true(s->finish <= DSI_FINISH_LENGTH || s->finish == DSI_FINISH_STOP_TEXT);
    assert_true(s->end_token >= -1 && s->end_token < 512);
    assert_true(s->n_logits <= 1 && s->n_logits <= s->n_tokens);
    for (uint32_t i = 0; i < s->n_total; i++)
        assert_true(s->tokens[i] >= 0 && s->tokens[i] < 512 && s->sampled[i] <= 1);
    assert_int_equal(s->n_pages, dsi_ceil_div(s->n_tokens, DSI_PAGE_ROWS));
}

/* What a restore of these bytes does. One that succeeds must give a session that works; its status
 * in *work. */
static dsi_status restore_bytes(const victim *v, const char *data, size_t n, dsi_status *work) {
    write_file(folder, "b.session", data, n);
    char other[128];
    snprintf(other, sizeof other, "%s/b.session", folder);
    dsi_session_options o = hot_options();
    dsi_session *s = start_session(v->engine, &o);
    dsi_status st = dsi_session_restore(s, other);
    *work = DSI_OK;
    if (st != DSI_OK) {
        assert_true(s->n_total == 0 && s->n_pages == 0 && s->n_logits == 0 && s->n_sampled == 0);
        assert_true(strstr(dsi_last_error(s), "b.session") != NULL);
    } else {
        assert_possible(s);
        int32_t token = 1;
        dsi_session_append(s, &token, 1);
        for (int i = 0; i < 3 && *work == DSI_OK; i++) *work = dsi_session_next(s, &token);
        dsi_session *fork = NULL; /* whatever it holds can be cut and doubled */
        assert_int_equal(dsi_session_rewind(s, s->n_total / 2), DSI_OK);
        assert_int_equal(dsi_session_fork(s, &fork), DSI_OK);
        if (*work == DSI_OK) *work = dsi_session_next(fork, &token);
        dsi_session_close(fork);
    }
    dsi_session_close(s);
    return st;
}

static uint64_t next_random(uint64_t *state) {
    *state = *state * 6364136223846793005u + 1442695040888963407u;
    return *state >> 33;
}

/* Changes some bytes; the new length in *n. Returns a name for the kind of damage. */
static const char *damage(char *data, size_t *n, uint64_t *random) {
    size_t at = next_random(random) % *n, run = 1 + next_random(random) % 64;
    if (at + run > *n) run = *n - at;
    switch (next_random(random) % 8) {
    case 0:
        *n = at;
        return "cut";
    case 1: /* the head is short and full of numbers: hit it more often than its size deserves */
        at = next_random(random) % 200;
        data[at] ^= (char)(1 + next_random(random) % 255);
        return "head";
    case 2:
        memset(data + at, 0, run);
        return "zeros";
    case 3:
        memset(data + at, 0xFF, run);
        return "ones";
    case 4:
        memmove(data + at, data + (at + run < *n ? at + run : at), *n - at - run);
        *n -= run;
        return "hole";
    case 5:
        memmove(data + at, data + next_random(random) % (*n - run), run);
        return "copy";
    default:
        data[at] ^= (char)(1 << next_random(random) % 8);
        return "bit";
    }
}

/* llama.cpp #27068: half of a damaged file was taken over, and answers were wrong from then on. */
static void test_damaged_files_are_refused(void **state) {
    (void)state;
    victim v = new_victim();
    uint64_t random = 7;
    uint32_t n_cases = SLOW_BUILD ? 400 : 1500, n_refused = 0, n_equal = 0;
    char *data = malloc(v.file.n + 1);
    dsi_status work;
    for (uint32_t i = 0; i < n_cases; i++) {
        size_t n = v.file.n;
        memcpy(data, v.file.data, n);
        const char *kind = damage(data, &n, &random);
        bool equal = n == v.file.n && memcmp(data, v.file.data, n) == 0;
        dsi_status st = restore_bytes(&v, data, n, &work);
        if (equal != (st == DSI_OK)) fail_msg("case %u (%s): status %d", i, kind, st);
        n_refused += st != DSI_OK;
        n_equal += equal;
    }
    print_message("%u damaged files: %u refused, %u unchanged by chance\n", n_cases, n_refused,
                  n_equal);
    assert_pool_empty(v.engine);
    assert_int_equal(restore_bytes(&v, v.file.data, v.file.n, &work), DSI_OK);
    memcpy(data, v.file.data, v.file.n);
    data[v.file.n] = 0; /* one byte too many */
    assert_int_equal(restore_bytes(&v, data, v.file.n + 1, &work), DSI_E_FORMAT);
    for (size_t n = 0; n < 400; n++) /* every cut in and behind the head */
        assert_int_equal(restore_bytes(&v, data, n, &work), DSI_E_FORMAT);
    free(data);
    drop_victim(&v);
}

/* The checksums of a format that is no secret can be forged: those of the parts and of the whole
 * are made right again, so only the checks of the numbers themselves are left. */
static uint64_t mix(uint64_t sum, uint64_t word) {
    sum ^= word * 0x9E3779B97F4A7C15u;
    sum = (sum << 27 | sum >> 37) * 0xBF58476D1CE4E5B9u;
    return sum + 0x94D049BB133111EBu;
}
static uint64_t word_at(const char *data, size_t at) {
    uint64_t word;
    memcpy(&word, data + at, sizeof word);
    return word;
}
static void forge(char *data, size_t n) {
    uint64_t whole = 0;
    size_t at = 16;
    while (at + 24 <= n - 8) {
        uint64_t sum = mix(mix(0, word_at(data, at)), word_at(data, at + 8));
        uint64_t n_bytes = word_at(data, at + 8);
        at += 16;
        if (n_bytes % 8 || n_bytes > n - 8 - at - 8) break;
        for (size_t end = at + n_bytes; at < end; at += 8) sum = mix(sum, word_at(data, at));
        memcpy(data + at, &sum, sizeof sum);
        at += 8;
    }
    for (at = 0; at < n - 8; at += 8) whole = mix(whole, word_at(data, at));
    memcpy(data + n - 8, &whole, sizeof whole);
}
static void test_forged_files_do_no_harm(void **state) {
    (void)state;
    victim v = new_victim();
    uint64_t random = 21;
    uint32_t n_cases = SLOW_BUILD ? 400 : 1500, n_refused = 0, n_taken = 0, n_nan = 0;
    char *data = malloc(v.file.n);
    dsi_status work;
    memcpy(data, v.file.data, v.file.n);
    forge(data, v.file.n);
    assert_memory_equal(data, v.file.data, v.file.n); /* the forger knows the format */
    for (uint32_t i = 0; i < n_cases; i++) {
        memcpy(data, v.file.data, v.file.n);
        size_t at = next_random(&random) % (i % 3 ? 260 : v.file.n);
        const uint32_t values[] = {0, 1, 2, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0xFFFF};
        uint32_t value = values[next_random(&random) % 7];
        if (next_random(&random) % 2)
            memcpy(data + at / 4 * 4, &value, sizeof value);
        else
            data[at] ^= (char)(1 + next_random(&random) % 255);
        forge(data, v.file.n);
        dsi_status st = restore_bytes(&v, data, v.file.n, &work);
        n_refused += st != DSI_OK;
        n_taken += st == DSI_OK;
        n_nan += work == DSI_E_NAN;
        if (work != DSI_OK && work != DSI_E_NAN && work != DSI_E_CONTEXT)
            fail_msg("case %u: a restored session fails with %d", i, work);
    }
    print_message("%u forged files: %u refused, %u taken (%u of them with NaN)\n", n_cases,
                  n_refused, n_taken, n_nan);
    assert_true(n_refused > n_cases / 3);
    assert_pool_empty(v.engine);
    free(data);
    drop_victim(&v);
}

/* ---- The system fails
 * ------------------------------------------------------------------------------------------ */

/* The file is the old one, byte for byte, and alone in its folder but for b.session. */
static void assert_old_file(const victim *v, int n_files) {
    bytes now = read_file(folder, "a.session");
    assert_int_equal(now.n, v->file.n);
    assert_memory_equal(now.data, v->file.data, now.n);
    free(now.data);
    assert_int_equal(count_files(), n_files);
}

static void test_failing_saves_leave_the_old_file(void **state) {
    (void)state;
    victim v = new_victim();
    int n_files = count_files();
    dsi_session_options o = hot_options();
    dsi_session *s = start_session(v.engine, &o);
    append_made_up(s, 100, 2);
    step_all(s);
    uint32_t n_failed = 0;
    const dsi_call kinds[] = {DSI_CALL_OPEN,  DSI_CALL_WRITE,  DSI_CALL_FSYNC,
                              DSI_CALL_CLOSE, DSI_CALL_RENAME, DSI_CALL_CALLOC};
    for (uint32_t k = 0; k < sizeof kinds / sizeof kinds[0]; k++)
        for (uint64_t nth = 1; nth < 20; nth++) {
            dsi_fault_arm(&(dsi_fault){.kind = kinds[k], .nth = nth});
            dsi_status st = dsi_session_save(s, path);
            dsi_fault_disarm();
            if (st == DSI_OK) { /* fewer such calls than nth */
                write_file(folder, "a.session", v.file.data, v.file.n);
                break;
            }
            assert_true(st == DSI_E_IO || st == DSI_E_NOMEM);
            if (kinds[k] == DSI_CALL_FSYNC && nth == 2) /* of the folder: the new file is there */
                write_file(folder, "a.session", v.file.data, v.file.n);
            assert_old_file(&v, n_files);
            n_failed++;
        }
    print_message("%u failed saves\n", n_failed);
    assert_true(n_failed >= 8);
    dsi_session_close(s);
    drop_victim(&v);
}

static void test_failing_restores_change_nothing(void **state) {
    (void)state;
    victim v = new_victim();
    dsi_session_options o = hot_options();
    dsi_session *s = start_session(v.engine, &o);
    const dsi_call kinds[] = {DSI_CALL_OPEN, DSI_CALL_FSTAT, DSI_CALL_PREAD, DSI_CALL_CALLOC};
    uint32_t n_failed = 0;
    for (uint32_t k = 0; k < 4; k++)
        for (uint64_t nth = 1; nth < 100; nth++) {
            dsi_fault_arm(&(dsi_fault){.kind = kinds[k], .nth = nth});
            dsi_status st = dsi_session_restore(s, path);
            dsi_fault_disarm();
            if (st == DSI_OK) {
                OK(dsi_session_rewind(s, 0), s);
                break;
            }
            assert_true(st == DSI_E_IO || st == DSI_E_NOMEM);
            assert_int_equal(s->n_total, 0);
            assert_pool_empty(v.engine);
            n_failed++;
        }
    print_message("%u failed restores\n", n_failed);
    assert_true(n_failed >= 10);
    /* short and interrupted reads are no errors */
    dsi_fault_arm(
        &(dsi_fault){.kind = DSI_CALL_PREAD, .mode = DSI_FAULT_SHORT, .nth = 1, .onwards = true});
    OK(dsi_session_restore(s, path), s);
    dsi_fault_disarm();
    assert_true(future_hash(s) == v.want);
    dsi_session_close(s);
    drop_victim(&v);
}

/* A process that is killed while it saves leaves the old file or the new one. */
static void test_kill_while_saving(void **state) {
    (void)state;
    victim v = new_victim();
    uint32_t n_old = 0, n_new = 0;
    for (int i = 0; i < (SLOW_BUILD ? 5 : 25); i++) {
        pid_t child = fork();
        if (child == 0) {
            dsi_model *model = load_model(QWEN2);
            dsi_engine_options eo = engine_of(512, 64, 1);
            dsi_engine *e = start_engine(model, &eo);
            dsi_session *s = start_session(e, NULL);
            append_made_up(s, 90, 3);
            step_all(s);
            for (;;) dsi_session_save(s, path);
        }
        usleep((useconds_t)(300 + 40 * i * i));
        kill(child, SIGKILL);
        waitpid(child, NULL, 0);
        dsi_session_options o = hot_options();
        dsi_session *s = start_session(v.engine, &o);
        OK(dsi_session_restore(s, path), s);
        n_old += s->n_total == 8;
        n_new += s->n_total == 90;
        dsi_session_close(s);
    }
    print_message("%u found the first file, %u a later one\n", n_old, n_new);
    drop_victim(&v);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_round_trip_v3),
        cmocka_unit_test(test_round_trip_qwen2),
        cmocka_unit_test(test_round_trip_tiny_gov),
        cmocka_unit_test(test_states),
        cmocka_unit_test(test_a_file_of_version_1),
        cmocka_unit_test(test_other_engines_are_refused),
        cmocka_unit_test(test_a_fine_tune_is_another_model),
        cmocka_unit_test(test_arguments),
        cmocka_unit_test(test_damaged_files_are_refused),
        cmocka_unit_test(test_forged_files_do_no_harm),
        cmocka_unit_test(test_failing_saves_leave_the_old_file),
        cmocka_unit_test(test_failing_restores_change_nothing),
        cmocka_unit_test(test_kill_while_saving),
    };
    return cmocka_run_group_tests_name("snapshot", tests, make_folder, drop_folder);
}
