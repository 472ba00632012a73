/* run_demo.c: what `make run` shows: held-back hotline tickets dispatched one after the other, a
 * pre-review, a notice, the speed, and what this small model cannot do.
 *
 *   run_demo FOLDER              FOLDER holds a checkpoint and heldback.jsonl
 *   run_demo FOLDER --all TASK   every record of a task (dispatch if none is named); exit code 1
 *                                below LIMITS. Task unseen: the tickets of unseen.jsonl
 *
 * Exit codes: 0 ok, 1 failed check, 2 usage, 3 environment, 4 model bad. */
#include "../lib/base/json.h"
#include "../lib/base/sys.h"
#include <deepseek/dsinfer.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <unistd.h>

enum { EXIT_OK = 0, EXIT_CHECK = 1, EXIT_USAGE = 2, EXIT_ENVIRONMENT = 3, EXIT_MODEL = 4 };
enum { N_SHOWN = 24, N_TOGETHER = 8, MAX_ANSWER = 160, ANSWER_BYTES = 4096, FIELD_BYTES = 128 };
enum { DEPARTMENT_COLUMNS = 20, URGENCY_COLUMNS = 8, MARK_COLUMNS = 8 };

/* One record of heldback.jsonl. */
typedef struct record {
    char *task, *user, *answer;
} record;
typedef struct records {
    record *items;
    size_t n;
} records;

/* What --all demands of a task: shares of all records; a task without a row is counted only. */
typedef struct limit {
    const char *task;
    double department, exact;
} limit;
static const limit LIMITS[] = {{"dispatch", 0.98, 0.95}, {"unseen", 0.50, 0}, {"policy", 0, 0.95}};
enum { N_LIMITS = sizeof LIMITS / sizeof LIMITS[0] };

/* The text of one answer while it grows. */
typedef struct reply {
    char text[ANSWER_BYTES];
    size_t n;
} reply;

typedef struct totals {
    size_t n, department, exact; /* records; right departments; answers equal to the byte */
    size_t tokens_in, tokens_out;
    double first_seconds, prefill_seconds, decode_seconds;
} totals;

typedef struct demo {
    dsi_model *model;
    dsi_engine *engine;
    records records;
    int ticket_columns;
    bool chinese, colour;
} demo;

/* ---- Words -------------------------------------------------------------------------------- */

__attribute__((format_arg(2), format_arg(3))) static const char *say(const demo *d, const char *en,
                                                                     const char *zh) {
    return d->chinese ? zh : en;
}

/* The locale that messages follow: the first of the three that is set decides. */
static bool locale_is_chinese(void) {
    const char *names[] = {"LC_ALL", "LC_MESSAGES", "LANG"};
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        const char *value = getenv(names[i]);
        if (value && value[0]) return strncmp(value, "zh", 2) == 0;
    }
    return false;
}

static bool wants_colour(void) {
    const char *no = getenv("NO_COLOR"), *term = getenv("TERM");
    return isatty(STDOUT_FILENO) && !(no && no[0]) && term && strcmp(term, "dumb") != 0;
}

/* The ticket gets what the other columns leave of the terminal, 100 columns if there is none. */
static int ticket_columns(void) {
    struct winsize size;
    int width = ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col ? size.ws_col : 100;
    int rest = DEPARTMENT_COLUMNS + URGENCY_COLUMNS + MARK_COLUMNS + 4;
    return width < rest + 30 ? 30 : width > rest + 100 ? 100 : width - rest;
}

static void paint(const demo *d, const char *code, const char *text) {
    if (d->colour)
        printf("\033[%sm%s\033[0m", code, text);
    else
        fputs(text, stdout);
}

static void heading(const demo *d, const char *text) {
    putchar('\n');
    paint(d, "1", text);
    putchar('\n');
}

/* ---- Columns ------------------------------------------------------------------------------ */

/* One character of valid UTF-8 (a stray byte counts as one): its bytes and its code point. */
static size_t next_character(const char *text, size_t n, uint32_t *code_point) {
    unsigned char lead = (unsigned char)text[0];
    size_t length = lead < 0x80 ? 1 : lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
    static const unsigned char mask[] = {0, 0x7F, 0x1F, 0x0F, 0x07};
    if (length > n) length = 1;
    *code_point = lead & mask[length];
    for (size_t i = 1; i < length; i++)
        *code_point = *code_point << 6 | ((unsigned char)text[i] & 0x3F);
    return length;
}

/* Columns a terminal gives a character: two for East Asian wide and full-width forms. */
static int columns_of(uint32_t c) {
    static const uint32_t wide[][2] = {{0x1100, 0x115F},  {0x2E80, 0x303E}, {0x3041, 0xA4CF},
                                       {0xAC00, 0xD7A3},  {0xF900, 0xFAFF}, {0xFE30, 0xFE6F},
                                       {0xFF00, 0xFF60},  {0xFFE0, 0xFFE6}, {0x1F300, 0x1FAFF},
                                       {0x20000, 0x3FFFD}};
    for (size_t i = 0; i < sizeof wide / sizeof wide[0]; i++)
        if (c >= wide[i][0] && c <= wide[i][1]) return 2;
    return 1;
}

static int text_columns(const char *text) {
    int columns = 0;
    uint32_t c;
    for (size_t n = strlen(text); n;) {
        size_t length = next_character(text, n, &c);
        columns += columns_of(c);
        text += length, n -= length;
    }
    return columns;
}

/* Text without control characters: a model's or a file's words must not steer the terminal. */
static void put_plain(const char *text, size_t n) {
    for (size_t i = 0; i < n; i++) {
        unsigned char c = (unsigned char)text[i];
        putchar(c == '\n' || (c >= 0x20 && c != 0x7F) ? c : ' ');
    }
}

/* Text cut or filled to exactly `width` columns. */
static void put_cell(const char *text, int width) {
    int whole = text_columns(text), room = whole > width ? width - 2 : width, used = 0;
    uint32_t c;
    for (size_t n = strlen(text); n;) {
        size_t length = next_character(text, n, &c);
        if (used + columns_of(c) > room) break;
        put_plain(text, length);
        used += columns_of(c);
        text += length, n -= length;
    }
    if (whole > width) {
        fputs("..", stdout);
        used += 2;
    }
    printf("%*s", width - used, "");
}

/* ---- Records ------------------------------------------------------------------------------ */

static void free_records(records *list) {
    for (size_t i = 0; i < list->n; i++) {
        dsi_sys_free(list->items[i].task);
        dsi_sys_free(list->items[i].user);
        dsi_sys_free(list->items[i].answer);
    }
    dsi_sys_free(list->items);
    *list = (records){0};
}

static dsi_status read_record(const char *line, size_t n_bytes, record *r, dsi_error *error) {
    dsi_json json;
    dsi_status status = dsi_json_parse(line, n_bytes, 64, &json, error);
    if (status != DSI_OK) return status;
    r->task = dsi_json_string(&json, dsi_json_get(&json, 0, "task"), NULL);
    r->user = dsi_json_string(&json, dsi_json_get(&json, 0, "user"), NULL);
    r->answer = dsi_json_string(&json, dsi_json_get(&json, 0, "answer"), NULL);
    dsi_json_free(&json);
    if (r->task && r->user && r->answer) return DSI_OK;
    return dsi_fail(error, DSI_E_FORMAT, "a record needs the texts task, user and answer");
}

/* The lines of a JSONL text; the error names the line. */
static dsi_status split_records(const char *text, uint64_t n_bytes, records *list,
                                dsi_error *error) {
    uint64_t n_lines = 1, line_number = 0;
    for (uint64_t i = 0; i < n_bytes; i++) n_lines += text[i] == '\n';
    list->items = dsi_sys_calloc(n_lines, sizeof *list->items);
    if (!list->items) return dsi_fail(error, DSI_E_NOMEM, "no memory for the records");
    dsi_status status = DSI_OK;
    for (const char *end = text + n_bytes; status == DSI_OK && text < end;) {
        const char *newline = memchr(text, '\n', (size_t)(end - text));
        size_t length = (size_t)((newline ? newline : end) - text);
        char place[32];
        snprintf(place, sizeof place, "line %llu", (unsigned long long)++line_number);
        status = read_record(text, length, &list->items[list->n++], error);
        if (status != DSI_OK) dsi_fail_prefix(error, place);
        text += length + 1;
    }
    return status;
}

static dsi_status load_records(const char *folder, const char *file, records *list,
                               dsi_error *error) {
    char path[4096], *text = NULL;
    uint64_t n_bytes = 0;
    int n = snprintf(path, sizeof path, "%s/%s", folder, file);
    if (n < 0 || (size_t)n >= sizeof path)
        return dsi_fail(error, DSI_E_ARG, "the path of the folder is longer than %zu bytes",
                        sizeof path);
    dsi_status status = dsi_sys_read_file(path, 64u << 20, &text, &n_bytes, error);
    if (status != DSI_OK) return status;
    status = split_records(text, n_bytes, list, error);
    dsi_sys_free(text);
    if (status != DSI_OK) dsi_fail_prefix(error, path);
    return status;
}

static bool is_task(const record *r, const char *task) { return strcmp(r->task, task) == 0; }

/* What the caller said: the question's instruction stands on lines of its own. */
static const char *ticket_text(const record *r) {
    const char *newline = strrchr(r->user, '\n'), *text = newline ? newline + 1 : r->user;
    const char *label = "工单：";
    return strncmp(text, label, strlen(label)) == 0 ? text + strlen(label) : text;
}

/* A text field of a JSON answer; "" if the answer is no JSON or lacks it. */
static void json_field(const char *text, const char *key, char field[FIELD_BYTES]) {
    dsi_json json;
    dsi_error error;
    field[0] = 0;
    if (dsi_json_parse(text, strlen(text), 256, &json, &error) != DSI_OK) return;
    char *value = dsi_json_string(&json, dsi_json_get(&json, 0, key), NULL);
    if (value && strlen(value) < FIELD_BYTES) memcpy(field, value, strlen(value) + 1);
    dsi_sys_free(value);
    dsi_json_free(&json);
}

static bool same_field(const char *got, const char *want, const char *key) {
    char a[FIELD_BYTES], b[FIELD_BYTES];
    json_field(got, key, a);
    json_field(want, key, b);
    return a[0] && strcmp(a, b) == 0;
}

static void count(totals *t, const char *got, const char *want) {
    t->n++;
    t->department += same_field(got, want, "部门");
    t->exact += strcmp(got, want) == 0;
}

/* ---- Answers ------------------------------------------------------------------------------ */

static int fail(const demo *d, dsi_status status, const char *message) {
    fprintf(stderr, "run_demo: %s: %s\n", dsi_status_name(status), message);
    if (status == DSI_E_FORMAT || status == DSI_E_MODEL) return EXIT_MODEL;
    if (status == DSI_E_IO)
        fputs(say(d, "run_demo: start it at the root of the project: make run\n",
                  "run_demo：请在项目根目录运行：make run\n"),
              stderr);
    return EXIT_ENVIRONMENT;
}

static int32_t collect(void *user, uint32_t part, const char *text, size_t n_bytes) {
    reply *r = user;
    if (part != DSI_PART_ANSWER) return 0;
    if (n_bytes >= sizeof r->text - r->n) return 1; /* longer than any answer of the corpus */
    memcpy(r->text + r->n, text, n_bytes);
    r->n += n_bytes;
    r->text[r->n] = 0;
    return 0;
}

/* One record, answered in a session of its own. */
static dsi_status answer(const demo *d, const record *r, reply *out, totals *t) {
    dsi_session_options options;
    dsi_session *session = NULL;
    dsi_generate_result result = {.struct_size = sizeof result};
    dsi_message message = {sizeof message, DSI_ROLE_USER, r->user, strlen(r->user)};
    *out = (reply){0};
    dsi_session_options_init(&options);
    options.max_tokens = MAX_ANSWER;
    dsi_status status = dsi_session_open(d->engine, &options, &session);
    if (status == DSI_OK)
        status = dsi_generate_chat(session, &message, 1, DSI_THINK_OFF, collect, out, &result);
    if (status != DSI_OK) fail(d, status, dsi_last_error(session));
    dsi_session_close(session);
    t->tokens_in += result.n_tokens_in;
    t->tokens_out += result.n_tokens_out;
    t->first_seconds += result.first_token_seconds;
    t->prefill_seconds += result.prefill_seconds;
    t->decode_seconds += result.decode_seconds;
    return status;
}

/* ---- The tour ----------------------------------------------------------------------------- */

static void print_row(const demo *d, const record *r, const char *got) {
    char department[FIELD_BYTES], urgency[FIELD_BYTES];
    json_field(got, "部门", department);
    json_field(got, "紧急程度", urgency);
    bool right = same_field(got, r->answer, "部门") && same_field(got, r->answer, "紧急程度");
    put_cell(ticket_text(r), d->ticket_columns);
    fputs("  ", stdout);
    put_cell(department, DEPARTMENT_COLUMNS);
    fputs("  ", stdout);
    put_cell(urgency, URGENCY_COLUMNS);
    if (right) {
        paint(d, "32", say(d, "right", "对"));
    } else {
        paint(d, "31", say(d, "wrong", "错"));
        json_field(r->answer, "部门", department);
        json_field(r->answer, "紧急程度", urgency);
        fputs(say(d, ", should be ", "，应为 "), stdout);
        put_plain(department, strlen(department));
        fputs(", ", stdout);
        put_plain(urgency, strlen(urgency));
    }
    putchar('\n');
    fflush(stdout);
}

static void print_accuracy(const demo *d, const totals *t) {
    printf(say(d, "Department right: %zu of %zu. JSON exact to the byte: %zu of %zu.\n",
               "部门判断正确：%zu / %zu。JSON 逐字一致：%zu / %zu。\n"),
           t->department, t->n, t->exact, t->n);
}

static dsi_status show_dispatch(const demo *d, totals *t) {
    heading(d,
            say(d,
                "1. Dispatching tickets (drawn apart from the training: same phrases, other mixes)",
                "1. 工单分拨（与训练数据分开生成的测试工单：说法相同，地点与组合不同）"));
    put_cell(say(d, "ticket", "工单"), d->ticket_columns + 2);
    put_cell(say(d, "department", "部门"), DEPARTMENT_COLUMNS + 2);
    put_cell(say(d, "urgency", "紧急程度"), URGENCY_COLUMNS);
    putchar('\n');
    dsi_status status = DSI_OK;
    for (size_t i = 0; status == DSI_OK && t->n < N_SHOWN && i < d->records.n; i++) {
        const record *r = &d->records.items[i];
        reply got;
        if (!is_task(r, "dispatch")) continue;
        status = answer(d, r, &got, t);
        if (status != DSI_OK) break;
        print_row(d, r, got.text);
        count(t, got.text, r->answer);
    }
    if (status == DSI_OK) print_accuracy(d, t);
    return status;
}

static void put_indented(const char *text) {
    while (*text) {
        size_t n = strcspn(text, "\n");
        fputs("  ", stdout);
        put_plain(text, n);
        putchar('\n');
        text += n + (text[n] == '\n');
    }
}

/* The first record of a task whose answer contains `part`: question, answer, comparison. */
static dsi_status show_one(const demo *d, const char *task, const char *part, totals *t,
                           bool *exact) {
    for (size_t i = 0; i < d->records.n; i++) {
        const record *r = &d->records.items[i];
        reply got;
        if (!is_task(r, task) || !strstr(r->answer, part)) continue;
        put_indented(r->user);
        dsi_status status = answer(d, r, &got, t);
        if (status != DSI_OK) return status;
        paint(d, "2", say(d, "  The model answers:\n", "  模型回答：\n"));
        put_indented(got.text);
        *exact = strcmp(got.text, r->answer) == 0;
        return DSI_OK;
    }
    return DSI_OK;
}

static dsi_status show_papers(const demo *d, totals *t) {
    bool exact = false;
    heading(d, say(d, "2. Pre-review of application materials", "2. 申请材料预审"));
    dsi_status status = show_one(d, "prereview", "材料不全", t, &exact);
    if (status != DSI_OK) return status;
    puts(exact ? say(d, "  Equal to the expected answer. A person decides: this is a first look.",
                     "  与标准答案一致。这只是初步核对，最终由工作人员决定。")
               : say(d, "  NOT equal to the expected answer. A person decides: this shows why.",
                     "  与标准答案不一致。最终由工作人员决定，原因正在于此。"));
    heading(d, say(d, "3. A notice, drafted", "3. 起草通知"));
    status = show_one(d, "notice", "", t, &exact);
    if (status != DSI_OK) return status;
    puts(exact ? say(d, "  Equal to the expected text.", "  与标准文本一致。")
               : say(d, "  NOT equal to the expected text.", "  与标准文本不一致。"));
    return DSI_OK;
}

static void show_speed(const demo *d, const totals *t, size_t n_answers) {
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    heading(d, say(d, "4. Speed on this machine", "4. 本机速度"));
    printf(say(d,
               "  first token %.0f ms (mean of %zu answers) | prefill %.0f tok/s | "
               "decode %.0f tok/s | memory %.0f MiB\n",
               "  首字 %.0f 毫秒（%zu 次回答平均）| 预填 %.0f tok/s | 生成 %.0f tok/s | "
               "内存 %.0f MiB\n"),
           1e3 * t->first_seconds / (double)n_answers, n_answers,
           (double)t->tokens_in / t->prefill_seconds, (double)t->tokens_out / t->decode_seconds,
           (double)usage.ru_maxrss / 1024);
    printf("  %s\n", dsi_engine_describe(d->engine));
}

static void show_limits(const demo *d, const char *folder) {
    heading(d, say(d, "5. What this small model is bad at", "5. 这个小模型做不好的事"));
    puts(say(
        d,
        "  - Other wordings: of 340 tickets in phrases that no training text held, 188 went to\n"
        "    the right office. Without a district in the ticket, it may make one up.\n"
        "  - The days in an opinion were random in its training: any number there means nothing.\n"
        "  - Anything outside its six tasks. It has 15 million parameters and learnt from\n"
        "    synthetic tickets: it shows that the engine computes right, not what a\n"
        "    full-size DeepSeek model can do.",
        "  - 换一种说法：训练中从未出现的措辞，340 张工单中 188 张部门正确。\n"
        "    没写区名的工单，可能编造区名。\n"
        "  - 办理意见里的工作日天数在训练数据中是随机的，没有参考意义。\n"
        "  - 六类任务之外的任何问题。它只有 1500 万参数，用合成工单训练，\n"
        "    用来证明推理引擎算得对，不代表完整 DeepSeek 模型的能力。"));
    heading(d, say(d, "Next", "下一步"));
    printf(
        say(d,
            "  build/dsinfer run -m %s '工单分拨：您好，福田区人民路昨晚路灯不亮，走路看不清。'\n"
            "  build/run_demo %s --all        every held-back dispatch record\n"
            "  make test                      the proof of the numbers\n"
            "  README.md                      your own program in 15 lines\n",
            "  build/dsinfer run -m %s '工单分拨：您好，福田区人民路昨晚路灯不亮，走路看不清。'\n"
            "  build/run_demo %s --all        全部留出工单\n"
            "  make test                      验证所有数字\n"
            "  README.zh.md                   15 行写出自己的程序\n"),
        folder, folder);
}

static int tour(const demo *d, const char *folder) {
    totals t = {0};
    printf(say(d,
               "libdsinfer %s: a DeepSeek-V3-architecture model at work on a citizens' hotline\n",
               "libdsinfer %s：DeepSeek-V3 架构小模型处理 12345 热线工单\n"),
           dsi_version());
    if (show_dispatch(d, &t) != DSI_OK) return EXIT_ENVIRONMENT;
    if (!t.n) return fail(d, DSI_E_FORMAT, "heldback.jsonl holds no dispatch record");
    totals dispatch = t;
    if (show_papers(d, &t) != DSI_OK) return EXIT_ENVIRONMENT;
    show_speed(d, &dispatch, dispatch.n);
    show_limits(d, folder);
    return EXIT_OK;
}

/* ---- All dispatch records, several sessions per step --------------------------------------- */

/* One of the sessions that are computed together; session NULL: idle. */
typedef struct lane {
    dsi_session *session;
    const record *record;
    int32_t tokens[MAX_ANSWER];
    size_t n_tokens;
} lane;

static dsi_status failed(const demo *d, dsi_status status, const void *handle) {
    fail(d, status, dsi_last_error(handle));
    return status;
}

static dsi_status start_lane(const demo *d, lane *l, const record *r) {
    int32_t prompt[1024];
    size_t n = 0;
    dsi_session_options options;
    dsi_message message = {sizeof message, DSI_ROLE_USER, r->user, strlen(r->user)};
    dsi_session_options_init(&options);
    options.max_tokens = MAX_ANSWER;
    l->record = r;
    l->n_tokens = 0;
    dsi_status status = dsi_chat_tokens(d->model, &message, 1, DSI_THINK_OFF, prompt,
                                        sizeof prompt / sizeof prompt[0], &n);
    if (status == DSI_OK) status = dsi_session_open(d->engine, &options, &l->session);
    if (status != DSI_OK) return failed(d, status, NULL);
    status = dsi_session_append(l->session, prompt, n);
    return status == DSI_OK ? DSI_OK : failed(d, status, l->session);
}

/* Samples if the prompt is computed; a finished answer is counted and the lane freed. */
static dsi_status advance_lane(const demo *d, lane *l, totals *t) {
    int32_t token = -1;
    char text[ANSWER_BYTES];
    size_t n_bytes = 0;
    if (!l->session || dsi_session_n_queued(l->session)) return DSI_OK;
    dsi_status status = dsi_session_sample(l->session, &token);
    if (status != DSI_OK) return failed(d, status, l->session);
    if (token >= 0 && l->n_tokens < MAX_ANSWER) l->tokens[l->n_tokens++] = token;
    if (dsi_session_finish(l->session) == DSI_FINISH_NONE) return DSI_OK;
    status = dsi_detokenize(d->model, l->tokens, l->n_tokens, text, sizeof text - 1, &n_bytes);
    if (status != DSI_OK) return failed(d, status, NULL);
    text[n_bytes] = 0;
    count(t, text, l->record->answer);
    dsi_session_close(l->session);
    l->session = NULL;
    return DSI_OK;
}

static dsi_status answer_all(const demo *d, const char *task, lane *lanes, totals *t) {
    size_t next = 0;
    for (;;) {
        dsi_session *busy[N_TOGETHER];
        size_t n_busy = 0;
        dsi_status status = DSI_OK;
        for (size_t i = 0; i < N_TOGETHER; i++) {
            while (next < d->records.n && !is_task(&d->records.items[next], task)) next++;
            if (!lanes[i].session && next < d->records.n)
                status = start_lane(d, &lanes[i], &d->records.items[next++]);
            if (status != DSI_OK) return status;
            if (lanes[i].session) busy[n_busy++] = lanes[i].session;
        }
        if (!n_busy) return DSI_OK;
        status = dsi_engine_step(d->engine, busy, n_busy, NULL);
        if (status != DSI_OK) fail(d, status, dsi_last_error(d->engine));
        for (size_t i = 0; status == DSI_OK && i < N_TOGETHER; i++)
            status = advance_lane(d, &lanes[i], t);
        if (status != DSI_OK) return status;
    }
}

/* Whether the limits of a task hold; says so. A task without limits passes. */
static int judge(const demo *d, const char *task, const totals *t) {
    const limit *l = LIMITS, *end = LIMITS + N_LIMITS;
    while (l < end && strcmp(l->task, task) != 0) l++;
    if (l == end) return EXIT_OK;
    bool good = (double)t->department >= l->department * (double)t->n &&
                (double)t->exact >= l->exact * (double)t->n;
    printf(say(d, "%s: department at least %.0f %%, exact at least %.0f %%\n",
               "%s：部门要求 %.0f %%，逐字一致要求 %.0f %%\n"),
           good ? say(d, "passed", "通过") : say(d, "FAILED", "未通过"), 100 * l->department,
           100 * l->exact);
    return good ? EXIT_OK : EXIT_CHECK;
}

static int check_all(const demo *d, const char *task) {
    lane lanes[N_TOGETHER] = {0};
    totals t = {0};
    bool tickets = strcmp(task, "unseen") == 0 || strcmp(task, "dispatch") == 0;
    dsi_status status = answer_all(d, tickets ? "dispatch" : task, lanes, &t);
    for (size_t i = 0; i < N_TOGETHER; i++) dsi_session_close(lanes[i].session);
    if (status != DSI_OK) return EXIT_ENVIRONMENT;
    if (!t.n) return fail(d, DSI_E_ARG, "the records hold none of this task");
    if (tickets) print_accuracy(d, &t);
    if (!tickets)
        printf(say(d, "%s: exact to the byte %zu of %zu\n", "%s：逐字一致 %zu / %zu\n"), task,
               t.exact, t.n);
    return judge(d, task, &t);
}

/* ---- Start -------------------------------------------------------------------------------- */

static int open_all(demo *d, const char *folder, const char *file) {
    dsi_error error = {0};
    dsi_status status = dsi_model_open(folder, NULL, &d->model);
    if (status == DSI_OK) status = dsi_engine_open(d->model, NULL, &d->engine);
    if (status != DSI_OK) return fail(d, status, dsi_last_error(NULL));
    status = load_records(folder, file, &d->records, &error);
    return status == DSI_OK ? EXIT_OK : fail(d, status, error.text);
}

int main(int argc, char **argv) {
    demo d = {.chinese = locale_is_chinese(),
              .colour = wants_colour(),
              .ticket_columns = ticket_columns()};
    bool all = (argc == 3 || argc == 4) && strcmp(argv[2], "--all") == 0;
    if (argc != 2 && !all) {
        fputs(
            say(&d,
                "usage: run_demo FOLDER [--all [TASK]]   e.g. run_demo examples/models/tiny-gov\n",
                "用法：run_demo 文件夹 [--all [任务]]   例如 run_demo examples/models/tiny-gov\n"),
            stderr);
        return EXIT_USAGE;
    }
    const char *task = argc == 4 ? argv[3] : "dispatch";
    bool unseen = all && strcmp(task, "unseen") == 0;
    int code = open_all(&d, argv[1], unseen ? "unseen.jsonl" : "heldback.jsonl");
    if (code == EXIT_OK) code = all ? check_all(&d, task) : tour(&d, argv[1]);
    free_records(&d.records);
    dsi_engine_close(d.engine);
    dsi_model_close(d.model);
    return code;
}
