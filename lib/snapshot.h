/* snapshot.h: sums of a saved session, and the mark of its model. */
#ifndef DSI_LIB_SNAPSHOT_H
#define DSI_LIB_SNAPSHOT_H

#include "internal.h"

/* Every step is one-to-one in the sum and in the word, so a single changed word always shows.
 * Against damage, not against forgery: a restore stays within bounds whatever the sums say. */
static inline uint64_t dsi_mix(uint64_t sum, uint64_t word) {
    sum ^= word * 0x9E3779B97F4A7C15u;
    sum = (sum << 27 | sum >> 37) * 0xBF58476D1CE4E5B9u;
    return sum + 0x94D049BB133111EBu;
}
static inline uint64_t dsi_mix_bytes(uint64_t sum, const void *data, uint64_t n_bytes) {
    const uint8_t *at = data;
    uint64_t word;
    for (; n_bytes >= 8; at += 8, n_bytes -= 8) {
        memcpy(&word, at, 8);
        sum = dsi_mix(sum, word);
    }
    word = n_bytes;
    if (n_bytes) memcpy(&word, at, n_bytes);
    return n_bytes ? dsi_mix(dsi_mix(sum, word), n_bytes) : sum;
}

/* Tells a model from others: configuration, tensors, sizes of the files, a sample of the weights.
 */
uint64_t dsi_snapshot_fingerprint(const dsi_model *model);

#endif
