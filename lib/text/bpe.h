/* bpe.h: what the tokenizer is made of; shared by its files and its tests. */
#ifndef DSI_LIB_TEXT_BPE_H
#define DSI_LIB_TEXT_BPE_H

#include "text.h"
#include "trie.h"

enum {
    DSI_TOKENIZER_MAX_ID = 1 << 21,          /* ids and merges are below this */
    DSI_TOKENIZER_MAX_TOKEN_BYTES = 1024,    /* one vocabulary entry */
    DSI_TOKENIZER_WINDOW_BYTES = 256 * 1024, /* see bpe.c */
    DSI_TOKENIZER_ADDED_SETS = 2,
    DSI_TOKENIZER_NFC_BYTES = 64 * 1024 /* normalised text, at first; see tokenizer.c */
};
#define DSI_BPE_NO_RANK UINT32_MAX /* no merge makes this token */

typedef struct dsi_bpe_token {
    uint32_t start, n_bytes; /* in dsi_tokenizer.bytes; n_bytes 0: no such id */
    uint32_t rank;           /* 1 + index of the merge that makes it; 0: a single byte */
    uint32_t last;           /* the largest rank in its history */
    int32_t left, right;     /* the parts of that merge */
    int32_t prefix;          /* the longest other token that it starts with, or -1 */
} dsi_bpe_token;

enum { DSI_ADDED = 1, DSI_ADDED_LETTER = 2 };

struct dsi_tokenizer {
    dsi_pretok pretok;
    bool normalizes;       /* to form C before anything but the first set of added tokens */
    bool whole_first;      /* "ignore_merges": a piece that is a vocabulary entry is that token */
    dsi_bpe_token *tokens; /* [n_tokens] */
    uint8_t *added;        /* [n_tokens] DSI_ADDED, DSI_ADDED_LETTER or 0 */
    uint8_t *bytes;
    uint32_t n_tokens;
    uint32_t max_token_bytes; /* of the tokens that BPE can produce */
    uint32_t window_bytes;
    bool lacks_bytes;     /* some vocabularies have no token for rare bytes: see tokenizer_load.c */
    uint8_t lacking[256]; /* 1: no token */
    uint64_t *pairs;      /* hash of (left, right) to rank; 0 is empty */
    uint64_t pair_mask;
    uint64_t pair_seed;
    dsi_trie vocabulary;  /* tokens that BPE can produce */
    dsi_trie whole;       /* with whole_first: the others */
    uint32_t whole_bytes; /* the longest of them */
    /* Added tokens in the order the reference looks for them: those with "normalized" false are
     * cut out of the whole text first, then the others out of what is left between. */
    dsi_trie added_sets[DSI_TOKENIZER_ADDED_SETS];
    /* Single letters that are tokens of their own wherever they stand: see tokenizer_load.c. */
    dsi_trie letters;
};

/* Rank of the merge of `left` and `right`, or DSI_BPE_NO_RANK. */
uint32_t dsi_bpe_pair_rank(const dsi_tokenizer *tokenizer, int32_t left, int32_t right);

/* Does BPE, run on the bytes of two tokens that it can produce, keep the border between them?
 * Only merges of a rank below `limit` are counted. */
bool dsi_bpe_pair_holds(const dsi_tokenizer *tokenizer, int32_t left, int32_t right,
                        uint32_t limit);

/* Called once when tokens, their bytes and the merges' `pairs` are known: finds out which tokens
 * BPE can produce and by which merge. merges: [n_merges][3] ids of left, right, product in order
 * of rank. Errors: NOMEM. */
dsi_status dsi_bpe_prepare(dsi_tokenizer *tokenizer, const int32_t (*merges)[3], uint32_t n_merges,
                           dsi_error *error);
/* Fills the hash of pairs. Errors: NOMEM, FORMAT (a pair that is listed twice). */
dsi_status dsi_bpe_hash_pairs(dsi_tokenizer *tokenizer, const int32_t (*merges)[3],
                              uint32_t n_merges, dsi_error *error);

/* ---- Encoding ------------------------------------------------------------------------------ */
enum { DSI_BPE_BATCH = 256 };
typedef struct dsi_bpe_out { /* gathers tokens for the sink */
    dsi_token_sink sink;
    void *user;
    size_t n_tokens;
    bool stopped; /* the sink said stop */
    int32_t tokens[DSI_BPE_BATCH];
} dsi_bpe_out;
void dsi_bpe_put(dsi_bpe_out *out, int32_t token);
void dsi_bpe_flush(dsi_bpe_out *out);

enum { DSI_BPE_SMALL_BYTES = 256, DSI_BPE_CACHE = 512 };
typedef struct dsi_bpe_work { /* what the encoder works in; grows for long pieces only */
    uint8_t *bytes;           /* [capacity] the window */
    int32_t *tokens;          /* [2 * capacity] tokens of the window, then of a check */
    uint64_t *dead;           /* [2][words of capacity + 1] places where no tokenization ends */
    uint64_t capacity;
    uint8_t small_bytes[DSI_BPE_SMALL_BYTES];
    int32_t small_tokens[2 * DSI_BPE_SMALL_BYTES];
    uint64_t small_dead[2 * (DSI_BPE_SMALL_BYTES / 64 + 1)];
    uint64_t seen_pairs[DSI_BPE_CACHE]; /* answers of dsi_bpe_pair_holds, see bpe.c */
} dsi_bpe_work;
void dsi_bpe_work_init(dsi_bpe_work *work);
void dsi_bpe_work_free(dsi_bpe_work *work);

typedef struct dsi_bpe_source { /* a text that is read once, with broken UTF-8 replaced */
    const uint8_t *text;
    size_t n_bytes;
    size_t valid_end; /* text is valid UTF-8 from the last read place up to here */
} dsi_bpe_source;
/* Puts the tokens of the piece [begin, end) of the source to `out`. Errors: NOMEM. */
dsi_status dsi_bpe_piece(const dsi_tokenizer *tokenizer, dsi_bpe_source *source, size_t begin,
                         size_t end, dsi_bpe_work *work, dsi_bpe_out *out, dsi_error *error);

#endif
