/* fuzz_config.c: the input is config.json and, behind a zero byte, generation_config.json. What is
 * accepted has sizes within the limits and a rope of finite numbers. */
#include "models.h"
#include <math.h>

static void check_config_sizes(const dsi_config *c) {
    FUZZ_MUST(c->arch != NULL);
    FUZZ_MUST(c->hidden_size >= 1 && c->hidden_size <= 65536);
    FUZZ_MUST(c->n_layers >= 1 && c->n_layers <= 256);
    FUZZ_MUST(c->vocab_size >= 1 && c->vocab_size <= 1 << 20);
    FUZZ_MUST(c->n_heads >= 1 && c->n_heads <= 1024 && c->n_kv_heads >= 1);
    FUZZ_MUST(c->n_heads % c->n_kv_heads == 0);
    FUZZ_MUST(c->n_routed_experts <= 1024 && c->n_eos_tokens <= 8);
    for (uint32_t i = 0; i < c->n_eos_tokens; i++)
        FUZZ_MUST(c->eos_tokens[i] >= 0 && (uint32_t)c->eos_tokens[i] < c->vocab_size);
    if (c->n_routed_experts == 0) return;
    FUZZ_MUST(c->n_group >= 1 && c->n_routed_experts % c->n_group == 0);
    FUZZ_MUST(c->topk_group <= c->n_group && c->n_experts_per_token >= 1);
    FUZZ_MUST(c->n_experts_per_token <= c->n_routed_experts);
    FUZZ_MUST(isfinite(c->routed_scaling_factor) && c->routed_scaling_factor > 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n) {
    dsi_config config;
    dsi_error error = {0};
    const uint8_t *zero = n ? memchr(data, 0, n) : NULL;
    size_t n_config = zero ? (size_t)(zero - data) : n;
    fuzz_write("config.json", data, n_config);
    if (zero)
        fuzz_write("generation_config.json", zero + 1, n - n_config - 1);
    else
        fuzz_unlink("generation_config.json");
    dsi_status status = dsi_config_load(fuzz_folder(), &config, &error);
    if (status) {
        FUZZ_MUST(status == error.status && strncmp(error.text, fuzz_folder(), 15) == 0);
        fuzz_refused(error.text);
        return 0;
    }
    check_config_sizes(&config);
    float inv_freq[512];
    bool mla = config.arch->attention == DSI_ATTENTION_MLA;
    uint32_t dim = mla ? config.qk_rope_head_dim : config.head_dim;
    FUZZ_MUST(dim >= 2 && dim <= 1024 && dim % 2 == 0);
    dsi_rope_inv_freq(&config, dim, inv_freq);
    for (uint32_t i = 0; i < dim / 2; i++) FUZZ_MUST(isfinite(inv_freq[i]) && inv_freq[i] >= 0);
    FUZZ_MUST(isfinite(dsi_softmax_scale(&config)) && dsi_softmax_scale(&config) > 0);
    FUZZ_MUST(isfinite(dsi_rope_cos_sin_factor(&config)));
    dsi_config_free(&config);
    return 0;
}
