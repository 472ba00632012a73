/* pretok.c: the pre-tokenizers of DeepSeek-V3, Qwen2 and Llama-3, hand-written. (That of
 * DeepSeek-V2 is in pretok_v2.c, those of SmolLM and DeepSeek Coder in pretok_gpt2.c.)
 *
 * DeepSeek-V3. Three regular expressions cut the text one after the other, each inside the pieces
 * that the one before left:
 *
 *   1  \p{N}{1,3}                                digits in threes, from the left
 *   2  [U+4E00-U+9FA5 U+3040-U+309F U+30A0-U+30FF]+   a run of Chinese or Japanese
 *   3  a  [ASCII punctuation][A-Za-z]+           "'s", "/path"
 *      b  [^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+   a word, with one leading space, tab, ...
 *      c   ?[\p{P}\p{S}]+[\r\n]*                 punctuation, one leading space, line ends behind
 *      d  \s*[\r\n]+                             white space up to the last line end
 *      e  \s+(?!\S)                              white space, all but the last before a word
 *      f  \s+                                    that last one
 *
 * 3 works inside the pieces of 1 and 2 and inside what lies between them. So for it the text ends
 * where a number starts and where CJK starts or stops (the look-ahead of e succeeds there); all of
 * these read as the class END, and what is left is a scanner that looks at most one character
 * beyond the piece. Numbers themselves match nothing in 3, and a CJK run is cut by it only at the
 * few marks and unassigned code points in those ranges. What matches nothing (controls, format
 * characters, unassigned code points) forms pieces of its own.
 *
 * Qwen2 and Llama-3. One expression; the two differ in how many digits stand together:
 *
 *   g  (?i:'s|'t|'re|'ve|'m|'ll|'d)              English contractions
 *   h  [^\r\n\p{L}\p{N}]?\p{L}+                  a word, with one leading character
 *   i  \p{N} or \p{N}{1,3}                       digits
 *   j   ?[^\s\p{L}\p{N}]+[\r\n]*                 all else but white space, line ends behind
 *   d, e, f as above
 *
 * Every character is looked at a bounded number of times, however often the caller calls; there is
 * no recursion and no memory. */
#include "pretok.h"

enum { CLASS_WORD = DSI_CAT_L | DSI_CAT_M, CLASS_MARK = DSI_CAT_P | DSI_CAT_S };

/* The ranges of pattern 2: CJK ideographs up to U+9FA5, hiragana, katakana. */
static bool is_cjk(uint32_t code_point) {
    return (code_point >= 0x4E00 && code_point <= 0x9FA5) ||
           (code_point >= 0x3040 && code_point <= 0x30FF);
}

/* The same as pattern 3 sees it, inside one piece of patterns 1 and 2. */
static dsi_symbol read_inside(dsi_scan *s, size_t at) {
    dsi_symbol c = dsi_read_symbol(s, at);
    if (s->isolates && ((c.class & DSI_CAT_N) || is_cjk(c.code_point) != s->in_cjk))
        c.class = DSI_CLASS_END;
    return c;
}

static bool is_ascii_letter(const dsi_symbol *c) {
    uint32_t lower = c->code_point | 0x20;
    return lower >= 'a' && lower <= 'z';
}

/* End of the run of symbols of `classes` that starts at `at`. */
static size_t skip_classes(dsi_scan *s, size_t at, uint32_t classes) {
    for (;;) {
        while (!s->in_cjk && at < s->n_bytes && s->text[at] < 0x80 &&
               (dsi_unicode_category_of[s->text[at]] & classes))
            at++; /* the same for ASCII, in which these runs mostly are */
        dsi_symbol c = read_inside(s, at);
        if ((c.class & classes) == 0) return at;
        at = c.end;
    }
}

static size_t skip_line_ends(dsi_scan *s, size_t at) {
    for (;;) {
        dsi_symbol c = read_inside(s, at);
        if (c.class == DSI_CLASS_END || !dsi_is_line_end(&c)) return at;
        at = c.end;
    }
}

static size_t scan_number(dsi_scan *s, size_t at, int max_digits) {
    for (int i = 0; i < max_digits; i++) {
        dsi_symbol c = dsi_read_symbol(s, at);
        if ((c.class & DSI_CAT_N) == 0) break;
        at = c.end;
    }
    return at;
}

/* Alternatives d, e and f, at white space. */
static size_t scan_space(dsi_scan *s, size_t at) {
    size_t after_line_end = 0; /* end of the last \r or \n of the run */
    size_t last = at;          /* start of the last character of the run */
    size_t begin = at;
    dsi_symbol c;
    for (;; at = c.end) {
        c = read_inside(s, at);
        if ((c.class & DSI_CAT_SPACE) == 0) break;
        if (dsi_is_line_end(&c)) after_line_end = c.end;
        last = at;
    }
    if (after_line_end > 0) return after_line_end;            /* d */
    if (c.class == DSI_CLASS_END || last == begin) return at; /* e at the end; f */
    return last;                                              /* e before a character */
}

/* ---- DeepSeek-V3 --------------------------------------------------------------------------- */

/* Alternatives a and c, at a punctuation mark or symbol (for c: behind its optional space). */
static size_t scan_marks(dsi_scan *s, const dsi_symbol *first, bool after_space) {
    dsi_symbol next = read_inside(s, first->end);
    /* All 32 ASCII marks are in the set of alternative a. END is tested because a digit or the
     * end of the text has class END, and no letter does. */
    if (!after_space && first->code_point < 0x80 && next.class != DSI_CLASS_END &&
        is_ascii_letter(&next)) {
        do next = read_inside(s, next.end);
        while (next.class != DSI_CLASS_END && is_ascii_letter(&next));
        return next.begin;
    }
    return skip_line_ends(s, skip_classes(s, first->end, CLASS_MARK));
}

/* What pattern 3 does not match: characters of no class. The last of them belongs to the word that
 * follows, by alternative b. */
static size_t scan_other(dsi_scan *s, size_t at) {
    size_t last = at, begin = at;
    dsi_symbol c;
    for (;; at = c.end) {
        c = read_inside(s, at);
        if (c.class != DSI_CLASS_OTHER) break;
        last = at;
    }
    if ((c.class & CLASS_WORD) == 0) return at;
    return last == begin ? skip_classes(s, at, CLASS_WORD) : last;
}

static size_t next_v3(dsi_scan *s, size_t begin) {
    dsi_symbol first = dsi_read_symbol(s, begin);
    if (first.class & DSI_CAT_N) return scan_number(s, begin, 3);
    s->isolates = true;
    s->in_cjk = is_cjk(first.code_point);
    if (first.class & CLASS_WORD) return skip_classes(s, first.end, CLASS_WORD);
    if (first.class & CLASS_MARK) return scan_marks(s, &first, false);
    if (first.class == DSI_CLASS_OTHER) return scan_other(s, begin);
    dsi_symbol next = read_inside(s, first.end);
    if ((next.class & CLASS_WORD) && !dsi_is_line_end(&first)) /* b: one leading space */
        return skip_classes(s, next.end, CLASS_WORD);
    if ((next.class & CLASS_MARK) && first.code_point == ' ') /* c: the same */
        return scan_marks(s, &next, true);
    return scan_space(s, begin);
}

/* ---- Qwen2 and Llama-3 ----------------------------------------------------------------------- */

/* Alternative g behind its apostrophe: the end, or 0. The long s U+017F counts as an s when case
 * does not. */
static size_t scan_contraction(dsi_scan *s, size_t at) {
    dsi_symbol c = dsi_read_symbol(s, at);
    if (c.code_point == 0x17F) return c.end;
    if (!is_ascii_letter(&c)) return 0;
    uint32_t lower = c.code_point | 0x20;
    if (lower == 's' || lower == 't' || lower == 'm' || lower == 'd') return c.end;
    if (lower != 'r' && lower != 'v' && lower != 'l') return 0;
    dsi_symbol second = dsi_read_symbol(s, c.end);
    return is_ascii_letter(&second) && (second.code_point | 0x20) == (lower == 'l' ? 'l' : 'e')
               ? second.end
               : 0;
}

/* Alternative j, behind its optional space. */
static size_t scan_rest(dsi_scan *s, size_t at) {
    const uint32_t stops = DSI_CAT_SPACE | DSI_CAT_L | DSI_CAT_N | DSI_CLASS_END;
    dsi_symbol c = dsi_read_symbol(s, at);
    while ((c.class & stops) == 0) c = dsi_read_symbol(s, c.end);
    return skip_line_ends(s, c.begin);
}

static size_t next_llama(dsi_scan *s, size_t begin, int max_digits) {
    dsi_symbol first = dsi_read_symbol(s, begin);
    if (first.class & DSI_CAT_L) return skip_classes(s, first.end, DSI_CAT_L);
    if (first.class & DSI_CAT_N) return scan_number(s, begin, max_digits);
    if (first.code_point == '\'') {
        size_t end = scan_contraction(s, first.end);
        if (end > 0) return end;
    }
    dsi_symbol next = dsi_read_symbol(s, first.end);
    if ((next.class & DSI_CAT_L) && !dsi_is_line_end(&first)) /* h: one leading character */
        return skip_classes(s, next.end, DSI_CAT_L);
    if ((first.class & DSI_CAT_SPACE) == 0) return scan_rest(s, first.end);
    if (first.code_point == ' ' &&
        (next.class & (DSI_CAT_SPACE | DSI_CAT_N | DSI_CLASS_END)) == 0) /* j: one leading space */
        return scan_rest(s, next.end);
    return scan_space(s, begin);
}

/* -------------------------------------------------------------------------------------------- */

size_t dsi_pretok_next(dsi_pretok pretok, const char *text, size_t n_bytes, size_t begin,
                       bool *saw_end) {
    dsi_scan s = {.text = (const uint8_t *)text, .n_bytes = n_bytes};
    size_t end = n_bytes;
    switch (pretok) {
    case DSI_PRETOK_DEEPSEEK_V3:
        end = next_v3(&s, begin);
        break;
    case DSI_PRETOK_QWEN2:
        end = next_llama(&s, begin, 1);
        break;
    case DSI_PRETOK_LLAMA3:
        end = next_llama(&s, begin, 3);
        break;
    case DSI_PRETOK_DEEPSEEK_V2:
        end = dsi_pretok_v2(&s, begin);
        break;
    case DSI_PRETOK_SMOLLM:
        end = dsi_pretok_smollm(&s, begin);
        break;
    case DSI_PRETOK_DEEPSEEK_CODER:
        end = dsi_pretok_coder(&s, begin);
        break;
    }
    if (saw_end) *saw_end = s.saw_end;
    return end;
}
