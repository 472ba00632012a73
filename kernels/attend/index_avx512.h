/* index_avx512.h: sums of the indexer's scores: a lane is a key, DSI_INDEX_HEADS heads at a time.
 */
#ifndef DSI_KERNELS_ATTEND_INDEX_AVX512_H
#define DSI_KERNELS_ATTEND_INDEX_AVX512_H

#include "transpose_avx512.h"

enum { DSI_INDEX_HEADS = 4, DSI_INDEX_VECTORS = DSI_PAGE_ROWS / 16 };

DSI_INLINE void dsi_index_zero(__m512 dot[DSI_INDEX_HEADS][DSI_INDEX_VECTORS], int heads) {
    DSI_UNROLL
    for (int h = 0; h < heads; h++) {
        DSI_UNROLL
        for (int v = 0; v < DSI_INDEX_VECTORS; v++) dot[h][v] = _mm512_setzero_ps();
    }
}

/* sum += weight * relu(dot) of each head, in their order. */
DSI_INLINE void dsi_index_add(__m512 dot[DSI_INDEX_HEADS][DSI_INDEX_VECTORS], const float *weights,
                              int heads, __m512 sum[DSI_INDEX_VECTORS]) {
    DSI_UNROLL
    for (int h = 0; h < heads; h++) {
        const __m512 weight = _mm512_set1_ps(weights[h]);
        DSI_UNROLL
        for (int v = 0; v < DSI_INDEX_VECTORS; v++) {
            /* of a NaN and a zero max gives the second */
            const __m512 relu = _mm512_max_ps(_mm512_setzero_ps(), dot[h][v]);
            sum[v] = _mm512_fmadd_ps(weight, relu, sum[v]);
        }
    }
}

#endif
