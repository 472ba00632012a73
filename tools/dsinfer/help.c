/* help.c: the help texts, made from the tables of table.c; examples stand first. The everyday
 * options fit on a screen of 24 lines, the others are named and explained by help --all. */
#include "cli.h"
#include <string.h>

cli_shown cli_value_text(const cli_option *option) {
    cli_shown shown = {""};
    bool optional = option->kind == CLI_OPTIONAL;
    if (option->argument == NULL) return shown;
    snprintf(shown.text, sizeof shown.text, optional ? "[=%s]" : " %s", option->argument);
    return shown;
}

static void print_option(FILE *file, const cli_option *option) {
    enum { COLUMN = 28 };
    char left[64];
    char letter[5] = "    ";
    if (option->letter != 0) snprintf(letter, sizeof letter, "-%c, ", option->letter);
    int n = snprintf(left, sizeof left, "  %s--%s%s", letter, option->name,
                     cli_value_text(option).text);
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

static void print_help(FILE *file, const cli_command *command, bool all) {
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

/* ---- The tables as data */

static void json_field(const char *key, const char *text) {
    printf(", \"%s\": ", key);
    if (text == NULL) {
        fputs("null", stdout);
    } else {
        cli_json_text(stdout, text, strlen(text));
    }
}

/* "a|b" as ["a", "b"]; null for NULL */
static void json_words(const char *key, const char *words) {
    printf(", \"%s\": ", key);
    if (words == NULL) {
        fputs("null", stdout);
        return;
    }
    const char *open = "[";
    for (; *words != 0; words += strcspn(words, "|"), words += *words == '|') {
        fputs(open, stdout);
        cli_json_text(stdout, words, strcspn(words, "|"));
        open = ", ";
    }
    fputc(']', stdout);
}

static void json_command(const cli_command *command) {
    fputs("{\"name\": ", stdout);
    cli_json_text(stdout, command->name, strlen(command->name));
    json_field("usage", command->usage);
    json_field("summary", cli_tr(command->en, command->zh));
    json_field("note",
               command->note_en == NULL ? NULL : cli_tr(command->note_en, command->note_zh));
    json_words("words", command->words);
    for (size_t i = 0; i < 3; i++) {
        fputs(i == 0 ? ", \"examples\": [" : ", ", stdout);
        cli_json_text(stdout, command->examples[i], strlen(command->examples[i]));
    }
    fputs("], \"options\": [", stdout);
    const char *comma = "";
    uint32_t mask = command->bit == 0 ? CLI_HELP : command->bit;
    for (size_t i = 0; i < cli_n_options; i++) {
        if ((cli_option_table[i].commands & mask) == 0) continue;
        printf("%s\"%s\"", comma, cli_option_table[i].name);
        comma = ", ";
    }
    fputs("]}", stdout);
}

/* One command, or with cli_overview all of them. */
static void print_json(const cli_command *command) {
    cli_json_begin(stdout);
    fputs(", \"commands\": [", stdout);
    if (command->bit != 0) json_command(command);
    for (size_t i = 0; i < cli_n_commands && command->bit == 0; i++) {
        fputs(i == 0 ? "" : ", ", stdout);
        json_command(&cli_command_table[i]);
    }
    fputs("], \"options\": [", stdout);
    const char *comma = "";
    for (size_t i = 0; i < cli_n_options; i++) {
        const cli_option *option = &cli_option_table[i];
        char letter[2] = {option->letter, 0};
        if (command->bit != 0 && (option->commands & command->bit) == 0) continue;
        printf("%s{\"name\": \"%s\"", comma, option->name);
        json_field("letter", option->letter == 0 ? NULL : letter);
        json_field("value", option->argument);
        json_words("words", option->words);
        json_field("help", cli_tr(option->en, option->zh));
        fputc('}', stdout);
        comma = ", ";
    }
    fputs("]}\n", stdout);
}

int cli_print_help(FILE *file, const cli_command *command, const cli_options *options) {
    if (options->json && file == stdout) {
        print_json(command);
    } else {
        print_help(file, command, options->all);
    }
    return CLI_OK;
}

int cli_help(const cli_options *options) {
    const cli_command *command = &cli_overview;
    int code = CLI_OK;
    if (options->argument != NULL) code = cli_need_command(options->argument, &command);
    return code == CLI_OK ? cli_print_help(stdout, command, options) : code;
}
