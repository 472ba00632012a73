/* cpu_tensor.c: addresses, checks and kernel choice, shared by the CPU ops. */
#include "../../kernels/formats.h"
#include "cpu_gemm.h"
#include <string.h>

void *dsi_cpu_at(const dsi_tensor *t, int64_t row, int64_t column) {
    int64_t elements = row * t->stride[1] + column;
    return (uint8_t *)dsi_cpu_data(t) + dsi_row_bytes(t->dtype, elements);
}

bool dsi_cpu_weight_ok(const dsi_tensor *w) {
    if (!w || w->n_dims != 2 || w->stride[0] != 1) return false;
    if (w->dtype == DSI_DTYPE_E4M3) return w->scale_kind == DSI_SCALE_BLOCK_128;
    if (w->dtype == DSI_DTYPE_I8 || w->dtype == DSI_DTYPE_I4) {
        bool group = w->scale_group == 32 || w->scale_group == 64 || w->scale_group == 128;
        return w->scale_kind == DSI_SCALE_BLOCK_128 || w->scale_kind == DSI_SCALE_CHANNEL ||
               (w->scale_kind == DSI_SCALE_GROUP && group);
    }
    const int64_t values = dsi_dtype_block(w->dtype).values;
    if (values)
        return w->scale_kind == DSI_SCALE_NONE && w->ne[0] % values == 0 &&
               w->stride[1] % values == 0;
    return w->dtype == DSI_DTYPE_BF16 || w->dtype == DSI_DTYPE_F16 || w->dtype == DSI_DTYPE_F32;
}

static const void *scale_data(const dsi_tensor *w) {
    return w->scale ? w->scale->data + w->scale_offset : NULL;
}
/* Columns and rows that share a multiplier. */
static int64_t group_k(const dsi_tensor *w) {
    if (w->scale_kind == DSI_SCALE_CHANNEL) return w->ne[0] > 0 ? w->ne[0] : 1;
    return w->scale_kind == DSI_SCALE_GROUP ? w->scale_group : DSI_BLOCK;
}
static int64_t group_n(const dsi_tensor *w) {
    return w->scale_kind == DSI_SCALE_CHANNEL || w->scale_kind == DSI_SCALE_GROUP ? 1 : DSI_BLOCK;
}

int64_t dsi_cpu_a8_group(const dsi_tensor *w) {
    return w->scale_kind == DSI_SCALE_CHANNEL ? w->ne[0] : DSI_BLOCK;
}

dsi_matmul_fn dsi_cpu_matmul(const dsi_dev *dev, const dsi_tensor *w, dsi_dtype x_dtype,
                             dsi_matmul_args *args) {
    args->w = dsi_cpu_data(w);
    args->w_stride = w->stride[1];
    args->scale = scale_data(w);
    args->scale_dtype = w->scale_dtype;
    args->group_n = group_n(w);
    args->group_k = group_k(w);
    args->scale_stride = dsi_ceil_div(w->ne[0], args->group_k);
    args->k = w->ne[0];
    args->x_group = dsi_cpu_a8_group(w);
    args->w_dtype = w->dtype;
    dsi_matmul_fn own = dsi_cpu_matmul_kernel(&dev->kernels, w->dtype, x_dtype);
    return dev->gemm ? dsi_cpu_gemm_use(dev, w, x_dtype, args, own) : own;
}

dsi_matmul_fn dsi_cpu_matmul_kernel(const dsi_kernels *k, dsi_dtype w_dtype, dsi_dtype x_dtype) {
    bool f32 = x_dtype == DSI_DTYPE_F32;
    switch (w_dtype) {
    case DSI_DTYPE_E4M3:
        return f32 ? k->matmul_fp8_f32 : k->matmul_fp8_bf16;
    case DSI_DTYPE_I8:
        if (x_dtype == DSI_DTYPE_I8) return k->matmul_i8_a8;
        return f32 ? k->matmul_i8_f32 : k->matmul_i8_bf16;
    case DSI_DTYPE_I4:
        if (x_dtype == DSI_DTYPE_I8) return k->matmul_i4_a8;
        return f32 ? k->matmul_i4_f32 : k->matmul_i4_bf16;
    case DSI_DTYPE_BF16:
        return f32 ? k->matmul_bf16_f32 : k->matmul_bf16_bf16;
    case DSI_DTYPE_F16:
        return f32 ? k->matmul_f16_f32 : k->matmul_f16_bf16;
    case DSI_DTYPE_F32:
        return f32 ? k->matmul_f32_f32 : k->matmul_f32_bf16;
    default: /* op_plan has refused what is no block either: dsi_cpu_weight_ok */
        return f32 ? k->matmul_blocks_f32 : k->matmul_blocks_bf16;
    }
}

dsi_matmul_t_fn dsi_cpu_matmul_t(const dsi_dev *dev, const dsi_tensor *w, dsi_matmul_t_args *args) {
    const dsi_kernels *k = &dev->kernels;
    args->w = dsi_cpu_data(w);
    args->w_stride = w->stride[1];
    args->scale = scale_data(w);
    args->scale_dtype = w->scale_dtype;
    args->group_n = group_n(w);
    args->group_k = group_k(w);
    args->scale_stride = dsi_ceil_div(w->ne[0], args->group_k);
    args->k = w->ne[0];
    args->w_dtype = w->dtype;
    switch (w->dtype) {
    case DSI_DTYPE_E4M3:
        return k->matmul_t_fp8;
    case DSI_DTYPE_I8:
        return k->matmul_t_i8;
    case DSI_DTYPE_I4:
        return k->matmul_t_i4;
    case DSI_DTYPE_BF16:
        return k->matmul_t_bf16;
    case DSI_DTYPE_F16:
        return k->matmul_t_f16;
    case DSI_DTYPE_F32:
        return k->matmul_t_f32;
    default: /* as above */
        return k->matmul_t_blocks;
    }
}

bool dsi_cpu_next_run(const dsi_batch *batch, bool expanded, int64_t *begin, int64_t *end) {
    int64_t r = *end, n = batch->n_rows;
    while (r < n && (batch->expanded[r] != 0) != expanded) r++;
    if (r == n) return false;
    *begin = r;
    while (r < n && (batch->expanded[r] != 0) == expanded && batch->seq[r] == batch->seq[*begin])
        r++;
    *end = r;
    return true;
}

void dsi_cpu_store(const dsi_dev *dev, const float *x, void *y, dsi_dtype dtype, int64_t n) {
    if (dtype == DSI_DTYPE_BF16)
        dev->kernels.cast_bf16(x, y, n);
    else if (x != y)
        memcpy(y, x, (size_t)n * sizeof *x);
}

/* About 5 us of a vector kernel. On a busy machine every barrier can cost a time slice, so small
 * ops (all of them, in a model as small as tiny-gov) are better off alone. */
enum { ALONE_WORK = 1 << 17 };

uint32_t dsi_cpu_threads(const dsi_dev *dev, int64_t work) {
    return work < ALONE_WORK ? 1 : dev->n_threads;
}
void dsi_cpu_parallel(const dsi_dev *dev, dsi_pool_fn fn, const void *context, int64_t work) {
    void *unconst = (void *)(uintptr_t)context; /* workers only read it */
    if (dsi_cpu_threads(dev, work) == 1)
        fn(unconst, 0, 1);
    else
        dsi_pool_run(dev->pool, fn, unconst);
}

void *dsi_cpu_take(dsi_cpu_arena *arena, int64_t n_bytes) {
    uint8_t *p = arena->base ? arena->base + arena->used : NULL;
    arena->used += (uint64_t)dsi_cpu_round_up(n_bytes, 64);
    return p;
}
