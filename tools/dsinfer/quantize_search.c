/* quantize_search.c: the search for scales with the vectors that every CPU has, and which of its
 * builds this CPU runs. */
#include "quantize_search.inc"

#include "quantize_feedback.inc"

#include "../../kernels/kernels.h"

const quantize_search quantize_search_plain = {symmetric, put_i4, q4_k,       put_q4_k,
                                               aim,       settle, accumulate, dots};

const quantize_search *quantize_search_best(void) {
#if defined(__x86_64__)
    const uint32_t have = dsi_isa_detect();
    if (have & DSI_ISA_AVX512) return &quantize_search_avx512;
    if (have & DSI_ISA_AVX2) return &quantize_search_avx2;
#endif
    return &quantize_search_plain;
}
