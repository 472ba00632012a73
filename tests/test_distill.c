/* test_distill.c: the dense families and DeepSeek-V2 through chat, end to end: golden weights, a
 * synthetic tokenizer of the family, its chat template. Text in, the prompt's tokens as the
 * reference gives them, the answer of a run token by token; the same from the command. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "../lib/base/json.h"
#include "../lib/internal.h"
#include "cli_run.h"
#include "model_files.h"

#define SYSTEM "Be brief."
#define QUESTION "Where is the street light?"
enum { N_ANSWER = 24, MAX_TOKENS = 512, MAX_TEXT = 4096 };

/* `prompt`: the ids that Hugging Face tokenizers gives the official prompt, up to a 0 (no token of
 * these prompts). */
static const struct family {
    const char *weights, *tokenizer, *template, *chat_template, *end;
    uint32_t first_part;
    int32_t prompt[64];
} families[] = {
    {"qwen2",
     "qwen2",
     "qwen2.5",
     "{{- '<|im_start|>system\\\\nYou are Qwen, created by Alibaba Cloud. You are a helpful "
     "assistant.<|im_end|>\\\\n' }}",
     "<|im_end|>",
     DSI_PART_ANSWER,
     {431, 82,  420, 198, 33, 68,  278, 81,  72,  68,  69,  13,  432, 198,
      431, 340, 198, 54,  71, 296, 220, 266, 290, 220, 285, 267, 68,  83,
      220, 75,  72,  70,  71, 83,  30,  432, 198, 431, 280, 310, 198}},
    {"qwen2",
     "r1-distill-qwen",
     "deepseek-r1-distill",
     "{% set ns.system_prompt = message['content'] "
     "%}{{'<｜User｜>'}}{{'<｜Assistant｜><think>\\\\n'}}",
     "<｜end▁of▁sentence｜>",
     DSI_PART_REASONING,
     {433, 33,  68,  278, 81, 72,  68, 69, 13, 431, 54, 71, 296, 220, 266, 290,
      220, 285, 267, 68,  83, 220, 75, 72, 70, 71,  83, 30, 432, 435, 198}},
    {"llama",
     "llama-3",
     "llama-3",
     "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'+ "
     "message['content'] | trim + '<|eot_id|>' }}",
     "<|eot_id|>",
     DSI_PART_ANSWER,
     {430, 436, 82,  420, 437, 198, 198, 33,  68,  278, 81,  72,  68,  69,  13, 439,
      436, 340, 437, 198, 198, 54,  71,  296, 220, 266, 290, 220, 285, 267, 68, 83,
      220, 75,  72,  70,  71,  83,  30,  439, 436, 280, 310, 437, 198, 198}},
    {"llama",
     "r1-distill-llama",
     "deepseek-r1-distill",
     "{% set ns.system_prompt = message['content'] "
     "%}{{'<｜User｜>'}}{{'<｜Assistant｜><think>\\\\n'}}",
     "<｜end▁of▁sentence｜>",
     DSI_PART_REASONING,
     {430, 33,  68,  278, 81, 72,  68, 69, 13, 441, 54, 71, 296, 220, 266, 290,
      220, 285, 267, 68,  83, 220, 75, 72, 70, 71,  83, 30, 442, 443, 198}},
    {"v2-lite",
     "deepseek-v2",
     "deepseek-v2",
     "{{ 'User: ' + message['content'] + '\\n\\n' }}{{ 'Assistant: ' + message['content'] + "
     "eos_token }}{{ 'Assistant:' }}",
     "<｜end▁of▁sentence｜>",
     DSI_PART_ANSWER,
     {430, 33,  68,  265, 81,  72, 68, 69,  13, 185, 185, 388, 25, 207, 54,  71,  283, 207,
      253, 277, 207, 272, 254, 68, 83, 207, 75, 72,  70,  71,  83, 30,  185, 185, 355, 25}},
};
enum { N_FAMILIES = sizeof families / sizeof *families };

static void make_folder(const struct family *f, char folder[64]) {
    char golden[128], tokenizer[128], config[1024];
    temp_folder(folder);
    snprintf(golden, sizeof golden, "tests/data/golden/%s", f->weights);
    snprintf(tokenizer, sizeof tokenizer, "tests/data/tokenizer/%s", f->tokenizer);
    snprintf(config, sizeof config, "{\"chat_template\": \"%s\"}", f->chat_template);
    link_file(golden, folder, "config.json");
    link_file(golden, folder, "model.safetensors");
    link_file(tokenizer, folder, "tokenizer.json");
    write_text(folder, "tokenizer_config.json", config);
}

static const dsi_message messages[2] = {
    {sizeof(dsi_message), DSI_ROLE_SYSTEM, SYSTEM, sizeof SYSTEM - 1},
    {sizeof(dsi_message), DSI_ROLE_USER, QUESTION, sizeof QUESTION - 1}};

typedef struct opened {
    dsi_model *model;
    dsi_engine *engine;
} opened;

static opened open_folder(const char *folder) {
    opened o = {NULL, NULL};
    dsi_engine_options options;
    dsi_engine_options_init(&options);
    options.n_threads = 1;
    if (dsi_model_open(folder, NULL, &o.model) != DSI_OK ||
        dsi_engine_open(o.model, &options, &o.engine) != DSI_OK)
        fail_msg("%s", dsi_last_error(NULL));
    return o;
}

static void close_opened(opened *o) {
    dsi_engine_close(o->engine);
    dsi_model_close(o->model);
}

static dsi_session *open_session(const opened *o) {
    dsi_session_options options;
    dsi_session *session = NULL;
    dsi_session_options_init(&options);
    options.max_tokens = N_ANSWER;
    assert_int_equal(dsi_session_open(o->engine, &options, &session), DSI_OK);
    return session;
}

/* ---- Token by token ----------------------------------------------------------------------------
 */

typedef struct id_list {
    int32_t id[MAX_TOKENS];
    size_t n;
} id_list;

static id_list greedy(const opened *o, const int32_t *prompt, size_t n_prompt) {
    id_list answer = {.n = 0};
    dsi_session *session = open_session(o);
    assert_int_equal(dsi_session_append(session, prompt, n_prompt), DSI_OK);
    for (int32_t token; answer.n < MAX_TOKENS;) {
        assert_int_equal(dsi_session_next(session, &token), DSI_OK);
        if (token < 0) break;
        answer.id[answer.n++] = token;
    }
    dsi_session_close(session);
    return answer;
}

/* ---- As text ------------------------------------------------------------------------------------
 */

typedef struct heard {
    char text[2][MAX_TEXT]; /* by part */
    size_t n[2];
} heard;

static int32_t hear(void *user, uint32_t part, const char *text, size_t n) {
    heard *h = user;
    assert_true(h->n[part] + n < MAX_TEXT);
    memcpy(h->text[part] + h->n[part], text, n);
    h->n[part] += n;
    return 0;
}

static dsi_generate_result generate(const opened *o, heard *h) {
    dsi_generate_result result = {.struct_size = sizeof result};
    dsi_session *session = open_session(o);
    memset(h, 0, sizeof *h);
    if (dsi_generate_chat(session, messages, 2, DSI_THINK_AUTO, hear, h, &result) != DSI_OK)
        fail_msg("%s", dsi_last_error(session));
    dsi_session_close(session);
    return result;
}

/* The line ends around a part belong to neither part: what is left is compared. */
static size_t strip(const char **text, size_t n) {
    while (n > 0 && **text == '\n') (*text)++, n--;
    while (n > 0 && (*text)[n - 1] == '\n') n--;
    return n;
}

static void check_answer(const opened *o, const struct family *f, const id_list *ids,
                         const heard *h) {
    char text[MAX_TEXT];
    size_t n = 0;
    assert_int_equal(dsi_detokenize(o->model, ids->id, ids->n, text, sizeof text, &n), DSI_OK);
    const char *want = text, *got = h->text[f->first_part];
    size_t n_want = strip(&want, n), n_got = strip(&got, h->n[f->first_part]);
    assert_true(n_got > 0);
    if (n_want != n_got || memcmp(want, got, n_got) != 0)
        fail_msg("%s: want %.*s, got %.*s", f->tokenizer, (int)n_want, want, (int)n_got, got);
    assert_int_equal(h->n[!f->first_part], 0);
}

static void check_command(const char *folder, const heard *h) {
    cli_call call = {.arguments = {"run", "-m", folder, "--system", SYSTEM, "--json", "-q",
                                   "--threads", "1", "--max-tokens", "24", QUESTION}};
    cli_result result = cli_exec(&call);
    dsi_json json;
    if (result.code != 0) fail_msg("exit %d: %s", result.code, result.err);
    assert_int_equal(dsi_json_parse(result.out, result.n_out, 1 << 16, &json, NULL), DSI_OK);
    assert_true(
        dsi_json_string_is(&json, dsi_json_get(&json, 0, "text"), h->text[DSI_PART_ANSWER]));
    assert_true(dsi_json_string_is(&json, dsi_json_get(&json, 0, "reasoning"),
                                   h->text[DSI_PART_REASONING]));
    dsi_json_free(&json);
    cli_result_free(&result);
}

static void test_chat(void **state) {
    (void)state;
    for (int i = 0; i < N_FAMILIES; i++) {
        const struct family *f = &families[i];
        char folder[64];
        int32_t tokens[MAX_TOKENS];
        size_t n_tokens = 0, n_prompt = 0;
        static heard h;
        make_folder(f, folder);
        opened o = open_folder(folder);
        dsi_model_info info = {.struct_size = sizeof info};
        assert_int_equal(dsi_model_get_info(o.model, &info), DSI_OK);
        assert_string_equal(info.chat_template, f->template);
        assert_int_equal(
            dsi_chat_tokens(o.model, messages, 2, DSI_THINK_AUTO, tokens, MAX_TOKENS, &n_tokens),
            DSI_OK);
        while (f->prompt[n_prompt]) n_prompt++;
        assert_int_equal(n_tokens, n_prompt);
        assert_memory_equal(tokens, f->prompt, n_prompt * sizeof *tokens);
        id_list ids = greedy(&o, tokens, n_tokens);
        dsi_generate_result result = generate(&o, &h);
        assert_int_equal(result.n_tokens_in, n_prompt);
        assert_int_equal(result.n_tokens_out, ids.n);
        check_answer(&o, f, &ids, &h);
        check_command(folder, &h);
        print_message("%s with %s: %zu tokens in, %zu out, as token by token\n", f->template,
                      f->tokenizer, n_tokens, ids.n);
        close_opened(&o);
        remove_folder(folder);
    }
}

/* ---- The end of an answer ----------------------------------------------------------------------
 */

/* What ends an answer in the template ends it, though the goldens' config.json does not list it. */
static void test_end_tokens(void **state) {
    (void)state;
    for (int i = 0; i < N_FAMILIES; i++) {
        char folder[64];
        make_folder(&families[i], folder);
        opened o = open_folder(folder);
        int32_t end = dsi_tokenizer_special(o.model->tokenizer, families[i].end);
        const dsi_config *c = &o.model->config;
        assert_true(end >= 0 && c->n_eos_tokens > 0);
        assert_int_equal(c->eos_tokens[c->n_eos_tokens - 1], end);
        close_opened(&o);
        remove_folder(folder);
    }
}

/* The answer's own third token is made the one that ends it: ids of two entries change places in
 * the tokenizer. */
static void swap_ids(const char *folder, const char *from_folder, int32_t a, int32_t b) {
    bytes file = read_file(from_folder, "tokenizer.json");
    char *out = malloc(file.n + 64), *to = out;
    assert_non_null(out);
    for (const char *p = file.data; *p;) {
        size_t n = strspn(p, "0123456789");
        bool number = n > 0 && p > file.data && p[-1] == ':'; /* "token":12 and "id":12 */
        long value = number ? strtol(p, NULL, 10) : -1;
        if (value == a || value == b) {
            to += sprintf(to, "%d", value == a ? b : a);
            p += n;
        } else {
            for (size_t k = n > 0 ? n : 1; k > 0; k--) *to++ = *p++;
        }
    }
    *to = '\0';
    write_text(folder, "tokenizer.json", out);
    free(out);
    free(file.data);
}

static void test_end_of_answer(void **state) {
    (void)state;
    int n_checked = 0;
    for (int i = 0; i < N_FAMILIES; i++) {
        const struct family *f = &families[i];
        if (strcmp(f->template, "deepseek-r1-distill") != 0) continue; /* the prompt has no end */
        char folder[64], from[128];
        size_t n_prompt = 0, at = 1;
        static heard h;
        make_folder(f, folder);
        opened o = open_folder(folder);
        while (f->prompt[n_prompt]) n_prompt++;
        id_list ids = greedy(&o, f->prompt, n_prompt);
        int32_t end = dsi_tokenizer_special(o.model->tokenizer, f->end);
        for (; at < ids.n; at++) { /* a token that is new there, and not in the prompt */
            bool fresh = !dsi_tokenizer_is_added(o.model->tokenizer, ids.id[at]);
            for (size_t k = 0; k < at; k++) fresh = fresh && ids.id[k] != ids.id[at];
            for (size_t k = 0; k < n_prompt; k++) fresh = fresh && f->prompt[k] != ids.id[at];
            if (fresh) break;
        }
        assert_true(at < ids.n);
        close_opened(&o);
        snprintf(from, sizeof from, "tests/data/tokenizer/%s", f->tokenizer);
        swap_ids(folder, from, ids.id[at], end);
        o = open_folder(folder);
        dsi_generate_result result = generate(&o, &h);
        assert_int_equal(result.n_tokens_out, at);
        assert_int_equal(result.finish_reason, DSI_FINISH_STOP);
        close_opened(&o);
        remove_folder(folder);
        n_checked++;
    }
    assert_int_equal(n_checked, 2);
}

/* ---- A template or tokenizer that is not known ------------------------------------------------
 */

static void check_refused(const char *folder, const char *part, const char *other) {
    opened o = open_folder(folder);
    size_t n = 0;
    assert_int_equal(dsi_chat_tokens(o.model, messages, 2, DSI_THINK_AUTO, NULL, 0, &n),
                     DSI_E_UNSUPPORTED);
    const char *said = dsi_last_error(NULL);
    if (!strstr(said, part) || !strstr(said, other)) fail_msg("%s", said);
    close_opened(&o);
    cli_call call = {.arguments = {"run", "-m", folder, QUESTION}};
    cli_result result = cli_exec(&call);
    assert_int_equal(result.code, 4);
    if (!strstr(result.err, part) || !strstr(result.err, other)) fail_msg("%s", result.err);
    cli_result_free(&result);
}

/* The folder opens; text calls and the command say what was seen and what is known. */
static void test_unknown(void **state) {
    (void)state;
    char folder[64];
    make_folder(&families[0], folder);
    write_text(folder, "tokenizer_config.json", "{\"chat_template\": \"{{ '<|im_start|>' }}\"}");
    check_refused(folder, "none of the chat templates fits",
                  "known are deepseek-v2, deepseek-v3, deepseek-v3.1, deepseek-r1, "
                  "deepseek-r1-distill, qwen1.5, qwen2, qwen2.5, llama-3 and llama-3.1");
    bytes file = read_file("tests/data/tokenizer/qwen2", "tokenizer.json");
    char *changed = replaced(file.data, "{\"Regex\":\"(?i:'s", "{\"Regex\":\"(?i:'S");
    write_text(folder, "tokenizer.json", changed);
    check_refused(folder, "the pattern of a pre_tokenizer step is (?i:'S|'t|",
                  "supported are the byte-level BPE tokenizers of DeepSeek-V3 and R1, DeepSeek-V2 "
                  "and LLM, Qwen2, Llama-3, and the R1 distills of the last two");
    free(changed);
    free(file.data);
    remove_folder(folder);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_chat),
        cmocka_unit_test(test_end_tokens),
        cmocka_unit_test(test_end_of_answer),
        cmocka_unit_test(test_unknown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
