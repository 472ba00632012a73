/* check_kernels_bench.c: times a kernel at DeepSeek-V3 shapes. One thread. Weights cycle through
 * enough copies to come from memory and not from a cache; everything else is small and hot. */
#include "check.h"
#include <sys/mman.h>

enum { HIDDEN = 7168, EXPERT = 2048, WEIGHT_BYTES = 96 << 20 };

/* n elements of a format with plain values, alive until the process ends. */
static void *numbers(enum check_format format, int64_t n, double size) {
    int64_t bytes = check_format_bytes(format, n);
    void *array = mmap(NULL, (size_t)(bytes + 64), PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (array == MAP_FAILED) {
        perror("check_kernels: mmap");
        exit(3);
    }
    const int64_t period = 8190; /* no power of two, so that rows differ */
    if (check_is_whole(format)) size *= 8;
    for (int64_t i = 0; i < n && i < period; i++)
        check_put(format, array, i, size * sin((double)i * 0.37));
    int64_t filled = check_format_bytes(format, period);
    for (int64_t at = filled; at < bytes; at += filled)
        memcpy((uint8_t *)array + at, array, (size_t)(bytes - at < filled ? bytes - at : filled));
    return array;
}

typedef struct bench {
    const check_kernel *kernel;
    dsi_matmul_args matmul;
    dsi_matmul_t_args matmul_t;
    dsi_attend_args attend;
    dsi_route_args route;
    dsi_index_args index;
    int64_t copies, copy_bytes, turn, n;
    const uint8_t *weights;
    float *x, *up;
    void *w, *y;
} bench;

static void call(void *context) {
    bench *b = context;
    check_any_fn fn = b->kernel->fn;
    const uint8_t *w = b->copies > 0 ? b->weights + b->turn++ % b->copies * b->copy_bytes : NULL;
    switch (b->kernel->type) {
    case CHECK_matmul:
        b->matmul.w = w;
        ((dsi_matmul_fn)fn)(&b->matmul);
        break;
    case CHECK_matmul_t:
        b->matmul_t.w = w;
        ((dsi_matmul_t_fn)fn)(&b->matmul_t);
        break;
    case CHECK_attend:
        ((dsi_attend_fn)fn)(&b->attend);
        break;
    case CHECK_rms_norm:
        ((dsi_rms_norm_fn)fn)(b->x, b->w, DSI_DTYPE_BF16, b->y, b->n, 1e-6f);
        break;
    case CHECK_swiglu:
        ((dsi_swiglu_fn)fn)(b->x, b->up, b->y, b->n);
        break;
    case CHECK_cast:
        ((dsi_cast_fn)fn)(b->x, b->y, b->n);
        break;
    case CHECK_quantize:
        ((dsi_quantize_fn)fn)(b->x, b->y, b->n, DSI_BLOCK);
        break;
    case CHECK_decode:
        ((dsi_decode_fn)fn)((const uint8_t *)b->w, b->up, (uint16_t *)b->y, b->n);
        break;
    case CHECK_rope:
        ((dsi_rope_fn)fn)(&(dsi_rope_args){b->x, b->n, 1, b->up, b->n / 2, 4095, 1});
        break;
    case CHECK_route:
        ((dsi_route_fn)fn)(&b->route);
        break;
    case CHECK_index:
        ((dsi_index_fn)fn)(&b->index);
        break;
    case CHECK_decode_blocks:
        ((dsi_decode_blocks_fn)fn)(b->matmul.w_dtype, w, b->y, b->n);
        break;
    }
}

/* Records of rows of plain numbers. */
static void *records(int64_t rows, int64_t k, int64_t group) {
    uint8_t *all = numbers(CHECK_I8, rows * dsi_a8_bytes(k), 0);
    const float *x = numbers(CHECK_F32, rows * k, 1);
    for (int64_t i = 0; i < rows; i++)
        dsi_quantize_a8_f32__ref(x + i * k, all + i * dsi_a8_bytes(k), k, group);
    return all;
}

/* As bench_matmul, of the types of blocks that files are full of, each with its times. */
static void bench_blocks(check_run *run, bench *b) {
    static const struct {
        dsi_dtype dtype;
        const char *name;
    } types[] = {{DSI_DTYPE_Q8_0, "Q8_0"},       {DSI_DTYPE_Q4_0, "Q4_0"},
                 {DSI_DTYPE_Q4_K, "Q4_K"},       {DSI_DTYPE_Q6_K, "Q6_K"},
                 {DSI_DTYPE_Q5_K, "Q5_K"},       {DSI_DTYPE_Q3_K, "Q3_K"},
                 {DSI_DTYPE_Q2_K, "Q2_K"},       {DSI_DTYPE_IQ4_XS, "IQ4_XS"},
                 {DSI_DTYPE_IQ2_XXS, "IQ2_XXS"}, {DSI_DTYPE_IQ3_XXS, "IQ3_XXS"},
                 {DSI_DTYPE_IQ1_S, "IQ1_S"},     {DSI_DTYPE_Q4_1, "Q4_1"}};
    const bool decodes = run->kernel->type == CHECK_decode_blocks;
    const int64_t rows = decodes ? 1 : EXPERT, most = decodes ? 1 : 256;
    const enum check_format x = strstr(run->kernel->stem, "_bf16") ? CHECK_BF16 : CHECK_F32;
    b->n = HIDDEN, b->y = numbers(CHECK_F32, most * EXPERT + HIDDEN, 0);
    for (size_t i = 0; i < sizeof types / sizeof types[0]; i++) {
        b->copy_bytes = rows * dsi_row_bytes(types[i].dtype, HIDDEN);
        b->copies = WEIGHT_BYTES / b->copy_bytes + 1;
        /* Any bytes are blocks; f16 of 0x2C2C and the like are usual numbers. */
        uint8_t *w = (uint8_t *)numbers(CHECK_I8, b->copies * b->copy_bytes, 30);
        b->weights = w;
        b->matmul =
            (dsi_matmul_args){.x = numbers(x, most * HIDDEN, 1),
                              .x_stride = HIDDEN,
                              .w_stride = HIDDEN,
                              .y = b->y,
                              .y_stride = EXPERT,
                              .n1 = EXPERT,
                              .k = HIDDEN,
                              .w_dtype = types[i].dtype,
                              .scratch = numbers(CHECK_FP8, dsi_matmul_scratch_bytes(HIDDEN), 0)};
        static const int64_t m_list[] = {1, 4, 32, 256};
        for (int j = 0; j < (decodes || run->kernel->is_ref ? 1 : 4); j++) {
            const int64_t m = m_list[j];
            b->matmul.m = m;
            double seconds = check_seconds_per_call(call, b);
            check_add_speed(run, seconds, (double)b->copy_bytes,
                            2.0 * (double)m * (double)rows * HIDDEN, "%s m=%lld n=%lld k=%d",
                            types[i].name, (long long)m, (long long)rows, HIDDEN);
        }
    }
}

/* One expert matrix [2048][7168], for 1, 8 and 64 tokens. The reference only for one. I8 has a
 * scale for each row, I4 one for 128 columns. */
static void bench_matmul(check_run *run, bench *b) {
    const char *stem = run->kernel->stem + 7; /* behind "matmul_" */
    const bool a8 = strcmp(strchr(stem, '_'), "_a8") == 0;
    enum check_format w = check_format_named(stem), x = check_format_named(strchr(stem, '_') + 1);
    b->copy_bytes = check_format_bytes(w, (int64_t)EXPERT * HIDDEN);
    b->copies = WEIGHT_BYTES / b->copy_bytes + 1;
    b->weights = numbers(w, b->copies * EXPERT * HIDDEN, 1);
    const int64_t blocks = HIDDEN / DSI_BLOCK, most = 64;
    b->matmul =
        (dsi_matmul_args){.x = a8 ? NULL : numbers(x, most * HIDDEN, 1),
                          .x_stride = a8 ? dsi_a8_bytes(HIDDEN) : HIDDEN,
                          .x_group = w == CHECK_I8 ? HIDDEN : DSI_BLOCK,
                          .w_stride = HIDDEN,
                          .scale = numbers(CHECK_F32, EXPERT * blocks, 0.01),
                          .scale_stride = w == CHECK_I8 ? 1 : blocks,
                          .scale_dtype = w == CHECK_FP8 ? DSI_DTYPE_F32 : DSI_DTYPE_BF16,
                          .group_n = 1,
                          .group_k = w == CHECK_I8 ? HIDDEN : DSI_BLOCK,
                          .y = numbers(CHECK_F32, most * EXPERT, 0),
                          .y_stride = EXPERT,
                          .n1 = EXPERT,
                          .k = HIDDEN,
                          .scratch = numbers(CHECK_FP8, dsi_matmul_scratch_bytes(HIDDEN), 0)};
    if (a8) b->matmul.x = records(most, HIDDEN, b->matmul.x_group);
    for (int64_t m = 1; m <= (run->kernel->is_ref ? 1 : most); m *= 8) {
        b->matmul.m = m;
        double seconds = check_seconds_per_call(call, b);
        check_add_speed(run, seconds, (double)b->copy_bytes, 2.0 * (double)m * EXPERT * HIDDEN,
                        "m=%lld n=%d k=%d", (long long)m, EXPERT, HIDDEN);
    }
}

/* W_UK of one head, [128][512], for 1 and 64 tokens; 128 heads lie one behind the other. */
static void bench_matmul_t(check_run *run, bench *b) {
    enum { NOPE = 128, RANK = 512 };
    enum check_format w = check_format_named(run->kernel->stem + 9); /* behind "matmul_t_" */
    const bool blocks = strstr(run->kernel->stem, "_blocks") != NULL;
    b->copy_bytes =
        blocks ? dsi_row_bytes(DSI_DTYPE_Q8_0, NOPE * RANK) : check_format_bytes(w, NOPE * RANK);
    b->copies = WEIGHT_BYTES / b->copy_bytes + 1;
    b->weights = numbers(w, b->copies * NOPE * RANK, 1);
    b->matmul_t = (dsi_matmul_t_args){.x = numbers(CHECK_F32, 64 * NOPE, 1),
                                      .x_stride = NOPE,
                                      .w_stride = RANK,
                                      .scale = numbers(CHECK_F32, RANK / DSI_BLOCK, 0.01),
                                      .scale_stride = RANK / DSI_BLOCK,
                                      .scale_dtype = DSI_DTYPE_F32,
                                      .group_n = DSI_BLOCK,
                                      .group_k = DSI_BLOCK,
                                      .y = numbers(CHECK_F32, 64 * RANK, 0),
                                      .y_stride = RANK,
                                      .n1 = NOPE,
                                      .k = RANK,
                                      .w_dtype = DSI_DTYPE_Q8_0};
    for (int64_t m = 1; m <= 64; m *= 64) {
        b->matmul_t.m = m;
        double seconds = check_seconds_per_call(call, b);
        check_add_speed(run, seconds, (double)b->copy_bytes, 2.0 * (double)m * NOPE * RANK,
                        "m=%lld n=%d k=%d", (long long)m, NOPE, RANK);
    }
}

/* One page: absorbed (128 heads share the latent rows) and expanded (256 new rows of one head). */
static void bench_attend(check_run *run, bench *b) {
    static const int64_t shapes[2][4] = {{128, 512, 64, 512}, {256, 128, 64, 128}};
    enum check_format f = check_format_named(run->kernel->stem + 7); /* behind "attend_" */
    for (int i = 0; i < 2; i++) {
        int64_t n_q = shapes[i][0], d0 = shapes[i][1], d1 = shapes[i][2], dv = shapes[i][3];
        int32_t *limit = numbers(CHECK_F32, n_q, 0);
        for (int64_t q = 0; q < n_q; q++) limit[q] = DSI_PAGE_ROWS;
        b->attend = (dsi_attend_args){.q = numbers(f, n_q * (d0 + d1), 1),
                                      .q_stride = d0 + d1,
                                      .k0 = numbers(f, DSI_PAGE_ROWS * d0, 1),
                                      .k0_stride = d0,
                                      .k1 = numbers(f, DSI_PAGE_ROWS * d1, 1),
                                      .k1_stride = d1,
                                      .v = numbers(f, DSI_PAGE_ROWS * dv, 1),
                                      .v_stride = dv,
                                      .limit = limit,
                                      .state_m = numbers(CHECK_F32, n_q, 0),
                                      .state_l = numbers(CHECK_F32, n_q, 0),
                                      .state_stride = 1,
                                      .o = numbers(CHECK_F32, n_q * dv, 0),
                                      .o_stride = dv,
                                      .n_q = n_q,
                                      .d0 = d0,
                                      .d1 = d1,
                                      .dv = dv,
                                      .scale = 0.1f};
        double seconds = check_seconds_per_call(call, b);
        int64_t columns = d0 + d1 + dv;
        check_add_speed(run, seconds, (double)(DSI_PAGE_ROWS * columns * check_format_size(f)),
                        2.0 * (double)(n_q * DSI_PAGE_ROWS * columns),
                        "n_q=%lld d0=%lld d1=%lld dv=%lld", (long long)n_q, (long long)d0,
                        (long long)d1, (long long)dv);
    }
}

static void bench_row(check_run *run, bench *b) {
    b->x = numbers(CHECK_F32, 2 * HIDDEN, 1);
    b->up = numbers(CHECK_F32, HIDDEN, 1);
    b->w = numbers(CHECK_BF16, HIDDEN, 1);
    b->y = numbers(CHECK_F32, HIDDEN, 0);
    enum check_type type = run->kernel->type;
    b->n = type == CHECK_swiglu ? EXPERT : type == CHECK_rope ? 64 : HIDDEN;
    double y_size = strstr(run->kernel->stem, "bf16") != NULL ? 2 : 4;
    /* Bytes of x, of the second operand and of y. */
    double size = type == CHECK_rms_norm ? 6 : type == CHECK_swiglu ? 8 : 4;
    double seconds = check_seconds_per_call(call, b);
    check_add_speed(run, seconds, (double)b->n * (size + y_size), 0, "n=%lld", (long long)b->n);
}

static void bench_route(check_run *run, bench *b) {
    b->route = (dsi_route_args){.logits = numbers(CHECK_F32, 256, 2),
                                .bias = numbers(CHECK_F32, 256, 0.1),
                                .experts = numbers(CHECK_F32, 8, 0),
                                .weights = numbers(CHECK_F32, 8, 0),
                                .n_experts = 256,
                                .top_k = 8,
                                .n_group = 8,
                                .topk_group = 4,
                                .method = 3,
                                .sigmoid = 1,
                                .norm = 1,
                                .scale = 2.5f};
    check_add_speed(run, check_seconds_per_call(call, b), 0, 0, "256 experts, 8 of 4/8 groups");
}

/* A page of keys for the 64 heads of one row, and of four. */
static void bench_index(check_run *run, bench *b) {
    enum { INDEX_HEADS = 64, INDEX_DIM = 128, MOST = 4 };
    enum check_format f = check_format_named(run->kernel->stem + 12); /* behind "index_score_" */
    for (int64_t n_q = 1; n_q <= MOST; n_q += MOST - 1) {
        b->index = (dsi_index_args){.q = numbers(f, n_q * INDEX_HEADS * INDEX_DIM, 1),
                                    .k = numbers(f, DSI_PAGE_ROWS * INDEX_DIM, 1),
                                    .k_stride = INDEX_DIM,
                                    .weights = numbers(CHECK_F32, n_q * INDEX_HEADS, 1),
                                    .weights_stride = INDEX_HEADS,
                                    .score = numbers(CHECK_F32, n_q * DSI_PAGE_ROWS, 0),
                                    .score_stride = DSI_PAGE_ROWS,
                                    .n_q = n_q,
                                    .n_heads = INDEX_HEADS,
                                    .dim = INDEX_DIM,
                                    .scratch = numbers(CHECK_F32, INDEX_DIM * DSI_PAGE_ROWS, 0)};
        check_add_speed(run, check_seconds_per_call(call, b),
                        (double)(DSI_PAGE_ROWS * INDEX_DIM * check_format_size(f)),
                        2.0 * (double)(n_q * INDEX_HEADS * INDEX_DIM * DSI_PAGE_ROWS),
                        "n_q=%lld heads=%d dim=%d", (long long)n_q, INDEX_HEADS, INDEX_DIM);
    }
}

void check_bench(check_run *run) {
    bench b = {.kernel = run->kernel};
    if (strstr(run->kernel->stem, "_blocks") && run->kernel->type != CHECK_matmul_t) {
        bench_blocks(run, &b);
        return;
    }
    switch (run->kernel->type) {
    case CHECK_matmul:
        bench_matmul(run, &b);
        break;
    case CHECK_matmul_t:
        bench_matmul_t(run, &b);
        break;
    case CHECK_attend:
        bench_attend(run, &b);
        break;
    case CHECK_route:
        bench_route(run, &b);
        break;
    case CHECK_index:
        bench_index(run, &b);
        break;
    default:
        bench_row(run, &b);
    }
}
