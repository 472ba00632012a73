/* 02_stream.c: one answer as events, taken one by one: how far the prompt is, the text while it
 * grows, and the figures at the end. The answer goes to stdout, all else to stderr. */
#include <deepseek/dsinfer.h>
#include <stdio.h>
#include <string.h>

static void print_figures(const dsi_generate_result *r) {
    double prefill = r->prefill_seconds, decode = r->decode_seconds;
    fprintf(stderr,
            "\nfirst token after %.3f s; prompt: %u tokens, %.0f/s; answer: %u tokens, %.0f/s\n",
            r->first_token_seconds, r->n_tokens_in, prefill > 0 ? r->n_tokens_in / prefill : 0,
            r->n_tokens_out, decode > 0 ? r->n_tokens_out / decode : 0);
}

/* Prints events until the answer is complete. */
static dsi_status print_answer(dsi_stream *stream) {
    dsi_event event = {.struct_size = sizeof event};
    for (;;) {
        dsi_status status = dsi_stream_next(stream, -1, &event); /* waits */
        if (status != DSI_OK) return status;
        switch (event.kind) {
        case DSI_EVENT_PROGRESS:
            fprintf(stderr, "prompt: %llu of %llu tokens\n", (unsigned long long)event.done,
                    (unsigned long long)event.total);
            break;
        case DSI_EVENT_TEXT:
            fwrite(event.text, 1, event.n_bytes, event.part == DSI_PART_ANSWER ? stdout : stderr);
            fflush(stdout);
            break;
        case DSI_EVENT_DONE:
            print_figures(&event.result);
            return event.status;
        }
    }
}

int main(int argc, char **argv) {
    if (argc != 3) return fprintf(stderr, "usage: %s FOLDER PROMPT\n", argv[0]), 2;
    dsi_session *session = NULL;
    dsi_stream *stream = NULL;
    dsi_message message = {sizeof message, DSI_ROLE_USER, argv[2], strlen(argv[2])};
    dsi_status status = dsi_open(argv[1], &session);
    if (status == DSI_OK) status = dsi_stream_open(session, &message, 1, DSI_THINK_AUTO, &stream);
    if (status != DSI_OK) {
        fprintf(stderr, "%s\n", dsi_last_error(session)); /* of this thread, if it is NULL */
    } else {
        status = print_answer(stream);
        if (status != DSI_OK) fprintf(stderr, "%s\n", dsi_last_error(stream));
    }
    dsi_stream_close(stream);
    dsi_close(session);
    return status == DSI_OK ? 0 : 1;
}
