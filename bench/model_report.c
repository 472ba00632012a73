/* model_report.c: the rows of `dsi-bench model` as a table, as lines, as JSON. */
#include "model.h"

#include "../lib/base/sys.h"
#include <string.h>

/* Megabytes of this process now, the yardstick not counted; 0 where there is no /proc. */
typedef struct resident {
    double all, anonymous, file, peak;
} resident;

static resident resident_now(const model_run *r) {
    resident m = {0};
    char line[256];
    unsigned long long kb;
    FILE *f = fopen("/proc/self/status", "r");
    while (f && fgets(line, sizeof line, f)) {
        if (sscanf(line, "VmRSS: %llu", &kb) == 1) m.all = (double)kb * 1024 / 1e6;
        if (sscanf(line, "VmHWM: %llu", &kb) == 1) m.peak = (double)kb * 1024 / 1e6;
        if (sscanf(line, "RssAnon: %llu", &kb) == 1) m.anonymous = (double)kb * 1024 / 1e6;
        if (sscanf(line, "RssFile: %llu", &kb) == 1) m.file = (double)kb * 1024 / 1e6;
    }
    if (f) fclose(f);
    double own = (double)bench_yardstick_bytes(r->yardstick) / 1e6;
    if (m.all > own) m.all -= own, m.peak -= own, m.anonymous -= own;
    return m;
}

static const model_row *first_row(const model_run *r, bool is_decode, const char *mode) {
    static const model_row none;
    for (uint32_t i = 0; i < r->n_rows; i++)
        if (r->rows[i].is_decode == is_decode && strcmp(r->rows[i].mode, mode) == 0)
            return &r->rows[i];
    return &none;
}

static double part(double of, double whole) { return whole > 0 ? 100 * of / whole : 0; }

/* ---- A table --------------------------------------------------------------------------------- */

static void print_md_row(const model_row *row) {
    const bench_limits *l = &row->limits;
    double best = l->bf16_gflops > 0 ? l->bf16_gflops : l->f32_gflops;
    if (row->is_decode) {
        printf("| decode, batch %u, depth %u | %s | %.2f | %.2f | %.2f | %.2f | ", row->batch,
               row->depth, row->mode, row->tps, row->p50 * 1e3, row->p90 * 1e3, row->p99 * 1e3);
        printf("%.1f GB/s of weights, %.1f of cache: %.0f %% of %.1f", row->gbs, row->kv_gbs,
               part(row->gbs + row->kv_gbs, l->read_gbs), l->read_gbs);
        if (row->batch > 1 && row->experts > 0) printf("; %.1f experts", row->experts);
        puts(" |");
    } else {
        printf("| prefill %u, depth %u | %s | %.2f | %.1f | %.1f | %.1f | ", row->tokens,
               row->depth, row->mode, row->tps, row->p50 * 1e3, row->p90 * 1e3, row->p99 * 1e3);
        printf("%.0f GFLOP/s of weights: %.0f %% of %.0f; first token %.3f s |\n", row->gflops,
               part(row->gflops, best), best, row->first_token_seconds);
    }
}

static void print_md(const model_run *r) {
    const bench_limits *l = &r->limits;
    resident m = resident_now(r);
    const dsi_memory_plan *plan = &r->sides[0].plan;
    dsi_memory_use use = {.struct_size = sizeof use};
    dsi_memory_report(&use);
    printf("%s\n\n", r->options->model);
    for (uint32_t i = 0; i < r->n_sides; i++)
        printf("%s: %s\n", r->sides[i].mode, dsi_engine_describe(r->sides[i].engine));
    printf(
        "\n| work | mode | tok/s | ms p50 | p90 | p99 | reach |\n|---|---|---|---|---|---|---|\n");
    for (uint32_t i = 0; i < r->n_rows; i++) print_md_row(&r->rows[i]);
    printf("\nLimits in between (medians): read %.1f GB/s; f32 %.0f, bf16 %.0f GFLOP/s; int8 %.0f "
           "GOP/s; "
           "%.2f GHz; %u threads.\n",
           l->read_gbs, l->f32_gflops, l->bf16_gflops, l->int8_gops, l->clock_ghz, l->n_threads);
    printf(
        "Memory: plan %.0f MB of weights, %.0f of KV, %.0f of scratch; in use %.0f MB beside %.0f "
        "mapped; resident %.0f MB (%.0f of files, %.0f own), at most %.0f.\n",
        (double)plan->n_bytes_weights / 1e6, (double)plan->n_bytes_kv / 1e6,
        (double)plan->n_bytes_scratch / 1e6, (double)use.n_bytes_total / 1e6,
        (double)use.n_bytes_mapped / 1e6, m.all, m.file, m.anonymous, m.peak);
    printf("Open %.3f s. Contexts beyond 512 tokens: %s.\n", r->sides[0].open_seconds,
           strcmp(r->options->fill, "copy") == 0 ? "256 computed rows, copied" : "computed");
    model_drafts_md(r);
    model_profiles_md(r);
}

/* ---- Lines ----------------------------------------------------------------------------------- */

static void print_csv(const model_run *r) {
    puts("work,mode,tokens,depth,batch,tps,ms_p50,ms_p90,ms_p99,first_token_seconds,gflops,gbs,"
         "kv_gbs,bytes_per_step,experts,read_gbs,peak_bf16_gflops,peak_int8_gops");
    for (uint32_t i = 0; i < r->n_rows; i++) {
        const model_row *w = &r->rows[i];
        printf("%s,%s,%u,%u,%u,%.3f,%.3f,%.3f,%.3f,%.4f,%.2f,%.3f,%.3f,%llu,%.2f,%.2f,%.1f,%.1f\n",
               w->is_decode ? "decode" : "prefill", w->mode, w->tokens, w->depth, w->batch, w->tps,
               w->p50 * 1e3, w->p90 * 1e3, w->p99 * 1e3, w->first_token_seconds, w->gflops, w->gbs,
               w->kv_gbs, (unsigned long long)w->n_bytes_step, w->experts, w->limits.read_gbs,
               w->limits.bf16_gflops, w->limits.int8_gops);
    }
}

/* ---- JSON ------------------------------------------------------------------------------------ */

static void print_text(const char *text) {
    putchar('"');
    for (; *text; text++) {
        if (*text == '"' || *text == '\\') putchar('\\');
        putchar((unsigned char)*text < 32 ? ' ' : *text);
    }
    putchar('"');
}

static void print_json_row(const model_run *r, const model_row *w) {
    printf("{\"work\": \"%s\", \"mode\": \"%s\", \"tokens\": %u, \"depth\": %u, \"batch\": %u, "
           "\"tps\": %.3f, \"ms_p50\": %.3f, \"ms_p90\": %.3f, \"ms_p99\": %.3f",
           w->is_decode ? "decode" : "prefill", w->mode, w->tokens, w->depth, w->batch, w->tps,
           w->p50 * 1e3, w->p90 * 1e3, w->p99 * 1e3);
    printf(", \"read_gbs\": %.3f, \"peak_bf16_gflops\": %.1f, \"peak_int8_gops\": %.1f",
           w->limits.read_gbs, w->limits.bf16_gflops, w->limits.int8_gops);
    if (w->is_decode)
        printf(", \"gbs\": %.3f, \"kv_gbs\": %.3f, \"bytes_per_step\": %llu, \"experts\": %.2f",
               w->gbs, w->kv_gbs, (unsigned long long)w->n_bytes_step, w->experts);
    else
        printf(", \"gflops\": %.2f, \"first_token_seconds\": %.4f", w->gflops,
               w->first_token_seconds);
    if (w->drafts.n_steps) model_drafts_json(r, &w->drafts);
    putchar('}');
}

static void print_summary(const model_run *r, const model_side *side) {
    const model_row *p = first_row(r, false, side->mode), *d = first_row(r, true, side->mode);
    printf("\"prefill_tps\": %.3f, \"decode_tps\": %.3f, \"decode_gbs\": %.3f, "
           "\"prefill_gflops\": %.2f, \"decode_step_ms_p50\": %.3f, \"decode_step_ms_p90\": %.3f, "
           "\"decode_step_ms_p99\": %.3f, \"first_token_seconds\": %.4f, \"open_seconds\": %.4f, "
           "\"engine\": ",
           p->tps, d->tps, d->gbs, p->gflops, d->p50 * 1e3, d->p90 * 1e3, d->p99 * 1e3,
           p->first_token_seconds, side->open_seconds);
    print_text(dsi_engine_describe(side->engine));
}

static void print_json(const model_run *r) {
    const bench_limits *l = &r->limits;
    const model_row *p = first_row(r, false, "exact"), *d = first_row(r, true, "exact");
    const dsi_memory_plan *plan = &r->sides[0].plan;
    resident m = resident_now(r);
    dsi_memory_use use = {.struct_size = sizeof use};
    dsi_memory_report(&use);
    printf("{\"schema\": 2, \"model\": ");
    print_text(r->options->model);
    printf(", \"mode\": \"exact\", ");
    print_summary(r, &r->sides[0]);
    printf(
        ", \"prefill\": %u, \"decode\": %u, \"depth\": %u, \"batch\": %u, \"bytes_per_token\": %llu"
        ", \"read_gbs\": %.3f, \"peak_f32_gflops\": %.1f, \"peak_bf16_gflops\": %.1f, "
        "\"peak_int8_gops\": %.1f, \"clock_ghz\": %.3f, \"threads\": %u, \"resident_mb\": %.1f, "
        "\"resident_own_mb\": %.1f, \"resident_peak_mb\": %.1f, \"mapped_mb\": %.1f, "
        "\"in_use_mb\": %.1f, \"plan_mb\": {\"weights\": %.1f, \"kv\": %.1f, \"scratch\": %.1f}, "
        "\"fill\": \"%s\"",
        p->tokens, d->tokens, r->options->depth.values[0], d->batch,
        (unsigned long long)r->info.n_bytes_token, l->read_gbs, l->f32_gflops, l->bf16_gflops,
        l->int8_gops, l->clock_ghz, l->n_threads, m.all, m.anonymous, m.peak,
        (double)use.n_bytes_mapped / 1e6, (double)use.n_bytes_total / 1e6,
        (double)plan->n_bytes_weights / 1e6, (double)plan->n_bytes_kv / 1e6,
        (double)plan->n_bytes_scratch / 1e6, r->options->fill);
    for (uint32_t i = 1; i < r->n_sides; i++) {
        printf(", \"%s\": {", r->sides[i].mode);
        print_summary(r, &r->sides[i]);
        putchar('}');
    }
    printf(", \"runs\": [");
    for (uint32_t i = 0; i < r->n_rows; i++) {
        if (i) printf(", ");
        print_json_row(r, &r->rows[i]);
    }
    if (r->n_profiles) {
        printf("], \"profiles\": [");
        model_profiles_json(r);
    }
    puts("]}");
}

void model_report(const model_run *r) {
    if (r->options->format == BENCH_JSON)
        print_json(r);
    else if (r->options->format == BENCH_CSV)
        print_csv(r);
    else
        print_md(r);
}
