/* pretok.h: what the pre-tokenizers' files share: reading characters by their class. */
#ifndef DSI_LIB_TEXT_PRETOK_H
#define DSI_LIB_TEXT_PRETOK_H

#include "unicode_tables.h"
#include "utf8.h"

/* No class at all (controls, format characters, unassigned code points) is 0. */
enum { DSI_CLASS_OTHER = 0, DSI_CLASS_END = 64 };

typedef struct dsi_scan {
    const uint8_t *text;
    size_t n_bytes;
    bool isolates; /* numbers and CJK runs end the text: DeepSeek-V3, see pretok.c */
    bool in_cjk;   /* the piece starts inside a CJK run */
    bool saw_end;  /* the end of the text was looked at: more text could change the piece */
} dsi_scan;
typedef struct dsi_symbol {
    uint32_t code_point;
    uint32_t class; /* DSI_CAT_*, DSI_CLASS_OTHER or DSI_CLASS_END */
    size_t begin, end;
} dsi_symbol;

/* The character at `at`; broken UTF-8 reads as U+FFFD. */
static inline dsi_symbol dsi_read_symbol(dsi_scan *s, size_t at) {
    if (at >= s->n_bytes) {
        s->saw_end = true;
        return (dsi_symbol){0, DSI_CLASS_END, at, at};
    }
    uint32_t byte = s->text[at];
    if (byte < 0x80) return (dsi_symbol){byte, dsi_unicode_category_of[byte], at, at + 1};
    dsi_utf8_step step = dsi_utf8_next(s->text + at, s->n_bytes - at);
    return (dsi_symbol){step.code_point, dsi_unicode_lookup(step.code_point), at,
                        at + step.n_bytes};
}

static inline bool dsi_is_line_end(const dsi_symbol *c) {
    return c->code_point == '\r' || c->code_point == '\n';
}

/* DeepSeek-V2's next piece (pretok_v2.c). */
size_t dsi_pretok_v2(dsi_scan *s, size_t begin);
/* SmolLM's, DeepSeek Coder's (pretok_gpt2.c). */
size_t dsi_pretok_smollm(dsi_scan *s, size_t begin);
size_t dsi_pretok_coder(dsi_scan *s, size_t begin);

#endif
