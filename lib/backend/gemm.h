/* gemm.h: matrix products of libraries that are found when the program runs: oneDNN, OpenBLAS.
 *
 * They serve the fast mode alone: their sums have an order of their own, which may change with the
 * number of rows. Nothing here is needed to compute; a library that is missing, of a version that
 * is not known here, or built to start threads of its own is refused with a message. */
#ifndef DSI_LIB_BACKEND_GEMM_H
#define DSI_LIB_BACKEND_GEMM_H

#include "../base/base.h"

enum { DSI_LIBRARY_ONEDNN = 1, DSI_LIBRARY_OPENBLAS = 2 };
typedef struct dsi_gemm_library dsi_gemm_library;

/* Errors: UNSUPPORTED (not there, or of no use here: the message says why), NOMEM. */
dsi_status dsi_gemm_open(uint32_t which, dsi_gemm_library **library, dsi_error *error);
void dsi_gemm_close(dsi_gemm_library *library); /* after its products; NULL is allowed */
/* "oneDNN 2.6.3"; lives as long as the library. */
const char *dsi_gemm_name(const dsi_gemm_library *library);
/* Does it multiply operands of this type (BF16, F32: y is F32; I8: y is I32)? */
bool dsi_gemm_takes(const dsi_gemm_library *library, dsi_dtype dtype);

/* y[i][j] = sum_k x[i][k] * w[j][k] for x [m][k], w [n][k], y [m][n]; strides in elements. */
typedef struct dsi_gemm_shape {
    dsi_dtype dtype; /* of x and w */
    int64_t m, n, k, x_stride, w_stride, y_stride;
} dsi_gemm_shape;
/* A product of one shape: made once, then used by any number of threads at a time. */
typedef struct dsi_gemm dsi_gemm;
dsi_status dsi_gemm_new(dsi_gemm_library *library, const dsi_gemm_shape *shape, dsi_gemm **gemm,
                        dsi_error *error);
void dsi_gemm_free(dsi_gemm *gemm);
/* Bytes of memory, 64-byte aligned, that a call of run needs for itself. */
uint64_t dsi_gemm_scratch(const dsi_gemm *gemm);
/* On the calling thread alone. False if the library refuses: y may hold anything then. */
bool dsi_gemm_run(const dsi_gemm *gemm, const void *x, const void *w, void *y, void *scratch);

/* ---- What a binding implements (gemm_onednn.c, gemm_openblas.c) ------------------------------*/

typedef struct dsi_gemm_binding {
    dsi_status (*open)(dsi_gemm_library *library, const char *file, dsi_error *error);
    void (*close)(dsi_gemm_library *library);
    dsi_status (*create)(dsi_gemm *gemm, dsi_error *error);
    void (*destroy)(dsi_gemm *gemm);
    bool (*run)(const dsi_gemm *gemm, const void *x, const void *w, void *y, void *scratch);
} dsi_gemm_binding;
struct dsi_gemm_library {
    const dsi_gemm_binding *binding;
    char name[64];
    uint32_t takes; /* bit DSI_DTYPE_*: that type */
    void *state;    /* of the binding */
};
struct dsi_gemm {
    dsi_gemm_library *library;
    dsi_gemm_shape shape;
    uint64_t n_bytes_scratch;
    void *parts[8]; /* of the binding */
};
extern const dsi_gemm_binding dsi_gemm_onednn, dsi_gemm_openblas;
/* The functions of `symbols` (NULL-terminated) from the first of `files` that has them all, in
 * `functions`; UNSUPPORTED with what is missing where. */
dsi_status dsi_gemm_load(void *library, const char *file, const char *const *symbols,
                         void **functions, dsi_error *error);

/* For tests: a file that stands in for every library of this kind; NULL: the real names. Set it
 * while no other thread uses the library. */
extern const char *dsi_gemm_file[3];

#endif
