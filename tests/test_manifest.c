/* test_manifest.c: dsinfer --manifest and --write-manifest: which files are covered, what is
 * refused, and that sha256sum and cksum agree. */
#include <dlfcn.h>
#include <stddef.h>

/* digest.c on a machine without any libcrypto. */
static const char *wanted_library;
static void *no_library(const char *name, int flags) {
    (void)flags;
    wanted_library = name;
    return NULL;
}
#define dlopen no_library
#include "../tools/dsinfer/data.c"
#include "../tools/dsinfer/digest.c"
#include "../tools/dsinfer/json.c"
#include "../tools/dsinfer/ui.c"
#include "../tools/dsinfer/utf8.c"
#undef dlopen

#include "model_files.h"

#include "cli_run.h"

#define TINY "examples/models/tiny-gov"
#define SHA256_ABC "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
#define SM3_ABC "66c7f0f462eeedd9d1f2d46bdc10e4e24167c4875cf2f7a2297da02b8f4ba8e0"

static char folder[64], model[128], list[128];

static int set_up(void **state) {
    (void)state;
    temp_folder(folder);
    snprintf(model, sizeof model, "%s/model", folder);
    snprintf(list, sizeof list, "%s/list", folder);
    return mkdir(model, 0700);
}
static int tear_down(void **state) {
    (void)state;
    remove_folder(folder);
    return 0;
}

#define RUN(code, ...) run_expect(code, &(cli_call){.arguments = {__VA_ARGS__}})
static cli_result run_expect(int code, const cli_call *call) {
    cli_result result = cli_exec(call);
    if (result.code != code)
        fail_msg("dsinfer %s ...: exit %d, expected %d\n%s%s", call->arguments[0], result.code,
                 code, result.out, result.err);
    return result;
}
/* Exit code, and words that must stand in the given output. */
#define EXPECT(result, stream, ...)                                                                \
    do {                                                                                           \
        const char *const words[] = {__VA_ARGS__};                                                 \
        for (size_t i_ = 0; i_ < sizeof words / sizeof words[0]; i_++)                             \
            if (!strstr((result).stream, words[i_]))                                               \
                fail_msg("no \"%s\" in: %s", words[i_], (result).stream);                          \
        cli_result_free(&(result));                                                                \
    } while (0)

static void expect_file(const char *path, const char *text) {
    bytes file = read_file(folder, strrchr(path, '/') + 1);
    assert_string_equal(file.data, text);
    free(file.data);
}

static int shell(const char *format, const char *a, const char *b) {
    char command[1024];
    snprintf(command, sizeof command, format, a, b);
    return system(command);
}

/* Three files, two of them shards that the index names, all of "abc" but the index. */
static void make_sharded(void) {
    write_text(model, "config.json", "abc");
    write_text(model, "a.safetensors", "abc");
    write_text(model, "b.safetensors", "abc");
    write_text(model, "model.safetensors.index.json",
               "{\"weight_map\": {\"x\": \"b.safetensors\", \"y\": \"a.safetensors\", \"z\": "
               "\"b.safetensors\", \"bad\": \"../../etc/passwd\"}}");
    write_text(model, "golden.safetensors", "nobody reads this");
    write_text(model, "README.md", "nor this");
}

/* ---- Digests and files ---------------------------------------------------------------------- */

static void digests_of_abc(void **state) {
    (void)state;
    write_text(model, "config.json", "abc");
    write_text(model, "model.safetensors", "");
    cli_result result = RUN(0, "verify", "-m", model, "--write-manifest", list);
    EXPECT(result, err, "2 files", "SHA256");
    expect_file(list, SHA256_ABC "  config.json\n"
                                 "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
                                 "  model.safetensors\n");
    result = RUN(0, "verify", "-m", model, "--write-manifest", list, "--hash", "sm3", "-q");
    EXPECT(result, err, "");
    expect_file(list, "SM3 (config.json) = " SM3_ABC "\n"
                      "SM3 (model.safetensors) = "
                      "1ab21d8355cfa17f8e61194831e81a8f22bec8c728fefb747ed035eb5082aa2b\n");
    result = RUN(0, "verify", "-m", model, "--manifest", list);
    EXPECT(result, out, "2 files", "SM3", "PASS");
    result = RUN(1, "verify", "-m", model, "--manifest", list, "--hash", "sha256");
    EXPECT(result, err, "holds SM3", "not SHA256", "--hash");
}

static void shards_of_the_index(void **state) {
    (void)state;
    make_sharded();
    cli_result result = RUN(0, "verify", "-m", model, "--write-manifest", "-", "--threads", "4");
    assert_non_null(strstr(result.out,
                           SHA256_ABC "  a.safetensors\n" SHA256_ABC "  b.safetensors\n" SHA256_ABC
                                      "  config.json\n"));
    assert_null(strstr(result.out, "golden"));
    assert_null(strstr(result.out, "passwd"));
    write_text(folder, "list", result.out);
    cli_result again = RUN(0, "verify", "-m", model, "--write-manifest", "-", "--threads", "1");
    assert_string_equal(again.out, result.out);
    cli_result_free(&again);
    EXPECT(result, out, "  model.safetensors.index.json\n");
    result = RUN(0, "verify", "-m", model, "--manifest", list, "--json");
    EXPECT(result, out, "\"files\": 4", "\"ok\": true", "\"problems\": []", "\"sha256\"");
}

static void other_programs_agree(void **state) {
    (void)state;
    cli_result result = RUN(0, "verify", "-m", TINY, "--write-manifest", list);
    EXPECT(result, err, "4 files");
    assert_int_equal(shell("cd %s && sha256sum --quiet --strict -c %s", TINY, list), 0);
    assert_int_equal(shell("cd %s && sha256sum config.json ./tokenizer.json -b model.safetensors "
                           "--tag tokenizer_config.json >%s",
                           TINY, list),
                     0);
    result = RUN(0, "verify", "-m", TINY, "--manifest", list);
    EXPECT(result, out, "4 files", "PASS");
    if (shell("cksum -a sm3 %s/config.json %s >/dev/null 2>&1", TINY, "") != 0) {
        print_message("cksum here has no SM3: not compared\n");
        return;
    }
    result = RUN(0, "verify", "-m", TINY, "--write-manifest", list, "--hash", "sm3");
    EXPECT(result, err, "4 files");
    assert_int_equal(shell("cd %s && cksum --quiet --strict -c %s", TINY, list), 0);
}

/* ---- What does not match -------------------------------------------------------------------- */

static void differences_are_named(void **state) {
    (void)state;
    make_sharded();
    cli_result result = RUN(0, "verify", "-m", model, "--write-manifest", list);
    EXPECT(result, err, "4 files");

    write_text(model, "b.safetensors", "abd");
    result = RUN(1, "verify", "-m", model, "--manifest", list);
    assert_string_equal(result.out, "");
    EXPECT(result, err, "b.safetensors", "the manifest says " SHA256_ABC, "1 of 4",
           "a52d159f262b2c6ddb724a61840befc36eb30c88877a4030b65cbe86298449c9", "copy");
    write_text(model, "b.safetensors", "abc");

    char path[256];
    snprintf(path, sizeof path, "%s/a.safetensors", model);
    assert_int_equal(unlink(path), 0);
    result = RUN(1, "verify", "-m", model, "--manifest", list, "--json");
    assert_non_null(strstr(result.err, "a.safetensors: missing"));
    EXPECT(result, out, "\"ok\": false", "\"file\": \"a.safetensors\", \"problem\": \"missing\"",
           "\"expected\": \"" SHA256_ABC "\", \"actual\": \"\"");
    assert_int_equal(mkdir(path, 0700), 0);
    result = RUN(3, "verify", "-m", model, "--manifest", list);
    EXPECT(result, err, "a.safetensors: not a regular file", "1 of 4");
    assert_int_equal(rmdir(path), 0);
    assert_int_equal(mkfifo(path, 0700), 0); /* must not wait for a writer */
    result = RUN(3, "verify", "-m", model, "--manifest", list);
    EXPECT(result, err, "a.safetensors: not a regular file");
    assert_int_equal(unlink(path), 0);
    write_text(model, "a.safetensors", "abc");

    /* The single file would be read instead of the shards. */
    write_text(model, "model.safetensors", "abc");
    result = RUN(1, "verify", "-m", model, "--manifest", list);
    EXPECT(result, err, "model.safetensors: not in the manifest", SHA256_ABC, "1 of 5");
}

static void small_files_that_come_later(void **state) {
    (void)state;
    static const char *const names[] = {"generation_config.json", "tokenizer.json",
                                        "tokenizer_config.json", "c.safetensors"};
    make_sharded();
    cli_result result = RUN(0, "verify", "-m", model, "--write-manifest", list);
    cli_result_free(&result);
    for (size_t i = 0; i < 4; i++) {
        char path[256];
        write_text(model, names[i], "{}");
        result = RUN(i < 3 ? 1 : 0, "verify", "-m", model, "--manifest", list);
        if (i < 3) {
            EXPECT(result, err, names[i], "not in the manifest");
        } else {
            EXPECT(result, out, "PASS"); /* no shard of the index */
        }
        snprintf(path, sizeof path, "%s/%s", model, names[i]);
        assert_int_equal(unlink(path), 0);
    }
}

/* Nothing of a model that does not match is used: no command opens it, no token comes out. */
static void commands_refuse(void **state) {
    (void)state;
    static const char *const names[] = {"config.json", "model.safetensors", "tokenizer.json",
                                        "tokenizer_config.json"};
    cli_result result = RUN(0, "verify", "-m", TINY, "--write-manifest", list);
    cli_result_free(&result);
    result = RUN(0, "run", "-m", TINY, "--manifest", list, "--max-tokens", "2", "你好");
    assert_true(result.n_out > 0);
    cli_result_free(&result);
    result = RUN(0, "inspect", "-m", TINY, "--manifest", list);
    EXPECT(result, out, "deepseek_v3");
    for (size_t i = 0; i < 4; i++) link_file(TINY, model, names[i]);
    bytes file = read_file(TINY, "model.safetensors");
    file.data[file.n - 1] ^= 1; /* the last weight */
    write_file(model, "model.safetensors", file.data, file.n);
    free(file.data);
    result = RUN(0, "run", "-m", model, "--max-tokens", "2", "你好");
    cli_result_free(&result); /* without a manifest nobody sees it */
    result = RUN(1, "run", "-m", model, "--manifest", list, "你好");
    assert_int_equal(result.n_out, 0);
    EXPECT(result, err, "model.safetensors: SHA256 is", "1 of 4");
    result = RUN(1, "inspect", "-m", model, "--manifest", list, "--json");
    EXPECT(result, out, "{\"schema\": 1, \"error\": {\"code\": 1, \"name\": \"FAILED\"");
    result = RUN(1, "verify", "-m", model, "--manifest", list, "--golden", "/nowhere");
    EXPECT(result, err, "model.safetensors: SHA256 is");
    result = run_expect(1, &(cli_call){.arguments = {"run", "-m", model, "--manifest", list, "a"},
                                       .locale = "zh_CN.UTF-8"});
    EXPECT(result, err, "清单中是");
}

/* ---- Bad manifests, bad places -------------------------------------------------------------- */

static void bad_manifests(void **state) {
    (void)state;
    static const char *const texts[][2] = {
        {"", "lists no file"},
        {"# nothing\n\n", "lists no file"},
        {"abc  config.json\n", "line 1: neither"},
        {SHA256_ABC " config.json\n", "line 1: neither"},
        {SHA256_ABC "  \n", "line 1: neither"},
        {"\n" SHA256_ABC "0  config.json\n", "line 2: neither"},
        {"G" SHA256_ABC "  config.json\n", "line 1: neither"},
        {"SM3 (config.json) = " SM3_ABC "0\n", "line 1: neither"},
        {"SM3 (config.json) : " SM3_ABC "\n", "line 1: neither"},
        {"MD5 (config.json) = 900150983cd24fb0d6963f7d28e17f72\n", "line 1: neither"},
        {"\\" SHA256_ABC "  a\\nb\n", "line 1: neither"},
        {SHA256_ABC "  ../config.json\n", "line 1: the file name is not one below"},
        {SHA256_ABC "  a/../../b\n", "not one below"},
        {SHA256_ABC "  /etc/passwd\n", "not one below"},
        {SHA256_ABC "  a//b\n", "not one below"},
        {SHA256_ABC "  a/\n", "not one below"},
        {SHA256_ABC "  a\tb\n", "not one below"},
        {SHA256_ABC "  a\nSM3 (b) = " SM3_ABC "\n", "line 2: SHA256 and SM3 are mixed"},
        {SHA256_ABC "  a\n" SHA256_ABC " *./a\n", "a is listed twice"},
    };
    make_sharded();
    for (size_t i = 0; i < sizeof texts / sizeof texts[0]; i++) {
        write_text(folder, "list", texts[i][0]);
        cli_result result = RUN(4, "verify", "-m", model, "--manifest", list);
        EXPECT(result, err, list, texts[i][1], "hint");
    }
    cli_result result = RUN(3, "verify", "-m", model, "--manifest", "/nowhere");
    EXPECT(result, err, "--manifest: ", "/nowhere", "hint");
    write_text(folder, "list", "SHA256 (config.json) = " SHA256_ABC "\r\n");
    result = RUN(4, "verify", "-m", "/nowhere", "--manifest", list);
    EXPECT(result, err, "/nowhere: no such folder", "config.json");
    result = RUN(1, "verify", "-m", model, "--manifest", list); /* the rest of the model is extra */
    EXPECT(result, err, "a.safetensors: not in", "index.json: not in", "3 of 4");
}

static void places_that_cannot_be_written(void **state) {
    (void)state;
    char part[256];
    make_sharded();
    cli_result result = RUN(3, "verify", "-m", model, "--write-manifest", "/nowhere/list");
    EXPECT(result, err, "/nowhere/list", "No such file", "hint");
    write_text(folder, "list", "old");
    snprintf(part, sizeof part, "%s.part", list);
    assert_int_equal(symlink("/dev/full", part), 0);
    result = RUN(3, "verify", "-m", model, "--write-manifest", list);
    EXPECT(result, err, list, "No space left", "hint");
    expect_file(list, "old"); /* and the half one is gone */
    assert_int_not_equal(access(part, F_OK), 0);
    result =
        run_expect(3, &(cli_call){.arguments = {"verify", "-m", model, "--write-manifest", "-"},
                                  .stdout_path = "/dev/full"});
    cli_result_free(&result);
    snprintf(part, sizeof part, "%s/b.safetensors", model);
    assert_int_equal(unlink(part), 0);
    result = RUN(4, "verify", "-m", model, "--write-manifest", list);
    EXPECT(result, err, "b.safetensors: missing; the index names it", "hint");
    expect_file(list, "old");
    result = RUN(4, "verify", "-m", folder, "--write-manifest", list);
    EXPECT(result, err, "holds no weights", "config.json");
    result = RUN(2, "verify", "-m", model, "--write-manifest", list, "--manifest", list);
    EXPECT(result, err, "stands alone");
    result = RUN(2, "tokenize", "-m", model, "--manifest", list, "a");
    EXPECT(result, err, "--manifest", "dsinfer run");
}

/* ---- Without libcrypto ---------------------------------------------------------------------- */

static void without_libcrypto(void **state) {
    (void)state;
    digest_job job = {.path = list};
    char text[1024] = "";
    fflush(stderr);
    int kept = dup(2), log = open(list, O_RDWR | O_CREAT, 0600);
    assert_true(kept >= 0 && log >= 0);
    dup2(log, 2);
    int code = digest_files(&job, 1, DIGEST_SM3, 1);
    fflush(stderr);
    dup2(kept, 2);
    assert_true(pread(log, text, sizeof text - 1, 0) > 0);
    close(kept);
    close(log);
    assert_int_equal(code, 3);
    assert_string_equal(wanted_library, "libcrypto.so.1.1"); /* the second of the two */
    assert_non_null(strstr(text, "libcrypto.so.3"));
    assert_non_null(strstr(text, "SM3"));
    assert_non_null(strstr(text, "apt-get install -y openssl"));
    assert_non_null(strstr(text, "dnf install -y openssl-libs"));
}

int main(void) {
#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        TEST(digests_of_abc),
        TEST(shards_of_the_index),
        TEST(other_programs_agree),
        TEST(differences_are_named),
        TEST(small_files_that_come_later),
        TEST(commands_refuse),
        TEST(bad_manifests),
        TEST(places_that_cannot_be_written),
        TEST(without_libcrypto),
    };
    return cmocka_run_group_tests_name("manifest", tests, NULL, NULL);
}
