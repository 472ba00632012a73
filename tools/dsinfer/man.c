/* man.c: dsinfer man: one page in roff for dsinfer and for each command, from table.c. */
#include "cli.h"
#include <ctype.h>
#include <string.h>

#define U32_MAX 4294967295.0

static const struct {
    const char *code, *en, *zh;
} exits[] = {
    {"0", "Done; also when the reader of stdout left.", "正常；标准输出的读者提前离开也算正常。"},
    {"1", "A check found a difference or a fault.", "检查发现差异或故障。"},
    {"2", "Usage: an option, a prompt, a line of JSON, a text longer than the context.",
     "用法错误：选项、提示、一行 JSON，或超过上下文的文本。"},
    {"3", "Environment: memory, the memory cap, a file that cannot be read or written.",
     "环境问题：内存、内存上限、无法读取或写入的文件。"},
    {"4", "A checkpoint, golden file or saved conversation is missing, damaged or unsupported.",
     "模型、标准答案或保存的对话缺少、损坏或不受支持。"},
};

static const struct {
    const char *name, *en, *zh;
} variables[] = {
    {"LC_ALL, LC_MESSAGES, LANG",
     "The first that is set chooses the language: Chinese if it starts with zh.",
     "第一个已设置的变量决定语言：以 zh 开头即为中文。"},
    {"NO_COLOR, TERM",
     "If NO_COLOR is not empty, or TERM is dumb, nothing is coloured. With TERM=dumb no "
     "progress bar is drawn.",
     "NO_COLOR 非空或 TERM 为 dumb 时不着色；TERM=dumb 时也不画进度条。"},
};

/* ---- Roff -------------------------------------------------------------------------------------
 */

/* A Chinese line may end behind any character but not before closing punctuation; groff learns it
 * from \: between them. */
static bool may_break(uint32_t c, const char *next, size_t n_next) {
    static const char closing[] = "，。、；：？！）】》”’〕…";
    uint32_t follows;
    if (c < 0x2e80) return false;
    size_t n = cli_utf8_next(next, n_next, &follows);
    if (n == 0 || follows < 0x80) return n != 0;
    return memmem(closing, sizeof closing - 1, next, n) == NULL;
}

/* Text of a paragraph. Line ends inside become blanks, or nothing between Chinese characters. */
static void roff(FILE *file, const char *text) {
    uint32_t c = 0, last = 0;
    size_t n_bytes = strlen(text);
    bool first = true;
    for (size_t at = 0; at < n_bytes;) {
        size_t n = cli_utf8_next(text + at, n_bytes - at, &c);
        if (n == 0) break; /* the tables are UTF-8 */
        if (c == '\n') {
            fputs(last < 0x2e80 ? "\n" : "\\:", file);
            first = last < 0x2e80;
        } else if (c == '\\') {
            fputs("\\e", file);
        } else if (c == '-') {
            fputs("\\-", file);
        } else if (c == '\'') {
            fputs("\\(aq", file);
        } else if (c == '~' || c == '^' || c == '`') {
            fputs(c == '~' ? "\\(ti" : c == '^' ? "\\(ha" : "\\(ga", file);
        } else {
            if (first && c == '.') fputs("\\&", file);
            fwrite(text + at, 1, n, file);
            if (may_break(c, text + at + n, n_bytes - at - n)) fputs("\\:", file);
        }
        if (c != '\n') first = false;
        last = c;
        at += n;
    }
}

static void section(FILE *file, const char *en, const char *zh) {
    fprintf(file, ".SH %s\n", cli_tr(en, zh));
}

/* "dsinfer\-run" */
static void page_name(FILE *file, const cli_command *command, bool upper) {
    const char *name = "dsinfer", *parts[2] = {name, command->name};
    for (size_t i = 0; i < (*command->name == 0 ? 1 : 2); i++) {
        if (i == 1) fputs("\\-", file);
        for (const char *c = parts[i]; *c != 0; c++) {
            fputc(upper ? toupper((unsigned char)*c) : *c, file);
        }
    }
}

static void put_limits(FILE *file, const cli_option *option) {
    if (option->kind == CLI_U32 && option->high >= U32_MAX) {
        fprintf(file, cli_tr(" At least %.0f.", "不小于 %.0f。"), option->low);
    } else if (option->kind == CLI_U32 || option->kind == CLI_F64 || option->kind == CLI_OPTIONAL) {
        fprintf(file, cli_tr(" From %.10g to %.10g.", "取值 %.10g 到 %.10g。"), option->low,
                option->high);
    }
}

static void put_option(FILE *file, const cli_option *option) {
    fputs(".TP\n", file);
    if (option->letter != 0) fprintf(file, "\\fB\\-%c\\fR, ", option->letter);
    fputs("\\fB\\-\\-", file);
    roff(file, option->name);
    fputs("\\fR", file);
    if (option->argument != NULL) {
        bool optional = option->kind == CLI_OPTIONAL;
        fputs(optional ? "[=\\fI" : " \\fI", file);
        roff(file, option->argument);
        fputs(optional ? "\\fR]" : "\\fR", file);
    }
    fputc('\n', file);
    roff(file, cli_tr(option->en, option->zh));
    if (option->words != NULL) {
        fputs(cli_tr(": ", "："), file);
        roff(file, option->words);
    }
    fputs(cli_tr(".", "。"), file);
    put_limits(file, option);
    fputc('\n', file);
}

static void put_commands(FILE *file) {
    section(file, "COMMANDS", "命令");
    for (size_t i = 0; i < cli_n_commands; i++) {
        fputs(".TP\n.B ", file);
        roff(file, cli_command_table[i].name);
        fputc('\n', file);
        roff(file, cli_tr(cli_command_table[i].en, cli_command_table[i].zh));
        fputs(cli_tr(".\n", "。\n"), file);
    }
}

static void put_examples(FILE *file, const cli_command *command) {
    section(file, "EXAMPLES", "示例");
    fputs(".nf\n", file);
    for (size_t i = 0; i < 3; i++) {
        roff(file, command->examples[i]);
        fputc('\n', file);
    }
    fputs(".fi\n", file);
}

static void put_environment(FILE *file) {
    section(file, "EXIT STATUS", "退出码");
    for (size_t i = 0; i < sizeof exits / sizeof exits[0]; i++) {
        fprintf(file, ".TP\n.B %s\n", exits[i].code);
        roff(file, cli_tr(exits[i].en, exits[i].zh));
        fputc('\n', file);
    }
    section(file, "ENVIRONMENT", "环境变量");
    for (size_t i = 0; i < sizeof variables / sizeof variables[0]; i++) {
        fprintf(file, ".TP\n.B %s\n", variables[i].name);
        roff(file, cli_tr(variables[i].en, variables[i].zh));
        fputc('\n', file);
    }
}

/* dsinfer(1) leads to every command, and every command back. */
static void put_see_also(FILE *file, const cli_command *command) {
    section(file, "SEE ALSO", "参见");
    if (command->bit != 0) fprintf(file, "\\fBdsinfer\\fR(1)");
    for (size_t i = 0; i < cli_n_commands && command->bit == 0; i++) {
        if (i > 0) fputs(",\n", file);
        fputs("\\fB", file);
        page_name(file, &cli_command_table[i], false);
        fputs("\\fR(1)", file);
    }
    fputc('\n', file);
}

static void put_page(FILE *file, const void *what) {
    const cli_command *command = what;
    fprintf(file, ".\\\" Made by dsinfer man %s.\n.TH ", command->name);
    page_name(file, command, true);
    fprintf(file, " 1 \"\" \"dsinfer %s\" \"%s\"\n.nh\n.ad l\n", dsi_version(),
            cli_tr("User Commands", "用户命令"));
    section(file, "NAME", "名称");
    page_name(file, command, false);
    fputs(" \\- ", file);
    roff(file, cli_tr(command->en, command->zh));
    fputc('\n', file);
    section(file, "SYNOPSIS", "用法");
    fprintf(file, ".B dsinfer %s\n", command->name);
    roff(file, command->usage);
    fputc('\n', file);
    if (command->note_en != NULL) {
        section(file, "DESCRIPTION", "说明");
        roff(file, cli_tr(command->note_en, command->note_zh));
        fputc('\n', file);
    }
    if (command->bit == 0) put_commands(file);
    section(file, "OPTIONS", "选项");
    uint32_t mask = command->bit == 0 ? CLI_HELP : command->bit;
    for (size_t i = 0; i < cli_n_options; i++) {
        if ((cli_option_table[i].commands & mask) != 0) put_option(file, &cli_option_table[i]);
    }
    put_examples(file, command);
    put_environment(file);
    put_see_also(file, command);
}

/* ---- The command ------------------------------------------------------------------------------
 */

static void put_list(FILE *file, const void *what) {
    (void)what;
    fputs("dsinfer\n", file);
    for (size_t i = 0; i < cli_n_commands; i++) {
        fprintf(file, "dsinfer-%s\n", cli_command_table[i].name);
    }
}

int cli_man(const cli_options *options) {
    const cli_command *command = &cli_overview;
    const char *name = options->argument;
    if (options->list) return cli_write_made(options, "pages", put_list, NULL);
    if (name != NULL && strncmp(name, "dsinfer-", 8) == 0) name += 8;
    if (name != NULL && strcmp(name, "dsinfer") != 0) {
        int code = cli_need_command(name, &command);
        if (code != CLI_OK) return code;
    }
    char page[64];
    snprintf(page, sizeof page, "dsinfer%s%s", *command->name == 0 ? "" : "-", command->name);
    int code = cli_write_made(options, page, put_page, command);
    if (code == CLI_OK && cli_stdout_is_terminal()) {
        cli_hint(cli_tr("to read it: dsinfer man %s | man -l -", "阅读：dsinfer man %s | man -l -"),
                 options->argument == NULL ? "" : command->name);
    }
    return code;
}
