/* chat_edit.c: one line typed on a terminal. The kernel's own line editing takes one column off the
 * screen for a Chinese character, which has two, and cuts lines at 4,095 bytes; so the line is
 * drawn here. The text is UTF-8 with a cursor between characters; a paste may bring line ends
 * along. */
#include "chat.h"
#include <signal.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

enum {
    CTRL_A = 1,
    CTRL_B = 2,
    CTRL_C = 3,
    CTRL_D = 4,
    CTRL_E = 5,
    CTRL_F = 6,
    CTRL_H = 8,
    CTRL_K = 11,
    CTRL_L = 12,
    CTRL_N = 14,
    CTRL_P = 16,
    CTRL_U = 21,
    CTRL_W = 23,
    CTRL_Z = 26,
    ESCAPE = 27,
    DELETE = 127,
    PASTE = 200,
    PASTE_END = 201, /* parameters of ESC [ n ~ */
    ESCAPE_WAIT_MS = 50,
    MAX_HISTORY = 100
};

typedef struct editor {
    cli_bytes *text; /* the line is what stands behind `start` */
    size_t start, cursor;
    bool more;         /* a line of a longer text */
    size_t cursor_row; /* of the last drawing, counted from the prompt's row */
    size_t history;    /* which older line is shown; n_history: none */
    bool no_memory;
} editor;

static struct {
    cli_bytes lines[MAX_HISTORY];
    size_t n;
} history;

/* ---- Drawing --------------------------------------------------------------------------------- */

typedef struct place {
    size_t row, column;
} place;

static size_t terminal_columns(void) {
    struct winsize size;
    bool known = ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col >= 8;
    return known ? size.ws_col : 80;
}

/* Bytes of the character at `at`, at least 1; a byte that is not UTF-8 stands alone. */
static size_t character(const editor *e, size_t at) {
    uint32_t c;
    size_t n = cli_utf8_next(e->text->data + at, e->text->n_bytes - at, &c);
    return n == 0 ? 1 : n;
}

/* Where the cursor stands behind the bytes up to `end`, the prompt and line ends counted. */
static place place_of(const editor *e, size_t end, size_t columns) {
    place p = {0, 2};
    for (size_t at = e->start; at < end;) {
        size_t n = character(e, at);
        if (e->text->data[at] == '\n') {
            p.row++;
            p.column = 2;
        } else {
            size_t width = cli_utf8_width(e->text->data + at, n);
            if (p.column + width > columns) p.row++, p.column = 0;
            p.column += width;
        }
        at += n;
    }
    if (p.column == columns) p.row++, p.column = 0;
    return p;
}

static void draw(editor *e) {
    size_t columns = terminal_columns();
    if (e->cursor_row > 0) fprintf(stderr, "\033[%zuA", e->cursor_row);
    fprintf(stderr, "\r\033[J%s", e->more ? ". " : "> ");
    size_t at = e->start, n_bytes = e->text->n_bytes;
    while (at < n_bytes) {
        const char *line = e->text->data + at, *end = memchr(line, '\n', n_bytes - at);
        size_t n = end == NULL ? n_bytes - at : (size_t)(end - line);
        cli_print_safe(stderr, line, n);
        if (end != NULL) fputs("\n. ", stderr);
        at += n + (end != NULL);
    }
    place last = place_of(e, n_bytes, columns), cursor = place_of(e, e->cursor, columns);
    if (last.row > 0 && last.column == 0) fputs(" \r", stderr); /* the terminal wraps late */
    if (last.row > cursor.row) fprintf(stderr, "\033[%zuA", last.row - cursor.row);
    fputc('\r', stderr);
    if (cursor.column > 0) fprintf(stderr, "\033[%zuC", cursor.column);
    fflush(stderr);
    e->cursor_row = cursor.row;
}

/* ---- Changing the text ----------------------------------------------------------------------- */

static void insert(editor *e, const char *bytes, size_t n) {
    size_t tail = e->text->n_bytes - e->cursor;
    if (!cli_bytes_add(e->text, bytes, n)) {
        e->no_memory = true;
        return;
    }
    char *here = e->text->data + e->cursor;
    memmove(here + n, here, tail);
    memcpy(here, bytes, n);
    e->cursor += n;
}

static void cut(editor *e, size_t from, size_t to) {
    char *data = e->text->data;
    memmove(data + from, data + to, e->text->n_bytes - to);
    e->text->n_bytes -= to - from;
    e->cursor = from;
}

/* The beginning of the character in front of `at`; marks without a width belong to it. */
static size_t before(const editor *e, size_t at) {
    while (at > e->start) {
        at--;
        while (at > e->start && ((uint8_t)e->text->data[at] & 0xc0) == 0x80) at--;
        if (cli_utf8_width(e->text->data + at, character(e, at)) > 0) break;
    }
    return at;
}

static size_t behind(const editor *e, size_t at) {
    if (at == e->text->n_bytes) return at;
    at += character(e, at);
    while (at < e->text->n_bytes && e->text->data[at] != '\n' &&
           cli_utf8_width(e->text->data + at, character(e, at)) == 0) {
        at += character(e, at);
    }
    return at;
}

/* A word ends at blanks; Chinese text has few, so a character of it counts as a word. */
static size_t word_before(const editor *e) {
    size_t at = e->cursor;
    while (at > e->start && e->text->data[at - 1] == ' ') at--;
    size_t first = before(e, at);
    if (first < e->text->n_bytes && (uint8_t)e->text->data[first] >= 0x80) return first;
    while (at > e->start && e->text->data[at - 1] != ' ' && (uint8_t)e->text->data[at - 1] < 0x80) {
        at--;
    }
    return at;
}

static void recall(editor *e, size_t which) {
    if (which > history.n) return;
    cut(e, e->start, e->text->n_bytes);
    if (which < history.n) insert(e, history.lines[which].data, history.lines[which].n_bytes);
    e->history = which;
}

static void remember(const editor *e) {
    size_t n = e->text->n_bytes - e->start;
    cli_bytes line = {0};
    if (n == 0 || !cli_bytes_add(&line, e->text->data + e->start, n)) return;
    if (history.n == MAX_HISTORY) {
        cli_bytes_free(&history.lines[0]);
        memmove(history.lines, history.lines + 1, (MAX_HISTORY - 1) * sizeof *history.lines);
        history.n--;
    }
    history.lines[history.n++] = line;
}

void chat_edit_forget(void) {
    while (history.n > 0) cli_bytes_free(&history.lines[--history.n]);
}

/* ---- Keys ------------------------------------------------------------------------------------ */

/* Up to the end of the paste, \033[201~. Its control characters are dropped: they could be keys. */
static void paste(editor *e) {
    static const char end[] = "\033[201~";
    size_t n_seen = 0;
    for (;;) {
        int byte = chat_next_byte(-1);
        if (byte < 0 || e->no_memory) return;
        n_seen = byte == end[n_seen] ? n_seen + 1 : byte == ESCAPE ? 1 : 0;
        if (n_seen == sizeof end - 1) {
            cut(e, e->cursor - (sizeof end - 3), e->cursor); /* "[201", behind a dropped escape */
            bool line_end = e->cursor > e->start && e->text->data[e->cursor - 1] == '\n';
            if (line_end) cut(e, e->cursor - 1, e->cursor);
            return;
        }
        char c = byte == '\r' ? '\n' : (char)byte;
        bool control = (byte < 32 && c != '\n' && c != '\t') || byte == DELETE;
        if (!control) insert(e, &c, 1);
    }
}

/* ESC [ parameter letter, ESC O letter. A lone Escape is no key here. */
static void escape(editor *e) {
    int byte = chat_next_byte(ESCAPE_WAIT_MS), parameter = 0;
    if (byte == '\r') insert(e, "\n", 1); /* Alt-Enter */
    if (byte != '[' && byte != 'O') return;
    while ((byte = chat_next_byte(ESCAPE_WAIT_MS)) >= 0 && byte < 0x40) {
        bool digit = byte >= '0' && byte <= '9' && parameter < 1000;
        parameter = digit ? 10 * parameter + byte - '0' : parameter;
    }
    size_t up = e->history > 0 ? e->history - 1 : history.n + 1;
    if (byte == 'A') recall(e, up);
    if (byte == 'B') recall(e, e->history + 1);
    if (byte == 'C') e->cursor = behind(e, e->cursor);
    if (byte == 'D') e->cursor = before(e, e->cursor);
    if (byte == 'H' || (byte == '~' && (parameter == 1 || parameter == 7))) e->cursor = e->start;
    if (byte == 'F' || (byte == '~' && (parameter == 4 || parameter == 8))) {
        e->cursor = e->text->n_bytes;
    }
    if (byte == '~' && parameter == 3) {
        size_t from = e->cursor;
        cut(e, from, behind(e, from));
    }
    if (byte == '~' && parameter == PASTE) paste(e);
}

static void suspend(void) {
    chat_terminal_end();
    raise(SIGTSTP);
    chat_terminal_edit();
}

static void control_key(editor *e, int byte) {
    size_t cursor = e->cursor;
    switch (byte) {
    case CTRL_A:
        e->cursor = e->start;
        break;
    case CTRL_E:
        e->cursor = e->text->n_bytes;
        break;
    case CTRL_B:
        e->cursor = before(e, cursor);
        break;
    case CTRL_F:
        e->cursor = behind(e, cursor);
        break;
    case CTRL_H:
    case DELETE:
        cut(e, before(e, cursor), cursor);
        break;
    case CTRL_D:
        cut(e, cursor, behind(e, cursor));
        break;
    case CTRL_K:
        cut(e, cursor, e->text->n_bytes);
        break;
    case CTRL_U:
        cut(e, e->start, cursor);
        break;
    case CTRL_W:
        cut(e, word_before(e), cursor);
        break;
    case CTRL_P:
        recall(e, e->history > 0 ? e->history - 1 : history.n + 1);
        break;
    case CTRL_N:
        recall(e, e->history + 1);
        break;
    case CTRL_L:
        fputs("\033[H\033[2J", stderr);
        e->cursor_row = 0;
        break;
    case CTRL_Z:
        fputc('\n', stderr);
        suspend();
        e->cursor_row = 0;
        break;
    case ESCAPE:
        escape(e);
        break;
    case '\t':
        insert(e, " ", 1);
        break;
    default:
        break;
    }
}

static uint32_t finish(editor *e, uint32_t found) {
    e->cursor = e->text->n_bytes;
    draw(e);
    fputs(found == CHAT_LINE_GIVEN_UP ? "^C\n" : "\n", stderr);
    fflush(stderr);
    if (found == CHAT_LINE) remember(e);
    if (found != CHAT_LINE) e->text->n_bytes = e->start;
    return found;
}

/* The bytes in front of the cursor begin a character whose others have not come yet. */
static bool is_inside_character(const editor *e) {
    for (size_t n = 1; n <= 3 && n <= e->cursor - e->start; n++) {
        uint8_t byte = (uint8_t)e->text->data[e->cursor - n];
        if ((byte & 0xc0) != 0x80)
            return n < (byte < 0xc0 ? 1u : byte < 0xe0 ? 2u : byte < 0xf0 ? 3u : 4u);
    }
    return false;
}

uint32_t chat_edit_line(cli_bytes *text, bool more, bool *no_memory) {
    editor e = {.text = text, .start = text->n_bytes, .cursor = text->n_bytes, .more = more};
    e.history = history.n;
    draw(&e);
    for (;;) {
        int byte = chat_next_byte(-1);
        bool empty = text->n_bytes == e.start;
        if (byte == CHAT_BYTE_ERROR) return CHAT_LINE_ERROR;
        if (byte == CHAT_BYTE_END || (byte == CTRL_D && empty)) return finish(&e, CHAT_LINE_END);
        if (byte == CTRL_C) {
            return finish(&e, empty && !more ? CHAT_LINE_END : CHAT_LINE_GIVEN_UP);
        }
        if (byte == '\r' || byte == '\n') return finish(&e, CHAT_LINE);
        if (byte == CHAT_BYTE_AGAIN) {
            e.cursor_row = 0;
        } else if (byte >= 32 && byte != DELETE) {
            char c = (char)byte;
            insert(&e, &c, 1);
        } else {
            control_key(&e, byte);
        }
        if (e.no_memory) {
            *no_memory = true;
            return CHAT_LINE_ERROR;
        }
        /* What was typed or pasted at once is drawn once, and whole characters only. */
        if (!chat_has_bytes() && !is_inside_character(&e)) draw(&e);
    }
}
