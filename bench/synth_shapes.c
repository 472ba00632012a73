/* synth_shapes.c: the presets, their tensors by official name, their config.json. */
#include "synth.h"
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

static const synth_shape shapes[] = {
    {"v3-slice", "DeepSeek-V3's layers: 1 dense + 3 MoE, 32 experts",
     true,       7168,
     4,          1,
     8192,       18432,
     2048,       32,
     1,          8,
     8,          4,
     128,        1536,
     512,        128,
     64,         128},
    {"v2-lite-half",
     "DeepSeek-V2-Lite's layers, 13 of 27",
     false,
     2048,
     13,
     1,
     102400,
     10944,
     1408,
     64,
     2,
     6,
     1,
     1,
     16,
     0,
     512,
     128,
     64,
     128},
    {"tiny", "a DeepSeek-V3 of 15 M parameters, for trials",
     true,   256,
     6,      1,
     4096,   768,
     128,    16,
     1,      4,
     4,      2,
     8,      128,
     128,    32,
     32,     32},
};
enum { N_SHAPES = sizeof shapes / sizeof shapes[0] };

const synth_shape *synth_find(const char *preset) {
    for (size_t i = 0; i < N_SHAPES; i++)
        if (strcmp(preset, shapes[i].preset) == 0) return &shapes[i];
    return NULL;
}

const char *synth_names(void) { return "v3-slice, v2-lite-half, tiny"; }

/* ---- Forms ---------------------------------------------------------------------------------- */

#define COMPRESSED(format, weights)                                                                \
    "{\"quant_method\": \"compressed-tensors\", \"format\": \"" format                             \
    "\", \"quantization_status\": \"compressed\", \"kv_cache_scheme\": null, "                     \
    "\"ignore\": [\"lm_head\", \"re:.*mlp.gate$\"], \"config_groups\": {\"group_0\": "             \
    "{\"targets\": [\"Linear\"], \"output_activations\": null, " weights "}}}"
#define PACKED(group)                                                                              \
    COMPRESSED("pack-quantized",                                                                   \
               "\"input_activations\": null, \"weights\": {\"num_bits\": 4, \"type\": \"int\", "   \
               "\"symmetric\": true, \"dynamic\": false, \"strategy\": \"group\", "                \
               "\"group_size\": " group "}")

static const synth_form forms[] = {
    {"fp8", "F8_E4M3, one scale per 128 x 128 block, as DeepSeek publishes", DSI_DTYPE_E4M3,
     DSI_SCALE_BLOCK_128, 0, DSI_DTYPE_F32, "weight_scale_inv",
     "{\"activation_scheme\": \"dynamic\", \"fmt\": \"e4m3\", \"quant_method\": \"fp8\", "
     "\"weight_block_size\": [128, 128]}"},
    {"bf16", "BF16", DSI_DTYPE_BF16, DSI_SCALE_NONE, 0, DSI_DTYPE_NONE, NULL, NULL},
    {"int8", "I8, one scale per row, compressed-tensors", DSI_DTYPE_I8, DSI_SCALE_CHANNEL, 0,
     DSI_DTYPE_BF16, "weight_scale",
     COMPRESSED("int-quantized",
                "\"input_activations\": {\"num_bits\": 8, \"type\": \"int\", \"symmetric\": true, "
                "\"strategy\": \"token\", \"dynamic\": true}, \"weights\": {\"num_bits\": 8, "
                "\"type\": \"int\", \"symmetric\": true, \"dynamic\": false, \"strategy\": "
                "\"channel\"}")},
    {"int8-block", "I8, one scale per 128 x 128 block, as R1 is published", DSI_DTYPE_I8,
     DSI_SCALE_BLOCK_128, 0, DSI_DTYPE_F32, "weight_scale_inv",
     "{\"activation_scheme\": \"dynamic\", \"quant_method\": \"blockwise_int8\", "
     "\"weight_block_size\": [128, 128]}"},
    {"int4", "four bits, one scale per 128 columns, compressed-tensors", DSI_DTYPE_I4,
     DSI_SCALE_GROUP, 128, DSI_DTYPE_BF16, "weight_scale", PACKED("128")},
    {"int4-g32", "four bits, one scale per 32 columns, compressed-tensors", DSI_DTYPE_I4,
     DSI_SCALE_GROUP, 32, DSI_DTYPE_BF16, "weight_scale", PACKED("32")},
};
enum { N_FORMS = sizeof forms / sizeof forms[0] };

const synth_form *synth_form_find(const char *name) {
    for (size_t i = 0; i < N_FORMS; i++)
        if (strcmp(name, forms[i].name) == 0) return &forms[i];
    return NULL;
}

const char *synth_form_names(void) { return "fp8, bf16, int8, int8-block, int4, int4-g32"; }

double synth_per_deviation(dsi_dtype dtype) {
    return dtype == DSI_DTYPE_E4M3 ? 80 : dtype == DSI_DTYPE_I8 ? 32 : 2.5;
}

/* ---- Tensors -------------------------------------------------------------------------------- */

static synth_tensor *add(synth_list *l, const char *prefix, const char *name, dsi_dtype dtype,
                         int64_t rows, int64_t columns, uint32_t values) {
    static synth_tensor nowhere; /* written to when memory is out; the list is then discarded */
    if (l->n == l->capacity) {
        size_t capacity = l->capacity ? 2 * l->capacity : 256;
        synth_tensor *larger = realloc(l->tensors, capacity * sizeof *larger);
        if (!larger) {
            l->no_memory = true;
            return &nowhere;
        }
        l->tensors = larger;
        l->capacity = capacity;
    }
    synth_tensor *t = &l->tensors[l->n++];
    *t = (synth_tensor){.dtype = dtype, .rows = rows, .columns = columns, .values = values};
    snprintf(t->name, sizeof t->name, "%s%s", prefix, name);
    uint64_t elements = (uint64_t)((rows ? rows : 1) * columns);
    t->n_bytes = elements * dsi_dtype_bytes(dtype);
    l->n_bytes += t->n_bytes;
    if (values != SYNTH_SCALES && values != SYNTH_SHAPE)
        l->n_params += dtype == DSI_DTYPE_I32 ? 8 * elements : elements;
    return t;
}

/* A matrix, with what belongs to its form. gain 1 keeps the size of a normalised input. */
static void add_matrix(synth_list *l, const char *prefix, const char *name, int64_t rows,
                       int64_t columns, double gain) {
    char full[72];
    const synth_form *form = l->form;
    bool packed = form->dtype == DSI_DTYPE_I4; /* columns are multiples of 8 in every preset */
    double deviation = gain / sqrt((double)columns);
    snprintf(full, sizeof full, "%s.weight%s", name, packed ? "_packed" : "");
    add(l, prefix, full, packed ? DSI_DTYPE_I32 : form->dtype, rows, packed ? columns / 8 : columns,
        SYNTH_NORMAL)
        ->deviation = deviation;
    if (form->scale_kind == DSI_SCALE_NONE) return;
    dsi_scale_span span = dsi_scale_span_of(form->scale_kind, form->scale_group, columns);
    snprintf(full, sizeof full, "%s.%s", name, form->scale_name);
    add(l, prefix, full, form->scale_dtype, dsi_ceil_div(rows, span.n),
        dsi_ceil_div(columns, span.k), SYNTH_SCALES)
        ->deviation = deviation / synth_per_deviation(form->dtype);
    if (!packed) return;
    snprintf(full, sizeof full, "%s.weight_shape", name);
    synth_tensor *shape = add(l, prefix, full, DSI_DTYPE_I64, 0, 2, SYNTH_SHAPE);
    shape->weight[0] = rows;
    shape->weight[1] = columns;
}

/* Matrices that stay BF16 in FP8 checkpoints. */
static void add_bf16(synth_list *l, const char *prefix, const char *name, int64_t rows,
                     int64_t columns, double deviation) {
    add(l, prefix, name, DSI_DTYPE_BF16, rows, columns, SYNTH_NORMAL)->deviation = deviation;
}

static void add_mlp(synth_list *l, const synth_shape *s, const char *prefix, const char *name,
                    int64_t inter) {
    /* The gain keeps the residual stream from growing with the layers. */
    static const char *const parts[3] = {"gate_proj", "up_proj", "down_proj"};
    char full[56];
    for (int i = 0; i < 3; i++) {
        snprintf(full, sizeof full, "%s.%s", name, parts[i]);
        add_matrix(l, prefix, full, i < 2 ? inter : s->hidden_size, i < 2 ? s->hidden_size : inter,
                   i < 2 ? 1 : 0.3);
    }
}

static void add_attention(synth_list *l, const synth_shape *s, const char *prefix) {
    int64_t q_rows = s->num_attention_heads * (s->qk_nope_head_dim + s->qk_rope_head_dim);
    if (s->q_lora_rank) {
        add_matrix(l, prefix, "self_attn.q_a_proj", s->q_lora_rank, s->hidden_size, 1);
        add(l, prefix, "self_attn.q_a_layernorm.weight", DSI_DTYPE_BF16, 0, s->q_lora_rank,
            SYNTH_ONES);
        add_matrix(l, prefix, "self_attn.q_b_proj", q_rows, s->q_lora_rank, 1);
    } else {
        add_matrix(l, prefix, "self_attn.q_proj", q_rows, s->hidden_size, 1);
    }
    add_matrix(l, prefix, "self_attn.kv_a_proj_with_mqa", s->kv_lora_rank + s->qk_rope_head_dim,
               s->hidden_size, 1);
    add(l, prefix, "self_attn.kv_a_layernorm.weight", DSI_DTYPE_BF16, 0, s->kv_lora_rank,
        SYNTH_ONES);
    add_matrix(l, prefix, "self_attn.kv_b_proj",
               s->num_attention_heads * (s->qk_nope_head_dim + s->v_head_dim), s->kv_lora_rank, 1);
    add_matrix(l, prefix, "self_attn.o_proj", s->hidden_size,
               s->num_attention_heads * s->v_head_dim, 0.3);
}

static void add_layer(synth_list *l, const synth_shape *s, int64_t layer) {
    char prefix[40], name[40];
    snprintf(prefix, sizeof prefix, "model.layers.%" PRId64 ".", layer);
    add(l, prefix, "input_layernorm.weight", DSI_DTYPE_BF16, 0, s->hidden_size, SYNTH_ONES);
    add_attention(l, s, prefix);
    add(l, prefix, "post_attention_layernorm.weight", DSI_DTYPE_BF16, 0, s->hidden_size,
        SYNTH_ONES);
    if (layer < s->first_k_dense_replace) {
        add_mlp(l, s, prefix, "mlp", s->intermediate_size);
        return;
    }
    add_bf16(l, prefix, "mlp.gate.weight", s->n_routed_experts, s->hidden_size,
             1 / sqrt((double)s->hidden_size));
    if (s->v3)
        add(l, prefix, "mlp.gate.e_score_correction_bias", DSI_DTYPE_F32, 0, s->n_routed_experts,
            SYNTH_ZEROS);
    add_mlp(l, s, prefix, "mlp.shared_experts", s->n_shared_experts * s->moe_intermediate_size);
    for (int64_t e = 0; e < s->n_routed_experts; e++) {
        snprintf(name, sizeof name, "mlp.experts.%" PRId64, e);
        add_mlp(l, s, prefix, name, s->moe_intermediate_size);
    }
}

bool synth_list_make(const synth_shape *s, const synth_form *form, synth_list *l) {
    *l = (synth_list){.form = form};
    add_bf16(l, "", "model.embed_tokens.weight", s->vocab_size, s->hidden_size, 1);
    for (int64_t layer = 0; layer < s->num_hidden_layers; layer++) add_layer(l, s, layer);
    add(l, "", "model.norm.weight", DSI_DTYPE_BF16, 0, s->hidden_size, SYNTH_ONES);
    add_bf16(l, "", "lm_head.weight", s->vocab_size, s->hidden_size,
             1 / sqrt((double)s->hidden_size));
    if (l->no_memory) synth_list_free(l);
    return !l->no_memory;
}

void synth_list_free(synth_list *l) {
    free(l->tensors);
    l->tensors = NULL;
    l->n = l->capacity = 0;
}

/* ---- config.json ---------------------------------------------------------------------------- */

static void write_number(FILE *file, const char *key, int64_t value) {
    fprintf(file, "  \"%s\": %" PRId64 ",\n", key, value);
}

void synth_write_config(FILE *file, const synth_shape *s, const synth_form *form) {
    fprintf(file, "{\n  \"architectures\": [\"%s\"],\n  \"model_type\": \"%s\",\n",
            s->v3 ? "DeepseekV3ForCausalLM" : "DeepseekV2ForCausalLM",
            s->v3 ? "deepseek_v3" : "deepseek_v2");
    write_number(file, "hidden_size", s->hidden_size);
    write_number(file, "num_hidden_layers", s->num_hidden_layers);
    write_number(file, "first_k_dense_replace", s->first_k_dense_replace);
    write_number(file, "vocab_size", s->vocab_size);
    write_number(file, "intermediate_size", s->intermediate_size);
    write_number(file, "moe_intermediate_size", s->moe_intermediate_size);
    write_number(file, "n_routed_experts", s->n_routed_experts);
    write_number(file, "n_shared_experts", s->n_shared_experts);
    write_number(file, "num_experts_per_tok", s->num_experts_per_tok);
    write_number(file, "n_group", s->n_group);
    write_number(file, "topk_group", s->topk_group);
    write_number(file, "num_attention_heads", s->num_attention_heads);
    write_number(file, "num_key_value_heads", s->num_attention_heads);
    if (s->q_lora_rank)
        write_number(file, "q_lora_rank", s->q_lora_rank);
    else
        fputs("  \"q_lora_rank\": null,\n", file);
    write_number(file, "kv_lora_rank", s->kv_lora_rank);
    write_number(file, "qk_nope_head_dim", s->qk_nope_head_dim);
    write_number(file, "qk_rope_head_dim", s->qk_rope_head_dim);
    write_number(file, "v_head_dim", s->v_head_dim);
    write_number(file, "moe_layer_freq", 1);
    write_number(file, "max_position_embeddings", 163840);
    fprintf(file,
            "  \"attention_bias\": false,\n  \"bos_token_id\": 0,\n  \"eos_token_id\": 1,\n"
            "  \"hidden_act\": \"silu\",\n  \"norm_topk_prob\": %s,\n"
            "  \"scoring_func\": \"%s\",\n  \"topk_method\": \"%s\",\n"
            "  \"routed_scaling_factor\": %s,\n  \"rms_norm_eps\": 1e-06,\n"
            "  \"rope_theta\": 10000,\n  \"tie_word_embeddings\": false,\n"
            "  \"torch_dtype\": \"bfloat16\",\n",
            s->v3 ? "true" : "false", s->v3 ? "sigmoid" : "softmax", s->v3 ? "noaux_tc" : "greedy",
            s->v3 ? "2.5" : "1.0");
    if (form->config) fprintf(file, "  \"quantization_config\": %s,\n", form->config);
    const char *mscale = s->v3 ? "1.0" : "0.707";
    fprintf(file,
            "  \"rope_scaling\": {\"beta_fast\": 32, \"beta_slow\": 1, \"factor\": 40, "
            "\"mscale\": %s, \"mscale_all_dim\": %s, "
            "\"original_max_position_embeddings\": 4096, \"type\": \"yarn\"}\n}\n",
            mscale, mscale);
}
