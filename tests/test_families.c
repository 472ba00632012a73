/* test_families.c: the tokenizers of every family against the reference's ids, with small synthetic
 * vocabularies; tools/make_tokenizers.py made the data. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "../lib/base/json.h"
#include "../lib/base/sys.h"
#include "../lib/text/bpe.h"
#include "token_lists.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char *const names[] = {"deepseek-v2", "deepseek-llm",    "qwen2",
                                    "llama-3",     "r1-distill-qwen", "r1-distill-llama"};
enum { N_FAMILIES = sizeof names / sizeof *names, N_SHARED_TEXTS = 444 };
static dsi_tokenizer *tokenizers[N_FAMILIES];
static char *shared_lines; /* tests/data/tokenizer/vectors.jsonl, for its texts */

static char *read_data(const char *folder, const char *name) {
    char path[128], *text;
    uint64_t n_bytes;
    snprintf(path, sizeof path, "tests/data/tokenizer/%s/%s", folder, name);
    assert_int_equal(dsi_sys_read_file(path, 1 << 24, &text, &n_bytes, NULL), DSI_OK);
    return text;
}

static int open_tokenizers(void **state) {
    (void)state;
    for (int i = 0; i < N_FAMILIES; i++) {
        char path[128];
        dsi_error error = {0};
        snprintf(path, sizeof path, "tests/data/tokenizer/%s/tokenizer.json", names[i]);
        if (dsi_tokenizer_open(path, &tokenizers[i], &error) != DSI_OK) {
            printf("%s\n", error.text);
            return -1;
        }
    }
    shared_lines = read_data(".", "vectors.jsonl");
    return 0;
}

static int close_tokenizers(void **state) {
    (void)state;
    for (int i = 0; i < N_FAMILIES; i++) dsi_tokenizer_free(tokenizers[i]);
    dsi_sys_free(shared_lines);
    return 0;
}

static void assert_text(const char *name, const text_list *got, const char *want, size_t n_bytes) {
    if (got->n == n_bytes && memcmp(got->text, want, n_bytes) == 0) return;
    printf("%s, want: %.*s\ngot:  %.*s\n", name, (int)n_bytes, want, (int)got->n, got->text);
    fail();
}

/* ---- Vectors ------------------------------------------------------------------------------- */

/* The text of a line: its own, or that of the shared line. To be freed. */
static char *text_of(const dsi_json *json, const char *shared, size_t n_shared, uint64_t *n) {
    uint32_t node = dsi_json_get(json, 0, "text");
    if (node != DSI_JSON_NONE) return dsi_json_string(json, node, n);
    dsi_json other;
    assert_int_equal(dsi_json_parse(shared, n_shared, 1 << 16, &other, NULL), DSI_OK);
    char *text = dsi_json_string(&other, dsi_json_get(&other, 0, "text"), n);
    dsi_json_free(&other);
    return text;
}

static void check_vector(int family, const char *line, size_t n_line, const char *shared,
                         size_t n_shared) {
    static id_list ids;
    static text_list decoded;
    dsi_json json;
    uint64_t n_text, n_want, id;
    assert_int_equal(dsi_json_parse(line, n_line, 1 << 16, &json, NULL), DSI_OK);
    char *text = text_of(&json, shared, n_shared, &n_text);
    uint32_t want = dsi_json_get(&json, 0, "ids");
    encode(tokenizers[family], text, n_text, true, &ids);
    bool equal = ids.n == json.nodes[want].n_items;
    for (size_t i = 0; equal && i < ids.n; i++) {
        assert_true(dsi_json_u64(&json, want + 1 + (uint32_t)i, &id));
        equal = (uint64_t)ids.id[i] == id;
    }
    if (!equal) fail_msg("%s: other ids for: %s", names[family], text);
    decode(tokenizers[family], &ids, &decoded);
    uint32_t other = dsi_json_get(&json, 0, "decoded");
    if (other == DSI_JSON_NONE) {
        assert_text(names[family], &decoded, text, n_text);
    } else {
        char *text_decoded = dsi_json_string(&json, other, &n_want);
        assert_text(names[family], &decoded, text_decoded, n_want);
        dsi_sys_free(text_decoded);
    }
    dsi_sys_free(text);
    dsi_json_free(&json);
}

static void test_vectors(void **state) {
    (void)state;
    for (int family = 0; family < N_FAMILIES; family++) {
        char *lines = read_data(names[family], "vectors.jsonl");
        const char *shared = shared_lines;
        int n = 0, n_shared = 0;
        for (const char *line = lines; *line; n++) {
            size_t length = strcspn(line, "\n"), shared_length = strcspn(shared, "\n");
            check_vector(family, line, length, shared, shared_length);
            line += length + (line[length] == '\n');
            n_shared += shared_length > 0;
            shared += shared_length + (shared[shared_length] == '\n');
        }
        dsi_sys_free(lines);
        assert_int_equal(n_shared, N_SHARED_TEXTS);
        assert_true(n >= N_SHARED_TEXTS + 30);
        print_message("%s: %d texts have the reference's ids\n", names[family], n);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_vectors),
    };
    return cmocka_run_group_tests(tests, open_tokenizers, close_tokenizers);
}
