/* fuzz.h: shared by the fuzz targets. A target reads one input and calls the library with it; it
 * ends the process where a promise of the library is broken. Each is a program of its own under
 * libFuzzer, and all of them are parts of tests/test_fuzz_corpus.c, so names are per target. */
#ifndef DSI_TESTS_FUZZ_H
#define DSI_TESTS_FUZZ_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* Not assert(): it must hold in every build. */
#define FUZZ_MUST(condition)                                                                       \
    do {                                                                                           \
        if (!(condition)) {                                                                        \
            fprintf(stderr, "%s:%d: broken promise: %s\n", __FILE__, __LINE__, #condition);        \
            abort();                                                                               \
        }                                                                                          \
    } while (0)

/* A folder in memory that lives as long as the process; its files are overwritten by each input. */
static inline const char *fuzz_folder(void) {
    static char folder[64];
    if (!folder[0]) {
        snprintf(folder, sizeof folder, "%s/dsi-fuzz-XXXXXX",
                 access("/dev/shm", W_OK) == 0 ? "/dev/shm" : "/tmp");
        FUZZ_MUST(mkdtemp(folder) != NULL);
    }
    return folder;
}
static inline const char *fuzz_path(const char *name) {
    static char path[128];
    snprintf(path, sizeof path, "%s/%s", fuzz_folder(), name);
    return path;
}
static inline void fuzz_write(const char *name, const void *data, size_t n) {
    FILE *file = fopen(fuzz_path(name), "wb");
    FUZZ_MUST(file != NULL && fwrite(data, 1, n, file) == n && fclose(file) == 0);
}
static inline void fuzz_unlink(const char *name) { unlink(fuzz_path(name)); }
/* Removes the files named (up to NULL) and the folder, at the end of a target's last input. */
static inline void fuzz_clean(const char *const *names) {
    for (; *names; names++) fuzz_unlink(*names);
    rmdir(fuzz_folder());
}

/* A failed call says why, in one line. */
static inline void fuzz_refused(const char *text) {
    FUZZ_MUST(strlen(text) > 10);
    for (; *text; text++) FUZZ_MUST((unsigned char)*text >= 0x20 && *text != 0x7f);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

#endif
