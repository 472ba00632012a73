/* quantize_gguf_keys.c: the header of a GGUF: what config.json, tokenizer.json and
 * tokenizer_config.json say, in the keys of llama.cpp's converter (gguf.md of ggml). */
#include "quantize.h"

#include "../../lib/base/json.h"
#include "../../lib/base/sys.h"
#include "../../lib/text/tokenizer_rules.h"
#include "../gguf_write.h"
#include <stdlib.h>
#include <string.h>

/* ---- The model ------------------------------------------------------------------------------ */

static void write_rope(gguf_keys *k, const dsi_config *c, uint32_t dim) {
    const dsi_rope_config *r = &c->rope;
    gguf_key_number(k, ".rope.dimension_count", dim);
    gguf_key_real(k, ".rope.freq_base", r->theta);
    if (r->kind != DSI_ROPE_YARN) return; /* Llama 3's is a tensor */
    gguf_key_text(k, ".rope.scaling.type", "yarn");
    gguf_key_real(k, ".rope.scaling.factor", r->factor);
    gguf_key_number(k, ".rope.scaling.original_context_length", (int64_t)r->original_max_position);
    gguf_key_real(k, ".rope.scaling.yarn_beta_fast", r->beta_fast);
    gguf_key_real(k, ".rope.scaling.yarn_beta_slow", r->beta_slow);
    if (r->mscale_all_dim > 0)
        gguf_key_real(k, ".rope.scaling.yarn_log_multiplier", 0.1 * r->mscale_all_dim);
}

static void write_mla(gguf_keys *k, const dsi_config *c) {
    gguf_key_number(k, ".attention.head_count_kv", 1); /* one latent for all heads */
    if (c->q_lora_rank) gguf_key_number(k, ".attention.q_lora_rank", c->q_lora_rank);
    gguf_key_number(k, ".attention.kv_lora_rank", c->kv_lora_rank);
    gguf_key_number(k, ".attention.key_length", c->kv_lora_rank + c->qk_rope_head_dim);
    gguf_key_number(k, ".attention.value_length", c->kv_lora_rank);
    gguf_key_number(k, ".attention.key_length_mla", c->qk_nope_head_dim + c->qk_rope_head_dim);
    gguf_key_number(k, ".attention.value_length_mla", c->v_head_dim);
    write_rope(k, c, c->qk_rope_head_dim);
}

static void write_experts(gguf_keys *k, const dsi_config *c) {
    enum { SOFTMAX = 1, SIGMOID = 2 };
    bool groups = c->router != DSI_ROUTER_GREEDY;
    gguf_key_number(k, ".leading_dense_block_count", c->first_k_dense);
    gguf_key_number(k, ".expert_feed_forward_length", c->moe_intermediate_size);
    gguf_key_number(k, ".expert_count", c->n_routed_experts);
    gguf_key_number(k, ".expert_used_count", c->n_experts_per_token);
    gguf_key_number(k, ".expert_shared_count", c->n_shared_experts);
    gguf_key_number(k, ".expert_group_count", groups ? c->n_group : 1);
    gguf_key_number(k, ".expert_group_used_count", groups ? c->topk_group : 1);
    gguf_key_number(k, ".expert_gating_func",
                    c->scoring == DSI_SCORING_SIGMOID ? SIGMOID : SOFTMAX);
    gguf_key_real(k, ".expert_weights_scale", c->routed_scaling_factor);
    gguf_key_bool(k, ".expert_weights_norm", c->norm_topk_prob);
}

static void write_model(gguf_keys *k, const quantize_plan *p) {
    enum { FILE_TYPE_Q8_0 = 7, FILE_TYPE_Q4_K_M = 15 };
    const dsi_config *c = p->config;
    const char *dir = p->from->dir, *name = dir + strlen(dir);
    while (name > dir && name[-1] == '/') name--; /* the last part of the path */
    size_t n_name = (size_t)(name - dir);
    while (name > dir && name[-1] != '/') name--;
    gguf_key_text(k, "general.architecture", k->arch);
    gguf_key_text(k, "general.type", "model");
    gguf_key(k, "general.name", DSI_GGUF_STRING);
    gguf_write_bytes(k->file, name, n_name - (size_t)(name - dir));
    gguf_key_number(k, "general.file_type",
                    p->form->blocks == DSI_DTYPE_Q8_0 ? FILE_TYPE_Q8_0 : FILE_TYPE_Q4_K_M);
    gguf_key_number(k, "general.quantization_version", 2);
    gguf_key_number(k, ".block_count", c->n_layers);
    gguf_key_number(k, ".context_length", c->max_position);
    gguf_key_number(k, ".embedding_length", c->hidden_size);
    gguf_key_number(k, ".feed_forward_length", c->intermediate_size);
    gguf_key_number(k, ".vocab_size", c->vocab_size);
    gguf_key_number(k, ".attention.head_count", c->n_heads);
    gguf_key_real(k, ".attention.layer_norm_rms_epsilon", c->rms_norm_eps);
    if (c->arch->attention == DSI_ATTENTION_MLA) {
        write_mla(k, c);
    } else {
        gguf_key_number(k, ".attention.head_count_kv", c->n_kv_heads);
        gguf_key_number(k, ".attention.key_length", c->head_dim);
        gguf_key_number(k, ".attention.value_length", c->head_dim);
        write_rope(k, c, c->head_dim);
    }
    if (c->n_routed_experts) write_experts(k, c);
}

/* ---- The tokenizer -------------------------------------------------------------------------- */

enum { TOKEN_NORMAL = 1, TOKEN_CONTROL = 3, TOKEN_USER_DEFINED = 4, TOKEN_UNUSED = 5 };
enum { MAX_FILE_BYTES = 128 << 20, MAX_NODES = 12 << 20 };

typedef struct json_file {
    char *text;
    uint64_t n_bytes;
    dsi_json json;
} json_file;

/* Not there: all of it stays zero. */
static int read_json(const quantize_plan *p, const char *name, json_file *file) {
    char path[4096];
    dsi_error error = {0};
    int n = snprintf(path, sizeof path, "%s/%s", p->from->dir, name);
    if (n < 0 || (size_t)n >= sizeof path || !dsi_sys_is_file(path)) return CLI_OK;
    dsi_status status =
        dsi_sys_read_file(path, MAX_FILE_BYTES, &file->text, &file->n_bytes, &error);
    if (status == DSI_OK)
        status = dsi_json_parse(file->text, file->n_bytes, MAX_NODES, &file->json, &error);
    if (status == DSI_OK) return CLI_OK;
    cli_error("%s: %s", path, error.text);
    return cli_status_exit(status);
}
static void free_json(json_file *file) {
    dsi_json_free(&file->json);
    dsi_sys_free(file->text);
}

/* A JSON string as it stands unescaped; nothing for another kind of value. */
static void write_string(FILE *file, const dsi_json *json, uint32_t node) {
    uint64_t n_bytes = 0;
    char *text = dsi_json_string(json, node, &n_bytes);
    gguf_write_bytes(file, text ? text : "", n_bytes);
    dsi_sys_free(text);
}

typedef struct vocabulary {
    const json_file *file;
    uint32_t n;     /* ids, those that no token has among them */
    uint32_t *node; /* [n] its text; 0: unused */
    uint8_t *type;  /* [n] */
} vocabulary;

/* "<|...|>" and the same with wide bars are marks whatever their flag says: else a text of a user
 * could hold them. */
static bool looks_special(const dsi_json *json, uint32_t node) {
    uint64_t n = 0;
    char *text = dsi_json_string(json, node, &n);
    static const char wide[] = "<｜", wide_end[] = "｜>";
    enum { N_WIDE = sizeof wide - 1 };
    bool narrow =
        text && n >= 4 && memcmp(text, "<|", 2) == 0 && memcmp(text + n - 2, "|>", 2) == 0;
    bool bars = text && n >= 2 * N_WIDE && memcmp(text, wide, N_WIDE) == 0 &&
                memcmp(text + n - N_WIDE, wide_end, N_WIDE) == 0;
    dsi_sys_free(text);
    return narrow || bars;
}

static void set_token(vocabulary *v, uint32_t id_node, uint32_t node, uint8_t type) {
    uint64_t id;
    if (!dsi_json_u64(&v->file->json, id_node, &id) || id >= v->n) return; /* the loader looked */
    v->node[id] = node;
    v->type[id] = type;
}

static void list_tokens(vocabulary *v) {
    const dsi_json *json = &v->file->json;
    uint32_t vocab = dsi_json_get(json, dsi_json_get(json, 0, "model"), "vocab");
    uint32_t added = dsi_json_get(json, 0, "added_tokens");
    for (uint32_t i = vocab + 1; i < json->nodes[vocab].end; i = json->nodes[i + 1].end)
        set_token(v, i + 1, i, TOKEN_NORMAL);
    if (added == DSI_JSON_NONE) return;
    for (uint32_t i = added + 1; i < json->nodes[added].end; i = json->nodes[i].end) {
        uint32_t content = dsi_json_get(json, i, "content");
        bool special = false;
        dsi_json_bool(json, dsi_json_get(json, i, "special"), &special);
        special = special || looks_special(json, content);
        set_token(v, dsi_json_get(json, i, "id"), content,
                  special ? TOKEN_CONTROL : TOKEN_USER_DEFINED);
    }
}

static void write_tokens(gguf_keys *k, const vocabulary *v) {
    gguf_key_list(k, "tokenizer.ggml.tokens", DSI_GGUF_STRING, v->n);
    for (uint32_t id = 0; id < v->n; id++) {
        char unused[32];
        snprintf(unused, sizeof unused, "[PAD%u]", id);
        if (v->node[id])
            write_string(k->file, &v->file->json, v->node[id]);
        else
            gguf_write_text(k->file, unused);
    }
    gguf_key_list(k, "tokenizer.ggml.token_type", DSI_GGUF_I32, v->n);
    for (uint32_t id = 0; id < v->n; id++) gguf_write_u32(k->file, v->node[id] ? v->type[id] : 5);
}

/* "left right", or, in newer files, the two of them. */
static void write_merges(gguf_keys *k, const dsi_json *json) {
    uint32_t merges = dsi_json_get(json, dsi_json_get(json, 0, "model"), "merges");
    gguf_key_list(k, "tokenizer.ggml.merges", DSI_GGUF_STRING, json->nodes[merges].n_items);
    for (uint32_t i = merges + 1; i < json->nodes[merges].end; i = json->nodes[i].end) {
        if (json->nodes[i].kind == DSI_JSON_STRING) {
            write_string(k->file, json, i);
            continue;
        }
        uint64_t n_left = 0, n_right = 0;
        char *left = dsi_json_string(json, i + 1, &n_left);
        char *right = dsi_json_string(json, i + 2, &n_right);
        gguf_write_u64(k->file, n_left + 1 + n_right);
        if (left) fwrite(left, 1, n_left, k->file);
        fputc(' ', k->file);
        if (right) fwrite(right, 1, n_right, k->file);
        dsi_sys_free(left);
        dsi_sys_free(right);
    }
}

/* A mark that tokenizer_config.json names, as a text or an object with one; else `fallback`; none
 * if both are absent. */
static void write_mark(gguf_keys *k, const dsi_tokenizer *tokenizer, const dsi_json *config,
                       const char *name, const char *key, int32_t fallback) {
    int32_t id = -1;
    if (config->n_nodes) {
        uint32_t node = dsi_json_get(config, 0, name);
        uint32_t content = dsi_json_get(config, node, "content");
        char *text = dsi_json_string(config, content == DSI_JSON_NONE ? node : content, NULL);
        if (text) id = dsi_tokenizer_special(tokenizer, text);
        dsi_sys_free(text);
    }
    if (id < 0) id = fallback;
    if (id >= 0) gguf_key_number(k, key, id);
}

static void write_flag(gguf_keys *k, const dsi_json *config, const char *name, const char *key) {
    bool value;
    if (config->n_nodes && dsi_json_bool(config, dsi_json_get(config, 0, name), &value))
        gguf_key_bool(k, key, value);
}

/* chat_template of tokenizer_config.json: a text, or several of which one is the default; newer
 * models have a file of their own. */
static void write_template(gguf_keys *k, const quantize_plan *p, const dsi_json *config) {
    static const char key[] = "tokenizer.chat_template";
    uint32_t node = config->n_nodes ? dsi_json_get(config, 0, "chat_template") : DSI_JSON_NONE;
    if (node != DSI_JSON_NONE && config->nodes[node].kind == DSI_JSON_ARRAY) {
        uint32_t list = node;
        node = DSI_JSON_NONE;
        for (uint32_t i = list + 1; i < config->nodes[list].end; i = config->nodes[i].end)
            if (dsi_json_string_is(config, dsi_json_get(config, i, "name"), "default"))
                node = dsi_json_get(config, i, "template");
    }
    if (node != DSI_JSON_NONE && config->nodes[node].kind == DSI_JSON_STRING) {
        gguf_key(k, key, DSI_GGUF_STRING);
        write_string(k->file, config, node);
        return;
    }
    char path[4096], *text = NULL;
    uint64_t n_bytes = 0;
    int n = snprintf(path, sizeof path, "%s/chat_template.jinja", p->from->dir);
    if (n < 0 || (size_t)n >= sizeof path || !dsi_sys_is_file(path)) return;
    if (dsi_sys_read_file(path, 1 << 20, &text, &n_bytes, NULL) == DSI_OK) {
        gguf_key(k, key, DSI_GGUF_STRING);
        gguf_write_bytes(k->file, text, n_bytes);
    }
    dsi_sys_free(text);
}

static int write_vocabulary(gguf_keys *k, const quantize_plan *p, const dsi_tokenizer *tokenizer,
                            const char *pre, const json_file *file, const dsi_json *config) {
    const dsi_config *c = p->config;
    vocabulary v = {.file = file, .n = c->vocab_size};
    v.node = dsi_sys_calloc(v.n, sizeof *v.node);
    v.type = dsi_sys_calloc(v.n, 1);
    if (v.node && v.type) {
        list_tokens(&v);
        gguf_key_text(k, "tokenizer.ggml.model", "gpt2");
        gguf_key_text(k, "tokenizer.ggml.pre", pre);
        write_tokens(k, &v);
        write_merges(k, &file->json);
        write_mark(k, tokenizer, config, "bos_token", "tokenizer.ggml.bos_token_id", c->bos_token);
        write_mark(k, tokenizer, config, "eos_token", "tokenizer.ggml.eos_token_id",
                   c->n_eos_tokens ? c->eos_tokens[0] : -1);
        write_mark(k, tokenizer, config, "pad_token", "tokenizer.ggml.padding_token_id", -1);
        write_flag(k, config, "add_bos_token", "tokenizer.ggml.add_bos_token");
        write_flag(k, config, "add_eos_token", "tokenizer.ggml.add_eos_token");
        write_template(k, p, config);
    }
    int code = v.node && v.type ? CLI_OK : CLI_ENVIRONMENT;
    if (code != CLI_OK) cli_error("%s", dsi_status_text(DSI_E_NOMEM));
    dsi_sys_free(v.node);
    dsi_sys_free(v.type);
    return code;
}

/* Without a tokenizer.json there is none in the file either. */
static int write_tokenizer(gguf_keys *k, const quantize_plan *p) {
    json_file file = {0}, config = {0};
    dsi_tokenizer *tokenizer = NULL;
    dsi_error error = {0};
    const char *pre = NULL;
    int code = read_json(p, "tokenizer.json", &file);
    if (code == CLI_OK && !file.text) {
        gguf_key_text(k, "tokenizer.ggml.model", "no_vocab");
        return CLI_OK;
    }
    if (code == CLI_OK) code = read_json(p, "tokenizer_config.json", &config);
    if (code == CLI_OK) {
        dsi_status status =
            dsi_tokenizer_load_text(file.text, file.n_bytes, NULL, &tokenizer, &error);
        if (status == DSI_OK) pre = dsi_tokenizer_gguf_pre(tokenizer);
        if (status == DSI_OK && !pre)
            status = dsi_fail(&error, DSI_E_UNSUPPORTED,
                              "its rules are those of no name that GGUF has for them");
        if (status == DSI_OK && dsi_tokenizer_n_tokens(tokenizer) > p->config->vocab_size)
            status = dsi_fail(&error, DSI_E_MODEL, "it has %u tokens, vocab_size is %u",
                              dsi_tokenizer_n_tokens(tokenizer), p->config->vocab_size);
        if (status != DSI_OK) {
            cli_error("%s/tokenizer.json: %s", cli_show(p->from->dir).text, error.text);
            code = cli_status_exit(status);
        }
    }
    if (code == CLI_OK) code = write_vocabulary(k, p, tokenizer, pre, &file, &config.json);
    dsi_tokenizer_free(tokenizer);
    free_json(&file);
    free_json(&config);
    return code;
}

/* ---- All of it ------------------------------------------------------------------------------ */

static uint32_t type_number(dsi_dtype dtype) {
    enum { NUMBER_F32 = 0, NUMBER_F16 = 1, NUMBER_BF16 = 30 };
    if (dtype >= DSI_DTYPE_BLOCKS) return dtype - DSI_DTYPE_BLOCKS;
    if (dtype == DSI_DTYPE_F32) return NUMBER_F32;
    return dtype == DSI_DTYPE_F16 ? NUMBER_F16 : NUMBER_BF16;
}

static int write_header(FILE *file, const quantize_plan *p, uint64_t *n_keys) {
    bool mla = p->config->arch->attention == DSI_ATTENTION_MLA;
    gguf_keys k = {.file = file, .arch = mla ? "deepseek2" : p->config->arch->model_type};
    gguf_write_begin(file, p->n_gguf, 0);
    write_model(&k, p);
    int code = write_tokenizer(&k, p);
    *n_keys = k.n;
    for (uint32_t i = 0; i < p->n_gguf && code == CLI_OK; i++) {
        const quantize_gguf_tensor *t = &p->gguf[i];
        gguf_write_tensor(file, t->name, t->n_dims, t->ne, type_number(t->dtype), t->offset);
    }
    return code;
}

int quantize_gguf_header(const quantize_plan *plan, cli_bytes *bytes, uint64_t *n_bytes_header,
                         const char *path) {
    static const char zeros[GGUF_ALIGNMENT];
    char *text = NULL;
    size_t n = 0;
    uint64_t n_keys = 0;
    FILE *file = open_memstream(&text, &n);
    int code = file ? write_header(file, plan, &n_keys) : CLI_ENVIRONMENT;
    bool good = file && !ferror(file);
    if (file && fclose(file) != 0) good = false;
    if (good && code == CLI_OK) {
        for (int i = 0; i < 8; i++) text[GGUF_KEYS_AT + i] = (char)(n_keys >> 8 * i & 255);
        good = cli_bytes_add(bytes, text, n) && cli_bytes_add(bytes, zeros, gguf_aligned(n) - n);
        *n_bytes_header = bytes->n_bytes;
        good = good && (!plan->rope_divisors ||
                        cli_bytes_add(bytes, plan->rope_divisors,
                                      plan->n_rope_divisors * sizeof *plan->rope_divisors));
    }
    free(text);
    if (good) return code;
    cli_error("%s: %s", cli_show(path).text, dsi_status_text(DSI_E_NOMEM));
    return CLI_ENVIRONMENT;
}
