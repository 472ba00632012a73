/* fuzz_tokenizer_json.c: the input is a tokenizer.json. What is accepted must keep texts whole. */
#include "texts.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n) {
    static const char text[] =
        "The abc's 12345 粤府〔2025〕12号\r\n\t <one><two> ab\xff\xe4\xb8 é abcab";
    dsi_tokenizer *tokenizer = NULL;
    dsi_error error = {0};
    fuzz_write("tokenizer.json", data, n);
    dsi_status status = dsi_tokenizer_open(fuzz_path("tokenizer.json"), &tokenizer, &error);
    if (status) {
        FUZZ_MUST(tokenizer == NULL && status == error.status);
        FUZZ_MUST(strncmp(error.text, fuzz_path("tokenizer.json"), 20) == 0);
        fuzz_refused(error.text);
        return 0;
    }
    fuzz_round_trip(tokenizer, text, sizeof text - 1, false);
    fuzz_round_trip(tokenizer, text, sizeof text - 1, true);
    dsi_tokenizer_free(tokenizer);
    return 0;
}
