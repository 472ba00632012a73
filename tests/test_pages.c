/* test_pages.c: help, man pages and completion are what the tables of tools/dsinfer/table.c say. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "../tools/dsinfer/cli.h"
#include "cli_run.h"

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
            char named[64], explained[64];
            snprintf(named, sizeof named, " --%s", option->name);
            snprintf(explained, sizeof explained, "%s--%s%s%s ", option->letter ? ", " : "      ",
                     option->name, option->argument ? " " : "",
                     option->argument ? option->argument : "");
            bool mine = (option->commands & bit) != 0;
            if (mine != (strstr(all.out, explained) != NULL) ||
                (mine && strstr(result.out, named) == NULL)) {
                fail_msg("help of %s: --%s\n%s", name, option->name, all.out);
            }
        }
        cli_result_free(&result), cli_result_free(&all);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(help_fits_a_screen),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
