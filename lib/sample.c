/* sample.c: picks a token from logits: penalties, then greedy, or temperature, top-k, top-p, min-p
 * in this order; log-probabilities.
 * The random number depends on the seed and the index of the draw alone, so an answer can be
 * replayed from its request. */
#include "internal.h"
#include <math.h>
#include <string.h>

/* Uniform in [0, 1) with 53 bits. */
static double uniform(uint64_t seed, uint64_t draw) {
    return (double)(dsi_mix64(dsi_mix64(seed) ^ draw) >> 11) * 0x1p-53;
}

static int by_logit(const void *a, const void *b) {
    const dsi_candidate *x = a, *y = b;
    if (x->logit != y->logit) return x->logit > y->logit ? -1 : 1;
    return (x->token > y->token) - (x->token < y->token); /* ties: the lower id first */
}

enum { DIGIT_BITS = 11, DIGITS = 3, MANY_CANDIDATES = 128 };

/* Candidates in ascending ids, sorted by falling logit: passes over the digits of the logit, each
 * of which keeps the order of equals, from c to `other` and back (8,192 of them: 0.05 ms, not 1).
 */
static void sort_candidates(dsi_candidate *c, dsi_candidate *other, uint32_t n) {
    if (n < MANY_CANDIDATES) {
        dsi_sort(c, n, sizeof *c, by_logit);
        return;
    }
    for (int digit = 0; digit < DIGITS; digit++) {
        uint32_t start[1 << DIGIT_BITS] = {0}, sum = 0;
        for (int pass = 0; pass < 2; pass++) {
            for (uint32_t i = 0; i < n; i++) {
                float logit = c[i].logit + 0.0f; /* both zeros are equal */
                uint32_t bits;
                memcpy(&bits, &logit, sizeof bits);
                bits = bits >> 31 ? bits : ~bits & 0x7fffffffu; /* ascending as the logit falls */
                uint32_t *at = &start[bits >> digit * DIGIT_BITS & ((1 << DIGIT_BITS) - 1)];
                if (pass) other[*at] = c[i];
                ++*at;
            }
            for (uint32_t d = 0; pass == 0 && d < 1 << DIGIT_BITS; d++) {
                uint32_t count = start[d];
                start[d] = sum;
                sum += count;
            }
        }
        dsi_candidate *sorted = other;
        other = c, c = sorted;
    }
    memcpy(other, c, n * sizeof *c); /* three passes end in the other place */
}

/* How many of the n sorted candidates stay, and the sum of their weights exp(logit - best). */
static uint32_t truncate(const dsi_session_options *o, const dsi_candidate *c, uint32_t n,
                         double *sum) {
    double best = c[0].logit, inverse_temperature = 1.0 / (double)o->temperature, total = 0;
    uint32_t n_kept = o->top_k && o->top_k < n ? o->top_k : n;
    for (uint32_t i = 0; i < n_kept; i++) total += exp((c[i].logit - best) * inverse_temperature);
    double kept = 0;
    for (uint32_t i = 0; i < n_kept; i++) {
        double weight = exp((c[i].logit - best) * inverse_temperature);
        bool enough = kept >= (double)o->top_p * total;
        if (i > 0 && (enough || weight < (double)o->min_p)) {
            n_kept = i;
            break;
        }
        kept += weight;
    }
    *sum = kept;
    return n_kept;
}

/* Adding the values of x * 0 is a NaN if any of them is not finite: no branch per value. */
bool dsi_all_finite(const float *values, uint64_t n) {
    float sum = 0;
    for (uint64_t i = 0; i < n; i++) sum += values[i] * 0;
    return sum == 0;
}

dsi_status dsi_sample(const dsi_session_options *options, const float *logits, uint32_t n,
                      uint64_t draw, dsi_candidate *candidates, int32_t *token, dsi_error *error) {
    uint32_t best = 0;
    for (uint32_t i = 0; i < n; i++) {
        if (!isfinite(logits[i]))
            return dsi_fail(error, DSI_E_NAN,
                            "logit of token %u is %f: the weights or the input are damaged; check "
                            "the checkpoint (dsinfer verify)",
                            i, (double)logits[i]);
        if (logits[i] > logits[best]) best = i;
    }
    *token = (int32_t)best;
    if (options->temperature <= 0) return DSI_OK;
    /* a token below 2^-57 of the best one's weight cannot be drawn: not worth sorting */
    float lowest = logits[best] - 40.0f * options->temperature;
    uint32_t n_likely = 0;
    for (uint32_t i = 0; i < n; i++)
        if (logits[i] >= lowest) candidates[n_likely++] = (dsi_candidate){logits[i], (int32_t)i};
    sort_candidates(candidates, candidates + n, n_likely);
    double sum, u = uniform(options->seed, draw);
    uint32_t n_kept = truncate(options, candidates, n_likely, &sum);
    double left = u * sum, inverse_temperature = 1.0 / (double)options->temperature;
    for (uint32_t i = 0; i < n_kept; i++) {
        *token = candidates[i].token;
        left -= exp((candidates[i].logit - candidates[0].logit) * inverse_temperature);
        if (left < 0) break;
    }
    return DSI_OK;
}

/* ---- Penalties
 * ------------------------------------------------------------------------------------------ */

bool dsi_has_penalty(const dsi_session_options *o) {
    return o->repetition_penalty != 1 || o->presence_penalty != 0 || o->frequency_penalty != 0;
}

/* One token of the window that was sampled n_sampled times. The order of the three is that of
 * servers which offer them together. */
static float penalized(const dsi_session_options *o, float logit, uint32_t n_sampled) {
    if (o->repetition_penalty != 1)
        logit = logit > 0 ? logit / o->repetition_penalty : logit * o->repetition_penalty;
    logit -= o->frequency_penalty * (float)n_sampled;
    return n_sampled ? logit - o->presence_penalty : logit;
}

/* seen[token]: 1 + how often it was sampled. The second pass takes each token once and leaves zeros
 * behind, so that the cost is that of the window, not of the vocabulary. */
void dsi_penalize(const dsi_session_options *o, const int32_t *tokens, const uint8_t *sampled,
                  uint32_t n_tokens, const float *logits, uint32_t n, uint32_t *seen, float *out) {
    uint32_t window = o->penalty_window, first = 0;
    if (window && window < n_tokens) first = n_tokens - window;
    memcpy(out, logits, n * sizeof *out);
    for (uint32_t i = first; i < n_tokens; i++) {
        uint32_t *count = &seen[tokens[i]];
        if (*count == 0) *count = 1;
        *count += sampled[i];
    }
    for (uint32_t i = first; i < n_tokens; i++) {
        int32_t t = tokens[i];
        if (seen[t]) out[t] = penalized(o, out[t], seen[t] - 1);
        seen[t] = 0;
    }
}

/* ---- Log-probabilities
 * ------------------------------------------------------------------------------------------ */

/* log(sum of exp(logit - best)); *best is the largest logit. */
static double log_sum(const float *logits, uint32_t n, double *best) {
    double sum = 0;
    *best = (double)logits[0];
    for (uint32_t i = 1; i < n; i++)
        if (logits[i] > *best) *best = logits[i];
    for (uint32_t i = 0; i < n; i++) sum += exp(logits[i] - *best);
    return log(sum);
}

float dsi_logprob(const float *logits, uint32_t n, int32_t token) {
    double best, sum = log_sum(logits, n, &best);
    return (float)(logits[token] - best - sum);
}

uint32_t dsi_top_logprobs(const float *logits, uint32_t n, uint32_t n_top, dsi_token_logprob *top) {
    uint32_t n_have = 0;
    if (!n_top) return 0;
    for (uint32_t i = 0; i < n; i++) {
        /* most tokens end here; equal ones stay behind those that came before */
        if (n_have == n_top && !(logits[i] > top[n_have - 1].logprob)) continue;
        uint32_t at = n_have < n_top ? n_have++ : n_top - 1;
        for (; at > 0 && logits[i] > top[at - 1].logprob; at--) top[at] = top[at - 1];
        top[at] = (dsi_token_logprob){(int32_t)i, logits[i]};
    }
    double best, sum = log_sum(logits, n, &best);
    for (uint32_t i = 0; i < n_have; i++) top[i].logprob = (float)(top[i].logprob - best - sum);
    return n_have;
}
