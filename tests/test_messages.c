/* test_messages.c: planned mistakes of users; each answer names cause, value, limit and remedy.
 *
 * A row: the command line, its exit code, and the words that must stand on stderr. Broken folders
 * are made from tiny-gov in a temporary directory; "@" in a row stands for that directory. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "../lib/base/json.h"
#include "../lib/base/sys.h"
#include "cli_run.h"
#include <ftw.h>
#include <sys/stat.h>

#define TINY "examples/models/tiny-gov"
enum { MAX_WORDS = 5 };

typedef struct mistake {
    const char *what;
    int code;
    const char *arguments[12];
    const char *words[MAX_WORDS]; /* all of them, in any order */
    const char *input;            /* stdin */
} mistake;

static const mistake usage_mistakes[] = {
    {"no model", 2, {"run", "hi"}, {"no model", "-m DIR", "tiny-gov"}, NULL},
    {"empty model", 2, {"inspect", "-m", ""}, {"no model", "-m DIR"}, NULL},
    {"no prompt", 2, {"run", "-m", TINY}, {"no prompt", "quotes", "stdin"}, NULL},
    {"empty prompt", 2, {"run", "-m", TINY, ""}, {"empty", "0 bytes", "one character"}, NULL},
    {"empty stdin", 2, {"run", "-m", TINY, "-"}, {"empty", "0 bytes", "one character"}, ""},
    {"two prompts", 2, {"run", "-m", TINY, "a", "b"}, {"\"b\"", "second", "quotes"}, NULL},
    {"prompt in GB18030",
     2,
     {"run", "-m", TINY, "ab\xc4\xe3"},
     {"prompt", "byte 2", "0xc4", "iconv"},
     NULL},
    {"system in GB18030",
     2,
     {"run", "-m", TINY, "--system", "\xc4\xe3", "a"},
     {"system", "byte 0", "0xc4", "iconv"},
     NULL},
    {"overlong UTF-8", 2, {"tokenize", "-m", TINY, "\xc0\xaf"}, {"byte 0", "0xc0", "UTF-8"}, NULL},
    {"misspelt command", 2, {"verfiy"}, {"\"verfiy\"", "dsinfer verify"}, NULL},
    {"unknown command", 2, {"frobnicate"}, {"\"frobnicate\"", "--help"}, NULL},
    {"misspelt option", 2, {"run", "--thraeds", "2"}, {"\"--thraeds\"", "--threads"}, NULL},
    {"unknown option", 2, {"run", "--frobnicate"}, {"\"--frobnicate\"", "run --help"}, NULL},
    {"unknown letter", 2, {"run", "-z"}, {"\"-z\"", "behind --"}, NULL},
    {"option of another command",
     2,
     {"run", "--golden", "x"},
     {"--golden", "dsinfer verify"},
     NULL},
    {"option before the command", 2, {"-m", "x", "run"}, {"command comes first", "-m"}, NULL},
    {"option without value", 2, {"run", "--seed"}, {"--seed", "needs a value", "N"}, NULL},
    {"flag with value", 2, {"run", "--json=1"}, {"--json", "no value"}, NULL},
    {"threads 0",
     2,
     {"run", "--threads", "0"},
     {"--threads", "\"0\"", "1 to 1024", "default"},
     NULL},
    {"threads huge",
     2,
     {"run", "--threads", "99999999999999999999"},
     {"--threads", "99999999999999999999", "1 to 1024"},
     NULL},
    {"temperature below 0", 2, {"run", "--temperature", "-1"}, {"\"-1\"", "0 to 100"}, NULL},
    {"top-p above 1", 2, {"run", "--top-p", "90"}, {"--top-p", "\"90\"", "to 1", "default"}, NULL},
    {"size without unit", 2, {"run", "--max-memory", "lots"}, {"\"lots\"", "512M", "1.5GiB"}, NULL},
    {"size beyond 64 bits",
     2,
     {"run", "--max-memory", "99999999999T"},
     {"99999999999T", "16G"},
     NULL},
    {"unknown kernels", 2, {"run", "--kernels", "sse"}, {"\"sse\"", "ref|avx2|avx512"}, NULL},
    {"unknown type", 2, {"verify", "--activations", "f64"}, {"\"f64\"", "bf16|f32"}, NULL},
    {"escape codes in a name", 2, {"\033[31mred"}, {"\\x1b[31mred", "--help"}, NULL},
    {"chunk huge", 2, {"run", "--chunk", "16385"}, {"--chunk", "16385", "1 to 16384"}, NULL},
    {"context beyond the model",
     2,
     {"run", "-m", TINY, "--context", "4000000000", "a"},
     {"4000000000", "2048"},
     NULL},
    {"prompt beyond the context",
     2,
     {"run", "-m", TINY, "--context", "4", "一二三四五六七八九十"},
     {"4", "--context"},
     NULL},
    {"no golden file named", 2, {"verify", "-m", TINY}, {"golden", "--golden FILE"}, NULL},
    {"JSON without text", 2, {"tokenize", "-m", TINY, "--jsonl"}, {"line 1", "\"text\""}, "{}"},
    {"not JSON",
     2,
     {"tokenize", "-m", TINY, "--jsonl"},
     {"line 2", "{\"text\""},
     "{\"text\": \"a\"}\nabc\n"},
    {"text and --jsonl", 2, {"tokenize", "-m", TINY, "--jsonl", "a"}, {"--jsonl", "\"a\""}, NULL},
};

static const mistake file_mistakes[] = {
    {"folder is not there", 4, {"run", "-m", "@/nowhere", "a"}, {"@/nowhere", "hint"}, NULL},
    {"folder is a file", 4, {"inspect", "-m", "@/plain"}, {"@/plain"}, NULL},
    {"folder is empty", 4, {"inspect", "-m", "@/empty"}, {"@/empty", "config.json"}, NULL},
    {"no weights", 4, {"inspect", "-m", "@/unweighted"}, {"@/unweighted", "safetensors"}, NULL},
    {"no tokenizer",
     4,
     {"run", "-m", "tests/data/golden/v3-fp8", "a"},
     {"v3-fp8", "tokenizer.json", "copy"},
     NULL},
    {"no tokenizer to use",
     4,
     {"tokenize", "-m", "tests/data/golden/v3-fp8", "a"},
     {"v3-fp8/tokenizer.json", "-m takes"},
     NULL},
    {"unknown architecture",
     4,
     {"inspect", "-m", "@/unknown"},
     {"frobnicator", "deepseek_v3"},
     NULL},
    {"config is not JSON", 4, {"inspect", "-m", "@/scribbled"}, {"@/scribbled/config.json"}, NULL},
    {"truncated shard",
     4,
     {"run", "-m", "@/truncated", "a"},
     {"@/truncated/model.safetensors", "1000000", "hint"},
     NULL},
    {"a shard is missing",
     4,
     {"inspect", "-m", "@/sharded"},
     {"@/sharded/model-00002-of-00002.safetensors", "download", "hint"},
     NULL},
    {"too little memory",
     3,
     {"run", "-m", TINY, "--max-memory", "2M", "a"},
     {"2", "--max-memory", "--context"},
     NULL},
    {"golden is not there",
     3,
     {"verify", "-m", TINY, "--golden", "@/none.safetensors"},
     {"@/none.safetensors", "--golden"},
     NULL},
    {"golden is something else",
     4,
     {"verify", "-m", TINY, "--golden", TINY "/config.json"},
     {"config.json", "--golden"},
     NULL},
    {"golden of another model",
     4,
     {"verify", "-m", "tests/data/golden/llama", "--golden", TINY "/golden.safetensors"},
     {"golden.safetensors", "512"},
     NULL},
    {"golden without tokens",
     4,
     {"verify", "-m", TINY, "--golden", TINY "/model.safetensors"},
     {"model.safetensors", "tokens", "missing", "I32"},
     NULL},
};

static char folder[64];

static void write_file(const char *path, const void *data, size_t n_bytes) {
    char full[256];
    snprintf(full, sizeof full, "%s/%s", folder, path);
    FILE *file = fopen(full, "wb");
    assert_non_null(file);
    assert_int_equal(fwrite(data, 1, n_bytes, file), n_bytes);
    assert_int_equal(fclose(file), 0);
}

static char *read_file(const char *path, size_t *n_bytes) {
    FILE *file = fopen(path, "rb");
    assert_non_null(file);
    char *text = cli_slurp(file, n_bytes);
    fclose(file);
    return text;
}

static int make_folders(void **state) {
    (void)state;
    static const char *const names[] = {"empty",     "unweighted", "unknown",
                                        "scribbled", "truncated",  "sharded"};
    snprintf(folder, sizeof folder, "/tmp/dsinfer-messages-XXXXXX");
    if (mkdtemp(folder) == NULL) return -1;
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        char path[128];
        snprintf(path, sizeof path, "%s/%s", folder, names[i]);
        if (mkdir(path, 0700) != 0) return -1;
    }
    size_t n_config, n_weights;
    char *config = read_file(TINY "/config.json", &n_config);
    char *weights = read_file(TINY "/model.safetensors", &n_weights);
    static const char unknown[] =
        "{\"model_type\": \"frobnicator\", \"architectures\": [\"FrobnicatorForCausalLM\"]}";
    write_file("plain", "x", 1);
    write_file("unweighted/config.json", config, n_config);
    write_file("unknown/config.json", unknown, sizeof unknown - 1);
    write_file("unknown/model.safetensors", weights, n_weights);
    write_file("scribbled/config.json", "{\"model_type\": ", 15);
    write_file("scribbled/model.safetensors", weights, n_weights);
    write_file("truncated/config.json", config, n_config);
    write_file("truncated/model.safetensors", weights, 1000000);
    static const char index[] = "{\"metadata\": {}, \"weight_map\": {\"model.norm.weight\": "
                                "\"model-00002-of-00002.safetensors\"}}";
    write_file("sharded/config.json", config, n_config);
    write_file("sharded/model.safetensors.index.json", index, sizeof index - 1);
    free(config);
    free(weights);
    return 0;
}

static int remove_one(const char *path, const struct stat *facts, int kind, struct FTW *at) {
    (void)facts, (void)kind, (void)at;
    return remove(path);
}

static int remove_folders(void **state) {
    (void)state;
    return nftw(folder, remove_one, 8, FTW_DEPTH | FTW_PHYS);
}

/* "@/x" becomes the place of x in the temporary directory. */
static const char *place(const char *text, char *room, size_t n_room) {
    if (text == NULL || text[0] != '@') return text;
    snprintf(room, n_room, "%s%s", folder, text + 1);
    return room;
}

static bool one_mistake(const mistake *row, const char *locale) {
    char rooms[12][128], word_room[128];
    cli_call call = {.input = row->input, .locale = locale};
    for (size_t i = 0; i < 12; i++) {
        call.arguments[i] = place(row->arguments[i], rooms[i], sizeof rooms[i]);
    }
    cli_result result = cli_exec(&call);
    bool good = result.code == row->code && strlen(result.err) == result.n_err;
    if (row->input == NULL) good = good && result.n_out == 0;
    for (size_t i = 0; i < MAX_WORDS && row->words[i] != NULL && locale == NULL; i++) {
        const char *word = place(row->words[i], word_room, sizeof word_room);
        if (strstr(result.err, word) != NULL) continue;
        print_error("%s: the message lacks \"%s\"\n", row->what, word);
        good = false;
    }
    if (locale != NULL && strstr(result.err, "错误：") == NULL) good = false;
    if (!good) {
        print_error("%s: exit %d, expected %d\nstdout: %.200s\nstderr: %s\n", row->what,
                    result.code, row->code, result.out, result.err);
    }
    cli_result_free(&result);
    return good;
}

/* With --json in front the same failure is one object, the last line of stdout. */
static bool is_error_object(const mistake *row) {
    char rooms[12][128];
    cli_call call = {.input = row->input, .arguments = {"--json"}};
    for (size_t i = 0; i < 12; i++) {
        call.arguments[i + 1] = place(row->arguments[i], rooms[i], sizeof rooms[i]);
    }
    cli_result result = cli_exec(&call);
    if (result.n_out > 0) result.out[result.n_out - 1] = 0; /* its newline */
    const char *line = strrchr(result.out, '\n');
    line = line == NULL ? result.out : line + 1;
    dsi_json json = {0};
    uint64_t schema = 0, code = 0;
    bool good = dsi_json_parse(line, strlen(line), 1 << 16, &json, NULL) == DSI_OK;
    if (good) {
        uint32_t error = dsi_json_get(&json, 0, "error");
        char *message = dsi_json_string(&json, dsi_json_get(&json, error, "message"), NULL);
        good = dsi_json_u64(&json, dsi_json_get(&json, 0, "schema"), &schema) && schema == 1 &&
               dsi_json_u64(&json, dsi_json_get(&json, error, "code"), &code) &&
               code == (uint64_t)row->code && result.code == row->code && message != NULL &&
               *message != 0 && dsi_json_get(&json, error, "name") != DSI_JSON_NONE &&
               dsi_json_get(&json, error, "hint") != DSI_JSON_NONE;
        dsi_sys_free(message);
    }
    if (!good) {
        print_error("%s with --json: exit %d, expected %d\n%s\n%s\n", row->what, result.code,
                    row->code, line, result.err);
    }
    dsi_json_free(&json);
    cli_result_free(&result);
    return good;
}

static void all_mistakes(const mistake *rows, size_t n_rows) {
    size_t n_bad = 0;
    for (size_t i = 0; i < n_rows; i++) {
        n_bad += !one_mistake(&rows[i], NULL);
        n_bad += !one_mistake(&rows[i], "zh_CN.UTF-8");
        n_bad += !is_error_object(&rows[i]);
    }
    print_message("%zu mistakes explained in two languages and as JSON, %zu badly\n", n_rows,
                  n_bad);
    assert_int_equal(n_bad, 0);
}

static void usage_is_explained(void **state) {
    (void)state;
    all_mistakes(usage_mistakes, sizeof usage_mistakes / sizeof usage_mistakes[0]);
}

static void files_are_explained(void **state) {
    (void)state;
    all_mistakes(file_mistakes, sizeof file_mistakes / sizeof file_mistakes[0]);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(usage_is_explained),
        cmocka_unit_test(files_are_explained),
    };
    return cmocka_run_group_tests(tests, make_folders, remove_folders);
}
