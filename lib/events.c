/* events.c: the bounded queue between the thread that computes an answer and the one that reads it.
 * Everything has its room from the start: nothing is allocated per event. */
#include "stream.h"

/* What one step can add: a TOKEN, TEXT in either part, a PROGRESS; and the end after it: TEXT. */
enum { STEP_EVENTS = 4, END_EVENTS = 2, MIN_BYTES = 8192 };

dsi_status dsi_queue_init(dsi_event_queue *q, uint32_t max_token_bytes, uint32_t max_top,
                          dsi_error *error) {
    *q = (dsi_event_queue){.max_top = max_top};
    /* The bytes of the token, and the text it sets free: three bytes for one that is broken. */
    uint64_t step = 4ull * max_token_bytes + DSI_ANSWER_MAX_HELD, most = 4 * step;
    if (most > UINT32_MAX / 2)
        return dsi_fail(error, DSI_E_MODEL, "the longest token of the tokenizer has %u bytes",
                        max_token_bytes);
    q->max_step_bytes = (uint32_t)step;
    q->max_bytes = most > MIN_BYTES ? (uint32_t)most : MIN_BYTES;
    q->text = dsi_sys_calloc(q->max_bytes, 1);
    q->out_text = dsi_sys_calloc(q->max_bytes, 1);
    q->top = dsi_sys_calloc((uint64_t)DSI_QUEUE_EVENTS * max_top, sizeof *q->top);
    q->out_top = dsi_sys_calloc(max_top, sizeof *q->out_top);
    if (q->text && q->out_text && q->top && q->out_top) return DSI_OK;
    dsi_queue_free(q);
    return dsi_fail(error, DSI_E_NOMEM, "no memory for the events of a stream");
}

void dsi_queue_free(dsi_event_queue *q) {
    dsi_sys_free(q->text);
    dsi_sys_free(q->out_text);
    dsi_sys_free(q->top);
    dsi_sys_free(q->out_top);
    *q = (dsi_event_queue){0};
}

bool dsi_queue_has_room(const dsi_event_queue *q) {
    return q->n + STEP_EVENTS + END_EVENTS <= DSI_QUEUE_EVENTS &&
           q->n_bytes + q->max_step_bytes + DSI_ANSWER_MAX_HELD <= q->max_bytes;
}

uint32_t dsi_queue_n_waiting(const dsi_event_queue *q) {
    return q->n + (q->done && !q->done_taken);
}

static void put_bytes(dsi_event_queue *q, const char *text, uint32_t n) {
    uint32_t at = (q->first_byte + q->n_bytes) % q->max_bytes, to_end = q->max_bytes - at;
    uint32_t n_first = n < to_end ? n : to_end;
    if (n_first) memcpy(q->text + at, text, n_first);
    if (n > n_first) memcpy(q->text, text + n_first, n - n_first);
    q->n_bytes += n;
}

/* Has the last queued event become longer, or newer, instead of a further one? */
static bool grow_last(dsi_event_queue *q, const dsi_event *event) {
    if (!q->n) return false;
    dsi_queued_event *last = &q->events[(q->first + q->n - 1) % DSI_QUEUE_EVENTS];
    if (last->kind != event->kind) return false;
    if (event->kind == DSI_EVENT_PROGRESS) {
        last->done = event->done;
        return true;
    }
    if (event->kind != DSI_EVENT_TEXT || last->part != event->part) return false;
    put_bytes(q, event->text, (uint32_t)event->n_bytes);
    last->n_bytes += (uint32_t)event->n_bytes;
    return true;
}

void dsi_queue_put(dsi_event_queue *q, const dsi_event *event) {
    if (event->kind == DSI_EVENT_DONE) {
        q->done = true;
        q->status = event->status;
        q->result = event->result;
        return;
    }
    if (grow_last(q, event)) return;
    uint32_t at = (q->first + q->n++) % DSI_QUEUE_EVENTS;
    uint32_t n_top = event->n_top < q->max_top ? event->n_top : q->max_top;
    q->events[at] = (dsi_queued_event){.kind = event->kind,
                                       .part = event->part,
                                       .n_bytes = (uint32_t)event->n_bytes,
                                       .n_top = n_top,
                                       .token = event->token,
                                       .logprob = event->logprob,
                                       .done = event->done,
                                       .total = event->total};
    if (n_top) memcpy(q->top + (uint64_t)at * q->max_top, event->top, n_top * sizeof *q->top);
    put_bytes(q, event->text, (uint32_t)event->n_bytes);
}

static void take_bytes(dsi_event_queue *q, uint32_t n) {
    uint32_t to_end = q->max_bytes - q->first_byte, n_first = n < to_end ? n : to_end;
    memcpy(q->out_text, q->text + q->first_byte, n_first);
    memcpy(q->out_text + n_first, q->text, n - n_first);
    q->first_byte = (q->first_byte + n) % q->max_bytes;
    q->n_bytes -= n;
}

void dsi_queue_take(dsi_event_queue *q, dsi_event *event) {
    *event = (dsi_event){.struct_size = sizeof *event, .token = -1, .text = ""};
    if (!q->n) {
        event->kind = DSI_EVENT_DONE;
        event->status = q->status;
        event->result = q->result;
        q->done_taken = true;
        return;
    }
    const dsi_queued_event *e = &q->events[q->first];
    take_bytes(q, e->n_bytes);
    if (e->n_top)
        memcpy(q->out_top, q->top + (uint64_t)q->first * q->max_top, e->n_top * sizeof *q->top);
    event->kind = e->kind;
    event->part = e->part;
    event->token = e->token;
    event->text = q->out_text;
    event->n_bytes = e->n_bytes;
    event->done = e->done;
    event->total = e->total;
    event->top = e->n_top ? q->out_top : NULL;
    event->n_top = e->n_top;
    event->logprob = e->logprob;
    q->first = (q->first + 1) % DSI_QUEUE_EVENTS;
    q->n--;
}
