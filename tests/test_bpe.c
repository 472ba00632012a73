/* test_bpe.c: the encoder against plain byte-pair encoding (merge the best pair until none is
 * left), with real and with random vocabularies. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "../lib/base/json.h"
#include "../lib/base/sys.h"
#include "tokenizer_files.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define DEEPSEEK "tests/data/tokenizer/tokenizer.json"
#define TINY_GOV "examples/models/tiny-gov/tokenizer.json"

static uint64_t random_state = 88172645463325252u;
static uint32_t random_below(uint32_t n) {
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return (uint32_t)(random_state >> 33) % n;
}

/* ---- Plain byte-pair encoding: straight from the definition, in quadratic time ----------------
 */

typedef struct pair {
    uint64_t key; /* left << 32 | right; 0 is empty (two ids 0 never merge) */
    uint32_t rank;
    int32_t product;
} pair;
typedef struct plain_bpe {
    int32_t byte_token[256];
    pair *pairs;
    size_t mask;
} plain_bpe;

static pair *find_pair(const plain_bpe *bpe, int32_t left, int32_t right) {
    uint64_t key = (uint64_t)left << 32 | (uint32_t)right;
    size_t slot = (size_t)(key * UINT64_C(0x9E3779B97F4A7C15) >> 20);
    for (;; slot++) {
        pair *p = &bpe->pairs[slot & bpe->mask];
        if (p->key == 0 || p->key == key) return p;
    }
}

/* Bytes of a text in the byte-level alphabet: U+0100.. stand for the bytes without a glyph. */
static size_t from_alphabet(const char *text, char *out) {
    size_t n = 0;
    for (const unsigned char *p = (const unsigned char *)text; *p;) {
        unsigned c = *p < 0x80 ? *p : (unsigned)((*p & 0x1F) << 6 | (p[1] & 0x3F));
        p += *p < 0x80 ? 1 : 2;
        if (c >= 0x100) {
            unsigned k = c - 0x100;
            c = k < 33 ? k : k < 67 ? k - 33 + 127 : 0xAD;
        }
        out[n++] = (char)c;
    }
    out[n] = '\0';
    return n;
}

/* Id of a vocabulary text in the file. */
static int32_t vocabulary_id(const dsi_trie *index, const char *text) {
    char bytes[4096];
    return dsi_trie_find(index, (uint8_t *)bytes, from_alphabet(text, bytes));
}

/* The two parts of a merge, to be freed by free(). */
static void split_merge(const dsi_json *json, uint32_t node, char **left, char **right) {
    bool two = json->nodes[node].kind == DSI_JSON_ARRAY;
    char *first = dsi_json_string(json, two ? node + 1 : node, NULL), *second = NULL;
    if (two)
        second = dsi_json_string(json, json->nodes[node + 1].end, NULL);
    else
        *strchr(first, ' ') = '\0';
    *left = strdup(first);
    *right = strdup(second ? second : first + strlen(first) + 1);
    dsi_sys_free(first);
    dsi_sys_free(second);
}

/* All texts of the vocabulary, whether BPE can make them or not. */
static void index_vocabulary(const dsi_json *json, uint32_t vocab, dsi_trie *index) {
    uint32_t n = 0;
    dsi_trie_entry *entries = calloc(json->nodes[vocab].n_items, sizeof *entries);
    for (uint32_t key = vocab + 1; key < json->nodes[vocab].end; key = json->nodes[key + 1].end) {
        char *text = dsi_json_string(json, key, NULL), *bytes = malloc(strlen(text) + 1);
        uint64_t id;
        assert_true(dsi_json_u64(json, key + 1, &id));
        if (strstr(text, "｜")) {
            free(bytes); /* an added token that is listed in the vocabulary too */
        } else {
            entries[n++] = (dsi_trie_entry){(uint8_t *)bytes, (uint32_t)from_alphabet(text, bytes),
                                            (int32_t)id, 0};
        }
        dsi_sys_free(text);
    }
    int32_t duplicate;
    assert_int_equal(dsi_trie_build(index, entries, n, &duplicate, NULL), DSI_OK);
    for (uint32_t i = 0; i < n; i++) free((void *)(uintptr_t)entries[i].bytes);
    free(entries);
}

static void plain_open(const char *path, plain_bpe *bpe) {
    char *text;
    uint64_t n_bytes;
    dsi_json json;
    dsi_trie index;
    assert_int_equal(dsi_sys_read_file(path, 1 << 24, &text, &n_bytes, NULL), DSI_OK);
    assert_int_equal(dsi_json_parse(text, n_bytes, 1 << 24, &json, NULL), DSI_OK);
    uint32_t model = dsi_json_get(&json, 0, "model"), merges = dsi_json_get(&json, model, "merges");
    index_vocabulary(&json, dsi_json_get(&json, model, "vocab"), &index);
    for (int i = 0; i < 256; i++) {
        uint8_t byte = (uint8_t)i;
        bpe->byte_token[i] = dsi_trie_find(&index, &byte, 1);
    }
    bpe->mask = 255;
    while (bpe->mask < 4 * (size_t)json.nodes[merges].n_items) bpe->mask = bpe->mask * 2 + 1;
    bpe->pairs = calloc(bpe->mask + 1, sizeof *bpe->pairs);
    uint32_t rank = 0;
    for (uint32_t i = merges + 1; i < json.nodes[merges].end; i = json.nodes[i].end) {
        char *left, *right, joined[8192];
        split_merge(&json, i, &left, &right);
        int32_t l = vocabulary_id(&index, left), r = vocabulary_id(&index, right);
        snprintf(joined, sizeof joined, "%s%s", left, right);
        *find_pair(bpe, l, r) =
            (pair){(uint64_t)l << 32 | (uint32_t)r, rank++, vocabulary_id(&index, joined)};
        free(left);
        free(right);
    }
    dsi_trie_free(&index);
    dsi_json_free(&json);
    dsi_sys_free(text);
}

/* tokens has room for n_bytes; returns their number. */
static size_t plain_encode(const plain_bpe *bpe, const char *text, size_t n_bytes,
                           int32_t *tokens) {
    size_t n = n_bytes;
    uint32_t *rank = malloc((n + 1) * sizeof *rank); /* of tokens i and i + 1 */
    for (size_t i = 0; i < n; i++) tokens[i] = bpe->byte_token[(uint8_t)text[i]];
    for (size_t i = 0; i + 1 < n; i++) {
        const pair *p = find_pair(bpe, tokens[i], tokens[i + 1]);
        rank[i] = p->key ? p->rank : UINT32_MAX;
    }
    for (;;) {
        size_t best = 0;
        for (size_t i = 1; i + 1 < n; i++)
            if (rank[i] < rank[best]) best = i;
        if (n < 2 || rank[best] == UINT32_MAX) break;
        tokens[best] = find_pair(bpe, tokens[best], tokens[best + 1])->product;
        memmove(tokens + best + 1, tokens + best + 2, (n - best - 2) * sizeof *tokens);
        memmove(rank + best, rank + best + 1, (n - best - 1) * sizeof *rank);
        n--;
        for (size_t i = best > 0 ? best - 1 : 0; i <= best && i + 1 < n; i++) {
            const pair *p = find_pair(bpe, tokens[i], tokens[i + 1]);
            rank[i] = p->key ? p->rank : UINT32_MAX;
        }
    }
    free(rank);
    return n;
}

/* ---- Comparison ---------------------------------------------------------------------------- */

enum { MAX_TEXT = 8192 };
typedef struct tokens {
    int32_t id[MAX_TEXT];
    size_t n;
} tokens;

static bool collect(void *user, const int32_t *ids, size_t n_tokens) {
    tokens *list = user;
    assert_true(list->n + n_tokens <= MAX_TEXT);
    memcpy(list->id + list->n, ids, n_tokens * sizeof *ids);
    list->n += n_tokens;
    return true;
}

static void check_encoding(const dsi_tokenizer *tokenizer, const plain_bpe *bpe, const char *text,
                           size_t n_bytes) {
    static tokens got, want;
    dsi_error error = {0};
    got.n = want.n = 0;
    assert_int_equal(dsi_tokenizer_encode(tokenizer, text, n_bytes, false, collect, &got, &error),
                     DSI_OK);
    for (size_t begin = 0; begin < n_bytes;) {
        size_t end = dsi_pretok_next(tokenizer->pretok, text, n_bytes, begin, NULL);
        want.n += plain_encode(bpe, text + begin, end - begin, want.id + want.n);
        begin = end;
    }
    if (got.n == want.n && memcmp(got.id, want.id, got.n * sizeof *got.id) == 0) return;
    printf("text: %.*s\n", (int)n_bytes, text);
    for (size_t i = 0; i < got.n || i < want.n; i++)
        printf(" %d/%d", i < got.n ? got.id[i] : -1, i < want.n ? want.id[i] : -1);
    printf("\n");
    fail();
}

static const char *const alphabets[] = {
    "a|b",
    " |\n",
    " ",
    "\n",
    "a",
    "1|2|3",
    "的|一|国|家|政|府|通|知",
    "好",
    "中|文|字",
    "a|b|c|d|e|f|g|h|i|j|k|l|m|n|o|p|q|r|s|t|u|v|w|x|y|z",
    "e|t|a|o|i|n|s| ",
    "=|-|*|#|_",
    "/|.|\\",
    "。|，|、",
    "あ|い|う|ア|イ",
    "é|è|à|ñ",
    "п|р|и|в|е|т| ",
    "😀|👍|🏽",
    "가|나|다|라",
    "ab|abab|ba",
    "the|ing|ion|er|in| ",
    " |  |\t|\r\n|\n\n",
    "a|B|1| |。|好|\n",
};
enum { N_ALPHABETS = sizeof alphabets / sizeof *alphabets };

/* Characters (or syllables) of an alphabet, some of them repeated. */
static size_t random_text(char *out, const char *alphabet, uint32_t n_units) {
    const char *unit[32];
    size_t length[32], n = 0, at = 0;
    for (const char *p = alphabet; *p; n++) {
        unit[n] = p;
        length[n] = strcspn(p, "|");
        p += length[n];
        if (*p) p++;
    }
    while (n_units > 0) {
        uint32_t pick = random_below((uint32_t)n), times = 1;
        if (random_below(8) == 0) times += random_below(40);
        for (; times > 0 && n_units > 0; times--, n_units--) {
            memcpy(out + at, unit[pick], length[pick]);
            at += length[pick];
        }
    }
    return at;
}

static void check_real(const char *path, int n_texts, uint32_t max_units, uint32_t window) {
    char text[MAX_TEXT];
    plain_bpe bpe;
    dsi_tokenizer *tokenizer;
    assert_int_equal(dsi_tokenizer_open(path, &tokenizer, NULL), DSI_OK);
    if (window > 0) tokenizer->window_bytes = window;
    plain_open(path, &bpe);
    for (int i = 0; i < n_texts; i++) {
        const char *alphabet = alphabets[random_below(N_ALPHABETS)];
        size_t n = random_text(text, alphabet, 1 + random_below(max_units));
        check_encoding(tokenizer, &bpe, text, n);
    }
    free(bpe.pairs);
    dsi_tokenizer_free(tokenizer);
    print_message("%s: %d texts of up to %u characters\n", path, n_texts, max_units);
}

static void test_against_plain(void **state) {
    (void)state;
    check_real(DEEPSEEK, 12000, 30, 0);
    check_real(DEEPSEEK, 2000, 300, 0);
    check_real(TINY_GOV, 8000, 30, 0);
    check_real(TINY_GOV, 2000, 300, 0);
}

/* Long pieces cross the borders of a small window many times. */
static void test_windows(void **state) {
    (void)state;
    check_real(DEEPSEEK, 60, 1300, 700);
    check_real(TINY_GOV, 60, 1300, 300);
}

/* A random vocabulary over a, b, c: any two texts may merge, also to one that exists already, so
 * there are texts with several merges and texts that BPE never makes. `shuffled`: the merges come
 * in any order, so many use what only a later one makes. */
static void random_vocabulary(char *vocab, char *merges, uint32_t n_merges, bool shuffled) {
    char texts[64][16] = {"a", "b", "c"}, merge[64][40];
    bool used[64][64] = {{false}};
    uint32_t n = 3, n_listed = 0;
    *vocab = *merges = '\0';
    for (uint32_t i = 0; i < n_merges; i++) {
        uint32_t left = random_below(n), right = random_below(n), k = 0;
        char joined[32];
        snprintf(joined, sizeof joined, "%s%s", texts[left], texts[right]);
        if (used[left][right] || strlen(joined) > 12) continue;
        used[left][right] = true;
        while (k < n && strcmp(texts[k], joined) != 0) k++;
        if (k == n) {
            memcpy(texts[n++], joined, strlen(joined) + 1);
            sprintf(vocab + strlen(vocab), "%s\"%s\":%u", *vocab ? "," : "", joined, 256 + k);
        }
        uint32_t at = shuffled ? random_below(n_listed + 1) : n_listed;
        memmove(merge[at + 1], merge[at], (n_listed - at) * sizeof *merge);
        snprintf(merge[at], sizeof *merge, "\"%s %s\"", texts[left], texts[right]);
        n_listed++;
    }
    for (uint32_t i = 0; i < n_listed; i++)
        sprintf(merges + strlen(merges), "%s%s", i > 0 ? "," : "", merge[i]);
}

static void test_random_vocabularies(void **state) {
    (void)state;
    static char vocab[8192], merges[8192];
    char path[32], text[MAX_TEXT];
    int n_checked = 0;
    temporary_path(path);
    for (int i = 0; i < 2000; i++) {
        dsi_tokenizer *tokenizer;
        plain_bpe bpe;
        random_vocabulary(vocab, merges, 2 + random_below(40), i % 4 >= 2);
        if (!*vocab) continue;
        write_tokenizer(path, &(parts){.vocab = vocab, .merges = merges});
        assert_int_equal(dsi_tokenizer_open(path, &tokenizer, NULL), DSI_OK);
        tokenizer->window_bytes = 260;
        plain_open(path, &bpe);
        for (int k = 0; k < 40; k++)
            check_encoding(tokenizer, &bpe, text,
                           random_text(text, i % 2 ? "a|b" : "a|b|c", 1 + random_below(60)));
        check_encoding(tokenizer, &bpe, text, random_text(text, "a|b|c", 600 + random_below(900)));
        free(bpe.pairs);
        dsi_tokenizer_free(tokenizer);
        n_checked++;
    }
    unlink(path);
    print_message("%d random vocabularies agree, half of them with merges in any order\n",
                  n_checked);
    assert_true(n_checked > 1900);
}

/* Merges in which the later letters go first: how "A" merges in "ABC...z" depends on what stands 51
 * letters on, much further than the encoder looks at first. */
static void test_far_dependence(void **state) {
    (void)state;
    static const char chain[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
    enum { N_CHAIN = sizeof chain - 1 };
    static char vocab[8192], merges[8192];
    *vocab = *merges = '\0';
    for (int i = N_CHAIN - 2; i >= 0; i--) {
        sprintf(vocab + strlen(vocab), "%s\"%.2s\":%d", *vocab ? "," : "", chain + i, 256 + i);
        sprintf(merges + strlen(merges), "%s\"%c %c\"", *merges ? "," : "", chain[i], chain[i + 1]);
    }
    char path[32], text[MAX_TEXT];
    dsi_tokenizer *tokenizer;
    plain_bpe bpe;
    temporary_path(path);
    write_tokenizer(path, &(parts){.vocab = vocab, .merges = merges});
    assert_int_equal(dsi_tokenizer_open(path, &tokenizer, NULL), DSI_OK);
    tokenizer->window_bytes = 260;
    plain_open(path, &bpe);
    for (int i = 0; i < 400; i++) {
        size_t n = 0;
        while (n < 1000) { /* stretches of the chain */
            size_t begin = random_below(N_CHAIN), length = 1 + random_below(N_CHAIN);
            if (length > N_CHAIN - begin) length = N_CHAIN - begin;
            memcpy(text + n, chain + begin, length);
            n += length;
        }
        check_encoding(tokenizer, &bpe, text, n);
    }
    free(bpe.pairs);
    dsi_tokenizer_free(tokenizer);
    unlink(path);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_against_plain),
        cmocka_unit_test(test_windows),
        cmocka_unit_test(test_random_vocabularies),
        cmocka_unit_test(test_far_dependence),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
