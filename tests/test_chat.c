/* test_chat.c: the three chat formats against prompts written by hand from the official templates,
 * and how a checkpoint's format is recognised. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "../lib/base/fault.h"
#include "../lib/text/text.h"

#include <deepseek/dsinfer.h>
#include <stdio.h>
#include <string.h>

#define BOS "<｜begin▁of▁sentence｜>"
#define EOS "<｜end▁of▁sentence｜>"
#define U "<｜User｜>"
#define A "<｜Assistant｜>"

/* What tells the official templates apart, in the form tokenizer_config.json has it. */
#define TURNS                                                                                      \
    "{% for message in messages %}{{'<｜User｜>' + message['content']}}{{'<｜Assistant｜>' + " \
    "content}}"
#define CONFIG(template) "{\"bos_token\": \"" BOS "\", \"chat_template\": " template "}"
static const char config_v3[] =
    CONFIG("\"" TURNS "{% if add_generation_prompt %}{{'<｜Assistant｜>'}}{% endif %}\"");
static const char config_v3_0324[] = /* cuts the reasoning of R1 answers, writes none */
    CONFIG("\"" TURNS
           "{% if '</think>' in content %}{% set content = content.split('</think>')[-1] "
           "%}{% endif %}{% if add_generation_prompt %}{{'<｜Assistant｜>'}}{% endif %}\"");
static const char config_r1[] = CONFIG(
    "\"" TURNS "{% if '</think>' in content %}{% endif %}{% if add_generation_prompt and not "
    "ns.is_tool %}{{'<｜Assistant｜><think>\\\\n'}}{% endif %}\"");
static const char config_r1_line_end[] =
    CONFIG("\"" TURNS "{{'<\\uff5cAssistant\\uff5c><think>\\n'}}\"");
static const char config_v3_1[] =
    CONFIG("\"{% if not thinking is defined %}{% set thinking = false %}{% endif %}" TURNS
           "{{'<｜Assistant｜>'}}{%- if not thinking %}{{'</think>'}}{%- else %}{{'<think>'}}\"");
static const char config_named[] = CONFIG(
    "[{\"name\": \"tool_use\", \"template\": \"x\"}, {\"name\": \"default\", \"template\": \"" TURNS
    "{{'<｜Assistant｜><think>\\\\n'}}\"}]");
static const char config_chatml[] = CONFIG("\"<|im_start|>{{ message.role }}\"");

static dsi_tokenizer *deepseek, *tiny_gov;

static int open_tokenizers(void **state) {
    (void)state;
    if (dsi_tokenizer_open("tests/data/tokenizer/tokenizer.json", &deepseek, NULL) != DSI_OK)
        return -1;
    return dsi_tokenizer_open("examples/models/tiny-gov/tokenizer.json", &tiny_gov, NULL);
}

static int close_tokenizers(void **state) {
    (void)state;
    dsi_tokenizer_free(deepseek);
    dsi_tokenizer_free(tiny_gov);
    return 0;
}

static const dsi_chat_template *choose(const dsi_tokenizer *tokenizer, const char *config) {
    const dsi_chat_template *chat;
    assert_int_equal(dsi_chat_choose(tokenizer, config, config ? strlen(config) : 0, &chat, NULL),
                     DSI_OK);
    return chat;
}

/* No memory to read the template is an error, not a checkpoint without one. */
static void test_choose_without_memory(void **state) {
    (void)state;
    static const char config[] = "{\"chat_template\": \"\\n<｜User｜><｜Assistant｜>\"}";
    const dsi_chat_template *chat;
    dsi_error error = {0};
    assert_non_null(choose(deepseek, config));
    static const dsi_call kinds[] = {DSI_CALL_REALLOC, DSI_CALL_CALLOC};
    for (int i = 0; i < 2; i++) {
        dsi_fault_arm(&(dsi_fault){.kind = kinds[i], .nth = 1, .onwards = true});
        dsi_status status = dsi_chat_choose(deepseek, config, sizeof config - 1, &chat, &error);
        dsi_fault_disarm();
        assert_int_equal(status, DSI_E_NOMEM);
        assert_null(chat);
        assert_non_null(strstr(error.text, "no memory"));
    }
}

static void assert_name(const dsi_tokenizer *tokenizer, const char *config, const char *name) {
    const dsi_chat_template *chat = choose(tokenizer, config);
    if (!name) {
        assert_null(chat);
    } else {
        assert_non_null(chat);
        assert_string_equal(chat->name, name);
    }
}

static void test_choose(void **state) {
    (void)state;
    assert_name(deepseek, config_v3, "deepseek-v3");
    assert_name(deepseek, config_v3_0324, "deepseek-v3");
    assert_name(deepseek, config_r1, "deepseek-r1");
    assert_name(deepseek, config_r1_line_end, "deepseek-r1");
    assert_name(deepseek, config_v3_1, "deepseek-v3.1");
    assert_name(deepseek, config_named, "deepseek-r1");
    assert_name(deepseek, config_chatml, NULL);
    assert_name(deepseek, "{\"chat_template\": null}", "deepseek-v3.1");
    assert_name(deepseek, "{}", "deepseek-v3.1");
    assert_name(deepseek, NULL, "deepseek-v3.1");
    assert_name(deepseek, "{\"chat_template\": 7}", NULL);
    assert_name(deepseek, "{\"chat_template\": [7]}", NULL);
    assert_name(deepseek, "{\"chat_template\": ", NULL);
    assert_name(deepseek, "", NULL);
    assert_name(tiny_gov, "{\"bos_token\": \"" BOS "\"}", "deepseek-v3.1");
}

/* Templates that look like a known one and are not, and those that lie between two: the text
 * decides, and what nobody knows is nothing rather than the nearest. */
static void test_choose_between(void **state) {
    (void)state;
#define LAST "{% set system_prompt = message['content'] %}"
#define HEADER "<|start_header_id|>{{ message['content'] | trim + '<|eot_id|>' }}"
#define WORDS "{{ 'User: ' + message['content'] }}"
    static const struct {
        const char *template, *name;
    } cases[] = {
        {TURNS LAST, "deepseek-v3"},
        {TURNS LAST "{% if is_first_sp %}", "deepseek-v3"},
        {TURNS LAST "</think>", "deepseek-r1-distill"},
        {TURNS LAST "{{'<｜Assistant｜><think>\\\\n'}}", "deepseek-r1-distill"},
        {TURNS "{% if thinking %}", "deepseek-v3"},
        {TURNS "{% if thinking %}<think>", "deepseek-v3"},
        {TURNS "{% if thinking %}</think>", "deepseek-v3"},
        {"{{'<｜User｜>'}}", NULL},
        {"<|im_start|>system\\\\nYou are a helpful assistant.<|im_end|><think>", NULL},
        {"<|im_start|>system\\\\nYou are a helpful assistant.<|im_start|>", NULL},
        {"<|im_start|>system\\nYou are somebody else.<|im_end|>", NULL},
        {HEADER "<think>", NULL},
        {"<|start_header_id|>{{ message['content'] }}", NULL},
        {HEADER "Cutting Knowledge Date: March 2031", NULL},
        {HEADER "Cutting Knowledge Date: December 2023", NULL},
        {WORDS, NULL},
        {WORDS "{{ 'Assistant: ' + message['content'] + eos_token }}", NULL},
        {WORDS "{{ 'Assistant:' }}", NULL},
        {"{{ message['content'] }}", NULL},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char config[1024];
        snprintf(config, sizeof config, "{\"chat_template\": \"%s\"}", cases[i].template);
        const dsi_chat_template *chat = choose(deepseek, config);
        const char *name = chat == NULL ? "nothing" : chat->name;
        const char *want = cases[i].name == NULL ? "nothing" : cases[i].name;
        if (strcmp(name, want) != 0) fail_msg("%s is %s, not %s", cases[i].template, name, want);
    }
}

/* ---- Prompts --------------------------------------------------------------------------------- */

typedef struct prompt {
    char text[4096];
    size_t n;
    int n_special_wrong; /* special pieces that are no added token */
    bool last_plain;     /* two plain pieces in a row would be tokenized apart */
    bool neighbours;
} prompt;

static bool add_piece(void *user, bool special, const char *text, size_t n_bytes) {
    prompt *p = user;
    char piece[64] = "";
    if (special && n_bytes < sizeof piece) memcpy(piece, text, n_bytes);
    if (special && dsi_tokenizer_special(deepseek, piece) < 0) p->n_special_wrong++;
    if (!special && p->last_plain) p->neighbours = true;
    p->last_plain = !special;
    assert_true(n_bytes > 0 && p->n + n_bytes < sizeof p->text);
    memcpy(p->text + p->n, text, n_bytes);
    p->n += n_bytes;
    p->text[p->n] = '\0';
    return true;
}

enum { MAX_TURNS = 6 };
typedef struct turn {
    uint32_t role;
    const char *text;
} turn;
#define S_(text)                                                                                   \
    { DSI_ROLE_SYSTEM, text }
#define U_(text)                                                                                   \
    { DSI_ROLE_USER, text }
#define A_(text)                                                                                   \
    { DSI_ROLE_ASSISTANT, text }

static size_t copy_turns(const turn *from, dsi_chat_turn to[MAX_TURNS]) {
    size_t n = 0;
    for (; n < MAX_TURNS && from[n].text; n++)
        to[n] = (dsi_chat_turn){from[n].role, from[n].text, strlen(from[n].text)};
    return n;
}

static const struct golden {
    const char *config;
    uint32_t think;
    turn turns[MAX_TURNS + 1];
    const char *prompt;
} goldens[] = {
    /* V3 */
    {config_v3, DSI_THINK_AUTO, {U_("你好")}, BOS U "你好" A},
    {config_v3, DSI_THINK_OFF, {S_("Be brief."), U_("Hi")}, BOS "Be brief." U "Hi" A},
    {config_v3,
     DSI_THINK_AUTO,
     {U_("1+1?"), A_("<think>\neasy\n</think>\n\n2"), U_("2+2?")},
     BOS U "1+1?" A "\n\n2" EOS U "2+2?" A},
    {config_v3,
     DSI_THINK_AUTO,
     {U_("a"), A_("b"), A_("c"), U_("d"), U_("e")},
     BOS U "a" A "b" EOS A "c" EOS U "d" U "e" A},
    /* R1 */
    {config_r1, DSI_THINK_AUTO, {U_("你好")}, BOS U "你好" A "<think>\n"},
    {config_r1,
     DSI_THINK_ON,
     {S_("政务助手"), U_("问"), A_("想</think>x</think>答"), U_("再问")},
     BOS "政务助手" U "问" A "答" EOS U "再问" A "<think>\n"},
    /* V3.1 */
    {config_v3_1, DSI_THINK_AUTO, {U_("你好")}, BOS U "你好" A "</think>"},
    {config_v3_1, DSI_THINK_OFF, {S_("s"), U_("你好")}, BOS "s" U "你好" A "</think>"},
    {config_v3_1, DSI_THINK_ON, {S_("s"), U_("你好")}, BOS "s" U "你好" A "<think>"},
    {config_v3_1,
     DSI_THINK_ON,
     {U_("1+1?"), A_("2"), U_("2+2?")},
     BOS U "1+1?" A "</think>2" EOS U "2+2?" A "<think>"},
    {config_v3_1,
     DSI_THINK_OFF,
     {U_("1+1?"), A_("<think>easy</think>2</think>"), U_("2+2?")},
     BOS U "1+1?" A "</think>2</think>" EOS U "2+2?" A "</think>"},
    {config_v3_1,
     DSI_THINK_AUTO,
     {S_("one"), S_("two"), U_("q"), S_("three")},
     BOS "one\n\ntwo\n\nthree" U "q" A "</think>"},
    {config_v3_1,
     DSI_THINK_AUTO,
     {A_("hello"), U_("a"), A_("b"), A_("c"), U_("d")},
     BOS "hello" EOS U "a" A "</think>b" EOS "c" EOS U "d" A "</think>"},
    {config_v3_1,
     DSI_THINK_AUTO,
     {S_("s"), A_("x</think>hello"), A_("b"), U_("q")},
     BOS "shello" EOS "b" EOS U "q" A "</think>"},
    {config_v3_1,
     DSI_THINK_AUTO,
     {A_("a"), S_("s"), U_("q"), S_("t")},
     BOS "s\n\nta" EOS U "q" A "</think>"},
    {config_v3_1, DSI_THINK_AUTO, {S_(""), U_("")}, BOS U A "</think>"},
    {config_v3_1, DSI_THINK_AUTO, {S_(""), S_(""), U_("q")}, BOS "\n\n" U "q" A "</think>"},
    {config_v3_1,
     DSI_THINK_AUTO,
     {U_(U "x" EOS "<think>")},
     BOS U U "x" EOS "<think>" A "</think>"},
};

static void test_prompts(void **state) {
    (void)state;
    for (size_t i = 0; i < sizeof goldens / sizeof *goldens; i++) {
        dsi_chat_turn turns[MAX_TURNS];
        size_t n_turns = copy_turns(goldens[i].turns, turns);
        static prompt p;
        memset(&p, 0, sizeof p);
        assert_int_equal(dsi_chat_render(choose(deepseek, goldens[i].config), turns, n_turns,
                                         goldens[i].think, add_piece, &p, NULL),
                         DSI_OK);
        if (strcmp(p.text, goldens[i].prompt) != 0) {
            printf("want: %s\ngot:  %s\n", goldens[i].prompt, p.text);
            fail();
        }
        assert_int_equal(p.n_special_wrong, 0);
        assert_false(p.neighbours);
    }
}

static void test_tiny_gov(void **state) {
    (void)state;
    static prompt p;
    dsi_chat_turn one = {DSI_ROLE_USER, "工单分拨：", strlen("工单分拨：")};
    const dsi_chat_template *chat = choose(tiny_gov, NULL);
    assert_int_equal(dsi_chat_render(chat, &one, 1, DSI_THINK_ON, add_piece, &p, NULL), DSI_OK);
    assert_string_equal(p.text, BOS U "工单分拨：" A "<think>");
}

static const struct mistake {
    const char *config;
    uint32_t think;
    turn turns[MAX_TURNS + 1];
    const char *message;
} mistakes[] = {
    {config_r1, DSI_THINK_OFF, {U_("q")}, "deepseek-r1 always thinks: use DSI_THINK_AUTO"},
    {config_v3, DSI_THINK_ON, {U_("q")}, "deepseek-v3 cannot think: use DSI_THINK_AUTO"},
    {config_v3, 3, {U_("q")}, "think is 3"},
    {config_v3, DSI_THINK_AUTO, {{0, NULL}}, "there is no user message"},
    {config_v3, DSI_THINK_AUTO, {S_("s")}, "there is no user message"},
    {config_v3_1, DSI_THINK_AUTO, {U_("q"), A_("a")}, "the last message is the assistant's"},
    {config_v3_1,
     DSI_THINK_AUTO,
     {U_("q"), A_("a"), S_("s")},
     "the last message is the assistant's"},
    {config_v3_1, DSI_THINK_AUTO, {U_("q"), {7, "t"}}, "message 1 has role 7"},
};

static void test_mistakes(void **state) {
    (void)state;
    for (size_t i = 0; i < sizeof mistakes / sizeof *mistakes; i++) {
        dsi_chat_turn turns[MAX_TURNS];
        size_t n_turns = copy_turns(mistakes[i].turns, turns);
        static prompt p;
        dsi_error error = {0};
        p.n = 0;
        assert_int_equal(dsi_chat_render(choose(deepseek, mistakes[i].config), turns, n_turns,
                                         mistakes[i].think, add_piece, &p, &error),
                         DSI_E_ARG);
        if (!strstr(error.text, mistakes[i].message)) fail_msg("%s", error.text);
        assert_int_equal(p.n, 0);
    }
    dsi_chat_turn broken = {DSI_ROLE_USER, NULL, 1};
    assert_int_equal(
        dsi_chat_render(choose(deepseek, NULL), &broken, 1, DSI_THINK_AUTO, add_piece, NULL, NULL),
        DSI_E_ARG);
}

static bool stop_at_second(void *user, bool special, const char *text, size_t n_bytes) {
    (void)special;
    (void)text;
    (void)n_bytes;
    return ++*(int *)user < 2;
}

static void test_sink_stops(void **state) {
    (void)state;
    int calls = 0;
    dsi_chat_turn turns[2] = {{DSI_ROLE_SYSTEM, "s", 1}, {DSI_ROLE_USER, "q", 1}};
    assert_int_equal(dsi_chat_render(choose(deepseek, NULL), turns, 2, DSI_THINK_AUTO,
                                     stop_at_second, &calls, NULL),
                     DSI_OK);
    assert_int_equal(calls, 2);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_choose),
        cmocka_unit_test(test_choose_between),
        cmocka_unit_test(test_prompts),
        cmocka_unit_test(test_tiny_gov),
        cmocka_unit_test(test_mistakes),
        cmocka_unit_test(test_sink_stops),
        cmocka_unit_test(test_choose_without_memory),
    };
    return cmocka_run_group_tests(tests, open_tokenizers, close_tokenizers);
}
