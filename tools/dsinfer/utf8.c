/* utf8.c: strict UTF-8, and how many terminal columns a character takes. */
#include "cli.h"

size_t cli_utf8_next(const char *text, size_t n_bytes, uint32_t *code_point) {
    static const uint32_t least[5] = {0, 0, 0x80, 0x800, 0x10000};
    if (n_bytes == 0) return 0;
    uint32_t lead = (uint8_t)text[0];
    size_t n = lead < 0x80   ? 1
               : lead < 0xc2 ? 0
               : lead < 0xe0 ? 2
               : lead < 0xf0 ? 3
               : lead < 0xf5 ? 4
                             : 0;
    if (n == 0 || n > n_bytes) return 0;
    uint32_t c = n == 1 ? lead : lead & (0x7fu >> n);
    for (size_t i = 1; i < n; i++) {
        uint32_t next = (uint8_t)text[i];
        if ((next & 0xc0) != 0x80) return 0;
        c = c << 6 | (next & 0x3f);
    }
    if (c < least[n] || c > 0x10ffff || (c >= 0xd800 && c < 0xe000)) return 0;
    *code_point = c;
    return n;
}

size_t cli_utf8_bad(const char *text, size_t n_bytes) {
    size_t at = 0;
    uint32_t c;
    while (at < n_bytes) {
        size_t n = cli_utf8_next(text + at, n_bytes - at, &c);
        if (n == 0) return at;
        at += n;
    }
    return at;
}

bool cli_utf8_control(uint32_t c) { return c < 0x20 || (c >= 0x7f && c < 0xa0); }

bool cli_utf8_unsafe(uint32_t c) {
    return cli_utf8_control(c) || (c >= 0x202a && c <= 0x202e) || (c >= 0x2066 && c <= 0x2069) ||
           c == 0x2028 || c == 0x2029;
}

/* Unicode Standard Annex 11, wide and full-width ranges, and the common marks without a width. */
static size_t columns(uint32_t c) {
    static const uint32_t none[][2] = {
        {0x300, 0x36f}, {0x200b, 0x200f}, {0x20d0, 0x20ff}, {0xfe00, 0xfe0f}, {0xfeff, 0xfeff}};
    static const uint32_t wide[][2] = {{0x1100, 0x115f},   {0x2e80, 0x303e},  {0x3041, 0x4dbf},
                                       {0x4e00, 0xa4cf},   {0xac00, 0xd7a3},  {0xf900, 0xfaff},
                                       {0xfe30, 0xfe6f},   {0xff00, 0xff60},  {0xffe0, 0xffe6},
                                       {0x1f300, 0x1faff}, {0x20000, 0x3fffd}};
    for (size_t i = 0; i < sizeof none / sizeof none[0]; i++) {
        if (c >= none[i][0] && c <= none[i][1]) return 0;
    }
    for (size_t i = 0; i < sizeof wide / sizeof wide[0]; i++) {
        if (c >= wide[i][0] && c <= wide[i][1]) return 2;
    }
    return 1;
}

size_t cli_utf8_width(const char *text, size_t n_bytes) {
    size_t width = 0;
    uint32_t c = 0;
    for (size_t at = 0; at < n_bytes;) {
        size_t n = cli_utf8_next(text + at, n_bytes - at, &c);
        width += n == 0 ? 1 : columns(c);
        at += n == 0 ? 1 : n;
    }
    return width;
}
