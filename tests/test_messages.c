/* test_messages.c: planned mistakes of users; each answer names cause, value, limit and remedy.
 *
 * The rows are in mistakes.h: a command line, its exit code, and words that must stand on stderr.
 * Every row is run in English, in Chinese, and with --json. What is said in English is the table
 * mistakes.txt; it is compared, and rewritten by `build/tests/test_messages --write`. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "../lib/base/json.h"
#include "../lib/base/sys.h"
#include "cli_run.h"
#include "mistakes.h"
#include <ftw.h>
#include <sys/stat.h>

#define TABLE "tests/mistakes.txt"
enum {
    MAX_MISTAKES = 120,
    ROOM = 4096,
    N_USAGE = sizeof usage_mistakes / sizeof usage_mistakes[0],
    N_CHAT = sizeof chat_mistakes / sizeof chat_mistakes[0],
    N_FILES = sizeof file_mistakes / sizeof file_mistakes[0],
    N_MISTAKES = N_USAGE + N_CHAT + N_FILES
};

/* ---- The folder of broken things ------------------------------------------------------------- */

static char folder[64];

static void write_file(const char *path, const void *data, size_t n_bytes) {
    char full[256];
    snprintf(full, sizeof full, "%s/%s", folder, path);
    FILE *file = fopen(full, "wb");
    assert_non_null(file);
    assert_int_equal(fwrite(data, 1, n_bytes, file), n_bytes);
    assert_int_equal(fclose(file), 0);
}
static void write_text(const char *path, const char *text) { write_file(path, text, strlen(text)); }

static char *read_file(const char *path, size_t *n_bytes) {
    FILE *file = fopen(path, "rb");
    assert_non_null(file);
    char *text = cli_slurp(file, n_bytes);
    fclose(file);
    return text;
}

/* A safetensors file with one F32 tensor of 4 numbers, its last `cut` bytes left out. */
static void write_shard(const char *path, const char *tensor, size_t cut) {
    char file[256] = {0};
    int n = snprintf(file + 8, sizeof file - 8,
                     "{\"%s\": {\"dtype\": \"F32\", \"shape\": [4], \"data_offsets\": [0, 16]}}",
                     tensor);
    file[0] = (char)n;
    write_file(path, file, 8 + (size_t)n + 16 - cut);
}

static void change_mode(const char *path, mode_t mode) {
    char full[256];
    snprintf(full, sizeof full, "%s/%s", folder, path);
    assert_int_equal(chmod(full, mode), 0);
}

static void write_conversations(void) {
    static const char start[] = "{\"schema\": 1, \"kind\": \"dsinfer-conversation\", ";
    static const struct {
        const char *path, *rest;
    } files[] = {
        {"role.json", "\"messages\": [{\"role\": \"root\", \"text\": \"a\"}]}"},
        {"order.json", "\"messages\": [{\"role\": \"user\", \"text\": \"a\"}, "
                       "{\"role\": \"user\", \"text\": \"b\"}]}"},
        {"setting.json", "\"settings\": {\"temperature\": 1e9}, \"messages\": []}"},
        {"cut.json", "\"messages\": [{\"role\": \"us"},
        {"long.json", "\"messages\": [{\"role\": \"user\", \"text\": \"一二三四五六七八九十\"}, "
                      "{\"role\": \"assistant\", \"text\": \"十九八七六五四三二一\"}]}"},
    };
    char text[512];
    for (size_t i = 0; i < sizeof files / sizeof files[0]; i++) {
        snprintf(text, sizeof text, "%s%s", start, files[i].rest);
        write_text(files[i].path, text);
    }
    write_text("schema.json", "{\"schema\": 2, \"kind\": \"dsinfer-conversation\"}");
}

static void write_shards(const char *config, size_t n_config) {
    static const char index[] =
        "{\"metadata\": {}, \"weight_map\": {\"model.embed_tokens.weight\": "
        "\"model-00001-of-00002.safetensors\", \"model.norm.weight\": "
        "\"model-00002-of-00002.safetensors\"}}";
    static const char *const names[] = {"sharded", "swapped", "cutshard"};
    char path[128];
    for (size_t i = 0; i < 3; i++) {
        snprintf(path, sizeof path, "%s/config.json", names[i]);
        write_file(path, config, n_config);
        snprintf(path, sizeof path, "%s/model.safetensors.index.json", names[i]);
        write_text(path, index);
    }
    write_shard("sharded/model-00001-of-00002.safetensors", "model.embed_tokens.weight", 0);
    write_shard("swapped/model-00001-of-00002.safetensors", "model.norm.weight", 0);
    write_shard("swapped/model-00002-of-00002.safetensors", "model.embed_tokens.weight", 0);
    write_shard("cutshard/model-00001-of-00002.safetensors", "model.embed_tokens.weight", 0);
    write_shard("cutshard/model-00002-of-00002.safetensors", "model.norm.weight", 5);
}

static int make_folders(void **state) {
    (void)state;
    static const char *const names[] = {"empty",   "unweighted", "unknown", "scribbled",
                                        "swapped", "truncated",  "sharded", "cutshard",
                                        "locked",  "lockedfile"};
    snprintf(folder, sizeof folder, "/tmp/dsinfer-messages-XXXXXX");
    if (mkdtemp(folder) == NULL || chmod(folder, 0755) != 0) return -1;
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        char path[128];
        snprintf(path, sizeof path, "%s/%s", folder, names[i]);
        if (mkdir(path, 0755) != 0) return -1;
    }
    size_t n_config, n_weights;
    char *config = read_file(TINY "/config.json", &n_config);
    char *weights = read_file(TINY "/model.safetensors", &n_weights);
    write_text("plain", "x");
    write_file("unweighted/config.json", config, n_config);
    write_text("unknown/config.json", "{\"model_type\": \"frobnicator\", \"architectures\": "
                                      "[\"FrobnicatorForCausalLM\"]}");
    write_file("unknown/model.safetensors", weights, n_weights);
    write_text("scribbled/config.json", "{\"model_type\": ");
    write_file("scribbled/model.safetensors", weights, n_weights);
    write_file("locked/config.json", config, n_config);
    write_file("lockedfile/config.json", config, n_config);
    write_file("lockedfile/model.safetensors", weights, n_weights);
    change_mode("locked", 0);
    change_mode("lockedfile/model.safetensors", 0);
    write_shards(config, n_config);
    free(config);
    free(weights);
    config = read_file(SMALL "/config.json", &n_config); /* its sizes do not change */
    weights = read_file(SMALL "/model.safetensors", &n_weights);
    write_file("truncated/config.json", config, n_config);
    write_file("truncated/model.safetensors", weights, 1000000);
    write_conversations();
    write_text("other.sha256", "0000000000000000000000000000000000000000000000000000000000000000"
                               "  config.json\n");
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
    change_mode("locked", 0700);
    return nftw(folder, remove_one, 8, FTW_DEPTH | FTW_PHYS);
}

/* ---- Running one ----------------------------------------------------------------------------- */

/* `text` with every "@/" in the temporary folder; the caller frees it. NULL stays NULL. */
static char *placed(const char *text) {
    if (text == NULL) return NULL;
    char *out = calloc(ROOM, 1);
    assert_non_null(out);
    for (size_t n = 0; *text != 0 && n < ROOM - 80; text++) {
        if (text[0] == '@' && text[1] == '/') {
            n += (size_t)snprintf(out + n, ROOM - n, "%s", folder);
        } else {
            out[n++] = *text;
        }
    }
    return out;
}

/* The folder in what was said becomes "@" again. */
static void unplace(char *text) {
    size_t n = strlen(folder);
    for (char *at; (at = strstr(text, folder)) != NULL;) {
        *at = '@';
        memmove(at + 1, at + n, strlen(at + n) + 1);
    }
}

static cli_result run(const mistake *row, const char *locale, bool json) {
    char *owned[MAX_ARGUMENTS], *input = placed(row->input);
    cli_call call = {.input = input,
                     .locale = locale,
                     .stdin_path = row->stdin_path,
                     .stdout_path = row->stdout_path,
                     .file_bytes = row->file_bytes,
                     .memory_bytes = row->memory_bytes,
                     .nobody = row->nobody};
    if (json) call.arguments[0] = "--json";
    for (size_t i = 0; i < MAX_ARGUMENTS; i++) {
        owned[i] = placed(row->arguments[i]);
        call.arguments[i + json] = owned[i];
    }
    cli_result result = cli_exec(&call);
    for (size_t i = 0; i < MAX_ARGUMENTS; i++) free(owned[i]);
    free(input);
    unplace(result.err);
    return result;
}

static bool judge(const mistake *row, const cli_result *result, bool zh) {
    const char *error = zh ? "dsinfer: 错误：" : "dsinfer: error: ";
    bool good = result->code == row->code;
    if (row->input == NULL) good = good && result->n_out == 0;
    good = good && strstr(result->err, error) != NULL;
    good = good && strstr(result->err, zh ? "\n  提示：" : "\n  hint: ") != NULL;
    for (size_t i = 0; i < MAX_WORDS && row->words[i] != NULL && !zh; i++) {
        if (strstr(result->err, row->words[i]) != NULL) continue;
        print_error("%s: the message lacks \"%s\"\n", row->what, row->words[i]);
        good = false;
    }
    if (!good) {
        print_error("%s: exit %d, expected %d\nstdout: %.200s\nstderr: %s\n", row->what,
                    result->code, row->code, result->out, result->err);
    }
    return good;
}

/* With --json in front the same failure is one object, the last line of stdout. */
static bool is_error_object(const mistake *row) {
    cli_result result = run(row, NULL, true);
    if (result.n_out > 0) result.out[result.n_out - 1] = 0; /* its newline */
    const char *line = strrchr(result.out, '\n');
    line = line == NULL ? result.out : line + 1;
    dsi_json json = {0};
    uint64_t schema = 0, code = 0;
    bool good = dsi_json_parse(line, strlen(line), 1 << 16, &json, NULL) == DSI_OK;
    if (good) {
        uint32_t error = dsi_json_get(&json, 0, "error");
        char *message = dsi_json_string(&json, dsi_json_get(&json, error, "message"), NULL);
        char *hint = dsi_json_string(&json, dsi_json_get(&json, error, "hint"), NULL);
        good = dsi_json_u64(&json, dsi_json_get(&json, 0, "schema"), &schema) && schema == 1 &&
               dsi_json_u64(&json, dsi_json_get(&json, error, "code"), &code) &&
               code == (uint64_t)row->code && result.code == row->code && message != NULL &&
               *message != 0 && hint != NULL && *hint != 0 &&
               dsi_json_get(&json, error, "name") != DSI_JSON_NONE;
        dsi_sys_free(message);
        dsi_sys_free(hint);
    }
    if (!good) {
        print_error("%s with --json: exit %d, expected %d\n%s\n%s\n", row->what, result.code,
                    row->code, line, result.err);
    }
    dsi_json_free(&json);
    cli_result_free(&result);
    return good;
}

/* ---- The table ------------------------------------------------------------------------------- */

static char *table[MAX_MISTAKES]; /* a line for each mistake; NULL: could not be made here */

static const mistake *row_at(size_t i) {
    if (i < N_USAGE) return &usage_mistakes[i];
    return i < N_USAGE + N_CHAT ? &chat_mistakes[i - N_USAGE]
                                : &file_mistakes[i - N_USAGE - N_CHAT];
}

/* What stands behind `start` in its line. */
static void copy_line(char *out, size_t room, const char *text, const char *start) {
    const char *at = strstr(text, start);
    if (at != NULL) at += strlen(start);
    snprintf(out, room, "%.*s", at == NULL ? 1 : (int)strcspn(at, "\n"), at == NULL ? "-" : at);
}

static char *table_line(const mistake *row, const char *err) {
    char error[1024], hint[1024];
    char *line = calloc(ROOM, 1);
    assert_non_null(line);
    copy_line(error, sizeof error, err, "dsinfer: error: ");
    copy_line(hint, sizeof hint, err, "\n  hint: ");
    for (char *c = error; *c != 0 && row->no_digits; c++) {
        if (*c >= '0' && *c <= '9') *c = '#';
    }
    snprintf(line, ROOM, "%-33s | %d | %s | %s\n", row->what, row->code, error, hint);
    return line;
}

#ifdef __SANITIZE_ADDRESS__
enum { ADDRESS_SANITIZER = 1 };
#else
enum { ADDRESS_SANITIZER = 0 };
#endif

/* libcrypto is looked for at run time; a folder above may be closed to other users; the address
 * sanitizer cannot start in little address space. */
static bool can_be_made(const mistake *row, const cli_result *result) {
    const char *why = NULL;
    if (row->crypto && strstr(result->err, "libcrypto") != NULL) why = "no libcrypto";
    if (row->nobody && (result->code == 126 || result->code == 127)) {
        why = "no other user may run the program";
    }
    if (row->memory_bytes != 0 && ADDRESS_SANITIZER) why = "address sanitizer";
    if (why != NULL) print_message("%s: cannot be made here (%s)\n", row->what, why);
    return why == NULL;
}

static void mistakes_are_explained(size_t from, size_t n_rows) {
    size_t n_bad = 0;
    for (size_t i = from; i < from + n_rows; i++) {
        const mistake *row = row_at(i);
        cli_result en = run(row, NULL, false);
        if (can_be_made(row, &en)) {
            cli_result zh = run(row, "zh_CN.UTF-8", false);
            n_bad += !judge(row, &en, false);
            n_bad += !judge(row, &zh, true);
            if (!row->no_json) n_bad += !is_error_object(row);
            table[i] = table_line(row, en.err);
            cli_result_free(&zh);
        }
        cli_result_free(&en);
    }
    print_message("%zu mistakes explained in two languages and as JSON, %zu badly\n", n_rows,
                  n_bad);
    assert_int_equal(n_bad, 0);
}

static void usage_is_explained(void **state) {
    (void)state;
    mistakes_are_explained(0, N_USAGE);
}
static void chat_is_explained(void **state) {
    (void)state;
    mistakes_are_explained(N_USAGE, N_CHAT);
}
static void files_are_explained(void **state) {
    (void)state;
    mistakes_are_explained(N_USAGE + N_CHAT, N_FILES);
}

static const char table_head[] = "mistake                           | exit code | error | hint\n";

static void the_table_is_true(void **state) {
    (void)state;
    size_t n_bytes;
    char *text = read_file(TABLE, &n_bytes);
    const char *line = text;
    size_t n_different = 0;
    assert_int_equal(strncmp(line, table_head, strlen(table_head)), 0);
    for (size_t i = 0; i < N_MISTAKES; i++) {
        line += strcspn(line, "\n");
        line += *line == '\n';
        size_t n = strcspn(line, "\n") + 1;
        if (table[i] == NULL || (strlen(table[i]) == n && memcmp(line, table[i], n) == 0)) continue;
        print_error("in " TABLE ": %.*sis now:      %s", (int)n, line, table[i]);
        n_different++;
    }
    line += strcspn(line, "\n");
    if (n_different > 0 || strcmp(line, "\n") != 0) {
        fail_msg("%zu lines differ; if that is right: build/tests/test_messages --write",
                 n_different);
    }
    assert_true(N_MISTAKES >= 60 && N_MISTAKES <= MAX_MISTAKES);
    print_message("%s", text);
    free(text);
}

static void write_table(void **state) {
    (void)state;
    FILE *file = fopen(TABLE, "w");
    assert_non_null(file);
    assert_true(fputs(table_head, file) >= 0);
    for (size_t i = 0; i < N_MISTAKES; i++) {
        assert_non_null(table[i]); /* only a machine that can make all of them writes the table */
        assert_true(fputs(table[i], file) >= 0);
    }
    assert_int_equal(fclose(file), 0);
}

int main(int argc, char **argv) {
    bool write = argc > 1 && strcmp(argv[1], "--write") == 0;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(usage_is_explained),
        cmocka_unit_test(chat_is_explained),
        cmocka_unit_test(files_are_explained),
        {write ? "write_table" : "the_table_is_true", write ? write_table : the_table_is_true, NULL,
         NULL, NULL},
    };
    int n_failed = cmocka_run_group_tests(tests, make_folders, remove_folders);
    for (size_t i = 0; i < N_MISTAKES; i++) free(table[i]);
    return n_failed;
}
