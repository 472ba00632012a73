/* model.h: what the files of `dsi-bench model` share. */
#ifndef DSI_BENCH_MODEL_H
#define DSI_BENCH_MODEL_H

#include "../lib/model/model.h"
#include "bench.h"

enum { MODEL_BATCH = 64, MODEL_SIDES = 2, MODEL_ROWS = 1024, MODEL_PROFILES = 32 };

/* An engine on the checkpoint, and its sessions. */
typedef struct model_side {
    const char *mode; /* "exact", "fast" */
    dsi_engine *engine;
    dsi_session *sessions[MODEL_BATCH];
    dsi_memory_plan plan;
    double open_seconds;
} model_side;

/* Decode with drafts beside decode without (model_draft.c); n_steps 0: not measured. */
enum { MODEL_DRAFT_COUNTED = 16 };
typedef struct model_drafts {
    uint32_t n_steps;
    double accepted, tokens_step;   /* part of the drafts; tokens of a session and step */
    double seconds, plain_seconds;  /* of a step, the medians */
    double faster, faster_by_bytes; /* than decode without: measured, and if time were bytes */
    double bytes_plain, bytes_step, bytes_expert;
    double experts, experts_expected;       /* distinct ones of a layer: counted, if independent */
    double v3_plain, v3_step, v3_faster[3]; /* DeepSeek-V3: bytes; with 70, 85, 90 % taken */
} model_drafts;

/* One measurement: a prompt in session 0, or steps in which `batch` sessions decode together. */
typedef struct model_row {
    const char *mode;
    bool is_decode;
    uint32_t tokens, depth, batch; /* of the prompt, or steps; context before; sessions */
    double tps;                    /* tokens a second, all sessions together */
    double p50, p90, p99;          /* seconds of a step; of a whole prompt if it is one */
    double first_token_seconds;    /* prompts: to the first sampled token, the median */
    double gflops;                 /* prompts: of the weight matrices, attention not counted */
    uint64_t n_bytes_step;         /* decode: weights that one step reads, by their tensors */
    double gbs, kv_gbs;            /* decode: those, and the cache of all sessions, a second */
    bench_limits limits;           /* measured between its steps */
    double experts;                /* decode: distinct experts chosen in a layer, the mean */
    model_drafts drafts;
} model_row;

typedef struct model_profile model_profile; /* model_profile.c */
typedef struct model_run {
    const bench_options *options;
    dsi_model *model;
    dsi_model_info info;
    model_side sides[MODEL_SIDES];
    uint32_t n_sides;
    uint64_t random;
    bench_yardstick *yardstick;
    bench_limits limits;
    double *seconds; /* [MODEL_SIDES][room] of the steps of a measurement */
    uint32_t room;
    model_row rows[MODEL_ROWS];
    uint32_t n_rows;
    model_profile *profiles[MODEL_PROFILES];
    uint32_t n_profiles;
    const char *what; /* that failed */
} model_run;

/* model_work.c. Every function leaves an error's message where dsi_last_error finds it. */
dsi_status model_append_random(model_run *r, dsi_session *session, uint32_t n_tokens);
/* Steps until nothing is queued in the first n sessions; `what` (may be NULL) for the progress. */
dsi_status model_drain(model_side *side, uint32_t n_sessions, const char *what);
/* Session `index` holds `depth` computed tokens, no more. */
dsi_status model_fill(model_run *r, model_side *side, uint32_t index, uint32_t depth);
/* Replays the last n_steps tokens of `batch` sessions, which end with them, and counts the distinct
 * experts of each step and layer: *experts is the mean, *bytes what a step read of weights. */
dsi_status model_count_experts(model_run *r, model_side *side, uint32_t batch, uint32_t n_steps,
                               double *experts, uint64_t *bytes);
/* Between these two the experts that the router chooses in the model's own layers are noted; end
 * returns the mean number of distinct ones in a layer and step. Bytes of one weight. */
void model_tap_begin(model_side *side);
double model_tap_end(model_side *side);

uint64_t model_weight_bytes(const dsi_weight *weight);
/* Bytes of the KV cache that a row with n_cached rows before it reads, as the engine stores them:
 * with an indexer all of its keys, and the latents of those tokens that it chooses. */
double model_kv_bytes(const model_side *side, double n_cached);
/* Parameters of the head, which a prompt needs for its last row only. */
uint64_t model_head_params(const model_run *r);

/* model_profile.c: decodes on and notes where the time goes, for the reports. */
dsi_status model_profile_steps(model_run *r, model_side *side, uint32_t depth, uint32_t batch);
void model_profiles_free(model_run *r);
void model_profiles_md(const model_run *r);
void model_profiles_json(const model_run *r);

/* model_draft.c: fills the rows of the side without drafts, sides[0], and of that with, sides[1].
 */
dsi_status model_measure_drafts(model_run *r, uint32_t depth, uint32_t batch, model_row *plain,
                                model_row *row);
void model_drafts_md(const model_run *r);
void model_drafts_json(const model_run *r, const model_drafts *drafts);

/* model_report.c */
void model_report(const model_run *r);

#endif
