/* chat_commands.c: the words with a slash that dsinfer chat understands. */
#include "chat.h"
#include <string.h>

typedef struct chat_word {
    const char *name, *argument; /* argument: NULL takes none, "[X]" may be left out */
    int (*run)(chat *c, const char *argument);
    const char *en, *zh;
} chat_word;
static const chat_word *words(size_t *n_words);

static int help(chat *c, const char *argument) {
    (void)c, (void)argument;
    size_t n = 0;
    const chat_word *word = words(&n);
    for (size_t i = 0; i < n; i++, word++) {
        char left[40];
        snprintf(left, sizeof left, "%s%s%s", word->name, word->argument == NULL ? "" : " ",
                 word->argument == NULL ? "" : word->argument);
        cli_say("  %-20s%s", left, cli_tr(word->en, word->zh));
    }
    cli_say("%s",
            cli_tr("Several lines: paste them, end a line with \\, or write \"\"\" before and "
                   "after.",
                   "多行输入：直接粘贴，或行末写 \\，或在前后各写 \"\"\"。"));
    cli_say("%s",
            cli_tr("A text that starts with / is written with //.", "以 / 开头的文本请写 //。"));
    return CLI_OK;
}

static int clear(chat *c, const char *argument) {
    (void)argument;
    bool system = chat_talk_system(&c->talk) != NULL;
    size_t n = c->talk.n_messages - system;
    chat_talk_cut(&c->talk, system);
    c->retry.n_bytes = 0;
    cli_say(cli_tr("%zu messages forgotten%s", "已清除 %zu 条消息%s"), n,
            system ? cli_tr("; the system message stays", "；保留系统消息") : "");
    return CLI_OK;
}

static int save(chat *c, const char *argument) { return chat_save(c, argument); }
static int load(chat *c, const char *argument) { return chat_load(c, argument); }

static int show_system(const chat_message *system) {
    if (system == NULL) {
        cli_say("%s", cli_tr("no system message", "没有系统消息"));
    } else {
        cli_say("%.*s", (int)(system->text.n_bytes < 2000 ? system->text.n_bytes : 2000),
                system->text.data);
    }
    return CLI_OK;
}

/* The text goes in front of the conversation; the next answer reads everything anew. */
static int set_system(chat *c, const char *argument) {
    chat_message *system = chat_talk_system(&c->talk);
    size_t n_bytes = strlen(argument);
    if (n_bytes == 0) return show_system(system);
    int code = cli_check_utf8(cli_tr("system message", "系统消息"), argument, n_bytes);
    if (code != CLI_OK) return code;
    if (strcmp(argument, "-") == 0) n_bytes = 0;
    if (system == NULL && n_bytes > 0) {
        if (!chat_talk_add(&c->talk, DSI_ROLE_SYSTEM, "", 0, NULL)) {
            cli_error("%s", dsi_status_text(DSI_E_NOMEM));
            return CLI_ENVIRONMENT;
        }
        chat_message *first = c->talk.messages, last = first[c->talk.n_messages - 1];
        memmove(first + 1, first, (c->talk.n_messages - 1) * sizeof *first);
        first[0] = last;
        system = first;
    }
    if (system != NULL && n_bytes == 0) {
        cli_bytes_free(&system->text);
        c->talk.n_messages--;
        memmove(system, system + 1, c->talk.n_messages * sizeof *system);
    } else if (system != NULL) {
        system->text.n_bytes = 0;
        if (!cli_bytes_add(&system->text, argument, n_bytes)) {
            cli_error("%s", dsi_status_text(DSI_E_NOMEM));
            return CLI_ENVIRONMENT;
        }
    }
    cli_say("%s", n_bytes == 0 ? cli_tr("system message removed", "已去掉系统消息")
                               : cli_tr("system message set", "已设置系统消息"));
    return CLI_OK;
}

static void stats_json(const chat *c, size_t used) {
    cli_json_begin(stdout);
    printf(", \"stats\": {\"turns\": %llu, \"messages\": %zu, \"context_tokens\": %zu, "
           "\"context_limit\": %u, \"tokens_in\": %llu, \"tokens_kept\": %llu, \"tokens_out\": "
           "%llu, \"prefill_seconds\": ",
           (unsigned long long)c->n_turns, c->talk.n_messages, used, c->context,
           (unsigned long long)c->n_in, (unsigned long long)c->n_kept,
           (unsigned long long)c->n_out);
    cli_json_number(stdout, c->prefill_seconds);
    fputs(", \"decode_seconds\": ", stdout);
    cli_json_number(stdout, c->decode_seconds);
    printf(", \"memory_bytes\": %llu}}\n", (unsigned long long)cli_peak_memory());
}

static int stats(chat *c, const char *argument) {
    (void)argument;
    size_t used = dsi_session_n_tokens(c->session) + dsi_session_n_queued(c->session);
    if (c->options.json) {
        stats_json(c, used);
        return CLI_OK;
    }
    double n_computed = (double)(c->n_in - c->n_kept);
    cli_say(cli_tr("%llu answers, %zu messages; context %s of %s tokens",
                   "%llu 次回答，%zu 条消息；上下文 %s / %s 个 token"),
            (unsigned long long)c->n_turns, c->talk.n_messages, cli_count_text(used).text,
            cli_count_text(c->context).text);
    cli_say(cli_tr("prompts %s tok, %s of them kept, %s tok/s; answers %s tok, %s tok/s",
                   "预填 %s tok，其中沿用 %s，%s tok/s；生成 %s tok，%s tok/s"),
            cli_count_text(c->n_in).text, cli_count_text(c->n_kept).text,
            cli_rate_text(c->prefill_seconds > 0 ? n_computed / c->prefill_seconds : 0).text,
            cli_count_text(c->n_out).text,
            cli_rate_text(c->decode_seconds > 0 ? (double)c->n_out / c->decode_seconds : 0).text);
    cli_say(cli_tr("temperature %g, top-p %g, seed %llu; memory %s; %s",
                   "温度 %g，top-p %g，种子 %llu；内存 %s；%s"),
            c->options.temperature, c->options.top_p, (unsigned long long)c->options.seed,
            cli_bytes_text(cli_peak_memory()).text, dsi_engine_describe(c->engine));
    return CLI_OK;
}

/* The same question once more, with the next seed: with the same one the answer would be the same.
 */
static int retry(chat *c, const char *argument) {
    (void)argument;
    if (c->retry.n_bytes == 0) {
        cli_error(cli_tr("/retry: nothing was asked yet", "/retry：还没有提过问题"));
        cli_hint(cli_tr("write a question first", "请先提一个问题"));
        return CLI_USAGE;
    }
    if (c->options.temperature > 0) {
        c->options.seed++;
        int code = chat_open_session(c);
        if (code != CLI_OK) return code;
    } else if (!c->answer.stopped && c->answer.result.finish_reason == DSI_FINISH_STOP) {
        cli_say("%s", cli_tr("temperature is 0: the answer will be the same; /temperature sets it",
                             "温度为 0，回答不会变；可用 /temperature 调整"));
    }
    size_t n = c->talk.n_messages;
    bool answered = n >= 2 && c->talk.messages[n - 1].role == DSI_ROLE_ASSISTANT &&
                    c->talk.messages[n - 2].text.n_bytes == c->retry.n_bytes &&
                    memcmp(c->talk.messages[n - 2].text.data, c->retry.data, c->retry.n_bytes) == 0;
    if (answered) chat_talk_cut(&c->talk, n - 2);
    return chat_turn(c, c->retry.data, c->retry.n_bytes);
}

static int temperature(chat *c, const char *argument) {
    double value = 0;
    if (!cli_read_f64(argument, &value) || value < 0 || value > 100) {
        cli_error(cli_tr("/temperature: \"%s\" is not a number from 0 to 100",
                         "/temperature：“%s”不是 0 到 100 的数"),
                  cli_show(argument).text);
        cli_hint(cli_tr("0 always takes the likeliest token; 0.6 is common",
                        "0 总取最可能的 token；常用 0.6"));
        return CLI_USAGE;
    }
    double before = c->options.temperature;
    c->options.temperature = value;
    int code = chat_open_session(c);
    if (code != CLI_OK) c->options.temperature = before;
    return code;
}

static int think(chat *c, const char *argument) {
    static const char *const names[] = {"auto", "on", "off"}; /* DSI_THINK_* */
    for (uint32_t i = 0; i < 3; i++) {
        if (strcmp(argument, names[i]) != 0) continue;
        c->options.think = i;
        return CLI_OK;
    }
    cli_error(cli_tr("/think: \"%s\" is none of on|off|auto", "/think：“%s”不在 on|off|auto 之中"),
              cli_show(argument).text);
    cli_hint(cli_tr("now it is %s", "现在是 %s"), names[c->options.think]);
    return CLI_USAGE;
}

static int quit(chat *c, const char *argument) {
    (void)argument;
    c->leave = true;
    return CLI_OK;
}

static const chat_word *words(size_t *n_words) {
    static const chat_word table[] = {
        {"/help", NULL, help, "this list", "显示本列表"},
        {"/clear", NULL, clear, "start a new conversation", "开始新对话"},
        {"/retry", NULL, retry, "ask the last question once more", "把上一个问题再问一次"},
        {"/system", "[TEXT]", set_system, "set the system message; - removes it; alone: show it",
         "设置系统消息；- 去掉；单独使用则显示"},
        {"/think", "on|off|auto", think, "reason before answers", "回答前是否思考"},
        {"/temperature", "T", temperature, "0: always the likeliest token",
         "0：总取最可能的 token"},
        {"/save", "FILE", save, "write the conversation to a file", "把对话写入文件"},
        {"/load", "FILE", load, "go on with a saved conversation", "接着已保存的对话继续"},
        {"/stats", NULL, stats, "tokens, speed, memory", "token 数、速度、内存"},
        {"/quit", NULL, quit, "leave (or Ctrl-D)", "退出（或 Ctrl-D）"},
    };
    *n_words = sizeof table / sizeof table[0];
    return table;
}

static int unknown(const char *name) {
    size_t n = 0;
    const chat_word *word = words(&n), *nearest = word;
    uint32_t best = UINT32_MAX;
    for (size_t i = 0; i < n; i++, word++) {
        uint32_t distance = cli_distance(name, word->name);
        if (distance < best) best = distance, nearest = word;
    }
    if (strcmp(name, "/exit") == 0 || strcmp(name, "/bye") == 0) best = 0, nearest = word - 1;
    cli_error(cli_tr("no command %s", "没有命令 %s"), cli_show(name).text);
    if (best <= 1 + strlen(name) / 3) {
        cli_hint(cli_tr("did you mean %s? A text that starts with / is written with //",
                        "是不是想用 %s？以 / 开头的文本请写 //"),
                 nearest->name);
    } else {
        cli_hint(cli_tr("/help lists them; a text that starts with / is written with //",
                        "/help 列出全部；以 / 开头的文本请写 //"));
    }
    return CLI_USAGE;
}

static int run_word(chat *c, const chat_word *word, const char *argument) {
    bool none = *argument == 0;
    if (word->argument == NULL && !none) {
        cli_error(
            cli_tr("%s takes nothing behind it, but \"%s\" is there", "%s 之后不带内容：“%s”"),
            word->name, cli_show(argument).text);
        cli_hint(cli_tr("write %s alone", "请只写 %s"), word->name);
        return CLI_USAGE;
    }
    if (word->argument != NULL && word->argument[0] != '[' && none) {
        cli_error(cli_tr("%s needs %s behind it", "%s 之后需要 %s"), word->name, word->argument);
        cli_hint("%s %s: %s", word->name, word->argument, cli_tr(word->en, word->zh));
        return CLI_USAGE;
    }
    return word->run(c, argument);
}

int chat_command(chat *c, const cli_bytes *line) {
    if (memchr(line->data, 0, line->n_bytes) != NULL) {
        cli_error(cli_tr("a command with a zero byte", "命令中有零字节"));
        cli_hint(cli_tr("write it as text", "请用文本书写"));
        return CLI_USAGE;
    }
    cli_bytes copy = {0};
    if (!cli_bytes_add(&copy, line->data, line->n_bytes) || !cli_bytes_add(&copy, "", 1)) {
        cli_bytes_free(&copy);
        cli_error("%s", dsi_status_text(DSI_E_NOMEM));
        return CLI_ENVIRONMENT;
    }
    char *name = copy.data, *argument = name + strcspn(name, " \t\r\n");
    if (*argument != 0) *argument++ = 0;
    argument += strspn(argument, " \t\r\n");
    size_t n = strlen(argument), n_words = 0;
    while (n > 0 && strchr(" \t\r\n", argument[n - 1]) != NULL) argument[--n] = 0;
    const chat_word *word = words(&n_words), *found = NULL;
    for (size_t i = 0; i < n_words; i++, word++) {
        if (strcmp(word->name, name) == 0) found = word;
    }
    int code = found == NULL ? unknown(name) : run_word(c, found, argument);
    cli_bytes_free(&copy);
    return code;
}
