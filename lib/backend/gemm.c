/* gemm.c: libraries for matrix products, whichever it is. */
#include "gemm.h"
#include "../base/sys.h"

const char *dsi_gemm_file[3];

dsi_status dsi_gemm_load(void *library, const char *file, const char *const *symbols,
                         void **functions, dsi_error *error) {
    for (size_t i = 0; symbols[i]; i++) {
        functions[i] = dsi_sys_library_symbol(library, symbols[i]);
        if (!functions[i])
            return dsi_fail(error, DSI_E_UNSUPPORTED, "%s has no %s; another build of it may", file,
                            symbols[i]);
    }
    return DSI_OK;
}

dsi_status dsi_gemm_open(uint32_t which, dsi_gemm_library **out, dsi_error *error) {
    *out = NULL;
    dsi_gemm_library *library = dsi_sys_calloc(1, sizeof *library);
    if (!library) return dsi_fail(error, DSI_E_NOMEM, "no memory for a library of products");
    library->binding = which == DSI_LIBRARY_OPENBLAS ? &dsi_gemm_openblas : &dsi_gemm_onednn;
    dsi_status st = library->binding->open(library, dsi_gemm_file[which], error);
    if (st != DSI_OK) {
        dsi_gemm_close(library);
        return st;
    }
    *out = library;
    return DSI_OK;
}

void dsi_gemm_close(dsi_gemm_library *library) {
    if (!library) return;
    library->binding->close(library);
    dsi_sys_free(library);
}

const char *dsi_gemm_name(const dsi_gemm_library *library) { return library->name; }

bool dsi_gemm_takes(const dsi_gemm_library *library, dsi_dtype dtype) {
    return dtype < 32 && (library->takes >> dtype & 1);
}

dsi_status dsi_gemm_new(dsi_gemm_library *library, const dsi_gemm_shape *shape, dsi_gemm **out,
                        dsi_error *error) {
    *out = NULL;
    const int64_t limit = INT32_MAX; /* what every binding can count */
    bool ok = dsi_gemm_takes(library, shape->dtype) && shape->m > 0 && shape->n > 0 &&
              shape->k > 0 && shape->x_stride >= shape->k && shape->w_stride >= shape->k &&
              shape->y_stride >= shape->n && shape->m <= limit && shape->x_stride <= limit &&
              shape->w_stride <= limit && shape->y_stride <= limit;
    if (!ok)
        return dsi_fail(error, DSI_E_UNSUPPORTED, "%s does not multiply %s of this shape",
                        library->name, dsi_dtype_name(shape->dtype));
    dsi_gemm *gemm = dsi_sys_calloc(1, sizeof *gemm);
    if (!gemm) return dsi_fail(error, DSI_E_NOMEM, "no memory for a product of %s", library->name);
    gemm->library = library;
    gemm->shape = *shape;
    dsi_status st = library->binding->create(gemm, error);
    if (st != DSI_OK) {
        dsi_gemm_free(gemm);
        return st;
    }
    *out = gemm;
    return DSI_OK;
}

void dsi_gemm_free(dsi_gemm *gemm) {
    if (!gemm) return;
    gemm->library->binding->destroy(gemm);
    dsi_sys_free(gemm);
}

uint64_t dsi_gemm_scratch(const dsi_gemm *gemm) { return gemm->n_bytes_scratch; }

bool dsi_gemm_run(const dsi_gemm *gemm, const void *x, const void *w, void *y, void *scratch) {
    return gemm->library->binding->run(gemm, x, w, y, scratch);
}
