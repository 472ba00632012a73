/* cpu.c: the CPU as the first plug-in of backend.h. It implements every op and is the oracle that
 * other back-ends are compared with. Ops run at once on the calling thread and its pool. */
#include "cpu.h"
#include "../base/sys.h"
#include "../base/topology.h"
#include "backends.h"
#include "cpu_gemm.h"
#include "cpu_isa.h"
#include "cpu_path.h"
#include "cpu_selftest.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* device_open has no device yet to keep its message. */
static _Thread_local dsi_error open_error;

static const struct {
    dsi_op_kind kind;
    const char *name;
    dsi_cpu_check_fn check;
    dsi_cpu_run_fn run;
} OPS[] = {
    {DSI_OP_EMBED, "embed", dsi_cpu_embed_check, dsi_cpu_embed_run},
    {DSI_OP_RMS_NORM, "rms_norm", dsi_cpu_rms_norm_check, dsi_cpu_rms_norm_run},
    {DSI_OP_LINEAR, "linear", dsi_cpu_linear_check, dsi_cpu_linear_run},
    {DSI_OP_LINEAR_SWIGLU, "linear_swiglu", dsi_cpu_linear_swiglu_check, dsi_cpu_linear_swiglu_run},
    {DSI_OP_ROPE, "rope", dsi_cpu_rope_check, dsi_cpu_rope_run},
    {DSI_OP_KV_WRITE, "kv_write", dsi_cpu_kv_write_check, dsi_cpu_kv_write_run},
    {DSI_OP_MLA_ABSORB_Q, "mla_absorb_q", dsi_cpu_mla_absorb_q_check, dsi_cpu_mla_absorb_q_run},
    {DSI_OP_MLA_ATTEND, "mla_attend", dsi_cpu_mla_attend_check, dsi_cpu_mla_attend_run},
    {DSI_OP_MLA_ABSORB_V, "mla_absorb_v", dsi_cpu_mla_absorb_v_check, dsi_cpu_mla_absorb_v_run},
    {DSI_OP_MLA_EXPAND_ATTEND, "mla_expand_attend", dsi_cpu_mla_expand_attend_check,
     dsi_cpu_mla_expand_attend_run},
    {DSI_OP_GQA_ATTEND, "gqa_attend", dsi_cpu_gqa_attend_check, dsi_cpu_gqa_attend_run},
    {DSI_OP_MOE_ROUTE, "moe_route", dsi_cpu_moe_route_check, dsi_cpu_moe_route_run},
    {DSI_OP_MOE_FFN, "moe_ffn", dsi_cpu_moe_ffn_check, dsi_cpu_moe_ffn_run},
    {DSI_OP_GATHER_ROWS, "gather_rows", dsi_cpu_gather_rows_check, dsi_cpu_gather_rows_run},
    {DSI_OP_MOE_ROUTED, "moe_routed", dsi_cpu_moe_routed_check, dsi_cpu_moe_routed_run},
    {DSI_OP_LAYER_NORM, "layer_norm", dsi_cpu_layer_norm_check, dsi_cpu_layer_norm_run},
    {DSI_OP_INDEX_ROUND, "index_round", dsi_cpu_index_round_check, dsi_cpu_index_round_run},
    {DSI_OP_INDEX_TOPK, "index_topk", dsi_cpu_index_topk_check, dsi_cpu_index_topk_run},
    {DSI_OP_LOW_RANK_DOWN, "low_rank_down", dsi_cpu_low_rank_down_check, dsi_cpu_low_rank_down_run},
    {DSI_OP_LOW_RANK_UP, "low_rank_up", dsi_cpu_low_rank_up_check, dsi_cpu_low_rank_up_run},
};
enum { N_OPS = sizeof OPS / sizeof OPS[0] };

static int op_index(dsi_op_kind kind) {
    for (int i = 0; i < N_OPS; i++)
        if (OPS[i].kind == kind) return i;
    return -1;
}

dsi_status dsi_cpu_require(dsi_dev *dev, const dsi_op *op, bool ok, const char *what) {
    if (ok) return DSI_OK;
    int i = op_index(op->kind);
    return dsi_fail(&dev->error, DSI_E_UNSUPPORTED, "cpu: %s: %s", i < 0 ? "?" : OPS[i].name, what);
}

/* ---- Device ---------------------------------------------------------------------------------- */

/* The mask for `want` ("" = the best this CPU has); 0 with a message if it is not to be had. */
static uint32_t choose_isa(const char *want, const dsi_log *log, char *chosen, dsi_error *error) {
    uint32_t have = dsi_isa_detect() | DSI_ISA_REF, n;
    const dsi_cpu_set *sets = dsi_cpu_sets(&n);
    for (uint32_t i = 0; i < n; i++) {
        if (want[0] && strcmp(want, sets[i].name) != 0) continue;
        bool there = (sets[i].mask & ~have) == 0;
        if (there && dsi_cpu_isa(sets[i].mask, log) == sets[i].mask) {
            snprintf(chosen, 16, "%s", sets[i].name);
            return sets[i].mask;
        }
        if (want[0]) {
            dsi_fail(error, DSI_E_UNSUPPORTED,
                     "kernels '%s' need instructions this %s; leave the option out to use the best "
                     "it has",
                     want,
                     there ? "system does not let this process use (see the log)" : "CPU lacks");
            return 0;
        }
    }
    dsi_fail(error, DSI_E_ARG,
             "kernels '%s' do not exist; use ref, avx2, avx512, avx512vnni, avx512bf16 or amx",
             want);
    return 0;
}

/* Finds "key=" in "a=1,b=2" and copies its value. */
static void option_value(const char *options, const char *key, char *value, size_t n_bytes) {
    value[0] = 0;
    size_t n_key = strlen(key);
    for (const char *p = options; p && *p; p = strchr(p, ',') ? strchr(p, ',') + 1 : NULL) {
        if (strncmp(p, key, n_key) != 0 || p[n_key] != '=') continue;
        size_t n = strcspn(p + n_key + 1, ",");
        if (n >= n_bytes) n = n_bytes - 1;
        memcpy(value, p + n_key + 1, n);
        value[n] = 0;
    }
}

static dsi_status cpu_device_count(uint32_t *n) {
    *n = 1;
    return DSI_OK;
}

static void host_log(void *user, uint32_t level, const char *component, const char *text) {
    (void)component;
    const dsi_host *host = user;
    host->log(host->user, level, text);
}

static void cpu_device_close(dsi_dev *dev) {
    if (!dev) return;
    dsi_cpu_gemm_close(dev);
    dsi_pool_free(dev->pool);
    dsi_sys_free(dev->shares);
    dsi_sys_free(dev);
}

/* The tested kernels of the set `want`; the name of the set and a note for people. */
static dsi_status choose_kernels(dsi_dev *dev, const char *want, char set[16], char *note,
                                 size_t n_bytes) {
    dsi_cpu_selftest tested;
    uint32_t mask = choose_isa(want, &dev->log, set, &open_error);
    if (!mask) return open_error.status;
    dsi_status st = dsi_cpu_selftest_run(mask, &tested, &open_error);
    if (st != DSI_OK) return st;
    dev->kernels = tested.kernels;
    dsi_cpu_selftest_identity(&tested, set, dev->kernels_name, sizeof dev->kernels_name);
    dsi_cpu_selftest_describe(&tested, note, n_bytes);
    dsi_cpu_selftest_log(&tested, &dev->log);
    return DSI_OK;
}

/* Options: threads=N (else what suits the machine), pin=on|off (else auto). */
static dsi_status start_threads(dsi_dev *dev, const char *options) {
    char threads[16], pin[8];
    dsi_topology topology;
    option_value(options, "threads", threads, sizeof threads);
    option_value(options, "pin", pin, sizeof pin);
    dsi_status st = dsi_topology_read("", NULL, &topology, &open_error);
    if (st != DSI_OK) return st;
    dsi_pool_options o = {.n_threads = (uint32_t)strtoul(threads, NULL, 10),
                          .pin = strcmp(pin, "on") == 0    ? DSI_POOL_PIN_ON
                                 : strcmp(pin, "off") == 0 ? DSI_POOL_PIN_OFF
                                                           : DSI_POOL_PIN_AUTO,
                          .topology = &topology,
                          .log = &dev->log};
    if (!o.n_threads) o.n_threads = dsi_topology_threads(&topology);
    st = dsi_pool_new_placed(&o, &dev->pool, &open_error);
    dsi_topology_free(&topology);
    return st;
}

/* The shares of the threads, and a library if there may be one. */
static dsi_status open_parts(dsi_dev *dev, const char *library) {
    dev->n_threads = dsi_pool_size(dev->pool);
    dev->shares =
        dsi_sys_alloc_aligned((uint64_t)DSI_CPU_PHASES * dev->n_threads * sizeof *dev->shares);
    if (!dev->shares)
        return dsi_fail(&open_error, DSI_E_NOMEM,
                        "no memory for the shares of %u threads; ask for fewer threads",
                        dev->n_threads);
    for (uint32_t i = 0; i < DSI_CPU_PHASES * dev->n_threads; i++)
        dev->shares[i].node = dsi_pool_node(dev->pool, i % dev->n_threads);
    return library[0] ? dsi_cpu_gemm_open(dev, library, &open_error) : DSI_OK;
}

static dsi_status cpu_device_open(uint32_t index, const char *options, const dsi_host *host,
                                  dsi_dev **out) {
    char kernels[16], activations[16], library[16];
    option_value(options, "library", library, sizeof library);
    option_value(options, "kernels", kernels, sizeof kernels);
    option_value(options, "activations", activations, sizeof activations);
    if (index != 0) return dsi_fail(&open_error, DSI_E_ARG, "cpu has one device, index 0");
    dsi_dev *dev = dsi_sys_calloc(1, sizeof *dev);
    if (!dev) return dsi_fail(&open_error, DSI_E_NOMEM, "no memory for the cpu device");
    dev->a8 = strcmp(activations, "a8") == 0;
    dev->power_of_two = strcmp(activations, "e4m3-ue8m0") == 0;
    dev->e4m3 = dev->power_of_two || strcmp(activations, "e4m3") == 0;
    if (host && host->log) dev->log = (dsi_log){host_log, (void *)(uintptr_t)host};
    char set[16], note[128];
    dsi_status st = choose_kernels(dev, kernels, set, note, sizeof note);
    if (st == DSI_OK) st = start_threads(dev, options);
    if (st == DSI_OK) st = open_parts(dev, library);
    if (st != DSI_OK) {
        cpu_device_close(dev);
        return st;
    }
    snprintf(dev->describe, sizeof dev->describe, "cpu, %u thread%s, %s kernels%s", dev->n_threads,
             dev->n_threads == 1 ? "" : "s", set, note);
    dev->n_described = (uint32_t)strlen(dev->describe);
    *out = dev;
    return DSI_OK;
}

static dsi_status cpu_device_caps(dsi_dev *dev, dsi_caps *caps) {
    uint32_t size = caps->struct_size;
    dsi_caps all = {.struct_size = size,
                    .flags = DSI_CAP_HOST_IMPORT | DSI_CAP_DETERMINISTIC,
                    .mem_free = dsi_sys_memory_available(),
                    .align = 64,
                    .n_threads = dev->n_threads};
    snprintf(all.device, sizeof all.device, "cpu");
    snprintf(all.arch, sizeof all.arch, "%s", dev->kernels_name);
    memcpy(caps, &all, size < sizeof all ? size : sizeof all);
    return DSI_OK;
}
static dsi_status cpu_counters(dsi_dev *dev, uint32_t watch, dsi_dev_counters *counters) {
    uint32_t size = counters->struct_size;
    dsi_pool_counters c = dsi_pool_count(dev->pool);
    dsi_dev_counters all = {
        .struct_size = size, .n_meetings = c.n_meetings, .waited_seconds = c.waited_seconds};
    dsi_pool_watch(dev->pool, watch != 0);
    memcpy(counters, &all, size < sizeof all ? size : sizeof all);
    return DSI_OK;
}
static const char *cpu_last_error(dsi_dev *dev) { return dev ? dev->error.text : open_error.text; }
static const char *cpu_describe(dsi_dev *dev) {
    char *behind = dev->describe + dev->n_described;
    dsi_cpu_path_describe(dev, behind, sizeof dev->describe - dev->n_described);
    behind += strlen(behind);
    if (dev->gemm)
        dsi_cpu_gemm_describe(dev, behind, sizeof dev->describe - (size_t)(behind - dev->describe));
    return dev->describe;
}

/* ---- Buffers and streams ------------------------------------------------------------------------
 */

static dsi_status new_buf(dsi_dev *dev, void *data, uint64_t n_bytes, bool imported,
                          dsi_buf **out) {
    dsi_buf *buf = dsi_sys_calloc(1, sizeof *buf);
    if (!buf) return dsi_fail(&dev->error, DSI_E_NOMEM, "cpu: no memory for a buffer");
    *buf = (dsi_buf){dev, data, n_bytes, imported};
    *out = buf;
    return DSI_OK;
}
static dsi_status cpu_buf_alloc(dsi_dev *dev, uint32_t kind, uint64_t n_bytes, dsi_buf **out) {
    /* device and pinned memory are the same here */
    void *data =
        kind == DSI_BUF_WEIGHTS ? dsi_sys_alloc_huge(n_bytes) : dsi_sys_alloc_aligned(n_bytes);
    if (!data)
        return dsi_fail(&dev->error, DSI_E_NOMEM, "cpu: no memory for a buffer of %llu bytes",
                        (unsigned long long)n_bytes);
    dsi_status st = new_buf(dev, data, n_bytes, false, out);
    if (st != DSI_OK) dsi_sys_free(data);
    return st;
}
static dsi_status cpu_buf_import(dsi_dev *dev, const void *host, uint64_t n_bytes, dsi_buf **out) {
    return new_buf(dev, (void *)(uintptr_t)host, n_bytes, true, out);
}
static void cpu_buf_free(dsi_buf *buf) {
    if (!buf) return;
    if (!buf->imported) dsi_sys_free(buf->data);
    dsi_sys_free(buf);
}
static bool inside(const dsi_buf *buf, uint64_t offset, uint64_t n) {
    return offset <= buf->n_bytes && n <= buf->n_bytes - offset;
}
static dsi_status cpu_write(dsi_dev_stream *s, dsi_buf *dst, uint64_t offset, const void *src,
                            uint64_t n) {
    if (dst->imported || !inside(dst, offset, n))
        return dsi_fail(&s->dev->error, DSI_E_ARG, "cpu: write outside a buffer");
    if (n) memcpy(dst->data + offset, src, n);
    return DSI_OK;
}
/* Memory lies where it is touched first: each thread copies the rows that it will read. */
typedef struct row_copy {
    uint8_t *to;
    const uint8_t *from;
    uint64_t n_rows, row_bytes;
} row_copy;
static void copy_rows(void *context, uint32_t thread, uint32_t n_threads) {
    const row_copy *c = context;
    uint64_t begin, end;
    dsi_pool_share(c->n_rows, 1, thread, n_threads, &begin, &end);
    if (begin < end)
        memcpy(c->to + begin * c->row_bytes, c->from + begin * c->row_bytes,
               (end - begin) * c->row_bytes);
}
static dsi_status cpu_write_rows(dsi_dev_stream *s, dsi_buf *dst, uint64_t offset, const void *src,
                                 uint64_t n_rows, uint64_t row_bytes) {
    uint64_t n;
    if (dst->imported || !dsi_mul_ok(n_rows, row_bytes, &n) || !inside(dst, offset, n))
        return dsi_fail(&s->dev->error, DSI_E_ARG, "cpu: write of rows outside a buffer");
    row_copy c = {dst->data + offset, src, n_rows, row_bytes};
    dsi_pool_run(s->dev->pool, copy_rows, &c);
    return DSI_OK;
}
static dsi_status cpu_read(dsi_dev_stream *s, void *dst, const dsi_buf *src, uint64_t offset,
                           uint64_t n) {
    if (!inside(src, offset, n))
        return dsi_fail(&s->dev->error, DSI_E_ARG, "cpu: read outside a buffer");
    if (n) memcpy(dst, src->data + offset, n);
    return DSI_OK;
}
static dsi_status cpu_stream_new(dsi_dev *dev, dsi_dev_stream **out) {
    *out = dsi_sys_calloc(1, sizeof **out);
    if (!*out) return dsi_fail(&dev->error, DSI_E_NOMEM, "cpu: no memory for a stream");
    (*out)->dev = dev;
    return DSI_OK;
}
static void cpu_stream_free(dsi_dev_stream *s) { dsi_sys_free(s); }
static dsi_status cpu_stream_sync(dsi_dev_stream *s, uint32_t timeout_ms) {
    (void)s, (void)timeout_ms; /* ops have finished when op_run returns */
    return DSI_OK;
}

/* ---- Ops ---------------------------------------------------------------------------------------
 */

static dsi_status check_op(dsi_dev *dev, const dsi_op *op, uint64_t *workspace) {
    int i = op_index(op->kind);
    if (i < 0) return dsi_fail(&dev->error, DSI_E_UNSUPPORTED, "cpu: no op %u", op->kind);
    *workspace = 0;
    return OPS[i].check(dev, op, workspace);
}

/* In fast mode a library has its own memory behind that of the op. */
static dsi_status cpu_op_plan(dsi_dev *dev, const dsi_op *op, uint64_t *workspace) {
    uint64_t library = 0;
    dsi_status st = check_op(dev, op, workspace);
    if (st == DSI_OK) dsi_cpu_path_note(dev, op);
    if (st == DSI_OK && dev->gemm) st = dsi_cpu_gemm_plan(dev, op, &library);
    if (library) *workspace = (*workspace + 63) / 64 * 64 + library;
    return st;
}
static dsi_status cpu_op_run(dsi_dev_stream *s, const dsi_op *op, dsi_buf *workspace,
                             uint64_t offset) {
    uint64_t need = 0, own = 0;
    dsi_status st = check_op(s->dev, op, &own);
    if (st != DSI_OK) return st;
    need = own = (own + 63) / 64 * 64;
    if (s->dev->gemm) need += dsi_cpu_gemm_workspace(s->dev, op);
    if (need && (!workspace || !inside(workspace, offset, need)))
        return dsi_fail(&s->dev->error, DSI_E_ARG, "cpu: the workspace of %s is too small",
                        OPS[op_index(op->kind)].name);
    dsi_cpu_run run = {s->dev, op, need ? workspace->data + offset : NULL};
    if (s->dev->gemm) dsi_cpu_gemm_begin(s->dev, op, run.workspace + own);
    OPS[op_index(op->kind)].run(&run);
    return DSI_OK;
}

static const dsi_backend CPU = {
    .struct_size = sizeof(dsi_backend),
    .abi_major = DSI_BACKEND_ABI_MAJOR,
    .abi_minor = DSI_BACKEND_ABI_MINOR,
    .id = "cpu",
    .version = DSI_VERSION_TEXT,
    .build = __VERSION__,
    .device_count = cpu_device_count,
    .device_open = cpu_device_open,
    .device_close = cpu_device_close,
    .device_caps = cpu_device_caps,
    .last_error = cpu_last_error,
    .describe = cpu_describe,
    .buf_alloc = cpu_buf_alloc,
    .buf_import = cpu_buf_import,
    .buf_free = cpu_buf_free,
    .write = cpu_write,
    .read = cpu_read,
    .stream_new = cpu_stream_new,
    .stream_free = cpu_stream_free,
    .stream_sync = cpu_stream_sync,
    .op_plan = cpu_op_plan,
    .op_run = cpu_op_run,
    .write_rows = cpu_write_rows,
    .counters = cpu_counters,
};
const dsi_backend *dsi_cpu_backend(void) { return &CPU; }
