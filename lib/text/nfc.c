/* nfc.c: normalization form C in one pass, in linear time. The text is decomposed; each starter
 * gathers the marks behind it; these are sorted by combining class and composed with it. A starter
 * can only join the one before if nothing stands between them, so a segment is finished when the
 * next one begins, and memory is that of the longest run of marks. */
#include "nfc.h"
#include "../base/sys.h"
#include "utf8.h"

#include <string.h>

/* ---- One character --------------------------------------------------------------------------- */

/* Hangul syllables are made of jamo by arithmetic (section 3.12 of the standard). */
enum { L_BASE = 0x1100, V_BASE = 0x1161, T_BASE = 0x11A7, S_BASE = 0xAC00 };
enum { N_L = 19, N_V = 21, N_T = 28, N_S = N_L * N_V * N_T };

static const dsi_nfc_pair *find_decomposition(uint32_t c) {
    size_t low = 0, high = DSI_NFC_N_DECOMPOSITIONS;
    while (low < high) {
        size_t middle = (low + high) / 2;
        const dsi_nfc_pair *pair = &dsi_nfc_decompositions[middle];
        if (pair->composed == c) return pair;
        if (pair->composed < c)
            low = middle + 1;
        else
            high = middle;
    }
    return NULL;
}

/* Puts the parts of `c` into nfc->parts, last one first. Only a first part decomposes further. */
static void decompose(dsi_nfc *nfc, uint32_t c) {
    nfc->n_parts = 0;
    if (c >= S_BASE && c < S_BASE + N_S) {
        uint32_t s = c - S_BASE;
        if (s % N_T > 0) nfc->parts[nfc->n_parts++] = T_BASE + s % N_T;
        nfc->parts[nfc->n_parts++] = V_BASE + s / N_T % N_V;
        c = L_BASE + s / (N_T * N_V);
    }
    while (dsi_nfc_kind(c) & DSI_NFC_DECOMPOSES) {
        const dsi_nfc_pair *pair = find_decomposition(c);
        if (!pair) break;
        if (pair->second > 0) nfc->parts[nfc->n_parts++] = pair->second;
        c = pair->first;
    }
    nfc->parts[nfc->n_parts++] = c;
}

/* The character that the two make, or 0. */
static uint32_t compose(uint32_t first, uint32_t second) {
    if (first >= L_BASE && first < L_BASE + N_L && second >= V_BASE && second < V_BASE + N_V)
        return S_BASE + ((first - L_BASE) * N_V + second - V_BASE) * N_T;
    if (first >= S_BASE && first < S_BASE + N_S && (first - S_BASE) % N_T == 0 && second > T_BASE &&
        second < T_BASE + N_T)
        return first + second - T_BASE;
    size_t low = 0, high = DSI_NFC_N_COMPOSITIONS;
    while (low < high) {
        size_t middle = (low + high) / 2;
        const dsi_nfc_pair *pair = &dsi_nfc_compositions[middle];
        if (pair->first == first && pair->second == second) return pair->composed;
        if (pair->first < first || (pair->first == first && pair->second < second))
            low = middle + 1;
        else
            high = middle;
    }
    return 0;
}

/* ---- A segment ------------------------------------------------------------------------------- */

static uint32_t class_of(uint32_t c) { return dsi_nfc_kind(c) & DSI_NFC_CLASS; }

/* Sorts marks by class; those of one class keep their order. `scratch` is as long. */
static void sort_marks(uint32_t *marks, size_t n, uint32_t *scratch) {
    if (n <= DSI_NFC_SMALL) {
        for (size_t i = 1; i < n; i++) {
            uint32_t c = marks[i], class = class_of(c);
            size_t k = i;
            for (; k > 0 && class_of(marks[k - 1]) > class; k--) marks[k] = marks[k - 1];
            marks[k] = c;
        }
        return;
    }
    size_t start[DSI_NFC_CLASS + 2] = {0};
    for (size_t i = 0; i < n; i++) start[class_of(marks[i]) + 1]++;
    for (size_t class = 0; class <= DSI_NFC_CLASS; class ++) start[class + 1] += start[class];
    for (size_t i = 0; i < n; i++) scratch[start[class_of(marks[i])]++] = marks[i];
    memcpy(marks, scratch, n * sizeof *marks);
}

/* Sorts and composes what has been gathered. */
static void finish_segment(dsi_nfc *nfc) {
    uint32_t *s = nfc->segment;
    size_t n_starters = nfc->n > 0 && class_of(s[0]) == 0, n = n_starters;
    sort_marks(s + n_starters, nfc->n - n_starters, s + nfc->capacity);
    uint32_t last_class = 0; /* of the marks kept: one of the same class stands in the way */
    for (size_t i = n_starters; i < nfc->n; i++) {
        uint32_t class = class_of(s[i]);
        uint32_t composed = n_starters && class > last_class ? compose(s[0], s[i]) : 0;
        if (composed) {
            s[0] = composed;
        } else {
            s[n++] = s[i];
            last_class = class;
        }
    }
    nfc->n = n;
}

static dsi_status append(dsi_nfc *nfc, uint32_t c, dsi_error *error) {
    if (nfc->n == nfc->capacity) {
        DSI_MEMORY_SCOPE(TEXT);
        uint64_t n_all = 0;
        uint32_t *more = NULL;
        if (dsi_mul_ok(nfc->capacity, 4, &n_all)) more = dsi_sys_calloc(n_all, sizeof *more);
        if (!more)
            return dsi_fail(error, DSI_E_NOMEM,
                            "no memory to normalise %zu combining marks in a row", nfc->n);
        memcpy(more, nfc->segment, nfc->n * sizeof *more);
        dsi_nfc_end(nfc);
        nfc->segment = more;
        nfc->capacity *= 2;
    }
    nfc->segment[nfc->n++] = c;
    return DSI_OK;
}

/* Gathers the next segment. */
static dsi_status next_segment(dsi_nfc *nfc, dsi_error *error) {
    nfc->n = nfc->n_out = 0;
    for (;;) {
        if (nfc->n_parts == 0) {
            if (nfc->at == nfc->n_bytes) break;
            dsi_utf8_step step = dsi_utf8_next(nfc->text + nfc->at, nfc->n_bytes - nfc->at);
            nfc->at += step.n_bytes;
            decompose(nfc, step.code_point);
        }
        uint32_t c = nfc->parts[nfc->n_parts - 1];
        if (nfc->n > 0 && class_of(c) == 0) {
            finish_segment(nfc);
            uint32_t composed = nfc->n == 1 ? compose(nfc->segment[0], c) : 0;
            if (!composed) return DSI_OK; /* c begins the next one */
            nfc->segment[0] = composed;
        } else {
            dsi_status status = append(nfc, c, error);
            if (status != DSI_OK) return status;
        }
        nfc->n_parts--;
    }
    finish_segment(nfc);
    return DSI_OK;
}

/* ---- The stream ------------------------------------------------------------------------------ */

bool dsi_nfc_is_normal(const char *text, size_t n_bytes) {
    const uint8_t *bytes = (const uint8_t *)text;
    uint32_t last_class = 0;
    for (size_t at = 0; at < n_bytes;) {
        if (bytes[at] < 0x80) {
            at++;
            last_class = 0;
            continue;
        }
        dsi_utf8_step step = dsi_utf8_next(bytes + at, n_bytes - at);
        uint32_t kind = dsi_nfc_kind(step.code_point), class = kind & DSI_NFC_CLASS;
        if ((kind & DSI_NFC_NOT_SURE) || (class > 0 && class < last_class)) return false;
        last_class = class;
        at += step.n_bytes;
    }
    return true;
}

void dsi_nfc_start(dsi_nfc *nfc, const char *text, size_t n_bytes) {
    nfc->text = (const uint8_t *)text;
    nfc->n_bytes = n_bytes;
    nfc->at = 0;
    nfc->n = nfc->n_out = 0;
    nfc->n_parts = 0;
    nfc->segment = nfc->small;
    nfc->capacity = DSI_NFC_SMALL;
}

void dsi_nfc_end(dsi_nfc *nfc) {
    if (nfc->segment != nfc->small) dsi_sys_free(nfc->segment);
    nfc->segment = nfc->small;
}

static size_t put_utf8(uint8_t out[4], uint32_t c) {
    if (c < 0x80) {
        out[0] = (uint8_t)c;
        return 1;
    }
    size_t n = c < 0x800 ? 2 : c < 0x10000 ? 3 : 4;
    for (size_t i = n - 1; i > 0; i--, c >>= 6) out[i] = (uint8_t)(0x80 | (c & 0x3F));
    out[0] = (uint8_t)((0xF00u >> n & 0xF0u) | c);
    return n;
}

dsi_status dsi_nfc_read(dsi_nfc *nfc, uint8_t *out, size_t room, size_t *n_out, dsi_error *error) {
    *n_out = 0;
    while (room - *n_out >= 4) {
        if (nfc->n_out == nfc->n) {
            dsi_status status = next_segment(nfc, error);
            if (status != DSI_OK || nfc->n == 0) return status;
        }
        *n_out += put_utf8(out + *n_out, nfc->segment[nfc->n_out++]);
    }
    return DSI_OK;
}
