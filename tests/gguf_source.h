/* gguf_source.h: a GGUF file that a test reads by itself; behind model_files.h. */
#ifndef DSI_TESTS_GGUF_SOURCE_H
#define DSI_TESTS_GGUF_SOURCE_H

#include "../lib/base/gguf.h"
#include "model_files.h"

typedef struct source {
    dsi_map map;
    dsi_gguf gguf;
} source;

static inline source open_source(const char *path) {
    source s;
    dsi_error error = {0};
    assert_ok(dsi_sys_map(path, &s.map, &error), &error);
    assert_ok(dsi_gguf_read(path, &s.map, &s.gguf, &error), &error);
    return s;
}
static inline void close_source(source *s) {
    dsi_gguf_free(&s->gguf);
    dsi_sys_unmap(&s->map);
}

#endif
