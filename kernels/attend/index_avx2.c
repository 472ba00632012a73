/* index_avx2.c: the indexer's scores, products in f32. The keys of a page are laid side by side
 * once for all queries, so that a lane is a key: an element of a query is broadcast, 3 heads x 32
 * keys are 12 sums in registers, and no sum is ever added across lanes. */
#include "../formats.h"
#include "../kernels.h"
#include "../vector.h"

enum { HEADS = 3, VECTORS = 4, KEYS = 8 * VECTORS };

/* Eight rows of eight elements to columns, the first n of them. */
DSI_INLINE void store_transposed(__m256 r[8], int64_t n, float (*to)[DSI_PAGE_ROWS]) {
    __m256 t[8];
    DSI_UNROLL
    for (int i = 0; i < 8; i += 2) {
        t[i] = _mm256_unpacklo_ps(r[i], r[i + 1]);
        t[i + 1] = _mm256_unpackhi_ps(r[i], r[i + 1]);
    }
    DSI_UNROLL
    for (int i = 0; i < 8; i += 4) {
        r[i] = _mm256_shuffle_ps(t[i], t[i + 2], 0x44);
        r[i + 1] = _mm256_shuffle_ps(t[i], t[i + 2], 0xEE);
        r[i + 2] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0x44);
        r[i + 3] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0xEE);
    }
    DSI_UNROLL
    for (int i = 0; i < 4; i++) {
        if (i < n) _mm256_store_ps(to[i], _mm256_permute2f128_ps(r[i], r[i + 4], 0x20));
        if (i + 4 < n) _mm256_store_ps(to[i + 4], _mm256_permute2f128_ps(r[i], r[i + 4], 0x31));
    }
}

/* Element d of all keys in panel[d]. */
DSI_INLINE void pack(const dsi_index_args *a, float (*panel)[DSI_PAGE_ROWS], bool bf16) {
    for (int64_t row = 0; row < DSI_PAGE_ROWS; row += 8)
        for (int64_t d = 0; d < a->dim; d += 8) {
            __m256 r[8];
            DSI_UNROLL
            for (int i = 0; i < 8; i++) {
                const uint8_t *from =
                    (const uint8_t *)a->k + ((row + i) * a->k_stride + d) * (bf16 ? 2 : 4);
                r[i] = bf16 ? dsi_v8_load_bf16(from, a->dim - d) : dsi_v8_load(from, a->dim - d);
            }
            store_transposed(r, a->dim - d, (float(*)[DSI_PAGE_ROWS])(void *)(panel[d] + row));
        }
}

/* Adds `heads` heads, the first at element `first` of q, to the scores of KEYS keys. */
DSI_INLINE void add_heads(const dsi_index_args *a, const float (*panel)[DSI_PAGE_ROWS], int key,
                          int64_t first, const float *weights, int heads, bool bf16,
                          __m256 sum[VECTORS]) {
    __m256 dot[HEADS][VECTORS];
    DSI_UNROLL
    for (int h = 0; h < heads; h++) {
        DSI_UNROLL
        for (int v = 0; v < VECTORS; v++) dot[h][v] = _mm256_setzero_ps();
    }
    for (int64_t d = 0; d < a->dim; d++) {
        DSI_UNROLL
        for (int h = 0; h < heads; h++) {
            const int64_t at = first + h * a->dim + d;
            const __m256 q = _mm256_set1_ps(bf16 ? dsi_bf16_to_f32(dsi_load_u16(a->q, at))
                                                 : dsi_load_f32(a->q, at));
            DSI_UNROLL
            for (int v = 0; v < VECTORS; v++)
                dot[h][v] = _mm256_fmadd_ps(q, _mm256_load_ps(panel[d] + key + 8 * v), dot[h][v]);
        }
    }
    DSI_UNROLL
    for (int h = 0; h < heads; h++) {
        const __m256 weight = _mm256_set1_ps(weights[h]);
        DSI_UNROLL
        for (int v = 0; v < VECTORS; v++) {
            /* of a NaN and a zero max gives the second */
            const __m256 relu = _mm256_max_ps(_mm256_setzero_ps(), dot[h][v]);
            sum[v] = _mm256_fmadd_ps(weight, relu, sum[v]);
        }
    }
}

DSI_INLINE void score_keys(const dsi_index_args *a, const float (*panel)[DSI_PAGE_ROWS], int key,
                           int64_t i, bool bf16) {
    const float *weights = a->weights + i * a->weights_stride;
    const int64_t first = i * a->n_heads * a->dim;
    __m256 sum[VECTORS];
    int64_t h = 0;
    DSI_UNROLL
    for (int v = 0; v < VECTORS; v++) sum[v] = _mm256_setzero_ps();
    for (; h + HEADS <= a->n_heads; h += HEADS)
        add_heads(a, panel, key, first + h * a->dim, weights + h, HEADS, bf16, sum);
    for (; h < a->n_heads; h++)
        add_heads(a, panel, key, first + h * a->dim, weights + h, 1, bf16, sum);
    DSI_UNROLL
    for (int v = 0; v < VECTORS; v++)
        _mm256_storeu_ps(a->score + i * a->score_stride + key + 8 * v, sum[v]);
}

DSI_INLINE void scores(const dsi_index_args *a, bool bf16) {
    float(*panel)[DSI_PAGE_ROWS] = a->scratch;
    pack(a, panel, bf16);
    for (int64_t i = 0; i < a->n_q; i++)
        for (int key = 0; key < DSI_PAGE_ROWS; key += KEYS)
            score_keys(a, (const float(*)[DSI_PAGE_ROWS])panel, key, i, bf16);
}

void dsi_index_score_bf16__avx2(const dsi_index_args *args) { scores(args, true); }
void dsi_index_score_f32__avx2(const dsi_index_args *args) { scores(args, false); }
