/* 03_sessions.c: the loop in your own hands. The tickets of the command line go through the model
 * together, one batch a step. Each answer is led to the point of decision by its own beginning;
 * there the session is forked, and the likeliest first tokens are followed to the end of the word.
 */
#include <deepseek/dsinfer.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

enum { MAX_TICKETS = 8, N_FORKS = 3, MAX_TOKENS = 1024 };
static const char beginning[] = "{\"类别\": \""; /* the next word is the category */

/* Says why a call on `handle` failed. */
static dsi_status check(dsi_status status, const void *handle) {
    if (status != DSI_OK) fprintf(stderr, "%s\n", dsi_last_error(handle));
    return status;
}

/* Queues the ticket as a chat prompt, and behind it the beginning of the answer. */
static dsi_status ask(dsi_model *model, dsi_session *session, const char *ticket) {
    dsi_message message = {sizeof message, DSI_ROLE_USER, ticket, strlen(ticket)};
    int32_t tokens[MAX_TOKENS];
    size_t n = 0, n_more = 0;
    dsi_status st = dsi_chat_tokens(model, &message, 1, DSI_THINK_OFF, tokens, MAX_TOKENS, &n);
    if (st == DSI_OK)
        st = dsi_tokenize(model, beginning, strlen(beginning), DSI_TOKENIZE_PLAIN, tokens + n,
                          MAX_TOKENS - n, &n_more);
    if (check(st, NULL) != DSI_OK) return st; /* these two have no handle of their own */
    return check(dsi_session_append(session, tokens, n + n_more), session);
}

/* Computes all that is queued, in batches, then samples one token of each session. */
static dsi_status advance(dsi_engine *engine, dsi_session **sessions, size_t n, size_t *n_running) {
    dsi_status st = DSI_OK;
    *n_running = 0;
    for (size_t n_rows = 1; st == DSI_OK && n_rows > 0;)
        st = check(dsi_engine_step(engine, sessions, n, &n_rows), engine);
    for (size_t i = 0; st == DSI_OK && i < n; i++) {
        int32_t token; /* -1: this session is finished */
        st = check(dsi_session_sample(sessions[i], &token), sessions[i]);
        *n_running += dsi_session_finish(sessions[i]) == DSI_FINISH_NONE;
    }
    return st;
}

/* A session for each of the likeliest tokens, in place of the one that was sampled. */
static dsi_status fork_it(dsi_session *session, dsi_session **forks, float *logprobs) {
    const dsi_token_logprob *top;
    dsi_status st = check(dsi_session_logprobs(session, &logprobs[0], &top, NULL), session);
    for (int i = 0; st == DSI_OK && i < N_FORKS; i++) {
        st = check(dsi_session_fork(session, &forks[i]), session);
        if (st == DSI_OK) st = dsi_session_rewind(forks[i], dsi_session_n_tokens(session));
        if (st == DSI_OK) st = check(dsi_session_append(forks[i], &top[i].token, 1), forks[i]);
        logprobs[i] = top[i].logprob;
    }
    return st;
}

/* The word behind the first n_before tokens, and the probability of its first token. */
static void print_word(dsi_model *model, dsi_session *fork, size_t n_before, float logprob) {
    const int32_t *tokens;
    char text[256] = "";
    size_t n;
    if (dsi_session_tokens(fork, &tokens, &n) == DSI_OK) /* the rest of `text` stays 0 */
        check(dsi_detokenize(model, tokens + n_before, n - n_before, text, 255, NULL), NULL);
    printf("  %5.1f %% %.*s\n", 100 * exp(logprob), (int)strcspn(text, "\""), text);
}

int main(int argc, char **argv) {
    size_t n = argc > 2 ? (size_t)argc - 2 : 0, n_forks = N_FORKS * n, n_running = 1;
    if (!n || n > MAX_TICKETS) return fprintf(stderr, "usage: %s FOLDER TICKET ...\n", argv[0]), 2;
    dsi_model *model = NULL;
    dsi_engine *engine = NULL;
    dsi_session *sessions[MAX_TICKETS] = {0}, *forks[MAX_TICKETS * N_FORKS] = {0};
    float logprobs[MAX_TICKETS * N_FORKS];
    dsi_engine_options eo;
    dsi_session_options so;
    dsi_engine_options_init(&eo), dsi_session_options_init(&so);
    eo.max_sessions = MAX_TICKETS * N_FORKS, so.logprobs = 1, so.top_logprobs = N_FORKS;
    so.n_stop = 1, so.stop = (const char *[]){"\""}; /* the word ends there */
    dsi_status st = check(dsi_model_open(argv[1], NULL, &model), NULL);
    if (st == DSI_OK) st = check(dsi_engine_open(model, &eo, &engine), NULL);
    for (size_t i = 0; st == DSI_OK && i < n; i++) {
        st = check(dsi_session_open(engine, &so, &sessions[i]), NULL);
        if (st == DSI_OK) st = ask(model, sessions[i], argv[i + 2]);
    }
    if (st == DSI_OK) st = advance(engine, sessions, n, &n_running);
    for (size_t i = 0; st == DSI_OK && i < n; i++)
        st = fork_it(sessions[i], forks + N_FORKS * i, logprobs + N_FORKS * i);
    while (st == DSI_OK && n_running) st = advance(engine, forks, n_forks, &n_running);
    for (size_t i = 0; st == DSI_OK && i < n_forks; i++) {
        if (i % N_FORKS == 0) printf("%s\n", argv[2 + i / N_FORKS]);
        print_word(model, forks[i], dsi_session_n_tokens(sessions[i / N_FORKS]), logprobs[i]);
    }
    for (size_t i = 0; i < n_forks; i++) dsi_session_close(forks[i]);
    for (size_t i = 0; i < n; i++) dsi_session_close(sessions[i]);
    dsi_engine_close(engine), dsi_model_close(model);
    return st == DSI_OK ? 0 : 1;
}
