/* test_fuzz_corpus.c: every input of tests/fuzz/corpus through its fuzz target, without a fuzzer.
 * The targets are included, each with a name of its own instead of libFuzzer's. */
#define LLVMFuzzerTestOneInput fuzz_safetensors
#include "fuzz/fuzz_safetensors.c"
#undef LLVMFuzzerTestOneInput
#define LLVMFuzzerTestOneInput fuzz_gguf
#include "fuzz/fuzz_gguf.c"
#undef LLVMFuzzerTestOneInput
#define LLVMFuzzerTestOneInput fuzz_index
#include "fuzz/fuzz_index.c"
#undef LLVMFuzzerTestOneInput
#define LLVMFuzzerTestOneInput fuzz_config
#include "fuzz/fuzz_config.c"
#undef LLVMFuzzerTestOneInput
#define LLVMFuzzerTestOneInput fuzz_tokenizer_json
#include "fuzz/fuzz_tokenizer_json.c"
#undef LLVMFuzzerTestOneInput
#define LLVMFuzzerTestOneInput fuzz_encode
#include "fuzz/fuzz_encode.c"
#undef LLVMFuzzerTestOneInput
#define LLVMFuzzerTestOneInput fuzz_chat
#include "fuzz/fuzz_chat.c"
#undef LLVMFuzzerTestOneInput
#define LLVMFuzzerTestOneInput fuzz_snapshot
#include "fuzz/fuzz_snapshot.c"
#undef LLVMFuzzerTestOneInput

#include "damage.h"
#include <dirent.h>

typedef int (*fuzz_fn)(const uint8_t *data, size_t n);
static const struct {
    const char *name;
    fuzz_fn run;
} targets[] = {{"fuzz_safetensors", fuzz_safetensors}, {"fuzz_index", fuzz_index},
               {"fuzz_config", fuzz_config},           {"fuzz_tokenizer_json", fuzz_tokenizer_json},
               {"fuzz_encode", fuzz_encode},           {"fuzz_chat", fuzz_chat},
               {"fuzz_snapshot", fuzz_snapshot},       {"fuzz_gguf", fuzz_gguf}};

/* Each input as it is, and with some changes of single bytes: a bug beside a known one. */
static uint32_t run_inputs(fuzz_fn run, const char *folder) {
    uint32_t n = 0;
    DIR *dir = opendir(folder);
    if (!dir) fail_msg("%s is not there", folder);
    for (struct dirent *entry; (entry = readdir(dir)) != NULL;) {
        if (entry->d_name[0] == '.') continue;
        bytes input = read_file(folder, entry->d_name);
        /* In a block of its exact size, so that a sanitizer sees a read behind it. */
        uint8_t *exact = malloc(input.n ? input.n : 1);
        assert_non_null(exact);
        memcpy(exact, input.data, input.n);
        run(exact, input.n);
        for (int i = 0; i < 8 && input.n > 0; i++) {
            size_t at = below(input.n);
            exact[at] = (uint8_t)next_random();
            run(exact, input.n - (i == 7 ? below(input.n) : 0));
        }
        free(exact);
        free(input.data);
        n++;
    }
    closedir(dir);
    return n;
}

static void corpora(void **state) {
    (void)state;
    char folder[128];
    for (size_t i = 0; i < sizeof targets / sizeof targets[0]; i++) {
        seed_random(i);
        snprintf(folder, sizeof folder, "tests/fuzz/corpus/%s", targets[i].name);
        uint32_t n = run_inputs(targets[i].run, folder);
        printf("%-20s %3u inputs\n", targets[i].name, n);
        assert_true(n >= 3);
    }
    remove_folder(fuzz_folder());
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(corpora)};
    return cmocka_run_group_tests_name("fuzz_corpus", tests, NULL, NULL);
}
