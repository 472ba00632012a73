/* model_profile.c: `dsi-bench model --profile`: where the time of a decode step goes, op by op:
 * what it reads how fast, how often its threads meet and how long they wait for each other. */
#include "model.h"

#include "../lib/base/sys.h"
#include "../lib/internal.h"
#include <stdlib.h>
#include <string.h>

enum { ROWS = sizeof((dsi_profile *)0)->rows / sizeof(dsi_profile_row), STEPS_BETWEEN_LIMITS = 6 };

/* One line: medians of the steps, of what is the same in all of them the mean. */
typedef struct line {
    const char *name;
    double calls, bytes, meetings, ms, waited_ms;
} line;
struct model_profile {
    const char *mode;
    uint32_t depth, batch, n_steps;
    double read_gbs;
    uint32_t n_lines;
    line lines[ROWS + 2]; /* the ops, what is left of the step, the step */
};

/* The row of that name; steps with drafts do not all have the same. */
static const dsi_profile_row *row_of(const dsi_profile *step, const char *name) {
    static const dsi_profile_row none;
    for (uint32_t i = 0; i < step->n_rows; i++)
        if (strcmp(step->rows[i].name, name) == 0) return &step->rows[i];
    return &none;
}

/* Fills one line from its row in every step. */
static void set_line(line *l, const dsi_profile *steps, uint32_t n, uint32_t row, double *values) {
    *l = (line){.name = steps[0].rows[row].name};
    for (uint32_t i = 0; i < n; i++) {
        const dsi_profile_row *r = row_of(&steps[i], l->name);
        l->calls += (double)r->n_calls / n;
        l->bytes += (double)r->n_bytes / n;
        l->meetings += (double)r->n_meetings / n;
        values[i] = r->seconds * 1e3;
    }
    l->ms = bench_median(values, n);
    for (uint32_t i = 0; i < n; i++)
        values[i] = row_of(&steps[i], l->name)->waited_seconds * 1e3;
    l->waited_ms = bench_median(values, n);
}

/* The steps' own seconds are in *values, which is used up. */
static void summarize(model_profile *p, const dsi_profile *steps, double *values) {
    uint32_t n = p->n_steps;
    line all = {.name = "the step", .ms = bench_median(values, n) * 1e3};
    line rest = {.name = "between ops, and the sampler", .ms = all.ms};
    p->n_lines = steps[0].n_rows;
    for (uint32_t i = 0; i < p->n_lines; i++) {
        line *l = &p->lines[i];
        set_line(l, steps, n, i, values);
        all.calls += l->calls, all.bytes += l->bytes, all.meetings += l->meetings;
        all.waited_ms += l->waited_ms;
        rest.ms -= l->ms;
    }
    p->lines[p->n_lines++] = rest;
    p->lines[p->n_lines++] = all;
}

static dsi_status run_steps(model_run *r, model_side *side, uint32_t batch, dsi_profile *steps,
                            double *seconds) {
    dsi_status status = DSI_OK;
    for (uint32_t step = 0; status == DSI_OK && step < r->options->decode; step++) {
        if (step % STEPS_BETWEEN_LIMITS == 0) bench_yardstick_round(r->yardstick, BENCH_READ);
        double start = dsi_sys_seconds();
        int32_t token;
        for (uint32_t i = 0; status == DSI_OK && i < batch; i++)
            while (status == DSI_OK && !dsi_session_n_queued(side->sessions[i])) /* drafts taken */
                status = dsi_session_sample(side->sessions[i], &token);
        dsi_engine_profile(side->engine, &steps[step]);
        if (status == DSI_OK) status = dsi_engine_step(side->engine, side->sessions, batch, NULL);
        dsi_engine_profile(side->engine, NULL);
        seconds[step] = dsi_sys_seconds() - start;
    }
    return status;
}

dsi_status model_profile_steps(model_run *r, model_side *side, uint32_t depth, uint32_t batch) {
    uint32_t n = r->options->decode;
    if (r->n_profiles == MODEL_PROFILES) return DSI_OK;
    model_profile *p = calloc(1, sizeof *p);
    dsi_profile *steps = calloc(n, sizeof *steps);
    double *seconds = calloc(n, sizeof *seconds);
    dsi_status status = p && steps && seconds ? DSI_OK : DSI_E_NOMEM;
    bench_yardstick_mark(r->yardstick);
    if (status == DSI_OK) status = run_steps(r, side, batch, steps, seconds);
    if (status == DSI_OK) {
        p->mode = side->mode, p->depth = depth, p->batch = batch, p->n_steps = n;
        p->read_gbs = bench_yardstick_since(r->yardstick).read_gbs;
        summarize(p, steps, seconds);
        r->profiles[r->n_profiles++] = p;
        p = NULL;
    }
    free(p), free(steps), free(seconds);
    return status;
}

void model_profiles_free(model_run *r) {
    for (uint32_t i = 0; i < r->n_profiles; i++) free(r->profiles[i]);
}

void model_profiles_md(const model_run *r) {
    for (uint32_t i = 0; i < r->n_profiles; i++) {
        const model_profile *p = r->profiles[i];
        const line *all = &p->lines[p->n_lines - 1];
        printf("\nA step of decode, batch %u, depth %u, %s, by op (medians of %u steps; read %.1f "
               "GB/s in between):\n\n| op | calls | ms | %% of the step | MB | GB/s | %% of read | "
               "meetings | ms waited there |\n|---|---|---|---|---|---|---|---|---|\n",
               p->batch, p->depth, p->mode, p->n_steps, p->read_gbs);
        for (uint32_t k = 0; k < p->n_lines; k++) {
            const line *l = &p->lines[k];
            double gbs = l->ms > 0 ? l->bytes / l->ms / 1e6 : 0;
            printf("| %s | %.0f | %.3f | %.1f | ", l->name, l->calls, l->ms, 100 * l->ms / all->ms);
            if (l->bytes > 0)
                printf("%.1f | %.1f | %.0f | ", l->bytes / 1e6, gbs, 100 * gbs / p->read_gbs);
            else
                printf("- | - | - | ");
            printf("%.0f | %.3f |\n", l->meetings, l->waited_ms);
        }
    }
}

void model_profiles_json(const model_run *r) {
    for (uint32_t i = 0; i < r->n_profiles; i++) {
        const model_profile *p = r->profiles[i];
        printf("%s{\"mode\": \"%s\", \"depth\": %u, \"batch\": %u, \"steps\": %u, "
               "\"read_gbs\": %.3f, \"ops\": [",
               i ? ", " : "", p->mode, p->depth, p->batch, p->n_steps, p->read_gbs);
        for (uint32_t k = 0; k < p->n_lines; k++) {
            const line *l = &p->lines[k];
            printf("%s{\"op\": \"%s\", \"calls\": %.2f, \"ms\": %.4f, \"bytes\": %.0f, "
                   "\"meetings\": %.2f, \"waited_ms\": %.4f}",
                   k ? ", " : "", l->name, l->calls, l->ms, l->bytes, l->meetings, l->waited_ms);
        }
        printf("]}");
    }
}
