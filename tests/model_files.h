/* model_files.h: for tests that make checkpoint folders: temporary folders, small safetensors
 * files, copies of the golden checkpoints with a change. */
#ifndef DSI_TESTS_MODEL_FILES_H
#define DSI_TESTS_MODEL_FILES_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "../lib/model/model.h"
#include <ftw.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

typedef struct bytes { /* zero-terminated behind n */
    char *data;
    size_t n;
} bytes;

/* A new folder in memory where the system has such a place. */
static inline void temp_folder(char folder[64]) {
    snprintf(folder, 64, "%s/dsi-model-XXXXXX",
             access("/dev/shm", W_OK) == 0 ? "/dev/shm" : "/tmp");
    assert_non_null(mkdtemp(folder));
}

static inline int remove_entry(const char *path, const struct stat *info, int type,
                               struct FTW *place) {
    (void)info, (void)type, (void)place;
    return remove(path);
}
static inline void remove_folder(const char *folder) {
    assert_int_equal(nftw(folder, remove_entry, 16, FTW_DEPTH | FTW_PHYS), 0);
}

static inline void write_file(const char *folder, const char *name, const void *data, size_t n) {
    char path[512];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    unlink(path); /* it may be a link to a golden file */
    FILE *file = fopen(path, "wb");
    assert_non_null(file);
    assert_int_equal(fwrite(data, 1, n, file), n);
    assert_int_equal(fclose(file), 0);
}
static inline void write_text(const char *folder, const char *name, const char *text) {
    write_file(folder, name, text, strlen(text));
}

static inline bytes read_file(const char *folder, const char *name) {
    char path[512];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    FILE *file = fopen(path, "rb");
    assert_non_null(file);
    fseek(file, 0, SEEK_END);
    bytes b = {.n = (size_t)ftell(file)};
    rewind(file);
    b.data = calloc(b.n + 1, 1);
    assert_non_null(b.data);
    assert_int_equal(fread(b.data, 1, b.n, file), b.n);
    fclose(file);
    return b;
}

static inline void link_file(const char *from_folder, const char *folder, const char *name) {
    char from[512], real[4096], to[512];
    snprintf(from, sizeof from, "%s/%s", from_folder, name);
    snprintf(to, sizeof to, "%s/%s", folder, name);
    assert_non_null(realpath(from, real));
    unlink(to);
    assert_int_equal(symlink(real, to), 0);
}

/* `text` with the first `from` replaced by `to`; the caller frees it. */
static inline char *replaced(const char *text, const char *from, const char *to) {
    const char *at = strstr(text, from);
    if (!at) fail_msg("\"%s\" is not there to be replaced", from);
    size_t n = strlen(text) - strlen(from) + strlen(to) + 1;
    char *out = malloc(n);
    assert_non_null(out);
    snprintf(out, n, "%.*s%s%s", (int)(at - text), text, to, at + strlen(from));
    return out;
}

/* A file of the given JSON header and n_data bytes 0, 1, 2, ... */
static inline void write_safetensors(const char *folder, const char *name, const char *json,
                                     size_t n_data) {
    size_t n = strlen(json);
    uint8_t *data = calloc(8 + n + n_data, 1);
    assert_non_null(data);
    for (int i = 0; i < 8; i++) data[i] = (uint8_t)(n >> (8 * i));
    memcpy(data + 8, json, n);
    for (size_t i = 0; i < n_data; i++) data[8 + n + i] = (uint8_t)i;
    write_file(folder, name, data, 8 + n + n_data);
    free(data);
}

/* A checkpoint in golden format whose header text had one change; the tensor bytes follow. */
static inline void write_changed_header(const char *source, const char *folder, const char *from,
                                        const char *to) {
    bytes file = read_file(source, "model.safetensors");
    uint64_t n = 0;
    for (int i = 7; i >= 0; i--) n = n << 8 | (uint8_t)file.data[i];
    char *header = strndup(file.data + 8, n), *changed = replaced(header, from, to);
    size_t n_changed = strlen(changed), n_data = file.n - 8 - n;
    char *whole = malloc(8 + n_changed + n_data);
    assert_non_null(whole);
    for (int i = 0; i < 8; i++) whole[i] = (char)(n_changed >> (8 * i));
    memcpy(whole + 8, changed, n_changed);
    memcpy(whole + 8 + n_changed, file.data + 8 + n, n_data);
    write_file(folder, "model.safetensors", whole, 8 + n_changed + n_data);
    free(whole);
    free(changed);
    free(header);
    free(file.data);
}

/* The call failed with `status` and the text names the file and the reason. */
static inline void assert_refused(dsi_status got, const dsi_error *error, dsi_status status,
                                  const char *file, const char *reason) {
    if (got != status || error->status != status || !strstr(error->text, file) ||
        !strstr(error->text, reason))
        fail_msg("wanted %d naming %s: %s\n   got %d: %s", status, file, reason, got,
                 got ? error->text : "(no error)");
}
/* cmocka's assert_float_equal compares floats. */
static inline void near(const char *what, double is, double wanted, double tolerance) {
    double gap = is > wanted ? is - wanted : wanted - is;
    if (!(gap <= tolerance)) fail_msg("%s is %.17g, wanted %.17g", what, is, wanted);
}
#define assert_near(is, wanted, tolerance) near(#is, is, wanted, tolerance)
static inline void assert_ok(dsi_status got, const dsi_error *error) {
    if (got) fail_msg("%d: %s", got, error->text);
}

#endif
