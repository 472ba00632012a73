/* test_finite.c: numbers that are not finite. A damaged weight ends the requests that meet it and
 * no other, and with check_layers the message names the first layer and the weight. */
#include "model_files.h"
#include "session_tools.h"

typedef struct poison {
    const char *tensor;
    uint64_t byte; /* of the tensor's data: where the bad value goes */
    uint8_t value[4];
    size_t n_bytes;
    const char *layer, *name; /* what the message must say */
} poison;
#define NAN_BF16 {0xC0, 0x7F}, 2
#define NAN_E4M3 {0x7F}, 1
#define INF_F32 {0x00, 0x00, 0x80, 0x7F}, 4
#define HUGE_F32 {0xFF, 0xFF, 0x7F, 0x7F}, 4

/* A copy of the checkpoint `sound` in `folder` with one value changed; NULL: none. */
static void poisoned_copy(const char *sound, const char *folder, const poison *p) {
    link_file(sound, folder, "config.json");
    bytes file = read_file(sound, "model.safetensors");
    dsi_checkpoint c;
    dsi_error error = {0};
    assert_ok(dsi_checkpoint_open(sound, NULL, NULL, &c, &error), &error);
    const dsi_file_tensor *t = dsi_checkpoint_find(&c, p->tensor);
    if (!t) fail_msg("%s has no %s", sound, p->tensor);
    assert_true(p->byte + p->n_bytes <= t->n_bytes);
    memcpy(file.data + t->file_offset + p->byte, p->value, p->n_bytes);
    dsi_checkpoint_close(&c);
    write_file(folder, "model.safetensors", file.data, file.n);
    free(file.data);
}

static void check_poison(const char *sound, const poison *p) {
    char folder[64];
    temp_folder(folder);
    poisoned_copy(sound, folder, p);
    dsi_model *model = load_model(folder);
    for (uint32_t check = 0; check < 2; check++) {
        dsi_engine_options eo = engine_of(128, 64, 2);
        eo.check_layers = check;
        dsi_engine *e = start_engine(model, &eo);
        dsi_session_options o = hot_options();
        dsi_session *s = start_session(e, &o);
        int32_t token;
        append_made_up(s, 40, 1);
        dsi_status st = dsi_session_next(s, &token);
        if (st != DSI_E_NAN) fail_msg("%s, check %u: status %d", p->tensor, check, st);
        if (check && !strstr(dsi_last_error(s), p->name))
            fail_msg("%s: no '%s' in: %s", p->tensor, p->name, dsi_last_error(s));
        if (check) SAYS(dsi_last_error(s), p->layer, "position", "dsinfer verify");
        if (!check) SAYS(dsi_last_error(s), "logit", "position", "check_layers");
        assert_int_equal(dsi_session_n_tokens(s), 0);             /* nothing half done */
        assert_int_equal(dsi_session_next(s, &token), DSI_E_NAN); /* and it stays so */
        assert_int_equal(dsi_session_sample(s, &token), DSI_E_NAN);
        OK(dsi_session_rewind(s, 0), s);
        dsi_session_close(s);
        assert_pool_empty(e);
        dsi_engine_close(e);
    }
    dsi_model_close(model);
    remove_folder(folder);
}

#define LAYER(n, rest) "model.layers." #n "." rest
static void test_poisoned_v3(void **state) {
    (void)state;
    const poison cases[] = {
        {"model.embed_tokens.weight", 2 * 192 * 0, NAN_BF16, "", "embed_tokens"},
        {LAYER(0, "input_layernorm.weight"), 6, NAN_BF16, "layer 0", "input_layernorm"},
        {LAYER(0, "self_attn.q_a_proj.weight"), 100, NAN_E4M3, "layer 0", "self_attn.q_a_proj"},
        {LAYER(0, "self_attn.q_a_proj.weight_scale_inv"), 0, INF_F32, "layer 0",
         "self_attn.q_a_proj"},
        {LAYER(1, "self_attn.q_b_proj.weight_scale_inv"), 0, INF_F32, "layer 1",
         "self_attn.q_b_proj"},
        {LAYER(2, "self_attn.kv_a_proj_with_mqa.weight"), 7, NAN_E4M3, "layer 2",
         "self_attn.kv_a_proj_with_mqa"},
        {LAYER(2, "self_attn.kv_a_layernorm.weight"), 0, NAN_BF16, "layer 2",
         "self_attn.kv_a_layernorm"},
        {LAYER(1, "self_attn.kv_b_proj.weight"), 33, NAN_E4M3, "layer 1", "self_attn"},
        {LAYER(1, "self_attn.o_proj.weight"), 5, NAN_E4M3, "layer 1", "self_attn.o_proj"},
        {LAYER(2, "post_attention_layernorm.weight"), 2, NAN_BF16, "layer 2",
         "post_attention_layernorm"},
        {LAYER(0, "mlp.gate_proj.weight"), 9, NAN_E4M3, "layer 0", "mlp.gate_proj or mlp.up_proj"},
        {LAYER(0, "mlp.up_proj.weight_scale_inv"), 0, INF_F32, "layer 0",
         "mlp.gate_proj or mlp.up_proj"},
        {LAYER(0, "mlp.down_proj.weight"), 12, NAN_E4M3, "layer 0", "mlp.down_proj"},
        {LAYER(1, "mlp.gate.weight"), 4, NAN_BF16, "layer 1", "mlp.gate"},
        {LAYER(2, "mlp.shared_experts.down_proj.weight"), 3, NAN_E4M3, "layer 2", "mlp.experts"},
        {LAYER(1, "mlp.experts.3.up_proj.weight"), 3, NAN_E4M3, "layer 1", "mlp.experts"},
        {LAYER(1, "mlp.experts.0.down_proj.weight_scale_inv"), 0, HUGE_F32, "layer 1",
         "mlp.experts"},
        {"model.norm.weight", 0, NAN_BF16, "", "norm"},
        {"lm_head.weight", 2 * 192 * 77, NAN_BF16, "", "lm_head"}};
    for (size_t i = SLOW_BUILD ? 5 : 0; i < sizeof cases / sizeof cases[0]; i++) {
        poison p = cases[i];
        /* the embedding of a token that the prompt holds */
        if (i == 0) p.byte = 2 * 192 * (uint64_t)made_up_token(20, 1, 512);
        check_poison(V3_FP8, &p);
    }
}
static void test_poisoned_qwen2(void **state) {
    (void)state;
    const poison cases[] = {
        {LAYER(1, "self_attn.q_proj.bias"), 0, NAN_BF16, "layer 1", "self_attn.q_proj"},
        {LAYER(0, "self_attn.k_proj.weight"), 2, NAN_BF16, "layer 0", "self_attn.k_proj"},
        {LAYER(2, "self_attn.v_proj.bias"), 2, NAN_BF16, "layer 2", "self_attn.v_proj"},
        {LAYER(2, "mlp.down_proj.weight"), 2, NAN_BF16, "layer 2", "mlp.down_proj"}};
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) check_poison(QWEN2, &cases[i]);
}

/* One token of the vocabulary is damaged. Of the sessions in a step, those that hold it fail and
 * the others get the logits of the sound checkpoint, bit for bit. */
static void test_only_its_own_request_ends(void **state) {
    (void)state;
    char folder[64];
    temp_folder(folder);
    enum { BAD_TOKEN = 5, N = 5 };
    poison p = {"model.embed_tokens.weight", 2 * 192 * BAD_TOKEN, NAN_BF16, "", ""};
    poisoned_copy(V3_FP8, folder, &p);
    dsi_model *sound = load_model(V3_FP8), *bad = load_model(folder);
    dsi_engine_options eo = engine_of(128, 256, 8);
    for (uint32_t check = 0; check < 2; check++) {
        eo.check_layers = check;
        dsi_engine *e = start_engine(bad, &eo), *f = start_engine(sound, &eo);
        dsi_session_options o = hot_options();
        dsi_session *s[N], *twin[N];
        size_t n_rows;
        int32_t token = BAD_TOKEN;
        for (uint32_t i = 0; i < N; i++) {
            s[i] = start_session(e, &o), twin[i] = start_session(f, &o);
            append_made_up(twin[i], 20, 40 + i);
            append_made_up(s[i], 20, 40 + i);
            for (uint32_t k = 0; k < 20; k++) assert_true(s[i]->tokens[k] != BAD_TOKEN);
        }
        for (uint32_t i = 1; i < N; i += 2) OK(dsi_session_append(s[i], &token, 1), s[i]);
        OK(dsi_engine_step(e, s, N, &n_rows), e);
        assert_int_equal(n_rows, 60);
        for (uint32_t i = 0; i < N; i++) {
            assert_int_equal(s[i]->outcome, i % 2 ? DSI_E_NAN : DSI_OK);
            if (i % 2) SAYS(dsi_last_error(s[i]), check ? "embed_tokens" : "logit", "position 20");
            if (i % 2 == 0) assert_true(last_hash(s[i]) == last_hash(twin[i]));
        }
        /* without the token the request is sound again */
        OK(dsi_session_rewind(s[1], 20), s[1]);
        assert_true(last_hash(s[1]) == last_hash(twin[1]));
        assert_int_equal(dsi_engine_step(e, s, N, &n_rows), DSI_E_NAN); /* only s[3] is left */
        for (uint32_t i = 0; i < N; i++) dsi_session_close(s[i]), dsi_session_close(twin[i]);
        dsi_engine_close(e);
        dsi_engine_close(f);
    }
    dsi_model_close(sound);
    dsi_model_close(bad);
    remove_folder(folder);
}

/* check_layers looks, and changes nothing. */
static void test_check_layers_changes_no_bit(void **state) {
    (void)state;
    const char *const folders[] = {V3_FP8, QWEN2};
    for (int i = 0; i < 2; i++) {
        dsi_model *model = load_model(folders[i]);
        uint64_t hash[2];
        for (uint32_t check = 0; check < 2; check++) {
            dsi_engine_options eo = engine_of(512, 100, 1);
            eo.check_layers = check;
            dsi_engine *e = start_engine(model, &eo);
            dsi_session_options o = hot_options();
            dsi_session *s = start_session(e, &o);
            append_made_up(s, 300, 1);
            hash[check] = future_hash(s);
            dsi_session_close(s);
            dsi_engine_close(e);
        }
        assert_true(hash[0] == hash[1]);
        dsi_model_close(model);
    }
}

static void test_all_finite(void **state) {
    (void)state;
    float x[67];
    for (int i = 0; i < 67; i++) x[i] = i % 2 ? 3.4e38f : -3.4e38f;
    x[9] = 1e-45f, x[10] = -0.0f;
    for (uint64_t n = 0; n <= 67; n++) assert_true(dsi_all_finite(x, n));
    const float bad[] = {NAN, -NAN, INFINITY, -INFINITY};
    for (int b = 0; b < 4; b++)
        for (int i = 0; i < 67; i++) {
            float before = x[i];
            x[i] = bad[b];
            assert_false(dsi_all_finite(x, 67));
            assert_true(dsi_all_finite(x, (uint64_t)i));
            x[i] = before;
        }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_all_finite),
        cmocka_unit_test(test_poisoned_v3),
        cmocka_unit_test(test_poisoned_qwen2),
        cmocka_unit_test(test_only_its_own_request_ends),
        cmocka_unit_test(test_check_layers_changes_no_bit),
    };
    return cmocka_run_group_tests_name("finite", tests, NULL, NULL);
}
