/* test_cli_chat.c: dsinfer chat on a pipe: turns, commands, files of conversations. */
#include "chat_files.h"

/* Runs chat on a pipe with input made by a format. */
static cli_result chat(int code, const char *const *options, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
static cli_result chat(int code, const char *const *options, const char *format, ...) {
    static char input[1 << 16];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(input, sizeof input, format, arguments);
    va_end(arguments);
    cli_call call = {.arguments = {"chat", "-m", TINY}, .input = input};
    for (size_t i = 0; options != NULL && options[i] != NULL; i++) {
        call.arguments[3 + i] = options[i];
    }
    cli_result result = cli_exec(&call);
    if (result.code != code) {
        fail_msg("exit %d, expected %d\ninput: %s\nstdout: %.800s\nstderr: %s", result.code, code,
                 input, result.out, result.err);
    }
    return result;
}
#define OPTIONS(...) ((const char *const[]){__VA_ARGS__, NULL})

/* ---- Turns on a pipe ------------------------------------------------------------------------- */

static void turns_go_on(void **state) {
    (void)state;
    cli_result plain = chat(0, NULL, TICKET "\n\n  \n" TICKET);
    cli_result json = chat(0, OPTIONS("--json", "--quiet"), TICKET "\n" TICKET "\n");
    assert_int_equal(json.n_err, 0);
    const char *line = json.out, *shown = plain.out;
    double kept[2] = {0}, in[2] = {0};
    for (int turn = 0; turn < 2; turn++) {
        size_t n = strcspn(line, "\n");
        dsi_json object = parse(line, n);
        assert_true(number(&object, 0, "schema") == 1);
        assert_true(number(&object, 0, "turn") == turn + 1);
        uint64_t n_text = 0;
        char *text = dsi_json_string(&object, dsi_json_get(&object, 0, "text"), &n_text);
        assert_int_equal(strncmp(shown, text, n_text), 0); /* the pipe gets the same texts */
        assert_int_equal(shown[n_text], '\n');
        shown += n_text + 1;
        kept[turn] = number(&object, 0, "tokens_kept");
        in[turn] = number(&object, 0, "tokens_in");
        assert_true(number(&object, 0, "context_limit") == 2048);
        assert_true(number(&object, 0, "context_tokens") >
                    in[turn] + number(&object, 0, "tokens_out") - 2);
        assert_true(dsi_json_string_is(&object, dsi_json_get(&object, 0, "finish_reason"), "stop"));
        dsi_sys_free(text);
        dsi_json_free(&object);
        line += n + 1;
    }
    assert_int_equal(*line, 0);
    assert_int_equal(*shown, 0);
    assert_true(kept[0] == 0 && kept[1] > in[0] && kept[1] < in[1]); /* only what is new */
    assert_null(strstr(plain.out, "\033"));
    assert_null(strstr(plain.err, "tok/s")); /* figures are for terminals */
    cli_result_free(&plain);
    cli_result_free(&json);
}

static void texts_have_lines(void **state) {
    (void)state;
    cli_result result = chat(0, OPTIONS("--max-tokens", "1"),
                             "一\\\n二\n\"\"\"\n  三\n\n/四\\\n\"\"\"\n\"\"\"五\n六\"\"\"\n//七\n"
                             "八\\\\\n/save %s\n",
                             at("lines.json"));
    static const char *const wanted[] = {"一\n二", "  三\n\n/四\\", "五\n六", "/七", "八\\\\"};
    for (uint32_t i = 0; i < 5; i++) saved_is("lines.json", 2 * i, "user", wanted[i]);
    cli_result_free(&result);
    /* With --no-commands nothing in a line means anything. */
    result = chat(0, OPTIONS("--no-commands", "--json", "--max-tokens", "1"),
                  "/save %s\n\"\"\"\n一\\\n", at("never.json"));
    size_t n_lines = 0;
    for (const char *c = result.out; *c != 0; c++) n_lines += *c == '\n';
    assert_int_equal(n_lines, 3);
    assert_int_not_equal(access(at("never.json"), F_OK), 0);
    cli_result_free(&result);
}

static void commands_work(void **state) {
    (void)state;
    cli_result result =
        chat(0, OPTIONS("--system", "先前"),
             "/system\n/system  新的 系统\n" TICKET "\n/save %s\n/clear\n/save %s\n/system -\n"
             "/save %s\n/stats\n/help\n/think off\n/quit\n" TICKET "\n",
             at("one.json"), at("two.json"), at("three.json"));
    assert_non_null(strstr(result.err, "\n先前\n"));
    saved_is("one.json", 0, "system", "新的 系统");
    saved_is("one.json", 1, "user", TICKET);
    saved_is("two.json", 0, "system", "新的 系统");
    size_t n = 0;
    char *text = read_file("two.json", &n);
    assert_null(strstr(text, "\"user\""));
    free(text);
    text = read_file("three.json", &n);
    assert_non_null(strstr(text, "\"messages\": [\n ]"));
    free(text);
    assert_non_null(strstr(result.err, "1 answers, 0 messages; context "));
    assert_non_null(strstr(result.err, "  /load FILE "));
    size_t n_answers = 0; /* /clear forgets the question, /quit ends it */
    for (const char *c = result.out; *c != 0; c++) n_answers += *c == '\n';
    assert_int_equal(n_answers, 1);
    cli_result_free(&result);
    result = chat(0, OPTIONS("--json"), TICKET "\n/retry\n/stats\n");
    const char *second = strchr(result.out, '\n') + 1, *third = strchr(second, '\n') + 1;
    dsi_json first_answer = parse(result.out, (size_t)(second - result.out - 1));
    dsi_json second_answer = parse(second, (size_t)(third - second - 1));
    char *a = dsi_json_string(&first_answer, dsi_json_get(&first_answer, 0, "text"), NULL);
    char *b = dsi_json_string(&second_answer, dsi_json_get(&second_answer, 0, "text"), NULL);
    assert_string_equal(a, b);
    dsi_json stats = parse(third, strlen(third));
    uint32_t node = dsi_json_get(&stats, 0, "stats");
    assert_true(number(&stats, node, "turns") == 2 && number(&stats, node, "messages") == 2);
    dsi_sys_free(a);
    dsi_sys_free(b);
    dsi_json_free(&first_answer);
    dsi_json_free(&second_answer);
    dsi_json_free(&stats);
    cli_result_free(&result);
    /* Above temperature 0 another seed is drawn, so the answer may change. */
    result = chat(0, OPTIONS("--temperature", "3", "--max-tokens", "12"),
                  TICKET "\n/retry\n/temperature 0\n/retry\n");
    a = result.out;
    n = strcspn(a, "\n");
    assert_true(strncmp(a, a + n + 1, n + 1) != 0);
    cli_result_free(&result);
}

/* ---- Files ----------------------------------------------------------------------------------- */

static void saved_talk_goes_on(void **state) {
    (void)state;
    const char *const *options = OPTIONS("--top-p", "0.7", "--seed", "5", "--stop", "。。",
                                         "--repetition-penalty", "1.1", "--max-tokens", "60");
    cli_result whole = chat(0, options, TICKET "\n你能做什么？\n/save %s\n", at("whole.json"));
    cli_result first =
        chat(0, options, TICKET "\n/save %s\n/save %s\n", at("first.json"), at("first.json"));
    cli_result second =
        chat(0, NULL, "/load %s\n你能做什么？\n/save %s\n", at("first.json"), at("second.json"));
    size_t n_whole = 0, n_second = 0, n_entries = 0;
    char *a = read_file("whole.json", &n_whole), *b = read_file("second.json", &n_second);
    assert_string_equal(a, b); /* settings and messages, to the byte */
    assert_int_equal(strncmp(whole.out, first.out, first.n_out), 0);
    assert_string_equal(whole.out + first.n_out, second.out);
    struct stat facts;
    assert_int_equal(stat(at("first.json"), &facts), 0);
    assert_int_equal(facts.st_mode & 0777, 0600);
    DIR *dir = opendir(folder); /* nothing is left beside the files */
    assert_non_null(dir);
    for (struct dirent *entry; (entry = readdir(dir)) != NULL;) {
        if (entry->d_name[0] == '.') continue;
        size_t n = strlen(entry->d_name);
        if (n < 5 || strcmp(entry->d_name + n - 5, ".json") != 0) fail_msg("%s", entry->d_name);
        n_entries++;
    }
    closedir(dir);
    assert_true(n_entries >= 3);
    free(a);
    free(b);
    cli_result_free(&whole);
    cli_result_free(&first);
    cli_result_free(&second);
}

/* A full disk leaves the file that was there. */
static void failed_save_changes_nothing(void **state) {
    (void)state;
    cli_result result = chat(0, NULL, "/system 短\n/save %s\n", at("old.json"));
    cli_result_free(&result);
    size_t n_before = 0, n_after = 0;
    char *before = read_file("old.json", &n_before), input[2048];
    int n = snprintf(input, sizeof input, "/system ");
    memset(input + n, 'w', 1200);
    snprintf(input + n + 1200, sizeof input - 1208, "\n/save %s\n", at("old.json"));
    cli_call call = {.arguments = {"chat", "-m", TINY}, .input = input, .file_bytes = 600};
    result = cli_exec(&call);
    assert_int_equal(result.code, 3);
    assert_non_null(strstr(result.err, "File too large"));
    char *after = read_file("old.json", &n_after);
    assert_int_equal(n_before, n_after);
    assert_memory_equal(before, after, n_after);
    free(before);
    free(after);
    cli_result_free(&result);
}

static const char *const hostile[] = {
    "",
    "\x00",
    "[]",
    "{}",
    "null",
    "{\"kind\": \"dsinfer-conversation\"}",
    "{\"schema\": \"1\", \"kind\": \"dsinfer-conversation\", \"messages\": []}",
    "{\"schema\": 1, \"schema\": 1, \"kind\": \"dsinfer-conversation\", \"messages\": []}",
    KIND "}",
    KIND ", \"messages\": {}}",
    KIND ", \"messages\": [1]}",
    KIND ", \"messages\": [{}]}",
    KIND ", \"messages\": [{\"role\": \"user\"}]}",
    KIND ", \"messages\": [{\"role\": 1, \"text\": \"a\"}]}",
    KIND ", \"messages\": [{\"role\": \"user\", \"text\": [\"a\"]}]}",
    KIND ", \"messages\": [{\"role\": \"tool\", \"text\": \"a\"}]}",
    KIND ", \"messages\": [{\"role\": \"user\", \"text\": \"\xff\"}]}",
    KIND ", \"messages\": [{\"role\": \"user\", \"text\": \"a\"}]}",
    KIND ", \"messages\": [{\"role\": \"assistant\", \"text\": \"a\"}]}",
    KIND ", \"messages\": [{\"role\": \"system\", \"text\": \"a\"}, "
         "{\"role\": \"system\", \"text\": \"b\"}]}",
    KIND ", \"messages\": [{\"role\": \"user\", \"text\": \"a\"}, "
         "{\"role\": \"system\", \"text\": \"b\"}]}",
    KIND ", \"settings\": [], \"messages\": []}",
    KIND ", \"settings\": {\"temperature\": -1}, \"messages\": []}",
    KIND ", \"settings\": {\"temperature\": \"0\"}, \"messages\": []}",
    KIND ", \"settings\": {\"top_p\": 0}, \"messages\": []}",
    KIND ", \"settings\": {\"top_k\": 1e3}, \"messages\": []}",
    KIND ", \"settings\": {\"max_tokens\": 4294967296}, \"messages\": []}",
    KIND ", \"settings\": {\"seed\": -1}, \"messages\": []}",
    KIND ", \"settings\": {\"repetition_penalty\": 0}, \"messages\": []}",
    KIND ", \"settings\": {\"think\": \"yes\"}, \"messages\": []}",
    KIND ", \"settings\": {\"stop\": \"a\"}, \"messages\": []}",
    KIND ", \"settings\": {\"stop\": [\"\"]}, \"messages\": []}",
    KIND ", \"settings\": {\"stop\": [\"a\\u0000b\"]}, \"messages\": []}",
    KIND ", \"settings\": {\"stop\": [\"a\", \"a\", \"a\", \"a\", \"a\", \"a\", \"a\", \"a\", "
         "\"a\", \"a\", \"a\", \"a\", \"a\", \"a\", \"a\", \"a\", \"a\"]}, \"messages\": []}",
    KIND
    ", \"messages\": [], \"deep\": [[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[["
    "[[[[[[]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]}",
    KIND ", \"messages\": [],",
};

/* Each of them is refused, and the running conversation is as it was. */
static void hostile_files_are_refused(void **state) {
    (void)state;
    enum { N_HOSTILE = sizeof hostile / sizeof hostile[0] };
    static char input[1 << 15];
    size_t n = 0, n_before = 0, n_after = 0, n_refused = 0;
    n += (size_t)snprintf(input, sizeof input, "/system 原样\n" TICKET "\n/save %s\n",
                          at("before.json"));
    for (size_t i = 0; i < N_HOSTILE; i++) {
        char name[32];
        snprintf(name, sizeof name, "hostile%zu.json", i);
        write_file(name, hostile[i], i == 1 ? 1 : strlen(hostile[i]));
        n += (size_t)snprintf(input + n, sizeof input - n, "/load %s\n", at(name));
    }
    write_file("huge.json", "x", 1); /* 64 MiB and one byte, all but one of them a hole */
    assert_int_equal(truncate(at("huge.json"), (1 << 26) + 1), 0);
    n += (size_t)snprintf(input + n, sizeof input - n, "/load %s\n/load /dev/zero\n/load %s\n",
                          at("huge.json"), folder);
    snprintf(input + n, sizeof input - n, "/save %s\n", at("after.json"));
    cli_result result = chat(4, NULL, "%s", input);
    for (const char *c = result.err; (c = strstr(c, "error: /load: ")) != NULL; c++) n_refused++;
    if (n_refused != N_HOSTILE + 3) fail_msg("%zu refused\n%s", n_refused, result.err);
    char *before = read_file("before.json", &n_before), *after = read_file("after.json", &n_after);
    assert_string_equal(before, after);
    print_message("%zu hostile files refused\n", n_refused);
    free(before);
    free(after);
    cli_result_free(&result);
}

static void large_and_odd_files_load(void **state) {
    (void)state;
    enum { N_PAIRS = 50001 };
    size_t n = 0, room = (size_t)N_PAIRS * 80 + 100;
    char *text = malloc(room);
    assert_non_null(text);
    n += (size_t)snprintf(text, room, KIND ", \"messages\": [");
    for (int i = 0; i < N_PAIRS; i++) {
        n += (size_t)snprintf(text + n, room - n,
                              "%s{\"role\": \"user\", \"text\": \"\"}, "
                              "{\"role\": \"assistant\", \"text\": \"\"}",
                              i == 0 ? "" : ",");
    }
    n += (size_t)snprintf(text + n, room - n, "]}");
    write_file("many.json", text, n);
    free(text);
    cli_result result = chat(4, NULL, "/load %s\n", at("many.json"));
    assert_non_null(strstr(result.err, "100002 messages; the limit is 100000"));
    cli_result_free(&result);
    /* Keys of a later version, zero bytes, a lone surrogate: a text is a text. */
    static const char odd[] =
        KIND ", \"later\": {}, \"messages\": [{\"role\": \"user\", \"text\": \"a\\u0000b\", "
             "\"time\": 1}, {\"text\": \"\\ud800\", \"role\": \"assistant\"}]}";
    write_file("odd.json", odd, sizeof odd - 1);
    result = chat(0, NULL, "/load %s\n/save %s\n", at("odd.json"), at("odd2.json"));
    char *again = read_file("odd2.json", &n);
    assert_non_null(strstr(again, "\"a\\u0000b\""));
    assert_non_null(strstr(again, "\"\xef\xbf\xbd\""));
    free(again);
    cli_result_free(&result);
}

/* ---- The context ----------------------------------------------------------------------------- */

static void full_context_is_explained(void **state) {
    (void)state;
    cli_result result =
        chat(2, OPTIONS("--context", "40"), TICKET "\n" TICKET "\n/clear\n" TICKET "\n");
    assert_non_null(strstr(result.err, "the context of 40 tokens is full"));
    assert_non_null(strstr(result.err, "max_context is 40"));
    assert_non_null(strstr(result.err, "/clear"));
    size_t n_answers = 0; /* the first and the third question have one */
    for (const char *c = result.out; *c != 0; c++) n_answers += *c == '\n';
    assert_int_equal(n_answers, 2);
    cli_result_free(&result);
    result = chat(0, OPTIONS("--max-tokens", "3", "--json"), TICKET "\n" TICKET "\n");
    const char *second = strchr(result.out, '\n') + 1;
    dsi_json json = parse(second, strlen(second));
    assert_true(number(&json, 0, "tokens_out") == 3); /* of each answer, not of all together */
    dsi_json_free(&json);
    cli_result_free(&result);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(turns_go_on),
        cmocka_unit_test(texts_have_lines),
        cmocka_unit_test(commands_work),
        cmocka_unit_test(saved_talk_goes_on),
        cmocka_unit_test(failed_save_changes_nothing),
        cmocka_unit_test(hostile_files_are_refused),
        cmocka_unit_test(large_and_odd_files_load),
        cmocka_unit_test(full_context_is_explained),
    };
    return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
