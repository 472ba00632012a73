/* fuzz_encode.c: the input is a byte that chooses tokenizer and mode, and a text. Tokens of the
 * text, put together again, are the text. */
#include "texts.h"
#include "tokenizers.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n) {
    if (n == 0) return 0;
    const dsi_tokenizer *tokenizer = fuzz_tokenizer(data[0] >> 1);
    fuzz_round_trip(tokenizer, (const char *)data + 1, n - 1, data[0] & 1);
    return 0;
}
