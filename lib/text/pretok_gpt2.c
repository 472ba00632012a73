/* pretok_gpt2.c: the pre-tokenizers of SmolLM and DeepSeek Coder, hand-written.
 *
 * SmolLM: every number alone, and GPT-2's expression inside what lies between:
 *
 *   's|'t|'re|'ve|'m|'ll|'d      English contractions, in small letters
 *    ?\p{L}+                     a word, one leading space
 *    ?[^\s\p{L}\p{N}]+           all else but white space, one leading space
 *   \s+(?!\S)|\s+                white space, the last one before something else alone
 *
 * DeepSeek Coder: five steps, each inside the pieces that the one before left:
 *
 *   [\r\n]   \s?\p{L}+   \s?\p{P}+   [U+0800-U+9FA5 U+AC00-U+D7FF]+ ("wide")   each number alone
 *
 * Letters and marks are of one kind or the other, so a piece ends where the kind changes, where
 * "wide" does, and before the one white space that a word or marks take with them. */
#include "pretok.h"

#include "text.h"

/* ---- SmolLM --------------------------------------------------------------------------------- */

/* A number ends the text for all expressions but its own. */
static dsi_symbol read_between(dsi_scan *s, size_t at) {
    dsi_symbol c = dsi_read_symbol(s, at);
    if (c.class & DSI_CAT_N) c.class = DSI_CLASS_END;
    return c;
}

/* The end of a contraction behind its apostrophe, or 0. */
static size_t scan_contraction(dsi_scan *s, size_t at) {
    dsi_symbol c = dsi_read_symbol(s, at);
    uint32_t letter = c.code_point;
    if (c.class == DSI_CLASS_END) return 0;
    if (letter == 's' || letter == 't' || letter == 'm' || letter == 'd') return c.end;
    if (letter != 'r' && letter != 'v' && letter != 'l') return 0;
    dsi_symbol second = dsi_read_symbol(s, c.end);
    bool whole = second.class != DSI_CLASS_END && second.code_point == (letter == 'l' ? 'l' : 'e');
    return whole ? second.end : 0;
}

static size_t scan_letters(dsi_scan *s, size_t at) {
    dsi_symbol c = read_between(s, at);
    while (c.class & DSI_CAT_L) c = read_between(s, c.end);
    return c.begin;
}

static size_t scan_rest(dsi_scan *s, size_t at) {
    const uint32_t stops = DSI_CAT_SPACE | DSI_CAT_L | DSI_CLASS_END;
    dsi_symbol c = read_between(s, at);
    while ((c.class & stops) == 0) c = read_between(s, c.end);
    return c.begin;
}

static size_t scan_space(dsi_scan *s, size_t begin) {
    size_t last = begin;
    dsi_symbol c = read_between(s, begin);
    for (; c.class & DSI_CAT_SPACE; c = read_between(s, c.end)) last = c.begin;
    return c.class == DSI_CLASS_END || last == begin ? c.begin : last;
}

size_t dsi_pretok_smollm(dsi_scan *s, size_t begin) {
    dsi_symbol first = dsi_read_symbol(s, begin);
    if (first.class & DSI_CAT_N) return first.end;
    if (first.class & DSI_CAT_L) return scan_letters(s, first.end);
    if (first.code_point == '\'') {
        size_t end = scan_contraction(s, first.end);
        if (end > 0) return end;
    }
    if ((first.class & DSI_CAT_SPACE) == 0) return scan_rest(s, first.end);
    dsi_symbol next = read_between(s, first.end);
    if (first.code_point == ' ' && (next.class & DSI_CAT_L)) return scan_letters(s, next.end);
    if (first.code_point == ' ' && (next.class & (DSI_CAT_SPACE | DSI_CLASS_END)) == 0)
        return scan_rest(s, next.end);
    return scan_space(s, begin);
}

/* ---- DeepSeek Coder ------------------------------------------------------------------------- */

static bool is_wide(uint32_t c) {
    return (c >= 0x0800 && c <= 0x9FA5) || (c >= 0xAC00 && c <= 0xD7FF);
}

/* Symbols of `class` from `first` on, as wide as it. */
static size_t scan_same(dsi_scan *s, const dsi_symbol *first, uint32_t class) {
    dsi_symbol c = dsi_read_symbol(s, first->end);
    while ((c.class & class) && is_wide(c.code_point) == is_wide(first->code_point))
        c = dsi_read_symbol(s, c.end);
    return c.begin;
}

/* What is neither letter, mark nor number, up to the white space of a word or of marks. */
static size_t scan_gap(dsi_scan *s, const dsi_symbol *first) {
    const uint32_t stops = DSI_CAT_L | DSI_CAT_P | DSI_CAT_N | DSI_CLASS_END;
    dsi_symbol c = dsi_read_symbol(s, first->end);
    for (;; c = dsi_read_symbol(s, c.end)) {
        if ((c.class & stops) || dsi_is_line_end(&c)) return c.begin;
        if (is_wide(c.code_point) != is_wide(first->code_point)) return c.begin;
        if ((c.class & DSI_CAT_SPACE) == 0) continue;
        dsi_symbol next = dsi_read_symbol(s, c.end);
        if (next.class & (DSI_CAT_L | DSI_CAT_P)) return c.begin;
    }
}

size_t dsi_pretok_coder(dsi_scan *s, size_t begin) {
    dsi_symbol first = dsi_read_symbol(s, begin);
    const uint32_t words = DSI_CAT_L | DSI_CAT_P;
    if (dsi_is_line_end(&first) || (first.class & DSI_CAT_N)) return first.end;
    if (first.class & words) return scan_same(s, &first, first.class & words);
    if (first.class & DSI_CAT_SPACE) {
        dsi_symbol next = dsi_read_symbol(s, first.end);
        if ((next.class & words) && is_wide(next.code_point) == is_wide(first.code_point))
            return scan_same(s, &next, next.class & words);
        if (next.class & words) return first.end;
    }
    return scan_gap(s, &first);
}
