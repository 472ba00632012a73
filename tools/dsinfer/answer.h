/* answer.h: one answer of the model, shown while it grows and kept; for run and chat. */
#ifndef DSINFER_TOOL_ANSWER_H
#define DSINFER_TOOL_ANSWER_H

#include "cli.h"

typedef struct cli_answer {
    const cli_options *options;
    const dsi_model *model;
    /* What the last ask brought. Texts are kept always, tokens (the items of a JSON array) with
     * --logprobs. */
    cli_bytes text, reasoning, tokens;
    dsi_generate_result result;
    uint64_t prompt_done; /* tokens computed, as far as was reported */
    bool stopped;         /* by Ctrl-C */
    /* While it runs. */
    bool in_reasoning, no_memory, wrote;
    char last; /* byte written last */
} cli_answer;

void cli_answer_free(cli_answer *answer);
/* Session options as the command line says. */
void cli_answer_options(const cli_options *options, dsi_session_options *session);
/* Computes the answer; without --json its text goes to stdout as it comes. CLI_OK also if it was
 * stopped or late (see result.finish_reason); a failure is explained. */
int cli_ask(cli_answer *answer, dsi_session *session, const dsi_message *messages,
            size_t n_messages);
/* The members of its JSON object, each with a comma in front; load_seconds below 0: none. */
void cli_answer_json(const cli_answer *answer, double load_seconds);
/* Tokens per second of an answer, the first one not counted: it belongs to the prompt. */
double cli_prefill_rate(const dsi_generate_result *result);
/* What the footer says of drafts; "" without them. */
cli_shown cli_draft_text(const dsi_generate_result *result);
double cli_decode_rate(const dsi_generate_result *result);

/* ---- Ctrl-C. The first one ends the answer that is being computed. */
enum { CLI_SECOND_ENDS_PROCESS = 0, CLI_SECOND_IS_COUNTED = 1 };
void cli_catch_interrupt(uint32_t second);
/* Two came within a second, or one while there was no answer to end. */
bool cli_wants_to_leave(void);

#endif
