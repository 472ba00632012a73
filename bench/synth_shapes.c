/* synth_shapes.c: the presets of DeepSeek's own shapes, their tensors by official name, their
 * config.json. */
#include "synth.h"
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

static const synth_shape shapes[] = {
    {.preset = "v3-slice",
     .about = "DeepSeek-V3's layers: 1 dense + 3 MoE, 32 experts",
     .family = SYNTH_V3,
     .hidden_size = 7168,
     .num_hidden_layers = 4,
     .first_k_dense_replace = 1,
     .vocab_size = 8192,
     .intermediate_size = 18432,
     .moe_intermediate_size = 2048,
     .n_routed_experts = 32,
     .n_shared_experts = 1,
     .num_experts_per_tok = 8,
     .n_group = 8,
     .topk_group = 4,
     .num_attention_heads = 128,
     .q_lora_rank = 1536,
     .kv_lora_rank = 512,
     .qk_nope_head_dim = 128,
     .qk_rope_head_dim = 64,
     .v_head_dim = 128,
     .eos_token_id = 1},
    {.preset = "v2-lite-half",
     .about = "DeepSeek-V2-Lite's layers, 13 of 27",
     .family = SYNTH_V2,
     .hidden_size = 2048,
     .num_hidden_layers = 13,
     .first_k_dense_replace = 1,
     .vocab_size = 102400,
     .intermediate_size = 10944,
     .moe_intermediate_size = 1408,
     .n_routed_experts = 64,
     .n_shared_experts = 2,
     .num_experts_per_tok = 6,
     .n_group = 1,
     .topk_group = 1,
     .num_attention_heads = 16,
     .kv_lora_rank = 512,
     .qk_nope_head_dim = 128,
     .qk_rope_head_dim = 64,
     .v_head_dim = 128,
     .eos_token_id = 1},
    {.preset = "tiny",
     .about = "a DeepSeek-V3 of 15 M parameters, for trials",
     .family = SYNTH_V3,
     .hidden_size = 256,
     .num_hidden_layers = 6,
     .first_k_dense_replace = 1,
     .vocab_size = 4096,
     .intermediate_size = 768,
     .moe_intermediate_size = 128,
     .n_routed_experts = 16,
     .n_shared_experts = 1,
     .num_experts_per_tok = 4,
     .n_group = 4,
     .topk_group = 2,
     .num_attention_heads = 8,
     .q_lora_rank = 128,
     .kv_lora_rank = 128,
     .qk_nope_head_dim = 32,
     .qk_rope_head_dim = 32,
     .v_head_dim = 32,
     .eos_token_id = 1},
};
enum { N_SHAPES = sizeof shapes / sizeof shapes[0] };

/* All of DeepSeek-V3 (R1, V3.1): 671 B parameters, for --hollow; V3.2, the whole and the slice, has
 * an indexer in every layer. */
static bool find_v3(const char *preset, synth_shape *shape) {
    const bool v32 = strncmp(preset, "v32", 3) == 0, slice = strcmp(preset, "v32-slice") == 0;
    if (!slice && strcmp(preset, "v32") != 0 && strcmp(preset, "v3") != 0) return false;
    *shape = shapes[0]; /* v3-slice */
    shape->preset = preset;
    if (!slice) {
        shape->num_hidden_layers = 61, shape->first_k_dense_replace = 3;
        shape->vocab_size = 129280, shape->n_routed_experts = 256;
    }
    if (v32) shape->index_n_heads = 64, shape->index_head_dim = 128, shape->index_topk = 2048;
    return true;
}

bool synth_find(const char *preset, synth_shape *shape) {
    if (find_v3(preset, shape)) return true;
    for (size_t i = 0; i < N_SHAPES; i++) {
        if (strcmp(preset, shapes[i].preset) != 0) continue;
        *shape = shapes[i];
        return true;
    }
    return synth_find_dense(preset, shape);
}

const char *synth_names(void) {
    return "v3-slice, v3, v32-slice, v32, v2-lite-half, tiny, " SYNTH_DENSE_NAMES;
}

bool synth_cut(synth_shape *s, uint32_t n_layers, uint32_t n_vocabulary, bool mtp) {
    if (n_layers > s->num_hidden_layers || n_vocabulary > s->vocab_size) return false;
    if (n_layers) s->num_hidden_layers = n_layers;
    if (s->first_k_dense_replace > s->num_hidden_layers)
        s->first_k_dense_replace = s->num_hidden_layers;
    if (n_vocabulary) s->vocab_size = n_vocabulary;
    if (s->eos_token_id >= s->vocab_size) s->bos_token_id = 0, s->eos_token_id = 1;
    s->mtp = mtp;
    return !mtp || s->family == SYNTH_V3;
}

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

synth_tensor *synth_add(synth_list *l, const char *prefix, const char *name, dsi_dtype dtype,
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
void synth_add_matrix(synth_list *l, const char *prefix, const char *name, int64_t rows,
                      int64_t columns, double gain) {
    char full[72];
    const synth_form *form = l->form;
    bool packed = form->dtype == DSI_DTYPE_I4; /* columns are multiples of 8 in every preset */
    double deviation = gain / sqrt((double)columns);
    snprintf(full, sizeof full, "%s.weight%s", name, packed ? "_packed" : "");
    synth_add(l, prefix, full, packed ? DSI_DTYPE_I32 : form->dtype, rows,
              packed ? columns / 8 : columns, SYNTH_NORMAL)
        ->deviation = deviation;
    if (form->scale_kind == DSI_SCALE_NONE) return;
    dsi_scale_span span = dsi_scale_span_of(form->scale_kind, form->scale_group, columns);
    snprintf(full, sizeof full, "%s.%s", name, form->scale_name);
    synth_add(l, prefix, full, form->scale_dtype, dsi_ceil_div(rows, span.n),
              dsi_ceil_div(columns, span.k), SYNTH_SCALES)
        ->deviation = deviation / synth_per_deviation(form->dtype);
    if (!packed) return;
    snprintf(full, sizeof full, "%s.weight_shape", name);
    synth_tensor *shape = synth_add(l, prefix, full, DSI_DTYPE_I64, 0, 2, SYNTH_SHAPE);
    shape->weight[0] = rows;
    shape->weight[1] = columns;
}

/* Matrices that stay BF16 in FP8 checkpoints. */
void synth_add_bf16(synth_list *l, const char *prefix, const char *name, int64_t rows,
                    int64_t columns, double deviation) {
    synth_add(l, prefix, name, DSI_DTYPE_BF16, rows, columns, SYNTH_NORMAL)->deviation = deviation;
}

void synth_add_mlp(synth_list *l, const synth_shape *s, const char *prefix, const char *name,
                   int64_t inter) {
    /* The gain keeps the residual stream from growing with the layers. */
    static const char *const parts[3] = {"gate_proj", "up_proj", "down_proj"};
    char full[56];
    for (int i = 0; i < 3; i++) {
        snprintf(full, sizeof full, "%s.%s", name, parts[i]);
        synth_add_matrix(l, prefix, full, i < 2 ? inter : s->hidden_size,
                         i < 2 ? s->hidden_size : inter, i < 2 ? 1 : 0.3);
    }
}

static void add_indexer(synth_list *l, const synth_shape *s, const char *prefix) {
    const int64_t hidden = s->hidden_size, dim = s->index_head_dim;
    synth_add_matrix(l, prefix, "self_attn.indexer.wq_b", s->index_n_heads * dim, s->q_lora_rank,
                     1);
    synth_add_matrix(l, prefix, "self_attn.indexer.wk", dim, hidden, 1);
    synth_add(l, prefix, "self_attn.indexer.k_norm.weight", DSI_DTYPE_BF16, 0, dim, SYNTH_ONES);
    synth_add(l, prefix, "self_attn.indexer.k_norm.bias", DSI_DTYPE_BF16, 0, dim, SYNTH_ZEROS);
    synth_add_bf16(l, prefix, "self_attn.indexer.weights_proj.weight", s->index_n_heads, hidden,
                   1 / sqrt((double)hidden));
}

static void add_attention(synth_list *l, const synth_shape *s, const char *prefix) {
    int64_t q_rows = s->num_attention_heads * (s->qk_nope_head_dim + s->qk_rope_head_dim);
    if (s->q_lora_rank) {
        synth_add_matrix(l, prefix, "self_attn.q_a_proj", s->q_lora_rank, s->hidden_size, 1);
        synth_add(l, prefix, "self_attn.q_a_layernorm.weight", DSI_DTYPE_BF16, 0, s->q_lora_rank,
                  SYNTH_ONES);
        synth_add_matrix(l, prefix, "self_attn.q_b_proj", q_rows, s->q_lora_rank, 1);
    } else {
        synth_add_matrix(l, prefix, "self_attn.q_proj", q_rows, s->hidden_size, 1);
    }
    synth_add_matrix(l, prefix, "self_attn.kv_a_proj_with_mqa",
                     s->kv_lora_rank + s->qk_rope_head_dim, s->hidden_size, 1);
    synth_add(l, prefix, "self_attn.kv_a_layernorm.weight", DSI_DTYPE_BF16, 0, s->kv_lora_rank,
              SYNTH_ONES);
    synth_add_matrix(l, prefix, "self_attn.kv_b_proj",
                     s->num_attention_heads * (s->qk_nope_head_dim + s->v_head_dim),
                     s->kv_lora_rank, 1);
    synth_add_matrix(l, prefix, "self_attn.o_proj", s->hidden_size,
                     s->num_attention_heads * s->v_head_dim, 0.3);
    if (s->index_topk) add_indexer(l, s, prefix);
}

static void add_layer(synth_list *l, const synth_shape *s, int64_t layer) {
    char prefix[40], name[40];
    snprintf(prefix, sizeof prefix, "model.layers.%" PRId64 ".", layer);
    if (synth_is_dense(s)) {
        synth_add_dense_layer(l, s, prefix);
        return;
    }
    synth_add(l, prefix, "input_layernorm.weight", DSI_DTYPE_BF16, 0, s->hidden_size, SYNTH_ONES);
    add_attention(l, s, prefix);
    synth_add(l, prefix, "post_attention_layernorm.weight", DSI_DTYPE_BF16, 0, s->hidden_size,
              SYNTH_ONES);
    if (layer < s->first_k_dense_replace) {
        synth_add_mlp(l, s, prefix, "mlp", s->intermediate_size);
        return;
    }
    synth_add_bf16(l, prefix, "mlp.gate.weight", s->n_routed_experts, s->hidden_size,
                   1 / sqrt((double)s->hidden_size));
    if (s->family == SYNTH_V3)
        synth_add(l, prefix, "mlp.gate.e_score_correction_bias", DSI_DTYPE_F32, 0,
                  s->n_routed_experts, SYNTH_ZEROS);
    synth_add_mlp(l, s, prefix, "mlp.shared_experts",
                  s->n_shared_experts * s->moe_intermediate_size);
    for (int64_t e = 0; e < s->n_routed_experts; e++) {
        snprintf(name, sizeof name, "mlp.experts.%" PRId64, e);
        synth_add_mlp(l, s, prefix, name, s->moe_intermediate_size);
    }
}

/* The block that drafts, behind the last layer: embeddings and head are stored once more. */
static void add_mtp(synth_list *l, const synth_shape *s, int64_t layer) {
    const int64_t hidden = s->hidden_size;
    char prefix[40];
    static const char *const norms[] = {"enorm.weight", "hnorm.weight", "shared_head.norm.weight"};
    snprintf(prefix, sizeof prefix, "model.layers.%" PRId64 ".", layer);
    synth_add_bf16(l, prefix, "embed_tokens.weight", s->vocab_size, hidden, 1);
    for (int i = 0; i < 3; i++)
        synth_add(l, prefix, norms[i], DSI_DTYPE_BF16, 0, hidden, SYNTH_ONES);
    synth_add_bf16(l, prefix, "eh_proj.weight", hidden, 2 * hidden, 1 / sqrt(2.0 * (double)hidden));
    add_layer(l, s, layer);
    synth_add_bf16(l, prefix, "shared_head.head.weight", s->vocab_size, hidden,
                   1 / sqrt((double)hidden));
}

bool synth_list_make(const synth_shape *s, const synth_form *form, synth_list *l) {
    *l = (synth_list){.form = form};
    synth_add_bf16(l, "", "model.embed_tokens.weight", s->vocab_size, s->hidden_size, 1);
    for (int64_t layer = 0; layer < s->num_hidden_layers; layer++) add_layer(l, s, layer);
    synth_add(l, "", "model.norm.weight", DSI_DTYPE_BF16, 0, s->hidden_size, SYNTH_ONES);
    synth_add_bf16(l, "", "lm_head.weight", s->vocab_size, s->hidden_size,
                   1 / sqrt((double)s->hidden_size));
    if (s->mtp) add_mtp(l, s, s->num_hidden_layers);
    if (l->no_memory) synth_list_free(l);
    return !l->no_memory;
}

void synth_list_free(synth_list *l) {
    free(l->tensors);
    l->tensors = NULL;
    l->n = l->capacity = 0;
}

/* ---- config.json ---------------------------------------------------------------------------- */

void synth_write_number(FILE *file, const char *key, int64_t value) {
    fprintf(file, "  \"%s\": %" PRId64 ",\n", key, value);
}

static void write_experts(FILE *file, const synth_shape *s) {
    const bool v3 = s->family == SYNTH_V3;
    synth_write_number(file, "moe_intermediate_size", s->moe_intermediate_size);
    synth_write_number(file, "n_routed_experts", s->n_routed_experts);
    synth_write_number(file, "n_shared_experts", s->n_shared_experts);
    synth_write_number(file, "num_experts_per_tok", s->num_experts_per_tok);
    synth_write_number(file, "n_group", s->n_group);
    synth_write_number(file, "topk_group", s->topk_group);
    synth_write_number(file, "moe_layer_freq", 1);
    fprintf(file,
            "  \"norm_topk_prob\": %s,\n  \"scoring_func\": \"%s\",\n  \"topk_method\": \"%s\",\n"
            "  \"routed_scaling_factor\": %s,\n",
            v3 ? "true" : "false", v3 ? "sigmoid" : "softmax", v3 ? "noaux_tc" : "greedy",
            v3 ? "2.5" : "1.0");
}

static void write_deepseek(FILE *file, const synth_shape *s) {
    const bool v3 = s->family == SYNTH_V3;
    const char *mscale = v3 ? "1.0" : "0.707";
    fprintf(file, "  \"architectures\": [\"%s\"],\n  \"model_type\": \"%s\",\n",
            s->index_topk ? "DeepseekV32ForCausalLM"
            : v3          ? "DeepseekV3ForCausalLM"
                          : "DeepseekV2ForCausalLM",
            s->index_topk ? "deepseek_v32"
            : v3          ? "deepseek_v3"
                          : "deepseek_v2");
    if (s->index_topk) {
        synth_write_number(file, "index_n_heads", s->index_n_heads);
        synth_write_number(file, "index_head_dim", s->index_head_dim);
        synth_write_number(file, "index_topk", s->index_topk);
    }
    synth_write_number(file, "first_k_dense_replace", s->first_k_dense_replace);
    write_experts(file, s);
    synth_write_number(file, "num_key_value_heads", s->num_attention_heads);
    if (s->q_lora_rank)
        synth_write_number(file, "q_lora_rank", s->q_lora_rank);
    else
        fputs("  \"q_lora_rank\": null,\n", file);
    synth_write_number(file, "kv_lora_rank", s->kv_lora_rank);
    synth_write_number(file, "qk_nope_head_dim", s->qk_nope_head_dim);
    synth_write_number(file, "qk_rope_head_dim", s->qk_rope_head_dim);
    synth_write_number(file, "v_head_dim", s->v_head_dim);
    synth_write_number(file, "max_position_embeddings", 163840);
    if (s->mtp) synth_write_number(file, "num_nextn_predict_layers", 1);
    fprintf(file,
            "  \"attention_bias\": false,\n  \"rms_norm_eps\": 1e-06,\n  \"rope_theta\": 10000,\n"
            "  \"rope_scaling\": {\"beta_fast\": 32, \"beta_slow\": 1, \"factor\": 40, "
            "\"mscale\": %s, \"mscale_all_dim\": %s, "
            "\"original_max_position_embeddings\": 4096, \"type\": \"yarn\"},\n",
            mscale, mscale);
}

void synth_write_config(FILE *file, const synth_shape *s, const synth_form *form) {
    fputs("{\n", file);
    if (synth_is_dense(s))
        synth_write_dense(file, s);
    else
        write_deepseek(file, s);
    synth_write_number(file, "hidden_size", s->hidden_size);
    synth_write_number(file, "num_hidden_layers", s->num_hidden_layers);
    synth_write_number(file, "vocab_size", s->vocab_size);
    synth_write_number(file, "intermediate_size", s->intermediate_size);
    synth_write_number(file, "num_attention_heads", s->num_attention_heads);
    synth_write_number(file, "bos_token_id", s->bos_token_id);
    synth_write_number(file, "eos_token_id", s->eos_token_id);
    if (form->config) fprintf(file, "  \"quantization_config\": %s,\n", form->config);
    fputs("  \"hidden_act\": \"silu\",\n  \"tie_word_embeddings\": false,\n"
          "  \"torch_dtype\": \"bfloat16\"\n}\n",
          file);
}
