/* base.c: error messages, the log, and the tables of status codes and number formats. */
#include "base.h"

#include <deepseek/dsinfer.h>
#include <stdio.h>
#include <string.h>

/* Shortens text[0..n) so that it does not end inside a UTF-8 character; returns the new length. */
static size_t utf8_cut(const char *text, size_t n) {
    size_t lead = n;
    while (lead > 0 && n - lead < 4) {
        unsigned char c = (unsigned char)text[--lead];
        if (c < 0x80) return n;
        if (c < 0xC0) continue; /* a continuation byte: the lead byte is further left */
        size_t length = c >= 0xF0 ? 4 : c >= 0xE0 ? 3 : 2;
        return n - lead < length ? lead : n;
    }
    return n;
}

/* Formats one line into `line`. Names and values in messages come out of untrusted files, so
 * control characters, which could forge lines in a service's log, become '?'. */
static __attribute__((format(printf, 2, 0))) void format_line(char line[DSI_ERROR_TEXT_BYTES],
                                                              const char *format, va_list args) {
    int wanted = vsnprintf(line, DSI_ERROR_TEXT_BYTES, format, args);
    if (wanted < 0) {
        snprintf(line, DSI_ERROR_TEXT_BYTES, "(the message could not be formatted)");
        return;
    }
    size_t n = (size_t)wanted;
    if (n >= DSI_ERROR_TEXT_BYTES) n = utf8_cut(line, DSI_ERROR_TEXT_BYTES - 1);
    line[n] = '\0';
    for (size_t i = 0; i < n; i++) {
        unsigned char c = (unsigned char)line[i];
        if (c < 0x20 || c == 0x7F) line[i] = '?';
    }
}

dsi_status dsi_fail(dsi_error *error, dsi_status status, const char *format, ...) {
    if (error == NULL) return status;
    char line[DSI_ERROR_TEXT_BYTES]; /* the arguments may point into error->text */
    va_list args;
    va_start(args, format);
    format_line(line, format, args);
    va_end(args);
    error->status = status;
    memcpy(error->text, line, sizeof line);
    return status;
}

dsi_status dsi_fail_prefix(dsi_error *error, const char *prefix) {
    if (error == NULL) return DSI_E_INTERNAL;
    return dsi_fail(error, error->status, "%s: %s", prefix, error->text);
}

void dsi_logf(const dsi_log *log, uint32_t level, const char *component, const char *format, ...) {
    if (log == NULL || log->write == NULL) return;
    char line[DSI_ERROR_TEXT_BYTES];
    va_list args;
    va_start(args, format);
    format_line(line, format, args);
    va_end(args);
    log->write(log->user, level, component, line);
}

/* Heapsort. The item at `root` goes down to a leaf along the larger children and from there up to
 * its place: fewer comparisons than asking on the way down, since it nearly always belongs low. */
static void sift(char *items, uint64_t root, uint64_t n, uint64_t size,
                 int (*compare)(const void *, const void *)) {
    char item[64];
    memcpy(item, items + root * size, size);
    uint64_t at = root, child, above;
    while ((child = 2 * at + 1) < n) {
        if (child + 1 < n && compare(items + child * size, items + (child + 1) * size) < 0) child++;
        memcpy(items + at * size, items + child * size, size);
        at = child;
    }
    for (; at > root; at = above) {
        above = (at - 1) / 2;
        if (compare(items + above * size, item) >= 0) break;
        memcpy(items + at * size, items + above * size, size);
    }
    memcpy(items + at * size, item, size);
}

void dsi_sort(void *items, uint64_t n, uint64_t size, int (*compare)(const void *, const void *)) {
    char item[64], *first = items;
    for (uint64_t i = n / 2; i-- > 0;) sift(first, i, n, size, compare);
    for (uint64_t end = n; end-- > 1;) { /* the largest goes to the end of what is left */
        memcpy(item, first, size);
        memcpy(first, first + end * size, size);
        memcpy(first + end * size, item, size);
        sift(first, 0, end, size, compare);
    }
}

const char *dsi_status_name(dsi_status status) {
    switch (status) {
#define STATUS_NAME(name, code, text)                                                              \
    case name:                                                                                     \
        return #name;
        DSI_STATUS_LIST(STATUS_NAME)
#undef STATUS_NAME
    default:
        return "DSI_E_UNKNOWN";
    }
}

const char *dsi_status_text(dsi_status status) {
    switch (status) {
#define STATUS_TEXT(name, code, text)                                                              \
    case name:                                                                                     \
        return text;
        DSI_STATUS_LIST(STATUS_TEXT)
#undef STATUS_TEXT
    default:
        return "this number is not a status code of this library";
    }
}

uint32_t dsi_dtype_bytes(dsi_dtype dtype) {
    switch (dtype) {
#define DTYPE_BYTES(name, code, bytes, text)                                                       \
    case name:                                                                                     \
        return bytes;
        DSI_DTYPE_LIST(DTYPE_BYTES)
#undef DTYPE_BYTES
    default:
        return 0;
    }
}

dsi_block_size dsi_dtype_block(dsi_dtype dtype) {
    switch (dtype) {
#define BLOCK_SIZE(name, type, values, bytes, text)                                                \
    case name:                                                                                     \
        return (dsi_block_size){values, bytes};
        DSI_BLOCK_DTYPE_LIST(BLOCK_SIZE)
#undef BLOCK_SIZE
    default:
        return (dsi_block_size){0, 0};
    }
}

bool dsi_dtype_row_bytes(dsi_dtype dtype, int64_t n, int64_t *n_bytes) {
    uint64_t width = dsi_dtype_bytes(dtype), count = (uint64_t)n, bytes = 0;
    dsi_block_size block = dsi_dtype_block(dtype);
    if (n < 0 || (block.values && n % block.values != 0)) return false;
    if (dtype == DSI_DTYPE_I4) {
        count = (uint64_t)n / 8 + (n % 8 != 0);
        width = 4;
    } else if (block.values) {
        count = (uint64_t)n / block.values;
        width = block.bytes;
    }
    if (width == 0 || !dsi_mul_ok(count, width, &bytes) || bytes > INT64_MAX) return false;
    *n_bytes = (int64_t)bytes;
    return true;
}

dsi_scale_span dsi_scale_span_of(uint32_t kind, uint32_t group, int64_t n_in) {
    switch (kind) {
    case DSI_SCALE_BLOCK_128:
        return (dsi_scale_span){DSI_BLOCK, DSI_BLOCK};
    case DSI_SCALE_CHANNEL:
        return (dsi_scale_span){1, n_in};
    case DSI_SCALE_GROUP:
        return (dsi_scale_span){1, group};
    default:
        return (dsi_scale_span){0, 0};
    }
}

const char *dsi_dtype_name(dsi_dtype dtype) {
    if (dtype == DSI_DTYPE_I4) return "I4";
    switch (dtype) {
#define DTYPE_NAME(name, code, bytes, text)                                                        \
    case name:                                                                                     \
        return text;
        DSI_DTYPE_LIST(DTYPE_NAME)
#undef DTYPE_NAME
#define BLOCK_NAME(name, type, values, bytes, text)                                                \
    case name:                                                                                     \
        return text;
        DSI_BLOCK_DTYPE_LIST(BLOCK_NAME)
#undef BLOCK_NAME
    default:
        return "?";
    }
}

dsi_dtype dsi_dtype_from_name(const char *name, size_t n_bytes) {
#define DTYPE_FROM_NAME(dtype, code, bytes, text)                                                  \
    if (n_bytes == sizeof text - 1 && memcmp(name, text, sizeof text - 1) == 0) return dtype;
    DSI_DTYPE_LIST(DTYPE_FROM_NAME)
#undef DTYPE_FROM_NAME
    return DSI_DTYPE_NONE;
}
