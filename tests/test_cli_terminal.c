/* test_cli_terminal.c: dsinfer chat on a terminal: Ctrl-C, the line editor, a dumb terminal. */
#include "chat_files.h"

/* Slow kernels and a temperature at which no answer ends by itself. */
#define SLOW                                                                                       \
    "chat", "-m", TINY, "--kernels", "ref", "--temperature", "100", "--threads", "1", "--chunk",   \
        "64", "--no-think"

static bool start(terminal *t, const char *term, const char *const *arguments) {
    if (terminal_start(t, term, arguments)) return true;
    print_message("no pseudo-terminal to be had here (is /dev/pts mounted?)\n");
    return false;
}

/* Until some text of the answer came. */
static void wait_for_answer(terminal *t) {
    assert_true(terminal_expect(t, TICKET));
    assert_true(terminal_expect(t, "\r\n"));
    while (t->n_bytes < t->seen + 60) assert_true(terminal_read(t, 5000));
}

static void ctrl_c_stops_the_answer(void **state) {
    (void)state;
    static const char *const arguments[] = {SLOW, NULL};
    terminal t = {.fd = -1};
    if (!start(&t, "xterm", arguments)) skip();
    assert_true(terminal_expect(&t, "/help"));
    assert_true(terminal_expect(&t, "> "));
    assert_true(terminal_type(&t, TICKET "\n"));
    wait_for_answer(&t);
    double pressed = terminal_now();
    assert_true(terminal_type(&t, "\003"));
    assert_true(terminal_expect(&t, "| stopped"));
    assert_true(terminal_expect(&t, "> "));
    print_message("an answer stops %.3f s after Ctrl-C\n", terminal_now() - pressed);
    assert_true(terminal_now() - pressed < 4);
    usleep(1100000);                            /* not the second of two */
    assert_true(terminal_type(&t, "半句\003")); /* a line that is given up */
    assert_true(terminal_expect(&t, "> "));
    assert_true(terminal_type(&t, "/stats\n"));
    assert_true(terminal_expect(&t, "1 answers, 2 messages"));
    assert_true(terminal_expect(&t, "> "));
    assert_true(terminal_type(&t, "\003")); /* nothing was typed */
    assert_int_equal(terminal_end(&t), 0);
}

static void ctrl_c_twice_leaves(void **state) {
    (void)state;
    static const char *const arguments[] = {SLOW, NULL};
    terminal t = {.fd = -1};
    if (!start(&t, "xterm", arguments)) skip();
    assert_true(terminal_expect(&t, "> "));
    assert_true(terminal_type(&t, TICKET "\n"));
    wait_for_answer(&t);
    assert_true(terminal_type(&t, "\003"));
    usleep(200000);
    assert_true(terminal_type(&t, "\003"));
    assert_int_equal(terminal_end(&t), 0);
}

/* A long prompt on slow kernels: seconds of work, which end between two layers. */
static void ctrl_c_stops_the_prompt(void **state) {
    (void)state;
    static const char *const arguments[] = {SLOW, NULL};
    terminal t = {.fd = -1};
    if (!start(&t, "xterm", arguments)) skip();
    assert_true(terminal_expect(&t, "> "));
    assert_true(terminal_type(&t, "\"\"\"\n"));
    for (int i = 0; i < 60; i++) {
        assert_true(terminal_type(&t, SENTENCE "\n"));
        terminal_read(&t, 1);
    }
    assert_true(terminal_type(&t, "\"\"\"\n"));
    assert_true(terminal_expect(&t, "\rprompt [")); /* the first part is done */
    double pressed = terminal_now();
    assert_true(terminal_type(&t, "\003"));
    assert_true(terminal_expect(&t, "| stopped"));
    print_message("a prompt stops %.3f s after Ctrl-C\n", terminal_now() - pressed);
    assert_true(terminal_now() - pressed < 4);
    assert_true(terminal_expect(&t, "> "));
    assert_true(terminal_type(&t, "/stats\n"));
    assert_true(terminal_expect(&t, " 0 messages")); /* no answer: the question is taken back */
    assert_true(terminal_expect(&t, "> "));
    assert_true(terminal_type(&t, "\004"));
    assert_int_equal(terminal_end(&t), 0);
}

/* Types each text, and saves what was understood; the screen is right when the last drawing shows
 * the text and puts the cursor behind it. */
static void lines_can_be_edited(void **state) {
    (void)state;
    static const char *const arguments[] = {"chat", "-m", TINY, "--max-tokens", "1", NULL};
    static const struct {
        const char *typed, *text;
    } lines[] = {
        {"中国\177\177\177人x\177民\n", "人民"},
        {"ac\033[Db\033[Cd\n", "abcd"},
        {"中文\001前\005后\n", "前中文后"},
        {"一二三\033[H\033[3~\033[F四\n", "二三四"},
        {"one two  \027\027x\n", "x"},
        {"删掉全部\025留下\n", "留下"},
        {"abc\033[D\033[D\013\n", "a"},
        {"\033[A\033[A!\n", "留下!"}, /* the last but one */
        {"\033[200~第一行\r第二行\n/不是命令\033[31m\n\033[201~。\n",
         "第一行\n第二行\n/不是命令[31m。"},
        {"e\xcc\x81\177f\n", "f"}, /* a mark goes with its letter */
        {"\033[1;5X\033OHz\t\n", "z "},
    };
    enum { N_LINES = sizeof lines / sizeof lines[0] };
    char save[160];
    terminal t = {.fd = -1};
    if (!start(&t, "xterm", arguments)) skip();
    assert_true(terminal_expect(&t, "> "));
    for (size_t i = 0; i < N_LINES; i++) {
        assert_true(terminal_type(&t, lines[i].typed));
        assert_true(terminal_expect(&t, "/2,048 tok"));
        assert_true(terminal_expect(&t, "> "));
    }
    assert_non_null(strstr(t.text, "\033[J> 人民\r\033[6C")); /* two columns each */
    snprintf(save, sizeof save, "/save %s\n", at("typed.json"));
    assert_true(terminal_type(&t, save));
    assert_true(terminal_expect(&t, "messages"));
    assert_true(terminal_expect(&t, "> "));
    assert_true(terminal_type(&t, "\004"));
    assert_int_equal(terminal_end(&t), 0);
    for (uint32_t i = 0; i < N_LINES; i++) saved_is("typed.json", 2 * i, "user", lines[i].text);
}

/* Longer than the kernel's 4,095 bytes and than the screen is wide. */
static void long_lines_arrive(void **state) {
    (void)state;
    static const char *const arguments[] = {"chat", "-m", TINY, "--max-tokens", "1", NULL};
    char line[8192] = "", save[160];
    terminal t = {.fd = -1};
    if (!start(&t, "xterm", arguments)) skip();
    assert_true(terminal_expect(&t, "> "));
    for (int i = 0; i < 60; i++) { /* 5,400 bytes */
        strcat(line, SENTENCE);
        assert_true(terminal_type(&t, SENTENCE) && terminal_read(&t, 1));
    }
    assert_true(terminal_type(&t, "多\177\n"));
    assert_true(terminal_expect(&t, "/2,048 tok"));
    snprintf(save, sizeof save, "/save %s\n", at("wide.json"));
    assert_true(terminal_type(&t, save));
    assert_true(terminal_expect(&t, "messages"));
    assert_true(terminal_type(&t, "\004"));
    assert_int_equal(terminal_end(&t), 0);
    saved_is("wide.json", 0, "user", line);
}

/* Without a cursor that moves, the kernel edits: characters are UTF-8, what it cuts is refused, and
 * Ctrl-C works as elsewhere. */
static void dumb_terminals_work(void **state) {
    (void)state;
    static const char *const arguments[] = {"chat", "-m", TINY, "--max-tokens", "1", NULL};
    char line[8192], save[160];
    terminal t = {.fd = -1};
    if (!start(&t, "dumb", arguments)) skip();
    assert_true(terminal_expect(&t, "> "));
    assert_true(terminal_type(&t, "中国\177\177\177人x\177民\n"));
    assert_true(terminal_expect(&t, "tok/s"));
    assert_true(terminal_expect(&t, "> "));
    memset(line, 'w', 5000);
    snprintf(line + 5000, 8, "\n");
    assert_true(terminal_type(&t, line));
    assert_true(terminal_expect(&t, "4095"));
    assert_true(terminal_expect(&t, "> "));
    snprintf(save, sizeof save, "/save %s\n", at("dumb.json"));
    assert_true(terminal_type(&t, save));
    assert_true(terminal_expect(&t, "2 messages"));
    assert_true(terminal_expect(&t, "> "));
    assert_true(terminal_type(&t, "半句\003"));
    assert_true(terminal_expect(&t, "> "));
    assert_null(strchr(t.text, '\033'));
    assert_true(terminal_type(&t, "\003"));
    assert_int_equal(terminal_end(&t), 0);
    saved_is("dumb.json", 0, "user", "人民");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(ctrl_c_stops_the_answer), cmocka_unit_test(ctrl_c_twice_leaves),
        cmocka_unit_test(ctrl_c_stops_the_prompt), cmocka_unit_test(lines_can_be_edited),
        cmocka_unit_test(long_lines_arrive),       cmocka_unit_test(dumb_terminals_work),
    };
    return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
