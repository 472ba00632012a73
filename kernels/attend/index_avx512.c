/* index_avx512.c: the indexer's scores, products in f32. The keys of a page are laid side by side
 * once for all queries, so that a lane is a key: an element of a query is broadcast, 4 heads x 64
 * keys are 16 sums in registers, and no sum is ever added across lanes. */
#include "index_avx512.h"
#include "../formats.h"
#include "../kernels.h"

enum { HEADS = DSI_INDEX_HEADS, VECTORS = DSI_INDEX_VECTORS };

/* Up to 16 elements of a key as f32. */
DSI_INLINE __m512i load_key(const void *k, int64_t first, __mmask16 lanes, bool bf16) {
    const uint8_t *from = (const uint8_t *)k + first * (bf16 ? 2 : 4);
    return _mm512_castps_si512(bf16 ? dsi_v16_load_bf16(from, lanes) : dsi_v16_load(from, lanes));
}

/* Element d of all keys in panel[d]. */
DSI_INLINE void pack(const dsi_index_args *a, uint32_t (*panel)[DSI_PAGE_ROWS], bool bf16) {
    for (int64_t row = 0; row < DSI_PAGE_ROWS; row += 16)
        for (int64_t d = 0; d < a->dim; d += 16) {
            const __mmask16 lanes = dsi_v16_lanes(a->dim - d);
            uint32_t(*to)[DSI_PAGE_ROWS] = (uint32_t(*)[DSI_PAGE_ROWS])(void *)(panel[d] + row);
            __m512i low[8], high[8];
            DSI_UNROLL
            for (int i = 0; i < 8; i++) {
                low[i] = load_key(a->k, (row + i) * a->k_stride + d, lanes, bf16);
                high[i] = load_key(a->k, (row + i + 8) * a->k_stride + d, lanes, bf16);
            }
            dsi_store_transposed(low, high, a->dim - d, to);
        }
}

/* Adds `heads` heads, the first at element `first` of q, to the scores of all keys. */
DSI_INLINE void add_heads(const dsi_index_args *a, const uint32_t (*panel)[DSI_PAGE_ROWS],
                          int64_t first, const float *weights, int heads, bool bf16,
                          __m512 sum[VECTORS]) {
    __m512 dot[HEADS][VECTORS];
    dsi_index_zero(dot, heads);
    for (int64_t d = 0; d < a->dim; d++) {
        __m512 k[VECTORS];
        DSI_UNROLL
        for (int v = 0; v < VECTORS; v++) k[v] = _mm512_load_ps((const float *)panel[d] + 16 * v);
        DSI_UNROLL
        for (int h = 0; h < heads; h++) {
            const int64_t at = first + h * a->dim + d;
            const __m512 q = _mm512_set1_ps(bf16 ? dsi_bf16_to_f32(dsi_load_u16(a->q, at))
                                                 : dsi_load_f32(a->q, at));
            DSI_UNROLL
            for (int v = 0; v < VECTORS; v++) dot[h][v] = _mm512_fmadd_ps(q, k[v], dot[h][v]);
        }
    }
    dsi_index_add(dot, weights, heads, sum);
}

DSI_INLINE void scores(const dsi_index_args *a, bool bf16) {
    uint32_t(*panel)[DSI_PAGE_ROWS] = a->scratch;
    pack(a, panel, bf16);
    for (int64_t i = 0; i < a->n_q; i++) {
        const float *weights = a->weights + i * a->weights_stride;
        const int64_t first = i * a->n_heads * a->dim;
        const uint32_t(*keys)[DSI_PAGE_ROWS] = (const uint32_t(*)[DSI_PAGE_ROWS])panel;
        __m512 sum[VECTORS];
        int64_t h = 0;
        DSI_UNROLL
        for (int v = 0; v < VECTORS; v++) sum[v] = _mm512_setzero_ps();
        for (; h + HEADS <= a->n_heads; h += HEADS)
            add_heads(a, keys, first + h * a->dim, weights + h, HEADS, bf16, sum);
        for (; h < a->n_heads; h++)
            add_heads(a, keys, first + h * a->dim, weights + h, 1, bf16, sum);
        DSI_UNROLL
        for (int v = 0; v < VECTORS; v++)
            _mm512_storeu_ps(a->score + i * a->score_stride + 16 * v, sum[v]);
    }
}

void dsi_index_score_bf16__avx512(const dsi_index_args *args) { scores(args, true); }
void dsi_index_score_f32__avx512(const dsi_index_args *args) { scores(args, false); }
