/* test_known_bugs.c: inputs that broke other readers of model files, tokenizers and saved sessions,
 * each test by the number of the bug. More of them stand where their subject is tested: `grep -rn
 * 'CVE-\|llama.cpp #' tests`. What this library does not have (RPC, an HTTP server, grammars) has
 * no test. */
#include "model_files.h"

#include "../lib/base/fault.h"
#include "../lib/text/text.h"
#include "gguf_files.h"
#include "golden.h"

static const char LLAMA[] = "tests/data/gguf/llama-f32.gguf";
static char folder[64], path[128];

static void expect_refused(const char *part) {
    dsi_model *model = NULL;
    if (dsi_model_open(path, NULL, &model) == DSI_OK || !strstr(dsi_last_error(NULL), part))
        fail_msg("\"%s\"; expected \"%s\"", dsi_last_error(NULL), part);
    assert_null(model);
}

static void write_gguf(const gguf_file *f) { write_file(folder, "x.gguf", f->data, f->n); }

/* ---- GGUF ------------------------------------------------------------------------------------ */

/* An early failure must not free what was not made yet, and a failed allocation is an error. */
static void test_CVE_2024_32878_and_41130_half_made(void **state) {
    (void)state;
    static const dsi_call kinds[] = {DSI_CALL_CALLOC, DSI_CALL_REALLOC, DSI_CALL_MMAP};
    bytes whole = read_file("tests/data/gguf", "llama-f32.gguf");
    for (size_t n = 0; n < 2000; n += 37) { /* cut in the middle of the header */
        dsi_map map = {(const uint8_t *)whole.data, n};
        dsi_gguf g;
        memset(&g, 0xAB, sizeof g);
        dsi_error error;
        assert_int_not_equal(dsi_gguf_read("x.gguf", &map, &g, &error), DSI_OK);
        dsi_gguf_free(&g);
        dsi_gguf_free(&g);
    }
    free(whole.data);
    for (int kind = 0; kind < 3; kind++) {
        uint64_t nth = 0, struck = 1;
        while (struck) {
            dsi_model *model = NULL;
            dsi_fault_arm(&(dsi_fault){.kind = kinds[kind], .nth = ++nth});
            dsi_status status = dsi_model_open(LLAMA, NULL, &model);
            dsi_fault_disarm();
            struck = dsi_fault_struck();
            /* a smaller block that is refused may be done without */
            if (status == DSI_OK)
                dsi_model_close(model);
            else if (!struck || !dsi_last_error(NULL)[0])
                fail_msg("%s %d: status %d", dsi_call_name(kinds[kind]), (int)nth, status);
        }
        assert_true(nth > 1);
    }
}

/* Keys that are not there, or of another type: a NULL (CVE-2025-0312), a division by a number of
 * blocks that is 0 or no number (CVE-2024-8063). */
static void test_CVE_2025_0312_and_2024_8063_keys(void **state) {
    (void)state;
    static const char *const parts[] = {"general.architecture", "general.architecture",
                                        "\"llama.block_count\" is no whole number",
                                        "\"llama.block_count\" is no whole number"};
    for (int i = 0; i < 4; i++) {
        gguf_file f = begin_gguf(1, (uint64_t)(i < 2 ? i : 2));
        if (i == 1) put_key_u32(&f, "general.architecture", 7);
        if (i > 1) put_key_text(&f, "general.architecture", "llama");
        if (i == 2) put_key_text(&f, "llama.block_count", "many");
        if (i == 3) put_key(&f, "llama.block_count", DSI_GGUF_F32), put_number(&f, 0x7fc00000, 4);
        put_tensor(&f, "token_embd.weight", 32, 3, 0, 0);
        put_data(&f, 384);
        write_gguf(&f);
        free_gguf(&f);
        expect_refused(parts[i]);
    }
    static const char key[] = "llama.block_count";
    bytes whole = read_file("tests/data/gguf", "llama-f32.gguf");
    char *value = memmem(whole.data, whole.n, key, sizeof key - 1);
    assert_non_null(value);
    for (int i = 0; i < 2; i++) { /* behind the name the type, then the number */
        memset(value + sizeof key - 1 + 4, i ? 0xFF : 0, 4);
        write_file(folder, "x.gguf", whole.data, whole.n);
        expect_refused(i ? "4294967295" : "num_hidden_layers");
    }
    free(whole.data);
}

/* A file that ends before its tensors do, which a mapping only shows when it is touched. */
static void test_6774_truncated_files(void **state) {
    (void)state;
    bytes whole = read_file("tests/data/gguf", "llama-f32.gguf");
    for (size_t i = 1; i <= 24; i++) {
        write_file(folder, "x.gguf", whole.data, whole.n - whole.n * i / 25 - 1);
        dsi_model *model = NULL;
        assert_int_equal(dsi_model_open(path, NULL, &model), DSI_E_FORMAT);
        assert_non_null(strstr(dsi_last_error(NULL), "x.gguf"));
    }
    free(whole.data);
    bytes tensors = read_file("tests/data/golden/llama", "model.safetensors");
    bytes config = read_file("tests/data/golden/llama", "config.json");
    char sub[96];
    snprintf(sub, sizeof sub, "%s/cut", folder);
    assert_int_equal(mkdir(sub, 0700), 0);
    write_file(sub, "config.json", config.data, config.n);
    for (size_t i = 1; i <= 24; i++) {
        write_file(sub, "model.safetensors", tensors.data, tensors.n - tensors.n * i / 25 - 1);
        dsi_model *model = NULL;
        assert_int_equal(dsi_model_open(sub, NULL, &model), DSI_E_FORMAT);
        assert_non_null(strstr(dsi_last_error(NULL), "model.safetensors"));
    }
    free(tensors.data), free(config.data);
}

/* A chat template is data: one that would run commands in a template engine is none that is known,
 * and does nothing. */
static void test_CVE_2024_34359_templates(void **state) {
    (void)state;
    enum { KEYS_AT = 16, FIRST_KEY = 24 };
    bytes whole = read_file("tests/data/gguf", "llama-f32.gguf");
    char text[512], made[160];
    snprintf(made, sizeof made, "%s/made", folder);
    int n = snprintf(text, sizeof text,
                     "{%% for x in ().__class__.__base__.__subclasses__() %%}{{ x.__init__."
                     "__globals__['os'].popen('touch %s').read() }}{%% endfor %%}",
                     made);
    gguf_file f = {0};
    put_bytes(&f, whole.data, FIRST_KEY);
    f.data[KEYS_AT]++; /* one key more, of a multiple of 32 bytes, so that tensors stay aligned */
    size_t header = 8 + strlen("tokenizer.chat_template") + 4 + 8;
    while ((header + (size_t)n) % 32) text[n++] = ' ';
    text[n] = 0;
    put_key_text(&f, "tokenizer.chat_template", text);
    put_bytes(&f, whole.data + FIRST_KEY, whole.n - FIRST_KEY);
    write_gguf(&f);
    free_gguf(&f), free(whole.data);
    dsi_model *model = NULL;
    if (dsi_model_open(path, NULL, &model)) fail_msg("%s", dsi_last_error(NULL));
    dsi_model_info info = {.struct_size = sizeof info};
    assert_int_equal(dsi_model_get_info(model, &info), DSI_OK);
    assert_string_equal(info.chat_template, "");
    const dsi_message m = {sizeof m, DSI_ROLE_USER, "hello", 5};
    int32_t tokens[64];
    size_t n_tokens;
    assert_int_not_equal(dsi_chat_tokens(model, &m, 1, DSI_THINK_AUTO, tokens, 64, &n_tokens),
                         DSI_OK);
    dsi_model_close(model);
    assert_int_not_equal(access(made, F_OK), 0);
}

/* ---- Tokenizers ------------------------------------------------------------------------------ */

/* A vocabulary of the 256 bytes in a GGUF, and one more token. */
static dsi_status open_vocabulary(const char *extra, size_t n_extra, uint32_t type,
                                  dsi_tokenizer **tokenizer, dsi_error *error) {
    gguf_file f = begin_gguf(0, 5);
    put_key_text(&f, "tokenizer.ggml.model", "gpt2");
    put_key_text(&f, "tokenizer.ggml.pre", "qwen2");
    put_key_array(&f, "tokenizer.ggml.tokens", DSI_GGUF_STRING, 257);
    uint32_t next = 0x100;
    for (uint32_t i = 0; i < 256; i++) {
        bool printable = (i >= 33 && i <= 126) || (i >= 161 && i != 173);
        uint32_t c = printable ? i : next++;
        char utf8[2] = {(char)(c < 0x80 ? c : 0xC0 | c >> 6), (char)(0x80 | (c & 63))};
        put_text(&f, utf8, c < 0x80 ? 1 : 2);
    }
    put_text(&f, extra, n_extra);
    put_key_array(&f, "tokenizer.ggml.token_type", DSI_GGUF_I32, 257);
    for (uint32_t i = 0; i < 256; i++) put_number(&f, 1, 4);
    put_number(&f, type, 4);
    put_key_array(&f, "tokenizer.ggml.merges", DSI_GGUF_STRING, 0);
    dsi_gguf g;
    dsi_map map = {f.data, f.n};
    dsi_status status = dsi_gguf_read("x.gguf", &map, &g, error);
    if (status == DSI_OK) status = dsi_tokenizer_of_gguf(&g, tokenizer, error);
    dsi_gguf_free(&g);
    free_gguf(&f);
    return status;
}

static bool count(void *user, const int32_t *tokens, size_t n) {
    for (size_t i = 0; i < n; i++) assert_in_range(tokens[i], 0, 256);
    *(size_t *)user += n;
    return true;
}

/* A token longer than a buffer or an int: the length is compared as it is. */
static void test_CVE_2025_49847_long_tokens(void **state) {
    (void)state;
    static char text[5000];
    dsi_tokenizer *t = NULL;
    dsi_error error = {0};
    memset(text, 'a', sizeof text);
    assert_int_equal(open_vocabulary(text, 1024, 1, &t, &error), DSI_OK);
    dsi_tokenizer_free(t);
    assert_int_equal(open_vocabulary(text, 1025, 1, &t, &error), DSI_E_FORMAT);
    assert_non_null(strstr(error.text, "1025 bytes"));
    assert_int_equal(open_vocabulary(text, sizeof text, 3, &t, &error), DSI_E_FORMAT);
    static const uint64_t lengths[] = {0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, UINT64_MAX};
    for (size_t i = 0; i < 4; i++) {
        gguf_file f = begin_gguf(0, 1);
        put_key_array(&f, "tokenizer.ggml.tokens", DSI_GGUF_STRING, 1);
        put_number(&f, lengths[i], 8);
        put_data(&f, 64);
        dsi_gguf g;
        dsi_map map = {f.data, f.n};
        assert_int_equal(dsi_gguf_read("x.gguf", &map, &g, &error), DSI_E_FORMAT);
        free_gguf(&f);
    }
}

/* Names of bytes whose number is read as an index elsewhere: "<0x-1>". Here they are texts. */
static void test_25969_names_of_bytes(void **state) {
    (void)state;
    static const char *const names[] = {"<0x-1>", "<0xZZ>", "<0x1FF>", "<0x", "<0x00000041>"};
    for (size_t i = 0; i < 5; i++)
        for (uint32_t type = 1; type <= 6; type++) {
            dsi_tokenizer *t = NULL;
            dsi_error error = {0};
            size_t n = 0;
            if (open_vocabulary(names[i], strlen(names[i]), type, &t, &error))
                fail_msg("%s", error.text);
            assert_int_equal(dsi_tokenizer_encode(t, "\x01\xFFz<0x-1>", 9, true, count, &n, &error),
                             DSI_OK);
            assert_true(n > 0);
            dsi_tokenizer_free(t);
        }
}

/* The number of tokens does not fit the caller's buffer: it is returned, and nothing is written
 * behind the end. */
static void test_CVE_2025_52566_token_counts(void **state) {
    (void)state;
    dsi_model *model = NULL;
    assert_int_equal(dsi_model_open("examples/models/tiny-gov", NULL, &model), DSI_OK);
    static const char text[] = "您好，福田区人民路昨晚路灯不亮，走路看不清。";
    int32_t tokens[64];
    size_t n = 0, got = 0;
    assert_int_equal(dsi_tokenize(model, text, sizeof text - 1, 0, NULL, 0, &n), DSI_OK);
    assert_in_range(n, 4, 60);
    for (size_t room = 1; room <= n; room++) {
        for (size_t i = 0; i < 64; i++) tokens[i] = -7;
        dsi_status status = dsi_tokenize(model, text, sizeof text - 1, 0, tokens, room, &got);
        assert_int_equal(status, room < n ? DSI_E_BUFFER : DSI_OK);
        assert_int_equal(got, n);
        for (size_t i = room; i < 64; i++) assert_int_equal(tokens[i], -7);
    }
    dsi_model_close(model);
}

/* ---- Saved sessions -------------------------------------------------------------------------- */

/* An empty session is saved and restored as one (#14434: a crash); a restore says what it holds
 * (#26676: it did nothing, without a word). Damaged files: test_snapshot (#27068). */
static void test_14434_and_26676_empty_and_counted(void **state) {
    (void)state;
    dsi_model *model = NULL;
    dsi_engine *engine = NULL;
    dsi_session *s, *back;
    int32_t tokens[70] = {0}, token;
    assert_int_equal(dsi_model_open("examples/models/tiny-gov", NULL, &model), DSI_OK);
    assert_int_equal(dsi_engine_open(model, NULL, &engine), DSI_OK);
    assert_int_equal(dsi_session_open(engine, NULL, &s), DSI_OK);
    for (size_t n = 0; n <= 70; n += 35) {
        if (n) assert_int_equal(dsi_session_append(s, tokens, 35), DSI_OK);
        while (dsi_session_n_queued(s)) /* all of them are rows then */
            assert_int_equal(dsi_engine_step(engine, &s, 1, NULL), DSI_OK);
        assert_int_equal(dsi_session_save(s, path), DSI_OK);
        assert_int_equal(dsi_session_open(engine, NULL, &back), DSI_OK);
        assert_int_equal(dsi_session_restore(back, path), DSI_OK);
        assert_int_equal(dsi_session_n_tokens(back), n);
        assert_int_equal(dsi_session_n_queued(back), 0);
        assert_int_equal(dsi_session_append(back, tokens, 3), DSI_OK);
        assert_int_equal(dsi_session_next(back, &token), DSI_OK);
        dsi_session_close(back);
    }
    dsi_session_close(s);
    dsi_engine_close(engine);
    dsi_model_close(model);
}

int main(void) {
    temp_folder(folder);
    snprintf(path, sizeof path, "%s/x.gguf", folder);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_CVE_2024_32878_and_41130_half_made),
        cmocka_unit_test(test_CVE_2025_0312_and_2024_8063_keys),
        cmocka_unit_test(test_6774_truncated_files),
        cmocka_unit_test(test_CVE_2024_34359_templates),
        cmocka_unit_test(test_CVE_2025_49847_long_tokens),
        cmocka_unit_test(test_25969_names_of_bytes),
        cmocka_unit_test(test_CVE_2025_52566_token_counts),
        cmocka_unit_test(test_14434_and_26676_empty_and_counted),
    };
    int failed = cmocka_run_group_tests_name("known bugs", tests, NULL, NULL);
    remove_folder(folder);
    return failed;
}
