/* bpe_prepare.c: what bpe.c needs to know about a vocabulary, computed once when it is loaded. */
#include "../base/sys.h"
#include "bpe.h"

/* ---- The hash of pairs: one word per merge, left (21 bits) | right (21) | rank (22). ----------
 */

enum { RANK_BITS = 22, ID_BITS = 21 };
/* Longest search in the hash. With a table at most half full, chance gives less than half of it;
 * a file that was made to collide gets another seed. */
enum { MAX_PROBES = 256, MAX_SEEDS = 8 };

static uint64_t pair_key(int32_t left, int32_t right) {
    return (uint64_t)left << ID_BITS | (uint64_t)right;
}

/* The finalizer of MurmurHash3: each bit of the key changes about half of the bits. */
static uint64_t mix(uint64_t key) {
    key ^= key >> 33;
    key *= UINT64_C(0xFF51AFD7ED558CCD);
    key ^= key >> 33;
    key *= UINT64_C(0xC4CEB9FE1A85EC53);
    return key ^ key >> 33;
}

uint32_t dsi_bpe_pair_rank(const dsi_tokenizer *tokenizer, int32_t left, int32_t right) {
    uint64_t key = pair_key(left, right);
    uint64_t slot = mix(key ^ tokenizer->pair_seed);
    for (;; slot++) {
        uint64_t pair = tokenizer->pairs[slot & tokenizer->pair_mask];
        if (pair == 0) return DSI_BPE_NO_RANK;
        if (pair >> RANK_BITS == key) return (uint32_t)(pair & ((1u << RANK_BITS) - 1));
    }
}

typedef enum insert_result { INSERTED, LISTED_TWICE, TOO_MANY_PROBES } insert_result;

static insert_result insert_pair(dsi_tokenizer *tokenizer, const int32_t merge[3], uint32_t rank) {
    uint64_t key = pair_key(merge[0], merge[1]);
    uint64_t slot = mix(key ^ tokenizer->pair_seed);
    for (int probe = 0; probe < MAX_PROBES; probe++, slot++) {
        uint64_t *pair = &tokenizer->pairs[slot & tokenizer->pair_mask];
        if (*pair == 0) {
            *pair = key << RANK_BITS | rank;
            return INSERTED;
        }
        if (*pair >> RANK_BITS == key) return LISTED_TWICE;
    }
    return TOO_MANY_PROBES;
}

dsi_status dsi_bpe_hash_pairs(dsi_tokenizer *tokenizer, const int32_t (*merges)[3],
                              uint32_t n_merges, dsi_error *error) {
    uint64_t n_slots = 64;
    while (n_slots < 2 * (uint64_t)n_merges) n_slots *= 2;
    tokenizer->pairs = dsi_sys_calloc(n_slots, sizeof *tokenizer->pairs);
    if (!tokenizer->pairs) return dsi_fail(error, DSI_E_NOMEM, "no memory for %u merges", n_merges);
    tokenizer->pair_mask = n_slots - 1;
    for (uint64_t seed = 0; seed < MAX_SEEDS; seed++) {
        memset(tokenizer->pairs, 0, n_slots * sizeof *tokenizer->pairs);
        tokenizer->pair_seed = mix(seed);
        uint32_t i = 0;
        insert_result result = INSERTED;
        for (; i < n_merges; i++)
            if ((result = insert_pair(tokenizer, merges[i], i + 1)) != INSERTED) break;
        if (result == INSERTED) return DSI_OK;
        if (result == LISTED_TWICE)
            return dsi_fail(error, DSI_E_FORMAT, "merge %u (tokens %d and %d) is listed twice", i,
                            merges[i][0], merges[i][1]);
    }
    return dsi_fail(error, DSI_E_FORMAT,
                    "the %u merges collide under every hash: this file was "
                    "made to be slow, use the original tokenizer.json",
                    n_merges);
}

/* ---- Histories ----------------------------------------------------------------------------- */

/* Does BPE, run on the bytes of the product, come to left | right and then merge them? At most one
 * merge per product does, because BPE is deterministic. */
static void find_history(dsi_tokenizer *tokenizer, const int32_t merge[3], uint32_t rank) {
    const dsi_bpe_token *left = &tokenizer->tokens[merge[0]], *right = &tokenizer->tokens[merge[1]];
    dsi_bpe_token *product = &tokenizer->tokens[merge[2]];
    if (left->rank == DSI_BPE_NO_RANK || right->rank == DSI_BPE_NO_RANK ||
        product->rank != DSI_BPE_NO_RANK || !dsi_bpe_pair_holds(tokenizer, merge[0], merge[1], 0))
        return;
    product->left = merge[0];
    product->right = merge[1];
    product->rank = product->last = rank;
    if (left->last > product->last) product->last = left->last;
    if (right->last > product->last) product->last = right->last;
}

/* The shorter product first: a history needs those of its parts. (Ranks are no help: Llama-3's file
 * lists every way to cut a token in two, also into parts that only later merges make.) */
static dsi_status find_histories(dsi_tokenizer *tokenizer, const int32_t (*merges)[3],
                                 uint32_t n_merges, dsi_error *error) {
    uint32_t start[DSI_TOKENIZER_MAX_TOKEN_BYTES + 2] = {0};
    uint32_t *order = dsi_sys_calloc((uint64_t)n_merges + 1, sizeof *order);
    if (!order) return dsi_fail(error, DSI_E_NOMEM, "no memory for %u merges", n_merges);
    for (uint32_t i = 0; i < n_merges; i++) start[tokenizer->tokens[merges[i][2]].n_bytes + 1]++;
    for (uint32_t n = 0; n <= DSI_TOKENIZER_MAX_TOKEN_BYTES; n++) start[n + 1] += start[n];
    for (uint32_t i = 0; i < n_merges; i++)
        order[start[tokenizer->tokens[merges[i][2]].n_bytes]++] = i;
    for (uint32_t i = 0; i < n_merges; i++) find_history(tokenizer, merges[order[i]], order[i] + 1);
    dsi_sys_free(order);
    return DSI_OK;
}

/* Takes tokens that BPE cannot produce out of the trie and links each other one to its longest
 * proper prefix. longest[i]: the last token on the way from the root to node i. */
static void link_prefixes(dsi_tokenizer *tokenizer, int32_t *longest) {
    dsi_trie *trie = &tokenizer->vocabulary;
    longest[0] = -1;
    for (uint32_t node = 0; node < trie->n_nodes; node++) {
        int32_t token = dsi_trie_value(trie, node);
        if (token >= 0 && tokenizer->tokens[token].rank == DSI_BPE_NO_RANK) {
            trie->nodes[node].value = 0;
            token = -1;
        }
        if (token >= 0) {
            dsi_bpe_token *t = &tokenizer->tokens[token];
            t->prefix = longest[node];
            if (t->n_bytes > tokenizer->max_token_bytes) tokenizer->max_token_bytes = t->n_bytes;
            longest[node] = token;
        }
        for (uint32_t c = trie->nodes[node].first_child; c < trie->nodes[node + 1].first_child; c++)
            longest[c] = longest[node];
    }
}

dsi_status dsi_bpe_prepare(dsi_tokenizer *tokenizer, const int32_t (*merges)[3], uint32_t n_merges,
                           dsi_error *error) {
    dsi_status status = find_histories(tokenizer, merges, n_merges, error);
    if (status != DSI_OK) return status;
    int32_t *longest = dsi_sys_calloc(tokenizer->vocabulary.n_nodes, sizeof *longest);
    if (!longest) return dsi_fail(error, DSI_E_NOMEM, "no memory for the vocabulary");
    link_prefixes(tokenizer, longest);
    dsi_sys_free(longest);
    return DSI_OK;
}
