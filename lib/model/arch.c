/* arch.c: the model families this library runs, one row each. A new family that uses known ops is a
 * new row here; nothing else in the library asks for a model's name. */
#include "model.h"
#include <string.h>

/* Columns as in dsi_arch. Sources: the config.json and modelling code of each family on Hugging
 * Face; V3, R1 and V3.1 are one row, V2 and V2-Lite are one row, V3.2 and V3.2-Exp are one. */
static const dsi_arch rows[] = {
    {.model_type = "deepseek_v2",
     .architecture = "DeepseekV2ForCausalLM",
     .attention = DSI_ATTENTION_MLA,
     .moe = true,
     .rope_interleaved = true,
     .norm_topk_default = false,
     .scoring_default = "softmax",
     .topk_method_default = "greedy"},
    {.model_type = "deepseek_v3",
     .architecture = "DeepseekV3ForCausalLM",
     .attention = DSI_ATTENTION_MLA,
     .moe = true,
     .rope_interleaved = true,
     .norm_topk_default = true,
     .scoring_default = "sigmoid",
     .topk_method_default = "noaux_tc"},
    {.model_type = "deepseek_v32",
     .architecture = "DeepseekV32ForCausalLM",
     .attention = DSI_ATTENTION_MLA,
     .moe = true,
     .indexer = true,
     .rope_interleaved = true,
     .norm_topk_default = true,
     .scoring_default = "sigmoid",
     .topk_method_default = "noaux_tc"},
    {.model_type = "llama", .architecture = "LlamaForCausalLM", .attention = DSI_ATTENTION_GQA},
    {.model_type = "qwen2",
     .architecture = "Qwen2ForCausalLM",
     .attention = DSI_ATTENTION_GQA,
     .qkv_bias = true},
};

/* Families that look close enough to be tried: what they need that is not here. */
static const struct {
    const char *model_type, *reason;
} refused[] = {
    {"deepseek_v4", "DeepSeek-V4 has compressed attention, hyper-connections and FP4 experts, "
                    "which this version does not compute"},
    {"deepseek_v41", "DeepSeek-V4.1 has compressed attention, hyper-connections and n-gram memory, "
                     "which this version does not compute"},
};

const dsi_arch *dsi_arch_find(const char *model_type) {
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        if (strcmp(rows[i].model_type, model_type) == 0) return &rows[i];
    }
    return NULL;
}

const char *dsi_arch_why_not(const char *model_type) {
    for (size_t i = 0; i < sizeof refused / sizeof refused[0]; i++) {
        if (strcmp(refused[i].model_type, model_type) == 0) return refused[i].reason;
    }
    return NULL;
}

const char *dsi_arch_names(void) { return "deepseek_v2, deepseek_v3, deepseek_v32, llama, qwen2"; }
