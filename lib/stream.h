/* stream.h: what is behind dsi_stream, for stream.c (the calls), events.c (the queue) and runner.c
 * (the engine's own thread). */
#ifndef DSI_LIB_STREAM_H
#define DSI_LIB_STREAM_H

#include "internal.h"

/* ---- A bounded queue of events (events.c) ------------------------------------------------------
 * Not for several threads: the runner's lock guards it. Text that nobody has read yet grows as one
 * event. DONE has a place of its own and always fits. */
enum { DSI_QUEUE_EVENTS = 64 };
typedef struct dsi_queued_event {
    uint32_t kind, part, n_bytes, n_top;
    int32_t token;
    float logprob;
    uint64_t done, total;
} dsi_queued_event;
typedef struct dsi_event_queue {
    dsi_queued_event events[DSI_QUEUE_EVENTS]; /* a ring of n from `first` on */
    uint32_t first, n;
    char *text; /* a ring of bytes, those of all queued events in their order */
    uint32_t max_bytes, first_byte, n_bytes;
    uint32_t max_step_bytes; /* what the events of one step can have */
    uint32_t max_top;
    dsi_token_logprob *top;     /* [DSI_QUEUE_EVENTS][max_top] */
    char *out_text;             /* [max_bytes] of the event handed out last */
    dsi_token_logprob *out_top; /* [max_top] */
    bool done, done_taken;
    dsi_status status;
    dsi_generate_result result;
} dsi_event_queue;
/* max_token_bytes: of the longest token; max_top: likeliest tokens in a TOKEN event. */
dsi_status dsi_queue_init(dsi_event_queue *queue, uint32_t max_token_bytes, uint32_t max_top,
                          dsi_error *error);
void dsi_queue_free(dsi_event_queue *queue);
/* There is room for the events of a step, and of the end after it. */
bool dsi_queue_has_room(const dsi_event_queue *queue);
void dsi_queue_put(dsi_event_queue *queue, const dsi_event *event);
/* Events that wait, DONE included. */
uint32_t dsi_queue_n_waiting(const dsi_event_queue *queue);
/* The oldest one; what it points to lives until the next call. Only if one waits. */
void dsi_queue_take(dsi_event_queue *queue, dsi_event *event);

/* ---- Streams (stream.c) ---------------------------------------------------------------------- */

typedef struct dsi_runner dsi_runner;

struct dsi_stream {
    dsi_handle handle; /* for the caller's thread alone */
    dsi_runner *runner;
    int fd;
    _Atomic uint32_t cancelled;
    pthread_cond_t moved; /* an event came */
    /* guarded by the runner's lock */
    dsi_event_queue queue;
    bool busy;        /* in the running step: the runner uses stream and session without the lock */
    bool ready;       /* there was room in the queue when the runner looked */
    dsi_stream *next; /* the one opened after it */
    dsi_session *session; /* NULL once the session was closed */
    /* the runner's, between the opening of the stream and its DONE */
    dsi_answer answer;
    dsi_error error; /* where the work on the session leaves its messages */
    uint64_t age;    /* 1, 2, ... in the order of opening */
    bool admitted;   /* its session holds pages for what is queued */
    bool done;
};
void dsi_stream_hear(void *stream, const dsi_event *event);

/* ---- The engine's own thread (runner.c) ------------------------------------------------------ */

struct dsi_runner {
    int64_t process; /* in a child of fork() the thread is missing and the locks may be held */
    pthread_mutex_t lock;  /* never held while a step runs, and never together with the engine's */
    pthread_cond_t let_go; /* the runner has finished what it does without the lock */
    int wake_fd;           /* an eventfd: dsi_stream_cancel may be called in a signal handler */
    dsi_engine *engine;
    pthread_t thread;
    uint32_t max_token_bytes;
    uint32_t max_chosen; /* streams in one step */
    dsi_stream **chosen; /* [max_chosen] those of the running step */
    dsi_session **batch; /* [max_chosen] their sessions */
    uint32_t n_chosen;
    uint64_t last_served; /* age of the last stream that had its turn when there were too many */
    /* guarded by lock */
    uint32_t n_holders;            /* the engine and every open stream; the last one frees */
    bool stop;                     /* the engine is being closed */
    bool planning;                 /* the runner walks the list without the lock */
    dsi_stream *streams, *arrived; /* all by age; those the runner has not seen yet */
    uint64_t n_opened;
};
/* The runner of the engine, started if there is none; the caller holds it from now on. */
dsi_status dsi_runner_hold(dsi_engine *engine, dsi_runner **runner, dsi_error *error);
void dsi_runner_release(dsi_runner *runner);
void dsi_runner_wake(const dsi_runner *runner);
void dsi_runner_add(dsi_runner *runner, dsi_stream *stream);
/* Returns when the runner no longer uses the stream nor its session. */
void dsi_runner_remove(dsi_runner *runner, dsi_stream *stream);

#endif
