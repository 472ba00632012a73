/* fuzz_safetensors.c: the input is a whole .safetensors file. It opens or is refused with a line
 * that names it; what opens is read from end to end and bound to two small models. */
#include "models.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n) {
    static const char name[] = "model.safetensors";
    dsi_checkpoint checkpoint;
    dsi_error error = {0};
    fuzz_write(name, data, n);
    dsi_status status = dsi_checkpoint_open_file(fuzz_path(name), &checkpoint, &error);
    if (status) {
        FUZZ_MUST(status == error.status && strncmp(error.text, fuzz_path(name), 20) == 0);
        fuzz_refused(error.text);
    } else {
        fuzz_touch(&checkpoint);
        fuzz_bind(&checkpoint, fuzz_dense_config);
        fuzz_bind(&checkpoint, fuzz_moe_config);
        dsi_checkpoint_close(&checkpoint);
    }
    return 0;
}
