/* test_gguf_mutations.c: damaged GGUF files. Each case is one of two files of llama.cpp's converter
 * with one to three changes: in a key's value, in what is said of a tensor, anywhere in the header,
 * in the numbers of the weights, or of the file's length. It must open, and then give tokens or an
 * error, or be refused with a text that names the file; nothing else.
 *
 *   test_gguf_mutations [CASES [FIRST]]   default 2,000 cases from number 0; a number always makes
 *                                         the same case, so a failing one is run again with
 *                                         "1 NUMBER" */
#include "../lib/base/sys.h"
#include "damage.h"
#include <deepseek/dsinfer.h>

static uint32_t n_cases = 2000, first_case, n_ran;

static const char *const sources[] = {"llama-f32.gguf", "v3-bf16-q8_0.gguf"};
enum { N_SOURCES = sizeof sources / sizeof *sources };
static bytes files[N_SOURCES];
static dsi_gguf headers[N_SOURCES]; /* of the whole files, for the places of their fields */
static size_t header_bytes[N_SOURCES];

/* ---- Changes -------------------------------------------------------------------------------- */

static const uint64_t numbers[] = {0,
                                   1,
                                   2,
                                   3,
                                   7,
                                   31,
                                   33,
                                   255,
                                   4096,
                                   65537,
                                   0x7fffffff,
                                   0x80000000,
                                   0xffffffff,
                                   UINT64_C(1) << 32,
                                   UINT64_C(1) << 61,
                                   UINT64_C(1) << 63,
                                   UINT64_MAX - 7,
                                   UINT64_MAX};

/* Another number of n bytes at `at`: an unlucky one, or one near the old. */
static void change_number(bytes *f, size_t at, size_t n) {
    uint64_t old = 0;
    if (at + n > f->n) return;
    for (size_t i = n; i-- > 0;) old = old << 8 | (uint8_t)f->data[at + i];
    const uint64_t near_by[] = {old + 1, old - 1, old * 2, old / 2, old + 32, old ^ 1};
    uint64_t value = below(2) ? ANY_OF(numbers) : ANY_OF(near_by);
    for (size_t i = 0; i < n; i++) f->data[at + i] = (char)(value >> (8 * i));
}

static void change_key(bytes *f, const bytes *source, const dsi_gguf *g) {
    const dsi_gguf_value *v = &g->values[below(g->n_values)];
    size_t key = (size_t)(v->key - source->data);
    size_t value = (size_t)((const char *)v->data - source->data);
    switch (below(5)) {
    case 0: /* another name */
        if (key < f->n) f->data[key + below(v->key_bytes)] ^= 1;
        break;
    case 1: /* another type */
        change_number(f, key + v->key_bytes, 4);
        break;
    case 2: /* a length, where there is one */
        if (v->type == DSI_GGUF_STRING || v->type == DSI_GGUF_ARRAY) change_number(f, value - 8, 8);
        break;
    default:
        change_number(f, value, v->type == DSI_GGUF_STRING ? 1 : 4);
        break;
    }
}

static void change_tensor(bytes *f, const bytes *source, const dsi_gguf *g) {
    const dsi_gguf_tensor *t = &g->tensors[below(g->n_tensors)];
    size_t name = (size_t)(t->name - source->data), at = name + t->name_bytes;
    switch (below(5)) {
    case 0:
        f->data[name + below(t->name_bytes)] ^= 1;
        break;
    case 1:
        change_number(f, at, 4); /* dimensions */
        break;
    case 2:
        change_number(f, at + 4 + 8 * below(t->n_dims), 8);
        break;
    case 3: /* type */
        f->data[at + 4 + 8 * t->n_dims] = (char)below(44);
        break;
    default:
        change_number(f, at + 8 + 8 * t->n_dims, 8); /* offset */
        break;
    }
}

static void change_anywhere(bytes *f, size_t n_header) {
    static const char more[] = "\0\0\0\0\0\0\0\0GGUF\xff\xff\xff\xff\xff\xff\xff\xff";
    size_t at = below(n_header < f->n ? n_header : f->n);
    switch (below(4)) {
    case 0:
        f->data[at] = (char)(f->data[at] ^ (1 << below(8)));
        break;
    case 1:
        change_number(f, at, below(2) ? 8 : 4);
        break;
    case 2:
        splice_text(f, at, 0, more, 1 + below(sizeof more - 1));
        break;
    default:
        splice_text(f, at, below(f->n - at < 40 ? f->n - at : 40), "", 0);
        break;
    }
}

/* A file as damage in transfer leaves it. */
static void change_rest(bytes *f, size_t n_header) {
    static const char more[64];
    size_t n = f->n > n_header ? f->n - n_header : 0;
    switch (below(3)) {
    case 0:
        f->n = below(f->n + 1);
        break;
    case 1:
        splice_text(f, f->n, 0, more, 1 + below(sizeof more));
        break;
    default:
        for (int i = 0; i < 64 && n > 0; i++) f->data[n_header + below(n)] = (char)next_random();
        break;
    }
}

static bytes make_case(uint32_t number) {
    seed_random(number);
    size_t k = below(N_SOURCES);
    bytes f = copy_of(files[k].data, files[k].n);
    for (size_t left = 1 + below(3); left > 0 && f.n > 32; left--) {
        switch (f.n == files[k].n ? below(8) : 6 + below(2)) { /* places have moved */
        case 0:
        case 1:
        case 2:
            change_key(&f, &files[k], &headers[k]);
            break;
        case 3:
        case 4:
        case 5:
            change_tensor(&f, &files[k], &headers[k]);
            break;
        case 6:
            change_anywhere(&f, header_bytes[k]);
            break;
        default:
            change_rest(&f, header_bytes[k]);
            break;
        }
    }
    return f;
}

/* ---- What becomes of them ------------------------------------------------------------------- */

/* A few tokens through the engine end in tokens or in an error. */
static void run_forward(dsi_model *model) {
    dsi_engine *engine = NULL;
    dsi_session *session = NULL;
    dsi_engine_options options;
    int32_t tokens[9] = {1, 2, 3, 4, 5, 6, 7, 8, 9}, token = 0;
    dsi_engine_options_init(&options);
    options.n_threads = 1;
    options.max_context = 64;
    dsi_status st = dsi_engine_open(model, &options, &engine);
    if (!st) st = dsi_session_open(engine, NULL, &session);
    if (st) {
        assert_true(strlen(dsi_last_error(NULL)) > 10);
    } else {
        st = dsi_session_append(session, tokens, 9);
        for (int i = 0; !st && i < 3 && token >= 0; i++) st = dsi_session_next(session, &token);
        if (st) assert_true(strlen(dsi_last_error(session)) > 10);
        n_ran += !st;
    }
    dsi_session_close(session);
    dsi_engine_close(engine);
}

static void test_mutations(void **state) {
    (void)state;
    uint32_t n_opened = 0;
    double slowest = 0;
    char folder[64], path[128];
    dsi_error error = {0};
    temp_folder(folder);
    snprintf(path, sizeof path, "%s/x.gguf", folder);
    for (int i = 0; i < N_SOURCES; i++) {
        files[i] = read_file("tests/data/gguf", sources[i]);
        dsi_map map = {(const uint8_t *)files[i].data, files[i].n};
        assert_ok(dsi_gguf_read(sources[i], &map, &headers[i], &error), &error);
        header_bytes[i] = (size_t)headers[i].tensors[0].file_offset;
    }
    for (uint32_t k = 0; k < n_cases; k++) {
        dsi_model *model = NULL;
        bytes f = make_case(first_case + k);
        write_file(folder, "x.gguf", f.data, f.n);
        free(f.data);
        double start = dsi_sys_seconds();
        dsi_status status = dsi_model_open(path, NULL, &model);
        double seconds = dsi_sys_seconds() - start;
        if (seconds > slowest) slowest = seconds;
        const char *text = dsi_last_error(NULL);
        if (status && (strncmp(text, path, strlen(path)) != 0 || strlen(text) < strlen(path) + 10))
            fail_msg("case %u: status %d, text \"%s\" does not begin with the file", first_case + k,
                     status, text);
        if (status) count_reason(text);
        if (!status) run_forward(model);
        n_opened += !status;
        dsi_model_close(model);
    }
    print_reasons();
    printf("%u cases: %u opened, %u of them gave tokens, %u refused for %u distinct reasons; "
           "slowest %.3f s\n",
           n_cases, n_opened, n_ran, n_cases - n_opened, n_reasons, slowest);
    assert_true(slowest < 10);
    if (n_cases >= 2000) assert_true(n_opened > 0 && n_ran > 0 && n_reasons >= 40);
    for (int i = 0; i < N_SOURCES; i++) {
        dsi_gguf_free(&headers[i]);
        free(files[i].data);
    }
    remove_folder(folder);
}

int main(int argc, char **argv) {
    if (argc > 1) n_cases = (uint32_t)strtoul(argv[1], NULL, 10);
    if (argc > 2) first_case = (uint32_t)strtoul(argv[2], NULL, 10);
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_mutations)};
    return cmocka_run_group_tests_name("gguf_mutations", tests, NULL, NULL);
}
