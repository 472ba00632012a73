/* dsinfer.h: run DeepSeek mixture-of-experts models inside your own program.
 *
 * The nouns
 *   dsi_model    immutable weights, configuration and tokenizer, mapped from disk; for any thread.
 *   dsi_engine   a model placed on devices: thread pool, KV pages, scratch. Calls may come from
 *                any thread; one step runs at a time.
 *   dsi_session  one timeline of tokens (its KV pages and its sampler). One thread at a time.
 *   dsi_stream   one answer that is being computed by the engine's own thread: events to poll for.
 *   dsi_adapter  a fine-tune (LoRA) of the model, on an engine; sessions choose one, or none.
 *
 * The ladder, from one call to full control; stop reading where your problem is solved
 *   1 Generate   dsi_open, dsi_generate, dsi_close: text in, text out.
 *   2 Stream     dsi_stream_open, dsi_stream_next: many answers at once, in your event loop.
 *   3 Session    dsi_session_append, dsi_session_next, dsi_engine_step: you own the loop.
 *   4 Text       dsi_tokenize, dsi_detokenize, dsi_chat_tokens: you own the tokens.
 *   5 Inspect    dsi_model_info, dsi_model_tensor, dsi_plan, dsi_engine_set_tap.
 *
 * Rules that hold everywhere
 *   - Functions return dsi_status: 0 or a negative code of DSI_STATUS_LIST; dsi_last_error() then
 *     says what, which value, which limit and what to do.
 *   - Option structs: call their _init() first (it sets struct_size and the defaults), then change
 *     fields. They only ever grow at the end, so a program built today runs with a later library.
 *   - The library never prints, exits, aborts, or installs signal handlers.
 *   - Text is UTF-8 with an explicit length in bytes; it need not end with a zero byte.
 *   - After fork() the child must not use the handles of its parent: every call on one returns
 *     DSI_E_FORK there and touches nothing; a close releases what is the child's own copy. */
#ifndef DEEPSEEK_DSINFER_H
#define DEEPSEEK_DSINFER_H

#include <deepseek/types.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(__GNUC__)
#define DSI_API __attribute__((visibility("default")))
#else
#define DSI_API
#endif

typedef struct dsi_model dsi_model;
typedef struct dsi_engine dsi_engine;
typedef struct dsi_session dsi_session;
typedef struct dsi_stream dsi_stream;
typedef struct dsi_adapter dsi_adapter;

/* ---- Status, errors, log ------------------------------------------------------------------
 * Threads: any. Owns: returned strings belong to the library. */

/* "0.1.0". */
DSI_API const char *dsi_version(void);
/* "DSI_E_ARG" for -1; "DSI_E_UNKNOWN" for a number that is not in the list. */
DSI_API const char *dsi_status_name(dsi_status status);
/* One English sentence for the code. */
DSI_API const char *dsi_status_text(dsi_status status);
/* The message of the last failed call on `handle` (a dsi_model, dsi_engine, dsi_session, dsi_stream
 * or dsi_adapter); with NULL, of the last failed call of this thread that had no handle yet (an
 * open that failed). Never NULL; "" if nothing failed. Valid until the next call on that handle
 * (that thread). */
DSI_API const char *dsi_last_error(const void *handle);

enum { DSI_LOG_ERROR = 0, DSI_LOG_WARN = 1, DSI_LOG_INFO = 2, DSI_LOG_DEBUG = 3 };
/* Receives one line without a newline. May be called from any thread of the engine. */
typedef void (*dsi_log_fn)(void *user, uint32_t level, const char *component, const char *text);

enum { DSI_STAGE_LOAD = 0, DSI_STAGE_PREFILL = 1 };
/* Work done so far of a long stage (LOAD: bytes of headers and checks; PREFILL: tokens).
 * Called on the thread that made the call. */
typedef void (*dsi_progress_fn)(void *user, uint32_t stage, uint64_t done, uint64_t total);

/* ---- Host memory --------------------------------------------------------------------------
 * Threads: set the allocator before other threads use the library; the report: any.
 * Owns: the struct is copied; `user` must live as long as the library is used. */

/* Where the library takes host memory from. Mapped files and the stacks of its threads are none. */
typedef struct dsi_allocator {
    uint32_t struct_size; /* sizeof(dsi_allocator) */
    uint32_t reserved;
    void *user;
    /* n_bytes > 0, alignment a power of two of at least 16; NULL: no memory. May be called from
     * any thread. The block need not be zeroed. */
    void *(*allocate)(void *user, size_t n_bytes, size_t alignment);
    /* A block of allocate, with the same n_bytes; never NULL. */
    void (*release)(void *user, void *block, size_t n_bytes);
} dsi_allocator;
/* NULL goes back to libc. DSI_E_STATE while any block of the library is alive. */
DSI_API dsi_status dsi_set_allocator(const dsi_allocator *allocator);

/* Bytes in use by this process's library, by class. */
typedef struct dsi_memory_use {
    uint32_t struct_size; /* sizeof(dsi_memory_use) */
    uint32_t reserved;
    uint64_t n_bytes_mapped;   /* checkpoint files mapped read-only, shared with other processes */
    uint64_t n_bytes_weights;  /* weights that had to be copied: norms, misaligned matrices */
    uint64_t n_bytes_kv;       /* KV pools */
    uint64_t n_bytes_scratch;  /* room for a step: activations, workspace, logits */
    uint64_t n_bytes_sessions; /* sessions and streams */
    uint64_t n_bytes_text;     /* tokenizers */
    uint64_t n_bytes_other;
    uint64_t n_bytes_total; /* of all classes but mapped */
    uint64_t n_bytes_peak;  /* the largest total so far */
    uint64_t n_blocks;      /* blocks alive; 0 once everything is closed */
} dsi_memory_use;
/* Set use->struct_size = sizeof *use first. */
DSI_API dsi_status dsi_memory_report(dsi_memory_use *use);

/* ---- Model --------------------------------------------------------------------------------
 * Threads: a dsi_model is immutable after open; any number of threads may read it.
 * Owns: the caller closes it, after every engine on it is closed. */

typedef struct dsi_model_options {
    uint32_t struct_size;
    uint32_t reserved;
    dsi_log_fn log; /* default NULL: silent */
    void *log_user;
    dsi_progress_fn progress; /* default NULL */
    void *progress_user;
} dsi_model_options;
DSI_API void dsi_model_options_init(dsi_model_options *options);

/* Opens the checkpoint folder `path` (config.json, model.safetensors or its sharded index,
 * tokenizer.json). Headers are read and checked; weights are mapped, not read.
 * A folder without tokenizer.json opens; text calls on it then return DSI_E_STATE. One with a
 * tokenizer of another family opens too; text calls return DSI_E_UNSUPPORTED and say why.
 * Errors: IO, FORMAT, MODEL, UNSUPPORTED, NOMEM, ARG. options may be NULL. */
DSI_API dsi_status dsi_model_open(const char *path, const dsi_model_options *options,
                                  dsi_model **model);
DSI_API void dsi_model_close(dsi_model *model); /* NULL is allowed */

/* ---- Engine -------------------------------------------------------------------------------
 * Threads: calls may come from any thread; steps run one at a time.
 * Owns: the caller closes it, after its sessions are closed; the model must outlive it. */

/* Type of the operands of products. A8: those that meet INT8 or INT4 weights are rounded to 8 bits
 * with multipliers of their own, everything else is as with BF16; for checkpoints that have such
 * weights alone. E4M3: those that meet FP8 weights are rounded to E4M3 by row and 128 columns, as
 * DeepSeek's own code for GPUs does; for FP8 checkpoints alone, and slow: to compare with such an
 * engine. KV is F32 with F32, else what kv_cache says. */
enum {
    DSI_ACTIVATIONS_BF16 = 0,
    DSI_ACTIVATIONS_F32 = 1,
    DSI_ACTIVATIONS_A8 = 2,
    DSI_ACTIVATIONS_E4M3 = 3
};
/* AUTO is the rule of exact mode: whole 256-token blocks of a prompt are expanded, its tail and
 * generated tokens are absorbed. The two others force one form, for comparisons. */
enum { DSI_ATTENTION_AUTO = 0, DSI_ATTENTION_ABSORBED = 1, DSI_ATTENTION_EXPANDED = 2 };
/* Whether the engine's threads are bound to CPUs. AUTO: one CPU each if the engine has a thread for
 * every core that this process may use and no other engine of the process has them; else, on a
 * machine of several memory nodes, to a node each. ON: one CPU each if there are enough, else a
 * warning. The threads that call the library are never bound. */
enum { DSI_PIN_AUTO = 0, DSI_PIN_ON = 1, DSI_PIN_OFF = 2 };
/* Where the engine reads weights. MAP: in the mapped files, which costs nothing and is shared by
 * all processes. COPY: in memory of its own, in huge pages, each row on the memory node of the
 * thread that reads it; the plan and max_memory count it, and the model's progress function is told
 * of it (DSI_STAGE_LOAD). Answers are the same bit for bit. AUTO: COPY on machines of several
 * memory nodes if it fits into max_memory and what is available, else MAP. */
enum { DSI_WEIGHTS_AUTO = 0, DSI_WEIGHTS_MAP = 1, DSI_WEIGHTS_COPY = 2 };

/* EXACT: the bits of a row depend on its own context alone, never on what else is computed, on
 * threads or chunks. FAST gives that up where another order of sums is faster: products of many
 * rows may be those of a library that is found when the program runs. */
enum { DSI_MODE_EXACT = 0, DSI_MODE_FAST = 1 };
/* Whose products FAST may use: AUTO takes whichever measures faster at open, the own kernels
 * included; the two libraries are used wherever they can; without them the own kernels are. */
enum { DSI_GEMM_AUTO = 0, DSI_GEMM_OWN = 1, DSI_GEMM_ONEDNN = 2, DSI_GEMM_OPENBLAS = 3 };

/* What a cached row is kept as. BF16: as products take it (F32 with activations F32). FP8, INT8: in
 * 8 bits, rounded once when the row is written and read as BF16: for contexts that are larger than
 * memory, at a small loss. Of MLA the latents, each 128 columns with a scale of their own (f32), as
 * E4M3 or int8; the rotated columns stay BF16: a token of DeepSeek-V3 has 512 codes, 4 scales, 64
 * BF16 = 656 bytes a layer instead of 1,152. Of grouped-query attention keys and values of each
 * head. Exact mode holds with each of them. Not with activations F32. */
enum { DSI_KV_CACHE_BF16 = 0, DSI_KV_CACHE_FP8 = 1, DSI_KV_CACHE_INT8 = 2 };

/* Models with a block for multi-token prediction (DeepSeek-V3, R1) can draft the tokens after the
 * next one: a step then computes the sampled token and the drafts behind it, and as many of those
 * as the sampler would have drawn itself are taken without a step of their own. Answers are the
 * same token for token, greedy or sampled; what changes is the time, and the memory for the block.
 * Drafts beyond the first are drafted from drafts. AUTO: one draft a step where the model has such
 * a block, mode is EXACT (elsewhere the rows of a step change the last bits), memory or max_memory
 * allows it, and at most two sessions of the step wait for one token: with more, rows that may be
 * refused cost what they save. */
enum { DSI_MAX_DRAFTS = 4, DSI_DRAFTS_AUTO = 255 };

/* How the indexer of DeepSeek-V3.2, which chooses the index_topk tokens that a row attends to,
 * keeps its queries and keys: PLAIN: as other operands; FP8: as DeepSeek's own code for GPUs does,
 * through a Hadamard transform and rounded to E4M3 with scales that are powers of two, to choose
 * what it would choose. Other models ignore it. */
enum { DSI_INDEXER_PLAIN = 0, DSI_INDEXER_FP8 = 1 };

typedef struct dsi_engine_options {
    uint32_t struct_size;
    uint32_t n_threads;    /* default 0: one per core, at most what the control group pays for */
    uint64_t max_memory;   /* bytes for weights, KV and scratch; default 0: no cap */
    uint32_t max_sessions; /* sessions in one step; default 8 */
    uint32_t max_context;  /* tokens of one session; default 0: the model's limit, at most 4096 */
    uint32_t kv_tokens;    /* tokens the KV pool holds; default 0: max_context * 2 */
    uint32_t chunk_tokens; /* rows of one step; default 256 */
    uint32_t activations;  /* DSI_ACTIVATIONS_*; default BF16 */
    uint32_t attention;    /* DSI_ATTENTION_*; default AUTO */
    const char *backend;   /* default NULL: "cpu" */
    /* ref, avx2, avx512, avx512vnni, avx512bf16, amx; NULL, the default: the best here */
    const char *kernels;
    uint32_t check_layers; /* 1: look for NaN after every layer, name the first; default 0 */
    uint32_t pin;          /* DSI_PIN_*; default AUTO */
    uint32_t mode;         /* DSI_MODE_*; default EXACT */
    uint32_t gemm;         /* DSI_GEMM_*, in FAST; default AUTO */
    uint32_t weights;      /* DSI_WEIGHTS_*; default AUTO */
    uint32_t kv_cache;     /* DSI_KV_CACHE_*; default BF16 */
    uint32_t draft_tokens; /* 0 to DSI_MAX_DRAFTS, or DSI_DRAFTS_AUTO, the default */
    uint32_t indexer;      /* DSI_INDEXER_*; default PLAIN */
} dsi_engine_options;
DSI_API void dsi_engine_options_init(dsi_engine_options *options);

/* Plans the memory, refuses if the plan is above max_memory (DSI_E_MEMORY_CAP: need, have,
 * remedies), then places the weights. options may be NULL. */
DSI_API dsi_status dsi_engine_open(dsi_model *model, const dsi_engine_options *options,
                                   dsi_engine **engine);
DSI_API void dsi_engine_close(dsi_engine *engine); /* NULL is allowed */

/* ---- Adapters -----------------------------------------------------------------------------
 * Threads: any; open waits for a running step. An adapter does not change after open.
 * Owns: the caller closes it, after the sessions that use it or before: it then ends with the last
 * of them.
 * A low-rank adapter (LoRA) adds scale * B (A x) to the products of some weights of the model,
 * which stays as it is, shared by all. Each session has one adapter or none, from its first token
 * on; rows of different adapters, and of none, share a step. In exact mode a row's bits depend on
 * its own context and adapter alone, and rows without one have the bits they have in an engine
 * without adapters. With draft_tokens the MTP block drafts without adapters: drafts may be worse,
 * answers are the same. */

typedef struct dsi_adapter_options {
    uint32_t struct_size;
    float scale; /* times what the adapter's configuration says, -100 to 100; default 1 */
} dsi_adapter_options;
DSI_API void dsi_adapter_options_init(dsi_adapter_options *options);

/* Opens a folder as PEFT's save_pretrained writes it (adapter_config.json of type LORA,
 * adapter_model.safetensors of F32, F16 or BF16); the file is mapped, its values are read
 * once, and B is kept transposed in memory.
 * What may be adapted, of any layer: q_proj, k_proj, v_proj, o_proj, q_a_proj, q_b_proj,
 * kv_a_proj_with_mqa, kv_b_proj, and gate_proj, up_proj, down_proj of dense layers and of shared
 * experts; ranks up to 512. Everything else in the folder (routed experts, router, embeddings,
 * head, norms, DoRA, biases, modules_to_save, ...) is refused by name. The first adapter, and one
 * of a larger rank than those before, enlarges the room for a step: max_memory counts it. Errors,
 * left for dsi_last_error(NULL): IO, FORMAT (damaged; a value that is not finite), MODEL (of
 * another model), UNSUPPORTED, MEMORY_CAP, NOMEM, ARG, STATE. options may be NULL. */
DSI_API dsi_status dsi_adapter_open(dsi_engine *engine, const char *path,
                                    const dsi_adapter_options *options, dsi_adapter **adapter);
DSI_API void dsi_adapter_close(dsi_adapter *adapter); /* NULL is allowed */

typedef struct dsi_adapter_info {
    uint32_t struct_size;
    uint32_t max_rank;
    uint32_t n_weights;  /* of the model that it changes */
    uint32_t n_sessions; /* that use it now */
    uint64_t n_bytes;    /* of A and B, as they lie in the file */
    float scale;         /* the option */
    uint32_t reserved;
    const char *name; /* of its folder, "labour-office"; belongs to the adapter */
    const char *path; /* as it was given to open; belongs to the adapter */
    /* ends of the names of the weights that it changes, "q_proj, o_proj"; belongs to the adapter */
    const char *targets;
} dsi_adapter_info;
/* Set info->struct_size = sizeof *info first. */
DSI_API dsi_status dsi_adapter_get_info(const dsi_adapter *adapter, dsi_adapter_info *info);

/* ---- 1 Generate ---------------------------------------------------------------------------
 * Threads: one at a time per session. */

/* Model, engine and session in one call, all with their defaults; dsi_close frees all three. */
DSI_API dsi_status dsi_open(const char *path, dsi_session **session);
DSI_API void dsi_close(dsi_session *session); /* NULL is allowed */

/* Roles and texts of a conversation, oldest first. */
enum { DSI_ROLE_SYSTEM = 0, DSI_ROLE_USER = 1, DSI_ROLE_ASSISTANT = 2 };
typedef struct dsi_message {
    uint32_t struct_size; /* sizeof(dsi_message) */
    uint32_t role;        /* DSI_ROLE_* */
    const char *text;     /* special tokens inside it are plain text */
    size_t n_bytes;
} dsi_message;

enum { DSI_PART_ANSWER = 0, DSI_PART_REASONING = 1 };
/* A piece of the answer, whole UTF-8 characters only. Return 0 to go on, anything else to stop. */
typedef int32_t (*dsi_text_fn)(void *user, uint32_t part, const char *text, size_t n_bytes);

enum {
    DSI_FINISH_NONE = 0,      /* not finished */
    DSI_FINISH_STOP = 1,      /* the model ended its answer */
    DSI_FINISH_LENGTH = 2,    /* max_tokens or the context is used up */
    DSI_FINISH_CALLER = 3,    /* the callback asked to stop */
    DSI_FINISH_STOP_TEXT = 4, /* a stop string appeared */
    DSI_FINISH_CANCELLED = 5, /* dsi_session_cancel, dsi_stream_cancel */
    DSI_FINISH_DEADLINE = 6,  /* the deadline passed */
    DSI_FINISH_FAILED = 7     /* an error ended it: see the status */
};

typedef struct dsi_generate_result {
    uint32_t struct_size;
    uint32_t finish_reason;     /* DSI_FINISH_* */
    uint32_t n_tokens_in;       /* prompt tokens */
    uint32_t n_tokens_out;      /* sampled tokens, the end token not counted */
    double first_token_seconds; /* from the call to the first sampled token */
    double prefill_seconds;     /* computing the prompt */
    double decode_seconds;      /* computing and sampling every token after the first */
    uint32_t n_tokens_kept;     /* prompt tokens whose rows were still in the session */
    uint32_t stop_index;        /* which of the stop strings, with DSI_FINISH_STOP_TEXT */
    uint32_t n_drafted;         /* tokens that the MTP block drafted, */
    uint32_t n_accepted;        /* and those of them that were drawn */
} dsi_generate_result;

enum { DSI_THINK_AUTO = 0, DSI_THINK_ON = 1, DSI_THINK_OFF = 2 };

/* Renders `messages` with the chat template of the checkpoint, computes the answer and hands it
 * to `on_text` while it grows; a thin layer over the events of section 2, on the calling thread.
 * A session that holds the beginning of the same conversation keeps it (dsi_session_rewind to the
 * common tokens), so the next turn computes only what is new. think: DSI_THINK_*; AUTO follows the
 * checkpoint's template. result may be NULL; it is filled whatever the status.
 * Errors: those of the calls of section 3; CANCELLED and TIMEOUT leave what was answered so far in
 * the session. */
DSI_API dsi_status dsi_generate_chat(dsi_session *session, const dsi_message *messages,
                                     size_t n_messages, uint32_t think, dsi_text_fn on_text,
                                     void *user, dsi_generate_result *result);
/* The same with one user message, a zero-terminated string. */
DSI_API dsi_status dsi_generate(dsi_session *session, const char *prompt, dsi_text_fn on_text,
                                void *user);

/* ---- 2 Stream -----------------------------------------------------------------------------
 * Threads: one at a time per stream, except dsi_stream_cancel: any thread, signal handlers too.
 * Owns: the caller closes it, before its session.
 * The engine has one thread of its own, started by the first stream, which computes all open
 * streams together: one ragged batch a step, up to max_sessions; the others wait in their order.
 * Each stream has a bounded queue of events; one whose reader is slow pauses alone. When the KV
 * pool is full, streams wait for pages; sessions with a stream may lose theirs, and their tokens
 * are computed again when they are needed (dsi_session_n_queued). A stream fails with
 * DSI_E_CONTEXT only if sessions without a stream hold the pages. */

typedef struct dsi_token_logprob {
    int32_t token;
    float logprob; /* natural logarithm of its probability, before temperature and penalties */
} dsi_token_logprob;

enum {
    DSI_EVENT_PROGRESS = 1, /* a part of the prompt was computed: done of total tokens */
    DSI_EVENT_TEXT = 2,     /* a piece of the answer: part, text, n_bytes; whole characters */
    DSI_EVENT_TOKEN = 3,    /* a sampled token, with the option logprobs only; text: its bytes */
    DSI_EVENT_DONE = 4      /* the last event: status, result */
};
typedef struct dsi_event {
    uint32_t struct_size; /* sizeof(dsi_event) */
    uint32_t kind;        /* DSI_EVENT_* */
    uint32_t part;        /* DSI_PART_* */
    int32_t token;
    const char *text; /* not zero-terminated; valid until the next call on the stream */
    size_t n_bytes;
    uint64_t done, total;
    const dsi_token_logprob *top; /* the likeliest, best first; valid as text is */
    uint32_t n_top;
    float logprob;
    dsi_status status; /* DONE: DSI_OK, or why it ended early (dsi_last_error(stream)) */
    uint32_t reserved;
    dsi_generate_result result;
} dsi_event;

/* Starts an answer to `messages` (as dsi_generate_chat). Until the stream is closed, other calls
 * on `session` but dsi_session_cancel return DSI_E_STATE. */
DSI_API dsi_status dsi_stream_open(dsi_session *session, const dsi_message *messages,
                                   size_t n_messages, uint32_t think, dsi_stream **stream);
/* An eventfd that is readable while events wait: poll, select and epoll take it. Do not read from
 * it; dsi_stream_next does. */
DSI_API int32_t dsi_stream_fd(const dsi_stream *stream);
/* The next event. timeout_ms: 0 looks only, -1 waits. Set event->struct_size = sizeof *event first.
 * Errors: TIMEOUT (nothing yet), STATE (DONE was already handed out), ARG. */
DSI_API dsi_status dsi_stream_next(dsi_stream *stream, int32_t timeout_ms, dsi_event *event);
/* Asks the answer to end; DONE with DSI_E_CANCELLED follows within a step. */
DSI_API void dsi_stream_cancel(dsi_stream *stream);
/* Cancels if it still runs, and waits until the engine has let go of the session. NULL is allowed.
 * A stream whose session or engine is closed before it ends with DSI_E_CANCELLED. */
DSI_API void dsi_stream_close(dsi_stream *stream);

/* ---- 3 Session ----------------------------------------------------------------------------
 * Threads: one at a time per session, except dsi_session_cancel: any thread, signal handlers too;
 * sessions of one engine may live on different threads.
 * Owns: the caller closes it before its engine. */

typedef struct dsi_session_options {
    uint32_t struct_size;
    uint32_t top_k;      /* keep the k best tokens; default 0: all */
    float temperature;   /* default 0: greedy, the lowest token id wins ties */
    float top_p;         /* keep the smallest set with this probability; default 1 */
    float min_p;         /* drop tokens below min_p * best probability; default 0 */
    uint32_t max_tokens; /* sampled since the last append; default 0: until the context is full */
    uint64_t seed;       /* same seed, same prompt, same answer; default 0 */
    uint32_t all_logits; /* 1: keep the logits of every row of a step, not the last only */
    uint32_t ignore_end; /* 1: end tokens do not finish the session; default 0 */
    /* Stop strings, looked for in the answer across tokens, not in reasoning: at most 16 of 1 to
     * 256 bytes. The text from the first match on is not handed out. First is what is complete
     * first, of strings that end together the longest. Copied at open. */
    const char *const *stop; /* zero-terminated strings; default NULL */
    uint32_t n_stop;
    /* Penalties on the logits of tokens seen in the last penalty_window tokens of the timeline
     * (prompt and answer), applied before temperature, as Hugging Face (repetition) and OpenAI
     * (the other two) define them. */
    uint32_t penalty_window;  /* default 0: all; the two of OpenAI count sampled tokens only */
    float repetition_penalty; /* logit / p if positive, logit * p if not; default 1 */
    float presence_penalty;   /* logit - p if it was sampled before; default 0 */
    float frequency_penalty;  /* logit - p * times it was sampled; default 0 */
    uint32_t logprobs;        /* 1: keep the log-probability of each sampled token; default 0 */
    uint32_t top_logprobs;    /* and of the n likeliest, at most 20; default 0 */
    uint32_t reserved;
    /* What every token of the session is computed with; default NULL: the model alone. Held by the
     * session and its forks until they are closed. */
    dsi_adapter *adapter;
} dsi_session_options;
DSI_API void dsi_session_options_init(dsi_session_options *options);

DSI_API dsi_status dsi_session_open(dsi_engine *engine, const dsi_session_options *options,
                                    dsi_session **session);
DSI_API void dsi_session_close(dsi_session *session); /* NULL is allowed */

/* Queues tokens; nothing is computed yet. All tokens queued when a step starts are one prompt. A
 * finished session (dsi_session_finish) goes on.
 * Errors: ARG (a token id outside the vocabulary), CONTEXT. */
DSI_API dsi_status dsi_session_append(dsi_session *session, const int32_t *tokens, size_t n_tokens);

/* Runs steps until this session has logits, samples one token and queues it.
 * *token is the sampled id, or -1 when the session is finished (see dsi_session_finish). */
DSI_API dsi_status dsi_session_next(dsi_session *session, int32_t *token);

/* One ragged batch over several sessions of one engine: up to chunk_tokens queued rows, taken from
 * the sessions in order, decode rows first. Sessions without queued tokens are passed over.
 * In exact mode a row's logits do not depend on the other rows. *n_rows (may be NULL) gets the
 * number of rows computed. A session that is cancelled, late, without a free page or with numbers
 * that are not finite is passed over: its tokens stay queued and dsi_last_error(session) says why;
 * its status is returned if nothing else could be computed.
 * Errors: ARG, CONTEXT (KV pool empty), NAN, CANCELLED, TIMEOUT, DEVICE. */
DSI_API dsi_status dsi_engine_step(dsi_engine *engine, dsi_session *const *sessions,
                                   size_t n_sessions, size_t *n_rows);

/* Drops the tokens behind the first n_tokens of the timeline, queued ones too, and ends the state
 * "finished". What follows is computed as if the rest had never been there: in exact mode a session
 * cut at n equals one that got the same appends and steps cut at n, so up to 255 kept tokens may be
 * queued once more (dsi_session_n_queued). The cut draws of the sampler are drawn anew.
 * Errors: ARG (more than there are). */
DSI_API dsi_status dsi_session_rewind(dsi_session *session, size_t n_tokens);

/* A second session with the same tokens, options, adapter and sampler state. Full KV pages are
 * shared until both are closed; only the last, partial one is copied. Errors: NOMEM, CONTEXT (no
 * free page). */
DSI_API dsi_status dsi_session_fork(dsi_session *session, dsi_session **copy);

/* Ends the running call on this session, or the next one that computes, with DSI_E_CANCELLED:
 * within one step, and between two layers if no other session shares that step. One call is ended,
 * the rows of a step that was given up stay queued, and the session stays usable. */
DSI_API void dsi_session_cancel(dsi_session *session);

/* From now on, calls on this session that would still compute after `seconds` (above 0) return
 * DSI_E_TIMEOUT between two steps; 0 removes the limit. */
DSI_API dsi_status dsi_session_set_deadline(dsi_session *session, double seconds);

/* The tokens of the timeline, computed ones first; valid until the next call on the session. */
DSI_API dsi_status dsi_session_tokens(const dsi_session *session, const int32_t **tokens,
                                      size_t *n_tokens);

/* The log-probability of the token sampled last, and the likeliest ones, best first; needs the
 * option logprobs (DSI_E_STATE otherwise). top and n_top may be NULL. Valid as the logits are. */
DSI_API dsi_status dsi_session_logprobs(const dsi_session *session, float *logprob,
                                        const dsi_token_logprob **top, size_t *n_top);

/* Writes the timeline with its KV rows to a file: first beside it, then in its place, so that
 * `path` holds the old or the new state, never half. restore reads it back into an empty session of
 * the same model, activation type, kv_cache and kernels: all is checked before anything changes.
 * The options stay those of the session; with equal ones the answer goes on bit for bit. Errors:
 * IO, FORMAT (damaged), MODEL (of another model or adapter), STATE (of another kind of engine; not
 * empty), CONTEXT. */
DSI_API dsi_status dsi_session_save(dsi_session *session, const char *path);
DSI_API dsi_status dsi_session_restore(dsi_session *session, const char *path);

/* Samples from the logits of the last computed row and queues the token, as dsi_session_next does
 * after its steps. DSI_E_STATE if tokens are still queued or nothing was computed. */
DSI_API dsi_status dsi_session_sample(dsi_session *session, int32_t *token);

/* Tokens queued but not computed; tokens computed (the length of the timeline). */
DSI_API size_t dsi_session_n_queued(const dsi_session *session);
DSI_API size_t dsi_session_n_tokens(const dsi_session *session);
/* DSI_FINISH_*. */
DSI_API uint32_t dsi_session_finish(const dsi_session *session);

/* The logits of the rows computed by the last step: *logits is [n_rows][vocab_size] f32 of
 * positions first_position, first_position+1, ...; without all_logits only the last row of a
 * prompt is kept. Owned by the session, valid until its next step. */
DSI_API dsi_status dsi_session_logits(const dsi_session *session, const float **logits,
                                      size_t *n_rows, size_t *first_position);

/* ---- 4 Text -------------------------------------------------------------------------------
 * Threads: any (the model is immutable). Owns: the caller's buffers.
 * Buffers: capacity 0 with a NULL buffer asks for the size; if the buffer is too small the call
 * returns DSI_E_BUFFER and the needed count is in *n_tokens / *n_bytes. */

enum { DSI_TOKENIZE_PLAIN = 0, DSI_TOKENIZE_SPECIAL = 1 };
/* flags: PLAIN treats special-token text as plain text; SPECIAL recognises it. No BOS is added. */
DSI_API dsi_status dsi_tokenize(const dsi_model *model, const char *text, size_t n_bytes,
                                uint32_t flags, int32_t *tokens, size_t capacity, size_t *n_tokens);
/* Special tokens are written as their text. Bytes that are not UTF-8 become U+FFFD. */
DSI_API dsi_status dsi_detokenize(const dsi_model *model, const int32_t *tokens, size_t n_tokens,
                                  char *text, size_t capacity, size_t *n_bytes);
/* The prompt of a conversation by the checkpoint's own template, ending where the answer begins. */
DSI_API dsi_status dsi_chat_tokens(const dsi_model *model, const dsi_message *messages,
                                   size_t n_messages, uint32_t think, int32_t *tokens,
                                   size_t capacity, size_t *n_tokens);

/* ---- 5 Inspect ----------------------------------------------------------------------------
 * Threads: any for dsi_model; set the tap while no step runs. Owns: strings belong to the model. */

typedef struct dsi_model_info {
    uint32_t struct_size;
    uint32_t n_layers, hidden_size, vocab_size, n_heads, max_context;
    uint32_t n_routed_experts, n_experts_per_token; /* 0 for dense models */
    uint32_t n_mtp_layers;                          /* MTP blocks present in the files */
    uint32_t has_tokenizer;
    uint32_t n_tensors, n_shards;
    uint64_t n_params_total;  /* without scales and without MTP blocks */
    uint64_t n_params_active; /* read per token */
    uint64_t n_params_mtp;
    uint64_t n_bytes_weights;  /* tensor bytes of all shards */
    uint64_t n_bytes_token;    /* weight bytes read for one token at batch 1 */
    uint64_t n_bytes_kv;       /* KV bytes of one token, BF16 */
    const char *architecture;  /* "deepseek_v3" */
    const char *chat_template; /* "deepseek-v3.1", "" if unknown */
    const char *quantization;  /* of the matrices: "fp8 128x128", "int8 rows", "int8 128x128",
                                  "int4 group 128", "int4 group 32"; "" if they have none */
} dsi_model_info;
/* Set info->struct_size = sizeof *info first. */
DSI_API dsi_status dsi_model_get_info(const dsi_model *model, dsi_model_info *info);

typedef struct dsi_tensor_info {
    uint32_t struct_size;
    dsi_dtype dtype;
    uint32_t n_dims;
    uint32_t shard; /* index of the file */
    int64_t shape[4];
    uint64_t n_bytes, file_offset;
    const char *name, *file;
} dsi_tensor_info;
/* index < info.n_tensors, in the order of the files. */
DSI_API dsi_status dsi_model_get_tensor(const dsi_model *model, uint32_t index,
                                        dsi_tensor_info *info);

typedef struct dsi_memory_plan {
    uint32_t struct_size;
    uint32_t reserved;
    uint64_t n_bytes_weights, n_bytes_kv, n_bytes_scratch, n_bytes_total;
    uint64_t n_bytes_available; /* MemAvailable of the machine now, 0 if unknown */
} dsi_memory_plan;
/* What dsi_engine_open would need; reads nothing of the weights. */
DSI_API dsi_status dsi_plan(const dsi_model *model, const dsi_engine_options *options,
                            dsi_memory_plan *plan);

/* One intermediate value of a step: [n_rows][n_columns] f32 (converted if it is stored otherwise).
 * `name` is the official weight name it comes out of ("self_attn.kv_a_layernorm", "lm_head", ...),
 * layer is -1 outside the layers. Valid during the call only. */
typedef void (*dsi_tap_fn)(void *user, const char *name, int32_t layer, const float *values,
                           size_t n_rows, size_t n_columns);
DSI_API dsi_status dsi_engine_set_tap(dsi_engine *engine, dsi_tap_fn tap, void *user);

/* A line of text for people: backend, kernels in use, threads, activation type; and if the kernels'
 * self-test at the first open found one wrong, what is used instead. Owned by engine. */
DSI_API const char *dsi_engine_describe(const dsi_engine *engine);

#ifdef __cplusplus
}
#endif
#endif
