/* blocks_avx512bf16.c: matmul of GGUF's blocks and bf16 activations, AVX-512 with VBMI and BF16. */
#include "../blocks/quads_avx512bf16.h"

/* Scratch: the panel, then the packed rows. Few activation rows are packed whole and the weights
 * read once in the order of memory; many strip by strip, so that a strip of them stays in cache. */
DSI_INLINE void quad_many(const dsi_span_type *t, const dsi_matmul_args *a,
                          void (*decode)(const dsi_matmul_args *a, dsi_quad_panel *p, int64_t k0,
                                         int64_t k1, int64_t ahead),
                          void (*tiles)(const dsi_matmul_args *a, const dsi_quad_panel *p,
                                        const uint8_t *packed, int64_t bytes, int64_t i,
                                        int64_t m)) {
    const int64_t strip = dsi_least(a->k, DSI_STRIP), spans = dsi_pack_spans(t, strip);
    const int64_t panel_bytes = DSI_PANEL_ROWS * spans * 4 * t->group * 2;
    const int64_t room = dsi_matmul_scratch_bytes(a->k) - panel_bytes;
    const int64_t bytes = dsi_pack_bytes(t, spans), strips = (a->k + DSI_STRIP - 1) / DSI_STRIP;
    const int64_t w_bytes = dsi_row_bytes(a->w_dtype, a->w_stride);
    dsi_quad_panel p = {.weights = a->scratch};
    uint8_t *packed = p.weights + panel_bytes;
    const bool whole = a->m * bytes * strips <= room;
    const int64_t m_step = whole ? a->m : room / bytes;
    for (int64_t i = 0; i < a->m; i += m_step) {
        const int64_t m = dsi_least(m_step, a->m - i);
        const int64_t outer = whole ? 1 : strips, inner = whole ? strips : 1;
        for (int64_t s = 0; whole && s < strips; s++)
            dsi_pack(t, a, 0, m, s * spans,
                     dsi_pack_spans(t, dsi_least(a->k - s * DSI_STRIP, DSI_STRIP)),
                     packed + s * m * bytes);
        for (int64_t o = 0; o < outer; o++) {
            const int64_t left = dsi_pack_spans(t, dsi_least(a->k - o * DSI_STRIP, DSI_STRIP));
            if (!whole) dsi_pack(t, a, i, m, o * spans, left, packed);
            for (p.n = a->n0; p.n < a->n1; p.n += DSI_PANEL_ROWS)
                for (int64_t s = o; s < o + inner; s++) {
                    const int64_t k0 = s * DSI_STRIP, k1 = dsi_least(a->k, k0 + DSI_STRIP);
                    p.spans = dsi_pack_spans(t, k1 - k0), p.first = s == 0;
                    decode(a, &p, k0, k1, DSI_PANEL_ROWS * w_bytes);
                    tiles(a, &p, packed + (whole ? s * m * bytes : 0), dsi_pack_bytes(t, p.spans),
                          i, m);
                }
        }
    }
}

/* What only depends on the shape of a span is compiled once for all types. */
#define TILES(name, steps, has_min)                                                                \
    static void name(const dsi_matmul_args *a, const dsi_quad_panel *p, const uint8_t *packed,     \
                     int64_t bytes, int64_t i, int64_t m) {                                        \
        dsi_quad_tiles(a, p, packed, bytes, i, m, steps, has_min);                                 \
    }
TILES(tiles_16, 8, false)
TILES(tiles_16_min, 8, true)
TILES(tiles_32, 16, false)
TILES(tiles_32_min, 16, true)

/* One type of blocks. */
#define BLOCKS(name, dtype, parts, group, tiles)                                                   \
    static void name##_decode(const dsi_matmul_args *a, dsi_quad_panel *p, int64_t k0, int64_t k1, \
                              int64_t ahead) {                                                     \
        dsi_span_type t = dsi_span_type_of(dtype, parts, group);                                   \
        if (parts) t.bytes = dsi_block_shape_of(a->w_dtype).bytes;                                 \
        dsi_quad_panel_decode(&t, a, p, k0, k1, ahead);                                            \
    }                                                                                              \
    static void name(const dsi_matmul_args *a) {                                                   \
        dsi_span_type t = dsi_span_type_of(dtype, parts, group);                                   \
        if (parts) t.bytes = dsi_block_shape_of(a->w_dtype).bytes;                                 \
        if (a->m == 1)                                                                             \
            dsi_quad_few(&t, a, 1);                                                                \
        else if (a->m == 2)                                                                        \
            dsi_quad_few(&t, a, 2);                                                                \
        else if (a->m <= 4)                                                                        \
            dsi_quad_few(&t, a, 4);                                                                \
        else                                                                                       \
            quad_many(&t, a, name##_decode, tiles);                                                \
    }
BLOCKS(q8_0, DSI_DTYPE_Q8_0, false, 32, tiles_32)
BLOCKS(q4_0, DSI_DTYPE_Q4_0, false, 32, tiles_32)
BLOCKS(q4_1, DSI_DTYPE_Q4_1, false, 32, tiles_32_min)
BLOCKS(q5_0, DSI_DTYPE_Q5_0, false, 32, tiles_32)
BLOCKS(q5_1, DSI_DTYPE_Q5_1, false, 32, tiles_32_min)
BLOCKS(iq4_nl, DSI_DTYPE_IQ4_NL, false, 32, tiles_32)
BLOCKS(iq4_xs, DSI_DTYPE_IQ4_XS, false, 32, tiles_32)
BLOCKS(q4_k, DSI_DTYPE_Q4_K, false, 32, tiles_32_min)
BLOCKS(q5_k, DSI_DTYPE_Q5_K, false, 32, tiles_32_min)
BLOCKS(q6_k, DSI_DTYPE_Q6_K, false, 16, tiles_16)
BLOCKS(q3_k, DSI_DTYPE_Q3_K, false, 16, tiles_16)
BLOCKS(q2_k, DSI_DTYPE_Q2_K, false, 16, tiles_16_min)
/* The others are taken apart first. */
BLOCKS(parts_256_32, DSI_DTYPE_IQ2_XXS, true, 32, tiles_32)
BLOCKS(parts_256_16, DSI_DTYPE_IQ2_XS, true, 16, tiles_16)
BLOCKS(parts_64_16, DSI_DTYPE_NVFP4, true, 16, tiles_16)
BLOCKS(parts_32, DSI_DTYPE_MXFP4, true, 32, tiles_32)

void dsi_matmul_blocks_bf16__avx512bf16(const dsi_matmul_args *args) {
    if (args->k == 0) { /* no scratch either */
        for (int64_t i = 0; i < args->m; i++)
            memset(args->y + i * args->y_stride, 0,
                   (size_t)(args->n1 - args->n0) * sizeof *args->y);
        return;
    }
    if (args->m <= 0 || args->n1 <= args->n0) return;
    const dsi_block_shape shape = dsi_block_shape_of(args->w_dtype);
    switch (args->w_dtype) {
    case DSI_DTYPE_Q8_0:
        q8_0(args);
        break;
    case DSI_DTYPE_Q4_0:
        q4_0(args);
        break;
    case DSI_DTYPE_Q4_1:
        q4_1(args);
        break;
    case DSI_DTYPE_Q5_0:
        q5_0(args);
        break;
    case DSI_DTYPE_Q5_1:
        q5_1(args);
        break;
    case DSI_DTYPE_IQ4_NL:
        iq4_nl(args);
        break;
    case DSI_DTYPE_IQ4_XS:
        iq4_xs(args);
        break;
    case DSI_DTYPE_Q4_K:
        q4_k(args);
        break;
    case DSI_DTYPE_Q5_K:
        q5_k(args);
        break;
    case DSI_DTYPE_Q6_K:
        q6_k(args);
        break;
    case DSI_DTYPE_Q3_K:
        q3_k(args);
        break;
    case DSI_DTYPE_Q2_K:
        q2_k(args);
        break;
    case DSI_DTYPE_MXFP4:
        parts_32(args);
        break;
    case DSI_DTYPE_NVFP4:
        parts_64_16(args);
        break;
    default:
        if (shape.group == 16)
            parts_256_16(args);
        else
            parts_256_32(args);
    }
}
