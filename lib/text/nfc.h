/* nfc.h: Unicode normalization form C of a text, read as a stream. Qwen2's tokenizers want it. */
#ifndef DSI_LIB_TEXT_NFC_H
#define DSI_LIB_TEXT_NFC_H

#include "../base/base.h"

/* ---- Tables (nfc_tables.c is generated) ------------------------------------------------------ */
typedef struct dsi_nfc_pair {
    uint32_t composed, first, second;
} dsi_nfc_pair;
enum { DSI_NFC_N_DECOMPOSITIONS = 2061, DSI_NFC_N_COMPOSITIONS = 941 };
extern const uint8_t dsi_nfc_block_of[]; /* [0x110000 / 128] */
extern const uint8_t dsi_nfc_kind_of[];  /* [blocks][128] */
extern const dsi_nfc_pair dsi_nfc_decompositions[DSI_NFC_N_DECOMPOSITIONS];
extern const dsi_nfc_pair dsi_nfc_compositions[DSI_NFC_N_COMPOSITIONS];
enum {
    DSI_NFC_CLASS = 0x3F,      /* rank of the combining class; 0: a starter */
    DSI_NFC_DECOMPOSES = 0x40, /* Hangul syllables apart */
    DSI_NFC_NOT_SURE = 0x80    /* never in form C, or not behind every character */
};

/* code_point <= 0x10FFFF */
static inline uint32_t dsi_nfc_kind(uint32_t code_point) {
    return dsi_nfc_kind_of[dsi_nfc_block_of[code_point / 128] * 128 + code_point % 128];
}

/* ---- The stream (nfc.c) ---------------------------------------------------------------------- */

/* Is the text in form C for sure? A quick look; false may be wrong, true never is. Broken UTF-8
 * counts as U+FFFD. */
bool dsi_nfc_is_normal(const char *text, size_t n_bytes);

enum { DSI_NFC_SMALL = 32, DSI_NFC_MAX_PARTS = 4 /* a character decomposes into */ };
typedef struct dsi_nfc {
    const uint8_t *text;
    size_t n_bytes, at;
    /* A starter and the marks behind it: [0, n) of it, of which n_out are handed out already. The
     * second half of the room is for sorting. */
    uint32_t *segment;
    size_t n, n_out, capacity;
    uint32_t parts[DSI_NFC_MAX_PARTS]; /* of the next character, last one first */
    uint32_t n_parts;
    uint32_t small[2 * DSI_NFC_SMALL];
} dsi_nfc;
void dsi_nfc_start(dsi_nfc *nfc, const char *text, size_t n_bytes);
void dsi_nfc_end(dsi_nfc *nfc);
/* Writes the next normalised characters to `out`, as many whole ones as fit in `room` (at least 4)
 * bytes; *n_out is 0 at the end of the text only. Broken UTF-8 becomes U+FFFD. Errors: NOMEM (a
 * run of combining marks of that length is sorted in memory). */
dsi_status dsi_nfc_read(dsi_nfc *nfc, uint8_t *out, size_t room, size_t *n_out, dsi_error *error);

#endif
