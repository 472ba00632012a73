/* terminal.h: a program on a pseudo-terminal, for tests: what is typed, what the screen received.
 */
#ifndef DSI_TESTS_TERMINAL_H
#define DSI_TESTS_TERMINAL_H

#include "cli_run.h"
#include <poll.h>
#include <signal.h>

enum { TERMINAL_ROOM = 1 << 20, TERMINAL_SECONDS = 30 };

typedef struct terminal {
    int fd;
    pid_t pid;
    char *text; /* all that was received */
    size_t n_bytes, seen;
} terminal;

static inline double terminal_now(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

/* false: no pseudo-terminal to be had (a bare chroot). The program leads a session of its own, so
 * that Ctrl-C becomes a signal. */
static inline bool terminal_start(terminal *t, const char *term, const char *const *arguments) {
    t->fd = posix_openpt(O_RDWR | O_NOCTTY);
    if (t->fd < 0) return false;
    if (grantpt(t->fd) != 0 || unlockpt(t->fd) != 0) abort();
    const char *name = ptsname(t->fd);
    fcntl(t->fd, F_SETFL, O_RDWR | O_NONBLOCK);
    t->n_bytes = t->seen = 0;
    t->text = calloc(TERMINAL_ROOM, 1);
    if (t->text == NULL) abort();
    fflush(NULL);
    t->pid = fork();
    if (t->pid == 0) {
        setsid();
        int side = open(name, O_RDWR); /* becomes the controlling terminal */
        cli_call call = {.arguments = {NULL}};
        for (size_t i = 0; arguments[i] != NULL; i++) call.arguments[i] = arguments[i];
        setenv("TERM", term, 1);
        close(t->fd);
        cli_child(&call, side, side, side);
    }
    return true;
}

/* Reads for a moment; false once the program has closed its side. */
static inline bool terminal_read(terminal *t, int milliseconds) {
    struct pollfd wait = {.fd = t->fd, .events = POLLIN};
    if (poll(&wait, 1, milliseconds) != 1) return true;
    ssize_t n = read(t->fd, t->text + t->n_bytes, TERMINAL_ROOM - 1 - t->n_bytes);
    if (n > 0) t->n_bytes += (size_t)n;
    return n > 0;
}

/* Waits until `wanted` appears behind what was waited for before; false if it does not. */
static inline bool terminal_expect(terminal *t, const char *wanted) {
    double end = terminal_now() + TERMINAL_SECONDS;
    for (;;) {
        const char *found = strstr(t->text + t->seen, wanted);
        if (found != NULL) {
            t->seen = (size_t)(found - t->text) + strlen(wanted);
            return true;
        }
        if (terminal_now() > end || !terminal_read(t, 100)) break;
    }
    const char *last = strstr(t->text + t->seen, wanted);
    if (last == NULL) fprintf(stderr, "no \"%s\" in: %.1500s\n", wanted, t->text + t->seen);
    return last != NULL;
}

/* Reads what comes meanwhile: a program that waits to write would not read either. */
static inline bool terminal_type(terminal *t, const char *text) {
    double end = terminal_now() + TERMINAL_SECONDS;
    for (size_t n = strlen(text); n > 0 && terminal_now() < end;) {
        struct pollfd wait = {.fd = t->fd, .events = POLLIN | POLLOUT};
        if (poll(&wait, 1, 100) != 1) continue;
        if ((wait.revents & POLLIN) != 0 && !terminal_read(t, 0)) return false;
        ssize_t n_written = (wait.revents & POLLOUT) == 0 ? 0 : write(t->fd, text, n);
        if (n_written < 0 && errno != EAGAIN) return false;
        if (n_written > 0) text += n_written, n -= (size_t)n_written;
        if (n == 0) return true;
    }
    return false;
}

/* Reads to the end; exit code of the program, or 1000 + the signal that ended it. */
static inline int terminal_end(terminal *t) {
    int status = 0;
    double end = terminal_now() + TERMINAL_SECONDS;
    while (terminal_read(t, 100) && terminal_now() < end) {
    }
    if (terminal_now() >= end) kill(t->pid, SIGKILL);
    waitpid(t->pid, &status, 0);
    close(t->fd);
    free(t->text);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 1000 + WTERMSIG(status);
}

#endif
