/* stop.c: stop strings in a stream of text. One automaton of Knuth, Morris and Pratt per string,
 * moved together byte by byte, so a match is found however the text was cut into pieces, in time
 * linear in the text. What is held back is always the beginning of a stop string, so it is handed
 * out from there: nothing of the text is ever copied. */
#include "../base/sys.h"
#include "text.h"
#include "utf8.h"

#include <string.h>

struct dsi_stop_set {
    uint32_t n;
    uint16_t n_bytes[DSI_STOP_MAX_STRINGS];
    char text[DSI_STOP_MAX_STRINGS][DSI_STOP_MAX_BYTES];
    /* [m - 1]: of the first m bytes, the longest shorter beginning that is also their end */
    uint8_t border[DSI_STOP_MAX_STRINGS][DSI_STOP_MAX_BYTES];
};

/* ---- The set ------------------------------------------------------------------------------- */

static dsi_status check_string(const char *text, uint32_t i, dsi_error *error) {
    if (!text) return dsi_fail(error, DSI_E_ARG, "stop string %u is NULL", i);
    size_t n = strnlen(text, DSI_STOP_MAX_BYTES + 1);
    if (n == 0)
        return dsi_fail(error, DSI_E_ARG,
                        "stop string %u is empty; it may have 1 to %d bytes; leave it out", i,
                        DSI_STOP_MAX_BYTES);
    if (n > DSI_STOP_MAX_BYTES)
        return dsi_fail(error, DSI_E_ARG,
                        "stop string %u has more than %d bytes; use its beginning alone", i,
                        DSI_STOP_MAX_BYTES);
    for (size_t at = 0; at < n;) {
        dsi_utf8_step step = dsi_utf8_next((const uint8_t *)text + at, n - at);
        if (step.kind != DSI_UTF8_CHARACTER)
            return dsi_fail(error, DSI_E_ARG,
                            "stop string %u is not UTF-8 at byte %zu; answers are, so it could "
                            "never appear",
                            i, at);
        at += step.n_bytes;
    }
    return DSI_OK;
}

static void add_string(dsi_stop_set *set, const char *text, size_t n) {
    char *own = set->text[set->n];
    uint8_t *border = set->border[set->n];
    memcpy(own, text, n);
    for (size_t i = 1, m = 0; i < n; i++) {
        while (m > 0 && own[i] != own[m]) m = border[m - 1];
        if (own[i] == own[m]) m++;
        border[i] = (uint8_t)m; /* at most i < 256 */
    }
    set->n_bytes[set->n++] = (uint16_t)n;
}

dsi_status dsi_stop_new(const char *const *strings, uint32_t n, dsi_stop_set **out,
                        dsi_error *error) {
    *out = NULL;
    if (n > DSI_STOP_MAX_STRINGS)
        return dsi_fail(error, DSI_E_ARG, "n_stop is %u; a session may have 0 to %d stop strings",
                        n, DSI_STOP_MAX_STRINGS);
    if (n == 0) return DSI_OK;
    if (!strings) return dsi_fail(error, DSI_E_ARG, "n_stop is %u but stop is NULL", n);
    for (uint32_t i = 0; i < n; i++) {
        dsi_status status = check_string(strings[i], i, error);
        if (status != DSI_OK) return status;
    }
    dsi_stop_set *set = dsi_sys_calloc(1, sizeof *set);
    if (!set) return dsi_fail(error, DSI_E_NOMEM, "no memory for %u stop strings", n);
    for (uint32_t i = 0; i < n; i++) add_string(set, strings[i], strlen(strings[i]));
    *out = set;
    return DSI_OK;
}

dsi_stop_set *dsi_stop_copy(const dsi_stop_set *set) {
    dsi_stop_set *copy = dsi_sys_calloc(1, sizeof *copy);
    if (copy) *copy = *set;
    return copy;
}

void dsi_stop_free(dsi_stop_set *set) { dsi_sys_free(set); }

/* ---- Matching ------------------------------------------------------------------------------ */

/* The string of which most bytes were matched: they are what is held back. */
static uint32_t longest(const dsi_stop_set *set, const dsi_stop_state *state) {
    uint32_t best = 0;
    for (uint32_t i = 1; i < set->n; i++)
        if (state->n_matched[i] > state->n_matched[best]) best = i;
    return best;
}

/* Takes one byte; the longest string it completes, of equal ones the first, or -1. */
static int32_t move(const dsi_stop_set *set, dsi_stop_state *state, char byte) {
    int32_t found = -1;
    for (uint32_t i = 0; i < set->n; i++) {
        uint32_t m = state->n_matched[i];
        while (m > 0 && set->text[i][m] != byte) m = set->border[i][m - 1];
        if (set->text[i][m] == byte) m++;
        state->n_matched[i] = (uint16_t)m;
        if (m == set->n_bytes[i] && (found < 0 || m > set->n_bytes[found])) found = (int32_t)i;
    }
    return found;
}

int32_t dsi_stop_push(const dsi_stop_set *set, dsi_stop_state *state, const char *text,
                      size_t n_bytes, dsi_text_sink sink, void *user) {
    uint32_t before = longest(set, state);
    size_t n_held = state->n_matched[before], taken = 0;
    int32_t found = -1;
    while (found < 0 && taken < n_bytes) found = move(set, state, text[taken++]);
    /* All of the match is still here: no string has more bytes matched than the longest one. */
    size_t n_keep = found < 0 ? state->n_matched[longest(set, state)] : set->n_bytes[found];
    size_t n_free = n_held + taken - n_keep, n_old = n_free < n_held ? n_free : n_held;
    if (n_old > 0) sink(user, set->text[before], n_old);
    if (n_free > n_old) sink(user, text, n_free - n_old);
    if (found >= 0) *state = (dsi_stop_state){0};
    return found;
}

void dsi_stop_finish(const dsi_stop_set *set, dsi_stop_state *state, dsi_text_sink sink,
                     void *user) {
    uint32_t held = longest(set, state);
    if (state->n_matched[held] > 0) sink(user, set->text[held], state->n_matched[held]);
    *state = (dsi_stop_state){0};
}
