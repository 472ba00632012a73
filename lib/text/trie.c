/* trie.c: builds the breadth-first trie from sorted strings. */
#include "trie.h"
#include "../base/sys.h"

static int compare_entries(const void *left, const void *right) {
    const dsi_trie_entry *a = left, *b = right;
    if (a->head != b->head) return a->head < b->head ? -1 : 1;
    uint32_t n = a->n_bytes < b->n_bytes ? a->n_bytes : b->n_bytes;
    int order = memcmp(a->bytes, b->bytes, n);
    return order != 0 ? order : a->n_bytes < b->n_bytes ? -1 : a->n_bytes > b->n_bytes;
}

/* Most texts are short: their first eight bytes, big-endian and filled up with zeros, decide the
 * order in nearly every comparison without a look at the text. */
static void fill_heads(dsi_trie_entry *entries, uint32_t n_entries) {
    for (uint32_t i = 0; i < n_entries; i++) {
        uint64_t head = 0;
        for (uint32_t k = 0; k < 8; k++)
            head = head << 8 | (k < entries[i].n_bytes ? entries[i].bytes[k] : 0);
        entries[i].head = head;
    }
}

/* Counting sort by the first two bytes, then each bucket by comparing: the buckets fit the cache,
 * the whole list does not. */
static bool sort_entries(dsi_trie_entry *entries, uint32_t n_entries) {
    enum { N_BUCKETS = 1 << 16, SHIFT = 48 };
    dsi_trie_entry *unsorted = dsi_sys_calloc(n_entries, sizeof *unsorted);
    uint32_t *end = dsi_sys_calloc(N_BUCKETS + 1, sizeof *end); /* of the bucket before */
    if (unsorted && end) {
        memcpy(unsorted, entries, n_entries * sizeof *entries);
        for (uint32_t i = 0; i < n_entries; i++) end[(unsorted[i].head >> SHIFT) + 1]++;
        for (uint32_t b = 0; b < N_BUCKETS; b++) end[b + 1] += end[b];
        for (uint32_t i = 0; i < n_entries; i++)
            entries[end[unsorted[i].head >> SHIFT]++] = unsorted[i];
        for (uint32_t b = 0, begin = 0; b < N_BUCKETS; begin = end[b++])
            if (end[b] - begin > 1)
                dsi_sort(entries + begin, end[b] - begin, sizeof *entries, compare_entries);
    }
    bool done = unsorted && end;
    dsi_sys_free(unsorted);
    dsi_sys_free(end);
    return done;
}

/* Nodes of the trie of sorted entries: a string adds what is behind its common prefix with the one
 * before. false if two entries are equal or the count does not fit. */
static bool count_nodes(const dsi_trie_entry *entries, uint32_t n_entries, uint32_t *n_nodes,
                        int32_t *duplicate) {
    uint64_t n = 1;
    for (uint32_t i = 0; i < n_entries; i++) {
        const dsi_trie_entry *e = &entries[i];
        uint32_t shared = 0;
        if (i > 0) {
            const dsi_trie_entry *before = &entries[i - 1];
            while (shared < e->n_bytes && shared < before->n_bytes &&
                   e->bytes[shared] == before->bytes[shared])
                shared++;
            if (shared == e->n_bytes) { /* sorted: the one before is not longer */
                *duplicate = e->value;
                return false;
            }
        }
        n += e->n_bytes - shared;
    }
    if (n >= INT32_MAX) return false;
    *n_nodes = (uint32_t)n;
    return true;
}

/* range[i] is the first sorted entry below node i; ranges of one level are in order, so the entries
 * of node i end where those of the next node of its level begin, or where the level ends. */
static void fill_nodes(dsi_trie *trie, const dsi_trie_entry *entries, uint32_t n_entries,
                       uint32_t *range, uint32_t *range_end) {
    uint32_t next = 1, level_end = 1, depth = 0;
    range[0] = 0;
    range_end[0] = n_entries;
    for (uint32_t node = 0; node < trie->n_nodes; node++) {
        if (node == level_end) {
            level_end = next;
            depth++;
        }
        uint32_t at = range[node], end = range_end[node];
        trie->nodes[node].first_child = next;
        if (at < end && entries[at].n_bytes == depth)
            trie->nodes[node].value = ((uint32_t)entries[at++].value + 1) & 0xFFFFFF;
        while (at < end) {
            uint8_t byte = entries[at].bytes[depth];
            trie->nodes[next].label = trie->labels[next] = byte;
            range[next] = at;
            while (at < end && entries[at].bytes[depth] == byte) at++;
            range_end[next] = at;
            next++;
        }
    }
    trie->nodes[trie->n_nodes].first_child = next;
    for (uint32_t child = 1; child < trie->nodes[1].first_child; child++)
        trie->root[trie->labels[child]] = child;
}

dsi_status dsi_trie_build(dsi_trie *trie, dsi_trie_entry *entries, uint32_t n_entries,
                          int32_t *duplicate, dsi_error *error) {
    memset(trie, 0, sizeof *trie);
    if (n_entries == 0) return DSI_OK;
    fill_heads(entries, n_entries);
    if (!sort_entries(entries, n_entries))
        return dsi_fail(error, DSI_E_NOMEM, "no memory to sort %u tokens", n_entries);
    uint32_t n_nodes = 0;
    *duplicate = -1;
    if (!count_nodes(entries, n_entries, &n_nodes, duplicate)) {
        if (*duplicate >= 0)
            return dsi_fail(error, DSI_E_FORMAT, "two entries of the vocabulary are the same text");
        return dsi_fail(error, DSI_E_UNSUPPORTED,
                        "the vocabulary has more than 2^31 bytes of text");
    }
    uint64_t n_bounds = (uint64_t)n_nodes + 1;
    trie->nodes = dsi_sys_calloc(n_bounds, sizeof *trie->nodes);
    trie->labels = dsi_sys_calloc(n_nodes, sizeof *trie->labels);
    uint32_t *range = dsi_sys_calloc(n_nodes, sizeof *range);
    uint32_t *range_end = dsi_sys_calloc(n_nodes, sizeof *range_end);
    dsi_status status = DSI_OK;
    if (trie->nodes && trie->labels && range && range_end) {
        trie->n_nodes = n_nodes;
        fill_nodes(trie, entries, n_entries, range, range_end);
    } else {
        status =
            dsi_fail(error, DSI_E_NOMEM, "no memory for the vocabulary (%u trie nodes)", n_nodes);
    }
    dsi_sys_free(range);
    dsi_sys_free(range_end);
    return status;
}

void dsi_trie_free(dsi_trie *trie) {
    dsi_sys_free(trie->nodes);
    dsi_sys_free(trie->labels);
    memset(trie, 0, sizeof *trie);
}
