/* pretok_v2.c: the pre-tokenizer of DeepSeek-V2 and DeepSeek LLM, hand-written. Six steps cut the
 * text one after the other, each inside the pieces that the one before left:
 *
 *   1  [\r\n]                       each line end alone
 *   2  \s?[A-Za-z...]+              a word: letters with case (class CASED), one leading space
 *   3  \s?[!-/:-~...]+              marks, one leading space: see is_mark; ASCII letters are marks
 *   4  \s+$                         white space at the end of a piece
 *   5  [U+0800-U+9FA5 U+AC00-U+D7FF]+   a run of the scripts in between ("wide")
 *   6  digits                       each number alone
 *
 * A piece of the last step has a border wherever any step cut. So this scanner never looks at the
 * steps' pieces: from one character to the next it asks whether one of them cuts there.
 *   Steps 1, 5, 6: seen from the two characters.
 *   Step 2 cuts where letters start (before one white space in front of them) and end.
 *   Step 3 cuts so around marks. Inside a word it parts ASCII and full-width letters from others:
 *   "café" is "caf", "é".
 *   Step 4 needs to know whether a run of white space ends a piece of step 3: it does before a line
 *   end, the end of the text, a word or marks; it does not before anything else. Only a run behind
 *   other characters of the same piece must be looked through, once.
 * U+3000 is white space and a mark too: in front of a letter it belongs to the word. */
#include "pretok.h"

enum {
    END = 1, /* a line end, or the end of the text */
    LETTER = 2,
    MARK = 4,
    WIDE = 8,
    SPACE = 16,
    NUMBER = 32
};
typedef struct kind_of {
    uint32_t kind;
    size_t begin, end;
} symbol;

/* [!-/:-~！-／：-～‘-‟　-。] */
static bool is_mark(uint32_t c) {
    if (c < 0x80) return (c >= '!' && c <= '/') || (c >= ':' && c <= '~');
    return (c >= 0xFF01 && c <= 0xFF0F) || (c >= 0xFF1A && c <= 0xFF5E) ||
           (c >= 0x2018 && c <= 0x201F) || (c >= 0x3000 && c <= 0x3002);
}

/* [一-龥ࠀ-一가-퟿] */
static bool is_wide(uint32_t c) {
    return (c >= 0x0800 && c <= 0x9FA5) || (c >= 0xAC00 && c <= 0xD7FF);
}

static symbol read_at(dsi_scan *s, size_t at) {
    dsi_symbol c = dsi_read_symbol(s, at);
    uint32_t kind = 0;
    if (c.class == DSI_CLASS_END || dsi_is_line_end(&c)) return (symbol){END, at, c.end};
    if (c.class & DSI_CAT_CASED) kind |= LETTER;
    if (c.class & DSI_CAT_SPACE) kind |= SPACE;
    if (c.class & DSI_CAT_N) kind |= NUMBER;
    if (is_mark(c.code_point)) kind |= MARK;
    if (is_wide(c.code_point)) kind |= WIDE;
    return (symbol){kind, at, c.end};
}

/* Does step 3 take this symbol as a mark, one that does not begin a word? */
static bool starts_marks(dsi_scan *s, const symbol *c) {
    if ((c->kind & MARK) == 0 || (c->kind & LETTER)) return false;
    return (c->kind & SPACE) == 0 || (read_at(s, c->end).kind & LETTER) == 0;
}

static bool same_piece(const symbol *a, const symbol *b) {
    return ((a->kind ^ b->kind) & WIDE) == 0;
}

/* Letters from `first` on; step 3 and 5 cut where MARK or WIDE changes. */
static size_t scan_letters(dsi_scan *s, const symbol *first) {
    symbol c = *first;
    do c = read_at(s, c.end);
    while ((c.kind & LETTER) && ((c.kind ^ first->kind) & (MARK | WIDE)) == 0);
    return c.begin;
}

/* Marks from `first` on. */
static size_t scan_marks(dsi_scan *s, const symbol *first) {
    bool content = (first->kind & SPACE) == 0; /* something else than U+3000 */
    size_t at = first->end;
    for (;;) {
        symbol c = read_at(s, at);
        if ((c.kind & MARK) == 0 || (c.kind & LETTER) || !same_piece(first, &c)) return at;
        if (c.kind & SPACE) { /* U+3000: at the end of the marks, or within? */
            symbol next = read_at(s, c.end);
            while (content && (next.kind & MARK) && (next.kind & SPACE))
                next = read_at(s, next.end);
            if (next.kind & LETTER) return at;
            if (content && (next.kind & MARK) == 0) return at;
            if (content) c.end = next.begin;
        } else {
            content = true;
        }
        at = c.end;
    }
}

/* Is the run of white space from `c` on cut off by step 4, or the white space of a word or of
 * marks? *run_end gets its end. */
static bool space_ends_piece(dsi_scan *s, symbol c, size_t *run_end) {
    while ((c.kind & SPACE) && (c.kind & MARK) == 0) c = read_at(s, c.end);
    *run_end = c.begin;
    return (c.kind & (END | LETTER | MARK)) != 0;
}

/* Whatever is neither letter, mark nor number, with the white space in it, from `first` on. */
static size_t scan_gap(dsi_scan *s, const symbol *first) {
    bool content = (first->kind & SPACE) == 0;
    size_t at = first->end, looked_up_to = 0;
    for (;;) {
        symbol c = read_at(s, at);
        if ((c.kind & (END | LETTER | MARK | NUMBER)) || !same_piece(first, &c)) return at;
        if ((c.kind & SPACE) == 0) {
            content = true;
        } else if (!content) { /* only white space so far: does this one belong to what follows? */
            symbol next = read_at(s, c.end);
            if ((next.kind & LETTER) || starts_marks(s, &next)) return at;
        } else if (at >= looked_up_to && space_ends_piece(s, c, &looked_up_to)) {
            return at;
        }
        at = c.end;
    }
}

size_t dsi_pretok_v2(dsi_scan *s, size_t begin) {
    symbol first = read_at(s, begin);
    if (first.kind & (END | NUMBER)) return first.end;
    if (first.kind & LETTER) return scan_letters(s, &first);
    if (first.kind & SPACE) {
        symbol next = read_at(s, first.end);
        bool mark = (first.kind & MARK) != 0; /* U+3000 */
        if (next.kind & LETTER)
            return mark || !same_piece(&first, &next) ? first.end : scan_letters(s, &next);
        if (!mark && starts_marks(s, &next))
            return same_piece(&first, &next) ? scan_marks(s, &next) : first.end;
    }
    return (first.kind & MARK) ? scan_marks(s, &first) : scan_gap(s, &first);
}
