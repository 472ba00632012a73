/* doctor.c: dsinfer doctor: looks at the machine and says what holds the library back. */
#include "doctor.h"
#include <string.h>

static const struct {
    const char *id, *en, *zh;
} names[] = {
    {"kernel", "Linux", "Linux 内核"},
    {"libc", "C library", "C 库"},
    {"cpu", "processor", "处理器"},
    {"kernels", "kernels", "算子"},
    {"selftest", "self-test", "算子自检"},
    {"cpus", "CPUs", "可用 CPU"},
    {"model", "model", "模型"},
    {"memory.free", "free memory", "可用内存"},
    {"memory.limit", "memory limit", "内存限额"},
    {"memory.swap", "swap", "交换区"},
    {"memory.overcommit", "overcommit", "内存超售"},
    {"memory.numa", "NUMA", "NUMA"},
    {"memory.thp", "huge pages", "透明大页"},
    {"memory.hugetlb", "reserved pages", "预留大页"},
    {"limit.files", "open files", "打开文件数"},
    {"limit.memlock", "locked memory", "锁定内存"},
    {"limit.address", "address space", "地址空间"},
    {"clock.governor", "clock speed", "调频策略"},
    {"clock.throttling", "throttling", "过热降频"},
    {"clock.source", "clock source", "时钟源"},
    {"clock.monotonic", "clock", "时钟"},
    {"disk.speed", "disk speed", "磁盘速度"},
    {"disk.free", "disk space", "磁盘空间"},
    {"locale", "locale", "字符集"},
    {"libcrypto", "libcrypto", "libcrypto"},
};
static const char *const verdict_words[] = {"OK", "?", "WARN", "FAIL"};
static const char *const verdict_json[] = {"ok", "unknown", "warn", "fail"};
static const char *const verdict_colours[] = {"\033[32m", "\033[2m", "\033[33m", "\033[31m"};

static const char *name_of(const char *id) {
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++)
        if (strcmp(names[i].id, id) == 0) return cli_tr(names[i].en, names[i].zh);
    return id;
}

static void print_padded(const char *text, size_t width) {
    size_t n = cli_utf8_width(text, strlen(text));
    cli_print_safe(stdout, text, strlen(text));
    printf("%*s", n < width ? (int)(width - n) : 1, "");
}

static void print_line(const doctor_line *line, bool quiet) {
    enum { VERDICT = 6, NAME = 16 };
    bool bad = line->verdict >= DOCTOR_WARN;
    if (quiet && !bad) return;
    bool colour = cli_stdout_has_colour();
    fputs(colour ? verdict_colours[line->verdict] : "", stdout);
    print_padded(verdict_words[line->verdict], VERDICT);
    fputs(colour ? "\033[0m" : "", stdout);
    print_padded(name_of(line->id), NAME);
    cli_print_safe(stdout, line->value, strlen(line->value));
    if (*line->want != 0) {
        fputs(bad ? "\n      " : cli_tr(" (", "（"), stdout);
        if (bad) print_padded(cli_tr("  should be", "  应为"), NAME);
        cli_print_safe(stdout, line->want, strlen(line->want));
        if (!bad) fputs(cli_tr(")", "）"), stdout);
    }
    fputc('\n', stdout);
    if (*line->mend == 0) return;
    fputs("      ", stdout);
    print_padded(cli_tr("  mend it", "  处理"), NAME);
    cli_print_safe(stdout, line->mend, strlen(line->mend));
    fputc('\n', stdout);
}

static void json_field(const char *key, const char *text) {
    printf(", \"%s\": ", key);
    cli_json_text(stdout, text, strlen(text));
}

static void print_json(const doctor_report *report, const uint32_t *count) {
    cli_json_begin(stdout);
    printf(", \"ok\": %s, \"model\": ", count[DOCTOR_FAIL] == 0 ? "true" : "false");
    const char *model = report->facts->model;
    if (model == NULL)
        fputs("null", stdout);
    else
        cli_json_text(stdout, model, strlen(model));
    fputs(", \"counts\": {", stdout);
    for (uint32_t v = 0; v < 4; v++)
        printf("%s\"%s\": %u", v > 0 ? ", " : "", verdict_json[v], count[v]);
    fputs("}, \"checks\": [", stdout);
    for (uint32_t i = 0; i < report->n_lines; i++) {
        const doctor_line *line = &report->lines[i];
        printf("%s{\"id\": \"%s\", \"verdict\": \"%s\"", i > 0 ? ", " : "", line->id,
               verdict_json[line->verdict]);
        json_field("value", line->value);
        json_field("want", line->want);
        json_field("mend", line->mend);
        fputc('}', stdout);
    }
    fputs("]}\n", stdout);
}

int cli_doctor(const cli_options *options) {
    static doctor_facts facts;
    static doctor_report report;
    uint32_t count[4] = {0};
    doctor_probe(options, &facts);
    /* For programs the words stay the same whatever the locale. */
    facts.zh = !options->json && *cli_tr("en", "zh") == 'z';
    doctor_check(&facts, &report);
    for (uint32_t i = 0; i < report.n_lines; i++) count[report.lines[i].verdict]++;
    if (options->json) {
        print_json(&report, count);
        return count[DOCTOR_FAIL] > 0 ? CLI_FAILED : CLI_OK;
    }
    for (uint32_t i = 0; i < report.n_lines; i++) print_line(&report.lines[i], options->quiet);
    if (!options->quiet)
        printf(cli_tr("%u ok, %u warnings, %u failures, %u unknown\n",
                      "%u 项正常，%u 项警告，%u 项失败，%u 项未知\n"),
               count[DOCTOR_OK], count[DOCTOR_WARN], count[DOCTOR_FAIL], count[DOCTOR_UNKNOWN]);
    return count[DOCTOR_FAIL] > 0 ? CLI_FAILED : CLI_OK;
}
