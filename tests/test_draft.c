/* test_draft.c: drafts of the MTP block: its logits against the reference's; answers with drafts
 * are those without, token for token, greedy and sampled, alone and in company, in streams; what
 * happens to them when a timeline is cut, doubled or runs out of pages. */
#include "../lib/internal.h"
#include "golden.h"
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <unistd.h>

#include <cmocka.h>

static const char TINY[] = "examples/models/tiny-gov";
static dsi_model *model;

static dsi_engine *engine_with(uint32_t draft_tokens, uint32_t activations) {
    dsi_engine_options o; /* draft_tokens may be DSI_DRAFTS_AUTO */
    dsi_engine_options_init(&o);
    o.draft_tokens = draft_tokens;
    o.activations = activations;
    o.max_context = 512;
    o.n_threads = 2;
    dsi_engine *e = open_engine(model, &o);
    assert_non_null(e);
    return e;
}

/* ---- The block's own logits ----------------------------------------------------------------- */

typedef struct seen {
    const golden *g;
    const float *wanted; /* [n_tokens][vocab] */
    size_t row;          /* that the next tap is about */
    double kl, worst;
    size_t n, n_same;
} seen;

static void on_tap(void *user, const char *name, int32_t layer, const float *values, size_t n_rows,
                   size_t n_columns) {
    seen *s = user;
    (void)layer;
    if (strcmp(name, "mtp.shared_head.head") != 0) return;
    assert_int_equal(n_rows, 1);
    distance d = compare_logits(s->wanted + s->row * n_columns, values, 1, n_columns);
    s->kl += d.mean_kl;
    if (d.mean_kl > s->worst) s->worst = d.mean_kl;
    s->n_same += d.top1 > 0.5;
    s->n++;
}

/* The golden tokens one by one: each step drafts from the state before it and its token. */
static void test_golden_logits(void **state) {
    (void)state;
    golden g;
    seen s = {.g = &g};
    size_t n_wanted = 0;
    assert_true(golden_open("examples/models/tiny-gov/golden.safetensors", &g));
    s.wanted = golden_tensor(&g, "mtp_logits", &n_wanted);
    assert_non_null(s.wanted);
    dsi_engine *e = engine_with(1, DSI_ACTIVATIONS_F32);
    dsi_session *session;
    assert_int_equal(dsi_session_open(e, NULL, &session), DSI_OK);
    assert_int_equal(dsi_engine_set_tap(e, on_tap, &s), DSI_OK);
    for (size_t i = 0; i < g.n_tokens; i++) {
        assert_int_equal(dsi_session_append(session, &g.tokens[i], 1), DSI_OK);
        s.row = i - 1; /* its state, and the token that is queued now */
        assert_int_equal(dsi_engine_step(e, &session, 1, NULL), DSI_OK);
    }
    print_message("mtp: %zu rows, mean KL %.2e, worst %.2e, top-1 %.3f\n", s.n, s.kl / (double)s.n,
                  s.worst, (double)s.n_same / (double)s.n);
    assert_int_equal(s.n, g.n_tokens - 1);
    assert_true(s.kl / (double)s.n <= 1e-6);
    assert_true(s.worst <= 1e-5);
    dsi_session_close(session);
    dsi_engine_close(e);
    golden_close(&g);
}

/* ---- Answers -------------------------------------------------------------------------------- */

enum { MAX_ANSWER = 160 };
typedef struct answer {
    int32_t tokens[MAX_ANSWER];
    size_t n;
    uint32_t n_drafted, n_accepted;
    float last_logprob;
} answer;

static size_t prompt_of(const char *text, int32_t *tokens, size_t room) {
    const dsi_message message = {sizeof message, DSI_ROLE_USER, text, strlen(text)};
    size_t n = 0;
    assert_int_equal(dsi_chat_tokens(model, &message, 1, DSI_THINK_AUTO, tokens, room, &n), DSI_OK);
    return n;
}

static const char *const questions[] = {
    "小区门口的路灯坏了三天，晚上很黑，请派人维修。", "公交站牌的时刻表看不清，希望更换。",
    "楼上装修噪音太大，影响孩子学习。", "办理居住证需要哪些材料？", "你好"};
enum { N_QUESTIONS = sizeof questions / sizeof questions[0] };

static dsi_session *open_session(dsi_engine *e, float temperature, uint64_t seed) {
    dsi_session_options o;
    dsi_session *s;
    dsi_session_options_init(&o);
    o.temperature = temperature;
    o.top_p = temperature > 0 ? 0.95f : 1;
    o.seed = seed;
    o.repetition_penalty = temperature > 0 ? 1.05f : 1;
    o.logprobs = 1;
    assert_int_equal(dsi_session_open(e, &o, &s), DSI_OK);
    return s;
}

static void ask(dsi_session *s, const char *question, answer *a) {
    int32_t tokens[256];
    size_t n = prompt_of(question, tokens, 256);
    assert_int_equal(dsi_session_append(s, tokens, n), DSI_OK);
    for (a->n = 0; a->n < MAX_ANSWER; a->n++) {
        assert_int_equal(dsi_session_next(s, &a->tokens[a->n]), DSI_OK);
        if (a->tokens[a->n] < 0) break;
        assert_int_equal(dsi_session_logprobs(s, &a->last_logprob, NULL, NULL), DSI_OK);
    }
}

static void expect_same(const answer *a, const answer *b) {
    assert_int_equal(a->n, b->n);
    assert_memory_equal(a->tokens, b->tokens, a->n * sizeof a->tokens[0]);
    assert_memory_equal(&a->last_logprob, &b->last_logprob, sizeof a->last_logprob);
}

/* Token for token, and the bits of a probability. */
static void test_same_answers(void **state) {
    (void)state;
    dsi_engine *plain = engine_with(0, DSI_ACTIVATIONS_BF16);
    for (uint32_t drafts = 1; drafts <= DSI_MAX_DRAFTS; drafts += drafts) {
        dsi_engine *e = engine_with(drafts, DSI_ACTIVATIONS_BF16);
        for (int warm = 0; warm < 2; warm++)
            for (size_t q = warm ? 1 : 0; q < N_QUESTIONS; q += 2) {
                answer a, b;
                dsi_session *s = open_session(plain, warm ? 0.8f : 0, 7 + q);
                dsi_session *t = open_session(e, warm ? 0.8f : 0, 7 + q);
                ask(s, questions[q], &a);
                ask(t, questions[q], &b);
                expect_same(&a, &b);
                ask(s, "谢谢", &a); /* a second turn behind the first */
                ask(t, "谢谢", &b);
                expect_same(&a, &b);
                dsi_session_close(s);
                dsi_session_close(t);
            }
        dsi_engine_close(e);
    }
    dsi_engine_close(plain);
}

/* Several sessions in one step, each at its own place; steps driven by hand. */
static void in_company(uint32_t drafts) {
    dsi_engine *plain = engine_with(0, DSI_ACTIVATIONS_BF16);
    dsi_engine *e = engine_with(drafts, DSI_ACTIVATIONS_BF16);
    dsi_session *s[N_QUESTIONS];
    answer got[N_QUESTIONS];
    int32_t tokens[256];
    for (size_t q = 0; q < N_QUESTIONS; q++) {
        got[q].n = 0;
        s[q] = open_session(e, q % 2 ? 0.7f : 0, q);
        size_t n = prompt_of(questions[q], tokens, 256);
        assert_int_equal(dsi_session_append(s[q], tokens, n), DSI_OK);
    }
    for (int running = 1; running;) {
        running = 0;
        assert_int_equal(dsi_engine_step(e, s, N_QUESTIONS, NULL), DSI_OK);
        for (size_t q = 0; q < N_QUESTIONS; q++) {
            answer *a = &got[q];
            if (dsi_session_finish(s[q]) || a->n == MAX_ANSWER || dsi_session_n_queued(s[q]))
                continue;
            assert_int_equal(dsi_session_sample(s[q], &a->tokens[a->n]), DSI_OK);
            if (a->tokens[a->n] < 0) continue;
            a->n++;
            running = 1;
        }
    }
    for (size_t q = 0; q < N_QUESTIONS; q++) {
        answer alone;
        dsi_session *t = open_session(plain, q % 2 ? 0.7f : 0, q);
        ask(t, questions[q], &alone);
        assert_int_equal(alone.n, got[q].n);
        assert_memory_equal(alone.tokens, got[q].tokens, alone.n * sizeof alone.tokens[0]);
        dsi_session_close(t);
        dsi_session_close(s[q]);
    }
    dsi_engine_close(e);
    dsi_engine_close(plain);
}

static void test_in_company(void **state) {
    (void)state;
    in_company(2);
    in_company(DSI_DRAFTS_AUTO); /* none while more than two go on, then some */
}

/* Drafts take no row that a neighbour waits for. */
static void test_small_steps(void **state) {
    (void)state;
    dsi_engine_options o;
    dsi_engine_options_init(&o);
    o.draft_tokens = 1, o.chunk_tokens = 2, o.max_context = 512;
    dsi_engine *e = open_engine(model, &o);
    assert_non_null(e);
    dsi_session *s[2];
    int32_t tokens[256], token;
    for (int i = 0; i < 2; i++) {
        s[i] = open_session(e, 0, 0);
        size_t n = prompt_of(questions[i], tokens, 256);
        assert_int_equal(dsi_session_append(s[i], tokens, n), DSI_OK);
        while (dsi_session_n_queued(s[i]))
            assert_int_equal(dsi_engine_step(e, &s[i], 1, NULL), DSI_OK);
    }
    for (int step = 0; step < 12; step++) {
        for (int i = 0; i < 2; i++)
            while (!dsi_session_n_queued(s[i]))
                assert_int_equal(dsi_session_sample(s[i], &token), DSI_OK);
        assert_int_equal(dsi_engine_step(e, s, 2, NULL), DSI_OK);
        for (int i = 0; i < 2; i++) assert_int_equal(dsi_session_n_queued(s[i]), 0);
    }
    for (int i = 0; i < 2; i++) dsi_session_close(s[i]);
    dsi_engine_close(e);
}

/* ---- Timelines ------------------------------------------------------------------------------ */

/* Cut in the middle of an answer, where a draft may just have been taken, and doubled there. */
static void test_cut_and_doubled(void **state) {
    (void)state;
    dsi_engine *e = engine_with(3, DSI_ACTIVATIONS_BF16);
    answer whole, again;
    dsi_session *s = open_session(e, 0, 1);
    ask(s, questions[0], &whole);
    int32_t tokens[256];
    size_t n_prompt = prompt_of(questions[0], tokens, 256);
    for (size_t cut = 1; cut < whole.n; cut += 5) {
        dsi_session *copy;
        assert_int_equal(dsi_session_rewind(s, n_prompt + cut), DSI_OK);
        assert_int_equal(dsi_session_fork(s, &copy), DSI_OK);
        dsi_session *both[2] = {s, copy};
        for (int k = 0; k < 2; k++) {
            for (again.n = cut; again.n < MAX_ANSWER; again.n++) {
                assert_int_equal(dsi_session_next(both[k], &again.tokens[again.n]), DSI_OK);
                if (again.tokens[again.n] < 0) break;
            }
            assert_int_equal(again.n, whole.n);
            assert_memory_equal(again.tokens + cut, whole.tokens + cut,
                                (whole.n - cut) * sizeof whole.tokens[0]);
        }
        dsi_session_close(copy);
    }
    dsi_session_close(s);
    dsi_engine_close(e);
}

/* The rest of an answer, the first of whose tokens are there. */
static void go_on(dsi_session *s, answer *a) {
    const uint32_t n_drafted = s->n_drafted, n_accepted = s->n_accepted;
    for (a->n = 0; a->n < MAX_ANSWER; a->n++) {
        assert_int_equal(dsi_session_next(s, &a->tokens[a->n]), DSI_OK);
        if (a->tokens[a->n] < 0) break;
    }
    a->n_drafted = s->n_drafted - n_drafted;
    a->n_accepted = s->n_accepted - n_accepted;
}

/* A session that was saved in the middle of an answer, or doubled there, drafts what the first one
 * would have drafted: the block's rows and the states it has not seen are there. An engine without
 * drafts reads the file too, and one with drafts a file without. */
static void test_saved(void **state) {
    (void)state;
    dsi_engine *e = engine_with(1, DSI_ACTIVATIONS_BF16), *plain = engine_with(0, 0);
    char path[] = "/tmp/dsi_test_draft_XXXXXX";
    int fd = mkstemp(path);
    assert_true(fd >= 0);
    close(fd);
    for (uint32_t n_before = 1; n_before < 30; n_before += 7) {
        answer rest[5];
        int32_t tokens[256], token;
        dsi_session *s[5] = {open_session(e, 0, 0), open_session(e, 0, 0),
                             open_session(plain, 0, 0), open_session(e, 0, 0), NULL};
        size_t n = prompt_of(questions[0], tokens, 256);
        assert_int_equal(dsi_session_append(s[0], tokens, n), DSI_OK);
        for (uint32_t i = 0; i < n_before; i++)
            assert_int_equal(dsi_session_next(s[0], &token), DSI_OK);
        assert_int_equal(dsi_session_save(s[0], path), DSI_OK);
        for (int i = 1; i < 3; i++)
            if (dsi_session_restore(s[i], path)) fail_msg("%s", dsi_last_error(s[i]));
        assert_int_equal(dsi_session_save(s[2], path), DSI_OK);
        assert_int_equal(dsi_session_restore(s[3], path), DSI_OK);
        assert_int_equal(dsi_session_fork(s[0], &s[4]), DSI_OK);
        for (int i = 0; i < 5; i++) go_on(s[i], &rest[i]);
        for (int i = 1; i < 5; i++) {
            assert_int_equal(rest[i].n, rest[0].n);
            assert_memory_equal(rest[i].tokens, rest[0].tokens, rest[0].n * sizeof(int32_t));
        }
        for (int i = 1; i < 5; i += 3) { /* restored, doubled */
            assert_in_range(rest[i].n_drafted, rest[0].n_drafted - 1, rest[0].n_drafted + 1);
            assert_true(rest[i].n_accepted + 1 >= rest[0].n_accepted);
        }
        assert_int_equal(rest[2].n_drafted, 0);
        assert_true(rest[3].n_drafted > 0);
        for (int i = 0; i < 5; i++) dsi_session_close(s[i]);
    }
    unlink(path);
    dsi_engine_close(plain);
    dsi_engine_close(e);
}

/* A turn that is appended right behind an accepted draft, where a block of attention begins: the
 * row of the draft was computed in absorbed form, so the block is not expanded. */
static void test_blocks(void **state) {
    (void)state;
    enum { BLOCK = 256, SECOND = 300 };
    dsi_engine_options o;
    dsi_engine_options_init(&o);
    o.max_context = 1024, o.draft_tokens = 0;
    dsi_engine *plain = open_engine(model, &o);
    o.draft_tokens = 2;
    dsi_engine *e = open_engine(model, &o);
    int32_t tokens[BLOCK + SECOND], token[2];
    size_t n = prompt_of(questions[0], tokens, BLOCK), n_behind = 0;
    for (size_t i = n; i < BLOCK + SECOND; i++) tokens[i] = tokens[i % n];
    for (size_t start = BLOCK - 9; start < BLOCK; start += 2) {
        dsi_session *s[2];
        const float *logits[2];
        size_t n_rows, first;
        for (int k = 0; k < 2; k++) {
            dsi_session_options so;
            dsi_session_options_init(&so);
            so.ignore_end = 1;
            assert_int_equal(dsi_session_open(k ? e : plain, &so, &s[k]), DSI_OK);
            assert_int_equal(dsi_session_append(s[k], tokens, start), DSI_OK);
            while (s[k]->n_total <= BLOCK)
                assert_int_equal(dsi_session_next(s[k], &token[k]), DSI_OK);
            n_behind += s[k]->n_tokens > BLOCK;
            assert_int_equal(dsi_session_append(s[k], tokens + BLOCK, SECOND), DSI_OK);
            while (dsi_session_n_queued(s[k]))
                assert_int_equal(dsi_engine_step(k ? e : plain, &s[k], 1, NULL), DSI_OK);
            assert_int_equal(dsi_session_logits(s[k], &logits[k], &n_rows, &first), DSI_OK);
        }
        assert_memory_equal(logits[0], logits[1], 4096 * sizeof(float));
        for (int k = 0; k < 2; k++) dsi_session_close(s[k]);
    }
    assert_true(n_behind > 0); /* else nothing was tried */
    dsi_engine_close(e);
    dsi_engine_close(plain);
}

/* At the end of the context, and with a pool that has no page for drafts. */
static void test_no_room(void **state) {
    (void)state;
    dsi_engine_options o;
    dsi_engine *e[2];
    answer a[2];
    int32_t tokens[256];
    const size_t n = prompt_of(questions[0], tokens, 256);
    for (int k = 0; k < 2; k++) {
        dsi_engine_options_init(&o);
        o.draft_tokens = k ? 4 : 0;
        o.max_context = o.kv_tokens = (uint32_t)n + 12;
        e[k] = open_engine(model, &o);
        assert_non_null(e[k]);
        dsi_session *s = open_session(e[k], 0, 0);
        ask(s, questions[0], &a[k]);
        assert_int_equal(dsi_session_finish(s), DSI_FINISH_LENGTH);
        dsi_session_close(s);
        dsi_engine_close(e[k]);
    }
    expect_same(&a[0], &a[1]);
}

/* ---- How many are taken --------------------------------------------------------------------- */

static int32_t on_text(void *user, uint32_t part, const char *text, size_t n) {
    (void)user, (void)part, (void)text, (void)n;
    return 0;
}

static void test_acceptance(void **state) {
    (void)state;
    for (uint32_t drafts = 1; drafts <= 2; drafts++) {
        dsi_engine *e = engine_with(drafts, DSI_ACTIVATIONS_BF16);
        uint32_t n_drafted = 0, n_accepted = 0, n_out = 0;
        for (size_t q = 0; q < N_QUESTIONS; q++) {
            dsi_session *s = open_session(e, 0, 0);
            const dsi_message m = {sizeof m, DSI_ROLE_USER, questions[q], strlen(questions[q])};
            dsi_generate_result r = {.struct_size = sizeof r};
            assert_int_equal(dsi_generate_chat(s, &m, 1, DSI_THINK_AUTO, on_text, NULL, &r),
                             DSI_OK);
            n_drafted += r.n_drafted, n_accepted += r.n_accepted, n_out += r.n_tokens_out;
            dsi_session_close(s);
        }
        print_message("%u draft(s): %u of %u accepted (%.0f %%), %u tokens\n", drafts, n_accepted,
                      n_drafted, 100.0 * n_accepted / n_drafted, n_out);
        assert_true(n_drafted > 50);
        assert_true(n_accepted > n_drafted * 7 / 10);
        dsi_engine_close(e);
    }
}

static void test_refused(void **state) {
    (void)state;
    dsi_model *other;
    dsi_engine *e;
    dsi_engine_options o;
    dsi_engine_options_init(&o);
    o.draft_tokens = 1;
    assert_int_equal(dsi_model_open("tests/data/golden/llama", NULL, &other), DSI_OK);
    assert_int_equal(dsi_engine_open(other, &o, &e), DSI_E_ARG);
    assert_non_null(strstr(dsi_last_error(NULL), "has no MTP block"));
    dsi_model_close(other);
    o.draft_tokens = DSI_MAX_DRAFTS + 1;
    assert_int_equal(dsi_engine_open(model, &o, &e), DSI_E_ARG);
    assert_non_null(strstr(dsi_last_error(NULL), "draft_tokens is 5"));
}

static int open_model(void **state) {
    (void)state;
    return dsi_model_open(TINY, NULL, &model);
}
static int close_model(void **state) {
    (void)state;
    dsi_model_close(model);
    return 0;
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_golden_logits),   cmocka_unit_test(test_same_answers),
        cmocka_unit_test(test_in_company),      cmocka_unit_test(test_small_steps),
        cmocka_unit_test(test_saved),           cmocka_unit_test(test_blocks),
        cmocka_unit_test(test_cut_and_doubled), cmocka_unit_test(test_no_room),
        cmocka_unit_test(test_acceptance),      cmocka_unit_test(test_refused),
    };
    return cmocka_run_group_tests_name("draft", tests, open_model, close_model);
}
