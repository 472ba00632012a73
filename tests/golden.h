/* golden.h: golden files (tokens, logits, greedy continuation) and the distance between logits. */
#ifndef DSI_TESTS_GOLDEN_H
#define DSI_TESTS_GOLDEN_H

#include "../kernels/kernels.h"
#include "../lib/backend/cpu_isa.h"
#include "../lib/model/model.h"
#include <deepseek/dsinfer.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct golden {
    dsi_checkpoint file;
    const int32_t *tokens, *greedy, *greedy_prompt; /* greedy_prompt NULL: greedy follows tokens */
    const float *logits;
    size_t n_tokens, n_greedy, n_greedy_prompt, vocab;
} golden;

static inline const void *golden_tensor(const golden *g, const char *name, size_t *n) {
    const dsi_file_tensor *t = dsi_checkpoint_find(&g->file, name);
    if (!t) return NULL;
    *n = (size_t)t->shape[0];
    return dsi_checkpoint_data(&g->file, t);
}
static inline bool golden_open(const char *path, golden *g) {
    dsi_error error = {0};
    *g = (golden){0};
    if (dsi_checkpoint_open_file(path, &g->file, &error) != DSI_OK) {
        fprintf(stderr, "%s\n", error.text);
        return false;
    }
    size_t n_logits = 0;
    g->tokens = golden_tensor(g, "tokens", &g->n_tokens);
    g->logits = golden_tensor(g, "logits", &n_logits);
    g->greedy = golden_tensor(g, "greedy", &g->n_greedy);
    g->greedy_prompt = golden_tensor(g, "greedy_prompt", &g->n_greedy_prompt);
    if (!g->tokens || !g->logits || !g->greedy || n_logits != g->n_tokens) return false;
    g->vocab = (size_t)dsi_checkpoint_find(&g->file, "logits")->shape[1];
    return true;
}
static inline void golden_close(golden *g) { dsi_checkpoint_close(&g->file); }

/* How far logits `b` are from `a`, over n rows: KL(softmax a || softmax b) per row. */
typedef struct distance {
    double mean_kl, median_kl, max_kl, max_abs, top1;
} distance;

static inline double log_sum_exp(const float *x, size_t n) {
    double best = x[0], sum = 0;
    for (size_t i = 1; i < n; i++)
        if (x[i] > best) best = x[i];
    for (size_t i = 0; i < n; i++) sum += exp(x[i] - best);
    return best + log(sum);
}
static inline int compare_doubles(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}
static inline distance compare_logits(const float *a, const float *b, size_t n, size_t vocab) {
    distance d = {0};
    double *kl = calloc(n, sizeof *kl);
    for (size_t r = 0; r < n; r++) {
        const float *x = a + r * vocab, *y = b + r * vocab;
        double lx = log_sum_exp(x, vocab), ly = log_sum_exp(y, vocab);
        size_t best_x = 0, best_y = 0;
        for (size_t i = 0; i < vocab; i++) {
            kl[r] += exp(x[i] - lx) * ((x[i] - lx) - (y[i] - ly));
            if (!(fabs((double)x[i] - y[i]) <= d.max_abs)) d.max_abs = fabs((double)x[i] - y[i]);
            if (x[i] > x[best_x]) best_x = i;
            if (y[i] > y[best_y]) best_y = i;
        }
        d.top1 += best_x == best_y;
        d.mean_kl += kl[r];
    }
    qsort(kl, n, sizeof *kl, compare_doubles);
    d.mean_kl /= (double)n;
    d.top1 /= (double)n;
    d.median_kl = kl[n / 2];
    d.max_kl = kl[n - 1];
    free(kl);
    return d;
}

/* Opens an engine or says why not. */
static inline dsi_engine *open_engine(dsi_model *model, const dsi_engine_options *options) {
    dsi_engine *engine = NULL;
    if (dsi_engine_open(model, options, &engine) != DSI_OK)
        fprintf(stderr, "%s\n", dsi_last_error(NULL));
    return engine;
}

/* Appends tokens and steps until all are computed; copies every row of logits to `out`. */
static inline bool all_logits(dsi_engine *engine, dsi_session *session, const int32_t *tokens,
                              size_t n, size_t vocab, float *out) {
    if (dsi_session_append(session, tokens, n) != DSI_OK) return false;
    while (dsi_session_n_queued(session)) {
        const float *logits;
        size_t n_rows, first;
        if (dsi_engine_step(engine, &session, 1, NULL) != DSI_OK) {
            fprintf(stderr, "%s\n", dsi_last_error(engine));
            return false;
        }
        dsi_session_logits(session, &logits, &n_rows, &first);
        memcpy(out + first * vocab, logits, n_rows * vocab * sizeof *out);
    }
    return true;
}

/* The kernel sets this machine can run, "ref" first. */
enum { KERNEL_SETS = 5 };
static inline size_t kernel_sets(const char *names[KERNEL_SETS]) {
    uint32_t isa = dsi_cpu_isa(dsi_isa_detect(), NULL);
    size_t n = 0;
    names[n++] = "ref";
    if (isa & DSI_ISA_AVX2) names[n++] = "avx2";
    if (isa & DSI_ISA_AVX512) names[n++] = "avx512";
    if (isa & DSI_ISA_AVX512BF16) names[n++] = "avx512bf16";
    if (isa & DSI_ISA_AMX) names[n++] = "amx";
    return n;
}

#endif
