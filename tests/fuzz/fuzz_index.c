/* fuzz_index.c: the input is model.safetensors.index.json beside two shards, a.safetensors with
 * tensors "a" and "b", and b.safetensors with "c". */
#include "models.h"

static void write_index_shards(void) {
    static bool written;
    static const char first[] = "{\"a\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[0,2]},"
                                "\"b\":{\"dtype\":\"F16\",\"shape\":[1,1],\"data_offsets\":[2,4]}}";
    static const char second[] = "{\"c\":{\"dtype\":\"F32\",\"shape\":[],\"data_offsets\":[0,4]}}";
    if (written) return;
    const char *const headers[] = {first, second};
    for (int i = 0; i < 2; i++) {
        char file[256] = {0};
        size_t n = strlen(headers[i]);
        file[0] = (char)n;
        memcpy(file + 8, headers[i], n);
        fuzz_write(i ? "b.safetensors" : "a.safetensors", file, 8 + n + 4);
    }
    written = true;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n) {
    dsi_checkpoint checkpoint;
    dsi_error error = {0};
    write_index_shards();
    fuzz_unlink("model.safetensors");
    fuzz_write("model.safetensors.index.json", data, n);
    dsi_status status = dsi_checkpoint_open(fuzz_folder(), NULL, NULL, &checkpoint, &error);
    if (status) {
        FUZZ_MUST(status == error.status && strncmp(error.text, fuzz_folder(), 15) == 0);
        fuzz_refused(error.text);
        return 0;
    }
    /* Index and shards tell the same story, so all that can vary is which shards are used. */
    FUZZ_MUST(checkpoint.n_shards <= 2 && checkpoint.n_tensors <= 3);
    fuzz_touch(&checkpoint);
    dsi_checkpoint_close(&checkpoint);
    return 0;
}
