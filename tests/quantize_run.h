/* quantize_run.h: dsinfer quantize run by a test, in a folder of its own; killed in the middle. */
#ifndef DSI_TESTS_QUANTIZE_RUN_H
#define DSI_TESTS_QUANTIZE_RUN_H

#include "model_files.h"

#include "cli_run.h"
#include <signal.h>

static const char TINY[] = "examples/models/tiny-gov";
static char root[64]; /* make_root, remove_root */
static const char *const nothing[2] = {NULL, NULL};

static inline cli_result quantize(const char *model, const char *form, const char *out,
                                  const char *const more[2]) {
    cli_call call = {
        .arguments = {"quantize", "-m", model, "--to", form, "--out", out, more[0], more[1]}};
    return cli_exec(&call);
}

static inline void must_make(const char *model, const char *form, const char *out,
                             const char *const more[2]) {
    cli_result r = quantize(model, form, out, more);
    if (r.code != 0) fail_msg("%s --to %s: exit %d\n%s", model, form, r.code, r.err);
    cli_result_free(&r);
}

static inline void must_refuse(const char *model, const char *form, const char *out,
                               const char *const more[2], int code, const char *part) {
    cli_result r = quantize(model, form, out, more);
    if (r.code != code || !strstr(r.err, part))
        fail_msg("exit %d, wanted %d and \"%s\":\n%s", r.code, code, part, r.err);
    cli_result_free(&r);
}

static inline void under_root(char path[256], const char *name) {
    snprintf(path, 256, "%s/%s", root, name);
}

static inline void same_files(const char *a, const char *name_a, const char *b,
                              const char *name_b) {
    bytes x = read_file(a, name_a), y = read_file(b, name_b);
    assert_int_equal(x.n, y.n);
    assert_memory_equal(x.data, y.data, x.n);
    free(x.data);
    free(y.data);
}
static inline void same_file(const char *a, const char *b, const char *name) {
    same_files(a, name, b, name);
}

/* Starts it and kills it after some microseconds, counted from when the file `from` is there if it
 * is not NULL; true if it had not ended by itself. */
static inline bool run_and_kill(const char *form, const char *out, const char *const more[2],
                                const char *from, long microseconds) {
    pid_t pid = fork();
    if (pid == 0) {
        int null = open("/dev/null", O_RDWR);
        dup2(null, 1);
        dup2(null, 2);
        execl(cli_program(), cli_program(), "quantize", "-m", TINY, "--to", form, "--out", out,
              "--threads", "2", more[0], more[1], (char *)NULL);
        _exit(127);
    }
    const struct timespec blink = {0, 1000000};
    int status = 0;
    for (int i = 0; from && i < 20000 && access(from, F_OK) != 0; i++) {
        if (waitpid(pid, &status, WNOHANG) == pid) return false;
        nanosleep(&blink, NULL);
    }
    const struct timespec pause = {microseconds / 1000000, microseconds % 1000000 * 1000};
    nanosleep(&pause, NULL);
    kill(pid, SIGKILL);
    assert_int_equal(waitpid(pid, &status, 0), pid);
    return WIFSIGNALED(status);
}

static inline int make_root(void **state) {
    (void)state;
    temp_folder(root);
    return 0;
}
static inline int remove_root(void **state) {
    (void)state;
    remove_folder(root);
    return 0;
}

#endif
