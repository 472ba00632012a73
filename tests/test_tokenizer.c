/* test_tokenizer.c: which tokenizer.json files are refused, with what message, and what those that
 * are accepted may bring along: ignore_merges, normalization, letters as tokens. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "../lib/base/fault.h"
#include "../lib/base/sys.h"
#include "tokenizer_files.h"

#include "model_files.h"

/* The first step of DeepSeek-V3 with other options, and all steps with another one in their midst
 * and another one at the end. */
#define STEP_1(options) "{\"type\":\"Split\",\"pattern\":{\"Regex\":\"\\\\p{N}{1,3}\"}," options "}"
#define STEPS(first, second, last) SEQUENCE(first "," second "," REGEX_3 "," last)
#define LETTERS_50 "abcdefghijklmnopqrstuvwxyabcdefghijklmnopqrstuvwxy"
#define LETTERS_200 LETTERS_50 LETTERS_50 LETTERS_50 LETTERS_50

typedef struct refusal {
    dsi_status status;
    const char *message; /* must be part of it */
    parts file;
} refusal;
static const refusal other_rules[] = {
    {DSI_E_UNSUPPORTED, "normalizer is NFKC", {.normalizer = "{\"type\":\"NFKC\"}"}},
    {DSI_E_UNSUPPORTED,
     "normalizer is Lowercase",
     {.normalizer = "{\"type\":\"Sequence\",\"normalizers\":[{\"type\":\"Lowercase\"}]}"}},
    {DSI_E_UNSUPPORTED,
     "normalizer is Sequence",
     {.normalizer = "{\"type\":\"Sequence\",\"normalizers\":[" NFC "," NFC "]}"}},
    {DSI_E_UNSUPPORTED, "normalizer is Sequence", {.normalizer = "{\"type\":\"Sequence\"}"}},
    {DSI_E_UNSUPPORTED,
     "pre_tokenizer is Whitespace",
     {.pre_tokenizer = "{\"type\":\"Whitespace\"}"}},
    {DSI_E_UNSUPPORTED, "pre_tokenizer is null", {.pre_tokenizer = "null"}},
    {DSI_E_UNSUPPORTED,
     "pre_tokenizer has 3 steps and starts as DeepSeek-V3's, which has 4: supported are the "
     "byte-level BPE tokenizers of DeepSeek-V3 and R1, DeepSeek-V2 and LLM, Qwen2, Llama-3",
     {.pre_tokenizer = SEQUENCE(REGEX_1 "," REGEX_2 "," BYTE_LEVEL)}},
    {DSI_E_UNSUPPORTED,
     "the pattern of a pre_tokenizer step is",
     {.pre_tokenizer = SEQUENCE(REGEX_2 "," REGEX_1 "," REGEX_3 "," BYTE_LEVEL)}},
    {DSI_E_UNSUPPORTED, "pre_tokenizer has no steps", {.pre_tokenizer = SEQUENCE("")}},
    {DSI_E_UNSUPPORTED,
     "the pattern of a pre_tokenizer step is \\\\d+: supported",
     {.pre_tokenizer =
          SEQUENCE("{\"type\":\"Split\",\"pattern\":{\"Regex\":\"\\\\d+\"}," ISOLATED)}},
    {DSI_E_UNSUPPORTED,
     "the pattern of a pre_tokenizer step is : supported",
     {.pre_tokenizer = SEQUENCE("{\"type\":\"Split\",\"pattern\":{\"Regex\":\"\"}," ISOLATED)}},
    {DSI_E_UNSUPPORTED,
     "a step of pre_tokenizer is Digits",
     {.pre_tokenizer = SEQUENCE("{\"type\":\"Digits\",\"individual_digits\":true}")}},
    {DSI_E_UNSUPPORTED,
     "use_regex is true",
     {.pre_tokenizer = SEQUENCE(REGEX_1 "," REGEX_2 "," REGEX_3 ",{\"type\":\"ByteLevel\","
                                        "\"add_prefix_space\":false,\"use_regex\":true}")}},
    {DSI_E_UNSUPPORTED,
     "add_prefix_space is missing",
     {.pre_tokenizer = SEQUENCE(REGEX_1 "," REGEX_2 "," REGEX_3 ",{\"type\":\"ByteLevel\"}")}},
    {DSI_E_UNSUPPORTED,
     "post_processor is BertProcessing",
     {.post_processor = "{\"type\":\"BertProcessing\"}"}},
    {DSI_E_UNSUPPORTED,
     "post_processor is RobertaProcessing",
     {.post_processor = "{\"type\":\"Sequence\",\"processors\":[{\"type\":\"ByteLevel\"},"
                        "{\"type\":\"RobertaProcessing\"}]}"}},
    {DSI_E_UNSUPPORTED, "decoder is WordPiece", {.decoder = "{\"type\":\"WordPiece\"}"}},
    {DSI_E_UNSUPPORTED, "model is Unigram", {.model = "Unigram"}},
    {DSI_E_UNSUPPORTED, "dropout is 0.1", {.options = ",\"dropout\":0.1"}},
    {DSI_E_UNSUPPORTED, "unk_token is <unk>", {.options = ",\"unk_token\":\"<unk>\""}},
    {DSI_E_UNSUPPORTED,
     "continuing_subword_prefix is ##",
     {.options = ",\"continuing_subword_prefix\":\"##\""}},
    {DSI_E_UNSUPPORTED,
     "end_of_word_suffix is </w>",
     {.options = ",\"end_of_word_suffix\":\"</w>\""}},
    {DSI_E_UNSUPPORTED, "byte_fallback is true", {.options = ",\"byte_fallback\":true"}},
    {DSI_E_UNSUPPORTED, "ignore_merges is 1", {.options = ",\"ignore_merges\":1"}},
    {DSI_E_UNSUPPORTED, "an unknown option of model is shuffle", {.options = ",\"shuffle\":1"}},
};
static const refusal other_steps[] = {
    {DSI_E_UNSUPPORTED,
     "the behavior of a pre_tokenizer step is Removed",
     {.pre_tokenizer =
          STEPS(STEP_1("\"behavior\":\"Removed\",\"invert\":false"), REGEX_2, BYTE_LEVEL)}},
    {DSI_E_UNSUPPORTED,
     "the behavior of a pre_tokenizer step is missing",
     {.pre_tokenizer = STEPS(STEP_1("\"invert\":false"), REGEX_2, BYTE_LEVEL)}},
    {DSI_E_UNSUPPORTED,
     "invert of a pre_tokenizer step is true",
     {.pre_tokenizer =
          STEPS(STEP_1("\"behavior\":\"Isolated\",\"invert\":true"), REGEX_2, BYTE_LEVEL)}},
    {DSI_E_UNSUPPORTED,
     "a step of pre_tokenizer is Punctuation",
     {.pre_tokenizer = STEPS(REGEX_1, "{\"type\":\"Punctuation\"}", BYTE_LEVEL)}},
    {DSI_E_UNSUPPORTED,
     "the last step of pre_tokenizer is Metaspace",
     {.pre_tokenizer = STEPS(REGEX_1, REGEX_2, "{\"type\":\"Metaspace\"}")}},
    {DSI_E_UNSUPPORTED, "pre_tokenizer is Sequence", {.pre_tokenizer = "{\"type\":\"Sequence\"}"}},
    {DSI_E_UNSUPPORTED,
     "pre_tokenizer is Sequence",
     {.pre_tokenizer = "{\"type\":\"Sequence\",\"pretokenizers\":{\"a\":1}}"}},
    {DSI_E_UNSUPPORTED,
     "normalizer is Sequence",
     {.normalizer = "{\"type\":\"Sequence\",\"normalizers\":\"NFC\"}"}},
    {DSI_E_UNSUPPORTED,
     "post_processor is Sequence",
     {.post_processor = "{\"type\":\"Sequence\"}"}},
    {DSI_E_UNSUPPORTED,
     "post_processor is Sequence",
     {.post_processor = "{\"type\":\"Sequence\",\"processors\":7}"}},
    /* A long name is quoted in part. */
    {DSI_E_UNSUPPORTED,
     "normalizer is " LETTERS_200 ": supported",
     {.normalizer = "{\"type\":\"" LETTERS_200 "zzz\"}"}},
};
static const refusal bad_contents[] = {
    {DSI_E_FORMAT, "no token for byte 0x41", {.skip_byte = 'A'}},
    {DSI_E_FORMAT, "no token for byte 0x0A", {.skip_byte = '\n'}},
    {DSI_E_FORMAT, "no token for byte 0xF0", {.skip_byte = 0xF0}},
    {DSI_E_FORMAT, "two tokens have id 65", {.vocab = "\"ab\":65"}},
    {DSI_E_FORMAT, "id 2097152, the limit is 2097151", {.vocab = "\"ab\":2097152"}},
    {DSI_E_FORMAT, "is not a whole number", {.vocab = "\"ab\":-1"}},
    {DSI_E_FORMAT, "is not a whole number", {.vocab = "\"ab\":\"x\""}},
    {DSI_E_FORMAT, "has 0 bytes", {.vocab = "\"\":300"}},
    {DSI_E_UNSUPPORTED, "that byte-level BPE does not use", {.vocab = "\"好\":300"}},
    {DSI_E_FORMAT, "merge 0: \"ab\" is not in the vocabulary", {.merges = "\"ab c\""}},
    {DSI_E_FORMAT, "merge 0: what \"a\" and \"b\" make is not", {.merges = "[\"a\",\"b\"]"}},
    {DSI_E_FORMAT, "has no blank", {.merges = "\"ab\""}},
    {DSI_E_FORMAT, "merge 0 has 3 parts", {.merges = "[\"a\",\"b\",\"c\"]"}},
    {DSI_E_FORMAT, "a merge is not a string", {.merges = "7"}},
    {DSI_E_FORMAT, "a part of a merge is not a string", {.merges = "[\"a\",7]"}},
    {DSI_E_FORMAT,
     "merge 1 (tokens 97 and 98) is listed twice",
     {.merges = "\"a b\",\"a b\"", .vocab = "\"ab\":256"}},
    {DSI_E_FORMAT, "two tokens have id 65", {.added = ADDED("65", "<x>", "")}},
    {DSI_E_FORMAT, "listed twice", {.added = ADDED("300", "<x>", "") "," ADDED("301", "<x>", "")}},
    {DSI_E_FORMAT,
     "has id 301 in the vocabulary and id 300",
     {.added = ADDED("300", "<x>", ""), .vocab = "\"<x>\":301"}},
    {DSI_E_UNSUPPORTED, "has lstrip", {.added = ADDED("300", "<x>", ",\"lstrip\":true")}},
    {DSI_E_FORMAT, "has 0 bytes", {.added = ADDED("300", "", "")}},
    {DSI_E_FORMAT,
     "no true or false for \"normalized\"",
     {.added = "{\"id\":300,\"content\":\"<x>\"}"}},
    {DSI_E_FORMAT, "the content of an added token is not a string", {.added = "7"}},
};

static void check_refused(const refusal *want, size_t n) {
    char path[32];
    temporary_path(path);
    for (size_t i = 0; i < n; i++) {
        dsi_error error = {0};
        dsi_tokenizer *tokenizer;
        write_tokenizer(path, &want[i].file);
        dsi_status status = dsi_tokenizer_open(path, &tokenizer, &error);
        if (status == want[i].status && strstr(error.text, want[i].message) &&
            strstr(error.text, path) && !tokenizer)
            continue;
        printf("want \"%s\", got %d \"%s\"\n", want[i].message, status, error.text);
        fail();
    }
    unlink(path);
}

static void test_refusals(void **state) {
    (void)state;
    check_refused(other_rules, sizeof other_rules / sizeof *other_rules);
    check_refused(other_steps, sizeof other_steps / sizeof *other_steps);
    check_refused(bad_contents, sizeof bad_contents / sizeof *bad_contents);
}

/* What the refusals start from is accepted, and what the families have beside; a file that is not
 * there is an IO error. */
/* DeepSeek-V2 has a step for digits; vocab, merges and added_tokens are of the right kind. */
static void test_changed_files(void **state) {
    (void)state;
    static const struct {
        dsi_status status;
        const char *file, *from, *to, *message;
    } changes[] = {
        {DSI_E_UNSUPPORTED, "deepseek-v2", "\"Digits\"", "\"Whitespace\"",
         "a step of pre_tokenizer is Whitespace"},
        {DSI_E_UNSUPPORTED, "deepseek-v2", "_digits\":true", "_digits\":false",
         "individual_digits is false"},
        {DSI_E_UNSUPPORTED, "deepseek-v2", "\"individual_digits\"", "\"digits\"",
         "individual_digits is missing"},
        {DSI_E_FORMAT, "deepseek-v2", "\"vocab\":{", "\"vocab\":[],\"type\":{", ""},
        {DSI_E_FORMAT, "", "\"vocab\":{}", "\"vocab\":[]", "model.vocab is not an object"},
        {DSI_E_FORMAT, "", ",\"vocab\":{}", "", "model.vocab is not an object"},
        {DSI_E_FORMAT, "", "\"merges\":[]", "\"merges\":{}", "model.merges is not an array"},
        {DSI_E_FORMAT, "", "\"merges\":[],", "", "model.merges is not an array"},
        {DSI_E_FORMAT, "", "\"added_tokens\":[]", "\"added_tokens\":{}",
         "added_tokens is not an array"},
        {DSI_E_FORMAT, "", "\"added_tokens\":[],", "", "no token for byte"},
        {DSI_E_UNSUPPORTED, "", "\"padding\":null", "\"padding\":{}", "padding is an object"},
    };
    static const char bare[] = "{\"padding\":null,\"added_tokens\":[],\"pre_tokenizer\":" SEQUENCE(
        REGEX_1 "," REGEX_2 "," REGEX_3
                "," BYTE_LEVEL) ",\"decoder\":" DECODER
                                ",\"model\":{\"type\":\"BPE\",\"end_of_word_suffix\":\"\","
                                "\"merges\":[],\"vocab\":{}}}";
    char path[32], from[64];
    temporary_path(path);
    for (size_t i = 0; i < sizeof changes / sizeof *changes; i++) {
        snprintf(from, sizeof from, "tests/data/tokenizer/%s", changes[i].file);
        bytes file = {0};
        if (changes[i].file[0] != 0) file = read_file(from, "tokenizer.json");
        char *text = replaced(file.data ? file.data : bare, changes[i].from, changes[i].to);
        FILE *out = fopen(path, "wb");
        assert_non_null(out);
        fputs(text, out);
        assert_int_equal(fclose(out), 0);
        dsi_error error = {0};
        dsi_tokenizer *tokenizer;
        dsi_status status = dsi_tokenizer_open(path, &tokenizer, &error);
        if (status != changes[i].status || !strstr(error.text, changes[i].message))
            fail_msg("want \"%s\", got %d \"%s\"", changes[i].message, status, error.text);
        free(text);
        free(file.data);
    }
    unlink(path);
}

static void test_accepted(void **state) {
    (void)state;
    dsi_tokenizer *tokenizer =
        open_parts(&(parts){.added = ADDED("300", "<x>", ""), .vocab = "\"<x>\":300"});
    assert_int_equal(dsi_tokenizer_n_tokens(tokenizer), 301);
    dsi_tokenizer_free(tokenizer);
    static const parts others[] = {
        {.normalizer = NFC},
        {.normalizer = "{\"type\":\"Sequence\",\"normalizers\":[" NFC "]}"},
        {.normalizer = "{\"type\":\"Sequence\",\"normalizers\":[]}"},
        {.post_processor = "{\"type\":\"TemplateProcessing\",\"single\":[]}"},
        {.post_processor = "{\"type\":\"Sequence\",\"processors\":[{\"type\":\"ByteLevel\"},"
                           "{\"type\":\"TemplateProcessing\"}]}"},
        {.options = ",\"ignore_merges\":false"},
        {.options = ",\"continuing_subword_prefix\":\"\",\"end_of_word_suffix\":\"\""},
        {.skip_byte = 0xC0}, /* these never occur in UTF-8 */
        {.skip_byte = 0xFF},
    };
    for (size_t i = 0; i < sizeof others / sizeof *others; i++)
        dsi_tokenizer_free(open_parts(&others[i]));
    assert_int_equal(dsi_tokenizer_open("/nonexistent/tokenizer.json", &tokenizer, NULL), DSI_E_IO);
}

typedef struct counter {
    size_t n;
    uint64_t hash;
} counter;
static bool count(void *user, const int32_t *ids, size_t n_tokens) {
    counter *c = user;
    for (size_t i = 0; i < n_tokens; i++, c->n++)
        c->hash = (c->hash ^ (uint64_t)ids[i]) * UINT64_C(1099511628211);
    return true;
}

enum { MAX_IDS = 64 };
typedef struct tokens {
    int32_t id[MAX_IDS];
    size_t n;
} tokens;
static bool collect(void *user, const int32_t *ids, size_t n_tokens) {
    tokens *list = user;
    assert_true(list->n + n_tokens <= MAX_IDS);
    memcpy(list->id + list->n, ids, n_tokens * sizeof *ids);
    list->n += n_tokens;
    return true;
}

static void check_ids(const dsi_tokenizer *tokenizer, const char *text, bool special,
                      const int32_t *want, size_t n) {
    static tokens got;
    got.n = 0;
    assert_int_equal(
        dsi_tokenizer_encode(tokenizer, text, strlen(text), special, collect, &got, NULL), DSI_OK);
    assert_int_equal(got.n, n);
    assert_memory_equal(got.id, want, n * sizeof *want);
}
#define CHECK_IDS(tokenizer, text, special, ...)                                                   \
    check_ids(tokenizer, text, special, (const int32_t[]){__VA_ARGS__},                            \
              sizeof(const int32_t[]){__VA_ARGS__} / sizeof(int32_t))

/* With ignore_merges a piece that is an entry is that token; without, merges decide. */
static void test_ignore_merges(void **state) {
    (void)state;
    static const char vocab[] = "\"ab\":256,\"bc\":257,\"abc\":258,\"b\\u00C3\\u00BC\":259,"
                                "\"\\u00EF\\u00BF\\u00BD\\u00EF\\u00BF\\u00BD\":260";
    parts p = {.vocab = vocab, .merges = "\"b c\",\"a b\",\"ab c\""};
    dsi_tokenizer *merging = open_parts(&p);
    p.options = ",\"ignore_merges\":true";
    dsi_tokenizer *whole = open_parts(&p);
    CHECK_IDS(merging, "abc", false, 'a', 257);
    CHECK_IDS(whole, "abc", false, 258);
    CHECK_IDS(whole, "abc ab", false, 258, ' ', 256);
    CHECK_IDS(whole, "abcd", false, 'a', 257, 'd');
    CHECK_IDS(whole, "b\xC3\xBC", false, 259);
    /* broken bytes count as what they are replaced with */
    CHECK_IDS(whole, "\xFF\xFF", false, 260);
    CHECK_IDS(merging, "\xFF", false, 0xEF, 0xBF, 0xBD);
    dsi_tokenizer_free(merging);
    dsi_tokenizer_free(whole);
}

/* DeepSeek LLM lists "\xC3\xBC" and twelve more letters as added tokens, and lacks their bytes: the
 * reference finds them in any text. They are no marks of the template. */
static void test_letters(void **state) {
    (void)state;
    dsi_tokenizer *t = open_parts(&(parts){
        .added = "{\"id\":300,\"content\":\"\\u00FC\",\"normalized\":true,\"special\":false},"
                 "{\"id\":301,\"content\":\"<x>\",\"normalized\":true,\"special\":false}",
        .skip_byte = 0xFC});
    CHECK_IDS(t, "f\xC3\xBCr", false, 'f', 300, 'r');
    CHECK_IDS(t, "<x>\xC3\xBC", true, 301, 300);
    CHECK_IDS(t, "<x>\xC3\xBC", false, '<', 'x', '>', 300);
    size_t n;
    assert_memory_equal(dsi_tokenizer_bytes(t, 300, &n), "\xC3\xBC", 2);
    assert_false(dsi_tokenizer_is_added(t, 300));
    assert_true(dsi_tokenizer_is_added(t, 301));
    assert_int_equal(dsi_tokenizer_special(t, "\xC3\xBC"), -1);
    dsi_tokenizer_free(t);
}

/* SmolLM2 has no tokens for some control characters and for what begins with 0xF1: they are left
 * out, and nothing merges across them. */
static void test_lacking_bytes(void **state) {
    (void)state;
    static const char merges[] = "\"a b\"", vocab[] = "\"ab\":256";
    dsi_tokenizer *t = open_parts(&(parts){.skip_byte = 0x13, .vocab = vocab, .merges = merges});
    CHECK_IDS(t, "ab", false, 256);
    CHECK_IDS(t,
              "\x13"
              "ab\x13"
              "a\x13\x13"
              "b\x13",
              false, 256, 'a', 'b');
    check_ids(t, "\x13\x13", false, NULL, 0);
    static char text[400];
    static counter with, without;
    for (int k = 0; k < 2; k++) { /* a piece that does not fit the small window */
        memset(text, 'a', sizeof text);
        if (k) text[330] = 0x13;
        assert_int_equal(dsi_tokenizer_encode(t, text, sizeof text - !k, false, count,
                                              k ? &with : &without, NULL),
                         DSI_OK);
    }
    assert_int_equal(with.n, without.n);
    assert_int_equal(with.hash, without.hash);
    dsi_tokenizer_free(t);
    t = open_parts(&(parts){.skip_byte = 0xF1});
    CHECK_IDS(t, "x\xF1\x80\x80\x80y", false, 'x', 'y');
    CHECK_IDS(t, "\xF1y\xF1", false, 0xEF, 0xBF, 0xBD, 'y', 0xEF, 0xBF, 0xBD); /* broken */
    CHECK_IDS(t, "\xF0\x9F\x98\x80", false, 0xF0, 0x9F, 0x98, 0x80);
    dsi_tokenizer_free(t);
}

/* Form C is made before the pieces, in windows; tokens of the second set are looked for in it. */
static void test_normalised(void **state) {
    (void)state;
    dsi_tokenizer *t = open_parts(&(parts){
        .normalizer = NFC,
        .added = ADDED("300", "<n>", "") ",{\"id\":301,\"content\":\"<c>\",\"normalized\":true}",
        .vocab = "\"\\u00C3\\u00A9\":256",
        .merges = "\"\\u00C3 \\u00A9\""});
    CHECK_IDS(t, "e\xCC\x81", false, 256);
    CHECK_IDS(t, "\xC3\xA9", false, 256);
    CHECK_IDS(t, "<n>e\xCC\x81<c>e\xCC\x81", true, 300, 256, 301, 256);
    CHECK_IDS(t, "<c>\xCC\xB8 e\xCC\x81", true, '<', 'c', 0xE2, 0x89, 0xAF, ' ', 256); /* U+226F */
    CHECK_IDS(t, "<n>\xCC\xB8", true, 300, 0xCC, 0xB8);
    /* 300,000 bytes of words, one of 200,000 letters among them, with a token now and then */
    static char text[600000], composed[600000];
    size_t n = 0, n_composed = 0;
    for (uint32_t i = 0; n < 300000; i++) {
        const char *unit = i > 30000 && i < 97000 ? "e\xCC\x81"
                           : i % 50 == 0          ? "<c>"
                                                  : "e\xCC\x81 a ";
        const char *same = i > 30000 && i < 97000 ? "\xC3\xA9"
                           : i % 50 == 0          ? "<c>"
                                                  : "\xC3\xA9 a ";
        memcpy(text + n, unit, strlen(unit));
        memcpy(composed + n_composed, same, strlen(same));
        n += strlen(unit);
        n_composed += strlen(same);
    }
    for (int special = 0; special < 2; special++) {
        counter a = {0}, b = {0};
        assert_int_equal(dsi_tokenizer_encode(t, text, n, special, count, &a, NULL), DSI_OK);
        assert_int_equal(dsi_tokenizer_encode(t, composed, n_composed, special, count, &b, NULL),
                         DSI_OK);
        assert_true(a.n == b.n && a.hash == b.hash && a.n > 30000);
    }
    dsi_tokenizer_free(t);
}

/* Every allocation of a text that is normalised fails in turn: an error that says so, no leak. */
static void test_without_memory(void **state) {
    (void)state;
    static char text[200000];
    static const char unit[] = "\xCC\x81\xCC\xA3";
    size_t n = 0;
    memcpy(text, "e", 1);
    for (n = 1; n < 4000; n += sizeof unit - 1) memcpy(text + n, unit, sizeof unit - 1);
    for (; n < sizeof text - 3; n += 3) memcpy(text + n, "e\xCC\x81", 3); /* one piece */
    dsi_tokenizer *t = open_parts(&(parts){.normalizer = NFC});
    dsi_memory_counts before, after;
    dsi_memory_counts_now(&before);
    static const dsi_call kinds[] = {DSI_CALL_CALLOC, DSI_CALL_REALLOC};
    int n_failed = 0;
    for (int kind = 0; kind < 2; kind++)
        for (uint64_t nth = 1;; nth++) {
            dsi_error error = {0};
            counter c = {0};
            dsi_fault_arm(&(dsi_fault){.kind = kinds[kind], .nth = nth});
            dsi_status status = dsi_tokenizer_encode(t, text, n, false, count, &c, &error);
            dsi_fault_disarm();
            dsi_memory_counts_now(&after);
            assert_int_equal(after.n_blocks, before.n_blocks);
            if (status == DSI_OK) break;
            assert_int_equal(status, DSI_E_NOMEM);
            assert_non_null(strstr(error.text, "no memory to"));
            n_failed++;
        }
    assert_true(n_failed >= 8);
    dsi_tokenizer_free(t);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_refusals),   cmocka_unit_test(test_changed_files),
        cmocka_unit_test(test_accepted),   cmocka_unit_test(test_ignore_merges),
        cmocka_unit_test(test_letters),    cmocka_unit_test(test_lacking_bytes),
        cmocka_unit_test(test_normalised), cmocka_unit_test(test_without_memory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
