/* tokenizers.h: the tokenizers that the fuzz targets encode with, one of each family. */
#ifndef DSI_TESTS_FUZZ_TOKENIZERS_H
#define DSI_TESTS_FUZZ_TOKENIZERS_H

#include "../../lib/text/text.h"
#include "fuzz.h"

static inline const dsi_tokenizer *fuzz_tokenizer(uint32_t which) {
#define FAMILY(name) "tests/data/tokenizer/" name "/tokenizer.json"
    static const char *const paths[] = {"examples/models/tiny-gov/tokenizer.json",
                                        FAMILY("deepseek-llm"),
                                        FAMILY("deepseek-v2"),
                                        FAMILY("llama-3"),
                                        FAMILY("qwen2"),
                                        FAMILY("r1-distill-llama"),
                                        FAMILY("r1-distill-qwen")};
#undef FAMILY
    enum { N_PATHS = sizeof paths / sizeof *paths };
    static dsi_tokenizer *tokenizers[N_PATHS];
    dsi_tokenizer **t = &tokenizers[which % N_PATHS];
    dsi_error error;
    if (!*t && dsi_tokenizer_open(paths[which % N_PATHS], t, &error)) {
        fprintf(stderr, "%s (run from the root of the repository)\n", error.text);
        abort();
    }
    return *t;
}

#endif
