/* gemm_openblas.c: OpenBLAS through its CBLAS interface with 32-bit integers (not libopenblas64).
 *
 * How many threads it uses is one number for the whole process, so it is set to one, and an
 * OpenBLAS that the program had loaded for itself is left alone. Its pthread build starts threads
 * as it is loaded: they are ended. */
#include "../base/sys.h"
#include "gemm.h"
#include <stdatomic.h>
#include <stdio.h>

enum { ROW_MAJOR = 101, NO_TRANSPOSE = 111, TRANSPOSE = 112 };

typedef void (*sgemm_fn)(int order, int trans_a, int trans_b, int m, int n, int k, float alpha,
                         const float *a, int lda, const float *b, int ldb, float beta, float *c,
                         int ldc);
typedef void (*sbgemm_fn)(int order, int trans_a, int trans_b, int m, int n, int k, float alpha,
                          const uint16_t *a, int lda, const uint16_t *b, int ldb, float beta,
                          float *c, int ldc);

typedef struct openblas {
    sgemm_fn sgemm;
    sbgemm_fn sbgemm; /* NULL: a build without BF16 */
} openblas;

static atomic_bool loaded_by_us;

/* OpenBLAS as the config string calls itself: "OpenBLAS 0.3.21 NO_LAPACKE DYNAMIC_ARCH ...". */
static void take_name(dsi_gemm_library *library, void *handle) {
    const char *(*config)(void) = NULL;
    *(void **)&config = dsi_sys_library_symbol(handle, "openblas_get_config");
    unsigned major, minor, patch;
    if (config && sscanf(config(), "OpenBLAS %u.%u.%u", &major, &minor, &patch) == 3)
        snprintf(library->name, sizeof library->name, "OpenBLAS %u.%u.%u", major, minor, patch);
    else
        snprintf(library->name, sizeof library->name, "OpenBLAS");
}

static dsi_status use_one_thread(void *handle, bool was_loaded, dsi_error *error) {
    int (*parallel)(void) = NULL, (*shutdown)(void) = NULL;
    void (*set_threads)(int) = NULL;
    *(void **)&parallel = dsi_sys_library_symbol(handle, "openblas_get_parallel");
    *(void **)&set_threads = dsi_sys_library_symbol(handle, "openblas_set_num_threads");
    *(void **)&shutdown = dsi_sys_library_symbol(handle, "blas_thread_shutdown_");
    if (parallel && parallel() == 0) return DSI_OK;
    if (was_loaded && !atomic_load(&loaded_by_us))
        return dsi_fail(
            error, DSI_E_UNSUPPORTED,
            "the program uses OpenBLAS itself, and the number of its threads is one for "
            "all; its serial build may be shared");
    if (!set_threads)
        return dsi_fail(
            error, DSI_E_UNSUPPORTED,
            "OpenBLAS has no openblas_set_num_threads: it would start threads of its own");
    set_threads(1);
    if (shutdown) shutdown();
    return DSI_OK;
}

static dsi_status open_openblas(dsi_gemm_library *library, const char *file, dsi_error *error) {
    char why[256];
    bool was_loaded;
    const char *name = file ? file : "libopenblas.so.0";
    void *handle = dsi_sys_library_open(name, &was_loaded, why, sizeof why);
    if (!handle) return dsi_fail(error, DSI_E_UNSUPPORTED, "OpenBLAS is not here: %s", why);
    static const char *const symbols[] = {"cblas_sgemm", NULL};
    void *functions[1];
    dsi_status st = dsi_gemm_load(handle, name, symbols, functions, error);
    if (st == DSI_OK) st = use_one_thread(handle, was_loaded, error);
    if (st != DSI_OK) return st;
    atomic_store(&loaded_by_us, true);
    openblas *o = library->state = dsi_sys_calloc(1, sizeof *o);
    if (!o) return dsi_fail(error, DSI_E_NOMEM, "no memory for OpenBLAS");
    *(void **)&o->sgemm = functions[0];
    *(void **)&o->sbgemm = dsi_sys_library_symbol(handle, "cblas_sbgemm");
    library->takes = 1u << DSI_DTYPE_F32 | (o->sbgemm ? 1u << DSI_DTYPE_BF16 : 0);
    take_name(library, handle);
    return DSI_OK;
}

static void close_openblas(dsi_gemm_library *library) { dsi_sys_free(library->state); }

static dsi_status create(dsi_gemm *gemm, dsi_error *error) {
    (void)gemm, (void)error; /* every shape is the same to it */
    return DSI_OK;
}
static void destroy(dsi_gemm *gemm) { (void)gemm; }

static bool run(const dsi_gemm *gemm, const void *x, const void *w, void *y, void *scratch) {
    const openblas *o = gemm->library->state;
    const dsi_gemm_shape *s = &gemm->shape;
    (void)scratch;
    if (s->dtype == DSI_DTYPE_F32)
        o->sgemm(ROW_MAJOR, NO_TRANSPOSE, TRANSPOSE, (int)s->m, (int)s->n, (int)s->k, 1, x,
                 (int)s->x_stride, w, (int)s->w_stride, 0, y, (int)s->y_stride);
    else
        o->sbgemm(ROW_MAJOR, NO_TRANSPOSE, TRANSPOSE, (int)s->m, (int)s->n, (int)s->k, 1, x,
                  (int)s->x_stride, w, (int)s->w_stride, 0, y, (int)s->y_stride);
    return true;
}

const dsi_gemm_binding dsi_gemm_openblas = {open_openblas, close_openblas, create, destroy, run};
