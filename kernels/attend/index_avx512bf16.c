/* index_avx512bf16.c: the indexer's scores with VDPBF16PS. As index_avx512.c, with pairs of
 * elements in place of elements: 4 heads x 64 keys are 16 sums in registers, a pair of a query is
 * broadcast. An odd last element stands alone. */
#include "../formats.h"
#include "../kernels.h"
#include "index_avx512.h"

enum { HEADS = DSI_INDEX_HEADS, VECTORS = DSI_INDEX_VECTORS };

/* Elements 2 p and 2 p + 1 of all keys in panel[p]. */
static void pack(const dsi_index_args *a, uint32_t (*panel)[DSI_PAGE_ROWS]) {
    for (int64_t row = 0; row < DSI_PAGE_ROWS; row += 16)
        for (int64_t d = 0; d < a->dim; d += 32) {
            const __mmask32 lanes = dsi_v32_lanes(a->dim - d);
            const uint16_t *from = (const uint16_t *)a->k + row * a->k_stride + d;
            uint32_t(*to)[DSI_PAGE_ROWS] = (uint32_t(*)[DSI_PAGE_ROWS])(void *)(panel[d / 2] + row);
            __m512i low[8], high[8];
            DSI_UNROLL
            for (int i = 0; i < 8; i++) {
                low[i] = _mm512_maskz_loadu_epi16(lanes, from + i * a->k_stride);
                high[i] = _mm512_maskz_loadu_epi16(lanes, from + (i + 8) * a->k_stride);
            }
            dsi_store_transposed(low, high, (a->dim - d + 1) / 2, to);
        }
}

DSI_INLINE __m512bh broadcast(const uint16_t *q, bool pair) {
    uint32_t both = q[0];
    if (pair) memcpy(&both, q, sizeof both);
    return (__m512bh)_mm512_set1_epi32((int)both);
}

/* Adds the products of one pair, or of the odd last element, of `heads` heads. */
DSI_INLINE void add_pair(const uint32_t *keys, const uint16_t *q, int64_t dim, int heads, bool pair,
                         __m512 dot[HEADS][VECTORS]) {
    __m512bh k[VECTORS];
    DSI_UNROLL
    for (int v = 0; v < VECTORS; v++) k[v] = (__m512bh)_mm512_load_si512(keys + 16 * v);
    DSI_UNROLL
    for (int h = 0; h < heads; h++) {
        const __m512bh both = broadcast(q + h * dim, pair);
        DSI_UNROLL
        for (int v = 0; v < VECTORS; v++) dot[h][v] = _mm512_dpbf16_ps(dot[h][v], both, k[v]);
    }
}

/* Adds `heads` heads from q on to the scores of all keys. */
DSI_INLINE void add_heads(const uint32_t (*panel)[DSI_PAGE_ROWS], const uint16_t *q, int64_t dim,
                          const float *weights, int heads, __m512 sum[VECTORS]) {
    __m512 dot[HEADS][VECTORS];
    dsi_index_zero(dot, heads);
    for (int64_t p = 0; p < dim / 2; p++) add_pair(panel[p], q + 2 * p, dim, heads, true, dot);
    if (dim % 2) add_pair(panel[dim / 2], q + dim - 1, dim, heads, false, dot);
    dsi_index_add(dot, weights, heads, sum);
}

void dsi_index_score_bf16__avx512bf16(const dsi_index_args *a) {
    uint32_t(*panel)[DSI_PAGE_ROWS] = a->scratch;
    pack(a, panel);
    for (int64_t i = 0; i < a->n_q; i++) {
        const float *weights = a->weights + i * a->weights_stride;
        const uint16_t *q = (const uint16_t *)a->q + i * a->n_heads * a->dim;
        const uint32_t(*keys)[DSI_PAGE_ROWS] = (const uint32_t(*)[DSI_PAGE_ROWS])panel;
        __m512 sum[VECTORS];
        int64_t h = 0;
        DSI_UNROLL
        for (int v = 0; v < VECTORS; v++) sum[v] = _mm512_setzero_ps();
        for (; h + HEADS <= a->n_heads; h += HEADS)
            add_heads(keys, q + h * a->dim, a->dim, weights + h, HEADS, sum);
        for (; h < a->n_heads; h++) add_heads(keys, q + h * a->dim, a->dim, weights + h, 1, sum);
        DSI_UNROLL
        for (int v = 0; v < VECTORS; v++)
            _mm512_storeu_ps(a->score + i * a->score_stride + 16 * v, sum[v]);
    }
}
