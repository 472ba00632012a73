/* test_pretok.c: the hand-written pre-tokenizers against the same regular expressions run by PCRE2,
 * and that their time is linear. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include "../lib/text/text.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

/* \s of the reference engine is White_Space. PCRE2's own \s has U+180E too, so it is spelt out. */
#define SPACES                                                                                     \
    "\\x{9}-\\x{d} \\x{85}\\x{a0}\\x{1680}\\x{2000}-\\x{200a}\\x{2028}\\x{2029}\\x{202f}"          \
    "\\x{205f}\\x{3000}"
#define SPACE_ENDS                                                                                 \
    "|[" SPACES "]*[\\r\\n]+"                                                                      \
    "|[" SPACES "]+(?![^" SPACES "])"                                                              \
    "|[" SPACES "]+"
#define LLAMA(digits)                                                                              \
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|" digits "| ?[^" SPACES            \
    "\\p{L}\\p{N}]+[\\r\\n]*" SPACE_ENDS
/* The letters of the word pattern of DeepSeek-V2. */
#define CASED                                                                                      \
    "A-Za-z\\x{b5}\\x{c0}-\\x{d6}\\x{d8}-\\x{f6}\\x{f8}-\\x{1ba}\\x{1bc}-\\x{1bf}"                 \
    "\\x{1c4}-\\x{293}\\x{295}-\\x{2af}\\x{370}-\\x{373}\\x{376}\\x{377}\\x{37b}-\\x{37d}"         \
    "\\x{37f}\\x{386}\\x{388}-\\x{38a}\\x{38c}\\x{38e}-\\x{3a1}\\x{3a3}-\\x{3f5}"                  \
    "\\x{3f7}-\\x{481}\\x{48a}-\\x{52f}\\x{531}-\\x{556}\\x{10a0}-\\x{10c5}"                       \
    "\\x{13a0}-\\x{13f5}\\x{13f8}-\\x{13fd}\\x{1c90}-\\x{1cba}\\x{1cbd}-\\x{1cbf}"                 \
    "\\x{1d00}-\\x{1d2b}\\x{1d6b}-\\x{1d77}\\x{1d79}-\\x{1d9a}\\x{1e00}-\\x{1f15}"                 \
    "\\x{1f18}-\\x{1f1d}\\x{1f20}-\\x{1f45}\\x{1f48}-\\x{1f4d}\\x{1f50}-\\x{1f57}\\x{1f59}"        \
    "\\x{1f5b}\\x{1f5d}\\x{1f5f}-\\x{1f7d}\\x{1f80}-\\x{1fb4}\\x{1fb6}-\\x{1fbc}\\x{1fbe}"         \
    "\\x{1fc2}-\\x{1fc4}\\x{1fc6}-\\x{1fcc}\\x{1fd0}-\\x{1fd3}\\x{1fd6}-\\x{1fdb}"                 \
    "\\x{1fe0}-\\x{1fec}\\x{1ff2}-\\x{1ff4}\\x{1ff6}-\\x{1ffc}\\x{2102}\\x{2107}"                  \
    "\\x{210a}-\\x{2113}\\x{2115}\\x{2119}-\\x{211d}\\x{2124}\\x{2126}\\x{2128}"                   \
    "\\x{212a}-\\x{212d}\\x{212f}-\\x{2134}\\x{2139}\\x{213c}-\\x{213f}\\x{2145}-\\x{2149}"        \
    "\\x{214e}\\x{2183}\\x{2184}\\x{2c00}-\\x{2c7b}\\x{2c7e}-\\x{2ce4}\\x{2ceb}-\\x{2cee}"         \
    "\\x{2cf2}\\x{2cf3}\\x{a640}-\\x{a66d}\\x{a680}-\\x{a69b}\\x{a722}-\\x{a76f}"                  \
    "\\x{a771}-\\x{a787}\\x{a78b}-\\x{a78e}\\x{ab70}-\\x{abbf}\\x{fb00}-\\x{fb06}"                 \
    "\\x{fb13}-\\x{fb17}\\x{ff21}-\\x{ff3a}\\x{ff41}-\\x{ff5a}\\x{10400}-\\x{1044f}"               \
    "\\x{104b0}-\\x{104d3}\\x{104d8}-\\x{104fb}\\x{10c80}-\\x{10cb2}\\x{10cc0}-\\x{10cf2}"         \
    "\\x{118a0}-\\x{118df}\\x{1e900}-\\x{1e943}"

enum { MAX_STEPS = 6 };
static struct family {
    const char *name;
    dsi_pretok pretok;
    const char *patterns[MAX_STEPS + 1]; /* applied in order, each inside the pieces before */
    pcre2_code *codes[MAX_STEPS];
} families[] = {
    {"deepseek-v3",
     DSI_PRETOK_DEEPSEEK_V3,
     {"\\p{N}{1,3}", "[\\x{4e00}-\\x{9fa5}\\x{3040}-\\x{309f}\\x{30a0}-\\x{30ff}]+",
      "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+"
      "|[^\\r\\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+"
      "| ?[\\p{P}\\p{S}]+[\\r\\n]*" SPACE_ENDS},
     {0}},
    {"deepseek-v2",
     DSI_PRETOK_DEEPSEEK_V2,
     {"[\\r\\n]", "[" SPACES "]?[" CASED "]+",
      "[" SPACES "]?[!-/:-~\\x{ff01}-\\x{ff0f}\\x{ff1a}-\\x{ff5e}\\x{2018}-\\x{201f}"
      "\\x{3000}-\\x{3002}]+",
      "[" SPACES "]+$", "[\\x{4e00}-\\x{9fa5}\\x{800}-\\x{4e00}\\x{ac00}-\\x{d7ff}]+", "\\p{N}"},
     {0}},
    {"qwen2", DSI_PRETOK_QWEN2, {LLAMA("\\p{N}")}, {0}},
    {"llama-3", DSI_PRETOK_LLAMA3, {LLAMA("\\p{N}{1,3}")}, {0}},
    {"smollm",
     DSI_PRETOK_SMOLLM,
     {"\\p{N}", "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^" SPACES "\\p{L}\\p{N}]+|[" SPACES
                "]+(?![^" SPACES "])|[" SPACES "]+"},
     {0}},
    {"deepseek-coder",
     DSI_PRETOK_DEEPSEEK_CODER,
     {"[\\r\\n]", "[" SPACES "]?\\p{L}+", "[" SPACES "]?\\p{P}+",
      "[\\x{4e00}-\\x{9fa5}\\x{800}-\\x{4e00}\\x{ac00}-\\x{d7ff}]+", "\\p{N}"},
     {0}},
};
enum { N_FAMILIES = sizeof families / sizeof *families };
static pcre2_match_data *match;

enum { MAX_TEXT = 4096 };
typedef struct pieces {
    size_t end[MAX_TEXT];
    size_t n;
} pieces;

static int open_patterns(void **state) {
    (void)state;
    for (int f = 0; f < N_FAMILIES; f++)
        for (int i = 0; families[f].patterns[i]; i++) {
            int code;
            size_t at;
            pcre2_code **compiled = &families[f].codes[i];
            *compiled = pcre2_compile((PCRE2_SPTR)families[f].patterns[i], PCRE2_ZERO_TERMINATED,
                                      PCRE2_UTF | PCRE2_UCP, &code, &at, NULL);
            if (!*compiled) {
                printf("%s, pattern %d: error %d at %zu\n", families[f].name, i, code, at);
                return -1;
            }
            pcre2_jit_compile(*compiled, PCRE2_JIT_COMPLETE);
        }
    match = pcre2_match_data_create(1, NULL);
    return match ? 0 : -1;
}

static int close_patterns(void **state) {
    (void)state;
    for (int f = 0; f < N_FAMILIES; f++)
        for (int i = 0; i < MAX_STEPS; i++) pcre2_code_free(families[f].codes[i]);
    pcre2_match_data_free(match);
    return 0;
}

/* "Split, Isolated": matches and what lies between them become pieces; each later pattern sees a
 * piece of the one before as its whole text. */
static void reference_split(const struct family *f, const char *text, size_t begin, size_t end,
                            int step, pieces *out) {
    if (!f->patterns[step]) {
        out->end[out->n++] = end;
        return;
    }
    size_t done = begin;
    while (done < end) {
        int found = pcre2_match(f->codes[step], (PCRE2_SPTR)text + begin, end - begin, done - begin,
                                PCRE2_NO_UTF_CHECK, match, NULL);
        if (found < 0) break;
        const size_t *range = pcre2_get_ovector_pointer(match);
        size_t from = begin + range[0], to = begin + range[1];
        if (from > done) reference_split(f, text, done, from, step + 1, out);
        reference_split(f, text, from, to, step + 1, out);
        done = to;
    }
    if (done < end) reference_split(f, text, done, end, step + 1, out);
}

static void check_text(const struct family *f, const char *text, size_t n_bytes) {
    static pieces want;
    want.n = 0;
    reference_split(f, text, 0, n_bytes, 0, &want);
    size_t n = 0, at = 0;
    for (; at < n_bytes; n++) {
        at = dsi_pretok_next(f->pretok, text, n_bytes, at, NULL);
        if (n < want.n && at == want.end[n]) continue;
        printf("%s, text:", f->name);
        for (size_t i = 0; i < n_bytes; i++) printf(" %02x", (unsigned char)text[i]);
        printf("\npiece %zu ends at %zu, PCRE2 says %zu\n", n, at, n < want.n ? want.end[n] : 0);
        fail();
    }
    assert_int_equal(n, want.n);
}

static size_t put_utf8(char *out, uint32_t c) {
    if (c < 0x80) {
        out[0] = (char)c;
        return 1;
    }
    size_t n = c < 0x800 ? 2 : c < 0x10000 ? 3 : 4;
    for (size_t i = n - 1; i > 0; i--, c >>= 6) out[i] = (char)(0x80 | (c & 0x3F));
    out[0] = (char)((0xF00u >> n & 0xF0u) | c);
    return n;
}

static bool is_scalar(uint32_t c) { return c <= 0x10FFFF && (c < 0xD800 || c > 0xDFFF); }

static const char *const before[] = {"", " ", "\n", "'", "a", "1", "\x01", "\xE4\xB8\xAD"};
static const char *const after[] = {"", "a", " ", "\n", ".", "1", "\xE4\xB8\xAD"};
enum { N_BEFORE = sizeof before / sizeof *before, N_AFTER = sizeof after / sizeof *after };

static void check_between(const struct family *f, const char *left, uint32_t c, const char *right) {
    char text[32];
    size_t at = strlen(left);
    memcpy(text, left, at);
    at += put_utf8(text + at, c);
    memcpy(text + at, right, strlen(right));
    check_text(f, text, at + strlen(right));
}

/* Every code point alone and behind a blank; where the category changes, and all over the scripts
 * with most kinds, also between all neighbours that make a difference. */
static void test_every_code_point(void **state) {
    (void)state;
    for (int f = 0; f < N_FAMILIES; f++) {
        uint32_t n = 0;
        for (uint32_t c = 0; c <= 0x10FFFF; c++) {
            if (!is_scalar(c)) continue;
            uint32_t category = dsi_unicode_category(c);
            bool all = c < 0x600 || (c >= 0x2000 && c < 0x3100) || c % 256 == 0 ||
                       category != dsi_unicode_category(c + 1) ||
                       (c > 0 && category != dsi_unicode_category(c - 1));
            for (size_t i = 0; i < (all ? N_BEFORE : 2); i++)
                for (size_t j = 0; j < (all ? N_AFTER : 1); j++, n++)
                    check_between(&families[f], before[i], c, after[j]);
        }
        print_message("%s: %u texts around every code point agree with PCRE2\n", families[f].name,
                      n);
    }
}

static uint64_t random_state = 88172645463325252u;
static uint32_t random_below(uint32_t n) {
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return (uint32_t)(random_state >> 33) % n;
}

/* Awkward characters; a text draws from a few pools, so that runs and neighbours of each kind are
 * frequent. */
static const char *const pools[] = {
    "abcXYZ",
    " ",
    "\r\n",
    " \t\r\n",
    "0123456789",
    ".,;!?'\"-_()[]{}<>/\\|@#$%^&*+=~`",
    "中文的一龥",
    "龦㐀𠀀",
    "ぁんゟアヿー・゠゛゙",
    "，。、；：？！《》（）【】“”‘’…—",
    "éßñøżЖаθ",
    "̧́̈⃝ี",
    "²³¼½Ⅷ①٣๓",
    "€¥£¬°±×÷√∑",
    "​‍‌﻿­",
    "      　\xE2\x80\xA8\xE2\x80\xA9\xC2\x85\x0B\x0C",
    "\x01\x02\x1B\x7F",
    "😀👍🏽🇨🇳",
    "𝟘𝟙𐒠",
    "\xD8\x9C\xE1\xA0\x8E\xE2\x81\xA6",
    "'\xC5\xBFsStTrReEvVmMlLdD",
    "éaÀZἈｚＡ𐐀Ꙁꭰⅎ",
    "\xE3\x80\x80\xE2\x80\x83 \xE1\x9A\x80",
    "！“‟。～、.",
    "א \xE2\x80\x83",
    "가나다",
    "אבגד",
};
enum { N_POOLS = sizeof pools / sizeof *pools };

static size_t character_at(const char *text) {
    unsigned char lead = (unsigned char)text[0];
    return lead < 0x80 ? 1 : lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
}

/* One random character of a pool, or now and then any code point at all. */
static size_t put_random(char *out, uint32_t pool) {
    if (random_below(64) == 0) {
        uint32_t c;
        do c = random_below(0x110000);
        while (!is_scalar(c));
        return put_utf8(out, c);
    }
    const char *p = pools[pool];
    uint32_t n = 0;
    for (const char *q = p; *q; q += character_at(q)) n++;
    for (uint32_t skip = random_below(n); skip > 0; skip--) p += character_at(p);
    memcpy(out, p, character_at(p));
    return character_at(p);
}

/* Up to 40 characters of three pools. */
static size_t random_text(char text[256]) {
    uint32_t chosen[3], length = 1 + random_below(40);
    for (int k = 0; k < 3; k++) chosen[k] = random_below(N_POOLS);
    size_t n = 0;
    while (length-- > 0) n += put_random(text + n, chosen[random_below(3)]);
    return n;
}

static void test_random_texts(void **state) {
    (void)state;
    enum { N_TEXTS = 200000 };
    char text[256];
    for (int f = 0; f < N_FAMILIES; f++)
        for (int i = 0; i < N_TEXTS; i++) {
            size_t n = random_text(text);
            check_text(&families[f], text, n);
        }
    print_message("%d random texts for each of %d agree with PCRE2\n", N_TEXTS, N_FAMILIES);
}

/* A piece that was found without looking at the end of the text is the same whatever follows. */
static void test_more_text(void **state) {
    (void)state;
    enum { N_TEXTS = 5000 };
    char text[256];
    int n_settled = 0, n_open = 0;
    for (int i = 0; i < N_TEXTS; i++) {
        const struct family *f = &families[i % N_FAMILIES];
        size_t n = random_text(text), cut = 0;
        while ((cut += character_at(text + cut)) < n) {
            bool saw_end = false;
            for (size_t at = 0; at < cut;) {
                size_t whole = dsi_pretok_next(f->pretok, text, n, at, NULL);
                size_t end = dsi_pretok_next(f->pretok, text, cut, at, &saw_end);
                if (saw_end) n_open++;
                if (saw_end) break;
                assert_int_equal(whole, end);
                n_settled++;
                at = end;
            }
        }
    }
    assert_true(n_settled > 10 * N_TEXTS && n_open > 10 * N_TEXTS);
}

/* Of this thread: what else the machine does must not decide a test. */
static double cpu_seconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* Calls in a row over a text must stay linear: twice the text, about twice the time. */
static double seconds_for(dsi_pretok pretok, const char *unit, size_t n_bytes) {
    char *text = malloc(n_bytes);
    assert_non_null(text);
    for (size_t i = 0, n = strlen(unit); i < n_bytes; i++) text[i] = unit[i % n];
    double start = cpu_seconds();
    for (size_t at = 0; at < n_bytes;) {
        size_t next = dsi_pretok_next(pretok, text, n_bytes, at, NULL);
        assert_true(next > at && next <= n_bytes);
        at = next;
    }
    double seconds = cpu_seconds() - start;
    free(text);
    return seconds;
}

static void test_linear_time(void **state) {
    (void)state;
    static const char *const units[] = {"a",
                                        " ",
                                        "\n",
                                        "1",
                                        ".",
                                        "\x01",
                                        " \n",
                                        "\x01 ",
                                        " a",
                                        "\xE4\xB8\xAD",
                                        "\xCC\x81",
                                        "\xC2\xA0",
                                        ".\n",
                                        "'s",
                                        "1 ",
                                        "\x01\x01\x01\x01\x01\x01\x01\x61",
                                        "\xFF",
                                        "\xE4\xB8",
                                        "\xE3\x80\x80",
                                        " \xE2\x80\x83",
                                        "\xD7\x90 \xE2\x80\x83 \xE2\x80\x83",
                                        ".\xE3\x80\x80",
                                        "a\xC3\xA9",
                                        "'"};
    enum { SMALL = 1 << 16, LARGE = 1 << 20, N_UNITS = sizeof units / sizeof *units };
    for (size_t i = 0; i < (size_t)N_UNITS * N_FAMILIES; i++) {
        const char *unit = units[i % N_UNITS];
        const struct family *f = &families[i / N_UNITS];
        double small = seconds_for(f->pretok, unit, SMALL),
               large = seconds_for(f->pretok, unit, LARGE);
        /* Sixteen times the text; a quadratic scanner would take 256 times as long. The floor
         * absorbs what the machine does beside. */
        if (large > 64 * small && large > 0.5) {
            printf("%s, unit %zu: %g s for %d bytes, %g s for %d\n", f->name, i % N_UNITS, small,
                   SMALL, large, LARGE);
            fail();
        }
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_code_point),
        cmocka_unit_test(test_random_texts),
        cmocka_unit_test(test_more_text),
        cmocka_unit_test(test_linear_time),
    };
    return cmocka_run_group_tests(tests, open_patterns, close_patterns);
}
