/* completion.c: dsinfer completion: scripts for bash, zsh and fish, from table.c. */
#include "cli.h"
#include <string.h>

/* What the value of an option can be completed to. */
enum { NO_VALUE, FREE_TEXT, WORDS, FOLDER, ANY_FILE };
static uint32_t value_of(const cli_option *option) {
    if (option->argument == NULL || option->kind == CLI_OPTIONAL) return NO_VALUE;
    if (option->words != NULL) return WORDS;
    if (strcmp(option->argument, "DIR") == 0) return FOLDER;
    return strcmp(option->argument, "FILE") == 0 ? ANY_FILE : FREE_TEXT;
}

static uint32_t mask_of(const cli_command *command) {
    return command->bit == 0 ? CLI_HELP : command->bit;
}

/* "a|b" as "a b" */
static void put_words(FILE *file, const char *words) {
    for (; *words != 0; words++) fputc(*words == '|' ? ' ' : *words, file);
}

static void put_command_names(FILE *file) {
    for (size_t i = 0; i < cli_n_commands; i++) {
        fprintf(file, "%s%s", i == 0 ? "" : " ", cli_command_table[i].name);
    }
}

static bool takes_a_command(const cli_command *command) {
    return command->argument != NULL && strcmp(command->argument, "COMMAND") == 0;
}

/* What its one word can be: names of commands, words of the table, or nothing that is known. */
static void put_arguments(FILE *file, const cli_command *command) {
    if (takes_a_command(command)) put_command_names(file);
    if (command->words != NULL) put_words(file, command->words);
}

/* Text inside '...', with the characters of `special` behind a backslash. */
static void put_quoted(FILE *file, const char *text, const char *special, const char *apostrophe) {
    for (; *text != 0; text++) {
        if (*text == '\'') {
            fputs(apostrophe, file);
            continue;
        }
        if (strchr(special, *text) != NULL) fputc('\\', file);
        fputc(*text, file);
    }
}

/* ---- bash -------------------------------------------------------------------------------------
 */

/* The names of all options whose values are of this kind as a pattern: "--golden|--manifest". */
static size_t put_pattern(FILE *file, uint32_t value) {
    size_t n = 0;
    for (size_t i = 0; i < cli_n_options; i++) {
        const cli_option *option = &cli_option_table[i];
        if (value_of(option) != value) continue;
        fprintf(file, "%s--%s", n++ == 0 ? "    " : "|", option->name);
        if (option->letter != 0) fprintf(file, "|-%c", option->letter);
    }
    return n;
}

static void put_bash_values(FILE *file) {
    fputs("    case $previous in\n", file);
    if (put_pattern(file, FOLDER) > 0) {
        fputs(")\n        compopt -o filenames 2>/dev/null\n", file);
        fputs("        local kind=-d\n", file);
        fputs("        [[ $command == tokenize ]] && kind=-f\n", file);
        fputs("        COMPREPLY=($(compgen $kind -- \"$current\"))\n        return ;;\n", file);
    }
    if (put_pattern(file, ANY_FILE) > 0) {
        fputs(")\n        compopt -o filenames 2>/dev/null\n", file);
        fputs("        COMPREPLY=($(compgen -f -- \"$current\"))\n        return ;;\n", file);
    }
    if (put_pattern(file, FREE_TEXT) > 0) fputs(")\n        return ;;\n", file);
    for (size_t i = 0; i < cli_n_options; i++) {
        const cli_option *option = &cli_option_table[i];
        if (value_of(option) != WORDS) continue;
        fprintf(file, "    --%s) words='", option->name);
        put_words(file, option->words);
        fputs("' ;;\n", file);
    }
    fputs("    esac\n", file);
}

static void put_bash_options(FILE *file, const cli_command *command) {
    if (*command->name == 0) {
        fputs("    '') options='", file);
    } else {
        fprintf(file, "    %s) options='", command->name);
    }
    const char *blank = "";
    for (size_t i = 0; i < cli_n_options; i++) {
        const cli_option *option = &cli_option_table[i];
        if ((option->commands & mask_of(command)) == 0) continue;
        fprintf(file, "%s--%s", blank, option->name);
        blank = " ";
        if (option->letter != 0) fprintf(file, " -%c", option->letter);
    }
    fputs("' arguments='", file);
    if (*command->name == 0) put_command_names(file);
    put_arguments(file, command);
    fputs("' ;;\n", file);
}

static void put_bash(FILE *file) {
    fputs("# bash completion of dsinfer, made by: dsinfer completion bash\n"
          "_dsinfer() {\n"
          "    local IFS=$' \\t\\n' command='' options='' arguments='' words='' i\n"
          "    local current=${COMP_WORDS[COMP_CWORD]} previous=${COMP_WORDS[COMP_CWORD - 1]}\n"
          "    COMPREPLY=()\n"
          "    # --option=value comes as three words\n"
          "    if [[ $current == = ]]; then\n"
          "        current=''\n"
          "    elif [[ $previous == = ]] && ((COMP_CWORD > 2)); then\n"
          "        previous=${COMP_WORDS[COMP_CWORD - 2]}\n"
          "    fi\n"
          "    for ((i = 1; i < COMP_CWORD; i++)); do\n"
          "        case ${COMP_WORDS[i]} in\n",
          file);
    fputs("        ", file);
    for (size_t i = 0; i < cli_n_commands; i++) {
        fprintf(file, "%s%s", i == 0 ? "" : "|", cli_command_table[i].name);
    }
    fputs(") command=${COMP_WORDS[i]}; break ;;\n"
          "        esac\n"
          "    done\n"
          "    case $command in\n",
          file);
    put_bash_options(file, &cli_overview);
    for (size_t i = 0; i < cli_n_commands; i++) put_bash_options(file, &cli_command_table[i]);
    fputs("    esac\n"
          "    IFS=$'\\n' # names of files may hold blanks\n",
          file);
    put_bash_values(file);
    fputs("    IFS=$' \\t\\n'\n"
          "    if [[ -n $words ]]; then\n"
          "        COMPREPLY=($(compgen -W \"$words\" -- \"$current\"))\n"
          "    elif [[ $current == -* ]]; then\n"
          "        COMPREPLY=($(compgen -W \"$options\" -- \"$current\"))\n"
          "    else\n"
          "        COMPREPLY=($(compgen -W \"$arguments\" -- \"$current\"))\n"
          "    fi\n"
          "}\n"
          "complete -F _dsinfer dsinfer\n",
          file);
}

/* ---- zsh --------------------------------------------------------------------------------------
 */

/* Each specification starts a line of its own; the caller ends the last one. */
static void put_zsh_option(FILE *file, const cli_option *option, uint32_t command) {
    uint32_t value = value_of(option);
    const char *equals = value == NO_VALUE ? "" : "=";
    if (option->letter != 0) {
        fprintf(file, " \\\n            '(-%c --%s)'{-%c,--%s%s}'[", option->letter, option->name,
                option->letter, option->name, equals);
    } else {
        fprintf(file, " \\\n            '--%s%s[", option->name, equals);
    }
    put_quoted(file, cli_tr(option->en, option->zh), "[]\\", "'\\''");
    fputc(']', file);
    if (value != NO_VALUE) fprintf(file, ":%s:", option->argument);
    if (value == FREE_TEXT) fputc(' ', file);
    if (value == FOLDER) fputs(command == CLI_TOKENIZE ? "_files" : "_files -/", file);
    if (value == ANY_FILE) fputs("_files", file);
    if (value == WORDS) {
        fputc('(', file);
        put_words(file, option->words);
        fputc(')', file);
    }
    fputc('\'', file);
}

static void put_zsh_command(FILE *file, const cli_command *command) {
    fprintf(file, "        %s) _arguments -s", command->name);
    for (size_t i = 0; i < cli_n_options; i++) {
        const cli_option *option = &cli_option_table[i];
        if ((option->commands & command->bit) != 0) put_zsh_option(file, option, command->bit);
    }
    if (takes_a_command(command) || command->words != NULL) {
        fprintf(file, " \\\n            '1:%s:(", command->argument);
        put_arguments(file, command);
        fputs(")'", file);
    } else if (command->argument != NULL) {
        fprintf(file, " \\\n            '1:%s: '", command->argument);
    }
    fputs(" ;;\n", file);
}

static void put_zsh(FILE *file) {
    fputs("#compdef dsinfer\n"
          "# zsh completion of dsinfer, made by: dsinfer completion zsh\n"
          "_dsinfer() {\n"
          "    local curcontext=\"$curcontext\" state line\n"
          "    local -a commands\n"
          "    commands=(\n",
          file);
    for (size_t i = 0; i < cli_n_commands; i++) {
        fprintf(file, "        '%s:", cli_command_table[i].name);
        put_quoted(file, cli_tr(cli_command_table[i].en, cli_command_table[i].zh), ":\\", "'\\''");
        fputs("'\n", file);
    }
    fputs("    )\n"
          "    _arguments -C",
          file);
    for (size_t i = 0; i < cli_n_options; i++) {
        if ((cli_option_table[i].commands & CLI_HELP) != 0)
            put_zsh_option(file, &cli_option_table[i], 0);
    }
    fputs(" \\\n            '1:command:->command' '*::argument:->argument'\n"
          "    case $state in\n"
          "    command) _describe -t commands command commands ;;\n"
          "    argument)\n"
          "        case $words[1] in\n",
          file);
    for (size_t i = 0; i < cli_n_commands; i++) put_zsh_command(file, &cli_command_table[i]);
    fputs("        esac ;;\n"
          "    esac\n"
          "}\n"
          "if [[ $funcstack[1] == _dsinfer ]]; then\n"
          "    _dsinfer \"$@\"\n"
          "else\n"
          "    compdef _dsinfer dsinfer\n"
          "fi\n",
          file);
}

/* ---- fish -------------------------------------------------------------------------------------
 */

static void put_fish_option(FILE *file, const cli_option *option, const char *condition) {
    uint32_t value = value_of(option);
    fprintf(file, "complete -c dsinfer -n '%s' -l %s", condition, option->name);
    if (option->letter != 0) fprintf(file, " -s %c", option->letter);
    if (value == FREE_TEXT) fputs(" -x", file);
    if (value == FOLDER || value == ANY_FILE) fputs(" -rF", file);
    if (value == WORDS) {
        fputs(" -xa '", file);
        put_words(file, option->words);
        fputc('\'', file);
    }
    fputs(" -d '", file);
    put_quoted(file, cli_tr(option->en, option->zh), "\\", "\\'");
    fputs("'\n", file);
}

static void put_fish(FILE *file) {
    fputs("# fish completion of dsinfer, made by: dsinfer completion fish\n"
          "complete -c dsinfer -f\n",
          file);
    for (size_t i = 0; i < cli_n_commands; i++) {
        fprintf(file, "complete -c dsinfer -n __fish_use_subcommand -a %s -d '",
                cli_command_table[i].name);
        put_quoted(file, cli_tr(cli_command_table[i].en, cli_command_table[i].zh), "\\", "\\'");
        fputs("'\n", file);
    }
    for (size_t i = 0; i < cli_n_options; i++) {
        if ((cli_option_table[i].commands & CLI_HELP) == 0) continue;
        put_fish_option(file, &cli_option_table[i], "__fish_use_subcommand");
    }
    for (size_t i = 0; i < cli_n_commands; i++) {
        const cli_command *command = &cli_command_table[i];
        char condition[96];
        snprintf(condition, sizeof condition, "__fish_seen_subcommand_from %s", command->name);
        for (size_t j = 0; j < cli_n_options; j++) {
            if ((cli_option_table[j].commands & command->bit) == 0) continue;
            put_fish_option(file, &cli_option_table[j], condition);
        }
        if (!takes_a_command(command) && command->words == NULL) continue;
        fprintf(file, "complete -c dsinfer -n '%s' -a '", condition);
        put_arguments(file, command);
        fputs("'\n", file);
    }
}

static void put_completion(FILE *file, const void *what) {
    const char *shell = what;
    if (strcmp(shell, "bash") == 0) put_bash(file);
    if (strcmp(shell, "zsh") == 0) put_zsh(file);
    if (strcmp(shell, "fish") == 0) put_fish(file);
}

int cli_completion(const cli_options *options) {
    if (options->argument == NULL) {
        cli_error(cli_tr("no shell was named", "没有指定 shell"));
        cli_hint(cli_tr("one of bash, zsh, fish: source <(dsinfer completion bash)",
                        "bash、zsh、fish 之一：source <(dsinfer completion bash)"));
        return CLI_USAGE;
    }
    return cli_write_made(options, options->argument, put_completion, options->argument);
}
