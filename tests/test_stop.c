/* test_stop.c: stop strings against a naive search, for every cut of the text; the text of an
 * answer by part and in whole characters; both through the calls of a session. */
#include "../lib/internal.h"
#include "../lib/text/utf8.h"
#include "golden.h"
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

static uint64_t random_state = 88172645463325252u;
static uint32_t random_below(uint32_t n) {
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return (uint32_t)(random_state >> 33) % n;
}

/* What was handed out. */
typedef struct heard {
    char text[2][4096]; /* by part */
    size_t n[2];
    bool broken; /* a piece that is not whole characters */
} heard;
static bool is_whole(const char *text, size_t n) {
    for (size_t at = 0; at < n;) {
        dsi_utf8_step step = dsi_utf8_next((const uint8_t *)text + at, n - at);
        if (step.kind != DSI_UTF8_CHARACTER) return false;
        at += step.n_bytes;
    }
    return true;
}
static void hear_part(void *user, uint32_t part, const char *text, size_t n) {
    heard *h = user;
    if (n == 0 || h->n[part] + n > sizeof h->text[part]) fail_msg("a piece of %zu bytes", n);
    memcpy(h->text[part] + h->n[part], text, n);
    h->n[part] += n;
    if (!is_whole(text, n)) h->broken = true;
}
static void hear(void *user, const char *text, size_t n) { hear_part(user, 0, text, n); }

static void assert_heard(const heard *h, uint32_t part, const char *want, size_t n) {
    if (h->n[part] != n || memcmp(h->text[part], want, n) != 0)
        fail_msg("heard \"%.*s\", wanted \"%.*s\"", (int)h->n[part], h->text[part], (int)n, want);
}

static dsi_stop_set *new_set(const char *const *strings, uint32_t n) {
    dsi_stop_set *set = NULL;
    dsi_error error = {0};
    if (dsi_stop_new(strings, n, &set, &error) != DSI_OK) fail_msg("%s", error.text);
    return set;
}

/* ---- The set ------------------------------------------------------------------------------- */

static void refuse(const char *const *strings, uint32_t n, const char *const *words) {
    dsi_stop_set *set = NULL;
    dsi_error error = {0};
    assert_int_equal(dsi_stop_new(strings, n, &set, &error), DSI_E_ARG);
    assert_null(set);
    for (; *words; words++)
        if (!strstr(error.text, *words)) fail_msg("no '%s' in: %s", *words, error.text);
}
#define REFUSE(strings, n, ...) refuse(strings, n, (const char *const[]){__VA_ARGS__, NULL})

static void test_wrong_strings(void **state) {
    (void)state;
    char most[257], more[258];
    memset(most, 'a', sizeof most);
    memset(more, 'a', sizeof more);
    most[256] = more[257] = 0;
    const char *many[17];
    for (int i = 0; i < 17; i++) many[i] = "x";
    REFUSE(many, 17, "n_stop is 17", "16");
    REFUSE(NULL, 2, "n_stop is 2", "NULL");
    REFUSE(((const char *[]){"a", NULL}), 2, "stop string 1", "NULL");
    REFUSE(((const char *[]){"a", "b", ""}), 3, "stop string 2", "empty", "256");
    REFUSE(((const char *[]){more}), 1, "stop string 0", "256");
    REFUSE(((const char *[]){"a\xE4\xBD"}), 1, "UTF-8", "byte 1");
    REFUSE(((const char *[]){"\xC0\x80"}), 1, "UTF-8", "byte 0");
    dsi_stop_set *set = new_set(many, 16);
    dsi_stop_free(set);
    set = new_set((const char *[]){most}, 1);
    heard h = {0};
    dsi_stop_state at = {0};
    for (int i = 0; i < 255; i++) assert_int_equal(dsi_stop_push(set, &at, "a", 1, hear, &h), -1);
    assert_int_equal(h.n[0], 0);
    assert_int_equal(dsi_stop_push(set, &at, "a", 1, hear, &h), 0);
    dsi_stop_free(set);
    dsi_stop_free(NULL);
    assert_null(new_set(NULL, 0));
}

/* ---- Against a naive search ---------------------------------------------------------------- */

typedef struct match {
    size_t begin, end;
    int32_t index; /* -1: none */
} match;
/* The one that is complete first; of those the longest; of those the lowest index. */
static match naive_search(const char *text, size_t n, const char *const *stop, uint32_t n_stop) {
    for (size_t end = 1; end <= n; end++)
        for (size_t begin = 0; begin < end; begin++)
            for (uint32_t i = 0; i < n_stop; i++)
                if (strlen(stop[i]) == end - begin && !memcmp(text + begin, stop[i], end - begin))
                    return (match){begin, end, (int32_t)i};
    return (match){n, n + 1, -1};
}
/* How many bytes at the end of the text may still become a match. */
static size_t naive_held(const char *text, size_t n, const char *const *stop, uint32_t n_stop) {
    for (size_t held = n; held > 0; held--)
        for (uint32_t i = 0; i < n_stop; i++)
            if (strlen(stop[i]) > held && !memcmp(text + n - held, stop[i], held)) return held;
    return 0;
}

/* Pushes text in pieces that end where `cuts` has a bit, and checks what is out after each. */
static void check_cut(const dsi_stop_set *set, const char *const *stop, uint32_t n_stop,
                      const char *text, size_t n, uint64_t cuts) {
    heard h = {0};
    dsi_stop_state at = {0};
    match want = naive_search(text, n, stop, n_stop);
    int32_t found = -1;
    for (size_t begin = 0, end = 1; end <= n && found < 0; end++) {
        if (end < n && !(cuts >> end & 1)) continue;
        found = dsi_stop_push(set, &at, text + begin, end - begin, hear, &h);
        begin = end;
        if (found >= 0) break;
        if (want.end <= end) fail_msg("missed a match in %zu bytes of \"%.*s\"", end, (int)n, text);
        assert_int_equal(h.n[0], end - naive_held(text, end, stop, n_stop)); /* all, in time */
    }
    if (found < 0) dsi_stop_finish(set, &at, hear, &h);
    assert_int_equal(found, want.index);
    assert_heard(&h, 0, text, want.begin);
}

static void test_every_cut_of_a_stop_string(void **state) {
    (void)state;
    static const char *const stops[] = {"\n\n",     "abab", "aab",  "</答>",
                                        "。结束。", "😀😀a",  "}\n}", "é"};
    static const char *const before[] = {"", "a", "aa", "ab答", "\n", "。结", "😀", "é}"};
    size_t n_checked = 0;
    char text[64];
    for (size_t s = 0; s < 8; s++) {
        dsi_stop_set *set = new_set(&stops[s], 1);
        for (size_t b = 0; b < 8; b++) {
            int n = snprintf(text, sizeof text, "%s%sxy", before[b], stops[s]);
            for (uint64_t cuts = 0; cuts < 1u << (n - 1); cuts++, n_checked++) {
                if (n > 17 && random_below(64)) continue;
                check_cut(set, &stops[s], 1, text, (size_t)n, cuts << 1);
            }
        }
        dsi_stop_free(set);
    }
    printf("%zu cuts\n", n_checked);
}

static void test_overlapping_candidates(void **state) {
    (void)state;
    const struct {
        const char *stop[3];
        const char *text, *out;
        int32_t index;
    } cases[] = {
        {{"abc", "b", "zz"}, "xabc", "xa", 1},              /* complete first */
        {{"bc", "abc", "c"}, "xabc", "x", 1},               /* with the same byte: the longest */
        {{"no", "ab", "ab"}, "xab", "x", 1},                /* equal: the lowest index */
        {{"aaab", "aac", "zz"}, "aaaac", "aa", 1},          /* one candidate ends inside another */
        {{"abcd", "bce", "zz"}, "abce", "a", 1},            /* the shorter candidate lives on */
        {{"abcd", "cx", "zz"}, "abcabcab", "abcabcab", -1}, /* all released at the end */
        {{"好的", "的吧", "吧"}, "你好吧", "你好", 2},
    };
    for (size_t c = 0; c < sizeof cases / sizeof cases[0]; c++) {
        dsi_stop_set *set = new_set(cases[c].stop, 3), *copy = dsi_stop_copy(set);
        size_t n = strlen(cases[c].text);
        match want = naive_search(cases[c].text, n, cases[c].stop, 3);
        assert_int_equal(want.index, cases[c].index);
        assert_int_equal(want.begin, strlen(cases[c].out));
        for (uint64_t cuts = 0; cuts < 1u << n; cuts++)
            check_cut(copy, cases[c].stop, 3, cases[c].text, n, cuts);
        dsi_stop_free(set);
        dsi_stop_free(copy);
    }
}

/* A random text over few letters, so that candidates overlap all the time. */
static size_t random_text(char *text, size_t max_letters) {
    static const char *const letters[] = {"a", "b", "\n", "é", "你", "作", "😀", "😁"};
    size_t n = 0;
    uint32_t n_letters = 1 + random_below((uint32_t)max_letters), kinds = 1 + random_below(8);
    for (uint32_t i = 0; i < n_letters; i++) {
        const char *letter = letters[random_below(kinds)];
        memcpy(text + n, letter, strlen(letter));
        n += strlen(letter);
    }
    text[n] = 0;
    return n;
}

static void test_random_cases(void **state) {
    (void)state;
    size_t n_found = 0;
    enum { N = 100000 };
    for (int c = 0; c < N; c++) {
        char stop[16][32], text[64];
        const char *strings[16];
        uint32_t n_stop = 1 + random_below(random_below(8) ? 4 : 16);
        for (uint32_t i = 0; i < n_stop; i++) {
            random_text(stop[i], random_below(4) ? 3 : 6);
            strings[i] = stop[i];
        }
        size_t n = random_text(text, 15);
        dsi_stop_set *set = new_set(strings, n_stop);
        uint64_t cuts = (uint64_t)random_below(1u << 31) << 31 | random_below(1u << 31);
        check_cut(set, strings, n_stop, text, n, cuts);
        n_found += naive_search(text, n, strings, n_stop).index >= 0;
        dsi_stop_free(set);
    }
    printf("%d random cases, %zu with a match\n", N, n_found);
    assert_true(n_found > N / 10 && n_found < N - N / 10);
}

/* ---- The text of an answer ----------------------------------------------------------------- */

static dsi_answer_text new_text(heard *h, const dsi_stop_set *stop, bool reasoning) {
    dsi_answer_text a = {.sink = hear_part, .user = h};
    *h = (heard){0};
    dsi_answer_text_start(&a, stop, reasoning);
    return a;
}
static void push(dsi_answer_text *a, const char *text) {
    dsi_answer_text_push(a, text, strlen(text));
}

/* Every character of two bytes and more, cut in every way, alone and between others, behind the
 * beginning of a stop string and without one: it comes out whole, and as soon as it is whole. */
static void test_every_character_streams_whole(void **state) {
    (void)state;
    static const char *const stops[] = {"xy", "好的"};
    dsi_stop_set *set = new_set(stops, 2);
    size_t n_checked = 0;
    heard h;
    for (uint32_t c = 0x80; c < 0x110000; c++) {
        char text[8] = "x";
        size_t n = 1;
        if (c >= 0xD800 && c < 0xE000) continue;
        if (c >= 0x10000) text[n++] = (char)(0xF0 | c >> 18);
        if (c >= 0x800) text[n++] = (char)(c >= 0x10000 ? 0x80 | (c >> 12 & 63) : 0xE0 | c >> 12);
        text[n++] = (char)(c >= 0x800 ? 0x80 | (c >> 6 & 63) : 0xC0 | c >> 6);
        text[n++] = (char)(0x80 | (c & 63));
        size_t whole = n;
        text[n++] = 'z';
        for (uint32_t cuts = 0; cuts < 1u << (n - 1); cuts++, n_checked++) {
            dsi_answer_text a = new_text(&h, cuts & 1 ? set : NULL, false);
            for (size_t begin = 0, end = 1; end <= n; end++) {
                if (end < n && !(cuts >> (end - 1) & 1)) continue;
                dsi_answer_text_push(&a, text + begin, end - begin);
                begin = end;
                bool with_stops = cuts & 1, half = with_stops && c == 0x597D && end < n;
                size_t want = end < whole ? !with_stops : half ? 1 : end; /* x may become xy */
                if (h.n[0] != want) fail_msg("U+%X: %zu bytes out of %zu", c, h.n[0], end);
            }
            if (h.broken || h.n[0] != n || memcmp(h.text[0], text, n))
                fail_msg("U+%X was not streamed whole", c);
        }
    }
    dsi_stop_free(set);
    printf("%zu cuts of all characters\n", n_checked);
}

static void test_reasoning_apart_from_answer(void **state) {
    (void)state;
    static const char *const stops[] = {"END", "\n\n"};
    dsi_stop_set *set = new_set(stops, 2);
    heard h;
    dsi_answer_text a = new_text(&h, set, true);
    push(&a, "\n\nsome EN");
    push(&a, "D thoughts\n\n");
    push(&a, "more\n\n\n");
    assert_true(dsi_answer_text_think(&a, false));
    push(&a, "\n\n");
    push(&a, "the E");
    assert_heard(&h, DSI_PART_ANSWER, "the ", 4);
    push(&a, "\xE4\xBD");
    assert_heard(&h, DSI_PART_ANSWER, "the ", 4); /* could it be ..E + a character? not whole yet */
    push(&a, "\xA0 an");
    assert_heard(&h, DSI_PART_ANSWER, "the E你 an", 11);
    assert_false(dsi_answer_text_think(&a, true)); /* no second reasoning: plain text */
    push(&a, "swer E");
    push(&a, "N");
    assert_int_equal(a.stop_index, -1);
    push(&a, "D and more");
    assert_int_equal(a.stop_index, 0);
    push(&a, "nothing of this");
    dsi_answer_text_finish(&a);
    assert_heard(&h, DSI_PART_REASONING, "some END thoughts\n\nmore", 23);
    assert_heard(&h, DSI_PART_ANSWER, "the E你 answer ", 16);
    assert_false(h.broken);
    dsi_stop_free(set);
}

static void test_held_text_is_released_at_the_end(void **state) {
    (void)state;
    static const char *const stops[] = {"END"};
    dsi_stop_set *set = new_set(stops, 1);
    heard h;
    dsi_answer_text a = new_text(&h, set, false);
    assert_true(dsi_answer_text_think(&a, true)); /* the model opens its reasoning itself */
    assert_false(dsi_answer_text_think(&a, true));
    push(&a, "thought");
    assert_true(dsi_answer_text_think(&a, false));
    assert_false(dsi_answer_text_think(&a, false));
    push(&a, "answer EN");
    assert_heard(&h, DSI_PART_ANSWER, "answer ", 7);
    push(&a, "\xE4\xBD"); /* half a character */
    dsi_answer_text_finish(&a);
    assert_heard(&h, DSI_PART_ANSWER, "answer EN\xEF\xBF\xBD", 12);
    dsi_answer_text_finish(&a); /* once */
    assert_int_equal(h.n[0], 12);

    a = new_text(&h, NULL, true); /* line ends without end are text in the end */
    push(&a, "x");
    for (int i = 0; i < 1000; i++) push(&a, "\n");
    assert_int_equal(h.n[1], 1001 - DSI_ANSWER_MAX_LINE_ENDS);
    push(&a, "y");
    assert_int_equal(h.n[1], 1002);
    assert_true(dsi_answer_text_think(&a, false));
    assert_int_equal(h.n[1], 1002);
    dsi_stop_free(set);
}

/* ---- Through a session --------------------------------------------------------------------- */

static dsi_model *tiny;
static dsi_engine *engine;
static const char TICKET[] =
    "请对以下工单进行分拨。\n工单：您好，南山区人民路路灯不亮，走路看不清，请尽快处理。";

static int open_tiny(void **state) {
    (void)state;
    dsi_engine_options o;
    dsi_engine_options_init(&o);
    o.n_threads = 1;
    o.max_context = 512;
    if (dsi_model_open("examples/models/tiny-gov", NULL, &tiny) != DSI_OK) return -1;
    return dsi_engine_open(tiny, &o, &engine) == DSI_OK ? 0 : -1;
}
static int close_tiny(void **state) {
    (void)state;
    dsi_engine_close(engine);
    dsi_model_close(tiny);
    return 0;
}

static dsi_session *session_with(const char *const *stop, uint32_t n_stop) {
    dsi_session_options o;
    dsi_session *s = NULL;
    dsi_session_options_init(&o);
    o.stop = stop;
    o.n_stop = n_stop;
    if (dsi_session_open(engine, &o, &s) != DSI_OK) fail_msg("%s", dsi_last_error(NULL));
    return s;
}
static int32_t on_text(void *user, uint32_t part, const char *text, size_t n) {
    hear_part(user, part, text, n);
    return 0;
}
static dsi_generate_result generate(const char *const *stop, uint32_t n_stop, uint32_t think,
                                    heard *h) {
    dsi_generate_result r = {.struct_size = sizeof r};
    dsi_message m = {sizeof m, DSI_ROLE_USER, TICKET, sizeof TICKET - 1};
    dsi_session *s = session_with(stop, n_stop);
    *h = (heard){0};
    if (dsi_generate_chat(s, &m, 1, think, on_text, h, &r) != DSI_OK)
        fail_msg("%s", dsi_last_error(s));
    assert_false(h->broken);
    assert_int_equal(dsi_session_finish(s), r.finish_reason);
    dsi_session_close(s);
    return r;
}

static void ask_ticket(dsi_session *s) {
    dsi_message m = {sizeof m, DSI_ROLE_USER, TICKET, sizeof TICKET - 1};
    int32_t prompt[512];
    size_t n_prompt;
    assert_int_equal(dsi_chat_tokens(tiny, &m, 1, DSI_THINK_OFF, prompt, 512, &n_prompt), DSI_OK);
    assert_int_equal(dsi_session_append(s, prompt, n_prompt), DSI_OK);
}

/* The same with a loop of the caller's: how it finished and what it sampled. */
static uint32_t sample_all(const char *const *stop, uint32_t n_stop, int32_t *tokens, size_t *n) {
    dsi_session *s = session_with(stop, n_stop);
    ask_ticket(s);
    for (*n = 0;; ++*n) {
        if (dsi_session_next(s, &tokens[*n]) != DSI_OK) fail_msg("%s", dsi_last_error(s));
        if (tokens[*n] < 0) break;
    }
    uint32_t finish = dsi_session_finish(s);
    dsi_session_close(s);
    return finish;
}

/* Every piece of one to six characters of an answer as a stop string. */
static void test_stop_strings_of_an_answer(void **state) {
    (void)state;
    heard whole, h;
    int32_t all[512], some[512];
    size_t n_all, n_some, n_cases = 0;
    generate(NULL, 0, DSI_THINK_OFF, &whole);
    const char *text = whole.text[0];
    assert_int_equal(sample_all(NULL, 0, all, &n_all), DSI_FINISH_STOP);
    for (size_t begin = 0; begin < whole.n[0]; begin++) {
        if (((uint8_t)text[begin] & 0xC0) == 0x80) continue;
        char stop[64] = "";
        size_t end = begin, n_letters = 1 + begin % 6;
        for (size_t l = 0; l < n_letters && end < whole.n[0]; l++) do
                end++;
            while (end < whole.n[0] && ((uint8_t)text[end] & 0xC0) == 0x80);
        memcpy(stop, text + begin, end - begin);
        const char *const strings[] = {"never in it", stop};
        match want = naive_search(text, whole.n[0], strings, 2);
        dsi_generate_result r = generate(strings, 2, DSI_THINK_OFF, &h);
        assert_int_equal(r.finish_reason, DSI_FINISH_STOP_TEXT);
        assert_int_equal(r.stop_index, 1);
        assert_heard(&h, 0, text, want.begin);
        assert_int_equal(sample_all(strings, 2, some, &n_some), DSI_FINISH_STOP_TEXT);
        assert_int_equal(n_some, r.n_tokens_out);
        assert_memory_equal(some, all, n_some * sizeof *some);
        assert_true(n_some <= n_all);
        n_cases++;
    }
    printf("%zu stop strings\n", n_cases);
    assert_true(n_cases > 30);
    const char *const absent[] = {"}}", "路灯坏"};
    dsi_generate_result r = generate(absent, 2, DSI_THINK_OFF, &h);
    assert_int_equal(r.finish_reason, DSI_FINISH_STOP);
    assert_heard(&h, 0, text, whole.n[0]);
}

static void test_stop_strings_pass_over_reasoning(void **state) {
    (void)state;
    heard whole, h;
    generate(NULL, 0, DSI_THINK_ON, &whole);
    const char *const in_both[] = {"城市管理局"};
    whole.text[0][whole.n[0]] = whole.text[1][whole.n[1]] = 0;
    assert_non_null(strstr(whole.text[DSI_PART_REASONING], in_both[0]));
    const char *at = strstr(whole.text[DSI_PART_ANSWER], in_both[0]);
    assert_non_null(at);
    dsi_generate_result r = generate(in_both, 1, DSI_THINK_ON, &h);
    assert_int_equal(r.finish_reason, DSI_FINISH_STOP_TEXT);
    assert_heard(&h, DSI_PART_REASONING, whole.text[1], whole.n[1]);
    assert_heard(&h, DSI_PART_ANSWER, whole.text[0], (size_t)(at - whole.text[0]));
}

/* Samples until the session is finished: by the stop string, with these tokens behind the prompt.
 */
static void finish_alike(dsi_session *s, const int32_t *want, size_t n_want) {
    int32_t token = 0;
    const int32_t *tokens;
    size_t n;
    while (token >= 0) assert_int_equal(dsi_session_next(s, &token), DSI_OK);
    assert_int_equal(dsi_session_finish(s), DSI_FINISH_STOP_TEXT);
    assert_int_equal(dsi_session_tokens(s, &tokens, &n), DSI_OK);
    assert_true(n > n_want);
    assert_memory_equal(tokens + n - n_want, want, n_want * sizeof *want);
}

/* Cut and forked anywhere, in the middle of the stop string too, a session still finds it. */
static void test_stop_strings_survive_rewind_and_fork(void **state) {
    (void)state;
    const char *const stop[] = {"\"部门\": \"城市管"};
    int32_t want[512], token;
    size_t n_want;
    assert_int_equal(sample_all(stop, 1, want, &n_want), DSI_FINISH_STOP_TEXT);
    assert_true(n_want > 6);
    for (size_t k = 0; k <= n_want; k++)
        for (size_t back = 0; back <= k && back < 5; back++) {
            dsi_session *s = session_with(stop, 1), *copy = NULL;
            const int32_t *tokens;
            size_t n;
            ask_ticket(s);
            for (size_t i = 0; i < k; i++) assert_int_equal(dsi_session_next(s, &token), DSI_OK);
            assert_int_equal(dsi_session_tokens(s, &tokens, &n), DSI_OK);
            assert_int_equal(dsi_session_rewind(s, n - back), DSI_OK);
            assert_int_equal(dsi_session_fork(s, &copy), DSI_OK);
            if (k < n_want || back > 0) {
                finish_alike(s, want, n_want);
                finish_alike(copy, want, n_want);
            } else { /* behind the stop string: the session goes on */
                assert_int_equal(dsi_session_next(s, &token), DSI_OK);
                assert_true(token >= 0);
                assert_int_equal(dsi_session_finish(s), DSI_FINISH_NONE);
            }
            dsi_session_close(s);
            dsi_session_close(copy);
        }
}

static void test_session_refuses_wrong_strings(void **state) {
    (void)state;
    dsi_session_options o;
    dsi_session *s = NULL;
    dsi_session_options_init(&o);
    o.n_stop = 1;
    o.stop = (const char *const[]){""};
    assert_int_equal(dsi_session_open(engine, &o, &s), DSI_E_ARG);
    assert_non_null(strstr(dsi_last_error(NULL), "stop string 0 is empty"));
    dsi_model *no_text;
    assert_int_equal(dsi_model_open("tests/data/golden/llama", NULL, &no_text), DSI_OK);
    dsi_engine *e = open_engine(no_text, NULL);
    o.stop = (const char *const[]){"a"};
    assert_int_equal(dsi_session_open(e, &o, &s), DSI_E_STATE);
    assert_non_null(strstr(dsi_last_error(NULL), "tokenizer"));
    assert_null(s);
    dsi_engine_close(e);
    dsi_model_close(no_text);
}

/* The strings are copied: the caller's may be gone once the session is open. */
static void test_strings_are_copied(void **state) {
    (void)state;
    char text[] = "部门";
    char *own = strdup(text);
    const char *strings[1] = {own};
    dsi_session *s = session_with(strings, 1);
    memset(own, 'x', sizeof text - 1);
    free(own);
    strings[0] = NULL;
    heard h = {0};
    dsi_message m = {sizeof m, DSI_ROLE_USER, TICKET, sizeof TICKET - 1};
    assert_int_equal(dsi_generate_chat(s, &m, 1, DSI_THINK_OFF, on_text, &h, NULL), DSI_OK);
    assert_int_equal(dsi_session_finish(s), DSI_FINISH_STOP_TEXT);
    dsi_session_close(s);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_wrong_strings),
        cmocka_unit_test(test_every_cut_of_a_stop_string),
        cmocka_unit_test(test_overlapping_candidates),
        cmocka_unit_test(test_random_cases),
        cmocka_unit_test(test_every_character_streams_whole),
        cmocka_unit_test(test_reasoning_apart_from_answer),
        cmocka_unit_test(test_held_text_is_released_at_the_end),
        cmocka_unit_test(test_stop_strings_of_an_answer),
        cmocka_unit_test(test_stop_strings_pass_over_reasoning),
        cmocka_unit_test(test_stop_strings_survive_rewind_and_fork),
        cmocka_unit_test(test_session_refuses_wrong_strings),
        cmocka_unit_test(test_strings_are_copied),
    };
    return cmocka_run_group_tests_name("stop", tests, open_tiny, close_tiny);
}
