/* bpe.c: exact byte-pair encoding in linear time, without simulating the merges.
 *
 * What BPE is: start from single bytes; while some neighbours can merge, merge the pair of lowest
 * rank, the leftmost of equals. Simulating it costs at least n log n and a list as long as the
 * piece, and a piece can be the whole input. Three facts allow better.
 *
 * 1. Inside a final token the merges ran as if nothing stood around it, because none crossed its
 *    borders. So each token has one history (left, right, rank), found once when loading; a token
 *    that BPE does not make from its own bytes never occurs.
 * 2. A sequence of such tokens is the encoding of its bytes exactly if each two neighbours alone
 *    would be kept apart: the first merge that goes wrong in the sequence crosses one border, and
 *    at that moment both sides look as they would alone. Hence a text has one such sequence, and a
 *    prefix of the sequence is the encoding of that prefix of the text.
 * 3. Whether two neighbours are kept apart is read off their histories, undone from the end: as
 *    long as two pieces touch the border, no merge on either side may have a higher rank than
 *    theirs. Of equal ranks the leftmost goes first.
 *
 * Which of two histories was finished last? A merge of a rank below one before it could not happen
 * earlier, for want of a part, so it follows at once: what counts is the largest rank so far,
 * called `last`. Mostly that is the rank of the last merge itself. Where it is not, a merge of a
 * higher rank may precede the one that is undone, on the same side but away from the border; it
 * lies in the part that does not touch the border, and happened while the two pieces touched if
 * that part was finished after both.
 *
 * So the encoder searches the sequence: at each place the longest token that may follow the last
 * one; if none may, the place is dead and the last token gives way to a shorter one. By fact 2 a
 * place is reached in one way only, so a dead place stays dead and time is linear.
 *
 * Long pieces go through a window. What is decided before the end of the piece is seen: a token
 * that crosses the end of the window starts less than one token length before it. If the encodings
 * up to all those places share a border, so does every continuation (fact 2), and all before it is
 * final. Where they do not, the window grows; with real vocabularies it never does. */
#include "bpe.h"
#include "../base/sys.h"
#include "utf8.h"

/* ---- Facts 2 and 3 ------------------------------------------------------------------------- */

static uint32_t larger(uint32_t a, uint32_t b) { return a > b ? a : b; }

bool dsi_bpe_pair_holds(const dsi_tokenizer *tokenizer, int32_t left, int32_t right,
                        uint32_t limit) {
    const dsi_bpe_token *tokens = tokenizer->tokens;
    for (;;) {
        if (dsi_bpe_pair_rank(tokenizer, left, right) < limit) return false;
        const dsi_bpe_token *l = &tokens[left], *r = &tokens[right];
        if (l->last > r->last) { /* the left token was made last */
            limit = l->rank;     /* on a tie it was first: it lies further left */
            left = l->right;
            uint32_t away = tokens[l->left].last;
            if (away > limit && away > larger(tokens[left].last, r->last)) limit = away;
        } else if (r->last > 0) { /* the right one; of two equal tokens it was the later */
            limit = r->rank + 1;  /* on a tie the crossing merge would have been first */
            right = r->left;
            uint32_t away = tokens[r->right].last;
            if (away >= limit && away >= larger(tokens[right].last, l->last)) limit = away + 1;
        } else {
            return true; /* two bytes */
        }
    }
}

/* The same for any limit, remembered: texts repeat their pairs. An entry is left + 1 (22 bits) |
 * right (21 bits) | answer (1 bit). */
static bool pair_may_follow(const dsi_tokenizer *tokenizer, uint64_t *seen_pairs, int32_t left,
                            int32_t right) {
    uint64_t key = ((uint64_t)left + 1) << 22 | (uint64_t)right << 1;
    uint64_t *seen = &seen_pairs[(key * UINT64_C(0x9E3779B97F4A7C15) >> 32) % DSI_BPE_CACHE];
    if ((*seen & ~UINT64_C(1)) != key)
        *seen = key | dsi_bpe_pair_holds(tokenizer, left, right, DSI_BPE_NO_RANK);
    return *seen & 1;
}

static bool bit_is_set(const uint64_t *bits, size_t i) { return bits[i / 64] >> (i % 64) & 1; }

/* Finds the encoding of bytes[0, n_bytes) behind the token `before` (-1: nothing). `stack` has room
 * for n_bytes tokens, `dead` for n_bytes + 1 bits; seen_pairs is of dsi_bpe_work. false if there is
 * none. */
static bool find_encoding(const dsi_tokenizer *tokenizer, const uint8_t *bytes, size_t n_bytes,
                          int32_t before, int32_t *stack, size_t *n_stack, uint64_t *dead,
                          uint64_t *seen_pairs) {
    const dsi_bpe_token *tokens = tokenizer->tokens;
    const dsi_trie *trie = &tokenizer->vocabulary;
    memset(dead, 0, (n_bytes / 64 + 1) * sizeof *dead);
    size_t at = 0, depth = 0, length = 0;
    int32_t token = dsi_trie_longest(trie, bytes, n_bytes, &length);
    while (at < n_bytes) {
        int32_t last = depth > 0 ? stack[depth - 1] : before;
        for (; token >= 0; token = tokens[token].prefix) {
            if (bit_is_set(dead, at + tokens[token].n_bytes)) continue;
            if (last < 0 || pair_may_follow(tokenizer, seen_pairs, last, token)) break;
        }
        if (token >= 0) {
            stack[depth++] = token;
            at += tokens[token].n_bytes;
            token = dsi_trie_longest(trie, bytes + at, n_bytes - at, &length);
        } else {
            if (depth == 0) return false;
            dead[at / 64] |= (uint64_t)1 << (at % 64);
            token = stack[--depth]; /* its end is dead now: the loop goes on with its prefixes */
            at -= tokens[token].n_bytes;
        }
    }
    *n_stack = depth;
    return true;
}

/* ---- Output -------------------------------------------------------------------------------- */

void dsi_bpe_flush(dsi_bpe_out *out) {
    if (out->n_tokens > 0 && !out->stopped)
        out->stopped = !out->sink(out->user, out->tokens, out->n_tokens);
    out->n_tokens = 0;
}

void dsi_bpe_put(dsi_bpe_out *out, int32_t token) {
    if (out->n_tokens == DSI_BPE_BATCH) dsi_bpe_flush(out);
    out->tokens[out->n_tokens++] = token;
}

static void put_all(dsi_bpe_out *out, const int32_t *tokens, size_t n_tokens) {
    for (size_t i = 0; i < n_tokens && !out->stopped; i++) dsi_bpe_put(out, tokens[i]);
}

/* ---- Work space ---------------------------------------------------------------------------- */

void dsi_bpe_work_init(dsi_bpe_work *work) {
    work->bytes = work->small_bytes;
    work->tokens = work->small_tokens;
    work->dead = work->small_dead;
    work->capacity = DSI_BPE_SMALL_BYTES;
    memset(work->seen_pairs, 0, sizeof work->seen_pairs);
}

void dsi_bpe_work_free(dsi_bpe_work *work) {
    if (work->bytes == work->small_bytes) return;
    dsi_sys_free(work->bytes);
    dsi_sys_free(work->tokens);
    dsi_sys_free(work->dead);
    dsi_bpe_work_init(work);
}

/* Moves to `capacity` bytes, keeping the first n_bytes of the window. */
static dsi_status grow(dsi_bpe_work *work, uint64_t capacity, size_t n_bytes, dsi_error *error) {
    DSI_MEMORY_SCOPE(TEXT);
    uint64_t n_tokens = 0;
    uint8_t *bytes = NULL;
    int32_t *tokens = NULL;
    uint64_t *dead = NULL;
    if (dsi_mul_ok(capacity, 2, &n_tokens)) {
        bytes = dsi_sys_calloc(capacity, 1);
        tokens = dsi_sys_calloc(n_tokens, sizeof *tokens);
        dead = dsi_sys_calloc(n_tokens / 64 + 2, sizeof *dead);
    }
    if (!bytes || !tokens || !dead) {
        dsi_sys_free(bytes);
        dsi_sys_free(tokens);
        dsi_sys_free(dead);
        return dsi_fail(error, DSI_E_NOMEM,
                        "no memory to tokenize a piece of text (window of %llu "
                        "bytes)",
                        (unsigned long long)capacity);
    }
    memcpy(bytes, work->bytes, n_bytes);
    dsi_bpe_work_free(work);
    work->bytes = bytes;
    work->tokens = tokens;
    work->dead = dead;
    work->capacity = capacity;
    return DSI_OK;
}

/* ---- Input --------------------------------------------------------------------------------- */

/* End of the valid UTF-8 that starts at `at`. */
static size_t find_valid_end(const dsi_bpe_source *source, size_t at) {
    const uint8_t *text = source->text;
    while (at < source->n_bytes) {
        uint64_t eight;
        if (source->n_bytes - at >= sizeof eight) {
            memcpy(&eight, text + at, sizeof eight);
            if ((eight & UINT64_C(0x8080808080808080)) == 0) { /* eight ASCII characters */
                at += sizeof eight;
                continue;
            }
        }
        dsi_utf8_step step = dsi_utf8_next(text + at, source->n_bytes - at);
        if (step.kind != DSI_UTF8_CHARACTER) break;
        at += step.n_bytes;
    }
    return at;
}

/* Appends text from `at` (up to `end`) to the window until it is full; returns the new `at`. */
static size_t fill(dsi_bpe_source *source, size_t at, size_t end, dsi_bpe_work *work,
                   size_t *n_bytes) {
    static const uint8_t replacement[3] = {0xEF, 0xBF, 0xBD}; /* U+FFFD */
    while (at < end) {
        size_t room = (size_t)work->capacity - *n_bytes;
        if (at < source->valid_end) {
            size_t n = (source->valid_end < end ? source->valid_end : end) - at;
            if (n > room) n = room;
            if (n == 0) break;
            memcpy(work->bytes + *n_bytes, source->text + at, n);
            *n_bytes += n;
            at += n;
            continue;
        }
        dsi_utf8_step step = dsi_utf8_next(source->text + at, source->n_bytes - at);
        if (step.kind == DSI_UTF8_CHARACTER) {
            source->valid_end = find_valid_end(source, at);
            continue;
        }
        if (room < sizeof replacement) break;
        memcpy(work->bytes + *n_bytes, replacement, sizeof replacement);
        *n_bytes += sizeof replacement;
        at += step.n_bytes;
    }
    return at;
}

/* ---- Pieces -------------------------------------------------------------------------------- */

/* Do the encodings up to each place from which a token can cross the end of bytes[0, n_bytes) all
 * start at bytes[0], behind the token `before`? */
static bool all_ends_meet(const dsi_tokenizer *tokenizer, dsi_bpe_work *work, const uint8_t *bytes,
                          size_t n_bytes, int32_t before) {
    int32_t *stack = work->tokens + work->capacity; /* the second halves */
    uint64_t *dead = work->dead + work->capacity / 64 + 1;
    size_t n_stack;
    for (size_t back = 0; back < tokenizer->max_token_bytes; back++)
        if (!find_encoding(tokenizer, bytes, n_bytes - back, before, stack, &n_stack, dead,
                           work->seen_pairs))
            return false;
    return true;
}

/* How many of the window's tokens no further text can change; *settled_bytes gets their length. */
static size_t count_settled(const dsi_tokenizer *tokenizer, dsi_bpe_work *work, size_t n_bytes,
                            size_t n_tokens, size_t *settled_bytes) {
    size_t at = n_bytes;
    for (size_t tail = 4 * (size_t)tokenizer->max_token_bytes; tail < n_bytes; tail *= 2) {
        while (n_tokens > 0 && at > n_bytes - tail)
            at -= tokenizer->tokens[work->tokens[--n_tokens]].n_bytes;
        if (n_tokens == 0) break;
        if (all_ends_meet(tokenizer, work, work->bytes + at, n_bytes - at,
                          work->tokens[n_tokens - 1])) {
            *settled_bytes = at;
            return n_tokens;
        }
    }
    return 0;
}

/* A piece that is a vocabulary entry which merges never make: with "ignore_merges" it counts. */
static bool put_whole(const dsi_tokenizer *tokenizer, const uint8_t *bytes, size_t n_bytes,
                      dsi_bpe_out *out) {
    if (n_bytes > tokenizer->whole_bytes) return false;
    int32_t token = dsi_trie_find(&tokenizer->whole, bytes, n_bytes);
    if (token >= 0) dsi_bpe_put(out, token);
    return token >= 0;
}

/* A piece of any length, through the window. What was put does not matter for the rest: the end of
 * a right sequence is the right sequence of the end. */
static dsi_status windowed_piece(const dsi_tokenizer *tokenizer, dsi_bpe_source *source,
                                 size_t begin, size_t end, dsi_bpe_work *work, dsi_bpe_out *out,
                                 dsi_error *error) {
    size_t at = begin, n_bytes = 0;
    bool untouched = true; /* nothing of the piece was put yet */
    while (!out->stopped) {
        at = fill(source, at, end, work, &n_bytes);
        if (at == end && untouched && put_whole(tokenizer, work->bytes, n_bytes, out))
            return DSI_OK;
        size_t n_tokens = 0, n_settled = 0, settled_bytes = 0;
        if (at == end || work->capacity > DSI_BPE_SMALL_BYTES) {
            if (!find_encoding(tokenizer, work->bytes, n_bytes, -1, work->tokens, &n_tokens,
                               work->dead, work->seen_pairs))
                return dsi_fail(error, DSI_E_INTERNAL,
                                "no encoding found for a piece of text at "
                                "byte %zu",
                                begin);
            if (at == end) {
                put_all(out, work->tokens, n_tokens);
                return DSI_OK;
            }
            n_settled = count_settled(tokenizer, work, n_bytes, n_tokens, &settled_bytes);
        }
        if (n_settled > 0) {
            put_all(out, work->tokens, n_settled);
            untouched = false;
            n_bytes -= settled_bytes;
            memmove(work->bytes, work->bytes + settled_bytes, n_bytes);
        } else {
            uint64_t capacity = tokenizer->window_bytes;
            if (capacity <= work->capacity && !dsi_mul_ok(work->capacity, 2, &capacity))
                capacity = UINT64_MAX; /* calloc refuses it */
            dsi_status status = grow(work, capacity, n_bytes, error);
            if (status != DSI_OK) return status;
        }
    }
    return DSI_OK;
}

static dsi_status whole_piece(const dsi_tokenizer *tokenizer, dsi_bpe_source *source, size_t begin,
                              size_t end, dsi_bpe_work *work, dsi_bpe_out *out, dsi_error *error) {
    if (source->valid_end <= begin) source->valid_end = find_valid_end(source, begin);
    if (end > source->valid_end || end - begin > DSI_BPE_SMALL_BYTES)
        return windowed_piece(tokenizer, source, begin, end, work, out, error);
    if (put_whole(tokenizer, source->text + begin, end - begin, out)) return DSI_OK;
    size_t n_tokens = 0;
    if (!find_encoding(tokenizer, source->text + begin, end - begin, -1, work->tokens, &n_tokens,
                       work->dead, work->seen_pairs))
        return dsi_fail(error, DSI_E_INTERNAL, "no encoding found for a piece of text at byte %zu",
                        begin);
    put_all(out, work->tokens, n_tokens);
    return DSI_OK;
}

/* Where the next character begins that has no tokens, at `at` or behind it; *n_bytes: its length.
 */
static size_t find_lacking(const dsi_tokenizer *tokenizer, const dsi_bpe_source *source, size_t at,
                           size_t end, size_t *n_bytes) {
    while (at < end) {
        dsi_utf8_step step = dsi_utf8_next(source->text + at, source->n_bytes - at);
        *n_bytes = step.n_bytes;
        /* continuation bytes are in every vocabulary; what is broken becomes U+FFFD */
        if (step.kind == DSI_UTF8_CHARACTER && tokenizer->lacking[source->text[at]]) return at;
        at += step.n_bytes;
    }
    return end;
}

dsi_status dsi_bpe_piece(const dsi_tokenizer *tokenizer, dsi_bpe_source *source, size_t begin,
                         size_t end, dsi_bpe_work *work, dsi_bpe_out *out, dsi_error *error) {
    if (!tokenizer->lacks_bytes)
        return whole_piece(tokenizer, source, begin, end, work, out, error);
    dsi_status status = DSI_OK;
    for (size_t n_bytes = 0; begin < end && status == DSI_OK; begin += n_bytes) {
        size_t stop = find_lacking(tokenizer, source, begin, end, &n_bytes);
        if (stop > begin) status = whole_piece(tokenizer, source, begin, stop, work, out, error);
        if (stop == end) break;
        begin = stop;
    }
    return status;
}
