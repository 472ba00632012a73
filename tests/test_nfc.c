/* test_nfc.c: normalization form C against Python's unicodedata, in whatever steps it is read, and
 * that its time is linear. tools/make_nfc_vectors.py made the data. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "../lib/base/json.h"
#include "../lib/base/sys.h"
#include "../lib/text/nfc.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

static char *file; /* tests/data/nfc.jsonl */

static int open_file(void **state) {
    (void)state;
    uint64_t n_bytes;
    return dsi_sys_read_file("tests/data/nfc.jsonl", 1 << 24, &file, &n_bytes, NULL);
}

static int close_file(void **state) {
    (void)state;
    dsi_sys_free(file);
    return 0;
}

/* Reads all of the normalised text in steps of `room` bytes. */
static size_t normalise(const char *text, size_t n_bytes, size_t room, char *out) {
    dsi_nfc nfc;
    dsi_nfc_start(&nfc, text, n_bytes);
    size_t n = 0, n_step;
    do {
        assert_int_equal(dsi_nfc_read(&nfc, (uint8_t *)out + n, room, &n_step, NULL), DSI_OK);
        assert_true(n_step <= room);
        n += n_step;
    } while (n_step > 0);
    dsi_nfc_end(&nfc);
    return n;
}

/* ---- Around every code point ------------------------------------------------------------------
 */

static uint32_t crc_table[256];
static uint32_t crc32_of(uint32_t crc, const char *bytes, size_t n) {
    if (crc_table[1] == 0)
        for (uint32_t i = 0; i < 256; i++) {
            crc_table[i] = i;
            for (int k = 0; k < 8; k++)
                crc_table[i] = crc_table[i] >> 1 ^ (crc_table[i] & 1 ? 0xEDB88320u : 0);
        }
    crc = ~crc;
    for (size_t i = 0; i < n; i++)
        crc = crc >> 8 ^ crc_table[(crc ^ (unsigned char)bytes[i]) & 0xFF];
    return ~crc;
}

static size_t put_utf8(char *out, uint32_t c) {
    if (c < 0x80) {
        out[0] = (char)c;
        return 1;
    }
    size_t n = c < 0x800 ? 2 : c < 0x10000 ? 3 : 4;
    for (size_t i = n - 1; i > 0; i--, c >>= 6) out[i] = (char)(0x80 | (c & 0x3F));
    out[0] = (char)((0xF00u >> n & 0xF0u) | c);
    return n;
}

static const uint32_t around[][4] = {/* 0: the code point; 1: the end */
                                     {0, 1},
                                     {'a', 0, 1},
                                     {0, 0x300, 1},
                                     {0, 0x327, 0x301, 1},
                                     {0x1100, 0, 0x11A8, 1},
                                     {'e', 0x301, 0, 0x323}};

static uint32_t add_around(uint32_t crc, uint32_t c, const uint32_t form[4]) {
    char text[32], out[64];
    size_t n = 0;
    for (int i = 0; i < 4 && form[i] != 1; i++) n += put_utf8(text + n, form[i] ? form[i] : c);
    size_t n_out = normalise(text, n, sizeof out, out);
    if (dsi_nfc_is_normal(text, n)) {
        assert_int_equal(n, n_out);
        assert_memory_equal(text, out, n);
    }
    out[n_out++] = '\xFF';
    return crc32_of(crc, out, n_out);
}

static void test_every_code_point(void **state) {
    (void)state;
    enum { BLOCK = 4096, N_FORMS = sizeof around / sizeof *around };
    dsi_json json;
    uint64_t want;
    uint32_t n = 0;
    assert_int_equal(dsi_json_parse(file, strcspn(file, "\n"), 1000, &json, NULL), DSI_OK);
    uint32_t node = dsi_json_get(&json, 0, "crc32") + 1;
    for (uint32_t first = 0; first < 0x110000; first += BLOCK, node++) {
        uint32_t crc = 0;
        for (uint32_t c = first; c < first + BLOCK; c++) {
            if (c >= 0xD800 && c <= 0xDFFF) continue;
            for (int form = 0; form < N_FORMS; form++, n++) crc = add_around(crc, c, around[form]);
        }
        assert_true(dsi_json_u64(&json, node, &want));
        if (crc != want) fail_msg("between U+%04X and U+%04X", first, first + BLOCK - 1);
    }
    dsi_json_free(&json);
    print_message("%u texts around every code point agree with unicodedata\n", n);
}

/* ---- Random texts ------------------------------------------------------------------------------
 */

static void check_line(const char *line, size_t n_line) {
    dsi_json json;
    uint64_t n_text, n_want;
    char out[4096];
    assert_int_equal(dsi_json_parse(line, n_line, 100, &json, NULL), DSI_OK);
    char *text = dsi_json_string(&json, dsi_json_get(&json, 0, "text"), &n_text);
    char *want = dsi_json_string(&json, dsi_json_get(&json, 0, "nfc"), &n_want);
    static const size_t rooms[] = {4, 5, 11, 1024};
    for (int i = 0; i < 4; i++) {
        assert_int_equal(normalise(text, n_text, rooms[i], out), n_want);
        assert_memory_equal(out, want, n_want);
    }
    assert_int_equal(normalise(want, n_want, 1024, out), n_want);
    assert_memory_equal(out, want, n_want);
    dsi_sys_free(text);
    dsi_sys_free(want);
    dsi_json_free(&json);
}

static void test_random_texts(void **state) {
    (void)state;
    int n = 0;
    for (const char *line = file; *line; n++) {
        size_t length = strcspn(line, "\n");
        if (n > 0) check_line(line, length);
        line += length + (line[length] == '\n');
    }
    assert_int_equal(n, 501);
}

static void test_broken_bytes(void **state) {
    (void)state;
    char out[64];
    static const char text[] = "a\xFF\xCC\x81z\xE4\xB8",
                      want[] = "a\xEF\xBF\xBD\xCC\x81z\xEF\xBF\xBD";
    assert_int_equal(normalise(text, sizeof text - 1, sizeof out, out), sizeof want - 1);
    assert_memory_equal(out, want, sizeof want - 1);
}

/* ---- Time --------------------------------------------------------------------------------------
 */

static double cpu_seconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static double seconds_for(const char *unit, size_t n_bytes) {
    char *text = malloc(n_bytes), *out = malloc(3 * n_bytes + 4096);
    assert_true(text && out);
    size_t n_unit = strlen(unit), n = 0;
    for (; n + n_unit <= n_bytes; n += n_unit) memcpy(text + n, unit, n_unit);
    double start = cpu_seconds();
    normalise(text, n, 4096, out);
    double seconds = cpu_seconds() - start;
    free(text);
    free(out);
    return seconds;
}

/* Runs of marks out of order, and of characters that each change. */
static void test_linear_time(void **state) {
    (void)state;
    static const char *const units[] = {"\xCC\x81\xCC\xA3", "e\xCC\x81", "\xE1\x84\x80\xE1\x85\xA1",
                                        "\xF0\x9D\x85\xA0", "\xCC\xA3",  "a"};
    enum { SMALL = 1 << 16, LARGE = 1 << 20 };
    for (size_t i = 0; i < sizeof units / sizeof *units; i++) {
        double small = seconds_for(units[i], SMALL), large = seconds_for(units[i], LARGE);
        if (large > 64 * small && large > 0.5) fail_msg("unit %zu: %g s, %g s", i, small, large);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_code_point),
        cmocka_unit_test(test_random_texts),
        cmocka_unit_test(test_broken_bytes),
        cmocka_unit_test(test_linear_time),
    };
    return cmocka_run_group_tests(tests, open_file, close_file);
}
