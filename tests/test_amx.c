/* test_amx.c: what stands between the AMX kernels and a machine that nobody here has: the model of
 * the instructions against Intel's pseudo-code in scalar C, the machine code of the kernels on that
 * model, and the system's permission.
 *
 * Where the CPU lacks AMX, each of its instructions raises SIGILL: a handler decodes it, lets the
 * model compute and goes on behind it. So the objects of the library run here as they are, not
 * sources built against intrinsics of another kind; a compiler that moves a store behind a tile
 * load is seen. Where the CPU has AMX, the same cases hold the model against the hardware. */
#include "../kernels/kernels.h"
#include "../lib/backend/cpu_isa.h"
#include "../lib/base/fault.h"
#include <math.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <ucontext.h>
#include <unistd.h>

#include <cmocka.h>

#if defined(DSI_WITH_AMX) && defined(__x86_64__)

#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,fma"))),    \
                             apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,fma")
#endif
#include "amx_model.h"

static _Thread_local amx_state tiles;

/* ---- The instructions, decoded --------------------------------------------------------------- */

typedef struct instruction {
    int opcode, prefix; /* prefix: 0 none, 1 66, 2 F3, 3 F2 */
    int reg, rm, vvvv;  /* tile numbers, where they are */
    bool in_memory;
    uint8_t *base; /* base and displacement; with `index` the address */
    int64_t index; /* times scale: the distance of rows where rows are moved */
    int64_t n_bytes;
} instruction;

static int64_t general(const greg_t *g, int number) {
    static const int order[16] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP,
                                  REG_RSI, REG_RDI, REG_R8,  REG_R9,  REG_R10, REG_R11,
                                  REG_R12, REG_R13, REG_R14, REG_R15};
    return g[order[number]];
}

static int32_t displacement(const uint8_t *at) {
    int32_t value;
    memcpy(&value, at, sizeof value);
    return value;
}

/* VEX.128 with three bytes, map 0F38, W0: C4 RXBmmmmm WvvvvLpp opcode ModRM [SIB] [disp]. */
static bool decode(const greg_t *g, instruction *in) {
    const uint8_t *start = (const uint8_t *)(uintptr_t)g[REG_RIP], *p = start;
    if (p[0] != 0xC4 || (p[1] & 0x1F) != 2 || (p[2] & 0x84) != 0) return false;
    int x = p[1] & 0x40 ? 0 : 8, b = p[1] & 0x20 ? 0 : 8, mod = p[4] >> 6, rm = p[4] & 7;
    *in = (instruction){.opcode = p[3], .prefix = p[2] & 3, .reg = p[4] >> 3 & 7, .rm = rm};
    in->vvvv = ~(p[2] >> 3) & 15;
    in->in_memory = mod != 3;
    p += 5;
    if (in->in_memory) {
        int64_t base = 0;
        int number = rm | b;
        bool relative = mod == 0 && rm == 5, based = !relative;
        if (rm == 4) {
            int scale = *p >> 6, index = (*p >> 3 & 7) | x;
            number = (*p & 7) | b;
            based = mod != 0 || (*p & 7) != 5;
            if (index != 4) in->index = general(g, index) * (1 << scale);
            p++;
        }
        if (based) base = general(g, number);
        if (mod == 1) base += (int8_t)*p++;
        if (mod == 2 || !based) base += displacement(p), p += 4;
        if (relative) base += (int64_t)(uintptr_t)p;
        in->base = (uint8_t *)(uintptr_t)base; /* NOLINT: an address out of a register */
    }
    in->n_bytes = p - start;
    return true;
}

static bool execute(const instruction *in) {
    enum { NONE, P66, F3, F2 };
    const int what = in->opcode << 2 | in->prefix;
    if (what == (0x49 << 2 | NONE) && in->in_memory)
        amx_loadconfig(&tiles, in->base + in->index);
    else if (what == (0x49 << 2 | NONE))
        amx_release(&tiles);
    else if (what == (0x49 << 2 | F2) && !in->in_memory)
        amx_zero(&tiles, in->reg);
    else if ((what == (0x4B << 2 | F2) || what == (0x4B << 2 | P66)) && in->in_memory)
        amx_loadd(&tiles, in->reg, in->base, in->index);
    else if (what == (0x4B << 2 | F3) && in->in_memory)
        amx_stored(&tiles, in->reg, in->base, in->index);
    else if (what == (0x5C << 2 | F3))
        amx_dpbf16ps(&tiles, in->reg, in->rm, in->vvvv);
    else if (in->opcode == 0x5E) /* F2 both signed, F3 the first, 66 the second */
        amx_dpb(&tiles, in->reg, in->rm, in->vvvv, in->prefix == F2 || in->prefix == F3,
                in->prefix == F2 || in->prefix == P66);
    else
        return false;
    return true;
}

static void on_illegal(int number, siginfo_t *info, void *context) {
    (void)info;
    greg_t *g = ((ucontext_t *)context)->uc_mcontext.gregs;
    instruction in;
    if (decode(g, &in) && execute(&in))
        g[REG_RIP] += in.n_bytes;
    else
        signal(number, SIG_DFL); /* the instruction is run again, and ends the process */
}

/* ---- The model against the pseudo-code ------------------------------------------------------- */

static uint64_t seed;
static uint32_t random_bits(void) {
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(seed >> 33);
}
static int64_t below(int64_t n) { return (int64_t)random_bits() % n; }

static float flush(float value) { return fabsf(value) < 0x1p-126f ? copysignf(0, value) : value; }

/* Numbers of usual size, now and then denormal, zero, infinite, NaN. */
static uint16_t bf16(bool finite) {
    uint16_t sign = (uint16_t)(random_bits() & 0x8000u);
    int64_t sort = below(40);
    if (sort == 0) return (uint16_t)(sign | below(128));
    if (sort == 1) return sign;
    if (sort == 2 && !finite) return (uint16_t)(sign | 0x7F80u | (below(2) != 0 ? 0x40u : 0));
    return (uint16_t)(sign |
                      (0x3F80u + (uint32_t)below(9) * 0x80u - 0x200u + (uint32_t)below(128)));
}

static void configure(int64_t m, int64_t n, int64_t k) {
    uint8_t config[64] = {1};
    const int64_t rows[3] = {m, m, k}, words[3] = {n, k, n};
    for (int t = 0; t < 3; t++) {
        config[16 + 2 * t] = (uint8_t)(4 * words[t]);
        config[48 + t] = (uint8_t)rows[t];
    }
    amx_loadconfig(&tiles, config);
}

static float f32_of(uint16_t bits) {
    uint32_t wide = (uint32_t)bits << 16;
    float value;
    memcpy(&value, &wide, sizeof value);
    return value;
}

/* Rows and columns that are not configured are zero afterwards. */
static void check_outside(int64_t m, int64_t n) {
    for (int64_t i = 0; i < AMX_ROWS; i++)
        for (int64_t j = 0; j < AMX_ROW_BYTES; j++)
            if (i >= m || j >= 4 * n) assert_int_equal(tiles.tile[0][i][j], 0);
}

static void test_model_bf16(void **state) {
    (void)state;
    seed = 1;
    for (int turn = 0; turn < 300; turn++) {
        int64_t m = 1 + below(16), n = 1 + below(16), k = 1 + below(16);
        uint16_t a[16][32], b[16][32], *all_a = a[0], *all_b = b[0];
        float c[16][16], y[16][16], *all_c = c[0];
        configure(m, n, k);
        for (int i = 0; i < 512; i++)
            all_a[i] = bf16(turn % 4 != 0), all_b[i] = bf16(turn % 4 != 0);
        for (int i = 0; i < 256; i++) all_c[i] = f32_of(bf16(true));
        amx_loadd(&tiles, 0, c, 64);
        amx_loadd(&tiles, 1, a, 64);
        amx_loadd(&tiles, 2, b, 64);
        amx_dpbf16ps(&tiles, 0, 1, 2);
        memset(y, 0xFF, sizeof y);
        amx_stored(&tiles, 0, y, 64);
        for (int64_t i = 0; i < m; i++)
            for (int64_t j = 0; j < n; j++) {
                float even = 0, odd = 0;
                for (int64_t l = 0; l < k; l++) {
                    even =
                        flush(fmaf(flush(f32_of(a[i][2 * l])), flush(f32_of(b[l][2 * j])), even));
                    odd = flush(
                        fmaf(flush(f32_of(a[i][2 * l + 1])), flush(f32_of(b[l][2 * j + 1])), odd));
                }
                float sum = flush(flush(c[i][j]) + flush(even + odd));
                if (isnan(sum))
                    assert_true(isnan(y[i][j]));
                else
                    assert_memory_equal(&sum, &y[i][j], sizeof sum);
            }
        check_outside(m, n);
    }
    amx_release(&tiles);
}

static void test_model_int8(void **state) {
    (void)state;
    seed = 2;
    for (int turn = 0; turn < 300; turn++) {
        int64_t m = 1 + below(16), n = 1 + below(16), k = 1 + below(16);
        uint8_t a[16][64], b[16][64], *all_a = a[0], *all_b = b[0];
        int32_t y[16][16];
        const bool a_signed = turn % 2 != 0, b_signed = turn / 2 % 2 != 0;
        configure(m, n, k);
        for (int i = 0; i < 1024; i++)
            all_a[i] = (uint8_t)random_bits(), all_b[i] = (uint8_t)random_bits();
        amx_zero(&tiles, 0);
        amx_loadd(&tiles, 1, a, 64);
        amx_loadd(&tiles, 2, b, 64);
        amx_dpb(&tiles, 0, 1, 2, a_signed, b_signed);
        amx_stored(&tiles, 0, y, 64);
        for (int64_t i = 0; i < m; i++)
            for (int64_t j = 0; j < n; j++) {
                int32_t sum = 0;
                for (int64_t l = 0; l < 4 * k; l++) {
                    uint8_t x = a[i][l], w = b[l / 4][4 * j + l % 4];
                    sum += (a_signed ? (int8_t)x : x) * (b_signed ? (int8_t)w : w);
                }
                assert_int_equal(y[i][j], sum);
            }
        check_outside(m, n);
    }
    amx_release(&tiles);
}

/* Whether the model ends a process that does what the processor refuses. */
static bool is_refused(void (*what)(void)) {
    pid_t child = fork();
    if (child == 0) {
        signal(SIGILL, SIG_DFL);
        what();
        _exit(0);
    }
    int status = 0;
    return waitpid(child, &status, 0) == child && WIFSIGNALED(status);
}
static void zero_unconfigured(void) { amx_zero(&tiles, 0); }
static void zero_without_rows(void) { configure(4, 4, 4), amx_zero(&tiles, 3); }
static void use_released(void) { configure(4, 4, 4), amx_release(&tiles), amx_zero(&tiles, 0); }
static void multiply_unlike_depths(void) {
    configure(4, 4, 4);
    tiles.row_bytes[1] = 64;
    amx_dpbf16ps(&tiles, 0, 1, 2);
}
static void multiply_onto_itself(void) { configure(4, 4, 4), amx_dpbf16ps(&tiles, 1, 1, 2); }
static void configure_ninth_tile(void) {
    uint8_t config[64] = {1};
    config[32] = 64, config[56] = 16;
    amx_loadconfig(&tiles, config);
}
static void configure_reserved(void) {
    const uint8_t config[64] = {1, 0, 1};
    amx_loadconfig(&tiles, config);
}
static void do_nothing_wrong(void) {
    configure(16, 16, 16);
    amx_dpbf16ps(&tiles, 0, 1, 2);
    amx_release(&tiles);
}

static void test_model_refuses(void **state) {
    (void)state;
    assert_true(is_refused(zero_unconfigured));
    assert_true(is_refused(zero_without_rows));
    assert_true(is_refused(use_released));
    assert_true(is_refused(multiply_unlike_depths));
    assert_true(is_refused(multiply_onto_itself));
    assert_true(is_refused(configure_ninth_tile));
    assert_true(is_refused(configure_reserved));
    assert_false(is_refused(do_nothing_wrong));
}

#ifdef __clang__
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

/* ---- The kernels' machine code against the kernels on the intrinsics' doubles ---------------- */

#define K(type, stem, isa, symbol, c) void symbol##_double DSI_KERNEL_ARGS_##type;
#include "../kernels/kernels.inc"
#undef K

static const struct pair {
    const char *symbol;
    dsi_matmul_fn real, twin;
    dsi_dtype w;
    bool a8;
} pairs[] = {
#define PAIR(stem, w, a8)                                                                          \
    { #stem, dsi_##stem##__amx, dsi_##stem##__amx_double, w, a8 }
    PAIR(matmul_fp8_bf16, DSI_DTYPE_E4M3, false), PAIR(matmul_bf16_bf16, DSI_DTYPE_BF16, false),
    PAIR(matmul_i8_a8, DSI_DTYPE_I8, true), PAIR(matmul_i4_a8, DSI_DTYPE_I4, true)};

/* What one thread does: its own seed, its own buffers. */
typedef struct work {
    uint64_t seed;
    uint64_t n_products; /* multiplying instructions seen by the handler */
    char why[160];
} work;

enum { MAX_M = 70, MAX_N = 90, MAX_K = 560, STRIDE = MAX_K + 8, MAX_GROUPS = MAX_K / 32 + 1 };
enum { RECORD = 832 }; /* bytes of a record of MAX_K columns, and more */
typedef struct buffers {
    uint16_t x[MAX_M * STRIDE];
    uint8_t w[MAX_N * STRIDE * 2 + 1];
    float scale[MAX_N * MAX_GROUPS];
    int32_t rows[MAX_M];
    float y[2][MAX_M * MAX_N];
    _Alignas(64) uint8_t record[MAX_M * RECORD];
    _Alignas(64) uint8_t scratch[32 * 4 * (MAX_K + 64)];
} buffers;
_Static_assert(STRIDE % 8 == 0, "rows of four bits begin at whole words");

static uint64_t draw(work *w) {
    w->seed = w->seed * 6364136223846793005u + 1442695040888963407u;
    return w->seed >> 33;
}
static int64_t draw_below(work *w, int64_t n) { return (int64_t)(draw(w) % (uint64_t)n); }

/* Random numbers, none of them NaN: which of two comes out of a multiply-add is the compiler's
 * choice. */
static void fill(work *job, buffers *b, dsi_dtype w) {
    for (int64_t i = 0; i < MAX_M * STRIDE; i++) {
        uint64_t bits = draw(job);
        b->x[i] = (uint16_t)((bits & 0x8000u) | (0x3E80u + bits % 0x280u));
    }
    for (size_t i = 0; i < sizeof b->w; i++) {
        b->w[i] = (uint8_t)draw(job);
        if (w == DSI_DTYPE_E4M3 && (b->w[i] & 0x7F) == 0x7F) b->w[i] ^= 1;
        if (w == DSI_DTYPE_BF16 && i % 2 == 0) b->w[i] = (uint8_t)(b->w[i] & 0x80) | 0x3E;
    }
    for (int i = 0; i < MAX_N * MAX_GROUPS; i++)
        b->scale[i] = (float)(1 + draw_below(job, 100)) * 0.01f;
    for (int i = 0; i < MAX_M; i++) b->rows[i] = (int32_t)draw_below(job, MAX_M);
}

/* Groups of 32, 64 or 128 columns, or one for the row; x likewise. */
static void quantise(work *job, buffers *b, dsi_matmul_args *a) {
    static const int64_t groups[] = {32, 64, 128, 0};
    const int64_t row = a->k > 0 ? a->k : 1, group = groups[draw_below(job, 4)];
    a->group_k = group > 0 ? group : row;
    a->group_n = draw_below(job, 2) ? 1 : 128;
    a->scale_dtype = DSI_DTYPE_F32;
    a->scale_stride = MAX_GROUPS;
    a->x_group = draw_below(job, 2) ? 128 : row;
    assert_true(dsi_a8_bytes(a->k) <= RECORD);
    for (int64_t i = 0; i < MAX_M; i++)
        dsi_quantize_a8_bf16__ref(b->x + i * STRIDE, b->record + i * RECORD, a->k, a->x_group);
    a->x = b->record;
    a->x_stride = RECORD;
}

static void compare(work *job, buffers *b, const struct pair *p, int64_t m, int64_t n, int64_t k) {
    int64_t n0 = draw_below(job, MAX_N - n + 1);
    fill(job, b, p->w);
    dsi_matmul_args a = {.x = b->x,
                         .x_stride = STRIDE,
                         .x_rows = draw_below(job, 2) ? b->rows : NULL,
                         .w = b->w + 1,
                         .w_stride = STRIDE,
                         .scale = b->scale,
                         .scale_stride = 8,
                         .y = b->y[0],
                         .y_stride = MAX_N,
                         .m = m,
                         .n0 = n0,
                         .n1 = n0 + n,
                         .k = k,
                         .scratch = b->scratch};
    if (p->a8) quantise(job, b, &a);
    memset(b->y, 0xAA, sizeof b->y);
    p->real(&a);
    job->n_products += tiles.n_products;
    bool released = !tiles.configured;
    tiles.n_products = 0;
    a.y = b->y[1];
    p->twin(&a);
    if (memcmp(b->y[0], b->y[1], sizeof b->y[0]) != 0 || !released)
        snprintf(job->why, sizeof job->why, "%s: m=%lld n=[%lld, %lld) k=%lld: %s", p->symbol,
                 (long long)m, (long long)n0, (long long)a.n1, (long long)k,
                 released ? "other bits" : "the tiles are still configured");
}

static void *compare_all(void *context) {
    static const int64_t shapes[][3] = {{1, 16, 32},   {1, 33, 560},  {2, 5, 7},    {16, 32, 128},
                                        {17, 40, 129}, {32, 64, 256}, {33, 17, 96}, {48, 31, 257},
                                        {64, 32, 64},  {65, 90, 512}, {70, 8, 31},  {3, 1, 320},
                                        {5, 3, 0},     {0, 3, 5}};
    work *w = context;
    buffers *b = aligned_alloc(64, (sizeof *b + 63) / 64 * 64);
    if (b == NULL) return NULL;
    memset(b, 0, sizeof *b);
    for (size_t i = 0; i < sizeof shapes / sizeof shapes[0]; i++)
        for (size_t p = 0; p < sizeof pairs / sizeof pairs[0]; p++)
            if (w->why[0] == 0) compare(w, b, &pairs[p], shapes[i][0], shapes[i][1], shapes[i][2]);
    free(b);
    return b;
}

/* Two threads at once, as in a pool: tile state is a thread's own. */
static void test_machine_code(void **state) {
    (void)state;
    const uint32_t isa = dsi_cpu_isa(dsi_isa_detect(), NULL);
    if ((isa & DSI_ISA_AVX512BF16) == 0) skip(); /* the kernels use these instructions, too */
    struct sigaction before, ours = {.sa_sigaction = on_illegal, .sa_flags = SA_SIGINFO};
    sigemptyset(&ours.sa_mask);
    const bool emulated = (isa & DSI_ISA_AMX) == 0;
    if (emulated) sigaction(SIGILL, &ours, &before);
    work both[2] = {{.seed = 3}, {.seed = 4}};
    pthread_t other;
    assert_int_equal(pthread_create(&other, NULL, compare_all, &both[1]), 0);
    void *done = compare_all(&both[0]), *other_done = NULL;
    pthread_join(other, &other_done);
    if (emulated) sigaction(SIGILL, &before, NULL);
    assert_non_null(done);
    assert_non_null(other_done);
    print_message("%llu multiplying instructions %s\n",
                  (unsigned long long)(both[0].n_products + both[1].n_products),
                  emulated ? "EMULATED out of the library's machine code" : "on the hardware");
    assert_string_equal(both[0].why, "");
    assert_string_equal(both[1].why, "");
    if (emulated) assert_true(both[0].n_products > 1000);
}

/* ---- Permission ------------------------------------------------------------------------------ */

static int n_lines;
static char line[512];
static void keep_line(void *user, uint32_t level, const char *component, const char *text) {
    (void)user, (void)level, (void)component;
    n_lines++;
    snprintf(line, sizeof line, "%s", text);
}

/* Comes first: what the system gave once, it is not asked for again. */
static void test_permission(void **state) {
    (void)state;
    const dsi_log log = {keep_line, NULL};
    const uint32_t less = DSI_ISA_AVX512BF16 | DSI_ISA_AVX512 | DSI_ISA_AVX2 | DSI_ISA_REF;
    dsi_fault_arm(&(dsi_fault){.kind = DSI_CALL_ARCH_PRCTL, .nth = 1});
    assert_int_equal(dsi_cpu_isa(less, &log), less);
    assert_int_equal(dsi_fault_seen(DSI_CALL_ARCH_PRCTL), 0); /* nothing to ask for */
    assert_int_equal(dsi_cpu_isa(less | DSI_ISA_AMX, &log), less);
    assert_int_equal(dsi_fault_struck(), 1);
    dsi_fault_disarm();
    assert_int_equal(n_lines, 1);
    assert_non_null(strstr(line, "does not let this process use it (arch_prctl: error 28)"));
    /* The system's own word. */
    const uint32_t detected = dsi_isa_detect();
    if ((detected & DSI_ISA_AMX) == 0) {
        assert_int_equal(dsi_cpu_isa(less | DSI_ISA_AMX, &log), less);
        assert_int_equal(n_lines, 2);
        assert_int_equal(dsi_cpu_isa(less | DSI_ISA_AMX, NULL), less);
    } else if (dsi_cpu_isa(detected, NULL) == detected) {
        dsi_fault_arm(&(dsi_fault){.kind = DSI_CALL_ARCH_PRCTL, .nth = 1});
        assert_int_equal(dsi_cpu_isa(detected, NULL), detected);
        assert_int_equal(dsi_fault_seen(DSI_CALL_ARCH_PRCTL), 0);
        dsi_fault_disarm();
    }
}

/* Every set holds those below it, by the names that options take. */
static void test_sets(void **state) {
    (void)state;
    static const char *const names[] = {"amx", "avx512bf16", "avx512vnni", "avx512", "avx2", "ref"};
    uint32_t n;
    const dsi_cpu_set *sets = dsi_cpu_sets(&n);
    assert_int_equal(n, 6);
    for (uint32_t i = 0; i < n; i++) {
        assert_string_equal(sets[i].name, names[i]);
        if (i > 0) assert_int_equal(sets[i].mask & ~sets[i - 1].mask, 0);
        if (i > 0) assert_true(sets[i].mask < sets[i - 1].mask);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_permission),    cmocka_unit_test(test_sets),
        cmocka_unit_test(test_model_bf16),    cmocka_unit_test(test_model_int8),
        cmocka_unit_test(test_model_refuses), cmocka_unit_test(test_machine_code),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

#else

int main(void) { return 0; }

#endif
