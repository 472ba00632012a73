/* test_structure.c: checkpoints whose structure is wrong by construction: header, shapes, offsets,
 * types, names, missing, doubled and added tensors, cut, grown and swapped files, index, config
 * values, tokenizer. Every one must be refused, with a text that names the file.
 *
 *   test_structure [CASES [FIRST]]   default 1,400 cases from number 0, `make check-long` 14,000; a
 *                                    number always makes the same case */
#include "damage_folder.h"
#include "damage_weights.h"
#include <deepseek/dsinfer.h>

static uint32_t n_cases = 1400, first_case;

/* ---- The list ------------------------------------------------------------------------------- */

typedef struct kind {
    const char *name;
    void (*make)(damaged *d);
    int model;        /* the one it needs, or ANY */
    const char *file; /* that the message names */
} kind;
enum { ANY = -1 };
#define WEIGHTS(name)                                                                              \
    { #name, name, ANY, weights }

static const kind kinds[] = {
    WEIGHTS(cut_file),
    WEIGHTS(grow_file),
    WEIGHTS(wrong_length),
    WEIGHTS(other_model),
    WEIGHTS(no_file),
    WEIGHTS(other_file),
    WEIGHTS(break_header),
    WEIGHTS(cut_header),
    WEIGHTS(bad_bytes_in_header),
    WEIGHTS(doubled_entry),
    WEIGHTS(bad_metadata),
    WEIGHTS(other_type),
    WEIGHTS(unknown_type),
    WEIGHTS(bad_shape),
    WEIGHTS(other_shape),
    WEIGHTS(other_size),
    WEIGHTS(bad_offsets),
    WEIGHTS(moved),
    WEIGHTS(stretched),
    WEIGHTS(same_place),
    WEIGHTS(bad_name),
    WEIGHTS(renamed),
    WEIGHTS(names_swapped),
    WEIGHTS(missing),
    WEIGHTS(half_missing),
    WEIGHTS(added),
    WEIGHTS(doubled_data),
    WEIGHTS(no_tensor),
    WEIGHTS(keys_missing),
    WEIGHTS(keys_added),
    WEIGHTS(no_object),
    {"bad_index", bad_index, QWEN2, index_name},
    {"bad_weight_map", bad_weight_map, QWEN2, index_name},
    {"bad_shard_name", bad_shard_name, QWEN2, index_name},
    {"wrong_shard", wrong_shard, QWEN2, index_name},
    {"shards_swapped", shards_swapped, QWEN2, index_name},
    {"not_listed", not_listed, QWEN2, index_name},
    {"listed_only", listed_only, QWEN2, index_name},
    {"shard_damaged", shard_damaged, QWEN2, NULL},
    {"in_two_shards", in_two_shards, QWEN2, NULL},
    {"broken_config", broken_config, ANY, "config.json"},
    {"number_missing", number_missing, ANY, "config.json"},
    {"number_bad", number_bad, ANY, "config.json"},
    {"size_changed", size_changed, ANY, "config.json"},
    {"feature_asked_for", feature_asked_for, ANY, "config.json"},
    {"feature_of_moe", feature_of_moe, V3, "config.json"},
    {"other_family", other_family, ANY, "config.json"},
    {"token_bad", token_bad, ANY, NULL},
    {"broken_tokenizer", broken_tokenizer, QWEN2, "tokenizer.json"},
    {"tokenizer_rule", tokenizer_rule, QWEN2, "tokenizer.json"},
    {"vocabulary_bad", vocabulary_bad, QWEN2, "tokenizer.json"},
    {"merges_bad", merges_bad, QWEN2, "tokenizer.json"},
    {"added_bad", added_bad, QWEN2, "tokenizer.json"},
};
enum { N_KINDS = sizeof kinds / sizeof *kinds };

static void make_case(uint32_t number, damaged *d) {
    const kind *k = &kinds[number % N_KINDS];
    seed_random(number);
    memset(d, 0, offsetof(damaged, items));
    choose_model(d, k->model == ANY ? below(N_GOLDENS) : (size_t)k->model);
    d->file = k->file;
    d->metadata = plain_metadata;
    temp_folder(d->folder);
    link_file(goldens[d->model], d->folder, "config.json");
    link_file(goldens[d->model], d->folder, weights);
    k->make(d);
}

/* A tokenizer of another family leaves the model usable; text calls then say why. */
static dsi_status open_case(const damaged *d, char text[1024]) {
    dsi_model *model = NULL;
    size_t n = 0;
    dsi_status status = dsi_model_open(d->folder, NULL, &model);
    if (!status && d->file && strcmp(d->file, "tokenizer.json") == 0)
        status = dsi_tokenize(model, "a", 1, DSI_TOKENIZE_PLAIN, NULL, 0, &n);
    snprintf(text, 1024, "%s", dsi_last_error(NULL));
    dsi_model_close(model);
    return status;
}

static void every_case_is_refused(void **state) {
    (void)state;
    static damaged d;
    for (int i = 0; i < N_GOLDENS; i++) {
        char path[512];
        dsi_error error;
        configs[i] = read_file(goldens[i], "config.json");
        snprintf(path, sizeof path, "%s/%s", goldens[i], weights);
        assert_ok(dsi_checkpoint_open_file(path, &checkpoints[i], &error), &error);
    }
    uint32_t n_bad = 0;
    for (uint32_t k = first_case; k < first_case + n_cases; k++) {
        char text[1024];
        make_case(k, &d);
        dsi_status status = open_case(&d, text);
        const char *named = strstr(text, d.folder);
        bool file = named && (!d.file || strstr(named, d.file));
        if (status == DSI_OK || !file || status == DSI_E_INTERNAL || status == DSI_E_NOMEM) {
            print_error("case %u (%s of %s): status %d, \"%s\" should refuse and name %s\n", k,
                        kinds[k % N_KINDS].name, goldens[d.model], status, status ? text : "",
                        d.file ? d.file : d.folder);
            n_bad++;
        }
        count_reason(text);
        remove_folder(d.folder);
    }
    print_reasons();
    printf("%u files of %d kinds, %u refused with their file named, %u distinct reasons\n", n_cases,
           N_KINDS, n_cases - n_bad, n_reasons);
    for (int i = 0; i < N_GOLDENS; i++) {
        free(configs[i].data);
        dsi_checkpoint_close(&checkpoints[i]);
    }
    assert_int_equal(n_bad, 0);
    if (n_cases >= 280) assert_true(n_reasons >= 40);
}

/* The same folders, whole: they open. Otherwise every case above would be refused for nothing. */
static void whole_ones_open(void **state) {
    (void)state;
    static damaged d;
    for (size_t i = 0; i < N_GOLDENS; i++) {
        char path[512], text[1024];
        dsi_error error;
        configs[i] = read_file(goldens[i], "config.json");
        snprintf(path, sizeof path, "%s/%s", goldens[i], weights);
        assert_ok(dsi_checkpoint_open_file(path, &checkpoints[i], &error), &error);
        memset(&d, 0, offsetof(damaged, items));
        d.metadata = plain_metadata;
        d.file = "tokenizer.json";
        temp_folder(d.folder);
        choose_model(&d, i);
        link_file(goldens[i], d.folder, "config.json");
        write_weights(&d);
        write_tokenizer(&d, NULL, NULL);
        if (open_case(&d, text)) fail_msg("%s", text);
        write_shards(&d);
        write_index(&d, SIZE_MAX, NULL, NULL);
        if (open_case(&d, text)) fail_msg("%s", text);
        remove_folder(d.folder);
        free(configs[i].data);
        dsi_checkpoint_close(&checkpoints[i]);
    }
}

int main(int argc, char **argv) {
    if (argc > 1) n_cases = (uint32_t)strtoul(argv[1], NULL, 10);
    if (argc > 2) first_case = (uint32_t)strtoul(argv[2], NULL, 10);
    const struct CMUnitTest tests[] = {cmocka_unit_test(whole_ones_open),
                                       cmocka_unit_test(every_case_is_refused)};
    return cmocka_run_group_tests_name("structure", tests, NULL, NULL);
}
