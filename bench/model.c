/* model.c: `dsi-bench model`: prefill and decode of a checkpoint, beside the limits of the machine
 * measured in the same run. Random tokens: the work does not depend on what they say. */
#include "bench.h"

#include "../lib/base/sys.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

enum { MAX_BATCH = 64 };

typedef struct run {
    const bench_options *options;
    dsi_model *model;
    dsi_engine *engine;
    dsi_model_info info;
    dsi_session *sessions[MAX_BATCH];
    uint64_t random;
    double open_seconds;
    double prefill_seconds, *decode_seconds; /* [decode] of each step */
    double read_gbs;
    bench_peaks peaks;
} run;

static int failed(dsi_status status, const void *handle) {
    bench_say("%s: %s", dsi_status_name(status), dsi_last_error(handle));
    return status == DSI_E_MEMORY_CAP || status == DSI_E_NOMEM ? BENCH_ENVIRONMENT : BENCH_BAD_FILE;
}

static dsi_status append_random(run *r, dsi_session *session, uint32_t n_tokens) {
    dsi_status status = DSI_OK;
    for (uint32_t i = 0; status == DSI_OK && i < n_tokens; i++) {
        r->random = r->random * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
        int32_t token = (int32_t)((r->random >> 33) % r->info.vocab_size);
        status = dsi_session_append(session, &token, 1);
    }
    return status;
}

/* Steps until nothing is queued. */
static dsi_status drain(run *r, uint32_t n_sessions, const char *what) {
    for (;;) {
        size_t queued = 0, total = 0, n_rows;
        for (uint32_t i = 0; i < n_sessions; i++) {
            queued += dsi_session_n_queued(r->sessions[i]);
            total += dsi_session_n_queued(r->sessions[i]) + dsi_session_n_tokens(r->sessions[i]);
        }
        if (what) bench_progress(what, total - queued, total);
        if (!queued) return DSI_OK;
        dsi_status status = dsi_engine_step(r->engine, r->sessions, n_sessions, &n_rows);
        if (status != DSI_OK) return status;
    }
}

static dsi_status open_all(run *r) {
    const bench_options *o = r->options;
    double start = dsi_sys_seconds();
    dsi_status status = dsi_model_open(o->model, NULL, &r->model);
    r->info.struct_size = sizeof r->info;
    if (status == DSI_OK) status = dsi_model_get_info(r->model, &r->info);
    dsi_engine_options engine;
    dsi_engine_options_init(&engine);
    engine.n_threads = o->threads;
    engine.kernels = o->kernels;
    engine.max_sessions = o->batch;
    engine.max_context = o->depth + o->prefill + o->decode + 8;
    engine.kv_tokens = engine.max_context * o->batch + 64 * o->batch;
    engine.chunk_tokens = o->chunk;
    if (status == DSI_OK) status = dsi_engine_open(r->model, &engine, &r->engine);
    r->open_seconds = dsi_sys_seconds() - start;
    dsi_session_options session;
    dsi_session_options_init(&session);
    session.ignore_end = 1;
    for (uint32_t i = 0; status == DSI_OK && i < o->batch; i++)
        status = dsi_session_open(r->engine, &session, &r->sessions[i]);
    return status;
}

/* Context first, then the timed prompt in session 0 alone, then the same in the others untimed. */
static dsi_status time_prefill(run *r) {
    const bench_options *o = r->options;
    dsi_status status = DSI_OK;
    for (uint32_t i = 0; status == DSI_OK && i < o->batch; i++)
        status = append_random(r, r->sessions[i], o->depth);
    if (status == DSI_OK) status = drain(r, o->batch, o->depth ? "context" : NULL);
    if (status == DSI_OK) status = append_random(r, r->sessions[0], o->prefill);
    double start = dsi_sys_seconds();
    if (status == DSI_OK) status = drain(r, 1, "prefill");
    r->prefill_seconds = dsi_sys_seconds() - start;
    for (uint32_t i = 1; status == DSI_OK && i < o->batch; i++)
        status = append_random(r, r->sessions[i], o->prefill);
    return status == DSI_OK ? drain(r, o->batch, NULL) : status;
}

static dsi_status time_decode(run *r) {
    const bench_options *o = r->options;
    dsi_status status = DSI_OK;
    for (uint32_t step = 0; status == DSI_OK && step < o->decode; step++) {
        double start = dsi_sys_seconds();
        int32_t token;
        for (uint32_t i = 0; status == DSI_OK && i < o->batch; i++)
            status = dsi_session_sample(r->sessions[i], &token);
        if (status == DSI_OK) status = dsi_engine_step(r->engine, r->sessions, o->batch, NULL);
        r->decode_seconds[step] = dsi_sys_seconds() - start;
        bench_progress("decode", step + 1, o->decode);
    }
    return status;
}

static double percentile(const double *sorted, uint32_t n, double part) {
    return n ? sorted[(uint32_t)(part * (n - 1) + 0.5)] : 0;
}

static void report(run *r) {
    const bench_options *o = r->options;
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    double step = bench_median(r->decode_seconds, o->decode);
    double p95 = percentile(r->decode_seconds, o->decode, 0.95);
    double prefill_tps = o->prefill ? o->prefill / r->prefill_seconds : 0;
    double decode_tps = step > 0 ? o->batch / step : 0;
    double decode_gbs = step > 0 ? (double)r->info.n_bytes_token / step / 1e9 : 0;
    double gflops = 2 * (double)r->info.n_params_active * prefill_tps / 1e9;
    if (!o->json) {
        printf("| what | value |\n|---|---|\n| model | %s |\n| engine | %s |\n", o->model,
               dsi_engine_describe(r->engine));
        printf("| prefill %u at depth %u | %.1f tok/s, %.0f GFLOP/s of weights |\n", o->prefill,
               o->depth, prefill_tps, gflops);
        printf("| decode, batch %u | %.2f tok/s; step median %.2f ms, p95 %.2f ms |\n", o->batch,
               decode_tps, step * 1e3, p95 * 1e3);
        if (o->batch == 1) printf("| weights read in decode | %.1f GB/s |\n", decode_gbs);
        printf("| limits here | read %.1f GB/s; f32 %.0f, bf16 %.0f GFLOP/s; int8 %.0f GOP/s |\n",
               r->read_gbs, r->peaks.f32_gflops, r->peaks.bf16_gflops, r->peaks.int8_gops);
        printf("| open %.2f s; resident at most %.0f MB |  |\n", r->open_seconds,
               (double)usage.ru_maxrss / 1e3);
        return;
    }
    printf("{\"schema\": 1, \"prefill_tps\": %.3f, \"decode_tps\": %.3f, \"decode_gbs\": %.3f, "
           "\"read_gbs\": %.3f, \"prefill_gflops\": %.2f, \"peak_f32_gflops\": %.1f, "
           "\"peak_bf16_gflops\": %.1f, \"peak_int8_gops\": %.1f, \"decode_step_ms_p50\": %.3f, "
           "\"decode_step_ms_p95\": %.3f, \"first_token_seconds\": %.4f, \"open_seconds\": %.4f, "
           "\"resident_mb\": %.1f, \"prefill\": %u, \"decode\": %u, \"depth\": %u, \"batch\": %u, "
           "\"bytes_per_token\": %llu}\n",
           prefill_tps, decode_tps, decode_gbs, r->read_gbs, gflops, r->peaks.f32_gflops,
           r->peaks.bf16_gflops, r->peaks.int8_gops, step * 1e3, p95 * 1e3, r->prefill_seconds,
           r->open_seconds, (double)usage.ru_maxrss / 1e3, o->prefill, o->decode, o->depth,
           o->batch, (unsigned long long)r->info.n_bytes_token);
}

int bench_model(const bench_options *options) {
    run r = {.options = options, .random = options->seed};
    if (!options->model) {
        bench_say("model needs -m DIR, the checkpoint folder");
        return BENCH_USAGE;
    }
    if (options->batch < 1 || options->batch > MAX_BATCH) {
        bench_say("--batch is %u; it may be 1 to %d", options->batch, MAX_BATCH);
        return BENCH_USAGE;
    }
    uint32_t n_threads = options->threads ? options->threads : dsi_sys_cpu_count();
    r.decode_seconds = calloc(options->decode + 1, sizeof *r.decode_seconds);
    if (!r.decode_seconds) return BENCH_ENVIRONMENT;
    r.read_gbs = bench_read_gbs(n_threads);
    r.peaks = bench_measure_peaks(n_threads);
    dsi_status status = open_all(&r);
    if (status == DSI_OK) status = time_prefill(&r);
    if (status == DSI_OK) status = time_decode(&r);
    int code = status == DSI_OK ? BENCH_OK : failed(status, r.engine ? r.engine : NULL);
    if (code == BENCH_OK) report(&r);
    for (uint32_t i = 0; i < MAX_BATCH; i++) dsi_session_close(r.sessions[i]);
    dsi_engine_close(r.engine);
    dsi_model_close(r.model);
    free(r.decode_seconds);
    return code;
}
