/* test_bitflips.c: checkpoints whose structure is whole and whose numbers are damaged: flipped bits
 * in weights, scales, norms and gates, NaN, infinities, zeroed pages. No header can show that, so
 * such a model opens; it must give finite logits or DSI_E_NAN, and be refused where a manifest is
 * given.
 *
 *   test_bitflips [CASES [FIRST]]   default 120 cases from number 0, `make check-long` 1,200; a
 * number always makes the same case */
#include "cli_run.h"
#include "damage.h"
#include <deepseek/dsinfer.h>
#include <math.h>

static uint32_t n_cases = 120, first_case;

static const char *const goldens[] = {"tests/data/golden/v3-fp8", "tests/data/golden/v2-lite",
                                      "tests/data/golden/qwen2", "tests/data/golden/llama"};
enum { N_GOLDENS = sizeof goldens / sizeof *goldens };
static const char weights[] = "model.safetensors";
static dsi_checkpoint checkpoints[N_GOLDENS];
static bytes files[N_GOLDENS];
static char manifests[N_GOLDENS][128];

/* ---- Damage --------------------------------------------------------------------------------- */

/* A tensor, drawn by kind: scales and norms are few and small, and would hardly be hit. */
static const dsi_file_tensor *any_tensor(const dsi_checkpoint *c) {
    static const char *const kinds[] = {"",          "_proj.weight", "weight_scale_inv", "norm",
                                        "mlp.gate.", "embed_tokens", "lm_head",          "bias"};
    const char *kind = ANY_OF(kinds);
    const dsi_file_tensor *found = NULL;
    size_t n = 0;
    for (uint32_t i = 0; i < c->n_tensors; i++)
        if (strstr(c->tensors[i].name, kind) && below(++n) == 0) found = &c->tensors[i];
    return found ? found : &c->tensors[below(c->n_tensors)];
}

/* The largest numbers, infinities and NaN of the type, as the bytes of one element. */
static uint32_t odd_number(dsi_dtype dtype) {
    static const uint32_t f32[] = {0x7f800000, 0xff800000, 0x7fc00000, 0x7f7fffff, 0xff7fffff,
                                   0x00000001, 0x7f800001, 0x7e967699, 0x80000000, 0xffffffff};
    static const uint32_t e4m3[] = {0x7f, 0xff, 0x7e, 0xfe, 0x01, 0x80};
    uint32_t number = ANY_OF(f32);
    if (dtype == DSI_DTYPE_BF16) return number >> 16;
    if (dtype == DSI_DTYPE_E4M3) return ANY_OF(e4m3);
    return number;
}

static const char *const damages[] = {"one bit", "bits", "odd numbers", "zeroed page", "0xff run"};
enum { N_DAMAGES = sizeof damages / sizeof *damages };

static void damage_numbers(const dsi_file_tensor *t, uint8_t *data, size_t what) {
    uint32_t n_element = dsi_dtype_bytes(t->dtype);
    size_t n = what == 0 ? 1 : 1 + below(16), n_run = below(2) ? 4096 : 1 + below(64);
    size_t at = below(t->n_bytes);
    for (size_t i = 0; what <= 1 && i < n; i++) data[below(t->n_bytes)] ^= (uint8_t)(1 << below(8));
    for (size_t i = 0; what == 2 && i < n; i++) {
        uint32_t number = odd_number(t->dtype);
        memcpy(data + below(t->n_bytes / n_element) * n_element, &number, n_element);
    }
    for (size_t i = 0; what >= 3 && i < n_run && at + i < t->n_bytes; i++)
        data[at + i] = what == 3 ? 0 : 0xff;
}

/* Makes the damaged folder; returns the model's number. Never the file as it was. */
static size_t make_case(uint32_t number, char folder[64], const char **tensor, size_t *what) {
    seed_random(number);
    size_t model = number % N_GOLDENS;
    bytes file = copy_of(files[model].data, files[model].n);
    temp_folder(folder);
    link_file(goldens[model], folder, "config.json");
    do {
        const dsi_file_tensor *t = any_tensor(&checkpoints[model]);
        *tensor = t->name;
        *what = below(N_DAMAGES);
        damage_numbers(t, (uint8_t *)file.data + t->file_offset, *what);
    } while (memcmp(file.data, files[model].data, file.n) == 0);
    write_file(folder, weights, file.data, file.n);
    free(file.data);
    return model;
}

/* ---- What becomes of it --------------------------------------------------------------------- */

static void assert_finite(dsi_session *session, uint32_t number) {
    const float *logits = NULL;
    size_t n_rows = 0;
    assert_int_equal(dsi_session_logits(session, &logits, &n_rows, NULL), DSI_OK);
    assert_true(n_rows >= 1);
    for (size_t i = 0; i < n_rows * 512; i++)
        if (!isfinite(logits[i]))
            fail_msg("case %u: logit %zu is %g", number, i, (double)logits[i]);
}

static dsi_status answer(const char *folder, uint32_t number) {
    static const int32_t prompt[] = {1, 2, 3, 44, 155, 206, 7, 318, 509};
    dsi_model *model = NULL;
    dsi_engine *engine = NULL;
    dsi_session *session = NULL;
    dsi_engine_options options;
    dsi_session_options all;
    dsi_engine_options_init(&options);
    dsi_session_options_init(&all);
    options.n_threads = 1;
    options.activations = number / N_GOLDENS % 2;
    all.all_logits = 1;
    all.ignore_end = 1;
    if (dsi_model_open(folder, NULL, &model)) fail_msg("case %u: %s", number, dsi_last_error(NULL));
    if (dsi_engine_open(model, &options, &engine))
        fail_msg("case %u: %s", number, dsi_last_error(NULL));
    assert_int_equal(dsi_session_open(engine, &all, &session), DSI_OK);
    dsi_status status = dsi_session_append(session, prompt, sizeof prompt / sizeof *prompt);
    for (int i = 0; !status && i < 5; i++) {
        int32_t token = -1;
        status = dsi_session_next(session, &token);
        if (status) break;
        assert_true(token >= 0 && token < 512);
        assert_finite(session, number);
    }
    if (status && (status != DSI_E_NAN || strlen(dsi_last_error(session)) < 10))
        fail_msg("case %u: status %d, \"%s\"", number, status, dsi_last_error(session));
    dsi_session_close(session);
    dsi_engine_close(engine);
    dsi_model_close(model);
    return status;
}

static int manifest_says(const char *folder, const char *manifest) {
    cli_call call = {.arguments = {"verify", "-m", folder, "--manifest", manifest}};
    cli_result result = cli_exec(&call);
    int code = result.code;
    bool named = strstr(result.err, weights) != NULL;
    cli_result_free(&result);
    return code == 1 && !named ? -1 : code;
}

static void numbers(void **state) {
    (void)state;
    char folder[64];
    uint32_t n_finite = 0, n_nan = 0;
    for (uint32_t k = first_case; k < first_case + n_cases; k++) {
        const char *tensor;
        size_t what;
        size_t model = make_case(k, folder, &tensor, &what);
        dsi_status status = answer(folder, k);
        n_finite += !status;
        n_nan += status != 0;
        int code = manifest_says(folder, manifests[model]);
        if (code != 1)
            fail_msg("case %u (%s in %s of %s): dsinfer verify --manifest ended with %d", k,
                     damages[what], tensor, goldens[model], code);
        remove_folder(folder);
    }
    printf("%u files with damaged numbers: %u finite, %u DSI_E_NAN; all %u refused by manifest\n",
           n_cases, n_finite, n_nan, n_cases);
    if (n_cases >= 120) assert_true(n_finite > 0 && n_nan > 0);
}

static void whole_ones_pass(void **state) {
    (void)state;
    for (size_t i = 0; i < N_GOLDENS; i++) {
        assert_int_equal(answer(goldens[i], (uint32_t)i), DSI_OK);
        assert_int_equal(manifest_says(goldens[i], manifests[i]), 0);
    }
}

static char list_folder[64];
static int set_up(void **state) {
    (void)state;
    temp_folder(list_folder);
    for (size_t i = 0; i < N_GOLDENS; i++) {
        char path[512];
        dsi_error error;
        files[i] = read_file(goldens[i], weights);
        snprintf(path, sizeof path, "%s/%s", goldens[i], weights);
        assert_ok(dsi_checkpoint_open_file(path, &checkpoints[i], &error), &error);
        snprintf(manifests[i], sizeof manifests[i], "%s/%zu", list_folder, i);
        cli_call call = {
            .arguments = {"verify", "-m", goldens[i], "--write-manifest", manifests[i], "-q"}};
        cli_result result = cli_exec(&call);
        assert_int_equal(result.code, 0);
        cli_result_free(&result);
    }
    return 0;
}
static int tear_down(void **state) {
    (void)state;
    for (size_t i = 0; i < N_GOLDENS; i++) {
        free(files[i].data);
        dsi_checkpoint_close(&checkpoints[i]);
    }
    remove_folder(list_folder);
    return 0;
}

int main(int argc, char **argv) {
    if (argc > 1) n_cases = (uint32_t)strtoul(argv[1], NULL, 10);
    if (argc > 2) first_case = (uint32_t)strtoul(argv[2], NULL, 10);
    const struct CMUnitTest tests[] = {cmocka_unit_test(whole_ones_pass),
                                       cmocka_unit_test(numbers)};
    return cmocka_run_group_tests_name("bitflips", tests, set_up, tear_down);
}
