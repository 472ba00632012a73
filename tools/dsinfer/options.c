/* options.c: reads the command line by the tables of table.c, and explains mistakes in it. */
#include "cli.h"
#include <string.h>

const char *cli_command_name(uint32_t bit) {
    for (size_t i = 0; i < cli_n_commands; i++) {
        if (cli_command_table[i].bit == bit) return cli_command_table[i].name;
    }
    return NULL;
}

const cli_command *cli_find_command(const char *name) {
    for (size_t i = 0; i < cli_n_commands; i++) {
        if (strcmp(cli_command_table[i].name, name) == 0) return &cli_command_table[i];
    }
    return NULL;
}

const cli_option *cli_find_option(const char *name) {
    for (size_t i = 0; i < cli_n_options; i++) {
        if (strcmp(cli_option_table[i].name, name) == 0) return &cli_option_table[i];
    }
    return NULL;
}

void cli_default_sampling(cli_options *options) {
    options->temperature = options->min_p = 0;
    options->presence_penalty = options->frequency_penalty = 0;
    options->top_p = options->repetition_penalty = 1;
    options->top_k = options->max_tokens = options->n_stop = 0;
    options->seed = 0;
    options->think = DSI_THINK_AUTO;
}

/* `place` is where more can be read: "dsinfer" or "dsinfer run". */
static void suggest(const char *prefix, const char *nearest, const char *unknown,
                    const char *place) {
    size_t n = strlen(unknown);
    bool near = nearest != NULL && n <= 40 && cli_distance(unknown, nearest) <= 1 + n / 3;
    if (near) {
        cli_hint(cli_tr("did you mean %s%s?", "是不是想用 %s%s？"), prefix, nearest);
    } else {
        cli_hint(cli_tr("dsinfer %s--help lists what there is", "dsinfer %s--help 列出全部用法"),
                 place);
    }
}

int cli_need_command(const char *name, const cli_command **command) {
    *command = cli_find_command(name);
    if (*command != NULL) return CLI_OK;
    const char *nearest = NULL;
    uint32_t best = UINT32_MAX;
    for (size_t i = 0; i < cli_n_commands; i++) {
        uint32_t distance = cli_distance(name, cli_command_table[i].name);
        if (distance < best) best = distance, nearest = cli_command_table[i].name;
    }
    cli_error(cli_tr("unknown command \"%s\"", "没有命令“%s”"), cli_show(name).text);
    suggest("dsinfer ", nearest, name, "");
    return CLI_USAGE;
}

/* The first command that has an option of this name, or 0. */
static uint32_t owner_of(const char *name, char letter) {
    for (size_t i = 0; i < cli_n_options; i++) {
        const cli_option *option = &cli_option_table[i];
        bool same = letter != 0 ? option->letter == letter : strcmp(option->name, name) == 0;
        if (same) return option->commands & (0u - option->commands); /* the lowest bit */
    }
    return 0;
}

/* An option that exists, but elsewhere, is explained rather than "corrected". */
static int unknown_option(const char *argument, const char *name, uint32_t command) {
    const char *nearest = NULL;
    uint32_t best = UINT32_MAX;
    for (size_t i = 0; i < cli_n_options; i++) {
        const cli_option *option = &cli_option_table[i];
        if ((option->commands & command) == 0) continue;
        uint32_t distance = cli_distance(name, option->name);
        if (distance < best) best = distance, nearest = option->name;
    }
    bool is_letter = argument[1] != '-';
    uint32_t owner = owner_of(name, is_letter ? argument[1] : 0);
    const char *where = cli_command_name(command);
    if (command == CLI_HELP) where = cli_tr("(no command yet)", "（还没有命令）");
    cli_error(cli_tr("unknown option \"%s\" of dsinfer %s", "没有选项“%s”：dsinfer %s"),
              cli_show(argument).text, where);
    if (owner != 0 && command == CLI_HELP) {
        cli_hint(cli_tr("the command comes first: dsinfer %s %s ...", "命令在前：dsinfer %s %s ……"),
                 cli_command_name(owner), cli_show(argument).text);
    } else if (owner != 0) {
        cli_hint(cli_tr("it belongs to dsinfer %s", "它属于 dsinfer %s"), cli_command_name(owner));
    } else {
        char place[32];
        snprintf(place, sizeof place, "%s%s", command == CLI_HELP ? "" : where,
                 command == CLI_HELP ? "" : " ");
        suggest("--", nearest, name, place);
    }
    if (is_letter && command != CLI_HELP) {
        cli_hint(
            cli_tr("a text that starts with - goes behind --", "以 - 开头的文本请放在 -- 之后"));
    }
    return CLI_USAGE;
}

static int bad_value(const cli_option *option, const char *value, const char *allowed) {
    cli_error(cli_tr("--%s: \"%s\" is not %s", "--%s：“%s”不是%s"), option->name,
              cli_show(value).text, allowed);
    return CLI_USAGE;
}

static int out_of_range(const cli_option *option, const char *value) {
    char allowed[96];
    const char *whole =
        option->kind == CLI_F64 ? cli_tr("a number", "数") : cli_tr("a whole number", "整数");
    snprintf(allowed, sizeof allowed, cli_tr("%s from %.10g to %.10g", "%s（%.10g 到 %.10g）"),
             whole, option->low, option->high);
    return bad_value(option, value, allowed);
}

/* Place of `value` in "a|b|c", or -1. */
static int word_place(const char *words, const char *value) {
    size_t n = strlen(value);
    int place = 0;
    for (const char *word = words;; place++) {
        size_t n_word = strcspn(word, "|");
        if (n_word == n && memcmp(word, value, n) == 0) return place;
        if (word[n_word] == 0) return -1;
        word += n_word + 1;
    }
}

/* The nearest of "a|b|c", if one is near. */
static void suggest_word(const char *words, const char *unknown) {
    char word[32], nearest[32] = "";
    uint32_t best = UINT32_MAX;
    for (; *words != 0; words += strcspn(words, "|"), words += *words == '|') {
        snprintf(word, sizeof word, "%.*s", (int)strcspn(words, "|"), words);
        uint32_t distance = cli_distance(unknown, word);
        if (distance < best) best = distance, memcpy(nearest, word, sizeof nearest);
    }
    if (best <= 1 + strlen(unknown) / 3)
        cli_hint(cli_tr("did you mean %s?", "是不是想用 %s？"), nearest);
}

static int store_word(const cli_option *option, const char *value, char *field) {
    int place = word_place(option->words, value);
    if (place < 0) {
        cli_error(cli_tr("--%s: \"%s\" is none of %s", "--%s：“%s”不在 %s 之中"), option->name,
                  cli_show(value).text, option->words);
        suggest_word(option->words, value);
        return CLI_USAGE;
    }
    if (option->kind == CLI_WORD) *(const char **)(void *)field = value;
    if (option->kind == CLI_INDEX) *(uint32_t *)(void *)field = (uint32_t)place;
    return CLI_OK;
}

static int store_stop(const cli_option *option, const char *value, cli_options *options) {
    size_t n = strlen(value);
    if (options->n_stop == CLI_MAX_STOPS) {
        cli_error(cli_tr("--%s: \"%s\" is one too many; the limit is %d",
                         "--%s：“%s”多出一个；上限为 %d 个"),
                  option->name, cli_show(value).text, CLI_MAX_STOPS);
        return CLI_USAGE;
    }
    if (n < 1 || n > CLI_MAX_STOP_BYTES) {
        cli_error(cli_tr("--%s: a text of %zu bytes; 1 to %d are allowed",
                         "--%s：文本有 %zu 字节；允许 1 到 %d 字节"),
                  option->name, n, CLI_MAX_STOP_BYTES);
        return CLI_USAGE;
    }
    if (cli_check_utf8("--stop", value, n) != CLI_OK) return CLI_USAGE;
    options->stop[options->n_stop++] = value;
    return CLI_OK;
}

static int store_value(const cli_option *option, const char *value, cli_options *options) {
    char *field = (char *)options + option->offset;
    uint64_t whole = 0;
    double number = 0;
    switch (option->kind) {
    case CLI_TEXT:
        *(const char **)(void *)field = value;
        return CLI_OK;
    case CLI_WORD:
    case CLI_INDEX:
        return store_word(option, value, field);
    case CLI_STOPS:
        return store_stop(option, value, options);
    case CLI_OPTIONAL:
    case CLI_U32:
        if (!cli_read_u64(value, &whole) || (double)whole < option->low ||
            (double)whole > option->high) {
            return out_of_range(option, value);
        }
        *(uint32_t *)(void *)field = (uint32_t)whole + (option->kind == CLI_OPTIONAL);
        return CLI_OK;
    case CLI_U64:
        if (!cli_read_u64(value, (uint64_t *)(void *)field)) {
            return bad_value(option, value,
                             cli_tr("a whole number from 0 to 18446744073709551615",
                                    " 0 到 18446744073709551615 的整数"));
        }
        return CLI_OK;
    case CLI_F64:
        if (!cli_read_f64(value, &number) || number < option->low || number > option->high) {
            return out_of_range(option, value);
        }
        *(double *)(void *)field = number;
        return CLI_OK;
    default:
        if (!cli_read_size(value, &whole) || whole == 0) {
            return bad_value(option, value,
                             cli_tr("a size above 0 such as 512M, 16G, 1.5GiB or 800MB",
                                    "大于 0 的容量，例如 512M、16G、1.5GiB、800MB"));
        }
        *(uint64_t *)(void *)field = whole;
        return CLI_OK;
    }
}

static const cli_option *find_option(const char *name, size_t n_name, char letter,
                                     uint32_t command) {
    for (size_t i = 0; i < cli_n_options; i++) {
        const cli_option *option = &cli_option_table[i];
        if ((option->commands & command) == 0) continue;
        if (letter != 0 && option->letter == letter) return option;
        if (letter == 0 && strlen(option->name) == n_name &&
            memcmp(option->name, name, n_name) == 0) {
            return option;
        }
    }
    return NULL;
}

static int value_missing(const cli_option *option) {
    const char *value = option->words != NULL ? option->words : option->argument;
    cli_error(cli_tr("--%s needs a value: --%s %s", "--%s 需要一个值：--%s %s"), option->name,
              option->name, value);
    cli_hint(cli_tr("%s is: %s", "%s：%s"), option->argument, cli_tr(option->en, option->zh));
    return CLI_USAGE;
}

/* One option at argv[*i]: --name, --name=value, --name value, -m, -mvalue, -m value. */
static int parse_option(int argc, char **argv, int *i, cli_options *options) {
    const char *argument = argv[*i];
    bool is_long = argument[1] == '-';
    const char *name = argument + (is_long ? 2 : 1);
    size_t n_name = is_long ? strcspn(name, "=") : 1;
    uint32_t command = options->command == 0 ? CLI_HELP : options->command;
    const cli_option *option = find_option(name, n_name, is_long ? 0 : *name, command);
    if (option == NULL) {
        char plain[CLI_SHOWN_BYTES];
        snprintf(plain, sizeof plain, "%.*s", (int)(n_name < 80 ? n_name : 80), name);
        return unknown_option(argument, plain, command);
    }
    const char *value = name[n_name] == 0 ? NULL : name + n_name + (is_long ? 1 : 0);
    if (option->argument == NULL) {
        if (value != NULL) {
            cli_error(cli_tr("--%s takes no value, and \"%s\" is one", "--%s 不带值，“%s”是多余的"),
                      option->name, cli_show(value).text);
            cli_hint(cli_tr("write --%s alone", "请只写 --%s"), option->name);
            return CLI_USAGE;
        }
        char *field = (char *)options + option->offset;
        if (option->kind == CLI_SET) *(uint32_t *)(void *)field = (uint32_t)option->low;
        if (option->kind == CLI_FLAG) *(bool *)(void *)field = true;
        return CLI_OK;
    }
    if (value == NULL && option->kind == CLI_OPTIONAL) value = "0";
    if (value == NULL && *i + 1 < argc) value = argv[++*i];
    if (value == NULL) return value_missing(option);
    int code = store_value(option, value, options);
    if (code != CLI_OK) {
        cli_hint(cli_tr("leave --%s out for its default, or see dsinfer help %s",
                        "去掉 --%s 即用默认值，或参看 dsinfer help %s"),
                 option->name, options->command == 0 ? "" : cli_command_name(options->command));
    }
    return code;
}

static int parse_word(const char *word, cli_options *options) {
    const cli_command *command = NULL;
    if (options->command == 0) {
        int code = cli_need_command(word, &command);
        if (code == CLI_OK) options->command = command->bit;
        return code;
    }
    command = cli_find_command(cli_command_name(options->command));
    const char *name = command->name;
    if (options->argument != NULL) {
        cli_error(cli_tr("dsinfer %s takes one text, and \"%s\" is the second",
                         "dsinfer %s 只接受一段文本，“%s”是第二段"),
                  name, cli_show(word).text);
        cli_hint(cli_tr("put the whole text in quotes", "请把整段文本放进引号"));
        return CLI_USAGE;
    }
    if (command->argument == NULL) {
        cli_error(cli_tr("dsinfer %s: unexpected \"%s\"", "dsinfer %s：多余的“%s”"), name,
                  cli_show(word).text);
        if (options->command == CLI_CHAT) {
            cli_hint(cli_tr("chat asks for texts when it runs; dsinfer run answers one at once",
                            "chat 运行后才输入文本；只问一次请用 dsinfer run"));
        } else {
            cli_hint(cli_tr("the model goes behind -m", "模型请写在 -m 之后"));
        }
        return CLI_USAGE;
    }
    if (command->words != NULL && word_place(command->words, word) < 0) {
        cli_error(cli_tr("dsinfer %s: \"%s\" is none of %s", "dsinfer %s：“%s”不在 %s 之中"), name,
                  cli_show(word).text, command->words);
        suggest_word(command->words, word);
        return CLI_USAGE;
    }
    options->argument = word;
    return CLI_OK;
}

int cli_parse(int argc, char **argv, cli_options *options) {
    memset(options, 0, sizeof *options);
    cli_default_sampling(options);
    options->draft = DSI_DRAFTS_AUTO;
    options->max_mean_kl = options->min_top1 = -1;
    bool words_only = false;
    for (int i = 1; i < argc; i++) {
        const char *argument = argv[i];
        bool is_option = !words_only && argument[0] == '-' && argument[1] != 0;
        if (is_option && strcmp(argument, "--") == 0) {
            words_only = true;
            continue;
        }
        int code =
            is_option ? parse_option(argc, argv, &i, options) : parse_word(argument, options);
        if (code != CLI_OK) return code;
    }
    return CLI_OK;
}
