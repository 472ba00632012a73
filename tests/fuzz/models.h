/* models.h: two very small models as the fuzz targets know them: their config.json. */
#ifndef DSI_TESTS_FUZZ_MODELS_H
#define DSI_TESTS_FUZZ_MODELS_H

#include "../../lib/model/model.h"
#include "fuzz.h"

static const char fuzz_dense_config[] =
    "{\"model_type\":\"qwen2\",\"hidden_size\":2,\"num_hidden_layers\":1,\"vocab_size\":3,"
    "\"intermediate_size\":2,\"max_position_embeddings\":8,\"num_attention_heads\":1,"
    "\"tie_word_embeddings\":true}";
static const char fuzz_moe_config[] =
    "{\"model_type\":\"deepseek_v3\",\"hidden_size\":2,\"num_hidden_layers\":1,\"vocab_size\":3,"
    "\"intermediate_size\":2,\"max_position_embeddings\":8,\"num_attention_heads\":1,"
    "\"q_lora_rank\":null,\"kv_lora_rank\":2,\"qk_nope_head_dim\":2,\"qk_rope_head_dim\":2,"
    "\"v_head_dim\":2,\"n_routed_experts\":2,\"n_shared_experts\":null,\"num_experts_per_tok\":1,"
    "\"moe_intermediate_size\":2,\"n_group\":1,\"topk_group\":1,\"quantization_config\":"
    "{\"quant_method\":\"fp8\",\"weight_block_size\":[128,128]}}";

static inline const dsi_config *fuzz_config_of(const char *text) {
    static dsi_config configs[2];
    dsi_config *c = &configs[text == fuzz_moe_config];
    if (!c->arch) {
        dsi_error error;
        fuzz_write("config.json", text, strlen(text));
        if (dsi_config_load(fuzz_folder(), c, &error)) {
            fprintf(stderr, "%s\n", error.text);
            abort();
        }
        fuzz_unlink("config.json");
    }
    return c;
}

static volatile uint32_t fuzz_sink; /* so that the reads are not optimised away */

/* Reads the ends of every tensor, as a program that believes the header would. */
static inline void fuzz_touch(const dsi_checkpoint *c) {
    FUZZ_MUST(c->n_tensors > 0 && c->n_shards > 0);
    for (uint32_t i = 0; i < c->n_tensors; i++) {
        const dsi_file_tensor *t = &c->tensors[i];
        const uint8_t *data = dsi_checkpoint_data(c, t);
        const dsi_map *map = &c->shards[t->shard].map;
        FUZZ_MUST(dsi_checkpoint_find(c, t->name) == t);
        FUZZ_MUST(t->n_bytes > 0 && t->file_offset <= map->n_bytes &&
                  t->n_bytes <= map->n_bytes - t->file_offset);
        fuzz_sink += data[0] + data[t->n_bytes - 1];
    }
}

static inline void fuzz_bind(const dsi_checkpoint *c, const char *config) {
    dsi_weights weights;
    dsi_error error = {0};
    if (dsi_weights_bind(c, fuzz_config_of(config), &weights, &error)) {
        FUZZ_MUST(error.status != DSI_OK);
        fuzz_refused(error.text);
        return;
    }
    FUZZ_MUST(weights.embed_tokens.data && weights.lm_head.data && weights.layers);
    dsi_weights_free(&weights);
}

#endif
