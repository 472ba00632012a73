/* quantize_search_avx2.c: the search for scales with vectors of this instruction set. */
#include "quantize_search.inc"

#include "quantize_feedback.inc"

const quantize_search quantize_search_avx2 = {symmetric, put_i4, q4_k,       put_q4_k,
                                              aim,       settle, accumulate, dots};
