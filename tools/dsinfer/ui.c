/* ui.c: everything the command says to a person: language, messages, progress, readable numbers. */
#include "cli.h"
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static struct {
    bool zh, quiet;
    bool stdout_terminal, colour; /* of stdout */
    bool bar;                     /* stderr is a terminal that can return to the line's start */
    bool bar_drawn;
    uint32_t bar_stage;
    uint64_t bar_first;         /* work that was done when the stage was first seen */
    double bar_start, bar_last; /* seconds */
} ui;

/* Which language the environment asks for: the first of the three that is set decides. */
static bool locale_is_zh(void) {
    static const char *const names[] = {"LC_ALL", "LC_MESSAGES", "LANG"};
    for (size_t i = 0; i < 3; i++) {
        const char *value = getenv(names[i]);
        if (value != NULL && *value != 0) return strncmp(value, "zh", 2) == 0;
    }
    return false;
}

void cli_ui_init(int argc, char **argv) {
    ui.zh = locale_is_zh();
    for (int i = 1; i < argc && strcmp(argv[i], "--") != 0; i++) {
        const char *value = NULL;
        if (strncmp(argv[i], "--lang=", 7) == 0) value = argv[i] + 7;
        if (strcmp(argv[i], "--lang") == 0 && i + 1 < argc) value = argv[i + 1];
        if (value != NULL && strcmp(value, "zh") == 0) ui.zh = true;
        if (value != NULL && strcmp(value, "en") == 0) ui.zh = false;
        if (strcmp(argv[i], "--json") == 0) cli_json_want(true); /* for mistakes in options */
    }
    const char *term = getenv("TERM"), *no_color = getenv("NO_COLOR");
    bool able = term != NULL && *term != 0 && strcmp(term, "dumb") != 0;
    ui.stdout_terminal = isatty(STDOUT_FILENO) == 1;
    ui.colour = ui.stdout_terminal && able && (no_color == NULL || *no_color == 0);
    ui.bar = isatty(STDERR_FILENO) == 1 && able;
}

void cli_ui_quiet(bool quiet) { ui.quiet = quiet; }
bool cli_stdout_is_terminal(void) { return ui.stdout_terminal; }
bool cli_stderr_moves(void) { return ui.bar; }
bool cli_stdout_has_colour(void) { return ui.colour; }
const char *cli_tr(const char *en, const char *zh) { return ui.zh ? zh : en; }

/* File names and prompts come from outside: a message must not move the cursor or recolour. */
static void say_line(const char *prefix, void (*note)(const char *), const char *format,
                     va_list arguments) {
    char line[4096];
    int n = vsnprintf(line, sizeof line, format, arguments);
    if (n < 0) return;
    if (note != NULL) note(line);
    cli_progress_clear();
    fputs(prefix, stderr);
    cli_print_safe(stderr, line, strlen(line));
    fputc('\n', stderr);
}

void cli_say(const char *format, ...) {
    if (ui.quiet) return;
    va_list arguments;
    va_start(arguments, format);
    say_line("", NULL, format, arguments);
    va_end(arguments);
}

void cli_error(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    say_line(cli_tr("dsinfer: error: ", "dsinfer: 错误："), cli_json_note_error, format, arguments);
    va_end(arguments);
}

void cli_hint(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    say_line(cli_tr("  hint: ", "  提示："), cli_json_note_hint, format, arguments);
    va_end(arguments);
}

cli_shown cli_show(const char *text) {
    cli_shown shown;
    size_t at = 0, n_bytes = strnlen(text, 4 * CLI_SHOWN_BYTES), out = 0;
    uint32_t c;
    while (at < n_bytes && out + 8 < CLI_SHOWN_BYTES) {
        size_t n = cli_utf8_next(text + at, n_bytes - at, &c);
        if (n == 0 || cli_utf8_control(c)) {
            out += (size_t)snprintf(shown.text + out, 5, "\\x%02x", (uint8_t)text[at]);
            at++;
        } else {
            memcpy(shown.text + out, text + at, n);
            out += n;
            at += n;
        }
    }
    memcpy(shown.text + out, at < n_bytes ? "…" : "", at < n_bytes ? 4 : 1);
    return shown;
}

static double seconds_now(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

void cli_progress_clear(void) {
    if (!ui.bar_drawn) return;
    fputs("\r\033[K", stderr);
    fflush(stderr);
    ui.bar_drawn = false;
}

void cli_progress(void *user, uint32_t stage, uint64_t done, uint64_t total) {
    enum { CELLS = 24 };
    (void)user;
    if (!ui.bar || ui.quiet || total == 0) return;
    double now = seconds_now();
    if (ui.bar_start == 0 || stage != ui.bar_stage || done == 0) {
        ui.bar_stage = stage;
        ui.bar_first = done;
        ui.bar_start = now;
        ui.bar_last = 0;
    }
    if (done >= total) {
        cli_progress_clear();
        ui.bar_start = 0;
        return;
    }
    if (now - ui.bar_last < 0.1) return;
    ui.bar_last = now;
    double part = (double)done / (double)total;
    char cells[CELLS + 1], eta[48] = "";
    for (int i = 0; i < CELLS; i++) cells[i] = i < (int)(part * CELLS) ? '#' : '.';
    cells[CELLS] = 0;
    if (part >= 0.1 && done > ui.bar_first) {
        double speed = (double)(done - ui.bar_first) / (now - ui.bar_start);
        double left = (double)(total - done) / speed;
        snprintf(eta, sizeof eta, cli_tr(", %.0f s left", "，还需 %.0f 秒"), left);
    }
    bool bytes = stage != DSI_STAGE_PREFILL;
    const char *what = cli_tr("prompt", "预填");
    if (stage == DSI_STAGE_LOAD) what = cli_tr("loading", "加载");
    if (stage == CLI_STAGE_HASH) what = cli_tr("checking files", "核对文件");
    if (stage == CLI_STAGE_QUANTIZE) what = cli_tr("quantising", "量化");
    cli_number a = bytes ? cli_bytes_text(done) : cli_count_text(done);
    cli_number b = bytes ? cli_bytes_text(total) : cli_count_text(total);
    fprintf(stderr, "\r%s [%s] %3.0f %% %s/%s%s\033[K", what, cells, 100 * part, a.text, b.text,
            eta);
    fflush(stderr);
    ui.bar_drawn = true;
}

cli_number cli_bytes_text(uint64_t n_bytes) {
    static const char *const units[] = {"B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
    cli_number number;
    double value = (double)n_bytes;
    size_t unit = 0;
    for (; value >= 1023.95 && unit < 6; unit++) value /= 1024;
    snprintf(number.text, sizeof number.text, unit == 0 || value >= 99.95 ? "%.0f %s" : "%.1f %s",
             value, units[unit]);
    return number;
}

cli_number cli_count_text(uint64_t n) {
    cli_number number;
    char digits[24];
    int n_digits = snprintf(digits, sizeof digits, "%llu", (unsigned long long)n);
    size_t out = 0;
    for (int i = 0; i < n_digits; i++) {
        if (i > 0 && (n_digits - i) % 3 == 0) number.text[out++] = ',';
        number.text[out++] = digits[i];
    }
    number.text[out] = 0;
    return number;
}

cli_number cli_rate_text(double per_second) {
    cli_number number;
    if (!(per_second > 0 && per_second < 1e18)) {
        snprintf(number.text, sizeof number.text, "-");
        return number;
    }
    if (per_second >= 100) return cli_count_text((uint64_t)(per_second + 0.5));
    snprintf(number.text, sizeof number.text, per_second >= 10 ? "%.1f" : "%.2f", per_second);
    return number;
}
