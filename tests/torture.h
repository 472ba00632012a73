/* torture.h: every call of the library to the operating system fails in turn, in every scenario.
 *
 * A scenario runs once without a fault, which gives the reference answer and counts its calls.
 * Then, for every N, it runs with the N-th call failing: once; from the N-th on; from the N-th of
 * one kind on; interrupted; short. Each such injection must end in an error with a message of its
 * own or in the reference answer; what it opened must close; nothing may stay behind (blocks,
 * descriptors, threads, mappings); and the same handles must then give the reference answer without
 * a fault. */
#ifndef DSI_TESTS_TORTURE_H
#define DSI_TESTS_TORTURE_H

#include <deepseek/dsinfer.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* What a scenario keeps between its runs. */
typedef struct torture_state {
    dsi_model *model;
    dsi_engine *engine;
    dsi_session *session, *other;
    dsi_stream *stream, *other_stream;
    dsi_adapter *adapter;
    char folder[64]; /* of files the scenario makes, "" if none */
} torture_state;

/* What a run came to: an error, or all it has answered as a hash. */
typedef struct torture_outcome {
    dsi_status status;
    char message[1024];
    const char *failed_call;
    uint64_t hash;
} torture_outcome;

typedef struct torture_scenario {
    const char *name;
    /* Opens what outlives a run; false: a message was printed. */
    bool (*prepare)(torture_state *state);
    /* One pass, with the fault armed. Stops at the first error. */
    void (*run)(torture_state *state, torture_outcome *outcome);
    /* Closes what `run` opened and puts the rest back to where run begins. */
    void (*reset)(torture_state *state);
    /* Closes all. */
    void (*finish)(torture_state *state);
} torture_scenario;

extern const torture_scenario torture_scenarios[];
extern const uint32_t torture_n_scenarios;

typedef struct torture_options {
    const torture_scenario *scenarios; /* NULL: torture_scenarios */
    uint32_t n_scenarios;
    double seconds;    /* an injection that takes longer hangs; 0: 60 */
    const char *only;  /* one scenario, NULL: all */
    uint64_t n_sample; /* about so many injections of each scenario, drawn with seed; 0: all */
    uint64_t seed;
    bool verbose; /* a line for each injection */
    bool quiet;   /* no line at all */
} torture_options;

/* Prints a line per scenario and what failed; the number of injections that passed and failed. */
void torture_run(const torture_options *options, uint64_t *n_passed, uint64_t *n_failed);

#endif
