/* test_sampler.c: penalties against their published formulas, log-probabilities against a softmax
 * in double, and the limits of the options. */
#include "../lib/base/fault.h"
#include "session_tools.h"

/* ---- Penalties
 * ------------------------------------------------------------------------------------------ */

enum { N_VOCAB = 40, N_TOKENS = 60 };

/* The formulas, token by token over the whole vocabulary. Repetition (transformers'
 * RepetitionPenaltyLogitsProcessor): score < 0 ? score * p : score / p for every token that is
 * there. OpenAI: logit - count * frequency - (count > 0) * presence, count of sampled tokens. */
static void reference(const dsi_session_options *o, const int32_t *tokens, const uint8_t *sampled,
                      uint32_t n, const float *logits, float *out) {
    uint32_t first = o->penalty_window && o->penalty_window < n ? n - o->penalty_window : 0;
    for (int32_t t = 0; t < N_VOCAB; t++) {
        bool there = false;
        uint32_t count = 0;
        for (uint32_t i = first; i < n; i++) {
            there |= tokens[i] == t;
            count += tokens[i] == t && sampled[i];
        }
        float x = logits[t];
        if (there) x = x < 0 ? x * o->repetition_penalty : x / o->repetition_penalty;
        x = x - (float)count * o->frequency_penalty;
        if (count > 0) x = x - o->presence_penalty;
        out[t] = x;
    }
}

static void test_penalties_are_the_formulas(void **state) {
    (void)state;
    const uint32_t windows[] = {0, 1, 2, 10, 59, 60, 61, 1000};
    const float repetition[] = {1, 1.3f, 0.5f, 10}, other[] = {0, 0.7f, -2, 2};
    uint32_t seen[N_VOCAB] = {0}, zero[N_VOCAB] = {0}, cases = 0;
    for (uint32_t seed = 0; seed < 40; seed++)
        for (uint32_t r = 0; r < 4; r++)
            for (uint32_t f = 0; f < 4; f++) {
                dsi_session_options o;
                dsi_session_options_init(&o);
                assert_false(dsi_has_penalty(&o));
                o.penalty_window = windows[(seed + r) % 8];
                o.repetition_penalty = repetition[r];
                o.frequency_penalty = other[f], o.presence_penalty = other[(f + 1 + seed % 3) % 4];
                int32_t tokens[N_TOKENS];
                uint8_t sampled[N_TOKENS];
                float logits[N_VOCAB], want[N_VOCAB], got[N_VOCAB];
                uint32_t n = seed % 7 == 6 ? 0 : N_TOKENS - seed % 4;
                for (uint32_t i = 0; i < N_TOKENS; i++) {
                    tokens[i] = made_up_token(i, seed, N_VOCAB);
                    sampled[i] = made_up_token(i, seed + 100, 3) == 0;
                }
                for (uint32_t i = 0; i < N_VOCAB; i++)
                    logits[i] = (float)(made_up_token(i, seed + 200, 2001) - 1000) / 100;
                logits[3] = 0;
                reference(&o, tokens, sampled, n, logits, want);
                dsi_penalize(&o, tokens, sampled, n, logits, N_VOCAB, seen, got);
                assert_memory_equal(got, want, sizeof got);
                assert_memory_equal(seen, zero, sizeof seen);
                cases++;
            }
    print_message("%u cases equal\n", cases);
}

/* Through a session: what was sampled is not sampled again while the window holds it, and the
 * prompt counts for repetition only. */
static void test_penalties_in_a_session(void **state) {
    (void)state;
    dsi_model *model = load_model(V3_FP8);
    dsi_engine_options eo = engine_of(256, 256, 2);
    dsi_engine *e = start_engine(model, &eo);
    dsi_session_options o;
    dsi_session_options_init(&o);
    o.ignore_end = 1;
    o.presence_penalty = 2, o.frequency_penalty = 2;
    dsi_session *s = start_session(e, &o);
    float want[512];
    append_made_up(s, 20, 1);
    for (int i = 0; i < 60; i++) {
        int32_t token, best = 0;
        step_all(s);
        const float *logits;
        size_t n_rows;
        OK(dsi_session_logits(s, &logits, &n_rows, NULL), s);
        memcpy(want, logits, sizeof want);
        for (uint32_t k = 20; k < s->n_total; k++) {
            bool first = true;
            for (uint32_t j = 20; j < k; j++) first &= s->tokens[j] != s->tokens[k];
            want[s->tokens[k]] -= first ? 4 : 2; /* exact: these logits are small */
        }
        for (int32_t t = 1; t < 512; t++)
            if (want[t] > want[best]) best = t;
        OK(dsi_session_sample(s, &token), s);
        assert_int_equal(token, best);
    }
    dsi_session_close(s);
    /* a window of one token and a repetition penalty of 10: never the same token twice in a row */
    o.presence_penalty = o.frequency_penalty = 0;
    o.repetition_penalty = 10, o.penalty_window = 1;
    s = start_session(e, &o);
    append_made_up(s, 20, 1);
    for (int i = 0; i < 60; i++) draw_tokens(s, 1);
    for (uint32_t i = 20; i < s->n_total; i++) assert_true(s->tokens[i] != s->tokens[i - 1]);
    dsi_session_close(s);
    dsi_engine_close(e);
    dsi_model_close(model);
}

/* ---- Log-probabilities
 * ------------------------------------------------------------------------------------------ */

/* Equal to the rounding of a float. */
static void assert_near_float(float got, double want) {
    if (!(fabs(got - want) <= 1e-7 * (1 + fabs(want)))) fail_msg("%.9g, wanted %.9g", got, want);
}
static double largest(const float *logits, size_t n) {
    double best = logits[0];
    for (size_t i = 1; i < n; i++) best = fmax(best, logits[i]);
    return best;
}

static void test_top_logprobs(void **state) {
    (void)state;
    const float logits[] = {1, 3, -2, 3, 0, 3, 8, 1};
    dsi_token_logprob top[DSI_MAX_TOP_LOGPROBS];
    const int32_t want[] = {6, 1, 3, 5, 0, 7, 4, 2}; /* of equal ones the lower id first */
    double total = log_sum_exp(logits, 8) - 8;
    for (uint32_t n = 0; n <= DSI_MAX_TOP_LOGPROBS; n++) {
        uint32_t got = dsi_top_logprobs(logits, 8, n, top);
        assert_int_equal(got, n < 8 ? n : 8);
        for (uint32_t i = 0; i < got; i++) {
            assert_int_equal(top[i].token, want[i]);
            assert_near_float(top[i].logprob, logits[want[i]] - 8.0 - total);
        }
    }
    assert_near_float(dsi_logprob(logits, 8, 2), -2 - 8.0 - total);
    /* logits whose exponentials no number format holds */
    const float huge[] = {3e38f, 3e38f, -3e38f};
    assert_true(fabs((double)dsi_logprob(huge, 3, 1) + log(2)) < 1e-6);
    assert_true(dsi_logprob(huge, 3, 2) < -3e38f);
}

static void test_logprobs_of_a_session(void **state) {
    (void)state;
    dsi_model *model = load_model(TINY_GOV);
    dsi_engine_options eo = engine_of(256, 256, 2);
    dsi_engine *e = start_engine(model, &eo);
    dsi_session_options o = hot_options();
    o.repetition_penalty = 1.5f; /* none of these changes log-probabilities */
    o.top_k = 50;
    dsi_session *s = start_session(e, &o);
    float logprob;
    const dsi_token_logprob *top;
    size_t n_top, n_rows;
    assert_int_equal(dsi_session_logprobs(s, &logprob, &top, &n_top), DSI_E_STATE);
    SAYS(dsi_last_error(s), "option logprobs");
    dsi_session_close(s);
    o.logprobs = 1, o.top_logprobs = 20;
    s = start_session(e, &o);
    append_made_up(s, 30, 2);
    for (uint32_t i = 0; i < 40; i++) {
        int32_t token;
        const float *logits;
        assert_int_equal(dsi_session_logprobs(s, &logprob, &top, &n_top), DSI_E_STATE);
        step_all(s);
        OK(dsi_session_sample(s, &token), s);
        OK(dsi_session_logits(s, &logits, &n_rows, NULL), s);
        OK(dsi_session_logprobs(s, &logprob, &top, &n_top), s);
        double best = largest(logits, 4096), total = log_sum_exp(logits, 4096) - best;
        assert_near_float(logprob, logits[token] - best - total);
        assert_int_equal(n_top, 20);
        for (size_t k = 0; k < n_top; k++) {
            assert_near_float(top[k].logprob, logits[top[k].token] - best - total);
            assert_true(k == 0 || top[k - 1].logprob >= top[k].logprob);
        }
        size_t n_larger = 0;
        for (int t = 0; t < 4096; t++) n_larger += logits[t] > logits[top[19].token];
        assert_true(n_larger <= 19);
        append_made_up(s, i % 2, 9);
        step_all(s); /* the numbers are those of the logits, which a step replaces */
    }
    OK(dsi_session_rewind(s, 30), s);
    assert_int_equal(dsi_session_logprobs(s, &logprob, NULL, NULL), DSI_E_STATE);
    dsi_session_close(s);
    dsi_engine_close(e);
    dsi_model_close(model);
}

/* With every option on, neither a step nor a draw asks the system for anything. */
static void test_decoding_allocates_nothing(void **state) {
    (void)state;
    dsi_model *model = load_model(V3_FP8);
    dsi_engine_options eo = engine_of(256, 256, 2);
    eo.check_layers = 1;
    dsi_engine *e = start_engine(model, &eo);
    dsi_session_options o = hot_options();
    o.logprobs = 1, o.top_logprobs = 20, o.all_logits = 1, o.top_p = 0.9f, o.min_p = 0.01f;
    o.repetition_penalty = 1.1f, o.presence_penalty = 0.5f, o.frequency_penalty = 0.5f;
    dsi_session *s = start_session(e, &o);
    append_made_up(s, 20, 2);
    dsi_fault_arm(&(dsi_fault){.kind = DSI_CALL_ANY, .nth = 1, .onwards = true}); /* all fail */
    for (int i = 0; i < 150; i++) {
        int32_t token;
        OK(dsi_session_next(s, &token), s);
        if (i % 40 == 39) OK(dsi_session_rewind(s, 30), s);
    }
    dsi_fault_disarm();
    dsi_session_close(s);
    dsi_engine_close(e);
    dsi_model_close(model);
}

/* The end token is sampled too, though it is not queued. */
static void test_logprob_of_the_end(void **state) {
    (void)state;
    dsi_model *model = load_model(TINY_GOV);
    dsi_engine_options eo = engine_of(512, 256, 1);
    dsi_engine *e = start_engine(model, &eo);
    dsi_session_options o;
    dsi_session_options_init(&o);
    o.logprobs = 1, o.top_logprobs = 1;
    dsi_session *s = start_session(e, &o);
    const char *text = "路灯不亮";
    dsi_message m = {sizeof m, DSI_ROLE_USER, text, strlen(text)};
    int32_t tokens[256], token = 0;
    size_t n;
    OK(dsi_chat_tokens(model, &m, 1, DSI_THINK_OFF, tokens, 256, &n), NULL);
    OK(dsi_session_append(s, tokens, n), s);
    while (token >= 0) OK(dsi_session_next(s, &token), s);
    assert_int_equal(dsi_session_finish(s), DSI_FINISH_STOP);
    float logprob;
    const dsi_token_logprob *top;
    OK(dsi_session_logprobs(s, &logprob, &top, &n), s);
    assert_int_equal(top[0].token, s->end_token);
    assert_true(logprob == top[0].logprob && logprob <= 0);
    dsi_session_close(s);
    dsi_engine_close(e);
    dsi_model_close(model);
}

/* ---- Options
 * ------------------------------------------------------------------------------------------ */

typedef struct bad_option {
    size_t offset;
    float value;     /* of a float field */
    uint32_t number; /* of an integer field */
    const char *name, *limit;
} bad_option;
#define FLOAT(field, value, limit)                                                                 \
    { offsetof(dsi_session_options, field), value, 0, #field, limit }
#define NUMBER(field, value, limit)                                                                \
    { offsetof(dsi_session_options, field), 0, value, #field, limit }

static void test_option_limits(void **state) {
    (void)state;
    dsi_model *model = load_model(QWEN2);
    dsi_engine_options eo = engine_of(64, 64, 1);
    dsi_engine *e = start_engine(model, &eo);
    const bad_option bad[] = {FLOAT(repetition_penalty, -1, "above 0 to 10"),
                              FLOAT(repetition_penalty, 0, "above 0 to 10"),
                              FLOAT(repetition_penalty, 10.5f, "above 0 to 10"),
                              FLOAT(repetition_penalty, NAN, "above 0 to 10"),
                              FLOAT(presence_penalty, -2.5f, "-2 to 2"),
                              FLOAT(presence_penalty, INFINITY, "-2 to 2"),
                              FLOAT(frequency_penalty, 2.5f, "-2 to 2"),
                              FLOAT(frequency_penalty, NAN, "-2 to 2"),
                              NUMBER(top_logprobs, 21, "0 to 20"),
                              NUMBER(top_logprobs, UINT32_MAX, "0 to 20"),
                              NUMBER(top_logprobs, 3, "set logprobs to 1"),
                              NUMBER(logprobs, 2, "0 or 1"),
                              NUMBER(all_logits, 7, "0 or 1"),
                              NUMBER(ignore_end, 2, "0 or 1")};
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        dsi_session_options o;
        dsi_session_options_init(&o);
        char *field = (char *)&o + bad[i].offset;
        if (bad[i].number)
            memcpy(field, &bad[i].number, sizeof bad[i].number);
        else
            memcpy(field, &bad[i].value, sizeof bad[i].value);
        dsi_session *s = (dsi_session *)&o;
        assert_int_equal(dsi_session_open(e, &o, &s), DSI_E_ARG);
        assert_null(s);
        SAYS(dsi_last_error(NULL), bad[i].name, bad[i].limit);
    }
    dsi_engine_close(e);
    dsi_model_close(model);
}

/* A program built when the struct ended before the penalties gets none of them. */
static void test_old_option_struct(void **state) {
    (void)state;
    dsi_model *model = load_model(QWEN2);
    dsi_engine_options eo = engine_of(64, 64, 1);
    dsi_engine *e = start_engine(model, &eo);
    dsi_session_options o;
    memset(&o, 0xFF, sizeof o); /* what lies behind the old struct is not ours to read */
    o = (dsi_session_options){.struct_size = offsetof(dsi_session_options, stop), .top_p = 1};
    o.repetition_penalty = NAN;
    dsi_session *s = start_session(e, &o);
    assert_true(s->options.repetition_penalty == 1);
    assert_null(s->penalized);
    dsi_session_close(s);
    dsi_engine_close(e);
    dsi_model_close(model);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_penalties_are_the_formulas),
        cmocka_unit_test(test_penalties_in_a_session),
        cmocka_unit_test(test_top_logprobs),
        cmocka_unit_test(test_logprobs_of_a_session),
        cmocka_unit_test(test_decoding_allocates_nothing),
        cmocka_unit_test(test_logprob_of_the_end),
        cmocka_unit_test(test_option_limits),
        cmocka_unit_test(test_old_option_struct),
    };
    return cmocka_run_group_tests_name("sampler", tests, NULL, NULL);
}
