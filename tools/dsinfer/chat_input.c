/* chat_input.c: what a person or a pipe says to dsinfer chat, line by line. A terminal that can
 * move its cursor gets the line editor of chat_edit.c; on a dumb one the kernel edits the line,
 * told that characters are UTF-8 and that Ctrl-C ends a line as Enter does, so that an empty line
 * can be told from one that is given up. */
#include "chat.h"
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <termios.h>
#include <unistd.h>

enum {
    CTRL_C = 3,
    /* Linux cuts a line that it edits itself behind this many bytes and says nothing. */
    TERMINAL_LINE_BYTES = 4095,
    MESSAGE_BYTES = 1 << 26
};

static struct {
    bool is_terminal, saved_is_valid;
    bool draws; /* chat_edit.c edits the line */
    struct termios saved;
    volatile sig_atomic_t resumed; /* SIGCONT: the shell has had the terminal in between */
    char block[1 << 16];
    size_t n_block, at;
} in;

/* ---- The terminal ---------------------------------------------------------------------------- */

static void set_mode(bool edit) {
    if (!in.saved_is_valid) return;
    struct termios mode = in.saved;
    if (in.draws) {
        /* While an answer is computed keys are kept for the next line and not echoed into it. */
        mode.c_lflag &= ~(tcflag_t)(ICANON | ECHO);
        if (edit) mode.c_lflag &= ~(tcflag_t)(ISIG | IEXTEN);
        if (edit) mode.c_iflag &= ~(tcflag_t)(ICRNL | INLCR | IGNCR | IXON);
        mode.c_cc[VMIN] = 1;
        mode.c_cc[VTIME] = 0;
    } else {
        mode.c_iflag |= IUTF8; /* Backspace takes a character, not a byte */
        bool usual = (mode.c_lflag & ISIG) != 0 && (mode.c_lflag & ICANON) != 0;
        if (edit && usual && mode.c_cc[VINTR] == CTRL_C) {
            mode.c_cc[VINTR] = _POSIX_VDISABLE;
            mode.c_cc[VEOL] = CTRL_C;
        }
    }
    tcsetattr(STDIN_FILENO, TCSADRAIN, &mode);
    /* Bracketed paste: what is pasted comes between marks, line ends and all. */
    if (in.draws) fputs(edit ? "\033[?2004h" : "\033[?2004l", stderr);
}

void chat_terminal_edit(void) { set_mode(true); }

/* Only what a signal handler may call. */
void chat_terminal_end(void) {
    static const char paste_off[] = "\033[?2004l";
    if (!in.saved_is_valid) return;
    tcsetattr(STDIN_FILENO, TCSADRAIN, &in.saved);
    if (in.draws && write(STDERR_FILENO, paste_off, sizeof paste_off - 1) < 0) in.draws = false;
}

static void on_end(int signal_number) {
    chat_terminal_end();
    signal(signal_number, SIG_DFL);
    raise(signal_number);
}

static void on_resume(int signal_number) {
    (void)signal_number;
    in.resumed = 1;
}

void chat_terminal_start(bool terminal) {
    static const int ends[] = {SIGTERM, SIGHUP, SIGQUIT};
    in.is_terminal = terminal;
    if (!terminal || tcgetattr(STDIN_FILENO, &in.saved) != 0) return;
    in.saved_is_valid = true;
    in.draws = cli_stderr_moves();
    struct sigaction action;
    memset(&action, 0, sizeof action);
    action.sa_handler = on_end;
    for (size_t i = 0; i < sizeof ends / sizeof ends[0]; i++) sigaction(ends[i], &action, NULL);
    action.sa_handler = on_resume;
    sigaction(SIGCONT, &action, NULL);
}

/* ---- Bytes and lines ------------------------------------------------------------------------- */

static void prompt(bool more) {
    if (!in.is_terminal) return;
    fputs(more ? ". " : "> ", stderr);
    fflush(stderr);
}

bool chat_has_bytes(void) { return in.at < in.n_block; }

/* More bytes in the block: 0, or CHAT_BYTE_*. */
static int fill(int timeout_ms) {
    struct pollfd wait = {.fd = STDIN_FILENO, .events = POLLIN};
    if (timeout_ms >= 0 && poll(&wait, 1, timeout_ms) == 0) return CHAT_BYTE_AFTER_WAIT;
    ssize_t n = read(STDIN_FILENO, in.block, sizeof in.block);
    in.at = 0;
    in.n_block = n > 0 ? (size_t)n : 0;
    if (n > 0) return 0;
    if (n == 0) return CHAT_BYTE_END;
    if (errno != EINTR) return CHAT_BYTE_ERROR;
    if (cli_wants_to_leave()) return CHAT_BYTE_END;
    if (in.resumed) set_mode(true);
    in.resumed = 0;
    return CHAT_BYTE_AGAIN;
}

int chat_next_byte(int timeout_ms) {
    int found = in.at < in.n_block ? 0 : fill(timeout_ms);
    return found != 0 ? found : (uint8_t)in.block[in.at++];
}

/* One line without its end, behind what `line` holds. */
static uint32_t read_line(cli_bytes *line, bool more, bool *no_memory) {
    size_t start = line->n_bytes;
    if (in.draws) return chat_edit_line(line, more, no_memory);
    prompt(more);
    for (;;) {
        if (in.at == in.n_block) {
            int found = fill(-1);
            if (found == CHAT_BYTE_ERROR) return CHAT_LINE_ERROR;
            if (found == CHAT_BYTE_END) return line->n_bytes > start ? CHAT_LINE : CHAT_LINE_END;
            if (found == CHAT_BYTE_AGAIN) prompt(more);
            if (found == CHAT_BYTE_AGAIN) continue;
        }
        const char *rest = in.block + in.at;
        size_t n_rest = in.n_block - in.at;
        const char *end = memchr(rest, '\n', n_rest);
        const char *given_up = in.is_terminal ? memchr(rest, CTRL_C, n_rest) : NULL;
        if (given_up != NULL && (end == NULL || given_up < end)) {
            in.at += (size_t)(given_up - rest) + 1;
            fputc('\n', stderr);
            bool empty = given_up == rest && line->n_bytes == start && !more;
            return empty ? CHAT_LINE_END : CHAT_LINE_GIVEN_UP;
        }
        size_t n = end == NULL ? n_rest : (size_t)(end - rest);
        /* What is beyond the limit is read and dropped: it must not become the next text. */
        if (line->n_bytes <= MESSAGE_BYTES && !cli_bytes_add(line, rest, n)) {
            *no_memory = true;
            return CHAT_LINE_ERROR;
        }
        in.at += n + (end != NULL);
        if (end != NULL) return CHAT_LINE;
    }
}

/* ---- Texts of several lines ------------------------------------------------------------------ */

static bool ends_with(const cli_bytes *text, size_t from, const char *end) {
    size_t n = strlen(end);
    return text->n_bytes >= from + n && memcmp(text->data + text->n_bytes - n, end, n) == 0;
}

/* A backslash at the end of a line, but not two: the text goes on. */
static bool goes_on(const cli_bytes *text, size_t from) {
    return ends_with(text, from, "\\") && !ends_with(text, from, "\\\\");
}

static int too_long(const chat *c, const cli_bytes *text, size_t from) {
    if (c->terminal && !in.draws && text->n_bytes - from >= TERMINAL_LINE_BYTES) {
        cli_error(cli_tr("the terminal cuts a line behind %d bytes; nothing was sent",
                         "终端会把一行截断在 %d 字节处；这段文本没有发出"),
                  TERMINAL_LINE_BYTES);
        cli_hint(cli_tr("write \"\"\" and shorter lines, or use a pipe: dsinfer chat ... < FILE",
                        "请用 \"\"\" 分成较短的行，或用管道：dsinfer chat …… < 文件"));
        return CLI_USAGE;
    }
    if (text->n_bytes <= MESSAGE_BYTES) return CLI_OK;
    cli_error(cli_tr("a message of more than %s", "一条消息超过 %s"),
              cli_bytes_text(MESSAGE_BYTES).text);
    cli_hint(cli_tr("split it", "请拆分"));
    return CLI_USAGE;
}

/* Lines until the text is whole. `plain`: a line is a text, whatever it looks like. */
static uint32_t read_text(const chat *c, cli_bytes *text, bool plain, int *code) {
    bool block = false, no_memory = false;
    size_t n_lines = 0;
    for (;; n_lines++) {
        size_t from = text->n_bytes;
        uint32_t found = read_line(text, n_lines > 0, &no_memory);
        if (found == CHAT_LINE_ERROR) *code = cli_input_failed(no_memory ? ENOMEM : errno);
        if (found == CHAT_LINE_GIVEN_UP) return CHAT_NOTHING;
        if (found != CHAT_LINE && (found != CHAT_LINE_END || n_lines == 0)) return CHAT_END;
        if (found == CHAT_LINE_END) return CHAT_TEXT; /* the pipe ended inside a block */
        *code = too_long(c, text, from);
        if (*code != CLI_OK) return n_lines > 0 && !c->terminal ? CHAT_END : CHAT_NOTHING;
        if (plain) return CHAT_TEXT;
        if (n_lines == 0 && text->n_bytes >= 3 && memcmp(text->data, "\"\"\"", 3) == 0) {
            memmove(text->data, text->data + 3, text->n_bytes - 3);
            text->n_bytes -= 3;
            block = true;
            if (text->n_bytes == 0) continue; /* the text starts on the next line */
        }
        if (block && ends_with(text, from, "\"\"\"")) {
            text->n_bytes -= 3;
            text->n_bytes -= ends_with(text, 0, "\n");
            return CHAT_TEXT;
        }
        if (!block && !goes_on(text, from)) return CHAT_TEXT;
        if (!block) text->n_bytes--;
        if (!cli_bytes_add(text, "\n", 1)) {
            *code = cli_input_failed(ENOMEM);
            return CHAT_END;
        }
    }
}

uint32_t chat_read(const chat *c, cli_bytes *text, int *code) {
    text->n_bytes = 0;
    *code = CLI_OK;
    set_mode(true);
    uint32_t found = read_text(c, text, c->options.no_commands, code);
    set_mode(false); /* Ctrl-C is a signal again */
    if (found != CHAT_TEXT) return found;
    bool escaped = text->n_bytes >= 2 && memcmp(text->data, "//", 2) == 0;
    if (c->options.no_commands) return CHAT_TEXT;
    if (escaped) {
        memmove(text->data, text->data + 1, text->n_bytes - 1);
        text->n_bytes--;
        return CHAT_TEXT;
    }
    return text->n_bytes > 0 && text->data[0] == '/' ? CHAT_COMMAND : CHAT_TEXT;
}
