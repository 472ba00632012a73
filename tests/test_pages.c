/* test_pages.c: help, man pages and completion are what the tables of tools/dsinfer/table.c say. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "../lib/base/json.h"
#include "../tools/dsinfer/cli.h"
#include "cli_run.h"
#include <sys/stat.h>

/* Runs arguments (up to 23), and fails the test with what was said if the code is another. */
static cli_result run_expect(int code, const cli_call *call) {
    cli_result result = cli_exec(call);
    if (result.code != code) {
        print_error("dsinfer %s ...: exit %d, expected %d\nstdout: %.400s\nstderr: %.800s\n",
                    call->arguments[0], result.code, code, result.out, result.err);
    }
    assert_int_equal(result.code, code);
    return result;
}
#define RUN(code, ...) run_expect(code, &(cli_call){.arguments = {__VA_ARGS__}})

/* A screen of 24 lines and 80 columns shows the help of any command, and --all explains in full
 * what that only names. */
static void help_fits_a_screen(void **state) {
    (void)state;
    static const char *const languages[] = {"en", "zh"};
    for (size_t i = 0; i < 2 * (cli_n_commands + 1); i++) {
        const char *name = i < 2 ? NULL : cli_command_table[i / 2 - 1].name;
        uint32_t bit = i < 2 ? CLI_HELP : cli_command_table[i / 2 - 1].bit;
        cli_result result = RUN(0, "--lang", languages[i % 2], "--help");
        cli_result all = RUN(0, "--lang", languages[i % 2], "--help", "--all");
        if (name != NULL) {
            cli_result_free(&result), cli_result_free(&all);
            result = RUN(0, "help", name, "--lang", languages[i % 2]);
            all = RUN(0, "help", name, "--all", "--lang", languages[i % 2]);
        }
        size_t n_lines = 0;
        for (const char *line = result.out; *line != 0;
             line += strcspn(line, "\n") + 1, n_lines++) {
            if (cli_utf8_width(line, strcspn(line, "\n")) > 80) fail_msg("more than 80: %s", line);
        }
        if (n_lines > 24) fail_msg("help of %s has %zu lines", name, n_lines);
        for (size_t j = 0; j < cli_n_options; j++) {
            const cli_option *option = &cli_option_table[j];
            char named[64], explained[256];
            snprintf(named, sizeof named, " --%s", option->name);
            snprintf(explained, sizeof explained, "%s--%s%s ", option->letter ? ", " : "      ",
                     option->name, cli_value_text(option).text);
            bool mine = (option->commands & bit) != 0;
            if (mine != (strstr(all.out, explained) != NULL) ||
                (mine && strstr(result.out, named) == NULL)) {
                fail_msg("help of %s: --%s\n%s", name, option->name, all.out);
            }
        }
        cli_result_free(&result), cli_result_free(&all);
    }
}

/* help --json holds the tables; --json wraps what is text by nature. */
static void tables_are_data(void **state) {
    (void)state;
    cli_result result = RUN(0, "help", "--json", "--lang", "en");
    dsi_json json;
    assert_int_equal(dsi_json_parse(result.out, result.n_out, 1 << 16, &json, NULL), DSI_OK);
    uint32_t commands = dsi_json_get(&json, 0, "commands");
    uint32_t options = dsi_json_get(&json, 0, "options");
    assert_int_equal(json.nodes[commands].n_items, cli_n_commands);
    assert_int_equal(json.nodes[options].n_items, cli_n_options);
    uint32_t node = dsi_json_first(&json, commands);
    for (size_t i = 0; i < cli_n_commands; i++, node = json.nodes[node].end) {
        const cli_command *command = &cli_command_table[i];
        assert_true(dsi_json_string_is(&json, dsi_json_get(&json, node, "name"), command->name));
        assert_true(dsi_json_string_is(&json, dsi_json_get(&json, node, "summary"), command->en));
        size_t n = 0;
        for (size_t j = 0; j < cli_n_options; j++) {
            n += (cli_option_table[j].commands & command->bit) != 0;
        }
        assert_int_equal(json.nodes[dsi_json_get(&json, node, "options")].n_items, n);
    }
    dsi_json_free(&json);
    cli_result_free(&result);
    static const char *const calls[][2] = {{"man", "run"}, {"completion", "zsh"}};
    for (size_t i = 0; i < 2; i++) {
        result = RUN(0, calls[i][0], calls[i][1], "--json");
        cli_result plain = RUN(0, calls[i][0], calls[i][1]);
        assert_int_equal(dsi_json_parse(result.out, result.n_out, 1 << 16, &json, NULL), DSI_OK);
        assert_true(dsi_json_string_is(&json, dsi_json_get(&json, 0, "text"), plain.out));
        dsi_json_free(&json);
        cli_result_free(&plain);
        cli_result_free(&result);
    }
}

/* Text of a model or a file cannot move the cursor, recolour, or turn the writing round. */
static void text_is_made_safe(void **state) {
    (void)state;
    static const struct {
        const char *text, *shown;
    } cases[] = {
        {"a\tb\nc", "a\tb\nc"},
        {"\033[31m红\033[0m", "?[31m红?[0m"},
        {"\r覆盖\b\a\177", "?覆盖???"},
        {"\xc2\x9b"
         "2J",
         "?2J"}, /* C1: CSI in one character */
        {"\xe2\x80\xae"
         "exe.txt\xe2\x80\xac",
         "?exe.txt?"},                            /* right to left override */
        {"\xe2\x81\xa6x\xe2\x80\xa8", "?x?"},     /* isolate, line separator */
        {"\xff\xc0\x80 \xed\xa0\x80", "??? ???"}, /* not UTF-8 */
        {"👍 é 中", "👍 é 中"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        char *safe = NULL, wanted[128];
        size_t n = 0, out = 0;
        FILE *file = open_memstream(&safe, &n);
        assert_non_null(file);
        cli_print_safe(file, cases[i].text, strlen(cases[i].text));
        assert_int_equal(fclose(file), 0);
        for (const char *c = cases[i].shown; *c != 0; c++) { /* "?" stands for U+FFFD */
            out += (size_t)snprintf(wanted + out, sizeof wanted - out, "%.*s", *c == '?' ? 3 : 1,
                                    *c == '?' ? "\xef\xbf\xbd" : c);
        }
        assert_string_equal(safe, wanted);
        free(safe);
    }
}

/* ---- Completion and man pages, through the programs that read them */

static char folder[64];

static int make_folder(void **state) {
    (void)state;
    snprintf(folder, sizeof folder, "/tmp/dsinfer-pages-XXXXXX");
    return mkdtemp(folder) == NULL ? -1 : 0;
}

static int remove_folder(void **state) {
    (void)state;
    char command[128];
    snprintf(command, sizeof command, "rm -rf %s", folder);
    return system(command);
}

static void write_file(const char *name, const char *text) {
    char path[128];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    FILE *file = fopen(path, "w");
    assert_non_null(file);
    assert_true(fputs(text, file) >= 0);
    assert_int_equal(fclose(file), 0);
}

/* What a shell command writes on both streams, run in the folder; the caller frees it. */
static char *shell(int *code, const char *format, ...) __attribute__((format(printf, 2, 3)));
static char *shell(int *code, const char *format, ...) {
    enum { ROOM = 1 << 18 };
    char command[1024], whole[1280];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(command, sizeof command, format, arguments);
    va_end(arguments);
    snprintf(whole, sizeof whole, "cd %s && { %s; } </dev/null 2>&1", folder, command);
    FILE *pipe = popen(whole, "r");
    assert_non_null(pipe);
    char *text = calloc(ROOM, 1);
    assert_non_null(text);
    size_t n = fread(text, 1, ROOM - 1, pipe);
    assert_true(n < ROOM - 1);
    int status = pclose(pipe);
    *code = WIFEXITED(status) ? WEXITSTATUS(status) : 1000;
    return text;
}

static bool have(const char *program) {
    int code = 0;
    free(shell(&code, "command -v %s", program));
    if (code != 0) print_message("%s is not installed here: its part is not tested\n", program);
    return code == 0;
}

static void write_completion(const char *shell_name) {
    cli_result result = RUN(0, "completion", shell_name);
    assert_int_equal(result.n_err, 0);
    write_file(shell_name, result.out);
    cli_result_free(&result);
}

/* Every option of the command stands in `text` as a line, and no line is another option. */
static void same_options(const char *name, uint32_t bit, const char *text) {
    size_t n_wanted = 0, n_found = 0;
    for (size_t i = 0; i < cli_n_options; i++) {
        const cli_option *option = &cli_option_table[i];
        char line[64];
        int n = snprintf(line, sizeof line, "\n--%s", option->name);
        bool there = false;
        for (const char *at = text; !there && (at = strstr(at, line)) != NULL; at += n) {
            there = at[n] == '\n' || at[n] == '\t';
        }
        bool wanted = (option->commands & bit) != 0;
        if (wanted != there) fail_msg("%s: --%s: %s", name, option->name, text);
        n_wanted += wanted;
    }
    for (const char *at = text; (at = strstr(at, "\n--")) != NULL; at++) n_found++;
    assert_int_equal(n_found, n_wanted);
}

/* bash completes the words of `line` (the last one is what stands before the cursor), one answer
 * a line behind an empty one. */
static char *bash_complete(const char *line) {
    int code = 0;
    char *text = shell(&code,
                       "bash --norc --noprofile -c 'source ./bash; COMP_WORDS=(%s); "
                       "COMP_CWORD=$((${#COMP_WORDS[@]} - 1)); "
                       "[[ $(complete -p dsinfer) == \"complete -F _dsinfer dsinfer\" ]] && "
                       "{ _dsinfer; printf \"\\n%%s\" \"${COMPREPLY[@]}\"; echo; }'",
                       line);
    if (code != 0) fail_msg("bash, %s: %s", line, text);
    return text;
}

static void bash_completes(void **state) {
    (void)state;
    if (!have("bash")) skip();
    write_completion("bash");
    write_file("a file.safetensors", "x");
    char command[128];
    snprintf(command, sizeof command, "%s/a folder", folder);
    assert_int_equal(mkdir(command, 0700), 0);
    for (size_t i = 0; i < cli_n_commands; i++) {
        snprintf(command, sizeof command, "dsinfer %s --", cli_command_table[i].name);
        char *text = bash_complete(command);
        same_options(cli_command_table[i].name, cli_command_table[i].bit, text);
        free(text);
    }
    static const struct {
        const char *line, *answer;
    } cases[] = {
        {"dsinfer ver", "\nverify\n"},
        {"dsinfer --lang zh ru", "\nrun\n"},
        {"dsinfer run --kernels avx512", "\navx512\navx512vnni\navx512bf16\n"},
        {"dsinfer run --kernels = avx2", "\navx2\n"},
        {"dsinfer run --lang =", "\nzh\nen\n"},
        {"dsinfer run -m \"\"", "\na folder\n"},
        {"dsinfer verify --golden a", "\na folder\na file.safetensors\n"},
        {"dsinfer run --seed \"\"", "\n\n"},
        {"dsinfer run \"\"", "\n\n"},
        {"dsinfer completion \"\"", "\nbash\nzsh\nfish\n"},
        {"dsinfer man tok", "\ntokenize\n"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        char *text = bash_complete(cases[i].line);
        if (strcmp(text, cases[i].answer) != 0) fail_msg("%s gives: %s", cases[i].line, text);
        free(text);
    }
}

static void fish_completes(void **state) {
    (void)state;
    if (!have("fish")) skip();
    write_completion("fish");
    int code = 0;
    char *text = shell(&code, "HOME=. fish --no-config --no-execute ./fish");
    assert_int_equal(code, 0);
    assert_string_equal(text, "");
    free(text);
    for (size_t i = 0; i < cli_n_commands; i++) {
        text = shell(&code,
                     "echo; HOME=. fish --no-config -c 'source ./fish; "
                     "complete -C \"dsinfer %s --\"'",
                     cli_command_table[i].name);
        same_options(cli_command_table[i].name, cli_command_table[i].bit, text);
        free(text);
    }
    text = shell(&code, "HOME=. fish --no-config -c 'source ./fish; "
                        "complete -C \"dsinfer run --lang \"'");
    assert_int_equal(strncmp(text, "en\t", 3), 0);
    assert_non_null(strstr(text, "\nzh\t"));
    free(text);
}

static void zsh_reads_it(void **state) {
    (void)state;
    if (!have("zsh")) skip();
    write_completion("zsh");
    int code = 0;
    char *text =
        shell(&code, "zsh -f -n ./zsh && cp ./zsh ./_dsinfer && zsh -f -c 'fpath=($PWD $fpath);"
                     " autoload -Uz compinit; compinit -u -D; print -r -- "
                     "$_comps[dsinfer]; autoload +X _dsinfer && print loaded'");
    assert_string_equal(text, "_dsinfer\nloaded\n");
    free(text);
}

/* The page names every option of its command and no other, in order. */
static void check_page(const char *page, const char *name, uint32_t bit) {
    const char *at = page;
    for (size_t i = 0; i < cli_n_options; i++) {
        const cli_option *option = &cli_option_table[i];
        if ((option->commands & bit) == 0) continue;
        char wanted[96] = "\\fB\\-\\-";
        size_t n = strlen(wanted);
        for (const char *c = option->name; *c != 0; c++) {
            n += (size_t)snprintf(wanted + n, sizeof wanted - n, "%s%c", *c == '-' ? "\\" : "", *c);
        }
        snprintf(wanted + n, sizeof wanted - n, "\\fR");
        const char *found = strstr(at, wanted);
        if (found == NULL) fail_msg("%s: no --%s behind: %.200s", name, option->name, at);
        at = found;
    }
    size_t n_listed = 0, n_wanted = 0;
    for (at = page; (at = strstr(at, "\\fB\\-\\-")) != NULL; at++) n_listed++;
    for (size_t i = 0; i < cli_n_options; i++)
        n_wanted += (cli_option_table[i].commands & bit) != 0;
    assert_int_equal(n_listed, n_wanted);
}

static void man_pages_are_clean(void **state) {
    (void)state;
    bool groff = have("groff"), man = have("man");
    cli_result list = RUN(0, "man", "--list");
    size_t n_pages = 0;
    for (const char *line = list.out; *line != 0; line += strcspn(line, "\n") + 1, n_pages++) {
        char name[64];
        snprintf(name, sizeof name, "%.*s", (int)strcspn(line, "\n"), line);
        const cli_command *command = n_pages == 0 ? &cli_overview : cli_find_command(name + 8);
        assert_non_null(command);
        for (int zh = 0; zh < 2; zh++) {
            cli_result page = RUN(0, "man", name, "--lang", zh ? "zh" : "en");
            check_page(page.out, name, command->bit == 0 ? CLI_HELP : command->bit);
            write_file("page", page.out);
            cli_result_free(&page);
            int code = 0;
            char *text = groff ? shell(&code, "groff -man -Tutf8 -K utf8 -ww -z ./page") : NULL;
            if (groff && (code != 0 || *text != 0)) fail_msg("groff, %s: %s", name, text);
            free(text);
            if (!man) continue;
            text = shell(&code, "LC_ALL=C.UTF-8 MANWIDTH=80 man --warnings -l ./page >shown");
            if (code != 0 || *text != 0) fail_msg("man, %s: %s", name, text);
            free(text);
            text = shell(&code, "cat shown");
            for (const char *row = text; *row != 0; row += strcspn(row, "\n") + 1) {
                size_t width = cli_utf8_width(row, strcspn(row, "\n"));
                if (width > 84) fail_msg("%s: %zu columns: %s", name, width, row);
            }
            free(text);
        }
    }
    assert_int_equal(n_pages, cli_n_commands + 1);
    print_message("%zu pages in two languages\n", n_pages);
    cli_result_free(&list);
}

/* `make` has written what the command writes now. */
static void the_build_holds_the_pages(void **state) {
    (void)state;
    const char *build = getenv("BUILD");
    if (build == NULL || *build == 0) build = "build";
    static const char *const files[][4] = {
        {"man/dsinfer-run.1", "man", "run", "en"},
        {"man/zh_CN/dsinfer.1", "man", "dsinfer", "zh"},
        {"completion/dsinfer.bash", "completion", "bash", "en"},
        {"completion/_dsinfer", "completion", "zsh", "en"},
        {"completion/dsinfer.fish", "completion", "fish", "en"},
    };
    for (size_t i = 0; i < sizeof files / sizeof files[0]; i++) {
        char path[512];
        snprintf(path, sizeof path, "%s/%s", build, files[i][0]);
        FILE *file = fopen(path, "r");
        if (file == NULL) fail_msg("%s is missing", path);
        size_t n = 0;
        char *text = cli_slurp(file, &n);
        fclose(file);
        cli_result result = RUN(0, files[i][1], files[i][2], "--lang", files[i][3]);
        assert_string_equal(text, result.out);
        free(text);
        cli_result_free(&result);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(help_fits_a_screen),  cmocka_unit_test(tables_are_data),
        cmocka_unit_test(text_is_made_safe),   cmocka_unit_test(bash_completes),
        cmocka_unit_test(fish_completes),      cmocka_unit_test(zsh_reads_it),
        cmocka_unit_test(man_pages_are_clean), cmocka_unit_test(the_build_holds_the_pages),
    };
    return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
