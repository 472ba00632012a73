/* fuzz_gguf.c: the input is a whole .gguf file. Its header is read or refused with a line that
 * names it; so are the model and the tokenizer that it describes. What opens is read from end to
 * end. */
#include "../../lib/text/text.h"
#include "models.h"

static void open_tokenizer(const dsi_gguf *gguf) {
    dsi_tokenizer *tokenizer = NULL;
    dsi_error error = {0};
    dsi_status status = dsi_tokenizer_of_gguf(gguf, &tokenizer, &error);
    if (status) fuzz_refused(error.text);
    FUZZ_MUST(status == DSI_OK || tokenizer == NULL);
    dsi_tokenizer_free(tokenizer);
}

static void bind(dsi_checkpoint *checkpoint) {
    dsi_config config;
    dsi_weights weights;
    dsi_error error = {0};
    dsi_status status = dsi_config_of_gguf(checkpoint, &config, &error);
    if (!status) status = dsi_weights_bind(checkpoint, &config, &weights, &error);
    if (status) fuzz_refused(error.text);
    if (!status) dsi_weights_free(&weights);
    dsi_config_free(&config);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n) {
    static const char name[] = "model.gguf";
    dsi_checkpoint checkpoint;
    dsi_error error = {0};
    fuzz_write(name, data, n);
    dsi_status status = dsi_checkpoint_open_gguf(fuzz_path(name), NULL, NULL, &checkpoint, &error);
    if (status) {
        FUZZ_MUST(status == error.status && strncmp(error.text, fuzz_path(name), 20) == 0);
        fuzz_refused(error.text);
    } else {
        if (checkpoint.n_tensors) fuzz_touch(&checkpoint); /* else a vocabulary alone */
        open_tokenizer(&checkpoint.gguf[0]);
        bind(&checkpoint);
        dsi_checkpoint_close(&checkpoint);
    }
    return 0;
}
