/* damage_text.h: changes after which a JSON text (an object) is JSON no more, or not the strict
 * kind, wherever they fall. */
#ifndef DSI_TESTS_DAMAGE_TEXT_H
#define DSI_TESTS_DAMAGE_TEXT_H

#include "damage.h"

/* The place of one of the characters in `wanted` outside strings, drawn from all; quotes count as
 * outside. */
static inline size_t any_place(const bytes *text, const char *wanted) {
    size_t found = 0, n = 0;
    bool inside = false;
    for (size_t i = 0; i < text->n; i++) {
        char c = text->data[i];
        if (inside && c == '\\') {
            i++;
            continue;
        }
        bool quote = c == '"';
        if ((!inside || quote) && c != 0 && strchr(wanted, c) && below(++n) == 0) found = i;
        if (quote) inside = !inside;
    }
    assert_true(n > 0);
    return found;
}

/* Behind the first brace. */
static inline void insert_first(bytes *text, const char *piece) {
    const char *brace = memchr(text->data, '{', text->n);
    assert_non_null(brace);
    splice_text(text, (size_t)(brace - text->data) + 1, 0, piece, strlen(piece));
}

static inline void break_json(bytes *text) {
    /* clang-format off */
    static const char *const junk[] = {",,", "'", "/* c */", "// c\n", "NaN", "=", "\x0b", "\\",
                                       "#", "+", "{", "}", "[", "]", "undefined", ":"};
    static const char *const entries[] = {
        "\"n\":01,", "\"n\":1.,", "\"n\":.5,", "\"n\":1e,", "\"n\":-,", "\"n\":0x10,",
        "\"n\":Infinity,", "\"n\":TRUE,", "\"n\":nul,", "\"n\":1e+,", "\"n\":--1,", "'n':1,",
        "n:1,", "\"n\",", "\"n\":,", "\"twice\":1,\"twice\":1,", "\"twice\":1,\"\\u0074wice\":2,",
        "\"o\":{\"a\":0,\"b\":1,\"a\":2},", "1:1,", "\"a\":[1,],", "\"a\":[,1],", "\"a\":{,},"};
    /* clang-format on */
    size_t at;
    switch (below(5)) {
    case 0: /* one sign of the grammar less */
        splice_text(text, any_place(text, "{}[]:,\""), 1, "", 0);
        break;
    case 1: { /* or something between two of them */
        const char *piece = ANY_OF(junk);
        at = any_place(text, "{}[]:,");
        splice_text(text, at + below(2), 0, piece, strlen(piece));
        break;
    }
    case 2:
        insert_first(text, ANY_OF(entries));
        break;
    case 3: /* deeper than 64 */
        insert_first(text, "\"deep\":1,");
        at = (size_t)((const char *)memchr(text->data, ',', text->n) - text->data);
        for (size_t n = 64 + below(100); n > 0; n--) {
            splice_text(text, at, 0, "]", 1);
            splice_text(text, at - 1, 0, "[", 1);
            at++;
        }
        break;
    default: { /* before or behind the document */
        static const char *const behind[] = {"x", "{}", ",", "]", "}", "\x01", "0"};
        const char *piece = ANY_OF(behind);
        if (below(4) == 0)
            splice_text(text, 0, 0, "\xef\xbb\xbf", 3);
        else
            splice_text(text, text->n, 0, piece, strlen(piece));
        break;
    }
    }
}

/* Cut before its last brace. */
static inline void cut_json(bytes *text) {
    while (text->data[text->n - 1] != '}') text->n--;
    text->n = 1 + below(text->n - 1);
    text->data[text->n] = 0;
}

/* Bytes that no JSON string may hold, at the start of one. */
static inline void bad_bytes(bytes *text) {
    static const char *const pieces[] = {
        "\xff",         "\xc0\xaf", "\xed\xa0\x80",     "\xe4\xb8",     "\x01",
        "\n",           "\\x",      "\\u12G4",          "\\ud8",        "\\",
        "\xf5\x80\x80", "\x80",     "\xf4\x90\x80\x80", "\xe0\x80\x80", "\xf0\x80\x80\x80",
        "\x1f",         "\t",       "\\U0001"};
    const char *piece = ANY_OF(pieces);
    bool inside = false;
    size_t place = 0, n = 0;
    for (size_t i = 0; i < text->n; i++) {
        if (inside && text->data[i] == '\\') {
            i++;
            continue;
        }
        if (text->data[i] != '"') continue;
        if (!inside && text->data[i + 1] != '"' && below(++n) == 0) place = i + 1;
        inside = !inside;
    }
    if (strcmp(piece, "\\") == 0) piece = "\\ "; /* it would escape what follows */
    splice_text(text, place, 0, piece, strlen(piece));
}

/* One of the three. */
static inline void spoil_json(bytes *text) {
    switch (below(3)) {
    case 0:
        cut_json(text);
        break;
    case 1:
        bad_bytes(text);
        break;
    default:
        break_json(text);
        break;
    }
}

#endif
