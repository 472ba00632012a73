/* test_kernel_paths.c: every kernel set against the reference kernels at the same rounding points.
 *
 * Left to itself, one BF16 rounding that falls the other way (a last-bit difference in f32 is
 * enough) perturbs all later ones, and the distance of two runs says nothing about kernels. So the
 * reference run records what every op rounds (BF16 outputs, cached rows, chosen experts); the run
 * under test must round each value to the same or a neighbouring number, is put back in step, and
 * its logits must then agree. */
#include "../lib/internal.h"
#include "golden.h"
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

/* What the ops rounded, in order. */
static struct {
    uint8_t *bytes;
    size_t n, capacity, at;
    bool recording;
    uint64_t n_values, n_flips;
    double worst; /* largest distance of a flip, in units of the tolerance */
    double noise; /* what may differ before the rounding, in units of the row's largest */
} tape;
static const dsi_backend *real;

static float bf16(uint16_t bits) {
    uint32_t u = (uint32_t)bits << 16;
    float f;
    memcpy(&f, &u, 4);
    return f;
}

static uint8_t *tape_next(size_t n) {
    if (tape.recording && tape.at + n > tape.capacity) {
        tape.capacity = 2 * (tape.at + n);
        tape.bytes = realloc(tape.bytes, tape.capacity);
    }
    if (tape.recording) tape.n = tape.at + n;
    assert_true(tape.at + n <= tape.n);
    uint8_t *p = tape.bytes + tape.at;
    tape.at += n;
    return p;
}

/* A neighbour: within one BF16 step of its own size, or within noise of the row's scale. */
static void check_flip(float ref, float ours, float row_max) {
    double allowed = fabs((double)ref) * 0x1p-7 + (double)row_max * tape.noise;
    double ratio = fabs((double)ref - ours) / allowed;
    if (!(ratio <= tape.worst)) tape.worst = ratio;
    tape.n_flips++;
}

static void keep_in_step(dsi_dev_stream *s, const dsi_tensor *t, int64_t row) {
    uint64_t width = dsi_dtype_bytes(t->dtype), n = (uint64_t)t->ne[0] * width;
    uint64_t offset = t->offset + (uint64_t)(row * t->stride[1]) * width;
    uint8_t *recorded = tape_next(n);
    if (tape.recording) {
        real->read(s, recorded, t->buf, offset, n);
        return;
    }
    uint8_t ours[65536];
    assert_true(n <= sizeof ours);
    real->read(s, ours, t->buf, offset, n);
    if (t->dtype == DSI_DTYPE_BF16) {
        const uint16_t *a = (const uint16_t *)(const void *)recorded;
        const uint16_t *b = (const uint16_t *)(const void *)ours;
        float row_max = 0;
        for (int64_t i = 0; i < t->ne[0]; i++) row_max = fmaxf(row_max, fabsf(bf16(a[i])));
        for (int64_t i = 0; i < t->ne[0]; i++)
            if (a[i] != b[i]) check_flip(bf16(a[i]), bf16(b[i]), row_max);
        tape.n_values += (uint64_t)t->ne[0];
    } else {
        assert_memory_equal(recorded, ours, n); /* the same experts */
    }
    real->write(s, t->buf, offset, recorded, n);
}

/* Attention rounds probabilities inside: one that falls the other way moves the output by a
 * BF16 step of a value, which may be larger than the mean it goes into. Experts round their hidden
 * activations inside, which moves the residual stream less. */
static bool is_attention(dsi_op_kind kind) {
    return kind == DSI_OP_MLA_ATTEND || kind == DSI_OP_MLA_EXPAND_ATTEND ||
           kind == DSI_OP_GQA_ATTEND;
}

static dsi_status op_run(dsi_dev_stream *s, const dsi_op *op, dsi_buf *workspace, uint64_t offset) {
    dsi_status st = real->op_run(s, op, workspace, offset);
    tape.noise = is_attention(op->kind) ? 0x1p-7 : 1e-3;
    if (op->kind == DSI_OP_KV_WRITE) {
        const dsi_tensor *slots = op->in[1];
        for (int64_t r = 0; r < op->in[0]->ne[1]; r++) {
            int64_t slot;
            real->read(s, &slot, slots->buf, slots->offset + (uint64_t)r * 8, 8);
            keep_in_step(s, op->out[0], slot);
        }
        return st;
    }
    for (uint32_t i = 0; i < op->n_out; i++) {
        const dsi_tensor *t = op->out[i];
        if (t->dtype != DSI_DTYPE_BF16 && t->dtype != DSI_DTYPE_I32) continue;
        for (int64_t r = 0; r < t->ne[1]; r++) keep_in_step(s, t, r);
    }
    return st;
}

static float *run(dsi_model *model, const golden *g, const char *kernels) {
    dsi_engine_options o;
    dsi_engine_options_init(&o);
    o.kernels = kernels;
    o.n_threads = 2;
    o.max_context = 512;
    dsi_engine *e = open_engine(model, &o);
    assert_non_null(e);
    real = e->backend;
    dsi_backend between = *real;
    between.op_run = op_run;
    e->backend = &between;
    tape.at = 0;
    dsi_session_options so;
    dsi_session_options_init(&so);
    so.all_logits = 1;
    dsi_session *s;
    assert_int_equal(dsi_session_open(e, &so, &s), DSI_OK);
    float *out = calloc(g->n_tokens * g->vocab, sizeof *out);
    assert_true(all_logits(e, s, g->tokens, g->n_tokens, g->vocab, out));
    dsi_session_close(s);
    e->backend = real;
    dsi_engine_close(e);
    return out;
}

static void check_case(const char *dir) {
    const char *kernels[KERNEL_SETS];
    size_t n = kernel_sets(kernels);
    char path[320];
    golden g;
    dsi_model *model;
    snprintf(path, sizeof path, "%s/golden.safetensors", dir);
    assert_true(golden_open(path, &g));
    assert_int_equal(dsi_model_open(dir, NULL, &model), DSI_OK);
    tape.recording = true;
    float *ref = run(model, &g, "ref");
    tape.recording = false;
    for (size_t i = 1; i < n; i++) {
        tape.n_values = tape.n_flips = 0;
        tape.worst = 0;
        float *ours = run(model, &g, kernels[i]);
        distance d = compare_logits(ref, ours, g.n_tokens, g.vocab);
        double share = (double)tape.n_flips / (double)tape.n_values;
        print_message("%-32s %-10s mean KL %.2e max KL %.2e, %.4f%% of %llu roundings to the "
                      "neighbour, farthest %.2f of allowed\n",
                      dir, kernels[i], d.mean_kl, d.max_kl, 100 * share,
                      (unsigned long long)tape.n_values, tape.worst);
        assert_true(d.mean_kl <= 1e-6);
        assert_true(share <= 1e-3);
        assert_true(tape.worst <= 1);
        free(ours);
    }
    free(ref);
    dsi_model_close(model);
    golden_close(&g);
}

static void test_kernel_paths(void **state) {
    (void)state;
    static const char *const dirs[] = {"tests/data/golden/llama",  "tests/data/golden/qwen2",
                                       "tests/data/golden/v2",     "tests/data/golden/v2-lite",
                                       "tests/data/golden/v3-odd", "tests/data/golden/v3-bf16",
                                       "tests/data/golden/v3-fp8", "tests/data/golden/v3-yarn",
                                       "tests/data/golden/v32",    "examples/models/tiny-gov"};
    for (size_t i = 0; i < sizeof dirs / sizeof dirs[0]; i++) check_case(dirs[i]);
    free(tape.bytes);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_kernel_paths)};
    return cmocka_run_group_tests_name("kernel_paths", tests, NULL, NULL);
}
