/* 04_event_loop.c: answers inside an event loop. One poll() waits for questions on stdin, a line
 * each, and for the events of up to four answers at once; each is printed when it is complete.
 * Ctrl-C ends the running answers, the end of the input ends the program. */
#define _POSIX_C_SOURCE 200809L
#include <deepseek/dsinfer.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

enum { N_PLACES = 4, MAX_LINE = 4096, MAX_ANSWER = 16384 };

static struct place {
    dsi_session *session;
    dsi_stream *volatile stream; /* NULL: this place is free */
    char text[MAX_ANSWER];       /* n_bytes of it */
    size_t n_bytes;
} places[N_PLACES];

static void on_interrupt(int number) {
    (void)number;
    for (int i = 0; i < N_PLACES; i++) dsi_stream_cancel(places[i].stream); /* safe in a handler */
}

/* Takes what waits, without waiting for more. */
static void take_events(struct place *p) {
    dsi_event event = {.struct_size = sizeof event};
    while (p->stream && dsi_stream_next(p->stream, 0, &event) == DSI_OK) {
        if (event.kind == DSI_EVENT_TEXT && event.part == DSI_PART_ANSWER) {
            size_t room = MAX_ANSWER - p->n_bytes, n = event.n_bytes < room ? event.n_bytes : room;
            memcpy(p->text + p->n_bytes, event.text, n);
            p->n_bytes += n;
        } else if (event.kind == DSI_EVENT_DONE) {
            dsi_stream *done = p->stream;
            printf("%.*s\n", (int)p->n_bytes, p->text);
            if (event.status != DSI_OK) fprintf(stderr, "%s\n", dsi_last_error(done));
            p->stream = NULL; /* before the close: the handler may come in between */
            dsi_stream_close(done);
        }
    }
}

/* Asks what is there in whole lines, as long as a place is free; returns the bytes left. */
static size_t ask_lines(char *input, size_t n) {
    char *end;
    for (struct place *p = places; p < places + N_PLACES; p++)
        while (!p->stream && (end = memchr(input, '\n', n))) {
            dsi_message line = {sizeof line, DSI_ROLE_USER, input, (size_t)(end - input)};
            dsi_stream *stream = NULL;
            if (line.n_bytes &&
                dsi_stream_open(p->session, &line, 1, DSI_THINK_AUTO, &stream) != DSI_OK)
                fprintf(stderr, "%s\n", dsi_last_error(p->session));
            p->n_bytes = 0, p->stream = stream;
            n -= line.n_bytes + 1;
            memmove(input, end + 1, n);
        }
    return n == MAX_LINE && !memchr(input, '\n', n) ? 0 : n; /* a line too long is left out */
}

static void loop(void) {
    static char input[MAX_LINE];
    size_t n_input = 0;
    for (int is_open = 1, n_running = 0; is_open || n_running;) {
        struct pollfd fds[N_PLACES + 1]; /* poll passes over descriptors below 0 */
        for (int i = 0; i < N_PLACES; i++)
            fds[i] = (struct pollfd){dsi_stream_fd(places[i].stream), POLLIN, 0};
        fds[N_PLACES] = (struct pollfd){is_open && n_running < N_PLACES ? 0 : -1, POLLIN, 0};
        if (poll(fds, N_PLACES + 1, -1) < 0) continue; /* a signal came */
        for (int i = 0; i < N_PLACES; i++) take_events(&places[i]);
        if (fds[N_PLACES].revents) {
            ssize_t n = read(0, input + n_input, MAX_LINE - n_input);
            is_open = n > 0;
            if (!is_open) input[n_input] = '\n'; /* of a last line without one */
            n_input += is_open ? (size_t)n : 1;
        }
        n_input = ask_lines(input, n_input);
        for (int i = n_running = 0; i < N_PLACES; i++) n_running += places[i].stream != NULL;
    }
}

int main(int argc, char **argv) {
    if (argc != 2) return fprintf(stderr, "usage: %s FOLDER <QUESTIONS\n", argv[0]), 2;
    dsi_model *model = NULL;
    dsi_engine *engine = NULL;
    struct sigaction action = {.sa_handler = on_interrupt};
    sigaction(SIGINT, &action, NULL);
    setvbuf(stdout, NULL, _IOLBF, 0); /* answers leave at once, into a pipe too */
    dsi_status status = dsi_model_open(argv[1], NULL, &model);
    if (status == DSI_OK) status = dsi_engine_open(model, NULL, &engine);
    for (int i = 0; status == DSI_OK && i < N_PLACES; i++)
        status = dsi_session_open(engine, NULL, &places[i].session);
    if (status == DSI_OK) loop();
    if (status != DSI_OK) fprintf(stderr, "%s\n", dsi_last_error(NULL));
    for (int i = 0; i < N_PLACES; i++) dsi_session_close(places[i].session);
    dsi_engine_close(engine), dsi_model_close(model);
    return status == DSI_OK ? 0 : 1;
}
