/* test_mutations.c: damaged checkpoints. Each case is a golden checkpoint with one to three changes
 * in config.json, in the header of its safetensors file, in its index, or in the file around them.
 * It must open, or be refused with a text that names a file; nothing else.
 *
 *   test_mutations [CASES [FIRST]]   default 400 cases from number 0; a number always makes the
 *                                    same case, so a failing one is run again with "1 NUMBER" */
#include "../lib/base/sys.h"
#include "damage.h"
#include "quantize_checkpoint.h"
#include <deepseek/dsinfer.h>

static uint32_t n_cases = 400, first_case;

/* ---- Changes of a text ---------------------------------------------------------------------- */

static bool in_number(char c) { return (c >= '0' && c <= '9') || c == '-' || c == '.' || c == 'e'; }

/* A number somewhere behind a random place, digits inside names included: another value, or one
 * near the old. */
static void change_number(bytes *text) {
    /* clang-format off */
    static const char *const numbers[] = {
        "0", "1", "2", "3", "7", "64", "96", "-1", "65535", "65537", "1e999", "0.5", "4294967296",
        "2147483648", "9223372036854775807", "9223372036854775808", "18446744073709551615",
        "18446744073709551616", "99999999999999999999999999", "1e-320", "null", "[]", "true"};
    /* clang-format on */
    size_t at = below(text->n), n = 0;
    while (at < text->n && (text->data[at] < '0' || text->data[at] > '9')) at++;
    while (at + n < text->n && in_number(text->data[at + n])) n++;
    char close_by[32];
    const char *with = numbers[below(sizeof numbers / sizeof *numbers)];
    if (below(2)) {
        unsigned long long old = strtoull(text->data + at, NULL, 10);
        const unsigned long long values[] = {old + 1, old - 1, old * 2, old / 2, old + 128};
        snprintf(close_by, sizeof close_by, "%llu", values[below(5)]);
        with = close_by;
    }
    splice_text(text, at, n, with, strlen(with));
}

/* One string (name, dtype, key, value) becomes a copy of another of the same text. */
static bool find_string(const bytes *text, size_t from, size_t *at, size_t *n) {
    const char *open = memchr(text->data + from, '"', text->n - from);
    if (!open) return false;
    const char *close = memchr(open + 1, '"', text->n - (size_t)(open + 1 - text->data));
    if (!close) return false;
    *at = (size_t)(open + 1 - text->data);
    *n = (size_t)(close - open - 1);
    return true;
}
static void swap_strings(bytes *text) {
    size_t at, n, other, n_other;
    if (!find_string(text, below(text->n), &at, &n)) return;
    if (!find_string(text, below(text->n), &other, &n_other)) return;
    char *copy = strndup(text->data + other, n_other);
    assert_non_null(copy);
    splice_text(text, at, n, copy, strlen(copy));
    free(copy);
}

static void insert_token(bytes *text) {
    static const char *const tokens[] = {
        "null",
        ",",
        "\"",
        "{\"a\":",
        "[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[",
        "\\ud800",
        "\\u0000",
        "\xff",
        "\x1b[31m",
        "\xef\xbb\xbf",
        "  \n",
        "\"F8_E5M2\"",
        "\"yarn\"",
        "../",
        "/",
        "-",
        "}",
        "]}",
        "\"model_type\": \"deepseek_v4\","};
    const char *token = tokens[below(sizeof tokens / sizeof *tokens)];
    splice_text(text, below(text->n + 1), 0, token, strlen(token));
}

/* The next place from `from` on where an item of the text ends: a line, or an entry of a header. */
static size_t item_end(const bytes *text, size_t from) {
    bool lines = memchr(text->data, '\n', text->n) != NULL;
    for (size_t i = from; i < text->n; i++) {
        if (lines && text->data[i] == '\n') return i;
        if (!lines && i > 0 && text->data[i] == ',' && text->data[i - 1] == '}') return i;
    }
    return text->n;
}

/* Mostly a whole key with its value is taken away or doubled. */
static void change_item(bytes *text, bool twice) {
    size_t at = item_end(text, below(text->n));
    size_t n = at < text->n ? item_end(text, at + 1) - at : 0;
    char *copy = strndup(text->data + at, n);
    assert_non_null(copy);
    splice_text(text, at, twice ? 0 : n, copy, twice ? strlen(copy) : 0);
    free(copy);
}

/* Something that is hardly JSON any more. */
static void break_text(bytes *text) {
    size_t at = below(text->n), n = below(text->n - at < 40 ? text->n - at : 40);
    switch (below(4)) {
    case 0:
        text->data[at] = (char)(text->data[at] ^ (1 << below(8)));
        break;
    case 1:
        splice_text(text, at, n, "", 0);
        break;
    case 2:
        text->n = at;
        break;
    default:
        insert_token(text);
        break;
    }
}

static void mutate_text(bytes *text) {
    for (size_t left = 1 + below(3); left > 0 && text->n > 0; left--) {
        switch (below(10)) {
        case 0:
            break_text(text);
            break;
        case 1:
            change_item(text, true);
            break;
        case 2:
        case 3:
            change_item(text, false);
            break;
        case 4:
        case 5:
            swap_strings(text);
            break;
        default:
            change_number(text);
            break;
        }
    }
}

/* ---- Cases ---------------------------------------------------------------------------------- */

/* The last two are made at the start: INT8 by channel and INT4 by group, in compressed-tensors. */
static char made[2][64];
static const char *const goldens[] = {"tests/data/golden/v3-fp8", "tests/data/golden/v2-lite",
                                      "tests/data/golden/qwen2", made[0], made[1]};
enum { N_GOLDENS = 5, N_MADE = 2 };
static bytes configs[N_GOLDENS], files[N_GOLDENS]; /* read once */

static uint64_t header_bytes(const bytes *file) {
    uint64_t n = 0;
    for (int i = 7; i >= 0; i--) n = n << 8 | (uint8_t)file->data[i];
    return n;
}
/* Length field (stated, not measured), header and tensor bytes, without one more copy of them. */
static void write_parts(const char *folder, uint64_t stated, const bytes *header, const char *data,
                        size_t n_data) {
    char path[512];
    snprintf(path, sizeof path, "%s/model.safetensors", folder);
    unlink(path);
    FILE *file = fopen(path, "wb");
    assert_non_null(file);
    for (int i = 0; i < 8; i++) fputc((int)(stated >> (8 * i) & 255), file);
    fwrite(header->data, 1, header->n, file);
    fwrite(data, 1, n_data, file);
    assert_int_equal(fclose(file), 0);
}

static void mutate_header(const char *folder, const bytes *file) {
    uint64_t n = header_bytes(file);
    bytes header = copy_of(file->data + 8, n);
    mutate_text(&header);
    uint64_t stated = below(10) ? header.n : next_random() >> below(64);
    write_parts(folder, stated, &header, file->data + 8 + n, file->n - 8 - n);
    free(header.data);
}

/* The file around an intact header: cut, longer, another length. */
static void mutate_file(const char *folder, const bytes *file) {
    static const char more[64];
    uint64_t n = header_bytes(file), stated = n;
    bytes header = copy_of(file->data + 8, n);
    size_t n_data = file->n - 8 - n;
    switch (below(4)) {
    case 0:
        stated = n + below(64) - 32;
        break;
    case 1:
        stated = next_random() >> below(64);
        break;
    case 2:
        n_data = below(n_data);
        break;
    default:
        break;
    }
    write_parts(folder, stated, &header, file->data + 8 + n, n_data);
    if (below(2)) {
        char path[512];
        snprintf(path, sizeof path, "%s/model.safetensors", folder);
        if (below(2)) {
            assert_int_equal(truncate(path, (off_t)below(file->n)), 0);
        } else {
            FILE *out = fopen(path, "ab");
            assert_non_null(out);
            fwrite(more, 1, 1 + below(sizeof more - 1), out);
            fclose(out);
        }
    }
    free(header.data);
}

/* The checkpoint as one shard with an index, and the index changed. */
static void mutate_index(const char *folder, const char *golden) {
    static const char shard[] = "model-00001-of-00001.safetensors";
    char path[512];
    dsi_checkpoint c;
    dsi_error error = {0};
    snprintf(path, sizeof path, "%s/model.safetensors", golden);
    assert_ok(dsi_checkpoint_open_file(path, &c, &error), &error);
    size_t size = (size_t)c.n_tensors * 160 + 256;
    bytes index = {calloc(size, 1), 0};
    assert_non_null(index.data);
    index.n = (size_t)snprintf(index.data, size,
                               "{\"metadata\": {\"total_size\": 7},\n\"weight_map\": {");
    for (uint32_t i = 0; i < c.n_tensors; i++)
        index.n += (size_t)snprintf(index.data + index.n, size - index.n, "%s\n\"%s\": \"%s\"",
                                    i ? "," : "", c.tensors[i].name, shard);
    index.n += (size_t)snprintf(index.data + index.n, size - index.n, "\n}}");
    assert_true(index.n < size);
    dsi_checkpoint_close(&c);
    mutate_text(&index);
    write_file(folder, "model.safetensors.index.json", index.data, index.n);
    free(index.data);
    char real[4096], link[512];
    assert_non_null(realpath(path, real));
    snprintf(link, sizeof link, "%s/%s", folder, shard);
    assert_int_equal(symlink(real, link), 0);
    snprintf(link, sizeof link, "%s/model.safetensors", folder);
    unlink(link);
}

/* Makes case `number` in a new folder and puts its path into `folder`; the caller removes it. */
static void make_case(uint32_t number, char folder[64]) {
    seed_random(number);
    size_t model = below(N_GOLDENS);
    temp_folder(folder);
    link_file(goldens[model], folder, "config.json");
    link_file(goldens[model], folder, "model.safetensors");
    size_t what = below(10);
    if (what < 4) mutate_header(folder, &files[model]);
    if (what == 4) mutate_file(folder, &files[model]);
    if (what == 5 || what == 6) mutate_index(folder, goldens[model]);
    if (what >= 7) {
        bytes config = copy_of(configs[model].data, configs[model].n);
        mutate_text(&config);
        write_file(folder, "config.json", config.data, config.n);
        free(config.data);
    }
    if (what == 9) {
        bytes generation = copy_of("{\"eos_token_id\": [1, 2], \"temperature\": 0.6}", 44);
        mutate_text(&generation);
        write_file(folder, "generation_config.json", generation.data, generation.n);
        free(generation.data);
    }
}

/* ---- What becomes of them ------------------------------------------------------------------- */

/* Reads the ends of a bound weight: under a sanitizer or a guard page a wrong extent shows. */
static uint32_t touch(const dsi_weight *w) {
    if (!w->name) return 0;
    int64_t n = 0, n_scale = w->scale_rows * w->scale_columns * dsi_dtype_bytes(w->scale_dtype);
    const uint8_t *scale = w->scale;
    assert_true(dsi_dtype_row_bytes(w->dtype, w->n_in, &n));
    n *= w->n_out;
    return (uint32_t)w->data[0] + w->data[n - 1] + (scale ? scale[0] + scale[n_scale - 1] : 0);
}
static uint32_t touch_layer(const dsi_layer_weights *l, const dsi_config *config) {
    uint32_t sum = touch(&l->input_layernorm) + touch(&l->o_proj) + touch(&l->q_proj) +
                   touch(&l->q_b_proj) + touch(&l->kv_b_proj) + touch(&l->v_bias) +
                   touch(&l->mlp.down_proj) + touch(&l->gate) + touch(&l->e_score_correction_bias);
    if (!l->is_moe) return sum;
    for (uint32_t j = 0; j < config->n_routed_experts; j++) sum += touch(&l->experts[j].down_proj);
    return sum + touch(&l->shared_experts.down_proj);
}

static volatile uint32_t sink; /* so that the reads are not optimised away */

/* Opens a checkpoint the way the library does, and closes it again. */
static uint32_t n_ran; /* cases that gave tokens */

static dsi_status try_case(const char *folder, dsi_error *error) {
    dsi_checkpoint checkpoint;
    dsi_config config;
    dsi_weights weights = {0};
    float inv_freq[512];
    dsi_status status = dsi_config_load(folder, &config, error);
    if (status) return status;
    status = dsi_checkpoint_open(folder, NULL, NULL, &checkpoint, error);
    if (status) {
        dsi_config_free(&config);
        return status;
    }
    status = dsi_weights_bind(&checkpoint, &config, &weights, error);
    if (!status) {
        sink += touch(&weights.embed_tokens) + touch(&weights.lm_head);
        for (uint32_t i = 0; i < config.n_layers; i++)
            sink += touch_layer(&weights.layers[i], &config);
        bool mla = config.arch->attention == DSI_ATTENTION_MLA;
        dsi_rope_inv_freq(&config, mla ? config.qk_rope_head_dim : config.head_dim, inv_freq);
        double scale = dsi_softmax_scale(&config) * dsi_rope_cos_sin_factor(&config);
        assert_true(scale > 0 && scale < 1e9);
    }
    dsi_weights_free(&weights);
    dsi_checkpoint_close(&checkpoint);
    dsi_config_free(&config);
    return status;
}

/* What opens must also run: a few tokens through the engine end in tokens or in an error, with
 * damaged numbers (NaN, huge rope factors) as well as with whole ones. */
static void run_forward(const char *folder) {
    dsi_model *model = NULL;
    dsi_engine *engine = NULL;
    dsi_session *session = NULL;
    dsi_engine_options options;
    int32_t tokens[9] = {1, 2, 3, 4, 5, 6, 7, 8, 9}, token = 0;
    dsi_engine_options_init(&options);
    options.n_threads = 1;
    options.kv_tokens = 0;
    dsi_status st = dsi_model_open(folder, NULL, &model);
    if (!st) st = dsi_engine_open(model, &options, &engine);
    if (!st) st = dsi_session_open(engine, NULL, &session);
    if (st) {
        assert_true(strlen(dsi_last_error(NULL)) > 10);
    } else {
        st = dsi_session_append(session, tokens, 9);
        for (int i = 0; !st && i < 4 && token >= 0; i++) st = dsi_session_next(session, &token);
        if (st) assert_true(strlen(dsi_last_error(session)) > 10);
        n_ran += !st;
    }
    dsi_session_close(session);
    dsi_engine_close(engine);
    dsi_model_close(model);
}

static void test_mutations(void **state) {
    (void)state;
    uint32_t n_opened = 0;
    double slowest = 0;
    for (int i = 0; i < N_MADE; i++) {
        temp_folder(made[i]);
        quantize_checkpoint("tests/data/golden/qwen2",
                            &integer_forms[i ? FORM_INT4_G32 : FORM_INT8_CHANNEL], made[i], 0,
                            NULL);
    }
    for (int i = 0; i < N_GOLDENS; i++) {
        configs[i] = read_file(goldens[i], "config.json");
        files[i] = read_file(goldens[i], "model.safetensors");
    }
    for (uint32_t k = 0; k < n_cases; k++) {
        char folder[64];
        dsi_error error = {0};
        make_case(first_case + k, folder);
        double start = dsi_sys_seconds();
        dsi_status status = try_case(folder, &error);
        double seconds = dsi_sys_seconds() - start;
        if (seconds > slowest) slowest = seconds;
        if (!status) run_forward(folder);
        if (!status) n_opened++;
        if (status && (status != error.status || strncmp(error.text, folder, strlen(folder)) != 0 ||
                       strlen(error.text) < strlen(folder) + 10))
            fail_msg("case %u: status %d, text \"%s\" does not begin with a file of %s",
                     first_case + k, status, error.text, folder);
        if (status) count_reason(error.text);
        remove_folder(folder);
    }
    print_reasons();
    printf("%u cases: %u opened, %u of them gave tokens, %u refused for %u distinct reasons; "
           "slowest %.3f s\n",
           n_cases, n_opened, n_ran, n_cases - n_opened, n_reasons, slowest);
    assert_true(slowest < 10);
    if (n_cases >= 400) assert_true(n_opened > 0 && n_reasons >= 40);
    for (int i = 0; i < N_GOLDENS; i++) {
        free(configs[i].data);
        free(files[i].data);
    }
    for (int i = 0; i < N_MADE; i++) remove_folder(made[i]);
}

int main(int argc, char **argv) {
    if (argc > 1) n_cases = (uint32_t)strtoul(argv[1], NULL, 10);
    if (argc > 2) first_case = (uint32_t)strtoul(argv[2], NULL, 10);
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_mutations)};
    return cmocka_run_group_tests_name("mutations", tests, NULL, NULL);
}
