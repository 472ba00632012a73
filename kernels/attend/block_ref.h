/* block_ref.h: the online-softmax block of kernels.h, in double inside the block; the state between
 * blocks is f32. Included by bf16_ref.c and f32_ref.c, which say how an element is read and whether
 * probabilities are rounded to bf16. */
#ifndef DSI_KERNELS_ATTEND_BLOCK_REF_H
#define DSI_KERNELS_ATTEND_BLOCK_REF_H

#include "../formats.h"
#include "../kernels.h"
#include <math.h>

typedef float (*attend_load)(const void *array, int64_t i);

/* q . [k0_j | k1_j] * scale of query i. */
static double attend_score(const dsi_attend_args *args, attend_load load, int64_t i, int64_t j) {
    double dot = 0;
    for (int64_t d = 0; d < args->d0; d++)
        dot +=
            (double)load(args->q, i * args->q_stride + d) * load(args->k0, j * args->k0_stride + d);
    for (int64_t d = 0; d < args->d1; d++)
        dot += (double)load(args->q, i * args->q_stride + args->d0 + d) *
               load(args->k1, j * args->k1_stride + d);
    return dot * args->scale;
}

static void attend_query(const dsi_attend_args *args, attend_load load, bool bf16, int64_t i) {
    double p[DSI_PAGE_ROWS], sum = 0;
    float *m = &args->state_m[i * args->state_stride], *l = &args->state_l[i * args->state_stride];
    float largest = *m, *o = args->o + i * args->o_stride;
    int32_t limit = args->limit[i];
    for (int32_t j = 0; j < limit; j++) {
        p[j] = attend_score(args, load, i, j);
        if (p[j] > largest) largest = (float)p[j];
    }
    double carry = exp((double)*m - largest);
    for (int32_t j = 0; j < limit; j++) {
        p[j] = exp(p[j] - largest);
        if (bf16) p[j] = (double)dsi_bf16_to_f32(dsi_f32_to_bf16((float)p[j]));
        sum += p[j];
    }
    for (int64_t d = 0; d < args->dv; d++) {
        double value = o[d] * carry;
        for (int32_t j = 0; j < limit; j++) value += p[j] * load(args->v, j * args->v_stride + d);
        o[d] = (float)value;
    }
    *l = (float)(*l * carry + sum);
    *m = largest;
}

static void attend_block(const dsi_attend_args *args, attend_load load, bool bf16) {
    for (int64_t i = 0; i < args->n_q; i++)
        if (args->limit[i] > 0) attend_query(args, load, bf16, i);
}

#endif
