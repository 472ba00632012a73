/* gemm_onednn.c: oneDNN through its C interface, of which there are two: in version 2 a memory
 * descriptor is a struct in the caller's hands, in version 3 an opaque object. Which one is there
 * is asked of the library itself (dnnl_version) before anything else is called.
 *
 * A product is a matmul primitive of one shape, made once. Its temporary memory is the caller's, so
 * that any number of threads may run it. Memory objects and a stream are a few hundred bytes of the
 * library's own, made for each call: sharing one between threads is not promised. */
#include "../base/sys.h"
#include "gemm.h"
#include <stdio.h>

/* Of dnnl_types.h; equal in both versions. */
enum { CPU = 1, IN_ORDER = 1, USER_SCRATCHPAD = 1, QUERY_SCRATCHPAD = 136 };
enum { BF16 = 2, F32 = 3, S32 = 4, S8 = 5 };
enum { SRC = 1, DST = 17, WEIGHTS = 33, SCRATCHPAD = 80 };
enum { NO_RUNTIME = 0, SEQUENTIAL = 1, OPENMP = 2, THREADPOOL = 8 };
enum { MAX_DIMS = 12 };
typedef int64_t dims[MAX_DIMS];
typedef struct version {
    int major, minor, patch;
    const char *hash;
    unsigned cpu_runtime, gpu_runtime;
} version;
typedef struct exec_arg {
    int which;
    void *memory;
} exec_arg;

/* Version 2 fills structs that it knows the size of (696 and 2800 bytes in 2.6); here is room for
 * any of its releases. */
typedef union description {
    uint8_t bytes[4096]; /* version 2 */
    void *handle;        /* version 3 */
    _Alignas(64) uint64_t align;
} description;
typedef union operation {
    uint8_t bytes[16384];
    _Alignas(64) uint64_t align;
} operation;

/* In the order of SYMBOLS, then those of one version. */
typedef struct functions {
    int (*engine_create)(void **engine, int kind, size_t index);
    int (*engine_destroy)(void *engine);
    int (*stream_create)(void **stream, void *engine, unsigned flags);
    int (*stream_destroy)(void *stream);
    int (*attr_create)(void **attr);
    int (*attr_destroy)(void *attr);
    int (*attr_set_scratchpad_mode)(void *attr, int mode);
    int (*primitive_create)(void **primitive, const void *description);
    int (*primitive_destroy)(void *primitive);
    int (*primitive_desc_destroy)(void *description);
    const void *(*primitive_desc_query_md)(const void *description, int what, int index);
    size_t (*memory_desc_get_size)(const void *description);
    int (*memory_create)(void **memory, const void *description, void *engine, void *data);
    int (*memory_destroy)(void *memory);
    int (*primitive_execute)(const void *primitive, void *stream, int n, const exec_arg *args);
} functions;
static const char *const SYMBOLS[] = {"dnnl_engine_create",
                                      "dnnl_engine_destroy",
                                      "dnnl_stream_create",
                                      "dnnl_stream_destroy",
                                      "dnnl_primitive_attr_create",
                                      "dnnl_primitive_attr_destroy",
                                      "dnnl_primitive_attr_set_scratchpad_mode",
                                      "dnnl_primitive_create",
                                      "dnnl_primitive_destroy",
                                      "dnnl_primitive_desc_destroy",
                                      "dnnl_primitive_desc_query_md",
                                      "dnnl_memory_desc_get_size",
                                      "dnnl_memory_create",
                                      "dnnl_memory_destroy",
                                      "dnnl_primitive_execute",
                                      NULL};
typedef struct functions_2 {
    int (*memory_desc_init_by_strides)(void *description, int n_dims, const int64_t *dims,
                                       int dtype, const int64_t *strides);
    int (*matmul_desc_init)(void *operation, const void *src, const void *weights, const void *bias,
                            const void *dst);
    int (*primitive_desc_create)(void **description, const void *operation, const void *attr,
                                 void *engine, const void *hint);
} functions_2;
static const char *const SYMBOLS_2[] = {"dnnl_memory_desc_init_by_strides", "dnnl_matmul_desc_init",
                                        "dnnl_primitive_desc_create", NULL};
typedef struct functions_3 {
    int (*memory_desc_create_with_strides)(void **description, int n_dims, const int64_t *dims,
                                           int dtype, const int64_t *strides);
    int (*memory_desc_destroy)(void *description);
    int (*matmul_primitive_desc_create)(void **description, void *engine, const void *src,
                                        const void *weights, const void *bias, const void *dst,
                                        const void *attr);
} functions_3;
static const char *const SYMBOLS_3[] = {"dnnl_memory_desc_create_with_strides",
                                        "dnnl_memory_desc_destroy",
                                        "dnnl_matmul_primitive_desc_create", NULL};

typedef struct onednn {
    functions call;
    functions_2 v2;
    functions_3 v3;
    int major;
    void *engine;
    int (*omp_get_max_threads)(void); /* NULL: a build without OpenMP */
    void (*omp_set_num_threads)(int);
} onednn;

enum { PRIMITIVE, DESCRIPTION, X, W, Y }; /* parts of a product */

/* ---- Threads: of a build with OpenMP, the calling thread's own number is one for a while --------
 */

static int alone(const onednn *o) {
    int before = o->omp_get_max_threads ? o->omp_get_max_threads() : 0;
    if (before) o->omp_set_num_threads(1);
    return before;
}
static void no_longer_alone(const onednn *o, int before) {
    if (before) o->omp_set_num_threads(before);
}

/* ---- The library ----------------------------------------------------------------------------- */

static dsi_status take_version(dsi_gemm_library *library, onednn *o, void *handle, const char *file,
                               dsi_error *error) {
    const version *(*ask)(void) = NULL;
    *(void **)&ask = dsi_sys_library_symbol(handle, "dnnl_version");
    const version *v = ask ? ask() : NULL;
    if (!v) return dsi_fail(error, DSI_E_UNSUPPORTED, "%s does not say its version", file);
    snprintf(library->name, sizeof library->name, "oneDNN %d.%d.%d", v->major, v->minor, v->patch);
    if (!(v->major == 2 && v->minor >= 4) && v->major != 3)
        return dsi_fail(error, DSI_E_UNSUPPORTED,
                        "%s is %s; its interface is known for versions 2.4 to 3", file,
                        library->name);
    o->major = v->major;
    if (v->cpu_runtime == OPENMP) {
        *(void **)&o->omp_get_max_threads = dsi_sys_library_symbol(handle, "omp_get_max_threads");
        *(void **)&o->omp_set_num_threads = dsi_sys_library_symbol(handle, "omp_set_num_threads");
    }
    bool one_thread = v->cpu_runtime == SEQUENTIAL || v->cpu_runtime == THREADPOOL ||
                      (o->omp_get_max_threads && o->omp_set_num_threads);
    if (!one_thread)
        return dsi_fail(error, DSI_E_UNSUPPORTED,
                        "%s (%s) is built for threads of runtime %u, which cannot be told to use "
                        "one; builds with OpenMP or without threads can",
                        library->name, file, v->cpu_runtime);
    return DSI_OK;
}

static dsi_status open_onednn(dsi_gemm_library *library, const char *file, dsi_error *error) {
    static const char *const names[] = {"libdnnl.so.3", "libdnnl.so.2"};
    char why[256] = "";
    const char *name = file ? file : names[0];
    void *handle = dsi_sys_library_open(name, NULL, why, sizeof why);
    if (!handle && !file) {
        name = names[1];
        handle = dsi_sys_library_open(name, NULL, why, sizeof why);
    }
    if (!handle) return dsi_fail(error, DSI_E_UNSUPPORTED, "oneDNN is not here: %s", why);
    onednn *o = library->state = dsi_sys_calloc(1, sizeof *o);
    if (!o) return dsi_fail(error, DSI_E_NOMEM, "no memory for oneDNN");
    dsi_status st = take_version(library, o, handle, name, error);
    if (st == DSI_OK) st = dsi_gemm_load(handle, name, SYMBOLS, (void **)(void *)&o->call, error);
    if (st == DSI_OK && o->major == 2)
        st = dsi_gemm_load(handle, name, SYMBOLS_2, (void **)(void *)&o->v2, error);
    if (st == DSI_OK && o->major == 3)
        st = dsi_gemm_load(handle, name, SYMBOLS_3, (void **)(void *)&o->v3, error);
    if (st != DSI_OK) return st;
    int before = alone(o);
    int code = o->call.engine_create(&o->engine, CPU, 0);
    no_longer_alone(o, before);
    if (code != 0) o->engine = NULL;
    if (code != 0)
        return dsi_fail(error, DSI_E_UNSUPPORTED, "%s has no engine for this CPU (status %d)",
                        library->name, code);
    library->takes = 1u << DSI_DTYPE_BF16 | 1u << DSI_DTYPE_F32 | 1u << DSI_DTYPE_I8;
    return DSI_OK;
}

static void close_onednn(dsi_gemm_library *library) {
    onednn *o = library->state;
    if (o && o->engine) o->call.engine_destroy(o->engine);
    dsi_sys_free(o);
}

/* ---- A product ------------------------------------------------------------------------------- */

static void *describe(const onednn *o, int64_t rows, int64_t columns, int64_t row_stride,
                      int64_t column_stride, int dtype) {
    const dims size = {rows, columns}, stride = {row_stride, column_stride};
    description *d = dsi_sys_alloc_aligned(sizeof *d); /* zeroed, 64-byte aligned */
    if (!d) return NULL;
    int code = o->major == 2
                   ? o->v2.memory_desc_init_by_strides(d->bytes, 2, size, dtype, stride)
                   : o->v3.memory_desc_create_with_strides(&d->handle, 2, size, dtype, stride);
    if (code == 0) return d;
    dsi_sys_free(d);
    return NULL;
}
static void forget(const onednn *o, description *d) {
    if (d && o->major == 3) o->v3.memory_desc_destroy(d->handle);
    dsi_sys_free(d);
}
/* What the library's functions take. */
static const void *handle_of(const onednn *o, const void *part) {
    const description *d = part;
    return o->major == 2 ? (const void *)d->bytes : d->handle;
}

static int describe_product(const onednn *o, dsi_gemm *gemm) {
    void *attr = NULL;
    int code = o->call.attr_create(&attr);
    if (code == 0) code = o->call.attr_set_scratchpad_mode(attr, USER_SCRATCHPAD);
    const void *x = handle_of(o, gemm->parts[X]), *w = handle_of(o, gemm->parts[W]);
    const void *y = handle_of(o, gemm->parts[Y]);
    if (code == 0 && o->major == 3) {
        code = o->v3.matmul_primitive_desc_create(&gemm->parts[DESCRIPTION], o->engine, x, w, NULL,
                                                  y, attr);
    } else if (code == 0) {
        operation *op = dsi_sys_alloc_aligned(sizeof *op);
        code = op ? o->v2.matmul_desc_init(op, x, w, NULL, y) : 1;
        if (code == 0)
            code =
                o->v2.primitive_desc_create(&gemm->parts[DESCRIPTION], op, attr, o->engine, NULL);
        dsi_sys_free(op);
    }
    if (attr) o->call.attr_destroy(attr);
    if (code != 0) gemm->parts[DESCRIPTION] = NULL;
    return code;
}

static dsi_status create(dsi_gemm *gemm, dsi_error *error) {
    const onednn *o = gemm->library->state;
    const dsi_gemm_shape *s = &gemm->shape;
    int in = s->dtype == DSI_DTYPE_BF16 ? BF16 : s->dtype == DSI_DTYPE_I8 ? S8 : F32;
    int out = in == S8 ? S32 : F32, before = alone(o);
    gemm->parts[X] = describe(o, s->m, s->k, s->x_stride, 1, in);
    gemm->parts[W] = describe(o, s->k, s->n, 1, s->w_stride, in); /* the transpose of [n][k] */
    gemm->parts[Y] = describe(o, s->m, s->n, s->y_stride, 1, out);
    int code = gemm->parts[X] && gemm->parts[W] && gemm->parts[Y] ? describe_product(o, gemm) : 1;
    if (code == 0)
        code = o->call.primitive_create(&gemm->parts[PRIMITIVE], gemm->parts[DESCRIPTION]);
    no_longer_alone(o, before);
    if (code != 0) gemm->parts[PRIMITIVE] = NULL;
    if (code != 0)
        return dsi_fail(error, DSI_E_UNSUPPORTED,
                        "%s makes no product of %lld x %lld x %lld %s "
                        "(status %d)",
                        gemm->library->name, (long long)s->m, (long long)s->n, (long long)s->k,
                        dsi_dtype_name(s->dtype), code);
    const void *scratch =
        o->call.primitive_desc_query_md(gemm->parts[DESCRIPTION], QUERY_SCRATCHPAD, 0);
    gemm->n_bytes_scratch = scratch ? o->call.memory_desc_get_size(scratch) : 0;
    return DSI_OK;
}

static void destroy(dsi_gemm *gemm) {
    const onednn *o = gemm->library->state;
    if (gemm->parts[PRIMITIVE]) o->call.primitive_destroy(gemm->parts[PRIMITIVE]);
    if (gemm->parts[DESCRIPTION]) o->call.primitive_desc_destroy(gemm->parts[DESCRIPTION]);
    for (int i = X; i <= Y; i++) forget(o, gemm->parts[i]);
}

static bool run(const dsi_gemm *gemm, const void *x, const void *w, void *y, void *scratch) {
    const onednn *o = gemm->library->state;
    const functions *call = &o->call;
    /* the library writes to none but y and its scratchpad */
    void *data[] = {(void *)(uintptr_t)x, (void *)(uintptr_t)w, y, scratch};
    const void *descriptions[] = {
        handle_of(o, gemm->parts[X]), handle_of(o, gemm->parts[W]), handle_of(o, gemm->parts[Y]),
        call->primitive_desc_query_md(gemm->parts[DESCRIPTION], QUERY_SCRATCHPAD, 0)};
    static const int which[] = {SRC, WEIGHTS, DST, SCRATCHPAD};
    exec_arg args[4] = {{0}};
    void *stream = NULL;
    int before = alone(o), n = gemm->n_bytes_scratch ? 4 : 3;
    int code = call->stream_create(&stream, o->engine, IN_ORDER);
    for (int i = 0; code == 0 && i < n; i++) {
        args[i].which = which[i];
        code = call->memory_create(&args[i].memory, descriptions[i], o->engine, data[i]);
    }
    if (code == 0) code = call->primitive_execute(gemm->parts[PRIMITIVE], stream, n, args);
    for (int i = 0; i < n; i++)
        if (args[i].memory) call->memory_destroy(args[i].memory);
    if (stream) call->stream_destroy(stream);
    no_longer_alone(o, before);
    return code == 0;
}

const dsi_gemm_binding dsi_gemm_onednn = {open_onednn, close_onednn, create, destroy, run};
