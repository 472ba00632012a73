/* internal.h: what is behind the handles of dsinfer.h. */
#ifndef DSI_LIB_INTERNAL_H
#define DSI_LIB_INTERNAL_H

#include "backend/backends.h"
#include "base/base.h"
#include "model/model.h"
#include "text/text.h"
#include <deepseek/backend.h>
#include <deepseek/dsinfer.h>
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>

/* Blocks of a prompt that take the expanded form of attention as a whole (exact mode). */
enum { DSI_PROMPT_BLOCK = 256 };
enum { DSI_MAX_TOP_LOGPROBS = 20 };

/* First member of every handle, so that dsi_last_error takes any of them. */
typedef struct dsi_handle {
    dsi_error error;
} dsi_handle;
/* Bytes of the weights that a forward pass reads: MTP blocks are mapped but not touched. */
uint64_t dsi_model_weight_bytes(const dsi_model *model);
/* Those of the MTP block that a step with drafts reads. */
uint64_t dsi_model_mtp_bytes(const dsi_model *model);
/* Where a call without a handle leaves its message. */
dsi_error *dsi_thread_error(void);

/* Copies a caller's option struct over the defaults: min(his size, ours) bytes. */
dsi_status dsi_copy_options(void *to, uint32_t our_size, const void *from, const char *name,
                            dsi_error *error);

/* Gives a caller's struct, whose size he has set, as much of ours as he knows. */
static inline void dsi_copy_out(void *to, uint32_t his_size, void *from, uint32_t our_size) {
    memcpy(from, &his_size, sizeof his_size); /* struct_size stays what he said */
    memcpy(to, from, his_size < our_size ? his_size : our_size);
}

/* After fork() the child has a copy of every handle, and none of the threads that hold its locks or
 * wait at its barriers. So each handle knows its process: elsewhere calls are refused before they
 * touch a lock, and a close frees what is the child's own copy. */
static inline bool dsi_is_child(int64_t process) { return dsi_sys_getpid() != process; }
dsi_status dsi_fail_child(dsi_error *error, const char *call, int64_t process);
/* DSI_OK, or DSI_E_FORK with a message in the thread's error. */
dsi_status dsi_model_enter(const dsi_model *model, const char *call);

struct dsi_model {
    dsi_handle handle;
    int64_t process; /* that opened it */
    dsi_checkpoint checkpoint;
    dsi_config config;
    dsi_weights weights;
    dsi_tokenizer *tokenizer;  /* NULL: the folder has none that can be used */
    dsi_error tokenizer_error; /* why tokenizer.json cannot be used, "" otherwise */
    const dsi_chat_template *chat;
    dsi_model_options options; /* the caller's log and progress functions */
    dsi_log log;
};

/* ---- Weights on the device (place.c) -----------------------------------------------------------
 */

typedef struct dsi_placed_layer {
    dsi_tensor input_layernorm, post_attention_layernorm;
    dsi_tensor q_proj, q_a_proj, q_a_layernorm, q_b_proj;
    dsi_tensor kv_a_proj_with_mqa, kv_a_layernorm, kv_b_proj, o_proj;
    dsi_tensor k_b_proj, v_b_proj; /* instead of kv_b_proj: dsi_layer_weights */
    dsi_tensor index_wq_b, index_wk, index_weights_proj; /* ne[0] = 0: absent, here and below */
    dsi_tensor index_k_norm, index_k_norm_bias;
    dsi_tensor k_proj, v_proj, q_bias, k_bias, v_bias;
    dsi_tensor gate, e_score_correction_bias;
    dsi_tensor mlp[3];   /* dense layers: gate, up, down */
    dsi_tensor *experts; /* gate, up, down of every expert, then of the shared one */
    const dsi_tensor *
        *moe_in; /* inputs of DSI_OP_MOE_FFN: x, ids, weights (set per step), experts */
    uint32_t n_moe_in;
} dsi_placed_layer;

typedef struct dsi_placement {
    dsi_tensor embed_tokens, norm, lm_head, inv_freq;
    dsi_tensor mtp_embed_tokens, mtp_head, enorm, hnorm, eh_proj, mtp_norm; /* with drafts alone */
    dsi_placed_layer *layers; /* [n_layers], behind them that of the MTP block */
    dsi_tensor *expert_storage;
    const dsi_tensor **moe_in_storage;
    dsi_buf **shards; /* imported mappings, one per shard, then the loader's copies */
    uint32_t n_shards;
    dsi_buf *vectors; /* norms and biases as f32 */
    uint64_t n_bytes_vectors;
    bool is_copy;  /* matrices are not read in the mappings, but in `copy` */
    dsi_buf *copy; /* all matrices and their multipliers, each from a multiple of 64 bytes on */
    uint64_t n_bytes_copy;
} dsi_placement;

/* ---- Scratch of one step
 * ------------------------------------------------------------------------- */

/* Activations by name: [chunk_tokens][columns], all in one buffer. "act" is BF16 or F32. */
typedef struct dsi_scratch {
    dsi_tensor tokens, positions, slots, head_rows; /* I32, I32, I64, I32 */
    dsi_tensor hidden;                              /* F32 residual stream */
    dsi_tensor normed;                              /* act */
    dsi_tensor q_a, q_a_normed;                     /* F32, act */
    dsi_tensor q;                                   /* F32 [heads * q_dim] */
    dsi_tensor kv;                                  /* F32 [kv_lora + rope], or k then v */
    dsi_tensor q_absorbed, o_latent;                /* act */
    dsi_tensor attention;                           /* act [heads * v] */
    dsi_tensor index_q, index_k;                    /* F32 [index heads * dim], F32 [dim] */
    dsi_tensor index_weights, selected;             /* F32 [index heads], I32 [index_topk] */
    dsi_tensor ffn_hidden;                          /* act [intermediate] */
    dsi_tensor router_logits, expert_ids, expert_weights;
    dsi_tensor head_hidden, head_normed, logits; /* [dsi_head_rows] rows */
    dsi_tensor mtp_rows, mtp_hidden, mtp_concat; /* I32, F32 [hidden], act [2 * hidden] */
    dsi_buf *buf, *workspace;
    uint64_t n_bytes, n_bytes_workspace;
} dsi_scratch;

/* ---- Engine
 * ---------------------------------------------------------------------------------------- */

/* The first value of a session's rows that is not a finite number. */
typedef struct dsi_broken {
    const char *name; /* the official weight name it came out of; NULL: all are finite */
    int32_t layer;    /* -1 outside the layers */
    uint32_t position;
} dsi_broken;

/* The host side of one step's batch; arrays are sized at open. */
typedef struct dsi_step_rows {
    uint32_t n_rows;
    int32_t *tokens, *seq, *position;
    int64_t *slots;
    uint8_t *expanded;
    int32_t *page_table; /* [max_sessions][max_pages] */
    int32_t *head_rows;  /* rows whose logits somebody wants */
    uint32_t n_head_rows;
    uint32_t *head_seq;           /* which session of the step wants head row i */
    float *head_logits;           /* [dsi_head_rows][vocab] of one slice of head rows */
    dsi_session *const *sessions; /* of the step that runs */
    uint32_t n_sessions;
    uint32_t *taken;    /* [max_sessions] rows of each session in the step */
    uint32_t *extra;    /* [max_sessions] drafts behind them */
    int32_t *mtp_rows;  /* rows of the step whose hidden states the MTP block wants */
    float *tap_values;  /* host copy of one tensor, when a tap is set */
    uint8_t *zero_page; /* what a released KV page is overwritten with */
    uint8_t *page;      /* one page on its way from one place to another */
    dsi_broken *broken; /* [max_sessions] of each session in the step */
} dsi_step_rows;

struct dsi_engine {
    dsi_handle handle;
    int64_t process; /* that opened it */
    dsi_model *model;
    dsi_engine_options options; /* every 0 resolved */
    const dsi_backend *backend;
    dsi_dev *dev;
    dsi_dev_stream *stream;
    dsi_host host;
    dsi_dtype act;
    pthread_mutex_t lock; /* one step at a time; guards the page list */
    dsi_placement placed;
    dsi_scratch scratch;
    dsi_memory_plan plan;
    dsi_step_rows rows;
    dsi_buf *kv;
    int64_t kv_columns;    /* elements of one cached row, padded to 64 bytes; bytes if of 8 bits */
    dsi_dtype kv_dtype;    /* act, or E4M3 or I8: rows of 8 bits */
    int64_t index_columns; /* act elements of a cached key of the indexer; 0: there is none */
    uint32_t n_pages, n_free_pages, max_pages;
    int32_t *free_pages;
    uint32_t *page_holders; /* [n_pages] sessions that hold a page */
    bool in_steps; /* the back-end has no DSI_OP_MOE_ROUTED: its router is an op of its own */
    uint32_t n_kv_layers; /* layers with cached rows: those of the model, and the MTP block's */
    float softmax_scale;
    double rope_factor;
    dsi_tap_fn tap;
    void *tap_user;
    _Atomic(struct dsi_runner *) runner; /* the thread of the streams; NULL before the first one */
    _Atomic uint32_t n_holders;          /* the caller until dsi_engine_close, and its sessions */
    _Atomic bool closed; /* its sessions can only be closed now, and it ends with the last */
    bool auto_drafts;    /* draft_tokens is 1 by default */
    int32_t (*choose_draft)(void *user, const dsi_session *, uint32_t, int32_t); /* or NULL */
    void *choose_user;
    struct dsi_adapt *adapt;     /* room for adapters in a step (adapter.h); NULL: none so far */
    struct dsi_profile *profile; /* NULL: steps are not looked into (profile.c) */
    char describe[640];
};

/* One holder fewer; the last one frees. */
void dsi_engine_release(dsi_engine *engine);

/* Places weights on engine->dev (place.c); with dry_run only the shapes and types are filled in,
 * which is what op_plan needs. */
dsi_status dsi_place_weights(dsi_engine *engine, bool dry_run);
void dsi_unplace_weights(dsi_engine *engine);

/* May there be rows that attend to fewer tokens than there are (DeepSeek-V3.2)? */
static inline bool dsi_selects(const dsi_engine *engine) {
    const dsi_config *c = &engine->model->config;
    return c->arch->indexer && engine->options.max_context > c->index_topk;
}
/* Rows that the head computes at once: the next tokens of all sessions, and their drafts. */
static inline uint32_t dsi_head_rows(const dsi_engine *engine) {
    return engine->options.max_sessions * (1 + engine->options.draft_tokens);
}
/* Shapes of the scratch tensors and bytes they need (scratch.c). */
void dsi_scratch_layout(dsi_engine *engine);
/* A tensor [rows][columns] behind *used bytes of a buffer; rows begin at multiples of 64 bytes. */
void dsi_scratch_take(uint64_t *used, dsi_tensor *t, dsi_dtype dtype, int64_t rows,
                      int64_t columns);
/* Cached rows lie in areas of one buffer, each [n_pages * 64][columns]: the latents, or keys and
 * values, of each of n_kv_layers layers; behind them, with an indexer, its keys of each layer. */
static inline uint32_t dsi_kv_areas(const dsi_engine *engine) {
    return engine->n_kv_layers * (engine->index_columns ? 2 : 1);
}
dsi_tensor dsi_kv_area(const dsi_engine *engine, uint32_t area);
static inline dsi_tensor dsi_kv_layer(const dsi_engine *engine, uint32_t layer) {
    return dsi_kv_area(engine, layer);
}
static inline dsi_tensor dsi_index_layer(const dsi_engine *engine, uint32_t layer) {
    return dsi_kv_area(engine, engine->n_kv_layers + layer);
}
/* Bytes of one page of one area; the most of any. */
static inline uint64_t dsi_kv_page_bytes(const dsi_tensor *area) {
    return (uint64_t)area->stride[1] * DSI_PAGE_ROWS * dsi_dtype_bytes(area->dtype);
}
uint64_t dsi_kv_largest_page(const dsi_engine *engine);
/* Bytes of one cached row in all areas of n_layers layers. */
uint64_t dsi_kv_row_bytes(const dsi_engine *engine, uint32_t n_layers);

/* ---- Forward (forward.c)
 * ----------------------------------------------------------------------------- */

typedef enum dsi_forward_mode { DSI_FORWARD_PLAN, DSI_FORWARD_RUN } dsi_forward_mode;
/* The way of a token through the layers, for the rows in engine->rows. RUN computes; the hidden
 * state of every row is left in scratch.hidden. PLAN asks the back-end about every op instead and
 * leaves the largest workspace in *workspace. */
dsi_status dsi_forward(dsi_engine *engine, dsi_forward_mode mode, uint64_t *workspace);
/* Final norm and lm_head for n (<= dsi_head_rows) rows of engine->rows.head_rows, from `first` on;
 * logits (host, [n][vocab]) is filled. */
dsi_status dsi_forward_head(dsi_engine *engine, dsi_forward_mode mode, uint32_t first, uint32_t n,
                            float *logits, uint64_t *workspace);

/* The MTP block (forward.c). states: final norm of rows of scratch.hidden, those in rows.mtp_rows,
 * into scratch.mtp_hidden. block: n rows of engine->rows, each with the token behind it and the
 * state in its row of mtp_hidden, into the block's cache, and the first n_draft of them through the
 * block. head: norm and head of rows of the block's output, those in rows.mtp_rows; logits (host,
 * [n][vocab]); the normed rows become the first of mtp_hidden. */
dsi_status dsi_forward_mtp_states(dsi_engine *engine, dsi_forward_mode mode, uint32_t n,
                                  uint64_t *workspace);
dsi_status dsi_forward_mtp_block(dsi_engine *engine, dsi_forward_mode mode, uint32_t n,
                                 uint32_t n_draft, uint64_t *workspace);
dsi_status dsi_forward_mtp_head(dsi_engine *engine, dsi_forward_mode mode, uint32_t n,
                                float *logits, uint64_t *workspace);

/* ---- Drafts (draft.c)
 * ----------------------------------------------------------------------------- */

/* Before the rows of a step are collected: drafts for the sessions that wait for one token. */
dsi_status dsi_draft_before_step(dsi_engine *engine);
/* Behind its heads: rows whose next token is known go through the MTP block, the states of the
 * others are held. */
dsi_status dsi_draft_after_step(dsi_engine *engine);
/* The sampler has drawn `token`, which is queued now: was it drafted, then its row is there. */
void dsi_draft_meet(dsi_session *session, int32_t token);
/* Without drafts the token that was sampled last waits for a step; what else is queued before that
 * decides about its form of attention, too. So its row is given up again, if it was drafted. */
void dsi_draft_put_back(dsi_session *session);
/* Held states, from the row on that is so many before the last computed one; and taken over into a
 * session with its rows, of another one that had n of them (left out where there is no room). */
uint32_t dsi_draft_held(const dsi_session *session);
void dsi_draft_hold(dsi_session *session, const float *states, uint32_t n);
/* The timeline was cut: drafts go, and held states of rows that went. */
void dsi_draft_cut(dsi_session *session);

/* For measuring on weights that draft nothing right: from the next step on, what the block drafts
 * for `position` of a session is computed and then replaced by what `choose` returns (a token of
 * the vocabulary). NULL: no longer. Between steps. */
typedef int32_t (*dsi_draft_choose)(void *user, const dsi_session *session, uint32_t position,
                                    int32_t drafted);
void dsi_engine_choose_drafts(dsi_engine *engine, dsi_draft_choose choose, void *user);

/* ---- Where the time of a step goes (profile.c); for measuring, not for serving -----------------
 */

typedef struct dsi_profile_row {
    const char *name; /* of the product, by its weight, or of the op */
    uint64_t n_calls;
    uint64_t n_bytes;               /* weights and cached rows that were read */
    uint64_t n_meetings;            /* of threads, the end of the op among them */
    double seconds, waited_seconds; /* waited: the mean of all threads, at those meetings */
} dsi_profile_row;
typedef struct dsi_profile {
    dsi_profile_row rows[32]; /* in the order in which they came up; the last one takes the rest */
    uint32_t n_rows, n_threads;
    /* of the op that runs */
    double start;
    dsi_dev_counters before;
} dsi_profile;
/* From the next step on every op is counted in *profile, which stays the caller's; NULL: no longer.
 * Between steps, under the engine's lock or before there are other threads. */
void dsi_engine_profile(dsi_engine *engine, dsi_profile *profile);
void dsi_profile_begin(dsi_engine *engine);
/* name: NULL for that of the kind of op. */
void dsi_profile_end(dsi_engine *engine, const dsi_op *op, const char *name);

/* ---- Session
 * ------------------------------------------------------------------------------------------ */

struct dsi_session {
    dsi_handle handle; /* messages of the caller's calls */
    dsi_error *error;  /* where work leaves its message: the handle's, or that of the stream */
    dsi_engine *engine;
    dsi_session_options options;
    /* the timeline */
    int32_t *tokens;   /* [max_context] computed, then queued */
    uint8_t *sampled;  /* [max_context] 1: drawn by the sampler, 0: appended */
    uint32_t n_tokens; /* computed */
    uint32_t n_total;  /* computed and queued */
    uint32_t n_sealed; /* rows whose form of attention is decided */
    uint8_t *expanded; /* [max_context / 256 + 1] form of each block */
    int32_t *pages;    /* [max_pages] */
    uint32_t n_pages;
    float *logits; /* [logit_rows][vocab] of the last step */
    uint32_t logit_rows, n_logits, first_logit;
    dsi_broken broken; /* why the queued rows cannot be computed */
    /* drafts (draft.c): tokens[n_total ..] holds those that the next step computes beside the
     * queued token, or that the last step computed and the sampler has not met yet */
    uint32_t n_drafts, n_extra;
    bool is_ahead; /* the last token was drafted, so its row is there, and no step has been since */
    float *held;   /* [1 + draft_tokens][hidden] states of rows whose next token was not known */
    uint32_t n_held, first_held;
    uint32_t n_drafted, n_accepted; /* since the session was opened */
    /* the sampler */
    uint32_t n_sampled; /* draws so far: with the seed, the next random number */
    uint32_t n_answer;  /* those since the last append: what max_tokens limits */
    uint32_t finish;
    int32_t end_token;                /* the end token that was sampled, or -1 */
    struct dsi_candidate *candidates; /* [2 * vocab] when sampling is not greedy */
    float *penalized;                 /* [vocab] logits with penalties, if there are any */
    uint32_t *seen;                   /* [vocab] zeros between two draws */
    bool has_logprob;                 /* of the token sampled last */
    float logprob;
    uint32_t n_top;
    dsi_token_logprob top[DSI_MAX_TOP_LOGPROBS];
    /* who may go on */
    _Atomic uint32_t cancel_flag; /* dsi_session_cancel; cleared where a status reports it */
    double deadline;              /* on the clock of dsi_sys_seconds; 0: none */
    dsi_status outcome; /* of the last step: DSI_OK, or why this session was passed over */
    dsi_stream *stream; /* set from dsi_stream_open to its close: others are kept out */
    bool owns_engine;   /* made by dsi_open */
    bool in_step;       /* guards against the same session twice in one step */
    dsi_stop_set *stop; /* NULL: no stop strings */
    int32_t think_open, think_close; /* the tokens around reasoning, or -1 */
    dsi_answer_text answer_text;     /* of the tokens sampled since the last append */
    bool answer_started;
    void (*on_event)(void *user, const dsi_event *event); /* the answer that runs, or NULL */
    void *event_user;
};
/* A session with these checked options, or those of its parent (then options is not looked at);
 * *out is NULL on failure. What a session owns is allocated here alone, for dsi_session_open and
 * dsi_session_fork, and freed in dsi_session_close alone. */
dsi_status dsi_session_new(dsi_engine *engine, const dsi_session_options *options,
                           const dsi_session *parent, dsi_session **out, dsi_error *error);
/* May a public call work on this session? DSI_E_ARG for NULL, DSI_E_FORK in a child, DSI_E_STATE
 * while a stream owns it; the message is set. */
dsi_status dsi_session_enter(const dsi_session *session, const char *call);
bool dsi_session_is_cancelled(const dsi_session *session);
/* Why the session cannot be computed now: CANCELLED, TIMEOUT, NAN; session->error has the message.
 */
dsi_status dsi_session_hindrance(dsi_session *session);
/* A status reports the hindrance to the caller: a cancel is over then. Returns `status`. */
dsi_status dsi_session_report(dsi_session *session, dsi_status status);

/* dsi_engine_step and dsi_session_sample without the question whose session it is: for the runner
 * of the streams. After a step, session->outcome and session->error say what became of each. */
dsi_status dsi_step_sessions(dsi_engine *engine, dsi_session *const *sessions, size_t n_sessions,
                             size_t *n_rows);
dsi_status dsi_session_draw(dsi_session *session, int32_t *token);
/* Every session that has rows in the running step was cancelled. */
bool dsi_step_cancelled(const dsi_engine *engine);

/* dsi_session_rewind for whoever owns the session; n_tokens <= session->n_total (timeline.c). */
void dsi_session_cut(dsi_session *session, uint32_t n_tokens);
/* n_sampled and n_answer from the marks of the timeline. */
void dsi_session_count_samples(dsi_session *session);

/* ---- KV pages (pages.c); the engine's lock is held
 * --------------------------------------------- */

/* Gives the session the pages that hold rows 0..n_rows-1, those from n_tokens on its own alone;
 * DSI_E_CONTEXT if the pool has too few. */
dsi_status dsi_session_reserve(dsi_session *session, uint32_t n_rows);
/* Lets go of all pages but the first n_keep; the last holder zeroes a page. */
void dsi_pages_release(dsi_session *session, uint32_t n_keep);
/* Gives `to`, which has none, the pages of from's computed rows: full ones shared, the last one
 * copied. On failure `to` may hold some. */
dsi_status dsi_pages_share(dsi_session *from, dsi_session *to);

/* Decides the form of attention of what is queued and not decided yet. */
void dsi_session_seal(dsi_session *session);

/* ---- Answer (answer.c): sampled tokens to events
 * ------------------------------------------------------------------------- */

/* Checks and copies the stop strings of session->options; the rest of the fields for what follows.
 */
dsi_status dsi_answer_open(dsi_session *session);
/* What dsi_session_sample tells of every sampled token, before it is queued, and of the end of the
 * answer. True if a stop string appeared. Events go to session->on_event; without a listener and
 * without stop strings nothing is done. */
bool dsi_answer_token(dsi_session *session, int32_t token);
bool dsi_answer_finish(dsi_session *session);
/* After an append or a cut: the tokens from n_begin on were sampled, what comes next goes on behind
 * them. */
void dsi_answer_rebuild(dsi_session *session, uint32_t n_begin);

/* One answer that is being computed: for dsi_generate_chat on the caller's thread, for streams on
 * the engine's. Events are PROGRESS, TOKEN (if asked for), TEXT, and DONE as the last one. */
typedef struct dsi_answer {
    dsi_session *session;
    dsi_generate_result result;
    double start, first; /* dsi_sys_seconds() of the call and of the first token; 0: not yet */
    uint32_t n_reported; /* prompt tokens of the last PROGRESS */
    uint32_t n_drafted, n_accepted; /* of the session when the answer began */
    bool caller_stopped;
} dsi_answer;
/* Renders the messages, keeps what the session already holds of them, queues the rest. On an error
 * nothing but the session's message has changed. */
dsi_status dsi_answer_begin(dsi_answer *answer, dsi_session *session, const dsi_message *messages,
                            size_t n_messages, uint32_t think);
/* Listens to the session; NULL: no longer. */
void dsi_answer_listen(dsi_answer *answer, void (*on_event)(void *user, const dsi_event *event),
                       void *user);
/* After a step: reports the prompt, or samples a token. *done: the answer is complete. */
dsi_status dsi_answer_advance(dsi_answer *answer, bool *done);
/* The last events; status: why the answer ended. Nobody listens afterwards. */
void dsi_answer_end(dsi_answer *answer, dsi_status status);

/* ---- Streams (stream.c, runner.c)
 * ----------------------------------------------------------------------------------- */

bool dsi_stream_is_cancelled(const dsi_stream *stream);
/* The session is being closed before its stream: the answer ends with DSI_E_CANCELLED. */
void dsi_stream_detach(dsi_stream *stream);
/* Something that the thread of the streams waits for may have changed. Any thread, signal handlers
 * too. */
void dsi_engine_wake_runner(const dsi_engine *engine);
/* The engine is being closed: ends all streams with DSI_E_CANCELLED and joins the thread. */
void dsi_engine_stop_runner(dsi_engine *engine);

/* ---- Sampling (sample.c)
 * --------------------------------------------- */

typedef struct dsi_candidate {
    float logit;
    int32_t token;
} dsi_candidate;
/* Does `options` ask for any penalty? */
bool dsi_has_penalty(const dsi_session_options *options);
/* Writes logits [n] with the penalties for the timeline tokens [n_tokens] (sampled: which of them
 * the sampler drew) to `out`. seen [n] is zero before and after. */
void dsi_penalize(const dsi_session_options *options, const int32_t *tokens, const uint8_t *sampled,
                  uint32_t n_tokens, const float *logits, uint32_t n, uint32_t *seen, float *out);
/* The log-probability of `token`, and the n_top likeliest of n (finite) logits, best first; of
 * equal ones the lower id first. Returns how many there are in top. */
float dsi_logprob(const float *logits, uint32_t n, int32_t token);
uint32_t dsi_top_logprobs(const float *logits, uint32_t n, uint32_t n_top, dsi_token_logprob *top);
bool dsi_all_finite(const float *values, uint64_t n);
/* Picks a token from logits [n]. draw is the index of the sampled token: with the seed
 * it alone decides the random number. candidates [2 * n] may be NULL when temperature is 0.
 * DSI_E_NAN if a logit is not finite. */
dsi_status dsi_sample(const dsi_session_options *options, const float *logits, uint32_t n,
                      uint64_t draw, dsi_candidate *candidates, int32_t *token, dsi_error *error);

#endif
