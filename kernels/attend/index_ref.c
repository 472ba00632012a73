/* index_ref.c: the indexer's scores in double, one rounding at the end. */
#include "../formats.h"
#include "../kernels.h"

static double element(const void *array, int64_t i, bool bf16) {
    return (double)(bf16 ? dsi_bf16_to_f32(dsi_load_u16(array, i)) : dsi_load_f32(array, i));
}

static void scores(const dsi_index_args *a, bool bf16) {
    for (int64_t i = 0; i < a->n_q; i++)
        for (int64_t s = 0; s < DSI_PAGE_ROWS; s++) {
            double sum = 0;
            for (int64_t h = 0; h < a->n_heads; h++) {
                double dot = 0;
                for (int64_t d = 0; d < a->dim; d++)
                    dot += element(a->q, (i * a->n_heads + h) * a->dim + d, bf16) *
                           element(a->k, s * a->k_stride + d, bf16);
                sum += (double)a->weights[i * a->weights_stride + h] * (dot < 0 ? 0 : dot);
            }
            a->score[i * a->score_stride + s] = (float)(sum + 0.0); /* never -0 */
        }
}

void dsi_index_score_bf16__ref(const dsi_index_args *args) { scores(args, true); }
void dsi_index_score_f32__ref(const dsi_index_args *args) { scores(args, false); }
