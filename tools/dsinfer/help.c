/* help.c: the help texts. Options come from the table in options.c; examples stand first. */
#include "cli.h"
#include <string.h>

typedef struct page {
    uint32_t command;
    const char *usage;
    const char *en, *zh;           /* what it does, one line */
    const char *examples[3];       /* one per line; the command line itself */
    const char *note_en, *note_zh; /* behind the options; NULL: none */
} page;

static const page pages[] = {
    {0,
     "dsinfer COMMAND [OPTION ...] [TEXT]",
     "Run DeepSeek models on this machine.",
     "在本机运行 DeepSeek 模型。",
     {"dsinfer run -m examples/models/tiny-gov "
      "$'工单分拨：\\n文化路路灯不亮。'",
      "dsinfer inspect -m examples/models/tiny-gov --tensors",
      "dsinfer verify -m MODEL --golden MODEL/golden.safetensors --activations f32"},
     "Data on stdout, talk on stderr. Exit codes: 0 ok, 1 failed check, 2 usage,\n"
     "3 environment (memory, files that cannot be read), 4 bad model or golden file.",
     "数据走标准输出，提示走标准错误。退出码：0 正常，1 检查未通过，2 用法错误，\n"
     "3 环境问题（内存、文件无法读取），4 模型或标准答案文件有误。"},
    {CLI_RUN,
     "dsinfer run -m DIR [OPTION ...] PROMPT|-",
     "Answer one prompt; - reads it from stdin.",
     "回答一个提示；- 表示从标准输入读取。",
     {"dsinfer run -m MODEL --no-think \"起草一份安全生产检查通知\"",
      "dsinfer run -m MODEL --temperature 0.6 --top-p 0.95 --seed 7 - < prompt.txt",
      "dsinfer run -m MODEL --json --max-tokens 200 \"PROMPT\" | jq -r .text"},
     "On a terminal the reasoning is shown dimmed between <think> marks; a pipe gets\n"
     "the answer alone, --json both. Ctrl-C once ends the answer, twice leaves.",
     "在终端上，思考内容以暗色显示在 <think> 标记之间；写入管道时只有回答；\n"
     "--json 两者都给。按一次 Ctrl-C 结束回答，按两次退出。"},
    {CLI_TOKENIZE,
     "dsinfer tokenize -m DIR|tokenizer.json [OPTION ...] TEXT|-",
     "Show the tokens of a text; - reads it from stdin.",
     "显示文本的 token；- 表示从标准输入读取。",
     {"dsinfer tokenize -m MODEL \"粤府〔2025〕12号\"",
      "dsinfer tokenize -m MODEL/tokenizer.json --special - < text.txt",
      "dsinfer tokenize -m MODEL --jsonl < texts.jsonl > ids.jsonl"},
     "--threads and --max-memory are accepted as everywhere; nothing here needs them.",
     "--threads 与 --max-memory 与其他命令一致，可以写出；分词用不到。"},
    {CLI_INSPECT,
     "dsinfer inspect -m DIR [OPTION ...]",
     "Show sizes, types, parameters and the memory plan of a model.",
     "显示模型的规模、类型、参数量与内存计划。",
     {"dsinfer inspect -m MODEL", "dsinfer inspect -m MODEL --context 8192 --max-memory 16G",
      "dsinfer inspect -m MODEL --tensors --json"},
     NULL,
     NULL},
    {CLI_VERIFY,
     "dsinfer verify -m DIR --golden FILE|--manifest FILE|--write-manifest FILE [OPTION ...]",
     "Compare logits or files with recorded ones; exit 1 if they differ.",
     "与记录的 logits 或文件摘要比较；不符时退出码为 1。",
     {"dsinfer verify -m MODEL --golden MODEL/golden.safetensors",
      "dsinfer verify -m MODEL --golden FILE --activations f32 --max-mean-kl 1e-7",
      "dsinfer verify -m MODEL --manifest MODEL.sha256"},
     "A golden FILE holds tokens I32 [T], logits F32 [T][vocab], greedy I32 [G], and may\n"
     "hold greedy_prompt I32 [P], from which the greedy tokens then start. A manifest\n"
     "holds lines of sha256sum, or of cksum for SM3, with names relative to the model.",
     "标准答案 FILE 含 tokens I32 [T]、logits F32 [T][vocab]、greedy I32 [G]，\n"
     "可含 greedy_prompt I32 [P]：贪心结果从它开始。清单为 sha256sum 格式的行\n"
     "（SM3 为 cksum 格式），文件名相对于模型目录。"},
};
enum { N_PAGES = sizeof pages / sizeof pages[0] };

static void print_option(FILE *file, const cli_option *option) {
    enum { COLUMN = 26 };
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

void cli_print_help(FILE *file, uint32_t command) {
    const page *shown = &pages[0];
    for (size_t i = 0; i < N_PAGES; i++) {
        if (pages[i].command == command) shown = &pages[i];
    }
    fprintf(file, "%s\n", cli_tr("Examples:", "示例："));
    for (size_t i = 0; i < 3; i++) fprintf(file, "  %s\n", shown->examples[i]);
    fprintf(file, cli_tr("\n%s\nUsage: %s\n", "\n%s\n用法：%s\n"), cli_tr(shown->en, shown->zh),
            shown->usage);
    if (shown->command == 0) {
        fprintf(file, "%s\n", cli_tr("Commands:", "命令："));
        for (size_t i = 1; i < N_PAGES; i++) {
            fprintf(file, "  %-10s%s\n", cli_command_name(pages[i].command),
                    cli_tr(pages[i].en, pages[i].zh));
        }
        fprintf(file, "  %-10s%s\n", "help",
                cli_tr("Explain a command: dsinfer help run", "说明一个命令：dsinfer help run"));
    }
    fprintf(file, "%s\n", cli_tr("Options:", "选项："));
    uint32_t mask = shown->command == 0 ? CLI_HELP : shown->command;
    for (size_t i = 0; i < cli_n_options; i++) {
        if ((cli_option_table[i].commands & mask) != 0) print_option(file, &cli_option_table[i]);
    }
    if (shown->note_en != NULL) fprintf(file, "%s\n", cli_tr(shown->note_en, shown->note_zh));
}
