/* fuzz_encode.c: the input is a byte that chooses tokenizer and mode, and a text. Tokens of the
 * text, put together again, are the text. */
#include "texts.h"
#include "tokenizers.h"

/* The scanners alone, whatever family: pieces cover the text and end between characters, and one
 * that did not need the end of the text is the same in a longer text. */
static void cut_pieces(dsi_pretok pretok, const char *text, size_t n) {
    for (size_t at = 0, end; at < n; at = end) {
        bool saw_end = false;
        end = dsi_pretok_next(pretok, text, n, at, NULL);
        FUZZ_MUST(end > at && end <= n && (end == n || ((uint8_t)text[end] & 0xC0) != 0x80));
        size_t cut = at + 1 + (n - at) * (at % 7) / 7;
        while (cut < n && ((uint8_t)text[cut] & 0xC0) == 0x80) cut++;
        if (cut > n) cut = n;
        size_t early = dsi_pretok_next(pretok, text, cut, at, &saw_end);
        FUZZ_MUST(early > at && early <= cut && (saw_end || early == end));
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n) {
    if (n == 0) return 0;
    const dsi_tokenizer *tokenizer = fuzz_tokenizer(data[0] >> 1);
    fuzz_text clean = {0};
    fuzz_clean_utf8((const char *)data + 1, n - 1, &clean);
    for (int i = DSI_PRETOK_DEEPSEEK_V3; i <= DSI_PRETOK_DEEPSEEK_CODER; i++)
        cut_pieces((dsi_pretok)i, clean.data, clean.n);
    free(clean.data);
    fuzz_round_trip(tokenizer, (const char *)data + 1, n - 1, data[0] & 1);
    return 0;
}
