/* tokenizer_files.h: small tokenizer.json files with parts of the test's choice. */
#ifndef DSI_TESTS_TOKENIZER_FILES_H
#define DSI_TESTS_TOKENIZER_FILES_H

#include "../lib/text/bpe.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define REGEX_1 "{\"type\":\"Split\",\"pattern\":{\"Regex\":\"\\\\p{N}{1,3}\"}," ISOLATED
#define REGEX_2 "{\"type\":\"Split\",\"pattern\":{\"Regex\":\"[一-龥぀-ゟ゠-ヿ]+\"}," ISOLATED
#define REGEX_3                                                                                    \
    "{\"type\":\"Split\",\"pattern\":{\"Regex\":\"[!\\\"#$%&'()*+,\\\\-./"                         \
    ":;<=>?@\\\\[\\\\\\\\\\\\]"                                                                    \
    "^_`{|}~][A-Za-z]+|[^\\r\\n\\\\p{L}\\\\p{P}\\\\p{S}]?[\\\\p{L}\\\\p{M}]+| "                    \
    "?[\\\\p{P}\\\\p{S}]+"                                                                         \
    "[\\r\\n]*|\\\\s*[\\r\\n]+|\\\\s+(?!\\\\S)|\\\\s+\"}," ISOLATED
#define ISOLATED "\"behavior\":\"Isolated\",\"invert\":false}"
#define SEQUENCE(steps) "{\"type\":\"Sequence\",\"pretokenizers\":[" steps "]}"
#define BYTE_LEVEL "{\"type\":\"ByteLevel\",\"add_prefix_space\":false,\"use_regex\":false}"
#define NFC "{\"type\":\"NFC\"}"
#define DECODER "{\"type\":\"ByteLevel\"}"

#define ADDED(id, text, more)                                                                      \
    "{\"id\":" id ",\"content\":\"" text "\",\"normalized\":false" more "}"

typedef struct parts { /* of a tokenizer.json; NULL: as DeepSeek's */
    const char *normalizer, *pre_tokenizer, *post_processor, *decoder, *added, *vocab, *merges,
        *options;
    const char *model; /* the type */
    int skip_byte;     /* > 0: this byte gets no token */
} parts;

/* The 256 bytes have ids 0 to 255. */
static inline void write_tokenizer(const char *path, const parts *p) {
    FILE *file = fopen(path, "wb");
    assert_non_null(file);
    fprintf(file,
            "{\"added_tokens\":[%s],\"normalizer\":%s,\"pre_tokenizer\":%s,"
            "\"post_processor\":%s,\"decoder\":%s,\"model\":{\"type\":\"%s\"%s,\"merges\":[%s],"
            "\"vocab\":{",
            p->added ? p->added : "", p->normalizer ? p->normalizer : "null",
            p->pre_tokenizer ? p->pre_tokenizer
                             : SEQUENCE(REGEX_1 "," REGEX_2 "," REGEX_3 "," BYTE_LEVEL),
            p->post_processor ? p->post_processor : "null", p->decoder ? p->decoder : DECODER,
            p->model ? p->model : "BPE", p->options ? p->options : "", p->merges ? p->merges : "");
    int next = 0x100;
    for (int i = 0; i < 256; i++) {
        bool printable = (i >= 33 && i <= 126) || (i >= 161 && i != 173);
        int c = printable ? i : next++;
        if (i > 0 && i == p->skip_byte) continue;
        if (i > 0) fputc(',', file);
        fprintf(file, "\"\\u%04x\":%d", c, i);
    }
    fprintf(file, "%s%s}}}", p->vocab ? "," : "", p->vocab ? p->vocab : "");
    assert_int_equal(fclose(file), 0);
}

static inline void temporary_path(char path[32]) {
    strcpy(path, "/tmp/dsi_test_bpe_XXXXXX");
    int fd = mkstemp(path);
    assert_true(fd >= 0);
    close(fd);
}

/* Opens a file of these parts. */
static inline dsi_tokenizer *open_parts(const parts *p) {
    char path[32];
    dsi_tokenizer *tokenizer = NULL;
    dsi_error error = {0};
    temporary_path(path);
    write_tokenizer(path, p);
    if (dsi_tokenizer_open(path, &tokenizer, &error) != DSI_OK) fail_msg("%s", error.text);
    unlink(path);
    return tokenizer;
}

#endif
