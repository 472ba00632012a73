/* rope_ref.c: rotary position embedding, in place. DeepSeek's MLA pairs neighbours (interleaved),
 * Llama, Qwen2 and Hugging Face's layout pair the two halves. */
#include "../kernels.h"
#include <math.h>

/* Turns elements a and b of every head. */
static void rotate(const dsi_rope_args *args, int64_t a, int64_t b, double angle) {
    float cosine = (float)(cos(angle) * args->factor), sine = (float)(sin(angle) * args->factor);
    for (int64_t h = 0; h < args->n_heads; h++) {
        float *head = args->x + h * args->stride, x = head[a], y = head[b];
        head[a] = x * cosine - y * sine;
        head[b] = y * cosine + x * sine;
    }
}

void dsi_rope_interleaved__ref(const dsi_rope_args *args) {
    for (int64_t i = 0; i < args->half; i++)
        rotate(args, 2 * i, 2 * i + 1, (double)args->position * args->inv_freq[i]);
}

void dsi_rope_half__ref(const dsi_rope_args *args) {
    for (int64_t i = 0; i < args->half; i++)
        rotate(args, i, i + args->half, (double)args->position * args->inv_freq[i]);
}
