/* test_gguf.c: GGUF files: what is refused, each with the bug of another reader that it is the
 * input of; keys; the tokenizer inside; names and splits. */
#include "model_files.h"

#include "../lib/base/json.h"
#include "../lib/text/text.h"
#include "gguf_files.h"

/* ---- Reading -------------------------------------------------------------------------------- */

/* A copy that ends where its memory ends, so that a step too far is seen by the sanitizers. */
static dsi_status read_copy(const gguf_file *f, dsi_gguf *g, dsi_error *error, uint8_t **copy) {
    *copy = malloc(f->n ? f->n : 1);
    assert_non_null(*copy);
    if (f->n) memcpy(*copy, f->data, f->n);
    dsi_map map = {*copy, f->n};
    return dsi_gguf_read("x.gguf", &map, g, error);
}

static void expect_refused(gguf_file *f, const char *part) {
    dsi_gguf g;
    dsi_error error = {0};
    uint8_t *copy;
    dsi_status status = read_copy(f, &g, &error, &copy);
    if (status == DSI_OK) fail_msg("was read, expected: %s", part);
    if (!strstr(error.text, part) || !strstr(error.text, "x.gguf"))
        fail_msg("message: %s\nexpected in it: %s", error.text, part);
    assert_null(g.values);
    assert_null(g.tensors);
    free(copy);
    free_gguf(f);
}

/* Two tensors of 32 columns, F32 and Q8_0, in a file that is in order. */
static gguf_file good_file(void) {
    gguf_file f = begin_gguf(2, 1);
    put_key_text(&f, "general.architecture", "llama");
    put_tensor(&f, "a.weight", 32, 3, 0, 0);
    put_tensor(&f, "b.weight", 32, 5, 8, 384);
    put_data(&f, 384 + 5 * 34);
    return f;
}

static void test_good_file(void **state) {
    (void)state;
    gguf_file f = good_file();
    dsi_gguf g;
    dsi_error error = {0};
    uint8_t *copy;
    assert_int_equal(read_copy(&f, &g, &error, &copy), DSI_OK);
    assert_int_equal(g.n_tensors, 2);
    assert_int_equal(g.tensors[1].dtype, DSI_DTYPE_Q8_0);
    assert_int_equal(g.tensors[1].n_bytes, 5 * 34);
    assert_int_equal(g.tensors[1].file_offset % 32, 0);
    assert_true(dsi_gguf_text_is(dsi_gguf_find(&g, "general.architecture"), "llama"));
    dsi_gguf_free(&g);
    free(copy);
    /* every shorter file is refused, and read no further than it goes */
    for (size_t n = 0; n < f.n; n++) {
        gguf_file cut = {f.data, n, n};
        assert_int_not_equal(read_copy(&cut, &g, &error, &copy), DSI_OK);
        free(copy);
    }
    free_gguf(&f);
}

/* ---- Keys of every type --------------------------------------------------------------------- */

static void test_values(void **state) {
    (void)state;
    gguf_file f = begin_gguf(0, 9);
    put_key(&f, "u8", DSI_GGUF_U8), put_number(&f, 200, 1);
    put_key(&f, "i8", DSI_GGUF_I8), put_number(&f, 0xff, 1);
    put_key(&f, "i32", DSI_GGUF_I32), put_number(&f, 70000, 4);
    put_key(&f, "u64", DSI_GGUF_U64), put_number(&f, UINT64_C(1) << 40, 8);
    put_key(&f, "f32", DSI_GGUF_F32), put_number(&f, 0x3fc00000, 4);
    put_key(&f, "f64", DSI_GGUF_F64), put_number(&f, UINT64_C(0x4000000000000000), 8);
    put_key(&f, "bool", DSI_GGUF_BOOL), put_number(&f, 1, 1);
    put_key_array(&f, "texts", DSI_GGUF_STRING, 2), put_text(&f, "one", 3), put_text(&f, "", 0);
    put_key_array(&f, "numbers", DSI_GGUF_I16, 2), put_number(&f, 7, 2), put_number(&f, 0xffff, 2);
    dsi_gguf g;
    dsi_error error = {0};
    uint8_t *copy;
    if (read_copy(&f, &g, &error, &copy)) fail_msg("%s", error.text);
    uint64_t u = 0, n = 0;
    double d = 0;
    bool b = false;
    const char *text;
    assert_true(dsi_gguf_u64(dsi_gguf_find(&g, "u8"), &u) && u == 200);
    assert_false(dsi_gguf_u64(dsi_gguf_find(&g, "i8"), &u)); /* -1 */
    assert_true(dsi_gguf_u64(dsi_gguf_find(&g, "i32"), &u) && u == 70000);
    assert_true(dsi_gguf_u64(dsi_gguf_find(&g, "u64"), &u) && u == UINT64_C(1) << 40);
    assert_false(dsi_gguf_u64(dsi_gguf_find(&g, "f32"), &u));
    assert_false(dsi_gguf_u64(NULL, &u));
    assert_true(dsi_gguf_f64(dsi_gguf_find(&g, "f32"), &d) && d >= 1.5 && d <= 1.5);
    assert_true(dsi_gguf_f64(dsi_gguf_find(&g, "f64"), &d) && d >= 2 && d <= 2);
    assert_true(dsi_gguf_f64(dsi_gguf_find(&g, "u8"), &d) && d >= 200 && d <= 200);
    assert_true(dsi_gguf_bool(dsi_gguf_find(&g, "bool"), &b) && b);
    assert_null(dsi_gguf_find(&g, "boo"));
    dsi_gguf_strings strings;
    assert_true(dsi_gguf_strings_of(dsi_gguf_find(&g, "texts"), &strings));
    assert_true(dsi_gguf_strings_next(&strings, &text, &n) && n == 3 && !memcmp(text, "one", 3));
    assert_true(dsi_gguf_strings_next(&strings, &text, &n) && n == 0);
    assert_false(dsi_gguf_strings_next(&strings, &text, &n));
    assert_false(dsi_gguf_strings_of(dsi_gguf_find(&g, "numbers"), &strings));
    assert_true(dsi_gguf_element_u64(dsi_gguf_find(&g, "numbers"), 0, &u) && u == 7);
    assert_false(dsi_gguf_element_u64(dsi_gguf_find(&g, "numbers"), 1, &u));
    assert_false(dsi_gguf_element_u64(dsi_gguf_find(&g, "numbers"), 2, &u));
    dsi_gguf_free(&g);
    free(copy);
    free_gguf(&f);
}

/* ---- Hostile headers ------------------------------------------------------------------------ */

static gguf_file one_tensor(uint32_t n_dims, uint64_t a, uint64_t b, uint32_t type) {
    gguf_file f = begin_gguf(1, 0);
    put_text(&f, "t", 1);
    put_number(&f, n_dims, 4);
    for (uint32_t i = 0; i < n_dims && i < 8; i++) put_number(&f, i == 0 ? a : i == 1 ? b : 1, 8);
    put_number(&f, type, 4);
    put_number(&f, 0, 8);
    put_data(&f, 64);
    return f;
}

static void test_counts(void **state) {
    (void)state;
    /* CVE-2024-21802, -21825, -21836, -23496, -23605: counts and lengths near 2^64; Ollama's
     * CVE-2025-0315 and #17042: memory for what a count claims */
    gguf_file f = begin_gguf(0, UINT64_MAX);
    expect_refused(&f, "keys; the limit is 4096");
    f = begin_gguf(UINT64_MAX, 0);
    expect_refused(&f, "tensors; the limit is 1000000");
    f = begin_gguf(1000, 0);
    put_data(&f, 1000); /* far too little for as many */
    expect_refused(&f, "tensors; the limit is");
    f = begin_gguf(0, 1);
    put_number(&f, UINT64_MAX - 7, 8); /* the length of a key */
    put_data(&f, 64);
    expect_refused(&f, "a key claims 18446744073709551608 bytes");
    f = begin_gguf(0, 1);
    put_key(&f, "k", DSI_GGUF_STRING);
    put_number(&f, UINT64_MAX, 8);
    put_data(&f, 64);
    expect_refused(&f, "the string of a key claims");
    f = begin_gguf(0, 1);
    put_key_array(&f, "k", DSI_GGUF_U32, UINT64_C(1) << 62); /* times 4 wraps to 0 */
    put_data(&f, 64);
    expect_refused(&f, "is an array of 4611686018427387904 elements");
    /* llama.cpp #27188: an array of 2^63 strings in a file of 43 bytes, walked through for ever */
    f = begin_gguf(0, 1);
    put_key_array(&f, "k", DSI_GGUF_STRING, UINT64_C(1) << 63);
    expect_refused(&f, "is an array of 9223372036854775808 elements");
    f = begin_gguf(0, 1);
    put_key_array(&f, "k", DSI_GGUF_ARRAY, 1);
    put_data(&f, 64);
    expect_refused(&f, "arrays hold numbers or strings");
    f = begin_gguf(0, 1);
    put_key(&f, "k", 13);
    put_data(&f, 64);
    expect_refused(&f, "has the type 13");
    f = begin_gguf(0, 1);
    put_key(&f, "k", DSI_GGUF_BOOL), put_number(&f, 2, 1);
    expect_refused(&f, "is a bool of value 2");
    f = begin_gguf(0, 2);
    put_key_u32(&f, "k", 1), put_key_u32(&f, "k", 2);
    expect_refused(&f, "stands in the file twice");
    f = begin_gguf(0, 1);
    put_key(&f, "k\n", DSI_GGUF_U8), put_number(&f, 0, 1);
    expect_refused(&f, "only printable ASCII");
}

static void test_shapes(void **state) {
    (void)state;
    gguf_file f = one_tensor(0, 1, 1, 0);
    expect_refused(&f, "has 0 dimensions");
    f = one_tensor(5, 1, 1, 0); /* CVE-2024-21825: n_dims goes past the array of sizes */
    expect_refused(&f, "has 5 dimensions");
    f = one_tensor(UINT32_MAX, 1, 1, 0);
    expect_refused(&f, "has 4294967295 dimensions");
    f = one_tensor(2, 0, 1, 0);
    expect_refused(&f, "dimension 0 of tensor \"t\" is 0");
    f = one_tensor(2, 1, UINT64_MAX, 0);
    expect_refused(&f, "dimension 1 of tensor \"t\" is 18446744073709551615");
    /* CVE-2025-53630, CVE-2026-27940, CVE-2026-33298: sizes that wrap to something small */
    f = one_tensor(2, UINT64_C(1) << 33, UINT64_C(1) << 31, 0);
    expect_refused(&f, "too many bytes");
    f = one_tensor(2, UINT64_C(1) << 40, 1, 0);
    expect_refused(&f, "it is truncated");
    /* llama.cpp #25288, #25289, #20712: one element of a type of blocks; types without a size.
     * CVE-2024-42477, -42478, -42479: numbers of types outside the table */
    f = one_tensor(2, 1, 1, 8);
    expect_refused(&f, "no whole number of blocks");
    f = one_tensor(2, 32, 1, 4);
    expect_refused(&f, "type number 4");
    f = one_tensor(2, 32, 1, 36);
    expect_refused(&f, "type number 36");
    f = one_tensor(2, 32, 1, UINT32_MAX);
    expect_refused(&f, "type number 4294967295");
}

static void test_layout(void **state) {
    (void)state;
    gguf_file f = good_file();
    put_data(&f, 64);
    expect_refused(&f, "belong to nothing");
    f = begin_gguf(2, 0); /* CVE-2026-7482, CVE-2024-12055: beyond the file */
    put_tensor(&f, "a", 32, 3, 0, 0);
    put_tensor(&f, "b", 32, 5, 8, UINT64_MAX - 31);
    put_data(&f, 1024);
    expect_refused(&f, "tensors overlap or leave a hole");
    f = begin_gguf(2, 0);
    put_tensor(&f, "a", 32, 3, 0, 0);
    put_tensor(&f, "b", 32, 3, 0, 0);
    put_data(&f, 384);
    expect_refused(&f, "tensors overlap or leave a hole");
    f = begin_gguf(1, 0);
    put_tensor(&f, "a", 32, 3, 0, 32);
    put_data(&f, 416);
    expect_refused(&f, "tensors overlap or leave a hole");
    for (uint32_t i = 0; i < 4; i++) { /* CVE-2025-0317: a padding that divides by zero */
        static const uint32_t alignments[] = {0, 4, 48, 1 << 21};
        f = begin_gguf(0, 1);
        put_key_u32(&f, "general.alignment", alignments[i]);
        expect_refused(&f, "it must be a power of two");
    }
    f = begin_gguf(0, 0);
    f.data[0] = 'g';
    expect_refused(&f, "no GGUF file");
    f = begin_gguf(0, 0);
    f.data[4] = 1;
    expect_refused(&f, "version 1");
    f = begin_gguf(0, 0);
    f.data[4] = 0, f.data[7] = 3;
    expect_refused(&f, "big-endian");
}

/* Offsets may come in any order; tensors are then listed in the order of their bytes. */
static void test_order(void **state) {
    (void)state;
    gguf_file f = begin_gguf(3, 0);
    put_tensor(&f, "c", 32, 1, 0, 256);
    put_tensor(&f, "a", 32, 1, 0, 0);
    put_tensor(&f, "b", 32, 1, 0, 128);
    put_data(&f, 384);
    dsi_gguf g;
    dsi_error error = {0};
    uint8_t *copy;
    if (read_copy(&f, &g, &error, &copy)) fail_msg("%s", error.text);
    for (uint32_t i = 0; i < 3; i++) assert_int_equal(g.tensors[i].name[0], 'a' + (int)i);
    dsi_gguf_free(&g);
    free(copy);
    free_gguf(&f);
}

/* ---- The tokenizer inside ------------------------------------------------------------------- */

typedef struct ids {
    int32_t *data;
    size_t n, capacity;
} ids;
static bool collect(void *user, const int32_t *tokens, size_t n) {
    ids *to = user;
    if (to->n + n > to->capacity) {
        to->capacity = 2 * (to->n + n);
        to->data = realloc(to->data, to->capacity * sizeof *to->data);
        assert_non_null(to->data);
    }
    memcpy(to->data + to->n, tokens, n * sizeof *tokens);
    to->n += n;
    return true;
}

typedef struct token {
    char *text;
    size_t n;
    uint32_t type;
} token;

static void take(const dsi_json *json, uint32_t text, uint64_t id, uint32_t type, token *tokens,
                 uint64_t *n) {
    uint64_t length = 0;
    assert_true(id < 200000);
    dsi_sys_free(tokens[id].text);
    tokens[id].text = dsi_json_string(json, text, &length);
    assert_non_null(tokens[id].text);
    tokens[id].n = length;
    tokens[id].type = type;
    if (id >= *n) *n = id + 1;
}

/* The lists of a tokenizer.json as the keys that llama.cpp's converter writes. */
static gguf_file tokenizer_to_gguf(const char *path, const char *pre) {
    char *file = NULL;
    uint64_t n_bytes = 0, n = 0, id = 0;
    dsi_json json = {0};
    dsi_error error = {0};
    assert_int_equal(dsi_sys_read_file(path, 1 << 27, &file, &n_bytes, &error), DSI_OK);
    assert_int_equal(dsi_json_parse(file, n_bytes, 12 << 20, &json, &error), DSI_OK);
    token *tokens = calloc(200000, sizeof *tokens);
    assert_non_null(tokens);
    uint32_t model = dsi_json_get(&json, 0, "model"), vocab = dsi_json_get(&json, model, "vocab");
    uint32_t merges = dsi_json_get(&json, model, "merges"),
             added = dsi_json_get(&json, 0, "added_tokens");
    for (uint32_t key = vocab + 1; key < json.nodes[vocab].end; key = json.nodes[key + 1].end) {
        assert_true(dsi_json_u64(&json, key + 1, &id));
        take(&json, key, id, 1, tokens, &n);
    }
    for (uint32_t i = added + 1; i < json.nodes[added].end; i = json.nodes[i].end) {
        bool special = false;
        assert_true(dsi_json_u64(&json, dsi_json_get(&json, i, "id"), &id));
        assert_true(dsi_json_bool(&json, dsi_json_get(&json, i, "special"), &special));
        take(&json, dsi_json_get(&json, i, "content"), id, special ? 3 : 4, tokens, &n);
    }
    gguf_file f = begin_gguf(0, 5);
    put_key_text(&f, "tokenizer.ggml.model", "gpt2");
    put_key_text(&f, "tokenizer.ggml.pre", pre);
    put_key_array(&f, "tokenizer.ggml.tokens", DSI_GGUF_STRING, n);
    for (uint64_t i = 0; i < n; i++) {
        char unused[32];
        int length = snprintf(unused, sizeof unused, "[PAD%d]", (int)i);
        put_text(&f, tokens[i].text ? tokens[i].text : unused,
                 tokens[i].text ? tokens[i].n : (size_t)length);
    }
    put_key_array(&f, "tokenizer.ggml.token_type", DSI_GGUF_I32, n);
    for (uint64_t i = 0; i < n; i++) put_number(&f, tokens[i].text ? tokens[i].type : 5, 4);
    put_key_array(&f, "tokenizer.ggml.merges", DSI_GGUF_STRING, json.nodes[merges].n_items);
    for (uint32_t i = merges + 1; i < json.nodes[merges].end; i = json.nodes[i].end) {
        char merge[1024];
        bool pair = json.nodes[i].kind == DSI_JSON_ARRAY;
        char *left = dsi_json_string(&json, pair ? i + 1 : i, NULL);
        char *right = pair ? dsi_json_string(&json, json.nodes[i + 1].end, NULL) : NULL;
        int length =
            snprintf(merge, sizeof merge, "%s%s%s", left, pair ? " " : "", pair ? right : "");
        put_text(&f, merge, (size_t)length);
        dsi_sys_free(left);
        dsi_sys_free(right);
    }
    for (uint64_t i = 0; i < n; i++) dsi_sys_free(tokens[i].text);
    free(tokens);
    dsi_json_free(&json);
    dsi_sys_free(file);
    return f;
}

/* Every text of the vectors, with and without special tokens, by both. */
static void compare_tokenizers(const dsi_tokenizer *a, const dsi_tokenizer *b) {
    FILE *file = fopen("tests/data/tokenizer/vectors.jsonl", "rb");
    assert_non_null(file);
    static char line[1 << 20];
    size_t n_texts = 0;
    while (fgets(line, sizeof line, file)) {
        dsi_json json = {0};
        dsi_error error = {0};
        assert_int_equal(dsi_json_parse(line, strlen(line), 1 << 20, &json, &error), DSI_OK);
        uint64_t n = 0;
        char *text = dsi_json_string(&json, dsi_json_get(&json, 0, "text"), &n);
        for (int special = 0; text && special < 2; special++) {
            ids x = {0}, y = {0};
            assert_int_equal(dsi_tokenizer_encode(a, text, n, special, collect, &x, NULL), DSI_OK);
            assert_int_equal(dsi_tokenizer_encode(b, text, n, special, collect, &y, NULL), DSI_OK);
            if (x.n != y.n) fail_msg("%s: %zu and %zu tokens", text, x.n, y.n);
            if (x.n) assert_memory_equal(x.data, y.data, x.n * sizeof *x.data);
            free(x.data);
            free(y.data);
        }
        n_texts += text != NULL;
        dsi_sys_free(text);
        dsi_json_free(&json);
    }
    fclose(file);
    assert_true(n_texts > 400);
}

static void test_tokenizers(void **state) {
    (void)state;
    static const struct {
        const char *folder, *pre;
    } cases[] = {{"", "deepseek-v3"},
                 {"/deepseek-llm", "deepseek-llm"},
                 {"/deepseek-v2", "deepseek-llm"},
                 {"/r1-distill-qwen", "deepseek-r1-qwen"},
                 {"/qwen2", "qwen2"},
                 {"/r1-distill-llama", "llama-bpe"}};
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        char path[256];
        snprintf(path, sizeof path, "tests/data/tokenizer%s/tokenizer.json", cases[i].folder);
        gguf_file f = tokenizer_to_gguf(path, cases[i].pre);
        dsi_tokenizer *of_json = NULL, *of_gguf = NULL;
        dsi_error error = {0};
        dsi_gguf g;
        uint8_t *copy;
        assert_int_equal(dsi_tokenizer_open(path, &of_json, &error), DSI_OK);
        if (read_copy(&f, &g, &error, &copy)) fail_msg("%s", error.text);
        if (dsi_tokenizer_of_gguf(&g, &of_gguf, &error)) fail_msg("%s", error.text);
        assert_int_equal(dsi_tokenizer_pretok(of_json), dsi_tokenizer_pretok(of_gguf));
        compare_tokenizers(of_json, of_gguf);
        dsi_tokenizer_free(of_json);
        dsi_tokenizer_free(of_gguf);
        dsi_gguf_free(&g);
        free(copy);
        free_gguf(&f);
    }
}

static void refused_tokenizer(gguf_file *f, dsi_status expected, const char *part) {
    dsi_gguf g;
    dsi_error error = {0};
    dsi_tokenizer *tokenizer;
    uint8_t *copy;
    if (read_copy(f, &g, &error, &copy)) fail_msg("%s", error.text);
    assert_int_equal(dsi_tokenizer_of_gguf(&g, &tokenizer, &error), expected);
    assert_null(tokenizer);
    if (part && !strstr(error.text, part)) fail_msg("%s\nexpected: %s", error.text, part);
    dsi_gguf_free(&g);
    free(copy);
    free_gguf(f);
}

static void test_refused_tokenizers(void **state) {
    (void)state;
    gguf_file f = begin_gguf(0, 1);
    put_key_text(&f, "tokenizer.ggml.model", "no_vocab");
    refused_tokenizer(&f, DSI_OK, NULL);
    f = begin_gguf(0, 1);
    put_key_text(&f, "tokenizer.ggml.model", "llama");
    refused_tokenizer(&f, DSI_E_UNSUPPORTED, "tokenizer.ggml.model is \"llama\"");
    f = begin_gguf(0, 2);
    put_key_text(&f, "tokenizer.ggml.model", "gpt2");
    put_key_text(&f, "tokenizer.ggml.pre", "kimi-k2");
    refused_tokenizer(&f, DSI_E_UNSUPPORTED, "\"kimi-k2\"; supported are deepseek-v3");
    for (int i = 0; i < 2; i++) { /* llama.cpp #26690: arrays of another type than is read */
        f = begin_gguf(0, 5);
        put_key_text(&f, "tokenizer.ggml.model", "gpt2");
        put_key_text(&f, "tokenizer.ggml.pre", "qwen2");
        put_key_array(&f, "tokenizer.ggml.tokens", DSI_GGUF_STRING, 1), put_text(&f, "a", 1);
        if (i == 0) {
            put_key_array(&f, "tokenizer.ggml.merges", DSI_GGUF_U8, 1), put_number(&f, 0, 1);
            put_key_array(&f, "tokenizer.ggml.token_type", DSI_GGUF_I32, 1), put_number(&f, 1, 4);
        } else {
            put_key_array(&f, "tokenizer.ggml.merges", DSI_GGUF_STRING, 0);
            put_key_array(&f, "tokenizer.ggml.token_type", DSI_GGUF_F32, 1), put_number(&f, 1, 4);
        }
        refused_tokenizer(&f, DSI_E_FORMAT, "must be arrays");
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_good_file),  cmocka_unit_test(test_values),
        cmocka_unit_test(test_counts),     cmocka_unit_test(test_shapes),
        cmocka_unit_test(test_layout),     cmocka_unit_test(test_order),
        cmocka_unit_test(test_tokenizers), cmocka_unit_test(test_refused_tokenizers),
    };
    return cmocka_run_group_tests_name("gguf", tests, NULL, NULL);
}
