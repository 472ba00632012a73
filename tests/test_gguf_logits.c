/* test_gguf_logits.c: models in GGUF that llama.cpp's converter wrote, against the reference's
 * logits and against folders of safetensors with the same numbers; the same file cut into parts,
 * and with kv_b_proj whole as in older files. */
#include "adapter_files.h"
#include "golden.h"

#include "../kernels/formats.h"
#include "gguf_files.h"
#include "gguf_source.h"

static const char LLAMA[] = "tests/data/gguf/llama-f32.gguf";
static const char V3[] = "tests/data/gguf/v3-bf16-q8_0.gguf";

/* ---- Logits --------------------------------------------------------------------------------- */

static const char *adapter_folder; /* NULL: without an adapter */

static float *logits_of(const char *path, const golden *g, const char *kernels, uint32_t attention,
                        uint32_t activations) {
    dsi_model *model;
    dsi_session *session;
    dsi_engine_options o;
    dsi_session_options so;
    dsi_engine_options_init(&o);
    dsi_session_options_init(&so);
    o.kernels = kernels, o.attention = attention, o.activations = activations;
    o.max_context = 512;
    so.all_logits = 1;
    if (dsi_model_open(path, NULL, &model)) fail_msg("%s", dsi_last_error(NULL));
    dsi_engine *engine = open_engine(model, &o);
    assert_non_null(engine);
    if (adapter_folder && dsi_adapter_open(engine, adapter_folder, NULL, &so.adapter))
        fail_msg("%s", dsi_last_error(NULL));
    assert_int_equal(dsi_session_open(engine, &so, &session), DSI_OK);
    float *out = calloc(g->n_tokens * g->vocab, sizeof *out);
    assert_non_null(out);
    assert_true(all_logits(engine, session, g->tokens, g->n_tokens, g->vocab, out));
    dsi_session_close(session);
    dsi_adapter_close(so.adapter);
    dsi_engine_close(engine);
    dsi_model_close(model);
    return out;
}

static distance distance_of(const golden *g, float *a, float *b) {
    distance d = compare_logits(a, b, g->n_tokens, g->vocab);
    free(b);
    return d;
}

/* ---- Files with the same numbers ------------------------------------------------------------ */

/* Element i of a tensor of the checkpoint, by formulas of this file alone. */
static float value_at(const uint8_t *data, dsi_dtype dtype, int64_t i) {
    float f;
    switch (dtype) {
    case DSI_DTYPE_F32:
        memcpy(&f, data + 4 * i, 4);
        return f;
    case DSI_DTYPE_F16:
        return dsi_f16_to_f32((uint16_t)(data[2 * i] | data[2 * i + 1] << 8));
    case DSI_DTYPE_Q8_0: /* 32 signed bytes behind one F16 */
        data += i / 32 * 34;
        return dsi_f16_to_f32((uint16_t)(data[0] | data[1] << 8)) * (float)(int8_t)data[2 + i % 32];
    default:
        fail_msg("type %s in the test's file", dsi_dtype_name(dtype));
        return 0;
    }
}

static float *decoded(const dsi_checkpoint *c, const dsi_file_tensor *t, int64_t *n) {
    *n = 1;
    for (uint32_t d = 0; d < t->n_dims; d++) *n *= t->shape[d];
    float *values = calloc((size_t)*n, sizeof *values);
    assert_non_null(values);
    for (int64_t i = 0; i < *n; i++) values[i] = value_at(dsi_checkpoint_data(c, t), t->dtype, i);
    return values;
}

/* kv_b_proj of a layer, [heads][nope + v][latent], out of its halves; NULL: not this layer's. */
static float *whole_kv_b(const dsi_checkpoint *c, uint32_t layer, const dsi_config *config) {
    char name[128];
    int64_t n;
    int64_t nope = config->qk_nope_head_dim, v = config->v_head_dim, latent = config->kv_lora_rank;
    snprintf(name, sizeof name, "model.layers.%u.self_attn.k_b_proj.weight", layer);
    float *k_b = decoded(c, dsi_checkpoint_find(c, name), &n);
    snprintf(name, sizeof name, "model.layers.%u.self_attn.v_b_proj.weight", layer);
    float *v_b = decoded(c, dsi_checkpoint_find(c, name), &n);
    float *whole = calloc((size_t)(config->n_heads * (nope + v) * latent), sizeof *whole);
    assert_non_null(whole);
    for (int64_t h = 0; h < config->n_heads; h++) {
        float *to = whole + h * (nope + v) * latent;
        for (int64_t i = 0; i < nope; i++)
            for (int64_t j = 0; j < latent; j++)
                to[i * latent + j] = k_b[(h * latent + j) * nope + i];
        memcpy(to + nope * latent, v_b + h * v * latent, (size_t)(v * latent) * sizeof *to);
    }
    free(k_b);
    free(v_b);
    return whole;
}

/* model.safetensors in F32, beside the config.json of the golden case. */
static void write_folder(const char *folder, const char *gguf_path, const char *golden_folder) {
    dsi_checkpoint c;
    dsi_config config;
    dsi_error error = {0};
    assert_ok(dsi_checkpoint_open_gguf(gguf_path, NULL, NULL, &c, &error), &error);
    assert_ok(dsi_config_load(golden_folder, &config, &error), &error);
    gguf_file header = {0}, data = {0};
    put_bytes(&header, "{", 1);
    for (uint32_t i = 0; i < c.n_tensors; i++) {
        const dsi_file_tensor *t = &c.tensors[i];
        char line[512], name[256];
        unsigned layer;
        snprintf(name, sizeof name, "%s", t->name);
        int64_t n, shape[2] = {t->shape[0], t->shape[1]};
        if (strstr(name, ".v_b_proj.")) continue;
        float *values = NULL;
        if (sscanf(name, "model.layers.%u.self_attn.k_b_proj", &layer) == 1 &&
            strstr(name, ".k_b_proj.")) {
            values = whole_kv_b(&c, layer, &config);
            snprintf(name, sizeof name, "model.layers.%u.self_attn.kv_b_proj.weight", layer);
            shape[0] = config.n_heads * (config.qk_nope_head_dim + config.v_head_dim);
            shape[1] = config.kv_lora_rank;
            n = shape[0] * shape[1];
        } else {
            values = decoded(&c, t, &n);
        }
        char dims[64];
        snprintf(dims, sizeof dims, t->n_dims == 1 ? "%lld" : "%lld,%lld", (long long)shape[0],
                 (long long)shape[1]);
        int length =
            snprintf(line, sizeof line,
                     "%s\"%s\":{\"dtype\":\"F32\",\"shape\":[%s],\"data_offsets\":[%zu,%zu]}",
                     header.n > 1 ? "," : "", name, dims, data.n, data.n + (size_t)n * 4);
        put_bytes(&header, line, (size_t)length);
        put_bytes(&data, values, (size_t)n * 4);
        free(values);
    }
    put_bytes(&header, "}", 1);
    gguf_file whole = {0};
    put_number(&whole, header.n, 8);
    put_bytes(&whole, header.data, header.n);
    put_bytes(&whole, data.data, data.n);
    write_file(folder, "model.safetensors", whole.data, whole.n);
    link_file(golden_folder, folder, "config.json");
    free_gguf(&header), free_gguf(&data), free_gguf(&whole);
    dsi_checkpoint_close(&c);
    dsi_config_free(&config);
}

/* ---- The same model as other files ---------------------------------------------------------- */

static void copy_tensor(gguf_file *f, const dsi_gguf_tensor *t, uint64_t offset) {
    uint32_t type = t->dtype == DSI_DTYPE_F32 ? 0 : t->dtype == DSI_DTYPE_F16 ? 1 : 8;
    put_text(f, t->name, t->name_bytes);
    put_number(f, t->n_dims, 4);
    for (uint32_t d = 0; d < t->n_dims; d++) put_number(f, (uint64_t)t->ne[d], 8);
    put_number(f, type, 4);
    put_number(f, offset, 8);
}
static void align(gguf_file *f) { put_data(f, 0); }

/* The keys of a file as they lie, with the counts of another header. */
static gguf_file begin_copy(const source *s, uint64_t n_tensors, uint64_t n_more_keys) {
    const char *first = s->gguf.tensors[0].name;
    for (uint32_t i = 1; i < s->gguf.n_tensors; i++)
        if (s->gguf.tensors[i].name < first) first = s->gguf.tensors[i].name;
    const size_t begin = 24, end = (size_t)(first - 8 - (const char *)s->map.data);
    gguf_file f = begin_gguf(n_tensors, s->gguf.n_values + n_more_keys);
    put_bytes(&f, s->map.data + begin, end - begin);
    return f;
}

/* Part `number` of `n`: the tensors whose place in the list is number modulo n. */
static void write_part(const char *folder, const source *s, uint32_t number, uint32_t n,
                       uint32_t says_n) {
    uint32_t n_tensors = 0;
    for (uint32_t i = number; i < s->gguf.n_tensors; i += n) n_tensors++;
    gguf_file f = number == 0 ? begin_copy(s, n_tensors, 3) : begin_gguf(n_tensors, 3);
    put_key_u32(&f, "split.no", number);
    put_key_u32(&f, "split.count", says_n);
    put_key_u32(&f, "split.tensors.count", s->gguf.n_tensors);
    uint64_t offset = 0;
    for (uint32_t i = number; i < s->gguf.n_tensors; i += n) {
        copy_tensor(&f, &s->gguf.tensors[i], offset);
        offset += (s->gguf.tensors[i].n_bytes + 31) / 32 * 32;
    }
    for (uint32_t i = number; i < s->gguf.n_tensors; i += n) {
        const dsi_gguf_tensor *t = &s->gguf.tensors[i];
        align(&f);
        put_bytes(&f, s->map.data + t->file_offset, t->n_bytes);
    }
    char name[64];
    snprintf(name, sizeof name, "m-%05u-of-%05u.gguf", number + 1, n);
    write_file(folder, name, f.data, f.n);
    free_gguf(&f);
}

/* With kv_b whole in F32 in front, and the halves left out or kept. */
static void write_whole(const char *path, const source *s, const char *golden_folder, bool both) {
    dsi_checkpoint c;
    dsi_config config;
    dsi_error error = {0};
    assert_ok(dsi_checkpoint_open_gguf(V3, NULL, NULL, &c, &error), &error);
    assert_ok(dsi_config_load(golden_folder, &config, &error), &error);
    const int64_t rows = config.n_heads * (config.qk_nope_head_dim + config.v_head_dim);
    const uint64_t n_bytes = (uint64_t)rows * config.kv_lora_rank * 4;
    gguf_file f = begin_copy(s, 0, 0);
    uint64_t offset = 0, n_written = 0;
    for (uint32_t layer = 0; layer < config.n_layers; layer++, offset += n_bytes) {
        char name[64];
        snprintf(name, sizeof name, "blk.%u.attn_kv_b.weight", layer);
        put_tensor(&f, name, config.kv_lora_rank, (uint64_t)rows, 0, offset);
        n_written++;
    }
    bool *kept = calloc(s->gguf.n_tensors, sizeof *kept);
    assert_non_null(kept);
    for (uint32_t i = 0; i < s->gguf.n_tensors; i++) {
        const dsi_gguf_tensor *t = &s->gguf.tensors[i];
        char name[128];
        snprintf(name, sizeof name, "%.*s", (int)t->name_bytes, t->name);
        kept[i] = both || (!strstr(name, "attn_k_b.") && !strstr(name, "attn_v_b."));
        if (!kept[i]) continue;
        copy_tensor(&f, t, offset);
        offset += (t->n_bytes + 31) / 32 * 32;
        n_written++;
    }
    for (size_t i = 0; i < 8; i++) f.data[8 + i] = (uint8_t)(n_written >> (8 * i));
    for (uint32_t layer = 0; layer < config.n_layers; layer++) {
        float *whole = whole_kv_b(&c, layer, &config);
        align(&f);
        put_bytes(&f, whole, n_bytes);
        free(whole);
    }
    for (uint32_t i = 0; i < s->gguf.n_tensors; i++) {
        if (!kept[i]) continue;
        align(&f);
        put_bytes(&f, s->map.data + s->gguf.tensors[i].file_offset, s->gguf.tensors[i].n_bytes);
    }
    FILE *file = fopen(path, "wb");
    assert_non_null(file);
    assert_int_equal(fwrite(f.data, 1, f.n, file), f.n);
    assert_int_equal(fclose(file), 0);
    free(kept);
    free_gguf(&f);
    dsi_checkpoint_close(&c);
    dsi_config_free(&config);
}

/* ---- Tests ---------------------------------------------------------------------------------- */

static void open_golden(const char *name, golden *g) {
    char path[128];
    snprintf(path, sizeof path, "tests/data/golden/%s/golden.safetensors", name);
    assert_true(golden_open(path, g));
}

/* Llama: q and k reordered, frequencies divided by rope_freqs. F32: the reference's logits. */
static void test_llama(void **state) {
    (void)state;
    const char *kernels[KERNEL_SETS];
    size_t n = kernel_sets(kernels);
    golden g;
    open_golden("llama", &g);
    for (size_t i = 0; i < n; i++) {
        float *ours = logits_of(LLAMA, &g, kernels[i], 0, DSI_ACTIVATIONS_F32);
        distance d = distance_of(&g, (float *)(uintptr_t)g.logits, ours);
        print_message("llama %s: mean KL %.2e\n", kernels[i], d.mean_kl);
        assert_true(d.mean_kl <= 1e-9);
    }
    golden_close(&g);
}

/* DeepSeek-V3 in Q8_0: experts in one tensor, kv_b in two. The folder holds the same numbers in
 * F32, so what is left is the order of sums; to the golden logits there is the rounding of Q8_0. */
static void test_v3(void **state) {
    (void)state;
    const char *kernels[KERNEL_SETS];
    size_t n = kernel_sets(kernels);
    char folder[64];
    golden g;
    open_golden("v3-bf16", &g);
    temp_folder(folder);
    write_folder(folder, V3, "tests/data/golden/v3-bf16");
    for (size_t i = 0; i < n; i++) {
        for (uint32_t form = DSI_ATTENTION_ABSORBED; form <= DSI_ATTENTION_EXPANDED; form++) {
            float *plain = logits_of(folder, &g, kernels[i], form, DSI_ACTIVATIONS_F32);
            distance d =
                distance_of(&g, plain, logits_of(V3, &g, kernels[i], form, DSI_ACTIVATIONS_F32));
            distance far = distance_of(&g, (float *)(uintptr_t)g.logits, plain);
            print_message("v3 q8_0 %s: mean KL %.2e to its numbers in F32, %.2e to the model\n",
                          kernels[i], d.mean_kl, far.mean_kl);
            assert_true(d.mean_kl <= 1e-8);
            assert_true(far.mean_kl <= 5e-2);
        }
        float *bf16 = logits_of(V3, &g, kernels[i], 0, DSI_ACTIVATIONS_BF16);
        distance d = distance_of(&g, (float *)(uintptr_t)g.logits, bf16);
        print_message("v3 q8_0 %s bf16: mean KL %.2e\n", kernels[i], d.mean_kl);
        assert_true(d.mean_kl <= 5e-2);
    }
    remove_folder(folder);
    golden_close(&g);
}

/* An adapter of kv_b where that lies in two halves, in both forms, beside the same numbers whole.
 */
static void test_v3_adapter(void **state) {
    (void)state;
    const recipe r = {.modules = "|kv_b_proj|",
                      .rank = 6,
                      .alpha = 12,
                      .dtype = DSI_DTYPE_F32,
                      .seed = 6,
                      .strength = 0.5f};
    char folder[64], adapted[64];
    golden g;
    dsi_model *model;
    open_golden("v3-bf16", &g);
    temp_folder(folder);
    temp_folder(adapted);
    write_folder(folder, V3, "tests/data/golden/v3-bf16");
    assert_int_equal(dsi_model_open(folder, NULL, &model), DSI_OK);
    write_adapter(adapted, model, &r);
    dsi_model_close(model);
    for (uint32_t form = DSI_ATTENTION_AUTO; form <= DSI_ATTENTION_EXPANDED; form++) {
        float *without = logits_of(folder, &g, NULL, form, DSI_ACTIVATIONS_F32);
        adapter_folder = adapted;
        float *whole = logits_of(folder, &g, NULL, form, DSI_ACTIVATIONS_F32);
        float *halves = logits_of(V3, &g, NULL, form, DSI_ACTIVATIONS_F32);
        adapter_folder = NULL;
        distance effect = distance_of(&g, whole, without), d = distance_of(&g, whole, halves);
        print_message("v3 q8_0, adapter of kv_b, form %u: mean KL %.2e, without it %.2e\n", form,
                      d.mean_kl, effect.mean_kl);
        assert_true(d.mean_kl <= 1e-8 && effect.mean_kl > 1e-3);
        free(whole);
    }
    remove_folder(folder);
    remove_folder(adapted);
    golden_close(&g);
}

/* Three parts: bit for bit the answers of one file, whichever part is named. */
static void test_parts(void **state) {
    (void)state;
    char folder[64], path[160];
    golden g;
    dsi_model *model;
    source s = open_source(V3);
    open_golden("v3-bf16", &g);
    temp_folder(folder);
    for (uint32_t i = 0; i < 3; i++) write_part(folder, &s, i, 3, 3);
    float *one = logits_of(V3, &g, NULL, 0, DSI_ACTIVATIONS_BF16);
    for (int part = 1; part <= 3; part += 2) {
        snprintf(path, sizeof path, "%s/m-0000%d-of-00003.gguf", folder, part);
        float *parts = logits_of(path, &g, NULL, 0, DSI_ACTIVATIONS_BF16);
        assert_memory_equal(one, parts, g.n_tokens * g.vocab * sizeof *one);
        free(parts);
    }
    write_part(folder, &s, 1, 3, 4); /* says that it is of four */
    assert_int_equal(dsi_model_open(path, NULL, &model), DSI_E_MODEL);
    assert_non_null(strstr(dsi_last_error(NULL), "part 2 of 4"));
    snprintf(path, sizeof path, "%s/m-00002-of-00003.gguf", folder);
    unlink(path);
    assert_int_equal(dsi_model_open(path, NULL, &model), DSI_E_IO);
    assert_non_null(strstr(dsi_last_error(NULL), "m-00002-of-00003.gguf"));
    free(one);
    remove_folder(folder);
    close_source(&s);
    golden_close(&g);
}

/* Older files have kv_b whole, some have it beside its halves. */
static void test_whole_kv_b(void **state) {
    (void)state;
    char folder[64], path[160];
    golden g;
    source s = open_source(V3);
    open_golden("v3-bf16", &g);
    temp_folder(folder);
    snprintf(path, sizeof path, "%s/old.gguf", folder);
    float *halves = logits_of(V3, &g, NULL, 0, DSI_ACTIVATIONS_F32);
    for (int both = 0; both < 2; both++) {
        write_whole(path, &s, "tests/data/golden/v3-bf16", both);
        distance d = distance_of(&g, halves, logits_of(path, &g, NULL, 0, DSI_ACTIVATIONS_F32));
        print_message("kv_b whole%s: mean KL %.2e\n", both ? ", with its halves" : "", d.mean_kl);
        assert_true(d.mean_kl <= 1e-8);
    }
    free(halves);
    remove_folder(folder);
    close_source(&s);
    golden_close(&g);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_llama),      cmocka_unit_test(test_v3),
        cmocka_unit_test(test_v3_adapter), cmocka_unit_test(test_parts),
        cmocka_unit_test(test_whole_kv_b),
    };
    return cmocka_run_group_tests_name("gguf_logits", tests, NULL, NULL);
}
