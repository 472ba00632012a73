/* fuzz_snapshot.c: the input is a byte and a saved session of the golden checkpoint qwen2
 * (reference kernels, f32). With an odd byte the checksums are made right, as somebody who forges a
 * file would. A restore is all or nothing: what is refused leaves an empty session that answers as
 * a new one. */
#include "../../include/deepseek/dsinfer.h"
#include "fuzz.h"

enum { SNAPSHOT_VOCABULARY = 512, SNAPSHOT_HEAD = 16, SNAPSHOT_PARTS = 6 };

/* The sums of lib/snapshot.c. */
static uint64_t snapshot_sum(uint64_t sum, const uint8_t *data, size_t n) {
    for (uint64_t word; n >= 8; data += 8, n -= 8) {
        memcpy(&word, data, 8);
        sum ^= word * 0x9E3779B97F4A7C15u;
        sum = (sum << 27 | sum >> 37) * 0xBF58476D1CE4E5B9u;
        sum += 0x94D049BB133111EBu;
    }
    return sum;
}
static void mend_snapshot(uint8_t *file, size_t n) {
    size_t at = SNAPSHOT_HEAD;
    for (int part = 0; part < SNAPSHOT_PARTS; part++) {
        uint64_t n_bytes, sum;
        if (n < at || n - at < 24) return;
        memcpy(&n_bytes, file + at + 8, 8);
        if (n_bytes > n - at - 24 || n_bytes % 8 != 0) return;
        sum = snapshot_sum(0, file + at, 16 + n_bytes);
        memcpy(file + at + 16 + n_bytes, &sum, 8);
        at += 24 + n_bytes;
    }
    if (n < at || n - at < 8) return;
    uint64_t sum = snapshot_sum(0, file, at);
    memcpy(file + at, &sum, 8);
}

static dsi_engine *snapshot_engine(void) {
    static dsi_engine *engine;
    static dsi_model *model;
    dsi_engine_options o;
    dsi_engine_options_init(&o);
    o.n_threads = 1;
    o.max_context = 96;
    o.kv_tokens = 192;
    o.chunk_tokens = 8;
    o.kernels = "ref";
    o.activations = DSI_ACTIVATIONS_F32;
    if (engine) return engine;
    if (dsi_model_open("tests/data/golden/qwen2", NULL, &model) ||
        dsi_engine_open(model, &o, &engine)) {
        fprintf(stderr, "%s (run from the root of the repository)\n", dsi_last_error(NULL));
        abort();
    }
    return engine;
}

/* One token behind a prompt of three. */
static int32_t answer_snapshot(dsi_session *s) {
    static const int32_t prompt[] = {1, 2, 3};
    int32_t token = -1;
    FUZZ_MUST(dsi_session_append(s, prompt, 3) == DSI_OK);
    FUZZ_MUST(dsi_session_next(s, &token) == DSI_OK);
    return token;
}

/* Whatever the file said, calls end in a token or in an error that is one of theirs. */
static void use_snapshot(dsi_session *s) {
    const int32_t *tokens;
    size_t n = 0;
    int32_t token = -1;
    FUZZ_MUST(dsi_session_tokens(s, &tokens, &n) == DSI_OK && n <= 96);
    for (size_t i = 0; i < n; i++) FUZZ_MUST(tokens[i] >= 0 && tokens[i] < SNAPSHOT_VOCABULARY);
    dsi_status status = dsi_session_next(s, &token);
    FUZZ_MUST(status == DSI_OK || status == DSI_E_NAN || status == DSI_E_CONTEXT ||
              status == DSI_E_STATE);
    FUZZ_MUST(token >= -1 && token < SNAPSHOT_VOCABULARY);
    if (status == DSI_OK) dsi_session_next(s, &token);
    FUZZ_MUST(dsi_session_rewind(s, n / 2) == DSI_OK);
    FUZZ_MUST(dsi_session_n_tokens(s) + dsi_session_n_queued(s) == n / 2);
    dsi_session_next(s, &token);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n) {
    static int32_t first = -1;
    dsi_session *session = NULL;
    if (n == 0) return 0;
    uint8_t *file = malloc(n);
    FUZZ_MUST(file != NULL && dsi_session_open(snapshot_engine(), NULL, &session) == DSI_OK);
    if (first < 0) first = answer_snapshot(session);
    FUZZ_MUST(dsi_session_rewind(session, 0) == DSI_OK);
    memcpy(file, data + 1, n - 1);
    if (data[0] & 1) mend_snapshot(file, n - 1);
    fuzz_write("session", file, n - 1);
    free(file);
    dsi_status status = dsi_session_restore(session, fuzz_path("session"));
    if (status == DSI_OK) {
        use_snapshot(session);
    } else {
        fuzz_refused(dsi_last_error(session));
        FUZZ_MUST(dsi_session_n_tokens(session) == 0 && dsi_session_n_queued(session) == 0);
        if (n % 16 == 0) FUZZ_MUST(answer_snapshot(session) == first);
    }
    dsi_session_close(session);
    return 0;
}
