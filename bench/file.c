/* file.c: files that have their name only when they are whole. */
#include "bench.h"
#include <errno.h>
#include <string.h>
#include <unistd.h>

int bench_refused(const char *what, const char *path) {
    bench_say("cannot %s %s: %s", what, path, strerror(errno));
    return BENCH_ENVIRONMENT;
}

int bench_file_open(bench_file *file, const char *path) {
    snprintf(file->path, sizeof file->path, "%s", path);
    snprintf(file->part, sizeof file->part, "%s.part", path);
    file->stream = fopen(file->part, "wb");
    return file->stream ? BENCH_OK : bench_refused("create", file->part);
}

int bench_file_close(bench_file *file, int code) {
    errno = 0;
    bool bad = fflush(file->stream) != 0 || ferror(file->stream) != 0; /* tries what failed again */
    if (bad && errno == 0) errno = EIO;
    if (bad && code == BENCH_OK) code = bench_refused("write", file->part);
    if (fclose(file->stream) != 0 && code == BENCH_OK) code = bench_refused("write", file->part);
    if (code == BENCH_OK && rename(file->part, file->path) != 0)
        code = bench_refused("name", file->path);
    if (code != BENCH_OK) unlink(file->part);
    return code;
}
