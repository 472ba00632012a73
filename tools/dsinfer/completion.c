/* completion.c: dsinfer completion: scripts for bash, zsh and fish, from table.c. */
#include "cli.h"
#include <string.h>

/* What the value of an option can be completed to. */
enum { NO_VALUE, FREE_TEXT, WORDS, FOLDER, ANY_FILE };
static uint32_t value_of(const cli_option *option) {
    if (option->argument == NULL) return NO_VALUE;
    if (option->words != NULL) return WORDS;
    if (strcmp(option->argument, "DIR") == 0) return FOLDER;
    return strcmp(option->argument, "FILE") == 0 ? ANY_FILE : FREE_TEXT;
}

static uint32_t mask_of(const cli_command *command) {
    return command->bit == 0 ? CLI_HELP : command->bit;
}

/* "a|b" as "a b" */
static void put_words(const char *words) {
    for (; *words != 0; words++) putchar(*words == '|' ? ' ' : *words);
}

static void put_command_names(void) {
    for (size_t i = 0; i < cli_n_commands; i++) {
        printf("%s%s", i == 0 ? "" : " ", cli_command_table[i].name);
    }
}

static bool takes_a_command(const cli_command *command) {
    return command->argument != NULL && strcmp(command->argument, "COMMAND") == 0;
}

/* What its one word can be: names of commands, words of the table, or nothing that is known. */
static void put_arguments(const cli_command *command) {
    if (takes_a_command(command)) put_command_names();
    if (command->words != NULL) put_words(command->words);
}

/* Text inside '...', with the characters of `special` behind a backslash. */
static void put_quoted(const char *text, const char *special, const char *apostrophe) {
    for (; *text != 0; text++) {
        if (*text == '\'') {
            fputs(apostrophe, stdout);
            continue;
        }
        if (strchr(special, *text) != NULL) putchar('\\');
        putchar(*text);
    }
}

/* ---- bash -------------------------------------------------------------------------------------
 */

/* The names of all options whose values are of this kind as a pattern: "--golden|--manifest". */
static size_t put_pattern(uint32_t value) {
    size_t n = 0;
    for (size_t i = 0; i < cli_n_options; i++) {
        const cli_option *option = &cli_option_table[i];
        if (value_of(option) != value) continue;
        printf("%s--%s", n++ == 0 ? "    " : "|", option->name);
        if (option->letter != 0) printf("|-%c", option->letter);
    }
    return n;
}

static void put_bash_values(void) {
    puts("    case $previous in");
    if (put_pattern(FOLDER) > 0) {
        puts(")\n        compopt -o filenames 2>/dev/null");
        puts("        local kind=-d");
        puts("        [[ $command == tokenize ]] && kind=-f");
        puts("        COMPREPLY=($(compgen $kind -- \"$current\"))\n        return ;;");
    }
    if (put_pattern(ANY_FILE) > 0) {
        puts(")\n        compopt -o filenames 2>/dev/null");
        puts("        COMPREPLY=($(compgen -f -- \"$current\"))\n        return ;;");
    }
    if (put_pattern(FREE_TEXT) > 0) puts(")\n        return ;;");
    for (size_t i = 0; i < cli_n_options; i++) {
        const cli_option *option = &cli_option_table[i];
        if (value_of(option) != WORDS) continue;
        printf("    --%s) words='", option->name);
        put_words(option->words);
        puts("' ;;");
    }
    puts("    esac");
}

static void put_bash_options(const cli_command *command) {
    if (*command->name == 0) {
        fputs("    '') options='", stdout);
    } else {
        printf("    %s) options='", command->name);
    }
    const char *blank = "";
    for (size_t i = 0; i < cli_n_options; i++) {
        const cli_option *option = &cli_option_table[i];
        if ((option->commands & mask_of(command)) == 0) continue;
        printf("%s--%s", blank, option->name);
        blank = " ";
        if (option->letter != 0) printf(" -%c", option->letter);
    }
    fputs("' arguments='", stdout);
    if (*command->name == 0) put_command_names();
    put_arguments(command);
    puts("' ;;");
}

static void put_bash(void) {
    puts("# bash completion of dsinfer, made by: dsinfer completion bash\n"
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
         "        case ${COMP_WORDS[i]} in");
    fputs("        ", stdout);
    for (size_t i = 0; i < cli_n_commands; i++) {
        printf("%s%s", i == 0 ? "" : "|", cli_command_table[i].name);
    }
    puts(") command=${COMP_WORDS[i]}; break ;;\n"
         "        esac\n"
         "    done\n"
         "    case $command in");
    put_bash_options(&cli_overview);
    for (size_t i = 0; i < cli_n_commands; i++) put_bash_options(&cli_command_table[i]);
    puts("    esac\n"
         "    IFS=$'\\n' # names of files may hold blanks");
    put_bash_values();
    puts("    IFS=$' \\t\\n'\n"
         "    if [[ -n $words ]]; then\n"
         "        COMPREPLY=($(compgen -W \"$words\" -- \"$current\"))\n"
         "    elif [[ $current == -* ]]; then\n"
         "        COMPREPLY=($(compgen -W \"$options\" -- \"$current\"))\n"
         "    else\n"
         "        COMPREPLY=($(compgen -W \"$arguments\" -- \"$current\"))\n"
         "    fi\n"
         "}\n"
         "complete -F _dsinfer dsinfer");
}

/* ---- zsh --------------------------------------------------------------------------------------
 */

/* Each specification starts a line of its own; the caller ends the last one. */
static void put_zsh_option(const cli_option *option, uint32_t command) {
    uint32_t value = value_of(option);
    const char *equals = value == NO_VALUE ? "" : "=";
    if (option->letter != 0) {
        printf(" \\\n            '(-%c --%s)'{-%c,--%s%s}'[", option->letter, option->name,
               option->letter, option->name, equals);
    } else {
        printf(" \\\n            '--%s%s[", option->name, equals);
    }
    put_quoted(cli_tr(option->en, option->zh), "[]\\", "'\\''");
    putchar(']');
    if (value != NO_VALUE) printf(":%s:", option->argument);
    if (value == FREE_TEXT) putchar(' ');
    if (value == FOLDER) fputs(command == CLI_TOKENIZE ? "_files" : "_files -/", stdout);
    if (value == ANY_FILE) fputs("_files", stdout);
    if (value == WORDS) {
        putchar('(');
        put_words(option->words);
        putchar(')');
    }
    putchar('\'');
}

static void put_zsh_command(const cli_command *command) {
    printf("        %s) _arguments -s", command->name);
    for (size_t i = 0; i < cli_n_options; i++) {
        const cli_option *option = &cli_option_table[i];
        if ((option->commands & command->bit) != 0) put_zsh_option(option, command->bit);
    }
    if (takes_a_command(command) || command->words != NULL) {
        printf(" \\\n            '1:%s:(", command->argument);
        put_arguments(command);
        fputs(")'", stdout);
    } else if (command->argument != NULL) {
        printf(" \\\n            '1:%s: '", command->argument);
    }
    puts(" ;;");
}

static void put_zsh(void) {
    puts("#compdef dsinfer\n"
         "# zsh completion of dsinfer, made by: dsinfer completion zsh\n"
         "_dsinfer() {\n"
         "    local curcontext=\"$curcontext\" state line\n"
         "    local -a commands\n"
         "    commands=(");
    for (size_t i = 0; i < cli_n_commands; i++) {
        printf("        '%s:", cli_command_table[i].name);
        put_quoted(cli_tr(cli_command_table[i].en, cli_command_table[i].zh), ":\\", "'\\''");
        puts("'");
    }
    fputs("    )\n"
          "    _arguments -C",
          stdout);
    for (size_t i = 0; i < cli_n_options; i++) {
        if ((cli_option_table[i].commands & CLI_HELP) != 0) put_zsh_option(&cli_option_table[i], 0);
    }
    puts(" \\\n            '1:command:->command' '*::argument:->argument'\n"
         "    case $state in\n"
         "    command) _describe -t commands command commands ;;\n"
         "    argument)\n"
         "        case $words[1] in");
    for (size_t i = 0; i < cli_n_commands; i++) put_zsh_command(&cli_command_table[i]);
    puts("        esac ;;\n"
         "    esac\n"
         "}\n"
         "if [[ $funcstack[1] == _dsinfer ]]; then\n"
         "    _dsinfer \"$@\"\n"
         "else\n"
         "    compdef _dsinfer dsinfer\n"
         "fi");
}

/* ---- fish -------------------------------------------------------------------------------------
 */

static void put_fish_option(const cli_option *option, const char *condition) {
    uint32_t value = value_of(option);
    printf("complete -c dsinfer -n '%s' -l %s", condition, option->name);
    if (option->letter != 0) printf(" -s %c", option->letter);
    if (value == FREE_TEXT) fputs(" -x", stdout);
    if (value == FOLDER || value == ANY_FILE) fputs(" -rF", stdout);
    if (value == WORDS) {
        fputs(" -xa '", stdout);
        put_words(option->words);
        putchar('\'');
    }
    fputs(" -d '", stdout);
    put_quoted(cli_tr(option->en, option->zh), "\\", "\\'");
    puts("'");
}

static void put_fish(void) {
    puts("# fish completion of dsinfer, made by: dsinfer completion fish\n"
         "complete -c dsinfer -f");
    for (size_t i = 0; i < cli_n_commands; i++) {
        printf("complete -c dsinfer -n __fish_use_subcommand -a %s -d '",
               cli_command_table[i].name);
        put_quoted(cli_tr(cli_command_table[i].en, cli_command_table[i].zh), "\\", "\\'");
        puts("'");
    }
    for (size_t i = 0; i < cli_n_options; i++) {
        if ((cli_option_table[i].commands & CLI_HELP) == 0) continue;
        put_fish_option(&cli_option_table[i], "__fish_use_subcommand");
    }
    for (size_t i = 0; i < cli_n_commands; i++) {
        const cli_command *command = &cli_command_table[i];
        char condition[96];
        snprintf(condition, sizeof condition, "__fish_seen_subcommand_from %s", command->name);
        for (size_t j = 0; j < cli_n_options; j++) {
            if ((cli_option_table[j].commands & command->bit) == 0) continue;
            put_fish_option(&cli_option_table[j], condition);
        }
        if (!takes_a_command(command) && command->words == NULL) continue;
        printf("complete -c dsinfer -n '%s' -a '", condition);
        put_arguments(command);
        puts("'");
    }
}

int cli_completion(const cli_options *options) {
    const char *shell = options->argument;
    if (shell == NULL) {
        cli_error(cli_tr("no shell was named", "没有指定 shell"));
        cli_hint(cli_tr("one of bash, zsh, fish: source <(dsinfer completion bash)",
                        "bash、zsh、fish 之一：source <(dsinfer completion bash)"));
        return CLI_USAGE;
    }
    if (strcmp(shell, "bash") == 0) put_bash();
    if (strcmp(shell, "zsh") == 0) put_zsh();
    if (strcmp(shell, "fish") == 0) put_fish();
    return CLI_OK;
}
