/* help.c: the help texts, made from the tables of table.c; examples stand first. The everyday
 * options fit on a screen of 24 lines, the others are named and explained by help --all. */
#include "cli.h"
#include <string.h>

static void print_option(FILE *file, const cli_option *option) {
    enum { COLUMN = 28 };
    char left[64];
    char letter[5] = "    ";
    if (option->letter != 0) snprintf(letter, sizeof letter, "-%c, ", option->letter);
    int n = snprintf(left, sizeof left, "  %s--%s%s%s", letter, option->name,
                     option->argument == NULL ? "" : " ",
                     option->argument == NULL ? "" : option->argument);
    fprintf(file, "%s%*s%s", left, n < COLUMN ? COLUMN - n : 1, "", cli_tr(option->en, option->zh));
    if (option->words != NULL) fprintf(file, cli_tr(": %s", "：%s"), option->words);
    fputc('\n', file);
}

/* The names of the options that were left out, in lines of 79 columns; how many lines. */
static size_t print_rare(FILE *file, const cli_command *command, uint32_t mask) {
    enum { COLUMNS = 79 };
    char start[96];
    size_t n_lines = 1;
    size_t at = (size_t)snprintf(
        start, sizeof start,
        cli_tr("More (dsinfer help %s%s--all):", "其他（dsinfer help %s%s--all）："), command->name,
        *command->name == 0 ? "" : " ");
    fputs(start, file);
    at = cli_utf8_width(start, at);
    for (size_t i = 0; i < cli_n_options; i++) {
        const cli_option *option = &cli_option_table[i];
        if ((option->commands & mask) == 0 || (option->rare & mask) == 0) continue;
        size_t n = strlen(option->name) + 3;
        if (at + n > COLUMNS) fputs("\n ", file), at = 1, n_lines++;
        fprintf(file, " --%s", option->name);
        at += n;
    }
    fputc('\n', file);
    return n_lines;
}

static void print_commands(FILE *file) {
    fprintf(file, "%s\n", cli_tr("Commands:", "命令："));
    for (size_t i = 0; i < cli_n_commands; i++) {
        const cli_command *command = &cli_command_table[i];
        fprintf(file, "  %-12s%s\n", command->name, cli_tr(command->en, command->zh));
    }
}

static size_t count_lines(const char *text) {
    size_t n = 1;
    for (; *text != 0; text++) n += *text == '\n';
    return n;
}

void cli_print_help(FILE *file, const cli_command *command, bool all) {
    enum { SCREEN = 24 };
    size_t n_lines = 8; /* what stands above the options */
    fprintf(file, "%s\n", cli_tr("Examples:", "示例："));
    for (size_t i = 0; i < 3; i++) fprintf(file, "  %s\n", command->examples[i]);
    fprintf(file, cli_tr("\nUsage: dsinfer %s%s%s\n%s\n", "\n用法：dsinfer %s%s%s\n%s\n"),
            command->name, *command->name == 0 ? "" : " ", command->usage,
            cli_tr(command->en, command->zh));
    if (command->bit == 0) {
        print_commands(file);
        n_lines += 1 + cli_n_commands;
    }
    fprintf(file, "%s\n", cli_tr("Options:", "选项："));
    uint32_t mask = command->bit == 0 ? CLI_HELP : command->bit;
    bool rare = false;
    for (size_t i = 0; i < cli_n_options; i++) {
        const cli_option *option = &cli_option_table[i];
        if ((option->commands & mask) == 0) continue;
        bool hidden = !all && (option->rare & mask) != 0;
        rare = rare || hidden;
        n_lines += !hidden;
        if (!hidden) print_option(file, option);
    }
    if (rare) n_lines += print_rare(file, command, mask);
    if (command->note_en == NULL) return;
    const char *note = cli_tr(command->note_en, command->note_zh);
    if (all || n_lines + count_lines(note) <= SCREEN) fprintf(file, "%s\n", note);
}

int cli_help(const cli_options *options) {
    const cli_command *command = &cli_overview;
    int code = CLI_OK;
    if (options->argument != NULL) code = cli_need_command(options->argument, &command);
    if (code == CLI_OK) cli_print_help(stdout, command, options->all);
    return code;
}
