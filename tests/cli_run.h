/* cli_run.h: runs the dsinfer command in a child process and keeps what it wrote, for tests.
 *
 * The program is $DSINFER_BIN, or dsinfer in the folder $BUILD, or build/dsinfer. A child that
 * hangs is killed after two minutes. */
#ifndef DSI_TESTS_CLI_RUN_H
#define DSI_TESTS_CLI_RUN_H

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { CLI_RUN_ARGUMENTS = 48, CLI_RUN_SECONDS = 120 };

typedef struct cli_call {
    const char *arguments[CLI_RUN_ARGUMENTS]; /* without the program, up to a NULL */
    const char *input;                        /* stdin; NULL: empty */
    size_t n_input;                           /* 0: input is zero-terminated */
    const char *locale;                       /* LC_ALL; NULL: C */
    const char *stdout_path;                  /* a file opened as stdout; NULL: kept in out */
    int stdout_fd;                            /* > 0: used as stdout */
    const char *stdin_path;                   /* a file opened as stdin; NULL: input */
    unsigned long file_bytes, memory_bytes;   /* RLIMIT_FSIZE, RLIMIT_AS; 0: as they are */
    bool nobody;                              /* root becomes the user nobody */
} cli_call;

typedef struct cli_result {
    int code; /* exit code, 1000 + signal if it was killed */
    char *out, *err;
    size_t n_out, n_err;
    double seconds;
} cli_result;

static inline const char *cli_program(void) {
    static char path[4096];
    const char *program = getenv("DSINFER_BIN"), *build = getenv("BUILD");
    if (program != NULL && *program != 0) return program;
    snprintf(path, sizeof path, "%s/dsinfer", build != NULL && *build != 0 ? build : "build");
    return path;
}

/* The whole of an open temporary file, zero-terminated. */
static inline char *cli_slurp(FILE *file, size_t *n_bytes) {
    fseek(file, 0, SEEK_END);
    long size = ftell(file);
    rewind(file);
    char *text = calloc((size_t)size + 1, 1);
    *n_bytes = text == NULL ? 0 : fread(text, 1, (size_t)size, file);
    return text;
}

static inline void cli_child(const cli_call *call, int in, int out, int err) {
    const char *argv[CLI_RUN_ARGUMENTS + 2] = {cli_program()};
    for (size_t i = 0; i < CLI_RUN_ARGUMENTS && call->arguments[i] != NULL; i++) {
        argv[i + 1] = call->arguments[i];
    }
    setenv("LC_ALL", call->locale == NULL ? "C" : call->locale, 1);
    if (call->stdout_path != NULL) out = open(call->stdout_path, O_WRONLY);
    if (call->stdout_fd > 0) out = call->stdout_fd;
    if (call->stdin_path != NULL) in = open(call->stdin_path, O_RDONLY);
    if (dup2(in, 0) < 0 || dup2(out, 1) < 0 || dup2(err, 2) < 0) _exit(126);
    alarm(CLI_RUN_SECONDS);
    struct rlimit file = {call->file_bytes, call->file_bytes};
    struct rlimit memory = {call->memory_bytes, call->memory_bytes};
    if (call->file_bytes != 0 && setrlimit(RLIMIT_FSIZE, &file) != 0) _exit(125);
    if (call->memory_bytes != 0 && setrlimit(RLIMIT_AS, &memory) != 0) _exit(125);
    if (call->nobody && geteuid() == 0 && setuid(65534) != 0) _exit(125);
    execv(argv[0], (char *const *)(void *)argv);
    _exit(127);
}

static inline cli_result cli_exec(const cli_call *call) {
    cli_result result = {.code = -1};
    FILE *in = tmpfile(), *out = tmpfile(), *err = tmpfile();
    if (in == NULL || out == NULL || err == NULL) abort();
    if (call->input != NULL) {
        fwrite(call->input, 1, call->n_input != 0 ? call->n_input : strlen(call->input), in);
    }
    rewind(in); /* flushes, and the child shares the position */
    struct timespec begin, end;
    clock_gettime(CLOCK_MONOTONIC, &begin);
    fflush(NULL);
    pid_t pid = fork();
    if (pid == 0) cli_child(call, fileno(in), fileno(out), fileno(err));
    int status = 0;
    while (waitpid(pid, &status, 0) < 0 && errno == EINTR) {
    }
    clock_gettime(CLOCK_MONOTONIC, &end);
    result.seconds =
        (double)(end.tv_sec - begin.tv_sec) + 1e-9 * (double)(end.tv_nsec - begin.tv_nsec);
    result.code = WIFEXITED(status) ? WEXITSTATUS(status) : 1000 + WTERMSIG(status);
    result.out = cli_slurp(out, &result.n_out);
    result.err = cli_slurp(err, &result.n_err);
    fclose(in);
    fclose(out);
    fclose(err);
    return result;
}

static inline void cli_result_free(cli_result *result) {
    free(result->out);
    free(result->err);
}

#endif
