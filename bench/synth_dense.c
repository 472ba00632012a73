/* synth_dense.c: presets of the R1-Distill models, which are Qwen2 and Llama: sizes, biases and
 * positions as their published config.json files give them. */
#include "synth.h"
#include <inttypes.h>
#include <math.h>
#include <string.h>

#define QWEN(NAME, ABOUT, HIDDEN, LAYERS, VOCABULARY, INTER, HEADS, KV_HEADS, THETA, EPS)          \
    {                                                                                              \
        .preset = "r1-distill-qwen-" NAME, .about = ABOUT, .family = SYNTH_QWEN2,                  \
        .hidden_size = HIDDEN, .num_hidden_layers = LAYERS, .vocab_size = VOCABULARY,              \
        .intermediate_size = INTER, .num_attention_heads = HEADS, .num_key_value_heads = KV_HEADS, \
        .bos_token_id = 151643, .eos_token_id = 151643, .rope_theta = THETA, .rms_norm_eps = EPS   \
    }
#define LLAMA(NAME, ABOUT, HIDDEN, LAYERS, INTER, HEADS)                                           \
    {                                                                                              \
        .preset = "r1-distill-llama-" NAME, .about = ABOUT, .family = SYNTH_LLAMA,                 \
        .hidden_size = HIDDEN, .num_hidden_layers = LAYERS, .vocab_size = 128256,                  \
        .intermediate_size = INTER, .num_attention_heads = HEADS, .num_key_value_heads = 8,        \
        .bos_token_id = 128000, .eos_token_id = 128001, .rope_theta = "500000.0",                  \
        .rms_norm_eps = "1e-05"                                                                    \
    }

static const synth_shape shapes[] = {
    QWEN("1.5b", "28 layers, 1.78 B parameters", 1536, 28, 151936, 8960, 12, 2, "10000", "1e-06"),
    QWEN("7b", "28 layers, 7.62 B parameters", 3584, 28, 152064, 18944, 28, 4, "10000", "1e-06"),
    QWEN("14b", "48 layers, 14.8 B parameters", 5120, 48, 152064, 13824, 40, 8, "1000000.0",
         "1e-05"),
    QWEN("32b", "64 layers, 32.8 B parameters", 5120, 64, 152064, 27648, 40, 8, "1000000.0",
         "1e-05"),
    LLAMA("8b", "32 layers, 8.03 B parameters", 4096, 32, 14336, 32),
    LLAMA("70b", "80 layers, 70.6 B parameters", 8192, 80, 28672, 64),
};

bool synth_find_dense(const char *preset, synth_shape *shape) {
    for (size_t i = 0; i < sizeof shapes / sizeof shapes[0]; i++) {
        if (strcmp(preset, shapes[i].preset) != 0) continue;
        *shape = shapes[i];
        return true;
    }
    return false;
}

static void add_projection(synth_list *l, const synth_shape *s, const char *prefix,
                           const char *name, int64_t rows) {
    char full[48];
    synth_add_matrix(l, prefix, name, rows, s->hidden_size, 1);
    if (s->family == SYNTH_LLAMA) return;
    snprintf(full, sizeof full, "%s.bias", name);
    synth_add(l, prefix, full, DSI_DTYPE_BF16, 0, rows, SYNTH_NORMAL)->deviation = 0.1;
}

void synth_add_dense_layer(synth_list *l, const synth_shape *s, const char *prefix) {
    const int64_t head_dim = s->hidden_size / s->num_attention_heads;
    const int64_t kv_rows = s->num_key_value_heads * head_dim;
    synth_add(l, prefix, "input_layernorm.weight", DSI_DTYPE_BF16, 0, s->hidden_size, SYNTH_ONES);
    add_projection(l, s, prefix, "self_attn.q_proj", s->hidden_size);
    add_projection(l, s, prefix, "self_attn.k_proj", kv_rows);
    add_projection(l, s, prefix, "self_attn.v_proj", kv_rows);
    synth_add_matrix(l, prefix, "self_attn.o_proj", s->hidden_size, s->hidden_size, 0.3);
    synth_add(l, prefix, "post_attention_layernorm.weight", DSI_DTYPE_BF16, 0, s->hidden_size,
              SYNTH_ONES);
    synth_add_mlp(l, s, prefix, "mlp", s->intermediate_size);
}

void synth_write_dense(FILE *file, const synth_shape *s) {
    const bool qwen = s->family == SYNTH_QWEN2;
    fprintf(file, "  \"architectures\": [\"%s\"],\n  \"model_type\": \"%s\",\n",
            qwen ? "Qwen2ForCausalLM" : "LlamaForCausalLM", qwen ? "qwen2" : "llama");
    synth_write_number(file, "num_key_value_heads", s->num_key_value_heads);
    synth_write_number(file, "max_position_embeddings", 131072);
    fprintf(file, "  \"attention_dropout\": 0.0,\n  \"rms_norm_eps\": %s,\n  \"rope_theta\": %s,\n",
            s->rms_norm_eps, s->rope_theta);
    if (qwen)
        fputs("  \"sliding_window\": null,\n  \"use_mrope\": false,\n"
              "  \"use_sliding_window\": false,\n",
              file);
    else
        fputs("  \"attention_bias\": false,\n  \"mlp_bias\": false,\n"
              "  \"rope_scaling\": {\"factor\": 8.0, \"high_freq_factor\": 4.0, "
              "\"low_freq_factor\": 1.0, \"original_max_position_embeddings\": 8192, "
              "\"rope_type\": \"llama3\"},\n",
              file);
}
