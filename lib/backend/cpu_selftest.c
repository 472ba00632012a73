/* cpu_selftest.c: runs the chosen kernels on fixed inputs, replaces those that fail, and remembers
 * the result for the process. What is computed is in cpu_selftest_*.c. */
#include "cpu_selftest.h"
#include "../base/sys.h"
#include "cpu_selftest_cases.h"
#include <stdatomic.h>
#include <stdio.h>

dsi_any_fn (*dsi_cpu_selftest_swap)(const dsi_kernel_line *line);

/* ---- One kernel ------------------------------------------------------------------------------ */

static bool test_kernel(const dsi_kernel_line *line, dsi_any_fn fn, uint8_t *room, char *why,
                        size_t n_bytes) {
    static void (*const cases[])(dsi_selftest *
                                 t) = {[DSI_KERNEL_matmul] = dsi_selftest_matmul,
                                       [DSI_KERNEL_matmul_t] = dsi_selftest_matmul_t,
                                       [DSI_KERNEL_attend] = dsi_selftest_attend,
                                       [DSI_KERNEL_rms_norm] = dsi_selftest_rms_norm,
                                       [DSI_KERNEL_swiglu] = dsi_selftest_swiglu,
                                       [DSI_KERNEL_cast] = dsi_selftest_cast,
                                       [DSI_KERNEL_rope] = dsi_selftest_rope,
                                       [DSI_KERNEL_route] = dsi_selftest_route,
                                       [DSI_KERNEL_quantize] = dsi_selftest_quantize,
                                       [DSI_KERNEL_decode] = dsi_selftest_decode,
                                       [DSI_KERNEL_decode_blocks] = dsi_selftest_blocks,
                                       [DSI_KERNEL_index] = dsi_selftest_index};
    dsi_selftest t = {.line = line, .fn = fn, .room = room};
    cases[line->type](&t);
    snprintf(why, n_bytes, "%s", t.why);
    return !t.failed;
}

bool dsi_cpu_selftest_kernel(const dsi_kernel_line *line, dsi_any_fn fn, char *why,
                             size_t n_bytes) {
    uint8_t *room = dsi_sys_alloc_aligned(DSI_SELFTEST_BYTES);
    snprintf(why, n_bytes, "no memory");
    bool passed = room && test_kernel(line, fn, room, why, n_bytes);
    dsi_sys_free(room);
    return passed;
}

/* ---- All stems ------------------------------------------------------------------------------- */

static dsi_any_fn function_of(const dsi_kernel_line *line) {
    dsi_any_fn other = dsi_cpu_selftest_swap ? dsi_cpu_selftest_swap(line) : NULL;
    return other ? other : line->fn;
}

/* The first line of the stem of lines[first] that is in the mask and passes; its reference passes
 * by definition. */
static void choose(const dsi_kernel_line *lines, uint32_t n, uint32_t first, uint32_t mask,
                   uint8_t *room, dsi_cpu_selftest *result) {
    const char *stem = lines[first].stem;
    uint32_t n_before = result->n_failed;
    for (uint32_t i = first; i < n; i++) {
        if (strcmp(lines[i].stem, stem) != 0 || (lines[i].isa & mask) == 0) continue;
        dsi_any_fn fn = lines[i].isa == DSI_ISA_REF ? lines[i].fn : function_of(&lines[i]);
        dsi_cpu_fault fault = {.kernel = lines[i].symbol};
        bool passed = lines[i].isa == DSI_ISA_REF;
        if (!passed) {
            passed = test_kernel(&lines[i], fn, room, fault.why, sizeof fault.why);
            result->n_checked++;
        }
        if (passed) {
            dsi_kernels_use(&result->kernels, &lines[i], fn);
            for (uint32_t f = n_before; f < result->n_failed && f < DSI_CPU_FAULTS; f++)
                result->faults[f].used = lines[i].symbol;
            return;
        }
        if (result->n_failed < DSI_CPU_FAULTS) result->faults[result->n_failed] = fault;
        result->n_failed++;
    }
}

static dsi_status test_all(uint32_t mask, dsi_cpu_selftest *result, dsi_error *error) {
    uint8_t *room = dsi_sys_alloc_aligned(DSI_SELFTEST_BYTES);
    if (!room)
        return dsi_fail(error, DSI_E_NOMEM, "no memory for the kernel self-test (%d bytes)",
                        DSI_SELFTEST_BYTES);
    double start = dsi_sys_seconds();
    uint32_t n;
    const dsi_kernel_line *lines = dsi_kernel_lines(&n);
    memset(result, 0, sizeof *result);
    for (uint32_t i = 0; i < n; i++) {
        uint32_t before = 0;
        while (before < i && strcmp(lines[before].stem, lines[i].stem) != 0) before++;
        if (before == i) choose(lines, n, i, mask, room, result);
    }
    result->seconds = dsi_sys_seconds() - start;
    dsi_sys_free(room);
    return DSI_OK;
}

/* ---- Once per process ------------------------------------------------------------------------ */

enum { EMPTY, WRITING, DONE, N_MASKS = DSI_ISA_MASKS };
static struct remembered {
    _Atomic int state;
    dsi_cpu_selftest result;
} remembered[N_MASKS];

dsi_status dsi_cpu_selftest_run(uint32_t mask, dsi_cpu_selftest *result, dsi_error *error) {
    mask = (mask | DSI_ISA_REF) % N_MASKS;
    struct remembered *r = &remembered[mask];
    if (atomic_load_explicit(&r->state, memory_order_acquire) == DONE) {
        *result = r->result;
        return DSI_OK;
    }
    dsi_status st = test_all(mask, result, error);
    int empty = EMPTY;
    if (st != DSI_OK || !atomic_compare_exchange_strong(&r->state, &empty, WRITING)) return st;
    r->result = *result;
    atomic_store_explicit(&r->state, DONE, memory_order_release);
    return DSI_OK;
}

void dsi_cpu_selftest_forget(void) {
    for (int i = 0; i < N_MASKS; i++) atomic_store(&remembered[i].state, EMPTY);
}

/* ---- For people ------------------------------------------------------------------------------ */

enum { LEVEL_WARN = 1 }; /* DSI_LOG_WARN of dsinfer.h, which back-ends do not include */

static uint32_t n_kept(const dsi_cpu_selftest *result) {
    return result->n_failed < DSI_CPU_FAULTS ? result->n_failed : DSI_CPU_FAULTS;
}

void dsi_cpu_selftest_log(const dsi_cpu_selftest *result, const dsi_log *log) {
    for (uint32_t i = 0; i < n_kept(result); i++) {
        const dsi_cpu_fault *f = &result->faults[i];
        dsi_logf(log, LEVEL_WARN, "cpu",
                 "self-test: the kernel %s is wrong on this machine (%s); %s is used instead. "
                 "Answers stay right and may be slower; report it with the output of 'dsinfer "
                 "doctor'",
                 f->kernel, f->why, f->used);
    }
    if (result->n_failed > DSI_CPU_FAULTS)
        dsi_logf(log, LEVEL_WARN, "cpu", "self-test: %u more kernels are wrong and replaced",
                 result->n_failed - DSI_CPU_FAULTS);
}

/* dsi_matmul_fp8_bf16__avx512 -> matmul_fp8_bf16, avx512 */
static void split_symbol(const char *symbol, char *stem, size_t n_bytes, const char **isa) {
    const char *end = strstr(symbol, "__");
    *isa = end + 2;
    snprintf(stem, n_bytes, "%.*s", (int)(end - symbol - 4), symbol + 4);
}

void dsi_cpu_selftest_describe(const dsi_cpu_selftest *result, char *text, size_t n_bytes) {
    char stem[48];
    const char *isa;
    text[0] = 0;
    if (!result->n_failed) return;
    split_symbol(result->faults[0].used, stem, sizeof stem, &isa);
    if (result->n_failed == 1)
        snprintf(text, n_bytes, " (self-test: %s falls back to %s)", stem, isa);
    else
        snprintf(text, n_bytes, " (self-test: %s falls back to %s, %u more failed)", stem, isa,
                 result->n_failed - 1);
}

void dsi_cpu_selftest_identity(const dsi_cpu_selftest *result, const char *set, char *text,
                               size_t n_bytes) {
    if (!result->n_failed) {
        snprintf(text, n_bytes, "%s", set);
        return;
    }
    uint32_t hash = 2166136261u; /* FNV-1a over the names of the kernels in use */
#define ADD_NAME(type, stem)                                                                       \
    for (const char *c = result->kernels.name_##stem; *c; c++)                                     \
        hash = (hash ^ (uint8_t)*c) * 16777619u;
    DSI_KERNEL_STEMS(ADD_NAME)
#undef ADD_NAME
    snprintf(text, n_bytes, "%s-%08x", set, hash);
}
