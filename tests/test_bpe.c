/* test_bpe.c: the encoder against plain byte-pair encoding (merge the best pair until none is
 * left), with real and with random vocabularies; and the files that the loader must refuse. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "../lib/base/json.h"
#include "../lib/base/sys.h"
#include "../lib/text/bpe.h"

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

/* ---- Tokenizer files made here --------------------------------------------------------------- */

#define REGEX_1 "{\"type\":\"Split\",\"pattern\":{\"Regex\":\"\\\\p{N}{1,3}\"}," ISOLATED
#define REGEX_2 "{\"type\":\"Split\",\"pattern\":{\"Regex\":\"[一-龥぀-ゟ゠-ヿ]+\"}," ISOLATED
#define REGEX_3                                                                                    \
    "{\"type\":\"Split\",\"pattern\":{\"Regex\":\"[!\\\"#$%&'()*+,\\\\-./"                         \
    ":;<=>?@\\\\[\\\\\\\\\\\\]"                                                                    \
    "^_`{|}~][A-Za-z]+|[^\\r\\n\\\\p{L}\\\\p{P}\\\\p{S}]?[\\\\p{L}\\\\p{M}]+| "                    \
    "?[\\\\p{P}\\\\p{S}]+"                                                                         \
    "[\\r\\n]*|\\\\s*[\\r\\n]+|\\\\s+(?!\\\\S)|\\\\s+\"}," ISOLATED
#define ISOLATED "\"behavior\":\"Isolated\",\"invert\":false}"
#define SEQUENCE(steps) "{\"type\":\"Sequence\",\"pretokenizers\":[" steps "]}"
#define BYTE_LEVEL "{\"type\":\"ByteLevel\",\"add_prefix_space\":false,\"use_regex\":false}"
#define DECODER "{\"type\":\"ByteLevel\"}"

typedef struct parts { /* of a tokenizer.json; NULL: as DeepSeek's */
    const char *normalizer, *pre_tokenizer, *post_processor, *decoder, *added, *vocab, *merges,
        *options;
    const char *model; /* the type */
    int skip_byte;     /* > 0: this byte gets no token */
} parts;

/* The 256 bytes have ids 0 to 255. */
static void write_tokenizer(const char *path, const parts *p) {
    FILE *file = fopen(path, "wb");
    assert_non_null(file);
    fprintf(file,
            "{\"added_tokens\":[%s],\"normalizer\":%s,\"pre_tokenizer\":%s,"
            "\"post_processor\":%s,\"decoder\":%s,\"model\":{\"type\":\"%s\"%s,\"merges\":[%s],"
            "\"vocab\":{",
            p->added ? p->added : "", p->normalizer ? p->normalizer : "null",
            p->pre_tokenizer ? p->pre_tokenizer
                             : SEQUENCE(REGEX_1 "," REGEX_2 "," REGEX_3 "," BYTE_LEVEL),
            p->post_processor ? p->post_processor : "null", p->decoder ? p->decoder : DECODER,
            p->model ? p->model : "BPE", p->options ? p->options : "", p->merges ? p->merges : "");
    int next = 0x100;
    for (int i = 0; i < 256; i++) {
        bool printable = (i >= 33 && i <= 126) || (i >= 161 && i != 173);
        int c = printable ? i : next++;
        if (i > 0 && i == p->skip_byte) continue;
        if (i > 0) fputc(',', file);
        fprintf(file, "\"\\u%04x\":%d", c, i);
    }
    fprintf(file, "%s%s}}}", p->vocab ? "," : "", p->vocab ? p->vocab : "");
    assert_int_equal(fclose(file), 0);
}

static void temporary_path(char path[32]) {
    strcpy(path, "/tmp/dsi_test_bpe_XXXXXX");
    int fd = mkstemp(path);
    assert_true(fd >= 0);
    close(fd);
}

/* A random vocabulary over a, b, c: any two texts may merge, also to one that exists already, so
 * there are texts with several merges and texts that BPE never makes. */
static void random_vocabulary(char *vocab, char *merges, uint32_t n_merges) {
    char texts[64][16] = {"a", "b", "c"};
    bool used[64][64] = {{false}};
    uint32_t n = 3;
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
        sprintf(merges + strlen(merges), "%s\"%s %s\"", *merges ? "," : "", texts[left],
                texts[right]);
    }
}

static void test_random_vocabularies(void **state) {
    (void)state;
    static char vocab[8192], merges[8192];
    char path[32], text[MAX_TEXT];
    int n_refused = 0, n_checked = 0;
    temporary_path(path);
    for (int i = 0; i < 1500; i++) {
        dsi_tokenizer *tokenizer;
        plain_bpe bpe;
        random_vocabulary(vocab, merges, 2 + random_below(40));
        if (!*vocab) continue;
        write_tokenizer(path, &(parts){.vocab = vocab, .merges = merges});
        dsi_status status = dsi_tokenizer_open(path, &tokenizer, NULL);
        if (status == DSI_E_UNSUPPORTED) { /* a merge of a text that only a later merge makes */
            n_refused++;
            continue;
        }
        assert_int_equal(status, DSI_OK);
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
    print_message("%d random vocabularies agree, %d refused for their order\n", n_checked,
                  n_refused);
    assert_true(n_checked > 1000);
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

/* ---- Refusals ------------------------------------------------------------------------------ */

#define ADDED(id, text, more)                                                                      \
    "{\"id\":" id ",\"content\":\"" text "\",\"normalized\":false" more "}"
typedef struct refusal {
    dsi_status status;
    const char *message; /* must be part of it */
    parts file;
} refusal;
static const refusal other_rules[] = {
    {DSI_E_UNSUPPORTED, "normalizer is NFC", {.normalizer = "{\"type\":\"NFC\"}"}},
    {DSI_E_UNSUPPORTED,
     "normalizer is Sequence",
     {.normalizer = "{\"type\":\"Sequence\",\"normalizers\":[{\"type\":\"NFC\"}]}"}},
    {DSI_E_UNSUPPORTED,
     "pre_tokenizer is Whitespace",
     {.pre_tokenizer = "{\"type\":\"Whitespace\"}"}},
    {DSI_E_UNSUPPORTED, "pre_tokenizer is null", {.pre_tokenizer = "null"}},
    {DSI_E_UNSUPPORTED,
     "pre_tokenizer has 3 steps",
     {.pre_tokenizer = SEQUENCE(REGEX_1 "," REGEX_2 "," BYTE_LEVEL)}},
    {DSI_E_UNSUPPORTED,
     "the pattern of a pre_tokenizer step is",
     {.pre_tokenizer = SEQUENCE(REGEX_2 "," REGEX_1 "," REGEX_3 "," BYTE_LEVEL)}},
    {DSI_E_UNSUPPORTED,
     "use_regex is true",
     {.pre_tokenizer = SEQUENCE(REGEX_1 "," REGEX_2 "," REGEX_3 ",{\"type\":\"ByteLevel\","
                                        "\"add_prefix_space\":false,\"use_regex\":true}")}},
    {DSI_E_UNSUPPORTED,
     "add_prefix_space is missing",
     {.pre_tokenizer = SEQUENCE(REGEX_1 "," REGEX_2 "," REGEX_3 ",{\"type\":\"ByteLevel\"}")}},
    {DSI_E_UNSUPPORTED,
     "post_processor is TemplateProcessing",
     {.post_processor = "{\"type\":\"TemplateProcessing\"}"}},
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
    {DSI_E_UNSUPPORTED, "ignore_merges is true", {.options = ",\"ignore_merges\":true"}},
    {DSI_E_UNSUPPORTED, "an unknown option of model is shuffle", {.options = ",\"shuffle\":1"}},
};
static const refusal bad_contents[] = {
    {DSI_E_FORMAT, "no token for byte 0x41", {.skip_byte = 'A'}},
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
    {DSI_E_UNSUPPORTED,
     "merge 0 uses token 256, which only merge 1 makes",
     {.merges = "\"ab c\",\"a b\"", .vocab = "\"ab\":256,\"abc\":257"}},
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
    check_refused(bad_contents, sizeof bad_contents / sizeof *bad_contents);
}

/* What the refusals start from is accepted; a file that is not there is an IO error. */
static void test_accepted(void **state) {
    (void)state;
    char path[32];
    temporary_path(path);
    dsi_tokenizer *tokenizer;
    write_tokenizer(path, &(parts){.added = ADDED("300", "<x>", ""), .vocab = "\"<x>\":300"});
    assert_int_equal(dsi_tokenizer_open(path, &tokenizer, NULL), DSI_OK);
    assert_int_equal(dsi_tokenizer_n_tokens(tokenizer), 301);
    dsi_tokenizer_free(tokenizer);
    unlink(path);
    assert_int_equal(dsi_tokenizer_open(path, &tokenizer, NULL), DSI_E_IO);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_against_plain),
        cmocka_unit_test(test_windows),
        cmocka_unit_test(test_random_vocabularies),
        cmocka_unit_test(test_far_dependence),
        cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_accepted),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
