/* torture_scenarios.c: what is done while a call of the system fails; see torture.h. */
#include "torture.h"

#include "../lib/backend/cpu_selftest.h"
#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const char text_model[] = "examples/models/tiny-gov";
static const char small_model[] = "tests/data/golden/v3-fp8";    /* no tokenizer, 2 MB */
static const char odd_model[] = "tests/data/golden/v3-odd";      /* tensors that must be copied */
static const char adapted_model[] = "tests/data/golden/v2-lite"; /* of tests/data/adapter */

/* ---- Steps of a run ---- */

/* Notes the first error with its message; true if there is none. */
static bool ok(torture_outcome *o, dsi_status status, const void *handle, const char *call) {
    if (status == DSI_OK) return true;
    o->status = status;
    o->failed_call = call;
    snprintf(o->message, sizeof o->message, "%s", dsi_last_error(handle));
    return false;
}
#define OK(handle, call) ok(outcome, call, handle, #call)

static void add(torture_outcome *o, const void *data, size_t n) {
    const uint8_t *bytes = data;
    if (o->hash == 0) o->hash = 14695981039346656037u;
    for (size_t i = 0; i < n; i++) o->hash = (o->hash ^ bytes[i]) * 1099511628211u;
}

static dsi_status open_engine(dsi_model *model, dsi_engine **engine) {
    dsi_engine_options options;
    dsi_engine_options_init(&options);
    options.n_threads = 2;
    options.max_context = 128;
    options.kv_tokens = 256;
    options.max_sessions = 2;
    options.chunk_tokens = 16;
    return dsi_engine_open(model, &options, engine);
}

static dsi_status open_session(dsi_engine *engine, dsi_session **session) {
    dsi_session_options options;
    dsi_session_options_init(&options);
    options.max_tokens = 3;
    options.ignore_end = 1;
    return dsi_session_open(engine, &options, session);
}

/* 20 tokens, two chunks, of any small vocabulary. */
static bool append_prompt(torture_outcome *outcome, dsi_session *session) {
    int32_t tokens[20];
    for (int i = 0; i < 20; i++) tokens[i] = 3 + 5 * i;
    return OK(session, dsi_session_append(session, tokens, 20));
}

static bool answer(torture_outcome *outcome, dsi_session *session) {
    for (int32_t token = 0; token >= 0; add(outcome, &token, sizeof token))
        if (!OK(session, dsi_session_next(session, &token))) return false;
    return true;
}

static void close_all(torture_state *s) {
    dsi_stream_close(s->stream);
    dsi_stream_close(s->other_stream);
    s->stream = s->other_stream = NULL;
    dsi_session_close(s->other);
    dsi_session_close(s->session);
    dsi_adapter_close(s->adapter);
    dsi_engine_close(s->engine);
    dsi_model_close(s->model);
    s->adapter = NULL;
    s->other = s->session = NULL;
    s->engine = NULL;
    s->model = NULL;
}

static void close_session(torture_state *s) {
    dsi_session_close(s->session);
    s->session = NULL;
}

static bool say(const char *what) {
    printf("  %s: %s\n", what, dsi_last_error(NULL));
    return false;
}

static bool nothing(torture_state *s) {
    (void)s;
    return true;
}

static bool open_text_engine(torture_state *s) {
    if (dsi_model_open(text_model, NULL, &s->model) != DSI_OK) return say(text_model);
    return open_engine(s->model, &s->engine) == DSI_OK || say("engine");
}

static bool open_text_session(torture_state *s) {
    if (!open_text_engine(s)) return false;
    return open_session(s->engine, &s->session) == DSI_OK || say("session");
}

static bool open_small_engine(torture_state *s) {
    if (dsi_model_open(small_model, NULL, &s->model) != DSI_OK) return say(small_model);
    return open_engine(s->model, &s->engine) == DSI_OK || say("engine");
}

/* ---- Load ---- */

static void load(torture_state *s, torture_outcome *outcome, const char *path) {
    dsi_model_info info = {.struct_size = sizeof info};
    if (!OK(NULL, dsi_model_open(path, NULL, &s->model))) return;
    if (!OK(s->model, dsi_model_get_info(s->model, &info))) return;
    add(outcome, &info.n_bytes_weights, sizeof info.n_bytes_weights);
    add(outcome, &info.has_tokenizer, sizeof info.has_tokenizer);
    add(outcome, info.chat_template, strlen(info.chat_template));
    if (!OK(NULL, open_engine(s->model, &s->engine))) return;
    if (!OK(NULL, open_session(s->engine, &s->session))) return;
}

static void run_load(torture_state *s, torture_outcome *outcome) { load(s, outcome, text_model); }

static void run_small(torture_state *s, torture_outcome *outcome) {
    load(s, outcome, small_model);
    if (outcome->status == DSI_OK && append_prompt(outcome, s->session))
        answer(outcome, s->session);
}

static void run_copies(torture_state *s, torture_outcome *outcome) { load(s, outcome, odd_model); }

/* The small model as a sharded checkpoint: an index and one shard, a link to the file. */
static bool write_index(const torture_state *s, const dsi_model *model) {
    char path[128];
    dsi_model_info info = {.struct_size = sizeof info};
    snprintf(path, sizeof path, "%s/model.safetensors.index.json", s->folder);
    FILE *file = fopen(path, "w");
    if (!file || dsi_model_get_info(model, &info) != DSI_OK) return false;
    fprintf(file, "{\"metadata\": {\"total_size\": %llu}, \"weight_map\": {",
            (unsigned long long)info.n_bytes_weights);
    for (uint32_t i = 0; i < info.n_tensors; i++) {
        dsi_tensor_info tensor = {.struct_size = sizeof tensor};
        if (dsi_model_get_tensor(model, i, &tensor) != DSI_OK) return false;
        fprintf(file, "%s\"%s\": \"model-00001-of-00001.safetensors\"", i ? ", " : "", tensor.name);
    }
    return fprintf(file, "}}") > 0 && fclose(file) == 0;
}
static bool link_file(const torture_state *s, const char *name, const char *as) {
    char from[512], to[128], here[256];
    if (!getcwd(here, sizeof here)) return false;
    snprintf(from, sizeof from, "%s/%s/%s", here, small_model, name);
    snprintf(to, sizeof to, "%s/%s", s->folder, as);
    return symlink(from, to) == 0;
}
static bool make_sharded(torture_state *s) {
    dsi_model *model;
    snprintf(s->folder, sizeof s->folder, "/tmp/dsi_torture_XXXXXX");
    if (!mkdtemp(s->folder)) return false;
    if (dsi_model_open(small_model, NULL, &model) != DSI_OK) return say(small_model);
    bool made = write_index(s, model) && link_file(s, "config.json", "config.json") &&
                link_file(s, "model.safetensors", "model-00001-of-00001.safetensors");
    dsi_model_close(model);
    return made;
}
static void run_sharded(torture_state *s, torture_outcome *outcome) { load(s, outcome, s->folder); }
static void remove_folder(torture_state *s) {
    static const char *const names[] = {"model.safetensors.index.json", "config.json",
                                        "model-00001-of-00001.safetensors"};
    close_all(s);
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        char path[128];
        snprintf(path, sizeof path, "%s/%s", s->folder, names[i]);
        unlink(path);
    }
    rmdir(s->folder);
}

/* The first engine of a process tests its kernels. */
static void run_first(torture_state *s, torture_outcome *outcome) {
    dsi_cpu_selftest_forget();
    if (!OK(NULL, open_engine(s->model, &s->engine))) return;
    const char *describe = dsi_engine_describe(s->engine);
    /* "cpu, 2 threads, ...": fewer threads are no other answer. */
    const char *kernels = strchr(describe, ',') ? strchr(strchr(describe, ',') + 1, ',') : NULL;
    if (kernels) add(outcome, kernels, strlen(kernels));
}

static bool open_small_model(torture_state *s) {
    return dsi_model_open(small_model, NULL, &s->model) == DSI_OK || say(small_model);
}

static void close_engine(torture_state *s) {
    dsi_engine_close(s->engine);
    s->engine = NULL;
}

/* Memory of a caller. */
static void *allocate(void *user, size_t n_bytes, size_t alignment) {
    (void)user;
    return aligned_alloc(alignment, (n_bytes + alignment - 1) / alignment * alignment);
}
static void release(void *user, void *block, size_t n_bytes) {
    (void)user, (void)n_bytes;
    free(block);
}
static bool set_allocator(torture_state *s) {
    (void)s;
    dsi_allocator ours = {sizeof ours, 0, NULL, allocate, release};
    return dsi_set_allocator(&ours) == DSI_OK || say("allocator");
}

/* dsi_open and all its defaults. */
static int32_t take_three(void *user, uint32_t part, const char *text, size_t n) {
    torture_outcome *outcome = ((void **)user)[0];
    int *n_left = ((void **)user)[1];
    add(outcome, &part, sizeof part);
    add(outcome, text, n);
    return --*n_left <= 0;
}
static void run_all_in_one(torture_state *s, torture_outcome *outcome) {
    int n_left = 3;
    void *user[] = {outcome, &n_left};
    if (!OK(NULL, dsi_open(text_model, &s->session))) return;
    OK(s->session, dsi_generate(s->session, "Say it.", take_three, user));
}
static void close_all_in_one(torture_state *s) {
    dsi_close(s->session);
    s->session = NULL;
}

/* ---- Text ---- */

static bool open_text_model(torture_state *s) {
    return dsi_model_open(text_model, NULL, &s->model) == DSI_OK || say(text_model);
}

static bool tokenize(torture_state *s, torture_outcome *outcome, const char *text, size_t n) {
    static int32_t tokens[20000];
    static char back[60000];
    size_t n_tokens = 0, n_back = 0;
    if (!OK(NULL, dsi_tokenize(s->model, text, n, DSI_TOKENIZE_PLAIN, NULL, 0, &n_tokens)))
        return false;
    if (!OK(NULL, dsi_tokenize(s->model, text, n, DSI_TOKENIZE_SPECIAL, tokens, 20000, &n_tokens)))
        return false;
    add(outcome, tokens, n_tokens * sizeof *tokens);
    if (!OK(NULL, dsi_detokenize(s->model, tokens, n_tokens, back, sizeof back, &n_back)))
        return false;
    add(outcome, back, n_back);
    return true;
}

/* A sentence, one word of 20,000 letters (it outgrows the window), and a conversation. */
static void run_tokenize(torture_state *s, torture_outcome *outcome) {
    static char word[20000];
    static const char sentence[] = "The lamp at 12 \xE4\xB8\xAD\xE5\x8D\x8E Road is out, again.";
    for (size_t i = 0; i < sizeof word; i++) word[i] = (char)('a' + i * i % 26);
    if (!tokenize(s, outcome, sentence, strlen(sentence))) return;
    if (!tokenize(s, outcome, word, sizeof word)) return;
    dsi_message messages[3] = {
        {sizeof messages[0], DSI_ROLE_USER, sentence, strlen(sentence)},
        {sizeof messages[0], DSI_ROLE_ASSISTANT, "Noted.", 6},
        {sizeof messages[0], DSI_ROLE_USER, word, 3000},
    };
    static int32_t tokens[4000];
    size_t n = 0;
    if (!OK(NULL, dsi_chat_tokens(s->model, messages, 3, DSI_THINK_AUTO, tokens, 4000, &n))) return;
    add(outcome, tokens, n * sizeof *tokens);
}

/* ---- Answers ---- */

static int32_t hear(void *user, uint32_t part, const char *text, size_t n) {
    add(user, &part, sizeof part);
    add(user, text, n);
    return 0;
}

static void run_generate(torture_state *s, torture_outcome *outcome) {
    static const char *const stop[] = {"<nowhere>", "\n\n\n"};
    dsi_session_options options;
    dsi_session_options_init(&options);
    options.max_tokens = 3;
    options.stop = stop;
    options.n_stop = 2;
    if (!OK(NULL, dsi_session_open(s->engine, &options, &s->session))) return;
    OK(s->session, dsi_generate(s->session, "The lamp is out.", hear, outcome));
}

/* Everything a session can be asked to keep. */
static void run_sample(torture_state *s, torture_outcome *outcome) {
    dsi_session_options options;
    dsi_session_options_init(&options);
    options.max_tokens = 3;
    options.ignore_end = 1;
    options.temperature = 0.9f;
    options.seed = 7;
    options.all_logits = 1;
    options.repetition_penalty = 1.1f;
    options.frequency_penalty = 0.3f;
    options.penalty_window = 32;
    options.logprobs = 1;
    options.top_logprobs = 3;
    if (!OK(NULL, dsi_session_open(s->engine, &options, &s->session))) return;
    if (!append_prompt(outcome, s->session) || !answer(outcome, s->session)) return;
    const float *logits;
    size_t n_rows, first;
    if (!OK(s->session, dsi_session_logits(s->session, &logits, &n_rows, &first))) return;
    add(outcome, logits, n_rows * 4);
    float logprob;
    const dsi_token_logprob *top;
    if (!OK(s->session, dsi_session_logprobs(s->session, &logprob, &top, &n_rows))) return;
    add(outcome, top, n_rows * sizeof *top);
}

/* ---- Conversations ---- */

/* Two turns in one session; the second keeps what the first has computed. */
static void run_chat(torture_state *s, torture_outcome *outcome) {
    static const char first[] = "The lamp is out.", second[] = "Which road?";
    dsi_message messages[3] = {
        {sizeof messages[0], DSI_ROLE_USER, first, strlen(first)},
        {sizeof messages[0], DSI_ROLE_ASSISTANT, "Noted.", 6},
        {sizeof messages[0], DSI_ROLE_USER, second, strlen(second)},
    };
    dsi_generate_result result = {.struct_size = sizeof result};
    for (size_t n = 1; n <= 3; n += 2) {
        if (!OK(s->session,
                dsi_generate_chat(s->session, messages, n, DSI_THINK_AUTO, hear, outcome, &result)))
            return;
        add(outcome, &result.finish_reason, sizeof result.finish_reason);
    }
}

/* ---- Streams: two answers of the engine's own thread ---- */

static bool open_stream(torture_outcome *outcome, dsi_session *session, const char *text,
                        dsi_stream **stream) {
    dsi_message message = {sizeof message, DSI_ROLE_USER, text, strlen(text)};
    return OK(session, dsi_stream_open(session, &message, 1, DSI_THINK_AUTO, stream));
}

/* Pieces may come cut in any way. */
static bool read_stream(torture_outcome *outcome, dsi_stream *stream) {
    dsi_event event = {.struct_size = sizeof event};
    do {
        if (!OK(stream, dsi_stream_next(stream, -1, &event))) return false;
        if (event.kind == DSI_EVENT_TEXT) add(outcome, event.text, event.n_bytes);
    } while (event.kind != DSI_EVENT_DONE);
    add(outcome, &event.result.finish_reason, sizeof event.result.finish_reason);
    return OK(stream, event.status);
}

static void run_stream(torture_state *s, torture_outcome *outcome) {
    if (!OK(NULL, open_engine(s->model, &s->engine))) return;
    if (!OK(NULL, open_session(s->engine, &s->session))) return;
    if (!OK(NULL, open_session(s->engine, &s->other))) return;
    if (!open_stream(outcome, s->session, "The lamp is out.", &s->stream)) return;
    if (!open_stream(outcome, s->other, "Who comes?", &s->other_stream)) return;
    if (read_stream(outcome, s->stream)) read_stream(outcome, s->other_stream);
}

/* A second answer of the same sessions and the same thread. */
static bool open_two_sessions(torture_state *s) {
    if (!open_text_engine(s)) return false;
    if (open_session(s->engine, &s->session) != DSI_OK) return say("session");
    return open_session(s->engine, &s->other) == DSI_OK || say("session");
}
static void run_restream(torture_state *s, torture_outcome *outcome) {
    if (!open_stream(outcome, s->session, "The lamp is out.", &s->stream)) return;
    if (!open_stream(outcome, s->other, "Who comes?", &s->other_stream)) return;
    if (read_stream(outcome, s->other_stream)) read_stream(outcome, s->stream);
}
static void reset_two_sessions(torture_state *s) {
    dsi_stream_close(s->stream);
    dsi_stream_close(s->other_stream);
    s->stream = s->other_stream = NULL;
    dsi_session_rewind(s->session, 0);
    dsi_session_rewind(s->other, 0);
}
static void reset_stream(torture_state *s) {
    dsi_model *model = s->model;
    s->model = NULL;
    close_all(s);
    s->model = model;
}

static void tap(void *user, const char *name, int32_t layer, const float *values, size_t n_rows,
                size_t n_columns) {
    add(user, name, strlen(name));
    add(user, &layer, sizeof layer);
    add(user, values, n_rows * n_columns * sizeof *values);
}

static void run_inspect(torture_state *s, torture_outcome *outcome) {
    dsi_memory_plan plan = {.struct_size = sizeof plan};
    if (!OK(NULL, dsi_plan(s->model, NULL, &plan))) return;
    add(outcome, &plan.n_bytes_kv, sizeof plan.n_bytes_kv);
    if (!OK(NULL, open_engine(s->model, &s->engine))) return;
    if (!OK(s->engine, dsi_engine_set_tap(s->engine, tap, outcome))) return;
    if (!OK(NULL, open_session(s->engine, &s->session))) return;
    if (append_prompt(outcome, s->session)) answer(outcome, s->session);
}
static void reset_inspect(torture_state *s) {
    close_session(s);
    close_engine(s);
}

/* ---- Timelines: a session that stays, cut and doubled ---- */

static bool open_small_session(torture_state *s) {
    if (!open_small_engine(s)) return false;
    return open_session(s->engine, &s->session) == DSI_OK || say("session");
}

/* A session that cannot be emptied is a finding of its own: the next run then starts elsewhere. */
static void reset_session(torture_state *s) {
    dsi_session_close(s->other);
    s->other = NULL;
    dsi_session_rewind(s->session, 0);
}

/* 70 tokens: a whole page and a part of one. */
static bool append_page(torture_outcome *outcome, dsi_session *session) {
    for (int i = 0; i < 3; i++)
        if (!append_prompt(outcome, session)) return false;
    static const int32_t more[10] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10};
    return OK(session, dsi_session_append(session, more, 10));
}

static void run_fork(torture_state *s, torture_outcome *outcome) {
    int32_t token;
    if (!append_page(outcome, s->session)) return;
    if (!OK(s->session, dsi_session_next(s->session, &token))) return;
    if (!OK(s->session, dsi_session_fork(s->session, &s->other))) return;
    if (!answer(outcome, s->other) || !answer(outcome, s->session)) return;
    dsi_session_close(s->other);
    s->other = NULL;
    if (!OK(s->session, dsi_session_rewind(s->session, 64))) return;
    if (!OK(s->session, dsi_session_fork(s->session, &s->other))) return;
    if (!append_prompt(outcome, s->other) || !answer(outcome, s->other)) return;
    const int32_t *tokens;
    size_t n;
    if (!OK(s->other, dsi_session_tokens(s->other, &tokens, &n))) return;
    add(outcome, tokens, n * sizeof *tokens);
}

/* ---- Sessions in files ---- */

static void saved_path(const torture_state *s, char path[80]) {
    snprintf(path, 80, "%s/session", s->folder);
}

/* The state that a run overwrites: 5 tokens. */
static bool save_old(torture_state *s) {
    static const int32_t tokens[5] = {7, 8, 9, 10, 11};
    char path[80];
    saved_path(s, path);
    return dsi_session_rewind(s->session, 0) == DSI_OK &&
           dsi_session_append(s->session, tokens, 5) == DSI_OK &&
           dsi_session_save(s->session, path) == DSI_OK &&
           dsi_session_rewind(s->session, 0) == DSI_OK;
}

static bool open_two_in_folder(torture_state *s) {
    snprintf(s->folder, sizeof s->folder, "/tmp/dsi_torture_XXXXXX");
    if (!mkdtemp(s->folder)) return false;
    if (!open_small_session(s)) return false;
    if (open_session(s->engine, &s->other) != DSI_OK) return say("session");
    return save_old(s);
}

static void run_save(torture_state *s, torture_outcome *outcome) {
    char path[80];
    const int32_t *tokens;
    size_t n;
    saved_path(s, path);
    if (!append_page(outcome, s->session) || !answer(outcome, s->session)) return;
    if (!OK(s->session, dsi_session_rewind(s->session, 71))) return;
    if (!OK(s->session, dsi_session_save(s->session, path))) return;
    if (!OK(s->other, dsi_session_restore(s->other, path))) return;
    if (!OK(s->other, dsi_session_tokens(s->other, &tokens, &n))) return;
    add(outcome, tokens, n * sizeof *tokens);
    answer(outcome, s->other);
}

/* Whatever failed: one file, and in it the old state or the new one. */
static void check_file(torture_state *s) {
    char path[80];
    size_t n_files = 0;
    saved_path(s, path);
    DIR *listing = opendir(s->folder);
    for (struct dirent *entry; listing && (entry = readdir(listing)) != NULL;)
        n_files += entry->d_name[0] != '.';
    if (listing) closedir(listing);
    dsi_status status = dsi_session_restore(s->other, path);
    const int32_t *tokens;
    size_t n = 0;
    if (status == DSI_OK) status = dsi_session_tokens(s->other, &tokens, &n);
    if (n_files == 1 && status == DSI_OK && (n == 5 || n == 71)) return;
    printf("  %zu files, %zu tokens in the saved session: %s\n", n_files, n,
           dsi_last_error(s->other));
    fflush(stdout);
    abort();
}

static void reset_save(torture_state *s) {
    dsi_session_rewind(s->other, 0);
    check_file(s);
    dsi_session_rewind(s->other, 0);
    if (!save_old(s)) abort();
}

static void remove_saved(torture_state *s) {
    char path[80];
    close_all(s);
    saved_path(s, path);
    unlink(path);
    rmdir(s->folder);
}

/* ---- Adapters ---- */

static bool open_adapted_model(torture_state *s) {
    return dsi_model_open(adapted_model, NULL, &s->model) == DSI_OK || say(adapted_model);
}

/* The first adapter of an engine makes room in its steps; a session with it answers. */
static void run_adapt(torture_state *s, torture_outcome *outcome) {
    dsi_adapter_info info = {.struct_size = sizeof info};
    dsi_session_options options;
    if (!OK(NULL, open_engine(s->model, &s->engine))) return;
    if (!OK(NULL, dsi_adapter_open(s->engine, "tests/data/adapter", NULL, &s->adapter))) return;
    if (!OK(s->adapter, dsi_adapter_get_info(s->adapter, &info))) return;
    add(outcome, info.targets, strlen(info.targets));
    dsi_session_options_init(&options);
    options.max_tokens = 3;
    options.ignore_end = 1;
    options.adapter = s->adapter;
    if (!OK(NULL, dsi_session_open(s->engine, &options, &s->session))) return;
    if (append_prompt(outcome, s->session)) answer(outcome, s->session);
}

static void reset_adapt(torture_state *s) {
    dsi_session_close(s->session);
    dsi_adapter_close(s->adapter);
    dsi_engine_close(s->engine);
    s->session = NULL;
    s->adapter = NULL;
    s->engine = NULL;
}

const torture_scenario torture_scenarios[] = {
    {"load", nothing, run_load, close_all, close_all},
    {"small", nothing, run_small, close_all, close_all},
    {"copies", nothing, run_copies, close_all, close_all},
    {"sharded", make_sharded, run_sharded, close_all, remove_folder},
    {"first", open_small_model, run_first, close_engine, close_all},
    {"allocator", set_allocator, run_small, close_all, close_all},
    {"all-in-one", nothing, run_all_in_one, close_all_in_one, close_all},
    {"tokenize", open_text_model, run_tokenize, close_session, close_all},
    {"generate", open_text_engine, run_generate, close_session, close_all},
    {"sample", open_small_engine, run_sample, close_session, close_all},
    {"fork", open_small_session, run_fork, reset_session, close_all},
    {"save", open_two_in_folder, run_save, reset_save, remove_saved},
    {"chat", open_text_session, run_chat, reset_session, close_all},
    {"stream", open_text_model, run_stream, reset_stream, close_all},
    {"restream", open_two_sessions, run_restream, reset_two_sessions, close_all},
    {"adapt", open_adapted_model, run_adapt, reset_adapt, close_all},
    {"inspect", open_small_model, run_inspect, reset_inspect, close_all},
};
const uint32_t torture_n_scenarios = sizeof torture_scenarios / sizeof torture_scenarios[0];
