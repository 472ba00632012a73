/* chat_files.h: for tests of dsinfer chat: a temporary folder and the conversations saved in it. */
#ifndef DSI_TESTS_CHAT_FILES_H
#define DSI_TESTS_CHAT_FILES_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "../lib/base/json.h"
#include "../lib/base/sys.h"
#include "terminal.h"
#include <dirent.h>
#include <ftw.h>
#include <math.h>
#include <sys/stat.h>

#define TINY "examples/models/tiny-gov"
#define TICKET "工单分拨：文化路路灯不亮。"
#define SENTENCE "我要举报，南山区文化路，外地户口能不能在这里读书。望尽快解决。"
#define KIND "{\"schema\": 1, \"kind\": \"dsinfer-conversation\""
static char folder[64];

static inline int make_folder(void **state) {
    (void)state;
    snprintf(folder, sizeof folder, "/tmp/dsinfer-chat-XXXXXX");
    return mkdtemp(folder) == NULL ? -1 : 0;
}

static inline int remove_one(const char *path, const struct stat *facts, int kind, struct FTW *at) {
    (void)facts, (void)kind, (void)at;
    return remove(path);
}

static inline int remove_folder(void **state) {
    (void)state;
    return nftw(folder, remove_one, 8, FTW_DEPTH | FTW_PHYS);
}

static inline const char *at(const char *name) {
    static char path[4][128];
    static unsigned next;
    char *room = path[next++ % 4];
    snprintf(room, sizeof path[0], "%s/%s", folder, name);
    return room;
}

static inline char *read_file(const char *name, size_t *n_bytes) {
    FILE *file = fopen(at(name), "rb");
    if (file == NULL) fail_msg("%s is missing", at(name));
    char *text = cli_slurp(file, n_bytes);
    fclose(file);
    return text;
}

static inline void write_file(const char *name, const char *text, size_t n_bytes) {
    FILE *file = fopen(at(name), "wb");
    assert_non_null(file);
    assert_int_equal(fwrite(text, 1, n_bytes, file), n_bytes);
    assert_int_equal(fclose(file), 0);
}

static inline dsi_json parse(const char *text, size_t n_bytes) {
    dsi_json json;
    dsi_error error = {0};
    if (dsi_json_parse(text, n_bytes, 1 << 20, &json, &error) != DSI_OK) {
        fail_msg("not JSON: %s: %.300s", error.text, text);
    }
    return json;
}

static inline double number(const dsi_json *json, uint32_t parent, const char *key) {
    double value = NAN;
    if (!dsi_json_f64(json, dsi_json_get(json, parent, key), &value)) fail_msg("no number %s", key);
    return value;
}

/* The text of message i of a saved conversation is `wanted`. */
static inline void saved_is(const char *name, uint32_t i, const char *role, const char *wanted) {
    size_t n = 0;
    char *text = read_file(name, &n);
    dsi_json json = parse(text, n);
    uint32_t node = dsi_json_first(&json, dsi_json_get(&json, 0, "messages"));
    assert_int_not_equal(node, DSI_JSON_NONE);
    for (; i > 0; i--) node = json.nodes[node].end;
    assert_true(dsi_json_string_is(&json, dsi_json_get(&json, node, "role"), role));
    char *is = dsi_json_string(&json, dsi_json_get(&json, node, "text"), NULL);
    if (is == NULL || strcmp(is, wanted) != 0) fail_msg("\"%s\" is not \"%s\"", is, wanted);
    dsi_sys_free(is);
    dsi_json_free(&json);
    free(text);
}

#endif
