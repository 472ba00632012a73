/* select.c: which instruction sets this CPU and its operating system offer, and the best kernel of
 * every stem among them. */
#include "kernels.h"
#include <string.h>

#if defined(__x86_64__)
#include <cpuid.h>

/* XCR0: the register state that the operating system saves on a context switch. */
static uint32_t saved_state(void) {
    uint32_t low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return low;
}

static bool has(uint32_t flags, uint32_t needed) { return (flags & needed) == needed; }

uint32_t dsi_isa_detect(void) {
    /* Bits as in the Intel SDM, volume 2, CPUID leaves 1 and 7. */
    const uint32_t fma = 1u << 12, osxsave = 1u << 27, avx = 1u << 28, f16c = 1u << 29;
    const uint32_t avx2 = 1u << 5, avx512f = 1u << 16, avx512dq = 1u << 17, avx512bw = 1u << 30;
    const uint32_t avx512vl = 1u << 31, avx512vbmi = 1u << 1, avx512vnni = 1u << 11;
    const uint32_t avx512bf16 = 1u << 5;
    const uint32_t amx_bf16 = 1u << 22, amx_tile = 1u << 24, amx_int8 = 1u << 25;
    const uint32_t ymm_state = 0x06, zmm_state = 0xE6, tile_state = 0x60000;
    uint32_t a, b, c, d, bf16, isa = DSI_ISA_REF;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !has(c, fma | osxsave | avx | f16c)) return isa;
    uint32_t state = saved_state();
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return isa;
    if (!has(b, avx2) || !has(state, ymm_state)) return isa;
    isa |= DSI_ISA_AVX2;
    if (!has(b, avx512f | avx512dq | avx512bw | avx512vl) || !has(state, zmm_state)) return isa;
    isa |= DSI_ISA_AVX512;
    uint32_t max_subleaf = a, leaf_7_c = c, leaf_7_d = d;
    if (has(leaf_7_c, avx512vnni)) isa |= DSI_ISA_AVX512VNNI;
    if (max_subleaf < 1 || !__get_cpuid_count(7, 1, &bf16, &b, &c, &d)) return isa;
    if (!has(leaf_7_c, avx512vbmi) || !has(bf16, avx512bf16)) return isa;
    isa |= DSI_ISA_AVX512BF16;
#ifdef DSI_WITH_AMX
    if (has(leaf_7_d, amx_tile | amx_bf16 | amx_int8) && has(state, tile_state)) isa |= DSI_ISA_AMX;
#else
    (void)leaf_7_d, (void)amx_bf16, (void)amx_tile, (void)amx_int8, (void)tile_state;
#endif
    return isa;
}

#else

uint32_t dsi_isa_detect(void) { return DSI_ISA_REF; }

#endif

void dsi_kernels_select(uint32_t mask, dsi_kernels *kernels) {
    mask |= DSI_ISA_REF;
    memset(kernels, 0, sizeof *kernels);
#define K(type, stem, isa, symbol, c)                                                              \
    if (kernels->stem == NULL && (mask & DSI_ISA_##isa) != 0) {                                    \
        kernels->stem = symbol;                                                                    \
        kernels->name_##stem = #symbol;                                                            \
    }
#include "kernels.inc"
#undef K
}

const dsi_kernel_line *dsi_kernel_lines(uint32_t *n_lines) {
#define K(type, stem, isa, symbol, c)                                                              \
    {DSI_KERNEL_##type,                                                                            \
     DSI_ISA_##isa,                                                                                \
     #stem,                                                                                        \
     #symbol,                                                                                      \
     (dsi_any_fn)symbol,                                                                           \
     (dsi_any_fn)dsi_##stem##__ref,                                                                \
     c},
    static const dsi_kernel_line lines[] = {
#include "kernels.inc"
    };
#undef K
    *n_lines = sizeof lines / sizeof lines[0];
    return lines;
}

void dsi_kernels_use(dsi_kernels *kernels, const dsi_kernel_line *line, dsi_any_fn fn) {
#define STEM(type, name)                                                                           \
    if (strcmp(line->stem, #name) == 0) {                                                          \
        kernels->name = (dsi_##type##_fn)fn;                                                       \
        kernels->name_##name = line->symbol;                                                       \
    }
    DSI_KERNEL_STEMS(STEM)
#undef STEM
}
